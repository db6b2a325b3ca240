"""A quota that many processes share: a limiter whose slots are in the journal's database, on the database's clock.

A slot is held until the headers of the answer arrive and is free one window later, as in ``SlidingLimiter``. A process
renews its lease every few seconds; the slots of a dead process are free one window after its lease has expired. While
the database is away, nobody submits. ``_quota_rules`` decides who gets which slot.
"""

from __future__ import annotations

import asyncio
import copy
import random
import time
from collections import deque
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager, suppress
from math import inf
from typing import Self
from uuid import uuid4

import anyio
import attrs

from kie_async._client.concurrency import unwrap_single_exception
from kie_async._client.lifetime import Lifetime
from kie_async._protocol.backoff import backoff
from kie_async._protocol.wire import pack
from kie_async.errors import KieError, SessionError, StorageError
from kie_async.journal import _sql
from kie_async.journal._journal import Journal
from kie_async.journal._leases import new_process_id
from kie_async.journal._quota_rules import TURN, Quota, QuotaReply, QuotaRequest, Terms, exchange, on_clock
from kie_async.journal._sql import unpack_document
from kie_async.limiter import Permit

_SOON = 0.05  # seconds until slots are asked for again, while they are left to processes that come first


@attrs.frozen
class Deadline:
    """A time by two clocks, because a suspended machine stops the one, and can set the other back."""

    monotonic: float
    wall: float

    @classmethod
    def after(cls, seconds: float) -> Deadline:
        """The time that many seconds from now."""
        return cls(asyncio.get_running_loop().time() + seconds, time.time() + seconds)

    @property
    def is_over(self) -> bool:
        """Whether it has passed by either clock."""
        return asyncio.get_running_loop().time() >= self.monotonic or time.time() >= self.wall


@attrs.define(eq=False)
class SharedPermit:
    """A permit of a shared quota: a slot, for a time.

    Attributes:
        name: the name of this grant; if another process takes the slot over, the grant has another name.
        until: the latest time to begin the submission: half of the lease.
    """

    name: str
    until: Deadline
    _window: float
    _end: Callable[[SharedPermit, float], None]

    @property
    def is_valid(self) -> bool:
        """Whether the submission may still begin: not if the process or the machine was suspended for too long."""
        return not self.until.is_over

    def release(self) -> None:
        """End it after the server has, or may have, seen the submission: the slot is free one window from now."""
        self._end(self, self._window)

    def give_back(self) -> None:
        """End it after nothing was sent: the slot is free at once."""
        self._end(self, 0.0)


class JournalLimiter(anyio.AsyncContextManagerMixin):
    """At most ``limit`` submissions in any ``window`` seconds, for all processes that share a journal.

    Enter it around the session: ``async with journal, JournalLimiter(journal) as limiter, KieSession(limiter=limiter):
    ...``. Within a process it is first come first served; processes get equal shares, and what one does not need goes
    to the others.

    Args:
        journal: a journal that stays open while the limiter is used.
        account: the name of the account whose quota it is.
        limit: the number of permits; the service allows 20 per account.
        window: seconds; 10 at the service.
        margin: seconds added to the window, because the server's clock runs differently.
        lease: seconds without a renewal after which a process counts as dead. A process that was suspended for longer
            sees that its permit is not valid (``SharedPermit.is_valid``), and takes a new one.
    """

    def __init__(  # noqa: PLR0913  # five facts with defaults
        self,
        journal: Journal,
        *,
        account: str = "default",
        limit: int = 20,
        window: float = 10.0,
        margin: float = 0.02,
        lease: float = 30.0,
    ) -> None:
        self._driver = journal.driver
        self._account = account
        self._terms = Terms(process_id=new_process_id(), limit=limit, window=window + margin, lease=lease)
        self._reset()

    def _reset(self) -> None:
        """Begin with nothing held and nobody waiting, in the event loop that opens it next."""
        self._waiters: deque[asyncio.Future[SharedPermit]] = deque()
        self._held: dict[str, SharedPermit] = {}
        self._returned: dict[str, float] = {}  # seconds until the slot is free, from when that is written
        self._closed_until = 0.0  # not known to the database yet
        self._renew_at = 0.0
        self._is_queued = False  # in the database
        self._lifetime = Lifetime("limiter", self._running)
        self._changed = asyncio.Event()  # there may be something to take or to write

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
            self._reset()

    @asynccontextmanager
    async def _running(self) -> AsyncGenerator[None]:
        try:
            with unwrap_single_exception():
                async with anyio.create_task_group() as group:
                    group.start_soon(self._serve)
                    yield
                    group.cancel_scope.cancel()
        finally:
            self._fail(SessionError("the limiter was closed"))
            with anyio.CancelScope(shield=True), suppress(StorageError):  # it is away: leases and turns run out
                await self._exchange()

    # ------------------------------------------------------------ what the session calls

    async def acquire(self, *, is_retry: bool = False) -> Permit:
        """Wait for a permit, first come first served; for as long as the database is away. Cancelling takes nothing.

        Raises:
            SessionError: the limiter is not open, or belongs to another event loop.
            StorageError: the database is there, but not as it must be.
        """
        while True:
            permit = await self._wait(is_retry=is_retry)
            if permit.is_valid:
                return permit
            permit.give_back()
            is_retry = True

    async def _wait(self, *, is_retry: bool) -> SharedPermit:
        self._lifetime.check()
        waiter: asyncio.Future[SharedPermit] = asyncio.get_running_loop().create_future()
        while self._waiters and self._waiters[0].done():  # those that went away
            self._waiters.popleft()
        if not self._waiters:
            self._changed.set()
        (self._waiters.appendleft if is_retry else self._waiters.append)(waiter)
        try:
            return await waiter
        except asyncio.CancelledError:
            if waiter.done() and not waiter.cancelled() and waiter.exception() is None:
                waiter.result().give_back()  # granted and cancelled in the same turn
            self._changed.set()
            raise

    def penalize(self, seconds: float) -> None:
        """Close the gate for all processes, for so long; never earlier than it would open already."""
        self._closed_until = max(self._closed_until, asyncio.get_running_loop().time() + seconds)
        self._changed.set()

    def _return(self, permit: SharedPermit, seconds: float) -> None:
        if self._held.pop(permit.name, None) is not None:
            self._returned[permit.name] = seconds
            self._changed.set()

    # ------------------------------------------------------------ the database

    async def _serve(self) -> None:
        """Write what has changed, and take slots for those who wait, again and again."""
        failures = 0
        while True:
            self._changed.clear()
            try:
                delay = await self._exchange()
                failures = 0
            except StorageError as error:
                failures += 1
                delay = backoff(failures, random.random, base=0.1, limit=2.0)
                if not error.retryable:
                    self._fail(error)
            with anyio.move_on_after(delay):
                await self._changed.wait()

    async def _exchange(self) -> float:
        """Write and take once, and return the seconds until there may be more to do."""
        started, closed_until = asyncio.get_running_loop().time(), self._closed_until
        until = Deadline.after(self._terms.lease / 2)
        request = self._request(started)
        if request == QuotaRequest() and not self._is_queued:
            return self._until_renewal(started)
        with anyio.CancelScope(shield=True):  # what is taken must be used, or given back
            reply = await self._ask(request)
        self._is_queued = request.wanted > len(reply.granted)
        for name in request.returned:
            del self._returned[name]
        if self._closed_until == closed_until:
            self._closed_until = 0.0
        if request.renewed or not self._held:
            self._renew_at = started + self._terms.lease / 3
        for name in self._held.keys() & reply.renewed:
            self._held[name].until = until
        for name in reply.granted:
            self._grant(name, until)
        return min(self._delay(reply), self._until_renewal(started))

    def _request(self, now: float) -> QuotaRequest:
        wanted = self.queued
        return QuotaRequest(
            wanted=wanted,
            names=tuple(uuid4().hex for _ in range(min(wanted, self._terms.limit))),
            returned=dict(self._returned),
            renewed=tuple(self._held) if now >= self._renew_at else (),
            closed_for=max(self._closed_until - now, 0.0),
        )

    def _until_renewal(self, now: float) -> float:
        return self._renew_at - now if self._held else inf

    def _delay(self, reply: QuotaReply) -> float:
        if reply.granted:
            return 0.0
        interval = min(TURN / 3, self._terms.window / 4)  # a slot that came back is seen long before it is free
        return min(reply.delay, interval) if reply.delay else _SOON

    async def _ask(self, request: QuotaRequest) -> QuotaReply:
        """Change the quota by the rules and write it; repeat if another process has written it in between."""
        written = uuid4().hex
        quota, seen, now = await self._read()
        while True:
            reply = exchange(quota, self._terms, request, now)
            if reply.quota == quota:
                return reply
            values = {"account": self._account, "document": pack(reply.quota), "written": written, "seen": seen}
            [changed] = await self._driver.run((_sql.WRITE_QUOTA, values))
            if not changed:
                quota, seen, now = await self._read()
            if changed or seen == written:  # or the connection was lost after the write
                await self._driver.check()  # a file that was moved away is no quota that others keep
                return reply

    async def _read(self) -> tuple[Quota, str | None, float]:
        [[(document, seen, boot, now)]] = await self._driver.run((_sql.GET_QUOTA, {"account": self._account}))
        quota = unpack_document(document, Quota) if document else Quota()
        return on_clock(quota, boot, now), seen, now

    def _grant(self, name: str, until: Deadline) -> None:
        self._held[name] = permit = SharedPermit(name, until, self._terms.window, self._return)
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
