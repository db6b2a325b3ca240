"""Who records a submission: all that the client knows of journals."""

from __future__ import annotations

from typing import Protocol

from kie_async.errors import KieError
from kie_async.models import TaskResult


class SubmissionLog(Protocol):
    """Records one submission so that a crash does not lose it; a session without a journal has none.

    What it raises before the POST stops the POST: nothing is sent without a durable record.
    """

    async def before_send(self, token: str) -> None:
        """Record, durably, that a POST with this token is about to be sent."""
        ...

    async def accepted(self, token: str, task_id: str) -> None:
        """Record, durably, the task that came of it. No event has been emitted yet."""
        ...

    async def failed(self, token: str, error: KieError) -> None:
        """Record that it did not become a task, or that nobody knows whether it did."""
        ...

    def finished(self, token: str, task_id: str, outcome: TaskResult | KieError) -> None:
        """Record how the task ended. Called once, at its end, and must not block."""
        ...
