"""A session against the emulator, on the virtual clock, and what it told its observer."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncGenerator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from typing import Any, TypeVar, cast

import attrs
from virtual_time import VirtualTimeLoop

import kie_async as kie
from kie_async import emulator, events
from kie_async.events import CallbackReceived
from kie_async.journal import Journal
from kie_async.limiter import Limiter

E = TypeVar("E")

REQUEST = kie.ExtendRequest("a1", model="V5")
TIMELINE = (10.0, 45.0, 90.0)
STRANGE_TOKEN = "s" * 43  # of no submission


@attrs.define
class Service:
    """An emulated service, a session with it, and the events told."""

    emulator: emulator.Emulator
    session: kie.KieSession
    emitted: list[events.Event]

    def of(self, kind: type[E]) -> list[E]:
        """The events of one kind."""
        return [event for event in self.emitted if isinstance(event, kind)]

    def token(self, task_id: str) -> str:
        """The token in the callback URL of a task's submission."""
        (url,) = (charge.callback_url for charge in self.emulator.ledger if charge.task_id == task_id)
        return url.rpartition("/")[2]

    async def call_back(self, task_id: str, stage: str, *, token: str = STRANGE_TOKEN) -> str:
        """Post a callback to the session; return why it was set aside, or nothing."""
        body = {"code": 200, "msg": "", "data": {"callbackType": stage, "task_id": task_id, "data": []}}
        assert await self.session.receiver.handle({}, json.dumps(body).encode(), token) == 200
        return [event.note for event in self.emitted if isinstance(event, CallbackReceived)][-1]


@asynccontextmanager
async def serving(
    *,
    callbacks: bool = False,
    settings: dict[str, Any] | None = None,
    limiter: Limiter | None = None,
    journal: Journal | None = None,
    **options: Any,
) -> AsyncGenerator[Service]:
    """Serve the emulator and open a session with it; with callbacks on, the session is served too."""
    loop = asyncio.get_running_loop()
    assert isinstance(loop, VirtualTimeLoop)
    loop.watch_threads()
    emitted: list[events.Event] = []
    async with AsyncExitStack() as stack:
        service = await stack.enter_async_context(emulator.serve(**{"timeline": TIMELINE, **options}))
        fields: dict[str, Any] = {"api_key": service.key, "base_url": service.base_url, "observer": emitted.append}
        port = stack.enter_context(reserved_port())
        if callbacks:
            fields["callback_url"] = f"http://127.0.0.1:{port}/kie"
        session = kie.KieSession(kie.Settings(**{**fields, **(settings or {})}), limiter=limiter, journal=journal)
        await stack.enter_async_context(session)
        if callbacks:
            await stack.enter_async_context(kie.callbacks.serve(session, port=port))
        yield Service(service, session, emitted)


def as_journal(stand_in: object) -> Journal:
    """A test's journal, which passes on to a real one what it does not change."""
    return cast("Journal", stand_in)


@contextmanager
def reserved_port() -> Iterator[int]:
    """A port of loopback that nobody listens on, and that no other test is given.

    It stays bound, without listening: connections are refused, and a server that sets SO_REUSEADDR may have it.
    """
    with socket.socket() as holder:
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        holder.bind(("127.0.0.1", 0))
        yield int(holder.getsockname()[1])
