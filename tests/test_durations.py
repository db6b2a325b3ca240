"""Pacing and trying again: pure rules, with randomness passed in."""

from __future__ import annotations

import random
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from kie_async._client.poll_schedule import retry_delay
from kie_async._protocol.backoff import MAX_DELAY, RetryBudget, backoff
from kie_async._protocol.durations import MAX_INTERVAL, MIN_INTERVAL, DurationModel, TaskKind
from kie_async.models import Stage

KEY = TaskKind("extend", "V5")


def polls(pacing: DurationModel, duration: float, *, learn: bool = True) -> list[float]:
    """The ages at which a task of this duration is looked at, up to its end."""
    ages = [0.0]
    while ages[-1] < duration:
        ages.append(ages[-1] + pacing.delay(KEY, ages[-1], None, 0.0, random.random))
    if learn:
        pacing.learn(KEY, ages[-2], ages[-1], {})
    return ages[1:]


@given(st.floats(0, 1e5), st.sampled_from([None, "text", "first"]), st.floats(0, 1e4), st.floats(0, 0.999))
def test_a_delay_is_within_its_bounds(age: float, stage: Stage | None, since: float, chance: float) -> None:
    pacing = DurationModel()
    pacing.learn(KEY, 50, 60, {"text": 20.0, "first": 40.0, "complete": 60.0})
    assert MIN_INTERVAL <= pacing.delay(KEY, age, stage, since, lambda: chance) <= MAX_INTERVAL


DURATIONS = st.lists(st.floats(1, 1000), max_size=20)
SHARE = st.floats(0.001, 1)


def awaiting(durations: list[float], unreported: float, polled: float = 0.0, *, poll_cost: float = 0.3) -> float:
    """The age at which a task is polled whose callback is waited for, after tasks of these durations."""
    pacing = DurationModel(poll_cost=poll_cost)
    for duration in durations:
        pacing.learn(KEY, duration, duration, {})
    return polled + pacing.delay_with_callbacks(KEY, polled, polled, unreported, lambda: 0.5)


@given(DURATIONS, SHARE, SHARE, st.floats(0, 5000))
def test_the_more_callbacks_come_the_later_a_task_is_polled(
    durations: list[float], unreported: float, other: float, polled: float
) -> None:
    few, many = sorted([unreported, other])
    late, soon = awaiting(durations, few, polled), awaiting(durations, many, polled)
    assert polled + MIN_INTERVAL <= soon <= late * (1 + 1e-9)
    assert soon <= awaiting(durations, many, polled, poll_cost=1.0) * (1 + 1e-9)


@given(st.floats(5, 1000), SHARE)
def test_a_task_whose_callback_was_lost_is_polled_soon_after_it_has_probably_ended(
    duration: float, unreported: float
) -> None:
    assert awaiting([duration] * 200, unreported) <= 1.2 * duration + 1


def test_where_no_callback_is_lost_a_task_is_polled_when_nearly_all_have_ended() -> None:
    durations = [float(duration) for duration in range(60, 180, 3)] * 5
    assert 170 < awaiting(durations, 0.001) < 190
    assert awaiting(durations, 0.001, 300.0) > 320
    assert awaiting(durations, 0.2) < 110
    assert awaiting(durations, 0.001, 3000.0) == 3000.0 + MAX_INTERVAL  # longer than all that is known


def test_durations_are_learnt_within_twenty_tasks() -> None:
    before, pacing = len(polls(DurationModel(), 300, learn=False)), DurationModel()
    for _ in range(20):
        polls(pacing, 300 * random.uniform(0.98, 1.02))
    after = polls(pacing, 300, learn=False)
    assert len(after) < before
    assert after[-1] - 300 < 5


def test_a_shift_is_learnt() -> None:
    pacing = DurationModel()
    for duration in [60.0] * 50 + [240.0] * 40:
        found = polls(pacing, duration)
    assert found[-1] - 240 < 8


def test_the_dead_time_is_skipped_and_the_end_is_dense() -> None:
    pacing = DurationModel()
    for _ in range(40):
        polls(pacing, 120 * random.uniform(0.97, 1.03))
    ages = polls(pacing, 120, learn=False)
    assert ages[0] > 20
    assert min(b - a for a, b in pairwise(ages) if b > 105) < 6


def test_a_stage_sharpens_the_guess() -> None:
    pacing = DurationModel()
    for _ in range(30):
        pacing.learn(KEY, 99, 101, {"text": 10.0, "first": 95.0})
    late = pacing.delay(KEY, 95, "first", 0.0, random.random)
    assert late < 10
    early = pacing.delay(KEY, 10, "text", 0.0, random.random)
    assert early > 3 * late


def test_what_was_learnt_long_ago_is_forgotten() -> None:
    pacing = DurationModel()
    for duration in [20.0] * 12_000 + [200.0] * 200:  # more than a float could hold the weights of
        pacing.learn(KEY, duration - 1, duration + 1, {})
    fresh = DurationModel()
    for _ in range(200):
        fresh.learn(KEY, 199, 201, {})
    for age in (0.0, 50.0, 190.0, 200.0):
        known, same = (each.delay(KEY, age, None, 0.0, lambda: 0.5) for each in (pacing, fresh))
        assert abs(known - same) < 0.1 * same


def test_a_task_beyond_all_that_is_known_is_looked_at_rarely() -> None:
    pacing = DurationModel()
    pacing.learn(KEY, 4000, 5000, {})
    pacing.learn(KEY, 0.0, 0.1, {"text": 3.0})
    assert pacing.delay(KEY, 9000, None, 0.0, random.random) == MAX_INTERVAL


@given(st.integers(1, 10_000), st.floats(0, 0.999))
def test_failures_are_repeated_less_and_less(failures: int, chance: float) -> None:
    assert MIN_INTERVAL <= retry_delay(failures, lambda: chance) <= MIN_INTERVAL + MAX_INTERVAL
    assert retry_delay(failures, lambda: 0.0) <= retry_delay(failures + 1, lambda: 0.0)


def test_clients_that_fail_together_come_back_apart() -> None:
    delays = [backoff(20, random.random) for _ in range(1000)]
    buckets = [sum(low <= delay < low + 5 for delay in delays) for low in range(0, 20, 5)]
    assert min(buckets) > 150


def _highest() -> float:
    return 1.0


@given(st.integers(1, 10**9), st.floats(0, 1))
def test_a_wait_is_drawn_from_the_whole_range(attempt: int, drawn: float) -> None:
    assert backoff(attempt, lambda: drawn) == drawn * backoff(attempt, _highest)
    assert 0 <= backoff(attempt, lambda: drawn) <= MAX_DELAY


def test_waits_grow_by_two_up_to_the_longest() -> None:
    assert [backoff(attempt, _highest) for attempt in range(1, 8)] == [1, 2, 4, 8, 16, MAX_DELAY, MAX_DELAY]
    assert backoff(3, _highest, base=0.1, limit=0.5) == 0.5


def test_a_budget_is_spent_and_refilled() -> None:
    budget = RetryBudget(capacity=12, cost=5)
    assert [budget.spend() for _ in range(3)] == [True, True, False]
    assert budget.tokens == 2
    for _ in range(3):
        budget.succeed()
    assert budget.spend()
    assert not budget.spend()


def test_a_budget_never_holds_more_than_at_first() -> None:
    budget = RetryBudget(capacity=10, cost=5)
    for _ in range(100):
        budget.succeed()
    assert [budget.spend() for _ in range(3)] == [True, True, False]
