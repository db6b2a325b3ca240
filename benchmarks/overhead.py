"""CPU of a submission and of following it to its end, against bare aiohttp that makes the same requests.

A cycle is one POST on a connection of its own and the polls that find the task ended (one, for the server's tasks are
done at once), each answer read as JSON. Client and server are pinned to cores of their own, and only the client's CPU
counts. Ours and the floors take turns in fresh processes; the medians are compared.

``--profile`` adds where the CPU of a cycle goes, by package.
"""

from __future__ import annotations

import argparse
import asyncio
import cProfile
import pstats
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

import aiohttp

import kie_async as kie
from benchmarks._idle_server import CLIENT_CORE, pin
from benchmarks._report import table, versions
from benchmarks._server_process import server_process

FIELDS = {"audioId": "a1", "model": "V5", "title": "t", "style": "s", "prompt": "p", "continueAt": 5.0}
POLL_AFTER = 0.5  # seconds until the floor polls; ours decides for itself
POLLS_AT_ONCE = 16
Cycle = Callable[[], Awaitable[None]]


@asynccontextmanager
async def ours(base_url: str) -> AsyncGenerator[Cycle]:
    """A session as users make it, but for a quota that this server does not have."""
    settings = kie.Settings(api_key="k" * 32, base_url=base_url, quota=1_000_000, max_in_flight=100_000)
    request = kie.ExtendRequest("a1", model="V5", title="t", style="s", prompt="p", continue_at=5.0)
    async with kie.KieSession(settings) as session:

        async def cycle() -> None:
            task = await session.submit(request)
            assert len((await task.result()).tracks) == 2

        yield cycle


@asynccontextmanager
async def floor(base_url: str, *, keep: bool = False) -> AsyncGenerator[Cycle]:
    """The same by hand, without any care."""
    body = {**FIELDS, "defaultParamFlag": True, "callBackUrl": "https://example.com/callback"}
    headers = {"Authorization": f"Bearer {'k' * 32}"}
    timeout = aiohttp.ClientTimeout(total=90, sock_connect=20, sock_read=60)
    async with (
        aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, force_close=not keep), headers=headers, timeout=timeout
        ) as posts,
        aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=POLLS_AT_ONCE), headers=headers, timeout=timeout
        ) as polls,
    ):

        async def cycle() -> None:
            async with posts.post(f"{base_url}/api/v1/generate/extend", json=body, allow_redirects=False) as response:
                task_id = (await response.json())["data"]["taskId"]
            await asyncio.sleep(POLL_AFTER)
            query = {"taskId": task_id}
            url = f"{base_url}/api/v1/generate/record-info"
            async with polls.get(url, params=query, allow_redirects=False) as response:
                record = (await response.json())["data"]
            assert record["status"] == "SUCCESS"
            assert len(record["response"]["sunoData"]) == 2

        yield cycle


CLIENTS: Mapping[str, Callable[[str], AbstractAsyncContextManager[Cycle]]] = {
    "ours": ours,
    "floor": floor,
    "floor, connections kept": lambda base_url: floor(base_url, keep=True),
}


async def run(client: str, base_url: str, in_flight: int, cycles: int) -> float:
    """Run so many cycles, so many at once; return the CPU of one in microseconds."""
    left = iter(range(cycles))
    async with CLIENTS[client](base_url) as cycle:

        async def worker() -> None:
            for _ in left:
                await cycle()

        await cycle()  # what is done once is not counted
        started = time.process_time()
        await asyncio.gather(*(worker() for _ in range(in_flight)))
        return (time.process_time() - started) / cycles * 1e6


def in_a_process(client: str, base_url: str, in_flight: int, cycles: int) -> float:
    """Run it in a fresh process of its own."""
    code = f"from benchmarks import overhead; overhead.child({client!r}, {base_url!r}, {in_flight}, {cycles})"
    done = subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.PIPE)  # noqa: S603  # ourselves
    return float(done.stdout)


def child(client: str, base_url: str, in_flight: int, cycles: int) -> None:
    """What that process does."""
    pin(CLIENT_CORE)
    print(asyncio.run(run(client, base_url, in_flight, cycles)))


def measure(base_url: str, in_flight: int, cycles: int, rounds: int) -> list[tuple[object, ...]]:
    """The lines of one number of tasks in flight."""
    found: dict[str, list[float]] = {client: [] for client in CLIENTS}
    for _ in range(rounds):
        for client, figures in found.items():
            figures.append(in_a_process(client, base_url, in_flight, cycles))
    lowest = statistics.median(found["floor"])
    return [
        (client, in_flight, f"{statistics.median(figures):.0f}", f"{statistics.median(figures) / lowest:.2f}")
        for client, figures in found.items()
    ]


# ---------------------------------------------------------------- the profile


def profile(client: str, base_url: str, in_flight: int, cycles: int) -> Counter[str]:
    """CPU of a cycle by package, in microseconds; the profiler makes all of it slower."""
    profiler = cProfile.Profile()
    profiler.enable()
    asyncio.run(run(client, base_url, in_flight, cycles))
    profiler.disable()
    found: Counter[str] = Counter()
    for (file, _, name), (_, _, own, _, _) in pstats.Stats(profiler).stats.items():  # type: ignore[attr-defined]  # theirs
        found[_package(file, name)] += own / cycles * 1e6
    return found


def _package(file: str, name: str) -> str:
    if file.startswith("<attrs"):
        return "attr"
    if "kie_async" in (parts := Path(file).parts):
        return "/".join(parts[parts.index("kie_async") :])
    for package in ("aiohttp", "asyncio", "anyio", "attr", "cattrs", "json", "logging", "yarl", "multidict"):
        if f"/{package}/" in file:
            return package
    return "built-in: sockets" if "socket" in name or "epoll" in name else "built-in and others"


def show_profile(base_url: str, cycles: int) -> None:
    """Print where the CPU goes, ours beside the floor."""
    mine, bare = (profile(client, base_url, 100, cycles) for client in ("ours", "floor"))
    rows: list[tuple[object, ...]] = [
        (package, f"{mine[package]:.0f}", f"{bare[package]:.0f}", f"{mine[package] - bare[package]:+.0f}")
        for package in sorted(mine | bare, key=lambda package: bare[package] - mine[package])
        if max(mine[package], bare[package]) >= 3
    ]
    table(("us of a profiled cycle in", "ours", "floor", "more"), rows)


def main(arguments: list[str]) -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks overhead", description=__doc__)
    parser.add_argument("--in-flight", type=int, nargs="*", default=[1, 100, 1000])
    parser.add_argument("--cycles", type=int, default=4000, help="the most; one at a time does a hundredth of them")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--profile", action="store_true")
    options = parser.parse_args(arguments)
    print(versions("aiohttp", "attrs", "cattrs", "anyio", "orjson"))
    with server_process("_idle_server") as base_url:
        rows = []
        for in_flight in options.in_flight:
            cycles = max(options.cycles if in_flight > 10 else options.cycles // 100, in_flight)
            rows += measure(base_url, in_flight, cycles, options.rounds)
        table(("client", "in flight", "us of CPU per cycle", "ratio"), rows)
        if options.profile:
            show_profile(base_url, options.cycles)
    return 0
