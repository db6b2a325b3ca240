"""What a row means: its columns as typed fields, its operation, and its request. Pure."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, get_args, get_type_hints

import attrs

from kie_async._protocol.cut_point import FORMS, Moment, read_moment
from kie_async.errors import Fault, InvalidRequestError, Problem
from kie_async.journal import Source
from kie_async.models import ExtendRequest, Request, UploadExtendRequest

KINDS: Mapping[str, type[ExtendRequest | UploadExtendRequest]] = {
    kind.operation: kind for kind in (ExtendRequest, UploadExtendRequest)
}
_DEFAULTS = {field.name: field.default for kind in KINDS.values() for field in attrs.fields(kind)}
_HINTS = {name: hint for kind in KINDS.values() for name, hint in get_type_hints(kind).items() if name in _DEFAULTS}
COLUMNS = frozenset(_DEFAULTS) | {"id", "operation"}
SUBJECTS = {"audio_id": "extend", "source": "upload_extend"}  # what is extended, and by which operation

_NUMBER = re.compile(r"[+-]?[0-9]+(?:\.[0-9]+)?")
_WORDS = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
_KEY_VERSION = 1
_MAX_ID = 200  # characters


@attrs.frozen
class Row:
    """One job as it was written.

    Attributes:
        line: where it begins, from 1; in a folder, which file it is.
        cells: what is written, by column; what is empty is left out.
        faults: what is wrong with the writing itself.
        place: the name of a file, in a folder.
        is_job: whether it stands for a job, and not only for a fault of the file.
    """

    line: int
    cells: Mapping[str, object] = attrs.field(factory=dict)
    faults: tuple[Fault, ...] = ()
    place: str = ""
    is_job: bool = True


@attrs.define
class Draft:
    """A row on its way to a job.

    Attributes:
        fields: of the request, typed; without ``continue_at``.
        moment: where the source is cut.
        faults: what is wrong with it.
        path: its local source, absolute; None for a URL or a track.
        is_readable: whether there is anything in it besides faults.
        given: the columns in which it has something.
    """

    line: int
    place: str
    faults: list[Fault]
    fields: dict[str, Any] = attrs.field(factory=dict)
    id: str | None = None
    operation: str = "extend"
    moment: Moment | None = None
    path: str | None = None
    is_readable: bool = True
    given: frozenset[str] = frozenset()

    def blame(self, problem: Problem) -> None:
        """Add a fault, unless there is one of the same field already: its root cause."""
        if not self.has_fault(problem.field):
            self.faults.append(Fault(self.line, problem.field, problem.problem, problem.remedy, self.place))

    def has_fault(self, field: str) -> bool:
        """Tell whether something is wrong with a field."""
        return any(fault.field == field for fault in self.faults)

    @property
    def needs_length(self) -> bool:
        """Whether its source must be measured: always, unless its length is given."""
        return "source_duration" not in self.fields


# ---------------------------------------------------------------- one value


def _shown(value: object) -> str:
    return repr(value[:40]) if isinstance(value, str) else f"of type {type(value).__name__}"


def _flag(name: str, value: object) -> object:
    if isinstance(value, str):
        value = _WORDS.get(value.strip().lower(), value)
    if isinstance(value, bool):
        return value
    return Problem(name, f"is {_shown(value)}", "write true or false")


def _number(name: str, value: object) -> object:
    if isinstance(value, str) and _NUMBER.fullmatch(value.strip()):
        return float(value)
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        try:
            return float(value)
        except OverflowError:
            return Problem(name, "is a number beyond all measure", "write a number like 0.65")
    return Problem(name, f"is {_shown(value)}", "write a number like 0.65, with a point")


def _moment(name: str, value: object) -> object:
    if isinstance(value, str):
        return read_moment(value.strip()) or Problem(name, f"is {_shown(value)}", f"write {FORMS}")
    number = _number(name, value)
    return number if isinstance(number, Problem) else Moment(abs(float(value)), from_end=float(value) < 0)  # type: ignore[arg-type]  # a number


def _id(name: str, value: object) -> object:
    text = str(value) if isinstance(value, int) and not isinstance(value, bool) and abs(value) < 1 << 63 else value
    if not isinstance(text, str):
        return Problem(name, f"is {_shown(value)}", "write a text, or leave it out")
    if not text.isprintable() or text != text.strip() or len(text) > _MAX_ID:
        return Problem(name, f"is {_shown(value)}", f"write at most {_MAX_ID} letters and signs on one line")
    return text


def _operation(name: str, value: object) -> object:
    if isinstance(value, str) and value in KINDS:
        return value
    return Problem(name, f"is {_shown(value)}", f"write {' or '.join(KINDS)}, or leave it out")


def _text(_name: str, value: object) -> object:
    return os.fspath(value) if isinstance(value, os.PathLike) else value  # the request's own rules judge it


_READERS: Mapping[str, Callable[[str, object], object]] = (
    {name: _flag for name, hint in _HINTS.items() if bool in {hint, *get_args(hint)}}
    | {name: _number for name, hint in _HINTS.items() if float in {hint, *get_args(hint)}}
    | {"continue_at": _moment, "id": _id, "operation": _operation}
)


def read_value(name: str, value: object) -> object:
    """Read what stands in a column: a value of its type, or the ``Problem`` with it."""
    return _READERS.get(name, _text)(name, value)


# ---------------------------------------------------------------- one row


def read_defaults(defaults: Mapping[str, object]) -> tuple[dict[str, object], list[Fault]]:
    """Read the fields that all rows share, and what is wrong with them."""
    common: dict[str, object] = {}
    faults: list[Fault] = []
    for name, given in defaults.items():
        if given is None:
            continue
        value = read_value(name, given)
        if name not in COLUMNS or name == "id":
            value = Problem(str(name), "cannot be shared by all rows", f"give {', '.join(sorted(COLUMNS - {'id'}))}")
        if isinstance(value, Problem):
            faults.append(Fault(0, value.field, value.problem, value.remedy, "defaults"))
        else:
            common[name] = value
    return common, faults


def draft(row: Row, *, common: Mapping[str, object], folder: str) -> Draft:
    """Read a row.

    Args:
        row: as it is written.
        common: fields for which it has nothing.
        folder: where relative sources begin, an absolute path.
    """
    is_readable = bool(row.cells) or not row.faults
    made = Draft(row.line, row.place, list(row.faults), is_readable=is_readable, given=frozenset(row.cells))
    if made.is_readable:
        _fill(made, row.cells, common, folder)
    return made


def _fill(row: Draft, cells: Mapping[str, object], common: Mapping[str, object], folder: str) -> None:
    values: dict[str, Any] = {}
    for name, cell in cells.items():
        value = read_value(name, cell)
        if isinstance(value, Problem):
            row.blame(value)
            value = None
        values[name] = value
    shared = common if SUBJECTS.keys().isdisjoint(values) else _without_subject(common)
    for name, value in shared.items():
        values.setdefault(name, value)
    row.id, row.moment = values.pop("id", None), values.pop("continue_at", None)
    row.fields = values
    row.operation = _chosen(row, values.pop("operation", None))
    row.path = _local(row, folder)


def _without_subject(common: Mapping[str, object]) -> Mapping[str, object]:
    return {name: value for name, value in common.items() if name not in SUBJECTS and name != "operation"}


def _chosen(row: Draft, operation: str | None) -> str:
    """The operation, as given or as it follows; the subject of the other one is taken out."""
    given = [name for name in SUBJECTS if name in row.fields]
    if not given:
        name = next((name for name, of in SUBJECTS.items() if of == operation), "source")
        row.blame(Problem(name, "is missing", "give audio_id (of a track), or source (a path or URL)"))
    elif len(given) > 1:
        row.blame(Problem("source", "is given with audio_id", "leave one of them out"))
    elif operation is not None and SUBJECTS[given[0]] != operation:
        row.blame(Problem("operation", f"is {operation} with {given[0]}", "leave operation out"))
    chosen = SUBJECTS[given[0]] if len(given) == 1 else operation or "upload_extend"
    for name, of in SUBJECTS.items():
        if of != chosen:
            row.fields.pop(name, None)
    return chosen


def _local(row: Draft, folder: str) -> str | None:
    """The absolute path of a local source."""
    source = row.fields.get("source")
    if not isinstance(source, str) or "://" in source or not source.strip():
        return None
    try:
        source.encode()
    except UnicodeEncodeError:
        row.blame(Problem("source", "has a name that is no text", "rename the file"))
        return None
    row.fields["source"] = os.path.abspath(os.path.join(folder, source))  # noqa: PTH100, PTH118  # pure, and fast
    return str(row.fields["source"])


# ---------------------------------------------------------------- its request and its key


def request_of(row: Draft, length: float | None) -> Request | None:
    """Build the request; None, and faults of the row, if a rule is broken.

    Args:
        row: what was read.
        length: of its local source, as measured.
    """
    fields = dict(row.fields)
    if length is not None:
        fields.setdefault("source_duration", length)
    if row.moment is not None:
        fields["continue_at"] = row.moment.within(fields.get("source_duration"))
        if fields["continue_at"] is None and not row.has_fault("source"):
            remedy = "the length of the source is not known: give seconds, or source_duration"
            row.blame(Problem("continue_at", "counts from the end, or is a share", remedy))
    subject = next(name for name, of in SUBJECTS.items() if of == row.operation)
    fields.setdefault(subject, None)
    kind = KINDS[row.operation]
    for name in fields.keys() - attrs.fields_dict(kind).keys():
        row.blame(Problem(name, f"is given with {subject}", "leave it out"))
        del fields[name]
    try:
        return kind(**fields)
    except InvalidRequestError as error:
        for problem in _root_causes(row, error.problems):
            row.blame(problem)
    return None


def _root_causes(row: Draft, problems: tuple[Problem, ...]) -> Iterator[Problem]:
    """Leave out what is only the consequence of a source that cannot be read."""
    hidden = {"continue_at"} if row.moment is not None and row.moment.needs_length and row.has_fault("source") else ()
    return (problem for problem in problems if problem.field not in hidden)


def content_key(row: Draft, source: Source | None) -> str:
    """The key of a job without an id, made from all that it asks for: an edited row is another job.

    A local source counts by its content, wherever it lies; a moment counts as it is written, so that a length
    measured anew changes nothing.
    """
    given = {"model": _DEFAULTS["model"], **row.fields}  # named always, so that a new default is another job
    content = {
        name: value
        for name, value in given.items()
        if value is not None and (name == "model" or value != _DEFAULTS[name])
    }
    if source is not None:
        content["source"] = f"sha256:{source.sha256}"
    if row.moment is not None:
        content["continue_at"] = [row.moment.amount, row.moment.share, row.moment.from_end]
    text = json.dumps([_KEY_VERSION, row.operation, content], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:KEY_LENGTH]


KEY_LENGTH = 24  # hex digits: 96 bits
