"""PostgreSQL as a driver: the sole user of psycopg.

The statements of a transaction are sent at once, as one query, so that a process that is stopped holds no lock.
"""

from __future__ import annotations

import asyncio
import logging
import os
import random
import re
import time
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from functools import cache
from itertools import count
from typing import Any, LiteralString, Self, TypeAlias

import anyio
import anyio.lowlevel
import psycopg
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg.errors import InsufficientPrivilege, InvalidSchemaName, ReadOnlySqlTransaction, UniqueViolation
from psycopg.rows import dict_row
from psycopg_pool import AsyncConnectionPool

from kie_async._protocol.backoff import backoff
from kie_async.errors import ConflictError, SettingsError, StorageError
from kie_async.events import clean
from kie_async.journal import _sql
from kie_async.journal._diagnosis import (
    MISSING,
    SCHEMA,
    SEARCHED,
    SERVER,
    TABLES,
    Finding,
    SchemaFacts,
    ServerFacts,
    ambiguity,
    findings,
)
from kie_async.journal._schema import MIGRATIONS, VERSION, ensure_unused, migrations, version_error
from kie_async.journal._sql import Rows, Step
from kie_async.journal._totals import REBUILD, WRONG
from kie_async.settings import Secret

Connection: TypeAlias = psycopg.AsyncConnection[Any]

_AWAY = (psycopg.OperationalError, psycopg.InterfaceError, ReadOnlySqlTransaction, TimeoutError)
_LOCK = 0x6B69655F  # any number that nobody else uses
_MAX_CONNECTIONS = 2  # besides the one that listens; an engine has three of its own
_IDLE = 5.0  # seconds after which a watcher reads without a notification
PROBE_TIMEOUT = 1.0  # seconds within which a notification of our own comes, if they come at all
POLL_INTERVAL = 0.5  # seconds between two reads where they do not
# On disk, also where an administrator prefers speed. With the statements: a pooler takes no options of a connection.
_DURABLE = "SET LOCAL synchronous_commit TO on"
# What to do about an error that has no code of its own.
_HINTS: Mapping[str, str] = {
    "startup parameter: options": "; a pooler takes none: ALTER ROLE ... SET search_path = ... gives a schema",
    "certificate verify failed": "; sslrootcert must be the certificate of the server's authority",
}
_DEFAULTS: Mapping[str, Any] = {
    "application_name": "kie_async",
    "connect_timeout": 5,
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 15_000,
}
# No prepared statements: poolers do not bear them. Parameters are put in here, so that statements can be sent together.
_CONNECTION = {"autocommit": True, "prepare_threshold": None, "cursor_factory": psycopg.AsyncClientCursor}
# A position is given under a lock that lasts to the end of the transaction: so they come in the order of commits.
_SCHEMA = """
CREATE TABLE kie_schema (version integer NOT NULL);
INSERT INTO kie_schema VALUES ({version});
CREATE SEQUENCE kie_position;
CREATE FUNCTION kie_next_position() RETURNS bigint LANGUAGE sql AS $$
    SELECT pg_advisory_xact_lock({lock});
    SELECT pg_notify('kie_journal', '');
    SELECT nextval('kie_position');
$$;
"""
_UPGRADE = "UPDATE kie_schema SET version = {version};"
# A job that is added locks its table before it gets a position; in the other order the two would wait for each other.
_LOCK_JOBS = """
DO $$ BEGIN
    LOCK TABLE kie_job;
EXCEPTION WHEN undefined_table THEN NULL;
END $$
"""
_VERSION: LiteralString = "SELECT version FROM kie_schema"
_POSITION = "bigint PRIMARY KEY DEFAULT kie_next_position()"

logger = logging.getLogger("kie_async.journal")
for _name in ("psycopg", "psycopg.pool"):  # errors are raised; without a handler these would write to stderr
    logging.getLogger(_name).addHandler(logging.NullHandler())


class Postgres(anyio.AsyncContextManagerMixin):
    """A pool of connections to one database.

    Args:
        dsn: ``postgresql://user:password@host/database``, or libpq's other form. It is never shown.
        patience: seconds for which statements are run again while the database is away.

    Raises:
        SettingsError: the address cannot be read.
        StorageError: (entering) the database cannot be reached, or holds what another version has made.
    """

    def __init__(self, dsn: str | Secret, *, patience: float) -> None:
        self._address, self._name = read_address(dsn.reveal() if isinstance(dsn, Secret) else dsn)
        self._patience = patience
        self._pid = 0
        self._polls = False  # for notifications do not come through
        self._pool: AsyncConnectionPool[Connection] | None = None

    def __str__(self) -> str:
        return self._name

    @asynccontextmanager
    async def __asynccontextmanager__(self) -> AsyncGenerator[Self]:
        await self._prepare()
        self._pid = os.getpid()
        self._pool = pool = AsyncConnectionPool(
            self._address.reveal(),
            kwargs=_CONNECTION,
            min_size=0,
            max_size=_MAX_CONNECTIONS,
            open=False,
            reconnect_timeout=0,
        )
        await pool.open()
        try:
            yield self
        finally:
            self._pool = None
            if self._pid == os.getpid():  # after a fork, the connections are the parent's
                with anyio.CancelScope(shield=True):
                    await pool.close()

    async def run(self, *steps: Step) -> list[Rows]:
        """Run statements as one durable transaction, again and again while the database is away; see ``Driver``."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._patience
        cancellations = _cancellations()
        for attempt in count(1):
            try:
                rows = await self._run(steps)
            except _AWAY as error:
                delay = backoff(attempt, random.random, base=0.1, limit=1.0)
                if loop.time() + delay >= deadline:
                    raise self._storage_error(error) from None
                await anyio.sleep(delay)
            except UniqueViolation:
                raise ConflictError("something that must be unique is there already") from None
            except psycopg.Error as error:
                raise self._storage_error(error) from None
            else:
                if _cancellations() > cancellations:  # pragma: no cover  # psycopg's wait_for of Python 3.11 loses one
                    await anyio.lowlevel.checkpoint_if_cancelled()  # of a scope
                    raise asyncio.CancelledError
                return rows
        raise AssertionError  # pragma: no cover (the loop has no end of its own)

    async def check(self) -> None:
        """Do nothing: a database does not move while it is in use."""

    async def _run(self, steps: tuple[Step, ...]) -> list[Rows]:
        pool = self._open_pool()
        connection = await pool.getconn(self._patience / 2)
        try:
            with anyio.fail_after(self._patience / 2, shield=True):  # a query cut off would cost the connection
                return await _execute(connection, steps)
        finally:
            with anyio.CancelScope(shield=True):
                await pool.putconn(connection)

    def _open_pool(self) -> AsyncConnectionPool[Connection]:
        if self._pool is None or self._pid != os.getpid():
            message = f"{self._name} is not open in this process: enter the journal with 'async with'"
            raise StorageError(message, retryable=False)
        return self._pool

    def watch(self) -> AsyncGenerator[None]:
        """Yield after each notification and interruption, and every few seconds; see ``Driver``."""
        self._open_pool()
        return self._watch()

    async def _watch(self) -> AsyncGenerator[None]:
        failures = 0
        while not self._polls:
            try:
                async with self._connection() as connection:
                    self._polls = await self._listen(connection)
                    failures = 0
                    if self._polls:
                        logger.info("%s sends no notifications through its pooler: it is read twice a second", self)
                    while not self._polls:
                        yield
                        async for _ in connection.notifies(timeout=_IDLE, stop_after=1):
                            pass
            except psycopg.Error:
                failures += 1
                await anyio.sleep(backoff(failures, random.random, base=0.1, limit=2.0))
        while True:
            yield
            await anyio.sleep(POLL_INTERVAL)

    async def _listen(self, connection: Connection) -> bool:
        """Listen, and tell whether a pooler lets no notifications through, though LISTEN succeeds.

        Behind a pooler, the process number of a connection is not the one that the database knows. Then a notification
        of our own shows whether they come through.
        """
        await connection.execute("LISTEN kie_journal")
        if await _value(connection, "SELECT pg_backend_pid()") == connection.info.backend_pid:
            return False
        async with self._connection() as another:
            await another.execute("NOTIFY kie_journal")
        return not [each async for each in connection.notifies(timeout=PROBE_TIMEOUT, stop_after=1)]

    @asynccontextmanager
    async def _connection(self) -> AsyncGenerator[Connection]:
        """A connection for one use. psycopg's own block would roll back first, and not close if that is cancelled."""
        options: Any = _CONNECTION
        connection = await psycopg.AsyncConnection.connect(self._address.reveal(), **options)
        try:
            yield connection
        finally:
            await connection.close()

    async def _prepare(self) -> None:
        """Make the tables if they are not there; whoever comes at the same time waits."""
        async with self._schema() as (connection, version):
            if not version:
                await _migrate(connection, 0)
        if version not in {0, VERSION}:
            raise self._version_error(version)

    async def upgrade(self) -> int:
        """Bring the tables of an older version to the newest; see ``Driver``."""
        async with self._schema(_LOCK_JOBS) as (connection, version):
            if not version:
                raise StorageError(f"{self._name} has no tables: kie-async database create", retryable=False)
            if version not in MIGRATIONS:
                raise self._version_error(version)
            [holders] = await _execute(connection, ((_sql.LIVING, {}),))
            ensure_unused(self._name, holders)
            if version != VERSION:
                await _migrate(connection, version)
            await _execute(connection, tuple((statement, {}) for statement in REBUILD))
            return version

    async def diagnose(self) -> list[Finding]:
        """Find out what hinders, and change nothing; see ``Driver``."""
        try:
            async with self._connection() as connection:
                cursor = connection.cursor(row_factory=dict_row)
                [row] = await (await cursor.execute(SCHEMA)).fetchall()
                schema = SchemaFacts(**row)
                [row] = await (await cursor.execute(SERVER)).fetchall()
                row["clock"] -= time.time()
                row["ambiguous"] = [told for table in TABLES if (told := (await _search(connection, table))[1])]
                missing = tuple(grant for (grant,) in await (await connection.execute(MISSING)).fetchall())
                version = await _value(connection, _VERSION) if schema.is_found and not missing else None
                [wrong] = await _execute(connection, ((WRONG, {}),)) if version == VERSION else [[]]
                is_silent = not row["is_read_only"] and await self._listen(connection)  # a standby would refuse it
        except psycopg.Error as error:
            raise self._storage_error(error) from None
        facts = ServerFacts(**row, missing=missing, version=version, wrong=len(wrong), is_silent=is_silent)
        return [*findings(schema, facts)]

    @asynccontextmanager
    async def _schema(self, first: str = "") -> AsyncGenerator[tuple[Connection, int]]:
        """A transaction in which nobody else makes or changes the tables, and their version; 0: there are none.

        It begins with the statement given.
        """
        try:
            async with self._connection() as connection, connection.transaction():
                await connection.execute(f"{first}; SELECT pg_advisory_xact_lock({_LOCK})".encode())
                is_made, ambiguous = await _search(connection, "kie_schema")
                if ambiguous:
                    raise StorageError(f"{self._name} cannot be used: {ambiguous}", retryable=False)
                yield connection, await _value(connection, _VERSION) if is_made else 0
        except psycopg.Error as error:
            raise self._storage_error(error) from None

    def _version_error(self, version: int) -> StorageError:
        return version_error(self._name, version, "postgresql://...")

    def _storage_error(self, error: Exception) -> StorageError:
        message = f"{self._name} cannot be used: {_words(error)}"
        if "permission denied for database" in message:
            names = conninfo_to_dict(self._address.reveal())
            database, role = (sql.Identifier(str(names.get(part, "..."))).as_string() for part in ("dbname", "user"))
            grant = f"GRANT CONNECT ON DATABASE {database} TO {role}"
            message = f"{self._name} cannot be used: the role {role} may not connect: {grant}"
            return StorageError(message, retryable=False)
        if isinstance(error, InsufficientPrivilege | InvalidSchemaName):
            message += "; what mends it is said by: kie-async database check --journal postgresql://..."
        message += "".join(hint for words, hint in _HINTS.items() if words in message)
        return StorageError(message, retryable=isinstance(error, _AWAY))


def _cancellations() -> int:
    """How often the current task was cancelled."""
    task = asyncio.current_task()
    return 0 if task is None else task.cancelling()


async def _value(connection: Connection, statement: LiteralString) -> int:
    [[value]] = await (await connection.execute(statement)).fetchall()
    return int(value)


async def _search(connection: Connection, table: str) -> tuple[bool, str]:
    """Tell whether a table is in the search path, and what is wrong if it is there more than once."""
    cursor = await connection.execute(SEARCHED.format(table=table).encode())
    [(search_path, schemas)] = await cursor.fetchall()
    return bool(schemas), ambiguity(TABLES[table], search_path, schemas)


async def _migrate(connection: Connection, version: int) -> None:
    begin = _UPGRADE if version else _SCHEMA
    script = begin.format(version=VERSION, lock=_LOCK) + migrations(version).format(position=_POSITION)
    await connection.execute(script.encode())


@cache
def _query(statement: str) -> bytes:
    """Write a statement's parameters as psycopg does, and put in the clock."""
    now = "extract(epoch FROM clock_timestamp())::float8"
    for name, value in {"now": now, "tick": now, "boot": "''"}.items():
        statement = re.sub(rf":{name}\b", value, statement)
    return re.sub(r"(?<!:):([a-z]\w*)", r"%(\1)s", statement).encode()


async def _execute(connection: Connection, steps: tuple[Step, ...]) -> list[Rows]:
    cursor = psycopg.AsyncClientCursor(connection)
    texts = [cursor.mogrify(_query(statement), values) for statement, values in steps]
    await cursor.execute(";".join([_DURABLE, *texts]).encode())
    results: list[Rows] = []
    while cursor.nextset():
        results.append(await _rows(cursor))
    return results


async def _rows(cursor: psycopg.AsyncCursor[Any]) -> Rows:
    return await cursor.fetchall() if cursor.description else [()] * cursor.rowcount


async def commit_at_once(connection: Connection) -> None:
    """Let no transaction stay open until the event loop comes round: a process that is stopped holds no lock."""
    await connection.set_autocommit(True)


def read_address(dsn: str) -> tuple[Secret, str]:
    """The whole address for psycopg, and what of it may be shown."""
    try:
        parts = conninfo_to_dict(dsn)
    except psycopg.Error:
        raise SettingsError("the database's address cannot be read: postgresql://user:password@host/name") from None
    host, port, name = (str(parts.get(part) or "") for part in ("host", "port", "dbname"))
    if "@" in host + name or (port and not port.replace(",", "").isdecimal()):
        raise SettingsError("the database's address cannot be read: write @ : / ? % in its password as %40 and so on")
    return Secret(make_conninfo(**{**_DEFAULTS, **parts})), f"the database {name or 'of your name'}"


def _words(error: Exception) -> str:
    """What a foreign error says; of a connection, without anything quoted: that can be a part of the address."""
    if isinstance(error, psycopg.Error) and error.diag.message_primary:
        return clean(error.diag.message_primary)
    lines = str(error).splitlines()
    return re.sub(r'"[^"]*"', "…", clean(lines[0])) if lines else type(error).__name__
