"""What a batch may spend, and what stops it."""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from kie_async import errors
from kie_async.batch._policy import RULES, Action, CreditBudget, ErrorPolicy, rule_for
from kie_async.errors import BudgetError, KieError, SettingsError, TaskFailedError
from kie_async.journal import Job, JobError, LastAttempt, State
from kie_async.models import ExtendRequest

REQUEST = ExtendRequest("a1", model="V5")
ALL = [kind for _, kind in inspect.getmembers(errors, inspect.isclass) if issubclass(kind, KieError)]


def job(key: str, state: State, cost: float | None = None, **facts: Any) -> Job:
    return Job(key=key, request=REQUEST, state=state, last_attempt=LastAttempt(credits=cost), **facts)


def test_a_cap_leaves_room_for_whole_tasks_only() -> None:
    budget = CreditBudget(30)
    budget.reserve("a")
    budget.reserve("a")
    assert budget.spent == 12
    budget.reserve("b")
    with pytest.raises(BudgetError, match="max_credits is 30, and 24 are spent") as caught:
        budget.reserve("c")
    assert caught.value.retryable
    budget.settle_job(job("a", State.DELIVERED, 12))
    budget.settle_job(job("b", State.SUCCEEDED, 12))
    with pytest.raises(BudgetError) as caught:
        budget.reserve("c")
    assert not caught.value.retryable


def test_without_a_cap_all_is_counted_and_nothing_refused() -> None:
    budget = CreditBudget(spent=1e6)
    budget.reserve("a")
    assert (budget.spent, budget.is_exhausted) == (1e6 + 12, False)


@pytest.mark.parametrize(
    ("ended", "cost"),
    [
        (job("a", State.PLANNED), 0),
        (job("a", State.PLANNED, 12), 0),
        (job("a", State.REJECTED), 0),
        (job("a", State.REJECTED, error=JobError(type="RefusedError", message="", charged="no")), 0),
        (job("a", State.REJECTED, error=JobError(type="RefusedError", message="", charged="maybe")), 12),
        (job("a", State.FAILED, 0), 0),
        (job("a", State.FAILED), 12),
        (job("a", State.SUCCEEDED, 7.5), 7.5),
        (job("a", State.DELIVERED), 12),
        (job("a", State.DELIVERED, math.nan), 12),
        (job("a", State.DELIVERED, -5), 12),
        (job("a", State.ABANDONED), 12),
        (job("a", State.UNKNOWN), 12),
        (job("a", State.INTENT), 12),
        (job("a", State.SUBMITTED, 0), 12),
        (job("other", State.FAILED, 0), 12),
    ],
)
def test_what_becomes_of_a_job_corrects_what_was_reserved(ended: Job, cost: float) -> None:
    budget = CreditBudget(100, spent=20)
    budget.reserve("a")
    budget.settle_job(ended)
    assert budget.spent == 20 + cost
    if ended.state is not State.UNKNOWN:
        budget.settle_job(ended)
        assert budget.spent == 20 + cost


def test_a_job_of_an_earlier_run_is_counted_once() -> None:
    budget = CreditBudget(100, spent=24)
    budget.take_over("a")
    budget.take_over("a")
    budget.reserve("a")
    assert budget.spent == 24
    budget.settle_job(job("a", State.FAILED, 0))
    assert budget.spent == 12


def test_tasks_that_are_dearer_than_expected_make_the_open_ones_so() -> None:
    budget = CreditBudget(100)
    for key in "abc":
        budget.reserve(key)
    budget.settle_job(job("a", State.SUCCEEDED, 30))
    assert budget.spent == 90
    with pytest.raises(BudgetError):
        budget.reserve("d")


@pytest.mark.parametrize("cap", [-1, math.nan, math.inf])
def test_a_cap_is_a_number_of_credits(cap: float) -> None:
    with pytest.raises(SettingsError, match="max_credits"):
        CreditBudget(cap)


class Spending(RuleBasedStateMachine):
    """Jobs come and go in any order, each at the usual price or less; what was really charged never passes the cap."""

    def __init__(self) -> None:
        super().__init__()
        self.budget = CreditBudget(100)
        self.charged: dict[int, float] = {}
        self.open: list[int] = []

    @rule()
    def submit(self) -> None:
        key = len(self.charged)
        try:
            self.budget.reserve(str(key))
        except BudgetError:
            return
        self.charged[key] = 12
        self.open.append(key)

    @precondition(lambda self: self.open)
    @rule(data=st.data(), cost=st.sampled_from([0.0, 6.0, 12.0]))
    def end(self, data: st.DataObject, cost: float) -> None:
        key = data.draw(st.sampled_from(self.open))
        self.open.remove(key)
        self.charged[key] = cost
        self.budget.settle_job(job(str(key), State.SUCCEEDED, cost))

    @precondition(lambda self: self.open)
    @rule(data=st.data())
    def lose(self, data: st.DataObject) -> None:
        self.budget.settle_job(job(str(data.draw(st.sampled_from(self.open))), State.UNKNOWN))

    @invariant()
    def never_passed(self) -> None:
        assert sum(self.charged.values()) == self.budget.spent <= 100


TestSpending = Spending.TestCase


# ---------------------------------------------------------------- what stops a batch


@pytest.mark.parametrize("kind", ALL)
def test_every_error_has_a_rule(kind: type[KieError]) -> None:
    assert rule_for(kind("what happened")) in RULES.values()


@pytest.mark.parametrize(
    ("error", "action"),
    [
        (errors.AuthError("no", code=401), Action.STOP),
        (errors.InsufficientCreditsError("no", code=402), Action.STOP),
        (errors.BudgetError("no"), Action.STOP),
        (errors.StorageError("full"), Action.STOP),
        (errors.KeyQuotaError("no", code=433), Action.RETRY_LATER),
        (errors.UnavailableError("no", code=455), Action.RETRY_LATER),
        (errors.UnavailableError("no", code=505), Action.STOP),
        (errors.RateLimitedError("no", code=429), Action.RETRY_LATER),
        (errors.ConnectError("no"), Action.RETRY_LATER),
        (errors.TLSError("no"), Action.STOP),
        (errors.InvalidRequestError("no", code=422), Action.CONTINUE),
        (errors.DownloadError("broke off"), Action.CONTINUE),
        (errors.SubmitUnknownError("lost"), Action.CONTINUE),
        (TaskFailedError("failed"), Action.CONTINUE),
    ],
)
def test_an_error_of_one_job_means_something_for_all(error: KieError, action: Action) -> None:
    assert ErrorPolicy().decide(error)[0] is action


def test_the_delay_of_a_retry_doubles_up_to_a_bound_and_starts_anew_after_a_success() -> None:
    policy = ErrorPolicy()
    error = errors.RateLimitedError("too fast", code=429)
    assert [policy.decide(error)[1] for _ in range(6)] == [10, 20, 40, 80, 120, 120]
    policy.succeed()
    assert policy.decide(error) == (Action.RETRY_LATER, 10)


def test_a_wait_the_service_asks_for_is_kept() -> None:
    assert ErrorPolicy().decide(errors.RateLimitedError("too fast", retry_after=300.0))[1] == 300


def test_unknowns_in_a_row_stop_a_batch_before_they_empty_the_account() -> None:
    policy = ErrorPolicy()

    def actions(count: int) -> Iterator[Action]:
        return (policy.decide(errors.SubmitUnknownError("lost"))[0] for _ in range(count))

    assert list(actions(5)) == [Action.CONTINUE] * 4 + [Action.STOP]
    policy.succeed()
    assert list(actions(1)) == [Action.CONTINUE]


@given(st.lists(st.sampled_from(ALL), max_size=200))
def test_no_row_of_errors_makes_a_wait_endless(kinds: list[type[KieError]]) -> None:
    policy = ErrorPolicy()
    assert all(0 <= policy.decide(kind("what happened"))[1] <= 900 for kind in kinds)
