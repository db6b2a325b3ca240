"""Faults of an exchange over HTTP: each takes what was to be answered and answers in its place."""

from __future__ import annotations

import asyncio
import gzip
import socket
import struct
import uuid
from collections.abc import Awaitable, Callable, Iterable, Mapping
from types import MappingProxyType
from typing import TypeAlias

from aiohttp import web

from kie_async.emulator._faults import Fault
from kie_async.emulator._refusals import refusal

Answer: TypeAlias = web.StreamResponse
Effect: TypeAlias = Callable[[web.Request, Fault, web.Response], Awaitable[Answer]]

_PAGE = (
    "<html><head><title>{status} Bad Gateway</title></head><body><center><h1>{status} Bad Gateway</h1></center>"
    "<hr><center>cloudflare</center></body></html>"
)
_BLOCK = 1 << 16


def _hang_up(request: web.Request) -> None:
    if request.transport is not None:
        request.transport.close()


async def _close(request: web.Request, _fault: Fault, answer: web.Response) -> Answer:
    await request.read()  # unread bytes would turn the close into a reset
    _hang_up(request)
    return answer


async def _reset(request: web.Request, _fault: Fault, answer: web.Response) -> Answer:
    transport = request.transport
    if transport is not None:
        linger_not = struct.pack("ii", 1, 0)
        transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger_not)
        transport.abort()
    return answer


async def _html(_request: web.Request, fault: Fault, _answer: web.Response) -> Answer:
    status = fault.status or 502
    return web.Response(status=status, text=_PAGE.format(status=status), content_type="text/html")


async def _code(_request: web.Request, fault: Fault, _answer: web.Response) -> Answer:
    code = 500 if fault.code is None else fault.code
    return web.json_response(refusal(code, fault.message), status=fault.status or 200)


async def _answer(_request: web.Request, fault: Fault, _answer: web.Response) -> Answer:
    return web.Response(body=fault.body, status=fault.status or 200, content_type="application/json")


async def _redirect(_request: web.Request, fault: Fault, _answer: web.Response) -> Answer:
    return web.Response(status=fault.status or 307, headers={"Location": fault.url})


async def _slow(_request: web.Request, fault: Fault, answer: web.Response) -> Answer:
    await asyncio.sleep(5.0 if fault.seconds is None else fault.seconds)
    return answer


def _bytes(answer: web.Response) -> bytes:
    return answer.body if isinstance(answer.body, bytes) else b""


async def _begin(request: web.Request, answer: web.Response, length: int) -> web.StreamResponse:
    """Send the head of an answer that comes in pieces."""
    headers = {name: value for name, value in answer.headers.items() if name != "Content-Length"}
    stream = web.StreamResponse(status=answer.status, headers=headers)
    stream.content_length = length
    stream.force_close()
    await stream.prepare(request)
    return stream


async def _drip(request: web.Request, fault: Fault, answer: web.Response) -> Answer:
    body = _bytes(answer)
    stream = await _begin(request, answer, len(body))
    for position in range(len(body)):
        await stream.write(body[position : position + 1])
        await asyncio.sleep(0.4 if fault.seconds is None else fault.seconds)
    return stream


async def _truncated(request: web.Request, _fault: Fault, answer: web.Response) -> Answer:
    body = _bytes(answer)
    stream = await _begin(request, answer, len(body))
    await stream.write(body[: len(body) // 2])
    _hang_up(request)
    return stream


async def _no_length(request: web.Request, _fault: Fault, answer: web.Response) -> Answer:
    body = _bytes(answer)
    head = f"HTTP/1.1 200 OK\r\nContent-Type: {answer.content_type}\r\nConnection: close\r\n\r\n"
    if request.transport is not None:
        request.transport.write(head.encode() + body[: len(body) // 2])  # aiohttp would announce a length, or chunks
    _hang_up(request)
    return answer


async def _garbage(_request: web.Request, _fault: Fault, answer: web.Response) -> Answer:
    return web.Response(body=bytes(range(255, 127, -1)) * 4, status=answer.status, content_type="application/json")


async def _malformed(_request: web.Request, _fault: Fault, answer: web.Response) -> Answer:
    return web.Response(body=_bytes(answer)[:-1], status=answer.status, content_type="application/json")


async def _huge(request: web.Request, fault: Fault, answer: web.Response) -> Answer:
    stream = await _begin(request, answer, fault.size)
    for position in range(0, fault.size, _BLOCK):
        await stream.write(b" " * min(_BLOCK, fault.size - position))
    return stream


async def _gzip_bomb(_request: web.Request, fault: Fault, answer: web.Response) -> Answer:
    bomb = gzip.compress(b" " * fault.size, compresslevel=1)
    headers = {"Content-Encoding": "gzip"}
    return web.Response(body=bomb, status=answer.status, headers=headers, content_type="application/json")


async def _empty(_request: web.Request, _fault: Fault, answer: web.Response) -> Answer:
    return web.Response(body=b"", content_type=answer.content_type)


async def _expired(_request: web.Request, _fault: Fault, _answer: web.Response) -> Answer:
    return web.Response(status=404, text="<Error><Code>NoSuchKey</Code></Error>", content_type="application/xml")


async def _page(_request: web.Request, _fault: Fault, _answer: web.Response) -> Answer:
    return web.Response(text="<html><body>Sign in to the network</body></html>", content_type="text/html")


async def _new_etag(_request: web.Request, _fault: Fault, answer: web.Response) -> Answer:
    answer.headers["ETag"] = f'"{uuid.uuid4().hex}"'
    return answer


async def _wrong_range(_request: web.Request, _fault: Fault, answer: web.Response) -> Answer:
    if "Content-Range" in answer.headers:
        span, _, size = answer.headers["Content-Range"].removeprefix("bytes ").partition("/")
        start, end = map(int, span.split("-"))
        answer.headers["Content-Range"] = f"bytes {start + 1}-{end + 1}/{size}"
    return answer


EFFECTS: Mapping[str, Effect] = MappingProxyType(
    {
        "lost": _close,
        "drop": _close,
        "reset": _reset,
        "html": _html,
        "code": _code,
        "answer": _answer,
        "redirect": _redirect,
        "slow": _slow,
        "drip": _drip,
        "truncated": _truncated,
        "garbage": _garbage,
        "malformed": _malformed,
        "huge": _huge,
        "gzip_bomb": _gzip_bomb,
        "empty": _empty,
        "expired": _expired,
        "page": _page,
        "new_etag": _new_etag,
        "wrong_range": _wrong_range,
        "no_length": _no_length,
    }
)

_PASSING = ("slow",)  # what is asked goes on afterwards


async def before(request: web.Request, faults: Iterable[Fault]) -> Answer | None:
    """Let the faults strike that come before anything is done; the answer, if one of them gives it."""
    for fault in faults:
        if fault.kind in EFFECTS and not fault.done:
            answer = await EFFECTS[fault.kind](request, fault, web.Response())
            if fault.kind not in _PASSING:
                return answer
    return None


async def after(request: web.Request, faults: Iterable[Fault], answer: web.Response) -> Answer:
    """Let the faults strike that spoil the answer to what has been done."""
    spoilt: Answer = answer
    for fault in faults:
        if fault.kind in EFFECTS and fault.done and isinstance(spoilt, web.Response):
            spoilt = await EFFECTS[fault.kind](request, fault, spoilt)
    return spoilt
