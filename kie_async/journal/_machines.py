"""The machines that share a journal: which of them jobs wait for, and which have a process at work.

A job whose source only one machine can read waits until that machine has uploaded it (``Job.waits_for``). Jobs without
a batch wait for no machine.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Collection, Mapping

from kie_async.journal._job import Job
from kie_async.journal._rows import read_job
from kie_async.journal._sql import BatchFilter, Driver, of_batch

_WAITING = "SELECT machine, count(*) FROM kie_job WHERE machine > '' AND batch > '' {of_batch} GROUP BY machine"
_NEXT_UPLOADS = """
SELECT position, key, batch, state, cost, changed_at, document, checksum FROM kie_job
WHERE machine = :machine AND state = 'planned' AND batch > '' {condition}
AND position > :after AND position < coalesce((
    SELECT position FROM kie_job WHERE machine = '' AND state = 'planned' AND batch > '' {condition}
    ORDER BY position LIMIT 1 OFFSET :ahead
), 9223372036854775807)
ORDER BY position LIMIT 10
"""
_PRESENT = "SELECT substr(name, 9) FROM kie_lease WHERE substr(name, 1, 8) = 'machine:' AND expires_at > :now"


class Machines:
    """The machines that share one journal.

    Args:
        driver: the open driver of the journal.
    """

    def __init__(self, driver: Driver) -> None:
        self._driver = driver

    async def waiting(self, batch: BatchFilter = None) -> Mapping[str, int]:
        """Count the jobs that wait for each machine, by its name; ``batch`` None: of all batches."""
        [rows] = await self._driver.run((_WAITING.format(of_batch=of_batch(batch)), {"batch": batch}))
        return {str(machine): int(number) for machine, number in rows}

    async def next_uploads(self, machine: str, *, ahead: int, full: Collection[str] = ()) -> AsyncGenerator[Job]:
        """Yield the jobs that wait for a machine and are needed soon, in their order.

        Args:
            machine: the name of the machine.
            ahead: a job is needed soon if at most this many jobs can be submitted before it.
            full: batches whose caps have no room, so that none of their jobs is needed.
        """
        names = {f"batch{number}": batch for number, batch in enumerate(full)}
        condition = "".join(f" AND batch <> :{name}" for name in names)
        statement, after = _NEXT_UPLOADS.format(condition=condition), 0
        while True:
            [rows] = await self._driver.run((statement, {**names, "machine": machine, "after": after, "ahead": ahead}))
            for position, *row in rows:
                after = position
                yield read_job(tuple(row))
            if not rows:
                return

    async def present(self) -> list[str]:
        """The machines of which a process uploads files: it holds the lease that ``machine_lease`` names."""
        [rows] = await self._driver.run((_PRESENT, {}))
        return [str(machine) for (machine,) in rows]


def machine_lease(machine: str) -> str:
    """The name of the lease that says that a process of a machine uploads its files."""
    return f"machine:{machine}"
