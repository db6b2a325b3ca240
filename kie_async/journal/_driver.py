"""What the journal and the shared quota ask of a database; one driver for each keeps it."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from types import TracebackType
from typing import Any, Protocol, Self, TypeAlias

Step: TypeAlias = tuple[str, Mapping[str, object]]
Rows: TypeAlias = list[tuple[Any, ...]]


class Driver(Protocol):
    """A database, entered with ``async with``.

    Statements name their parameters ``:name``. ``:now`` is the unix time of the database in seconds. ``:tick`` is the
    seconds of a clock that all processes of the database share, and ``:boot`` names that clock: it changes when the
    clock starts anew.
    """

    async def __aenter__(self) -> Self:
        """Open the database; make the tables if there are none."""
        ...

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> bool | None:
        """Finish what is under way, and close."""
        ...

    async def run(self, *steps: Step) -> list[Rows]:
        """Run statements as one durable transaction, and return the rows of each; a write has a row for each change.

        While the database is away, they are run again. So a statement must find out by itself whether it has been run.

        Raises:
            ConflictError: something that must be unique is there already.
            StorageError: the database stayed away, or is full or damaged.
        """
        ...

    async def check(self) -> None:
        """Check that others will find what was written. Called before and after an intent is written.

        Raises:
            StorageError: they will not.
        """
        ...

    def watch(self) -> AsyncGenerator[None, None]:
        """Yield whenever another process or this one may have written, at once and then every few seconds at least.

        Raises:
            StorageError: (on the call) the database is not open.
        """
        ...
