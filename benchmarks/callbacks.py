"""Callbacks taken in: events per second into completed futures, beside a bare handler.

One process takes the callbacks in; this one sends them, over kept connections on loopback, and plays the service that
is asked. Two comparisons, because two things are meant by "completed":

*answered*: both sides parse the JSON, check one HMAC, set a future and answer 200. This is what the skin and the
receiver cost, and the comparison that the goal is held to.

*confirmed*: a callback's body is not signed, so the session asks record-info before it ends a task. The bare
handler is compared as it is when it does the same, with aiohttp's client and json.loads; against one that believes
the body, which nobody should run, the last rows say what asking costs.

Through aiohttp, through uvicorn (h11) as ASGI, and as ASGI driven directly, where no server's work hides ours.
The sides take short bursts by turns, so that whatever else the machine does falls on all of them alike. The ratio is
that of CPU seconds per event, bare to ours; the events per second are those of the clock. All are medians over bursts.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from statistics import median
from typing import Any

import attrs

from benchmarks._callback_process import AT_ONCE, KEY, TOKEN, Plan, task_ids
from benchmarks._report import table, versions
from kie_async.callbacks import sign_callback

SAMPLES = Path(__file__).parent.parent / "tests" / "samples"
COMPARED = (
    ("aiohttp", "answered", "bare", "receiver"),
    ("uvicorn", "answered", "bare", "receiver"),
    ("driven", "answered", "bare", "receiver"),
    ("aiohttp", "confirmed", "asking", "session"),
    ("uvicorn", "confirmed", "asking", "session"),
    ("aiohttp", "confirmed or believed", "bare", "session"),
    ("uvicorn", "confirmed or believed", "bare", "session"),
)
WAYS = [way for way, *_ in COMPARED]
PATIENCE = 120.0  # seconds for one step: a process that starts, or a burst


@attrs.define
class Tasks:
    """What the stub that is asked knows of its tasks, which are numbered.

    Attributes:
        tokens: of the submissions, in order.
        ended: so many have succeeded: those whose callbacks have been sent. The others are pending.
    """

    tokens: list[str] = attrs.field(factory=list)
    ended: int = 0


class Service(asyncio.Protocol):
    """The stub that is asked: takes submissions, and says of each task whether it has succeeded."""

    def __init__(self, tasks: Tasks) -> None:
        self._tasks = tasks
        self._received = b""
        record = json.loads((SAMPLES / "record_info_success.reported.json").read_text())
        self._known: str = record["data"]["taskId"]
        self._record = json.dumps(record, ensure_ascii=False, separators=(",", ":"))
        record["data"] |= {"status": "PENDING", "response": None}
        self._pending = json.dumps(record)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the connection."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        """Answer a request when it is whole; nobody sends two at once."""
        self._received += data
        head, _, body = self._received.partition(b"\r\n\r\n")
        length = re.search(rb"(?i)content-length: (\d+)", head)
        if len(body) < (int(length[1]) if length else 0) or b"\r\n\r\n" not in self._received:
            return
        self._received = b""
        answer = self._accept(body) if head.startswith(b"POST") else self._tell(head)
        head = f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {len(answer)}\r\n\r\n".encode()
        self._transport.write(head + answer)

    def _accept(self, body: bytes) -> bytes:
        task_id = f"{len(self._tasks.tokens):032x}"
        self._tasks.tokens.append(json.loads(body)["callBackUrl"].rpartition("/")[2])
        return json.dumps({"code": 200, "msg": "success", "data": {"taskId": task_id}}).encode()

    def _tell(self, head: bytes) -> bytes:
        found = re.search(rb"taskId=(\w+)", head)
        assert found
        record = self._record if int(found[1], 16) < self._tasks.ended else self._pending
        return record.replace(self._known, found[1].decode()).encode()


class Sender(asyncio.Protocol):
    """One kept connection, which carries one request at a time."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the connection."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._received = b""
        self._answered: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self._answered.set_result(b"")  # nothing was asked yet

    def data_received(self, data: bytes) -> None:
        """See whether that was the end of an answer; none has a body."""
        self._received += data
        if self._received.endswith(b"\r\n\r\n"):
            self._answered.set_result(self._received)
            self._received = b""

    def connection_lost(self, exc: Exception | None) -> None:
        """Fail, instead of waiting for an answer that will not come."""
        if not self._answered.done():
            self._answered.set_exception(exc or ConnectionResetError("the connection was closed before its answer"))

    async def send(self, requests: Iterator[bytes]) -> None:
        """Send what others leave."""
        for request in requests:
            self._answered = asyncio.get_running_loop().create_future()
            self._transport.write(request)
            answer = await self._answered
            assert answer.startswith(b"HTTP/1.1 200"), answer


def callback_body() -> str:
    """A recorded callback as it was sent, without the layout of the sample; TASK stands in place of the task id."""
    body = json.loads((SAMPLES / "callback_complete.captured.json").read_text())
    body["data"]["task_id"] = "TASK"
    return json.dumps(body, ensure_ascii=False, separators=(",", ":"))


def request_of(port: int, task_id: str, token: str, body: bytes) -> bytes:
    """A callback as it comes over the wire."""
    headers = {
        "Host": f"127.0.0.1:{port}",
        "Content-Type": "application/json",
        "Content-Length": len(body),
        "User-Agent": "service",
        "Accept": "*/*",
        **sign_callback(KEY, task_id),
    }
    head = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    return f"POST /kie/{token} HTTP/1.1\r\n{head}\r\n".encode() + body


@attrs.frozen
class Cost:
    """What one event of a burst cost: CPU seconds, and seconds of the clock."""

    cpu: float
    wall: float


@attrs.frozen
class Taking:
    """A process that takes callbacks in, and the connections to it."""

    plan: Plan
    tasks: Tasks
    process: asyncio.subprocess.Process
    senders: list[Sender]
    requests: list[bytes]

    async def take(self, start: int) -> Cost:
        """Let it take one burst in, to the last completed future."""
        began, burst = time.perf_counter(), self.requests[start : start + self.plan.burst]
        rest = iter(burst)
        self.tasks.ended = start + len(burst)
        if self.plan.through == "driven":
            assert self.process.stdin is not None
            self.process.stdin.write(b"\n")
        async with asyncio.timeout(PATIENCE):
            await asyncio.gather(*(sender.send(rest) for sender in self.senders))
        cpu = (await _said(self.process))["cpu"]
        return Cost(cpu / len(burst), (time.perf_counter() - began) / len(burst))


async def _said(process: asyncio.subprocess.Process) -> dict[str, Any]:
    assert process.stdout is not None
    async with asyncio.timeout(PATIENCE):
        line = await process.stdout.readline()
    assert line, "the process that takes them in has ended"
    facts: dict[str, Any] = json.loads(line)
    return facts


@asynccontextmanager
async def taking(through: str, side: str, events: int, burst: int) -> AsyncIterator[Taking]:
    """Start a process, the service it asks, and connections to it."""
    loop, tasks = asyncio.get_running_loop(), Tasks()
    async with await loop.create_server(lambda: Service(tasks), "127.0.0.1", 0) as server:
        service = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        plan = Plan(through, side, events, burst, service, callback_body())
        async with child(plan) as process:
            port = (await _said(process))["port"]
            known = zip(task_ids(events), tasks.tokens or [TOKEN] * events, strict=True)
            requests = [
                request_of(port, task, token, plan.body.replace("TASK", task).encode()) for task, token in known
            ]
            connections = [
                await loop.create_connection(Sender, "127.0.0.1", port) for _ in range(AT_ONCE if port else 0)
            ]
            yield Taking(plan, tasks, process, [sender for _, sender in connections], requests)
            for transport, _ in connections:
                transport.close()
            await process.wait()


@asynccontextmanager
async def child(plan: Plan) -> AsyncIterator[asyncio.subprocess.Process]:
    """A process with a plan, as long as the block lasts."""
    command = [sys.executable, "-m", "benchmarks._callback_process", json.dumps(attrs.asdict(plan))]
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(*command, stdin=pipe, stdout=pipe)
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def measure(through: str, events: int, burst: int) -> dict[str, list[Cost]]:
    """The costs of the bursts of each side through one way; the sides take their bursts by turns."""
    sides = sorted({side for way, _, *both in COMPARED for side in both if way == through})
    costs: dict[str, list[Cost]] = {side: [] for side in sides}
    async with AsyncExitStack() as stack:
        processes = [await stack.enter_async_context(taking(through, side, events, burst)) for side in sides]
        for start in range(0, events, burst):
            for process in processes:
                costs[process.plan.side].append(await process.take(start))
    return {side: found[1:] for side, found in costs.items()}  # in the first much happens for the first time


def compared(bare: list[Cost], ours: list[Cost]) -> list[str]:
    """The figures of one row, all of them medians over the bursts."""
    return [
        *(f"{median(cost.cpu for cost in side) * 1e6:.0f}" for side in (bare, ours)),
        *(f"{1 / median(cost.wall for cost in side):.0f}" for side in (bare, ours)),
        f"{median(one.cpu / other.cpu for one, other in zip(bare, ours, strict=True)):.2f}",
    ]


def main(arguments: list[str]) -> int:
    """Measure, and print the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks callbacks", description=__doc__)
    parser.add_argument("--events", type=int, default=2000)
    parser.add_argument("--burst", type=int, default=50)
    options = parser.parse_args(arguments)
    costs = {way: asyncio.run(measure(way, options.events, options.burst)) for way in dict.fromkeys(WAYS)}
    rows = [(f"{way}, {until}", *compared(costs[way][bare], costs[way][ours])) for way, until, bare, ours in COMPARED]
    print(versions("aiohttp", "uvicorn", "orjson"))
    table(("through, until", "bare CPU µs", "ours CPU µs", "bare /s", "ours /s", "ours to bare"), rows)
    return 0
