"""A server whose tasks stand still: one whose id begins with "wait" goes on for ever, any other has succeeded.

It does as little as it can, for what is measured are its clients. It writes its port on its first line, and ends when
its input is closed.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from itertools import count

from aiohttp import web

CORE, CLIENT_CORE = 0, 1  # apart, where there are two


def _track(name: str) -> dict[str, object]:
    return {
        "id": name,
        "audioUrl": "https://example.com/a.mp3",
        "streamAudioUrl": "https://example.com/a",
        "imageUrl": "https://example.com/a.jpeg",
        "prompt": "A song about a harbour at night, told by the one who waits for the last ferry.",
        "title": "Harbour",
        "tags": "piano, slow",
        "modelName": "chirp-crow",
        "duration": 154.68,
        "createTime": 1772624679694,
    }


def _record(status: str, tracks: list[dict[str, object]]) -> dict[str, object]:
    return {
        "taskId": "TASK",
        "status": status,
        "type": "chirp-crow",
        "operationType": "extend",
        "errorCode": None,
        "errorMessage": None,
        "param": "{}",
        "response": {"taskId": "TASK", "sunoData": tracks},
    }


def _whole(data: object) -> str:
    return json.dumps({"code": 200, "msg": "success", "data": data})


_DONE = _whole(_record("SUCCESS", [_track("a"), _track("b")]))
_PENDING = _whole(_record("PENDING", []))


async def _serve() -> None:
    numbers = count()

    async def submit(request: web.Request) -> web.Response:
        await request.json()
        text = _whole({"taskId": f"{next(numbers):032x}"})
        return web.Response(text=text, content_type="application/json")

    async def poll(request: web.Request) -> web.Response:
        task_id = request.query["taskId"]
        text = (_PENDING if task_id.startswith("wait") else _DONE).replace("TASK", task_id)
        return web.Response(text=text, content_type="application/json")

    app = web.Application()
    app.router.add_post("/api/v1/generate/extend", submit)
    app.router.add_get("/api/v1/generate/record-info", poll)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0, backlog=4096).start()
    print(runner.addresses[0][1], flush=True)
    await asyncio.to_thread(sys.stdin.read)
    await runner.cleanup()


def pin(core: int) -> None:
    """Bind this process to one core, where the system knows how and has another."""
    if hasattr(os, "sched_setaffinity") and len(os.sched_getaffinity(0)) > 1:
        os.sched_setaffinity(0, {core})


if __name__ == "__main__":
    pin(CORE)
    asyncio.run(_serve())
