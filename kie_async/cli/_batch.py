"""The batch: from a manifest, or a folder of songs, to files on disk; the same command again goes on."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import attrs

from kie_async._protocol.limits import CREDITS_PER_TASK
from kie_async.batch import Manifest, ManifestSummary, read_manifest, run_batch, share_batch
from kie_async.cli._batch_end import after_unknown, raise_for_counts
from kie_async.cli._confirm import confirm, is_at_terminal
from kie_async.cli._connect import ConnectOptions, connect, make_settings
from kie_async.cli._exit_status import TerminatedError, UsageError
from kie_async.cli._journal import JournalLocation, find_journal
from kie_async.cli._options import BatchOptions
from kie_async.cli._output import Output
from kie_async.cli._progress import BatchProgress
from kie_async.cli._signals import stoppable
from kie_async.journal import Journal, State
from kie_async.session import KieSession

ASK_ABOVE = 20  # new jobs, where somebody sits at a terminal
# Of the built-in emulator: what a batch waits for is the quota alone.
_EMULATOR = {"speed": 300.0, "credits": 1e6, "goes_on": (3.0, 5.0)}


@attrs.frozen
class Order:
    """What was ordered.

    Attributes:
        listed: the jobs.
        plan: what they come to.
        out: where the files go.
        location: where the jobs are kept.
        options: how it is to be done.
    """

    listed: Manifest
    plan: ManifestSummary
    out: Path
    location: JournalLocation
    options: BatchOptions

    @property
    def name(self) -> str:
        """The batch's name in the journal."""
        return self.location.batch or ""

    async def count_new(self) -> int:
        """How many of the jobs the journal does not know yet."""
        if not self.location.exists:
            return self.plan.total
        async with self.location.journal() as journal:
            return sum([await journal.get(job.key) is None async for job in self.listed])

    async def count_payable(self) -> int:
        """How many jobs will be submitted: those that the journal does not know yet, and those it has planned."""
        new = await self.count_new()
        if not self.location.exists:
            return new
        async with self.location.journal() as journal:
            return new + (await journal.counts(self.name))[State.PLANNED]


async def batch(output: Output, manifest: Path, out: Path, options: BatchOptions) -> None:
    """Run a batch, or show what it would do."""
    _check(output, options)
    location = find_journal(options.batch.journal, out, emulate=options.batch.emulate)
    if location.is_shared:
        _check_shared(options)
    listed = read_manifest(manifest, defaults=options.music.shared())
    order = Order(listed, await listed.check(), out, location, options)
    if options.batch.dry_run:
        await _rehearse(output, order)
        return
    await _ask(output, order)
    with stoppable(_stopped):
        await _run(output, order)


async def _ask(output: Output, order: Order) -> None:
    """Ask before credits are spent; at a terminal, a few jobs need no answer."""
    run = order.options.batch
    jobs = 0 if run.yes else await order.count_payable()
    if not jobs or (jobs <= ASK_ABOVE and (run.emulate or is_at_terminal())):
        return
    if not run.emulate:
        make_settings({})  # without a key there is nothing to confirm
    cost = jobs * CREDITS_PER_TASK
    words = f"about {cost:.12g} credits"
    if run.max_credits is not None and run.max_credits < cost:
        words = f"at most {run.max_credits:.12g} credits (--max-credits)"
    confirm(output, f"{jobs} new job{'s' if jobs > 1 else ''} will cost {words}", yes=False)


def _stopped() -> None:
    raise TerminatedError("stopped by SIGTERM")


def _check(output: Output, options: BatchOptions) -> None:
    if output.as_json and options.batch.jsonl:
        raise UsageError("--json and --jsonl are both given: leave one out")
    options.calls.check()


def _check_shared(options: BatchOptions) -> None:
    if options.batch.emulate:
        raise UsageError("--emulate is for one process; for several, run 'kie-async emulate' and set what it prints")
    if options.batch.max_credits is not None:
        raise UsageError("--max-credits cannot bind the other workers of a shared journal: leave it out")


# ---------------------------------------------------------------- the plan


async def _rehearse(output: Output, order: Order) -> None:
    """Show what would be done, what it would cost, and what is there to pay it."""
    plan, new = order.plan, await order.count_new()
    counts = [
        {"operation": operation, "model": model, "jobs": jobs} for (operation, model), jobs in plan.counts.items()
    ]
    cost = new * CREDITS_PER_TASK
    value = {"jobs": plan.total, "new": new, "duplicates": plan.duplicates, "credits": cost, "counts": counts}
    output.facts["plan"] = value
    for (operation, model), jobs in plan.counts.items():
        output.out(f"{jobs:>7}  {operation}, {model}")
    output.out(f"{new:>7}  of {plan.total} jobs are new")
    if plan.duplicates:
        output.out(f"{plan.duplicates:>7}  ask for the same as another, and are made and paid all the same")
    output.out(f"{cost:>7.12g}  credits is what the new ones will cost, about {CREDITS_PER_TASK:g} each")
    async with connect(output, _connect_options(order)) as connection:
        left = (await connection.session.credits()).amount
    value["credits_left"] = left
    output.out(f"{left:>7.12g}  credits are left on the account")


# ---------------------------------------------------------------- the run


def _connect_options(order: Order) -> ConnectOptions:
    calls, run = order.options.calls, order.options.batch
    url = calls.callback_url
    if url is None and not (calls.callbacks or order.location.is_shared):
        url = ""  # that of the environment leads to another process, which cannot tell this one
    return ConnectOptions(
        route=order.options.common.route,
        emulate=run.emulate,
        emulator=_EMULATOR,
        receive=calls.callbacks or run.emulate,  # those of the emulator always find their way
        callback_url=url,
        bind=calls.bind,
    )


async def _run(output: Output, order: Order) -> None:
    """Take every job to its end, and say how it went."""
    command = order.location.retyped(output.words)
    output.hints = _hints(command, order.location.options, emulated=order.options.batch.emulate)
    progress = BatchProgress(output, order.out, jsonl=order.options.batch.jsonl)
    journal = order.location.journal()
    async with order.location.quota() as limiter:
        plan = attrs.evolve(_connect_options(order), observer=progress.tell, journal=journal, limiter=limiter)
        async with connect(output, plan) as connection, progress.following(journal, order.name):
            await _work(order, connection.session, journal, progress)
    if (others := order.plan.total - progress.counts.total) > 0:
        output.say(f"{others} of the jobs belong to another batch of this journal, and are left to it")
    raise_for_counts(output, progress.counts, order.location.with_out(order.out), command, lost=progress.lost)


async def _work(order: Order, session: KieSession, journal: Journal, progress: BatchProgress) -> None:
    if order.location.is_shared:
        await share_batch(
            session,
            order.listed,
            journal=journal,
            dsn=order.location.place,
            directory=order.out,
            observer=progress.moved,
            batch=order.name,
        )
        return
    outcomes = run_batch(
        session,
        order.listed,
        journal=journal,
        directory=order.out,
        observer=progress.moved,
        batch=order.name,
        max_credits=order.options.batch.max_credits,
    )
    async for _ in outcomes:
        pass


def _hints(command: str, where: str, *, emulated: bool) -> Mapping[int, str]:
    """What to do after the batch was stopped, by its exit code."""
    if emulated:
        gone = "the emulator and its tasks are gone; to stop and go on, run 'kie-async emulate' in another terminal"
        return dict.fromkeys((3, 4, 5, 7, 8, 130), gone)
    again = f"go on with the same command:\n  {command}"
    return {
        3: f"when that is mended, {again}",
        4: f"top up at https://kie.ai, or raise --max-credits; then {again}",
        5: f"put the key into the environment variable KIE_API_KEY; then {again}",
        7: f"{after_unknown(where)}\nthe others {again}",
        8: f"when that is mended, {again}",
        130: f"what was submitted goes on at the service, and is kept; {again}",
    }
