"""Writing to stdout and stderr in a thread of its own, so that a terminal that has stopped does not stop the work."""

from __future__ import annotations

import sys
from collections.abc import Callable
from queue import Queue
from threading import Event, Lock, Thread
from typing import TextIO, TypeAlias

PATIENCE = 1.0  # seconds that a write is waited for, before the work goes on without it
_MAX_WAITING = 10_000  # texts; whoever writes more has to wait until they are read

_Text: TypeAlias = tuple[TextIO, str, Callable[[OSError], None], Event]


class OutputWriter:
    """Writes texts in their order, in a thread.

    A write is waited for as long as the streams are read. When one is not (Ctrl-S at a terminal, a pager behind a
    pipe), texts are kept until it is, and the caller goes on: what it does may be paid for, and signals have to reach
    it. The thread ends with the process, even in the middle of a write.
    """

    def __init__(self) -> None:
        self._texts: Queue[_Text | None] = Queue(_MAX_WAITING)
        self._lock = Lock()
        self._last = Event()  # set when the text that was given last is written
        self._last.set()
        self._thread: Thread | None = None

    @property
    def is_behind(self) -> bool:
        """Whether texts wait for being written."""
        return not self._last.is_set()

    def write(self, stream: TextIO, text: str, on_error: Callable[[OSError], None]) -> None:
        """Write a text; ``on_error`` is called in the thread if that fails."""
        with self._lock:
            if self._thread is None:
                self._thread = Thread(target=self._run, name="kie-async output", daemon=True)
                self._thread.start()
            was_behind, self._last = self.is_behind, Event()
            done = self._last
            self._texts.put((stream, text, on_error, done))
        if not was_behind:
            done.wait(PATIENCE)

    def close(self, timeout: float | None = None) -> None:
        """Wait until all is written, at most so many seconds, and end the thread; a later write starts another."""
        if self._last.wait(timeout) and self._thread is not None:
            self._texts.put(None)
            self._thread = None

    def _run(self) -> None:
        for stream, text, on_error, done in iter(self._texts.get, None):
            try:
                _write(stream, text)
            except OSError as error:
                on_error(error)
            done.set()


class StderrFile:
    """Stderr as a file that a console can write to through an OutputWriter; its errors are ignored.

    Args:
        writer: what writes.
    """

    def __init__(self, writer: OutputWriter) -> None:
        self._writer = writer

    @property
    def encoding(self) -> str:
        """That of stderr."""
        return sys.stderr.encoding

    def isatty(self) -> bool:
        """Whether stderr is a terminal."""
        return sys.stderr.isatty()

    def write(self, text: str) -> None:
        """Write a text."""
        self._writer.write(sys.stderr, text, lambda _error: None)

    def flush(self) -> None:
        """Do nothing: each text is flushed."""


def _write(stream: TextIO, text: str) -> None:
    """Write and flush, past the stream's buffer: Python could not end while a thread holds the lock of that."""
    raw = getattr(getattr(stream, "buffer", None), "raw", None)
    if raw is None:
        stream.write(text)
        stream.flush()
        return
    data = memoryview(text.encode(stream.encoding, stream.errors or "strict"))
    while data:
        written = raw.write(data)
        if written is None:
            raise BlockingIOError(f"{stream.name} is not blocking, and full")
        data = data[written:]
