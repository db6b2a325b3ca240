"""A cap on what a session spends: reserved before each submission, and never passed, however the tasks end."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import attrs
import pytest
from command_line import PATIENCE, Terminal, served, short_song
from service import REQUEST, Service, serving

import kie_async as kie
from kie_async.emulator import Fault
from kie_async.journal import Job, State
from kie_async.settings import Settings

pytestmark = pytest.mark.anyio


@asynccontextmanager
async def capped(cap: float, *faults: Fault, **settings: Any) -> AsyncIterator[Service]:
    async with serving(credits=1e6, faults=faults, settings={"max_credits": cap, **settings}) as service:
        yield service


# ---------------------------------------------------------------- settings


def test_the_environment_gives_the_cap_and_its_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Settings(api_key="k").max_credits is None
    assert Settings(api_key="k").max_credits_since is None
    monkeypatch.setenv("KIE_MAX_CREDITS", "120.5")
    monkeypatch.setenv("KIE_MAX_CREDITS_SINCE", "2026-12-01")
    settings = Settings(api_key="k")
    assert settings.max_credits == 120.5
    assert settings.max_credits_since == datetime(2026, 12, 1, tzinfo=UTC)
    assert Settings(api_key="k", max_credits=None).max_credits is None
    assert Settings(api_key="k", max_credits=0).max_credits == 0


def test_a_moment_keeps_its_zone() -> None:
    zone = timezone(timedelta(hours=2))
    assert Settings(api_key="k", max_credits_since="2026-12-01T08:00+02:00").max_credits_since == datetime(
        2026, 12, 1, 8, tzinfo=zone
    )


@pytest.mark.parametrize("value", ["much", -1, float("nan"), float("inf"), True, "nan"])
def test_a_cap_is_a_number_of_credits(value: Any) -> None:
    with pytest.raises(kie.SettingsError, match=r"max_credits is .* give a number of credits from 0 up"):
        Settings(api_key="k", max_credits=value)


@pytest.mark.parametrize("value", ["yesterday", datetime(2026, 12, 1), 5])  # noqa: DTZ001  # what is refused
def test_a_moment_that_is_none_is_refused(value: Any) -> None:
    with pytest.raises(kie.SettingsError, match=r"max_credits_since is .* give ISO 8601 text"):
        Settings(api_key="k", max_credits_since=value)


# ---------------------------------------------------------------- a session without a journal


async def test_a_session_spends_no_more_and_says_what_to_do() -> None:
    async with capped(30) as service:
        tasks = [await service.session.submit(REQUEST) for _ in range(2)]
        with pytest.raises(kie.BudgetError) as caught:
            await service.session.submit(REQUEST)
        assert (caught.value.charged, caught.value.retryable, caught.value.task_id) == ("no", True, None)
        message = "max_credits is 30, and 24 are spent or reserved: nothing was sent; raise Settings.max_credits"
        assert message in str(caught.value)
        for task in tasks:
            await task
        with pytest.raises(kie.BudgetError) as caught:
            await service.session.submit(REQUEST)
        assert not caught.value.retryable
        assert len(service.emulator.ledger) == 2


async def test_what_is_submitted_at_the_same_time_cannot_pass_the_cap_together() -> None:
    async with capped(60) as service:
        outcomes = [outcome async for outcome in service.session.submit_all([REQUEST] * 40)]
        refused = [outcome.error for outcome in outcomes if isinstance(outcome.error, kie.BudgetError)]
        assert (len(outcomes), len(refused), len(service.emulator.ledger)) == (40, 35, 5)


async def test_nothing_may_be_spent() -> None:
    async with capped(0) as service:
        with pytest.raises(kie.BudgetError):
            await service.session.submit(REQUEST)
        assert not service.emulator.ledger


async def test_a_song_is_not_uploaded_for_nothing(tmp_path: Path, free_port: int) -> None:
    async with capped(11, upload_base_url=f"http://127.0.0.1:{free_port}") as service:  # nobody would take it
        with pytest.raises(kie.BudgetError):
            await service.session.upload_extend(short_song(tmp_path / "song.wav"), continue_at=1.0)


async def test_what_is_refused_is_given_back() -> None:
    async with capped(12, Fault("code", code=422, nth=1)) as service:
        with pytest.raises(kie.InvalidRequestError):
            await service.session.submit(REQUEST)
        await service.session.submit(REQUEST)


async def test_what_fails_before_it_is_sent_is_given_back(tmp_path: Path) -> None:
    async with capped(12) as service:
        with pytest.raises(kie.FileError):
            await service.session.upload_extend(tmp_path / "none.wav", continue_at=1.0, source_duration=2.0)
        await service.session.submit(REQUEST)


@pytest.mark.parametrize("waited", [None, 20.0])
async def test_what_is_refunded_is_given_back(waited: float | None) -> None:
    """Also if nobody waited for it meanwhile, so that it was not polled for a while."""
    async with capped(12, Fault("failed", code=531, message="refunded", nth=1)) as service:
        task = await service.session.submit(REQUEST)
        if waited is not None:
            with pytest.raises(kie.WaitTimeoutError):
                await task.result(timeout=waited)
            with pytest.raises(kie.BudgetError):
                await service.session.submit(REQUEST)
        with pytest.raises(kie.TaskFailedError):
            await task
        await service.session.submit(REQUEST)


async def test_what_failed_and_was_paid_counts() -> None:
    async with capped(12, Fault("failed", nth=1)) as service:
        with pytest.raises(kie.TaskFailedError):
            await (await service.session.submit(REQUEST))
        with pytest.raises(kie.BudgetError):
            await service.session.submit(REQUEST)


async def test_what_is_unknown_counts() -> None:
    async with capped(12, Fault("lost", nth=1)) as service:
        with pytest.raises(kie.SubmitUnknownError):
            await service.session.submit(REQUEST)
        with pytest.raises(kie.BudgetError):
            await service.session.submit(REQUEST)
        assert len(service.emulator.ledger) == 1


async def test_what_goes_on_beyond_its_time_counts() -> None:
    async with capped(12, Fault("stuck"), task_timeout=60.0) as service:
        with pytest.raises(kie.WaitTimeoutError):
            await (await service.session.submit(REQUEST))
        with pytest.raises(kie.BudgetError):
            await service.session.submit(REQUEST)


async def test_the_caller_may_go_away_during_the_post() -> None:
    async with capped(12, Fault("slow", seconds=5, nth=1)) as service:
        submission = asyncio.ensure_future(service.session.submit(REQUEST))
        await anyio.sleep(2)
        submission.cancel()
        await anyio.sleep(10)
        with pytest.raises(kie.BudgetError):
            await service.session.submit(REQUEST)
        assert len(service.emulator.ledger) == 1


def test_a_command_keeps_the_cap_of_the_environment(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setenv("KIE_MAX_CREDITS", "11")
    with served(monkeypatch) as service:
        answer = Terminal(capsys)("extend", "a1", "--model", "V5")
        assert answer.code == 4
        assert "raise Settings.max_credits (KIE_MAX_CREDITS)" in answer.err
        assert answer.err.splitlines()[-1] == "raise KIE_MAX_CREDITS, then run it again"
        rows = tmp_path / "jobs.csv"
        rows.write_text("id,audio_id,model\none,a1,V5\n")
        answer = Terminal(capsys)("batch", str(rows), "--yes", "--out", str(tmp_path / "out"))
        assert answer.code == 4
        assert answer.err.splitlines()[-2] == "raise KIE_MAX_CREDITS, then go on with the same command:"
        assert not service.ledger
    song = short_song(tmp_path / "song.wav")
    tried = Terminal(capsys)("upload-extend", str(song), "--at", "1", "--emulate", virtual=True)
    assert tried.code == 0  # nothing is paid


# ---------------------------------------------------------------- with a journal


def own_journal(folder: Path, name: str = "own") -> kie.SQLiteJournal:
    return kie.SQLiteJournal(folder / f"{name}.sqlite", poll=5.0)


async def test_with_a_journal_what_is_on_record_counts(tmp_path: Path) -> None:
    async with serving(credits=1e6) as service:
        capped = attrs.evolve(service.session.settings, max_credits=30)
        for expected in (2, 0):
            async with kie.KieSession(capped, journal=own_journal(tmp_path)) as session:
                outcomes = [outcome async for outcome in session.submit_all([REQUEST] * 10)]
                assert sum(outcome.error is None for outcome in outcomes) == expected
                assert {type(each.error) for each in outcomes if each.error} == {kie.BudgetError}
        async with own_journal(tmp_path) as journal:
            counts = await journal.counts()
            assert counts[State.SUCCEEDED] == 2  # and what was refused at once is not on record
            assert counts[State.PLANNED] == 0
        since = datetime.now(UTC) + timedelta(days=1)
        for free in ({"account": "another"}, {"max_credits_since": since}):
            async with kie.KieSession(attrs.evolve(capped, **free), journal=own_journal(tmp_path)) as session:
                await session.submit(REQUEST)
        assert len(service.emulator.ledger) == 4


async def test_what_is_refused_after_a_wait_and_has_no_key_says_why(tmp_path: Path) -> None:
    async with capped(24, Fault("code", code=422, nth=1), max_in_flight=1) as service:
        async with kie.KieSession(service.session.settings, journal=own_journal(tmp_path)) as session:
            with pytest.raises(kie.InvalidRequestError):
                await session.submit(REQUEST)
            submitting = [session.submit(REQUEST) for _ in range(3)]  # the last two wait for the end of the first
            outcomes = await asyncio.gather(*submitting, return_exceptions=True)
        assert len(service.emulator.ledger) == 2
        assert [type(each) for each in outcomes if isinstance(each, Exception)] == [kie.BudgetError]
    async with own_journal(tmp_path) as journal:
        rejected = [job async for job in journal.jobs(State.REJECTED)]
        assert [job.error and job.error.type for job in rejected] == ["InvalidRequestError", "BudgetError"]
        assert await journal.spent("") == 24


async def test_what_is_refused_after_a_wait_and_has_a_key_says_why_until_it_is_sent(tmp_path: Path) -> None:
    async with capped(12, max_in_flight=1) as service:
        settings = service.session.settings
        async with kie.KieSession(settings, journal=own_journal(tmp_path)) as session:
            submitting = [session.submit(REQUEST, key=key) for key in ("first", "second")]
            outcomes = await asyncio.gather(*submitting, return_exceptions=True)
            assert [type(each) for each in outcomes if isinstance(each, Exception)] == [kie.BudgetError]
            assert session.journal is not None
            [refused] = [job async for job in session.journal.jobs(State.PLANNED)]
            assert refused.error is not None
            assert (refused.error.type, refused.error.charged) == ("BudgetError", "no")
        async with kie.KieSession(attrs.evolve(settings, max_credits=24), journal=own_journal(tmp_path)) as session:
            await (await session.submit(REQUEST, key=refused.key))
    async with own_journal(tmp_path) as journal:
        made = await journal.get(refused.key)
        assert made is not None
        assert (made.state, made.error) == (State.SUCCEEDED, None)


async def test_what_is_cancelled_before_it_is_sent_and_has_no_key_is_not_left_waiting(tmp_path: Path) -> None:
    async with capped(24, max_in_flight=1) as service:
        settings = service.session.settings
        async with (
            kie.KieSession(settings, journal=own_journal(tmp_path)) as session,
            anyio.create_task_group() as group,
        ):
            await session.submit(REQUEST)  # it holds the only place
            assert session.journal is not None
            group.start_soon(session.submit, REQUEST)
            while not (await session.journal.counts())[State.PLANNED]:
                await anyio.lowlevel.checkpoint()
            group.cancel_scope.cancel()
    async with own_journal(tmp_path) as journal:
        [job] = [job async for job in journal.jobs(State.REJECTED)]
        assert job.error is not None
        assert (job.error.message, job.error.charged) == ("it was cancelled before it was sent", "no")


async def test_a_job_that_was_refused_is_made_when_there_is_room(tmp_path: Path) -> None:
    async with serving(credits=1e6) as service:
        settings = attrs.evolve(service.session.settings, max_credits=12)
        async with kie.KieSession(settings, journal=own_journal(tmp_path)) as session:
            task = await session.submit(REQUEST, key="one")
            with pytest.raises(kie.BudgetError):
                await session.submit(REQUEST, key="two")
            assert (await session.submit(REQUEST, key="one")).id == task.id  # paid already
        async with kie.KieSession(attrs.evolve(settings, max_credits=24), journal=own_journal(tmp_path)) as session:
            await session.submit(REQUEST, key="two")


async def test_a_batch_stops_at_the_cap_of_its_session(tmp_path: Path) -> None:
    async with serving(credits=1e6, goes_on=(1.0, 2.0), settings={"max_credits": 24}) as service:
        jobs = [Job(key=f"job{number}", request=REQUEST) for number in range(5)]
        with pytest.raises(kie.BudgetError, match="KIE_MAX_CREDITS"):
            async for _ in kie.run_batch(service.session, jobs, directory=tmp_path, journal=own_journal(tmp_path)):
                pass
        assert len(service.emulator.ledger) == 2


PROGRAM = """
import asyncio, sys
import kie_async as kie

async def main():
    async with kie.KieSession(kie.Settings(max_credits=60, observer=lambda _: None), journal=sys.argv[1]) as session:
        requests = [kie.ExtendRequest("a1", model="V5")] * 20
        errors = [outcome.error async for outcome in session.submit_all(requests)]
    print(*sorted({type(error).__name__ for error in errors}), sum(error is None for error in errors))

asyncio.run(main())
"""


@pytest.mark.parametrize("store", ["sqlite", "postgresql"])
def test_two_processes_cannot_pass_the_cap_together(
    store: str, tmp_path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = str(tmp_path / "own.sqlite") if store == "sqlite" else request.getfixturevalue("database_url")
    with served(monkeypatch) as service, ExitStack() as stack:
        command = [sys.executable, "-c", PROGRAM, journal]
        pipe = subprocess.PIPE
        both = [stack.enter_context(subprocess.Popen(command, stdout=pipe, text=True)) for _ in range(2)]  # noqa: S603  # ours
        answers = [process.communicate(timeout=PATIENCE)[0].split() for process in both]
        assert sum(int(made) for *_, made in answers) == len(service.ledger) == 5
        assert {name for names in answers for name in names[:-1]} == {"BudgetError", "NoneType"}
