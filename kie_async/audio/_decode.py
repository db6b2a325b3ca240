"""Read audio files of any kind as samples, in pieces, so that a long file needs little memory.

Samples are float32 with full scale 1, one row for each channel. Positions count from the first sample that the decoder
gives, without the padding that an encoder declares; a sample that is not a number becomes silence. Packets that cannot
be decoded are skipped, and the file's time stamps are ignored. Everything here blocks: call it in a thread.

This module needs the extra ``kie_async[audio]``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from itertools import chain, groupby
from os import PathLike
from pathlib import Path
from typing import Literal, TypeAlias

import attrs
import av
import numpy as np
from av.audio.frame import AudioFrame
from av.audio.resampler import AudioResampler
from av.container import InputContainer
from numpy.typing import NDArray

from kie_async.errors import AudioError, StorageError
from kie_async.events import clean
from kie_async.files import AUDIO_KIND_NAMES, kind_of, open_audio

Samples: TypeAlias = NDArray[np.float32]  # channels x samples
Mono: TypeAlias = NDArray[np.float32]  # samples of one channel

_DEEP = {"s32", "s32p", "flt", "dbl"}  # formats of samples; lossy codecs give "fltp"
_TAGS = (
    "title",
    "artist",
    "album",
    "album_artist",
    "composer",
    "genre",
    "date",
    "track",
    "disc",
    "copyright",
    "comment",
)
_STEREO = 2  # channels
_MEAN_OF_TWO = np.float32(0.5**0.5)  # for the resampler makes their sum 3 dB louder than the mean
_REMEDY = "convert it anew, or fetch it again"


@attrs.frozen
class AudioReader:
    """An open audio file.

    Attributes:
        name: the name of the file, for errors.
        rate: samples per second.
        channels: the number of channels.
        bits: the bits that a sample needs to be kept unchanged: 24, or 16 (enough for lossy codecs).
        tags: its tags (title, artist and so on), by their lower-case names.
    """

    name: str
    rate: int
    channels: int
    bits: int
    tags: Mapping[str, str]
    _layout: str
    _frames: Iterator[AudioFrame]

    def blocks(
        self,
        start: float = 0.0,
        end: float | None = None,
        *,
        rate: int | None = None,
        layout: Literal["mono", "stereo"] | None = None,
    ) -> Iterator[Samples]:
        """Yield the samples from ``start`` to ``end``, in order, in pieces of any length. The file can be read once.

        Args:
            start: where to begin, in seconds.
            end: where to end, in seconds; None for the end of the file. A shorter file ends earlier.
            rate: samples per second to convert to; by default the file's own.
            layout: channels to convert to: "mono" is the mean of two; for "stereo" a single channel is doubled. More
                than two are mixed. By default the file's own.

        Raises:
            AudioError: its channels cannot be read.
        """
        rate = rate or self.rate
        first, last = round(start * rate), None if end is None else round(end * rate)
        at = 0
        is_doubled = layout == "stereo" and self.channels == 1  # the resampler would make it quieter
        is_mean = layout == "mono" and self.channels == _STEREO
        for converted in self._converted(self._layout if is_doubled else layout or self._layout, rate):
            block = np.repeat(converted, 2, axis=0) if is_doubled else converted
            block = block * _MEAN_OF_TWO if is_mean else block
            piece = block[:, max(0, first - at) : None if last is None else max(0, last - at)]
            at += block.shape[1]
            if piece.shape[1]:
                yield piece
            if last is not None and at >= last:
                return

    def _converted(self, layout: str, rate: int) -> Iterator[Samples]:
        """Bring frames to one format, also where channels or rate change in the middle of a file."""
        try:
            for _, frames in groupby(self._frames, key=_kind):
                resampler = AudioResampler(format="flt", layout=layout, rate=rate)
                for frame in chain(map(_untimed, frames), (None,)):  # None flushes the resampler
                    for part in resampler.resample(frame):  # packed: planes crash PyAV from eight channels on
                        packed = part.to_ndarray().astype(np.float32, copy=False)
                        if not np.isfinite(packed).all():  # asked first, for replacing takes longer
                            np.nan_to_num(packed, copy=False, posinf=0.0, neginf=0.0)
                        yield packed.reshape(-1, part.layout.nb_channels).T
        except av.FFmpegError:
            raise AudioError(f"{self.name} has channels that cannot be read: {_REMEDY}") from None


@contextmanager
def open_reader(path: str | PathLike[str]) -> Iterator[AudioReader]:
    """Open an audio file for reading.

    Raises:
        AudioError: it is not audio, or none of it can be decoded.
        StorageError: it cannot be opened.
    """
    path = Path(path)
    name = clean(str(path))
    with ExitStack() as stack:
        try:
            reader = _open(stack, path, name)
        except av.FFmpegError:
            raise AudioError(f"{name} is damaged, and cannot be decoded: {_REMEDY}") from None
        except OSError as error:
            raise StorageError(f"{name} cannot be read: {error.strerror or error}") from error
        yield reader


def _open(stack: ExitStack, path: Path, name: str) -> AudioReader:
    file = stack.enter_context(path.open("rb"))
    kind = kind_of(file)
    if kind is None:
        raise AudioError(f"{name} is no audio of a known kind: give one of {AUDIO_KIND_NAMES}")
    file.seek(0)
    # The demuxer is named, so that no playlist or script is taken for audio and followed elsewhere.
    container = stack.enter_context(open_audio(file, kind.demuxer))
    frames = _frames(container)
    first = next(frames, None)
    if first is None:
        raise AudioError(f"{name} holds no audio that can be decoded: {_REMEDY}")
    bits = 24 if first.format.name in _DEEP else 16
    layout = first.layout
    frames = chain((first,), frames)
    return AudioReader(name, first.sample_rate, layout.nb_channels, bits, _tags(container), layout.name, frames)


def _tags(container: InputContainer) -> dict[str, str]:
    """The tags of a file, or of its stream, as ogg has them; those of its container or its loudness are left out."""
    given = {**container.streams.audio[0].metadata, **container.metadata}
    found = {name.lower(): value.encode(errors="replace").decode() for name, value in given.items()}
    return {name: found[name] for name in _TAGS if name in found}


def read_samples(path: str | PathLike[str], start: float = 0.0, end: float | None = None) -> tuple[Samples, int]:
    """Read the samples of a file from ``start`` to ``end`` (in seconds); return them and their rate.

    Raises:
        AudioError, StorageError: as ``open_reader``.
    """
    with open_reader(path) as reader:
        empty = np.zeros((reader.channels, 0), dtype=np.float32)
        return np.concatenate([empty, *reader.blocks(start, end)], axis=1), reader.rate


def read_mono(path: str | PathLike[str], rate: int, start: float = 0.0, end: float | None = None) -> Mono:
    """Read a file from ``start`` to ``end`` as one channel, converted to ``rate`` samples per second.

    Args:
        path: of the file.
        rate: samples per second to convert to; each takes 4 bytes.
        start: where to begin, in seconds.
        end: where to end, in seconds; None for the end of the file.

    Raises:
        AudioError, StorageError: as ``open_reader``.
    """
    with open_reader(path) as reader:
        blocks = reader.blocks(start, end, rate=rate, layout="mono")
        return np.concatenate([np.zeros(0, dtype=np.float32), *(block[0] for block in blocks)])


def _frames(container: InputContainer) -> Iterator[AudioFrame]:
    """Decode what can be decoded; the demuxer ends the file at damage that it cannot pass."""
    for stream in container.streams.audio[:1]:
        with suppress(av.FFmpegError):
            for packet in container.demux(stream):
                with suppress(av.FFmpegError):
                    yield from (frame for frame in packet.decode() if frame.samples)


def _kind(frame: AudioFrame) -> tuple[str, str, int]:
    return frame.format.name, frame.layout.name, frame.sample_rate


def _untimed(frame: AudioFrame) -> AudioFrame:
    frame.pts = None  # else the resampler fills gaps that the time stamps claim
    return frame
