"""A batch from its jobs to files on disk, stopped and resumed, against the emulator."""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import anyio
import attrs
import pytest
from service import Service, serving

import kie_async as kie
from kie_async import emulator
from kie_async.batch import CreditBudget, Results, Runner, enqueue
from kie_async.emulator import Fault, Rules
from kie_async.errors import BudgetError, ConflictError
from kie_async.events import Notice
from kie_async.journal import Job, SQLiteJournal, State
from kie_async.limiter import SlidingLimiter

pytestmark = pytest.mark.anyio

FIELDS: dict[str, Any] = {"model": "V5", "style": "s", "prompt": "p", "continue_at": 5.0}


def jobs_of(count: int) -> list[Job]:
    return [
        Job(key=f"job{number}", request=kie.ExtendRequest("a1", title=f"job{number}", **FIELDS))
        for number in range(count)
    ]


@attrs.define
class Batch:
    """A batch of a few jobs, on a journal and into a directory."""

    folder: Path
    jobs: list[Job]

    @property
    def journal(self) -> SQLiteJournal:
        return SQLiteJournal(self.folder / "journal.sqlite", poll=5.0)  # virtual time is not spent on looking

    async def run(self, service: Service, **options: Any) -> dict[str, Job]:
        """Run it to its end, and give the jobs as they came."""
        found = {}
        async for job in kie.run_batch(
            service.session, self.jobs, journal=self.journal, directory=self.folder / "out", **options
        ):
            found[job.key] = job
        return found

    async def states(self) -> dict[str, State]:
        """Where the jobs stand."""
        async with self.journal as journal:
            return {job.key: job.state for _, job in await journal.page(limit=1000)}


@pytest.fixture
def batch(tmp_path: Path) -> Batch:
    return Batch(tmp_path, jobs_of(5))


@pytest.fixture
async def service() -> AsyncIterator[Service]:
    async with serving(credits=1e6, goes_on=(1.0, 2.0), rules=Rules(quota=1000), settings={"quota": 1000}) as found:
        yield found


async def test_every_job_is_delivered_once(service: Service, batch: Batch) -> None:
    seen: list[tuple[str, State]] = []
    found = await batch.run(service, observer=lambda job: seen.append((job.key, job.state)))
    assert {job.state for job in found.values()} == {State.DELIVERED}
    assert len(service.emulator.ledger) == 5
    assert [state for key, state in seen if key == "job0"] == ["submitted", "succeeded", "delivered"]
    out = batch.folder / "out"
    for job in found.values():
        assert len(job.files) == 2
        assert all((out / name).stat().st_size for name in job.files)
    sidecars = [json.loads(path.read_text()) for path in out.glob("**/*.kie.json")]
    assert len(sidecars) == 10
    lines = [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]
    assert sorted(line["key"] for line in lines) == sorted(found)


async def test_the_same_again_pays_nothing(service: Service, batch: Batch) -> None:
    await batch.run(service)
    assert await batch.run(service) == {}
    batch.jobs.extend(jobs_of(6))
    assert set(await batch.run(service)) == {"job5"}
    assert len(service.emulator.ledger) == 6


async def test_a_task_of_a_plain_session_is_delivered_and_not_paid_again(service: Service, batch: Batch) -> None:
    async with kie.KieSession(service.session.settings, journal=batch.journal) as session:
        task = await session.submit(batch.jobs[0].request, key="job0")
        await task
    found = await batch.run(service)
    assert {job.state for job in found.values()} == {State.DELIVERED}
    assert found["job0"].task_id == task.id
    assert len(service.emulator.ledger) == 5


async def test_a_batch_needs_a_name(batch: Batch) -> None:
    async with batch.journal as journal:
        with pytest.raises(kie.SettingsError, match="batch is empty: give the batch a name"):
            await enqueue(journal, batch.jobs, "")
    assert not await batch.states()


async def test_a_batch_broken_off_goes_on(service: Service, batch: Batch) -> None:
    outcomes = kie.run_batch(service.session, batch.jobs, journal=batch.journal, directory=batch.folder / "out")
    async for _ in outcomes:
        break
    await outcomes.aclose()
    rest = await batch.run(service)
    assert len(rest) < 5
    assert set((await batch.states()).values()) == {State.DELIVERED}
    assert len(service.emulator.ledger) == 5


async def test_after_a_batch_was_broken_off_the_next_run_of_the_session_records_the_ends(batch: Batch) -> None:
    async with serving(credits=1e6, faults=[Fault("failed", nth=2)]) as service:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(20):  # all are submitted, none has ended
                await batch.run(service)
        await batch.run(service)
        assert sorted((await batch.states()).values()) == 4 * [State.DELIVERED] + [State.FAILED]
        assert len(service.emulator.ledger) == 5


async def test_a_lost_task_that_its_callback_names_after_the_batch_was_broken_off_is_emitted(batch: Batch) -> None:
    del batch.jobs[1:]
    faults = [Fault("lost"), Fault("lost", on="callback")]
    async with serving(callbacks=True, faults=faults, settings={"recovery_timeout": 600.0}) as service:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(5):
                await batch.run(service)
        (charge,) = service.emulator.ledger
        assert await service.call_back(charge.task_id, "text", token=service.token(charge.task_id)) == ""
        await anyio.sleep(1)
        notes = [event.note for event in service.of(Notice) if event.task_id == charge.task_id]
        assert any(f"session.track('{charge.task_id}') follows it" in note for note in notes)


async def test_failures_and_refusals_are_kept_and_not_paid_again(batch: Batch) -> None:
    faults = [Fault("failed", nth=1), Fault("code", code=422, nth=2), Fault("lost", nth=3)]
    async with serving(credits=1e6, goes_on=(1.0, 2.0), faults=faults) as service:
        found = await batch.run(service)
        states = sorted(job.state for job in found.values())
        assert states == ["delivered", "delivered", "failed", "rejected", "unknown"]
        (unknown,) = [job for job in found.values() if job.state is State.UNKNOWN]
        assert unknown.error is not None
        assert unknown.error.charged == "maybe"
        assert await batch.run(service) == {}
        assert len(service.emulator.ledger) == 4


async def test_ends_that_a_crash_kept_from_the_results_are_written_down(batch: Batch) -> None:
    faults = [Fault("failed", nth=1), Fault("code", code=422, nth=2), Fault("lost", nth=3)]
    lines = batch.folder / "out" / "results.jsonl"
    async with serving(credits=1e6, goes_on=(1.0, 2.0), faults=faults) as service:
        await batch.run(service)
        written = lines.read_text().splitlines(keepends=True)
        lines.write_text("".join(line for line in written if '"delivered"' in line))
        seen: list[str] = []
        found = await batch.run(service, observer=lambda job: seen.append(job.key))
        assert sorted(job.state for job in found.values()) == ["failed", "rejected", "unknown"]
        assert sorted(seen) == sorted(found)
        assert sorted(lines.read_text().splitlines(keepends=True)) == sorted(written)
        old = time.time() + 3600
        os.utime(lines, (old, old))
        lines.write_text("")
        os.utime(lines, (old, old))
        assert await batch.run(service) == {}  # that they are missing is no crash's doing


async def test_a_submission_whose_owner_died_is_given_as_unknown(service: Service, batch: Batch) -> None:
    async with batch.journal as journal:
        await enqueue(journal, batch.jobs, "b")
        await journal.intend("job2", "token")
    found = await batch.run(service, batch="b")
    assert {key for key, job in found.items() if job.state is State.UNKNOWN} == {"job2"}
    assert len(found) == 5
    assert len((batch.folder / "out" / "results.jsonl").read_text().splitlines()) == 5


@pytest.mark.parametrize(("code", "kind"), [(402, kie.InsufficientCreditsError), (401, kie.AuthError)])
async def test_no_credits_and_no_key_stop_the_batch_for_later(
    batch: Batch, code: int, kind: type[kie.KieError]
) -> None:
    settings = {"max_in_flight": 1}
    async with serving(credits=1e6, goes_on=(1.0, 2.0), settings=settings) as service:
        service.emulator.faults.add(Fault("code", code=code))
        with pytest.raises(kind):
            await batch.run(service)
        assert len(service.emulator.arrivals) == 1
        assert set((await batch.states()).values()) == {State.PLANNED}
        service.emulator.faults.clear()
        await batch.run(service)
        assert set((await batch.states()).values()) == {State.DELIVERED}


@pytest.mark.parametrize("code", [402, 401])
async def test_what_waits_for_its_turn_when_a_batch_stops_is_not_sent(batch: Batch, code: int) -> None:
    async with serving(credits=1e6, goes_on=(1.0, 2.0), settings={"quota": 2}) as service:
        service.emulator.faults.add(Fault("code", code=code, nth=1))
        with pytest.raises(kie.KieError) as caught:
            await batch.run(service)
        assert caught.value.code == code
        assert len(service.emulator.ledger) == 1
        assert sorted((await batch.states()).values()) == [State.DELIVERED] + [State.PLANNED] * 4
        await batch.run(service)
        assert set((await batch.states()).values()) == {State.DELIVERED}
        assert len(service.emulator.ledger) == 5


async def test_a_page_of_a_cdn_leaves_a_job_planned_and_it_is_sent_later(batch: Batch) -> None:
    async with serving(credits=1e6, goes_on=(1.0, 2.0)) as service:
        service.emulator.faults.add(Fault("html", status=403, nth=2))
        await batch.run(service)
        assert set((await batch.states()).values()) == {State.DELIVERED}
        assert len(service.emulator.ledger) == 5


async def test_a_cap_is_never_passed(service: Service, batch: Batch) -> None:
    with pytest.raises(BudgetError):
        await batch.run(service, max_credits=40)
    assert len(service.emulator.ledger) == 3
    with pytest.raises(BudgetError):
        await batch.run(service, max_credits=50)
    assert len(service.emulator.ledger) == 4
    await batch.run(service, max_credits=60)
    assert len(service.emulator.ledger) == 5


@pytest.mark.parametrize("is_on_record", [False, True])
async def test_a_cap_ends_the_batch_wherever_it_is(batch: Batch, *, is_on_record: bool) -> None:
    batch.jobs.extend(jobs_of(9)[5:])
    async with batch.journal as journal:
        await journal.caps.set("songs", 40 if is_on_record else 400)
    observed, ends = list[Job](), list[Job]()
    async with serving(credits=1e6, goes_on=(1.0, 2.0), settings={"max_in_flight": 1}) as service:
        outcomes = kie.run_batch(
            service.session,
            batch.jobs,
            journal=batch.journal,
            directory=batch.folder / "out",
            observer=observed.append,
            batch="songs",
            max_credits=None if is_on_record else 40,
        )
        with pytest.raises(BudgetError, match="is 40, and 36 are spent"):
            async for job in outcomes:
                ends.append(job)
        assert len(service.emulator.ledger) == 3
    assert sorted((await batch.states()).values()) == [State.DELIVERED] * 3 + [State.PLANNED] * 6
    assert [job.key for job in observed if job.error] == ["job3"]  # one says it for all
    assert len(ends) < len(batch.jobs)  # and the others are not tried


async def test_too_fast_and_maintenance_slow_the_batch(batch: Batch) -> None:
    faults = [Fault("code", code=455, times=2), Fault("code", code=433, nth=4, times=1)]
    settings = {"submit_retry_timeout": 0, "quota": 1000}
    async with serving(credits=1e6, goes_on=(1.0, 2.0), faults=faults, settings=settings) as service:
        found = await batch.run(service)
        assert {job.state for job in found.values()} == {State.DELIVERED}
        assert len(service.emulator.ledger) == 5


async def test_two_runs_of_one_batch_exclude_each_other(service: Service, batch: Batch) -> None:
    outcomes = kie.run_batch(service.session, batch.jobs, journal=batch.journal, directory=batch.folder / "out")
    await anext(outcomes)
    async with kie.KieSession(service.session.settings) as other:
        with pytest.raises(ConflictError, match="batch"):
            await batch.run(Service(service.emulator, other, []))
    await outcomes.aclose()


async def test_sources_are_uploaded_once_per_content(tmp_path: Path) -> None:
    for name in ("a.wav", "b.wav"):
        (tmp_path / name).write_bytes(emulator.demo_song())
    jobs = [
        Job(key=f"{name}{number}", request=kie.UploadExtendRequest(str(tmp_path / name), model="V5", continue_at=5))
        for name in ("a.wav", "b.wav")
        for number in range(2)
    ]
    async with serving(credits=1e6, goes_on=(1.0, 2.0)) as service:
        found = await Batch(tmp_path, jobs).run(service)
        assert {job.state for job in found.values()} == {State.DELIVERED}
        assert len({charge.body["uploadUrl"] for charge in service.emulator.ledger}) == 1


async def test_a_source_that_is_gone_is_refused_and_the_others_go_on(service: Service, batch: Batch) -> None:
    path = batch.folder / "gone.wav"
    request = kie.UploadExtendRequest(str(path), model="V5", continue_at=5, source_duration=20)
    batch.jobs.append(Job(key="gone", request=request))
    found = await batch.run(service)
    assert found["gone"].state is State.REJECTED
    assert sum(job.state is State.DELIVERED for job in found.values()) == 5


async def test_a_download_that_fails_is_for_another_run(service: Service, batch: Batch) -> None:
    service.emulator.faults.add(Fault("expired"))
    service.emulator.faults.add(Fault("code", on="download_url", code=422))
    found = await batch.run(service)
    assert {job.state for job in found.values()} == {State.SUCCEEDED}
    assert all(job.error and job.error.type == "ResultExpiredError" for job in found.values())
    service.emulator.faults.clear()
    found = await batch.run(service)
    assert {job.state for job in found.values()} == {State.DELIVERED}
    assert len(service.emulator.ledger) == 5


async def test_a_task_that_takes_too_long_is_for_another_run(batch: Batch) -> None:
    settings = {"task_timeout": 60, "quota": 1000}
    async with serving(credits=1e6, goes_on=(1.0, 2.0), faults=[Fault("stuck", nth=1)], settings=settings) as service:
        service.emulator.faults.add(Fault("no_audio", nth=2))
        found = await batch.run(service)
        late = [job for job in found.values() if job.state is State.SUBMITTED]
        assert late
        assert all(job.error and job.error.type == "WaitTimeoutError" for job in late)
        assert len(service.emulator.ledger) == 5


async def test_many_jobs_from_an_asynchronous_source(tmp_path: Path, service: Service) -> None:
    async def source() -> AsyncIterator[Job]:
        for job in jobs_of(501):
            yield job

    service.emulator.faults.add(Fault("code", code=401))
    with pytest.raises(kie.AuthError):
        async for _ in kie.run_batch(
            service.session, source(), journal=Batch(tmp_path, []).journal, directory=tmp_path / "out"
        ):
            pass
    assert len(await Batch(tmp_path, []).states()) == 501


async def test_a_job_that_another_process_has_is_left_to_it(tmp_path: Path, service: Service) -> None:
    batch = Batch(tmp_path, jobs_of(1))
    async with service.session.open_journal(batch.journal) as recorder:
        runner = Runner(service.session, recorder, Results(tmp_path / "out"), CreditBudget(), lambda _job: None)
        with pytest.raises(ConflictError, match="no job"):
            await runner.run_job("job0")
        await enqueue(recorder.journal, batch.jobs, "b")
        first, second = await asyncio.gather(runner.run_job("job0"), runner.run_job("job0"))
        assert {first.state, second.state} >= {State.DELIVERED}
        assert len(service.emulator.ledger) == 1
        again = await runner.run_job("job0")
        assert again.state is State.DELIVERED
        runner.stopped = kie.AuthError("stopped")
        await recorder.journal.add([Job(key="late", batch="b", request=batch.jobs[0].request)])
        assert (await runner.run_job("late")).state is State.PLANNED


async def test_a_job_that_another_process_delivered_meanwhile_is_no_error(tmp_path: Path, service: Service) -> None:
    batch, limiter = Batch(tmp_path, jobs_of(1)), SlidingLimiter(1, 10.0)
    permit = await limiter.acquire()

    async def run(session: kie.KieSession) -> Job:
        async with session.open_journal(batch.journal) as recorder:
            await enqueue(recorder.journal, batch.jobs, "b")
            runner = Runner(session, recorder, Results(tmp_path / "out"), CreditBudget(), seen.append)
            return await runner.run_job("job0")

    seen: list[Job] = []
    async with kie.KieSession(service.session.settings, limiter=limiter) as late:
        waiting = asyncio.create_task(run(late))
        await anyio.sleep(1)  # it waits for the quota
        delivered = await run(service.session)
        permit.give_back()
        assert await waiting == delivered
    assert delivered.state is State.DELIVERED
    assert seen[-1] == delivered
    assert len(service.emulator.ledger) == 1


async def test_a_job_that_another_process_delivers_is_waited_for(tmp_path: Path, service: Service) -> None:
    batch = Batch(tmp_path, jobs_of(1))
    async with (
        kie.KieSession(service.session.settings) as session,
        session.open_journal(batch.journal) as other,
        service.session.open_journal(batch.journal) as recorder,
    ):
        await enqueue(other.journal, batch.jobs, "b")
        await other.journal.intend("job0", "token")
        await other.journal.move("job0", State.SUBMITTED, token="token", task_id="t1")
        await other.journal.move("job0", State.SUCCEEDED, tracks=(kie.Track("a", "https://x.example/a.mp3"),))
        runner = Runner(service.session, recorder, Results(tmp_path / "out"), CreditBudget(), lambda _job: None)
        async with other.leases.holding("deliver:job0"):
            stopped = asyncio.create_task(runner.run_job("job0"))
            await anyio.sleep(3)
            stopped.cancel()
            with pytest.raises(asyncio.CancelledError):
                await stopped
            waiting = asyncio.create_task(runner.run_job("job0"))
            await anyio.sleep(3)
            delivered = await other.journal.move("job0", State.DELIVERED, files=("a.mp3",))
        assert await waiting == delivered
    assert not (tmp_path / "out").exists()


async def test_a_source_that_changed_since_it_was_planned_is_refused(tmp_path: Path, service: Service) -> None:
    path = tmp_path / "song.wav"
    path.write_bytes(emulator.demo_song())
    jobs = [job async for job in kie.read_manifest(tmp_path, defaults={"model": "V5", "continue_at": 5})]
    path.write_bytes(emulator.demo_song() + b"\0\0")
    (job,) = (await Batch(tmp_path, jobs).run(service)).values()
    assert job.state is State.REJECTED
    assert job.error is not None
    assert "changed" in job.error.message


async def test_a_lost_submission_is_recovered_by_its_callback(tmp_path: Path) -> None:
    batch = Batch(tmp_path, jobs_of(3))
    faults = [Fault("lost", nth=2)]
    async with serving(callbacks=True, credits=1e6, goes_on=(1.0, 2.0), faults=faults) as service:
        found = await batch.run(service)
        assert {job.state for job in found.values()} == {State.DELIVERED}
        assert len(service.emulator.ledger) == 3


async def test_a_session_with_a_journal_resumes_its_tasks(tmp_path: Path) -> None:
    def journal() -> SQLiteJournal:
        return SQLiteJournal(tmp_path / "journal.sqlite", poll=5.0)

    async with serving(credits=1e6) as service:
        settings = service.session.settings
        async with kie.KieSession(settings, journal=journal()) as session:
            task = await session.extend("a1", model="V5")
            again = await session.submit(kie.ExtendRequest("a1", model="V5"), key=task.key)
            assert again.id == task.id
        async with kie.KieSession(settings, journal=journal()) as session:
            (found,) = [task async for task in session.resume()]
            assert (found.id, found.key) == (task.id, task.key)
            assert len((await found).tracks) == 2
            await anyio.sleep(1)
        async with journal() as kept:
            job = await kept.get(task.key or "")
            assert job is not None
            assert (job.state, len(job.tracks)) == (State.SUCCEEDED, 2)
        assert len(service.emulator.ledger) == 1
        async with kie.KieSession(settings) as session:
            with pytest.raises(kie.SessionError, match="journal"):
                await anext(session.resume())
