"""The body of an upload: the fields that the host takes, and the content of the file, piece by piece."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator

import aiohttp
from aiohttp.payload import AsyncIterablePayload

from kie_async._protocol.endpoints import FilePart
from kie_async.errors import FileError, StorageError
from kie_async.events import clean

_PIECE = 1 << 18  # bytes read at once


def upload_form(part: FilePart) -> aiohttp.FormData:
    """Return the fields that the upload host takes: ``file``, ``uploadPath``, ``fileName`` (its own documentation)."""
    fields = aiohttp.FormData()
    fields.add_field("uploadPath", part.upload_path)
    fields.add_field("fileName", part.file_name)
    fields.add_field("file", _Content(part), filename=part.file_name)
    return fields


class _Content(AsyncIterablePayload):
    """The content of a file. Its size is known, so that the request has a length and is not chunked."""

    def __init__(self, part: FilePart) -> None:
        super().__init__(_pieces(part))
        self._size = part.size


async def _pieces(part: FilePart) -> AsyncGenerator[bytes]:
    """Give the content of a file, and report how much of it was sent."""
    sent = 0
    while sent < part.size:
        piece = await asyncio.to_thread(_read, part, sent)
        yield piece
        sent += len(piece)
        if part.on_bytes is not None:
            part.on_bytes(sent)


def _read(part: FilePart, start: int) -> bytes:
    """Read a piece; blocks. The file is opened for each, so that none is left open whenever a call is cancelled.

    Raises:
        FileError: the file has no longer the size that was announced.
        StorageError: it cannot be read.
    """
    wanted = min(_PIECE, part.size - start)
    try:
        with part.path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            file.seek(start)
            piece = file.read(wanted)
    except OSError as error:
        message = f"{clean(part.path.name)} could not be read: {error.strerror}; give access to it"
        raise StorageError(message, retryable=False) from None
    if size != part.size or len(piece) < wanted:
        raise FileError(f"{clean(part.path.name)} changed while it was sent: try again when it is finished")
    return piece
