"""Listening sockets that are open or closed, never lost."""

from __future__ import annotations

import asyncio
from collections.abc import Callable


async def listen(factory: Callable[[], asyncio.Protocol], host: str, port: int) -> asyncio.Server:
    """Listen, or leave nothing open.

    ``create_server`` alone waits for one turn of the loop with its sockets open: cancelled there, it loses them, and
    they go on to take connections.

    Args:
        factory: makes the protocol of each connection.
        host: an address or name of this machine.
        port: 0 takes a free one.

    Raises:
        OSError: the host is not of this machine, or the port is in use.
        OverflowError: the port is no port.
    """
    listener = await asyncio.get_running_loop().create_server(factory, host, port, start_serving=False)
    try:
        await listener.start_serving()
    except BaseException:  # cancellation included
        listener.close()
        raise
    return listener
