"""The crash matrix: a batch's process dies at every named point, and at random moments, while the emulator counts.

After each death it is started again until the batch is at its end. Then the emulator's ledger and the journal are
compared: no job charged twice, none that was paid lost or undelivered, and unknown only where nothing came back.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Self

import attrs

import kie_async as kie
from benchmarks._crashing_batch import DIED
from kie_async.emulator import Rules
from kie_async.journal import Job, State, open_journal
from kie_async.testing import EmulatorHandle, serve_in_thread

POINTS = (
    *(
        f"{name}:{when}"
        for name in (
            "add", "intend", "move-submitted", "move-succeeded", "move-delivered", "download"
        )
        for when in ("before", "after")
    ),
    "emitted:Submitted",
    "emitted:Polled",
    "emitted:Finished",
)  # fmt: skip
JOBS = 4
SPEED = 400.0
LENGTH = 4.0  # of an undisturbed life after its beginning, in s
LIVES = 40  # of one batch; more would be an endless loop


@attrs.define
class Tally:
    """What was found wrong, over all runs."""

    runs: int = 0
    deaths: int = 0
    charged: int = 0
    twice: int = 0
    lost: int = 0
    unknown: int = 0
    unknown_charged: int = 0

    def row(self) -> str:
        """One line of the table."""
        return "  ".join(f"{name} {value}" for name, value in attrs.asdict(self).items())


@attrs.frozen
class Setting:
    """One batch against one emulator.

    Attributes:
        callback_url: of the receiver that outlives the batch; empty: polling only.
    """

    emulator: EmulatorHandle
    store: str
    directory: str
    callback_url: str

    def start(self, point: str, nth: int) -> subprocess.Popen[bytes]:
        """Start one life of the batch."""
        plan = {
            "base_url": self.emulator.base_url,
            "store": self.store,
            "directory": self.directory,
            "callback_url": self.callback_url,
            "jobs": JOBS,
            "point": point,
            "nth": nth,
            "patience": 10.0,
        }
        command = [sys.executable, "-m", "benchmarks._crashing_batch", json.dumps(plan)]
        return subprocess.Popen(command, stdout=subprocess.PIPE)  # noqa: S603  # ourselves


class Receiver:
    """A small always-on receiver of callbacks beside the batch, on the same journal."""

    def __init__(self, base_url: str, store: str) -> None:
        self._base_url = base_url
        self._store = store
        self._ready = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()), daemon=True)
        self.url = ""

    async def _serve(self) -> None:
        self._stop = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        quiet = kie.Settings(api_key="emulated-account-1", base_url=self._base_url, observer=lambda _event: None)
        async with (
            kie.KieSession(quiet, journal=open_journal(self._store)) as session,
            kie.callbacks.serve(session, path="/kie") as server,
        ):
            self.url = server.url
            self._ready.set()
            await self._stop.wait()

    def __enter__(self) -> Self:
        self._thread.start()
        if not self._ready.wait(20):
            raise RuntimeError("the receiver did not start")
        return self

    def __exit__(self, *_exception: object) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(20)


@contextmanager
def setting(store: str, *, callbacks: bool) -> Iterator[Setting]:
    """A fresh emulator, store and directory."""
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        emulator = stack.enter_context(
            serve_in_thread(speed=SPEED, credits=1e6, goes_on=(1.0, 2.0), rules=Rules(quota=1000))
        )
        store = store or f"{folder}/journal.sqlite"
        url = stack.enter_context(Receiver(emulator.base_url, store)).url if callbacks else ""
        yield Setting(emulator, store, f"{folder}/out", url)


def run_to_the_end(batch: Setting, deaths: Iterator[tuple[str, int, float | None]], tally: Tally) -> None:
    """Start the batch again and again until it is at its end; ``deaths`` says how each life ends."""
    tally.runs += 1
    for _ in range(LIVES):
        point, nth, after = next(deaths, ("", 0, None))
        with batch.start(point, nth) as life:
            if after is not None:
                assert life.stdout is not None
                life.stdout.readline()  # it begins: a moment counted from here falls into its work, on any machine
                time.sleep(after)
                life.kill()
            code = life.wait(120)
        if code in {DIED, -9}:
            tally.deaths += 1
        elif code == 0:
            return
        else:
            raise RuntimeError(f"the batch ended with {code}")
    raise RuntimeError("the batch does not come to an end")


def check(batch: Setting, tally: Tally) -> None:
    """Compare the emulator's ledger with the journal and the files."""
    charges = Counter(charge.body["title"] for charge in batch.emulator.ledger)
    jobs = {job.key: job for job in asyncio.run(_jobs(batch.store))}
    tally.charged += sum(charges.values())
    tally.twice += sum(count > 1 for count in charges.values())
    for number in range(JOBS):
        job, paid = jobs[f"job{number}"], charges[f"job{number}"] > 0
        whole = len(job.files) == 2 and all((Path(batch.directory) / name).stat().st_size for name in job.files)
        tally.unknown += job.state is State.UNKNOWN
        tally.unknown_charged += job.state is State.UNKNOWN and paid
        tally.lost += job.state is not State.UNKNOWN and not (job.state is State.DELIVERED and whole)


async def _jobs(store: str) -> list[Job]:
    async with open_journal(store) as journal:
        return [job for _, job in await journal.page(limit=10_000)]


def at_points(store: str, points: tuple[str, ...], nths: tuple[int, ...], *, callbacks: bool) -> Tally:
    """Die at each of these points, each in a batch of its own."""
    tally = Tally()
    for point in points:
        for nth in nths:
            with setting(_fresh(store), callbacks=callbacks) as batch:
                run_to_the_end(batch, iter([(point, nth, None)]), tally)
                check(batch, tally)
    return tally


def at_random(store: str, kills: int, seed: int, *, callbacks: bool) -> Tally:
    """Be killed from outside at so many seeded moments, several to a batch."""
    tally, chance = Tally(), random.Random(seed)  # noqa: S311  # a seeded plan
    while tally.deaths < kills:
        moments = [("", 0, chance.uniform(0.0, LENGTH)) for _ in range(min(5, kills - tally.deaths))]
        with setting(_fresh(store), callbacks=callbacks) as batch:
            run_to_the_end(batch, iter(moments), tally)
            check(batch, tally)
    return tally


def _fresh(store: str) -> str:
    """An empty schema of a shared store; an embedded one is a new file anyway."""
    if not store:
        return store
    import psycopg  # an extra

    with psycopg.connect(store, autocommit=True) as connection:
        connection.execute("DROP SCHEMA public CASCADE; CREATE SCHEMA public")
    return store


def main(arguments: list[str]) -> int:
    """Run the matrix and print its table; 1 if anything was charged twice or lost."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks crash", description=__doc__)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--points", nargs="*", default=list(POINTS))
    parser.add_argument("--nth", type=int, nargs="*", default=[1, 3])
    parser.add_argument("--store", default="", help="a PostgreSQL URL; by default a SQLite file")
    options = parser.parse_args(arguments)
    bad = 0
    for callbacks in (False, True):
        runs: dict[str, Any] = {
            "named points": lambda: at_points(  # called in this turn
                options.store,
                tuple(options.points),
                tuple(options.nth),
                callbacks=callbacks,  # noqa: B023  # likewise
            ),
            "random kills": lambda: at_random(options.store, options.kills, options.seed, callbacks=callbacks),  # noqa: B023  # likewise
        }
        for name, run in runs.items():
            tally = run()
            print(f"{name}, {'callbacks' if callbacks else 'polling'}: {tally.row()}", flush=True)
            bad += tally.twice + tally.lost + (tally.unknown_charged if callbacks else 0)
    return min(bad, 1)
