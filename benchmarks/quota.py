"""One quota for 1, 3 and 10 processes: how much of it is used, and the most that the server sees in any window.

Each process submits as fast as ``JournalLimiter`` lets it. The part that is used is counted from the first to the
last whole burst, between which the quota allows exactly one burst in a window.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import signal
import sys
import time
from asyncio.subprocess import PIPE, Process
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import anyio
from anyio.abc import SocketAttribute, SocketStream

from benchmarks._database import fresh, own_server
from benchmarks._report import table, versions


class Counting:
    """A server that stamps what it sees, and answers after a while."""

    def __init__(self) -> None:
        self.seen: list[tuple[float, str]] = []
        self.slow: set[str] = set()
        self.port = 0

    @property
    def stamps(self) -> list[float]:
        """When each submission was seen."""
        return [stamp for stamp, _ in self.seen]

    async def answer(self, stream: SocketStream) -> None:
        """Take one submission: a line with the name of its process."""
        with suppress(anyio.EndOfStream, anyio.BrokenResourceError, anyio.ClosedResourceError):  # it was killed
            async with stream:
                name = (await stream.receive()).decode().strip()
                self.seen.append((time.monotonic(), name))
                await anyio.sleep(60 if name in self.slow else 0.003)
                await stream.send(b"seen\n")

    async def reach(self, number: int, within: float = 60.0) -> None:
        """Wait until so many more were seen."""
        wanted = len(self.seen) + number
        with anyio.fail_after(within):
            while len(self.seen) < wanted:  # noqa: ASYNC110  # what it waits for happens in other processes
                await anyio.sleep(0.01)


@asynccontextmanager
async def counting_server() -> AsyncIterator[Counting]:
    """Run the server on loopback for as long as the block lasts."""
    counting = Counting()
    async with await anyio.create_tcp_listener(local_host="127.0.0.1") as listener, anyio.create_task_group() as group:
        counting.port = listener.extra(SocketAttribute.local_port)  # noqa: S610  # no Django
        group.start_soon(listener.serve, counting.answer)
        yield counting
        group.cancel_scope.cancel()


@asynccontextmanager
async def processes(
    url: str, counting: Counting, number: int, *, many: int = 1000, **facts: float
) -> AsyncIterator[list[Process]]:
    """So many processes that submit until the block ends; ``facts`` are those of their limiters."""
    script, words = str(Path(__file__).with_name("_quota_process.py")), json.dumps(facts)
    running: list[Process] = []
    try:
        for name in range(number):
            arguments = (script, url, str(counting.port), str(name), str(many), words)
            running.append(await asyncio.create_subprocess_exec(sys.executable, *arguments, stdin=PIPE, stdout=PIPE))
        for process in running:
            assert process.stdout is not None
            assert await process.stdout.readline() == b"ready\n"
        for process in running:
            assert process.stdin is not None
            process.stdin.write(b"go\n")
        yield running
    finally:
        for process in running:
            if process.returncode is None:
                process.send_signal(signal.SIGCONT)
                process.kill()
            await process.communicate()


def used(stamps: list[float], limit: int, window: float) -> float:
    """The part of the quota that was used; the last burst is left out, for it may be cut off."""
    whole = (len(stamps) - 1) // limit * limit
    return whole / limit * window / (stamps[whole] - stamps[0])


def most_in_window(stamps: list[float], window: float) -> int:
    """The largest number of submissions in any window."""
    return max(sum(start <= stamp <= start + window for stamp in stamps) for start in stamps)


async def measure(url: str, number: int, options: argparse.Namespace) -> tuple[int, int, int, str, int, int]:
    """One line of the table."""
    limit, window = options.limit, options.window
    async with (
        counting_server() as counting,
        processes(fresh(url), counting, number, limit=limit, window=window),
    ):
        await counting.reach(options.bursts * limit + 1, within=60 + 2 * options.bursts * window)
    shares = sorted(Counter(name for _, name in counting.seen).values())
    part = used(counting.stamps, limit, window)
    return number, len(counting.seen), most_in_window(counting.stamps, window), f"{part:.1%}", shares[0], shares[-1]


def main(arguments: list[str]) -> int:
    """Print the table; 1 if the quota was broken."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks quota", description=__doc__)
    parser.add_argument("--limit", type=int, default=20)
    parser.add_argument("--window", type=float, default=10.0, help="in seconds")
    parser.add_argument("--bursts", type=int, default=4)
    parser.add_argument("--processes", type=int, nargs="*", default=[1, 3, 10])
    parser.add_argument("--store", default="", help="a PostgreSQL URL, emptied first; by default a server of its own")
    options = parser.parse_args(arguments)
    print(versions("psycopg"))
    with own_server(options.store) as url:
        rows = [asyncio.run(measure(url, number, options)) for number in options.processes]
    table(
        ("processes", "submissions", f"most in {options.window:g} s", "used", "smallest share", "largest share"), rows
    )
    return int(any(row[2] > options.limit for row in rows))
