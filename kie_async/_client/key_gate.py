"""The limiter behind a gate that a refused key (401) closes for a moment.

One refusal alone may be a slip of the service's, and concerns its caller; the others wait for a moment. Two in a row,
with no submission accepted between them, speak of the key: those that wait get the same error at once, and so do
those that come before the pause is over. After it the key is tried again.
"""

from __future__ import annotations

import asyncio
import copy
import math

import anyio

from kie_async.errors import AuthError
from kie_async.limiter import Limiter, Permit

PAUSE = 5.0  # seconds
_SURE = 2  # refusals in a row


class KeyGate:
    """Gives permits for as long as the key is not refused.

    Args:
        limiter: where they come from.
    """

    def __init__(self, limiter: Limiter) -> None:
        self._limiter = limiter
        self._waiting: set[anyio.CancelScope] = set()
        self._refusals = 0  # in a row
        self._closed_until = -math.inf
        self._error: AuthError | None = None

    def check(self) -> None:
        """See whether the key can be used.

        Raises:
            AuthError: it was refused a moment ago, and more than once.
        """
        is_closed = asyncio.get_running_loop().time() < self._closed_until
        if self._error is not None and is_closed and self._refusals >= _SURE:
            raise copy.copy(self._error)

    async def acquire(self, *, again: bool) -> Permit:
        """Wait for a permit, as ``Limiter.acquire``.

        Raises:
            AuthError: the key was refused a moment ago, or while this waited.
        """
        self.check()
        with anyio.CancelScope() as place:
            self._waiting.add(place)
            try:
                return await self._limiter.acquire(again=again)
            finally:
                self._waiting.discard(place)
        self.check()
        raise AssertionError  # pragma: no cover (only a refusal takes the place away)

    def accept(self) -> None:
        """Note that a submission was accepted: the key is good."""
        self._refusals = 0

    def refuse(self, error: AuthError) -> None:
        """Note that the key was refused: let nobody through for a moment."""
        self._refusals += 1
        self._error = error
        self._closed_until = asyncio.get_running_loop().time() + PAUSE
        if self._refusals < _SURE:
            self._limiter.penalize(PAUSE)
            return
        for place in self._waiting:
            place.cancel()
