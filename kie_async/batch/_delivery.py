"""Download the tracks of a job into the directory of its results, and record that it is delivered.

Several processes may be about to: a lease says which one does, and the others wait for it.
"""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress

import anyio
import attrs

from kie_async._client.lifetime import until_done
from kie_async.batch._reconcile import find_job, location_of
from kie_async.batch._results import Download, Results
from kie_async.batch._verdicts import Verdicts
from kie_async.errors import ConflictError, KieError, StorageError
from kie_async.events import Observer
from kie_async.journal import Job, Journal, Leases, State

_LEASE_INTERVAL = 1.0  # seconds until a lease that another process holds is tried again


class Delivery:
    """Delivers jobs.

    Args:
        journal: open already.
        leases: of this process; somebody renews them.
        results: where the files go.
        emit: called with a notice where it cannot be told what the tracks of a job hold.
    """

    def __init__(self, journal: Journal, leases: Leases, results: Results, emit: Observer) -> None:
        self._journal = journal
        self._leases = leases
        self._results = results
        self._verdicts = Verdicts(results, emit)

    async def deliver(self, job: Job, download: Download) -> Job:
        """Download the tracks, or wait for another process that does, until it ends or its lease runs out.

        Args:
            job: as it succeeded.
            download: downloads a track, as ``KieSession.download`` does.

        Raises:
            StorageError: the disk refused, or the journal is away.
            KieError: a track could not be fetched whole; the others are there, and the next call fetches the rest.

        Cancelling keeps what has come.
        """
        lease = f"deliver:{job.key}"
        try:
            while job.state is State.SUCCEEDED:
                try:
                    async with self._leases.holding(lease):
                        delivered = await self._download(job.key, lease, download)
                except ConflictError:
                    await anyio.sleep(_LEASE_INTERVAL)
                else:
                    await self._verdicts.add(delivered)
                    return delivered
                job = await find_job(self._journal, job.key)
        except asyncio.CancelledError:
            await until_done(asyncio.ensure_future(self._remove_parts(job.key)))  # the engine may cancel it once more
            raise
        await self._remove_parts(job.key)
        return job

    async def _remove_parts(self, key: str) -> None:
        """Remove what this process has begun of a job that another has delivered."""
        with suppress(StorageError):  # a part that is left does no harm
            job = await find_job(self._journal, key)
            if job.state is State.DELIVERED:
                await self._results.remove_parts(job)

    async def _download(self, key: str, lease: str, download: Download) -> Job:
        """Download the tracks.

        Raises:
            ConflictError: another process has, or is about to: this one was suspended until its lease ran out.
        """
        job = await self._get_undelivered(key)
        try:
            files = await self._save(job, download)
        except KieError:
            await self._leases.renew(lease)
            await self._get_undelivered(key)
            raise
        await self._get_undelivered(key)
        moments = {**job.moments, State.DELIVERED.value: time.time()}
        results = attrs.evolve(job.results, files=files)
        await self._results.record_end(attrs.evolve(job, state=State.DELIVERED, results=results, moments=moments))
        location = location_of(self._results.directory, self._results.machine)
        return await self._journal.move(key, State.DELIVERED, files=files, directory=location)

    async def _save(self, job: Job, download: Download) -> tuple[str, ...]:
        """Save all tracks; if one cannot be fetched, save the others first, for they may be gone by the next try."""
        files: list[str] = []
        errors: list[KieError] = []
        for track in job.tracks:
            try:
                files.append(await self._results.save(download, job, track))
            except StorageError:
                raise
            except KieError as error:
                errors.append(error)
        if errors:
            raise errors[0]
        return tuple(files)

    async def _get_undelivered(self, key: str) -> Job:
        job = await find_job(self._journal, key)
        if job.state is not State.SUCCEEDED:
            raise ConflictError(f"job {key!r} is {job.state}: another process was quicker", job.task_id)
        return job
