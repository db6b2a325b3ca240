"""Receive callbacks in an aiohttp application, or in a small server."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from http import HTTPStatus
from ipaddress import IPv4Address, ip_address
from typing import Any
from urllib.parse import quote, unquote, urlsplit

import attrs
from aiohttp import HttpVersion11, web

from kie_async._client.http_server import listening, url_of
from kie_async.callbacks._receiver import TIMEOUT, Receiving, segments

MAX_CONNECTIONS = 512  # half of the open files that a process is commonly allowed
_SHUTDOWN_TIMEOUT = 1.0  # seconds for callbacks under way when a server ends
_BANNER = "kie_async"  # no version: it tells a stranger what to try
_OPTIONS: dict[str, Any] = {
    "access_log": None,  # it would hold the tokens
    "auto_decompress": False,  # a compressed body is refused
    "keepalive_timeout": TIMEOUT,  # holds for a request's head as well, until it is complete
    "lingering_time": 1.0,  # seconds to read on after a refusal, so that its sender sees the answer and not a reset
}


def add_routes(app: web.Application, session: Receiving, *, path: str | None = None) -> None:
    """Make an aiohttp application receive a session's callbacks, at ``POST {path}/{token}``.

    aiohttp's access log has the paths, and with them the tokens: switch it off, or cut the paths. Slow heads of
    requests are limited where the application is run: ``web.run_app(app, keepalive_timeout=10)``. ::

        def make_app() -> web.Application:
            session = kie.KieSession()

            async def run_session(_app: web.Application):
                async with session:
                    yield

            app = web.Application()
            app.cleanup_ctx.append(run_session)
            kie.callbacks.add_routes(app, session)
            return app

    Args:
        app: the application, not started yet.
        session: the session that gets the callbacks.
        path: the path of the route; by default that of the setting ``callback_url``.
    """

    async def take(request: web.Request) -> web.Response:
        return await _answer(session, request, request.match_info["token"].rstrip("/"))

    at = _route(_prefix(session, path)) + "/{token:[^/]+/*}"  # some proxies add a slash
    app.router.add_route("*", at, take, expect_handler=_expect_later)


@attrs.frozen
class Serving:
    """Where a server of ``serve`` listens.

    Attributes:
        host: the address that was bound.
        port: the port that was bound.
        url: the address for the setting ``callback_url``, as seen from this machine.
    """

    host: str
    port: int
    url: str


@asynccontextmanager
async def serve(
    session: Receiving, *, host: str = "127.0.0.1", port: int = 0, path: str | None = None
) -> AsyncIterator[Serving]:
    """Run a small server that receives a session's callbacks while the block lasts.

    It speaks plain HTTP: put a TLS proxy before it if it must be reached from outside. A sender has 10 s for the head
    of a request and 10 s for its body; a connection carries one request; beyond 512 connections the oldest are closed.

    Args:
        session: the session that gets the callbacks.
        host: an address or name of this machine.
        port: the port; 0 for any free one.
        path: the path before the token; by default that of the setting ``callback_url``.

    Raises:
        SettingsError: the port is in use, or the host is not on this machine.
    """
    prefix = _prefix(session, path)
    server = _CallbackServer(partial(_answer_at, prefix, session))
    runner = web.ServerRunner(server, shutdown_timeout=_SHUTDOWN_TIMEOUT)
    async with listening(runner, "callbacks", host, port) as (bound_host, bound_port):
        address = ip_address(bound_host.partition("%")[0])
        if address.is_unspecified:
            address = ip_address("127.0.0.1" if isinstance(address, IPv4Address) else "::1")
        yield Serving(bound_host, bound_port, url_of(str(address), bound_port) + prefix)


class _RequestHandler(web.RequestHandler):
    """A connection that answers malformed HTTP without a version, an echo, or a log line that the sender controls."""

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """Answer a request that could not be read (400) or a fault of our own (500, logged)."""
        fault = status == HTTPStatus.INTERNAL_SERVER_ERROR
        answer = super().handle_error(request, status, exc, message) if fault else _response(status)
        answer.headers["Server"] = _BANNER
        return answer


class _CallbackServer(web.Server):
    def __call__(self) -> _RequestHandler:
        """Make the protocol of a new connection; beyond the limit the oldest, which are the slow ones, are closed."""
        connections = self.connections
        for oldest in connections[: max(0, len(connections) - MAX_CONNECTIONS + 1)]:
            oldest.force_close()
        return _RequestHandler(self, loop=asyncio.get_running_loop(), **_OPTIONS)


async def _answer_at(prefix: str, session: Receiving, request: web.BaseRequest) -> web.Response:
    *parents, token = segments(request.path) or [""]
    answer = await _answer(session, request, token if parents == segments(unquote(prefix)) else "")
    answer.force_close()  # a connection kept open would need a limit against slowness of its own
    return answer


async def _answer(session: Receiving, request: web.BaseRequest, token: str) -> web.Response:
    body = _RequestBody(request)
    status = await session.receiver.receive(request.method, request.headers.items(), token, body.read)
    return _response(status)


@attrs.define
class _RequestBody:
    _request: web.BaseRequest
    _begun: bool = False

    async def read(self) -> bytes:
        """Return the next chunk; ``b""`` at the end."""
        if not self._begun:
            self._begun = True
            await self._continue()
        try:
            return await self._request.content.readany()
        except web.RequestPayloadError as error:
            raise ConnectionResetError from error

    async def _continue(self) -> None:
        """Send "100 Continue" to a sender that waits for it; a request whose head was refused does not get here."""
        expected = self._request.headers.get("Expect", "").lower() == "100-continue"
        if expected and self._request.version >= HttpVersion11:
            writer = self._request.writer
            await writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            writer.output_size = 0  # the answer itself has not begun


async def _expect_later(_request: web.Request) -> None:
    """Leave the header Expect to the reader of the body: aiohttp's own handler fails on odd bytes in it."""


def _response(status: int) -> web.Response:
    answer = web.Response(status=status, headers={"Server": _BANNER})
    if status == HTTPStatus.METHOD_NOT_ALLOWED:
        answer.headers["Allow"] = "POST"
    return answer


def _route(prefix: str) -> str:
    """The prefix as aiohttp takes it: it compares decoded paths, but quotes all of a route that is no pattern."""
    decoded = unquote(prefix)
    return prefix if quote(decoded) == decoded else f"/{{prefix:{re.escape(decoded[1:])}}}"


def _prefix(session: Receiving, path: str | None) -> str:
    """The path under which tokens stand: "" or with a slash before and none after."""
    if path is None:
        return urlsplit(session.settings.callback_url).path.rstrip("/")  # as the service is told
    return f"/{path.strip('/')}" if path.strip("/") else ""
