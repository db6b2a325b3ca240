"""A journal by its address: a path, or the URL of a PostgreSQL."""

from __future__ import annotations

from os import PathLike
from pathlib import Path

from kie_async.journal._postgres import PostgresJournal
from kie_async.journal._protocol import Journal
from kie_async.journal._sqlite import SQLiteJournal
from kie_async.settings import journal_location

DEFAULT_NAME = "kie-async.sqlite"  # of the file in the directory of a batch, for the command and the library
OWN_BATCH = "batch"  # the name of the batch in that file, so that the directory may be moved


def is_shared(where: str | PathLike[str]) -> bool:
    """Tell whether an address is of a store that many machines share."""
    return str(where).startswith(("postgresql://", "postgres://"))


def open_journal(where: str | PathLike[str]) -> Journal:
    """Return the journal at an address, to be entered with ``async with``.

    Args:
        where: the path of a SQLite file, made if absent, or ``postgresql://...`` (the extra ``cluster``).
    """
    if is_shared(where):
        return PostgresJournal(str(where))
    return SQLiteJournal(where)


def default_journal(directory: str | PathLike[str]) -> Journal:
    """Return the journal of a batch for which none is given: ``KIE_JOURNAL``, or else a file in its directory."""
    return open_journal(journal_location() or Path(directory) / DEFAULT_NAME)


def batch_name(journal: Journal, directory: str | PathLike[str]) -> str:
    """Return the name of a batch for which none is given; blocks."""
    place = Path(directory).resolve()
    is_own = isinstance(journal, SQLiteJournal) and journal.path.resolve() == place / DEFAULT_NAME
    return OWN_BATCH if is_own else str(place)
