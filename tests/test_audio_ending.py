"""Where a song begins to fade out, or to be silent."""

from __future__ import annotations

import wave
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from kie_async import audio

pytestmark = pytest.mark.anyio
RATE, SECONDS = 8000, 40.0

# The gain for each second of a fade that lasts some seconds, from its beginning on.
FADES: dict[str, Callable[[NDArray[np.float64], float], NDArray[np.float64]]] = {
    "even gain": lambda at, seconds: 1 - at / seconds,
    "even loudness": lambda at, seconds: 10 ** (-2 * at / seconds),
    "silence": lambda at, _seconds: np.zeros_like(at),
}


def noise(path: Path, gain: NDArray[np.float64]) -> Path:
    """Write noise whose end has these gains."""
    samples = np.random.default_rng(1).normal(0.0, 3000.0, round(SECONDS * RATE))
    samples[len(samples) - len(gain) :] *= gain
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(RATE)
        file.writeframes(samples.clip(-32000, 32000).astype("<i2").tobytes())
    return path


@pytest.mark.parametrize("seconds", [3.0, 7.0, 13.0])
@pytest.mark.parametrize("fade", FADES)
async def test_a_fade_is_found_where_it_begins(fade: str, seconds: float, tmp_path: Path) -> None:
    path = noise(tmp_path / "song.wav", FADES[fade](np.arange(round(seconds * RATE)) / RATE, seconds))
    assert await audio.quiet_from(path, SECONDS) == pytest.approx(SECONDS - seconds, abs=1.0)


async def test_a_quiet_tail_begins_at_its_drop(tmp_path: Path) -> None:
    tail = np.repeat([0.18, 0.32, 0.3, 0.03, 0.005], np.array([1, 4, 5, 1, 1]) * RATE)  # -15, -10, -10, -30, -46 dB
    assert await audio.quiet_from(noise(tmp_path / "song.wav", tail), SECONDS) == pytest.approx(SECONDS - 12, abs=1.0)


async def test_what_does_not_get_quieter_has_no_fade(tmp_path: Path) -> None:
    path = noise(tmp_path / "song.wav", np.full(RATE, 0.5))
    assert await audio.quiet_from(path, SECONDS) is None


@pytest.mark.parametrize(
    ("silent", "cut", "begins"),
    [
        ((30, 40), 35, 30),  # it is quiet at the cut and at the end
        ((30, 33), 32, 30),  # at the cut alone
        ((2, 8), 5, 2),  # long before the end
        ((30, 40), 25, 30),  # at the end alone, and after the cut
        ((30, 40), 5, None),  # long after it
    ],
)
async def test_a_cut_may_lie_where_it_is_quiet(
    silent: tuple[int, int], cut: float, begins: float | None, tmp_path: Path
) -> None:
    gain = np.ones(round(SECONDS * RATE))
    gain[silent[0] * RATE : silent[1] * RATE] = 0.0
    found = await audio.quiet_from(noise(tmp_path / "song.wav", gain), SECONDS, cut=cut)
    assert found == (None if begins is None else pytest.approx(begins, abs=1.0))
