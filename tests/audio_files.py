"""Audio made for tests, and the ways in which it lies about its length."""

from __future__ import annotations

import functools
import io
import struct
import tempfile
from pathlib import Path
from typing import Any

import av
import numpy as np

RATE = 44100
SECONDS = 20.0
HTML = b"<!DOCTYPE html><html><head><title>404</title></head><body>" + b"not here " * 500 + b"</body></html>"
ID3 = b"ID3\x04\x00\x00\x00\x00\x10\x00" + bytes(2048)
PNG = b"\x89PNG\r\n\x1a\n" + bytes(500)


def samples(seconds: float) -> np.ndarray[Any, np.dtype[np.int16]]:
    """A tone that is quiet, then loud and rough, by turns: what makes a variable bit rate vary."""
    time = np.arange(int(seconds * RATE)) / RATE
    loud = np.where(time % 10 < 7, 0.02, 0.8)
    rough = np.random.default_rng(1).standard_normal(len(time))
    tone = 32000 * np.clip(loud * (np.sin(2760 * time) + 0.3 * rough), -1, 1)
    return tone.astype(np.int16)


@functools.cache
def encoded(  # noqa: PLR0913  # as below
    codec: str,
    container: str,
    *,
    seconds: float = SECONDS,
    options: tuple[tuple[str, str], ...] = (),
    muxing: tuple[tuple[str, str], ...] = (),
    title: str = "",
    rate: int = RATE,
) -> bytes:
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory, "audio")
        _encode(path, codec, container, seconds, dict(options), dict(muxing), title, rate)
        return path.read_bytes()


def _encode(  # noqa: PLR0913, PLR0917  # what there is to choose
    path: Path,
    codec: str,
    container: str,
    seconds: float,
    options: dict[str, str],
    muxing: dict[str, str],
    title: str,
    rate: int,
) -> None:
    with av.open(str(path), "w", format=container, options=muxing) as file:
        if title:
            file.metadata["title"] = title
        stream = file.add_stream(codec, rate=rate, options=options)
        assert isinstance(stream, av.AudioStream)
        stream.layout = "mono"
        pieces = av.AudioResampler(stream.format, "mono", rate, frame_size=stream.codec_context.frame_size or 4096)
        pcm = samples(seconds)
        for at in range(0, len(pcm), RATE):
            frame = av.AudioFrame.from_ndarray(pcm[None, at : at + RATE], format="s16", layout="mono")
            frame.sample_rate, frame.pts = RATE, at
            for piece in pieces.resample(frame):
                file.mux(stream.encode(piece))
        for piece in pieces.resample(None):
            file.mux(stream.encode(piece))
        file.mux(stream.encode(None))


def decoded(data: bytes, seconds: float = 1e6) -> np.ndarray[Any, np.dtype[np.float32]]:
    """The samples of one channel at ``RATE``, up to a time."""
    with av.open(io.BytesIO(data), "r") as file:
        resampler = av.AudioResampler("flt", "mono", RATE)
        pieces = [piece.to_ndarray() for frame in file.decode(audio=0) for piece in resampler.resample(frame)]
    return np.concatenate([piece.reshape(-1) for piece in pieces])[: int(seconds * RATE)]


def mp3(seconds: float = SECONDS) -> bytes:
    return encoded("libmp3lame", "mp3", seconds=seconds)


def mp3_without_xing() -> bytes:
    """A variable bit rate, and nothing that says how many frames there are."""
    return encoded(
        "libmp3lame",
        "mp3",
        options=(("flags", "+qscale"), ("global_quality", "590")),
        muxing=(("write_xing", "0"), ("id3v2_version", "0")),
    )


def wav() -> bytes:
    return encoded("pcm_s16le", "wav")


def wav_that_claims(length: int) -> bytes:
    data = wav()
    at = data.index(b"data") + 4
    return data[:at] + struct.pack("<I", length) + data[at + 4 :]


def flac() -> bytes:
    return encoded("flac", "flac")


def flac_that_claims(count: int) -> bytes:
    data = bytearray(flac())
    data[21] = data[21] & 0xF0 | count >> 32
    data[22:26] = struct.pack(">I", count & 0xFFFFFFFF)
    return bytes(data)


def with_odd_title(data: bytes) -> bytes:
    """An mp3 whose title says that it is UTF-8, and is not."""
    text = b"\x03\xff\xfe\xe9 song"
    frame = b"TIT2" + bytes((0, 0, 0, len(text))) + b"\0\0" + text
    return b"ID3\x04\0\0" + bytes((0, 0, 0, len(frame))) + frame + data


def aac() -> bytes:
    return encoded("aac", "adts")


def m4a(*, index_first: bool = False) -> bytes:
    return encoded("aac", "ipod", muxing=(("movflags", "+faststart"),) if index_first else ())


def m4a_that_claims(ticks: int, *, edit_list: bool = False, last: int | None = None) -> bytes:
    """An index that gives each packet ``ticks`` samples, and perhaps the last one ``last``, where it has 1024."""
    data = bytearray(m4a() if edit_list else encoded("aac", "ipod", muxing=(("use_editlist", "0"),)))
    at = data.index(b"stts") + 8
    entries = struct.unpack_from(">I", data, at)[0]
    for entry in range(entries):
        struct.pack_into(">I", data, at + 8 + 8 * entry, ticks)
    if last is not None:
        assert entries > 1
        struct.pack_into(">I", data, at + 8 * entries, last)
    return bytes(data)


def m4a_cut_by_its_edit_list(start: int, milliseconds: int) -> bytes:
    """An index that plays from ``start`` (seconds) on for so long."""
    data = bytearray(m4a())
    (per_second,) = struct.unpack_from(">I", data, data.index(b"mvhd") + 16)
    struct.pack_into(">II", data, data.index(b"elst") + 12, milliseconds * per_second // 1000, 1024 + start * RATE)
    return bytes(data)


@functools.cache
def silent_film() -> bytes:
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory, "film")
        with av.open(str(path), "w", format="mp4") as file:
            stream = file.add_stream("mpeg4", rate=10)
            assert isinstance(stream, av.VideoStream)
            stream.width = stream.height = 16
            for _ in range(20):
                file.mux(stream.encode(av.VideoFrame(16, 16, "yuv420p")))
            file.mux(stream.encode(None))
        return path.read_bytes()


def ogg() -> bytes:
    return encoded("flac", "ogg")


def aiff() -> bytes:
    return encoded("pcm_s16be", "aiff")


def with_cover(data: bytes) -> bytes:
    """An mp3 with a picture before it, which a demuxer shows as a video."""
    picture = b"\x00image/png\x00\x03\x00" + PNG_PIXEL
    frame = b"APIC" + struct.pack(">I", len(picture)) + b"\x00\x00" + picture
    size = bytes(len(frame) >> shift & 0x7F for shift in (21, 14, 7, 0))
    return b"ID3\x03\x00\x00" + size + frame + data


PNG_PIXEL = bytes.fromhex(
    "89504e470d0a1a0a0000000d49484452000000010000000108060000001f15c4890000000d49444154789c6360606060000000050001"
    "a5f645400000000049454e44ae426082"
)
