"""What a tracker knows of one task."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable

import attrs

from kie_async._protocol.schedule import Key
from kie_async._protocol.statuses import Failed, Succeeded
from kie_async._protocol.values import as_duration
from kie_async._protocol.wire import read_continue_at
from kie_async.errors import KieError, SessionError, TaskFailedError
from kie_async.events import clean
from kie_async.models import Request, Stage, TaskRecord, TaskResult, Track


@attrs.define(eq=False)
class TrackedTask:
    """What is known of one task. Times are those of the event loop."""

    task_id: str
    key: Key
    born: float
    deadline: float
    release: Callable[[], None] | None = None
    continue_at: float | None = None  # where its source is cut, seconds
    source_duration: float | None = None
    submitted: bool = False  # by this session, so that its age is known and its callbacks come here
    next_poll: float = math.inf
    polled_at: float | None = None  # the last look that was answered
    is_polling: bool = False
    hurry: bool = False  # a callback came in during a look
    stage: Stage | None = None
    stages: tuple[tuple[Stage, float], ...] = ()  # the age at which each was first seen
    odd: str = ""
    odd_since: float = 0.0
    seen: bool = False
    hints: int = 0  # looks since a callback said that the task is at its end
    claimed: int = 0  # how many stages are behind it, by what callbacks say
    callback_received: bool = False  # a callback of the service's came for it
    end_heard: float | None = None  # when such a one told its end
    failures: int = 0
    polls: int = 0
    interest: int = 0
    listeners: int = 0
    parked: bool = False  # the last of those who waited went away
    status: str = ""
    tracks: tuple[Track, ...] = ()
    waiters: tuple[asyncio.Future[None], ...] = ()
    outcome: TaskResult | KieError | None = None
    ended: Callable[[TrackedTask], None] | None = None  # told once, at its end

    def note_source(self, request: Request) -> None:
        """Note how long the source of its request is, and where it is cut, for its result."""
        self.source_duration = request.source_duration
        self.continue_at = as_duration(request.continue_at)


def closed(task_id: str) -> SessionError:
    message = f"the session was closed; the task goes on: session.track({task_id!r}) follows it in another session"
    return SessionError(message, task_id, charged="yes", retryable=True)


def failure(entry: TrackedTask, verdict: Failed) -> TaskFailedError:
    reason = clean(verdict.reason)
    told = not reason or reason in verdict.message
    return TaskFailedError(
        clean(verdict.message if told else f"{verdict.message} ({reason})"),
        entry.task_id,
        verdict.code,
        charged=verdict.charged,
        status=entry.status,
        refunded=verdict.refunded,
        reason=reason,
    )


def success(entry: TrackedTask, verdict: Succeeded, record: TaskRecord) -> TaskResult:
    continue_at = read_continue_at(record.param) if entry.continue_at is None else entry.continue_at
    return TaskResult(
        entry.task_id,
        verdict.tracks,
        record,
        partial=verdict.partial,
        continue_at=continue_at,
        source_duration=entry.source_duration,
    )
