"""The connection to the service: the real one or the built-in emulator, with or without callbacks."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from types import MappingProxyType
from typing import Any
from urllib.parse import urlsplit

import attrs

from kie_async import callbacks, emulator
from kie_async._client.concurrency import unwrap_single_exception
from kie_async.callbacks import Receiver
from kie_async.cli._exit_status import KeyUnusableError, UsageError
from kie_async.cli._messages import submissions_were
from kie_async.cli._options import parse_address
from kie_async.cli._output import Output
from kie_async.cli._signals import on_interrupt
from kie_async.errors import SettingsError
from kie_async.events import Observer
from kie_async.journal import Journal
from kie_async.limiter import Limiter
from kie_async.session import KieSession
from kie_async.settings import Settings, is_loopback

SPEED = 15.0  # of the built-in emulator: a task takes 4 to 10 s
_TASK_TIMEOUT, _RECOVERY_TIMEOUT = (
    float(attrs.fields_dict(Settings)[name].default or 0) for name in ("task_timeout", "recovery_timeout")
)
_WEBHOOK_KEY = "emulated-webhook-key"
_BIND = "127.0.0.1:8080"  # where a proxy or a tunnel must lead, if nothing else is given


@attrs.frozen(kw_only=True)
class ConnectOptions:
    """What a command needs of the service.

    Attributes:
        route: which of the service's two routes to take.
        emulate: use the built-in emulator.
        emulator: how that emulator is served.
        receive: serve the receiver of callbacks in this process.
        callback_url: where the service is to call; None: as the environment says.
        bind: where the receiver listens.
        timeout: seconds to wait for a task, and for the callback that names it if its answer is lost.
        at_once: tasks that run at once; None: as ``Settings`` has it.
        observer: called with each event; by default the output.
        journal: of the session.
        limiter: shared with others; by default one of the session's own.
    """

    route: str = "classic"
    emulate: bool = False
    emulator: Mapping[str, Any] = MappingProxyType({"speed": SPEED})
    receive: bool = False
    callback_url: str | None = ""
    bind: str | None = None
    timeout: float | None = None
    at_once: int | None = None
    observer: Observer | None = None
    journal: Journal | None = None
    limiter: Limiter | None = None

    def session(self, settings: Settings) -> KieSession:
        """Make the session."""
        return KieSession(settings, limiter=self.limiter, journal=self.journal)

    def settings(self, observer: Observer) -> dict[str, Any]:
        """The settings that do not come from the environment."""
        given: dict[str, Any] = {"route": self.route, "observer": self.observer or observer}
        if self.callback_url is not None:
            given["callback_url"] = self.callback_url
        if self.timeout is not None:
            given["task_timeout"] = max(self.timeout, _TASK_TIMEOUT)
            given["recovery_timeout"] = min(self.timeout, _RECOVERY_TIMEOUT)
        if self.at_once is not None:
            given["max_in_flight"] = self.at_once
        return given


@attrs.frozen
class Connection:
    """An open session, and where it receives callbacks; empty if it does not."""

    session: KieSession
    callback_url: str


@attrs.define
class _ReceiverSlot:
    """Takes the receiver's part until there is one: the address is needed before the session is made."""

    settings: Settings
    receiver: Receiver = attrs.field(init=False)


@asynccontextmanager
async def connect(output: Output, options: ConnectOptions) -> AsyncIterator[Connection]:
    """Open a session, and all that it needs."""
    with unwrap_single_exception():
        async with AsyncExitStack() as stack:
            given = options.settings(output.emit)
            if options.emulate:
                output.resume = None
                serving = emulator.serve(**options.emulator, webhook_key=_WEBHOOK_KEY)
                emulated = await stack.enter_async_context(serving)
                given |= {"base_url": emulated.base_url, "api_key": emulated.key, "webhook_key": _WEBHOOK_KEY}
            settings = make_settings(given)
            slot: _ReceiverSlot | None = None
            if options.receive:
                slot = _ReceiverSlot(settings)
                settings = await _receive(stack, slot, options.bind)
            session = options.session(settings)
            if slot is not None:
                slot.receiver = session.receiver
            stack.enter_context(on_interrupt(partial(_announce, output, session)))
            yield Connection(await stack.enter_async_context(session), settings.callback_url)


def _announce(output: Output, session: KieSession) -> None:
    """Say what a Ctrl-C waits for."""
    if count := session.submissions_under_way:
        output.say(
            f"{submissions_were(count)} sent and may be charged: the answer is awaited for at most "
            f"{session.settings.total_timeout:.0f} s; Ctrl-C again leaves without it"
        )


def make_settings(given: Mapping[str, Any]) -> Settings:
    """Make the settings.

    Raises:
        KeyUnusableError: the key is missing, or cannot be one.
        SettingsError: another setting cannot be used.
    """
    try:
        return Settings(**given)
    except SettingsError as error:
        if error.message.startswith("api_key"):
            raise KeyUnusableError(error.message) from None
        raise


async def _receive(stack: AsyncExitStack, slot: _ReceiverSlot, bind: str | None) -> Settings:
    """Listen for callbacks, and return the settings that name the address."""
    settings = slot.settings
    if not settings.callback_url and not settings.on_loopback:
        raise UsageError("the service needs an address to call: set KIE_CALLBACK_URL, or give --callback-url")
    host, port = listen_address(settings.callback_url, bind)
    path = None if settings.callback_url else "kie"
    serving = await stack.enter_async_context(callbacks.serve(slot, host=host, port=port, path=path))
    return attrs.evolve(settings, callback_url=settings.callback_url or serving.url)


def listen_address(callback_url: str, bind: str | None) -> tuple[str, int]:
    """Where to listen: as ``--bind`` says, or else where the callback URL leads if it leads to this machine."""
    if bind:
        return parse_address(bind)
    if not callback_url:
        return "127.0.0.1", 0
    parts = urlsplit(callback_url)
    if is_loopback(parts.hostname) and parts.port:
        return str(parts.hostname), parts.port
    return parse_address(_BIND)
