"""Being told to end."""

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
