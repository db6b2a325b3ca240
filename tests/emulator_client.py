"""A plain aiohttp client for the tests of the emulator: nothing of the library's own."""

from __future__ import annotations

import io
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import attrs
from aiohttp import web

from kie_async.emulator import Emulator, serve

EXTEND: dict[str, Any] = {
    "defaultParamFlag": True,
    "audioId": "e231aaaa-0000-4000-8000-000000000001",
    "model": "V5",
    "callBackUrl": "https://example.com/cb",
    "prompt": 'a line with "quotes"',
    "style": "Synthwave",
    "title": "Side B",
    "continueAt": 60,
}
UPLOAD_EXTEND: dict[str, Any] = {
    **{key: value for key, value in EXTEND.items() if key != "audioId"},
    "uploadUrl": "https://invalid-host.invalid/song.mp3",
    "instrumental": False,
}
JOB: dict[str, Any] = {
    "model": "ai-music-api/extend",
    "input": {"audio_id": "e231", "model": "V5", "continue_at": 60, "prompt": 'a line with "quotes"'},
}


@attrs.frozen
class Client:
    """One emulator and one client of it."""

    emulator: Emulator
    http: aiohttp.ClientSession

    def url(self, path: str) -> str:
        return path if path.startswith("http") else self.emulator.base_url + path

    async def post(self, path: str, body: object) -> Any:  # JSON
        async with self.http.post(self.url(path), json=body) as answer:
            return await answer.json()

    async def get(self, path: str, **query: str) -> Any:  # JSON
        async with self.http.get(self.url(path), params=query) as answer:
            return await answer.json()

    async def read(self, path: str, **headers: str) -> tuple[int, bytes, Any]:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        async with self.http.get(self.url(path), headers=named) as answer:
            return answer.status, await answer.read(), answer.headers

    async def extend(self, **fields: object) -> Any:  # JSON
        return await self.post("/api/v1/generate/extend", {**EXTEND, **fields})

    async def upload_extend(self, **fields: object) -> Any:  # JSON
        return await self.post("/api/v1/generate/upload-extend", {**UPLOAD_EXTEND, **fields})

    async def job(self, **fields: object) -> Any:  # JSON
        return await self.post("/api/v1/jobs/createTask", {**JOB, **fields})

    async def record(self, task_id: str) -> Any:  # JSON
        return await self.get("/api/v1/generate/record-info", taskId=task_id)

    async def upload(self, content: bytes, name: str = "song.wav") -> str:
        form = aiohttp.FormData({"uploadPath": "in", "fileName": name})
        form.add_field("file", io.BytesIO(content), filename=name)
        async with self.http.post(self.url("/api/file-stream-upload"), data=form) as answer:
            url: str = (await answer.json())["data"]["downloadUrl"]
            return url


@asynccontextmanager
async def emulated(**options: Any) -> AsyncIterator[Client]:  # those of serve
    async with (
        serve(**options) as emulator,
        aiohttp.ClientSession(headers={"Authorization": f"Bearer {emulator.key}"}) as http,
    ):
        yield Client(emulator, http)


@attrs.define
class Receiver:
    """What callbacks came, and what they are answered with."""

    url: str = ""
    status: int = 200
    bodies: list[Any] = attrs.field(factory=list)
    headers: list[Any] = attrs.field(factory=list)

    def stages(self) -> list[str]:
        return [body["data"]["callbackType"] for body in self.bodies]


@asynccontextmanager
async def receiving(handler: Any = None) -> AsyncIterator[Receiver]:  # any aiohttp handler
    receiver = Receiver()

    async def receive(request: web.Request) -> web.StreamResponse:
        receiver.bodies.append(await request.json())
        receiver.headers.append(request.headers)
        return web.Response(status=receiver.status)

    app = web.Application()
    app.router.add_route("*", "/{tail:.*}", handler or receive)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        receiver.url = f"http://127.0.0.1:{runner.addresses[0][1]}/cb/token"
        yield receiver
    finally:
        await runner.cleanup()
