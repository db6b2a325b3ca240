"""An asyncio client for kie.ai's Suno music API: extends tracks without paying twice or losing what was paid.

Begin with ``KieSession`` (``pydoc kie_async.session``): ``extend``, ``upload_extend``, ``extend_until``, ``submit`` and
``submit_all`` give a ``Task`` (awaited: a ``TaskResult`` with its ``Track`` values); ``download`` and ``upload`` move
files. Requests are ``ExtendRequest`` and ``UploadExtendRequest``; ``Settings`` says how a session behaves.

Other parts: ``run_batch`` and ``read_manifest`` (many songs, safe against crashes), ``open_journal`` (the jobs on
record), ``callbacks`` (for web apps), ``audio`` (compare and join files), ``report`` (a page to choose takes by ear),
``emulator`` and ``testing`` (the service in miniature), ``events`` and ``otel`` (logs, spans, metrics). Every error is
a ``KieError``.
"""

from typing import TYPE_CHECKING

from kie_async._package import lazy_exports

if TYPE_CHECKING:
    from kie_async import audio, callbacks
    from kie_async._client.task import Task
    from kie_async._package import __version__
    from kie_async._protocol.request_rules import MODELS
    from kie_async.batch import Manifest, read_manifest, run_batch
    from kie_async.chain import Chain, ChainStep
    from kie_async.errors import (
        AudioError,
        AuthError,
        BadResponseError,
        BudgetError,
        ConflictError,
        ConnectError,
        DownloadError,
        FileError,
        InsufficientCreditsError,
        InternalError,
        InvalidRequestError,
        KeyQuotaError,
        KieError,
        LostRecordError,
        ManifestError,
        Problem,
        RateLimitedError,
        RefusedError,
        ResultExpiredError,
        ServerError,
        SessionError,
        SettingsError,
        SignatureError,
        StorageError,
        SubmitUnknownError,
        TaskFailedError,
        TaskNotFoundError,
        TLSError,
        TooManyFailuresError,
        UnavailableError,
        UnclearError,
        UnexpectedRedirectError,
        WaitTimeoutError,
    )
    from kie_async.journal import Job, JobList, Journal, PostgresJournal, SQLiteJournal, open_journal
    from kie_async.limiter import Limiter, SlidingLimiter
    from kie_async.models import (
        CallbackEvent,
        Credits,
        ExtendRequest,
        Outcome,
        Request,
        TaskEvent,
        TaskRecord,
        TaskResult,
        Track,
        UploadedFile,
        UploadExtendRequest,
    )
    from kie_async.session import KieSession
    from kie_async.settings import Secret, Settings

__all__ = [
    "MODELS",
    "AudioError",
    "AuthError",
    "BadResponseError",
    "BudgetError",
    "CallbackEvent",
    "Chain",
    "ChainStep",
    "ConflictError",
    "ConnectError",
    "Credits",
    "DownloadError",
    "ExtendRequest",
    "FileError",
    "InsufficientCreditsError",
    "InternalError",
    "InvalidRequestError",
    "Job",
    "JobList",
    "Journal",
    "KeyQuotaError",
    "KieError",
    "KieSession",
    "Limiter",
    "LostRecordError",
    "Manifest",
    "ManifestError",
    "Outcome",
    "PostgresJournal",
    "Problem",
    "RateLimitedError",
    "RefusedError",
    "Request",
    "ResultExpiredError",
    "SQLiteJournal",
    "Secret",
    "ServerError",
    "SessionError",
    "Settings",
    "SettingsError",
    "SignatureError",
    "SlidingLimiter",
    "StorageError",
    "SubmitUnknownError",
    "TLSError",
    "Task",
    "TaskEvent",
    "TaskFailedError",
    "TaskNotFoundError",
    "TaskRecord",
    "TaskResult",
    "TooManyFailuresError",
    "Track",
    "UnavailableError",
    "UnclearError",
    "UnexpectedRedirectError",
    "UploadExtendRequest",
    "UploadedFile",
    "WaitTimeoutError",
    "__version__",
    "audio",
    "callbacks",
    "open_journal",
    "read_manifest",
    "run_batch",
]

# Each is loaded when it is first asked for: importing the package, as pytest does for its plugin, costs nothing.
__getattr__ = lazy_exports(
    __name__,
    {
        "audio": "audio",
        "callbacks": "callbacks",
        **{name: "errors" for name in __all__ if name.endswith("Error")},
        "Problem": "errors",
        **dict.fromkeys(
            (
                "CallbackEvent", "Credits", "ExtendRequest", "Outcome", "Request", "TaskEvent", "TaskRecord",
                "TaskResult", "Track", "UploadExtendRequest", "UploadedFile",
            ),
            "models",
        ),
        **dict.fromkeys(("Secret", "Settings"), "settings"),
        **dict.fromkeys(("Limiter", "SlidingLimiter"), "limiter"),
        "MODELS": "_protocol.request_rules",
        **dict.fromkeys(("Chain", "ChainStep"), "chain"),
        "KieSession": "session",
        "Task": "_client.task",
        "__version__": "_package",
        **dict.fromkeys(("Manifest", "read_manifest", "run_batch"), "batch"),
        **dict.fromkeys(("Job", "JobList", "Journal", "PostgresJournal", "SQLiteJournal", "open_journal"), "journal"),
    },
)  # fmt: skip


def __dir__() -> list[str]:
    return __all__
