"""The thread that works on a connection: order, grouping, errors, cancelling, and its end."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from kie_async.errors import ConflictError, StorageError
from kie_async.journal._lane import Carry, Lane, answer, commit

Function = Callable[[sqlite3.Connection], Any]


class Log(list[str]):
    """The statements that were run."""

    def connect(self) -> sqlite3.Connection:
        connection = sqlite3.connect(":memory:", isolation_level=None)
        connection.execute("CREATE TABLE t (n INTEGER PRIMARY KEY)")
        connection.set_trace_callback(self.append)
        return connection


def explain(error: Exception) -> StorageError:
    return StorageError(f"explained: {error}")


@pytest.fixture
def log() -> Log:
    return Log()


@pytest.fixture
def start(log: Log) -> Iterator[Callable[[Carry], Lane]]:
    lanes: list[Lane] = []

    def begin(carry: Carry) -> Lane:
        lanes.append(Lane("a lane", log.connect, carry, explain))
        return lanes[-1]

    yield begin
    for lane in lanes:
        lane.close()
        lane.join()
    assert "a lane" not in {thread.name for thread in threading.enumerate()}


@pytest.fixture
def writer(start: Callable[[Carry], Lane]) -> Lane:
    return start(commit)


def put(number: int) -> Function:
    return lambda connection: connection.execute("INSERT INTO t VALUES (?)", (number,)).rowcount


def put_then_fail(number: int, error: Exception) -> Function:
    def function(connection: sqlite3.Connection) -> None:
        put(number)(connection)
        raise error

    return function


def numbers(connection: sqlite3.Connection) -> list[int]:
    return [number for (number,) in connection.execute("SELECT n FROM t ORDER BY n")]


def hold(lane: Lane) -> threading.Event:
    """Keep a lane busy until the event is set."""
    begun, gate = threading.Event(), threading.Event()

    def wait(_connection: sqlite3.Connection) -> None:
        begun.set()
        gate.wait()

    lane.submit(wait)
    begun.wait()
    return gate


def test_what_waits_together_shares_a_transaction(writer: Lane, log: Log) -> None:
    gate = hold(writer)
    futures = [writer.submit(put(number)) for number in range(20)]
    assert not any(future.done() for future in futures)
    gate.set()
    assert [future.result() for future in futures] == [1] * 20
    assert log.count("BEGIN IMMEDIATE") == log.count("COMMIT") == 2


def test_a_group_has_an_end(writer: Lane, log: Log) -> None:
    gate = hold(writer)
    futures = [writer.submit(put(number)) for number in range(300)]
    gate.set()
    assert [future.result() for future in futures] == [1] * 300
    assert log.count("COMMIT") == 3


def test_nobody_is_told_before_the_commit(writer: Lane, log: Log) -> None:
    writer.submit(put(1)).add_done_callback(lambda _future: log.append("emitted"))
    writer.submit(numbers).result()
    assert log.index("COMMIT") < log.index("emitted")


@pytest.mark.parametrize("error", [ConflictError("no"), ValueError("no")])
def test_a_refused_write_harms_no_other(writer: Lane, error: Exception, log: Log) -> None:
    gate = hold(writer)
    futures = [writer.submit(put(1)), writer.submit(put_then_fail(2, error)), writer.submit(put(3))]
    gate.set()
    assert futures[1].exception() is error
    assert writer.submit(numbers).result() == [1, 3]
    assert log.count("COMMIT") == 3


def test_a_write_that_sqlite_refuses_harms_no_other(writer: Lane) -> None:
    gate = hold(writer)
    failing = put_then_fail(2, sqlite3.OperationalError("disk"))
    futures = [writer.submit(function) for function in (put(1), failing, put(3), failing)]
    gate.set()
    assert futures[0].result() == futures[2].result() == 1
    errors = [futures[1].exception(), futures[3].exception()]
    assert [str(error) for error in errors] == ["explained: disk"] * 2
    assert errors[0] is not errors[1]
    assert writer.submit(numbers).result() == [1, 3]


def test_if_nobody_can_write_all_are_told(tmp_path: Path) -> None:
    connect = partial(sqlite3.connect, tmp_path / "file.db", timeout=0, isolation_level=None)
    lane = Lane("a lane", connect, commit, explain)
    with closing(connect()) as other:
        other.execute("BEGIN IMMEDIATE")
        futures = [lane.submit(lambda _connection: 1) for _ in range(3)]
        assert [str(future.exception()) for future in futures] == ["explained: database is locked"] * 3
    assert lane.submit(lambda _connection: 1).result() == 1
    lane.close().result()
    lane.join()


def test_reads_stand_each_for_itself(start: Callable[[Carry], Lane], log: Log) -> None:
    reader = start(answer)
    gate = hold(reader)
    error = KeyError("x")
    futures = [reader.submit(function) for function in (numbers, put_then_fail(1, error), put(2), numbers)]
    broken = reader.submit(put_then_fail(3, sqlite3.DatabaseError("damaged")))
    gate.set()
    assert [futures[0].result(), futures[3].result()] == [[], []]  # what a read writes is taken back
    assert futures[1].exception() is error
    assert str(broken.exception()) == "explained: damaged"
    assert "COMMIT" not in log


def test_what_is_cancelled_before_its_turn_is_not_done(writer: Lane) -> None:
    gate = hold(writer)
    futures = [writer.submit(put(number)) for number in range(3)]
    assert futures[1].cancel()
    gate.set()
    assert writer.submit(numbers).result() == [0, 2]


def test_what_has_begun_cannot_be_cancelled(writer: Lane) -> None:
    begun, gate = threading.Event(), threading.Event()

    def wait(connection: sqlite3.Connection) -> int:
        begun.set()
        gate.wait()
        return int(put(1)(connection))

    future = writer.submit(wait)
    begun.wait()
    assert not future.cancel()
    gate.set()
    assert future.result() == 1


def test_what_was_asked_before_the_end_is_done(writer: Lane) -> None:
    gate = hold(writer)
    futures = [writer.submit(put(number)) for number in range(3)]
    ended = writer.close()
    assert not writer.is_open
    with pytest.raises(StorageError, match="closed"):
        writer.submit(numbers)
    assert not ended.done()
    gate.set()
    ended.result()
    assert [future.result() for future in futures] == [1, 1, 1]


def test_if_it_cannot_connect_all_are_told() -> None:
    begun, gate = threading.Event(), threading.Event()

    def connect(error: Exception) -> sqlite3.Connection:
        begun.set()
        gate.wait()
        raise error

    for error, words in ((sqlite3.OperationalError("no"), "explained: no"), (OSError("odd"), "odd")):
        lane = Lane("a lane", partial(connect, error), commit, explain)
        futures = [lane.submit(numbers) for _ in range(3)]
        gate.set()
        assert [str(future.exception()) for future in futures] == [words] * 3
        assert str(lane.submit(numbers).exception()) == words
        lane.close().result()
        lane.join()


def test_a_loop_waits_for_it(writer: Lane) -> None:
    async def main() -> list[Any]:
        loop = asyncio.get_running_loop()
        calls: list[Any] = [*map(put, range(3)), numbers]
        return await asyncio.gather(*(loop.run_in_executor(writer, call) for call in calls))

    assert asyncio.run(main()) == [1, 1, 1, [0, 1, 2]]


def test_a_fault_of_ours_is_told_and_ends_nothing(start: Callable[[Carry], Lane]) -> None:
    def carry(connection: sqlite3.Connection, group: Any, explain: Any) -> None:
        answer(connection, group, explain)
        raise RuntimeError("a fault")

    lane = start(carry)
    assert lane.submit(lambda _connection: 1).result(10) == 1  # it was told already
    lane.close()
    lane.join()

    def fail(*_arguments: Any) -> None:
        raise RuntimeError("a fault")

    lane = start(fail)
    for _ in range(2):
        with pytest.raises(RuntimeError, match="a fault"):
            lane.submit(lambda _connection: 1).result(10)
