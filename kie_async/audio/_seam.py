"""Measure the transition from the source to the continuation, compared with what is usual in the song. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import attrs
import numpy as np
from numpy.typing import NDArray

from kie_async.audio._decode import Samples
from kie_async.audio._loudness import HOP, loudness, loudness_of, powers

_MOMENT = 0.4  # seconds of a momentary loudness (BS.1770)
_SELDOM = 0.99  # of the song's own moments are below what is called usual
_MIN_STEP = 2.0  # LU; a smaller step is not flagged
_CLEAR_STEP = 0.5  # LU over what is usual
_MIN_EDGE = 8.0  # a smaller one is no click in any music
_CLEAR_CLICK = 1.5
_MIN_GAP = 30.0  # ms
_FLOOR = 1e-4  # full scale is 1; what is quieter has no edges
_FRAME = 0.005  # seconds in which a level is taken to find a gap
_QUIET = 10 ** (-45 / 20)  # of the level around it
_NEAR = 0.1  # seconds: a gap that is farther from the seam is none of it


@attrs.frozen
class Seam:
    """The transition from the source to the continuation in a joined file, and how it sounds.

    Attributes:
        at: its position in the joined file, in seconds.
        gap: how many milliseconds of silence it has.
        click: its sharpest edge between two samples, as a multiple of the sharp edges elsewhere in the file (99th
            percentile); up to 1 is usual.
        step: by how many LU the file is louder after it than before it (momentary loudness of ITU-R BS.1770).
        usual_step: the step, in LU, that the file rarely exceeds elsewhere (99th percentile).
    """

    at: float
    gap: float
    click: float
    step: float
    usual_step: float

    @property
    def flags(self) -> tuple[str, ...]:
        """Texts that name what sounds conspicuous; empty if nothing does. It may be intended."""
        found = []
        if self.gap >= _MIN_GAP:
            found.append(f"it is silent for {self.gap:.0f} ms")
        if self.click > _CLEAR_CLICK:
            found.append(f"it clicks: an edge is {self.click:.1f} times as sharp as the sharpest ones elsewhere")
        if abs(self.step) > max(_MIN_STEP, self.usual_step + _CLEAR_STEP):
            louder = "louder" if self.step > 0 else "quieter"
            found.append(f"it gets {abs(self.step):.1f} LU {louder} (elsewhere seldom more than {self.usual_step:.1f})")
        return tuple(found)


@attrs.frozen
class Profile:
    """A sound in frames of ``HOP`` seconds.

    Attributes:
        powers: weighted for the ear.
        peaks: the largest samples; full scale is 1.
        edges: how far the largest change of slope stands out of the others.
    """

    powers: NDArray[np.float64]
    peaks: NDArray[np.float32]
    edges: NDArray[np.float32]

    @classmethod
    def of(cls, samples: Samples, rate: int) -> Profile:
        """Measure a stretch; the samples beyond its last whole frame count for the peak of one more frame alone."""
        hop = round(HOP * rate)
        whole = samples.shape[1] // hop
        frames = np.ascontiguousarray(samples[:, : whole * hop]).reshape(len(samples), whole, hop)
        peaks = np.abs(frames).max(axis=(0, 2), initial=0.0)
        rest = np.abs(samples[:, whole * hop :])
        return cls(powers(frames, rate), np.append(peaks, rest.max()) if rest.size else peaks, _edges(frames))

    @classmethod
    def joined(cls, parts: Iterable[Profile]) -> Profile:
        """Put the profiles of stretches that follow each other together."""
        each = [attrs.astuple(part) for part in parts]
        empty = [np.zeros(0)] * 3
        return cls(*(np.concatenate(arrays) for arrays in zip(empty, *each, strict=True)))

    def between(self, first: int, last: int | None) -> Profile:
        """The frames from one to another."""
        return Profile(self.powers[first:last], self.peaks[first:last], self.edges[first:last])


def measure_seam(samples: Samples, seam: int, at: float, rate: int, own: Sequence[Profile]) -> Seam:
    """Measure a seam.

    Args:
        samples: of the joined file, about a second to each side of the seam.
        seam: its position in them.
        at: its position in the joined file, in seconds.
        rate: samples a second.
        own: the profiles of what the joined file is made of, without the seam.
    """
    moment, half = round(_MOMENT * rate), round(HOP / 2 * rate)
    before, behind = samples[:, max(0, seam - moment) : seam], samples[:, seam : seam + moment]
    near = samples[:, max(0, seam - half) : seam + half]
    edge = float(_edges(near[:, None, :])[0])
    return Seam(
        at=at,
        gap=1000 * max(_gaps(samples, seam, rate), default=0.0),
        click=edge / max(_MIN_EDGE, _seldom([each.edges for each in own])),
        step=loudness(behind, rate) - loudness(before, rate),
        usual_step=_seldom([_steps(each.powers, _MOMENT) for each in own]),
    )


def usual_change(power: NDArray[np.float64], seconds: float) -> float:
    """By how many dB the loudness of frames changes, as a rule, from some seconds to the next ones."""
    steps = _steps(power, seconds)
    return float(np.sqrt(np.square(steps).mean())) if len(steps) else 0.0


def _edges(frames: NDArray[np.float32]) -> NDArray[np.float32]:
    """The largest change of slope in each frame (of channels x frames x samples), over the usual one in it."""
    slopes = np.diff(frames, 2, axis=2)
    usual = np.sqrt(np.square(slopes).mean(axis=2))
    return np.asarray((np.abs(slopes).max(axis=2) / np.maximum(usual, _FLOOR)).max(axis=0), dtype=np.float32)


def _steps(power: NDArray[np.float64], seconds: float) -> NDArray[np.float64]:
    """By how much the loudness of each stretch of so many seconds differs from that of the one before it, in LU."""
    count = round(seconds / HOP)
    if len(power) < 2 * count:
        return np.zeros(0)
    stretches = loudness_of(np.lib.stride_tricks.sliding_window_view(power, count).mean(axis=1))
    return np.asarray(np.abs(stretches[count:] - stretches[:-count]))


def _seldom(values: Sequence[NDArray[np.floating]]) -> float:
    """What the values seldom exceed; 0 without any."""
    found = np.concatenate(values)
    return float(np.quantile(found, _SELDOM)) if len(found) else 0.0


def _gaps(samples: Samples, seam: int, rate: int) -> Iterator[float]:
    """The silences that touch the seam, in seconds."""
    size = round(_FRAME * rate)
    count = samples.shape[1] // size
    levels = np.sqrt(np.square(samples[:, : count * size]).reshape(len(samples), count, size).mean(axis=(0, 2)))
    is_quiet = levels < _QUIET * np.quantile(levels, 0.9)
    edges = np.flatnonzero(np.diff(np.concatenate([[False], is_quiet, [False]]).astype(int)))
    for start, end in edges.reshape(-1, 2) * size:
        if start <= seam + _NEAR * rate and end >= seam - _NEAR * rate:
            yield float(end - start) / rate
