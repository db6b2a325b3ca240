from __future__ import annotations

import math

import attrs
import pytest

from kie_async.emulator import TRIGGERS, Fault
from kie_async.emulator._bodies import view
from kie_async.emulator._plan import CODE_NAMES, Ask, Pace, read_classic, read_jobs
from kie_async.emulator._refusals import Refusal, refusal
from kie_async.emulator._state import Delivery, Rules, State, Task, most_in_window, schedule
from kie_async.models import MODELS

ASK = Ask("extend", model="V5", callback_url="http://127.0.0.1:9/cb", audio_id="a", continue_at=30.0)
FIXED = Pace(timeline=(10.0, 40.0, 60.0), goes_on=(20.0, 35.0))


def submit(state: State, ask: Ask = ASK, *, at: float = 0.0, faults: tuple[Fault, ...] = ()) -> Task:
    task = state.submit(state.arrive("classic", at), ask, b"{}", created=0, faults=faults)
    assert isinstance(task, Task)
    return task


def refused(state: State, ask: Ask = ASK, *, at: float = 0.0) -> int:
    answer = state.submit(state.arrive("classic", at), ask, b"{}", created=0)
    assert isinstance(answer, Refusal)
    return answer.code


def word(task: Task, now: float) -> str:
    seen = view(task, now)
    return seen.word if seen else ""


# ---------------------------------------------------------------- quota and money


def test_the_quota_lets_twenty_in_and_opens_again_ten_seconds_after_each() -> None:
    state = State()
    for number in range(20):
        submit(state, at=number / 8)  # exact as floats
    assert refused(state, at=9.999) == 429
    submit(state, at=10.0)
    assert refused(state, at=10.124) == 429
    submit(state, at=10.125)
    assert most_in_window((a.at for a in state.arrivals if a.admitted), 10.0) == 20
    assert [a.code for a in state.arrivals].count(429) == 2


def test_a_refused_submission_counts_against_the_quota_only_if_told_so() -> None:
    strict = State(rules=Rules(quota=1, refused_count=True))
    submit(strict)
    assert refused(strict, at=6.0) == 429
    assert refused(strict, at=12.0) == 429
    lax = State(rules=Rules(quota=1))
    submit(lax)
    assert refused(lax, at=6.0) == 429
    submit(lax, at=12.0)


@pytest.mark.parametrize(("seconds", "most"), [(10.0, 2), (10.1, 3), (0.001, 1)])
def test_the_most_in_a_window_is_exact_at_its_edges(seconds: float, most: int) -> None:
    assert most_in_window([10.0, 0.0, 5.0], seconds) == most
    assert most_in_window([], seconds) == 0


def test_an_accepted_submission_is_one_charge() -> None:
    state = State(credits_left=30.0)
    first, second = submit(state), submit(state, at=1.0)
    assert [charge.number for charge in state.ledger] == [1, 2]
    assert [charge.task_id for charge in state.ledger] == [first.id, second.id]
    assert state.credits_left(1.0) == 6.0
    assert refused(state, at=2.0) == 402
    state.top_up(12.0)
    submit(state, at=3.0)


def test_credits_come_back_only_for_a_failure_that_says_so_and_only_when_it_happens() -> None:
    state = State(credits_left=24.0, pace=FIXED)
    submit(state, faults=(Fault("failed", code=531, seconds=20.0),))
    submit(state, faults=(Fault("failed", code=501, seconds=20.0),))
    assert state.credits_left(19.9) == 0.0
    assert state.credits_left(20.0) == 12.0
    assert [charge.refunded for charge in state.ledger] == [True, False]


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"model": "V99"}, "model"),
        ({"callback_url": ""}, "Please enter callBackUrl."),
        ({"audio_id": ""}, "Please enter audioId."),
        ({"operation": "upload_extend"}, "Please enter uploadUrl."),
    ],
)
def test_little_is_checked_at_once(changed: dict[str, str], words: str) -> None:
    state = State()
    answer = state.submit(state.arrive("classic", 0), attrs.evolve(ASK, **changed), b"{}", created=0)  # type: ignore[arg-type]  # a table of fields
    assert isinstance(answer, Refusal)
    assert answer.code == 422
    assert words in answer.message
    assert state.ledger == []


def test_the_jobs_route_needs_no_callback_url() -> None:
    state = State()
    ask = attrs.evolve(ASK, callback_url="")
    assert isinstance(state.submit(state.arrive("jobs", 0), ask, b"{}", created=0), Task)
    assert state.next_due() is None


def test_a_refusal_has_the_words_of_its_code_or_its_own() -> None:
    assert refusal("429")["msg"].startswith("Your call frequency")
    assert refusal(599) == {"code": 599, "msg": "error", "data": None}
    assert refusal("odd", "mine") == {"code": "odd", "msg": "mine", "data": None}


# ---------------------------------------------------------------- the life of a task


def test_a_task_passes_through_its_stages() -> None:
    task = submit(State(pace=FIXED), at=100.0)
    assert [word(task, 100.0 + age) for age in (0, 9.9, 10, 39.9, 40, 59.9, 60)] == [
        "PENDING", "PENDING", "TEXT_SUCCESS", "TEXT_SUCCESS", "FIRST_SUCCESS", "FIRST_SUCCESS", "SUCCESS",
    ]  # fmt: skip
    assert task.plan.durations == (50.0, 65.0)


def test_the_usual_timing_is_that_of_the_real_service_and_is_seeded_and_scaled() -> None:
    tasks = [submit(State(seed=seed)) for seed in range(50)]
    assert all(8 <= t.plan.text <= 12 and 35 <= t.plan.first <= 55 and 60 <= t.plan.complete <= 140 for t in tasks)
    assert len({t.plan.complete for t in tasks}) == 50
    fast = submit(State(seed=7, pace=Pace(speed=10)))
    assert fast.plan.complete == pytest.approx(submit(State(seed=7)).plan.complete / 10)
    assert fast.plan.durations == submit(State(seed=7)).plan.durations
    assert tasks[7].id == fast.id


@pytest.mark.parametrize("trigger", TRIGGERS)
@pytest.mark.parametrize("field", ["prompt", "style", "title", "negative_tags"])
def test_a_trigger_word_makes_a_task_fail_as_it_says(trigger: str, field: str) -> None:
    ask = attrs.evolve(ASK, **{field: f"about {trigger.upper()} and more"})  # type: ignore[arg-type]  # a text field
    task = submit(State(pace=FIXED), ask)
    fault = TRIGGERS[trigger]
    seen = view(task, 1000.0)
    assert seen is not None
    if fault.kind == "stuck":
        assert (seen.word, task.plan.end) == ("PENDING", math.inf)
    else:
        assert seen.code == fault.code
        assert seen.word == fault.word or seen.word in {"CREATE_TASK_FAILED", "GENERATE_AUDIO_FAILED"}
        assert seen.message == fault.message


def test_a_late_refusal_says_pending_for_minutes_with_its_code() -> None:
    task = submit(State(pace=FIXED), faults=(Fault("refused", seconds=30.0),))
    early, late, end = (view(task, now) for now in (29.0, 209.0, 210.0))
    assert early
    assert late
    assert end
    assert (early.word, early.code) == ("TEXT_SUCCESS", None)
    assert (late.word, late.code, late.message) == ("PENDING", 413, "Uploaded audio matches existing work of art.")
    assert (end.word, end.code) == ("CREATE_TASK_FAILED", 413)


def test_the_first_failure_of_a_task_stands() -> None:
    faults = (Fault("failed", code=501, seconds=5.0), Fault("failed", code=531, seconds=1.0))
    task = submit(State(pace=FIXED), faults=faults)
    assert task.plan.failure
    assert (task.plan.failure.code, task.plan.failure.at) == (501, 5.0)


def test_success_without_audio_gets_it_later_or_never() -> None:
    later = submit(State(pace=FIXED), faults=(Fault("no_audio", seconds=25.0),))
    assert [seen.audio for now in (60, 84.9, 85) if (seen := view(later, now))] == [False, False, True]
    never = submit(State(pace=FIXED), faults=(Fault("no_audio"),))
    assert [seen.audio for now in (60, 1e9) if (seen := view(never, now))] == [False, False]


def test_a_task_can_be_invisible_at_first() -> None:
    task = submit(State(pace=FIXED), faults=(Fault("invisible"),))
    assert view(task, 4.9) is None
    assert word(task, 5.0) == "PENDING"
    assert word(submit(State(pace=FIXED), faults=(Fault("invisible", seconds=70.0),)), 70.0) == "SUCCESS"


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
    state = State(pace=FIXED)
    task = submit(state, attrs.evolve(ASK, **changed))  # type: ignore[arg-type]  # a table of fields
    assert task.plan.failure
    assert task.plan.failure.code == 422
    assert words in task.plan.failure.message
    assert len(state.ledger) == 1


def test_an_instrumental_needs_no_prompt() -> None:
    ask = attrs.evolve(ASK, own_parameters=True, instrumental=True, style="s", title="t")
    assert submit(State(), ask).plan.failure is None


def test_a_track_of_its_own_is_known_by_length_and_model() -> None:
    state = State(pace=FIXED)
    parent = submit(state)
    child = attrs.evolve(ASK, audio_id=parent.track_ids[1], continue_at=64.9)
    assert submit(state, child).plan.failure is None
    assert submit(state, attrs.evolve(child, continue_at=65.0)).plan.failure is not None
    other = submit(state, attrs.evolve(child, model="V4")).plan.failure
    assert other
    assert "must be that of the source track: V5" in other.message
    whole = submit(state, attrs.evolve(child, continue_at=None))
    assert whole.start == 65.0
    assert whole.plan.durations == (85.0, 100.0)


def test_an_unknown_track_is_a_song_of_two_minutes_or_more_or_fails_if_told_so() -> None:
    task = submit(State(), attrs.evolve(ASK, continue_at=None))
    assert 120 <= task.start <= 160
    strict = submit(State(rules=Rules(unknown_audio_fails=True)))
    assert strict.plan.failure
    assert (strict.plan.failure.code, strict.plan.failure.message) == (500, "The original Suno task does not exist.")
    state = State(rules=Rules(unknown_audio_fails=True))
    upload = attrs.evolve(ASK, operation="upload_extend", upload_url="http://x/y")
    assert submit(state, upload).plan.failure is None


def test_a_failure_found_out_later_takes_effect_then_and_only_once() -> None:
    state = State(pace=FIXED)
    upload = attrs.evolve(ASK, operation="upload_extend", upload_url="http://127.0.0.1:1/x", continue_at=50.0)
    task = submit(state, upload)
    state.source_measured(task, 50.1, 5.0)
    assert task.plan.end == 60.0
    state.source_measured(task, 50.0, 45.0)
    state.fail(task, Fault("refused"), 46.0)
    assert task.plan.failure
    assert (task.plan.failure.at, task.plan.failure.code) == (45.0, 422)
    stages = [delivery.stage for delivery in state.take_due(1e9)]
    assert stages == ["text", "first", "error"]


def test_a_fault_that_is_no_failure_changes_no_end() -> None:
    state = State(pace=FIXED)
    task = submit(state, attrs.evolve(ASK, callback_url="https://example.com/x"))
    state.fail(task, Fault("failed"), 1.0)
    assert state.next_due() is None


def test_both_spellings_are_read_alike_and_nonsense_is_nothing() -> None:
    classic = read_classic("extend", {"model": "V5", "audioId": "a", "continueAt": 7, "negativeTags": "n"})
    jobs = read_jobs("extend", {"input": {"model": "V5", "audio_id": "a", "continue_at": 7, "negative_tags": "n"}})
    assert classic == jobs
    assert read_jobs("extend", {"input": "x"}) == Ask("extend")
    assert read_classic("extend", {"continueAt": True, "audioId": 5, "instrumental": 1}) == Ask("extend")
    assert read_jobs("upload_extend", {"input": {"style": "s"}}).own_parameters


def test_every_model_has_a_code_name() -> None:
    assert set(CODE_NAMES) == set(MODELS)


# ---------------------------------------------------------------- callbacks


def planned(*faults: Fault) -> list[tuple[float, str]]:
    state = State(pace=FIXED, faults=faults)
    task = submit(state)
    assert task.early == ()
    return [(at, delivery.stage) for at, delivery in schedule(task, faults)]


def test_the_callbacks_of_a_task_come_with_its_stages() -> None:
    assert planned() == [(10.0, "text"), (40.0, "first"), (60.0, "complete")]
    failed = State(pace=FIXED, faults=[Fault("failed", seconds=15.0)])
    task = submit(failed, faults=failed.faults.pick("submit"))
    assert [(at, each.stage) for at, each in schedule(task, ())] == [(10.0, "text"), (15.0, "error")]


def test_faults_of_callbacks() -> None:
    assert planned(Fault("lost", "callback")) == []
    assert planned(Fault("lost", "callback", stage="complete")) == [(10.0, "text"), (40.0, "first")]
    assert planned(Fault("doubled", stage="first")) == [
        (10.0, "text"), (40.0, "first"), (40.0, "first"), (60.0, "complete"),
    ]  # fmt: skip
    assert planned(Fault("reordered")) == [(60.0, "complete"), (60.0, "first"), (60.0, "text")]
    assert planned(Fault("late", stage="text")) == [(40.0, "text"), (40.0, "first"), (60.0, "complete")]
    assert planned(Fault("late", seconds=1.0))[0] == (11.0, "text")
    assert planned(Fault("forged", seconds=3.0), Fault("lost", "callback")) == [(3.0, "complete")]


@pytest.mark.parametrize(("stage", "early"), [(None, ["text"]), ("complete", ["text", "first", "complete"])])
def test_early_callbacks_go_out_before_the_answer_and_the_task_is_that_far(stage: str | None, early: list[str]) -> None:
    state = State(pace=FIXED, faults=[Fault("early", stage=stage)])
    task = submit(state)
    assert [delivery.stage for delivery in task.early] == early
    assert [delivery.stage for delivery in state.take_due(1e9)] == [
        each for each in ("text", "first", "complete") if each not in early
    ]
    assert word(task, 0.0) == ("SUCCESS" if stage else "TEXT_SUCCESS")


def test_a_delivery_is_tried_three_times_and_then_all_of_the_task_are_given_up() -> None:
    state = State(pace=FIXED)
    task = submit(state)
    (first,) = state.take_due(10.0)
    state.delivered(first, 10.0, answered=False)
    assert state.next_due() == 12.0
    (second,) = state.take_due(12.0)
    state.delivered(second, 12.0, answered=False)
    assert state.next_due() == 22.0
    (third,) = state.take_due(22.0)
    assert [first.attempt, second.attempt, third.attempt] == [1, 2, 3]
    state.delivered(third, 22.0, answered=False)
    assert task.given_up
    assert state.take_due(1e9) == []
    assert word(task, 59.0) == "FIRST_SUCCESS"
    assert word(task, 60.0) == "CALLBACK_EXCEPTION"


def test_a_delivery_that_is_answered_or_forged_is_not_tried_again() -> None:
    state = State(pace=FIXED)
    task = submit(state)
    (first,) = state.take_due(10.0)
    state.delivered(first, 10.0, answered=True)
    state.delivered(Delivery(task, "complete", attempt=3, forged=Fault("forged")), 11.0, answered=False)
    assert state.next_due() == 40.0
    assert not task.given_up


@pytest.mark.parametrize(
    ("url", "fails", "end"),
    [
        ("https://example.com/x", False, "SUCCESS"),
        ("https://example.com/x", True, "CALLBACK_EXCEPTION"),
        ("https://elsewhere.test/x", False, "CALLBACK_EXCEPTION"),
        ("nonsense", False, "SUCCESS"),
    ],
)
def test_other_machines_are_never_called(url: str, fails: bool, end: str) -> None:  # noqa: FBT001  # a parameter
    state = State(pace=FIXED, rules=Rules(placeholder_fails=fails))
    task = submit(state, attrs.evolve(ASK, callback_url=url))
    assert state.next_due() is None
    seen = view(task, 60.0)
    assert seen
    assert (seen.word, seen.ready, seen.audio) == (end, 2, True)


def test_a_stuck_task_calls_nobody_and_does_not_hold_up_the_end() -> None:
    state = State(pace=FIXED)
    submit(state, faults=(Fault("stuck"),))
    assert state.next_due() is None
    assert state.last_end == -math.inf
