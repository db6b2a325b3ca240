"""The simulation of pacing: its exact optimum, and what it prints."""

from __future__ import annotations

import math
import re
from itertools import accumulate, pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks import pacing
from benchmarks._poll_simulation import (
    Even,
    LogNormal,
    Mixture,
    best_polls,
    every,
    expected,
    follow,
    optimum,
    telling_nothing,
)

pytestmark = pytest.mark.scale


def cost(ages: list[float], ended: list[float], price: float, polls: list[int]) -> float:
    """What looks at these ages cost, if tasks end in the middle between two ages."""
    total = 0.0
    for before, at in pairwise([0, *polls]):
        total += price * (1 - ended[before])
        for step in range(before, at):
            total += (ages[at] - (ages[step] + ages[step + 1]) / 2) * (ended[step + 1] - ended[step])
    return total


def every_way(last: int) -> list[list[int]]:
    """Every choice of looks that ends with the last age."""
    ways: list[list[int]] = [[]]
    for age in range(1, last):
        ways += [[*way, age] for way in ways]
    return [[*way, last] for way in ways]


@given(
    st.lists(st.tuples(st.floats(0.5, 30), st.floats(0, 1)), min_size=2, max_size=7).filter(
        lambda steps: sum(share for _, share in steps) > 0.1
    ),
    st.floats(0.01, 20),
)
def test_no_choice_of_looks_is_better_than_the_optimum(steps: list[tuple[float, float]], price: float) -> None:
    ages = [0.0, *accumulate(width for width, _ in steps)]
    shares = [0.0, *accumulate(share for _, share in steps)]
    ended = [share / shares[-1] for share in shares]
    best, polls = best_polls(ages, ended, price), [0]
    while polls[-1] < len(steps):
        polls.append(ages.index(best[polls[-1]]))
    found = cost(ages, ended, price, polls[1:])
    assert found == pytest.approx(min(cost(ages, ended, price, way) for way in every_way(len(steps))))


def test_the_optimum_is_near_its_limit_for_many_looks() -> None:
    found = optimum(Even(50, 150), 0.03)
    limit = (math.sqrt(100) * 2 / 3) ** 2 / 2  # of looks * lag: half the square of the integral of sqrt(F' (1 - F))
    assert found.polls * found.lag == pytest.approx(limit, rel=0.1)


def test_a_fixed_interval_costs_what_it_must() -> None:
    found = expected(Mixture(0.5, Even(57, 74), LogNormal(100, 0.3)), [10.0 * number for number in range(1, 100)])
    assert found.lag == pytest.approx(5, abs=0.3)


def test_a_task_is_followed_to_its_end() -> None:
    ended = follow(every(10), telling_nothing(Even(94, 96))(pacing.Bench(1, 1).chance()))
    assert ended.polls == 10
    assert 4 <= ended.lag <= 6


def test_a_small_run_tells_where_the_goal_is_met(capsys: pytest.CaptureFixture[str]) -> None:
    assert pacing.main(["--tasks", "20"]) == 0
    printed = capsys.readouterr().out
    assert re.search(r"^measured, 57-74 s .* met$", printed, re.MULTILINE)
    assert re.search(r"^log-normal 180 s, 0.5 .* beyond reach$", printed, re.MULTILINE)
    assert "A shift in mid-run" in printed
    called = [line.split() for line in printed.splitlines() if line.startswith("measured, 57-74 s") and "come" in line]
    (none, come) = ([float(figure) for figure in words[-5:]] for words in called)
    assert come[1] <= pacing.MAX_EXTRA  # polls beyond the one that confirms
    assert none[2] < 5  # seconds of lag
