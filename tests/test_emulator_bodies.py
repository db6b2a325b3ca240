"""Every body of the emulator against the recorded ones: the same keys, the same JSON types."""

from __future__ import annotations

import json
from typing import Any

import pytest
from conftest import sample_json
from emulator_client import EXTEND, Receiver, emulated, receiving
from virtual_time import VirtualTimeLoop

from kie_async.emulator import Fault

pytestmark = pytest.mark.anyio

TIMELINE = (10.0, 40.0, 60.0)
MUSIC_KEYS = {"creditsConsumed", "status", "successFlag", "type", "operationType", "paramJson", "response"}


def like(ours: Any, theirs: Any, where: str = "$", *, fewer: frozenset[str] = frozenset()) -> None:  # JSON
    """Ours has the keys and the JSON types of theirs; ``fewer`` are keys that ours lacks."""
    if isinstance(theirs, dict):
        assert isinstance(ours, dict), where
        assert set(ours) == set(theirs) - fewer, where
        for key, value in ours.items():
            like(value, theirs[key], f"{where}.{key}", fewer=fewer)
    elif isinstance(theirs, list):
        assert isinstance(ours, list), where
        for number, each in enumerate(ours if theirs else ()):
            like(each, theirs[0], f"{where}[{number}]", fewer=fewer)
    else:
        assert kind(ours) == kind(theirs), f"{where}: {ours!r} is not like {theirs!r}"


def kind(value: object) -> str:
    return "number" if isinstance(value, (int, float)) and not isinstance(value, bool) else type(value).__name__


def exchange(name: str) -> Any:  # JSON
    return sample_json(name)["response"]["json"]


def test_the_comparison_can_fail() -> None:
    for ours in ({"a": 1, "b": 2}, {}, {"a": "1"}, {"a": True}, {"a": None}):
        with pytest.raises(AssertionError):
            like(ours, {"a": 5})
    like({"a": [{"b": 1.5}]}, {"a": [{"b": 1, "c": 2}]}, fewer=frozenset("c"))


async def test_submissions_are_answered_as_recorded() -> None:
    async with emulated(credits=36.0) as client:
        like(await client.extend(), sample_json("submit_ok.documented.json"))
        like(
            await client.extend(audioId="no-such-audio-id"), exchange("exchange_extend_unknown_audio_id.captured.json")
        )
        like(await client.upload_extend(), exchange("exchange_upload_extend_dead_url.captured.json"))
        assert await client.extend() == sample_json("submit_402.reported.json")
        missing = await client.extend(callBackUrl="")
        assert missing == exchange("exchange_generate_missing_callback.captured.json")
        for _ in range(15):
            await client.extend()
        assert await client.extend() == sample_json("submit_429.reported.json")
        client.emulator.faults.add(Fault("code", code=455))
        assert await client.extend() == sample_json("submit_455.documented.json")


async def test_record_info_is_as_recorded(clock: VirtualTimeLoop) -> None:
    async with emulated(timeline=TIMELINE) as client:
        task_id = (await client.extend())["data"]["taskId"]
        pending = await client.record(task_id)
        like(pending, sample_json("record_info_pending.reported.json"))
        assert json.loads(pending["data"]["param"]) == EXTEND
        clock.advance(10)
        text = await client.record(task_id)
        like(text, sample_json("record_info_text_success.reported.json"))
        clock.advance(30)
        first = (await client.record(task_id))["data"]
        assert [track["audioUrl"] != "" for track in first["response"]["sunoData"]] == [True, False]
        clock.advance(20)
        whole = await client.record(task_id)
        recorded = sample_json("record_info_success.reported.json")
        like(whole, recorded)
        like(first["response"]["sunoData"][0], recorded["data"]["response"]["sunoData"][0])
        like(first["response"]["sunoData"][1], text["data"]["response"]["sunoData"][0])
        statuses = [body["status"] for body in (pending["data"], text["data"], first, whole["data"])]
        assert statuses == ["PENDING", "TEXT_SUCCESS", "FIRST_SUCCESS", "SUCCESS"]
        assert client.emulator.polls(task_id) == 4
        unknown = await client.record("nobody")
        assert unknown == exchange("exchange_record_info_unknown_task.captured.json")


@pytest.mark.parametrize(
    ("fault", "name", "advance"),
    [
        (Fault("refused", seconds=0), "record_info_pending_refused_413.reported.json", 60),
        (Fault("callback_exception"), "record_info_callback_exception_with_audio.constructed.json", 60),
        (
            Fault("failed", code=400, word="SENSITIVE_WORD_ERROR"),
            "record_info_sensitive_word.constructed.json", 120,
        ),
    ],
)  # fmt: skip
async def test_odd_records_are_as_recorded(fault: Fault, name: str, advance: float, clock: VirtualTimeLoop) -> None:
    async with emulated(timeline=TIMELINE, faults=[fault]) as client:
        task_id = (await client.extend())["data"]["taskId"]
        clock.advance(advance)
        record = await client.record(task_id)
        like(record, sample_json(name))
        assert record["data"]["status"] == sample_json(name)["data"]["status"]


async def callbacks(*faults: Fault, **fields: object) -> Receiver:
    async with receiving() as receiver, emulated(timeline=TIMELINE, faults=faults) as client:
        await client.extend(callBackUrl=receiver.url, **fields)
        await client.emulator.wait_finished()
        return receiver


async def test_callbacks_are_as_recorded() -> None:
    text, first, complete = (await callbacks()).bodies
    recorded = sample_json("callback_complete.captured.json")
    like(text, sample_json("callback_text.documented.json"))
    like(complete, recorded)
    finished, unfinished = first["data"]["data"]
    like(finished, recorded["data"]["data"][0])
    like(unfinished, recorded["data"]["data"][0], fewer=frozenset({"duration", "source_audio_url"}))
    assert unfinished["audio_url"] == ""
    like(complete["data"]["data"][0], sample_json("callback_upload_extend_complete.documented.json")["data"]["data"][0]
         | {"createTime": 0})  # fmt: skip


async def test_an_error_callback_is_as_recorded() -> None:
    text, error = (await callbacks(Fault("failed", code=400, seconds=20.0))).bodies
    assert text["data"]["callbackType"] == "text"
    like(error, sample_json("callback_error_null_data.documented.json"))


async def test_the_jobs_route_is_as_recorded_with_the_fields_of_music(clock: VirtualTimeLoop) -> None:
    async with emulated(timeline=TIMELINE, malformed_jobs=False) as client:
        task_id = (await client.job())["data"]["taskId"]
        seen = []
        for wait in (0, 4, 4, 2, 30, 20):
            clock.advance(wait)
            seen.append((await client.get("/api/v1/jobs/recordInfo", taskId=task_id))["data"])
        states = [each["state"] for each in seen]
        assert states == ["waiting", "queuing", "generating", "generating", "generating", "success"]
        assert [each["successFlag"] for each in seen] == [0, 0, 0, 0, 0, 1]
        for ours, name in ((seen[2], "generating"), (seen[5], "success")):
            theirs = sample_json(f"jobs_recordinfo_{name}_other_model.captured.json")["data"]
            assert set(ours) == set(theirs) | MUSIC_KEYS
            like({key: ours[key] for key in theirs}, theirs)
        snake = sample_json("callback_complete.captured.json")["data"]["data"]
        like(seen[5]["response"]["data"], snake)
        assert seen[5]["costTime"] == 60
        assert json.loads(json.loads(seen[5]["param"])["input"])["prompt"] == 'a line with "quotes"'
        like(json.loads(seen[5]["resultJson"])["data"], snake)
        unknown = await client.get("/api/v1/jobs/recordInfo", taskId="nobody")
        assert unknown == {"code": 422, "msg": "recordInfo is null", "data": None}


REPORTED = {
    "data": "jobs_recordinfo_extend_success.reported.json",
    "object": "jobs_recordinfo_upload_extend_resultobject_and_urls.reported.json",
    "urls": "jobs_recordinfo_resulturls_only.documented.json",
}


@pytest.mark.parametrize("shape", REPORTED)
async def test_the_tracks_of_the_jobs_route_stand_where_they_were_reported(shape: str, clock: VirtualTimeLoop) -> None:
    faults = [Fault("shape", shape=shape)]
    async with emulated(timeline=TIMELINE, malformed_jobs=False, faults=faults) as client:
        task_id = (await client.job())["data"]["taskId"]
        clock.advance(60)
        ours = (await client.get("/api/v1/jobs/recordInfo", taskId=task_id))["data"]
    theirs = sample_json(REPORTED[shape])["data"]
    without = theirs.keys() - {"response"}
    like({key: ours[key] for key in without}, {key: theirs[key] for key in without})
    result, recorded = json.loads(ours["resultJson"]), json.loads(theirs["resultJson"])
    assert result.keys() == recorded.keys()
    assert len(result.get("resultUrls", [1, 2])) == 2
    for held, known in ((result, recorded), (ours["response"], theirs.get("response"))):
        listed, sample = ((each or {}).get("resultObject", each or {}).get("data", []) for each in (held, known))
        assert len(listed) == len(sample)
        for track in listed:
            assert set(track) >= set(sample[0])


async def test_by_default_each_operation_has_the_shape_that_was_reported_of_it(clock: VirtualTimeLoop) -> None:
    async with emulated(timeline=TIMELINE, malformed_jobs=False, check_sources=False) as client:
        extend = (await client.job())["data"]["taskId"]
        song = {"upload_url": "https://x.example/a.mp3", "continue_at": 5, "model": "V5"}
        upload = (await client.job(model="ai-music-api/upload-and-extend-audio", input=song))["data"]["taskId"]
        clock.advance(60)
        found = [
            json.loads((await client.get("/api/v1/jobs/recordInfo", taskId=each))["data"]["resultJson"])
            for each in (extend, upload)
        ]
    assert [set(each) for each in found] == [{"data"}, {"resultUrls", "resultObject"}]


async def test_a_submission_to_the_jobs_route_has_another_id_too() -> None:
    async with emulated() as client:
        answer = await client.job()
        like(answer, sample_json("submit_ok_with_recordid.documented.json"))
        assert answer["data"]["recordId"] != answer["data"]["taskId"]
        assert await client.record(answer["data"]["recordId"]) == {"code": 200, "msg": "success", "data": None}


async def test_a_code_in_words_and_a_state_in_other_words(clock: VirtualTimeLoop) -> None:
    faults = [Fault("failed", code="SENSITIVE_WORD_ERROR"), Fault("unknown_word", word="RUNNING", nth=1)]
    async with emulated(timeline=TIMELINE, malformed_jobs=False, faults=faults) as client:
        task_id = (await client.job())["data"]["taskId"]
        running = (await client.get("/api/v1/jobs/recordInfo", taskId=task_id))["data"]
        clock.advance(120)
        failed = (await client.get("/api/v1/jobs/recordInfo", taskId=task_id))["data"]
    assert running["state"] == sample_json("jobs_recordinfo_running_alias.documented.json")["data"]["state"]
    theirs = sample_json("jobs_recordinfo_fail_textcode.reported.json")["data"]
    like({key: failed[key] for key in theirs}, theirs)
    assert (failed["state"], failed["failCode"]) == ("fail", "SENSITIVE_WORD_ERROR")


async def test_a_callback_may_have_the_shape_of_a_record() -> None:
    async with receiving() as receiver, emulated(timeline=TIMELINE, faults=[Fault("shape", "callback")]) as client:
        await client.job(callBackUrl=receiver.url)
        await client.emulator.wait_finished()
    theirs = sample_json("callback_jobs_shape_state_success.documented.json")
    like(receiver.bodies[2], theirs)
    assert [body["data"]["state"] for body in receiver.bodies] == ["generating", "generating", "success"]
    assert [body["data"]["resultJson"] == "" for body in receiver.bodies] == [True, True, False]
    faults = [Fault("shape", "callback", stage="error"), Fault("failed", seconds=20.0)]
    async with receiving() as receiver, emulated(timeline=TIMELINE, faults=faults) as client:
        await client.job(callBackUrl=receiver.url)
        await client.emulator.wait_finished()
    text, error = receiver.bodies
    assert text["data"]["callbackType"] == "text"
    assert (error["data"]["state"], error["data"]["failCode"], error["code"]) == ("fail", "501", 501)


async def test_a_failure_on_the_jobs_route_has_its_code_as_text(clock: VirtualTimeLoop) -> None:
    async with emulated(malformed_jobs=False, faults=[Fault("refused", seconds=0)]) as client:
        task_id = (await client.job())["data"]["taskId"]
        early = (await client.get("/api/v1/jobs/recordInfo", taskId=task_id))["data"]
        clock.advance(180)
        late = (await client.get("/api/v1/jobs/recordInfo", taskId=task_id))["data"]
    assert (early["state"], early["failCode"]) == ("generating", "413")
    assert (late["state"], late["failCode"], late["successFlag"]) == ("fail", "413", 3)


async def test_the_jobs_route_is_malformed_as_a_real_answer_was(clock: VirtualTimeLoop) -> None:
    async with emulated(timeline=TIMELINE) as client:
        task_id = (await client.job())["data"]["taskId"]
        clock.advance(60)
        url = f"/api/v1/jobs/recordInfo?taskId={task_id}"
        _, body, _ = await client.read(url)
    with pytest.raises(json.JSONDecodeError):
        json.loads(body)
    assert rb'"param": "{\"input\":\"{\\"audio_id\\":' in body
    assert b'"state": "success"' in body


async def test_credits_and_files_are_as_recorded() -> None:
    async with emulated(credits=5916.25) as client:
        assert await client.get("/api/v1/chat/credit") == exchange("exchange_credit.captured.json")
        foreign = await client.post("/api/v1/common/download-url", {"url": "https://cdn.kie.ai/files/x.mp4"})
        assert foreign == exchange("exchange_download_url_foreign.captured.json")
        body = {"base64Data": "aGVsbG8=", "uploadPath": "images/test-uploads", "fileName": "test-base64.png"}
        recorded = exchange("exchange_file_base64_upload.captured.json")
        uploaded = await client.post("/api/file-base64-upload", body)
        like(uploaded, recorded)
        assert uploaded["data"]["filePath"] == recorded["data"]["filePath"]
        assert uploaded["data"]["mimeType"] == "image/png"
        assert len(uploaded["data"]["uploadedAt"]) == len(recorded["data"]["uploadedAt"])
