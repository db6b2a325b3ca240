"""One batch, or all there is to do, among workers on one shared journal."""

from __future__ import annotations

from collections.abc import AsyncIterable, Iterable
from os import PathLike
from pathlib import Path

from kie_async.batch._batch import enqueue
from kie_async.batch._budget import CreditBudget
from kie_async.batch._reconcile import reconcile
from kie_async.batch._results import Results
from kie_async.batch._runner import JobObserver, Runner
from kie_async.batch._worker import Worker
from kie_async.events import guarded
from kie_async.files import check_writable
from kie_async.journal import Job, Journal, Recorder
from kie_async.session import KieSession

AT_ONCE = 100  # jobs; the service allows 100 tasks or more


async def work(  # noqa: PLR0913  # keyword-only, each by name
    session: KieSession,
    *,
    journal: Journal,
    dsn: str,
    directory: str | PathLike[str],
    observer: JobObserver,
    at_once: int = AT_ONCE,
    until_done: bool = False,
) -> None:
    """Work on the jobs of a shared journal, among others, until cancelled.

    Args:
        session: submits, follows and downloads; with the limiter that all workers share.
        journal: opened for the run, unless it is the session's own.
        dsn: of the database, which holds both the journal and what hands out the work.
        directory: where the files of the jobs go that this worker takes.
        observer: called with each job when it has moved.
        at_once: jobs under way here at once.
        until_done: return when every job of the journal is at its end.

    Raises:
        KieError: what stopped this worker: the key, the credits, the disk.

    Cancelling leaves every job where the journal says; other workers, or the next run, go on from there.
    """
    async with session.open_journal(journal) as recorder:
        await check_writable(Path(directory))
        worker = _worker(session, recorder, dsn=dsn, directory=Path(directory), observer=observer, at_once=at_once)
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
) -> None:
    """Put a batch into a shared journal, and work on it among others until every job of it is at its end.

    Args:
        session: as for ``work``, and so are journal, dsn, directory and observer.
        jobs: those that the journal knows are not paid again.
        journal: see above.
        dsn: see above.
        directory: see above.
        observer: called with each job that this process moves.
        batch: the name of the batch in the journal.

    Raises:
        ManifestError: requests that the settings of this session refuse; nothing was spent on this batch.
        KieError: what stopped this worker: the key, the credits, the disk. Others may go on.
    """
    async with session.open_journal(journal) as recorder:
        await check_writable(Path(directory))
        await enqueue(journal, jobs, batch, session.check_request)
        emit = guarded(observer)
        results = Results(directory, emulated=session.settings.on_loopback)
        async for job in reconcile(recorder, results, batch):
            emit(job)
        worker = _worker(session, recorder, dsn=dsn, directory=Path(directory), observer=observer, at_once=AT_ONCE)
        await worker.work(until_done=True, batch=batch)


def _worker(  # noqa: PLR0913  # keyword-only, each by name
    session: KieSession, recorder: Recorder, *, dsn: str, directory: Path, observer: JobObserver, at_once: int
) -> Worker:
    results = Results(directory, emulated=session.settings.on_loopback)
    runner = Runner(session, recorder, results, CreditBudget(), observer)
    return Worker(
        runner=runner, recorder=recorder, dsn=dsn, at_once=at_once, emit=session.settings.observer, ended=lambda _: None
    )
