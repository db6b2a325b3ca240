"""Callbacks of the emulator: what is sent when, to whom, and what becomes of a task that nobody listens to."""

from __future__ import annotations

import asyncio
import json
import socket

import aiohttp
import pytest
from aiohttp import web
from emulator_client import emulated, receiving
from virtual_time import VirtualTimeLoop

from kie_async import callbacks
from kie_async.emulator import Fault, Rules

pytestmark = pytest.mark.anyio

TIMELINE = (10.0, 40.0, 60.0)


async def test_the_stages_are_sent_when_they_are_reached(clock: VirtualTimeLoop) -> None:
    async with receiving() as receiver, emulated(timeline=TIMELINE) as client:
        start = clock.time()
        task_id = (await client.extend(callBackUrl=receiver.url))["data"]["taskId"]
        await client.emulator.wait_finished()
        assert receiver.stages() == ["text", "first", "complete"]
        assert {body["data"]["task_id"] for body in receiver.bodies} == {task_id}
        sent = client.emulator.callbacks
        assert [round(each.at - start) for each in sent] == [10, 40, 60]
        assert [(each.task_id, each.status, each.attempt, each.forged) for each in sent] == [
            (task_id, 200, 1, False)
        ] * 3
        assert not any("X-Webhook-Signature" in headers for headers in receiver.headers)


async def test_the_jobs_route_has_callbacks_too() -> None:
    async with receiving() as receiver, emulated(speed=10.0) as client:
        await client.job(callBackUrl=receiver.url)
        await client.emulator.wait_finished()
        assert receiver.stages() == ["text", "first", "complete"]


async def test_they_are_signed_if_there_is_a_key() -> None:
    async with receiving() as receiver, emulated(webhook_key="hook") as client:
        task_id = (await client.extend(callBackUrl=receiver.url))["data"]["taskId"]
        await client.emulator.wait_finished()
    assert len(receiver.bodies) == 3
    for body, headers in zip(receiver.bodies, receiver.headers, strict=True):
        assert callbacks.unwrap(json.dumps(body).encode(), headers, key="hook").task_id == task_id


async def test_a_delivery_that_fails_is_tried_three_times(clock: VirtualTimeLoop) -> None:
    async with receiving() as receiver, emulated(timeline=TIMELINE) as client:
        receiver.status = 500
        start = clock.time()
        task_id = (await client.extend(callBackUrl=receiver.url))["data"]["taskId"]
        await client.emulator.wait_finished()
        assert receiver.stages() == ["text"] * 3
        assert [(round(each.at - start), each.attempt, each.status) for each in client.emulator.callbacks] == [
            (10, 1, 500), (12, 2, 500), (22, 3, 500),
        ]  # fmt: skip
        record = (await client.record(task_id))["data"]
        assert record["status"] == "CALLBACK_EXCEPTION"
        assert all(track["audioUrl"] for track in record["response"]["sunoData"])
        assert client.emulator.task(task_id).given_up


async def test_a_task_whose_callbacks_are_given_up_runs_to_its_end(clock: VirtualTimeLoop) -> None:
    async with receiving() as receiver, emulated(timeline=TIMELINE) as client:
        receiver.status = 500
        task_id = (await client.extend(callBackUrl=receiver.url))["data"]["taskId"]
        await asyncio.sleep(30)
        clock.advance(20)
        assert (await client.record(task_id))["data"]["status"] == "FIRST_SUCCESS"
        await client.emulator.wait_finished()
        assert (await client.record(task_id))["data"]["status"] == "CALLBACK_EXCEPTION"


async def test_a_forged_callback_that_is_refused_is_not_tried_again() -> None:
    faults = [Fault("forged", seconds=3.0), Fault("lost", "callback")]
    async with receiving() as receiver, emulated(timeline=TIMELINE, faults=faults) as client:
        receiver.status = 500
        task_id = (await client.extend(callBackUrl=receiver.url))["data"]["taskId"]
        await client.emulator.wait_finished()
        assert [(each.forged, each.status) for each in client.emulator.callbacks] == [(True, 500)]
        assert (await client.record(task_id))["data"]["status"] == "SUCCESS"


async def test_a_delivery_that_succeeds_at_last_is_enough() -> None:
    calls = 0

    async def twice_down(_request: web.Request) -> web.Response:
        nonlocal calls
        calls += 1
        return web.Response(status=503 if calls < 3 else 204)

    async with receiving(twice_down) as receiver, emulated(timeline=TIMELINE) as client:
        task_id = (await client.extend(callBackUrl=receiver.url))["data"]["taskId"]
        await client.emulator.wait_finished()
        assert (await client.record(task_id))["data"]["status"] == "SUCCESS"
        assert calls == 5


async def test_nobody_there_is_a_failure_too() -> None:
    async with emulated(timeline=TIMELINE) as client:
        task_id = (await client.extend(callBackUrl="http://127.0.0.1:1/cb"))["data"]["taskId"]
        await client.emulator.wait_finished()
        assert [each.status for each in client.emulator.callbacks] == [0, 0, 0]
        assert (await client.record(task_id))["data"]["status"] == "CALLBACK_EXCEPTION"


async def test_a_receiver_has_fifteen_seconds_and_holds_up_nobody_else(clock: VirtualTimeLoop) -> None:
    async def asleep(_request: web.Request) -> web.Response:
        await asyncio.sleep(16)
        return web.Response()

    async with receiving(asleep) as slow, receiving() as quick, emulated(timeline=TIMELINE) as client:
        start = clock.time()
        first = (await client.extend(callBackUrl=slow.url))["data"]["taskId"]
        await client.extend(callBackUrl=quick.url)
        await client.emulator.wait_finished()
        failed = [each for each in client.emulator.callbacks if (each.task_id, each.stage) == (first, "text")]
        assert [(round(each.at - start), each.status) for each in failed] == [(25, 0), (42, 0), (67, 0)]
        assert quick.stages() == ["text", "first", "complete"]


async def test_a_redirect_is_not_followed() -> None:
    async with receiving() as other:

        async def elsewhere(_request: web.Request) -> web.Response:
            raise web.HTTPTemporaryRedirect(other.url)

        async with receiving(elsewhere) as receiver, emulated(timeline=TIMELINE) as client:
            await client.extend(callBackUrl=receiver.url)
            await client.emulator.wait_finished()
            assert {each.status for each in client.emulator.callbacks} == {307}
        assert other.bodies == []


@pytest.mark.parametrize(
    ("url", "rules", "end"),
    [
        ("https://example.com/cb", Rules(), "SUCCESS"),
        ("https://example.com/cb", Rules(placeholder_fails=True), "CALLBACK_EXCEPTION"),
        ("https://elsewhere.invalid/cb", Rules(), "CALLBACK_EXCEPTION"),
        ("nonsense", Rules(), "SUCCESS"),
    ],
)
async def test_other_machines_are_never_called(url: str, rules: Rules, end: str) -> None:
    async with emulated(timeline=TIMELINE, rules=rules) as client:
        task_id = (await client.extend(callBackUrl=url))["data"]["taskId"]
        await client.emulator.wait_finished()
        assert client.emulator.callbacks == []
        record = (await client.record(task_id))["data"]
        assert record["status"] == end
        assert all(track["audioUrl"] for track in record["response"]["sunoData"])


async def test_two_stages_at_once_arrive_in_the_order_of_the_plan() -> None:
    async with receiving() as receiver, emulated(timeline=TIMELINE, faults=[Fault("reordered")]) as client:
        for _ in range(5):
            await client.extend(callBackUrl=receiver.url)
        await client.emulator.wait_finished()
        for task in client.emulator.ledger:
            order = [body["data"] for body in receiver.bodies if body["data"]["task_id"] == task.task_id]
            assert [each["callbackType"] for each in order] == ["complete", "first", "text"]


@pytest.mark.parametrize(
    ("faults", "sent"),
    [
        ([], [(10, "text"), (40, "first"), (60, "complete")]),
        ([Fault("failed", seconds=15.0)], [(10, "text"), (15, "error")]),
        ([Fault("stuck")], []),
        ([Fault("lost", "callback")], []),
        ([Fault("lost", "callback", stage="complete")], [(10, "text"), (40, "first")]),
        ([Fault("doubled", stage="first")], [(10, "text"), (40, "first"), (40, "first"), (60, "complete")]),
        ([Fault("reordered")], [(60, "complete"), (60, "first"), (60, "text")]),
        ([Fault("late", stage="text")], [(40, "text"), (40, "first"), (60, "complete")]),
        ([Fault("late", stage="first", seconds=100.0)], [(10, "text"), (60, "complete"), (140, "first")]),
        ([Fault("late", seconds=1.0)], [(11, "text"), (41, "first"), (61, "complete")]),
        ([Fault("forged", seconds=3.0), Fault("lost", "callback")], [(3, "complete")]),
        ([Fault("late", seconds=1.0), Fault("early")], [(1, "text"), (41, "first"), (61, "complete")]),
    ],
)
async def test_faults_of_callbacks(faults: list[Fault], sent: list[tuple[int, str]], clock: VirtualTimeLoop) -> None:
    async with receiving() as receiver, emulated(timeline=TIMELINE, faults=faults) as client:
        start = clock.time()
        await client.extend(callBackUrl=receiver.url)
        await client.emulator.wait_finished()
        assert [(round(each.at - start), each.stage) for each in client.emulator.callbacks] == sent
        assert receiver.stages() == [stage for _, stage in sent]


async def test_a_callback_comes_before_the_answer() -> None:
    async with receiving() as receiver, emulated(timeline=TIMELINE, faults=[Fault("early")]) as client:
        task_id = (await client.extend(callBackUrl=receiver.url))["data"]["taskId"]
        assert receiver.stages() == ["text"]
        assert receiver.bodies[0]["data"]["task_id"] == task_id
        assert (await client.record(task_id))["data"]["status"] == "TEXT_SUCCESS"
        await client.emulator.wait_finished()
        assert receiver.stages() == ["text", "first", "complete"]


async def test_all_callbacks_come_before_an_answer_that_is_lost() -> None:
    faults = [Fault("early", stage="complete"), Fault("lost")]
    async with receiving() as receiver, emulated(timeline=TIMELINE, faults=faults) as client:
        with pytest.raises(aiohttp.ServerDisconnectedError):
            await client.extend(callBackUrl=receiver.url)
        assert receiver.stages() == ["text", "first", "complete"]
        task_id = receiver.bodies[0]["data"]["task_id"]
        assert client.emulator.ledger[0].task_id == task_id
        assert (await client.record(task_id))["data"]["status"] == "SUCCESS"


@pytest.mark.parametrize("signed", [True, False])
async def test_a_false_callback_bears_false_audio(signed: bool) -> None:  # noqa: FBT001  # a parameter
    fault = Fault("forged", url="http://127.0.0.1:9/evil.mp3", seconds=1.0, signed=signed)
    async with receiving() as receiver, emulated(timeline=TIMELINE, faults=[fault], webhook_key="hook") as client:
        task_id = (await client.extend(callBackUrl=receiver.url))["data"]["taskId"]
        await client.emulator.wait_finished()
        assert receiver.stages() == ["complete", "text", "first", "complete"]
        assert ("X-Webhook-Signature" in receiver.headers[0]) is signed
        assert {track["audio_url"] for track in receiver.bodies[0]["data"]["data"]} == {"http://127.0.0.1:9/evil.mp3"}
        assert [each.forged for each in client.emulator.callbacks] == [True, False, False, False]
        assert "evil" not in str(await client.record(task_id))


async def test_a_false_callback_claims_a_failure() -> None:
    fault = Fault("forged", code=501, message="no", stage="error")
    async with receiving() as receiver, emulated(timeline=TIMELINE, faults=[fault]) as client:
        task_id = (await client.extend(callBackUrl=receiver.url))["data"]["taskId"]
        await client.emulator.wait_finished()
        false = receiver.bodies[0]
        assert false == {
            "code": 501, "msg": "no", "data": {"callbackType": "error", "data": None, "task_id": task_id},
        }  # fmt: skip
        assert (await client.record(task_id))["data"]["status"] == "SUCCESS"


async def test_a_thousand_callbacks_at_once_arrive(clock: VirtualTimeLoop) -> None:
    options = {"credits": 1e6, "rules": Rules(quota=1000), "timeline": TIMELINE}
    async with receiving() as receiver, emulated(**options) as client:
        for _ in range(300):
            await client.extend(callBackUrl=receiver.url)
        assert len(asyncio.all_tasks()) < 20
        await client.emulator.wait_finished()
        assert len(receiver.bodies) == 900
        assert {each.status for each in client.emulator.callbacks} == {200}
    assert clock.time() > 0


# ---------------------------------------------------------------- addresses

UNREADABLE = ["http://[::1", "http://localhost:99999/", "ftp://localhost/x", "http://127.0.0.1:1:1/", "\ud800", "//x"]


async def test_addresses_that_cannot_be_read_stop_nothing() -> None:
    async with receiving() as receiver, emulated(speed=10.0) as client:
        for url in UNREADABLE:
            for answer in (
                await client.extend(callBackUrl=url),
                await client.upload_extend(callBackUrl=receiver.url, uploadUrl=url),
            ):
                assert (url, answer["code"]) == (url, 200)
            assert (await client.post("/api/v1/common/download-url", {"url": url}))["code"] == 422
            upload = await client.post("/api/file-url-upload", {"fileUrl": url, "uploadPath": "in"})
            assert (upload["success"], upload["msg"]) == (False, "Failed to download file")
        await client.emulator.wait_finished()
        assert receiver.stages().count("error") == len(UNREADABLE)
        assert len(client.emulator.ledger) == 2 * len(UNREADABLE)


async def test_no_name_leads_to_another_machine(clock: VirtualTimeLoop, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever can change what a name stands for does not get the emulator to connect there."""
    connected: list[object] = []

    async def connect(_sock: object, address: object) -> None:
        connected.append(address)
        raise OSError

    async def elsewhere(host: str, port: int, **_options: object) -> list[object]:
        assert host == "localhost"
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("192.0.2.1", port))]

    async with emulated(speed=100.0) as client:
        await client.http.get(client.url("/"))  # the client's own connection is made
        monkeypatch.setattr(clock, "getaddrinfo", elsewhere)
        monkeypatch.setattr(clock, "sock_connect", connect)
        await client.extend(callBackUrl="http://localhost:81/x")
        await client.upload_extend(uploadUrl="http://localhost:82/x")
        assert (await client.post("/api/file-url-upload", {"fileUrl": "http://localhost:83/"}))["success"] is False
        await client.emulator.wait_finished()
        assert {sent.status for sent in client.emulator.callbacks} == {0}
    assert connected == []
