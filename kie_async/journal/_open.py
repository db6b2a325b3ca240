"""The two kinds of journal, and how to open one by its address: a path, or the URL of a PostgreSQL database."""

from __future__ import annotations

import re
from os import PathLike
from pathlib import Path

from kie_async.errors import SettingsError
from kie_async.journal._journal import Journal
from kie_async.journal._sql import BATCHES
from kie_async.journal._sqlite import SQLite
from kie_async.settings import Secret, journal_location

DEFAULT_NAME = "kie-async.sqlite"  # of the file in the directory of a batch, for the command and the library
# The name of a batch that its directory does not name: the one in that file, so that the directory may be moved, and
# what is enqueued without a directory, for a batch without a name would be taken for tasks of plain sessions.
OWN_BATCH = "batch"
# A URL, misspelt or not, and libpq's other form, "host=db dbname=kie": as a path it would be a new, empty journal.
_OTHER_ADDRESS = re.compile(
    r".*://|\s*(?:postgres(?:ql)?:|(?:host|hostaddr|port|dbname|user|password|service)\s*=)", re.IGNORECASE | re.DOTALL
)


class SQLiteJournal(Journal):
    """A journal in a file, for the processes of one machine. ``Journal`` describes the methods.

    Args:
        path: the path of the file; created if absent, with its directory. It must not be on a network share. Its mode
            is 0600, because it holds addresses that work without a password.
        process_id: the id of this process; by default a random one.
        patience: how many seconds to wait while another process writes.
        poll: seconds between two checks for callbacks that other processes have saved.

    Attributes:
        path: the absolute path of the file.

    Raises:
        StorageError: when it is opened: the file is not a journal, damaged, of another version, or cannot be used. When
            it is closed, and from ``intend``: the file was moved or deleted; then a whole copy is at its path.
    """

    def __init__(
        self, path: str | PathLike[str], *, process_id: str | None = None, patience: float = 5.0, poll: float = 0.03
    ) -> None:
        self.path = Path(path).absolute()
        super().__init__(SQLite(self.path, patience=patience, poll=poll), process_id)


class PostgresJournal(Journal):
    """A journal in PostgreSQL, for processes on any number of machines. ``Journal`` describes the methods.

    Args:
        dsn: ``postgresql://user:password@host/database``, or libpq's other form; it is never shown. Options of libpq
            may follow, such as ``?sslmode=verify-full&sslrootcert=ca.pem``, or ``?options=-csearch_path%3Dkie`` for a
            schema of its own. Behind pgbouncer in transaction mode, callbacks that other processes receive are read
            twice a second, because notifications do not come through; and since pgbouncer takes no ``options``, a
            schema of its own is set for the role (``ALTER ROLE kie SET search_path = kie``).
        process_id: the id of this process; by default a random one.
        patience: for how many seconds a method retries while the database cannot be reached.

    Raises:
        SettingsError: the address cannot be used, or the extra ``cluster`` is not installed.
    """

    spans_machines = True

    def __init__(self, dsn: str | Secret, *, process_id: str | None = None, patience: float = 10.0) -> None:
        try:
            from kie_async.journal._postgres import Postgres  # an extra: the library works without it
        except ImportError as error:
            raise SettingsError(f'PostgreSQL needs an extra: pip install "kie_async[cluster]" ({error})') from None
        super().__init__(Postgres(dsn, patience=patience), process_id)


def is_shared(where: str | PathLike[str]) -> bool:
    """Tell whether an address is that of a journal that several machines can share."""
    return str(where).startswith(("postgresql://", "postgres://"))


def open_journal(where: str | PathLike[str]) -> Journal:
    """Return the journal at an address; open it with ``async with``.

    Args:
        where: the path of a SQLite file, created if absent, or ``postgresql://...`` (the extra ``cluster``).

    Raises:
        SettingsError: it is an address of another kind, or the extra ``cluster`` is not installed.
    """
    if is_shared(where):
        return PostgresJournal(str(where))
    if _OTHER_ADDRESS.match(str(where)):  # it may hold a password: it is not shown
        raise SettingsError("the journal is neither a path nor postgresql://...: give one of these")
    return SQLiteJournal(where)


def default_journal(directory: str | PathLike[str]) -> Journal:
    """Return the default journal of a batch: ``KIE_JOURNAL``, or else a file in its directory."""
    return open_journal(journal_location() or Path(directory) / DEFAULT_NAME)


async def batches_of(journal: Journal) -> list[str]:
    """Return the names of the batches that have jobs in an open journal."""
    [rows] = await journal.driver.run((BATCHES, {}))
    return [str(name) for (name,) in rows]


def batch_name(journal: Journal, directory: str | PathLike[str]) -> str:
    """Return the default name of a batch; blocks."""
    folder = Path(directory).resolve()
    is_own = isinstance(journal, SQLiteJournal) and journal.path.resolve() == folder / DEFAULT_NAME
    return OWN_BATCH if is_own else text_of(folder)


def text_of(path: Path) -> str:
    """Return a path as a journal can hold it: bytes in it that are no text are escaped."""
    return str(path).encode("utf-8", "backslashreplace").decode()
