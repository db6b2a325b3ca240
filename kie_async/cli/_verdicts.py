"""Say what the tracks of one task hold, and keep it beside them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import attrs

from kie_async import files
from kie_async._client.concurrency import InternalErrors
from kie_async.audio import can_compare, compare
from kie_async.batch import song_file, write_verdict
from kie_async.cli._output import Output
from kie_async.errors import KieError
from kie_async.models import ExtendRequest, Request, TaskResult


async def say_verdicts(output: Output, request: Request, result: TaskResult, out: Path) -> None:
    """Compare the downloaded tracks with their source, if that is a file here; a comparison that fails is only told.

    Args:
        output: of the command; its files are in the order of the tracks.
        request: what was asked for.
        result: what came.
        out: where the files are; a track that is extended is sought there by its id.
    """
    cut = result.continue_at
    source = await files.on_disk(_find_source, request, out) if can_compare() else None
    if cut is None or source is None:
        return
    output.display.doing("comparing the tracks with their source")
    made_of = await files.on_disk(_source_facts, source)
    verdicts: list[dict[str, Any] | None] = []
    output.value["verdicts"] = verdicts
    for number, path in enumerate(output.value["files"], start=1):
        try:
            with InternalErrors(path.name):
                verdict = await compare(source, path, continue_at=cut)
                await files.on_disk(write_verdict, path, verdict, _facts(result, number, made_of, path))
        except KieError as error:
            verdicts.append(None)
            output.say(f"track {number}: cannot tell what it holds: {error}")
        else:
            verdicts.append(attrs.asdict(verdict))
            if not verdict.kind == result.holds(result.tracks[number - 1]) == "continuation":  # its length has told it
                output.say(f"track {number}: {verdict}")


def _find_source(request: Request, out: Path) -> Path | None:
    if not isinstance(request, ExtendRequest):
        return song_file(request)
    mark = files.track_name(None, request.audio_id).removeprefix("track")  # as the names of downloads end
    suffixes = {kind.suffix for kind in files.AUDIO_KINDS}
    found = (path for path in sorted(out.iterdir()) if path.stem.endswith(mark) and path.suffix in suffixes)
    return next(found, None)


def _source_facts(source: Path) -> dict[str, Any]:
    """What a sidecar says of the source; the path is absolute, to be found from anywhere."""
    return {"path": str(source.absolute()), "sha256": files.hash_source(source, measured=False)[0]}


def _facts(result: TaskResult, number: int, made_of: dict[str, Any], path: Path) -> dict[str, Any]:
    """What a sidecar says besides the verdict."""
    track = result.tracks[number - 1]
    facts = {"id": track.id, "duration": track.duration, "model_name": track.model_name}
    return {
        "task_id": result.task_id,
        "source": made_of,
        "continue_at": result.continue_at,
        "track": {"number": number, "of": len(result.tracks), **facts},
        "file": {"name": path.name},
    }
