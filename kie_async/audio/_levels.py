"""How loud a file is along its length, in a byte for each frame, and the gain that puts a take beside its song. Pure.

This module needs the extra ``kie_async[audio]``.
"""

from __future__ import annotations

import attrs
import numpy as np
from numpy.typing import NDArray

from kie_async.audio._loudness import HOP, SILENCE, mean_loudness, rough_powers
from kie_async.audio._seam import usual_change
from kie_async.audio._splice import MAX_GAIN

_STRETCHES = (3.0, 15.0)  # seconds before a cut and behind it whose loudness is compared
_OFF_LEVEL = 3.0  # dB by which takes are off in level, as a rule
_LEAST = 0.1  # dB; no music changes less
_PER_LU = 3  # a byte holds 85 LU, in thirds


def continuation_gain(song: NDArray[np.float64], result: NDArray[np.float64]) -> float:
    """Return by how many dB a continuation is to be louder, so that it goes on as loud as its song.

    What differs at the cut may be the music: the more the loudness of the song itself changes from such a stretch to
    the next one, the less of the difference is taken for one of level. Longer stretches tell what a quiet bar on one
    side of the cut hides.

    Args:
        song: the weighted powers of its frames of ``HOP`` seconds up to the cut.
        result: those of the continuation.
    """
    total, weights = 0.0, _OFF_LEVEL**-2
    for number, seconds in enumerate(_STRETCHES):
        count = round(seconds / HOP)
        if number and len(song) < 2 * count:
            continue  # how much it changes is not known
        before, after = mean_loudness(song[-count:]), mean_loudness(result[:count])
        if min(before, after) > SILENCE:
            weight = max(usual_change(song, seconds), _LEAST) ** -2
            total, weights = total + weight * (before - after), weights + weight
    return float(np.clip(total / weights, -MAX_GAIN, MAX_GAIN))


def frame_levels(frames: NDArray[np.float32], rate: int) -> bytes:
    """Return the loudness of frames for a ``LevelProfile``: a byte for each, in thirds of a LU above -70 LUFS.

    Args:
        frames: of a sound (channels x frames x samples), of about 0.1 s; full scale is 1.
        rate: samples a second.
    """
    power = np.nan_to_num(rough_powers(frames, rate), posinf=0.0)
    loud = -0.691 + 10 * np.log10(np.maximum(power, 1e-12))
    return bytes(((loud - SILENCE) * _PER_LU).round().clip(0, 255).astype(np.uint8))


@attrs.frozen
class LevelProfile:
    """How loud a file is along its length.

    Attributes:
        levels: of equal parts of about 0.1 s, by ``frame_levels``.
        seconds: how long the file is.
    """

    levels: bytes
    seconds: float

    @property
    def is_heard(self) -> bool:
        """Whether any of it is known, and not silent."""
        return any(self.levels)

    @property
    def loudness(self) -> float:
        """The loudness of all of it, in LUFS."""
        return mean_loudness(self._powers(0.0, self.seconds))

    def gain_of_continuation(self, result: LevelProfile, cut: float) -> float:
        """Return by how many dB ``join`` would make a continuation louder, to within 1 dB as a rule.

        Args:
            result: the continuation.
            cut: where this song was cut, in seconds.
        """
        return continuation_gain(self._powers(0.0, cut), result._powers(0.0, max(_STRETCHES)))

    def gain_of_whole(self, result: LevelProfile, cut: float, start: float = 0.0) -> float:
        """Return by how many dB a whole song is to be louder, so that what both hold before the cut is as loud.

        Args:
            result: the whole song; it may be another performance.
            cut: where this song was cut, in seconds.
            start: the second of this song at which the result begins; negative if that has more before it.
        """
        first, last = max(0.0, start), min(cut, self.seconds, start + result.seconds)
        ours, theirs = self._powers(first, last), result._powers(first - start, last - start)
        both = (ours[: len(theirs)] > 0) & (theirs[: len(ours)] > 0)  # of a length, but for rounding
        ours, theirs = (power[: len(both)][both] for power in (ours, theirs))
        return mean_loudness(ours) - mean_loudness(theirs)

    def _powers(self, first: float, last: float) -> NDArray[np.float64]:
        """The weighted powers every 0.1 s from one second to another; the file may end earlier."""
        places = (first + HOP * (np.arange(max(0, round((last - first) / HOP))) + 0.5)) / self.seconds
        found = np.frombuffer(self.levels, np.uint8)[(places[places < 1] * len(self.levels)).astype(int)]
        return np.asarray(10 ** ((found / _PER_LU + SILENCE + 0.691) / 10) * (found > 0))
