"""Files: what users upload, and how a part of a file is answered. Held in memory; nothing touches a disk."""

from __future__ import annotations

import base64
import binascii
import mimetypes
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote

from aiohttp import BodyPartReader, web

ACCOUNT = "kieai/100001"
MAX_BYTES = 256_000_000  # of one upload

# A grey square: images are beside the point here, but their addresses should not be dead.
IMAGE = base64.b64decode(
    "/9j//gAQTGF2YzYyLjI4LjEwMgD/2wBDAAgEBAQEBAUFBQUFBQYGBgYGBgYGBgYGBgYHBwcICAgHBwcGBgcHCAgICAkJCQgICAgJCQoKCgwMCwsO"
    "Dg4RERT/xABKAAEAAAAAAAAAAAAAAAAAAAAAAQEAAAAAAAAAAAAAAAAAAAAAEAEAAAAAAAAAAAAAAAAAAAAAEQEAAAAAAAAAAAAAAAAAAAAA/8AA"
    "EQgACAAIAwEiAAIRAAMRAP/aAAwDAQACEQMRAD8AAA//2Q=="
)


class Uploads:
    """The files that users have uploaded, by path. The same name overwrites, as the real host does."""

    def __init__(self) -> None:
        self._files: dict[str, bytes] = {}

    def get(self, path: str) -> bytes | None:
        """The file at a path."""
        return self._files.get(path)

    def put(self, content: bytes, folder: str, name: str, base_url: str) -> dict[str, Any]:
        """Keep a file; the answer of the upload host."""
        names = (ACCOUNT, *folder.split("/"), name.rsplit("/", maxsplit=1)[-1])
        path = "/".join(each for each in names if each not in {"", ".."})
        self._files[path] = content
        kind = mimetypes.guess_type(name)[0] or "application/octet-stream"
        moment = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        return {
            "success": True,
            "code": 200,
            "msg": "File uploaded successfully",
            "data": {
                "success": True,
                "fileName": name,
                "filePath": path,
                "downloadUrl": f"{base_url}/files/{quote(path)}",
                "fileSize": len(content),
                "mimeType": kind,
                "uploadedAt": moment,
            },
        }


def refused(message: str, code: int = 400) -> dict[str, Any]:
    """The upload host's refusal."""
    return {"success": False, "code": code, "msg": message, "data": None}


async def read_multipart(request: web.Request) -> tuple[bytes, Mapping[str, str]]:
    """Read an upload as a form: the file, and the texts beside it.

    Raises:
        ValueError: it is no form, or holds no file.
    """
    try:
        form = await request.multipart()
    except (AssertionError, ValueError) as error:
        raise ValueError("not a multipart form") from error
    content: bytes | None = None
    texts: dict[str, str] = {}
    async for part in form:
        if not isinstance(part, BodyPartReader):
            raise ValueError("a form within the form")  # noqa: TRY004  # one error for all that is wrong
        if part.name == "file":
            content = bytes(await part.read(decode=False))
            texts.setdefault("fileName", part.filename or "file")
        elif part.name is not None:
            texts[part.name] = await part.text()
    if content is None:
        raise ValueError("file is required")
    return content, texts


def read_base64(text: object) -> bytes:
    """Read an upload as base64, bare or as a data URL.

    Raises:
        ValueError: no base64.
    """
    if not isinstance(text, str):
        raise ValueError("base64Data is required")  # noqa: TRY004  # one error for all that is wrong
    try:
        return base64.b64decode(text.rpartition(",")[2], validate=True)
    except binascii.Error as error:
        raise ValueError("base64Data is invalid") from error


# ---------------------------------------------------------------- parts of a file

_RANGE = re.compile(r"bytes=(\d*)-(\d*)")


def part(headers: Mapping[str, str], content: bytes, etag: str, kind: str) -> web.Response:
    """Answer with a file, or the part of it that was asked for (Range, If-Range)."""
    own = {"ETag": etag, "Accept-Ranges": "bytes", "Content-Type": kind}
    asked = _RANGE.fullmatch(headers.get("Range", ""))
    if asked is None or asked.groups() == ("", "") or headers.get("If-Range", etag) != etag:
        return web.Response(body=content, headers=own)
    first, last = _span(asked[1], asked[2], len(content))
    if first > last or first >= len(content):
        return web.Response(status=416, headers={**own, "Content-Range": f"bytes */{len(content)}"})
    own["Content-Range"] = f"bytes {first}-{last}/{len(content)}"
    return web.Response(status=206, body=content[first : last + 1], headers=own)


def _span(first: str, last: str, size: int) -> tuple[int, int]:
    if not first:
        return max(0, size - int(last)), size - 1
    return int(first), min(int(last), size - 1) if last else size - 1
