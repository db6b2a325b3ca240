"""The service over HTTP: both routes, credits, links. What a request means is decided by ``_state``."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Awaitable, Callable
from typing import Any, TypeAlias

import attrs
from aiohttp import web
from aiohttp.typedefs import Handler as AppHandler

from kie_async.emulator import _bodies
from kie_async.emulator._courier import Courier
from kie_async.emulator._effects import after, before
from kie_async.emulator._faults import Fault, Point
from kie_async.emulator._hosts import names_loopback
from kie_async.emulator._library import Library
from kie_async.emulator._plan import Ask, read_classic, read_jobs
from kie_async.emulator._refusals import Refusal
from kie_async.emulator._sources import Sources
from kie_async.emulator._state import Arrival, State, Task
from kie_async.models import Operation
from kie_async.settings import RouteName

MAX_BYTES = 1_000_000  # of a request's JSON
KEY = "emulated-account-1"
_OWN_KEYS = re.compile(r"emulated-account-[1-9][0-9]*")


@attrs.frozen
class Exchange:
    """A request with what has been settled before it is looked at.

    Attributes:
        arrival: of a submission.
    """

    request: web.Request
    faults: tuple[Fault, ...]
    arrival: Arrival


Handler: TypeAlias = Callable[[Exchange], Awaitable[web.Response]]


def _json(body: object) -> web.Response:
    return web.json_response(body, dumps=lambda value: json.dumps(value, ensure_ascii=False))


def _refused(code: int, message: str = "") -> web.Response:
    return _json(Refusal(code, message).body())


async def _object(request: web.Request) -> dict[str, Any] | None:
    """The request's JSON object; None if it is none."""
    try:
        body = json.loads(await request.read())
    except (ValueError, RecursionError):
        return None
    return body if isinstance(body, dict) else None


@web.middleware
async def under_own_name(request: web.Request, handler: AppHandler) -> web.StreamResponse:
    """Answer 403 unless the request was sent to a name of loopback.

    The owner of a name can let it lead to 127.0.0.1 (DNS rebinding). Without this check a page in a browser could use
    the emulator under that name as if it were its own server, and through it reach loopback.
    """
    hosts = request.headers.getall("Host", [])
    if not hosts or not all(map(names_loopback, hosts)):
        return web.Response(status=403, text="the emulator answers to 127.0.0.1, [::1] and localhost only\n")
    return await handler(request)


@attrs.define
class Service:
    """The handlers, and what they work with.

    Attributes:
        keys: those that are taken; none: ``emulated-account-N``, whatever the number.
        spoil: whether recordInfo of the jobs route is malformed, as a real one was.
        check: whether the sources of uploads are looked at.
    """

    state: State
    courier: Courier
    sources: Sources
    library: Library
    clock: Callable[[], float]
    keys: tuple[str, ...] = ()
    spoil: bool = True
    check: bool = True
    base_url: str = ""

    def routes(self) -> list[web.RouteDef]:
        """What is served where."""
        submit: tuple[tuple[str, RouteName, Handler], ...] = (
            ("/api/v1/generate/extend", "classic", self._submits("extend")),
            ("/api/v1/generate/upload-extend", "classic", self._submits("upload_extend")),
            ("/api/v1/jobs/createTask", "jobs", self._create_task),
        )
        post: tuple[tuple[str, Point, Handler], ...] = (
            ("/api/v1/common/download-url", "download_url", self._download_url),
            ("/api/file-stream-upload", "upload", self._upload_stream),
            ("/api/file-base64-upload", "upload", self._upload_base64),
            ("/api/file-url-upload", "upload", self._upload_url),
        )
        get: tuple[tuple[str, Point, Handler], ...] = (
            ("/api/v1/generate/record-info", "record_info", self._record_info),
            ("/api/v1/jobs/recordInfo", "record_info", self._job_info),
            ("/api/v1/chat/credit", "credits", self._credits),
        )
        return [
            *(web.post(path, self._exchange("submit", handler, route)) for path, route, handler in submit),
            *(web.post(path, self._exchange(point, handler)) for path, point, handler in post),
            *(web.get(path, self._exchange(point, handler), allow_head=False) for path, point, handler in get),
            web.get("/files/{path:.+}", self._exchange("download", self._download, keyless=True)),
        ]

    def _exchange(
        self, point: Point, handler: Handler, route: RouteName = "classic", *, keyless: bool = False
    ) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:  # fmt: skip
        async def handle(request: web.Request) -> web.StreamResponse:
            now = self.clock()
            known = keyless or self._knows(request)
            arrival = self.state.arrive(route, now, counts=known) if point == "submit" else Arrival(now, route)
            faults = self.state.faults.pick(point, request.query.get("taskId"))
            if (answer := await before(request, faults)) is not None:
                return answer
            if not known:
                arrival.code = 401
                return await after(request, faults, _refused(401))
            try:
                answer = await handler(Exchange(request, faults, arrival))
            except ConnectionError:  # pragma: no cover (the client went at this very moment: nobody is left to answer)
                return web.Response()
            return await after(request, faults, answer)

        return handle

    def _knows(self, request: web.Request) -> bool:
        scheme, _, key = request.headers.get("Authorization", "").partition(" ")
        return scheme == "Bearer" and (key in self.keys if self.keys else _OWN_KEYS.fullmatch(key) is not None)

    # ------------------------------------------------------------ submissions

    def _submits(self, operation: Operation) -> Handler:
        async def handle(exchange: Exchange) -> web.Response:
            body = await _object(exchange.request)
            return await self._submit(exchange, None if body is None else read_classic(operation, body))

        return handle

    async def _create_task(self, exchange: Exchange) -> web.Response:
        body = await _object(exchange.request) or {}
        operation = _bodies.JOBS_MODELS.get(str(body.get("model")))
        if operation is None:
            exchange.arrival.code = 422
            return _refused(422, "The model name you specified is not supported.")
        return await self._submit(exchange, read_jobs(operation, body))

    async def _submit(self, exchange: Exchange, ask: Ask | None) -> web.Response:
        if ask is None:
            exchange.arrival.code = 422
            return _refused(422, "The request body is not a JSON object.")
        raw = await exchange.request.read()
        created = int(time.time() * 1000)
        task = self.state.submit(exchange.arrival, ask, raw, created=created, faults=exchange.faults)
        if isinstance(task, Refusal):
            return _json(task.body())
        await self._set_out(task)
        return _json(_bodies.submitted(task))

    async def _set_out(self, task: Task) -> None:
        if self.check and task.ask.operation == "upload_extend":
            self.sources.check(task)
        self.courier.wake()
        for delivery in task.early:
            await self.courier.send(delivery)

    # ------------------------------------------------------------ looks

    def _look(self, exchange: Exchange) -> tuple[Task, _bodies.View] | None:
        task_id = exchange.request.query.get("taskId", "")
        self.state.polls[task_id] += 1
        task = self.state.tasks.get(task_id)
        seen = _bodies.view(task, exchange.arrival.at) if task else None
        for fault in exchange.faults:
            if seen is not None and fault.kind in _bodies.LOOKS:
                seen = _bodies.LOOKS[fault.kind](seen, fault)
        return (task, seen) if task and seen else None

    async def _record_info(self, exchange: Exchange) -> web.Response:
        found = self._look(exchange)
        return _json(_bodies.record(*found, self.base_url) if found else _bodies.ok(None))

    async def _job_info(self, exchange: Exchange) -> web.Response:
        found = self._look(exchange)
        if found is None:
            return _refused(422, "recordInfo is null")
        body = _bodies.job_record(*found, self.base_url)
        return web.Response(body=_bodies.spoilt(body), content_type="application/json") if self.spoil else _json(body)

    async def _credits(self, _exchange: Exchange) -> web.Response:
        return _json(_bodies.ok(self.state.credits_left(self.clock())))

    # ------------------------------------------------------------ files

    async def _download_url(self, exchange: Exchange) -> web.Response:
        body = await _object(exchange.request) or {}
        link = self.library.link(str(body.get("url")))
        return _refused(422, "url is wrong") if link is None else _json(_bodies.ok(link))

    async def _upload_stream(self, exchange: Exchange) -> web.Response:
        return _json(await self.library.take_form(exchange.request))

    async def _upload_base64(self, exchange: Exchange) -> web.Response:
        return _json(self.library.take_base64(await _object(exchange.request) or {}))

    async def _upload_url(self, exchange: Exchange) -> web.Response:
        return _json(await self.library.take_url(await _object(exchange.request) or {}))

    async def _download(self, exchange: Exchange) -> web.Response:
        whole = any(fault.kind == "ignores_range" for fault in exchange.faults)
        return await self.library.give(exchange.request, whole=whole)
