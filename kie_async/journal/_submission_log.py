"""Records one submission in a journal."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import anyio
import attrs

from kie_async._protocol.limits import CREDITS_PER_TASK
from kie_async.errors import ConflictError, KieError, SessionError, StorageError
from kie_async.events import Notice, Observer, clean
from kie_async.journal._job_errors import job_error, state_after
from kie_async.journal._leases import Leases
from kie_async.journal._outcomes import MAX_DELAY, MIN_DELAY
from kie_async.journal._protocol import Journal
from kie_async.journal._states import State

_WRITE_TIMEOUT = 120.0  # seconds that the store may be away while a task id is in hand


@attrs.frozen(kw_only=True)
class JobSubmissionLog:
    """The ``SubmissionLog`` of one job.

    Attributes:
        key: of the job, which must be planned.
        route: noted with the job.
        jobs: the job and the attempt of each task that is followed; the accepted one is added.
        is_closing: tells whether the journal is being closed.
    """

    key: str
    route: str
    journal: Journal
    leases: Leases
    jobs: dict[str, tuple[str, str | None]]
    emit: Observer
    is_closing: Callable[[], bool]

    async def before_send(self, token: str) -> None:
        """Record the intent; without it nothing is sent."""
        if self.is_closing():
            raise SessionError("the journal is being closed: nothing was sent")
        await self.leases.check()
        await self.journal.intend(self.key, token)

    async def accepted(self, token: str, task_id: str) -> None:
        """Record the task id; while the store is away it is tried again, for the task is paid."""
        facts = {"task_id": task_id, "route": self.route, "credits": CREDITS_PER_TASK}
        await self._insist(lambda: self.journal.move(self.key, State.SUBMITTED, token=token, **facts), task_id)
        self.jobs[task_id] = self.key, token

    async def failed(self, token: str, error: KieError) -> None:
        """Record what became of a submission that is no task."""
        to = state_after(error)
        facts = {} if to is State.PLANNED else {"error": job_error(error)}
        await self._insist(lambda: self.journal.move(self.key, to, token=token, **facts), "")

    async def _insist(self, write: Callable[[], Awaitable[object]], task_id: str) -> None:
        """Write, and try again while the store is away."""
        loop, delay = asyncio.get_running_loop(), MIN_DELAY
        deadline = loop.time() + _WRITE_TIMEOUT
        while True:
            try:
                await write()
            except ConflictError as error:  # a callback that names the task was quicker
                self.emit(Notice(task_id, f"recorded before: {error.message}"))
            except StorageError as error:
                self.emit(Notice(task_id, f"the journal is away, trying again: {clean(error.message)}"))
                if loop.time() > deadline or not error.retryable:
                    error.task_id, error.charged = task_id or None, "yes" if task_id else error.charged
                    raise
                await anyio.sleep(delay)
                delay = min(2 * delay, MAX_DELAY)
                continue
            return
