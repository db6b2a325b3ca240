"""What stops a batch: which errors do, and which are waited out (one table, RULES); and a cap on credits. Pure.

The cap that processes share is in ``journal._caps``.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from types import MappingProxyType

import attrs

from kie_async._protocol.spending import SpendingCap
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
    if isinstance(error, BudgetError) and error.batch:  # other batches go on
        return RULES[KieError]
    if isinstance(error, UnavailableError) and error.code in _LASTING_CODES:
        return _STOP
    return next(RULES[kind] for kind in type(error).__mro__ if kind in RULES)


@attrs.define
class ErrorPolicy:
    """Decides what an error of a job means for the batch, by how many of its kind came in a row."""

    _in_a_row: dict[ErrorRule, int] = attrs.field(factory=dict, init=False)

    def decide(self, error: KieError) -> tuple[Action, float]:
        """Return what to do after an error of a job's step, and the seconds until the job is tried again."""
        rule = rule_for(error)
        count = self._in_a_row[rule] = self._in_a_row.get(rule, 0) + 1
        if count <= rule.tolerated:
            return Action.CONTINUE, 0.0
        if rule.action is not Action.RETRY_LATER:
            return rule.action, 0.0
        delay = min(rule.first_delay * 2 ** min(count - 1, 20), rule.max_delay)
        return rule.action, max(delay, error.retry_after or 0.0)

    def succeed(self) -> None:
        """Start counting anew: a submission was accepted."""
        self._in_a_row.clear()


# ---------------------------------------------------------------- a cap on credits, in one process

_NOT_SETTLED = frozenset({State.INTENT, State.SUBMITTED, State.UNKNOWN})


class CreditBudget(SpendingCap):
    """A cap on what a batch spends, by the keys of its jobs; ``spent`` is that of ``Journal.spent``."""

    remedy = "raise it, then run again"

    def settle_job(self, job: Job) -> None:
        """Replace what was reserved for a job by what it cost, if that is known; ignore a job with no reservation."""
        if job.state not in _NOT_SETTLED:
            self.settle(job.key, _cost(job))


def _cost(job: Job) -> float | None:
    if job.state is State.PLANNED:
        return 0.0  # what ``credits`` says is of an earlier attempt, and was counted then
    is_free = job.state is State.REJECTED and (job.error is None or job.error.charged == "no")
    return 0.0 if job.credits is None and is_free else job.credits
