"""Where a command speaks: progress on stderr, results on stdout, or one JSON value in their place.

What comes from elsewhere never reaches a terminal with its control characters. A stderr that nobody reads stops
nothing, for the work may be paid for; a stdout that nobody reads is noted, and told at the end.
"""

from __future__ import annotations

import json
import logging
import os
import shlex
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from http import HTTPStatus
from io import TextIOWrapper
from pathlib import Path
from typing import Any, Self

import attrs
from rich.console import Console, RenderableType
from rich.live import Live
from rich.measure import Measurement
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.text import Text

from kie_async import events
from kie_async.cli._exit_status import Exit, TerminatedError, exit_for
from kie_async.cli._messages import flag_of, in_flags, shown, with_route
from kie_async.errors import Fault, FileError, InvalidRequestError, KieError, ManifestError, Problem, SubmitUnknownError

QUIET = 15.0  # seconds between two lines of mere progress where there is no terminal
_STAGES = {
    "text": "the lyrics are there",
    "first": "the first track is done",
    "complete": "all tracks are done",
}


class _Piped(Console):
    """A console that a reader who went away does not end: it only says nothing more.

    Args:
        gone: told that the reader went away.
        options: of any console.
    """

    def __init__(self, gone: Callable[[], None] | None = None, **options: Any) -> None:  # noqa: ANN401  # rich's own
        super().__init__(**options)
        self._gone = gone

    def on_broken_pipe(self) -> None:
        """Fall silent."""
        self.quiet = True
        if self._gone is not None:
            self._gone()


class _LogLines(logging.Handler):
    """Writes the log through the console, so that it does not tear a bar apart."""

    def __init__(self, say: Callable[[str], None], *, verbose: bool) -> None:
        super().__init__(logging.DEBUG)
        self._say = say
        if verbose:
            self.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
        else:  # what the journal warns of concerns money
            self.setFormatter(logging.Formatter("note: %(message)s"))
            self.addFilter(_is_warning_of_journal)

    def emit(self, record: logging.LogRecord) -> None:
        """Write one record."""
        for line in self.format(record).splitlines():
            self._say(line)


def _is_warning_of_journal(record: logging.LogRecord) -> bool:
    return record.name == "kie_async.journal" and record.levelno >= logging.WARNING


class Output:
    """The mouth of one command.

    Attributes:
        facts: what is known so far; the JSON value, whether all goes well or not.
        words: what was typed after the program's name.
        again: the options that a command must repeat that takes the task up; None: it cannot be taken up.
        hints: what to do after an exit, by its code, where the table of exits does not know it.
        submitted: whether this command has spent credits.
        unknown: how many submissions were sent whose outcome nobody knows.
        announced: whether it was said what a Ctrl-C waits for.
        callbacks: how many came in.
        looks: how often the record of a task was read.
        lost: why stdout cannot be written any more.
        hear: takes the callbacks that come in.
    """

    def __init__(self, *, as_json: bool = False, verbose: bool = False, words: Sequence[str] = ()) -> None:
        self.as_json = as_json
        self.verbose = verbose
        self.words = words
        self.facts: dict[str, Any] = {}
        self.again: str | None = ""
        self.hints: Mapping[int, str] = {}
        self.submitted = False
        self.unknown = 0
        self.announced = False
        self.callbacks = 0
        self.polls = 0
        self.lost: OSError | None = None
        self.hear: Callable[[events.CallbackReceived], None] = lambda event: self.say(_short_line(event))
        self._answered = False
        self._console = _Piped(stderr=True, markup=False, emoji=False, highlight=False, soft_wrap=True)
        self._bar: Progress | None = None
        self._live: Live | None = None
        self._activity = TaskID(0)
        self._last = -QUIET
        self._log = _LogLines(self.say, verbose=verbose)

    def __enter__(self) -> Self:
        logger = logging.getLogger("kie_async")
        self._level = logger.level
        logger.addHandler(self._log)  # without one, Python would write warnings itself
        if self.verbose:
            logger.setLevel(logging.DEBUG)
        return self

    def __exit__(self, *_error: object) -> None:
        logger = logging.getLogger("kie_async")
        logger.removeHandler(self._log)
        logger.setLevel(self._level)
        self._rest()

    @property
    def animated(self) -> bool:
        """Whether stderr is a terminal that can show a bar."""
        return self._console.is_terminal and not self._console.is_dumb_terminal

    # ------------------------------------------------------------ progress, on stderr

    def say(self, line: str) -> None:
        """Write a line that stays."""
        self._console.print(shown(line))
        self._last = time.monotonic()

    def doing(self, words: str) -> None:
        """Tell what is going on: at the bar of a terminal, elsewhere by a line now and then."""
        if self.animated:
            self._moving().update(self._activity, description=shown(words))
        elif time.monotonic() - self._last >= QUIET:
            self.say(words)

    def show(self, picture: RenderableType, line: str) -> None:
        """Show how things stand: a table that stays up to date, or the line where the table does not fit."""
        if not self.animated:
            self.doing(line)
            return
        if self._live is None:
            self._live = Live(
                console=self._console, auto_refresh=False, transient=True, redirect_stdout=False, redirect_stderr=False
            )
            self._live.start()
        unbounded = self._console.options.update(max_width=1000)
        fits = Measurement.get(self._console, unbounded, picture).maximum <= self._console.width
        self._live.update(picture if fits else Text(line), refresh=True)

    def transfer(self, what: str) -> Callable[[int, int | None], None]:
        """Return what a transfer is to call with the bytes so far and in all."""
        if not self.animated:
            return lambda done, total: self.doing(f"{what}: {_share(done, total)}")
        bar = self._moving()
        line = bar.add_task(shown(what), total=None)
        return lambda done, total: bar.update(line, completed=done, total=total)

    def _moving(self) -> Progress:
        if self._bar is None:
            columns = (SpinnerColumn("line"), TextColumn("{task.description}", markup=False), BarColumn(20))
            self._bar = Progress(
                *columns, TimeElapsedColumn(), console=self._console, transient=True,
                redirect_stdout=False, redirect_stderr=False,
            )  # fmt: skip
            self._activity = self._bar.add_task("", total=None)
            self._bar.start()
        return self._bar

    def _rest(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
        if self._live is not None:
            self._live.stop()
            self._live = None

    # ------------------------------------------------------------ what the session tells

    def tell(self, event: events.Event) -> None:
        """Take an event of the session."""
        events.log_event(event)
        if isinstance(event, events.Submitted):
            self.submitted = True
            self.facts["task_id"] = event.task_id
        self.unknown += isinstance(event, events.SubmissionUnknown)
        self.callbacks += isinstance(event, events.CallbackReceived)
        self.polls += isinstance(event, events.Polled)
        teller = _TOLD.get(type(event))
        if teller is not None:
            teller(self, event)

    # ------------------------------------------------------------ results, on stdout

    def out(self, line: str) -> None:
        """Write a line of the result; with JSON it is left to ``facts``."""
        if not self.as_json:
            self._write(shown(line))

    def publish(self) -> None:
        """Write the JSON value now, for a command that goes on after it."""
        if self.as_json and not self._answered:
            self._answered = True
            self._write(json.dumps(self.facts, default=str))

    def _write(self, line: str) -> None:
        if self.lost is not None:
            return
        self._rest()
        try:
            print(line, flush=True)  # noqa: T201  # the result
        except OSError as error:
            self._lose(error)

    def page(self) -> Console:
        """A console that writes to stdout, for the help."""
        return _Piped(lambda: self._lose(BrokenPipeError()))

    def _lose(self, error: OSError) -> None:
        self.lost = error
        _discard_stdout()

    def finish(self, error: BaseException | None) -> Exit:
        """Say how it ended; after this nothing is said."""
        self._rest()
        if self.unknown and isinstance(error, (KeyboardInterrupt, TerminatedError)):
            error = _unknown(error, self.unknown)
        if error is not None:
            self._explain(error)
            self.facts = {"error": self._as_value(error), **self.facts}
        self.publish()
        if error is None and self.lost is not None and not isinstance(self.lost, BrokenPipeError):
            self._explain(self.lost)
        return exit_for(error or self.lost)

    # ------------------------------------------------------------ errors

    def _explain(self, error: BaseException) -> None:
        way = exit_for(error)
        if self.verbose and way.code == 1:  # elsewhere the message says all that helps
            for line in "".join(traceback.format_exception(error)).splitlines():
                self.say(line)
        for line in _lines(error):
            self.say(line)
        for line in self._hint(way).splitlines():
            self.say(line)

    def _hint(self, way: Exit) -> str:
        if way.code in self.hints:
            return self.hints[way.code]
        if "{task}" not in way.hint:
            return way.hint
        task_id = self.facts.get("task_id")
        if not task_id or self.again is None:
            return ""
        return way.hint.format(task=task_id, again=self.again)

    def _as_value(self, error: BaseException) -> dict[str, Any]:
        known = error if isinstance(error, KieError) else KieError(_message(error))
        value = {
            "type": type(error).__name__,
            "message": in_flags(known.message),
            "code": known.code,
            "task_id": known.task_id or self.facts.get("task_id"),
            "charged": known.charged,
            "retryable": known.retryable,
        }
        after = not isinstance(error, KieError) or isinstance(error, FileError)
        if self.submitted and after:  # the error itself only knows of its file
            value["charged"] = "yes"
        if isinstance(error, ManifestError):
            value |= {"faults": [attrs.asdict(fault) for fault in error.faults], "count": error.count}
        if problems := _problems(error):
            value["problems"] = [
                {"option": flag_of(each.field), "problem": each.problem, "remedy": in_flags(each.remedy)}
                for each in problems
            ]
        return value


_TOLD: dict[type[object], Callable[[Output, Any], None]] = {
    events.Submitted: lambda output, event: output.say(f"submitted: task {event.task_id}"),
    events.Polled: lambda output, event: output.doing(f"the service says {event.status} after {event.age:.0f} s"),
    events.PollFailed: lambda output, event: output.doing(f"no answer to a look, it is tried again: {event.reason}"),
    events.StageReached: lambda output, event: output.say(f"{event.stage}: {_STAGES[event.stage]}"),
    events.Retrying: lambda output, event: output.say(
        f"{event.what} is tried again in {event.delay:.1f} s: {events.clean(event.reason)}"
    ),
    events.Queued: lambda output, event: output.doing(f"waiting for a place ({event.what})"),
    events.Notice: lambda output, event: output.say(f"note: {in_flags(events.clean(event.note))}"),
    events.CallbackReceived: lambda output, event: output.hear(event),
}


def take_up(route: str, out: Path | None) -> str:
    """The options with which another command takes a task up."""
    words = [*(["--route", route] if route != "classic" else []), *(["--out", str(out)] if out else [])]
    return "".join(f" {shlex.quote(word)}" for word in words)


def callback_line(event: events.CallbackReceived) -> str:
    """A callback in a line."""
    note = f" ({event.note})" if event.note else ""
    return f"{event.task_id or 'unknown task'} {event.stage or 'unreadable'}, answered {event.status}{note}"


def _short_line(event: events.CallbackReceived) -> str:
    return f"callback: {f'refused, {event.note}' if event.status != HTTPStatus.OK else event.stage}"


def _share(done: int, total: int | None) -> str:
    return f"{done / total:.0%}" if total else f"{done / 1e6:.1f} MB"


def _problems(error: BaseException) -> tuple[Problem, ...]:
    return error.problems if isinstance(error, InvalidRequestError) else ()


def _message(error: BaseException) -> str:
    if isinstance(error, KeyboardInterrupt):
        return "stopped by Ctrl-C"
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror}: {error.filename}" if error.filename else error.strerror
    return f"{type(error).__name__}: {error}"


def _unknown(error: BaseException, count: int) -> SubmitUnknownError:
    """The error of a command that was stopped while it did not know what it had paid."""
    stopped = error.message if isinstance(error, KieError) else _message(error)
    what = "a submission was" if count == 1 else f"{count} submissions were"
    return SubmitUnknownError(f"{stopped}; {what} sent, perhaps charged, and no answer came")


def _lines(error: BaseException) -> list[str]:
    if isinstance(error, ManifestError):
        more = error.count - len(error.faults)
        told = [*map(_fault_line, error.faults), *([f"and {more} more"] if more else [])]
        return [f"error: {line}" for line in told]
    if problems := _problems(error):
        return [f"error: {flag_of(each.field)} {each.problem}; {in_flags(each.remedy)}" for each in problems]
    message = in_flags(str(error)) if isinstance(error, KieError) else _message(error)
    return f"error: {message}".splitlines()


def _fault_line(fault: Fault) -> str:
    if fault.place != "defaults":
        return with_route(str(fault))
    return f"{flag_of(fault.field)} {fault.problem}; {in_flags(fault.remedy)}"


def repair_streams() -> None:
    """Let nothing that is printed fail for its characters, nor for a stream that was closed before we began."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, Path(os.devnull).open("w", encoding="utf-8"))  # noqa: SIM115  # for good
        elif isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _discard_stdout() -> None:
    """Let what is left of stdout go nowhere, or Python would fail to write it once more when it ends."""
    with suppress(OSError, ValueError), Path(os.devnull).open("wb") as nowhere:  # a captured stdout has no number
        os.dup2(nowhere.fileno(), sys.stdout.fileno())
