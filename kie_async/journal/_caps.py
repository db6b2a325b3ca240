"""Caps on spending that processes share: they apply to all that is on record in the journal.

The journal records the cap of a batch; the cap of an account comes from the session that submits. The write of an
intent reserves the cost of its submission, and happens only if the cap has room. Two intents at the same time lock the
same row first, so the second one sees what the first has reserved. If tasks have cost more than expected, each open job
counts as much as the dearest, so that the cap holds however the jobs end.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import chain

import attrs

from kie_async._protocol.request_rules import CREDITS_PER_TASK
from kie_async._protocol.spending import ACCOUNT_REMEDY, budget_error, check_cap
from kie_async.journal._job import Job
from kie_async.journal._sql import Driver, Rows, Step
from kie_async.journal._totals import ACCOUNT, BATCH, PERIOD, write_steps

_BATCH_REMEDY = "raise the cap of the batch: run the command that began it again, with another --max-credits"
_CREDITS_NEEDED = (
    CREDITS_PER_TASK - 1e-6
)  # what one more task needs; totals of fractions differ a little from their sum

# What counts for a cap: credits that are spent or reserved, how much more than expected the dearest task has cost, and
# the jobs that may yet cost that. First for the batch of a row of kie_cap, then for an account since a moment.
_OF_BATCH = {
    "spent": "(SELECT coalesce(sum(credits), 0) FROM kie_total WHERE kie_total.name = kie_cap.name)",
    "extra": "(SELECT coalesce(max(extra), 0) FROM kie_total WHERE kie_total.name = kie_cap.name)",
    "jobs": """
        FROM kie_job AS job WHERE batch = substr(kie_cap.name, 7) AND state IN ('intent', 'submitted', 'unknown')
    """,
}
_OF_ACCOUNT = {
    "spent": """((
        SELECT coalesce(sum(credits), 0) FROM kie_total WHERE name IN ('account:', :account_cap) AND period >= :period
    ) + (
        SELECT coalesce(sum(cost), 0) FROM kie_attempt JOIN kie_job AS job ON job.key = kie_attempt.key
        WHERE intended_at >= :since AND intended_at < :period_start AND account IN ('', :account)
            AND number = (SELECT max(number) FROM kie_attempt AS other WHERE other.key = job.key)
    ))""",
    "extra": """(
        SELECT coalesce(max(extra), 0) FROM kie_total WHERE name IN ('account:', :account_cap) AND period >= :period - 1
    )""",
    "jobs": """
        FROM kie_job AS job WHERE account IN ('', :account) AND state IN ('intent', 'submitted', 'unknown')
            AND EXISTS (SELECT 1 FROM kie_attempt AS other WHERE other.key = job.key AND intended_at >= :since)
    """,
}
_NEEDS = "({spent} + :credits_needed + {extra} * (1 + (SELECT count(*) {jobs})))"
_COUNTS = "{spent}, {extra}, (SELECT count(*) {jobs}), (SELECT count(*) {jobs} AND state <> 'unknown')"

_GET = "SELECT max_credits FROM kie_cap WHERE name = :batch_cap AND max_credits IS NOT NULL"
_SET = """
INSERT INTO kie_cap (name, max_credits) VALUES (:batch_cap, :max_credits)
ON CONFLICT (name) DO UPDATE SET max_credits = excluded.max_credits
"""
_LOCK = "INSERT INTO kie_cap (name) VALUES (:cap) ON CONFLICT (name) DO UPDATE SET name = excluded.name"
_WITHIN_BATCH = """
    AND NOT EXISTS (SELECT 1 FROM kie_cap WHERE name = :batch_cap AND max_credits < {needs})
"""
_WITHIN_ACCOUNT = " AND :max_credits >= {needs}"
_CHECK_BATCH = "SELECT max_credits, {counts} FROM kie_cap WHERE name = :batch_cap AND max_credits IS NOT NULL"
_CHECK_ACCOUNT = "SELECT :max_credits, {counts}"
_FULL = """
SELECT substr(name, 7) FROM kie_cap WHERE substr(name, 1, 6) = 'batch:' AND max_credits < {needs}
    AND EXISTS (SELECT 1 FROM kie_job WHERE batch = substr(name, 7) AND state = 'planned')
"""


@attrs.frozen(kw_only=True)
class Payer:
    """Who pays for a submission.

    Attributes:
        account: its name.
        max_credits: what may be on record for it; None for no cap.
        since: only jobs that were submitted since then count (unix seconds).
    """

    account: str = ""
    max_credits: float | None = None
    since: float = 0.0


NOBODY = Payer()


class Caps:
    """The caps of one journal.

    Args:
        driver: of the journal, open.
    """

    def __init__(self, driver: Driver) -> None:
        self._driver = driver

    async def set(self, batch: str, max_credits: float) -> float | None:
        """Cap what a batch may cost, whoever works on it; return the cap that is replaced, None if there was none.

        Raises:
            SettingsError: that is no number of credits.
        """
        check_cap(max_credits)
        values = {"batch_cap": f"{BATCH}{batch}", "max_credits": max_credits}
        before, _ = await self._driver.run((_GET, values), (_SET, values))
        return next((float(cap) for (cap,) in before), None)

    async def full(self) -> list[str]:
        """The batches with planned jobs for which their caps leave no room now."""
        [rows] = await self._driver.run((_with(_OF_BATCH, _FULL), {"credits_needed": _CREDITS_NEEDED}))
        return [str(name) for (name,) in rows]

    async def check(self, batch: str, payer: Payer = NOBODY) -> None:
        """See whether there is room for one more submission.

        Raises:
            BudgetError: there is none.
        """
        values = _values(batch, payer)
        if batch:
            _check(await self._driver.run((_with(_OF_BATCH, _CHECK_BATCH), values)), _BATCH_REMEDY, batch)
        if payer.max_credits is not None:
            _check(await self._driver.run((_with(_OF_ACCOUNT, _CHECK_ACCOUNT), values)), ACCOUNT_REMEDY)

    async def check_left(self, batch: str | None) -> None:
        """See whether a cap keeps planned jobs from being made.

        Args:
            batch: that is meant; None for all.

        Raises:
            BudgetError: it does.
        """
        for name in await self.full():
            if batch in {None, name}:
                await self.check(name)


def _check(results: list[Rows], remedy: str, batch: str = "") -> None:
    """Raise BudgetError if a cap leaves no room; ``retryable`` if there is room once jobs under way cost nothing."""
    for cap, spent, extra, open_jobs, under_way in chain(*results):
        reserved, needed = spent + extra * open_jobs, _CREDITS_NEEDED + extra
        if reserved + needed > cap:
            is_full = spent - CREDITS_PER_TASK * under_way + needed > cap
            raise budget_error(cap, reserved, remedy, batch=batch, retryable=not is_full)


def reserving_steps(before: Job, after: Job, *, seen: str, write_id: str, payer: Payer) -> list[Step]:
    """The statements that write the intent of a job if the caps leave room for it; see ``write_steps``."""
    values, locks, condition = _values(after.batch, payer), list[Step](), ""
    if after.batch:
        locks.append((_LOCK, {"cap": values["batch_cap"]}))
        condition += _with(_OF_BATCH, _WITHIN_BATCH)
    if payer.max_credits is not None:
        locks.append((_LOCK, {"cap": values["account_cap"]}))
        condition += _with(_OF_ACCOUNT, _WITHIN_ACCOUNT)
    return [*locks, *write_steps(before, after, seen=seen, write_id=write_id, condition=(condition, values))]


def _with(what: Mapping[str, str], statement: str) -> str:
    """Put what counts into a statement."""
    return statement.format(needs=_NEEDS.format(**what), counts=_COUNTS.format(**what))


def _values(batch: str, payer: Payer) -> Mapping[str, object]:
    period = math.ceil(payer.since / PERIOD)  # the first that counts as a whole
    return {
        "batch_cap": f"{BATCH}{batch}",
        "account": payer.account,
        "account_cap": f"{ACCOUNT}{payer.account}",
        "max_credits": payer.max_credits,
        "since": payer.since,
        "period": period,
        "period_start": period * PERIOD,
        "credits_needed": _CREDITS_NEEDED,
    }
