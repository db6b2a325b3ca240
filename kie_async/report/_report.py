"""Write the report of a folder: make the data of the page, and fill them into the templates in ``page/``.

Each row of the page has one time line, that of the source: a take that holds the whole song begins at 0, one that holds
the continuation alone begins at the cut. So the same position of all takes is at the same place.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
import math
import os
import re
from collections.abc import Mapping
from importlib import resources
from os import PathLike
from pathlib import Path
from typing import Any

import anyio

from kie_async._client.concurrency import map_unordered, unwrap_single_exception
from kie_async._fsync import replace_file
from kie_async.errors import ConflictError
from kie_async.events import clean
from kie_async.files import Progress, check_writable, on_disk
from kie_async.report._folder import REPORT_NAME, read_folder, relative_address
from kie_async.report._gains import RowFile, lane_gains
from kie_async.report._peaks import NO_OUTLINE, Outline, OutlineCache
from kie_async.report._rows import ReportedJob, Take

_GENERATOR = '<meta name="generator" content="kie-async report">'  # by which a page of ours is known
_SCRIPTS = ("model.js", "verdicts.js", "view.js", "player.js", "main.js")  # in their order; one global scope
_HEAD = 4096  # bytes of a page that name its generator


async def write_report(directory: str | PathLike[str], *, progress: Progress | None = None) -> Path:
    """Write a page to compare the takes of a folder of results, and return its path: ``report.html`` in the folder.

    The page needs only the audio files beside it: no server and no network. The waveforms are cached in the folder, so
    that the next report decodes only new files. Without the extra ``audio``, and for files that cannot be decoded, the
    page has no waveforms.

    Args:
        directory: the folder to which a batch has downloaded its tracks.
        progress: called with the number of files read so far and the number of files in all.

    Raises:
        ReportError: the folder does not exist, or has no results.
        ConflictError: its ``report.html`` was written by another program.
        StorageError: the disk refused.

    Cancelling leaves an existing report unchanged.
    """
    directory = Path(directory)
    jobs = await on_disk(read_folder, directory)
    await on_disk(_check_ours, directory / REPORT_NAME)
    await check_writable(directory, otherwise="no report was written")
    outlines = await _read_outlines(directory.resolve(), jobs, progress)
    await on_disk(_write, directory, jobs, outlines)
    return directory / REPORT_NAME


async def _read_outlines(directory: Path, jobs: list[ReportedJob], progress: Progress | None) -> dict[Path, Outline]:
    cache = await on_disk(OutlineCache, directory)
    paths = {job.source.file for job in jobs if job.source.file}
    paths |= {directory / take.name for job in jobs for take in job.takes if take.is_there}
    outlines: dict[Path, Outline] = {}

    async def read(path: Path) -> tuple[Path, Outline]:
        return path, await on_disk(cache.find, path)

    with unwrap_single_exception():
        async with anyio.create_task_group() as group:
            async for path, outline in map_unordered(sorted(paths), read, group, concurrency=os.cpu_count() or 1):
                outlines[path] = outline
                if progress is not None:
                    progress(len(outlines), len(paths))
    await on_disk(cache.save)
    return outlines


def _check_ours(path: Path) -> None:
    """Refuse to overwrite a page that something else has written."""
    try:
        with path.open("rb") as file:
            head = file.read(_HEAD)
    except FileNotFoundError:
        return
    if _GENERATOR.encode() not in head:
        raise ConflictError(f"{clean(str(path))} was not written by this command: move it away, and run it again")


def _write(directory: Path, jobs: list[ReportedJob], outlines: dict[Path, Outline]) -> None:
    replace_file(directory / REPORT_NAME, _render(_page_data(directory, jobs, outlines)))


# ---------------------------------------------------------------- the page


def lane_start(take: Take, cut: float | None, seconds: float) -> tuple[float, str]:
    """Return where a take begins on the time line of its source, in seconds, and what it holds as far as is known.

    Where that was not measured, a take that is not longer than the cut is the continuation alone, and any other is
    taken for the whole song, which is likelier.
    """
    if cut is None:
        return 0.0, take.reading
    reading = take.reading or ("continuation" if 0 < seconds <= cut else "")
    seam = take.seam
    if seam is None:
        seam = 0.0 if reading == "continuation" else cut
    return cut - seam, reading


def _page_data(directory: Path, jobs: list[ReportedJob], outlines: Mapping[Path, Outline]) -> dict[str, Any]:
    """Make what the page shows, as JSON.

    Args:
        directory: in which the page lies.
        jobs: its rows.
        outlines: of the files that could be decoded.
    """
    return {
        "folder": directory.resolve().name,
        "jobs": [_job(job, directory.resolve(), outlines) for job in jobs],
    }


def _job(job: ReportedJob, directory: Path, outlines: Mapping[Path, Outline]) -> dict[str, Any]:
    shown: list[dict[str, Any]] = []
    lanes: list[RowFile] = []
    if (file := job.source.file) is not None:
        found = outlines.get(file, NO_OUTLINE)
        lanes.append(RowFile(found, is_source=True))
        shown.append({"take": 0, "title": file.name, "start": 0.0} | _sound(directory, file, found))
    for take in job.takes:
        found = outlines.get(directory / take.name, NO_OUTLINE)
        seconds = found.seconds or take.seconds or 0.0
        start, reading = lane_start(take, job.cut, seconds)
        lanes.append(RowFile(found, start, reading))
        lane = {
            "take": take.number,
            "title": take.title,
            "name": take.name,
            "track": take.track_id,
            "start": start,
            "reading": reading,
            "confidence": take.confidence,
            "song": take.is_song,
        }
        shown.append(lane | _sound(directory, directory / take.name if take.is_there else None, found, seconds))
    end = max((lane["start"] + lane["seconds"] for lane in shown), default=0.0) or math.inf
    return {
        "key": job.key,
        "title": job.title,
        "state": job.state,
        "error": job.error,
        "model": job.model,
        "step": job.place.step,
        "steps": job.place.steps,
        "source": job.source.name,
        "cut": job.cut,
        "seams": [seam for seam in job.seams if seam < end or job.place.step],
        "notice": job.notice,
        "lanes": [lane | {"gain": gain} for lane, gain in zip(shown, lane_gains(lanes, job.cut), strict=True)],
    }


def _sound(directory: Path, path: Path | None, outline: Outline, seconds: float = 0.0) -> dict[str, Any]:
    return {
        "address": path and relative_address(directory, path),
        "seconds": round(outline.seconds or seconds, 3),
        "peaks": base64.b64encode(outline.peaks).decode(),
    }


def _render(data: Mapping[str, Any]) -> bytes:
    """Fill data into the page. Nothing of it can become markup, and the page runs and loads nothing but its own."""
    style, *scripts = (f"\n{_part(name)}" for name in ("page.css", *_SCRIPTS))
    policy = {
        "default-src": "'none'",
        "script-src": " ".join(map(_hash, scripts)),
        "style-src": _hash(style),
        "media-src": "'self' file:",
        "img-src": "data:",
        "base-uri": "'none'",
        "form-action": "'none'",
    }
    parts = {
        "generator": _GENERATOR,
        "policy": "; ".join(f"{name} {value}" for name, value in policy.items()),
        "style": f"<style>{style}</style>",
        "scripts": "\n".join(f"<script>{script}</script>" for script in scripts),
        "folder": html.escape(data["folder"]).encode("ascii", "xmlcharrefreplace").decode(),
        "data": json.dumps(data, separators=(",", ":")).replace("<", "\\u003c"),
    }
    return re.sub(r"\{\{(\w+)\}\}", lambda found: parts[found[1]], _part("page.html")).encode()


def _part(name: str) -> str:
    return (resources.files("kie_async.report") / "page" / name).read_text("utf-8")


def _hash(text: str) -> str:
    """The source expression of an inline script or style, as a content security policy takes it."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
