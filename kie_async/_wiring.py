"""Opens what a session works with, and wires it."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager

import anyio
import attrs
from anyio.abc import TaskGroup

from kie_async._client import Fetcher, Transport
from kie_async._client.groups import unwrap_single_exception
from kie_async._client.submitter import Submitter
from kie_async._client.tracker import Tracker
from kie_async._protocol.endpoints import ROUTES
from kie_async.events import Observer
from kie_async.journal import Journal
from kie_async.journal._recorder import Recorder
from kie_async.limiter import Limiter, shared_limiter
from kie_async.models import TaskRecord
from kie_async.settings import Settings


@attrs.frozen(eq=False)
class Wiring:
    """What an open session works with. It knows nothing of the session, so one that is forgotten can be noticed.

    Attributes:
        group: where all that runs beside the caller lives.
        recorder: of the session's own journal, if it has one.
    """

    transport: Transport
    fetcher: Fetcher
    tracker: Tracker
    submitter: Submitter
    group: TaskGroup
    recorder: Recorder | None


@asynccontextmanager
async def wired(
    settings: Settings, limiter: Limiter | None, journal: Journal | None, emit: Observer
) -> AsyncGenerator[Wiring]:
    """Open all of it. Leaving waits for the answers of submissions under way, and for their record.

    A lone error of what runs inside comes out as itself.
    """
    route = ROUTES[settings.route]

    async def poll(task_id: str) -> TaskRecord | None:
        return await transport.send(route.record_info(task_id), retry=False)

    with unwrap_single_exception():
        async with (
            Transport(settings, emit) as transport,
            Fetcher(settings, emit) as fetcher,
            anyio.create_task_group() as group,
        ):
            limiter = limiter or shared_limiter(settings)
            tracker = Tracker(settings, poll, emit, polls_per_second=route.polls_per_second)
            submitter = Submitter(settings, transport, limiter, tracker, route, emit, group)
            group.start_soon(tracker.run)
            async with AsyncExitStack() as stack:
                recorder = None
                if journal is not None:
                    await stack.enter_async_context(journal)
                    recorder = Recorder(journal, submitter, tracker, emit, settings.route, group)
                    await stack.enter_async_context(recorder)
                yield Wiring(transport, fetcher, tracker, submitter, group, recorder)
            group.cancel_scope.cancel()
