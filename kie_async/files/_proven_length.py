"""How long audio is by its headers or its frames, where they prove it; pure but for ``read_frames``.

A length counts as stated if the header gives it and the size of the whole file agrees with it. Ogg, ADTS, AIFF and
mp3 without a Xing header do not say it in their beginning; of an mp4, the index must stand before the audio.

Each frame of an mp3 says how many bytes it takes. A file whose frames follow each other without a gap, from the first
to the last byte, is exactly as long as they are, whatever its tags say.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from os import SEEK_END
from typing import BinaryIO

import attrs

from kie_async.files._audio_kinds import FLAC, M4A, MP3, OGG_END, OGG_HEADER, WAV, XING_MARKS, XING_OFFSETS, AudioKind

_ENDING = 1 << 16  # bytes of tags that may follow the audio
_UNKNOWN = 0xFFFFFFFF  # a size that was not known when the header was written
_PCM = {1, 3, 0xFFFE}  # formats of wav whose size is their length: integers, floats, and either with more channels
_XING_BOTH = 3  # flags of a Xing header that gives the frames and the bytes
_MPEG_1 = 3  # as a version in the header of an mp3's frame
_MONO = 3  # as a mode of channels there
_MP3_RATES = {3: (44_100, 48_000, 32_000), 2: (22_050, 24_000, 16_000), 0: (11_025, 12_000, 8_000)}  # by version
_BITRATES_1 = (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320)  # kbit/s of MPEG 1, from index 1 on
_BITRATES_2 = (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160)
_FRAME_HEADER = 3  # bytes that tell the size of a frame
_BLOCK = 1 << 18  # bytes of frames read at once: a larger block costs more in fresh pages of memory
_MP3_TAGS = (b"TAG", b"APETAGEX")  # what may follow the last frame
_FLAC_HOLE = 4096  # zero bytes among the frames of a flac
_CUT, _HOLE = 8, 512  # zero bytes at the end of a frame, and those with what follows it: audio was lost


def stated_length(kind: AudioKind, data: bytes, start: int, total: int) -> float | None:
    """The seconds of audio that a header states, where the size of the file agrees; None if nothing is proven.

    Args:
        kind: of the audio.
        data: the beginning of the file.
        start: where the audio begins in it, behind its tags.
        total: the size of the whole file in bytes.
    """
    read = _READERS.get(kind)
    return read(data, start, total) if read is not None else None


def _number(data: bytes, at: int, size: int = 4) -> int:
    return int.from_bytes(data[at : at + size], "big")


def _little(data: bytes, at: int, size: int = 4) -> int:
    return int.from_bytes(data[at : at + size], "little")


def _wav_length(data: bytes, start: int, total: int) -> float | None:
    at, bytes_per_second = start + 12, 0
    while at + 8 <= len(data):
        name, size = data[at : at + 4], _little(data, at + 4)
        if name == b"fmt ":
            rate, per_second, align = _little(data, at + 12), _little(data, at + 16), _little(data, at + 20, 2)
            held = _little(data, at + 10, 2) * ((_little(data, at + 22, 2) + 7) // 8)  # channels, each of whole bytes
            if _little(data, at + 8, 2) not in _PCM or per_second != rate * align or align != held:
                return None
            bytes_per_second = per_second
        if name == b"data":
            held = total - at - 8
            known = size if 0 < size < min(_UNKNOWN, held) else held
            return known / bytes_per_second if bytes_per_second and held - known <= _ENDING else None
        at += 8 + size + size % 2
    return None


def _flac_length(data: bytes, start: int, total: int) -> float | None:
    packed = _number(data, start + 18, 8)  # 20 bits of rate, 3 of channels, 5 of depth, 36 of samples
    rate, channels, depth = packed >> 44, (packed >> 41 & 7) + 1, (packed >> 36 & 31) + 1
    count = packed & (1 << 36) - 1
    is_first = data[start + 4 : start + 5] in {b"\x00", b"\x80"}
    if not is_first or not rate or not count or total - len(data) > count * channels * depth // 8:
        return None
    return count / rate


def _mp3_length(data: bytes, start: int, total: int) -> float | None:
    head = data[start : start + 4]
    version, rate, is_mono = head[1] >> 3 & 3, head[2] >> 2 & 3, head[3] >> 6 == _MONO
    is_first = version == _MPEG_1  # with twice the samples and side information of MPEG 2
    side = (17 if is_mono else 32) if is_first else (9 if is_mono else 17)
    xing = start + 4 + side
    frames, size = _number(data, xing + 8), _number(data, xing + 12)
    if data[xing : xing + 4] not in XING_MARKS or _number(data, xing + 4) & _XING_BOTH != _XING_BOTH:
        return None
    if not 0 <= total - start - size <= _ENDING:  # cut off, or another file follows
        return None
    return frames * _samples(version) / _MP3_RATES[version][rate]


def _m4a_length(data: bytes, _start: int, total: int) -> float | None:
    seconds, holds_audio = None, False
    for name, at, end in _boxes(data, 0, total):
        if end > total:
            return None
        holds_audio = holds_audio or name == b"mdat"
        if name == b"moov" and end <= len(data) and b"vide" not in data[at:end]:
            seconds = _movie(data, at, end)
    return seconds if holds_audio else None


def _boxes(data: bytes, at: int, total: int) -> Iterator[tuple[bytes, int, int]]:
    """The boxes that begin in the data: name, and where the content begins and ends."""
    while at + 8 <= len(data):
        size, content = _number(data, at), at + 8
        name = data[at + 4 : content]
        if size == 1:
            size, content = _number(data, content, 8), content + 8
        end = total if size == 0 else at + size
        yield name, content, max(end, content)
        at = max(end, content)


def _movie(data: bytes, at: int, end: int) -> float | None:
    for name, content, _ in _boxes(data[:end], at, end):
        if name == b"mvhd":
            wide = data[content : content + 1] == b"\x01"
            scale = _number(data, content + (20 if wide else 12))
            ticks = _number(data, content + (24 if wide else 16), 8 if wide else 4)
            return ticks / scale if scale and ticks not in {_UNKNOWN, (1 << 64) - 1} else None
    return None


_READERS: Mapping[AudioKind, Callable[[bytes, int, int], float | None]] = {
    WAV: _wav_length,
    FLAC: _flac_length,
    MP3: _mp3_length,
    M4A: _m4a_length,
}


# ------------------------------------------------------------ the frames of an mp3


@attrs.frozen
class Mp3Frames:
    """The frames of an mp3 from its beginning on.

    Attributes:
        count: how many follow each other without a gap.
        seconds: how long they last.
        first: the first of them.
        is_whole: whether they reach to the end of the file; if not, zeros stand in the middle of its audio.
    """

    count: int
    seconds: float
    first: tuple[bytes, ...]
    is_whole: bool = True


def read_frames(file: BinaryIO, start: int, *, keep: int) -> Mp3Frames | None:
    """Count the frames of an open mp3; None if a gap ends them that is not known to have been audio.

    Args:
        file: at any position.
        start: where the audio begins, behind its tags.
        keep: how many of the first frames are returned.
    """
    total = file.seek(0, SEEK_END)
    file.seek(start)
    head = file.read(max(XING_OFFSETS) + 4)
    version, rate = head[1] >> 3 & 3, head[2] >> 2 & 3
    sizes = _frame_sizes(version, rate)
    end, count, first = start, 0, list[bytes]()
    if head[36:40] == b"VBRI" or any(head[at : at + 4] in XING_MARKS for at in XING_OFFSETS):
        end += sizes[head[:_FRAME_HEADER]]  # the first frame describes the others, and holds no audio
    is_going_on = True
    while is_going_on:
        file.seek(end)
        data, at = file.read(_BLOCK), 0
        while size := sizes.get(data[at : at + _FRAME_HEADER]):
            if count < keep:
                first.append(data[at : at + size])
            count += 1
            at += size
        end += at
        is_going_on = at > 0 and len(data) == _BLOCK
    file.seek(end)
    is_whole = end == total or (0 < total - end <= _ENDING and file.read(8).startswith(_MP3_TAGS))
    if not is_whole and not _is_hole(file, end):
        return None
    return Mp3Frames(count, count * _samples(version) / _MP3_RATES[version][rate], tuple(first), is_whole)


def _is_hole(file: BinaryIO, at: int) -> bool:
    """Tell whether zeros have replaced audio from within the frame that should end here, and more audio follows.

    Frames of silence are not zeros, and zeros that pad a file stand behind a whole frame, or at the end.
    """
    file.seek(at - _CUT)
    if file.read(_HOLE) != bytes(_HOLE):
        return False
    while (rest := file.read(_BLOCK)) and not (rest := rest.lstrip(b"\0")):
        pass
    return bool(rest) and not rest.startswith(_MP3_TAGS)


def _samples(version: int) -> int:
    return 1152 if version == _MPEG_1 else 576


def _frame_sizes(version: int, rate: int) -> dict[bytes, int]:
    """The bytes that frames of a version and sample rate take, by the first bytes of their header."""
    bitrates = _BITRATES_1 if version == _MPEG_1 else _BITRATES_2
    return {
        bytes((0xFF, 0xE2 | version << 3 | unprotected, index << 4 | rate << 2 | padding << 1 | private)): (
            _samples(version) * bitrate * 125 // _MP3_RATES[version][rate] + padding
        )
        for index, bitrate in enumerate(bitrates, 1)
        for unprotected in (0, 1)
        for padding in (0, 1)
        for private in (0, 1)
    }


# ------------------------------------------------------------ the zeros of a flac


def has_hole(file: BinaryIO, start: int) -> bool:
    """Tell whether zeros have replaced audio of an open flac, and more audio follows.

    A frame of silence has a header and is short, and padding stands in a block of metadata: neither is a long row of
    zeros among the frames. Header and end of such a file agree, so that nothing else shows what it lost.
    """
    at, is_last = start + 4, False
    while not is_last:
        file.seek(at)
        head = file.read(4)
        is_last = head[:1] >= b"\x80" or not head  # a flag of the last block of metadata
        at += 4 + _number(head, 1, 3)
    file.seek(at)
    is_found = False
    while data := file.read(_BLOCK):
        if not is_found and (zeros := data.find(bytes(_FLAC_HOLE))) >= 0:
            is_found, data = True, data[zeros:]
        if is_found and (rest := data.lstrip(b"\0")):
            return not rest.startswith(_MP3_TAGS)
    return False


# ------------------------------------------------------------ the pages of an ogg


def is_one_ogg_stream(file: BinaryIO) -> bool:
    """Tell whether the pages of an open ogg are those of one stream, numbered from 0, without a gap up to its end."""
    total, at, number, serial, flags = file.seek(0, SEEK_END), 0, 0, b"", 0
    while at < total:
        file.seek(at)
        page = file.read(OGG_HEADER + 255)
        serial = serial or page[14:18]
        if not page.startswith(b"OggS") or page[14:18] != serial or _little(page, 18) != number:
            return False
        flags, number = page[5], number + 1
        at += OGG_HEADER + _little(page, 26, 1) + sum(page[OGG_HEADER : OGG_HEADER + _little(page, 26, 1)])
    return at == total and bool(flags & OGG_END)
