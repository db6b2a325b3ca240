"""A time limit that costs nothing where nothing waits."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Generator
from types import coroutine
from typing import Any, TypeVar

T = TypeVar("T")


async def within(seconds: float, work: Coroutine[Any, Any, T]) -> T:
    """Await a coroutine for so long at most.

    The timer is set only when it first waits for something. A callback nearly always comes in one piece and is taken
    in at once, and ``asyncio.timeout`` costs as much as checking its signature.

    Raises:
        TimeoutError: it took longer, and was cancelled.
    """
    try:
        awaited = work.send(None)
    except StopIteration as done:
        result: T = done.value
        return result
    async with asyncio.timeout(seconds):
        return await _go_on(work, awaited)


@coroutine
def _go_on(work: Coroutine[Any, Any, T], awaited: object) -> Generator[object, None, T]:
    """Await a coroutine that has begun, and waits for ``awaited``."""
    while True:
        try:
            try:
                yield awaited
            except BaseException as error:  # noqa: BLE001  # whatever it is, it is the work's
                awaited = work.throw(error)
            else:
                awaited = work.send(None)
        except StopIteration as done:
            result: T = done.value
            return result
