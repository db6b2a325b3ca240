"""Faults by rule: which of them are in force, and at which events they occur. Pure and seeded.

``_fault_kinds`` defines what each kind does.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Unpack, cast

import attrs

from kie_async.emulator._fault_kinds import KINDS, SHAPES, FaultKind, FaultOptions, Point
from kie_async.emulator._timeline import seeded


@attrs.frozen(init=False, hash=False)
class Fault:
    """One thing that goes wrong, by rule.

    Attributes:
        kind: a name in ``KINDS``, which says what it does.
        on: the point where it occurs: submit, record_info, callback, credits, upload, download, download_url.
        nth: only at the nth event at that point, counted from 1 since the fault was added.
        times: at most that often.
        probability: in each case, from 0 to 1.
        task_id: only for this task.
        done: whether what was asked for is done, and charged, first; by default as the kind says.
        options: what the kind needs besides, each given as an argument of its own: ``stage``, ``code``, ``message``,
            ``status``, ``word``, ``shape``, ``seconds``, ``size``, ``url``, ``body``, ``signed``.

    Raises:
        ValueError: no such kind or shape, or it cannot occur at that point.
    """

    kind: str
    on: Point
    nth: int | None
    times: int | None
    probability: float
    task_id: str | None
    done: bool
    options: FaultOptions

    def __init__(  # noqa: PLR0913  # each is one part of the rule, by name
        self,
        kind: str,
        on: Point | None = None,
        *,
        nth: int | None = None,
        times: int | None = None,
        probability: float = 1.0,
        task_id: str | None = None,
        done: bool | None = None,
        **options: Unpack[FaultOptions],
    ) -> None:
        if kind not in KINDS:
            raise ValueError(f"no fault is called {kind!r}: give one of {', '.join(KINDS)}")
        points = KINDS[kind].points
        if on is not None and on not in points:
            raise ValueError(f"{kind!r} cannot occur at {on!r}, only at {', '.join(points)}")
        if options.get("shape", "object") not in SHAPES:
            raise ValueError(f"no shape is called {options['shape']!r}: give one of {', '.join(SHAPES)}")
        given = cast("FaultOptions", {name: value for name, value in options.items() if value is not None})
        is_done = KINDS[kind].done if done is None else done
        self.__attrs_init__(kind, on or points[0], nth, times, probability, task_id, is_done, given)

    @property
    def effects(self) -> FaultKind:
        """The effects of its kind."""
        return KINDS[self.kind]


@attrs.define
class ActiveFault:
    """A fault in force, the number of events that it could have occurred at, and of those where it did."""

    fault: Fault
    met: int = 0
    occurred: int = 0


class Faults:
    """The faults in force; they can be changed while the emulator runs."""

    def __init__(self, faults: Iterable[Fault] = (), seed: int = 0) -> None:
        self._active: list[ActiveFault] = []
        self._random = seeded(f"faults {seed}")
        self.add(*faults)

    def __iter__(self) -> Iterator[Fault]:
        return iter([active.fault for active in self._active])

    def __len__(self) -> int:
        return len(self._active)

    def add(self, *faults: Fault) -> None:
        """Put faults in force; they count from now on."""
        self._active.extend(ActiveFault(fault) for fault in faults)

    def remove(self, *faults: Fault) -> None:
        """Take all faults out of force that are equal to one of these."""
        self._active = [active for active in self._active if active.fault not in faults]

    def clear(self) -> None:
        """Take all faults out of force."""
        self._active.clear()

    def occurred(self, fault: Fault) -> int:
        """Return how often a fault has occurred."""
        return sum(active.occurred for active in self._active if active.fault == fault)

    def pick(self, point: Point, task_id: str | None = None) -> tuple[Fault, ...]:
        """Return the faults that occur at this event, in the order in which they were added."""
        return tuple(active.fault for active in self._active if self._matches(active, point, task_id))

    def _matches(self, active: ActiveFault, point: Point, task_id: str | None) -> bool:
        fault = active.fault
        if fault.on != point or fault.task_id not in {None, task_id}:
            return False
        active.met += 1
        matches = (
            fault.nth in {None, active.met}
            and (fault.times is None or active.occurred < fault.times)
            and (fault.probability >= 1 or self._random.random() < fault.probability)
        )
        active.occurred += matches
        return matches
