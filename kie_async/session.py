"""The session: opens and connects the parts of the library. Everything it starts ends when it is closed."""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator, AsyncIterable, Callable, Iterable
from contextlib import AbstractAsyncContextManager, aclosing
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Self, Unpack

from kie_async import files
from kie_async._client.concurrency import InternalErrors, map_unordered, until
from kie_async._client.lifetime import Lifetime, Opened
from kie_async._client.task import Task
from kie_async._dispatcher import Dispatcher, choose_journal, open_dispatcher, settings_with
from kie_async._protocol.admission import Admission, FailureStreak, check_task_id, check_track
from kie_async._protocol.endpoints import ROUTES, credits_left, download_url
from kie_async._protocol.options import RequestFields, UploadFields, extend_track
from kie_async.callbacks import Receiver
from kie_async.errors import KieError, SessionError
from kie_async.events import guarded
from kie_async.limiter import Limiter
from kie_async.models import (
    CallbackEvent,
    Credits,
    ExtendRequest,
    Outcome,
    Request,
    TaskRecord,
    Track,
    UploadedFile,
    UploadExtendRequest,
)
from kie_async.settings import Secret, Settings

if TYPE_CHECKING:
    from kie_async.chain import Chain, ChainOptions, ChainSource
    from kie_async.journal import Journal, Recorder


class KieSession(Opened[Dispatcher]):
    """A session with the service: ``async with KieSession() as session``, or ``await KieSession.open()``.

    It may be entered and left in different tasks of one event loop.

    Args:
        settings: how to behave; by default from the environment (``KIE_API_KEY`` and others).
        api_key: the key; overrides that of the settings or the environment.
        limiter: decides when a submission may be sent. By default it is the quota that all sessions with this journal
            and account share; without a journal, the sessions of this account and quota in this event loop share one.
        journal: a path, ``postgresql://...`` or a ``Journal``; by default that of the settings. Each submission is
            recorded before it is sent, so that a crash loses nothing and repeats nothing; other sessions with the
            journal continue the tasks of one that has died.

    Raises:
        SettingsError: a setting cannot be used.

    Leaving the block waits for the answers of submissions under way, and stops following tasks. The tasks go on at
    the service; ``track`` follows them again. If a background task of the session fails, the code inside the block is
    cancelled and the block raises that error; without a block (``open``), further calls raise ``SessionError``.
    """

    def __init__(
        self,
        settings: Settings | None = None,
        *,
        api_key: str | Secret | None = None,
        limiter: Limiter | None = None,
        journal: Journal | str | os.PathLike[str] | None = None,
    ) -> None:
        self.settings = settings_with(settings, api_key)
        self.journal = choose_journal(self.settings, journal)  # the session's own, if it has one
        emit = guarded(self.settings.observer)
        self.receiver = Receiver(self.settings.webhook_keys, self._deliver, emit)
        self._admission = Admission(self.settings, emit)
        self._lifetime = Lifetime(
            "session", partial(open_dispatcher, self.settings, limiter, self.journal, self._admission, emit)
        )

    @classmethod
    async def open(
        cls,
        settings: Settings | None = None,
        *,
        api_key: str | Secret | None = None,
        limiter: Limiter | None = None,
        journal: Journal | str | os.PathLike[str] | None = None,
    ) -> Self:
        """Open a session without a block, for notebook cells, hooks and fixtures; close it with ``aclose``.

        The arguments are those of the class.

        Raises:
            SettingsError: a setting cannot be used.
            SessionError: no event loop of asyncio is running.
            StorageError: the journal cannot be used.

        Cancelling closes what was opened so far. A session that is never closed emits a ``ResourceWarning``.
        """
        session = cls(settings, api_key=api_key, limiter=limiter, journal=journal)
        await session._lifetime.open()
        return session

    def _open(self) -> Dispatcher:
        """The opened parts of the session; raises ``SessionError`` if it is not open or is used in another loop."""
        return self._lifetime.check()

    # ------------------------------------------------------------ tasks

    async def extend(self, audio: str | Track, **fields: Unpack[RequestFields]) -> Task:
        """Extend a track that the service made; see ``ExtendRequest`` for the fields.

        Args:
            audio: the id of the track (not of its task), or the ``Track`` itself: then its length is checked against
                ``continue_at``, and its model is used if ``Track.model_name`` identifies it.
            fields: the other fields of ``ExtendRequest``.

        Raises:
            KieError: as ``submit``.
        """
        request = extend_track(audio, fields) if isinstance(audio, Track) else ExtendRequest(audio, **fields)
        return await self.submit(request)

    async def upload_extend(self, source: str | os.PathLike[str], **fields: Unpack[UploadFields]) -> Task:
        """Extend audio of your own; see ``UploadExtendRequest`` for the fields.

        Args:
            source: the path of a file, which is measured and uploaded first, or a URL that the service can fetch.
            fields: the other fields of ``UploadExtendRequest``.

        Raises:
            KieError: as ``submit``.
        """
        return await self.submit(UploadExtendRequest(source, **fields))

    async def extend_until(self, source: ChainSource, seconds: float = 240.0, **options: Unpack[ChainOptions]) -> Chain:
        """Extend audio step by step, each time one take of the step before, until it lasts that many seconds.

        Args:
            source: a path, a URL, a ``Track``, or the id of a track.
            seconds: the length to reach; at most what the model can make. Audio that misses it by less than half a
                second has reached it: no further step is paid.
            options: see ``kie_async.chain.ChainOptions``.

        Raises:
            KieError: as ``submit``; its message names the step that failed and what the steps before have made.

        Cancelling stops nothing at the service. With a journal, the same call continues and pays for nothing twice.
        """
        from kie_async import chain  # few need it

        dispatcher = self._open()
        plan = await chain.plan_chain(source, seconds, options, self.check_request)
        return await chain.run_chain(plan, self, dispatcher.recorder, dispatcher.client.emit)

    async def submit(self, request: Request, *, key: str | None = None) -> Task:
        """Submit a request, and return its task once the service has accepted it. A task costs 12 credits, as observed.

        Waits for one of ``Settings.max_in_flight`` places and for the quota, first come first served. The task is
        followed from then on; with a journal until its end is recorded, even if nobody waits for it.

        Args:
            request: the request.
            key: the name of its job in the journal; a random one by default. If this key was submitted before with
                the same request, nothing is submitted: its task is followed. Requests that differ only in the
                measured length of the source, the signature of a URL or the directory before a relative path count
                as the same. A job that was not sent may be submitted again by its key; one with a random key is
                rejected.

        Raises:
            BudgetError: ``Settings.max_credits`` leaves no room for it; nothing was sent.
            ConflictError: the job of this key is being submitted, has ended without a result, or has another request.
                Nothing was sent; ``charged`` says whether that job was paid.
            InvalidRequestError: the request breaks a rule, of this library or of the service.
            SessionError: a key was given, and the session has no journal.
            AudioError, FileError: the source cannot be used; nothing was spent.
            RefusedError: the service refused; ``code`` says why.
            ConnectError: no connection was made; nothing was sent.
            SubmitUnknownError: the answer was lost, and the task may be paid; do not simply send it again.

        Cancelling before the POST spends nothing. A POST under way is completed: a ``Submitted`` event has its task id.
        """
        return await self._submit(request, key)

    async def _submit(self, request: Request, key: str | None, check: Callable[[], None] = lambda: None) -> Task:
        dispatcher = self._open()
        if dispatcher.recorder is not None:
            return await dispatcher.recorder.submit(request, key, check)
        if key is not None:  # without a record of it, the same key would be paid again
            raise SessionError("a key needs a journal: give KieSession(journal=...); nothing was sent")
        return dispatcher.task(await dispatcher.submit(await dispatcher.admit(request), check=check))

    def check_request(self, request: Request) -> None:
        """Check a request by the rules of this session, as ``submit`` does first. Reads no file and sends nothing.

        Raises:
            InvalidRequestError: the request breaks rules; ``problems`` has all of them.
        """
        self._admission.check(request)

    async def resume(self) -> AsyncGenerator[Task, None]:
        """Follow the unfinished tasks of earlier sessions with this journal, and yield each.

        A submission whose answer was not recorded is followed if a callback has named its task; otherwise it becomes
        unknown, and is never sent again. A task that exceeded ``Settings.task_timeout`` is followed once more.

        Raises:
            SessionError: the session has no journal.
        """
        recorder = self._open().recorder
        if recorder is None:
            raise SessionError("the session has no journal: give KieSession(journal=...)")
        async for task in recorder.resume():
            yield task

    def track(self, task_id: str) -> Task:
        """Follow a task that was submitted elsewhere, or before a restart.

        With a journal it is followed to its end, even if nobody waits for it; if it is the task of a job of the
        journal, its end is recorded.

        Raises:
            InvalidRequestError: ``task_id`` is not a valid task id.
        """
        dispatcher = self._open()
        return dispatcher.task(dispatcher.client.tracker.follow(check_task_id(task_id)))

    async def submit_all(self, requests: Iterable[Request] | AsyncIterable[Request]) -> AsyncGenerator[Outcome, None]:
        """Submit many requests, and yield their outcomes in the order of completion.

        At most ``Settings.max_in_flight`` requests are under way, or finished and not yet read, so a slow reader slows
        the submissions down. Requests are taken from the iterable one by one, as there is room for them.

        Args:
            requests: any iterable or asynchronous iterable of requests.

        Yields:
            An outcome for each request; its error, if any, is a ``KieError``.

        Raises:
            TooManyFailuresError: too many tasks in a row failed (``Settings.max_consecutive_failures``). It is raised
                after the outcomes of the requests that were taken; the others were not submitted.

        Leaving the iteration submits nothing more and stops waiting; submitted tasks go on at the service.
        """
        streak = FailureStreak(self.settings.max_consecutive_failures)
        source = until(requests, lambda: streak.refused is not None)
        group, concurrency = self._open().client.group, self.settings.max_in_flight
        outcomes = map_unordered(source, partial(self._outcome, streak), group, concurrency=concurrency)
        async with aclosing(outcomes):
            async for outcome in outcomes:
                yield outcome
        if streak.refused is not None:
            raise streak.refused

    async def _outcome(self, streak: FailureStreak, request: Request) -> Outcome:
        task_id = None
        try:
            with InternalErrors("submit_all"):
                task = await self._submit(request, None, streak.check)
                task_id = task.id
                result = await task
            streak.succeeded()
            return Outcome(request, task_id, result=result)
        except KieError as error:
            streak.failed(error)
            return Outcome(request, task_id or error.task_id, error=error)

    # ------------------------------------------------------------ calls that spend nothing

    @property
    def submissions_under_way(self) -> int:
        """The number of submissions that were sent and are not answered yet; closing the session waits for them."""
        dispatcher: Dispatcher | None = getattr(self._lifetime, "value", None)  # none before it is open
        return 0 if dispatcher is None else dispatcher.client.submitter.under_way

    async def record_info(self, task_id: str) -> TaskRecord | None:
        """Read the service's record of a task; None if the service does not know the task (yet).

        A task that has failed is no error here: its record says so.

        Raises:
            InvalidRequestError: ``task_id`` is not a valid task id.
            KieError: it could not be read.
        """
        call = ROUTES[self.settings.route].record_info(check_task_id(task_id))
        return await self._open().client.transport.send(call)

    async def credits(self) -> Credits:
        """Read the credits left on the account.

        Raises:
            KieError: they could not be read.
        """
        return await self._open().client.transport.send(credits_left)

    async def upload(
        self, path: str | os.PathLike[str], *, progress: files.Progress | None = None, measure: bool = True
    ) -> UploadedFile:
        """Measure an audio file and upload it under a random name; this costs no credits.

        Args:
            path: an audio file: wav, flac, ogg, mp3 and others.
            progress: called with the bytes sent so far and the bytes in all.
            measure: whether to measure its length (the extra ``audio``).

        Raises:
            AudioError: it is not audio, or its length cannot be measured.
            FileError: it cannot be read, or it changed while it was sent.
            KieError: the upload host did not accept it.
        """
        return await files.upload(self._open().client.transport, Path(path), progress=progress, measure=measure)

    async def download(
        self,
        track: Track,
        directory: str | os.PathLike[str],
        *,
        name: str | None = None,
        keep_existing: bool = False,
        progress: files.Progress | None = None,
    ) -> Path:
        """Download the audio of a track into a directory and return its path; the file is whole or absent.

        Args:
            track: a track with an ``audio_url``.
            directory: created if absent.
            name: the name of the file without its suffix; by default made from the title and the id.
            keep_existing: if a file of that name exists, return it and download nothing. By default an existing file
                is left alone, and the new one gets a number.
            progress: called with the bytes received so far and the bytes in all, or None if that is unknown.

        Raises:
            DownloadError: it could not be fetched whole; ``NAME.part`` is kept, and the next call resumes it.
            ResultExpiredError: the service no longer keeps it.
            StorageError: the local disk refused.
            InvalidRequestError: ``track`` is no track.

        Cancelling keeps ``NAME.part``.
        """
        return await files.download_track(
            self._open().client.fetcher,
            check_track(track),
            Path(directory),
            name=name,
            keep_existing=keep_existing,
            progress=progress,
            refresh=partial(files.renew_link, self._open().client.transport, track),
        )

    async def download_url(self, url: str) -> str:
        """Ask the service for a direct link to a generated file; the link works for 20 minutes.

        Raises:
            InvalidRequestError: ``url`` is not the address of a generated file (422).
            KieError: the service did not answer.
        """
        return await self._open().client.transport.send(download_url(url))

    # ------------------------------------------------------------ journals and callbacks

    def open_journal(self, journal: Journal) -> AbstractAsyncContextManager[Recorder]:
        """Open a journal and record jobs in it while the block lasts; the session's own journal is open already.

        Raises:
            SessionError: the session has another journal.
        """
        return self._open().open_journal(journal)

    async def _deliver(self, token: str, event: CallbackEvent) -> str:
        return await self._open().callback_received(token, event.task_id, event.stage)
