"""Read the rows of a manifest file, CSV or JSONL.

It blocks, and goes line by line: memory does not grow with the number of rows.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Generator, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

import attrs

from kie_async._protocol.json_values import reader
from kie_async.errors import RowProblem
from kie_async.events import clean
from kie_async.models import ExtendRequest, UploadExtendRequest

COLUMNS = {"id", "operation"} | {
    field.name for kind in (ExtendRequest, UploadExtendRequest) for field in attrs.fields(kind)
}
_HEAD = 4096  # characters that are searched for a NUL
_MAX_LINE = 1 << 20  # characters; the longest request has some 6,000
_NOT_UTF8 = re.compile("[\udc80-\udcff]")  # bytes that are not UTF-8, as "surrogateescape" decodes them


@attrs.frozen
class Row:
    """One row as it is written.

    Attributes:
        line: where it begins, from 1; in a folder, the number of the file.
        cells: what is written, by column; without empty cells and unknown columns.
        faults: what is wrong with the writing itself.
        location: the name of the file, in a folder.
    """

    line: int
    cells: Mapping[str, object] = attrs.field(factory=dict)
    faults: tuple[RowProblem, ...] = ()
    location: str = ""

    @property
    def is_readable(self) -> bool:
        """Whether the row can be parsed."""
        return bool(self.cells) or not self.faults


def read_file(path: Path) -> Generator[Row, None, None]:
    """Read a manifest: JSONL if its suffix or its first character says so, CSV otherwise."""
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        head = file.read(_HEAD)
        if "\0" in head:  # UTF-16, as some spreadsheets save it, or binary: one error, not one per line
            yield unreadable(1, "is not UTF-8", "save the file as UTF-8")
            return
        file.seek(0)
        lines = _LineReader(file)
        is_jsonl = path.suffix.lower() in {".jsonl", ".ndjson", ".json"} or head.startswith("{")
        yield from _read_jsonl(lines) if is_jsonl else _read_csv(lines)
        if lines.too_long:
            yield unreadable(lines.number, f"has over {_MAX_LINE} characters", "close the quotes; end each line")


def unreadable(line: int, problem: str, remedy: str, *, location: str = "") -> Row:
    """Report an error of the file, or a job whose row cannot be read."""
    return Row(line, {}, (RowProblem(line, "", problem, remedy, location),), location)


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


def _read_csv(lines: _LineReader) -> Generator[Row, None, None]:
    source = iter(lines)
    header = next((line for line in source if line.strip()), "")
    if _NOT_UTF8.search(header):  # the columns have no names: one error, not one per row
        yield unreadable(lines.number, "is not UTF-8", "save the file as UTF-8")
        return
    # The delimiter is the one that yields the most known columns.
    splits = {delimiter: _split(header, delimiter) for delimiter in ",;\t"}
    delimiter, names = max(splits.items(), key=lambda split: len(COLUMNS.intersection(split[1])))
    line, named = lines.number, dict.fromkeys(filter(None, names))
    twice = [clean(name[:40]) for name in named if names.count(name) > 1]
    faults = [RowProblem(line, name, "is given twice as a column", "leave one out") for name in twice]
    faults += [_unknown(line, name) for name in named if name not in COLUMNS]
    if faults:
        yield Row(line, faults=tuple(faults))
    rows = csv.reader(source, delimiter=delimiter, strict=True)
    while True:
        line = lines.number + 1
        try:
            cells = next(rows)
        except StopIteration:
            return
        except csv.Error as error:
            yield unreadable(line, f"is no proper CSV ({error})", "mind the quotes; what follows was not checked")
            return
        if any(map(str.strip, cells)):
            yield _csv_row(line, names, cells)


def _split(line: str, delimiter: str) -> list[str]:
    try:
        return [name.strip() for name in next(csv.reader([line], delimiter=delimiter, strict=True), [])]
    except csv.Error:
        return [line.strip()]


def _unknown(line: int, name: str) -> RowProblem:
    plain = re.sub(r"[\s-]+", "_", name.strip().lower())
    remedy = f"call it {plain}" if plain in COLUMNS else f"columns are {', '.join(sorted(COLUMNS))}"
    return RowProblem(line, clean(name[:40]), "is no known column", remedy)


def _csv_row(line: int, names: Sequence[str], cells: Sequence[str]) -> Row:
    if any(map(_NOT_UTF8.search, cells)):
        return unreadable(line, "is not UTF-8", "save the file as UTF-8")
    texts = [cell.strip() for cell in cells]
    stray = [text for name, text in zip(names, texts, strict=False) if not name] + texts[len(names) :]
    if any(stray):
        problem = f"has {len(cells)} cells under {len(names)} columns"
        return unreadable(line, problem, "put quotes around text that holds delimiters")
    return Row(line, {name: text for name, text in zip(names, texts, strict=False) if text and name in COLUMNS})


def _read_jsonl(lines: _LineReader) -> Generator[Row, None, None]:
    remedy = "write one object per line"
    for text in lines:
        line = lines.number
        if not text.strip():
            continue
        if _NOT_UTF8.search(text):
            yield unreadable(line, "is not UTF-8", "save the file as UTF-8")
            continue
        try:
            value = _loads(text)
        except (ValueError, RecursionError) as error:
            yield unreadable(line, f"is no JSON that can be read ({clean(str(error))[:80]})", remedy)
            continue
        if not isinstance(value, dict):
            yield unreadable(line, "is no JSON object", remedy)
            continue
        given = {name: cell for name, cell in value.items() if name in COLUMNS and cell is not None}
        cells = {name: cell for name, cell in given.items() if not isinstance(cell, str) or cell.strip()}
        yield Row(line, cells, tuple(_unknown(line, name) for name in value if name not in COLUMNS))


def _reject_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) < len(pairs):
        raise ValueError("a field is written twice")
    return members


_loads = reader(object_pairs_hook=_reject_duplicates)
