"""The session: opens what is below, and wires it. What it starts, it owns, and ends with it."""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator, AsyncIterable, Callable, Iterable
from contextlib import AbstractAsyncContextManager, aclosing
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Self, Unpack

from kie_async import files
from kie_async._client import Task, map_unordered
from kie_async._client.concurrency import InternalErrors, until
from kie_async._client.lifetime import Lifetime, Opened
from kie_async._dispatcher import Dispatcher, choose_journal, open_dispatcher, settings_with
from kie_async._protocol.admission import Admission, FailureStreak, check_task_id
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
        api_key: the key, in place of that of the settings or the environment.
        limiter: who may submit now; by default the quota that all sessions with this journal and account share, or,
            without a journal, one that the sessions of this account and quota share in this event loop.
        journal: a path, ``postgresql://...`` or a ``Journal``; by default that of the settings. Each submission is on
            record before it is sent, so that a crash loses and repeats nothing; what a dead session left goes on with
            the living.

    Raises:
        SettingsError: a setting cannot be used.

    Leaving the block waits for the answers of submissions that are under way, and stops following tasks. They go on
    at the service; ``track`` follows them again. If a background task of the session fails, the task inside the
    block is cancelled and the failure comes out of it; where there is no block, further calls raise ``SessionError``.
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
        self.journal = choose_journal(self.settings, journal)  # of the session itself, if it has one
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
        """Open a session that ``aclose`` closes, for places that cannot hold a block: notebook cells, hooks, fixtures.

        It takes the arguments of the class.

        Raises:
            SettingsError: a setting cannot be used.
            SessionError: no event loop of asyncio is running.
            StorageError: the journal cannot be used.

        Cancelling closes what was opened. A session that is never closed warns with ``ResourceWarning``.
        """
        session = cls(settings, api_key=api_key, limiter=limiter, journal=journal)
        await session._lifetime.open()
        return session

    def _open(self) -> Dispatcher:
        """What the session works with; raise SessionError, before anything is sent, where it cannot work."""
        return self._lifetime.check()

    # ------------------------------------------------------------ tasks

    async def extend(self, audio: str | Track, **fields: Unpack[RequestFields]) -> Task:
        """Extend a track that the service made; see ``ExtendRequest`` for the fields.

        Args:
            audio: the id of the track (not of its task), or the ``Track``, whose length is then checked, and whose
                model is used if ``Track.model_name`` identifies it.
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

    async def extend_until(self, source: ChainSource, seconds: float = 240.0, **options: Unpack[ChainOptions]) -> Chain:
        """Extend audio again and again, each time the take that was chosen, until it lasts so many seconds.

        Args:
            source: a path, a URL, a ``Track``, or the id of one.
            seconds: the length to reach; at most what the model can make.
            options: see ``kie_async.chain.ChainOptions``.

        Raises:
            KieError: as ``submit``; of a step it says which, and what there is.

        Cancelling stops nothing at the service. With a journal the same call goes on, and pays for nothing twice.
        """
        from kie_async import chain  # few need it

        dispatcher = self._open()
        plan = await chain.plan_chain(source, seconds, options, self.check_request)
        return await chain.run_chain(plan, self, dispatcher.recorder, dispatcher.client.emit)

    async def submit(self, request: Request, *, key: str | None = None) -> Task:
        """Submit a request; it costs credits (12, as observed) from here on.

        Waits for one of ``Settings.max_in_flight`` places and for the quota, first come first served. The task is
        followed once it is accepted, whether somebody waits for it or not; with a journal to its recorded end.

        Args:
            request: the request.
            key: the name of its job in the journal; a random one by default. A key that was submitted before is not
                submitted again: its task is followed, if the request asks for the same. The length of the source, the
                signature of an address and the directory before a relative path make no difference. What was not
                sent may be submitted again by its key; with a random one it is rejected.

        Raises:
            BudgetError: ``Settings.max_credits`` leaves no room for it; nothing was sent.
            ConflictError: the job of this key is being submitted, or came to nothing, or has another request; nothing
                was sent now, and ``charged`` says whether that job was paid.
            InvalidRequestError: it breaks a rule, or the service says so.
            SessionError: a key was given, and the session has no journal.
            AudioError, FileError: the source cannot be used; nothing was spent.
            RefusedError: the service refused; ``code`` says why.
            ConnectError: nothing was sent.
            SubmitUnknownError: the answer was lost; do not send it again blindly.

        Cancelling before the POST spends nothing; a POST under way is completed; a ``Submitted`` event has its task id.
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
        """Refuse a request that this session would not pay for, as far as is known now; nothing is sent.

        Raises:
            InvalidRequestError: with every problem.
        """
        self._admission.check(request)

    async def resume(self) -> AsyncGenerator[Task, None]:
        """Follow the unfinished tasks of earlier sessions with this journal: iterate over it.

        A submission whose answer was not recorded is followed if a callback named its task; if none did, it becomes
        unknown, and is never sent again. A task that outlived ``Settings.task_timeout`` is followed once more.

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

        With a journal it is followed to its end, whoever waits for it; if a job of the journal is this task, its end
        is recorded.

        Raises:
            InvalidRequestError: ``task_id`` is no valid task id.
        """
        dispatcher = self._open()
        return dispatcher.task(dispatcher.client.tracker.follow(check_task_id(task_id)))

    async def submit_all(self, requests: Iterable[Request] | AsyncIterable[Request]) -> AsyncGenerator[Outcome, None]:
        """Submit many requests and give their outcomes in the order of completion.

        At most ``Settings.max_in_flight`` are under way, or finished and not read yet, so a slow reader slows the
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

    # ------------------------------------------------------------ what spends nothing

    @property
    def submissions_under_way(self) -> int:
        """How many submissions were sent and are not answered yet; closing the session waits for them."""
        dispatcher: Dispatcher | None = getattr(self._lifetime, "value", None)  # none before it is open
        return 0 if dispatcher is None else dispatcher.client.submitter.under_way

    async def record_info(self, task_id: str) -> TaskRecord | None:
        """Read what the service says of a task now; None if it does not know the task (yet).

        Raises:
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
        """Measure an audio file and upload it, under a random name; it costs nothing.

        Args:
            path: wav, flac, ogg, mp3 and others.
            progress: called with the bytes sent and the bytes in all.
            measure: whether its length is measured.

        Raises:
            AudioError: no audio, or its length cannot be measured.
            FileError: it cannot be read, or changed while it was sent.
            KieError: the host did not take it.
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
        """Fetch the audio of a track into a directory and return its path; the file is whole or absent.

        Args:
            track: with an ``audio_url``.
            directory: made if absent.
            name: of the file, without its suffix; by default made from the title and the id.
            keep_existing: return a file that has the name already, and fetch nothing. By default an existing file
                is left alone, and the new one gets a number.
            progress: called with the bytes received and the bytes in all, or None if that is not known.

        Raises:
            DownloadError: it could not be fetched whole; ``NAME.part`` is kept for the next try.
            ResultExpiredError: the service no longer keeps it.
            StorageError: the disk refused.

        Cancelling keeps ``NAME.part``.
        """
        return await files.download_track(
            self._open().client.fetcher,
            track,
            Path(directory),
            name=name,
            keep_existing=keep_existing,
            progress=progress,
            refresh=partial(files.renew_link, self._open().client.transport, track),
        )

    async def download_url(self, url: str) -> str:
        """Ask for a direct link to a generated file; it works for 20 minutes.

        Raises:
            InvalidRequestError: no address of a generated file (422).
        """
        return await self._open().client.transport.send(download_url(url))

    # ------------------------------------------------------------ journals and callbacks

    def open_journal(self, journal: Journal) -> AbstractAsyncContextManager[Recorder]:
        """Open a journal and record in it for as long as the block lasts; the session's own is open already.

        Raises:
            SessionError: the session has another.
        """
        return self._open().open_journal(journal)

    async def _deliver(self, token: str, event: CallbackEvent) -> str:
        return await self._open().callback_received(token, event.task_id, event.stage)
