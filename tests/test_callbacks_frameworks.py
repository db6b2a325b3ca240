"""Callbacks in the applications of others: each framework as its documentation mounts a foreign ASGI application."""

from __future__ import annotations

import base64
import os
import socket
from collections.abc import AsyncIterator

import aiohttp
import anyio
import pytest
from callback_skins import BODY, FRAMEWORKS, TASK, TOKEN, Inbox, connect, under_uvicorn
from service import REQUEST
from virtual_time import VirtualTimeLoop
from yarl import URL

import kie_async as kie
from kie_async import emulator, events

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("clock")]

ENCODED = TOKEN.replace("_", "%5F").replace("-", "%2D").replace("A", "%41", 1)
HEAD = f"POST /kie/{TOKEN} HTTP/1.1\r\nHost: 127.0.0.1\r\n"


@pytest.fixture
async def http(clock: VirtualTimeLoop) -> AsyncIterator[aiohttp.ClientSession]:
    assert clock.is_running()
    async with aiohttp.ClientSession() as session:
        yield session


@pytest.fixture
def inbox() -> Inbox:
    return Inbox()


@pytest.fixture(params=FRAMEWORKS)
async def url(request: pytest.FixtureRequest, inbox: Inbox, clock: VirtualTimeLoop) -> AsyncIterator[str]:
    """Where the callbacks of ``inbox`` come in."""
    assert clock.is_running()
    async with under_uvicorn(FRAMEWORKS[request.param](inbox)) as url:
        yield url


@pytest.mark.parametrize("framework", FRAMEWORKS)
async def test_the_callbacks_of_a_task_reach_its_session(framework: str) -> None:
    listener = socket.create_server(("127.0.0.1", 0))
    emitted: list[events.Event] = []
    # Short, for uvicorn looks around every 0.1 s, and the virtual clock can't skip that.
    async with emulator.serve(timeline=(2.0, 4.0, 6.0)) as service:
        settings = kie.Settings(
            api_key=service.key,
            base_url=service.base_url,
            callback_url=f"http://127.0.0.1:{listener.getsockname()[1]}/kie",
            observer=emitted.append,
        )
        async with kie.KieSession(settings) as session, under_uvicorn(FRAMEWORKS[framework](session), listener):
            result = await (await session.submit(REQUEST))
            await service.wait_finished()
    assert len(result.tracks) == 2
    callbacks = [event for event in emitted if isinstance(event, events.CallbackReceived)]
    assert [(event.task_id, event.stage, event.status) for event in callbacks] == [
        (result.task_id, stage, 200) for stage in ("text", "first", "complete")
    ]
    assert [event.note for event in callbacks[:2]] == ["", ""]  # they woke the task; by the third a poll may end it
    assert [sent.status for sent in service.callbacks] == [200] * 3


@pytest.mark.parametrize("framework", [name for name in FRAMEWORKS if name != "bare"])
async def test_the_application_goes_on_to_answer_what_is_its_own(framework: str, http: aiohttp.ClientSession) -> None:
    async with (
        under_uvicorn(FRAMEWORKS[framework](Inbox())) as url,
        http.get(url.removesuffix("/kie") + "/hello") as answer,
    ):
        assert answer.status == 200
        assert "hi" in await answer.text()


async def test_other_ways_to_write_the_path(url: str, inbox: Inbox, http: aiohttp.ClientSession) -> None:
    paths = (f"/{TOKEN}/", f"/{TOKEN}//", f"//{TOKEN}", f"/{ENCODED}", f"/{TOKEN}?x=1")
    for path in paths:
        async with http.post(URL(url + path, encoded=True), data=BODY) as answer:
            assert (path, answer.status) == (path, 200)
    assert [token for token, _ in inbox.delivered] == [TOKEN] * len(paths)


async def test_paths_without_a_token(url: str, inbox: Inbox, http: aiohttp.ClientSession) -> None:
    for path in ("/", "/short", f"/{TOKEN}.", f"/{TOKEN}%2F..%2Fx"):
        async with http.post(URL(url + path, encoded=True), data=BODY) as answer:
            assert (path, answer.status) == (path, 404)
    assert inbox.delivered == []


async def test_only_post(url: str, inbox: Inbox, http: aiohttp.ClientSession) -> None:
    for method in ("GET", "HEAD", "PUT", "OPTIONS"):
        async with http.request(method, f"{url}/{TOKEN}") as answer:
            assert (method, answer.status, answer.headers["Allow"]) == (method, 405, "POST")
    assert inbox.delivered == []


async def test_a_body_in_pieces_and_one_that_breaks_off(url: str, inbox: Inbox) -> None:
    async with connect(url) as raw:
        await raw.send(f"{HEAD}Content-Length: {len(BODY)}\r\n\r\n".encode() + BODY[:20])
    await anyio.sleep(1)
    async with connect(url) as raw:
        await raw.send(f"{HEAD}Transfer-Encoding: chunked\r\n\r\n".encode())
        for i in range(len(BODY)):
            await raw.send(b"1\r\n" + BODY[i : i + 1] + b"\r\n")
        await raw.send(b"0\r\n\r\n")
        assert await raw.status() == 200
    assert [(emitted.status, emitted.note) for emitted in inbox.emitted] == [(400, "the body broke off"), (200, "")]
    assert [event.task_id for _, event in inbox.delivered] == [TASK]


async def test_no_web_socket(url: str, inbox: Inbox) -> None:
    key = base64.b64encode(os.urandom(16)).decode()
    wanted = (
        f"Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {key}\r\n\r\n"
    )
    async with connect(url) as raw:
        await raw.send(HEAD.replace("POST", "GET").encode() + wanted.encode() + b"\r\n\r\n")
        assert await raw.status() == 403
    assert inbox.delivered == []


@pytest.mark.parametrize("framework", ["bare", "starlette", "fastapi", "litestar", "django in starlette"])
async def test_behind_a_proxy_that_cuts_off_a_prefix(framework: str, inbox: Inbox, http: aiohttp.ClientSession) -> None:
    async with (
        under_uvicorn(FRAMEWORKS[framework](inbox), root_path="/behind") as url,
        http.post(f"{url}/{TOKEN}", data=BODY) as answer,
    ):
        assert answer.status == 200
    assert len(inbox.delivered) == 1
