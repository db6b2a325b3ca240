"""Record a submission in a journal: its intent, its answer, and the outcome of its task."""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from typing import Any

import anyio
import attrs

from kie_async._client.concurrency import InternalErrors
from kie_async._protocol.request_rules import CREDITS_PER_TASK
from kie_async._protocol.spending import credits_of
from kie_async.errors import (
    ConflictError,
    InternalError,
    KieError,
    SessionError,
    StorageError,
)
from kie_async.events import Context, Notice, Observer, clean
from kie_async.journal._caps import Payer
from kie_async.journal._job import Job, JobError, State
from kie_async.journal._journal import Journal
from kie_async.journal._leases import Leases
from kie_async.journal._transitions import state_after
from kie_async.models import TaskResult

_WRITE_TIMEOUT = 120.0  # seconds for which a task id is written again while the store is away
MIN_DELAY, MAX_DELAY = 0.1, 5.0  # seconds between two attempts to write while the store is away


@attrs.frozen(kw_only=True)
class JobSubmissionLog:
    """The ``SubmissionLog`` of one job.

    Attributes:
        key: the key of the job, which must be planned.
        route: the route of the submission, recorded with the job.
        payer: who pays.
        not_sent: by token, the job key of each intent that may have been written although nothing was sent.
        is_closing: tells whether the journal is being closed.
    """

    key: str
    route: str
    payer: Payer
    journal: Journal
    leases: Leases
    not_sent: dict[str, str]
    emit: Observer
    is_closing: Callable[[], bool]

    async def before_send(self, token: str, context: Context) -> None:
        """Record the intent. If that fails, nothing is sent, and an intent that may be written is taken back."""
        if self.is_closing():
            raise SessionError("the journal is being closed: nothing was sent")
        await self.leases.check()
        try:
            await self.journal.intend(self.key, token, context, payer=self.payer)
        except StorageError:
            self.not_sent[token] = self.key
            with suppress(ConflictError, StorageError):  # it was not written, or the recorder tries again
                await self.journal.move(self.key, State.PLANNED, token=token)
            raise

    async def accepted(self, token: str, task_id: str) -> None:
        """Record the task id; retry while the store is away, because the task is paid."""
        changes = {"task_id": task_id, "route": self.route, "credits": CREDITS_PER_TASK}
        await self._keep_trying(lambda: self.journal.move(self.key, State.SUBMITTED, token=token, **changes), task_id)

    async def failed(self, token: str, error: KieError) -> None:
        """Record the error of a submission that did not become a task."""
        to = state_after(error)
        changes = {} if to is State.PLANNED else {"error": JobError.of(error)}
        await self._keep_trying(lambda: self.journal.move(self.key, to, token=token, **changes), "")

    async def _keep_trying(self, write: Callable[[], Awaitable[object]], task_id: str) -> None:
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


# ---------------------------------------------------------------- how tasks have ended


class OutcomeWriter:
    """Writes outcomes one after the other, in the background.

    Args:
        journal: open already.
        emit: is called when an outcome cannot be written, or was written before.
    """

    def __init__(self, journal: Journal, emit: Observer) -> None:
        self._journal = journal
        self._emit = emit
        self._queue: asyncio.Queue[tuple[str, TaskResult | KieError]] = asyncio.Queue()
        # By task id; done when its outcome was tried to be written for the first time, with the error of that try.
        self._first_tries: dict[str, asyncio.Future[KieError | None]] = {}

    def add(self, task_id: str, outcome: TaskResult | KieError) -> None:
        """Have the outcome of a task written, if some job of the journal is this task."""
        self._first_tries.setdefault(task_id, asyncio.get_running_loop().create_future())
        self._queue.put_nowait((task_id, outcome))

    async def wait_recorded(self, task_id: str) -> None:
        """Wait for the first try to write the outcome of a task; return at once if none is pending.

        Raises:
            KieError: that try failed. If it is ``retryable``, it is tried again for as long as the journal is open.
        """
        first_try = self._first_tries.get(task_id)
        if first_try is not None and (error := await asyncio.shield(first_try)) is not None:
            raise copy.copy(error)

    async def run(self) -> None:
        """Write what is added, until cancelled."""
        delay = MIN_DELAY
        while True:
            task_id, outcome = await self._queue.get()
            with anyio.CancelScope(shield=True):  # taken from the queue, it must get into the journal
                is_done = await self._try_to_write(task_id, outcome)
            delay = MIN_DELAY if is_done else min(2 * delay, MAX_DELAY)
            if not is_done:
                self._queue.put_nowait((task_id, outcome))
                await anyio.sleep(delay)

    async def close(self) -> None:
        """Write what is left before the journal is closed; if it is away, a restart asks the service again."""
        while not self._queue.empty() and await self._try_to_write(*self._queue.get_nowait()):
            pass
        for first_try in self._first_tries.values():
            first_try.set_result(None)
        self._first_tries.clear()

    async def _try_to_write(self, task_id: str, outcome: TaskResult | KieError) -> bool:
        """Try to write an outcome; return False if that must be tried again."""
        error: StorageError | InternalError | None = None
        try:
            with InternalErrors("a job's end"):
                await self._write(task_id, outcome)
        except (StorageError, InternalError) as failure:
            error = failure
            self._emit(Notice(task_id, f"its end could not be recorded: {clean(error.message)}"))
        if (first_try := self._first_tries.pop(task_id, None)) is not None:
            first_try.set_result(error)
        return error is None or not error.retryable

    async def _write(self, task_id: str, outcome: TaskResult | KieError) -> None:
        """Move the job of a task to its end; do nothing if the task goes on, or no job is this task."""
        job, end = await self._journal.find(task_id=task_id), _end_of_job(outcome)
        if job is None or end is None:
            return
        if job.task_id != task_id:
            self._emit(Notice(task_id, f"its end is not recorded: job {job.key!r} is at another attempt by now"))
            return
        state, changes = end
        if _is_recorded(job, state):  # followed once more
            return
        try:
            await self._journal.move(job.key, state, token=job.token, **changes)
        except ConflictError as error:  # another process that follows the task may have recorded the same end
            if not _is_recorded(await self._journal.get(job.key) or job, state):
                self._emit(Notice(task_id, f"the end of a job was recorded before: {error.message}"))


def _is_recorded(job: Job, end: State) -> bool:
    return job.state is end or (job.state is State.DELIVERED and end is State.SUCCEEDED)


def _end_of_job(outcome: TaskResult | KieError) -> tuple[State, Mapping[str, Any]] | None:
    """What an outcome means for its job; None if the task goes on."""
    spent = credits_of(outcome)
    if isinstance(outcome, TaskResult):
        return State.SUCCEEDED, {"tracks": outcome.tracks, "partial": outcome.partial, "credits": spent}
    return None if spent is None else (State.FAILED, {"error": JobError.of(outcome), "credits": spent})
