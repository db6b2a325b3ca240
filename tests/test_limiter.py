"""The quota: never more than the limit in any window, first come first served, cancel-safe, on a virtual clock."""

from __future__ import annotations

import asyncio
import gc
import random

import anyio
import anyio.lowlevel
import pytest
from service import REQUEST
from virtual_time import VirtualTimeLoop

import kie_async as kie
from kie_async import emulator
from kie_async.errors import SessionError
from kie_async.limiter import Permit, SlidingLimiter

pytestmark = pytest.mark.anyio

LIMIT, WINDOW = 20, 10.0


def most_in_window(stamps: list[float], window: float = WINDOW) -> int:
    stamps = sorted(stamps)
    return max(sum(start <= stamp <= start + window for stamp in stamps) for start in stamps)


async def test_two_hundred_at_once(clock: VirtualTimeLoop) -> None:
    limiter = SlidingLimiter(LIMIT, WINDOW)
    granted: list[tuple[int, float]] = []

    async def one(number: int) -> None:
        permit = await limiter.acquire()
        granted.append((number, clock.time()))
        await anyio.sleep(random.uniform(0, 0.005))
        permit.release()

    started = clock.time()
    async with anyio.create_task_group() as group:
        for number in range(200):
            group.start_soon(one, number)
    stamps = [stamp for _, stamp in granted]
    assert [number for number, _ in granted] == list(range(200))
    assert most_in_window(stamps) == LIMIT
    assert (200 / LIMIT - 1) * WINDOW / (stamps[-1] - started) > 0.98


@pytest.mark.parametrize("seed", range(20))
async def test_any_order_of_acquire_cancel_and_release(clock: VirtualTimeLoop, seed: int) -> None:
    chance = random.Random(seed)
    limiter = SlidingLimiter(3, 1.0, margin=0.001)
    arrivals: list[float] = []
    done = 0

    async def one() -> None:
        nonlocal done
        permit = await limiter.acquire()
        try:
            await anyio.sleep(chance.uniform(0, 0.2))
            arrivals.append(clock.time())
            await anyio.sleep(chance.uniform(0, 0.2))
        finally:
            permit.release()
        done += 1

    tasks = []
    for _ in range(60):
        tasks.append(asyncio.create_task(one()))
        if chance.random() < 0.3:
            await anyio.sleep(chance.uniform(0, 0.3))
        if chance.random() < 0.25:
            chance.choice(tasks).cancel()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert most_in_window(arrivals, 1.0) <= 3
    assert done == sum(result is None for result in results)
    permits = [await limiter.acquire() for _ in range(3)]  # none was lost
    assert limiter.queued == 0
    for permit in permits:
        permit.give_back()


async def test_cancelled_waiters_take_nothing(clock: VirtualTimeLoop) -> None:
    limiter = SlidingLimiter(1, WINDOW)
    (await limiter.acquire()).release()
    waiting = [asyncio.create_task(limiter.acquire()) for _ in range(60)]
    last = asyncio.create_task(limiter.acquire())
    await anyio.sleep(1)
    assert limiter.queued == 61
    for task in waiting:
        task.cancel()
    before = clock.time()
    (await last).release()
    assert clock.time() - before < WINDOW


@pytest.mark.usefixtures("clock")
async def test_a_waiter_cancelled_in_the_turn_of_its_grant_hands_on() -> None:
    limiter = SlidingLimiter(1, WINDOW)
    permit = await limiter.acquire()
    first, second = (asyncio.create_task(limiter.acquire()) for _ in range(2))
    await anyio.lowlevel.checkpoint()
    permit.give_back()  # granted to the first, who does not run yet
    first.cancel()
    (await second).release()
    assert first.cancelled()


async def test_a_permit_ends_once() -> None:
    limiter = SlidingLimiter(1, WINDOW)
    permit = await limiter.acquire()
    permit.give_back()
    permit.give_back()
    permit.release()
    permit = await limiter.acquire()
    with pytest.raises(TimeoutError), anyio.fail_after(1):
        await limiter.acquire()
    permit.release()


async def test_too_fast_closes_the_gate_for_all_and_keeps_the_order(clock: VirtualTimeLoop) -> None:
    limiter = SlidingLimiter(2, WINDOW, margin=0)
    started, order = clock.time(), []

    async def one(name: str, *, is_retry: bool = False) -> None:
        permit: Permit = await limiter.acquire(is_retry=is_retry)
        order.append((name, round(clock.time() - started)))
        permit.release()

    await one("a")
    limiter.penalize(15)
    limiter.penalize(3)
    async with anyio.create_task_group() as group:
        for name in "bcd":
            group.start_soon(one, name)
        await anyio.sleep(1)
        group.start_soon(lambda: one("a again", is_retry=True))
    assert order == [("a", 0), ("a again", 15), ("b", 15), ("c", 25), ("d", 25)]


async def test_a_permit_is_held_until_the_answer(clock: VirtualTimeLoop) -> None:
    limiter = SlidingLimiter(1, WINDOW, margin=0)
    first = await limiter.acquire()
    await anyio.sleep(30)
    first.release()
    before = clock.time()
    (await limiter.acquire()).release()
    assert clock.time() - before == pytest.approx(WINDOW, abs=0.1)


# ---------------------------------------------------------------- more than one loop


def test_another_loop_is_refused_while_the_limiters_own_lives() -> None:
    limiter = SlidingLimiter(1, WINDOW)

    async def take() -> Permit:
        return await limiter.acquire()

    with asyncio.Runner() as own:
        own.run(take())
        with asyncio.Runner() as other:
            with pytest.raises(SessionError, match="another event loop"):
                other.run(take())
            with pytest.raises(SessionError, match="another event loop"):
                other.run(penalize(limiter))


async def penalize(limiter: SlidingLimiter) -> None:
    limiter.penalize(1)


async def test_another_thread_is_refused_and_not_left_waiting() -> None:
    limiter = SlidingLimiter(1, WINDOW)
    permit = await limiter.acquire()

    async def take() -> None:
        with pytest.raises(SessionError, match="another event loop"):
            await limiter.acquire()

    await anyio.to_thread.run_sync(asyncio.run, take())
    permit.give_back()
    (await limiter.acquire()).release()


@pytest.mark.parametrize("closes", [False, True])
def test_a_loop_that_was_closed_with_a_waiter_leaves_no_more_than_the_quota(closes: bool) -> None:  # noqa: FBT001  # a parameter
    limiter = SlidingLimiter(3, WINDOW, margin=0)
    left: list[Permit] = []

    async def leave() -> None:
        if closes:
            limiter.penalize(1)
        permits = [await limiter.acquire() for _ in range(3)]
        permits[0].release()
        left.extend(permits[1:])
        asyncio.get_running_loop().create_task(limiter.acquire())  # it is left behind
        await anyio.lowlevel.checkpoint()

    loop = VirtualTimeLoop()
    loop.run_until_complete(leave())
    loop.close()

    async def go_on() -> list[float]:
        clock = asyncio.get_running_loop()
        started = clock.time()
        left[0].release()  # both were counted as returned
        stamps = []
        for number in range(6):
            (await limiter.acquire()).release()
            stamps.append(clock.time() - started)
            left[number % 2].give_back()
        return stamps

    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        stamps = runner.run(go_on())
    assert [round(stamp) for stamp in stamps] == [10, 10, 10, 20, 20, 20]


# ---------------------------------------------------------------- sessions that share one


@pytest.mark.scale
@pytest.mark.usefixtures("clock")
@pytest.mark.parametrize("at_once", [False, True])
async def test_a_session_for_each_request_stays_in_the_quota(at_once: bool) -> None:  # noqa: FBT001  # a parameter
    async with emulator.serve(credits=1e6) as service:

        async def one() -> None:
            settings = kie.Settings(api_key=service.key, base_url=service.base_url)
            async with kie.KieSession(settings) as session:
                await session.submit(REQUEST)

        async with anyio.create_task_group() as group:
            for number in range(60):
                if at_once:
                    group.start_soon(one)
                else:
                    await one()
                    if number % 15 == 0:
                        gc.collect()
        assert service.max_in_window(WINDOW) == 20
        assert all(arrival.admitted for arrival in service.arrivals)


async def test_another_key_and_another_limiter_have_a_quota_of_their_own(clock: VirtualTimeLoop) -> None:
    async with emulator.serve(key=["one", "two"], credits=1e6) as service:
        started = clock.time()
        for key, own in (("one", None), ("two", None), ("one", SlidingLimiter())):
            settings = kie.Settings(api_key=key, base_url=service.base_url, quota=5)
            async with kie.KieSession(settings, limiter=own) as session:
                for _ in range(5):
                    await session.submit(REQUEST)
        assert clock.time() - started < WINDOW


async def test_two_keys_of_one_account_share_its_quota(clock: VirtualTimeLoop) -> None:
    async with emulator.serve(key=["one", "two"], credits=1e6) as service:
        started = clock.time()
        one, two = (
            kie.Settings(api_key=key, base_url=service.base_url, quota=5, account="ours") for key in ("one", "two")
        )
        async with kie.KieSession(one) as first, kie.KieSession(two) as second:
            for number in range(6):
                await (first if number % 2 else second).submit(REQUEST)
        assert clock.time() - started >= WINDOW


async def test_a_shared_limiter_is_not_kept_for_ever(clock: VirtualTimeLoop) -> None:
    async def submit(settings: kie.Settings) -> None:
        async with kie.KieSession(settings) as session:
            await session.submit(REQUEST)

    async with emulator.serve(credits=1e6) as service:
        before = limiters()
        for number in range(20):
            await submit(kie.Settings(api_key=service.key, base_url=service.base_url, quota=number + 1))
        assert limiters() >= before + 20
        await anyio.sleep(60)
        assert limiters() <= before
    assert clock.time()


def limiters() -> int:
    gc.collect()
    return sum(issubclass(type(each), SlidingLimiter) for each in gc.get_objects())  # asks no lazy object of others
