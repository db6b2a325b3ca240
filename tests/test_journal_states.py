"""The table of moves, and what a move does to a job."""

from __future__ import annotations

import attrs
import pytest
from journal_contract import REQUEST, SOURCE, TRACK, UPLOAD

from kie_async._protocol import wire
from kie_async.errors import Charged, ConflictError
from kie_async.journal import FINAL, PAID, TRANSITIONS, InboundCallback, Job, JobError, State, is_legal
from kie_async.journal._transitions import FACTS, attempt_of, cost, intended, transition

JOB = Job(key="a", request=REQUEST, moments={"planned": 1.0})
INTENDED = intended(JOB, "token", "me", 2.0)
SUBMITTED = transition(INTENDED, State.SUBMITTED, {"task_id": "t"}, token="token", at=3.0)


def error(charged: Charged = "maybe", *, refunded: bool = False) -> JobError:
    return JobError(type="X", message="", charged=charged, refunded=refunded)


def test_the_table_names_every_state() -> None:
    assert set(TRANSITIONS) == set(State)
    for state, following in TRANSITIONS.items():
        assert state not in following
        assert all(is_legal(state, to) is (to in following) for to in State)


def test_every_state_can_be_reached_and_the_final_ones_are_left_by_persons_only() -> None:
    reached = {State.PLANNED}
    while more := {to for state in reached for to in TRANSITIONS[state]} - reached:
        reached |= more
    assert reached == set(State)
    for state in FINAL:
        assert TRANSITIONS[state] <= {State.PLANNED, State.ABANDONED, State.SUBMITTED}
    assert not TRANSITIONS[State.DELIVERED]


def test_money_is_only_spent_through_an_intent() -> None:
    assert [state for state in State if State.INTENT in TRANSITIONS[state]] == [State.PLANNED]
    assert {state for state in State if State.SUBMITTED in TRANSITIONS[state]} == {State.INTENT, State.UNKNOWN}
    assert {to for state in PAID for to in TRANSITIONS[state]} <= PAID | {State.FAILED}


def test_an_intent() -> None:
    assert (INTENDED.state, INTENDED.attempt, INTENDED.token, INTENDED.process_id) == (State.INTENT, 1, "token", "me")
    assert INTENDED.moments == {"planned": 1.0, "intent": 2.0}
    with pytest.raises(ConflictError, match="not planned"):
        intended(INTENDED, "other", "you", 3.0)


def test_an_attempt() -> None:
    attempt = attempt_of(SUBMITTED)
    assert (attempt.key, attempt.number, attempt.token, attempt.task_id) == ("a", 1, "token", "t")
    assert (attempt.process_id, attempt.intended_at) == ("me", 2.0)


def test_a_move_keeps_what_it_does_not_name() -> None:
    assert (
        attrs.evolve(INTENDED, state=State.SUBMITTED, task_id="t", moments={**INTENDED.moments, "submitted": 3.0})
        == SUBMITTED
    )


@pytest.mark.parametrize(
    ("job", "to", "facts", "token"),
    [
        (INTENDED, State.INTENT, {}, None),
        (JOB, State.INTENT, {}, None),
        (JOB, State.SUBMITTED, {"task_id": "t"}, None),
        (JOB, State.REJECTED, {"task_id": "t"}, None),
        (JOB, State.REJECTED, {}, "token"),
        (INTENDED, State.UNKNOWN, {}, "other"),
        (SUBMITTED, State.SUCCEEDED, {"task_id": "u"}, None),
        (SUBMITTED, State.SUBMITTED, {"task_id": "t"}, None),
    ],
)
def test_refused(job: Job, to: State, facts: dict[str, str], token: str | None) -> None:
    with pytest.raises(ConflictError):
        transition(job, to, facts, token=token, at=4.0)


@pytest.mark.parametrize("name", [*sorted({field.name for field in attrs.fields(Job)} - FACTS), "nonsense"])
def test_no_facts(name: str) -> None:
    with pytest.raises(TypeError, match=name):
        transition(INTENDED, State.UNKNOWN, {name: "x"}, token=None, at=4.0)


def test_a_submission_has_a_task_id() -> None:
    with pytest.raises(TypeError, match="task_id"):
        transition(INTENDED, State.SUBMITTED, {}, token=None, at=4.0)


def test_planned_again_it_begins_anew() -> None:
    failed = transition(
        attrs.evolve(SUBMITTED, source=SOURCE, tracks=(TRACK,), stage="first", route="r", partial=True, files=("f",)),
        State.FAILED,
        {"error": error("yes"), "credits": 11.0},
        token=None,
        at=4.0,
    )
    again = transition(failed, State.PLANNED, {}, token=None, at=5.0)
    moments = {**failed.moments, "planned": 5.0}
    assert again == attrs.evolve(JOB, attempt=1, source=SOURCE, earlier_credits=11.0, moments=moments)


@pytest.mark.parametrize(
    ("state", "of_error", "credits_", "expected"),
    [
        (State.PLANNED, None, None, 0),
        (State.PLANNED, None, 7.0, 0),
        (State.REJECTED, None, None, 0),
        (State.REJECTED, error("no"), None, 0),
        (State.REJECTED, error("maybe"), None, 12),
        (State.INTENT, None, None, 12),
        (State.UNKNOWN, error("maybe"), None, 12),
        (State.ABANDONED, None, None, 12),
        (State.SUBMITTED, None, None, 12),
        (State.SUCCEEDED, None, 10.5, 10.5),
        (State.DELIVERED, error("no"), 0.0, 0),
        (State.FAILED, None, None, 12),
        (State.FAILED, error("maybe"), None, 12),
        (State.FAILED, error("yes"), 6.0, 6),
        (State.FAILED, error("no"), None, 0),
        (State.FAILED, error("yes", refunded=True), 12.0, 0),
    ],
)
def test_what_a_job_costs(state: State, of_error: JobError | None, credits_: float | None, expected: float) -> None:
    job = attrs.evolve(JOB, state=state, error=of_error, credits=credits_)
    assert cost(job) == expected
    assert cost(attrs.evolve(job, earlier_credits=24.0)) == expected + 24


def test_records_can_be_written_and_read() -> None:
    full = attrs.evolve(
        SUBMITTED, request=UPLOAD, source=SOURCE, tracks=(TRACK,), files=("f",), error=error("no"), earlier_credits=1.0
    )
    for value in (JOB, full, attempt_of(full), InboundCallback(token="t", task_id="k", stage="text", at=1.5), SOURCE):
        assert wire.unpack(wire.pack(value), type(value)) == value


def test_a_token_is_not_shown() -> None:
    assert "token" not in repr(
        (INTENDED, attempt_of(INTENDED), InboundCallback(token="token", task_id="t", stage="", at=0.0))
    )
