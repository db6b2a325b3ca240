"""Rows of a manifest, as they were written: CSV, JSONL, or the files of a folder. Reads line by line; blocks."""

from __future__ import annotations

import csv
import re
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, TextIO

import attrs

from kie_async._protocol.json_text import reader
from kie_async.batch._fields import COLUMNS, Row
from kie_async.batch._results import SIDECAR
from kie_async.errors import Fault
from kie_async.events import clean
from kie_async.files._kinds import KINDS

MAX_LINE = 1 << 20  # characters; the longest request has some 6,000
_HEAD = 4096  # bytes that tell whether it is text
_DELIMITERS = ",;\t"
_NOT_UTF8 = re.compile("[\udc80-\udcff]")  # what "surrogateescape" makes of bytes that are no UTF-8
_AUDIO = frozenset(kind.suffix for kind in KINDS) | {".aif", ".mp4", ".oga", ".opus", ".wave"}


def read_folder(folder: Path, pattern: str | None) -> Generator[Row, None, None]:
    """List the files of a folder that fit a pattern; by default those with a suffix of audio.

    Hidden files are left out: some systems keep a shadow of each file under such a name. So are results, told by
    their sidecars: a batch that writes into its own folder must not pay for extending what it made.
    """
    try:
        found = sorted(folder.glob("*" if pattern is None else pattern))
    except (ValueError, NotImplementedError, IndexError):
        yield _no_job(0, f"{pattern!r} is no pattern", "give one like '*.mp3' or '**/*.wav'", "pattern")
        return
    names = (path for path in found if pattern is not None or path.suffix.lower() in _AUDIO)
    files = (path for path in names if not path.name.startswith(".") and path.is_file() and not _is_result(path))
    for number, path in enumerate(files, start=1):
        name = path.relative_to(folder).as_posix()
        yield Row(number, {"source": name}, place=clean(name))


def _is_result(path: Path) -> bool:
    return path.with_name(f"{path.stem}{SIDECAR}").exists()


def read_file(path: Path) -> Generator[Row, None, None]:
    """Read a manifest: JSONL if its name or its first sign says so, CSV otherwise."""
    with path.open("rb") as raw:
        head = raw.read(_HEAD)
    if b"\0" in head:  # UTF-16, as some spreadsheets save it, or no text at all: each of its lines would be a fault
        yield _no_job(1, "is not UTF-8", "save the file as UTF-8")
        return
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        is_jsonl = path.suffix.lower() in {".jsonl", ".ndjson", ".json"} or file.read(1) == "{"
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        lines = _Lines(file)
        rows = _jsonl(lines) if is_jsonl else _csv(lines)
        with closing(rows):
            yield from rows
        if lines.too_long:
            yield _no_job(lines.number, f"has over {MAX_LINE} characters", "close the quotes; end each line")


def _no_job(line: int, problem: str, remedy: str, place: str = "", *, field: str = "") -> Row:
    return Row(line, faults=(Fault(line, field, problem, remedy, place),), place=place, is_job=False)


@attrs.define
class _Lines:
    """The lines of a file; ends before one that is too long for a line."""

    _file: TextIO
    number: int = 0
    too_long: bool = False

    def __iter__(self) -> Iterator[str]:
        while line := self._file.readline(MAX_LINE + 1):
            self.number += 1
            if len(line) > MAX_LINE:
                self.too_long = True
                return
            yield line


# ---------------------------------------------------------------- CSV


def _csv(lines: _Lines) -> Generator[Row, None, None]:
    source = iter(lines)
    header = next((line for line in source if line.strip()), "")
    delimiter, names = _header(header)
    head = tuple(_header_faults(lines.number, names, is_utf8=not _NOT_UTF8.search(header)))
    if head:
        yield Row(lines.number, faults=head, is_job=False)
    if _NOT_UTF8.search(header):  # its columns have no names: each row would be a fault
        return
    reader = csv.reader(source, delimiter=delimiter, strict=True)
    while True:
        line = lines.number + 1
        try:
            cells = next(reader, None)
        except csv.Error as error:
            yield _no_job(line, f"is no proper CSV ({error})", "mind the quotes; what follows was not checked")
            return
        if cells is None:
            return
        if any(map(str.strip, cells)):
            yield _csv_row(line, names, cells)


def _header(line: str) -> tuple[str, list[str]]:
    """The delimiter under which most columns are known, and the names of the columns."""

    def split(delimiter: str) -> list[str]:
        try:
            return [name.strip() for name in next(csv.reader([line], delimiter=delimiter, strict=True), [])]
        except csv.Error:
            return [line.strip()]

    splits = {delimiter: split(delimiter) for delimiter in _DELIMITERS}
    best = max(splits, key=lambda delimiter: len(COLUMNS.intersection(splits[delimiter])))
    return best, splits[best]


def _header_faults(line: int, names: Sequence[str], *, is_utf8: bool) -> Iterator[Fault]:
    if not is_utf8:
        yield Fault(line, "", "is not UTF-8", "save the file as UTF-8")
        return
    for name in dict.fromkeys(name for name in names if name):
        if names.count(name) > 1:
            yield Fault(line, clean(name[:40]), "is given twice as a column", "leave one out")
        if name not in COLUMNS:
            yield _unknown(line, name)


def _unknown(line: int, name: str) -> Fault:
    plain = re.sub(r"[\s-]+", "_", name.strip().lower())
    remedy = f"call it {plain}" if plain in COLUMNS else f"columns are {', '.join(sorted(COLUMNS))}"
    return Fault(line, clean(name[:40]), "is no known column", remedy)


def _csv_row(line: int, names: Sequence[str], cells: Sequence[str]) -> Row:
    if any(map(_NOT_UTF8.search, cells)):
        return Row(line, faults=(Fault(line, "", "is not UTF-8", "save the file as UTF-8"),))
    texts = [cell.strip() for cell in cells]
    stray = [text for name, text in zip(names, texts, strict=False) if not name] + texts[len(names) :]
    if any(stray):
        remedy = "put quotes around text that holds delimiters"
        return Row(line, faults=(Fault(line, "", f"has {len(cells)} cells under {len(names)} columns", remedy),))
    return Row(line, {name: text for name, text in zip(names, texts, strict=False) if text and name in COLUMNS})


# ---------------------------------------------------------------- JSONL


def _jsonl(lines: _Lines) -> Generator[Row, None, None]:
    for text in lines:
        if text.strip():
            yield _jsonl_row(lines.number, text)


def _jsonl_row(line: int, text: str) -> Row:
    if _NOT_UTF8.search(text):
        return Row(line, faults=(Fault(line, "", "is not UTF-8", "save the file as UTF-8"),))
    try:
        value = _loads_once(text)
    except (ValueError, RecursionError) as error:
        problem = f"is no JSON that can be read ({clean(str(error))[:80]})"
        return Row(line, faults=(Fault(line, "", problem, "write one object per line"),))
    if not isinstance(value, dict):
        return Row(line, faults=(Fault(line, "", "is no JSON object", "write one object per line"),))
    cells = {name: cell for name, cell in value.items() if name in COLUMNS and not _is_empty(cell)}
    return Row(line, cells, tuple(_unknown(line, name) for name in value if name not in COLUMNS))


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) < len(pairs):
        raise ValueError("a field is written twice")
    return members


_loads_once = reader(object_pairs_hook=_once)


def _is_empty(cell: object) -> bool:
    return cell is None or (isinstance(cell, str) and not cell.strip())
