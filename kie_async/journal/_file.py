"""The file of a SQLite journal: made whole or not at all, checked when opened, never made anew over another.

What SQLite says is put into words that tell what to do.
"""

from __future__ import annotations

import errno
import os
import secrets
import sqlite3
from collections.abc import Mapping
from contextlib import closing, suppress
from pathlib import Path

from kie_async._fsync import give_name, sync_directory
from kie_async.errors import StorageError
from kie_async.journal import _sql
from kie_async.journal._path import FAILURES

_APPLICATION = int.from_bytes(b"kiej")
_SCHEMA = _sql.SCHEMA.format(position="integer PRIMARY KEY AUTOINCREMENT")
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
    try:
        if not os.path.lexists(path):
            _make(path, patience)
        connection = connect(path, patience)
        try:
            _check(connection, path)
        except BaseException:
            connection.close()
            raise
    except OSError as error:
        raise StorageError(
            f"the journal {path} cannot be opened: {error.strerror}; give access or use a local disk"
        ) from error
    except FAILURES as error:
        raise explain(path, error) from error
    return connection


def connect(path: Path, patience: float) -> sqlite3.Connection:
    """Open a connection to a journal that is there.

    Raises:
        StorageError: it is no journal, or of another version.
        sqlite3.Error: it cannot be opened.
    """
    connection = _attach(path, patience)
    try:
        _identify(connection, path)
        _prepare(connection)
    except BaseException:
        connection.close()
        raise
    return connection


def _attach(path: Path, patience: float) -> sqlite3.Connection:
    return sqlite3.connect(f"{path.as_uri()}?mode=rw", uri=True, timeout=patience, isolation_level=None)


def _identify(connection: sqlite3.Connection, path: Path) -> None:
    """See that it is a journal, before anything of it is changed.

    By SQLite alone: to open and close the file beside it would give up the locks of this process's other connections.
    """
    if not path.stat().st_size:  # SQLite would take it for a new database
        raise damaged(path, "the file is empty")
    (application,) = connection.execute("PRAGMA application_id").fetchone()
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if application != _APPLICATION:
        raise damaged(path, "it is a database of something else")
    if version != _sql.VERSION:
        raise StorageError(
            f"the journal {path} is of version {version}, and this kie_async knows version {_sql.VERSION}: "
            "finish its jobs with the kie_async that made it, or use another file",
            retryable=False,
        )


def _prepare(connection: sqlite3.Connection) -> None:
    _set_safe(connection)
    _use_log(connection)


def _set_safe(connection: sqlite3.Connection) -> None:
    for pragma in ("synchronous = FULL", "fullfsync = ON", "cell_size_check = ON", "trusted_schema = OFF"):
        connection.execute(f"PRAGMA {pragma}")


def _use_log(connection: sqlite3.Connection) -> None:
    (mode,) = connection.execute("PRAGMA journal_mode = WAL").fetchone()
    if mode != "wal":
        raise OSError(errno.EOPNOTSUPP, "its disk cannot hold a log that processes share")


def _make(path: Path, patience: float) -> None:
    """Make it beside, whole, and give it its name only then: an empty file there is a loss, and never a beginning."""
    log = path.with_name(f"{path.name}-wal")
    if log.exists() and log.stat().st_size and not os.path.lexists(path):  # asked last: another may make it now
        raise damaged(path, f"the file is gone, but its log {log.name} is there")
    for directory in reversed([each for each in path.parents if not each.exists()]):
        directory.mkdir(mode=0o700, exist_ok=True)
    draft = path.with_name(f".{path.name}.{secrets.token_hex(4)}.new")
    try:
        os.close(os.open(draft, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
        with closing(_attach(draft, patience)) as connection:
            _write_tables(connection)
        with suppress(FileExistsError):  # another process was quicker
            give_name(draft, path)
        sync_directory(path.parent)
    finally:
        for each in (draft, *path.parent.glob(f"{draft.name}-*")):  # what SQLite keeps beside it, if it failed
            each.unlink(missing_ok=True)


def _write_tables(connection: sqlite3.Connection) -> None:
    """Write all into the file itself, and let it use a log only then.

    A log is brought into its file when the connection closes, and SQLite does not tell if that fails.
    """
    _set_safe(connection)
    connection.executescript(f"BEGIN; {_SCHEMA} COMMIT;")
    connection.execute(f"PRAGMA application_id = {_APPLICATION}")
    connection.execute(f"PRAGMA user_version = {_sql.VERSION}")
    _use_log(connection)


def _check(connection: sqlite3.Connection, path: Path) -> None:
    """Check the file throughout, unless it is huge: then what is damaged shows itself when it is read."""
    _check_schema(connection, path)
    if path.stat().st_size > _THOROUGH:
        return
    (verdict,) = connection.execute("PRAGMA integrity_check(1)").fetchone()
    if verdict != "ok":
        raise damaged(path, " ".join(str(verdict).split()))
    for statement in _sql.ALL_ROWS:
        if not all(map(_sql.is_intact, connection.execute(statement))):
            raise damaged(path, "a row is not what was written")


def _check_schema(connection: sqlite3.Connection, path: Path) -> None:
    statement = "SELECT type, name, tbl_name, sql FROM sqlite_master ORDER BY name"
    with closing(sqlite3.connect(":memory:")) as model:
        model.executescript(_SCHEMA)
        if connection.execute(statement).fetchall() != model.execute(statement).fetchall():
            raise damaged(path, "its tables are not as they were made")
