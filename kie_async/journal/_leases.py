"""The leases that a process holds in a journal: taken, renewed while it lives, and given back."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import anyio

from kie_async._client.concurrency import internal_errors
from kie_async.errors import ConflictError, KieError
from kie_async.events import Notice, Observer, clean
from kie_async.journal._protocol import Journal

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
        self._renewed: dict[str, float] = {}  # by name, when each was last renewed

    @asynccontextmanager
    async def holding(self, name: str) -> AsyncGenerator[None]:
        """Hold a lease, and renew it, for as long as the block lasts.

        Raises:
            ConflictError: another process holds it, or this one does.
        """
        if name in self._renewed:
            raise ConflictError(f"{name} is being worked on by this process already")
        self._renewed[name] = time.time()
        try:
            await self._journal.lease(name, LEASE)
        except BaseException as error:
            del self._renewed[name]
            if not isinstance(error, ConflictError):  # it may have been written all the same
                with anyio.CancelScope(shield=True):
                    await self._release(name)
            raise
        try:
            yield
        finally:
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
        """See, before anything is spent, that no other process took a lease while this one slept.

        Raises:
            ConflictError: one did.
        """
        for name, renewed in tuple(self._renewed.items()):
            if time.time() - renewed > LEASE:
                await self.renew(name)

    async def keep_renewing(self) -> None:
        """Renew all leases that are held, until cancelled."""
        while True:
            await anyio.sleep(HEARTBEAT)
            for name in tuple(self._renewed):
                try:
                    with internal_errors("a lease"):
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
