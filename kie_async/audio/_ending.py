"""Where a song falls silent at its end."""

from __future__ import annotations

from os import PathLike

from kie_async.audio._verdict import can_compare
from kie_async.files import on_disk

_WINDOW = 30.0  # seconds before the end that are measured
_MOMENT = 1.0  # seconds whose loudness is one value
_QUIETER = 10.0  # LU below the usual moment of these seconds


async def quiet_from(source: str | PathLike[str], end: float) -> float | None:
    """Return from when on a file is much quieter than before, up to ``end`` (seconds); None if it is not quiet there.

    It fades out there, or is silent. None too without the extra ``audio``.

    Raises:
        AudioError, StorageError: as ``open_reader``.
    """
    return await on_disk(_quiet_from, source, end) if can_compare() else None


def _quiet_from(source: str | PathLike[str], end: float) -> float | None:
    import numpy as np  # an extra, and slow to import

    from kie_async.audio._decode import read_samples
    from kie_async.audio._loudness import loudness

    start = max(0.0, end - _WINDOW)
    samples, rate = read_samples(source, start, end)
    size = round(_MOMENT * rate)
    ends = range(samples.shape[1], size - 1, -size)  # the last one first
    moments = np.array([loudness(samples[:, at - size : at], rate) for at in ends] or [0.0])
    last_loud = np.flatnonzero(moments >= np.median(moments) - _QUIETER)[0]
    return start + ends[last_loud] / rate if last_loud else None
