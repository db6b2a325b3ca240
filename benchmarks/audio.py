"""What audio costs: the CPU of a track of the emulator, of a verdict, and of joining; and how right verdicts are.

The song is unknown to the emulator (it makes one up), or an mp3 that was uploaded, as long as the position where it is
cut. The third row is the encoder alone: it writes as much silence, and most of the time is spent there.

A verdict is on two mp3 of two channels and 44.1 kHz, of which the second holds the first up to the cut; they are joined
as a whole song, verdict included. What the mp3 takes that a wav does not is LAME's. The study makes seeded
pairs (delayed, amplified, coded, resampled, slowed down; looping, silent in places, cut early) of songs that are made
up, or found in a folder, and compares what ``kie.audio.compare`` says with the truth.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Sequence
from pathlib import Path
from random import Random
from typing import Any

import av
import numpy as np

import kie_async as kie
from benchmarks._audio_cases import RATE as CASE_RATE
from benchmarks._audio_cases import Case, Mono, Song, made_up_song, make_case, write_mp3
from benchmarks._report import table, versions
from kie_async import emulator
from kie_async.audio import SUFFIXES, Verdict, compare, join, read_mono

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


def write_pair(seconds: float, folder: Path) -> tuple[Path, Path, float]:
    """Write a song, and one that begins as it and goes on otherwise; return them and the cut."""
    cut = seconds - GOES_ON
    chance = Random(1)  # noqa: S311  # chance, not secrecy
    song, other = made_up_song(chance, seconds), made_up_song(chance, GOES_ON)
    paths = folder / "source.mp3", folder / "result.mp3"
    sounds = song, np.concatenate([song[: round(cut * CASE_RATE)], other])
    for path, sound in zip(paths, sounds, strict=True):
        write_mp3(path, sound, rate=44_100, bit_rate=192_000, layout="stereo")
    return *paths, cut


def songs_of(folder: Path) -> Song:
    """Find songs in a folder, of any kind that can be read."""
    paths = sorted(path for path in folder.rglob("*") if path.suffix in {".ogg", ".mp3", ".flac", ".wav"})

    def find(chance: Random, seconds: float) -> Mono:
        while True:
            song = read_mono(chance.choice(paths), CASE_RATE, end=seconds + 1)
            if len(song) >= seconds * CASE_RATE:
                return song

    return find


async def study(count: int, song: Song | None, folder: Path) -> list[tuple[Case, Verdict]]:
    """Make seeded cases and the verdicts on them."""
    found = []
    for seed in range(count):
        case = make_case(seed, song, longest=30.0 if song is None else 90.0)
        paths = case.write(folder)
        found.append((case, await compare(*paths, continue_at=case.continue_at)))
        for path in paths:
            path.unlink()
    return found


def print_study(found: Sequence[tuple[Case, Verdict]]) -> None:
    """Print how many verdicts are right, and each that is wrong."""
    counts: Counter[tuple[str, str]] = Counter()
    for case, verdict in found:
        word = "right" if verdict.kind == case.truth else "unclear" if verdict.kind == "unclear" else "wrong"
        counts[case.truth, word] += 1
        if word == "wrong":
            print(f"wrong: {case}, {verdict}")
    words = ("right", "unclear", "wrong")
    rows = [(truth, *(counts[truth, word] for word in words)) for truth in ("whole", "continuation")]
    table(("the truth", *words), rows)
    wrong = [verdict.confidence for case, verdict in found if verdict.kind not in {case.truth, "unclear"}]
    print(f"{len(found)} cases; the surest wrong verdict: {max(wrong, default=0.0):.2f}")


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
    parser.add_argument("--pair", type=float, default=240.0, help="seconds of what is compared (%(default)s)")
    parser.add_argument("--cases", type=int, default=200, help="of the study (%(default)s)")
    parser.add_argument("--songs", type=Path, help="a folder of songs for the study; by default they are made up")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        found = asyncio.run(measure(options.seconds, options.rounds, folder))
        source, result, cut = write_pair(options.pair, folder)
        took = []
        for _ in range(options.rounds):
            start = time.process_time()
            asyncio.run(compare(source, result, continue_at=cut))
            took.append(time.process_time() - start)
        joins = {}
        for suffix in SUFFIXES:
            start = time.process_time()
            asyncio.run(join(source, result, at=cut, out=folder / f"joined{suffix}"))
            joins[suffix] = time.process_time() - start
        cases = asyncio.run(study(options.cases, options.songs and songs_of(options.songs), folder))
    print(versions("av", "numpy") + f", a track of {options.seconds:.0f} s")
    best = {name: min(runs, key=lambda run: run[0]) for name, runs in found.items()}
    table(
        ("a track of", "CPU s", "MB"),
        [(name, f"{cost:.2f}", f"{len(made) / 1e6:.1f}") for name, (cost, made) in best.items()],
    )
    table(("a verdict on", "CPU s"), [(f"two mp3 of {options.pair:.0f} s", f"{min(took):.2f}")])
    table(("joining them as", "CPU s"), [(suffix, f"{cost:.2f}") for suffix, cost in joins.items()])
    print_study(cases)
    return 0
