"""A journal by its address: a path, or the URL of a PostgreSQL."""

from __future__ import annotations

from os import PathLike

from kie_async.journal._postgres import PostgresJournal
from kie_async.journal._protocol import Journal
from kie_async.journal._sqlite import SQLiteJournal


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
