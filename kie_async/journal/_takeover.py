"""Take over from processes that have died: resolve their intents, and follow their tasks.

To resolve a job that was sent and has no answer means to give it the state that can be known now. An intent becomes
``SUBMITTED`` if a callback with its token was saved, and ``UNKNOWN`` if not; it is never sent again. A process counts
as dead when its lease has expired, or when it ran on this machine and its pid is gone (``_leases``).
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from contextlib import suppress

import anyio

from kie_async._client.concurrency import emit_failures
from kie_async._client.task import Task
from kie_async.errors import ConflictError, KieError, TaskFailedError, TaskNotFoundError
from kie_async.events import Notice, Observer
from kie_async.journal._job import Job, JobError, State
from kie_async.journal._journal import Journal
from kie_async.journal._leases import LEASE, Leases

INTERVAL = 10.0  # seconds between two checks whether a process has died
WITHOUT_ANSWER = (State.INTENT, State.UNKNOWN)


class Takeover:
    """Resolves jobs that were sent and have no answer, and takes over from dead processes.

    Args:
        journal: an open journal.
        leases: the leases that this process holds.
        knows: tells whether the submission with a token is under way or followed here.
        follow: follows the task of a job.
        emit: called with a notice of each failure.

    Attributes:
        not_sent: for each intent whose write failed, its token and the key of its job: the intent may be in the
            journal, but nothing was sent.
    """

    def __init__(
        self,
        journal: Journal,
        leases: Leases,
        *,
        knows: Callable[[str], bool],
        follow: Callable[[Job], Task],
        emit: Observer,
    ) -> None:
        self._journal = journal
        self._leases = leases
        self._knows = knows
        self._follow = follow
        self._emit = emit
        self.not_sent: dict[str, str] = {}

    async def run(self) -> None:
        """Take over from dead processes, now and every ``INTERVAL``, until cancelled."""
        excluded = {self._journal.process_id}
        async with anyio.create_task_group() as group:
            while True:
                with emit_failures(self._emit, "the tasks of dead processes could not be read now"):
                    for process_id in await self._journal.open_processes():
                        if process_id not in excluded:
                            group.start_soon(self._take_over, process_id, excluded)
                await anyio.sleep(INTERVAL)

    async def _take_over(self, process_id: str, excluded: set[str]) -> None:
        """If a process is dead, resolve its intents and follow its tasks to their ends.

        A process with tasks that did not end in time is added to ``excluded``.

        A lease keeps other processes from doing the same. It is not the lease of the dead process, because a process
        that was only suspended for long continues when it wakes, and submits.
        """
        failures = emit_failures(self._emit, "the tasks of a dead process could not be taken over")
        with failures, suppress(ConflictError):  # the process lives, or another one was quicker
            await self._leases.ensure_dead(process_id)
            async with self._leases.holding(f"takeover:{process_id}", guards_spending=False):
                jobs = [job async for job in self._journal.jobs(State.INTENT, State.SUBMITTED)]
                resolved = [await self.try_to_resolve(job) for job in jobs if job.process_id == process_id]
                tasks = [self._follow(job) for job in resolved if job.state is State.SUBMITTED]
                if not all([await _has_ended(task) for task in tasks]):
                    excluded.add(process_id)  # its jobs stay submitted, and would be taken over again and again

    async def resolve_all(self, batch: str) -> None:
        """Resolve the unknown jobs of a batch, and its intents whose process is dead; ``""``: jobs without a batch.

        An intent whose process lives is left to that process.
        """
        async for job in self._journal.jobs(*WITHOUT_ANSWER, batch=batch):
            await self.try_to_resolve(job)

    async def try_to_resolve(self, job: Job) -> Job:
        """Resolve a job, and return it; if another process has it, emit a notice and return it unchanged."""
        try:
            return await self.resolve(job)
        except ConflictError as error:
            self._emit(Notice(job.task_id or "", f"left as it is: {error.message}"))
            return job

    async def resolve(self, job: Job) -> Job:
        """Resolve an unknown job, or an intent whose process is dead; return any other job unchanged.

        An intent that this process knows was not sent becomes planned again.

        Raises:
            ConflictError: this process is submitting or following it, its process lives, or another was quicker.
        """
        if job.token is not None and self._knows(job.token):
            raise ConflictError(f"job {job.key!r} is being submitted or followed by this process", job.task_id)
        if job.state not in WITHOUT_ANSWER:
            return job
        if job.state is State.INTENT and job.token in self.not_sent:
            return await self._journal.move(job.key, State.PLANNED, token=job.token)
        if job.state is State.INTENT and job.process_id != self._journal.process_id:
            await self._leases.ensure_dead(job.process_id or "")
        callbacks = await self._journal.callbacks_for(token=job.token)
        if job.state is State.INTENT and not callbacks:  # its answer is lost, even if it is this process's own
            error = JobError(type="SubmitUnknownError", message="no answer was recorded", charged="maybe")
            job = await self._journal.move(job.key, State.UNKNOWN, token=job.token, error=error)
            # A callback may have arrived between the read and the write: check again.
            callbacks = await self._journal.callbacks_for(token=job.token)
        if callbacks:
            return await self._journal.move(job.key, State.SUBMITTED, token=job.token, task_id=callbacks[0].task_id)
        return job

    async def take_back_unsent(self) -> None:
        """Take back the intents that were never sent: their jobs are planned again."""
        for token, key in self.not_sent.items():
            with suppress(KieError):  # taken back already; or the journal is away, and the intent stays
                await self._journal.move(key, State.PLANNED, token=token)

    async def intents_left(self, batch: str) -> AsyncGenerator[Job, None]:
        """Yield the intents of other processes in a batch, if there are any, after waiting as long as a lease lasts.

        By then each is resolved, or its process is known to be dead.
        """
        jobs = [job async for job in self._journal.jobs(State.INTENT, batch=batch)]
        left = [job for job in jobs if job.process_id != self._journal.process_id]
        if left:
            await anyio.sleep(LEASE)
        for job in left:
            yield job


async def _has_ended(task: Task) -> bool:
    """Wait for a task while it is followed; tell whether it has ended with an outcome that the journal records."""
    try:
        await task
    except (TaskFailedError, TaskNotFoundError):
        return True
    except KieError:  # such as a timeout
        return False
    return True
