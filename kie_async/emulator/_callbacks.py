"""Sends the callbacks that are due, signed if there is a key, to loopback addresses only."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Iterable
from http import HTTPStatus
from itertools import groupby

import aiohttp
import anyio
import attrs

from kie_async._protocol.signing import sign_callback
from kie_async.emulator import _bodies
from kie_async.emulator._state import EmulatorState
from kie_async.emulator._tasks import EmulatedTask, PlannedCallback

TIMEOUT = 15.0  # at the service: a callback must be answered within 15 s
MAX_CONCURRENT = 64


@attrs.frozen
class SentCallback:
    """A callback that was sent.

    Attributes:
        task_id: the task that it names.
        stage: "text", "first", "complete" or "error".
        attempt: which attempt it was, counted from 1.
        at: when it was sent, on the emulator's clock.
        status: the HTTP status of the answer; 0 if there was none.
        forged: whether the fault ``forged`` has sent it.
    """

    task_id: str
    stage: str
    attempt: int
    at: float
    status: int
    forged: bool = False


class CallbackSender:
    """Sends the callbacks of an emulator when they are due."""

    def __init__(
        self,
        state: EmulatorState,
        client: aiohttp.ClientSession,
        *,
        webhook_key: str | None,
        clock: Callable[[], float],
    ) -> None:
        self.sent: list[SentCallback] = []
        self.stopped = False
        self._state = state
        self._client = client
        self._webhook_key = webhook_key
        self._clock = clock
        self._wake = asyncio.Event()
        self._changed = asyncio.Event()
        self._slots = anyio.Semaphore(MAX_CONCURRENT)
        self._under_way = 0

    @property
    def idle(self) -> bool:
        """Whether no callback is planned or under way."""
        return self._under_way == 0 and self._state.callbacks.next_due() is None

    def wake(self) -> None:
        """Read the queue again. Call this when it has changed."""
        self._wake.set()
        self._changed.set()

    async def changed(self) -> None:
        """Wait until callbacks have been planned or sent."""
        self._changed.clear()
        await self._changed.wait()

    async def run(self) -> None:
        """Send callbacks until cancelled."""
        try:
            async with anyio.create_task_group() as group:
                while True:
                    await self._until_due()
                    due = self._state.callbacks.take_due(self._clock())
                    due.sort(key=lambda each: each[0].charge.number)
                    self._changed.set()  # all that was due may be obsolete
                    for _, callbacks in groupby(due, key=lambda each: each[0].charge.number):
                        batch = list(callbacks)
                        self._under_way += len(batch)
                        group.start_soon(self._send_batch, batch)
        finally:
            self.stopped = True
            self.wake()

    async def _until_due(self) -> None:
        self._wake.clear()
        due = self._state.callbacks.next_due()
        with anyio.move_on_after(None if due is None else max(0.0, due - self._clock())):
            await self._wake.wait()

    async def _send_batch(self, callbacks: Iterable[tuple[EmulatedTask, PlannedCallback]]) -> None:
        """Send callbacks of one task in their order."""
        for task, callback in callbacks:
            await self.send(task, callback)
            self._under_way -= 1
            self.wake()

    async def send(self, task: EmulatedTask, callback: PlannedCallback) -> None:
        """Send one callback now, and plan the next try if it fails."""
        async with self._slots:
            status = await self._post(task, callback)
        now = self._clock()
        is_forged = callback.forged is not None
        self.sent.append(SentCallback(task.id, callback.stage, callback.attempt, now, status, is_forged))
        answered = HTTPStatus.OK <= status < HTTPStatus.MULTIPLE_CHOICES
        self._state.callbacks.sent(task, callback, now, answered=answered)

    async def _post(self, task: EmulatedTask, callback: PlannedCallback) -> int:
        body = _bodies.callback(task, callback, self._state.base_url)
        headers = {"Content-Type": "application/json", "User-Agent": "kie-emulator"}
        if self._webhook_key and (callback.forged is None or callback.forged.signed):
            headers |= sign_callback(self._webhook_key, task.id, timestamp=int(time.time()))
        try:
            async with self._client.post(
                task.submission.callback_url,
                data=json.dumps(body, ensure_ascii=False).encode(),
                headers=headers,
                allow_redirects=False,  # a redirect could lead away from loopback
                timeout=aiohttp.ClientTimeout(total=TIMEOUT, ceil_threshold=2 * TIMEOUT),
            ) as answer:
                return answer.status
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError):
            return 0
