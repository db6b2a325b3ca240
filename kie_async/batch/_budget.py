"""What a batch may spend: a cap, reserved before each submission. Pure."""

from __future__ import annotations

import math

from kie_async._protocol.request_rules import CREDITS_PER_TASK
from kie_async.errors import BudgetError, SettingsError
from kie_async.journal import Job, State

_NOT_SETTLED = frozenset({State.INTENT, State.SUBMITTED, State.UNKNOWN})


class CreditBudget:
    """A cap on what a batch spends: reserved before each submission, corrected by what was charged.

    A task that is under way or unknown counts as charged until it is proven not to be. If tasks cost more than
    expected, each that is still open counts as much. So the cap holds however they end.

    Args:
        max_credits: the cap; None for none.
        spent: charged and reserved by earlier runs (``Journal.spent``).
    """

    def __init__(self, max_credits: float | None = None, *, spent: float = 0.0) -> None:
        if max_credits is not None and not 0 <= max_credits < math.inf:
            raise SettingsError(f"max_credits is {max_credits!r}: give a number of credits from 0 up")
        self._cap = max_credits
        self._known = spent
        self._price = CREDITS_PER_TASK
        self._reserved: set[str] = set()

    @property
    def spent(self) -> float:
        """Credits that are charged, or may be yet."""
        return self._known + len(self._reserved) * self._price

    @property
    def is_exhausted(self) -> bool:
        """Whether there is no room for another task, even if nothing that is under way was charged."""
        return self._cap is not None and self._known + self._price > self._cap

    def reserve(self, key: str) -> None:
        """Reserve the price of a job's next submission, unless it is reserved already.

        Raises:
            BudgetError: the cap is reached; ``retryable`` if jobs under way may cost less than is reserved for them.
        """
        if key in self._reserved:
            return
        if self._cap is not None and self.spent + self._price > self._cap:
            used = f"max_credits is {self._cap:.12g}, and {self.spent:.12g} are spent or reserved"
            raise BudgetError(f"{used}: raise it, then run again", retryable=not self.is_exhausted)
        self._reserved.add(key)

    def take_over(self, key: str) -> None:
        """Take over a job that an earlier run has submitted, so that ``settle`` can correct it; ``spent`` has it."""
        if key not in self._reserved:
            self._reserved.add(key)
            self._known -= CREDITS_PER_TASK

    def settle(self, job: Job) -> None:
        """Replace what was reserved for a job by what it cost, if that is known; ignore a job with no reservation."""
        if job.key not in self._reserved or job.state in _NOT_SETTLED:
            return
        self._reserved.discard(job.key)
        cost = self._cost(job)
        self._price = max(self._price, cost)
        self._known += cost

    def _cost(self, job: Job) -> float:
        if job.state is State.PLANNED:
            return 0.0  # what ``credits`` says is of an earlier attempt, and was counted then
        if job.credits is not None and 0 <= job.credits < math.inf:
            return job.credits
        is_free = job.state is State.REJECTED and (job.error is None or job.error.charged == "no")
        return 0.0 if is_free else self._price
