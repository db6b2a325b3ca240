"""Opens what a session works with, and wires it."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import NamedTuple

import anyio
from anyio.abc import TaskGroup

from kie_async._client.concurrency import unwrap_single_exception
from kie_async._client.downloads import Fetcher
from kie_async._client.http_client import Transport
from kie_async._client.submitter import Submitter
from kie_async._client.tracker import Tracker
from kie_async._protocol.endpoints import ROUTES
from kie_async.events import Observer
from kie_async.limiter import Limiter, shared_limiter
from kie_async.models import TaskRecord
from kie_async.settings import Settings


class Client(NamedTuple):
    """What an open session works with. It does not know the session, so that one that is forgotten can be noticed.

    Attributes:
        emit: the guarded observer.
        group: where all that runs beside the caller lives.
    """

    settings: Settings
    emit: Observer
    transport: Transport
    fetcher: Fetcher
    tracker: Tracker
    submitter: Submitter
    group: TaskGroup


@asynccontextmanager
async def open_client(settings: Settings, limiter: Limiter | None, emit: Observer) -> AsyncGenerator[Client]:
    """Open all of it. A single error of what runs inside comes out as itself."""
    route = ROUTES[settings.route]

    async def fetch(task_id: str) -> TaskRecord | None:
        return await transport.send(route.record_info(task_id), retry=False)

    with unwrap_single_exception():
        async with (
            Transport(settings, emit) as transport,
            Fetcher(settings, emit) as fetcher,
            anyio.create_task_group() as group,
        ):
            tracker = Tracker(settings, fetch, emit, polls_per_second=route.polls_per_second)
            submitter = Submitter(transport, limiter or shared_limiter(settings), tracker, group)
            group.start_soon(tracker.run)
            try:
                yield Client(settings, emit, transport, fetcher, tracker, submitter, group)
            finally:
                group.cancel_scope.cancel()
                with anyio.CancelScope(shield=True):
                    await submitter.close()
