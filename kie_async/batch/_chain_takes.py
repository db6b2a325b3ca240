"""The takes of a chain, kept as the results of a batch are: with sidecars, and lines in ``results.jsonl``."""

from __future__ import annotations

import shlex
from pathlib import Path

from kie_async._client.concurrency import emit_failures
from kie_async._protocol.json_values import as_duration, as_text
from kie_async.audio import compare
from kie_async.batch._delivery import Delivery, read_kind, write_verdict
from kie_async.batch._reconcile import ENDED_WITHOUT_TRACKS, RecordedTasks, find_job, have_all
from kie_async.batch._results import SIDECAR, Results, read_sidecar
from kie_async.chain._rules import ChainPart
from kie_async.events import guarded
from kie_async.files import on_disk
from kie_async.journal import Job, Recorder, State
from kie_async.models import Request, Track
from kie_async.session import KieSession


class RecordedTakes:
    """Downloads the takes of a chain; see ``kie_async.chain.ChainFiles``.

    Args:
        session: downloads.
        recorder: of its journal.
        results: where the files go.
    """

    def __init__(self, session: KieSession, recorder: Recorder, results: Results) -> None:
        self._session = session
        self._recorder = recorder
        self._journal = recorder.journal
        self._results = results
        self._emit = guarded(session.settings.observer)
        self._delivery = Delivery(recorder.journal, recorder.leases, results, self._emit)
        self._recorded = RecordedTasks(results.directory, emulated=results.emulated)
        self._last: tuple[Path, ...] = ()

    async def check(self, key: str, request: Request) -> None:
        """Refuse a step that the results name, and the journal has lost.

        Raises:
            LostRecordError: it was paid before.
        """
        job = await self._journal.get(key) or Job(key=key, request=request)
        if (task := await self._recorded.find_lost(self._journal, job)) is not None:
            where = shlex.quote(str(self._results.directory))
            raise task.lost_error(  # what is not planned cannot be adopted
                f"Put the journal back; or go on from a take that is there, by its track.id in its {SIDECAR}: "
                f"kie-async extend ID --until LENGTH --out {where}"
            )

    async def save(self, key: str, tracks: tuple[Track, ...]) -> tuple[Path, ...]:
        """Download them, unless they are here, and return their files."""
        job, directory = await find_job(self._journal, key), self._results.directory
        if job.state is State.SUCCEEDED:
            job = await self._delivery.deliver(job, self._session.download)
        names = job.files
        if not await on_disk(have_all, directory, names):  # they were delivered elsewhere, or removed since
            names = tuple([await self._results.save(self._session.download, job, track) for track in tracks])
        self._last = tuple(directory / name for name in names)
        return self._last

    async def record_failure(self, key: str, task_id: str | None) -> None:
        """Append a line of a step that failed, was refused, or is unknown, unless it is there."""
        await self._recorder.wait_recorded(task_id or "")
        job = await self._journal.get(key)
        if job is not None and job.state in ENDED_WITHOUT_TRACKS:
            await self._results.record_end(job)

    async def detect(self, source: Path, take: Path, cut: float) -> ChainPart | None:
        """Tell by its sound what a take holds, and write that into the sidecars of all takes of the step.

        What an earlier run has written there holds, also without the extra ``audio``.
        """
        part: ChainPart | None = None
        for path in self._last:
            with emit_failures(self._emit, f"what {path.name} holds is told by its length alone"):
                kind = await on_disk(read_kind, path)
                if kind is None:
                    verdict = await compare(source, path, continue_at=cut)
                    await on_disk(write_verdict, path, verdict)
                    kind = verdict.kind
                if path == take and kind != "unclear":
                    part = kind
        return part


def find_track(directory: Path, audio_id: str) -> tuple[Track, Path | None]:
    """Find a track in a directory: how long it is and what has made it, by its sidecar, and its file; blocks."""
    for path in sorted(directory.glob(f"*{SIDECAR}")):
        sidecar = read_sidecar(path) or {}
        facts, file = sidecar.get("track"), sidecar.get("file")
        if isinstance(facts, dict) and facts.get("id") == audio_id:
            duration, model_name = as_duration(facts.get("duration")), as_text(facts.get("model_name"))
            name = as_text(file.get("name")) if isinstance(file, dict) else None
            beside = path.with_name(Path(name or "").name or path.name)
            is_audio = beside != path and beside.is_file()
            return Track(audio_id, duration=duration, model_name=model_name), beside if is_audio else None
    return Track(audio_id), None
