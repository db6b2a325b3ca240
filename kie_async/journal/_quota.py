"""One quota for many processes: the limiter whose slots are rows of PostgreSQL, on PostgreSQL's clock.

A slot is held until the answer's headers and free one window later, as in ``SlidingLimiter``. Its holder says every
few seconds that it lives; the slots of a dead one are free one window after its lease. Without the database nobody
submits: no quota, no spending.
"""

from __future__ import annotations

import asyncio
import copy
import random
from collections import deque
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing, asynccontextmanager, suppress
from math import inf
from typing import Self
from uuid import UUID

import anyio
import attrs

from kie_async._client.groups import unwrap_single_exception
from kie_async._client.lifetime import Lifetime
from kie_async._protocol.retry import backoff
from kie_async.errors import KieError, SessionError, StorageError
from kie_async.journal._extra import database
from kie_async.journal._owner import new_owner
from kie_async.limiter import Permit
from kie_async.settings import Secret

_LIFE = 3.0  # seconds after which a silent process loses its turn in the queue
_PATIENCE = 2.0  # seconds for which one statement is tried; then the loop around it goes on

_OPEN = """
WITH quota AS (INSERT INTO kie_quota (account) VALUES (%(account)s) ON CONFLICT DO NOTHING)
INSERT INTO kie_slot (account, number) SELECT %(account)s, generate_series(0, %(limit)s - 1) ON CONFLICT DO NOTHING
"""
_TAKE = """
SELECT * FROM kie_take(%(account)s, %(process)s, %(wanted)s, %(limit)s,
    make_interval(secs => %(hold)s), make_interval(secs => %(life)s))
"""
_LEAVE = """
WITH gone AS (DELETE FROM kie_queue WHERE account = %(account)s AND process = %(process)s RETURNING account)
SELECT pg_notify('kie_quota', account) FROM gone
"""
_RETURN = """
WITH back AS (
    UPDATE kie_slot SET free_at = clock_timestamp() + make_interval(secs => seconds), permit = NULL
    FROM unnest(%(permits)s::uuid[], %(seconds)s::float8[]) AS returned (name, seconds) WHERE permit = name
    RETURNING account, seconds
)
SELECT pg_notify('kie_quota', account) FROM back WHERE seconds = 0 LIMIT 1
"""
_RENEW = """
UPDATE kie_slot SET free_at = clock_timestamp() + make_interval(secs => %(hold)s)
WHERE permit = ANY(%(permits)s::uuid[]) RETURNING permit
"""
_PENALIZE = """
UPDATE kie_quota SET not_before = greatest(not_before, clock_timestamp() + make_interval(secs => %(seconds)s))
WHERE account = %(account)s
"""


@attrs.define(eq=False)
class SharedPermit:
    """A slot of a shared quota.

    Attributes:
        name: of this grant; a slot that was taken over bears another.
        until: the latest moment for a submission to begin, on the clock of the event loop: half of the lease.
    """

    _limiter: PostgresLimiter
    name: UUID
    until: float

    @property
    def is_valid(self) -> bool:
        """Whether a submission may still begin: the process did not sleep through its lease."""
        return asyncio.get_running_loop().time() < self.until

    def release(self) -> None:
        """The server has seen the submission, or may have: the slot is free one window from now."""
        self._limiter._return(self, self._limiter._window)  # noqa: SLF001  # the two are one thing

    def give_back(self) -> None:
        """Nothing was sent: the slot is free at once."""
        self._limiter._return(self, 0.0)  # noqa: SLF001  # likewise


class PostgresLimiter(anyio.AsyncContextManagerMixin):
    """At most ``limit`` submissions in any ``window`` seconds, for all processes that use one account.

    Enter it around the session: ``async with PostgresLimiter(dsn) as limiter, KieSession(limiter=limiter): ...``.
    Inside a process it is first come first served; between processes each gets its share, and what one does not
    want is the others'.

    Args:
        dsn: ``postgresql://user:password@host/database``; never shown. Not through a pooler of transactions.
        account: whose quota; processes with the same key use the same word.
        limit: permits. FACTS: 20 per account.
        window: seconds. FACTS: 10.
        margin: seconds added to the window, for the difference of two clocks.
        lease: seconds after which a process that gives no sign is taken for dead. One that was stopped for longer
            asks ``SharedPermit.is_valid`` before its POST, and gets a permit anew.

    Raises:
        SettingsError: the address cannot be used, or the extra ``cluster`` is not installed.
        StorageError: (entering) the database cannot be reached.
    """

    def __init__(  # noqa: PLR0913  # five facts with defaults
        self,
        dsn: str | Secret,
        *,
        account: str = "default",
        limit: int = 20,
        window: float = 10.0,
        margin: float = 0.02,
        lease: float = 30.0,
    ) -> None:
        self._database = database(dsn, connections=2, patience=_PATIENCE)
        self._window = window + margin
        self._lease = lease
        self._values: Mapping[str, object] = {
            "account": account,
            "process": new_owner(),
            "limit": limit,
            "hold": lease + self._window,
            "life": _LIFE,
        }
        self._waiters: deque[asyncio.Future[SharedPermit]] = deque()
        self._held: dict[UUID, SharedPermit] = {}
        self._returned: dict[UUID, float] = {}  # seconds until the slot is free, from when the database hears of it
        self._closed_until = 0.0
        self._told_until = 0.0  # as far as the database knows
        self._renew_at = 0.0
        self._in_queue = False
        self._failures = 0
        self._lifetime = Lifetime("limiter", self._running)
        self._stir = asyncio.Event()  # there may be something to take
        self._tell = asyncio.Event()  # there is something the database must hear

    @property
    def queued(self) -> int:
        """How many wait, in this process."""
        return sum(not waiter.done() for waiter in self._waiters)

    @asynccontextmanager
    async def __asynccontextmanager__(self) -> AsyncGenerator[Self]:
        try:
            async with self._lifetime:  # it may be left in another task
                yield self
        finally:
            self._lifetime = Lifetime("limiter", self._running)

    @asynccontextmanager
    async def _running(self) -> AsyncGenerator[None]:
        async with self._database:
            await self._database.execute(_OPEN, self._values)
            try:
                with unwrap_single_exception():
                    async with anyio.create_task_group() as group:
                        for work in (self._serve, self._report, self._listen):
                            group.start_soon(work)
                        yield
                        group.cancel_scope.cancel()
            finally:
                self._fail(SessionError("the limiter was closed"))
                with anyio.CancelScope(shield=True):
                    await self._last_words()

    # ------------------------------------------------------------ what the session calls

    async def acquire(self, *, again: bool = False) -> Permit:
        """Wait for a permit, first come first served; for as long as the database is away. Cancelling takes nothing.

        Raises:
            SessionError: the limiter is not open, or belongs to another event loop.
            StorageError: the database is there, but not as it must be.
        """
        while True:
            permit = await self._wait(again=again)
            if permit.is_valid:
                return permit
            permit.give_back()
            again = True

    async def _wait(self, *, again: bool) -> SharedPermit:
        self._lifetime.check()
        waiter: asyncio.Future[SharedPermit] = asyncio.get_running_loop().create_future()
        if not self._waiters:
            self._stir.set()
        (self._waiters.appendleft if again else self._waiters.append)(waiter)
        try:
            return await waiter
        except asyncio.CancelledError:
            if waiter.done() and not waiter.cancelled() and waiter.exception() is None:
                waiter.result().give_back()  # granted and cancelled in the same turn
            self._stir.set()
            raise

    def penalize(self, seconds: float) -> None:
        """Close the gate for all processes, for so long; never earlier than it would open already."""
        self._closed_until = max(self._closed_until, asyncio.get_running_loop().time() + seconds)
        self._tell.set()

    def _return(self, permit: SharedPermit, seconds: float) -> None:
        if self._held.pop(permit.name, None) is not None:
            self._returned[permit.name] = seconds
            self._tell.set()

    # ------------------------------------------------------------ taking

    async def _serve(self) -> None:
        """Take slots for those who wait; look again when the next one is free, or when told."""
        while True:
            self._stir.clear()
            try:
                delay = await self._take()
                self._failures = 0
            except StorageError as error:
                self._failures += 1
                delay = backoff(self._failures, random.random, base=0.1, limit=2.0)
                if not error.retryable:
                    self._fail(error)
            with anyio.move_on_after(delay):
                await self._stir.wait()

    async def _take(self) -> float:
        """Take what can be had, and return the seconds until there may be more."""
        loop = asyncio.get_running_loop()
        wanted, started = self.queued, loop.time()
        if not wanted:
            await self._leave()
            return inf
        if self._closed_until > started:
            return self._closed_until - started
        self._in_queue = True
        with anyio.CancelScope(shield=True):  # what is taken must be used, or given back
            [(names, wait)] = await self._database.execute(_TAKE, {**self._values, "wanted": wanted})
        for name in names:
            self._held[name] = SharedPermit(self, name, started + self._lease / 2)
            self._grant(self._held[name])
        if names:
            return 0.0
        look = min(_LIFE / 3, self._window / 4)  # a slot that came back is seen long before it is free
        return look if wait is None or wait <= 0 else min(wait, look)

    def _grant(self, permit: SharedPermit) -> None:
        if (waiter := self._next()) is None:
            permit.give_back()
        else:
            waiter.set_result(permit)

    def _fail(self, error: KieError) -> None:
        while (waiter := self._next()) is not None:
            waiter.set_exception(copy.copy(error))

    def _next(self) -> asyncio.Future[SharedPermit] | None:
        while self._waiters:
            waiter = self._waiters.popleft()
            if not waiter.done():
                return waiter
        return None

    async def _leave(self) -> None:
        self._waiters.clear()
        if self._in_queue:
            await self._database.execute(_LEAVE, self._values)
            self._in_queue = False

    async def _listen(self) -> None:
        async with aclosing(self._database.wakes("kie_quota")) as wakes:
            async for _ in wakes:
                self._stir.set()

    # ------------------------------------------------------------ telling

    async def _report(self) -> None:
        """Tell the database what came back, when the gate opens, and that the holders of the rest live."""
        failures = 0
        while True:
            with anyio.move_on_after(self._lease / 3):
                await self._tell.wait()
            self._tell.clear()
            try:
                with anyio.CancelScope(shield=True):
                    await self._tell_gate()
                    await self._tell_returned()
                    await self._renew()
                failures = 0
            except StorageError:
                self._tell.set()
                failures += 1
                await anyio.sleep(backoff(failures, random.random, base=0.1, limit=2.0))

    async def _tell_gate(self) -> None:
        until = self._closed_until
        seconds = until - asyncio.get_running_loop().time()
        if until > self._told_until and seconds > 0:
            await self._database.execute(_PENALIZE, {**self._values, "seconds": seconds})
            self._told_until = until

    async def _tell_returned(self) -> None:
        if told := dict(self._returned):
            await self._database.execute(_RETURN, {"permits": list(told), "seconds": list(told.values())})
            for name in told:
                del self._returned[name]

    async def _renew(self) -> None:
        now = asyncio.get_running_loop().time()
        if self._held and now >= self._renew_at:
            names = list(self._held)
            rows = await self._database.execute(_RENEW, {**self._values, "permits": names})
            for name in self._held.keys() & {row[0] for row in rows}:
                self._held[name].until = now + self._lease / 2
            self._renew_at = now + self._lease / 3

    async def _last_words(self) -> None:
        with suppress(StorageError):  # it is away: the leases run out, and the turn in the queue
            await self._tell_returned()
            await self._leave()
