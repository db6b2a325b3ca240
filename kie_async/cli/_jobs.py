"""The commands ``jobs``: what became of jobs, and what a person decides. Their docstrings are the help."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from itertools import chain, repeat
from typing import Annotated, Any

import anyio
import attrs
from cyclopts import App, Parameter

from kie_async._protocol.request_rules import CREDITS_PER_TASK
from kie_async._protocol.wire import BARE_ID, TASK_ID
from kie_async._text import count_of
from kie_async.batch import (
    RESULTS,
    adopt,
    find_by_name,
    find_job,
    give_up,
    resolve_as,
    retry,
    retry_unknown,
    song_of,
    strip_secrets,
)
from kie_async.cli._batch import batch_error
from kie_async.cli._batch_progress import Counts, blocked_jobs, job_line, job_value, say_who_waits, timestamp
from kie_async.cli._connect import JournalLocation, find_journal, make_settings
from kie_async.cli._exit_codes import UsageError
from kie_async.cli._fetch import fetch
from kie_async.cli._options import JOBS, RESOLVE, JobsOptions, OutputArg, ResolveOptions, Timeout, Yes
from kie_async.cli._output import Output, confirm
from kie_async.errors import WaitTimeoutError
from kie_async.events import clean
from kie_async.journal import ANY_BATCH, Attempt, Job, Journal, State, batches_of
from kie_async.models import ExtendRequest, Track
from kie_async.settings import machine_name

app = App(name="jobs", help="See what became of the jobs of a batch, and decide about them.", help_epilogue="")

_INTERVAL = 1.0  # seconds between two reads of the journal
_MADE = (State.SUCCEEDED, State.DELIVERED)
_FAILED = (State.FAILED, State.REJECTED, State.UNKNOWN)
_LATER_STEP = re.compile(r"(?P<chain>[0-9a-f]{24})-(?!1$)[0-9]+")  # the key of one

app.command(fetch)

KeyArg = Annotated[str, Parameter(help="The key of a job.")]


@app.command(name="list")
async def list_jobs(
    *,
    output: OutputArg,
    state: Annotated[tuple[State, ...], Parameter(help="Only jobs in this state; may be repeated.")] = (),
    options: JobsOptions = JOBS,
) -> None:
    """List jobs: key, state, task, directory and error of each, until when tracks are kept, who waits for a machine.

    Example: kie-async jobs list --state failed --state unknown --out new
    """
    location = find_journal(options.journal, options.out)
    output.value["jobs"] = []
    async with _opened(location) as journal:
        async for job in _jobs_in(journal, output, location, *state):
            _show_job(output, job, await _song_of_chain(journal, job))
        counts = await journal.counts(location.only_batch)
        waiting = await journal.machines.waiting(location.only_batch)
    output.value["counts"] = {each.value: counts.get(each, 0) for each in State}
    output.say(Counts.of(counts).summary)
    say_who_waits(output, waiting)


@asynccontextmanager
async def _opened(location: JournalLocation) -> AsyncIterator[Journal]:
    """Open the journal; raise UsageError if it has no jobs of the batch that is meant, as for a name mistyped."""
    batch = location.only_batch
    async with location.opened() as journal:
        if batch is not None and not any((await journal.counts(batch)).values()):
            names = ", ".join(map(clean, await batches_of(journal))) or "none"
            raise UsageError(f"no jobs of the batch {batch}; batches on record: {names}; without --out all are meant")
        yield journal


async def _jobs_in(journal: Journal, output: Output, location: JournalLocation, *states: State) -> AsyncIterator[Job]:
    """The jobs in these states, or in any, as long as somebody reads what is said of them."""
    async for job in journal.jobs(*states, batch=location.only_batch):
        if output.stdout_error is not None:
            return
        yield job


@app.command(name="wait")
async def wait_for_jobs(*, output: OutputArg, max_wait: Timeout = None, options: JobsOptions = JOBS) -> None:
    """Wait until every job of the batch, or of all, has come to its end, wherever workers make them.

    Example: kie-async jobs wait --journal postgresql://kie@db.example/kie --out new
    """
    location = find_journal(options.journal, options.out)
    command = location.as_typed(output.words)
    output.hints = dict.fromkeys((4, 6, 8, 130), f"the jobs go on if a worker makes them; wait again:\n  {command}")
    async with _opened(location) as journal:
        with anyio.move_on_after(max_wait):
            while (counts := Counts.of(states := await journal.counts(location.awaited))).open:
                if counts.open == states[State.PLANNED]:
                    await journal.caps.check_left(location.only_batch)
                output.display.doing(str(counts) + await blocked_jobs(journal, location.awaited))
                await anyio.sleep(_INTERVAL)
        counts = Counts.of(await journal.counts(location.awaited))
        by_programs = {} if location.only_batch else await journal.counts("")
        waiting = await journal.machines.waiting(location.only_batch)
    output.value["counts"] = attrs.asdict(counts)
    output.say(counts.summary)
    say_who_waits(output, waiting)
    if followed := sum(by_programs.get(state, 0) for state in (State.PLANNED, State.INTENT, State.SUBMITTED)):
        output.say(f"not waited for: {count_of(followed, 'task')} that programs follow")
    if counts.open:
        raise WaitTimeoutError(f"{count_of(counts.open, 'job')} did not come to an end in time", charged="maybe")
    if (error := batch_error(counts, location.with_out(options.out), command)) is not None:
        raise error


@app.command
async def results(*, output: OutputArg, options: JobsOptions = JOBS) -> None:
    """Show what was made: key, song, length, address and file of each track; and why the other jobs failed.

    A file of another machine is shown as MACHINE:PATH.

    Example: kie-async jobs results --journal postgresql://kie@db.example/kie --out new
    """
    location = find_journal(options.journal, options.out)
    output.value["jobs"] = []
    async with _opened(location) as journal:
        async for job in _jobs_in(journal, output, location, *_MADE, *_FAILED):
            song = await _song_of_chain(journal, job)
            if output.as_json:
                tracks = [track.to_dict() for track in job.tracks]
                output.value["jobs"].append({**job_value(job, song), "tracks": tracks})
            if job.state in _FAILED:
                output.say(job_line(job, song))
            for track, path in zip(job.tracks, chain(_paths(job), repeat("")), strict=False):
                output.print(_track_line(job, song, track, path))


def _paths(job: Job) -> Iterator[str]:
    """Where the files of a job are: on this machine a path, on another ``MACHINE:PATH``."""
    directory = job.directory.removeprefix(f"{machine_name()}:")
    return (f"{directory}/{file}" if directory else file for file in map(clean, job.files))


def _track_line(job: Job, song: str | None, track: Track, path: str) -> str:
    length = "" if track.duration is None else f"{track.duration:.1f} s"
    return "  ".join(filter(None, (job.key, song_of(job.request) or song, length, track.audio_url, path)))


async def _song_of_chain(journal: Journal, job: Job) -> str | None:
    """The song of a later step of a chain, which extends a take: that of its first step, if both share a name."""
    step = None if job.batch else _LATER_STEP.fullmatch(job.key)
    first = None if step is None else await journal.get(f"{step['chain']}-1")
    return None if first is None else song_of(first.request)


@app.command
async def show(
    key: Annotated[str, Parameter(help="The key of a job, or the name of its song.")],
    /,
    *,
    output: OutputArg,
    options: JobsOptions = JOBS,
) -> None:
    """Show all that is known of a job: its attempts, timestamps, error and files, and when tracks to fetch are deleted.

    Example: kie-async jobs show song-17 --out new
    """
    location = find_journal(options.journal, options.out)
    async with location.opened() as journal:
        job = await find_by_name(journal, key, location.only_batch)
        attempts = await journal.attempts(job.key)
        song = await _song_of_chain(journal, job)
    output.value |= _whole(job, attempts, song)
    for line in _lines(output.value):
        output.print(line)


def _lines(fields: Mapping[str, Any], indent: str = "") -> Iterator[str]:
    for name, field in fields.items():
        if isinstance(field, dict):
            yield f"{name}:"
            yield from _lines(field, "  ")
        elif isinstance(field, list):
            yield f"{name}:"
            yield from (f"  {_words(each)}" for each in field)
        elif field is not None:
            yield f"{indent}{name}: {field}"


def _words(value: object) -> str:
    if isinstance(value, dict):
        return "  ".join(f"{name} {field}" for name, field in value.items() if field is not None)
    return str(value)


def _whole(job: Job, attempts: Sequence[Attempt], song: str | None) -> dict[str, Any]:
    """A job with all its attempts, as JSON; no token."""
    request = job.request
    source = request.audio_id if isinstance(request, ExtendRequest) else strip_secrets(str(request.source))
    return {
        **job_value(job, song),
        "batch": job.batch,
        "machine": job.machine or None,
        "operation": request.operation,
        "model": request.model,
        "title": clean(request.title) if request.title else None,
        "source": source,
        "earlier_credits": job.earlier_credits,
        "timestamps": {name: timestamp(at) for name, at in job.moments.items()},
        "attempts": [
            {"number": each.number, "task_id": each.task_id, "intended_at": timestamp(each.intended_at)}
            for each in attempts
        ],
    }


# ---------------------------------------------------------------- decisions


@app.command(name="retry")
async def retry_jobs(
    *keys: Annotated[str, Parameter(help="The keys of jobs that failed or were rejected.")],
    output: OutputArg,
    options: JobsOptions = JOBS,
    yes: Yes = False,
) -> None:
    """Have jobs made once more that failed or were rejected; they are paid again.

    Example: kie-async jobs retry song-17 song-23 --out new
    """
    location = find_journal(options.journal, options.out)
    if not keys:
        raise UsageError("KEY is missing: give the keys of the jobs that shall be made once more")
    if not yes:  # what is not there is said before money is spoken of
        async with location.opened() as journal:
            for key in keys:
                await find_job(journal, key, State.FAILED, State.REJECTED)
        cost = f"about {len(keys) * CREDITS_PER_TASK:.12g} credits"
        confirm(output, f"{count_of(len(keys), 'job')} will be made once more and paid again, {cost}")
    output.value["jobs"] = []
    async with location.opened() as journal:
        jobs: list[Job] = []
        for key in keys:
            jobs.append(await retry(journal, key))
            _show_job(output, jobs[-1])
    _say_who_goes_on(output, jobs)


@app.command
async def resolve(
    key: KeyArg, /, *, output: OutputArg, choice: ResolveOptions = RESOLVE, options: JobsOptions = JOBS
) -> None:
    """Decide about a job whose submission's answer was lost, so that nobody knows whether it was accepted.

    Example: kie-async jobs resolve song-17 --task-id 5c79be8e0a1b4c6d9e2f3a4b5c6d7e8f --out new
    """
    location, task_id = find_journal(options.journal, options.out), choice.task_id
    if (task_id is not None) + choice.retry + choice.give_up != 1:
        raise UsageError("give one of --task-id ID, --retry and --give-up")
    if task_id is not None and TASK_ID.fullmatch(task_id) is None:
        raise UsageError("--task-id is no id of a task: give it as the service shows it")
    if task_id is not None and BARE_ID.fullmatch(task_id) is None and not choice.yes:
        odd = f"--task-id is {task_id!r}, and ids of tasks have 32 characters, 0-9 and a-f"
        confirm(output, f"{odd}; if it is none, job {key!r} will fail, and its task is lost")
    if choice.retry and not choice.yes:
        async with location.opened() as journal:
            await find_job(journal, key, State.UNKNOWN)
        confirm(output, f"job {key!r} will be sent again; if it was accepted after all, it is paid twice")
    output.value["jobs"] = []
    async with location.opened() as journal:
        if task_id is not None:
            job = await resolve_as(journal, key, task_id)
        else:
            job = await (retry_unknown if choice.retry else give_up)(journal, key)
        _show_job(output, job)
    if not choice.give_up:
        _say_who_goes_on(output, [job])


def _say_who_goes_on(output: Output, jobs: Sequence[Job]) -> None:
    """Say who goes on with jobs that were decided about; no worker does with those that are of no batch."""
    if any(job.batch for job in jobs):
        output.say("the next run of the batch, or a worker, goes on")
    for job in jobs:
        if not job.batch:
            submit, follow = "let that submit it again with this key; no worker does", "its session.resume() follows it"
            output.say(f"{job.key} was submitted by a program: {submit if job.state is State.PLANNED else follow}")


@app.command(name="adopt")
async def adopt_tasks(*, output: OutputArg, options: JobsOptions = JOBS) -> None:
    """Take in the tasks that the results name and a lost journal no longer knows; nothing is sent or paid.

    Example: kie-async jobs adopt --out new
    """
    location, out = find_journal(options.journal, options.out), options.out
    if out is None:
        raise UsageError("--out is missing: give the directory of the results")
    if not location.exists and (out / RESULTS).exists():
        how = "run the batch again: it puts its jobs on record, and sends none that the results name; then adopt"
        raise UsageError(f"{location.address} does not exist: {how}")
    emulated = location.is_emulated or make_settings({}).on_loopback
    batch = ANY_BATCH if location.is_shared else location.only_batch  # a worker puts all batches into one directory
    output.value["jobs"], taken = [], 0
    async with location.opened() as journal:
        async for job in adopt(journal, out, batch=batch, emulated=emulated):
            _show_job(output, job)
            taken += 1
    if taken:
        output.say(f"{count_of(taken, 'job')} taken in; the next run of the batch, or a worker, goes on with them")
    else:
        output.say(f"0 jobs taken in: no planned job has a task in {out}")


def _show_job(output: Output, job: Job, song: str | None = None) -> None:
    if output.as_json:
        output.value["jobs"].append(job_value(job, song))
    output.print(job_line(job, song))
