"""One process that takes callbacks in, for the benchmark "callbacks": ``python -m benchmarks._callback_process PLAN``.

Four sides. *bare*: parses JSON, checks one HMAC, sets a future. *receiver*: our skin and receiver, whose ``deliver``
sets the future. *asking*: bare, but it sets the future only after record-info has said so. *session*: all of ours, on
tasks that it submitted. Each is taken through aiohttp, or as an ASGI application through uvicorn or driven directly.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import json
import socket
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from operator import attrgetter
from typing import Any

import aiohttp
import attrs
import uvicorn
from aiohttp import web

import kie_async as kie
from benchmarks._distant import Distant
from kie_async.callbacks import Receiver, Receiving, add_routes, asgi, sign_callback
from kie_async.callbacks._asgi import Application, Message, Receive, Send
from kie_async.models import CallbackEvent
from kie_async.settings import Secret

KEY = "webhook-key-of-the-benchmark"
TOKEN = "t" * 43
AT_ONCE = 16  # connections of the sender, and polls or submissions under way
IDLE = 3600  # seconds that a connection may rest while the other sides have their turns

REQUEST = kie.ExtendRequest("a1", model="V5", prompt="p", style="s", title="t", continue_at=1.0)

Complete = Callable[[str], Awaitable[None]]


@attrs.frozen
class Plan:
    """What one process is to do.

    Attributes:
        through: "aiohttp", "uvicorn" or "driven".
        side: "bare", "receiver", "asking" or "session".
        events: how many will come, one for each task.
        burst: how many of them come at a time.
        service: the address of the stub that answers record-info.
        body: a callback's body, with TASK in place of the task id.
    """

    through: str
    side: str
    events: int
    burst: int
    service: str
    body: str


def task_ids(count: int) -> list[str]:
    """The ids that the stub gives, in its order."""
    return [f"{number:032x}" for number in range(count)]


# ---------------------------------------------------------------- the sides


def judge(claims: Any, timestamp: str, signature: str) -> str:  # noqa: ANN401  # JSON is anything
    """What any handler has to do: the task's id, if the signature is right."""
    task_id: str = claims["data"]["task_id"]
    digest = hmac.new(KEY.encode(), f"{task_id}.{timestamp}".encode(), hashlib.sha256).digest()
    if not hmac.compare_digest(base64.b64encode(digest).decode(), signature):
        raise ValueError("wrong signature")
    return task_id


async def ask(client: aiohttp.ClientSession, service: str, task_id: str) -> None:
    """What a careful handler has to do besides: the truth is record-info's."""
    async with client.get(f"{service}/api/v1/generate/record-info", params={"taskId": task_id}) as answer:
        record = json.loads(await answer.read())["data"]
    if (record["taskId"], record["status"]) != (task_id, "SUCCESS"):
        raise ValueError("no success")


def bare_aiohttp(app: web.Application, complete: Complete) -> None:
    """A handler as one would write it for oneself."""

    async def take(request: web.Request) -> web.Response:
        headers = request.headers
        task_id = judge(await request.json(), headers["X-Webhook-Timestamp"], headers["X-Webhook-Signature"])
        await complete(task_id)
        return web.Response()

    app.router.add_post("/kie/{token}", take)


def bare_asgi(complete: Complete) -> Application:
    """The same as an ASGI application."""

    async def take(scope: Message, receive: Receive, send: Send) -> None:
        message = await receive()
        body = message["body"]
        while message.get("more_body"):
            message = await receive()
            body += message["body"]
        headers: Mapping[bytes, bytes] = dict(scope["headers"])
        timestamp, signature = headers[b"x-webhook-timestamp"], headers[b"x-webhook-signature"]
        await complete(judge(json.loads(body), timestamp.decode(), signature.decode()))
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"0")]})
        await send({"type": "http.response.body", "body": b""})

    return take


class Inbox:
    """What the skins need of a session, with nothing behind it."""

    def __init__(self, complete: Complete) -> None:
        self.settings = kie.Settings(api_key="benchmark", callback_url="https://me.example/kie")
        self.receiver = Receiver((Secret(KEY),), self._deliver, self.settings.observer)
        self._complete = complete

    async def _deliver(self, _token: str, event: CallbackEvent) -> str:
        await self._complete(event.task_id)
        return ""


@attrs.frozen
class Side:
    """One side, ready: how it is mounted, and what its tasks' ends are awaited by."""

    in_aiohttp: Callable[[web.Application], None]
    in_asgi: Callable[[], Application]
    ends: list[Awaitable[object]]


@asynccontextmanager
async def standing(plan: Plan) -> AsyncIterator[Side]:
    """Make the side of a plan."""
    if plan.side == "session":
        async with submitted(plan) as (session, tasks):
            yield _ours(session, tasks)
        return
    futures = {task_id: asyncio.get_running_loop().create_future() for task_id in task_ids(plan.events)}

    async def complete(task_id: str) -> None:
        if plan.side == "asking":
            await ask(client, plan.service, task_id)
        futures[task_id].set_result(None)

    async with aiohttp.ClientSession() as client:
        if plan.side == "receiver":
            yield _ours(Inbox(complete), list(futures.values()))
        else:
            yield Side(lambda app: bare_aiohttp(app, complete), lambda: bare_asgi(complete), list(futures.values()))


def _ours(session: Receiving, ends: list[Awaitable[object]]) -> Side:
    return Side(lambda app: add_routes(app, session, path="/kie"), lambda: asgi(session), ends)


@asynccontextmanager
async def submitted(plan: Plan) -> AsyncIterator[tuple[kie.KieSession, list[Awaitable[object]]]]:
    """A session that follows as many tasks of its own."""
    settings = Distant(
        api_key="benchmark",
        base_url=plan.service,
        callback_url="https://me.example/kie",
        webhook_key=KEY,
        max_in_flight=plan.events,
        quota=plan.events,
        max_concurrent_polls=AT_ONCE,
    )
    async with kie.KieSession(settings) as session:
        left, tasks = iter(range(plan.events)), list[kie.Task]()

        async def submit() -> None:
            for _ in left:
                tasks.append(await session.submit(REQUEST))

        await asyncio.gather(*(submit() for _ in range(AT_ONCE)))
        yield session, [*sorted(tasks, key=attrgetter("id"))]


# ---------------------------------------------------------------- the ways in


@asynccontextmanager
async def listening(plan: Plan, side: Side) -> AsyncIterator[int]:
    """Serve the side; give the port."""
    if plan.through == "aiohttp":
        app = web.Application()
        side.in_aiohttp(app)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=1.0, keepalive_timeout=IDLE)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        try:
            yield runner.addresses[0][1]
        finally:
            await runner.cleanup()
        return
    listener = socket.create_server(("127.0.0.1", 0))
    options: dict[str, Any] = {"http": "h11", "ws": "none", "lifespan": "off", "log_config": None, "access_log": False}
    config = uvicorn.Config(side.in_asgi(), timeout_keep_alive=IDLE, **options)
    server = uvicorn.Server(config)
    serving = asyncio.create_task(server.serve([listener]))
    try:
        yield listener.getsockname()[1]
    finally:
        server.should_exit = True
        await serving


async def drive(application: Application, events: list[tuple[Message, bytes]]) -> None:
    """Call an ASGI application for each event, some at once."""
    rest = iter(events)

    async def worker() -> None:
        for scope, body in rest:
            await _call(application, scope, body)

    await asyncio.gather(*(worker() for _ in range(AT_ONCE)))


def _scope(task_id: str) -> Message:
    signed = {"Host": "127.0.0.1", "Content-Type": "application/json", **sign_callback(KEY, task_id)}
    headers = [(name.lower().encode(), value.encode()) for name, value in signed.items()]
    return {"type": "http", "http_version": "1.1", "method": "POST", "path": f"/kie/{TOKEN}", "headers": headers}


async def _call(application: Application, scope: Message, body: bytes) -> None:
    sent: list[Message] = []

    async def receive() -> Message:
        await asyncio.sleep(0)  # so that those who wait for the futures have their turn
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message: Message) -> None:
        sent.append(message)

    await application(scope, receive, send)
    assert sent[0]["status"] == 200


# ---------------------------------------------------------------- the figures


async def take(plan: Plan) -> None:
    """Take all events in, and print what each burst of them cost."""
    async with AsyncExitStack() as stack:
        side = await stack.enter_async_context(standing(plan))
        waiting = [asyncio.create_task(_end(each)) for each in side.ends]
        if plan.through == "driven":
            application = side.in_asgi()
            events = [
                (_scope(task_id), plan.body.replace("TASK", task_id).encode()) for task_id in task_ids(plan.events)
            ]
            _say(port=0)
        else:
            _say(port=await stack.enter_async_context(listening(plan, side)))
        used = time.process_time()
        for start in range(0, plan.events, plan.burst):
            burst = slice(start, start + plan.burst)
            if plan.through == "driven":
                sys.stdin.readline()  # nothing else is to run meanwhile
                await drive(application, events[burst])
            await asyncio.gather(*waiting[burst])
            before, used = used, time.process_time()
            _say(cpu=used - before)


async def _end(of: Awaitable[object]) -> None:
    await of


def _say(**facts: Any) -> None:  # noqa: ANN401  # JSON is anything
    print(json.dumps(facts), flush=True)


if __name__ == "__main__":
    asyncio.run(take(Plan(**json.loads(sys.argv[1]))))
