"""Tell by their sound what the tracks of delivered jobs hold, and write it into their sidecars.

A job is delivered before: a comparison that fails, or is cut off, costs no file, and is a notice.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import attrs

from kie_async._client.concurrency import InternalErrors
from kie_async._fsync import replace_file
from kie_async._protocol.json_values import as_duration
from kie_async.audio import Verdict, can_compare, compare
from kie_async.batch._results import SIDECAR, Results, encode_json, read_sidecar, song_file
from kie_async.errors import KieError
from kie_async.events import Notice, Observer
from kie_async.files import hash_source, on_disk
from kie_async.journal import Job


class Verdicts:
    """Compares the tracks of jobs with what they were made of, where that is a file here.

    Args:
        results: where the tracks are.
        emit: called with a notice where a comparison fails.
    """

    def __init__(self, results: Results, emit: Observer) -> None:
        self._directory = results.directory
        self._emit = emit

    async def add(self, job: Job) -> None:
        """Compare the tracks of a delivered job with its source, and write the verdicts into their sidecars.

        Without the extra ``audio``, or the source, nothing is done. Cancelling leaves the others without verdicts.
        """
        cut = as_duration(job.request.continue_at)
        if cut is None or not can_compare():
            return
        try:
            with InternalErrors(f"job {job.key!r}"):
                if (source := await on_disk(_find_source, job)) is None:
                    return
                for path in (self._directory / name for name in job.files):
                    await on_disk(write_verdict, path, await compare(source, path, continue_at=cut))
        except KieError as error:
            note = f"what the tracks of job {job.key!r} hold cannot be told: {error}"
            self._emit(Notice(job.task_id or "", note))


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


def count_verdicts(paths: Iterable[Path]) -> Counter[str]:
    """Count the verdicts on tracks by their kind, as their sidecars have them; it blocks."""
    found = [read_sidecar(path.with_name(f"{path.stem}{SIDECAR}")) or {} for path in paths]
    return Counter(facts["verdict"]["kind"] for facts in found if "verdict" in facts)
