"""What a batch leaves in its directory: the tracks, a sidecar beside each, and a line per job in ``results.jsonl``.

A track's name is taken by its sidecar before a byte of audio is fetched. So a crash at any moment leaves nothing
that could be mistaken for somebody else's file, or be fetched twice.

Neither a token nor the query of an address, which signs it, is written anywhere.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import secrets
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from itertools import count
from os import PathLike
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit, urlunsplit

import attrs

from kie_async._fsync import sync_directory
from kie_async._protocol.request_rules import is_url
from kie_async.batch._lines import Lines
from kie_async.batch._row_parser import KEY_LENGTH
from kie_async.events import clean
from kie_async.files._disk import on_disk
from kie_async.files._kinds import KINDS
from kie_async.files._names import safe_name
from kie_async.files._part import remove_parts
from kie_async.journal import Job
from kie_async.models import Request, Track, UploadExtendRequest

SIDECAR = ".kie.json"
LINES = "results.jsonl"
_PART = ".part"
_SUFFIXES = tuple(kind.suffix for kind in KINDS)
FORMAT = 1  # of a sidecar and of a line
_EMULATED: Mapping[bool, Mapping[str, bool]] = {False: {}, True: {"emulated": True}}

# What ``safe_name`` leaves as it is. No capitals: "A" and "a" are one name on some disks.
_PLAIN = re.compile(r"(?=.{1,60}\Z)[a-z0-9][a-z0-9_]*(?:-[a-z0-9_]+)*")
_MADE = re.compile(rf"[0-9a-f]{{{KEY_LENGTH}}}(?:-[0-9]+)?")
_MAX_LABEL = 60  # bytes
_LINE_ENDS = re.compile("[\x85\u2028\u2029]")  # for ``str.splitlines``, besides those that JSON escapes
_MAX_SIDECAR = 1 << 20  # bytes
_BINARY = getattr(os, "O_BINARY", 0)


class Downloads(Protocol):
    """What fetches a track: a ``KieSession``."""

    async def download(
        self, track: Track, directory: Path, *, name: str | None = None, keep_existing: bool = False
    ) -> Path:
        """Fetch the audio of a track, whole or not at all, under a name, unless a file has it already."""
        ...


def track_stem(job: Job, number: int) -> str:
    """Name a track of a job: safe on every disk, and never the name of another job or track.

    Args:
        job: its key is the name; one made from content gets the song's name, or else the title, before it.
        number: which of its tracks, from 1.
    """
    if _MADE.fullmatch(job.key):
        return f"{safe_name(_label(job.request), limit=_MAX_LABEL)}-{job.key}-{number}"
    if _PLAIN.fullmatch(job.key):
        return f"{job.key}-{number}"
    mark = hashlib.sha256(job.key.encode("utf-8", "replace")).hexdigest()[:16]
    return f"{safe_name(job.key, limit=_MAX_LABEL)}-{mark}-{number}"


def _label(request: Request) -> str:
    return song_of(request) or request.title or "track"


def song_of(request: Request) -> str | None:
    """The name of the song that a request extends, that of its file; None if it is no file."""
    path = song_file(request)
    return None if path is None else path.stem


def song_file(request: Request) -> Path | None:
    """The file that a request extends, if it is one."""
    if isinstance(request, UploadExtendRequest) and not is_url(request.source):
        return Path(request.source)
    return None


class Results:
    """The directory of a batch.

    Args:
        directory: made when the first file goes there.
        emulated: the tasks are those of an emulator, which is written down.
    """

    def __init__(self, directory: str | PathLike[str], *, emulated: bool = False) -> None:
        self.directory = Path(directory)
        self.emulated = emulated
        self._lines = Lines(self.directory / LINES)

    async def save(self, session: Downloads, job: Job, track: Track) -> str:
        """Fetch a track of a job and write its sidecar; one that is here already is not fetched again.

        Args:
            session: fetches it.
            job: as it succeeded.
            track: one of ``job.tracks``.

        Returns:
            The name of the file in the directory.

        Raises:
            DownloadError: it could not be fetched whole; the next call takes it up.
            StorageError: the disk refused.
        """
        number = job.tracks.index(track) + 1
        stem = await on_disk(self._take, job, number)
        name = await on_disk(self._found, stem)
        if name is None:
            name = (await session.download(track, self.directory, name=stem, keep_existing=True)).name
        await on_disk(self._complete, job, number, stem, name)
        return name

    async def remove_parts(self, job: Job) -> None:
        """Remove what this process has begun of a job that another has delivered; whole files stay.

        Raises:
            StorageError: the disk refused.
        """
        await on_disk(self._remove_parts, job)

    async def note(self, job: Job) -> bool:
        """Append a job's line to ``results.jsonl``, durably, and tell whether it was new.

        A job has one line for each end it has come to: another after a person had it sent again. Call it *before* the
        journal moves the job to its end, so that a crash in between loses no line; then the next run's call finds
        the line, and writes none. Several processes may write at once.
        """
        line = line_of(job, emulated=self.emulated)
        return await on_disk(self._lines.append, (job.key, job.attempt, job.state.value), line)

    async def last_noted(self) -> float:
        """When the last line was written, in unix seconds; 0 if there is none."""
        return await on_disk(self._lines.written)

    # ------------------------------------------------------------ one track; all of it blocks

    def _take(self, job: Job, number: int) -> str:
        """Take a name for a track, by its sidecar, or find the one it has."""
        self.directory.mkdir(parents=True, exist_ok=True)
        for stem in _numbered(track_stem(job, number)):
            owner = read_sidecar(self._sidecar(stem))
            if owner is not None and _is_of(owner, job, number):
                return stem
            if owner is None and self._is_free(stem):
                write_whole(self._sidecar(stem), _json(sidecar_of(job, number, emulated=self.emulated)))
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

    def _found(self, stem: str) -> str | None:
        """The file of a name that was taken, if it is there; while a part is, the download must see to it first."""
        if os.path.lexists(self.directory / f"{stem}{_PART}"):
            return None
        names = (f"{stem}{suffix}" for suffix in _SUFFIXES)
        return next((name for name in names if (self.directory / name).is_file()), None)

    def _complete(self, job: Job, number: int, stem: str, name: str) -> None:
        path = self.directory / name
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        about = {"name": name, "size": path.stat().st_size, "sha256": digest}
        write_whole(self._sidecar(stem), _json(sidecar_of(job, number, emulated=self.emulated) | {"file": about}))


def _numbered(stem: str) -> Iterator[str]:
    yield stem
    for number in count(2):  # pragma: no branch  # without end
        yield f"{stem}.{number}"


def read_sidecar(path: Path) -> Mapping[str, Any] | None:
    """Read a sidecar; None for anything else."""
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


# ---------------------------------------------------------------- what is written


def sidecar_of(job: Job, number: int, *, emulated: bool = False) -> dict[str, Any]:
    """What is known of a track, as it stands beside it; ``file`` is null until it is there."""
    track = job.tracks[number - 1]
    return {
        "format": FORMAT,
        "key": job.key,
        "task_id": job.task_id,
        "operation": job.request.operation,
        "request": _request(job.request),
        "source": _source(job),
        "track": {"number": number, "of": len(job.tracks)} | _facts(track),
        "credits": job.credits,
        "moments": _moments(job),
        "file": None,
        **_EMULATED[emulated],
    }


def line_of(job: Job, *, emulated: bool = False) -> bytes:
    """A job's line in ``results.jsonl``."""
    error = None
    if job.error is not None:
        error = attrs.asdict(job.error) | {"message": clean(job.error.message)}
    line = {
        "format": FORMAT,
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
        "moments": _moments(job),
        **_EMULATED[emulated],
    }
    return _encoded(json.dumps(line, ensure_ascii=False, separators=(",", ":")))


def _json(value: object) -> bytes:
    return _encoded(json.dumps(value, ensure_ascii=False, indent=2))


def _encoded(text: str) -> bytes:
    """Encode JSON as a line of UTF-8; what would end a line, or is half a character, stays escaped."""
    text = _LINE_ENDS.sub(lambda found: f"\\u{ord(found[0]):04x}", text)
    return text.encode(errors="backslashreplace") + b"\n"


def _request(request: Request) -> dict[str, Any]:
    fields: dict[str, Any] = {
        field.name: value
        for field in attrs.fields(type(request))
        if (value := getattr(request, field.name)) != field.default
    }
    if "source" in fields:
        fields["source"] = bare(str(fields["source"]))
    return fields


def _source(job: Job) -> dict[str, Any] | None:
    source = job.source
    if source is None:
        return None
    return {"path": source.path, "size": source.size, "sha256": source.sha256, "duration": source.duration}


def _facts(track: Track) -> dict[str, Any]:
    return {name: _plain(value) for name, value in attrs.asdict(track, recurse=False).items() if value is not None}


def _plain(value: object) -> object:
    if isinstance(value, datetime):
        return value.isoformat()
    return bare(value) if isinstance(value, str) else value


def _moments(job: Job) -> dict[str, str]:
    return {name: datetime.fromtimestamp(moment, UTC).isoformat() for name, moment in job.moments.items()}


def bare(text: str) -> str:
    """An address without what may be secret in it: user, query and fragment. Any other text stays as it is."""
    if not is_url(text):
        return text
    try:
        parts = urlsplit(text)
    except ValueError:
        return clean(text)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


# ---------------------------------------------------------------- the disk


def write_whole(path: Path, data: bytes) -> None:
    """Write a file so that, whatever happens, it is there as it was or as it shall be; blocks."""
    temporary = path.with_name(f".{secrets.token_hex(8)}.tmp")
    try:
        with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | _BINARY, 0o666), "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_directory(path.parent)
