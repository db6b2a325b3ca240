"""Pairs of a source and a result of which is known what the result holds: seeded, of songs made up or given."""

from __future__ import annotations

import math
import wave
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Literal, TypeAlias

import attrs
import av
import numpy as np
from av.audio.frame import AudioFrame
from av.audio.resampler import AudioResampler
from numpy.typing import NDArray

RATE = 22_050
Mono: TypeAlias = NDArray[np.float32]
Song: TypeAlias = Callable[[Random, float], Mono]  # makes or finds one that lasts at least so many seconds

KINDS = ("plain", "plain", "plain", "plain", "plain", "plain", "loop", "short", "early cut", "silence")


@attrs.frozen
class Case:
    """A pair.

    Attributes:
        kind: what is difficult about it.
        truth: what the result holds.
        continue_at: the cut, in seconds of the source.
        offset: by how many seconds the cut lies later in the result, if that is whole.
        drift: the part by which the result is slower.
        goes_on: whether the new part is what follows the cut in the source.
        source: samples of one channel at ``RATE``, and so those of the result.
        rate: of the file of the result.
        bit_rate: the same.
    """

    seed: int
    kind: str
    truth: Literal["whole", "continuation"]
    continue_at: float
    offset: float
    drift: float
    goes_on: bool
    source: Mono = attrs.field(repr=False)
    result: Mono = attrs.field(repr=False)
    rate: int
    bit_rate: int

    def write(self, folder: Path) -> tuple[Path, Path]:
        """Write the source as wav and the result as mp3."""
        source, result = folder / f"{self.seed}.wav", folder / f"{self.seed}.mp3"
        write_wav(source, self.source)
        write_mp3(result, self.result, rate=self.rate, bit_rate=self.bit_rate)
        return source, result


def make_case(seed: int, song: Song | None = None, longest: float = 30.0) -> Case:
    """Make the pair of a seed.

    Args:
        seed: the same seed gives the same pair of the same songs.
        song: where songs come from; None: they are made up.
        longest: seconds up to which the cut may lie, and which the new part may last.
    """
    chance, song = Random(seed), song or made_up_song  # noqa: S311  # chance, not secrecy
    kind = chance.choice(KINDS)
    cut_between = {"short": (2.0, 5.0), "early cut": (1.5, 3.0)}.get(kind, (8.0, longest))
    continue_at = round(chance.uniform(*cut_between), 2)
    cut, added = round(continue_at * RATE), chance.uniform(8.0, longest)
    source = song(chance, continue_at + added)
    if kind == "loop":
        length = round(chance.uniform(1.5, 12.0) * RATE)
        source = np.tile(source[:length], math.ceil((continue_at + added) * RATE / length))
    if kind == "silence":
        for _ in range(chance.randrange(1, 4)):
            start = chance.randrange(cut)
            source[start : start + round(chance.uniform(1.0, continue_at / 2) * RATE)] = 0.0
    goes_on = chance.random() < 0.5  # the source itself goes on
    new = (source[cut:] if goes_on else song(chance, added))[: round(added * RATE)]
    truth: Literal["whole", "continuation"] = "whole" if chance.random() < 0.5 else "continuation"
    result = np.concatenate([source[:cut], new]) if truth == "whole" else new
    delay = chance.choice([0.0, 0.0, chance.uniform(-0.5, 1.0), chance.uniform(0.0, 3.5)])
    shift = round((max(0.0, delay) if kind in {"short", "early cut"} else delay) * RATE)
    result = np.concatenate([np.zeros(max(0, shift), dtype=np.float32), result[max(0, -shift) :]])
    drift = chance.choice([0.0, 0.0, 0.0, chance.uniform(-1e-3, 1e-3)])
    result = np.clip(_stretched(result, 1 + drift) * np.float32(10 ** (chance.uniform(-12, 3) / 20)), -1, 1)
    rate = chance.choice([22_050, 44_100, 48_000])
    offset = shift / RATE + drift * (continue_at + shift / RATE)
    bit_rate = 64_000 if rate == RATE else chance.choice([48_000, 64_000, 96_000, 128_000])
    return Case(seed, kind, truth, continue_at, offset, drift, goes_on, source, result, rate, bit_rate)


def made_up_song(chance: Random, seconds: float) -> Mono:
    """Make up a song: chords, a tune, a bass and drums, in bars of which none repeats another exactly."""
    sound = np.zeros(math.ceil(seconds * RATE), dtype=np.float32)
    noise = np.random.default_rng(chance.randrange(1 << 30))
    beat, root, step = chance.uniform(0.3, 0.6), chance.uniform(110.0, 220.0), 0
    scale = [2 ** (semitones / 12) for semitones in (0, 2, 4, 5, 7, 9, 11, 12)]
    while (start := round(step * beat * RATE)) < len(sound):
        if step % 4 == 0:
            chord = chance.choice((0, 3, 4))
            for third in (0, 2, 4):
                _add(sound, start, _note(root * scale[(chord + third) % 8], 4 * beat, 0.6, chance), 0.1)
            _add(sound, start, _note(root / 2 * scale[chord], 4 * beat, 1.0, chance), 0.2)
        if chance.random() < 0.8:
            _add(sound, start, _note(2 * root * chance.choice(scale), 1.5 * beat, 3.0, chance), 0.25)
        drum = noise.standard_normal(round(0.1 * RATE)).astype(np.float32)
        _add(sound, start, drum * np.linspace(1, 0, len(drum), dtype=np.float32) ** 3, chance.choice((0.02, 0.08)))
        step += 1
    return sound


def _note(pitch: float, seconds: float, decay: float, chance: Random) -> Mono:
    time = np.arange(round(seconds * RATE), dtype=np.float32) / RATE
    pitch *= 1 + chance.uniform(-0.005, 0.005)
    sound = sum(np.sin(2 * np.pi * pitch * part * time) / part for part in range(1, 6)) * np.exp(-decay * time)
    return np.asarray(sound * np.minimum(1.0, time[::-1] / 0.02), dtype=np.float32)


def _add(sound: Mono, start: int, note: Mono, level: float) -> None:
    note = note[: len(sound) - start]
    sound[start : start + len(note)] += note * np.float32(level)


def _stretched(sound: Mono, factor: float) -> Mono:
    if factor == 1:
        return sound
    places = np.arange(int(len(sound) * factor)) / factor
    return np.interp(places, np.arange(len(sound)), sound).astype(np.float32)


def write_wav(path: Path, sound: Mono) -> None:
    """Write 16 bits of one channel at ``RATE``."""
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(RATE)
        file.writeframes((np.clip(sound, -1, 1) * 32767).astype("<i2").tobytes())


def write_mp3(path: Path, sound: Mono, *, rate: int, bit_rate: int, layout: str = "mono") -> None:
    """Write an mp3, at another rate."""
    with av.open(str(path), "w", format="mp3") as container:
        stream = container.add_stream("libmp3lame", rate=rate, layout=layout)
        stream.bit_rate = bit_rate
        frame = AudioFrame.from_ndarray(np.ascontiguousarray(sound[None, :]), format="flt", layout="mono")
        frame.sample_rate, frame.pts = RATE, 0
        resampler = AudioResampler(format="fltp", layout=layout, rate=rate)
        for source in (frame, None):
            for part in resampler.resample(source):
                part.pts = None
                container.mux(stream.encode(part))
        container.mux(stream.encode(None))
