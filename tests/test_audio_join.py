"""A song and what continues it become one file, as long as it should be, and without a mark where they meet."""

from __future__ import annotations

import asyncio
import resource
import signal
import subprocess
import sys
import tracemalloc
import wave
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from random import Random
from threading import Event
from typing import Any, Literal

import attrs
import numpy as np
import pytest
from numpy.typing import NDArray

import kie_async as kie
from benchmarks._audio_cases import RATE, made_up_song, write_mp3
from kie_async.audio import Seam, join, read_mono, read_samples
from kie_async.audio._loudness import loudness

Sound = NDArray[np.float32]

pytestmark = [pytest.mark.anyio, pytest.mark.real_time]

CUT = 7.0
AT = round(CUT * RATE)
SONG = np.float32(0.35) * made_up_song(Random(1), 10.0)
NEW = np.float32(0.35) * made_up_song(Random(2), 4.0)
SILENCE = np.zeros(RATE // 2, dtype=np.float32)
TRUTH = np.concatenate([SONG[:AT], NEW])


def write_wav(path: Path, sound: Sound, rate: int = RATE, bits: int = 16) -> Path:
    """Write channels x samples, or the samples of one channel."""
    channels = np.atleast_2d(sound)
    whole = np.rint(np.clip(channels, -1, 1 - 2 ** (1 - bits)) * 2 ** (bits - 1)).astype("<i4")
    with wave.open(str(path), "wb") as file:
        file.setnchannels(len(channels))
        file.setsampwidth(bits // 8)
        file.setframerate(rate)
        file.writeframes(whole.T.reshape(-1, 1).view(np.uint8)[:, : bits // 8].tobytes())
    return path


def write(path: Path, sound: Sound, rate: int = RATE) -> Path:
    if path.suffix == ".wav":
        return write_wav(path, sound)
    write_mp3(path, sound, rate=rate, bit_rate=64_000 if rate == RATE else 128_000)
    return path


def error(found: Sound, truth: Sound, start: float, end: float) -> float:
    """How much a sound differs from the truth between two seconds, whatever its level (LAME takes up to half a dB)."""
    part = slice(round(start * RATE), round(end * RATE))
    ours, wanted = found[part], truth[part]
    same = float(ours @ wanted) ** 2 / (float(ours @ ours) * float(wanted @ wanted))
    return float(np.sqrt(max(0.0, 1 - same)))


def times(decibels: float) -> np.float32:
    return np.float32(10 ** (decibels / 20))


# ---------------------------------------------------------------- what is heard


@pytest.mark.parametrize(
    ("delay", "gain", "song", "track", "rate", "out"),
    [
        (0.0, 1.0, ".wav", ".wav", RATE, ".wav"),
        (0.4, 0.5, ".wav", ".mp3", 44_100, ".flac"),
        (-0.3, 0.9, ".mp3", ".mp3", 48_000, ".wav"),
        (1.2, 0.7, ".mp3", ".wav", RATE, ".mp3"),
    ],
)
async def test_of_a_whole_song_its_own_transition_is_kept(  # noqa: PLR0913, PLR0917  # what a case has
    delay: float, gain: float, song: str, track: str, rate: int, out: str, tmp_path: Path
) -> None:
    source, shift = write(tmp_path / f"song{song}", SONG, 44_100), round(delay * RATE)
    late = np.concatenate([np.zeros(max(0, shift), dtype=np.float32), TRUTH[max(0, -shift) :]])
    result = write(tmp_path / f"new{track}", late * np.float32(gain), rate)
    joined = await join(source, result, at=CUT, out=tmp_path / f"longer{out}")
    assert joined.kind == "whole"
    assert joined.confidence is not None
    assert joined.confidence > 0.9
    assert joined.duration == pytest.approx(len(TRUTH) / RATE, abs=0.001)
    assert joined.gain == pytest.approx(-20 * np.log10(gain), abs=0.5)
    assert joined.seam.at == pytest.approx(CUT, abs=0.001)
    found = read_mono(joined.path, RATE) * times(joined.turned_down)
    assert len(found) / RATE == pytest.approx(len(TRUTH) / RATE, abs=0.001)
    assert error(found, TRUTH, 0.5, CUT - 2) < 0.05
    assert error(found, TRUTH, CUT - 2, CUT) < 0.1
    assert error(found, TRUTH, CUT, CUT + 2) < 0.1
    assert np.abs(read_samples(joined.path)[0]).max() <= 1.0


@pytest.mark.parametrize(
    ("song", "track", "rate", "out"),
    [(".wav", ".wav", RATE, ".wav"), (".wav", ".mp3", 44_100, ".flac"), (".mp3", ".mp3", 48_000, ".mp3")],
)
async def test_a_continuation_is_faded_in_at_the_cut(
    song: str, track: str, rate: int, out: str, tmp_path: Path
) -> None:
    source = write(tmp_path / f"song{song}", SONG, 44_100)
    result = write(tmp_path / f"new{track}", NEW, rate)
    joined = await join(source, result, at=CUT, out=tmp_path / f"longer{out}")
    assert joined.kind == "continuation"
    assert joined.duration == pytest.approx(len(TRUTH) / RATE, abs=0.001)
    assert joined.seam.at == pytest.approx(CUT, abs=0.001)
    assert (joined.seam.gap, joined.seam.flags) == (0.0, ())
    found, fade = read_mono(joined.path, RATE) * times(joined.turned_down), round(0.02 * RATE)
    truth = np.concatenate([SONG[:AT], NEW * times(joined.gain)])
    turn = (np.arange(fade) + 0.5) * np.pi / 2 / fade
    truth[AT : AT + fade] = SONG[AT : AT + fade] * np.cos(turn) + truth[AT : AT + fade] * np.sin(turn)
    assert len(found) / RATE == pytest.approx(len(truth) / RATE, abs=0.001)
    assert error(found, truth, 0.5, CUT) < 0.05
    assert error(found, truth, CUT, CUT + 0.02) < 0.2
    assert error(found, truth, CUT + 0.02, CUT + 2) < 0.1


async def test_what_goes_on_as_the_song_does_is_not_louder_in_the_fade(tmp_path: Path) -> None:
    source, result = write_wav(tmp_path / "song.wav", SONG), write_wav(tmp_path / "new.wav", SONG[AT:])
    joined = await join(source, result, at=CUT, out=tmp_path / "longer.wav", kind="continuation")
    assert joined.gain == pytest.approx(0.0, abs=1.0)
    found = read_mono(joined.path, RATE) * times(joined.turned_down)
    truth = np.concatenate([SONG[:AT], SONG[AT:] * times(joined.gain)])
    assert error(found, truth, CUT - 0.1, CUT + 0.1) < 0.05


async def test_a_song_that_ends_at_the_cut_is_joined_just_before_it(tmp_path: Path) -> None:
    source, result = write_wav(tmp_path / "song.wav", SONG[:AT]), write_wav(tmp_path / "new.wav", NEW)
    joined = await join(source, result, at="100%", out=tmp_path / "longer.wav")
    assert joined.seam.at == pytest.approx(CUT - 0.02, abs=0.001)
    assert joined.duration == pytest.approx(CUT - 0.02 + len(NEW) / RATE, abs=0.001)
    assert joined.seam.flags == ()


async def test_a_result_that_drifts_meets_the_song_at_the_splice(tmp_path: Path) -> None:
    places = np.arange(round(len(TRUTH) * 1.0004)) / 1.0004
    slow = np.interp(places, np.arange(len(TRUTH)), TRUTH).astype(np.float32)
    source, result = write_wav(tmp_path / "song.wav", SONG), write_wav(tmp_path / "new.wav", slow)
    joined = await join(source, result, at=CUT, out=tmp_path / "longer.wav", kind="whole")
    assert joined.confidence is None
    assert joined.duration == pytest.approx(len(TRUTH) / RATE + 4 * 0.0004, abs=0.001)
    assert joined.seam.at == pytest.approx(CUT, abs=0.001)
    found = read_mono(joined.path, RATE)
    levels = [
        [loudness(sound[None, at : at + RATE // 20], RATE) for at in range(AT - 2 * RATE, AT - 2000, 500)]
        for sound in (found, SONG)
    ]
    assert levels[0] == pytest.approx(levels[1], abs=0.5)  # no hole, no bump


def steady(seconds: float, seed: int) -> Sound:
    return (0.1 * np.random.default_rng(seed).standard_normal(round(seconds * RATE))).astype(np.float32)


@pytest.mark.parametrize(("level", "gain"), [(0.7, 3.1), (0.1, 6.0), (0.0, 0.0)])
async def test_a_continuation_is_brought_to_the_level_of_the_song(level: float, gain: float, tmp_path: Path) -> None:
    source = write_wav(tmp_path / "song.wav", steady(9.0, 1))
    result = write_wav(tmp_path / "new.wav", steady(5.0, 2) * np.float32(level))
    joined = await join(source, result, at=8, out=tmp_path / "longer.wav", kind="continuation")
    assert joined.gain == pytest.approx(gain, abs=0.1)


@pytest.mark.parametrize("kind", ["whole", "continuation"])
async def test_a_take_of_one_channel_is_as_loud_as_its_song_of_two(
    kind: Literal["whole", "continuation"], tmp_path: Path
) -> None:
    left, right, new = (steady(10.0, seed) for seed in (1, 2, 3))  # the mean of two sounds has half of their power
    song = write_wav(tmp_path / "song.wav", np.stack([left, right]))
    take = np.concatenate([(left + right)[:AT] / 2, new / np.float32(np.sqrt(2))])
    result = write_wav(tmp_path / "new.wav", take if kind == "whole" else take[AT:])
    joined = await join(song, result, at=7.0, out=tmp_path / "joined.wav", kind=kind)
    assert joined.gain == pytest.approx(3.01, abs=0.1)


async def test_the_level_is_left_alone_where_the_song_itself_changes(tmp_path: Path) -> None:
    loud = np.repeat(np.array([0.2, 2.0, 0.2, 2.0], dtype=np.float32), 3 * RATE)
    source = write_wav(tmp_path / "song.wav", steady(12.0, 1) * loud)
    result = write_wav(tmp_path / "new.wav", steady(5.0, 2))
    joined = await join(source, result, at=12, out=tmp_path / "longer.wav", kind="continuation")
    assert 0.0 < joined.gain < 1.0


async def test_the_level_over_more_than_a_bar_counts_too(tmp_path: Path) -> None:
    loud = np.where(np.arange(60 * RATE) / (2.5 * RATE) % 2 >= 1, 0.25, 1.0).astype(
        np.float32
    )  # a loud bar, a quiet one
    music = steady(60.0, 1) * loud
    source = write_wav(tmp_path / "song.wav", music[: 35 * RATE])
    result = write_wav(tmp_path / "new.wav", music[35 * RATE :] * times(-4.0))
    joined = await join(source, result, at=35, out=tmp_path / "longer.wav", kind="continuation")
    assert 3.0 < joined.gain < 4.5


async def test_nothing_clips(tmp_path: Path) -> None:
    source = write_wav(tmp_path / "song.wav", steady(9.0, 1))
    result = write_wav(tmp_path / "new.wav", np.clip(steady(5.0, 2), -0.1, 0.1) * np.float32(9.9) * 0.5)
    loud = write_wav(tmp_path / "loud.wav", np.clip(steady(9.0, 3) * 4, -1, 1))
    joined = await join(loud, result, at=8, out=tmp_path / "longer.wav", kind="continuation")
    assert joined.turned_down > 0
    assert np.abs(read_mono(joined.path, RATE)).max() == pytest.approx(1.0, abs=0.001)
    distorted = write_wav(tmp_path / "distorted.wav", np.clip(SONG * 17, -1, 1))
    coded = await join(distorted, distorted, at=8, out=tmp_path / "longer.mp3", kind="continuation")
    assert 0.8 < np.abs(read_mono(coded.path, RATE)).max() < 0.95  # there is room for what the codec adds
    quiet = await join(source, result, at=8, out=tmp_path / "quiet.wav", kind="continuation")
    assert quiet.turned_down == 0.0


# ---------------------------------------------------------------- what is kept


@pytest.mark.parametrize(("bits", "suffix"), [(16, ".wav"), (24, ".wav"), (16, ".flac"), (24, ".flac")])
async def test_the_song_is_kept_to_the_bit(bits: int, suffix: str, tmp_path: Path) -> None:
    song = np.stack([SONG, SONG[::-1]])[:, : 3 * RATE] * np.float32(0.5)
    source = write_wav(tmp_path / "song.wav", song, bits=bits)
    result = write_wav(tmp_path / "new.wav", NEW * np.float32(0.5))
    joined = await join(source, result, at=2, out=tmp_path / f"longer{suffix}", kind="continuation")
    before, after = read_samples(source, 0, 2)[0], read_samples(joined.path, 0, 2)[0]
    assert np.array_equal(before, after)
    tail = read_samples(joined.path, 2.1)[0]
    assert np.array_equal(tail[0], tail[1])  # one channel became two
    assert tail[0] == pytest.approx(NEW[round(0.1 * RATE) :] * 0.5 * times(joined.gain), abs=2 ** (1 - bits) + 2**-15)


async def test_many_channels_become_two(tmp_path: Path) -> None:
    source = write_wav(tmp_path / "song.wav", np.stack([0.2 * SONG] * 6))
    result = write_wav(tmp_path / "new.wav", NEW)
    joined = await join(source, result, at=CUT, out=tmp_path / "longer.wav", kind="continuation")
    assert read_samples(joined.path)[0].shape == (2, round(joined.duration * RATE))


async def test_a_rate_that_no_mp3_has_becomes_one_that_it_has(tmp_path: Path) -> None:
    source, result = (write_wav(tmp_path / f"{name}.wav", NEW, rate=96_000) for name in ("song", "new"))
    for suffix, rate in ((".mp3", 48_000), (".wav", 96_000)):
        joined = await join(source, result, at=0.5, out=tmp_path / f"longer{suffix}", kind="continuation")
        samples, found = read_samples(joined.path)
        assert found == rate
        assert samples.shape[1] / rate == pytest.approx(0.5 + len(NEW) / 96_000, abs=0.001)


# ---------------------------------------------------------------- the seam


async def test_a_gap_is_flagged(tmp_path: Path) -> None:
    source = write_wav(tmp_path / "song.wav", SONG)
    result = write_wav(tmp_path / "new.wav", np.concatenate([np.zeros(RATE // 5, dtype=np.float32), NEW]))
    joined = await join(source, result, at=CUT, out=tmp_path / "longer.wav", kind="continuation")
    assert joined.seam.gap == pytest.approx(180, abs=15)  # the song fades out for 20 ms
    assert joined.seam.flags[0] == f"it is silent for {joined.seam.gap:.0f} ms"


async def test_a_rest_that_is_not_at_the_seam_is_no_gap(tmp_path: Path) -> None:
    source, new = write_wav(tmp_path / "song.wav", SONG), NEW.copy()
    new[RATE // 2 : RATE] = 0
    joined = await join(
        source, write_wav(tmp_path / "new.wav", new), at=CUT, out=tmp_path / "longer.wav", kind="continuation"
    )
    assert joined.seam.gap == 0.0


async def test_a_click_is_flagged(tmp_path: Path) -> None:
    time = np.arange(11 * RATE) / RATE
    chord = [np.sin(2 * np.pi * pitch * time + np.sin(pitch * time / 99)) for pitch in (220.0, 277.2, 329.6)]
    smooth = (0.1 * np.sum(chord, axis=0)).astype(np.float32)
    sound = smooth.copy()
    sound[AT : AT + 2] += np.float32(0.02)
    source = write_wav(tmp_path / "song.wav", smooth)
    for name, new in (("clean", smooth), ("clicks", sound)):
        result = write_wav(tmp_path / f"{name}.wav", new)
        joined = await join(source, result, at=CUT, out=tmp_path / f"{name}.flac", kind="whole")
        assert (joined.seam.click > 1.5) == (name == "clicks")
    assert "it clicks: an edge " in joined.seam.flags[0]


@pytest.mark.parametrize(("level", "word"), [(0.1, "quieter"), (3.0, "louder")])
async def test_a_step_in_loudness_is_flagged(level: float, word: str, tmp_path: Path) -> None:
    source, song = write_wav(tmp_path / "song.wav", steady(8.0, 1)), steady(8.0, 1)
    result = write_wav(tmp_path / "new.wav", np.append(song[:AT], steady(4.0, 2) * np.float32(level)))
    joined = await join(source, result, at=CUT, out=tmp_path / "longer.wav", kind="whole")
    assert joined.seam.step == pytest.approx(20 * np.log10(level), abs=1.5)
    assert joined.seam.usual_step < 2
    assert f"LU {word} (elsewhere seldom more than " in joined.seam.flags[-1]


def test_a_step_that_is_hardly_above_the_usual_ones_is_not_flagged() -> None:
    seam = Seam(at=90.0, gap=0.0, click=1.0, step=5.64, usual_step=5.6)
    assert (seam.flags, len(attrs.evolve(seam, step=-6.2).flags)) == ((), 1)


async def test_a_steady_song_has_no_flags_and_a_short_one_no_usual_step(tmp_path: Path) -> None:
    source, result = write_wav(tmp_path / "song.wav", steady(0.5, 1)), write_wav(tmp_path / "new.wav", steady(0.2, 2))
    joined = await join(source, result, at=0.25, out=tmp_path / "longer.wav", kind="continuation")
    assert (joined.seam.usual_step, joined.seam.flags) == (0.0, ())


@pytest.mark.parametrize(("channels", "lufs"), [(1, -23.0 - 3.01), (2, -23.0)])
@pytest.mark.parametrize("rate", [44_100, 48_000, 96_000])
def test_loudness_is_that_of_the_standard(channels: int, lufs: float, rate: int) -> None:
    """EBU Tech 3341: a tone of 1 kHz at -23 dBFS in two channels has -23 LUFS."""
    tone = times(-23.0) * np.sin(2 * np.pi * 1000 * np.arange(3 * rate) / rate)
    assert loudness(np.stack([tone.astype(np.float32)] * channels), rate) == pytest.approx(lufs, abs=0.1)


def test_silence_has_the_least_loudness() -> None:
    assert loudness(np.zeros((1, 1000), dtype=np.float32), 1000) == -70.0
    assert loudness(np.zeros((1, 0), dtype=np.float32), 1000) == -70.0


# ---------------------------------------------------------------- what it is not sure of


async def test_what_is_unclear_is_not_joined(tmp_path: Path) -> None:
    source = write_wav(tmp_path / "song.wav", np.zeros(10 * RATE, dtype=np.float32))
    result, out = write_wav(tmp_path / "new.wav", NEW), tmp_path / "longer.wav"
    with pytest.raises(kie.UnclearError, match="it is unclear what ") as caught:
        await join(source, result, at=3, out=out)
    assert "As the whole song, its new part begins at 0:03, and the joined file lasts 0:04" in caught.value.message
    assert "all is new in it, and the joined file lasts 0:07" in caught.value.message
    assert caught.value.durations == {"whole": pytest.approx(4, abs=0.1), "continuation": pytest.approx(7, abs=0.1)}
    assert not out.exists()
    joined = await join(source, result, at=3, out=out, kind="whole")  # where nothing is the same, at the cut
    assert (joined.kind, joined.confidence, joined.gain) == ("whole", None, 0.0)
    assert joined.duration == pytest.approx(len(NEW) / RATE, abs=0.001)


@pytest.mark.parametrize("kind", [None, "whole"])
async def test_a_whole_song_is_joined_where_it_leaves_its_source(kind: Literal["whole"] | None, tmp_path: Path) -> None:
    song, out = made_up_song(Random(1), 24.0), tmp_path / "longer.wav"
    source = write_wav(tmp_path / "song.wav", song)
    result = write_wav(tmp_path / "new.wav", np.concatenate([SILENCE, song[: 18 * RATE], NEW]))
    early = await join(source, result, at=10, out=out, kind=kind)
    assert (early.kind, early.at) == ("whole", 10.0)
    assert early.seam.at == pytest.approx(18.0, abs=0.1)
    assert early.confidence == (None if kind else pytest.approx(1.0, abs=0.09))
    truth = np.append(song[: 18 * RATE], NEW)
    assert error(read_mono(out, RATE), truth, 9.0, 22.0) < 0.02
    out.unlink()
    if kind is None:
        words = r"leaves the song at 0:1[78].*, before the cut that was given, 0:20, and nothing was joined"
        with pytest.raises(kie.UnclearError, match=words) as caught:
            await join(source, result, at=20, out=out)
        assert not out.exists()
        assert caught.value.leaves_at == pytest.approx(18.0, abs=0.1)
    late = await join(source, result, at=20 if kind else caught.value.leaves_at or 0.0, out=out, kind=kind)
    assert late.seam.at == pytest.approx(18.0, abs=0.1)
    assert late.duration == pytest.approx(22.0, abs=0.001)
    assert error(read_mono(out, RATE), truth, 9.0, 22.0) < 0.02


async def test_a_loop_that_could_be_either_is_unclear(tmp_path: Path) -> None:
    loop = SONG[: 2 * RATE]
    source = write_wav(tmp_path / "song.wav", np.tile(loop, 10))
    result = write_wav(tmp_path / "new.wav", np.tile(loop, 12))
    with pytest.raises(kie.UnclearError):
        await join(source, result, at=12, out=tmp_path / "longer.wav")


# ---------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("given", "field", "words"),
    [
        ({"at": 0}, "at", "is 0; give a position in the song: 45.5, 10s, 1:05 or 1m05s"),
        ({"at": float("nan")}, "at", "is nan"),
        ({"at": "soon"}, "at", "is 'soon'"),
        ({"at": "0:15"}, "at", "ends at 0:10; give a position before its end"),
        ({"at": "-20s"}, "at", "lasts 0:10: give a position in the song"),
        ({"at": None}, "at", "is None"),
        ({"out": "longer.ogg"}, "out", "longer.ogg; give a file whose name ends in .wav, .flac or .mp3"),
        ({"out": "longer"}, "out", "longer; give"),
        ({"out": "new.wav"}, "out", "which is there already; give another name, or remove it"),
        ({"kind": "both"}, "kind", "is 'both'; give whole or continuation, or leave it out"),
        ({"kind": "whole"}, "kind", "ends at 0:04, before the cut; it can only be the continuation"),
    ],
)
async def test_what_cannot_be_used_is_refused(given: dict[str, Any], field: str, words: str, tmp_path: Path) -> None:
    source, result = write_wav(tmp_path / "song.wav", SONG), write_wav(tmp_path / "new.wav", NEW)
    before = result.read_bytes()
    given = {"at": CUT, "out": "longer.wav", **given}
    with pytest.raises(kie.InvalidRequestError) as caught:
        await join(source, result, **{**given, "out": tmp_path / given["out"]})
    (problem,) = caught.value.problems
    assert problem.field == field
    assert words in f"{problem.problem}; {problem.remedy}"
    assert sorted(tmp_path.iterdir()) == [result, source]
    assert result.read_bytes() == before


async def test_what_is_far_too_short_is_no_whole_song(tmp_path: Path) -> None:
    source, result = write_wav(tmp_path / "song.wav", SONG), write_wav(tmp_path / "new.wav", NEW[: RATE // 2])
    with pytest.raises(kie.InvalidRequestError, match=r"kind: is whole, but .* ends at 0:00\.50, before the cut"):
        await join(source, result, at=CUT, out=tmp_path / "longer.wav", kind="whole")


async def test_a_song_is_not_joined_to_itself(tmp_path: Path) -> None:
    source = write_wav(tmp_path / "song.wav", SONG)
    with pytest.raises(kie.InvalidRequestError, match=r"result: is .*, which follows the song to its own end"):
        await join(source, source, at=CUT, out=tmp_path / "longer.wav")


async def test_what_lasts_no_time_is_not_joined(tmp_path: Path) -> None:
    source, result = write_wav(tmp_path / "song.wav", SONG), write_wav(tmp_path / "new.wav", NEW[:1000])
    with pytest.raises(kie.AudioError, match=r"new\.wav has only 0\.045 s to join: give at least 0\.1 s"):
        await join(source, result, at=CUT, out=tmp_path / "longer.wav", kind="continuation")


async def test_what_is_no_audio_is_an_audio_error(tmp_path: Path) -> None:
    (tmp_path / "song.wav").write_bytes(b"no audio")
    with pytest.raises(kie.AudioError, match=r"song\.wav is no audio"):
        await join(tmp_path / "song.wav", tmp_path / "song.wav", at=1, out=tmp_path / "longer.wav")


async def test_without_the_extra_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(kie.AudioError, match=r'pip install "kie_async\[audio\]"'):
        await join(tmp_path / "song.wav", tmp_path / "new.wav", at=1, out=tmp_path / "longer.wav")


# ---------------------------------------------------------------- whole or absent


async def test_a_full_disk_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "dont_write_bytecode", True)  # or what is imported meanwhile is cut off for good
    source, result = write_wav(tmp_path / "song.wav", SONG), write_wav(tmp_path / "new.wav", NEW)
    limits, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(kie.StorageError, match="the disk refused"):
            await join(source, result, at=CUT, out=tmp_path / "far" / "longer.wav")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert not list((tmp_path / "far").iterdir())


_KILLED = """
import asyncio, os, signal, sys
from kie_async.audio import join
os.fsync = lambda _number: os.kill(os.getpid(), signal.SIGKILL)  # all of it is written, and has no name yet
asyncio.run(join(sys.argv[1], sys.argv[2], at=7.0, out=sys.argv[3], kind="continuation"))
"""


async def test_what_a_killed_join_leaves_is_overwritten_by_the_next(tmp_path: Path) -> None:
    source, result = write_wav(tmp_path / "song.wav", SONG), write_wav(tmp_path / "new.wav", NEW)
    out = tmp_path / "longer.wav"
    words = [sys.executable, "-c", _KILLED, *map(str, (source, result, out))]
    assert subprocess.run(words, check=False, timeout=60).returncode == -signal.SIGKILL  # noqa: ASYNC221, S603  # our own words
    assert sorted(path.name for path in tmp_path.iterdir()) == ["longer.wav.part", "new.wav", "song.wav"]
    joined = await join(source, result, at=1.0, out=out, kind="continuation")  # a shorter one
    assert joined.duration == pytest.approx(1 + len(NEW) / RATE, abs=0.001)
    assert len(read_mono(out, RATE)) == round(joined.duration * RATE)
    assert sorted(tmp_path.iterdir()) == [out, result, source]


async def test_a_directory_that_cannot_be_is_a_storage_error(tmp_path: Path) -> None:
    source, result = write_wav(tmp_path / "song.wav", SONG), write_wav(tmp_path / "new.wav", NEW)
    with pytest.raises(kie.StorageError, match=r"song\.wav cannot be written: "):
        await join(source, result, at=CUT, out=source / "longer.wav")


def test_cancelling_stops_the_work_and_leaves_nothing(tmp_path: Path) -> None:
    source, result = write_wav(tmp_path / "song.wav", SONG), write_wav(tmp_path / "new.wav", NEW)
    free = Event()

    class BusyExecutor(ThreadPoolExecutor):
        """Its one thread is busy when the reading comes, so that this is cancelled before it reads."""

        def submit(self, function: Any, /, *given: Any, **named: Any) -> Any:  # as its base
            if any(isinstance(each, Event) for each in given):  # by which it can be stopped
                super().submit(free.wait)
                came.set()
            return super().submit(function, *given, **named)

    async def cancel() -> None:
        asyncio.get_running_loop().set_default_executor(executor)
        work = asyncio.create_task(join(source, result, at=CUT, out=tmp_path / "longer.wav"))
        await came.wait()
        work.cancel()
        asyncio.get_running_loop().call_soon(free.set)
        with pytest.raises(asyncio.CancelledError):
            await work

    came, executor = asyncio.Event(), BusyExecutor(1)
    asyncio.run(cancel())
    assert sorted(tmp_path.iterdir()) == [result, source]


def test_a_long_file_takes_little_memory(tmp_path: Path) -> None:
    """The samples of the song are 22 MB; some seconds of them are held."""
    source, result = write_wav(tmp_path / "song.wav", np.tile(SONG, 25)), write_wav(tmp_path / "new.wav", NEW)
    tracemalloc.start()
    try:
        joined = asyncio.run(join(source, result, at=240, out=tmp_path / "longer.wav", kind="continuation"))
        assert tracemalloc.get_traced_memory()[1] < 10_000_000
    finally:
        tracemalloc.stop()
    assert joined.duration == pytest.approx(244, abs=0.001)
