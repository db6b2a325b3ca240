"""The command ``jobs fetch``: what was paid and never fetched. Its docstring is the help."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import attrs
from cyclopts import Parameter

from kie_async._text import count_of
from kie_async.batch import fetch_jobs, find_by_name
from kie_async.cli._batch_progress import job_line, job_value, print_files
from kie_async.cli._connect import find_journal, make_settings, stopped_by_sigterm
from kie_async.cli._exit_codes import KeyUnusableError, UsageError
from kie_async.cli._options import JOBS, JobsOptions, OutputArg
from kie_async.cli._output import Output
from kie_async.errors import ConflictError, KieError, ResultExpiredError
from kie_async.events import clean
from kie_async.journal import Job, JobError, Journal, State
from kie_async.session import KieSession
from kie_async.settings import Settings

_NO_KEY = "none-is-needed"  # for downloads, which never send one
_GONE = "the service keeps tracks for 14 days, and cannot give these any more: they stay on record as they are"


async def fetch(
    *keys: Annotated[str, Parameter(help="The keys of jobs, or the names of their songs; by default all.")],
    output: OutputArg,
    options: JobsOptions = JOBS,
) -> None:
    """Download what was made, paid and never fetched, into --out; it costs nothing, and rarely needs the key.

    Also tasks of programs that keep a journal. The service deletes tracks 14 days after they were made.

    Example: kie-async jobs fetch --out new
    """
    location, out = find_journal(options.journal, options.out), options.out
    if out is None:
        raise UsageError("--out is missing: give the directory where the files go")
    again = f"fetch the rest with the same command:\n  {location.as_typed(output.words)}"
    output.hints = dict.fromkeys((3, 5, 8, 130), again)
    settings = _settings(output)
    report = FetchReport(output, out)
    with stopped_by_sigterm():
        async with location.opened() as journal:
            chosen = await _chosen(output, journal, keys) if keys else None
            number = (await journal.counts())[State.SUCCEEDED] if chosen is None else len(chosen)
            output.say(f"{count_of(number, 'job')} to fetch")
            await fetch_jobs(
                journal,
                journal.jobs(State.SUCCEEDED) if chosen is None else chosen,
                directory=out,
                settings=settings,
                open_session=_open_session,
                observer=report.add,
                emulated=location.is_emulated or settings.on_loopback,
            )
    report.finish()


def _settings(output: Output) -> Settings:
    try:
        return make_settings({"observer": output.emit})
    except KeyUnusableError:
        return Settings(api_key=_NO_KEY, observer=output.emit)


def _open_session(route: str | None) -> KieSession:
    return KieSession(make_settings({"route": route} if route else {}), journal="")


async def _chosen(output: Output, journal: Journal, keys: Sequence[str]) -> list[Job]:
    """The jobs of these names that are still to be fetched; raise ConflictError if one has no tracks."""
    jobs = [await find_by_name(journal, key, None) for key in keys]
    for job in jobs:
        if job.state is State.DELIVERED:
            output.say(f"{job.key}  delivered before{f', into {clean(job.directory)}' if job.directory else ''}")
        elif job.state is not State.SUCCEEDED:
            raise ConflictError(f"job {job.key!r} is {job.state}: it has no tracks to fetch", job.task_id)
    return [job for job in jobs if job.state is State.SUCCEEDED]


class FetchReport:
    """What became of the jobs, on stdout and stderr, or as JSON.

    Args:
        output: of the command.
        out: where the files go.
    """

    def __init__(self, output: Output, out: Path) -> None:
        self._output = output
        self._out = out
        self._fetched = 0
        self._errors: list[KieError] = []
        output.value["jobs"] = []

    def add(self, job: Job, error: KieError | None) -> None:
        """Take a job that was fetched, or was not."""
        if error is not None:
            self._errors.append(error)
            job = attrs.evolve(job, error=JobError.of(error))
            self._output.say(job_line(job))
            word = "expired" if isinstance(error, ResultExpiredError) else "failed"
        elif print_files(self._output, self._out, job):
            self._fetched += 1
            word = "fetched"
        else:
            word = "elsewhere"
        self._output.value["jobs"].append({**job_value(job), "outcome": word})
        self._output.display.doing(f"{count_of(self._fetched, 'job')} fetched")

    def finish(self) -> None:
        """Sum up; raise the error that matters most, if there is one."""
        gone = sum(isinstance(error, ResultExpiredError) for error in self._errors)
        failed = len(self._errors) - gone
        self._output.say(f"{self._fetched} fetched, {failed} failed, {gone} expired")
        if self._errors:
            error = min(self._errors, key=lambda each: isinstance(each, ResultExpiredError))
            if isinstance(error, ResultExpiredError):
                error.add_note(_GONE)
            raise error
