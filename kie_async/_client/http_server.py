"""An HTTP server of aiohttp that listens for a while. No session loads this module: it takes long to import."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import cast

from aiohttp import web
from anyio import CancelScope

from kie_async.errors import SettingsError

_TURNS_TO_ACCEPT = 5  # from a connection's arrival to the call of its protocol


@asynccontextmanager
async def listening(runner: web.BaseRunner, purpose: str, host: str, port: int) -> AsyncIterator[tuple[str, int]]:
    """Serve on one address as long as the block runs; no connection is left open after it, also if it is cancelled.

    Args:
        runner: what is served; set up and cleaned up here.
        purpose: what it listens for, as the error says it.
        host: an address or name of this machine.
        port: 0 takes a free one.

    Yields:
        The host and port, as bound.

    Raises:
        SettingsError: the port is in use or no port, or the host not of this machine.
    """
    try:
        await runner.setup()
        try:
            listener = await _listen(cast("web.Server", runner.server), host, port)  # not None once set up
        except (OSError, OverflowError) as error:
            raise SettingsError(f"cannot listen for {purpose} on {host} port {port}: {error}") from error
        try:
            yield listener.sockets[0].getsockname()[:2]
        finally:
            with CancelScope(shield=True):
                await _stop_listening(listener)
    finally:
        with CancelScope(shield=True):
            await runner.cleanup()


def url_of(host: str, port: int) -> str:
    """The URL of a host and port as bound."""
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


async def _listen(factory: Callable[[], asyncio.Protocol], host: str, port: int) -> asyncio.Server:
    """Listen, or leave nothing open.

    ``create_server`` alone waits for one turn of the loop with its sockets open: cancelled there, it loses them, and
    they go on to take connections.
    """
    listener = await asyncio.get_running_loop().create_server(factory, host, port, start_serving=False)
    try:
        await listener.start_serving()
    except BaseException:  # cancellation included
        listener.close()
        raise
    return listener


async def _stop_listening(listener: asyncio.Server) -> None:
    """Take no more connections, and wait until the accepted ones have reached their server, which then closes them.

    Accepting takes some turns of the loop. A connection whose listener is closed meanwhile would be nobody's, and stay
    open.
    """
    loop = asyncio.get_running_loop()
    for each in listener.sockets:
        with suppress(NotImplementedError):  # Windows has no readers
            loop.remove_reader(each)
    for _ in range(_TURNS_TO_ACCEPT):
        await asyncio.sleep(0)
    listener.close()
