"""What the service refuses: little at once, most only after the charge. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import MappingProxyType

import attrs

from kie_async._protocol.request_rules import CREDITS_PER_TASK, LYRICS, NEWEST, VARIETY, limits_of
from kie_async.emulator._bodies import MESSAGES
from kie_async.emulator._faults import Fault
from kie_async.emulator._tasks import EmulatedSubmission, ReceivedRequest


@attrs.frozen
class RefusedSubmission:
    """A refused submission; without a message it takes that of its code."""

    code: int
    message: str = ""


# ---------------------------------------------------------------- refused at once


def refused_at_once(
    submission: EmulatedSubmission, request: ReceivedRequest, credits_left: float
) -> RefusedSubmission | None:
    """Return the refusal of what is checked before the charge, which is little."""
    source = "audioId" if submission.operation == "extend" else "uploadUrl"
    checks = (
        (not request.admitted, 429, ""),
        (limits_of(submission.model) is None, 422, "The model is not supported."),
        (request.route == "classic" and not submission.callback_url, 422, "Please enter callBackUrl."),
        (not submission.source, 422, f"Please enter {source}."),
        (credits_left < CREDITS_PER_TASK, 402, ""),
    )
    return next((RefusedSubmission(code, message) for is_wrong, code, message in checks if is_wrong), None)


# ---------------------------------------------------------------- refused after the charge

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
        "known-work": Fault("refused", code=413, message=MESSAGES[413]),
        "creation-fails": Fault("failed", code=500, word="CREATE_TASK_FAILED", message="Internal server error"),
        "generation-fails": Fault("failed", code=501, message=MESSAGES[501]),
        "fails-refunded": Fault("failed", code=531, message="Generation failed, credits have been refunded"),
        "times-out": Fault("failed", code=408, message="Upstream service timed out"),
        "never-ends": Fault("stuck"),
    }
)  # fmt: skip


def refused_late(
    submission: EmulatedSubmission, source_seconds: float | None, source_model: str | None, *, is_missing: bool
) -> Iterator[Fault]:
    """Return what the service checks only after the charge, as faults of the task.

    Args:
        submission: what was submitted.
        source_seconds: the length of the source, where it is known.
        source_model: the model that made the source, where it is known.
        is_missing: whether there is no such source.
    """
    if is_missing:
        yield Fault("failed", code=500, word="CREATE_TASK_FAILED", message="The original Suno task does not exist.")
    words = " ".join(submission.texts[name] for name in ("prompt", "style", "title", "negative_tags")).lower()
    yield from (fault for trigger, fault in TRIGGERS.items() if trigger in words)
    yield from (_invalid(complaint) for complaint in _complaints(submission))
    if source_seconds is not None and (fault := cut_outside(submission, source_seconds)):
        yield fault
    if source_model not in {None, submission.model}:
        yield _invalid(f"The model must be that of the source track: {source_model}")


def cut_outside(submission: EmulatedSubmission, source_seconds: float) -> Fault | None:
    """Return the refusal of a ``continueAt`` outside the source; None if it is inside."""
    if submission.continue_at is None or 0 < submission.continue_at < source_seconds:
        return None
    return _invalid("continueAt must be greater than 0 and less than the duration of the audio")


def _invalid(complaint: str) -> Fault:
    return Fault("failed", code=422, word="CREATE_TASK_FAILED", message=complaint)


def _complaints(submission: EmulatedSubmission) -> Iterator[str]:
    texts = submission.texts
    needed = ("style", "title") if submission.instrumental or texts["lyrics"] else ("prompt", "style", "title")
    for name in needed if submission.own_parameters else ():
        if not texts[name]:
            yield f"{name} is required when defaultParamFlag is true"
    if len(texts["lyrics"]) > LYRICS:
        yield f"lyrics must not exceed {LYRICS} characters"
    if submission.variety is not None and not 0 <= submission.variety <= VARIETY:
        yield f"variety must be from 0 to {VARIETY}"
    limits = limits_of(submission.model) or NEWEST
    for name in ("prompt", "style", "title"):
        if len(texts[name]) > getattr(limits, name):
            yield f"{name} must not exceed {getattr(limits, name)} characters"
    if submission.continue_at is None and (submission.own_parameters or submission.operation == "upload_extend"):
        yield "continueAt is required"
