"""The inside of an open session: turns requests into tasks, records them in a journal, and acts on callbacks.

It connects ``_client``, ``files`` and ``journal`` for the session, which opens it. Most sessions have no journal, so
that package is loaded only when there is one.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager
from os import PathLike
from typing import TYPE_CHECKING

import attrs

from kie_async import files
from kie_async._client.client import Client, open_client
from kie_async._client.submitter import Check, Prepare, SubmissionLog
from kie_async._client.task import Task, TrackedTask
from kie_async._protocol.admission import Admission, task_id_error
from kie_async.errors import SessionError
from kie_async.events import Observer
from kie_async.limiter import Limiter
from kie_async.models import ExtendRequest, Request
from kie_async.settings import Secret, Settings

if TYPE_CHECKING:
    from kie_async.journal import Journal, Recorder


class Dispatcher:
    """Checks, prepares and submits requests; with a journal, their outcomes are recorded.

    Args:
        client: an open client.
        admission: checks the requests.
        journal: the session's own journal; None if it has none.

    Attributes:
        client: the one given.
        recorder: the recorder of the journal in use; None if there is none.
    """

    def __init__(self, client: Client, admission: Admission, journal: Journal | None) -> None:
        self.client = client
        self.recorder: Recorder | None = None
        self._admission = admission
        self._journal = journal
        self._is_recording = journal is not None

    async def admit(self, request: Request) -> Request:
        """Check and measure a request before anything waits or is spent; return it with the length of its source.

        Raises:
            KieError: it must not be sent.
        """
        if isinstance(request, ExtendRequest) and self._admission.knows(request.audio_id):
            raise task_id_error(())
        self._admission.check(request)
        measured = await files.measure_request(request)
        if measured is not request:
            self._admission.check(measured)  # now against its length
        return measured

    async def submit(
        self,
        request: Request,
        *,
        prepare: Prepare | None = None,
        log: SubmissionLog | None = None,
        check: Check = lambda: None,
    ) -> TrackedTask:
        """Submit an admitted request; by default, ``prepare`` uploads its source.

        Raises:
            KieError: as ``KieSession.submit``.
        """

        async def ready(request: Request) -> Request:
            if isinstance(request, ExtendRequest):
                return request  # it has no source to prepare, and ``admit`` has checked it
            request = await (prepare or self._upload)(request)
            request = await files.measure_request_url(request, self.client.fetcher, self._admission.notify)
            self._admission.check(request, ready=True)
            return request

        return await self.client.submitter.submit(request, ready, log, check)

    async def _upload(self, request: Request) -> Request:
        return await files.upload_request(request, self.client.transport)

    def task(self, tracked: TrackedTask, key: str | None = None) -> Task:
        """The task as a user holds it; its id is remembered, so that it can be refused as the id of a track."""
        self._admission.remember(tracked.task_id)
        return Task(tracked, self.client.tracker, key)

    @asynccontextmanager
    async def open_journal(self, journal: Journal) -> AsyncGenerator[Recorder]:
        """Open a journal and record in it while the block lasts; see ``KieSession.open_journal``."""
        from kie_async.journal import Recorder

        if self.recorder is not None and journal is self._journal:
            yield self.recorder
            return
        if self._is_recording:
            raise SessionError("the session is at work with a journal: for another, make another session")
        self._is_recording = True  # set before the first await, so that no other task opens one
        try:
            async with journal, Recorder(journal, self.client, self) as recorder:
                self.recorder = recorder
                try:
                    yield recorder
                finally:
                    self.recorder = None
        finally:
            self._is_recording = False

    async def callback_received(self, token: str, task_id: str, stage: str) -> str:
        """Act on a callback: it may name a lost task, or hasten a poll. Return why it is ignored, or ""."""
        if self.recorder is not None and await self.recorder.save_callback(token, task_id, stage):
            return ""  # it is durable before it is answered; the process that follows the task acts on it
        return self.client.submitter.callback_received(token, task_id, stage)


@asynccontextmanager
async def open_dispatcher(
    settings: Settings, limiter: Limiter | None, journal: Journal | None, admission: Admission, emit: Observer
) -> AsyncGenerator[Dispatcher]:
    """Open the dispatcher of a session, with all that it needs.

    They are closed in this order: the recorder waits for the answers under way, ends its background tasks and writes
    the outcomes; the client stops polling, ends the waits and closes its connections; last come the quota and the
    journal.
    """
    async with AsyncExitStack() as stack:
        if journal is not None:
            from kie_async.journal import JournalLimiter

            await stack.enter_async_context(journal)
            shared = JournalLimiter(
                journal,
                account=settings.account,
                limit=settings.quota,
                window=settings.quota_window,
                margin=settings.quota_margin,
            )
            limiter = limiter or await stack.enter_async_context(shared)
        client = await stack.enter_async_context(open_client(settings, limiter, emit))
        dispatcher = Dispatcher(client, admission, journal)
        if journal is not None:
            from kie_async.journal import Recorder

            dispatcher.recorder = await stack.enter_async_context(Recorder(journal, client, dispatcher))
        yield dispatcher


def settings_with(settings: Settings | None, api_key: str | Secret | None) -> Settings:
    """The settings of a session, from its arguments."""
    if api_key is None:
        return Settings() if settings is None else settings
    return Settings(api_key=api_key) if settings is None else attrs.evolve(settings, api_key=api_key)


def choose_journal(settings: Settings, given: Journal | str | PathLike[str] | None) -> Journal | None:
    """The journal of a session, from its argument or else its settings; "" means none."""
    if given is None:
        given = settings.journal.reveal() if settings.journal else ""
    if not isinstance(given, (str, PathLike)):
        return given
    if not given:
        return None
    from kie_async.journal import open_journal

    return open_journal(given)
