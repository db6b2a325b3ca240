"""Kinds of audio, told by what is in a file; a name or a header of HTTP proves nothing."""

from __future__ import annotations

from typing import BinaryIO

import attrs

HEAD = 16  # bytes that are enough to tell a kind
_TAGS = 8  # ID3 tags in a row that are skipped
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
KINDS = (MP3, WAV, FLAC, OGG, M4A, AAC, AIFF)
NAMES = ", ".join(kind.suffix[1:] for kind in KINDS)


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
        (AAC, head[0] == 0xFF and head[1] & 0xF6 == 0xF0),  # noqa: PLR2004  # sync, layer 0: ADTS
        (MP3, _is_mp3_frame(head)),
    ):
        if found:
            return kind
    return None


def _is_mp3_frame(head: bytes) -> bool:
    """Read the header of an MPEG audio frame: sync, layer III, and nothing reserved in it."""
    version, bitrate, rate = head[1] >> 3 & 3, head[2] >> 4, head[2] >> 2 & 3
    synced = head[0] == 0xFF and head[1] & 0xE6 == 0xE2  # noqa: PLR2004  # 11 bits of sync, layer III
    return synced and version != 1 and 0 < bitrate < 15 and rate != 3  # noqa: PLR2004  # reserved values
