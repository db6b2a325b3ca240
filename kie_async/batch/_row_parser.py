"""Parse one row of a manifest: columns to typed fields, to an operation, to a request and the key of its job. Pure."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, get_args, get_type_hints

import attrs

from kie_async._protocol.request_rules import FORMS, CutPoint, read_cut_point
from kie_async.errors import InvalidRequestError, Problem, RowProblem
from kie_async.journal import Job, Source
from kie_async.models import ExtendRequest, Request, UploadExtendRequest

_REQUESTS: Mapping[str, type[ExtendRequest | UploadExtendRequest]] = {
    kind.operation: kind for kind in (ExtendRequest, UploadExtendRequest)
}
_DEFAULTS = {field.name: field.default for kind in _REQUESTS.values() for field in attrs.fields(kind)}
_HINTS = {name: hint for kind in _REQUESTS.values() for name, hint in get_type_hints(kind).items() if name in _DEFAULTS}
COLUMNS = frozenset(_DEFAULTS) | {"id", "operation"}
_SUBJECTS = {"audio_id": "extend", "source": "upload_extend"}  # what is extended, and by which operation

_NUMBER = re.compile(r"[+-]?[0-9]+(?:\.[0-9]+)?")
_FLAGS = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
_MAX_ID = 200  # characters
_KEY_VERSION = 1
KEY_LENGTH = 24  # hex digits of a key made from content: 96 bits


class FindSource(Protocol):
    """Finds out about local sources."""

    def __call__(self, path: str, *, needs_length: bool) -> Source | Problem:
        """Return size, content and length of a source (an absolute path), or the ``Problem`` with it."""
        ...


@attrs.frozen
class Row:
    """One row as it is written.

    Attributes:
        line: where it begins, from 1; in a folder, the number of the file.
        cells: what is written, by column; without empty cells and unknown columns.
        faults: what is wrong with the writing itself.
        location: the name of the file, in a folder.
        is_job: False if it only reports an error of the file.
    """

    line: int
    cells: Mapping[str, object] = attrs.field(factory=dict)
    faults: tuple[RowProblem, ...] = ()
    location: str = ""
    is_job: bool = True


@attrs.frozen
class ManifestEntry:
    """A row after parsing: a job, or faults.

    Attributes:
        line: that of the row.
        job: None if there are faults.
        has_id: the job's key is the row's ``id``, and not made from its content.
        faults: what is wrong with the row.
        columns: the columns that are not empty; None if the row cannot be read.
    """

    line: int
    job: Job | None = None
    has_id: bool = False
    faults: Sequence[RowProblem] = ()
    columns: frozenset[str] | None = frozenset()


# ---------------------------------------------------------------- one value


def _shown(value: object) -> str:
    return repr(value[:40]) if isinstance(value, str) else f"of type {type(value).__name__}"


def _flag(name: str, value: object) -> object:
    if isinstance(value, str):
        value = _FLAGS.get(value.strip().lower(), value)
    if isinstance(value, bool):
        return value
    return Problem(name, f"is {_shown(value)}", "write true or false")


def _number(name: str, value: object) -> float | Problem:
    if isinstance(value, str) and _NUMBER.fullmatch(value.strip()):
        return float(value)
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        try:
            return float(value)
        except OverflowError:
            return Problem(name, "is a number beyond all measure", "write a number like 0.65")
    return Problem(name, f"is {_shown(value)}", "write a number like 0.65, with a point")


def _cut_point(name: str, value: object) -> object:
    if isinstance(value, str):
        return read_cut_point(value.strip()) or Problem(name, f"is {_shown(value)}", f"write {FORMS}")
    number = _number(name, value)
    return number if isinstance(number, Problem) else CutPoint(abs(number), from_end=number < 0)


def _id(name: str, value: object) -> object:
    text = str(value) if isinstance(value, int) and not isinstance(value, bool) and abs(value) < 1 << 63 else value
    if not isinstance(text, str):
        return Problem(name, f"is {_shown(value)}", "write a text, or leave it out")
    if not text.isprintable() or text != text.strip() or len(text) > _MAX_ID:
        return Problem(name, f"is {_shown(value)}", f"write at most {_MAX_ID} letters and signs on one line")
    return text


def _operation(name: str, value: object) -> object:
    if isinstance(value, str) and value in _REQUESTS:
        return value
    return Problem(name, f"is {_shown(value)}", f"write {' or '.join(_REQUESTS)}, or leave it out")


def _text(_name: str, value: object) -> object:
    return os.fspath(value) if isinstance(value, os.PathLike) else value  # the rules of the request check it


_PARSERS: Mapping[str, Callable[[str, object], object]] = (
    {name: _flag for name, hint in _HINTS.items() if bool in {hint, *get_args(hint)}}
    | {name: _number for name, hint in _HINTS.items() if float in {hint, *get_args(hint)}}
    | {"continue_at": _cut_point, "id": _id, "operation": _operation}
)


def _parse_value(column: str, value: object) -> object:
    """Return a value of the column's type, or the ``Problem`` with it."""
    return _PARSERS.get(column, _text)(column, value)


def parse_defaults(defaults: Mapping[str, object]) -> tuple[dict[str, object], list[RowProblem]]:
    """Parse the fields that all rows share; return them and what is wrong with them."""
    shared: dict[str, object] = {}
    faults: list[RowProblem] = []
    for name, given in defaults.items():
        if given is None:
            continue
        value = _parse_value(name, given)
        if name not in COLUMNS or name == "id":
            value = Problem(str(name), "cannot be shared by all rows", f"give {', '.join(sorted(COLUMNS - {'id'}))}")
        if isinstance(value, Problem):
            faults.append(RowProblem(0, value.field, value.problem, value.remedy, "defaults"))
        else:
            shared[name] = value
    return shared, faults


# ---------------------------------------------------------------- one row


def parse_row(row: Row, defaults: Mapping[str, object], folder: str, find_source: FindSource) -> ManifestEntry:
    """Parse a row to a job.

    Args:
        row: as it is written.
        defaults: fields for empty cells, as ``parse_defaults`` returns them.
        folder: to which local sources are relative, an absolute path.
        find_source: finds out about its local source.
    """
    if row.faults and not row.cells:
        return ManifestEntry(row.line, faults=row.faults, columns=None)
    return RowParser(row, defaults, folder).parse(find_source)


class RowParser:
    """Parses one row, and collects all its faults."""

    def __init__(self, row: Row, defaults: Mapping[str, object], folder: str) -> None:
        self._row = row
        self._faults = list(row.faults)
        self._folder = folder
        fields = self._read_cells(defaults)
        self._id: str | None = fields.pop("id", None)
        self._cut_point: CutPoint | None = fields.pop("continue_at", None)
        self._operation = self._choose_operation(fields.pop("operation", None), fields)
        self._fields = fields

    def parse(self, find_source: FindSource) -> ManifestEntry:
        """Return the row's job, or its faults."""
        line, columns = self._row.line, frozenset(self._row.cells)
        source = self._find_source(find_source)
        request = self._build_request(source)
        if request is None or self._faults:
            return ManifestEntry(line, faults=self._faults, columns=columns)
        job = Job(key=self._id or self._content_key(source), request=request, source=source)
        return ManifestEntry(line, job, has_id=self._id is not None)

    def _add_error(self, problem: Problem) -> None:
        """Add a fault, unless the field has one already: the first is the root cause."""
        if not self._has_error(problem.field):
            row = self._row
            self._faults.append(RowProblem(row.line, problem.field, problem.problem, problem.remedy, row.location))

    def _has_error(self, field: str) -> bool:
        return any(fault.field == field for fault in self._faults)

    def _read_cells(self, defaults: Mapping[str, object]) -> dict[str, Any]:
        """Return the typed fields: those of the row, and the defaults for the rest."""
        fields: dict[str, Any] = {}
        for name, cell in self._row.cells.items():
            value = _parse_value(name, cell)
            if isinstance(value, Problem):
                self._add_error(value)
                value = None
            fields[name] = value
        has_subject = not _SUBJECTS.keys().isdisjoint(fields)
        for name, value in defaults.items():
            if not (has_subject and (name in _SUBJECTS or name == "operation")):
                fields.setdefault(name, value)
        return fields

    def _choose_operation(self, operation: str | None, fields: dict[str, Any]) -> str:
        """Return the operation, as given or as the subject implies; remove the subject of the other one."""
        given = [name for name in _SUBJECTS if name in fields]
        if not given:
            name = next((name for name, of in _SUBJECTS.items() if of == operation), "source")
            self._add_error(Problem(name, "is missing", "give audio_id (of a track), or source (a path or URL)"))
        elif len(given) > 1:
            self._add_error(Problem("source", "is given with audio_id", "leave one of them out"))
        elif operation is not None and _SUBJECTS[given[0]] != operation:
            self._add_error(Problem("operation", f"is {operation} with {given[0]}", "leave operation out"))
        chosen = _SUBJECTS[given[0]] if len(given) == 1 else operation or "upload_extend"
        for name, of in _SUBJECTS.items():
            if of != chosen:
                fields.pop(name, None)
        return chosen

    def _find_source(self, find_source: FindSource) -> Source | None:
        """Return the local source of the row, if it has one that can be used, and make its path absolute."""
        source = self._fields.get("source")
        if not isinstance(source, str) or "://" in source or not source.strip():
            return None
        try:
            source.encode()
        except UnicodeEncodeError:
            self._add_error(Problem("source", "has a name that is no text", "rename the file"))
            return None
        path = os.path.normpath(Path(self._folder, source))
        self._fields["source"] = path
        found = find_source(path, needs_length="source_duration" not in self._fields)
        if isinstance(found, Problem):
            self._add_error(found)
            return None
        return found

    def _build_request(self, source: Source | None) -> Request | None:
        """Build the request; None, and faults, if it breaks a rule."""
        fields = dict(self._fields)
        if source is not None and source.duration is not None:
            fields.setdefault("source_duration", source.duration)
        if self._cut_point is not None:
            fields["continue_at"] = self._cut_point.within(fields.get("source_duration"))
            if fields["continue_at"] is None and not self._has_error("source"):
                remedy = "the length of the source is not known: give seconds, or source_duration"
                self._add_error(Problem("continue_at", "counts from the end, or is a share", remedy))
        subject = next(name for name, of in _SUBJECTS.items() if of == self._operation)
        fields.setdefault(subject, None)
        kind = _REQUESTS[self._operation]
        for name in fields.keys() - attrs.fields_dict(kind).keys():
            self._add_error(Problem(name, f"is given with {subject}", "leave it out"))
            del fields[name]
        try:
            return kind(**fields)
        except InvalidRequestError as error:
            for problem in error.problems:
                if not self._follows_from_source(problem):
                    self._add_error(problem)
        return None

    def _follows_from_source(self, problem: Problem) -> bool:
        """Tell whether the only reason for a problem is that the source cannot be read."""
        needs_length = self._cut_point is not None and self._cut_point.needs_length
        return problem.field == "continue_at" and needs_length and self._has_error("source")

    def _content_key(self, source: Source | None) -> str:
        """Make the key of a job without an id from all that it asks for: an edited row is another job.

        A local source counts by its content, wherever it is; a cut point counts as it is written, so that a length
        that is measured anew changes nothing.
        """
        given = {"model": _DEFAULTS["model"], **self._fields}  # always present, so that a new default is another job
        content = {
            name: value
            for name, value in given.items()
            if value is not None and (name == "model" or value != _DEFAULTS[name])
        }
        if source is not None:
            content["source"] = f"sha256:{source.sha256}"
        if self._cut_point is not None:
            content["continue_at"] = [self._cut_point.amount, self._cut_point.share, self._cut_point.from_end]
        text = json.dumps([_KEY_VERSION, self._operation, content], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:KEY_LENGTH]
