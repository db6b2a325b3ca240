"""How a command ends: one table from errors to exit codes, and the words and the JSON for each error.

Errors of the library speak of Python; here options stand in the place of fields and arguments.
"""

from __future__ import annotations

import re
from typing import Any

import attrs

from kie_async import errors
from kie_async._protocol.spending import ACCOUNT_REMEDY
from kie_async.emulator import AudioMissingError
from kie_async.errors import KieError, SettingsError
from kie_async.models import ExtendRequest, UploadExtendRequest
from kie_async.report import ReportError


@attrs.define(slots=False)
class UsageError(KieError):
    """The command line is wrong: an unknown word, a missing value, or options that exclude each other."""


@attrs.define(slots=False)
class KeyUnusableError(SettingsError):
    """There is no API key, or it cannot be one."""


@attrs.define(slots=False)
class TerminatedError(KieError):
    """The process received SIGTERM or SIGHUP."""


TOP_UP = "top up at https://kie.ai"  # the first words of a hint; where a cap is what is full: to raise it


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
        1, "unclear what a result holds (join), or a fault of this program",
        (BaseException, errors.InternalError, errors.UnclearError),
        "report it with what -v says; before it is run again, look at https://kie.ai/logs: what was sent is paid",
    ),
    ExitStatus(
        2, "wrong use",
        (UsageError, SettingsError, errors.InvalidRequestError, errors.AudioError, AudioMissingError, ReportError),
    ),
    ExitStatus(3, "the task failed or was refused, no answer, or a song shorter than --until", (KieError,)),
    ExitStatus(
        4, "no credits", (errors.InsufficientCreditsError, errors.KeyQuotaError, errors.BudgetError),
        f"{TOP_UP}, then run it again",
    ),
    ExitStatus(
        5, "no key, or a wrong one", (errors.AuthError, KeyUnusableError),
        "put the right key into the environment variable KIE_API_KEY; without one: 'kie-async demo', or --emulate",
    ),
    ExitStatus(
        6, "still running", (errors.WaitTimeoutError,),
        "wait again: kie-async wait {task}{options}",
    ),
    ExitStatus(
        7, "outcome unknown", (errors.SubmitUnknownError,),
        "do not run it again blindly, it may be charged twice: look at https://kie.ai/logs first",
    ),
    ExitStatus(
        8, "the disk, the journal, or a download", (errors.FileError, errors.ConflictError, OSError),
        "fetch it again: kie-async download {task}{options}",
    ),
    ExitStatus(
        130, "Ctrl-C, SIGTERM or SIGHUP", (KeyboardInterrupt, TerminatedError),
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


# ---------------------------------------------------------------- options in the place of Python

_OPTIONS = {
    "audio_id": "AUDIO_ID",
    "source": "SONG",
    "task_id": "TASK_ID",
    "continue_at": "--at",
    "source_duration": "--duration",
    "seconds": "--until",
    "kind": "--as",
    "result": "RESULT",
}
_SOURCE = re.compile(r"^source(?=: )")
_FIELDS = {field.name for kind in (ExtendRequest, UploadExtendRequest) for field in attrs.fields(kind)}
_ROUTE = re.compile(r'\bSettings\(route="(\w+)"\)')
_PYTHON = re.compile(
    r"\b(?P<switch>default_param_flag|instrumental)=(?P<on>True|False)\b"
    r"|\bsession\.track\('(?P<task>[^']*)'\)"
    r"|, or give Settings\([^)]*\)"
    rf"|\b(?P<field>{'|'.join(sorted(name for name in _FIELDS if '_' in name))})\b=?"
)


def option_of(field: str) -> str:
    """The option or argument that sets a field of a request."""
    return _OPTIONS.get(field) or f"--{field.replace('_', '-')}"


def with_options(text: str) -> str:
    """A message of the library with options in the place of Python."""
    return _PYTHON.sub(_as_option, with_route(text))


def with_route(text: str) -> str:
    """A message about a row of a manifest, whose fields are columns, with the option for the route."""
    return _ROUTE.sub(r"--route \1", text)


def _as_option(found: re.Match[str]) -> str:
    if found["switch"]:
        return f"--{'' if found['on'] == 'True' else 'no-'}{found['switch'].replace('_', '-')}"
    if found["task"]:
        return f"kie-async wait {found['task']}"
    return option_of(found["field"]) if found["field"] else ""


# ---------------------------------------------------------------- errors


def error_lines(error: BaseException) -> list[str]:
    """An error as lines for a person."""
    if isinstance(error, errors.ManifestError):
        more = error.count - len(error.faults)
        lines = [_fault_line(fault) for fault in error.faults] + [f"and {more} more"] * (more > 0)
    elif isinstance(error, errors.InvalidRequestError) and error.problems:
        lines = [_option_line(problem) for problem in error.problems]
    else:
        return f"error: {_with_argument(str(_known(error)))}".splitlines()
    return [f"error: {line}" for line in lines]


def error_value(error: BaseException, *, task_id: str | None, is_submitted: bool) -> dict[str, Any]:
    """An error as a JSON value.

    Args:
        error: what ended the command.
        task_id: of the task of the command, if the error names none.
        is_submitted: whether the command has spent credits.
    """
    known = _known(error)
    value: dict[str, Any] = {
        "type": type(error).__name__,
        "message": _with_argument(known.message),
        "code": known.code,
        "task_id": known.task_id or task_id,
        "charged": known.charged,
        "retryable": known.retryable,
    }
    # An error of the disk or of this program does not know what was paid before it.
    if is_submitted and (not isinstance(error, KieError) or isinstance(error, errors.FileError)):
        value["charged"] = "yes"
    if isinstance(error, errors.ManifestError):
        value |= {"faults": [attrs.asdict(fault) for fault in error.faults], "count": error.count}
    elif isinstance(error, errors.InvalidRequestError) and error.problems:
        value["problems"] = [
            {"option": option_of(each.field), "problem": each.problem, "remedy": with_options(each.remedy)}
            for each in error.problems
        ]
    if isinstance(error, errors.UnclearError):
        value |= {"durations": dict(error.durations), "leaves_at": error.leaves_at}
    return value


def with_cap(hint: str, error: BaseException) -> str:
    """A hint that asks to raise the cap that leaves no room, instead of to top up."""
    if not isinstance(error, errors.BudgetError):
        return hint
    return hint.replace(TOP_UP, f"raise {'KIE_MAX_CREDITS' if ACCOUNT_REMEDY in error.message else '--max-credits'}", 1)


def submissions_were(count: int) -> str:
    """A number of submissions as the subject of a sentence in the past."""
    return "a submission was" if count == 1 else f"{count} submissions were"


def unknown_submissions(error: BaseException, count: int) -> errors.SubmitUnknownError:
    """The error of a command that was stopped while submissions had no answer yet."""
    text = f"{_known(error).message}; {submissions_were(count)} sent, perhaps charged, and no answer came"
    return errors.SubmitUnknownError(text)


def _known(error: BaseException) -> KieError:
    """The error itself, or one of the library that says the same."""
    if isinstance(error, KieError):
        return error
    if isinstance(error, KeyboardInterrupt):
        return KieError("stopped by Ctrl-C")
    if isinstance(error, OSError) and error.strerror:
        return KieError(f"{error.strerror}: {error.filename}" if error.filename else error.strerror)
    return KieError(f"{type(error).__name__}: {error}")


def _with_argument(message: str) -> str:
    """A message of an error with options in the place of Python, and with the argument that it begins with."""
    return with_options(_SOURCE.sub(option_of("source"), message))


def _fault_line(fault: errors.RowProblem) -> str:
    return _option_line(fault) if fault.location == "defaults" else with_route(str(fault))


def _option_line(problem: errors.Problem | errors.RowProblem) -> str:
    return f"{option_of(problem.field)} {problem.problem}; {with_options(problem.remedy)}"
