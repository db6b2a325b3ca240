"""What the emulator plays: the user's own audio up to the moment, and something else that is to be heard after it."""

from __future__ import annotations

import io
import wave
from typing import cast

import audio_files
import av
import numpy as np
import pytest
from av.audio.frame import AudioFrame
from av.audio.stream import AudioStream

from kie_async.emulator import _audio, demo_song
from kie_async.emulator._audio import RATE, Sound, continued, decode, encode, measure, samples

FORMATS = {
    "wav": ("wav", "pcm_s16le", 22_050, "s16"),
    "flac": ("flac", "flac", 48_000, "s16"),
    "ogg": ("ogg", "vorbis", 44_100, "fltp"),
    "opus": ("ogg", "libopus", 48_000, "flt"),
    "mp3": ("mp3", "libmp3lame", 32_000, "fltp"),
}


def melody(seconds: float, rate: int = RATE) -> Sound:
    """A tune without repetition, so that a moment of it can be told from every other."""
    moments = np.arange(round(seconds * rate)) / rate
    sweep = np.sin(2 * np.pi * (200 * moments + 40 * moments**2))
    return sweep.astype(np.float32) * np.float32(0.5)


def written(kind: str, seconds: float = 6.0, *, mono: bool = False) -> bytes:
    """The melody as a file of a kind."""
    container_name, codec, rate, form = FORMATS[kind]
    sound = melody(seconds, rate)
    layout = "mono" if mono and codec != "vorbis" else "stereo"  # this encoder knows stereo alone
    target = io.BytesIO()
    with av.open(target, "w", format=container_name) as container:
        options = {"strict": "experimental"}
        stream = cast("AudioStream", container.add_stream(codec, rate=rate, layout=layout, options=options))
        block = np.ascontiguousarray(np.stack([sound] * (1 if layout == "mono" else 2)))
        frame = AudioFrame.from_ndarray(block, format="fltp", layout=layout)
        frame.sample_rate = rate
        resampler = av.AudioResampler(format=form, layout=layout, rate=rate, frame_size=960)
        for part in (*resampler.resample(frame), *resampler.resample(None)):
            container.mux(stream.encode(part))
        container.mux(stream.encode(None))
    return target.getvalue()


def likeness(one: Sound, other: Sound) -> float:
    """How alike two sounds are, from 0 to 1, allowing for the few samples by which codecs shift."""
    length = min(len(one), len(other))
    first, second = one[:length].astype(np.float64), other[:length].astype(np.float64)
    spectrum = np.fft.rfft(first, 2 * length) * np.conj(np.fft.rfft(second, 2 * length))
    best = np.abs(np.fft.irfft(spectrum)).max()
    return float(best / (np.linalg.norm(first) * np.linalg.norm(second) + 1e-9))


def loudness(sound: Sound) -> list[float]:
    """The loudness of each half second."""
    step = RATE // 2
    return [float(np.sqrt(np.mean(sound[at : at + step] ** 2))) for at in range(0, len(sound) - step, step)]


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("mono", [False, True])
def test_audio_of_any_kind_is_read(kind: str, mono: bool) -> None:  # noqa: FBT001  # a parameter
    content = written(kind, mono=mono)
    assert measure(content) == pytest.approx(6.0, abs=0.1)
    callback = decode(content, 4.0)
    assert len(callback) == samples(4.0)
    assert likeness(callback, melody(4.0)) > 0.95
    assert np.std(callback) == pytest.approx(np.std(melody(4.0)), rel=0.06)  # two channels are no louder than one


@pytest.mark.parametrize("kind", FORMATS)
def test_a_track_begins_as_the_song_and_goes_on_otherwise(kind: str) -> None:
    song = written(kind)
    tracks = [decode(continued(song, start=4.0, seconds=9.0, take=take, seed="s"), 60.0) for take in (0, 1)]
    for track in tracks:
        assert len(track) == pytest.approx(samples(9.0), abs=samples(0.1))
        assert likeness(track[: samples(4.0)], melody(4.0)) > 0.95
        tail = track[samples(4.3) :]
        assert likeness(tail, melody(9.0)[samples(4.3) :]) < 0.5
        assert min(loudness(track)[:-6]) > 0.05
        assert np.abs(track).max() <= 1.1
    assert likeness(tracks[0][samples(4.3) :], tracks[1][samples(4.3) :]) < 0.6


def test_the_seam_does_not_click() -> None:
    sound = melody(6.0)
    tail = _audio.continuation(sound[: samples(4.0)], sound[samples(4.0) : samples(4.5)], 5.0, take=0, seed="s")
    whole = np.concatenate([sound[: samples(4.0)], tail])
    steps = np.abs(np.diff(whole))
    assert steps[samples(4.0) - 2 : samples(4.0) + 2].max() <= steps[: samples(4.0) - 2].max() * 1.5


def test_the_same_arguments_give_the_same_bytes_and_another_seed_others() -> None:
    song = written("wav")
    one, same, other = (continued(song, start=2.0, seconds=5.0, take=0, seed=seed) for seed in ("a", "a", "b"))
    assert one == same != other


@pytest.mark.parametrize(("start", "seconds"), [(0.3, 1.5), (5.99, 8.0), (0.0, 1.0)])
def test_any_moment_can_be_continued(start: float, seconds: float) -> None:
    made = continued(written("wav"), start=start, seconds=seconds, take=1, seed="s")
    assert measure(made) == pytest.approx(seconds, abs=0.1)
    assert loudness(decode(made, 60.0))[0] > 0.05


def test_a_source_shorter_than_promised_is_filled_with_silence() -> None:
    made = decode(continued(written("wav", 2.0), start=5.0, seconds=8.0, take=0, seed="s"), 60.0)
    assert len(made) == pytest.approx(samples(8.0), abs=samples(0.1))
    assert loudness(made)[6] < 0.01
    assert loudness(made)[11] > 0.01


def test_silence_is_continued_audibly() -> None:
    quiet = encode(_audio.silence(6.0))
    made = decode(continued(quiet, start=4.0, seconds=9.0, take=0, seed="s"), 60.0)
    assert loudness(made)[6] < 0.001
    assert loudness(made)[10] > 0.01


def test_a_song_that_nobody_has_is_always_the_same() -> None:
    short, long = _audio.unknown_sound(5.0, "id"), _audio.unknown_sound(12.0, "id")
    assert likeness(short[: samples(4.0)], long[: samples(4.0)]) > 0.99
    assert likeness(short, _audio.unknown_sound(5.0, "other")) < 0.5
    made = decode(continued("id", start=5.0, seconds=7.0, take=0, seed="s"), 60.0)
    assert likeness(made[: samples(4.0)], short[: samples(4.0)]) > 0.98


class Places:
    """Finds two seconds of a track in it by their sound."""

    def __init__(self, track: Sound) -> None:
        self.track, self.length = track, samples(2.0)
        self.size = 1 << (len(track) + self.length).bit_length()
        self.spectrum = np.fft.rfft(track, self.size)
        energy = np.concatenate([[0.0], np.cumsum(np.square(track, dtype=np.float64))])
        self.norms = np.sqrt(energy[self.length : -1] - energy[: -self.length - 1])

    def find(self, at: float) -> tuple[float, float]:
        """Where the piece at a time is found, and how alike the most similar other place is, from 0 to 1."""
        piece = self.track[samples(at) : samples(at) + self.length]
        found = np.fft.irfft(self.spectrum * np.conj(np.fft.rfft(piece, self.size)))[: len(self.norms)]
        alike = np.abs(found) / (np.linalg.norm(piece) * self.norms + 1e-9)
        best = int(np.argmax(alike))
        alike[max(0, best - samples(0.3)) : best + samples(0.3)] = 0
        return best / RATE, float(alike.max())


@pytest.mark.parametrize("source", [demo_song(), "a song that nobody has"])
@pytest.mark.parametrize("take", [0, 1])
def test_each_place_of_a_track_is_found_once_by_its_sound(source: bytes | str, take: int) -> None:
    places = Places(decode(continued(source, start=18.0, seconds=38.0, take=take, seed="s"), 60.0))
    for at in np.arange(0.5, 35.0, 4.3):
        found, other = places.find(at)
        assert found == pytest.approx(at, abs=0.001)
        assert other < 0.9, at


@pytest.mark.parametrize(
    "content", [b"", b"<html>no</html>" * 100, b"ID3" + bytes(1000), written("wav")[:44], written("flac")[:60]]
)
def test_what_is_no_audio_is_refused(content: bytes) -> None:
    with pytest.raises(ValueError, match="no audio"):
        measure(content)


def test_a_file_without_a_single_sample_is_no_audio() -> None:
    target = io.BytesIO()
    with wave.open(target, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(8000)
    with pytest.raises(ValueError, match="the file holds no audio"):
        measure(target.getvalue())


def picture() -> bytes:
    target = io.BytesIO()
    with av.open(target, "w", format="mjpeg") as container:
        stream = container.add_stream("mjpeg", rate=1)
        stream.width = stream.height = 16
        stream.pix_fmt = "yuvj420p"
        frame = av.VideoFrame.from_ndarray(np.zeros((16, 16, 3), np.uint8), format="rgb24")
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return target.getvalue()


def test_a_picture_is_no_audio() -> None:
    for read in (measure, lambda content: decode(content, 1.0)):
        with pytest.raises(ValueError, match="no audio"):
            read(picture())
    with pytest.raises(ValueError, match="no audio that can be read"):
        decode(b"nothing", 1.0)


def test_a_title_that_is_no_text_is_no_matter() -> None:
    assert measure(audio_files.with_odd_title(audio_files.mp3())) == pytest.approx(audio_files.SECONDS, abs=0.15)


def test_what_is_cut_off_is_read_as_far_as_it_goes() -> None:
    content = written("flac")
    half = content[: len(content) // 2]
    assert 2.0 < len(decode(half, 60.0)) / RATE < 5.0
    assert 2.0 < measure(half) < 5.0


def test_a_header_that_lies_is_not_believed() -> None:
    content = written("wav")
    assert measure(content[: len(content) // 3]) == pytest.approx(2.0, abs=0.1)


def test_the_demo_is_a_song_of_some_25_seconds() -> None:
    content = demo_song()
    with wave.open(io.BytesIO(content)) as file:
        assert (file.getnchannels(), file.getframerate(), file.getsampwidth()) == (1, RATE, 2)
    assert 20 < measure(content) < 30
    sound = decode(content, 60.0)
    assert 0.3 < np.abs(sound).max() <= 1.0
    assert min(loudness(sound)[:-6]) > 0.02


def test_a_keynote_is_heard_and_silence_has_none() -> None:
    moments = np.arange(RATE) / RATE
    note = np.sin(2 * np.pi * 440 * moments).astype(np.float32)
    assert _audio.keynote(note) == 9
    assert _audio.keynote(_audio.silence(0.0002)) == 0
