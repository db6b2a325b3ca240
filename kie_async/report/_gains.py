"""By how many dB each lane of a row is to be louder than its file, so that levels are matched. Pure."""

from __future__ import annotations

from collections.abc import Sequence

import attrs

from kie_async.audio import can_compare
from kie_async.report._peaks import Outline


@attrs.frozen
class RowFile:
    """A file in a row.

    Attributes:
        outline: of the file.
        start: where it begins on the time line of the row, in seconds.
        reading: what it holds, as far as is known.
        is_source: whether it is what was extended.
    """

    outline: Outline
    start: float = 0.0
    reading: str = ""
    is_source: bool = False


def lane_gains(lanes: Sequence[RowFile], cut: float | None) -> list[float | None]:
    """Return the gain of each lane in dB, relative to the others; None where it cannot be told.

    Beside its source, which has 0, a whole take is to be as loud in what both hold of the song, and a continuation as
    loud as ``join`` would make it. Without the source, or without a cut, the lanes are to be as loud as the quietest.
    """
    if not can_compare():
        return [None] * len(lanes)
    from kie_async.audio import LevelProfile  # an extra, and slow to import

    profiles = [LevelProfile(lane.outline.levels, lane.outline.seconds) for lane in lanes]
    both = list(zip(lanes, profiles, strict=True))
    song = next((profile for lane, profile in both if lane.is_source and profile.is_heard), None)
    quietest = min((profile.loudness for profile in profiles if profile.is_heard), default=0.0)

    def gain(lane: RowFile, profile: LevelProfile) -> float:
        if song is None or cut is None:
            return quietest - profile.loudness
        if lane.reading == "continuation":
            return song.gain_of_continuation(profile, cut)
        return song.gain_of_whole(profile, cut, lane.start)

    return [round(gain(lane, profile), 2) if profile.is_heard else None for lane, profile in both]
