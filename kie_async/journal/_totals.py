"""What batches and accounts have spent: totals that the write of a job changes in the same transaction.

To sum up a million jobs at each submission would take 0.1 s. A batch has one total. An account has one for each period
in which jobs were submitted, for its cap may count since a moment.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeAlias

from kie_async._protocol.request_rules import CREDITS_PER_TASK
from kie_async.journal import _sql
from kie_async.journal._job import Job, State
from kie_async.journal._rows import job_row
from kie_async.journal._sql import Step
from kie_async.journal._transitions import cost

Total: TypeAlias = tuple[str, int]  # its name and the number of its period

BATCH, ACCOUNT = "batch:", "account:"  # the names of totals, and of caps, begin with these
PERIOD = 600.0  # seconds: the service allows 1,200 submissions in them

# The job gets the id of this transaction first: then nobody else writes it until the end, and a transaction that runs
# again after a lost connection finds another id, and adds nothing.
_CLAIM = "UPDATE kie_job SET write_id = :claim WHERE key = :key AND write_id = :seen"
_ADD = """
INSERT INTO kie_total (name, period, credits, extra)
SELECT :name, :period, :credits, :extra FROM kie_job WHERE key = :key AND write_id = :claim
ON CONFLICT (name, period) DO UPDATE SET credits = kie_total.credits + excluded.credits,
    extra = CASE WHEN kie_total.extra < excluded.extra THEN excluded.extra ELSE kie_total.extra END
"""

# What the totals must be by the rows of the jobs, as far as these say how much more than expected a task has cost.
# A negative cost, which a journal of version 2 may hold, counts as unknown, as by ``cost``.
_SUMS = """
WITH paid AS (
    SELECT batch, account, CASE WHEN cost < 0 THEN {task} ELSE cost END AS cost,
        CASE WHEN number = 1 AND cost > {task} AND state NOT IN ('planned', 'rejected') THEN cost - {task} ELSE 0 END
            AS extra,
        intended_at, CAST(intended_at AS bigint) AS second
    FROM kie_job JOIN kie_attempt AS latest USING (key)
    WHERE number = (SELECT max(number) FROM kie_attempt AS other WHERE other.key = latest.key)
), counted AS (
    SELECT 'account:' || account AS name,
        (second - CASE WHEN second > intended_at THEN 1 ELSE 0 END) / {period:.0f} AS period, cost, extra FROM paid
    UNION ALL
    SELECT 'batch:' || batch, 0, cost, extra FROM paid WHERE batch > ''
), sums AS (
    SELECT name, period, sum(cost) AS credits, max(extra) AS extra FROM counted GROUP BY name, period
)
"""
_WRONG = """
{sums} SELECT name, period FROM (
    SELECT name, period, credits, extra FROM sums UNION ALL SELECT name, period, -credits, -extra FROM kie_total
) AS compared GROUP BY name, period
HAVING NOT abs(sum(credits)) < 0.001 + 0.000001 * max(abs(credits)) OR sum(extra) > 0.001
"""
_COUNT = """
INSERT INTO kie_total (name, period, credits, extra)
{sums} SELECT name, period, credits, extra FROM sums WHERE true
ON CONFLICT (name, period) DO UPDATE SET credits = excluded.credits,
    extra = CASE WHEN kie_total.extra < excluded.extra THEN excluded.extra ELSE kie_total.extra END
"""
_NUMBERS = {"task": CREDITS_PER_TASK, "period": PERIOD}
# A row for each total that is wrong; those of fractions differ a little.
WRONG = _WRONG.format(sums=_SUMS.format(**_NUMBERS))
# Count all anew, while nobody writes. How much more than expected a task has cost stays, if it is more.
REBUILD = ("UPDATE kie_total SET credits = 0", _COUNT.format(sums=_SUMS.format(**_NUMBERS)))


def write_steps(before: Job, after: Job, *, seen: str, write_id: str, condition: Step = ("", {})) -> list[Step]:
    """The statements that write a job and change the totals; the one that writes the job comes last.

    Args:
        before: the job as it was read.
        after: the job to write.
        seen: the id of the write that ``before`` came from.
        write_id: that of this write.
        condition: what else must hold for it, as SQL that begins with AND, and its parameters.
    """
    (words, values), changes = condition, _changes(before, after)
    row = {**job_row(after), "write_id": write_id}
    if not changes and not words:
        return [(_sql.WRITE, {**row, "seen": seen})]
    claim = {"key": after.key, "claim": f"{write_id} claim"}
    extra = max(0.0, cost(after) - after.earlier_credits - CREDITS_PER_TASK)
    return [
        (_CLAIM + words, {**values, **claim, "seen": seen}),
        *(
            (_ADD, {**claim, "name": name, "period": period, "credits": change, "extra": extra})
            for (name, period), change in changes.items()
        ),
        (_sql.WRITE, {**row, "seen": claim["claim"]}),
    ]


def _changes(before: Job, after: Job) -> Mapping[Total, float]:
    """What a write adds to which totals; in one order for all, so that no two transactions wait for each other."""
    changes: dict[Total, float] = dict.fromkeys(_totals(before), -cost(before))
    for total in _totals(after):
        changes[total] = changes.get(total, 0.0) + cost(after)
    return {total: changes[total] for total in sorted(changes) if changes[total]}


def _totals(job: Job) -> list[Total]:
    submitted_at = job.moments.get(State.INTENT.value, 0.0)  # the last attempt
    totals = [(f"{ACCOUNT}{job.account}", int(submitted_at // PERIOD))]
    return [*totals, (f"{BATCH}{job.batch}", 0)] if job.batch else totals
