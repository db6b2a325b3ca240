"""The limiters that are compared: ours, and adapters that give others the same shape."""

from __future__ import annotations

import asyncio
import importlib
import time
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Any

import attrs

from kie_async.limiter import Limiter, Permit, SlidingLimiter

Make = Callable[[int, float], Limiter]


class _NoPermit:
    """They count when they let through: nothing comes back."""

    is_valid = True

    def release(self) -> None:
        """Nothing to do."""

    def give_back(self) -> None:
        """Nothing to do."""


_NOTHING = _NoPermit()


@attrs.frozen
class Adapted:
    """Somebody else's limiter. None of them can be told of a 429, or let anybody go before others."""

    _take: Callable[[], Awaitable[object]]

    async def acquire(self, *, is_retry: bool = False) -> Permit:  # noqa: ARG002  # they have no such thing
        """Wait as it waits."""
        await self._take()
        return _NOTHING

    def penalize(self, seconds: float) -> None:
        """It has no such thing."""


def ours(limit: int, window: float) -> Limiter:
    """As a session makes it, the margin in its default proportion."""
    return SlidingLimiter(limit, window, margin=0.02 * window / 10)


def aiolimiter(limit: int, window: float) -> Limiter:
    """A leaky bucket."""
    module: Any = importlib.import_module("aiolimiter")
    return Adapted(module.AsyncLimiter(limit, window).acquire)


def pyrate(limit: int, window: float) -> Limiter:
    """A log of stamps, in milliseconds; its buffer in its default proportion."""
    module: Any = importlib.import_module("pyrate_limiter")
    limiter = module.Limiter(module.Rate(limit, int(window * 1000)), buffer_ms=int(50 * window / 10))
    return Adapted(lambda: limiter.try_acquire_async("us"))


def limits(limit: int, window: float) -> Limiter:
    """A log of stamps; it does not wait by itself, so its caller sleeps until it says there is room."""
    module: Any = importlib.import_module("limits")
    storage = importlib.import_module("limits.aio.storage").MemoryStorage()
    strategy = importlib.import_module("limits.aio.strategies").MovingWindowRateLimiter(storage)
    item = module.RateLimitItemPerSecond(limit, int(window))

    async def take() -> None:
        while not await strategy.hit(item, "us"):
            reset, _ = await strategy.get_window_stats(item, "us")
            await asyncio.sleep(max(reset - time.time(), 0.001))

    return Adapted(take)


def _throttled(using: str) -> Make:
    def make(limit: int, window: float) -> Limiter:
        module: Any = importlib.import_module("throttled.asyncio")
        per = importlib.import_module("throttled.rate_limiter").per_duration
        quota = per(timedelta(seconds=window), limit, burst=limit)
        throttle = module.Throttled("us", using=using, quota=quota, store=module.MemoryStore(), timeout=3600)

        async def take() -> None:
            result = await throttle.limit()
            assert not result.limited  # it has waited

        return Adapted(take)

    return make


SUBJECTS: dict[str, Make] = {
    "kie_async": ours,
    "aiolimiter": aiolimiter,
    "pyrate-limiter": pyrate,
    "limits, moving window": limits,
    "throttled-py, GCRA": _throttled("gcra"),
    "throttled-py, sliding window": _throttled("sliding_window"),
}
PACKAGES = ("aiolimiter", "pyrate-limiter", "limits", "throttled-py")
