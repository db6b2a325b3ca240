"""What can still be read of a damaged journal file: which tasks there were.

The file is copied first and never touched. SQLite reads what it can of the copy, from both ends of each table; then
the bytes themselves are searched, for a record of an attempt or a callback is short enough to lie in one piece.
"""

from __future__ import annotations

import json
import mmap
import re
import shutil
import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path

import attrs

from kie_async.errors import StorageError

_TEXT = rb'"(?:[^"\\\x00-\x1f]|\\.){0,4096}"'
_MEMBER = rb'"[a-z_]{1,32}":(?:' + _TEXT + rb"|[-+.eE\d]{1,32}|null)"
_RECORD = re.compile(rb'\{"(?:key|token)":' + _TEXT + rb"(?:," + _MEMBER + rb"){1,12}\}")
_QUERIES = tuple(
    f"SELECT document FROM {table} ORDER BY rowid {order}"  # noqa: S608  # our own words
    for table in ("attempt", "heard")
    for order in ("ASC", "DESC")
)


@attrs.frozen(kw_only=True)
class Salvaged:
    """A submission that a damaged journal tells of.

    Attributes:
        key: the job's, if that is known.
        token: of its callback address.
        task_id: None if no answer was recorded: it may have been accepted all the same.
    """

    key: str | None = None
    token: str = attrs.field(repr=False)
    task_id: str | None = None


def salvage(path: str | Path) -> Iterator[Salvaged]:
    """Give each submission that can still be read of a journal file, however damaged; the file is not changed.

    A byte that has changed inside an id cannot be told from a right one: ask the service about each task.

    Raises:
        StorageError: there is no such file, or no room for a copy.
    """
    keys: dict[str, str] = {}
    tasks: dict[str, set[str]] = {}
    try:
        with tempfile.TemporaryDirectory(prefix="kie-salvage-") as directory:
            for record in _records(Path(path), Path(directory)):
                known = tasks.setdefault(record.token, set())
                if record.task_id is not None:
                    known.add(record.task_id)
                if record.key is not None:
                    keys[record.token] = record.key
    except OSError as error:
        raise StorageError(f"{path} cannot be read: {error.strerror}; give access or room for a copy") from error
    for token, ids in tasks.items():
        known_ids: list[str | None] = [*sorted(ids)] or [None]
        for task_id in known_ids:
            yield Salvaged(key=keys.get(token), token=token, task_id=task_id)


def _records(path: Path, directory: Path) -> Iterator[Salvaged]:
    copy = directory / "journal.db"
    shutil.copyfile(path, copy)
    log, log_copy = (file.with_name(f"{file.name}-wal") for file in (path, copy))
    if log.exists():
        shutil.copyfile(log, log_copy)
        yield from _searched(log_copy)
    yield from _searched(copy)
    yield from _queried(copy)  # last: SQLite may change the copy


def _searched(path: Path) -> Iterator[Salvaged]:
    if path.stat().st_size == 0:
        return  # nothing, and nothing that could be mapped
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        for match in _RECORD.finditer(content):
            yield from _read(match.group())


def _queried(path: Path) -> Iterator[Salvaged]:
    with closing(sqlite3.connect(path)) as connection:
        connection.text_factory = bytes  # damaged text is no reason to stop
        for query in _QUERIES:
            with suppress(sqlite3.Error):  # so far and no further, in this direction
                for (document,) in connection.execute(query):
                    yield from _read(document)


def _read(document: bytes) -> Iterator[Salvaged]:
    """A record, if it is one of an attempt or a callback. In a damaged file it may be anything, of any type."""
    try:
        facts = dict(json.loads(document))
    except (ValueError, TypeError, RecursionError):
        return
    key, token, task_id = map(facts.get, ("key", "token", "task_id"))
    if isinstance(token, str) and isinstance(key, str | None) and isinstance(task_id, str | None):
        yield Salvaged(key=key, token=token, task_id=task_id)
