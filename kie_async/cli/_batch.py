"""The command ``batch``: from many songs to files on disk. Its docstring is the help."""

from __future__ import annotations

import asyncio
import shlex
import socket
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, nullcontext, suppress
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from kie_async._protocol.request_rules import CREDITS_PER_TASK
from kie_async._text import count_of
from kie_async.batch import (
    ManifestSummary,
    enqueue,
    read_manifest,
    run_batch,
    run_shared_batch,
)
from kie_async.cli._batch_order import BatchOrder
from kie_async.cli._batch_progress import BatchProgress, Counts
from kie_async.cli._connect import (
    EMULATOR_GONE,
    EMULATOR_REMEDY,
    JournalLocation,
    find_journal,
    make_settings,
    stopped_by_sigterm,
)
from kie_async.cli._exit_codes import TOP_UP, UsageError
from kie_async.cli._options import BATCH, BatchOptions, Directory, OutputArg
from kie_async.cli._output import Output, confirm
from kie_async.cli._report import report_on
from kie_async.errors import KieError, LostRecordError, StorageError, SubmitUnknownError, WaitTimeoutError
from kie_async.events import Notice
from kie_async.files import check_writable
from kie_async.journal import Job, Journal, is_local
from kie_async.session import KieSession
from kie_async.settings import Settings

_NO_KEY = "none-is-needed"  # to check requests
_MAX_CUT_OFF = 5  # songs that are named; the others are counted


async def batch(
    manifest: Annotated[Path, Parameter(help="A CSV or JSONL file with a row for each job, or a folder of songs.")],
    /,
    *,
    output: OutputArg,
    out: Annotated[Directory | None, Parameter(help="Where the files go; with --enqueue it names the batch.")] = None,
    options: BatchOptions = BATCH,
) -> None:
    """Extend many songs, and download their takes; an interrupted run continues with the same command.

    The options of music hold for all jobs whose row does not say otherwise.

    Example: kie-async batch songs --at 75% --instrumental --style folk --title Longer --out new
    """
    if options.run.report and (options.run.dry_run or options.run.enqueue):
        raise UsageError("--report needs the files: leave out --dry-run and --enqueue")
    if output.as_json and options.run.jsonl:
        raise UsageError("--json and --jsonl are both given: leave one out")
    options.receiver.check()
    location = find_journal(options.run.journal, out, emulate=options.run.emulate)
    _check(options, location)
    jobs = read_manifest(manifest, defaults=options.music.shared())
    order = BatchOrder(jobs, await jobs.check(), location, options)
    if options.run.dry_run:
        await _show_plan(output, order)
        return
    if options.run.enqueue:
        await _ask(output, order)
        await _enqueue(output, order, out)
        return
    if out is None:
        raise UsageError("--out is missing: give the directory where the files go")
    await check_writable(out)
    await _check_emulated(order)
    await _ask(output, order)
    reported = _reported(output, out) if options.run.report else nullcontext()
    async with reported:
        with stopped_by_sigterm():
            await _run(output, order, out)


@asynccontextmanager
async def _reported(output: Output, out: Path) -> AsyncIterator[None]:
    """Write the report of what is there when the block has ended, also by an error or Ctrl-C.

    A second Ctrl-C ends the command without it; a report that was there stays as it was.
    """
    try:
        yield
    except BaseException:
        task = asyncio.current_task()
        if task is None or task.cancelling() <= 1:  # counts each Ctrl-C
            with suppress(KieError):  # the error of the batch matters more
                await _report(output, out)
        raise
    await _report(output, out)


async def _report(output: Output, out: Path) -> None:
    with stopped_by_sigterm():
        output.say(f"compare the takes: {await report_on(output, out)}")


async def _ask(output: Output, order: BatchOrder) -> None:
    """Ask before credits are spent, for however few jobs; the emulator spends none."""
    run = order.options.run
    if duplicates := order.summary.duplicates:
        output.say(f"note: {count_of(duplicates, 'job')} {_repeats(duplicates)}")
    is_agreed = run.yes or run.emulate
    if is_agreed and not order.summary.cut_off:
        jobs, edited = 0, await order.count_edited()
    else:
        _, jobs, edited = await order.count()
    if edited:
        output.say(f"note: {count_of(edited, 'row')} {_differs(edited)}")
    if not jobs:
        return
    _say_cut_off(output, order.summary)
    if is_agreed:
        return
    if not run.enqueue:
        make_settings({})  # without a key there is nothing to confirm
    cost = jobs * CREDITS_PER_TASK
    words = f"about {cost:.12g} credits"
    if run.max_credits is not None and run.max_credits < cost:
        words = f"at most {run.max_credits:.12g} credits (--max-credits)"
    confirm(output, f"{count_of(jobs, 'new job')} will cost {words}")


def _check(options: BatchOptions, location: JournalLocation) -> None:
    run = options.run
    if location.is_shared and run.emulate:
        raise UsageError("--emulate is for one process; for several, run 'kie-async emulate' and set what it prints")
    if run.enqueue and not location.is_shared:
        raise UsageError("--enqueue needs --journal postgresql://...; with a file, 'kie-async batch' does all")
    if run.shared_files and not location.is_shared:
        raise UsageError("--shared-files needs --journal postgresql://...; a file is for one machine")
    if run.enqueue and (run.jsonl or options.receiver.callbacks):
        raise UsageError("--enqueue leaves the jobs to workers: give --jsonl and --callbacks to them")


async def _check_emulated(order: BatchOrder) -> None:
    """Refuse to go on with tasks of an emulator that ended with an earlier command: nobody can fetch what they made."""
    if not (order.options.run.emulate and order.location.exists):
        return
    async with order.location.journal() as journal:
        counts = Counts.of(await journal.counts(order.name))
    if gone := counts.submitted + counts.made:
        what = f"{count_of(gone, 'job')} on record {'was' if gone == 1 else 'were'} submitted before"
        raise UsageError(f"{what}, and {EMULATOR_GONE}: to begin anew, give another --out (and --journal)")


# ---------------------------------------------------------------- the plan


async def _show_plan(output: Output, order: BatchOrder) -> None:
    """Show what would be done, what it would cost, and what is there to pay it."""
    summary, (new, _, edited) = order.summary, await order.count()
    _say_cut_off(output, summary)
    counts = [
        {"operation": operation, "model": model, "jobs": jobs} for (operation, model), jobs in summary.counts.items()
    ]
    cost = new * CREDITS_PER_TASK
    value = {"jobs": summary.total, "new": new, "duplicates": summary.duplicates, "credits": cost, "counts": counts}
    output.value["plan"] = value
    for (operation, model), jobs in summary.counts.items():
        output.print(f"{jobs:>7}  {operation}, {model}")
    output.print(f"{new:>7}  of {count_of(summary.total, 'job')} {'is' if new == 1 else 'are'} new")
    if summary.duplicates:
        output.print(f"{summary.duplicates:>7}  {_repeats(summary.duplicates)}")
    if edited:
        value["edited"] = edited
        output.print(f"{edited:>7}  {_differs(edited)}")
    output.print(f"{cost:>7.12g}  credits is what the new ones will cost, about {CREDITS_PER_TASK:g} each")
    async with order.connect(output, journal="") as session:
        left = (await session.credits()).amount
    value["credits_left"] = left
    output.print(f"{left:>7.12g}  credits are left on the account")


def _say_cut_off(output: Output, summary: ManifestSummary) -> None:
    """Say which songs have lost their ends: one by one, if they are few."""
    for notice in summary.cut_off[:_MAX_CUT_OFF]:
        output.emit(Notice("", notice, "cut_off"))
    if (more := len(summary.cut_off) - _MAX_CUT_OFF) > 0:
        output.say(f"note: {count_of(more, 'more song')} {'is' if more == 1 else 'are'} cut off")


def _repeats(count: int) -> str:
    return f"{'asks' if count == 1 else 'ask'} for the same as another; each of them is made and paid for"


def _differs(count: int) -> str:
    verb = "differs" if count == 1 else "differ"
    return f"{verb} from what is on record under the same id, which stays: an edited row needs a new id"


# ---------------------------------------------------------------- for workers


async def _enqueue(output: Output, order: BatchOrder, out: Path | None) -> None:
    """Put the jobs on record, and say what comes next."""
    location, total, run = order.location, order.summary.total, order.options.run
    output.hints = dict.fromkeys((8, 130), f"go on with the same command:\n  {location.as_typed(output.words)}")
    session = KieSession(Settings(api_key=_NO_KEY, route=order.options.common.route))  # checks requests, sends nothing
    async with location.journal() as journal:
        machine = "" if run.shared_files else session.settings.machine
        if run.max_credits is not None:  # before there is a job that a worker could take
            before = await journal.caps.set(order.name, run.max_credits)
            if before not in {None, run.max_credits}:
                output.say(f"the cap is now {run.max_credits:.12g} credits ({before:.12g} before)")
        new = await enqueue(journal, order.jobs, order.name, session.check_request, machine=machine)
        own = sum((await journal.counts(order.name)).values())
    output.value |= {"jobs": total, "new": new}
    output.say(f"on record: {count_of(total, 'job')}, of which {new} {'is' if new == 1 else 'are'} new")
    _say_others(output, order, own)
    variable = ""
    if machine and any([is_local(job.request) async for job in order.jobs]):
        output.say(f"the songs are files of this machine ({machine}): they need a worker here, which uploads them")
        output.say("if every machine finds them at the same paths, give --shared-files")
        variable = "" if machine == socket.gethostname() else f"KIE_MACHINE={shlex.quote(machine)} "
    if location.must_be_set:
        output.say("set KIE_JOURNAL to the address you gave, which may hold a password; then")
    output.say(f"make them: {variable}kie-async worker {location.options} --out DIR")
    output.say(f"wait for them: kie-async jobs wait {location.with_out(out if own else None)}")


def _say_others(output: Output, order: BatchOrder, own: int) -> None:
    """Say how many jobs of the manifest another batch had on record before; they stay there."""
    if (others := order.summary.total - own) > 0:
        listed = f"kie-async jobs list {order.location.options}"
        output.say(f"left to another batch of this journal: {count_of(others, 'job')}; all are listed by: {listed}")


# ---------------------------------------------------------------- the run


async def _run(output: Output, order: BatchOrder, out: Path) -> None:
    """Run the batch, and raise why it did not deliver all."""
    command = order.location.as_typed(output.words)
    output.hints = _hints(command, order.location.options, emulated=order.options.run.emulate)
    progress = BatchProgress(output, out, jsonl=order.options.run.jsonl)
    journal = order.location.journal()
    async with (
        order.connect(output, observer=progress.emit, journal=journal) as session,
        progress.shown(journal, order.name),
    ):
        await _work(order, out, session, journal, progress.job_changed)
    _say_others(output, order, progress.counts.total)
    error = batch_error(progress.counts, order.location.with_out(out), command, lost=progress.lost)
    if error is not None:
        raise error


async def _work(
    order: BatchOrder, out: Path, session: KieSession, journal: Journal, observer: Callable[[Job], None]
) -> None:
    jobs, name, cap = order.jobs, order.name, order.options.run.max_credits
    if order.location.is_shared:
        dsn = order.location.address
        await run_shared_batch(
            session,
            jobs,
            journal=journal,
            dsn=dsn,
            directory=out,
            observer=observer,
            batch=name,
            shared_files=order.options.run.shared_files,
            max_credits=cap,
        )
        return
    outcomes = run_batch(session, jobs, journal=journal, directory=out, observer=observer, batch=name, max_credits=cap)
    async for _ in outcomes:
        pass


def _hints(command: str, where: str, *, emulated: bool) -> Mapping[int, str]:
    """What to do after the batch was stopped, by its exit code."""
    if emulated:
        return dict.fromkeys((3, 4, 5, 7, 8, 130), f"{EMULATOR_GONE}; {EMULATOR_REMEDY}")
    again = f"go on with the same command:\n  {command}"
    return {
        3: f"when that is mended, {again}",
        4: f"{TOP_UP}, then {again}",
        5: f"put the right key into the environment variable KIE_API_KEY; then {again}",
        7: f"{AFTER_UNKNOWN.format(where=where)}\nthe others {again}",
        8: f"when that is mended, {again}",
        130: f"what was submitted goes on at the service, and is kept; {again}",
    }


# ---------------------------------------------------------------- the end

_AFTER_LOSS = """\
put the journal back that knows them, or take them into this one, which pays nothing:
  kie-async jobs adopt {where}"""
AFTER_UNKNOWN = """\
they are not sent again by themselves, for they may be paid; see which:
  kie-async jobs list --state unknown {where}
then look at https://kie.ai/logs, and decide: kie-async jobs resolve KEY --task-id ID {where}"""
_AFTER_FAILURE = """\
see why:
  kie-async jobs list --state failed --state rejected {where}
to have one made after all, and paid again: kie-async jobs retry KEY {where}"""


def batch_error(counts: Counts, where: str, command: str, *, lost: int = 0) -> KieError | None:
    """The error that a batch ends with, which notes what to do about it; None if all is delivered.

    What matters most comes first: lost records, then jobs that may be paid, downloads, open jobs, failures.

    Args:
        counts: of the batch.
        where: the options that lead to the jobs.
        command: the one that continues the batch.
        lost: how many jobs were not submitted, because the journal does not know tasks of theirs that the results name.
    """
    note = f"go on with the same command:\n  {command}"
    if lost:
        return lost_error(lost, where, note)
    if counts.unknown:
        error: KieError = SubmitUnknownError(f"what became of {count_of(counts.unknown, 'job')} is not known")
        note = AFTER_UNKNOWN.format(where=where)
    elif counts.made:
        error = StorageError(f"the tracks of {count_of(counts.made, 'job')} could not be fetched", charged="yes")
    elif counts.open:
        error = WaitTimeoutError(f"{count_of(counts.open, 'job')} did not come to an end", charged="maybe")
    elif counts.failed:
        error = KieError(f"{count_of(counts.failed, 'job')} failed or were refused")
        note = _AFTER_FAILURE.format(where=where)
    else:
        return None
    error.add_note(note)
    return error


def lost_error(jobs: int, where: str, note: str) -> LostRecordError:
    """The error of so many jobs whose tasks the results name and the journal does not know, with how to go on."""
    which = f"{count_of(jobs, 'job')} {'was' if jobs == 1 else 'were'}"
    error = LostRecordError(f"{which} not submitted: the results name tasks that the journal has lost")
    error.add_note(f"{_AFTER_LOSS.format(where=where)}\nthen {note}")
    return error
