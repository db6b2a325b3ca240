"""The commands ``database``: the tables of a journal, and what hinders it. Their docstrings are the help."""

from __future__ import annotations

from cyclopts import App

from kie_async import batch
from kie_async.cli._connect import JournalLocation, find_journal
from kie_async.cli._exit_codes import UsageError
from kie_async.cli._options import JOBS, JobsOptions, OutputArg
from kie_async.errors import StorageError
from kie_async.journal import VERSION, Finding

app = App(name="database", help="Make, check and upgrade the tables where jobs are kept.", help_epilogue="")

_CREATE = "kie-async database create --journal postgresql://..."
_UPGRADE = "kie-async database upgrade --journal postgresql://..."


@app.command
async def create(*, output: OutputArg, options: JobsOptions = JOBS) -> None:
    """Make the tables, those of the workers too; what is there already stays. A worker or a batch does it by itself.

    Example: kie-async database create --journal postgresql://kie@db.example/kie
    """
    location = find_journal(options.journal, options.out)
    async with location.journal() as journal:
        output.say(f"{journal.driver} is ready, of version {VERSION}")
    output.value["version"] = VERSION
    if location.is_shared:
        await batch.create_worker_tables(location.address)


@app.command
async def upgrade(*, output: OutputArg, options: JobsOptions = JOBS) -> None:
    """Bring the tables to the newest version, and count anew what was spent; end all that works on them first.

    Example: kie-async database upgrade --journal postgresql://kie@db.example/kie
    """
    location = _existing(options)
    journal = location.journal()
    version = await journal.upgrade()
    before = "" if version == VERSION else f"; it was of version {version}"
    output.say(f"{journal.driver} is of version {VERSION}{before}")
    output.value |= {"version": VERSION, "before": version}
    for name in (location.is_shared and await batch.worker_migrations(location.address, run=True)) or ():
        output.say(f"the engine's migration {name} was run")


@app.command
async def check(*, output: OutputArg, options: JobsOptions = JOBS) -> None:
    """Say what hinders the work on a database, and the statement that mends it; nothing is changed.

    Example: kie-async database check --journal postgresql://kie@db.example/kie
    """
    location = _existing(options)
    journal = location.journal()
    found = await journal.diagnose()
    if location.is_shared and not any(each.hinders for each in found):
        found += _about_engine(await batch.worker_migrations(location.address))
    for each in found:
        output.print(": ".join(filter(None, (each.what, each.remedy))))
    output.value["findings"] = [{"what": each.what, "remedy": each.remedy, "hinders": each.hinders} for each in found]
    if hindrances := sum(each.hinders for each in found):
        raise StorageError(f"{journal.driver} cannot be worked on: {hindrances} of what is said above hinders it")
    output.say(f"{journal.driver} is ready, of version {VERSION}")


def _existing(options: JobsOptions) -> JournalLocation:
    location = find_journal(options.journal, options.out)
    if not location.exists:
        raise UsageError(f"there is no journal: {location.address} does not exist")
    return location


def _about_engine(lacking: list[str] | None) -> list[Finding]:
    if lacking is None:
        return [Finding("the tables of the workers are not there; the first worker makes them", _CREATE, hinders=False)]
    return [Finding(f"the workers' tables lack the migration {name}", _UPGRADE) for name in lacking]
