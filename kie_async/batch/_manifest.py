"""A list of jobs in a file, or a folder of songs: all its faults at once, before anything is spent.

It is read twice: first to find what is wrong, then to give the jobs.
"""

from __future__ import annotations

import stat
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Iterator, Mapping, Sequence
from contextlib import aclosing, closing
from itertools import islice
from os import PathLike
from pathlib import Path

import attrs

from kie_async.batch._census import Census, Entry, Plan, faulty
from kie_async.batch._fields import Draft, Row, content_key, draft, read_defaults, request_of
from kie_async.batch._rows import read_file, read_folder
from kie_async.batch._sources import Sources
from kie_async.errors import Fault, ManifestError, Problem
from kie_async.events import clean
from kie_async.files._disk import on_disk
from kie_async.files._kinds import NAMES
from kie_async.journal import Job, Source

_AT_ONCE = 256  # rows


@attrs.frozen
class _Look:
    """A manifest as it was at one moment; of a folder it says nothing, for that is listed once."""

    is_folder: bool
    size: int = 0
    modified: int = 0
    inode: int = 0


class Manifest:
    """The jobs of a manifest, for ``run_batch``: ``async for job in manifest`` gives them.

    Nothing is read before it is asked for. ``len`` counts the rows; before ``check`` that reads the file.
    """

    def __init__(self, path: Path, defaults: Mapping[str, object], pattern: str | None) -> None:
        self.path = path
        self._defaults = defaults
        self._pattern = pattern
        self._common: Mapping[str, object] = {}
        self._sources = Sources()
        self._look: _Look | None = None
        self._folder = ""
        self._listing: Sequence[Row] = ()
        self._plan: Plan | None = None
        self._doubled: frozenset[int] = frozenset()

    def __repr__(self) -> str:
        return f"Manifest({str(self.path)!r})"

    def __len__(self) -> int:
        if self._plan is not None:
            return self._plan.total
        rows = read_folder(self.path, self._pattern) if self._seen().is_folder else read_file(self.path)
        with closing(rows):
            return sum(row.is_job for row in rows)

    async def check(self) -> Plan:
        """Read all of it and look at every source: hash it, measure it.

        Returns:
            What it asks for, and what that will cost.

        Raises:
            ManifestError: with the faults of all lines.
            StorageError: it cannot be read.
        """
        self._plan, self._sources.settled = None, False
        census = Census()
        self._common, faults = read_defaults(self._defaults)
        for fault in faults:
            census.blame(fault)
        await on_disk(self._open)
        async with aclosing(self._entries()) as entries:
            async for entry in entries:
                census.take(entry)
        is_folder = self._look is not None and self._look.is_folder
        census.close("defaults" if is_folder else "every row")
        plan = census.plan()
        if not plan.total and not census.faults:
            census.blame(self._nothing(is_folder=is_folder))
        if census.faults:
            raise faulty(census.faults, census.fault_count)
        self._doubled = census.contents.doubled()
        self._plan, self._sources.settled = plan, True
        return plan

    async def __aiter__(self) -> AsyncIterator[Job]:
        if self._plan is None or await on_disk(self._seen) != self._look:
            await self.check()
        numbers: Counter[str] = Counter()
        async with aclosing(self._entries()) as entries:
            async for entry in entries:
                yield self._numbered(entry, numbers)

    def _numbered(self, entry: Entry, numbers: Counter[str]) -> Job:
        """The job of an entry; one that asks for the same as an earlier one gets a number."""
        job = entry.job
        if job is None:
            raise faulty(entry.faults, len(entry.faults))
        if entry.has_id or hash(job.key) not in self._doubled:
            return job
        numbers[job.key] += 1
        number = numbers[job.key]
        return job if number == 1 else attrs.evolve(job, key=f"{job.key}-{number}")

    # ------------------------------------------------------------ reading

    def _seen(self) -> _Look:
        """See what is there; blocks."""
        try:
            about = self.path.stat()
        except (FileNotFoundError, NotADirectoryError, ValueError):
            raise self._lone("does not exist", "give the path of a CSV or JSONL file, or of a folder") from None
        if stat.S_ISDIR(about.st_mode):
            return _Look(is_folder=True)
        if not stat.S_ISREG(about.st_mode):
            raise self._lone("is no plain file", "it is read twice: write it to a file first")
        return _Look(is_folder=False, size=about.st_size, modified=about.st_mtime_ns, inode=about.st_ino)

    def _open(self) -> None:
        self._look = self._seen()
        path = self.path.absolute()
        self._folder = str(path if self._look.is_folder else path.parent)
        self._listing = tuple(read_folder(self.path, self._pattern)) if self._look.is_folder else ()

    async def _entries(self) -> AsyncGenerator[Entry, None]:
        is_folder = self._look is not None and self._look.is_folder
        rows = (row for row in self._listing) if is_folder else read_file(self.path)
        try:
            while drafts := await on_disk(self._drafts, rows):
                await self._sources.learn((row.path, row.needs_length) for row in drafts if row.path is not None)
                for entry in await on_disk(self._finished, drafts):
                    yield entry
        finally:
            await on_disk(rows.close)

    def _drafts(self, rows: Iterator[Row]) -> list[Draft]:
        if self._seen() != self._look:
            raise self._lone("changed while it was read", "wait until it is finished, then try again")
        return [draft(row, common=self._common, folder=self._folder) for row in islice(rows, _AT_ONCE)]

    def _finished(self, drafts: Iterable[Draft]) -> list[Entry]:
        return [self._entry(row) for row in drafts]

    def _entry(self, row: Draft) -> Entry:
        source = self._source(row)
        request = request_of(row, source.duration if source else None) if row.is_readable else None
        if request is None or row.faults:
            return Entry(row.line, faults=row.faults, given=row.given if row.is_readable else None)
        job = Job(key=row.id or content_key(row, source), request=request, source=source)
        return Entry(row.line, job, has_id=row.id is not None)

    def _source(self, row: Draft) -> Source | None:
        """The row's local source, if it has one that can be used."""
        if row.path is None:
            return None
        facts = self._sources[row.path, row.needs_length]
        if facts.look is None or facts.problem:
            row.blame(Problem("source", facts.problem, facts.remedy))
            return None
        return Source(path=row.path, size=facts.look.size, sha256=facts.sha256, duration=facts.duration)

    # ------------------------------------------------------------ faults

    def _lone(self, problem: str, remedy: str) -> ManifestError:
        """The error that says one thing about the manifest as a whole."""
        return faulty([self._odd(problem, remedy)], 1)

    def _nothing(self, *, is_folder: bool) -> Fault:
        if not is_folder:
            return self._odd("holds no jobs", "write a row for each")
        if self._pattern is not None:
            return self._odd(f"holds no file that {self._pattern!r} fits", "give a pattern like '*.mp3' or '**/*.wav'")
        return self._odd("holds no songs", f"put some into it ({NAMES}), or give another folder")

    def _odd(self, problem: str, remedy: str) -> Fault:
        return Fault(0, "", problem, remedy, clean(self.path.name or str(self.path)))


def read_manifest(
    path: str | PathLike[str], *, defaults: Mapping[str, object] | None = None, pattern: str | None = None
) -> Manifest:
    """Take a file or a folder as a list of jobs.

    CSV (its first line names the columns; delimited by comma, semicolon or tab) and JSONL have a row for each job. Its
    columns are the fields of ``ExtendRequest`` and ``UploadExtendRequest``, and: ``id``, the key of the job, by which
    it is never paid twice, however it is edited (without one, an edited row is a new job); ``operation``, which
    follows from ``audio_id`` or ``source`` if left out. ``source`` is a URL or a path, relative to the manifest;
    ``continue_at`` may also be 1:05, a share (75%) or count from the end (-10s). What is empty counts as absent.

    Args:
        path: a CSV or JSONL file in UTF-8; or a folder, each of whose songs is a job with the fields of ``defaults``.
        defaults: fields for rows that lack them.
        pattern: which files of a folder, such as ``"**/*.wav"``; by default all with a suffix of audio.

    Returns:
        What ``run_batch`` takes. Nothing is read yet: ``check`` and ``async for`` do that.
    """
    return Manifest(Path(path), dict(defaults or {}), pattern)
