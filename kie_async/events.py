"""The events that a session emits. An observer is any callable that takes an ``Event``; it must not block.

Nothing here holds the API key, a callback token or a signed address. ``error`` is the name of an error's class, and
``reason`` its message; ``code`` is the service's, or None if it gave none; ``context`` is that of ``Submitting``.

``log_event``, the default observer, writes each to ``logging``. Its record has these attributes besides (``extra``),
for formatters that write JSON: ``kie_event``, the name of the event, and each field of the event under its own name
with ``kie_`` before it: ``kie_task_id``, ``kie_operation``, ``kie_model``, ``kie_code``, ``kie_error``, ``kie_reason``,
``kie_charged``, ``kie_waited``, ``kie_recovered``, ``kie_status``, ``kie_age``, ``kie_stage``, ``kie_note``,
``kie_what``, ``kie_attempt``, ``kie_delay``, ``kie_queued``, ``kie_seconds``, ``kie_polls``, ``kie_lag``,
``kie_credits``; ``context`` is left out. A field that is None is None there.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import attrs

from kie_async.errors import KieError

# Of a submission and its task, in the sense of OpenTelemetry: what leads from one process to the next.
Context: TypeAlias = Mapping[str, str]


@attrs.frozen
class Submitting:
    """A submission is about to be sent. ``Submitted``, ``SubmissionFailed`` or ``SubmissionUnknown`` follows.

    Attributes:
        waited: seconds that it waited for the quota.
        context: empty; the observer may fill it. The same object comes with the event that follows. A journal keeps
            it with the task, and ``Followed`` brings it to the process that goes on.
    """

    operation: str
    model: str
    waited: float
    context: dict[str, str] = attrs.field(factory=dict, eq=False)


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
    context: Context = attrs.field(factory=dict, eq=False)


@attrs.frozen
class SubmissionFailed:
    """A submission did not become a task: it was refused, or nothing was sent. It may be sent again (``Retrying``).

    Attributes:
        charged: "no"; or "yes" if it is paid all the same, and ``task_id`` may then say which task it is.
    """

    operation: str
    error: str
    reason: str
    code: int | None
    charged: str
    task_id: str = ""
    context: Context = attrs.field(factory=dict, eq=False)


@attrs.frozen
class SubmissionUnknown:
    """A submission was sent, and no answer says what became of it: it may have been charged."""

    operation: str
    reason: str
    code: int | None = None
    context: Context = attrs.field(factory=dict, eq=False)


@attrs.frozen
class Followed:
    """A task is followed from now on that was submitted elsewhere or earlier, or that was paused.

    Attributes:
        context: empty, unless it is known from this session or from the journal.
    """

    task_id: str
    context: Context = attrs.field(factory=dict, eq=False)


@attrs.frozen
class Paused:
    """Nobody waits for a task any more, and no journal wants its end: it is not polled until it is ``Followed``."""

    task_id: str


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
    error: str = ""


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
    """A request is sent again after ``delay`` seconds: it was refused only for now, never sent, or only reads."""

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
    """A task ended, or is not followed any more.

    Attributes:
        seconds: from its submission.
        polls: how often record-info was read for it.
        error: empty for a success. ``SessionError``: the session was closed, and ``WaitTimeoutError``:
            ``Settings.task_timeout`` is over; the task goes on.
        lag: seconds from its end until this was known: by the service's own clock where it tells the end (the jobs
            route), else from the callback of the end; None if neither tells it, or it was not followed until its end.
        credits: what it cost: as the service says (the jobs route), else as usual; None if it has not ended.
    """

    task_id: str
    operation: str
    seconds: float
    polls: int
    error: str = ""
    reason: str = ""
    code: int | None = None
    lag: float | None = None
    credits: float | None = None


@attrs.frozen
class Notice:
    """Something unusual that changed nothing: a report that goes backwards, an unknown word, a submission unknown."""

    task_id: str
    note: str


Event: TypeAlias = (
    Submitting
    | Submitted
    | SubmissionFailed
    | SubmissionUnknown
    | Followed
    | Paused
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
    Submitting: (_SUBMIT, logging.DEBUG),
    Submitted: (_SUBMIT, logging.INFO),
    SubmissionFailed: (_SUBMIT, logging.INFO),
    SubmissionUnknown: (_SUBMIT, logging.WARNING),
    Followed: (_TRACKER, logging.DEBUG),
    Paused: (_TRACKER, logging.DEBUG),
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
        name, facts = type(event).__name__, fields_of(event)
        words = " ".join(f"{key}={value}" for key, value in facts.items())
        extra = {f"kie_{key}": value for key, value in facts.items()}
        logger.log(level, "%s %s", name, words, extra={"kie_event": name, **extra})


def submission_error(operation: str, error: KieError, context: Context) -> SubmissionFailed | SubmissionUnknown:
    """The event of a submission that ended with an error."""
    reason = clean(error.message)
    if error.charged == "maybe":
        return SubmissionUnknown(operation, reason, error.code, context)
    name, task_id = type(error).__name__, error.task_id or ""
    return SubmissionFailed(operation, name, reason, error.code, error.charged, task_id, context)


def fields_of(event: Event) -> dict[str, Any]:
    """The fields of an event, but for ``context``; texts are fit to show (``clean``)."""
    fields = attrs.asdict(event, recurse=False)
    fields.pop("context", None)
    return {key: clean(value) if isinstance(value, str) else value for key, value in fields.items()}


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
