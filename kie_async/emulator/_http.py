"""The service over HTTP: both routes, credits, files. What a request means is decided by ``_state``."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, TypeAlias

import attrs
from aiohttp import web
from aiohttp.typedefs import Handler as AppHandler

from kie_async.emulator import _bodies
from kie_async.emulator._callbacks import CallbackSender
from kie_async.emulator._faults import Fault, Point
from kie_async.emulator._files import FileStore, SourceChecker, UploadReader, read_base64, read_form, read_object
from kie_async.emulator._refusals import RefusedSubmission
from kie_async.emulator._state import EmulatorState
from kie_async.emulator._tasks import EmulatedSubmission, EmulatedTask, ReceivedRequest, TaskSnapshot, host_of
from kie_async.settings import RouteName, is_loopback

KEY = "emulated-account-1"
_OWN_KEYS = re.compile(r"emulated-account-[1-9][0-9]*")


@attrs.frozen
class Exchange:
    """A request, the faults that occur at it, and the record of when it came in."""

    request: web.Request
    faults: tuple[Fault, ...]
    received: ReceivedRequest


Handler: TypeAlias = Callable[[Exchange], Awaitable[web.Response]]
SubmissionReader: TypeAlias = Callable[[dict[str, Any]], EmulatedSubmission]


def _json(body: object) -> web.Response:
    return web.json_response(body, dumps=lambda value: json.dumps(value, ensure_ascii=False))


def _refused(code: int, message: str = "") -> web.Response:
    return _json(_bodies.refusal(code, message))


_HOST = re.compile(r"(?:[^][:/?#@]+|\[[^][/?#@]+\])(?::[0-9]*)?")  # a name or an address, perhaps with a port


def _names_loopback(header: str) -> bool:
    """Tell whether a Host header names this machine."""
    return _HOST.fullmatch(header) is not None and is_loopback(host_of(f"//{header}"))


@web.middleware
async def under_own_name(request: web.Request, handler: AppHandler) -> web.StreamResponse:
    """Answer 403 unless the request was sent to a name of loopback.

    The owner of a name can let it lead to 127.0.0.1 (DNS rebinding). Without this check a page in a browser could use
    the emulator under that name as if it were its own server, and through it reach loopback.
    """
    hosts = request.headers.getall("Host", [])
    if not hosts or not all(map(_names_loopback, hosts)):
        return web.Response(status=403, text="the emulator answers to 127.0.0.1, [::1] and localhost only\n")
    return await handler(request)


async def _before(exchange: Exchange) -> web.StreamResponse | None:
    """Apply the faults that come before the request is handled; return the answer of one that prevents this."""
    for fault in exchange.faults:
        effect = fault.effects.answer
        if effect is not None and not fault.done:
            answer = await effect(exchange.request, fault.options, web.Response())
            if not fault.effects.goes_on:
                return answer
    return None


async def _after(exchange: Exchange, answer: web.Response) -> web.StreamResponse:
    """Apply the faults that change the answer, until one of them has sent it."""
    changed: web.StreamResponse = answer
    for fault in exchange.faults:
        effect = fault.effects.answer
        if effect is not None and fault.done and isinstance(changed, web.Response):
            changed = await effect(exchange.request, fault.options, changed)
    return changed


@attrs.frozen
class EmulatedService:
    """The handlers of all routes.

    Attributes:
        keys: those that are taken; none: ``emulated-account-N``, whatever the number.
        malformed_jobs: whether recordInfo of the jobs route is malformed, as a real one was.
        check_sources: whether the sources of uploads are fetched and measured.
    """

    state: EmulatorState
    sender: CallbackSender
    checker: SourceChecker
    files: FileStore
    clock: Callable[[], float]
    keys: tuple[str, ...]
    malformed_jobs: bool
    check_sources: bool

    def routes(self) -> list[web.RouteDef]:
        """Return the routes."""
        submit: tuple[tuple[str, RouteName, SubmissionReader], ...] = (
            ("/api/v1/generate/extend", "classic", partial(_bodies.read_classic, "extend")),
            ("/api/v1/generate/upload-extend", "classic", partial(_bodies.read_classic, "upload_extend")),
            ("/api/v1/jobs/createTask", "jobs", _bodies.read_jobs),
        )
        others: tuple[tuple[str, str, Point, Handler], ...] = (
            ("POST", "/api/v1/common/download-url", "download_url", self._download_url),
            ("POST", "/api/file-stream-upload", "upload", self._takes(read_form)),
            ("POST", "/api/file-base64-upload", "upload", self._takes(read_base64)),
            ("POST", "/api/file-url-upload", "upload", self._takes(self.files.read_url)),
            ("GET", "/api/v1/generate/record-info", "record_info", self._record_info),
            ("GET", "/api/v1/jobs/recordInfo", "record_info", self._job_info),
            ("GET", "/api/v1/chat/credit", "credits", self._credits),
        )
        return [
            *(web.post(path, self._handler("submit", self._submits(read), route)) for path, route, read in submit),
            *(web.route(method, path, self._handler(point, handler)) for method, path, point, handler in others),
            web.get("/files/{path:.+}", self._handler("download", self._download)),
        ]

    def _handler(
        self, point: Point, answer: Handler, route: RouteName = "classic"
    ) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
        """Wrap a handler: record the request, check the key, apply the faults."""

        async def handle(request: web.Request) -> web.StreamResponse:
            now = self.clock()
            known = point == "download" or self._knows(request)
            if point == "submit":
                received = self.state.account.receive(route, now, counts=known)
            else:
                received = ReceivedRequest(now, route)
            exchange = Exchange(request, self.state.faults.pick(point, request.query.get("taskId")), received)
            if (early := await _before(exchange)) is not None:
                return early
            if not known:
                received.code = 401
                return await _after(exchange, _refused(401))
            try:
                answered = await answer(exchange)
            except ConnectionError:  # pragma: no cover (the client disconnected just now: there is nobody to answer)
                return web.Response()
            return await _after(exchange, answered)

        return handle

    def _knows(self, request: web.Request) -> bool:
        scheme, _, key = request.headers.get("Authorization", "").partition(" ")
        return scheme == "Bearer" and (key in self.keys if self.keys else _OWN_KEYS.fullmatch(key) is not None)

    # ------------------------------------------------------------ submissions

    def _submits(self, read: SubmissionReader) -> Handler:
        async def handle(exchange: Exchange) -> web.Response:
            submission = read(await read_object(exchange.request))
            raw, created = await exchange.request.read(), int(time.time() * 1000)
            task = self.state.submit(exchange.received, submission, raw, created=created, faults=exchange.faults)
            if isinstance(task, RefusedSubmission):
                return _refused(task.code, task.message)
            if self.check_sources and submission.operation == "upload_extend":
                self.checker.check(task)
            self.sender.wake()
            for callback in task.early:
                await self.sender.send(task, callback)
            return _json(_bodies.submitted(task))

        return handle

    # ------------------------------------------------------------ polls

    def _poll(self, exchange: Exchange) -> tuple[EmulatedTask, TaskSnapshot] | None:
        task_id = exchange.request.query.get("taskId", "")
        self.state.polls[task_id] += 1
        task = self.state.tasks.get(task_id)
        seen = task.timeline.snapshot(exchange.received.at - task.at) if task else None
        for fault in exchange.faults:
            if seen is not None and fault.effects.poll is not None:
                seen = fault.effects.poll(seen, fault.options)
        return (task, seen) if task and seen else None

    async def _record_info(self, exchange: Exchange) -> web.Response:
        found = self._poll(exchange)
        return _json(_bodies.record(*found, self.state.base_url) if found else _bodies.ok(None))

    async def _job_info(self, exchange: Exchange) -> web.Response:
        found = self._poll(exchange)
        if found is None:
            return _refused(422, "recordInfo is null")
        body = _bodies.job_record(*found, self.state.base_url)
        if not self.malformed_jobs:
            return _json(body)
        return web.Response(body=_bodies.malformed(body), content_type="application/json")

    async def _credits(self, _exchange: Exchange) -> web.Response:
        return _json(_bodies.ok(self.state.account.credits_left(self.clock())))

    # ------------------------------------------------------------ files

    async def _download_url(self, exchange: Exchange) -> web.Response:
        link = self.files.link(str((await read_object(exchange.request)).get("url")))
        return _refused(422, "url is wrong") if link is None else _json(_bodies.ok(link))

    def _takes(self, read: UploadReader) -> Handler:
        async def handle(exchange: Exchange) -> web.Response:
            return _json(await self.files.take(exchange.request, read))

        return handle

    async def _download(self, exchange: Exchange) -> web.Response:
        return await self.files.give(exchange.request)
