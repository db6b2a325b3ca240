"""The outline of a file of audio: its peaks, in equal parts of its length, and how loud it is to the ear.

Decoding takes most of the time: 0.15 s of CPU for four minutes of mp3, of 0.22 s in all. PyAV lets other threads run
meanwhile, so a thread for each core does it. What was read is kept in a file of the folder until a file changes.
"""

from __future__ import annotations

import json
import math
import os
from base64 import b64decode, b64encode
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import attrs

from kie_async._fsync import replace_file
from kie_async.errors import AudioError
from kie_async.files import kind_of, open_audio

if TYPE_CHECKING:
    import numpy as np
    from av.audio.frame import AudioFrame
    from av.container import InputContainer
    from numpy.typing import NDArray

Mono: TypeAlias = "NDArray[np.float32]"  # samples of one channel

PARTS = 480
CACHE = ".kie-async-peaks.json"
_FORMAT = 2  # of the cache
_STEPS = 100  # a second: what is shorter is not told apart
_STEPS_OF_FRAME = 10  # of a ``LevelProfile``
_STEPS_AT_ONCE = 12 * _STEPS_OF_FRAME
_MAX_CHANNELS = 7  # PyAV crashes on the planes of more


@attrs.frozen
class Outline:
    """The outline of a file.

    Attributes:
        seconds: how long it is; 0 if it cannot be decoded.
        peaks: up to ``PARTS`` bytes, 255 for full scale; empty if it cannot be decoded.
        levels: how loud it is, as a ``LevelProfile`` has it; empty if it is shorter than 0.1 s.
    """

    seconds: float
    peaks: bytes
    levels: bytes = b""


NO_OUTLINE = Outline(0.0, b"")


def read_outline(path: Path) -> Outline:
    """Decode a file; ``NO_OUTLINE`` for what is no audio or cannot be decoded. It blocks."""
    try:
        with path.open("rb") as file:
            kind = kind_of(file)
            if kind is None:
                return NO_OUTLINE
            file.seek(0)
            # The demuxer is named, so that no playlist or script is taken for audio and followed elsewhere.
            with open_audio(file, kind.demuxer) as container:
                return _outline(container)
    except Exception:  # noqa: BLE001  # PyAV raises anything; one odd file must not cost the report of all others
        return NO_OUTLINE


def _outline(container: InputContainer) -> Outline:
    import numpy as np  # an extra, and slow to import

    samples, rate, parts, levels = 0, 1, [np.zeros(0, dtype=np.float32)], b""
    for block in _blocks(container):
        rate = block.sample_rate
        samples += block.samples
        values = _values(block)
        parts.append(_peaks(values, _step(block)))
        levels += _levels(values, _step(block) * _STEPS_OF_FRAME, rate)
    peaks = np.concatenate(parts)
    if not peaks.size:
        return NO_OUTLINE
    count = min(PARTS, len(peaks))
    highest = np.maximum.reduceat(peaks, np.arange(count) * len(peaks) // count)
    return Outline(samples / rate, np.nan_to_num(highest * 255).clip(0, 255).astype(np.uint8).tobytes(), levels)


def _blocks(container: InputContainer) -> Iterator[AudioFrame]:
    """Decode what can be decoded; the demuxer ends the file at damage that it cannot pass."""
    import av  # an extra, and slow to import

    waiting, size = av.AudioFifo(), 1
    with suppress(av.FFmpegError):
        for packet in container.demux(container.streams.audio[0]):
            with suppress(av.FFmpegError):
                for frame in packet.decode():
                    size = _step(frame) * _STEPS_AT_ONCE
                    frame.pts = None  # gaps that the time stamps claim are none
                    waiting.write(frame)
            yield from waiting.read_many(size)
    yield from waiting.read_many(size, partial=True)


def _values(block: AudioFrame) -> NDArray[Any]:
    """The samples of a block as they are: channels x samples."""
    channels = block.layout.nb_channels
    if channels > _MAX_CHANNELS:
        raise AudioError("has too many channels")
    values = block.to_ndarray()
    return values if block.format.is_planar else values.reshape(-1, channels).T


def _peaks(values: NDArray[Any], step: int) -> Mono:
    """How far a block departs from silence in each of its steps, in any channel; full scale is 1."""
    import numpy as np  # an extra, and slow to import

    steps = values[:, : values.shape[1] // step * step].reshape(len(values), -1, step)
    silence, scale = _scale(values)
    lowest, highest = (extreme.astype(np.float32) - silence for extreme in (steps.min(axis=2), steps.max(axis=2)))
    peaks: Mono = np.maximum(highest, -lowest).max(axis=0) / scale
    return peaks


def _levels(values: NDArray[Any], size: int, rate: int) -> bytes:
    """How loud each frame of a block is."""
    import numpy as np  # an extra, and slow to import

    from kie_async.audio import frame_levels

    frames = values[:, : values.shape[1] // size * size].reshape(len(values), -1, size).astype(np.float32, copy=False)
    silence, scale = _scale(values)
    return frame_levels(frames if scale == 1 else (frames - np.float32(silence)) / np.float32(scale), rate)


def _scale(values: NDArray[Any]) -> tuple[float, float]:
    """What is silence in samples, and by how much full scale departs from it."""
    bits = 8 * values.dtype.itemsize
    return 128.0 if values.dtype.kind == "u" else 0.0, 1.0 if values.dtype.kind == "f" else float(1 << bits - 1)


def _step(frame: AudioFrame) -> int:
    return max(frame.sample_rate // _STEPS, 1)


# ---------------------------------------------------------------- the cache


class OutlineCache:
    """The outlines of files, kept in a folder; each counts as long as its file has the same size and time.

    Args:
        directory: where they are kept; made before.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._kept = _read(directory / CACHE)
        self._used: dict[str, list[Any]] = {}

    def find(self, path: Path) -> Outline:
        """Return the outline of a file, which is read if the file is new or has changed; it blocks.

        Raises:
            OSError: there is no such file.
        """
        name, stat = os.path.relpath(path, self._directory), path.stat()
        identity = [stat.st_size, stat.st_mtime_ns]
        outline = _unpacked(self._kept.get(name), identity) or read_outline(path)
        if outline.peaks:  # what could not be decoded is tried again, perhaps by another version of PyAV
            packed = (b64encode(each).decode() for each in (outline.peaks, outline.levels))
            self._used[name] = [*identity, outline.seconds, *packed]
        return outline

    def save(self) -> None:
        """Keep what was asked for, and forget the rest; it blocks."""
        if self._used != self._kept:
            replace_file(self._directory / CACHE, json.dumps({"format": _FORMAT, "files": self._used}).encode() + b"\n")


def _read(path: Path) -> Mapping[str, Any]:
    """The outlines that are kept; none if the file is missing, or is not ours."""
    try:
        value = json.loads(path.read_bytes())
        files = value["files"] if value["format"] == _FORMAT else {}
    except (OSError, ValueError, RecursionError, LookupError, TypeError):
        return {}
    return files if isinstance(files, dict) else {}


def _unpacked(kept: object, identity: list[int]) -> Outline | None:
    if not isinstance(kept, list) or kept[:2] != identity:
        return None
    try:
        seconds, *packed = kept[2:]
        peaks, levels = map(b64decode, packed)
        outline = Outline(float(seconds), peaks, levels)
    except (TypeError, ValueError):
        return None
    return outline if 0 < outline.seconds < math.inf else None
