"""Uploads, fetched sources and generated tracks. All are held in memory; nothing is written to disk."""

from __future__ import annotations

import asyncio
import base64
import binascii
import hashlib
import importlib
import json
import logging
import mimetypes
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping
from datetime import UTC, datetime
from functools import partial
from http import HTTPStatus
from types import ModuleType
from typing import Any, TypeAlias
from urllib.parse import quote, unquote, urlencode, urlsplit

import aiohttp
import anyio
from aiohttp import BodyPartReader, web
from anyio import to_thread

from kie_async.emulator._bodies import MESSAGES
from kie_async.emulator._faults import WHOLE_FILE, Fault
from kie_async.emulator._state import EmulatorState
from kie_async.emulator._tasks import EmulatedTask, TaskSnapshot, host_of
from kie_async.settings import is_loopback

ACCOUNT = "kieai/100001"
KEPT_FOR = 14 * 86400.0  # at the service: seconds that generated audio is kept
LINK_FOR = 20 * 60.0  # at the service: seconds that a direct link is good for
STREAM_FOR = 60.0  # seconds after which a stream address decays to nothing; the real time is not known
FETCH_TIMEOUT = 30.0
MAX_SOURCES = 32  # fetched from elsewhere, and kept
MAX_TRACKS = 64  # made, and kept; some 1.4 MB each

logger = logging.getLogger("kie_async.emulator")

# A grey square, so that the addresses of images work.
IMAGE = base64.b64decode(
    "/9j//gAQTGF2YzYyLjI4LjEwMgD/2wBDAAgEBAQEBAUFBQUFBQYGBgYGBgYGBgYGBgYHBwcICAgHBwcGBgcHCAgICAkJCQgICAgJCQoKCgwMCwsO"
    "Dg4RERT/xABKAAEAAAAAAAAAAAAAAAAAAAAAAQEAAAAAAAAAAAAAAAAAAAAAEAEAAAAAAAAAAAAAAAAAAAAAEQEAAAAAAAAAAAAAAAAAAAAA/8AA"
    "EQgACAAIAwEiAAIRAAMRAP/aAAwDAQACEQMRAD8AAA//2Q=="
)


class AudioMissingError(RuntimeError):
    """Audio is needed, but the extra ``kie_async[audio]`` (PyAV and numpy) is not installed."""

    def __init__(self) -> None:
        super().__init__("the emulator makes audio with PyAV and numpy: pip install 'kie_async[audio]'")


def _codec() -> ModuleType:
    """Load ``_audio``, which needs an extra and is slow to import."""
    try:
        return importlib.import_module("kie_async.emulator._audio")
    except ImportError as error:
        raise AudioMissingError from error


def demo_song() -> bytes:
    """Make a song of some 25 seconds to try things with, as a wav file.

    Raises:
        AudioMissingError: the extra ``kie_async[audio]`` is not installed.
    """
    song: bytes = _codec().demo_song()
    return song


# ---------------------------------------------------------------- reading uploads

Upload: TypeAlias = tuple[bytes, Mapping[str, Any]]  # the file, and where it is to be
UploadReader: TypeAlias = Callable[[web.Request], Awaitable[Upload]]


class UploadError(ValueError):
    """An upload cannot be read."""


async def read_object(request: web.Request) -> dict[str, Any]:
    """Read a JSON object; an empty one if the body is anything else."""
    try:
        body = json.loads(await request.read())
    except (ValueError, RecursionError):
        return {}
    return body if isinstance(body, dict) else {}


async def read_form(request: web.Request) -> Upload:
    """Read an upload from a multipart form.

    Raises:
        UploadError: it is no form, or holds no file.
    """
    content: bytes | None = None
    texts: dict[str, str] = {}
    try:
        async for part in await request.multipart():
            if not isinstance(part, BodyPartReader):
                raise UploadError("a form within the form")
            if part.name == "file":
                content = bytes(await part.read(decode=False))
                texts.setdefault("fileName", part.filename or "file")
            elif part.name is not None:
                texts[part.name] = await part.text()
    except (AssertionError, ValueError) as error:
        raise UploadError(str(error) or "not a multipart form") from error
    if content is None:
        raise UploadError("file is required")
    return content, texts


async def read_base64(request: web.Request) -> Upload:
    """Read an upload from base64, bare or in a data URL.

    Raises:
        UploadError: no base64.
    """
    body = await read_object(request)
    try:
        return base64.b64decode(str(body.get("base64Data")).rpartition(",")[2], validate=True), body
    except binascii.Error as error:
        raise UploadError("base64Data is missing or invalid") from error


# ---------------------------------------------------------------- the store


class FileStore:
    """Stores uploads, fetches sources, and serves both and the generated tracks."""

    def __init__(self, state: EmulatorState, client: aiohttp.ClientSession, clock: Callable[[], float]) -> None:
        self._state = state
        self._client = client
        self._clock = clock
        self._tracks: OrderedDict[str, bytes] = OrderedDict()  # made, the most recently used at the end
        self._one = anyio.Lock()
        self._uploads: dict[str, bytes] = {}  # by path
        self._fetched: OrderedDict[str, bytes] = OrderedDict()

    @property
    def _prefix(self) -> str:
        """The beginning of the address of every file."""
        return f"{self._state.base_url}/files/"

    # ------------------------------------------------------------ uploads

    async def take(self, request: web.Request, read: UploadReader) -> dict[str, Any]:
        """Store an upload; return the answer. A file of the same name is replaced, as on the real host."""
        try:
            content, texts = await read(request)
        except UploadError as error:
            return {"success": False, "code": 400, "msg": str(error), "data": None}
        folder, name = str(texts.get("uploadPath") or "uploads"), str(texts.get("fileName") or "file")
        names = (ACCOUNT, *folder.split("/"), name.rsplit("/", maxsplit=1)[-1])
        path = "/".join(each for each in names if each not in {"", ".."})
        self._uploads[path] = content
        data = {
            "success": True,
            "fileName": name,
            "filePath": path,
            "downloadUrl": f"{self._prefix}{quote(path)}",
            "fileSize": len(content),
            "mimeType": mimetypes.guess_type(name)[0] or "application/octet-stream",
            "uploadedAt": datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        }
        return {"success": True, "code": 200, "msg": "File uploaded successfully", "data": data}

    async def read_url(self, request: web.Request) -> Upload:
        """Read an upload that comes as a URL on loopback.

        Raises:
            UploadError: there is no file.
        """
        body = await read_object(request)
        content = await self.fetch(str(body.get("fileUrl")))
        if content is None:
            raise UploadError("Failed to download file")
        return content, body

    # ------------------------------------------------------------ sources

    async def fetch(self, url: str) -> bytes | None:
        """Return the file at a URL of this emulator or of another server on loopback; None if there is none."""
        if url.startswith(self._prefix):
            return await self.read(unquote(urlsplit(url).path).removeprefix("/files/"))
        if url not in self._fetched:
            content = await self._download(url) if is_loopback(host_of(url)) else None
            if content is None:
                return None
            self._fetched[url] = content
            if len(self._fetched) > MAX_SOURCES:
                self._fetched.popitem(last=False)
        return self._fetched[url]

    async def _download(self, url: str) -> bytes | None:
        content = bytearray()
        timeout = aiohttp.ClientTimeout(total=FETCH_TIMEOUT)
        try:
            async with self._client.get(url, allow_redirects=False, timeout=timeout) as answer:
                if answer.status != HTTPStatus.OK:
                    return None
                async for block in answer.content.iter_any():
                    content += block
                    if len(content) > self._state.rules.max_bytes:
                        return None
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError):
            return None
        return bytes(content)

    # ------------------------------------------------------------ downloads

    async def give(self, request: web.Request) -> web.Response:
        """Answer a download."""
        path = request.match_info["path"]
        if self._has_expired(request.query.get("until", "inf")):
            return web.Response(status=403, text="the link has expired")
        try:
            content = await self.read(path)
        except AudioMissingError as error:
            return web.Response(status=501, text=str(error))
        if content is None:
            return web.Response(status=404, text="no such file")
        return _part(request, content, "image/jpeg" if path.endswith(".jpeg") else "audio/mpeg")

    def _has_expired(self, until: str) -> bool:
        try:
            return float(until) < self._clock()
        except ValueError:  # no link of ours
            return True

    def link(self, url: str) -> str | None:
        """Return a direct link to a generated file, which expires; None for any other URL."""
        path = url.removeprefix(self._prefix).partition("?")[0]
        if not url.startswith(self._prefix) or self._state.track(path.removesuffix(".mp3")) is None:
            return None
        return f"{self._prefix}{path}?{urlencode({'until': self._clock() + LINK_FOR})}"

    async def read(self, path: str) -> bytes | None:
        """Return the file at a path below ``/files/``; None if there is none, not yet, or no longer."""
        if path in self._uploads:
            return self._uploads[path]
        name, _, ending = path.removeprefix("stream/").partition(".")
        found = self._state.track(name)
        if found is None or ending not in {"", "mp3", "jpeg"}:
            return None
        if ending == "jpeg":
            return IMAGE
        task, index = found
        age = self._clock() - task.at
        seen = task.timeline.snapshot(age)
        if seen is None:
            return None
        return await (self._finished(task, index, age, seen) if ending else self._stream(task, index, age, seen))

    async def _finished(self, task: EmulatedTask, index: int, age: float, seen: TaskSnapshot) -> bytes | None:
        if index >= seen.ready or not seen.audio or age > task.timeline.end + KEPT_FOR:
            return None
        return await self.audio(task, index)

    async def _stream(self, task: EmulatedTask, index: int, age: float, seen: TaskSnapshot) -> bytes | None:
        if not seen.listed:
            return None
        decayed = age > task.timeline.complete + STREAM_FOR / self._state.speed.factor
        return b"" if decayed else await self.audio(task, index)

    # ------------------------------------------------------------ tracks

    async def audio(self, task: EmulatedTask, index: int) -> bytes:
        """Return the audio of a track, made now if it is not cached.

        Raises:
            AudioMissingError: the extra ``kie_async[audio]`` is not installed.
        """
        name, seconds = task.track_ids[index], task.timeline.durations[index]
        if name not in self._tracks:
            source = await self._source(task)
            async with self._one:  # two at once would take twice as long each
                if name not in self._tracks:
                    facts = {"start": task.start, "seconds": seconds, "take": index, "seed": name}
                    make = partial(_codec().continued, source, **facts, alone=self._state.speed.answers != "whole")
                    self._tracks[name] = await to_thread.run_sync(make)
                    if len(self._tracks) > MAX_TRACKS:
                        self._tracks.popitem(last=False)
        self._tracks.move_to_end(name)
        return self._tracks[name]

    async def _source(self, task: EmulatedTask) -> bytes | str:
        """Return the audio that a task continues; if it is unknown, its name, from which a song is made."""
        source, content = task.submission.source, None
        if task.submission.operation == "upload_extend":
            content = await self.fetch(source)
        elif parent := self._state.track(source):
            content = await self.audio(*parent)
        return source if content is None else content


# ---------------------------------------------------------------- checking sources

_NO_AUDIO = "Failed to parse the audio file"


class SourceChecker:
    """Makes tasks fail whose source cannot be fetched, is no audio, or ends before ``continueAt``.

    Args:
        changed: called when a source was checked.
    """

    def __init__(
        self, state: EmulatorState, files: FileStore, clock: Callable[[], float], changed: Callable[[], None]
    ) -> None:
        self.unchecked = 0
        self._state = state
        self._files = files
        self._clock = clock
        self._changed = changed
        self._waiting: asyncio.Queue[EmulatedTask] = asyncio.Queue()
        self._known: dict[str, float | Fault | None] = {}  # the length or the fault of each source

    def check(self, task: EmulatedTask) -> None:
        """Check the source of a task soon."""
        self.unchecked += 1
        self._waiting.put_nowait(task)

    async def run(self) -> None:
        """Check sources until cancelled."""
        while True:
            task = await self._waiting.get()
            try:
                await self._check(task)
            except Exception:  # a library failed: leave this task unchecked, and go on with the others
                logger.exception("the source of task %s could not be checked", task.id)
            finally:
                self.unchecked -= 1
                self._changed()

    async def _check(self, task: EmulatedTask) -> None:
        url = task.submission.source
        if url not in self._known:
            self._known[url] = await self._judge(url)
        found = self._known[url]
        if isinstance(found, Fault):
            self._state.fail(task, found, self._clock())
        elif found is not None:
            self._state.source_measured(task, found, self._clock())

    async def _judge(self, url: str) -> float | Fault | None:
        content = await self._files.fetch(url)
        if content is None:
            return Fault("refused", code=451, message=MESSAGES[451])
        try:
            length: float = await to_thread.run_sync(_codec().measure, content)
        except AudioMissingError:
            return None
        except ValueError:
            return Fault("failed", code=451, word="CREATE_TASK_FAILED", message=_NO_AUDIO)
        return length


# ---------------------------------------------------------------- parts of a file


def _part(request: web.Request, content: bytes, kind: str) -> web.Response:
    """Answer with a file, or with the requested part of it (Range, If-Range)."""
    etag = f'"{hashlib.blake2b(content, digest_size=16).hexdigest()}"'
    own = {"ETag": etag, "Accept-Ranges": "bytes", "Content-Type": kind}
    try:
        asked = request.http_range
    except ValueError:  # one that cannot be read is ignored
        asked = slice(None)
    first, end, _ = asked.indices(len(content))
    if asked.start is asked.stop is None or request.headers.get("If-Range", etag) != etag:
        return web.Response(body=content, headers=own)
    if first >= end:
        answer = web.Response(status=416, headers={**own, "Content-Range": f"bytes */{len(content)}"})
    else:
        own["Content-Range"] = f"bytes {first}-{end - 1}/{len(content)}"
        answer = web.Response(status=206, body=content[first:end], headers=own)
    answer[WHOLE_FILE] = content
    return answer
