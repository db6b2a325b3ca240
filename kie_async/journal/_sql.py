"""The statements on jobs, callbacks, leases and the quota of a journal, in SQL that SQLite and PostgreSQL both speak.

The tables are in ``_schema``; the statements on caps, totals and machines in ``_caps``, ``_totals`` and
``_machines``.

A statement may run again after a lost connection: it must find out by itself whether it has happened. ``write_id``
is the id of the last write of a job.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Collection, Iterable, Mapping
from enum import Enum
from itertools import product
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Protocol, Self, TypeAlias, TypeVar
from zlib import crc32

from kie_async._protocol.wire import unpack
from kie_async.errors import BadResponseError, StorageError

if TYPE_CHECKING:
    from kie_async.journal._diagnosis import Finding

T = TypeVar("T")
Step: TypeAlias = tuple[str, Mapping[str, object]]
Rows: TypeAlias = list[tuple[Any, ...]]

# The columns that the checksum of a row covers, in its order. "machine" and "account", which came later, are not among
# them: the document has both. "machine" is the one that a job waits for (``Job.waits_for``), or empty.
JOB = ("key", "batch", "state", "cost", "changed_at", "document")
ATTEMPT = ("token", "key", "number", "task_id", "process_id", "intended_at")
CALLBACK = ("token", "task_id", "stage", "received_at")
UPLOAD = ("sha256", "uploaded_at", "document")
_ALL = "SELECT {columns}, checksum FROM {table}"
ALL_ROWS = tuple(
    _ALL.format(columns=", ".join(columns), table=table)
    for table, columns in {
        "kie_job": JOB, "kie_attempt": ATTEMPT, "kie_callback": CALLBACK, "kie_upload": UPLOAD,
    }.items()
)  # fmt: skip


def with_checksum(columns: tuple[str, ...], *values: object) -> Mapping[str, object]:
    """Return the parameters of a row."""
    return {**dict(zip(columns, values, strict=True)), "checksum": _checksum(values)}


def is_intact(row: tuple[Any, ...]) -> bool:
    """Tell whether a row is what was written; its last column is the checksum."""
    return bool(_checksum(row[:-1]) == row[-1])


def _checksum(values: tuple[object, ...]) -> int:
    return crc32("\0".join(map(str, values)).encode())


def unpack_document(document: str, kind: type[T]) -> T:
    """Read a value that ``pack`` has written.

    Raises:
        StorageError: it is something else.
    """
    try:
        return unpack(document, kind)
    except BadResponseError as error:
        raise damaged(error.message) from None


def damaged(how: str) -> StorageError:
    """The error of rows that are not what was written."""
    return StorageError(f"the journal is damaged ({how}): put back a copy before anything is run", retryable=False)


# ---------------------------------------------------------------- the database


class Driver(Protocol):
    """A database, entered with ``async with``.

    Statements name their parameters ``:name``. ``:now`` is the unix time of the database in seconds. ``:tick`` is the
    seconds of a clock that all processes of the database share, and ``:boot`` names that clock: it changes when the
    clock starts anew.
    """

    async def __aenter__(self) -> Self:
        """Open the database; make the tables if there are none."""
        ...

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> bool | None:
        """Finish what is under way, and close."""
        ...

    async def upgrade(self) -> int:
        """Bring the tables of an older version to the newest, in one transaction, and return the version they had.

        The totals of spending are counted anew in any case. For a database that is not open; ``_schema`` has the
        migrations.

        Raises:
            StorageError: a process is at work on it, or it is of a version that cannot be upgraded.
        """
        ...

    async def diagnose(self) -> list[Finding]:
        """Find out what hinders a journal in this database, or is worth knowing of it; for one that is not open.

        Raises:
            StorageError: it cannot be reached or opened at all.
        """
        ...

    async def run(self, *steps: Step) -> list[Rows]:
        """Run statements as one durable transaction, and return the rows of each; a write has a row for each change.

        While the database is away, they are run again. So a statement must find out by itself whether it has been run.

        Raises:
            ConflictError: something that must be unique is there already.
            StorageError: the database stayed away, or is full or damaged.
        """
        ...

    async def check(self) -> None:
        """Check that others will find what was written. Called before and after an intent is written.

        Raises:
            StorageError: they will not.
        """
        ...

    def watch(self) -> AsyncGenerator[None, None]:
        """Yield whenever another process or this one may have written, at once and then every few seconds at least.

        Raises:
            StorageError: (on the call) the database is not open.
        """
        ...


# ---------------------------------------------------------------- jobs

ADD = """
INSERT INTO kie_job (key, batch, state, machine, account, cost, changed_at, document, checksum, write_id)
VALUES (:key, :batch, :state, :machine, :account, :cost, :changed_at, :document, :checksum, :write_id)
ON CONFLICT (key) DO UPDATE SET write_id = excluded.write_id WHERE kie_job.write_id = excluded.write_id
"""
GET = """
SELECT key, batch, state, cost, changed_at, document, checksum, write_id, :now FROM kie_job WHERE key = :key
"""
FIND = """
SELECT key, batch, state, cost, changed_at, document, checksum FROM kie_job WHERE key = (
    SELECT key FROM kie_attempt WHERE token = :token OR task_id = :task_id ORDER BY token = :token DESC LIMIT 1
)
"""
_PAGE = """
SELECT position, key, batch, state, cost, changed_at, document, checksum FROM kie_job
WHERE position IN ({positions}) ORDER BY position LIMIT :limit
"""
_POSITIONS = """
SELECT position FROM (
    SELECT position FROM kie_job WHERE {condition} AND position > :after {of_batch} ORDER BY position LIMIT :limit
) AS part{number}
"""
_COUNTS = "SELECT state, count(*) FROM kie_job WHERE true {of_batch} GROUP BY batch, state"  # one index has it all
_WITHOUT_BATCH = "SELECT key FROM kie_job WHERE batch = '' AND key IN ({keys})"
BATCHES = "SELECT DISTINCT batch FROM kie_job WHERE batch <> '' ORDER BY batch"
SPENT = "SELECT coalesce(sum(cost), 0) FROM kie_job WHERE batch = :batch"
WRITE = """
UPDATE kie_job SET batch = :batch, state = :state, machine = :machine, account = :account, cost = :cost,
    changed_at = :changed_at, document = :document, checksum = :checksum, write_id = :write_id
WHERE key = :key AND write_id = :seen
"""


class AnyBatch(Enum):
    """Stands for all batches; tasks of plain sessions, which have no batch, are left out."""

    ANY_BATCH = "any batch"


ANY_BATCH: Final = AnyBatch.ANY_BATCH
BatchFilter: TypeAlias = str | AnyBatch | None


def page(states: Iterable[str], machines: Iterable[str], batch: BatchFilter, full: Collection[str] = ()) -> str:
    """Read a page state by state, so that an index leads to a few open jobs past a million others.

    Args:
        states: names of the parameters that hold the states.
        machines: names of those that hold the machines that jobs wait for; none for all jobs.
        batch: None for all jobs.
        full: names of those that hold batches whose planned jobs are left out.
    """
    each = [f"state = :{state}" for state in states]
    if machines := list(machines):
        each = [f"{state} AND machine = :{machine}" for state, machine in product(each, machines)]
    if full:
        names = ", ".join(f":{name}" for name in full)
        each = [f"{one} AND (state <> 'planned' OR batch NOT IN ({names}))" for one in each]
    parts = (_POSITIONS.format(condition=one, of_batch=of_batch(batch), number=n) for n, one in enumerate(each))
    return _PAGE.format(positions=" UNION ALL ".join(parts))


def counts(batch: BatchFilter) -> str:
    """Count the jobs of each batch in each state."""
    return _COUNTS.format(of_batch=of_batch(batch))


def of_batch(batch: BatchFilter) -> str:
    """A condition that limits a statement to one batch, or to all; None for none."""
    if batch is ANY_BATCH:
        return "AND batch > ''"
    return "" if batch is None else "AND batch = :batch"


def without_batch(keys: Iterable[str]) -> str:
    """Find which of some jobs are of no batch.

    Args:
        keys: names of the parameters that hold their keys.
    """
    return _WITHOUT_BATCH.format(keys=", ".join(f":{key}" for key in keys))


# ---------------------------------------------------------------- with the write of a job, in its transaction

INSERT_ATTEMPT = """
INSERT INTO kie_attempt (token, key, number, task_id, process_id, intended_at, checksum)
SELECT :token, :key, :number, NULL, :process_id, :intended_at, :checksum FROM kie_job
WHERE key = :key AND write_id = :write_id
    AND NOT EXISTS (SELECT 1 FROM kie_attempt WHERE token = :token AND key = :key AND number = :number)
"""
NAME_TASK = """
UPDATE kie_attempt SET task_id = :task_id, checksum = :checksum
WHERE token = :token AND EXISTS (SELECT 1 FROM kie_job WHERE key = :key AND write_id = :write_id)
"""
SAVE_UPLOAD = """
INSERT INTO kie_upload (sha256, uploaded_at, document, checksum)
SELECT :sha256, :uploaded_at, :document, :checksum FROM kie_job WHERE key = :key AND write_id = :write_id
ON CONFLICT (sha256) DO UPDATE
SET uploaded_at = excluded.uploaded_at, document = excluded.document, checksum = excluded.checksum
WHERE kie_upload.uploaded_at <= excluded.uploaded_at
"""
ATTEMPTS = """
SELECT token, key, number, task_id, process_id, intended_at, checksum FROM kie_attempt WHERE key = :key ORDER BY number
"""
OPEN_PROCESSES = """
SELECT DISTINCT process_id FROM kie_job JOIN kie_attempt USING (key)
WHERE state IN ('intent', 'submitted')
    AND number = (SELECT max(number) FROM kie_attempt AS earlier WHERE earlier.key = kie_job.key)
"""
UPLOADED = """
SELECT sha256, uploaded_at, document, checksum FROM kie_upload WHERE sha256 = :sha256 AND uploaded_at >= :since
"""

# ---------------------------------------------------------------- callbacks

EXPECTED = """
SELECT kie_attempt.task_id, kie_job.state FROM kie_attempt JOIN kie_job USING (key) WHERE token = :token
"""
SAVE_CALLBACK = """
INSERT INTO kie_callback (token, task_id, stage, received_at, checksum)
VALUES (:token, :task_id, :stage, :received_at, :checksum) ON CONFLICT DO NOTHING
"""
CALLBACKS = """
SELECT token, task_id, stage, received_at, checksum FROM kie_callback WHERE token = :token OR task_id = :task_id
ORDER BY position
"""
LAST_POSITION = "SELECT coalesce(max(position), 0) FROM kie_callback"
NEW_CALLBACKS = """
SELECT position, token, task_id, stage, received_at, checksum FROM kie_callback WHERE position > :after
ORDER BY position LIMIT 500
"""
PRUNE = """
DELETE FROM kie_callback WHERE position IN (
    SELECT kie_callback.position FROM kie_callback LEFT JOIN kie_attempt ON kie_attempt.token = kie_callback.token
        LEFT JOIN kie_job ON kie_job.key = kie_attempt.key
    WHERE received_at < :before
        AND (state IS NULL OR (changed_at < :before AND state NOT IN ({open_states})))
    LIMIT 500
)
"""

# ---------------------------------------------------------------- leases

LEASE = """
INSERT INTO kie_lease (name, process_id, expires_at) VALUES (:name, :process_id, :now + :seconds)
ON CONFLICT (name) DO UPDATE SET process_id = excluded.process_id, expires_at = excluded.expires_at
WHERE kie_lease.process_id IN (excluded.process_id, :dead) OR kie_lease.expires_at <= :now
"""
HOLDER = "SELECT process_id FROM kie_lease WHERE name = :name AND expires_at > :now"
RELEASE = "DELETE FROM kie_lease WHERE name = :name AND process_id = :process_id"
LIVING = "SELECT process_id FROM kie_lease WHERE name = 'process:' || process_id AND expires_at > :now"

# ---------------------------------------------------------------- the shared quota

GET_QUOTA = """
SELECT (SELECT document FROM kie_quota WHERE account = :account),
    (SELECT written FROM kie_quota WHERE account = :account), :boot, :tick
"""
WRITE_QUOTA = """
INSERT INTO kie_quota (account, document, written) VALUES (:account, :document, :written)
ON CONFLICT (account) DO UPDATE SET document = excluded.document, written = excluded.written
WHERE kie_quota.written = :seen
"""
