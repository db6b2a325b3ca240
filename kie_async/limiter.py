"""The quota of submissions: a semaphore whose permits come back by a timer.

A permit is held until the headers of the answer have arrived, and comes back one window later. The server has seen the
submission before it answers, so it can never see more than ``limit`` submissions in any window, however slow the
network is. A token bucket would not do: it lets up to twice the limit through in one window.
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
    """The right to send one submission. ``release`` or ``give_back`` ends it; a second call does nothing."""

    @property
    def is_valid(self) -> bool:
        """Whether the submission may still be sent; read right before. A shared permit can expire in a long pause."""
        ...

    def release(self) -> None:
        """End it after the server has, or may have, seen the submission: it comes back one window from now."""
        ...

    def give_back(self) -> None:
        """End it after nothing was sent: it comes back at once."""
        ...


class Limiter(Protocol):
    """Decides when a submission may be sent. ``KieSession(limiter=)`` takes any object with these methods."""

    async def acquire(self, *, is_retry: bool = False) -> Permit:
        """Wait for a permit, first come first served.

        Args:
            is_retry: the submission was refused for now and is sent again, so it goes before all that wait.

        Cancelling takes no permit.
        """
        ...

    def penalize(self, seconds: float) -> None:
        """Grant no permit for that many seconds, after the server said "too fast". The queue keeps its order."""
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

    It belongs to the event loop in which it is first used. Once that is closed, it can be used in another: permits that
    were taken come back one window after the first use there.

    Args:
        limit: the number of permits; the service allows 20 per account.
        window: seconds; 10 at the service.
        margin: seconds added to the window, because the server's clock runs differently.
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
        """The number of submissions that wait for a permit."""
        return sum(not waiter.done() for waiter in self._waiters)

    async def acquire(self, *, is_retry: bool = False) -> Permit:
        """Wait for a permit, first come first served; ``is_retry`` goes first. Cancelling takes no permit.

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
        """Grant no permit for that many seconds; a longer pause that has begun already stays.

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
