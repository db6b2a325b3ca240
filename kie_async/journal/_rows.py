"""The rows of a journal: a job, an attempt and a callback as columns, and back; a row that was damaged is refused."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kie_async.journal import _sql
from kie_async.journal._job import InboundCallback, Job, State, pack_job, unpack_job
from kie_async.journal._sql import damaged
from kie_async.journal._transitions import cost


def job_row(job: Job) -> Mapping[str, object]:
    """The columns of a job; its position and the id of its write are given when it is written."""
    changed_at = job.moments.get(job.state.value, 0.0)
    values = (job.key, job.batch, str(job.state), float(cost(job)), float(changed_at), pack_job(job))
    return {**_sql.with_checksum(_sql.JOB, *values), "machine": job.waits_for, "account": job.account}


def attempt_row(job: Job) -> Mapping[str, object]:
    """The columns of the last attempt of a job."""
    values = (job.token, job.key, job.attempt, job.task_id, job.process_id, job.moments[State.INTENT.value])
    return _sql.with_checksum(_sql.ATTEMPT, *values)


def read_job(row: tuple[Any, ...]) -> Job:
    """The job in a row."""
    return unpack_job(intact(row)[-1])


def read_callback(row: tuple[Any, ...]) -> InboundCallback:
    """The callback in a row."""
    token, task_id, stage, at = intact(row)
    return InboundCallback(token=token, task_id=task_id, stage=stage, at=at)


def intact(row: tuple[Any, ...]) -> tuple[Any, ...]:
    """Return a row without its checksum.

    Raises:
        StorageError: it is not what was written.
    """
    if not _sql.is_intact(row):
        raise damaged("a row is not what was written")
    return row[:-1]
