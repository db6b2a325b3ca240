"""A time limit that is set only where something waits."""

from __future__ import annotations

import asyncio
from unittest import mock

import anyio
import pytest
from virtual_time import VirtualTimeLoop

from kie_async.callbacks._within import within

pytestmark = pytest.mark.anyio


async def wait(seconds: float, times: int = 1) -> str:
    for _ in range(times):
        await anyio.sleep(seconds)
    return "done"


async def test_what_does_not_wait_sets_no_timer() -> None:
    async def at_once() -> str:
        return "done"

    with mock.patch.object(asyncio, "timeout", side_effect=AssertionError):
        assert await within(1, at_once()) == "done"


async def test_what_waits_is_awaited_to_its_end(clock: VirtualTimeLoop) -> None:
    start = clock.time()
    assert await within(10, wait(2, times=4)) == "done"
    assert 8 <= clock.time() - start < 9


async def test_what_takes_longer_is_cancelled(clock: VirtualTimeLoop) -> None:
    ended: list[str] = []

    async def clean_up() -> None:
        try:
            await wait(6, times=2)
        finally:
            ended.append("cleaned up")

    start = clock.time()
    with pytest.raises(TimeoutError):
        await within(10, clean_up())
    assert 10 <= clock.time() - start < 11
    assert ended == ["cleaned up"]


@pytest.mark.usefixtures("clock")
@pytest.mark.parametrize("times", [0, 1])
async def test_errors_come_out_as_they_are(times: int) -> None:
    async def fail() -> None:
        await wait(1, times)
        raise KeyError("its own")

    with pytest.raises(KeyError, match="its own"):
        await within(10, fail())


@pytest.mark.usefixtures("clock")
async def test_an_error_that_is_borne_goes_on() -> None:
    async def bear() -> str:
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        asyncio.get_running_loop().call_later(1, future.set_exception, ValueError("borne"))
        try:
            await future
        except ValueError:
            return await wait(1)
        return "not raised"

    assert await within(10, bear()) == "done"


async def test_cancelling_from_outside_comes_through(clock: VirtualTimeLoop) -> None:
    start = clock.time()
    with anyio.move_on_after(1) as scope:
        await within(10, wait(5))
    assert scope.cancelled_caught
    assert clock.time() - start < 2
