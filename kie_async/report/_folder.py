"""Read what a folder of results holds: its jobs, their takes, and the source of each.

All of it is read tolerantly, because files get lost, and texts come from elsewhere: a value of another kind counts as
missing, a line or sidecar that cannot be read is left out, and a name that leads out of the folder is no file of it.
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeAlias
from urllib.parse import quote

import attrs

from kie_async._protocol.request_rules import LONGEST, compute_cut_point
from kie_async.batch import RESULTS, SIDECAR, read_sidecar
from kie_async.errors import KieError
from kie_async.events import clean
from kie_async.files import AUDIO_KINDS
from kie_async.report._chains import tell_chains
from kie_async.report._rows import MAX_TEXT, ReportedJob, Source, Take

Facts: TypeAlias = Mapping[str, Any]

REPORT_NAME = "report.html"
_SUFFIXES = tuple(kind.suffix for kind in AUDIO_KINDS)
_READINGS = ("whole", "continuation", "unclear")
_MADE = ("", "succeeded", "delivered")


@attrs.define(slots=False)
class ReportError(KieError):
    """A folder has no results, or a file of verdicts cannot be used."""


def read_folder(directory: Path) -> list[ReportedJob]:
    """Read the jobs of a folder, by their titles, the steps of a chain together; it blocks.

    Files that belong to no job come last.

    Raises:
        ReportError: it is no folder, or holds no results.
        OSError: it cannot be read.
    """
    if not directory.is_dir():
        raise ReportError(f"{clean(str(directory))} is no folder: give the folder that holds the results")
    sidecars = list(_sidecars(directory))
    lines = _last_lines(directory / RESULTS)
    groups: dict[str, list[tuple[Path, Facts]]] = {key: [] for key in lines}
    for path, facts in sidecars:
        key = _text(facts, "key", limit=None) or _text(facts, "task_id") or path.name  # no batch: no key
        groups.setdefault(key, []).append((path, facts))
    files = {_text(facts, "track", "id"): file for path, facts in sidecars if (file := _audio_file(path, facts))}
    jobs = [_job(directory, key, lines.get(key, {}), group, files) for key, group in groups.items()]
    known = {take.name for job in jobs for take in job.takes}
    sources = [job.source.file for job in jobs if job.source.file is not None]
    known |= {file.name for file in sources if file.parent == directory.resolve()}
    others = [_lone(path) for path in directory.iterdir() if _is_audio(path) and path.name not in known]
    if not jobs and not others:
        raise ReportError(f"{clean(str(directory))} holds no results: give the folder to which a batch has downloaded")
    jobs, others = tell_chains(jobs, others)
    return [*_sorted(jobs), *_sorted(others)]


def _sorted(jobs: Iterable[ReportedJob]) -> list[ReportedJob]:
    def order(job: ReportedJob) -> tuple[str, str, int, str]:
        return _natural(job.title.casefold()), _natural(job.place.chain), job.place.step, _natural(job.key)

    return sorted(jobs, key=order)


def _natural(text: str) -> str:
    """Make numbers sort by their value."""
    return re.sub(r"\d+", lambda number: number[0].zfill(9), text)


def _lone(path: Path) -> ReportedJob:
    """Make a row of a file that belongs to no job."""
    take = Take(number=1, name=path.name, is_there=True)
    return ReportedJob(key=path.name, title=path.stem[:MAX_TEXT], takes=(take,))


def _is_audio(path: Path) -> bool:
    """Whether it is a file of audio in the folder, and neither hidden nor a way to another folder."""
    is_named_so = path.suffix.lower() in _SUFFIXES and not path.name.startswith(".")
    return is_named_so and path.is_file() and not path.is_symlink()


def relative_address(directory: Path, path: Path) -> str:
    """The address of a file for a page in a directory: relative, with what has a meaning in addresses encoded."""
    if sys.platform == "win32" and path.anchor != directory.anchor:  # pragma: no cover  # another drive
        return path.as_uri()
    return quote(os.fsencode(os.path.relpath(path, directory)).replace(os.fsencode(os.sep), b"/"))


# ---------------------------------------------------------------- one job


def _job(
    directory: Path, key: str, line: Facts, sidecars: list[tuple[Path, Facts]], files: Mapping[str, Path]
) -> ReportedJob:
    """Make a row of a line of the results, of sidecars, or of both."""
    takes = [_take(path, facts) for path, facts in sidecars]
    named = {take.name for take in takes}
    listed = line.get("files")
    names = [name for name in listed if _is_plain(name)] if isinstance(listed, list) else []
    takes += [
        Take(number=number, name=name, is_there=(directory / name).is_file())
        for number, name in enumerate(names, 1)
        if name not in named
    ]
    takes.sort(key=lambda take: (take.number, take.name))
    if len({take.number for take in takes}) < len(takes):  # of several tasks
        takes = [attrs.evolve(take, number=number) for number, take in enumerate(takes, 1)]
    first = sidecars[0][1] if sidecars else {}
    source = _source(directory, first, files)
    title = _text(line, "title") or _text(first, "request", "title")
    if not title and source.audio_id not in files:
        is_named = source.name != source.audio_id
        title = (Path(source.name).stem if is_named else next((take.title for take in takes), "")) or source.audio_id
    if len({take.title for take in takes}) < 2:  # noqa: PLR2004  # it tells nothing apart
        takes = [attrs.evolve(take, title="") for take in takes]
    state, cut = _text(line, "state"), _cut(first)
    return ReportedJob(
        key=key,
        title=title,
        state=state,
        error=_error(line) if state not in _MADE else "",
        model=_text(line, "model") or _text(first, "request", "model"),
        cut=cut,
        seams=() if cut is None else (cut,),
        source=source,
        takes=tuple(takes),
    )


def _take(path: Path, facts: Facts) -> Take:
    file = _audio_file(path, facts)
    number = _number(facts, "track", "number")
    reading = _text(facts, "verdict", "kind")
    confidence = _number(facts, "verdict", "confidence")
    return Take(
        number=int(number or 1),
        name=file.name if file else _named_file(facts) or _stem(path),
        is_there=file is not None,
        title=_text(facts, "track", "title"),
        track_id=_text(facts, "track", "id"),
        seconds=_number(facts, "track", "duration"),
        reading=reading if reading in _READINGS else "",
        confidence=None if confidence is None else min(confidence, 1.0),
        seam=_number(facts, "verdict", "seam"),
    )


def _cut(facts: Facts) -> float | None:
    """The second at which the song was cut, as a sidecar says it."""
    length = _number(facts, "source", "duration") or _number(facts, "request", "source_duration")
    cut = compute_cut_point(_dig(facts, "request", "continue_at") or facts.get("continue_at"), length)
    return _number({"cut": cut}, "cut")


def holds_continuation(facts: Facts, name: str) -> bool:
    """Whether a sidecar says that the track of this name holds the continuation alone.

    Where that was not measured, a track that is not longer than the cut does.
    """
    reading = _text(facts, "verdict", "kind")
    if reading not in _READINGS:
        seconds, cut = _number(facts, "track", "duration"), _cut(facts)
        reading = "continuation" if seconds and cut and seconds <= cut else ""
    return reading == "continuation" and _named_file(facts) in {"", name}


def track_of(facts: Facts, name: str) -> str:
    """The id of the track in the file of this name, as a sidecar says it; empty if it does not."""
    return _text(facts, "track", "id") if _named_file(facts) in {"", name} else ""


def _error(line: Facts) -> str:
    """Why a job made nothing, in a sentence."""
    code, charged = _number(line, "error", "code"), _text(line, "error", "charged")
    facts = [
        _text(line, "error", "type"),
        "" if code is None else f"code {code:.0f}",
        f"charged: {charged}" if charged else "",
    ]
    shown = ", ".join(fact for fact in facts if fact)
    message = _text(line, "error", "message") or "nothing is known of the reason"
    return f"{message} ({shown})" if shown else message


def _source(directory: Path, facts: Facts, files: Mapping[str, Path]) -> Source:
    """Find what was extended: a file, which may be a take in this folder."""
    audio_id = _text(facts, "request", "audio_id")
    take = files.get(audio_id or " ")
    if take is not None:
        return Source(file=take.resolve(), name=take.name, audio_id=audio_id)
    given = _text(facts, "source", "path", limit=None) or _text(facts, "request", "source", limit=None)
    size = _number(facts, "source", "size")
    for path in (Path(given), directory / given) if given else ():
        try:
            found = path.resolve(strict=True)
            if found.is_file() and size in {0, None, float(found.stat().st_size)}:
                return Source(file=found, name=found.name, audio_id=audio_id)
        except (OSError, ValueError, RuntimeError):  # it is not there, or no path at all
            continue
    return Source(name=Path(given).name[:MAX_TEXT] or audio_id, audio_id=audio_id)


# ---------------------------------------------------------------- files


def _sidecars(directory: Path) -> Iterator[tuple[Path, Facts]]:
    for path in sorted(directory.glob(f"*{SIDECAR}")):
        facts = read_sidecar(path)
        if facts is not None:
            yield path, facts


def _last_lines(path: Path) -> dict[str, Facts]:
    """The last line of each job: what it came to in the end."""
    lines: dict[str, Facts] = {}
    try:
        with path.open("rb") as file:
            for line in file:
                facts = _parsed(line)
                if key := _text(facts, "key", limit=None):
                    lines[key] = facts
    except FileNotFoundError:
        pass
    return lines


def _parsed(line: bytes) -> Facts:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _audio_file(sidecar: Path, facts: Facts) -> Path | None:
    """The file of a sidecar: the one that it names, or else the audio that has its name."""
    stem = _stem(sidecar)
    names = (_named_file(facts), *(stem + suffix for suffix in _SUFFIXES))
    return next((path for name in names if name and (path := sidecar.with_name(name)).is_file()), None)


def _named_file(facts: Facts) -> str:
    name = _dig(facts, "file", "name")
    return name if isinstance(name, str) and _is_plain(name) else ""


def _stem(sidecar: Path) -> str:
    return sidecar.name.removesuffix(SIDECAR)


def _is_plain(name: object) -> bool:
    """Whether it is the name of a file, and no way to another folder."""
    return isinstance(name, str) and name not in {"", ".", ".."} and not set(name) & set("/\\\0")


# ---------------------------------------------------------------- values


def _dig(value: object, *names: str) -> object:
    for name in names:
        value = value.get(name) if isinstance(value, Mapping) else None
    return value


def _text(facts: Facts, *names: str, limit: int | None = MAX_TEXT) -> str:
    found = _dig(facts, *names)
    return found.strip()[:limit] if isinstance(found, str) else ""


def _number(facts: Facts, *names: str) -> float | None:
    found = _dig(facts, *names)
    if isinstance(found, (int, float)) and not isinstance(found, bool) and 0 <= found <= LONGEST:
        return float(found)
    return None
