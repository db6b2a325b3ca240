"""Find out by the sound whether a result holds its source, or only what follows it. Pure.

The source up to the cut is cut into anchors of a few seconds. Each is sought in the result by the level of its
frequency bands over time, which no codec, gain or rate changes much. The offset at which all anchors are found together
is then made exact, anchor by anchor, on the samples. The same search in the source itself shows whether it repeats
itself: what is found in it at another place as well may be found in a continuation. Where it is not found as a
whole, ever shorter beginnings of it are sought: a result that holds one was cut sooner than was said.

Measured by ``python -m benchmarks audio`` on pieces that were delayed, amplified, coded, resampled and slowed down.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from itertools import combinations
from typing import TypeAlias

import attrs
import numpy as np
from numpy.typing import NDArray

from kie_async.audio._decode import Mono
from kie_async.audio._verdict import Verdict

Levels: TypeAlias = NDArray[np.float32]  # bands x frames, dB
Scores: TypeAlias = NDArray[np.float64]  # from -1 to 1
Seconds: TypeAlias = NDArray[np.float64]

RATE = 11_025  # samples a second, of what is compared
AROUND = 300.0  # seconds before the cut and behind it that are compared; more would take more memory
_AFTER = 15.0  # seconds beyond the cut in which the source up to there is sought
_HOP = 220  # samples from one frame to the next
_FRAME = 1024  # samples
_PER_SECOND = RATE / _HOP  # frames
_BANDS = 24
_LOWEST, _HIGHEST = 80.0, 4500.0  # Hz; not each codec keeps what lies beyond
_RANGE = 60.0  # dB below the loudest band; what lies below is silence
_QUIET = 2.0  # dB: an anchor in which the bands change by less holds nothing that can be found
_ANCHOR = 5.0  # seconds
_SHORTEST = 1.0  # seconds; a shorter anchor proves nothing
_MAX_ANCHORS = 8
_START = 1.5  # seconds at the start of the source without an anchor; a result may lack them
_EXACT = 0.75  # seconds of an anchor that are compared sample by sample; drift blurs longer ones
_FAINT = 0.1  # of the energy of the loudest of these; what is fainter may be found anywhere
_DRIFT = 0.002  # of the distance from the cut: the most that is sought
_MAX_OFFSET = 5.0  # seconds; a result that holds the source has it near its own place
_NEXT = 0.5  # seconds from a place to the next one that is another
_INAUDIBLE = 1e-4  # of full scale: -80 dB
_SILENT = 1e-6  # of the energy of the loudest stretch: below it nothing is found
_APART = 2.0  # seconds between two places whose offsets tell a drift; closer ones tell the noise
_ENOUGH = 3  # anchors; fewer are sought by their samples, too, and have to be found with more certainty
_NEARER = 0.002  # of the score, for each second that an offset lies nearer: of equal ones the nearest counts
_OFF = 0.5  # seconds from the cut: a result that leaves its source sooner or later was cut there, or nearly there
_LESS = 0.7  # of the source up to the cut, and of that again: a result that was cut sooner may hold so much alone
_SHORTEST_HEAD = 1.8  # seconds; less of a source is found anywhere
_LEFT = 0.6  # how sure a verdict is at most where a result leaves its source before the cut
_SHORT_HEAD = 8.0  # seconds; a cut that was given so early may have been made where less than can be found was kept
_SHORT_HEAD_SURE = 0.9  # how sure a verdict is at most that nothing was kept then


@attrs.frozen
class _Bounds:
    """Scores from which on two sounds are the same, and up to which they are not."""

    same: float
    other: float


_LONG, _SHORT = _Bounds(same=0.75, other=0.6), _Bounds(same=0.9, other=0.8)
_ALIKE, _UNLIKE = 0.95, 0.4  # scores that leave no doubt


@attrs.frozen
class _Sound:
    """What is compared.

    Attributes:
        samples: of one channel at ``RATE``.
        levels: of its bands.
    """

    samples: Mono
    levels: Levels

    @classmethod
    def of(cls, samples: Mono) -> _Sound:
        centred = samples - samples.mean(dtype=np.float32) if len(samples) else samples
        return cls(centred, _levels(centred))

    @property
    def seconds(self) -> float:
        return len(self.samples) / RATE

    @property
    def is_audible(self) -> bool:
        return float(self.samples.std()) > _INAUDIBLE  # two channels may cancel each other out

    def until(self, seconds: float) -> _Sound:
        """Its beginning."""
        samples = self.samples[: round(seconds * RATE)]
        return _Sound(samples, self.levels[:, : max(0, (len(samples) - _FRAME) // _HOP + 1)])


@attrs.frozen
class _Anchor:
    """A piece of the source that is sought in the result.

    Attributes:
        start: its first frame in the source.
        levels: of its bands.
    """

    start: int
    levels: Levels

    @property
    def frames(self) -> int:
        return int(self.levels.shape[1])

    def samples(self, head: Mono) -> Mono:
        return head[self.start * _HOP : (self.start + self.frames) * _HOP]


def align(source: Mono, result: Mono, continue_at: float) -> Verdict:
    """Find out what a result holds.

    Args:
        source: samples of one channel at ``RATE``, from a position up to the cut or beyond, where they show whether it
            repeats itself, and until when the result follows it.
        result: the same of the result, from the same position on.
        continue_at: the cut, in seconds from there.
    """
    ours, theirs = _Sound.of(source), _Sound.of(result)
    head, song = ours.until(continue_at), ours.until(2 * continue_at + _AFTER)
    verdict = _judged(head, song, theirs.until(continue_at + _AFTER), _LONG)
    if verdict.kind == "whole":
        return _checked(verdict, head, ours, theirs)
    length = continue_at * _LESS
    while length >= _SHORTEST_HEAD:
        early = _judged(ours.until(length), song, theirs.until(length + _MAX_OFFSET + _START), _SHORT)
        if early.kind == "whole":
            checked = _checked(early, head, ours, theirs)
            return checked if checked.confidence == _LEFT else Verdict("unclear")  # it is repeated, or goes on
        length *= _LESS
    sure = 1.0 if continue_at > _SHORT_HEAD else _SHORT_HEAD_SURE
    return attrs.evolve(verdict, confidence=min(verdict.confidence, sure))


def _judged(head: _Sound, source: _Sound, result: _Sound, bounds: _Bounds) -> Verdict:
    """Find out whether a result holds a beginning of its source; ``bounds`` are those for many anchors."""
    if result.seconds < head.seconds - _MAX_OFFSET - _START:
        return Verdict("continuation", 1.0, seam=0.0)  # the source has no room in it
    anchors = _anchors(head.levels)
    if not anchors or result.levels.shape[1] <= anchors[0].frames or not result.is_audible:
        return Verdict("unclear")
    bounds = bounds if len(anchors) >= _ENOUGH else _SHORT
    score, offset = _search(anchors, head, result, _near, least=len(anchors) // 2 + 1)
    if score <= bounds.other:
        confidence = 0.5 + 0.5 * min(1.0, (bounds.same - score) / (bounds.same - _UNLIKE))
        return Verdict("continuation", confidence, seam=0.0)
    if score < bounds.same:
        return Verdict("unclear")
    confidence = 0.5 + 0.5 * min(1.0, (score - bounds.other) / (_ALIKE - bounds.other))
    repeated, _ = _search(anchors, head, source, _elsewhere, least=len(anchors) // 3 + 1)
    if repeated > bounds.other:
        first, _ = _search(anchors[-1:], head, result, partial(_around, offset), least=1)
        confidence = min(confidence, max(0.5, 0.5 + 4 * (score - repeated)) if first > bounds.other else 0.5)
    offset, drift = _line(anchors, head.samples, result.samples, offset)
    return Verdict("whole", confidence, offset, drift, head.seconds + offset)


def _checked(whole: Verdict, head: _Sound, source: _Sound, result: _Sound) -> Verdict:
    """Look up where a whole leaves its source: at the cut, unless it is clearly another place."""
    offset, drift = whole.offset or 0.0, (whole.drift or 0.0) * 1e-6
    left = _left(head.seconds, source.levels, result.levels, offset, drift)
    is_early = left < head.seconds
    confidence = min(whole.confidence, _LEFT) if is_early else whole.confidence
    return attrs.evolve(whole, confidence=confidence, seam=left + offset + (left - head.seconds) * drift)


def _left(cut: float, ours: Levels, theirs: Levels, offset: float, drift: float) -> float:
    """Return where a result leaves its source, in seconds of that: the cut, unless it is clearly another place.

    What is before that place is the same in both, and what is behind it is not: the sum, over all frames up to a place,
    of by how much they are the same rather than not is largest there. It is sought before the cut, and then behind it.
    """
    places = np.arange(ours.shape[1])
    there = places + offset * _PER_SECOND + (places - cut * _PER_SECOND) * drift
    places = places[(there >= 0) & (there <= theirs.shape[1] - 1)]
    ours, theirs = _changes(ours[:, places]), _changes(theirs[:, there[places].round().astype(int)])
    products = (ours * theirs).sum(axis=0)
    energy = (np.square(ours) + np.square(theirs)).sum(axis=0) / 2
    same = products - energy / 2 + _BANDS * (_QUIET / 2) ** 2  # where nothing happens both are the same
    until = int(np.searchsorted(places, (cut * RATE - _FRAME) / _HOP, side="right"))  # frames before the cut
    last = int(np.argmax(np.cumsum(same[:until])))
    left = float(places[last] * _HOP + _FRAME) / RATE  # the end of the last frame that is the same
    if left < cut - _OFF and products[last:until].sum() < _UNLIKE * energy[last:until].sum():
        return left
    last = until - 1 + int(np.argmax(np.cumsum(same[until - 1 :])))
    left = float(places[last] * _HOP + _FRAME) / RATE
    is_late = left > cut + _OFF and products[until:last].sum() > _LONG.same * energy[until:last].sum()
    return left if is_late else cut


def _changes(levels: Levels) -> Levels:
    """Return levels over their mean in the second around them; in a longer one, what is new would reach far back."""
    half = int(_PER_SECOND / 2)
    padded = np.pad(levels, ((0, 0), (half, half)), mode="symmetric")
    return np.asarray(levels - running_sums(padded, 2 * half + 1) / (2 * half + 1), dtype=np.float32)


def _search(
    anchors: Sequence[_Anchor], head: _Sound, sound: _Sound, weight: Callable[[Seconds], Scores], *, least: int
) -> tuple[float, float]:
    """Return how well the anchors are found in a sound, from -1 to 1, and at which offset, in seconds.

    Args:
        anchors: of the source.
        head: the source up to the cut.
        sound: where they are sought.
        weight: what each offset adds to its score; minus infinity excludes it.
        least: anchors that must have room at an offset.
    """
    offsets, scores = _band_scores(anchors, sound.levels, len(head.samples) // _HOP, least=least)
    found = [_best(offsets, scores, weight)]
    if len(anchors) < _ENOUGH:
        scores = _sample_scores(anchors[0].samples(head.samples), sound.samples)
        found.append(_best((np.arange(len(scores)) - anchors[0].start * _HOP) / RATE, scores, weight))
    return max(found)


def _best(offsets: Seconds, scores: Scores, weight: Callable[[Seconds], Scores]) -> tuple[float, float]:
    weighted = scores + weight(offsets)
    best = int(np.argmax(weighted))
    return (float(scores[best]), float(offsets[best])) if np.isfinite(weighted[best]) else (-1.0, 0.0)


def _near(offsets: Seconds) -> Scores:
    return np.where(np.abs(offsets) <= _MAX_OFFSET, -_NEARER * np.abs(offsets), -np.inf)


def _around(offset: float, offsets: Seconds) -> Scores:
    return np.where(np.abs(offsets - offset) <= _NEXT, 0.0, -np.inf)


def _elsewhere(offsets: Seconds) -> Scores:
    return np.where(np.abs(offsets) >= _NEXT, 0.0, -np.inf)


# ---------------------------------------------------------------- by the levels of the bands


def _levels(sound: Mono) -> Levels:
    """The level of each band in dB, in each frame."""
    if len(sound) < _FRAME:
        return np.zeros((_BANDS, 0), dtype=np.float32)
    edges = np.unique((np.geomspace(_LOWEST, _HIGHEST, _BANDS + 1) * _FRAME / RATE).round().astype(int))
    frames = np.lib.stride_tricks.sliding_window_view(sound, _FRAME)[::_HOP]
    window = np.hanning(_FRAME).astype(np.float32)
    blocks = []
    for first in range(0, len(frames), 1024):
        spectrum = np.fft.rfft(frames[first : first + 1024] * window)
        power = np.square(spectrum.real) + np.square(spectrum.imag)
        blocks.append(np.add.reduceat(power, edges, axis=1)[:, :-1])
    decibels = 10 * np.log10(np.concatenate(blocks) + 1e-9)
    return np.ascontiguousarray(np.maximum(decibels, decibels.max() - _RANGE).T, dtype=np.float32)


def _anchors(levels: Levels) -> list[_Anchor]:
    """Return the anchors of a source, the last first, without those in which nothing happens."""
    first = min(int(_START * _PER_SECOND), levels.shape[1] // 4)
    room = levels.shape[1] - first
    length = min(int(_ANCHOR * _PER_SECOND), room)
    if length < _SHORTEST * _PER_SECOND:
        return []
    count = min(_MAX_ANCHORS, -(-room // length))
    starts = np.linspace(levels.shape[1] - length, first, count).round().astype(int)
    anchors = [_Anchor(int(start), levels[:, start : start + length]) for start in starts]
    return [anchor for anchor in anchors if anchor.levels.std(axis=1).mean() > _QUIET]


def _band_scores(anchors: Sequence[_Anchor], within: Levels, cut: int, *, least: int) -> tuple[Seconds, Scores]:
    """Return offsets, and how well the anchors are found at each, in the mean: from -1 to 1.

    At an offset at which fewer than ``least`` anchors have room the score is -1.
    """
    before = max(anchor.start for anchor in anchors)
    sums = np.zeros(before + within.shape[1])
    counts = np.zeros(before + within.shape[1], dtype=int)
    for anchor, found in zip(anchors, _correlations(anchors, within), strict=True):
        slack = round(max(0, cut - anchor.start) * _DRIFT)
        padded = np.pad(found, slack, constant_values=-1.0)
        first = before - anchor.start
        sums[first : first + len(found)] += np.lib.stride_tricks.sliding_window_view(padded, 2 * slack + 1).max(axis=1)
        counts[first : first + len(found)] += 1
    scores = np.where(counts >= least, sums / np.maximum(counts, 1), -1.0)
    return (np.arange(len(scores)) - before) / _PER_SECOND, scores


def _correlations(anchors: Sequence[_Anchor], within: Levels) -> list[Scores]:
    """Return the normalised correlation of each anchor with each place, from -1 to 1."""
    length = anchors[0].frames
    size = 1 << (within.shape[1] + length).bit_length()
    spectrum = np.fft.rfft(within, size)
    sums = running_sums(within, length)
    energy = (
        running_sums(np.square(within, dtype=np.float64).sum(axis=0), length) - np.square(sums).sum(axis=0) / length
    )
    energy = np.maximum(energy, length * len(within) * (_QUIET / 2) ** 2)  # where nothing happens nothing is found
    found = []
    for anchor in anchors:
        centred = anchor.levels - anchor.levels.mean(axis=1, keepdims=True)
        product = (np.conj(np.fft.rfft(centred, size)) * spectrum).sum(axis=0)
        dots = np.fft.irfft(product, size)[: len(energy)]
        found.append(dots / np.sqrt(np.square(centred).sum() * energy))
    return found


def running_sums(values: NDArray[np.floating], length: int) -> NDArray[np.float64]:
    """The sum of each stretch of so many values along the last axis."""
    sums = np.cumsum(values, axis=-1, dtype=np.float64)
    sums = np.concatenate([np.zeros_like(sums[..., :1]), sums], axis=-1)
    return np.asarray(sums[..., length:] - sums[..., :-length])


# ---------------------------------------------------------------- on the samples


def _line(anchors: Sequence[_Anchor], head: Mono, result: Mono, offset: float) -> tuple[float, float | None]:
    """Draw a line through the exact offsets of the anchors.

    Returns:
        Its height at the cut, in seconds, and its slope in parts per million; None where no two anchors tell it.
    """
    exact = [_exact(anchor, head, result, offset) for anchor in anchors]
    points = [(place, at) for place, at, same in exact if same > _LONG.other]
    slopes = [(b - d) / (a - c) for (a, b), (c, d) in combinations(points, 2) if abs(a - c) >= _APART]
    drift = float(np.median(slopes)) if slopes else 0.0  # a median, for a few may be found at a wrong place
    height = float(np.median([at - place * drift for place, at in points])) if points else offset
    return height, drift * 1e6 if slopes else None


def _exact(anchor: _Anchor, head: Mono, result: Mono, offset: float) -> tuple[float, float, float]:
    """Find the middle of an anchor by its samples, or its loudest stretch if the middle is faint.

    Returns:
        Its distance from the cut in seconds (negative), its offset in seconds, and how much it is the same, to 1.
    """
    piece = anchor.samples(head)
    length = min(len(piece), round(_EXACT * RATE))
    energy, middle = running_sums(np.square(piece), length), (len(piece) - length) // 2
    is_faint = energy[middle] < _FAINT * np.max(energy)
    first = anchor.start * _HOP + (int(np.argmax(energy)) if is_faint else middle)
    piece = head[first : first + length]
    reach = round(2 * _HOP + _DRIFT * (len(head) - first))
    start = first + round(offset * RATE) - reach
    around = np.zeros(length + 2 * reach, dtype=np.float32)
    low = max(0, start)
    high = max(low, min(len(result), start + len(around)))
    around[low - start : high - start] = result[low:high]
    found = np.abs(_sample_scores(piece, around))  # its polarity may be the other one
    best = int(np.argmax(found))
    return (first - len(head)) / RATE, (start + best - first) / RATE, float(found[best])


def _sample_scores(piece: NDArray[np.floating], sound: NDArray[np.floating]) -> Scores:
    """Return the normalised correlation of a piece with each place of a sound, from -1 to 1."""
    piece, sound = piece.astype(np.float64), sound.astype(np.float64)
    size = 1 << (len(sound) + len(piece)).bit_length()
    product = np.conj(np.fft.rfft(piece, size)) * np.fft.rfft(sound, size)
    energy = running_sums(np.square(sound), len(piece))
    energy = np.maximum(energy, _SILENT * np.max(energy) + np.finfo(float).tiny) * (np.square(piece).sum() + 1e-9)
    return np.asarray(np.fft.irfft(product, size)[: len(energy)] / np.sqrt(energy))
