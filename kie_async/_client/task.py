"""A task as a user holds it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Coroutine, Generator
from typing import Any

from kie_async._client.tracked_task import TrackedTask
from kie_async._client.tracker import Tracker
from kie_async.errors import WaitTimeoutError
from kie_async.models import TaskEvent, TaskResult


class Task:
    """A task of the service, followed by a session. Await it for its result; many may.

    A waiter that goes away stops nothing for the others. With a journal the task is followed to its end, whoever waits.
    Without one, when the last waiter goes, it is not polled any more until somebody waits again; it goes on at the
    service all the same.
    """

    __slots__ = ("__weakref__", "_key", "_tracked", "_tracker")

    def __init__(self, tracked: TrackedTask, tracker: Tracker, key: str | None = None) -> None:
        self._tracked = tracked
        self._tracker = tracker
        self._key = key

    @property
    def id(self) -> str:
        """The id of the task."""
        return self._tracked.task_id

    @property
    def key(self) -> str | None:
        """The name of its job in the session's journal; None without one."""
        return self._key

    @property
    def status(self) -> str:
        """The last status word known; empty before the first poll."""
        return self._tracked.progress.status

    def __repr__(self) -> str:
        return f"<Task {self.id} {self.status or 'not polled yet'}>"

    def __await__(self) -> Generator[object, None, TaskResult]:
        return self._tracker.wait(self._tracked).__await__()

    def result(self, *, timeout: float | None = None) -> Coroutine[Any, Any, TaskResult]:
        """Wait for the result: ``await task.result()``.

        Args:
            timeout: seconds to wait; None waits as long as ``Settings.task_timeout``.

        Raises:
            TaskFailedError: the task ended without a result.
            TaskNotFoundError: the service does not know it.
            WaitTimeoutError: the time is over; the task goes on.

        Cancelling stops nothing at the service.
        """
        return self._tracker.wait(self._tracked) if timeout is None else self._result_within(timeout)

    async def _result_within(self, seconds: float) -> TaskResult:
        try:
            async with asyncio.timeout(seconds):
                return await self._tracker.wait(self._tracked)
        except WaitTimeoutError:
            raise
        except TimeoutError:
            message = f"no end within {seconds} s; the task goes on: wait again, or session.track({self.id!r}) later"
            raise WaitTimeoutError(message, self.id) from None

    def events(self) -> AsyncGenerator[TaskEvent, None]:
        """Give the stages "text", "first" and "complete", each once and in this order, and end with the task.

        A success passes through all three; a stage that was never seen by itself is given with the next. A failure
        ends the stages early and is raised by awaiting the task.
        """
        return self._tracker.stages(self._tracked)
