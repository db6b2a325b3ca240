"""The journal of one machine: a SQLite file, for any number of processes.

Every write is durable (fsync) before it returns, and stands in the file itself, not in its log alone. The file is mode
0600, for it holds addresses that need no password.
"""

from __future__ import annotations

import asyncio
import logging
import os
import sqlite3
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, Self, TypeVar, cast

from anyio import AsyncContextManagerMixin, CancelScope

from kie_async.errors import StorageError
from kie_async.journal import _tables
from kie_async.journal._file import connect, explain, open_journal
from kie_async.journal._job import Attempt, InboundCallback, Job, Source
from kie_async.journal._lane import Lane, answer, commit
from kie_async.journal._owner import new_owner
from kie_async.journal._path import JournalPath
from kie_async.journal._states import State

T = TypeVar("T")

_PORTION = 500  # jobs added in one step: some milliseconds, in which others wait
_AWAY = 1.0  # seconds between two looks at a file that cannot be read

logger = logging.getLogger("kie_async.journal")


class SQLiteJournal(AsyncContextManagerMixin):
    """A journal in a file of this machine; see ``Journal``.

    Args:
        path: of the file; made if it is not there, its directory too. Not on a network share.
        owner: the name of this process life; one is made if none is given.
        patience: seconds to wait for another process that is writing.
        poll: seconds between two looks for callbacks that other processes have stored.

    Raises:
        StorageError: (entering) it is no journal, damaged, of another version, or cannot be used; (leaving, and by
            ``intend``) it was moved or deleted meanwhile. A whole copy is at its path then.
    """

    def __init__(
        self, path: str | os.PathLike[str], *, owner: str | None = None, patience: float = 5.0, poll: float = 0.03
    ) -> None:
        self._path = Path(path).absolute()
        self._owner = owner or new_owner()
        self._patience = patience
        self._poll = poll
        self._pid = os.getpid()
        self._lanes: tuple[Lane, Lane] | None = None
        self._file: JournalPath
        self._horizon = 0  # the last callback there was when it was opened
        self._leases: set[str] = set()
        self._listeners: set[asyncio.Event] = set()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._path}>"

    @property
    def path(self) -> Path:
        """Of the file, absolute."""
        return self._path

    @property
    def owner(self) -> str:
        """The name of this process life."""
        return self._owner

    @asynccontextmanager
    async def __asynccontextmanager__(self) -> AsyncGenerator[Self]:
        say = partial(explain, self._path)
        self._pid = os.getpid()
        file = self._file = JournalPath(self._path, self._patience)
        writer = Lane(
            "kie-journal-write",
            lambda: file.opened(open_journal(self._path, self._patience)),
            partial(commit, written=file.written),
            say,
            file.close,
        )
        lanes = [writer]
        try:
            self._horizon = await self._ask(writer, _tables.last_heard)
            reader = Lane("kie-journal-read", partial(connect, self._path, self._patience), answer, say)
            lanes.append(reader)
            await self._ask(reader, _nothing)
            self._lanes = reader, writer
            yield self
        finally:
            self._lanes = None
            await self._close(writer, lanes)
        if file.lost is not None:  # at the latest now it is said
            raise file.lost

    async def _close(self, writer: Lane, lanes: Sequence[Lane]) -> None:
        if self._pid != os.getpid():
            return  # the threads are the parent's
        if self._leases:
            writer.submit(partial(_tables.release, owner=self._owner, names=tuple(self._leases)))
            self._leases.clear()
        for listener in self._listeners:
            listener.set()
        await _end(reversed(lanes))

    # ------------------------------------------------------------ asking

    async def _read(self, function: Callable[[sqlite3.Connection], T]) -> T:
        return await self._ask(self._open_lanes()[0], function)

    async def _write(self, function: Callable[[sqlite3.Connection], T]) -> T:
        return await self._ask(self._open_lanes()[1], function)

    async def _ask(self, lane: Lane, function: Callable[[sqlite3.Connection], T]) -> T:
        call = cast("Callable[[], T]", function)  # the lane gives it the connection
        return await asyncio.get_running_loop().run_in_executor(lane, call)

    def _open_lanes(self) -> tuple[Lane, Lane]:
        if self._pid != os.getpid():
            raise StorageError("the journal was opened before a fork: open one of its own here", retryable=False)
        if self._lanes is None:
            raise StorageError("the journal is not open: enter it with 'async with'", retryable=False)
        return self._lanes

    # ------------------------------------------------------------ jobs

    async def add(self, jobs: Iterable[Job]) -> int:
        """Add planned jobs; see ``Journal``."""
        waiting, new = iter(jobs), 0
        while portion := list(islice(waiting, _PORTION)):
            if odd := [job.key for job in portion if job.state is not State.PLANNED]:
                raise ValueError(f"only planned jobs can be added; not so: {odd[0]!r}")
            new += await self._write(partial(_tables.add, jobs=portion))
        return new

    async def get(self, key: str) -> Job | None:
        """Read one job."""
        return await self._read(partial(_tables.get, key=key))

    async def find(self, *, token: str | None = None, task_id: str | None = None) -> Job | None:
        """Find the job of an attempt; see ``Journal``."""
        return await self._read(partial(_tables.find, token=token, task_id=task_id))

    async def page(
        self, *states: State, batch: str | None = None, after: int = 0, limit: int = 500
    ) -> list[tuple[int, Job]]:
        """Read jobs in the order they were added; see ``Journal``."""
        which = frozenset(states) or State
        return await self._read(partial(_tables.page, states=which, batch=batch, after=after, limit=limit))

    async def counts(self, batch: str | None = None) -> Mapping[State, int]:
        """How many jobs stand in each state."""
        return await self._read(partial(_tables.counts, batch=batch))

    async def intend(self, key: str, token: str) -> Job:
        """Move a planned job to its intent; see ``Journal``."""
        file = self._file

        def write(connection: sqlite3.Connection) -> Job:
            file.check()
            return _tables.intend(connection, key, token, self._owner, time.time())

        try:
            job = await self._write(write)
        except StorageError as error:
            raise (file.lost or error) from None
        if file.lost is not None:  # the copy that was put back may have it, or not: nothing is sent
            await self.move(key, State.PLANNED, token=token)
            raise file.lost
        return job

    async def move(self, key: str, to: State, *, token: str | None = None, **facts: Any) -> Job:  # noqa: ANN401  # fields of ``Job``
        """Move a job, with the facts learnt; see ``Journal``."""
        return await self._write(partial(_tables.move, key=key, to=to, token=token, facts=facts, at=time.time()))

    async def attempts(self, key: str) -> list[Attempt]:
        """All attempts of a job, in order."""
        return await self._read(partial(_tables.attempts, key=key))

    async def spent(self, batch: str) -> float:
        """Credits of a batch; see ``Journal``."""
        return await self._read(partial(_tables.spent, batch=batch))

    # ------------------------------------------------------------ uploads

    async def upload(self, key: str, source: Source) -> None:
        """Note where a job's source was uploaded; see ``Journal``."""
        await self._write(partial(_tables.upload, key=key, source=source))

    async def uploaded(self, sha256: str, since: float) -> Source | None:
        """Find content that was uploaded already; see ``Journal``."""
        return await self._read(partial(_tables.uploaded, sha256=sha256, since=since))

    # ------------------------------------------------------------ callbacks

    async def save_callback(self, callback: InboundCallback) -> bool:
        """Keep a callback of a submission that is known, and wake whoever listens; see ``Journal``."""
        if not await self._read(partial(_tables.is_expected, callback=callback)):  # a stranger's post costs no write
            return False
        await self._write(partial(_tables.save_callback, callback=callback))
        for listener in self._listeners:
            listener.set()
        return True

    async def prune(self, before: float) -> int:
        """Delete the callbacks of jobs that came to their end before that moment; see ``Journal``."""
        after = removed = 0
        while (step := await self._write(partial(_tables.prune, after=after, before=before))) is not None:
            after, count = step
            removed += count
        return removed

    async def callbacks_for(self, *, token: str | None = None, task_id: str | None = None) -> list[InboundCallback]:
        """The callbacks kept for a token or a task."""
        return await self._read(partial(_tables.callbacks_for, token=token, task_id=task_id))

    def watch_callbacks(self) -> AsyncIterator[InboundCallback]:
        """Give the callbacks that come in since the journal was opened; see ``Journal``. Ends when it is closed."""
        self._open_lanes()
        return self._watch_callbacks()

    async def _watch_callbacks(self) -> AsyncGenerator[InboundCallback]:
        after, seen, changed = self._horizon, -1, asyncio.Event()
        self._listeners.add(changed)
        try:
            while self._lanes is not None:
                changed.clear()
                seen, news = await self._look(after, seen, changed)
                for after, callback in news:  # noqa: B007  # the last place is where the next look begins
                    yield callback
                if not news:
                    await _wait(changed, self._poll)
        finally:
            self._listeners.discard(changed)

    async def _look(
        self, after: int, seen: int, changed: asyncio.Event
    ) -> tuple[int, list[tuple[int, InboundCallback]]]:
        try:
            return await self._read(partial(_news, after=after, seen=seen))
        except StorageError as error:
            logger.warning("callbacks cannot be read now, trying again: %s", error)
            await _wait(changed, _AWAY)
            return seen, []

    # ------------------------------------------------------------ leases

    async def lease(self, name: str, seconds: float) -> None:
        """Take or renew a lease; see ``Journal``. That of a process that died on this machine is free at once."""
        self._leases.add(name)
        await self._write(partial(_tables.lease, name=name, owner=self._owner, now=time.time(), seconds=seconds))

    async def release(self, name: str) -> None:
        """Give a lease back."""
        await self._write(partial(_tables.release, owner=self._owner, names=(name,)))
        self._leases.discard(name)


def _nothing(_connection: sqlite3.Connection) -> None:
    """Do nothing: it succeeds if the connection could be opened."""


def _news(connection: sqlite3.Connection, after: int, seen: int) -> tuple[int, list[tuple[int, InboundCallback]]]:
    """Read what came after, if the file has changed since it was seen; ask first whether, so that nothing is missed."""
    (version,) = connection.execute("PRAGMA data_version").fetchone()
    news = _tables.heard_after(connection, after) if version != seen else []
    return (seen if news else version), news


async def _wait(event: asyncio.Event, seconds: float) -> None:
    alarm = asyncio.get_running_loop().call_later(seconds, event.set)
    try:
        await event.wait()
    finally:
        alarm.cancel()


async def _end(lanes: Iterable[Lane]) -> None:
    """End them one after another, also if cancelled meanwhile, so that no thread stays behind.

    Connections that close at the same time each leave the log to the other, and the file alone would not be whole.
    """
    cancelled: asyncio.CancelledError | None = None
    with CancelScope(shield=True):
        for lane in lanes:
            end = asyncio.wrap_future(lane.close())
            while not end.done():
                try:
                    await asyncio.wait([end])
                except asyncio.CancelledError as error:
                    cancelled = error
            lane.join()
    if cancelled is not None:
        raise cancelled
