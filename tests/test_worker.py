"""Workers on one shared database: what one leaves, another takes up, and nothing is paid twice."""

from __future__ import annotations

import asyncio
import sys
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import attrs
import pytest
from postgres import Server, execute

import kie_async as kie
from kie_async import events
from kie_async.batch import _worker
from kie_async.batch._batch import enqueue
from kie_async.batch._budget import CreditBudget
from kie_async.batch._results import Results
from kie_async.batch._runner import Runner
from kie_async.batch._sharing import share_batch
from kie_async.batch._worker import Worker
from kie_async.emulator import Fault, Rules
from kie_async.errors import AuthError, SettingsError, StorageError
from kie_async.journal import Job, State, open_journal
from kie_async.testing import EmulatorHandle, serve_in_thread

pytestmark = pytest.mark.anyio

FIELDS: dict[str, Any] = {"model": "V5", "style": "s", "prompt": "p", "continue_at": 1.0}
BATCH = "b"


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"  # an engine and a database of their own take real time


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, seconds in {"TEND": 0.1, "LOOK": 0.1, "BEAT": 0.1}.items():
        monkeypatch.setattr(_worker, f"_{name}_EVERY", seconds)
    monkeypatch.setattr(_worker, "_RESTART_AFTER", 0.1)


@pytest.fixture
def emulator() -> Iterator[EmulatorHandle]:
    with serve_in_thread(speed=400.0, credits=1e6, goes_on=(0.2, 0.4), rules=Rules(quota=1000)) as handle:
        yield handle


@attrs.define
class Desk:
    """One worker with a session of its own, and what it told."""

    worker: Worker
    runner: Runner
    emitted: list[events.Event]
    taken: list[Job]

    def notes(self) -> str:
        return "\n".join(event.note for event in self.emitted if isinstance(event, events.Notice))


@attrs.define
class Shop:
    """A shared database with a batch, where desks are set up."""

    emulator: EmulatorHandle
    dsn: str
    folder: Path

    @asynccontextmanager
    async def desk(self, **options: Any) -> AsyncGenerator[Desk]:
        emitted: list[events.Event] = []
        taken: list[Job] = []
        settings = kie.Settings(
            api_key=self.emulator.key, base_url=self.emulator.base_url, observer=emitted.append, quota=1000
        )
        async with kie.KieSession(settings) as session, session.open_journal(open_journal(self.dsn)) as recorder:
            runner = Runner(
                session, recorder, Results(self.folder), CreditBudget(), options.pop("observer", lambda _job: None)
            )
            fields = {"dsn": self.dsn, "at_once": 5, "emit": emitted.append, "ended": taken.append, **options}
            yield Desk(Worker(runner=runner, recorder=recorder, **fields), runner, emitted, taken)

    async def plan(self, count: int) -> None:
        async with open_journal(self.dsn) as journal:
            await enqueue(journal, jobs_of(count), BATCH)

    async def states(self) -> Counter[State]:
        async with open_journal(self.dsn) as journal:
            return Counter(job.state for _, job in await journal.page())

    async def reaches(self, state: State, count: int) -> None:
        """Wait until so many jobs stand in a state."""
        with anyio.fail_after(20):
            while (await self.states())[state] < count:
                await anyio.sleep(0.02)

    async def check(self, count: int) -> None:
        """Hold that every job was delivered and charged once."""
        assert await self.states() == {State.DELIVERED: count}
        charges = Counter(charge.body["title"] for charge in self.emulator.ledger)
        assert charges == {f"job{number}": 1 for number in range(count)}
        lines = (self.folder / "results.jsonl").read_text().splitlines()
        assert len(lines) == count

    def held(self) -> list[tuple[Any, ...]]:
        return execute(self.dsn, "SELECT lock, status::text, scheduled_at FROM procrastinate_jobs ORDER BY id")


def jobs_of(count: int) -> list[Job]:
    return [
        Job(key=f"job{number}", request=kie.ExtendRequest("a1", title=f"job{number}", **FIELDS))
        for number in range(count)
    ]


@pytest.fixture
def shop(emulator: EmulatorHandle, database_url: str, tmp_path: Path) -> Shop:
    return Shop(emulator, database_url, tmp_path / "out")


async def test_two_workers_share_the_jobs(shop: Shop) -> None:
    await shop.plan(12)
    async with shop.desk() as one, shop.desk() as other, anyio.create_task_group() as group:
        for desk in (one, other):
            group.start_soon(lambda desk=desk: desk.worker.work(until_done=True))  # type: ignore[misc]  # a bound name
    assert one.taken
    assert other.taken
    assert len(one.taken) + len(other.taken) >= 12
    await shop.check(12)
    assert shop.held() == []


async def test_many_workers_make_the_engines_tables_at_once(shop: Shop) -> None:
    async with shop.desk() as one, shop.desk() as other, shop.desk() as third, anyio.create_task_group() as group:
        for desk in (one, other, third):
            group.start_soon(lambda desk=desk: desk.worker.work(until_done=True))  # type: ignore[misc]  # a bound name
    assert execute(shop.dsn, "SELECT count(*) FROM procrastinate_workers") == [(0,)]


async def test_what_one_leaves_another_finishes(shop: Shop) -> None:
    await shop.plan(5)
    async with shop.desk(at_once=2) as one, anyio.create_task_group() as group:
        group.start_soon(one.worker.work)
        await shop.reaches(State.SUBMITTED, 1)
        group.cancel_scope.cancel()
    assert shop.held() == [] or {status for _, status, _ in shop.held()} == {"todo"}
    assert execute(shop.dsn, "SELECT count(*) FROM procrastinate_workers") == [(0,)]
    assert (await shop.states())[State.DELIVERED] < 5
    async with shop.desk() as other:
        await other.worker.work(until_done=True, batch=BATCH)
    await shop.check(5)


async def test_a_cancelled_worker_leaves_nothing_behind(shop: Shop) -> None:
    await shop.plan(8)
    async with shop.desk() as one:
        await anyio.sleep(0.1)
        before = asyncio.all_tasks()
        for _ in range(3):
            with anyio.move_on_after(0.3):
                await one.worker.work()
        with anyio.fail_after(30):
            while asyncio.all_tasks() - before:  # the session's looks at what was submitted come to an end
                await anyio.sleep(0.02)
        own = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND query ~ 'procrastinate'"
        with anyio.fail_after(5):
            while execute(shop.dsn, own)[0][0] > 1:  # this one
                await anyio.sleep(0.02)


async def test_a_worker_returns_with_its_database(
    emulator: EmulatorHandle, server: Server, frail_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_worker, "_PATIENCE", 0.3)
    shop = Shop(emulator, frail_url, tmp_path / "out")
    await shop.plan(6)
    async with shop.desk(at_once=2) as one, anyio.create_task_group() as group:
        group.start_soon(lambda: one.worker.work(until_done=True))
        await shop.reaches(State.DELIVERED, 1)
        await anyio.to_thread.run_sync(server.stop)
        await anyio.sleep(1)
        await anyio.to_thread.run_sync(server.start)
    assert "the engine: " in one.notes()
    await shop.check(6)


async def test_a_key_handed_out_twice_is_paid_once(shop: Shop) -> None:
    await shop.plan(2)
    async with shop.desk() as one, anyio.create_task_group() as group:
        group.start_soon(one.worker.work)
        with anyio.fail_after(10):
            while not shop.emulator.ledger:
                await anyio.sleep(0.01)
        for number in range(10):  # what two workers that both think they feed would do, and worse
            await one.worker._task.configure(lock=f"other{number}").defer_async(key="job0")
        await shop.reaches(State.DELIVERED, 2)
        group.cancel_scope.cancel()
    await shop.check(2)


async def test_the_keys_of_a_dead_worker_are_taken_up(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    await shop.plan(1)
    async with shop.desk() as dead, dead.worker._open():
        [worker_id] = execute(shop.dsn, "INSERT INTO procrastinate_workers DEFAULT VALUES RETURNING id")[0]
        await dead.worker._hand_out("job0")
        assert not await dead.worker._hand_out("job0")
        await dead.worker._held.fetch_job([_worker.QUEUE], worker_id)
    monkeypatch.setattr(_worker, "_DEAD_AFTER", 0.5)
    async with shop.desk() as one:
        await one.worker.work(until_done=True)
    await shop.check(1)


async def test_a_window_of_keys_is_handed_out_paid_work_first(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_worker, "WINDOW", 2)
    await shop.plan(5)
    async with open_journal(shop.dsn) as journal:
        await journal.intend("job3", "t")
        await journal.move("job3", State.SUBMITTED, token="t", task_id="task3", route="classic")
    async with shop.desk() as one, one.worker._open():
        await one.worker._tend()
        assert [key for key, _, _ in shop.held()] == ["job3", "job0"]
        await one.worker._tend()
        assert len(shop.held()) == 2


async def test_one_worker_at_a_time_hands_out(shop: Shop) -> None:
    await shop.plan(1)
    async with (
        shop.desk() as one,
        shop.desk() as other,
        other.worker._open(),
        one.worker._recorder.holding(_worker._LEASE),
    ):
        await other.worker._tend()
        assert shop.held() == []


async def test_a_paid_job_that_cannot_be_finished_is_put_off(shop: Shop) -> None:
    await shop.plan(2)
    fault = Fault("code", on="download_url", code=422)
    shop.emulator.add_faults(Fault("expired"), fault)
    async with shop.desk() as one:
        await one.worker.work(until_done=True)
    assert await shop.states() == {State.SUCCEEDED: 2}
    assert all(scheduled_at is not None for _, _, scheduled_at in shop.held())
    shop.emulator.remove_faults(Fault("expired"), fault)
    async with shop.desk() as one:
        await one.worker.work(until_done=True)
    await shop.check(2)


async def test_a_job_that_moves_while_all_are_looked_at_is_not_missed(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    await shop.plan(1)
    async with shop.desk() as one:
        recorder = one.worker._recorder
        read = recorder.jobs

        async def read_and_move(*states: State, batch: str | None) -> AsyncGenerator[Job]:
            async for job in read(*states, batch=batch):
                yield job
            if await shop.states() == {State.PLANNED: 1}:
                await recorder.journal.intend("job0", "token")
                await recorder.journal.move("job0", State.SUBMITTED, token="token", task_id="task")

        monkeypatch.setattr(recorder, "jobs", read_and_move)
        async with one.worker._open():
            await one.worker._look(BATCH)
        assert not one.worker._over.is_set()


async def test_what_stops_the_runner_is_raised(shop: Shop) -> None:
    await shop.plan(3)
    shop.emulator.add_faults(Fault("code", code=401))
    async with shop.desk() as one:
        with pytest.raises(AuthError):
            await one.worker.work()
    assert await shop.states() == {State.PLANNED: 3}
    assert shop.emulator.ledger == []


async def test_an_observer_that_breaks_stops_no_worker(shop: Shop) -> None:
    def broken(_job: Job) -> None:
        raise ZeroDivisionError

    await shop.plan(2)
    async with shop.desk(observer=broken) as one:
        await one.worker.work(until_done=True)
    assert await shop.states() == {State.DELIVERED: 2}


async def test_a_key_that_the_journal_does_not_know_is_dropped(shop: Shop) -> None:
    async with shop.desk() as one, anyio.create_task_group() as group:
        group.start_soon(one.worker.work)
        await becomes(lambda: one.worker._engine is not None)
        await one.worker._hand_out("nobody")
        await becomes(lambda: "no job 'nobody'" in one.notes())
        await becomes(lambda: shop.held() == [])
        group.cancel_scope.cancel()


async def test_an_engine_that_cannot_take_back_a_key_starts_anew(shop: Shop) -> None:
    def lose(_job: Job) -> None:
        execute(shop.dsn, "DELETE FROM procrastinate_jobs")

    await shop.plan(1)
    async with shop.desk(ended=lose) as one, anyio.create_task_group() as group:
        group.start_soon(one.worker.work)
        await becomes(lambda: "is started again" in one.notes())
        assert "was not found" in one.notes()
        group.cancel_scope.cancel()
    await shop.check(1)


async def test_an_engine_that_was_taken_for_dead_starts_anew(shop: Shop) -> None:
    async with shop.desk() as one, anyio.create_task_group() as group:
        group.start_soon(one.worker.work)
        await becomes(lambda: one.worker._engine is not None and one.worker._engine.worker_id is not None)
        execute(shop.dsn, "DELETE FROM procrastinate_workers")
        await shop.plan(1)
        await shop.reaches(State.DELIVERED, 1)
        assert "ForeignKeyViolation" in one.notes()
        group.cancel_scope.cancel()
    await shop.check(1)


async def test_without_its_database_it_says_so(
    emulator: EmulatorHandle, server: Server, frail_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_worker, "_PATIENCE", 0.3)
    async with Shop(emulator, frail_url, tmp_path).desk() as one:
        await anyio.to_thread.run_sync(server.stop)
        with pytest.raises(StorageError, match="engine"):
            await one.worker.work()
        await anyio.to_thread.run_sync(server.start)


async def test_a_submission_whose_owner_died_is_told_as_unknown(shop: Shop) -> None:
    await shop.plan(2)
    async with open_journal(shop.dsn) as journal:
        await journal.intend("job1", "token")
    settings = kie.Settings(api_key=shop.emulator.key, base_url=shop.emulator.base_url, observer=lambda _event: None)
    seen: list[tuple[str, State]] = []
    async with kie.KieSession(settings) as session:
        await share_batch(
            session,
            jobs_of(2),
            journal=open_journal(shop.dsn),
            dsn=shop.dsn,
            directory=shop.folder,
            observer=lambda job: seen.append((job.key, job.state)),
            batch=BATCH,
        )
    assert seen[0] == ("job1", State.UNKNOWN)
    assert seen[-1] == ("job0", State.DELIVERED)
    assert len((shop.folder / "results.jsonl").read_text().splitlines()) == 2


async def test_without_the_extra_it_says_which(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "procrastinate", None)
    with pytest.raises(SettingsError, match="cluster"):
        async with shop.desk():
            raise AssertionError


async def becomes(condition: Callable[[], bool]) -> None:
    with anyio.fail_after(20):
        while not condition():
            await anyio.sleep(0.02)


async def test_tables_that_are_no_engines_are_left_alone(shop: Shop) -> None:
    async with shop.desk() as one:
        execute(shop.dsn, "CREATE TABLE procrastinate_workers (id int)")
        with pytest.raises(StorageError, match="DuplicateTable"):
            await one.worker.work()
