"""The engine of a worker: procrastinate, the sole user of it. It hands out keys to whichever worker has room.

procrastinate tries a job again when ``RetryLater`` says so, and keeps its rows, so that its own shell shows the queue.
Added are a loop that starts it again when it ends because the database was away, the heartbeat until the last job has
ended, and the giving back of the keys of dead workers.

Its own heartbeat and listener are off: it cancels them once when it stops, and waits for them. With both on, some runs
never stopped on Python 3.11, probably because ``asyncio.wait_for`` there can swallow a cancellation that comes together
with a result.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime

import anyio
from procrastinate import App, BaseRetryStrategy, PsycopgConnector, RetryDecision
from procrastinate.exceptions import ConnectorException
from procrastinate.jobs import Job as QueuedJob
from procrastinate.worker import Worker as EngineWorker

from kie_async.errors import StorageError
from kie_async.events import clean
from kie_async.journal._postgres import read_address

QUEUE = "kie_async"
TASK = "kie_async.run_job"
HEARTBEAT = 5.0  # seconds between two heartbeats
STALLED_AFTER = 30.0  # seconds without a heartbeat after which a worker is taken for dead
POLL_INTERVAL = 1.0  # seconds between two reads of the queue
CONNECT_TIMEOUT = 5.0  # seconds to wait for a connection
RETRY_DELAY = 60  # seconds before a paid job that cannot be finished now is tried again
MIN_RESTART_DELAY, MAX_RESTART_DELAY = 1.0, 10.0  # seconds before an engine that ended by itself is started again
_MAX_CONNECTIONS = 2
_STOP_TIMEOUT = 0.1  # seconds for jobs to end by themselves when the engine stops; then they are cancelled
_NOT_RUNNING = "P0001"  # SQLSTATE of the engine's own functions: the row is not among those that are worked on
_KEEP_HOURS = 72  # rows of jobs that have ended

# Without a handler, Python writes what these log to stderr; the observer is called with a notice instead.
for _name in ("procrastinate", "psycopg.pool"):
    logging.getLogger(_name).addHandler(logging.NullHandler())


class RetryLaterError(Exception):
    """A job is paid and cannot go on now."""


class RetryLater(BaseRetryStrategy):
    """Tries a paid job again after a while, and at once what was cancelled or found the journal away."""

    def get_retry_decision(
        self,
        *,
        exception: BaseException,
        job: QueuedJob,  # noqa: ARG002  # the name is procrastinate's
    ) -> RetryDecision | None:
        """Decide by what the job raised; None ends it."""
        if isinstance(exception, RetryLaterError):
            return RetryDecision(retry_in={"seconds": RETRY_DELAY})
        return RetryDecision() if isinstance(exception, asyncio.CancelledError | StorageError) else None


class Engine:
    """Hands out the keys of jobs, among the engines of other workers on one database.

    Args:
        dsn: of the database.
        run: takes a job to its end; what it raises decides whether it is tried again (``RetryLater``).
        concurrency: jobs at once.
        notice: called with what went wrong.
    """

    def __init__(
        self, dsn: str, run: Callable[[str], Awaitable[None]], *, concurrency: int, notice: Callable[[str], None]
    ) -> None:
        self._run_job = run
        self._concurrency = concurrency
        self._notice = notice
        connector = PsycopgConnector(
            conninfo=read_address(dsn)[0].reveal(),
            kwargs={"prepare_threshold": None},  # a pooler in between knows no prepared statements
            min_size=0,
            max_size=_MAX_CONNECTIONS,
            timeout=CONNECT_TIMEOUT,
        )
        self._app = App(connector=connector)
        self._task = self._app.task(name=TASK, queue=QUEUE, retry=RetryLater())(self._run)
        self._queue = self._app.job_manager
        self._worker: EngineWorker | None = None

    @asynccontextmanager
    async def open(self) -> AsyncGenerator[None]:
        """Connect, and make the engine's tables if they are not there.

        Raises:
            StorageError: the database is away, or its tables are not the engine's.
        """
        try:
            with anyio.CancelScope(shield=True):  # a connection that is cancelled half-way is never given back
                try:
                    await self._app.open_async()
                    await self._prepare()
                except Exception as error:  # noqa: BLE001  # the driver's and the engine's own
                    raise StorageError(f"the engine cannot start: {_describe(error)}") from None
            yield
        finally:
            with anyio.CancelScope(shield=True):
                await self._app.close_async()

    async def _prepare(self) -> None:
        if not await self._queue.check_connection_async():
            try:
                await self._app.schema_manager.apply_schema_async()  # one transaction
            except ConnectorException:
                if not await self._queue.check_connection_async():  # another worker made them at the same moment
                    raise
        for row in await self._queue.list_jobs_async(task=TASK, status="todo"):
            if row.id is not None and row.scheduled_at is not None:  # an earlier run was to try it later
                await self._queue.cancel_job_by_id_async(row.id)

    async def run(self) -> None:
        """Hand out keys until cancelled, through restarts and absences of the database."""
        loop, delay = asyncio.get_running_loop(), MIN_RESTART_DELAY
        while True:
            started = loop.time()
            try:
                with anyio.CancelScope(shield=True):
                    await self._give_up_registration()
                await self._run_worker()
            except Exception as error:  # noqa: BLE001  # the driver's and the engine's own
                self.report(error)
            self._notice("the engine ended, and is started again")
            await anyio.sleep(delay)
            lived_long = loop.time() - started > 2 * MAX_RESTART_DELAY
            delay = MIN_RESTART_DELAY if lived_long else min(2 * delay, MAX_RESTART_DELAY)

    async def _give_up_registration(self) -> None:
        """Let go of what the last engine held if it ended while the database was away, so that it is stalled now."""
        if self._worker is not None and self._worker.worker_id is not None:
            await self._queue.unregister_worker(self._worker.worker_id)

    async def _run_worker(self) -> None:
        self._worker = worker = EngineWorker(
            self._app,
            queues=[QUEUE],
            concurrency=self._concurrency,
            install_signal_handlers=False,
            shutdown_graceful_timeout=_STOP_TIMEOUT,
            fetch_job_polling_interval=POLL_INTERVAL,
            update_heartbeat_interval=math.inf,
            abort_job_polling_interval=math.inf,
            listen_notify=False,
            stalled_worker_timeout=STALLED_AFTER,
        )
        # A task of its own: the engine ends in good order when it is told to, and leaks connections when cancelled.
        running = asyncio.create_task(worker.run())  # type: ignore[no-untyped-call]  # theirs
        try:
            await asyncio.wait([running])
        finally:
            with anyio.CancelScope(shield=True):
                worker.stop()  # type: ignore[no-untyped-call]  # theirs
                while not (await asyncio.wait([running], timeout=HEARTBEAT))[0]:
                    worker.stop()  # type: ignore[no-untyped-call]  # once more: one that only begins forgets the first
                    with suppress(ConnectorException):
                        await self.send_heartbeat()
        await running

    async def _run(self, key: str) -> None:
        if (task := asyncio.current_task()) is not None:  # pragma: no branch  # there is one
            task.add_done_callback(self._check_recorded)
        try:
            await self._run_job(key)
        except RetryLaterError:
            raise
        except Exception as error:
            self._notice(f"a job was given back: {_describe(error)}")
            raise

    def _check_recorded(self, task: asyncio.Task[object]) -> None:
        """End the engine if it could not record how a job ended: the row would stay with it for good.

        A row that another worker has finished needs no record: the journal knows how its job stands.
        """
        error = None if task.cancelled() else task.exception()
        if error is None or getattr(error.__cause__, "sqlstate", "") == _NOT_RUNNING:
            return
        self.report(error)
        if self._worker is not None:  # pragma: no branch  # it called this
            self._worker.stop()  # type: ignore[no-untyped-call]  # theirs

    def report(self, error: BaseException) -> None:
        """Give a notice of an error of the engine."""
        self._notice(f"the engine: {_describe(error)}")

    async def send_heartbeat(self) -> None:
        """Say that this worker lives."""
        with anyio.CancelScope(shield=True):
            if self._worker is not None and self._worker.worker_id is not None:
                await self._queue.update_heartbeat(self._worker.worker_id)

    async def remove_old_rows(self) -> None:
        """Remove the rows of jobs that ended some days ago."""
        with anyio.CancelScope(shield=True):
            await self._queue.delete_old_jobs(
                _KEEP_HOURS, QUEUE, include_failed=True, include_cancelled=True, include_aborted=True
            )

    async def give_back_stalled(self) -> None:
        """Give the keys of dead workers to the living."""
        with anyio.CancelScope(shield=True):
            for row in await self._queue.get_stalled_jobs(queue=QUEUE, seconds_since_heartbeat=STALLED_AFTER):
                await self._queue.retry_job(row)

    async def held(self) -> dict[str, bool]:
        """The keys that wait or are worked on, and whether each is to be tried later."""
        rows: list[QueuedJob] = []
        with anyio.CancelScope(shield=True):
            for status in ("todo", "doing"):
                rows += await self._queue.list_jobs_async(task=TASK, status=status)
        now = datetime.now(UTC)
        return {str(row.task_kwargs["key"]): row.scheduled_at is not None and row.scheduled_at > now for row in rows}

    async def enqueue(self, keys: Iterable[str]) -> None:
        """Let any worker take these keys; one that is queued twice is worked on one after the other."""
        queued = [self._task.configure(lock=key).make_new_job(key=key) for key in keys]
        with anyio.CancelScope(shield=True):
            await self._queue.batch_defer_jobs_async(queued)


def _describe(error: BaseException) -> str:
    cause = error.__cause__ or error
    return f"{type(cause).__name__} {clean(next(iter(str(cause).splitlines()), ''))}"
