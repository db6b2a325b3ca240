"""Which kinds of audio file there are, how each begins, and where each says that it ends.

Only the content counts: a name or an HTTP header proves nothing. A file counts as whole only if it ends at exactly the
byte that it declares as its end.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from functools import partial
from os import SEEK_END
from typing import BinaryIO, Literal

import attrs

HEAD = 16  # bytes that are enough to tell a kind
_TAGS = 8  # ID3 tags in a row that are skipped
_PADDING = 4096  # zero bytes after a tag that are skipped
_ID3V1 = 128  # bytes of a tag that follows the audio of an mp3, and begins with "TAG"
_OPEN_SIZE = 0x7FFF0000  # from here on, what stands in a header is what a program writes that cannot know the size
OGG_HEADER = 27  # bytes of a page before the sizes of its segments
_OGG_PAGE_MAX = OGG_HEADER + 255 + 255 * 255
OGG_END = 0x04  # flag of a stream's last page
_BOX_HEADER = 8  # bytes of a box of mp4 before its content: its size and its name
XING_MARKS = {b"Xing", b"Info"}
XING_OFFSETS = (36, 21, 13)  # in the first frame, behind its header and side information: by version and channels
_NO_BITRATES, _NO_RATE = (0, 15), 3  # reserved in the third byte of an mp3's frame
_MP3_RATES = bytes(byte for byte in range(256) if byte >> 4 not in _NO_BITRATES and byte >> 2 & 3 != _NO_RATE)


@attrs.frozen
class AudioKind:
    """A kind of audio file: the suffix it should have, the name of its demuxer, and how it begins behind its tags."""

    suffix: str
    demuxer: str
    _head: bytes

    def begins(self, head: bytes) -> bool:
        """Tell whether a file of this kind can begin so; ``head`` holds ``HEAD`` bytes or more."""
        return len(head) >= HEAD and re.match(self._head, head, re.DOTALL) is not None


MP3 = AudioKind(".mp3", "mp3", rb"\xff[\xe2\xe3\xf2\xf3\xfa\xfb][" + re.escape(_MP3_RATES) + rb"]")  # layer III
WAV = AudioKind(".wav", "wav", rb"(RIFF|RF64)....WAVE")
FLAC = AudioKind(".flac", "flac", rb"fLaC")
OGG = AudioKind(".ogg", "ogg", rb"OggS")
M4A = AudioKind(".m4a", "mov", rb"....ftyp(?!hei[cxm]|hevc|mif1|msf1|avi[fs])")  # those are pictures
AAC = AudioKind(".aac", "aac", rb"\xff[\xf0\xf1\xf8\xf9]")  # ADTS
AIFF = AudioKind(".aiff", "aiff", rb"FORM....AIF[FC]")
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
    return next((kind for kind in AUDIO_KINDS if kind.begins(head)), None)


# ------------------------------------------------------------ where they end


def ends_as_declared(file: BinaryIO, kind: AudioKind) -> bool | None:
    """Tell whether a file ends where its content says that it ends; None if its content does not say."""
    size = file.seek(0, SEEK_END)
    if kind is OGG:
        return _ogg_ends(file, size)
    end = declared_end(file, kind)
    return None if end is None else end == size


def declared_end(file: BinaryIO, kind: AudioKind) -> int | None:
    """Return at which byte a file ends, as its content says; None if its content does not say."""
    ending = _ENDINGS.get(kind)
    return None if ending is None else ending(file, file.seek(0, SEEK_END))


def _mp3_end(file: BinaryIO, _size: int) -> int | None:
    """Read the bytes of audio from the Xing (or Info) header that encoders write into the first frame."""
    start = audio_start(file) or 0
    file.seek(start)
    frame = file.read(max(XING_OFFSETS) + 16)
    for at in XING_OFFSETS:
        flags = int.from_bytes(frame[at + 4 : at + 8], "big")
        if frame[at : at + 4] in XING_MARKS and flags & 2:
            place = at + (12 if flags & 1 else 8)
            end = start + int.from_bytes(frame[place : place + 4], "big")
            file.seek(end)
            return end + (_ID3V1 if file.read(3) == b"TAG" else 0)
    return None


def _chunk_end(file: BinaryIO, size: int, order: Literal["little", "big"]) -> int | None:
    """Return the end by the size of the chunk that holds all others; None if the encoder could not fill it in."""
    file.seek(4)
    length = int.from_bytes(file.read(4), order)
    end = 8 + length
    return None if length == 0 or length >= _OPEN_SIZE else max(end, min(size, end + length % 2))


def _ogg_ends(file: BinaryIO, size: int) -> bool | None:
    """Find the last page, which says that it is the last."""
    file.seek(max(size - _OGG_PAGE_MAX, 0))
    tail = file.read()
    page = tail[tail.rfind(b"OggS") :]
    segments = page[OGG_HEADER : OGG_HEADER + page[26]] if len(page) >= OGG_HEADER else b""
    is_whole = len(page) == OGG_HEADER + len(segments) + sum(segments)
    return is_whole and bool(page[5] & OGG_END)


def _m4a_end(file: BinaryIO, size: int) -> int | None:
    """Return where the last box ends; without the index (``moov``), at least one more box is missing."""
    at, names = 0, set()
    while at < size:
        file.seek(at)
        head = file.read(16)
        length = int.from_bytes(head[:4], "big")
        if length == 1:
            length = int.from_bytes(head[8:], "big")
        if length < _BOX_HEADER:  # a box without an end, or none at all
            return None
        names.add(head[4:8])
        at += length
    return at if b"moov" in names else at + _BOX_HEADER


_ENDINGS: Mapping[AudioKind, Callable[[BinaryIO, int], int | None]] = {
    MP3: _mp3_end,
    WAV: partial(_chunk_end, order="little"),
    AIFF: partial(_chunk_end, order="big"),
    M4A: _m4a_end,
}
