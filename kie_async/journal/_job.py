"""A job: one request on its way from a manifest to files on disk, with all that was learnt of it."""

from __future__ import annotations

import time
from collections.abc import Mapping
from enum import StrEnum
from typing import Any, TypeAlias, TypeGuard

import attrs

from kie_async._protocol.request_rules import is_url
from kie_async._protocol.wire import pack
from kie_async.errors import Charged, KieError, TaskFailedError
from kie_async.events import Context, clean
from kie_async.journal._sql import unpack_document
from kie_async.models import Request, Track, UploadExtendRequest

Moments: TypeAlias = Mapping[str, float]


class State(StrEnum):
    """Where a job stands."""

    PLANNED = "planned"
    INTENT = "intent"
    SUBMITTED = "submitted"
    SUCCEEDED = "succeeded"
    DELIVERED = "delivered"
    REJECTED = "rejected"
    FAILED = "failed"
    UNKNOWN = "unknown"
    ABANDONED = "abandoned"


@attrs.frozen(kw_only=True)
class Source:
    """The local file a job extends, and where it was uploaded.

    Attributes:
        size: bytes; 0 until it is read.
        sha256: of the content, hex; empty until it is read.
        machine: the only one that can read it; empty if any can.
        duration: seconds of audio in it.
        upload_url: where the service can fetch it; None until it is uploaded.
        uploaded_at: unix seconds; the service keeps uploads for 24 hours, so it is uploaded again when older than 20.
    """

    path: str
    size: int = 0
    sha256: str = ""
    machine: str = ""
    duration: float | None = None
    upload_url: str | None = None
    uploaded_at: float | None = None


@attrs.frozen(kw_only=True)
class JobError:
    """Why a job did not come to its end: the facts of a ``KieError``."""

    type: str
    message: str
    code: int | None = None
    charged: Charged = "no"
    retryable: bool = False
    refunded: bool = False

    @classmethod
    def of(cls, error: KieError) -> JobError:
        """The facts of an error, as a journal keeps them."""
        return cls(
            type=type(error).__name__,
            message=clean(error.message),
            code=error.code,
            charged=error.charged,
            retryable=error.retryable,
            refunded=isinstance(error, TaskFailedError) and error.refunded,
        )


@attrs.frozen(kw_only=True)
class LastAttempt:
    """The last submission of a job; nothing of it is known while the job is planned.

    Attributes:
        token: in its callback URL.
        task_id: the task that came of it.
        process_id: of the process that intended it.
        route: by which it was sent.
        credits: what it cost, as far as known.
        context: what an observer added at its submission (``events.Submitting``).
    """

    token: str | None = attrs.field(default=None, repr=False)
    task_id: str | None = None
    process_id: str | None = None
    route: str | None = None
    credits: float | None = None
    context: Context | None = None


@attrs.frozen(kw_only=True)
class JobResults:
    """What a job made.

    Attributes:
        tracks: in the order of the service.
        partial: whether fewer came than were asked for.
        files: where the tracks are, relative to ``directory``.
        directory: ``MACHINE:PATH``, as scp takes it; empty if that is not on record.
    """

    tracks: tuple[Track, ...] = ()
    partial: bool = False
    files: tuple[str, ...] = ()
    directory: str = ""


@attrs.frozen(kw_only=True)
class Job:
    """A job as the journal holds it.

    Attributes:
        key: its name: chosen by the caller, or made from its content.
        request: what is asked, as planned; its source may be a path.
        batch: which batch it belongs to; empty for a task of a plain session, which no worker takes.
        account: whose credits it costs; empty if that is not on record.
        attempt: how often it was intended, from 0.
        earlier_credits: what the attempts before the last one cost, or may have.
        moments: unix seconds at which each state was last reached.
    """

    key: str
    request: Request
    batch: str = ""
    account: str = ""
    state: State = State.PLANNED
    source: Source | None = None
    attempt: int = 0
    last_attempt: LastAttempt = LastAttempt()
    results: JobResults = JobResults()
    error: JobError | None = None
    earlier_credits: float = 0.0
    moments: Moments = attrs.field(factory=lambda: {State.PLANNED.value: time.time()})

    @property
    def machine(self) -> str:
        """The only machine that can read its source; empty if any can."""
        return "" if self.source is None else self.source.machine

    @property
    def waits_for(self) -> str:
        """The machine that must upload its source before it can be submitted by any; empty if it waits for none.

        A task of a plain session waits for none: whoever submits it uploads its source.
        """
        return self.machine if self.batch and self.state is State.PLANNED and self.upload_url is None else ""

    @property
    def upload_url(self) -> str | None:
        """Where its source was uploaded, perhaps too long ago."""
        return None if self.source is None else self.source.upload_url

    @property
    def token(self) -> str | None:
        """The token of the last attempt; None while it is planned."""
        return self.last_attempt.token

    @property
    def task_id(self) -> str | None:
        """The task of the last attempt; None until it is known."""
        return self.last_attempt.task_id

    @property
    def process_id(self) -> str | None:
        """The process that intended it last."""
        return self.last_attempt.process_id

    @property
    def credits(self) -> float | None:
        """What the last attempt cost, as far as known."""
        return self.last_attempt.credits

    @property
    def tracks(self) -> tuple[Track, ...]:
        """What it made."""
        return self.results.tracks

    @property
    def partial(self) -> bool:
        """Whether fewer tracks came than were asked for."""
        return self.results.partial

    @property
    def files(self) -> tuple[str, ...]:
        """Where its tracks are, relative to ``directory``."""
        return self.results.files

    @property
    def directory(self) -> str:
        """Where its files are, as ``MACHINE:PATH``; empty if that is not on record."""
        return self.results.directory

    def _repr_html_(self) -> str:
        from kie_async.journal._job_list import JobList  # for notebooks alone

        return JobList([self])._repr_html_()


@attrs.frozen(kw_only=True)
class InboundCallback:
    """A callback that was taken in, by whatever process.

    Attributes:
        token: from the path it came to.
        task_id: from its body.
        stage: from its body.
        at: unix seconds.
    """

    token: str = attrs.field(repr=False)
    task_id: str
    stage: str
    at: float


@attrs.frozen(kw_only=True)
class Attempt:
    """One submission of a job; it never loses its task id, whatever becomes of the job."""

    key: str
    number: int
    token: str = attrs.field(repr=False)
    task_id: str | None = None
    process_id: str = ""
    intended_at: float = 0.0


def is_local(request: Request) -> TypeGuard[UploadExtendRequest]:
    """Tell whether a request extends a file, which perhaps not every machine can read."""
    return isinstance(request, UploadExtendRequest) and not is_url(request.source)


def source_on(machine: str, request: Request, source: Source | None = None) -> Source | None:
    """The source of a job, to be recorded: a file is marked as readable on ``machine`` alone; "": on any."""
    if not machine or not is_local(request):
        return source
    return attrs.evolve(source or Source(path=str(request.source)), machine=machine)


# ---------------------------------------------------------------- a job as text

_PARTS: Mapping[str, type[Any]] = {"last_attempt": LastAttempt, "results": JobResults}


def pack_job(job: Job) -> str:
    """Write a job as JSON text: the fields of its parts stand beside its own, and defaults are left out."""
    fields = {
        field.name: value
        for part in (job, job.last_attempt, job.results)
        for field in attrs.fields(type(part))
        if (value := getattr(part, field.name)) != field.default and field.name not in _PARTS
    }
    return pack(fields)


def unpack_job(document: str) -> Job:
    """Read what ``pack_job`` has written.

    Raises:
        StorageError: it is something else.
    """
    parts: Mapping[str, Any] = {name: unpack_document(document, kind) for name, kind in _PARTS.items()}
    return attrs.evolve(unpack_document(document, Job), **parts)
