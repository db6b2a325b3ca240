"""A job: one request on its way from a manifest to files on disk, with all that was learnt of it."""

from __future__ import annotations

import time
from collections.abc import Mapping
from enum import StrEnum
from typing import TypeAlias

import attrs

from kie_async.errors import Charged, KieError, TaskFailedError
from kie_async.events import clean
from kie_async.models import Request, Track

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
        size: bytes.
        sha256: of the content, hex.
        duration: seconds of audio in it.
        upload_url: where the service can fetch it; None until it is uploaded.
        uploaded_at: unix seconds; the service keeps uploads for 24 hours, so it is uploaded again when older than 20.
    """

    path: str
    size: int
    sha256: str
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


@attrs.frozen(kw_only=True)
class Job:
    """A job as the journal holds it.

    Attributes:
        key: its name: chosen by the caller, or made from its content.
        request: what is asked, as planned; its source may be a path.
        batch: which batch it belongs to; empty for a task of a plain session.
        attempt: how often it was intended, from 0.
        token: the token of the last attempt, in its callback URL; None while it is planned.
        task_id: the task of the last attempt; None while it is planned.
        process_id: of the process that intended it last.
        tracks: what it made.
        files: where the tracks are, relative to the directory of the batch.
        credits: what the last attempt cost, as far as known.
        earlier_credits: what the attempts before cost, or may have.
        moments: unix seconds at which each state was last reached.
    """

    key: str
    request: Request
    batch: str = ""
    state: State = State.PLANNED
    source: Source | None = None
    attempt: int = 0
    token: str | None = attrs.field(default=None, repr=False)
    task_id: str | None = None
    process_id: str | None = None
    route: str | None = None
    stage: str | None = None
    tracks: tuple[Track, ...] = ()
    partial: bool = False
    files: tuple[str, ...] = ()
    error: JobError | None = None
    credits: float | None = None
    earlier_credits: float = 0.0
    moments: Moments = attrs.field(factory=lambda: {State.PLANNED.value: time.time()})


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


def job_error(error: KieError) -> JobError:
    """The facts of an error, as a journal keeps them."""
    return JobError(
        type=type(error).__name__,
        message=clean(error.message),
        code=error.code,
        charged=error.charged,
        retryable=error.retryable,
        refunded=isinstance(error, TaskFailedError) and error.refunded,
    )
