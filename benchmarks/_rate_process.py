"""A worker for which the quota is no limit: ``python -m benchmarks._rate_process JOURNAL DIRECTORY``."""

from __future__ import annotations

import asyncio
import sys

import kie_async as kie
from kie_async.batch import work
from kie_async.journal import Job, open_journal


def _nothing(_job: Job) -> None:
    return


async def main(url: str, directory: str) -> None:
    journal = open_journal(url)
    async with kie.KieSession(kie.Settings(quota=100_000), journal=journal) as session:
        await work(session, journal=journal, dsn=url, directory=directory, observer=_nothing, until_done=True)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
