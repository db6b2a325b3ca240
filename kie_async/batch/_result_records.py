"""What a batch writes about its jobs, and how it names its files. Pure.

Each track has a sidecar (``NAME.kie.json``), and each end of a job is a line of ``results.jsonl``. Neither contains a
token, or the query of an address, which signs it.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import attrs

from kie_async._protocol.request_rules import is_url
from kie_async._protocol.wire import unpack
from kie_async.batch._row_parser import KEY_LENGTH
from kie_async.errors import BadResponseError, LostRecordError
from kie_async.events import clean
from kie_async.files import safe_name
from kie_async.journal import Job, JobError, State
from kie_async.models import Request, Track, UploadExtendRequest

RESULTS = "results.jsonl"
SIDECAR = ".kie.json"
_FORMAT = 1  # of a sidecar and of a line
_EMULATED: Mapping[bool, Mapping[str, bool]] = {False: {}, True: {"emulated": True}}
_STATES = frozenset(State)
_LINE_ENDS = re.compile("[\x85\u2028\u2029]")  # for ``str.splitlines``, besides those that JSON escapes

# Keys that ``safe_name`` does not change. No capitals: "A" and "a" are one name on some disks.
_SAFE_KEY = re.compile(r"(?=.{1,60}\Z)[a-z0-9][a-z0-9_]*(?:-[a-z0-9_]+)*")
_CONTENT_KEY = re.compile(rf"[0-9a-f]{{{KEY_LENGTH}}}(?:-[0-9]+)?")
_MAX_LABEL = 60  # bytes


# ---------------------------------------------------------------- names


def track_stem(job: Job, number: int) -> str:
    """Name a track of a job: safe on every disk, and never the name of another job or track.

    Args:
        job: its key is the name; one made from content has the song's name, or else the title, before it.
        number: which of its tracks, from 1.
    """
    if _CONTENT_KEY.fullmatch(job.key):
        label = song_of(job.request) or job.request.title or "track"
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
    if isinstance(request, UploadExtendRequest) and not is_url(request.source):
        return Path(request.source)
    return None


# ---------------------------------------------------------------- writing


def format_sidecar(job: Job, number: int, *, file: Mapping[str, Any] | None = None, emulated: bool = False) -> bytes:
    """Make the sidecar of a track.

    Args:
        job: as it succeeded.
        number: which of its tracks, from 1.
        file: name, size and sha256 of the file; null until it is there.
        emulated: the task is an emulator's.
    """
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
        **_EMULATED[emulated],
    }
    return _encode(json.dumps(facts, ensure_ascii=False, indent=2))


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
        **_EMULATED[emulated],
    }
    return _encode(json.dumps(facts, ensure_ascii=False, separators=(",", ":")))


def _encode(text: str) -> bytes:
    """Encode JSON as UTF-8, with a line end; escape what would end a line, or is half a character."""
    text = _LINE_ENDS.sub(lambda found: f"\\u{ord(found[0]):04x}", text)
    return text.encode(errors="backslashreplace") + b"\n"


def _request_facts(request: Request) -> dict[str, Any]:
    fields: dict[str, Any] = {
        field.name: value
        for field in attrs.fields(type(request))
        if (value := getattr(request, field.name)) != field.default
    }
    if "source" in fields:
        fields["source"] = strip_secrets(str(fields["source"]))
    return fields


def _source_facts(job: Job) -> dict[str, Any] | None:
    source = job.source
    if source is None:
        return None
    return {"path": source.path, "size": source.size, "sha256": source.sha256, "duration": source.duration}


def _track_facts(track: Track) -> dict[str, Any]:
    return {name: _plain(value) for name, value in attrs.asdict(track, recurse=False).items() if value is not None}


def _plain(value: object) -> object:
    if isinstance(value, datetime):
        return value.isoformat()
    return strip_secrets(value) if isinstance(value, str) else value


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


# ---------------------------------------------------------------- reading


def line_id(line: bytes) -> bytes:
    """Return what a line that ``format_line`` made begins with: key, state and attempt, the same in no two lines."""
    return line[: line.index(b',"task_id":')]


def is_json(line: bytes) -> bool:
    """Tell whether a line is whole."""
    try:
        json.loads(line)
    except (ValueError, RecursionError):
        return False
    return True


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

    def lost_error(self) -> LostRecordError:
        """Make the error of a job that must not be submitted, because this task is its."""
        task = f"task {self.task_id}" if self.task_id else "a submission whose outcome is unknown"
        return LostRecordError(
            f"{self.file} names {task} for this job, which the journal does not know: it is not submitted, for that "
            "would be paid again. Take it into the journal, which pays nothing: kie-async jobs adopt --out DIR",
            self.task_id,
            charged="yes" if self.task_id else "maybe",
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
    if not isinstance(key, str) or not isinstance(state, str) or state not in _STATES:
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
