"""The rules of the emulator: quota, money, and the timeline of a task."""

from __future__ import annotations

import math
from typing import Any

import attrs
import pytest

from kie_async import MODELS
from kie_async.emulator import TRIGGERS, EmulatedTask, Fault, Rules
from kie_async.emulator._bodies import CODE_NAMES, read_classic, read_jobs, refusal
from kie_async.emulator._refusals import RefusedSubmission
from kie_async.emulator._state import EmulatorState, most_in_window
from kie_async.emulator._tasks import EmulatedSubmission, Speed, TaskSnapshot

SONG = EmulatedSubmission("extend", model="V5", callback_url="http://127.0.0.1:9/cb", source="a", continue_at=30.0)
FIXED = Speed(timeline=(10.0, 40.0, 60.0), goes_on=(20.0, 35.0))


def song(
    submission: EmulatedSubmission = SONG, /, **changes: Any
) -> EmulatedSubmission:  # the fields of a submission, and its texts
    texts = {name: changes.pop(name) if name in changes else text for name, text in submission.texts.items()}
    return attrs.evolve(submission, texts=texts, **changes)


def submit(
    state: EmulatorState, submission: EmulatedSubmission = SONG, *, at: float = 0.0, faults: tuple[Fault, ...] = ()
) -> EmulatedTask:
    task = state.submit(state.account.receive("classic", at), submission, b"{}", created=0, faults=faults)
    assert isinstance(task, EmulatedTask)
    return task


def refused(state: EmulatorState, submission: EmulatedSubmission = SONG, *, at: float = 0.0) -> int:
    answer = state.submit(state.account.receive("classic", at), submission, b"{}", created=0)
    assert isinstance(answer, RefusedSubmission)
    return answer.code


def snapshot(task: EmulatedTask, now: float) -> TaskSnapshot | None:
    return task.timeline.snapshot(now - task.at)


def word(task: EmulatedTask, now: float) -> str:
    seen = snapshot(task, now)
    return seen.word if seen else ""


# ---------------------------------------------------------------- quota and money


def test_the_quota_lets_twenty_in_and_opens_again_ten_seconds_after_each() -> None:
    state = EmulatorState()
    for number in range(20):
        submit(state, at=number / 8)  # exact as floats
    assert refused(state, at=9.999) == 429
    submit(state, at=10.0)
    assert refused(state, at=10.124) == 429
    submit(state, at=10.125)
    assert most_in_window((a.at for a in state.account.received if a.admitted), 10.0) == 20
    assert [a.code for a in state.account.received].count(429) == 2


def test_a_refused_submission_counts_against_the_quota_only_if_told_so() -> None:
    strict = EmulatorState(rules=Rules(quota=1, refused_count=True))
    submit(strict)
    assert refused(strict, at=6.0) == 429
    assert refused(strict, at=12.0) == 429
    lax = EmulatorState(rules=Rules(quota=1))
    submit(lax)
    assert refused(lax, at=6.0) == 429
    submit(lax, at=12.0)


@pytest.mark.parametrize(("seconds", "most"), [(10.0, 2), (10.1, 3), (0.001, 1)])
def test_the_most_in_a_window_is_exact_at_its_edges(seconds: float, most: int) -> None:
    assert most_in_window([10.0, 0.0, 5.0], seconds) == most
    assert most_in_window([], seconds) == 0


def test_an_accepted_submission_is_one_charge() -> None:
    state = EmulatorState(credits_left=30.0)
    first, second = submit(state), submit(state, at=1.0)
    assert [charge.number for charge in state.account.ledger] == [1, 2]
    assert [charge.task_id for charge in state.account.ledger] == [first.id, second.id]
    assert state.account.credits_left(1.0) == 6.0
    assert refused(state, at=2.0) == 402
    state.account.top_up(12.0)
    submit(state, at=3.0)


def test_credits_come_back_only_for_a_failure_that_says_so_and_only_when_it_happens() -> None:
    state = EmulatorState(credits_left=24.0, speed=FIXED)
    submit(state, faults=(Fault("failed", code=531, seconds=20.0),))
    submit(state, faults=(Fault("failed", code=501, seconds=20.0),))
    assert state.account.credits_left(19.9) == 0.0
    assert state.account.credits_left(20.0) == 12.0
    assert [charge.refunded for charge in state.account.ledger] == [True, False]


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"model": "V99"}, "model"),
        ({"callback_url": ""}, "Please enter callBackUrl."),
        ({"source": ""}, "Please enter audioId."),
        ({"operation": "upload_extend", "source": ""}, "Please enter uploadUrl."),
    ],
)
def test_little_is_checked_at_once(changed: dict[str, str], words: str) -> None:
    state = EmulatorState()
    answer = state.submit(state.account.receive("classic", 0), song(**changed), b"{}", created=0)
    assert isinstance(answer, RefusedSubmission)
    assert answer.code == 422
    assert words in answer.message
    assert state.account.ledger == []


def test_the_jobs_route_needs_no_callback_url() -> None:
    state = EmulatorState()
    submission = song(callback_url="")
    assert isinstance(state.submit(state.account.receive("jobs", 0), submission, b"{}", created=0), EmulatedTask)
    assert state.callbacks.next_due() is None


def test_a_refusal_has_the_words_of_its_code_or_its_own() -> None:
    assert refusal("429")["msg"].startswith("Your call frequency")
    assert refusal(599) == {"code": 599, "msg": "error", "data": None}
    assert refusal("odd", "mine") == {"code": "odd", "msg": "mine", "data": None}


# ---------------------------------------------------------------- the life of a task


def test_a_task_passes_through_its_stages() -> None:
    task = submit(EmulatorState(speed=FIXED), at=100.0)
    assert [word(task, 100.0 + age) for age in (0, 9.9, 10, 39.9, 40, 59.9, 60)] == [
        "PENDING", "PENDING", "TEXT_SUCCESS", "TEXT_SUCCESS", "FIRST_SUCCESS", "FIRST_SUCCESS", "SUCCESS",
    ]  # fmt: skip
    assert task.timeline.durations == (50.0, 65.0)


def test_the_usual_timing_is_that_of_the_real_service_and_is_seeded_and_scaled() -> None:
    tasks = [submit(EmulatorState(seed=seed)) for seed in range(50)]
    assert all(
        8 <= t.timeline.text <= 12 and 35 <= t.timeline.first <= 55 and 60 <= t.timeline.complete <= 140 for t in tasks
    )
    assert len({t.timeline.complete for t in tasks}) == 50
    fast = submit(EmulatorState(seed=7, speed=Speed(10)))
    assert fast.timeline.complete == pytest.approx(submit(EmulatorState(seed=7)).timeline.complete / 10)
    assert fast.timeline.durations == submit(EmulatorState(seed=7)).timeline.durations
    assert tasks[7].id == fast.id


@pytest.mark.parametrize("trigger", TRIGGERS)
@pytest.mark.parametrize("field", ["prompt", "style", "title", "negative_tags"])
def test_a_trigger_word_makes_a_task_fail_as_it_says(trigger: str, field: str) -> None:
    submission = song(**{field: f"about {trigger.upper()} and more"})
    task = submit(EmulatorState(speed=FIXED), submission)
    fault = TRIGGERS[trigger]
    options = fault.options
    seen = snapshot(task, 1000.0)
    assert seen is not None
    if fault.kind == "stuck":
        assert (seen.word, task.timeline.end) == ("PENDING", math.inf)
    else:
        assert seen.code == options.get("code")
        assert seen.word == options.get("word") or seen.word in {"CREATE_TASK_FAILED", "GENERATE_AUDIO_FAILED"}
        assert seen.message == options.get("message")


def test_a_late_refusal_says_pending_for_minutes_with_its_code() -> None:
    task = submit(EmulatorState(speed=FIXED), faults=(Fault("refused", seconds=30.0),))
    early, late, end = (snapshot(task, now) for now in (29.0, 209.0, 210.0))
    assert early
    assert late
    assert end
    assert (early.word, early.code) == ("TEXT_SUCCESS", None)
    assert (late.word, late.code, late.message) == ("PENDING", 413, "Uploaded audio matches existing work of art.")
    assert (end.word, end.code) == ("CREATE_TASK_FAILED", 413)


def test_the_first_failure_of_a_task_stands() -> None:
    faults = (Fault("failed", code=501, seconds=5.0), Fault("failed", code=531, seconds=1.0))
    task = submit(EmulatorState(speed=FIXED), faults=faults)
    assert task.timeline.failure
    assert (task.timeline.failure.code, task.timeline.failure.at) == (501, 5.0)


def test_success_without_audio_gets_it_later_or_never() -> None:
    later = submit(EmulatorState(speed=FIXED), faults=(Fault("no_audio", seconds=25.0),))
    assert [seen.audio for now in (60, 84.9, 85) if (seen := snapshot(later, now))] == [False, False, True]
    never = submit(EmulatorState(speed=FIXED), faults=(Fault("no_audio"),))
    assert [seen.audio for now in (60, 1e9) if (seen := snapshot(never, now))] == [False, False]


def test_a_task_can_be_invisible_at_first() -> None:
    task = submit(EmulatorState(speed=FIXED), faults=(Fault("invisible"),))
    assert snapshot(task, 4.9) is None
    assert word(task, 5.0) == "PENDING"
    assert word(submit(EmulatorState(speed=FIXED), faults=(Fault("invisible", seconds=70.0),)), 70.0) == "SUCCESS"


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"own_parameters": True, "prompt": "p", "title": "t"}, "style is required"),
        ({"own_parameters": True, "style": "s", "title": "t"}, "prompt is required"),
        ({"own_parameters": True, "instrumental": True, "style": "s"}, "title is required"),
        ({"title": "t" * 101}, "title must not exceed 100"),
        ({"lyrics": "l" * 5001}, "lyrics must not exceed 5000"),
        ({"variety": 4.5}, "variety must be from 0 to 4"),
        ({"continue_at": 0.0}, "continueAt must be greater than 0"),
        ({"continue_at": 1000.0}, "continueAt must be greater than 0"),
        ({"own_parameters": True, "instrumental": True, "style": "s", "title": "t", "continue_at": None}, "continueAt"),
    ],
)
def test_what_is_wrong_is_refused_late_and_charged(changed: dict[str, object], words: str) -> None:
    state = EmulatorState(speed=FIXED)
    task = submit(state, song(**changed))
    assert task.timeline.failure
    assert task.timeline.failure.code == 422
    assert words in task.timeline.failure.message
    assert len(state.account.ledger) == 1


def test_an_instrumental_needs_no_prompt() -> None:
    submission = song(own_parameters=True, instrumental=True, style="s", title="t")
    assert submit(EmulatorState(), submission).timeline.failure is None


def test_a_track_of_its_own_is_known_by_length_and_model() -> None:
    state = EmulatorState(speed=FIXED)
    parent = submit(state)
    child = song(source=parent.track_ids[1], continue_at=64.9)
    assert submit(state, child).timeline.failure is None
    assert submit(state, song(child, continue_at=65.0)).timeline.failure is not None
    other = submit(state, song(child, model="V4")).timeline.failure
    assert other
    assert "must be that of the source track: V5" in other.message
    whole = submit(state, song(child, continue_at=None))
    assert whole.start == 65.0
    assert whole.timeline.durations == (85.0, 100.0)


def test_an_unknown_track_is_a_song_of_two_minutes_or_more_or_fails_if_told_so() -> None:
    task = submit(EmulatorState(), song(continue_at=None))
    assert 120 <= task.start <= 160
    strict = submit(EmulatorState(rules=Rules(unknown_audio_fails=True)))
    assert strict.timeline.failure
    assert (strict.timeline.failure.code, strict.timeline.failure.message) == (
        500,
        "The original Suno task does not exist.",
    )
    state = EmulatorState(rules=Rules(unknown_audio_fails=True))
    upload = song(operation="upload_extend", source="http://x/y")
    assert submit(state, upload).timeline.failure is None


def test_a_failure_found_out_later_takes_effect_then_and_only_once() -> None:
    state = EmulatorState(speed=FIXED)
    upload = song(operation="upload_extend", source="http://127.0.0.1:1/x", continue_at=50.0)
    task = submit(state, upload)
    state.source_measured(task, 50.1, 5.0)
    assert task.timeline.end == 60.0
    state.source_measured(task, 50.0, 45.0)
    state.fail(task, Fault("refused"), 46.0)
    assert task.timeline.failure
    assert (task.timeline.failure.at, task.timeline.failure.code) == (45.0, 422)
    stages = [callback.stage for _, callback in state.callbacks.take_due(1e9)]
    assert stages == ["text", "first", "error"]


def test_a_failure_found_out_later_calls_nobody_on_another_machine() -> None:
    state = EmulatorState(speed=FIXED)
    task = submit(state, song(callback_url="https://example.com/x"))
    state.fail(task, Fault("failed"), 1.0)
    assert state.callbacks.next_due() is None


def test_both_spellings_are_read_alike_and_nonsense_is_nothing() -> None:
    classic = read_classic("extend", {"model": "V5", "audioId": "a", "continueAt": 7, "negativeTags": "n"})
    given = {"model": "V5", "audio_id": "a", "continue_at": 7, "negative_tags": "n"}
    jobs = read_jobs({"model": "ai-music-api/extend", "input": given})
    assert classic == jobs
    assert read_jobs({"model": "ai-music-api/extend", "input": "x"}) == EmulatedSubmission("extend")
    assert read_classic("extend", {"continueAt": True, "audioId": 5, "instrumental": 1}) == EmulatedSubmission("extend")
    assert read_jobs({"model": "ai-music-api/upload-and-extend-audio", "input": {"style": "s"}}).own_parameters


def test_every_model_has_a_code_name() -> None:
    assert set(CODE_NAMES) == set(MODELS)
