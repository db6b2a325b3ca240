"""The library's words as those of the command line: fields are options, and nothing foreign moves the cursor."""

from __future__ import annotations

import re

import attrs

from kie_async.models import ExtendRequest, UploadExtendRequest

_FLAGS = {
    "audio_id": "AUDIO_ID",
    "source": "SONG",
    "task_id": "TASK_ID",
    "continue_at": "--at",
    "source_duration": "--duration",
}
_FIELDS = {field.name for kind in (ExtendRequest, UploadExtendRequest) for field in attrs.fields(kind)}
_ROUTE = re.compile(r'\bSettings\(route="(\w+)"\)')
_PYTHON = re.compile(
    r"\b(?P<switch>default_param_flag|instrumental)=(?P<on>True|False)\b"
    r"|\bsession\.track\('(?P<task>[^']*)'\)"
    r"|, or give Settings\([^)]*\)"
    rf"|\b(?P<field>{'|'.join(sorted(name for name in _FIELDS if '_' in name))})\b=?"
)


def flag_of(field: str) -> str:
    """The option or argument that sets a field of a request."""
    return _FLAGS.get(field) or f"--{field.replace('_', '-')}"


def in_flags(text: str) -> str:
    """A message of the library with options in the place of Python."""
    return _PYTHON.sub(_in_flags, with_route(text))


def with_route(text: str) -> str:
    """A message about a row of a manifest, whose fields are columns, with the option for the route."""
    return _ROUTE.sub(r"--route \1", text)


def _in_flags(found: re.Match[str]) -> str:
    if found["switch"]:
        return f"--{'' if found['on'] == 'True' else 'no-'}{found['switch'].replace('_', '-')}"
    if found["task"]:
        return f"kie-async wait {found['task']}"
    return flag_of(found["field"]) if found["field"] else ""


def clock(seconds: float) -> str:
    """A moment or a length of audio, in minutes and seconds: 2:06, or 0:15.4."""
    minutes, rest = divmod(round(seconds, 2), 60)
    return f"{minutes:.0f}:{rest:05.2f}".rstrip("0").rstrip(".") if rest % 1 else f"{minutes:.0f}:{rest:02.0f}"


def shown(text: str) -> str:
    """A text without control characters, so that it cannot move the cursor or colour the screen."""
    return "".join(character if character.isprintable() else "�" for character in text)
