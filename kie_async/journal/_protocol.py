"""What a store must do; ``tests/journal_contract.py`` holds every store to it.

The journal decides what may be paid. Two writes must be durable (fsync) before they return: the intent, before a byte
of its submission is sent, and the task id, before anybody learns of it.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Mapping
from types import TracebackType
from typing import Any, Protocol, Self

from kie_async.journal._job import Attempt, InboundCallback, Job, Source
from kie_async.journal._states import State


class Journal(Protocol):
    """A store of jobs. Entered with ``async with``; every method may be cancelled, and has then happened or not.

    Who must know which of the two it was, shields the call.

    Raises (every method):
        StorageError: the store cannot be reached, is full, damaged, or in use by another.
    """

    async def __aenter__(self) -> Self:
        """Open the store; make it if it is not there."""
        ...

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> bool | None:
        """Write what is under way, and close."""
        ...

    @property
    def process_id(self) -> str:
        """The id of this process."""
        ...

    async def add(self, jobs: Iterable[Job]) -> int:
        """Add planned jobs and return how many are new; one whose key is known stays as it is.

        Many are added in portions, each durable: if it is cancelled or fails, add them again.

        Raises:
            ValueError: one is not planned.
        """
        ...

    async def get(self, key: str) -> Job | None:
        """Read one job."""
        ...

    async def find(self, *, token: str | None = None, task_id: str | None = None) -> Job | None:
        """Find the job that one of its attempts, present or past, belongs to."""
        ...

    async def page(
        self, *states: State, batch: str | None = None, after: int = 0, limit: int = 500
    ) -> list[tuple[int, Job]]:
        """Read jobs in these states, in the order they were added.

        Args:
            states: which; all, if none is named.
            batch: only of this batch.
            after: go on after this position; a position comes with each job.
            limit: at most so many.
        """
        ...

    async def counts(self, batch: str | None = None) -> Mapping[State, int]:
        """How many jobs stand in each state; 0 where there are none."""
        ...

    async def intend(self, key: str, token: str) -> Job:
        """Move a planned job to its intent, as a new attempt with this token; durable.

        Raises:
            ConflictError: it is not planned (any more): somebody else has it, or it is done.
        """
        ...

    async def move(self, key: str, to: State, *, token: str | None = None, **facts: Any) -> Job:  # noqa: ANN401  # fields of ``Job``
        """Move a job, in one step with the facts learnt; durable.

        Args:
            key: which.
            to: where to.
            token: the transition is of the attempt with this token, and refused if the job is at another.
            facts: fields of ``Job`` to set: task_id, tracks, files, error, credits, stage, partial, route. A
                task_id is kept with the attempt too. A job that is planned again forgets those of the attempt.

        Raises:
            ConflictError: the move is not legal from where the job stands, or of another attempt, or the task is
                another's; an intent is made by ``intend`` only.
            TypeError: another fact, or a submission without its task_id.
        """
        ...

    async def upload(self, key: str, source: Source) -> None:
        """Note where a job's source was uploaded.

        Raises:
            ConflictError: there is no such job.
        """
        ...

    async def uploaded(self, sha256: str, since: float) -> Source | None:
        """Find content that was uploaded already, since that moment (unix seconds)."""
        ...

    async def attempts(self, key: str) -> list[Attempt]:
        """All attempts of a job, in order."""
        ...

    async def save_callback(self, callback: InboundCallback) -> bool:
        """Keep a callback, durably, and wake whoever listens, in any process. A repeated one changes nothing.

        Only one whose token an attempt has is kept (the intent was durable before its address was sent), and only if
        it says something new: the task of that attempt is not known yet, or it is this one and not at its end.

        Returns:
            False if it is not kept.
        """
        ...

    async def prune(self, before: float) -> int:
        """Delete the callbacks of jobs that came to their end before that moment (unix seconds); return how many."""
        ...

    def watch_callbacks(self) -> AsyncIterator[InboundCallback]:
        """Give the callbacks that come in since the journal was opened, by any process, until cancelled.

        May give one twice; after an interruption, those missed are given. Keeps trying while the store is away.
        """
        ...

    async def callbacks_for(self, *, token: str | None = None, task_id: str | None = None) -> list[InboundCallback]:
        """The callbacks kept for a token or a task."""
        ...

    async def lease(self, name: str, seconds: float) -> None:
        """Take or renew the right to work on something, for so long.

        Raises:
            ConflictError: another process has it; the message says which.
        """
        ...

    async def release(self, name: str) -> None:
        """Give a lease back."""
        ...

    async def spent(self, batch: str) -> float:
        """Credits of a batch, all attempts of its jobs together; 12 each where the cost is not known (yet)."""
        ...
