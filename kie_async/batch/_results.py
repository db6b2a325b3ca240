"""Write the results of a batch: tracks, a sidecar beside each, and a line per end of a job in ``results.jsonl``.

A sidecar (``NAME.kie.json``) reserves a track's name before a byte of audio is fetched. So a crash at any moment leaves
nothing that could be mistaken for another file, or be fetched twice. Neither a sidecar nor a line contains a token, or
the query of an address, which signs it.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import threading
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from itertools import chain, count
from os import PathLike
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias, cast
from urllib.parse import urlsplit, urlunsplit

import attrs

from kie_async._fsync import replace_file, sync_directory
from kie_async._protocol.request_rules import is_url
from kie_async.errors import StorageError
from kie_async.events import clean
from kie_async.files import AUDIO_KINDS, hash_source, lock, on_disk, remove_parts, safe_name
from kie_async.journal import Job, is_local
from kie_async.models import Request, Track

Download: TypeAlias = Callable[..., Awaitable[Path]]

RESULTS = "results.jsonl"
SIDECAR = ".kie.json"
_FORMAT = 1  # of a sidecar and of a line
_SOURCE_FACTS = ("path", "size", "sha256", "duration")
_LINE_ENDS = re.compile("[\x85\u2028\u2029]")  # for ``str.splitlines``, besides those that JSON escapes

# Keys that ``safe_name`` does not change. No capitals: "A" and "a" are one name on some disks.
_SAFE_KEY = re.compile(r"(?=.{1,60}\Z)[a-z0-9][a-z0-9_]*(?:-[a-z0-9_]+)*")
KEY_LENGTH = 24  # hex digits of a key made from the content of a job: 96 bits
CONTENT_KEY = re.compile(rf"[0-9a-f]{{{KEY_LENGTH}}}(?:-[0-9]+)?")
_MAX_LABEL = 60  # bytes
_PART = ".part"
_SUFFIXES = tuple(kind.suffix for kind in AUDIO_KINDS)
_MAX_SIDECAR = 1 << 20  # bytes
_MAX_TAIL = 1 << 20  # bytes of the file of lines that are searched; a line has some hundreds
_LINES_FLAGS = os.O_RDWR | os.O_CREAT | os.O_APPEND | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)


class Results:
    """The directory of a batch.

    Args:
        directory: made when the first file is written.
        emulated: the tasks are those of an emulator, which is written down.
        machine: the name of this one, if it is not that of ``machine_name``.
        song: what tracks are called whose job has a key made from content and extends no file.
        lock_timeout: seconds to wait while another process writes to ``results.jsonl``.
    """

    def __init__(
        self,
        directory: str | PathLike[str],
        *,
        emulated: bool = False,
        machine: str = "",
        song: str | None = None,
        lock_timeout: float = 30.0,
    ) -> None:
        self.directory = Path(directory)
        self.emulated = emulated
        self.machine = machine
        self.song = song
        self._lines = _LineFile(self.directory / RESULTS, lock_timeout)

    async def save(self, download: Download, job: Job, track: Track) -> str:
        """Download a track of a job and write its sidecar; one that is here already is not downloaded again.

        Args:
            download: downloads it, as ``KieSession.download`` does.
            job: as it succeeded.
            track: one of ``job.tracks``.

        Returns:
            The name of the file in the directory.

        Raises:
            DownloadError: it could not be fetched whole; the next call resumes it.
            StorageError: the disk refused.
        """
        number = job.tracks.index(track) + 1
        stem, name = await on_disk(self._reserve_stem, job, number)
        if name is None:
            name = (await download(track, self.directory, name=stem, keep_existing=True)).name
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

    def _find_stem(self, job: Job, number: int) -> tuple[str, bool]:
        """Return the name that a track has, or the first that is free for it, and whether it has it."""
        first = track_stem(job, number, self.song)
        stems = chain((first,), (f"{first}.{number}" for number in count(2)))
        stem = next(stems)
        while not (is_ours := _is_of(read_sidecar(self._sidecar(stem)), job, number)) and self._has_any(stem, SIDECAR):
            stem = next(stems)
        return stem, is_ours

    def _reserve_stem(self, job: Job, number: int) -> tuple[str, str | None]:
        """Reserve a name for a track, by its sidecar, unless it has one; return it, and the whole file that has it."""
        self.directory.mkdir(parents=True, exist_ok=True)
        stem, is_reserved = self._find_stem(job, number)
        if not is_reserved:
            replace_file(self._sidecar(stem), format_sidecar(job, number, emulated=self.emulated))
        return stem, self._find_file(stem)

    def _remove_parts(self, job: Job) -> None:
        for number in range(1, len(job.tracks) + 1):
            stem, is_reserved = self._find_stem(job, number)
            if is_reserved:
                remove_parts(self.directory, stem)
                if not self._has_any(stem):  # it was delivered to another directory
                    self._sidecar(stem).unlink()

    def _has_any(self, stem: str, *others: str) -> bool:
        """Tell whether there is a track of this name, or a part of one, or a file with another suffix given."""
        return any(os.path.lexists(self.directory / f"{stem}{suffix}") for suffix in (_PART, *_SUFFIXES, *others))

    def _sidecar(self, stem: str) -> Path:
        return self.directory / f"{stem}{SIDECAR}"

    def _find_file(self, stem: str) -> str | None:
        """Return the whole file of a reserved name; None while there is a part, which the download must finish."""
        if os.path.lexists(self.directory / f"{stem}{_PART}"):
            return None
        return next((name for suffix in _SUFFIXES if (self.directory / (name := stem + suffix)).is_file()), None)

    def _complete_sidecar(self, job: Job, number: int, stem: str, name: str) -> None:
        path = self.directory / name
        facts = {"name": name, "size": path.stat().st_size, "sha256": hash_source(path, measured=False)[0]}
        replace_file(self._sidecar(stem), format_sidecar(job, number, file=facts, emulated=self.emulated))


def read_sidecar(path: Path) -> Mapping[str, Any] | None:
    """Read a sidecar; None for anything else; blocks."""
    try:
        with path.open("rb") as file:
            value = json.loads(file.read(_MAX_SIDECAR))
    except (OSError, ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _is_of(sidecar: Mapping[str, Any] | None, job: Job, number: int) -> bool:
    if sidecar is None or (sidecar.get("key"), sidecar.get("task_id")) != (job.key, job.task_id):
        return False
    track = sidecar.get("track")
    return isinstance(track, dict) and track.get("number") == number


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
        identity = line[: line.index(b',"task_id":')]  # key, state and attempt, the same in no two lines
        with self._mutex, self._open() as file:
            size = os.fstat(file.fileno()).st_size
            start = max(0, size - _MAX_TAIL)
            file.seek(start)
            tail = file.read(size - start)
            size = _repair_end(file, start, tail)
            if b"\n" + identity in b"\n" + tail[: size - start]:
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
    if not _is_json(tail[last:]) and (last or start == 0):
        file.truncate(start + last)
        return start + last
    return size + file.write(b"\n")


def _is_json(line: bytes) -> bool:
    try:
        json.loads(line)
    except (ValueError, RecursionError):
        return False
    return True


# ---------------------------------------------------------------- names


def track_stem(job: Job, number: int, song: str | None = None) -> str:
    """Name a track of a job: safe on every disk, and never the name of another job or track.

    The key of the job is the name; one made from content has the song's name, or else the one given, or the title,
    before it.
    """
    if CONTENT_KEY.fullmatch(job.key):
        label = song_of(job.request) or song or job.request.title or "track"
        return f"{safe_name(label, limit=_MAX_LABEL)}-{job.key}-{number}"
    if _SAFE_KEY.fullmatch(job.key):
        return f"{job.key}-{number}"
    digest = hashlib.sha256(job.key.encode("utf-8", "replace")).hexdigest()[:16]
    return f"{safe_name(job.key, limit=_MAX_LABEL)}-{digest}-{number}"


def song_of(request: Request) -> str | None:
    """Return the name of the file that a request extends, without its suffix; None if it extends no file."""
    path = song_file(request)
    return None if path is None else path.stem


def song_file(request: Request) -> Path | None:
    """Return the file that a request extends, if it is one."""
    return Path(request.source) if is_local(request) else None


# ---------------------------------------------------------------- sidecars and lines


def format_sidecar(job: Job, number: int, *, file: Mapping[str, Any] | None = None, emulated: bool = False) -> bytes:
    """Make the sidecar of a track (from 1); ``file``: its name, size and sha256, null until it is there."""
    track = job.tracks[number - 1]
    facts = {
        "format": _FORMAT,
        "key": job.key,
        "task_id": job.task_id,
        "operation": job.request.operation,
        "request": _request_facts(job.request),
        "source": _source_facts(job),
        "track": {"number": number, "of": len(job.tracks)} | _track_facts(track),
        "credits": job.credits,
        "moments": _timestamps(job),
        "file": file,
        **({"emulated": True} if emulated else {}),
    }
    return encode_json(json.dumps(facts, ensure_ascii=False, indent=2))


def format_line(job: Job, *, emulated: bool = False) -> bytes:
    """Make a job's line of ``results.jsonl``."""
    error = None
    if job.error is not None:
        error = attrs.asdict(job.error) | {"message": clean(job.error.message)}
    facts = {
        "format": _FORMAT,
        "key": job.key,
        "state": job.state.value,
        "attempt": job.attempt,
        "task_id": job.task_id,
        "operation": job.request.operation,
        "model": job.request.model,
        "title": job.request.title,
        "files": list(job.files),
        "credits": job.credits,
        "partial": job.partial,
        "error": error,
        "moments": _timestamps(job),
        **({"emulated": True} if emulated else {}),
    }
    return encode_json(json.dumps(facts, ensure_ascii=False, separators=(",", ":")))


def encode_json(text: str) -> bytes:
    """Encode JSON as UTF-8, with a line end; escape what would end a line, or is half a character."""
    text = _LINE_ENDS.sub(lambda found: f"\\u{ord(found[0]):04x}", text)
    return text.encode(errors="backslashreplace") + b"\n"


def _request_facts(request: Request) -> dict[str, Any]:
    fields = attrs.asdict(request, filter=lambda field, value: value != field.default)
    if "source" in fields:
        fields["source"] = strip_secrets(str(fields["source"]))
    return fields


def _source_facts(job: Job) -> dict[str, Any] | None:
    """What is known of the source of a job; the path of a file that is here is absolute, to be found from anywhere."""
    path = song_file(job.request) if job.source is None else Path(job.source.path)
    if path is None:
        return None
    facts = {name: getattr(job.source, name, None) for name in _SOURCE_FACTS}
    return facts | {"path": str(path.absolute() if os.path.lexists(path) else path)}


def _track_facts(track: Track) -> dict[str, Any]:
    given = {name: value for name, value in track.to_dict().items() if value is not None}
    return {name: strip_secrets(value) if isinstance(value, str) else value for name, value in given.items()}


def _timestamps(job: Job) -> dict[str, str]:
    return {name: datetime.fromtimestamp(at, UTC).isoformat() for name, at in job.moments.items()}


def strip_secrets(text: str) -> str:
    """Remove user, query and fragment from an address: they may be secret. Any other text stays as it is."""
    if not is_url(text):
        return text
    try:
        parts = urlsplit(text)
    except ValueError:
        return clean(text)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))
