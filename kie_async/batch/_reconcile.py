"""Bring a journal into line with what really happened: by the results on disk, or by what a person decides.

``results.jsonl`` and the sidecars outlive a journal that was deleted, or restored from an older copy. A task that they
name and the journal does not know was paid, and must not be paid again. What dead processes left in the journal itself
is taken over in the room ``journal``.
"""

from __future__ import annotations

import json
import math
import secrets
import shlex
import unicodedata
from collections.abc import AsyncGenerator, Iterator
from contextlib import suppress
from os import scandir
from pathlib import Path
from typing import Any

import anyio
import attrs

from kie_async._protocol.wire import unpack
from kie_async.batch._results import RESULTS, SIDECAR, Results, read_sidecar, song_file
from kie_async.errors import BadResponseError, ConflictError, LostRecordError
from kie_async.files import on_disk
from kie_async.journal import BatchFilter, Job, JobError, Journal, State, text_of
from kie_async.journal._recorder import Recorder
from kie_async.settings import machine_name

_MAX_KEYS_SHOWN = 10  # in an error
ENDED_WITHOUT_TRACKS = (State.FAILED, State.REJECTED, State.UNKNOWN)  # a delivered job's line is older than its end
_MAX_CLOCK_DIFFERENCE = 600.0  # seconds


async def reconcile(recorder: Recorder, results: Results, batch: str) -> AsyncGenerator[Job, None]:
    """Resolve the submissions of dead processes, and write the lines that a crash prevented; yield their jobs."""
    await recorder.takeover.resolve_all(batch)
    since = await results.last_recorded() - _MAX_CLOCK_DIFFERENCE
    async for job in recorder.journal.jobs(*ENDED_WITHOUT_TRACKS, batch=batch):
        if job.moments[job.state.value] > since and await results.record_end(job):
            yield job


# ---------------------------------------------------------------- by the results on disk


@attrs.frozen(kw_only=True)
class RecordedTask:
    """What a line or a sidecar says of a submission that may have been paid.

    Attributes:
        key: of the job.
        task_id: None if it is unknown which task it became.
        file: the name of the file that says so.
        state: the end of the job; "submitted" if only a track of it is there.
        attempt: which submission of the job it was.
        files: names in the directory.
        credits: what it cost, if that is known.
        error: why it failed.
    """

    key: str
    task_id: str | None
    file: str
    state: State
    attempt: int
    files: tuple[str, ...] = ()
    credits: float | None = None
    error: JobError | None = None

    def lost_error(self, remedy: str) -> LostRecordError:
        """Make the error of a job that must not be submitted, because this task is its."""
        task = f"task {self.task_id}" if self.task_id else "a submission whose outcome is unknown"
        return LostRecordError(
            f"{self.file} names {task} for this job, which the journal does not know: it is not submitted, for that "
            f"would be paid again. {remedy}",
            self.task_id,
            charged="yes" if self.task_id else "maybe",
        )


def adopt_remedy(directory: Path, journal: Journal) -> str:
    """How a planned job gets the task back that the results in a directory name."""
    return (
        f"Take it into the journal ({journal.driver}), which pays nothing: "
        f"kie-async jobs adopt --out {shlex.quote(str(directory))}, with the same --journal if one was given"
    )


def parse_record(facts: object, file: str, *, emulated: bool) -> RecordedTask | None:
    """Parse a line or a sidecar, which may hold anything; None if nothing that was paid is in it.

    Args:
        facts: as JSON.
        file: where they are written.
        emulated: whether tasks of an emulator are meant: a tried batch is not a paid one, and the reverse.
    """
    if not isinstance(facts, dict) or facts.get("emulated", False) is not emulated:
        return None
    key, task_id, state, attempt = map(facts.get, ("key", "task_id", "state", "attempt"))
    if not isinstance(key, str) or not isinstance(state, str) or state not in frozenset(State):
        return None
    if not isinstance(task_id, str):
        if state != State.UNKNOWN:
            return None  # it was rejected, and not paid
        task_id = None
    error = None
    with suppress(BadResponseError):
        error = unpack(json.dumps(facts.get("error")), JobError)
    return RecordedTask(
        key=key,
        task_id=task_id,
        file=file,
        state=State(state),
        attempt=attempt if isinstance(attempt, int) else 1,
        files=_names(facts.get("files")),
        credits=_credits(facts.get("credits")),
        error=error,
    )


def _names(value: object) -> tuple[str, ...]:
    return tuple(value) if isinstance(value, list) and all(isinstance(name, str) for name in value) else ()


def _credits(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) and 0 <= value < math.inf else None


class RecordedTasks:
    """The tasks that the results of a batch name. They are read when the first job is about to be submitted.

    Args:
        directory: of a batch; it need not exist.
        emulated: whether tasks of an emulator are meant: a tried batch is not a paid one, and the reverse.
    """

    def __init__(self, directory: Path, *, emulated: bool) -> None:
        self._directory = directory
        self._emulated = emulated
        self._lines: dict[int, int] = {}  # hash of a key: offset of its last line
        self._sidecars: dict[int, str] = {}  # hash of a key: name of a sidecar
        self._is_loaded = False
        self._loading = anyio.Lock()

    async def find_lost(self, journal: Journal, job: Job) -> RecordedTask | None:
        """Return the task that was submitted for a job, if the journal does not know of it.

        Raises:
            StorageError: the directory cannot be read, or the journal is away.
        """
        await self._load_once()
        if hash(job.key) not in self._lines and hash(job.key) not in self._sidecars:
            return None
        for task in await on_disk(self._read, job.key):
            if task.task_id is None:
                is_known = task.attempt <= job.attempt
            else:
                known = await journal.find(task_id=task.task_id)
                is_known = known is not None and known.key == job.key
            if not is_known:
                return task
        return None

    async def _load_once(self) -> None:
        async with self._loading:
            if self._is_loaded:
                return
            await on_disk(self._load)
            self._is_loaded = True

    # ------------------------------------------------------------ the disk; all of it blocks

    def _load(self) -> None:
        with suppress(FileNotFoundError), (self._directory / RESULTS).open("rb") as file:
            offset = 0
            for line in file:
                if (task := self._parse_line(line)) is not None:
                    self._lines[hash(task.key)] = offset
                offset += len(line)
        with suppress(FileNotFoundError), scandir(self._directory) as entries:
            for entry in entries:
                if entry.name.endswith(SIDECAR) and (task := self._read_sidecar(entry.name)) is not None:
                    self._sidecars[hash(task.key)] = entry.name

    def _read(self, key: str) -> list[RecordedTask]:
        return [task for task in self._read_all(key) if task is not None and task.key == key]

    def _read_all(self, key: str) -> Iterator[RecordedTask | None]:
        if (offset := self._lines.get(hash(key))) is not None:
            with suppress(FileNotFoundError), (self._directory / RESULTS).open("rb") as file:
                file.seek(offset)
                yield self._parse_line(file.readline())
        if (name := self._sidecars.get(hash(key))) is not None:
            yield self._read_sidecar(name)

    def _parse_line(self, line: bytes) -> RecordedTask | None:
        try:
            return parse_record(json.loads(line), RESULTS, emulated=self._emulated)
        except (ValueError, RecursionError):  # a crash has torn it, or something else wrote it
            return None

    def _read_sidecar(self, name: str) -> RecordedTask | None:
        facts = read_sidecar(self._directory / name)
        return None if facts is None else parse_record({**facts, "state": "submitted"}, name, emulated=self._emulated)


async def adopt(journal: Journal, directory: Path, *, batch: BatchFilter, emulated: bool) -> AsyncGenerator[Job, None]:
    """Take into a journal the tasks that its results name and it does not know, so that they are not paid again.

    A job whose files are there is delivered then, a failed one has failed; any other task is followed by the next run
    of the batch. Nothing is sent.

    Args:
        journal: open; its planned jobs are checked.
        directory: of the batch.
        batch: only jobs of this batch; a worker's directory has those of many.
        emulated: whether tasks of an emulator are meant.

    Yields:
        Each job that was taken in.

    Raises:
        ConflictError: another process has the job.
        StorageError: the directory cannot be read, or the journal is away.
    """
    tasks = RecordedTasks(directory, emulated=emulated)
    async for job in journal.jobs(State.PLANNED, batch=batch):
        if (task := await tasks.find_lost(journal, job)) is not None:
            yield await _adopt_task(journal, directory, task)


async def _adopt_task(journal: Journal, directory: Path, task: RecordedTask) -> Job:
    key, token = task.key, secrets.token_urlsafe(32)
    await journal.intend(key, token)
    if task.task_id is None:
        return await journal.move(key, State.UNKNOWN, token=token, error=task.error)
    cost: dict[str, Any] = {} if task.credits is None else {"credits": task.credits}
    job = await journal.move(key, State.SUBMITTED, token=token, task_id=task.task_id, **cost)
    if task.state is State.FAILED:
        return await journal.move(key, State.FAILED, token=token, error=task.error)
    if task.state is State.DELIVERED and await on_disk(have_all, directory, task.files):
        await journal.move(key, State.SUCCEEDED, token=token)
        return await journal.move(key, State.DELIVERED, token=token, files=task.files, directory=location_of(directory))
    return job


def location_of(directory: Path, machine: str = "") -> str:
    """``Job.directory`` of files that are put into a directory of this machine."""
    return f"{machine or machine_name()}:{text_of(directory.absolute())}"


def have_all(directory: Path, names: tuple[str, ...]) -> bool:
    """Tell whether there are names, and a file of each in the directory; blocks."""
    return bool(names) and all((directory / name).is_file() for name in names)


# ---------------------------------------------------------------- by what a person decides; only these send a job again


async def retry(journal: Journal, key: str) -> Job:
    """Plan a failed or rejected job once more; it is paid again.

    Raises:
        ConflictError: there is no such job, or it is neither.
    """
    job = await find_job(journal, key, State.FAILED, State.REJECTED)
    return await journal.move(key, State.PLANNED, token=job.token)


async def retry_unknown(journal: Journal, key: str) -> Job:
    """Plan an unknown job once more; if it was accepted after all, it is paid twice.

    Raises:
        ConflictError: there is no such job, it is not unknown, or a callback has named its task.
    """
    job = await find_job(journal, key, State.UNKNOWN)
    if callbacks := await journal.callbacks_for(token=job.token):
        raise ConflictError(f"a callback has named the task of job {key!r}: it was accepted", callbacks[0].task_id)
    return await journal.move(key, State.PLANNED, token=job.token)


async def resolve_as(journal: Journal, key: str, task_id: str) -> Job:
    """Say which task an unknown job became; the next run follows it.

    Raises:
        ConflictError: there is no such job, it is not unknown, or the task is another's.
    """
    job = await find_job(journal, key, State.UNKNOWN)
    return await journal.move(key, State.SUBMITTED, token=job.token, task_id=task_id)


async def give_up(journal: Journal, key: str) -> Job:
    """Leave an unknown job as it is, for good.

    Raises:
        ConflictError: there is no such job, or it is not unknown.
    """
    job = await find_job(journal, key, State.UNKNOWN)
    return await journal.move(key, State.ABANDONED, token=job.token)


async def find_by_name(journal: Journal, name: str, batch: str | None) -> Job:
    """Read a job by its key, or else by the name of its song or of one of its files.

    Raises:
        ConflictError: there is none, or more than one: then it names their keys.
    """
    if (job := await journal.get(name)) is not None:
        return job
    found = [job async for job in journal.jobs(batch=batch) if _has_name(job, name)]
    if len(found) > 1:
        keys = ", ".join(job.key for job in found[:_MAX_KEYS_SHOWN])
        more = f" and {len(found) - _MAX_KEYS_SHOWN} more" if len(found) > _MAX_KEYS_SHOWN else ""
        raise ConflictError(f"{len(found)} jobs are of the song {name!r}: give the key of one: {keys}{more}")
    return found[0] if found else await find_job(journal, name)


async def find_job(journal: Journal, key: str, *states: State) -> Job:
    """Read a job, in one of these states if any are given.

    Raises:
        ConflictError: there is none of this key, or it is in another state.
    """
    job = await journal.get(key)
    if job is None:
        raise ConflictError(f"the journal has no job {key!r}: 'kie-async jobs list' shows the keys")
    if states and job.state not in states:
        raise ConflictError(f"job {key!r} is {job.state}, and not {' or '.join(states)}")
    return job


def _has_name(job: Job, name: str) -> bool:
    song = song_file(job.request)
    names = (*job.files, *((song.name, song.stem) if song else ()))
    return unicodedata.normalize("NFC", name) in {unicodedata.normalize("NFC", each) for each in names}
