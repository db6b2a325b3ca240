"""What ``batch`` is asked for, and what is on record of it."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager, suppress
from typing import Unpack

import attrs

from kie_async.batch import Manifest, ManifestSummary, count_edited, is_edited, with_known
from kie_async.cli._connect import JournalLocation, SessionOptions, connect
from kie_async.cli._options import BatchOptions
from kie_async.cli._output import Output
from kie_async.errors import StorageError
from kie_async.journal import OWN_BATCH, State
from kie_async.session import KieSession

# How the built-in emulator is served: what a batch waits for is the quota alone.
_EMULATED = {"speed": 300.0, "credits": 1e6, "goes_on": (3.0, 5.0)}


@attrs.frozen
class BatchOrder:
    """What the command was asked for.

    Attributes:
        jobs: of the manifest.
        summary: how many they are, of which kind.
        location: where the jobs are kept.
        options: how it is to be done.
    """

    jobs: Manifest
    summary: ManifestSummary
    location: JournalLocation
    options: BatchOptions

    @property
    def name(self) -> str:
        """The batch's name in the journal."""
        return self.location.batch or OWN_BATCH

    def connect(self, output: Output, **options: Unpack[SessionOptions]) -> AbstractAsyncContextManager[KieSession]:
        """Open a session for it."""
        receiver, options["route"] = self.options.receiver, self.options.common.route
        if self.options.run.emulate:
            receiver = attrs.evolve(receiver, callbacks=True)  # those of the emulator always find their way
            return connect(output, receiver, emulated=_EMULATED, **options)
        if not (receiver.callbacks or self.location.is_shared):
            receiver = receiver.here()
        return connect(output, receiver, **options)

    async def count(self) -> tuple[int, int, int]:
        """Count the jobs that are new to the journal, those to be paid (also what it has planned), and edited rows."""
        if not self.location.exists:
            return self.summary.total, self.summary.total, 0
        async with self.location.journal() as journal:
            new, paid, edited = 0, (await journal.counts(self.name))[State.PLANNED], 0
            async for job, known in with_known(journal, self.jobs):
                new += known is None
                edited += is_edited(job, known)
                # One that a plain session has planned goes into the batch.
                paid += known is None or (known.state is State.PLANNED and not known.batch)
            return new, paid, edited

    async def count_edited(self) -> int:
        """Count edited rows alone, for which only rows with an id of their own are looked up."""
        if self.location.exists:
            with suppress(StorageError):  # the run meets it too, and says how to go on
                async with self.location.journal() as journal:
                    return await count_edited(journal, self.jobs)
        return 0
