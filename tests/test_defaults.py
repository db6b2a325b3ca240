"""The defaults that promises rest on, by what they do: a number that changes by mistake is seen here."""

from __future__ import annotations

import asyncio
from itertools import pairwise

import anyio
import pytest
from emulator_client import emulated
from fault_server import Asked, Reply, fault_server, http, ok, said, settings
from service import REQUEST, serving
from virtual_time import VirtualTimeLoop

import kie_async as kie

pytestmark = pytest.mark.anyio

LIMIT, WINDOW = 20, 10.0  # FACTS §7: submissions, in seconds
ATTEMPTS, RETRIES = 4, 100  # of one read; of all reads together, while none succeeds
LONGEST = 60  # seconds that the service may ask for

AMOUNT = Reply((http(200, said(data=5916.25)),), end="keep")
FAILURE = Reply((http(503, b""),), end="keep")


async def test_a_limiter_lets_20_through_in_10_seconds(clock: VirtualTimeLoop) -> None:
    limiter, started = kie.SlidingLimiter(), clock.time()
    stamps = []
    for _ in range(2 * LIMIT + 1):
        (await limiter.acquire()).release()
        stamps.append(clock.time() - started)
    assert stamps[LIMIT - 1] < WINDOW <= stamps[LIMIT]
    assert stamps[2 * LIMIT - 1] < 2 * WINDOW <= stamps[2 * LIMIT]


@pytest.mark.usefixtures("clock")
async def test_a_session_keeps_within_the_quota_and_uses_it() -> None:
    async with serving(credits=1e6) as service:
        async with anyio.create_task_group() as group:
            for _ in range(3 * LIMIT):
                group.start_soon(service.session.submit, REQUEST)
        assert {arrival.code for arrival in service.emulator.arrivals} == {200}
        assert service.emulator.max_in_window(WINDOW) == LIMIT


@pytest.mark.usefixtures("clock")
async def test_the_emulator_has_the_quota_of_the_service() -> None:
    async with emulated(credits=1e6) as client:
        codes = [(await client.extend())["code"] for _ in range(LIMIT + 1)]
        assert codes == [200] * LIMIT + [429]


@pytest.mark.usefixtures("clock")
async def test_a_read_is_tried_four_times() -> None:
    async with fault_server(FAILURE) as server, kie.KieSession(settings(server.url)) as session:
        with pytest.raises(kie.ServerError):
            await session.credits()
        assert len(server.asked) == ATTEMPTS


@pytest.mark.usefixtures("clock")
async def test_all_reads_share_a_hundred_retries() -> None:
    async with fault_server(FAILURE) as server, kie.KieSession(settings(server.url)) as session:
        calls = RETRIES  # more than enough for all retries
        outcomes = await asyncio.gather(*(session.credits() for _ in range(calls)), return_exceptions=True)
        assert {type(outcome) for outcome in outcomes} == {kie.ServerError}
        assert len(server.asked) == calls + RETRIES


@pytest.mark.parametrize("asked", [LONGEST, LONGEST + 1])
async def test_a_wait_of_a_minute_is_kept_and_a_longer_one_raised(asked: int, clock: VirtualTimeLoop) -> None:
    started = clock.time()
    too_fast = Reply((http(429, b"", Retry_After=asked),), end="keep")
    async with fault_server(too_fast, AMOUNT) as server, kie.KieSession(settings(server.url)) as session:
        if asked > LONGEST:
            with pytest.raises(kie.RateLimitedError):
                await session.credits()
        else:
            assert (await session.credits()).amount == 5916.25
            assert clock.time() - started >= LONGEST
        assert len(server.asked) == (1 if asked > LONGEST else 2)


@pytest.mark.parametrize("asked", [LONGEST / 2, 10 * LONGEST])
async def test_a_poll_waits_as_long_as_it_is_asked_to_up_to_a_minute(asked: float, clock: VirtualTimeLoop) -> None:
    polled = []

    def refuse(_asked: Asked) -> Reply:
        polled.append(clock.time())
        return Reply((http(429, b"", Retry_After=asked),), end="keep")

    async with fault_server(ok(), refuse) as server, kie.KieSession(settings(server.url)) as session:
        task = await session.submit(REQUEST)
        with pytest.raises(kie.WaitTimeoutError):
            await task.result(timeout=2.25 * LONGEST)
    waits = [later - earlier for earlier, later in pairwise(polled)]
    assert waits == pytest.approx([min(asked, LONGEST)] * len(waits), abs=1.0)
