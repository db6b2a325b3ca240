"""JSON of the service: read strictly first, and mended if that cannot be.

Inside ``data.param`` and ``data.paramJson`` of a real answer of the jobs route the innermost quotes had one backslash
too few, so that a finished, paid task could not be read. It is put back, there and in the tracks; if that
does not help, the two are cut out, for they are echoes of the request.
"""

from __future__ import annotations

import json
import re
from codecs import BOM_UTF8
from collections.abc import Callable
from itertools import islice
from typing import Any, TypeAlias

from kie_async.errors import BadResponseError
from kie_async.events import clean

try:
    import orjson
except ImportError:  # pragma: no cover (the extra "speed" is not installed)
    orjson = None  # type: ignore[assignment]  # absent: the standard library reads all

Json: TypeAlias = Any  # what a body holds: anything

_ECHO = re.compile(r'(?<!\\)"(?:param|paramJson|param_json)"\s*:\s*(?=")')
_BACKSLASH_LOST = re.compile(r'(?<!\\)(?:\\\\)+(?=")')  # a quote inside text has an odd number of them
_ECHO_END = re.compile(r'(?<!\\)"(?=\s*(?:,\s*"|\}))')
_TRIES = 64


def dump(value: object) -> bytes:
    """Write JSON as the service takes it: UTF-8, no NaN."""
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()


def load(body: bytes) -> Json:
    """Read JSON strictly.

    Raises:
        BadResponseError: the bytes are no JSON, or none that can be read safely.
    """
    if orjson is not None:
        try:
            return orjson.loads(body)
        except orjson.JSONDecodeError:
            pass  # orjson refuses some bodies that can be read (a lone surrogate): the standard library decides
    try:
        return loads(decode(body))
    except (ValueError, RecursionError):
        raise BadResponseError(f"the answer is no JSON; it begins {beginning(body)}") from None


def decode(body: bytes) -> str:
    """The text of a body, without a byte order mark; the codec "utf-8-sig" takes four times as long."""
    return body.removeprefix(BOM_UTF8).decode()


def _no_constant(word: str) -> None:
    raise ValueError(f"{word} is no JSON")


def reader(object_pairs_hook: Callable[[list[tuple[str, Any]]], Any] | None = None) -> Callable[[str], Any]:
    """Make a strict reader of text, once: ``json.loads`` with options makes one anew for each text."""
    return json.JSONDecoder(parse_constant=_no_constant, object_pairs_hook=object_pairs_hook).decode


loads = reader()
_load_pairs = reader(object_pairs_hook=tuple)
_lenient = json.JSONDecoder(strict=False, parse_constant=lambda _word: None).decode
_lenient_pairs = json.JSONDecoder(strict=False, parse_constant=lambda _word: None, object_pairs_hook=tuple).decode


def load_pairs(body: bytes) -> Json:
    """Read JSON, mended if need be, with each object as a tuple of its members, so that doubled keys can be seen.

    Raises:
        ValueError: the bytes are no JSON.
    """
    try:
        return _load_pairs(decode(body))
    except (ValueError, RecursionError):
        value = mend(body, _lenient_pairs)
        if value is None:
            raise ValueError("no JSON") from None
        return value


def beginning(body: bytes) -> str:
    """The first bytes of an answer, fit to be shown."""
    return repr(clean(body[:200].decode("utf-8", "replace")))


def load_tolerantly(body: bytes) -> Json:
    """Read JSON strictly, and mended if that cannot be.

    Raises:
        BadResponseError: nothing mends it.
    """
    try:
        return load(body)
    except BadResponseError:
        value = mend(body)
        if value is None:
            raise
        return value


def mend(body: bytes, read: Callable[[str], Any] = _lenient) -> Json:
    """Read a malformed answer: letters cut in half, control characters, NaN; or with lost backslashes put back.

    Last, without its echoes of the request, which takes what stands between two faults with them. None if nothing
    mends it.
    """
    text = body.removeprefix(BOM_UTF8).decode("utf-8", "replace").rstrip("\0 \t\r\n")
    value = _readable(text, read)[1]
    if value is None:
        value = _readable(_BACKSLASH_LOST.sub(r"\g<0>\\", text), read)[1]
    position = 0
    while value is None and (echo := _ECHO.search(text, position)):
        following = _ECHO.search(text, echo.end() + 1)
        limit = following.start() if following else len(text)
        text, value = _cut(text, echo.end(), limit, read)
        position = echo.end() + 1
    return value


def _cut(text: str, start: int, limit: int, read: Callable[[str], Any]) -> tuple[str, Any]:
    """Put null in place of the echo at ``start``, up to the first end after which the text reads on to ``limit``."""
    for end in islice(_ECHO_END.finditer(text, start + 1, limit + 1), _TRIES):
        mended = f"{text[:start]}null{text[end.end() :]}"
        reach, value = _readable(mended, read)
        if value is not None or reach >= limit - len(text) + len(mended):
            return mended, value
    return text, None


def _readable(text: str, read: Callable[[str], Any]) -> tuple[int, Any]:
    """How far a text can be read as JSON, and its value if it is all."""
    try:
        value = read(text)
    except json.JSONDecodeError as error:
        return error.pos, None
    except (ValueError, RecursionError):
        return 0, None
    return len(text), value
