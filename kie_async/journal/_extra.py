"""The door to PostgreSQL: what lies behind it needs the extra ``cluster``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kie_async.errors import SettingsError
from kie_async.settings import Secret

if TYPE_CHECKING:
    from kie_async.journal._database import Database


def database(dsn: str | Secret, *, connections: int, patience: float) -> Database:
    """Make the way to a database, without opening it; see ``Database``.

    Raises:
        SettingsError: the address cannot be used, or the extra is not installed.
    """
    try:
        from kie_async.journal._database import Database  # noqa: PLC0415  # an extra: the library works without it
    except ImportError as error:
        raise SettingsError(f'PostgreSQL needs an extra: pip install "kie_async[cluster]" ({error})') from None
    return Database(dsn, connections=connections, patience=patience)
