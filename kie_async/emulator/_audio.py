"""Tracks on demand: made in a worker thread when first requested, and cached.

The codec (``_mp3``) needs the extra ``kie_async[audio]`` and is imported on first use.
"""

from __future__ import annotations

import importlib
from collections import OrderedDict
from typing import Protocol, cast

import anyio
from anyio import to_thread

MAX_TRACKS = 64  # in the cache; some 1.4 MB each


class AudioMissingError(RuntimeError):
    """Audio is needed, but the extra ``kie_async[audio]`` (PyAV and numpy) is not installed."""

    def __init__(self) -> None:
        super().__init__("the emulator makes audio with PyAV and numpy: pip install 'kie_async[audio]'")


class AudioCodec(Protocol):
    """What decodes and encodes audio: the module ``_mp3``."""

    def measure(self, content: bytes) -> float:
        """Return the length of audio in seconds; ValueError if it is none."""
        ...

    def continued(self, source: bytes | str, *, start: float, seconds: float, take: int, seed: str) -> bytes:
        """Make an mp3 that begins with the source and continues after ``start``."""
        ...

    def demo_song(self) -> bytes:
        """Make a short song, as a wav file."""
        ...


def codec() -> AudioCodec:
    """Import the codec.

    Raises:
        AudioMissingError: the extra is not installed.
    """
    try:
        module = importlib.import_module("kie_async.emulator._mp3")  # needs an extra, and is slow to import
    except ImportError as error:
        raise AudioMissingError from error
    return cast("AudioCodec", module)


def demo_song() -> bytes:
    """Make a song of some 25 seconds to try things with, as a wav file.

    Raises:
        AudioMissingError: the extra ``kie_async[audio]`` is not installed.
    """
    return codec().demo_song()


async def measure(content: bytes) -> float | None:
    """Return the length of audio in seconds; None if the extra is not installed.

    Raises:
        ValueError: no audio.
    """
    try:
        return await to_thread.run_sync(codec().measure, content)
    except AudioMissingError:
        return None


class AudioCache:
    """Makes tracks and keeps the most recently used."""

    def __init__(self) -> None:
        self._tracks: OrderedDict[str, bytes] = OrderedDict()
        self._one = anyio.Lock()

    def get(self, name: str) -> bytes | None:
        """Return a track from the cache; None if it is not there."""
        if name in self._tracks:
            self._tracks.move_to_end(name)
        return self._tracks.get(name)

    async def continued(self, name: str, source: bytes | str, *, start: float, seconds: float, take: int) -> bytes:
        """Make a track that continues a source, and cache it under a name."""
        make = codec().continued
        async with self._one:  # two at once would take twice as long each
            if (track := self.get(name)) is not None:
                return track
            made = await to_thread.run_sync(
                lambda: make(source, start=start, seconds=seconds, take=take, seed=name)
            )  # fmt: skip
            self._tracks[name] = made
            if len(self._tracks) > MAX_TRACKS:
                self._tracks.popitem(last=False)
        return made
