"""The commands about jobs: what became of them, and what a person decides."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from anyio import to_thread

from kie_async._protocol.limits import CREDITS_PER_TASK
from kie_async._protocol.wire import TASK_ID
from kie_async.batch import (
    adopt,
    find_by_name,
    find_retryable,
    find_unknown,
    give_up,
    resolve_as,
    retry,
    retry_unknown,
    strip_secrets,
)
from kie_async.cli._confirm import confirm
from kie_async.cli._connect import make_settings
from kie_async.cli._exit_status import UsageError
from kie_async.cli._journal import JournalLocation
from kie_async.cli._output import Output
from kie_async.cli._progress import Counts, job_line, job_value
from kie_async.events import clean
from kie_async.journal import Attempt, Job, State
from kie_async.journal._salvage import salvage
from kie_async.models import ExtendRequest


async def show_all(output: Output, location: JournalLocation, states: Sequence[State]) -> None:
    """List the jobs, in the order they were added, and count them."""
    jobs: list[dict[str, Any]] = []
    after = 0
    async with location.opened() as journal:
        while output.lost is None and (page := await journal.page(*states, batch=location.only, after=after)):
            after = page[-1][0]
            for _, job in page:
                output.out(job_line(job))
            if output.as_json:
                jobs += [job_value(job) for _, job in page]
        counts = await journal.counts(location.only)
    output.facts |= {"counts": {state.value: counts.get(state, 0) for state in State}, "jobs": jobs}
    output.say(f"{Counts.of(counts)} of {sum(counts.values())} jobs")


async def show(output: Output, location: JournalLocation, key: str) -> None:
    """Show all that is known of a job, by its key or by the name of its song."""
    async with location.opened() as journal:
        job = await find_by_name(journal, key, location.only)
        attempts = await journal.attempts(job.key)
    value = _whole(job, attempts)
    output.facts |= value
    for name, fact in value.items():
        if isinstance(fact, dict):
            output.out(f"{name}:")
            _out(output, fact)
        elif isinstance(fact, list):
            output.out(f"{name}:")
            for each in fact:
                output.out(f"  {_words(each)}")
        elif fact is not None:
            output.out(f"{name}: {fact}")


def _out(output: Output, facts: dict[str, Any]) -> None:
    for name, fact in facts.items():
        if fact is not None:
            output.out(f"  {name}: {fact}")


def _words(value: object) -> str:
    if isinstance(value, dict):
        return "  ".join(f"{name} {fact}" for name, fact in value.items() if fact is not None)
    return str(value)


def _whole(job: Job, attempts: Sequence[Attempt]) -> dict[str, Any]:
    """A job with all its attempts, as JSON; no token."""
    request = job.request
    source = request.audio_id if isinstance(request, ExtendRequest) else strip_secrets(str(request.source))
    return {
        **job_value(job),
        "batch": job.batch,
        "operation": request.operation,
        "model": request.model,
        "title": clean(request.title) if request.title else None,
        "source": source,
        "earlier_credits": job.earlier_credits,
        "moments": {name: _moment(at) for name, at in job.moments.items()},
        "attempts": [
            {"number": each.number, "task_id": each.task_id, "intended_at": _moment(each.intended_at)}
            for each in attempts
        ],
    }


def _moment(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="seconds")


# ---------------------------------------------------------------- decisions


async def retry_all(output: Output, location: JournalLocation, keys: Sequence[str], *, yes: bool) -> None:
    """Have failed and rejected jobs made once more."""
    if not keys:
        raise UsageError("KEY is missing: give the keys of the jobs that shall be made once more")
    cost = f"about {len(keys) * CREDITS_PER_TASK:.12g} credits"
    if not yes:  # what is not there is said before money is spoken of
        async with location.opened() as journal:
            for key in keys:
                await find_retryable(journal, key)
    confirm(output, f"{_jobs(len(keys))} will be made once more and paid again, {cost}", yes=yes)
    output.facts["jobs"] = []
    async with location.opened() as journal:
        for key in keys:
            _tell(output, await retry(journal, key))
    output.say("the next run of the batch, or a worker, makes them")


async def resolve(  # noqa: PLR0913  # each is an option
    output: Output, location: JournalLocation, key: str, *, task_id: str | None, again: bool, leave: bool, yes: bool
) -> None:
    """Decide about a job whose outcome is unknown."""
    if (task_id is not None) + again + leave != 1:
        raise UsageError("give one of --task-id ID, --retry and --give-up")
    if task_id is not None and TASK_ID.fullmatch(task_id) is None:
        raise UsageError("--task-id is no id of a task: give it as the service shows it")
    if again:
        async with location.opened() as journal:
            await find_unknown(journal, key)
        confirm(output, f"job {key!r} will be sent again; if it was accepted after all, it is paid twice", yes=yes)
    output.facts["jobs"] = []
    async with location.opened() as journal:
        if task_id is not None:
            job = await resolve_as(journal, key, task_id)
        else:
            job = await (retry_unknown if again else give_up)(journal, key)
        _tell(output, job)
    if not leave:
        output.say("the next run of the batch, or a worker, goes on with it")


async def adopt_all(output: Output, location: JournalLocation, out: Path | None) -> None:
    """Take in what the results of a batch name and its journal has lost."""
    if out is None:
        raise UsageError("--out is missing: give the directory of the results")
    emulated = location.is_emulated or make_settings({}).on_loopback
    output.facts["jobs"] = []
    async with location.opened() as journal:
        async for job in adopt(journal, out, batch=location.only, emulated=emulated):
            _tell(output, job)
    output.say(
        f"{_jobs(len(output.facts['jobs']))} taken in; the next run of the batch, or a worker, goes on with them"
    )


def _tell(output: Output, job: Job) -> None:
    output.facts["jobs"].append(job_value(job))
    output.out(job_line(job))


def _jobs(count: int) -> str:
    return f"{count} job{'' if count == 1 else 's'}"


# ---------------------------------------------------------------- a damaged file


async def salvage_file(output: Output, path: Path) -> None:
    """Show which tasks a damaged journal tells of."""
    found = await to_thread.run_sync(lambda: list(salvage(path)))
    output.facts["tasks"] = [{"key": each.key, "task_id": each.task_id} for each in found]
    for each in found:
        output.out(f"{each.key or '-'}  {each.task_id or '-'}")
    output.say(f"{len(found)} submissions; see what became of a task: kie-async wait TASK_ID --out DIR")
