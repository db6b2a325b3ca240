"""The command ``worker``: one of many processes that complete the jobs of a journal. Its docstring is the help."""

from __future__ import annotations

from kie_async.batch import work
from kie_async.cli._batch import after_unknown
from kie_async.cli._connect import ConnectOptions, connect
from kie_async.cli._exit_status import UsageError
from kie_async.cli._journal import find_journal
from kie_async.cli._options import WORKER, Directory, OutputArg, WorkerOptions
from kie_async.cli._progress import BatchProgress
from kie_async.cli._signals import stopped_by_sigterm


async def worker(*, output: OutputArg, out: Directory, options: WorkerOptions = WORKER) -> None:
    """Work on the jobs of a shared journal among other workers, on any number of machines.

    Example: kie-async worker --journal postgresql://kie@db.example/kie --out new
    """
    location, receiver = find_journal(options.worker.journal, out), options.receiver
    if not location.is_shared:
        raise UsageError(
            "--journal must be postgresql://..., which many processes share; with a file, 'kie-async batch' does all"
        )
    receiver.check()
    again = f"work on with the same command:\n  {location.as_typed(output.words)}"
    output.hints = dict.fromkeys((3, 4, 5, 8, 130), f"every job stays as the journal has it; {again}")
    output.hints[7] = f"{after_unknown(location.options)}\n{again}"
    progress, journal = BatchProgress(output, out, jsonl=options.worker.jsonl), location.journal()
    with stopped_by_sigterm(lambda: output.say("stopped by SIGTERM; every job stays as the journal has it")):
        async with location.quota() as limiter:
            connect_options = ConnectOptions(
                route=options.common.route,
                receive=receiver.callbacks,
                callback_url=receiver.callback_url,
                bind=receiver.bind,
                at_once=options.worker.at_once,
                observer=progress.emit,
                journal=journal,
                limiter=limiter,
            )
            async with connect(output, connect_options) as connection, progress.shown(journal):
                await work(
                    connection.session,
                    journal=journal,
                    dsn=location.address,
                    directory=out,
                    observer=progress.job_changed,
                    at_once=options.worker.at_once,
                    until_done=options.worker.until_done,
                )
