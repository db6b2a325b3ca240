"""The files that jobs extend: each is hashed and measured once, a few at a time, before anything is spent."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import TypeAlias

import anyio
import attrs

from kie_async.errors import AudioError, StorageError
from kie_async.events import clean
from kie_async.files._disk import on_disk
from kie_async.files._length import measure
from kie_async.files._upload import Look, inspect

AT_ONCE = 4  # files read at the same time

Wanted: TypeAlias = tuple[str, bool]  # a path, and whether its length is needed


@attrs.frozen
class Facts:
    """What is known of a file.

    Attributes:
        look: what it was like when it was read; another look, and it must be read again.
        problem: why it cannot be used, and ``remedy`` what to do; empty if it can.
    """

    look: Look | None
    sha256: str = ""
    duration: float | None = None
    problem: str = ""
    remedy: str = ""


class Sources:
    """The facts of files, kept for the run.

    Attributes:
        settled: whether what is known has been promised to somebody: a file that changes is then a fault.
    """

    def __init__(self) -> None:
        self.settled = False
        self._facts: dict[Wanted, Facts] = {}

    async def learn(self, wanted: Iterable[Wanted]) -> None:
        """Learn the facts of files, as far as they are not known or have changed."""
        todo = iter(set(wanted))

        async def work() -> None:
            for each in todo:
                known = self._facts.get(each)
                facts = await on_disk(_read, each, known)
                if self.settled and known is not None and facts.look != known.look:
                    facts = Facts(None, problem="changed since the manifest was checked", remedy="check it again")
                self._facts[each] = facts

        async with anyio.create_task_group() as group:
            for _ in range(AT_ONCE):
                group.start_soon(work)

    def __getitem__(self, wanted: Wanted) -> Facts:
        return self._facts[wanted]


def _read(wanted: Wanted, known: Facts | None) -> Facts:
    """Look at a file, and read it unless it looks as it is known; blocks."""
    path, measured = Path(wanted[0]), wanted[1]
    look = None
    try:
        _, look = inspect(path)
        if known is not None and known.look == look:
            return known
        duration = measure(path) if measured else None
        digest = _digest(path)
        _check_same(path, look)
    except AudioError as error:
        problem, _, remedy = error.message.rpartition(": ")
        return Facts(look, problem=problem, remedy=remedy)
    except (StorageError, OSError):
        return Facts(None, problem=f"{clean(path.name)} cannot be read", remedy="give access to it")
    return Facts(look, digest, duration)


def _check_same(path: Path, look: Look) -> None:
    if inspect(path)[1] != look:
        raise AudioError(f"{clean(path.name)} changed while it was read: wait until it is finished")


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
