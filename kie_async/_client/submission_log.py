"""Who keeps a record of a submission."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from kie_async._client.tracked_task import TrackedTask
from kie_async.errors import KieError


class SubmissionLog(Protocol):
    """Who keeps a record of one submission that survives a crash; a plain session has none.

    What it raises before the POST stops the POST: no record, no spending.
    """

    async def before_send(self, token: str) -> None:
        """Record, durably, that a POST with this token is about to be sent."""
        ...

    async def accepted(self, token: str, task_id: str) -> None:
        """Record, durably, the task that came of it; nobody has been told of it yet."""
        ...

    async def failed(self, token: str, error: KieError) -> None:
        """Record that it did not become a task, or that nobody knows whether it did."""
        ...

    def follow(self, token: str, entry: TrackedTask) -> None:
        """Record the end of the task when it comes."""
        ...


class NoSubmissionLog:
    """Keeps no record.

    Args:
        check: called right before the POST, which it may forbid.
    """

    def __init__(self, check: Callable[[], None] = lambda: None) -> None:
        self._check = check

    async def before_send(self, token: str) -> None:  # noqa: ARG002  # as ``SubmissionLog`` has it
        """Keep nothing."""
        self._check()

    async def accepted(self, token: str, task_id: str) -> None:
        """Keep nothing."""

    async def failed(self, token: str, error: KieError) -> None:
        """Keep nothing."""

    def follow(self, token: str, entry: TrackedTask) -> None:
        """Keep nothing."""
