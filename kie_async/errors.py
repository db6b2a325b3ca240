"""Every error of the library: what may I do now?

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
    ├── SignatureError          a callback is not signed as the service signs    answer it 401
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
    """One thing wrong with a request: the field, what is the matter with its value, what to do about it."""

    field: str
    problem: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.field}: {self.problem}; {self.remedy}"


@attrs.frozen
class RowProblem:
    """One thing wrong with a manifest.

    Attributes:
        line: where, counted from 1 (in a folder: which file); 0 when it is not about a single line.
        field: the column; empty when it is about the line as a whole.
        problem: what is the matter.
        remedy: what to do about it.
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
    """The root of all errors of this library.

    Attributes:
        message: what happened and what to do, in words. No key, no signed URL.
        task_id: the task it is about, if one is known.
        code: the body code of the service, or else the HTTP status.
        charged: whether credits have been spent.
        retryable: whether the same call may be made again as it is.
    """

    usually_charged: ClassVar[Charged] = "no"
    usually_retryable: ClassVar[bool] = False

    message: str
    task_id: str | None = None
    code: int | None = None
    charged: Charged = attrs.Factory(lambda error: error.usually_charged, takes_self=True)
    retryable: bool = attrs.Factory(lambda error: error.usually_retryable, takes_self=True)

    def __init_subclass__(cls, *, charged: Charged | None = None, retryable: bool | None = None) -> None:
        """Set what the errors of a class say of themselves, unless one is made to say something else."""
        cls.usually_charged = cls.usually_charged if charged is None else charged
        cls.usually_retryable = cls.usually_retryable if retryable is None else retryable

    def __str__(self) -> str:
        facts = [
            f"{name} {value}" for name, value in (("task", self.task_id), ("code", self.code)) if value is not None
        ]
        return f"{self.message} ({', '.join(facts)})" if facts else self.message


class SettingsError(KieError, ValueError):
    """A setting cannot be used. The message names it; a key's value is never shown."""


class SessionError(KieError, RuntimeError):
    """The session is not open, or belongs to another event loop or process. Nothing was sent."""


class ConnectError(KieError, retryable=True):
    """No connection was made (DNS, connect, no time left for it), so nothing was sent and nothing charged."""


class TLSError(ConnectError, retryable=False):
    """The server could not prove who it is. Nothing was sent; it will not get better by itself."""


class RefusedError(KieError):
    """The service answered with a refusal; ``code`` and ``message`` are its own words."""


@attrs.define(slots=False)
class InvalidRequestError(RefusedError, ValueError):
    """The request is wrong, by our own check before sending (``code`` is None) or by the service's.

    Attributes:
        problems: all that our own check found, each naming its field; empty when the service refused.
    """

    problems: tuple[Problem, ...] = ()


@attrs.define(slots=False)
class ManifestError(InvalidRequestError):
    """A manifest is wrong. Nothing was sent.

    Attributes:
        faults: the first of them, in the order of their lines.
        count: how many there are in all.
    """

    faults: tuple[RowProblem, ...] = ()
    count: int = 0


def invalid_request(*problems: Problem) -> InvalidRequestError:
    """Make the error of a request that our own check refuses."""
    return InvalidRequestError("; ".join(map(str, problems)), problems=problems)


class AuthError(RefusedError):
    """The key was refused (401, 403); nothing was charged.

    Other submissions wait for some seconds. If the next one is refused too, those that wait, and those made within the
    seconds after, fail with the same error and are not sent; then the key is tried again.
    """


class InsufficientCreditsError(RefusedError):
    """The account has too few credits (402)."""


@attrs.define(slots=False)
class RateLimitedError(RefusedError, retryable=True):
    """Too fast (405, 429, 430), for longer than ``Settings.submit_retry_timeout``.

    Attributes:
        retry_after: seconds the service asked to wait, if it did.
    """

    retry_after: float | None = None


class KeyQuotaError(RefusedError):
    """The spending cap of a sub-key is reached (433)."""


class UnavailableError(RefusedError, retryable=True):
    """Maintenance (455), a feature switched off (505), or a page with 403, as CDNs send it; nothing was charged."""


@attrs.define(slots=False)
class SubmitUnknownError(KieError, charged="maybe"):
    """A submission was sent and its answer lost: it may be running and charged.

    Do not send it again blindly. See the service's own log of tasks, or follow the task with
    ``session.track(task_id)`` once its id is known.

    Attributes:
        token: the token in the callback URL of this submission; a callback that bears it names the task.
    """

    token: str | None = attrs.field(default=None, repr=False)


class BadResponseError(KieError):
    """The answer is not what the service is known to send; ``message`` shows how it begins, scrubbed."""


class UnexpectedRedirectError(BadResponseError):
    """The API answered with a redirect. It was not followed, so that the key stays with its host."""


class SignatureError(KieError):
    """A callback is not signed with the webhook key, or not now: it may come from anybody."""


class ServerError(KieError, retryable=True):
    """The server failed (5xx, a lost connection, a timeout) on a call that spends nothing."""


class TaskNotFoundError(KieError):
    """The service does not know this task, even after the time it may take to appear."""


@attrs.define(slots=False)
class TaskFailedError(KieError, charged="maybe"):
    """The task ended without a result; ``code`` and ``message`` are the service's, URLs redacted.

    Attributes:
        status: the last status word of the service.
        refunded: whether the service said that the credits were given back (code 531).
        reason: the code, where the service gives it in words ("SENSITIVE_WORD_ERROR"); the message holds it too.
    """

    status: str = ""
    refunded: bool = False
    reason: str = ""


class TooManyFailuresError(KieError):
    """Several tasks in a row failed (``Settings.max_consecutive_failures``): this request was not submitted."""


class WaitTimeoutError(KieError, TimeoutError, charged="yes", retryable=True):
    """The timeout is over, but not the task: it goes on, and ``session.track(task_id)`` follows it again."""


class InternalError(KieError, charged="maybe"):
    """A fault of this library, or of one that it uses, which is the ``__cause__``. It ends what it struck alone."""


@attrs.define(slots=False)
class BudgetError(KieError):
    """A cap on spending (``Settings.max_credits``, or that of a batch) leaves no room for another task.

    Nothing was sent. ``retryable`` says that tasks under way may give some of it back.

    Attributes:
        batch: whose cap it is that the journal keeps for all workers; empty for that of a session, or of one run.
    """

    batch: str = ""


class ConflictError(KieError):
    """The journal refused a move: another process has the job or the batch, or it is past that state."""


class LostRecordError(ConflictError):
    """The results of a batch name a task of this job that the journal does not know. It was not submitted again.

    The journal's file was deleted, or put back from an older copy. ``kie-async jobs adopt`` takes the task into it.
    """


class FileError(KieError):
    """A file could not be used, sent or fetched."""


class AudioError(FileError, ValueError):
    """The source is no audio that the service could extend, or its length cannot be measured. Nothing was sent."""


@attrs.define(slots=False)
class UnclearError(FileError):
    """It cannot be told by its sound whether a result holds the whole song, or only the continuation; or from where on.

    Attributes:
        durations: of the joined file in seconds, if it is the ``whole`` and if it is the ``continuation``.
        leaves_at: seconds of the song after which the result differs from it, where that is before the cut given.
    """

    durations: Mapping[str, float] = attrs.field(factory=dict[str, float])
    leaves_at: float | None = None


class DownloadError(FileError, retryable=True):
    """A result could not be fetched whole; what came is kept in ``NAME.part`` and resumed by the next try."""


class ResultExpiredError(DownloadError, retryable=False):
    """The service no longer keeps this file."""


class StorageError(FileError, retryable=True):
    """The local disk refused: no room, no permission, a name in use."""
