"""A session's side of its journal: submits jobs, follows their tasks, records their ends, and acts on callbacks.

A crash can come between any two writes: what is in the journal is always enough to continue (``_takeover``).
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress
from typing import Protocol, Self

import anyio

from kie_async._client.client import Client
from kie_async._client.concurrency import emit_failures
from kie_async._client.submitter import Check, Prepare, SubmissionLog
from kie_async._client.task import Origin, Task, TrackedTask
from kie_async._protocol.admission import check_task_id, task_id_error
from kie_async.errors import BudgetError, ConflictError, KieError
from kie_async.events import Notice
from kie_async.journal._caps import Payer
from kie_async.journal._job import InboundCallback, Job, JobError, State, source_on
from kie_async.journal._journal import Journal
from kie_async.journal._leases import Leases, process_lease
from kie_async.journal._same_request import asks_the_same
from kie_async.journal._submission_log import JobSubmissionLog, OutcomeWriter
from kie_async.journal._takeover import WITHOUT_ANSWER, Takeover
from kie_async.journal._transitions import PAID, another_request_error, charged
from kie_async.models import ExtendRequest, Request
from kie_async.settings import Settings

_CALLBACK_RETENTION = 86_400.0  # seconds that callbacks are kept after the end of their job
_PRUNE_INTERVAL = 3600.0  # seconds between two deletions of old callbacks


class Dispatching(Protocol):
    """What a recorder needs of a session's dispatcher, which submits requests."""

    async def admit(self, request: Request) -> Request:
        """Check a request before anything waits or is spent; return it with the length of its source."""
        ...

    async def submit(
        self, request: Request, *, prepare: Prepare | None, log: SubmissionLog, check: Check
    ) -> TrackedTask:
        """Submit an admitted request."""
        ...

    def task(self, tracked: TrackedTask, key: str | None = None) -> Task:
        """The task as a user holds it."""
        ...


class Recorder(anyio.AsyncContextManagerMixin):
    """The session's side of its journal: submits and follows jobs, records their ends, and acts on callbacks.

    Args:
        journal: open already.
        client: of the session; background work runs in its task group.
        dispatcher: of the session; it submits requests and makes their tasks.

    Attributes:
        journal: the one given.
        group: the task group of the session.
        leases: the leases that this process holds.
        takeover: continues the jobs of processes that have died.
    """

    def __init__(self, journal: Journal, client: Client, dispatcher: Dispatching) -> None:
        self.journal = journal
        self.group = client.group
        self._client = client
        self._dispatcher = dispatcher
        self._payer = _payer_of(client.settings)
        self.leases = Leases(journal, client.emit)
        self._outcomes = OutcomeWriter(journal, client.emit)
        knows = client.submitter.knows
        self.takeover = Takeover(journal, self.leases, knows=knows, follow=self.follow, emit=client.emit)
        self._is_closing = False

    @asynccontextmanager
    async def __asynccontextmanager__(self) -> AsyncGenerator[Self]:
        async with self.leases.holding(process_lease(self.journal.process_id)):
            scope, stopped = anyio.CancelScope(), anyio.Event()
            # In the session's group: the asyncio task that leaves this block need not be the one that entered it.
            self.group.start_soon(self._background, scope, stopped)
            self._client.tracker.on_finished = self._outcomes.add
            try:
                yield self
            finally:
                self._is_closing = True
                with anyio.CancelScope(shield=True):
                    # POSTs under way may be paid: wait for their answers first, while leases are still renewed.
                    await self._client.submitter.drain()
                    scope.cancel()
                    await stopped.wait()
                    await self._outcomes.close()  # tries to write the outcomes seen so far
                    self._client.tracker.on_finished = None
                    await self.takeover.take_back_unsent()

    async def _background(self, scope: anyio.CancelScope, stopped: anyio.Event) -> None:
        try:
            with scope:
                async with anyio.create_task_group() as group:
                    group.start_soon(self.leases.keep_renewing)
                    group.start_soon(self._watch_callbacks)
                    group.start_soon(self.takeover.run)
                    group.start_soon(self._outcomes.run)
                    group.start_soon(self._prune_callbacks)
        finally:
            stopped.set()

    # ------------------------------------------------------------ submitting and following

    async def submit(self, request: Request, key: str | None, check: Check) -> Task:
        """Submit a request as the job of a key, new or planned; if that job is paid already, follow its task instead.

        Args:
            request: the request.
            key: of the job; None for a random one. If nothing is sent, because of an error or a cancellation, a job
                recorded here under a random key becomes ``REJECTED``: nobody knows the key, so nobody could submit it
                again. One with a given key stays planned; a ``BudgetError`` is recorded with it.
            check: called right before the POST; if it raises, nothing is sent, and the error is raised here.

        Raises:
            BudgetError: ``Settings.max_credits`` leaves no room for it.
            ConflictError: the job of this key is being submitted, or is rejected, failed, unknown or abandoned; or
                its request asks for something else (``asks_the_same`` decides). Nothing was sent; ``charged`` says
                whether the job was paid.
            KieError: as ``KieSession.submit``.
        """
        request = await self._admit(request)
        if key:
            try:
                return await self._submit_as(key, await self.journal.get(key), request, check)
            except BudgetError as error:
                await self._record_unsent(key, State.PLANNED, error)
                raise
        key = secrets.token_hex(16)
        try:
            return await self._submit_as(key, None, request, check)
        except (KieError, asyncio.CancelledError) as error:
            await self._record_unsent(key, State.REJECTED, error)
            raise

    async def _submit_as(self, key: str, job: Job | None, request: Request, check: Check) -> Task:
        """Submit an admitted request as the job of a key; if that is paid, follow it. ``job``: as on record."""
        if job is None or job.state not in PAID:
            await self.check_caps("")  # before anything is recorded
        if job is None:
            machine = self._client.settings.machine if self.journal.spans_machines else ""
            job = Job(key=key, request=request, source=source_on(machine, request))
            if not await self.journal.add([job]):  # another submission has just added this key
                job = await self.journal.get(key) or job
        if not asks_the_same(job.request, request):
            raise another_request_error(job)
        if job.state in PAID:
            return self.follow(job)
        if job.state is not State.PLANNED:
            message = f"job {job.key!r} is {job.state}, not planned (any more)"
            raise ConflictError(message, job.task_id, charged=charged(job))
        return await self._submit_admitted(job.key, request, None, check)

    async def _record_unsent(self, key: str, to: State, error: BaseException) -> None:
        """If a job is still planned, move it to ``to``, with the reason why it was not sent; ignore failures."""
        if not isinstance(error, KieError):
            error = KieError("it was cancelled before it was sent", charged="no")
        with suppress(KieError), anyio.CancelScope(shield=True):  # the caller raises the error of the submission
            job = await self.journal.get(key)
            if job is not None and job.state is State.PLANNED:
                await self.journal.move(key, to, error=JobError.of(error))

    async def check_caps(self, batch: str) -> None:
        """Check that the caps have room for one more submission, before its source is uploaded.

        Raises:
            BudgetError: the cap of the batch, or ``Settings.max_credits``, leaves no room.
        """
        await self.journal.caps.check(batch, self._payer)

    async def submit_planned(self, key: str, request: Request, *, prepare: Prepare, check: Check) -> Task:
        """Submit a job that is on record as planned, and record its transitions and its outcome.

        Args:
            key: of the job.
            request: of the job.
            prepare: called when a place in flight is free; uploads the source, and returns the request to send.
            check: called right before the POST; if it raises, nothing is sent, and the error is raised here.

        Raises:
            BudgetError: the cap of its batch, or ``Settings.max_credits``, leaves no room for it.
            ConflictError: it is not planned.
            KieError: as ``KieSession.submit``.
        """
        return await self._submit_admitted(key, await self._admit(request), prepare, check)

    async def _admit(self, request: Request) -> Request:
        if isinstance(request, ExtendRequest):
            job = await self.journal.find(task_id=request.audio_id)
            if job is not None:  # it is the id of a task, where the id of a track is needed
                raise task_id_error(tuple(track.id for track in job.tracks))
        return await self._dispatcher.admit(request)

    async def _submit_admitted(self, key: str, request: Request, prepare: Prepare | None, check: Check) -> Task:
        """Submit the admitted request of a planned job, and record its transitions and its outcome."""
        log = JobSubmissionLog(
            key=key,
            route=self._client.settings.route,
            payer=self._payer,
            journal=self.journal,
            leases=self.leases,
            not_sent=self.takeover.not_sent,  # shared: takeover later undoes the intents that the log cannot undo now
            emit=self._client.emit,
            is_closing=lambda: self._is_closing,
        )
        tracked = await self._dispatcher.submit(request, prepare=prepare, log=log, check=check)
        return self._dispatcher.task(tracked, key)

    def follow(self, job: Job) -> Task:
        """Follow the task of a paid job; its outcome is recorded, unless the job has ended already."""
        # Not own, because another session may have submitted it: record-info tells its age and its kind.
        origin = Origin.of(job.request, job.last_attempt.context, is_own=False)
        return self._dispatcher.task(self._client.tracker.follow(check_task_id(job.task_id), origin), job.key)

    async def resume(self) -> AsyncGenerator[Task, None]:
        """Of the jobs without a batch, resolve those sent without an answer; then follow the submitted ones."""
        await self.takeover.resolve_all("")
        async for job in self.journal.jobs(State.SUBMITTED, batch=""):
            yield self.follow(job)

    async def wait_recorded(self, task_id: str) -> None:
        """Wait for the first try to write the outcome of a task; return at once if none is pending.

        Raises:
            KieError: that try failed; if the error is ``retryable``, it is tried again while the journal is open.
        """
        await self._outcomes.wait_recorded(task_id)

    # ------------------------------------------------------------ callbacks

    async def save_callback(self, token: str, task_id: str, stage: str) -> bool:
        """Save a callback durably, before it is answered; a process that watches the journal acts on it.

        Returns:
            False if nothing is saved: no attempt has this token; its known task is another; or that task's job has
            ended.
        """
        callback = InboundCallback(token=token, task_id=task_id, stage=stage, at=time.time())
        return await self.journal.save_callback(callback)

    async def _watch_callbacks(self) -> None:
        submitter = self._client.submitter
        async for callback in self.journal.watch_callbacks():
            if not submitter.knows(callback.token):
                await self._act_on_unknown_token(callback)
            elif why_ignored := submitter.callback_received(callback.token, callback.task_id, callback.stage):
                self._client.emit(Notice(callback.task_id, why_ignored))

    async def _act_on_unknown_token(self, callback: InboundCallback) -> None:
        """Act on a callback whose token is unknown here; another process may have sent its submission."""
        task_id, job = callback.task_id, None
        note = "its callback is saved, but its job could not be found or resolved now"
        with emit_failures(self._client.emit, note, task_id):
            job = await self._recover_by_callback(callback)
        is_followed = self._client.tracker.note_callback(task_id, callback.stage, is_authentic=job is not None)
        if is_followed or job is None:
            return
        if job.state is State.SUBMITTED and job.process_id == self.journal.process_id:
            self.follow(job)  # this process stopped following it after task_timeout, but the task goes on

    async def _recover_by_callback(self, callback: InboundCallback) -> Job | None:
        """Return the job whose latest attempt has a callback's token, if its task is the callback's; else None.

        A job without an answer is first resolved by its saved callbacks, if possible, and its task is then followed.
        """
        job = await self.journal.find(token=callback.token)
        if job is None or job.token != callback.token:  # the token of an earlier attempt
            return None
        if job.state in WITHOUT_ANSWER:
            job = await self.takeover.try_to_resolve(job)
            if job.state is State.SUBMITTED:
                self.follow(job)
        return job if job.task_id == callback.task_id else None

    async def _prune_callbacks(self) -> None:
        """Delete the callbacks of jobs that ended more than a day ago, every hour."""
        while True:
            with emit_failures(self._client.emit, "old callbacks could not be deleted now"):
                await self.journal.prune(time.time() - _CALLBACK_RETENTION)
            await anyio.sleep(_PRUNE_INTERVAL)


def _payer_of(settings: Settings) -> Payer:
    since = settings.max_credits_since
    return Payer(
        account=settings.account, max_credits=settings.max_credits, since=0.0 if since is None else since.timestamp()
    )
