"""The state of the service: its account, its tasks, and the callbacks that are due. Pure.

Time is passed in as ``now``, in seconds on any clock that only goes forward. Nothing here waits, sends or reads.
"""

from __future__ import annotations

import hashlib
import heapq
import math
import secrets
import uuid
from bisect import bisect_right
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from itertools import chain

import attrs

from kie_async.emulator._faults import Fault, Point
from kie_async.emulator._refusals import RefusedSubmission, cut_outside, refused_at_once, refused_late
from kie_async.emulator._tasks import (
    Charge,
    EmulatedSubmission,
    EmulatedTask,
    PlannedCallback,
    ReceivedRequest,
    Speed,
    Timeline,
    host_of,
    seeded,
)
from kie_async.settings import RouteName

QUOTA = 20  # at the service: submissions per account in any WINDOW
WINDOW = 10.0
TRIES = 3  # at the service: a callback is given up after three failures in a row
RETRY_AFTER = (2.0, 10.0)  # seconds before the second and the third try; the real spacing is not known
MAX_BYTES = 256_000_000  # of one file
UNKNOWN_SECONDS = (120.0, 160.0)  # the length of a song that the emulator did not make
PLACEHOLDER_HOSTS = ("example.com", "www.example.com", "example.org", "example.net")


@attrs.frozen(kw_only=True)
class Rules:
    """How strict the service is.

    Attributes:
        quota: how many submissions it accepts in any ``window``.
        window: the length of that window, in seconds.
        refused_count: whether submissions that the quota refuses count against it too.
        placeholder_fails: whether a task whose callbacks go to a placeholder host ends with CALLBACK_EXCEPTION.
        unknown_audio_fails: whether a task that extends a track that the emulator did not make fails.
        max_bytes: the largest file that can be uploaded or fetched.
    """

    quota: int = QUOTA
    window: float = WINDOW
    refused_count: bool = False
    placeholder_fails: bool = False
    unknown_audio_fails: bool = False
    max_bytes: int = MAX_BYTES


class Account:
    """The credits, the quota, and what was charged."""

    def __init__(self, credits_left: float, rules: Rules) -> None:
        self.rules = rules
        self.received: list[ReceivedRequest] = []
        self.ledger: list[Charge] = []
        self._credits = credits_left
        self._admitted: deque[float] = deque()
        self._refunds: list[tuple[float, int, Charge]] = []

    def credits_left(self, now: float) -> float:
        """Return the credits of the account, after the refunds that are due."""
        while self._refunds and self._refunds[0][0] <= now:
            charge = heapq.heappop(self._refunds)[2]
            charge.refunded = True
            self._credits += charge.credits
        return self._credits

    def top_up(self, amount: float) -> None:
        """Add credits."""
        self._credits += amount

    def receive(self, route: RouteName, now: float, *, counts: bool = True) -> ReceivedRequest:
        """Record a submission when it comes in, and count it against the quota if it has a key of the account."""
        while self._admitted and self._admitted[0] <= now - self.rules.window:
            self._admitted.popleft()
        request = ReceivedRequest(now, route, admitted=len(self._admitted) < self.rules.quota)
        if counts and (request.admitted or self.rules.refused_count):
            self._admitted.append(now)
        self.received.append(request)
        return request

    def charge(self, charge: Charge) -> None:
        """Record a charge and take its credits."""
        self._credits -= charge.credits
        self.ledger.append(charge)

    def refund_at(self, at: float, charge: Charge) -> None:
        """Plan the refund of a charge."""
        heapq.heappush(self._refunds, (at, charge.number, charge))


@attrs.define
class ActiveFault:
    """A fault in force, the number of events that it could have occurred at, and of those where it did."""

    fault: Fault
    met: int = 0
    occurred: int = 0


class Faults:
    """The faults that are switched on; they can be changed while the emulator runs. Iterable, with a length."""

    def __init__(self, faults: Iterable[Fault] = (), seed: int = 0) -> None:
        self._active: list[ActiveFault] = []
        self._random = seeded(f"faults {seed}")
        self.add(*faults)

    def __iter__(self) -> Iterator[Fault]:
        return iter([active.fault for active in self._active])

    def __len__(self) -> int:
        return len(self._active)

    def add(self, *faults: Fault) -> None:
        """Switch faults on; they count events from now on."""
        self._active.extend(ActiveFault(fault) for fault in faults)

    def remove(self, *faults: Fault) -> None:
        """Switch off all faults that are equal to one of these."""
        self._active = [active for active in self._active if active.fault not in faults]

    def clear(self) -> None:
        """Switch off all faults."""
        self._active.clear()

    def occurred(self, fault: Fault) -> int:
        """Return how often a fault has occurred."""
        return sum(active.occurred for active in self._active if active.fault == fault)

    def pick(self, point: Point, task_id: str | None = None) -> tuple[Fault, ...]:
        """Return the faults that occur at this event, in the order in which they were added."""
        return tuple(active.fault for active in self._active if self._matches(active, point, task_id))

    def _matches(self, active: ActiveFault, point: Point, task_id: str | None) -> bool:
        fault = active.fault
        if fault.on != point or fault.task_id not in {None, task_id}:
            return False
        active.met += 1
        matches = (
            fault.nth in {None, active.met}
            and (fault.times is None or active.occurred < fault.times)
            and (fault.probability >= 1 or self._random.random() < fault.probability)
        )
        active.occurred += matches
        return matches


class CallbackQueue:
    """The callbacks that are planned, by the time at which they are due."""

    def __init__(self, speed: float) -> None:
        self._speed = speed
        self._planned: list[tuple[float, int, EmulatedTask, PlannedCallback]] = []
        self._pushed = 0

    def add(self, task: EmulatedTask, callback: PlannedCallback) -> None:
        """Plan a callback."""
        self._pushed += 1
        heapq.heappush(self._planned, (task.at + callback.at, self._pushed, task, callback))

    def next_due(self) -> float | None:
        """Return when the next callback is due; None if none is planned."""
        return self._planned[0][0] if self._planned else None

    def take_due(self, now: float) -> list[tuple[EmulatedTask, PlannedCallback]]:
        """Remove the callbacks that are due and return them, without those that the task does not reach any more."""
        taken = []
        while self._planned and self._planned[0][0] <= now:
            _, _, task, callback = heapq.heappop(self._planned)
            if callback.forged or (not task.given_up and callback.stage in dict(task.timeline.stages())):
                taken.append((task, callback))
        return taken

    def sent(self, task: EmulatedTask, callback: PlannedCallback, now: float, *, answered: bool) -> None:
        """Record whether a callback was answered; one that was not is tried again, three times in all."""
        if answered or callback.forged:
            return
        if callback.attempt >= TRIES:
            task.given_up = True
            task.timeline = attrs.evolve(task.timeline, callback_exception=True)
            return
        again = now + RETRY_AFTER[callback.attempt - 1] / self._speed - task.at
        self.add(task, attrs.evolve(callback, at=again, attempt=callback.attempt + 1))


class EmulatorState:
    """The whole state of the service.

    Attributes:
        has_random_ids: whether no two emulators give the same ids.
        base_url: where it is served; empty until it is.
        polls: how often record-info was read for each task.
        last_end: when the last task ends, of those that do.
    """

    def __init__(
        self, *, seed: int | None = 0, credits_left: float = 1000.0, speed: Speed | None = None,
        rules: Rules | None = None, faults: Iterable[Fault] = (),
    ) -> None:  # fmt: skip
        self.seed = seed or 0
        self.has_random_ids = seed is None
        self.speed = speed or Speed()
        self.rules = rules or Rules()
        self.faults = Faults(faults, self.seed)
        self.account = Account(credits_left, self.rules)
        self.callbacks = CallbackQueue(self.speed.factor)
        self.base_url = ""
        self.tasks: dict[str, EmulatedTask] = {}
        self.polls: Counter[str] = Counter()
        self.last_end = -math.inf
        self._tracks: dict[str, tuple[EmulatedTask, int]] = {}

    def track(self, track_id: str) -> tuple[EmulatedTask, int] | None:
        """Return the task that makes a track, and the index of the track; None if it is unknown."""
        return self._tracks.get(track_id)

    # ------------------------------------------------------------ submissions

    def submit(
        self,
        request: ReceivedRequest,
        submission: EmulatedSubmission,
        raw: bytes,
        *,
        created: int,
        faults: Iterable[Fault] = (),
    ) -> EmulatedTask | RefusedSubmission:
        """Accept a submission, and charge it, or refuse it."""
        refusal = refused_at_once(submission, request, self.account.credits_left(request.at))
        if refusal is not None:
            request.code = refusal.code
            return refusal
        number = len(self.account.ledger) + 1
        chance = seeded(f"{self.seed} {number}")
        seeded_id = f"{chance.getrandbits(128):032x}"
        task_id = secrets.token_hex(16) if self.has_random_ids else seeded_id
        callback_faults = self.faults.pick("callback", task_id)
        seconds, model, is_missing = self._source(submission)
        start = submission.continue_at if submission.continue_at is not None else seconds or 0.0
        found = refused_late(submission, seconds, model, is_missing=is_missing)
        timeline = with_faults(self.speed.plan(chance, start), chain(faults, callback_faults, found))
        operation, url = submission.operation, submission.callback_url
        charge = Charge(number, task_id, operation, request.route, raw, request.at, url)
        ids = _uuid(f"{task_id} 0"), _uuid(f"{task_id} 1")
        task = EmulatedTask(task_id, submission, charge, timeline, request.at, created, start, ids)
        self.account.charge(charge)
        self.tasks[task_id] = task
        self._tracks.update({track_id: (task, index) for index, track_id in enumerate(ids)})
        self._plan_callbacks(task, callback_faults)
        self._note_end(task)
        request.code, request.task_id = 200, task_id
        return task

    def _source(self, submission: EmulatedSubmission) -> tuple[float | None, str | None, bool]:
        """Return the length and model of the source, as far as they are known at once, and whether it is missing."""
        if submission.operation == "upload_extend":
            return None, None, False
        if known := self._tracks.get(submission.source):
            task, index = known
            return task.timeline.durations[index], task.submission.model, False
        return unknown_seconds(submission.source), None, self.rules.unknown_audio_fails

    def _plan_callbacks(self, task: EmulatedTask, faults: tuple[Fault, ...]) -> None:
        """Plan the callbacks of a task. None is sent to another machine: the task ends as if sending had failed."""
        if not task.submission.calls_back:
            host = host_of(task.submission.callback_url)
            if host is not None and (host not in PLACEHOLDER_HOSTS or self.rules.placeholder_fails):
                task.timeline = attrs.evolve(task.timeline, callback_exception=True)
            return
        planned = planned_callbacks(task.timeline, faults)
        task.early = tuple(each for each in planned if each.early and each.at <= 0)
        for callback in planned:
            if callback not in task.early:
                self.callbacks.add(task, callback)

    # ------------------------------------------------------------ what is found out later

    def fail(self, task: EmulatedTask, fault: Fault, now: float) -> None:
        """Make a task fail for a reason that was found after its submission."""
        if task.timeline.failure is not None:
            return
        failing = max(task.timeline.failing, now - task.at)
        task.timeline = with_faults(attrs.evolve(task.timeline, failing=failing), [fault])
        if task.submission.calls_back:
            self.callbacks.add(task, PlannedCallback(failing, "error"))
        self._note_end(task)

    def source_measured(self, task: EmulatedTask, seconds: float, now: float) -> None:
        """Check ``continueAt`` against the length of an uploaded source, measured after the submission."""
        if fault := cut_outside(task.submission, seconds):
            self.fail(task, fault, now)

    def _note_end(self, task: EmulatedTask) -> None:
        if math.isfinite(task.end):
            self.last_end = max(self.last_end, task.end)
        failure = task.timeline.failure
        if failure is not None and failure.refunded:
            self.account.refund_at(task.at + failure.at, task.charge)


def _uuid(text: str) -> str:
    return str(uuid.UUID(bytes=hashlib.blake2b(text.encode(), digest_size=16).digest(), version=4))


def unknown_seconds(audio_id: str) -> float:
    """Return the length of a song that the emulator did not make: always the same for the same id."""
    return round(seeded(audio_id).uniform(*UNKNOWN_SECONDS), 2)


def with_faults(timeline: Timeline, faults: Iterable[Fault]) -> Timeline:
    """Apply the effects of faults to a timeline."""
    for fault in faults:
        effect = fault.effects.timeline
        timeline = effect(timeline, fault.options) if effect else timeline
    return timeline


def planned_callbacks(timeline: Timeline, faults: Iterable[Fault]) -> list[PlannedCallback]:
    """Plan the callbacks of a task, in the order in which they are sent, with the effects of faults."""
    planned = [PlannedCallback(at, stage) for stage, at in timeline.stages()]
    for fault in faults:
        effect = fault.effects.callbacks
        planned = effect(planned, fault.options) if effect else planned
    return planned


def most_in_window(times: Iterable[float], seconds: float) -> int:
    """Return the largest number of times in any half-open window of that many seconds."""
    times = sorted(times)
    return max((number - bisect_right(times, at - seconds) for number, at in enumerate(times, 1)), default=0)
