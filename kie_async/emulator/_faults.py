"""Faults by rule: what shall go wrong, where, and how often. Pure and seeded; others act on it.

A fault is a value. ``KINDS`` says where each kind may strike and what it does; ``Faults`` counts and picks.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Mapping
from types import MappingProxyType
from typing import Literal, TypeAlias, get_args

import attrs

Point: TypeAlias = Literal["submit", "record_info", "callback", "credits", "upload", "download", "download_url"]

POINTS: tuple[Point, ...] = get_args(Point)
EXCHANGES: tuple[Point, ...] = tuple(point for point in POINTS if point != "callback")


@attrs.frozen
class Kind:
    """What a kind of fault does.

    Attributes:
        points: where it may strike; the first is the default.
        says: its effect in words.
        done: whether what was asked for is done (and charged) all the same, unless the fault says otherwise.
    """

    points: tuple[Point, ...]
    says: str
    done: bool = False


_TASK: tuple[Point, ...] = ("submit",)
_LOOK: tuple[Point, ...] = ("record_info",)
_CALLBACK: tuple[Point, ...] = ("callback",)
_DOWNLOAD: tuple[Point, ...] = ("download",)

KINDS: Mapping[str, Kind] = MappingProxyType(
    {
        # of an exchange
        "lost": Kind((*EXCHANGES, "callback"), "done and charged, then closed without an answer; not sent", done=True),
        "reset": Kind(EXCHANGES, "done and charged, then the connection is reset", done=True),
        "drop": Kind(EXCHANGES, "closed before anything is done"),
        "html": Kind(EXCHANGES, "a proxy's HTML page with the HTTP status `status` (502)"),
        "code": Kind(EXCHANGES, "refused with the body code `code` (500) and `message`, HTTP status `status` (200)"),
        "answer": Kind(EXCHANGES, "the bytes `body` as the answer, HTTP status `status` (200)", done=True),
        "redirect": Kind(EXCHANGES, "redirected to `url`, HTTP status `status` (307)"),
        "slow": Kind(EXCHANGES, "answered `seconds` late", done=True),
        "drip": Kind(EXCHANGES, "the answer comes byte by byte, `seconds` apart", done=True),
        "truncated": Kind(EXCHANGES, "half of the announced body, then closed", done=True),
        "garbage": Kind(EXCHANGES, "bytes that mean nothing", done=True),
        "malformed": Kind(EXCHANGES, "JSON with its last brace missing", done=True),
        "huge": Kind(EXCHANGES, "a body of `size` bytes (64 MB), streamed", done=True),
        "gzip_bomb": Kind(EXCHANGES, "a small gzip body that unpacks to `size` bytes (64 MB)", done=True),
        # of a task's life
        "stuck": Kind(_TASK, "the task never leaves PENDING"),
        "refused": Kind(_TASK, "refused late: PENDING with the errorCode `code` (413) for minutes, then failed"),
        "failed": Kind(_TASK, "ends with the status `word` (GENERATE_AUDIO_FAILED) and errorCode `code` (501)"),
        "no_audio": Kind(_TASK, "SUCCESS with audioUrl null; the audio appears `seconds` later, or never"),
        "callback_exception": Kind(_TASK, "ends with CALLBACK_EXCEPTION, its audio complete"),
        "invisible": Kind((*_TASK, *_LOOK), "record-info does not know it: for `seconds` (5), or at that look"),
        # of a look
        "backwards": Kind(_LOOK, "that look shows PENDING again"),
        "unknown_word": Kind(_LOOK, "that look shows the status `word` (MIXING)"),
        "shape": Kind((*_LOOK, *_CALLBACK), "the jobs route's tracks as `shape` says (object); a callback as a record"),
        # of the callbacks of a task; `stage` narrows it to one
        "doubled": Kind(_CALLBACK, "sent twice"),
        "reordered": Kind(_CALLBACK, "sent in reverse order"),
        "late": Kind(_CALLBACK, "sent `seconds` (30) late"),
        "early": Kind(_CALLBACK, "sent before the submission is answered: the text, or all up to `stage`"),
        "forged": Kind(_CALLBACK, "besides, `seconds` (0) after submission, a false one: `stage`, `code`, `url`"),
        # of a download
        "empty": Kind(_DOWNLOAD, "HTTP 200 with zero bytes, as old stream addresses give", done=True),
        "expired": Kind(_DOWNLOAD, "HTTP 404"),
        "page": Kind(_DOWNLOAD, "HTTP 200 with an HTML page"),
        "new_etag": Kind(_DOWNLOAD, "another ETag each time", done=True),
        "ignores_range": Kind(_DOWNLOAD, "the whole file whatever the Range", done=True),
        "wrong_range": Kind(_DOWNLOAD, "another part than was asked for", done=True),
        "no_length": Kind(_DOWNLOAD, "half the file without a length, then closed", done=True),
    }
)  # fmt: skip


# Where a finished task of the jobs route has its tracks: all of these are reported or documented.
SHAPES: tuple[str, ...] = (
    "data",  # resultJson {"data": [...]}, and the same in response: extend
    "envelope",  # resultJson {"code": 200, "data": [...]}
    "object",  # resultJson {"resultUrls": [...], "resultObject": {"data": [...]}}: upload-and-extend-audio
    "urls",  # bare addresses alone, in resultJson and in response
)


def _kind(name: str) -> Kind:
    if name not in KINDS:
        raise ValueError(f"no fault is called {name!r}: give one of {', '.join(KINDS)}")
    return KINDS[name]


@attrs.frozen
class Fault:
    """One thing that goes wrong, by rule. ``KINDS`` tells what each kind does with the other fields.

    Attributes:
        kind: a name in ``KINDS``.
        on: the point where it strikes: submit, record_info, callback, credits, upload, download, download_url.
        nth: only the nth event at that point, counted from 1 since the fault was added.
        times: at most that often.
        probability: in each case, from 0 to 1.
        task_id: only for this task.
        stage: only this stage of the callbacks: text, first, complete, error.
        code: the body code; text is sent as text.
        message: the words beside the code.
        status: the HTTP status.
        word: the status word of record-info.
        shape: where the tracks stand, one of ``SHAPES``.
        seconds: how late or how long.
        size: how many bytes.
        url: where to.
        body: the answer itself.
        done: whether what was asked for is done, and charged, first; None: as the kind says.
        signed: whether a forged callback bears a good signature.

    Raises:
        ValueError: no such kind or shape, or it cannot strike at that point.
    """

    kind: str
    on: Point = attrs.field(default=attrs.Factory(lambda self: _kind(self.kind).points[0], takes_self=True))
    nth: int | None = attrs.field(default=None, kw_only=True)
    times: int | None = attrs.field(default=None, kw_only=True)
    probability: float = attrs.field(default=1.0, kw_only=True)
    task_id: str | None = attrs.field(default=None, kw_only=True)
    stage: str | None = attrs.field(default=None, kw_only=True)
    code: int | str | None = attrs.field(default=None, kw_only=True)
    message: str | None = attrs.field(default=None, kw_only=True)
    status: int | None = attrs.field(default=None, kw_only=True)
    word: str | None = attrs.field(default=None, kw_only=True)
    shape: str = attrs.field(default="object", kw_only=True, validator=attrs.validators.in_(SHAPES))
    seconds: float | None = attrs.field(default=None, kw_only=True)
    size: int = attrs.field(default=64_000_000, kw_only=True)
    url: str = attrs.field(default="http://127.0.0.1:9/elsewhere", kw_only=True)
    body: bytes = attrs.field(default=b"", kw_only=True)
    done: bool | None = attrs.field(default=None, kw_only=True)
    signed: bool = attrs.field(default=True, kw_only=True)

    def __attrs_post_init__(self) -> None:
        kind = _kind(self.kind)
        if self.on not in kind.points:
            raise ValueError(f"{self.kind!r} cannot strike at {self.on!r}, only at {', '.join(kind.points)}")
        if self.done is None:
            object.__setattr__(self, "done", kind.done)


@attrs.define
class _Entry:
    """A fault and how often it was met and struck."""

    fault: Fault
    met: int = 0
    struck: int = 0


class Faults:
    """The faults in force; they can be changed while the emulator runs."""

    def __init__(self, faults: Iterable[Fault] = (), seed: int = 0) -> None:
        self._entries: list[_Entry] = []
        self._random = random.Random(f"faults {seed}")  # noqa: S311  # chance, not secrecy
        self.add(*faults)

    def __iter__(self) -> Iterator[Fault]:
        return iter([entry.fault for entry in self._entries])

    def __len__(self) -> int:
        return len(self._entries)

    def add(self, *faults: Fault) -> None:
        """Put faults in force; they count from now on."""
        self._entries.extend(_Entry(fault) for fault in faults)

    def remove(self, *faults: Fault) -> None:
        """Take faults out of force, wherever they stand equal."""
        self._entries = [entry for entry in self._entries if entry.fault not in faults]

    def clear(self) -> None:
        """Take all faults out of force."""
        self._entries.clear()

    def struck(self, fault: Fault) -> int:
        """Tell how often a fault has struck."""
        return sum(entry.struck for entry in self._entries if entry.fault == fault)

    def pick(self, point: Point, task_id: str | None = None) -> tuple[Fault, ...]:
        """Return the faults that strike at this event, in the order in which they were added."""
        return tuple(entry.fault for entry in self._entries if self._strikes(entry, point, task_id))

    def _strikes(self, entry: _Entry, point: Point, task_id: str | None) -> bool:
        fault = entry.fault
        if fault.on != point or fault.task_id not in {None, task_id}:
            return False
        entry.met += 1
        strikes = (
            fault.nth in {None, entry.met}
            and (fault.times is None or entry.struck < fault.times)
            and (fault.probability >= 1 or self._random.random() < fault.probability)
        )
        entry.struck += strikes
        return strikes
