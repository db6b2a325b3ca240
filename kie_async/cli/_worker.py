"""The commands ``worker`` and ``workers``: who works on a shared journal. Their docstrings are the help."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import attrs

from kie_async import batch
from kie_async._text import count_of
from kie_async.batch import WorkerControl, serve_health, work
from kie_async.cli._batch import AFTER_UNKNOWN, lost_error
from kie_async.cli._batch_progress import BatchProgress, timestamp
from kie_async.cli._connect import JournalLocation, connect, find_journal, stopped_by_sigterm
from kie_async.cli._exit_codes import UsageError
from kie_async.cli._options import WORKER, WORKERS, Directory, OutputArg, WorkerOptions, WorkersOptions, parse_address
from kie_async.cli._output import Output
from kie_async.events import Observer

if TYPE_CHECKING:
    from kie_async.otel import PrometheusMetrics

_SILENT_AFTER = 15.0  # seconds: a heartbeat comes every 5


async def worker(*, output: OutputArg, out: Directory, options: WorkerOptions = WORKER) -> None:
    """Work on the jobs of a shared journal among other workers, on any number of machines.

    Songs that only this machine has are uploaded here, and then made by any worker. At SIGTERM it takes nothing more,
    waits for the answers of submissions that were sent, gives the rest back to the others, and ends.

    Example: kie-async worker --journal postgresql://kie@db.example/kie --out new
    """
    location = find_journal(options.run.journal, out)
    if not location.is_shared:
        raise UsageError(
            "--journal must be postgresql://..., which many processes share; with a file, 'kie-async batch' does all"
        )
    options.receiver.check()
    again = f"work on with the same command:\n  {location.as_typed(output.words)}"
    output.hints = dict.fromkeys((3, 4, 5, 8, 130), f"every job stays as the journal has it; {again}")
    output.hints[7] = f"{AFTER_UNKNOWN.format(where=location.options)}\n{again}"
    control = WorkerControl()

    def drain(name: str) -> None:
        output.say(f"{name}: what is submitted comes to its end first; SIGTERM again leaves it to other workers")
        control.drain()

    def stopped(name: str) -> None:
        output.say(f"stopped by {name}; every job stays as the journal has it")

    with stopped_by_sigterm(stopped, first=drain if options.run.drain else None):
        await _work(output, location, out, options, control)


async def _work(
    output: Output, location: JournalLocation, out: Directory, options: WorkerOptions, control: WorkerControl
) -> None:
    run, journal, again = options.run, location.journal(), location.as_typed(output.words)
    progress = BatchProgress(output, out, jsonl=run.jsonl)
    async with (
        _health(output, run.health, control, progress.emit) as observer,
        connect(
            output,
            options.receiver,
            route=options.common.route,
            observer=observer,
            max_in_flight=run.at_once,
            journal=journal,
        ) as session,
        progress.shown(journal),
    ):
        await work(
            session,
            journal=journal,
            dsn=location.address,
            directory=out,
            observer=progress.job_changed,
            at_once=run.at_once,
            until_done=run.until_done,
            control=control,
        )
    if run.until_done and progress.lost and not control.draining.is_set():
        raise lost_error(progress.lost, location.with_out(out), f"work on with the same command:\n  {again}")


@asynccontextmanager
async def _health(
    output: Output, address: str | None, control: WorkerControl, observer: Observer
) -> AsyncIterator[Observer]:
    """Serve what ``--health`` asks for, and give the observer that makes the metrics."""
    if address is None:
        yield observer
        return
    host, port = parse_address(address, "--health")
    metrics = _metrics(observer)
    async with serve_health(control.why_not_ready, metrics, host=host, port=port) as url:
        output.say(f"health: {url}/livez, /readyz and /metrics")
        yield observer if isinstance(metrics, str) else metrics.observer


def _metrics(observer: Observer) -> PrometheusMetrics | str:
    """Metrics, or why there are none."""
    try:
        from kie_async.otel import PrometheusMetrics  # an extra

        return PrometheusMetrics(observer)
    except ImportError as error:
        return str(error)


async def workers(*, output: OutputArg, options: WorkersOptions = WORKERS) -> None:
    """List the workers that are alive: machine, process, jobs under way, since when, and their last heartbeat.

    One that was killed is listed until it has given no sign of life for 30 s; then others have its jobs.

    Example: kie-async workers --journal postgresql://kie@db.example/kie
    """
    location = find_journal(options.journal, Path())
    if not location.is_shared:
        raise UsageError("--journal must be postgresql://..., where workers are; a file has none")
    living = await batch.list_workers(location.address)
    output.value["workers"] = [{**attrs.asdict(each), "started_at": timestamp(each.started_at)} for each in living]
    for each in living:
        since, age = timestamp(each.started_at), f"heartbeat {each.heartbeat_age:.0f} s ago"
        output.print(f"{each.machine}  process {each.pid}  {count_of(each.jobs, 'job')}  since {since}  {age}")
    silent = [each.heartbeat_age for each in living if each.heartbeat_age > _SILENT_AFTER]
    ages = f", {len(silent)} silent for {max(silent):.0f} s" if silent else ""
    output.say(f"{count_of(len(living) - len(silent), 'worker')} at work{ages}")
