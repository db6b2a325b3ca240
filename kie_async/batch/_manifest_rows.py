"""Read the rows of a manifest as they are written: CSV, JSONL, or the files of a folder.

All of it blocks, and reads line by line: memory does not grow with the number of rows.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, TextIO

import attrs

from kie_async._protocol.json_values import reader
from kie_async.batch._results import SIDECAR
from kie_async.batch._row_parser import COLUMNS, Row
from kie_async.errors import RowProblem
from kie_async.events import clean
from kie_async.files import AUDIO_KINDS

_MAX_LINE = 1 << 20  # characters; the longest request has some 6,000
_HEAD = 4096  # bytes that are searched for a NUL
_DELIMITERS = ",;\t"
_NOT_UTF8 = re.compile("[\udc80-\udcff]")  # bytes that are not UTF-8, as "surrogateescape" decodes them
_AUDIO = frozenset(kind.suffix for kind in AUDIO_KINDS) | {".aif", ".mp4", ".oga", ".opus", ".wave"}


def read_folder(folder: Path, pattern: str | None) -> Generator[Row, None, None]:
    """List the files of a folder that match a pattern; by default those with an audio suffix.

    Skips hidden files, because some systems store metadata of each file under such a name, and skips results, which
    have a sidecar: a batch that writes into its own folder must not pay for extending its own tracks.
    """
    try:
        found = sorted(folder.glob("*" if pattern is None else pattern))
    except (ValueError, NotImplementedError, IndexError):
        yield _error_row(0, f"{pattern!r} is no pattern", "give one like '*.mp3' or '**/*.wav'", "pattern")
        return
    names = (path for path in found if pattern is not None or path.suffix.lower() in _AUDIO)
    files = (path for path in names if not path.name.startswith(".") and path.is_file() and not _is_result(path))
    for number, path in enumerate(files, start=1):
        name = path.relative_to(folder).as_posix()
        yield Row(number, {"source": name}, location=clean(name))


def _is_result(path: Path) -> bool:
    return path.with_name(f"{path.stem}{SIDECAR}").exists()


def read_file(path: Path) -> Generator[Row, None, None]:
    """Read a manifest: JSONL if its suffix or its first character says so, CSV otherwise."""
    with path.open("rb") as raw:
        head = raw.read(_HEAD)
    if b"\0" in head:  # UTF-16, as some spreadsheets save it, or binary: one error, not one per line
        yield _error_row(1, "is not UTF-8", "save the file as UTF-8")
        return
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        is_jsonl = path.suffix.lower() in {".jsonl", ".ndjson", ".json"} or file.read(1) == "{"
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        lines = _LineReader(file)
        rows = _jsonl(lines) if is_jsonl else _csv(lines)
        with closing(rows):
            yield from rows
        if lines.too_long:
            yield _error_row(lines.number, f"has over {_MAX_LINE} characters", "close the quotes; end each line")


def _error_row(line: int, problem: str, remedy: str, location: str = "") -> Row:
    """Report an error of the file, not of a job."""
    return Row(line, faults=(RowProblem(line, "", problem, remedy, location),), location=location, is_job=False)


def _error_job(line: int, problem: str, remedy: str) -> Row:
    """Report a job whose row cannot be read."""
    return Row(line, faults=(RowProblem(line, "", problem, remedy),))


@attrs.define
class _LineReader:
    """Iterates over the lines of a file and counts them; stops at a line that is too long."""

    _file: TextIO
    number: int = 0
    too_long: bool = False

    def __iter__(self) -> Iterator[str]:
        while line := self._file.readline(_MAX_LINE + 1):
            self.number += 1
            if len(line) > _MAX_LINE:
                self.too_long = True
                return
            yield line


# ---------------------------------------------------------------- CSV


def _csv(lines: _LineReader) -> Generator[Row, None, None]:
    source = iter(lines)
    header = next((line for line in source if line.strip()), "")
    delimiter, names = _header(header)
    head = tuple(_header_faults(lines.number, names, is_utf8=not _NOT_UTF8.search(header)))
    if head:
        yield Row(lines.number, faults=head, is_job=False)
    if _NOT_UTF8.search(header):  # the columns have no names: one error, not one per row
        return
    reader = csv.reader(source, delimiter=delimiter, strict=True)
    while True:
        line = lines.number + 1
        try:
            cells = next(reader, None)
        except csv.Error as error:
            yield _error_row(line, f"is no proper CSV ({error})", "mind the quotes; what follows was not checked")
            return
        if cells is None:
            return
        if any(map(str.strip, cells)):
            yield _csv_row(line, names, cells)


def _header(line: str) -> tuple[str, list[str]]:
    """Return the delimiter that yields the most known columns, and the names of the columns."""

    def split(delimiter: str) -> list[str]:
        try:
            return [name.strip() for name in next(csv.reader([line], delimiter=delimiter, strict=True), [])]
        except csv.Error:
            return [line.strip()]

    splits = {delimiter: split(delimiter) for delimiter in _DELIMITERS}
    best = max(splits, key=lambda delimiter: len(COLUMNS.intersection(splits[delimiter])))
    return best, splits[best]


def _header_faults(line: int, names: Sequence[str], *, is_utf8: bool) -> Iterator[RowProblem]:
    if not is_utf8:
        yield RowProblem(line, "", "is not UTF-8", "save the file as UTF-8")
        return
    for name in dict.fromkeys(name for name in names if name):
        if names.count(name) > 1:
            yield RowProblem(line, clean(name[:40]), "is given twice as a column", "leave one out")
        if name not in COLUMNS:
            yield _unknown(line, name)


def _unknown(line: int, name: str) -> RowProblem:
    plain = re.sub(r"[\s-]+", "_", name.strip().lower())
    remedy = f"call it {plain}" if plain in COLUMNS else f"columns are {', '.join(sorted(COLUMNS))}"
    return RowProblem(line, clean(name[:40]), "is no known column", remedy)


def _csv_row(line: int, names: Sequence[str], cells: Sequence[str]) -> Row:
    if any(map(_NOT_UTF8.search, cells)):
        return _error_job(line, "is not UTF-8", "save the file as UTF-8")
    texts = [cell.strip() for cell in cells]
    stray = [text for name, text in zip(names, texts, strict=False) if not name] + texts[len(names) :]
    if any(stray):
        remedy = "put quotes around text that holds delimiters"
        return _error_job(line, f"has {len(cells)} cells under {len(names)} columns", remedy)
    return Row(line, {name: text for name, text in zip(names, texts, strict=False) if text and name in COLUMNS})


# ---------------------------------------------------------------- JSONL


def _jsonl(lines: _LineReader) -> Generator[Row, None, None]:
    for text in lines:
        if text.strip():
            yield _jsonl_row(lines.number, text)


def _jsonl_row(line: int, text: str) -> Row:
    if _NOT_UTF8.search(text):
        return _error_job(line, "is not UTF-8", "save the file as UTF-8")
    try:
        value = _loads(text)
    except (ValueError, RecursionError) as error:
        problem = f"is no JSON that can be read ({clean(str(error))[:80]})"
        return _error_job(line, problem, "write one object per line")
    if not isinstance(value, dict):
        return _error_job(line, "is no JSON object", "write one object per line")
    cells = {name: cell for name, cell in value.items() if name in COLUMNS and not _is_empty(cell)}
    return Row(line, cells, tuple(_unknown(line, name) for name in value if name not in COLUMNS))


def _reject_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) < len(pairs):
        raise ValueError("a field is written twice")
    return members


_loads = reader(object_pairs_hook=_reject_duplicates)


def _is_empty(cell: object) -> bool:
    return cell is None or (isinstance(cell, str) and not cell.strip())
