"""How calls go out and come back: connections, headers, text, retries, permits, cancelling."""

from __future__ import annotations

import asyncio
import gc
import os
import types
from collections import Counter
from collections.abc import Coroutine, Generator
from pathlib import Path
from typing import Any

import pytest
from fault_server import KEY, LOOK, RECORD, SUBMIT, TASK, Reply, fault_server, http, ok, said, transport
from verdicts import CountedPermit
from virtual_time import VirtualTimeLoop

from kie_async import errors
from kie_async._client.http_client import Transport
from kie_async._protocol.backoff import MAX_DELAY, MAX_RETRY_AFTER, READ_ATTEMPTS, RetryBudget
from kie_async._protocol.endpoints import ROUTES, ApiCall, credits_left, download_url
from kie_async.errors import KieError
from kie_async.events import Event, Retrying
from kie_async.models import ExtendRequest

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("clock")]

BUSY = Reply((http(503, b"<html>"),), end="keep")


# ---------------------------------------------------------------- connections


async def test_each_submission_has_a_connection_of_its_own() -> None:
    async with fault_server(ok()) as server, transport(server.url) as opened:
        for _ in range(3):
            await opened.send(SUBMIT)
        await asyncio.gather(*(opened.send(SUBMIT) for _ in range(3)))
        assert [asked.connection for asked in server.asked] == [1, 2, 3, 4, 5, 6]
        assert {asked.headers["connection"] for asked in server.asked} == {"close"}


async def test_posts_that_spend_nothing_do_not_race_the_idle_close_either() -> None:
    async with fault_server(ok(said(data="https://h.example/a.mp3"))) as server, transport(server.url) as opened:
        await opened.send(download_url("https://h.example/a"))
        await opened.send(download_url("https://h.example/a"))
        assert server.connections == 2


async def test_reads_share_connections() -> None:
    async with fault_server(ok(RECORD)) as server, transport(server.url) as opened:
        for _ in range(5):
            await opened.send(LOOK)
        assert {asked.connection for asked in server.asked} == {1}
        assert "connection" not in server.asked[0].headers


async def test_a_kept_connection_that_was_closed_meanwhile_is_replaced() -> None:
    async with fault_server(ok(RECORD), Reply(), ok(RECORD)) as server, transport(server.url) as opened:
        await opened.send(LOOK)
        assert await opened.send(LOOK) is not None
        assert len(server.asked) == 3


async def test_reads_are_bounded() -> None:
    slow = Reply((b"", http(200, RECORD)), pause=1, end="keep")
    async with fault_server(slow) as server, transport(server.url, max_concurrent_polls=3) as opened:
        await asyncio.gather(*(opened.send(LOOK) for _ in range(30)))
        assert server.most_open <= 3 + 4
        assert len(server.asked) == 30


async def test_waiting_for_a_place_does_not_count_as_silence() -> None:
    slow = Reply((b"", http(200, RECORD)), pause=8, end="keep")
    async with fault_server(slow) as server, transport(server.url, max_concurrent_polls=1, connect_timeout=9) as opened:
        await asyncio.gather(*(opened.send(LOOK, retry=False) for _ in range(20)))


async def test_ipv6() -> None:
    async with fault_server(ok(), host="::1") as server, transport(server.url) as opened:
        assert await opened.send(SUBMIT) == "5c79" * 8
        assert server.asked[0].headers["host"] == f"[::1]:{server.port}"


def _descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="descriptors are counted in /proc")
async def test_nothing_stays_open_after_the_end() -> None:
    async with fault_server(ok()) as server:
        for cycle in range(100):
            if cycle == 1:
                begun = _descriptors()
            async with transport(server.url) as opened:
                server.replies[:] = [ok(RECORD)]
                await opened.send(LOOK)
                server.replies[:] = [ok()]
                await opened.send(SUBMIT)
            while server.open:
                await asyncio.sleep(0.01)
        assert _descriptors() <= begun


# ---------------------------------------------------------------- what goes out


async def test_headers() -> None:
    async with fault_server(ok()) as server, transport(server.url) as opened:
        await opened.send(SUBMIT)
        server.replies[:] = [ok(RECORD)]
        await opened.send(LOOK)
    post, get = server.asked
    assert post.line == "POST /api/v1/generate/extend HTTP/1.1"
    assert get.line == "GET /api/v1/generate/record-info?taskId=t1 HTTP/1.1"
    for asked in server.asked:
        assert asked.headers["authorization"] == f"Bearer {KEY}"
        assert asked.headers["accept"] == "application/json"
        assert asked.headers["user-agent"].startswith("kie_async/")
    assert post.headers["content-type"] == "application/json; charset=utf-8"
    assert int(post.headers["content-length"]) == len(post.body)
    assert "content-type" not in get.headers


async def test_the_environment_is_not_asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    netrc = tmp_path / "netrc"
    netrc.write_text("default login eve password hunter2\n")
    monkeypatch.setenv("NETRC", str(netrc))
    async with fault_server(ok()) as proxy, fault_server(ok()) as server:
        for name in ("HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "ALL_PROXY", "all_proxy"):
            monkeypatch.setenv(name, proxy.url)
        monkeypatch.delenv("NO_PROXY", raising=False)
        async with transport(server.url) as opened:
            await opened.send(SUBMIT)
        assert proxy.connections == 0
        assert server.asked[0].headers["authorization"] == f"Bearer {KEY}"


async def test_a_proxy_that_is_set_is_used() -> None:
    async with fault_server(ok()) as proxy, transport("http://127.0.0.1:1", proxy=proxy.url) as opened:
        await opened.send(SUBMIT)
        assert proxy.asked[0].line == "POST http://127.0.0.1:1/api/v1/generate/extend HTTP/1.1"


async def test_cookies_are_not_kept() -> None:
    async with fault_server(Reply((http(200, RECORD, Set_Cookie="session=1; Path=/"),), end="keep")) as server:
        async with transport(server.url) as opened:
            await opened.send(LOOK)
            await opened.send(LOOK)
        assert not any("cookie" in asked.headers for asked in server.asked)


@pytest.mark.parametrize(
    "text",
    [
        "🎵" * 3000,
        "a\r\nHost: evil.example\r\n\r\nGET / HTTP/1.1",
        'quotes " and \\ and \t',
        "\u202e\u2028é",
    ],
)
async def test_text_arrives_as_it_was_given(text: str) -> None:
    request = ExtendRequest("a1", model="V5", prompt=text, style="s", title="t", continue_at=60)
    async with fault_server(ok()) as server, transport(server.url) as opened:
        await opened.send(ROUTES["classic"].submit(request, "https://me.example/cb"))
        assert server.asked[0].json["prompt"] == text
        assert len(server.asked) == 1


@pytest.mark.parametrize("value", ["\ud800", float("nan"), float("inf")])
async def test_what_json_cannot_hold_is_refused_before_it_is_sent(value: object) -> None:
    call = ApiCall("extend", "POST", "/x", str, body={"prompt": value}, spends=True)
    async with fault_server(ok()) as server, transport(server.url) as opened:
        with pytest.raises(errors.InvalidRequestError, match="nothing was sent") as caught:
            await opened.send(call)
        assert (caught.value.charged, caught.value.retryable) == ("no", False)
        assert server.connections == 0


async def test_a_query_is_quoted() -> None:
    call = ROUTES["classic"].record_info("t1&x=1#/..?é")
    async with fault_server(ok(said())) as server, transport(server.url) as opened:
        assert await opened.send(call) is None
        assert server.asked[0].line.split()[1].count("&") == 0
        assert "#" not in server.asked[0].line


# ---------------------------------------------------------------- sending again


async def test_a_read_is_repeated_until_it_succeeds() -> None:
    emitted: list[Event] = []
    async with fault_server(BUSY, Reply(end="reset"), ok(RECORD)) as server, transport(server.url, emitted) as opened:
        assert await opened.send(LOOK) is not None
    retries = [event for event in emitted if isinstance(event, Retrying)]
    assert [event.attempt for event in retries][-1] <= READ_ATTEMPTS - 1
    assert {event.what for event in retries} == {"record_info"}
    assert "503" in retries[0].reason


async def test_a_read_may_leave_repeating_to_its_caller() -> None:
    async with fault_server(BUSY) as server, transport(server.url) as opened:
        with pytest.raises(errors.ServerError):
            await opened.send(LOOK, retry=False)
        assert len(server.asked) == 1


@pytest.mark.parametrize(
    ("reply", "asked"),
    [
        (ok(said(401)), 1), (ok(said(402)), 1), (ok(said(404)), 1), (ok(b"<html>"), 1), (ok(said(data="x")), 1),
        (Reply((http(404),)), 1), (Reply((http(302),)), 1), (ok(said(433)), 1),
        (ok(said(429)), READ_ATTEMPTS), (ok(said(455)), READ_ATTEMPTS), (ok(said(500)), READ_ATTEMPTS),
        (ok(said(599)), READ_ATTEMPTS),
    ],
)  # fmt: skip
async def test_only_what_may_pass_is_asked_again(reply: Reply, asked: int) -> None:
    async with fault_server(reply) as server, transport(server.url) as opened:
        with pytest.raises(KieError):
            await opened.send(credits_left)
        assert len(server.asked) == asked


async def test_a_wait_the_server_asks_for_is_kept(clock: VirtualTimeLoop) -> None:
    begun = clock.time()
    async with fault_server(Reply((http(429, Retry_After=30),)), ok(RECORD)) as server, transport(server.url) as opened:
        await opened.send(LOOK)
    assert 30 <= clock.time() - begun < 30 + 2


async def test_a_wait_that_is_too_long_is_raised_and_not_slept(clock: VirtualTimeLoop) -> None:
    begun = clock.time()
    asked = int(MAX_RETRY_AFTER) + 1
    async with fault_server(Reply((http(429, Retry_After=asked),))) as server, transport(server.url) as opened:
        with pytest.raises(errors.RateLimitedError) as caught:
            await opened.send(LOOK)
        assert caught.value.retry_after == asked
        assert len(server.asked) == 1
    assert clock.time() - begun < 5


async def test_many_failing_reads_share_one_budget_and_spread() -> None:
    emitted: list[Event] = []
    budget = RetryBudget()
    spare = int(budget.capacity / budget.cost)
    async with fault_server(BUSY) as server, transport(server.url, emitted) as opened:
        outcomes = await asyncio.gather(*(opened.send(LOOK) for _ in range(1000)), return_exceptions=True)
        assert {type(outcome) for outcome in outcomes} == {errors.ServerError}
        assert len(server.asked) == 1000 + spare
    delays = [event.delay for event in emitted if isinstance(event, Retrying)]
    assert len(delays) == spare
    assert max(delays) <= MAX_DELAY
    first = Counter(int(event.delay * 10) for event in emitted if isinstance(event, Retrying) and event.attempt == 1)
    assert len(first) == 10  # from the whole range of 0 to 1 s
    assert max(first.values()) < spare / 2


async def test_successes_refill_the_budget() -> None:
    async with fault_server(BUSY) as server, transport(server.url) as opened:
        before = -1
        while len(server.asked) > before + 1:  # until a failure is not tried again
            before = len(server.asked)
            with pytest.raises(errors.ServerError):
                await opened.send(LOOK)
        server.replies[:] = [ok(RECORD)]
        for _ in range(int(RetryBudget().cost)):
            await opened.send(LOOK)
        server.replies[:] = [BUSY, ok(RECORD)]
        assert await opened.send(LOOK) is not None


# ---------------------------------------------------------------- the permit


@pytest.mark.parametrize(
    "reply",
    [ok(), ok(said(429)), Reply((http(502),)), Reply((http(200, TASK[:-1], length=len(TASK)),)), Reply(end="reset")],
)
async def test_the_permit_ends_once_when_something_was_sent(reply: Reply) -> None:
    permit = CountedPermit()
    async with fault_server(reply) as server, transport(server.url) as opened:
        await asyncio.gather(opened.send(SUBMIT, permit=permit), return_exceptions=True)
    assert permit.count == 1


async def test_the_permit_ends_with_the_headers(clock: VirtualTimeLoop) -> None:
    begun = clock.time()
    permit = CountedPermit()
    slow = Reply((http(200, b"", length=len(TASK)), TASK), pause=20)
    async with fault_server(slow) as server, transport(server.url) as opened:
        await opened.send(SUBMIT, permit=permit)
    assert permit.ended_at - begun < 10
    assert clock.time() - begun >= 20


async def test_the_permit_ends_when_a_submission_is_cancelled_on_its_way() -> None:
    permit = CountedPermit()
    async with fault_server(Reply(end="wait")) as server, transport(server.url) as opened:
        sending = asyncio.ensure_future(opened.send(SUBMIT, permit=permit))
        while not server.asked:
            await asyncio.sleep(0.01)
        sending.cancel()
        await asyncio.gather(sending, return_exceptions=True)
    assert sending.cancelled()
    assert permit.count == 1


# ---------------------------------------------------------------- cancelling


@types.coroutine
def _cancelled_at(step: int, work: Coroutine[Any, Any, Any]) -> Generator[Any, Any, bool]:
    """Cancel the running task at the ``step``-th suspension of ``work``; tell whether it came so far."""
    task = asyncio.current_task()
    assert task is not None
    suspensions = 0
    sent: Any = None
    thrown: BaseException | None = None
    while True:
        try:
            waited = work.send(sent) if thrown is None else work.throw(thrown)
        except StopIteration:
            return False
        except asyncio.CancelledError:
            task.uncancel()
            return True
        suspensions += 1
        if suspensions == step:
            task.cancel()
        thrown = None
        try:
            sent = yield waited
        except BaseException as error:  # noqa: BLE001  # handed on to the work
            thrown = error


async def _run_cancelled(opened: Transport, call: ApiCall[Any], step: int) -> bool:
    before = asyncio.all_tasks()
    came = await _cancelled_at(step, opened.send(call))
    for _ in range(20):
        await asyncio.sleep(0)
    assert {task for task in asyncio.all_tasks() - before if "serve" not in repr(task)} == set()
    return came


@pytest.mark.parametrize("call", [SUBMIT, LOOK])
async def test_cancelling_at_every_await_leaves_nothing_behind(call: ApiCall[Any]) -> None:
    slow = ok(TASK if call is SUBMIT else RECORD, end="close")
    async with fault_server(slow) as server:
        steps = 0
        async with transport(server.url) as opened:
            await opened.send(call)  # what is loaded once is loaded
            begun = len(os.listdir("/proc/self/fd")) if Path("/proc/self/fd").exists() else 0  # noqa: PTH208
            while await _run_cancelled(opened, call, steps + 1):
                steps += 1
            assert steps >= 2
            for _ in range(3):
                assert await opened.send(call)  # neither a place nor a connection is lost
        while server.open:
            await asyncio.sleep(0.01)
        gc.collect()
        assert not begun or _descriptors() <= begun


async def test_places_come_back_from_cancelled_reads() -> None:
    async with fault_server(Reply(end="wait")) as server, transport(server.url, max_concurrent_polls=1) as opened:
        for _ in range(10):
            sending = asyncio.ensure_future(opened.send(LOOK))
            await asyncio.sleep(0.02)
            sending.cancel()
            await asyncio.gather(sending, return_exceptions=True)
        server.replies[:] = [ok(RECORD)]
        assert await opened.send(LOOK) is not None
