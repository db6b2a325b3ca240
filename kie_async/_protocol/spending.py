"""A cap on what one session spends: reserved before each submission, corrected by what was charged. Pure.

The cap that processes share is in ``journal._caps``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable
from functools import partial
from typing import TypeAlias

from kie_async._protocol.request_rules import CREDITS_PER_TASK
from kie_async.errors import BudgetError, KieError, SettingsError, TaskFailedError, TaskNotFoundError
from kie_async.models import TaskResult

ACCOUNT_REMEDY = "raise Settings.max_credits (KIE_MAX_CREDITS)"
Ending: TypeAlias = TaskResult | KieError | None  # how a submission or its task has ended; None: nothing was sent


class SpendingCap:
    """A cap on what may be spent.

    A task that is under way or unknown counts as charged until it is proven not to be. If tasks cost more than
    expected, each that is still open counts as much. So the cap holds however they end.
    """

    remedy = ACCOUNT_REMEDY

    def __init__(self, max_credits: float | None = None, *, spent: float = 0.0) -> None:
        check_cap(max_credits)
        self._cap = max_credits
        self._known = spent
        self._price = CREDITS_PER_TASK
        self._reserved: set[Hashable] = set()

    @property
    def spent(self) -> float:
        """Credits that are charged, or may be yet."""
        return self._known + len(self._reserved) * self._price

    @property
    def is_exhausted(self) -> bool:
        """Whether there is no room for another task, even if nothing that is under way was charged."""
        return self._cap is not None and self._known + self._price > self._cap

    def reserve(self, key: Hashable) -> None:
        """Reserve the price of a submission, unless it is reserved already.

        Raises:
            BudgetError: the cap is reached; ``retryable`` if tasks under way may cost less than is reserved for them.
        """
        if key in self._reserved:
            return
        if self._cap is not None and self.spent + self._price > self._cap:
            raise budget_error(self._cap, self.spent, self.remedy, retryable=not self.is_exhausted)
        self._reserved.add(key)

    def begin(self) -> Callable[[Ending], None] | None:
        """Reserve a submission, and return what corrects that when it has ended; None if there is no cap."""
        if self._cap is None:
            return None
        submission = object()
        self.reserve(submission)
        return partial(self._end, submission)

    def _end(self, submission: object, ending: Ending) -> None:
        is_free = ending is None or (isinstance(ending, KieError) and ending.charged == "no")
        cost = 0.0 if ending is None or is_free else credits_of(ending)
        if cost is not None:  # else it may be charged yet
            self.settle(submission, cost)

    def take_over(self, key: Hashable) -> None:
        """Take over a submission that ``spent`` holds, so that ``settle`` can correct it."""
        if key not in self._reserved:
            self._reserved.add(key)
            self._known -= CREDITS_PER_TASK

    def settle(self, key: Hashable, cost: float | None) -> None:
        """Replace what was reserved by what it cost, or None if that is not known; ignore what is not reserved."""
        if key not in self._reserved:
            return
        self._reserved.discard(key)
        if cost is None or not 0 <= cost < math.inf:
            cost = self._price
        self._price = max(self._price, cost)
        self._known += cost


def check_cap(max_credits: float | None) -> None:
    """Raise SettingsError if that is neither a number of credits nor None."""
    if max_credits is not None and not 0 <= max_credits < math.inf:
        raise SettingsError(f"max_credits is {max_credits!r}: give a number of credits from 0 up")


def budget_error(cap: float, spent: float, remedy: str, *, batch: str = "", retryable: bool) -> BudgetError:
    """Make the error of a submission that a cap leaves no room for."""
    whose = f" of the batch {batch!r}" if batch else ""
    used = f"max_credits{whose} is {cap:.12g}, and {spent:.12g} are spent or reserved"
    return BudgetError(f"{used}: nothing was sent; {remedy}", retryable=retryable, batch=batch)


def credits_of(outcome: TaskResult | KieError) -> float | None:
    """Return what a task has cost by its outcome; None if it goes on, as far as is known."""
    if isinstance(outcome, TaskResult):
        spent = outcome.record.credits_consumed
        return CREDITS_PER_TASK if spent is None else spent
    if isinstance(outcome, TaskFailedError | TaskNotFoundError):
        return 0.0 if outcome.charged == "no" else CREDITS_PER_TASK
    return None
