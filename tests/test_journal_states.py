"""The table of moves, and what a move does to a job."""

from __future__ import annotations

import json

import attrs
import pytest
from journal_contract import REQUEST, SOURCE, TRACK, UPLOAD

from kie_async._protocol import wire
from kie_async.errors import Charged, ConflictError
from kie_async.journal import (
    FINAL,
    PAID,
    TRANSITIONS,
    Attempt,
    InboundCallback,
    Job,
    JobError,
    JobResults,
    LastAttempt,
    State,
)
from kie_async.journal._job import pack_job, unpack_job
from kie_async.journal._transitions import FACTS, cost, enqueued, intended, transition

JOB = Job(key="a", request=REQUEST, moments={"planned": 1.0})
INTENDED = intended(JOB, "token", "me", 2.0)
SUBMITTED = transition(INTENDED, State.SUBMITTED, {"task_id": "t"}, token="token", at=3.0)


def error(charged: Charged = "maybe", *, refunded: bool = False) -> JobError:
    return JobError(type="X", message="", charged=charged, refunded=refunded)


def test_the_table_names_every_state() -> None:
    assert set(TRANSITIONS) == set(State)
    for state, following in TRANSITIONS.items():
        assert state not in following


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


def test_a_known_job_that_asks_for_the_same_gets_the_file_of_who_enqueues_it() -> None:
    there, here = attrs.evolve(SOURCE, machine="a"), attrs.evolve(SOURCE, machine="b")
    known = Job(key="a", request=attrs.evolve(UPLOAD, source_duration=61.5), source=there)
    absolute = attrs.evolve(UPLOAD, source=f"/songs/{UPLOAD.source}")
    enqueued_here = Job(key="a", request=absolute, batch="x", source=here)
    job = enqueued(enqueued_here, known)
    assert (job.request, job.source, job.batch) == (absolute, here, "x")
    another = enqueued(attrs.evolve(enqueued_here, request=attrs.evolve(absolute, title="U")), known)
    assert (another.request, another.source, another.batch) == (known.request, there, "x")


def test_an_intent() -> None:
    assert (INTENDED.state, INTENDED.attempt, INTENDED.token, INTENDED.process_id) == (State.INTENT, 1, "token", "me")
    assert INTENDED.moments == {"planned": 1.0, "intent": 2.0}
    with pytest.raises(ConflictError, match="not planned"):
        intended(INTENDED, "other", "you", 3.0)


def test_a_move_keeps_what_it_does_not_name() -> None:
    last_attempt = attrs.evolve(INTENDED.last_attempt, task_id="t")
    moments = {**INTENDED.moments, "submitted": 3.0}
    assert attrs.evolve(INTENDED, state=State.SUBMITTED, last_attempt=last_attempt, moments=moments) == SUBMITTED


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
        attrs.evolve(SUBMITTED, source=SOURCE),
        State.FAILED,
        {"error": error("yes"), "credits": 11.0, "tracks": (TRACK,), "route": "r", "partial": True, "files": ("f",)},
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
    job = attrs.evolve(JOB, state=state, error=of_error, last_attempt=LastAttempt(credits=credits_))
    assert cost(job) == expected
    assert cost(attrs.evolve(job, earlier_credits=24.0)) == expected + 24


FULL = attrs.evolve(
    transition(SUBMITTED, State.SUCCEEDED, {"tracks": (TRACK,), "files": ("f",), "credits": 11.5}, token=None, at=4.0),
    request=UPLOAD,
    source=SOURCE,
    error=error("no"),
    earlier_credits=1.0,
)


@pytest.mark.parametrize("job", [JOB, INTENDED, FULL])
def test_jobs_can_be_written_and_read(job: Job) -> None:
    assert unpack_job(pack_job(job)) == job


@pytest.mark.parametrize("value", [InboundCallback(token="t", task_id="k", stage="text", at=1.5), SOURCE])
def test_values_can_be_written_and_read(value: object) -> None:
    assert wire.unpack(wire.pack(value), type(value)) == value


def test_a_job_is_read_as_it_was_written_before_its_parts_were_values() -> None:
    document = """{"key":"a","request":{"audio_id":"track-1","model":"V5"},"state":"delivered","attempt":1,
        "token":"token","task_id":"t","process_id":"me","route":"classic","stage":"complete","partial":true,
        "tracks":[{"id":"id","audio_url":"https://x.example/a.mp3","title":"Ü","duration":60.5,
        "created_at":"2026-01-02T00:00:00+00:00"}],"files":["f.mp3"],"credits":11.5,"moments":{"planned":1.0}}"""
    job = unpack_job(document)
    assert (job.key, job.request, job.state, job.attempt) == ("a", REQUEST, State.DELIVERED, 1)
    assert job.last_attempt == LastAttempt(token="token", task_id="t", process_id="me", route="classic", credits=11.5)
    assert job.results == JobResults(tracks=(TRACK,), partial=True, files=("f.mp3",))
    assert "last_attempt" not in pack_job(job)
    assert json.loads(pack_job(job)) == {key: v for key, v in json.loads(document).items() if key != "stage"}


def test_a_token_is_not_shown() -> None:
    attempt = Attempt(key="a", number=1, token="token")
    assert "token" not in repr((INTENDED, attempt, InboundCallback(token="token", task_id="t", stage="", at=0.0)))
