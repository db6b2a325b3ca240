"""One coroutine starts the polls of all tasks, each when it is due; a bounded number run at once.

What a callback says is never an outcome: if somebody waits for what it reports, the task's next poll is due as early
as is allowed. A failed poll affects only its own task. ``_protocol.statuses`` decides what a record means,
``_client.poll_schedule`` when to poll.
"""

from __future__ import annotations

import asyncio
import copy
import math
import random
from collections.abc import AsyncGenerator, Awaitable, Callable
from datetime import UTC, datetime
from functools import lru_cache
from sys import intern
from weakref import WeakValueDictionary

import anyio

from kie_async._client.concurrency import InternalErrors
from kie_async._client.poll_schedule import RECHECK_INTERVAL, PollPlanner, PollQueue, earliest_poll
from kie_async._client.task import (
    UNKNOWN_ORIGIN,
    Origin,
    PollPhase,
    TrackedTask,
    closed_error,
    finished_event,
    outcome_of,
    timeout_error,
)
from kie_async._protocol.backoff import MAX_RETRY_AFTER
from kie_async._protocol.durations import DurationModel, TaskKind
from kie_async._protocol.statuses import WORDS, Running, Succeeded, Verdict, judge, stage_number
from kie_async.errors import AuthError, KieError, SessionError
from kie_async.events import Followed, Notice, Observer, Paused, Polled, PollFailed, StageReached, clean
from kie_async.models import STAGES, Stage, TaskEvent, TaskRecord, TaskResult
from kie_async.settings import Settings

OnFinished = Callable[[str, TaskResult | KieError], None]  # called with the id of a task and its outcome
ReadRecord = Callable[[str], Awaitable[TaskRecord | None]]  # reads record-info once, with no retry; None: not visible

_shared_origin = lru_cache(1000)(Origin)  # equal origins are one object, to save memory
_MIN_UNDELIVERED_TIMEOUT = 600.0  # seconds after CALLBACK_EXCEPTION; audio has been seen to come 10 min later
_MAX_KEY_REFUSALS = 5  # in a row; then a key that has never worked is taken as wrong
_MAX_UNKNOWN_WORDS = 100  # unknown status words to report; a hostile server could send a new one each time
_MAX_AGE = 86_400.0  # seconds; a created_at further back is not believed: the clocks may differ
_CLOSE_BATCH = 200  # tasks to finish at close before other coroutines get a turn


class Tracker:
    """Follows each task until it has an outcome: what the service says of its end, or why it is followed no longer.

    Attributes:
        on_finished: called with the id and the outcome of each task; the journal's recorder sets it, so it is None
            without a journal. While it is None, a task is paused when its last waiter leaves.
    """

    def __init__(
        self, settings: Settings, read_record: ReadRecord, emit: Observer, *, polls_per_second: float | None = None
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._settings = settings
        self._read_record = read_record
        self._emit = emit
        self.on_finished: OnFinished | None = None
        durations = DurationModel(emulated=settings.on_loopback)
        self._planner = PollPlanner(durations, random.random, callbacks=bool(settings.callback_url))
        self._queue = PollQueue(settings.max_concurrent_polls, polls_per_second)
        self._followed: dict[str, TrackedTask] = {}
        # Tasks whose last waiter has left, held weakly: one that no user holds cannot be awaited again.
        self._paused: WeakValueDictionary[str, TrackedTask] = WeakValueDictionary()
        self._unknown_words: set[str] = set()
        self._key_has_worked = False  # the service has accepted the key: a refusal now may be temporary
        self._is_closed = False

    # ------------------------------------------------------------ following, waiting, callbacks

    def follow(
        self, task_id: str, origin: Origin = UNKNOWN_ORIGIN, *, on_release: Callable[[], None] | None = None
    ) -> TrackedTask:
        """Follow a task from now on.

        ``on_release`` is called once, when the task is paused or has its outcome, so that another may take its place
        in flight. If the task is known already, ``origin`` is ignored and ``on_release`` is called at once, so that
        one task never holds two places.
        """
        task = self._followed.get(task_id) or self._paused.get(task_id)
        if task is None:
            return self._start_following(task_id, origin, on_release)
        if on_release is not None:
            on_release()
        self._resume_if_paused(task)
        return task

    def _start_following(self, task_id: str, origin: Origin, on_release: Callable[[], None] | None) -> TrackedTask:
        now = self._now()
        task = TrackedTask(task_id, origin, now, now + self._settings.task_timeout, on_release)
        self._key_has_worked = self._key_has_worked or origin.is_own  # its submission was accepted with this key
        if not origin.is_own:
            self._emit(Followed(task_id, origin.context or {}))
        if self._is_closed:
            self._finish(task, closed_error(task_id))
        else:
            self._followed[task_id] = task
            if origin.is_own:
                self._schedule(task)
            else:
                self._queue.schedule(task, now)
        return task

    def note_callback(self, task_id: str, stage: str, *, is_authentic: bool) -> bool:
        """Choose the time of a task's next poll anew, because a callback came.

        If the callback calls for a poll, the task is polled soon (a paused one when it is awaited again). If not, it
        still shows that callbacks arrive, and the next poll may be put off.

        Args:
            task_id: the task that the callback names; unverified.
            stage: the stage that the callback names; unverified.
            is_authentic: whether the callback bears the token of this task's submission.

        Returns:
            False if no such task is known here.
        """
        task = self._followed.get(task_id) or self._paused.get(task_id)
        now = self._now()
        if task is None:
            if is_authentic:
                self._planner.note_late_callback(task_id, now)
            return False
        calls_for_poll = self._planner.note_callback(task, stage, now, is_authentic=is_authentic)
        if calls_for_poll:
            self._poll_no_later_than(task, earliest_poll(task, now))
        elif task.polls.phase is PollPhase.NONE and self._planner.awaits_callback(task):
            self._schedule(task)
        return True

    async def wait(self, task: TrackedTask) -> TaskResult:
        """Wait until a task has an outcome.

        Raises:
            KieError: the task has no result, and why; each waiter gets its own copy of the error.
        """
        self._add_waiter(task)
        try:
            while task.outcome is None:
                await task.waiters.next_change()
        finally:
            self._remove_waiter(task)
        if isinstance(task.outcome, TaskResult):
            return task.outcome
        error = copy.copy(task.outcome)
        try:
            raise error
        finally:
            del task, error  # else the error, its traceback and this frame would form a reference cycle

    async def events(self, task: TrackedTask) -> AsyncGenerator[TaskEvent, None]:
        """Yield each stage once, in order; a success passes through all of them.

        Ends when the task has an outcome. A failure is not raised here: ``wait`` raises it.
        """
        self._add_waiter(task)
        task.waiters.listeners += 1
        if task.outcome is None:
            self._poll_no_later_than(task, self._planner.poll_time_for_listener(task, self._now()))
        try:
            for number, stage in enumerate(STAGES, start=1):
                while task.outcome is None and len(task.progress.stages) < number:
                    await task.waiters.next_change()
                if len(task.progress.stages) < number:
                    return  # its outcome is an error
                yield TaskEvent(task.task_id, stage, task.progress.tracks)
        finally:
            task.waiters.listeners -= 1
            self._remove_waiter(task)

    def _add_waiter(self, task: TrackedTask) -> None:
        if asyncio.get_running_loop() is not self._loop:
            raise SessionError("the task belongs to another event loop: await it there")
        if self._is_closed and task.outcome is None:  # it was paused when the session closed
            self._finish(task, closed_error(task.task_id))
        self._resume_if_paused(task)
        task.waiters.count += 1

    def _remove_waiter(self, task: TrackedTask) -> None:
        task.waiters.count -= 1
        task.waiters.forget_cancelled()
        if task.waiters.count == 0 and task.outcome is None and self.on_finished is None:
            self._pause(task)

    def _pause(self, task: TrackedTask) -> None:
        task.is_paused = True
        self._followed.pop(task.task_id, None)
        self._paused[task.task_id] = task
        self._emit(Paused(task.task_id))
        task.release()  # frees its place in flight, though the task goes on at the service

    def _resume_if_paused(self, task: TrackedTask) -> None:
        """Follow a paused task again; its next poll (or recheck) keeps its time, but not before a poll is allowed."""
        if task.is_paused and task.outcome is None:
            task.is_paused = False
            self._followed[task.task_id] = task
            self._emit(Followed(task.task_id, task.origin.context or {}))
            if task.polls.phase is PollPhase.NONE:  # else a poll is still under way, and will schedule the next
                when = max(task.polls.next_at, earliest_poll(task, self._now()))
                self._queue.schedule(task, when, is_recheck=task.polls.is_recheck)

    # ------------------------------------------------------------ the one coroutine

    async def run(self) -> None:
        """Poll the tasks as they fall due, until cancelled."""
        try:
            async with asyncio.TaskGroup() as polls:  # anyio's would add a third to the cost of a poll
                while True:
                    while (task := self._queue.take_due(self._now())) is not None:
                        if task.polls.is_recheck:  # do not poll yet, only decide again when to
                            self._schedule(task)
                        else:
                            polls.create_task(self._poll(task))
                    await self._sleep(self._queue.next_start())
        finally:
            self._is_closed = True
            await self._close()

    async def _sleep(self, until: float | None) -> None:
        changed = self._queue.changed
        changed.clear()  # loses no change: no other coroutine has run since the caller's ``next_start()``
        timer = None if until is None else self._loop.call_at(until, changed.set)
        try:
            await changed.wait()
        finally:
            if timer is not None:
                timer.cancel()

    async def _close(self) -> None:
        """Finish all followed tasks, in batches, so that many of them do not block the loop."""
        self._queue.clear()  # its entries would keep the tasks alive
        with anyio.CancelScope(shield=True):
            while self._followed:
                for _ in range(min(len(self._followed), _CLOSE_BATCH)):
                    task_id, task = self._followed.popitem()
                    self._finish(task, closed_error(task_id))
                await asyncio.sleep(0)

    async def _poll(self, task: TrackedTask) -> None:
        """Poll a task once. Any error in reading or judging its record is a failed poll of this task alone."""
        error = None
        try:
            with InternalErrors("record-info"):
                record = await self._read_record(task.task_id)
                self._key_has_worked = True
                self._poll_answered(task, record)
        except KieError as failure:
            error = failure
            self._poll_failed(task, error)
        finally:
            self._queue.poll_ended()
        if task.outcome is None:
            self._after_poll(task, error)

    # ------------------------------------------------------------ the answer of a poll

    def _poll_answered(self, task: TrackedTask, record: TaskRecord | None) -> None:
        now = self._now()
        task.polls.count += 1
        task.polls.failures = task.polls.refusals = 0
        if record is not None:
            self._update(task, record, now)
        self._emit(Polled(task.task_id, record.status if record is not None else "not visible", now - task.started_at))
        verdict = self._judge_with_timeouts(task, record, now)
        if isinstance(verdict, Running):
            self._advance(task, verdict.stage, now)
            task.polls.last_running_at = now
            return
        if isinstance(verdict, Succeeded):
            task.progress.tracks = verdict.tracks
            self._advance(task, "complete", now)
            if warning := self._planner.task_succeeded(task, now):
                self._emit(Notice(task.task_id, warning))
        has_journal = self.on_finished is not None  # then the id may be that of one of its jobs
        may_be_paid = task.origin.is_own or has_journal
        self._finish(task, outcome_of(task, verdict, record, self._settings, may_be_paid=may_be_paid), record)

    def _update(self, task: TrackedTask, record: TaskRecord, now: float) -> None:
        progress = task.progress
        if not progress.is_visible and not task.origin.is_own:
            _learn_origin(task, record, now)
        progress.is_visible = True
        progress.status = intern(record.status)  # few words, many tasks
        progress.tracks = record.tracks or progress.tracks
        if record.status not in WORDS:
            self._notice_unknown_word(task.task_id, record.status)

    def _notice_unknown_word(self, task_id: str, status: str) -> None:
        if status not in self._unknown_words and len(self._unknown_words) < _MAX_UNKNOWN_WORDS:
            self._unknown_words.add(status)
            words = f"the status {clean(status)!r} is not known: its task runs until another status or an error comes"
            self._emit(Notice(task_id, words))

    def _judge_with_timeouts(self, task: TrackedTask, record: TaskRecord | None, now: float) -> Verdict:
        """Judge a record. A pending reason (``Running.pending_reason``) that outlasts its timeout ends the task."""
        progress = task.progress
        if record is None and progress.is_visible:  # a lagging replica of the service has answered
            return Running()
        verdict = judge(record)
        reason = verdict.pending_reason if isinstance(verdict, Running) else ""
        if reason != progress.pending_reason:
            progress.pending_reason, progress.pending_since = reason, now
        if not reason:
            return verdict
        timeouts = {
            "not visible": self._settings.not_found_timeout,
            "no audio": self._settings.missing_audio_timeout,
            "undelivered": max(self._settings.missing_audio_timeout, _MIN_UNDELIVERED_TIMEOUT),
        }
        timeout = timeouts.get(reason, math.inf)  # an unknown word may last until the task's deadline
        return judge(record, timed_out=True) if now - progress.pending_since >= timeout else verdict

    def _advance(self, task: TrackedTask, stage: Stage | None, now: float) -> None:
        """Note the stages reached up to ``stage``; an earlier stage than the last one changes nothing."""
        new = STAGES[len(task.progress.stages) : stage_number(stage)]
        for each in new:
            task.progress.stages = (*task.progress.stages, (each, now - task.started_at))
            self._emit(StageReached(task.task_id, each))
        if new:
            task.waiters.notify()

    def _poll_failed(self, task: TrackedTask, error: KieError) -> None:
        task.polls.failures += 1
        task.polls.refusals = task.polls.refusals + 1 if isinstance(error, AuthError) else 0
        self._emit(PollFailed(task.task_id, clean(str(error)), type(error).__name__))
        if isinstance(error, AuthError) and task.polls.refusals >= _MAX_KEY_REFUSALS and not self._key_has_worked:
            error.task_id = task.task_id
            error.charged = "maybe"  # not submitted here, and the key has never worked: nothing shows who paid
            self._finish(task, error)

    def _finish(self, task: TrackedTask, outcome: TaskResult | KieError, record: TaskRecord | None = None) -> None:
        """Give a task its outcome: emit it, wake the waiters, have it recorded, settle its cost, and free its place."""
        task.outcome = outcome
        (self._paused if task.is_paused else self._followed).pop(task.task_id, None)
        self._emit(finished_event(task, outcome, record, self._now()))
        task.waiters.notify()
        if self.on_finished is not None:
            self.on_finished(task.task_id, outcome)
        if task.settle_cost is not None:
            task.settle_cost(outcome)
        task.release()

    # ------------------------------------------------------------ when to poll next

    def _after_poll(self, task: TrackedTask, error: KieError | None) -> None:
        now, phase = self._now(), task.polls.phase
        task.polls.phase = PollPhase.NONE
        if now >= task.deadline:
            self._finish(task, timeout_error(task.task_id, self._settings, error))
        elif phase is PollPhase.REPEAT:
            self._queue.schedule(task, min(earliest_poll(task, now), task.deadline))
        else:
            asked = (error and error.retry_after) or 0.0
            self._schedule(task, at_least=min(asked, MAX_RETRY_AFTER))

    def _schedule(self, task: TrackedTask, at_least: float = 0.0) -> None:
        """Schedule the next poll. If it is far off because a callback should come first, schedule a recheck instead."""
        now = self._now()
        delay = max(self._planner.delay(task, now), at_least)
        poll_at, recheck_at = min(now + delay, task.deadline), now + RECHECK_INTERVAL
        is_recheck = poll_at > recheck_at and not at_least and self._planner.awaits_callback(task)
        self._queue.schedule(task, recheck_at if is_recheck else poll_at, is_recheck=is_recheck)

    def _poll_no_later_than(self, task: TrackedTask, when: float) -> None:
        """Bring the next poll of a task forward to ``when``; infinity changes nothing.

        While a poll is under way, another follows it if ``when`` has come; if ``when`` is still ahead, nothing
        changes, because the end of the poll under way schedules the next one.
        """
        if task.polls.phase is PollPhase.NONE:
            if when < task.polls.next_at or (task.polls.is_recheck and when < math.inf):  # a recheck would not poll
                self._queue.schedule(task, when)
        elif when <= self._now():
            task.polls.phase = PollPhase.REPEAT

    def _now(self) -> float:
        return self._loop.time()


def _learn_origin(task: TrackedTask, record: TaskRecord, now: float) -> None:
    """Read the kind and the age of a task that this session did not submit, from the task's first record."""
    kind = TaskKind(record.operation_type or "unknown", record.type or "unknown")
    origin = task.origin._replace(kind=kind)
    task.origin = origin if origin.context else _shared_origin(*origin)  # a context is a dict: it has no hash
    if record.created_at is not None:
        age = (datetime.now(UTC) - record.created_at).total_seconds()
        if 0 < age < _MAX_AGE:
            task.started_at = now - age
