"""Keeps a session's journal in step with what happens: intents, task ids, ends, and callbacks taken in by anyone.

A crash can fall between any two of its writes. What the journal then says is always enough to go on: an intent without
an answer whose owner is gone is unknown, unless a callback with its token was kept; a submitted task is followed again.
"""

from __future__ import annotations

import asyncio
import copy
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from typing import Any, Self

import anyio
import attrs
from anyio.abc import TaskGroup

from kie_async._client.internal_errors import internal_errors
from kie_async._client.submitter import Submitter
from kie_async._client.tracked_task import TrackedTask
from kie_async._client.tracker import Tracker
from kie_async._protocol.limits import CREDITS_PER_TASK
from kie_async.errors import (
    ConflictError,
    InternalError,
    KieError,
    SessionError,
    StorageError,
    TaskFailedError,
    TaskNotFoundError,
)
from kie_async.events import Notice, Observer, clean
from kie_async.journal import InboundCallback, Job, JobError, Journal, State
from kie_async.journal._job_errors import job_error, state_after
from kie_async.models import TaskResult

BEAT = 5.0  # seconds between two signs of life
LIFE = 30.0  # seconds without one after which an owner is taken for dead
_PATIENCE = 120.0  # seconds that a store may be away while a task id is in hand
_KEPT, _PRUNE_EVERY = 86_400.0, 3600.0  # seconds: callbacks after the end of their job, and between two prunings
_FIRST_DELAY, _LONGEST_DELAY = 0.1, 5.0  # seconds between two tries to write while it is away


class Recorder(anyio.AsyncContextManagerMixin):
    """The journal of a session at work.

    Args:
        journal: open already.
        submitter: told of callbacks that name lost submissions.
        tracker: told of callbacks that wake tasks.
        tell: told of what is odd.
        route: noted with each job.
        group: where its background lives: the session's.
    """

    def __init__(  # noqa: PLR0913, PLR0917  # it stands between all of these
        self, journal: Journal, submitter: Submitter, tracker: Tracker, emit: Observer, route: str, group: TaskGroup
    ) -> None:
        self.journal = journal
        self._submitter = submitter
        self._tracker = tracker
        self._emit = emit
        self._route = route
        self._group = group
        self._ended: asyncio.Queue[tuple[str | None, str | None, TrackedTask]] = asyncio.Queue()
        self._records: dict[str, asyncio.Future[KieError | None]] = {}  # done when the end was written, or not
        self._held: dict[str, float] = {}  # leases, and when each was last renewed
        self._is_closing = False

    @asynccontextmanager
    async def __asynccontextmanager__(self) -> AsyncGenerator[Self]:
        async with self.holding(_life(self.journal.owner)):
            scope, over = anyio.CancelScope(), anyio.Event()
            self._group.start_soon(self._background, scope, over)
            try:
                yield self
            finally:
                self._is_closing = True
                with anyio.CancelScope(shield=True):
                    await self._submitter.drained()  # the answers are paid for: they get into the journal
                    scope.cancel()
                    await over.wait()
                    await self._record_rest()

    async def _background(self, scope: anyio.CancelScope, over: anyio.Event) -> None:
        # In the session's group, so that the recorder may be left from any task: an async generator's, for one.
        try:
            with scope:
                async with anyio.create_task_group() as group:
                    group.start_soon(self._beat)
                    group.start_soon(self._watch_callbacks)
                    group.start_soon(self._settle)
                    group.start_soon(self._prune)
        finally:
            over.set()

    @asynccontextmanager
    async def holding(self, name: str) -> AsyncGenerator[None]:
        """Hold a lease, and renew it, for as long as the block lasts.

        Raises:
            ConflictError: another process holds it, or this one does.
        """
        if name in self._held:
            raise ConflictError(f"{name} is being worked on by this process already")
        self._held[name] = time.time()
        try:
            await self.journal.lease(name, LIFE)
        except BaseException:
            del self._held[name]
            raise
        try:
            yield
        finally:
            del self._held[name]
            with anyio.CancelScope(shield=True):
                await self._leave(name)

    async def renew(self, name: str) -> None:
        """Renew a lease that is held.

        Raises:
            ConflictError: another process took it when it had run out.
        """
        now = time.time()
        await self.journal.lease(name, LIFE)
        if name in self._held:
            self._held[name] = now
        else:  # it was given back meanwhile
            await self._leave(name)

    async def check_leases(self) -> None:
        """See, before anything is spent, that nobody took over while this process slept.

        Raises:
            ConflictError: somebody did.
            SessionError: the journal is being closed.
        """
        if self._is_closing:
            raise SessionError("the journal is being closed: nothing was sent")
        for name, renewed in tuple(self._held.items()):
            if time.time() - renewed > LIFE:
                await self.renew(name)

    async def _leave(self, name: str) -> None:
        try:
            await self.journal.release(name)
        except KieError as error:  # it runs out by itself
            self._emit(Notice("", f"a lease could not be given back: {clean(error.message)}"))

    # ------------------------------------------------------------ one submission

    def submission_log(self, key: str, check: Callable[[], None]) -> JobSubmissionLog:
        """The record of a planned job's submission; ``check`` may still forbid it, right before it is sent."""
        return JobSubmissionLog(self, key, self._route, self._emit, check)

    def record_outcome(self, key: str, token: str | None, entry: TrackedTask) -> None:
        """Record the end of a task when it comes, whoever waits for it, unless the job is at another attempt then."""
        self._records.setdefault(key, asyncio.get_running_loop().create_future())
        self._tracker.record(entry, lambda ended: self._ended.put_nowait((key, token, ended)))

    def record_tracked(self, entry: TrackedTask) -> None:
        """Record the end of a task when it comes, if a job of the journal is submitted as this task then."""
        if entry.ended is None:
            self._tracker.record(entry, lambda ended: self._ended.put_nowait((None, None, ended)))

    async def recorded(self, key: str) -> None:
        """Wait until the end of a job's task is in the journal, if it is kept here.

        Raises:
            StorageError: it could not be written now. It is tried again for as long as the journal is open.
        """
        record = self._records.get(key)
        if record is not None and (error := await asyncio.shield(record)) is not None:
            raise copy.copy(error)

    async def _record(self, key: str, token: str | None, outcome: TaskResult | KieError | None) -> None:
        """Move a job to the end its task has come to, if it has come to one and the job is not past it."""
        try:
            if isinstance(outcome, TaskResult):
                spent = outcome.record.credits_consumed
                facts: dict[str, Any] = {"tracks": outcome.tracks, "partial": outcome.partial, "stage": "complete"}
                facts["credits"] = CREDITS_PER_TASK if spent is None else spent
                await self.journal.move(key, State.SUCCEEDED, token=token, **facts)
            elif isinstance(outcome, (TaskFailedError, TaskNotFoundError)):
                spent = 0.0 if outcome.charged == "no" else CREDITS_PER_TASK
                await self.journal.move(key, State.FAILED, token=token, error=job_error(outcome), credits=spent)
        except ConflictError as error:
            self._emit(Notice("", f"the end of a job was recorded before: {error.message}"))

    # ------------------------------------------------------------ callbacks

    async def save_callback(self, token: str, task_id: str, stage: str) -> bool:
        """Keep a callback, durably, before it is answered; the listener acts on it, here or elsewhere.

        Returns:
            False if the journal awaits none with this token, or not this one: nothing is kept.
        """
        return await self.journal.save_callback(
            InboundCallback(token=token, task_id=task_id, stage=stage, at=time.time())
        )

    async def _watch_callbacks(self) -> None:
        async for callback in self.journal.watch_callbacks():
            if not self._submitter.knows(callback.token):
                await self._take(callback)
            elif note := self._submitter.callback_received(callback.token, callback.task_id, callback.stage):
                self._emit(Notice(callback.task_id, note))

    async def _take(self, callback: InboundCallback) -> None:
        """Act on a callback of a submission that is not under way here, and whose task may not be followed here."""
        try:
            with internal_errors("a callback"):
                job = await self._named(callback)
        except KieError as error:
            self._emit(Notice(callback.task_id, f"its callback could not be recorded now: {clean(error.message)}"))
            job = None
        is_followed = self._tracker.wake(callback.task_id, callback.stage, is_own=job is not None)
        if job is not None and job.state is State.SUBMITTED and job.owner == self.journal.owner and not is_followed:
            self.follow(job, callback.task_id)  # its time was over, but it goes on

    async def _named(self, callback: InboundCallback) -> Job | None:
        """The job whose task a callback speaks of. If it was given up as unknown, it is not any more."""
        job = await self.journal.find(token=callback.token)
        if job is not None and job.state is State.UNKNOWN and job.token == callback.token:
            job = await self.recover(job)
            self.follow(job, job.task_id or callback.task_id)
        is_its = job is not None and (job.token, job.task_id) == (callback.token, callback.task_id)
        return job if is_its else None

    def follow(self, job: Job, task_id: str) -> TrackedTask:
        """Follow the task of a submitted job, and record its end."""
        entry = self._tracker.follow(task_id)
        entry.note_source(job.request)
        self.record_outcome(job.key, job.token, entry)
        return entry

    async def recover(self, job: Job) -> Job:
        """Say what became of an intent whose owner is gone, or of an unknown: a callback may have named its task.

        Raises:
            ConflictError: its owner lives, or somebody else was quicker.
        """
        if job.token is not None and self._submitter.knows(job.token):
            raise ConflictError(f"job {job.key!r} is being submitted by this process", job.task_id)
        named = await self.journal.callbacks_for(token=job.token)
        if job.state is State.INTENT and job.owner != self.journal.owner:
            await self._check_dead(job.owner or "")
        if job.state is State.INTENT and not named:
            error = JobError(type="SubmitUnknownError", message="no answer was recorded", charged="maybe")
            job = await self.journal.move(job.key, State.UNKNOWN, token=job.token, error=error)
            named = await self.journal.callbacks_for(token=job.token)  # what came meanwhile found no unknown to name
        if named:
            return await self.journal.move(job.key, State.SUBMITTED, token=job.token, task_id=named[0].task_id)
        return job

    async def _check_dead(self, owner: str) -> None:
        """Raise ConflictError if the owner shows signs of life."""
        await self.journal.lease(_life(owner), BEAT)
        await self.journal.release(_life(owner))

    async def recover_all(self, batch: str) -> None:
        """Say what became of every intent of a batch whose owner is gone, and of every unknown."""
        async for job in self.jobs(State.INTENT, State.UNKNOWN, batch=batch):
            try:
                await self.recover(job)
            except ConflictError as error:
                self._emit(Notice(job.task_id or "", f"a submission is another's: {error.message}"))

    async def jobs(self, *states: State, batch: str | None = None) -> AsyncGenerator[Job, None]:
        """Give the jobs in these states, page by page."""
        after = 0
        while page := await self.journal.page(*states, batch=batch, after=after):
            for after, job in page:  # noqa: B007  # the last place is where the next page begins
                yield job

    # ------------------------------------------------------------ the background

    async def _beat(self) -> None:
        while True:
            await anyio.sleep(BEAT)
            for name in tuple(self._held):
                try:
                    with internal_errors("a lease"):
                        await self.renew(name)
                except KieError as error:
                    self._emit(Notice("", f"a lease could not be renewed: {clean(error.message)}"))

    async def _prune(self) -> None:
        """Let the callbacks go of jobs that have been at their end for a day."""
        while True:
            try:
                with internal_errors("old callbacks"):
                    await self.journal.prune(time.time() - _KEPT)
            except KieError as error:
                self._emit(Notice("", f"old callbacks could not be deleted now: {clean(error.message)}"))
            await anyio.sleep(_PRUNE_EVERY)

    async def _settle(self) -> None:
        delay = _FIRST_DELAY
        while True:
            key, token, entry = await self._ended.get()
            with anyio.CancelScope(shield=True):  # taken from the queue, it must get into the journal
                is_done = await self._record_end(key, token, entry)
            delay = _FIRST_DELAY if is_done else min(2 * delay, _LONGEST_DELAY)
            if not is_done:
                self._ended.put_nowait((key, token, entry))
                await anyio.sleep(delay)

    async def _record_rest(self) -> None:
        """Record the ends that are known when the journal is left; if it is away, a restart asks the service again."""
        while not self._ended.empty() and await self._record_end(*self._ended.get_nowait()):
            pass
        for record in self._records.values():
            record.set_result(None)
        self._records.clear()

    async def _record_end(self, key: str | None, token: str | None, entry: TrackedTask) -> bool:
        """Write the end of a task; return whether that is done with, or must be tried again."""
        error: StorageError | InternalError | None = None
        try:
            with internal_errors("a job's end"):
                if key is None:
                    job = await self.journal.find(task_id=entry.task_id)
                    if job is None or job.state is not State.SUBMITTED or job.task_id != entry.task_id:
                        return True
                    key, token = job.key, job.token
                await self._record(key, token, entry.outcome)
        except (StorageError, InternalError) as failure:
            error = failure
            self._emit(Notice(entry.task_id, f"its end could not be recorded: {clean(error.message)}"))
        record = self._records.pop(key or "", None)
        if record is not None:
            record.set_result(error)
        return error is None or not error.retryable


@attrs.frozen
class JobSubmissionLog:
    """Records one job's submission in a journal."""

    _recorder: Recorder
    _key: str
    _route: str
    _emit: Observer
    _check: Callable[[], None]

    async def before_send(self, token: str) -> None:
        """Record the intent; without it nothing is sent."""
        self._check()
        await self._recorder.check_leases()
        await self._recorder.journal.intend(self._key, token)

    async def accepted(self, token: str, task_id: str) -> None:
        """Record the task id; while the store is away it is tried again, for the task is paid."""
        facts = {"task_id": task_id, "route": self._route, "credits": CREDITS_PER_TASK}
        await self._insist(
            lambda: self._recorder.journal.move(self._key, State.SUBMITTED, token=token, **facts), task_id
        )

    async def failed(self, token: str, error: KieError) -> None:
        """Record what became of a submission that is no task."""
        to = state_after(error)
        facts = {} if to is State.PLANNED else {"error": job_error(error)}
        await self._insist(lambda: self._recorder.journal.move(self._key, to, token=token, **facts), "")

    def follow(self, token: str, entry: TrackedTask) -> None:
        """Record the end of the task when it comes."""
        self._recorder.record_outcome(self._key, token, entry)

    async def _insist(self, write: Callable[[], object], task_id: str) -> None:
        deadline, delay = time.monotonic() + _PATIENCE, _FIRST_DELAY
        while True:
            try:
                await write()  # type: ignore[misc]  # an awaitable of the journal's
            except ConflictError as error:  # a callback that names it was quicker
                self._emit(Notice(task_id, f"recorded before: {error.message}"))
            except StorageError as error:
                self._emit(Notice(task_id, f"the journal is away, trying again: {clean(error.message)}"))
                if time.monotonic() > deadline or not error.retryable:
                    error.task_id, error.charged = task_id or None, "yes" if task_id else error.charged
                    raise
                await anyio.sleep(delay)
                delay = min(2 * delay, _LONGEST_DELAY)
                continue
            return


def _life(owner: str) -> str:
    return f"life:{owner}"


def check_open(recorder: Recorder | None) -> Recorder:
    """The recorder of a session that has a journal.

    Raises:
        SessionError: it has none.
    """
    if recorder is None:
        raise SessionError("the session has no journal: give KieSession(journal=...)")
    return recorder
