"""What is never sent, what is refused and what stays unknown, over real sockets (the catalogue's A1 to A29)."""

from __future__ import annotations

import asyncio
import gzip
import random
import socket
from collections.abc import Iterator
from typing import Any

import pytest
from fault_server import (
    BREAKS,
    LOOK,
    RECORD,
    SUBMIT,
    TASK,
    Reply,
    chunked,
    fault_server,
    http,
    ok,
    said,
    transport,
)
from verdicts import failing, lost
from virtual_time import VirtualTimeLoop

from kie_async import errors
from kie_async.errors import KieError, SubmitUnknownError

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("clock")]


# ---------------------------------------------------------------- never sent


async def unsent(base_url: str, *, retryable: bool = True, **changes: Any) -> KieError:
    async with transport(base_url, **changes) as opened:
        error = await failing(opened, headers=0)
    assert isinstance(error, errors.ConnectError)
    assert (error.charged, error.retryable) == ("no", retryable)
    assert "nothing was sent" in error.message
    return error


async def test_a_name_that_does_not_exist() -> None:
    # Too long for a query, so that the resolver refuses it without asking anybody.
    name = ".".join(["a" * 60] * 5)
    error = await unsent(f"https://{name}.invalid")
    assert "ClientConnectorDNSError" in error.message


async def test_a_name_that_cannot_be_one() -> None:
    await unsent(f"https://{'a' * 64}.invalid")


async def test_a_resolver_that_hangs(clock: VirtualTimeLoop, monkeypatch: pytest.MonkeyPatch) -> None:
    async def hang(*_args: object, **_options: object) -> None:
        await asyncio.sleep(3600)

    monkeypatch.setattr(clock, "getaddrinfo", hang, raising=False)
    begun = clock.time()
    await unsent("https://slow.invalid", connect_timeout=7)
    assert clock.time() - begun < 10


async def test_a_port_nobody_listens_on() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        error = await unsent(f"http://127.0.0.1:{probe.getsockname()[1]}")
    assert "Connect" in error.message


@pytest.fixture
def full_port() -> Iterator[int]:
    """A port whose queue of connections is full: it neither takes nor refuses one more."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen(0)
        waiting = [socket.socket() for _ in range(3)]
        for each in waiting:
            each.setblocking(False)  # the name of the method says what it means
            each.connect_ex(listening.getsockname())
        yield listening.getsockname()[1]
        for each in waiting:
            each.close()


async def test_a_connection_that_is_not_made_in_time(clock: VirtualTimeLoop, full_port: int) -> None:
    begun = clock.time()
    error = await unsent(f"http://127.0.0.1:{full_port}", connect_timeout=5)
    assert 5 <= clock.time() - begun < 10
    assert "Timeout" in error.message


@pytest.mark.parametrize(
    ("answer", "retryable"),
    [
        (http(407, b"", Proxy_Authenticate="Basic"), False), (http(403), False), (http(502), True), (b"", True),
        (b"HTTP/1.1 2", True), (b"SSH-2.0-x\r\n", True),
    ],
)  # fmt: skip
async def test_a_proxy_that_refuses(answer: bytes, retryable: bool) -> None:  # noqa: FBT001  # a parameter of a table
    async with fault_server(Reply((answer,))) as proxy:
        await unsent("https://api.invalid", proxy=proxy.url, retryable=retryable)
    assert [asked.line for asked in proxy.asked] == ["CONNECT api.invalid:443 HTTP/1.1"]
    assert not {"authorization", "proxy-authorization"} & proxy.asked[0].headers.keys()


async def test_a_read_is_tried_again_while_nothing_can_be_sent() -> None:
    async with transport("http://127.0.0.1:1") as opened:
        error = await failing(opened, LOOK, headers=0)
    assert isinstance(error, errors.ConnectError)


# ---------------------------------------------------------------- unknown


@pytest.mark.parametrize("reply", BREAKS.values(), ids=BREAKS.keys())
async def test_a_lost_answer_leaves_a_submission_unknown(reply: Reply) -> None:
    async with fault_server(reply) as server:
        error = await lost(server)
    assert "SECRET-ECHO" not in str(error)


@pytest.mark.parametrize("reply", BREAKS.values(), ids=BREAKS.keys())
async def test_a_lost_answer_is_asked_for_again_by_a_read(reply: Reply) -> None:
    async with fault_server(reply, ok(RECORD)) as server, transport(server.url) as opened:
        try:
            record = await opened.send(LOOK)
        except errors.BadResponseError:  # a whole answer, but no record: asking again would not help
            assert reply.pieces[0].startswith((b"HTTP/1.1 200", b"HTTP/1.1 204", b"HTTP/1.1 101"))
        else:
            assert record is not None
            assert record.status == "PENDING"
        assert server.connections <= 3


@pytest.mark.parametrize(
    "reply",
    [Reply(end="wait"), Reply((http(200, TASK[:9], length=len(TASK)),), end="wait"), Reply(read="nothing", end="wait")],
)
async def test_silence(reply: Reply, clock: VirtualTimeLoop) -> None:
    begun = clock.time()
    async with fault_server(reply) as server:
        await lost(server, read_timeout=30, total_timeout=600)
    assert 30 <= clock.time() - begun < 60


async def test_a_drip_ends_with_the_total_timeout(clock: VirtualTimeLoop) -> None:
    begun = clock.time()
    drip = Reply([http(200, TASK)[index : index + 1] for index in range(len(http(200, TASK)))], pause=0.4)
    async with fault_server(drip) as server:
        error = await lost(server, read_timeout=30, total_timeout=20)
    assert 20 <= clock.time() - begun < 25
    assert "Timeout" in error.message


async def test_the_total_timeout_covers_the_body(clock: VirtualTimeLoop) -> None:
    begun = clock.time()
    drip = Reply([http(200, b"", length=len(TASK)), *(TASK[index : index + 1] for index in range(len(TASK)))], pause=5)
    async with fault_server(drip) as server:
        await lost(server, read_timeout=30, total_timeout=20)
    assert 20 <= clock.time() - begun < 30


@pytest.mark.parametrize(
    "data",
    [
        None, {}, [], "5c79", {"taskId": None}, {"taskId": 5}, {"taskId": ""}, {"taskId": "a" * 10_000},
        {"taskId": "a/b"}, {"taskId": "a.b"}, {"taskId": "a\0b"}, {"taskId": "a\nb"}, {"taskId": "a\u202eb"},
        {"taskId": "\ud800"}, {"task": "5c79"},
    ],
)  # fmt: skip
async def test_an_acceptance_without_a_task_id(data: object) -> None:
    async with fault_server(ok(said(data=data))) as server:
        await lost(server)
    assert len(server.asked) == 1


@pytest.mark.parametrize(
    "body",
    [
        said(599, "no"), said(None), b'{"msg":"success"}', said("x"), said(200, None), b"null", b"[]", b'"200"',
        b"[" * 100_000 + b"]" * 100_000, b'{"code":' + b"2" * 5000 + b',"data":{"taskId":"a"}}',
        b'{"code":NaN,"data":{"taskId":"a"}}', b'{"code":200,"data":{"taskId":Infinity}}', b"",
        '{"code":200,"data":{"taskId":"a"}}'.encode("utf-16"), b'\xff{"code":200,"data":{"taskId":"a"}}',
        b'{"code":200,"code":500,"data":{"taskId":"a"}}{"code":200}',
    ],
)  # fmt: skip
async def test_a_body_that_says_no_clear_thing(body: bytes) -> None:
    async with fault_server(ok(body)) as server:
        await lost(server)
    assert len(server.asked) == 1


@pytest.mark.parametrize(
    "body",
    [b"\xef\xbb\xbf" + TASK, said("200", None, {"taskId": "5c79"}), said(data={"task_id": "5c79", "x": "\ud800"}),
     b'{"code":500,"code":200,"data":{"taskId":"5c79"}}'],
)  # fmt: skip
async def test_odd_bodies_that_are_clear(body: bytes) -> None:
    async with fault_server(ok(body)) as server, transport(server.url) as opened:
        assert (await opened.send(SUBMIT)).startswith("5c79")


async def test_the_answer_cut_at_every_byte() -> None:
    """Success only when the body is whole, whichever way it is delimited; one POST each, always."""
    answers = (
        http(200, TASK),
        chunked(b"%x\r\n%s\r\n0\r\n\r\n" % (len(TASK), TASK)),
        http(200, gzip.compress(TASK, mtime=0), Content_Encoding="gzip"),
        http(200, TASK, length=-1),
    )
    for answer in answers:
        cuts = [answer[:end] for end in range(len(answer) + 1)]
        async with fault_server(*(Reply((cut,)) for cut in cuts)) as server, transport(server.url) as opened:
            for cut in cuts:
                asked = len(server.asked)
                try:
                    assert await opened.send(SUBMIT) == "5c79" * 8
                except SubmitUnknownError:
                    assert cut != answer
                else:
                    assert cut == answer
                assert len(server.asked) == asked + 1
            assert server.connections == len(cuts)


def _spoilt(answer: bytes, chance: random.Random) -> Reply:
    """An answer with some bytes changed, lost or added, in two pieces."""
    spoilt = bytearray(answer)
    for _ in range(chance.choice((1, 1, 2, 5))):
        place = chance.randrange(len(spoilt))
        spoilt[place : place + chance.choice((0, 1))] = chance.choice((b"", b"\r", b"\n", b"\0", b":", b"f", b"\xff"))
    middle = chance.randrange(len(spoilt))
    return Reply((bytes(spoilt[:middle]), bytes(spoilt[middle:])))


async def test_no_bytes_whatever_raise_anything_else() -> None:
    chance = random.Random(3)  # the same each time
    answers = [
        http(200, TASK),
        chunked(b"%x\r\n%s\r\n0\r\n\r\n" % (len(TASK), TASK)),
        http(200, gzip.compress(TASK), Content_Encoding="gzip"),
    ]
    async with fault_server(ok()) as server, transport(server.url, total_timeout=1) as opened:
        for _ in range(600):
            asked = len(server.asked)
            server.replies[:] = [_spoilt(chance.choice(answers), chance)]
            try:
                assert await opened.send(SUBMIT)
            except KieError as error:
                assert error.charged == "maybe" or error.code  # a refusal names its code
            assert len(server.asked) == asked + 1
