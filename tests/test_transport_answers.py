"""Answers that came, over real sockets: refusals, redirects, too much, and two for one question (A15 to A26)."""

from __future__ import annotations

import asyncio
import tracemalloc
import zlib
from typing import Any

import pytest
from fault_server import HTML, LOOK, RECORD, SUBMIT, TASK, Reply, fault_server, http, ok, said, transport
from verdicts import failing, lost

from kie_async import errors
from kie_async._protocol.backoff import READ_ATTEMPTS
from kie_async.errors import KieError

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("clock")]

LARGEST = 1 << 20  # bytes of an answer

# ---------------------------------------------------------------- refused

REFUSALS = [
    (401, errors.AuthError), (402, errors.InsufficientCreditsError), (403, errors.AuthError),
    (422, errors.InvalidRequestError), (400, errors.InvalidRequestError), (429, errors.RateLimitedError),
]  # fmt: skip
HIDDEN = [
    *REFUSALS, (433, errors.KeyQuotaError), (455, errors.UnavailableError), (505, errors.UnavailableError),
    (430, errors.RateLimitedError), (531, errors.RefusedError),
]  # fmt: skip


async def refused(reply: Reply, kind: type[KieError]) -> KieError:
    async with fault_server(reply) as server, transport(server.url) as opened:
        error = await failing(opened)
        assert type(error) is kind
        assert error.charged == "no"
        assert len(server.asked) == 1
        return error


@pytest.mark.parametrize(("code", "kind"), HIDDEN)
async def test_a_refusal_in_the_body(code: int, kind: type[KieError]) -> None:
    error = await refused(ok(said(code, "the reason")), kind)
    assert error.code == code
    assert "the reason" in error.message


@pytest.mark.parametrize(("status", "kind"), REFUSALS)
@pytest.mark.parametrize("body", [HTML, b""])
async def test_a_refusal_by_http(status: int, kind: type[KieError], body: bytes) -> None:
    if status == 403 or (status == 401 and body):  # a page says nothing about the key
        kind = errors.UnavailableError
    assert (await refused(Reply((http(status, body),)), kind)).code == status


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        ("7", 7),
        ("-7", None),
        ("99999999", 99999999),
        ("nan", None),
        ("Thu, 01 Jan 1970 00:00:00 GMT", None),
        ("", None),
    ],
)
async def test_too_fast_tells_when_to_come_back(header: str, seconds: float | None) -> None:
    error = await refused(Reply((http(429, HTML, Retry_After=header),)), errors.RateLimitedError)
    assert isinstance(error, errors.RateLimitedError)
    assert error.retry_after == seconds


async def test_an_odd_word_on_when_to_come_back_does_not_hide_the_refusal() -> None:
    reply = Reply((http(429, length=0, Retry_After="XX").replace(b"XX", b"\xff\xfe"),))
    assert (await refused(reply, errors.RateLimitedError)).retryable


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
@pytest.mark.parametrize("call", [SUBMIT, LOOK])
async def test_redirects_lead_nowhere(status: int, call: object) -> None:
    async with fault_server(ok()) as other:
        there = Reply((http(status, HTML, Location=f"{other.url}/steal"),))
        async with fault_server(there) as server, transport(server.url) as opened:
            error = await failing(opened, call)
        assert isinstance(error, errors.UnexpectedRedirectError)
        assert error.charged == ("maybe" if call is SUBMIT else "no")
        assert len(server.asked) == 1
    assert other.connections == 0


# ---------------------------------------------------------------- too much


def _flood(piece: bytes, times: int, **headers: Any) -> Reply:
    return Reply([http(200, b"", length=-1, **headers), *[piece] * times])


def _bomb(wbits: int) -> bytes:
    """A few hundred kB that become 256 MB."""
    packer = zlib.compressobj(9, zlib.DEFLATED, wbits)
    return b"".join(packer.compress(bytes(1 << 20)) for _ in range(256)) + packer.flush()


@pytest.mark.parametrize(
    "reply",
    [
        _flood(b" " * (1 << 20), 1 << 10),
        _flood(b"100000\r\n" + b" " * (1 << 20) + b"\r\n", 1 << 10, Transfer_Encoding="chunked"),
        Reply((http(200, _bomb(zlib.MAX_WBITS | 16), Content_Encoding="gzip"),)),
        Reply((http(200, _bomb(zlib.MAX_WBITS), Content_Encoding="deflate"),)),
    ],
    ids=["1 GB", "1 GB in chunks", "gzip bomb", "deflate bomb"],
)
async def test_an_endless_answer_is_cut(reply: Reply) -> None:
    tracemalloc.start()
    try:
        async with fault_server(reply) as server:
            unknown = await lost(server)
            async with transport(server.url) as opened:
                error = await failing(opened, LOOK)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert type(error) is errors.BadResponseError
    for each in (unknown, error):
        assert f"(it is longer than {LARGEST} bytes)" in each.message
    assert peak < 12 << 20


async def test_an_answer_of_the_largest_size_is_read() -> None:
    body = RECORD + b" " * (LARGEST - len(RECORD))
    async with fault_server(ok(body), ok(body + b" ")) as server, transport(server.url) as opened:
        assert await opened.send(LOOK) is not None
        assert isinstance(await failing(opened, LOOK), errors.BadResponseError)


# ---------------------------------------------------------------- two answers for one question


@pytest.mark.parametrize(
    "reply",
    [
        Reply((http(200, RECORD) + http(200, said(data={"taskId": "t1", "status": "STALE"})),), end="keep"),
        Reply((http(200, RECORD),), end="keep", late=http(200, said(data={"taskId": "t1", "status": "STALE"}))),
        Reply((http(200, RECORD),), end="keep", late=b"garbage\r\n\r\n"),
        Reply((http(200, RECORD),), end="keep", late=b"HTTP/1.1 200 OK\r\nContent-Le"),
        Reply((b"HTTP/1.1 100 Continue\r\n\r\n" + http(200, RECORD),), end="keep"),
        Reply((b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n" + http(200, RECORD),), end="keep"),
        Reply((http(200, RECORD, Connection="close"),), end="keep"),
    ],
    ids=["at once", "later", "garbage", "half an answer", "100", "103", "closing"],
)
async def test_one_answer_never_serves_the_next_request(reply: Reply) -> None:
    fresh = ok(said(data={"taskId": "t1", "status": "SUCCESS"}))
    async with fault_server(reply, fresh) as server, transport(server.url) as opened:
        first = await opened.send(LOOK)
        await asyncio.sleep(1)
        second = await opened.send(LOOK)
        assert first is not None
        assert second is not None
        assert (first.status, second.status) == ("PENDING", "SUCCESS")


async def test_a_record_of_another_task_is_not_taken() -> None:
    stale = ok(said(data={"taskId": "t0", "status": "SUCCESS"}))
    async with fault_server(stale, ok(RECORD)) as server, transport(server.url) as opened:
        record = await opened.send(LOOK)
        assert record is not None
        assert record.task_id == "t1"
        assert len(server.asked) == 2


async def test_interim_answers_before_that_to_a_submission() -> None:
    interim = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\n\r\n"
    async with fault_server(Reply((interim + http(200, TASK),))) as server, transport(server.url) as opened:
        assert await opened.send(SUBMIT) == "5c79" * 8


# ---------------------------------------------------------------- reads


@pytest.mark.parametrize("status", [500, 502, 503, 504])
async def test_reads_are_repeated_no_more_than_so_often(status: int) -> None:
    async with fault_server(Reply((http(status, HTML),), end="keep")) as server, transport(server.url) as opened:
        error = await failing(opened, LOOK)
        assert isinstance(error, errors.ServerError)
        assert len(server.asked) == READ_ATTEMPTS
