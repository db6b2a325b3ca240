"""The leases that a process holds in a journal, and how to tell that a process is dead."""

from __future__ import annotations

import os
import secrets
import socket
import sys
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import anyio

from kie_async._client.concurrency import emit_failures
from kie_async.errors import ConflictError
from kie_async.events import Observer

if TYPE_CHECKING:
    from kie_async.journal._journal import Journal

HEARTBEAT = 5.0  # seconds between two renewals
LEASE = 30.0  # seconds without a renewal after which a process counts as dead


class Leases:
    """Holds and renews leases of a journal.

    Args:
        journal: an open journal.
        emit: called with a notice if a lease cannot be renewed or given back.
    """

    def __init__(self, journal: Journal, emit: Observer) -> None:
        self._journal = journal
        self._emit = emit
        self._renewed: dict[str, float | None] = {}  # when each was last renewed, by name; None: being taken
        self._guarding: set[str] = set()  # names of leases without which nothing is submitted

    @asynccontextmanager
    async def holding(self, name: str, *, guards_spending: bool = True) -> AsyncGenerator[None]:
        """Hold a lease and renew it while the block lasts.

        Args:
            name: the name of the lease.
            guards_spending: submit nothing once another process has taken it.

        Raises:
            ConflictError: another process holds it, or this one does already.
        """
        if name in self._renewed:
            raise ConflictError(f"{name} is being worked on by this process already")
        self._renewed[name] = None
        try:
            await self._journal.lease(name, LEASE)
            self._renewed[name] = time.time()
        except BaseException as error:
            del self._renewed[name]
            if not isinstance(error, ConflictError):  # it may have been written nevertheless
                with anyio.CancelScope(shield=True):
                    await self._release(name)
            raise
        if guards_spending:
            self._guarding.add(name)
        try:
            yield
        finally:
            self._guarding.discard(name)
            del self._renewed[name]
            with anyio.CancelScope(shield=True):
                await self._release(name)

    async def renew(self, name: str) -> None:
        """Renew a lease that is held.

        Raises:
            ConflictError: it had expired, and another process has taken it.
        """
        now = time.time()
        await self._journal.lease(name, LEASE)
        if name in self._renewed:
            self._renewed[name] = now
        else:  # it was given back during the write
            await self._release(name)

    async def check(self) -> None:
        """Check, before anything is spent, that no guarding lease was lost while this process was suspended.

        Raises:
            ConflictError: another process has taken one.
        """
        for name in tuple(self._guarding):
            renewed_at = self._renewed.get(name)
            if renewed_at is not None and time.time() - renewed_at > LEASE:  # None: given back in the meantime
                await self.renew(name)

    async def ensure_dead(self, process_id: str) -> None:
        """Raise ConflictError if a process lives, that is, if it holds its lease."""
        name = process_lease(process_id)
        await self._journal.lease(name, HEARTBEAT)
        await self._journal.release(name)

    async def keep_renewing(self) -> None:
        """Renew all held leases every ``HEARTBEAT``, until cancelled."""
        while True:
            await anyio.sleep(HEARTBEAT)
            for name in [name for name, at in self._renewed.items() if at is not None]:
                with emit_failures(self._emit, "a lease could not be renewed"):
                    await self.renew(name)

    async def _release(self, name: str) -> None:
        with emit_failures(self._emit, "a lease could not be given back"):  # it expires by itself
            await self._journal.release(name)


def process_lease(process_id: str) -> str:
    """The name of the lease that shows that a process lives."""
    return f"process:{process_id}"


# ---------------------------------------------------------------- processes


def new_process_id() -> str:
    """Return an id for this process: ``machine:pid:`` and a random part, because pids are reused."""
    return f"{_machine()}:{os.getpid()}:{secrets.token_hex(4)}"


def is_dead(process_id: str) -> bool:
    """Tell whether a process is certainly dead: it ran on this machine, and its pid is free."""
    machine, _, rest = process_id.partition(":")
    number = rest.partition(":")[0]
    if machine != _machine() or not number.isdecimal() or sys.platform == "win32":
        return False  # on Windows, asking whether a process lives would end it
    try:
        os.kill(int(number), 0)
    except ProcessLookupError:
        return True
    except (PermissionError, OverflowError):
        return False
    return False


def boot_id() -> str:
    """Return the id of this boot of the machine; empty if the system has none."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return ""


def _machine() -> str:
    """The host name, the boot id and the pid namespace, because other machines can have the same host name."""
    try:
        space = Path("/proc/self/ns/pid").stat().st_ino
    except OSError:
        space = 0
    boot = boot_id()
    return f"{socket.gethostname()}.{boot[:8]}.{space}" if boot and space else socket.gethostname()
