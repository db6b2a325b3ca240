"""What is counted while a manifest is checked: its jobs, its doubles, its faults. Pure.

Of each row 16 bytes are kept, so that a manifest may hold a million of them.
"""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise

import attrs

from kie_async._protocol.limits import CREDITS_PER_TASK
from kie_async.errors import Fault, ManifestError
from kie_async.journal import Job

MAX_FAULTS = 100  # kept of one manifest
_TOLD = 3  # faults in an error's message


def faulty(faults: Sequence[Fault], count: int, what: str = "the manifest") -> ManifestError:
    """The error that holds the faults of a list of jobs; its message tells the first of them."""
    told = "; ".join(map(str, faults[:_TOLD])) + (f"; and {count - _TOLD} more" if count > _TOLD else "")
    words = f"{what} has {count} fault{'s' if count > 1 else ''}, and nothing was sent: {told}"
    return ManifestError(words, faults=tuple(faults[:MAX_FAULTS]), count=count)


@attrs.frozen(kw_only=True)
class Plan:
    """What a manifest without faults asks for.

    Attributes:
        total: how many jobs.
        counts: how many by operation and model.
        twins: how many ask for the same as an earlier one; each is made, and paid, all the same.
        credits: what all of them cost, at 12 each.
    """

    total: int
    counts: Mapping[tuple[str, str], int]
    twins: int
    credits: float


@attrs.frozen
class Entry:
    """A row that was read to its end.

    Attributes:
        line: where it stands.
        job: what it asks for, if there are no faults.
        has_id: whether the job's key was chosen, and not made from its content.
        faults: what is wrong with it.
        given: the columns in which it has something; None if it could not be read.
    """

    line: int
    job: Job | None = None
    has_id: bool = False
    faults: Sequence[Fault] = ()
    given: frozenset[str] | None = frozenset()


@attrs.frozen
class Seen:
    """Keys and their lines, in a few bytes each. A key is known by its hash, of 64 bits."""

    _marks: array[int] = attrs.field(factory=lambda: array("q"), init=False)
    _lines: array[int] = attrs.field(factory=lambda: array("q"), init=False)

    def add(self, key: str, line: int) -> None:
        """Take note of a key."""
        self._marks.append(hash(key))
        self._lines.append(line)

    def doubled(self) -> frozenset[int]:
        """The hashes of keys that came more than once."""
        return frozenset(one for one, other in pairwise(sorted(self._marks)) if one == other)

    def doubles(self) -> Iterator[tuple[int, int]]:
        """Each line that repeats a key, and the line where that came first."""
        doubled = self.doubled()
        first: dict[int, int] = {}
        for mark, line in zip(self._marks, self._lines, strict=True):
            if mark in doubled and first.setdefault(mark, line) != line:
                yield line, first[mark]


@attrs.define
class Census:
    """Counts the entries of a manifest."""

    faults: list[Fault] = attrs.field(factory=list)
    fault_count: int = 0
    _counts: Counter[tuple[str, str]] = attrs.field(factory=Counter, init=False)
    _rows: int = attrs.field(default=0, init=False)
    _in_every_row: set[tuple[str, str, str]] = attrs.field(factory=set, init=False)
    _ids: Seen = attrs.field(factory=Seen, init=False)
    contents: Seen = attrs.field(factory=Seen, init=False)

    def take(self, entry: Entry) -> None:
        """Count one more row."""
        for fault in entry.faults:
            self.blame(fault)
        if entry.given is not None:
            absent = {_what(fault) for fault in entry.faults if fault.field and fault.field not in entry.given}
            self._in_every_row = self._in_every_row & absent if self._rows else absent
            self._rows += 1
        if entry.job is not None:
            request = entry.job.request
            self._counts[request.operation, request.model] += 1
            (self._ids if entry.has_id else self.contents).add(entry.job.key, entry.line)

    def blame(self, fault: Fault) -> None:
        """Count one more fault; the first of them are kept."""
        self.fault_count += 1
        if len(self.faults) < MAX_FAULTS:
            self.faults.append(fault)

    def plan(self) -> Plan:
        """Sum up."""
        total = self._counts.total()
        twins = sum(1 for _ in self.contents.doubles())
        return Plan(total=total, counts=dict(self._counts), twins=twins, credits=CREDITS_PER_TASK * total)

    def close(self, common: str) -> None:
        """Add the faults that show only when all rows are known, and say once what all rows lack.

        Args:
            common: what is said in place of the line where something is wrong with all rows.
        """
        if self._rows > 1 and self._in_every_row:
            self.faults = [fault for fault in self.faults if _what(fault) not in self._in_every_row]
            self.faults += [Fault(0, *what, common) for what in sorted(self._in_every_row)]
            self.fault_count -= (self._rows - 1) * len(self._in_every_row)
        for line, first in self._ids.doubles():
            self.blame(Fault(line, "id", f"is that of line {first} too", "give each row an id of its own"))
        self.faults.sort(key=lambda fault: fault.line)


def _what(fault: Fault) -> tuple[str, str, str]:
    return fault.field, fault.problem, fault.remedy
