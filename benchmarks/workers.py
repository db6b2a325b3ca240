"""Three workers on one shared database, one killed, one stopped beyond its lease, while the emulator counts.

Every job must be delivered once and charged once, no submission may break the quota, and the quota must be used.
Before that, 1, 2 and 4 workers without a quota: jobs per second, connections of a worker, transactions of a job.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import attrs

import kie_async as kie
from benchmarks._database import fresh, own_server
from benchmarks._worker_rates import show_rates
from kie_async.batch import enqueue
from kie_async.emulator import ReceivedRequest
from kie_async.emulator._state import most_in_window
from kie_async.journal import Job, State, open_journal
from kie_async.testing import EmulatorHandle, serve_in_thread

WORKERS = 3
SPEED = 40.0
AT_ONCE = 40  # jobs of one worker, so that a dead one leaves few behind
PAUSE = 40.0  # seconds for which one is stopped: its lease is 30
QUOTA, WINDOW = 20, 10.0


@attrs.frozen
class Promise:
    """One line of the table."""

    what: str
    found: object
    kept: bool

    def row(self) -> str:
        """The line as it is printed."""
        return f"{'kept' if self.kept else 'BROKEN':6}  {self.what:42}  {self.found}"


@attrs.frozen
class Site:
    """Where the workers work.

    Attributes:
        directory: of the results, and of what the workers say.
    """

    emulator: EmulatorHandle
    store: str
    directory: Path

    def start(self, number: int) -> subprocess.Popen[bytes]:
        """Start one worker process: the command, as on a machine of its own."""
        words = ["worker", "--journal", self.store, "--out", str(self.directory), "--until-done"]
        environment = {**os.environ, "KIE_API_KEY": self.emulator.key, "KIE_BASE_URL": self.emulator.base_url}
        with (self.directory / f"worker{number}.log").open("wb") as log:
            return subprocess.Popen(  # noqa: S603  # ourselves
                [sys.executable, "-m", "kie_async", *words, "--at-once", str(AT_ONCE), "--jsonl"],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    def wait_for(self, submissions: int, workers: list[subprocess.Popen[bytes]]) -> None:
        """Wait until so many were accepted."""
        while len(self.emulator.ledger) < submissions:
            if any(worker.poll() not in {None, -signal.SIGKILL} for worker in workers):
                raise RuntimeError("a worker ended too early")
            time.sleep(0.2)


@contextmanager
def site(store: str) -> Iterator[Site]:
    """A fresh emulator, database and directory."""
    with (
        tempfile.TemporaryDirectory() as folder,
        own_server(store) as place,
        serve_in_thread(speed=SPEED, credits=1e6, goes_on=(0.5, 1.0)) as emulator,
    ):
        yield Site(emulator, fresh(place), Path(folder))


async def plan(store: str, jobs: int) -> None:
    """Put the jobs into the journal."""
    fields: dict[str, Any] = {"model": "V5", "style": "s", "prompt": "p", "continue_at": 1.0}
    async with open_journal(store) as journal:
        titles = (f"job{number}" for number in range(jobs))
        await enqueue(
            journal, [Job(key=title, request=kie.ExtendRequest("a1", title=title, **fields)) for title in titles], "all"
        )


def run(place: Site, jobs: int, pause: float, chance: random.Random) -> None:
    """Let the workers work: one is killed after a third of the jobs or so, another stopped after half of them."""
    workers = [place.start(number) for number in range(WORKERS)]
    try:
        place.wait_for(jobs // 3, workers)
        time.sleep(chance.uniform(0, WINDOW))
        workers[0].kill()
        place.wait_for(jobs // 2, workers)
        time.sleep(chance.uniform(0, WINDOW))
        workers[1].send_signal(signal.SIGSTOP)
        time.sleep(pause)
        workers[1].send_signal(signal.SIGCONT)
        for worker in workers[1:]:
            if code := worker.wait(60.0 + jobs):
                raise RuntimeError(f"a worker ended with {code}")
    finally:
        for number, worker in enumerate(workers):
            worker.kill()
            worker.wait()
            said = (place.directory / f"worker{number}.log").read_text().splitlines()
            print(*(line for line in said if not line.startswith("{")), sep="\n", file=sys.stderr)


def promises(place: Site, jobs: list[Job], count: int) -> list[Promise]:
    """Compare what the emulator saw with the journal and the files."""
    charges = Counter(charge.body["title"] for charge in place.emulator.ledger)
    lines = Counter(json.loads(line)["key"] for line in (place.directory / "results.jsonl").read_text().splitlines())
    states = Counter(job.state.value for job in jobs)
    whole = sum(
        len(job.files) == 2 and all((place.directory / name).stat().st_size for name in job.files) for job in jobs
    )
    arrivals = place.emulator.arrivals
    most = most_in_window((arrival.at for arrival in arrivals), WINDOW)
    refused = sum(not arrival.admitted for arrival in arrivals)
    taken = arrivals[-1].at - arrivals[0].at
    used = (count / QUOTA - 1) * WINDOW / taken
    return [
        Promise("jobs delivered", dict(states), states == {State.DELIVERED.value: count}),
        Promise("jobs with both tracks", whole, whole == count),
        Promise("tracks on disk", (tracks := len([*place.directory.glob("*.kie.json")])), tracks == 2 * count),
        Promise("jobs with one line in results.jsonl", len(lines), lines == dict.fromkeys(charges, 1)),
        Promise("jobs charged once", len(charges), len(charges) == count == charges.total()),
        Promise("submissions in any 10 s", most, most <= QUOTA),
        Promise("submissions refused for the quota", refused, refused == 0),
        Promise("of the quota used", f"{used:.1%} ({taken:.1f} s)", used >= 0.95),
    ]


def _turns(arrivals: list[ReceivedRequest]) -> list[int]:
    turns = Counter(int((arrival.at - arrivals[0].at) // WINDOW) for arrival in arrivals)
    return [turns[turn] for turn in range(max(turns) + 1)]


async def read_jobs(store: str) -> list[Job]:
    """Read all jobs of the journal."""
    async with open_journal(store) as journal:
        return [job for _, job in await journal.page(limit=1_000_000)]


def main(arguments: list[str]) -> int:
    """Run the workers and print the table; 1 if a promise is broken."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks workers", description=__doc__)
    parser.add_argument("--jobs", type=int, default=300)
    parser.add_argument("--pause", type=float, default=PAUSE)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--store", default="", help="a PostgreSQL URL, emptied first; by default a server of its own")
    parser.add_argument("--rate-jobs", type=int, default=200, help="of each run without a quota; 0: leave them out")
    options = parser.parse_args(arguments)
    if options.rate_jobs:
        show_rates(options.rate_jobs, options.store, plan, read_jobs)
    with site(options.store) as place:
        asyncio.run(plan(place.store, options.jobs))
        started = time.monotonic()
        run(place, options.jobs, options.pause, random.Random(options.seed))  # noqa: S311  # a seeded plan
        print(f"{options.jobs} jobs, {WORKERS} workers, one killed, one stopped: {time.monotonic() - started:.0f} s")
        print("submissions in each 10 s:", *_turns(place.emulator.arrivals))
        found = promises(place, asyncio.run(read_jobs(place.store)), options.jobs)
    for promise in found:
        print(promise.row())
    return int(not all(promise.kept for promise in found))
