"""Wall time and CPU of uploading songs and downloading their tracks, against a bare loop over the same files.

The host runs in another process on loopback, as fast as that is or, with ``--mbit``, at the rate of a line. A session
measures each song before it is sent, proves each track whole, audio and as long as its record says, and writes it
durably. A batch hashes each song and each track besides, and writes a sidecar for each track, twice, and a line for
each song, all durably; its tasks are left out. The bare loop hashes the same bytes, writes them, calls fsync and
renames, and checks nothing. All take turns in fresh processes, with as many files at once; the medians of the wall time
and of the CPU of the process (user and system) are compared.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

import aiohttp

import kie_async as kie
from benchmarks._report import table, versions
from benchmarks._server_process import server_process
from kie_async import files
from kie_async.batch import Results
from kie_async.journal import Job, JobResults, LastAttempt, State

TRACKS = 2  # of each song
Upload = Callable[[Path], Awaitable[None]]
Download = Callable[[int, Path], Awaitable[None]]  # of all tracks of a song, by its number
SECONDS_PER_BYTE = 8 / 192_000  # of the songs made here


@asynccontextmanager
async def session(base_url: str, song: Path) -> AsyncGenerator[tuple[Upload, Download]]:
    """A session as users make it."""
    seconds = files.measure(song)
    async with kie.KieSession(kie.Settings(api_key="k" * 32, base_url=base_url)) as ours:

        async def upload(path: Path) -> None:
            assert (await ours.upload(path)).duration == seconds

        async def download(number: int, directory: Path) -> None:
            for track in tracks_of(number, base_url, seconds):
                await ours.download(track, directory)

        yield upload, download


@asynccontextmanager
async def batch(base_url: str, song: Path) -> AsyncGenerator[tuple[Upload, Download]]:
    """What a batch does with its files."""
    seconds = files.measure(song)
    async with kie.KieSession(kie.Settings(api_key="k" * 32, base_url=base_url)) as ours:

        async def upload(path: Path) -> None:
            assert (await files.on_disk(lambda: files.hash_source(path, measured=True)))[1] == seconds
            await ours.upload(path, measure=False)

        async def download(number: int, directory: Path) -> None:
            job = Job(
                key=f"song-{number}",
                request=kie.ExtendRequest("a1", model="V5"),
                state=State.SUCCEEDED,
                last_attempt=LastAttempt(task_id=f"task-{number}"),
                results=JobResults(tracks=tracks_of(number, base_url, seconds)),
            )
            results = Results(directory)
            for track in job.tracks:
                await results.save(ours.download, job, track)
            await results.record_end(job)

        yield upload, download


def tracks_of(number: int, base_url: str, seconds: float) -> tuple[kie.Track, ...]:
    """The tracks of a song, as long as it is."""
    names = [f"{number}-{track}" for track in range(TRACKS)]
    return tuple(kie.Track(name, f"{base_url}/tracks/{name}", title="Song", duration=seconds) for name in names)


@asynccontextmanager
async def bare(base_url: str, _song: Path) -> AsyncGenerator[tuple[Upload, Download]]:
    """The same by hand, without any care but for hashing, fsync and rename."""
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as client:

        async def upload(path: Path) -> None:
            data = await asyncio.to_thread(path.read_bytes)
            await asyncio.to_thread(hashlib.sha256, data)
            form = aiohttp.FormData({"uploadPath": "bare", "fileName": path.name})
            form.add_field("file", data, filename=path.name)
            async with client.post(f"{base_url}/api/file-stream-upload", data=form) as response:
                assert (await response.json())["data"]["fileSize"] == len(data)

        async def download(number: int, directory: Path) -> None:
            for track in range(TRACKS):
                await fetch(f"{number}-{track}", directory)

        async def fetch(name: str, directory: Path) -> None:
            draft = directory / f"{name}.part"
            digest = hashlib.sha256()
            with draft.open("wb") as file:
                async with client.get(f"{base_url}/tracks/{name}") as response:
                    async for chunk in response.content.iter_chunked(1 << 20):
                        await asyncio.to_thread(digest.update, chunk)
                        await asyncio.to_thread(file.write, chunk)
                file.flush()
                await asyncio.to_thread(os.fsync, file.fileno())
            draft.rename(directory / f"{name}.mp3")

        yield upload, download


Client = Callable[[str, Path], AbstractAsyncContextManager[tuple[Upload, Download]]]
CLIENTS: Mapping[str, Client] = {"session": session, "batch": batch, "bare loop": bare}


async def run(client: str, base_url: str, song: Path, songs: int, at_once: int) -> tuple[float, float]:
    """Upload so many songs and download their tracks; return the seconds of wall time and of CPU."""
    numbers = iter(range(songs))
    with tempfile.TemporaryDirectory(dir=song.parent) as place:
        async with CLIENTS[client](base_url, song) as (upload, download):

            async def worker() -> None:
                for number in numbers:
                    await upload(song)
                    await download(number, Path(place))

            wall, cpu = time.perf_counter(), time.process_time()
            await asyncio.gather(*(worker() for _ in range(at_once)))
            return time.perf_counter() - wall, time.process_time() - cpu


def child(client: str, base_url: str, song: str, songs: int, at_once: int) -> None:
    """Run one client, and print what it took."""
    print(json.dumps(asyncio.run(run(client, base_url, Path(song), songs, at_once))))


def in_a_process(client: str, base_url: str, song: Path, songs: int, at_once: int) -> tuple[float, float]:
    """Run one client in a fresh process."""
    code = f"from benchmarks import files; files.child({client!r}, {base_url!r}, {str(song)!r}, {songs}, {at_once})"
    done = subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.PIPE)  # noqa: S603  # ourselves
    wall, cpu = json.loads(done.stdout)
    return wall, cpu


def make_song(directory: Path, size: int) -> Path:
    """Write an mp3 of about so many bytes: noise, at 192 kbit/s."""
    import av  # an extra
    import numpy as np  # with the same extra

    path, rate = directory / "song.mp3", 44_100
    chance = np.random.default_rng(1)
    with av.open(str(path), "w", format="mp3") as file:
        stream = file.add_stream("libmp3lame", rate=rate, options={"b": "192000"})
        assert isinstance(stream, av.AudioStream)
        stream.layout = "mono"
        for at in range(0, int(size * SECONDS_PER_BYTE * rate) // 1152 * 1152, 1152):
            pcm = (chance.standard_normal((1, 1152)) * 5000).astype(np.int16)
            frame = av.AudioFrame.from_ndarray(pcm, format="s16p", layout="mono")
            frame.sample_rate, frame.pts = rate, at
            file.mux(stream.encode(frame))
        file.mux(stream.encode(None))
    return path


def main(arguments: list[str]) -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks files", description=__doc__)
    parser.add_argument("--songs", type=int, default=150)
    parser.add_argument("--size", type=int, default=4_000_000, help="bytes of a song, and of a track")
    parser.add_argument("--at-once", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--mbit", type=int, default=0, help="the rate of the line to the host; 0: that of loopback")
    parser.add_argument("--directory", type=Path, help="on the disk to be measured; by default that of temporary files")
    options = parser.parse_args(arguments)
    print(versions("aiohttp", "av"))
    found: dict[str, list[tuple[float, float]]] = {client: [] for client in CLIENTS}
    with tempfile.TemporaryDirectory(dir=options.directory) as directory:
        song = make_song(Path(directory), options.size)
        with server_process("_file_server", str(song), str(options.mbit)) as base_url:
            for _ in range(options.rounds):
                for client, figures in found.items():
                    figures.append(in_a_process(client, base_url, song, options.songs, options.at_once))
    medians = {client: [statistics.median(each) for each in zip(*found[client], strict=True)] for client in found}
    lowest = medians["bare loop"]
    table(
        ("client", "songs", "wall s", "ratio", "CPU s", "ratio"),
        [
            (client, options.songs, f"{wall:.1f}", f"{wall / lowest[0]:.2f}", f"{cpu:.1f}", f"{cpu / lowest[1]:.2f}")
            for client, (wall, cpu) in medians.items()
        ],
    )
    return 0
