"""The quota of submissions: a semaphore whose permits come back by a timer.

A permit is held until the answer's headers are here and comes back one window later. The server saw the submission
before it answered, so it can never see more than ``limit`` in any window, whatever the network does. A bucket would
not do: it lets up to twice the limit through in one window.
"""

from __future__ import annotations

import asyncio
import weakref
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Protocol, TypeAlias

from kie_async._client.lifetime import running_loop
from kie_async.errors import SessionError
from kie_async.settings import Settings


class Permit(Protocol):
    """The right to send one submission. Ended by exactly one of its methods; a second call does nothing."""

    @property
    def is_valid(self) -> bool:
        """Whether a submission may still begin: asked right before it. A shared permit can run out in a long pause."""
        ...

    def release(self) -> None:
        """The server has seen the submission, or may have: the permit comes back one window from now."""
        ...

    def give_back(self) -> None:
        """Nothing was sent: the permit is free at once."""
        ...


class Limiter(Protocol):
    """Who may submit now. A shared limiter can take the place of the one in this process."""

    async def acquire(self, *, is_retry: bool = False) -> Permit:
        """Wait for a permit, first come first served.

        Args:
            is_retry: the submission was refused for now and is sent again: it goes before all that wait.

        Cancelling takes nothing.
        """
        ...

    def penalize(self, seconds: float) -> None:
        """The server said "too fast": let nobody through for so long. The order of the waiting is kept."""
        ...


class _LocalPermit:
    is_valid = True  # nobody else can have taken it

    def __init__(self, take_back: Callable[..., None]) -> None:
        self._take_back: Callable[..., None] | None = take_back

    def release(self) -> None:
        self._end(was_sent=True)

    def give_back(self) -> None:
        self._end(was_sent=False)

    def _end(self, *, was_sent: bool) -> None:
        take_back, self._take_back = self._take_back, None
        if take_back is not None:
            take_back(was_sent=was_sent)


class SlidingLimiter:
    """At most ``limit`` submissions in any ``window`` seconds, for the sessions of one event loop that share it.

    It belongs to the loop in which it is first used. When that is closed, it may be used in another: what was taken
    comes back one window after the first use there.

    Args:
        limit: permits; the service allows 20 per account.
        window: seconds; 10 at the service.
        margin: seconds added to the window, for the difference of two clocks.
    """

    def __init__(self, limit: int = 20, window: float = 10.0, *, margin: float = 0.02) -> None:
        self._window = window + margin
        self._limit = self._free = limit
        self._returns: deque[float] = deque()  # when the permits in their window come back, in order
        self._waiters: deque[asyncio.Future[None]] = deque()
        self._closed_until = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._home: weakref.ref[asyncio.AbstractEventLoop] | None = None

    @property
    def queued(self) -> int:
        """How many wait."""
        return sum(not waiter.done() for waiter in self._waiters)

    async def acquire(self, *, is_retry: bool = False) -> Permit:
        """Wait for a permit, first come first served. Cancelling takes nothing.

        Raises:
            SessionError: the limiter belongs to another event loop, in this thread or another.
        """
        loop = self._loop()
        now = loop.time()
        self._collect(now)
        if self._free and not self._waiters and self._closed_until <= now:
            self._free -= 1
            return self._grant()
        waiter = loop.create_future()
        (self._waiters.appendleft if is_retry else self._waiters.append)(waiter)
        self._serve()
        try:
            await waiter
        except asyncio.CancelledError:
            if waiter.done() and not waiter.cancelled():  # granted and cancelled in the same turn
                self._return_now()
            raise
        return self._grant()

    def penalize(self, seconds: float) -> None:
        """Close the gate for all, for so long; never earlier than it would open already.

        Raises:
            SessionError: the limiter belongs to another event loop.
        """
        self._closed_until = max(self._closed_until, self._loop().time() + seconds)
        self._set_timer()

    def _grant(self) -> Permit:
        return _LocalPermit(partial(self._take_back, self._home))

    def _take_back(self, home: object, *, was_sent: bool) -> None:
        now = self._loop().time()
        if home is not self._home:
            return  # it was counted as returned when that loop was left behind
        if not was_sent:
            self._return_now()
            return
        self._returns.append(now + self._window)
        if self._waiters:
            self._serve()
        elif self._timer is None:
            self._set_timer()

    def _loop(self) -> asyncio.AbstractEventLoop:
        """The running loop, which must be the limiter's; one that was closed is left for it."""
        loop = running_loop()
        home = None if self._home is None else self._home()
        if home is loop:
            return loop
        if home is not None and not home.is_closed():
            raise SessionError("the limiter belongs to another event loop: make one for each loop")
        if self._home is not None:
            self._leave_behind(loop.time())
        self._home = weakref.ref(loop)
        return loop

    def _leave_behind(self, now: float) -> None:
        """Forget who waited in a loop that was closed. Its clock was another, so all that was taken counts from now."""
        self._waiters.clear()
        self._returns = deque([now + self._window] * (self._limit - self._free))
        self._closed_until = now + self._window if self._closed_until else 0.0
        self._timer = None

    def _return_now(self) -> None:
        self._free += 1
        self._serve()

    def _collect(self, now: float) -> None:
        while self._returns and self._returns[0] <= now:
            self._returns.popleft()
            self._free += 1

    def _serve(self) -> None:
        """Hand free permits to those who wait, in their order."""
        now = self._loop().time()
        self._collect(now)
        while self._waiters and (self._waiters[0].done() or (self._free and self._closed_until <= now)):
            waiter = self._waiters.popleft()
            if not waiter.done():
                self._free -= 1
                waiter.set_result(None)
        self._set_timer()

    def _set_timer(self) -> None:
        """Have ``_serve`` called when the next permit can be given.

        If nobody waits, it is called when all are back: the timer keeps the limiter alive until then.
        """
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._waiters:
            moments = [self._closed_until] if self._free else list(self._returns)[:1]
        else:
            moments = list(self._returns)[-1:] or [self._closed_until]
        loop = self._loop()
        if moments and (moment := max(moments[0], self._closed_until)) > loop.time():
            self._timer = loop.call_at(moment, self._serve)


_Quota: TypeAlias = tuple[str, str, int, float, float]
_shared: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, weakref.WeakValueDictionary[_Quota, SlidingLimiter]] = (
    weakref.WeakKeyDictionary()
)


def shared_limiter(settings: Settings) -> SlidingLimiter:
    """The limiter that the sessions of one account and one quota share in the running loop.

    It lives for as long as one of them has it, and until its last permit is back.
    """
    limiters = _shared.setdefault(running_loop(), weakref.WeakValueDictionary())
    quota = settings.quota, settings.quota_window, settings.quota_margin
    key = settings.base_url, settings.account, *quota
    limiter = limiters.get(key)
    if limiter is None:
        limiter = limiters[key] = SlidingLimiter(settings.quota, settings.quota_window, margin=settings.quota_margin)
    return limiter
