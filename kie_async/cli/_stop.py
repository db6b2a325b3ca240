"""Being told to end, by a signal."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from anyio import CancelScope


@contextmanager
def stoppable(then: Callable[[], None]) -> Iterator[None]:
    """Cancel the block when SIGTERM comes, so that all ends in good order.

    Args:
        then: called when it has ended so.
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


def wake_at_signals(loop: asyncio.AbstractEventLoop) -> None:
    """Let every signal wake an idle loop, so that a Ctrl-C always ends what waits.

    A signal that another thread receives, or that comes just before the loop begins to wait, does not interrupt the
    wait; asyncio has the wait end (``signal.set_wakeup_fd``) only if the loop handles any signal, so it handles one
    that means nothing here.
    """
    with suppress(AttributeError, NotImplementedError, RuntimeError):  # Windows does it by itself; not the main thread
        loop.add_signal_handler(signal.SIGWINCH, _nothing)


def _nothing() -> None:
    return
