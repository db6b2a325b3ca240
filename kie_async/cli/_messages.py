"""What the command line says of events and errors: options in the place of Python names, no control characters."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable
from http import HTTPStatus
from pathlib import Path
from typing import Any

import attrs

from kie_async import events
from kie_async.errors import (
    FileError,
    InvalidRequestError,
    KieError,
    ManifestError,
    Problem,
    RowProblem,
    SubmitUnknownError,
)
from kie_async.models import ExtendRequest, UploadExtendRequest

_OPTIONS = {
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


# ---------------------------------------------------------------- words


def option_of(field: str) -> str:
    """The option or argument that sets a field of a request."""
    return _OPTIONS.get(field) or f"--{field.replace('_', '-')}"


def with_options(text: str) -> str:
    """A message of the library with options in the place of Python."""
    return _PYTHON.sub(_as_option, with_route(text))


def with_route(text: str) -> str:
    """A message about a row of a manifest, whose fields are columns, with the option for the route."""
    return _ROUTE.sub(r"--route \1", text)


def _as_option(found: re.Match[str]) -> str:
    if found["switch"]:
        return f"--{'' if found['on'] == 'True' else 'no-'}{found['switch'].replace('_', '-')}"
    if found["task"]:
        return f"kie-async wait {found['task']}"
    return option_of(found["field"]) if found["field"] else ""


def clock(seconds: float) -> str:
    """A position in audio, or its length, in minutes and seconds: 2:06, or 0:15.4."""
    minutes, rest = divmod(round(seconds, 2), 60)
    return f"{minutes:.0f}:{rest:05.2f}".rstrip("0").rstrip(".") if rest % 1 else f"{minutes:.0f}:{rest:02.0f}"


def count_of(number: int, noun: str) -> str:
    """A number of things: 1 job, 2 jobs."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def printable(text: str) -> str:
    """A text without control characters, so that it cannot move the cursor or colour the screen."""
    return "".join(character if character.isprintable() else "�" for character in text)


def resume_options(route: str, out: Path | None) -> str:
    """The options that another command needs to continue with a task."""
    words = [*(["--route", route] if route != "classic" else []), *(["--out", str(out)] if out else [])]
    return "".join(f" {shlex.quote(word)}" for word in words)


# ---------------------------------------------------------------- events

# Events of these types replace each other: only the latest matters.
TRANSIENT = (events.Polled, events.PollFailed, events.Queued)

_STAGES = {
    "text": "the lyrics are there",
    "first": "the first track is done",
    "complete": "all tracks are done",
}
_EVENT_LINES: dict[type[object], Callable[[Any], str]] = {
    events.Submitted: lambda event: f"submitted: task {event.task_id}",
    events.Polled: lambda event: f"the service says {event.status} after {event.age:.0f} s",
    events.PollFailed: lambda event: f"a poll failed and is tried again: {event.reason}",
    events.StageReached: lambda event: f"{event.stage}: {_STAGES[event.stage]}",
    events.Retrying: lambda event: f"{event.what} is tried again in {event.delay:.1f} s: {events.clean(event.reason)}",
    events.Queued: lambda event: f"waiting for a slot ({event.what})",
    events.Notice: lambda event: f"note: {with_options(events.clean(event.note))}",
    events.CallbackReceived: lambda event: (
        f"callback: {f'refused, {event.note}' if event.status != HTTPStatus.OK else event.stage}"
    ),
}


def event_line(event: events.Event) -> str | None:
    """An event in a line; None if it is not shown."""
    text = _EVENT_LINES.get(type(event))
    return text(event) if text else None


def callback_line(event: events.CallbackReceived) -> str:
    """A callback in a line, with its task."""
    note = f" ({event.note})" if event.note else ""
    return f"{event.task_id or 'unknown task'} {event.stage or 'unreadable'}, answered {event.status}{note}"


# ---------------------------------------------------------------- errors


def error_lines(error: BaseException) -> list[str]:
    """An error as lines for a person."""
    if isinstance(error, ManifestError):
        more = error.count - len(error.faults)
        return [f"error: {line}" for line in (*map(_fault_line, error.faults), *([f"and {more} more"] if more else []))]
    if problems := _problems(error):
        return [f"error: {option_of(each.field)} {each.problem}; {with_options(each.remedy)}" for each in problems]
    message = with_options(str(error)) if isinstance(error, KieError) else _message(error)
    return f"error: {message}".splitlines()


def error_value(error: BaseException, *, task_id: str | None, is_submitted: bool) -> dict[str, Any]:
    """An error as a JSON value.

    Args:
        error: what ended the command.
        task_id: of the task of the command, if the error names none.
        is_submitted: whether the command has spent credits.
    """
    known = error if isinstance(error, KieError) else KieError(_message(error))
    value: dict[str, Any] = {
        "type": type(error).__name__,
        "message": with_options(known.message),
        "code": known.code,
        "task_id": known.task_id or task_id,
        "charged": known.charged,
        "retryable": known.retryable,
    }
    # An error of the disk or of this program does not know what was paid before it.
    if is_submitted and (not isinstance(error, KieError) or isinstance(error, FileError)):
        value["charged"] = "yes"
    if isinstance(error, ManifestError):
        value |= {"faults": [attrs.asdict(fault) for fault in error.faults], "count": error.count}
    if problems := _problems(error):
        value["problems"] = [
            {"option": option_of(each.field), "problem": each.problem, "remedy": with_options(each.remedy)}
            for each in problems
        ]
    return value


def submissions_were(count: int) -> str:
    """A number of submissions as the subject of a sentence in the past."""
    return "a submission was" if count == 1 else f"{count} submissions were"


def unknown_submissions(error: BaseException, count: int) -> SubmitUnknownError:
    """The error of a command that was stopped while submissions had no answer yet."""
    stopped = error.message if isinstance(error, KieError) else _message(error)
    return SubmitUnknownError(f"{stopped}; {submissions_were(count)} sent, perhaps charged, and no answer came")


def _problems(error: BaseException) -> tuple[Problem, ...]:
    return error.problems if isinstance(error, InvalidRequestError) else ()


def _message(error: BaseException) -> str:
    if isinstance(error, KeyboardInterrupt):
        return "stopped by Ctrl-C"
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror}: {error.filename}" if error.filename else error.strerror
    return f"{type(error).__name__}: {error}"


def _fault_line(fault: RowProblem) -> str:
    if fault.location != "defaults":
        return with_route(str(fault))
    return f"{option_of(fault.field)} {fault.problem}; {with_options(fault.remedy)}"
