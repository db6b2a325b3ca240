"""How long a file of audio is, by its beginning and its size: pure.

A length counts as proven if the header states it and the size of the whole file agrees with it. Ogg, ADTS, AIFF and
mp3 without a Xing header do not say it in their beginning; of an mp4, the index must stand before the audio.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from kie_async.files._kinds import FLAC, M4A, MP3, WAV, Kind

_ENDING = 1 << 16  # bytes of tags that may follow the audio
_UNKNOWN = 0xFFFFFFFF  # a size that was not known when the header was written
_PCM = {1, 3, 0xFFFE}  # formats of wav whose size is their length: integers, floats, and either with more channels


def stated_length(kind: Kind, data: bytes, start: int, total: int) -> float | None:
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


def _wav(data: bytes, start: int, total: int) -> float | None:
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


def _flac(data: bytes, start: int, total: int) -> float | None:
    packed = _number(data, start + 18, 8)  # 20 bits of rate, 3 of channels, 5 of depth, 36 of samples
    rate, channels, depth = packed >> 44, (packed >> 41 & 7) + 1, (packed >> 36 & 31) + 1
    count = packed & (1 << 36) - 1
    is_first = data[start + 4 : start + 5] in {b"\x00", b"\x80"}
    if not is_first or not rate or not count or total - len(data) > count * channels * depth // 8:
        return None
    return count / rate


_MP3_RATES = {3: (44_100, 48_000, 32_000), 2: (22_050, 24_000, 16_000), 0: (11_025, 12_000, 8_000)}  # by version


def _mp3(data: bytes, start: int, total: int) -> float | None:
    head = data[start : start + 4]
    version, rate, is_mono = head[1] >> 3 & 3, head[2] >> 2 & 3, head[3] >> 6 == 3  # noqa: PLR2004  # the header's bits
    is_first = version == 3  # noqa: PLR2004  # MPEG 1, with twice the samples and side information of MPEG 2
    side = (17 if is_mono else 32) if is_first else (9 if is_mono else 17)
    xing = start + 4 + side
    frames, size = _number(data, xing + 8), _number(data, xing + 12)
    if data[xing : xing + 4] not in {b"Xing", b"Info"} or _number(data, xing + 4) & 3 != 3:  # noqa: PLR2004  # both
        return None
    if not 0 <= total - start - size <= _ENDING:  # cut off, or another file follows
        return None
    return frames * (1152 if is_first else 576) / _MP3_RATES[version][rate]


def _m4a(data: bytes, _start: int, total: int) -> float | None:
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


_READERS: Mapping[Kind, Callable[[bytes, int, int], float | None]] = {WAV: _wav, FLAC: _flac, MP3: _mp3, M4A: _m4a}
