"""Read the jobs of a batch from a file or a folder of songs; report all faults at once, before anything is spent.

A manifest is read twice, first to check it, then to yield its jobs. Of each row 16 bytes are kept in memory.
"""

from __future__ import annotations

import stat
from array import array
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Generator, Iterator, Mapping, Sequence
from contextlib import aclosing
from functools import cache
from itertools import islice, pairwise
from os import PathLike
from pathlib import Path
from typing import TypeAlias

import attrs

from kie_async._protocol.request_rules import CREDITS_PER_TASK
from kie_async.batch._manifest_rows import Row, parse_defaults, parse_row, read_file, unreadable
from kie_async.batch._results import SIDECAR
from kie_async.errors import AudioError, ManifestError, Problem, RowProblem, StorageError
from kie_async.events import clean
from kie_async.files import (
    AUDIO_KIND_NAMES,
    AUDIO_KINDS,
    FileStat,
    check_source,
    describe_cut_off,
    hash_source,
    on_disk,
)
from kie_async.journal import Job, Source

_AUDIO = frozenset(kind.suffix for kind in AUDIO_KINDS) | {".aif", ".mp4", ".oga", ".opus", ".wave"}
_ROWS_AT_ONCE = 256
_MAX_FAULTS = 100  # kept of one manifest
_MAX_SHOWN = 3  # faults in an error's message
_TRACKS = "extend each by its id (track.id there): kie-async extend ID --model MODEL, or a CSV with audio_id and model"

_Entry: TypeAlias = tuple[Row, Job | Sequence[RowProblem]]
_FileVersion: TypeAlias = tuple[int, int, int]  # size, time of the last change, inode


def manifest_error(faults: Sequence[RowProblem], count: int, what: str = "the manifest") -> ManifestError:
    """Make the error that holds the faults of a list of jobs; its message shows the first of them."""
    shown = "; ".join(map(str, faults[:_MAX_SHOWN])) + (
        f"; and {count - _MAX_SHOWN} more" if count > _MAX_SHOWN else ""
    )
    message = f"{what} has {count} fault{'s' if count > 1 else ''}, and nothing was sent: {shown}"
    return ManifestError(message, faults=tuple(faults[:_MAX_FAULTS]), count=count)


@attrs.frozen(kw_only=True)
class ManifestSummary:
    """The jobs of a manifest without faults, in numbers.

    Attributes:
        total: the number of jobs.
        counts: the number of jobs by operation and model.
        duplicates: how many jobs ask for the same as an earlier one; each is nevertheless made and paid.
        credits: what all jobs cost, at 12 credits each.
        cut_off: a sentence on each source that seems to have lost its end; it can be extended all the same.
    """

    total: int
    counts: Mapping[tuple[str, str], int]
    duplicates: int
    credits: float
    cut_off: Sequence[str] = ()


class Manifest:
    """The jobs of a manifest, for ``run_batch``; ``async for job in manifest`` yields them, and reads as it goes.

    Iterating raises what ``check`` raises.
    """

    def __init__(self, path: Path, defaults: Mapping[str, object], pattern: str | None) -> None:
        self.path = path
        self._defaults = defaults
        self._pattern = pattern
        self._sources = _SourceCache()
        self._contents = _Contents()
        self._summary: ManifestSummary | None = None
        self._duplicates: frozenset[int] = frozenset()  # hashes of keys

    def __repr__(self) -> str:
        return f"Manifest({str(self.path)!r})"

    async def check(self) -> ManifestSummary:
        """Read the whole manifest, and hash and measure every source.

        Returns:
            The number of its jobs, and what they cost.

        Raises:
            ManifestError: it has faults; ``faults`` names the line and the field of each.
            StorageError: it cannot be read.
        """
        self._summary, self._sources.is_checked = None, False
        counter = _EntryCounter()
        self._contents = contents = await on_disk(self._open, counter)
        async with aclosing(self._entries()) as entries:
            async for row, result in entries:
                counter.add(row, result)
        summary = counter.finish("defaults" if contents.is_folder else "every row")
        if not summary.total and not counter.faults:
            counter.add_error(await on_disk(self._empty_error))
        if counter.faults:
            raise manifest_error(counter.faults, counter.fault_count)
        self._duplicates = counter.content_keys.duplicates()
        self._summary = summary = attrs.evolve(summary, cut_off=self._sources.cut_off())
        self._sources.is_checked = True
        return summary

    async def __aiter__(self) -> AsyncIterator[Job]:
        if self._summary is None or await on_disk(self._find_version) != self._contents.version:
            await self.check()
        numbers: Counter[str] = Counter()
        async with aclosing(self._entries()) as entries:
            async for row, job in entries:
                if not isinstance(job, Job):
                    raise manifest_error(job, len(job))
                yield job if "id" in row.cells else self._number(job, numbers)

    def _number(self, job: Job, numbers: Counter[str]) -> Job:
        """Give a job that asks for the same as an earlier one a key of its own."""
        if hash(job.key) not in self._duplicates:
            return job
        numbers[job.key] += 1
        number = numbers[job.key]
        return job if number == 1 else attrs.evolve(job, key=f"{job.key}-{number}")

    # ------------------------------------------------------------ reading; blocks, but for _entries

    def _find_version(self) -> _FileVersion | None:
        """Return what changes when the file is edited; None for a folder."""
        try:
            status = self.path.stat()
        except (FileNotFoundError, NotADirectoryError, ValueError):  # ValueError: a NUL in the path
            raise self._error("does not exist", "give the path of a CSV or JSONL file, or of a folder") from None
        if stat.S_ISDIR(status.st_mode):
            return None
        if not stat.S_ISREG(status.st_mode):
            raise self._error("is no plain file", "it is read twice: write it to a file first")
        return status.st_size, status.st_mtime_ns, status.st_ino

    def _open(self, counter: _EntryCounter) -> _Contents:
        defaults, faults = parse_defaults(self._defaults)
        for fault in faults:
            counter.add_error(fault)
        version, path = self._find_version(), self.path.absolute()
        if version is None:
            return _Contents(defaults, str(path), None, tuple(_read_folder(self.path, self._pattern)))
        return _Contents(defaults, str(path.parent), version)

    async def _entries(self) -> AsyncGenerator[_Entry, None]:
        contents = self._contents
        rows = (row for row in contents.listing) if contents.is_folder else read_file(self.path)
        try:
            while entries := await on_disk(self._parse_some, contents, rows):
                for entry in entries:
                    yield entry
        finally:
            await on_disk(rows.close)

    def _parse_some(self, contents: _Contents, rows: Iterator[Row]) -> list[_Entry]:
        """Parse the next rows; not beyond one whose source is read, so that cancelling waits for one source at most."""
        if self._find_version() != contents.version:
            raise self._error("changed while it was read", "wait until it is finished, then try again")
        find_source = cache(self._sources.find)  # once for all rows that share a source
        sources_read = self._sources.read_count
        entries = []
        for row in islice(rows, _ROWS_AT_ONCE):
            entries.append((row, parse_row(row, contents.defaults, contents.folder, find_source)))
            if self._sources.read_count != sources_read:
                break
        return entries

    # ------------------------------------------------------------ errors of the manifest as a whole

    def _error(self, problem: str, remedy: str) -> ManifestError:
        return manifest_error([self._fault(problem, remedy)], 1)

    def _fault(self, problem: str, remedy: str) -> RowProblem:
        return RowProblem(0, "", problem, remedy, clean(self.path.name or str(self.path)))

    def _empty_error(self) -> RowProblem:
        if not self._contents.is_folder:
            return self._fault("holds no jobs", "write a row for each")
        if self._pattern is not None:
            remedy = "give a pattern like '*.mp3' or '**/*.wav'"
            return self._fault(f"holds no file that {self._pattern!r} fits", remedy)
        if any(self.path.glob(f"*{SIDECAR}")):
            return self._fault(f"holds tracks of the service (each with its NAME{SIDECAR}), and no songs", _TRACKS)
        return self._fault("holds no songs", f"put some into it ({AUDIO_KIND_NAMES}), or give another folder")


def read_manifest(
    path: str | PathLike[str], *, defaults: Mapping[str, object] | None = None, pattern: str | None = None
) -> Manifest:
    """Describe the jobs of a file or a folder, for ``run_batch``.

    A CSV file (its first line names the columns; delimited by comma, semicolon or tab) or a JSONL file has a row for
    each job. The columns are the fields of ``ExtendRequest`` and ``UploadExtendRequest``, and two more: ``id`` is the
    key of the job, which is never paid twice even if the row is edited (without it, an edited row is a new job);
    ``operation`` may be left out, as it follows from ``audio_id`` or ``source``. ``source`` is a URL, or a path
    relative to the manifest; ``continue_at`` may also be 1:05, a share (75%) or a time before the end (-10s). Empty
    cells count as absent.

    Args:
        path: a CSV or JSONL file in UTF-8; or a folder, of which each song is a job with the fields of ``defaults``.
        defaults: fields for rows that lack them.
        pattern: which files of a folder, such as ``"**/*.wav"``; by default all with an audio suffix.

    Returns:
        The manifest. Nothing is read yet: ``check`` and ``async for`` do that.
    """
    return Manifest(Path(path), dict(defaults or {}), pattern)


def _read_folder(folder: Path, pattern: str | None) -> Generator[Row, None, None]:
    """List the files of a folder that match a pattern; by default those with an audio suffix.

    Skips hidden files, because some systems store metadata of each file under such a name, and skips results, which
    have a sidecar: a batch that writes into its own folder must not pay for extending its own tracks.
    """
    try:
        found = sorted(folder.glob("*" if pattern is None else pattern))
    except (ValueError, NotImplementedError, IndexError):
        yield unreadable(0, f"{pattern!r} is no pattern", "give one like '*.mp3' or '**/*.wav'", location="pattern")
        return
    names = (path for path in found if pattern is not None or path.suffix.lower() in _AUDIO)
    files = (path for path in names if not path.name.startswith(".") and path.is_file())
    songs = (path for path in files if not path.with_name(f"{path.stem}{SIDECAR}").exists())
    for number, path in enumerate(songs, start=1):
        name = path.relative_to(folder).as_posix()
        yield Row(number, {"source": name}, location=clean(name))


@attrs.frozen
class _Contents:
    """What a manifest held when it was opened.

    Attributes:
        defaults: the fields that all rows share, parsed.
        folder: to which local sources are relative, an absolute path.
        version: of the file; None for a folder.
        listing: the rows of a folder, which is listed once.
    """

    defaults: Mapping[str, object] = attrs.field(factory=dict)
    folder: str = ""
    version: _FileVersion | None = None
    listing: Sequence[Row] = ()

    @property
    def is_folder(self) -> bool:
        return self.version is None


# ---------------------------------------------------------------- local sources


class _SourceCache:
    """Hashes and measures local sources, each once; blocks.

    Attributes:
        is_checked: the manifest was checked and its price may have been agreed to: a source that changes is an error.
        read_count: how many sources were read.
    """

    def __init__(self) -> None:
        self.is_checked = False
        self.read_count = 0
        # By path, and whether the length is needed: what tells whether it has changed, and what was found.
        self._sources: dict[tuple[str, bool], tuple[FileStat | None, Source | Problem]] = {}
        self._notices: dict[Path, str] = {}  # empty for a source that is whole

    def cut_off(self) -> tuple[str, ...]:
        """Say of each source that seems to have lost its end."""
        return tuple(notice for notice in self._notices.values() if notice)

    def find(self, path: str, *, needs_length: bool) -> Source | Problem:
        """Return a source, or the problem with it; read it unless it is known and unchanged."""
        known = self._sources.get((path, needs_length))
        stat, found = self._read(Path(path), known, measured=needs_length)
        if self.is_checked and known is not None and stat != known[0]:
            stat, found = None, Problem("source", "changed since the manifest was checked", "check it again")
        self._sources[path, needs_length] = stat, found
        return found

    def _read(
        self, path: Path, known: tuple[FileStat | None, Source | Problem] | None, *, measured: bool
    ) -> tuple[FileStat | None, Source | Problem]:
        stat = None
        try:
            _, stat = check_source(path)
            if known is not None and known[0] == stat:
                return known
            self.read_count += 1
            return stat, self._read_source(path, stat, measured=measured)
        except AudioError as error:
            problem, _, remedy = error.message.rpartition(": ")
            return stat, Problem("source", problem, remedy)
        except (StorageError, OSError):
            return None, Problem("source", f"{clean(path.name)} cannot be read", "give access to it")

    def _read_source(self, path: Path, before: FileStat, *, measured: bool) -> Source:
        sha256, duration = hash_source(path, measured=measured)
        self._notices[path] = describe_cut_off(path, duration)
        if check_source(path)[1] != before:
            raise AudioError(f"{clean(path.name)} changed while it was read: wait until it is finished")
        return Source(path=str(path), size=before.size, sha256=sha256, duration=duration)


# ---------------------------------------------------------------- counting


@attrs.frozen
class _KeyLines:
    """Keys and their lines, in 16 bytes each. A key is known by its hash, of 64 bits."""

    _hashes: array[int] = attrs.field(factory=lambda: array("q"), init=False)
    _lines: array[int] = attrs.field(factory=lambda: array("q"), init=False)

    def add(self, key: str, line: int) -> None:
        self._hashes.append(hash(key))
        self._lines.append(line)

    def duplicates(self) -> frozenset[int]:
        """Return the hashes of keys that came more than once."""
        return frozenset(one for one, other in pairwise(sorted(self._hashes)) if one == other)

    def duplicate_lines(self) -> Iterator[tuple[int, int]]:
        """Yield each line that repeats a key, and the line where that came first."""
        duplicates = self.duplicates()
        first: dict[int, int] = {}
        for hashed, line in zip(self._hashes, self._lines, strict=True):
            if hashed in duplicates and first.setdefault(hashed, line) != line:
                yield line, first[hashed]


@attrs.define
class _EntryCounter:
    """Counts the entries of a manifest and collects its faults."""

    faults: list[RowProblem] = attrs.field(factory=list)
    fault_count: int = 0
    content_keys: _KeyLines = attrs.field(factory=_KeyLines, init=False)
    _ids: _KeyLines = attrs.field(factory=_KeyLines, init=False)
    _counts: Counter[tuple[str, str]] = attrs.field(factory=Counter, init=False)
    _rows: int = attrs.field(default=0, init=False)
    _in_every_row: set[tuple[str, str, str]] = attrs.field(factory=set, init=False)

    def add(self, row: Row, result: Job | Sequence[RowProblem]) -> None:
        """Count one more row, which is a job or has faults."""
        faults = () if isinstance(result, Job) else result
        for fault in faults:
            self.add_error(fault)
        if row.is_readable:
            missing = {_what(fault) for fault in faults if fault.field and fault.field not in row.cells}
            self._in_every_row = self._in_every_row & missing if self._rows else missing
            self._rows += 1
        if isinstance(result, Job):
            self._counts[result.request.operation, result.request.model] += 1
            (self._ids if "id" in row.cells else self.content_keys).add(result.key, row.line)

    def add_error(self, fault: RowProblem) -> None:
        """Count one more fault; the first of them are kept."""
        self.fault_count += 1
        if len(self.faults) < _MAX_FAULTS:
            self.faults.append(fault)

    def finish(self, location: str) -> ManifestSummary:
        """Add the faults that need all rows, say once what all rows lack, and sum up.

        Args:
            location: stands in place of the line where something is wrong with all rows.
        """
        if self._rows > 1 and self._in_every_row:
            self.faults = [fault for fault in self.faults if _what(fault) not in self._in_every_row]
            self.faults += [RowProblem(0, *what, location) for what in sorted(self._in_every_row)]
            self.fault_count -= (self._rows - 1) * len(self._in_every_row)
        for line, first in self._ids.duplicate_lines():
            self.add_error(RowProblem(line, "id", f"is that of line {first} too", "give each row an id of its own"))
        self.faults.sort(key=lambda fault: fault.line)
        total = self._counts.total()
        duplicates = sum(1 for _ in self.content_keys.duplicate_lines())
        return ManifestSummary(
            total=total, counts=dict(self._counts), duplicates=duplicates, credits=CREDITS_PER_TASK * total
        )


def _what(fault: RowProblem) -> tuple[str, str, str]:
    return fault.field, fault.problem, fault.remedy
