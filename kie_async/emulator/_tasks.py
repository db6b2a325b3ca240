"""Tasks: what was submitted, what it costs, and what becomes of it when. Pure.

Times are seconds since the submission. By default they are those of the real service (text after some 10 s, the first
track after some 45 s, all after 60 to 140 s), divided by the speed.
"""

from __future__ import annotations

import json
import math
import random
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any, Literal, TypeAlias
from urllib.parse import urlsplit

import attrs

from kie_async._protocol.request_rules import CREDITS_PER_TASK
from kie_async.models import STAGES, Operation
from kie_async.settings import RouteName, is_loopback

NEVER = math.inf
PENDING_FOR = 180.0  # observed: "it stays PENDING for minutes"
REFUNDED = 531  # at the service: the one code that says that the credits are given back
Answers: TypeAlias = Literal["whole", "continuation"]
TEXTS = ("prompt", "style", "title", "negative_tags", "lyrics")


# ---------------------------------------------------------------- the life of a task


def seeded(seed: str) -> random.Random:
    """Make a random generator that gives the same numbers for the same seed."""
    return random.Random(seed)  # noqa: S311  # chance, not secrecy


@attrs.frozen
class Failure:
    """How a task fails, and when.

    Attributes:
        at: the age of the task when it fails, in seconds.
        code: the ``errorCode`` of record-info.
        message: the ``errorMessage``.
        word: the status word in the end.
        pending_for: how many seconds the status stays PENDING although ``errorCode`` is set.
    """

    at: float
    code: int | str
    message: str
    word: str = "GENERATE_AUDIO_FAILED"
    pending_for: float = 0.0

    @property
    def refunded(self) -> bool:
        """Whether the credits are given back (code 531)."""
        return self.code == REFUNDED


@attrs.frozen
class TaskSnapshot:
    """The state of a task at one time, as record-info of either route shows it.

    Attributes:
        word: the status word.
        ready: how many tracks are finished.
        listed: whether the tracks are listed.
        audio: whether the finished tracks have their audio.
        code: the ``errorCode``.
        message: the ``errorMessage``.
        progress: the progress towards the first stage, from 0 to 1.
        ended: seconds from the submission to the end; None while it runs.
        shape: where the jobs route puts the tracks of a finished task, one of ``SHAPES``; by default the one reported
            for the operation.
    """

    word: str = "PENDING"
    ready: int = 0
    listed: bool = False
    audio: bool = True
    code: int | str | None = None
    message: str | None = None
    progress: float = 0.0
    ended: float | None = None
    shape: str = ""


@attrs.frozen
class Timeline:
    """When a task reaches its stages. All times are ages of the task, in seconds.

    Attributes:
        text, first, complete: when it reaches each stage.
        failing: when it fails, if a fault makes it fail.
        durations: the lengths of its two tracks, in seconds.
        failure: how it fails; None if it succeeds.
        visible: when record-info begins to know it.
        audio: when its audio is available, if that is later than its completion.
        pending_for: how many seconds a late refusal stays PENDING.
        callback_exception: whether it ends with CALLBACK_EXCEPTION instead of SUCCESS.
    """

    text: float
    first: float
    complete: float
    failing: float
    durations: tuple[float, float]
    failure: Failure | None = None
    visible: float = 0.0
    audio: float = 0.0
    pending_for: float = PENDING_FOR
    callback_exception: bool = False

    @property
    def end(self) -> float:
        """When the task has ended and its audio is available; infinite if that never happens."""
        if self.failure is not None:
            return max(self.visible, self.failure.at + self.failure.pending_for)
        return max(self.visible, self.complete, self.audio)

    def stages(self) -> Iterator[tuple[str, float]]:
        """Yield the stages that the task reaches, each with its time."""
        until = NEVER if self.failure is None else self.failure.at
        for stage, at in zip(STAGES, (self.text, self.first, self.complete), strict=True):
            if at < until:
                yield stage, at
        if self.failure is not None:
            yield "error", self.failure.at

    def snapshot(self, age: float) -> TaskSnapshot | None:
        """Return what record-info shows at an age; None if it does not know the task yet."""
        if age < self.visible:
            return None
        failure = self.failure
        if failure is None or age < failure.at:
            return self._running(age)
        if age < failure.at + failure.pending_for:
            return TaskSnapshot(code=failure.code, message=failure.message)
        ended = failure.at + failure.pending_for
        return TaskSnapshot(failure.word, code=failure.code, message=failure.message, ended=ended)

    def _running(self, age: float) -> TaskSnapshot:
        if age < self.text:
            return TaskSnapshot(progress=age / self.text)
        if age < self.first:
            return TaskSnapshot("TEXT_SUCCESS", listed=True)
        if age < self.complete:
            return TaskSnapshot("FIRST_SUCCESS", ready=1, listed=True)
        word = "CALLBACK_EXCEPTION" if self.callback_exception else "SUCCESS"
        return TaskSnapshot(word, ready=2, listed=True, audio=age >= self.audio, ended=self.complete)

    def snapshot_of_stage(self, stage: str) -> TaskSnapshot:
        """Return what the callback of a stage shows, whenever it is sent."""
        if stage == "error" and self.failure is not None:
            return TaskSnapshot("FAILED", code=self.failure.code, message=self.failure.message)
        ready = {"first": 1, "complete": 2}.get(stage, 0)
        return TaskSnapshot(ready=ready, listed=ready > 0, audio=self.audio <= self.complete)


@attrs.frozen
class Speed:
    """How fast tasks run.

    Attributes:
        factor: all times are divided by it.
        timeline: text, first, complete in seconds before that; None: random, as the real service is.
        goes_on: by how many seconds each of the two tracks goes on after ``continue_at``; None: random.
        answers: whether a track is the whole song, or the continuation alone.
    """

    factor: float = 1.0
    timeline: tuple[float, float, float] | None = None
    goes_on: tuple[float, float] | None = None
    answers: Answers = "whole"

    def plan(self, chance: random.Random, start: float) -> Timeline:
        """Plan a task without faults; ``start`` is where the source is continued, in seconds."""
        text, first, complete = self.timeline or (
            chance.uniform(8, 12), chance.uniform(35, 55), chance.uniform(60, 140),
        )  # fmt: skip
        longer = self.goes_on or (chance.uniform(15, 25), chance.uniform(30, 40))
        kept = start if self.answers == "whole" else 0.0
        return Timeline(
            text=text / self.factor,
            first=first / self.factor,
            complete=complete / self.factor,
            failing=min(complete, text + chance.uniform(1, 20)) / self.factor,
            durations=(round(kept + longer[0], 2), round(kept + longer[1], 2)),
            pending_for=PENDING_FOR / self.factor,
        )


# ---------------------------------------------------------------- callbacks


@attrs.frozen
class ForgedContent:
    """What a false callback says.

    Attributes:
        code: of a false error; None: false audio, at ``url``.
        signed: whether it bears a good signature.
    """

    code: int | str | None
    message: str | None
    url: str
    signed: bool


@attrs.frozen
class PlannedCallback:
    """A callback of a task that is to be sent.

    Attributes:
        at: when.
        stage: text, first, complete or error.
        attempt: from 1.
        forged: what it says if it is a false one.
        as_record: whether it has the shape of recordInfo.
        early: whether it goes out before the submission is answered, if its time has come by then.
    """

    at: float
    stage: str
    attempt: int = 1
    forged: ForgedContent | None = None
    as_record: bool = False
    early: bool = False


# ---------------------------------------------------------------- what was submitted


def host_of(url: str) -> str | None:
    """Return the host of a URL; None if it has none, or cannot be read."""
    try:
        return urlsplit(url).hostname
    except ValueError:
        return None


@attrs.frozen
class EmulatedSubmission:
    """The content of a submission, on either route.

    Attributes:
        source: the id of a track, or the URL of an upload.
        texts: prompt, style, title, negative_tags, lyrics; what is missing is empty.
    """

    operation: Operation
    model: str = ""
    callback_url: str = ""
    source: str = ""
    continue_at: float | None = None
    texts: Mapping[str, str] = MappingProxyType(dict.fromkeys(TEXTS, ""))
    instrumental: bool = False
    own_parameters: bool = False
    variety: float | None = None

    @property
    def calls_back(self) -> bool:
        """Whether callbacks are sent: only to loopback."""
        return is_loopback(host_of(self.callback_url))


@attrs.define
class ReceivedRequest:
    """A submission that arrived, accepted or not.

    Attributes:
        at: when it arrived, on the emulator's clock.
        route: "classic" or "jobs".
        admitted: whether it was within the quota.
        code: the ``code`` in the answer, before faults; None if a fault prevented an answer.
        task_id: its task; None if it was refused.
    """

    at: float
    route: RouteName
    admitted: bool = True
    code: int | None = None
    task_id: str | None = None


@attrs.define
class Charge:
    """The charge for one accepted submission.

    Attributes:
        number: its number, counted from 1.
        task_id: the task.
        operation: "extend" or "upload_extend".
        route: "classic" or "jobs".
        raw: the bytes of the submission's body.
        at: when the submission arrived, on the emulator's clock.
        callback_url: where its callbacks go.
        credits: what it cost.
        refunded: whether the credits were given back.
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
        """The submission's body, parsed."""
        body: dict[str, Any] = json.loads(self.raw)
        return body


@attrs.define(eq=False)
class EmulatedTask:
    """A task of the emulator.

    Attributes:
        id: its id.
        submission: what was submitted.
        charge: what it cost.
        timeline: when it reaches its stages.
        at: when it was accepted, on the emulator's clock.
        created: the same in Unix milliseconds.
        start: where its source is continued, in seconds.
        track_ids: the ids of its two tracks.
        given_up: whether its callbacks failed three times in a row, so that no more are sent.
        early: callbacks that are sent before the submission is answered.
    """

    id: str
    submission: EmulatedSubmission
    charge: Charge
    timeline: Timeline
    at: float
    created: int
    start: float
    track_ids: tuple[str, str]
    given_up: bool = False
    early: tuple[PlannedCallback, ...] = ()

    @property
    def end(self) -> float:
        """When it ends, on the emulator's clock; infinite if it never does."""
        return self.at + self.timeline.end
