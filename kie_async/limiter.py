"""The quota of submissions: a semaphore whose permits come back by a timer.

A permit is held until the answer's headers are here and comes back one window later. The server saw the submission
before it answered, so it can never see more than ``limit`` in any window, whatever the network does. A bucket would
not do: it lets up to twice the limit through in one window.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Protocol

import attrs


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

    async def acquire(self, *, again: bool = False) -> Permit:
        """Wait for a permit, first come first served.

        Args:
            again: this submission was refused for its moment and goes before those that came after it.

        Cancelling takes nothing.
        """
        ...

    def penalize(self, seconds: float) -> None:
        """The server said "too fast": let nobody through for so long. The order of the waiting is kept."""
        ...


@attrs.define(eq=False)
class _LocalPermit:
    _limiter: SlidingLimiter | None

    @property
    def is_valid(self) -> bool:
        return True  # nobody else can have taken it

    def release(self) -> None:
        self._end(lambda limiter: limiter._return_later())  # noqa: SLF001  # the two are one thing

    def give_back(self) -> None:
        self._end(lambda limiter: limiter._return_now())  # noqa: SLF001  # likewise

    def _end(self, how: Callable[[SlidingLimiter], None]) -> None:
        limiter, self._limiter = self._limiter, None
        if limiter is not None:
            how(limiter)


class SlidingLimiter:
    """At most ``limit`` submissions in any ``window`` seconds, for the sessions of one event loop that share it.

    Args:
        limit: permits. FACTS: 20 per account.
        window: seconds. FACTS: 10.
        margin: seconds added to the window, for the difference of two clocks.
    """

    def __init__(self, limit: int = 20, window: float = 10.0, *, margin: float = 0.02) -> None:
        self._window = window + margin
        self._free = limit
        self._returns: deque[float] = deque()  # when the permits in their window come back, in order
        self._waiters: deque[asyncio.Future[None]] = deque()
        self._closed_until = 0.0
        self._timer: asyncio.TimerHandle | None = None

    @property
    def queued(self) -> int:
        """How many wait."""
        return sum(not waiter.done() for waiter in self._waiters)

    async def acquire(self, *, again: bool = False) -> Permit:
        """Wait for a permit, first come first served. Cancelling takes nothing."""
        loop = asyncio.get_running_loop()
        self._collect(loop.time())
        if self._free and not self._waiters and self._closed_until <= loop.time():
            self._free -= 1
            return _LocalPermit(self)
        waiter = loop.create_future()
        (self._waiters.appendleft if again else self._waiters.append)(waiter)
        self._serve()
        try:
            await waiter
        except asyncio.CancelledError:
            if waiter.done() and not waiter.cancelled():  # granted and cancelled in the same turn
                self._return_now()
            raise
        return _LocalPermit(self)

    def penalize(self, seconds: float) -> None:
        """Close the gate for all, for so long; never earlier than it would open already."""
        self._closed_until = max(self._closed_until, asyncio.get_running_loop().time() + seconds)

    def _return_later(self) -> None:
        self._returns.append(asyncio.get_running_loop().time() + self._window)
        if self._waiters:
            self._serve()

    def _return_now(self) -> None:
        self._free += 1
        self._serve()

    def _collect(self, now: float) -> None:
        while self._returns and self._returns[0] <= now:
            self._returns.popleft()
            self._free += 1

    def _serve(self) -> None:
        """Hand free permits to those who wait, in their order, and set the timer for the next that comes back."""
        loop = asyncio.get_running_loop()
        now = loop.time()
        self._collect(now)
        while self._waiters and (self._waiters[0].done() or (self._free and self._closed_until <= now)):
            waiter = self._waiters.popleft()
            if not waiter.done():
                self._free -= 1
                waiter.set_result(None)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._waiters:
            moments = [self._closed_until] if self._free else list(self._returns)[:1]
            if moments:
                self._timer = loop.call_at(max(moments[0], self._closed_until), self._serve)
