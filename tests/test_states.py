"""The odd states of a task, each by itself."""

from __future__ import annotations

import pytest
from conftest import sample_json
from hypothesis import given
from hypothesis import strategies as st

from kie_async._protocol import wire
from kie_async._protocol.statuses import (
    WORDS,
    Failed,
    NotFound,
    Running,
    Succeeded,
    Word,
    judge,
    stage_number,
    stage_of,
)
from kie_async.models import STAGES, TaskRecord, Track

DONE = Track("a", audio_url="https://x.example/a.mp3", duration=10)
SOURCE_ONLY = Track("b", source_audio_url="https://x.example/b.mp3")
BARE = Track("c", stream_audio_url="https://x.example/c")


def sample(name: str) -> TaskRecord:
    record = wire.read_record(sample_json(name)["data"])
    assert record is not None
    return record


@pytest.mark.parametrize("status", [word for word, meaning in WORDS.items() if meaning is Word.RUNNING])
def test_running(status: str) -> None:
    assert isinstance(judge(TaskRecord("t", status), timed_out=True), Running)


def test_success() -> None:
    verdict = judge(sample("record_info_success.reported.json"))
    assert isinstance(verdict, Succeeded)
    assert (len(verdict.tracks), verdict.partial) == (2, False)


def test_not_visible_yet() -> None:
    assert judge(None) == Running(pending_reason="not visible")
    assert judge(None, timed_out=True) == NotFound()


def test_pending_with_an_error_code_is_refused() -> None:
    verdict = judge(sample("record_info_pending_refused_413.reported.json"))
    assert verdict == Failed("Uploaded audio matches existing work of art.", 413, "maybe")


@pytest.mark.parametrize("code", [None, 0, 200])
def test_codes_that_say_nothing(code: int | None) -> None:
    assert judge(TaskRecord("t", "PENDING", error_code=code)) == Running()


def test_an_undelivered_callback_with_audio_is_a_success() -> None:
    record = sample("record_info_callback_exception_with_audio.constructed.json")
    assert judge(record) == Succeeded(record.tracks)


@pytest.mark.parametrize("status", ["SUCCESS", "CALLBACK_EXCEPTION"])
@pytest.mark.parametrize("tracks", [(), (BARE,), (DONE, BARE)])
def test_success_without_audio_is_borne_for_a_time(status: str, tracks: tuple[Track, ...]) -> None:
    verdict = judge(TaskRecord("t", status, tracks))
    assert isinstance(verdict, Running)
    assert verdict.pending_reason == ("no audio" if status == "SUCCESS" else "undelivered")


@pytest.mark.parametrize("status", ["FAILED", "GENERATE_AUDIO_FAILED", "PENDING", "FIRST_SUCCESS"])
@pytest.mark.parametrize("tracks", [(DONE,), (DONE, BARE)])
def test_what_was_made_before_a_failure_is_not_withheld(status: str, tracks: tuple[Track, ...]) -> None:
    record = TaskRecord("t", status, tracks, error_code=501)
    assert judge(record) == Succeeded((DONE,), partial=len(tracks) > 1)


@pytest.mark.parametrize("status", ["SUCCESS", "CALLBACK_EXCEPTION"])
def test_half_a_success_with_an_error_code_is_borne_for_a_time(status: str) -> None:
    record = TaskRecord("t", status, (DONE, BARE), error_code=500)
    assert isinstance(judge(record), Running)
    assert judge(record, timed_out=True) == Succeeded((DONE,), partial=True)


def test_then_what_there_is_is_taken() -> None:
    assert judge(TaskRecord("t", "SUCCESS", (DONE, BARE)), timed_out=True) == Succeeded((DONE,), partial=True)
    assert judge(TaskRecord("t", "SUCCESS", (DONE, SOURCE_ONLY)), timed_out=True) == Succeeded((DONE, SOURCE_ONLY))
    verdict = judge(TaskRecord("t", "SUCCESS"), timed_out=True)
    assert isinstance(verdict, Failed)
    assert verdict.charged == "yes"


def test_success_without_audio_but_with_an_error_code_is_a_failure() -> None:
    assert isinstance(judge(TaskRecord("t", "SUCCESS", error_code=500)), Failed)
    assert isinstance(judge(TaskRecord("t", "SUCCESS", (DONE,), error_code=500)), Succeeded)


@pytest.mark.parametrize("status", [word for word, meaning in WORDS.items() if meaning is Word.FAILED])
def test_failed(status: str) -> None:
    verdict = judge(TaskRecord("t", status))
    assert isinstance(verdict, Failed)
    assert status in verdict.message


def test_the_helpful_message_is_passed_on() -> None:
    verdict = judge(sample("record_info_sensitive_word.constructed.json"))
    assert isinstance(verdict, Failed)
    assert "artist name" in verdict.message


@pytest.mark.parametrize(
    ("code", "spent", "charged", "refunded"),
    [
        (531, None, "no", True),
        (501, None, "maybe", False),
        (501, 12.0, "yes", False),
        (501, 0.0, "no", False),
        (501, -1.0, "maybe", False),
    ],
)
def test_whether_it_was_charged(code: int, spent: float | None, charged: str, refunded: bool) -> None:  # noqa: FBT001  # parameters of a table
    verdict = judge(TaskRecord("t", "FAILED", error_code=code, credits_consumed=spent))
    assert isinstance(verdict, Failed)
    assert (verdict.charged, verdict.refunded) == (charged, refunded)


@pytest.mark.parametrize(
    ("status", "spent", "charged"),
    [("SUCCESS", None, "yes"), ("SUCCESS", 0.0, "no"), ("SUCCESS", 12.0, "yes"), ("CALLBACK_EXCEPTION", None, "maybe")],
)
def test_whether_an_end_without_audio_was_charged(status: str, spent: float | None, charged: str) -> None:
    verdict = judge(TaskRecord("t", status, credits_consumed=spent), timed_out=True)
    assert isinstance(verdict, Failed)
    assert verdict.charged == charged


def test_an_unknown_word_is_not_an_end() -> None:
    assert judge(TaskRecord("t", "POLISHING"), timed_out=True) == Running(pending_reason="unknown word")


def test_stages() -> None:
    assert stage_of(TaskRecord("t", "PENDING")) is None
    assert stage_of(TaskRecord("t", "TEXT_SUCCESS")) == "text"
    assert stage_of(TaskRecord("t", "PENDING", (BARE,))) == "text"
    assert stage_of(TaskRecord("t", "FIRST_SUCCESS")) == "first"
    assert stage_of(TaskRecord("t", "PENDING", (DONE, BARE))) == "first"
    assert [stage_number(stage) for stage in (None, *STAGES)] == [0, 1, 2, 3]


@given(
    st.sampled_from([*WORDS, "", "ODD"]),
    st.lists(st.sampled_from([DONE, BARE, SOURCE_ONLY]), max_size=3),
    st.none() | st.integers(0, 600),
)
def test_impatience_only_ends_things(status: str, tracks: list[Track], code: int | None) -> None:
    record = TaskRecord("t", status, tuple(tracks), error_code=code)
    patient, impatient = judge(record), judge(record, timed_out=True)
    if not isinstance(patient, Running):
        assert impatient == patient
    if isinstance(impatient, Succeeded):
        assert all(track.audio_url or track.source_audio_url for track in impatient.tracks)
