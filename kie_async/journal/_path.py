"""The path of an open journal: whether it still leads to the open file, and what is done when it does not.

SQLite goes on writing into a file that was deleted, renamed or replaced, without an error; whoever opens the path
later finds nothing of it. So the path is checked around every write, and a whole copy is put back.
"""

from __future__ import annotations

import logging
import os
import secrets
import sqlite3
from collections.abc import Iterator
from contextlib import closing, suppress
from itertools import count
from pathlib import Path
from typing import TypeAlias

from kie_async._fsync import give_name, sync_directory
from kie_async.errors import StorageError

FileId: TypeAlias = tuple[int, int]
_State: TypeAlias = tuple[int, int, int, int]

FAILURES = (sqlite3.Error, UnicodeDecodeError)  # of a damaged file even the words of the error may be damaged

_CHECKPOINT_WAIT = 100  # milliseconds that a checkpoint waits for readers; a reader that is stopped hinders nobody

logger = logging.getLogger("kie_async.journal")


class JournalPath:
    """The path of a journal that is open. Everything is called by the thread that writes, and blocks.

    Args:
        path: of the journal.
        patience: seconds that the connection waits for others that write.

    Attributes:
        lost: what to tell whoever wants to spend, once the path has led elsewhere; it stays so.
    """

    def __init__(self, path: Path, patience: float) -> None:
        self.lost: StorageError | None = None
        self._path = path
        self._patience = patience
        self._file: FileId | None = None
        self._log: FileId | None = None
        self._copy: tuple[Path, _State | None] | None = None

    def opened(self) -> None:
        """Remember the file that was opened."""
        self._file, self._log, self.lost, self._copy = _file_id(self._path), None, None, None

    def check(self, connection: sqlite3.Connection) -> None:
        """Check that the path leads to the open file, before and after something is spent.

        Raises:
            StorageError: it does not, or did not earlier.
        """
        self._check_path(connection)
        if self.lost is not None:
            raise self.lost

    def written(self, connection: sqlite3.Connection) -> None:
        """After a write: bring it from the log into the file, and check that the path leads there.

        A copy of the file alone, without its log, then knows of everything that may have been paid.
        """
        connection.execute(f"PRAGMA busy_timeout = {_CHECKPOINT_WAIT}")
        try:
            with suppress(*FAILURES):  # it is on disk, in the log; the next write brings both into the file
                connection.execute("PRAGMA wal_checkpoint(FULL)").fetchall()
        finally:
            connection.execute(f"PRAGMA busy_timeout = {self._patience * 1000:.0f}")
        self._log = self._log or _file_id(self._log_path)
        self._check_path(connection)

    def close(self, connection: sqlite3.Connection) -> None:
        """Close the connection; bring the copy that was put back up to date first."""
        if self.lost is not None or not self._leads_here():
            self._put_back(connection)
        connection.close()
        if self.lost is not None and self._log is not None and _file_id(self._log_path) == self._log:
            for path in (self._log_path, self._path.with_name(f"{self._path.name}-shm")):
                path.unlink(missing_ok=True)  # beside another file they would be taken for its own

    @property
    def _log_path(self) -> Path:
        return self._path.with_name(f"{self._path.name}-wal")

    def _leads_here(self) -> bool:
        return _file_id(self._path) == self._file

    def _check_path(self, connection: sqlite3.Connection) -> None:
        if self.lost is None and not self._leads_here():
            self._put_back(connection)

    # ------------------------------------------------------------ the copy

    def _put_back(self, connection: sqlite3.Connection) -> None:
        what = f"the journal {self._path} was moved or deleted while it was in use, and nothing more is submitted"
        try:
            copy = self._write_copy(connection)
        except (*FAILURES, OSError) as error:
            words = (
                f"{what}; no copy could be put back ({error}): what was submitted is on record nowhere else, so do "
                "not run it again before you have looked at https://kie.ai/logs"
            )
        else:
            words = f"{what}; a whole copy was put back, so that the same command goes on and pays nothing twice"
            if copy != self._path:
                words = (
                    f"{what}; another file stands there now, which does not know what was paid, so a whole copy is at "
                    f"{copy}: give it the journal's name before anything is run again"
                )
        if self.lost is None or self.lost.message != words:
            logger.warning("%s", words)  # whoever works with it may raise another error first
        self.lost = StorageError(words, retryable=False)

    def _write_copy(self, connection: sqlite3.Connection) -> Path:
        self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        draft = self._path.with_name(f".{self._path.name}.{secrets.token_hex(4)}.new")
        try:
            os.close(os.open(draft, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
            with closing(sqlite3.connect(draft, isolation_level=None)) as target:
                connection.backup(target)
                target.execute("PRAGMA journal_mode = DELETE").fetchall()  # one file: a log of its own is not beside it
            copy = self._give_name(draft)
            sync_directory(copy.parent)
        finally:
            for end in ("", "-journal", "-wal", "-shm"):  # what SQLite keeps beside it, if it failed
                draft.with_name(f"{draft.name}{end}").unlink(missing_ok=True)
        self._copy = copy, _state(copy)
        return copy

    def _give_name(self, draft: Path) -> Path:
        """Give the copy a name: that of the one before, if nobody has written into it, or else one that is free."""
        if self._copy is not None and _state(self._copy[0]) == self._copy[1]:
            return draft.replace(self._copy[0])
        for path in self._names():
            with suppress(FileExistsError):
                give_name(draft, path)
                return path
        raise AssertionError  # pragma: no cover (names are numbered without end)

    def _names(self) -> Iterator[Path]:
        yield self._path
        for number in count(1):  # pragma: no branch  # without end
            yield self._path.with_name(f"{self._path.stem}.recovered{number}{self._path.suffix}")


def _file_id(path: Path) -> FileId | None:
    state = _state(path)
    return None if state is None else state[:2]


def _state(path: Path) -> _State | None:
    try:
        about = path.stat()
    except OSError:
        return None
    return about.st_dev, about.st_ino, about.st_mtime_ns, about.st_size
