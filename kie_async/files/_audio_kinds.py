"""Which kinds of audio file there are, how each begins, and where each says that it ends.

What counts is the content; a name or a header of HTTP proves nothing. A file may declare an end that is wrong; then
it does not end there, and is not taken for whole: only an end at the very byte counts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from os import SEEK_END
from types import MappingProxyType
from typing import BinaryIO, Literal, TypeAlias

import attrs

HEAD = 16  # bytes that are enough to tell a kind
_TAGS = 8  # ID3 tags in a row that are skipped
_SYNC = 0xFF  # the first byte of a frame of mp3 or ADTS
_ADTS = 0xF0  # the rest of the sync, and layer 0
_LAYER_3 = 0xE2  # the rest of the sync of an mp3, and its layer
_NO_VERSION, _NO_RATE, _NO_BITRATES = 1, 3, (0, 15)  # reserved values in the header of a frame
_PADDING = 4096  # zero bytes after a tag that are skipped
_ID3V1 = 128  # bytes of a tag that follows the audio of an mp3, and begins with "TAG"
_OGG_HEADER = 27  # bytes of a page before the sizes of its segments
_OGG_PAGE_MAX = _OGG_HEADER + 255 + 255 * 255
_OGG_END = 0x04  # flag of a stream's last page
_BOX_HEADER = 8  # bytes of a box of mp4 before its content: its size and its name
XING_MARKS = {b"Xing", b"Info"}
XING_OFFSETS = (36, 21, 13)  # in the first frame, behind its header and side information: by version and channels
_PICTURES = (b"heic", b"heix", b"hevc", b"heim", b"mif1", b"msf1", b"avif", b"avis")

_Ending: TypeAlias = Callable[[BinaryIO, int], bool | None]


@attrs.frozen
class AudioKind:
    """A kind of audio file: the suffix it should have, and the name of its demuxer."""

    suffix: str
    demuxer: str


MP3 = AudioKind(".mp3", "mp3")
WAV = AudioKind(".wav", "wav")
FLAC = AudioKind(".flac", "flac")
OGG = AudioKind(".ogg", "ogg")
M4A = AudioKind(".m4a", "mov")
AAC = AudioKind(".aac", "aac")
AIFF = AudioKind(".aiff", "aiff")
AUDIO_KINDS = (MP3, WAV, FLAC, OGG, M4A, AAC, AIFF)
AUDIO_KIND_NAMES = ", ".join(kind.suffix[1:] for kind in AUDIO_KINDS)


def begins_like_audio(head: bytes) -> bool:
    """Tell whether a file that begins so can be audio; ``head`` holds its first ``HEAD`` bytes or more."""
    return head.startswith(b"ID3") or _kind(head) is not None


def kind_of(file: BinaryIO) -> AudioKind | None:
    """Return the kind of an open file, whatever tags stand before its audio; None if it is no known audio."""
    start = audio_start(file)
    if start is None:
        return None
    file.seek(start)
    return _kind(file.read(HEAD))


def audio_start(file: BinaryIO) -> int | None:
    """Return where the audio of an open file begins, behind its tags; None if there are too many of them."""
    at = 0
    for _ in range(_TAGS):
        file.seek(at)
        head = file.read(HEAD)
        if not head.startswith(b"ID3") or len(head) < HEAD:
            return at
        # ID3v2: the size in 4 x 7 bits, without the header of 10 bytes and the footer of 10 (flag 0x10)
        size = sum((byte & 0x7F) << 7 * place for place, byte in enumerate(reversed(head[6:10])))
        at = _after_padding(file, at + 10 + size + (10 if head[5] & 0x10 else 0))
    return None


def _after_padding(file: BinaryIO, at: int) -> int:
    file.seek(at)
    block = file.read(_PADDING)
    return at + len(block) - len(block.lstrip(b"\0"))


def _kind(head: bytes) -> AudioKind | None:
    if len(head) < HEAD:
        return None
    for kind, found in (
        (WAV, head[:4] in {b"RIFF", b"RF64"} and head[8:12] == b"WAVE"),
        (FLAC, head.startswith(b"fLaC")),
        (OGG, head.startswith(b"OggS")),
        (AIFF, head.startswith(b"FORM") and head[8:12] in {b"AIFF", b"AIFC"}),
        (M4A, head[4:8] == b"ftyp" and head[8:12] not in _PICTURES),
        (AAC, head[0] == _SYNC and head[1] & 0xF6 == _ADTS),
        (MP3, _is_mp3_frame(head)),
    ):
        if found:
            return kind
    return None


def _is_mp3_frame(head: bytes) -> bool:
    """Read the header of an MPEG audio frame: sync, layer III, and nothing reserved in it."""
    version, bitrate, rate = head[1] >> 3 & 3, head[2] >> 4, head[2] >> 2 & 3
    is_synced = head[0] == _SYNC and head[1] & 0xE6 == _LAYER_3
    return is_synced and version != _NO_VERSION and bitrate not in _NO_BITRATES and rate != _NO_RATE


# ------------------------------------------------------------ where they end


def ends_as_declared(file: BinaryIO, kind: AudioKind) -> bool | None:
    """Tell whether a file ends where its content says that it ends; None if its content does not say."""
    ending = _ENDINGS.get(kind)
    return None if ending is None else ending(file, file.seek(0, SEEK_END))


def _number(data: bytes, at: int, size: int = 4) -> int:
    return int.from_bytes(data[at : at + size], "big")


def _mp3_ends(file: BinaryIO, size: int) -> bool | None:
    """Read the bytes of audio from the Xing (or Info) header that encoders write into the first frame."""
    start = audio_start(file) or 0
    file.seek(start)
    frame = file.read(max(XING_OFFSETS) + 16)
    for offset in XING_OFFSETS:
        mark, flags = frame[offset : offset + 4], _number(frame, offset + 4)
        if mark in XING_MARKS and flags & 2:
            end = start + _number(frame, offset + (12 if flags & 1 else 8))
            file.seek(end)
            return size == end or (size == end + _ID3V1 and file.read(3) == b"TAG")
    return None


def _wav_ends(file: BinaryIO, size: int) -> bool | None:
    return _chunk_ends(file, size, "little")


def _aiff_ends(file: BinaryIO, size: int) -> bool | None:
    return _chunk_ends(file, size, "big")


def _chunk_ends(file: BinaryIO, size: int, order: Literal["little", "big"]) -> bool | None:
    """Read the size of the one chunk that is the file; an encoder that could not go back leaves it open."""
    file.seek(4)
    length = int.from_bytes(file.read(4), order)
    if length in {0, 0xFFFFFFFF}:
        return None
    return size in {8 + length, 8 + length + length % 2}


def _ogg_ends(file: BinaryIO, size: int) -> bool | None:
    """Find the last page, which says that it is the last."""
    file.seek(max(size - _OGG_PAGE_MAX, 0))
    tail = file.read()
    page = tail[tail.rfind(b"OggS") :]
    segments = page[_OGG_HEADER : _OGG_HEADER + page[26]] if len(page) >= _OGG_HEADER else b""
    is_whole = len(page) == _OGG_HEADER + len(segments) + sum(segments)
    return is_whole and bool(page[5] & _OGG_END)


def _m4a_ends(file: BinaryIO, size: int) -> bool | None:
    """Go from box to box: they fill the file, and its index is one of them."""
    at, names = 0, set()
    while at < size:
        file.seek(at)
        head = file.read(16)
        length = _number(head, 0)
        if length == 1:
            length = int.from_bytes(head[8:16], "big")
        if length < _BOX_HEADER:  # a box without an end, or none at all
            return None
        names.add(head[4:8])
        at += length
    return at == size and b"moov" in names


_ENDINGS: Mapping[AudioKind, _Ending] = MappingProxyType(
    {MP3: _mp3_ends, WAV: _wav_ends, AIFF: _aiff_ends, OGG: _ogg_ends, M4A: _m4a_ends}
)
