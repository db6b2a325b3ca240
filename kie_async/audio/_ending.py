"""Find where a song begins to fade out, or to be silent, at its end."""

from __future__ import annotations

from os import PathLike

from kie_async.audio._verdict import can_compare
from kie_async.errors import AudioError
from kie_async.files import on_disk

_WINDOW = 30.0  # seconds before the end that are measured
_MOMENT = 1.0  # seconds whose loudness is one value
_QUIETER = 10.0  # LU below the usual moment of these seconds: an end as quiet as that is a fade, or silence
_LOUD = 4.0  # LU below it at most: what comes before the fade


async def quiet_from(source: str | PathLike[str], end: float) -> float | None:
    """Return the position in seconds, accurate to 1 s, from which a file fades out or is silent up to ``end``.

    None if the file is not much quieter at ``end`` than before, if it cannot be decoded (it may be extended
    nevertheless), or if the extra ``audio`` is not installed.

    Raises:
        StorageError: as ``open_reader``.
    """
    if not can_compare():
        return None
    try:
        return await on_disk(_quiet_from, source, end)
    except AudioError:
        return None


def _quiet_from(source: str | PathLike[str], end: float) -> float | None:
    import numpy as np  # an extra, and slow to import

    from kie_async.audio._decode import read_samples
    from kie_async.audio._loudness import SILENCE, loudness

    start = max(0.0, end - _WINDOW)
    samples, rate = read_samples(source, start, end)
    size = round(_MOMENT * rate)
    ends = range(samples.shape[1], size - 1, -size)  # the last one first
    moments = np.array([loudness(samples[:, at - size : at], rate) for at in ends] or [0.0])
    usual = np.median(moments[moments > SILENCE]) if moments.max() > SILENCE else SILENCE
    if moments[0] >= usual - _QUIETER:
        return None
    last_loud = int(np.argmax(moments >= usual - _LOUD))
    return start + ends[last_loud] / rate
