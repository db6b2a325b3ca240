"""The journal under a batch: jobs through it per second, memory, and the start with a million finished jobs.

A job is planned, its intent recorded, then submitted, succeeded and delivered: four durable moves. ``--at-once`` of
them are under way together, as in a batch. Nothing is submitted or downloaded here: what is measured is what the
journal adds. Then ``run_batch`` is started over a journal whose jobs are all finished, as a resume does.
"""

from __future__ import annotations

import argparse
import asyncio
import resource
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import attrs

import kie_async as kie
from benchmarks._database import fresh, own_server
from benchmarks._report import table, versions
from kie_async.journal import Job, JobResults, Journal, LastAttempt, State, _sql, open_journal
from kie_async.journal._rows import job_row
from kie_async.models import Track

FIELDS: dict[str, Any] = {"model": "V5", "style": "piano, slow", "prompt": "A harbour at night.", "continue_at": 60.0}
TRACKS = tuple(Track(id=name, audio_url=f"https://example.com/{name}.mp3", duration=150.0) for name in "ab")
NAME = "benchmark"


def jobs(count: int) -> Iterator[Job]:
    """So many jobs, one by one."""
    for number in range(count):
        yield Job(key=f"job{number}", request=kie.ExtendRequest(f"a{number}", title=f"t{number}", **FIELDS), batch=NAME)


def memory() -> float:
    """The most memory that this process has had, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


async def through(journal: Journal, keys: Iterator[str]) -> None:
    """Take jobs through all their moves, one after the other."""
    for key in keys:
        await journal.intend(key, f"token-{key}")
        facts = {"task_id": f"task-{key}", "route": "classic", "credits": 12.0}
        await journal.move(key, State.SUBMITTED, token=f"token-{key}", **facts)
        await journal.move(key, State.SUCCEEDED, tracks=TRACKS, credits=12.0)
        await journal.move(key, State.DELIVERED, files=("a.mp3", "b.mp3"))


async def fill(store: str, count: int, moved: int, at_once: int) -> tuple[float, float]:
    """Add jobs and take some through; give the jobs per second of both."""
    async with open_journal(store) as journal:
        started = time.monotonic()
        added = await journal.add(jobs(count))
        adding = added / (time.monotonic() - started)
        keys, started = (f"job{number}" for number in range(moved)), time.monotonic()
        async with asyncio.TaskGroup() as group:
            for _ in range(at_once):
                group.create_task(through(journal, keys))
        return adding, moved / (time.monotonic() - started)


async def resume(store: str, directory: str) -> tuple[float, int]:
    """Run a batch that is finished once more, without its manifest; give the seconds, and the jobs it found to do."""
    settings = kie.Settings(api_key="k", base_url="http://127.0.0.1:9")
    started, found = time.monotonic(), 0
    async with kie.KieSession(settings) as session:
        async for _ in kie.run_batch(session, (), journal=open_journal(store), directory=directory, batch=NAME):
            found += 1
    return time.monotonic() - started, found


def finished(store: str, count: int) -> None:
    """Make a SQLite journal of so many delivered jobs, by its own rows: moving a million there would last for long."""
    asyncio.run(fill(store, 0, 0, 1))
    now = time.time()
    with closing(sqlite3.connect(store)) as connection, connection:
        for job in jobs(count):
            token, task_id = f"token-{job.key}", f"task-{job.key}"
            done = attrs.evolve(
                job,
                state=State.DELIVERED,
                attempt=1,
                last_attempt=LastAttempt(token=token, task_id=task_id, route="classic", credits=12.0),
                results=JobResults(tracks=TRACKS, files=("a.mp3", "b.mp3")),
                moments=dict.fromkeys(("planned", "intent", "submitted", "succeeded", "delivered"), now),
            )
            connection.execute(_sql.ADD, {**job_row(done), "write_id": ""})
            connection.execute(
                "INSERT INTO kie_attempt (token, key, number, task_id, process_id, intended_at, checksum) "
                "VALUES (:token, :key, :number, :task_id, :process_id, :intended_at, :checksum)",
                _sql.with_checksum(_sql.ATTEMPT, token, job.key, 1, task_id, "p", now),
            )
    asyncio.run(open_journal(store).upgrade())  # which counts what they have cost


# ---------------------------------------------------------------- each in a process of its own


def child(what: str, *facts: str) -> None:
    """What a process of its own does: print its figures, and its memory."""
    if what == "fill":
        store, count, moved, at_once = facts
        adding, moving = asyncio.run(fill(store, int(count), int(moved), int(at_once)))
        print(f"{adding:.0f};{moving:.0f};{memory():.0f}")
    else:
        seconds, found = asyncio.run(resume(*facts))
        assert found == 0
        print(f"{seconds:.2f};{memory():.0f}")


def in_a_process(*words: object) -> list[str]:
    """Run it."""
    code = f"from benchmarks import batch; batch.child(*{[str(word) for word in words]!r})"
    done = subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.PIPE, text=True)  # noqa: S603  # ourselves
    return done.stdout.strip().split(";")


def throughput(options: argparse.Namespace, folder: str, shared: str) -> list[tuple[object, ...]]:
    """Jobs through the journals."""
    rows: list[tuple[object, ...]] = []
    for at_once in options.at_once:
        for name, store in (("SQLite", f"{folder}/{at_once}.sqlite"), ("PostgreSQL", shared)):
            if store == shared:
                fresh(shared)
            rows.append((name, at_once, *in_a_process("fill", store, options.moved, options.moved, at_once)))
    return rows


def starts(options: argparse.Namespace, folder: str) -> list[tuple[object, ...]]:
    """Resumes over journals of finished jobs, and the memory of adding as many."""
    rows: list[tuple[object, ...]] = []
    for count in options.finished:
        store = f"{folder}/finished{count}.sqlite"
        finished(store, count)
        seconds, most = in_a_process("resume", store, folder)
        added = in_a_process("fill", f"{folder}/added{count}.sqlite", count, 0, 1)
        rows.append((f"{count:,}", seconds, most, added[0], added[2]))
    return rows


def main(arguments: list[str]) -> int:
    """Print the tables."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks batch", description=__doc__)
    parser.add_argument("--moved", type=int, default=3000, help="jobs taken through all moves")
    parser.add_argument("--at-once", type=int, nargs="*", default=[1, 100])
    parser.add_argument("--finished", type=int, nargs="*", default=[10_000, 1_000_000])
    parser.add_argument("--store", default="", help="a PostgreSQL URL, emptied first; by default a server of its own")
    options = parser.parse_args(arguments)
    print(versions("psycopg"), f", SQLite {sqlite3.sqlite_version}", sep="")
    with tempfile.TemporaryDirectory() as folder, own_server(options.store) as shared:
        headers = ("journal", "at once", "jobs added/s", "jobs moved to their end/s", "MiB")
        table(headers, throughput(options, folder, shared))
        print()
        headers = ("finished jobs", "resume s", "MiB", "jobs added/s", "MiB while adding")
        table(headers, starts(options, folder))
    return 0
