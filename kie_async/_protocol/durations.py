"""How long tasks last, learnt from those that ended, and how densely to poll for it: pure, no clock.

A poll costs a request, and lateness costs the waiting caller. With a hazard ``h(t)`` of the task ending at age ``t``
and a poll worth ``poll_cost`` seconds of lateness, the density of polls that costs least in all is
``sqrt(h(t) / (2 * poll_cost))`` (Keller's optimal inspection): none in the dead time at the start, dense where the end
is likely, sparse in the tail. The hazard is learnt per operation and model from the tasks that ended, on top of a
prior, and anew from each stage seen. Where callbacks report most of the ends, a task is polled when the lateness to be
expected, should it be one of the others, is worth a poll: that is so when most of its kind have ended.
Which of these delays a task gets is decided in ``_client.poll_schedule``.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Mapping
from itertools import pairwise
from typing import NamedTuple

from kie_async.models import Stage

Random = Callable[[], float]  # from 0 up to, not including, 1

POLL_COST = 0.3  # seconds of lateness that one poll is worth
POLL_COST_EMULATED = 0.1
MIN_INTERVAL = 0.34  # seconds between two polls of a task: the service allows 3 requests/s per task
MAX_INTERVAL = 30.0  # seconds between two polls in the tail: the service's own advice
MAX_FIRST_DELAY = 30.0  # seconds before the first poll: a refusal that no callback reports is not seen earlier

_RATIO = 1.1
_EDGES = tuple(0.25 * _RATIO**power for power in range(99))  # a quarter of a second to 2850 s
_MEDIAN, _SPREAD = 95.0, 0.5  # observed: 57-74 s in one measurement, 130-137 s in others, usually 1-3 min
_PRIOR_WEIGHT = 3.0  # counts like three tasks seen
_FLAT_SHARE = 0.15  # of the prior: any length is as likely as any other, by its logarithm
_SMEAR = 1.08  # a duration stands for those within 8 % of it
_LARGEST = 1e100
_MEMORY = 1 - 1 / 48  # what a task still counts after the next one: a shift is learnt within some dozens


def _prior(flat_share: float) -> list[float]:
    def below(seconds: float) -> float:
        bell = 0.5 * (1 + math.erf(math.log(seconds / _MEDIAN) / (_SPREAD * math.sqrt(2))))
        flat = math.log(seconds / _EDGES[0]) / math.log(_EDGES[-1] / _EDGES[0])
        return (1 - flat_share) * bell + flat_share * flat

    return [_PRIOR_WEIGHT * (below(end) - below(start)) for start, end in pairwise(_EDGES)]


_SERVICE, _ANYTHING = _prior(_FLAT_SHARE), _prior(1.0)


class DurationHistogram:
    """How long something takes: weights over steps of a tenth, the latest tasks counting most.

    Attributes:
        unit: the weight of one task. It grows with each, so that the older count less without being touched.
    """

    def __init__(self, weights: list[float], unit: float = 1.0) -> None:
        self.weights = weights
        self.unit = unit

    def learn(self, shares: list[tuple[int, float]]) -> None:
        """Count one duration, spread over steps as ``_shares`` gives it."""
        self.unit /= _MEMORY
        if self.unit > _LARGEST:
            self.weights = [weight / self.unit for weight in self.weights]
            self.unit = 1.0
        for step, share in shares:
            self.weights[step] += self.unit * share

    def copy(self) -> DurationHistogram:
        """Return a copy, which learns independently of this one."""
        return DurationHistogram(self.weights.copy(), self.unit)

    def next_poll(self, age: float, poll_cost: float) -> float:
        """The age at which the polls due since ``age`` add up to one."""
        step = max(bisect_right(_EDGES, age) - 1, 0)
        alive = sum(self.weights[step:])
        at, due = age, 0.0
        for weight, end in zip(self.weights[step:], _EDGES[step + 1 :], strict=False):
            width = end - at
            hazard = weight / (max(alive - weight / 2, weight / 2, self.unit * 1e-9) * (end - _EDGES[step]))
            density = math.sqrt(hazard / (2 * poll_cost))
            if due + density * width >= 1:
                return at + (1 - due) / density
            due += density * width
            at = end
            alive -= weight
            step += 1
        return math.inf

    def next_poll_with_callbacks(self, age: float, unreported: float, poll_cost: float) -> float:
        """The age at which the lateness to be expected since ``age`` is worth a poll, if no callback has come by then.

        The longer a task is silent, the likelier it has ended unreported: with ``F`` the share of those running at
        ``age`` that has ended since, the odds are ``unreported * F`` to ``1 - F``.
        """
        step = max(bisect_right(_EDGES, age) - 1, 0)
        alive, ended = sum(self.weights[step:]), 0.0
        at, late, doubt = age, 0.0, 0.0
        for weight, start, end in zip(self.weights[step:], _EDGES[step:], _EDGES[step + 1 :], strict=False):
            over = (at - start) / (end - start) if at > start else 0.0  # of the first step, a part is past
            alive -= weight
            ended += weight * (1 - over)
            lost = unreported * ended
            rise = (lost / max(alive + lost, self.unit * 1e-9) - doubt) / (end - at)
            left = poll_cost - late
            if (doubt + rise * (end - at) / 2) * (end - at) >= left:
                return at + 2 * left / (doubt + math.sqrt(doubt**2 + 2 * rise * left))
            late += (doubt + rise * (end - at) / 2) * (end - at)
            doubt += rise * (end - at)
            at = end
        return at + MAX_INTERVAL


def _shares(earliest: float, latest: float) -> list[tuple[int, float]]:
    """Spread a duration, known to lie between two polls, over the steps; it is smeared, for no two are the same."""
    start, end = earliest / _SMEAR, latest * _SMEAR
    first, last = max(bisect_right(_EDGES, start) - 1, 0), min(bisect_right(_EDGES, end), len(_EDGES) - 1)
    return [
        (step, (min(end, _EDGES[step + 1]) - max(start, _EDGES[step])) / (end - start)) for step in range(first, last)
    ]


class TaskKind(NamedTuple):
    """What durations depend on."""

    operation: str
    model: str


class DurationModel:
    """What has been learnt of durations, and the delays that follow from it.

    A task's age is in seconds since its submission. ``random`` spreads tasks that were submitted together.

    Args:
        emulated: the service is an emulator: its tasks may last any time, and a poll is cheap.
        poll_cost: seconds of lateness that one poll is worth.
        max_first_delay: seconds that the first poll may be put off.
    """

    def __init__(
        self, *, emulated: bool = False, poll_cost: float | None = None, max_first_delay: float = MAX_FIRST_DELAY
    ) -> None:
        self._max_first_delay = max_first_delay
        self._prior = DurationHistogram(_ANYTHING if emulated else _SERVICE)
        self._poll_cost = poll_cost or (POLL_COST_EMULATED if emulated else POLL_COST)
        self._histograms: dict[tuple[TaskKind, Stage | None], DurationHistogram] = {}

    def learn(self, kind: TaskKind, earliest: float, latest: float, stages: Mapping[Stage, float]) -> None:
        """Count a task that ended.

        Args:
            kind: what it was.
            earliest: its age at the last poll that found it running.
            latest: its age at the poll that found it ended.
            stages: its age when each stage was first seen.
        """
        latest = max(latest, MIN_INTERVAL)
        self._histogram(kind, None).learn(_shares(earliest, latest))
        for stage, age in stages.items():
            if age < latest:
                self._histogram(kind, stage).learn(_shares(max(earliest - age, 0.0), latest - age))

    def delay_with_callbacks(
        self, kind: TaskKind, age: float, polled_age: float, unreported: float, random: Random
    ) -> float:
        """Seconds until the next poll of a task whose end a callback is likely to report.

        ``unreported`` is the share of ends no callback reports, above 0; ``polled_age`` is 0 before the first poll.
        """
        histogram = self._histograms.get((kind, None), self._prior)
        wait = histogram.next_poll_with_callbacks(polled_age, unreported, self._poll_cost) - age
        return max(wait * (0.95 + 0.1 * random()), MIN_INTERVAL)

    def delay(self, kind: TaskKind, age: float, stage: Stage | None, stage_age: float, random: Random) -> float:
        """Seconds until the next poll of a task that runs, and was last seen in a stage ``stage_age`` seconds ago."""
        histogram, since = (self._histograms.get((kind, stage)), stage_age) if stage else (None, age)
        if histogram is None:  # no stage, or nothing is known from this one on: go by the age
            histogram, since = self._histograms.get((kind, None), self._prior), age
        wait = histogram.next_poll(since, self._poll_cost) - since
        return min(max(wait * (0.95 + 0.1 * random()), MIN_INTERVAL), max(MAX_INTERVAL, self._max_first_delay - age))

    def _histogram(self, kind: TaskKind, stage: Stage | None) -> DurationHistogram:
        if (kind, stage) not in self._histograms:
            self._histograms[kind, stage] = self._prior.copy()
        return self._histograms[kind, stage]
