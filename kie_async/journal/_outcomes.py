"""Writes to a journal how tasks have ended, and goes on trying while the store is away."""

from __future__ import annotations

import asyncio
import copy
from typing import Any

import anyio
import attrs

from kie_async._client.concurrency import internal_errors
from kie_async._protocol.limits import CREDITS_PER_TASK
from kie_async.errors import ConflictError, InternalError, KieError, StorageError, TaskFailedError, TaskNotFoundError
from kie_async.events import Notice, Observer, clean
from kie_async.journal._job_errors import job_error
from kie_async.journal._protocol import Journal
from kie_async.journal._states import State
from kie_async.models import TaskResult

MIN_DELAY, MAX_DELAY = 0.1, 5.0  # seconds between two tries to write while the store is away


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
                facts: dict[str, Any] = {"tracks": outcome.tracks, "partial": outcome.partial, "stage": "complete"}
                facts["credits"] = CREDITS_PER_TASK if spent is None else spent
                await self._journal.move(key, State.SUCCEEDED, token=token, **facts)
            elif isinstance(outcome, (TaskFailedError, TaskNotFoundError)):
                spent = 0.0 if outcome.charged == "no" else CREDITS_PER_TASK
                await self._journal.move(key, State.FAILED, token=token, error=job_error(outcome), credits=spent)
        except ConflictError as error:
            self._emit(Notice("", f"the end of a job was recorded before: {error.message}"))
