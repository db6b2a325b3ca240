"""Notes, chords and songs as arrays of samples. Pure: the same arguments give the same sound.

A sound is an array of shape (samples, 2), float32, from -1 to 1.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

RATE = 44_100
Sound: TypeAlias = NDArray[np.float32]
Note: TypeAlias = NDArray[np.float32]  # one channel

A4 = 440.0
MAJOR = (0, 2, 4, 5, 7, 9, 11)
PROGRESSIONS = ((0, 4, 5, 3), (5, 3, 0, 4), (0, 5, 3, 4), (0, 3, 4, 3))  # degrees of the scale, one chord a bar
_PARTIALS = {"pad": (1.0, 0.35, 0.2, 0.08), "pluck": (1.0, 0.5, 0.3, 0.18, 0.1), "bass": (1.0, 0.25)}

# The tune of the demo: degrees of the scale over two bars of eight quavers each; None holds the note before.
_TUNE: tuple[int | None, ...] = (
    4, None, 5, 4, 2, None, 0, None, 1, None, 2, 1, -1, None, None, None,
    0, None, 2, 4, 5, None, 4, 2, 3, None, 5, 4, 3, 2, 1, None,
)  # fmt: skip


def samples(seconds: float) -> int:
    """The number of samples in a time."""
    return round(seconds * RATE)


def frequency(root: int, degree: int, octave: int = 0) -> float:
    """The frequency of a degree of the major scale on a root (semitones above C)."""
    octaves, step = divmod(degree, len(MAJOR))
    semitones = root - 9 + MAJOR[step] + 12 * (octaves + octave)
    return float(A4 * 2 ** (semitones / 12))


def silence(seconds: float) -> Sound:
    """A time without sound."""
    return np.zeros((samples(seconds), 2), dtype=np.float32)


def tone(pitch: float, seconds: float, voice: str) -> Note:
    """One note, in one channel. A pad swells; the others are struck and die away."""
    moments = np.arange(samples(seconds), dtype=np.float32) / np.float32(RATE)
    wave = np.zeros_like(moments)
    for number, level in enumerate(_PARTIALS[voice], start=1):
        wave += np.float32(level) * np.sin(np.float32(2 * np.pi * pitch * number) * moments)
    edge = min(seconds / 2, 0.3 if voice == "pad" else 0.01)
    swell = np.minimum(1.0, np.minimum(moments, seconds - moments) / edge)
    decay = 1.0 if voice == "pad" else np.exp(-moments * (2.0 if voice == "bass" else 3.5))
    note: Note = (wave * swell * decay / sum(_PARTIALS[voice])).astype(np.float32)
    return note


def add(sound: Sound, note: Note, at: float, *, level: float, side: float = 0.0) -> None:
    """Lay a note over a sound from a moment on; ``side`` is -1 (left) to 1 (right)."""
    start = samples(at)
    room = min(len(note), len(sound) - start)
    if room > 0:
        sound[start : start + room, 0] += note[:room] * np.float32(level * (1 - max(0.0, side) * 0.6))
        sound[start : start + room, 1] += note[:room] * np.float32(level * (1 + min(0.0, side) * 0.6))


def _drum(seconds: float = 0.18) -> Note:
    moments = np.arange(samples(seconds), dtype=np.float32) / np.float32(RATE)
    drop = 2 * np.pi * (45 * moments + 6 * (1 - np.exp(-moments * 30)))
    note: Note = (np.sin(drop) * np.exp(-moments * 18)).astype(np.float32)
    return note


def accompaniment(seconds: float, *, root: int, bar: float, chords: Sequence[int], lively: bool) -> Sound:
    """Chords, a bass, and (lively) broken chords with a drum."""
    sound = silence(seconds)
    for number in range(int(seconds / bar) + 1):
        degree, at = chords[number % len(chords)], number * bar
        for place, third in enumerate((0, 2, 4)):
            pad = tone(frequency(root, degree + third), bar * 1.05, "pad")
            add(sound, pad, at, level=0.10, side=place - 1)
        add(sound, tone(frequency(root, degree, -2), bar, "bass"), at, level=0.28)
        for step in range(8 if lively else 0):
            pitch = frequency(root, degree + (0, 2, 4, 7, 4, 2, 4, 2)[step], 1)
            add(sound, tone(pitch, bar / 4, "pluck"), at + step * bar / 8, level=0.14, side=(-1) ** step * 0.7)
            if step % 4 == 0:
                add(sound, _drum(), at + step * bar / 8, level=0.35)
    return sound


def _melody(sound: Sound, tune: Iterable[int | None], *, root: int, quaver: float, start: float) -> None:
    notes: list[tuple[int, float, float]] = []  # degree, moment, length
    for place, degree in enumerate(tune):
        if degree is None:
            held, at, length = notes.pop()
            notes.append((held, at, length + quaver))
        else:
            notes.append((degree, start + place * quaver, quaver))
    for held, at, length in notes:
        add(sound, tone(frequency(root, held, 1), length * 1.6, "pluck"), at, level=0.30, side=0.15)


def demo_sound() -> Sound:
    """A tune of some 25 seconds over four chords, with an ending."""
    bar, root = 2.8, 0
    seconds = 8 * bar + 3.0
    sound = accompaniment(8 * bar, root=root, bar=bar, chords=PROGRESSIONS[0], lively=False)
    sound = np.concatenate([sound, silence(3.0)])
    for start in (0.0, 4 * bar):
        _melody(sound, _TUNE, root=root, quaver=bar / 8, start=start)
    for third in (0, 2, 4, 7):
        add(sound, tone(frequency(root, third), 3.0, "pluck"), 8 * bar, level=0.25)
    return finished(sound, seconds)


def unknown_sound(seconds: float, seed: str) -> Sound:
    """The beginning of a song that stands for one that nobody has: the same however much of it is asked for."""
    chance = random.Random(seed)  # noqa: S311  # chance, not secrecy
    root, bar = chance.randrange(12), chance.uniform(2.2, 3.2)
    sound = accompaniment(seconds, root=root, bar=bar, chords=chance.choice(PROGRESSIONS), lively=True)
    tune = [chance.choice((0, 1, 2, 4, 5, 7)) if place % 2 == 0 else None for place in range(16)]
    for number in range(int(seconds / (2 * bar)) + 1):
        _melody(sound, tune, root=root, quaver=bar / 8, start=2 * number * bar)
    return np.asarray(np.tanh(sound), dtype=np.float32)


def finished(sound: Sound, seconds: float) -> Sound:
    """A sound of exactly that length, not too loud, that fades out."""
    whole = np.zeros((samples(seconds), 2), dtype=np.float32)
    whole[: len(sound)] = sound[: len(whole)]
    peak = float(np.abs(whole).max(initial=0.0))
    if peak > 0.95:  # noqa: PLR2004  # full scale is 1; an encoder overshoots a little
        whole *= np.float32(0.95 / peak)
    fade_out(whole, 1.5)
    return whole


def fade_out(sound: Sound, seconds: float) -> None:
    """Let the end of a sound die away."""
    length = min(len(sound), samples(seconds))
    sound[len(sound) - length :] *= np.linspace(1, 0, length, dtype=np.float32)[:, np.newaxis]


# ---------------------------------------------------------------- going on

_CROSS = 0.25  # seconds in which one piece passes into the next
_MATERIAL = 8.0  # seconds before the cut that the continuation is made of
_MIN = 1.0  # seconds; with less there is nothing to make variations of


def keynote(sound: Sound) -> int:
    """The pitch class (semitones above C) that sounds most, so that what is added fits."""
    spectrum = np.abs(np.fft.rfft(sound.mean(axis=1)))
    pitches = np.fft.rfftfreq(len(sound), 1 / RATE)
    heard = (pitches > 60) & (pitches < 2000)  # noqa: PLR2004  # where chords are
    if not heard.any():
        return 0
    classes = np.round(12 * np.log2(pitches[heard] / A4) + 9).astype(int) % 12
    return int(np.argmax(np.bincount(classes, weights=spectrum[heard] ** 2, minlength=12)))


def muffled(sound: Sound) -> Sound:
    """A sound as if heard through a wall."""
    spectrum = np.fft.rfft(sound, axis=0)
    pitches = np.fft.rfftfreq(len(sound), 1 / RATE)
    spectrum *= (1 / (1 + (pitches / 900) ** 4))[:, np.newaxis]
    return np.fft.irfft(spectrum, n=len(sound), axis=0).astype(np.float32)


def shifted(sound: Sound, ratio: float) -> Sound:
    """A sound higher (and shorter) or lower (and longer), as a tape played faster or slower."""
    places = np.arange(0, len(sound) - 1, ratio)
    known = np.arange(len(sound))
    return np.stack([np.interp(places, known, sound[:, side]) for side in (0, 1)], axis=1).astype(np.float32)


def joined(pieces: Iterable[Sound]) -> Sound:
    """Pieces one after the other, each passing into the next."""
    cross = samples(_CROSS)
    rise = np.sin(np.linspace(0, np.pi / 2, cross, dtype=np.float32))[:, np.newaxis]
    whole: Sound | None = None
    for piece in pieces:
        if whole is None:
            whole = piece
            continue
        seam = whole[-cross:] * rise[::-1] + piece[:cross] * rise
        whole = np.concatenate([whole[:-cross], seam, piece[cross:]])
    return silence(0) if whole is None else whole


def variations(material: Sound, seconds: float, take: int) -> Sound:
    """Material repeated with changes, at least that long: the first take sings it on, the second turns it round."""
    half = material[len(material) // 2 :]
    orders = (
        (material, muffled(material), shifted(half, 4 / 3), half, shifted(material, 3 / 4)),
        (material[::-1], half, shifted(half, 3 / 2), muffled(half[::-1]), shifted(material, 2 / 3)),
    )
    pieces: list[Sound] = []
    length = 0.0
    while length < seconds:
        piece = orders[take % 2][len(pieces) % 5]
        pieces.append(piece)
        length += len(piece) / RATE - _CROSS
    return joined(pieces)


def going_on(head: Sound, after: Sound, seconds: float, *, take: int, seed: str) -> Sound:
    """What follows ``head``: made of its last bars, with something played over it. ``after`` fades away under it."""
    chance = random.Random(f"{seed} {take}")  # noqa: S311  # chance, not secrecy
    material = head[-samples(_MATERIAL) :]
    layer = accompaniment(
        seconds,
        root=keynote(material) if len(material) else 0,
        bar=chance.uniform(2.0, 2.6) if take else chance.uniform(2.8, 3.4),
        chords=PROGRESSIONS[(take + chance.randrange(2) * 2) % len(PROGRESSIONS)],
        lively=bool(take),
    )
    loudness = float(np.sqrt(np.mean(np.square(material)))) if len(material) else 0.0
    sound = layer * np.float32(max(0.35, min(1.0, 4 * loudness)))
    if len(material) >= samples(_MIN):
        sound = sound + np.float32(0.8) * variations(material, seconds + _CROSS, take)[: len(layer)]
    sound = np.asarray(np.tanh(sound), dtype=np.float32)
    cross = min(len(after), len(sound), samples(_CROSS))
    fall = np.cos(np.linspace(0, np.pi / 2, cross, dtype=np.float32))[:, np.newaxis]
    sound[:cross] = sound[:cross] * fall[::-1] + after[:cross] * fall
    fade_out(sound, 3.0)
    return sound
