"""A job: a request, its state in the journal, and everything known about its submission and its results."""

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
    """The state of a job; ``kie_async.journal.TRANSITIONS`` says which can follow which.

    planned: nothing was sent. intent: a submission is about to be sent, or was sent. submitted: the service has
    accepted it. succeeded: the task has made its tracks. delivered: the files are on disk. rejected: the service
    refused it, or nothing was sent. failed: the task ended without a result. unknown: the answer was lost, and it may
    be paid. abandoned: a person gave it up.
    """

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
    """The local file that a job extends, and its upload.

    Attributes:
        path: its path.
        size: its size in bytes; 0 until it is read.
        sha256: the hash of its content, in hex; empty until it is read.
        machine: the only machine that can read it; empty if any can.
        duration: the length of its audio, in seconds; None until it is measured.
        upload_url: the address of its upload; None until it is uploaded.
        uploaded_at: when it was uploaded, in Unix seconds. The service keeps uploads for 24 hours, so a file whose
            upload is older than 20 hours is uploaded again.
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
    """Why a job has no result: the fields of the ``KieError``; ``type`` is the name of its class."""

    type: str
    message: str
    code: int | None = None
    charged: Charged = "no"
    retryable: bool = False
    refunded: bool = False

    @classmethod
    def of(cls, error: KieError) -> JobError:
        """The fields of an error, as a journal records them."""
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
    """The last submission of a job; all fields are None while the job is planned.

    Attributes:
        token: the token in its callback URL.
        task_id: the id of its task.
        process_id: the process that submitted it.
        route: the route by which it was sent, "classic" or "jobs".
        credits: what it cost, as far as known.
        context: what an observer added to its submission (``events.Submitting``).
    """

    token: str | None = attrs.field(default=None, repr=False)
    task_id: str | None = None
    process_id: str | None = None
    route: str | None = None
    credits: float | None = None
    context: Context | None = None


@attrs.frozen(kw_only=True)
class JobResults:
    """What a job has made.

    Attributes:
        tracks: the tracks, in the order of the service.
        partial: whether some tracks of the task never got their audio.
        files: the files of the tracks, relative to ``directory``.
        directory: the folder of the files, as ``MACHINE:PATH`` (as scp takes it); empty if it is not on record.
    """

    tracks: tuple[Track, ...] = ()
    partial: bool = False
    files: tuple[str, ...] = ()
    directory: str = ""


@attrs.frozen(kw_only=True)
class Job:
    """A job, as the journal records it.

    Attributes:
        key: its name, chosen by the caller or made from its content.
        request: the request, as planned; its source may be a path.
        batch: the name of its batch; empty if a session submitted it without one: then no worker takes it.
        account: the account that pays for it; empty if that is not on record.
        state: its state.
        source: the local file that it extends; None if it extends something else.
        attempt: how many times it was submitted; 0 while it was not.
        last_attempt: its last submission.
        results: what it has made.
        error: why it has no result; None if it has one, or has not ended.
        earlier_credits: what the attempts before the last one cost, or may have cost.
        moments: when each state was last reached, in Unix seconds.
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
        """The machine that must upload its source before any machine can submit it; empty if it waits for none.

        A job without a batch never waits: the session that submits it uploads its source.
        """
        return self.machine if self.batch and self.state is State.PLANNED and self.upload_url is None else ""

    @property
    def upload_url(self) -> str | None:
        """The address of the upload of its source, which may have expired; None if it was not uploaded."""
        return None if self.source is None else self.source.upload_url

    @property
    def token(self) -> str | None:
        """The token of its last attempt; None while it is planned."""
        return self.last_attempt.token

    @property
    def task_id(self) -> str | None:
        """The id of the task of its last attempt; None until it is known."""
        return self.last_attempt.task_id

    @property
    def process_id(self) -> str | None:
        """The process that made its last attempt; None while it is planned."""
        return self.last_attempt.process_id

    @property
    def credits(self) -> float | None:
        """What its last attempt cost, as far as known."""
        return self.last_attempt.credits

    @property
    def tracks(self) -> tuple[Track, ...]:
        """The tracks that it has made."""
        return self.results.tracks

    @property
    def partial(self) -> bool:
        """Whether some of its tracks never got their audio."""
        return self.results.partial

    @property
    def files(self) -> tuple[str, ...]:
        """The files of its tracks, relative to ``directory``."""
        return self.results.files

    @property
    def directory(self) -> str:
        """The folder of its files, as ``MACHINE:PATH``; empty if it is not on record."""
        return self.results.directory

    def _repr_html_(self) -> str:
        from kie_async.journal._job_list import JobList  # for notebooks alone

        return JobList([self])._repr_html_()


@attrs.frozen(kw_only=True)
class InboundCallback:
    """A callback that some process has received.

    Attributes:
        token: the token in its path.
        task_id: the task that its body names.
        stage: the stage that its body names.
        at: when it was received, in Unix seconds.
    """

    token: str = attrs.field(repr=False)
    task_id: str
    stage: str
    at: float


@attrs.frozen(kw_only=True)
class Attempt:
    """One submission of a job. It keeps its task id even if the job is submitted again.

    Attributes:
        key: the key of the job.
        number: its number, counted from 1.
        token: the token in its callback URL.
        task_id: the id of its task; None if unknown.
        process_id: the process that made it.
        intended_at: when it was recorded, before it was sent, in Unix seconds.
    """

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
