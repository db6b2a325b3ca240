"""When a task is polled next: a pure rule, and what it believes of callbacks."""

from __future__ import annotations

import math
import random

from hypothesis import given
from hypothesis import strategies as st

from kie_async._client.polling import GRACE, LISTENED, PROBATION, CallbackTrust, PollPlanner
from kie_async._client.tracked_task import TrackedTask
from kie_async._protocol.schedule import Key, PollSchedule

KEY = Key("extend", "V5")


def entry(born: float = 0.0, *, submitted: bool = True, listeners: int = 0) -> TrackedTask:
    return TrackedTask("t", KEY, born, born + 1800, submitted=submitted, listeners=listeners)


def planner(*, came: bool = True) -> PollPlanner:
    plan = PollPlanner(PollSchedule(), random.Random(1).random, callbacks=True)
    if came:
        plan.take_callback(entry(), "text", 0.0, is_own=True)
    return plan


def test_trust_is_won_by_one_callback_and_lost_by_one_that_stays_away() -> None:
    trust = CallbackTrust()
    trust.miss("before any came", 0.0)
    assert not trust.holds(100.0)
    trust.come(100.0, is_first_of_end=False)
    assert trust.holds(100.0)
    trust.miss("a", 100.0)
    trust.miss("b", 105.0)
    trust.come_late("a")
    assert trust.holds(105.0 + GRACE - 0.1)
    assert not trust.holds(105.0 + GRACE)
    for number in range(PROBATION):
        assert not trust.holds(200.0)
        trust.come(200.0 + number, is_first_of_end=False)
        trust.come(200.0 + number, is_first_of_end=True)
    assert trust.holds(300.0)


@given(st.lists(st.booleans(), min_size=60, max_size=60))
def test_trust_holds_only_where_the_last_ends_were_told(emitted: list[bool]) -> None:
    trust, now = CallbackTrust(), 0.0
    trust.come(now, is_first_of_end=False)
    for number, is_told in enumerate(emitted):
        now += 100
        if is_told:
            trust.come(now, is_first_of_end=True)
        else:
            trust.miss(f"{number}", now)
        if all(emitted[max(0, number - PROBATION) : number + 1]):
            assert trust.holds(now + GRACE)
        if not is_told:
            assert not trust.holds(now + GRACE)


def test_until_a_callback_comes_polls_go_as_without() -> None:
    assert planner(came=False).wait(entry(), 0.0) <= 30
    assert planner().wait(entry(), 0.0) > 120
    assert planner().wait(entry(submitted=False), 0.0) <= 30
    assert planner().wait(entry(listeners=1), 0.0) <= LISTENED


def test_what_comes_to_another_address_is_not_believed() -> None:
    plan = planner(came=False)
    task = entry()
    assert not plan.take_callback(task, "first", 1.0, is_own=False)
    assert plan.take_callback(task, "complete", 1.0, is_own=False)
    assert plan.wait(task, 1.0) <= 30
    assert plan.wait(entry(), 1.0) <= 30


def test_the_word_of_a_task_that_runs_is_no_end() -> None:
    plan, task = planner(came=False), entry()
    assert not plan.take_callback(task, "generating", 5.0, is_own=True)
    assert plan.wait(task, 5.0) > 120
    assert plan.take_callback(task, "odd", 6.0, is_own=True)
    assert plan.wait(task, 6.0) < 1


def test_a_listener_waits_where_callbacks_come_for_its_task() -> None:
    plan, task = planner(), entry(listeners=1)
    assert plan.listened_at(task, 3.0) == LISTENED
    assert plan.take_callback(task, "text", 10.0, is_own=True)
    assert plan.listened_at(task, 11.0) == 11.0
    task.stage = "text"
    assert plan.listened_at(task, 11.0) == math.inf


def test_after_most_have_ended_polls_go_nearly_as_without() -> None:
    plan = planner()
    for _ in range(50):
        ended = entry()
        plan.take_callback(ended, "complete", 100.0, is_own=True)
        assert plan.take_success(ended, 100.1) == ""
    assert 95 < plan.wait(entry(), 0.0) < 125
    assert plan.wait(entry(), 130.0) < 30
