"""A proxy on loopback that knows the way to hosts whose names nobody else knows."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import cache

import attrs
import trustme


@attrs.define(eq=False)
class Proxy:
    """Connects to hosts by name, as ``CONNECT name:443`` asks for.

    Attributes:
        ways: the port of loopback on which each host is served.
        asked: the head of each request.
        silent: take requests and never answer.
    """

    ways: dict[str, int]
    silent: bool = False
    port: int = 0
    asked: list[str] = attrs.field(factory=list)
    _serving: set[asyncio.Task[None]] = attrs.field(factory=set)

    @property
    def hosts(self) -> set[str]:
        """The hosts that were asked for."""
        return {head.split()[1].partition(":")[0] for head in self.asked}

    def url(self, user: str = "") -> str:
        return f"http://{user}127.0.0.1:{self.port}"

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._serving.add(task)
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            self.asked.append(head)
            if self.silent:
                await reader.read()
            elif (port := self.ways.get(head.split()[1].partition(":")[0])) is None:
                writer.write(b"HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\n\r\n")
                await writer.drain()
            else:
                writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
                inner = await asyncio.open_connection("127.0.0.1", port)
                await asyncio.gather(_pipe(reader, inner[1]), _pipe(inner[0], writer))
        except (OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass  # the other side is gone, or the test is over
        finally:
            self._serving.discard(task)
            writer.close()

    async def close(self) -> None:
        for task in list(self._serving):
            task.cancel()
        await asyncio.gather(*self._serving)


async def _pipe(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while data := await reader.read(65_536):
            writer.write(data)
            await writer.drain()
    finally:
        writer.close()


@asynccontextmanager
async def serve_proxy(*, silent: bool = False, **ways: int) -> AsyncIterator[Proxy]:
    """Serve a proxy; hosts are written with ``_`` for the dots of their names."""
    proxy = Proxy({name.replace("_", "."): port for name, port in ways.items()}, silent)
    server = await asyncio.start_server(proxy.serve, "127.0.0.1", 0)
    proxy.port = server.sockets[0].getsockname()[1]
    try:
        yield proxy
    finally:
        server.close()
        await proxy.close()


@cache
def _authority() -> trustme.CA:
    return trustme.CA()


def tls_of(*names: str) -> ssl.SSLContext:
    """What proves that a server is the host of these names."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    _authority().issue_cert(*names).configure_cert(context)
    return context


def trust() -> ssl.SSLContext:
    """What believes ``tls_of``."""
    context = ssl.create_default_context()
    _authority().configure_trust(context)
    return context
