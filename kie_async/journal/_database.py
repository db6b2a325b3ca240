"""PostgreSQL: the sole user of psycopg.

Every statement is a transaction of its own, so that a stopped process holds no lock; what must be one step is one
statement. A statement may be tried again after a lost connection, and must find out by itself whether it happened.
"""

from __future__ import annotations

import asyncio
import os
import random
import re
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from importlib.resources import files
from itertools import count
from typing import Any, LiteralString, Self, TypeAlias

import anyio
import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg.errors import ReadOnlySqlTransaction, UniqueViolation
from psycopg.pq import TransactionStatus

from kie_async._protocol.retry import backoff
from kie_async.errors import ConflictError, SettingsError, StorageError
from kie_async.events import clean
from kie_async.settings import Secret

Values: TypeAlias = Mapping[str, object]
Rows: TypeAlias = list[tuple[Any, ...]]
Connection: TypeAlias = psycopg.AsyncConnection[Any]

SCHEMA_VERSION = 1

_SCHEMA = files(__package__) / "_schema.sql"
_AWAY = (psycopg.OperationalError, psycopg.InterfaceError, ReadOnlySqlTransaction, TimeoutError)
_SCHEMA_LOCK = 0x6B69655F  # any number that nobody else uses
_IDLE = 5.0  # seconds after which a listener looks without being told
_DURABLE = "-c synchronous_commit=on"  # on disk, also where an administrator prefers speed
_DEFAULTS: Mapping[str, Any] = {
    "application_name": "kie_async",
    "connect_timeout": 5,
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 15_000,
}


class Database(anyio.AsyncContextManagerMixin):
    """A way to one database, entered with ``async with``; it makes lost connections anew.

    Args:
        dsn: ``postgresql://user:password@host/database``, or libpq's other form. It is never shown.
        connections: at most so many at once, without those that listen.
        patience: seconds for which a statement is tried again while the database is away.

    Raises:
        SettingsError: the address cannot be read.
        StorageError: (entering) the database cannot be reached, or holds what another version has made.
    """

    def __init__(self, dsn: str | Secret, *, connections: int, patience: float) -> None:
        self._address, self._name = read_address(dsn.reveal() if isinstance(dsn, Secret) else dsn)
        self._places = anyio.Semaphore(connections)
        self._patience = patience
        self._idle: list[Connection] = []
        self._home: int | None = None  # the process it is open in: a fork must not use its connections

    def __str__(self) -> str:
        return self._name

    @asynccontextmanager
    async def __asynccontextmanager__(self) -> AsyncGenerator[Self]:
        await self._prepare()
        self._home = os.getpid()
        try:
            yield self
        finally:
            self._home = None
            await self._drop_idle()

    async def execute(self, statement: str, values: Values | None = None) -> Rows:
        """Run one statement, again and again while the database is away, and return its rows.

        Raises:
            ConflictError: something that must be unique is there already.
            StorageError: the database stayed away, or refused.
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._patience
        for attempt in count(1):
            try:
                with anyio.fail_after(self._patience / 2):
                    return await self._once(statement, values)
            except _AWAY as error:
                delay = backoff(attempt, random.random, base=0.1, limit=1.0)
                if loop.time() + delay >= deadline:
                    raise self._storage_error(error) from None
                await anyio.sleep(delay)
            except UniqueViolation:
                raise ConflictError("something that must be unique is there already") from None
            except psycopg.Error as error:
                raise self._storage_error(error) from None
        raise AssertionError  # pragma: no cover (the loop has no end of its own)

    async def _once(self, statement: str, values: Values | None) -> Rows:
        async with self._connection() as connection:
            with anyio.fail_after(self._patience / 2, shield=True):  # a statement cut off would cost the connection
                cursor = await connection.execute(statement.encode(), values)
                return await cursor.fetchall() if cursor.description else []

    # No psycopg_pool: its check of connections can hang when one was cut, and swallows cancellation (psycopg #1401).
    # Here a connection is thrown away when a statement finds it broken; the statement is tried again anyway.
    @asynccontextmanager
    async def _connection(self) -> AsyncGenerator[Connection]:
        async with self._places:
            if self._home != os.getpid():
                raise StorageError(f"{self._name} is not open in this process", retryable=False)
            connection = self._idle.pop() if self._idle else await self._connect()
            try:
                yield connection
            except _AWAY:
                await self._drop_idle()  # the others have died with it
                raise
            finally:
                await self._put_back(connection)

    async def _put_back(self, connection: Connection) -> None:
        if self._home is not None and connection.info.transaction_status is TransactionStatus.IDLE:
            self._idle.append(connection)
        else:
            await connection.close()

    async def _drop_idle(self) -> None:
        while self._idle:
            await self._idle.pop().close()

    async def wakes(self, channel: str) -> AsyncGenerator[None]:
        """Give a sign when something may have happened: after a notification, each interruption, and now and then.

        Args:
            channel: the notifications listened to. Several may come as one sign, so look at all there is.

        Keeps trying while the database is away, until it is cancelled or closed.
        """
        failures = 0
        while True:
            try:
                async with self._passing() as connection:
                    await connection.execute(f"LISTEN {channel}".encode())
                    failures = 0
                    while True:
                        yield
                        async for _ in connection.notifies(timeout=_IDLE, stop_after=1):
                            pass
            except psycopg.Error:
                failures += 1
                await anyio.sleep(backoff(failures, random.random, base=0.1, limit=2.0))

    async def _connect(self) -> Connection:
        # Nothing is prepared, for poolers would mind.
        return await psycopg.AsyncConnection.connect(self._address.reveal(), autocommit=True, prepare_threshold=None)

    @asynccontextmanager
    async def _passing(self) -> AsyncGenerator[Connection]:
        """A connection for one use. psycopg's own block would roll back first, and not close if that is cancelled."""
        connection = await self._connect()
        try:
            yield connection
        finally:
            await connection.close()

    async def _prepare(self) -> None:
        """Make the tables if they are not there; whoever comes at the same time waits."""
        try:
            async with self._passing() as connection, connection.transaction():
                await connection.execute("SELECT pg_advisory_xact_lock(%s)", [_SCHEMA_LOCK])
                if await _value(connection, "SELECT to_regclass('kie_schema') IS NULL"):
                    await connection.execute(_SCHEMA.read_bytes())
                version = await _value(connection, "SELECT version FROM kie_schema")
        except psycopg.Error as error:
            raise self._storage_error(error) from None
        if version != SCHEMA_VERSION:
            raise StorageError(
                f"{self._name} is of version {version}, and this kie_async knows version {SCHEMA_VERSION}: "
                "use the kie_async that made it, or another database",
                retryable=False,
            )

    def _storage_error(self, error: Exception) -> StorageError:
        message = f"{self._name} cannot be used: {_words(error)}"
        return StorageError(message, retryable=isinstance(error, _AWAY))


async def _value(connection: Connection, statement: LiteralString) -> Any:  # noqa: ANN401  # a column is anything
    row = await (await connection.execute(statement)).fetchone()
    return row[0] if row else None


def read_address(dsn: str) -> tuple[Secret, str]:
    """The whole address for psycopg, and what of it may be shown."""
    try:
        parts = conninfo_to_dict(dsn)
    except psycopg.Error:
        raise SettingsError("the database's address cannot be read: postgresql://user:password@host/name") from None
    host, port, name = (str(parts.get(part) or "") for part in ("host", "port", "dbname"))
    if "@" in host + name or (port and not port.replace(",", "").isdecimal()):
        raise SettingsError("the database's address cannot be read: write @ : / ? % in its password as %40 and so on")
    options = f"{parts.get('options') or ''} {_DURABLE}"
    return Secret(make_conninfo(**{**_DEFAULTS, **parts, "options": options})), f"the database {name or 'of your name'}"


def _words(error: Exception) -> str:
    """What a foreign error says; of a connection, without anything quoted: that can be a part of the address."""
    if isinstance(error, psycopg.Error) and error.diag.message_primary:
        return clean(error.diag.message_primary)
    lines = str(error).splitlines()
    return re.sub(r'"[^"]*"', "…", clean(lines[0])) if lines else type(error).__name__
