"""Requests: everything the service would refuse late is refused here, all at once."""

from __future__ import annotations

import json
import math
import re
from datetime import UTC, datetime
from typing import Any

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kie_async import MODELS
from kie_async._protocol.request_rules import is_url
from kie_async.errors import InvalidRequestError
from kie_async.models import (
    Credits,
    ExtendRequest,
    TaskEvent,
    TaskRecord,
    TaskResult,
    Track,
    UploadExtendRequest,
)

OWN: dict[str, Any] = {"model": "V5", "prompt": "la la", "style": "Classical", "title": "Longer", "continue_at": 60}


def problems_of(kind: Any, *args: Any, **fields: Any) -> dict[str, str]:
    with pytest.raises(InvalidRequestError) as caught:
        kind(*args, **fields)
    assert caught.value.charged == "no"
    assert caught.value.code is None
    for problem in caught.value.problems:
        assert str(problem) in str(caught.value)
        assert problem.remedy
    return {problem.field: problem.problem for problem in caught.value.problems}


def test_a_good_request_is_taken() -> None:
    request = ExtendRequest("e231", **OWN)
    assert request.own_parameters is True
    assert ExtendRequest("e231", model="V5").own_parameters is False
    assert UploadExtendRequest("song.mp3", model="V5", continue_at=45.5).own_parameters is False
    assert UploadExtendRequest("https://x.example/s.mp3", **OWN).own_parameters is True


def test_all_problems_are_reported_at_once() -> None:
    found = problems_of(
        ExtendRequest,
        " ",
        model="v9",
        continue_at=-1,
        style_weight=0.295,
        audio_weight=True,
        vocal_gender="x",
        persona_model="other",
        instrumental="yes",
        default_param_flag=1,
        style="",
        negative_tags=7,
    )
    assert set(found) == {
        "audio_id", "model", "continue_at", "style_weight", "audio_weight", "vocal_gender", "persona_model",
        "instrumental", "default_param_flag", "style", "negative_tags", "prompt", "title",
    }  # fmt: skip


@pytest.mark.parametrize("model", MODELS)
def test_limits_are_counted_in_characters_by_model(model: str) -> None:
    limits = MODELS[model]
    at_the_limit = {
        "prompt": "😀" * limits.prompt,
        "style": "é" * limits.style,
        "title": "t" * limits.title,
    }
    ExtendRequest("a1", **{**OWN, "model": model, **at_the_limit})
    beyond = {name: text + "x" for name, text in at_the_limit.items()}
    found = problems_of(ExtendRequest, "a1", **{**OWN, "model": model, **beyond})
    assert set(found) == {"prompt", "style", "title"}


@given(st.integers(0, 100))
def test_every_step_of_a_hundredth_is_a_weight(step: int) -> None:
    ExtendRequest("a1", **OWN, style_weight=step / 100, weirdness_constraint=0.01 * step, audio_weight=step * 0.01)


@given(st.floats().filter(lambda x: not (0 <= x <= 1) or abs(x * 100 - round(x * 100)) > 1e-6))
def test_nothing_else_is_a_weight(weight: float) -> None:
    assert set(problems_of(ExtendRequest, "a1", **OWN, style_weight=weight)) == {"style_weight"}


@pytest.mark.parametrize("moment", [0, -1, math.nan, math.inf, True, "soon", "0", "121", "100%", "-2:10", 120.5, 121])
def test_continue_at_lies_within_the_source(moment: object) -> None:
    fields = {**OWN, "continue_at": moment, "source_duration": 120.5}
    assert "continue_at" in problems_of(ExtendRequest, "a1", **fields)


def test_continue_at_may_be_just_before_the_end() -> None:
    ExtendRequest("a1", **{**OWN, "continue_at": 120.4}, source_duration=120.5)
    assert "source_duration" in problems_of(ExtendRequest, "a1", **OWN, source_duration=math.nan)


def test_own_parameters_need_the_whole_set() -> None:
    found = problems_of(ExtendRequest, "a1", model="V5", continue_at=60)
    assert set(found) == {"prompt", "style", "title"}
    assert set(problems_of(UploadExtendRequest, "s.mp3", model="V5", title="t")) == {"prompt", "style", "continue_at"}
    ExtendRequest("a1", model="V5", style="s", title="t", continue_at=6, instrumental=True)


def test_an_upload_needs_its_moment_whatever_else_is_given() -> None:
    found = problems_of(UploadExtendRequest, "s.mp3", model="V5", style="s", default_param_flag=False)
    assert set(found) == {"continue_at"}
    UploadExtendRequest("s.mp3", model="V5", prompt="an idea", continue_at=5, default_param_flag=False)


@pytest.mark.parametrize("name", ["style", "title", "prompt"])
def test_a_text_that_is_needed_is_not_empty(name: str) -> None:
    assert set(problems_of(ExtendRequest, "a1", **{**OWN, name: " "})) == {name}


def test_a_voice_persona_needs_a_model_that_takes_one() -> None:
    ExtendRequest("a1", **OWN, persona_id="p", persona_model="voice_persona")
    fields: dict[str, Any] = {**OWN, "model": "V4", "persona_id": "p", "persona_model": "voice_persona"}
    assert set(problems_of(ExtendRequest, "a1", **fields)) == {"persona_model"}
    ExtendRequest("a1", **{**fields, "persona_model": "style_persona"})  # what the service does by default
    ExtendRequest("a1", **{**OWN, "model": "V4"}, persona_id="p")
    assert set(problems_of(ExtendRequest, "a1", **OWN, persona_id="")) == {"persona_id"}


def test_a_persona_needs_own_parameters() -> None:
    for build in (
        lambda: ExtendRequest("a1", model="V5", persona_id="p"),
        lambda: ExtendRequest("a1", **OWN, persona_id="p", default_param_flag=False),
        lambda: UploadExtendRequest("s.mp3", continue_at=5, persona_id="p"),
    ):
        with pytest.raises(InvalidRequestError, match="persona_id: is given without own parameters"):
            build()


@pytest.mark.parametrize("model", ["V7", "V6_5", "V6_PRO", "V5_TURBO", "V5_5PLUS", "V8_MINI"])
def test_a_new_model_has_the_limits_of_the_newest(model: str) -> None:
    ExtendRequest("a1", **{**OWN, "model": model, "prompt": "x" * 5000})
    found = problems_of(ExtendRequest, "a1", **{**OWN, "model": model, "prompt": "x" * 5001})
    assert set(found) == {"prompt"}


@pytest.mark.parametrize(
    "model",
    ["v5", "V 5", "V5.5", "V55", "V5-5", " V5", "V5 ", "V45", "V4_5 PLUS", "V4_5_PLUS", "V4_5PLU", "V4_6", "V3", "V0",
     "V6MINI", "V6_MNI", "V6_MINNI", "V5_4", "chirp-v5", "suno", "V", "VV5", "V1000"],
)  # fmt: skip
def test_a_model_that_is_misspelt_is_refused(model: str) -> None:
    assert set(problems_of(ExtendRequest, "a1", **{**OWN, "model": model})) == {"model"}


@pytest.mark.parametrize("fields", [{}, {"model": ""}, {"model": None}])
def test_a_missing_model_is_no_type_error(fields: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequestError, match=r"model: is missing; give the one that made the track: V3_5, V4"):
        ExtendRequest("a1", **fields)


def test_an_upload_is_extended_by_v5_unless_told_otherwise() -> None:
    assert UploadExtendRequest("s.mp3", continue_at=5).model == "V5"
    assert "model" in problems_of(UploadExtendRequest, "s.mp3", continue_at=5, model="")


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("45.5", 45.5), ("1:30", 90), ("75%", 90), ("-10s", 110), ("-0:10", 110), (" 75% ", 90), ("90s", 90)],
)
def test_a_moment_is_written_as_on_the_command_line(text: str, seconds: float) -> None:
    assert ExtendRequest("a1", **{**OWN, "continue_at": text}, source_duration=120).continue_at == seconds
    unknown = ExtendRequest("a1", **{**OWN, "continue_at": text})
    assert unknown.continue_at == (text if "%" in text or "-" in text else seconds)
    assert attrs.evolve(unknown, source_duration=120).continue_at == seconds


@pytest.mark.parametrize(
    ("text", "length", "said"),
    [
        ("-70s", 65.16, "is '-70s'; the source lasts 1:05.16: give a position in it"),
        ("100%", 65.16, "is '100%'; the source lasts 1:05.16: give a position in it"),
        ("100%", 65.1602, "is '100%'; the source lasts 1:05.16: give a position in it"),
        ("65.16", 65.1602, "is 1:05.16; the source lasts 1:05.16: give a moment before its end"),
        ("2:00", 65.16, "is 2:00; the source lasts 1:05.16: give a moment before its end"),
        ("0s", None, "is '0s'; give a position above 0"),
    ],
)
def test_a_moment_that_is_not_in_the_source_is_shown_as_it_was_given(
    text: str, length: float | None, said: str
) -> None:
    with pytest.raises(InvalidRequestError, match=f"continue_at: {re.escape(said)}$"):
        ExtendRequest("a1", **{**OWN, "continue_at": text}, source_duration=length)


def test_lyrics_take_the_place_of_the_prompt() -> None:
    fields: dict[str, Any] = {"continue_at": 5, "style": "s", "title": "t"}
    assert UploadExtendRequest("s.mp3", **fields, lyrics="la", variety=4).own_parameters
    assert set(problems_of(UploadExtendRequest, "s.mp3", continue_at=5, lyrics="la")) == {"style", "title"}
    assert set(problems_of(UploadExtendRequest, "s.mp3", **fields, lyrics="x" * 5001)) == {"lyrics"}
    for variety in (-1, 4.5, True, "2", math.nan):
        assert set(problems_of(UploadExtendRequest, "s.mp3", **fields, lyrics="l", variety=variety)) == {"variety"}


@pytest.mark.parametrize("text", ["a\0b", "a\ud800"])
def test_text_that_cannot_be_sent_is_refused(text: str) -> None:
    assert set(problems_of(ExtendRequest, "a1", **{**OWN, "prompt": text})) == {"prompt"}


def test_line_ends_belong_to_lyrics() -> None:
    ExtendRequest("a1", **{**OWN, "prompt": "[Verse]\r\nla\n\nla"})


@pytest.mark.parametrize(
    "source",
    ["", None, 7, "ftp://x/y.mp3", "file:///etc/passwd", "https://", "https://x y/z", "http://[::1", "https://x:y/z"],
)
def test_a_source_is_a_path_or_a_url(source: Any) -> None:
    assert "source" in problems_of(UploadExtendRequest, source, model="V5", continue_at=5)


def test_an_upload_may_not_be_too_long() -> None:
    found = problems_of(UploadExtendRequest, "s.mp3", model="V4_5ALL", continue_at=5, source_duration=60.5)
    assert set(found) == {"source"}
    UploadExtendRequest("s.mp3", model="V5", continue_at=5, source_duration=480)
    ExtendRequest("a1", **OWN, source_duration=500)


ODD = st.sampled_from([None, True, 0, -1, 10**400, 1e308, [], {}, b"", object(), "", "x", 0.5, "V5", float("nan")])


@given(st.dictionaries(st.sampled_from(sorted(attrs.fields_dict(ExtendRequest))), ODD))
def test_whatever_is_given_only_our_error_comes(fields: dict[str, Any]) -> None:
    try:
        ExtendRequest(**{"audio_id": "a1", "model": "V5", **fields})
    except InvalidRequestError as error:
        assert error.problems


def test_values_say_what_they_are() -> None:
    assert float(Credits(5916.25)) == 5916.25
    tracks = (Track("a", stream_audio_url="https://s.example/a"), Track("b"))
    assert TaskEvent("t", "text", tracks).stream_urls == ("https://s.example/a",)
    assert is_url("HTTPS://x")
    assert not is_url("x.mp3")


@pytest.mark.parametrize("audio_id", ["a\nb", " a", "a\t"])
def test_an_audio_id_is_one_word(audio_id: str) -> None:
    assert "control characters" in problems_of(ExtendRequest, audio_id, **OWN)["audio_id"]


@pytest.mark.parametrize("audio_id", ["https://h.example/a?s=secret", "songs/a", "a.mp3", "C:\\a"])
def test_a_song_of_your_own_is_no_track(audio_id: str) -> None:
    assert problems_of(ExtendRequest, audio_id, **OWN)["audio_id"] == "is an address or the name of a file"


# ---------------------------------------------------------------- as JSON

MOMENT = datetime(2026, 3, 4, 11, 44, tzinfo=UTC)
SHORT = Track("a", audio_url="https://x.example/a.mp3", duration=60.0, created_at=MOMENT)
LONG = Track("b", audio_url="https://x.example/b.mp3", duration=60.1)
RECORD = TaskRecord(
    "t1",
    "SUCCESS",
    (SHORT, LONG),
    error_message="see https://u.example/x.mp3?sig=SECRET",
    param='{"callBackUrl":"https://me.example/kie/SECRET"}',
    created_at=MOMENT,
)


def test_a_result_is_json() -> None:
    value = TaskResult("t1", (SHORT, LONG), RECORD, continue_at=60.0, source_duration=125.0).to_dict()
    assert json.loads(json.dumps(value)) == value
    assert "SECRET" not in json.dumps(value)
    assert (value["task_id"], value["partial"], value["continue_at"], value["source_duration"]) == (
        "t1", False, 60.0, 125.0,
    )  # fmt: skip
    assert [track["holds"] for track in value["tracks"]] == ["continuation", "unknown"]
    assert value["tracks"][0] == SHORT.to_dict() | {"holds": "continuation"}
    assert value["record"]["created_at"] == "2026-03-04T11:44:00+00:00"
    assert value["record"]["status"] == "SUCCESS"
    assert "tracks" not in value["record"]


def test_a_track_is_json() -> None:
    value = SHORT.to_dict()
    assert json.loads(json.dumps(value)) == value
    assert set(value) == {field.name for field in attrs.fields(Track)}
    assert (value["id"], value["created_at"], value["title"]) == ("a", "2026-03-04T11:44:00+00:00", None)


def test_a_record_is_json() -> None:
    value = RECORD.to_dict()
    assert json.loads(json.dumps(value)) == value
    assert "SECRET" not in json.dumps(value)
    assert value["tracks"] == [SHORT.to_dict(), LONG.to_dict()]
    assert TaskRecord("t1").to_dict()["error_message"] is None


@pytest.mark.parametrize("continue_at", [None, 59.9])
def test_a_longer_track_proves_nothing(continue_at: float | None) -> None:
    result = TaskResult("t1", (SHORT, LONG, Track("c")), RECORD, continue_at=continue_at)
    assert {result.holds(track) for track in result.tracks} == {"unknown"}
