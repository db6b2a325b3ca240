"""The rows of a report, as values."""

from __future__ import annotations

from pathlib import Path

import attrs

MAX_TEXT = 300  # characters of a text that is shown


@attrs.frozen(kw_only=True)
class Take:
    """A track of a job.

    Attributes:
        number: as the service numbers it, from 1.
        name: of its file in the folder.
        is_there: whether that file exists.
        title: which the service gave it; empty if it does not tell the takes of the row apart.
        track_id: of the service; empty if unknown.
        seconds: how long the service says it is.
        reading: ``whole``, ``continuation`` or ``unclear``, as it was measured; empty if it was not.
        confidence: of that, from 0 to 1.
        seam: the second at which its new part begins, as it was measured.
        is_song: whether it is the whole song that a chain has made.
    """

    number: int
    name: str
    is_there: bool
    title: str = ""
    track_id: str = ""
    seconds: float | None = None
    reading: str = ""
    confidence: float | None = None
    seam: float | None = None
    is_song: bool = False


@attrs.frozen(kw_only=True)
class Source:
    """What a job has extended.

    Attributes:
        file: if it is known and still the same.
        name: as far as it is known.
        audio_id: of the track, if it was one.
    """

    file: Path | None = None
    name: str = ""
    audio_id: str = ""


@attrs.frozen(kw_only=True)
class Place:
    """Which step of a chain a job is, in which each extends a take of the one before.

    Attributes:
        step: its number, from 1. The finished song of a chain has 0.
        steps: how many the chain has.
        chain: the key of the first step.
    """

    step: int = 1
    steps: int = 1
    chain: str = ""


@attrs.frozen(kw_only=True)
class ReportedJob:
    """A row of the report.

    Attributes:
        key: of the job; for a file that belongs to none, its name.
        state: as the results say; empty if they do not.
        error: why nothing was made; empty if something was.
        cut: the second of the source at which the new part begins.
        seams: the seconds at which a new part begins: the cut, or, of a finished song, where its steps meet.
        notice: why it has no seams, if that is to be said.
    """

    key: str
    title: str
    state: str = ""
    error: str = ""
    model: str = ""
    source: Source = Source()
    place: Place = Place()
    cut: float | None = None
    seams: tuple[float, ...] = ()
    notice: str = ""
    takes: tuple[Take, ...] = ()
