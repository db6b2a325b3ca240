"""Rows of a manifest beside what a journal has under their keys."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterable

from kie_async.batch._results import CONTENT_KEY
from kie_async.journal import Job, Journal, asks_the_same

_READ_AT_ONCE = 256  # jobs; a million rows would wait a million times for a journal that is far away


async def with_known(journal: Journal, jobs: AsyncIterable[Job]) -> AsyncGenerator[tuple[Job, Job | None]]:
    """Yield each job, and what an open journal has under its key: None if it has nothing."""
    async for portion in _portions(jobs):
        known = await journal.get_all(job.key for job in portion)
        for job in portion:
            yield job, known.get(job.key)


async def count_edited(journal: Journal, jobs: AsyncIterable[Job]) -> int:
    """Return how many jobs ask for something else than what an open journal has under the same id.

    What is on record stays, whether it was made or is still planned: an id is never paid twice. A key made from the
    content of a job is not looked up, for an edited row has another one.
    """
    named = (job async for job in jobs if _has_own_id(job))
    return sum([is_edited(job, known) async for job, known in with_known(journal, named)])


def is_edited(job: Job, known: Job | None) -> bool:
    """Whether a job asks for something else than what is on record under its own id."""
    return known is not None and _has_own_id(job) and not asks_the_same(known.request, job.request)


def _has_own_id(job: Job) -> bool:
    return CONTENT_KEY.fullmatch(job.key) is None


async def _portions(jobs: AsyncIterable[Job]) -> AsyncGenerator[list[Job]]:
    portion: list[Job] = []
    async for job in jobs:
        portion.append(job)
        if len(portion) == _READ_AT_ONCE:
            yield portion
            portion = []
    yield portion
