"""One quota for many processes: never one too many at the server, hardly one too few, whoever dies or is stopped."""

from __future__ import annotations

import asyncio
import json
import signal
import sqlite3
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any, LiteralString, cast

import anyio
import anyio.lowlevel
import pytest
from postgres import Server, execute

from benchmarks.quota import Counting, counting_server, most_in_window, processes, used
from kie_async.errors import KieError, SessionError, StorageError
from kie_async.journal import JournalLimiter, PostgresJournal, SharedPermit, is_shared, open_journal

pytestmark = [pytest.mark.anyio, pytest.mark.real_time]

LIMIT, WINDOW = 5, 1.0
BUSY = 0.6  # of the quota, on however busy a machine; ``python -m benchmarks quota`` measures it
FACTS: dict[str, Any] = {"limit": LIMIT, "window": WINDOW, "margin": 0.005, "lease": 0.7}


@pytest.fixture(params=["embedded", "shared"])
def where(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A new store, and how it is found."""
    if request.param == "embedded":
        return str(tmp_path / "journal.sqlite")
    return str(request.getfixturevalue("database_url"))


@asynccontextmanager
async def sharing(where: str, *, patience: float = 10.0, **facts: Any) -> AsyncIterator[JournalLimiter]:
    """A limiter on a journal of its own."""
    journal = PostgresJournal(where, patience=patience) if is_shared(where) else open_journal(where)
    async with journal, JournalLimiter(journal, **facts) as limiter:
        yield limiter


class Between:
    """A driver that lets a test come in between."""

    def __init__(self, driver: Any) -> None:
        self.driver = self  # of a journal
        self.asked: list[str] = []
        self.failures = 0
        self.forgotten: list[str] = []  # statements of which it says that they changed nothing
        self.before: Callable[[], object] = lambda: None
        self.after: Callable[[], object] = lambda: None
        self._driver = driver

    async def run(self, *steps: Any) -> Any:
        self.asked += [statement for statement, _ in steps]
        self.before()
        try:
            rows = await self._driver.run(*steps)
            return [[]] if steps[0][0] in self.forgotten else rows
        except StorageError:
            self.failures += 1
            raise
        finally:
            self.after()

    async def check(self) -> None:
        await self._driver.check()


@asynccontextmanager
async def between(where: str, *, patience: float = 10.0, **facts: Any) -> AsyncIterator[tuple[JournalLimiter, Between]]:
    journal = PostgresJournal(where, patience=patience) if is_shared(where) else open_journal(where)
    async with journal:
        driver = Between(journal.driver)
        async with JournalLimiter(cast("Any", driver), **facts) as limiter:
            yield limiter, driver


def ask(where: str, statement: LiteralString) -> list[tuple[Any, ...]]:
    """Run a statement from outside."""
    if is_shared(where):
        return execute(where, statement)
    with closing(sqlite3.connect(where, isolation_level=None)) as connection:
        return connection.execute(statement).fetchall()


def quota(where: str) -> dict[str, Any]:
    """What the store holds of the quota."""
    [(document,)] = ask(where, "SELECT document FROM kie_quota") or [("{}",)]
    found: dict[str, Any] = json.loads(document)
    return {"queue": [], "slots": [], "opens_at": 0.0, **found}


def now(where: str) -> float:
    """The moment, on the clock of a store on this machine."""
    return time.time() if is_shared(where) else time.monotonic()


def slots(where: str) -> list[tuple[bool, float]]:
    """Of each slot: is it held, and seconds until it is free."""
    return [("permit" in slot, slot.get("free_at", 0.0) - now(where)) for slot in quota(where)["slots"]]


def best(stamps: list[float], limit: int, window: float) -> float:
    """The part of the quota that was used in the best of the windows: a busy machine may have slowed down others."""
    bursts = range(0, len(stamps) - limit, limit)
    return max(used(stamps[first : first + limit + 1], limit, window) for first in bursts)


def is_queued(where: str) -> bool:
    return bool(quota(where)["queue"])


@pytest.fixture
async def counting() -> AsyncIterator[Counting]:
    async with counting_server() as counting:
        yield counting


# ---------------------------------------------------------------- many processes


@pytest.mark.scale
@pytest.mark.parametrize("number", [1, 4])
async def test_the_quota_is_kept_and_used_by_processes(where: str, counting: Counting, number: int) -> None:
    limit, window = 10, 2.0
    async with processes(where, counting, number, **{**FACTS, "limit": limit, "window": window}):
        await counting.reach(2 * limit + 1)
        await eventually(lambda: len({name for _, name in counting.seen}) == number)  # everyone gets a turn
    assert most_in_window(counting.stamps, window) == limit
    assert best(counting.stamps, limit, window) > BUSY


@pytest.mark.scale
async def test_the_quota_of_an_account(where: str, counting: Counting) -> None:
    limit, window = 20, 10.0
    async with processes(where, counting, 1, many=21) as [one]:
        assert await one.wait() == 0
    assert len(counting.seen) == 21
    assert most_in_window(counting.stamps, window) == limit
    assert best(counting.stamps, limit, window) > BUSY


async def test_a_process_that_is_killed_gives_its_share_back(where: str, counting: Counting) -> None:
    counting.slow = {"0"}
    async with processes(where, counting, 3, **FACTS) as [victim, *_]:
        with anyio.fail_after(60):
            while "0" not in {name for _, name in counting.seen}:
                await anyio.sleep(0.01)
        victim.kill()
        held = sum(name == "0" for _, name in counting.seen)
        await anyio.sleep(FACTS["lease"] + WINDOW + 0.2)
        before = len(counting.seen)
        await counting.reach(3 * LIMIT + 1)
    assert held > 0
    assert most_in_window(counting.stamps, WINDOW) == LIMIT
    assert best(counting.stamps[before:], LIMIT, WINDOW) > BUSY


async def test_a_process_that_was_stopped_for_longer_than_its_lease(where: str, counting: Counting) -> None:
    async with processes(where, counting, 2, **FACTS) as [sleeper, _]:
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
        await eventually(lambda: time.monotonic() - counting.stamps[-1] > 1.5 * WINDOW)
        server.start()
        await counting.reach(3 * LIMIT + 1)
    assert most_in_window(counting.stamps, WINDOW) == LIMIT


# ---------------------------------------------------------------- one process, or two in one


@pytest.fixture
async def limiter(where: str) -> AsyncIterator[JournalLimiter]:
    async with sharing(where, limit=1, window=0.1, margin=0) as limiter:
        yield limiter


async def eventually(check: Callable[[], bool]) -> None:
    with anyio.fail_after(60):
        while not check():
            await anyio.sleep(0.01)


async def test_who_comes_after_all_who_waited_went_away_is_served(limiter: JournalLimiter) -> None:
    permit = await limiter.acquire()
    waiting = [asyncio.ensure_future(limiter.acquire()) for _ in range(3)]
    await eventually(lambda: limiter.queued == 3)
    for each in waiting:
        each.cancel()
    await asyncio.gather(*waiting, return_exceptions=True)
    permit.release()
    await anyio.sleep(0.5)  # nobody waits, and nothing is held: the limiter rests
    with anyio.fail_after(10):
        (await limiter.acquire()).release()


async def test_a_limiter_is_opened_again_in_another_event_loop(where: str) -> None:
    journal = PostgresJournal(where) if is_shared(where) else open_journal(where)
    limiter = JournalLimiter(journal, limit=1)

    async def take_one() -> None:
        async with journal, limiter:
            (await limiter.acquire()).give_back()

    for _ in range(2):
        await anyio.to_thread.run_sync(asyncio.run, take_one())


async def test_a_quota_whose_file_was_moved_away_gives_nothing_more(tmp_path: Path) -> None:
    path, permits = tmp_path / "j.sqlite", []
    with pytest.raises(StorageError, match="was moved or deleted"):
        async with sharing(str(path), limit=5, window=0.1) as limiter:
            (await limiter.acquire()).release()
            path.rename(tmp_path / "elsewhere.sqlite")
            permits.append(await limiter.acquire())
    assert permits == []


async def test_first_come_first_served(limiter: JournalLimiter) -> None:
    served: list[int] = []

    async def one(number: int) -> None:
        permit = await limiter.acquire()
        served.append(number)
        permit.release()

    async with anyio.create_task_group() as group:
        for number in range(10):
            group.start_soon(one, number)
    assert served == list(range(10))


async def test_again_goes_first(limiter: JournalLimiter) -> None:
    held = await limiter.acquire()
    first = asyncio.ensure_future(limiter.acquire())
    await anyio.sleep(0.05)
    again = asyncio.ensure_future(limiter.acquire(is_retry=True))
    await anyio.sleep(0.05)
    assert limiter.queued == 2
    held.release()
    (await again).release()
    assert not first.done()
    (await first).release()


async def test_cancelling_takes_nothing(limiter: JournalLimiter, where: str) -> None:
    held = await limiter.acquire()
    waiting = [asyncio.ensure_future(limiter.acquire()) for _ in range(3)]
    await anyio.sleep(0.05)
    waiting[0].cancel()
    waiting[1].cancel()
    held.give_back()
    (await waiting[2]).give_back()
    await eventually(lambda: slots(where)[0][0] is False)
    await eventually(lambda: not is_queued(where))


async def test_the_last_waiter_goes_away_before_its_turn(limiter: JournalLimiter, where: str) -> None:
    held = await limiter.acquire()
    waiting = asyncio.ensure_future(limiter.acquire())
    await eventually(lambda: is_queued(where))
    waiting.cancel()
    await eventually(lambda: not is_queued(where))
    held.release()


async def test_cancelled_in_the_turn_of_the_grant(where: str) -> None:
    async with between(where, limit=1) as (limiter, driver):
        waiting = asyncio.ensure_future(limiter.acquire())
        driver.after = lambda: asyncio.get_running_loop().call_soon(waiting.cancel) if len(driver.asked) == 2 else None
        with pytest.raises(asyncio.CancelledError):
            await waiting
        await eventually(lambda: slots(where)[0][0] is False)
        assert slots(where)[0][1] <= 0


async def test_granted_when_nobody_waits_any_more(where: str) -> None:
    async with between(where, limit=1) as (limiter, driver):
        waiting = asyncio.ensure_future(limiter.acquire())
        driver.before = waiting.cancel
        with pytest.raises(asyncio.CancelledError):
            await waiting
        await eventually(lambda: slots(where) != [] and slots(where)[0][0] is False and slots(where)[0][1] <= 0)


async def test_what_is_given_back_is_free_at_once_for_all(where: str) -> None:
    async with (
        sharing(where, limit=1, window=60) as one,
        sharing(where, limit=1, window=60) as other,
    ):
        permit = await one.acquire()
        waiting = asyncio.ensure_future(other.acquire())
        await anyio.sleep(0.3)
        assert not waiting.done()
        permit.give_back()
        permit.release()  # a second end does nothing
        with anyio.fail_after(30):  # the window is longer
            (await waiting).give_back()


async def test_accounts_are_apart(where: str) -> None:
    async with (
        sharing(where, limit=1, window=60) as one,
        sharing(where, limit=1, window=60, account="another") as other,
    ):
        with anyio.fail_after(60):
            (await one.acquire()).release()
            (await other.acquire()).release()


async def test_too_fast_closes_the_gate_for_all(where: str) -> None:
    async with sharing(where) as one, sharing(where) as other:
        started = time.monotonic()
        one.penalize(1.0)
        one.penalize(0.2)  # never earlier than it would open already
        await eventually(lambda: bool(quota(where)["opens_at"] > 0))
        for limiter in (one, other):
            (await limiter.acquire()).release()
            assert time.monotonic() - started > 0.99


async def test_a_long_submission_keeps_its_slot(where: str) -> None:
    facts: dict[str, Any] = {"limit": 1, "window": 0.01, "lease": 2.0}  # a busy disk may take a while
    async with sharing(where, **facts) as one, sharing(where, **facts) as other:
        permit = await one.acquire()
        waiting = asyncio.ensure_future(other.acquire())
        await anyio.sleep(3.0)
        assert not waiting.done()
        assert isinstance(permit, SharedPermit)
        await eventually(lambda: permit.is_valid)  # a busy machine renews late
        permit.release()
        (await waiting).release()


async def test_a_slot_that_was_taken_over_is_left_alone(where: str) -> None:
    async with sharing(where, limit=1, lease=0.3) as limiter:
        permit = await limiter.acquire()
        assert isinstance(permit, SharedPermit)
        ask(
            where,
            """UPDATE kie_quota
            SET written = 'by another', document = replace(document, '"permit":"', '"permit":"x')""",
        )
        (before,) = quota(where)["slots"]
        await eventually(lambda: not permit.is_valid)
        permit.release()
        await anyio.sleep(0.2)
        assert quota(where)["slots"] == [before]
    assert quota(where)["slots"] == [before]


async def test_a_permit_slept_over_is_not_given(where: str) -> None:
    async with between(where, limit=2, lease=0.4) as (limiter, driver):

        def sleep_over() -> None:
            if len(driver.asked) == 2:
                time.sleep(0.25)

        driver.after = sleep_over
        with anyio.fail_after(60):
            permit = await limiter.acquire()
        assert permit.is_valid
        assert len(driver.asked) > 2
        permit.release()


async def test_a_permit_ends_by_the_wall_clock_where_a_suspended_machine_stops_the_other(
    where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with sharing(where, limit=2, lease=30.0) as limiter:
        permit = await limiter.acquire()
        assert isinstance(permit, SharedPermit)
        assert permit.is_valid
        wall = time.time
        monkeypatch.setattr(time, "time", lambda: wall() + 16)  # half of the lease has passed
        assert [permit.is_valid] == [False]
        permit.give_back()
        again = await limiter.acquire()
        assert isinstance(again, SharedPermit)
        assert again.is_valid
        again.give_back()


async def test_what_was_written_before_its_connection_was_lost_counts(where: str) -> None:
    async with between(where, limit=1) as (limiter, driver):
        driver.before = lambda: driver.forgotten.extend(driver.asked[1:2])  # run again, it finds nothing to change
        with anyio.fail_after(60):  # the only slot is held
            permit = await limiter.acquire()
        assert slots(where)[0][0]
        driver.before = driver.forgotten.clear
        permit.release()


async def test_a_gate_that_is_closed_meanwhile_stays_so(where: str) -> None:
    async with between(where, limit=2, window=0.1) as (limiter, driver):
        closed: list[float] = []

        def close() -> None:
            if not closed:
                closed.append(time.monotonic())
                limiter.penalize(1.0)

        driver.before = close
        for _ in range(2):
            (await limiter.acquire()).release()
        assert time.monotonic() - closed[0] > 0.99


async def test_waiting_costs_next_to_nothing(where: str) -> None:
    async with between(where, limit=1, window=2.0) as (limiter, driver):
        (await limiter.acquire()).release()
        driver.asked.clear()
        permit = await limiter.acquire()
        assert len(driver.asked) < 10
        permit.release()


# ---------------------------------------------------------------- opening and closing


async def test_it_is_entered_and_left_in_different_tasks(where: str) -> None:
    async with open_journal(where) as journal:
        limiter = JournalLimiter(journal)
        await asyncio.create_task(limiter.__aenter__())
        (await limiter.acquire()).release()
        await asyncio.create_task(limiter.__aexit__(None, None, None))
        with pytest.raises(SessionError, match="not open"):
            await limiter.acquire()


async def test_another_thread_is_refused_and_not_left_waiting(where: str) -> None:
    async with sharing(where) as limiter:

        async def take() -> None:
            with pytest.raises(SessionError, match="another event loop"):
                await limiter.acquire()

        await anyio.to_thread.run_sync(asyncio.run, take())


async def test_it_must_be_open(where: str) -> None:
    async with open_journal(where) as journal:
        limiter = JournalLimiter(journal)
        with pytest.raises(SessionError, match="async with"):
            await limiter.acquire()
        async with limiter:
            (await limiter.acquire()).release()
        with pytest.raises(SessionError, match="async with"):
            await limiter.acquire()


async def test_its_journal_must_be_open(where: str) -> None:
    async with JournalLimiter(open_journal(where)) as limiter:
        with pytest.raises(StorageError, match="not open"):
            await limiter.acquire()


async def test_whoever_waits_at_the_end_is_told(where: str) -> None:
    async with sharing(where, limit=1) as limiter:
        await limiter.acquire()
        waiting = asyncio.ensure_future(limiter.acquire())
        await eventually(lambda: is_queued(where))
    with pytest.raises(SessionError, match="closed"):
        await waiting
    assert not is_queued(where)


async def test_all_is_told_at_the_end(where: str) -> None:
    async with sharing(where, limit=2) as limiter:
        for _ in range(2):
            (await limiter.acquire()).release()
    assert [held for held, _ in slots(where)] == [False, False]
    assert all(9 < seconds < 10.1 for _, seconds in slots(where))


async def test_an_error_of_the_block_comes_out_as_itself(where: str) -> None:
    with pytest.raises(KieError, match="mine"):
        async with sharing(where):
            raise KieError("mine")


# ---------------------------------------------------------------- the database refuses, or is away


async def test_a_database_that_refuses_says_so(where: str) -> None:
    async with sharing(where) as limiter:
        ask(where, "ALTER TABLE kie_quota RENAME TO elsewhere")
        calls = [asyncio.ensure_future(limiter.acquire()) for _ in range(3)]
        calls[0].cancel()
        for call in calls[1:]:
            with pytest.raises(StorageError, match="kie_quota"):
                await call
        ask(where, "ALTER TABLE elsewhere RENAME TO kie_quota")
        (await limiter.acquire()).release()


async def test_what_came_back_meanwhile_is_told_later(server: Server, frail_url: str) -> None:
    async with sharing(frail_url, patience=0.2, limit=2) as limiter:
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


async def test_who_waits_for_the_database_goes_on_with_it(server: Server, frail_url: str) -> None:
    async with between(frail_url, patience=0.2) as (limiter, driver):
        server.stop()
        waiting = asyncio.ensure_future(limiter.acquire())
        await eventually(lambda: driver.failures > 0)
        assert not waiting.done()
        server.start()
        with anyio.fail_after(20):
            (await waiting).release()


async def test_the_end_without_the_database(server: Server, frail_url: str) -> None:
    async with sharing(frail_url, patience=0.2) as limiter:
        permit = await limiter.acquire()
        server.stop()
        permit.release()
    assert limiter.queued == 0
