"""Calls to the API: the one place where the key goes out.

No redirect is followed, an answer is capped while it streams, TLS is never switched off, and aiohttp's own errors,
which carry the request's headers, never leave this file.
"""

from __future__ import annotations

import asyncio
import os
import random
from base64 import b64encode
from collections.abc import AsyncGenerator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext
from contextvars import ContextVar
from datetime import UTC, datetime
from functools import cache
from typing import Any, Self, TypeVar

import aiohttp
import anyio
import attrs
from aiohttp.client_reqrep import ClientRequest
from aiohttp.connector import Connection
from aiohttp.http_exceptions import HttpProcessingError
from aiohttp.payload import AsyncIterablePayload
from aiohttp.tracing import Trace
from multidict import CIMultiDict
from yarl import URL

from kie_async import _package
from kie_async._client.concurrency import InternalErrors
from kie_async._protocol.backoff import MAX_RETRY_AFTER, READ_ATTEMPTS, RetryBudget, backoff
from kie_async._protocol.endpoints import ApiCall, FilePart
from kie_async._protocol.json_values import dump
from kie_async._protocol.response_codes import Response, parse_response, seconds_to_wait
from kie_async.errors import (
    BadResponseError,
    ConnectError,
    FileError,
    InternalError,
    InvalidRequestError,
    KieError,
    ServerError,
    SessionError,
    StorageError,
    SubmitUnknownError,
    TLSError,
)
from kie_async.events import Observer, Retrying, clean
from kie_async.limiter import Permit
from kie_async.settings import Secret, Settings

T = TypeVar("T")

MAX_BODY = 1 << 20  # bytes, decompressed: the largest answer known is a few kB
UPLOADS_AT_ONCE = 4
UPLOAD_FOLDER = "kie-async"  # of the account at the upload host
_PIECE = 1 << 18  # bytes of a file read at once
_DIRECT = 4  # reads that users ask for are sent beside the polls
_SERVER_ERRORS = 500
_JSON = "application/json; charset=utf-8"
_UNBOUNDED = nullcontext()
_SHORTEST_KEY = 16  # a shorter one is no real key, and may be a word of the answer


class Transport(anyio.AsyncContextManagerMixin):
    """Sends calls and reads answers. Entered once, by the session that owns it."""

    def __init__(self, settings: Settings, emit: Observer) -> None:
        self.settings = settings
        self.emit = emit
        self._budget = RetryBudget()
        self._reads = asyncio.Semaphore(settings.max_concurrent_polls + _DIRECT)
        self._uploads = asyncio.Semaphore(UPLOADS_AT_ONCE)
        self._timeout = aiohttp.ClientTimeout(
            total=settings.total_timeout, connect=settings.connect_timeout, sock_read=settings.read_timeout
        )
        self._upload_timeout = attrs.evolve(self._timeout, total=settings.upload_timeout)
        # With each request, and not the client's own: those aiohttp sends to the proxy too, as Proxy-Authorization.
        self._headers = CIMultiDict({"Authorization": Hidden(f"Bearer {settings.api_key.reveal()}")})
        self._json_headers = CIMultiDict({**self._headers, "Content-Type": _JSON})
        self._pooled: aiohttp.ClientSession
        self._unpooled: aiohttp.ClientSession

    @asynccontextmanager
    async def __asynccontextmanager__(self) -> AsyncGenerator[Self]:
        async with self._open() as self._pooled, self._open(force_close=True) as self._unpooled:
            yield self

    def _open(self, *, force_close: bool = False) -> aiohttp.ClientSession:
        settings = self.settings
        return aiohttp.ClientSession(
            connector=_Connector(ssl=settings.ssl_context or True, limit=0, force_close=force_close),
            cookie_jar=aiohttp.DummyCookieJar(),
            headers={"User-Agent": user_agent(), "Accept": "application/json"},
            trust_env=False,
        )

    async def send(self, call: ApiCall[T], *, permit: Permit | None = None, retry: bool = True) -> T:
        """Send a call and return what it answers.

        A call that spends is sent once. Others are sent again, within the budget all share, after a failure that
        may pass.

        Args:
            call: what to ask.
            permit: of a submission. It is released when the headers of the answer are here, or lost, and given back
                if nothing was sent; one that ran out before a byte could be sent forbids it.
            retry: False leaves all trying again to the caller.

        Raises:
            KieError: as ``_protocol.response_codes.parse_response`` says; ``ConnectError`` if nothing was sent.

        Cancelling a call that spends leaves open whether it was sent: shield it.
        """
        attempt = 1
        while True:
            try:
                value = _parsed(call, await self._exchange(call, permit))
            except KieError as error:
                error.message = error.message.replace(self.settings.api_key.reveal(), "…")
                if call.spends or not retry or attempt == READ_ATTEMPTS or not self._may_send_again(error):
                    raise
                delay, reason = _delay(error, attempt), str(error)
            else:
                self._budget.succeed()
                return value
            self.emit(Retrying(call.name, reason, attempt, delay))
            await anyio.sleep(delay)
            attempt += 1

    def _may_send_again(self, error: KieError) -> bool:
        return error.retryable and (error.retry_after or 0.0) <= MAX_RETRY_AFTER and self._budget.spend()

    async def _exchange(self, call: ApiCall[Any], permit: Permit | None) -> Response:
        sending = _Sending(permit)
        token = _SENDING.set(sending)
        try:
            body = _json(call)
            async with self._slot(call):
                return await self._request(call, body, sending)
        except KieError:
            raise
        except Exception as error:  # noqa: BLE001  # aiohttp's, and whatever else: did the server get it?
            failure = _translate(call, error, sending)
        finally:
            _SENDING.reset(token)
            sending.end()
        raise failure  # outside of the handler, so that it does not carry aiohttp's error and its headers

    def _slot(self, call: ApiCall[Any]) -> AbstractAsyncContextManager[object]:
        """Bound what is under way at once; submissions are bounded by the limiter."""
        if call.spends:
            return _UNBOUNDED
        return self._reads if call.file is None else self._uploads

    async def _request(self, call: ApiCall[Any], body: bytes | None, sending: _Sending) -> Response:
        settings = self.settings
        # A POST that races the idle close of a pooled connection fails, and nobody can know whether it was received.
        session = self._pooled if call.method == "GET" else self._unpooled
        check_client(session)
        url = (settings.base_url if call.host == "api" else settings.upload_base_url) + call.path
        async with session.request(
            call.method,
            url,
            params=call.query,
            data=body if call.file is None else _upload_form(call.file),
            headers=self._headers if body is None else self._json_headers,
            timeout=self._timeout if call.file is None else self._upload_timeout,
            allow_redirects=False,
            **by_proxy(settings, url),
        ) as response:
            sending.end()
            body = _without_key(settings.api_key, await _capped(response))
            retry_after = seconds_to_wait(response.headers.get("Retry-After"), datetime.now(UTC))
            return Response(response.status, body, retry_after)


def _without_key(key: Secret, received: bytes) -> bytes:
    """Blot the key out of an answer, which may echo the request's headers."""
    if len(key.reveal()) < _SHORTEST_KEY:
        return received
    return received.replace(key.reveal().encode(), b"***")


class _Connector(aiohttp.TCPConnector):
    """Refuses a connection on which the server has sent something before a request.

    aiohttp would take what came on an idle connection for the answer to the next request.
    """

    async def connect(self, req: ClientRequest, traces: list[Trace], timeout: aiohttp.ClientTimeout) -> Connection:  # noqa: ASYNC109  # aiohttp's own signature
        connection = await super().connect(req, traces, timeout)
        sending = _SENDING.get()
        # It ran out if connecting took long, or the process was stopped.
        if sending.permit is not None and not sending.permit.is_valid:
            connection.close()
            raise _PermitRanOutError
        sending.is_connected = True
        if connection.protocol is None or connection.protocol.should_close:
            connection.close()
            raise aiohttp.ServerDisconnectedError
        return connection


class _PermitRanOutError(aiohttp.ClientError):
    """The permit ran out before anything was sent."""


class _Sending:
    """One request on its way: whether it got a connection. Without one nothing was sent, with one nobody can know."""

    def __init__(self, permit: Permit | None) -> None:
        self.permit = permit
        self.is_connected = False

    def end(self) -> None:
        """End the permit, once: the headers of the answer are here or lost, or nothing was sent."""
        permit, self.permit = self.permit, None
        if permit is not None:
            (permit.release if self.is_connected else permit.give_back)()


# The request that the running task makes: so the connector, which aiohttp calls, finds it.
_SENDING: ContextVar[_Sending] = ContextVar("_SENDING")


def _parsed(call: ApiCall[T], answer: Response) -> T:
    try:
        with InternalErrors(call.name):
            return parse_response(call, answer)
    except InternalError as error:
        if not call.spends:
            raise
        raise SubmitUnknownError(f"{error.message}; it may be running and charged") from error


def _delay(error: KieError, attempt: int) -> float:
    return (error.retry_after or 0.0) + backoff(attempt, random.random)


def _json(call: ApiCall[Any]) -> bytes | None:
    try:
        return None if call.body is None else dump(call.body)
    except ValueError:
        message = f"{call.name}: it holds what cannot be sent: half a surrogate pair, NaN or infinity; nothing was sent"
        raise InvalidRequestError(message) from None


class _TooLongError(aiohttp.ClientError):
    """The answer is longer than any that is expected."""


# What aiohttp raises: its own, those of sockets, and ValueError for what it cannot parse or send. Others do not pass by
# themselves.
EXPECTED_ERRORS = (aiohttp.ClientError, HttpProcessingError, OSError, ValueError)


async def _capped(response: aiohttp.ClientResponse) -> bytes:
    body = b""
    while part := await response.content.readany():
        body += part
        if len(body) > MAX_BODY:
            raise _TooLongError
    return body


def _translate(call: ApiCall[Any], error: Exception, sending: _Sending) -> KieError:
    """Our own error for one of aiohttp's: could the server have acted?"""
    if isinstance(error.__cause__, KieError):  # the file, not the wire
        return error.__cause__.with_traceback(None)
    reason = _reason(error)
    if not sending.is_connected:
        return _unsent(call, error, reason)
    if call.spends:
        return SubmitUnknownError(
            f"{call.name}: sent, but the answer was lost ({reason}); it may be running and charged, so it is not "
            "sent again"
        )
    if isinstance(error, _TooLongError):
        return BadResponseError(f"{call.name}: the answer cannot be read ({reason})")
    return ServerError(f"{call.name}: no answer ({reason})")


def _unsent(call: ApiCall[Any], error: Exception, reason: str) -> ConnectError:
    if isinstance(error, _PermitRanOutError):
        return ConnectError(f"{call.name}: its permit ran out before it began: nothing was sent")
    if isinstance(error, aiohttp.ClientSSLError):
        return TLSError(f"{call.name}: the server could not prove who it is ({reason})")
    if isinstance(error, aiohttp.ClientHttpProxyError):
        message = f"{call.name}: the proxy refused to connect, nothing was sent: check Settings.proxy, HTTPS_PROXY"
        return ConnectError(message, code=error.status, retryable=error.status >= _SERVER_ERRORS)
    message = f"{call.name}: no connection, nothing was sent ({reason})"
    return ConnectError(message, retryable=isinstance(error, EXPECTED_ERRORS))


def _reason(error: Exception) -> str:
    """Name an error of aiohttp's. Only the system's words are repeated: its own quote headers."""
    if isinstance(error, _TooLongError):
        return f"it is longer than {MAX_BODY} bytes"
    words = error.strerror if isinstance(error, OSError) else None
    return f"{type(error).__name__}: {clean(words)}" if words else type(error).__name__


class Hidden(str):
    """A header that bears a secret: sent as it is, but shown by no repr.

    A cancelled call brings aiohttp's frames, and the headers in them, into tracebacks.
    """

    __slots__ = ()

    def __repr__(self) -> str:
        return f"'{self.partition(' ')[0]} …'"


def check_client(client: aiohttp.ClientSession) -> None:
    """Raise SessionError if it was closed, in another task, while this one waited; aiohttp raises a RuntimeError."""
    if client.closed:
        raise SessionError("the session was closed: nothing was sent")


def by_proxy(settings: Settings, url: str) -> dict[str, Any]:
    """The arguments of a request that lead it through the proxy to this address, if there is one."""
    proxy = settings.proxy_for(url)
    if proxy is None:
        return {}
    address = URL(proxy.reveal())
    bare = address.with_user(None)
    if address.user is None:
        return {"proxy": bare}
    token = b64encode(f"{address.user}:{address.password or ''}".encode()).decode()
    return {"proxy": bare, "proxy_headers": {"Proxy-Authorization": Hidden(f"Basic {token}")}}


@cache
def user_agent() -> str:
    """Return ``kie_async/<version>``; the version is that of the installed package."""
    return f"kie_async/{_package.__version__}"


# ---------------------------------------------------------------- the body of an upload


def _upload_form(part: FilePart) -> aiohttp.FormData:
    """Return the fields that the upload host takes: ``file``, ``uploadPath``, ``fileName`` (its own documentation)."""
    fields = aiohttp.FormData()
    fields.add_field("uploadPath", UPLOAD_FOLDER)
    fields.add_field("fileName", part.file_name)
    fields.add_field("file", _FileContent(part), filename=part.file_name)
    return fields


class _FileContent(AsyncIterablePayload):
    """The content of a file. Its size is known, so that the request has a length and is not chunked."""

    def __init__(self, part: FilePart) -> None:
        super().__init__(_pieces(part))
        self._size = part.size


async def _pieces(part: FilePart) -> AsyncGenerator[bytes]:
    """Give the content of a file, and report how much of it was sent."""
    sent = 0
    while sent < part.size:
        piece = await asyncio.to_thread(_read_piece, part, sent)
        yield piece
        sent += len(piece)
        if part.on_bytes is not None:
            part.on_bytes(sent)


def _read_piece(part: FilePart, start: int) -> bytes:
    """Read a piece; blocks. The file is opened for each, so that none is left open whenever a call is cancelled.

    Raises:
        FileError: the file has no longer the size that was announced.
        StorageError: it cannot be read.
    """
    wanted = min(_PIECE, part.size - start)
    try:
        with part.path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            file.seek(start)
            piece = file.read(wanted)
    except OSError as error:
        message = f"{clean(part.path.name)} could not be read: {error.strerror}; give access to it"
        raise StorageError(message, retryable=False) from None
    if size != part.size or len(piece) < wanted:
        raise FileError(f"{clean(part.path.name)} changed while it was sent: try again when it is finished")
    return piece
