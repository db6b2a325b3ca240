"""The way to the service: the real one or the built-in emulator, with or without callbacks."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from types import MappingProxyType
from typing import Any
from urllib.parse import urlsplit

import attrs

from kie_async import callbacks, emulator
from kie_async._client.groups import unwrap_single_exception
from kie_async.callbacks import Receiver
from kie_async.cli._exit_status import KeyUnusableError, UsageError
from kie_async.cli._options import address
from kie_async.cli._output import Output
from kie_async.cli._signals import announced
from kie_async.errors import SettingsError
from kie_async.events import Observer
from kie_async.journal import Journal
from kie_async.limiter import Limiter
from kie_async.session import KieSession
from kie_async.settings import Settings, is_loopback

SPEED = 15.0  # of the built-in emulator: a task takes 4 to 10 s
_TASK_TIMEOUT, _RECOVER_PATIENCE = (
    float(attrs.fields_dict(Settings)[name].default or 0) for name in ("task_timeout", "recovery_timeout")
)
_WEBHOOK_KEY = "emulated-webhook-key"
_BIND = "127.0.0.1:8080"  # where a proxy or a tunnel is to lead, unless told otherwise


@attrs.frozen(kw_only=True)
class ConnectOptions:
    """What a command wants of the service.

    Attributes:
        emulate: use the built-in emulator.
        emulator: how that emulator is served.
        receive: serve the receiver of callbacks in this process.
        callback_url: where the service is to call; None: as the environment says.
        bind: where the receiver listens.
        timeout: seconds to wait for a task, and for the callback that names it if its answer is lost.
        at_once: tasks that run at once; None: as ``Settings`` has it.
        observer: told of events; by default the output.
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

    def given(self, observer: Observer) -> dict[str, Any]:
        """The settings that do not come from the environment."""
        given: dict[str, Any] = {"route": self.route, "observer": self.observer or observer}
        if self.callback_url is not None:
            given["callback_url"] = self.callback_url
        if self.timeout is not None:
            given["task_timeout"] = max(self.timeout, _TASK_TIMEOUT)
            given["recovery_timeout"] = min(self.timeout, _RECOVER_PATIENCE)
        if self.at_once is not None:
            given["max_in_flight"] = self.at_once
        return given


@attrs.frozen
class Connection:
    """An open way to the service."""

    session: KieSession
    callback_url: str


@attrs.define
class _ReceiverSlot:
    """Takes the receiver's place until there is one: the session must know the address before it is made."""

    settings: Settings
    receiver: Receiver = attrs.field(init=False)


@asynccontextmanager
async def connect(output: Output, plan: ConnectOptions) -> AsyncIterator[Connection]:
    """Open a session as planned, and all that it needs."""
    with unwrap_single_exception():
        async with AsyncExitStack() as stack:
            given = plan.given(output.tell)
            if plan.emulate:
                output.again = None
                serving = emulator.serve(**plan.emulator, webhook_key=_WEBHOOK_KEY)
                emulated = await stack.enter_async_context(serving)
                given |= {"base_url": emulated.base_url, "api_key": emulated.key, "webhook_key": _WEBHOOK_KEY}
            settings = make_settings(given)
            if not plan.receive:
                session = plan.session(settings)
                stack.enter_context(announced(partial(_announce, output, session)))
                await stack.enter_async_context(session)
                yield Connection(session, settings.callback_url)
                return
            slot = _ReceiverSlot(settings)
            settings = await _opened(stack, slot, plan.bind)
            session = plan.session(settings)
            slot.receiver = session.receiver
            stack.enter_context(announced(partial(_announce, output, session)))
            yield Connection(await stack.enter_async_context(session), settings.callback_url)


def _announce(output: Output, session: KieSession) -> None:
    """Say what a Ctrl-C waits for."""
    if (count := session.submissions_under_way) and not output.announced:
        output.announced = True
        what = "a submission was" if count == 1 else f"{count} submissions were"
        patience = session.settings.total_timeout
        output.say(
            f"{what} sent and may be charged: the answer is awaited for at most {patience:.0f} s; Ctrl-C again leaves "
            "without it"
        )


def make_settings(given: dict[str, Any]) -> Settings:
    """Make the settings.

    Raises:
        KeyUnusableError: the key is missing, or is none.
        SettingsError: another one cannot be used.
    """
    try:
        return Settings(**given)
    except SettingsError as error:
        if error.message.startswith("api_key"):
            raise KeyUnusableError(error.message) from None
        raise


async def _opened(stack: AsyncExitStack, slot: _ReceiverSlot, bind: str | None) -> Settings:
    """Listen for callbacks, and return the settings that name the address."""
    settings = slot.settings
    if not settings.callback_url and not settings.on_loopback:
        raise UsageError("the service must be told where to call: set KIE_CALLBACK_URL, or give --callback-url")
    host, port = address(bind) if bind else _place(settings.callback_url)
    path = None if settings.callback_url else "kie"
    serving = await stack.enter_async_context(callbacks.serve(slot, host=host, port=port, path=path))
    return attrs.evolve(settings, callback_url=settings.callback_url or serving.url)


def _place(callback_url: str) -> tuple[str, int]:
    """Where to listen: there where the address leads, if it leads here at all."""
    if not callback_url:
        return "127.0.0.1", 0
    parts = urlsplit(callback_url)
    if is_loopback(parts.hostname) and parts.port:
        return str(parts.hostname), parts.port
    return address(_BIND)
