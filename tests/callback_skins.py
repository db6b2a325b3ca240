"""A session's stand-in, and the ways its callbacks can come in, each listening on loopback."""

from __future__ import annotations

import re
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import anyio
import litestar
import quart
import uvicorn
from aiohttp import web
from django.conf import settings as django_settings
from django.core.asgi import get_asgi_application
from django.http import HttpResponse
from django.urls import path as django_path
from fastapi import FastAPI
from hypercorn.middleware import DispatcherMiddleware
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Mount, Route

from kie_async.callbacks import Receiver, Receiving, add_routes, asgi, serve
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
        self.emitted: list[CallbackReceived] = []
        self.answer: Callable[[], Awaitable[str]] = self.accept
        self.receiver = Receiver(tuple(map(Secret, keys)), self.deliver, self.emit, clock=lambda: NOW)

    async def accept(self) -> str:
        return ""

    async def hang(self) -> str:
        await anyio.sleep_forever()
        return ""

    async def deliver(self, token: str, event: CallbackEvent) -> str:
        self.delivered.append((token, event))
        return await self.answer()

    def emit(self, event: Event) -> None:
        assert isinstance(event, CallbackReceived)
        self.emitted.append(event)


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
async def under_uvicorn(
    application: Any, listener: socket.socket | None = None, *, lifespan: str = "on", root_path: str = ""
) -> AsyncIterator[str]:
    listener = listener or socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(
        application,
        http="h11",
        ws="wsproto",
        lifespan=lifespan,  # type: ignore[arg-type]  # a literal of its own
        root_path=root_path,
        log_config=None,
        access_log=False,
        timeout_graceful_shutdown=1,
    )
    server = uvicorn.Server(config)
    with listener:
        async with anyio.create_task_group() as group:
            group.start_soon(server.serve, [listener])
            while not server.started:  # uvicorn has no event to wait for
                await anyio.sleep(0.01)
            yield f"http://127.0.0.1:{listener.getsockname()[1]}/kie"
            server.should_exit = True


def in_fastapi(session: Receiving) -> Any:
    app = FastAPI()
    app.mount("/kie", asgi(session))
    app.add_api_route("/hello", hello)
    return app


def in_starlette(session: Receiving) -> Any:
    return Starlette(routes=[Mount("/kie", asgi(session)), Route("/hello", lambda _request: PlainTextResponse("hi"))])


def in_litestar(session: Receiving) -> Any:
    """As under "Mounting ASGI apps" in Litestar's documentation."""
    mounted = litestar.asgi("/kie", is_mount=True, copy_scope=True)(asgi(session))
    hello_route = litestar.get("/hello")(hello)
    return litestar.Litestar([mounted, hello_route], logging_config=None)  # or it changes logging for all tests


def in_quart(session: Receiving) -> Any:
    """With the middleware of Hypercorn, which Quart comes with, for several applications under one server."""
    app = quart.Quart(__name__)
    app.add_url_rule("/hello", view_func=hello)
    return DispatcherMiddleware({"/kie": asgi(session), "/": app})


def in_django(session: Receiving) -> Any:
    """As an asgi.py does it by hand: Django has no mounts, and knows requests alone."""
    django_app = django_application()
    ours = asgi(session)

    async def application(scope: Any, receive: Any, send: Any) -> None:
        chosen = ours if scope["type"] != "http" or scope["path"].startswith("/kie/") else django_app
        await chosen(scope, receive, send)

    return application


def django_in_starlette(session: Receiving) -> Any:
    """Django embedded in another ASGI application, as its documentation on ASGI has it."""
    return Starlette(routes=[Mount("/kie", asgi(session)), Mount("/", django_application())])


async def hello() -> str:
    return "hi"


def django_application() -> Any:
    if not django_settings.configured:
        django_settings.configure(ROOT_URLCONF=__name__, ALLOWED_HOSTS=["127.0.0.1"], LOGGING_CONFIG=None)
    return get_asgi_application()


urlpatterns = [django_path("hello", lambda _request: HttpResponse("hi"))]  # Django reads it

FRAMEWORKS: dict[str, Callable[[Receiving], Any]] = {
    "bare": asgi,
    "starlette": in_starlette,
    "fastapi": in_fastapi,
    "litestar": in_litestar,
    "quart": in_quart,
    "django": in_django,
    "django in starlette": django_in_starlette,
}

SKINS: dict[str, Callable[[Inbox], AbstractAsyncContextManager[str]]] = {
    "serve": own_server,
    "aiohttp": in_aiohttp,
    "asgi": lambda inbox: under_uvicorn(asgi(inbox)),
    "fastapi": lambda inbox: under_uvicorn(in_fastapi(inbox)),
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
