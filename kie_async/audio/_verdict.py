"""What the sound tells of a result, as a value, and ``compare``, which reads the files; ``_align`` finds it out."""

from __future__ import annotations

import importlib.util
from os import PathLike
from typing import Literal, TypeAlias

import attrs
from anyio import CapacityLimiter
from anyio.lowlevel import RunVar

from kie_async._protocol.json_values import as_duration
from kie_async._text import clock
from kie_async.errors import AudioError
from kie_async.files import in_turn

_turn: RunVar[CapacityLimiter] = RunVar("kie_async.audio.comparing")  # never makes a download wait

Holds: TypeAlias = Literal["whole", "continuation", "unclear"]


@attrs.frozen
class Verdict:
    """What a result holds, as its sound shows.

    The service does not document what it gives. The length of a result proves only one case: a result that is not
    longer than the kept part of the source holds the continuation alone.

    Attributes:
        kind: "whole" (the source up to the cut, and the new part), "continuation" (the new part alone) or "unclear".
        confidence: how sure ``kind`` is, from 0 to 1; 0 if it is unclear. It is low if the source repeats itself,
            because then a continuation can sound like the source. It is at most 0.9 for a continuation whose cut is
            within the first 8 s, because the part that was kept may be too short to be found.
        offset: for a whole: how many seconds later the cut lies in the result than in the source; negative if earlier.
        drift: for a whole: how much slower it is than the source, in parts per million; negative if faster. None if
            too little of the source is kept to measure it.
        seam: where in the result the new part begins, in seconds; None if that is unclear. For a whole: the cut, or, if
            that is more than half a second from it, the position where the result begins to differ from the source:
            then the cut that was given is probably wrong, or the service went on from another position. If it
            differs before the cut, ``confidence`` is at most 0.6.
    """

    kind: Holds
    confidence: float = 0.0
    offset: float | None = None
    drift: float | None = None
    seam: float | None = None

    def __str__(self) -> str:
        if self.kind == "unclear":
            return "cannot tell whether it is the whole song or the continuation; listen"
        if self.kind == "continuation":
            return "it holds nothing of the song: taken as its continuation"
        where = "" if self.seam is None else f", new from {clock(self.seam)} on"
        return f"the whole song{where} ({self.confidence:.0%} sure)"


def can_compare() -> bool:
    """Tell whether the libraries that read and compare audio are installed (the extra ``audio``)."""
    return all(importlib.util.find_spec(name) is not None for name in ("av", "numpy"))


async def compare(source: str | PathLike[str], result: str | PathLike[str], *, continue_at: float) -> Verdict:
    """Find out by the sound whether a result holds the whole song or only the continuation.

    The work is done in a thread, one comparison at a time; it takes about 0.7 s of CPU for files of 4 minutes.

    Args:
        source: the audio file that was extended.
        result: an audio file that the service made of it.
        continue_at: where the source was cut, in seconds above 0.

    Raises:
        AudioError: a file cannot be decoded as audio, the cut is not within the source, or the extra ``audio`` is not
            installed.
        StorageError: a file cannot be read.

    Cancelling waits for the thread.
    """
    cut = as_duration(continue_at)
    if cut is None:
        raise AudioError(f"continue_at: is {continue_at!r}; give the seconds after which the source was cut")
    if not can_compare():
        raise AudioError('audio cannot be compared: pip install "kie_async[audio]"')
    return await in_turn(_compare, source, result, cut, turn=_turn)


def _compare(source: str | PathLike[str], result: str | PathLike[str], continue_at: float) -> Verdict:
    from kie_async.audio._align import AROUND, RATE, align  # an extra, and slow to import
    from kie_async.audio._decode import read_mono

    start = max(0.0, continue_at - AROUND)
    song, new = (read_mono(path, RATE, start, continue_at + AROUND) for path in (source, result))
    lasts = start + len(song) / RATE
    if lasts < continue_at - 1:
        remedy = "give the position at which it was cut"
        at_most = "" if len(song) else "at most "
        message = f"continue_at: is {clock(continue_at)}, but the source lasts {at_most}{clock(round(lasts, 1))}"
        raise AudioError(f"{message}; {remedy}")
    verdict = align(song, new, continue_at - start)
    return verdict if verdict.kind != "whole" else attrs.evolve(verdict, seam=start + (verdict.seam or 0.0))
