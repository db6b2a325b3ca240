"""The commands about jobs, as they are typed. The docstrings here are the help."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter

from kie_async.cli import _jobs
from kie_async.cli._options import PLACE, VOICE, Place, ScreenArg, Voice, Yes
from kie_async.cli._store import find_store
from kie_async.journal import State

KeyArg = Annotated[str, Parameter(help="The key of a job.")]

jobs = App(name="jobs", help="See what became of the jobs of a batch, and decide about them.", help_epilogue="")


@jobs.command(name="list")
async def list_jobs(
    *,
    screen: ScreenArg,
    state: Annotated[tuple[State, ...], Parameter(help="Only jobs in this state; may be repeated.")] = (),
    place: Place = PLACE,
    _voice: Voice = VOICE,
) -> None:
    """List jobs: key, state, task and error of each, and how many stand in each state.

    Example: kie-async jobs list --state failed --state unknown --out new
    """
    await _jobs.show_all(screen, find_store(place.journal, place.out), state)


@jobs.command
async def show(
    key: Annotated[str, Parameter(help="The key of a job, or the name of its song.")],
    /,
    *,
    screen: ScreenArg,
    place: Place = PLACE,
    _voice: Voice = VOICE,
) -> None:
    """Show all that is known of a job: its attempts, moments, error and files.

    Example: kie-async jobs show song-17 --out new
    """
    await _jobs.show(screen, find_store(place.journal, place.out), key)


@jobs.command
async def retry(
    *keys: Annotated[str, Parameter(help="The keys of jobs that failed or were rejected.")],
    screen: ScreenArg,
    place: Place = PLACE,
    yes: Yes = False,
    _voice: Voice = VOICE,
) -> None:
    """Have jobs made once more that failed or were rejected; they are paid again.

    Example: kie-async jobs retry song-17 song-23 --out new
    """
    await _jobs.retry_all(screen, find_store(place.journal, place.out), keys, yes=yes)


@jobs.command
async def resolve(  # noqa: PLR0913  # each is an option
    key: KeyArg,
    /,
    *,
    screen: ScreenArg,
    task_id: Annotated[str | None, Parameter(help="It became this task: look at https://kie.ai/logs.")] = None,
    resubmit: Annotated[bool, Parameter(help="It was never accepted: send it again.")] = False,
    abandon: Annotated[bool, Parameter(help="Leave it, whatever became of it.")] = False,
    place: Place = PLACE,
    yes: Yes = False,
    _voice: Voice = VOICE,
) -> None:
    """Decide about a job whose submission's answer was lost, so that nobody knows whether it was accepted.

    Example: kie-async jobs resolve song-17 --task-id 5c79be8e0a1b4c6d9e2f3a4b5c6d7e8f --out new
    """
    store = find_store(place.journal, place.out)
    await _jobs.resolve(screen, store, key, task_id=task_id, again=resubmit, leave=abandon, yes=yes)


@jobs.command
async def adopt(*, screen: ScreenArg, place: Place = PLACE, _voice: Voice = VOICE) -> None:
    """Take in the tasks that the results name and a lost journal no longer knows; nothing is sent or paid.

    Example: kie-async jobs adopt --out new
    """
    await _jobs.adopt_all(screen, find_store(place.journal, place.out), place.out)


@jobs.command
async def salvage(
    file: Annotated[Path, Parameter(help="The damaged file; it is not changed.")],
    /,
    *,
    screen: ScreenArg,
    _voice: Voice = VOICE,
) -> None:
    """Show which tasks a damaged file of jobs still tells of, so that nothing that was paid is lost.

    Example: kie-async jobs salvage new/kie-async.sqlite
    """
    await _jobs.salvage_file(screen, file)
