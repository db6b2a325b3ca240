"""A session that asks for callbacks, in simulation: tasks one after the other, and callbacks that come, or do not."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence

import attrs

from benchmarks._poll_simulation import Ended, Life
from kie_async._client.poll_schedule import CALLBACK_FALLBACK, PollPlanner, earliest_poll
from kie_async._client.task import Origin, TrackedTask
from kie_async._protocol.durations import DurationModel, TaskKind
from kie_async.models import STAGES

_KEY = TaskKind("extend", "V5")
_GAP = 15.0  # seconds between two tasks
_WITHIN = 1.5  # seconds in which a callback comes

Delay = Callable[[random.Random, int], float]  # of a callback by the number of its stage; infinite if it never comes


def prompt(chance: random.Random, _stage: int) -> float:
    """Each comes, within a moment."""
    return chance.uniform(0.1, _WITHIN)


def lost(share: float) -> Delay:
    """So many are lost."""
    return lambda chance, stage: math.inf if chance.random() < share else prompt(chance, stage)


def only_the_end(chance: random.Random, stage: int) -> float:
    """Only that of the end comes."""
    return prompt(chance, stage) if stage == len(STAGES) - 1 else math.inf


def only_stages(chance: random.Random, stage: int) -> float:
    """All but that of the end come."""
    return math.inf if stage == len(STAGES) - 1 else prompt(chance, stage)


def slow(chance: random.Random, _stage: int) -> float:
    """All come late."""
    return chance.uniform(20, 40)


@attrs.define
class Caller:
    """Follows tasks as the tracker does.

    Args:
        delay: how late each callback comes.
        asked: whether callbacks were asked for.
    """

    seed: int
    delay: Delay
    asked: bool = True
    _now: float = 0.0
    _chance: random.Random = attrs.field(init=False)
    _planner: PollPlanner = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self._chance = random.Random(self.seed)  # noqa: S311  # a seeded simulation
        self._planner = PollPlanner(DurationModel(), self._chance.random, callbacks=self.asked)

    def follow(self, life: Life) -> Ended:
        """Follow one task to its end."""
        born = self._now
        entry = TrackedTask(f"t{born}", Origin(_KEY, is_own=True), born, math.inf)
        ends = [born + age for age in (life.text, life.first, life.end)]
        calls = sorted((at + self.delay(self._chance, number), number) for number, at in enumerate(ends))
        when, polls = born + self._planner.delay(entry, born), 0
        while True:
            if calls and calls[0][0] <= when:
                self._now, number = calls.pop(0)
                when = self._called(entry, number, when)
                continue
            self._now, polls = when, polls + 1
            if self._now >= ends[-1]:
                break
            when = self._polled(entry, ends)
        ended = Ended(polls, self._now - ends[-1], 0.0)
        self._planner.task_succeeded(entry, self._now)
        if any(at < self._now + CALLBACK_FALLBACK for at, _ in calls):
            self._planner.note_late_callback(entry.task_id, self._now)
        self._now += _GAP
        return ended

    def _called(self, entry: TrackedTask, number: int, when: float) -> float:
        if self._planner.note_callback(entry, STAGES[number], self._now, is_authentic=True):
            return min(when, earliest_poll(entry, self._now))
        if self._planner.awaits_callback(entry):
            return self._now + self._planner.delay(entry, self._now)
        return when

    def _polled(self, entry: TrackedTask, ends: Sequence[float]) -> float:
        progress = entry.progress
        for stage, at in zip(STAGES, ends, strict=True):
            if at <= self._now and stage not in dict(progress.stages):
                progress.stages = (*progress.stages, (stage, self._now - entry.started_at))
        entry.polls.last_running_at = self._now
        entry.polls.count += 1
        return self._now + self._planner.delay(entry, self._now)
