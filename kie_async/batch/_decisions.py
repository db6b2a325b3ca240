"""What a person decides about jobs that came to nothing, or to nobody knows what. Only these send a job again."""

from __future__ import annotations

import unicodedata

from kie_async.batch._results import song_file
from kie_async.errors import ConflictError
from kie_async.journal import Job, Journal, State

_MAX_NAMED = 10  # keys in an error
_RETRIED = frozenset({State.FAILED, State.REJECTED})


async def retry(journal: Journal, key: str) -> Job:
    """Plan a failed or rejected job once more; it is paid again.

    Raises:
        ConflictError: there is no such job, or it is neither.
    """
    job = await find_failed(journal, key)
    return await journal.move(key, State.PLANNED, token=job.token)


async def name_task(journal: Journal, key: str, task_id: str) -> Job:
    """Say which task an unknown job became; the next run follows it.

    Raises:
        ConflictError: there is no such job, it is not unknown, or the task is another's.
    """
    job = await find_unknown(journal, key)
    return await journal.move(key, State.SUBMITTED, token=job.token, task_id=task_id)


async def resubmit(journal: Journal, key: str) -> Job:
    """Plan an unknown job once more; if it was accepted after all, it is paid twice.

    Raises:
        ConflictError: there is no such job, it is not unknown, or a callback has named its task.
    """
    job = await find_unknown(journal, key)
    if named := await journal.callbacks_for(token=job.token):
        raise ConflictError(f"a callback has named the task of job {key!r}: it was accepted", named[0].task_id)
    return await journal.move(key, State.PLANNED, token=job.token)


async def abandon(journal: Journal, key: str) -> Job:
    """Leave an unknown job as it is, for good.

    Raises:
        ConflictError: there is no such job, or it is not unknown.
    """
    job = await find_unknown(journal, key)
    return await journal.move(key, State.ABANDONED, token=job.token)


async def find(journal: Journal, key: str) -> Job:
    """Read a job.

    Raises:
        ConflictError: there is none of this key.
    """
    job = await journal.get(key)
    if job is None:
        raise ConflictError(f"the journal has no job {key!r}")
    return job


async def find_by_name(journal: Journal, name: str, batch: str | None) -> Job:
    """Read a job by its key, or else by the name of its song or of one of its files.

    Raises:
        ConflictError: there is none, or more than one: then it names their keys.
    """
    job = await journal.get(name)
    if job is not None:
        return job
    found: list[Job] = []
    after = 0
    while page := await journal.page(batch=batch, after=after):
        after = page[-1][0]
        found += [job for _, job in page if _is_called(job, name)]
    if len(found) > 1:
        keys = ", ".join(job.key for job in found[:_MAX_NAMED])
        more = f" and {len(found) - _MAX_NAMED} more" if len(found) > _MAX_NAMED else ""
        raise ConflictError(f"{len(found)} jobs are of the song {name!r}: give the key of one: {keys}{more}")
    return found[0] if found else await find(journal, name)


def _is_called(job: Job, name: str) -> bool:
    song = song_file(job.request)
    names = (*job.files, *((song.name, song.stem) if song else ()))
    return unicodedata.normalize("NFC", name) in {unicodedata.normalize("NFC", each) for each in names}


async def find_failed(journal: Journal, key: str) -> Job:
    """Read a job that can be tried again.

    Raises:
        ConflictError: there is none of this key, or it neither failed nor was rejected.
    """
    job = await find(journal, key)
    if job.state not in _RETRIED:
        raise ConflictError(f"job {key!r} is {job.state}: only what failed or was rejected can be tried again")
    return job


async def find_unknown(journal: Journal, key: str) -> Job:
    """Read a job about which there is something to decide.

    Raises:
        ConflictError: there is none of this key, or it is not unknown.
    """
    job = await find(journal, key)
    if job.state is not State.UNKNOWN:
        raise ConflictError(f"job {key!r} is {job.state}, and not unknown: there is nothing to decide")
    return job
