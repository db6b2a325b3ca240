"""The journal in PostgreSQL, for many machines: the store of what may be paid, and the bell that rings for callbacks.

A job is read, the rules make the next one (``_moves``), and one statement writes it if nobody has written it since.
Every write bears a name of its own, so that one whose connection was lost on the way finds out whether it happened.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Collection, Iterable, Mapping
from contextlib import aclosing
from itertools import islice
from types import TracebackType
from typing import Any, Self, TypeAlias, TypeVar
from uuid import uuid4

import attrs

from kie_async._protocol.wire import pack, unpack
from kie_async.errors import BadResponseError, ConflictError, StorageError
from kie_async.journal import _sql
from kie_async.journal._extra import database
from kie_async.journal._job import Attempt, InboundCallback, Job, Source
from kie_async.journal._moves import cost, intended, moved
from kie_async.journal._owner import is_gone, new_owner
from kie_async.journal._states import OPEN, State
from kie_async.settings import Secret

T = TypeVar("T")
Change: TypeAlias = Callable[[Job, float], Job]

_ADDED_AT_ONCE = 500
_PRUNED_AT_ONCE = 1000


class PostgresJournal:
    """A journal that many processes on many machines share; see ``Journal`` for what its methods do.

    Args:
        dsn: ``postgresql://user:password@host/database``, or libpq's other form; never shown. The connection must be
            direct, or through a pooler that keeps sessions: notifications do not pass one that pools transactions.
        owner: the name of this process life; made up by default.
        patience: seconds for which a method goes on trying while the database is away.

    Raises:
        SettingsError: the address cannot be used, or the extra ``cluster`` is not installed.
    """

    def __init__(self, dsn: str | Secret, *, owner: str | None = None, patience: float = 10.0) -> None:
        self._database = database(dsn, connections=4, patience=patience)
        self._owner = owner or new_owner()
        self._horizon = 0

    def __repr__(self) -> str:
        return f"<{type(self).__name__} in {self._database}>"

    async def __aenter__(self) -> Self:
        await self._database.__aenter__()
        try:
            self._horizon = int(await self._one(_sql.HORIZON))
        except BaseException:
            await self._database.__aexit__(None, None, None)
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> None:
        await self._database.__aexit__(kind, error, trace)

    @property
    def owner(self) -> str:
        """The name of this process life."""
        return self._owner

    # ------------------------------------------------------------ jobs

    async def add(self, jobs: Iterable[Job]) -> int:
        """Add planned jobs and return how many are new; one whose key is known stays as it is."""
        remaining, new = iter(jobs), 0
        while some := {job.key: job for job in islice(remaining, _ADDED_AT_ONCE)}:
            new += len(await self._database.execute(_sql.ADD, {**_table(some.values()), "written": uuid4()}))
        return new

    async def get(self, key: str) -> Job | None:
        """Read one job."""
        rows = await self._database.execute(_sql.GET, {"key": key})
        return _job(rows[0][0]) if rows else None

    async def find(self, *, token: str | None = None, task_id: str | None = None) -> Job | None:
        """Find the job that one of its attempts belongs to."""
        rows = await self._database.execute(_sql.FIND, {"token": token, "task_id": task_id})
        return _job(rows[0][0]) if rows else None

    async def page(
        self, *states: State, batch: str | None = None, after: int = 0, limit: int = 500
    ) -> list[tuple[int, Job]]:
        """Read jobs in these states (all, if none is named) in the order they were added."""
        statement = _sql.PAGE.format(of_batch=_sql.OF_BATCH[batch is not None])
        values = {"states": list({*states} or State), "batch": batch, "after": after, "limit": limit}
        return [(place, _job(document)) for place, document in await self._database.execute(statement, values)]

    async def counts(self, batch: str | None = None) -> Mapping[State, int]:
        """How many jobs stand in each state."""
        statement = _sql.COUNTS.format(of_batch=_sql.OF_BATCH[batch is not None])
        rows = await self._database.execute(statement, {"batch": batch})
        return {**dict.fromkeys(State, 0), **{State(state): number for state, number in rows}}

    async def spent(self, batch: str) -> float:
        """Credits of a batch: charged so far as known, and reserved (12 each) for what is under way or unknown."""
        return float(await self._one(_sql.SPENT, {"batch": batch}))

    # ------------------------------------------------------------ moves

    async def intend(self, key: str, token: str) -> Job:
        """Move a planned job to its intent, as a new attempt with this token; durable."""
        return await self._write(_sql.INTEND, key, lambda job, now: intended(job, token, self._owner, now))

    async def move(self, key: str, to: State, *, token: str | None = None, **facts: Any) -> Job:  # noqa: ANN401  # fields of ``Job``
        """Move a job, in one step with the facts learnt; durable."""
        return await self._write(_sql.MOVE, key, lambda job, now: moved(job, to, facts, token=token, at=now))

    async def upload(self, key: str, source: Source) -> None:
        """Note where a job's source was uploaded."""
        await self._write(_sql.UPLOAD, key, lambda job, _now: attrs.evolve(job, source=source))

    async def _write(self, statement: str, key: str, change: Change) -> Job:
        """Let a rule make the next job, and write it; begin again if somebody else has written it meanwhile."""
        written = uuid4()
        while True:
            rows = await self._database.execute(_sql.GET, {"key": key})
            if not rows:
                raise ConflictError(f"the journal has no job {key!r}")
            document, seen, now = rows[0]
            if seen == written:  # the connection was lost after it was done
                return _job(document)
            job = change(_job(document), now)
            try:
                if await self._database.execute(statement, {**_columns(job), "written": written, "seen": seen}):
                    return job
            except ConflictError:
                message = f"job {key!r} cannot be given task {job.task_id}: it, or the token, is another attempt's"
                raise ConflictError(message, job.task_id) from None

    # ------------------------------------------------------------ uploads and attempts

    async def uploaded(self, sha256: str, since: float) -> Source | None:
        """Find content that was uploaded already, since that moment (unix seconds)."""
        rows = await self._database.execute(_sql.UPLOADED, {"sha256": sha256, "since": since})
        return _read(rows[0][0], Source) if rows else None

    async def attempts(self, key: str) -> list[Attempt]:
        """All attempts of a job, in order."""
        rows = await self._database.execute(_sql.ATTEMPTS, {"key": key})
        names = ("number", "token", "task_id", "owner", "intended_at")
        return [Attempt(key=key, **dict(zip(names, row, strict=True))) for row in rows]

    # ------------------------------------------------------------ callbacks

    async def save_callback(self, callback: InboundCallback) -> bool:
        """Keep a callback of a submission that is known, and wake whoever listens; see ``Journal``."""
        return bool(await self._database.execute(_sql.HEAR, {**attrs.asdict(callback), "open": list(OPEN)}))

    async def prune(self, before: float) -> int:
        """Delete the callbacks of jobs that came to their end before that moment; see ``Journal``."""
        removed, values = 0, {"before": before, "open": list(OPEN), "limit": _PRUNED_AT_ONCE}
        while rows := await self._database.execute(_sql.PRUNE, values):
            removed += len(rows)
        return removed

    async def watch_callbacks(self) -> AsyncGenerator[InboundCallback]:
        """Give the callbacks that come in since the journal was opened; see ``Journal``."""
        horizon, given = self._horizon, set[InboundCallback]()
        async with aclosing(self._database.wakes("kie_inbox")) as wakes:
            while True:
                await anext(wakes)
                try:
                    rows = await self._database.execute(_sql.MISSED, {"horizon": str(horizon)})
                except StorageError:
                    continue  # the next sign comes when the database is back
                found = {_callback(row[2:]): row[1] for row in rows if row[1] is not None}
                new = [callback for callback in found if callback not in given]
                horizon = int(rows[0][0])
                given = {callback for callback, is_young in found.items() if is_young}
                for callback in new:
                    yield callback

    async def callbacks_for(self, *, token: str | None = None, task_id: str | None = None) -> list[InboundCallback]:
        """The callbacks kept for a token or a task."""
        rows = await self._database.execute(_sql.HEARD, {"token": token, "task_id": task_id})
        return [_callback(row) for row in rows]

    # ------------------------------------------------------------ leases

    async def lease(self, name: str, seconds: float) -> None:
        """Take or renew the right to work on something, for so long on the database's clock."""
        values = {"name": name, "owner": self._owner, "seconds": seconds, "gone": None}
        if await self._database.execute(_sql.LEASE, values):
            return
        [holder] = (await self._database.execute(_sql.HOLDER, values) or [("another process",)])[0]
        if not (is_gone(holder) and await self._database.execute(_sql.LEASE, {**values, "gone": holder})):
            raise ConflictError(f"{name!r} is in the hands of {holder}: wait for it, or end that process")

    async def release(self, name: str) -> None:
        """Give a lease back."""
        await self._database.execute(_sql.RELEASE, {"name": name, "owner": self._owner})

    async def _one(self, statement: str, values: Mapping[str, object] | None = None) -> Any:  # noqa: ANN401  # a column is anything
        return (await self._database.execute(statement, values))[0][0]


def _job(document: str) -> Job:
    return _read(document, Job)


def _read(document: str, kind: type[T]) -> T:
    try:
        return unpack(document, kind)
    except BadResponseError as error:
        raise StorageError(f"the journal is damaged: {error.message}", retryable=False) from None


def _callback(row: tuple[str, str, str, float]) -> InboundCallback:
    token, task_id, stage, at = row
    return InboundCallback(token=token, task_id=task_id, stage=stage, at=at)


def _table(jobs: Collection[Job]) -> Mapping[str, object]:
    """Planned jobs, column by column."""
    if odd := [job.key for job in jobs if job.state is not State.PLANNED]:
        raise ValueError(f"only planned jobs can be added: {odd[0]!r} is not")
    rows = [(job.key, job.batch, job.state, cost(job), pack(job)) for job in jobs]
    columns = zip(*rows, strict=True)
    return dict(zip(("keys", "batches", "states", "costs", "documents"), map(list, columns), strict=True))


def _columns(job: Job) -> Mapping[str, object]:
    """A job as the values of any statement that writes one."""
    source = job.source
    return {
        "key": job.key,
        "state": job.state,
        "cost": cost(job),
        "document": pack(job),
        "token": job.token,
        "task_id": job.task_id,
        "number": job.attempt,
        "owner": job.owner,
        "intended_at": job.moments.get(State.INTENT.value),
        "sha256": source and source.sha256,
        "uploaded_at": source and source.uploaded_at,
        "source": pack(source),
    }
