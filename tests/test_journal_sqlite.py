"""The journal in a SQLite file: the contract of all journals, and what is particular to a file."""

from __future__ import annotations

import asyncio
import itertools
import os
import re
import shutil
import sqlite3
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import aclosing, closing
from pathlib import Path
from typing import Any

import attrs
import pytest
from child_process import child, read_line, say
from hypothesis import settings
from journal_contract import JournalContract, JournalMachine, collect, counted, expecting, inbound, planned
from sqlite_hooks import ask, hook

from kie_async.errors import ConflictError, StorageError
from kie_async.journal import Journal, Payer, SQLiteJournal, State

pytestmark = [pytest.mark.anyio, pytest.mark.real_time]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "jobs" / "journal.db"


class TestContract(JournalContract):
    @pytest.fixture
    def make(self, path: Path) -> Callable[[], Journal]:
        return lambda: SQLiteJournal(path)

    @pytest.fixture
    def lose(self, path: Path) -> Callable[[], None]:
        return lambda: shutil.rmtree(path.parent)


class _Machine(JournalMachine):
    def __init__(self) -> None:
        self.directory = Path(tempfile.mkdtemp())
        super().__init__()

    def make(self) -> Journal:
        return SQLiteJournal(self.directory / "journal.db")

    def teardown(self) -> None:
        super().teardown()
        shutil.rmtree(self.directory)


TestMachine = _Machine.TestCase
TestMachine.settings = settings(max_examples=15, stateful_step_count=30)


async def test_the_first_of_a_million_is_found_by_an_index(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    statements: list[str] = []
    hook(monkeypatch, lambda connection, _statement: connection.set_trace_callback(statements.append))
    async with SQLiteJournal(path) as journal:
        statements.clear()
        for batch in (None, "x"):
            await journal.page(batch=batch)
            await journal.counts(batch)
        await journal.spent("x")
        await journal.find(token="t", task_id="t")
        await journal.callbacks_for(token="t", task_id="t")
    with closing(sqlite3.connect(path)) as connection:
        queries = [each for each in statements if each.lstrip().startswith("SELECT")]
        assert len(queries) == 7
        for query in queries:
            steps = [row[3] for row in connection.execute(f"EXPLAIN QUERY PLAN {query}")]
            for step in steps:
                assert not step.startswith("SCAN kie_") or "USING COVERING INDEX" in step, (query, steps)


async def test_what_counts_for_a_cap_is_found_by_indexes(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    statements: list[str] = []
    hook(monkeypatch, lambda connection, _statement: connection.set_trace_callback(statements.append))
    async with SQLiteJournal(path) as journal:
        await journal.caps.set("x", 12)
        await journal.add([planned("a", batch="x")])
        statements.clear()
        await journal.caps.check("x", Payer(account="ours", max_credits=12, since=1e9))
        await journal.caps.full()
        await journal.intend("a", "a", payer=Payer(account="ours", max_credits=12))
    with closing(sqlite3.connect(path)) as connection:
        queries = [each for each in statements if "kie_total" in each]
        assert len(queries) == 6  # a check of each cap, the full batches; a claim and two totals
        for query in queries:
            steps = {row[3] for row in connection.execute(f"EXPLAIN QUERY PLAN {query}")}
            assert {step for step in steps if "SCAN" in step} <= {"SCAN kie_cap", "SCAN CONSTANT ROW"}


async def test_what_was_spent_since_a_moment_is_known_for_any(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    moments = [1.8e9 + 437 * number for number in range(10)]
    now = moments[0]
    monkeypatch.setattr(time, "time", lambda: now)
    ours = Payer(account="ours")
    async with SQLiteJournal(path) as journal:
        await journal.add(planned(f"{number}") for number in range(10))
        for number, moment in enumerate(moments):
            now = moment
            await journal.intend(f"{number}", f"{number}", payer=ours)
        now = moments[-1] + 5000
        await journal.move("3", State.SUBMITTED, task_id="3")
        await journal.move("3", State.FAILED)
        await journal.move("3", State.PLANNED)
        for since in itertools.chain.from_iterable((moment, moment + 1) for moment in moments):
            known = sum(12 for moment in moments if moment >= since)
            assert await counted(journal, attrs.evolve(ours, since=since)) == known
        await journal.intend("3", "again", payer=ours)
        moments.remove(moments[3])
        for since in (0.0, 1.8e9, moments[2] + 1, moments[5], moments[-1] + 1, now):
            known = 24 + sum(12 for moment in moments if moment >= since)
            assert await counted(journal, attrs.evolve(ours, since=since)) == known


# ---------------------------------------------------------------- opening and closing


async def test_only_its_owner_may_read_it(path: Path) -> None:
    async with SQLiteJournal(path) as journal:
        await journal.add([planned("a")])
        modes = {each.name: each.stat().st_mode & 0o777 for each in path.parent.iterdir()}
        assert modes == {"journal.db": 0o600, "journal.db-wal": 0o600, "journal.db-shm": 0o600}
        assert path.parent.stat().st_mode & 0o777 == 0o700
    assert [each.name for each in path.parent.iterdir()] == ["journal.db"]


async def test_writes_are_synchronous_in_a_write_ahead_log(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found: list[tuple[Any, ...]] = []

    def note(connection: sqlite3.Connection, statement: str) -> None:
        if "INSERT INTO kie_job" in statement:
            found.append(
                tuple(ask(connection, f"PRAGMA {name}") for name in ("synchronous", "journal_mode", "fullfsync"))
            )

    hook(monkeypatch, note)
    async with SQLiteJournal(path) as journal:
        await journal.add([planned("a")])
    assert found == [(2, "wal", 1)]


async def test_no_thread_stays_behind(path: Path) -> None:
    before = set(threading.enumerate())
    for _ in range(3):
        async with SQLiteJournal(path):
            assert len(set(threading.enumerate()) - before) == 1
    directory = path.parent / "directory"
    directory.mkdir()
    with pytest.raises(StorageError):
        async with SQLiteJournal(directory):
            raise AssertionError
    assert set(threading.enumerate()) == before


async def test_it_can_be_opened_again(path: Path) -> None:
    journal = SQLiteJournal(path, process_id="me")
    assert (journal.process_id, repr(journal)) == ("me", f"<SQLiteJournal {path}>")
    for number in range(2):
        async with journal:
            assert await journal.add([planned("a")]) == (number == 0)
        for call in (journal.get("a"), journal.add([planned("b")])):
            with pytest.raises(StorageError, match="not open"):
                await call
        with pytest.raises(StorageError, match="not open"):
            journal.watch_callbacks()


async def test_closing_writes_what_is_under_way(path: Path) -> None:
    async with SQLiteJournal(path) as journal:
        await journal.add(planned(f"{number}") for number in range(50))
        calls = [asyncio.ensure_future(journal.intend(f"{number}", f"{number}")) for number in range(50)]
        await asyncio.sleep(0)
    assert all(job.state is State.INTENT for job in await asyncio.gather(*calls))
    async with SQLiteJournal(path) as journal:
        assert (await journal.counts())[State.INTENT] == 50


async def test_cancelled_while_closing_it_closes_all_the_same(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begun, gate, before = threading.Event(), threading.Event(), set(threading.enumerate())

    def wait(_connection: sqlite3.Connection, statement: str) -> None:
        if "INSERT INTO kie_job" in statement:
            begun.set()
            gate.wait()

    hook(monkeypatch, wait)

    async def use() -> None:
        async with SQLiteJournal(path) as journal:
            busy = asyncio.ensure_future(journal.add([planned("a")]))
            while not begun.is_set():
                await asyncio.sleep(0.01)
        await busy

    task = asyncio.ensure_future(use())
    while not begun.is_set():
        await asyncio.sleep(0.01)
    for _ in range(2):
        await asyncio.sleep(0.05)
        task.cancel()
    await asyncio.sleep(0.05)
    assert not task.done()
    gate.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert set(threading.enumerate()) == before


async def test_cancelled_while_opening_it_closes(path: Path) -> None:
    before = set(threading.enumerate())
    for turns in range(12):
        task = asyncio.ensure_future(SQLiteJournal(path).__aenter__())
        for _ in range(turns):
            await asyncio.sleep(0.001)
        if task.cancel():
            with pytest.raises(asyncio.CancelledError):
                await task
            assert set(threading.enumerate()) == before
            continue
        await (await task).__aexit__(None, None, None)


# ---------------------------------------------------------------- other processes


async def test_it_says_that_another_keeps_it_busy(path: Path) -> None:
    async with SQLiteJournal(path, patience=0.05) as journal:
        await journal.add([planned("a"), planned("b")])
        with closing(sqlite3.connect(path, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            with pytest.raises(StorageError, match="busy by another process") as caught:
                await journal.intend("a", "t")
            assert caught.value.retryable
            assert await journal.get("b") == (await journal.page(after=1))[0][1]  # reading goes on
        assert (await journal.intend("a", "t")).state is State.INTENT


async def test_it_waits_for_another_that_writes(path: Path) -> None:
    async with SQLiteJournal(path) as journal:
        with closing(sqlite3.connect(path, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            call = asyncio.ensure_future(journal.add([planned("a")]))
            await asyncio.sleep(0.05)
            assert not call.done()
            other.execute("COMMIT")
            assert await call == 1


async def test_a_checkpoint_that_fails_does_not_shorten_the_wait_for_others(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    failures: list[str] = []

    def fail_once(_connection: sqlite3.Connection, statement: str) -> None:
        if "wal_checkpoint" in statement and not failures:
            failures.append(statement)
            raise sqlite3.OperationalError("disk I/O error")

    connections = hook(monkeypatch, fail_once)
    async with SQLiteJournal(path, patience=7.0) as journal:
        assert await journal.add([planned("a")]) == 1
        assert failures
        *_, connection, _model = connections
        assert ask(connection, "PRAGMA busy_timeout") == 7000


async def test_the_lease_of_a_dead_process_is_free_at_once(path: Path) -> None:
    program = """
        async with SQLiteJournal(path) as journal:
            await journal.lease("batch", 3600)
            print(journal.process_id, flush=True)
            await asyncio.sleep(60)
    """
    async with SQLiteJournal(path) as journal:
        with child(program, path) as process:
            process_id = read_line(process)
            with pytest.raises(ConflictError, match=re.escape(process_id)):
                await journal.lease("batch", 1)
            process.kill()
            process.wait()
        await journal.lease("batch", 1)


async def test_a_journal_that_is_closed_gives_its_leases_back(path: Path) -> None:
    async with SQLiteJournal(path) as other:
        async with SQLiteJournal(path) as journal:
            await journal.lease("a", 3600)
            await journal.lease("b", 3600)
        await other.lease("a", 1)
        await other.lease("b", 1)


async def test_two_processes_write_one_file(path: Path) -> None:
    program = """
        async with SQLiteJournal(path, patience=60) as journal:
            async def claim(number):
                try:
                    await journal.intend(f"{number}", f"{journal.process_id} {number}")
                    return 1
                except ConflictError:
                    return 0
            print("ready", flush=True)
            sys.stdin.readline()
            print(sum(await asyncio.gather(*map(claim, range(300)))))
    """
    async with SQLiteJournal(path) as journal:
        await journal.add(planned(f"{number}") for number in range(300))
        with child(program, path) as one, child(program, path) as two:
            for process in (one, two):
                read_line(process)
            for process in (one, two):
                say(process)
            won = [int(read_line(process)) for process in (one, two)]
        assert sum(won) == 300
        assert (await journal.counts())[State.INTENT] == 300
        for _, job in await journal.page():
            assert len(await journal.attempts(job.key)) == 1


async def test_a_child_after_a_fork_is_refused(path: Path) -> None:
    program = """
        journal = SQLiteJournal(path)
        async with journal:
            await journal.add([Job(key="a", request=ExtendRequest("x", model="V5"))])
            pid = os.fork()
            if pid == 0:
                try:
                    await journal.get("a")
                except StorageError as error:
                    os.write(1, str(error).encode())
                await journal.__aexit__(None, None, None)
                os.write(1, b" closed\\n")
                os._exit(0)
            os.waitpid(pid, 0)
            assert await journal.get("a")
    """
    with child(program, path) as process:
        assert re.match(r"the journal was opened before a fork.* closed", read_line(process))
        assert process.wait() == 0


async def test_another_process_leaves_the_thread_alone(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = hook(monkeypatch, lambda _connection, _statement: None)
    journal = await SQLiteJournal(path).__aenter__()
    with monkeypatch.context() as patched:
        patched.setattr(os, "getpid", lambda: -1)
        with pytest.raises(StorageError, match="before a fork"):
            await journal.get("a")
        await journal.__aexit__(None, None, None)
    *_, connection, _model = made
    assert ask(connection, "SELECT 1") == 1  # it was not closed
    connection.close()


# ---------------------------------------------------------------- listening


async def test_a_listener_outlasts_a_file_that_cannot_be_read(
    path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    failures = iter(["FROM kie_callback WHERE position", "data_version"])
    failing = [next(failures)]

    def fail(_connection: sqlite3.Connection, statement: str) -> None:
        if failing and failing[0] in statement:
            failing[:] = [*itertools.islice(failures, 1)]
            raise sqlite3.OperationalError("away")

    hook(monkeypatch, fail)
    async with SQLiteJournal(path) as journal, aclosing(journal.watch_callbacks()) as listener:
        await expecting(journal, "t")
        await journal.save_callback(inbound("t"))
        waiting = asyncio.ensure_future(collect(listener, [inbound("t"), inbound("t", "late")]))
        while failing:
            await asyncio.sleep(0.01)
        await journal.save_callback(inbound("t", "late"))
        await waiting
    assert caplog.text.count("trying again") == 1


async def test_a_listener_ends_with_the_journal(path: Path) -> None:
    async with SQLiteJournal(path, poll=60) as journal:
        listener = journal.watch_callbacks()
        waiting = asyncio.ensure_future(anext(listener, None))
        await asyncio.sleep(0.05)
    assert await asyncio.wait_for(waiting, 30) is None


async def test_a_listener_hears_what_came_since_the_journal_was_opened(path: Path) -> None:
    async with SQLiteJournal(path) as journal:
        await expecting(journal, "before", "after")
        await journal.save_callback(inbound("before"))
    async with SQLiteJournal(path) as journal:
        await journal.save_callback(inbound("after"))
        async with aclosing(journal.watch_callbacks()) as listener:
            assert await anext(listener) == inbound("after")
