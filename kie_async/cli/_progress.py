"""How a batch stands: a table on a terminal, a line now and then elsewhere, an event for each move of a job."""

from __future__ import annotations

import asyncio
import json
import time
from collections import deque
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any, Self

import anyio
import attrs
from rich.table import Table

from kie_async import events
from kie_async.batch import song_of
from kie_async.cli._output import Output
from kie_async.errors import LostRecordError, StorageError
from kie_async.events import clean
from kie_async.journal import Job, Journal, State
from kie_async.settings import Settings

MAX_TROUBLES = 100  # kept for the summary
_QUOTA = int(attrs.fields_dict(Settings)["quota"].default or 0)
_WINDOW = float(attrs.fields_dict(Settings)["quota_window"].default or 0)
_LENGTH = 120.0  # seconds. FACTS: a task takes 1 to 3 minutes
_EVERY = 0.5  # seconds between two looks at the journal; more where a look takes long
_SHARE = 20  # of the time, at most one part in so many goes into looks
_PATIENCE = 5.0  # seconds that the last look may take
_BAD = frozenset({State.FAILED, State.REJECTED, State.UNKNOWN})


@attrs.frozen(kw_only=True)
class Counts:
    """How many jobs stand where; ``made`` are those whose tracks are still to be fetched."""

    waiting: int = 0
    submitted: int = 0
    made: int = 0
    done: int = 0
    failed: int = 0
    unknown: int = 0
    abandoned: int = 0

    @classmethod
    def of(cls, counts: Mapping[State, int]) -> Self:
        """Sum up the states."""

        def count(*states: State) -> int:
            return sum(counts.get(state, 0) for state in states)

        return cls(
            waiting=count(State.PLANNED, State.INTENT),
            submitted=count(State.SUBMITTED),
            made=count(State.SUCCEEDED),
            done=count(State.DELIVERED),
            failed=count(State.FAILED, State.REJECTED),
            unknown=count(State.UNKNOWN),
            abandoned=count(State.ABANDONED),
        )

    @property
    def open(self) -> int:
        """Those that are not at their end."""
        return self.waiting + self.submitted + self.made

    @property
    def total(self) -> int:
        """All of them."""
        return sum(attrs.astuple(self))

    def __str__(self) -> str:
        words = [
            f"{number} {name}" for name, number in attrs.asdict(self).items() if number or name in {"done", "failed"}
        ]
        return ", ".join(words)


class BatchProgress:
    """Shows how a batch stands.

    Args:
        output: where.
        out: where the files go.
        jsonl: write an event for each move, in the place of the files.

    Attributes:
        counts: as the journal last said.
        troubles: the first jobs that went wrong in this run.
        lost: how many jobs were not submitted, for the results name tasks of theirs that the journal does not know.
    """

    def __init__(self, output: Output, out: Path, *, jsonl: bool) -> None:
        self.counts = Counts()
        self.troubles: list[dict[str, Any]] = []
        self.lost = 0
        self._output = output
        self._out = out
        self._jsonl = jsonl
        self._sent: deque[float] = deque(maxlen=_QUOTA)
        self._lengths = (0.0, 0)
        self._began: tuple[float, int] | None = None

    # ------------------------------------------------------------ what is told

    def tell(self, event: events.Event) -> None:
        """Take an event of the session: of many tasks at once only what is odd is worth a line."""
        if isinstance(event, (events.Retrying, events.Notice)):
            self._output.tell(event)
            return
        events.log_event(event)
        self._output.unknown += isinstance(event, events.SubmissionUnknown)
        if isinstance(event, events.Submitted):
            self._output.submitted = True
            self._sent.append(time.monotonic())
        elif isinstance(event, events.Finished):
            self._lengths = self._lengths[0] + event.seconds, self._lengths[1] + 1

    def moved(self, job: Job) -> None:
        """Take a job that has moved, or could not."""
        if self._jsonl:
            self._output.out(json.dumps(job_value(job)))
        elif job.state is State.DELIVERED:
            for name in job.files:
                self._output.out(str(self._out / name))
        if job.state in _BAD or job.error is not None:
            self._output.say(job_line(job))
            self.lost += job.error is not None and job.error.type == LostRecordError.__name__
            if len(self.troubles) < MAX_TROUBLES:
                self.troubles.append(job_value(job))

    # ------------------------------------------------------------ what is shown

    @asynccontextmanager
    async def following(self, journal: Journal, batch: str | None = None) -> AsyncIterator[None]:
        """Show how a batch, or all of a journal, stands for as long as the block lasts, and sum up at its end."""
        watcher = asyncio.create_task(self._watch(journal, batch))
        try:
            yield
        finally:
            watcher.cancel()
            with anyio.move_on_after(_PATIENCE, shield=True):
                await asyncio.gather(watcher, return_exceptions=True)
                await self._sum_up(journal, batch)

    async def _watch(self, journal: Journal, batch: str | None) -> None:
        while True:
            began = time.monotonic()
            with suppress(StorageError):  # whoever works says so
                await self._look(journal, batch)
            if self.counts.total:
                self._output.show(self.render(), self.line())
            await anyio.sleep(max(_EVERY, (time.monotonic() - began) * _SHARE))

    async def _look(self, journal: Journal, batch: str | None) -> None:
        self.counts = Counts.of(await journal.counts(batch))
        if self._began is None:
            self._began = time.monotonic(), self.counts.waiting

    async def _sum_up(self, journal: Journal, batch: str | None) -> None:
        with suppress(StorageError):  # likewise
            await self._look(journal, batch)
            if batch is not None:
                self._output.facts["credits"] = await journal.spent(batch)
        self._output.facts |= {"out": str(self._out), "counts": attrs.asdict(self.counts), "troubles": self.troubles}
        self._output.say(f"{self.counts} of {self.counts.total} jobs")

    def line(self) -> str:
        """How it stands, in a line."""
        ends = self._ends()
        return f"{self.counts}; quota {self._in_use()} of {_QUOTA}" + (f"; ends in {ends}" if ends else "")

    def render(self) -> Table:
        """How it stands, as a table."""
        table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0))
        for name in (*attrs.asdict(self.counts), "quota", "ends in"):
            if name != "abandoned":
                table.add_column(name)
        *numbers, _ = attrs.astuple(self.counts)
        table.add_row(*map(str, numbers), f"{self._in_use()} of {_QUOTA}", self._ends())
        return table

    def _in_use(self) -> int:
        since = time.monotonic() - _WINDOW
        return sum(moment > since for moment in self._sent)

    def _ends(self) -> str:
        now = time.monotonic()
        began, left = self._began or (now, 0)
        seconds = expected(
            self.counts,
            gone=left - self.counts.waiting,
            elapsed=now - began,
            length=self._lengths[0] / self._lengths[1] if self._lengths[1] else _LENGTH,
            age=now - (self._sent[-1] if self._sent else began),
        )
        return _duration(seconds) if seconds else ""


def expected(counts: Counts, *, gone: int, elapsed: float, length: float, age: float) -> float:
    """Seconds until the last task has ended; 0.0 when that cannot be told, as when only files are to be fetched.

    Args:
        counts: how it stands.
        gone: jobs that have left those that wait since the beginning.
        elapsed: seconds since then.
        length: seconds a task takes.
        age: seconds since the last submission.
    """
    if counts.waiting:
        rate = gone / elapsed if gone >= _QUOTA and elapsed else _QUOTA / _WINDOW
        return counts.waiting / rate + length
    return max(length - age, 0.0) if counts.submitted else 0.0


def _duration(seconds: float) -> str:
    minutes = int(seconds) // 60
    if not minutes:
        return f"{max(seconds, 1):.0f} s"
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h"  # noqa: PLR2004  # two hours


def job_value(job: Job) -> dict[str, Any]:
    """A job as JSON; no token, no signed address."""
    return {
        "key": job.key,
        "song": song_of(job.request),
        "state": job.state.value,
        "attempt": job.attempt,
        "task_id": job.task_id,
        "files": list(job.files),
        "credits": job.credits,
        "error": attrs.asdict(job.error) | {"message": clean(job.error.message)} if job.error else None,
    }


def job_line(job: Job) -> str:
    """A job in a line."""
    song = song_of(job.request) or ""
    parts = (
        job.key,
        job.state.value,
        song if song != job.key else "",
        job.task_id or "",
        clean(job.error.message) if job.error else "",
    )
    return "  ".join(part for part in parts if part)
