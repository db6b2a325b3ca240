"""The states of a task as one table, and the rule that reads a record by it.

The words are those of kie.ai's page "Get Music Task Details", the states of the jobs route, and what users and other
pages report: GENERATING, FAILED, RUNNING and its synonyms. The set is open: a word that is not listed is not terminal.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from types import MappingProxyType
from typing import Literal, NamedTuple, TypeAlias

import attrs

from kie_async.errors import Charged
from kie_async.models import STAGES, Stage, TaskRecord, Track


class Word(Enum):
    """What a status word means."""

    RUNNING = "running"
    SUCCEEDED = "succeeded"
    ENDED = "ended"  # a synonym that no page documents: a success with all its audio, and else no end
    UNDELIVERED = "undelivered"  # the callback could not be delivered; the tracks may all be there
    FAILED = "failed"


_BY_MEANING = {
    Word.RUNNING: (
        "PENDING WAITING QUEUING GENERATING TEXT_SUCCESS FIRST_SUCCESS",
        "RUNNING PROCESSING IN_PROGRESS INPROGRESS IN_QUEUE QUEUE QUEUED QUEUEING WAIT",
        "SUBMITTED CREATED ACCEPTED STARTED STARTING STREAMING TEXT FIRST",
    ),
    Word.SUCCEEDED: ("SUCCESS",),
    Word.ENDED: ("SUCCEED SUCCEEDED SUCCESSFUL COMPLETE COMPLETED FINISHED DONE ALL_SUCCESS",),
    Word.UNDELIVERED: ("CALLBACK_EXCEPTION",),
    Word.FAILED: ("CREATE_TASK_FAILED GENERATE_AUDIO_FAILED SENSITIVE_WORD_ERROR FAILED FAIL",),
}
WORDS: Mapping[str, Word] = MappingProxyType(
    {word: meaning for meaning, words in _BY_MEANING.items() for word in " ".join(words).split()}
)
STAGE_WORDS: MappingProxyType[str, Stage] = MappingProxyType(
    {"TEXT_SUCCESS": "text", "TEXT": "text", "FIRST_SUCCESS": "first", "FIRST": "first"}
)
REFUNDED = 531  # failed, credits given back
NO_ERROR = (None, 0, 200)  # 0 is reported beside null, and 200 is the service's word for "well"


PendingReason: TypeAlias = Literal["", "not visible", "no audio", "undelivered", "unknown word"]


class Running(NamedTuple):
    """Not at its end.

    Attributes:
        stage: the last stage reached, if any.
        pending_reason: why this is not simply a running task; such a state is accepted for a time only.
    """

    stage: Stage | None = None
    pending_reason: PendingReason = ""


class Succeeded(NamedTuple):
    """At its end, with audio; ``partial`` if some tracks never got theirs."""

    tracks: tuple[Track, ...]
    partial: bool = False


class Failed(NamedTuple):
    """At its end, without a result."""

    message: str
    code: int | None = None
    charged: Charged = "maybe"
    refunded: bool = False
    reason: str = ""


@attrs.frozen
class NotFound:
    """Unknown to the service for longer than a new task may be."""


Verdict: TypeAlias = Running | Succeeded | Failed | NotFound


def judge(record: TaskRecord | None, *, timed_out: bool = False) -> Verdict:
    """Say what a record means.

    Args:
        record: what record-info gave; None if it does not know the task.
        timed_out: whether a pending state (not visible, an end without audio) has lasted too long to be accepted.
    """
    if record is None:
        return NotFound() if timed_out else Running(pending_reason="not visible")
    word = WORDS.get(record.status)
    finished = tuple(track for track in record.tracks if track.audio_url)
    ended = word in {Word.SUCCEEDED, Word.UNDELIVERED}
    if (ended or word is Word.ENDED) and finished and finished == record.tracks:
        return Succeeded(finished)
    if record.error_code not in NO_ERROR or word is Word.FAILED:
        if not finished:
            return _failed(record)
        if not ended:  # what was made before it failed is paid for, and is not withheld
            return Succeeded(finished, partial=finished != record.tracks)
    if ended:
        reason: PendingReason = "no audio" if word is Word.SUCCEEDED else "undelivered"
        return _without_audio(record) if timed_out else Running(stage_of(record), reason)
    return Running(stage_of(record), "" if word else "unknown word")


def stage_of(record: TaskRecord) -> Stage | None:
    """The last stage a running task has reached, by its word or by what its tracks show."""
    if any(track.audio_url for track in record.tracks):
        return "first"
    return STAGE_WORDS.get(record.status) or ("text" if record.tracks else None)


def stage_number(stage: Stage | None) -> int:
    """How many stages are behind a task that is at ``stage``; reports that go backwards have a smaller number."""
    return 0 if stage is None else STAGES.index(stage) + 1


def _failed(record: TaskRecord) -> Failed:
    refunded = record.error_code == REFUNDED
    charged = "no" if refunded else _charged(record, "maybe")
    message = record.error_message or f"the task failed with status {record.status or 'missing'}"
    return Failed(message, record.error_code or None, charged, refunded, record.error_reason or "")


def _charged(record: TaskRecord, unless_told: Charged) -> Charged:
    spent = record.credits_consumed
    if spent is None or spent < 0:
        return unless_told
    return "yes" if spent else "no"


def _without_audio(record: TaskRecord) -> Verdict:
    """Judge a success that still lacks audio when its time is over: all tracks with a file count, also an original."""
    usable = tuple(track for track in record.tracks if track.audio_url or track.source_audio_url)
    if usable:
        return Succeeded(usable, partial=len(usable) < len(record.tracks))
    charged = _charged(record, "yes" if record.status == "SUCCESS" else "maybe")
    return Failed(f"the service says {record.status}, but gave no audio", record.error_code or None, charged)
