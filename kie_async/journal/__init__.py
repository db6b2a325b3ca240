"""The journal: what was meant, sent, accepted and delivered, kept so that a crash loses and repeats nothing."""

from typing import TYPE_CHECKING

from kie_async._lazy import lazy_exports

if TYPE_CHECKING:
    from kie_async.journal._job import Attempt, InboundCallback, Job, JobError, Source
    from kie_async.journal._open import DEFAULT_NAME, OWN_BATCH, batch_name, default_journal, is_shared, open_journal
    from kie_async.journal._postgres import PostgresJournal
    from kie_async.journal._protocol import Journal
    from kie_async.journal._quota import PostgresLimiter, SharedPermit
    from kie_async.journal._recorder import Recorder, open_recorder
    from kie_async.journal._salvage import Salvaged, salvage
    from kie_async.journal._sqlite import SQLiteJournal
    from kie_async.journal._states import FINAL, MOVES, OPEN, PAID, State, is_legal

__all__ = [
    "DEFAULT_NAME",
    "FINAL",
    "MOVES",
    "OPEN",
    "OWN_BATCH",
    "PAID",
    "Attempt",
    "InboundCallback",
    "Job",
    "JobError",
    "Journal",
    "PostgresJournal",
    "PostgresLimiter",
    "Recorder",
    "SQLiteJournal",
    "Salvaged",
    "SharedPermit",
    "Source",
    "State",
    "batch_name",
    "default_journal",
    "is_legal",
    "is_shared",
    "open_journal",
    "open_recorder",
    "salvage",
]

# Most sessions have no journal.
__getattr__ = lazy_exports(
    __name__,
    {
        "Journal": "_protocol",
        "PostgresJournal": "_postgres",
        "SQLiteJournal": "_sqlite",
        **dict.fromkeys(("Attempt", "InboundCallback", "Job", "JobError", "Source"), "_job"),
        **dict.fromkeys(("FINAL", "MOVES", "OPEN", "PAID", "State", "is_legal"), "_states"),
        **dict.fromkeys(("PostgresLimiter", "SharedPermit"), "_quota"),
        **dict.fromkeys(("Recorder", "open_recorder"), "_recorder"),
        **dict.fromkeys(("Salvaged", "salvage"), "_salvage"),
        **dict.fromkeys(
            ("DEFAULT_NAME", "OWN_BATCH", "batch_name", "default_journal", "is_shared", "open_journal"), "_open"
        ),
    },
)
