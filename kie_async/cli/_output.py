"""Output of one command: progress on stderr, results on stdout, or one JSON value in the place of the results.

Text from elsewhere reaches a terminal without its control characters. A closed stderr is ignored: paid work must
finish. A closed stdout is reported by the exit status, at the end. Streams that nobody reads are waited for at the end.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from io import TextIOWrapper
from pathlib import Path
from typing import Any

from rich.console import Console

from kie_async import events
from kie_async.cli._exit_codes import (
    ExitStatus,
    TerminatedError,
    UsageError,
    error_lines,
    error_value,
    exit_status,
    unknown_submissions,
    with_cap,
)
from kie_async.cli._progress import TRANSIENT, PipeConsole, ProgressDisplay, event_line, printable
from kie_async.cli._writer import PATIENCE
from kie_async.errors import UnclearError

_logger = logging.getLogger("kie_async.cli")


class Output:
    """Terminal and JSON output of one command.

    Args:
        as_json: write one JSON value to stdout and nothing else.
        words: the command line without the program's name.

    Attributes:
        display: progress, on stderr.
        value: the JSON value, written whether the command succeeds or not; its paths are written as absolute ones.
        events: how many of each type there were.
        resume: the options that another command needs to continue with the task; None: nothing can continue with it.
        hints: what to do next, by exit code, where the table of exits does not know it.
        stdout_error: why stdout cannot be written any more.
    """

    def __init__(self, *, as_json: bool, words: Sequence[str]) -> None:
        self.as_json = as_json
        self.words = words
        self.display = ProgressDisplay()
        self.value: dict[str, Any] = {}
        self.events: Counter[type[events.Event]] = Counter()
        self.resume: str | None = ""
        self.hints: Mapping[int, str] = {}
        self.stdout_error: OSError | None = None
        self._shown: set[events.Notice] = set()
        self._is_published = False

    def say(self, line: str) -> None:
        """Write a line to stderr."""
        self.display.say(line)

    def emit(self, event: events.Event) -> None:
        """Show an event of the session."""
        self.count(event)
        if isinstance(event, events.Notice) and event.topic == "cut_off":
            if event in self._shown:  # before it was paid for; it is told again when the file is uploaded
                return
            self._shown.add(event)
        if isinstance(event, events.Submitted):
            self.value["task_id"] = event.task_id
        if (line := event_line(event)) is not None:
            (self.display.doing if isinstance(event, TRANSIENT) else self.say)(line)

    def count(self, event: events.Event) -> None:
        """Log an event, and show nothing."""
        events.log_event(event)
        self.events[type(event)] += 1

    # ------------------------------------------------------------ results, on stdout

    def print(self, line: str) -> None:
        """Write a line of the result; with JSON, ``value`` holds it instead."""
        if not self.as_json:
            self._write(printable(line))

    def publish(self) -> None:
        """Write the JSON value now, for a command that goes on after it."""
        if self.as_json and not self._is_published:
            self._is_published = True
            self._write(json.dumps(self.value, default=_json_text))

    def page(self) -> Console:
        """A console that writes to stdout, for the help."""
        console = PipeConsole()
        console.on_closed = lambda: self._close(BrokenPipeError())
        return console

    def _write(self, line: str) -> None:
        if self.stdout_error is not None:
            return
        self.display.stop()
        self.display.writer.write(sys.stdout, f"{line}\n", self._close)

    def _close(self, error: OSError) -> None:
        self.stdout_error = error
        _discard_stdout()

    # ------------------------------------------------------------ the end

    def finish(self, error: BaseException | None) -> int:
        """Say how the command ended, and return its exit code."""
        self.display.stop()
        if self.events[events.SubmissionUnknown] and isinstance(error, (KeyboardInterrupt, TerminatedError)):
            error = unknown_submissions(error, self.events[events.SubmissionUnknown])
        if error is not None:
            self._explain(error)
            task_id = self.value.get("task_id")
            described = error_value(error, task_id=task_id, is_submitted=self.events[events.Submitted] > 0)
            self.value = {"error": described, **self.value}
        self.publish()
        is_stopped = isinstance(error, (KeyboardInterrupt, TerminatedError))
        with suppress(KeyboardInterrupt):  # a terminal that has stopped may never read the rest
            self.display.writer.close(PATIENCE if is_stopped else None)
        if error is None and self.stdout_error is not None and not isinstance(self.stdout_error, BrokenPipeError):
            self._explain(self.stdout_error)
        return exit_status(error or self.stdout_error).code

    def _explain(self, error: BaseException) -> None:
        status = exit_status(error)
        if status.code == 1 and not isinstance(error, UnclearError):  # for others, the message says all that helps
            _logger.debug("a fault of this program", exc_info=error)
        for line in (*error_lines(error), *self._hint(error, status).splitlines()):
            self.say(line)

    def _hint(self, error: BaseException, status: ExitStatus) -> str:
        """What to do next: as the error says, or the command, or the table of exits."""
        if notes := getattr(error, "__notes__", ()):
            return str(notes[0])
        if status.code in self.hints:
            return with_cap(self.hints[status.code], error)
        if "{task}" not in status.hint:
            return with_cap(status.hint, error)
        task_id = self.value.get("task_id")
        return "" if not task_id or self.resume is None else status.hint.format(task=task_id, options=self.resume)


def _json_text(value: object) -> str:
    return str(value.absolute() if isinstance(value, Path) else value)


# ---------------------------------------------------------------- questions


def confirm(output: Output, what: str) -> None:
    """Go on only if the user agrees, who can be asked at a terminal alone.

    Raises:
        UsageError: the user does not agree, or cannot be asked.
    """
    if not all(stream is not None and stream.isatty() for stream in (sys.stdin, sys.stderr)):
        raise UsageError(f"{what}: nothing was done; if that is meant, give --yes")
    output.say(f"{what}: go on? [y/N]")
    if _answer().strip().lower() not in {"y", "yes"}:
        raise UsageError("not agreed: nothing was done")


def _answer() -> str:
    # asyncio's handler of Ctrl-C would wait for the loop, which waits for the answer.
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        return sys.stdin.readline()
    finally:
        signal.signal(signal.SIGINT, handler)


# ---------------------------------------------------------------- streams and the log


class _LogLines(logging.Handler):
    """Writes the log line by line through the display, so that it does not tear a bar apart."""

    def __init__(self, say: Callable[[str], None]) -> None:
        super().__init__(logging.DEBUG)
        self._say = say

    def emit(self, record: logging.LogRecord) -> None:
        """Write one record."""
        for line in self.format(record).splitlines():
            self._say(line)


@contextmanager
def shown_log(display: ProgressDisplay, *, verbose: bool) -> Iterator[None]:
    """Show the log while the block lasts: all of it, or only the warnings of the journal, which concern money."""
    logger, handler = logging.getLogger("kie_async"), _LogLines(display.say)
    level = logger.level
    if verbose:
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
        logger.setLevel(logging.DEBUG)
    else:
        handler.setFormatter(logging.Formatter("note: %(message)s"))
        handler.addFilter(_is_warning_of_journal)
    logger.addHandler(handler)  # without one, Python would write warnings itself
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)


def _is_warning_of_journal(record: logging.LogRecord) -> bool:
    return record.name == "kie_async.journal" and record.levelno >= logging.WARNING


def repair_streams() -> None:
    """Let no output fail because of its characters, or because the stream was closed before the program began."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, os.fdopen(os.open(os.devnull, os.O_WRONLY), "w", encoding="utf-8"))
        elif isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _discard_stdout() -> None:
    """Send the rest of stdout nowhere, or Python would try to write it once more when it ends."""
    with suppress(OSError, ValueError), Path(os.devnull).open("wb") as nowhere:  # a captured stdout has no number
        os.dup2(nowhere.fileno(), sys.stdout.fileno())
