"""The tables of a journal as numbered migrations, in SQL that SQLite and PostgreSQL both speak.

A new database is made by all of them, an older one is upgraded by those that it lacks. A migration adds and renames; it
never changes what is in a row, for rows keep their checksums. Append a new one; those of a release stay as they are.
"""

from __future__ import annotations

from collections.abc import Mapping

from kie_async.errors import StorageError
from kie_async.journal._leases import is_dead
from kie_async.journal._sql import Rows

# A job's "document" is the job, and the truth; the columns beside it are for finding and counting, and the rows of
# kie_total are sums of them (``_totals``).
# Positions are given in the order of commits, so that whoever reads on from a position misses nothing.
# No statement holds a semicolon.
MIGRATIONS: Mapping[int, str] = {
    2: """
CREATE TABLE kie_job (
    position {position}, key text NOT NULL UNIQUE, batch text NOT NULL, state text NOT NULL,
    cost double precision NOT NULL, changed_at double precision NOT NULL, document text NOT NULL,
    checksum bigint NOT NULL, written text NOT NULL
);
CREATE INDEX kie_job_state ON kie_job (state, position);
CREATE INDEX kie_job_batch ON kie_job (batch, state, position, cost);
CREATE TABLE kie_attempt (
    token text PRIMARY KEY, key text NOT NULL, number integer NOT NULL, task_id text UNIQUE,
    process_id text NOT NULL, intended_at double precision NOT NULL, checksum bigint NOT NULL, UNIQUE (key, number)
);
CREATE TABLE kie_callback (
    position {position}, token text NOT NULL, task_id text NOT NULL, stage text NOT NULL,
    received_at double precision NOT NULL, checksum bigint NOT NULL, UNIQUE (token, task_id, stage)
);
CREATE INDEX kie_callback_task ON kie_callback (task_id);
CREATE TABLE kie_upload (
    sha256 text PRIMARY KEY, uploaded_at double precision NOT NULL, document text NOT NULL, checksum bigint NOT NULL
);
CREATE TABLE kie_lease (name text PRIMARY KEY, process_id text NOT NULL, expires_at double precision NOT NULL);
CREATE TABLE kie_quota (account text PRIMARY KEY, document text NOT NULL, written text NOT NULL);
""",
    # A process of version 2 that was only stopped goes on later and knows no totals: a column that all its statements
    # use has another name, so that it can neither read jobs nor write them, and submits nothing.
    3: """
ALTER TABLE kie_job RENAME COLUMN written TO write_id;
ALTER TABLE kie_job ADD COLUMN machine text NOT NULL DEFAULT '';
ALTER TABLE kie_job ADD COLUMN account text NOT NULL DEFAULT '';
CREATE INDEX kie_job_machine ON kie_job (machine, state, position) WHERE batch > '';
CREATE INDEX kie_job_account ON kie_job (account) WHERE state IN ('intent', 'submitted', 'unknown');
CREATE INDEX kie_attempt_time ON kie_attempt (intended_at, key);
CREATE TABLE kie_cap (name text PRIMARY KEY, max_credits double precision);
CREATE TABLE kie_total (
    name text NOT NULL, period bigint NOT NULL, credits double precision NOT NULL, extra double precision NOT NULL,
    PRIMARY KEY (name, period)
);
""",
}
VERSION = max(MIGRATIONS)


def migrations(version: int = 0, to: int = VERSION) -> str:
    """Return the statements that bring the tables of one version to another; ``{position}`` stands for a type.

    Args:
        version: of the tables; 0: there are none.
        to: the version wanted.
    """
    return "".join(script for number, script in MIGRATIONS.items() if version < number <= to)


def totals_error(name: object, wrong: int, address: str) -> StorageError:
    """The error of a database whose totals are not what its jobs have cost: a cap would be passed, or refuse too soon.

    Args:
        name: of the database, as it may be shown.
        wrong: how many totals are.
        address: what to give the command that counts them anew.
    """
    remedy = f"end all that works on it, then run: kie-async database upgrade --journal {address}"
    message = f"in {name}, {wrong} totals of spending are not what the jobs on record have cost: {remedy}"
    return StorageError(message, retryable=False)


def version_error(name: object, version: int, address: str) -> StorageError:
    """The error of a database of another version.

    Args:
        name: of the database, as it may be shown.
        version: that it has.
        address: what to give the command that upgrades it.
    """
    remedy = "finish its jobs with the kie_async that made it, or use another"
    if version in MIGRATIONS:
        remedy = f"end all that works on it, then run: kie-async database upgrade --journal {address}"
    message = f"{name} is of version {version}, and this kie_async knows version {VERSION}: {remedy}"
    return StorageError(message, retryable=False)


def ensure_unused(name: object, holders: Rows) -> None:
    """Refuse an upgrade while a session works on the database: one of the older version would go on with its tables.

    Args:
        name: of the database, as it may be shown.
        holders: the processes whose leases have not run out.

    Raises:
        StorageError: one of them may live.
    """
    living = sorted(process_id for (process_id,) in holders if not is_dead(process_id))
    if living:
        raise StorageError(
            f"{name} cannot be upgraded while {', '.join(living)} works on it: end that first, also if it is only "
            "stopped, for it would go on later"
        )
