"""One small server that speaks the protocols of all the peers, to each on a port of its own. Run by ``peers``.

A task ends at a moment that is drawn when it is submitted; until then it is pending, from then on it has succeeded.
The process writes the ports on its first line, and what it saw of each client on its last, once its input is closed.
"""

from __future__ import annotations

import asyncio
import json
import random
import sys
import time
from contextlib import AsyncExitStack
from datetime import UTC, datetime
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import attrs
from aiohttp import web

from kie_async.settings import is_loopback

AUDIO = "https://example.com/audio.mp3"
BACKLOG = 4096  # connections that wait to be accepted: none is sent away because all come at once


@attrs.define
class Seen:
    """What one client did.

    Attributes:
        ends: the moment at which each task ends, by ``time.time()``.
        polls: requests about each task after its submission.
        connections: accepted.
    """

    ends: dict[str, float] = attrs.field(factory=dict)
    polls: dict[str, int] = attrs.field(factory=dict)
    connections: int = 0


class Service:
    """All the protocols, for one client.

    Args:
        name: of the client; the ids of its tasks begin with it.
        durations: of its tasks, in seconds, in the order of submission.
        http: by which callbacks are sent.
    """

    def __init__(self, name: str, durations: list[float], http: aiohttp.ClientSession) -> None:
        self.seen = Seen()
        self._name = name
        self._durations = durations
        self._http = http
        self._callbacks: set[asyncio.Task[None]] = set()

    async def serve(self, stack: AsyncExitStack) -> int:
        """Listen on a free port of this machine, and return it."""
        app = web.Application()
        app.router.add_post("/api/v1/generate/extend", self._kie_submit)
        app.router.add_get("/api/v1/generate/record-info", self._kie_record)
        app.router.add_post("/fal-ai/extend", self._fal_submit)
        app.router.add_get("/fal-ai/extend/requests/{id}/status", self._fal_status)
        app.router.add_get("/fal-ai/extend/requests/{id}", self._fal_result)
        app.router.add_post("/v1/models/peers/extend/predictions", self._replicate_submit)
        app.router.add_get("/v1/predictions/{id}", self._replicate_prediction)
        app.router.add_post("/v1/sound_effect", self._runway_submit)
        app.router.add_get("/v1/tasks/{id}", self._runway_task)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=1.0)
        await runner.setup()
        stack.push_async_callback(runner.cleanup)
        server = runner.server
        assert server is not None

        def accept() -> asyncio.Protocol:
            self.seen.connections += 1
            return server()

        listener = await asyncio.get_running_loop().create_server(accept, "127.0.0.1", 0, backlog=BACKLOG)
        stack.callback(listener.close)
        port: int = listener.sockets[0].getsockname()[1]
        return port

    def _begin(self) -> str:
        number = len(self.seen.ends)
        task_id = f"{self._name}-{number}"
        self.seen.ends[task_id] = time.time() + self._durations[number % len(self._durations)]
        self.seen.polls[task_id] = 0
        return task_id

    def _look(self, task_id: str) -> bool:
        """Count a poll; tell whether the task is at its end."""
        self.seen.polls[task_id] += 1
        return time.time() >= self.seen.ends[task_id]

    async def _end_of(self, task_id: str) -> None:
        while (left := self.seen.ends[task_id] - time.time()) > 0:  # noqa: ASYNC110  # a sleep may end a little early
            await asyncio.sleep(left)

    # ------------------------------------------------------------ kie.ai, sunoapi.org

    async def _kie_submit(self, request: web.Request) -> web.Response:
        task_id, url = self._begin(), (await request.json())["callBackUrl"]
        if is_loopback(urlsplit(url).hostname):
            callback = asyncio.create_task(self._call_back(task_id, url))
            self._callbacks.add(callback)
            callback.add_done_callback(self._callbacks.discard)
        return _kie({"taskId": task_id})

    async def _kie_record(self, request: web.Request) -> web.Response:
        task_id = request.query["taskId"]
        record = {"taskId": task_id, "param": "{}", "type": "chirp-crow", "operationType": "extend", "errorCode": None}
        if not self._look(task_id):
            return _kie({**record, "status": "PENDING", "response": None})
        tracks = [{"id": f"{task_id}-{n}", "title": "t", "audioUrl": AUDIO, "duration": 60.0} for n in (1, 2)]
        return _kie({**record, "status": "SUCCESS", "response": {"taskId": task_id, "sunoData": tracks}})

    async def _call_back(self, task_id: str, url: str) -> None:
        await self._end_of(task_id)
        tracks = [{"id": f"{task_id}-{n}", "title": "t", "audio_url": AUDIO, "duration": 60.0} for n in (1, 2)]
        data = {"callbackType": "complete", "task_id": task_id, "data": tracks}
        body = {"code": 200, "msg": "All generated successfully.", "data": data}
        async with self._http.post(url, json=body) as answer:
            assert answer.status == 200

    # ------------------------------------------------------------ fal

    async def _fal_submit(self, request: web.Request) -> web.Response:
        task_id = self._begin()
        url = str(request.url.with_path(f"/fal-ai/extend/requests/{task_id}"))
        urls = {"response_url": url, "status_url": f"{url}/status", "cancel_url": f"{url}/cancel"}
        return web.json_response({"request_id": task_id, "status": "IN_QUEUE", "queue_position": 0, **urls})

    async def _fal_status(self, request: web.Request) -> web.Response:
        ended = self._look(request.match_info["id"])
        return web.json_response({"status": "COMPLETED" if ended else "IN_PROGRESS", "logs": None, "metrics": {}})

    async def _fal_result(self, request: web.Request) -> web.Response:
        self._look(request.match_info["id"])
        return web.json_response({"id": request.match_info["id"], "audio": {"url": AUDIO}})

    # ------------------------------------------------------------ Replicate

    async def _replicate_submit(self, request: web.Request) -> web.Response:
        task_id = self._begin()
        held = request.headers.get("Prefer", "").startswith("wait")  # the answer comes at the end, as from the real one
        if held:
            await self._end_of(task_id)
        return _prediction(task_id, ended=held)

    async def _replicate_prediction(self, request: web.Request) -> web.Response:
        task_id = request.match_info["id"]
        return _prediction(task_id, ended=self._look(task_id))

    # ------------------------------------------------------------ Runway

    async def _runway_submit(self, _request: web.Request) -> web.Response:
        return web.json_response({"id": self._begin(), "estimatedCost": {"credits": 1}})

    async def _runway_task(self, request: web.Request) -> web.Response:
        task = {"id": request.match_info["id"], "createdAt": datetime.now(UTC).isoformat()}
        if self._look(task["id"]):
            return web.json_response({**task, "status": "SUCCEEDED", "output": [AUDIO], "cost": {"credits": 1}})
        return web.json_response({**task, "status": "RUNNING", "progress": 0.5, "estimatedCost": {"credits": 1}})


def _kie(data: object) -> web.Response:
    return web.json_response({"code": 200, "msg": "success", "data": data})


def _prediction(task_id: str, *, ended: bool) -> web.Response:
    state = {"status": "succeeded" if ended else "processing", "output": task_id if ended else None}
    return web.json_response({"id": task_id, "model": "peers/extend", "version": "1", "input": {}, "logs": "", **state})


def durations_of(plan: dict[str, Any]) -> list[float]:
    """The seconds that each task lasts, the same for every client."""
    chance = random.Random(plan["seed"])  # noqa: S311  # a seeded plan
    return [chance.uniform(plan["shortest"], plan["longest"]) for _ in range(plan["tasks"])]


async def serve(plan: dict[str, Any]) -> None:
    """Serve every client of the plan until the input is closed."""
    durations = durations_of(plan)
    async with AsyncExitStack() as stack:
        http = await stack.enter_async_context(aiohttp.ClientSession())
        services = {name: Service(name.replace(" ", "-"), durations, http) for name in plan["clients"]}
        print(json.dumps({name: await service.serve(stack) for name, service in services.items()}), flush=True)
        await asyncio.to_thread(sys.stdin.read)
    print(json.dumps({name: attrs.asdict(service.seen) for name, service in services.items()}), flush=True)


if __name__ == "__main__":
    asyncio.run(serve(json.loads(sys.argv[1])))
