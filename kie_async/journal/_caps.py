"""Caps on spending that processes share: what is on record in the journal is what counts.

The cap of a batch is kept with it, that of an account is given by who submits. A submission is reserved by the write of
its intent, which happens only if there is room. Two at the same time lock the same row first, so the second one sees
what the first has reserved.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import chain

import attrs

from kie_async._protocol.request_rules import CREDITS_PER_TASK
from kie_async._protocol.spending import ACCOUNT_REMEDY, budget_error, check_cap
from kie_async.journal import _sql
from kie_async.journal._sql import Driver, Rows, Step

_BATCH = "batch:"
_BATCH_REMEDY = "raise the cap of the batch: run the command that began it again, with another --max-credits"

_SUMS = {
    "of_batch": "FROM kie_job AS paid WHERE paid.batch = :batch",
    "spent": "SELECT coalesce(sum(paid.cost), 0)",
    "certain": "SELECT coalesce(sum(CASE WHEN paid.state IN ('intent', 'submitted') THEN 0 ELSE paid.cost END), 0)",
}
_ALL_OF_ACCOUNT = "FROM kie_job AS paid WHERE paid.account IN ('', :account)"
_RECENT_OF_ACCOUNT = """
FROM kie_job AS paid WHERE paid.key IN (SELECT key FROM kie_attempt WHERE intended_at >= :since)
    AND paid.account || '' IN ('', :account)
"""  # an expression, or SQLite would look for the account first
_SET = """
INSERT INTO kie_cap (name, max_credits) VALUES (:batch_cap, :max_credits)
ON CONFLICT (name) DO UPDATE SET max_credits = excluded.max_credits
"""
_LOCK_BATCH = "UPDATE kie_cap SET name = name WHERE name = :batch_cap"
_LOCK_ACCOUNT = "INSERT INTO kie_cap (name) VALUES (:account_cap) ON CONFLICT (name) DO UPDATE SET name = excluded.name"
_WITHIN = """
    AND NOT EXISTS (SELECT 1 FROM kie_cap WHERE name = :batch_cap AND max_credits < :price + ({spent} {of_batch}))
    AND (:max_credits IS NULL OR :max_credits >= :price + ({spent} {of_account}))
"""
_OF_BATCH = """
SELECT max_credits, ({spent} {of_batch}), ({certain} {of_batch}) FROM kie_cap WHERE name = :batch_cap
""".format(**_SUMS)
_OF_ACCOUNT = "SELECT :max_credits, ({spent} {of_account}), ({certain} {of_account})"
_FULL = """
SELECT substr(name, 7) FROM kie_cap WHERE substr(name, 1, 6) = 'batch:' AND max_credits < :price + (
    SELECT coalesce(sum(cost), 0) FROM kie_job WHERE batch = substr(name, 7)
) AND EXISTS (SELECT 1 FROM kie_job WHERE batch = substr(name, 7) AND state = 'planned')
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

    async def set(self, batch: str, max_credits: float) -> None:
        """Cap what a batch may cost, whoever works on it; a cap it has is replaced.

        Raises:
            SettingsError: that is no number of credits.
        """
        check_cap(max_credits)
        await self._driver.run((_SET, {"batch_cap": f"{_BATCH}{batch}", "max_credits": max_credits}))

    async def full(self) -> list[str]:
        """The batches with planned jobs for which their caps leave no room now."""
        [rows] = await self._driver.run((_FULL, {"price": CREDITS_PER_TASK}))
        return [str(name) for (name,) in rows]

    async def check(self, batch: str, payer: Payer = NOBODY) -> None:
        """See whether there is room for one more submission.

        Raises:
            BudgetError: there is none.
        """
        values = _values(batch, payer)
        if batch:
            _check(await self._driver.run((_OF_BATCH, values)), _BATCH_REMEDY, batch)
        if payer.max_credits is not None:
            _check(await self._driver.run((_of(payer, _OF_ACCOUNT), values)), ACCOUNT_REMEDY)

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
    """Hold credits to a cap, if there is a row with it, all that is spent or reserved, and what is so for certain."""
    for cap, spent, certain in chain(*results):
        if spent + CREDITS_PER_TASK > cap:
            is_full = certain + CREDITS_PER_TASK > cap
            raise budget_error(cap, spent, remedy, batch=batch, retryable=not is_full)


def reserve(batch: str, payer: Payer) -> tuple[list[Step], str, Mapping[str, object]]:
    """What reserves a submission: statements that come first, the one that writes the intent, and their parameters."""
    values, first = _values(batch, payer), []
    if batch:
        first.append((_LOCK_BATCH, values))
    if payer.max_credits is not None:
        first.append((_LOCK_ACCOUNT, values))
    return first, _sql.WRITE + _of(payer, _WITHIN) if first else _sql.WRITE, values


def _of(payer: Payer, statement: str) -> str:
    """Put the sums into a statement; the jobs since a moment are found by their attempts."""
    return statement.format(**_SUMS, of_account=_RECENT_OF_ACCOUNT if payer.since else _ALL_OF_ACCOUNT)


def _values(batch: str, payer: Payer) -> Mapping[str, object]:
    return {
        "batch": batch,
        "batch_cap": f"{_BATCH}{batch}",
        "account": payer.account,
        "account_cap": f"account:{payer.account}",
        "max_credits": payer.max_credits,
        "since": payer.since,
        "price": CREDITS_PER_TASK,
    }
