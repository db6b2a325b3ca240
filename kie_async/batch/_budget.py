"""What a batch may spend in one process: a cap, reserved before each submission. Pure.

The cap that processes share is in ``journal._caps``.
"""

from __future__ import annotations

from kie_async._protocol.spending import SpendingCap
from kie_async.journal import Job, State

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
