"""What stands between a client and a PostgreSQL: pgbouncer, where it is installed, and a relay of our own.

The relay behaves as a pooler does where that matters, on every machine: it may swallow notifications, and speak TLS.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
import ssl
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from urllib.parse import urlsplit

import attrs
import pytest
from postgres import PATIENCE, Server
from service import reserved_port

PGBOUNCER = shutil.which("pgbouncer", path=f"{os.environ.get('PATH', '')}:/usr/sbin")  # where Debian puts it
_CONFIGURATION = """
[databases]
* = host={socket} user=postgres
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {port}
unix_socket_dir =
auth_type = any
pool_mode = transaction
default_pool_size = 3
"""
_TLS_REQUEST = (80877103).to_bytes(4, "big")


def through(port: int, url: str, query: str = "") -> str:
    """The address of a database, reached by another port."""
    return f"postgresql://postgres:SESAME@127.0.0.1:{port}{urlsplit(url).path}{query}"


@contextmanager
def pgbouncer(server: Server, settings: str = "") -> Iterator[int]:
    """Run pgbouncer in transaction mode, and give its port. It refuses to be root: it runs as the server does."""
    if PGBOUNCER is None:
        pytest.skip("pgbouncer is not installed")
    with reserved_port() as port, tempfile.NamedTemporaryFile("w", suffix=".ini") as file:
        file.write(_CONFIGURATION.format(socket=server.socket, port=port) + settings)
        file.flush()
        Path(file.name).chmod(0o644)
        user = ["-u", server.user] if server.user else []
        with subprocess.Popen([PGBOUNCER, "-q", *user, file.name], stderr=subprocess.DEVNULL) as process:  # noqa: S603  # our own
            try:
                _wait_for(port)
                yield port
            finally:
                process.terminate()


def _wait_for(port: int) -> None:
    deadline = time.monotonic() + PATIENCE
    while True:
        with suppress(OSError):
            socket.create_connection(("127.0.0.1", port)).close()
            return
        assert time.monotonic() < deadline
        time.sleep(0.02)


@attrs.define(eq=False)
class Relay:
    """Passes on what a client and a server say.

    Attributes:
        path: of the server's socket.
        swallows: the notifications.
        tls: how to speak TLS; None: not at all.
    """

    path: str
    swallows: bool = False
    tls: ssl.SSLContext | None = None
    _serving: set[asyncio.Task[None]] = attrs.field(factory=set)

    @asynccontextmanager
    async def open(self) -> AsyncIterator[int]:
        """Serve, and give the port."""
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        try:
            yield server.sockets[0].getsockname()[1]
        finally:
            server.close()
            for task in self._serving:
                task.cancel()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._serving.add(task)
        inner: asyncio.StreamWriter | None = None
        try:
            head = await reader.readexactly(8)
            if head[4:] == _TLS_REQUEST:
                writer.write(b"N" if self.tls is None else b"S")
                if self.tls is not None:
                    await writer.start_tls(self.tls)
                head = await reader.readexactly(8)
            answers, inner = await asyncio.open_unix_connection(self.path)
            inner.write(head)
            await asyncio.gather(_pipe(reader, inner), self._answer(answers, writer))
        except (OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass  # the other side is gone, or the test is over
        finally:
            self._serving.discard(task)
            writer.close()
            if inner is not None:
                inner.close()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            kind, length = await reader.readexactly(1), await reader.readexactly(4)
            body = await reader.readexactly(int.from_bytes(length, "big") - 4)
            if kind == b"K":  # the number of the server's process: a pooler tells one of its own
                body = bytes(4) + body[4:]
            if kind != b"A" or not self.swallows:
                writer.write(kind + length + body)
                await writer.drain()


async def _pipe(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(65536):
        writer.write(data)
        await writer.drain()
    writer.close()
