"""Extending again and again until a song is long enough: where to cut, how long it has become, when to stop. Pure.

Nobody documents whether a result holds the whole song (its source up to the cut, and what follows) or only what
follows. One that is not longer than its cut can only hold what follows; of any other the whole is the likelier.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, TypeAlias

import attrs

from kie_async._protocol.request_rules import LONGEST, limits_of
from kie_async.errors import Problem
from kie_async.models import Track

MAX_STEPS = 10
BEFORE_END = 0.5  # seconds
_MIN_BEFORE_END = 0.01  # the service is sent hundredths

ChainPart: TypeAlias = Literal["whole", "continuation"]
ChainEnd: TypeAlias = Literal["reached", "max_steps", "nothing_added", "length_unknown"]


@attrs.frozen(kw_only=True)
class ChainGoal:
    """What a chain is to reach.

    Attributes:
        seconds: the length of the song; at most what the model can make.
        max_steps: how often it is extended at most.
        before_end: how many seconds before its end it is cut; None: 0.5 before it, or before it fades out.
    """

    seconds: float
    max_steps: int = MAX_STEPS
    before_end: float | None = None

    def problems(self, model: str) -> Iterator[Problem]:
        """Find what is wrong with it, for a model."""
        limits = limits_of(model)
        most = LONGEST if limits is None else limits.result_seconds
        if not (_is_number(self.seconds) and 0 < self.seconds < LONGEST):
            yield Problem("seconds", f"is {self.seconds!r}", "give a number of seconds above 0")
        elif self.seconds > most:
            yield Problem("seconds", f"is {self.seconds:g} s", f"{model} makes songs of at most {most:g} s")
        if not (_is_number(self.max_steps) and 1 <= self.max_steps < LONGEST and self.max_steps % 1 == 0):
            yield Problem("max_steps", f"is {self.max_steps!r}", "give a number from 1 up")
        if self.before_end is not None and not (
            _is_number(self.before_end) and _MIN_BEFORE_END <= self.before_end < LONGEST
        ):
            yield Problem("before_end", f"is {self.before_end!r}", f"give seconds from {_MIN_BEFORE_END} up")

    def next_cut(self, duration: float, fades_from: float | None = None) -> float:
        """Where a track of this length is cut, in seconds: above 0 and below its length.

        ``fades_from``: where it begins to fade out or is silent, if it does.
        """
        if self.before_end is None and fades_from is not None:
            duration = min(duration, fades_from)
        before_end = BEFORE_END if self.before_end is None else self.before_end
        cut = math.floor((duration - before_end) * 100) / 100
        return cut if cut > 0 else duration / 2

    def end_after(self, before: SongLength | None, now: SongLength | None, steps: int) -> ChainEnd | None:
        """Tell why a chain ends here; None if another step is to be made.

        Args:
            before: the length of the song before the last step, if it is known.
            now: after it, or of the source if no step was made; None if it is not known.
            steps: how many were made.
        """
        if now is not None and now.total >= self.seconds:
            return "reached"
        if steps and now is None:
            return "length_unknown"
        if before is not None and now is not None and now.total <= before.total:
            return "nothing_added"
        return "max_steps" if steps >= self.max_steps else None


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


@attrs.frozen
class SongLength:
    """How long the song of a chain is.

    Attributes:
        duration: of the last track, in seconds.
        begins_at: where that begins in the song: 0 unless it holds a continuation alone.
    """

    duration: float
    begins_at: float = 0.0

    @property
    def total(self) -> float:
        """Of the whole song, in seconds."""
        return self.begins_at + self.duration


def part_by_length(cut: float | None, duration: float | None) -> ChainPart:
    """What a result holds, as far as its length tells; ``cut`` is None where the service has chosen it."""
    return "continuation" if cut is not None and duration is not None and duration <= cut else "whole"


def length_after(
    before: SongLength | None, cut: float | None, duration: float | None, holds: ChainPart
) -> SongLength | None:
    """The length of the song after a step; None if it is not known.

    Args:
        before: its length before that, if it is known.
        cut: where the last track was cut, if that is known.
        duration: of the result, if the service says it.
        holds: what that is.
    """
    if duration is None:
        return None
    begins_at = 0.0 if before is None else before.begins_at
    return SongLength(duration, begins_at + (cut or 0.0) if holds == "continuation" else begins_at)


# ---------------------------------------------------------------- what came of it


@attrs.frozen(kw_only=True)
class ChainStep:
    """One step of a chain.

    Attributes:
        number: from 1.
        task_id: the task that was paid for it.
        tracks: all that it made, the takes.
        track: the take that was chosen, which the next step extends.
        cut: where the track before was cut, in seconds of that; None where the service has chosen.
        fades_from: where the track before begins to fade out or is silent, if it is cut before that for this reason.
        holds: "whole" (the song so far, and what follows) or "continuation" (what follows alone).
        length: of the song after this step, in seconds; None if the service does not say it.
        files: of the tracks, in their order; empty if they were not downloaded.
        credits: what it cost, as far as known.
    """

    number: int
    task_id: str
    tracks: tuple[Track, ...]
    track: Track
    cut: float | None
    fades_from: float | None = None
    holds: ChainPart
    length: float | None
    files: tuple[Path, ...] = ()
    credits: float

    @property
    def file(self) -> Path | None:
        """The file of the chosen take."""
        return self.files[self.tracks.index(self.track)] if self.files else None

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON types."""
        return attrs.asdict(self, recurse=False) | {
            "tracks": [track.to_dict() for track in self.tracks],
            "track": self.track.id,
            "files": [str(path) for path in self.files],
        }


@attrs.frozen(kw_only=True)
class Chain:
    """What ``KieSession.extend_until`` has made.

    Attributes:
        key: its name; with ``-2``, ``-3`` and so on that of its steps in the journal. Its first step may be another
            chain's too.
        seconds: the length that was asked for.
        source_duration: of what was extended, in seconds, if it is known.
        steps: all of them, those of earlier runs too.
        end: why there are no more: "reached"; "max_steps"; "nothing_added": the last step left the song as long as it
            was; "length_unknown": the service does not say how long the chosen take of the last one is.
    """

    key: str
    seconds: float
    source_duration: float | None
    steps: tuple[ChainStep, ...]
    end: ChainEnd

    @property
    def length(self) -> float | None:
        """Of the song, in seconds, if it is known."""
        return self.steps[-1].length if self.steps else self.source_duration

    @property
    def track(self) -> Track | None:
        """The last take that was chosen; None if the source is long enough."""
        return self.steps[-1].track if self.steps else None

    @property
    def credits(self) -> float:
        """What all steps have cost, in this run and before."""
        return sum(step.credits for step in self.steps)

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON types."""
        fields = attrs.asdict(self, recurse=False)
        own = {"length": self.length, "credits": self.credits}
        return fields | own | {"steps": [step.to_dict() for step in self.steps]}
