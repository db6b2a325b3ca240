"""Take a job to its end, one step at a time; its state in the journal decides which step is next.

``Runner.run_job(key)`` is called by ``run_batch``, or by a worker's engine, which may hand out a key twice: the journal
decides what may be paid.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from weakref import WeakValueDictionary

import anyio
import attrs
from anyio import to_thread

from kie_async._client import Task
from kie_async._client.concurrency import InternalErrors
from kie_async._protocol.admission import FailureStreak
from kie_async._protocol.request_rules import is_url
from kie_async.batch._budget import CreditBudget
from kie_async.batch._delivery import Delivery
from kie_async.batch._error_policy import Action, ErrorPolicy
from kie_async.batch._reconcile import RecordedTasks, find_job
from kie_async.batch._results import Results
from kie_async.errors import (
    AudioError,
    BudgetError,
    ConflictError,
    InternalError,
    InvalidRequestError,
    KieError,
    LostRecordError,
    TooManyFailuresError,
)
from kie_async.events import guarded
from kie_async.journal import FINAL, Job, JobError, Recorder, Source, State
from kie_async.models import Request, UploadExtendRequest
from kie_async.session import KieSession

JobObserver = Callable[[Job], None]

_MAX_UPLOAD_AGE = 20 * 3600.0  # seconds; the service keeps uploads for 24 hours or 3 days


class _NotSentError(KieError):
    """The batch was stopped while this job waited for the quota: it was not sent."""


class Runner:
    """Takes jobs to their end.

    Args:
        session: submits, follows and downloads.
        recorder: of the journal in use.
        results: where the files go.
        budget: what may be spent.
        observer: called with each job when its state has changed; what it raises is logged.
    """

    def __init__(
        self, session: KieSession, recorder: Recorder, results: Results, budget: CreditBudget, observer: JobObserver
    ) -> None:
        self.stopped: KieError | None = None
        self._session = session
        self._recorder = recorder
        self._journal = recorder.journal
        self._results = results
        self._delivery = Delivery(recorder.journal, recorder.leases, results)
        self._budget = budget
        self._observer = guarded(observer)
        self._policy = ErrorPolicy()
        self._failures = FailureStreak(session.settings.max_consecutive_failures)
        self._recorded = RecordedTasks(results.directory, emulated=results.emulated)
        self._uploading: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    async def run_job(self, key: str) -> Job:
        """Take a job as far as it goes, and return it as it stands then.

        Returns:
            The job at its end; or as the journal has it, with an error, if it has to wait for another run.

        Raises:
            StorageError: the journal is away.

        Cancelling leaves it where the journal says; the next call goes on from there.
        """
        try:
            with InternalErrors(f"job {key!r}"):
                return await self._run(key)
        except InternalError as error:  # of this job alone: the others go on
            job = attrs.evolve(await self._get(key), error=JobError.of(error))
            self._report(job)
            return job

    async def _run(self, key: str) -> Job:
        job = await self._get(key)
        while job.state not in FINAL:
            if job.state is State.PLANNED and self.stopped is not None:
                return job
            try:
                job = await self._step(job)
            except KieError as error:
                job, delay = await self._get(key), self._apply_policy(error)
                if job.state not in FINAL and delay is None:
                    return self._put_off(job, error)
                await anyio.sleep(delay or 0.0)
            self._report(job)
        if job.state is not State.DELIVERED:  # its end was recorded before its state changed
            await self._results.record_end(job)
        return job

    def _put_off(self, job: Job, error: KieError) -> Job:
        """Return a job that cannot go on in this run, with the reason."""
        if not isinstance(error, _NotSentError):
            job = attrs.evolve(job, error=JobError.of(error))
        if isinstance(error, ConflictError) and not isinstance(error, LostRecordError):  # another process has it
            self._budget.settle_job(job)
        else:
            self._report(job)
        return job

    def _check_running(self) -> None:
        if self.stopped is None:
            try:
                self._failures.check()
            except TooManyFailuresError as error:
                self.stopped = error
        if self.stopped is not None and not isinstance(self.stopped, BudgetError):  # the cap has room for this one
            raise _NotSentError("the batch was stopped: nothing was sent")

    def _report(self, job: Job) -> None:
        self._budget.settle_job(job)
        self._observer(job)

    def _apply_policy(self, error: KieError) -> float | None:
        """Return the seconds until the job is tried again, if it is not at its end; None if it is not, in this run."""
        decision = self._policy.decide(error)
        if decision.action is Action.STOP:
            self.stopped = self.stopped or error
        return decision.delay if decision.action is Action.RETRY_LATER else None

    async def _get(self, key: str) -> Job:
        return await find_job(self._journal, key)

    # ------------------------------------------------------------ the steps

    async def _step(self, job: Job) -> Job:
        steps = {
            State.PLANNED: self._submit,
            State.INTENT: self._recorder.takeover.settle,
            State.SUBMITTED: self._follow,
            State.SUCCEEDED: self._deliver,
        }
        return await steps[job.state](job)

    async def _submit(self, job: Job) -> Job:
        """Upload, submit, and wait for the end."""
        self._check_running()
        if (task := await self._recorded.find_lost(self._journal, job)) is not None:
            raise task.lost_error()
        self._budget.reserve(job.key)
        try:
            prepare = partial(self._prepare, job)
            submitted = await self._recorder.submit_job(
                job.key, job.request, batch=job.batch, prepare=prepare, check=self._check_running
            )
        except (AudioError, InvalidRequestError) as error:
            if (await self._get(job.key)).state is State.PLANNED:  # our own check, before anything was sent
                return await self._journal.move(job.key, State.REJECTED, error=JobError.of(error))
            raise
        self._policy.succeed()
        self._observer(await self._get(job.key))
        return await self._wait_for_end(job.key, submitted)

    async def _follow(self, job: Job) -> Job:
        self._budget.take_over(job.key)
        return await self._wait_for_end(job.key, self._recorder.follow(job))

    async def _wait_for_end(self, key: str, task: Task) -> Job:
        failure = None
        try:
            await task
        except KieError as error:
            failure = error
        await self._recorder.wait_recorded(task.id)
        job = await self._get(key)
        if job.state is State.SUCCEEDED:
            self._failures.succeeded()
        elif job.state is State.FAILED:
            self._failures.failed(failure)
        if job.state is State.SUBMITTED and failure is not None:
            raise failure  # no end: the timeout is over, or the key was refused
        return job

    async def _deliver(self, job: Job) -> Job:
        return await self._delivery.deliver(job, self._session.download)

    # ------------------------------------------------------------ sources

    async def _prepare(self, job: Job, request: Request) -> Request:
        """Return the request as it is sent: a local source is uploaded, once per content."""
        if not isinstance(request, UploadExtendRequest) or is_url(request.source):
            return request
        source = job.source
        if source is None:
            source = await to_thread.run_sync(_read_source, Path(request.source))
        lock = self._uploading.setdefault(source.sha256, asyncio.Lock())
        async with lock:
            uploaded = await self._journal.uploaded(source.sha256, time.time() - _MAX_UPLOAD_AGE)
            uploaded = uploaded or await self._upload(job, source)
        return attrs.evolve(request, source=uploaded.upload_url or "")

    async def _upload(self, job: Job, source: Source) -> Source:
        now = await to_thread.run_sync(_read_source, Path(source.path))
        if now.sha256 != source.sha256:
            raise AudioError(f"{Path(source.path).name} changed since the batch was planned: plan it anew")
        uploaded = await self._session.upload(source.path, measure=False)
        source = attrs.evolve(source, upload_url=uploaded.download_url, uploaded_at=time.time())
        await self._journal.upload(job.key, source)
        return source


def _read_source(path: Path) -> Source:
    """Return the size and content of a file; blocks."""
    try:
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            return Source(path=str(path), size=file.tell(), sha256=digest)
    except OSError as error:
        raise AudioError(f"{path.name} cannot be read: {error.strerror}") from None
