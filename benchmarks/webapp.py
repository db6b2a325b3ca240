"""The README's FastAPI application under several workers, on a journal and without: what the service and users see.

Each run asks for many songs at once. "late" is the seconds from the end of a task at the service to the answer that its
user gets. The callbacks of a run come, are off, or lead to a port where nobody listens.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import re
import socket
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from itertools import product
from pathlib import Path

import aiohttp
import attrs

from benchmarks._database import fresh, own_server
from benchmarks._report import table, versions
from kie_async import emulator

README = Path(__file__).parent.parent / "README.md"
TIMELINE = (5.0, 15.0, 25.0)
_APART = 0.02  # seconds between two requests
QUOTA = 20
LATE, LATE_ALONE = 15.0, 30.0  # seconds that are allowed: with a journal, and without
SERVERS = {
    "uvicorn, 2 workers": "-m uvicorn app:app --workers 2 --fd",
    "gunicorn, 4 workers": "-m gunicorn app:app -w 4 -k uvicorn_worker.UvicornWorker --bind",
}
CALLBACKS = ["come", "off", "lost"]
JOURNALS = ["SQLite", "PostgreSQL", "none"]
BLOCKS = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@attrs.frozen
class Seen:
    """What came of one run."""

    answered: int
    most: int
    refused: int
    polls: float
    late: float


@asynccontextmanager
async def serving(server: str, listener: socket.socket, environment: dict[str, str]) -> AsyncIterator[None]:
    """Run the application, with all its workers ready: else the first would take what waits for all of them."""
    code = next(code for code in BLOCKS.findall(README.read_text()) if "FastAPI" in code)
    with tempfile.TemporaryDirectory() as directory:
        (Path(directory) / "app.py").write_text(code)
        number = f"{'fd://' if 'gunicorn' in server else ''}{listener.fileno()}"
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            *SERVERS[server].split(),
            number,
            cwd=directory,
            env={**os.environ, **environment},
            pass_fds=[listener.fileno()],
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
        )
        assert process.stderr is not None
        reading = asyncio.create_task(_read_on(process.stderr, workers=int(re.findall(r"\d", server)[0])))
        try:
            await reading
            reading = asyncio.create_task(_read_on(process.stderr))
            yield
        finally:
            process.terminate()
            await process.wait()
            await reading


async def _read_on(log: asyncio.StreamReader, workers: int = 0) -> None:
    """Read a server's log until so many workers have started; until its end if none is to be waited for."""
    started = 0
    while (not workers or started < workers) and (line := await log.readline()):
        started += b"Application startup complete" in line


async def ask(service: emulator.Emulator, http: aiohttp.ClientSession, url: str, after: float) -> float:
    """Ask for one song, and return how late its answer was."""
    await asyncio.sleep(after)  # one after the other: a worker takes all the connections that it finds
    async with http.post(f"{url}/longer/e231aaaabbbb") as answer:
        result = await answer.json()
    return asyncio.get_running_loop().time() - service.task(result["task_id"]).end


async def run(server: str, callbacks: str, count: int, journal: str) -> Seen:
    """Ask for many songs at once."""
    with socket.create_server(("127.0.0.1", 0), backlog=1024) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        async with emulator.serve(timeline=TIMELINE, credits=1e6) as service:
            environment = {"KIE_BASE_URL": service.base_url, "KIE_API_KEY": service.key, "KIE_JOURNAL": journal}
            if callbacks != "off":
                environment["KIE_CALLBACK_URL"] = f"{url}/kie" if callbacks == "come" else "http://127.0.0.1:9/kie"
            connector, timeout = aiohttp.TCPConnector(limit=0, force_close=True), aiohttp.ClientTimeout(total=300)
            async with (
                serving(server, listener, environment),
                aiohttp.ClientSession(connector=connector, timeout=timeout) as http,
            ):
                late = await asyncio.gather(*(ask(service, http, url, _APART * number) for number in range(count)))
            return Seen(
                answered=len({charge.task_id for charge in service.ledger}),
                most=service.max_in_window(),
                refused=sum(not arrival.admitted for arrival in service.arrivals),
                polls=sum(service.polls(charge.task_id) for charge in service.ledger) / count,
                late=max(late),
            )


@contextmanager
def a_journal(kind: str) -> Iterator[str]:
    """Give the address of an empty journal; of none, nothing."""
    if kind == "PostgreSQL":
        with own_server(os.environ.get("KIE_TEST_DATABASE_URL", "")) as url:
            yield fresh(url)
    else:
        with tempfile.TemporaryDirectory() as directory:
            yield str(Path(directory) / "kie.sqlite") if kind == "SQLite" else ""


def is_good(seen: Seen, count: int, journal: str) -> bool:
    """Whether a run kept the bounds."""
    if journal == "none":  # each worker counts for itself
        return seen.answered == count and seen.late <= LATE_ALONE
    return seen.answered == count and seen.most <= QUOTA and seen.refused == 0 and seen.late <= LATE


def main(arguments: list[str]) -> int:
    """Run all and print the table; 1 if a bound is broken."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks webapp", description=__doc__)
    parser.add_argument("--requests", type=int, default=50)
    parser.add_argument("--servers", nargs="+", choices=SERVERS, default=[*SERVERS])
    parser.add_argument("--callbacks", nargs="+", choices=CALLBACKS, default=CALLBACKS)
    parser.add_argument("--journals", nargs="+", choices=JOURNALS, default=JOURNALS)
    options = parser.parse_args(arguments)
    print(versions("aiohttp", "fastapi", "uvicorn", "gunicorn"))
    rows, are_good = [], True
    for server, callbacks, kind in product(options.servers, options.callbacks, options.journals):
        with a_journal(kind) as journal:
            seen = asyncio.run(run(server, callbacks, options.requests, journal))
        good = is_good(seen, options.requests, kind)
        are_good &= good
        rows.append([
            f"{server}; callbacks {callbacks}; journal: {kind}", seen.answered, seen.most, seen.refused,
            f"{seen.polls:.1f}", f"{seen.late:.1f} s", "" if good else "bound broken",
        ])  # fmt: skip
    table(["", "tasks", "most in 10 s", "refused", "polls", "latest", ""], rows)
    return 0 if are_good else 1
