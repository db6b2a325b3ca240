"""Every recorded body, and the shapes around them, to the end that a user sees: a record, a result, or an error."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from conftest import SAMPLES, sample_json
from fault_server import FaultServer, Reply, fault_server, http, settings
from hypothesis import given
from hypothesis import strategies as st
from service import REQUEST, serving

import kie_async as kie
from kie_async._protocol import wire
from kie_async._protocol.statuses import WORDS, Word
from kie_async.callbacks import Receiver
from kie_async.emulator import SHAPES, Fault
from kie_async.models import CallbackEvent, TaskRecord, Track

pytestmark = pytest.mark.anyio

TASK_ID = "85cb349b9722e050d8ea299b88c12e96"
IDS = ("3f6f1c0e-0d3c-4c1f-9a51-2f6f0a3b7c11", "b2f0a6d4-7a0e-4f52-8a5d-1c9f0e6d2a22")
URLS = tuple(f"https://media3.example.net/r/{each}.mp3" for each in IDS)
SONGS = [{"id": each, "audio_url": url, "duration": 198.4} for each, url in zip(IDS, URLS, strict=True)]
PLAN = {"code": 200, "msg": "success"}

END: dict[str, tuple[str, object]] = {
    "jobs_recordinfo_extend_success.reported.json": ("SUCCESS", [198.4, 201.0]),
    "jobs_recordinfo_fail_textcode.reported.json": ("SENSITIVE_WORD_ERROR", "SENSITIVE_WORD_ERROR"),
    "jobs_recordinfo_generating_other_model.captured.json": ("GENERATING", None),
    "jobs_recordinfo_resulturls_only.documented.json": ("SUCCESS", [None, None]),
    "jobs_recordinfo_running_alias.documented.json": ("RUNNING", None),
    "jobs_recordinfo_success_other_model.captured.json": ("SUCCESS", "gave no audio"),
    "jobs_recordinfo_upload_extend_resultobject_and_urls.reported.json": ("SUCCESS", [142.3, 155.0]),
    "record_info_callback_exception_with_audio.constructed.json": ("CALLBACK_EXCEPTION", [47.76, 217.4]),
    "record_info_generate_audio_failed_413_catalog.reported.json": ("GENERATE_AUDIO_FAILED", "matches an existing"),
    "record_info_pending.reported.json": ("PENDING", None),
    "record_info_pending_refused_413.reported.json": ("PENDING", "Uploaded audio matches existing work of art."),
    "record_info_sensitive_word.constructed.json": ("SENSITIVE_WORD_ERROR", "artist name"),
    "record_info_success.reported.json": ("SUCCESS", [154.68, 192.0]),
    "record_info_text_success.reported.json": ("TEXT_SUCCESS", None),
}
STAGES = {
    "callback_complete.captured.json": ("complete", 200, [167.04, 192.76]),
    "callback_error.documented.json": ("error", 501, []),
    "callback_error_null_data.documented.json": ("error", 400, []),
    "callback_first.documented.json": ("first", 200, [198.44]),
    "callback_jobs_shape_state_success.documented.json": ("complete", 200, [198.4, 201.0]),
    "callback_text.documented.json": ("text", 200, []),
    "callback_upload_extend_complete.documented.json": ("complete", 200, [198.44]),
}
SUBMITTED: dict[str, str | type[kie.KieError]] = {
    "exchange_extend_unknown_audio_id.captured.json": "2368cbfbe81f2ab5acb5960bb654298e",
    "exchange_upload_extend_dead_url.captured.json": "5e0bf8d6823c3931cd85380023a46461",
    "exchange_generate_missing_callback.captured.json": kie.InvalidRequestError,
    "submit_402.reported.json": kie.InsufficientCreditsError,
    "submit_429.reported.json": kie.RateLimitedError,
    "submit_455.documented.json": kie.UnavailableError,
    "submit_ok.documented.json": TASK_ID,
    "submit_ok_with_recordid.documented.json": TASK_ID,
}
ELSEWHERE = {  # in test_wire, test_emulator_bodies and test_signing
    "exchange_credit.captured.json",
    "exchange_download_url_foreign.captured.json",
    "exchange_file_base64_upload.captured.json",
    "exchange_record_info_unknown_task.captured.json",
    "webhook_signature_vector.json",
}


def test_every_sample_has_its_end() -> None:
    samples = {path.name for path in SAMPLES.iterdir() if not path.name.startswith("journal_")}
    assert samples == {*END, *STAGES, *SUBMITTED, *ELSEWHERE}, "name each sample in one of the tables above"


def malformed(body: Any) -> bytes:
    """A body whose echo of the request has one backslash too few before its innermost quotes, as a real one had."""
    echo = json.dumps({"input": json.dumps({"prompt": 'she said "la"', "model": "V5"}), "model": "m"})
    text = json.dumps({**body, "data": {"HOLE": 0, **body["data"]}})
    spoilt = json.dumps(echo).replace('\\\\\\"', '\\\\"')
    whole = text.replace('"HOLE": 0', f'"paramJson": {spoilt}').encode()
    with pytest.raises(json.JSONDecodeError):
        json.loads(whole)
    return whole


def sound(body: Any) -> bytes:
    return json.dumps(body).encode()


def record_of(data: dict[str, Any], write: Callable[[Any], bytes] = sound) -> TaskRecord:
    record = wire.read_record(wire.read_envelope(write({**PLAN, "data": {"taskId": TASK_ID, **data}})).data)
    assert record is not None
    return record


async def end_of(server: FaultServer, route: Any, task_id: str) -> tuple[TaskRecord, kie.TaskResult | kie.KieError]:
    async with kie.KieSession(settings(server.url, route=route, task_timeout=300.0)) as session:
        record = await session.record_info(task_id)
        assert record is not None
        try:
            return record, await session.track(task_id)
        except kie.KieError as error:
            return record, error


@pytest.mark.parametrize("spoil", [False, True])
@pytest.mark.parametrize("name", END)
async def test_the_end_of_each_record(name: str, spoil: bool) -> None:  # noqa: FBT001  # a parameter of a table
    status, expected = END[name]
    body = sample_json(name)
    route = "jobs" if name.startswith("jobs") else "classic"
    answer = Reply((http(200, malformed(body) if spoil else json.dumps(body)),), end="keep")
    async with fault_server(answer) as server:
        record, end = await end_of(server, route, body["data"]["taskId"])
    assert record.status == status
    if expected is None:
        assert isinstance(end, kie.WaitTimeoutError)
    elif isinstance(expected, str):
        assert isinstance(end, kie.TaskFailedError)
        assert expected in str(end)
    else:
        assert isinstance(end, kie.TaskResult)
        assert [track.duration for track in end.tracks] == expected
        assert all(track.audio_url for track in end.tracks)
        assert all(track.id for track in end.tracks) == (expected != [None, None])
        assert not end.partial


async def test_a_code_in_words_is_kept() -> None:
    body = sample_json("jobs_recordinfo_fail_textcode.reported.json")
    async with fault_server(Reply((http(200, json.dumps(body)),), end="keep")) as server:
        record, error = await end_of(server, "jobs", TASK_ID)
    assert (record.error_code, record.error_reason) == (None, "SENSITIVE_WORD_ERROR")
    assert record.error_message == "Lyrics contain sensitive words"
    assert isinstance(error, kie.TaskFailedError)
    assert (error.status, error.reason, error.code) == ("SENSITIVE_WORD_ERROR", "SENSITIVE_WORD_ERROR", None)
    assert error.message == "Lyrics contain sensitive words (SENSITIVE_WORD_ERROR)"
    assert error.charged == "no"


@pytest.mark.parametrize("name", STAGES)
async def test_the_stage_of_each_callback(name: str) -> None:
    taken: list[CallbackEvent] = []

    async def deliver(_token: str, event: CallbackEvent) -> str:
        taken.append(event)
        return ""

    body = (SAMPLES / name).read_bytes()
    assert await Receiver((), deliver, lambda _event: None).handle({}, body, "t" * 16) == 200
    (event,) = taken
    stage, code, durations = STAGES[name]
    assert (event.stage, event.code, [track.duration for track in event.tracks]) == (stage, code, durations)


@pytest.mark.parametrize("name", SUBMITTED)
async def test_the_end_of_each_submission(name: str) -> None:
    body = sample_json(name)
    answer = Reply((http(200, json.dumps(body["response"]["json"] if "response" in body else body)),), end="keep")
    expected = SUBMITTED[name]
    async with (
        fault_server(answer) as server,
        kie.KieSession(settings(server.url, submit_retry_timeout=1.0)) as session,
    ):
        if isinstance(expected, str):
            assert (await session.extend("a1", model="V5")).id == expected
        else:
            with pytest.raises(expected):
                await session.extend("a1", model="V5")


# ---------------------------------------------------------------- where the tracks are

CLASSIC = [{"id": song["id"], "audioUrl": song["audio_url"], "duration": "198.4"} for song in SONGS]
PLACES: dict[str, dict[str, Any]] = {
    "sunoData": {"response": {"sunoData": CLASSIC}},
    "response.data": {"response": {"data": SONGS}},
    "a list as response": {"response": SONGS},
    "response as text": {"response": json.dumps({"data": SONGS})},
    "keyed by index": {"response": {"data": {"0": SONGS[0], "1": SONGS[1]}}},
    "keyed by name": {"response": {"songs": {"first": SONGS[0], "second": SONGS[1]}}},
    "resultJson, data": {"resultJson": json.dumps({"data": SONGS})},
    "resultJson, an envelope": {"resultJson": json.dumps({"code": 200, "msg": "ok", "data": SONGS})},
    "resultJson, a list": {"resultJson": json.dumps(SONGS)},
    "resultJson, an object": {"resultJson": {"data": SONGS}, "response": None},
    "resultJson, encoded twice": {"resultJson": json.dumps(json.dumps({"data": SONGS}))},
    "resultJson, sunoData": {"resultJson": json.dumps({"sunoData": CLASSIC}), "response": {"sunoData": None}},
    "resultObject beside": {"resultJson": json.dumps({"resultUrls": URLS, "resultObject": {"data": SONGS}})},
    "resultObject before": {"resultJson": json.dumps({"resultObject": {"data": SONGS}, "resultUrls": URLS})},
    "resultObject as text": {"resultJson": json.dumps({"resultUrls": URLS, "resultObject": json.dumps(SONGS)})},
    "resultObject, no JSON": {"resultObject": {"data": SONGS}, "resultUrls": URLS},
    "snake case": {"result_json": json.dumps({"result_urls": URLS, "result_object": {"data": SONGS}})},
    "output": {"output": {"result": {"tracks": SONGS}}},
    "info": {"info": json.dumps({"resultUrls": URLS, "items": SONGS})},
    "each as text": {"response": {"data": [json.dumps(song) for song in SONGS]}},
    "one in each place": {"response": {"data": SONGS[:1]}, "resultJson": json.dumps({"data": SONGS})},
    "audio in another place": {
        "response": {"sunoData": [{"id": each, "audioUrl": None, "title": "a"} for each in IDS]},
        "resultJson": json.dumps({"data": SONGS}),
    },
    "audio in a bare list": {
        "response": {"sunoData": [{"id": each, "audioUrl": ""} for each in IDS]},
        "resultUrls": URLS[::-1],
    },
    "addresses without an id": {
        "response": {"sunoData": [{"id": each, "audioUrl": ""} for each in IDS]},
        "resultJson": json.dumps({"resultUrls": ["https://x.example/1", "https://x.example/2"]}),
    },
    "with the history of each": {
        "response": {"data": [{**song, "metadata": {"history": [{"id": "old", "continue_at": 60}]}} for song in SONGS]}
    },
    "beside the source": {
        "source": {"id": "old", "audio_url": "https://x.example/old.mp3"},
        "response": {"data": SONGS},
    },
    "one without its own list": {"response": {"audioUrl": URLS[0], "sunoData": SONGS}},
    "with members of stems that say nothing": {
        "response": {"data": [{**song, "stem_type_group_name": None, "stems": []} for song in SONGS]}
    },
    "of a voice": {"operationType": "upload_extend", "type": "chirp-voice", "response": {"data": SONGS}},
    "by another name of the model": {"model": "ai_music_api/v2", "response": {"data": SONGS}},
    "under the name of the operation": {"resultJson": json.dumps({"upload_and_extend_audio": {"songs": SONGS}})},
    "resources": {"resultJson": json.dumps({"resources": SONGS})},
    "each twice": {"response": {"sunoData": CLASSIC + CLASSIC}},
}


@pytest.mark.parametrize("spoil", [False, True])
@pytest.mark.parametrize("place", PLACES)
async def test_tracks_are_found_with_their_ids(place: str, spoil: bool) -> None:  # noqa: FBT001  # a parameter of a table
    data = {"state": "success", "model": "ai-music-api/extend", **PLACES[place]}
    record = record_of(data, malformed if spoil else sound)
    assert record.status == "SUCCESS"
    assert tuple(track.id for track in record.tracks) == IDS
    assert all(track.audio_url for track in record.tracks)


HOLDERS = ("data", "response", "resultJson", "result", "output", "info", "sunoData", "resultObject", "0")


@given(st.lists(st.tuples(st.sampled_from(HOLDERS), st.booleans()), min_size=1, max_size=4), st.booleans())
def test_tracks_are_found_in_any_nest(path: list[tuple[str, bool]], beside: bool) -> None:  # noqa: FBT001  # drawn
    held: Any = SONGS
    for name, as_text in path:
        held = {**({"resultUrls": URLS} if beside else {}), name: json.dumps(held) if as_text else held}
    assert [track.id for track in record_of({"status": "SUCCESS", **held}).tracks] == list(IDS)


def test_what_one_place_does_not_say_is_taken_from_the_next() -> None:
    plain = [{"id": each, "audioUrl": url} for each, url in zip(IDS, URLS, strict=True)]
    later = [{"id": IDS[1], "title": "b", "audio_url": "https://x.example/other.mp3"}, {"id": "c", "audio_url": ""}]
    first, second = record_of({"response": {"songs": plain}, "resultJson": json.dumps(later)}).tracks
    assert (first.title, second.title, second.audio_url) == (None, "b", URLS[1])
    (track,) = record_of({"response": {"songs": [{"audioUrl": URLS[0]}]}, "info": {"x": SONGS[0]}}).tracks
    assert track.id == IDS[0]


def test_two_takes_may_have_the_same_address() -> None:
    songs = [{"id": each, "audio_url": URLS[0], "stream_audio_url": ""} for each in IDS]
    assert len(record_of({"output": songs}).tracks) == 2


def test_a_malformed_result_is_read_too() -> None:
    song = {**SONGS[0], "prompt": 'she said "la"'}
    body = {**PLAN, "data": {"taskId": TASK_ID, "state": "success", "resultJson": json.dumps({"data": [song]})}}
    spoilt = json.dumps(body).replace('\\\\\\"', '\\\\"').encode()
    with pytest.raises(json.JSONDecodeError):
        json.loads(spoilt)
    record = wire.read_record(wire.read_envelope(spoilt).data)
    assert record is not None
    assert [(track.id, track.prompt) for track in record.tracks] == [(IDS[0], 'she said "la"')]


@pytest.mark.parametrize("prompt", ["la", 'she said "la"', '"la", "param":"', "la\\", '\\"}'])
def test_a_malformed_echo_does_not_take_a_malformed_result_with_it(prompt: str) -> None:
    echo = json.dumps({"input": json.dumps({"prompt": prompt}), "model": "m"})
    result = json.dumps({"data": [{**SONGS[0], "prompt": prompt}]})
    data = {"taskId": TASK_ID, "state": "success", "param": echo, "resultJson": result, "paramJson": echo}
    spoilt = json.dumps({**PLAN, "data": data}).replace('\\\\\\"', '\\\\"').encode()
    with pytest.raises(json.JSONDecodeError):
        json.loads(spoilt)
    record = wire.read_record(wire.read_envelope(spoilt).data)
    assert record is not None
    assert [(track.id, track.prompt) for track in record.tracks] == [(IDS[0], prompt)]


def test_takes_of_one_id_with_audio_of_their_own_are_kept() -> None:
    twice = [CLASSIC[0], {**CLASSIC[0], "audioUrl": URLS[1]}]
    record = record_of({"response": {"sunoData": twice}})
    assert [track.audio_url for track in record.tracks] == list(URLS)


def test_a_record_in_a_list_in_text_or_in_another_envelope() -> None:
    data = {"taskId": TASK_ID, "status": "SUCCESS"}
    envelope = {"code": 200, "msg": "ok", "data": data}
    nested = {"task": data}, {"record": json.dumps({"info": [data]})}
    for held in ([data], json.dumps(data), json.dumps([data]), envelope, {"data": json.dumps(envelope)}, *nested):
        record = wire.read_record(held)
        assert record is not None
        assert (record.task_id, record.status) == (TASK_ID, "SUCCESS")
        assert wire.read_task_id(held) == TASK_ID
    deep: Any = data
    for _ in range(900):
        deep = {"data": deep}
    assert wire.read_record(deep) == TaskRecord()


def test_a_body_that_was_encoded_twice() -> None:
    twice = json.dumps(json.dumps({**PLAN, "data": {"taskId": TASK_ID, "state": "success"}})).encode()
    record = wire.read_record(wire.read_envelope(twice).data)
    assert record is not None
    assert record.status == "SUCCESS"
    assert wire.read_callback(twice).stage == "complete"


@pytest.mark.parametrize(
    ("data", "found"),
    [
        ({"resultUrls": URLS}, URLS),
        ({"resultUrls": URLS[0]}, URLS[:1]),
        ({"resultUrls": ",".join(URLS)}, URLS),
        ({"resultUrls": json.dumps(URLS)}, URLS),
        ({"resultUrls": [*URLS, *URLS]}, URLS),
        ({"resultUrls": {"0": URLS[0], "1": URLS[1]}}, URLS),
        ({"response": {"audioUrls": list(URLS)}}, URLS),
        ({"response": {"resultUrls": [{"resultUrl": url} for url in URLS]}}, URLS),
        ({"response": {"audioUrl": list(URLS)}}, URLS),
        ({"audioUrl": URLS[0]}, URLS[:1]),
        ({"resultUrls": ["https://x.example/stream/1?sig=a.png"]}, ("https://x.example/stream/1?sig=a.png",)),
        ({"model": "ai-music-api/extend", "resultUrls": ["https://x.example/a.wav"]}, ("https://x.example/a.wav",)),
    ],
)
def test_bare_addresses_are_the_last_resort(data: dict[str, Any], found: tuple[str, ...]) -> None:
    record = record_of({"status": "SUCCESS", **data})
    assert tuple(track.audio_url for track in record.tracks) == found


WAV = "https://x.example/a.wav"
STEM = {"id": "1", "audio_url": URLS[0], "stem_type_group_name": "Vocals", "duration": 10}


@pytest.mark.parametrize(
    "data",
    [
        {"type": "LYRICS", "response": {"data": [{"text": "la", "title": "t", "status": "complete"}]}},
        {"response": {"data": [{"id": "1", "text": "la", "title": "t", "status": "complete"}]}},
        {"model": "ai-music-api/generate-lyrics", "resultJson": json.dumps({"data": [{"id": "a", "title": "t"}]})},
        {"successFlag": "SUCCESS", "response": {"audioWavUrl": WAV}},
        {"response": {"audio_wav_url": WAV}},
        {"successFlag": "SUCCESS", "musicId": "m", "response": {"audioUrl": WAV}},
        {"audioUrl": WAV},
        {"resultUrls": [WAV]},
        {"wavData": {"id": "a", "audioUrl": URLS[0]}},
        {"model": "ai-music-api/convert-to-wav", "resultUrls": [WAV]},
        {"response": {"originData": [STEM], "vocalUrl": URLS[0], "instrumentalUrl": URLS[1]}},
        {"response": {"data": [STEM]}},
        {"operationType": "vocal_removal", "response": {"data": [SONGS[0] | {"title": 1}, 3]}},
        {"response": {"videoUrl": "https://x.example/a.mp4"}},
        {"resultUrls": ["https://x.example/a.mp4"]},
        {"response": {"images": ["https://x.example/a.png"]}},
        {"resultUrls": ["https://x.example/a.png"]},
        {"model": "elevenlabs/sound-effect-v2", "resultUrls": list(URLS)},
        {"model": "elevenlabs/dialogue", "response": {"audioUrl": URLS[0], "duration": 10}},
        {"model": "elevenlabs/text-to-speech", "resultJson": json.dumps({"resultUrls": URLS})},
        {"midiData": {"state": "complete", "instruments": [{"id": "1", "name": "Piano", "notes": []}]}},
        {"uploadUrl": URLS[0], "callBackUrl": URLS[1], "url": "https://x.example", "title": URLS[0]},
        {"param": json.dumps({"audioUrl": URLS[0], "id": "a"}), "source": SONGS, "resultUrls": ["pending", None, 3]},
        {"status": "TEXT_SUCCESS", "title": "[Verse]\nla", "response": {"prompt": "[la]", "data": "{broken"}},
    ],
)
def test_what_another_product_made_is_no_song(data: dict[str, Any]) -> None:
    for write in (malformed, sound):
        assert record_of({"status": "SUCCESS", **data}, write).tracks == ()


# ---------------------------------------------------------------- the words


@pytest.mark.parametrize(
    "word", ["running", "Processing", "in progress", "IN-PROGRESS", "queued", "pending", "queueing"]
)
async def test_synonyms_of_running_are_known(word: str) -> None:
    emitted: list[kie.events.Event] = []
    body = {**PLAN, "data": {"taskId": TASK_ID, "state": word, "response": {"data": SONGS}}}
    async with fault_server(Reply((http(200, json.dumps(body)),), end="keep")) as server:
        changed = settings(server.url, route="jobs", task_timeout=300.0, observer=emitted.append)
        async with kie.KieSession(changed) as session:
            with pytest.raises(kie.WaitTimeoutError):
                await session.track(TASK_ID)
    assert not [event for event in emitted if isinstance(event, kie.events.Notice)]


@pytest.mark.parametrize("word", [word for word, meaning in WORDS.items() if meaning is Word.ENDED])
async def test_synonyms_of_success_count_with_all_the_audio_alone(word: str) -> None:
    waiting = {
        **PLAN,
        "data": {"taskId": TASK_ID, "status": word, "response": {"data": [SONGS[0], {"id": "b", "audio_url": ""}]}},
    }
    empty = {**PLAN, "data": {"taskId": TASK_ID, "status": word.lower()}}
    done = {**PLAN, "data": {"taskId": TASK_ID, "status": word, "response": {"data": SONGS}}}
    replies = [Reply((http(200, json.dumps(body)),), end="keep") for body in (*[empty] * 5, *[waiting] * 20, done)]
    async with (
        fault_server(*replies) as server,
        kie.KieSession(settings(server.url, missing_audio_timeout=5.0)) as session,
    ):
        result = await session.track(TASK_ID)
    assert [track.id for track in result.tracks] == list(IDS)
    assert not result.partial


@pytest.mark.parametrize(
    ("data", "status"),
    [
        ({"status": "PENDING", "state": "completed"}, "COMPLETED"),
        ({"state": "completed", "status": "SUCCESS"}, "SUCCESS"),
        ({"status": "MIXING", "state": "generating"}, "MIXING"),
        ({"status": "", "state": "generating"}, "GENERATING"),
        ({"successFlag": 1}, "SUCCESS"),
        ({"successFlag": True}, "SUCCESS"),
        ({"successFlag": 1.0}, "SUCCESS"),
        ({"successFlag": False}, "GENERATING"),
        ({"successFlag": "0"}, "GENERATING"),
        ({"successFlag": 3}, "GENERATE_AUDIO_FAILED"),
        ({"success_flag": "CREATE_TASK_FAILED"}, "CREATE_TASK_FAILED"),
        ({"status": "PENDING", "successFlag": 1}, "PENDING"),
        ({"state": "generating", "failCode": "SENSITIVE_WORD_ERROR"}, "SENSITIVE_WORD_ERROR"),
        (
            {"state": "fail", "status": "GENERATE_AUDIO_FAILED", "failCode": "SENSITIVE_WORD_ERROR"},
            "GENERATE_AUDIO_FAILED",
        ),
        ({"state": "generating", "failCode": "PENDING"}, "GENERATING"),
        ({"state": "fail", "failCode": "E_42"}, "FAIL"),
    ],
)
def test_the_word_that_says_most(data: dict[str, Any], status: str) -> None:
    assert record_of(data).status == status


@pytest.mark.parametrize(
    ("data", "code", "reason"),
    [
        ({"errorCode": "SENSITIVE_WORD_ERROR"}, None, "SENSITIVE_WORD_ERROR"),
        ({"fail_code": " E_42 "}, None, "E_42"),
        ({"errorCode": 0, "failCode": "413"}, 413, None),
        ({"errorCode": 400, "failCode": "BAD"}, 400, "BAD"),
        ({"failCode": "null"}, None, None),
        ({"failCode": "success"}, None, None),
        ({"failCode": []}, None, None),
        ({"failCode": ["x"]}, None, None),
        ({"errorCode": "0"}, None, None),
    ],
)
def test_a_code_is_a_number_or_a_reason(data: dict[str, Any], code: int | None, reason: str | None) -> None:
    record = record_of(data)
    assert (record.error_code, record.error_reason) == (code, reason)


# ---------------------------------------------------------------- callbacks


@pytest.mark.parametrize(
    ("body", "stage", "code", "message"),
    [
        ({"data": {"taskId": "t1", "state": "fail", "failCode": "501", "failMsg": "bad"}}, "error", 501, "bad"),
        (
            {"code": 200, "data": {"taskId": "t1", "state": "fail", "failCode": "SENSITIVE_WORD_ERROR"}, "msg": "m"},
            "error",
            None,
            "m",
        ),
        ({"code": 501, "data": {"taskId": "t1"}, "msg": "m"}, "error", 501, "m"),
        ({"code": 200, "data": {"taskId": "t1", "status": "PENDING", "errorCode": 413}}, "error", 413, ""),
        ({"code": 200, "data": {"taskId": "t1", "state": "generating"}}, "generating", 200, ""),
        ({"code": 200, "data": {"taskId": "t1", "status": "TEXT_SUCCESS"}}, "text", 200, ""),
        ({"code": 200, "data": {"taskId": "t1", "status": "FIRST_SUCCESS", "state": "generating"}}, "first", 200, ""),
        ({"code": 200, "data": {"taskId": "t1", "state": "completed"}}, "complete", 200, ""),
        ({"code": 200, "data": {"taskId": "t1", "status": "CALLBACK_EXCEPTION"}}, "complete", 200, ""),
        ({"taskId": "t1", "state": "success"}, "complete", None, ""),
        ({"code": 200, "data": json.dumps({"taskId": "t1", "state": "success"})}, "complete", 200, ""),
        ({"code": 200, "callbackType": "First", "taskId": "t1", "data": SONGS}, "first", 200, ""),
        ({"code": 200, "data": {"taskId": "t1"}}, "", 200, ""),
        ({"code": 200, "data": {"taskId": "t1", "callbackType": "complete", "state": "fail"}}, "complete", 200, ""),
    ],
)
def test_the_stage_follows_from_the_status(body: object, stage: str, code: int | None, message: str) -> None:
    event = wire.read_callback(json.dumps(body).encode())
    assert (event.task_id, event.stage, event.code, event.message) == ("t1", stage, code, message)


@pytest.mark.parametrize(
    "body",
    [
        {"data": {"taskId": "t1", "state": "success", **PLACES["resultObject beside"]}},
        {"data": {"task_id": "t1", "callbackType": "complete", "data": SONGS}},
        {"data": {"task_id": "t1", "callbackType": "complete", "data": {"0": SONGS[0], "1": SONGS[1]}}},
        {"task_id": "t1", "callbackType": "complete", "data": SONGS},
        {"taskId": "t1", "state": "success", "resultJson": json.dumps({"data": SONGS})},
    ],
)
def test_the_tracks_of_a_callback(body: object) -> None:
    assert tuple(track.id for track in wire.read_callback(json.dumps(body).encode()).tracks) == IDS


@pytest.mark.parametrize(
    "body", [b'{"task_id":"t1","data":"{\\"state\\":\\"a\\",\\"state\\":\\"b\\"}"}', b'{"data":"["}']
)
def test_a_callback_in_text_is_read_in_one_way_only(body: bytes) -> None:
    with pytest.raises(kie.BadResponseError):
        wire.read_callback(body)


def test_the_callback_of_another_product_has_no_songs() -> None:
    for data in (
        {"lyricsData": [{"text": "la", "id": "a"}]},
        {"audio_wav_url": WAV},
        {"vocal_removal_info": {"vocal_url": URLS[0]}},
    ):
        event = wire.read_callback(json.dumps({"data": {"task_id": "t1", "callbackType": "complete", **data}}).encode())
        assert event.tracks == ()


def test_a_placeholder_is_no_track() -> None:
    listed = [{"id": "", "audioUrl": ""}, {"id": "a", "title": "t"}, {"id": "b", "words": 1}, {"id": "c", "data": []}]
    assert record_of({"response": {"sunoData": listed}}).tracks == (Track("a", title="t"),)


# ---------------------------------------------------------------- the emulator in these shapes


@pytest.mark.parametrize("malformed", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
async def test_a_session_reads_what_the_emulator_answers_in_each_shape(shape: str, malformed: bool) -> None:  # noqa: FBT001  # a parameter of a table
    async with serving(
        settings={"route": "jobs"}, faults=[Fault("shape", shape=shape)], malformed_jobs=malformed
    ) as service:
        fields: dict[str, Any] = {
            "model": "V5",
            "prompt": 'she said "la"',
            "style": "s",
            "title": "t",
            "continue_at": 5,
        }
        result = await (await service.session.extend("a1", **fields))
        ids = service.emulator.task(result.task_id).track_ids
        assert tuple(track.id for track in result.tracks) == (ids if shape != "urls" else ("", ""))
        assert all(track.audio_url for track in result.tracks)
        assert len(service.emulator.ledger) == 1


async def test_callbacks_of_the_shape_of_a_record_cost_no_more_looks() -> None:
    faults = [Fault("shape", "callback")]
    async with serving(callbacks=True, settings={"route": "jobs"}, faults=faults) as service:
        for polls in (20, 4):  # until the first end is reported, as without
            task = await service.session.submit(REQUEST)
            assert len((await task).tracks) == 2
            assert service.emulator.polls(task.id) <= polls
        received = [event.stage for event in service.of(kie.events.CallbackReceived)]
        assert received == ["generating", "generating", "complete"] * 2


async def test_a_task_that_fails_in_words_says_so_on_the_jobs_route() -> None:
    async with serving(settings={"route": "jobs"}, faults=[Fault("failed", code="SENSITIVE_WORD_ERROR")]) as service:
        with pytest.raises(kie.TaskFailedError) as caught:
            await (await service.session.submit(REQUEST))
        assert caught.value.reason == "SENSITIVE_WORD_ERROR"


async def test_a_state_in_other_words_is_told_of_only_if_it_is_not_known() -> None:
    for word, emitted in (("RUNNING", 0), ("MIXING", 1)):
        faults = [Fault("unknown_word", word=word, times=2)]
        async with serving(settings={"route": "jobs"}, faults=faults) as service:
            await (await service.session.submit(REQUEST))
            assert len(service.of(kie.events.Notice)) == emitted
