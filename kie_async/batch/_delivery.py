"""Download the tracks of a job into the directory of its results, and record that it is delivered.

Several processes may be about to: a lease says which one does, and the others wait for it. Then the sound of the tracks
tells what they hold, which is written into their sidecars: a comparison that fails, or is cut off, costs no file.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, get_args

import anyio
import attrs

from kie_async._client.concurrency import emit_failures
from kie_async._client.lifetime import until_done
from kie_async._fsync import replace_file
from kie_async._protocol.json_values import as_duration
from kie_async.audio import Verdict, can_compare, compare
from kie_async.audio._verdict import Holds
from kie_async.batch._reconcile import find_job, location_of
from kie_async.batch._results import SIDECAR, Download, Results, encode_json, read_sidecar, song_file
from kie_async.errors import ConflictError, KieError, StorageError
from kie_async.events import Observer
from kie_async.files import hash_source, on_disk
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
        self._emit = emit

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
                    await self._add_verdicts(delivered)
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
        job = await find_job(self._journal, key, State.SUCCEEDED)
        try:
            files = await self._save(job, download)
        except KieError:
            await self._leases.renew(lease)
            await find_job(self._journal, key, State.SUCCEEDED)
            raise
        await find_job(self._journal, key, State.SUCCEEDED)
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

    async def _add_verdicts(self, job: Job) -> None:
        """Compare the tracks of a job with its source, if that is a file here, and write what they hold."""
        cut = as_duration(job.request.continue_at)
        if cut is None or not can_compare():
            return
        note = f"what the tracks of job {job.key!r} hold cannot be told"
        with emit_failures(self._emit, note, job.task_id or ""):
            if (source := await on_disk(_find_source, job)) is None:
                return
            for path in (self._results.directory / name for name in job.files):
                await on_disk(write_verdict, path, await compare(source, path, continue_at=cut))


# ---------------------------------------------------------------- verdicts


def _find_source(job: Job) -> Path | None:
    """Find the file that a job extends, if it is here and still the same."""
    path, source = song_file(job.request), job.source
    if path is None or source is None or not path.is_file():
        return None
    return path if hash_source(path, measured=False)[0] == source.sha256 else None


def write_verdict(path: Path, verdict: Verdict, facts: Mapping[str, Any] | None = None) -> None:
    """Write a verdict into the sidecar of a track; it blocks.

    Args:
        path: of the track.
        verdict: on it.
        facts: of the sidecar, if it is a new one.

    Raises:
        OSError: the disk refused.
    """
    sidecar = path.with_name(f"{path.stem}{SIDECAR}")
    value = {**(facts or {}), **(read_sidecar(sidecar) or {}), "verdict": attrs.asdict(verdict)}
    replace_file(sidecar, encode_json(json.dumps(value, ensure_ascii=False, indent=2)))


def read_kind(path: Path) -> Holds | None:
    """Read from its sidecar what a track holds; None if that does not say it; blocks."""
    verdict = (read_sidecar(path.with_name(f"{path.stem}{SIDECAR}")) or {}).get("verdict")
    kind: Holds | None = verdict.get("kind") if isinstance(verdict, dict) else None
    return kind if kind in get_args(Holds) else None


def count_verdicts(paths: Iterable[Path]) -> Counter[str]:
    """Count the verdicts on tracks by their kind, as their sidecars have them; it blocks."""
    return Counter(filter(None, map(read_kind, paths)))
