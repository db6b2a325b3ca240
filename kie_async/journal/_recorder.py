"""Keeps a session's journal in step with what happens: intents, task ids, outcomes, and callbacks from any process.

A crash can fall between any two writes. What the journal then says is always enough to go on: an intent without an
answer, whose process is dead, is unknown unless a callback with its token was saved; a submitted task is followed on.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress
from typing import Protocol, Self

import anyio
from anyio.abc import TaskGroup

from kie_async._client import Client, Task
from kie_async._client.concurrency import internal_errors
from kie_async._client.submitter import Check, Prepare, SubmissionLog
from kie_async._client.task import Origin, TrackedTask
from kie_async._protocol.preconditions import check_task_id, task_problem
from kie_async.errors import ConflictError, KieError
from kie_async.events import Notice, clean
from kie_async.journal._job import InboundCallback, Job, JobError, State
from kie_async.journal._journal import Journal
from kie_async.journal._leases import LEASE, Leases, process_lease
from kie_async.journal._submission_log import JobSubmissionLog, OutcomeWriter
from kie_async.journal._transitions import PAID
from kie_async.models import ExtendRequest, Request

_MAX_CALLBACK_AGE = 86_400.0  # seconds that callbacks are kept after the end of their job
_PRUNE_INTERVAL = 3600.0  # seconds between two deletions of old callbacks
_TAKE_OVER_INTERVAL = 10.0  # seconds between two checks whether a process has died
_WITHOUT_ANSWER = (State.INTENT, State.UNKNOWN)


class TaskMaker(Protocol):
    """What a recorder needs of a session to make a task of a request."""

    async def admit(self, request: Request) -> Request:
        """Check and measure a request before anything waits or is spent."""
        ...

    async def submit(
        self, request: Request, *, prepare: Prepare | None, log: SubmissionLog, check: Check
    ) -> TrackedTask:
        """Submit a request that was admitted."""
        ...

    def task(self, tracked: TrackedTask, key: str | None = None) -> Task:
        """The task as a user holds it."""
        ...


class Recorder(anyio.AsyncContextManagerMixin):
    """Submits and follows the jobs of a journal for a session, and records what becomes of them.

    Args:
        journal: open already.
        client: of the session; the background tasks live in its group.
        dispatcher: of the session.

    Attributes:
        leases: those that this process holds.
    """

    def __init__(self, journal: Journal, client: Client, dispatcher: TaskMaker) -> None:
        self.journal = journal
        self._client = client
        self._dispatcher = dispatcher
        self.leases = Leases(journal, client.emit)
        self._outcomes = OutcomeWriter(journal, client.emit)
        self._not_sent: dict[str, str] = {}  # by token, the keys of intents that may be written, and were not sent
        self._is_closing = False

    @asynccontextmanager
    async def __asynccontextmanager__(self) -> AsyncGenerator[Self]:
        async with self.leases.holding(process_lease(self.journal.process_id)):
            scope, is_over = anyio.CancelScope(), anyio.Event()
            self.group.start_soon(self._background, scope, is_over)
            self._client.tracker.on_finished = self._outcomes.add
            try:
                yield self
            finally:
                self._is_closing = True
                with anyio.CancelScope(shield=True):
                    await self._client.submitter.drained()  # the answers are paid for: they get into the journal
                    scope.cancel()
                    await is_over.wait()
                    await self._outcomes.finish()
                    for token, key in self._not_sent.items():
                        with suppress(KieError):  # it was planned again before, or the journal is away
                            await self.journal.move(key, State.PLANNED, token=token)
                self._client.tracker.on_finished = None

    async def _background(self, scope: anyio.CancelScope, is_over: anyio.Event) -> None:
        # In the session's group, so that the recorder may be closed by another task than the one that opened it.
        try:
            with scope:
                async with anyio.create_task_group() as group:
                    group.start_soon(self.leases.keep_renewing)
                    group.start_soon(self._watch_callbacks)
                    group.start_soon(self._take_over)
                    group.start_soon(self._outcomes.run)
                    group.start_soon(self._prune)
        finally:
            is_over.set()

    @property
    def group(self) -> TaskGroup:
        """The task group of the session."""
        return self._client.group

    def _notice(self, task_id: str | None, note: str) -> None:
        self._client.emit(Notice(task_id or "", note))

    # ------------------------------------------------------------ submitting and following

    async def submit(self, request: Request, key: str | None, check: Check) -> Task:
        """Submit a request as a new job; if the journal has a paid job of this key, follow its task.

        Args:
            request: the request.
            key: of the job; None for a random one.
            check: called right before the POST; if it raises, nothing is sent, and the error is raised here.

        Raises:
            ConflictError: the job is being submitted, or is rejected, failed, unknown or abandoned.
            KieError: as ``KieSession.submit``.
        """
        request = await self._admit(request)
        key = key or secrets.token_hex(16)
        await self.journal.add([Job(key=key, request=request)])
        job = await self.journal.get(key)
        if job is not None and job.state in PAID and job.task_id:
            return self.follow(job)
        return await self._submit(key, request, None, check)

    async def submit_job(self, key: str, request: Request, *, prepare: Prepare | None = None, check: Check) -> Task:
        """Submit a planned job; its transitions and its outcome are recorded.

        Args:
            key: of the job.
            request: as it is to be sent, or prepared.
            prepare: makes it ready once a place in flight is free; by default, uploads its source.
            check: called right before the POST; if it raises, nothing is sent, and the error is raised here.

        Raises:
            ConflictError: it is not planned.
            KieError: as ``KieSession.submit``.
        """
        return await self._submit(key, await self._admit(request), prepare, check)

    async def _admit(self, request: Request) -> Request:
        if isinstance(request, ExtendRequest):
            job = await self.journal.find(task_id=request.audio_id)
            if job is not None:  # the id of a task, given in place of that of a track
                raise task_problem(tuple(track.id for track in job.tracks))
        return await self._dispatcher.admit(request)

    async def _submit(self, key: str, request: Request, prepare: Prepare | None, check: Check) -> Task:
        log = JobSubmissionLog(
            key=key,
            route=self._client.settings.route,
            journal=self.journal,
            leases=self.leases,
            not_sent=self._not_sent,
            emit=self._client.emit,
            is_closing=lambda: self._is_closing,
        )
        tracked = await self._dispatcher.submit(request, prepare=prepare, log=log, check=check)
        return self._dispatcher.task(tracked, key)

    def follow(self, job: Job) -> Task:
        """Follow the task of a submitted job; its outcome is recorded."""
        origin = Origin.of(job.request, is_own=False)
        return self._dispatcher.task(self._client.tracker.follow(check_task_id(job.task_id), origin), job.key)

    async def wait_recorded(self, task_id: str) -> None:
        """Wait until the outcome of a task is in the journal; return at once if none is known here.

        Raises:
            StorageError: it could not be written now. It is tried again for as long as the journal is open.
        """
        await self._outcomes.wait_recorded(task_id)

    # ------------------------------------------------------------ callbacks

    async def save_callback(self, token: str, task_id: str, stage: str) -> bool:
        """Save a callback, durably, before it is answered; some process that watches the journal acts on it.

        Returns:
            False if no attempt has this token, or its task is another or has ended: nothing is saved.
        """
        callback = InboundCallback(token=token, task_id=task_id, stage=stage, at=time.time())
        return await self.journal.save_callback(callback)

    async def _watch_callbacks(self) -> None:
        submitter = self._client.submitter
        async for callback in self.journal.watch_callbacks():
            if not submitter.knows(callback.token):
                await self._act_on(callback)
            elif why_ignored := submitter.callback_received(callback.token, callback.task_id, callback.stage):
                self._notice(callback.task_id, why_ignored)

    async def _act_on(self, callback: InboundCallback) -> None:
        """Act on a callback of a submission that is not under way here, and whose task may not be followed here."""
        task_id = callback.task_id
        try:
            with internal_errors("a callback"):
                job = await self._recover_by_callback(callback)
        except KieError as error:
            self._notice(task_id, f"its callback could not be recorded now: {clean(error.message)}")
            job = None
        is_followed = self._client.tracker.callback_received(task_id, callback.stage, is_authentic=job is not None)
        is_ours_to_follow = (
            job is not None and job.state is State.SUBMITTED and job.process_id == self.journal.process_id
        )
        if job is not None and is_ours_to_follow and not is_followed:
            self.follow(job)  # its task_timeout was over, but the task goes on

    async def _recover_by_callback(self, callback: InboundCallback) -> Job | None:
        """The job whose task a callback speaks of. One that has no task yet is submitted from now on."""
        job = await self.journal.find(token=callback.token)
        if job is not None and job.state in _WITHOUT_ANSWER and job.token == callback.token:
            job = await self._try_to_recover(job)
            if job.state is State.SUBMITTED:
                self.follow(job)
        matches = job is not None and (job.token, job.task_id) == (callback.token, callback.task_id)
        return job if matches else None

    async def _prune(self) -> None:
        """Delete the callbacks of jobs that have been at their end for a day."""
        while True:
            try:
                with internal_errors("old callbacks"):
                    await self.journal.prune(time.time() - _MAX_CALLBACK_AGE)
            except KieError as error:
                self._notice("", f"old callbacks could not be deleted now: {clean(error.message)}")
            await anyio.sleep(_PRUNE_INTERVAL)

    # ------------------------------------------------------------ what a dead process leaves

    async def resume(self) -> AsyncGenerator[Task, None]:
        """Follow the submitted jobs that belong to no batch, after ``recover_all``."""
        await self.recover_all("")
        async for job in self.journal.jobs(State.SUBMITTED, batch=""):
            yield self.follow(job)

    async def recover(self, job: Job) -> Job:
        """Settle an intent whose process is dead, or an unknown: it is submitted if a callback named its task.

        An intent of which this process knows that nothing was sent is planned again.

        Raises:
            ConflictError: its process lives, or another one was quicker.
        """
        if job.token is not None and self._client.submitter.knows(job.token):
            raise ConflictError(f"job {job.key!r} is being submitted by this process", job.task_id)
        if job.state not in _WITHOUT_ANSWER:
            return job
        if job.state is State.INTENT and job.token in self._not_sent:
            return await self.journal.move(job.key, State.PLANNED, token=job.token)
        if job.state is State.INTENT and job.process_id != self.journal.process_id:
            await self.leases.ensure_dead(job.process_id or "")
        callbacks = await self.journal.callbacks_for(token=job.token)
        if job.state is State.INTENT and not callbacks:
            error = JobError(type="SubmitUnknownError", message="no answer was recorded", charged="maybe")
            job = await self.journal.move(job.key, State.UNKNOWN, token=job.token, error=error)
            # A callback may have arrived between the read and the write: check again.
            callbacks = await self.journal.callbacks_for(token=job.token)
        if callbacks:
            return await self.journal.move(job.key, State.SUBMITTED, token=job.token, task_id=callbacks[0].task_id)
        return job

    async def recover_all(self, batch: str) -> None:
        """Settle every intent of a batch whose process is dead, and every unknown; ``""`` is the jobs of no batch.

        An intent whose process lives is left to it, and taken over when it has died.
        """
        async for job in self.journal.jobs(*_WITHOUT_ANSWER, batch=batch):
            await self._try_to_recover(job)

    async def _try_to_recover(self, job: Job) -> Job:
        """Settle a job, or leave it as it is: when its process has died, it is taken over."""
        try:
            job = await self.recover(job)
        except ConflictError as error:
            self._notice(job.task_id, f"another process submits it: {error.message}")
        return job

    async def _take_over(self) -> None:
        """Go on with what dead processes have left, now and whenever another may have died."""
        taken = {self.journal.process_id}
        async with anyio.create_task_group() as group:
            while True:
                try:
                    with internal_errors("dead processes"):
                        for process_id in await self.journal.open_processes():
                            if process_id not in taken:
                                group.start_soon(self._take_over_from, process_id, taken)
                except KieError as error:
                    self._notice("", f"the tasks of dead processes could not be read now: {clean(error.message)}")
                await anyio.sleep(_TAKE_OVER_INTERVAL)

    async def _take_over_from(self, process_id: str, taken: set[str]) -> None:
        """Settle the intents of a process, if it is dead, and follow its tasks; meanwhile its lease says who does."""
        try:
            with internal_errors("the tasks of a dead process"):
                async with self.leases.holding(process_lease(process_id)):
                    jobs = [job async for job in self.journal.jobs(State.INTENT, State.SUBMITTED)]
                    settled = [await self._try_to_recover(job) for job in jobs if job.process_id == process_id]
                    taken.add(process_id)  # once is enough: a task that outlives its timeout would be taken for ever
                    for task in [self.follow(job) for job in settled if job.state is State.SUBMITTED]:
                        with suppress(KieError):
                            await task
        except ConflictError:  # it lives, or another process was quicker
            return
        except KieError as error:
            self._notice("", f"the tasks of a dead process could not be taken over: {clean(error.message)}")

    async def intents_left(self, batch: str) -> AsyncGenerator[Job, None]:
        """Give the intents of a batch whose process was not known to be dead, once its lease may have run out."""
        jobs = [job async for job in self.journal.jobs(State.INTENT, batch=batch)]
        left = [job for job in jobs if job.process_id != self.journal.process_id]
        if left:
            await anyio.sleep(LEASE)
        for job in left:
            yield job


@asynccontextmanager
async def open_recorder(journal: Journal, client: Client, dispatcher: TaskMaker) -> AsyncGenerator[Recorder]:
    """Open a journal, and record in it what a session does for as long as the block lasts."""
    async with journal, Recorder(journal, client, dispatcher) as recorder:
        yield recorder
