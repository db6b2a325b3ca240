"""Take a job to its end, one step at a time; its state in the journal decides which step is next.

``Runner.run_job(key)`` is called by ``run_batch``, or by a worker's engine, which may hand out a key twice: the journal
decides what may be paid.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from pathlib import Path
from weakref import WeakValueDictionary

import anyio
import attrs
from anyio import to_thread

from kie_async._client.concurrency import InternalErrors
from kie_async._client.task import Task
from kie_async._protocol.admission import FailureStreak
from kie_async.batch._delivery import Delivery
from kie_async.batch._policy import Action, CreditBudget, ErrorPolicy
from kie_async.batch._reconcile import RecordedTasks, adopt_remedy, find_job
from kie_async.batch._results import Results, song_file
from kie_async.errors import (
    AudioError,
    BudgetError,
    ConflictError,
    FileError,
    InternalError,
    InvalidRequestError,
    KieError,
    LostRecordError,
    TooManyFailuresError,
)
from kie_async.events import guarded
from kie_async.files import hash_source
from kie_async.journal import FINAL, Job, JobError, Recorder, Source, State, is_local
from kie_async.models import Request
from kie_async.session import KieSession

JobObserver = Callable[[Job], None]
Step = Callable[[Job], Awaitable[Job]]

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
        observer: called with each job when its state has changed, or its source was uploaded for other machines; what
            it raises is logged.
    """

    def __init__(
        self, session: KieSession, recorder: Recorder, results: Results, budget: CreditBudget, observer: JobObserver
    ) -> None:
        self.stopped: KieError | None = None
        self._session = session
        self._recorder = recorder
        self._results = results
        self._delivery = Delivery(recorder.journal, recorder.leases, results, guarded(session.settings.observer))
        self._budget = budget
        self._observer = guarded(observer)
        self._policy = ErrorPolicy()
        self._failures = FailureStreak(session.settings.max_consecutive_failures)
        self._full: dict[str, BudgetError] = {}  # by batch, whose cap on record was found to leave no room
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
        steps = {
            State.PLANNED: self._submit,
            State.INTENT: self._recorder.takeover.resolve,
            State.SUBMITTED: self._follow,
            State.SUCCEEDED: self._deliver,
        }
        return await self._run_steps(key, steps, lambda job: job.state in FINAL)

    async def upload(self, key: str) -> Job:
        """Upload the source of a job that waits for this machine, so that any machine can submit it.

        Returns:
            The job as it stands then: rejected, if its source cannot be used; with an error, if it has to wait.

        Raises:
            StorageError: the journal is away.
        """
        return await self._run_steps(key, {State.PLANNED: self._upload}, lambda job: not job.waits_for)

    def why_stopped(self, batch: str) -> KieError | None:
        """Return what keeps this run from submitting more jobs of a batch; None if nothing does."""
        return self.stopped or self._full.get(batch)

    async def _run_steps(self, key: str, steps: Mapping[State, Step], is_done: Callable[[Job], bool]) -> Job:
        try:
            with InternalErrors(f"job {key!r}"):
                return await self._run(key, steps, is_done)
        except InternalError as error:  # of this job alone: the others go on
            job = attrs.evolve(await self._get(key), error=JobError.of(error))
            self._report(job)
            return job

    async def _run(self, key: str, steps: Mapping[State, Step], is_done: Callable[[Job], bool]) -> Job:
        job = await self._get(key)
        if not job.batch:  # a plain session's, which an older version has queued
            return job
        while not is_done(job):
            if job.state is State.PLANNED and self.stopped is not None:
                return job
            try:
                job = await steps[job.state](job)
            except KieError as error:
                job, delay = await self._after_error(job, error)
                if not is_done(job) and delay is None:
                    return self._put_off(job, error)
                await anyio.sleep(delay or 0.0)
            self._report(job)
        if job.state in FINAL and job.state is not State.DELIVERED:  # its end was recorded before its state changed
            await self._results.record_end(job)
        return job

    async def _after_error(self, before: Job, error: KieError) -> tuple[Job, float | None]:
        """Return a job as it stands after an error of a step, and the seconds until it is tried again in this run.

        None instead of seconds if it is not.
        """
        job = await self._get(before.key)
        if isinstance(error, (AudioError, InvalidRequestError)) and before.state is job.state is State.PLANNED:
            rejected = await self._recorder.journal.move(job.key, State.REJECTED, error=JobError.of(error))
            return rejected, None  # by our own check
        self._failures.failed(error)
        action, delay = self._policy.decide(error)
        if action is Action.STOP:
            self.stopped = self.stopped or error
        return job, delay if action is Action.RETRY_LATER else None

    def _put_off(self, job: Job, error: KieError) -> Job:
        """Return a job that cannot go on in this run, with the reason."""
        if not isinstance(error, _NotSentError):
            job = attrs.evolve(job, error=JobError.of(error))
        is_reported = isinstance(error, BudgetError) and error.batch in self._full  # by another job of its batch
        if isinstance(error, BudgetError):
            self._full.setdefault(error.batch, error)
        is_elsewhere = isinstance(error, ConflictError) and not isinstance(error, LostRecordError)  # another has it
        if is_reported or is_elsewhere:
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

    async def _get(self, key: str) -> Job:
        return await find_job(self._recorder.journal, key)

    # ------------------------------------------------------------ the steps

    async def _submit(self, job: Job) -> Job:
        """Upload, submit, and wait for the end."""
        self._check_running()
        if (task := await self._recorded.find_lost(self._recorder.journal, job)) is not None:
            raise task.lost_error(adopt_remedy(self._results.directory, self._recorder.journal))
        await self._recorder.check_caps(job.batch)
        request = job.request
        if job.machine and is_local(request):
            request = attrs.evolve(request, source=await self._address(job))
        self._budget.reserve(job.key)
        prepare = partial(self._prepare, job)
        submitted = await self._recorder.submit_planned(job.key, request, prepare=prepare, check=self._check_running)
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

    async def _address(self, job: Job) -> str:
        """Return the URL of the uploaded source of a job; on the machine that has the file, upload it if need be.

        Raises:
            FileError: the job waits for another machine.
        """
        uploaded = job.source and await self._find_upload(job.source)
        url = None if uploaded is None else uploaded.upload_url
        if url is None and job.machine == self._session.settings.machine:
            url = (await self._upload(job)).upload_url
        if url is not None:
            return url
        if job.source is not None and not job.waits_for:  # its upload is too old
            await self._recorder.journal.upload(job.key, attrs.evolve(job.source, upload_url=None, uploaded_at=None))
        raise FileError(f"its source is a file of the machine {job.machine!r}, where a worker has to upload it")

    async def _prepare(self, job: Job, request: Request) -> Request:
        """Return the request as it is sent: a local source is uploaded, once per content."""
        if not is_local(request):
            return request
        return attrs.evolve(request, source=(await self._upload(job)).upload_url or "")

    async def _upload(self, job: Job) -> Job:
        """Upload the source of a job, unless its content was uploaded lately, and note the URL with the job."""
        source = job.source
        if source is None or not source.sha256:
            source = await to_thread.run_sync(_read_source, song_file(job.request) or Path(), job.machine)
        lock = self._uploading.setdefault(source.sha256, asyncio.Lock())
        async with lock:
            uploaded = await self._find_upload(source) or await self._upload_file(source)
            source = attrs.evolve(source, upload_url=uploaded.upload_url, uploaded_at=uploaded.uploaded_at)
            return await self._recorder.journal.upload(job.key, source)

    async def _find_upload(self, source: Source) -> Source | None:
        return await self._recorder.journal.uploaded(source.sha256, time.time() - _MAX_UPLOAD_AGE)

    async def _upload_file(self, source: Source) -> Source:
        now = await to_thread.run_sync(_read_source, Path(source.path))
        if now.sha256 != source.sha256:
            raise AudioError(f"{Path(source.path).name} changed since the batch was planned: plan it anew")
        uploaded = await self._session.upload(source.path, measure=False)
        return attrs.evolve(source, upload_url=uploaded.download_url, uploaded_at=time.time())


def _read_source(path: Path, machine: str = "") -> Source:
    """Return the size and content of a file, which only this machine can read; blocks."""
    try:
        digest, _ = hash_source(path, measured=False)
        return Source(path=str(path), size=path.stat().st_size, sha256=digest, machine=machine)
    except OSError as error:
        raise AudioError(f"{path.name} cannot be read: {error.strerror}") from None
