"""How long a file of audio really is.

The length is paid for: ``continue_at`` must lie inside the source, and a truncated download must not pass for a
whole one. Headers and tags lie, so what counts is the audio that is in the file. What each library said (seconds;
the truth in the second column; "-" is an error):

    file                              truth   PyAV     PyAV     sound-  mutagen  tinytag
                                              header   packets  file
    8 min of mp3                      480.0   480.0    480.0    480.0   480.0    480.0
    mp3, VBR, no Xing header           61.7    58.7     61.7     16.2    16.2     61.8
    mp3, cut in half                   30.8    61.7     30.9     61.7    61.7     61.7
    mp3, last 4/5 replaced by HTML     12.5    61.7     12.5     61.7    61.7     61.7
    wav from a pipe (0xFFFFFFFF)       61.7    61.7     61.7     61.7 24347.9  24347.9
    wav, length 0 in its header        61.7    61.7     61.7      0.0     0.0      0.0
    wav, cut in half                   30.9    30.9     30.9     30.9    61.7     61.7
    flac, cut in half                  32.2    61.7     32.3     61.7    61.7     61.7
    flac, header without a length      61.7       -     61.7     2e14     0.0      0.0
    flac, header with an absurd one    61.7     2e6     61.7      2e6     2e6      2e6
    aac (ADTS)                         61.7    61.6     61.7        -    61.7      9.7
    aac (ADTS), cut in half            30.9    30.8     30.9        -    30.9      5.5
    m4a                                61.7    61.7     61.7        -    61.7     61.7
    ogg (opus), cut in half            30.0    30.0     30.0     30.0    30.0     30.0
    m4a, cut in half (no index)           -       -        -        -       -    None
    HTML, nothing, or a bare ID3 tag      -       -        -        -       -    None
    noise                                 -    None      0.0        -       -      0.1

Only a walk over the packets (PyAV) is right in every row; it takes 0.06 s for 8 min of mp3, where decoding all of
it takes 0.5 s. Since a container may also lie about its packets, the first ones are decoded and held against what
they claim; if they disagree (an edit list that leaves out the start, an index that lies), all is decoded and what
comes out is the length.

Some files need no walk. The length of an uncompressed wav is its size, and an mp3 whose frames follow each other
without a gap lasts as long as its frames (a tenth of the time of a walk). Of an mp4 whose packets fill its index
evenly, and of an ogg whose pages follow each other without a gap, the last packet tells the end. The header of a flac
does not prove it: where bytes are missing in the middle, header and end still agree. One file is measured at a time,
for threads that measure at once hinder each other.
"""

from __future__ import annotations

import importlib.util
import io
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from fractions import Fraction
from hashlib import sha256
from itertools import chain, islice
from os import SEEK_END, PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, TypeVar

import attrs
from anyio import CapacityLimiter
from anyio.lowlevel import RunVar

from kie_async._text import clock
from kie_async.errors import AudioError, KieError, StorageError
from kie_async.events import clean
from kie_async.files._audio_kinds import AUDIO_KIND_NAMES, FLAC, M4A, MP3, OGG, WAV, AudioKind, audio_start, kind_of
from kie_async.files._disk import on_disk
from kie_async.files._proven_length import has_hole, is_one_ogg_stream, read_frames, stated_length

if TYPE_CHECKING:
    from av.audio.codeccontext import AudioCodecContext
    from av.audio.stream import AudioStream
    from av.container import InputContainer
    from av.packet import Packet

T = TypeVar("T")

MAX_DURATION = 12 * 3600.0  # seconds; a file that claims more is not believed
TIMEOUT = 30.0  # seconds of work, for files made to cost more than they are worth
_PROBED = 64  # packets that are decoded to see whether the others can be believed
_PROBED_FRAMES = 16  # of an mp3, whose headers agree by then: are they audio at all?
_UNLIKELY = 2  # times as long as the longest that was decoded: a later packet that claims more is not believed
_TOLERANCE = 0.2  # seconds; codecs swallow a little at the start
_BEGINNING = 1 << 16  # bytes that hold the header of a wav
_BLOCK = 1 << 20  # bytes that are hashed at once
_SURROGATES_SINCE = 19  # from this version on PyAV decodes texts leniently by itself, and takes no option for it
_turn: RunVar[CapacityLimiter] = RunVar("kie_async.files.measuring")  # of each event loop


@attrs.define(slots=False)
class NotMeasuredError(AudioError):
    """The library that measures is missing, or failed: this says nothing about the file."""


# ------------------------------------------------------------ a file


def measure(path: str | PathLike[str]) -> float:
    """Return the seconds of audio that are really in a file. It blocks: call it in a thread.

    Raises:
        AudioError: it is no audio, it is damaged, or its length cannot be told; never a guess.
        StorageError: it cannot be read.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            return measure_open(file, clean(path.name))
    except OSError as error:
        raise StorageError(f"{clean(path.name)} cannot be read: {error.strerror or error}") from error


async def in_turn(function: Callable[..., T], *arguments: object, turn: RunVar[CapacityLimiter] = _turn) -> T:
    """Run a function that works on audio in a worker thread; one at a time, so that the others do not slow it down.

    Args:
        function: to be run.
        arguments: of it.
        turn: which functions wait for each other; by default those that measure.

    Raises:
        StorageError: the disk refused.

    Cancelling waits for a thread that has begun.
    """
    try:
        limiter = turn.get()
    except LookupError:
        limiter = CapacityLimiter(1)
        turn.set(limiter)
    async with limiter:
        return await on_disk(function, *arguments)


def hash_source(path: Path, *, measured: bool) -> tuple[str, float | None]:
    """Return the SHA-256 of a file, and its seconds of audio if it is to be measured, from one reading of it.

    Raises:
        AudioError: as ``measure``.
        OSError: it cannot be read.
    """
    with _HashedFile(path) as file:
        seconds = measure_open(file, clean(path.name)) if measured else None
        return file.hexdigest(), seconds


class _HashedFile(io.FileIO):
    """A file that is hashed while it is read in order; what was skipped is read, and hashed, at the end."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._digest = sha256()
        self._hashed = 0

    def read(self, size: int | None = -1, /) -> bytes:
        at = self.tell()
        data: bytes = super().read(size)
        if at <= self._hashed < at + len(data):
            self._digest.update(memoryview(data)[self._hashed - at :])
            self._hashed = at + len(data)
        return data

    def hexdigest(self) -> str:
        self.seek(self._hashed)
        while self.read(_BLOCK):
            pass
        return self._digest.hexdigest()


def measure_open(file: BinaryIO, name: str) -> float:
    """Return the seconds of audio in an open file; ``name`` is for errors."""
    if not can_measure():
        raise NotMeasuredError(
            'the length of audio cannot be measured: pip install "kie_async[audio]", or give source_duration='
        )
    kind = kind_of(file)
    if kind is None:
        raise AudioError(f"{name} is no audio of a known kind: give one of {AUDIO_KIND_NAMES}")
    try:
        return _Measurement(name, kind).seconds(file)
    except (KieError, OSError):
        raise
    except Exception as error:
        matter = f"could not be measured, for PyAV failed ({type(error).__name__})"
        raise NotMeasuredError(f"{name} {matter}: convert it anew, or give source_duration=") from error


def open_audio(file: BinaryIO, demuxer: str | None = None) -> InputContainer:
    """Open a file for reading; texts in it that are not UTF-8 are no error.

    Args:
        file: at its beginning.
        demuxer: the name of the format; None lets PyAV find out.

    Raises:
        ImportError: PyAV is not installed.
        av.FFmpegError: it cannot be read.
    """
    import av  # an extra, and slow to import

    major = int(av.__version__.partition(".")[0])
    options: dict[str, Any] = {} if major >= _SURROGATES_SINCE else {"metadata_errors": "replace"}
    container: InputContainer = av.open(file, "r", format=demuxer, **options)
    return container


def can_measure() -> bool:
    """Tell whether the library that measures is installed (extra ``audio``)."""
    return importlib.util.find_spec("av") is not None


@attrs.frozen
class _Measurement:
    """The measuring of one file, within ``TIMEOUT``."""

    name: str
    kind: AudioKind
    _until: float = attrs.field(factory=lambda: time.monotonic() + TIMEOUT, init=False)

    def seconds(self, file: BinaryIO) -> float:
        import av  # an extra, and slow to import

        ways = (self._stated, self._by_its_end, self._walked, self._decoded)  # each returns None if it proves nothing
        try:
            seconds = next(found for way in ways if (found := way(file)) is not None)
        except av.FFmpegError:
            raise self._unusable("is damaged, or cut off where it must not be") from None
        if not 0 < seconds <= MAX_DURATION:
            raise self._unusable("claims an absurd length" if seconds else "holds no audio")
        return seconds

    def _stated(self, file: BinaryIO) -> float | None:
        """Read the length of a wav from its header, or that of an mp3 from its frames; refuse what has lost audio."""
        import av  # an extra, and slow to import

        start = audio_start(file) or 0
        if self.kind is FLAC and has_hole(file, start):
            raise self._unusable("has zeros in the place of audio in its middle", "copy or download it again")
        if self.kind is WAV:
            total = file.seek(0, SEEK_END)
            file.seek(0)
            return stated_length(WAV, file.read(_BEGINNING), start, total)
        frames = read_frames(file, start, keep=_PROBED_FRAMES) if self.kind is MP3 else None
        if frames is None:
            return None
        if not frames.is_whole:
            matter = f"has zeros in the place of audio from {clock(frames.seconds)} on"
            raise self._unusable(matter, "copy or download it again")
        codec = av.CodecContext.create("mp3", "r")
        claimed = frames.seconds * len(frames.first) / max(frames.count, 1)
        is_honest = _decodes_as_claimed(codec, claimed, (av.Packet(frame) for frame in frames.first))
        return frames.seconds if is_honest else None

    def _by_its_end(self, file: BinaryIO) -> float | None:
        """Read only the last packets, if the index of an mp4 or the pages of an ogg prove that no other is missing."""
        import av  # an extra, and slow to import

        is_one_stream = self.kind is OGG and is_one_ogg_stream(file)
        if self.kind is not M4A and not is_one_stream:
            return None
        with self._opened(file) as container:
            stream = self._stream(container)
            first = self._probed(container, stream)
            if not first or stream.start_time is None or stream.duration is None:
                return None
            longest = max(packet.duration or 0 for packet in first)
            with suppress(av.FFmpegError):  # then all packets are read
                container.seek(stream.start_time + stream.duration - longest, stream=stream)
            last = deque(chain(first, self._packets(container, stream)), 1)[0]
            ticks = (last.pts or 0) + (last.duration or 0) - (first[0].pts or 0)
            is_evenly_filled = 0 <= stream.frames * longest - ticks < longest
            is_proven = last.pts is not None and (is_one_stream or is_evenly_filled)
            return _seconds(stream, ticks) if is_proven else None

    def _walked(self, file: BinaryIO) -> float | None:
        """Add up what the packets claim."""
        with self._opened(file) as container:
            stream = self._stream(container)
            first = self._probed(container, stream)
            total = sum(packet.duration or 0 for packet in first)
            longest = max((packet.duration or 0 for packet in first), default=0)
            for packet in self._packets(container, stream):
                if not 0 < (packet.duration or 0) <= _UNLIKELY * longest:
                    return None
                total += packet.duration or 0
            return _seconds(stream, total) if first else None

    def _decoded(self, file: BinaryIO) -> float:
        """Decode all that can be decoded."""
        with self._opened(file) as container:
            stream = self._stream(container)
            return _decode(stream.codec_context, self._packets(container, stream))

    def _opened(self, file: BinaryIO) -> InputContainer:
        file.seek(0)
        # The demuxer is named, so that no playlist or script is taken for audio and followed elsewhere.
        return open_audio(file, self.kind.demuxer)

    def _stream(self, container: InputContainer) -> AudioStream:
        if not container.streams.audio:
            raise self._unusable("holds no audio")
        stream = container.streams.audio[0]
        if getattr(stream, "codec_context", None) is None:  # av's own types do not say so
            raise self._unusable("is of a format that cannot be decoded")
        return stream

    def _packets(self, container: InputContainer, stream: AudioStream) -> Iterator[Packet[AudioStream]]:
        for packet in container.demux(stream):
            if time.monotonic() > self._until:
                raise self._unusable("takes too long to be measured")
            if packet.size:  # the last one is empty and only says so
                yield packet

    def _probed(self, container: InputContainer, stream: AudioStream) -> list[Packet[AudioStream]]:
        """Return the first packets; none if they do not hold what they claim."""
        first = list(islice(self._packets(container, stream), _PROBED))
        claimed = _seconds(stream, sum(packet.duration or 0 for packet in first))
        is_honest = all(packet.duration for packet in first)
        return first if is_honest and _decodes_as_claimed(stream.codec_context, claimed, first) else []

    def _unusable(self, matter: str, remedy: str = "convert it anew, for example to wav or flac") -> AudioError:
        return AudioError(f"{self.name} {matter}: {remedy}")


def _seconds(stream: AudioStream, ticks: int) -> float:
    return float(ticks * (stream.time_base or Fraction(0)))


def _decodes_as_claimed(codec: AudioCodecContext, claimed: float, packets: Iterable[Packet[Any]]) -> bool:
    """Tell whether packets hold the seconds of audio that they claim, by decoding them."""
    decoded = _decode(codec, packets)
    return decoded > 0 and abs(decoded - claimed) <= max(_TOLERANCE, claimed / 10)


def _decode(codec: AudioCodecContext, packets: Iterable[Packet[Any]]) -> float:
    """Return the seconds that come out of packets; those that cannot be decoded count nothing."""
    import av  # an extra, and slow to import

    seconds = 0.0
    for packet in chain(packets, [None]):  # None: what the decoder still holds
        with suppress(av.FFmpegError):
            seconds += sum(frame.samples / frame.sample_rate for frame in codec.decode(packet))
    return seconds
