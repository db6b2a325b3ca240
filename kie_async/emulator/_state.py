"""The service without its wires: credits, quota, ledger, tasks, and which callbacks are due. Pure.

Time is passed in as ``now``, in seconds on any clock that only goes forward. Nothing here waits, sends or reads.
"""

from __future__ import annotations

import hashlib
import heapq
import json
import math
import random
import uuid
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from typing import Any

import attrs

from kie_async._protocol.limits import CREDITS_PER_TASK, limits_of
from kie_async.emulator._faults import Fault, Faults
from kie_async.emulator._hosts import host_of
from kie_async.emulator._plan import UNKNOWN_SECONDS, Ask, Pace, Plan, late, live, too_far
from kie_async.emulator._refusals import Refusal
from kie_async.settings import RouteName, is_loopback

QUOTA = 20  # FACTS §7: submissions per account in any WINDOW
WINDOW = 10.0
TRIES = 3  # FACTS §4: a callback is given up after three failures in a row
RETRY_AFTER = (2.0, 10.0)  # seconds before the second and the third try; the real spacing is not known
PLACEHOLDER_HOSTS = ("example.com", "www.example.com", "example.org", "example.net")


@attrs.define
class Arrival:
    """A submission as it came in, whatever became of it.

    Attributes:
        at: when, on the emulator's clock.
        admitted: whether the quota let it in.
        code: the body code it was to be answered with; None if it was never looked at.
        task_id: the task it became.
    """

    at: float
    route: RouteName
    admitted: bool = True
    code: int | None = None
    task_id: str | None = None


@attrs.define
class Charge:
    """What one accepted submission cost, and for what.

    Attributes:
        number: from 1.
        raw: the body as it came.
        at: when the submission came in, on the emulator's clock.
        refunded: whether it was given back.
    """

    number: int
    task_id: str
    operation: str
    route: RouteName
    raw: bytes = attrs.field(repr=False)
    at: float
    callback_url: str = attrs.field(repr=False)
    credits: float = CREDITS_PER_TASK
    refunded: bool = False

    @property
    def body(self) -> dict[str, Any]:
        """The body as JSON."""
        body: dict[str, Any] = json.loads(self.raw)
        return body


@attrs.define(eq=False)
class Task:
    """An accepted submission.

    Attributes:
        at: when it was accepted, on the emulator's clock.
        created: the same in epoch milliseconds.
        start: where its source is continued, in seconds.
        track_ids: the ids of its two tracks.
        given_up: whether its callbacks failed three times in a row.
        early: callbacks that go out before the submission is answered.
    """

    id: str
    number: int
    ask: Ask
    charge: Charge
    plan: Plan
    at: float
    created: int
    start: float
    track_ids: tuple[str, str]
    given_up: bool = False
    early: tuple[Delivery, ...] = ()


def _uuid(text: str) -> str:
    return str(uuid.UUID(bytes=hashlib.blake2b(text.encode(), digest_size=16).digest(), version=4))


@attrs.frozen
class Delivery:
    """A callback that is due.

    Attributes:
        stage: text, first, complete or error.
        attempt: from 1.
        forged: the fault that makes it a false one.
        as_record: whether it has the shape of recordInfo.
    """

    task: Task
    stage: str
    attempt: int = 1
    forged: Fault | None = None
    as_record: bool = False


@attrs.frozen(kw_only=True)
class Rules:
    """How strict the service is.

    Attributes:
        quota: submissions in any ``window`` seconds.
        refused_count: whether submissions refused by the quota count against it too.
        placeholder_fails: whether a callback to a placeholder host ends in CALLBACK_EXCEPTION.
        unknown_audio_fails: whether extending a track that the emulator did not make fails.
    """

    quota: int = QUOTA
    window: float = WINDOW
    refused_count: bool = False
    placeholder_fails: bool = False
    unknown_audio_fails: bool = False


class State:
    """Everything the service knows."""

    def __init__(
        self, *, seed: int = 0, credits_left: float = 1000.0, pace: Pace | None = None, rules: Rules | None = None,
        faults: Iterable[Fault] = (),
    ) -> None:  # fmt: skip
        self.seed = seed
        self.pace = pace or Pace()
        self.rules = rules or Rules()
        self.faults = Faults(faults, seed)
        self.arrivals: list[Arrival] = []
        self.ledger: list[Charge] = []
        self.tasks: dict[str, Task] = {}
        self.polls: Counter[str] = Counter()
        self.last_end = -math.inf
        self._credits = credits_left
        self._admitted: deque[float] = deque()
        self._tracks: dict[str, tuple[Task, int]] = {}
        self._refunds: list[tuple[float, int, Charge]] = []
        self._due: list[tuple[float, int, Delivery]] = []
        self._pushed = 0

    # ------------------------------------------------------------ money and quota

    def credits_left(self, now: float) -> float:
        """The credits of the account."""
        while self._refunds and self._refunds[0][0] <= now:
            charge = heapq.heappop(self._refunds)[2]
            charge.refunded = True
            self._credits += charge.credits
        return self._credits

    def top_up(self, amount: float) -> None:
        """Add credits to the account."""
        self._credits += amount

    def arrive(self, route: RouteName, now: float, *, counts: bool = True) -> Arrival:
        """Note a submission at the moment at which it comes in; the quota is counted here, if it is the account's."""
        while self._admitted and self._admitted[0] <= now - self.rules.window:
            self._admitted.popleft()
        arrival = Arrival(now, route, admitted=len(self._admitted) < self.rules.quota)
        if counts and (arrival.admitted or self.rules.refused_count):
            self._admitted.append(now)
        self.arrivals.append(arrival)
        return arrival

    # ------------------------------------------------------------ submissions

    def submit(
        self, arrival: Arrival, ask: Ask, raw: bytes, *, created: int, faults: Iterable[Fault] = ()
    ) -> Task | Refusal:  # fmt: skip
        """Accept a submission, and charge it, or refuse it."""
        refusal = self._refusal(arrival, ask)
        if refusal is not None:
            arrival.code = refusal.code
            return refusal
        task = self._accept(arrival, ask, raw, created, tuple(faults))
        arrival.code, arrival.task_id = 200, task.id
        return task

    def _refusal(self, arrival: Arrival, ask: Ask) -> Refusal | None:
        """What is checked at once: next to nothing (FACTS §2)."""
        if not arrival.admitted:
            return Refusal(429)
        if limits_of(ask.model) is None:
            return Refusal(422, "The model is not supported.")
        if arrival.route == "classic" and not ask.callback_url:
            return Refusal(422, "Please enter callBackUrl.")
        if not (ask.audio_id if ask.operation == "extend" else ask.upload_url):
            return Refusal(422, f"Please enter {'audioId' if ask.operation == 'extend' else 'uploadUrl'}.")
        if self.credits_left(arrival.at) < CREDITS_PER_TASK:
            return Refusal(402)
        return None

    def _accept(self, arrival: Arrival, ask: Ask, raw: bytes, created: int, faults: tuple[Fault, ...]) -> Task:
        number = len(self.ledger) + 1
        chance = random.Random(f"{self.seed} {number}")  # noqa: S311  # chance, not secrecy
        task_id = f"{chance.getrandbits(128):032x}"
        charge = Charge(number, task_id, ask.operation, arrival.route, raw, arrival.at, ask.callback_url)
        callback_faults = self.faults.pick("callback", task_id)
        source_seconds, source_model = self._source(ask)
        start = ask.continue_at if ask.continue_at is not None else source_seconds or 0.0
        found = late(ask, source_seconds, source_model)
        plan = live(self.pace.plan(chance, start), (*faults, *callback_faults, *self._strict(ask), *found))
        ids = _uuid(f"{task_id} 0"), _uuid(f"{task_id} 1")
        task = Task(task_id, number, ask, charge, plan, arrival.at, created, start, ids)
        self._credits -= charge.credits
        self.ledger.append(charge)
        self.tasks[task_id] = task
        self._tracks.update({track_id: (task, index) for index, track_id in enumerate(task.track_ids)})
        self._plan_callbacks(task, callback_faults)
        self._note_end(task)
        return task

    def _strict(self, ask: Ask) -> Iterator[Fault]:
        if self.rules.unknown_audio_fails and ask.operation == "extend" and ask.audio_id not in self._tracks:
            message = "The original Suno task does not exist."
            yield Fault("failed", code=500, word="CREATE_TASK_FAILED", message=message)

    def _source(self, ask: Ask) -> tuple[float | None, str | None]:
        """The length and the model of the source, as far as they are known at once."""
        if ask.operation == "upload_extend":
            return None, None
        if known := self._tracks.get(ask.audio_id):
            task, index = known
            return task.plan.durations[index], task.ask.model
        return unknown_seconds(ask.audio_id), None

    def fail(self, task: Task, fault: Fault, now: float) -> None:
        """Let a task fail for what was found out after its submission."""
        if task.plan.failure is not None:
            return
        plan = live(task.plan, [fault])
        failure = attrs.evolve(plan.failure, at=max(plan.failing, now - task.at)) if plan.failure else None
        task.plan = attrs.evolve(plan, failure=failure)
        if self._reaches(task) and failure is not None:
            self._push(task.at + failure.at, Delivery(task, "error"))
        self._note_end(task)

    def source_measured(self, task: Task, seconds: float, now: float) -> None:
        """Note the length of an uploaded source, found out after the submission."""
        if fault := too_far(task.ask, seconds):
            self.fail(task, fault, now)

    def _note_end(self, task: Task) -> None:
        end = task.at + task.plan.end
        if math.isfinite(end):
            self.last_end = max(self.last_end, end)
        if task.plan.failure is not None and task.plan.failure.refunded:
            heapq.heappush(self._refunds, (task.at + task.plan.failure.at, task.number, task.charge))

    def track(self, track_id: str) -> tuple[Task, int] | None:
        """The task that makes a track, and which of its tracks it is."""
        return self._tracks.get(track_id)

    # ------------------------------------------------------------ callbacks

    def _reaches(self, task: Task) -> bool:
        return is_loopback(host_of(task.ask.callback_url))

    def _plan_callbacks(self, task: Task, faults: tuple[Fault, ...]) -> None:
        """Note when the callbacks of a task are due. Hosts other than loopback are never called: it fails for them."""
        host = host_of(task.ask.callback_url)
        if not self._reaches(task):
            fails = host is not None and (host not in PLACEHOLDER_HOSTS or self.rules.placeholder_fails)
            task.plan = attrs.evolve(task.plan, callback_exception=task.plan.callback_exception or fails)
            return
        early = any(fault.kind == "early" for fault in faults)
        planned = schedule(task, faults)
        task.early = tuple(each for at, each in planned if early and at <= 0 and not each.forged)
        for at, delivery in planned:
            if math.isfinite(at) and delivery not in task.early:
                self._push(task.at + at, delivery)

    def _push(self, at: float, delivery: Delivery) -> None:
        self._pushed += 1
        heapq.heappush(self._due, (at, self._pushed, delivery))

    def next_due(self) -> float | None:
        """When the next callback is due; None if none is planned."""
        return self._due[0][0] if self._due else None

    def take_due(self, now: float) -> list[Delivery]:
        """Take the callbacks that are due; those of a task whose life has changed since are passed over."""
        taken = []
        while self._due and self._due[0][0] <= now:
            delivery = heapq.heappop(self._due)[2]
            if delivery.forged or (not delivery.task.given_up and delivery.stage in dict(delivery.task.plan.stages())):
                taken.append(delivery)
        return taken

    def delivered(self, delivery: Delivery, now: float, *, answered: bool) -> None:
        """Note how a delivery went; a failed one is tried again, three times in all."""
        if answered or delivery.forged:
            return
        if delivery.attempt >= TRIES:
            delivery.task.given_up = True
            return
        wait = RETRY_AFTER[delivery.attempt - 1] / self.pace.speed
        self._push(now + wait, attrs.evolve(delivery, attempt=delivery.attempt + 1))


def unknown_seconds(audio_id: str) -> float:
    """The length of a song that the emulator did not make: always the same for the same id."""
    return round(random.Random(audio_id).uniform(*UNKNOWN_SECONDS), 2)  # noqa: S311  # chance, not secrecy


def most_in_window(moments: Iterable[float], seconds: float) -> int:
    """The largest number of moments in any half-open window of that many seconds."""
    window: deque[float] = deque()
    most = 0
    for moment in sorted(moments):
        window.append(moment)
        while window[0] <= moment - seconds:
            window.popleft()
        most = max(most, len(window))
    return most


# ---------------------------------------------------------------- faults of callbacks

_Schedule = list[tuple[float, Delivery]]


def _touches(fault: Fault, delivery: Delivery) -> bool:
    return delivery.forged is None and fault.stage in {None, delivery.stage}


def _lost(task: Task, planned: _Schedule, fault: Fault) -> _Schedule:  # noqa: ARG001  # as its siblings
    return [each for each in planned if not _touches(fault, each[1])]


def _doubled(task: Task, planned: _Schedule, fault: Fault) -> _Schedule:  # noqa: ARG001  # as its siblings
    return [each for each in planned for _ in range(2 if _touches(fault, each[1]) else 1)]


def _reordered(task: Task, planned: _Schedule, fault: Fault) -> _Schedule:  # noqa: ARG001  # as its siblings
    """The last moment stands for all, so that none speaks of a stage that is not reached."""
    last = max((at for at, _ in planned), default=0.0)
    return [(last, delivery) for _, delivery in reversed(planned)]


def _late(task: Task, planned: _Schedule, fault: Fault) -> _Schedule:  # noqa: ARG001  # as its siblings
    wait = 30.0 if fault.seconds is None else fault.seconds
    return [(at + wait, each) if _touches(fault, each) else (at, each) for at, each in planned]


def _shape(task: Task, planned: _Schedule, fault: Fault) -> _Schedule:  # noqa: ARG001  # as its siblings
    return [(at, attrs.evolve(each, as_record=each.as_record or _touches(fault, each))) for at, each in planned]


def _forged(task: Task, planned: _Schedule, fault: Fault) -> _Schedule:
    return [(fault.seconds or 0.0, Delivery(task, fault.stage or "complete", forged=fault)), *planned]


CALLBACKS = {
    "lost": _lost,
    "doubled": _doubled,
    "reordered": _reordered,
    "late": _late,
    "shape": _shape,
    "forged": _forged,
}


def schedule(task: Task, faults: Iterable[Fault]) -> _Schedule:
    """The callbacks of a task with their moments since its submission, as the faults leave them."""
    planned = [(at, Delivery(task, stage)) for stage, at in task.plan.stages()]
    for fault in faults:
        if fault.kind in CALLBACKS:
            planned = CALLBACKS[fault.kind](task, planned, fault)
    return planned
