"""When a task is polled next: a pure rule, and what it believes of callbacks."""

from __future__ import annotations

import math
import random

from hypothesis import given
from hypothesis import strategies as st

from kie_async._client.next_poll import (
    CALLBACK_FALLBACK,
    MAX_LISTENER_INTERVAL,
    PROBATION,
    CallbackTrust,
    PollPlanner,
)
from kie_async._client.task import Origin, TrackedTask, Waiters
from kie_async._protocol.schedule import Key, PollSchedule

KEY = Key("extend", "V5")


def entry(born: float = 0.0, *, submitted: bool = True, listeners: int = 0) -> TrackedTask:
    return TrackedTask("t", Origin(KEY, is_own=submitted), born, born + 1800, waiters=Waiters(listeners, listeners))


def planner(*, came: bool = True) -> PollPlanner:
    plan = PollPlanner(PollSchedule(), random.Random(1).random, callbacks=True)
    if came:
        plan.callback_received(entry(), "text", 0.0, is_authentic=True)
    return plan


def test_trust_is_won_by_one_callback_and_lost_by_one_that_stays_away() -> None:
    trust = CallbackTrust()
    trust.ended_before_callback("before any came", 0.0)
    assert not trust.holds(100.0)
    trust.callback_came(100.0, is_first_of_end=False)
    assert trust.holds(100.0)
    trust.ended_before_callback("a", 100.0)
    trust.ended_before_callback("b", 105.0)
    trust.callback_came_late("a")
    assert trust.holds(105.0 + CALLBACK_FALLBACK - 0.1)
    assert not trust.holds(105.0 + CALLBACK_FALLBACK)
    for number in range(PROBATION):
        assert not trust.holds(200.0)
        trust.callback_came(200.0 + number, is_first_of_end=False)
        trust.callback_came(200.0 + number, is_first_of_end=True)
    assert trust.holds(300.0)


@given(st.lists(st.booleans(), min_size=60, max_size=60))
def test_trust_holds_only_where_the_last_ends_were_told(emitted: list[bool]) -> None:
    trust, now = CallbackTrust(), 0.0
    trust.callback_came(now, is_first_of_end=False)
    for number, is_told in enumerate(emitted):
        now += 100
        if is_told:
            trust.callback_came(now, is_first_of_end=True)
        else:
            trust.ended_before_callback(f"{number}", now)
        if all(emitted[max(0, number - PROBATION) : number + 1]):
            assert trust.holds(now + CALLBACK_FALLBACK)
        if not is_told:
            assert not trust.holds(now + CALLBACK_FALLBACK)


def test_until_a_callback_comes_polls_go_as_without() -> None:
    assert planner(came=False).delay(entry(), 0.0) <= 30
    assert planner().delay(entry(), 0.0) > 120
    assert planner().delay(entry(submitted=False), 0.0) <= 30
    assert planner().delay(entry(listeners=1), 0.0) <= MAX_LISTENER_INTERVAL


def test_what_comes_to_another_address_is_not_believed() -> None:
    plan = planner(came=False)
    task = entry()
    assert not plan.callback_received(task, "first", 1.0, is_authentic=False)
    assert plan.callback_received(task, "complete", 1.0, is_authentic=False)
    assert plan.delay(task, 1.0) <= 30
    assert plan.delay(entry(), 1.0) <= 30


def test_the_word_of_a_task_that_runs_is_no_end() -> None:
    plan, task = planner(came=False), entry()
    assert not plan.callback_received(task, "generating", 5.0, is_authentic=True)
    assert plan.delay(task, 5.0) > 120
    assert plan.callback_received(task, "odd", 6.0, is_authentic=True)
    assert plan.delay(task, 6.0) < 1


def test_a_listener_waits_where_callbacks_come_for_its_task() -> None:
    plan, task = planner(), entry(listeners=1)
    assert plan.poll_time_for_listener(task, 3.0) == MAX_LISTENER_INTERVAL
    assert plan.callback_received(task, "text", 10.0, is_authentic=True)
    assert plan.poll_time_for_listener(task, 11.0) == 11.0
    task.progress.stages = (("text", 10.0),)
    assert plan.poll_time_for_listener(task, 11.0) == math.inf


def test_after_most_have_ended_polls_go_nearly_as_without() -> None:
    plan = planner()
    for _ in range(50):
        ended = entry()
        plan.callback_received(ended, "complete", 100.0, is_authentic=True)
        assert plan.task_succeeded(ended, 100.1) == ""
    assert 95 < plan.delay(entry(), 0.0) < 125
    assert plan.delay(entry(), 130.0) < 30
