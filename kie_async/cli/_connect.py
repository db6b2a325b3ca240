"""What a command opens: the service, real or emulated, with or without callbacks; the journal; the signals."""

from __future__ import annotations

import asyncio
import shlex
import signal
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, suppress
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any, TypedDict, Unpack
from urllib.parse import parse_qsl, urlsplit

import attrs
from anyio import CancelScope

from kie_async import callbacks, emulator
from kie_async._client.concurrency import unwrap_single_exception
from kie_async.callbacks import Receiver
from kie_async.cli._exit_codes import KeyUnusableError, TerminatedError, UsageError, submissions_were
from kie_async.cli._options import CallbackOptions, parse_address
from kie_async.cli._output import Output
from kie_async.errors import SettingsError
from kie_async.events import Observer
from kie_async.journal import ANY_BATCH, DEFAULT_NAME, OWN_BATCH, BatchFilter, Journal, is_shared, open_journal, text_of
from kie_async.session import KieSession
from kie_async.settings import Settings, is_loopback, journal_location

_WEBHOOK_KEY = "emulated-webhook-key"
_BIND = "127.0.0.1:8080"  # where a proxy or a tunnel must lead, if nothing else is given
NO_CALLBACKS = CallbackOptions(callback_url="")


class SessionOptions(TypedDict, total=False):
    """What a command decides about its session, and not the environment: settings, and whom it shares with others."""

    route: str
    observer: Observer
    task_timeout: float
    recovery_timeout: float
    max_in_flight: int
    journal: Journal | str


@attrs.define
class _ReceiverSlot:
    """Takes the receiver's part until there is one: the address is needed before the session is made."""

    settings: Settings
    receiver: Receiver = attrs.field(init=False)


@asynccontextmanager
async def connect(
    output: Output,
    receiver: CallbackOptions = NO_CALLBACKS,
    *,
    emulated: Mapping[str, Any] | None = None,
    sigterm: bool = False,
    **options: Unpack[SessionOptions],
) -> AsyncIterator[KieSession]:
    """Open a session, and all that it needs.

    Args:
        output: its ``emit`` is called with each event, unless the options name another observer.
        receiver: whether callbacks are received here; without an address of its own, the environment's is used.
        emulated: options of the built-in emulator; None for the real service.
        sigterm: SIGTERM or SIGHUP cancels the block; the answer of a submission is awaited.
        options: of the session.

    Raises:
        TerminatedError: SIGTERM or SIGHUP came.
    """
    with unwrap_single_exception():
        async with AsyncExitStack() as stack:
            given: dict[str, Any] = {"observer": output.emit, **options}
            journal = given.pop("journal", None)
            if receiver.callback_url is not None:
                given["callback_url"] = receiver.callback_url
            if emulated is not None:
                output.resume, journal = None, journal or ""  # what is merely tried out is no job of KIE_JOURNAL
                service = await stack.enter_async_context(
                    emulator.serve(**emulated, seed=None, webhook_key=_WEBHOOK_KEY)
                )
                given |= {"base_url": service.base_url, "api_key": service.key, "webhook_key": _WEBHOOK_KEY}
                given["max_credits"] = None  # nothing is paid
            slot = _ReceiverSlot(_with_telemetry(make_settings(given)))
            if receiver.callbacks:
                await _receive(stack, slot, receiver.bind)
            session = KieSession(slot.settings, journal=journal)
            slot.receiver = session.receiver
            announce = partial(_announce, output, session)
            stack.enter_context(on_interrupt(announce))
            await stack.enter_async_context(session)
            if sigterm:
                stack.enter_context(stopped_by_sigterm(partial(_terminate, announce=announce)))
            yield session


def _announce(output: Output, session: KieSession) -> None:
    """Say what a Ctrl-C, SIGTERM or SIGHUP waits for."""
    if count := session.submissions_under_way:
        output.say(
            f"{submissions_were(count)} sent and may be charged: the answer is awaited for at most "
            f"{session.settings.total_timeout:.0f} s; Ctrl-C again leaves without it"
        )


def _with_telemetry(settings: Settings) -> Settings:
    """Let a command that ``opentelemetry-instrument`` has started make spans and metrics."""
    if "opentelemetry.sdk" not in sys.modules:
        return settings
    from kie_async.otel import OpenTelemetryObserver  # it takes an extra, and is slow to load

    host = urlsplit(settings.base_url).hostname or ""
    return attrs.evolve(settings, observer=OpenTelemetryObserver(settings.observer, server_address=host))


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


async def _receive(stack: AsyncExitStack, slot: _ReceiverSlot, bind: str | None) -> None:
    """Listen for callbacks, and name the address in the settings."""
    settings = slot.settings
    if not settings.callback_url and not settings.on_loopback:
        raise UsageError("the service needs an address to call: set KIE_CALLBACK_URL, or give --callback-url")
    host, port = listen_address(settings.callback_url, bind)
    path = None if settings.callback_url else "kie"
    serving = await stack.enter_async_context(callbacks.serve(slot, host=host, port=port, path=path))
    slot.settings = attrs.evolve(settings, callback_url=settings.callback_url or serving.url)


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


# ---------------------------------------------------------------- the journal

EMULATOR_GONE = "the emulator and its tasks are gone"
EMULATOR_REMEDY = "to stop and go on, run 'kie-async emulate' in another terminal"
EMULATED_FILE = "kie-async-emulated.sqlite"  # apart, or what was merely tried out would count as done
_SECRETS = frozenset({"password", "sslpassword", "oauth_client_secret", "scram_client_key", "scram_server_key"})
_VARIABLE = '"$KIE_JOURNAL"'  # stands for an address that is not to be shown


@attrs.frozen
class JournalLocation:
    """Where the journal is, and how other commands are led to it.

    Attributes:
        address: a path, or a URL that may hold a password.
        options: the options with which another command finds it, quoted for a shell; without a password.
        batch: the name of the batch that is meant; None: all batches.
    """

    address: str = attrs.field(repr=False)
    options: str
    batch: str | None = None

    @property
    def only_batch(self) -> str | None:
        """The batch that a list is limited to; None for a file beside the results, which holds one batch."""
        return None if self.batch == OWN_BATCH else self.batch

    @property
    def awaited(self) -> BatchFilter:
        """The batch whose jobs are waited for, or all; tasks of plain sessions are their programs' own."""
        return self.only_batch or ANY_BATCH

    @property
    def is_shared(self) -> bool:
        """Whether other machines may use it too."""
        return is_shared(self.address)

    @property
    def is_emulated(self) -> bool:
        """Whether it holds the jobs of the built-in emulator."""
        return Path(self.address).name == EMULATED_FILE

    @property
    def must_be_set(self) -> bool:
        """Whether ``KIE_JOURNAL`` must be set to the address before the options can be used."""
        return _is_secret(self.address) and self.address != journal_location()

    @property
    def exists(self) -> bool:
        """Whether there may be jobs in it."""
        return self.is_shared or Path(self.address).exists()

    def with_out(self, out: Path | None) -> str:
        """The options, with the directory of the results if there is one."""
        directory = f"--out {shlex.quote(str(out))}"
        return self.options if out is None or self.options == directory else f"{self.options} {directory}"

    def journal(self) -> Journal:
        """Make the journal, without opening it."""
        return open_journal(self.address)

    @asynccontextmanager
    async def opened(self) -> AsyncIterator[Journal]:
        """Open a journal that exists already.

        Raises:
            UsageError: it does not exist.
        """
        if not self.exists:
            tried = Path(self.address).with_name(EMULATED_FILE)
            where = f"; those of --emulate: --journal {shlex.quote(str(tried))}" if tried.exists() else ""
            raise UsageError(f"there are no jobs: {self.address} does not exist{where}")
        async with self.journal() as journal:
            yield journal

    def as_typed(self, words: Sequence[str]) -> str:
        """The command line as it can be typed again, without a password."""
        return " ".join(["kie-async", *map(self._as_typed, words)])

    def _as_typed(self, word: str) -> str:
        before, found, _ = word.partition(self.address)
        return f"{before}{_VARIABLE}" if found and _is_secret(self.address) else shlex.quote(word)


def find_journal(location: str | None, out: Path | None, *, emulate: bool = False) -> JournalLocation:
    """Find the journal: by option, by ``KIE_JOURNAL``, or else as a file in the directory of the results.

    ``KIE_JOURNAL`` is not for what is emulated: it would count as done.

    Raises:
        UsageError: none of these is given, the option is empty, or the URL is of an unknown kind.
    """
    if location is not None and not location.strip():
        raise UsageError("--journal is empty: give a path or postgresql://..., or leave it out")
    if location := location or ("" if emulate else journal_location()):
        if not is_shared(location):
            try:
                open_journal(location)
            except SettingsError:
                raise UsageError("--journal is neither a path nor postgresql://...") from None
        options = f"--journal {_VARIABLE if _is_secret(location) else shlex.quote(location)}"
        return JournalLocation(location, options, text_of(out.resolve()) if out else None)
    if out is None:
        raise UsageError("--out or --journal must say where the jobs are kept")
    if emulate:
        path = str(out / EMULATED_FILE)
        return JournalLocation(path, f"--journal {shlex.quote(path)}", OWN_BATCH)
    return JournalLocation(str(out / DEFAULT_NAME), f"--out {shlex.quote(str(out))}", OWN_BATCH)


def _is_secret(address: str) -> bool:
    """Whether a URL may hold a password, before its host or in its query; in doubt it does."""
    if not is_shared(address):
        return False
    try:
        urlsplit(address)
    except ValueError:
        return True
    rest = address.partition("://")[2]
    names = {name.lower() for name, _ in parse_qsl(rest.partition("?")[2], keep_blank_values=True)}
    return bool(rest.rpartition("@")[0].partition(":")[2]) or not names.isdisjoint(_SECRETS)


# ---------------------------------------------------------------- signals


def _terminate(name: str, announce: Callable[[], None] = lambda: None) -> None:
    announce()
    raise TerminatedError(f"stopped by {name}")


@contextmanager
def stopped_by_sigterm(
    then: Callable[[str], None] = _terminate, *, first: Callable[[str], None] | None = None
) -> Iterator[None]:
    """Cancel the block when SIGTERM or SIGHUP comes, so that it can finish what must not be cut off.

    Args:
        then: called with the name of the signal that has ended the block; by default it raises TerminatedError.
        first: called with the name of the first signal instead; the second one cancels.
    """
    last = ""
    with CancelScope() as scope:
        steps = iter(filter(None, (first,)))

        def handle(name: str) -> None:
            nonlocal last
            last = name
            next(steps, lambda _name: scope.cancel())(name)

        with _sigterm_handled(handle), _sighup_handled(handle):
            yield
    if scope.cancelled_caught:
        then(last)


@contextmanager
def _sigterm_handled(handle: Callable[[str], None]) -> Iterator[None]:
    loop = asyncio.get_running_loop()
    with suppress(NotImplementedError):  # Windows has no such signal
        loop.add_signal_handler(signal.SIGTERM, handle, "SIGTERM")
    try:
        yield
    finally:
        with suppress(NotImplementedError):
            loop.remove_signal_handler(signal.SIGTERM)


@contextmanager
def _sighup_handled(handle: Callable[[str], None]) -> Iterator[None]:
    """Handle the first SIGHUP, which comes when the terminal is closed, unless it is ignored (nohup).

    The shell may send another: it is ignored from then on, also after the block, where an answer is awaited.
    """
    number, loop = getattr(signal, "SIGHUP", None), asyncio.get_running_loop()
    if number is None or signal.getsignal(number) is signal.SIG_IGN:  # Windows has no such signal
        yield
        return
    handlers = iter((handle,))

    def handle_once() -> None:
        loop.remove_signal_handler(number)
        signal.signal(number, signal.SIG_IGN)
        for each in handlers:  # none is left if two came in one turn of the loop
            each("SIGHUP")

    loop.add_signal_handler(number, handle_once)
    try:
        yield
    finally:
        loop.remove_signal_handler(number)


@contextmanager
def on_interrupt(announce: Callable[[], None]) -> Iterator[None]:
    """Call ``announce`` at the first Ctrl-C, which cancels the command; what it cancels may have to wait for an answer.

    The second Ctrl-C ends the loop. It is raised between two steps of tasks; inside a task it would wait with it.

    Args:
        announce: called by the loop, at once.
    """
    loop, handler = asyncio.get_running_loop(), signal.getsignal(signal.SIGINT)
    # asyncio's runner has set one, unless this is not the main thread, or the signal is ignored
    if not callable(handler) or threading.current_thread() is not threading.main_thread():
        yield
        return
    cancel, is_first = handler, True

    def handle(number: int, frame: FrameType | None) -> None:
        nonlocal is_first
        if is_first:
            is_first = False
            loop.call_soon_threadsafe(announce)
            cancel(number, frame)
        else:
            loop.call_soon_threadsafe(_interrupt)

    signal.signal(signal.SIGINT, handle)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)


def _interrupt() -> None:
    raise KeyboardInterrupt
