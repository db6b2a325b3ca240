"""Write audio: samples become a wav, flac or mp3, whole or absent. It blocks.

This module needs the extra ``kie_async[audio]``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, cast

import attrs
import av
import numpy as np
from av.audio.frame import AudioFrame

from kie_async.audio._decode import AudioReader, Samples
from kie_async.files import write_new_file

if TYPE_CHECKING:
    from av.audio.stream import AudioStream


_MP3_RATES = (8000, 11_025, 12_000, 16_000, 22_050, 24_000, 32_000, 44_100, 48_000)
_MP3_BITS = 128_000  # a second and channel: coded once more, audio is to lose no more than can be helped
_MP3_SPEED = "7"  # of LAME: twice as quick as its usual one, at this bit rate as good


@attrs.frozen
class Form:
    """How audio is written.

    Attributes:
        suffix: .wav, .flac or .mp3.
        rate: samples a second.
        channels: 1 or 2.
        bits: of a sample, 16 or 24; an mp3 knows none.
        tags: what it says of its music (title, artist and so on); a wav has no place for album_artist, composer and
            disc.
    """

    suffix: str
    rate: int
    channels: int
    bits: int
    tags: Mapping[str, str]

    @classmethod
    def fitting(cls, suffix: str, *readers: AudioReader) -> Form:
        """The form that loses nothing of these, or as little as it can; with the tags of the first that has any."""
        rate, channels, bits = (max(map(attrgetter(name), readers)) for name in ("rate", "channels", "bits"))
        if suffix == ".mp3":
            rate = next((each for each in _MP3_RATES if each >= rate), _MP3_RATES[-1])
        tags = next((reader.tags for reader in readers if reader.tags), {})
        return cls(suffix, rate, min(2, channels), bits, tags)

    @property
    def highest(self) -> float:
        """The largest sample; 1 dB less in an mp3, which overshoots when it is decoded."""
        return 10 ** (-1 / 20) if self.suffix == ".mp3" else 1.0


def write(out: Path, blocks: Iterable[Samples], form: Form) -> None:
    """Write a file; its directory is made if need be. Until it is whole it is ``NAME.part``.

    Raises:
        FileExistsError: the name is taken; what has it is untouched.
        OSError: the disk refused.
    """
    write_new_file(out, lambda file: _encode(_Sink(file), blocks, form))


class _Sink:
    """Takes what the encoder writes. It keeps an error of the disk, which FFmpeg would print and pass on as another."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._error: OSError | None = None
        self.tell = file.tell

    def write(self, data: bytes) -> int:
        try:
            return self._file.write(data)
        except OSError as error:
            self._error = error
            return len(data)

    def seek(self, offset: int, whence: int = 0) -> int:
        try:
            return self._file.seek(offset, whence)  # writes first what is buffered
        except OSError as error:
            self._error = error
            return 0

    def check(self) -> None:
        """Raise the error that the disk has met."""
        if self._error is not None:
            raise self._error


def _encode(sink: _Sink, blocks: Iterable[Samples], form: Form) -> None:
    codec = {".mp3": "libmp3lame", ".flac": "flac", ".wav": f"pcm_s{form.bits}le"}[form.suffix]
    layout = ("mono", "stereo")[form.channels - 1]
    options = {"compression_level": _MP3_SPEED} if form.suffix == ".mp3" else {}
    muxing = {"rf64": "auto"} if form.suffix == ".wav" else {}  # a wav of more than 4 GiB says so
    with av.open(sink, "w", format=form.suffix[1:], options=muxing) as container:
        container.metadata.update(form.tags)
        stream = cast("AudioStream", container.add_stream(codec, rate=form.rate, layout=layout, options=options))
        if form.suffix == ".mp3":
            stream.bit_rate = _MP3_BITS * form.channels
        elif form.suffix == ".flac":
            stream.format = "s16" if form.bits == 16 else "s32"  # noqa: PLR2004  # the encoder makes 24 of 32
        at = 0
        for block in blocks:
            frame = AudioFrame.from_ndarray(np.ascontiguousarray(block), format="fltp", layout=layout)
            frame.sample_rate, frame.pts = form.rate, at
            at += block.shape[1]
            container.mux(stream.encode(frame))
            sink.check()
        container.mux(stream.encode(None))
    sink.check()
