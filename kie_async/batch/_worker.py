"""Many machines: procrastinate hands out keys, the journal decides what may be paid.

The engine and the journal share one PostgreSQL. Only keys are queued, and a bounded number of them: a million jobs stay
in the journal. What is open in the journal and not in the queue is queued again, so no row of the queue is precious. A
worker that was stopped for a while, and whose keys others have taken, finds that the journal has moved on.

procrastinate keeps its heartbeat, listens, tries again what ``RetryLater`` says, and its own shell shows the queue.
Added are a loop that starts it again when it ends because the database was away, the heartbeat while it waits for its
last jobs, and a loop that gives back the keys of dead workers, which no job can hold up.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Awaitable, Callable
from contextlib import aclosing, suppress
from functools import partial
from itertools import chain, filterfalse

import anyio
from procrastinate import App, JobContext
from procrastinate.exceptions import ConnectorException
from procrastinate.manager import JobManager
from procrastinate.worker import Worker as EngineWorker

from kie_async._client.concurrency import map_unordered
from kie_async.batch._control import WorkerControl
from kie_async.batch._engine import (
    CONNECT_TIMEOUT,
    QUEUE,
    WORKER_LEASE,
    Refusals,
    RetryLater,
    RetryLaterError,
    connected,
    describe,
    ensure_tables,
    is_later,
    make_connector,
    remove_old_rows,
)
from kie_async.batch._runner import Runner
from kie_async.errors import ConflictError, LostRecordError, StorageError
from kie_async.events import Notice
from kie_async.journal import ANY_BATCH, Job, Recorder, State, machine_lease
from kie_async.settings import Settings

TASK = "kie_async.run_job"
WINDOW = 2000  # keys that are queued at once
HEARTBEAT = 5.0  # seconds between two heartbeats
STALLED_AFTER = 30.0  # seconds without a heartbeat after which a worker is taken for dead
FEED_INTERVAL = 5.0  # seconds between two times that keys are queued
UPLOADS_AHEAD = 200  # jobs that can be submitted, before a file of this machine is uploaded for another
UPLOADS_AT_ONCE = 10
CHECK_INTERVAL = 1.0  # seconds between two checks whether all is done
POLL_INTERVAL = 5.0  # seconds between two reads of the queue; the engine is told of new rows
MIN_RESTART_DELAY, MAX_RESTART_DELAY = 1.0, 10.0  # seconds before an engine that ended by itself is started again
_STOP_TIMEOUT = 0.1  # seconds for jobs to end by themselves when the engine stops; then they are cancelled
_NOT_RUNNING = "P0001"  # SQLSTATE of the engine's own functions: the row is not among those that are worked on
_REGISTERED = "SELECT id FROM procrastinate_workers WHERE id = %(worker_id)s"
_LEASE = "engine"
_ORDER = ((State.SUBMITTED, State.SUCCEEDED), (State.INTENT,), (State.PLANNED,))  # paid work first

# Without a handler, Python writes what these log to stderr; the observer is called with a notice instead.
for _name in ("procrastinate", "psycopg.pool"):
    logging.getLogger(_name).addHandler(logging.NullHandler())


class Worker:
    """Works on the jobs of a shared journal, among others that do the same.

    Args:
        runner: takes a job to its end.
        recorder: of the shared journal.
        dsn: of the database that the engine shares with the journal.
        at_once: jobs under way here at once.
        settings: of the session: the name of this machine, and who is told what went wrong.
        control: lets a program end it in good order, and is told how it is.
    """

    def __init__(  # noqa: PLR0913  # keyword-only, each by name
        self, runner: Runner, recorder: Recorder, *, dsn: str, at_once: int, settings: Settings, control: WorkerControl
    ) -> None:
        self._runner = runner
        self._recorder = recorder
        self._at_once = at_once
        self._settings = settings
        self._control = control
        self._is_over = anyio.Event()
        self._jobs: dict[asyncio.Task[object], str] = {}  # under way here, with their keys; "" removes old rows
        self._engine: EngineWorker | None = None
        self._connector = make_connector(dsn)
        self._app = App(connector=self._connector)
        self._refusal: BaseException | None = None  # why the engine that runs could not record an end
        self._task = self._app.task(name=TASK, queue=QUEUE, retry=RetryLater())(self._run_job)
        hourly = self._app.periodic(cron="0 * * * *")
        hourly(self._app.task(name="kie_async.remove_old_rows", queue=QUEUE, pass_context=True)(self._remove_old_rows))

    async def work(self, *, until_done: bool = False, batch: str | None = None) -> None:
        """Work until cancelled or drained, or until no job is left.

        Args:
            until_done: return when every job of a batch is at its end, or cannot come to it in this run.
            batch: only the jobs of this batch count for that.

        Raises:
            BudgetError: jobs were left, for the caps of their batches have no room for them; not if it was drained.
            KieError: what stopped this worker: the key, the credits, the disk.
            StorageError: the database is away at the start, or its tables are not the engine's, or it refuses what the
                engine does again and again.

        Cancelling gives every job back at once, and leaves it where the journal says; other workers, or the next run,
        go on from there. A submission that was sent is answered and recorded first.
        """
        async with connected(self._connector):
            with anyio.CancelScope(shield=True):  # a connection that is cancelled half-way is never given back
                await self._prepare()
            async with anyio.create_task_group() as group:
                self._control.check = self._why_not_ready
                group.start_soon(self._keep_running)
                group.start_soon(self._repeat, self._feed, FEED_INTERVAL)
                group.start_soon(self._repeat, self._keep_uploading, FEED_INTERVAL)
                if until_done:
                    group.start_soon(self._repeat, partial(self._check_done, batch), CHECK_INTERVAL)
                try:
                    await self._is_over.wait()
                finally:
                    self._is_over.set()
                group.cancel_scope.cancel()
        if self._runner.stopped:
            raise self._runner.stopped
        if not self._control.draining.is_set():  # it may leave jobs then
            await self._recorder.journal.caps.check_left(batch)

    @property
    def _queue(self) -> JobManager:
        return self._app.job_manager

    async def _repeat(self, step: Callable[[], Awaitable[None]], interval: float) -> None:
        refusals = Refusals()
        while True:
            try:
                await step()
                refusals.add(None)
            except Exception as error:  # noqa: BLE001  # the database may be away; it is tried again
                self._notice("the engine", error)
                self._end_if_stopped(refusals.add(error))
            await anyio.sleep(interval)

    def _notice(self, what: str, error: BaseException) -> None:
        self._settings.observer(Notice("", f"{what}: {describe(error)}"))

    # ------------------------------------------------------------ the engine

    async def _prepare(self) -> None:
        """Make the engine's tables if they are not there; cancel what an earlier run put off, to queue it anew."""
        await ensure_tables(self._connector)
        for row in await self._queue.list_jobs_async(task=TASK, status="todo"):
            if row.id is not None and row.scheduled_at is not None:
                await self._queue.cancel_job_by_id_async(row.id)

    async def _keep_running(self) -> None:
        """Run the engine until cancelled or drained, through restarts and absences of the database."""
        loop, delay, refusals = asyncio.get_running_loop(), MIN_RESTART_DELAY, Refusals()
        while True:
            started, self._refusal = loop.time(), None
            try:
                with anyio.CancelScope(shield=True):
                    await self._give_up_registration()
                await self._run_engine()
            except Exception as error:  # noqa: BLE001  # the driver's and the engine's own
                self._notice("the engine", error)
                self._refusal = error
            self._end_if_stopped(refusals.add(self._refusal))
            if self._control.draining.is_set():
                self._is_over.set()
                return
            self._settings.observer(Notice("", "the engine ended, and is started again"))
            await anyio.sleep(delay)
            lived_long = loop.time() - started > 2 * MAX_RESTART_DELAY
            delay = MIN_RESTART_DELAY if lived_long else min(2 * delay, MAX_RESTART_DELAY)

    async def _give_up_registration(self) -> None:
        """Let go of what the last engine held if it ended while the database was away, so that it is stalled now."""
        if self._engine is not None and self._engine.worker_id is not None:
            await self._queue.unregister_worker(self._engine.worker_id)

    async def _run_engine(self) -> None:
        self._engine = engine = EngineWorker(
            self._app,
            queues=[QUEUE],
            concurrency=self._at_once,
            install_signal_handlers=False,
            shutdown_graceful_timeout=_STOP_TIMEOUT,
            fetch_job_polling_interval=POLL_INTERVAL,
            update_heartbeat_interval=HEARTBEAT,
            stalled_worker_timeout=STALLED_AFTER,
        )
        # A task of its own: the engine ends in good order when it is told to, and leaks connections when cancelled.
        running = asyncio.create_task(engine.run())  # type: ignore[no-untyped-call]  # theirs
        try:
            async with anyio.create_task_group() as group:
                group.start_soon(self._drain_when_asked, engine)
                group.start_soon(self._repeat, partial(self._stay_on_record, engine), CHECK_INTERVAL)
                await asyncio.wait([running])
                group.cancel_scope.cancel()
        finally:
            with anyio.CancelScope(shield=True):
                if self._control.draining.is_set():
                    engine.shutdown_graceful_timeout = None  # cancelled here, they are not to be cancelled by it again
                    self._cancel_jobs(*self._jobs)
                engine.stop()  # type: ignore[no-untyped-call]  # theirs
                while not (await asyncio.wait([running], timeout=HEARTBEAT))[0]:
                    await self._stop(engine)
        await running

    async def _stay_on_record(self, engine: EngineWorker) -> None:
        """Hold the lease from which ``list_workers`` knows an engine's process and machine."""
        if engine.worker_id is None:  # not yet
            return
        started_at, machine = int(self._control.started_at), self._settings.machine
        lease = WORKER_LEASE.format(engine_id=engine.worker_id, pid=os.getpid(), started_at=started_at, machine=machine)
        async with self._recorder.leases.holding(lease, guards_spending=False):
            await anyio.sleep_forever()

    async def _why_not_ready(self) -> str:
        if self._control.draining.is_set() or self._is_over.is_set():
            return "it is stopping"
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT):
                rows = await self._connector.execute_query_all_async(
                    _REGISTERED, worker_id=self._engine and self._engine.worker_id
                )
        except Exception as error:  # noqa: BLE001  # the driver's and the engine's own
            return f"the database does not answer: {describe(error)}"
        return "" if rows else "the engine is not registered; it is started again by itself"

    async def _stop(self, engine: EngineWorker) -> None:
        """Let an engine take nothing more, and keep its heartbeat while it waits for its jobs."""
        engine.stop()  # type: ignore[no-untyped-call]  # once more: one that only begins forgets the first
        with suppress(ConnectorException):  # its own heartbeat ends before its last job
            await self._queue.update_heartbeat(engine.worker_id or 0)  # no worker has this number

    async def _drain_when_asked(self, engine: EngineWorker) -> None:
        """When asked to, take nothing more and give back what is not sent; the engine waits for the rest."""
        await self._control.draining.wait()
        engine.shutdown_graceful_timeout = None
        await self._repeat(partial(self._give_back_unsent, engine), HEARTBEAT)

    async def _give_back_unsent(self, engine: EngineWorker) -> None:
        await self._stop(engine)
        for task, key in tuple(self._jobs.items()):
            job = await self._recorder.journal.get(key)
            if job is None or job.state is State.PLANNED:
                self._cancel_jobs(task)

    def _cancel_jobs(self, *tasks: asyncio.Task[object]) -> None:
        """Cancel jobs, each once: the second time would cut off the engine's record of it."""
        for task in filterfalse(asyncio.Task.cancelling, tasks):
            task.cancel()

    async def _run_job(self, key: str) -> None:
        """Take a job as far as it goes; called by the engine, in a task for each key."""
        self._register_task(key)
        if self._control.draining.is_set():  # its row was on the way: nobody would cancel it any more
            raise asyncio.CancelledError  # the engine gives it back
        try:
            job = await self._runner.run_job(key)
        except Exception as error:
            self._notice("a job was given back", error)
            raise
        finally:
            self._end_if_stopped()
        if _must_wait(job):
            raise RetryLaterError

    async def _remove_old_rows(self, context: JobContext, timestamp: int) -> None:
        """Remove old rows; called by the engine, by when the hour began."""
        del timestamp
        self._register_task("")
        await remove_old_rows(context)

    def _register_task(self, key: str) -> None:
        """Have the current task of the engine's cancelled when this worker ends, and its end checked."""
        if (task := asyncio.current_task()) is not None:  # pragma: no branch  # there is one
            self._jobs[task] = key
            task.add_done_callback(self._check_recorded)

    def _end_if_stopped(self, error: StorageError | None = None) -> None:
        self._runner.stopped = self._runner.stopped or error
        if self._runner.stopped:
            self._is_over.set()

    def _check_recorded(self, task: asyncio.Task[object]) -> None:
        """End the engine if it could not record how a job ended: the row would stay with it for good.

        A row that another worker has finished needs no record: the journal knows how its job stands.
        """
        del self._jobs[task]
        error = None if task.cancelled() else task.exception()
        if error is not None and getattr(error.__cause__, "sqlstate", "") != _NOT_RUNNING:
            self._notice("the engine", error)
            self._refusal = error
            if self._engine is not None:  # pragma: no branch  # it called this
                self._engine.stop()  # type: ignore[no-untyped-call]  # theirs

    # ------------------------------------------------------------ files of this machine

    async def _keep_uploading(self) -> None:
        """Upload the files of this machine just ahead of need; one worker of it at a time does it for all."""
        lease = machine_lease(self._settings.machine)
        with suppress(ConflictError):
            async with self._recorder.leases.holding(lease, guards_spending=False):
                while True:
                    await self._recorder.leases.renew(lease)  # another has it if this process was stopped for long
                    await self._upload_next()
                    await anyio.sleep(FEED_INTERVAL)

    async def _upload_next(self) -> None:
        journal = self._recorder.journal
        if self._settings.machine not in await journal.machines.waiting():
            return
        ahead = UPLOADS_AHEAD + sum((await self._held()).values())  # what is tried later holds nobody up
        jobs = journal.machines.next_uploads(self._settings.machine, ahead=ahead, full=await journal.caps.full())
        keys = (job.key async for job in jobs if not self._control.draining.is_set())
        uploads = map_unordered(keys, self._runner.upload, self._recorder.group, concurrency=UPLOADS_AT_ONCE)
        async with aclosing(uploads):
            async for job in uploads:
                self._end_if_stopped()
                if job.state is State.PLANNED and not job.waits_for:
                    with anyio.CancelScope(shield=True):
                        await self._task.configure(lock=job.key).defer_async(key=job.key)

    # ------------------------------------------------------------ the queue

    async def _feed(self) -> None:
        """Give back what dead workers had, and queue keys; one worker at a time does it for all."""
        with suppress(ConflictError):
            async with self._recorder.leases.holding(_LEASE):
                with anyio.CancelScope(shield=True):
                    for row in await self._queue.get_stalled_jobs(queue=QUEUE, seconds_since_heartbeat=STALLED_AFTER):
                        await self._queue.retry_job(row)
                # A key that is queued twice is worked on one after the other.
                if jobs := [self._task.configure(lock=key).make_new_job(key=key) for key in await self._find_keys()]:
                    with anyio.CancelScope(shield=True):
                        await self._queue.batch_defer_jobs_async(jobs)

    async def _find_keys(self) -> list[str]:
        held, journal = await self._held(), self._recorder.journal
        keys: list[str] = []
        full = await journal.caps.full()
        for states in _ORDER:
            async with aclosing(journal.jobs(*states, batch=ANY_BATCH, waiting_for=("",), full=full)) as jobs:
                async for job in jobs:
                    if len(held) + len(keys) >= WINDOW:
                        return keys
                    if job.key not in held:
                        keys.append(job.key)
        return keys

    async def _held(self) -> dict[str, bool]:
        """The keys that wait or are worked on, and whether each is to be tried later."""
        later: dict[str, bool] = {}
        with anyio.CancelScope(shield=True):
            for status in ("todo", "doing", "todo"):  # again, for what was queued anew between the two reads
                for row in await self._queue.list_jobs_async(task=TASK, status=status):
                    key = str(row.task_kwargs["key"])
                    later[key] = later.get(key, False) or is_later(row)  # it holds up the other rows of its key
        return later

    async def _check_done(self, batch: str | None) -> None:
        """End this worker if no job is open but those that are tried later, over a cap, or of an absent machine."""
        held, journal = None, self._recorder.journal
        machines, full = {"", self._settings.machine, *await journal.machines.present()}, await journal.caps.full()
        # All open states in one read: read one after another, a job that moves meanwhile would be in none of them.
        open_jobs = journal.jobs(*chain(*_ORDER), batch=batch or ANY_BATCH, waiting_for=machines, full=full)
        async with aclosing(open_jobs) as jobs:
            async for job in jobs:
                held = await self._held() if held is None else held
                if not held.get(job.key):
                    return
        self._is_over.set()


def _must_wait(job: Job) -> bool:
    """Whether a job cannot go on now though it is paid; not if another process has it."""
    return job.error is not None and (
        job.error.type == LostRecordError.__name__
        or (job.state in _ORDER[0] and job.error.type != ConflictError.__name__)
    )
