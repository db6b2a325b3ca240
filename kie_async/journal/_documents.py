"""Values as text in a database, and back."""

from __future__ import annotations

from typing import TypeVar

from kie_async._protocol.wire import unpack
from kie_async.errors import BadResponseError, StorageError

T = TypeVar("T")


def unpack_document(document: str, kind: type[T]) -> T:
    """Read a value that ``pack`` has written.

    Raises:
        StorageError: it is something else.
    """
    try:
        return unpack(document, kind)
    except BadResponseError as error:
        raise damaged(error.message) from None


def damaged(how: str) -> StorageError:
    """The error of rows that are not what was written."""
    return StorageError(f"the journal is damaged ({how}): put back a copy before anything is run", retryable=False)
