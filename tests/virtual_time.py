"""An event loop whose clock skips idle time: real sockets on loopback, and no sleeping.

It waits a moment for sockets; if nothing comes, it jumps to the next timer. Otherwise the clock stands still: neither
the work of this process nor that of a busy machine takes time on it, and slow disks or decoders, in worker threads, do
not run into virtual deadlines.
"""

from __future__ import annotations

import asyncio
import math
import selectors
import time
from collections.abc import Callable
from typing import Any

from anyio import CapacityLimiter, to_thread

GRACE = 0.001  # real seconds to wait for a socket before the clock jumps; loopback delivers while it is sent to
BEYOND = 1e-6  # seconds by which the clock jumps beyond a timer: at its very moment, rounding decides what is due
STEP = 2.0**-20  # seconds: of its multiples all sums are exact, else rounding decides what is due after whole seconds
THREAD_PATIENCE = 0.05  # real seconds between two looks at a busy thread


class _JumpingSelector(selectors.DefaultSelector):
    """A selector that reports "nothing came" early and tells by how much the clock may jump."""

    def __init__(self) -> None:
        super().__init__()
        self.jump: Callable[[float], None] = lambda _seconds: None
        self.busy: Callable[[], bool] = lambda: False

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is None or timeout <= 0:
            return super().select(timeout)
        ready = super().select(GRACE)
        while not ready and self.busy():
            ready = super().select(THREAD_PATIENCE)
        if not ready:
            self.jump(timeout + BEYOND)
        return ready


class VirtualTimeLoop(asyncio.SelectorEventLoop):
    """Time goes on only when nothing else can happen."""

    serving: asyncio.Task[None] | None = None  # a server that lives as long as the loop

    def __init__(self) -> None:
        selector = _JumpingSelector()
        self._began = math.floor(time.monotonic() / STEP) * STEP
        self._skipped = 0.0
        self._executing = 0
        self._threads: CapacityLimiter | None = None
        super().__init__(selector)
        selector.jump = self.advance
        selector.busy = self._is_busy

    def time(self) -> float:
        return self._began + self._skipped

    async def shutdown_default_executor(self, timeout: float | None = None) -> None:  # noqa: ARG002, ASYNC109  # asyncio's
        """Wait until the worker threads have ended: in that real time this clock would jump to a timeout."""
        await super().shutdown_default_executor()

    def advance(self, seconds: float) -> None:
        """Let the clock jump, as it does by itself when idle."""
        self._skipped += math.ceil(seconds / STEP) * STEP

    def watch_threads(self) -> None:
        """Let the clock stand still while anyio's worker threads are busy. Called inside the loop."""
        self._threads = to_thread.current_default_thread_limiter()

    def watch_threads_later(self) -> None:
        """Do so when the loop runs; in a task, for where sniffio is installed anyio knows its loop only there."""

        async def watch() -> None:
            self.watch_threads()

        self._watching = self.create_task(watch())

    def _is_busy(self) -> bool:
        return self._executing > 0 or (self._threads is not None and self._threads.borrowed_tokens > 0)

    def run_in_executor(self, executor: Any, func: Any, *args: Any) -> Any:  # type: ignore[override]  # as loose as its callers
        future = super().run_in_executor(executor, func, *args)
        self._executing += 1
        future.add_done_callback(self._executed)
        return future

    def _executed(self, _future: object) -> None:
        self._executing -= 1
