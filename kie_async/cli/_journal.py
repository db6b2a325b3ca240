"""Where the jobs are kept: a file beside the results or elsewhere, or a PostgreSQL that many machines share."""

from __future__ import annotations

import shlex
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import urlsplit

import attrs

from kie_async.cli._exit_status import UsageError
from kie_async.journal import DEFAULT_NAME, OWN_BATCH, Journal, JournalLimiter, is_shared, open_journal
from kie_async.limiter import Limiter
from kie_async.settings import journal_location

EMULATED_FILE = "kie-async-emulated.sqlite"  # apart, or what was merely tried out would count as done
_VARIABLE = '"$KIE_JOURNAL"'  # stands for an address that is not to be shown


@attrs.frozen
class JournalLocation:
    """Where the journal is, and how other commands are led to it.

    Attributes:
        address: a path, or a URL that may hold a password.
        options: the options with which another command finds it, quoted for a shell; without a password.
        batch: the name of the batch that is meant; None: all batches.
    """

    address: str = attrs.field(repr=False)
    options: str
    batch: str | None = None

    @property
    def only_batch(self) -> str | None:
        """The batch that a list is limited to; None for a file beside the results, which holds one batch."""
        return None if self.batch == OWN_BATCH else self.batch

    @property
    def is_shared(self) -> bool:
        """Whether other machines may use it too."""
        return is_shared(self.address)

    @property
    def is_emulated(self) -> bool:
        """Whether it holds the jobs of the built-in emulator."""
        return Path(self.address).name == EMULATED_FILE

    @property
    def exists(self) -> bool:
        """Whether there may be jobs in it."""
        return self.is_shared or Path(self.address).exists()

    def with_out(self, out: Path) -> str:
        """The options, with the directory of the results."""
        directory = f"--out {shlex.quote(str(out))}"
        return self.options if self.options == directory else f"{self.options} {directory}"

    def journal(self) -> Journal:
        """Make the journal, without opening it."""
        return open_journal(self.address)

    @asynccontextmanager
    async def opened(self) -> AsyncIterator[Journal]:
        """Open a journal that exists already.

        Raises:
            UsageError: it does not exist.
        """
        if not self.exists:
            raise UsageError(f"there are no jobs: {self.address} does not exist")
        async with self.journal() as journal:
            yield journal

    @asynccontextmanager
    async def quota(self) -> AsyncIterator[Limiter | None]:
        """The quota that all who share it keep; None where nobody does."""
        if not self.is_shared:
            yield None
            return
        async with open_journal(self.address) as journal, JournalLimiter(journal) as limiter:
            yield limiter

    def as_typed(self, words: Sequence[str]) -> str:
        """The command line as it can be typed again, without a password."""
        return " ".join(["kie-async", *map(self._as_typed, words)])

    def _as_typed(self, word: str) -> str:
        before, found, _ = word.partition(self.address)
        return f"{before}{_VARIABLE}" if found and _is_secret(self.address) else shlex.quote(word)


def find_journal(location: str | None, out: Path | None, *, emulate: bool = False) -> JournalLocation:
    """Find the journal: by option, by ``KIE_JOURNAL``, or else as a file in the directory of the results.

    Raises:
        UsageError: none of these is given, or the URL is of an unknown kind.
    """
    location = location or journal_location()
    if location:
        if "://" in location and not is_shared(location):
            raise UsageError("--journal is neither a path nor postgresql://...")
        options = f"--journal {_VARIABLE if _is_secret(location) else shlex.quote(location)}"
        return JournalLocation(location, options, str(out.resolve()) if out else None)
    if out is None:
        raise UsageError("--out or --journal must say where the jobs are kept")
    if emulate:
        path = str(out / EMULATED_FILE)
        return JournalLocation(path, f"--journal {shlex.quote(path)}", OWN_BATCH)
    return JournalLocation(str(out / DEFAULT_NAME), f"--out {shlex.quote(str(out))}", OWN_BATCH)


def _is_secret(address: str) -> bool:
    """Whether a URL holds more than user, host and database."""
    if not is_shared(address):
        return False
    try:
        parts = urlsplit(address)
        return bool(parts.password or parts.query)
    except ValueError:
        return True
