"""Progress of a batch: a table on a terminal, a line now and then elsewhere, an event for each transition of a job."""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter, deque
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

import anyio
import attrs
from rich.table import Table

from kie_async import events
from kie_async._text import count_of
from kie_async.batch import count_verdicts, song_of, tracks_expiry, upload_expiry
from kie_async.cli._output import Output
from kie_async.errors import LostRecordError, StorageError
from kie_async.events import clean
from kie_async.journal import ANY_BATCH, BatchFilter, Job, Journal, State
from kie_async.settings import Settings

MAX_TROUBLES = 100  # kept for the summary
_QUOTA = int(attrs.fields_dict(Settings)["quota"].default or 0)
_WINDOW = float(attrs.fields_dict(Settings)["quota_window"].default or 0)
_TASK_SECONDS = 120.0  # before the first has ended; the service takes 1 to 3 minutes
_INTERVAL = 0.5  # seconds between two reads of the journal; more where a read takes long
_READ_SHARE = 20  # of the time, at most one part in so many goes into reads
_LAST_READ = 5.0  # seconds that the last read may take
_STATES = {
    "waiting": (State.PLANNED, State.INTENT),
    "submitted": (State.SUBMITTED,),
    "made": (State.SUCCEEDED,),
    "done": (State.DELIVERED,),
    "failed": (State.FAILED, State.REJECTED),
    "unknown": (State.UNKNOWN,),
    "abandoned": (State.ABANDONED,),
}
_BAD = frozenset({State.FAILED, State.REJECTED, State.UNKNOWN})


@attrs.frozen(kw_only=True)
class Counts:
    """How many jobs are in which state; the tracks of those that are ``made`` are still to be downloaded."""

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
        return cls(**{name: sum(counts.get(state, 0) for state in states) for name, states in _STATES.items()})

    @property
    def open(self) -> int:
        """Those that have not come to an end."""
        return self.waiting + self.submitted + self.made

    @property
    def total(self) -> int:
        """All of them."""
        return sum(attrs.astuple(self))

    def __str__(self) -> str:
        numbers = attrs.asdict(self).items()
        return ", ".join(f"{number} {name}" for name, number in numbers if number or name in {"done", "failed"})

    @property
    def summary(self) -> str:
        """All of them in a line."""
        return f"{self} of {count_of(self.total, 'job')}"


@attrs.define
class Estimate:
    """When the last task of a batch ends, estimated from what was seen; ``now`` is a time in seconds."""

    _began: tuple[float, int] | None = None  # when, and how many jobs were waiting then
    _sent: deque[float] = attrs.field(factory=lambda: deque(maxlen=_QUOTA))
    _ended: tuple[float, int] = (0.0, 0)  # seconds that tasks took, and how many they were

    def begin(self, counts: Counts, now: float) -> None:
        """Take how many jobs wait at the beginning."""
        self._began = self._began or (now, counts.waiting)

    def submitted(self, now: float) -> None:
        """Take a submission."""
        self._sent.append(now)

    def ended(self, seconds: float) -> None:
        """Take a task that has ended after so many seconds."""
        self._ended = self._ended[0] + seconds, self._ended[1] + 1

    def quota_used(self, now: float) -> int:
        """How much of the quota is in use."""
        return sum(at > now - _WINDOW for at in self._sent)

    def seconds_left(self, counts: Counts, now: float) -> float:
        """Seconds until the last task has ended; 0.0 if that is not known, as when only downloads are left."""
        began, waiting = self._began or (now, 0)
        task_seconds = self._ended[0] / self._ended[1] if self._ended[1] else _TASK_SECONDS
        if counts.waiting:
            gone, elapsed = waiting - counts.waiting, now - began
            rate = gone / elapsed if gone >= _QUOTA and elapsed else _QUOTA / _WINDOW
            return counts.waiting / rate + task_seconds
        age = now - (self._sent[-1] if self._sent else began)
        return max(task_seconds - age, 0.0) if counts.submitted else 0.0


class BatchProgress:
    """Shows the progress of a batch.

    Args:
        output: of the command.
        out: where the files go.
        jsonl: write an event for each transition, in the place of the files.

    Attributes:
        counts: as the journal last had them.
        troubles: the first jobs that went wrong in this run.
        lost: how many jobs were not submitted, because the results name tasks of theirs that the journal does not know.
    """

    def __init__(self, output: Output, out: Path, *, jsonl: bool) -> None:
        self.counts = Counts()
        self.troubles: list[dict[str, Any]] = []
        self.lost = 0
        self._output = output
        self._out = out
        self._jsonl = jsonl
        self._estimate = Estimate()
        self._verdicts: Counter[str] = Counter()
        self._blocked = ""

    # ------------------------------------------------------------ what happens

    def emit(self, event: events.Event) -> None:
        """Take an event of the session: of many tasks at once, only retries and notices are worth a line."""
        if isinstance(event, (events.Retrying, events.Notice)):
            self._output.emit(event)
            return
        self._output.count(event)
        if isinstance(event, events.Submitted):
            self._estimate.submitted(time.monotonic())
        elif isinstance(event, events.Finished):
            self._estimate.ended(event.seconds)

    def job_changed(self, job: Job) -> None:
        """Take a job after a transition, or after an attempt at one that failed."""
        if self._jsonl:
            self._output.print(json.dumps(job_value(job)))
        elif job.state is State.DELIVERED:
            print_files(self._output, self._out, job)
        if job.state is State.DELIVERED:
            self._verdicts += count_verdicts(self._out / name for name in job.files)
        if job.state in _BAD or job.error is not None:
            self._output.say(job_line(job))
            self.lost += job.error is not None and job.error.type == LostRecordError.__name__
            if len(self.troubles) < MAX_TROUBLES:
                self.troubles.append(job_value(job))

    # ------------------------------------------------------------ what is shown

    @asynccontextmanager
    async def shown(self, journal: Journal, batch: BatchFilter = ANY_BATCH) -> AsyncIterator[None]:
        """Show the progress of a batch, or of all in a journal, while the block lasts, and sum up at its end."""
        watcher = asyncio.create_task(self._watch(journal, batch))
        try:
            yield
            watcher.cancel()
            await self._read(journal, batch)  # what was reached decides how the command ends: no limit, no hidden error
            if self._output.display.is_animated:
                self._show(time.monotonic())  # also of a batch that was faster than the reads
        finally:
            watcher.cancel()
            with anyio.move_on_after(_LAST_READ, shield=True):
                await asyncio.gather(watcher, return_exceptions=True)
                await self._sum_up(journal, batch)

    async def _watch(self, journal: Journal, batch: BatchFilter) -> None:
        while True:
            began = time.monotonic()
            with suppress(StorageError):  # the batch reports it
                await self._read(journal, batch)
                self._blocked = await blocked_jobs(journal, batch)
            if self.counts.total:
                self._show(time.monotonic())
            await anyio.sleep(max(_INTERVAL, (time.monotonic() - began) * _READ_SHARE))

    async def _read(self, journal: Journal, batch: BatchFilter) -> None:
        self.counts = Counts.of(await journal.counts(batch))
        self._estimate.begin(self.counts, time.monotonic())

    async def _sum_up(self, journal: Journal, batch: BatchFilter) -> None:
        waiting: Mapping[str, int] = {}
        with suppress(StorageError):  # the batch reports it
            await self._read(journal, batch)
            waiting = await journal.machines.waiting(batch)
            if isinstance(batch, str):
                self._output.value["credits"] = await journal.spent(batch)
        self._output.value |= {"out": self._out, "counts": attrs.asdict(self.counts), "troubles": self.troubles}
        self._output.say(self.counts.summary)
        if self._verdicts:
            self._output.value["verdicts"] = dict(self._verdicts)
            self._output.say(verdicts_line(self._verdicts))
        say_who_waits(self._output, waiting)

    def _show(self, now: float) -> None:
        quota = f"{self._estimate.quota_used(now)} of {_QUOTA}"
        seconds = 0.0 if self._blocked else self._estimate.seconds_left(self.counts, now)
        line = progress_line(self.counts, quota, seconds) + self._blocked
        self._output.display.show(progress_table(self.counts, quota, seconds), line)


def progress_line(counts: Counts, quota: str, seconds: float) -> str:
    """The progress of a batch in a line, with the quota only while jobs wait for it."""
    used = f"; {quota} submissions allowed in {_WINDOW:g} s are used" if counts.waiting else ""
    return f"{counts}{used}" + (f"; ends in {_duration(seconds)}" if seconds else "")


def progress_table(counts: Counts, quota: str, seconds: float) -> Table:
    """The progress of a batch as a table."""
    table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0))
    cells = {name: str(number) for name, number in attrs.asdict(counts).items() if name != "abandoned"}
    cells |= {"quota": quota, "ends in": _duration(seconds) if seconds else ""}
    for name in cells:
        table.add_column(name)
    table.add_row(*cells.values())
    return table


def verdicts_line(verdicts: Mapping[str, int]) -> str:
    """What the tracks of this run hold, in a line; those of earlier runs are not compared again."""
    words = {"whole": "hold the whole song", "continuation": "the continuation alone", "unclear": "cannot be told"}
    found = [f"{verdicts[kind]} {what}" for kind, what in words.items() if kind in verdicts]
    return f"by their sound, of {count_of(sum(verdicts.values()), 'track')} of this run: {', '.join(found)}"


async def blocked_jobs(journal: Journal, batch: BatchFilter) -> str:
    """Say, for the end of a line, how many jobs no worker can take now: for want of a machine, or of room in a cap."""
    waiting, present = await journal.machines.waiting(batch), await journal.machines.present()
    parts = [
        f"; {number} wait{'s' if number == 1 else ''} for a worker on the machine {clean(machine)}"
        for machine, number in waiting.items()
        if machine not in present
    ]
    full = await journal.caps.full()
    is_full = batch in full if isinstance(batch, str) else full
    return "".join([*parts, "; a cap on credits leaves no room" if is_full else ""])


def say_who_waits(output: Output, waiting: Mapping[str, int]) -> None:
    """Say how many jobs wait for which machine."""
    if waiting:
        output.value["waiting_for"] = dict(waiting)
    for machine, number in waiting.items():
        jobs = f"{count_of(number, 'job')} {'waits' if number == 1 else 'wait'}"
        output.say(f"{jobs} for a worker on the machine {clean(machine)}, which has the songs")


def _duration(seconds: float) -> str:
    minutes = int(seconds) // 60
    if not minutes:
        return f"{max(seconds, 1):.0f} s"
    hours = minutes // 60
    return f"{hours} h" if hours > 1 else f"{minutes} min"


# ---------------------------------------------------------------- one job


def print_files(output: Output, out: Path, job: Job) -> bool:
    """Write the paths of a delivered job's files; if another process put them elsewhere, say so and return False."""
    paths = [out / name for name in job.files]
    if not all(path.exists() for path in paths):
        where = f", but in {clean(job.directory)}" if job.directory else ""
        output.say(f"{job.key}  delivered by another process: its files are not in {out}{where}")
        return False
    for path in paths:
        output.print(str(path))
    return True


def job_value(job: Job, song: str | None = None) -> dict[str, Any]:
    """A job as JSON; without its token and without signed URLs. ``song``: its song, where its request does not tell."""
    return {
        "key": job.key,
        "song": song_of(job.request) or song,
        "state": job.state.value,
        "attempt": job.attempt,
        "waits_for": job.waits_for or None,
        "task_id": job.task_id,
        "files": list(job.files),
        "directory": job.directory or None,
        "credits": job.credits,
        **_expiries(job),
        "error": attrs.asdict(job.error) | {"message": clean(job.error.message)} if job.error else None,
    }


def job_line(job: Job, song: str | None = None) -> str:
    """A job in a line; ``song``: its song, where its request does not tell."""
    song = song_of(job.request) or song or ""
    parts = (
        job.key,
        job.state.value,
        song if song != job.key else "",
        job.task_id or "",
        f"waits for {clean(job.waits_for)}" if job.waits_for else "",
        *_deletions(job, time.time()),
        f"in {clean(job.directory)}" if job.directory else "",
        clean(job.error.message) if job.error else "",
    )
    return "  ".join(part for part in parts if part)


def _expiries(job: Job) -> dict[str, Any]:
    """When the service deletes what it keeps for a job, as JSON."""
    tracks, upload = tracks_expiry(job), upload_expiry(job)
    return {
        "tracks_expire_at": tracks and timestamp(tracks.at),
        "tracks_expire_about": tracks and tracks.is_estimate,
        "upload_expires_at": upload and timestamp(upload.at),
    }


def _deletions(job: Job, now: float) -> Iterator[str]:
    """When the service deletes what it keeps for a job, in words."""
    for what, expiry in (("tracks", tracks_expiry(job)), ("upload", upload_expiry(job))):
        if expiry is not None:
            about = "about " if expiry.is_estimate else ""
            verb = "kept until" if expiry.at > now else "deleted"
            yield f"{what} {verb} {about}{datetime.fromtimestamp(expiry.at, UTC):%Y-%m-%d %H:%M} UTC"


def timestamp(at: float) -> str:
    """A time, in unix seconds, as text."""
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="seconds")
