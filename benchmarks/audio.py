"""What a track of the emulator costs: the CPU that it takes to make an mp3 which goes on with a song.

The song is one that nobody has (the emulator makes it up), or an mp3 as long as the place where it is cut. Encoding
takes most of it: the same number of samples of silence, encoded alone, is the row to compare with.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence

from benchmarks._report import table, versions
from kie_async.emulator import _mp3, _music

ROW = tuple[str, str, str]


def measure(name: str, make: Callable[[], bytes], rounds: int) -> ROW:
    """The quickest of some runs."""
    best, size = float("inf"), 0
    for _ in range(rounds):
        start = time.process_time()
        size = len(make())
        best = min(best, time.process_time() - start)
    return name, f"{best:.2f}", f"{size / 1e6:.1f}"


def rows(seconds: float, rounds: int) -> list[ROW]:
    """Measure each way to a track."""
    start = max(1.0, seconds - 30)
    song = _mp3.encode(_music.unknown_sound(start, "song"))

    def track(source: bytes | str) -> bytes:
        return _mp3.continued(source, start=start, seconds=seconds, take=0, seed="track")

    return [
        measure("a track of a song that nobody has", lambda: track("song"), rounds),
        measure("a track of an mp3", lambda: track(song), rounds),
        measure("the encoder alone", lambda: _mp3.encode(_music.silence(seconds)), rounds),
    ]


def main(arguments: Sequence[str]) -> int:
    """Measure, and print the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks audio", description=__doc__)
    parser.add_argument("--seconds", type=float, default=180.0, help="the length of the track (%(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="runs of each; the quickest counts (%(default)s)")
    options = parser.parse_args(arguments)
    print(versions("av", "numpy") + f", a track of {options.seconds:.0f} s")
    table(("", "CPU s", "MB"), rows(options.seconds, options.rounds))
    return 0
