"""What a submission waits for: a place in flight, then a permit of the limiter, unless the key is refused.

One refusal of the key (401) may be a mistake of the service: it is raised to its caller, and other submissions pause.
After two in a row, with no accepted submission between them, the key is taken as wrong: all submissions that wait, or
that come before the pause is over, get the same error. Then the key is tried again.
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
    """A place among the tasks in flight; held by a submission, and then by its task.

    Attributes:
        release: gives the place back.
        settle: called with the outcome: replaces the credits that the session's cap has reserved by the real cost.
            None without a cap.
    """

    release: Callable[[], None]
    settle: Callable[[Ending], None] | None = None

    def submission_failed(self, error: KieError | None) -> None:
        """Release the place of a submission that did not become a task; ``error`` is None if nothing was sent."""
        self.release()
        if self.settle is not None:
            self.settle(error)


class InFlightLimit:
    """The places for tasks in flight (``Settings.max_in_flight``)."""

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
    """Passes the limiter's permits on, unless the key is refused."""

    def __init__(self, limiter: Limiter) -> None:
        self._limiter = limiter
        self._waits: set[asyncio.Timeout] = set()  # the timeouts around the waits for a permit
        self._refusals = 0  # of the key, in a row
        self._refusal: AuthError | None = None
        self._closed_until = -math.inf  # to all, because the key was refused
        self._slow_downs = 0  # in a row

    def check_key(self) -> None:
        """Check that the key may be used now.

        Raises:
            AuthError: it was refused more than once, the last time less than ``PAUSE`` ago.
        """
        if self._refusal is None or self._refusals < _REFUSALS_TO_CLOSE:
            return
        if asyncio.get_running_loop().time() < self._closed_until:
            raise copy.copy(self._refusal)

    async def acquire(self, *, is_retry: bool) -> Permit:
        """Wait for a permit, as ``Limiter.acquire``.

        Raises:
            AuthError: as ``check_key``; also if the key is refused while this waits.
        """
        while True:
            self.check_key()
            wait = asyncio.timeout(None)  # ends only if the key is refused
            self._waits.add(wait)
            try:
                async with wait:
                    return await self._limiter.acquire(is_retry=is_retry)
            except TimeoutError:
                if not wait.expired():
                    raise  # the limiter's own
            finally:
                self._waits.discard(wait)
            is_retry = True  # a success, or the end of the pause, may have outdated the refusal

    def accepted(self) -> None:
        """Note that a submission was accepted: neither the key nor the pace was refused."""
        self._refusals = self._slow_downs = 0

    def key_refused(self, error: AuthError) -> None:
        """Note that the key was refused: hold submissions back for ``PAUSE``."""
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
        """Return for how many seconds to close the gate after "too fast"; ``asked``: the seconds the service asked."""
        self._slow_downs += 1
        return max(asked or 0.0, _MIN_SLOW_DOWN + backoff(self._slow_downs, random.random))

    def close(self, seconds: float) -> None:
        """Let no submission through for that many seconds; the queue keeps its order."""
        self._limiter.penalize(seconds)
