"""A task: what a user holds, the state that the tracker keeps of it, and its outcome."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncGenerator, Callable, Coroutine, Generator
from enum import Enum, auto
from typing import TYPE_CHECKING, Any, NamedTuple

import attrs

from kie_async._protocol.durations import TaskKind
from kie_async._protocol.json_values import as_duration
from kie_async._protocol.spending import credits_of
from kie_async._protocol.statuses import Failed, NotFound, PendingReason, Succeeded
from kie_async._protocol.wire import read_continue_at
from kie_async.errors import KieError, SessionError, TaskFailedError, TaskNotFoundError, WaitTimeoutError
from kie_async.events import Context, Finished, clean
from kie_async.models import Request, Stage, TaskEvent, TaskRecord, TaskResult, Track
from kie_async.settings import Settings

if TYPE_CHECKING:
    from kie_async._client.tracker import Tracker


class Task:
    """A task of the service, followed by a session. Await it for its result; any number of waiters may.

    Cancelling one waiter does not affect the others. With a journal the task is followed to its end even if nobody
    waits for it. Without one, polling stops when the last waiter leaves and starts again when somebody waits; the task
    itself goes on at the service.
    """

    __slots__ = ("__weakref__", "_key", "_tracked", "_tracker")

    def __init__(self, tracked: TrackedTask, tracker: Tracker, key: str | None = None) -> None:
        self._tracked = tracked
        self._tracker = tracker
        self._key = key

    @property
    def id(self) -> str:
        """The id of the task."""
        return self._tracked.task_id

    @property
    def key(self) -> str | None:
        """The key of its job in the session's journal; None without a journal."""
        return self._key

    @property
    def status(self) -> str:
        """The service's last known status word for it, such as ``TEXT_SUCCESS``; empty before the first poll."""
        return self._tracked.progress.status

    def __repr__(self) -> str:
        return f"<Task {self.id} {self.status or 'not polled yet'}>"

    def __await__(self) -> Generator[object, None, TaskResult]:
        return self._tracker.wait(self._tracked).__await__()

    def result(self, *, timeout: float | None = None) -> Coroutine[Any, Any, TaskResult]:
        """Wait for the result: ``await task.result()``.

        Args:
            timeout: seconds to wait; None waits as long as ``Settings.task_timeout``.

        Cancelling stops the wait; the task goes on at the service.

        Raises:
            TaskFailedError: the task ended without a result.
            TaskNotFoundError: the service does not know it.
            WaitTimeoutError: the time is over; the task goes on.
            KieError: another reason, such as a closed session or a refused key.
        """
        return self._tracker.wait(self._tracked) if timeout is None else self._result_within(timeout)

    async def _result_within(self, seconds: float) -> TaskResult:
        try:
            async with asyncio.timeout(seconds):
                return await self._tracker.wait(self._tracked)
        except WaitTimeoutError:
            raise
        except TimeoutError:
            raise _wait_error(self._tracked, seconds) from None

    def events(self) -> AsyncGenerator[TaskEvent, None]:
        """Yield the stages "text", "first" and "complete", each once and in this order; ends when the task ends.

        A success passes through all three: a stage that no poll has seen is yielded together with the next one. After
        a failure the iteration just ends; awaiting the task raises the error. Leaving the iteration stops nothing.
        """
        return self._tracker.events(self._tracked)


_UNKNOWN_KIND = TaskKind("unknown", "unknown")


class Origin(NamedTuple):
    """Where a task comes from, as far as known.

    Attributes:
        kind: what its duration depends on.
        is_own: this session submitted it; so its age is known, it is paid for, and its callbacks come here.
        continue_at: where its source is cut, in seconds.
        source_duration: the length of its source in seconds.
        context: the context of its submission (``events.Submitting``).
    """

    kind: TaskKind = _UNKNOWN_KIND
    is_own: bool = False
    continue_at: float | None = None
    source_duration: float | None = None
    context: Context | None = None

    @classmethod
    def of(cls, request: Request, context: Context | None, *, is_own: bool) -> Origin:
        """The origin of the task of a request; ``is_own`` if this session submitted it."""
        kind = TaskKind(request.operation, request.model) if is_own else _UNKNOWN_KIND
        return cls(kind, is_own, as_duration(request.continue_at), request.source_duration, context or None)


UNKNOWN_ORIGIN = Origin()  # of a task of which only the id is known


class PollPhase(Enum):
    """Whether a poll of a task is under way."""

    NONE = auto()
    UNDER_WAY = auto()
    REPEAT = auto()  # one is under way, and news came since it started: poll again once it has ended


@attrs.define(eq=False)
class Polls:
    """The polls of one task.

    Attributes:
        next_at: when the next poll or recheck is due; infinite while a poll is under way.
        is_recheck: what is due is a recheck: it does not poll, but decides again when to.
        last_running_at: when a poll was last answered that found the task running.
        count: how many polls were answered.
        failures: how many of the latest polls in a row failed.
        refusals: how many of the latest polls in a row were refused because of the key.
    """

    next_at: float = math.inf
    is_recheck: bool = False
    last_running_at: float | None = None
    count: int = 0
    failures: int = 0
    refusals: int = 0
    phase: PollPhase = PollPhase.NONE


@attrs.define(eq=False)
class Progress:
    """What the records of a task have shown so far.

    Attributes:
        status: the service's last status word; empty before the first record.
        tracks: the tracks of the last record that had any.
        stages: the stages reached, each with the age of the task, in seconds, when it was first seen.
        is_visible: the service has given a record of the task at least once.
        pending_reason: why the task is neither simply running nor at its end (``statuses.Running``).
        pending_since: when it was first seen pending for this reason, without a break.
    """

    status: str = ""
    tracks: tuple[Track, ...] = ()
    stages: tuple[tuple[Stage, float], ...] = ()
    is_visible: bool = False
    pending_reason: PendingReason = ""
    pending_since: float = 0.0


class CallbackClaims(NamedTuple):
    """What callbacks have claimed about a task. It is unverified, so it only decides when to poll.

    Attributes:
        stages: how many stages the task has passed.
        polls_before_end: how many polls had been answered when a callback first claimed that the task has ended; None
            if none has.
        has_authentic: a callback came to the address of this task's own submission, which only the service knows.
        authentic_end_at: when such a callback claimed that the task has ended.
    """

    stages: int = 0
    polls_before_end: int | None = None
    has_authentic: bool = False
    authentic_end_at: float | None = None


NO_CALLBACKS = CallbackClaims()


@attrs.define(eq=False)
class Waiters:
    """The coroutines that wait for one task.

    Attributes:
        count: how many wait.
        listeners: how many of them want each stage, and not only the end.
    """

    count: int = 0
    listeners: int = 0
    _futures: tuple[asyncio.Future[None], ...] = ()

    def next_change(self) -> asyncio.Future[None]:
        """Return a future that the next ``notify`` completes. Each waiter gets its own, which it may cancel."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._futures = (*self._futures, future)
        return future

    def notify(self) -> None:
        """Wake all waiters."""
        futures, self._futures = self._futures, ()
        for future in futures:
            if not future.done():
                future.set_result(None)

    def forget_cancelled(self) -> None:
        """Drop the futures of waiters that were cancelled."""
        self._futures = tuple(future for future in self._futures if not future.done())


@attrs.define(eq=False)
class TrackedTask:
    """One task, as the tracker follows it.

    Attributes:
        started_at: when it was submitted; if that is unknown, when it was first followed.
        deadline: when it is given up as timed out.
        is_paused: it is not polled, because its last waiter has left and no journal records its end.
        outcome: its result, or the error that says why it has none; None while it runs.
        on_release: called once, when the task is first paused or ends: its place in flight is free.
        settle_cost: called with the outcome when the task ends.
    """

    task_id: str
    origin: Origin
    started_at: float
    deadline: float
    on_release: Callable[[], None] | None = None
    settle_cost: Callable[[TaskResult | KieError], None] | None = None
    polls: Polls = attrs.field(factory=Polls)
    progress: Progress = attrs.field(factory=Progress)
    callbacks: CallbackClaims = NO_CALLBACKS
    waiters: Waiters = attrs.field(factory=Waiters)
    is_paused: bool = False
    outcome: TaskResult | KieError | None = None

    def release(self) -> None:
        """Call ``on_release``, if it has not been called yet."""
        on_release, self.on_release = self.on_release, None
        if on_release is not None:
            on_release()


def outcome_of(
    task: TrackedTask,
    verdict: Succeeded | Failed | NotFound,
    record: TaskRecord | None,
    settings: Settings,
    *,
    may_be_paid: bool,
) -> TaskResult | KieError:
    """The outcome of a task that has ended; ``may_be_paid``: its id may come from a submission that was charged."""
    if isinstance(verdict, Succeeded):
        return _result(task, verdict, record or TaskRecord(task.task_id))
    if isinstance(verdict, Failed):
        return _failure(task, verdict)
    message = f"the service does not know this task, {settings.not_found_timeout:.0f} s after the first poll"
    return TaskNotFoundError(message, task.task_id, charged="maybe" if may_be_paid else "no")


def _result(task: TrackedTask, verdict: Succeeded, record: TaskRecord) -> TaskResult:
    continue_at = task.origin.continue_at
    return TaskResult(
        task.task_id,
        verdict.tracks,
        record,
        partial=verdict.partial,
        continue_at=read_continue_at(record.param) if continue_at is None else continue_at,
        source_duration=task.origin.source_duration,
    )


def _failure(task: TrackedTask, verdict: Failed) -> TaskFailedError:
    reason = clean(verdict.reason)
    is_in_message = not reason or reason in verdict.message
    return TaskFailedError(
        clean(verdict.message if is_in_message else f"{verdict.message} ({reason})"),
        task.task_id,
        verdict.code,
        charged=verdict.charged,
        status=task.progress.status,
        refunded=verdict.refunded,
        reason=reason,
    )


def finished_event(
    task: TrackedTask, outcome: TaskResult | KieError, record: TaskRecord | None, now: float
) -> Finished:
    """The event of an outcome; ``record`` is the one that shows the end, if there is one."""
    seconds, spent = now - task.started_at, credits_of(outcome)
    error = None if isinstance(outcome, TaskResult) else outcome
    return Finished(
        task.task_id,
        task.origin.kind.operation,
        seconds,
        task.polls.count,
        error=type(error).__name__ if error else "",
        reason=clean(error.message) if error else "",
        code=error.code if error else None,
        lag=None if spent is None else _detection_lag(task, record, seconds),
        credits=spent,
    )


def _detection_lag(task: TrackedTask, record: TaskRecord | None, seconds: float) -> float | None:
    """How many seconds after its end a task was seen to have ended, at the age of ``seconds``; None if unknown.

    Records of the jobs route have the time of the end (``completeTime``). It is compared with ``createTime``, which is
    of the same clock. For other tasks, the time when the callback of the end came is taken.
    """
    if not task.origin.is_own and task.polls.last_running_at is None:
        return None  # the task may have ended long before it was followed
    if record is not None and record.created_at is not None and record.completed_at is not None:
        lasted = (record.completed_at - record.created_at).total_seconds()
        return min(max(0.0, seconds - lasted), seconds)
    ended_at = task.callbacks.authentic_end_at
    return None if ended_at is None else task.started_at + seconds - ended_at


def _wait_error(task: TrackedTask, seconds: float) -> WaitTimeoutError:
    """The error of a waiter whose own timeout is over; an id from outside that is not visible may be mistyped."""
    message = f"no end within {seconds:g} s"
    if task.progress.pending_reason == "not visible" and not (task.origin.is_own or task.progress.is_visible):
        message += "; the service does not know this task, or not yet: check its id, or wait again"
        return WaitTimeoutError(message, task.task_id, charged="maybe")
    message += f"; the task goes on: wait again, or later: session.track({task.task_id!r}) follows it"
    return WaitTimeoutError(message, task.task_id)


def timeout_error(task_id: str, settings: Settings, last: KieError | None) -> WaitTimeoutError:
    """The error of a task that takes too long; ``last`` is the error of its last poll, if that failed."""
    message = (
        f"no end after {settings.task_timeout:.0f} s; the task may still end: "
        f"session.track({task_id!r}) follows it again, as session.resume() does what a journal holds"
    )
    message += f"; the last poll failed: {last.message}" if last else ""
    return WaitTimeoutError(message, task_id)


def closed_error(task_id: str) -> SessionError:
    """The error of a task whose session was closed."""
    message = f"the session was closed; the task goes on: session.track({task_id!r}) follows it in another session"
    return SessionError(message, task_id, charged="yes", retryable=True)
