"""A result is heard to hold its source, or only what follows it."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from random import Random
from typing import Any

import audio_files
import numpy as np
import pytest

import kie_async as kie
from benchmarks._audio_cases import RATE, Case, made_up_song, make_case, write_mp3, write_wav
from kie_async.audio import compare

pytestmark = [pytest.mark.anyio, pytest.mark.real_time]

SONG, OTHER = (made_up_song(Random(seed), 30.0) for seed in (3, 103))


LOOP = SONG[: 2 * RATE]


async def verdict_on(case: Case, folder: Path) -> kie.audio.Verdict:
    source, result = case.write(folder)
    return await compare(source, result, continue_at=case.continue_at)


@pytest.mark.parametrize("seed", range(20))
async def test_seeded_cases_are_told_apart(seed: int, tmp_path: Path) -> None:
    case = make_case(seed, longest=12.0)
    verdict = await verdict_on(case, tmp_path)
    assert verdict.kind == case.truth or verdict.confidence <= 0.9, case
    if verdict.kind == "whole" == case.truth and verdict.confidence > 0.9:
        assert verdict.offset == pytest.approx(case.offset, abs=0.005), case
        new_from = case.continue_at + case.offset
        if case.goes_on:  # it is the source to its end
            new_from += (len(case.source) / RATE - case.continue_at) * (1 + case.drift)
        assert verdict.seam == pytest.approx(new_from, abs=0.2 if case.goes_on else 0.005), case
        assert verdict.drift is None or verdict.drift == pytest.approx(case.drift * 1e6, abs=200)
        assert verdict.drift is not None or case.continue_at < 9.0


async def test_a_looping_piece_is_told_with_little_confidence(tmp_path: Path) -> None:
    write_wav(tmp_path / "song.wav", np.tile(LOOP, 20))
    write_mp3(tmp_path / "new.mp3", np.tile(LOOP, 18), rate=44_100, bit_rate=96_000)
    verdict = await compare(tmp_path / "song.wav", tmp_path / "new.mp3", continue_at=24.0)
    assert verdict.kind == "whole"
    assert verdict.confidence == pytest.approx(0.5, abs=0.1)
    assert verdict.offset == pytest.approx(0.0, abs=0.001)
    assert verdict.seam == pytest.approx(36.0, abs=0.1)
    assert str(verdict).startswith("the whole song, new from 0:3")


@pytest.mark.parametrize(("left", "late"), [(17.0, 0.7), (17.0, 3.0), (17.0, 10.0), (6.5, 3.5), (4.0, 4.0)])
async def test_a_result_that_leaves_its_source_before_the_cut_is_new_from_there(
    left: float, late: float, tmp_path: Path
) -> None:
    write_wav(tmp_path / "song.wav", SONG)
    late_start = np.concatenate([np.zeros(RATE // 2, dtype=np.float32), SONG[: round(left * RATE)], OTHER])
    write_wav(tmp_path / "new.wav", late_start)
    right = await compare(tmp_path / "song.wav", tmp_path / "new.wav", continue_at=left)
    assert (right.kind, right.confidence > 0.9) == ("whole", True)
    assert right.seam == pytest.approx(left + 0.5, abs=0.005)
    verdict = await compare(tmp_path / "song.wav", tmp_path / "new.wav", continue_at=left + late)
    assert verdict.kind == "whole"
    assert verdict.seam == pytest.approx(left + 0.5, abs=0.06)
    assert verdict.offset == pytest.approx(0.5, abs=0.005)
    assert verdict.confidence <= 0.6


async def test_a_result_of_the_other_polarity_is_found_as_exactly(tmp_path: Path) -> None:
    write_wav(tmp_path / "song.wav", SONG)
    write_mp3(tmp_path / "new.mp3", -np.append(SONG[: 17 * RATE], OTHER), rate=44_100, bit_rate=96_000)
    verdict = await compare(tmp_path / "song.wav", tmp_path / "new.mp3", continue_at=17.0)
    assert (verdict.kind, verdict.confidence > 0.9) == ("whole", True)
    assert verdict.seam == pytest.approx(17.0, abs=0.001)
    assert verdict.drift == pytest.approx(0.0, abs=20)


@pytest.mark.parametrize(("cut", "left", "drift"), [(16.4, 17.0, 0.0), (4.0, 17.0, 4e-4), (17.0, 30.0, 0.0)])
async def test_a_result_that_follows_its_source_beyond_the_cut_is_new_from_where_it_leaves_it(
    cut: float, left: float, drift: float, tmp_path: Path
) -> None:
    result = np.concatenate([np.zeros(RATE // 2, dtype=np.float32), SONG[: round(left * RATE)], OTHER])
    places = np.arange(round(len(result) * (1 + drift))) / (1 + drift)
    write_wav(tmp_path / "song.wav", SONG)
    write_wav(tmp_path / "new.wav", np.interp(places, np.arange(len(result)), result).astype(np.float32))
    verdict = await compare(tmp_path / "song.wav", tmp_path / "new.wav", continue_at=cut)
    assert (verdict.kind, verdict.confidence > 0.9) == ("whole", True)
    assert verdict.seam == pytest.approx((left + 0.5) * (1 + drift), abs=0.06)
    assert verdict.offset == pytest.approx(0.5 + (cut + 0.5) * drift, abs=0.005)


async def test_a_song_that_was_silent_long_before_its_cut_is_found_by_what_is_loud_in_it(tmp_path: Path) -> None:
    fade = np.minimum(1.0, np.linspace(3.0, 0.0, round(3.5 * RATE), dtype=np.float32) ** 2)
    head = np.append(SONG[: len(fade)] * fade, np.zeros(round(36.5 * RATE), dtype=np.float32))
    write_wav(tmp_path / "song.wav", np.append(head, SONG))
    write_mp3(tmp_path / "new.mp3", np.append(head, OTHER), rate=44_100, bit_rate=64_000)
    verdict = await compare(tmp_path / "song.wav", tmp_path / "new.mp3", continue_at=40.0)
    assert verdict.kind == "whole"
    assert verdict.offset == pytest.approx(0.0, abs=0.005)


async def test_of_a_long_song_what_is_around_the_cut_is_compared(tmp_path: Path) -> None:
    noise = np.float32(0.1) * np.random.default_rng(1).standard_normal(320 * RATE, dtype=np.float32)
    write_wav(tmp_path / "song.wav", noise[: 310 * RATE])
    write_wav(tmp_path / "new.wav", np.append(noise[: 305 * RATE], noise[310 * RATE :]))
    verdict = await compare(tmp_path / "song.wav", tmp_path / "new.wav", continue_at=305.0)
    assert verdict.kind == "whole"
    assert verdict.offset == pytest.approx(0.0, abs=0.001)
    assert verdict.seam == pytest.approx(305.0, abs=0.005)
    with pytest.raises(kie.AudioError, match="is 10:40, but the source lasts at most 5:40"):
        await compare(tmp_path / "song.wav", tmp_path / "new.wav", continue_at=640.0)


# Of a song whose early cut was given too late, so little may be kept that it cannot be found.
@pytest.mark.parametrize(("cut", "confidence"), [(4.0, 0.9), (20.0, pytest.approx(1.0, abs=0.09))])
async def test_a_constant_voltage_is_no_likeness(cut: float, confidence: float, tmp_path: Path) -> None:
    write_wav(tmp_path / "song.wav", SONG * np.float32(0.2) + np.float32(0.5))
    write_wav(tmp_path / "new.wav", OTHER * np.float32(0.2) + np.float32(0.5))
    verdict = await compare(tmp_path / "song.wav", tmp_path / "new.wav", continue_at=cut)
    assert (verdict.kind, verdict.confidence) == ("continuation", confidence)


async def test_a_whole_that_lacks_the_only_part_that_is_not_repeated_is_told_with_little_confidence(
    tmp_path: Path,
) -> None:
    write_wav(tmp_path / "song.wav", np.append(SONG[7 * RATE : 11 * RATE], np.tile(LOOP, 20)))
    write_wav(tmp_path / "new.wav", np.tile(LOOP, 20))
    verdict = await compare(tmp_path / "song.wav", tmp_path / "new.wav", continue_at=34.0)
    assert (verdict.kind, verdict.confidence) == ("whole", 0.5)


async def test_what_lies_beyond_the_beginning_of_a_result_is_not_missed(tmp_path: Path) -> None:
    """It lacks the beginning of a short source, and silence follows."""
    write_wav(tmp_path / "song.wav", SONG)
    write_wav(tmp_path / "new.wav", np.concatenate([SONG[RATE : 7 * RATE], np.zeros(9 * RATE, dtype=np.float32)]))
    verdict = await compare(tmp_path / "song.wav", tmp_path / "new.wav", continue_at=7.0)
    assert verdict.kind == "whole"
    assert verdict.seam == pytest.approx(6.0, abs=0.002)


async def test_a_result_that_is_too_short_holds_the_continuation_alone(tmp_path: Path) -> None:
    write_wav(tmp_path / "song.wav", SONG)
    write_wav(tmp_path / "new.wav", OTHER[: 5 * RATE])
    verdict = await compare(tmp_path / "song.wav", str(tmp_path / "new.wav"), continue_at=15.0)
    assert verdict == kie.audio.Verdict("continuation", 1.0, seam=0.0)
    assert str(verdict) == "it holds nothing of the song: taken as its continuation"


@pytest.mark.parametrize(
    ("source", "result", "continue_at"),
    [
        (np.zeros(20 * RATE, dtype=np.float32), SONG, 10.0),  # nothing to be heard
        (SONG, SONG, 0.5),  # too little
        (SONG, SONG[:1000], 0.01),
        (SONG, np.zeros(20 * RATE, dtype=np.float32), 10.0),  # nothing to be heard in the result
        (SONG, SONG[:RATE], 4.0),  # the result is shorter than what is sought
        (SONG, np.concatenate([OTHER[: 8 * RATE], SONG[8 * RATE : 20 * RATE], OTHER]), 20.0),  # its end is there
        (np.append(np.tile(LOOP, 4), SONG), np.append(np.tile(LOOP, 2), OTHER), 12.0),  # so is a part that is repeated
    ],
)
async def test_what_cannot_be_told_is_unclear(
    source: np.ndarray[tuple[int], np.dtype[np.float32]],
    result: np.ndarray[tuple[int], np.dtype[np.float32]],
    continue_at: float,
    tmp_path: Path,
) -> None:
    write_wav(tmp_path / "song.wav", source)
    write_wav(tmp_path / "new.wav", result)
    verdict = await compare(tmp_path / "song.wav", tmp_path / "new.wav", continue_at=continue_at)
    assert verdict == kie.audio.Verdict("unclear")
    assert str(verdict) == "cannot tell whether it is the whole song or the continuation; listen"


@pytest.mark.parametrize("continue_at", [0.0, -1.0, float("nan"), float("inf"), 25.0, "75%"])
async def test_a_cut_that_is_no_position_in_the_source_is_refused(continue_at: Any, tmp_path: Path) -> None:
    (tmp_path / "song.mp3").write_bytes(audio_files.mp3())
    with pytest.raises(kie.AudioError, match="continue_at: is"):
        await compare(tmp_path / "song.mp3", tmp_path / "song.mp3", continue_at=continue_at)


async def test_damaged_audio_is_an_audio_error(tmp_path: Path) -> None:
    (tmp_path / "song.mp3").write_bytes(audio_files.mp3())
    (tmp_path / "new.mp3").write_bytes(audio_files.HTML)
    with pytest.raises(kie.AudioError, match=r"new\.mp3 is no audio"):
        await compare(tmp_path / "song.mp3", tmp_path / "new.mp3", continue_at=10.0)


async def test_without_the_extra_nothing_is_compared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)
    with pytest.raises(kie.AudioError, match=r'pip install "kie_async\[audio\]"'):
        await compare(tmp_path / "song.mp3", tmp_path / "new.mp3", continue_at=10.0)
