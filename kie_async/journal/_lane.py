"""A thread that works on one SQLite connection, in the order in which it is asked.

It is an ``Executor``, so that a loop waits for it as for any other. What is asked is a function of the connection.
Writes that wait together share one transaction, and so one fsync; nobody is told of a write before it is durable.
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, Future
from contextlib import suppress
from functools import partial
from queue import Empty, SimpleQueue
from typing import Any, TypeAlias

import attrs

from kie_async.errors import StorageError

Explain: TypeAlias = Callable[[Exception], StorageError]

FAILURES = (sqlite3.Error, UnicodeDecodeError)  # of a damaged file even the words of the error may be damaged

_MAX = 256  # writes in one transaction: enough for any rate, and others wait for milliseconds only


@attrs.frozen(eq=False)
class Work:
    """Something that was asked, and where its result goes."""

    function: Callable[[sqlite3.Connection], Any]
    future: Future[Any] = attrs.field(factory=Future)

    def refuse(self, error: Exception) -> None:
        """Let it end with an error."""
        self.future.set_exception(error)


Carry: TypeAlias = Callable[[sqlite3.Connection, Sequence[Work], Explain], None]


class Lane(Executor):
    """The thread. What was asked before ``close`` is done; what is cancelled before its turn is not.

    Args:
        name: of the thread.
        connect: opens the connection, in the thread; if it fails, everything asked fails with its error.
        carry: ``commit`` or ``answer``.
        explain: makes an error of SQLite one of ours.
        disconnect: closes the connection, in the thread.
    """

    def __init__(
        self,
        name: str,
        connect: Callable[[], sqlite3.Connection],
        carry: Carry,
        explain: Explain,
        disconnect: Callable[[sqlite3.Connection], None] = sqlite3.Connection.close,
    ) -> None:
        self._queue: SimpleQueue[Work | None] = SimpleQueue()
        self._connect = connect
        self._carry = carry
        self._explain = explain
        self._disconnect = disconnect
        self._open = True
        self._lock = threading.Lock()
        self._ended: Future[None] = Future()
        self._thread = threading.Thread(target=self._main, name=name, daemon=True)
        self._thread.start()

    @property
    def is_open(self) -> bool:
        """Whether it can be asked."""
        return self._open

    def submit(self, function: Callable[..., Any], /, *_arguments: Any, **_options: Any) -> Future[Any]:  # noqa: ANN401  # as Executor has it
        """Ask for a function of the connection.

        Raises:
            StorageError: it was closed.
        """
        work = Work(function)
        with self._lock:  # so that nothing comes after the end
            if not self._open:
                raise StorageError("the journal is closed: enter it with 'async with'", retryable=False)
            self._queue.put(work)
        return work.future

    def close(self) -> Future[None]:
        """Ask it to end after what was asked so far."""
        with self._lock:
            self._open = False
            self._queue.put(None)
        return self._ended

    def join(self) -> None:
        """Wait for the end of the thread, which follows at once on that of its work."""
        self._thread.join()

    def _main(self) -> None:
        groups = self._groups()
        try:
            connection = self._connect()
        except Exception as error:  # noqa: BLE001  # whatever it is, whoever asks is told
            self._refuse_all(groups, error)
        else:
            for group in groups:
                self._work(connection, group)
            with suppress(*FAILURES, OSError):  # all that was promised is on disk: closing only tidies up
                self._disconnect(connection)
        self._ended.set_result(None)

    def _work(self, connection: sqlite3.Connection, group: Sequence[Work]) -> None:
        try:
            self._carry(connection, group, self._explain)
        except Exception as error:  # noqa: BLE001  # a fault of ours: the thread goes on, or all would wait for ever
            for work in group:
                if not work.future.done():
                    work.refuse(error)

    def _refuse_all(self, groups: Iterator[list[Work]], error: Exception) -> None:
        for group in groups:
            for work in group:
                work.refuse(self._explain(error) if isinstance(error, FAILURES) else error)

    def _groups(self) -> Iterator[list[Work]]:
        """Give what waits together, until the end. What is given cannot be cancelled any more."""
        work = self._queue.get()
        while work is not None:
            group = [work]
            try:
                while len(group) < _MAX and (work := self._queue.get_nowait()) is not None:
                    group.append(work)
            except Empty:
                work = group[0]
            yield [each for each in group if each.future.set_running_or_notify_cancel()]
            if work is not None:
                work = self._queue.get()


def answer(connection: sqlite3.Connection, group: Sequence[Work], explain: Explain) -> None:
    """Read: each from one state of the database, and for itself."""
    for work in group:
        try:
            connection.execute("BEGIN")
            try:
                result = work.function(connection)
            finally:
                _roll_back(connection)
        except FAILURES as error:
            work.refuse(explain(error))
        except Exception as error:  # noqa: BLE001  # it is the caller's
            work.refuse(error)
        else:
            work.future.set_result(result)


def commit(
    connection: sqlite3.Connection,
    group: Sequence[Work],
    explain: Explain,
    written: Callable[[sqlite3.Connection], None] = lambda _connection: None,
) -> None:
    """Write: all in one transaction. If that fails, each in one of its own, so that none suffers for another.

    ``written`` is called after a transaction, before anybody is told of it; it raises nothing.
    """
    try:
        connection.execute("BEGIN IMMEDIATE")
    except FAILURES as error:  # nobody can write now
        for work in group:
            work.refuse(explain(error))
        return
    try:
        ends = [_step(connection, work) for work in group]
        connection.execute("COMMIT")
    except FAILURES as error:
        _roll_back(connection)
        if len(group) == 1:
            group[0].refuse(explain(error))
            return
        for work in group:
            commit(connection, [work], explain, written)
    else:
        written(connection)
        for end in ends:
            end()


def _step(connection: sqlite3.Connection, work: Work) -> Callable[[], None]:
    """Do one write of a transaction, and return what is to be told of it later."""
    connection.execute("SAVEPOINT step")
    try:
        result = work.function(connection)
    except FAILURES:
        raise
    except Exception as error:  # noqa: BLE001  # it is the caller's; the others go on
        connection.execute("ROLLBACK TO step")
        end = partial(work.refuse, error)
    else:
        end = partial(work.future.set_result, result)
    connection.execute("RELEASE step")
    return end


def _roll_back(connection: sqlite3.Connection) -> None:
    if connection.in_transaction:  # SQLite has rolled back by itself after some errors
        with suppress(*FAILURES):  # what is wrong shows itself again at the next BEGIN
            connection.execute("ROLLBACK")
