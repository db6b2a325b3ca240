"""What tests of workers on a shared database have in common."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from kie_async.emulator import Rules
from kie_async.testing import EmulatorHandle, serve_in_thread


@pytest.fixture
def quick_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let workers in this process try again at once."""
    for name, seconds in {
        "HEARTBEAT": 0.05,
        "POLL_INTERVAL": 0.1,
        "MIN_RESTART_DELAY": 0.1,
        "FEED_INTERVAL": 0.1,
        "CHECK_INTERVAL": 0.1,
    }.items():
        monkeypatch.setattr(f"kie_async.batch._worker.{name}", seconds)


@pytest.fixture
def emulator() -> Iterator[EmulatorHandle]:
    """An emulator for workers: the quota does not hold them up."""
    with serve_in_thread(speed=400.0, credits=1e6, goes_on=(0.2, 0.4), rules=Rules(quota=1000)) as handle:
        yield handle


def calls_of(target: object, method: str, monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """Note the arguments of each call of an async method from now on."""
    calls: list[tuple[Any, ...]] = []
    original = getattr(target, method)

    async def note(*args: Any) -> Any:  # those of the method
        calls.append(args)
        return await original(*args)

    monkeypatch.setattr(target, method, note)
    return calls
