"""Rules of a chain, which extends a song until it is long enough: where to cut, its length, when to stop. Pure.

The service does not document whether a result holds the whole song (the source up to the cut, and the new part) or only
the new part. A result that is not longer than its cut holds only the new part; any other probably holds the whole song.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, TypeAlias

import attrs

from kie_async._protocol.request_rules import LONGEST, limits_of
from kie_async._text import clock
from kie_async.errors import Problem
from kie_async.models import Request, Track

MAX_STEPS = 10
BEFORE_END = 0.5  # seconds
NEARLY = 0.5  # seconds; who asks for 2:40 means about that, and a song is not paid another step for less
_MIN_BEFORE_END = 0.01  # the service is sent hundredths

ChainPart: TypeAlias = Literal["whole", "continuation"]
ChainEnd: TypeAlias = Literal["reached", "max_steps", "nothing_added", "length_unknown"]


@attrs.frozen(kw_only=True)
class ChainGoal:
    """The goal of a chain.

    Attributes:
        seconds: the length to reach, or to miss by less than half a second; at most what the model can make.
        max_steps: the largest number of steps.
        before_end: how many seconds before its end a take is cut; None for 0.5 s before its end or its fade-out.
    """

    seconds: float
    max_steps: int = MAX_STEPS
    before_end: float | None = None

    def problems(self, model: str, length: float | None = None) -> Iterator[Problem]:
        """Yield what is wrong with the goal, for a model, and for a source of this length that it is to cut."""
        limits = limits_of(model)
        most = LONGEST if limits is None else limits.result_seconds
        if not (_is_number(self.seconds) and 0 < self.seconds < LONGEST):
            yield Problem("seconds", f"is {self.seconds!r}", "give a number of seconds above 0")
        elif self.seconds > most:
            yield Problem("seconds", f"is {clock(self.seconds)}", f"{model} makes songs of at most {clock(most)}")
        if not (_is_number(self.max_steps) and 1 <= self.max_steps < LONGEST and self.max_steps % 1 == 0):
            yield Problem("max_steps", f"is {self.max_steps!r}", "give a number from 1 up")
        if self.before_end is not None and not (
            _is_number(self.before_end) and _MIN_BEFORE_END <= self.before_end < LONGEST
        ):
            yield Problem("before_end", f"is {self.before_end!r}", f"give seconds from {_MIN_BEFORE_END} up")
        elif self.before_end is not None and length is not None and self.before_end >= length:
            yield Problem("before_end", f"is {self.before_end:g} s, and the source lasts {clock(length)}", "give less")

    def next_cut(self, duration: float, fades_from: float | None = None) -> float:
        """Return where to cut a track of this length, in seconds: above 0 and below its length.

        ``fades_from``: the position, in seconds, from which it fades out or is silent; None if it does not.
        """
        if self.before_end is None and fades_from is not None:
            duration = min(duration, fades_from)
        before_end = BEFORE_END if self.before_end is None else self.before_end
        cut = math.floor((duration - before_end) * 100) / 100
        return cut if cut > 0 else duration / 2

    def end_after(self, before: SongLength | None, now: SongLength | None, steps: int) -> ChainEnd | None:
        """Return why a chain ends here; None if another step is needed.

        Args:
            before: the length of the song before the last step; None if unknown.
            now: the length after it, or of the source if no step was made; None if unknown.
            steps: how many steps were made.
        """
        if now is not None and now.total > self.seconds - NEARLY:
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
        duration: the length of the last track, in seconds.
        begins_at: where that track begins in the song: 0 unless it holds only the continuation.
    """

    duration: float
    begins_at: float = 0.0

    @property
    def total(self) -> float:
        """The length of the whole song, in seconds."""
        return self.begins_at + self.duration


def part_by_length(cut: float | None, duration: float | None) -> ChainPart:
    """What a result holds, judged by its length alone; ``cut`` is None if the service has chosen it."""
    return "continuation" if cut is not None and duration is not None and duration <= cut else "whole"


def length_after(
    before: SongLength | None, cut: float | None, duration: float | None, holds: ChainPart
) -> SongLength | None:
    """The length of the song after a step; None if unknown.

    Args:
        before: its length before the step; None if unknown.
        cut: where the track before was cut, in seconds; None if unknown.
        duration: the length of the result, in seconds; None if the service does not say it.
        holds: what the result holds.
    """
    if duration is None:
        return None
    begins_at = 0.0 if before is None else before.begins_at
    return SongLength(duration, begins_at + (cut or 0.0) if holds == "continuation" else begins_at)


def take_on_record(tracks: Sequence[Track], following: Request | None) -> Track | None:
    """The take of a step that the request of the next step extends; None if that is not made yet."""
    audio_id = None if following is None else following.fields().get("audio_id")
    return next((track for track in tracks if track.id == audio_id), None)


def take_by_rule(tracks: Sequence[Track], choose: Literal["longest", "first"]) -> Track:
    """The take of a step that is to be extended."""
    return tracks[0] if choose == "first" else max(tracks, key=lambda track: track.duration or 0.0)


# ---------------------------------------------------------------- the result


@attrs.frozen(kw_only=True)
class ChainStep:
    """One step of a chain.

    Attributes:
        number: its number, counted from 1.
        task_id: the task that was paid for it.
        tracks: the takes that it made.
        track: the take that was chosen; the next step extends it.
        cut: where the track before was cut, in seconds; None if the service has chosen.
        fades_from: the position in the track before, in seconds, from which that fades out or is silent, if it was cut
            earlier for this reason; else None.
        holds: "whole" (the song so far, and the new part) or "continuation" (the new part alone).
        length: the length of the song after this step, in seconds; None if unknown.
        files: the files of the tracks, in their order; empty if they were not downloaded.
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
        key: its name. The keys of its steps in the journal are the name with ``-2``, ``-3`` and so on; the first step
            may be shared with another chain.
        seconds: the length that was asked for.
        source_duration: the length of the source, in seconds; None if unknown.
        steps: all steps, including those of earlier runs.
        end: why it ended: "reached", also if less than half a second is missing; "max_steps"; "nothing_added" if the
            last step did not make the song longer; "length_unknown" if the service does not say how long the take
            chosen last is.
    """

    key: str
    seconds: float
    source_duration: float | None
    steps: tuple[ChainStep, ...]
    end: ChainEnd

    @property
    def length(self) -> float | None:
        """The length of the song, in seconds; None if unknown."""
        return self.steps[-1].length if self.steps else self.source_duration

    @property
    def track(self) -> Track | None:
        """The take that was chosen last; None if the source was long enough already."""
        return self.steps[-1].track if self.steps else None

    @property
    def credits(self) -> float:
        """What all steps have cost, including those of earlier runs."""
        return sum(step.credits for step in self.steps)

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON types."""
        fields = attrs.asdict(self, recurse=False)
        own = {"length": self.length, "credits": self.credits}
        return fields | own | {"steps": [step.to_dict() for step in self.steps]}
