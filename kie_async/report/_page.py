"""The page: its data made of the rows, and filled into the files that lie beside this module.

A row has a time line of its own, that of the source: a take that holds the whole song begins with it, one that holds
the continuation alone begins at the cut. So the same position of all of them stands above another.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
import re
from collections.abc import Callable, Mapping
from importlib import resources
from pathlib import Path
from typing import Any

from kie_async.report._folder import ReportedJob, Take, relative_address
from kie_async.report._peaks import NO_OUTLINE, Outline

GENERATOR = '<meta name="generator" content="kie-async report">'  # by which a page of ours is known


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


def page_data(directory: Path, jobs: list[ReportedJob], outlines: Mapping[Path, Outline]) -> dict[str, Any]:
    """Make what the page shows, as JSON.

    Args:
        directory: in which the page lies.
        jobs: its rows.
        outlines: of the files that could be decoded.
    """
    return {
        "folder": directory.resolve().name,
        "jobs": [_job(job, directory.resolve(), lambda path: outlines.get(path, NO_OUTLINE)) for job in jobs],
    }


def _job(job: ReportedJob, directory: Path, outline: Callable[[Path], Outline]) -> dict[str, Any]:
    lanes: list[dict[str, Any]] = []
    if job.source is not None:
        found = outline(job.source)
        lanes.append({"take": 0, "title": job.source.name, "start": 0.0} | _sound(directory, job.source, found))
    for take in job.takes:
        found = outline(directory / take.name)
        seconds = found.seconds or take.seconds or 0.0
        start, reading = lane_start(take, job.cut, seconds)
        lane = {
            "take": take.number,
            "title": take.title,
            "name": take.name,
            "track": take.track_id,
            "start": start,
            "reading": reading,
            "confidence": take.confidence,
        }
        lanes.append(lane | _sound(directory, directory / take.name if take.is_there else None, found, seconds))
    return {
        "key": job.key,
        "title": job.title,
        "state": job.state,
        "error": job.error,
        "model": job.model,
        "step": job.step,
        "source": job.source_name,
        "cut": job.cut,
        "lanes": lanes,
    }


def _sound(directory: Path, path: Path | None, outline: Outline, seconds: float = 0.0) -> dict[str, Any]:
    return {
        "address": path and relative_address(directory, path),
        "seconds": round(outline.seconds or seconds, 3),
        "levels": base64.b64encode(outline.levels).decode(),
    }


def render(data: Mapping[str, Any]) -> bytes:
    """Fill data into the page. Nothing of it can become markup, and the page runs and loads nothing but its own."""
    style, script = (_part(f"page.{suffix}") for suffix in ("css", "js"))
    policy = {
        "default-src": "'none'",
        "script-src": _hash(script),
        "style-src": _hash(style),
        "media-src": "'self' file:",
        "img-src": "data:",
        "base-uri": "'none'",
        "form-action": "'none'",
    }
    parts = {
        "generator": GENERATOR,
        "policy": "; ".join(f"{name} {value}" for name, value in policy.items()),
        "style": style,
        "script": script,
        "folder": html.escape(data["folder"]).encode("ascii", "xmlcharrefreplace").decode(),
        "data": json.dumps(data, separators=(",", ":")).replace("<", "\\u003c"),
    }
    return re.sub(r"\{\{(\w+)\}\}", lambda found: parts[found[1]], _part("page.html")).encode()


def _part(name: str) -> str:
    return (resources.files("kie_async.report") / name).read_text("utf-8")


def _hash(text: str) -> str:
    """The source expression of an inline script or style, as a content security policy takes it."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
