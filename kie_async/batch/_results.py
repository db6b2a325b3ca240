"""Write the results of a batch: tracks, a sidecar beside each, and a line per end of a job in ``results.jsonl``.

A sidecar reserves a track's name before a byte of audio is fetched. So a crash at any moment leaves nothing that could
be mistaken for another file, or be fetched twice.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import secrets
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import count
from os import PathLike
from pathlib import Path
from typing import Any, BinaryIO, Protocol, cast

import attrs

from kie_async._fsync import sync_directory
from kie_async.batch._result_records import (
    RESULTS,
    SIDECAR,
    format_line,
    format_sidecar,
    is_json,
    line_id,
    track_stem,
)
from kie_async.errors import StorageError
from kie_async.files import AUDIO_KINDS, lock, on_disk, remove_parts
from kie_async.journal import Job
from kie_async.models import Track

_PART = ".part"
_SUFFIXES = tuple(kind.suffix for kind in AUDIO_KINDS)
_MAX_SIDECAR = 1 << 20  # bytes
_MAX_TAIL = 1 << 20  # bytes of the file of lines that are searched; a line has some hundreds
_LINES_FLAGS = os.O_RDWR | os.O_CREAT | os.O_APPEND | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
_SIDECAR_FLAGS = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)


class TrackDownloader(Protocol):
    """Downloads a track: a ``KieSession``."""

    async def download(
        self, track: Track, directory: Path, *, name: str | None = None, keep_existing: bool = False
    ) -> Path:
        """Download a track, whole or not at all, to a file of this name, unless there is one already."""
        ...


class Results:
    """The directory of a batch.

    Args:
        directory: made when the first file is written.
        emulated: the tasks are those of an emulator, which is written down.
        lock_timeout: seconds to wait while another process writes to ``results.jsonl``.
    """

    def __init__(self, directory: str | PathLike[str], *, emulated: bool = False, lock_timeout: float = 30.0) -> None:
        self.directory = Path(directory)
        self.emulated = emulated
        self._lines = _LineFile(self.directory / RESULTS, lock_timeout)

    async def save(self, session: TrackDownloader, job: Job, track: Track) -> str:
        """Download a track of a job and write its sidecar; one that is here already is not downloaded again.

        Args:
            session: downloads it.
            job: as it succeeded.
            track: one of ``job.tracks``.

        Returns:
            The name of the file in the directory.

        Raises:
            DownloadError: it could not be fetched whole; the next call resumes it.
            StorageError: the disk refused.
        """
        number = job.tracks.index(track) + 1
        stem = await on_disk(self._reserve_stem, job, number)
        name = await on_disk(self._find_file, stem)
        if name is None:
            name = (await session.download(track, self.directory, name=stem, keep_existing=True)).name
        await on_disk(self._complete_sidecar, job, number, stem, name)
        return name

    async def remove_parts(self, job: Job) -> None:
        """Remove what this process has begun of a job that another process delivered; whole files stay.

        Raises:
            StorageError: the disk refused.
        """
        await on_disk(self._remove_parts, job)

    async def record_end(self, job: Job) -> bool:
        """Append a job's line to ``results.jsonl``, durably, and tell whether it was new.

        A job has one line for each end it has come to: another after a person had it sent again. Call it *before* the
        journal records the end, so that a crash in between loses no line; then the next run's call finds the line,
        and writes none. Several processes may write at once.
        """
        line = format_line(job, emulated=self.emulated)
        return await on_disk(self._lines.append, line)

    async def last_recorded(self) -> float:
        """Return when the last line was written, in unix seconds; 0 if there is none."""
        return await on_disk(self._lines.last_written)

    # ------------------------------------------------------------ one track; all of it blocks

    def _reserve_stem(self, job: Job, number: int) -> str:
        """Reserve a name for a track, by its sidecar, or find the one it has."""
        self.directory.mkdir(parents=True, exist_ok=True)
        for stem in _numbered(track_stem(job, number)):
            owner = read_sidecar(self._sidecar(stem))
            if owner is not None and _is_of(owner, job, number):
                return stem
            if owner is None and self._is_free(stem):
                _write_whole(self._sidecar(stem), format_sidecar(job, number, emulated=self.emulated))
                return stem
        raise AssertionError  # pragma: no cover (names are numbered without end)

    def _remove_parts(self, job: Job) -> None:
        for number in range(1, len(job.tracks) + 1):
            for stem in _numbered(track_stem(job, number)):  # pragma: no branch  # without end
                owner = read_sidecar(self._sidecar(stem))
                if owner is not None and _is_of(owner, job, number):
                    remove_parts(self.directory, stem)
                    if self._is_without_file(stem):  # it was delivered to another directory
                        self._sidecar(stem).unlink()
                    break
                if self._is_free(stem):
                    break

    def _is_without_file(self, stem: str) -> bool:
        return not any(os.path.lexists(self.directory / f"{stem}{suffix}") for suffix in (_PART, *_SUFFIXES))

    def _sidecar(self, stem: str) -> Path:
        return self.directory / f"{stem}{SIDECAR}"

    def _is_free(self, stem: str) -> bool:
        return self._is_without_file(stem) and not os.path.lexists(self._sidecar(stem))

    def _find_file(self, stem: str) -> str | None:
        """Return the whole file of a reserved name; None while there is a part, which the download must finish."""
        if os.path.lexists(self.directory / f"{stem}{_PART}"):
            return None
        names = (f"{stem}{suffix}" for suffix in _SUFFIXES)
        return next((name for name in names if (self.directory / name).is_file()), None)

    def _complete_sidecar(self, job: Job, number: int, stem: str, name: str) -> None:
        path = self.directory / name
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        facts = {"name": name, "size": path.stat().st_size, "sha256": digest}
        _write_whole(self._sidecar(stem), format_sidecar(job, number, file=facts, emulated=self.emulated))


def _numbered(stem: str) -> Iterator[str]:
    yield stem
    for number in count(2):  # pragma: no branch  # without end
        yield f"{stem}.{number}"


def read_sidecar(path: Path) -> Mapping[str, Any] | None:
    """Read a sidecar; None for anything else; blocks."""
    try:
        with path.open("rb") as file:
            value = json.loads(file.read(_MAX_SIDECAR))
    except (OSError, ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _is_of(sidecar: Mapping[str, Any], job: Job, number: int) -> bool:
    track = sidecar.get("track")
    is_same_track = isinstance(track, dict) and track.get("number") == number
    return is_same_track and sidecar.get("key") == job.key and sidecar.get("task_id") == job.task_id


def _write_whole(path: Path, data: bytes) -> None:
    """Write a file durably; whatever happens, it is as before or complete."""
    temporary = path.with_name(f".{secrets.token_hex(8)}.tmp")
    try:
        with os.fdopen(os.open(temporary, _SIDECAR_FLAGS, 0o666), "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_directory(path.parent)


# ---------------------------------------------------------------- results.jsonl


@attrs.frozen
class _LineFile:
    """A file of lines, each written once and whole, by any number of processes; all of it blocks.

    The file is opened anew for each line, because it may have been moved away. A line that a crash has torn is removed
    before the next is written. Only a crash in the last moments can have left a line that is to be written again, so
    only the end of the file is searched for it.
    """

    path: Path
    lock_timeout: float
    _mutex: threading.Lock = attrs.field(factory=threading.Lock, init=False)

    def append(self, line: bytes) -> bool:
        """Write a line, durably, and tell whether it was new."""
        with self._mutex, self._open() as file:
            size = os.fstat(file.fileno()).st_size
            start = max(0, size - _MAX_TAIL)
            file.seek(start)
            tail = file.read(size - start)
            size = _repair_end(file, start, tail)
            if b"\n" + line_id(line) in b"\n" + tail[: size - start]:
                return False
            try:
                _write_line(file, line)
            except BaseException:
                file.truncate(size)
                raise
            return True

    def last_written(self) -> float:
        """Return when the file was last written to, in unix seconds; 0 if there is none."""
        try:
            return self.path.stat().st_mtime
        except FileNotFoundError:
            return 0.0

    @contextmanager
    def _open(self) -> Iterator[BinaryIO]:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        is_new = not self.path.exists()
        descriptor = os.open(self.path, _LINES_FLAGS, 0o666)
        with cast("BinaryIO", os.fdopen(descriptor, "r+b", buffering=0)) as file:
            if is_new:
                sync_directory(self.path.parent)
            self._lock(descriptor)
            yield file

    def _lock(self, descriptor: int) -> None:
        deadline = time.monotonic() + self.lock_timeout
        while True:
            try:
                lock(descriptor)
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise StorageError(f"{self.path.name} is held by another process: end it") from None
                time.sleep(0.01)
            else:
                return


def _write_line(file: BinaryIO, line: bytes) -> None:
    if file.write(line) < len(line):  # it is not buffered: the disk has no room for the rest
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    os.fsync(file.fileno())


def _repair_end(file: BinaryIO, start: int, tail: bytes) -> int:
    """Remove a torn line, end a whole one that lacks its line end, and return the size."""
    size = start + len(tail)
    if not tail or tail.endswith(b"\n"):
        return size
    last = tail.rfind(b"\n") + 1
    if not is_json(tail[last:]) and (last or start == 0):
        file.truncate(start + last)
        return start + last
    return size + file.write(b"\n")
