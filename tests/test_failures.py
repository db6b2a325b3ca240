"""A service that fails every task: a batch, ``submit_all`` and a worker stop after a few, and what is paid goes on."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from command_line import Terminal, served
from service import Service, serving

import kie_async as kie
from kie_async.emulator import Fault, Rules
from kie_async.journal import Job, State
from kie_async.testing import EmulatorHandle

pytestmark = pytest.mark.anyio

FIELDS: dict[str, Any] = {"model": "V5", "style": "s", "prompt": "p", "continue_at": 5.0}


def requests(count: int) -> Iterator[kie.ExtendRequest]:
    return (kie.ExtendRequest("a1", title=f"{number}", **FIELDS) for number in range(count))


def failing(*faults: Fault, **settings: Any) -> Any:  # an open service
    """A service whose tasks fail, and a session that has two of them in flight."""
    settings = {"quota": 1000, "max_in_flight": 2, **settings}
    faults = faults or (Fault("failed"),)
    return serving(credits=1e6, goes_on=(1.0, 2.0), rules=Rules(quota=1000), faults=faults, settings=settings)


async def outcomes_of(service: Service, count: int) -> list[kie.Outcome]:
    found = []
    with pytest.raises(kie.TooManyFailuresError, match=r"\d tasks failed in a row, the last with: ") as caught:
        async for outcome in service.session.submit_all(requests(count)):
            found.append(outcome)  # noqa: PERF401  # what came before the error counts
    assert any(charge.task_id in caught.value.message for charge in service.emulator.ledger)
    assert not caught.value.retryable
    assert caught.value.charged == "no"
    return found


async def test_submit_all_stops_after_five() -> None:
    async with failing() as service:
        found = await outcomes_of(service, 60)
        assert 5 <= len(service.emulator.ledger) <= 6  # one more was in flight
        failed = [outcome for outcome in found if isinstance(outcome.error, kie.TaskFailedError)]
        assert len(failed) == len(service.emulator.ledger)
        refused = [outcome for outcome in found if isinstance(outcome.error, kie.TooManyFailuresError)]
        assert len(failed) + len(refused) == len(found) < 60
        assert all(outcome.task_id is None for outcome in refused)


async def test_those_that_wait_for_the_quota_are_not_sent_any_more() -> None:
    async with failing(max_in_flight=100, quota=20, quota_window=1000.0) as service:
        found = await outcomes_of(service, 60)
        assert len(service.emulator.ledger) == 20
        assert len(found) == 60


async def test_with_a_journal_what_was_not_sent_is_rejected_for_nobody_knows_its_key(tmp_path: Path) -> None:
    async with failing() as service:
        journal = kie.SQLiteJournal(tmp_path / "own.sqlite", poll=5.0)
        async with kie.KieSession(service.session.settings, journal=journal) as session:
            with pytest.raises(kie.TooManyFailuresError):
                async for _ in session.submit_all(requests(60)):
                    pass
        async with journal:
            counts = await journal.counts()
        assert counts[State.FAILED] == len(service.emulator.ledger)
        assert sum(counts.values()) - counts[State.FAILED] == counts[State.REJECTED] > 0


@pytest.mark.parametrize("limit", [0, None])
async def test_there_may_be_no_limit(limit: int | None) -> None:
    async with failing(max_consecutive_failures=limit) as service:
        found = [outcome async for outcome in service.session.submit_all(requests(8))]
        assert len(found) == len(service.emulator.ledger) == 8


async def test_five_are_no_reason_to_complain_if_there_are_no_more() -> None:
    async with failing() as service:
        found = [outcome async for outcome in service.session.submit_all(requests(5))]
        assert len(found) == 5


async def test_a_success_begins_anew() -> None:
    async with failing(
        *(Fault("failed", nth=number) for number in (1, 2, 3, 4, 6, 7, 8, 9)), max_in_flight=1
    ) as service:
        found = [outcome async for outcome in service.session.submit_all(requests(10))]
        assert sum(outcome.error is None for outcome in found) == 2


@pytest.mark.parametrize("fault", [Fault("lost"), Fault("code", code=500)])
async def test_submit_all_stops_where_each_submission_may_be_charged(fault: Fault) -> None:
    async with failing(fault) as service:
        with pytest.raises(kie.TooManyFailuresError, match=r"\d tasks failed in a row"):
            _ = [outcome async for outcome in service.session.submit_all(requests(60))]
        assert 5 <= len(service.emulator.arrivals) <= 6


async def test_what_was_refused_is_no_failure() -> None:
    async with failing(Fault("code", code=422)) as service:
        found = [outcome async for outcome in service.session.submit_all(requests(8))]
        assert len(found) == 8


@pytest.mark.parametrize("limit", [-1, 1.5, "5"])
def test_a_limit_that_is_none(limit: Any) -> None:
    with pytest.raises(kie.SettingsError, match="max_consecutive_failures"):
        kie.Settings(api_key="k", max_consecutive_failures=limit)


# ---------------------------------------------------------------- batches


async def test_a_batch_stops_where_each_submission_may_be_charged(tmp_path: Path) -> None:
    jobs = [Job(key=request.title or "", request=request) for request in requests(12)]
    async with failing(Fault("code", code=500)) as service:
        journal = kie.SQLiteJournal(tmp_path / "journal.sqlite", poll=5.0)
        with pytest.raises(kie.TooManyFailuresError, match=r"\d tasks failed in a row"):
            _ = [job async for job in kie.run_batch(service.session, jobs, journal=journal, directory=tmp_path)]
        assert 5 <= len(service.emulator.arrivals) <= 6


async def test_a_batch_stops_and_the_next_run_goes_on(tmp_path: Path) -> None:
    jobs = [Job(key=request.title or "", request=request) for request in requests(12)]

    async with failing() as service:

        async def run() -> list[State]:
            journal = kie.SQLiteJournal(tmp_path / "journal.sqlite", poll=5.0)
            batch = kie.run_batch(service.session, jobs, journal=journal, directory=tmp_path / "out")
            return [job.state async for job in batch if job.state is not State.PLANNED]

        with pytest.raises(kie.TooManyFailuresError, match="5 tasks failed in a row"):
            await run()
        paid = len(service.emulator.ledger)
        assert 5 <= paid <= 6
        service.emulator.faults.clear()
        assert await run() == [State.DELIVERED] * (12 - paid)
        assert len(service.emulator.ledger) == 12


@pytest.fixture
def service(monkeypatch: pytest.MonkeyPatch) -> Iterator[EmulatorHandle]:
    with served(monkeypatch) as handle:
        handle.add_faults(Fault("failed"))
        yield handle


def manifest(path: Path, count: int) -> str:
    rows = [f"track{number},a{number},V5,1,s,t,yes\n" for number in range(count)]
    path.write_text("id,audio_id,model,continue_at,style,title,instrumental\n" + "".join(rows))
    return str(path)


def test_the_command_says_so(terminal: Terminal, service: EmulatorHandle, tmp_path: Path) -> None:
    words = ("batch", manifest(tmp_path / "jobs.csv", 40), "--out", str(tmp_path / "out"), "--callbacks", "--yes")
    answer = terminal(*words, "--json")
    assert answer.code == 3
    assert answer.value["error"]["type"] == "TooManyFailuresError"
    assert 5 <= len(service.ledger) <= 20  # as many as the quota lets go at once
    assert answer.value["counts"]["failed"] == len(service.ledger)
    assert answer.value["counts"]["waiting"] == 40 - len(service.ledger)
    assert "tasks failed in a row" in answer.err
    assert "go on with the same command" in answer.err


def test_a_worker_stops_too(terminal: Terminal, service: EmulatorHandle, tmp_path: Path, database_url: str) -> None:
    place = ("--out", str(tmp_path / "out"), "--journal", database_url)

    async def fill() -> None:
        async with kie.open_journal(database_url) as journal:
            await journal.add(Job(key=r.title or "", request=r, batch="songs") for r in requests(12))

    asyncio.run(fill())
    answer = terminal("worker", *place, "--at-once", "1", "--callbacks", "--json")
    assert answer.code == 3
    assert answer.value["error"]["type"] == "TooManyFailuresError"
    assert len(service.ledger) == 5
