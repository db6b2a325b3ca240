"""A worker: one of many processes that take the jobs of a shared journal to their end."""

from __future__ import annotations

from pathlib import Path

from kie_async.batch import work
from kie_async.cli._batch_end import after_unknown
from kie_async.cli._connect import ConnectOptions, connect
from kie_async.cli._exit_status import UsageError
from kie_async.cli._journal import find_journal
from kie_async.cli._options import WorkerOptions
from kie_async.cli._output import Output
from kie_async.cli._progress import BatchProgress
from kie_async.cli._signals import stoppable


async def worker(output: Output, out: Path, options: WorkerOptions) -> None:
    """Work until Ctrl-C, SIGTERM, or the last job has come to its end."""
    location, calls = find_journal(options.worker.journal, out), options.calls
    if not location.is_shared:
        raise UsageError(
            "--journal must be postgresql://..., which many processes share; with a file, 'kie-async batch' does all"
        )
    calls.check()
    again = f"work on with the same command:\n  {location.retyped(output.words)}"
    output.hints = dict.fromkeys((3, 4, 5, 8, 130), f"every job stays as the journal has it; {again}")
    output.hints[7] = f"{after_unknown(location.options)}\n{again}"
    progress, journal = BatchProgress(output, out, jsonl=options.worker.jsonl), location.journal()
    with stoppable(lambda: output.say("stopped by SIGTERM; every job stays as the journal has it")):
        async with location.quota() as limiter:
            plan = ConnectOptions(
                route=options.common.route,
                receive=calls.callbacks,
                callback_url=calls.callback_url,
                bind=calls.bind,
                at_once=options.worker.at_once,
                observer=progress.tell,
                journal=journal,
                limiter=limiter,
            )
            async with connect(output, plan) as connection, progress.following(journal):
                await work(
                    connection.session,
                    journal=journal,
                    dsn=location.place,
                    directory=out,
                    observer=progress.moved,
                    at_once=options.worker.at_once,
                    until_done=options.worker.until_done,
                )
