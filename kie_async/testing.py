"""Fixtures for the tests of programs that use this library: ``kie_emulator``, an emulated service.

pytest finds them once the library is installed. It loads this module in every run of every project, so only pytest is
imported here; the emulator is loaded when a test first uses it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from anyio.from_thread import BlockingPortal

    from kie_async.emulator import Charge, Emulator, Fault, ReceivedRequest, SentCallback

SPEED = 100.0


@dataclass(frozen=True)  # attrs would be an import
class EmulatorHandle:
    """An emulator in a thread of its own; every method may be called from any thread.

    Attributes:
        base_url: its address, for ``Settings.base_url``; ``KIE_BASE_URL`` has it during the test.
        key: a key that it accepts; others are refused with code 401. ``KIE_API_KEY`` has it during the test.
    """

    base_url: str
    key: str
    _emulator: Emulator = field(repr=False)
    _portal: BlockingPortal = field(repr=False)

    @property
    def credits(self) -> float:
        """The credits left on the account."""
        return self._portal.call(lambda: self._emulator.credits)

    @property
    def ledger(self) -> list[Charge]:
        """The charges in order, one for each accepted submission."""
        return self._portal.call(lambda: list(self._emulator.ledger))

    @property
    def arrivals(self) -> list[ReceivedRequest]:
        """All submissions that arrived, accepted or not, in order."""
        return self._portal.call(lambda: list(self._emulator.arrivals))

    @property
    def callbacks(self) -> list[SentCallback]:
        """All callbacks that were sent, every attempt of each, in order."""
        return self._portal.call(lambda: list(self._emulator.callbacks))

    def polls(self, task_id: str) -> int:
        """Return how often record-info was read for a task."""
        return self._portal.call(self._emulator.polls, task_id)

    def top_up(self, amount: float) -> None:
        """Add credits."""
        self._portal.call(self._emulator.top_up, amount)

    def add_faults(self, *faults: Fault) -> None:
        """Switch faults on, from now on."""
        self._portal.call(self._emulator.faults.add, *faults)

    def remove_faults(self, *faults: Fault) -> None:
        """Switch faults off."""
        self._portal.call(self._emulator.faults.remove, *faults)

    def wait_finished(self) -> None:
        """Wait until every task that can end has ended and every callback was sent."""
        self._portal.call(self._emulator.wait_finished)


@contextmanager
def serve_in_thread(**options: Any) -> Iterator[EmulatorHandle]:  # noqa: ANN401  # those of ``serve``
    """Run an emulator in a thread of its own, with the options of ``kie_async.emulator.serve``.

    Tasks run 100 times faster than at the real service, unless ``speed`` is given.
    """
    from anyio.from_thread import start_blocking_portal  # see the module's docstring

    from kie_async.emulator import serve  # see the module's docstring

    with (
        start_blocking_portal("asyncio") as portal,
        portal.wrap_async_context_manager(serve(**{"speed": SPEED, **options})) as emulator,
    ):
        yield EmulatorHandle(emulator.base_url, emulator.key, emulator, portal)


@pytest.fixture
def kie_emulator_options() -> dict[str, Any]:
    """The options of the emulator (those of ``kie_async.emulator.serve``); override it to change them."""
    return {}


@pytest.fixture
def kie_emulator(
    monkeypatch: pytest.MonkeyPatch, kie_emulator_options: dict[str, Any]
) -> Iterator[EmulatorHandle]:  # fmt: skip
    """An emulated service, new for each test; ``KIE_BASE_URL`` and ``KIE_API_KEY`` point to it.

    It works in synchronous tests and with any async plugin, because it has a thread and an event loop of its own.
    """
    with serve_in_thread(**kie_emulator_options) as handle:
        monkeypatch.setenv("KIE_BASE_URL", handle.base_url)
        monkeypatch.setenv("KIE_API_KEY", handle.key)
        for name in ("KIE_CALLBACK_URL", "KIE_WEBHOOK_KEY", "KIE_API_KEY_FILE", "KIE_WEBHOOK_KEY_FILE"):
            monkeypatch.delenv(name, raising=False)
        yield handle
