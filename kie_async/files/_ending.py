"""Whether a file of audio ends where it declares its end, for files whose size nothing else tells.

A file may declare a size that is wrong; then it does not end there, and is not taken for whole. Only an end at the
very byte counts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from os import SEEK_END
from types import MappingProxyType
from typing import BinaryIO, Literal, TypeAlias

from kie_async.files._kinds import AIFF, M4A, MP3, OGG, WAV, Kind, audio_start

_ID3V1 = 128  # bytes of a tag that follows the audio of an mp3, and begins with "TAG"
_OGG_PAGE_MAX = 27 + 255 + 255 * 255
_OGG_END = 0x04  # flag of a stream's last page
_XING_OFFSETS = (36, 21, 13)  # in the first frame, behind its header and side information: by version and channels

_Ending: TypeAlias = Callable[[BinaryIO, int], bool | None]


def ends_as_declared(file: BinaryIO, kind: Kind) -> bool | None:
    """Tell whether a file ends where its content says that it ends; None if its content does not say."""
    ending = _ENDINGS.get(kind)
    return None if ending is None else ending(file, file.seek(0, SEEK_END))


def _mp3(file: BinaryIO, size: int) -> bool | None:
    """Read the bytes of audio from the Xing (or Info) header that encoders write into the first frame."""
    start = audio_start(file) or 0
    file.seek(start)
    frame = file.read(max(_XING_OFFSETS) + 16)
    for offset in _XING_OFFSETS:
        mark, flags = frame[offset : offset + 4], _number(frame, offset + 4)
        if mark in {b"Xing", b"Info"} and flags & 2:
            end = start + _number(frame, offset + (12 if flags & 1 else 8))
            file.seek(end)
            return size == end or (size == end + _ID3V1 and file.read(3) == b"TAG")
    return None


def _wav(file: BinaryIO, size: int) -> bool | None:
    return _chunk_ends(file, size, "little")


def _aiff(file: BinaryIO, size: int) -> bool | None:
    return _chunk_ends(file, size, "big")


def _chunk_ends(file: BinaryIO, size: int, order: Literal["little", "big"]) -> bool | None:
    """Read the size of the one chunk that is the file; an encoder that could not go back leaves it open."""
    file.seek(4)
    length = int.from_bytes(file.read(4), order)
    if length in {0, 0xFFFFFFFF}:
        return None
    return size in {8 + length, 8 + length + length % 2}


def _ogg(file: BinaryIO, size: int) -> bool | None:
    """Look for the last page, which says that it is the last."""
    file.seek(max(size - _OGG_PAGE_MAX, 0))
    tail = file.read()
    page = tail[tail.rfind(b"OggS") :]
    segments = page[27 : 27 + page[26]] if len(page) > 26 else b""  # noqa: PLR2004  # bytes before the segments
    is_whole = len(page) == 27 + len(segments) + sum(segments)
    return is_whole and bool(page[5] & _OGG_END)


def _m4a(file: BinaryIO, size: int) -> bool | None:
    """Go from box to box: they fill the file, and its index is one of them."""
    at, names = 0, set()
    while at < size:
        file.seek(at)
        head = file.read(16)
        length = _number(head, 0)
        if length == 1:
            length = int.from_bytes(head[8:16], "big")
        if length < 8:  # noqa: PLR2004  # a box without an end, or none at all
            return None
        names.add(head[4:8])
        at += length
    return at == size and b"moov" in names


def _number(data: bytes, at: int) -> int:
    return int.from_bytes(data[at : at + 4], "big")


_ENDINGS: Mapping[Kind, _Ending] = MappingProxyType({MP3: _mp3, WAV: _wav, AIFF: _aiff, OGG: _ogg, M4A: _m4a})
