"""Kinds of audio, told by what is in a file; a name or a header of HTTP proves nothing."""

from __future__ import annotations

from typing import BinaryIO

import attrs

HEAD = 16  # bytes that are enough to tell a kind
_TAGS = 8  # ID3 tags in a row that are skipped
_SYNC = 0xFF  # the first byte of a frame of mp3 or ADTS
_ADTS = 0xF0  # the rest of the sync, and layer 0
_LAYER_3 = 0xE2  # the rest of the sync of an mp3, and its layer
_NO_VERSION, _NO_RATE, _NO_BITRATES = 1, 3, (0, 15)  # reserved values in the header of a frame
_PADDING = 4096  # zero bytes after a tag that are skipped
_PICTURES = (b"heic", b"heix", b"hevc", b"heim", b"mif1", b"msf1", b"avif", b"avis")


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
