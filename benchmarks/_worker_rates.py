"""1, 2 and 4 workers without a quota, on an emulator and a PostgreSQL of this machine.

A worker has 100 jobs under way at most, so with one worker that limits the rate, and not the database. The rates vary
from run to run by a factor of two and more, for all of it shares the cores; connections and transactions do not.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Coroutine, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import LiteralString, TypeAlias

import attrs
import psycopg

from benchmarks._database import fresh, own_server
from benchmarks._report import table
from kie_async.emulator import Rules
from kie_async.journal import Job, State
from kie_async.testing import EmulatorHandle, serve_in_thread

_BACKENDS: LiteralString = """
SELECT count(*) FROM pg_stat_activity
WHERE datname = current_database() AND backend_type = 'client backend' AND pid <> pg_backend_pid()
"""
_TRANSACTIONS: LiteralString = "SELECT xact_commit FROM pg_stat_database WHERE datname = current_database()"
Plan: TypeAlias = Callable[[str, int], Coroutine[None, None, None]]
Read: TypeAlias = Callable[[str], Coroutine[None, None, list[Job]]]
_FLUSH = 1.5  # seconds until the statistics of a connection are seen by others
_SAMPLE = 0.2  # seconds between two counts of connections


@attrs.frozen
class Rate:
    """What so many workers did.

    Attributes:
        seconds: from the first submission to the last file.
        connections: the most at once, of all workers.
        transactions: of the database; nearly all are of one statement.
    """

    workers: int
    jobs: int
    seconds: float
    connections: int
    transactions: int

    def row(self) -> tuple[object, ...]:
        """The line as it is printed."""
        return (
            self.workers,
            f"{self.jobs / self.seconds:.1f}",
            f"{self.connections / self.workers:.1f}",
            f"{self.transactions / self.jobs:.0f}",
        )


def _ask(url: str, question: LiteralString) -> int:
    with psycopg.connect(url, autocommit=True) as connection:
        [(number,)] = connection.execute(question).fetchall()
        return int(number)


@contextmanager
def _started(number: int, emulator: EmulatorHandle, url: str, folder: str) -> Iterator[list[subprocess.Popen[bytes]]]:
    env = {**os.environ, "KIE_API_KEY": emulator.key, "KIE_BASE_URL": emulator.base_url}
    command = [sys.executable, "-m", "benchmarks._rate_process", url, folder]
    with ExitStack() as stack:
        workers = [stack.enter_context(subprocess.Popen(command, env=env)) for _ in range(number)]  # noqa: S603  # ours
        try:
            yield workers
        finally:
            for worker in workers:
                worker.kill()


def _measure(number: int, jobs: int, place: str, plan: Plan, read: Read) -> Rate:
    with (
        tempfile.TemporaryDirectory() as folder,
        serve_in_thread(speed=400.0, credits=1e6, goes_on=(0.2, 0.4), rules=Rules(quota=100_000)) as emulator,
    ):
        url = fresh(place)
        asyncio.run(plan(url, jobs))
        time.sleep(_FLUSH)
        before, most, samples = _ask(url, _TRANSACTIONS), 0, 0
        with _started(number, emulator, url, folder) as workers:
            while any(worker.poll() is None for worker in workers):
                most, samples = max(most, _ask(url, _BACKENDS)), samples + 1
                time.sleep(_SAMPLE)
        time.sleep(_FLUSH)
        transactions = _ask(url, _TRANSACTIONS) - before - samples
        done = asyncio.run(read(url))
        if any(job.state is not State.DELIVERED for job in done) or len(list(Path(folder).glob("*.mp3"))) != 2 * jobs:
            raise RuntimeError("not all was delivered")
        return Rate(number, jobs, _seconds(done), most, transactions)


def _seconds(jobs: list[Job]) -> float:
    first = min(job.moments[State.INTENT.value] for job in jobs)
    return max(job.moments[State.DELIVERED.value] for job in jobs) - first


def show_rates(jobs: int, store: str, plan: Plan, read: Read) -> None:
    """Measure 1, 2 and 4 workers, and print a table."""
    with own_server(store) as place:
        rates = [_measure(number, jobs, place, plan, read) for number in (1, 2, 4)]
    print(f"{jobs} jobs without a quota, on {os.cpu_count()} cores that emulator, database and workers share")
    table(
        ("workers", "jobs per second", "connections per worker", "transactions per job"), [rate.row() for rate in rates]
    )
