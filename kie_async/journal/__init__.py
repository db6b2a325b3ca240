"""The journal: what was meant, sent, accepted and delivered, kept so that a crash loses and repeats nothing."""

from typing import TYPE_CHECKING

from kie_async._package import lazy_exports
from kie_async.journal._caps import Payer
from kie_async.journal._diagnosis import Finding
from kie_async.journal._job import (
    Attempt,
    InboundCallback,
    Job,
    JobError,
    JobResults,
    LastAttempt,
    Source,
    State,
    is_local,
    source_on,
)
from kie_async.journal._journal import Journal
from kie_async.journal._leases import Leases
from kie_async.journal._machines import machine_lease
from kie_async.journal._open import (
    DEFAULT_NAME,
    OWN_BATCH,
    PostgresJournal,
    SQLiteJournal,
    batch_name,
    batches_of,
    default_journal,
    is_shared,
    open_journal,
    text_of,
)
from kie_async.journal._quota import JournalLimiter, SharedPermit
from kie_async.journal._recorder import Recorder
from kie_async.journal._same_request import asks_the_same
from kie_async.journal._schema import VERSION
from kie_async.journal._sql import ANY_BATCH, BatchFilter
from kie_async.journal._transitions import FINAL, OPEN, PAID, TRANSITIONS

if TYPE_CHECKING:
    from kie_async.journal._job_list import JobList

__all__ = [
    "ANY_BATCH",
    "DEFAULT_NAME",
    "FINAL",
    "OPEN",
    "OWN_BATCH",
    "PAID",
    "TRANSITIONS",
    "VERSION",
    "Attempt",
    "BatchFilter",
    "Finding",
    "InboundCallback",
    "Job",
    "JobError",
    "JobList",
    "JobResults",
    "Journal",
    "JournalLimiter",
    "LastAttempt",
    "Leases",
    "Payer",
    "PostgresJournal",
    "Recorder",
    "SQLiteJournal",
    "SharedPermit",
    "Source",
    "State",
    "asks_the_same",
    "batch_name",
    "batches_of",
    "default_journal",
    "is_local",
    "is_shared",
    "machine_lease",
    "open_journal",
    "source_on",
    "text_of",
]

__getattr__ = lazy_exports(__name__, {"JobList": "_job_list"})  # for notebooks alone
