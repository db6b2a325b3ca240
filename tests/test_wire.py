"""Bytes to values: tolerant of every shape the wild is known to hold, and of any bytes whatever."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest
from conftest import SAMPLES, sample_json
from hypothesis import given
from hypothesis import strategies as st

from kie_async._protocol import json_values, wire
from kie_async._protocol.json_values import dump, mend
from kie_async.errors import BadResponseError, KieError
from kie_async.models import TaskRecord

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=12), inner, max_size=5),
    max_leaves=20,
)
KEYS = st.sampled_from(
    ["code", "msg", "data", "taskId", "task_id", "response", "sunoData", "status", "state", "audioUrl", "duration",
     "createTime", "errorCode", "failCode", "resultJson", "callbackType", "downloadUrl", "success", "id", "param"]
)  # fmt: skip
SHAPED = st.recursive(
    JSON, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=6), max_leaves=25
)


def record(body: bytes) -> TaskRecord:
    found = wire.read_record(wire.read_envelope(body).data)
    assert found is not None
    return found


URL = "https://x.example/a.mp3"
DONE = {"id": "a", "audio_url": URL}


def record_of(**data: Any) -> TaskRecord:
    found = wire.read_record({"taskId": "t1", **data})
    assert found is not None
    return found


READERS: list[Callable[[Any], object]] = [  # each of the ``data`` of an answer
    wire.read_record,
    wire.read_task_id,
    wire.read_credits,
    wire.read_link,
    wire.read_upload,
]


def of_bytes(read: Callable[[Any], object]) -> Callable[[bytes], object]:
    return lambda body: read(wire.read_envelope(body).data)


@pytest.mark.parametrize("read", [wire.read_envelope, wire.read_callback, *map(of_bytes, READERS)])
@given(body=st.binary() | SHAPED.map(lambda value: json.dumps(value).encode()))
def test_any_bytes_raise_only_our_errors(read: Callable[[bytes], object], body: bytes) -> None:
    try:
        value = read(body)
    except KieError as error:
        str(error).encode()
    else:
        repr(value).encode()  # what was read can be written again


@given(SHAPED)
def test_any_data_raises_only_our_errors(data: object) -> None:
    for read in READERS:
        try:
            read(data)
        except KieError as error:
            assert isinstance(error, BadResponseError)


@pytest.mark.parametrize(
    "body",
    [
        b"", b"null", b"[]", b'"x"', b"1", b"<html>502</html>", b'{"code":', b'{"code":200}{}', b"\xff\xfe{",
        b"[" * 100_000, b'{"code":' + b"9" * 5000 + b"}", '{"code":200}'.encode("utf-16"),
    ],
)  # fmt: skip
def test_what_is_no_json_object_is_a_bad_response(body: bytes) -> None:
    with pytest.raises(BadResponseError):
        wire.read_envelope(body)


def test_a_byte_order_mark_is_skipped_and_a_lone_surrogate_replaced() -> None:
    envelope = wire.read_envelope(b'\xef\xbb\xbf{"code":"200","msg":"a\\ud800b"}')
    assert envelope.code == 200
    envelope.msg.encode()
    assert envelope.msg == "a?b"


def test_without_orjson_the_same_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    body = (SAMPLES / "record_info_success.reported.json").read_bytes()
    with_it = record(body)
    monkeypatch.setattr(json_values, "orjson", None)
    assert record(body) == with_it


@pytest.mark.parametrize(("given_code", "code"), [("200", 200), (200.0, 200), (None, None), ("x", None), (True, None)])
def test_codes_come_as_numbers_or_text(given_code: object, code: int | None) -> None:
    assert wire.read_envelope(json.dumps({"code": given_code}).encode()).code == code


# ---------------------------------------------------------------- records


def test_the_samples_are_read() -> None:
    success = record((SAMPLES / "record_info_success.reported.json").read_bytes())
    assert (success.status, success.operation_type, success.type) == ("SUCCESS", "generate", "chirp-crow")
    first, second = success.tracks
    assert first.title == "API Test Track"
    assert first.prompt is None
    assert first.created_at == datetime(2026, 3, 4, 11, 44, 39, 694000, tzinfo=UTC)
    assert (second.duration, second.title) == (192.0, None)
    text = record((SAMPLES / "record_info_text_success.reported.json").read_bytes())
    assert (text.tracks[0].audio_url, text.tracks[0].duration) == (None, None)
    refused = record((SAMPLES / "record_info_pending_refused_413.reported.json").read_bytes())
    assert (refused.status, refused.error_code) == ("PENDING", 413)
    assert record((SAMPLES / "record_info_pending.reported.json").read_bytes()).tracks == ()
    sensitive = record((SAMPLES / "record_info_sensitive_word.constructed.json").read_bytes())
    assert "artist name" in (sensitive.error_message or "")
    undelivered = record((SAMPLES / "record_info_callback_exception_with_audio.constructed.json").read_bytes())
    assert [track.duration for track in undelivered.tracks] == [47.76, 217.4]


def test_both_spellings_are_read_everywhere() -> None:
    data = sample_json("record_info_callback_exception_with_audio.constructed.json")["data"]
    assert wire.read_record(_snake(data)) == wire.read_record(data)


def _snake(value: Any) -> Any:
    if isinstance(value, list):
        return [_snake(each) for each in value]
    if isinstance(value, dict):
        return {"".join(f"_{c.lower()}" if c.isupper() else c for c in key): _snake(v) for key, v in value.items()}
    return value


def test_an_unknown_task_is_none() -> None:
    body = json.dumps(sample_json("exchange_record_info_unknown_task.captured.json")["response"]["json"]).encode()
    assert wire.read_record(wire.read_envelope(body).data) is None
    assert wire.read_record({}) is None
    with pytest.raises(BadResponseError):
        wire.read_record([1])


def test_placeholders_are_no_tracks() -> None:
    listed = [{"id": "", "audioUrl": None}, None, 3, {"id": "a"}, {"audioUrl": "https://x.example/1"}]
    assert len(record_of(response={"sunoData": listed}).tracks) == 2
    assert record_of(response={"sunoData": None}).tracks == ()
    assert record_of(response=None).tracks == ()


@pytest.mark.parametrize(
    ("given_duration", "duration"),
    [(1, 1.0), ("198.44", 198.44), (0, None), (-1, None), (None, None), ("x", None), ([], None), ("1e999", None)],
)
def test_durations(given_duration: object, duration: float | None) -> None:
    track = record_of(response={"sunoData": [{"id": "a", "duration": given_duration}]}).tracks[0]
    assert track.duration == duration


MOMENT = datetime(2025, 1, 1, tzinfo=UTC)


@pytest.mark.parametrize(
    ("given_moment", "moment"),
    [
        (1735689600000, MOMENT), ("1735689600000", MOMENT), (1735689600, MOMENT), ("2025-01-01 00:00:00", MOMENT),
        ("2025-01-01T01:00:00+01:00", MOMENT), ("2025-01-01T00:00:00Z", MOMENT), ("soon", None), (None, None),
        (10**30, None), ([], None), (True, None), ("99999-01-01", None),
    ],
)  # fmt: skip
def test_moments(given_moment: object, moment: datetime | None) -> None:
    assert record_of(createTime=given_moment).created_at == moment


@pytest.mark.parametrize(
    ("status", "state", "word"),
    [
        (" success ", None, "SUCCESS"), (None, "generating", "GENERATING"), ("PENDING", "success", "SUCCESS"),
        ("PENDING", "fail", "FAIL"), ("SENSITIVE_WORD_ERROR", "fail", "SENSITIVE_WORD_ERROR"),
        ("CALLBACK_EXCEPTION", "success", "CALLBACK_EXCEPTION"), ("TEXT_SUCCESS", "generating", "TEXT_SUCCESS"),
        (None, None, ""),
    ],
)  # fmt: skip
def test_one_status_for_both_routes(status: str | None, state: str | None, word: str) -> None:
    assert record_of(status=status, state=state).status == word


def test_error_codes_of_both_routes() -> None:
    assert record_of(errorCode=0, failCode="531", failMsg="gone").error_code == 531
    assert record_of(errorCode="413", errorMessage="").error_code == 413
    assert record_of(errorCode=0, failCode=None).error_code is None
    assert record_of(errorMessage=None, failMsg="gone").error_message == "gone"


@pytest.mark.parametrize(
    "fields",
    [
        {"response": {"data": [DONE]}},
        {"response": json.dumps({"data": [DONE]})},
        {"response": {"sunoData": json.dumps([DONE])}},
        {"response": {"sunoData": [], "data": [DONE]}},
        {"response": {"data": {"sunoData": [DONE]}}},
        {"response": {"sunoData": [{"id": "a"}]}, "resultJson": json.dumps({"data": [DONE]})},
        {"resultJson": json.dumps({"sunoData": [{"id": "a", "audioUrl": URL}]})},
        {"resultJson": json.dumps([DONE]), "response": "no json"},
        {"resultJson": json.dumps(json.dumps({"tracks": [DONE]}))},
        {"resultJson": json.dumps({"data": [{**DONE, "duration": math.nan}]})},
        {"sunoData": [DONE], "response": None},
    ],
)
def test_tracks_wherever_a_route_puts_them(fields: dict[str, Any]) -> None:
    (track,) = record_of(**fields).tracks
    assert (track.id, track.audio_url) == ("a", URL)


def test_tracks_too_deep_are_not_looked_for() -> None:
    holder: object = [DONE]
    for _ in range(7):
        holder = {"data": holder}
    assert len(record_of(response=holder).tracks) == 1
    for _ in range(7):
        holder = {"data": holder}
    assert record_of(response=holder).tracks == ()


def test_bare_addresses_are_tracks() -> None:
    for urls in ([URL], URL):
        (track,) = record_of(resultJson=json.dumps({"resultUrls": urls})).tracks
        assert (track.id, track.audio_url) == ("", URL)


@pytest.mark.parametrize("url", ["", " ", "null", "pending", "/a.mp3", "//x/a.mp3", 0, "ftp://x.example/a.mp3"])
def test_what_is_no_address_is_no_audio(url: object) -> None:
    (track,) = record_of(response={"sunoData": [{"id": "a", "audioUrl": url}]}).tracks
    assert track.audio_url is None


@pytest.mark.parametrize(
    "fields",
    [
        {"audio_url": URL, "audioUrl": ""},
        {"audioUrl": "", "audio_url": f" {URL}\n"},
        {"audioUrl": URL.upper()},
        {"id": "a", "audioUrl": [URL]},
    ],
)
def test_an_address_in_either_spelling(fields: dict[str, Any]) -> None:
    (track,) = record_of(response={"sunoData": [fields]}).tracks
    assert (track.audio_url or "").lower() == URL


def test_a_track_of_which_only_the_original_is_there_is_one() -> None:
    (track,) = record_of(response={"sunoData": [{"sourceAudioUrl": URL}]}).tracks
    assert track.source_audio_url == URL


def test_the_jobs_samples_are_read() -> None:
    running = record((SAMPLES / "jobs_recordinfo_generating_other_model.captured.json").read_bytes())
    assert (running.status, running.tracks, running.completed_at) == ("GENERATING", (), None)
    done = record((SAMPLES / "jobs_recordinfo_success_other_model.captured.json").read_bytes())
    assert done.status == "SUCCESS"
    assert done.completed_at is not None
    assert done.tracks == ()  # a picture


# ---------------------------------------------------------------- the malformed body


def malformed(prompt: str, *, members: tuple[str, ...] = ("param", "paramJson"), tail: str = "") -> bytes:
    """A body of the jobs route as a real one was: the innermost quotes have one backslash too few."""
    inner = json.dumps({"prompt": prompt, "model": "V5"})
    echo = json.dumps(json.dumps({"input": inner, "model": "m"})).replace('\\\\\\"', '\\\\"')
    first, *rest = [f'"{name}":{echo}' for name in members]
    after = "".join(f",{member}" for member in rest)
    response = '"response":{"data":[{"id":"a","audio_url":"https://x.example/a.mp3"}]}'
    return (
        f'{{"code":200,"msg":"ok","data":{{"taskId":"t1",{first}{after},"state":"success",{response}{tail}}}}}'.encode()
    )


@pytest.mark.parametrize("members", [("param",), ("param", "paramJson"), ("paramJson", "param")])
@pytest.mark.parametrize(
    "prompt", ["la", 'she said "la", and', "a}", 'a}",', "[Verse]\nla }\n", '"}', "\\", 'x","paramJson":"y']
)
def test_the_malformed_body_is_recovered(prompt: str, members: tuple[str, ...]) -> None:
    body = malformed(prompt, members=members)
    with pytest.raises(json.JSONDecodeError):
        json.loads(body)
    found = record(body)
    assert (found.task_id, found.status) == ("t1", "SUCCESS")
    assert found.tracks[0].audio_url == "https://x.example/a.mp3"


def test_one_echo_may_be_sound_and_the_other_not() -> None:
    sound = '"param":"{\\"input\\":\\"x\\"}",'
    body = malformed("la", members=("paramJson",)).replace(b'"paramJson"', sound.encode() + b'"paramJson"')
    assert record(body).status == "SUCCESS"


def test_the_echo_may_come_last() -> None:
    body = malformed("la", members=("param",))
    head, echo, rest = body.partition(b',"param":')
    value, state, tail = rest.partition(b',"state"')
    assert record(head + state + tail[:-2] + echo + value + b"}}").status == "SUCCESS"


@given(st.text(max_size=60))
def test_any_lyrics_may_stand_in_the_malformed_body(prompt: str) -> None:
    assert record(malformed(prompt)).status == "SUCCESS"


@pytest.mark.parametrize(
    "body",
    [
        b'{"param":"x","duration":nan}', b'{"code":200,"param":"{\\\\"x', b'{"param":"' + b'",' * 200 + b'"',
        b"\xff\xff",
    ],
)  # fmt: skip
def test_a_body_beyond_mending_is_a_bad_response(body: bytes) -> None:
    assert mend(body) is None
    with pytest.raises(BadResponseError):
        wire.read_envelope(body)


# ---------------------------------------------------------------- other answers


@pytest.mark.parametrize("good", ["2368cbfbe81f2ab5acb5960bb654298e", "A-b_9"])
def test_a_task_id(good: str) -> None:
    assert wire.read_task_id({"taskId": good}) == wire.read_task_id({"task_id": good}) == good


@pytest.mark.parametrize(
    "data",
    [
        "0123456789abcdef" * 2,
        json.dumps({"taskId": "0123456789abcdef" * 2}),
        [{"task_id": "0123456789abcdef" * 2}],
        {"taskId": "", "task_id": "0123456789abcdef" * 2 + "\n"},
    ],
)
def test_a_task_id_in_other_places(data: object) -> None:
    assert wire.read_task_id(data) == "0123456789abcdef" * 2


def test_a_task_id_at_the_root() -> None:
    envelope = wire.read_envelope(b'{"code":200,"msg":"success","taskId":"a"}')
    assert wire.read_task_id(envelope.data) == "a"


@pytest.mark.parametrize("data", ["success", "a", [], [{"taskId": "a"}, {"taskId": "b"}], "[]"])
def test_no_task_id_in_other_places(data: object) -> None:
    with pytest.raises(BadResponseError):
        wire.read_task_id(data)


@pytest.mark.parametrize("bad", [None, 7, "", "a" * 129, "a/b", "a.b", "a\0", "a b", "\u202ea", "é"])
def test_no_task_id(bad: object) -> None:
    with pytest.raises(BadResponseError):
        wire.read_task_id({"taskId": bad})


@pytest.mark.parametrize("name", ["msg", "message", "error", "errorMessage", "detail"])
def test_the_words_of_an_answer(name: str) -> None:
    assert wire.read_envelope(json.dumps({"code": 402, "msg": "", name: "words"}).encode()).msg == "words"


@pytest.mark.parametrize(
    "body",
    [
        b'{"code":200,"data":{"status":"SUCCESS","duration":NaN}}',
        b'{"code":200,"data":{"status":"SUCCESS","prompt":"a\nb\tc"}}',
        b'{"code":200,"data":{"status":"SUCCESS","title":"\xc3"}}',
        b'{"code":200,"data":{"status":"SUCCESS"}}\0\0\r\n',
        b'\xef\xbb\xbf{"code":200,"data":{"status":"SUCCESS","param":"{\\"x\\":"{"y"}","duration":NaN}}',
    ],
)
def test_a_body_broken_in_what_nobody_needs_is_read(body: bytes) -> None:
    assert record(body).status == "SUCCESS"


@pytest.mark.parametrize("data", [5.25, {"credit": 5.25}, {"credits": "5.25"}])
def test_credits_in_each_shape(data: object) -> None:
    assert wire.read_credits(data).amount == 5.25


def test_credits_are_a_float() -> None:
    assert wire.read_credits(5916.25).amount == 5916.25
    assert wire.read_credits("12").amount == 12
    with pytest.raises(BadResponseError):
        wire.read_credits(None)


def test_links() -> None:
    assert wire.read_link("https://x.example/a") == "https://x.example/a"
    assert wire.read_link({"downloadUrl": "https://x.example/a"}) == "https://x.example/a"
    with pytest.raises(BadResponseError):
        wire.read_link(None)


def test_uploads() -> None:
    uploaded = wire.read_upload(sample_json("exchange_file_base64_upload.captured.json")["response"]["json"]["data"])
    assert (uploaded.file_name, uploaded.size, uploaded.mime_type) == ("test-base64.png", 70, "image/png")
    assert uploaded.uploaded_at == datetime(2026, 4, 16, 7, 19, 12, 862000, tzinfo=UTC)
    assert uploaded.download_url.startswith("https://media4.example.net/")
    for bad in ({"success": False, "downloadUrl": "https://x.example"}, {"success": True}, None):
        with pytest.raises(BadResponseError):
            wire.read_upload(bad)


# ---------------------------------------------------------------- callbacks


def test_the_callback_samples_are_read() -> None:
    complete = wire.read_callback((SAMPLES / "callback_complete.captured.json").read_bytes())
    assert (complete.stage, complete.code, len(complete.tracks)) == ("complete", 200, 2)
    error = wire.read_callback((SAMPLES / "callback_error_null_data.documented.json").read_bytes())
    assert (error.stage, error.code, error.tracks) == ("error", 400, ())
    assert error.message == "Song lyrics contain copyrighted material"


@pytest.mark.parametrize(
    "body",
    [
        {"data": {"taskId": "t1"}}, {"task_id": "t1"}, {"taskId": "t1", "data": {"task_id": "t1"}},
        {"code": "200", "taskId": "t1", "data": "text"}, {"data": [{"task_id": "t1"}]},
        {"data": {"data": {"task_id": "t1"}}}, {"data": {"code": 200, "data": {"taskId": "t1", "data": []}}},
    ],
)  # fmt: skip
def test_the_id_of_a_callback_stands_in_several_places(body: object) -> None:
    assert wire.read_callback(json.dumps(body).encode()).task_id == "t1"


def test_the_code_of_a_callback_may_stand_outside_of_its_envelope() -> None:
    event = wire.read_callback(b'{"code":501,"msg":"no","data":{"data":{"task_id":"t1","callbackType":"error"}}}')
    assert (event.stage, event.code, event.message) == ("error", 501, "no")


@pytest.mark.parametrize(
    "body",
    [
        b'{"data":{"task_id":"t1","taskId":"t2"}}', b'{"task_id":"t1","data":{"task_id":"t2"}}',
        b'{"task_id":"t1","task_id":"t1"}', b'{"task_id":"a.b"}', b'{"task_id":7}', b"{}",
        b'{"data":{"data":{"data":{"data":{"data":{"task_id":"t1"}}}}}}', b'{"data":{"data":[{"id":"t1"}]}}',
        b"null", b"[]", b"\xff",
    ],
)  # fmt: skip
def test_a_callback_that_can_be_read_in_two_ways_is_refused(body: bytes) -> None:
    with pytest.raises(BadResponseError):
        wire.read_callback(body)


def test_the_tracks_of_a_callback_are_read_as_far_as_they_can_be() -> None:
    listed = [{"id": " a ", "createTime": 1735689600000}, {}, 3, None, [], ["a"], "https://x.example/1"]
    event = wire.read_callback(json.dumps({"task_id": "t1", "data": {"data": listed}}).encode())
    assert [(track.id, track.audio_url) for track in event.tracks] == [("a", "https://x.example/1")]
    assert event.tracks[0].created_at == MOMENT
    for no_list in ({}, "text", None, 5, {"id": "a"}):
        assert wire.read_callback(json.dumps({"task_id": "t1", "data": {"data": no_list}}).encode()).tracks == ()


def test_a_byte_order_mark_before_a_callback_is_skipped() -> None:
    assert wire.read_callback(b'\xef\xbb\xbf{"task_id":"t1"}').task_id == "t1"


def test_what_is_sent_is_strict() -> None:
    assert dump({"a": "é", "b": 1.5}) == '{"a":"é","b":1.5}'.encode()
    with pytest.raises(ValueError, match="JSON"):
        dump({"a": float("nan")})


@pytest.mark.parametrize(("status", "read"), [(7, "7"), (True, ""), (["x"], ""), ("", ""), ("PENDING", "PENDING")])
def test_a_text_may_come_as_a_number(status: object, read: str) -> None:
    record = wire.read_record({"taskId": "a", "status": "PENDING", "type": status})
    assert record is not None
    assert (record.type or "") == read


@pytest.mark.parametrize(
    "body",
    [
        b'{"code":200,"data":{"callbackType":"first","task_id":"t1","data":[{"id":"a","duration":NaN}]}}\0',
        b'{"code":200,"data":{"callbackType":"first","taskId":"","task_id":"t1","data":[{"id":"a"}]}}',
        b'{"code":200,"data":{"param":"{\\"x\\":"{"y"}","callbackType":"first","taskId":"t1","data":[{"id":"a"}]}}',
    ],
)
def test_a_callback_broken_in_what_nobody_needs_is_read(body: bytes) -> None:
    event = wire.read_callback(body)
    assert (event.task_id, event.stage, [track.id for track in event.tracks]) == ("t1", "first", ["a"])


@pytest.mark.parametrize(
    "body", [b'{"data":{"task_id":"a","task_id":"b","x":NaN}}', b'{"data":{"task_id":"a"', b"\xff"]
)
def test_a_callback_that_can_be_read_in_two_ways_or_none_is_refused(body: bytes) -> None:
    with pytest.raises(BadResponseError):
        wire.read_callback(body)
