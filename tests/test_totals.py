"""The rule by which the write of a job changes totals, without a store."""

from __future__ import annotations

from itertools import permutations
from typing import Any

import attrs
import pytest
from journal_contract import planned

from kie_async.journal import Job, State
from kie_async.journal._totals import PERIOD, write_steps

COSTLY = attrs.evolve(planned("a"), state=State.SUBMITTED)


def as_of(account: str, batch: str, period: int) -> Job:
    return attrs.evolve(COSTLY, account=account, batch=batch, moments={"intent": period * PERIOD})


def changed(before: Job, after: Job) -> list[Any]:
    """The totals that a write changes, in its order."""
    steps = write_steps(before, after, seen="1", write_id="2")
    return [(values["name"], values["period"]) for statement, values in steps if "kie_total" in statement]


JOBS = [("z", "m", 7), ("b", "a", 9), ("z", "", 10), ("", "zz", 1)]


@pytest.mark.parametrize(("one", "other"), [*permutations(JOBS, 2)])
def test_totals_are_changed_in_one_order(one: tuple[str, str, int], other: tuple[str, str, int]) -> None:
    """Else two writes that change the same ones could wait for each other."""
    there, back = changed(as_of(*one), as_of(*other)), changed(as_of(*other), as_of(*one))
    assert there == back == sorted(there)
    assert len(there) > 1
