"""The client that downloads: it knows no key, keeps no cookies, and goes only where ``address_rules`` lets it.

Results lie on hosts that the service names as it likes, so a download shares nothing with the session of the API.
Every connection is judged by the address it is really made to (``socket_factory``), which covers names, unusual
spellings of addresses, every hop of a redirect, and names that change their address between two look-ups. Where a proxy
leads to a host, only the proxy is connected to, wherever it is: there the host is judged by its name.
"""

from __future__ import annotations

import errno
import socket
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import asynccontextmanager, nullcontext
from http import HTTPStatus
from typing import Self, TypeAlias
from urllib.parse import urljoin

import aiohttp
import anyio
import attrs
from yarl import URL

from kie_async._client.http_client import EXPECTED_ERRORS, by_proxy, check_client, user_agent
from kie_async._protocol.address_rules import check_address, check_name, check_url
from kie_async.errors import DownloadError, ResultExpiredError
from kie_async.events import Observer, clean
from kie_async.settings import Settings

HOPS = 5  # redirects followed
EXCHANGES = 16  # at once; the others wait their turn
_BUFFER = 256 * 1024  # bytes read ahead of the writer, per exchange
_MAX_VALIDATOR = 256  # characters; a longer one is not worth keeping

_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_GONE = frozenset({403, 404, 410})
_BUSY = frozenset({408, 425, 429})
_MAX_DIGITS = 19  # of a 64-bit size
_READABLE = frozenset({200, 206, 416})

_AddressInfo: TypeAlias = tuple[int, int, int, str, tuple[object, ...]]


def _guarded(*, allow_loopback: bool) -> Callable[[_AddressInfo], socket.socket]:
    """Make sockets for addresses that may be connected to; refuse the others before a packet is sent."""

    def make(info: _AddressInfo) -> socket.socket:
        family, kind, protocol, _, address = info
        reason = check_address(str(address[0]), allow_loopback=allow_loopback)
        if reason is not None:
            raise PermissionError(errno.EPERM, f"its address is refused ({reason})")
        return socket.socket(family, kind, protocol)

    return make


@attrs.frozen
class DownloadResponse:
    """An answer to a download, to be read by ``async for`` in chunks of any size (raises ``DownloadError``).

    Attributes:
        status: 200 (from the start), 206 (from ``start`` on) or 416 (there is nothing at ``start``).
        start: where the body begins in the file; None where the server does not say so.
        total: the size of the whole file in bytes, as far as the server says it.
        validator: what proves by If-Range that the file is still the same: a strong ETag, or else its date.
        encoding: a Content-Encoding that was not asked for; empty for plain bytes.
        delimited: HTTP itself says where the body ends (Content-Length or chunks), so that a body cut in the middle
            raises. Without that it ends when the connection does, for whatever reason.
    """

    status: int
    start: int | None
    total: int | None
    validator: str | None
    encoding: str
    delimited: bool
    _body: aiohttp.StreamReader = attrs.field(repr=False)

    def __aiter__(self) -> DownloadResponse:
        return self

    async def __anext__(self) -> bytes:
        try:
            chunk = await self._body.readany()
        except EXPECTED_ERRORS as error:
            failure = _translate(error)
        else:
            if chunk:
                return chunk
            raise StopAsyncIteration
        raise failure  # outside of the handler, so that it does not carry aiohttp's error and its headers


class Fetcher(anyio.AsyncContextManagerMixin):
    """The download client of a session: ``async with Fetcher(settings) as fetcher``.

    Args:
        settings: the timeouts, the proxy, the TLS context, and whether the API is on loopback.
        emit: called with retries and notices; by default the observer of the settings.
    """

    def __init__(self, settings: Settings, emit: Observer | None = None) -> None:
        self.settings = settings
        self.emit = emit or settings.observer
        self._turns = anyio.Semaphore(EXCHANGES)

    @asynccontextmanager
    async def __asynccontextmanager__(self) -> AsyncGenerator[Self]:
        guard = _guarded(allow_loopback=self.settings.on_loopback)
        async with _client(self.settings, guard) as self._direct, _client(self.settings, None) as self._proxied:
            yield self

    @asynccontextmanager
    async def open(
        self, url: str, *, start: int = 0, validator: str | None = None, limit: int | None = None
    ) -> AsyncGenerator[DownloadResponse]:
        """Ask for a file from byte ``start`` on, following redirects; leaving the context ends the exchange.

        Args:
            url: where it lies; judged by ``check_url``, as is each redirect.
            start: bytes that are there already.
            validator: that of the answer they came from; if the file has changed, it comes whole (200).
            limit: ask for so many bytes from the beginning only, without waiting for a turn; a host may send more.

        Raises:
            ResultExpiredError: 403, 404 or 410.
            DownloadError: the URL may not be fetched (not retryable), or the exchange failed.
        """
        turn = self._turns if limit is None else nullcontext()
        headers = _headers(start, validator) if limit is None else {"Range": f"bytes=0-{limit - 1}"}
        async with turn, self._ask(url, headers) as response:
            _check_status(response.status)
            yield _answer(response)

    @asynccontextmanager
    async def _ask(self, url: str, headers: Mapping[str, str]) -> AsyncGenerator[aiohttp.ClientResponse]:
        """Go from hop to hop until an answer is no redirect."""
        own = self.settings.on_loopback
        for _ in range(HOPS + 1):
            url = check_url(url, allow_loopback_http=own)
            if self.settings.proxy_for(url) is not None:
                check_name(url, allow_loopback=own)
            response = await self._get(url, headers)
            try:
                if response.status not in _REDIRECTS:
                    yield response
                    return
                url = _next_hop(url, response.headers.get("Location", ""))
            finally:
                response.release()  # closes the connection, unless the body was read to its end
        raise DownloadError(f"the download was redirected more than {HOPS} times", retryable=False)

    async def _get(self, url: str, headers: Mapping[str, str]) -> aiohttp.ClientResponse:
        route = by_proxy(self.settings, url)
        client = self._proxied if route else self._direct
        check_client(client)
        try:
            with anyio.fail_after(self.settings.total_timeout):
                return await client.get(URL(url, encoded=True), headers=headers, allow_redirects=False, **route)
        except EXPECTED_ERRORS as error:
            failure = _translate(error)
        raise failure  # as above


def _client(settings: Settings, guard: Callable[[_AddressInfo], socket.socket] | None) -> aiohttp.ClientSession:
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(
            limit=0,  # the turns bound it, and waiting for one runs into no timeout
            socket_factory=guard,
            ssl=settings.ssl_context or True,
            use_dns_cache=False,
        ),
        headers={"User-Agent": user_agent(), "Accept-Encoding": "identity", "Accept": "*/*"},
        cookie_jar=aiohttp.DummyCookieJar(),
        auto_decompress=False,
        trust_env=False,
        read_bufsize=_BUFFER,
        timeout=aiohttp.ClientTimeout(total=None, connect=settings.connect_timeout, sock_read=settings.read_timeout),
    )


def _headers(start: int, validator: str | None) -> dict[str, str]:
    if not start:
        return {}
    headers = {"Range": f"bytes={start}-"}
    return {**headers, "If-Range": validator} if validator else headers


def _check_status(status: int) -> None:
    if status in _GONE:
        raise ResultExpiredError("the file is not there any more, or its link has expired", code=status)
    if status not in _READABLE:
        busy = status in _BUSY or status >= HTTPStatus.INTERNAL_SERVER_ERROR
        raise DownloadError("the file's host answered with an error", code=status, retryable=busy)


def _answer(response: aiohttp.ClientResponse) -> DownloadResponse:
    start, total = _extent(response)
    encoding = response.headers.get("Content-Encoding", "").strip().lower()
    return DownloadResponse(
        status=response.status,
        start=start,
        total=total,
        validator=_validator(response.headers),
        encoding="" if encoding == "identity" else encoding,
        delimited=response.content_length is not None or _is_chunked(response.headers),
        body=response.content,
    )


def _is_chunked(headers: Mapping[str, str]) -> bool:
    return headers.get("Transfer-Encoding", "").rpartition(",")[2].strip().lower() == "chunked"


def _validator(headers: Mapping[str, str]) -> str | None:
    etag = headers.get("ETag", "")
    strong = etag if etag.startswith('"') else ""  # a weak one does not promise the same bytes
    validator = strong or headers.get("Last-Modified", "")
    fit = validator.isascii() and validator.isprintable() and len(validator) <= _MAX_VALIDATOR
    return validator if validator and fit else None


def _extent(response: aiohttp.ClientResponse) -> tuple[int | None, int | None]:
    """Read from where on the body counts, and how large the whole is."""
    if response.status == HTTPStatus.OK:  # the whole file
        return 0, response.content_length
    unit, _, extent = response.headers.get("Content-Range", "").strip().partition(" ")
    span, _, total = extent.partition("/")
    if unit.lower() != "bytes":
        return None, None
    return _count(span.partition("-")[0]), _count(total)


def _count(text: str) -> int | None:
    text = text.strip()
    return int(text) if text.isascii() and text.isdigit() and len(text) <= _MAX_DIGITS else None


def _next_hop(url: str, location: str) -> str:
    try:
        target = urljoin(url, location)
    except ValueError:
        target = ""
    if not location or not target:
        raise DownloadError("the download was redirected to nowhere", retryable=False)
    if url.startswith("https:") and target.lower().startswith("http:"):
        raise DownloadError("the download was redirected from https to plain http", retryable=False)
    return target


def _translate(error: Exception) -> DownloadError:
    """Our own error for one of aiohttp's, which holds headers and whole addresses."""
    if isinstance(error, aiohttp.ClientConnectorCertificateError):
        return DownloadError("the host's certificate was refused", retryable=False)
    if isinstance(error, aiohttp.ClientHttpProxyError):
        busy = error.status >= HTTPStatus.INTERNAL_SERVER_ERROR
        message = "the proxy refused to connect: check Settings.proxy, HTTPS_PROXY"
        return DownloadError(message, code=error.status, retryable=busy)
    if isinstance(error, aiohttp.ClientConnectorError):
        words = clean(error.os_error.strerror or "no connection")
        return DownloadError(f"the host was not reached: {words}", retryable=error.os_error.errno != errno.EPERM)
    if isinstance(error, TimeoutError):
        return DownloadError("the host was silent for too long")
    return DownloadError(f"the download broke off ({type(error).__name__})")
