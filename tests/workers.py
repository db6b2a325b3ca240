"""What tests of workers on a shared database have in common."""

from __future__ import annotations

from typing import Any

import pytest


def calls_of(target: object, method: str, monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """Note the arguments of each call of an async method from now on."""
    calls: list[tuple[Any, ...]] = []
    original = getattr(target, method)

    async def note(*args: Any) -> Any:  # those of the method
        calls.append(args)
        return await original(*args)

    monkeypatch.setattr(target, method, note)
    return calls
