"""Durations, policies that poll tasks, a simulation of both, and the least that any policy can do."""

from __future__ import annotations

import math
import random
from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from functools import cache
from itertools import accumulate, count, pairwise, takewhile
from typing import Protocol

import attrs

from kie_async._protocol.durations import MAX_FIRST_DELAY, DurationModel, TaskKind
from kie_async.models import STAGES, Stage

_NOBODY = 1e-6  # of all tasks: what these few do counts for nothing

# ---------------------------------------------------------------- how long tasks last


class Durations(Hashable, Protocol):
    """How long tasks last."""

    def draw(self, chance: random.Random) -> float:
        """One duration, in seconds."""
        ...

    def ended(self, age: float) -> float:
        """The share of tasks that has ended by this age."""
        ...


@attrs.frozen
class LogNormal:
    """Heavy-tailed durations; ``sigma`` is about the share by which they scatter."""

    median: float
    sigma: float

    def draw(self, chance: random.Random) -> float:
        """One duration."""
        return self.median * math.exp(chance.gauss(0, self.sigma))

    def ended(self, age: float) -> float:
        """The share that has ended."""
        return 0.5 * (1 + math.erf(math.log(max(age, 1e-9) / self.median) / (self.sigma * math.sqrt(2))))


@attrs.frozen
class Even:
    """Any duration between two is as likely as any other."""

    least: float
    most: float

    def draw(self, chance: random.Random) -> float:
        """One duration."""
        return chance.uniform(self.least, self.most)

    def ended(self, age: float) -> float:
        """The share that has ended."""
        return min(max((age - self.least) / (self.most - self.least), 0.0), 1.0)


@attrs.frozen
class Mixture:
    """Durations of one kind or another; ``share`` are of the first."""

    share: float
    first: Durations
    second: Durations

    def draw(self, chance: random.Random) -> float:
        """One duration."""
        return (self.first if chance.random() < self.share else self.second).draw(chance)

    def ended(self, age: float) -> float:
        """The share that has ended."""
        return self.share * self.first.ended(age) + (1 - self.share) * self.second.ended(age)


# ---------------------------------------------------------------- tasks, and the stages they pass


@attrs.frozen
class Life:
    """The ages at which a task reaches its stages, and its end."""

    text: float
    first: float
    end: float


Lives = Callable[[random.Random], Life]


def telling_nothing(durations: Durations) -> Lives:
    """Stages at the emulator's ages, text after some 10 s and the first track after some 45 s, whatever the end."""

    def live(chance: random.Random) -> Life:
        end = durations.draw(chance)
        return Life(min(chance.uniform(8, 12), end), min(chance.uniform(35, 55), end), end)

    return live


def first_at(least: float, most: float, durations: Durations) -> Lives:
    """The first track comes after such a share of the whole."""

    def live(chance: random.Random) -> Life:
        end = durations.draw(chance)
        return Life(min(chance.uniform(8, 12), end), end * chance.uniform(least, most), end)

    return live


def side_by_side(load: Durations, spread: float) -> Lives:
    """Two tracks are made at once, under the same load: ``first`` is the end of one, the task's end that of both."""

    def live(chance: random.Random) -> Life:
        shared = load.draw(chance)
        first, end = sorted(shared * math.exp(chance.gauss(0, spread)) for _ in range(2))
        return Life(min(chance.uniform(8, 12), first), first, end)

    return live


# ---------------------------------------------------------------- policies


class Policy(Protocol):
    """What decides when to poll."""

    def delay(self, age: float, stage: Stage | None, stage_age: float) -> float:
        """Seconds until the next poll."""
        ...

    def learn(self, earliest: float, latest: float, stages: Mapping[Stage, float]) -> None:
        """Hear of a task that ended."""
        ...


class Ours:
    """The pacing of kie_async.

    Args:
        seed: of its jitter.
        poll_cost: seconds of lateness that one poll is worth; None: its own.
        dead: seconds that the first poll may be put off.
        blind: it is not told of stages.
    """

    _key = TaskKind("extend", "V5")

    def __init__(
        self,
        seed: int,
        *,
        poll_cost: float | None = None,
        max_first_delay: float = MAX_FIRST_DELAY,
        blind: bool = False,
    ) -> None:
        self._pacing = DurationModel(poll_cost=poll_cost, max_first_delay=max_first_delay)
        self._chance = random.Random(seed)  # noqa: S311  # a seeded simulation
        self._blind = blind

    def delay(self, age: float, stage: Stage | None, stage_age: float) -> float:
        """Seconds until the next poll."""
        return self._pacing.delay(self._key, age, None if self._blind else stage, stage_age, self._chance.random)

    def learn(self, earliest: float, latest: float, stages: Mapping[Stage, float]) -> None:
        """Hear of a task that ended."""
        self._pacing.learn(self._key, earliest, latest, {} if self._blind else stages)


@attrs.frozen
class Rule:
    """Polls at ages that follow from the age alone, and learns nothing."""

    wait: Callable[[float], float]

    def delay(self, age: float, _stage: Stage | None, _stage_age: float) -> float:
        """Seconds until the next poll."""
        return self.wait(age)

    def learn(self, earliest: float, latest: float, stages: Mapping[Stage, float]) -> None:
        """Do nothing."""


def every(seconds: float) -> Rule:
    """Look at a fixed interval."""
    return Rule(lambda _age: seconds)


EXPONENTIAL = Rule(lambda age: 1 + age / 2)  # waits 1 s, and each time half as long again
ADVISED = Rule(lambda age: 2.5 if age < 30 else 7.5 if age < 120 else 22.5)  # FACTS §3: the middle of each range


# ---------------------------------------------------------------- simulation


@attrs.frozen
class Ended:
    """What became of one task: how often it was polled, and how late its end was seen."""

    polls: int
    lag: float
    least_wait: float


def watch(policy: Policy, life: Life) -> Iterator[tuple[float, dict[Stage, float]]]:
    """The ages at which a task is polled, without end, each with the stages seen by then."""
    age = 0.0
    stage: Stage | None = None
    seen: dict[Stage, float] = {}
    while True:
        age += policy.delay(age, stage, age - seen[stage] if stage else 0.0)
        for name, reached in zip(STAGES, (life.text, life.first, life.end), strict=True):
            if reached <= age and name not in seen:
                stage, seen[name] = name, age
        yield age, seen


def follow(policy: Policy, life: Life) -> Ended:
    """Look at one task until its end is seen, and let the policy learn from it."""
    ages, seen = [0.0], dict[Stage, float]()
    for age, stages in watch(policy, life):
        ages.append(age)
        if age >= life.end:
            seen = stages
            break
    policy.learn(ages[-2], ages[-1], seen)
    return Ended(len(ages) - 1, ages[-1] - life.end, min(after - before for before, after in pairwise(ages)))


@attrs.frozen
class Mean:
    """What a policy costs per task.

    Attributes:
        polls: how many.
        lag: seconds from a task's end to the poll that sees it.
    """

    polls: float
    lag: float

    def __str__(self) -> str:
        return f"{self.polls:.1f}/{self.lag:.1f}"

    def cost(self, poll_cost: float) -> float:
        """Seconds of lateness, a poll being worth so many."""
        return poll_cost * self.polls + self.lag


def mean(ended: Iterable[Ended | Mean]) -> Mean:
    """The mean over tasks."""
    tasks = list(ended)
    return Mean(sum(task.polls for task in tasks) / len(tasks), sum(task.lag for task in tasks) / len(tasks))


# ---------------------------------------------------------------- what is to be expected, without simulation


def _in_order(ends: Iterable[float]) -> tuple[float, ...]:
    return tuple(sorted(ends))


@attrs.frozen
class Sampled:
    """Durations known from many tasks."""

    ends: tuple[float, ...] = attrs.field(converter=_in_order)

    def draw(self, chance: random.Random) -> float:
        """One of them."""
        return chance.choice(self.ends)

    def ended(self, age: float) -> float:
        """The share that has ended."""
        return bisect_right(self.ends, age) / len(self.ends)


@cache
def _mean_duration(durations: Durations) -> float:
    running = takewhile(_NOBODY.__lt__, (1 - durations.ended(age / 4 + 1 / 8) for age in count()))
    return sum(running) / 4


def expected(durations: Durations, ages: Iterable[float]) -> Mean:
    """What polls at these ages cost."""
    polls = seen = before = 0.0
    for age in ages:
        polls += 1 - before
        share = durations.ended(age)
        seen += age * (share - before)
        before = share
        if 1 - share < _NOBODY:
            break
    return Mean(polls, seen - _mean_duration(durations))


def outlook(policy: Policy, durations: Durations, life: Life) -> Mean:
    """What a policy, as it is now, is to cost a task with the stages of ``life``, whenever it ends."""
    return expected(durations, (age for age, _ in watch(policy, attrs.evolve(life, end=math.inf))))


class FixedIntervals:
    """What fixed intervals from 0.8 s to 300 s cost."""

    def __init__(self, durations: Durations) -> None:
        intervals = (0.8 * 1.02**power for power in range(300))
        self._means = [expected(durations, count(interval, interval)) for interval in intervals]

    def polls(self, lag: float) -> float:
        """The fewest polls that do not find the end later than this."""
        return _least([(each.lag, each.polls) for each in self._means], lag)

    def lag(self, polls: float) -> float:
        """The least lag with no more polls than these."""
        return _least([(each.polls, each.lag) for each in self._means], polls)


def _least(curve: Sequence[tuple[float, float]], most: float) -> float:
    """The least second value where the first is no more than this, between the points too."""
    between = (
        high + (most - wide) / (narrow - wide) * (low - high)
        for (wide, high), (narrow, low) in pairwise(curve)
        if min(wide, narrow) <= most < max(wide, narrow)
    )
    return min(*(value for limited, value in curve if limited <= most), *between, math.inf)


# ---------------------------------------------------------------- the least that is possible


def optimum(durations: Durations, poll_cost: float, *, most: float = math.inf, step: float = 0.25) -> Mean:
    """The exact optimum of all policies that know how long tasks last, and of each only its age.

    Having found a task running at ``a``, with the next poll at ``x``, the rest costs, in seconds (Barlow, Hunter and
    Proschan), where ``F`` is the share that has ended::

        cost(a) = price * (1 - F(a)) + min over x > a of [ integral of (x - t) dF(t) from a to x, + cost(x) ]

    Args:
        durations: how long tasks last.
        poll_cost: seconds of lateness that one poll is worth.
        most: a poll that is further away than this comes earlier.
        step: seconds between the ages to choose from.
    """
    running = takewhile(lambda age: 1 - durations.ended(age) > _NOBODY, (step * place for place in count()))
    ages = list(running)
    ages.append(ages[-1] + step)
    best = best_polls(ages, [*map(durations.ended, ages[:-1]), 1.0], poll_cost)
    polls = [0.0]
    while polls[-1] < ages[-1]:
        polls.append(min(best[round(polls[-1] / step)], polls[-1] + most))
    return expected(durations, polls[1:])


def best_polls(ages: Sequence[float], ended: Sequence[float], poll_cost: float) -> list[float]:
    """For each of these ages the best next poll, one of the later ages; none after the last.

    With ``M(t)`` the integral of ``s dF(s)`` up to ``t``, the bracket above is ``M(a)`` and, for each ``x``, a straight
    line in ``F(a)``: ``x F(x) - M(x) + cost(x) - x F(a)``. The least of them lies on the lower hull of the lines, and
    one walk from the last age to the first finds them all.

    Args:
        ages: rising, in seconds.
        ended: the share of all tasks that has ended by then, up to one.
        poll_cost: seconds of lateness that one poll is worth.
    """
    steps = zip(pairwise(ages), pairwise(ended), strict=True)
    moments = [0.0, *accumulate((start + end) / 2 * (after - before) for (start, end), (before, after) in steps)]
    best = [math.inf] * len(ages)
    hull: deque[tuple[float, float]] = deque()  # how steeply each line falls, and its height where none has ended
    cost = 0.0
    for place in range(len(ages) - 1, -1, -1):
        share = ended[place]
        if hull:
            while len(hull) > 1 and hull[1][1] - hull[1][0] * share <= hull[0][1] - hull[0][0] * share:
                hull.popleft()  # for good: the share only shrinks from here
            best[place] = hull[0][0]
            cost = poll_cost * (1 - share) + moments[place] + hull[0][1] - hull[0][0] * share
        line = (ages[place], ages[place] * share - moments[place] + cost)
        while len(hull) > 1 and _is_above(hull[-1], hull[-2], line):
            hull.pop()
        hull.append(line)
    return best


def _is_above(middle: tuple[float, float], left: tuple[float, float], right: tuple[float, float]) -> bool:
    """Whether one of three lines, by falling steepness, is nowhere the lowest."""
    return (left[1] - middle[1]) * (middle[0] - right[0]) <= (middle[1] - right[1]) * (left[0] - middle[0])
