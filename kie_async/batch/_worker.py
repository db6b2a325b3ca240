"""Many machines: the engine hands out keys, the journal decides what may be paid.

The engine and the journal share one PostgreSQL. Only keys are queued, and a bounded number of them: a million jobs stay
in the journal. What is open in the journal and not in the queue is queued again, so no row of the queue is precious. A
worker that was stopped for a while, and whose keys others have taken, finds that the journal has moved on.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import aclosing
from functools import partial
from itertools import chain

import anyio

from kie_async.batch._runner import Runner
from kie_async.errors import ConflictError, LostRecordError, SettingsError
from kie_async.events import Notice, Observer
from kie_async.journal import Job, Recorder, State

WINDOW = 2000  # keys that are queued at once
FEED_INTERVAL = 5.0  # seconds between two times that keys are queued
HEARTBEAT = 5.0  # seconds between two heartbeats
CLEANUP_INTERVAL = 3600.0  # seconds between two removals of old rows
CHECK_INTERVAL = 1.0  # seconds between two checks whether all is done
_LEASE = "engine"
# Paid work first.
_ORDER = ((State.SUBMITTED, State.SUCCEEDED), (State.INTENT,), (State.PLANNED,))


class Worker:
    """Works on the jobs of a shared journal, among others that do the same.

    Args:
        runner: takes a job to its end.
        recorder: of the shared journal.
        dsn: of the database that the engine shares with the journal.
        at_once: jobs under way here at once.
        emit: called with a notice of what went wrong.
        ended: called with each job that this worker took as far as it goes.

    Raises:
        SettingsError: the extra ``cluster`` is not installed.
    """

    def __init__(  # noqa: PLR0913  # keyword-only, each by name
        self,
        *,
        runner: Runner,
        recorder: Recorder,
        dsn: str,
        at_once: int,
        emit: Observer,
        ended: Callable[[Job], None],
    ) -> None:
        try:
            from kie_async.batch._engine import Engine, RetryLaterError  # an extra
        except ImportError:
            raise SettingsError('procrastinate is not installed: pip install "kie_async[cluster]"') from None
        self._runner = runner
        self._recorder = recorder
        self._ended = ended
        self._retry_later = RetryLaterError
        self._is_over = anyio.Event()
        self._engine = Engine(dsn, self._run, concurrency=at_once, notice=lambda note: emit(Notice("", note)))

    async def work(self, *, until_done: bool = False, batch: str | None = None) -> None:
        """Work until cancelled, or until no job is left.

        Args:
            until_done: return when every job of the journal is at its end, or cannot come to it in this run.
            batch: only the jobs of this batch count for that.

        Raises:
            KieError: what stopped this worker: the key, the credits, the disk.

        Cancelling leaves every job where the journal says; other workers, or the next run, go on from there.
        """
        async with self._engine.open(), anyio.create_task_group() as group:
            group.start_soon(self._engine.run)
            group.start_soon(self._repeat, self._engine.send_heartbeat, HEARTBEAT)
            group.start_soon(self._repeat, self._engine.remove_old_rows, CLEANUP_INTERVAL)
            group.start_soon(self._repeat, self._feed, FEED_INTERVAL)
            if until_done:
                group.start_soon(self._repeat, partial(self._check_done, batch), CHECK_INTERVAL)
            await self._is_over.wait()
            group.cancel_scope.cancel()
        if self._runner.stopped:
            raise self._runner.stopped

    async def _run(self, key: str) -> None:
        """Take a job as far as it goes; called by the engine, in a task for each key."""
        try:
            job = await self._runner.run_job(key)
            self._ended(job)
        finally:
            if self._runner.stopped:
                self._is_over.set()
        if _must_wait(job):
            raise self._retry_later

    async def _repeat(self, step: Callable[[], Awaitable[None]], interval: float) -> None:
        while True:
            try:
                await step()
            except Exception as error:  # noqa: BLE001  # the database may be away; it is tried again
                self._engine.report(error)
            await anyio.sleep(interval)

    async def _feed(self) -> None:
        """Give back what dead workers had, and queue keys; one worker at a time does it for all."""
        try:
            async with self._recorder.leases.holding(_LEASE):
                await self._engine.give_back_stalled()
                if keys := await self._find_keys():
                    await self._engine.enqueue(keys)
        except ConflictError:
            return

    async def _find_keys(self) -> list[str]:
        held = await self._engine.held()
        keys: list[str] = []
        for states in _ORDER:
            async with aclosing(self._recorder.journal.jobs(*states)) as jobs:
                async for job in jobs:
                    if len(held) + len(keys) >= WINDOW:
                        return keys
                    if job.key not in held:
                        keys.append(job.key)
        return keys

    async def _check_done(self, batch: str | None) -> None:
        """End this worker if no job is open, but for those that are tried again later."""
        held = None
        # All open states in one read: read one after another, a job that moves meanwhile would be in none of them.
        async with aclosing(self._recorder.journal.jobs(*chain(*_ORDER), batch=batch)) as jobs:
            async for job in jobs:
                held = await self._engine.held() if held is None else held
                if not held.get(job.key):
                    return
        self._is_over.set()


def _must_wait(job: Job) -> bool:
    """Whether a job cannot go on now though it is paid; not if another process has it."""
    if job.error is None:
        return False
    return job.error.type == LostRecordError.__name__ or (
        job.state in _ORDER[0] and job.error.type != ConflictError.__name__
    )
