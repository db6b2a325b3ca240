"""What is asked, and what will become of it: the life of a task, planned when it is submitted. Pure.

Moments are seconds since the submission. The timing is that of the real service by default (text after some 10 s,
the first track after some 45 s, all after 60 to 140 s), divided by the speed.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import reduce
from types import MappingProxyType
from typing import Any

import attrs

from kie_async._protocol.limits import LYRICS, NEWEST, VARIETY, limits_of
from kie_async.emulator._faults import Fault
from kie_async.models import STAGES, Operation

NEVER = math.inf
PENDING_FOR = 180.0  # FACTS: "it stays PENDING for minutes"
UNKNOWN_SECONDS = (120.0, 160.0)  # the length of a song that the emulator did not make

# FACTS §3, `type`: the code names of the models.
CODE_NAMES: Mapping[str, str] = MappingProxyType(
    {
        "V3_5": "chirp-v3-5",
        "V4": "chirp-v4",
        "V4_5": "chirp-auk",
        "V4_5PLUS": "chirp-bluejay",
        "V4_5ALL": "chirp-auk-turbo",
        "V5": "chirp-crow",
        "V5_5": "chirp-fenix",
        "V6": "chirp-hawk",
        "V6_MINI": "chirp-hawk-mini",
        "V6_WILD": "chirp-hawk-wild",
    }
)


def code_name(model: str) -> str:
    """The code name of a model; that of a new one is made up."""
    return CODE_NAMES.get(model) or f"chirp-{model.lower()}"


@attrs.frozen
class Ask:
    """A submission as understood, whichever route it came by. A text that is missing is empty."""

    operation: Operation
    model: str = ""
    callback_url: str = ""
    audio_id: str = ""
    upload_url: str = ""
    continue_at: float | None = None
    prompt: str = ""
    style: str = ""
    title: str = ""
    negative_tags: str = ""
    instrumental: bool = False
    own_parameters: bool = False
    lyrics: str = ""
    variety: float | None = None


_TEXTS: Mapping[str, str] = MappingProxyType(  # in the spelling of each route
    {
        "audio_id": "audioId",
        "upload_url": "uploadUrl",
        "prompt": "prompt",
        "style": "style",
        "title": "title",
        "negative_tags": "negativeTags",
    }
)


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""


def _number(value: object) -> float | None:
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else None


def read_classic(operation: Operation, body: Mapping[str, Any]) -> Ask:
    """Read the body of the classic route (camelCase)."""
    texts: dict[str, Any] = {name: _text(body.get(camel)) for name, camel in _TEXTS.items()}
    return Ask(
        operation,
        model=_text(body.get("model")),
        callback_url=_text(body.get("callBackUrl")),
        continue_at=_number(body.get("continueAt")),
        instrumental=body.get("instrumental") is True,
        own_parameters=body.get("defaultParamFlag") is True,
        **texts,
    )


def read_jobs(operation: Operation, body: Mapping[str, Any]) -> Ask:
    """Read the body of the jobs route (snake_case under ``input``), where only an upload has required texts."""
    given = body.get("input")
    fields: Mapping[str, Any] = given if isinstance(given, dict) else {}
    texts: dict[str, Any] = {name: _text(fields.get(name)) for name in _TEXTS}
    return Ask(
        operation,
        model=_text(fields.get("model")),
        callback_url=_text(body.get("callBackUrl")),
        continue_at=_number(fields.get("continue_at")),
        instrumental=fields.get("instrumental") is True,
        own_parameters=operation == "upload_extend" and bool(texts["style"] or texts["title"]),
        lyrics=_text(fields.get("lyrics")),
        variety=_number(fields.get("variety")),
        **texts,
    )


@attrs.frozen
class Failure:
    """How a task fails, and when.

    Attributes:
        word: the status at the end.
        pending_for: how long the status says PENDING although errorCode is set.
    """

    at: float
    code: int | str
    message: str
    word: str = "GENERATE_AUDIO_FAILED"
    pending_for: float = 0.0

    @property
    def refunded(self) -> bool:
        """Whether the credits are given back (FACTS: 531 alone says so)."""
        return self.code == 531  # noqa: PLR2004  # the service's code


@attrs.frozen
class Plan:
    """The life of a task, in seconds since its submission.

    Attributes:
        failing: when it fails, if it fails.
        durations: the lengths of its two tracks.
        visible: from when record-info knows it.
        audio: from when its audio is to be had, beyond its completion.
        pending_for: how long a late refusal says PENDING.
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
    def moments(self) -> tuple[float, float, float]:
        """When it reaches text, first, complete, if nothing fails."""
        return self.text, self.first, self.complete

    @property
    def end(self) -> float:
        """When it is over, the audio included; infinite if it never is."""
        if self.failure is not None:
            return max(self.visible, self.failure.at + self.failure.pending_for)
        return max(self.visible, self.complete, self.audio)

    def stages(self) -> Iterator[tuple[str, float]]:
        """The stages that it reaches, with their moments."""
        until = NEVER if self.failure is None else self.failure.at
        for stage, at in zip(STAGES, self.moments, strict=True):
            if at < until:
                yield stage, at
        if self.failure is not None:
            yield "error", self.failure.at


@attrs.frozen
class Pace:
    """How fast tasks live.

    Attributes:
        speed: all moments are divided by it.
        timeline: text, first, complete in seconds before that; None: random, as the real service is.
        goes_on: by how many seconds each of the two tracks is longer than ``continue_at``; None: random.
    """

    speed: float = 1.0
    timeline: tuple[float, float, float] | None = None
    goes_on: tuple[float, float] | None = None

    def plan(self, chance: random.Random, start: float) -> Plan:
        """Plan a life without faults; ``start`` is where the source is continued, in seconds."""
        text, first, complete = self.timeline or (
            chance.uniform(8, 12), chance.uniform(35, 55), chance.uniform(60, 140),
        )  # fmt: skip
        longer = self.goes_on or (chance.uniform(15, 25), chance.uniform(30, 40))
        return Plan(
            text=text / self.speed,
            first=first / self.speed,
            complete=complete / self.speed,
            failing=min(complete, text + chance.uniform(1, 20)) / self.speed,
            durations=(round(start + longer[0], 2), round(start + longer[1], 2)),
            pending_for=PENDING_FOR / self.speed,
        )


# ---------------------------------------------------------------- faults of a life

_REFUSED = "Uploaded audio matches existing work of art."
_FAILED = "Audio generation failed"


def _fails(plan: Plan, fault: Fault, failure: Failure) -> Plan:
    at = plan.failing if fault.seconds is None else fault.seconds
    return attrs.evolve(plan, failure=plan.failure or attrs.evolve(failure, at=at))


def _failed(plan: Plan, fault: Fault) -> Plan:
    word = fault.word or "GENERATE_AUDIO_FAILED"
    return _fails(plan, fault, Failure(0, fault.code or 501, fault.message or _FAILED, word))


def _refused(plan: Plan, fault: Fault) -> Plan:
    word = fault.word or "CREATE_TASK_FAILED"
    return _fails(
        plan, fault, Failure(0, fault.code or 413, fault.message or _REFUSED, word, plan.pending_for)
    )  # fmt: skip


def _stuck(plan: Plan, _fault: Fault) -> Plan:
    return attrs.evolve(plan, text=NEVER, first=NEVER, complete=NEVER)


def _no_audio(plan: Plan, fault: Fault) -> Plan:
    return attrs.evolve(plan, audio=NEVER if fault.seconds is None else plan.complete + fault.seconds)


def _invisible(plan: Plan, fault: Fault) -> Plan:
    return attrs.evolve(plan, visible=5.0 if fault.seconds is None else fault.seconds)


def _callback_exception(plan: Plan, _fault: Fault) -> Plan:
    return attrs.evolve(plan, callback_exception=True)


def _early(plan: Plan, fault: Fault) -> Plan:
    last = STAGES.index(fault.stage) if fault.stage in STAGES else 0
    text, first, complete = (0.0 if place <= last else at for place, at in enumerate(plan.moments))
    return attrs.evolve(plan, text=text, first=first, complete=complete)


LIVES: Mapping[str, Callable[[Plan, Fault], Plan]] = MappingProxyType(
    {
        "failed": _failed,
        "refused": _refused,
        "stuck": _stuck,
        "no_audio": _no_audio,
        "invisible": _invisible,
        "callback_exception": _callback_exception,
        "early": _early,
    }
)


def live(plan: Plan, faults: Iterable[Fault]) -> Plan:
    """Change a plan by the faults that concern a task's life; the others are passed over."""
    return reduce(lambda one, fault: LIVES[fault.kind](one, fault) if fault.kind in LIVES else one, faults, plan)


# ---------------------------------------------------------------- what the service refuses late

# Words that make a task fail when its prompt, style, title or negative tags hold them, to try failures by hand.
TRIGGERS: Mapping[str, Fault] = MappingProxyType(
    {
        "sensitive-word": Fault(
            "failed", code=400, word="SENSITIVE_WORD_ERROR",
            message="Your tags contain artist name sensitive-word — we don't reference specific artists, "
            "please change your tags and try again.",
        ),
        "copyrighted-lyrics": Fault(
            "failed", code=400, word="CREATE_TASK_FAILED", message="Song lyrics contain copyrighted material"
        ),
        "known-work": Fault("refused", code=413, message=_REFUSED),
        "creation-fails": Fault("failed", code=500, word="CREATE_TASK_FAILED", message="Internal server error"),
        "generation-fails": Fault("failed", code=501, message=_FAILED),
        "fails-refunded": Fault("failed", code=531, message="Generation failed, credits have been refunded"),
        "times-out": Fault("failed", code=408, message="Upstream service timed out"),
        "never-ends": Fault("stuck"),
    }
)  # fmt: skip


def late(ask: Ask, source_seconds: float | None, source_model: str | None) -> Iterator[Fault]:
    """What the service finds out only after it has accepted a submission.

    Args:
        ask: what was asked.
        source_seconds: the length of the source, where it is known.
        source_model: the model that made the source, where it is known.
    """
    words = f"{ask.prompt} {ask.style} {ask.title} {ask.negative_tags}".lower()
    yield from (fault for trigger, fault in TRIGGERS.items() if trigger in words)
    yield from (_invalid(complaint) for complaint in _complaints(ask))
    if source_seconds is not None and (fault := too_far(ask, source_seconds)):
        yield fault
    if source_model not in {None, ask.model}:
        yield _invalid(f"The model must be that of the source track: {source_model}")


def too_far(ask: Ask, source_seconds: float) -> Fault | None:
    """The refusal of a ``continueAt`` that does not lie inside the source; None if it does."""
    if ask.continue_at is None or 0 < ask.continue_at < source_seconds:
        return None
    return _invalid("continueAt must be greater than 0 and less than the duration of the audio")


def _invalid(complaint: str) -> Fault:
    return Fault("failed", code=422, word="CREATE_TASK_FAILED", message=complaint)


def _complaints(ask: Ask) -> Iterator[str]:
    needed = ("style", "title") if ask.instrumental or ask.lyrics else ("prompt", "style", "title")
    for name in needed if ask.own_parameters else ():
        if not getattr(ask, name):
            yield f"{name} is required when defaultParamFlag is true"
    if len(ask.lyrics) > LYRICS:
        yield f"lyrics must not exceed {LYRICS} characters"
    if ask.variety is not None and not 0 <= ask.variety <= VARIETY:
        yield f"variety must be from 0 to {VARIETY}"
    limits = limits_of(ask.model) or NEWEST
    for name in ("prompt", "style", "title"):
        if len(getattr(ask, name)) > getattr(limits, name):
            yield f"{name} must not exceed {getattr(limits, name)} characters"
    if ask.continue_at is None and (ask.own_parameters or ask.operation == "upload_extend"):
        yield "continueAt is required"
