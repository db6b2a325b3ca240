"""What an error means for the job whose submission, or task, it ended: pure."""

from __future__ import annotations

from kie_async.errors import (
    AuthError,
    ConnectError,
    InsufficientCreditsError,
    KeyQuotaError,
    KieError,
    TaskFailedError,
)
from kie_async.events import clean
from kie_async.journal import JobError, State

_PENDING = (AuthError, InsufficientCreditsError, KeyQuotaError, ConnectError)  # nothing is wrong with the job


def job_error(error: KieError) -> JobError:
    """The facts of an error, as a journal keeps them."""
    return JobError(
        type=type(error).__name__,
        message=clean(error.message),
        code=error.code,
        charged=error.charged,
        retryable=error.retryable,
        refunded=isinstance(error, TaskFailedError) and error.refunded,
    )


def state_after(error: KieError) -> State:
    """Where a job goes whose submission ended with this error."""
    if isinstance(error, _PENDING) or (error.retryable and error.charged == "no"):
        return State.PLANNED
    if error.charged == "maybe" and error.code not in {500, 501}:  # refused in the service's own words: no task
        return State.UNKNOWN
    return State.REJECTED
