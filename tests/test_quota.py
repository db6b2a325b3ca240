"""One quota for many processes: never one too many at the server, hardly one too few, whoever dies or is stopped."""

from __future__ import annotations

import asyncio
import signal
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from typing import Any

import anyio
import anyio.lowlevel
import pytest
from postgres import Server, execute

from benchmarks.quota import Counting, counting_server, most_in_window, processes, used
from kie_async.errors import KieError, SessionError, StorageError
from kie_async.journal import _quota
from kie_async.journal._quota import PostgresLimiter, SharedPermit

pytestmark = pytest.mark.anyio

LIMIT, WINDOW = 5, 1.0
BUSY = 0.6  # of the quota, on however busy a machine; ``python -m benchmarks quota`` measures it
FACTS: dict[str, Any] = {"limit": LIMIT, "window": WINDOW, "margin": 0.005, "lease": 0.7}


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
async def counting() -> AsyncIterator[Counting]:
    async with counting_server() as counting:
        yield counting


# ---------------------------------------------------------------- many processes


@pytest.mark.scale
@pytest.mark.parametrize("number", [1, 3, 10])
async def test_the_quota_is_kept_and_used_by_processes(database_url: str, counting: Counting, number: int) -> None:
    limit, window = 10, 2.0
    async with processes(database_url, counting, number, **{**FACTS, "limit": limit, "window": window}):
        await counting.reach(2 * limit + 1)
    assert most_in_window(counting.stamps, window) == limit
    assert used(counting.stamps, limit, window) > BUSY
    shares = Counter(name for _, name in counting.seen)
    assert len(shares) == number


@pytest.mark.scale
async def test_the_quota_of_an_account(database_url: str, counting: Counting) -> None:
    limit, window = 20, 10.0
    async with processes(database_url, counting, 1, many=21) as [one]:
        assert await one.wait() == 0
    assert len(counting.seen) == 21
    assert most_in_window(counting.stamps, window) == limit
    assert used(counting.stamps, limit, window) > BUSY


async def test_a_process_that_is_killed_gives_its_share_back(database_url: str, counting: Counting) -> None:
    counting.slow = {"0"}
    async with processes(database_url, counting, 3, **FACTS) as [victim, *_]:
        with anyio.fail_after(10):
            while "0" not in {name for _, name in counting.seen}:
                await anyio.sleep(0.01)
        victim.kill()
        held = sum(name == "0" for _, name in counting.seen)
        await anyio.sleep(FACTS["lease"] + WINDOW + 0.2)
        before = len(counting.seen)
        await counting.reach(3 * LIMIT + 1)
    assert held > 0
    assert most_in_window(counting.stamps, WINDOW) == LIMIT
    assert used(counting.stamps[before:], LIMIT, WINDOW) > BUSY


async def test_a_process_that_was_stopped_for_longer_than_its_lease(database_url: str, counting: Counting) -> None:
    async with processes(database_url, counting, 2, **FACTS) as [sleeper, _]:
        for _ in range(2):
            await counting.reach(LIMIT)
            sleeper.send_signal(signal.SIGSTOP)
            await anyio.sleep(FACTS["lease"] + WINDOW)
            sleeper.send_signal(signal.SIGCONT)
        await counting.reach(3 * LIMIT + 1)
    assert most_in_window(counting.stamps, WINDOW) == LIMIT
    assert {name for _, name in counting.seen[-3 * LIMIT :]} == {"0", "1"}


async def test_without_the_database_nobody_submits(server: Server, frail_url: str, counting: Counting) -> None:
    async with processes(frail_url, counting, 2, **FACTS):
        await counting.reach(2 * LIMIT)
        server.stop()
        await anyio.sleep(0.5)
        before = len(counting.seen)
        await anyio.sleep(1.5 * WINDOW)
        assert len(counting.seen) == before
        server.start()
        await counting.reach(3 * LIMIT + 1)
    assert most_in_window(counting.stamps, WINDOW) == LIMIT


# ---------------------------------------------------------------- one process, or two in one


@pytest.fixture
async def limiter(database_url: str) -> AsyncIterator[PostgresLimiter]:
    async with PostgresLimiter(database_url, limit=1, window=0.1, margin=0) as limiter:
        yield limiter


async def eventually(check: Callable[[], bool]) -> None:
    with anyio.fail_after(10):
        while not check():
            await anyio.sleep(0.01)


def slots(url: str) -> list[tuple[Any, ...]]:
    """Of each slot: is it held, and seconds until it is free."""
    return execute(
        url,
        "SELECT permit IS NOT NULL, extract(epoch FROM free_at - clock_timestamp())::float8"
        " FROM kie_slot ORDER BY number",
    )


async def test_first_come_first_served(limiter: PostgresLimiter) -> None:
    served: list[int] = []

    async def one(number: int) -> None:
        permit = await limiter.acquire()
        served.append(number)
        permit.release()

    async with anyio.create_task_group() as group:
        for number in range(10):
            group.start_soon(one, number)
    assert served == list(range(10))


async def test_again_goes_first(limiter: PostgresLimiter) -> None:
    held = await limiter.acquire()
    first = asyncio.ensure_future(limiter.acquire())
    await anyio.sleep(0.05)
    again = asyncio.ensure_future(limiter.acquire(again=True))
    await anyio.sleep(0.05)
    assert limiter.queued == 2
    held.release()
    (await again).release()
    assert not first.done()
    (await first).release()


async def test_cancelling_takes_nothing(limiter: PostgresLimiter, database_url: str) -> None:
    held = await limiter.acquire()
    waiting = [asyncio.ensure_future(limiter.acquire()) for _ in range(3)]
    await anyio.sleep(0.05)
    waiting[0].cancel()
    waiting[1].cancel()
    held.give_back()
    (await waiting[2]).give_back()
    await eventually(lambda: slots(database_url)[0][0] is False)
    await eventually(lambda: execute(database_url, "SELECT 1 FROM kie_queue") == [])


async def test_the_last_waiter_goes_away_before_its_turn(limiter: PostgresLimiter, database_url: str) -> None:
    held = await limiter.acquire()
    waiting = asyncio.ensure_future(limiter.acquire())
    await eventually(lambda: execute(database_url, "SELECT 1 FROM kie_queue") == [(1,)])
    waiting.cancel()
    await eventually(lambda: execute(database_url, "SELECT 1 FROM kie_queue") == [])
    held.release()


async def test_cancelled_in_the_turn_of_the_grant(
    limiter: PostgresLimiter, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    grant = limiter._grant
    waiting = asyncio.ensure_future(limiter.acquire())

    def grant_and_cancel(permit: SharedPermit) -> None:
        grant(permit)
        waiting.cancel()

    monkeypatch.setattr(limiter, "_grant", grant_and_cancel)
    with pytest.raises(asyncio.CancelledError):
        await waiting
    await eventually(lambda: slots(database_url)[0][0] is False)
    assert slots(database_url)[0][1] <= 0


async def test_granted_when_nobody_waits_any_more(
    limiter: PostgresLimiter, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    waiting = asyncio.ensure_future(limiter.acquire())
    take = limiter._database.execute

    async def cancel_and_take(*arguments: Any) -> Any:
        waiting.cancel()
        return await take(*arguments)

    monkeypatch.setattr(limiter._database, "execute", cancel_and_take)
    with pytest.raises(asyncio.CancelledError):
        await waiting
    await eventually(lambda: slots(database_url)[0][0] is False and slots(database_url)[0][1] <= 0)


async def test_what_is_given_back_is_free_at_once_for_all(database_url: str) -> None:
    async with (
        PostgresLimiter(database_url, limit=1, window=60) as one,
        PostgresLimiter(database_url, limit=1, window=60) as other,
    ):
        permit = await one.acquire()
        waiting = asyncio.ensure_future(other.acquire())
        await anyio.sleep(0.3)
        assert not waiting.done()
        permit.give_back()
        permit.release()  # a second end does nothing
        with anyio.fail_after(30):  # the window is longer
            (await waiting).give_back()


async def test_accounts_are_apart(database_url: str) -> None:
    async with (
        PostgresLimiter(database_url, limit=1, window=60) as one,
        PostgresLimiter(database_url, limit=1, window=60, account="another") as other,
    ):
        with anyio.fail_after(5):
            (await one.acquire()).release()
            (await other.acquire()).release()


async def test_too_fast_closes_the_gate_for_all(database_url: str) -> None:
    async with PostgresLimiter(database_url) as one, PostgresLimiter(database_url) as other:
        started = time.monotonic()
        one.penalize(1.0)
        one.penalize(0.2)  # never earlier than it would open already
        await eventually(lambda: execute(database_url, "SELECT 1 FROM kie_quota WHERE not_before > now()") == [(1,)])
        for limiter in (one, other):
            (await limiter.acquire()).release()
            assert time.monotonic() - started > 0.99


async def test_a_long_submission_keeps_its_slot(database_url: str) -> None:
    facts: dict[str, Any] = {"limit": 1, "window": 0.01, "lease": 0.3}
    async with PostgresLimiter(database_url, **facts) as one, PostgresLimiter(database_url, **facts) as other:
        permit = await one.acquire()
        waiting = asyncio.ensure_future(other.acquire())
        await anyio.sleep(1.0)
        assert not waiting.done()
        assert isinstance(permit, SharedPermit)
        assert permit.is_valid
        permit.release()
        (await waiting).release()


async def test_a_slot_that_was_taken_over_is_left_alone(database_url: str) -> None:
    async with PostgresLimiter(database_url, limit=1, lease=0.3) as limiter:
        permit = await limiter.acquire()
        assert isinstance(permit, SharedPermit)
        execute(database_url, "UPDATE kie_slot SET permit = gen_random_uuid(), free_at = now() + interval '1 hour'")
        await eventually(lambda: not permit.is_valid)
        permit.release()
        await anyio.sleep(0.2)
    assert slots(database_url)[0][1] > 3500


async def test_a_permit_slept_over_is_not_given(limiter: PostgresLimiter, monkeypatch: pytest.MonkeyPatch) -> None:
    grant, granted = limiter._grant, list[SharedPermit]()

    def sleep_over(permit: SharedPermit) -> None:
        granted.append(permit)
        if len(granted) == 1:
            permit.until = 0.0
        grant(permit)

    monkeypatch.setattr(limiter, "_grant", sleep_over)
    permit = await limiter.acquire()
    assert [permit] == granted[1:]
    permit.release()


async def test_waiting_costs_next_to_nothing(database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async with PostgresLimiter(database_url, limit=1, window=2.0) as limiter:
        (await limiter.acquire()).release()
        asked: list[str] = []
        once = limiter._database.execute

        async def ask(*arguments: Any) -> Any:
            asked.append(arguments[0])
            return await once(*arguments)

        monkeypatch.setattr(limiter._database, "execute", ask)
        permit = await limiter.acquire()
        assert len(asked) < 10
        permit.release()


# ---------------------------------------------------------------- opening and closing


async def test_it_is_entered_and_left_in_different_tasks(database_url: str) -> None:
    limiter = PostgresLimiter(database_url)
    await asyncio.create_task(limiter.__aenter__())
    (await limiter.acquire()).release()
    await asyncio.create_task(limiter.__aexit__(None, None, None))
    with pytest.raises(SessionError, match="not open"):
        await limiter.acquire()


async def test_another_thread_is_refused_and_not_left_waiting(database_url: str) -> None:
    async with PostgresLimiter(database_url) as limiter:

        async def take() -> None:
            with pytest.raises(SessionError, match="another event loop"):
                await limiter.acquire()

        await anyio.to_thread.run_sync(asyncio.run, take())


async def test_it_must_be_open(database_url: str) -> None:
    limiter = PostgresLimiter(database_url)
    with pytest.raises(SessionError, match="async with"):
        await limiter.acquire()
    async with limiter:
        (await limiter.acquire()).release()
    with pytest.raises(SessionError, match="async with"):
        await limiter.acquire()


async def test_whoever_waits_at_the_end_is_told(database_url: str) -> None:
    async with PostgresLimiter(database_url, limit=1) as limiter:
        await limiter.acquire()
        waiting = asyncio.ensure_future(limiter.acquire())
        await eventually(lambda: execute(database_url, "SELECT 1 FROM kie_queue") == [(1,)])
    with pytest.raises(SessionError, match="closed"):
        await waiting
    assert execute(database_url, "SELECT 1 FROM kie_queue") == []


async def test_all_is_told_at_the_end(database_url: str) -> None:
    async with PostgresLimiter(database_url, limit=2) as limiter:
        for _ in range(2):
            (await limiter.acquire()).release()
    assert [held for held, _ in slots(database_url)] == [False, False]
    assert all(9 < seconds < 10.1 for _, seconds in slots(database_url))


async def test_an_error_of_the_block_comes_out_as_itself(database_url: str) -> None:
    with pytest.raises(KieError, match="mine"):
        async with PostgresLimiter(database_url):
            raise KieError("mine")


# ---------------------------------------------------------------- the database refuses, or is away


async def test_a_database_that_refuses_says_so(database_url: str) -> None:
    async with PostgresLimiter(database_url) as limiter:
        execute(database_url, "ALTER FUNCTION kie_take RENAME TO elsewhere")
        calls = [asyncio.ensure_future(limiter.acquire()) for _ in range(3)]
        calls[0].cancel()
        for call in calls[1:]:
            with pytest.raises(StorageError, match="kie_take"):
                await call
        execute(database_url, "ALTER FUNCTION elsewhere RENAME TO kie_take")
        (await limiter.acquire()).release()


async def test_what_came_back_meanwhile_is_told_later(
    server: Server, frail_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_quota, "_PATIENCE", 0.2)
    async with PostgresLimiter(frail_url, limit=2) as limiter:
        permits = [await limiter.acquire() for _ in range(2)]
        server.stop()
        permits[0].release()
        permits[1].give_back()
        limiter.penalize(3.0)
        waiting = asyncio.ensure_future(limiter.acquire())
        await anyio.sleep(1.0)
        server.start()
        started = time.monotonic()
        (await waiting).release()
        assert time.monotonic() - started < 10
        assert slots(frail_url)[0][1] > 0


async def test_who_waits_for_the_database_goes_on_with_it(
    server: Server, frail_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_quota, "_PATIENCE", 0.2)
    async with PostgresLimiter(frail_url) as limiter:
        server.stop()
        waiting = asyncio.ensure_future(limiter.acquire())
        await eventually(lambda: limiter._failures > 0)
        assert not waiting.done()
        server.start()
        with anyio.fail_after(20):
            (await waiting).release()


async def test_the_end_without_the_database(server: Server, frail_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_quota, "_PATIENCE", 0.2)
    async with PostgresLimiter(frail_url) as limiter:
        permit = await limiter.acquire()
        server.stop()
        permit.release()
    assert limiter.queued == 0
