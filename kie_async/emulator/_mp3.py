"""Decodes and encodes audio with PyAV: any format in, and out an mp3 that begins with it and audibly goes on.

The mp3 is cheap to make: one channel, 22 kHz, the fastest setting of the encoder, which takes most of the time.

This module needs the extra ``kie_async[audio]``; ``_audio`` loads it when audio is first asked for.
"""

from __future__ import annotations

import io
import wave
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import chain

import av
import numpy as np
from av.audio.frame import AudioFrame
from av.audio.resampler import AudioResampler
from av.container import InputContainer

from kie_async._pyav import open_audio
from kie_async.emulator import _music
from kie_async.emulator._music import RATE, Sound, samples

BIT_RATE = 64_000
_MARGIN = 0.5  # seconds read beyond a cut


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
    return np.concatenate(blocks or [_music.silence(0)])[: samples(until)]


def _blocks(container: InputContainer, wanted: int) -> Iterator[Sound]:
    resampler = AudioResampler(format="flt", layout="mono", rate=RATE)
    got = 0
    for frame in chain(_frames(container), (None,)):  # None flushes the resampler
        for part in resampler.resample(frame):
            got += part.samples
            yield part.to_ndarray().astype(np.float32, copy=False).reshape(-1)
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


def continued(source: bytes | str, *, start: float, seconds: float, take: int, seed: str) -> bytes:
    """Make an mp3 that begins as the source and goes on after ``start``.

    Args:
        source: audio of any kind, or the name of a song that nobody has.
        start: where it is cut, in seconds.
        seconds: the length of the whole.
        take: 0 or 1: the two differ.
        seed: of what is random in it.

    Raises:
        ValueError: the source is no audio.
    """
    until = start + _MARGIN
    known = _music.unknown_sound(until, source) if isinstance(source, str) else decode(source, until)
    cut = samples(start)
    head, after = known[:cut], known[cut:]
    if len(head) < cut:  # the source is shorter than it claimed: fill up with silence
        head = np.concatenate([head, np.zeros(cut - len(head), dtype=np.float32)])
    tail = _music.continuation(head, after, seconds - start, take=take, seed=seed)
    return encode(np.concatenate([head, tail])[: samples(seconds)])


def demo_song() -> bytes:
    """Make a short song, as a wav file."""
    sound = _music.demo_sound()
    target = io.BytesIO()
    with wave.open(target, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(RATE)
        file.writeframes((sound * 32767).astype("<i2").tobytes())
    return target.getvalue()
