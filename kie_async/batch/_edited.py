"""Rows of a manifest that were edited after their ids came on record."""

from __future__ import annotations

from collections.abc import AsyncIterable

from kie_async.batch._results import CONTENT_KEY
from kie_async.journal import Job, Journal, asks_the_same


async def count_edited(journal: Journal, jobs: AsyncIterable[Job]) -> int:
    """Return how many jobs ask for something else than what an open journal has under the same id.

    What is on record stays, whether it was made or is still planned: an id is never paid twice. A key made from the
    content of a job is not looked up, for an edited row has another one.
    """
    edited = 0
    async for job in jobs:
        if CONTENT_KEY.fullmatch(job.key) is None:
            known = await journal.get(job.key)
            edited += known is not None and not asks_the_same(known.request, job.request)
    return edited
