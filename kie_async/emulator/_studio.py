"""Audio on demand: made when it is first asked for, in a worker thread, and kept within bounds."""

from __future__ import annotations

import importlib
from collections import OrderedDict
from typing import Protocol, cast

import anyio
from anyio import to_thread

KEPT_BYTES = 128_000_000


class AudioMissingError(RuntimeError):
    """Audio is needed, and the extra ``kie_async[audio]`` (PyAV and numpy) is not installed."""

    def __init__(self) -> None:
        super().__init__("the emulator makes audio with PyAV and numpy: pip install 'kie_async[audio]'")


class Engine(Protocol):
    """What makes and reads audio: the module ``_audio``."""

    def measure(self, content: bytes) -> float:
        """The length of audio in seconds; ValueError if it is none."""
        ...

    def continued(self, source: bytes | str, *, start: float, seconds: float, take: int, seed: str) -> bytes:
        """An mp3 that begins as the source and goes on after ``start``."""
        ...

    def demo_song(self) -> bytes:
        """A short song, as a wav file."""
        ...


def engine() -> Engine:
    """Load what makes audio.

    Raises:
        AudioMissingError: the extra is not installed.
    """
    try:
        module = importlib.import_module("kie_async.emulator._audio")  # an extra, and long to load
    except ImportError as error:
        raise AudioMissingError from error
    return cast("Engine", module)


def demo_song() -> bytes:
    """Make a song of some 25 seconds to try things with, as a wav file.

    Raises:
        AudioMissingError: the extra ``kie_async[audio]`` is not installed.
    """
    return engine().demo_song()


class Studio:
    """Makes tracks, each once, as long as they are asked for again soon."""

    def __init__(self) -> None:
        self._kept: OrderedDict[str, bytes] = OrderedDict()
        self._one = anyio.Lock()

    def kept(self, name: str) -> bytes | None:
        """A track that was made before."""
        if name in self._kept:
            self._kept.move_to_end(name)
        return self._kept.get(name)

    async def continued(self, name: str, source: bytes | str, *, start: float, seconds: float, take: int) -> bytes:
        """Make a track that continues a source, and keep it under a name."""
        make = engine().continued
        async with self._one:  # two at once would only take twice as long
            if (kept := self.kept(name)) is not None:
                return kept
            made = await to_thread.run_sync(
                lambda: make(source, start=start, seconds=seconds, take=take, seed=name)
            )  # fmt: skip
            self._keep(name, made)
        return made

    def _keep(self, name: str, made: bytes) -> None:
        self._kept[name] = made
        while sum(map(len, self._kept.values())) > KEPT_BYTES and len(self._kept) > 1:
            self._kept.popitem(last=False)

    async def measure(self, content: bytes) -> float | None:
        """The length of audio in seconds; None if the extra is not installed.

        Raises:
            ValueError: no audio.
        """
        try:
            measure = engine().measure
        except AudioMissingError:
            return None
        return await to_thread.run_sync(measure, content)
