"""Makes and reads audio: songs out of notes, what goes on after a cut, and the codec. Pure.

A sound is an array of samples in one channel, float32, from -1 to 1. No bar repeats exactly, so that a place in a song
can be found by its sound: chords and tunes are drawn at random, and each note is a little out of tune and out of time.
The same arguments give the same sound.

Any format is read; what is written is an mp3 that is cheap to make: one channel, 22 kHz, the fastest setting of the
encoder, which takes most of the time.

This module needs the extra ``kie_async[audio]``; ``_files`` loads it when audio is first asked for.
"""

from __future__ import annotations

import io
import wave
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from itertools import chain
from random import Random
from types import MappingProxyType
from typing import TypeAlias

import attrs
import av
import numpy as np
from av.audio.frame import AudioFrame
from av.audio.resampler import AudioResampler
from av.container import InputContainer
from numpy.typing import NDArray

from kie_async.emulator._tasks import seeded
from kie_async.files import open_audio

BIT_RATE = 64_000
_MARGIN = 0.5  # seconds read beyond a cut
RATE = 22_050  # samples a second: encoding to mp3 takes most of the time, and half the usual rate halves it
Sound: TypeAlias = NDArray[np.float32]

A4 = 440.0
MAJOR = (0, 2, 4, 5, 7, 9, 11)
_DETUNE = 0.008  # of the pitch, to each side: some 14 cents
_JITTER = 0.02  # seconds, to each side
_DEMO_SECONDS = 25.4


def samples(seconds: float) -> int:
    """Return the number of samples in a time."""
    return round(seconds * RATE)


def silence(seconds: float) -> Sound:
    """Make silence."""
    return np.zeros(samples(seconds), dtype=np.float32)


# ---------------------------------------------------------------- notes

_STEPS = 2048  # samples in one period of a voice


def _period(*levels: float) -> Sound:
    """One period of a wave whose partials have these levels."""
    phases = np.arange(_STEPS) * (2 * np.pi / _STEPS)
    partials = [level * np.sin(number * phases) for number, level in enumerate(levels, start=1)]
    return np.asarray(np.sum(partials, axis=0) / sum(levels), dtype=np.float32)


# The wave of each voice, and how fast its notes fade (per second).
_VOICES: Mapping[str, tuple[Sound, float]] = MappingProxyType(
    {
        "pad": (_period(1.0, 0.35, 0.2, 0.08), 0.0),
        "pluck": (_period(1.0, 0.5, 0.3, 0.18, 0.1), 3.5),
        "bass": (_period(1.0, 0.25), 2.0),
        "drum": (_period(1.0), 18.0),
    }
)


@attrs.frozen
class Note:
    """One note of a song.

    Attributes:
        degree: of the major scale, from 0.
        octave: above the middle one.
        at: when it begins, in seconds.
    """

    voice: str
    degree: int
    octave: int
    at: float
    seconds: float
    level: float


def frequency(root: int, degree: int, octave: int) -> float:
    """Return the frequency of a degree of the major scale on a root (semitones above C)."""
    octaves, step = divmod(degree, len(MAJOR))
    semitones = root - 9 + MAJOR[step] + 12 * (octaves + octave)
    return float(A4 * 2 ** (semitones / 12))


def tone(voice: str, pitch: float, seconds: float) -> Sound:
    """Make one note. A pad swells; the others begin loud and fade."""
    period, decay = _VOICES[voice]
    count = np.arange(samples(seconds), dtype=np.float32)
    sound: Sound = period[(count * np.float32(pitch * _STEPS / RATE)).astype(np.int32) & (_STEPS - 1)]
    if decay:
        sound *= np.exp(count * np.float32(-decay / RATE))
    edge = min(len(sound) // 2, samples(0.01 if decay else 0.3))
    rise = np.linspace(0, 1, edge, dtype=np.float32)
    sound[:edge] *= rise
    sound[len(sound) - edge :] *= rise[::-1]
    return sound


def perform(notes: Iterable[Note], seconds: float, root: int, chance: Random) -> Sound:
    """Play notes, each a little out of tune and out of time."""
    sound = silence(seconds)
    for note in notes:
        pitch = frequency(root, note.degree, note.octave) * (1 + chance.uniform(-_DETUNE, _DETUNE))
        start = samples(max(0.0, note.at + chance.uniform(-_JITTER, _JITTER)))
        played = tone(note.voice, pitch, note.seconds)[: max(0, len(sound) - start)]
        sound[start : start + len(played)] += played * np.float32(note.level)
    return sound


# ---------------------------------------------------------------- songs


def _accompaniment(degree: int, at: float, bar: float, chance: Random) -> Iterator[Note]:
    """One bar of a chord, with two notes of a bass."""
    for third in (0, 2, 4):
        yield Note("pad", degree + third, 0, at, bar * 1.05, 0.12)
    first = bar * chance.uniform(0.25, 0.75)
    yield Note("bass", degree, -2, at, first, 0.18)
    yield Note("bass", degree + chance.choice((0, 2, 4)), -2, at + first, bar - first, 0.18)


def _arpeggio(degree: int, at: float, bar: float, chance: Random) -> Iterator[Note]:
    """One bar of a broken chord, with a drum."""
    for step in range(8):
        yield Note("pluck", degree + chance.choice((0, 2, 4, 7)), 1, at + step * bar / 8, bar / 4, 0.16)
        if step % 4 == 0:
            yield Note("drum", degree, -3, at + step * bar / 8, 0.2, 0.4)


def _song(seconds: float, bar: float, chance: Random, *, lively: bool) -> Iterator[Note]:
    """Bars of chords drawn at random, with a tune and perhaps (lively) a broken chord over them."""
    for number in range(int(seconds / bar) + 1):
        degree, at = chance.choice((0, 3, 4, 5)), number * bar
        yield from _accompaniment(degree, at, bar, chance)
        if lively:
            yield from _arpeggio(degree, at, bar, chance)
        for step, melody in enumerate([chance.choice((0, 1, 2, 4, 5, 7)) for _ in range(4)]):
            yield Note("pluck", melody, 1, at + step * bar / 4, bar * 0.4, 0.32)


def unknown_sound(seconds: float, seed: str) -> Sound:
    """Make the beginning of a song for a source that is unknown; a longer one begins with a shorter one."""
    chance = seeded(seed)
    root, bar = chance.randrange(12), chance.uniform(2.2, 3.2)
    sound = perform(_song(seconds, bar, chance, lively=True), seconds, root, chance)
    return np.tanh(sound)


def fade_out(sound: Sound, seconds: float) -> None:
    """Fade out the end of a sound."""
    length = min(len(sound), samples(seconds))
    sound[len(sound) - length :] *= np.linspace(1, 0, length, dtype=np.float32)


# ---------------------------------------------------------------- going on

_CROSS = 0.25  # seconds in which the song passes into what follows it
_FAINT = 0.02  # the level of what goes on after silence
_KEY = 8.0  # seconds before the cut that decide on the key
_LOWEST, _HIGHEST = 60.0, 2000.0  # frequencies of chords


def keynote(sound: Sound) -> int:
    """Return the loudest pitch class (semitones above C), so that what is added fits."""
    spectrum = np.abs(np.fft.rfft(sound))
    pitches = np.fft.rfftfreq(len(sound), 1 / RATE)
    audible = (pitches > _LOWEST) & (pitches < _HIGHEST)
    if not audible.any():
        return 0
    classes = np.round(12 * np.log2(pitches[audible] / A4) + 9).astype(int) % 12
    return int(np.argmax(np.bincount(classes, weights=spectrum[audible] ** 2, minlength=12)))


def _level(sound: Sound) -> float:
    return max(float(np.sqrt(np.mean(np.square(sound)))), _FAINT) if len(sound) else _FAINT


def continuation(head: Sound, after: Sound, seconds: float, *, take: int, seed: str) -> Sound:
    """Make what follows ``head``: a new song in its key and as loud, into which ``after`` fades.

    It repeats nothing of ``head``, so that each position of a track is found once by its sound. Take 1 is livelier.
    """
    chance = seeded(f"{seed} {take}")
    last = head[-samples(_KEY) :]
    bar = chance.uniform(2.0, 2.6) if take else chance.uniform(2.8, 3.4)
    notes = _song(seconds, bar, chance, lively=bool(take))
    sound = perform(notes, seconds, keynote(last) if len(last) else 0, chance)
    level = _level(last)
    sound *= np.float32(level / _level(sound))
    np.tanh(sound, out=sound)  # takes its peaks off
    sound *= np.float32(min(level / _level(sound), 1 / np.abs(sound).max(initial=_FAINT)))
    cross = min(len(after), len(sound), samples(_CROSS))
    fall = np.cos(np.linspace(0, np.pi / 2, cross, dtype=np.float32))
    sound[:cross] = sound[:cross] * fall[::-1] + after[:cross] * fall
    fade_out(sound, 3.0)
    return sound


# ---------------------------------------------------------------- reading and writing


def measure(content: bytes) -> float:
    """Return the length of audio in seconds: of all that can be decoded, since headers and time stamps can lie.

    Raises:
        ValueError: no audio.
    """
    with _reading(content) as container:
        return sum(frame.samples / frame.sample_rate for frame in _frames(container))


@contextmanager
def _reading(content: bytes) -> Iterator[InputContainer]:
    try:
        with open_audio(io.BytesIO(content)) as container:
            yield container
    except av.FFmpegError as error:
        raise ValueError("the file is no audio that can be read") from error


def _frames(container: InputContainer) -> Iterator[AudioFrame]:
    """Decode all frames up to the end, or up to the first damaged one."""
    got = 0
    with suppress(av.FFmpegError):
        for frame in container.decode(audio=0) if container.streams.audio else ():
            got += frame.samples
            yield frame
    if not got:
        raise ValueError("the file holds no audio")


def decode(content: bytes, until: float) -> Sound:
    """Read audio of any kind, up to a time, as 22 kHz mono. It ends early at the first damage.

    Raises:
        ValueError: no audio.
    """
    with _reading(content) as container:
        blocks = list(_blocks(container, samples(until)))
    return np.concatenate(blocks or [silence(0)])[: samples(until)]


def _blocks(container: InputContainer, wanted: int) -> Iterator[Sound]:
    resampler = AudioResampler(format="flt", rate=RATE)
    got = 0
    for frame in chain(_frames(container), (None,)):  # None flushes the resampler
        for part in resampler.resample(frame):
            got += part.samples
            channels = part.to_ndarray().reshape(-1, part.layout.nb_channels)
            yield channels.mean(axis=1, dtype=np.float32)  # the resampler's mono is louder: it may clip
        if got >= wanted:
            return


def encode(sound: Sound) -> bytes:
    """Write mp3."""
    target = io.BytesIO()
    with av.open(target, "w", format="mp3") as container:
        stream = container.add_stream("libmp3lame", rate=RATE, layout="mono", options={"compression_level": "9"})
        stream.bit_rate = BIT_RATE
        frame = AudioFrame.from_ndarray(np.ascontiguousarray(sound[None, :]), format="fltp", layout="mono")
        frame.sample_rate, frame.pts = RATE, 0
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return target.getvalue()


def continued(  # noqa: PLR0913  # keyword-only, each by name
    source: bytes | str, *, start: float, seconds: float, take: int, seed: str, alone: bool = False
) -> bytes:
    """Make an mp3 that begins as the source and goes on after ``start``.

    Args:
        source: audio of any kind, or the name of a song that nobody has.
        start: where it is cut, in seconds.
        seconds: the length of the whole.
        take: 0 or 1: the two differ.
        seed: of what is random in it.
        alone: make only what goes on, as long as that.

    Raises:
        ValueError: the source is no audio.
    """
    until = start + _MARGIN
    known = unknown_sound(until, source) if isinstance(source, str) else decode(source, until)
    cut = samples(start)
    head, after = known[:cut], known[cut:]
    if len(head) < cut:  # the source is shorter than it claimed: fill up with silence
        head = np.concatenate([head, np.zeros(cut - len(head), dtype=np.float32)])
    tail = continuation(head, after, seconds if alone else seconds - start, take=take, seed=seed)
    return encode(tail if alone else np.concatenate([head, tail])[: samples(seconds)])


def demo_song() -> bytes:
    """Make a short song, as a wav file."""
    sound = unknown_sound(_DEMO_SECONDS, "demo")
    fade_out(sound, 1.5)
    target = io.BytesIO()
    with wave.open(target, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(RATE)
        file.writeframes((sound * 32767).astype("<i2").tobytes())
    return target.getvalue()
