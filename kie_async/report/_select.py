"""Copy the takes that were kept in a report."""

from __future__ import annotations

import filecmp
import json
import os
import re
import shutil
from collections.abc import Container, Iterable, Iterator, Mapping
from functools import partial
from itertools import chain
from os import PathLike
from pathlib import Path
from typing import Any

import attrs

from kie_async._fsync import give_name, replace_file, sync_directory, written_draft
from kie_async.batch import SIDECAR, read_sidecar
from kie_async.events import clean
from kie_async.files import check_writable, on_disk
from kie_async.report._folder import REPORT_NAME, ReportError, holds_continuation, track_of

_NOTES = "notes.txt"
_FORMAT = 1  # of the file of verdicts
_OUTCOMES = ("copied", "present", "missing", "taken")
_THERE = ("copied", "present")
_WORDS = {"keep": "kept", "drop": "dropped"}
_IMPOSSIBLE = re.compile("[\0\ud800-\udc7f\udd00-\udfff]")  # in the name of a file; JSON can hold half a character
_LINE_END = re.compile(r"[\r\n]")


@attrs.frozen(kw_only=True)
class Selection:
    """What ``select_takes`` did with each kept take.

    Attributes:
        directory: the folder of the takes.
        copied: the copies that were made.
        present: the copies that existed already.
        missing: the takes whose files no longer exist.
        taken: the copies that were not made because another file has the name; of takes, and of their sidecars.
        sidecars: what says how the takes were made (``NAME.kie.json``): the copies that are beside those of the takes,
            whether they were made or existed.
        continuations: those of ``copied`` and ``present`` that hold the continuation alone, as the sidecars say.
        notes: the text file of the notes on all takes; None if there are none, or nothing was copied.
    """

    directory: Path
    copied: tuple[Path, ...] = ()
    present: tuple[Path, ...] = ()
    missing: tuple[Path, ...] = ()
    taken: tuple[Path, ...] = ()
    sidecars: tuple[Path, ...] = ()
    continuations: tuple[Path, ...] = ()
    notes: Path | None = None


@attrs.frozen
class _JudgedTake:
    """A take in the file of verdicts.

    Attributes:
        path: its file; of one that is not kept, only the name is of use.
        verdict: ``kept``, ``dropped`` or ``undecided``.
        note: in one line; empty if there is none.
        track_id: of the service; empty if the file of verdicts does not say it.
    """

    path: Path
    verdict: str
    note: str
    track_id: str


async def select_takes(
    verdicts: str | PathLike[str], out: str | PathLike[str], *, directory: str | PathLike[str] | None = None
) -> Selection:
    """Copy the takes that were kept in a report, each with its sidecar (``NAME.kie.json``), if it has one.

    No file is overwritten; each copy is whole or absent. ``kie_async.audio.join`` puts a take that holds the
    continuation alone (``Selection.continuations``) behind its song.

    The notes go into ``notes.txt`` beside the copies, a line each: those on the copies, then those on takes that were
    not copied, were dropped or are undecided, which say so. Lines that are in it stay.

    Args:
        verdicts: the file of verdicts that the report has exported.
        out: the folder for the copies; created if absent.
        directory: the folder of the report; by default the one named in the file of verdicts, or else the folder of
            that file.

    Raises:
        ReportError: the file of verdicts cannot be used, keeps no take, or names a file outside the folder or one that
            holds another track now; nothing was copied.
        StorageError: the disk refused.

    Cancelling finishes the file that is being copied; the same call copies the others later.
    """
    found, takes = await on_disk(_find_takes, Path(verdicts), None if directory is None else Path(directory))
    await check_writable(Path(out), otherwise="nothing was copied")
    groups: dict[str, list[Path]] = {name: [] for name in (*_OUTCOMES, "sidecars", "continuations")}
    for path in dict.fromkeys(take.path for take in takes if take.verdict == "kept"):
        for group, file in await on_disk(_copy_take, path, Path(out), found):
            groups[group].append(file)
    copies = {path.name for path in groups["copied"] + groups["present"]}
    lines = _note_lines(takes, copies) if copies else []
    notes = await on_disk(_add_lines, Path(out, _NOTES), lines) if lines else None
    return Selection(directory=found, notes=notes, **{name: tuple(paths) for name, paths in groups.items()})


def _find_takes(verdicts: Path, directory: Path | None) -> tuple[Path, list[_JudgedTake]]:
    """The folder of the report, and its takes, of which some are kept."""
    value = _read(verdicts)
    directory = directory or _named_directory(value) or verdicts.parent
    if not directory.is_dir():
        raise ReportError(f"{clean(str(directory))} is no folder: give the folder of the report")
    takes = list(_takes(verdicts, value, directory))
    if not any(take.verdict == "kept" for take in takes):
        where = clean(str(verdicts))
        raise ReportError(f"{where} keeps nothing: mark takes in the report, and download the verdicts again")
    _check_tracks(takes, directory)
    return directory, takes


def _check_tracks(takes: Iterable[_JudgedTake], directory: Path) -> None:
    """Refuse files that hold other tracks than those that were judged: two batches of one song give them equal names.

    Where the file of verdicts or the sidecar does not say the track, the name decides.

    Raises:
        ReportError: there is such a file.
    """
    others = [
        take.path.name
        for take in takes
        if take.verdict == "kept" and take.track_id and _track_in(take.path, directory) not in {"", take.track_id}
    ]
    if others:
        more = f" and {len(others) - 1} more" if others[1:] else ""
        raise ReportError(
            f"{clean(str(directory))} holds other takes than those that were judged: {clean(others[0])}{more}; nothing "
            "was copied; give the folder in whose report the verdicts were given, or judge the takes in a new report"
        )


def _track_in(path: Path, directory: Path) -> str:
    """The id of the track in a file, as its sidecar says it; empty if it does not."""
    facts = _sidecar_of(path, directory)
    return "" if facts is None else track_of(facts, path.name)


def _note_lines(takes: Iterable[_JudgedTake], copies: Container[str]) -> list[str]:
    """The lines of the notes: those on the copies first; the others say what became of the take."""
    lines: dict[str, list[str]] = {word: [] for word in ("", "kept, not copied", "dropped", "undecided")}
    for take in takes:
        name = take.path.name
        word = take.verdict if take.verdict != "kept" else "" if name in copies else "kept, not copied"
        if take.note:
            lines[word].append(f"{_LINE_END.sub(' ', name)}{word and f' ({word})'}: {take.note}")
    return list(dict.fromkeys(chain.from_iterable(lines.values())))


def _copy_take(path: Path, out: Path, directory: Path) -> list[tuple[str, Path]]:
    """Copy a take, then its sidecar; return what became of them: fields of ``Selection``, each with a file for it."""
    target = out / path.name
    outcome = _copy(path, target)
    files = [(outcome, path if outcome == "missing" else target)]
    if outcome not in _THERE:
        return files
    if (facts := _sidecar_of(path, directory)) is None:
        return files
    sidecar, beside = map(_sidecar_path, (path, target))
    files.append(("sidecars" if _copy(sidecar, beside) in _THERE else "taken", beside))
    return [*files, ("continuations", target)] if holds_continuation(facts, path.name) else files


def _sidecar_path(path: Path) -> Path:
    return path.with_name(f"{path.stem}{SIDECAR}")


def _sidecar_of(path: Path, directory: Path) -> Mapping[str, Any] | None:
    """Read the sidecar of a take; None if it has none in the directory, or that cannot be read."""
    sidecar = _sidecar_path(path)
    return read_sidecar(sidecar) if _is_in(directory, sidecar) else None


def _copy(path: Path, target: Path) -> str:
    """Copy a file under a name that no other has, and say what became of it: one of ``_OUTCOMES``."""
    if not path.is_file():
        return "missing"
    if os.path.lexists(target):
        is_same = target.is_file() and filecmp.cmp(path, target, shallow=False)
        return "present" if is_same else "taken"
    target.parent.mkdir(parents=True, exist_ok=True)
    with path.open("rb") as source, written_draft(target, partial(shutil.copyfileobj, source)) as draft:
        give_name(draft, target)
    sync_directory(target.parent)
    return "copied"


def _add_lines(path: Path, lines: list[str]) -> Path:
    """Add to a text file the lines that are not in it."""
    there = path.read_bytes().splitlines() if path.exists() else []
    new = [line for text in lines if (line := os.fsencode(text)) not in there]
    if new:
        replace_file(path, b"\n".join([*there, *new, b""]))
    return path


# ---------------------------------------------------------------- the file of verdicts


def _read(path: Path) -> Mapping[str, Any]:
    try:
        value = json.loads(path.read_bytes())
    except (FileNotFoundError, IsADirectoryError):
        raise ReportError(f"{clean(str(path))} is not there: give the file that the report has exported") from None
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict) or not isinstance(value.get("takes"), list):
        raise ReportError(f"{clean(str(path))} holds no verdicts: give the file that the report has exported")
    if value.get("format", _FORMAT) != _FORMAT:
        raise ReportError(f"{clean(str(path))} is of another version: write the report anew, and download them there")
    return value


def _named_directory(value: Mapping[str, Any]) -> Path | None:
    """The folder in which the page was open, if it is on this machine, and holds a report: none else is read."""
    name = value.get("directory")
    path = Path(name) if isinstance(name, str) and "\0" not in name else Path()
    return path if path.is_absolute() and (path / REPORT_NAME).is_file() else None


def _takes(path: Path, value: Mapping[str, Any], directory: Path) -> Iterator[_JudgedTake]:
    """The takes, with the notes on them, each in one line."""
    for number, take in enumerate(value["takes"], 1):
        name = take.get("file") if isinstance(take, dict) else None
        if not isinstance(name, str) or not name or _IMPOSSIBLE.search(name):
            raise ReportError(f"{clean(str(path))}: take {number} names no file: download the verdicts again")
        note = take.get("note")
        note = " ".join(note.split()) if isinstance(note, str) else ""
        note = note.encode(errors="replace").decode()
        verdict = take.get("verdict")
        word = _WORDS.get(verdict, "undecided") if isinstance(verdict, str) else "undecided"
        track = take.get("track")
        path_of = _inside(directory, name) if word == "kept" else Path(name)
        yield _JudgedTake(path_of, word, note, track.strip() if isinstance(track, str) else "")


def _inside(directory: Path, name: str) -> Path:
    """The file of a directory; ReportError if the name, or a link behind it, leads elsewhere."""
    path = directory / name
    if not _is_in(directory, path):
        raise ReportError(
            f"{name!r} leads out of {clean(str(directory))}: nothing was copied; download the verdicts again"
        )
    return path


def _is_in(directory: Path, path: Path) -> bool:
    """Whether a file is in a directory, and no link that leads out of it."""
    return Path(os.path.realpath(path)).is_relative_to(os.path.realpath(directory))
