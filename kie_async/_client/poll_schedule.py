"""Decide which task is polled next, and when: by its progress, its callbacks and ``_protocol.durations``. No clock.

How far callbacks are trusted depends on the share of the latest ends of this session's tasks that a callback reported.
Before the first was reported, and while many are not, tasks are polled as if there were no callbacks; so an address
that does not work, or that often leads to another process, costs no more than having none. While most ends are
reported, a task is polled only when most tasks of its kind have ended.
"""

from __future__ import annotations

import asyncio
import heapq
import math
from itertools import count

from kie_async._client.task import CallbackClaims, PollPhase, TrackedTask
from kie_async._protocol.durations import MAX_INTERVAL, MIN_INTERVAL, DurationModel, Random
from kie_async._protocol.statuses import WORDS, Word
from kie_async.models import STAGES

MAX_LISTENER_INTERVAL = 8.0  # seconds between two polls while somebody listens to the stages
CALLBACK_FALLBACK = 10.0  # seconds after the end of a task in which its callback counts as in time
TRUST_WINDOW = 30  # how many of the latest ends decide whether callbacks are trusted
MAX_UNREPORTED = 0.25  # of these ends; if more are unreported, tasks are polled as without callbacks
RECHECK_INTERVAL = 10.0  # seconds until a recheck, if the next poll is further away
_DOUBT = 0.02  # ends that always count as unreported, because the next may be, even if all of the window were reported
_MAX_PENDING_INTERVAL = 10.0  # seconds between two polls of a task that is not visible, or has no audio yet


class PollQueue:
    """The tasks to poll, by the time of their next poll, and the limits on all polls together.

    Instead of a poll that is far off, a recheck can be due: it does not poll, but decides again when to.

    A task that is scheduled again, is paused or has ended leaves a stale entry in the heap, which is dropped when its
    turn comes. Of tasks that are due at the same time, the one scheduled first goes first.

    Attributes:
        changed: set when a poll may start earlier than ``next_start`` last said.
    """

    def __init__(self, max_concurrent: int, per_second: float | None) -> None:
        self.changed = asyncio.Event()
        self._max_concurrent = max_concurrent
        self._interval = 1 / per_second if per_second else 0.0
        self._heap: list[tuple[float, int, TrackedTask]] = []
        self._serials = count()
        self._under_way = 0
        self._earliest_start = 0.0

    def schedule(self, task: TrackedTask, when: float, *, is_recheck: bool = False) -> None:
        """Schedule the next poll or recheck of a task; this replaces the one scheduled before."""
        task.polls.next_at, task.polls.is_recheck = when, is_recheck
        item = (when, next(self._serials), task)
        heapq.heappush(self._heap, item)
        if self._heap[0] is item:
            self.changed.set()

    def next_start(self) -> float | None:
        """When the next poll may start; None if none is scheduled, or if a running poll must end first."""
        while self._heap and _is_stale(*self._heap[0]):
            heapq.heappop(self._heap)
        if not self._heap or self._under_way >= self._max_concurrent:
            return None
        return max(self._heap[0][0], self._earliest_start)

    def take_due(self, now: float) -> TrackedTask | None:
        """Take the next task whose poll or recheck (``task.polls.is_recheck``) is due; None if none is due.

        A poll counts as under way from then until ``poll_ended``.
        """
        when = self.next_start()
        if when is None or when > now:
            return None
        _, _, task = heapq.heappop(self._heap)
        task.polls.next_at = math.inf
        if task.polls.is_recheck:
            return task
        task.polls.phase = PollPhase.UNDER_WAY
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
    """How far callbacks are trusted: which of the latest ends of this session's tasks were reported by one."""

    def __init__(self) -> None:
        self._unreported_since: dict[str, float | None] = {}  # the latest ends, by task id, in order; None: reported

    @property
    def unreported(self) -> float:
        """The share of ends that no callback has reported; 1 before the first end, and never 0."""
        ends = self._unreported_since.values()
        number = sum(since is not None for since in ends)
        return (number + _DOUBT) / (len(ends) + _DOUBT)

    def ended(self, task_id: str, unreported_since: float | None) -> None:
        """Note an end: ``unreported_since`` is when a poll saw it, or None if a callback reported it before."""
        self._unreported_since[task_id] = unreported_since
        if len(self._unreported_since) > TRUST_WINDOW:
            del self._unreported_since[next(iter(self._unreported_since))]

    def reported_late(self, task_id: str, now: float) -> None:
        """Note a callback that came after a poll had seen the end; it counts unless it came much later."""
        since = self._unreported_since.get(task_id)
        if since is not None and now <= since + CALLBACK_FALLBACK:
            self._unreported_since[task_id] = None


class PollPlanner:
    """Decides when each task is polled next, and learns from the tasks that end."""

    def __init__(self, durations: DurationModel, random: Random, *, callbacks: bool) -> None:
        self._durations = durations
        self._random = random
        self._trust = CallbackTrust()
        self._warns_if_none = callbacks  # warn if a task ends without one

    # ------------------------------------------------------------ what it learns from

    def note_callback(self, task: TrackedTask, stage: str, now: float, *, is_authentic: bool) -> bool:
        """Note what a callback claims about a task; return whether it calls for a poll: somebody waits for it.

        ``is_authentic``: it came to the address of the task's submission, which only the service knows. Any other
        callback is only a reason to poll.
        """
        known, stages = task.callbacks, _claimed_stages(stage)
        is_end = stages == len(STAGES)
        is_first_of_end = is_end and known.authentic_end_at is None
        if is_authentic:
            self._warns_if_none = True
            if is_first_of_end:
                self._trust.ended(task.task_id, None)
        task.callbacks = CallbackClaims(
            stages=max(known.stages, stages),
            polls_before_end=task.polls.count if is_end and known.polls_before_end is None else known.polls_before_end,
            has_authentic=known.has_authentic or is_authentic,
            authentic_end_at=now if is_authentic and is_first_of_end else known.authentic_end_at,
        )
        return is_end or task.waiters.listeners > 0

    def note_late_callback(self, task_id: str, now: float) -> None:
        """Note that an authentic callback came for a task that is no longer followed."""
        self._trust.reported_late(task_id, now)

    def task_succeeded(self, task: TrackedTask, now: float) -> str:
        """Learn from a task that has succeeded; return a warning about its callbacks, or ""."""
        started, polled, claims = task.started_at, task.polls.last_running_at, task.callbacks
        if task.origin.is_own or polled is not None:  # its start is known, or a poll saw it before its end
            earliest = max(polled or started, claims.authentic_end_at or started)
            self._durations.learn(task.origin.kind, earliest - started, now - started, dict(task.progress.stages))
        if task.origin.is_own and claims.authentic_end_at is None:
            self._trust.ended(task.task_id, now)
        if claims.has_authentic or not self._warns_if_none:
            return ""
        self._warns_if_none = False  # once, until a callback comes
        return "it ended and no callback came: is callback_url reachable? Polling brings the news for now"

    # ------------------------------------------------------------ when to poll

    def delay(self, task: TrackedTask, now: float) -> float:
        """Seconds until the next poll of a task."""
        if task.polls.failures:
            return retry_delay(task.polls.failures, self._random)
        if task.progress.pending_reason in {"not visible", "no audio"}:
            return min(_MAX_PENDING_INTERVAL, 1 + (now - task.progress.pending_since) / 4)
        wait = self._wait_for_end(task, now)
        polls_before_end = task.callbacks.polls_before_end
        if polls_before_end is not None:  # a callback reported its end, but the record does not show it yet
            wait = min(wait, retry_delay(task.polls.count - polls_before_end, self._random))
        return wait

    def _wait_for_end(self, task: TrackedTask, now: float) -> float:
        age, kind, stages = now - task.started_at, task.origin.kind, task.progress.stages
        polled_age = 0.0 if task.polls.last_running_at is None else task.polls.last_running_at - task.started_at
        if self.awaits_callback(task):
            return self._durations.delay_with_callbacks(kind, age, polled_age, self._trust.unreported, self._random)
        stage, stage_age = (stages[-1][0], polled_age - stages[-1][1]) if stages else (None, polled_age)
        wait = self._durations.delay(kind, polled_age, stage, stage_age, self._random) - (age - polled_age)
        wait = max(wait, MIN_INTERVAL)  # it can be overdue, if callbacks were trusted until now
        return min(wait, MAX_LISTENER_INTERVAL) if task.waiters.listeners else wait

    def awaits_callback(self, task: TrackedTask) -> bool:
        """Tell whether a callback is likely to report the end of a task before a poll does.

        For a task to whose stages somebody listens, this is so only after a callback has come for it.
        """
        if task.callbacks.authentic_end_at is not None or self._trust.unreported > MAX_UNREPORTED:
            return False
        return task.callbacks.has_authentic or (task.origin.is_own and not task.waiters.listeners)

    def poll_time_for_listener(self, task: TrackedTask, now: float) -> float:
        """The latest time for the next poll of a task when somebody begins to listen to its stages."""
        if task.callbacks.stages > len(task.progress.stages):  # a callback reported a stage while nobody listened
            return earliest_poll(task, now)
        if self.awaits_callback(task):
            return math.inf
        last = task.started_at if task.polls.last_running_at is None else task.polls.last_running_at
        return max(last + MAX_LISTENER_INTERVAL, earliest_poll(task, now))


def _claimed_stages(stage: str) -> int:
    """How many stages a task has passed by the word of a callback: all, unless the word is that of a running task."""
    if stage in STAGES:
        return STAGES.index(stage) + 1
    return 0 if WORDS.get(stage.upper()) is Word.RUNNING else len(STAGES)


def retry_delay(failures: int, random: Random) -> float:
    """Seconds until the next poll after this many failed polls in a row."""
    return MIN_INTERVAL + (0.5 + 0.5 * random()) * min(MAX_INTERVAL, 2.0 ** min(failures, 10) - 1)


def earliest_poll(task: TrackedTask, now: float) -> float:
    """The earliest time at which a task may be polled again."""
    return now if task.polls.last_running_at is None else max(now, task.polls.last_running_at + MIN_INTERVAL)
