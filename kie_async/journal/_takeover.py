"""A living process goes on with what a dead one leaves: it resolves its intents, and follows its tasks.

To resolve a job that was sent and has no answer is to give it the state that can be known now. An intent becomes
``SUBMITTED`` if a callback with its token was saved, and ``UNKNOWN`` if not; it is never sent again. A process is
dead when its lease has run out, or when it is no more on this machine (``_leases``).
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from contextlib import suppress

import anyio

from kie_async._client.concurrency import InternalErrors
from kie_async._client.task import Task
from kie_async.errors import ConflictError, KieError, TaskFailedError, TaskNotFoundError
from kie_async.events import Notice, Observer, clean
from kie_async.journal._job import Job, JobError, State
from kie_async.journal._journal import Journal
from kie_async.journal._leases import LEASE, Leases

INTERVAL = 10.0  # seconds between two checks whether a process has died
WITHOUT_ANSWER = (State.INTENT, State.UNKNOWN)


class Takeover:
    """Resolves what was sent and has no answer, and takes over from processes that are dead.

    Args:
        journal: open already.
        leases: those that this process holds.
        knows: tells whether the submission with a token is under way or followed here.
        follow: follows the task of a job.
        emit: is called with what could not be done.

    Attributes:
        not_sent: token to key of each intent whose write failed: it may be in the journal, but nothing was sent.
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
        """Take over from processes that are dead, now and whenever another may have died, until cancelled."""
        excluded = {self._journal.process_id}
        async with anyio.create_task_group() as group:
            while True:
                try:
                    with InternalErrors("dead processes"):
                        for process_id in await self._journal.open_processes():
                            if process_id not in excluded:
                                group.start_soon(self._take_over, process_id, excluded)
                except KieError as error:
                    self._notice(f"the tasks of dead processes could not be read now: {clean(error.message)}")
                await anyio.sleep(INTERVAL)

    async def _take_over(self, process_id: str, excluded: set[str]) -> None:
        """Resolve the intents of a process, if it is dead, and follow its tasks to their ends.

        A process some of whose tasks came to no end is added to ``excluded``.

        As long as this lasts, a lease says so, and no other process does the same. It is not the dead one's own: a
        process that was merely stopped for long goes on, and submits, when it wakes.
        """
        try:
            with InternalErrors("the tasks of a dead process"):
                await self._leases.ensure_dead(process_id)
                async with self._leases.holding(f"takeover:{process_id}", guards_spending=False):
                    jobs = [job async for job in self._journal.jobs(State.INTENT, State.SUBMITTED)]
                    resolved = [await self.try_to_resolve(job) for job in jobs if job.process_id == process_id]
                    tasks = [self._follow(job) for job in resolved if job.state is State.SUBMITTED]
                    if not all([await _has_ended(task) for task in tasks]):
                        excluded.add(process_id)  # its jobs stay submitted, and would be taken over again and again
        except ConflictError:  # it lives, or another process was quicker
            return
        except KieError as error:
            self._notice(f"the tasks of a dead process could not be taken over: {clean(error.message)}")

    async def resolve_all(self, batch: str) -> None:
        """Resolve each intent of a batch whose process is dead, and each unknown; ``""`` is the jobs of no batch.

        An intent whose process lives is left to that process.
        """
        async for job in self._journal.jobs(*WITHOUT_ANSWER, batch=batch):
            await self.try_to_resolve(job)

    async def try_to_resolve(self, job: Job) -> Job:
        """Resolve a job if that is possible now; else leave it to whoever has it, and return it unchanged."""
        try:
            return await self.resolve(job)
        except ConflictError as error:
            self._notice(f"left as it is: {error.message}", job.task_id)
            return job

    async def resolve(self, job: Job) -> Job:
        """Resolve an intent whose process is dead, or an unknown; any other job is returned unchanged.

        An intent of which this process knows that nothing was sent becomes planned again.

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
        if job.state is State.INTENT and not callbacks:  # its answer is lost, be it this process's own
            error = JobError(type="SubmitUnknownError", message="no answer was recorded", charged="maybe")
            job = await self._journal.move(job.key, State.UNKNOWN, token=job.token, error=error)
            # A callback may have arrived between the read and the write: check again.
            callbacks = await self._journal.callbacks_for(token=job.token)
        if callbacks:
            return await self._journal.move(job.key, State.SUBMITTED, token=job.token, task_id=callbacks[0].task_id)
        return job

    async def take_back_unsent(self) -> None:
        """Take the intents back that were never sent."""
        for token, key in self.not_sent.items():
            with suppress(KieError):  # taken back already; or the journal is away, and the intent stays
                await self._journal.move(key, State.PLANNED, token=token)

    async def intents_left(self, batch: str) -> AsyncGenerator[Job, None]:
        """Give the intents of other processes in a batch, if there are any, after the seconds that a lease lasts.

        By then each is resolved, or its process is known to be dead.
        """
        jobs = [job async for job in self._journal.jobs(State.INTENT, batch=batch)]
        left = [job for job in jobs if job.process_id != self._journal.process_id]
        if left:
            await anyio.sleep(LEASE)
        for job in left:
            yield job

    def _notice(self, note: str, task_id: str | None = None) -> None:
        self._emit(Notice(task_id or "", note))


async def _has_ended(task: Task) -> bool:
    """Wait for a task as long as it is followed, and tell whether it came to an end that the journal takes."""
    try:
        await task
    except (TaskFailedError, TaskNotFoundError):
        return True
    except KieError:  # its time was over, say
        return False
    return True
