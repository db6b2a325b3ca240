"""The engine: its tables, made and upgraded by procrastinate's own scripts, and when it tries a job again.

procrastinate does not record which of its migrations a database has had. A comment on its main table does that here.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import anyio
import attrs
from procrastinate import BaseRetryStrategy, JobContext, PsycopgConnector, RetryDecision, builtin_tasks
from procrastinate.exceptions import ConnectorException
from procrastinate.jobs import Job as QueuedJob
from procrastinate.schema import SchemaManager

from kie_async.errors import StorageError
from kie_async.events import clean
from kie_async.journal._postgres import commit_at_once, read_address

QUEUE = "kie_async"
CONNECT_TIMEOUT = 5.0  # seconds to wait for a connection
MAX_REFUSALS = 5  # of the engine's statements by the database, one after another, before a worker gives up
_NEEDS_MENDING = ("3F", "42")  # classes of SQLSTATE: schemas, functions, tables or rights are not as they must be
RETRY_DELAY = 60  # seconds before a paid job that cannot be finished now is tried again
_KEEP_HOURS = 72  # rows of jobs that have ended
# Of tables without a comment: the last migration of the oldest engine that could make them (pyproject.toml).
_UNRECORDED = "03.04.00_50_post_add_retry_failed_job_procedure"
_STATE = """
SELECT to_regclass('procrastinate_jobs') IS NOT NULL AS is_made,
    obj_description(to_regclass('procrastinate_jobs'), 'pg_class') AS migration
"""
# Whoever comes at the same moment waits, and finds them.
_LOCK = 0x6B69655E  # any number that nobody else uses
_MAKE = """
SELECT pg_advisory_xact_lock({lock});
DO $make$ BEGIN
    IF to_regclass('procrastinate_jobs') IS NULL THEN EXECUTE $script${script}$script$; END IF;
END $make$
"""


def make_connector(dsn: str) -> PsycopgConnector:
    """Make the engine's connector to a database."""
    return PsycopgConnector(
        conninfo=read_address(dsn)[0].reveal(),
        kwargs={"prepare_threshold": None},  # a pooler in between knows no prepared statements
        configure=commit_at_once,
        min_size=0,
        max_size=2,  # besides the one that listens
        timeout=CONNECT_TIMEOUT,
    )


@asynccontextmanager
async def connected(connector: PsycopgConnector) -> AsyncGenerator[PsycopgConnector]:
    """Hold a connector open; an error of its database comes out of the block as StorageError."""
    try:
        await connector.open_async()
        yield connector
    except ConnectorException as error:
        raise StorageError(f"the engine's tables cannot be used: {describe(error)}") from None
    finally:
        with anyio.CancelScope(shield=True):
            await connector.close_async()


class Refusals:
    """Counts how often in a row the database refuses what the engine does, for a reason that only a person can mend."""

    def __init__(self) -> None:
        self._count = 0

    def add(self, error: BaseException | None) -> StorageError | None:
        """Count an error, or begin anew if it is none or of another kind; give what ends the worker if it is time."""
        state = getattr(error and error.__cause__, "sqlstate", None) or ""
        self._count = self._count + 1 if state.startswith(_NEEDS_MENDING) else 0
        if error is None or self._count < MAX_REFUSALS:
            return None
        remedy = "what mends it is said by: kie-async database check --journal postgresql://..."
        return StorageError(f"the engine's tables cannot be used: {describe(error)}; {remedy}", retryable=False)


def describe(error: BaseException) -> str:
    """What an error of the engine's, or the one that it wraps, says in one line."""
    cause = error.__cause__ or error
    return f"{type(cause).__name__} {clean(next(iter(str(cause).splitlines()), ''))}"


class RetryLaterError(Exception):
    """A job is paid and cannot go on now."""


class RetryLater(BaseRetryStrategy):
    """Tries a paid job again after a while, and at once what was cancelled or found the journal away."""

    def get_retry_decision(self, *, exception: BaseException, job: QueuedJob) -> RetryDecision | None:
        """Decide by what the job raised; None ends it."""
        del job
        if isinstance(exception, RetryLaterError):
            return RetryDecision(retry_in={"seconds": RETRY_DELAY})
        return RetryDecision() if isinstance(exception, asyncio.CancelledError | StorageError) else None


def is_later(row: QueuedJob) -> bool:
    """Whether a row was put off; what is tried again at once is not, though the clocks of two machines may differ."""
    soon = datetime.now(UTC) + timedelta(seconds=RETRY_DELAY / 2)
    return row.scheduled_at is not None and row.scheduled_at > soon


async def remove_old_rows(context: JobContext) -> None:
    """Remove the rows of jobs that ended some days ago; once an hour, by one worker for all."""
    await builtin_tasks.remove_old_jobs(
        context, max_hours=_KEEP_HOURS, queue=QUEUE, remove_failed=True, remove_cancelled=True, remove_aborted=True
    )


async def ensure_tables(connector: PsycopgConnector) -> None:
    """Make the engine's tables if they are not there.

    Raises:
        StorageError: they are those of an older engine.
    """
    applied = await last_migration(connector)
    if applied is None:
        script = _script(SchemaManager.get_schema(), _migrations()[-1])
        await connector.execute_query_async(_MAKE.format(lock=_LOCK, script=script))
    elif pending(applied):
        remedy = "end all that works on it, then run: kie-async database upgrade --journal postgresql://..."
        raise StorageError(f"the tables of the engine are of an older version: {remedy}", retryable=False)


async def last_migration(connector: PsycopgConnector) -> str | None:
    """The name of the last migration that the engine's tables have had; None if there are no tables."""
    state = await connector.execute_query_one_async(_STATE)
    return str(state["migration"] or _UNRECORDED) if state["is_made"] else None


def pending(applied: str) -> list[Path]:
    """The engine's migrations that come after one, in order."""
    return [path for path in _migrations() if path.stem > applied]


def _migrations() -> list[Path]:
    return sorted(Path(SchemaManager.get_migrations_path()).glob("*.sql"))


def _script(script: str, migration: Path) -> str:
    """A script that notes as well which migration the tables have had by then; sent at once, it is one transaction."""
    return f"{script};\nCOMMENT ON TABLE procrastinate_jobs IS '{migration.stem}'".replace("%", "%%")


# The name of the lease that a worker holds says what is known of it.
WORKER_LEASE = "worker:{engine_id}:{pid}:{started_at}:{machine}"
_WORKERS = r"""
SELECT said[4] AS machine, said[2]::bigint AS pid, said[3]::bigint AS started_at, worker.id AS engine_id,
    extract(epoch FROM now() - worker.last_heartbeat)::float AS heartbeat_age,
    (SELECT count(*) FROM procrastinate_jobs AS job WHERE job.worker_id = worker.id AND job.status = 'doing') AS jobs
FROM kie_lease AS lease CROSS JOIN regexp_match(lease.name, '^worker:(\d+):(\d+):(\d+):(.*)$') AS said
JOIN procrastinate_workers AS worker ON worker.id::text = said[1]
WHERE lease.expires_at > extract(epoch FROM now()) ORDER BY worker.id
"""


@attrs.frozen
class LivingWorker:
    """A worker of a shared journal that is alive.

    Attributes:
        machine: its name.
        pid: of its process there.
        jobs: how many it has under way.
        started_at: whole unix seconds, by the clock of its machine.
        heartbeat_age: seconds since its last heartbeat.
        engine_id: its number in procrastinate's own tables.
    """

    machine: str
    pid: int
    jobs: int
    started_at: int
    heartbeat_age: float
    engine_id: int


async def list_workers(dsn: str) -> list[LivingWorker]:
    """List the workers of a shared journal that are alive.

    One that was killed is still among them until it has given no sign of life for 30 s; others have its jobs then.

    Raises:
        StorageError: the database cannot be used.
    """
    async with connected(make_connector(dsn)) as connector:
        if await last_migration(connector) is None:
            return []
        return [LivingWorker(**row) for row in await connector.execute_query_all_async(_WORKERS)]


async def create_worker_tables(dsn: str) -> None:
    """Make the engine's tables in a database if they are not there.

    Raises:
        StorageError: they are those of an older engine, or cannot be made.
    """
    async with connected(make_connector(dsn)) as connector:
        await ensure_tables(connector)


async def worker_migrations(dsn: str, *, run: bool = False) -> list[str] | None:
    """The names of the migrations that the engine's tables lack; None if there are no tables.

    Args:
        dsn: of the database.
        run: have them run, each as one transaction; nobody may work on the database meanwhile.

    Raises:
        StorageError: the database cannot be used.
    """
    async with connected(make_connector(dsn)) as connector:
        applied = await last_migration(connector)
        if applied is None:
            return None
        lacking = pending(applied)
        for path in lacking if run else ():
            await connector.execute_query_async(_script(path.read_text("utf-8"), path))
        return [path.stem for path in lacking]
