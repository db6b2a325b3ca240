"""The key is never shown: not by an error, a log, an event, a traceback with variables, a pickle or a value."""

from __future__ import annotations

import asyncio
import gzip
import json
import logging
import pickle
import socket
import ssl
import wave
from collections.abc import Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import attrs
import pytest
import trustme
from fault_server import (
    BREAKS,
    KEY,
    LOOK,
    RECORD,
    REQUEST,
    Asked,
    Reply,
    Source,
    fault_server,
    http,
    ok,
    said,
    settings,
)
from leaks import chain, frames, shown
from service import serving
from virtual_time import VirtualTimeLoop

import kie_async as kie
from kie_async._client.http_client import Transport
from kie_async._protocol.endpoints import credits_left
from kie_async.emulator import Fault
from kie_async.events import Event, log_event

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("clock")]

WEBHOOK_KEY = "w-marker-fedcba9876543210"
HURRY = {"submit_retry_timeout": 0, "task_timeout": 3, "not_found_timeout": 0, "read_timeout": 5, "total_timeout": 9}


def without_secrets(*texts: str) -> None:
    """Not the keys, and not the greater part of one either."""
    for text in texts:
        assert KEY[:12] not in text
        assert KEY[-12:] not in text
        assert WEBHOOK_KEY[:12] not in text


@pytest.fixture(autouse=True)
def _logs(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Whatever is logged by anybody, down to DEBUG, holds no secret."""
    caplog.set_level(logging.DEBUG)
    yield
    without_secrets(caplog.text, *(repr(vars(record)) for record in caplog.get_records("call")))


@pytest.fixture
def song(tmp_path: Path) -> Path:
    with wave.open(str(tmp_path / "song.wav"), "wb") as file:
        file.setparams((1, 2, 8000, 0, "NONE", ""))
        file.writeframes(bytes(8000 * 2 * 5))
    return tmp_path / "song.wav"


class Watched:
    """A session whose every event is logged and kept."""

    def __init__(self, session: kie.KieSession, emitted: list[Event]) -> None:
        self.session = session
        self.emitted = emitted

    async def fail(self, work: Awaitable[object]) -> BaseException | None:
        """Await what probably fails; whatever comes of it is searched."""
        try:
            value = await work
        except (kie.KieError, TimeoutError) as error:
            without_secrets(*shown(error))
            return error
        without_secrets(repr(value), repr(pickle.dumps(value)) if attrs.has(type(value)) else "")
        return None

    def check_events(self) -> None:
        for event in self.emitted:
            without_secrets(repr(event), repr(attrs.asdict(event)), repr(pickle.dumps(event)))


@asynccontextmanager
async def watched(base_url: str, **changes: Any) -> Any:
    emitted: list[Event] = []

    def observe(event: Event) -> None:
        emitted.append(event)
        log_event(event)

    options = {"webhook_key": WEBHOOK_KEY, "observer": observe, **HURRY, **changes}
    async with kie.KieSession(settings(base_url, **options)) as session:
        opened = Watched(session, emitted)
        yield opened
    opened.check_events()


async def try_everything(opened: Watched, song: Path | None = None) -> None:
    session = opened.session

    async def follow() -> object:
        return await session.track("t1")

    calls: list[Awaitable[object]] = [
        session.submit(REQUEST), session.record_info("t1"), session.credits(), session.download_url("https://h.example/a"),
        follow(), session.upload_extend("https://h.example/a.mp3", model="V5", continue_at=5),
    ]  # fmt: skip
    if song is not None:
        calls += [session.upload(song), session.upload_extend(song, model="V5", continue_at=3)]
    for call in calls:
        await opened.fail(call)


@pytest.mark.parametrize("reply", BREAKS.values(), ids=BREAKS.keys())
async def test_broken_answers(reply: Reply) -> None:
    async with fault_server(reply) as server, watched(server.url) as opened:
        await try_everything(opened)


# ---------------------------------------------------------------- a server that echoes what it was sent


def _echo(make: Callable[[str], bytes]) -> Source:
    return lambda asked: Reply((make(asked.headers.get("authorization", "none")),))


def _in_data(bearer: str) -> dict[str, Any]:
    track = {"id": "x", "title": bearer, "audioUrl": f"https://h.example/{bearer}"}
    return {
        "taskId": "t1", "status": bearer, "errorMessage": bearer, "param": bearer, "type": bearer,
        "operationType": bearer, "response": {"sunoData": [track]}, "downloadUrl": f"https://h.example/{bearer[7:]}",
    }  # fmt: skip


ECHOES: dict[str, Callable[[str], bytes]] = {
    **{f"code {code}": lambda bearer, code=code: http(200, said(code, f"not this: {bearer}")) for code in  # type: ignore[misc]
       (400, 401, 402, 404, 422, 429, 433, 451, 455, 500, 599)},
    **{f"status {status}": lambda bearer, status=status: http(status, f"<pre>{bearer}</pre>") for status in  # type: ignore[misc]
       (200, 302, 400, 401, 429, 500, 502)},
    "the bare key": lambda bearer: http(200, said(500, bearer[7:])),
    "in an address": lambda bearer: http(200, said(451, f"could not fetch https://{bearer[7:]}@h.example/{bearer[7:]}")),
    "in the data": lambda bearer: http(200, said(data=_in_data(bearer))),
    "failed, in the data": lambda bearer: http(200, said(data={**_in_data(bearer), "errorCode": 413})),
    "as the data": lambda bearer: http(200, said(data=bearer[7:])),
    "as the task id": lambda bearer: http(200, said(data={"taskId": bearer[7:]})),
    "in gzip": lambda bearer: http(200, gzip.compress(said(500, bearer)), Content_Encoding="gzip"),
    "in the status line": lambda bearer: f"HTTP/1.1 500 {bearer}\r\n\r\n".encode(),
    "as the status line": lambda bearer: f"{bearer}\r\n\r\n".encode(),
    "as the status": lambda bearer: f"HTTP/1.1 {bearer}\r\n\r\n".encode(),
    "in a bad header": lambda bearer: f"HTTP/1.1 200 OK\r\nX\0-Echo: {bearer}\r\n\r\n".encode(),
    "in a long header": lambda bearer: http(200, X_Echo=bearer + "x" * 20_000),
    "in half a header": lambda bearer: f"HTTP/1.1 200 OK\r\nX-Echo: {bearer}".encode(),
    "as the length": lambda bearer: http(200, Content_length=bearer),
    "as a chunk's size": lambda bearer: http(200, f"{bearer}\r\n", length=-1, Transfer_Encoding="chunked"),
    "in other headers": lambda bearer: http(429, Retry_After=bearer, Location=bearer, Set_Cookie=bearer, Date=bearer),
    "as the encoding": lambda bearer: http(200, bearer, Content_Encoding=bearer),
}  # fmt: skip


@pytest.mark.parametrize("make", ECHOES.values(), ids=ECHOES.keys())
async def test_echoes(make: Callable[[str], bytes], song: Path) -> None:
    async with fault_server(_echo(make)) as server, watched(server.url) as opened:
        await try_everything(opened, song)
        assert any(KEY in asked.headers["authorization"] for asked in server.asked)


@pytest.mark.parametrize("page", [True, False])
async def test_echoes_that_are_cut_to_be_shown(page: bool) -> None:  # noqa: FBT001  # a parameter of a table
    def reply(asked: Asked) -> Reply:
        echo = "x" * lengths.pop() + asked.headers["authorization"][7:]
        return Reply((http(200, echo if page else said(404, echo)),))

    lengths = list(range(150, 210) if page else range(460, 510))
    async with fault_server(reply) as server, watched(server.url) as opened:
        while lengths:
            assert await opened.fail(opened.session.credits()) is not None


async def test_an_echo_in_an_odd_spelling() -> None:
    def reply(asked: Asked) -> Reply:
        spelt = "".join(f"\\u{ord(character):04x}" for character in asked.headers["authorization"][7:])
        return ok(said(404, "XX").replace(b"XX", spelt.encode()))

    async with fault_server(reply) as server, Transport(settings(server.url), print) as opened:
        with pytest.raises(kie.InvalidRequestError, match="…") as caught:
            await opened.send(credits_left)
        without_secrets(str(caught.value), repr(caught.value))


async def test_an_answer_is_not_harmed_by_a_key_that_is_a_word() -> None:
    async with fault_server(ok(RECORD)) as server, Transport(settings(server.url, api_key="taskId"), print) as opened:
        record = await opened.send(LOOK)
        assert record is not None
        assert record.task_id == "t1"


# ---------------------------------------------------------------- connections that are not made


async def test_nothing_to_connect_to() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        async with watched(f"http://127.0.0.1:{probe.getsockname()[1]}") as opened:
            await try_everything(opened)


async def test_no_proof() -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    trustme.CA().issue_cert("127.0.0.1").configure_cert(context)
    async with fault_server(ok(), tls=context) as server, watched(server.url) as opened:
        await try_everything(opened)


@pytest.mark.parametrize("answer", [http(407, "<html>"), b"", b"nothing like it\r\n\r\n"])
async def test_proxies(answer: bytes) -> None:
    async with fault_server(Reply((answer,))) as proxy:
        async with watched("https://api.invalid", proxy=proxy.url) as opened:
            await try_everything(opened)
        assert proxy.asked
        assert not {"authorization", "proxy-authorization"} & proxy.asked[0].headers.keys()


# ---------------------------------------------------------------- giving up


SILENCES = Reply(end="wait"), Reply((http(200, length=9),), end="wait"), Reply(read="nothing", end="wait")


@pytest.mark.parametrize("reply", SILENCES)
async def test_a_caller_that_loses_patience(reply: Reply, song: Path) -> None:
    async def hurried(work: Awaitable[object]) -> None:
        async with asyncio.timeout(1):
            await work

    patient = {"read_timeout": 60, "total_timeout": 90}
    async with fault_server(reply) as server, watched(server.url, **patient) as opened:
        session = opened.session
        for work in (session.credits(), session.upload(song), session.record_info("t1"), session.submit(REQUEST)):
            assert isinstance(await opened.fail(hurried(work)), TimeoutError)


async def test_the_frames_that_hold_the_header_are_looked_at() -> None:
    async with fault_server(Reply(end="wait")) as server, watched(server.url, read_timeout=60) as opened:
        with pytest.raises(TimeoutError) as caught:
            async with asyncio.timeout(1):
                await opened.session.credits()
        seen = [text for each in chain(caught.value) for _, text in frames(each) if "'Bearer …'" in text]
        assert seen
        without_secrets(*seen)


async def test_a_session_that_is_cancelled(clock: VirtualTimeLoop) -> None:
    clock.set_debug(True)  # asyncio then says more  # its only argument
    errors: list[BaseException] = []

    async def run() -> None:
        try:
            async with watched(server.url) as opened:
                await asyncio.gather(opened.session.credits(), opened.session.submit(REQUEST))
        except asyncio.CancelledError as error:
            errors.append(error)
            raise

    async with fault_server(Reply(end="wait")) as server:
        running = asyncio.ensure_future(run())
        while len(server.asked) < 2:
            await asyncio.sleep(0.01)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
    without_secrets(*(text for error in errors for text in shown(error)))
    assert errors
    clock.set_debug(False)  # likewise


# ---------------------------------------------------------------- against the emulator

FAULTS = [
    Fault("lost"), Fault("reset"), Fault("drop"), Fault("html"), Fault("code"), Fault("code", code=429),
    Fault("redirect"), Fault("truncated"), Fault("garbage"), Fault("malformed"), Fault("gzip_bomb"),
    Fault("failed"), Fault("refused"),
    Fault("html", on="record_info"), Fault("code", on="record_info", code=401), Fault("code", on="credits"),
]  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS, ids=[f"{fault.kind} {fault.on}" for fault in FAULTS])
async def test_the_emulator(fault: Fault) -> None:
    changes = {"webhook_key": WEBHOOK_KEY, "observer": log_event, **HURRY, "task_timeout": 600}
    async with serving(callbacks=True, settings=changes, key=KEY, webhook_key=WEBHOOK_KEY, faults=[fault]) as service:
        opened = Watched(service.session, service.emitted)

        async def whole() -> object:
            return await (await service.session.submit(REQUEST))

        await opened.fail(whole())
        await opened.fail(service.session.credits())
        await service.session.receiver.handle({"X-Webhook-Signature": "x", "X-Webhook-Timestamp": "1"}, b"{}", "t" * 32)
        await service.session.receiver.handle({}, json.dumps({"data": {"task_id": "t1"}}).encode(), "t" * 32)


# ---------------------------------------------------------------- values


async def test_settings() -> None:
    value = settings("http://127.0.0.1:1", webhook_key=WEBHOOK_KEY)
    without_secrets(repr(value), str(value), repr(attrs.asdict(value)), repr(attrs.astuple(value)), f"{value}")
    with pytest.raises(TypeError) as caught:
        pickle.dumps(value)
    without_secrets(*shown(caught.value))
    for bad in (f"{KEY} ", f"{KEY}\n", f"Bearer {KEY}", f'"{KEY}"'):
        with pytest.raises(kie.SettingsError) as refused:
            settings("http://127.0.0.1:1", api_key=bad)
        without_secrets(str(refused.value), repr(refused.value), repr(vars(refused.value)))
