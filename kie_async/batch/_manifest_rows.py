"""Read the rows of a manifest file, CSV or JSONL, and parse them: columns to typed fields, to a request, to a job.

Reading blocks, and goes line by line: memory does not grow with the number of rows. Parsing is pure.
"""

from __future__ import annotations

import csv
import hashlib
import json
import math
import os
import re
import sys
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, TextIO, get_args, get_type_hints

import attrs

from kie_async._protocol.json_values import reader, snake_case
from kie_async._protocol.request_rules import FORMS, CutPoint, read_cut_point
from kie_async.batch._results import KEY_LENGTH
from kie_async.errors import InvalidRequestError, Problem, RowProblem
from kie_async.events import clean
from kie_async.journal import Job, Source
from kie_async.models import ExtendRequest, Request, UploadExtendRequest

_REQUESTS: Mapping[str, type[ExtendRequest | UploadExtendRequest]] = {
    kind.operation: kind for kind in (ExtendRequest, UploadExtendRequest)
}
_DEFAULTS = {field.name: field.default for kind in _REQUESTS.values() for field in attrs.fields(kind)}
_SHARED = {"operation"} | _DEFAULTS.keys()  # what all rows can have in common
COLUMNS = {"id"} | _SHARED
_SUBJECTS = {"audio_id": "extend", "source": "upload_extend"}  # what is extended, and by which operation
_SUBJECT_OF = {operation: subject for subject, operation in _SUBJECTS.items()}

_MAX_ID = 200  # characters
_NUMBER = re.compile(r"[+-]?[0-9]+(?:\.[0-9]+)?")
_FLAGS = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
_KEY_VERSION = 1
_OPERATION_REMEDY = f"write {' or '.join(_REQUESTS)}, or leave it out"
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
    delimiter, names = max(splits.items(), key=lambda split: len(COLUMNS.intersection(map(snake_case, split[1]))))
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
    plain = snake_case(name)
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
    named = zip(map(snake_case, names), texts, strict=False)
    return Row(line, {name: text for name, text in named if text and name in COLUMNS})


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
        # Misspelled columns are reported, and read all the same: their cells are not missing.
        named = [(snake_case(name), cell) for name, cell in value.items()]
        cells = {name: cell for name, cell in named if name in COLUMNS and cell is not None and str(cell).strip()}
        yield Row(line, cells, tuple(_unknown(line, name) for name in value if name not in COLUMNS))


def _reject_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) < len(pairs):
        raise ValueError("a field is written twice")
    return members


_loads = reader(object_pairs_hook=_reject_duplicates)


# ---------------------------------------------------------------- one value


class FindSource(Protocol):
    """Finds out about local sources."""

    def __call__(self, path: str, *, needs_length: bool) -> Source | Problem:
        """Return size, content and length of a source (an absolute path), or the ``Problem`` with it."""
        ...


def _flag(value: object) -> bool | None:
    if isinstance(value, str):
        return _FLAGS.get(value.strip().lower())
    return value if isinstance(value, bool) else None


def _number(value: object) -> float | None:
    if isinstance(value, str):
        return float(value) if _NUMBER.fullmatch(value.strip()) else None
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if abs(value) <= sys.float_info.max else math.inf  # which no field may be


def _cut_point(value: object) -> CutPoint | None:
    if isinstance(value, str):
        return read_cut_point(value.strip())
    number = _number(value)
    return None if number is None else CutPoint(abs(number), from_end=number < 0)


def _id(value: object) -> str | None:
    text = str(value) if isinstance(value, int) and not isinstance(value, bool) and abs(value) < 1 << 63 else value
    is_good = isinstance(text, str) and text.isprintable() and text == text.strip() and len(text) <= _MAX_ID
    return str(text) if is_good else None


def _columns_of(kind: type) -> set[str]:
    hints = get_type_hints(ExtendRequest) | get_type_hints(UploadExtendRequest)
    return {name for name, hint in hints.items() if name in _DEFAULTS and kind in {hint, *get_args(hint)}}


# What reads a column, or returns None, and what to write then. Others are texts, which the rules of the request check.
_PARSERS: Mapping[str, tuple[Callable[[object], object], str]] = {
    **dict.fromkeys(_columns_of(bool), (_flag, "write true or false")),
    **dict.fromkeys(_columns_of(float), (_number, "write a number like 0.65, with a point")),
    "continue_at": (_cut_point, f"write {FORMS}"),
    "id": (_id, f"write at most {_MAX_ID} letters and signs on one line, or leave it out"),
    "operation": (lambda value: value if value in [*_REQUESTS] else None, _OPERATION_REMEDY),
}


def _parse_value(column: str, value: object) -> object:
    """Return a value of the column's type, or the ``Problem`` with it."""
    if column not in _PARSERS:
        return os.fspath(value) if isinstance(value, os.PathLike) else value
    parse, remedy = _PARSERS[column]
    parsed = parse(value)
    if parsed is None:
        shown = repr(value[:40]) if isinstance(value, str) else f"of type {type(value).__name__}"
        return Problem(column, f"is {shown}", remedy)
    return parsed


# ---------------------------------------------------------------- one row


def parse_defaults(defaults: Mapping[str, object]) -> tuple[dict[str, object], list[RowProblem]]:
    """Parse the fields that all rows share; return them and what is wrong with them."""
    given = {name: value for name, value in defaults.items() if value is not None}
    parser = _RowParser(Row(0, {name: given[name] for name in given if name in _SHARED}, location="defaults"), [])
    fields = parser.read_cells({})
    for name in (name for name in given if name not in _SHARED):
        parser.add_error(str(name), "cannot be shared by all rows", f"give {', '.join(sorted(_SHARED))}")
    return {name: value for name, value in fields.items() if value is not None}, parser.faults


def parse_row(
    row: Row, defaults: Mapping[str, object], folder: str, find_source: FindSource
) -> Job | Sequence[RowProblem]:
    """Return the job of a row, or its faults. Empty cells have ``defaults``; local sources are relative to a folder."""
    if not row.is_readable:
        return row.faults
    parser = _RowParser(row, list(row.faults))
    fields = parser.read_cells(defaults)
    key, cut_point = fields.pop("id", None), fields.pop("continue_at", None)
    operation = parser.choose_operation(fields)
    source = parser.find_source(fields, folder, find_source)
    request = parser.build_request(operation, fields, cut_point, source)
    if request is None or parser.faults:
        return parser.faults
    return Job(key=key or _content_key(operation, fields, cut_point, source), request=request, source=source)


@attrs.frozen
class _RowParser:
    """Parses the parts of one row, and collects all its faults."""

    row: Row
    faults: list[RowProblem]

    def add_error(self, field: str, problem: str, remedy: str) -> None:
        """Add a fault, unless the field has one already: the first is the root cause."""
        if self._has_error(field):
            return
        if field == "source" and self.row.line and self.row.location:  # a file of a folder, which nobody has listed
            remedy += ", or move it out of the folder"
        self.faults.append(RowProblem(self.row.line, field, problem, remedy, self.row.location))

    def _has_error(self, field: str) -> bool:
        return any(fault.field == field for fault in self.faults)

    def read_cells(self, defaults: Mapping[str, object]) -> dict[str, Any]:
        """Return the typed fields: those of the row, and the defaults for the rest."""
        fields: dict[str, Any] = {}
        for name, cell in self.row.cells.items():
            value = _parse_value(name, cell)
            if isinstance(value, Problem):
                self.add_error(value.field, value.problem, value.remedy)
                value = None
            fields[name] = value
        has_subject = not _SUBJECTS.keys().isdisjoint(fields)
        for name, value in defaults.items():
            if not (has_subject and (name in _SUBJECTS or name == "operation")):
                fields.setdefault(name, value)
        return fields

    def choose_operation(self, fields: dict[str, Any]) -> str:
        """Return the operation, as given or as the subject implies; remove it, and the subject of the other one."""
        operation: str | None = fields.pop("operation", None)
        given = [name for name in _SUBJECTS if name in fields]
        if not given:
            self.add_error(
                _SUBJECT_OF.get(operation or "", "source"),
                "is missing",
                "give audio_id (of a track), or source (a path or URL)",
            )
        elif len(given) > 1:
            self.add_error("source", "is given with audio_id", "leave one of them out")
        elif operation is not None and _SUBJECTS[given[0]] != operation:
            self.add_error("operation", f"is {operation} with {given[0]}", "leave operation out")
        chosen = _SUBJECTS[given[0]] if len(given) == 1 else operation or "upload_extend"
        for name in _SUBJECTS.keys() - {_SUBJECT_OF[chosen]}:
            fields.pop(name, None)
        return chosen

    def find_source(self, fields: dict[str, Any], folder: str, find_source: FindSource) -> Source | None:
        """Return the local source of the row, if it has one that can be used, and make its path absolute."""
        source = fields.get("source")
        if not isinstance(source, str) or "://" in source or not source.strip():
            return None
        try:
            source.encode()
        except UnicodeEncodeError:
            self.add_error("source", "has a name that is no text", "rename the file")
            return None
        path = fields["source"] = os.path.normpath(Path(folder, source))
        found = find_source(path, needs_length="source_duration" not in fields)
        if isinstance(found, Source):
            return found
        self.add_error(found.field, found.problem, found.remedy)
        return None

    def build_request(
        self, operation: str, given: Mapping[str, Any], cut_point: CutPoint | None, source: Source | None
    ) -> Request | None:
        """Build the request; None, and faults, if it breaks a rule."""
        fields = dict(given)
        if source is not None and source.duration is not None:
            fields.setdefault("source_duration", source.duration)
        needs_length = cut_point is not None and cut_point.needs_length
        if cut_point is not None:
            fields["continue_at"] = cut_point.resolve(fields.get("source_duration"))
            if fields["continue_at"] is None and not self._has_error("source"):
                remedy = "the length of the source is not known: give seconds, or source_duration"
                self.add_error("continue_at", "counts from the end, or is a share", remedy)
        kind = _REQUESTS[operation]
        subject = _SUBJECT_OF[operation]
        fields.setdefault(subject, None)
        for name in fields.keys() - attrs.fields_dict(kind).keys():
            self.add_error(name, f"is given with {subject}", "leave it out")
            del fields[name]
        try:
            return kind(**fields)
        except InvalidRequestError as error:
            for fault in error.problems:
                if not (fault.field == "continue_at" and needs_length and self._has_error("source")):
                    self.add_error(fault.field, fault.problem, fault.remedy)  # it is not for want of the source alone
        return None


def _content_key(operation: str, fields: Mapping[str, Any], cut_point: CutPoint | None, source: Source | None) -> str:
    """Make the key of a job without an id from all that it asks for: an edited row is another job.

    A local source counts by its content, wherever it is; a cut point counts as it is written, so that a length that is
    measured anew changes nothing.
    """
    content = {name: value for name, value in fields.items() if value is not None and value != _DEFAULTS[name]}
    content["model"] = fields.get("model", _DEFAULTS["model"])  # always present: a new default is another job
    if source is not None:
        content["source"] = f"sha256:{source.sha256}"
    if cut_point is not None:
        content["continue_at"] = [cut_point.amount, cut_point.share, cut_point.from_end]
    text = json.dumps([_KEY_VERSION, operation, content], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:KEY_LENGTH]
