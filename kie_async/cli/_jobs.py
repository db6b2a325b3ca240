"""The commands about jobs: what became of them, and what a person decides."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from anyio import to_thread

from kie_async._protocol.limits import CREDITS_PER_TASK
from kie_async._protocol.wire import TASK_ID
from kie_async.batch._adopt import adopt
from kie_async.batch._decisions import (
    abandon,
    find_by_name,
    find_failed,
    find_unknown,
    name_task,
    resubmit,
    retry,
)
from kie_async.batch._results import bare
from kie_async.cli._board import Standing, job_line, job_value
from kie_async.cli._consent import agree
from kie_async.cli._exits import UsageError
from kie_async.cli._link import make_settings
from kie_async.cli._screen import Screen
from kie_async.cli._store import Store
from kie_async.events import clean
from kie_async.journal import Attempt, Job, State
from kie_async.journal._salvage import salvage
from kie_async.models import ExtendRequest


async def show_all(screen: Screen, store: Store, states: Sequence[State]) -> None:
    """List the jobs, in the order they were added, and count them."""
    jobs: list[dict[str, Any]] = []
    after = 0
    async with store.opened() as journal:
        while screen.lost is None and (page := await journal.page(*states, batch=store.only, after=after)):
            after = page[-1][0]
            for _, job in page:
                screen.out(job_line(job))
            if screen.as_json:
                jobs += [job_value(job) for _, job in page]
        counts = await journal.counts(store.only)
    screen.facts |= {"counts": {state.value: counts.get(state, 0) for state in State}, "jobs": jobs}
    screen.say(f"{Standing.of(counts)} of {sum(counts.values())} jobs")


async def show(screen: Screen, store: Store, key: str) -> None:
    """Show all that is known of a job, by its key or by the name of its song."""
    async with store.opened() as journal:
        job = await find_by_name(journal, key, store.only)
        attempts = await journal.attempts(job.key)
    value = _whole(job, attempts)
    screen.facts |= value
    for name, fact in value.items():
        if isinstance(fact, dict):
            screen.out(f"{name}:")
            _out(screen, fact)
        elif isinstance(fact, list):
            screen.out(f"{name}:")
            for each in fact:
                screen.out(f"  {_words(each)}")
        elif fact is not None:
            screen.out(f"{name}: {fact}")


def _out(screen: Screen, facts: dict[str, Any]) -> None:
    for name, fact in facts.items():
        if fact is not None:
            screen.out(f"  {name}: {fact}")


def _words(value: object) -> str:
    if isinstance(value, dict):
        return "  ".join(f"{name} {fact}" for name, fact in value.items() if fact is not None)
    return str(value)


def _whole(job: Job, attempts: Sequence[Attempt]) -> dict[str, Any]:
    """A job with all its attempts, as JSON; no token."""
    request = job.request
    source = request.audio_id if isinstance(request, ExtendRequest) else bare(str(request.source))
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


async def retry_all(screen: Screen, store: Store, keys: Sequence[str], *, yes: bool) -> None:
    """Have failed and rejected jobs made once more."""
    if not keys:
        raise UsageError("KEY is missing: give the keys of the jobs that shall be made once more")
    cost = f"about {len(keys) * CREDITS_PER_TASK:.12g} credits"
    if not yes:  # what is not there is said before money is spoken of
        async with store.opened() as journal:
            for key in keys:
                await find_failed(journal, key)
    agree(screen, f"{_jobs(len(keys))} will be made once more and paid again, {cost}", yes=yes)
    screen.facts["jobs"] = []
    async with store.opened() as journal:
        for key in keys:
            _tell(screen, await retry(journal, key))
    screen.say("the next run of the batch, or a worker, makes them")


async def resolve(  # noqa: PLR0913  # each is an option
    screen: Screen, store: Store, key: str, *, task_id: str | None, again: bool, leave: bool, yes: bool
) -> None:
    """Decide about a job whose outcome is unknown."""
    if (task_id is not None) + again + leave != 1:
        raise UsageError("give one of --task-id ID, --resubmit and --abandon")
    if task_id is not None and TASK_ID.fullmatch(task_id) is None:
        raise UsageError("--task-id is no id of a task: give it as the service shows it")
    if again:
        async with store.opened() as journal:
            await find_unknown(journal, key)
        agree(screen, f"job {key!r} will be sent again; if it was accepted after all, it is paid twice", yes=yes)
    screen.facts["jobs"] = []
    async with store.opened() as journal:
        if task_id is not None:
            job = await name_task(journal, key, task_id)
        else:
            job = await (resubmit if again else abandon)(journal, key)
        _tell(screen, job)
    if not leave:
        screen.say("the next run of the batch, or a worker, goes on with it")


async def adopt_all(screen: Screen, store: Store, out: Path | None) -> None:
    """Take in what the results of a batch name and its journal has lost."""
    if out is None:
        raise UsageError("--out is missing: give the directory of the results")
    emulated = store.is_emulated or make_settings({}).on_loopback
    screen.facts["jobs"] = []
    async with store.opened() as journal:
        async for job in adopt(journal, out, batch=store.only, emulated=emulated):
            _tell(screen, job)
    screen.say(
        f"{_jobs(len(screen.facts['jobs']))} taken in; the next run of the batch, or a worker, goes on with them"
    )


def _tell(screen: Screen, job: Job) -> None:
    screen.facts["jobs"].append(job_value(job))
    screen.out(job_line(job))


def _jobs(count: int) -> str:
    return f"{count} job{'' if count == 1 else 's'}"


# ---------------------------------------------------------------- a damaged file


async def salvage_file(screen: Screen, path: Path) -> None:
    """Show which tasks a damaged journal tells of."""
    found = await to_thread.run_sync(lambda: list(salvage(path)))
    screen.facts["tasks"] = [{"key": each.key, "task_id": each.task_id} for each in found]
    for each in found:
        screen.out(f"{each.key or '-'}  {each.task_id or '-'}")
    screen.say(f"{len(found)} submissions; see what became of a task: kie-async wait TASK_ID --out DIR")
