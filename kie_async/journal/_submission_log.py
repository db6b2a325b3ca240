"""Records one submission in a journal: its intent, its answer, and how its task has ended."""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

import anyio
import attrs

from kie_async._client.concurrency import internal_errors
from kie_async._protocol.request_rules import CREDITS_PER_TASK
from kie_async.errors import (
    ConflictError,
    InternalError,
    KieError,
    SessionError,
    StorageError,
    TaskFailedError,
    TaskNotFoundError,
)
from kie_async.events import Notice, Observer, clean
from kie_async.journal._job import JobError, State
from kie_async.journal._journal import Journal
from kie_async.journal._leases import Leases
from kie_async.journal._transitions import state_after
from kie_async.models import TaskResult

_WRITE_TIMEOUT = 120.0  # seconds that the store may be away while a task id is in hand
MIN_DELAY, MAX_DELAY = 0.1, 5.0  # seconds between two tries to write while the store is away


@attrs.frozen(kw_only=True)
class JobSubmissionLog:
    """The ``SubmissionLog`` of one job.

    Attributes:
        key: of the job, which must be planned.
        route: noted with the job.
        jobs: the job and the attempt of each task that is followed; the accepted one is added.
        not_sent: by token, the key of each intent that may have been written though nothing was sent.
        is_closing: tells whether the journal is being closed.
    """

    key: str
    route: str
    journal: Journal
    leases: Leases
    jobs: dict[str, tuple[str, str | None]]
    not_sent: dict[str, str]
    emit: Observer
    is_closing: Callable[[], bool]

    async def before_send(self, token: str) -> None:
        """Record the intent; without it nothing is sent, and one that may have been written is taken back."""
        if self.is_closing():
            raise SessionError("the journal is being closed: nothing was sent")
        await self.leases.check()
        try:
            await self.journal.intend(self.key, token)
        except StorageError:
            self.not_sent[token] = self.key
            with suppress(ConflictError, StorageError):  # it was not written, or the recorder tries again
                await self.journal.move(self.key, State.PLANNED, token=token)
            raise

    async def accepted(self, token: str, task_id: str) -> None:
        """Record the task id; while the store is away it is tried again, for the task is paid."""
        facts = {"task_id": task_id, "route": self.route, "credits": CREDITS_PER_TASK}
        await self._insist(lambda: self.journal.move(self.key, State.SUBMITTED, token=token, **facts), task_id)
        self.jobs[task_id] = self.key, token

    async def failed(self, token: str, error: KieError) -> None:
        """Record what became of a submission that is no task."""
        to = state_after(error)
        facts = {} if to is State.PLANNED else {"error": JobError.of(error)}
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


# ---------------------------------------------------------------- how tasks have ended


@attrs.frozen
class Ending:
    """How a task has ended.

    Attributes:
        key: of its job; None if a job is meant that is submitted as this task, whichever it is.
        token: of the attempt that made the task; the outcome of an older attempt is not written over a new one.
    """

    key: str | None
    token: str | None
    task_id: str
    outcome: TaskResult | KieError


class OutcomeWriter:
    """Writes outcomes one after the other, in the background.

    Args:
        journal: open already.
        emit: is called when an outcome cannot be written, or was written before.
    """

    def __init__(self, journal: Journal, emit: Observer) -> None:
        self._journal = journal
        self._emit = emit
        self._queue: asyncio.Queue[Ending] = asyncio.Queue()
        self._first_tries: dict[str, asyncio.Future[KieError | None]] = {}  # by key, done when the first was made

    def add(self, ending: Ending) -> None:
        """Have an outcome written."""
        if ending.key is not None:
            self._first_tries.setdefault(ending.key, asyncio.get_running_loop().create_future())
        self._queue.put_nowait(ending)

    async def wait_recorded(self, key: str) -> None:
        """Wait until the outcome of a job's task is in the journal, if it is known here.

        Raises:
            StorageError: it could not be written now. It is tried again for as long as the journal is open.
        """
        first_try = self._first_tries.get(key)
        if first_try is not None and (error := await asyncio.shield(first_try)) is not None:
            raise copy.copy(error)

    async def run(self) -> None:
        """Write what is added, until cancelled."""
        delay = MIN_DELAY
        while True:
            ending = await self._queue.get()
            with anyio.CancelScope(shield=True):  # taken from the queue, it must get into the journal
                is_done = await self._write(ending)
            delay = MIN_DELAY if is_done else min(2 * delay, MAX_DELAY)
            if not is_done:
                self._queue.put_nowait(ending)
                await anyio.sleep(delay)

    async def finish(self) -> None:
        """Write what is left when the journal is closed; if it is away, a restart asks the service again."""
        while not self._queue.empty() and await self._write(self._queue.get_nowait()):
            pass
        for first_try in self._first_tries.values():
            first_try.set_result(None)
        self._first_tries.clear()

    async def _write(self, ending: Ending) -> bool:
        """Try to write an outcome; return whether that is done with, or must be tried again."""
        error: StorageError | InternalError | None = None
        key, token = ending.key, ending.token
        try:
            with internal_errors("a job's end"):
                if key is None:
                    job = await self._journal.find(task_id=ending.task_id)
                    if job is None or job.state is not State.SUBMITTED or job.task_id != ending.task_id:
                        return True
                    key, token = job.key, job.token
                await self._move(key, token, ending.outcome)
        except (StorageError, InternalError) as failure:
            error = failure
            self._emit(Notice(ending.task_id, f"its end could not be recorded: {clean(error.message)}"))
        first_try = self._first_tries.pop(key or "", None)
        if first_try is not None:
            first_try.set_result(error)
        return error is None or not error.retryable

    async def _move(self, key: str, token: str | None, outcome: TaskResult | KieError) -> None:
        """Move a job to its end, if the outcome is one and the job is not past it."""
        try:
            if isinstance(outcome, TaskResult):
                spent = outcome.record.credits_consumed
                facts: dict[str, Any] = {"tracks": outcome.tracks, "partial": outcome.partial}
                facts["credits"] = CREDITS_PER_TASK if spent is None else spent
                await self._journal.move(key, State.SUCCEEDED, token=token, **facts)
            elif isinstance(outcome, (TaskFailedError, TaskNotFoundError)):
                spent = 0.0 if outcome.charged == "no" else CREDITS_PER_TASK
                await self._journal.move(key, State.FAILED, token=token, error=JobError.of(outcome), credits=spent)
        except ConflictError as error:
            self._emit(Notice("", f"the end of a job was recorded before: {error.message}"))
