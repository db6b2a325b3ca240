"""The tasks that the directory of a batch names: a journal that does not know one of them has lost what was paid.

``results.jsonl`` and the sidecars outlive a journal that was deleted, or put back from an older copy. They are read
once, when the first job is about to be submitted, and only where each line is, is kept.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from contextlib import suppress
from os import scandir
from pathlib import Path
from typing import Any

import anyio
import attrs

from kie_async._protocol.wire import unpack
from kie_async.batch._results import LINES, SIDECAR, read_sidecar
from kie_async.errors import BadResponseError, LostRecordError
from kie_async.files._disk import on_disk
from kie_async.journal import Job, JobError, Journal, State

_STATES = frozenset(State)


@attrs.frozen(kw_only=True)
class NamedTask:
    """What was written down of a job: the task it was submitted as, or that nobody knows which.

    Attributes:
        file: where it stands.
        state: the end that was noted; "submitted" if only a track of it is there.
        attempt: which submission of the job it was.
        files: names in the directory.
        credits: what it cost, if that is known.
        error: why it came to nothing.
    """

    key: str
    task_id: str | None
    file: str
    state: State
    attempt: int
    files: tuple[str, ...] = ()
    credits: float | None = None
    error: JobError | None = None

    def refusal(self) -> LostRecordError:
        """The error of a job that must not be submitted for it."""
        task = f"task {self.task_id}" if self.task_id else "a submission whose outcome is unknown"
        return LostRecordError(
            f"{self.file} names {task} for this job, which the journal does not know: it is not submitted, for that "
            "would be paid again. Take it into the journal, which pays nothing: kie-async jobs adopt --out DIR",
            self.task_id,
            charged="yes" if self.task_id else "maybe",
        )


class NamedTasks:
    """The tasks that a directory names.

    Args:
        directory: of a batch; it need not be there.
        emulated: what is meant is the emulator's: what was merely tried out is not paid, and the reverse.
    """

    def __init__(self, directory: Path, *, emulated: bool) -> None:
        self._directory = directory
        self._emulated = emulated
        self._lines: dict[int, int] = {}  # hash of a key: where its last line begins
        self._sidecars: dict[int, str] = {}
        self._is_read = False
        self._alone = anyio.Lock()

    async def lost(self, journal: Journal, job: Job) -> NamedTask | None:
        """What was written down of a job, if the journal does not know of it.

        Raises:
            StorageError: the directory cannot be read, or the journal is away.
        """
        await self._load()
        if not {self._lines.get(hash(job.key)), self._sidecars.get(hash(job.key))} - {None}:
            return None
        for named in await on_disk(self._of, job.key):
            if named.task_id is None:
                is_known = named.attempt <= job.attempt
            else:
                known = await journal.find(task_id=named.task_id)
                is_known = known is not None and known.key == job.key
            if not is_known:
                return named
        return None

    async def _load(self) -> None:
        async with self._alone:
            if self._is_read:
                return
            await on_disk(self._read)
            self._is_read = True

    # ------------------------------------------------------------ the disk; all of it blocks

    def _read(self) -> None:
        with suppress(FileNotFoundError), (self._directory / LINES).open("rb") as file:
            start = 0
            for line in file:
                if (named := self._in_line(line)) is not None:
                    self._lines[hash(named.key)] = start
                start += len(line)
        with suppress(FileNotFoundError), scandir(self._directory) as entries:
            for entry in entries:
                if entry.name.endswith(SIDECAR) and (named := self._in_sidecar(entry.name)) is not None:
                    self._sidecars[hash(named.key)] = entry.name

    def _of(self, key: str) -> list[NamedTask]:
        found = []
        if (start := self._lines.get(hash(key))) is not None:
            with suppress(FileNotFoundError), (self._directory / LINES).open("rb") as file:
                file.seek(start)
                found.append(self._in_line(file.readline()))
        if (name := self._sidecars.get(hash(key))) is not None:
            found.append(self._in_sidecar(name))
        return [named for named in found if named is not None and named.key == key]

    def _in_line(self, line: bytes) -> NamedTask | None:
        try:
            return self._named(json.loads(line), LINES)
        except (ValueError, RecursionError):  # a crash has torn it, or it is not ours
            return None

    def _in_sidecar(self, name: str) -> NamedTask | None:
        facts = read_sidecar(self._directory / name)
        return None if facts is None else self._named({**facts, "state": State.SUBMITTED.value}, name)

    def _named(self, facts: object, file: str) -> NamedTask | None:
        """What a line or a sidecar says of a submission that may have been paid; what it is made of may be anything."""
        if not isinstance(facts, dict) or facts.get("emulated", False) is not self._emulated:
            return None
        key, task_id, state, attempt = map(facts.get, ("key", "task_id", "state", "attempt"))
        if not isinstance(key, str) or not isinstance(state, str) or state not in _STATES:
            return None
        if not isinstance(task_id, str):
            if state != State.UNKNOWN:
                return None  # refused: it was not paid
            task_id = None
        return NamedTask(
            key=key,
            task_id=task_id,
            file=file,
            state=State(state),
            attempt=attempt if isinstance(attempt, int) else 1,
            **_known(facts),
        )


def _known(facts: Mapping[str, Any]) -> dict[str, Any]:
    """What else a line says, as far as it can be understood."""
    known: dict[str, Any] = {}
    files, cost = facts.get("files"), facts.get("credits")
    if isinstance(files, list) and all(isinstance(name, str) for name in files):
        known["files"] = tuple(files)
    if isinstance(cost, int | float) and 0 <= cost < math.inf:
        known["credits"] = float(cost)
    with suppress(BadResponseError):
        known["error"] = unpack(json.dumps(facts.get("error")), JobError)
    return known
