"""Decide which task is polled next, and when: by its progress, its callbacks and ``_protocol.schedule``. No clock.

Callbacks are relied on as far as they have proven themselves. Until one has come for a task of this session, and after
one that did not come, tasks are polled as if there were no callbacks. So an address that does not work, or that leads
to another process, costs no more than having none. While callbacks come, a task is polled when most of its kind have
ended.
"""

from __future__ import annotations

import asyncio
import heapq
import math
from collections import OrderedDict
from collections.abc import Callable
from itertools import count

from kie_async._client.task import CallbackClaims, PollPhase, TrackedTask
from kie_async._protocol.schedule import MIN_INTERVAL, PollSchedule, retry_delay
from kie_async._protocol.statuses import WORDS, Word, stage_number
from kie_async.models import STAGES

MAX_LISTENER_INTERVAL = 8.0  # seconds between two polls while somebody listens to the stages
CALLBACK_FALLBACK = 10.0  # seconds after the end of a task in which its callback may still come
PROBATION = 4  # callbacks of an end that must come in a row, after one that did not
_MAX_PENDING_INTERVAL = 10.0  # seconds between two polls of a task that is not visible, or has no audio yet


class PollQueue:
    """Which task is polled next: a heap of "poll this task at", and the limits on all polls together.

    A task that is scheduled anew, is paused or has ended leaves a stale place in the heap. It is dropped when its turn
    comes. Of tasks due at once, the first that was scheduled goes first.

    Args:
        max_concurrent: polls under way at once.
        per_second: how many may start in a second; None for no limit.

    Attributes:
        changed: set when another poll may start than the one that is waited for.
    """

    def __init__(self, max_concurrent: int, per_second: float | None) -> None:
        self.changed = asyncio.Event()
        self._max_concurrent = max_concurrent
        self._interval = 1 / per_second if per_second else 0.0
        self._heap: list[tuple[float, int, TrackedTask]] = []
        self._serials = count()
        self._under_way = 0
        self._earliest_start = 0.0

    def schedule(self, task: TrackedTask, when: float) -> None:
        """Poll a task at this time and not before."""
        task.polls.next_at = when
        item = (when, next(self._serials), task)
        heapq.heappush(self._heap, item)
        if self._heap[0] is item:
            self.changed.set()

    def next_start(self) -> float | None:
        """When the next poll may start; None if there is none, or one must end first."""
        while self._heap and _is_stale(*self._heap[0]):
            heapq.heappop(self._heap)
        if not self._heap or self._under_way >= self._max_concurrent:
            return None
        return max(self._heap[0][0], self._earliest_start)

    def start_due(self, now: float) -> TrackedTask | None:
        """Take the next task whose poll may start now; the poll is under way until ``poll_ended``."""
        when = self.next_start()
        if when is None or when > now:
            return None
        _, _, task = heapq.heappop(self._heap)
        task.polls.phase, task.polls.next_at = PollPhase.UNDER_WAY, math.inf
        self._earliest_start = now + self._interval
        self._under_way += 1
        return task

    def clear(self) -> None:
        """Forget the tasks that wait for a poll."""
        self._heap.clear()

    def poll_ended(self) -> None:
        """Note that a poll has ended, so that another may start."""
        if self._under_way == self._max_concurrent:
            self.changed.set()
        self._under_way -= 1


def _is_stale(when: float, _serial: int, task: TrackedTask) -> bool:
    return task.polls.next_at != when or task.is_paused or task.outcome is not None


class CallbackTrust:
    """Whether callbacks come, judged by those of the tasks of this session."""

    def __init__(self) -> None:
        self._has_come = False
        self._probation = 0  # how many must still come in a row before they are trusted again
        self._overdue: OrderedDict[str, float] = OrderedDict()  # tasks that ended before their callback came, and when

    def holds(self, now: float) -> bool:
        """Tell whether the next callback can be waited for."""
        self._count_missing(now)
        return self._has_come and not self._probation

    def _count_missing(self, now: float) -> None:
        while self._overdue and next(iter(self._overdue.values())) + CALLBACK_FALLBACK <= now:
            self._overdue.popitem(last=False)
            self._probation = PROBATION

    def callback_came(self, now: float, *, is_first_of_end: bool) -> None:
        """Note that a callback came for a task that is followed."""
        self._count_missing(now)
        self._has_come = True
        if self._probation and is_first_of_end:
            self._probation -= 1

    def callback_came_late(self, task_id: str) -> None:
        """Note that a callback came for a task that is not followed (any more)."""
        self._overdue.pop(task_id, None)

    def ended_before_callback(self, task_id: str, now: float) -> None:
        """Note that a task ended before the callback of its end came."""
        if self._has_come:
            self._overdue[task_id] = now


class PollPlanner:
    """Says when each task is polled next, and learns from those that end.

    Args:
        schedule: what is known of durations.
        random: spreads tasks that were submitted together.
        callbacks: whether callbacks were asked for.
    """

    def __init__(self, schedule: PollSchedule, random: Callable[[], float], *, callbacks: bool) -> None:
        self._schedule = schedule
        self._random = random
        self._trust = CallbackTrust()
        self._warns_if_none = callbacks  # when a task ends and no callback came

    # ------------------------------------------------------------ what happens

    def callback_received(self, task: TrackedTask, stage: str, now: float, *, is_authentic: bool) -> bool:
        """Note what a callback says of a task; return whether a poll can bring news that somebody waits for.

        Args:
            task: the task.
            stage: as the body claims: its end, unless it is the word of a task that runs.
            now: the time.
            is_authentic: it came to the address that only the service knows; any other is no more than a reason to
                poll.
        """
        known, stages = task.callbacks, _claimed_stages(stage)
        is_end = stages == len(STAGES)
        is_first_of_end = is_end and known.authentic_end_at is None
        if is_authentic:
            self._warns_if_none = True
            self._trust.callback_came(now, is_first_of_end=is_first_of_end)
        task.callbacks = CallbackClaims(
            stages=max(known.stages, stages),
            polls_since_claim=0 if is_end and known.polls_since_claim is None else known.polls_since_claim,
            has_authentic=known.has_authentic or is_authentic,
            authentic_end_at=now if is_authentic and is_first_of_end else known.authentic_end_at,
        )
        return is_end or task.waiters.listeners > 0

    def stray_callback_received(self, task_id: str) -> None:
        """Note that a callback came for a task that is not followed (any more)."""
        self._trust.callback_came_late(task_id)

    def task_succeeded(self, task: TrackedTask, now: float) -> str:
        """Learn from a task that ended well; return a warning about its callbacks, or nothing."""
        started, polled, claims = task.started_at, task.polls.last_at, task.callbacks
        if task.origin.is_own or polled is not None:  # its start was seen, or a poll before its end
            earliest = max(polled or started, claims.authentic_end_at or started)
            self._schedule.learn(task.origin.key, earliest - started, now - started, dict(task.progress.stages))
        if task.origin.is_own and claims.authentic_end_at is None:
            self._trust.ended_before_callback(task.task_id, now)
        if claims.has_authentic or not self._warns_if_none:
            return ""
        self._warns_if_none = False  # once is enough, until one comes
        return "it ended and no callback came: is callback_url reachable? Polling brings the news for now"

    # ------------------------------------------------------------ when to poll

    def delay(self, task: TrackedTask, now: float) -> float:
        """Seconds until the next poll of a task."""
        if task.polls.failures:
            return retry_delay(task.polls.failures, self._random)
        if task.progress.pending_reason in {"not visible", "no audio"}:
            return min(_MAX_PENDING_INTERVAL, 1 + (now - task.progress.pending_since) / 4)
        wait = self._wait_for_end(task, now)
        if task.callbacks.polls_since_claim is not None:  # a callback reported its end, the record does not yet
            wait = min(wait, retry_delay(task.callbacks.polls_since_claim, self._random))
        return wait

    def _wait_for_end(self, task: TrackedTask, now: float) -> float:
        age, key, stages = now - task.started_at, task.origin.key, task.progress.stages
        if self.awaits_callback(task, now):
            return self._schedule.delay_with_callbacks(key, age, self._random)
        stage, stage_age = (stages[-1][0], age - stages[-1][1]) if stages else (None, age)
        wait = self._schedule.delay(key, age, stage, stage_age, self._random)
        return min(wait, MAX_LISTENER_INTERVAL) if task.waiters.listeners else wait

    def awaits_callback(self, task: TrackedTask, now: float) -> bool:
        """Tell whether a callback is likely to bring the news. A listener needs one that came for this very task."""
        if task.callbacks.authentic_end_at is not None or not self._trust.holds(now):
            return False
        return task.callbacks.has_authentic or (task.origin.is_own and not task.waiters.listeners)

    def poll_time_for_listener(self, task: TrackedTask, now: float) -> float:
        """The time of the next poll of a task to whose stages somebody begins to listen."""
        if task.callbacks.stages > stage_number(task.progress.stage):  # one reported a stage, and nobody listened
            return earliest_poll(task, now)
        if self.awaits_callback(task, now):
            return math.inf
        last = task.started_at if task.polls.last_at is None else task.polls.last_at
        return max(last + MAX_LISTENER_INTERVAL, earliest_poll(task, now))


def _claimed_stages(stage: str) -> int:
    """How many stages are behind a task, by the word of a callback."""
    if stage in STAGES:
        return STAGES.index(stage) + 1
    return 0 if WORDS.get(stage.upper()) is Word.RUNNING else len(STAGES)


def earliest_poll(task: TrackedTask, now: float) -> float:
    """The first moment at which a task may be polled again."""
    return now if task.polls.last_at is None else max(now, task.polls.last_at + MIN_INTERVAL)
