"""Receive callbacks in Starlette, FastAPI, Litestar, Quart, Django or any ASGI server: a plain ASGI callable.

https://asgi.readthedocs.io/en/latest/specs/www.html
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from contextlib import suppress
from http import HTTPStatus
from typing import Any, TypeAlias

import attrs

from kie_async.callbacks._receiver import Receiving, segments

Message: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[Message]]
Send: TypeAlias = Callable[[Message], Awaitable[None]]
Application: TypeAlias = Callable[[Any, Any, Any], Awaitable[None]]  # each framework has types of its own for these


def asgi(session: Receiving) -> Application:
    """Make an ASGI application that receives a session's callbacks; the last segment of the path is the token.

    It may be made before the session is opened. It limits the size of a body and the time it may take, as frameworks
    and most servers do not. The server's access log would have the tokens: switch it off, or cut the paths. ::

        app.mount("/kie", asgi(session))  # Starlette and FastAPI
        litestar.asgi("/kie", is_mount=True, copy_scope=True)(asgi(session))  # Litestar, among its route handlers
        DispatcherMiddleware({"/kie": asgi(session), "/": app})  # Quart, with hypercorn.middleware

    Django cannot mount ASGI applications: choose by the path in its asgi.py, or mount both in a Starlette application,
    whose lifespan can also hold the session.

    Args:
        session: the session that gets the callbacks.
    """

    async def application(scope: Message, receive: Receive, send: Send) -> None:
        kind = scope["type"]
        if kind == "http":
            await _answer(session, scope, receive, send)
        elif kind == "lifespan":
            await _answer_lifespan(receive, send)
        elif kind == "websocket":
            await send({"type": "websocket.close"})
        else:
            raise NotImplementedError(f"callbacks do not come as {kind!r}")

    return application


async def _answer(session: Receiving, scope: Message, receive: Receive, send: Send) -> None:
    headers = [(name.decode("latin-1"), value.decode("latin-1")) for name, value in scope["headers"]]
    token = (segments(scope["path"]) or [""])[-1]  # wherever it is mounted, root_path in the path or not
    body = _ReceivedBody(receive)
    status = await session.receiver.receive(scope["method"], headers, token, body.read)
    answer = [(b"content-length", b"0")]
    if status == HTTPStatus.METHOD_NOT_ALLOWED:
        answer.append((b"allow", b"POST"))
    if body.more and scope.get("http_version", "1.1").startswith("1"):
        answer.append((b"connection", b"close"))  # or the server would read the rest of the body
    with suppress(OSError):  # the sender may be gone
        await send({"type": "http.response.start", "status": status, "headers": answer})
        await send({"type": "http.response.body", "body": b""})


@attrs.define
class _ReceivedBody:
    _receive: Receive
    more: bool = True

    async def read(self) -> bytes:
        """Return the next chunk; ``b""`` at the end."""
        while self.more:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                raise ConnectionResetError
            self.more = message.get("more_body", False)
            if piece := message.get("body"):
                return bytes(piece)
        return b""


async def _answer_lifespan(receive: Receive, send: Send) -> None:
    """Answer the events of lifespan; nothing is started or stopped here."""
    phase = ""
    while phase != "shutdown":
        phase = (await receive())["type"].removeprefix("lifespan.")
        await send({"type": f"lifespan.{phase}.complete"})
