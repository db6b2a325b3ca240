"""A raw server that answers as told, byte by byte, and then breaks off as told; and the settings to reach it."""

from __future__ import annotations

import asyncio
import gzip
import json
import socket
import ssl
import struct
import zlib
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any, Literal, TypeAlias

import attrs

from kie_async._client.http_client import Transport
from kie_async._protocol.endpoints import ROUTES
from kie_async.events import Event
from kie_async.models import ExtendRequest
from kie_async.settings import Settings

KEY = "k-marker-0123456789abcdef"
REQUEST = ExtendRequest("a1", model="V5", prompt="la la", style="s", title="t", continue_at=60)
SUBMIT = ROUTES["classic"].submit(REQUEST, "https://me.example/cb/token")
LOOK = ROUTES["classic"].record_info("t1")

_RESET = struct.pack("ii", 1, 0)  # SO_LINGER with no time: close with RST


@attrs.frozen
class Asked:
    """A request as it came; ``connection`` counts from 1."""

    line: str
    headers: dict[str, str]
    body: bytes
    connection: int

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@attrs.frozen
class Reply:
    """What the server does with one request.

    Attributes:
        pieces: sent one by one.
        read: how much of the request is read first.
        pause: seconds before each piece but the first.
        end: what becomes of the connection; "wait" keeps it open and silent, "keep" serves on.
        late: sent a moment later on a connection that is kept: an answer nobody asked for.
    """

    pieces: Sequence[bytes] = ()
    read: Literal["nothing", "head", "half", "all"] = "all"
    pause: float = 0.0
    end: Literal["close", "reset", "wait", "keep"] = "close"
    late: bytes = b""


Source: TypeAlias = Callable[[Asked], Reply]


@attrs.define(eq=False)
class FaultServer:
    """Answers each request with the next reply; the last one stays."""

    replies: list[Reply | Source]
    scheme: str = "http"
    host: str = "127.0.0.1"
    port: int = 0
    asked: list[Asked] = attrs.field(factory=list)
    connections: int = 0
    open: int = 0
    most_open: int = 0
    _serving: set[asyncio.Task[Any]] = attrs.field(factory=set)

    @property
    def url(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.scheme}://{host}:{self.port}"

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._serving.add(task)
        self.connections += 1
        self.open += 1
        self.most_open = max(self.open, self.most_open)
        number = self.connections
        try:
            while await self._answer(reader, writer, number):
                pass
        except (OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass  # the other side is gone, or the test is over
        finally:
            self.open -= 1
            self._serving.discard(task)
            writer.transport.abort()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, number: int) -> bool:
        reply = self.replies[0]
        if isinstance(reply, Reply) and reply.read == "nothing":
            self._next()
        else:
            asked = await _read(reader, number, "all" if callable(reply) else reply.read)
            self.asked.append(asked)
            reply = self._next()
            reply = reply(asked) if callable(reply) else reply
        for index, piece in enumerate(reply.pieces):
            if index and reply.pause:
                await asyncio.sleep(reply.pause)
            writer.write(piece)
            await writer.drain()
        return await _end(reply, reader, writer)

    def _next(self) -> Reply | Source:
        return self.replies.pop(0) if len(self.replies) > 1 else self.replies[0]

    async def close(self) -> None:
        for task in list(self._serving):
            task.cancel()
        await asyncio.gather(*self._serving)


async def _read(reader: asyncio.StreamReader, number: int, how_much: str) -> Asked:
    head = await reader.readuntil(b"\r\n\r\n")
    line, *rest = head.decode().strip().split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (each.partition(":") for each in rest)}
    length = {"head": 0, "half": int(headers.get("content-length", 0)) // 2}.get(
        how_much, int(headers.get("content-length", 0))
    )
    return Asked(line, headers, await reader.readexactly(length), number)


async def _end(reply: Reply, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
    if reply.end == "keep":
        if reply.late:
            await asyncio.sleep(0.01)
            writer.write(reply.late)
        return True
    if reply.end == "wait":
        await reader.read()
    elif reply.end == "reset":
        raw: socket.socket = writer.get_extra_info("socket")
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    else:
        writer.write_eof() if writer.can_write_eof() else writer.close()
        await reader.read()
    return False


@asynccontextmanager
async def fault_server(
    *replies: Reply | Source, tls: ssl.SSLContext | None = None, host: str = "127.0.0.1"
) -> AsyncIterator[FaultServer]:
    server = FaultServer(list(replies), "https" if tls else "http", host)
    listening = await asyncio.start_server(server.serve, host, 0, ssl=tls, limit=1 << 20, backlog=1000)
    server.port = listening.sockets[0].getsockname()[1]
    try:
        yield server
    finally:
        listening.close()
        await server.close()


# ---------------------------------------------------------------- answers


def http(status: int = 200, body: bytes | str = b"", *, length: int | None = None, **headers: Any) -> bytes:
    """A whole answer; ``length`` may lie, and -1 leaves it out."""
    content = body.encode() if isinstance(body, str) else body
    fields: dict[str, object] = {"Content-Type": "application/json", **headers}
    if length != -1:
        fields["Content-Length"] = len(content) if length is None else length
    lines = [f"HTTP/1.1 {status} words", *(f"{name.replace('_', '-')}: {value}" for name, value in fields.items())]
    return "\r\n".join((*lines, "", "")).encode() + content


def said(code: object = 200, msg: object = "success", data: object = None) -> bytes:
    """The service's own wrapping."""
    return json.dumps({"code": code, "msg": msg, "data": data}).encode()


TASK = said(data={"taskId": "5c79" * 8})
RECORD = said(data={"taskId": "t1", "status": "PENDING"})


def ok(body: bytes = TASK, *, end: Literal["close", "keep"] = "keep") -> Reply:
    return Reply((http(200, body),), end=end)


HTML = b"<html><head><title>502 Bad Gateway</title></head></html>"


def chunked(body: bytes) -> bytes:
    return http(200, body, length=-1, Transfer_Encoding="chunked")


MANY: dict[str, Any] = {f"X_{number}": "SECRET-ECHO" for number in range(10_000)}
BREAKS = {
    "reset at accept": Reply(read="nothing", end="reset"),
    "reset after the headers": Reply(read="head", end="reset"),
    "reset after half the body": Reply(read="half", end="reset"),
    "reset after the body": Reply(end="reset"),
    "closed without an answer": Reply(),
    "half a status line": Reply((b"HTTP/1.1 20",)),
    "half a header": Reply((b"HTTP/1.1 200 OK\r\nX-Echo: SECRET-ECHO",)),
    "headers only": Reply((http(200, length=100),)),
    "shorter than announced": Reply((http(200, TASK, length=len(TASK) + 1),)),
    "cut, and closed as if whole": Reply((http(200, TASK[:-1], length=-1),)),
    "a last chunk that never comes": Reply((chunked(b"%x\r\n%s\r\n" % (len(TASK), TASK)),)),
    "a chunk of no size": Reply((chunked(b"zz\r\n%s\r\n" % TASK),)),
    "reset in the answer": Reply((http(200, TASK[:-1], length=len(TASK)),), end="reset"),
    "two lengths": Reply((http(200, TASK, Content_length=7),)),
    "garbage before the status line": Reply((b"\x00\x16garbage\r\n" + http(200, TASK),)),
    "another protocol": Reply((b"SSH-2.0-OpenSSH_9\r\n",)),
    "a header of 20 kB": Reply((http(200, TASK, X_Long="SECRET-ECHO" * 2000),)),
    "10,000 headers": Reply((http(200, TASK, **MANY),)),
    "garbage said to be gzip": Reply((http(200, b"\x1f\x8b\x08garbage", Content_Encoding="gzip"),)),
    "garbage said to be deflate": Reply((http(200, b"\xff\xffgarbage", Content_Encoding="deflate"),)),
    "garbage said to be br": Reply((http(200, b"\xff\xffgarbage", Content_Encoding="br"),)),
    "garbage said to be zstd": Reply((http(200, b"\xff\xffgarbage", Content_Encoding="zstd"),)),
    "cut gzip": Reply((http(200, gzip.compress(TASK)[:-20], Content_Encoding="gzip"),)),
    "another encoding": Reply((http(200, zlib.compress(TASK), Content_Encoding="x-own"),)),
    "502": Reply((http(502, HTML),)),
    "503": Reply((http(503, HTML, Retry_After=1),)),
    "504": Reply((http(504, b""),)),
    "a portal's page": Reply((http(200, HTML),)),
    "no content": Reply((http(204, length=-1),)),
    "another protocol on": Reply((http(101, length=-1, Connection="upgrade", Upgrade="x"),)),
}  # fmt: skip


# ---------------------------------------------------------------- the client


def settings(base_url: str, **changes: Any) -> Settings:
    return Settings(**{"api_key": KEY, "base_url": base_url, "observer": _deaf, **changes})


def _deaf(_event: Event) -> None:
    return


@asynccontextmanager
async def transport(base_url: str, emitted: list[Event] | None = None, **changes: Any) -> AsyncGenerator[Transport]:
    emit = _deaf if emitted is None else emitted.append
    async with Transport(settings(base_url, **changes), emit) as opened:
        yield opened
