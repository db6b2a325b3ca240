"""The same tasks through this client, through others of its kind, and through a loop written by hand.

All talk to one small server on this machine that speaks their protocols, one after the other, each in a fresh process,
and each as its documentation says to use it, with its own way to wait. The tasks are submitted at once, or so many at a
time; their lengths are the same for all. What is counted:

- polls per task: requests after the submission, the one for the result included.
- connections: that the server accepted.
- lag: from the end of a task at the server to the return of what the caller awaits.
- CPU, memory: of the client's process, without its imports; memory is the most that it held.

A long interval polls seldom and is late, so below the table stands what a loop would need that is as late as ours: its
interval is twice our mean lag, and its polls follow from the lengths of the tasks.

Ours takes the server for the real service, and polls as often as there: an emulator it would poll more often. It
expects tasks to last for minutes, and learns otherwise only from those that end; nor does it rely on callbacks before
the first has reported an end. Its quota is opened wide, since the others have none. The server reports neither stages
nor failures. No client may connect to another machine: an attempt is an error.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import math
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import fmean
from typing import Any

import attrs

from benchmarks._peer_clients import CLIENTS, Plan
from benchmarks._peer_server import durations_of
from benchmarks._report import table, versions

HEADERS = ("client", "completed", "wall s", "CPU s", "polls/task", "connections", "lag s", "p99", "MiB")
PATIENCE = 400.0  # seconds for a client beyond its longest task: suno-easy gives up after 300
ROOT = Path(__file__).parents[1]
OWN_SETTINGS = ("KIE_", "FAL_", "REPLICATE_", "RUNWAYML_")


@attrs.define
class Server:
    """The server's process.

    Attributes:
        ports: one for each client.
        seen: of each client; there once the server has ended.
    """

    ports: dict[str, int]
    seen: dict[str, dict[str, Any]] = attrs.field(factory=dict)


def environment() -> dict[str, str]:
    """The environment without proxies, which have no business here, and without the user's settings of the clients."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(OWN_SETTINGS) and not name.lower().endswith("_proxy")
    }
    return {**kept, "NO_PROXY": "*"}


def start(module: str, plan: dict[str, Any], **options: Any) -> subprocess.Popen[str]:  # noqa: ANN401  # those of Popen
    """Start one of the modules beside this one in a process of its own."""
    return subprocess.Popen(  # noqa: S603  # ourselves
        [sys.executable, "-m", f"benchmarks.{module}", json.dumps(plan)],
        cwd=ROOT,
        env=environment(),
        text=True,
        stdout=subprocess.PIPE,
        **options,
    )


@contextmanager
def serving(plan: dict[str, Any]) -> Iterator[Server]:
    """Serve for as long as the block runs; the server ends when its input is closed."""
    with start("_peer_server", plan, stdin=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        server = Server(json.loads(process.stdout.readline()))
        try:
            yield server
        finally:
            process.stdin.close()
        server.seen = json.loads(process.stdout.readline())


def run(plan: Plan, patience: float) -> dict[str, Any]:
    """Let one client do its tasks, and return what it measured."""
    with start("_peer_clients", attrs.asdict(plan), stderr=subprocess.PIPE) as process:
        try:
            said, complaints = process.communicate(timeout=patience)
        except subprocess.TimeoutExpired:
            process.kill()
            return {"errors": [f"no end within {patience:.0f} s"]}
    if process.returncode:
        return {"errors": [complaints.strip().rpartition("\n")[2] or f"it ended with {process.returncode}"]}
    measured: dict[str, Any] = json.loads(said)
    return measured


def row(client: str, measured: dict[str, Any], seen: dict[str, Any]) -> tuple[object, ...]:
    """One line of the table."""
    if "wall" not in measured:
        return client, "0" if seen else "not installed", *[""] * (len(HEADERS) - 2)
    lags = lags_of(measured, seen) or [math.nan]
    return (
        client,
        len(measured["returned"]),
        f"{measured['wall']:.1f}",
        f"{measured['cpu']:.2f}",
        f"{polls_per_task(seen):.1f}",
        seen["connections"],
        f"{fmean(lags):.2f}",
        f"{lags[math.ceil(0.99 * len(lags)) - 1]:.2f}",
        f"{measured['memory'] / 1024:.1f}",
    )


def lags_of(measured: dict[str, Any], seen: dict[str, Any]) -> list[float]:
    """The seconds from the end of each task to its return, in order."""
    return sorted(at - seen["ends"][task_id] for task_id, at in measured["returned"].items())


def polls_per_task(seen: dict[str, Any]) -> float:
    """The mean number of polls, over all tasks."""
    polls: dict[str, int] = seen["polls"]
    return sum(polls.values()) / max(len(polls), 1)


def at_equal_lag(polls: float, lag: float, durations: list[float]) -> str:
    """Compare our polls with those of a loop that polls at once, then at an interval by which it is as late."""
    interval = 2 * lag
    needed = fmean(1 + math.ceil(duration / interval) for duration in durations)
    return (
        f"ours: {polls:.2f} polls a task at a mean lag of {lag:.2f} s; a loop as late has an interval of "
        f"{interval:.1f} s and needs {needed:.2f}: ours needs {polls / needed:.2f} of them"
    )


def main(arguments: list[str]) -> int:
    """Run the clients and print the table; 1 if one that is installed did not complete its tasks."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks peers", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tasks", type=int, default=100)
    parser.add_argument("--in-flight", type=int, help="so many tasks at a time; by default all")
    parser.add_argument("--shortest", type=float, default=20.0, help="seconds of the shortest task")
    parser.add_argument("--longest", type=float, default=30.0, help="seconds of the longest task")
    parser.add_argument("--interval", type=float, default=5.0, help="seconds between two polls of the aiohttp loop")
    parser.add_argument("--emulator", action="store_true", help="let ours poll as often as at an emulator")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", nargs="+", choices=CLIENTS, default=list(CLIENTS), metavar="CLIENT")
    options = parser.parse_args(arguments)
    return compare(options)


def compare(options: argparse.Namespace) -> int:
    """Run the clients one after the other, and print what came of them."""
    known = {name: CLIENTS[name] for name in options.only}
    here = [name for name, client in known.items() if all(map(importlib.util.find_spec, client.modules[:1]))]
    plan = {"clients": here, "seed": options.seed, "tasks": options.tasks}
    plan |= {"shortest": options.shortest, "longest": options.longest}
    measured: dict[str, dict[str, Any]] = {name: {} for name in known}
    in_flight = min(options.in_flight or options.tasks, options.tasks)
    with serving(plan) as server:
        for name, port in server.ports.items():
            url = f"http://127.0.0.1:{port}"
            work = Plan(name, url, options.tasks, in_flight, options.interval, options.emulator)
            measured[name] = run(work, options.longest * math.ceil(options.tasks / in_flight) + PATIENCE)
    print(versions("aiohttp", *dict.fromkeys(client.package for client in known.values() if client.package)))
    print(f"{options.tasks} tasks of {options.shortest:g} to {options.longest:g} s, {in_flight} at a time")
    table(HEADERS, (row(name, measured[name], server.seen.get(name, {})) for name in known))
    ours, seen = measured.get("ours", {}), server.seen.get("ours", {})
    if ours.get("returned"):
        print(at_equal_lag(polls_per_task(seen), fmean(lags_of(ours, seen)), durations_of(plan)))
    failed = {name: errors for name in here if (errors := measured[name]["errors"])}
    for name, errors in failed.items():
        print(f"{name}: {len(errors)} x {errors[0]}" if "wall" in measured[name] else f"{name}: {errors[0]}")
    return int(bool(failed))
