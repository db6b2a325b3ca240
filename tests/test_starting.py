"""Servers that are cancelled while they start: at each step, and nothing is left open."""

from __future__ import annotations

import asyncio
import os
import socket
import stat
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import pytest
from callback_skins import Inbox

from kie_async import callbacks, emulator
from kie_async.batch import WorkerControl, serve_health

pytestmark = pytest.mark.anyio

Start = Callable[[], AbstractAsyncContextManager[Any]]

STARTS: dict[str, Start] = {
    "callbacks.serve": lambda: callbacks.serve(Inbox()),
    "emulator.serve": emulator.serve,
    "batch.serve_health": lambda: serve_health(WorkerControl().why_not_ready, "none here"),
}


def is_socket(file: int) -> bool:
    try:
        return stat.S_ISSOCK(os.fstat(file).st_mode)
    except OSError:  # closed since
        return False


def listening() -> set[Any]:
    """The addresses at which this process listens."""
    addresses = set()
    for file in [int(each.name) for each in Path("/dev/fd").iterdir()]:
        if is_socket(file):
            with socket.socket(fileno=os.dup(file)) as found:
                if found.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
                    addresses.add(found.getsockname())
    return addresses


@pytest.mark.parametrize("name", STARTS)
async def test_cancelled_at_any_step_it_leaves_no_socket_open(name: str) -> None:
    before = listening()
    tasks = asyncio.all_tasks()
    started = asyncio.Event()

    async def run() -> None:
        async with STARTS[name]():
            started.set()
            await asyncio.Event().wait()

    for steps in range(1000):  # until it starts before it is cancelled
        task = asyncio.create_task(run())
        for _ in range(steps):
            await asyncio.sleep(0)
        reached = started.is_set()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert listening() - before == set(), f"after {steps} steps"
        if reached:
            break
    assert reached
    assert asyncio.all_tasks() == tasks


@pytest.mark.parametrize("turns", range(1, 6))
async def test_a_connection_that_comes_while_a_receiver_closes_is_closed_too(turns: int) -> None:
    with socket.socket() as sender:
        sender.settimeout(5)
        async with callbacks.serve(Inbox()) as serving:
            sender.connect((serving.host, serving.port))
            for _ in range(turns):
                await asyncio.sleep(0)
        try:
            assert sender.recv(1) == b""
        except ConnectionResetError:
            assert turns < 5  # it was not even accepted
