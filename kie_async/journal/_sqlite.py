"""SQLite as a driver: a file of this machine, for any number of processes. One thread works on the connection.

Every write is durable (fsync) before ``run`` returns, and stands in the file itself, not in its log alone.
"""

from __future__ import annotations

import asyncio
import os
import sqlite3
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, nullcontext, suppress
from functools import partial
from pathlib import Path
from typing import Self, TypeVar

import anyio

from kie_async._client.lifetime import until_done
from kie_async.errors import ConflictError, StorageError
from kie_async.journal._diagnosis import Finding
from kie_async.journal._leases import boot_id
from kie_async.journal._sql import Rows, Step
from kie_async.journal._sqlite_file import (
    FAILURES,
    JournalPath,
    check_totals,
    explain,
    open_file,
    transaction,
    upgrade_file,
)

T = TypeVar("T")

_NOT_UNIQUE = (sqlite3.SQLITE_CONSTRAINT_UNIQUE, sqlite3.SQLITE_CONSTRAINT_PRIMARYKEY)
_IDLE = 5.0  # seconds after which a watcher reads though nothing is known to have changed

_BOOT = boot_id()


class SQLite(anyio.AsyncContextManagerMixin):
    """One connection to a file, in a thread of its own.

    Args:
        path: of the file, absolute; made if it is not there.
        patience: seconds to wait for another process that is writing.
        poll: seconds between two checks for what other processes have written.

    Raises:
        StorageError: (entering) it is no journal, damaged, of another version, or cannot be used; (leaving) it was
            moved or deleted meanwhile. A whole copy is at its path then.
    """

    def __init__(self, path: Path, *, patience: float, poll: float) -> None:
        self.path = path
        self._patience = patience
        self._poll = poll
        self._pid = os.getpid()
        self._thread: ThreadPoolExecutor | None = None
        self._connection: sqlite3.Connection  # while it is open
        self._file = JournalPath(path, patience)
        self._watchers: set[asyncio.Event] = set()

    def __str__(self) -> str:
        return str(self.path)

    @asynccontextmanager
    async def __asynccontextmanager__(self) -> AsyncGenerator[Self]:
        self._pid = os.getpid()
        self._thread = thread = ThreadPoolExecutor(1, "kie-journal")
        try:
            await self._call(self._open)
            yield self
        finally:
            self._thread = None
            if self._pid == os.getpid():  # after a fork, the thread is the parent's
                self._wake()
                try:
                    await until_done(asyncio.get_running_loop().run_in_executor(thread, self._close))
                finally:
                    thread.shutdown()
        if self._file.lost is not None:
            raise self._file.lost

    async def upgrade(self) -> int:
        """Bring the tables of an older version to the newest; see ``Driver``."""
        return await anyio.to_thread.run_sync(upgrade_file, self.path, self._patience)

    async def diagnose(self) -> list[Finding]:
        """Open the file, which checks it, and check the totals of a huge one too; see ``Driver``."""
        async with self:
            await self._call(lambda: check_totals(self._connection, self.path))
            return []

    async def run(self, *steps: Step) -> list[Rows]:
        """Run statements as one durable transaction; see ``Driver``."""
        rows, is_changed = await self._call(partial(self._run, steps))
        if is_changed:
            self._wake()
        return rows

    async def check(self) -> None:
        """Check that the path leads to the open file; a whole copy is put there if not."""
        await self._call(lambda: self._file.check(self._connection))

    def watch(self) -> AsyncGenerator[None]:
        """Yield when something may have been written; see ``Driver``. Ends when the database is closed."""
        self._open_thread()
        return self._watch()

    async def _watch(self) -> AsyncGenerator[None]:
        changed, seen, quiet = asyncio.Event(), -1, 0.0
        self._watchers.add(changed)
        try:
            while self._thread is not None:
                version = await self._call(self._version)
                if changed.is_set() or version != seen or quiet >= _IDLE:
                    changed.clear()
                    seen, quiet = version, 0.0
                    yield
                quiet += self._poll
                with anyio.move_on_after(self._poll):
                    await changed.wait()
        finally:
            self._watchers.discard(changed)

    def _wake(self) -> None:
        for watcher in self._watchers:
            watcher.set()

    async def _call(self, work: Callable[[], T]) -> T:
        thread = self._open_thread()
        return await asyncio.get_running_loop().run_in_executor(thread, self._explained, work)

    def _open_thread(self) -> ThreadPoolExecutor:
        if self._pid != os.getpid():
            raise StorageError("the journal was opened before a fork: open one of its own here", retryable=False)
        if self._thread is None:
            raise StorageError("the journal is not open: enter it with 'async with'", retryable=False)
        return self._thread

    # ------------------------------------------------------------ in the thread

    def _explained(self, work: Callable[[], T]) -> T:
        try:
            return work()
        except FAILURES as error:
            if getattr(error, "sqlite_errorcode", None) in _NOT_UNIQUE:
                raise ConflictError(f"something that must be unique is there already: {error}") from None
            raise explain(self.path, error) from error

    def _open(self) -> None:
        self._connection = open_file(self.path, self._patience)
        self._file.opened()

    def _close(self) -> None:
        if hasattr(self, "_connection"):
            with suppress(*FAILURES, OSError):  # all that was promised is on disk: closing only tidies up
                self._file.close(self._connection)
            del self._connection

    def _run(self, steps: Sequence[Step]) -> tuple[list[Rows], bool]:
        connection, clock = self._connection, {"now": time.time(), "tick": time.monotonic(), "boot": _BOOT}
        before = connection.total_changes
        with transaction(connection) if len(steps) > 1 else nullcontext():  # a single statement is one by itself
            results = [_rows(connection.execute(statement, {**values, **clock})) for statement, values in steps]
        is_changed = connection.total_changes != before
        if is_changed:
            self._file.written(connection)
        return results, is_changed

    def _version(self) -> int:
        """Return a number that changes when another connection has written."""
        with suppress(*FAILURES):
            (version,) = self._connection.execute("PRAGMA data_version").fetchone()
            return int(version)
        return -1  # whoever reads now gets the error


def _rows(cursor: sqlite3.Cursor) -> Rows:
    return cursor.fetchall() if cursor.description else [()] * cursor.rowcount
