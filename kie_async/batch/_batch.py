"""Run a batch: add its jobs to the journal, then finish each, on one machine or together with other workers."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterable, Callable, Iterable
from contextlib import aclosing, asynccontextmanager
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING

import attrs
from anyio import to_thread

from kie_async._client.concurrency import each_of, map_unordered
from kie_async.batch._control import WorkerControl
from kie_async.batch._manifest import manifest_error
from kie_async.batch._policy import CreditBudget
from kie_async.batch._reconcile import reconcile
from kie_async.batch._results import Results
from kie_async.batch._runner import JobObserver, Runner
from kie_async.errors import InvalidRequestError, RowProblem, SettingsError
from kie_async.events import guarded
from kie_async.files import check_writable
from kie_async.journal import Job, Journal, Recorder, State, batch_name, default_journal, source_on
from kie_async.models import Request
from kie_async.session import KieSession
from kie_async.settings import Settings

if TYPE_CHECKING:
    from kie_async.batch._worker import Worker

AT_ONCE = 100  # jobs of a worker; the service allows 100 tasks or more
_ADDED_AT_ONCE = 500
_ORDER = ((State.SUBMITTED, State.SUCCEEDED), (State.PLANNED,))  # paid work first


def _nothing(_job: Job) -> None:
    return


def _accept(_request: Request) -> None:
    return


async def run_batch(  # noqa: PLR0913  # keyword-only, each by name
    session: KieSession,
    jobs: Iterable[Job] | AsyncIterable[Job],
    *,
    directory: str | PathLike[str],
    journal: Journal | None = None,
    observer: JobObserver = _nothing,
    batch: str | None = None,
    max_credits: float | None = None,
    shared_files: bool = False,
) -> AsyncGenerator[Job, None]:
    """Run a batch, or continue one: upload, submit, follow and download, with every step recorded in a journal.

    Jobs that the journal has are not paid again; jobs that have ended are not yielded again. If the answer of a
    submission was lost, its job stays unknown until a callback comes or a person decides.

    Args:
        session: submits, follows and downloads.
        jobs: jobs of ``read_manifest`` or of your own. They are taken one by one; memory does not grow with them.
        directory: the folder for tracks, their sidecars and ``results.jsonl``.
        journal: opened for the run, unless it is the session's own. By default it is the session's own, or else the
            one of the command: ``KIE_JOURNAL``, or ``kie-async.sqlite`` in the directory.
        observer: called with each job whose state has changed; an exception in it is logged.
        batch: the name of the batch in the journal; by default the name that the command would give it.
        max_credits: the most that may be spent on this batch; the cost is reserved before each submission. A journal
            that several machines share records it until another is given, so that workers keep it too.
        shared_files: with a journal that several machines share: whether the paths of the sources are valid on all.

    Yields:
        Each job when it has ended; or, with an error, when it must wait for another run.

    Raises:
        ConflictError: another process runs this batch.
        ManifestError: the settings of this session refuse some requests; nothing was spent.
        BudgetError: jobs stay planned because a cap leaves no room: ``max_credits``, one on record, or the session's.
        KieError: the batch was stopped by the key, the credits or the disk. Running it again continues it.

    Leaving the loop early submits nothing more; submitted tasks go on at the service, and the next run follows them.
    """
    journal = journal or session.journal or default_journal(directory)
    if not batch:
        batch = await to_thread.run_sync(batch_name, journal, directory)
    observer = guarded(observer)
    async with (
        _opened(session, journal, directory) as (recorder, results),
        recorder.leases.holding(f"batch:{batch}"),
    ):
        machine = "" if shared_files else session.settings.machine
        if max_credits is not None and journal.spans_machines:  # before there is a job that a worker could take
            await journal.caps.set(batch, max_credits)
        await enqueue(journal, jobs, batch, session.check_request, machine=machine)
        budget = CreditBudget(max_credits, spent=await journal.spent(batch))
        async for job in reconcile(recorder, results, batch):
            observer(job)
            yield job
        runner = Runner(session, recorder, results, budget, observer)
        keys = _keys(recorder, runner, batch)
        outcomes = map_unordered(keys, runner.run_job, recorder.group, concurrency=session.settings.max_in_flight)
        async with aclosing(outcomes):
            async for job in outcomes:
                yield job
    if (error := runner.why_stopped(batch)) is not None:
        raise error


@asynccontextmanager
async def _opened(
    session: KieSession, journal: Journal, directory: str | PathLike[str]
) -> AsyncGenerator[tuple[Recorder, Results]]:
    """Open the journal and the directory of a run."""
    settings = session.settings
    await check_writable(Path(directory))  # before the journal, which may be in it
    async with session.open_journal(journal) as recorder:
        yield recorder, Results(directory, emulated=settings.on_loopback, machine=settings.machine)


async def enqueue(
    journal: Journal,
    jobs: Iterable[Job] | AsyncIterable[Job],
    batch: str,
    check: Callable[[Request], None] = _accept,
    *,
    machine: str = "",
) -> int:
    """Add jobs to a journal as a batch, and return how many of them are new.

    Jobs that the journal has already stay as they are, with two exceptions: a job may wait for another machine now,
    and a job that a session without a batch has submitted joins the batch.

    Args:
        journal: an open journal.
        jobs: taken one by one.
        batch: the name of the batch; workers leave jobs without one alone.
        check: called with each request; raises ``InvalidRequestError`` to refuse it.
        machine: the only machine that can read the files of the jobs; "" if all can. Ignored if the journal is a file.

    Raises:
        ManifestError: ``check`` has refused jobs that are new.
        SettingsError: the name is empty.
    """
    if not batch:
        raise SettingsError("batch is empty: give the batch a name, for workers leave jobs of no batch alone")
    machine, new = machine if journal.spans_machines else "", 0
    has_moved = any(other != machine for other in await journal.machines.waiting())
    waiting: list[Job] = []
    faults: list[RowProblem] = []
    async for each in each_of(jobs):
        try:
            check(each.request)
        except InvalidRequestError as error:
            if await journal.get(each.key) is None:  # a job that was submitted is not checked again
                faults.extend(RowProblem(0, p.field, p.problem, p.remedy, f"job {each.key}") for p in error.problems)
                continue
        job = attrs.evolve(each, batch=batch, source=source_on(machine, each.request, each.source))
        if has_moved:
            await _wait_for_another(journal, job)
        waiting.append(job)
        if len(waiting) == _ADDED_AT_ONCE:
            new += await journal.add(waiting)
            waiting.clear()
    if faults:
        raise manifest_error(faults, len(faults), "the batch")
    return new + await journal.add(waiting)


async def _wait_for_another(journal: Journal, job: Job) -> None:
    """Make a known job that waits for a machine wait for the one that has its file now, or for none."""
    known = await journal.get(job.key)
    if known is None or known.source is None or job.source is None or known.waits_for in {"", job.machine}:
        return
    if known.source.sha256 == job.source.sha256:
        await journal.upload(job.key, job.source)


async def _keys(recorder: Recorder, runner: Runner, batch: str) -> AsyncGenerator[str, None]:
    """Yield the keys of a batch's jobs that have not ended."""
    for states in _ORDER:
        async for job in recorder.journal.jobs(*states, batch=batch):
            if job.state is State.PLANNED and runner.why_stopped(batch) is not None:
                return
            yield job.key
    async for job in recorder.takeover.intents_left(batch):
        yield job.key


# ---------------------------------------------------------------- among other workers


async def work(  # noqa: PLR0913  # keyword-only, each by name
    session: KieSession,
    *,
    journal: Journal,
    dsn: str,
    directory: str | PathLike[str],
    observer: JobObserver,
    at_once: int = AT_ONCE,
    until_done: bool = False,
    control: WorkerControl | None = None,
) -> None:
    """Work on the jobs of a shared journal together with other workers, until cancelled.

    It also uploads the sources that only this machine can read. Jobs without a batch are left to their sessions.

    Args:
        session: submits, follows and downloads; with the limiter that all workers share.
        journal: opened for the run, unless it is the session's own.
        dsn: the address of the database that holds the journal and the queue.
        directory: the folder for the files of the jobs that this worker takes.
        observer: called with each job whose state has changed.
        at_once: how many jobs may be under way here at once.
        until_done: return when every job of a batch has ended, or waits for a machine on which no process works.
        control: drains this worker, and says whether it is ready.

    Raises:
        KieError: this worker was stopped by the key, the credits or the disk.

    Cancelling gives every job back at once, in the state that the journal has; other workers, or the next run, continue
    it. The answer of a submission that was sent is awaited and recorded first.
    """
    async with _opened(session, journal, directory) as (recorder, results):
        runner = Runner(session, recorder, results, CreditBudget(), observer)
        worker = _worker(runner, recorder, session.settings, dsn=dsn, at_once=at_once, control=control)
        await worker.work(until_done=until_done)


async def run_shared_batch(  # noqa: PLR0913  # keyword-only, each by name
    session: KieSession,
    jobs: Iterable[Job] | AsyncIterable[Job],
    *,
    journal: Journal,
    dsn: str,
    directory: str | PathLike[str],
    observer: JobObserver,
    batch: str,
    shared_files: bool = False,
    max_credits: float | None = None,
) -> None:
    """Add a batch to a shared journal, and work on it together with other workers until all its jobs have ended.

    Jobs that wait for a machine on which no process works are left to that machine.

    Args:
        session: as for ``work``.
        jobs: the jobs; those that the journal has are not paid again.
        journal: as for ``work``.
        dsn: as for ``work``.
        directory: as for ``work``.
        observer: called with each job whose state this process has changed.
        batch: the name of the batch in the journal.
        shared_files: whether the paths of the sources are valid on all machines; otherwise only this one uploads them.
        max_credits: the most that may be spent on this batch, by all workers; recorded until another is given.

    Raises:
        BudgetError: jobs stay planned because the cap leaves no room for them.
        ManifestError: the settings of this session refuse some requests; nothing was spent on this batch.
        KieError: this worker was stopped by the key, the credits or the disk. Others may go on.
    """
    async with _opened(session, journal, directory) as (recorder, results):
        machine = "" if shared_files else session.settings.machine
        if max_credits is not None:  # before there is a job that a worker could take
            await journal.caps.set(batch, max_credits)
        await enqueue(journal, jobs, batch, session.check_request, machine=machine)
        emit = guarded(observer)
        async for job in reconcile(recorder, results, batch):
            emit(job)
        runner = Runner(session, recorder, results, CreditBudget(), observer)
        worker = _worker(runner, recorder, session.settings, dsn=dsn, at_once=AT_ONCE)
        await worker.work(until_done=True, batch=batch)


def _worker(  # noqa: PLR0913  # keyword-only, each by name
    runner: Runner,
    recorder: Recorder,
    settings: Settings,
    *,
    dsn: str,
    at_once: int,
    control: WorkerControl | None = None,
) -> Worker:
    try:
        from kie_async.batch._worker import Worker  # an extra
    except ImportError:
        raise SettingsError('procrastinate is not installed: pip install "kie_async[cluster]"') from None
    return Worker(runner, recorder, dsn=dsn, at_once=at_once, settings=settings, control=control or WorkerControl())
