"""The leases that a process holds in a journal, and whether a process is dead: then what it held is free."""

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

from kie_async._client.concurrency import InternalErrors
from kie_async.errors import ConflictError, KieError
from kie_async.events import Notice, Observer, clean

if TYPE_CHECKING:
    from kie_async.journal._journal import Journal

HEARTBEAT = 5.0  # seconds between two renewals
LEASE = 30.0  # seconds without a renewal after which a process is taken for dead


class Leases:
    """Holds leases of a journal.

    Args:
        journal: open already.
        emit: is called when a lease can not be renewed, or given back.
    """

    def __init__(self, journal: Journal, emit: Observer) -> None:
        self._journal = journal
        self._emit = emit
        self._renewed: dict[str, float | None] = {}  # by name, when each was last renewed; None: it is being taken
        self._guarding: set[str] = set()  # names of those without which nothing is submitted

    @asynccontextmanager
    async def holding(self, name: str, *, guards_spending: bool = True) -> AsyncGenerator[None]:
        """Hold a lease, and renew it, for as long as the block lasts.

        Args:
            name: of the lease.
            guards_spending: nothing is submitted once another process has it.

        Raises:
            ConflictError: another process holds it, or this one does.
        """
        if name in self._renewed:
            raise ConflictError(f"{name} is being worked on by this process already")
        self._renewed[name] = None
        try:
            await self._journal.lease(name, LEASE)
            self._renewed[name] = time.time()
        except BaseException as error:
            del self._renewed[name]
            if not isinstance(error, ConflictError):  # it may have been written all the same
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
            ConflictError: another process took it when it had run out.
        """
        now = time.time()
        await self._journal.lease(name, LEASE)
        if name in self._renewed:
            self._renewed[name] = now
        else:  # it was given back between the two
            await self._release(name)

    async def check(self) -> None:
        """See, before anything is spent, that no other process took a lease that guards it while this one slept.

        Raises:
            ConflictError: one did.
        """
        for name in tuple(self._guarding):
            renewed_at = self._renewed.get(name)
            if renewed_at is not None and time.time() - renewed_at > LEASE:  # else it was given back meanwhile
                await self.renew(name)

    async def ensure_dead(self, process_id: str) -> None:
        """Raise ConflictError if a process lives: it holds its lease then."""
        name = process_lease(process_id)
        await self._journal.lease(name, HEARTBEAT)
        await self._journal.release(name)

    async def keep_renewing(self) -> None:
        """Renew all leases that are held, until cancelled."""
        while True:
            await anyio.sleep(HEARTBEAT)
            for name in [name for name, at in self._renewed.items() if at is not None]:
                try:
                    with InternalErrors("a lease"):
                        await self.renew(name)
                except KieError as error:
                    self._emit(Notice("", f"a lease could not be renewed: {clean(error.message)}"))

    async def _release(self, name: str) -> None:
        try:
            await self._journal.release(name)
        except KieError as error:  # it runs out by itself
            self._emit(Notice("", f"a lease could not be given back: {clean(error.message)}"))


def process_lease(process_id: str) -> str:
    """The name of the lease that says that a process lives."""
    return f"process:{process_id}"


# ---------------------------------------------------------------- processes


def new_process_id() -> str:
    """Return an id for this process: ``machine:pid:`` and a random part, for pids are used again."""
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
    """Return the id of this start of the machine; empty where it has none."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return ""


def _machine() -> str:
    """The host, its start, and the space its pids are counted in: names and spaces alone may be those of another."""
    try:
        space = Path("/proc/self/ns/pid").stat().st_ino
    except OSError:
        space = 0
    boot = boot_id()
    return f"{socket.gethostname()}.{boot[:8]}.{space}" if boot and space else socket.gethostname()
