"""Find where a song begins to fade out, or to be silent, at its end."""

from __future__ import annotations

from os import PathLike
from typing import TYPE_CHECKING, TypeAlias

from kie_async.audio._verdict import can_compare
from kie_async.errors import AudioError
from kie_async.files import on_disk

_WINDOW = 30.0  # seconds before the end that are measured
_MOMENT = 1.0  # seconds whose loudness is one value
_QUIETER = 10.0  # LU below the usual moment of these seconds: an end as quiet as that is a fade, or silence
_LOUD = 4.0  # LU below it at most: what comes before the fade, or is its beginning
_HEARD = 30.0  # LU below what comes before it: quieter moments say nothing of the course of a fade
_EARLIER = 0.7  # of a fade: the most that is added to it, for music that gets quieter before it does not belong to it
_POINTS = 3  # moments; any line leads through fewer
_FLAT = 1e-9  # the least slope of a line

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from kie_async.audio._decode import Samples

    Values: TypeAlias = NDArray[np.float64]


async def quiet_from(source: str | PathLike[str], end: float, *, cut: float | None = None) -> float | None:
    """Return the position in seconds from which a file fades out or is silent up to ``end``.

    It is accurate to 1 s for silence and short fades; for a slow fade it may be some seconds off.

    Args:
        source: the file.
        end: where it ends, in seconds.
        cut: a position before ``end``, in seconds, at which the file may be quiet already; if it is, also only for a
            while, the earlier of the two positions is returned.

    None if the file is not much quieter there than before, if it cannot be decoded (it may be extended
    nevertheless), or if the extra ``audio`` is not installed.

    Raises:
        StorageError: as ``open_reader``.
    """
    if not can_compare():
        return None
    try:
        return await on_disk(_quiet_from, source, end, end if cut is None else cut)
    except AudioError:
        return None


def _quiet_from(source: str | PathLike[str], end: float, cut: float) -> float | None:
    from kie_async.audio._decode import read_samples  # an extra, and slow to import

    ends = {cut, end} if end - cut < _WINDOW else {cut}  # a fade is found only within the last seconds
    first = max(0.0, cut - _WINDOW)
    samples, rate = read_samples(source, first, max(ends))
    found: list[float] = []
    for at in ends:
        start = max(0.0, at - _WINDOW)
        window = slice(round((start - first) * rate), round((at - first) * rate))
        if (begins := _quiet_end(samples[:, window], rate)) is not None:
            found.append(start + begins)
    return min(found, default=None)


def _quiet_end(samples: Samples, rate: int) -> float | None:
    """The position in seconds from which samples fade out or are silent up to their end; None if they do not."""
    import numpy as np

    from kie_async.audio._loudness import SILENCE, loudness

    size = round(_MOMENT * rate)
    ends = range(samples.shape[1], size - 1, -size)  # the last one first
    moments = np.array([loudness(samples[:, at - size : at], rate) for at in ends] or [0.0])
    usual = np.median(moments[moments > SILENCE]) if moments.max() > SILENCE else SILENCE
    if moments[0] >= usual - _QUIETER:
        return None
    last_loud = int(np.argmax(moments >= usual - _LOUD))
    return ends[min(_fade_length(moments, last_loud), len(ends) - 1)] / rate


def _fade_length(moments: Values, last_loud: int) -> int:
    """How many moments a fade takes: a line through their gains, or through their loudness, leads to its beginning.

    The line of a sudden drop to a quiet tail leads into music at its full loudness: there, the drop is the beginning.

    Args:
        moments: the loudness of each, the last one first.
        last_loud: the first of them that is nearly as loud as the others.
    """
    import numpy as np

    fade = np.minimum(moments - np.median(moments[last_loud:]), 0.0)
    heard = np.flatnonzero(fade[: last_loud + 1] > -_HEARD)
    if len(heard) < _POINTS:
        return last_loud
    gains, by_gain = _extend(10 ** (fade / 20), heard, 1.0)
    levels, by_level = _extend(fade, heard, 0.0)
    above_gains = fade - 20 * np.log10(np.maximum(gains, 10 ** (-_HEARD / 20)))
    above_levels = fade - levels
    is_gain = np.square(above_gains[heard]).mean() < np.square(above_levels[heard]).mean()
    above, length = (above_gains, by_gain) if is_gain else (above_levels, by_level)
    if above[last_loud : last_loud + _POINTS].mean() > _LOUD:
        return last_loud
    return round(min(max(length, last_loud), last_loud * (1 + _EARLIER)))


def _extend(values: Values, known: NDArray[np.intp], full: float) -> tuple[Values, float]:
    """Lay a line through the known values, and return its values up to the full one, and where it reaches that."""
    import numpy as np

    at = np.arange(len(values), dtype=np.float64) + 0.5
    slope, offset = np.polyfit(at[known], values[known], 1)
    return np.minimum(offset + slope * at, full), float((full - offset) / max(slope, _FLAT))
