"""Durable batches: a list of jobs, each taken to its end and paid once, through crashes and restarts."""

from kie_async.batch._batch import run_batch
from kie_async.batch._manifest import Manifest, ManifestSummary, read_manifest
from kie_async.batch._runner import Runner
from kie_async.batch._worker import Worker

__all__ = ["Manifest", "ManifestSummary", "Runner", "Worker", "read_manifest", "run_batch"]
