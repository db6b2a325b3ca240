"""JSON of the service as plain values: the text mended if need be, and fields read from keys in either spelling.

Text is first read strictly, and mended if that fails. Inside ``data.param`` and ``data.paramJson`` of a real answer of
the jobs route the innermost quotes had one backslash too few, so that a finished, paid task could not be read. The
backslash is put back, there and in the tracks; if that does not help, the two fields are cut out, because they only
echo the request. Bytes that still cannot be read raise ``BadResponseError``.

Plain values are read leniently: one that cannot be read is None, and nothing is raised.
"""

from __future__ import annotations

import json
import math
import re
from codecs import BOM_UTF8
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from functools import cache
from itertools import islice
from typing import Any, TypeAlias, get_type_hints

import attrs

from kie_async.errors import BadResponseError
from kie_async.events import clean
from kie_async.models import TaskRecord, Track, UploadedFile

try:
    import orjson
except ImportError:  # pragma: no cover (the extra "speed" is not installed)
    orjson = None  # type: ignore[assignment]  # absent: the standard library reads all

Json: TypeAlias = Any  # what a body holds: anything

_ECHO = re.compile(r'(?<!\\)"(?:param|paramJson|param_json)"\s*:\s*(?=")')
_BACKSLASH_LOST = re.compile(r'(?<!\\)(?:\\\\)+(?=")')  # a quote inside text has an odd number of them
_ECHO_END = re.compile(r'(?<!\\)"(?=\s*(?:,\s*"|\}))')
_TRIES = 64


_encode = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode


def dump(value: object) -> bytes:
    """Write JSON as the service takes it: UTF-8, no NaN."""
    return _encode(value).encode()


def load(body: bytes) -> Json:
    """Read JSON strictly."""
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


def reader(
    object_pairs_hook: Callable[[list[tuple[str, Any]]], Any] | None = None, *, strict: bool = True
) -> Callable[[str], Any]:
    """Make a reader of text, once: ``json.loads`` with options makes one anew for each text."""
    constant = _no_constant if strict else lambda _word: None
    return json.JSONDecoder(strict=strict, parse_constant=constant, object_pairs_hook=object_pairs_hook).decode


class DoubledObject(dict[str, Any]):
    """A JSON object in which a key is written twice: what it says depends on who reads it."""


def _marked(members: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(members)
    return value if len(value) == len(members) else DoubledObject(value)


UNCLEAR = "the callback is no JSON object that can be read in one way only"

loads, _loads_marked = reader(), reader(_marked)
_loads_leniently, _loads_marked_leniently = reader(strict=False), reader(_marked, strict=False)


def load_marked(body: bytes) -> Json:
    """Read JSON, mended if need be; an object in which a key is written twice is a ``DoubledObject``."""
    try:
        return _loads_marked(decode(body))
    except (ValueError, RecursionError):
        value = mend(body, _loads_marked_leniently)
        if value is None:
            raise BadResponseError(UNCLEAR) from None
        return value


def beginning(body: bytes) -> str:
    """The first bytes of an answer, fit to be shown."""
    return repr(clean(body[:200].decode("utf-8", "replace")))


def load_tolerantly(body: bytes) -> Json:
    """Read JSON strictly; if that fails, mend it."""
    try:
        return load(body)
    except BadResponseError:
        value = mend(body)
        if value is None:
            raise
        return value


def mend(body: bytes, read: Callable[[str], Any] = _loads_leniently) -> Json:
    """Read a malformed answer: letters cut in half, control characters, NaN; or with lost backslashes put back.

    As a last resort its echoes of the request are cut out, and with them what stands between two faults. None if
    nothing helps.
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


# ---------------------------------------------------------------- plain values


def as_text(value: object) -> str | None:
    if isinstance(value, str):
        if value.isascii():
            return value or None
        return value.encode("utf-8", "replace").decode()  # a lone surrogate breaks databases and terminals
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return str(value)
    return None


def as_word(value: object) -> str:
    return as_text(value) or ""


def as_address(value: object) -> str | None:
    """An http(s) address, alone or in a list; None for "null" and other placeholders of one that is not there yet."""
    text = as_text(value[0] if isinstance(value, list) and len(value) == 1 else value)
    if text is None:
        return None
    text = text.strip()
    if text.startswith("https://"):  # nearly always
        return text
    return text if text[:8].lower().startswith(("https://", "http://")) else None


def as_number(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def as_duration(value: object) -> float | None:
    number = as_number(value)
    return number if number is not None and number > 0 else None


_MAX = 2**53  # beyond it a number is no code and no size


def as_integer(value: object) -> int | None:
    if type(value) is int:
        return value if abs(value) < _MAX else None
    number = as_number(value)
    return int(number) if number is not None and number.is_integer() and abs(number) < _MAX else None


_MILLISECONDS = 1e11  # as seconds, the year 5138: any number above it counts milliseconds


def as_moment(value: object) -> datetime | None:
    """Epoch milliseconds (what the service sends), epoch seconds, or text; text without a zone is taken as UTC."""
    number = as_number(value)
    try:
        if number is not None:
            return datetime.fromtimestamp(number / 1000 if abs(number) > _MILLISECONDS else number, UTC)
        if not isinstance(value, str):
            return None
        moment = datetime.fromisoformat(value)
        return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
    except (ValueError, OverflowError, OSError):
        return None


# ---------------------------------------------------------------- fields


@cache
def camel_case(name: str) -> str:
    """``negative_tags`` as the service spells most keys: ``negativeTags``."""
    head, *tail = name.split("_")
    return head + "".join(map(str.capitalize, tail))


def snake_case(name: str) -> str:
    """``negativeTags``, ``Negative-Tags`` or ``NEGATIVE TAGS`` as ``negative_tags``."""
    return _BETWEEN_WORDS.sub("_", name.strip()).lower()


_BETWEEN_WORDS = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|[\s-]+")
_READERS: dict[object, Callable[[object], object]] = {
    str: as_word,
    str | None: as_text,
    int | None: as_integer,
    float | None: as_number,
    datetime | None: as_moment,
}
_NAMES = {
    Track: {"created_at": "create_time"},
    TaskRecord: {"created_at": "create_time", "completed_at": "complete_time"},
    UploadedFile: {"size": "file_size"},
}


def _members_of(cls: type[object], **own: Callable[[object], object]) -> dict[str, tuple[str, Callable[..., object]]]:
    """Each key under which a field of ``cls`` may come, with the field and what reads it.

    Fields of other types than plain values are left to the caller.
    """
    names = _NAMES[cls]
    return {
        spelling: (field, own.get(field) or _READERS[kind])
        for field, kind in get_type_hints(cls).items()
        if kind in _READERS
        for key in (names.get(field, field),)
        for spelling in (key, camel_case(key))
    }


def _reader(members: Mapping[str, tuple[str, Callable[..., object]]]) -> Callable[[Mapping[str, Any]], dict[str, Any]]:
    """Make the function that reads fields: a plain loop, because it takes most of the time to read an answer."""
    find = members.get

    def read(data: Mapping[str, Any]) -> dict[str, Any]:
        fields = {}
        for key, value in data.items():
            if value is not None and value != "" and (member := find(key)) is not None:
                field, convert = member
                fields[field] = convert(value)
        return fields

    return read


_ADDRESSES = {field.name: as_address for field in attrs.fields(Track) if field.name.endswith("_url")}
_TRACK = _members_of(Track, id=lambda value: as_word(value).strip(), duration=as_duration, **_ADDRESSES)

TRACK_KEYS = _TRACK.keys()
AUDIO_KEYS = frozenset(key for key, (field, _) in _TRACK.items() if field.endswith("audio_url"))

track_fields = _reader(_TRACK)
record_fields = _reader(_members_of(TaskRecord))
upload_fields = _reader(_members_of(UploadedFile))
