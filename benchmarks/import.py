"""Start-up: ``import kie_async`` over ``import aiohttp``, which it is built on, and ``kie-async --help``.

Each in fresh processes, by turns, the least of all rounds; what the interpreter itself needs to start is taken off.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys

from benchmarks._report import table, versions

COMMANDS = {
    "nothing": ("-c", "pass"),
    "import aiohttp": ("-c", "import aiohttp"),
    "import aiohttp, anyio, attrs, cattrs": ("-c", "import aiohttp, anyio, attrs, cattrs"),
    "import kie_async": ("-c", "import kie_async"),
    "from kie_async import KieSession": ("-c", "from kie_async import KieSession"),
    "kie-async --help": ("-m", "kie_async", "--help"),
}


# What is compiled once is not counted, so bytecode must be written.
ENVIRONMENT = {name: text for name, text in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}


def cpu_of(command: tuple[str, ...]) -> float:
    """CPU of one process, in milliseconds."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, *command], check=True, stdout=subprocess.DEVNULL, env=ENVIRONMENT)  # noqa: S603  # ourselves
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return 1000 * (after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime)


def main(arguments: list[str]) -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks import", description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args(arguments)
    found: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for command in COMMANDS.values():
        cpu_of(command)  # compiles
    for _ in range(options.rounds):
        for name, command in COMMANDS.items():
            found[name].append(cpu_of(command))
    least = {name: min(figures) for name, figures in found.items()}  # what else the machine does only adds
    start = least.pop("nothing")
    floor = least["import aiohttp"] - start
    print(versions("aiohttp", "anyio", "attrs", "cattrs", "cyclopts", "rich"))
    rows = [(name, f"{ms - start:.0f}", f"{(ms - start) / floor:.2f}") for name, ms in least.items()]
    table(("what", "ms of CPU", "ratio"), rows)
    return 0
