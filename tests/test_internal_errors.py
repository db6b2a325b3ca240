"""A fault of the library, or of one that it uses: it ends what it struck, and nothing else."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
import orjson
import pytest
from service import REQUEST, serving

import kie_async as kie
from kie_async.emulator import Rules
from kie_async.events import Notice, PollFailed
from kie_async.journal import SQLiteJournal, State
from kie_async.limiter import Permit

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("clock")]

RICH: dict[str, Any] = {"credits": 1e6, "goes_on": (1.0, 2.0), "rules": Rules(quota=1000)}


def jobs_of(count: int) -> list[kie.Job]:
    fields: dict[str, Any] = {"model": "V5", "style": "s", "prompt": "p", "continue_at": 5.0}
    return [
        kie.Job(key=f"job{number}", request=kie.ExtendRequest("a1", title=f"job{number}", **fields))
        for number in range(count)
    ]


async def run_batch(
    session: kie.KieSession, folder: Path, *, journal: kie.Journal | None = None, **options: Any
) -> dict[str, kie.Job]:
    """Run a batch of three jobs to its end, and give the jobs as they came."""
    journal = journal or SQLiteJournal(folder / "journal.sqlite", poll=5.0)  # virtual time is not spent on looking
    ran = kie.run_batch(session, jobs_of(3), journal=journal, directory=folder / "out", **options)
    return {job.key: job async for job in ran}


def fails_once(function: Callable[..., Any], *, nth: int, error: Exception) -> Callable[..., Any]:
    """A function that fails at its nth call."""
    count = 0

    def called(*arguments: Any, **options: Any) -> Any:
        nonlocal count
        count += 1
        if count == nth:
            raise error
        return function(*arguments, **options)

    return called


@attrs.define(eq=False)
class BrokenPermit:
    """A permit that fails when the answer of its submission is here."""

    is_valid: bool = True

    def release(self) -> None:
        raise ZeroDivisionError("the permit")

    def give_back(self) -> None:
        """Keep nothing."""


@attrs.define(eq=False)
class BrokenLimiter:
    """A limiter that fails at its second submission: when it is asked, or when it is told of the answer."""

    later: bool
    error: type[Exception] = ZeroDivisionError
    _count: int = 0
    _sound: kie.SlidingLimiter = attrs.field(factory=lambda: kie.SlidingLimiter(1000))

    async def acquire(self, *, is_retry: bool = False) -> Permit:
        self._count += 1
        if self._count == 2:
            if self.later:
                return BrokenPermit()
            raise self.error("the limiter")
        return await self._sound.acquire(is_retry=is_retry)

    def penalize(self, seconds: float) -> None:
        self._sound.penalize(seconds)


@pytest.mark.parametrize("error", [ZeroDivisionError, TimeoutError])
async def test_submit_all_gives_an_outcome_for_what_broke_and_goes_on(error: type[Exception]) -> None:
    async with serving(limiter=BrokenLimiter(later=False, error=error), **RICH) as service:
        outcomes = [outcome async for outcome in service.session.submit_all([REQUEST] * 3)]
        (broken,) = [outcome.error for outcome in outcomes if outcome.error]
        assert len(service.emulator.ledger) == 2
    assert isinstance(broken, kie.InternalError)
    assert isinstance(broken.__cause__, error)
    assert f"{error.__name__} in test_internal_errors.py:" in str(broken)
    assert (broken.charged, broken.retryable) == ("maybe", False)


async def test_a_fault_after_the_post_leaves_it_unknown_and_the_session_at_work() -> None:
    async with serving(limiter=BrokenLimiter(later=True), **RICH) as service:
        outcomes = [outcome async for outcome in service.session.submit_all([REQUEST] * 3)]
        assert len(service.emulator.ledger) == 3
    (broken,) = [outcome.error for outcome in outcomes if outcome.error]
    assert isinstance(broken, kie.SubmitUnknownError)
    assert broken.charged == "maybe"
    assert "ZeroDivisionError" in broken.message


async def test_an_answer_that_breaks_what_reads_it_leaves_a_submission_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(orjson, "loads", fails_once(orjson.loads, nth=1, error=TypeError("odd")))
    async with serving(**RICH) as service:
        with pytest.raises(kie.SubmitUnknownError, match=r"TypeError in .*odd; it may be running and charged"):
            await service.session.submit(REQUEST)
        assert (await (await service.session.submit(REQUEST))).tracks
        assert len(service.emulator.ledger) == 2


async def test_a_poll_that_breaks_is_told_and_polled_again(monkeypatch: pytest.MonkeyPatch) -> None:
    async with serving(**RICH) as service:
        tasks = [await service.session.submit(REQUEST) for _ in range(2)]
        monkeypatch.setattr(orjson, "loads", fails_once(orjson.loads, nth=1, error=TypeError("odd")))
        assert [len((await task).tracks) for task in tasks] == [2, 2]
        (emitted,) = service.of(PollFailed)
    assert "TypeError" in emitted.reason


async def test_a_job_that_breaks_is_given_with_its_error_and_the_others_go_on(tmp_path: Path) -> None:
    async with serving(limiter=BrokenLimiter(later=False), **RICH) as service:
        seen: list[kie.Job] = []
        found = await run_batch(service.session, tmp_path, observer=seen.append)
        states = sorted(job.state for job in found.values())
        assert states == [State.DELIVERED, State.DELIVERED, State.PLANNED]
        (broken,) = [job for job in found.values() if job.state is State.PLANNED]
        assert broken.error is not None
        assert broken.error.type == "InternalError"
        assert "ZeroDivisionError in test_internal_errors.py:" in broken.error.message
        assert broken in seen
        assert len(service.emulator.ledger) == 2
        again = await run_batch(service.session, tmp_path)
        assert [job.state for job in again.values()] == [State.DELIVERED]
        assert len(service.emulator.ledger) == 3


async def test_an_observer_that_breaks_stops_no_job(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.ERROR, "kie_async")
    async with serving(**RICH) as service:
        found = await run_batch(service.session, tmp_path, observer=lambda job: {}[job.key])
    assert {job.state for job in found.values()} == {State.DELIVERED}
    assert "the observer failed on Job" in caplog.text


class BrokenJournal(SQLiteJournal):
    """A journal that cannot take the end of one job, once."""

    broken = 1

    async def move(self, key: str, to: State, **facts: Any) -> kie.Job:
        if key == "job1" and to is State.SUCCEEDED and self.broken:
            self.broken -= 1
            raise ZeroDivisionError("the journal")
        return await super().move(key, to, **facts)


async def test_an_end_that_breaks_the_journal_is_told_and_recorded_at_last(tmp_path: Path) -> None:
    async with serving(**RICH) as service:
        journal = BrokenJournal(tmp_path / "journal.sqlite", poll=5.0)
        found = await run_batch(service.session, tmp_path, journal=journal)
        notes = [event.note for event in service.of(Notice)]
        assert {job.state for key, job in found.items() if key != "job1"} == {State.DELIVERED}
        assert any("could not be recorded" in note and "ZeroDivisionError" in note for note in notes)
        await run_batch(service.session, tmp_path)
        async with SQLiteJournal(tmp_path / "journal.sqlite") as after:
            assert {job.state for _, job in await after.page(limit=10)} == {State.DELIVERED}
        assert len(service.emulator.ledger) == 3
