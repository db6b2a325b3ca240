"""The fields of a value, read from a mapping whose keys are in either spelling; what cannot be read is left out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any, get_type_hints

import attrs

from kie_async._protocol.values import as_address, as_duration, as_integer, as_moment, as_number, as_text, as_word
from kie_async.models import TaskRecord, Track, UploadedFile

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
        for spelling in _spellings(names.get(field, field))
    }


def _spellings(name: str) -> tuple[str, str]:
    head, *tail = name.split("_")
    return name, head + "".join(map(str.capitalize, tail))


def _reader(members: Mapping[str, tuple[str, Callable[..., object]]]) -> Callable[[Mapping[str, Any]], dict[str, Any]]:
    """Make the function that reads fields.

    This is the greater part of what reading an answer costs, so it is one plain loop; the benchmark "decode" measures
    it.
    """
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
_TRACK = _members_of(Track, duration=as_duration, **_ADDRESSES)

TRACK_KEYS = _TRACK.keys()
AUDIO_KEYS = frozenset(key for key, (field, _) in _TRACK.items() if field.endswith("audio_url"))

track_fields = _reader(_TRACK)
record_fields = _reader(_members_of(TaskRecord))
upload_fields = _reader(_members_of(UploadedFile))
