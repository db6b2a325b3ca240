"""The journal through a pooler that gives connections by the transaction: no options, no notifications."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import anyio
import pytest
from journal_contract import JournalContract, collect, expecting, inbound
from poolers import Relay, pgbouncer, through
from postgres import Server, execute

import kie_async as kie
from kie_async.batch import _worker, run_shared_batch
from kie_async.emulator import Rules
from kie_async.journal import Job, Journal, JournalLimiter, PostgresJournal, State
from kie_async.testing import serve_in_thread

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"  # the real clock: a server does not know of a virtual one


@pytest.fixture(scope="module")
def _bouncer(_frail_server: Server) -> Iterator[int]:
    with pgbouncer(_frail_server) as port:
        yield port


@pytest.fixture
def pooled_url(_bouncer: int, frail_url: str) -> str:
    """A database of the test's own, through pgbouncer."""
    return through(_bouncer, frail_url)


# ---------------------------------------------------------------- pgbouncer


class TestContract(JournalContract):
    # these two take long, and that one begins before it is known that nothing is told
    test_every_pair_of_states = None  # type: ignore[assignment]
    test_many_old_callbacks_go = None  # type: ignore[assignment]
    test_a_listener_that_waits_is_woken = None  # type: ignore[assignment]

    @pytest.fixture
    def make(self, pooled_url: str) -> Callable[[], Journal]:
        return lambda: PostgresJournal(pooled_url)

    @pytest.fixture
    def lose(self, frail_url: str) -> Callable[[], None]:
        def lose() -> None:
            execute(frail_url, "DROP SCHEMA public CASCADE; CREATE SCHEMA public")

        return lose


async def test_a_quota_is_shared(pooled_url: str) -> None:
    async with (
        PostgresJournal(pooled_url) as one,
        PostgresJournal(pooled_url) as two,
        JournalLimiter(one, limit=4, window=60.0) as first,
        JournalLimiter(two, limit=4, window=60.0) as second,
    ):
        permits = [await limiter.acquire() for limiter in (first, second, first, second)]
        with anyio.move_on_after(0.3):
            await first.acquire()
            raise AssertionError
        permits[0].give_back()
        with anyio.fail_after(20):
            await second.acquire()


async def test_a_worker_finishes_its_jobs(pooled_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_worker, "POLL_INTERVAL", 0.1)
    monkeypatch.setattr(_worker, "CHECK_INTERVAL", 0.1)
    fields: dict[str, Any] = {"model": "V5", "style": "s", "title": "t", "prompt": "p", "continue_at": 1.0}
    jobs = [Job(key=f"{number}", request=kie.ExtendRequest("a1", **fields)) for number in range(5)]
    seen: list[Job] = []
    with serve_in_thread(speed=400.0, credits=1e6, rules=Rules(quota=1000)) as emulator:
        settings = kie.Settings(api_key=emulator.key, base_url=emulator.base_url, quota=1000)
        async with kie.KieSession(settings, journal=pooled_url) as session:
            assert session.journal is not None
            await run_shared_batch(
                session,
                jobs,
                journal=session.journal,
                dsn=pooled_url,
                directory=tmp_path,
                observer=seen.append,
                batch="b",
            )
        assert len(emulator.ledger) == len(jobs)
    assert sum(job.state is State.DELIVERED for job in seen) == len(jobs)


# ---------------------------------------------------------------- notifications


@pytest.mark.parametrize("swallows", [True, False])
async def test_what_a_pooler_does_not_tell_is_read(
    server: Server, frail_url: str, caplog: pytest.LogCaptureFixture, *, swallows: bool
) -> None:
    caplog.set_level(logging.INFO, "kie_async")
    relay = Relay(server.socket_path, swallows=swallows)
    async with relay.open() as port, PostgresJournal(through(port, frail_url)) as journal:
        for _ in range(2):
            async with aclosing(journal.driver.watch()) as signs:
                for _ in range(2):  # the second comes when it is known whether notifications come through
                    await anext(signs)
        async with PostgresJournal(frail_url) as other, aclosing(journal.watch_callbacks()) as watcher:
            await expecting(other, "token")
            for number in range(3):
                waiting = asyncio.ensure_future(collect(watcher, [inbound("token", f"{number}")]))
                await asyncio.sleep(0)
                await other.save_callback(inbound("token", f"{number}"))
                await waiting
    assert caplog.text.count("no notifications through its pooler: it is read twice a second") == swallows
