"""What a batch may spend, and what stops it: pure rules that the runner asks."""

from __future__ import annotations

import math
from collections.abc import Mapping
from enum import Enum
from types import MappingProxyType

import attrs

from kie_async._protocol.limits import CREDITS_PER_TASK
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

_OPEN = frozenset({State.INTENT, State.SUBMITTED, State.UNKNOWN})


class Budget:
    """A cap on what a batch spends: reserved before each submission, corrected by what was charged.

    What is under way, or unknown, counts as charged until it is proven not to be; and if tasks turn out to be dearer
    than expected, so does each that is still open. So the cap holds whatever becomes of them.

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
        self._held: set[str] = set()

    @property
    def spent(self) -> float:
        """Credits that are charged, or may be yet."""
        return self._known + len(self._held) * self._price

    @property
    def left(self) -> float | None:
        """Credits that may still be reserved; None without a cap."""
        return None if self._cap is None else max(self._cap - self.spent, 0.0)

    @property
    def is_exhausted(self) -> bool:
        """Whether there is no room for another task, even if nothing that is under way was charged."""
        return self._cap is not None and self._known + self._price > self._cap

    def reserve(self, key: str) -> None:
        """Reserve the price of a job's next submission; a job that has its place keeps it.

        Raises:
            BudgetError: the cap leaves no room; ``retryable`` if jobs under way may give some of theirs back.
        """
        if key in self._held:
            return
        if self._cap is not None and self.spent + self._price > self._cap:
            used = f"max_credits is {self._cap:.12g}, and {self.spent:.12g} are spent or reserved"
            raise BudgetError(f"{used}: raise it, then run again", retryable=not self.is_exhausted)
        self._held.add(key)

    def adopt(self, key: str) -> None:
        """Take over a job that an earlier run has submitted, so that ``settle`` can correct it; ``spent`` has it."""
        if key not in self._held:
            self._held.add(key)
            self._known -= CREDITS_PER_TASK

    def settle(self, job: Job) -> None:
        """Correct what was reserved for a job by what has become of it; a job without a place changes nothing."""
        if job.key not in self._held or job.state in _OPEN:
            return
        self._held.discard(job.key)
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
    """What an error of one job means for all."""

    GO_ON = "go on"  # it is that job's own matter
    SLOW = "slow"  # the job stays planned; nothing is submitted for a while
    PAUSE = "pause"  # nothing more is submitted; what is under way ends, and the same command resumes
    STOP = "stop"  # nothing is asked of the service any more


@attrs.frozen
class Rule:
    """What to do about a kind of error.

    Attributes:
        action: once it has come ``bearable`` times in a row.
        bearable: how often in a row it may come before that.
        first: seconds to wait the first time, doubled each time in a row.
        longest: seconds it is never waited longer than.
    """

    action: Action
    bearable: int = 0
    first: float = 0.0
    longest: float = 0.0


_GO_ON = Rule(Action.GO_ON)
_PAUSE = Rule(Action.PAUSE)

RULES: Mapping[type[KieError], Rule] = MappingProxyType(
    {
        KieError: _GO_ON,
        AuthError: Rule(Action.STOP),  # 401, 403
        SettingsError: Rule(Action.STOP),
        SessionError: Rule(Action.STOP),
        InsufficientCreditsError: _PAUSE,  # 402
        BudgetError: _PAUSE,
        StorageError: _PAUSE,  # no journal, no spending; no room, no delivery
        TLSError: _PAUSE,
        UnexpectedRedirectError: _PAUSE,  # the address is wrong for every job
        KeyQuotaError: Rule(Action.SLOW, first=60.0, longest=900.0),  # 433
        UnavailableError: Rule(Action.SLOW, first=30.0, longest=600.0),  # 455
        RateLimitedError: Rule(Action.SLOW, first=10.0, longest=120.0),  # 405, 429, 430
        ConnectError: Rule(Action.SLOW, first=5.0, longest=120.0),
        # Each may have been charged: a service that loses every answer must not empty the account.
        SubmitUnknownError: Rule(Action.PAUSE, bearable=4),
    }
)
_LASTING = frozenset({505})  # a feature that is switched off


def rule_for(error: KieError) -> Rule:
    """The rule for an error: that of its class, or of the nearest class above it."""
    if isinstance(error, UnavailableError) and error.code in _LASTING:
        return _PAUSE
    return next(RULES[kind] for kind in type(error).__mro__ if kind in RULES)


@attrs.frozen
class Decision:
    """What to do now, and for how long to submit nothing (seconds)."""

    action: Action
    delay: float = 0.0


@attrs.define
class StopRules:
    """Decides what the errors of jobs mean for the batch, by how many of a kind come in a row."""

    _in_a_row: dict[Rule, int] = attrs.field(factory=dict, init=False)

    def judge(self, error: KieError) -> Decision:
        """Decide about the error a job has ended or gone back with."""
        rule = rule_for(error)
        count = self._in_a_row[rule] = self._in_a_row.get(rule, 0) + 1
        if count <= rule.bearable:
            return Decision(Action.GO_ON)
        if rule.action is not Action.SLOW:
            return Decision(rule.action)
        delay = min(rule.first * 2 ** min(count - 1, 20), rule.longest)
        asked = error.retry_after if isinstance(error, RateLimitedError) else None
        return Decision(Action.SLOW, max(delay, asked or 0.0))

    def succeed(self) -> None:
        """A submission was accepted: what came before is over."""
        self._in_a_row.clear()
