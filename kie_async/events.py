"""The events that a session emits. An observer is any callable that takes an ``Event``; it must not block.

Nothing here holds the API key, a callback token or a signed address.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from typing import Any, TypeAlias

import attrs


@attrs.frozen
class Submitted:
    """A submission was accepted as a task.

    Attributes:
        recovered: its answer was lost, and a callback named the task.
        waited: seconds from the call to the acceptance.
    """

    task_id: str
    operation: str
    model: str
    waited: float
    recovered: bool = False


@attrs.frozen
class SubmissionUnknown:
    """A submission was sent, and no answer says what became of it: it may have been charged."""

    operation: str
    reason: str


@attrs.frozen
class Polled:
    """record-info was read for a task; ``age`` is its time since submission in seconds."""

    task_id: str
    status: str
    age: float


@attrs.frozen
class PollFailed:
    """record-info could not be read; it will be tried again."""

    task_id: str
    reason: str


@attrs.frozen
class CallbackReceived:
    """A callback came in.

    Attributes:
        stage: as the body claims.
        status: the HTTP status it was answered with.
        note: why it was refused or set aside; empty when it woke a task.
    """

    task_id: str
    stage: str
    status: int
    note: str = ""


@attrs.frozen
class Retrying:
    """A request is sent again after ``delay`` seconds: it was refused for its moment, never sent, or only reads."""

    what: str
    reason: str
    attempt: int
    delay: float


@attrs.frozen
class Queued:
    """A submission waits for a place (``what`` is "quota" or "in flight"); ``queued`` are before it."""

    what: str
    queued: int


@attrs.frozen
class StageReached:
    """A task reached a stage (text, first, complete), by record-info."""

    task_id: str
    stage: str


@attrs.frozen
class Finished:
    """A task ended; ``error`` is empty for a success. ``polls`` counts the reads of record-info it took."""

    task_id: str
    operation: str
    seconds: float
    polls: int
    error: str = ""


@attrs.frozen
class Notice:
    """Something unusual that changed nothing: a report that goes backwards, an unknown word, a submission unknown."""

    task_id: str
    note: str


Event: TypeAlias = (
    Submitted
    | SubmissionUnknown
    | Polled
    | PollFailed
    | CallbackReceived
    | Retrying
    | Queued
    | StageReached
    | Finished
    | Notice
)
Observer: TypeAlias = Callable[[Event], None]

_UNAUTHORIZED = 401
_SUBMIT, _TRACKER, _CALLBACKS, _TRANSPORT = (
    logging.getLogger(f"kie_async.{name}") for name in ("submit", "tracker", "callbacks", "transport")
)
_LEVELS: dict[type[object], tuple[logging.Logger, int]] = {
    Submitted: (_SUBMIT, logging.INFO),
    SubmissionUnknown: (_SUBMIT, logging.WARNING),
    Polled: (_TRACKER, logging.DEBUG),
    PollFailed: (_TRACKER, logging.WARNING),
    CallbackReceived: (_CALLBACKS, logging.DEBUG),
    Retrying: (_TRANSPORT, logging.WARNING),
    Queued: (_SUBMIT, logging.DEBUG),
    StageReached: (_TRACKER, logging.INFO),
    Finished: (_TRACKER, logging.INFO),
    Notice: (_TRACKER, logging.WARNING),
}


def log_event(event: Event) -> None:
    """Write an event to ``logging``, under ``kie_async.submit``, ``.tracker``, ``.callbacks`` or ``.transport``."""
    logger, level = _LEVELS[type(event)]
    if isinstance(event, CallbackReceived) and event.status == _UNAUTHORIZED:
        level = logging.WARNING  # a wrong key or a wrong clock shows nowhere else
    if logger.isEnabledFor(level):
        facts = " ".join(f"{key}={clean(str(value))}" for key, value in attrs.asdict(event).items())
        logger.log(level, "%s %s", type(event).__name__, facts)


_URL = re.compile(r"(https?://[^\s/?#\"'<>]*)([^\s\"'<>]*)", re.IGNORECASE)
_BEARER = re.compile(r"(bearer\s+)\S+", re.IGNORECASE)
_MAX_CLEAN = 500


def clean(text: str) -> str:
    """Make foreign text fit to show: addresses cut to their host, no control characters, no great length."""
    text = _URL.sub(lambda found: f"{_without_user(found[1])}/…" if found[2] else _without_user(found[1]), text)
    text = _BEARER.sub(r"\1…", text)
    text = text[: _MAX_CLEAN + 1]
    if not text.isprintable():
        text = "".join(character if character.isprintable() else "�" for character in text)
    return text if len(text) <= _MAX_CLEAN else f"{text[:_MAX_CLEAN]}…"


def _without_user(origin: str) -> str:
    scheme, _, rest = origin.partition("://")
    return f"{scheme}://{rest.rpartition('@')[2]}"


def guarded(observer: Callable[[Any], None]) -> Callable[[Any], None]:
    """An observer that cannot harm what it observes: what it raises is logged."""

    def emit(event: object) -> None:
        try:
            observer(event)
        except Exception:
            logging.getLogger("kie_async").exception("the observer failed on %s", type(event).__name__)

    return emit
