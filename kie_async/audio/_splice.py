"""Where and how two pieces of audio are put together, so that nobody hears it. Pure.

A whole result holds its source: the two are put together a little before the cut, where they are the same, exact to
the sample. A continuation begins at the cut.
"""

from __future__ import annotations

import attrs
import numpy as np

from kie_async.audio._align import running_sums
from kie_async.audio._decode import Mono, Samples
from kie_async.audio._loudness import SILENCE, loudness

FADE = 0.02  # seconds; a longer one lets a beat of both be heard
REACH = 1.75  # seconds before the cut in which the splice is sought
_MARGIN = 0.25  # seconds before the cut that are left to the service's own transition
_STEP = 0.01  # seconds from one position to the next
_LOCAL = 0.15  # seconds to each side of the splice that are compared there
_NEAR = 0.002  # seconds by which a drift moves the two against each other within the reach
_SAME = 0.5  # correlation from which on the two are the same sound
MAX_GAIN = 6.0  # dB, between sounds that are not the same


@attrs.frozen
class Excerpt:
    """A stretch of a file.

    Attributes:
        samples: of all its channels.
        first: the position of the first of them in the file.
    """

    samples: Samples
    first: int

    def mono(self, start: int, end: int) -> Mono:
        """The mean of the channels between two positions of the file."""
        part = self.samples[:, max(0, start - self.first) : max(0, end - self.first)]
        return np.asarray(part.mean(axis=0), dtype=np.float32)

    def part(self, start: int, count: int) -> Samples:
        """So many samples from a position of the file on; silence where it has none."""
        found = self.samples[:, max(0, start - self.first) : max(0, start - self.first) + count]
        return np.pad(found, ((0, 0), (0, count - found.shape[1])))


@attrs.frozen
class Splice:
    """Where a result takes over from its source. Positions are samples at one rate.

    Attributes:
        at: in the source, and in the joined file: where the fade begins.
        result_at: the position in the result that is the same moment.
        fade: samples in which the one passes into the other.
        same: how much the two are the same in it, from 0 to 1.
        gain: by which the result is multiplied.
    """

    at: int
    result_at: int
    fade: int
    same: float
    gain: float

    def mixed(self, source: Excerpt, result: Excerpt) -> Samples:
        """The samples of the fade."""
        fall, rise = fades(self.fade, self.same)
        before, after = source.part(self.at, self.fade), result.part(self.result_at, self.fade)
        return np.asarray(before * fall + after * (rise * np.float32(self.gain)), dtype=np.float32)


def fades(count: int, same: float) -> tuple[Mono, Mono]:
    """Return the gains of what ends and of what begins, so that the sum is as loud throughout.

    Of sounds that are the same (1) the gains add up to 1 (equal gain); of others (0) their squares do (equal power).
    """
    turn = (np.arange(count, dtype=np.float32) + 0.5) * np.float32(np.pi / 2 / max(1, count))
    fall, rise = np.cos(turn), np.sin(turn)
    power = np.sqrt(1 + 2 * same * fall * rise)
    return np.asarray(fall / power, dtype=np.float32), np.asarray(rise / power, dtype=np.float32)


def at_cut(source: Excerpt, result: Excerpt, cut: int, rate: int, gain: float) -> Splice:
    """Put a continuation behind the cut: the song fades out behind it, while the continuation begins.

    Args:
        source: reaches from some seconds before the cut to where the fade ends; if it ends at the cut, the continuation
            begins a little before it.
        result: the first seconds of the continuation.
        cut: a position of the source.
        rate: samples a second.
        gain: of the continuation, in dB.
    """
    fade = round(FADE * rate)
    end = source.first + source.samples.shape[1]
    at = max(0, min(cut, end - fade))
    fade = min(fade, end - at)
    same = _likeness(source.part(at, fade), result.part(0, fade))
    return Splice(at, 0, fade, same, _factor(gain))


def where_same(source: Excerpt, result: Excerpt, cut: int, guess: int, rate: int) -> Splice:
    """Find where, before the cut, a result is most like its source.

    Args:
        source: reaches from ``REACH`` before the cut to the cut.
        result: the same in the result, and as much more to each side as the guess may be wrong.
        cut: a position of the source.
        guess: by how much the cut lies later in the result.
        rate: samples a second.
    """
    first, last = max(source.first, cut - round(REACH * rate)), max(cut // 2, cut - round(_MARGIN * rate))
    offset, same = _offset(source, result, (first, last), guess, result.samples.shape[1])
    ours, theirs = source.mono(first, last), result.mono(first + offset, last + offset)
    if same < _SAME:  # another performance: only its levels are alike
        fade = min(round(FADE * rate), cut)
        at = max(cut - fade, -guess)
        gain = _matched(source.part(first, last - first), result.part(first + guess, last - first), rate)
        return Splice(at, at + guess, fade, 0.0, _factor(gain))
    alike = np.sqrt((ours @ ours) / (theirs @ theirs))
    fade = min(round(FADE * rate), last - first)
    error = running_sums(np.square(ours - theirs * alike, dtype=np.float64), fade)
    power = running_sums(np.square(ours, dtype=np.float64), fade)
    step = round(_STEP * rate)
    likeness = (error / np.maximum(power, 1e-3 * np.max(power)))[::step]
    at = first + int(np.argmin(likeness)) * step
    around = round(_LOCAL * rate)
    local = max(first, at - around), min(last, at + around)
    gain = _power(source.part(first, last - first)) / _power(result.part(first + offset, last - first))
    offset, same = _offset(source, result, local, offset, round(_NEAR * rate))
    return Splice(at, at + offset, fade, max(0.0, same), gain**0.5)


def _offset(source: Excerpt, result: Excerpt, stretch: tuple[int, int], guess: int, reach: int) -> tuple[int, float]:
    """Return by how much a stretch of the source lies later in the result, and how much it is the same (-1 to 1)."""
    first, last = stretch
    piece = source.mono(first, last)
    start = max(result.first, first + guess - reach)
    within = result.mono(start, last + guess + reach)
    if not len(piece) or len(within) < len(piece):
        return guess, 0.0
    size = 1 << (len(within) + len(piece)).bit_length()
    found = np.fft.irfft(np.conj(np.fft.rfft(piece, size)) * np.fft.rfft(within, size), size)
    powers = running_sums(np.square(within, dtype=np.float64), len(piece)) * float(piece @ piece)
    likeness = found[: len(powers)] / np.sqrt(np.maximum(powers, 1e-9))
    best = int(np.argmax(likeness))
    return start + best - first, float(likeness[best])


def _power(samples: Samples) -> float:
    """The power over all channels: a mono copy of a stereo sound has less of it than its source."""
    return float(np.square(samples).sum())


def _likeness(ours: Samples, theirs: Samples) -> float:
    """How much two sounds are the same, from 0 to 1."""
    power = _power(ours) * _power(theirs)
    return max(0.0, float((ours * theirs).sum()) / power**0.5) if power else 0.0


def _matched(before: Samples, after: Samples, rate: int) -> float:
    """By how many dB a sound is to be louder, so that it is as loud as the same music before it."""
    ours, theirs = loudness(before, rate), loudness(after, rate)
    return 0.0 if min(ours, theirs) <= SILENCE else float(np.clip(ours - theirs, -MAX_GAIN, MAX_GAIN))


def _factor(decibels: float) -> float:
    return float(10 ** (decibels / 20))
