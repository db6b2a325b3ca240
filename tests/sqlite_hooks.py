"""A look at what SQLite is asked, for tests that must come in between."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from typing import Any

import pytest

OnExecute = Callable[[sqlite3.Connection, str], object]


def hook(monkeypatch: pytest.MonkeyPatch, on_execute: OnExecute) -> list[sqlite3.Connection]:
    """Call a function before each statement of each connection that is made from now on; give those connections.

    If it returns statements, these are run instead.
    """
    connect, made = sqlite3.connect, list[sqlite3.Connection]()

    class Connection(sqlite3.Connection):
        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **options)
            made.append(self)

        def execute(self, statement: str, *values: Any) -> sqlite3.Cursor:
            instead = on_execute(self, statement)
            return super().execute(instead) if isinstance(instead, str) else super().execute(statement, *values)

        def executescript(self, script: str) -> sqlite3.Cursor:
            instead = on_execute(self, script)
            return super().executescript(instead if isinstance(instead, str) else script)

    def connecting(*arguments: Any, **options: Any) -> Any:
        return connect(*arguments, **{"factory": Connection, "check_same_thread": False, **options})

    monkeypatch.setattr(sqlite3, "connect", connecting)
    return made


def ask(connection: sqlite3.Connection, statement: str) -> Any:
    """What a statement gives, unnoticed."""
    return sqlite3.Connection.execute(connection, statement).fetchone()[0]
