"""The two journals, and how one is found by its address: a path, or the URL of a PostgreSQL."""

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
    """A journal in a file of this machine; ``Journal`` says what its methods do.

    Args:
        path: of the file; made if it is not there, its directory too. Not on a network share. It is mode 0600, for it
            holds addresses that need no password.
        process_id: the id of this process; one is made if none is given.
        patience: seconds to wait for another process that is writing.
        poll: seconds between two checks for callbacks that other processes have saved.

    Attributes:
        path: of the file, absolute.

    Raises:
        StorageError: (entering) it is no journal, damaged, of another version, or cannot be used; (leaving, and by
            ``intend``) it was moved or deleted meanwhile. A whole copy is at its path then.
    """

    def __init__(
        self, path: str | PathLike[str], *, process_id: str | None = None, patience: float = 5.0, poll: float = 0.03
    ) -> None:
        self.path = Path(path).absolute()
        super().__init__(SQLite(self.path, patience=patience, poll=poll), process_id)


class PostgresJournal(Journal):
    """A journal that many processes on many machines share; ``Journal`` says what its methods do.

    Args:
        dsn: ``postgresql://user:password@host/database``, or libpq's other form; never shown. What libpq knows may
            follow: ``?sslmode=verify-full&sslrootcert=ca.pem``, or ``?options=-csearch_path%3Dkie`` for a schema of
            its own. Through a pooler that gives connections by the transaction (pgbouncer), callbacks that other
            processes receive are found by reading twice a second; a schema of its own is then the role's
            (``ALTER ROLE kie SET search_path = kie``), for it takes no ``options``.
        process_id: the id of this process; made if none is given.
        patience: seconds for which a method goes on trying while the database is away.

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
    """Tell whether an address is of a store that many machines share."""
    return str(where).startswith(("postgresql://", "postgres://"))


def open_journal(where: str | PathLike[str]) -> Journal:
    """Return the journal at an address, to be entered with ``async with``.

    Args:
        where: the path of a SQLite file, made if absent, or ``postgresql://...`` (the extra ``cluster``).

    Raises:
        SettingsError: it is an address of another kind.
    """
    if is_shared(where):
        return PostgresJournal(str(where))
    if _OTHER_ADDRESS.match(str(where)):  # it may hold a password: it is not shown
        raise SettingsError("the journal is neither a path nor postgresql://...: give one of these")
    return SQLiteJournal(where)


def default_journal(directory: str | PathLike[str]) -> Journal:
    """Return the journal of a batch for which none is given: ``KIE_JOURNAL``, or else a file in its directory."""
    return open_journal(journal_location() or Path(directory) / DEFAULT_NAME)


async def batches_of(journal: Journal) -> list[str]:
    """Return the names of the batches that have jobs in an open journal."""
    [rows] = await journal.driver.run((BATCHES, {}))
    return [str(name) for (name,) in rows]


def batch_name(journal: Journal, directory: str | PathLike[str]) -> str:
    """Return the name of a batch for which none is given; blocks."""
    folder = Path(directory).resolve()
    is_own = isinstance(journal, SQLiteJournal) and journal.path.resolve() == folder / DEFAULT_NAME
    return OWN_BATCH if is_own else text_of(folder)


def text_of(path: Path) -> str:
    """Return a path as a journal can hold it: bytes in it that are no text are escaped."""
    return str(path).encode("utf-8", "backslashreplace").decode()
