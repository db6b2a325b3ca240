"""Durable batches: a list of jobs, each taken to its end and paid once, through crashes and restarts.

Where one database ends, for workers that share it: a job takes some 27 transactions, nearly all of one statement, and a
worker 6 connections (``python -m benchmarks workers``). In that benchmark four workers made 15 jobs a second, on two
cores that they had in common with the database and the emulator; the quota of an account lets 2 a second begin. The 100
connections that PostgreSQL takes by default are 16 workers. Before either is reached, give each account a database of
its own: accounts share nothing but the machines.
"""

from typing import TYPE_CHECKING

from kie_async._package import lazy_exports
from kie_async.batch._batch import enqueue, run_batch, run_shared_batch, work
from kie_async.batch._chain_takes import RecordedTakes, find_track
from kie_async.batch._control import WorkerControl, serve_health
from kie_async.batch._delivery import count_verdicts, read_kind, write_verdict
from kie_async.batch._edited import count_edited, is_edited, with_known
from kie_async.batch._fetch import Expiry, fetch_jobs, tracks_expiry, upload_expiry
from kie_async.batch._manifest import Manifest, ManifestSummary, read_manifest
from kie_async.batch._policy import CreditBudget
from kie_async.batch._reconcile import (
    adopt,
    find_by_name,
    find_job,
    give_up,
    resolve_as,
    retry,
    retry_unknown,
)
from kie_async.batch._results import RESULTS, SIDECAR, Results, read_sidecar, song_file, song_of, strip_secrets
from kie_async.batch._runner import Runner

if TYPE_CHECKING:
    from kie_async.batch._engine import LivingWorker, create_worker_tables, list_workers, worker_migrations

__all__ = [
    "RESULTS",
    "SIDECAR",
    "CreditBudget",
    "Expiry",
    "LivingWorker",
    "Manifest",
    "ManifestSummary",
    "RecordedTakes",
    "Results",
    "Runner",
    "WorkerControl",
    "adopt",
    "count_edited",
    "count_verdicts",
    "create_worker_tables",
    "enqueue",
    "fetch_jobs",
    "find_by_name",
    "find_job",
    "find_track",
    "give_up",
    "is_edited",
    "list_workers",
    "read_kind",
    "read_manifest",
    "read_sidecar",
    "resolve_as",
    "retry",
    "retry_unknown",
    "run_batch",
    "run_shared_batch",
    "serve_health",
    "song_file",
    "song_of",
    "strip_secrets",
    "tracks_expiry",
    "upload_expiry",
    "with_known",
    "work",
    "worker_migrations",
    "write_verdict",
]

# An extra: a batch in a file works without it.
_ENGINE = ("LivingWorker", "create_worker_tables", "list_workers", "worker_migrations")
__getattr__ = lazy_exports(__name__, dict.fromkeys(_ENGINE, "_engine"))
