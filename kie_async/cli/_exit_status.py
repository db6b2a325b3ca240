"""How a command can end: one table, which the code, the help and the tests read."""

from __future__ import annotations

import attrs

from kie_async.emulator import AudioMissingError
from kie_async.errors import (
    AudioError,
    AuthError,
    BudgetError,
    ConflictError,
    FileError,
    InsufficientCreditsError,
    InternalError,
    InvalidRequestError,
    KeyQuotaError,
    KieError,
    SettingsError,
    SubmitUnknownError,
    WaitTimeoutError,
)


@attrs.define(slots=False)
class UsageError(KieError):
    """The command line is wrong: an unknown word, a missing value, or options that exclude each other."""


@attrs.define(slots=False)
class KeyUnusableError(SettingsError):
    """There is no API key, or it cannot be one."""


@attrs.define(slots=False)
class TerminatedError(KieError):
    """The process received SIGTERM."""


@attrs.frozen
class ExitStatus:
    """One way in which a command can end.

    Attributes:
        code: the exit code of the process.
        meaning: what the help says of it.
        errors: the errors that lead to it; of an error's classes, the nearest one that is listed here decides.
        hint: what to do next; ``{task}`` and ``{options}`` are filled in, and without a task the hint is left out.
    """

    code: int
    meaning: str
    errors: tuple[type[BaseException], ...] = ()
    hint: str = ""


EXITS: tuple[ExitStatus, ...] = (
    ExitStatus(0, "done"),
    ExitStatus(
        1, "a fault of this program", (BaseException, InternalError),
        "report it with what -v says; before it is run again, look at https://kie.ai/logs: what was sent is paid",
    ),
    ExitStatus(2, "wrong use", (UsageError, SettingsError, InvalidRequestError, AudioError, AudioMissingError)),
    ExitStatus(3, "the task failed, or the service refused or did not answer", (KieError,)),
    ExitStatus(
        4, "no credits", (InsufficientCreditsError, KeyQuotaError, BudgetError),
        "top up at https://kie.ai, then run it again",
    ),
    ExitStatus(
        5, "no key, or a wrong one", (AuthError, KeyUnusableError),
        "put the key into the environment variable KIE_API_KEY; 'kie-async demo' needs none",
    ),
    ExitStatus(
        6, "still running", (WaitTimeoutError,),
        "the task continues; wait again: kie-async wait {task}{options}",
    ),
    ExitStatus(
        7, "outcome unknown", (SubmitUnknownError,),
        "do not run it again blindly, it may be charged twice: look at https://kie.ai/logs first",
    ),
    ExitStatus(
        8, "the disk, the journal, or a download", (FileError, ConflictError, OSError),
        "fetch it again: kie-async download {task}{options}",
    ),
    ExitStatus(
        130, "Ctrl-C", (KeyboardInterrupt, TerminatedError),
        "the task continues; wait for it: kie-async wait {task}{options}",
    ),
    ExitStatus(141, "the reader of the output went away", (BrokenPipeError,)),
)  # fmt: skip

_BY_ERROR = {error: each for each in EXITS for error in each.errors}


def exit_status(error: BaseException | None) -> ExitStatus:
    """The exit status for an error, or for none."""
    if error is None:
        return EXITS[0]
    return next(_BY_ERROR[kind] for kind in type(error).__mro__ if kind in _BY_ERROR)


def exit_table() -> str:
    """The table of exit codes, for the help."""
    return "\n".join(f"{each.code:>5}  {each.meaning}" for each in EXITS)
