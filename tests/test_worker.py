"""Workers on one shared database: what one leaves, another takes up, and nothing is paid twice."""

from __future__ import annotations

import asyncio
import gc
import sys
from collections import Counter
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, LiteralString

import anyio
import attrs
import psycopg
import pytest
from postgres import Server, execute
from procrastinate import App, PsycopgConnector
from psycopg.types.json import Jsonb
from workers import calls_of

import kie_async as kie
from benchmarks.quota import most_in_window
from kie_async import events
from kie_async.batch import WorkerControl, _engine, _worker, enqueue, run_batch, run_shared_batch, work
from kie_async.emulator import Fault
from kie_async.errors import AuthError, BudgetError, SettingsError, StorageError
from kie_async.journal import Job, Recorder, State, open_journal
from kie_async.testing import EmulatorHandle

pytestmark = [pytest.mark.anyio, pytest.mark.real_time, pytest.mark.usefixtures("quick_workers")]

UNREADABLE = Fault("code", on="record_info", code=500)  # no task comes to its end as long as this lasts
FIELDS: dict[str, Any] = {"model": "V5", "style": "s", "prompt": "p", "continue_at": 1.0}
BATCH = "b"
CONNECTIONS = """
    SELECT count(*) FROM pg_stat_activity
    WHERE datname = current_database() AND backend_type = 'client backend' AND pid <> pg_backend_pid()
"""
LISTENERS = """
    SELECT count(*) FROM pg_stat_activity
    WHERE datname = current_database() AND query LIKE 'LISTEN%procrastinate%'
"""


@attrs.define
class Desk:
    """One worker with a session of its own, and what it told."""

    session: kie.KieSession
    recorder: Recorder
    dsn: str
    folder: Path
    at_once: int
    observer: Callable[[Job], None]
    emitted: list[events.Event]
    seen: list[Job] = attrs.field(factory=list)

    async def work(self, *, until_done: bool = False, control: WorkerControl | None = None) -> None:
        def observe(job: Job) -> None:
            self.seen.append(job)
            self.observer(job)

        await work(
            self.session,
            journal=self.recorder.journal,
            dsn=self.dsn,
            directory=self.folder,
            observer=observe,
            at_once=self.at_once,
            until_done=until_done,
            control=control,
        )

    def delivered(self) -> int:
        return sum(job.state is State.DELIVERED for job in self.seen)

    def notes(self) -> str:
        return "\n".join(event.note for event in self.emitted if isinstance(event, events.Notice))


@attrs.define
class Shop:
    """A shared database with a batch, where desks are set up."""

    emulator: EmulatorHandle
    dsn: str
    folder: Path

    @asynccontextmanager
    async def desk(
        self,
        *,
        at_once: int = 5,
        quota: int = 1000,
        window: float = 10.0,
        observer: Callable[[Job], None] = lambda _job: None,
    ) -> AsyncGenerator[Desk]:
        emitted: list[events.Event] = []
        settings = kie.Settings(
            api_key=self.emulator.key,
            base_url=self.emulator.base_url,
            observer=emitted.append,
            quota=quota,
            quota_window=window,
        )
        journal = open_journal(self.dsn)
        async with kie.KieSession(settings, journal=journal) as session, session.open_journal(journal) as recorder:
            yield Desk(session, recorder, self.dsn, self.folder, at_once, observer, emitted)

    async def plan(self, count: int) -> None:
        async with open_journal(self.dsn) as journal:
            await enqueue(journal, jobs_of(count), BATCH)

    async def states(self) -> Counter[State]:
        async with open_journal(self.dsn) as journal:
            return Counter(job.state for _, job in await journal.page())

    async def reaches(self, state: State, count: int) -> None:
        """Wait until so many jobs stand in a state."""
        with anyio.fail_after(60):
            while (await self.states())[state] < count:
                await anyio.sleep(0.02)

    async def check(self, count: int) -> None:
        """Hold that every job was delivered and charged once."""
        assert await self.states() == {State.DELIVERED: count}
        charges = Counter(charge.body["title"] for charge in self.emulator.ledger)
        assert charges == {f"job{number}": 1 for number in range(count)}
        lines = (self.folder / "results.jsonl").read_text().splitlines()
        assert len(lines) == count

    def queued(self, *, ended: bool = True) -> list[tuple[Any, ...]]:
        """The rows of the engine: key, status, when it is tried again; with those of jobs that have ended, or not."""
        rows = "SELECT args->>'key', status::text, scheduled_at FROM procrastinate_jobs WHERE args ? 'key' ORDER BY id"
        return [row for row in execute(self.dsn, rows) if ended or row[1] in {"todo", "doing"}]

    def put(self, key: str, lock: str) -> None:
        """Queue a key from outside."""
        row = "INSERT INTO procrastinate_jobs (queue_name, task_name, lock, args) VALUES (%s, %s, %s, %s)"
        execute(self.dsn, row, ("kie_async", "kie_async.run_job", lock, Jsonb({"key": key})))

    def put_removal(self) -> None:
        """Queue a removal of old rows, as the engine does it at each hour."""
        row = "INSERT INTO procrastinate_jobs (queue_name, task_name, args) VALUES (%s, %s, %s)"
        execute(self.dsn, row, ("kie_async", "kie_async.remove_old_rows", Jsonb({"timestamp": 0})))

    async def install(self) -> None:
        """Make the engine's tables."""
        async with self.desk() as desk:
            await desk.work(until_done=True)

    def connections(self) -> int:
        """How many connections there are to the database, besides the one that asks."""
        return int(execute(self.dsn, CONNECTIONS)[0][0])

    def listeners(self) -> int:
        """How many engines listen."""
        return int(execute(self.dsn, LISTENERS)[0][0])

    def workers(self) -> int:
        """How many engines are registered."""
        return int(execute(self.dsn, "SELECT count(*) FROM procrastinate_workers")[0][0])


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
    shop.emulator.add_faults(UNREADABLE)
    async with shop.desk() as one, shop.desk() as other, anyio.create_task_group() as group:
        for desk in (one, other):
            group.start_soon(lambda desk=desk: desk.work(until_done=True))  # type: ignore[misc]  # a bound name
        await shop.reaches(State.SUBMITTED, 2 * one.at_once)
        shop.emulator.remove_faults(UNREADABLE)
    assert one.seen
    assert other.seen
    assert one.delivered() + other.delivered() >= 12
    await shop.check(12)
    assert {status for _, status, _ in shop.queued()} <= {"succeeded", "todo"}


async def test_a_plain_session_beside_a_worker(shop: Shop) -> None:
    """They share the quota, and each submits its own: what the session waits for is not taken, nor fetched."""
    await shop.plan(2)
    async with shop.desk(quota=2, window=0.5) as program, shop.desk(quota=2, window=0.5) as desk:
        await (await program.session.extend("a1", model="V5"))
        with anyio.fail_after(60):
            async with anyio.create_task_group() as group:
                group.start_soon(lambda: desk.work(until_done=True))
                tasks = await asyncio.gather(*(program.session.extend("a1", model="V5") for _ in range(5)))
        await asyncio.gather(*(task.result() for task in tasks))
        assert {job.batch for job in desk.seen} == {BATCH}
    assert {key for key, _, _ in shop.queued()} == {"job0", "job1"}
    assert await shop.states() == {State.DELIVERED: 2, State.SUCCEEDED: 6}
    assert len(shop.emulator.ledger) == 8
    assert most_in_window([arrival.at for arrival in shop.emulator.arrivals], 0.5) <= 2
    assert len((shop.folder / "results.jsonl").read_text().splitlines()) == 2


async def test_a_queued_task_of_a_plain_session_is_left_to_it(shop: Shop) -> None:
    """An older version has queued it."""
    await shop.install()
    async with shop.desk() as desk, anyio.create_task_group() as group:
        await desk.recorder.journal.add([Job(key="waiting", request=kie.ExtendRequest("a1", model="V5"))])
        shop.put("waiting", "waiting")
        group.start_soon(desk.work)
        await becomes(lambda: [status for _, status, _ in shop.queued()] == ["succeeded"])
        group.cancel_scope.cancel()
    assert not desk.seen
    assert await shop.states() == {State.PLANNED: 1}
    assert not shop.emulator.arrivals


async def test_many_workers_make_the_engines_tables_at_once(shop: Shop) -> None:
    async with shop.desk() as one, shop.desk() as other, shop.desk() as third, anyio.create_task_group() as group:
        for desk in (one, other, third):
            group.start_soon(lambda desk=desk: desk.work(until_done=True))  # type: ignore[misc]  # a bound name
    assert shop.workers() == 0


async def test_what_one_leaves_another_finishes(shop: Shop) -> None:
    await shop.plan(5)
    shop.emulator.add_faults(UNREADABLE)
    async with shop.desk(at_once=2) as one, anyio.create_task_group() as group:
        group.start_soon(one.work)
        await shop.reaches(State.SUBMITTED, 1)
        group.cancel_scope.cancel()
    shop.emulator.remove_faults(UNREADABLE)
    assert {status for _, status, _ in shop.queued()} == {"todo"}
    assert shop.workers() == 0
    async with shop.desk() as other:
        await other.work(until_done=True)
    await shop.check(5)


async def test_a_cancelled_worker_leaves_nothing_behind(shop: Shop) -> None:
    await shop.plan(8)
    async with shop.desk() as one:
        await anyio.sleep(0.1)
        before = asyncio.all_tasks()
        for _ in range(3):
            with anyio.move_on_after(0.3):
                await one.work()
        left = asyncio.all_tasks() - before  # polls of what was submitted, and waits of a driver, come to an end
        with anyio.fail_after(60):
            await asyncio.gather(*left, return_exceptions=True)
        own = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND query ~ 'procrastinate'"
        with anyio.fail_after(60):
            while execute(shop.dsn, own)[0][0] > 1:  # this one
                await anyio.sleep(0.02)


async def test_a_key_is_taken_as_soon_as_it_is_queued(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_worker, "POLL_INTERVAL", 1e6)
    beat = "SELECT last_heartbeat FROM procrastinate_workers"
    async with shop.desk() as one, anyio.create_task_group() as group:
        group.start_soon(one.work)
        await becomes(lambda: shop.listeners() == 1)
        first = execute(shop.dsn, beat)
        await becomes(lambda: execute(shop.dsn, beat) != first)
        await shop.plan(8)
        await becomes(lambda: one.delivered() == 8)
        await becomes(lambda: shop.connections() <= 6)
        group.cancel_scope.cancel()
    await shop.check(8)


async def test_a_worker_returns_with_its_database(
    emulator: EmulatorHandle, server: Server, frail_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_engine, "CONNECT_TIMEOUT", 0.3)
    shop = Shop(emulator, frail_url, tmp_path / "out")
    await shop.plan(6)
    emulator.add_faults(UNREADABLE)
    async with shop.desk(at_once=2) as one, anyio.create_task_group() as group:
        group.start_soon(lambda: one.work(until_done=True))
        await shop.reaches(State.SUBMITTED, 2)
        await anyio.to_thread.run_sync(server.stop)
        emulator.remove_faults(UNREADABLE)
        await anyio.sleep(1)
        await anyio.to_thread.run_sync(server.start)
    assert "the engine: " in one.notes()
    await shop.check(6)


async def test_a_queue_that_cannot_be_read_is_filled_when_it_is_back(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_engine, "MAX_REFUSALS", 10**6)
    monkeypatch.setattr(_worker, "POLL_INTERVAL", 1e6)  # the engine reads the queue at its start, and when it is told
    beat = "SELECT last_heartbeat FROM procrastinate_workers"
    async with shop.desk() as one, anyio.create_task_group() as group:
        group.start_soon(one.work)
        await becomes(lambda: shop.listeners() == 1)
        first = execute(shop.dsn, beat)
        await becomes(lambda: execute(shop.dsn, beat) != first)
        await anyio.to_thread.run_sync(execute, shop.dsn, "ALTER TABLE procrastinate_jobs RENAME TO away")
        await becomes(lambda: one.notes().count("the engine: UndefinedTable") > 1)
        await anyio.to_thread.run_sync(execute, shop.dsn, "ALTER TABLE away RENAME TO procrastinate_jobs")
        await shop.plan(2)
        await shop.reaches(State.DELIVERED, 2)
        group.cancel_scope.cancel()
    await shop.check(2)


async def test_a_key_that_a_living_worker_has_is_not_queued_again(shop: Shop) -> None:
    await shop.install()
    await shop.plan(3)
    for key in ("job0", "job1"):
        shop.put(key, lock=key)
    living = "INSERT INTO procrastinate_workers (last_heartbeat) VALUES (now() + interval '1 hour') RETURNING id"
    [worker_id] = execute(shop.dsn, living)[0]
    doing = "UPDATE procrastinate_jobs SET status = 'doing', worker_id = %s WHERE lock = 'job0'"
    execute(shop.dsn, doing, (worker_id,))
    async with shop.desk() as one, anyio.create_task_group() as group:
        group.start_soon(one.work)
        await shop.reaches(State.DELIVERED, 2)
        group.cancel_scope.cancel()
    assert await shop.states() == {State.DELIVERED: 2, State.PLANNED: 1}
    assert [key for key, _, _ in shop.queued()] == ["job0", "job1", "job2"]


async def test_the_engines_own_tools_show_the_queue_as_the_journal_has_it(shop: Shop) -> None:
    shop.emulator.add_faults(UNREADABLE)
    await shop.plan(5)
    app = App(connector=PsycopgConnector(conninfo=shop.dsn))

    async def show(counts: dict[str, int]) -> None:
        """Wait until both tools show it: a worker moves rows between two queries."""
        with anyio.fail_after(60):
            while True:
                [queue] = await app.job_manager.list_queues_async(task="kie_async.run_job")
                assert queue["name"] == "kie_async"
                of_queue = {state: n for state, n in queue.items() if n and state not in {"name", "jobs_count"}}
                jobs = await app.job_manager.list_jobs_async(task="kie_async.run_job")
                if of_queue == counts and Counter(job.status for job in jobs) == counts:
                    return
                await anyio.sleep(0.02)

    async with shop.desk(at_once=2) as one, app.open_async(), anyio.create_task_group() as group:
        group.start_soon(one.work)
        await shop.reaches(State.SUBMITTED, 2)
        assert await shop.states() == {State.SUBMITTED: 2, State.PLANNED: 3}
        await show({"doing": 2, "todo": 3})
        shop.emulator.remove_faults(UNREADABLE)
        await shop.reaches(State.DELIVERED, 5)
        await show({"succeeded": 5})
        group.cancel_scope.cancel()
    await shop.check(5)


async def test_a_key_handed_out_twice_is_paid_once(shop: Shop) -> None:
    await shop.plan(2)
    async with shop.desk() as one, anyio.create_task_group() as group:
        group.start_soon(one.work)
        with anyio.fail_after(60):
            while not shop.emulator.ledger:
                await anyio.sleep(0.01)
        for number in range(10):  # what two workers that both think they feed would do, and worse
            shop.put("job0", lock=f"other{number}")
        await shop.reaches(State.DELIVERED, 2)
        group.cancel_scope.cancel()
    await shop.check(2)


async def test_the_keys_of_a_dead_worker_are_taken_up(shop: Shop) -> None:
    await shop.install()
    await shop.plan(1)
    shop.put("job0", lock="job0")
    dead = "INSERT INTO procrastinate_workers (last_heartbeat) VALUES (now() - interval '1 minute') RETURNING id"
    [worker_id] = execute(shop.dsn, dead)[0]
    execute(shop.dsn, "UPDATE procrastinate_jobs SET status = 'doing', worker_id = %s", (worker_id,))
    async with shop.desk() as one:
        await one.work(until_done=True)
    await shop.check(1)
    assert [key for key, _, _ in shop.queued()] == ["job0"]


async def test_a_worker_that_waits_for_its_last_jobs_keeps_its_heartbeat(shop: Shop) -> None:
    await shop.plan(1)
    shop.emulator.add_faults(Fault("slow", on="submit", seconds=1.0))
    beat = "SELECT last_heartbeat FROM procrastinate_workers"
    async with shop.desk() as one:
        working = asyncio.create_task(one.work())
        await becomes(lambda: bool(shop.emulator.arrivals))
        working.cancel()
        first = execute(shop.dsn, beat)
        await becomes(lambda: execute(shop.dsn, beat) != first)
        await becomes(working.done)
        assert shop.workers() == 0
        assert len(shop.emulator.ledger) == 1


async def test_a_window_of_keys_is_queued_paid_work_first(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_worker, "WINDOW", 2)
    await shop.plan(5)
    async with open_journal(shop.dsn) as journal:
        await journal.intend("job3", "t")
        await journal.move("job3", State.SUBMITTED, token="t", task_id="task3", route="classic")
    async with shop.desk() as one, anyio.create_task_group() as group:
        group.start_soon(one.work)
        await shop.reaches(State.DELIVERED, 4)
        group.cancel_scope.cancel()
    assert [key for key, _, _ in shop.queued()][:2] == ["job3", "job0"]
    open_at_once = """
        SELECT max((SELECT count(*) FILTER (WHERE type = 'deferred')
                         - count(*) FILTER (WHERE type IN ('succeeded', 'failed', 'aborted', 'cancelled'))
                    FROM procrastinate_events AS earlier JOIN procrastinate_jobs AS job ON job.id = earlier.job_id
                    WHERE earlier.at <= event.at AND job.args ? 'key'))
        FROM procrastinate_events AS event
    """
    assert execute(shop.dsn, open_at_once) == [(2,)]


async def test_one_worker_at_a_time_queues_keys(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    await shop.plan(1)
    async with shop.desk() as one, shop.desk() as other:
        tries = calls_of(other.recorder.journal, "lease", monkeypatch)
        async with one.recorder.leases.holding("engine"):
            working = asyncio.create_task(other.work(until_done=True))
            await becomes(lambda: working.done() or sum(name == "engine" for name, _ in tries) > 3)
            assert not working.done()
            assert shop.queued() == []
        await working
    await shop.check(1)


async def test_rows_of_jobs_that_ended_days_ago_are_removed(shop: Shop) -> None:
    await shop.install()
    shop.put("old", lock="old")
    execute(shop.dsn, "UPDATE procrastinate_jobs SET status = 'succeeded'")
    execute(shop.dsn, "UPDATE procrastinate_events SET at = now() - interval '4 days'")
    shop.put("young", lock="young")
    execute(shop.dsn, "UPDATE procrastinate_jobs SET status = 'failed' WHERE lock = 'young'")
    shop.put_removal()
    async with shop.desk() as one, anyio.create_task_group() as group:
        group.start_soon(one.work)
        await becomes(lambda: [key for key, _, _ in shop.queued()] == ["young"])
        group.cancel_scope.cancel()


async def test_a_paid_job_that_cannot_be_finished_is_put_off(shop: Shop) -> None:
    await shop.plan(2)
    fault = Fault("code", on="download_url", code=422)
    shop.emulator.add_faults(Fault("expired"), fault)
    async with shop.desk() as one:
        await one.work(until_done=True)
    assert await shop.states() == {State.SUCCEEDED: 2}
    assert {key for key, _, _ in shop.queued(ended=False)} == {"job0", "job1"}
    assert all(scheduled_at is not None for _, _, scheduled_at in shop.queued(ended=False))
    shop.emulator.remove_faults(Fault("expired"), fault)
    async with shop.desk() as one:
        await one.work(until_done=True)
    await shop.check(2)


async def test_a_job_that_moves_while_all_are_read_is_not_missed(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    await shop.plan(1)
    reads = 0
    async with shop.desk() as one, open_journal(shop.dsn) as other, anyio.create_task_group() as group:
        read = one.recorder.journal.jobs

        async def read_and_move(*states: State, **options: Any) -> AsyncGenerator[Job]:  # those of ``jobs``
            nonlocal reads
            reads += 1
            async for job in read(*states, **options):
                yield job
            if await shop.states() == {State.PLANNED: 1}:
                await other.intend("job0", "token")
                await other.move("job0", State.SUBMITTED, token="token", task_id="task")

        await other.lease("engine", 60.0)  # nobody queues the key
        monkeypatch.setattr(one.recorder.journal, "jobs", read_and_move)
        working = asyncio.create_task(one.work(until_done=True))
        await becomes(lambda: reads > 3 or working.done())
        assert not working.done()
        working.cancel()
        group.cancel_scope.cancel()


async def test_what_stops_the_runner_is_raised(shop: Shop) -> None:
    await shop.plan(3)
    shop.emulator.add_faults(Fault("code", code=401))
    async with shop.desk() as one:
        with pytest.raises(AuthError):
            await one.work()
    assert await shop.states() == {State.PLANNED: 3}
    assert shop.emulator.ledger == []


async def test_an_observer_that_breaks_stops_no_worker(shop: Shop) -> None:
    def broken(_job: Job) -> None:
        raise ZeroDivisionError

    await shop.plan(2)
    async with shop.desk(observer=broken) as one:
        await one.work(until_done=True)
    assert await shop.states() == {State.DELIVERED: 2}


async def test_a_key_that_the_journal_does_not_know_fails(shop: Shop) -> None:
    await shop.install()
    async with shop.desk() as one, anyio.create_task_group() as group:
        group.start_soon(one.work)
        shop.put("nobody", lock="nobody")
        await becomes(lambda: "no job 'nobody'" in one.notes())
        await becomes(lambda: shop.queued() == [("nobody", "failed", None)])
        group.cancel_scope.cancel()


# Made before an engine runs: a statement that waits for a lock would block the loop in which its holder goes on.
REFUSALS = """
CREATE TABLE refusal (what text);
CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
    IF EXISTS (SELECT FROM refusal WHERE what = TG_TABLE_NAME) THEN
        RAISE 'refused' USING ERRCODE = 'check_violation';
    END IF;
    RETURN coalesce(NEW, OLD);
END $$;
CREATE TRIGGER refuse BEFORE UPDATE ON procrastinate_jobs
    FOR EACH ROW WHEN (NEW.status = 'succeeded') EXECUTE FUNCTION refuse();
CREATE TRIGGER refuse BEFORE DELETE ON procrastinate_workers FOR EACH ROW EXECUTE FUNCTION refuse();
"""


async def refusing(shop: Shop, refusal: LiteralString) -> Callable[[Job], None]:
    """Prepare refusals, and return what makes the database refuse from the end of the first job on."""
    await shop.install()
    execute(shop.dsn, REFUSALS)
    refusals = iter([refusal])

    def refuse_once(job: Job) -> None:
        for statement in refusals if job.state is State.DELIVERED else ():
            execute(shop.dsn, statement)

    return refuse_once


async def test_an_engine_that_cannot_record_an_end_starts_anew(shop: Shop) -> None:
    refuse = await refusing(shop, "INSERT INTO refusal VALUES ('procrastinate_jobs')")
    await shop.plan(1)
    async with shop.desk(observer=refuse) as one, anyio.create_task_group() as group:
        group.start_soon(one.work)
        await becomes(lambda: "is started again" in one.notes())
        assert "CheckViolation" in one.notes()
        group.cancel_scope.cancel()
    await shop.check(1)


# As in two schemas of a search path.
TWICE = """
CREATE TYPE another AS ENUM ('succeeded');
CREATE FUNCTION procrastinate_finish_job_v1(bigint, another, bool) RETURNS void LANGUAGE sql AS ''
"""


@pytest.mark.parametrize(
    ("statement", "says"),
    [
        (
            TWICE,
            "AmbiguousFunction function procrastinate_finish_job_v1",
        ),
        ("DROP FUNCTION procrastinate_fetch_job_v2", "UndefinedFunction function procrastinate_fetch_job_v2"),
        ("DROP FUNCTION procrastinate_defer_jobs_v1", "UndefinedFunction function procrastinate_defer_jobs_v1"),
    ],
    ids=["an end that cannot be recorded", "jobs that cannot be taken", "a queue that cannot be filled"],
)
async def test_an_engine_that_can_never_work_ends_the_worker(shop: Shop, statement: LiteralString, says: str) -> None:
    await shop.install()
    execute(shop.dsn, statement)
    await shop.plan(1)
    async with shop.desk() as one:
        with anyio.fail_after(60), pytest.raises(StorageError, match="what mends it is said by: kie-async") as caught:
            await one.work()
    assert says in caught.value.message
    assert not caught.value.retryable
    assert len(shop.emulator.ledger) == ("finish" in says)


async def test_a_removal_of_old_rows_whose_end_cannot_be_recorded_ends_the_worker(shop: Shop) -> None:
    await shop.install()
    execute(shop.dsn, TWICE)
    shop.put_removal()
    async with shop.desk() as one:
        with anyio.fail_after(60), pytest.raises(StorageError, match="procrastinate_finish_job_v1"):
            await one.work()
    gc.collect()  # an error that nobody has looked at fails the test


async def test_the_registration_of_an_engine_that_could_not_unregister_is_given_up(shop: Shop) -> None:
    refuse = await refusing(shop, "INSERT INTO refusal VALUES ('procrastinate_jobs'), ('procrastinate_workers')")
    await shop.plan(1)
    async with shop.desk(observer=refuse) as one, anyio.create_task_group() as group:
        group.start_soon(one.work)
        await becomes(lambda: one.notes().count("refused") > 2)  # the row, the worker that ended, the next that begins
        (before,) = execute(shop.dsn, "SELECT id FROM procrastinate_workers")
        execute(shop.dsn, "DELETE FROM refusal")
        await becomes(lambda: execute(shop.dsn, "SELECT id FROM procrastinate_workers") not in ([], [before]))
        group.cancel_scope.cancel()
    await shop.check(1)


async def test_a_row_that_another_worker_has_finished_stops_nothing(shop: Shop) -> None:
    def finish(job: Job) -> None:
        if job.state is State.DELIVERED:
            execute(shop.dsn, "UPDATE procrastinate_jobs SET status = 'succeeded' WHERE status = 'doing'")

    await shop.plan(1)
    async with shop.desk(observer=finish) as one:
        await one.work(until_done=True)
        assert "the engine" not in one.notes()
    await shop.check(1)


async def test_an_engine_that_was_taken_for_dead_starts_anew(shop: Shop) -> None:
    await shop.install()
    async with shop.desk() as one, anyio.create_task_group() as group:
        group.start_soon(one.work)
        await becomes(lambda: shop.workers() == 1)
        execute(shop.dsn, "DELETE FROM procrastinate_workers")
        await shop.plan(1)
        await shop.reaches(State.DELIVERED, 1)
        assert "ForeignKeyViolation" in one.notes()
        group.cancel_scope.cancel()
    await shop.check(1)


async def test_without_its_database_it_says_so(
    emulator: EmulatorHandle, server: Server, frail_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_engine, "CONNECT_TIMEOUT", 0.3)
    async with Shop(emulator, frail_url, tmp_path).desk() as one:
        await anyio.to_thread.run_sync(server.stop)
        with pytest.raises(StorageError, match="engine"):
            await one.work()
        await anyio.to_thread.run_sync(server.start)


async def test_a_submission_whose_owner_died_is_told_as_unknown(shop: Shop) -> None:
    await shop.plan(2)
    async with open_journal(shop.dsn) as journal:
        await journal.intend("job1", "token")
    settings = kie.Settings(api_key=shop.emulator.key, base_url=shop.emulator.base_url, observer=lambda _event: None)
    seen: list[tuple[str, State]] = []
    async with kie.KieSession(settings) as session:
        await run_shared_batch(
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
    monkeypatch.delitem(sys.modules, "kie_async.batch._worker")
    monkeypatch.setitem(sys.modules, "procrastinate", None)
    async with shop.desk() as one:
        with pytest.raises(SettingsError, match="cluster"):
            await one.work()


async def becomes(condition: Callable[[], bool]) -> None:
    with anyio.fail_after(60):
        while not condition():
            await anyio.sleep(0.02)


async def test_tables_that_are_no_engines_are_left_alone(shop: Shop) -> None:
    async with shop.desk() as one:
        execute(shop.dsn, "CREATE TABLE procrastinate_workers (id int)")
        with pytest.raises(StorageError, match="already exists"):
            await one.work()


async def test_a_worker_says_why_it_takes_no_jobs(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_worker, "HEARTBEAT", 1e6)
    monkeypatch.setattr(_engine, "MAX_REFUSALS", 10**6)
    control = WorkerControl()
    assert await control.why_not_ready() == "it has not begun"
    async with shop.desk() as one, anyio.create_task_group() as group:
        group.start_soon(lambda: one.work(control=control))
        await becomes(lambda: shop.listeners() == 1)
        with anyio.fail_after(60):
            while await control.why_not_ready():
                await anyio.sleep(0.02)
        await anyio.to_thread.run_sync(execute, shop.dsn, "ALTER TABLE procrastinate_workers RENAME TO away")
        assert (await control.why_not_ready()).startswith("the database does not answer: UndefinedTable")
        await anyio.to_thread.run_sync(execute, shop.dsn, "ALTER TABLE away RENAME TO procrastinate_workers")
        execute(shop.dsn, "DELETE FROM procrastinate_workers")
        assert await control.why_not_ready() == "the engine is not registered; it is started again by itself"
        group.cancel_scope.cancel()
    assert await control.why_not_ready() == "it is stopping"


# ---------------------------------------------------------------- a batch of a program


async def test_the_cap_of_a_batch_that_a_program_runs_binds_workers(shop: Shop) -> None:
    await shop.install()
    async with shop.desk() as one, shop.desk() as other:
        async with anyio.create_task_group() as group:
            group.start_soon(one.work)
            await becomes(lambda: shop.workers() == 1)
            with pytest.raises(BudgetError, match="is 24, and 24 are spent"):
                async for _ in run_batch(
                    other.session, jobs_of(6), directory=shop.folder / "other", batch=BATCH, max_credits=24
                ):
                    pass
            group.cancel_scope.cancel()
        with pytest.raises(BudgetError):
            await one.work(until_done=True)
    assert len(shop.emulator.ledger) == 2
    assert await shop.states() == {State.DELIVERED: 2, State.PLANNED: 4}


# ---------------------------------------------------------------- ending in good order


async def test_a_drained_worker_finishes_what_it_has_submitted(shop: Shop) -> None:
    await shop.plan(6)
    control = WorkerControl()
    async with shop.desk(at_once=5, quota=2) as one, anyio.create_task_group() as group:
        group.start_soon(lambda: one.work(control=control))
        await becomes(lambda: len(shop.emulator.ledger) == 2)  # three more wait for the quota, and one in the queue
        assert await control.why_not_ready() == ""
        control.drain()
        assert await control.why_not_ready() == "it is stopping"
    assert await shop.states() == {State.DELIVERED: 2, State.PLANNED: 4}
    assert Counter(status for _, status, _ in shop.queued()) == {"succeeded": 2, "todo": 4}
    assert shop.workers() == 0
    async with shop.desk() as other:
        await other.work(until_done=True)
    await shop.check(6)


async def test_a_drained_worker_does_not_mind_a_batch_over_its_cap(shop: Shop) -> None:
    async with open_journal(shop.dsn) as journal:
        await enqueue(journal, jobs_of(2), BATCH)
        await journal.caps.set(BATCH, 12)
    control = WorkerControl()
    async with shop.desk() as one:
        with pytest.raises(BudgetError):
            await one.work(until_done=True)
        async with anyio.create_task_group() as group:
            group.start_soon(lambda: one.work(control=control))
            await becomes(lambda: shop.workers() == 1)
            control.drain()
    assert await shop.states() == {State.DELIVERED: 1, State.PLANNED: 1}


WAITING = "SELECT 1 FROM pg_locks WHERE locktype = 'advisory' AND objid = 7 AND NOT granted"
# The engine waits for the second row of a job at once, as long as another has the lock. (It has a row of its own, too,
# for some minutes after each full hour.)
SLOW_ROW = """
CREATE FUNCTION wait() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
    IF EXISTS (SELECT FROM procrastinate_jobs WHERE status = 'doing' AND args ? 'key') THEN
        PERFORM pg_advisory_xact_lock(7);
    END IF;
    RETURN NEW;
END $$;
CREATE TRIGGER wait BEFORE UPDATE ON procrastinate_jobs
    FOR EACH ROW WHEN (NEW.status = 'doing' AND NEW.args ? 'key') EXECUTE FUNCTION wait()
"""


async def test_a_worker_that_is_drained_can_still_be_cancelled(shop: Shop) -> None:
    await shop.install()
    execute(shop.dsn, SLOW_ROW)
    await shop.plan(2)
    shop.emulator.add_faults(Fault("stuck"))
    control = WorkerControl()
    beat = "SELECT last_heartbeat FROM procrastinate_workers"
    async with shop.desk() as one, await psycopg.AsyncConnection.connect(shop.dsn) as holder:
        await holder.execute("SELECT pg_advisory_lock(7)")
        working = asyncio.create_task(one.work(control=control))
        await shop.reaches(State.SUBMITTED, 1)
        await becomes(lambda: bool(execute(shop.dsn, WAITING)))
        control.drain()
        beats: set[tuple[Any, ...]] = set()

        def are_seen() -> bool:
            beats.update(execute(shop.dsn, beat))
            return len(beats) > 3

        await becomes(are_seen)  # it keeps its heartbeat while it waits for its last job
        working.cancel()
        await becomes(lambda: not execute(shop.dsn, "SELECT 1 FROM kie_lease WHERE name LIKE 'worker:%'"))
        await holder.execute("SELECT pg_advisory_unlock(7)")  # the second row comes when the first job was cancelled
        await becomes(working.done)
    assert await shop.states() == {State.SUBMITTED: 1, State.PLANNED: 1}
    assert [status for _, status, _ in shop.queued()] == ["todo", "todo"]
    assert shop.workers() == 0


SLOW_END = """
CREATE FUNCTION wait() RETURNS trigger LANGUAGE plpgsql AS
$$ BEGIN PERFORM pg_advisory_xact_lock(7); RETURN NEW; END $$;
CREATE TRIGGER wait BEFORE UPDATE ON procrastinate_jobs
    FOR EACH ROW WHEN (OLD.status = 'doing' AND OLD.args ? 'key') EXECUTE FUNCTION wait()
"""


async def test_a_worker_that_is_cancelled_and_drained_at_once_records_what_has_ended(shop: Shop) -> None:
    await shop.install()
    execute(shop.dsn, SLOW_END)
    await shop.plan(1)
    control = WorkerControl()
    async with shop.desk(at_once=1) as one, await psycopg.AsyncConnection.connect(shop.dsn) as holder:
        await holder.execute("SELECT pg_advisory_lock(7)")
        async with anyio.create_task_group() as group:
            group.start_soon(lambda: one.work(control=control))
            await becomes(lambda: bool(execute(shop.dsn, WAITING)))
            group.cancel_scope.cancel()
            control.drain()
            with anyio.CancelScope(shield=True):
                await anyio.sleep(0.3)  # longer than the engine waits before it cancels its jobs
                await holder.execute("SELECT pg_advisory_unlock(7)")
    assert [status for _, status, _ in shop.queued()] == ["succeeded"]
    await shop.check(1)
