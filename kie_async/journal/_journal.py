"""The journal over a driver: one store for SQLite and PostgreSQL.

To change a job, it is read, the rules (``_transitions``) make its next version, and that is written unless another
process has written the job in between. Each write has an id, by which it is known after a lost connection whether it
happened.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import AsyncGenerator, Callable, Collection, Iterable, Iterator, Mapping
from contextlib import aclosing, asynccontextmanager, contextmanager, suppress
from itertools import islice
from typing import Any, ClassVar, Self, TypeAlias
from uuid import uuid4

import attrs
from anyio import AsyncContextManagerMixin, CancelScope

from kie_async._protocol.wire import pack
from kie_async.errors import ConflictError, StorageError
from kie_async.events import Context
from kie_async.journal import _sql
from kie_async.journal._caps import NOBODY, Caps, Payer, reserving_steps
from kie_async.journal._diagnosis import Finding
from kie_async.journal._job import Attempt, InboundCallback, Job, Source, State
from kie_async.journal._leases import is_dead, new_process_id
from kie_async.journal._machines import Machines
from kie_async.journal._rows import attempt_row, intact, job_row, read_callback, read_job
from kie_async.journal._sql import BatchFilter, Driver, Rows, Step, unpack_document
from kie_async.journal._totals import write_steps
from kie_async.journal._transitions import OPEN, enqueued, intended, is_awaited, transition

Change: TypeAlias = Callable[[Job, float], Job]
Follow: TypeAlias = Callable[[Job], Step | None]

_ADDED_AT_ONCE = 500  # jobs in one transaction: some milliseconds, in which others wait
_PRUNE = _sql.PRUNE.format(open_states=", ".join(f"'{state}'" for state in sorted(OPEN)))
logger = logging.getLogger("kie_async.journal")


class Journal(AsyncContextManagerMixin):
    """A durable store of jobs, callbacks, leases and quota; open it with ``async with``.

    A cancelled method has either happened or not; shield a call if you must know which. Two writes are durable (fsync)
    before they return: the intent, before a byte of its submission is sent, and the task id, before anybody learns it.
    ``tests/journal_contract.py`` checks all of this for every driver.

    Args:
        driver: the driver of the database; opened and closed with the journal.
        process_id: the id of this process; by default a random one.

    Attributes:
        driver: the one given; for other tables in the same database.
        caps: the caps on what batches and accounts may spend.
        machines: the machines that jobs wait for.
        process_id: the id of this process.
        spans_machines: whether processes on several machines can use it.

    Raises (every method):
        StorageError: the store cannot be reached, is full, is damaged, or is in use by another process.
    """

    spans_machines: ClassVar[bool] = False

    def __init__(self, driver: Driver, process_id: str | None) -> None:
        self.driver = driver
        self.caps = Caps(driver)
        self.machines = Machines(driver)
        self.process_id = process_id or new_process_id()
        self._leases: set[str] = set()
        self._writes: set[asyncio.Future[None]] = set()  # under way
        self._pid = 0
        self._last_position = 0  # of the callbacks there were when it was opened

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.driver}>"

    @asynccontextmanager
    async def __asynccontextmanager__(self) -> AsyncGenerator[Self]:
        async with self.driver:
            self._pid = os.getpid()
            [(self._last_position,)] = await self._read(_sql.LAST_POSITION)
            try:
                yield self
            finally:
                if self._pid == os.getpid():  # after a fork, leases and writes are the parent's
                    with CancelScope(shield=True), suppress(StorageError):
                        await self._finish()

    async def _finish(self) -> None:
        """Wait for the writes under way, and give the leases back."""
        while self._writes:
            await asyncio.wait(self._writes)
        for name in tuple(self._leases):
            await self.release(name)

    async def diagnose(self) -> list[Finding]:
        """Find what prevents the database from holding a journal, or is worth knowing; changes nothing. Not while open.

        Raises:
            StorageError: the store cannot be reached or opened at all.
        """
        return await self.driver.diagnose()

    async def upgrade(self) -> int:
        """Upgrade the tables to the newest version, in one transaction, and return the version that they had.

        What batches and accounts have spent is always counted anew. The journal must not be open in any process.

        Raises:
            StorageError: a process uses it, or its version cannot be upgraded.
        """
        return await self.driver.upgrade()

    # ------------------------------------------------------------ jobs

    async def add(self, jobs: Iterable[Job]) -> int:
        """Add planned jobs, and return how many of them are new.

        A job that is known already stays as it is, but joins the batch if it has none. Jobs are added in portions, each
        durable: if this is cancelled or fails, add them again.

        Raises:
            ValueError: a job is not planned.
        """
        remaining, new = iter(jobs), 0
        while portion := list(islice(remaining, _ADDED_AT_ONCE)):
            if odd := [job.key for job in portion if job.state is not State.PLANNED]:
                raise ValueError(f"only planned jobs can be added: {odd[0]!r} is not")
            write_id = uuid4().hex
            rows = {job.key: {**job_row(job), "write_id": write_id} for job in reversed(portion)}
            added = sum(map(len, await self.driver.run(*((_sql.ADD, row) for row in reversed(rows.values())))))
            if added < len(rows) and (of_batches := {job.key: job for job in portion if job.batch}):
                await self._enqueue_known(of_batches)
            new += added
        return new

    async def _enqueue_known(self, jobs: Mapping[str, Job]) -> None:
        """Put those that have no batch into the given one."""
        names = {f"key{number}": key for number, key in enumerate(jobs)}
        for (key,) in await self._read(_sql.without_batch(names), **names):
            await self._write(key, lambda known, _now: enqueued(jobs[known.key], known), lambda _job: None)

    async def get(self, key: str) -> Job | None:
        """Read the job of a key; None if there is none."""
        return (await self.get_all([key])).get(key)

    async def get_all(self, keys: Iterable[str]) -> dict[str, Job]:
        """Read the jobs of some keys in one step, by key; those that are not on record are left out."""
        found = await self.driver.run(*((_sql.GET, {"key": key}) for key in keys))
        return {row[0]: read_job(row[:-2]) for rows in found for row in rows}

    async def find(self, *, token: str | None = None, task_id: str | None = None) -> Job | None:
        """Find the job that has, or had, an attempt with this token or task id; None if there is none."""
        rows = await self._read(_sql.FIND, token=token, task_id=task_id)
        return read_job(rows[0]) if rows else None

    async def page(
        self,
        *states: State,
        batch: BatchFilter = None,
        waiting_for: Collection[str] = (),
        full: Collection[str] = (),
        after: int = 0,
        limit: int = 500,
    ) -> list[tuple[int, Job]]:
        """Read jobs, each with its position, in the order in which they were added.

        Args:
            states: only jobs in these states; all if none is given.
            batch: only jobs of this batch; ``ANY_BATCH`` for all jobs that have one.
            waiting_for: only jobs that wait for one of these machines; "" stands for jobs that wait for none.
            full: leave out the planned jobs of these batches (``Caps.full``).
            after: begin after this position.
            limit: the largest number of jobs.
        """
        wanted = {f"state{number}": str(state) for number, state in enumerate({*states} or State)}
        machines = {f"machine{number}": machine for number, machine in enumerate(waiting_for)}
        batches = {f"full{number}": name for number, name in enumerate(full)}
        statement, values = _sql.page(wanted, machines, batch, batches), {**wanted, **machines, **batches}
        rows = await self._read(statement, **values, batch=batch, after=after, limit=limit)
        return [(position, read_job(tuple(row))) for position, *row in rows]

    async def jobs(
        self, *states: State, batch: BatchFilter = None, waiting_for: Collection[str] = (), full: Collection[str] = ()
    ) -> AsyncGenerator[Job]:
        """Yield the jobs that ``page`` reads, page by page."""
        after = 0
        while page := await self.page(*states, batch=batch, waiting_for=waiting_for, full=full, after=after):
            for _, job in page:
                yield job
            after, _ = page[-1]

    async def counts(self, batch: BatchFilter = None) -> Mapping[State, int]:
        """Count the jobs in each state, including states with 0; ``batch`` as for ``page``."""
        numbers = dict.fromkeys(State, 0)
        for state, number in await self._read(_sql.counts(batch), batch=batch):
            numbers[State(state)] += number
        return numbers

    async def spent(self, batch: str) -> float:
        """The credits that all attempts of a batch's jobs have cost; 12 for each whose cost is not known (yet)."""
        return float((await self._read(_sql.SPENT, batch=batch))[0][0])

    async def open_processes(self) -> list[str]:
        """The processes, living or dead, that made the last attempts of jobs in ``INTENT`` and ``SUBMITTED``."""
        return [process_id for (process_id,) in await self._read(_sql.OPEN_PROCESSES)]

    async def attempts(self, key: str) -> list[Attempt]:
        """All attempts of a job, in order."""
        rows = map(intact, await self._read(_sql.ATTEMPTS, key=key))
        return [Attempt(**dict(zip(_sql.ATTEMPT, row, strict=True))) for row in rows]

    # ------------------------------------------------------------ transitions

    async def intend(self, key: str, token: str, context: Context | None = None, *, payer: Payer | None = None) -> Job:
        """Move a planned job to ``INTENT``, as a new attempt; durable.

        Args:
            key: the key of the job.
            token: the token of the attempt.
            context: the context of the attempt (``events.Submitting``).
            payer: who pays; None if nothing will be sent, so that no cap applies.

        Raises:
            BudgetError: a cap of the payer, or of the job's batch, leaves no room.
            ConflictError: the job is not planned (any more): another process has it, or it has ended.
        """

        def intend(job: Job, now: float) -> Job:
            job = intended(job, token, self.process_id, now, context)
            return job if payer is None else attrs.evolve(job, account=payer.account)

        with self._writing():
            await self.driver.check()
            job = await self._write(key, intend, lambda job: (_sql.INSERT_ATTEMPT, attempt_row(job)), payer)
            try:
                await self.driver.check()
            except StorageError:  # nobody may find it: nothing is sent
                await self.move(key, State.PLANNED, token=token)
                raise
            return job

    async def move(self, key: str, to: State, *, token: str | None = None, **facts: Any) -> Job:  # noqa: ANN401  # fields of ``Job``
        """Move a job to another state, and set fields of it in the same step; durable.

        Args:
            key: the key of the job.
            to: the new state.
            token: if given, the attempt that the transition belongs to; refused if the job has another by now.
            facts: fields of ``Job`` to set: task_id, tracks, files, directory, error, credits, partial, route. The
                attempt keeps a task_id too. A job that is planned again loses the fields of its last attempt.

        Raises:
            ConflictError: the transition is not allowed from the job's state, belongs to another attempt, or names the
                task of another job. Only ``intend`` leads to ``INTENT``.
            TypeError: another field is given, or ``SUBMITTED`` without its task_id.
        """
        with self._writing():
            return await self._write(
                key,
                lambda job, now: transition(job, to, facts, token=token, at=now),
                lambda job: (_sql.NAME_TASK, attempt_row(job)) if facts.get("task_id") else None,
            )

    async def upload(self, key: str, source: Source) -> Job:
        """Record the source of a job, with its upload if it has one; return the job.

        Raises:
            ConflictError: there is no job of this key.
        """
        more = None
        if source.uploaded_at is not None:
            row = _sql.with_checksum(_sql.UPLOAD, source.sha256, float(source.uploaded_at), pack(source))
            more = _sql.SAVE_UPLOAD, row
        with self._writing():
            return await self._write(key, lambda job, _now: attrs.evolve(job, source=source), lambda _job: more)

    async def uploaded(self, sha256: str, since: float) -> Source | None:
        """Find an upload of the content with this hash that is not older than ``since`` (Unix seconds)."""
        rows = await self._read(_sql.UPLOADED, sha256=sha256, since=since)
        return unpack_document(intact(rows[0])[-1], Source) if rows else None

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """Keep the journal from closing before this write has ended."""
        ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._writes.add(ended)
        try:
            yield
        finally:
            self._writes.discard(ended)
            ended.set_result(None)

    async def _write(self, key: str, change: Change, follow: Follow, payer: Payer | None = None) -> Job:
        """Change a job by a rule and write it; repeat if another process has written the job in between.

        With a payer it is written only if the caps allow it.
        """
        write_id, refused = uuid4().hex, ""
        while True:
            rows = await self._read(_sql.GET, key=key)
            if not rows:
                raise ConflictError(f"the journal has no job {key!r}")
            *row, seen, now = rows[0]
            job = read_job(tuple(row))
            if seen == write_id:  # the connection was lost after the write
                return job
            if seen == refused:  # nobody else has written it: it was a cap
                await self.caps.check(job.batch, payer or NOBODY)
            after, ids = change(job, now), {"key": key, "write_id": write_id}
            if payer is None:
                steps = write_steps(job, after, seen=seen, write_id=write_id)
            else:
                steps = reserving_steps(job, after, seen=seen, write_id=write_id, payer=payer)
            follow_up = [(more[0], {**more[1], **ids})] if (more := follow(after)) else []
            try:
                changed = (await self.driver.run(*steps, *follow_up))[len(steps) - 1]
            except ConflictError:
                message = f"job {key!r} cannot be given task {after.task_id}: it, or the token, is another attempt's"
                raise ConflictError(message, after.task_id) from None
            if changed:
                return after
            refused = seen

    # ------------------------------------------------------------ callbacks

    async def save_callback(self, callback: InboundCallback) -> bool:
        """Save a callback durably, and notify all processes that watch. A repeated callback changes nothing.

        It is saved only if an attempt has its token (attempts are recorded before their address is sent), and only if
        it can bring news: the task of the attempt is unknown, or is the callback's and its job has not ended.

        Returns:
            Whether it is saved now or was saved before.
        """
        expected = await self._read(_sql.EXPECTED, token=callback.token)  # a stranger's post costs no write
        if not any(is_awaited(callback, task_id, State(state)) for task_id, state in expected):
            return False
        row = _sql.with_checksum(_sql.CALLBACK, callback.token, callback.task_id, callback.stage, float(callback.at))
        await self._read(_sql.SAVE_CALLBACK, **row)
        return True

    async def prune(self, before: float) -> int:
        """Delete the callbacks of jobs that ended before that moment (Unix seconds); return how many."""
        removed = 0
        while rows := await self._read(_PRUNE, before=before):
            removed += len(rows)
        return removed

    async def callbacks_for(self, *, token: str | None = None, task_id: str | None = None) -> list[InboundCallback]:
        """The saved callbacks of a token or a task."""
        return [read_callback(row) for row in await self._read(_sql.CALLBACKS, token=token, task_id=task_id)]

    def watch_callbacks(self) -> AsyncGenerator[InboundCallback]:
        """Yield the callbacks that any process has saved since the journal was opened, until cancelled.

        A callback may be yielded twice, and none is missed. While the store cannot be reached, this keeps trying.
        """
        return self._watch_callbacks(self.driver.watch())

    async def _watch_callbacks(self, signs: AsyncGenerator[None]) -> AsyncGenerator[InboundCallback]:
        after = self._last_position
        async with aclosing(signs):
            async for _ in signs:
                try:
                    while rows := await self._read(_sql.NEW_CALLBACKS, after=after):
                        for position, *row in rows:
                            after = position
                            yield read_callback(tuple(row))
                except StorageError as error:
                    logger.warning("callbacks cannot be read now, trying again: %s", error)

    # ------------------------------------------------------------ leases

    async def lease(self, name: str, seconds: float) -> None:
        """Take or renew a lease for that many seconds.

        Raises:
            ConflictError: another process holds it; the message names that process.
        """
        values = {"name": name, "process_id": self.process_id, "seconds": seconds}
        self._leases.add(name)
        if await self._read(_sql.LEASE, **values, dead=None):
            return
        [holder] = (await self._read(_sql.HOLDER, **values) or [("another process",)])[0]
        if not (is_dead(holder) and await self._read(_sql.LEASE, **values, dead=holder)):
            self._leases.discard(name)
            raise ConflictError(f"{name!r} is in the hands of {holder}: wait for it, or end that process")

    async def release(self, name: str) -> None:
        """Give a lease back."""
        self._leases.discard(name)
        await self._read(_sql.RELEASE, name=name, process_id=self.process_id)

    async def _read(self, statement: str, **values: object) -> Rows:
        return (await self.driver.run((statement, values)))[0]
