"""A session's stand-in, and the four ways its callbacks can come in, each listening on loopback."""

from __future__ import annotations

import re
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager

import anyio
import uvicorn
from aiohttp import web
from fastapi import FastAPI

from kie_async.callbacks import Receiver, add_routes, asgi, serve
from kie_async.callbacks._asgi import Application
from kie_async.events import CallbackReceived, Event
from kie_async.models import CallbackEvent
from kie_async.settings import Secret, Settings

TOKEN = "tok_-" + "A9" * 19
TASK = "5c79aaaabbbbccccddddeeeeffffbe8e"
NOW = 1_763_640_000
BODY = b'{"code":200,"msg":"ok","data":{"callbackType":"complete","task_id":"%s","data":[]}}' % TASK.encode()
MOST = 256 * 1024


class Inbox:
    """What the skins need of a session: keeps what was delivered, and what was told."""

    def __init__(self, *keys: str, callback_url: str = "https://me.example/kie") -> None:
        self.settings = Settings(api_key="k", callback_url=callback_url)
        self.delivered: list[tuple[str, CallbackEvent]] = []
        self.told: list[CallbackReceived] = []
        self.answer: Callable[[], Awaitable[str]] = self.accept
        self.receiver = Receiver(tuple(map(Secret, keys)), self.deliver, self.tell, clock=lambda: NOW)

    async def accept(self) -> str:
        return ""

    async def hang(self) -> str:
        await anyio.sleep_forever()
        return ""

    async def deliver(self, token: str, event: CallbackEvent) -> str:
        self.delivered.append((token, event))
        return await self.answer()

    def tell(self, event: Event) -> None:
        assert isinstance(event, CallbackReceived)
        self.told.append(event)


@asynccontextmanager
async def own_server(inbox: Inbox) -> AsyncIterator[str]:
    async with serve(inbox) as server:
        yield server.url


@asynccontextmanager
async def in_aiohttp(inbox: Inbox, app: web.Application | None = None) -> AsyncIterator[str]:
    app = web.Application() if app is None else app
    add_routes(app, inbox)
    runner = web.AppRunner(app, access_log=None, lingering_time=1.0, keepalive_timeout=1.0, shutdown_timeout=1.0)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}/kie"
    finally:
        await runner.cleanup()


@asynccontextmanager
async def under_uvicorn(application: Application, *, lifespan: str = "on") -> AsyncIterator[str]:
    listener = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(
        application,
        http="h11",
        ws="none",
        lifespan=lifespan,  # type: ignore[arg-type]  # a literal of its own
        log_config=None,
        access_log=False,
        timeout_graceful_shutdown=1,
    )
    server = uvicorn.Server(config)
    async with anyio.create_task_group() as group:
        group.start_soon(server.serve, [listener])
        while not server.started:  # uvicorn has no event to wait for
            await anyio.sleep(0.01)
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/kie"
        server.should_exit = True


def bare(inbox: Inbox) -> AbstractAsyncContextManager[str]:
    return under_uvicorn(asgi(inbox))


def in_fastapi(inbox: Inbox) -> AbstractAsyncContextManager[str]:
    app = FastAPI()
    app.mount("/kie", asgi(inbox))
    return under_uvicorn(app)


SKINS: dict[str, Callable[[Inbox], AbstractAsyncContextManager[str]]] = {
    "serve": own_server,
    "aiohttp": in_aiohttp,
    "asgi": bare,
    "fastapi": in_fastapi,
}


class Raw:
    """A connection on which any bytes can be sent."""

    def __init__(self, stream: anyio.abc.SocketStream) -> None:
        self._stream = stream

    async def send(self, data: bytes) -> None:
        await self._stream.send(data)

    async def answer(self) -> bytes:
        """All that comes until the connection ends."""
        received = bytearray()
        try:
            async for piece in self._stream:
                received += piece
        except anyio.BrokenResourceError:
            received += b""  # reset: what came before counts
        return bytes(received)

    async def status(self) -> int:
        """The status of the next answer; 0 if the connection ends without one."""
        received = b""
        try:
            while b"\r\n\r\n" not in received:
                received += await self._stream.receive()
        except (anyio.EndOfStream, anyio.BrokenResourceError):
            return 0
        found = re.match(rb"HTTP/1.[01] ([0-9]{3}) ", received)
        assert found, received
        return int(found[1])


@asynccontextmanager
async def connect(url: str) -> AsyncIterator[Raw]:
    """Open a raw connection to the server of an address."""
    found = re.match(r"http://([0-9.]+):([0-9]+)", url)
    assert found
    async with await anyio.connect_tcp(found[1], int(found[2])) as stream:
        yield Raw(stream)
