"""Durable batches: a list of jobs, each taken to its end and paid once, through crashes and restarts."""

from kie_async.batch._batch import enqueue, run_batch, run_shared_batch, work
from kie_async.batch._budget import CreditBudget
from kie_async.batch._manifest import Manifest, ManifestSummary, read_manifest
from kie_async.batch._reconcile import (
    adopt,
    find_by_name,
    find_retryable,
    find_unknown,
    give_up,
    resolve_as,
    retry,
    retry_unknown,
)
from kie_async.batch._results import Results, song_of, strip_secrets
from kie_async.batch._runner import Runner

__all__ = [
    "CreditBudget",
    "Manifest",
    "ManifestSummary",
    "Results",
    "Runner",
    "adopt",
    "enqueue",
    "find_by_name",
    "find_retryable",
    "find_unknown",
    "give_up",
    "read_manifest",
    "resolve_as",
    "retry",
    "retry_unknown",
    "run_batch",
    "run_shared_batch",
    "song_of",
    "strip_secrets",
    "work",
]
