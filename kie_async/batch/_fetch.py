"""What the service keeps for a job: when it deletes that, and fetching what was paid and never fetched.

The service is asked only where the addresses on record have expired.
"""

from __future__ import annotations

from collections.abc import AsyncIterable, Callable, Iterable
from contextlib import AsyncExitStack, aclosing
from functools import partial
from os import PathLike
from pathlib import Path
from typing import Any

import anyio
import attrs

from kie_async._client.concurrency import InternalErrors, map_unordered, unwrap_single_exception
from kie_async._client.downloads import Fetcher
from kie_async.batch._delivery import Delivery
from kie_async.batch._results import Results
from kie_async.errors import DownloadError, KieError
from kie_async.events import guarded
from kie_async.files import check_writable, download_track
from kie_async.journal import Job, Journal, Leases, State
from kie_async.models import Track
from kie_async.session import KieSession
from kie_async.settings import Settings

_AT_ONCE = 8  # jobs
TRACKS_KEPT = 14 * 86_400.0  # seconds, as the service states; an address may end sooner
UPLOADS_KEPT = 24 * 3600.0  # seconds, as the service states; another of its pages says 3 days
_BELIEVED = 86_400.0  # seconds between the creation of a track and the end of its job, beyond which clocks disagree


@attrs.frozen
class Expiry:
    """When something is deleted.

    Attributes:
        at: unix seconds.
        is_estimate: when it was made is not known for certain.
    """

    at: float
    is_estimate: bool = False


def tracks_expiry(job: Job) -> Expiry | None:
    """When the tracks of a job are deleted that are paid and not fetched; None for any other job."""
    if job.state is not State.SUCCEEDED:
        return None
    seen = job.moments[State.SUCCEEDED.value]
    made = [track.created_at.timestamp() for track in job.tracks if track.created_at is not None]
    is_known = len(made) == len(job.tracks) > 0 and all(abs(seen - each) < _BELIEVED for each in made)
    return Expiry(min(made) + TRACKS_KEPT) if is_known else Expiry(seen + TRACKS_KEPT, is_estimate=True)


def upload_expiry(job: Job) -> Expiry | None:
    """When the upload of a job's source is deleted; None if there is none, or the job does not need it any more."""
    is_needed = job.state in {State.PLANNED, State.INTENT, State.SUBMITTED}
    if not is_needed or job.source is None or job.source.uploaded_at is None:
        return None
    return Expiry(job.source.uploaded_at + UPLOADS_KEPT)


async def fetch_jobs(  # noqa: PLR0913  # keyword-only, each by name
    journal: Journal,
    jobs: Iterable[Job] | AsyncIterable[Job],
    *,
    directory: str | PathLike[str],
    settings: Settings,
    open_session: Callable[[str | None], KieSession],
    observer: Callable[[Job, KieError | None], None],
    emulated: bool = False,
) -> None:
    """Download the tracks of jobs that have succeeded, and record that they are delivered; nothing is spent.

    Args:
        journal: open.
        jobs: as they succeeded.
        directory: where the files go, with their sidecars and ``results.jsonl``, as those of a batch.
        settings: of the downloads; its key is not used.
        open_session: makes a session for the route of a task, when the service must be asked for new addresses.
        observer: called with each job, and the error that kept it from being delivered.
        emulated: the tasks are those of an emulator.

    Raises:
        StorageError: nothing can be written to the directory.

    Cancelling keeps what has come; the next call resumes it.
    """
    await check_writable(Path(directory))
    emit = guarded(settings.observer)
    leases = Leases(journal, emit)
    results = Results(directory, emulated=emulated, machine=settings.machine)
    delivery = Delivery(journal, leases, results, emit)
    with unwrap_single_exception():
        async with anyio.create_task_group() as group:
            group.start_soon(leases.keep_renewing)
            async with Fetcher(settings) as fetcher, AsyncExitStack() as stack:
                downloads = _Downloads(fetcher, open_session, stack)
                fetch = partial(_fetch, delivery, downloads)
                outcomes = map_unordered(jobs, fetch, group, concurrency=_AT_ONCE)
                async with aclosing(outcomes):
                    async for job, error in outcomes:
                        observer(job, error)
            group.cancel_scope.cancel()


async def _fetch(delivery: Delivery, downloads: _Downloads, job: Job) -> tuple[Job, KieError | None]:
    try:
        with InternalErrors(f"job {job.key!r}"):
            return await delivery.deliver(job, partial(downloads.download, job)), None
    except KieError as error:
        return job, error


class _Downloads:
    """Downloads tracks from the addresses on record, or else from new ones.

    Args:
        fetcher: downloads.
        open_session: as for ``fetch_jobs``.
        stack: closes the sessions.
    """

    def __init__(
        self, fetcher: Fetcher, open_session: Callable[[str | None], KieSession], stack: AsyncExitStack
    ) -> None:
        self._fetcher = fetcher
        self._open_session = open_session
        self._stack = stack
        self._sessions: dict[str | None, KieSession] = {}
        self._opening = anyio.Lock()

    async def download(self, job: Job, track: Track, directory: Path, **options: Any) -> Path:  # noqa: ANN401  # of a download
        """Download a track of a job; ask the service for new addresses where those on record lead nowhere."""
        try:
            return await download_track(self._fetcher, track, directory, **options)
        except DownloadError as error:
            if error.retryable:
                raise
            reason = error.message
        try:
            session = await self._session(job.last_attempt.route)
            record = await session.record_info(job.task_id or "")
        except KieError as error:
            error.message = f"{reason}; no new address could be asked for: {error.message}"
            raise
        fresh = {each.id: each for each in record.tracks if each.audio_url} if record else {}
        return await session.download(fresh.get(track.id, track), directory, **options)

    async def _session(self, route: str | None) -> KieSession:
        async with self._opening:
            if route not in self._sessions:
                self._sessions[route] = await self._stack.enter_async_context(self._open_session(route))
            return self._sessions[route]
