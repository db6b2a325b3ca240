"""What a program may ask of a worker while it works."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable

import anyio


async def _not_begun() -> str:
    return "it has not begun"


class WorkerControl:
    """Ends a worker in good order, and tells how it is. Given to ``work``; made for one call of it.

    Attributes:
        draining: set when nothing more is to be taken.
        started_at: unix seconds.
        check: what ``why_not_ready`` asks; the worker sets it.
    """

    def __init__(self) -> None:
        self.draining = anyio.Event()
        self.started_at = time.time()
        self.check: Callable[[], Awaitable[str]] = _not_begun

    async def why_not_ready(self) -> str:
        """Return the reason why the worker takes no jobs now; "" if it does."""
        return await self.check()

    def drain(self) -> None:
        """Let the worker take and submit nothing more; ``work`` returns when what is submitted has ended."""
        self.draining.set()
