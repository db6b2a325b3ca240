"""When to try again: how long a wait may be, and who may pay for it."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from kie_async._protocol.schedule import MAX_DELAY, Budget, backoff


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
    budget = Budget(capacity=12, cost=5)
    assert [budget.spend() for _ in range(3)] == [True, True, False]
    assert budget.tokens == 2
    for _ in range(3):
        budget.succeed()
    assert budget.spend()
    assert not budget.spend()


def test_a_budget_never_holds_more_than_at_first() -> None:
    budget = Budget(capacity=10, cost=5)
    for _ in range(100):
        budget.succeed()
    assert [budget.spend() for _ in range(3)] == [True, True, False]
