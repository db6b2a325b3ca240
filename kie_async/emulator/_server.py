"""``serve``: the service in miniature, on loopback, and what a test can read and change of it."""

from __future__ import annotations

import re
import socket
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager

import aiohttp
import anyio
from aiohttp import web

from kie_async._client.concurrency import unwrap_single_exception
from kie_async._client.http_server import listening, url_of
from kie_async._client.lifetime import Lifetime, running_loop
from kie_async.emulator._callbacks import CallbackSender, SentCallback
from kie_async.emulator._faults import Fault
from kie_async.emulator._files import FileStore, SourceChecker
from kie_async.emulator._http import KEY, EmulatedService, under_own_name
from kie_async.emulator._state import EmulatorState, Faults, Rules, most_in_window
from kie_async.emulator._tasks import Answers, Charge, EmulatedTask, ReceivedRequest, Speed
from kie_async.settings import is_loopback


class Emulator:
    """A running emulator: its address and key for a client, and what a test can read and change.

    Attributes:
        base_url: its address, for ``Settings.base_url``.
        key: a key that it accepts.
        faults: the faults that are switched on; add and remove them at any time.
    """

    def __init__(self, service: EmulatedService, key: str) -> None:
        self.base_url = service.state.base_url
        self.key = key
        self.faults: Faults = service.state.faults
        self._service = service
        self._state: EmulatorState = service.state

    @property
    def credits(self) -> float:
        """The credits left on the account."""
        return self._state.account.credits_left(self._service.clock())

    def top_up(self, amount: float) -> None:
        """Add credits."""
        self._state.account.top_up(amount)

    @property
    def ledger(self) -> Sequence[Charge]:
        """The charges in order, one for each accepted submission."""
        self._state.account.credits_left(self._service.clock())  # refund first what is due
        return self._state.account.ledger

    @property
    def arrivals(self) -> Sequence[ReceivedRequest]:
        """All submissions that arrived, accepted or not, in order."""
        return self._state.account.received

    @property
    def callbacks(self) -> Sequence[SentCallback]:
        """All callbacks that were sent, every attempt of each, in order."""
        return self._service.sender.sent

    def max_in_window(self, seconds: float = 10.0) -> int:
        """Return the largest number of submissions that arrived in any window of that many seconds."""
        return most_in_window((request.at for request in self.arrivals), seconds)

    def polls(self, task_id: str) -> int:
        """Return how often record-info was read for a task."""
        return self._state.polls[task_id]

    def task(self, task_id: str) -> EmulatedTask:
        """Return a task, with its timeline.

        Raises:
            KeyError: there is no task with this id.
        """
        return self._state.tasks[task_id]

    async def audio(self, track_id: str) -> bytes:
        """Return the bytes of a track's audio (mp3), as a download gives them, even before the track is finished.

        Raises:
            AudioMissingError: the extra ``audio`` is not installed.
            KeyError: there is no track with this id.
        """
        found = self._state.track(track_id)
        if found is None:
            raise KeyError(track_id)
        return await self._service.files.audio(*found)

    async def wait_finished(self) -> None:
        """Wait until every task that can end has ended and every callback was sent.

        Raises:
            RuntimeError: the emulator has stopped.
        """
        service = self._service
        while True:
            if service.sender.stopped:
                raise RuntimeError("the emulator has stopped: its tasks go no further")
            if (wait := self._state.last_end - service.clock()) > 0:
                await anyio.sleep(wait)
            elif service.sender.idle and service.checker.unchecked == 0:
                return
            else:
                await service.sender.changed()


@asynccontextmanager
async def serve(  # noqa: PLR0913  # each is one setting, by name
    *,
    host: str = "127.0.0.1",
    port: int = 0,
    key: str | Iterable[str] | None = None,
    credits: float = 1000.0,  # noqa: A002  # the word of the service
    seed: int | None = 0,
    speed: float = 1.0,
    timeline: tuple[float, float, float] | None = None,
    goes_on: tuple[float, float] | None = None,
    answers: Answers = "whole",
    webhook_key: str | None = None,
    faults: Iterable[Fault] = (),
    rules: Rules | None = None,
    check_sources: bool = True,
    malformed_jobs: bool = True,
) -> AsyncIterator[Emulator]:
    """Run the service in miniature, on loopback only, while the block lasts.

    It contacts no other machine: it sends callbacks to loopback addresses only, and fetches sources only from them. It
    answers only requests to loopback names, so that no page in a browser can use it. Its clock is the running loop's.

    Args:
        host: a loopback address.
        port: the port; 0 for any free one.
        key: the key that it accepts, or several of one account; None for ``emulated-account-1``,
            ``emulated-account-2`` and so on. It answers other keys as the service does, with HTTP 200 and code 401.
        credits: the credits of the account; a task costs 12.
        seed: the seed of everything random. None is like 0, except that the ids of tasks and tracks are unique among
            all emulators.
        speed: how many times faster tasks run; the quota is not faster.
        timeline: when a task reaches text, first and complete, in seconds at speed 1; None for random times like
            those of the real service.
        goes_on: how many seconds the two tracks last after ``continue_at``; None for about 20 and about 35.
        answers: "whole" if tracks begin with the source, "continuation" if they hold only the new part. What the real
            service gives is not documented.
        webhook_key: the key that signs the callbacks; None for no signature.
        faults: the faults to switch on; see ``Fault``.
        rules: how strict the service is; see ``Rules``.
        check_sources: whether to fetch and measure the sources of uploads.
        malformed_jobs: whether record-info of the jobs route answers malformed JSON, as the real service once did.

    Raises:
        SettingsError: the port is in use, or the host is not on this machine.
        ValueError: the host is not on loopback, or a key cannot be sent in a header.
    """
    if not is_loopback(host):
        raise ValueError(f"the emulator serves on loopback only, not on {host!r}")
    keys = _checked(key)
    clock = running_loop().time
    state = EmulatorState(
        seed=seed,
        credits_left=credits,
        speed=Speed(speed, timeline, goes_on, answers),
        rules=rules or Rules(),
        faults=faults,
    )

    @asynccontextmanager
    async def running() -> AsyncIterator[Emulator]:
        connector = aiohttp.TCPConnector(limit=0, socket_factory=_loopback_socket)
        async with aiohttp.ClientSession(connector=connector) as client:
            sender = CallbackSender(state, client, webhook_key=webhook_key, clock=clock)
            files = FileStore(state, client, clock)
            checker = SourceChecker(state, files, clock, changed=sender.wake)
            service = EmulatedService(
                state, sender, checker, files, clock, keys, malformed_jobs=malformed_jobs, check_sources=check_sources
            )
            async with _listening(service, host, port), _background(service):
                yield Emulator(service, keys[0] if keys else KEY)

    async with Lifetime("emulator", running) as emulator:  # it may be left in another task
        yield emulator


def _checked(key: str | Iterable[str] | None) -> tuple[str, ...]:
    keys = (key,) if isinstance(key, str) else tuple(key or ())
    if not all(re.fullmatch(r"[!#-&(-~]+", each) for each in keys):
        raise ValueError("a key is empty, or holds spaces, quotes or letters beyond ASCII: no client could send it")
    return keys


def _loopback_socket(info: aiohttp.AddrInfoType) -> socket.socket:
    """Make the socket of a connection, unless its address is not on loopback, whatever the host is called."""
    family, kind, protocol, _, address = info
    if not is_loopback(str(address[0])):
        raise OSError("the emulator contacts no other machine")
    return socket.socket(family, kind, protocol)


@asynccontextmanager
async def _background(service: EmulatedService) -> AsyncIterator[None]:
    with unwrap_single_exception():
        async with anyio.create_task_group() as group:
            group.start_soon(service.sender.run)
            group.start_soon(service.checker.run)
            yield
            group.cancel_scope.cancel()


@asynccontextmanager
async def _listening(service: EmulatedService, host: str, port: int) -> AsyncIterator[None]:
    app = web.Application(client_max_size=service.state.rules.max_bytes, middlewares=[under_own_name])
    app.add_routes(service.routes())
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.5)
    async with listening(runner, "requests to the emulator", host, port) as address:
        service.state.base_url = url_of(*address)
        yield
