"""What a track of the emulator costs: the CPU that it takes to make an mp3 that goes on with a song.

The song is unknown to the emulator (it makes one up), or an mp3 that was uploaded, as long as the position where it is
cut. The third row is the encoder alone: it writes as much silence, and most of the time is spent there.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import tempfile
import time
from collections.abc import Awaitable, Sequence
from pathlib import Path
from typing import Any

import av
import numpy as np

import kie_async as kie
from benchmarks._report import table, versions
from kie_async import emulator

GOES_ON = 30.0  # seconds after the cut
RATE = 22_050


def silence(seconds: float) -> bytes:
    """Encode silence as the emulator encodes its tracks."""
    target = io.BytesIO()
    with av.open(target, "w", format="mp3") as container:
        stream = container.add_stream("libmp3lame", rate=RATE, layout="mono", options={"compression_level": "9"})
        stream.bit_rate = 64_000
        samples = np.zeros((1, round(seconds * RATE)), dtype=np.float32)
        frame = av.AudioFrame.from_ndarray(samples, format="fltp", layout="mono")
        frame.sample_rate = RATE
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return target.getvalue()


async def cpu(making: Awaitable[bytes]) -> tuple[float, bytes]:
    """The CPU of all threads until the audio is there."""
    start = time.process_time()
    made = await making
    return time.process_time() - start, made


async def measure(seconds: float, rounds: int, folder: Path) -> dict[str, list[tuple[float, bytes]]]:
    """Make the tracks; every round is of other tasks, for a track is kept."""
    cut = seconds - GOES_ON
    fields: dict[str, Any] = {
        "model": "V5",
        "continue_at": cut,
        "instrumental": True,
        "style": "folk",
        "title": "Longer",
    }
    song = folder / "song.mp3"
    song.write_bytes(silence(cut + 1))
    found: dict[str, list[tuple[float, bytes]]] = {"an unknown song": [], "an mp3": [], "the encoder alone": []}
    async with emulator.serve(goes_on=(GOES_ON, GOES_ON)) as service:
        settings = kie.Settings(api_key=service.key, base_url=service.base_url)
        async with kie.KieSession(settings) as session:

            async def track(task: kie.Task) -> tuple[float, bytes]:
                return await cpu(service.audio(service.task(task.id).track_ids[0]))

            for number in range(rounds):
                unknown = await session.extend(f"song-{number}", **fields)
                found["an unknown song"].append(await track(unknown))
                uploaded = await session.upload_extend(song, **fields)
                found["an mp3"].append(await track(uploaded))
                found["the encoder alone"].append(await cpu(asyncio.to_thread(silence, seconds)))
    return found


def main(arguments: Sequence[str]) -> int:
    """Measure, and print the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks audio", description=__doc__)
    parser.add_argument("--seconds", type=float, default=180.0, help="the length of a track (%(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="tracks of each; the quickest counts (%(default)s)")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        found = asyncio.run(measure(options.seconds, options.rounds, Path(folder)))
    print(versions("av", "numpy") + f", a track of {options.seconds:.0f} s")
    best = {name: min(runs, key=lambda run: run[0]) for name, runs in found.items()}
    table(
        ("a track of", "CPU s", "MB"),
        [(name, f"{took:.2f}", f"{len(made) / 1e6:.1f}") for name, (took, made) in best.items()],
    )
    return 0
