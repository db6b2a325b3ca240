"""Child processes that use a journal, for tests that kill them."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

Process = subprocess.Popen[str]

_FRAME = """
import asyncio, os, resource, sys
from pathlib import Path
from kie_async.errors import ConflictError, StorageError
from kie_async.journal import InboundCallback, Job, SQLiteJournal, State
from kie_async.models import ExtendRequest

async def main(path):
{body}
asyncio.run(main(Path(sys.argv[1])))
"""


@contextmanager
def child(body: str, path: Path) -> Iterator[Process]:
    """A process that runs these lines with the journal's path; it is killed if it has not ended by itself."""
    program = _FRAME.format(body=textwrap.indent(textwrap.dedent(body), "    "))
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", program, path], stdin=pipe, stdout=pipe, text=True) as process:  # noqa: S603  # our own words
        try:
            yield process
        finally:
            process.kill()


def read_line(process: Process) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def read_rest(process: Process) -> list[str]:
    """Every whole line that is still to come."""
    assert process.stdout is not None
    return [line.strip() for line in process.stdout.read().splitlines(keepends=True) if line.endswith("\n")]


def say(process: Process) -> None:
    assert process.stdin is not None
    process.stdin.write("\n")
    process.stdin.flush()
