"""When a task is polled next: rules on what is known of it. The time is given, and randomness is passed in.

Callbacks are believed as far as they have proven themselves. Until one has come for a task of this session, and after
one that stayed away, all is polled as if there were none, so that an address that does not work, or that leads to
another worker, costs no more than having none. While they come, a task is polled when most of its kind have ended.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable

from kie_async._client.tracked_task import TrackedTask
from kie_async._protocol.schedule import MIN_INTERVAL, PollSchedule, retry_delay
from kie_async._protocol.statuses import WORDS, Word, reached
from kie_async.models import STAGES

LISTENED = 8.0  # most seconds between two polls while somebody listens to the stages
GRACE = 10.0  # seconds after its end in which the callback of a task may still come
PROBATION = 4  # callbacks of an end that must come in a row, after one that did not
_ODD = 10.0  # most seconds between two polls in an odd state


class CallbackTrust:
    """Whether callbacks come, judged by those of the tasks of this session."""

    def __init__(self) -> None:
        self._has_come = False
        self._owed = 0  # how many must still come in a row
        self._ended: OrderedDict[str, float] = OrderedDict()  # tasks whose end was seen before their callback, and when

    def holds(self, now: float) -> bool:
        """Tell whether the next callback can be waited for."""
        while self._ended and next(iter(self._ended.values())) + GRACE <= now:
            self._ended.popitem(last=False)
            self._owed = PROBATION
        return self._has_come and not self._owed

    def come(self, now: float, *, is_first_of_end: bool) -> None:
        """Note that a callback came for a task that is followed."""
        self.holds(now)
        self._has_come = True
        self._owed -= bool(self._owed and is_first_of_end)

    def come_late(self, task_id: str) -> None:
        """Note that a callback came for a task that is not followed (any more)."""
        self._ended.pop(task_id, None)

    def miss(self, task_id: str, now: float) -> None:
        """Note that a task ended before the callback of its end came."""
        if self._has_come:
            self._ended[task_id] = now


class PollPlanner:
    """Says when each task is polled next, and learns from those that end.

    Args:
        pacing: what is known of durations.
        random: spreads tasks that were submitted together.
        callbacks: whether callbacks were asked for.
    """

    def __init__(self, pacing: PollSchedule, random: Callable[[], float], *, callbacks: bool) -> None:
        self._pacing = pacing
        self._random = random
        self._trust = CallbackTrust()
        self._may_note = callbacks

    # ------------------------------------------------------------ what happens

    def take_callback(self, entry: TrackedTask, stage: str, now: float, *, is_own: bool) -> bool:
        """Note what a callback says of a task; return whether the task is to be polled soon.

        Args:
            entry: the task.
            stage: as the body claims: its end, unless it is the word of a task that runs.
            now: the time.
            is_own: it came to the address that only the service knows; any other is no more than a reason to poll.
        """
        claimed = _claimed(stage)
        is_end = claimed == len(STAGES)
        entry.claimed = max(entry.claimed, claimed)
        if is_end:
            entry.hints = entry.hints or 1
        if is_own:
            entry.callback_received = self._may_note = True
            self._trust.come(now, is_first_of_end=is_end and entry.end_heard is None)
        if is_own and is_end and entry.end_heard is None:
            entry.end_heard = now
        return is_end or entry.listeners > 0

    def take_stray(self, task_id: str) -> None:
        """Note that a callback came for a task that is not followed (any more)."""
        self._trust.come_late(task_id)

    def take_success(self, entry: TrackedTask, now: float) -> str:
        """Learn from a task that ended well; return what is odd about it, or nothing."""
        if entry.submitted or entry.polled_at is not None:  # its start was seen, or a poll before its end
            earliest = max(entry.polled_at or entry.born, entry.end_heard or entry.born)
            self._pacing.learn(entry.key, earliest - entry.born, now - entry.born, dict(entry.stages))
        if entry.submitted and entry.end_heard is None:
            self._trust.miss(entry.task_id, now)
        if entry.callback_received or not self._may_note:
            return ""
        self._may_note = False  # until one comes
        return "it ended and no callback came: is callback_url reachable? Polling brings the news for now"

    # ------------------------------------------------------------ when to poll

    def wait(self, entry: TrackedTask, now: float) -> float:
        """Seconds until the next poll of a task."""
        if entry.failures:
            return retry_delay(entry.failures, self._random)
        if entry.odd in {"not visible", "no audio"}:
            return min(_ODD, 1 + (now - entry.odd_since) / 4)
        wait = self._wait_for_end(entry, now)
        if entry.hints:  # a callback told its end, the record not yet
            wait = min(wait, retry_delay(entry.hints - 1, self._random))
        return wait

    def _wait_for_end(self, entry: TrackedTask, now: float) -> float:
        age, since = now - entry.born, entry.stages[-1][1] if entry.stages else 0.0
        if self.awaits_callback(entry, now):
            return self._pacing.delay_with_callbacks(entry.key, age, self._random)
        wait = self._pacing.delay(entry.key, age, entry.stage, age - since, self._random)
        return min(wait, LISTENED) if entry.listeners else wait

    def awaits_callback(self, entry: TrackedTask, now: float) -> bool:
        """Tell whether a callback is likely to bring the news. A listener needs one that came for this very task."""
        if entry.end_heard is not None or not self._trust.holds(now):
            return False
        return entry.callback_received or (entry.submitted and not entry.listeners)

    def listened_at(self, entry: TrackedTask, now: float) -> float:
        """The time of the next poll of a task to which somebody begins to listen."""
        if entry.claimed > reached(entry.stage):  # a callback told of a stage, and nobody listened
            return soonest(entry, now)
        if self.awaits_callback(entry, now):
            return math.inf
        last = entry.born if entry.polled_at is None else entry.polled_at
        return max(last + LISTENED, soonest(entry, now))


def _claimed(stage: str) -> int:
    """How many stages are behind a task, by the word of a callback."""
    if stage in STAGES:
        return STAGES.index(stage) + 1
    return 0 if WORDS.get(stage.upper()) is Word.RUNNING else len(STAGES)


def soonest(entry: TrackedTask, now: float) -> float:
    """The first moment at which a task may be polled again."""
    return now if entry.polled_at is None else max(now, entry.polled_at + MIN_INTERVAL)
