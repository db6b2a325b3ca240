"""The journal in PostgreSQL: the contract of all journals, and what is particular to a server that comes and goes."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, aclosing, contextmanager, suppress
from typing import Any
from zlib import crc32

import anyio
import anyio.lowlevel
import attrs
import psycopg
import pytest
from hypothesis import settings
from journal_contract import JournalContract, JournalMachine, collect, counted, counted_for, expecting, inbound, planned
from postgres import Server, execute, new_database
from psycopg_pool import AsyncConnectionPool

from kie_async.errors import BudgetError, ConflictError, SettingsError, StorageError
from kie_async.journal import InboundCallback, Journal, Payer, PostgresJournal, State

pytestmark = [pytest.mark.anyio, pytest.mark.real_time]

OTHERS = "FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
CUT = f"SELECT pg_terminate_backend(pid) {OTHERS}"


@pytest.fixture
async def journal(database_url: str) -> AsyncGenerator[PostgresJournal, None]:
    async with PostgresJournal(database_url) as journal:
        yield journal


class TestContract(JournalContract):
    @pytest.fixture
    def make(self, database_url: str) -> Callable[[], Journal]:
        return lambda: PostgresJournal(database_url)

    @pytest.fixture
    def lose(self, database_url: str) -> Callable[[], None]:
        def lose() -> None:
            execute(database_url, "DROP SCHEMA public CASCADE; CREATE SCHEMA public")

        return lose


class _Machine(JournalMachine):
    server = ""

    def __init__(self) -> None:
        super().__init__()
        self.url = new_database(self.server)

    def make(self) -> Journal:
        return PostgresJournal(self.url)


@pytest.fixture(scope="module", autouse=True)
def _server_of_the_machine(postgres_url: str) -> Iterator[None]:
    _Machine.server = postgres_url
    yield
    _Machine.server = ""


TestMachine = _Machine.TestCase
TestMachine.settings = settings(max_examples=10, stateful_step_count=20)


# ---------------------------------------------------------------- opening


async def test_many_open_a_new_database_at_once(database_url: str) -> None:
    async with AsyncExitStack() as stack:
        journals = [PostgresJournal(database_url) for _ in range(8)]
        await asyncio.gather(*map(stack.enter_async_context, journals))
        assert await journals[0].add([planned("a")]) == 1
        assert await journals[7].get("a") is not None


@pytest.mark.parametrize("version", [1, 99])
async def test_another_version_is_not_touched(database_url: str, version: int) -> None:
    async with PostgresJournal(database_url):
        execute(database_url, "UPDATE kie_schema SET version = %s", (version,))
    with pytest.raises(StorageError, match=f"version {version}.*finish its jobs with the kie_async that") as caught:
        async with PostgresJournal(database_url):
            pass
    assert not caught.value.retryable


async def test_it_does_not_open_where_tables_are_missing(database_url: str) -> None:
    async with PostgresJournal(database_url):
        execute(database_url, "DROP TABLE kie_callback")
    with pytest.raises(StorageError, match="does not exist"):
        async with PostgresJournal(database_url):
            pass


@pytest.mark.parametrize(
    "address",
    [
        "postgresql://me:SESAME@home@host/name",
        "postgresql://me:SESAME/x@host/name",
        "postgresql://me:12/SESAME@host/name",
        "postgresql://me:SESAME%zz@host/name",
        "host=h password='SESAME",
        "SESAME",
    ],
)
async def test_an_address_that_cannot_be_read_is_not_shown(address: str) -> None:
    with pytest.raises(SettingsError) as caught:
        PostgresJournal(address)
    shown = "".join(traceback.TracebackException.from_exception(caught.value).format())
    assert "SESAME" not in shown


def _with_password(url: str) -> str:
    return url.replace("postgres:@", "postgres:SESAME@")


async def test_the_password_is_never_shown(server: Server, frail_url: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    journal, second = (PostgresJournal(_with_password(frail_url), patience=0.3) for _ in range(2))
    errors: list[BaseException] = []
    async with journal:
        server.stop()
        with pytest.raises(StorageError) as caught:
            await journal.get("a")
        errors.append(caught.value)
        with pytest.raises(StorageError) as caught:
            await second.__aenter__()
        errors.append(caught.value)
    shown = [repr(journal), caplog.text]
    for error in errors:
        shown += traceback.TracebackException.from_exception(error, capture_locals=True).format()
    assert "SESAME" not in "".join(shown)
    assert "the database kie_test" in repr(journal)


async def test_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "psycopg", None)
    monkeypatch.delitem(sys.modules, "kie_async.journal._postgres", raising=False)
    with pytest.raises(SettingsError, match=r'pip install "kie_async\[cluster\]"'):
        PostgresJournal("postgresql://host/name")


NOTE_COMMITS = """
CREATE TABLE noted (setting text);
CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
    INSERT INTO noted VALUES (current_setting('synchronous_commit'));
    RETURN NEW;
END $$;
CREATE TRIGGER note BEFORE INSERT ON kie_job FOR EACH ROW EXECUTE FUNCTION note();
"""


async def test_a_commit_waits_for_the_disk(database_url: str) -> None:
    setting = "DO $$ BEGIN EXECUTE format('ALTER DATABASE %I SET synchronous_commit = off', current_database()); END $$"
    execute(database_url, setting)
    assert execute(database_url, "SHOW synchronous_commit") == [("off",)]
    async with PostgresJournal(database_url) as journal:
        execute(database_url, NOTE_COMMITS)
        await journal.add([planned("a")])
    assert execute(database_url, "SELECT setting FROM noted") == [("on",)]


# ---------------------------------------------------------------- a write that was cut off


def lose_connections(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Lose each connection after its statement was done, once for each statement; give those."""
    lost: list[Any] = []

    async def lose(cursor: psycopg.AsyncClientCursor[Any], statement: Any) -> None:
        if statement not in lost:
            lost.append(statement)
            await cursor.connection.close()
            raise psycopg.OperationalError("the connection is lost")

    after_each_statement(monkeypatch, lose)
    return lost


def after_each_statement(
    monkeypatch: pytest.MonkeyPatch, act: Callable[[psycopg.AsyncClientCursor[Any], Any], Awaitable[None]]
) -> None:
    execute = psycopg.AsyncClientCursor.execute

    async def execute_and_act(cursor: Any, statement: Any, *values: Any, **options: Any) -> Any:
        result = await execute(cursor, statement, *values, **options)
        await act(cursor, statement)
        return result

    monkeypatch.setattr(psycopg.AsyncClientCursor, "execute", execute_and_act)


@pytest.mark.parametrize("by_scope", [False, True])
async def test_a_cancellation_is_not_lost_while_a_connection_is_handed_over(
    journal: PostgresJournal, *, by_scope: bool
) -> None:
    await asyncio.gather(*(journal.get("a") for _ in range(2)))  # both connections are there now
    scope, reached = anyio.CancelScope(), []

    async def read() -> None:
        with scope:
            await journal.get("a")
            await anyio.lowlevel.checkpoint()  # the latest moment at which a scope that is cancelled ends
            reached.append(True)

    def cancel(_first: object) -> None:
        if not waiting.cancelling():
            (scope if by_scope else waiting).cancel()

    first = [asyncio.create_task(journal.get("a")) for _ in range(2)]
    waiting = asyncio.create_task(read())
    for task in first:
        task.add_done_callback(cancel)  # at once, when it has given its connection to the one that waits
    await asyncio.wait([waiting])
    assert not reached
    assert waiting.cancelled() is not by_scope
    await asyncio.gather(*first, *(journal.get("a") for _ in range(4)))  # none of the connections is lost


async def test_what_was_done_is_not_done_twice(journal: PostgresJournal, monkeypatch: pytest.MonkeyPatch) -> None:
    lost = lose_connections(monkeypatch)
    assert await journal.add([planned("a", batch="x"), planned("b")]) == 2
    assert await journal.add([planned("a"), planned("c")]) == 1
    assert (await journal.intend("a", "token")).attempt == 1
    assert (await journal.move("a", State.SUBMITTED, token="token", task_id="task")).state is State.SUBMITTED
    assert len(await journal.attempts("a")) == 1
    assert await counted_for(journal, "x") == await journal.spent("x") == 12
    assert await journal.save_callback(inbound("token"))
    assert await journal.callbacks_for(token="token") == [inbound("token")]
    await journal.lease("x", 60)
    assert len(lost) > 8


async def test_a_move_lost_with_its_connection_is_still_refused_to_others(
    journal: PostgresJournal, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    await journal.add([planned("a")])
    async with PostgresJournal(database_url) as other:
        lose_connections(monkeypatch)
        ends = await asyncio.gather(journal.intend("a", "1"), other.intend("a", "2"), return_exceptions=True)
    assert sorted(type(end).__name__ for end in ends) == ["ConflictError", "Job"]


async def test_a_job_written_by_another_meanwhile_is_read_again(
    journal: PostgresJournal, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    await journal.add([planned("a")])
    met: list[Any] = []

    async def meet(_cursor: Any, statement: Any) -> None:
        if not met:
            met.append(statement)
            execute(database_url, "UPDATE kie_job SET write_id = 'by another'")

    after_each_statement(monkeypatch, meet)
    assert (await journal.intend("a", "token")).state is State.INTENT
    assert await counted(journal, Payer()) == 12


async def test_the_first_cap_of_a_batch_holds_for_what_is_reserved_meanwhile(
    journal: PostgresJournal, database_url: str
) -> None:
    await journal.add([planned("a", batch="x"), planned("b", batch="x")])
    await journal.intend("a", "a", payer=Payer())
    await journal.caps.check("x")  # it has none
    execute(database_url, "DELETE FROM kie_cap")
    waiting = "SELECT count(*) > 0 FROM pg_locks WHERE locktype = 'transactionid' AND NOT granted"
    refused: list[BudgetError] = []

    async def reserve() -> None:
        with pytest.raises(BudgetError) as caught:
            await journal.intend("b", "b", payer=Payer())
        refused.append(caught.value)

    async with await psycopg.AsyncConnection.connect(database_url) as setting, anyio.create_task_group() as group:
        await setting.execute("INSERT INTO kie_cap (name, max_credits) VALUES ('batch:x', 12)")
        group.start_soon(reserve)
        with anyio.fail_after(20):
            while await (await setting.execute(waiting)).fetchone() != (True,):
                await anyio.sleep(0.02)
        await setting.commit()
    assert len(refused) == 1
    assert await counted_for(journal, "x") == 12


async def test_a_reservation_reads_a_few_rows_however_many_jobs_there_are(database_url: str) -> None:
    payer = Payer(account="ours", max_credits=1e9)
    async with PostgresJournal(database_url) as journal:
        await journal.caps.set("x", 1e9)
        await journal.add(planned(f"{number}", batch="x") for number in range(4))
        await journal.intend("0", "0", payer=payer)
    many = """
        INSERT INTO kie_job (key, batch, state, account, cost, changed_at, document, checksum, write_id)
        SELECT state || number, 'x', state, account, cost, 0, '', 0, '' FROM generate_series(1, 5000) AS number,
        (VALUES ('planned', '', 0), ('delivered', 'ours', 12)) AS kinds (state, account, cost)
    """
    execute(database_url, many)
    execute(
        database_url, "INSERT INTO kie_attempt SELECT key, key, 1, key, '', 1, 0 FROM kie_job WHERE state = 'delivered'"
    )
    execute(database_url, "VACUUM ANALYZE")

    async def read(*calls: Callable[[Journal], Awaitable[object]]) -> int:
        """How many rows of jobs and attempts are read from tables and indexes, to open a journal and for the calls."""
        async with PostgresJournal(database_url) as journal:
            for call in calls:
                await call(journal)
        with anyio.fail_after(20):
            while execute(database_url, f"SELECT pid {OTHERS} AND backend_type = 'client backend'"):
                await asyncio.sleep(0.01)  # a server process that ends reports what it has read
        counts = """
            SELECT (SELECT sum(seq_tup_read) FROM pg_stat_user_tables WHERE relname IN ('kie_job', 'kie_attempt')),
                (SELECT sum(idx_tup_read) FROM pg_stat_user_indexes WHERE relname IN ('kie_job', 'kie_attempt'))
        """
        [(from_tables, from_indexes)] = execute(database_url, counts)
        return int(from_tables + from_indexes)

    before = await read()
    since = attrs.evolve(payer, since=time.time() - 1000)
    after = await read(
        lambda journal: journal.caps.check("x", payer),
        lambda journal: journal.caps.check("x", since),
        lambda journal: journal.caps.full(),
        lambda journal: journal.intend("1", "1", payer=payer),
        lambda journal: journal.intend("2", "2", payer=since),
        lambda journal: journal.move("1", State.SUBMITTED, task_id="task"),
    )
    assert after - before < 500


# ---------------------------------------------------------------- a server that goes away


async def test_it_goes_on_when_the_server_is_back(server: Server, frail_url: str) -> None:
    async with PostgresJournal(frail_url) as journal:
        await journal.add(planned(f"{number}") for number in range(100))
        server.stop()
        calls = [asyncio.ensure_future(journal.intend(f"{number}", f"{number}")) for number in range(100)]
        await asyncio.sleep(1)
        assert not any(call.done() for call in calls)
        server.start()
        assert {job.state for job in await asyncio.gather(*calls)} == {State.INTENT}
        assert (await journal.counts())[State.INTENT] == 100


async def test_a_server_restarted_amid_writes(server: Server, frail_url: str) -> None:
    async with PostgresJournal(frail_url, patience=20) as journal:
        await journal.add(planned(f"{number}") for number in range(300))

        async def submit(number: int) -> None:
            await journal.intend(f"{number}", f"token-{number}")
            await journal.move(f"{number}", State.SUBMITTED, token=f"token-{number}", task_id=f"task-{number}")

        calls = [asyncio.ensure_future(submit(number)) for number in range(300)]
        await asyncio.wait(calls, return_when=asyncio.FIRST_COMPLETED)
        server.stop()
        assert not all(call.done() for call in calls)
        server.start()
        await asyncio.gather(*calls)
        assert (await journal.counts())[State.SUBMITTED] == 300
        assert execute(frail_url, "SELECT count(*), count(DISTINCT task_id) FROM kie_attempt") == [(300, 300)]


async def test_patience_ends(server: Server, frail_url: str) -> None:
    async with PostgresJournal(frail_url, patience=0.5) as journal:
        server.stop()
        started = time.monotonic()
        with pytest.raises(StorageError) as caught:
            await journal.add([planned("a")])
        assert time.monotonic() - started < 5
        assert caught.value.retryable
        server.start()
        assert await journal.add([planned("a")]) == 1


async def test_a_connection_that_hangs_is_given_up(server: Server, frail_url: str) -> None:
    async with PostgresJournal(frail_url, patience=0.5) as journal:
        await journal.get("a")
        with stopped(*backends(frail_url)):
            assert await journal.get("a") is None
            with stopped(server.pid, *backends(frail_url)), pytest.raises(StorageError) as caught:
                await journal.get("a")
            assert caught.value.retryable


def backends(url: str) -> list[int]:
    return [pid for [pid] in execute(url, f"SELECT pid {OTHERS}")]


@contextmanager
def stopped(*pids: int) -> Iterator[None]:
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in pids:
            with suppress(ProcessLookupError):  # asked to end while it was stopped
                os.kill(pid, signal.SIGCONT)


async def test_a_refusal_is_not_tried_again(journal: PostgresJournal, database_url: str) -> None:
    execute(database_url, "DROP TABLE kie_lease")
    with pytest.raises(StorageError, match="does not exist") as caught:
        await journal.lease("x", 1)
    assert not caught.value.retryable


async def test_the_lease_of_a_process_that_is_gone_is_taken_over(database_url: str) -> None:
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", "")
    await process.wait()
    dead = PostgresJournal(database_url).process_id.replace(f":{os.getpid()}:", f":{process.pid}:")
    async with PostgresJournal(database_url, process_id=dead) as gone, PostgresJournal(database_url) as journal:
        await gone.lease("x", 60)
        await journal.lease("x", 60)
        with pytest.raises(ConflictError, match=journal.process_id):
            await gone.lease("x", 60)


async def test_a_fork_cannot_use_it(journal: PostgresJournal, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(os, "getpid", lambda: -1)
        with pytest.raises(StorageError, match="process"):
            await journal.get("a")
    assert await journal.get("a") is None


async def test_a_fork_leaves_the_connections_alone(database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pools: list[AsyncConnectionPool[Any]] = []
    opened = AsyncConnectionPool.open

    async def note(pool: Any, *arguments: Any) -> None:
        pools.append(pool)
        await opened(pool, *arguments)

    monkeypatch.setattr(AsyncConnectionPool, "open", note)
    journal = await PostgresJournal(database_url).__aenter__()
    with monkeypatch.context() as patched:
        patched.setattr(os, "getpid", lambda: -1)
        await journal.__aexit__(None, None, None)
    [pool] = pools
    assert not pool.closed
    await pool.close()


async def test_damage_is_said(journal: PostgresJournal, database_url: str) -> None:
    await journal.add([planned("a")])
    execute(database_url, "UPDATE kie_job SET document = '{}'")
    with pytest.raises(StorageError, match="damaged") as caught:
        await journal.get("a")
    assert not caught.value.retryable


async def test_a_lease_that_ran_out_meanwhile_has_no_holder(journal: PostgresJournal, database_url: str) -> None:
    execute(database_url, "CREATE RULE lost AS ON INSERT TO kie_lease DO INSTEAD NOTHING")
    with pytest.raises(ConflictError, match="another process"):
        await journal.lease("x", 1)


# ---------------------------------------------------------------- callbacks

PUBLISH = """
import asyncio, sys, time
from kie_async.journal import InboundCallback, PostgresJournal

async def main(url, many, pause):
    async with PostgresJournal(url) as journal:
        for number in range(int(many)):
            callback = InboundCallback(token="t", task_id=str(number), stage="text", at=time.time())
            assert await journal.save_callback(callback)
            await asyncio.sleep(float(pause))

asyncio.run(main(*sys.argv[1:]))
"""


def publish(url: str, many: int, pause: float) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", PUBLISH, url, str(many), str(pause)])  # noqa: S603  # our own code


async def gather_ids(listener: AsyncGenerator[InboundCallback, None], many: int) -> tuple[set[str], list[float]]:
    ids: set[str] = set()
    delays: list[float] = []
    with anyio.fail_after(120):
        while len(ids) < many:
            callback = await anext(listener)
            ids.add(callback.task_id)
            delays.append(time.time() - callback.at)
    return ids, delays


async def test_another_process_wakes_at_once(journal: PostgresJournal, database_url: str) -> None:
    await expecting(journal, "t")
    async with aclosing(journal.watch_callbacks()) as listener:
        with publish(database_url, 100, 0.01) as publisher:
            ids, delays = await gather_ids(listener, 100)
        assert publisher.returncode == 0
    assert ids == {str(number) for number in range(100)}
    assert sorted(delays)[len(delays) // 2] < 0.1


async def test_no_callback_is_lost_when_connections_are(journal: PostgresJournal, database_url: str) -> None:
    await expecting(journal, "t")
    async with aclosing(journal.watch_callbacks()) as listener, anyio.create_task_group() as group:

        async def cut() -> None:
            for _ in range(10):  # on a busy machine, what takes longer than the interval would never end
                await anyio.sleep(0.4)
                await anyio.to_thread.run_sync(execute, database_url, CUT)

        with publish(database_url, 500, 0.002) as publisher:
            early, _ = await gather_ids(listener, 1)  # it is open: what cannot be opened is an error
            group.start_soon(cut)
            late, _ = await gather_ids(listener, 499)
        assert publisher.returncode == 0
        group.cancel_scope.cancel()
    assert len(early | late) == 500


async def test_no_callback_is_lost_when_the_server_restarts(server: Server, frail_url: str) -> None:
    async with PostgresJournal(frail_url) as journal, aclosing(journal.watch_callbacks()) as listener:
        await expecting(journal, "t")
        with publish(frail_url, 500, 0.002) as publisher:
            early, _ = await gather_ids(listener, 100)
            await anyio.to_thread.run_sync(server.stop)
            await anyio.to_thread.run_sync(server.start)
            late, _ = await gather_ids(listener, 500 - len(early))
        assert publisher.returncode == 0
    assert len(early | late) == 500


async def test_a_listener_waits_for_a_store_that_cannot_be_read(
    database_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with PostgresJournal(database_url) as journal, aclosing(journal.watch_callbacks()) as listener:
        await expecting(journal, "t")
        execute(database_url, "ALTER TABLE kie_callback RENAME TO elsewhere")
        waiting = asyncio.ensure_future(collect(listener, [inbound("t")]))
        with anyio.fail_after(20):
            while "cannot be read now" not in caplog.text:
                await asyncio.sleep(0.01)
        execute(database_url, "ALTER TABLE elsewhere RENAME TO kie_callback")
        await journal.save_callback(inbound("t"))
        await waiting


async def test_a_callback_whose_transaction_ends_late_is_heard(journal: PostgresJournal, database_url: str) -> None:
    """Positions come in the order of commits: those that come later wait for it."""
    await expecting(journal, "t")
    columns = ("t", "slow", "text", 1.5)
    row = (*columns, crc32("\0".join(map(str, columns)).encode()))
    insert = "INSERT INTO kie_callback (token, task_id, stage, received_at, checksum) VALUES (%s, %s, %s, %s, %s)"
    async with aclosing(journal.watch_callbacks()) as listener:
        async with await psycopg.AsyncConnection.connect(database_url) as slow:
            await slow.execute(insert, row)
            late = [asyncio.ensure_future(journal.save_callback(inbound("t", f"{number}"))) for number in range(3)]
            await asyncio.sleep(0.2)
            assert not any(each.done() for each in late)
        await asyncio.gather(*late)
        found = [(await anext(listener)).task_id for _ in range(4)]
        assert found[0] == "slow"
        assert sorted(found[1:]) == ["0", "1", "2"]
