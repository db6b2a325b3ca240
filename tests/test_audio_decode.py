"""Any container, whole or damaged, becomes samples."""

from __future__ import annotations

import struct
import wave
from collections.abc import Callable
from pathlib import Path

import audio_files
import numpy as np
import pytest

from kie_async import AudioError, StorageError
from kie_async.audio import open_reader, read_mono, read_samples

CUT_MP3 = len(audio_files.mp3()) // 2


@pytest.mark.parametrize(
    ("make", "seconds"),
    [
        (audio_files.mp3, 20.0),
        (audio_files.mp3_without_xing, 20.0),
        (audio_files.wav, 20.0),
        (lambda: audio_files.wav_that_claims(0), 20.0),
        (audio_files.flac, 20.0),
        (audio_files.aac, 20.0),
        (audio_files.m4a, 20.0),
        (audio_files.ogg, 20.0),
        (audio_files.aiff, 20.0),
        (lambda: audio_files.with_cover(audio_files.mp3()), 20.0),
        (lambda: audio_files.with_odd_title(audio_files.mp3()), 20.0),
        (lambda: audio_files.mp3()[:CUT_MP3], 10.0),
        (lambda: audio_files.mp3()[:CUT_MP3] + bytes(5000) + audio_files.mp3()[CUT_MP3 + 5000 :], 19.5),
        # another rate in the middle
        (lambda: audio_files.mp3(5.0) + audio_files.encoded("libmp3lame", "mp3", seconds=5.0, rate=22050), 10.0),
    ],
)
def test_any_container_becomes_samples(make: Callable[[], bytes], seconds: float, tmp_path: Path) -> None:
    (tmp_path / "song").write_bytes(make())
    mono = read_mono(tmp_path / "song", 11_025)
    assert mono.dtype == np.float32
    assert len(mono) / 11_025 == pytest.approx(seconds, abs=0.5)
    samples, rate = read_samples(tmp_path / "song")
    assert (samples.shape[0], rate) == (1, audio_files.RATE)
    assert samples.shape[1] / rate == pytest.approx(len(mono) / 11_025, abs=0.01)


def test_a_window_holds_the_same_samples_as_the_whole(tmp_path: Path) -> None:
    (tmp_path / "song.flac").write_bytes(audio_files.flac())
    whole, rate = read_samples(tmp_path / "song.flac")
    window, _ = read_samples(tmp_path / "song.flac", 1.5, 3.25)
    assert np.array_equal(window, whole[:, round(1.5 * rate) : round(3.25 * rate)])
    beyond, _ = read_samples(tmp_path / "song.flac", 19.0, 99.0)
    assert beyond.shape == (1, rate)
    assert read_samples(tmp_path / "song.flac", 99.0)[0].shape == (1, 0)
    mono = read_mono(tmp_path / "song.flac", 8000)
    assert np.array_equal(read_mono(tmp_path / "song.flac", 8000, 0.5, 2.0), mono[4000:16000])


@pytest.mark.parametrize("channels", [2, 3, 6, 8, 24])
def test_channels_keep_their_order(channels: int, tmp_path: Path) -> None:
    levels = np.arange(1, channels + 1) * 1000
    with wave.open(str(tmp_path / "song.wav"), "wb") as file:
        file.setnchannels(channels)
        file.setsampwidth(2)
        file.setframerate(8000)
        file.writeframes(np.tile(levels, 8000).astype("<i2").tobytes())
    with open_reader(tmp_path / "song.wav") as reader:
        assert (reader.channels, reader.rate) == (channels, 8000)
        blocks = list(reader.blocks())
    assert np.allclose(np.concatenate(blocks, axis=1).mean(axis=1) * 32768, levels, atol=2)
    is_mean = abs(read_mono(tmp_path / "song.wav", 8000).mean() * 32768 - levels.mean()) < 2
    assert is_mean == (channels == 2)  # more are mixed, as films are


def test_more_channels_than_can_be_read_are_an_audio_error(tmp_path: Path) -> None:
    with wave.open(str(tmp_path / "song.wav"), "wb") as file:
        file.setnchannels(90)
        file.setsampwidth(2)
        file.setframerate(8000)
        file.writeframes(bytes(180 * 8000))
    with pytest.raises(AudioError, match=r"song.wav has channels that cannot be read"):
        read_mono(tmp_path / "song.wav", 8000)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "no audio of a known kind"),
        (audio_files.HTML, "no audio of a known kind"),
        (audio_files.ID3, "no audio of a known kind"),
        (audio_files.m4a()[: len(audio_files.m4a()) // 2], "is damaged"),
        (audio_files.silent_film(), "holds no audio"),
    ],
    ids=["nothing", "a page", "a tag", "half a file", "a film"],  # an older encoder makes other bytes each time
)
def test_what_is_no_audio_is_an_audio_error_that_names_the_path(content: bytes, words: str, tmp_path: Path) -> None:
    (tmp_path / "song.mp3").write_bytes(content)
    with pytest.raises(AudioError, match=words) as caught:
        read_samples(tmp_path / "song.mp3")
    assert str(caught.value).startswith(str(tmp_path / "song.mp3"))


def test_a_file_that_is_not_there_is_a_storage_error(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="cannot be read: No such file"):
        read_mono(tmp_path / "song.mp3", 8000)


def test_what_is_no_number_is_silence(tmp_path: Path) -> None:
    floats = np.tile(np.array([0.5, np.nan, np.inf, -np.inf], dtype="<f4"), 2000)
    data = floats.tobytes()
    form = struct.pack("<IHHIIHH", 16, 3, 1, 8000, 32000, 4, 32)
    riff, size = struct.pack("<4sI8s", b"RIFF", 36 + len(data), b"WAVEfmt "), struct.pack("<4sI", b"data", len(data))
    (tmp_path / "song.wav").write_bytes(riff + form + size + data)
    samples, _ = read_samples(tmp_path / "song.wav")
    assert np.array_equal(samples[0], np.tile([0.5, 0.0, 0.0, 0.0], 2000))
