"""Where the emulator takes its sources from: its own uploads and loopback, and what it makes of the rest."""

from __future__ import annotations

import asyncio

import av
import pytest
from aiohttp import web
from emulator_client import Client, emulated, receiving
from virtual_time import VirtualTimeLoop

from kie_async.emulator import Rules, demo_song

pytestmark = pytest.mark.anyio

SHORT = {"timeline": (1.0, 2.0, 3.0), "goes_on": (2.0, 4.0)}


@pytest.fixture(scope="session")
def song() -> bytes:
    return demo_song()


async def failure(client: Client, url: str, clock: VirtualTimeLoop, **fields: object) -> tuple[str, int | None]:
    """The status and the code of a task some time after its failure."""
    answer = await client.upload_extend(uploadUrl=url, **fields)
    await client.emulator.wait_finished()
    clock.advance(1)
    data = (await client.record(answer["data"]["taskId"]))["data"]
    return data["status"], data["errorCode"]


async def test_a_source_that_cannot_be_fetched_says_pending_and_then_fails(clock: VirtualTimeLoop) -> None:
    async with receiving() as receiver, emulated() as client:
        answer = await client.upload_extend(callBackUrl=receiver.url)
        task_id = answer["data"]["taskId"]
        clock.advance(60)
        record = (await client.record(task_id))["data"]
        assert (record["status"], record["errorCode"]) == ("PENDING", 451)
        await client.emulator.wait_finished()
        assert (await client.record(task_id))["data"]["status"] == "CREATE_TASK_FAILED"
        assert [body["code"] for body in receiver.bodies][-1] == 451
        assert receiver.stages()[-1] == "error"
        assert len(client.emulator.ledger) == 1


async def test_what_is_no_audio_fails(clock: VirtualTimeLoop) -> None:
    async with emulated() as client:
        url = await client.upload(b"<html>not found</html>", "song.mp3")
        assert await failure(client, url, clock) == ("CREATE_TASK_FAILED", 451)
        missing = client.url("/files/kieai/100001/in/gone.mp3")
        assert await failure(client, missing, clock) == ("CREATE_TASK_FAILED", 451)


async def test_a_moment_beyond_the_source_fails(song: bytes, clock: VirtualTimeLoop) -> None:
    async with emulated() as client:
        url = await client.upload(song)
        assert await failure(client, url, clock, continueAt=25) == ("SUCCESS", None)
        assert await failure(client, url, clock, continueAt=26) == ("CREATE_TASK_FAILED", 422)


@pytest.mark.parametrize("answer", ["404", "slow", "broken"])
async def test_another_host_on_loopback_can_fail(answer: str, clock: VirtualTimeLoop) -> None:
    async def serve_file(request: web.Request) -> web.StreamResponse:
        if answer == "404":
            raise web.HTTPNotFound
        if answer == "slow":
            await asyncio.sleep(60)
        stream = web.StreamResponse(headers={"Content-Length": "100"})
        await stream.prepare(request)
        return stream

    async with receiving(serve_file) as host, emulated() as client:
        assert await failure(client, host.url, clock) == ("CREATE_TASK_FAILED", 451)


async def test_a_source_that_is_too_large_fails(clock: VirtualTimeLoop) -> None:
    async def serve_file(_request: web.Request) -> web.Response:
        return web.Response(body=bytes(200_000))

    async with receiving(serve_file) as host, emulated(rules=Rules(max_bytes=100_000)) as client:
        assert await failure(client, host.url, clock) == ("CREATE_TASK_FAILED", 451)
        uploading = {"base64Data": "A" * 200_000, "fileName": "song.wav"}
        async with client.http.post(client.url("/api/file-base64-upload"), json=uploading) as answer:
            assert answer.status == 413


async def test_sources_are_fetched_once_and_kept_within_bounds() -> None:
    asked = []

    async def serve_file(request: web.Request) -> web.Response:
        asked.append(request.path)
        return web.Response(body=b"content")

    async with receiving(serve_file) as host, emulated() as client:

        async def fetch(number: int) -> None:
            taken = await client.post("/api/file-url-upload", {"fileUrl": f"{host.url}{number}"})
            assert taken["data"]["fileSize"] == 7

        for _ in range(3):
            await fetch(0)
        assert len(asked) == 1
        for number in range(1, 100):
            await fetch(number)
        await fetch(99)
        assert len(asked) == 100
        await fetch(0)
        assert len(asked) == 101


async def test_both_tracks_are_made_from_one_fetch(song: bytes) -> None:
    asked = []

    async def serve_file(request: web.Request) -> web.Response:
        asked.append(request.path)
        return web.Response(body=song)

    async with receiving(serve_file) as host, emulated(**SHORT) as client:
        task_id = (await client.upload_extend(uploadUrl=host.url, continueAt=3))["data"]["taskId"]
        await client.emulator.wait_finished()
        one, other = [await client.emulator.audio(each) for each in client.emulator.task(task_id).track_ids]
        assert one != other
        assert len(asked) == 1


async def test_a_library_that_fails_leaves_the_source_unchecked_and_the_service_at_work(
    song: bytes, clock: VirtualTimeLoop, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with monkeypatch.context() as broken:
        broken.setattr(av, "open", None)  # TypeError: not callable
        async with emulated() as client:
            url = await client.upload(song)
            assert await failure(client, url, clock) == ("SUCCESS", None)
            broken.undo()
            url = await client.upload(b"no audio", "other.mp3")
            assert await failure(client, url, clock) == ("CREATE_TASK_FAILED", 451)
    assert "could not be checked" in caplog.text


@pytest.mark.usefixtures("clock")
async def test_who_waits_for_an_emulator_that_stops_is_told() -> None:
    async with emulated(timeline=(1000.0, 2000.0, 3000.0)) as client:
        await client.extend(callBackUrl="http://127.0.0.1:1/nobody")
        waiting = asyncio.ensure_future(client.emulator.wait_finished())
    with pytest.raises(RuntimeError, match="the emulator has stopped"):
        await waiting


async def test_sources_are_not_looked_at_if_told_so(clock: VirtualTimeLoop) -> None:
    async with emulated(check_sources=False) as client:
        assert await failure(client, "https://kie.invalid/x.mp3", clock) == ("SUCCESS", None)
