"""Tasks that a batch's results name and its journal has lost, taken into it again; nothing is sent or paid."""

from __future__ import annotations

import secrets
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

from kie_async.batch._named import NamedTask, NamedTasks
from kie_async.files._disk import on_disk
from kie_async.journal import Job, Journal, State


async def adopt(journal: Journal, directory: Path, *, batch: str | None, emulated: bool) -> AsyncGenerator[Job, None]:
    """Take into a journal the tasks that its results name and it does not know, so that they are not paid again.

    What was delivered, and is still there, is delivered then, and what failed has failed; any other task is followed
    by the next run of the batch.

    Args:
        journal: open; its planned jobs are looked at.
        directory: of the batch.
        batch: only jobs of this batch.
        emulated: whether the tasks meant are those of an emulator.

    Yields:
        Each job that was taken in.

    Raises:
        ConflictError: another process has the job.
        StorageError: the directory cannot be read, or the journal is away.
    """
    tasks, after = NamedTasks(directory, emulated=emulated), 0
    while page := await journal.page(State.PLANNED, batch=batch, after=after):
        for after, job in page:  # noqa: B007  # the last place is where the next page begins
            if (named := await tasks.lost(journal, job)) is not None:
                yield await _take_in(journal, directory, named)


async def _take_in(journal: Journal, directory: Path, named: NamedTask) -> Job:
    key, token = named.key, secrets.token_urlsafe(32)
    await journal.intend(key, token)
    if named.task_id is None:
        return await journal.move(key, State.UNKNOWN, token=token, error=named.error)
    cost: dict[str, Any] = {} if named.credits is None else {"credits": named.credits}
    job = await journal.move(key, State.SUBMITTED, token=token, task_id=named.task_id, **cost)
    if named.state is State.FAILED:
        return await journal.move(key, State.FAILED, token=token, error=named.error)
    if named.state is State.DELIVERED and await on_disk(_are_there, directory, named.files):
        await journal.move(key, State.SUCCEEDED, token=token)
        return await journal.move(key, State.DELIVERED, token=token, files=named.files)
    return job


def _are_there(directory: Path, names: tuple[str, ...]) -> bool:
    return bool(names) and all((directory / name).is_file() for name in names)
