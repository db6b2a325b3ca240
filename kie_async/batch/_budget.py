"""Decide what a batch may spend, and which errors stop it. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping
from enum import Enum
from types import MappingProxyType

import attrs

from kie_async._protocol.request_rules import CREDITS_PER_TASK
from kie_async.errors import (
    AuthError,
    BudgetError,
    ConnectError,
    InsufficientCreditsError,
    KeyQuotaError,
    KieError,
    RateLimitedError,
    SessionError,
    SettingsError,
    StorageError,
    SubmitUnknownError,
    TLSError,
    UnavailableError,
    UnexpectedRedirectError,
)
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


# ---------------------------------------------------------------- what stops a batch


class Action(Enum):
    """What an error of one job means for the batch."""

    CONTINUE = "continue"  # it is about this job only
    RETRY_LATER = "retry later"  # the job is tried again after a delay
    STOP = "stop"  # nothing more is submitted; what is under way ends, and the same command resumes


@attrs.frozen
class ErrorRule:
    """What to do about a kind of error.

    Attributes:
        action: what to do, after it has come more than ``tolerated`` times in a row.
        tolerated: how many in a row are ignored.
        first_delay: seconds to wait after the first, doubled after each in a row.
        max_delay: seconds that are waited at most.
    """

    action: Action
    tolerated: int = 0
    first_delay: float = 0.0
    max_delay: float = 0.0


_STOP = ErrorRule(Action.STOP)

RULES: Mapping[type[KieError], ErrorRule] = MappingProxyType(
    {
        KieError: ErrorRule(Action.CONTINUE),
        AuthError: _STOP,  # 401, 403
        SettingsError: _STOP,
        SessionError: _STOP,
        InsufficientCreditsError: _STOP,  # 402
        BudgetError: _STOP,
        StorageError: _STOP,  # the journal is away: no spending; the disk is full: no delivery
        TLSError: _STOP,
        UnexpectedRedirectError: _STOP,  # the address is wrong for every job
        KeyQuotaError: ErrorRule(Action.RETRY_LATER, first_delay=60.0, max_delay=900.0),  # 433
        UnavailableError: ErrorRule(Action.RETRY_LATER, first_delay=30.0, max_delay=600.0),  # 455
        RateLimitedError: ErrorRule(Action.RETRY_LATER, first_delay=10.0, max_delay=120.0),  # 405, 429, 430
        ConnectError: ErrorRule(Action.RETRY_LATER, first_delay=5.0, max_delay=120.0),
        # Each may have been charged: a service that loses every answer must not empty the account.
        SubmitUnknownError: ErrorRule(Action.STOP, tolerated=4),
    }
)
_LASTING_CODES = frozenset({505})  # a feature that is switched off


def rule_for(error: KieError) -> ErrorRule:
    """Return the rule for an error: that of its class, or of the nearest class above it."""
    if isinstance(error, UnavailableError) and error.code in _LASTING_CODES:
        return _STOP
    return next(RULES[kind] for kind in type(error).__mro__ if kind in RULES)


@attrs.frozen
class Decision:
    """What to do now; ``delay``: seconds until the job is tried again."""

    action: Action
    delay: float = 0.0


@attrs.define
class ErrorPolicy:
    """Decides what an error of a job means for the batch, by how many of its kind came in a row."""

    _in_a_row: dict[ErrorRule, int] = attrs.field(factory=dict, init=False)

    def decide(self, error: KieError) -> Decision:
        """Decide about an error that a step of a job raised."""
        rule = rule_for(error)
        count = self._in_a_row[rule] = self._in_a_row.get(rule, 0) + 1
        if count <= rule.tolerated:
            return Decision(Action.CONTINUE)
        if rule.action is not Action.RETRY_LATER:
            return Decision(rule.action)
        delay = min(rule.first_delay * 2 ** min(count - 1, 20), rule.max_delay)
        requested = error.retry_after if isinstance(error, RateLimitedError) else None
        return Decision(Action.RETRY_LATER, max(delay, requested or 0.0))

    def succeed(self) -> None:
        """Start counting anew: a submission was accepted."""
        self._in_a_row.clear()
