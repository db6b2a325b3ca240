"""The work of joining. It blocks.

The source is read once up to the cut, the result once, and both again when the joined file is written: no more than
some seconds of either is held, however long it is.

This module needs the extra ``kie_async[audio]``.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from threading import Event

import attrs
import numpy as np

from kie_async._text import clock
from kie_async.audio._decode import AudioReader, Samples, open_reader
from kie_async.audio._encode import Form, write
from kie_async.audio._join import Joined, Kind, refused
from kie_async.audio._levels import continuation_gain
from kie_async.audio._loudness import HOP
from kie_async.audio._seam import Profile, Seam, measure_seam
from kie_async.audio._splice import FADE, REACH, Excerpt, Splice, at_cut, where_same
from kie_async.audio._verdict import Verdict
from kie_async.errors import AudioError
from kie_async.events import clean

_BLOCK = 1.0  # seconds that are handled at once
_UNSURE, _SURE = 4.0, 0.1  # seconds by which the offset of a whole may be wrong, without a verdict and with one
_HELD = 3.0  # seconds to each side of a cut that are held
_AROUND = 1.0  # seconds to each side of the seam that are judged
_SHORTEST = 0.1  # seconds of a song up to its cut, of a result, or of what is new in it
_ROUNDING = 0.05  # seconds by which a cut may lie beyond the end of its source


class _StoppedError(Exception):
    """The caller went away."""


@attrs.frozen
class Scan:
    """What was found by reading a file once.

    Attributes:
        profile: of all that was read.
        excerpt: what of it is held.
        length: samples that were read.
    """

    profile: Profile
    excerpt: Excerpt
    length: int


@attrs.frozen
class JoinPlan:
    """What a joined file is made of. Positions are samples.

    Attributes:
        splice: where the result takes over.
        ours: the source.
        theirs: the result.
        seam: where the new part begins in the joined file.
        rate: samples a second.
        mixed: the samples of the splice.
    """

    splice: Splice
    ours: Scan
    theirs: Scan
    seam: int
    rate: int
    mixed: Samples = attrs.field(init=False)

    @mixed.default
    def _mix(self) -> Samples:
        return self.splice.mixed(self.ours.excerpt, self.theirs.excerpt)

    @property
    def begins(self) -> int:
        """The first sample of the result that is heard alone."""
        return self.splice.result_at + self.splice.fade

    @property
    def length(self) -> int:
        """Samples of the joined file."""
        return self.splice.at + self.theirs.length - self.splice.result_at

    def loudest(self) -> float:
        """The largest sample of the joined file; full scale is 1."""
        hop = round(HOP * self.rate)
        before = np.max(self.ours.profile.peaks[: -(-self.splice.at // hop)], initial=0.0)
        behind = np.max(self.theirs.profile.peaks[self.begins // hop :], initial=0.0)
        return float(max(before, np.abs(self.mixed).max(initial=0.0), behind * self.splice.gain))

    def judged(self) -> Seam:
        """Judge the seam by what is around it in the joined file, and by the rest of both files."""
        splice, around, hop = self.splice, round(_AROUND * self.rate), round(HOP * self.rate)
        first = max(0, min(self.seam - around, splice.at))
        count = max(0, min(self.seam + around, self.length) - splice.at - splice.fade)
        before = self.ours.excerpt.part(first, splice.at - first)
        behind = self.theirs.excerpt.part(self.begins, count) * np.float32(splice.gain)
        part = np.concatenate([before, self.mixed, behind], axis=1)
        new = -(-(self.seam - splice.at + splice.result_at) // hop)  # the first frame behind the seam
        own = self.ours.profile.between(0, splice.at // hop), self.theirs.profile.between(new, None)
        return measure_seam(part, self.seam - first, self.seam / self.rate, self.rate, own)


@attrs.frozen
class Joining:
    """A join under way.

    Attributes:
        source: the song.
        result: what was made of it.
        out: the file to write.
        form: of that file.
        cut: where the song was cut, in seconds.
        ours: the song up to there.
        stop: set when the caller goes away.
    """

    source: Path
    result: Path
    out: Path
    form: Form
    cut: float
    ours: Scan
    stop: Event

    @classmethod
    def begin(cls, source: Path, result: Path, cut: float, out: Path, stop: Event) -> Joining:
        """Read the song.

        Raises:
            InvalidRequestError, AudioError, StorageError: something cannot be used.
        """
        form = _form(source, result, out)
        ours = _scan_song(source, form, cut, stop)
        if ours.length < (cut - _ROUNDING) * form.rate:
            problem = f"is {clock(cut)}, and {clean(str(source))} ends at {clock(ours.length / form.rate)}"
            raise refused("at", problem, "give a position before its end")
        return cls(source, result, out, form, min(cut, ours.length / form.rate), ours, stop)

    def leaves(self, verdict: Verdict) -> tuple[float, float]:
        """Where a result leaves the song, in seconds of the song and of the result: at the cut if it is not known."""
        if verdict.offset is None or verdict.seam is None:
            return self.cut, self.cut
        slower = 1 + (verdict.drift or 0.0) * 1e-6
        return self.cut + (verdict.seam - verdict.offset - self.cut) / slower, verdict.seam

    def finish(self, kind: Kind, verdict: Verdict) -> Joined:
        """Read the result, and write the joined file.

        Raises:
            FileExistsError: ``out`` is there by now.
            InvalidRequestError: the result is too short to be what it is said to be, or has nothing new.
        """
        plan = self._continued() if kind == "continuation" else self._whole(verdict)
        master = self.form.highest / max(self.form.highest, plan.loudest())
        write(self.out, self._blocks(plan, master), self.form)
        return Joined(
            path=self.out,
            kind=kind,
            confidence=verdict.confidence,
            duration=plan.length / self.form.rate,
            gain=_decibels(plan.splice.gain),
            turned_down=_decibels(1 / master),
            at=self.cut,
            seam=plan.judged(),
        )

    def _continued(self) -> JoinPlan:
        rate = self.form.rate
        theirs = _scan(self.result, self.form, (0.0, _HELD), self.stop)
        gain = continuation_gain(self.ours.profile.powers[: int(self.cut / HOP)], theirs.profile.powers)
        splice = at_cut(self.ours.excerpt, theirs.excerpt, round(self.cut * rate), rate, gain)
        return JoinPlan(splice, self.ours, theirs, splice.at, rate)

    def _whole(self, verdict: Verdict) -> JoinPlan:
        rate, (left, position) = self.form.rate, self.leaves(verdict)
        ours = self.ours if left == self.cut else _scan_song(self.source, self.form, left, self.stop)
        doubt = _UNSURE if verdict.offset is None else _SURE
        held = (position - REACH - doubt, position + max(doubt, _HELD))
        theirs = _scan(self.result, self.form, held, self.stop)
        cut = round(left * rate)
        splice = where_same(ours.excerpt, theirs.excerpt, cut, round((position - left) * rate), rate)
        plan = JoinPlan(splice, ours, theirs, cut, rate)
        if theirs.length <= plan.begins:
            problem = f"is whole, but {clean(str(self.result))} ends at {clock(theirs.length / rate)}, before the cut"
            raise refused("kind", problem, "it can only be the continuation")
        if theirs.length / rate - position < _SHORTEST:
            problem = f"is {clean(str(self.result))}, which follows the song to its own end: nothing new is in it"
            raise refused("result", problem, "give a track that goes on behind the cut")
        return plan

    def _blocks(self, plan: JoinPlan, master: float) -> Iterator[Samples]:
        """All of the joined file."""
        rate = self.form.rate
        with open_reader(self.source) as reader:
            for block in _read(reader, self.form, self.stop, end=plan.splice.at / rate):
                yield block * np.float32(master)
        yield plan.mixed * np.float32(master)
        with open_reader(self.result) as reader:
            for block in _read(reader, self.form, self.stop, start=plan.begins / rate):
                yield block * np.float32(plan.splice.gain * master)


def _form(source: Path, result: Path, out: Path) -> Form:
    with open_reader(source) as ours, open_reader(result) as theirs:
        return Form.fitting(out.suffix.lower(), ours, theirs)


def _scan_song(source: Path, form: Form, cut: float, stop: Event) -> Scan:
    """Read a song up to its cut."""
    held = (cut - max(_HELD, REACH), cut + 2 * FADE)
    return _scan(source, form, held, stop, end=held[1])


def _scan(path: Path, form: Form, held: tuple[float, float], stop: Event, *, end: float | None = None) -> Scan:
    """Read a file up to a time, and hold a part of it (seconds)."""
    first, last = (max(0, round(each * form.rate)) for each in held)
    profiles, kept, at = list[Profile](), list[Samples](), 0
    with open_reader(path) as reader:
        for block in _even(_read(reader, form, stop, end=end), round(_BLOCK * form.rate)):
            profiles.append(Profile.of(block, form.rate))
            kept.append(block[:, max(0, first - at) : max(0, last - at)].copy())  # a view would hold all of the block
            at += block.shape[1]
    if at < _SHORTEST * form.rate:
        raise AudioError(f"{clean(str(path))} has only {at / form.rate:.3f} s to join: give at least {_SHORTEST} s")
    return Scan(Profile.joined(profiles), Excerpt(np.concatenate(kept, axis=1), first), at)


def _read(
    reader: AudioReader, form: Form, stop: Event, *, start: float = 0.0, end: float | None = None
) -> Iterator[Samples]:
    for block in reader.blocks(start, end, rate=form.rate, layout="stereo" if form.channels > 1 else "mono"):
        if stop.is_set():
            raise _StoppedError
        yield block


def _even(blocks: Iterable[Samples], count: int) -> Iterator[Samples]:
    """Bring samples into blocks of one size; the last one is as it comes."""
    held, size = list[Samples](), 0
    for block in blocks:
        held.append(block)
        size += block.shape[1]
        while size >= count:
            whole = np.concatenate(held, axis=1)
            yield whole[:, :count]
            held, size = [whole[:, count:]], size - count
    if size:
        yield np.concatenate(held, axis=1)


def _decibels(gain: float) -> float:
    return 20 * math.log10(gain)
