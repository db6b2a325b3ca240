"""Many machines: procrastinate hands out keys, the journal decides what may be paid.

The engine and the journal share one PostgreSQL. Only keys travel, and only a window of them: a million jobs stay in the
journal. A worker that dies leaves its keys to the others; one that was merely slow finds that the journal has moved on.

Nothing that the engine holds is precious: a row of it may be dropped at any time, for whatever is open in the journal
is handed out again.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING, Any, TypeVar

import anyio

from kie_async.batch._runner import Runner
from kie_async.errors import ConflictError, LostRecordError, SettingsError, StorageError
from kie_async.events import Notice, Observer, clean
from kie_async.journal import Job, Recorder, State

if TYPE_CHECKING:
    from procrastinate.types import TimeDeltaParams
    from procrastinate.worker import Worker as Engine

T = TypeVar("T")

QUEUE = "kie_async"
TASK = "kie_async.run_job"
WINDOW = 2000  # keys that the engine holds
_TEND_EVERY = 5.0  # seconds between two looks at what the engine holds
_LOOK_EVERY = 1.0  # seconds between two looks at whether all is done, and for a key to take
_BEAT_EVERY = 5.0  # seconds between two signs of life
_DEAD_AFTER = 30.0  # seconds without one
_RESTART_AFTER = 1.0  # seconds before an engine that ended by itself is started again
_AGAIN_AFTER = 60  # seconds before a paid job that cannot be finished now is tried again
_CONNECTIONS = 4  # at most, of the engine
_PATIENCE = 5.0  # seconds to wait for a connection
_GRACE = 0.1  # seconds for jobs to end by themselves when the engine stops
_LEASE = "engine"
# Paid work first.
_ORDER = ((State.SUBMITTED, State.SUCCEEDED), (State.INTENT,), (State.PLANNED,))

# Without a handler of the program's own, what these log would be written to stderr; the observer is told.
for _name in ("procrastinate", "psycopg.pool"):
    logging.getLogger(_name).addHandler(logging.NullHandler())


class Worker:
    """Works on the jobs of a shared journal, among others that do the same.

    Args:
        runner: takes a job to its end.
        recorder: of the shared journal.
        dsn: of the database that the engine shares with the journal.
        at_once: jobs under way here at once.
        tell: told of what is odd.
        ended: called with each job that this worker took as far as it goes.
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
            import procrastinate  # noqa: PLC0415  # an extra

            from kie_async.journal._postgres import read_address  # noqa: PLC0415  # likewise
        except ImportError:
            raise SettingsError('procrastinate is not installed: pip install "kie_async[cluster]"') from None
        self._runner = runner
        self._recorder = recorder
        self._at_once = at_once
        self._emit = emit
        self._ended = ended
        self._over = asyncio.Event()
        self._engine: Engine | None = None
        connector = procrastinate.PsycopgConnector(
            conninfo=read_address(dsn)[0].reveal(), min_size=0, max_size=_CONNECTIONS, timeout=_PATIENCE
        )
        self._app = procrastinate.App(connector=connector)
        self._task = self._app.task(name=TASK, queue=QUEUE)(self._run)
        self._held = self._app.job_manager

    async def work(self, *, until_done: bool = False, batch: str | None = None) -> None:
        """Work until cancelled, or until no job is left.

        Args:
            until_done: return when every job of the journal is at its end, or cannot come to it in this run.
            batch: only the jobs of this batch count for that.

        Raises:
            KieError: what stopped this worker: the key, the credits, the disk.

        Cancelling leaves every job where the journal says; other workers, or the next run, go on from there.
        """
        async with self._open(), anyio.create_task_group() as group:
            group.start_soon(self._serve)
            group.start_soon(self._forever, self._beat, _BEAT_EVERY)
            group.start_soon(self._forever, self._tend, _TEND_EVERY)
            if until_done:
                group.start_soon(self._forever, partial(self._look, batch), _LOOK_EVERY)
            await self._over.wait()
            group.cancel_scope.cancel()
        if self._runner.stopped:
            raise self._runner.stopped

    @asynccontextmanager
    async def _open(self) -> AsyncGenerator[None]:
        try:
            try:
                await self._uncut(self._app.open_async())
                await self._uncut(self._prepare())
            except Exception as error:  # noqa: BLE001  # the driver's and the engine's own
                raise StorageError(f"the engine cannot start: {_words(error)}") from None
            yield
        finally:
            await self._uncut(self._app.close_async())

    async def _prepare(self) -> None:
        """Make the engine's tables if they are not there, and forget what an earlier run has put off."""
        from procrastinate.exceptions import ConnectorException  # noqa: PLC0415  # an extra

        if not await self._held.check_connection_async():
            try:
                await self._app.schema_manager.apply_schema_async()  # one transaction
            except ConnectorException:
                if not await self._held.check_connection_async():  # nobody else was quicker
                    raise
        for handed in await self._held.list_jobs_async(queue=QUEUE, status="todo"):
            if handed.id is not None and handed.scheduled_at is not None:
                await self._held.cancel_job_by_id_async(handed.id, delete_job=True)

    async def _uncut(self, asked: Awaitable[T]) -> T:  # type: ignore[return]  # this scope swallows nothing
        """Ask the engine, to the end: its connections do not bear being cancelled in the middle."""
        with anyio.CancelScope(shield=True):
            return await asked

    # ------------------------------------------------------------ taking keys

    async def _serve(self) -> None:
        """Run the engine, and again when it ends by itself, as it does when the database restarts."""
        while True:
            await self._run_engine()
            self._emit(Notice("", "the engine ended, and is started again"))
            await anyio.sleep(_RESTART_AFTER)

    async def _run_engine(self) -> None:
        from procrastinate.worker import Worker as Engine  # noqa: PLC0415  # an extra

        self._engine = engine = Engine(
            self._app,
            queues=[QUEUE],
            concurrency=self._at_once,
            install_signal_handlers=False,
            delete_jobs="always",
            shutdown_graceful_timeout=_GRACE,
            stalled_worker_timeout=_DEAD_AFTER,
            # Its own heart and ears die for good when the database is away for a moment; nobody asks it to abort.
            update_heartbeat_interval=math.inf,
            abort_job_polling_interval=math.inf,
            listen_notify=False,
            fetch_job_polling_interval=_LOOK_EVERY,
        )
        # A task of its own, for the engine stops well when it is told to, and leaks connections when it is cancelled.
        running = asyncio.create_task(engine.run())  # type: ignore[no-untyped-call]  # theirs
        try:
            await asyncio.wait([running])
        finally:
            engine.stop()  # type: ignore[no-untyped-call]  # theirs
            await self._uncut(asyncio.wait([running]))
            if error := _error_of(running):
                self._note(error)

    async def _run(self, key: str) -> None:
        """Take a job as far as it goes; called by the engine, in a task for each key."""
        if (task := asyncio.current_task()) is not None:  # pragma: no branch  # there is one
            task.add_done_callback(self._check_taken_back)
        try:
            job = await self._runner.run_job(key)
            if _must_wait(job):
                await self._hand_out(key, after=_AGAIN_AFTER)
            self._ended(job)
        except Exception as error:  # noqa: BLE001  # the journal is away, for one; the engine would only log it
            self._emit(Notice("", f"a job waits: {_words(error)}"))
        if self._runner.stopped:
            self._over.set()

    def _check_taken_back(self, task: asyncio.Task[Any]) -> None:
        """Start the engine anew if it could not take back a key, which would count as taken by this worker for good."""
        error = _error_of(task)
        if error is not None and self._engine is not None:
            self._note(error)
            self._engine.stop()  # type: ignore[no-untyped-call]  # theirs
            self._engine = None  # the next that it cannot take back says nothing new

    def _note(self, error: BaseException) -> None:
        self._emit(Notice("", f"the engine: {_words(error)}"))

    # ------------------------------------------------------------ handing them out

    async def _forever(self, step: Callable[[], Awaitable[None]], every: float) -> None:
        while True:
            try:
                await step()
            except Exception as error:  # noqa: BLE001  # the database may be away; it is tried again
                self._note(error)
            await anyio.sleep(every)

    async def _beat(self) -> None:
        """Say that this worker lives."""
        if self._engine is not None and self._engine.worker_id is not None:
            await self._uncut(self._held.update_heartbeat(self._engine.worker_id))

    async def _tend(self) -> None:
        """Drop what dead workers had, and fill the window; one worker at a time does it for all."""
        try:
            async with self._recorder.holding(_LEASE):
                await self._uncut(self._drop_stalled())
                await self._fill()
        except ConflictError:
            return

    async def _drop_stalled(self) -> None:
        from procrastinate.jobs import Status  # noqa: PLC0415  # an extra

        for handed in await self._held.get_stalled_jobs(queue=QUEUE, seconds_since_heartbeat=_DEAD_AFTER):
            await self._held.finish_job(handed, status=Status.ABORTED, delete_job=True)

    async def _fill(self) -> None:
        known = {handed.lock for handed in await self._uncut(self._held.list_jobs_async(queue=QUEUE))}
        room = WINDOW - len(known)
        for states in _ORDER:
            async with aclosing(self._recorder.jobs(*states)) as jobs:
                async for job in jobs:
                    if room <= 0:
                        return
                    if job.key not in known:
                        room -= await self._hand_out(job.key)

    async def _hand_out(self, key: str, *, after: int | None = None) -> bool:
        """Give a key to the engine, and tell whether it did not wait there already."""
        from procrastinate.exceptions import AlreadyEnqueued  # noqa: PLC0415  # an extra

        later: TimeDeltaParams | None = None if after is None else {"seconds": after}
        deferrer = self._task.configure(lock=key, queueing_lock=key, schedule_in=later)
        try:
            await self._uncut(deferrer.defer_async(key=key))
        except AlreadyEnqueued:
            return False
        return True

    async def _look(self, batch: str | None) -> None:
        """See whether no job is open, but for those that were put off."""
        put_off = None
        # All open states in one read: read one after another, a job that moves meanwhile would be in none of them.
        async with aclosing(self._recorder.jobs(*chain(*_ORDER), batch=batch)) as jobs:
            async for job in jobs:
                if put_off is None:
                    put_off = await self._put_off()
                if job.key not in put_off:
                    return
        self._over.set()

    async def _put_off(self) -> set[str | None]:
        held = await self._uncut(self._held.list_jobs_async(queue=QUEUE))
        return {handed.lock for handed in held if handed.scheduled_at is not None}


def _must_wait(job: Job) -> bool:
    """Whether a job cannot go on now though it is paid; not if another process has it."""
    if job.error is None:
        return False
    return job.error.type == LostRecordError.__name__ or (
        job.state in _ORDER[0] and job.error.type != ConflictError.__name__
    )


def _error_of(task: asyncio.Task[Any]) -> BaseException | None:
    return None if task.cancelled() else task.exception()


def _words(error: BaseException) -> str:
    cause = error.__cause__ or error
    return f"{type(cause).__name__} {clean(next(iter(str(cause).splitlines()), ''))}"
