"""What is seen on stderr while a command runs: lines, bars and a table, and a line for each event."""

from __future__ import annotations

import time
from collections.abc import Callable
from http import HTTPStatus
from typing import Any, TextIO, cast

from rich.console import Console, RenderableType
from rich.live import Live
from rich.measure import Measurement
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.text import Text

from kie_async import events
from kie_async.cli._exit_codes import with_options
from kie_async.cli._writer import OutputWriter, StderrFile

QUIET = 15.0  # seconds between two lines of mere progress where there is no terminal


class PipeConsole(Console):
    """A console that falls silent, and does not end the program, when the reader of a pipe goes away."""

    on_closed: Callable[[], None]

    def on_broken_pipe(self) -> None:
        """Fall silent."""
        self.quiet = True
        self.on_closed()


class ProgressDisplay:
    """Lines, bars and tables on stderr; where it is no terminal, a line now and then.

    Args:
        now: the clock, in seconds.

    Attributes:
        writer: writes all of it.
    """

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self.writer = OutputWriter()
        file = cast("TextIO", StderrFile(self.writer))
        self._console = Console(file=file, markup=False, emoji=False, highlight=False)
        self._now = now
        self._last_line = -QUIET
        self._live: Live | None = None
        self._begin()

    @property
    def is_animated(self) -> bool:
        """Whether stderr is a terminal that can show a bar."""
        return self._console.is_terminal and not self._console.is_dumb_terminal

    def say(self, line: str) -> None:
        """Write a line that stays."""
        self._console.print(printable(line), soft_wrap=True)  # a terminal wraps it, so that it can be copied whole
        self._last_line = self._now()

    def doing(self, text: str) -> None:
        """Say what is going on: beside the bar of a terminal, elsewhere in a line now and then."""
        if self.is_animated:
            self._bars.update(self._activity, description=printable(text))
            self._draw(self._bars)
        elif self._now() - self._last_line >= QUIET:
            self.say(text)

    def show(self, table: RenderableType, line: str) -> None:
        """Show a table that is kept up to date; where it does not fit, or there is no terminal, the line."""
        if not self.is_animated:
            self.doing(line)
            return
        unbounded = self._console.options.update(max_width=1000)
        fits = Measurement.get(self._console, unbounded, table).maximum <= self._console.width
        self._draw(table if fits else Text(line))

    def transfer(self, what: str) -> Callable[[int, int | None], None]:
        """Return what a transfer is to call with the bytes so far and in all."""
        if not self.is_animated:
            return lambda done, total: self.doing(f"{what}: {_share(done, total)}")
        bars = self._bars
        bar = bars.add_task(printable(what), total=None)
        self._draw(bars)
        return lambda done, total: bars.update(bar, completed=done, total=total)

    def stop(self) -> None:
        """Take the bars and the table away."""
        if self._live is not None:
            self._live.stop()
            self._live = None
            self._begin()

    def _begin(self) -> None:
        columns = (SpinnerColumn("line"), TextColumn("{task.description}", markup=False), BarColumn(20))
        self._bars = Progress(*columns, TimeElapsedColumn(), console=self._console)
        self._activity = self._bars.add_task("", total=None)

    def _draw(self, picture: RenderableType) -> None:
        if self._live is None:
            self._live = _Live(self.writer, self._console)
            self._live.start()
        self._live.update(picture)


class _Live(Live):
    """A picture that is drawn again and again, except while the terminal does not take what was drawn before."""

    def __init__(self, writer: OutputWriter, console: Console) -> None:
        super().__init__(console=console, transient=True, redirect_stdout=False, redirect_stderr=False)
        self._writer = writer

    def refresh(self) -> None:
        """Draw it."""
        if not self._writer.is_behind:
            super().refresh()


def _share(done: int, total: int | None) -> str:
    return f"{done / total:.0%}" if total else f"{done / 1e6:.1f} MB"


def printable(text: str) -> str:
    """A text without control characters, so that it cannot move the cursor or colour the screen."""
    return "".join(character if character.isprintable() else "�" for character in text)


# ---------------------------------------------------------------- events

# Events of these types replace each other: only the latest matters.
TRANSIENT = (events.Polled, events.PollFailed, events.Queued)

_STAGES = {
    "text": "the text is there",
    "first": "the first track is done",
    "complete": "all tracks are done",
}
_EVENT_LINES: dict[type[object], Callable[[Any], str]] = {
    events.Submitted: lambda event: f"submitted: task {event.task_id}",
    events.Polled: lambda event: f"the service says {event.status} after {event.age:.0f} s",
    events.PollFailed: lambda event: f"a poll failed and is tried again: {event.reason}",
    events.StageReached: lambda event: f"{event.stage}: {_STAGES[event.stage]}",
    events.Retrying: lambda event: f"{event.what} is tried again in {event.delay:.1f} s: {events.clean(event.reason)}",
    events.Queued: lambda _event: "waiting for a place in flight",
    events.Notice: lambda event: f"note: {with_options(events.clean(event.note))}",
    events.CallbackReceived: lambda event: (
        f"callback: {f'refused, {event.note}' if event.status != HTTPStatus.OK else event.stage}"
    ),
}


def event_line(event: events.Event) -> str | None:
    """An event in a line; None if it is not shown, or if nothing is to be done about it."""
    if isinstance(event, events.Notice) and event.topic == "raised_limit":
        return None  # such as of every song over two minutes
    text = _EVENT_LINES.get(type(event))
    return text(event) if text else None
