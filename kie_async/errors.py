"""Every error of the library, and what to do about it.

::

    KieError
    ├── SettingsError           a setting cannot be used                         fix it
    ├── SessionError            the session is closed, or of another event loop  use the right one
    ├── ConnectError            DNS or connect failed: nothing was sent          send again
    │   └── TLSError            the server's certificate was refused             fix it
    ├── RefusedError            the service said no; see ``code``
    │   ├── InvalidRequestError the request is wrong; see ``problems``           fix it
    │   │   └── ManifestError   a list of jobs is wrong; see ``faults``          fix it
    │   ├── AuthError           401, 403: the key                                fix it
    │   ├── InsufficientCreditsError  402                                        top up
    │   ├── RateLimitedError    405, 429, 430: too fast                          send again, later
    │   ├── KeyQuotaError       433: the spending cap of a sub-key               raise it
    │   └── UnavailableError    455, 505, a page with 403: maintenance, feature off  send again, later
    ├── SubmitUnknownError      a submission's answer was lost                   do not send again
    ├── BadResponseError        the answer could not be understood
    │   └── UnexpectedRedirectError
    ├── SignatureError          a callback is not signed as the service signs    answer it ``code``
    ├── ServerError             the server failed to answer a read               ask again
    ├── TaskNotFoundError       the service does not know the task
    ├── TaskFailedError         the task ended without a result; see ``refunded``
    ├── TooManyFailuresError    several tasks in a row failed: nothing more is sent    see why
    ├── WaitTimeoutError        the caller's timeout is over; the task goes on   wait again
    ├── BudgetError             a cap on spending (``max_credits``) is reached   raise it, go on
    ├── ConflictError           the journal refused a move: somebody else has the job, or it is done
    │   └── LostRecordError     the results name a task that the journal lost        take it into the journal
    ├── InternalError           a fault of this library, or of one that it uses  report it
    └── FileError               a file could not be used, sent or fetched
        ├── AudioError          the source is not usable audio
        ├── UnclearError        the sound does not tell what a result holds      listen, and say it
        ├── DownloadError       a result could not be fetched whole              fetch again
        │   └── ResultExpiredError  the service no longer keeps it
        └── StorageError        the local disk refused                           make room, fetch again

All of them can be pickled and copied, and none ever holds the API key.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal, TypeAlias

import attrs

Charged: TypeAlias = Literal["no", "maybe", "yes"]


@attrs.frozen
class Problem:
    """One problem of a request: the field, what is wrong with its value, and how to mend it."""

    field: str
    problem: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.field}: {self.problem}; {self.remedy}"


@attrs.frozen
class RowProblem:
    """One problem of a manifest.

    Attributes:
        line: the line, counted from 1 (in a folder: the file); 0 if it does not concern a single line.
        field: the column; empty if it concerns the whole line.
        problem: what is wrong.
        remedy: how to mend it.
        location: shown instead of the line: the name of a file, or "defaults".
    """

    line: int
    field: str
    problem: str
    remedy: str
    location: str = ""

    def __str__(self) -> str:
        parts = (self.location or f"line {self.line}", self.field, f"{self.problem}; {self.remedy}")
        return ": ".join(part for part in parts if part)


@attrs.define(slots=False)
class KieError(Exception):
    """The base class of all errors of this library.

    Attributes:
        message: what happened and what to do. It holds no key and no signed URL.
        task_id: the task that it concerns, if known.
        code: the ``code`` in the service's answer, or else the HTTP status; None if there was no answer.
        charged: whether credits were spent: "no", "maybe" or "yes".
        retryable: whether the same call may simply be made again. Of an error of waiting (``WaitTimeoutError``, a
            closed session), that call is the waiting, not the submission: see ``charged`` before you submit again.
        retry_after: with ``RateLimitedError``, how many seconds the service asked to wait, if it did; else None.
    """

    usually_charged: ClassVar[Charged] = "no"
    usually_retryable: ClassVar[bool] = False

    message: str
    task_id: str | None = None
    code: int | None = None
    charged: Charged = attrs.Factory(lambda error: error.usually_charged, takes_self=True)
    retryable: bool = attrs.Factory(lambda error: error.usually_retryable, takes_self=True)
    retry_after: float | None = None

    def __init_subclass__(cls, *, charged: Charged | None = None, retryable: bool | None = None) -> None:
        """Set the default ``charged`` and ``retryable`` of a class of errors."""
        cls.usually_charged = cls.usually_charged if charged is None else charged
        cls.usually_retryable = cls.usually_retryable if retryable is None else retryable

    def __str__(self) -> str:
        facts = [
            f"{name} {value}" for name, value in (("task", self.task_id), ("code", self.code)) if value is not None
        ]
        return f"{self.message} ({', '.join(facts)})" if facts else self.message


class SettingsError(KieError, ValueError):
    """A setting cannot be used. The message names it; the value of a key is never shown."""


class SessionError(KieError, RuntimeError):
    """The session is not open, or belongs to another event loop or process. Nothing was sent."""


class ConnectError(KieError, retryable=True):
    """No connection could be made (DNS, connect, or a timeout), so nothing was sent and nothing was charged."""


class TLSError(ConnectError, retryable=False):
    """The server's certificate could not be verified. Nothing was sent; sending again does not help."""


class RefusedError(KieError):
    """The service refused; ``code`` and ``message`` are the service's own."""


@attrs.define(slots=False)
class InvalidRequestError(RefusedError, ValueError):
    """The request breaks a rule, as this library found before sending (``code`` is None) or as the service says.

    Attributes:
        problems: all problems that this library found, each with its field; empty if the service refused.
    """

    problems: tuple[Problem, ...] = ()


@attrs.define(slots=False)
class ManifestError(InvalidRequestError):
    """A manifest cannot be used. Nothing was sent.

    Attributes:
        faults: its first problems, in the order of their lines.
        count: the number of problems in all.
    """

    faults: tuple[RowProblem, ...] = ()
    count: int = 0


def invalid_request(*problems: Problem) -> InvalidRequestError:
    """Make the error of a request that breaks rules."""
    return InvalidRequestError("; ".join(map(str, problems)), problems=problems)


class AuthError(RefusedError):
    """The key was refused (401, 403); nothing was charged.

    The session then holds back its other submissions for some seconds. If the next one is refused too, those that wait
    and those made in the next seconds fail with the same error, unsent; after that the key is tried again.
    """


class InsufficientCreditsError(RefusedError):
    """The account has too few credits (402)."""


class RateLimitedError(RefusedError, retryable=True):
    """The service said "too fast" (405, 429, 430) for longer than ``Settings.submit_retry_timeout``."""


class KeyQuotaError(RefusedError):
    """The spending cap of a sub-key is reached (433)."""


class UnavailableError(RefusedError, retryable=True):
    """Maintenance (455), a feature switched off (505), or an HTML page with 403 from a CDN; nothing was charged."""


@attrs.define(slots=False)
class SubmitUnknownError(KieError, charged="maybe"):
    """A submission was sent and its answer was lost: the task may be running, and charged.

    Do not simply send it again: look into the service's own log of tasks (https://kie.ai/logs), and follow the task
    with ``session.track(task_id)`` once its id is known.

    Attributes:
        token: the token in the callback URL of this submission; a callback to that URL names the task.
    """

    token: str | None = attrs.field(default=None, repr=False)


class BadResponseError(KieError):
    """The answer is not in a form that the service is known to send; ``message`` shows its beginning, redacted."""


class UnexpectedRedirectError(BadResponseError):
    """The API answered with a redirect. It was not followed, so that the key is not sent to another host."""


class SignatureError(KieError):
    """A callback is not signed with the webhook key, or its timestamp is off by over 300 s: it may be forged.

    ``code`` is the HTTP status to answer.
    """


class ServerError(KieError, retryable=True):
    """The server failed (5xx, a lost connection, a timeout) on a call that spends nothing."""


class TaskNotFoundError(KieError):
    """The service does not know this task, even after the time it may take to appear."""


@attrs.define(slots=False)
class TaskFailedError(KieError, charged="maybe"):
    """The task ended without a result; ``code`` and ``message`` are the service's own, with URLs redacted.

    Attributes:
        status: the last status word of the service.
        refunded: whether the service said that it gave the credits back (code 531).
        reason: the code in words ("SENSITIVE_WORD_ERROR"), if the service gave it so; the message has it too.
    """

    status: str = ""
    refunded: bool = False
    reason: str = ""


class TooManyFailuresError(KieError):
    """Several tasks in a row failed (``Settings.max_consecutive_failures``): this request was not submitted."""


class WaitTimeoutError(KieError, TimeoutError, charged="yes", retryable=True):
    """The timeout is over; the task itself goes on, and ``session.track(task_id)`` follows it again."""


class InternalError(KieError, charged="maybe"):
    """A bug of this library or of one that it uses; ``__cause__`` is the original error. Only this call is affected."""


@attrs.define(slots=False)
class BudgetError(KieError):
    """A cap on spending (``Settings.max_credits``, or that of a batch) leaves no room for another task.

    Nothing was sent. If ``retryable``, tasks under way may still free a part of the cap.

    Attributes:
        batch: the batch whose cap, kept in the journal for all workers, is reached; empty for the cap of a session or
            of a single run.
    """

    batch: str = ""


class ConflictError(KieError):
    """The journal refused a change: another process has the job or the batch, or the job is in another state."""


class LostRecordError(ConflictError):
    """The results of a batch name a task of this job that the journal does not know. Nothing was submitted.

    The journal's file was deleted, or replaced by an older copy. ``kie-async jobs adopt`` adds the task to it.
    """


class FileError(KieError):
    """A file could not be used, sent or fetched."""


class AudioError(FileError, ValueError):
    """The source is not audio that the service can extend, or its length cannot be measured. Nothing was sent."""


@attrs.define(slots=False)
class UnclearError(FileError):
    """The sound does not show whether a result holds the whole song or only the continuation, or where that begins.

    Attributes:
        durations: the length of the joined file in seconds, by reading: "whole" and "continuation".
        leaves_at: the position in the song, in seconds, from which the result differs from it; None unless that is
            before the cut that was given.
    """

    durations: Mapping[str, float] = attrs.field(factory=dict[str, float])
    leaves_at: float | None = None


class DownloadError(FileError, retryable=True):
    """A result could not be fetched whole; ``NAME.part`` keeps what was received, and the next call resumes it."""


class ResultExpiredError(DownloadError, retryable=False):
    """The service no longer keeps this file."""


class StorageError(FileError, retryable=True):
    """The local disk, or the journal's database, refused: no room, no permission, no connection."""
