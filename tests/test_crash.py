"""The crash matrix in short: the full one is ``python -m benchmarks crash``."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from benchmarks import crash

POINTS = ("add:after", "move-submitted:before", "move-succeeded:before", "download:after", "move-delivered:before")


@pytest.fixture(params=["embedded", "shared"])
def store(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("PYTHONPATH", str(Path(crash.__file__).parents[1]))
    return "" if request.param == "embedded" else str(request.getfixturevalue("database_url"))


@pytest.mark.scale
@pytest.mark.parametrize("deaths", ["points", "kills"])
def test_nothing_is_paid_twice_or_lost(store: str, deaths: str) -> None:
    chance, tally = random.Random(1), crash.Tally()
    plan: dict[str, list[tuple[str, int, float | None]]] = {
        "points": [(point, 1, None) for point in POINTS],
        "kills": [("", 0, after * chance.random()) for after in (0.0, 1.5, 3.0)],
    }
    with crash.setting(store, callbacks=True) as batch:
        crash.run_to_the_end(batch, iter(plan[deaths]), tally)
        crash.check(batch, tally)
    assert tally.deaths >= (1 if deaths == "kills" else 2)  # a later one may find the batch at its end
    assert tally.charged + tally.unknown == crash.JOBS
    assert (tally.twice, tally.lost, tally.unknown_charged) == (0, 0, 0)
