"""The file of a SQLite journal: made whole or not at all, checked when opened, never made anew over another.

An error of SQLite becomes one that says what to do.
"""

from __future__ import annotations

import errno
import logging
import os
import secrets
import shlex
import sqlite3
import time
from collections.abc import Container, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import TypeAlias

from kie_async._fsync import give_name, sync_directory
from kie_async.errors import StorageError
from kie_async.journal._schema import MIGRATIONS, VERSION, ensure_unused, migrations, totals_error, version_error
from kie_async.journal._sql import ALL_ROWS, LIVING, is_intact
from kie_async.journal._totals import REBUILD, WRONG

_APPLICATION = int.from_bytes(b"kiej")
_THOROUGH = 8 * 2**20  # bytes up to which a file is checked throughout when opened: some 0.2 s

_Words = tuple[str, bool]  # what happened and what to do; whether the same call may succeed later
_WORDS: Mapping[int, _Words] = {
    sqlite3.SQLITE_BUSY: ("is kept busy by another process: wait until that is done", True),
    sqlite3.SQLITE_LOCKED: ("is kept busy by another process: wait until that is done", True),
    sqlite3.SQLITE_FULL: ("finds no room on its disk: make room", True),
    sqlite3.SQLITE_IOERR: ("has a disk that fails or is full: see to the disk", True),
    sqlite3.SQLITE_READONLY: ("may not be written: give access to it and its directory", True),
    sqlite3.SQLITE_PERM: ("may not be written: give access to it and its directory", True),
    sqlite3.SQLITE_CANTOPEN: ("cannot be opened: give access to it and its directory", True),
}
_DAMAGED = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_ERROR)  # the last: our words are right
FileId: TypeAlias = tuple[int, int]
_State: TypeAlias = tuple[int, int, int, int]

FAILURES = (sqlite3.Error, UnicodeDecodeError)  # of a damaged file even the words of the error may be damaged

_CHECKPOINT_WAIT = 100  # milliseconds that a checkpoint waits for readers; a reader that is stopped hinders nobody

logger = logging.getLogger("kie_async.journal")


def explain(path: Path, error: Exception) -> StorageError:
    """Say what an error of SQLite means for the journal at this path."""
    # What has no code comes of bytes that are no text. Of a code, the upper bits are details.
    code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_CORRUPT) & 0xFF
    if code in _DAMAGED:
        return damaged(path, str(error))
    words, retryable = _WORDS.get(code, (f"cannot be used: {error}", False))
    return StorageError(f"the journal {path} {words}", retryable=retryable)


def damaged(path: Path, how: str) -> StorageError:
    """The error of a file that cannot be trusted any more."""
    return StorageError(
        f"the journal {path} is damaged ({how}): nothing was changed. Put back a copy. If there is none, look at "
        "https://kie.ai/logs for the tasks that it held before anything is run again, and take in those that the "
        "results name by 'kie-async jobs adopt'",
        retryable=False,
    )


def open_file(path: Path, patience: float) -> sqlite3.Connection:
    """Open the journal for writing; make it if it is not there.

    Args:
        path: absolute.
        patience: seconds to wait for other processes that write.

    Raises:
        StorageError: it is no journal, damaged, of another version, or the disk refused.
    """
    with _explained(path):
        if not os.path.lexists(path):
            _make(path, patience)
        connection = _attach(path, patience)
        try:
            _identify(connection, path, (VERSION,))
            _set_safe(connection)
            _use_log(connection)
            _check(connection, path)
            if not _is_huge(path):
                check_totals(connection, path)
        except BaseException:
            connection.close()
            raise
    return connection


def upgrade_file(path: Path, patience: float) -> int:
    """Bring the tables of an older version to the newest, in one transaction, and return the version they had.

    Raises:
        StorageError: as by ``open_file``; a process is at work on it; or it is of a version that cannot be upgraded.
    """
    with _explained(path), closing(_attach(path, patience)) as connection:
        _identify(connection, path, MIGRATIONS)
        _set_safe(connection)
        with transaction(connection):
            version = _identify(connection, path, MIGRATIONS)  # another process may have upgraded it
            _check(connection, path, version)
            ensure_unused(f"the journal {path}", connection.execute(LIVING, {"now": time.time()}).fetchall())
            if version != VERSION:
                for statement in migrations(version).split(";"):  # a script would commit what is open
                    connection.execute(statement)
                connection.execute(f"PRAGMA user_version = {VERSION}")
            for statement in REBUILD:
                connection.execute(statement)
    return version


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StorageError(
            f"the journal {path} cannot be opened: {error.strerror}; give access or use a local disk"
        ) from error
    except FAILURES as error:
        raise explain(path, error) from error


@contextmanager
def transaction(connection: sqlite3.Connection) -> Iterator[None]:
    """Run statements as one transaction, which is committed or rolled back."""
    connection.execute("BEGIN IMMEDIATE")
    with connection:
        yield


def _attach(path: Path, patience: float) -> sqlite3.Connection:
    return sqlite3.connect(f"{path.as_uri()}?mode=rw", uri=True, timeout=patience, isolation_level=None)


def _identify(connection: sqlite3.Connection, path: Path, versions: Container[int]) -> int:
    """Check that it is a journal of one of these versions before anything in it is changed; return its version.

    Only SQLite reads the file: to open and close it beside would release the locks of this process's other connections.
    """
    if not path.stat().st_size:  # SQLite would take it for a new database
        raise damaged(path, "the file is empty")
    (application,) = connection.execute("PRAGMA application_id").fetchone()
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if application != _APPLICATION:
        raise damaged(path, "it is a database of something else")
    if version not in versions:
        raise version_error(f"the journal {path}", version, shlex.quote(str(path)))
    return int(version)


def _set_safe(connection: sqlite3.Connection) -> None:
    for pragma in ("synchronous = FULL", "fullfsync = ON", "cell_size_check = ON", "trusted_schema = OFF"):
        connection.execute(f"PRAGMA {pragma}")


def _use_log(connection: sqlite3.Connection) -> None:
    (mode,) = connection.execute("PRAGMA journal_mode = WAL").fetchone()
    if mode != "wal":
        raise OSError(errno.EOPNOTSUPP, "its disk cannot hold a log that processes share")


def _make(path: Path, patience: float) -> None:
    """Make a whole file beside it, and then give that its name: an empty file of this name is always a damaged one."""
    log = path.with_name(f"{path.name}-wal")
    if log.exists() and log.stat().st_size and not os.path.lexists(path):  # asked last: another may make it now
        raise damaged(path, f"the file is gone, but its log {log.name} is there")
    for directory in reversed([each for each in path.parents if not each.exists()]):
        directory.mkdir(mode=0o700, exist_ok=True)
    with _draft_of(path) as draft:
        with closing(_attach(draft, patience)) as connection:
            _write_tables(connection)
        with suppress(FileExistsError):  # another process was quicker
            give_name(draft, path)
        sync_directory(path.parent)


@contextmanager
def _draft_of(path: Path) -> Iterator[Path]:
    """Make an empty file beside a path, for SQLite to fill; only this user can read it. At the end no draft is left."""
    draft = path.with_name(f".{path.name}.{secrets.token_hex(4)}.new")
    try:
        os.close(os.open(draft, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
        yield draft
    finally:
        for end in ("", "-journal", "-wal", "-shm"):  # what SQLite keeps beside it, if it failed
            draft.with_name(f"{draft.name}{end}").unlink(missing_ok=True)


def _tables(version: int) -> str:
    return migrations(to=version).format(position="integer PRIMARY KEY AUTOINCREMENT")


def _write_tables(connection: sqlite3.Connection) -> None:
    """Write the tables into the file itself, before it begins to use a log.

    A log is brought into its file when the connection closes, and SQLite does not tell if that fails.
    """
    _set_safe(connection)
    connection.executescript(f"BEGIN; {_tables(VERSION)} COMMIT;")
    connection.execute(f"PRAGMA application_id = {_APPLICATION}")
    connection.execute(f"PRAGMA user_version = {VERSION}")
    _use_log(connection)


def _check(connection: sqlite3.Connection, path: Path, version: int = VERSION) -> None:
    """Check the whole file, unless it is huge: then damage is found when a row is read."""
    _check_schema(connection, path, version)
    if _is_huge(path):
        return
    (verdict,) = connection.execute("PRAGMA integrity_check(1)").fetchone()
    if verdict != "ok":
        raise damaged(path, " ".join(str(verdict).split()))
    for statement in ALL_ROWS:
        if not all(map(is_intact, connection.execute(statement))):
            raise damaged(path, "a row is not what was written")


def check_totals(connection: sqlite3.Connection, path: Path) -> None:
    """Check that the totals are what the jobs have cost.

    Raises:
        StorageError: they are not.
    """
    if wrong := connection.execute(WRONG).fetchall():
        raise totals_error(f"the journal {path}", len(wrong), shlex.quote(str(path)))


def _is_huge(path: Path) -> bool:
    return path.stat().st_size > _THOROUGH


def _check_schema(connection: sqlite3.Connection, path: Path, version: int) -> None:
    statement = "SELECT type, name, tbl_name, sql FROM sqlite_master ORDER BY name"
    with closing(sqlite3.connect(":memory:")) as model:
        model.executescript(_tables(version))
        if connection.execute(statement).fetchall() != model.execute(statement).fetchall():
            raise damaged(path, "its tables are not as they were made")


# ---------------------------------------------------------------- the path of an open journal


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
        with _draft_of(self._path) as draft:
            with closing(sqlite3.connect(draft, isolation_level=None)) as target:
                connection.backup(target)
                target.execute("PRAGMA journal_mode = DELETE").fetchall()  # one file: a log of its own is not beside it
            copy = self._give_name(draft)
            sync_directory(copy.parent)
        self._copy = copy, _state(copy)
        return copy

    def _give_name(self, draft: Path) -> Path:
        """Give the copy a name: that of the one before, if nobody has written into it, or else one that is free."""
        if self._copy is not None and _state(self._copy[0]) == self._copy[1]:
            return draft.replace(self._copy[0])
        path, number = self._path, 0
        while True:
            with suppress(FileExistsError):
                give_name(draft, path)
                return path
            number += 1
            path = self._path.with_name(f"{self._path.stem}.recovered{number}{self._path.suffix}")


def _file_id(path: Path) -> FileId | None:
    state = _state(path)
    return None if state is None else state[:2]


def _state(path: Path) -> _State | None:
    try:
        about = path.stat()
    except OSError:
        return None
    return about.st_dev, about.st_ino, about.st_mtime_ns, about.st_size
