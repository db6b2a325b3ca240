"""A host of files for tests: a raw server that answers as told, byte by byte."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TypeAlias

import attrs

from kie_async.events import Event
from kie_async.settings import Settings

Reply: TypeAlias = Callable[["Asked", asyncio.StreamWriter], Awaitable[None]]


@attrs.frozen
class Asked:
    line: str
    headers: dict[str, str]

    @property
    def start(self) -> int:
        return int(self.headers.get("range", "bytes=0-").removeprefix("bytes=").removesuffix("-"))


@attrs.define
class FileHost:
    """Answers each request with the next reply; the last one stays."""

    replies: list[Reply]
    asked: list[Asked] = attrs.field(factory=list)
    connections: int = 0
    port: int = 0
    _serving: set[asyncio.Task[object]] = attrs.field(factory=set)
    scheme: str = "http"

    def url(self, path: str = "/a.mp3?Signature=secret") -> str:
        return f"{self.scheme}://127.0.0.1:{self.port}{path}"

    async def serve_connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        task = asyncio.current_task()
        assert task is not None
        self._serving.add(task)
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            line, *rest = head.decode().strip().split("\r\n")
            headers = {name.lower(): value.strip() for name, _, value in (each.partition(":") for each in rest)}
            asked = Asked(line, headers)
            self.asked.append(asked)
            reply = self.replies.pop(0) if len(self.replies) > 1 else self.replies[0]
            await reply(asked, writer)
            await writer.drain()
        except (OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass  # the other side is gone, or the test is over
        finally:
            self._serving.discard(task)
            writer.close()

    async def close(self) -> None:
        for task in list(self._serving):
            task.cancel()
        await asyncio.gather(*self._serving)


@asynccontextmanager
async def file_host(*replies: Reply, tls: ssl.SSLContext | None = None) -> AsyncIterator[FileHost]:
    host = FileHost(list(replies), scheme="https" if tls else "http")
    server = await asyncio.start_server(host.serve_connection, "127.0.0.1", 0, ssl=tls)
    host.port = server.sockets[0].getsockname()[1]
    async with server:
        try:
            yield host
        finally:
            await host.close()


def settings(**changes: object) -> Settings:
    """Settings of a session whose API is on this machine."""
    return Settings(**{"api_key": "k-0123456789", "base_url": "http://127.0.0.1:1", "observer": _deaf, **changes})  # type: ignore[arg-type]


def _deaf(_event: Event) -> None:
    return


def head(status: int = 200, **headers: object) -> bytes:
    lines = [f"HTTP/1.1 {status} x", "Connection: close"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


def raw(*pieces: bytes, pause: float = 0.0) -> Reply:
    """Send these bytes, with a pause before each but the first, and close."""

    async def reply(_asked: Asked, writer: asyncio.StreamWriter) -> None:
        for number, piece in enumerate(pieces):
            if number and pause:
                await writer.drain()
                await asyncio.sleep(pause)
            writer.write(piece)

    return reply


def status(code: int, **headers: object) -> Reply:
    return raw(head(code, Content_Length=0, **headers))


def serve(data: bytes, *, etag: str | None = '"v1"', cut: int | None = None, sized: bool = True) -> Reply:
    """Serve a file as a good host does, with Range and If-Range; or break off after ``cut`` bytes of the body."""

    async def reply(asked: Asked, writer: asyncio.StreamWriter) -> None:
        tag = {"ETag": etag} if etag else {}
        start = asked.start if asked.headers.get("if-range") in {None, etag} else 0
        if start and start >= len(data):
            writer.write(head(416, Content_Range=f"bytes */{len(data)}", Content_Length=0))
            return
        body = data[start:]
        length = {"Content-Length": len(body)} if sized else {}
        if start:
            span = {"Content-Range": f"bytes {start}-{len(data) - 1}/{len(data)}"}
            writer.write(head(206, **length, **span, **tag))
        else:
            writer.write(head(200, **length, **tag))
        writer.write(body[:cut])
        if cut is not None:
            await writer.drain()
            await asyncio.sleep(0.1)  # what came with the end of a connection is not told apart by aiohttp, and lost

    return reply


def reset(data: bytes) -> Reply:
    """Send these bytes, then cut the connection hard."""

    async def reply(_asked: Asked, writer: asyncio.StreamWriter) -> None:
        writer.write(data)
        await writer.drain()
        await asyncio.sleep(0.1)
        writer.transport.abort()

    return reply


def server_tls(directory: Path) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    (directory / "host.pem").write_text(KEY + CERTIFICATE)
    context.load_cert_chain(directory / "host.pem")
    return context


def client_tls() -> ssl.SSLContext:
    return ssl.create_default_context(cadata=CERTIFICATE)


# A key for tests alone: it stands for nobody but localhost, and no one trusts it.
KEY = """\
-----BEGIN EC PRIVATE KEY-----
MHcCAQEEIAQu00tbcZtSWyYIUYitL4BkFa1WuEsqguI1YvlvbtJLoAoGCCqGSM49
AwEHoUQDQgAEGo4xQzT5+Pt9kNGlwuVwlLsgcJZ4zx8sx5jr5t+/Git68vqsWnHt
md/+CpH3m6fl05qoKx8i7v9mXWwNtW68nQ==
-----END EC PRIVATE KEY-----
"""
CERTIFICATE = """\
-----BEGIN CERTIFICATE-----
MIIBdzCCAR2gAwIBAgIBATAKBggqhkjOPQQDAjAUMRIwEAYDVQQDDAlsb2NhbGhv
c3QwIBcNMjAwMTAxMDAwMDAwWhgPMjEyNjAxMDEwMDAwMDBaMBQxEjAQBgNVBAMM
CWxvY2FsaG9zdDBZMBMGByqGSM49AgEGCCqGSM49AwEHA0IABBqOMUM0+fj7fZDR
pcLlcJS7IHCWeM8fLMeY6+bfvxorevL6rFpx7Znf/gqR95un5dOaqCsfIu7/Zl1s
DbVuvJ2jXjBcMBoGA1UdEQQTMBGCCWxvY2FsaG9zdIcEfwAAATAPBgNVHRMBAf8E
BTADAQH/MA4GA1UdDwEB/wQEAwIChDAdBgNVHQ4EFgQUE5uxy6wdsKg3izMu3WUc
wMyV06IwCgYIKoZIzj0EAwIDSAAwRQIhAJuPqQ9VgF08SnX71q4KeInWJQOG7rJC
iyeOnt+4p7leAiBBL2Q5acBRaV2RjmInFCQYYBB2zWAl6NDUNma76/F04w==
-----END CERTIFICATE-----
"""
