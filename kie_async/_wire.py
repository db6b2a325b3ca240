"""Bytes to values and back: the only place that knows cattrs and JSON.

Read tolerantly: keys in camelCase or snake_case, nulls, absent keys, numbers as text, dates as epoch milliseconds
or text; unknown keys fall away. Any bytes whatever end in a value or in one of our own errors.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from datetime import datetime
from functools import partial
from os import PathLike
from typing import Any, TypeVar, get_type_hints

import attrs
import cattrs

from kie_async._jsontext import beginning, dump, load, load_pairs, load_tolerantly
from kie_async._states import WORDS, Word
from kie_async._values import as_address, as_duration, as_integer, as_moment, as_number, as_text, as_word
from kie_async.errors import BadResponseError
from kie_async.models import (
    CallbackEvent,
    Credits,
    ExtendRequest,
    TaskRecord,
    Track,
    UploadedFile,
    UploadExtendRequest,
)

T = TypeVar("T")

TASK_ID = re.compile(r"[A-Za-z0-9_-]{1,128}")  # no dot: "id.timestamp" is what a callback's signature covers


@attrs.frozen
class Envelope:
    """What every answer is wrapped in. ``code`` is None if there is none that can be read."""

    code: int | None = None
    msg: str = ""
    data: Any = None


# ---------------------------------------------------------------- structuring

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


def _fields_of(cls: type[object], **own: Callable[[object], object]) -> Callable[[Mapping[str, Any]], dict[str, Any]]:
    """Make the function that reads the fields of a ``cls`` from a mapping with keys in either spelling.

    Fields of other types than plain values are left to the caller. This is the greater part of what reading an answer
    costs, so it is one plain loop; the benchmark "decode" measures it.
    """
    names = _NAMES[cls]
    members = {
        spelling: (field, own.get(field) or _READERS[kind])
        for field, kind in get_type_hints(cls).items()
        if kind in _READERS
        for spelling in _spellings(names.get(field, field))
    }
    find = members.get

    def read(data: Mapping[str, Any]) -> dict[str, Any]:
        fields = {}
        for key, value in data.items():
            if value is not None and value != "" and (member := find(key)) is not None:
                field, convert = member
                fields[field] = convert(value)
        return fields

    return read


def _spellings(name: str) -> tuple[str, str]:
    head, *tail = name.split("_")
    return name, head + "".join(map(str.capitalize, tail))


_track_fields = _fields_of(
    Track,
    duration=as_duration,
    **{field.name: as_address for field in attrs.fields(Track) if field.name.endswith("_url")},
)
_record_fields = _fields_of(TaskRecord)
_upload_fields = _fields_of(UploadedFile)


def _get(data: object, *names: str) -> Any:  # noqa: ANN401  # JSON is anything
    """The first of these members that is there and not null; None for anything else."""
    if not isinstance(data, dict):
        return None
    for name in names:
        if (value := data.get(name)) is not None:
            return value
    return None


_ID = ("taskId", "task_id")
_BARE_ID = re.compile(r"[0-9a-f]{32}")  # FACTS §1
_HOLDERS = ("sunoData", "suno_data", "data", "tracks", "response", "resultUrls", "result_urls")


def _first(data: object, *names: str) -> str | None:
    """The first of these members that is a text with something in it."""
    return next((text for name in names if (text := as_text(_get(data, name)))), None)


def _all_tracks(value: object) -> tuple[Track, ...]:
    """The tracks of a list. Placeholders, which have neither an id nor audio, are no tracks."""
    found = []
    for each in value if isinstance(value, list) else ():
        if isinstance(each, dict):
            track = Track(**_track_fields(each))
            if track.id or track.audio_url or track.source_audio_url:
                found.append(track)
        elif isinstance(each, str) and (url := as_address(each)):
            found.append(Track(audio_url=url))  # other members of the family list bare addresses
    return tuple(found)


# ---------------------------------------------------------------- answers


def read_envelope(body: bytes) -> Envelope:
    """Read an answer's wrapping; its body code may be a number or text, or missing.

    Raises:
        BadResponseError: no JSON object.
    """
    value = load_tolerantly(body)
    if not isinstance(value, dict):
        raise BadResponseError(f"the answer is no JSON object; it begins {beginning(body)}")
    data = value.get("data")
    if data is None and not value.keys().isdisjoint(_ID):
        data = value  # members of the family put the id at the root
    return Envelope(as_integer(value.get("code")), _message(value), data)


def _message(value: Mapping[str, Any]) -> str:
    return as_text(value.get("msg")) or _first(value, "message", "error", "errorMessage", "detail") or ""


def read_task_id(data: object) -> str:
    """Read the id of a new task.

    Raises:
        BadResponseError: there is none, or none that could be one.
    """
    if isinstance(data, str):
        data = {"taskId": data} if _BARE_ID.fullmatch(data) else _unpacked(data)
    if isinstance(data, list) and len(data) == 1:
        [data] = data
    ids = (_get(data, name) for name in _ID)
    task_id = next((each.strip() for each in ids if isinstance(each, str) and each), "")
    if TASK_ID.fullmatch(task_id) is None:
        raise BadResponseError("the answer names no task id that can be one")
    return task_id


def is_record(data: object) -> bool:
    """Whether this is what record-info says of a task, and not of the question."""
    return bool(_first(data, "status", "state"))


def read_record(data: object) -> TaskRecord | None:
    """Read record-info of either route; None if the service does not know the task (yet).

    Raises:
        BadResponseError: something else than a record.
    """
    if data is None or data in ({}, [], ""):
        return None
    if not isinstance(data, dict):
        raise BadResponseError("record-info is no object")
    fields = _record_fields(data)
    fields["status"] = _status(data)
    fields["tracks"] = _tracks_of(data)
    fields["error_code"] = fields.get("error_code") or as_integer(_get(data, "failCode", "fail_code")) or None
    fields["error_message"] = fields.get("error_message") or as_text(_get(data, "failMsg", "fail_msg"))
    return TaskRecord(**fields)


def _tracks_of(data: Mapping[str, Any]) -> tuple[Track, ...]:
    """The tracks of a record, from the first place that has audio, or else the first that has any."""
    places = (_get(data, "response"), _get(data, "resultJson", "result_json"), data)
    found: tuple[Track, ...] = ()
    for place in places:
        tracks = _listed(place)
        if any(track.audio_url for track in tracks):
            return tracks
        found = found or tracks
    return found


def _listed(holder: object, depth: int = 4) -> tuple[Track, ...]:
    """The tracks, wherever a route or an old page puts them; JSON inside text is unpacked."""
    if isinstance(holder, str):
        if depth and not as_address(holder):
            return _listed(_unpacked(holder), depth - 1)
        holder = [holder]
    if isinstance(holder, dict) and depth:
        for name in _HOLDERS:
            if (held := holder.get(name)) and (tracks := _listed(held, depth - 1)):
                return tracks
    return _all_tracks(holder)


def _unpacked(text: str) -> Any:  # noqa: ANN401  # JSON is anything
    try:
        return load_tolerantly(text.encode("utf-8", "replace"))
    except BadResponseError:
        return None


def _status(data: Mapping[str, Any]) -> str:
    """One word for both routes: the jobs route adds ``state``, which decides when it is at its end."""
    status = as_word(data.get("status")).strip().upper()
    state = as_word(data.get("state")).strip().upper()
    end = WORDS.get(state)
    if end is Word.FAILED:
        return status if WORDS.get(status) is Word.FAILED else state
    if end is Word.SUCCEEDED:
        return status if WORDS.get(status) in {Word.FAILED, Word.UNDELIVERED} else state
    return status or state


def read_credits(data: object) -> Credits:
    """Read the credits left.

    Raises:
        BadResponseError: no number.
    """
    amount = as_number(data)
    if amount is None:
        amount = as_number(_get(data, "credit", "credits"))
    if amount is None:
        raise BadResponseError("the credits are no number")
    return Credits(amount)


def read_link(data: object) -> str:
    """Read the direct link to a generated file.

    Raises:
        BadResponseError: no address.
    """
    link = as_text(data) or _first(data, "url", "downloadUrl", "download_url")
    if link is None:
        raise BadResponseError("the answer holds no link")
    return link


def read_upload(data: object) -> UploadedFile:
    """Read what the upload host says of a file.

    Raises:
        BadResponseError: the host did not take it, or gave no address.
    """
    if not isinstance(data, dict) or data.get("success") is False:
        raise BadResponseError("the upload host did not take the file")
    url = _first(data, "downloadUrl", "download_url", "fileUrl", "file_url", "url")
    if url is None:
        raise BadResponseError("the upload host gave no address of the file")
    return UploadedFile(**{**_upload_fields(data), "download_url": url})


# ---------------------------------------------------------------- callbacks


def read_callback(body: bytes) -> CallbackEvent:
    """Read the body of a callback.

    Raises:
        BadResponseError: no JSON object, a key of what is claimed written twice, or no task id that could be one, or
            two that differ.
    """
    try:
        value = _members(load_pairs(body))
        data = _members(value.get("data"))
    except ValueError:
        raise BadResponseError("the callback is no JSON object that can be read in one way only") from None
    places = data.get("task_id"), data.get("taskId"), value.get("task_id"), value.get("taskId")
    ids = {place for place in places if isinstance(place, str) and place}
    task_id = ids.pop() if len(ids) == 1 else ""
    if TASK_ID.fullmatch(task_id) is None:
        raise BadResponseError("the callback names no task id that can be one, or two that differ")
    return CallbackEvent(
        task_id=task_id,
        stage=as_word(_get(data, "callbackType", "callback_type")),
        code=as_integer(value.get("code")),
        message=_message(value),
        read_tracks=partial(_claimed_tracks, data.get("data")),
    )


def _members(pairs: object) -> dict[str, Any]:
    """The members of an object; none for anything else."""
    if not isinstance(pairs, tuple):
        return {}
    members = dict(pairs)
    if len(members) < len(pairs):
        raise ValueError("a key is written twice")
    return members


def _claimed_tracks(value: object) -> tuple[Track, ...]:
    listed = value if isinstance(value, list) else []
    return _all_tracks([dict(each) if isinstance(each, tuple) else each for each in listed])


# ---------------------------------------------------------------- our own values, for the journal

_strict = cattrs.Converter(detailed_validation=False, omit_if_default=True)
_strict.register_unstructure_hook(datetime, datetime.isoformat)
_strict.register_structure_hook(datetime, lambda text, _type: datetime.fromisoformat(text))
_strict.register_structure_hook(
    ExtendRequest | UploadExtendRequest,
    lambda data, _type: (ExtendRequest if "audio_id" in data else UploadExtendRequest)(**data),
)
_strict.register_unstructure_hook_func(lambda kind: kind == str | PathLike[str], str)


def pack(value: object) -> str:
    """Write one of our own values as JSON text; defaults are left out."""
    return dump(_strict.unstructure(value)).decode()


def unpack(text: str | bytes, kind: type[T]) -> T:
    """Read what ``pack`` has written.

    Raises:
        BadResponseError: it is something else.
    """
    try:
        return _strict.structure(load(text.encode() if isinstance(text, str) else text), kind)
    except Exception as error:  # noqa: BLE001  # cattrs raises whatever the value's own types raise
        raise BadResponseError(f"no {kind.__name__} can be read from it: {type(error).__name__}") from None
