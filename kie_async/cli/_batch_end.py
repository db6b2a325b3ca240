"""How a batch went, as a way to end."""

from __future__ import annotations

from kie_async.cli._output import Output
from kie_async.cli._progress import Counts
from kie_async.errors import KieError, LostRecordError, StorageError, SubmitUnknownError, WaitTimeoutError


def raise_for_counts(output: Output, counts: Counts, where: str, command: str, *, lost: int = 0) -> None:
    """Raise what describes a batch that is not delivered as a whole; what matters most comes first.

    Args:
        output: told what to do now.
        counts: of the batch.
        where: the options that lead to the jobs.
        command: the one that goes on.
        lost: how many were not submitted, for the journal does not know tasks of theirs that the results name.

    Raises:
        LostRecordError: the journal has lost what was paid.
        SubmitUnknownError: some may have been paid, and nobody knows.
        StorageError: some are made, but could not be fetched.
        WaitTimeoutError: some have not ended yet.
        KieError: some failed, or were refused.
    """
    if lost:
        output.hints = {8: _after_loss(where, command)}
        raise LostRecordError(f"{_jobs(lost)} were not submitted: the results name tasks that the journal has lost")
    again = f"go on with the same command:\n  {command}"
    if counts.unknown:
        output.hints = {7: after_unknown(where)}
        raise SubmitUnknownError(f"what became of {_jobs(counts.unknown)} is not known")
    if counts.made:
        output.hints = {8: again}
        raise StorageError(f"the tracks of {_jobs(counts.made)} could not be fetched", charged="yes")
    if counts.open:
        output.hints = {6: again}
        raise WaitTimeoutError(f"{_jobs(counts.open)} did not come to an end", charged="maybe")
    if counts.failed:
        output.hints = {3: _after_failure(where)}
        raise KieError(f"{_jobs(counts.failed)} failed or were refused")


def _jobs(count: int) -> str:
    return f"{count} job{'s' if count > 1 else ''}"


def _after_loss(where: str, command: str) -> str:
    return (
        "put the journal back that knows them, or take them into this one, which pays nothing:\n"
        f"  kie-async jobs adopt {where}\n"
        f"then go on with the same command:\n  {command}"
    )


def after_unknown(where: str) -> str:
    return (
        "they are not sent again by themselves, for they may be paid; see which:\n"
        f"  kie-async jobs list --state unknown {where}\n"
        f"then look at https://kie.ai/logs, and decide: kie-async jobs resolve KEY --task-id ID {where}"
    )


def _after_failure(where: str) -> str:
    return (
        "see why:\n"
        f"  kie-async jobs list --state failed --state rejected {where}\n"
        f"to have one made after all, and paid again: kie-async jobs retry KEY {where}"
    )
