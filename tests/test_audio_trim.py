"""The first seconds of a file, faded out."""

from __future__ import annotations

import importlib.util
import wave
from pathlib import Path

import audio_files
import av
import numpy as np
import pytest
from command_line import short_song

import kie_async as kie
from kie_async import audio
from kie_async.audio import join, read_samples, trim

pytestmark = pytest.mark.anyio
RATE = 8000


def tone(path: Path, channels: int, seconds: float = 4.0) -> Path:
    """Write a tone."""
    samples = np.sin(np.arange(round(seconds * RATE)) * 2 * np.pi * 440 / RATE) * 0.1
    with wave.open(str(path), "wb") as file:
        file.setnchannels(channels)
        file.setsampwidth(2)
        file.setframerate(RATE)
        file.writeframes(np.repeat((samples * 32767).astype("<i2")[:, None], channels, axis=1).tobytes())
    return path


@pytest.mark.parametrize("channels", [1, 2, 6])
async def test_it_lasts_as_long_as_asked_and_falls_silent(tmp_path: Path, channels: int) -> None:
    source = tone(tmp_path / "tone.wav", channels)
    assert await trim(source, tmp_path / "out" / "short.flac", seconds=3.0) == tmp_path / "out" / "short.flac"
    samples, rate = read_samples(tmp_path / "out" / "short.flac")
    whole, _ = read_samples(source)
    assert (samples.shape, rate) == ((min(channels, 2), 3 * RATE), RATE)
    if channels < 3:
        assert np.abs(samples[:, : RATE - 1] - whole[:, : RATE - 1]).max() < 1e-4
    half = samples[:, 2 * RATE - 100 : 2 * RATE + 100]
    assert np.abs(half).max() / np.abs(samples[:, :RATE]).max() == pytest.approx(0.5**0.5, abs=0.02)
    assert np.abs(samples[:, -20:]).max() < 0.01


async def test_no_fade_leaves_the_end_as_it_is(tmp_path: Path) -> None:
    source = tone(tmp_path / "tone.wav", 1)
    samples, _ = read_samples(await trim(source, tmp_path / "short.wav", seconds=1.0, fade=0))
    assert np.array_equal(samples, read_samples(source, 0.0, 1.0)[0])


async def test_a_file_that_is_shorter_is_faded_out_too(tmp_path: Path) -> None:
    path = await trim(tone(tmp_path / "tone.wav", 1, 1.0), tmp_path / "short.mp3", seconds=9.0)
    samples, rate = read_samples(path)
    assert samples.shape[1] / rate == pytest.approx(1.0, abs=0.2)
    levels = [np.abs(part).max() for part in np.array_split(samples[0, :rate], 4)]
    assert levels == sorted(levels, reverse=True)
    assert levels[3] < 0.05


@pytest.mark.parametrize(
    ("suffix", "data", "title"),
    [
        (".mp3", audio_files.encoded("libmp3lame", "mp3", seconds=2.0, title="Über uns"), "Über uns"),
        (".ogg", audio_files.encoded("flac", "ogg", seconds=2.0, title="Über uns"), "Über uns"),  # it is its stream's
        (".mp3", audio_files.with_odd_title(audio_files.encoded("libmp3lame", "mp3", seconds=2.0)), " song"),
    ],
    ids=["of the file", "of its stream", "in another alphabet"],  # the bytes differ each time
)
async def test_the_tags_of_the_song_stay(tmp_path: Path, suffix: str, data: bytes, title: str) -> None:
    song = tmp_path / f"song{suffix}"
    song.write_bytes(data)
    take, untagged = tmp_path / "take.mp3", tone(tmp_path / "untagged.wav", 1)
    take.write_bytes(audio_files.encoded("libmp3lame", "mp3", seconds=2.0, title="take"))
    given = {"at": 1.0, "kind": "continuation"}
    made = [
        await trim(song, tmp_path / "short.mp3", seconds=1.5),
        await trim(song, tmp_path / "plain.mp3", seconds=1.5, tags_of=untagged),
        await trim(song, tmp_path / "alone.mp3", seconds=1.5, tags_of=tmp_path / "nothing.mp3"),
        await trim(take, tmp_path / "named.mp3", seconds=1.5, tags_of=song),
        (await join(song, take, out=tmp_path / "long.flac", **given)).path,  # type: ignore[arg-type]
        (await join(untagged, song, out=tmp_path / "longer.flac", **given)).path,  # type: ignore[arg-type]
    ]
    for path in made:
        with av.open(str(path)) as file:
            assert file.metadata["title"].encode().endswith(title.encode()), path


async def test_what_cannot_be_written_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = short_song(tmp_path / "song.wav")
    with pytest.raises(kie.InvalidRequestError, match=r"out: is .*give a name that ends in \.wav, \.flac, \.mp3"):
        await trim(source, tmp_path / "short.ogg", seconds=1.0)
    (tmp_path / "song.wav.part").hardlink_to(source)  # what is left by a process killed just after it was finished
    before = source.read_bytes()
    with pytest.raises(
        kie.InvalidRequestError, match=r"out: is .*song\.wav, which is there already; give another name"
    ):
        await trim(source, source, seconds=1.0)
    for seconds in (0, -1.0, 0.001, float("nan"), float("inf"), None):
        with pytest.raises(kie.InvalidRequestError, match=r"seconds: is .*; give a number of seconds from 0\.1 up"):
            await trim(source, tmp_path / "short.wav", seconds=seconds)  # type: ignore[arg-type]  # as some would
    for fade in (-1.0, float("nan")):
        with pytest.raises(kie.InvalidRequestError, match=r"fade: is .*; give a number of seconds from 0 up"):
            await trim(source, tmp_path / "short.wav", seconds=1.0, fade=fade)
    for missing, out in ((tmp_path / "nothing.mp3", "short.wav"), (source, "song.wav/short.wav")):
        with pytest.raises(kie.StorageError, match=r"nothing\.mp3 cannot be read|song\.wav"):
            await trim(missing, tmp_path / out, seconds=1.0)
    assert (list(tmp_path.iterdir()), source.read_bytes()) == ([source], before)
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)
    with pytest.raises(kie.AudioError, match=r"kie_async\[audio\]"):
        await audio.trim(source, tmp_path / "short.wav", seconds=1.0)
