"""When a task is polled next: a pure rule, and what it believes of callbacks."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kie_async._client.poll_schedule import (
    CALLBACK_FALLBACK,
    MAX_LISTENER_INTERVAL,
    MAX_UNREPORTED,
    TRUST_WINDOW,
    CallbackTrust,
    PollPlanner,
)
from kie_async._client.task import Origin, TrackedTask, Waiters
from kie_async._protocol.durations import DurationModel, TaskKind

KEY = TaskKind("extend", "V5")


def entry(born: float = 0.0, *, submitted: bool = True, listeners: int = 0) -> TrackedTask:
    return TrackedTask("t", Origin(KEY, is_own=submitted), born, born + 1800, waiters=Waiters(listeners, listeners))


def planner(*, came: bool = True) -> PollPlanner:
    plan = PollPlanner(DurationModel(), random.Random(1).random, callbacks=True)
    if came:
        plan.note_callback(entry(), "complete", 0.0, is_authentic=True)
    return plan


def trust_after(reported: list[bool]) -> CallbackTrust:
    trust = CallbackTrust()
    for number, is_reported in enumerate(reported):
        if is_reported:
            trust.ended(f"{number}", None)
        else:
            trust.ended(f"{number}", 100.0 * number)
    return trust


@given(st.lists(st.booleans(), max_size=3 * TRUST_WINDOW))
def test_callbacks_are_judged_by_the_latest_ends(reported: list[bool]) -> None:
    unreported = trust_after(reported).unreported
    assert 0 < unreported <= 1
    latest = reported[-TRUST_WINDOW:]
    assert unreported == pytest.approx(latest.count(False) / len(latest) if latest else 1, abs=0.02)
    assert trust_after([*reported, False]).unreported >= unreported
    assert trust_after([*reported, True]).unreported <= unreported


def test_a_callback_that_comes_just_after_its_end_was_seen_is_none_that_stayed_away() -> None:
    trust = trust_after([False, False])
    assert trust.unreported == 1
    trust.reported_late("0", CALLBACK_FALLBACK)
    assert trust.unreported == pytest.approx(0.5, abs=0.01)
    trust.reported_late("1", 100.1 + CALLBACK_FALLBACK)
    trust.reported_late("never heard of", 100.0)
    assert trust.unreported == pytest.approx(0.5, abs=0.01)


def test_where_many_ends_are_unreported_polls_go_as_without() -> None:
    plan = planner()
    for number in range(TRUST_WINDOW):
        running, silent = entry(), TrackedTask(f"{number}", Origin(KEY, is_own=True), 0.0, 1800)
        wait = plan.delay(running, 0.0)
        plan.task_succeeded(silent, 100.0)
        if number / (number + 1) > MAX_UNREPORTED:
            assert wait <= 30
            assert not plan.awaits_callback(running)
            assert plan.delay(running, 200.0) < 1  # it was put off while callbacks were trusted


def test_until_a_callback_comes_polls_go_as_without() -> None:
    assert planner(came=False).delay(entry(), 0.0) <= 30
    assert planner().delay(entry(), 0.0) > 60
    assert planner().delay(entry(submitted=False), 0.0) <= 30
    assert planner().delay(entry(listeners=1), 0.0) <= MAX_LISTENER_INTERVAL


def test_what_comes_to_another_address_is_not_believed() -> None:
    plan = planner(came=False)
    task = entry()
    assert not plan.note_callback(task, "first", 1.0, is_authentic=False)
    assert plan.note_callback(task, "complete", 1.0, is_authentic=False)
    assert plan.delay(task, 1.0) <= 30
    assert plan.delay(entry(), 1.0) <= 30


def test_the_word_of_a_task_that_runs_is_no_end() -> None:
    plan, task = planner(came=False), entry()
    assert not plan.note_callback(task, "generating", 5.0, is_authentic=True)
    assert plan.delay(task, 5.0) <= 30
    assert plan.note_callback(task, "odd", 6.0, is_authentic=True)
    assert plan.delay(task, 6.0) < 1


def test_a_listener_waits_where_callbacks_come_for_its_task() -> None:
    plan, task = planner(), entry(listeners=1)
    assert plan.poll_time_for_listener(task, 3.0) == MAX_LISTENER_INTERVAL
    assert plan.note_callback(task, "text", 10.0, is_authentic=True)
    assert plan.poll_time_for_listener(task, 11.0) == 11.0
    task.progress.stages = (("text", 10.0),)
    assert plan.poll_time_for_listener(task, 11.0) == math.inf


def test_after_most_have_ended_polls_go_nearly_as_without() -> None:
    plan = planner()
    for _ in range(50):
        ended = entry()
        plan.note_callback(ended, "complete", 100.0, is_authentic=True)
        assert plan.task_succeeded(ended, 100.1) == ""
    assert 95 < plan.delay(entry(), 0.0) < 125
    assert plan.delay(entry(), 130.0) < 30
