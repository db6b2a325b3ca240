"""The events that a session emits. An observer is any callable that takes an ``Event``; it must not block.

No event holds the API key, a callback token or a signed address. ``error`` is the name of an error's class and
``reason`` its message; ``code`` is the service's code, or None; ``context`` is that of ``Submitting``.

``log_event``, the default observer, writes each event to ``logging``. For formatters that write JSON, the log record
has more attributes (``extra``): ``kie_event``, the name of the event, and each of its fields with the prefix ``kie_``:
``kie_task_id``, ``kie_operation``, ``kie_model``, ``kie_code``, ``kie_error``, ``kie_reason``, ``kie_charged``,
``kie_waited``, ``kie_recovered``, ``kie_status``, ``kie_age``, ``kie_stage``, ``kie_note``, ``kie_topic``,
``kie_what``, ``kie_attempt``, ``kie_delay``, ``kie_queued``, ``kie_seconds``, ``kie_polls``, ``kie_lag``,
``kie_credits``. ``context`` is left out; a field that is None stays None.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Mapping
from typing import Any, Literal, TypeAlias

import attrs

from kie_async.errors import KieError

# The context of a submission, in the sense of OpenTelemetry: it links the spans of several processes.
Context: TypeAlias = Mapping[str, str]
Topic: TypeAlias = Literal["", "raised_limit", "uncertain_cut", "cut_off"]


@attrs.frozen
class Submitting:
    """A submission is about to be sent. ``Submitted``, ``SubmissionFailed`` or ``SubmissionUnknown`` follows.

    Attributes:
        operation: "extend" or "upload_extend".
        model: the model, as sent.
        waited: how many seconds it waited for the quota.
        context: an empty dict that the observer may fill. The event that follows has the same object. A journal
            stores it with the job, and ``Followed`` gives it to the process that continues with the task.
    """

    operation: str
    model: str
    waited: float
    context: dict[str, str] = attrs.field(factory=dict, eq=False)


@attrs.frozen
class Submitted:
    """A submission was accepted as a task.

    Attributes:
        waited: seconds from the call to the acceptance.
        recovered: whether its answer was lost, and a callback has named the task.
    """

    task_id: str
    operation: str
    model: str
    waited: float
    recovered: bool = False
    context: Context = attrs.field(factory=dict, eq=False)


@attrs.frozen
class SubmissionFailed:
    """A submission did not become a task: it was refused, or nothing was sent. ``Retrying`` may follow.

    Attributes:
        charged: "no"; or "yes" if it was charged nevertheless.
        task_id: the task, if it was charged and the answer named one; else empty.
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
    """A submission was sent and its answer was lost: it may have been charged."""

    operation: str
    reason: str
    code: int | None = None
    context: Context = attrs.field(factory=dict, eq=False)


@attrs.frozen
class Followed:
    """The session begins to follow a task that was submitted elsewhere or earlier, or that was paused.

    Attributes:
        context: that of its submission, if this session or the journal knows it; else empty.
    """

    task_id: str
    context: Context = attrs.field(factory=dict, eq=False)


@attrs.frozen
class Paused:
    """The last waiter of a task has left, and no journal records its end: it is not polled until ``Followed``."""

    task_id: str


@attrs.frozen
class Polled:
    """record-info was read for a task; ``age`` is the time since its submission, in seconds."""

    task_id: str
    status: str
    age: float


@attrs.frozen
class PollFailed:
    """record-info could not be read for a task; it is read again later."""

    task_id: str
    reason: str
    error: str = ""


@attrs.frozen
class CallbackReceived:
    """A callback came in.

    Attributes:
        task_id: the task that its body names; unverified.
        stage: the stage that its body names; unverified.
        status: the HTTP status of the answer.
        note: why it was refused or ignored; empty if it led to a poll.
    """

    task_id: str
    stage: str
    status: int
    note: str = ""


@attrs.frozen
class Retrying:
    """A request is sent again after ``delay`` seconds.

    That happens to submissions that were refused for now or were not sent, and to requests that spend nothing.

    Attributes:
        what: the request.
        reason: why it failed.
        attempt: which attempt failed, counted from 1.
        delay: seconds until the next attempt.
    """

    what: str
    reason: str
    attempt: int
    delay: float


@attrs.frozen
class Queued:
    """A submission waits for a place in flight (``Settings.max_in_flight``), behind ``queued`` others."""

    queued: int


@attrs.frozen
class StageReached:
    """A task has reached a stage ("text", "first" or "complete"), as record-info shows."""

    task_id: str
    stage: str


@attrs.frozen
class Finished:
    """A task has ended, or is not followed any more.

    Attributes:
        operation: "extend" or "upload_extend"; "unknown" for a task that was submitted elsewhere and never seen.
        seconds: the time since its submission.
        polls: how often record-info was read for it.
        error: empty for a success. With ``SessionError`` (the session was closed) and ``WaitTimeoutError``
            (``Settings.task_timeout`` is over) the task itself goes on.
        lag: seconds between the end of the task and this event: by the service's times on the jobs route, else from
            the callback of the end. None if neither is known, or if the task has not ended.
        credits: what it cost: as the service says on the jobs route, else the usual cost; None if it has not ended.
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
    """Something worth knowing that is not an error, such as an unknown status word.

    Attributes:
        task_id: the task that it concerns; may be empty.
        note: what is worth knowing.
        topic: for those who filter notices: "raised_limit" (an older page of the service allows less than the page
            that decides), "uncertain_cut" (the service may ignore ``continue_at``) or "cut_off" (a source seems to have
            lost its end); empty for all others.
    """

    task_id: str
    note: str
    topic: Topic = ""


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
    """The fields of an event without ``context``; texts are safe to show (``clean``)."""
    fields = attrs.asdict(event, recurse=False)
    fields.pop("context", None)
    return {key: clean(value) if isinstance(value, str) else value for key, value in fields.items()}


_URL = re.compile(r"(https?://[^\s/?#\"'<>]*)([^\s\"'<>]*)", re.IGNORECASE)
_BEARER = re.compile(r"(bearer\s+)\S+", re.IGNORECASE)
_MAX_CLEAN = 500


def clean(text: str) -> str:
    """Make foreign text safe to show: cut addresses to their host, replace control characters, limit the length."""
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
    """Wrap an observer so that an exception in it is logged and goes no further."""

    def emit(event: object) -> None:
        try:
            observer(event)
        except Exception:
            logging.getLogger("kie_async").exception("the observer failed on %s", type(event).__name__)

    return emit
