"""The session: opens what is below, and wires it. What it starts, it owns, and ends with it."""

from __future__ import annotations

import os
import secrets
from collections.abc import AsyncGenerator, AsyncIterable, Awaitable, Callable, Iterable
from contextlib import aclosing, asynccontextmanager
from functools import partial
from typing import Self, TypeVar, Unpack

import attrs
from anyio.abc import TaskGroup

from kie_async._calls import Calls, check_task_id
from kie_async._client import Fetcher, Transport
from kie_async._client.concurrency import map_unordered, until
from kie_async._client.internal_errors import internal_errors
from kie_async._client.lifetime import Lifetime, Opened
from kie_async._client.submission_log import NoSubmissionLog
from kie_async._client.submitter import Prepare, Submitter
from kie_async._client.task import Task
from kie_async._client.tracked_task import TrackedTask
from kie_async._client.tracker import Tracker
from kie_async._protocol.failures import FailureStreak
from kie_async._protocol.preconditions import Admission, task_problem
from kie_async._wiring import Wiring, wired
from kie_async.callbacks import Receiver
from kie_async.errors import KieError, SessionError
from kie_async.events import guarded
from kie_async.files._request_source import measure_file, measure_url, upload_file
from kie_async.journal import PAID, Job, Journal, State
from kie_async.journal._recorder import Recorder, check_open
from kie_async.limiter import Limiter
from kie_async.models import (
    CallbackEvent,
    ExtendRequest,
    Outcome,
    Request,
    RequestFields,
    Track,
    UploadExtendRequest,
    UploadFields,
    extend_track,
)
from kie_async.settings import Secret, Settings

A = TypeVar("A")
B = TypeVar("B")


class KieSession(Calls, Opened[Wiring]):
    """A session with the service: ``async with KieSession() as session``, or ``await KieSession.open()``.

    It may be entered and left in different tasks of one event loop.

    Args:
        settings: how to behave; by default from the environment (``KIE_API_KEY`` and others).
        api_key: the key, in place of that of the settings or the environment.
        limiter: who may submit now; by default one that the sessions of this key and quota share in this event loop.
        journal: keeps what was meant, sent and accepted, so that a crash loses and repeats nothing; see ``resume``.
            It is opened and closed with the session.

    Raises:
        SettingsError: a setting cannot be used.

    Leaving the block waits for the answers of submissions that are under way, and stops following tasks. They go on
    at the service; ``track`` follows them again. If what runs in the session fails, the task inside the block is
    cancelled and the failure comes out of the block; where there is no block, further calls raise ``SessionError``.
    """

    def __init__(
        self,
        settings: Settings | None = None,
        *,
        api_key: str | Secret | None = None,
        limiter: Limiter | None = None,
        journal: Journal | None = None,
    ) -> None:
        self.settings = _settings(settings, api_key)
        self._emit = guarded(self.settings.observer)
        self.receiver = Receiver(self.settings.webhook_keys, self._deliver, self._emit)
        self._admission = Admission(self.settings, self._emit)
        self._journal = journal
        self._recorder: Recorder | None = None
        self._is_keeping = journal is not None
        self._transport: Transport
        self._fetcher: Fetcher
        self._tracker: Tracker
        self._submitter: Submitter
        self._group: TaskGroup
        self._lifetime = Lifetime("session", partial(wired, self.settings, limiter, journal, self._emit))

    @classmethod
    async def open(
        cls,
        settings: Settings | None = None,
        *,
        api_key: str | Secret | None = None,
        limiter: Limiter | None = None,
        journal: Journal | None = None,
    ) -> Self:
        """Open a session that ``aclose`` closes, for places that cannot hold a block: notebook cells, hooks, fixtures.

        Args:
            settings: these are the arguments of the class.
            api_key: see there.
            limiter: see there.
            journal: see there.

        Raises:
            SettingsError: a setting cannot be used.
            SessionError: no event loop of asyncio is running.
            StorageError: the journal cannot be used.

        Cancelling closes what was opened. A session that is never closed warns with ``ResourceWarning``.
        """
        session = cls(settings, api_key=api_key, limiter=limiter, journal=journal)
        session._use(await session._lifetime.open())
        return session

    def _use(self, wiring: Wiring) -> None:
        self._transport, self._fetcher = wiring.transport, wiring.fetcher
        self._tracker, self._submitter, self._group = wiring.tracker, wiring.submitter, wiring.group
        self._recorder = wiring.recorder

    @property
    def journal(self) -> Journal | None:
        """The journal of the session itself, if it has one."""
        return self._journal

    # ------------------------------------------------------------ tasks

    async def extend(self, audio: str | Track, **fields: Unpack[RequestFields]) -> Task:
        """Extend a track that the service made; see ``ExtendRequest`` for the fields.

        Args:
            audio: the id of the track (not of its task), or the ``Track``, whose length is then checked, and whose
                model is taken where its code name is certain.
            fields: the other fields of ``ExtendRequest``.

        Raises:
            KieError: as ``submit``.
        """
        request = extend_track(audio, fields) if isinstance(audio, Track) else ExtendRequest(audio, **fields)
        return await self.submit(request)

    async def upload_extend(self, source: str | os.PathLike[str], **fields: Unpack[UploadFields]) -> Task:
        """Extend audio of your own; see ``UploadExtendRequest`` for the fields.

        Args:
            source: a path, whose length is checked and which is uploaded first, or a URL the service can fetch.
            fields: the other fields of ``UploadExtendRequest``.

        Raises:
            KieError: as ``submit``.
        """
        return await self.submit(UploadExtendRequest(source, **fields))

    async def submit(self, request: Request, *, key: str | None = None) -> Task:
        """Submit a request; it costs credits (FACTS: 12) from here on.

        Waits for a place in flight and for the quota, first come first served. The task is followed from its
        acceptance on, whether somebody waits for it or not; with a journal to its end, which is recorded.

        Args:
            request: what is asked.
            key: its name in the session's journal; a random one by default. A key that was submitted before is not
                submitted again: its task is followed.

        Raises:
            ConflictError: the key is being submitted, or its submission came to nothing; see the journal.
            InvalidRequestError: it breaks a rule, or the service says so.
            AudioError, FileError: the source cannot be used; nothing was spent.
            RefusedError: the service refused; ``code`` says why.
            ConnectError: nothing was sent.
            SubmitUnknownError: the answer was lost; do not send it again blindly.

        Cancelling before the POST spends nothing; a POST under way is completed and its task told to the observer.
        """
        return await self._submit(request, key)

    async def _submit(self, request: Request, key: str | None, check: Callable[[], None] = lambda: None) -> Task:
        self._check()
        request = await self._admitted(request)
        recorder = self._recorder
        if recorder is None:
            return self._task(
                await self._submitter.submit(request, self._ready(self._uploaded), NoSubmissionLog(check))
            )
        key = key or secrets.token_hex(16)
        await recorder.journal.add([Job(key=key, request=request)])
        job = await recorder.journal.get(key)
        if job is not None and job.state in PAID and job.task_id:
            return self.follow(job)
        return await self._submit_job(key, request, self._uploaded, check)

    async def submit_job(
        self, key: str, request: Request, *, prepare: Prepare | None = None, check: Callable[[], None] = lambda: None
    ) -> Task:
        """Submit a planned job of the journal in use; its moves, and its end, are recorded.

        Args:
            key: of the job.
            request: as it is to be sent, or prepared.
            prepare: makes it ready once there is a place for it; by default, uploads its source.
            check: called right before it would be sent; what it raises forbids that, and is raised here.

        Raises:
            ConflictError: it is not planned.
            KieError: as ``submit``.
        """
        self._check()
        check_open(self._recorder)
        return await self._submit_job(key, await self._admitted(request), prepare or self._uploaded, check)

    async def _submit_job(
        self, key: str, request: Request, prepare: Prepare, check: Callable[[], None] = lambda: None
    ) -> Task:
        log = check_open(self._recorder).submission_log(key, check)
        return self._task(await self._submitter.submit(request, self._ready(prepare), log), key)

    def check_request(self, request: Request) -> None:
        """Refuse a request that this session would not pay for, as far as can be told now; nothing is sent.

        Raises:
            InvalidRequestError: with every problem.
        """
        self._admission.check(request)

    def follow(self, job: Job) -> Task:
        """Follow the task of a submitted job of the journal in use; its end is recorded."""
        self._check()
        return self._task(check_open(self._recorder).follow(job, check_task_id(job.task_id)), job.key)

    async def resume(self) -> AsyncGenerator[Task, None]:
        """Follow what a session with this journal left open, before a restart or a crash.

        A submission whose answer was not recorded is followed if a callback named its task; if none did, it is
        recorded as unknown and told to the observer, never sent again. A task whose ``Settings.task_timeout`` was over
        stays submitted in the journal, and is followed once more.

        Raises:
            SessionError: the session has no journal.
        """
        self._check()
        recorder = check_open(self._recorder)
        await recorder.recover_all("")
        async for job in recorder.jobs(State.SUBMITTED, batch=""):
            yield self.follow(job)

    def track(self, task_id: str) -> Task:
        """Follow a task that was submitted elsewhere, or before a restart.

        With a journal it is followed to its end, whoever waits for it; if a job of the journal is this task, its end
        is recorded.

        Raises:
            InvalidRequestError: no id of a task.
        """
        self._check()
        entry = self._tracker.follow(check_task_id(task_id))
        if self._recorder is not None:
            self._recorder.record_tracked(entry)
        return self._task(entry)

    async def submit_all(self, requests: Iterable[Request] | AsyncIterable[Request]) -> AsyncGenerator[Outcome, None]:
        """Submit many requests and give their outcomes in the order of completion.

        At most ``Settings.max_in_flight`` are under way or wait to be fetched, so a slow reader slows the
        submissions down; requests are taken one by one as there is room for them.

        Args:
            requests: requests, from any iterable.

        Yields:
            An outcome for each request; its error is a ``KieError``.

        Raises:
            TooManyFailuresError: so many tasks failed in a row (``Settings.max_consecutive_failures``) that not all
                requests were taken; raised after the outcomes of those that were.

        Breaking off submits nothing more and stops waiting; what was submitted goes on at the service.
        """
        streak = FailureStreak(self.settings.max_consecutive_failures)
        source = until(requests, lambda: streak.refused is not None)
        async with aclosing(self.map_unordered(source, partial(self._outcome, streak))) as outcomes:
            async for outcome in outcomes:
                yield outcome
        if streak.refused is not None:
            raise streak.refused

    def map_unordered(
        self,
        source: Iterable[A] | AsyncIterable[A],
        work: Callable[[A], Awaitable[B]],
        *,
        concurrency: int | None = None,
    ) -> AsyncGenerator[B, None]:
        """Do work on each item of a source, at most ``concurrency`` at once, and give what it returns as it is done.

        What ``submit_all`` and ``run_batch`` are made of; by default ``Settings.max_in_flight`` at once. What the
        source or the work raises ends it. Closing it cancels what is under way.
        """
        self._check()
        return map_unordered(source, work, self._group, concurrency=concurrency or self.settings.max_in_flight)

    async def _outcome(self, streak: FailureStreak, request: Request) -> Outcome:
        task_id = None
        try:
            with internal_errors("submit_all"):
                task = await self._submit(request, None, streak.check)
                task_id = task.id
                result = await task
            streak.succeeded()
            return Outcome(request, task_id, result=result)
        except KieError as error:
            streak.failed(error)
            return Outcome(request, task_id or error.task_id, error=error)

    # ------------------------------------------------------------ wiring

    def _task(self, entry: TrackedTask, key: str | None = None) -> Task:
        self._admission.remember(entry.task_id)
        return Task(entry, self._tracker, key)

    async def _admitted(self, request: Request) -> Request:
        """Check and measure a request before anything waits or is spent."""
        if isinstance(request, ExtendRequest):
            await self._check_audio_id(request.audio_id)
        self._admission.check(request)
        request = await measure_file(request)
        self._admission.check(request)  # by its length, too
        return request

    async def _check_audio_id(self, audio_id: str) -> None:
        """Refuse the id of a task of this session, or of its journal."""
        job = await self._recorder.journal.find(task_id=audio_id) if self._recorder is not None else None
        if job is not None or self._admission.knows(audio_id):
            raise task_problem(tuple(track.id for track in job.tracks) if job is not None else ())

    def _ready(self, prepare: Prepare) -> Prepare:
        """What makes a request ready, and checks it once more when it goes out."""

        async def ready(request: Request) -> Request:
            request = await measure_url(await prepare(request), self._fetcher, self._admission.notify)
            self._admission.check(request, ready=True)
            return request

        return ready

    async def _uploaded(self, request: Request) -> Request:
        return await upload_file(request, self._transport)

    @asynccontextmanager
    async def open_journal(self, journal: Journal) -> AsyncGenerator[Recorder]:
        """Open a journal and keep it for as long as the block lasts; the session's own is open already.

        Raises:
            SessionError: the session has another.
        """
        self._check()
        if self._recorder is not None and journal is self._journal:
            yield self._recorder
            return
        if self._is_keeping:
            raise SessionError(
                "the session is at work with a journal: for another journal, make another session; to share one, give "
                "it to KieSession(journal=...)"
            )
        route = self.settings.route
        self._is_keeping = True  # before anything is waited for, so that nobody comes between
        try:
            async with (
                journal,
                Recorder(journal, self._submitter, self._tracker, self._emit, route, self._group) as recorder,
            ):
                self._recorder = recorder
                try:
                    yield recorder
                finally:
                    self._recorder = None
        finally:
            self._is_keeping = False

    async def _deliver(self, token: str, event: CallbackEvent) -> str:
        """Take a callback: it may name a lost task, and it wakes the one it speaks of."""
        self._check()
        recorder = self._recorder
        if recorder is not None and await recorder.save_callback(token, event.task_id, event.stage):
            return ""  # it is durable before it is answered; whoever owns the task listens
        return self._submitter.callback_received(token, event.task_id, event.stage)


def _settings(settings: Settings | None, api_key: str | Secret | None) -> Settings:
    if api_key is None:
        return Settings() if settings is None else settings
    return Settings(api_key=api_key) if settings is None else attrs.evolve(settings, api_key=api_key)
