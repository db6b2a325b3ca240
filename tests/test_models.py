"""Requests: everything the service would refuse late is refused here, all at once."""

from __future__ import annotations

import math
from typing import Any

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kie_async._rules import is_url
from kie_async.errors import InvalidRequestError
from kie_async.models import (
    MODELS,
    Credits,
    ExtendRequest,
    TaskEvent,
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
        model="V9",
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


@pytest.mark.parametrize("moment", [0, -1, math.nan, math.inf, True, "60", 120.5, 121])
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


def test_instrumental_leaves_the_voice_out() -> None:
    found = problems_of(ExtendRequest, "a1", **OWN, instrumental=True, vocal_gender="f")
    assert set(found) == {"prompt", "vocal_gender"}


def test_what_would_be_ignored_is_refused() -> None:
    found = problems_of(ExtendRequest, "a1", **OWN, default_param_flag=False)
    assert set(found) == {"prompt", "style", "title", "continue_at"}
    found = problems_of(UploadExtendRequest, "s.mp3", model="V5", style="s", default_param_flag=False)
    assert set(found) == {"continue_at", "style"}
    UploadExtendRequest("s.mp3", model="V5", prompt="an idea", continue_at=5, default_param_flag=False)


def test_persona_model_goes_with_a_persona_and_v5() -> None:
    ExtendRequest("a1", **OWN, persona_id="p", persona_model="voice_persona")
    assert "persona_model" in problems_of(ExtendRequest, "a1", **OWN, persona_model="voice_persona")
    fields: dict[str, Any] = {**OWN, "model": "V4", "persona_id": "p", "persona_model": "voice_persona"}
    assert "persona_model" in problems_of(ExtendRequest, "a1", **fields)
    ExtendRequest("a1", **{**OWN, "model": "V4"}, persona_id="p")


@pytest.mark.parametrize("text", ["a\0b", "a\ud800"])
def test_text_that_cannot_be_sent_is_refused(text: str) -> None:
    assert set(problems_of(ExtendRequest, "a1", **{**OWN, "prompt": text})) == {"prompt"}


def test_line_ends_belong_to_lyrics() -> None:
    ExtendRequest("a1", **{**OWN, "prompt": "[Verse]\r\nla\n\nla"})


@pytest.mark.parametrize(
    "source", ["", None, 7, "ftp://x/y.mp3", "file:///etc/passwd", "https://", "https://x y/z", "http://[::1"]
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
