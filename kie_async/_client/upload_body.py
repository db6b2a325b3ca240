"""A file on its way out, read in worker threads and held to the size that was announced."""

from __future__ import annotations

import os

import aiohttp
from aiohttp.abc import AbstractStreamWriter
from anyio import to_thread

from kie_async._protocol.endpoints import FilePart
from kie_async.errors import FileError, StorageError
from kie_async.events import clean

_PIECE = 1 << 18  # bytes read at once


def form(part: FilePart) -> aiohttp.FormData:
    """Return the fields that the upload host takes: ``file``, ``uploadPath``, ``fileName`` (its own documentation)."""
    fields = aiohttp.FormData()
    fields.add_field("uploadPath", part.upload_path)
    fields.add_field("fileName", part.file_name)
    fields.add_field("file", _Content(part), filename=part.file_name)
    return fields


class _Content(aiohttp.Payload):
    """The content of a file. Its size is known, so that the request has a length and is not chunked."""

    def __init__(self, part: FilePart) -> None:
        super().__init__(part, content_type="application/octet-stream")
        self._part = part
        self._size = part.size

    def decode(self, encoding: str = "utf-8", errors: str = "strict") -> str:  # noqa: ARG002  # as the base class
        """Refuse: a file of audio is no text."""
        raise TypeError("a file of audio is no text")

    async def write(self, writer: AbstractStreamWriter) -> None:
        """Send the file, and report how much of it was sent."""
        part, sent = self._part, 0
        while sent < part.size:
            piece = await to_thread.run_sync(_read, part, sent)
            await writer.write(piece)
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
