"""The commands about jobs, as they are typed. The docstrings here are the help."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter

from kie_async.cli import _jobs
from kie_async.cli._journal import find_journal
from kie_async.cli._options import JOBS, OUTPUT, JobsOptions, OutputArg, OutputOptions, Yes
from kie_async.journal import State

KeyArg = Annotated[str, Parameter(help="The key of a job.")]

jobs = App(name="jobs", help="See what became of the jobs of a batch, and decide about them.", help_epilogue="")


@jobs.command(name="list")
async def list_jobs(
    *,
    output: OutputArg,
    state: Annotated[tuple[State, ...], Parameter(help="Only jobs in this state; may be repeated.")] = (),
    options: JobsOptions = JOBS,
    _output_options: OutputOptions = OUTPUT,
) -> None:
    """List jobs: key, state, task and error of each, and how many stand in each state.

    Example: kie-async jobs list --state failed --state unknown --out new
    """
    await _jobs.show_all(output, find_journal(options.journal, options.out), state)


@jobs.command
async def show(
    key: Annotated[str, Parameter(help="The key of a job, or the name of its song.")],
    /,
    *,
    output: OutputArg,
    options: JobsOptions = JOBS,
    _output_options: OutputOptions = OUTPUT,
) -> None:
    """Show all that is known of a job: its attempts, moments, error and files.

    Example: kie-async jobs show song-17 --out new
    """
    await _jobs.show(output, find_journal(options.journal, options.out), key)


@jobs.command
async def retry(
    *keys: Annotated[str, Parameter(help="The keys of jobs that failed or were rejected.")],
    output: OutputArg,
    options: JobsOptions = JOBS,
    yes: Yes = False,
    _output_options: OutputOptions = OUTPUT,
) -> None:
    """Have jobs made once more that failed or were rejected; they are paid again.

    Example: kie-async jobs retry song-17 song-23 --out new
    """
    await _jobs.retry_all(output, find_journal(options.journal, options.out), keys, yes=yes)


@jobs.command
async def resolve(  # noqa: PLR0913  # each is an option
    key: KeyArg,
    /,
    *,
    output: OutputArg,
    task_id: Annotated[str | None, Parameter(help="It became this task: look at https://kie.ai/logs.")] = None,
    retry: Annotated[bool, Parameter(help="It was never accepted: send it again.")] = False,
    give_up: Annotated[bool, Parameter(help="Leave it, whatever became of it.")] = False,
    options: JobsOptions = JOBS,
    yes: Yes = False,
    _output_options: OutputOptions = OUTPUT,
) -> None:
    """Decide about a job whose submission's answer was lost, so that nobody knows whether it was accepted.

    Example: kie-async jobs resolve song-17 --task-id 5c79be8e0a1b4c6d9e2f3a4b5c6d7e8f --out new
    """
    location = find_journal(options.journal, options.out)
    await _jobs.resolve(output, location, key, task_id=task_id, again=retry, leave=give_up, yes=yes)


@jobs.command
async def adopt(*, output: OutputArg, options: JobsOptions = JOBS, _output_options: OutputOptions = OUTPUT) -> None:
    """Take in the tasks that the results name and a lost journal no longer knows; nothing is sent or paid.

    Example: kie-async jobs adopt --out new
    """
    await _jobs.adopt_all(output, find_journal(options.journal, options.out), options.out)


@jobs.command
async def salvage(
    file: Annotated[Path, Parameter(help="The damaged file; it is not changed.")],
    /,
    *,
    output: OutputArg,
    _output_options: OutputOptions = OUTPUT,
) -> None:
    """Show which tasks a damaged file of jobs still tells of, so that nothing that was paid is lost.

    Example: kie-async jobs salvage new/kie-async.sqlite
    """
    await _jobs.salvage_file(output, file)
