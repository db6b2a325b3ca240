"""What lets a submission through: a place in flight, then the limiter, behind a gate that a refused key closes.

One refusal of the key (401) may be a slip of the service's, and concerns its caller; the others wait for a moment. Two
in a row, with no submission accepted between them, are about the key: those that wait get the same error at once, and
so do those that come before the pause is over. After it the key is tried again.
"""

from __future__ import annotations

import asyncio
import copy
import math
import random
from collections.abc import Callable

import attrs

from kie_async._protocol.backoff import backoff
from kie_async._protocol.spending import Ending
from kie_async.errors import AuthError, KieError
from kie_async.events import Observer, Queued
from kie_async.limiter import Limiter, Permit

PAUSE = 5.0  # seconds after a refusal of the key
_REFUSALS_TO_CLOSE = 2  # in a row
_MIN_SLOW_DOWN = 2.0  # seconds that the gate stays closed after "too fast"


@attrs.define
class Place:
    """A place among the tasks in flight, which a submission holds and then its task.

    Attributes:
        release: gives the place back.
        settle: replaces what the session's cap has reserved for it by its cost, as its outcome shows; None if there
            is no cap.
    """

    release: Callable[[], None]
    settle: Callable[[Ending], None] | None = None

    def submission_failed(self, error: KieError | None) -> None:
        """Release the place of a submission that became no task; None if nothing was sent."""
        self.release()
        if self.settle is not None:
            self.settle(error)


class InFlightLimit:
    """The places for tasks in flight."""

    def __init__(self, limit: int, emit: Observer) -> None:
        self._places = asyncio.Semaphore(limit)
        self._emit = emit
        self._queued = 0

    async def enter(self) -> Place:
        """Wait for a place."""
        if self._places.locked():
            self._emit(Queued(self._queued))
        self._queued += 1
        try:
            await self._places.acquire()
        finally:
            self._queued -= 1
        return Place(self._places.release)


class SubmissionGate:
    """Gives the limiter's permits for as long as the key is not refused."""

    def __init__(self, limiter: Limiter) -> None:
        self._limiter = limiter
        self._waits: set[asyncio.Timeout] = set()  # for a permit
        self._refusals = 0  # of the key, in a row
        self._refusal: AuthError | None = None
        self._closed_until = -math.inf  # to all, because the key was refused
        self._slow_downs = 0  # in a row

    def check_key(self) -> None:
        """See whether the key can be used.

        Raises:
            AuthError: it was refused a moment ago, and more than once.
        """
        if self._refusal is None or self._refusals < _REFUSALS_TO_CLOSE:
            return
        if asyncio.get_running_loop().time() < self._closed_until:
            raise copy.copy(self._refusal)

    async def acquire(self, *, is_retry: bool) -> Permit:
        """Wait for a permit, as ``Limiter.acquire``.

        Raises:
            AuthError: the key was refused a moment ago, or while this waited.
        """
        while True:
            self.check_key()
            wait = asyncio.timeout(None)  # it has no end, unless the key is refused
            self._waits.add(wait)
            try:
                async with wait:
                    return await self._limiter.acquire(is_retry=is_retry)
            except TimeoutError:
                if not wait.expired():
                    raise  # the limiter's own
            finally:
                self._waits.discard(wait)
            is_retry = True  # the refusal may be outdated by now, by a success or by time

    def accepted(self) -> None:
        """Note that a submission was accepted: the key is good, and the pace too."""
        self._refusals = self._slow_downs = 0

    def key_refused(self, error: AuthError) -> None:
        """Note that the key was refused: let nobody through for a moment."""
        self._refusals += 1
        self._refusal = error
        self._closed_until = asyncio.get_running_loop().time() + PAUSE
        if self._refusals < _REFUSALS_TO_CLOSE:
            self._limiter.penalize(PAUSE)
            return
        waits, self._waits = self._waits, set()
        for wait in waits:
            wait.reschedule(-math.inf)  # it is over now

    def slow_down_delay(self, asked: float | None) -> float:
        """Seconds that the gate should be closed after the service said "too fast", and asked for so many."""
        self._slow_downs += 1
        return max(asked or 0.0, _MIN_SLOW_DOWN + backoff(self._slow_downs, random.random))

    def close(self, seconds: float) -> None:
        """Let nobody through for so long; the order of those who wait is kept."""
        self._limiter.penalize(seconds)
