"""Where a chain cuts, how long it makes a song, and when it ends: pure rules."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kie_async import MODELS
from kie_async.chain._rules import ChainGoal, ChainPart, SongLength, length_after, part_by_length

SECONDS = st.floats(0.01, 1000.0)


def problems(model: str = "V5", **fields: Any) -> list[str]:
    return [f"{each.field} {each.problem}" for each in ChainGoal(**{"seconds": 240.0, **fields}).problems(model)]


@pytest.mark.parametrize("model", MODELS)
def test_a_song_is_at_most_as_long_as_its_model_can_make_it(model: str) -> None:
    minutes = 4 if model in {"V3_5", "V4"} else 8
    assert problems(model, seconds=60.0 * minutes) == []
    assert problems(model, seconds=60.0 * minutes + 1) == [f"seconds is {minutes}:01"]


@pytest.mark.parametrize(
    ("fields", "found"),
    [
        ({"seconds": 0.0}, "seconds is 0.0"),
        ({"seconds": float("nan")}, "seconds is nan"),
        ({"seconds": "4:00"}, "seconds is '4:00'"),
        ({"seconds": True}, "seconds is True"),
        ({"max_steps": 0}, "max_steps is 0"),
        ({"max_steps": 2.5}, "max_steps is 2.5"),
        ({"max_steps": float("inf")}, "max_steps is inf"),
        ({"before_end": "1"}, "before_end is '1'"),
        ({"before_end": 0.0}, "before_end is 0.0"),
        ({"before_end": float("inf")}, "before_end is inf"),
    ],
)
def test_what_is_out_of_range_is_named(fields: dict[str, Any], found: str) -> None:
    assert problems(**fields) == [found]


def test_of_a_model_that_is_none_only_the_rest_is_checked() -> None:
    assert problems("nonsense", seconds=1e5) == []


def test_the_cut_is_half_a_second_before_the_end() -> None:
    assert ChainGoal(seconds=240.0).next_cut(120.5) == 120.0
    assert ChainGoal(seconds=240.0, before_end=10.0).next_cut(120.5) == 110.5
    assert ChainGoal(seconds=240.0, before_end=10.0).next_cut(8.0) == 4.0


def test_what_fades_out_is_cut_before_that_unless_it_is_said_where() -> None:
    assert ChainGoal(seconds=240.0).next_cut(120.5, fades_from=112.0) == 111.5
    assert ChainGoal(seconds=240.0, before_end=0.5).next_cut(120.5, fades_from=112.0) == 120.0


@given(SECONDS, st.none() | st.floats(0.01, 100.0), st.none() | SECONDS)
def test_every_cut_is_legal(duration: float, before_end: float | None, fades_from: float | None) -> None:
    assert 0 < ChainGoal(seconds=240.0, before_end=before_end).next_cut(duration, fades_from) < duration


@pytest.mark.parametrize(("length", "end"), [(160.0, "reached"), (159.51, "reached"), (159.5, None), (158.0, None)])
@pytest.mark.parametrize("steps", [0, 2])  # the source itself, or what was made of it
def test_less_than_half_a_second_is_not_paid_another_step(length: float, steps: int, end: str | None) -> None:
    assert ChainGoal(seconds=160.0).end_after(None, SongLength(length), steps) == end


def test_a_result_that_is_not_longer_than_its_cut_is_a_continuation() -> None:
    assert part_by_length(60.0, 60.0) == "continuation"
    assert part_by_length(60.0, 60.1) == "whole"
    assert part_by_length(None, 10.0) == "whole"
    assert part_by_length(60.0, None) == "whole"


def test_the_length_of_a_song_counts_what_its_last_track_does_not_hold() -> None:
    song = length_after(SongLength(60.0), 59.5, 40.0, "continuation")
    assert song == SongLength(40.0, begins_at=59.5)
    longer = length_after(song, 39.5, 70.0, "whole")
    assert longer == SongLength(70.0, begins_at=59.5)
    assert longer.total == 129.5
    assert length_after(longer, 69.5, None, "whole") is None
    assert length_after(None, None, 100.0, "whole") == SongLength(100.0)


@given(
    st.none() | SECONDS,
    st.lists(st.tuples(st.none() | SECONDS, st.sampled_from(["whole", "continuation"]))),
    st.floats(1.0, 480.0),
    st.integers(1, 12),
)
def test_a_chain_ends_for_a_reason_within_its_steps(
    length: float | None, results: list[tuple[float | None, ChainPart]], seconds: float, max_steps: int
) -> None:
    goal, before, steps = ChainGoal(seconds=seconds, max_steps=max_steps), None, 0
    song = None if length is None else SongLength(length)
    duration, left = length, iter(results)
    while (end := goal.end_after(before, song, steps)) is None:
        assert steps < max_steps
        assert song is None or song.total <= seconds - 0.5
        cut = None if duration is None else goal.next_cut(duration)
        duration, heard = next(left, (10.0, "whole"))
        holds = part_by_length(cut, duration)
        before, song = song, length_after(song, cut, duration, heard if holds == "whole" else holds)
        steps += 1
    if end == "reached":
        assert song is not None
        assert song.total > seconds - 0.5
    if end == "nothing_added":
        assert song is not None
        assert before is not None
        assert song.total <= before.total
    assert (end == "max_steps") <= (steps == max_steps)
    assert (end == "length_unknown") <= (song is None)
