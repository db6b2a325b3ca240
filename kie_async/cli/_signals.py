"""Signals: SIGTERM and Ctrl-C end a command in good order."""

from __future__ import annotations

import asyncio
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType

from anyio import CancelScope


@contextmanager
def stopped_by_sigterm(then: Callable[[], None]) -> Iterator[None]:
    """Cancel the block when SIGTERM comes, so that it can finish what must not be cut off.

    Args:
        then: called when SIGTERM has ended the block.
    """
    loop = asyncio.get_running_loop()
    with CancelScope() as scope:
        with suppress(NotImplementedError):  # Windows has no such signal
            loop.add_signal_handler(signal.SIGTERM, scope.cancel)
        try:
            yield
        finally:
            with suppress(NotImplementedError):
                loop.remove_signal_handler(signal.SIGTERM)
    if scope.cancelled_caught:
        then()


@contextmanager
def on_interrupt(announce: Callable[[], None]) -> Iterator[None]:
    """Call ``announce`` at the first Ctrl-C, which cancels the command; what it cancels may have to wait for an answer.

    The second Ctrl-C ends the loop. It is raised between two steps of tasks; inside a task it would wait with it.

    Args:
        announce: called by the loop, at once.
    """
    loop, handler = asyncio.get_running_loop(), signal.getsignal(signal.SIGINT)
    # asyncio's runner has set one, unless this is not the main thread, or the signal is ignored
    if not callable(handler) or threading.current_thread() is not threading.main_thread():
        yield
        return
    cancel, is_first = handler, True

    def handle(number: int, frame: FrameType | None) -> None:
        nonlocal is_first
        if is_first:
            is_first = False
            loop.call_soon_threadsafe(announce)
            cancel(number, frame)
        else:
            loop.call_soon_threadsafe(_interrupt)

    signal.signal(signal.SIGINT, handle)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)


def wake_at_signals(loop: asyncio.AbstractEventLoop) -> None:
    """Let every signal wake an idle loop, so that a Ctrl-C always ends what waits.

    A signal that another thread receives, or that comes just before the loop begins to wait, does not interrupt the
    wait; asyncio has the wait end (``signal.set_wakeup_fd``) only if the loop handles any signal, so it handles one
    that means nothing here.
    """
    with suppress(AttributeError, NotImplementedError, RuntimeError):  # Windows does it by itself; not the main thread
        loop.add_signal_handler(signal.SIGWINCH, lambda: None)


def _interrupt() -> None:
    raise KeyboardInterrupt
