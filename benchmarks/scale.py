"""Many tasks in flight in one session: memory of each, CPU while they wait, and how late the loop is.

The tasks were submitted elsewhere and are followed with ``session.track``; each is awaited by a coroutine of its own,
whose memory, measured first, is not counted. They never end. The session treats the server as the real service. The
first poll of every task, which is due at once, comes before the measured time. At the end the session is closed: each
waiting coroutine gets its error, and the longest time is measured in which the loop did nothing else; the pauses of the
garbage collector count.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import subprocess
import sys
import time
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import kie_async as kie
from benchmarks._distant import Distant
from benchmarks._idle_server import CLIENT_CORE, pin
from benchmarks._report import table, versions
from benchmarks._server_process import server_process

_WARM = 64  # tasks before those that are measured
_BEAT = 0.005  # seconds between two looks at the clock


def resident() -> int:
    """Bytes of memory that this process has."""
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * 4096


async def lateness(seconds: float) -> list[float]:
    """How late the loop wakes who sleeps, again and again, in seconds, sorted."""
    loop, found = asyncio.get_running_loop(), list[float]()
    end = loop.time() + seconds
    while (now := loop.time()) < end:
        await asyncio.sleep(_BEAT)
        found.append(loop.time() - now - _BEAT)
    return sorted(found)


async def longest_block(work: Coroutine[Any, Any, object]) -> float:
    """Do some work, and return the longest time, in seconds, in which the loop did not get to anybody else."""
    loop, longest = asyncio.get_running_loop(), 0.0
    task = loop.create_task(work)
    last = loop.time()
    while not task.done():
        await asyncio.sleep(0)
        now = loop.time()
        longest, last = max(longest, now - last), now
    await task
    return longest


async def waiting() -> None:
    """What a user's own coroutine does without us: wait for something of its own."""
    future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    await future


async def end(coroutines: list[asyncio.Task[Any]]) -> None:
    """Cancel coroutines, and see them end."""
    for coroutine in coroutines:
        coroutine.cancel()
    await asyncio.gather(*coroutines, return_exceptions=True)


async def close(session: kie.KieSession, results: list[asyncio.Task[Any]]) -> None:
    """Close a session, and see those end that wait for its tasks."""
    await session.aclose()
    await asyncio.sleep(0)  # a gather of so many would itself block the loop
    assert all(isinstance(result.exception(), kie.SessionError) for result in results)


async def measure(base_url: str, tasks: int, seconds: float) -> str:
    """One line of the table, but for its first column."""
    polls, wanted, ready = 0, _WARM, asyncio.Event()

    def observe(event: object) -> None:
        nonlocal polls
        polls += type(event) is kie.events.Polled
        if polls >= wanted:
            ready.set()

    before = resident()
    bare = [asyncio.create_task(waiting()) for _ in range(tasks)]  # they stay, or their memory would be used again
    await asyncio.sleep(0)
    own = resident() - before
    settings = Distant(api_key="k" * 32, base_url=base_url, observer=observe, task_timeout=86_400)
    async with kie.KieSession(settings) as session:
        warm = [asyncio.create_task(session.track(f"wait-warm-{number}").result()) for number in range(_WARM)]
        await ready.wait()  # connections, buffers: what is made once is not counted
        await end(warm)
        ready.clear()
        wanted = polls + tasks
        before, started = resident(), time.monotonic()
        results = [asyncio.create_task(session.track(f"wait-{number:027}").result()) for number in range(tasks)]
        await ready.wait()
        first = time.monotonic() - started
        memory = (resident() - before - own) / tasks
        cpu, seen = time.process_time(), polls
        late = await lateness(seconds)
        cpu, seen = time.process_time() - cpu, polls - seen
        blocked = await longest_block(close(session, results))
    await end(bare)
    p99 = late[int(len(late) * 0.99)]
    per_minute = 60 / seconds / tasks
    return (
        f"{memory:.0f};{first:.1f};{seen * per_minute:.2f};{1e3 * cpu * per_minute:.2f};"
        f"{100 * cpu / seconds:.0f} %;{1e3 * p99:.1f};{1e3 * blocked:.0f}"
    )


def child(base_url: str, tasks: int, seconds: float) -> None:
    """What a process of its own does."""
    pin(CLIENT_CORE)
    print(asyncio.run(measure(base_url, tasks, seconds)))


def main(arguments: list[str]) -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks scale", description=__doc__)
    parser.add_argument("--tasks", type=int, nargs="*", default=[1_000, 10_000, 100_000])
    parser.add_argument("--seconds", type=float, default=30.0, help="of waiting that are measured")
    options = parser.parse_args(arguments)
    rows = []
    with server_process("_idle_server") as base_url:
        for tasks in options.tasks:
            code = f"from benchmarks import scale; scale.child({base_url!r}, {tasks}, {options.seconds})"
            done = subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.PIPE, text=True)  # noqa: S603  # ourselves
            rows.append((tasks, *done.stdout.strip().split(";")))
    print(versions("aiohttp"))
    table(
        (
            "tasks",
            "bytes each",
            "first polls s",
            "polls / task / min",
            "CPU ms / task / min",
            "core used",
            "loop late p99 ms",
            "closing blocks ms",
        ),
        rows,
    )
    return 0
