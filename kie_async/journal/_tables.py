"""The tables of a SQLite journal, and what is done with them: functions of a connection, run by its thread.

A row is a document and the columns it is found by. The document is the truth; a seal over the whole row shows when
the disk has changed any of it. Writes run inside a transaction of their caller's.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Mapping
from contextlib import closing
from typing import Any, TypeVar
from zlib import crc32

import attrs

from kie_async._protocol.wire import pack, unpack
from kie_async.errors import BadResponseError, ConflictError
from kie_async.journal._job import Attempt, InboundCallback, Job, Source
from kie_async.journal._moves import attempt_of, cost, intended, is_awaited, is_spent, moved
from kie_async.journal._owner import is_gone
from kie_async.journal._states import State

T = TypeVar("T")

SCHEMA = """
BEGIN;
CREATE TABLE job (
    place INTEGER PRIMARY KEY, key TEXT NOT NULL UNIQUE, batch TEXT NOT NULL, state TEXT NOT NULL,
    cost REAL NOT NULL, document TEXT NOT NULL, seal INTEGER NOT NULL
);
CREATE INDEX job_state ON job (state, place);
CREATE INDEX job_batch ON job (batch, state, place, cost);
CREATE TABLE attempt (
    id INTEGER PRIMARY KEY, key TEXT NOT NULL, token TEXT NOT NULL UNIQUE, task_id TEXT UNIQUE,
    document TEXT NOT NULL, seal INTEGER NOT NULL
);
CREATE INDEX attempt_key ON attempt (key);
CREATE TABLE heard (
    id INTEGER PRIMARY KEY, token TEXT NOT NULL, task_id TEXT NOT NULL, stage TEXT NOT NULL,
    document TEXT NOT NULL, seal INTEGER NOT NULL, UNIQUE (token, task_id, stage)
);
CREATE INDEX heard_task ON heard (task_id);
CREATE TABLE upload (
    sha256 TEXT PRIMARY KEY, uploaded_at REAL NOT NULL, document TEXT NOT NULL, seal INTEGER NOT NULL
);
CREATE TABLE lease (name TEXT PRIMARY KEY, owner TEXT NOT NULL, until REAL NOT NULL);
COMMIT;
"""

_JOB = "SELECT key, batch, state, cost, document, seal FROM job"
_ATTEMPT = "SELECT key, token, task_id, document, seal FROM attempt"
_HEARD = "SELECT token, task_id, stage, document, seal FROM heard"
_UPLOAD = "SELECT sha256, uploaded_at, document, seal FROM upload"


class DamageError(sqlite3.DatabaseError):
    """A row is not what was written."""


# ---------------------------------------------------------------- rows


def _sealed(*columns: object) -> tuple[Any, ...]:
    """The columns of a row, and its seal."""
    return (*columns, crc32("\0".join(map(str, columns)).encode()))


def _read(kind: type[T], row: tuple[Any, ...]) -> T:
    """The document of a row whose seal is right."""
    *columns, document, _seal = row
    if row != _sealed(*columns, document):
        raise DamageError(f"a {kind.__name__.lower()} is not what was written")
    try:
        return unpack(document, kind)
    except BadResponseError as error:
        raise DamageError(error.message) from None


def _job_row(job: Job) -> tuple[Any, ...]:
    return _sealed(job.key, job.batch, job.state.value, cost(job), pack(job))


def check_schema(connection: sqlite3.Connection) -> None:
    """Compare the tables with what they should be.

    Raises:
        DamageError: they are others.
    """
    statement = "SELECT type, name, tbl_name, sql FROM sqlite_master ORDER BY name"
    with closing(sqlite3.connect(":memory:")) as model:
        model.executescript(SCHEMA)
        if connection.execute(statement).fetchall() != model.execute(statement).fetchall():
            raise DamageError("its tables are not as they were made")


def check(connection: sqlite3.Connection) -> None:
    """Read everything.

    Raises:
        DamageError: something is not what was written.
    """
    kinds: Mapping[str, type[object]] = {_JOB: Job, _ATTEMPT: Attempt, _HEARD: InboundCallback, _UPLOAD: Source}
    for statement, kind in kinds.items():
        for row in connection.execute(statement):
            _read(kind, row)


# ---------------------------------------------------------------- jobs, read


def get(connection: sqlite3.Connection, key: str) -> Job | None:
    row = connection.execute(f"{_JOB} WHERE key = ?", (key,)).fetchone()
    return _read(Job, row) if row else None


def find(connection: sqlite3.Connection, token: str | None, task_id: str | None) -> Job | None:
    for statement, name in ((f"{_ATTEMPT} WHERE token = ?", token), (f"{_ATTEMPT} WHERE task_id = ?", task_id)):
        row = connection.execute(statement, (name,)).fetchone()  # nothing equals NULL
        if row:
            return get(connection, _read(Attempt, row).key)
    return None


def page(
    connection: sqlite3.Connection, states: Iterable[State], batch: str | None, after: int, limit: int
) -> list[tuple[int, Job]]:
    """Read a page: the first places of each state by its index, and of those the first of all."""
    statement = "SELECT place FROM job WHERE state = ?1 AND place > ?2 ORDER BY place LIMIT ?3"
    if batch is not None:
        statement = "SELECT place FROM job WHERE batch = ?4 AND state = ?1 AND place > ?2 ORDER BY place LIMIT ?3"
    bounds = (after, limit) if batch is None else (after, limit, batch)
    places = sorted(place for state in states for (place,) in connection.execute(statement, (state.value, *bounds)))
    return [(place, _at(connection, place)) for place in places[:limit]]


def _at(connection: sqlite3.Connection, place: int) -> Job:
    return _read(Job, connection.execute(f"{_JOB} WHERE place = ?", (place,)).fetchone())


def counts(connection: sqlite3.Connection, batch: str | None) -> Mapping[State, int]:
    if batch is None:
        rows = connection.execute("SELECT state, count(*) FROM job GROUP BY state")
    else:
        rows = connection.execute("SELECT state, count(*) FROM job WHERE batch = ? GROUP BY state", (batch,))
    found = dict(rows.fetchall())
    return {state: found.get(state.value, 0) for state in State}


def spent(connection: sqlite3.Connection, batch: str) -> float:
    (amount,) = connection.execute("SELECT total(cost) FROM job WHERE batch = ?", (batch,)).fetchone()
    return float(amount)


def attempts(connection: sqlite3.Connection, key: str) -> list[Attempt]:
    return [_read(Attempt, row) for row in connection.execute(f"{_ATTEMPT} WHERE key = ? ORDER BY id", (key,))]


# ---------------------------------------------------------------- jobs, written


def add(connection: sqlite3.Connection, jobs: Iterable[Job]) -> int:
    before = connection.total_changes
    connection.executemany(
        "INSERT INTO job (key, batch, state, cost, document, seal) VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING",
        map(_job_row, jobs),
    )
    return connection.total_changes - before


def intend(connection: sqlite3.Connection, key: str, token: str, owner: str, at: float) -> Job:
    job = intended(_existing(connection, key), token, owner, at)
    _store(connection, job)
    _store_attempt(
        connection, "INSERT INTO attempt (key, token, task_id, document, seal) VALUES (?, ?, ?, ?, ?)", attempt_of(job)
    )
    return job


def move(  # noqa: PLR0913, PLR0917  # what ``Journal.move`` takes
    connection: sqlite3.Connection, key: str, to: State, token: str | None, facts: Mapping[str, Any], at: float
) -> Job:
    before = _existing(connection, key)
    job = moved(before, to, facts, token=token, at=at)
    _store(connection, job)
    if job.task_id != before.task_id and job.token is not None:
        _store_attempt(
            connection,
            "UPDATE attempt SET key = ?1, task_id = ?3, document = ?4, seal = ?5 WHERE token = ?2",
            attempt_of(job),
        )
    return job


def _existing(connection: sqlite3.Connection, key: str) -> Job:
    job = get(connection, key)
    if job is None:
        raise ConflictError(f"the journal has no job {key!r}")
    return job


def _store(connection: sqlite3.Connection, job: Job) -> None:
    connection.execute(
        "UPDATE job SET key = ?1, batch = ?2, state = ?3, cost = ?4, document = ?5, seal = ?6 WHERE key = ?1",
        _job_row(job),
    )


def _store_attempt(connection: sqlite3.Connection, statement: str, attempt: Attempt) -> None:
    try:
        connection.execute(statement, _sealed(attempt.key, attempt.token, attempt.task_id, pack(attempt)))
    except sqlite3.IntegrityError:
        what = "the token" if attempt.task_id is None else f"task {attempt.task_id}"
        raise ConflictError(f"{what} is another attempt's", attempt.task_id) from None


# ---------------------------------------------------------------- uploads


def upload(connection: sqlite3.Connection, key: str, source: Source) -> None:
    _store(connection, attrs.evolve(_existing(connection, key), source=source))
    if source.upload_url is not None and source.uploaded_at is not None:
        connection.execute(
            "INSERT INTO upload (sha256, uploaded_at, document, seal) VALUES (?, ?, ?, ?) ON CONFLICT (sha256) "
            "DO UPDATE SET uploaded_at = excluded.uploaded_at, document = excluded.document, seal = excluded.seal "
            "WHERE excluded.uploaded_at >= uploaded_at",
            _sealed(source.sha256, source.uploaded_at, pack(source)),
        )


def uploaded(connection: sqlite3.Connection, sha256: str, since: float) -> Source | None:
    row = connection.execute(f"{_UPLOAD} WHERE sha256 = ? AND uploaded_at >= ?", (sha256, since)).fetchone()
    return _read(Source, row) if row else None


# ---------------------------------------------------------------- callbacks


def is_expected(connection: sqlite3.Connection, callback: InboundCallback) -> bool:
    row = connection.execute(f"{_ATTEMPT} WHERE token = ?", (callback.token,)).fetchone()
    if row is None:
        return False
    attempt = _read(Attempt, row)
    return is_awaited(callback, attempt.task_id, _existing(connection, attempt.key).state)


def save_callback(connection: sqlite3.Connection, callback: InboundCallback) -> None:
    connection.execute(
        "INSERT INTO heard (token, task_id, stage, document, seal) VALUES (?, ?, ?, ?, ?) ON CONFLICT DO NOTHING",
        _sealed(callback.token, callback.task_id, callback.stage, pack(callback)),
    )


def callbacks_for(connection: sqlite3.Connection, token: str | None, task_id: str | None) -> list[InboundCallback]:
    rows = connection.execute(f"{_HEARD} WHERE token = ? OR task_id = ? ORDER BY id", (token, task_id))
    return [_read(InboundCallback, row) for row in rows]


def prune(connection: sqlite3.Connection, after: int, before: float) -> tuple[int, int] | None:
    """Delete what is spent of some callbacks, but never the last: listeners count on places that only grow.

    Returns:
        The place of the last that was looked at, and how many went; None if there were none to look at.
    """
    rows = connection.execute(
        "SELECT id, token, task_id, stage, document, seal FROM heard "
        "WHERE id > ? AND id < (SELECT max(id) FROM heard) ORDER BY id LIMIT 100",
        (after,),
    ).fetchall()
    spent_ids = []
    for place, *row in rows:
        callback = _read(InboundCallback, tuple(row))
        if is_spent(callback, find(connection, callback.token, None), before):
            spent_ids.append((place,))
    connection.executemany("DELETE FROM heard WHERE id = ?", spent_ids)
    return (rows[-1][0], len(spent_ids)) if rows else None


def last_heard(connection: sqlite3.Connection) -> int:
    (last,) = connection.execute("SELECT coalesce(max(id), 0) FROM heard").fetchone()
    return int(last)


def heard_after(connection: sqlite3.Connection, after: int) -> list[tuple[int, InboundCallback]]:
    """Read callbacks that came after another, and their places."""
    rows = connection.execute(
        "SELECT id, token, task_id, stage, document, seal FROM heard WHERE id > ? ORDER BY id LIMIT 500", (after,)
    )
    return [(place, _read(InboundCallback, tuple(row))) for place, *row in rows]


# ---------------------------------------------------------------- leases


def lease(connection: sqlite3.Connection, name: str, owner: str, now: float, seconds: float) -> None:
    row = connection.execute("SELECT owner, until FROM lease WHERE name = ?", (name,)).fetchone()
    if row:
        holder, until = row
        if holder != owner and until > now and not is_gone(holder):
            raise ConflictError(f"{name!r} is in the hands of {holder}: wait for it, or end that process")
    connection.execute(
        "INSERT OR REPLACE INTO lease (name, owner, until) VALUES (?, ?, ?)", (name, owner, now + seconds)
    )


def release(connection: sqlite3.Connection, owner: str, names: Iterable[str]) -> None:
    connection.executemany("DELETE FROM lease WHERE name = ? AND owner = ?", [(name, owner) for name in names])
