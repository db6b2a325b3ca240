"""Decide which task is polled next, and when: by its progress, its callbacks and ``_protocol.durations``. No clock.

Callbacks are relied on as far as they have proven themselves: by the share of the latest ends of this session's tasks
that one reported. Until the first is reported, and while many are not, tasks are polled as if there were no callbacks.
So an address that does not work, or that often leads to another process, costs no more than having none. While most
ends are reported, a task is polled when most of its kind have ended.
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
CALLBACK_FALLBACK = 10.0  # seconds after the end of a task in which its callback may still come
TRUST_WINDOW = 30  # ends by which callbacks are judged
MAX_UNREPORTED = 0.25  # of them: where more are, polls go as without callbacks
RECHECK_INTERVAL = 10.0  # seconds until a recheck, where the next poll is further away
_DOUBT = 0.02  # of an end counts as unreported from the start: some may be, although all of the window were reported
_MAX_PENDING_INTERVAL = 10.0  # seconds between two polls of a task that is not visible, or has no audio yet


class PollQueue:
    """Which task is polled next: a heap of "poll this task at", and the limits on all polls together.

    In place of a poll that is far away a recheck can be due: it polls nothing, and decides again when to poll.

    A task that is scheduled anew, is paused or has ended leaves a stale place in the heap. It is dropped when its turn
    comes. Of tasks due at once, the first that was scheduled goes first.

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

    def schedule(self, task: TrackedTask, when: float, *, is_recheck: bool = False) -> None:
        """Have a task polled, or rechecked, at this time; whatever it was scheduled for before is dropped."""
        task.polls.next_at, task.polls.is_recheck = when, is_recheck
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

    def take_due(self, now: float) -> TrackedTask | None:
        """Take the next task whose poll or recheck (``task.polls.is_recheck``) is due; None if there is none now.

        A poll counts as under way from here on, until ``poll_ended``.
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
    """How many ends no callback reports, judged by the latest ends of the tasks of this session."""

    def __init__(self) -> None:
        self._unreported_since: dict[str, float | None] = {}  # of the latest ends, in their order; None: reported

    @property
    def unreported(self) -> float:
        """The share of ends that no callback reports; 1 before the first end, and never 0."""
        ends = self._unreported_since.values()
        number = sum(since is not None for since in ends)
        return (number + _DOUBT) / (len(ends) + _DOUBT)

    def ended(self, task_id: str, unreported_since: float | None) -> None:
        """Note an end: None if a callback reported it before a poll saw it, or else when a poll saw it."""
        self._unreported_since[task_id] = unreported_since
        if len(self._unreported_since) > TRUST_WINDOW:
            del self._unreported_since[next(iter(self._unreported_since))]

    def reported_late(self, task_id: str, now: float) -> None:
        """Note that a callback came after a poll had seen the end: in time, unless it was much later."""
        since = self._unreported_since.get(task_id)
        if since is not None and now <= since + CALLBACK_FALLBACK:
            self._unreported_since[task_id] = None


class PollPlanner:
    """Says when each task is polled next, and learns from those that end."""

    def __init__(self, durations: DurationModel, random: Random, *, callbacks: bool) -> None:
        self._durations = durations
        self._random = random
        self._trust = CallbackTrust()
        self._warns_if_none = callbacks  # were asked for: warn when a task ends and none came

    # ------------------------------------------------------------ what happens

    def note_callback(self, task: TrackedTask, stage: str, now: float, *, is_authentic: bool) -> bool:
        """Note what a callback says of a task; return whether a poll can bring news that somebody waits for.

        ``is_authentic`` if it came to the address that only the service knows; any other is only a reason to poll.
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
        """Note that a callback came, to the address that only the service knows, for a task not followed any more."""
        self._trust.reported_late(task_id, now)

    def task_succeeded(self, task: TrackedTask, now: float) -> str:
        """Learn from a task that ended well; return a warning about its callbacks, or nothing."""
        started, polled, claims = task.started_at, task.polls.last_at, task.callbacks
        if task.origin.is_own or polled is not None:  # its start was seen, or a poll before its end
            earliest = max(polled or started, claims.authentic_end_at or started)
            self._durations.learn(task.origin.kind, earliest - started, now - started, dict(task.progress.stages))
        if task.origin.is_own and claims.authentic_end_at is None:
            self._trust.ended(task.task_id, now)
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
        polls_before_end = task.callbacks.polls_before_end
        if polls_before_end is not None:  # a callback reported its end, the record does not yet
            wait = min(wait, retry_delay(task.polls.count - polls_before_end, self._random))
        return wait

    def _wait_for_end(self, task: TrackedTask, now: float) -> float:
        age, kind, stages = now - task.started_at, task.origin.kind, task.progress.stages
        polled_age = 0.0 if task.polls.last_at is None else task.polls.last_at - task.started_at
        if self.awaits_callback(task):
            return self._durations.delay_with_callbacks(kind, age, polled_age, self._trust.unreported, self._random)
        stage, stage_age = (stages[-1][0], polled_age - stages[-1][1]) if stages else (None, polled_age)
        wait = self._durations.delay(kind, polled_age, stage, stage_age, self._random) - (age - polled_age)
        wait = max(wait, MIN_INTERVAL)  # it is overdue if callbacks were trusted until now
        return min(wait, MAX_LISTENER_INTERVAL) if task.waiters.listeners else wait

    def awaits_callback(self, task: TrackedTask) -> bool:
        """Tell whether a callback is likely to report the end of a task before a poll does.

        Who listens to the stages relies on callbacks only after one has come for this very task.
        """
        if task.callbacks.authentic_end_at is not None or self._trust.unreported > MAX_UNREPORTED:
            return False
        return task.callbacks.has_authentic or (task.origin.is_own and not task.waiters.listeners)

    def poll_time_for_listener(self, task: TrackedTask, now: float) -> float:
        """The time of the next poll of a task to whose stages somebody begins to listen."""
        if task.callbacks.stages > len(task.progress.stages):  # one reported a stage while nobody listened
            return earliest_poll(task, now)
        if self.awaits_callback(task):
            return math.inf
        last = task.started_at if task.polls.last_at is None else task.polls.last_at
        return max(last + MAX_LISTENER_INTERVAL, earliest_poll(task, now))


def _claimed_stages(stage: str) -> int:
    """How many stages are behind a task, by a callback: all, unless its word is that of a task that runs."""
    if stage in STAGES:
        return STAGES.index(stage) + 1
    return 0 if WORDS.get(stage.upper()) is Word.RUNNING else len(STAGES)


def retry_delay(failures: int, random: Random) -> float:
    """Seconds until the next poll after so many in a row that failed."""
    return MIN_INTERVAL + (0.5 + 0.5 * random()) * min(MAX_INTERVAL, 2.0 ** min(failures, 10) - 1)


def earliest_poll(task: TrackedTask, now: float) -> float:
    """The first moment at which a task may be polled again."""
    return now if task.polls.last_at is None else max(now, task.polls.last_at + MIN_INTERVAL)
