"""Callbacks: one coroutine sends what is due, signed when there is a key, to loopback addresses alone."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Iterable
from itertools import groupby

import aiohttp
import anyio
import attrs

from kie_async._protocol.signing import sign_callback
from kie_async.emulator import _bodies
from kie_async.emulator._state import Delivery, State

PATIENCE = 15.0  # FACTS §4: a callback must be answered within 15 s
AT_ONCE = 64


@attrs.frozen
class Sent:
    """A callback that was sent.

    Attributes:
        at: when, on the emulator's clock.
        status: what it was answered with; 0 if it was not.
    """

    task_id: str
    stage: str
    attempt: int
    at: float
    status: int
    forged: bool = False


class Courier:
    """Sends the callbacks of a ``State`` when they are due."""

    def __init__(
        self, state: State, client: aiohttp.ClientSession, *, webhook_key: str | None, clock: Callable[[], float]
    ) -> None:  # fmt: skip
        self.sent: list[Sent] = []
        self.stopped = False
        self.base_url = ""
        self._state = state
        self._client = client
        self._webhook_key = webhook_key
        self._clock = clock
        self._wake = asyncio.Event()
        self._moved = asyncio.Event()
        self._places = anyio.Semaphore(AT_ONCE)
        self._under_way = 0

    @property
    def idle(self) -> bool:
        """Whether no callback is planned or under way."""
        return self._under_way == 0 and self._state.next_due() is None

    def wake(self) -> None:
        """Tell that something has changed: callbacks have been planned or sent."""
        self._wake.set()
        self._moved.set()

    async def moved(self) -> None:
        """Wait until something changes."""
        self._moved.clear()
        await self._moved.wait()

    async def run(self) -> None:
        """Send callbacks until cancelled."""
        try:
            async with anyio.create_task_group() as group:
                while True:
                    await self._until_due()
                    due = sorted(self._state.take_due(self._clock()), key=lambda each: each.task.number)
                    self._moved.set()  # what was due may have been nothing any more
                    for _, deliveries in groupby(due, key=lambda each: each.task.number):
                        batch = list(deliveries)
                        self._under_way += len(batch)
                        group.start_soon(self._send_batch, batch)
        finally:
            self.stopped = True
            self.wake()

    async def _until_due(self) -> None:
        self._wake.clear()
        due = self._state.next_due()
        with anyio.move_on_after(None if due is None else max(0.0, due - self._clock())):
            await self._wake.wait()

    async def _send_batch(self, deliveries: Iterable[Delivery]) -> None:
        """Send the callbacks of one task, one after the other: their order is part of the plan."""
        for delivery in deliveries:
            await self.send(delivery)
            self._under_way -= 1
            self.wake()

    async def send(self, delivery: Delivery) -> None:
        """Send one callback now, and plan the next try if it fails."""
        async with self._places:
            status = await self._post(delivery)
        task = delivery.task
        self.sent.append(
            Sent(task.id, delivery.stage, delivery.attempt, self._clock(), status, delivery.forged is not None)
        )
        self._state.delivered(delivery, self._clock(), answered=200 <= status < 300)  # noqa: PLR2004  # 2xx

    async def _post(self, delivery: Delivery) -> int:
        task, fault = delivery.task, delivery.forged
        if fault is None:
            write = _bodies.job_callback if delivery.as_record else _bodies.callback
            body = write(task, delivery.stage, self.base_url)
        else:
            body = _bodies.forged(task, fault, self.base_url)
        headers = {"Content-Type": "application/json", "User-Agent": "kie-emulator"}
        if self._webhook_key and (fault is None or fault.signed):
            headers |= sign_callback(self._webhook_key, task.id, timestamp=int(time.time()))
        try:
            async with self._client.post(
                task.ask.callback_url,
                data=json.dumps(body, ensure_ascii=False).encode(),
                headers=headers,
                allow_redirects=False,  # it would lead away from loopback
                timeout=aiohttp.ClientTimeout(total=PATIENCE, ceil_threshold=2 * PATIENCE),
            ) as answer:
                return answer.status
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError):
            return 0
