"""Polls per task against the lag with which its end is seen, by simulation: ours, fixed intervals and the advised.

The goal: at equal mean lag half the polls of the best fixed interval, at equal polls half its lag. How near any policy
can come follows from the durations alone, so beside ours stands the exact optimum of all policies that know how long
tasks last, and of each only its age: where that is above one half, the goal is beyond reach. Tasks come one after the
other, and each is learnt from; what is learnt within the first 20 is shown apart.
"""

from __future__ import annotations

import argparse
import math
import random
import timeit
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import pairwise
from typing import TypeVar

import attrs

from benchmarks._callback_simulation import Caller, Delay, lost, only_stages, only_the_end, prompt, slow
from benchmarks._poll_simulation import (
    ADVISED,
    EXPONENTIAL,
    Durations,
    Ended,
    Even,
    FixedIntervals,
    Life,
    Lives,
    LogNormal,
    Mean,
    Mixture,
    Ours,
    Policy,
    Sampled,
    every,
    first_at,
    follow,
    mean,
    optimum,
    outlook,
    side_by_side,
    telling_nothing,
)
from benchmarks._report import table, versions
from kie_async._protocol.durations import MAX_FIRST_DELAY, MAX_INTERVAL, MIN_INTERVAL, POLL_COST

T = TypeVar("T")

GOAL = 0.5
MAX_EXTRA = 0.3  # polls per task where callbacks come
QUICK_RUN = 100  # tasks: a run of fewer is a taste
LEARNT = 20  # tasks, after which the policy is expected to know
LATER = 90.0  # seconds that the first poll might be put off, for comparison
SHARES = ("polls", "lag", f"{LATER:.0f} s: polls", "lag", "bound: polls", "lag")
RIVALS: dict[str, Policy] = {
    **{f"{seconds} s": every(seconds) for seconds in (2, 5, 10, 30)},
    "x 1.5": EXPONENTIAL,
    "advised": ADVISED,
}
QUICK, SLOW = Even(57, 74), Even(130, 137)  # FACTS §3: the two measurements
DURATIONS: dict[str, Durations] = {
    "measured, 57-74 s": QUICK,
    "measured, 130-137 s": SLOW,
    "measured, either": Mixture(0.5, QUICK, SLOW),
    "usual, 60-180 s": Even(60, 180),
    **{
        f"log-normal {median} s, {sigma}": LogNormal(median, sigma)
        for sigma in (0.15, 0.3, 0.5)
        for median in (60, 100, 180)
    },
    "70 % 60 s, 30 % 180 s": Mixture(0.7, LogNormal(60, 0.2), LogNormal(180, 0.2)),
    "90 % 100 s, 10 % 300 s": Mixture(0.9, LogNormal(100, 0.3), LogNormal(300, 0.5)),
}


@attrs.frozen
class Bench:
    """How much is simulated.

    Attributes:
        tasks: of each kind of durations.
    """

    tasks: int
    seed: int

    def chance(self, part: int = 0) -> random.Random:
        """The same numbers for every policy."""
        return random.Random(self.seed * 1000 + part)  # noqa: S311  # a seeded simulation

    def lives(self, kind: Lives, part: int = 0, tasks: int | None = None) -> list[Life]:
        """Tasks of one kind, the same ones for every policy."""
        chance = self.chance(part)
        return [kind(chance) for _ in range(tasks or self.tasks + LEARNT)]

    def some(self, things: Iterable[T]) -> list[T]:
        """All, but of a quick run every fourth."""
        return list(things)[:: 1 if self.tasks >= QUICK_RUN else 4]

    @property
    def repeats(self) -> range:
        """How often what happens once in a run is repeated."""
        return range(max(1, self.tasks // 100))


def run(policy: Policy, lives: Sequence[Life]) -> list[Ended]:
    """Follow tasks one after the other."""
    return [follow(policy, life) for life in lives]


def known(policy: Policy, lives: Sequence[Life]) -> Mean:
    """The mean over those tasks that came when the policy had learnt."""
    return mean(run(policy, lives)[LEARNT:])


def awaited(policy: Policy, durations: Durations, lives: Sequence[Life], every: int = 4) -> Mean:
    """The same, from what was to be expected of every so many tasks: chance in their ends falls out."""
    run(policy, lives[:LEARNT])
    found = []
    for number, life in enumerate(lives[LEARNT:]):
        if number % every == 0:
            found.append(outlook(policy, durations, life))
        follow(policy, life)
    return mean(found)


def shares(found: Mean, fixed: FixedIntervals) -> tuple[float, float]:
    """Of the best fixed interval: the share of its polls at equal lag, and of its lag at equal polls."""
    return found.polls / fixed.polls(found.lag), found.lag / fixed.lag(found.polls)


# ---------------------------------------------------------------- tables


def goal(bench: Bench) -> None:
    """Ours against the best fixed interval, with the bound."""

    def rows() -> Iterator[list[str]]:
        for name, durations in bench.some(DURATIONS.items()):
            lives = bench.lives(telling_nothing(durations))
            found, later = (
                awaited(Ours(bench.seed, max_first_delay=max_first_delay), durations, lives)
                for max_first_delay in (MAX_FIRST_DELAY, LATER)
            )
            limited = optimum(durations, POLL_COST, most=MAX_INTERVAL)
            pairs = all_shares(durations, found, later, optimum(durations, POLL_COST), limited)
            shown = (f"{share:.2f}" for pair in pairs for share in pair)
            yield [name, *columns(found), *shown, verdict(pairs[0], pairs[2], pairs[3])]

    print("\nOf the best fixed interval: polls at equal lag, lag at equal polls. Stages tell nothing.")
    table(["durations", "polls", "lag s", *SHARES, f"{MAX_INTERVAL:.0f} s: polls", "lag", f"goal {GOAL}"], rows())
    print(f"{LATER:.0f} s: if the first poll might come after {LATER:.0f} s, not {MAX_FIRST_DELAY:.0f} s.")
    print(f"bound: the exact optimum, durations known. {MAX_INTERVAL:.0f} s: the same, cut to polls no further apart.")


def all_shares(durations: Durations, *found: Mean) -> list[tuple[float, float]]:
    """The shares of several."""
    fixed = FixedIntervals(durations)
    return [shares(each, fixed) for each in found]


def columns(found: Mean) -> tuple[str, str]:
    """Two columns of a row."""
    return f"{found.polls:.1f}", f"{found.lag:.1f}"


def verdict(ours: tuple[float, float], bound: tuple[float, float], limited: tuple[float, float]) -> str:
    """Whether the goal is met, and if not, what stands in the way."""
    if max(ours) <= GOAL:
        return "met"
    if max(bound) > GOAL:
        return "beyond reach"
    return "beyond our limits" if max(limited) > GOAL else "missed"


def rivals(bench: Bench) -> None:
    """Every policy on every kind of durations."""

    def rows() -> Iterator[list[str]]:
        for name, durations in bench.some(DURATIONS.items()):
            lives = bench.lives(telling_nothing(durations))
            yield [name, *(str(known(policy, lives)) for policy in RIVALS.values())]

    print("\nThe others: polls per task / seconds of lag.")
    table(["durations", *RIVALS], rows())


def prices(bench: Bench) -> None:
    """The curve of polls against lag."""

    def rows() -> Iterator[list[str]]:
        for name in bench.some(("measured, either", "log-normal 100 s, 0.3")):
            durations = DURATIONS[name]
            lives = bench.lives(telling_nothing(durations))
            for poll_cost in bench.some((0.03, 0.1, 0.3, 1.0, 3.0)):
                found, later = (
                    awaited(Ours(bench.seed, poll_cost=poll_cost, max_first_delay=max_first_delay), durations, lives)
                    for max_first_delay in (MAX_FIRST_DELAY, LATER)
                )
                pairs = all_shares(durations, found, later, optimum(durations, poll_cost))
                yield [name, f"{poll_cost}", *columns(found), *(f"{share:.2f}" for pair in pairs for share in pair)]

    print("\nThe same at other prices of a poll, in seconds of lateness.")
    table(["durations", "poll_cost", "polls", "lag s", *SHARES], rows())


def stages(bench: Bench) -> None:
    """What it is worth to look at the stages, if they tell something."""
    kinds: dict[str, Lives] = {
        "nothing: 100 s, 0.3": telling_nothing(LogNormal(100, 0.3)),
        "first at 55-95 %: 100 s, 0.3": first_at(0.55, 0.95, LogNormal(100, 0.3)),
        "first at 55-95 %: 100 s, 0.5": first_at(0.55, 0.95, LogNormal(100, 0.5)),
        "two tracks: 90 s, 0.25 and 0.2": side_by_side(LogNormal(90, 0.25), 0.2),
    }

    def rows() -> Iterator[list[str]]:
        for name, kind in bench.some(kinds.items()):
            lives = bench.lives(kind, tasks=3 * bench.tasks + LEARNT)
            fixed = FixedIntervals(Sampled([life.end for life in bench.lives(kind, 1, 5000)]))
            for way, blind, max_first_delay in (
                ("by age", True, MAX_FIRST_DELAY),
                ("by stage", False, MAX_FIRST_DELAY),
                (f"by stage, {LATER:.0f} s", False, LATER),
            ):
                found = known(Ours(bench.seed, blind=blind, max_first_delay=max_first_delay), lives)
                yield [name, way, *columns(found), *(f"{share:.2f}" for share in shares(found, fixed))]

    print("\nWhat stages tell, and what that is worth. How the real ones relate to the end is not known.")
    table(["stages tell", "paced", "polls", "lag s", "polls", "lag"], rows())


@attrs.frozen
class Span:
    """What part of a run cost.

    Attributes:
        awaited: what was to be expected of its tasks.
        worst: the longest lag there was.
    """

    awaited: Mean
    worst: float


def spans(bench: Bench, kinds: Sequence[Durations], tasks: int, bounds: Sequence[int]) -> list[Span]:
    """The spans of a run in which so many tasks are of each kind in turn."""
    rows: list[list[tuple[Mean, Ended]]] = []
    for part in bench.repeats:
        policy = Ours(part)
        row: list[tuple[Mean, Ended]] = []
        for number, kind in enumerate(kinds):
            lives = bench.lives(telling_nothing(kind), 10 * part + number, tasks)
            row += [(outlook(policy, kind, life), follow(policy, life)) for life in lives]
        rows.append(row)
    parts = ([each for row in rows for each in row[start:end]] for start, end in pairwise(bounds))
    return [Span(mean(means for means, _ in part), max(ended.lag for _, ended in part)) for part in parts]


def learning(bench: Bench) -> None:
    """The first tasks of a session, against the bound."""
    bounds = (0, 5, 10, 20, 50, 100)

    def rows() -> Iterator[list[str]]:
        for name in bench.some(("measured, 57-74 s", "log-normal 60 s, 0.3", "log-normal 180 s, 0.3")):
            least = optimum(DURATIONS[name], POLL_COST)
            found = spans(bench, [DURATIONS[name]], bounds[-1], bounds)
            for (start, end), each in zip(pairwise(bounds), found, strict=True):
                over = each.awaited.cost(POLL_COST) / least.cost(POLL_COST)
                yield [name, f"{start + 1}-{end}", *columns(each.awaited), f"{over:.2f}"]

    print(f"\nLearning. Cost is {POLL_COST} s per poll and the lag, as a multiple of the bound's.")
    table(["durations", "tasks", "polls", "lag s", "cost"], rows())


def shift(bench: Bench) -> None:
    """Durations change in mid-run."""
    bounds = (150, 200, 210, 250, 300, 400)
    names = ("last 50 before", "first 10 after", "11-50", "51-100", "101-200")

    def rows() -> Iterator[list[str]]:
        for before, after in bench.some(((60, 180), (180, 60))):
            found = spans(bench, [LogNormal(before, 0.3), LogNormal(after, 0.3)], 200, bounds)
            for name, each in zip(names, found, strict=True):
                yield [f"{before} s to {after} s", name, *columns(each.awaited), f"{each.worst:.1f}"]

    print("\nA shift in mid-run, log-normal 0.3.")
    table(["shift", "tasks", "polls", "lag s", "longest lag s"], rows())


def callbacks(bench: Bench) -> None:
    """What is polled beyond the one poll that confirms an end, and how late ends are seen, by what callbacks come."""
    kinds: dict[str, tuple[Delay, bool]] = {
        "not asked for": (lost(1.0), False),
        "none comes": (lost(1.0), True),
        "all come": (prompt, True),
        "1 in 50 is lost": (lost(0.02), True),
        "half go elsewhere": (lost(0.5), True),
        "only of the end": (only_the_end, True),
        "all but of the end": (only_stages, True),
        "20-40 s late": (slow, True),
    }

    def rows() -> Iterator[list[str]]:
        for name, durations in bench.some(DURATIONS.items()):
            lives = bench.lives(telling_nothing(durations))
            for words, (delay, asked) in kinds.items():
                caller = Caller(bench.seed, delay, asked)
                ended = [caller.follow(life) for life in lives]
                early, later = mean(ended[:LEARNT]), mean(ended[LEARNT:])
                lag = sorted(each.lag for each in ended)
                shown = (f"{each.polls - 1:.2f}" for each in (early, later))
                shares = (later.lag, lag[len(lag) // 2], lag[int(len(lag) * 0.99)])
                yield [name, words, *shown, *(f"{share:.1f}" for share in shares)]

    print(f"\nCallbacks, within 1.5 s. Extra polls: beyond the one that confirms; at most {MAX_EXTRA} where all come.")
    head = ["durations", "callbacks", f"extra polls, first {LEARNT}", "then", "mean lag s", "median", "99 %"]
    table(head, rows())


def costs(bench: Bench) -> bool:
    """What a delay costs, and whether two polls of a task are never too near; a cheap poll draws them together."""
    policy, lives = Ours(bench.seed), bench.lives(telling_nothing(LogNormal(100, 0.3)))
    run(policy, lives)
    chance = bench.chance()

    def microseconds(call: Callable[[], object]) -> float:
        return min(timeit.repeat(call, number=100, repeat=5)) / 100 * 1e6

    def learn() -> None:
        end = 100 * math.exp(chance.gauss(0, 0.3))
        policy.learn(end - 3, end + 2, {"text": 10.0, "first": 45.0, "complete": end + 2})

    delay = microseconds(lambda: policy.delay(70.0, "text", 60.0))
    print(f"\nA delay takes {delay:.1f} us, learning from a task {microseconds(learn):.0f} us.")
    nearest = min(each.least_wait for each in run(Ours(bench.seed, poll_cost=1e-4), lives))
    print(f"Polls of a task, were they nearly free: {nearest:.2f} s apart at least; the limit is {MIN_INTERVAL} s.")
    return nearest > MIN_INTERVAL - 1e-6  # the difference of two ages is rounded


def main(arguments: list[str]) -> int:
    """Simulate, and print the tables; 1 if polls come too near to each other."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks pacing", description=__doc__)
    parser.add_argument("--tasks", type=int, default=500, help="of each kind")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args(arguments)
    bench = Bench(options.tasks, options.seed)
    print(versions())
    print(f"{bench.tasks} tasks of each kind, seed {bench.seed}; a poll is worth {POLL_COST} s of lateness.")
    for each in (goal, rivals, prices, stages, learning, shift, callbacks):
        each(bench)
    return int(not costs(bench))
