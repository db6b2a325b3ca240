"""One coroutine that follows every task: a heap of "look at this task next at", and a bounded number of looks at once.

A callback is a hint: it moves a task's next look to now, and the look settles it. Each look has its own error, so one
bad id blocks nobody. Reports go through ``_states.judge``; the first final one wins, and a settled task leaves the
table.
"""

from __future__ import annotations

import asyncio
import copy
import heapq
import math
import random
from collections.abc import AsyncGenerator, Awaitable, Callable
from datetime import UTC, datetime
from functools import lru_cache
from itertools import count
from sys import intern
from weakref import WeakValueDictionary

from kie_async._client.internal_errors import internal_errors
from kie_async._client.polling import PollPlanner, soonest
from kie_async._client.tracked_task import TrackedTask, closed, failure, success
from kie_async._protocol.schedule import Key, PollSchedule
from kie_async._protocol.statuses import WORDS, Failed, NotFound, Running, Succeeded, Verdict, judge, reached
from kie_async.errors import AuthError, KieError, SessionError, TaskNotFoundError, WaitTimeoutError
from kie_async.events import Finished, Notice, Observer, Polled, PollFailed, StageReached, clean
from kie_async.models import STAGES, Stage, TaskEvent, TaskRecord, TaskResult
from kie_async.settings import Settings

Fetch = Callable[[str], Awaitable[TaskRecord | None]]

_key = lru_cache(1000)(Key)  # few kinds, many tasks
UNKNOWN = Key("unknown", "unknown")  # of a task that was submitted elsewhere, until its first record
_LATE = 600.0  # seconds; FACTS §3: 408, nothing for over 10 min
_WRONG = 5  # looks in a row that refuse a key which never worked: it is wrong
_MAX_WORDS = 100  # unknown words told of; there is no end of them in a hostile answer
_OLDEST = 86_400.0  # a task said to be older than a day: its clock is not believed


class Tracker:
    """Follows tasks until they end.

    Args:
        settings: patience, and how many looks at once.
        fetch: reads record-info once, without trying again.
        tell: is told of looks, stages and ends.
        polls_per_second: a limit of the route on all looks together.
    """

    def __init__(
        self, settings: Settings, fetch: Fetch, emit: Observer, *, polls_per_second: float | None = None
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._settings = settings
        self._fetch = fetch
        self._emit = emit
        pacing = PollSchedule(emulated=settings.on_loopback)
        self._planner = PollPlanner(pacing, random.random, callbacks=bool(settings.callback_url))
        self._gap = 1 / polls_per_second if polls_per_second else 0.0
        self._next_poll = 0.0  # by the route's limit
        self._table: dict[str, TrackedTask] = {}
        self._parked: WeakValueDictionary[str, TrackedTask] = WeakValueDictionary()  # what somebody may wait for again
        self._heap: list[
            tuple[float, int, TrackedTask]
        ] = []  # of those due at once, the first that was scheduled goes first
        self._serials = count()
        self._active = 0
        self._bell = asyncio.Event()
        self._words: set[str] = set()
        self._key_works = False  # the service has taken the key, so that one it refuses now may be a slip
        self._closed = False

    # ------------------------------------------------------------ what others ask

    def follow(self, task_id: str, key: Key = UNKNOWN, *, release: Callable[[], None] | None = None) -> TrackedTask:
        """Follow a task from now on; ``release`` is called once, when it is no longer followed."""
        known = self._table.get(task_id) or self._parked.get(task_id)
        if known is not None:
            if release is not None:
                release()
            self._resume(known)
            return known
        now = self._now()
        deadline = now + self._settings.task_timeout
        entry = TrackedTask(task_id, key, now, deadline, release, submitted=key is not UNKNOWN)
        self._key_works = self._key_works or entry.submitted
        if self._closed:
            self._end(entry, closed(task_id))
            return entry
        self._table[task_id] = entry
        self._schedule(entry, now if key is UNKNOWN else now + self._planner.wait(entry, now))
        return entry

    def record(self, entry: TrackedTask, ended: Callable[[TrackedTask], None]) -> None:
        """Follow a task to its end, whoever waits for it; ``ended`` is called once, then."""
        if entry.outcome is not None:
            ended(entry)
            return
        entry.ended = ended
        self._resume(entry)

    def wake(self, task_id: str, stage: str, *, is_own: bool) -> bool:
        """A callback came: look soon. False if the task is not followed here.

        Args:
            task_id: as the body claims.
            stage: as the body claims.
            is_own: it bears the token of this task's submission, which only the service knows.
        """
        entry = self._table.get(task_id) or self._parked.get(task_id)
        if entry is None:
            self._planner.take_stray(task_id)
            return False
        now = self._now()
        if self._planner.take_callback(entry, stage, now, is_own=is_own):
            self._hurry(entry, soonest(entry, now))
        elif not entry.is_polling and self._planner.awaits_callback(entry, now):
            self._schedule(entry, now + self._planner.wait(entry, now))
        return True

    async def wait(self, entry: TrackedTask) -> TaskResult:
        """Wait until a task has ended.

        Raises:
            KieError: why it has no result; each waiter gets an error of its own.

        Cancelling stops nothing for others; when the last one goes, the task is no longer looked at, unless its end
        is to be recorded.
        """
        self._check()
        self._gain(entry)
        try:
            while entry.outcome is None:
                await self._moved(entry)
        finally:
            self._lose(entry)
        if isinstance(entry.outcome, TaskResult):
            return entry.outcome
        raise copy.copy(entry.outcome)

    async def stages(self, entry: TrackedTask) -> AsyncGenerator[TaskEvent, None]:
        """Give each stage once, in order; a success passes through all of them. Ends with the task."""
        self._check()
        self._gain(entry)
        entry.listeners += 1
        if entry.outcome is None:
            self._hurry(entry, self._planner.listened_at(entry, self._now()))
        try:
            for stage in STAGES:
                while entry.outcome is None and reached(entry.stage) < reached(stage):
                    await self._moved(entry)
                if reached(entry.stage) < reached(stage):
                    return
                yield TaskEvent(entry.task_id, stage, entry.tracks)
        finally:
            entry.listeners -= 1
            self._lose(entry)

    # ------------------------------------------------------------ the one coroutine

    async def run(self) -> None:
        """Look at the tasks as they fall due, until cancelled."""
        try:
            async with asyncio.TaskGroup() as polls:  # one of anyio costs a third of a look
                while True:
                    await self._sleep(self._start_due(polls))
        finally:
            self._closed = True
            for entry in list(self._table.values()):
                self._end(entry, closed(entry.task_id))

    def _start_due(self, polls: asyncio.TaskGroup) -> float | None:
        """Start the looks that are due and may be; return when the next one is, None if a look must end first."""
        now = self._now()
        while self._heap:
            when, _, entry = self._heap[0]
            if entry.next_poll != when or entry.parked or entry.outcome is not None:  # moved since, or not awaited
                heapq.heappop(self._heap)
                continue
            when = max(when, self._next_poll)
            if when > now:
                return when
            if self._active >= self._settings.max_concurrent_polls:
                return None
            heapq.heappop(self._heap)
            self._next_poll = now + self._gap
            self._active += 1
            entry.is_polling, entry.next_poll = True, math.inf
            polls.create_task(self._poll(entry))
        return None

    async def _sleep(self, until: float | None) -> None:
        self._bell.clear()
        timer = None if until is None else self._loop.call_at(until, self._bell.set)
        try:
            await self._bell.wait()
        finally:
            if timer is not None:
                timer.cancel()

    async def _poll(self, entry: TrackedTask) -> None:
        try:
            with internal_errors("record-info"):
                record = await self._fetch(entry.task_id)
                entry.is_polling, self._key_works = False, True
                self.report(entry, record)
        except KieError as error:
            entry.is_polling = False
            self._failed_look(entry, error)
        finally:
            self._active -= 1
            self._bell.set()

    # ------------------------------------------------------------ reports

    def report(self, entry: TrackedTask, record: TaskRecord | None) -> None:
        """Take what record-info says of a task; the first final report wins."""
        now = self._now()
        entry.polls += 1
        entry.failures = 0
        if record is not None:
            self._learn_about(entry, record)
        self._emit(Polled(entry.task_id, entry.status if record else "not visible", now - entry.born))
        verdict = self._judge(entry, record, now)
        if isinstance(verdict, Running):
            self._advance(entry, verdict.stage, now)
            entry.polled_at = now
            entry.hints += bool(entry.hints)
            self._again(entry, now)
        else:
            self._settle(entry, verdict, record, now)

    def _learn_about(self, entry: TrackedTask, record: TaskRecord) -> None:
        entry.seen = True
        entry.status = intern(record.status)  # few words, many tasks
        entry.tracks = record.tracks or entry.tracks
        if entry.key is UNKNOWN:
            entry.key = _key(record.operation_type or "unknown", record.type or "unknown")
            if record.created_at is not None:
                age = (datetime.now(UTC) - record.created_at).total_seconds()
                entry.born -= age if 0 < age < _OLDEST else 0.0
        if record.status not in WORDS and record.status not in self._words and len(self._words) < _MAX_WORDS:
            self._words.add(record.status)
            self._emit(Notice(entry.task_id, f"the status {clean(record.status)!r} is not known: taken as running"))

    def _judge(self, entry: TrackedTask, record: TaskRecord | None, now: float) -> Verdict:
        verdict = judge(record, patient=True)
        odd = verdict.odd if isinstance(verdict, Running) else ""
        if odd != entry.odd:
            entry.odd, entry.odd_since = odd, now
        if odd == "not visible" and entry.seen:
            return Running(entry.stage)  # a lagging copy of the service's own: it was there before
        graces = {
            "not visible": self._settings.not_found_timeout,
            "no audio": self._settings.missing_audio_timeout,
            "undelivered": max(self._settings.missing_audio_timeout, _LATE),
        }
        patient = now - entry.odd_since < graces.get(odd, math.inf)
        return verdict if patient else judge(record, patient=False)

    def _advance(self, entry: TrackedTask, stage: Stage | None, now: float) -> None:
        """Note the stages that are new; a report that goes backwards changes nothing."""
        new = STAGES[reached(entry.stage) : reached(stage)]
        for each in new:
            entry.stages = (*entry.stages, (each, now - entry.born))
            self._emit(StageReached(entry.task_id, each))
        if new:
            entry.stage = new[-1]
            self._ring(entry)

    def _settle(
        self, entry: TrackedTask, verdict: Succeeded | Failed | NotFound, record: TaskRecord | None, now: float
    ) -> None:
        if isinstance(verdict, Succeeded):
            record = record or TaskRecord(entry.task_id)
            entry.tracks = verdict.tracks
            self._advance(entry, "complete", now)
            if note := self._planner.take_success(entry, now):
                self._emit(Notice(entry.task_id, note))
            self._end(entry, success(entry, verdict, record))
        elif isinstance(verdict, Failed):
            self._end(entry, failure(entry, verdict))
        else:
            grace = self._settings.not_found_timeout
            message = f"the service does not know this task, {grace:.0f} s after the first look"
            is_paid = entry.submitted or entry.ended is not None  # the service gave this id
            self._end(entry, TaskNotFoundError(message, entry.task_id, charged="maybe" if is_paid else "no"))

    def _failed_look(self, entry: TrackedTask, error: KieError) -> None:
        entry.failures += 1
        self._emit(PollFailed(entry.task_id, clean(str(error))))
        if isinstance(error, AuthError) and entry.failures >= _WRONG and not self._key_works:
            error.task_id, error.charged = entry.task_id, "yes"
            self._end(entry, error)
        else:
            self._again(entry, self._now(), error)

    # ------------------------------------------------------------ when to look next

    def _again(self, entry: TrackedTask, now: float, error: KieError | None = None) -> None:
        if now >= entry.deadline:
            message = (
                f"no end after {self._settings.task_timeout:.0f} s; the task may still end: "
                f"session.track({entry.task_id!r}) follows it again, as session.resume() does what a journal holds"
            )
            message += f"; the last look failed: {error.message}" if error else ""
            self._end(entry, WaitTimeoutError(message, entry.task_id))
        else:
            when = soonest(entry, now) if entry.hurry else now + self._planner.wait(entry, now)
            entry.hurry = False
            self._schedule(entry, min(when, entry.deadline))

    def _hurry(self, entry: TrackedTask, when: float) -> None:
        """Look at a task at this time, if not before; at once when the look under way is over, if that is now."""
        if entry.is_polling:
            entry.hurry = entry.hurry or when <= self._now()
        elif when < entry.next_poll:
            self._schedule(entry, when)

    def _schedule(self, entry: TrackedTask, when: float) -> None:
        entry.next_poll = when
        item = (when, next(self._serials), entry)
        heapq.heappush(self._heap, item)
        if self._heap[0] is item:
            self._bell.set()

    # ------------------------------------------------------------ who waits

    def _gain(self, entry: TrackedTask) -> None:
        entry.interest += 1
        if self._closed and entry.outcome is None:
            self._end(entry, closed(entry.task_id))
        self._resume(entry)

    def _resume(self, entry: TrackedTask) -> None:
        """Go on looking at a task that was parked."""
        if entry.parked and entry.outcome is None:
            entry.parked = False
            self._table[entry.task_id] = entry
            self._schedule(entry, max(entry.next_poll, soonest(entry, self._now())))  # as it was planned

    def _lose(self, entry: TrackedTask) -> None:
        entry.interest -= 1
        entry.waiters = tuple(waiter for waiter in entry.waiters if not waiter.done())
        if entry.interest == 0 and entry.outcome is None and entry.ended is None:
            entry.parked = True
            self._table.pop(entry.task_id, None)
            self._parked[entry.task_id] = entry
            self._let_go(entry)

    def _moved(self, entry: TrackedTask) -> asyncio.Future[None]:
        """What is done when something about the task has changed."""
        waiter: asyncio.Future[None] = self._loop.create_future()
        entry.waiters = (*entry.waiters, waiter)
        return waiter

    def _ring(self, entry: TrackedTask) -> None:
        waiters, entry.waiters = entry.waiters, ()
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)

    def _end(self, entry: TrackedTask, outcome: TaskResult | KieError) -> None:
        entry.outcome = outcome
        self._table.pop(entry.task_id, None)
        error = "" if isinstance(outcome, TaskResult) else f"{type(outcome).__name__}: {clean(outcome.message)}"
        seconds = self._now() - entry.born
        self._emit(Finished(entry.task_id, entry.key.operation, seconds, entry.polls, error))
        self._ring(entry)
        if entry.ended is not None:
            entry.ended(entry)
        self._let_go(entry)

    def _let_go(self, entry: TrackedTask) -> None:
        release, entry.release = entry.release, None
        if release is not None:
            release()

    def _now(self) -> float:
        return self._loop.time()

    def _check(self) -> None:
        if asyncio.get_running_loop() is not self._loop:
            raise SessionError("the task belongs to another event loop: await it there")
