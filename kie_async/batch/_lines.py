"""``results.jsonl``: a line per end of a job, written once and whole, by any number of processes. Everything blocks.

A line that a crash has torn is taken away before the next is written. That a line is there already can only be a
matter of the last moments before a crash, so only the end of the file is looked at.
"""

from __future__ import annotations

import errno
import json
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, TypeAlias, cast

import attrs

from kie_async._fsync import sync_directory
from kie_async.errors import StorageError
from kie_async.files._part import lock

TAIL = 1 << 20  # bytes that are looked at; a line has some hundreds
_MAX_KNOWN = 10_000
_PATIENCE = 30.0  # seconds for another process to write its line
_FLAGS = os.O_RDWR | os.O_CREAT | os.O_APPEND | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)

Mark: TypeAlias = tuple[object, object, object]  # key, attempt, state: what makes an end one of its own


@attrs.define
class Lines:
    """The file, opened anew for each line: it may have been moved away meanwhile."""

    path: Path
    _known: dict[Mark, None] = attrs.field(factory=dict, init=False)
    _file_id: tuple[int, int] | None = attrs.field(default=None, init=False)
    _read_to: int = attrs.field(default=0, init=False)
    _alone: threading.Lock = attrs.field(factory=threading.Lock, init=False)

    def append(self, mark: Mark, line: bytes) -> bool:
        """Write a line, durably, and tell whether it was new."""
        with self._alone, self._opened() as file:
            size = self._catch_up(file)
            if mark in self._known:
                return False
            try:
                _write(file, line)
            except BaseException:
                file.truncate(size)
                raise
            self._read_to = size + len(line)
            self._remember(mark)
            return True

    def written(self) -> float:
        """When the file was last written to, in unix seconds; 0 if there is none."""
        try:
            return self.path.stat().st_mtime
        except FileNotFoundError:
            return 0.0

    @contextmanager
    def _opened(self) -> Iterator[BinaryIO]:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        is_new = not self.path.exists()
        number = os.open(self.path, _FLAGS, 0o666)
        with cast("BinaryIO", os.fdopen(number, "r+b", buffering=0)) as file:
            if is_new:
                sync_directory(self.path.parent)
            self._lock(number)
            yield file

    def _lock(self, number: int) -> None:
        deadline = time.monotonic() + _PATIENCE
        while True:
            try:
                lock(number)
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise StorageError(f"{self.path.name} is held by another process: end it") from None
                time.sleep(0.01)
            else:
                return

    def _catch_up(self, file: BinaryIO) -> int:
        """Take note of the lines that came since the last time, mend the end, and return the size."""
        about = os.fstat(file.fileno())
        file_id = about.st_dev, about.st_ino
        if file_id != self._file_id or about.st_size < self._read_to:
            self._file_id, self._read_to = file_id, 0
            self._known.clear()
        start = max(self._read_to, about.st_size - TAIL)
        file.seek(start)
        tail = file.read(about.st_size - start)
        for text in tail.splitlines():
            if (mark := _mark(text)) is not None:
                self._remember(mark)
        self._read_to = _mend(file, start, tail)
        return self._read_to

    def _remember(self, mark: Mark) -> None:
        self._known[mark] = None
        if len(self._known) > _MAX_KNOWN:
            del self._known[next(iter(self._known))]


def _write(file: BinaryIO, line: bytes) -> None:
    if file.write(line) < len(line):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    os.fsync(file.fileno())


def _mark(line: bytes) -> Mark | None:
    """What a line is about; None if it is torn, or no line of ours."""
    try:
        value = json.loads(line)
        mark = value["key"], value["attempt"], value["state"]
        hash(mark)
    except (ValueError, TypeError, KeyError, RecursionError):
        return None
    return mark


def _mend(file: BinaryIO, start: int, tail: bytes) -> int:
    """Take a torn line away, end a whole one that lacks its end, and return the size."""
    size = start + len(tail)
    if not tail or tail.endswith(b"\n"):
        return size
    last = tail.rfind(b"\n") + 1
    if _mark(tail[last:]) is None and (last or start == 0):
        file.truncate(start + last)
        return start + last
    return size + file.write(b"\n")
