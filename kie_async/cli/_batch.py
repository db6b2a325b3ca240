"""The batch: from a manifest, or a folder of songs, to files on disk; the same command again goes on."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import attrs

from kie_async._protocol.limits import CREDITS_PER_TASK
from kie_async.batch import Manifest, ManifestSummary, read_manifest, run_batch
from kie_async.batch._sharing import share_batch
from kie_async.cli import _link
from kie_async.cli._board import Board
from kie_async.cli._consent import agree, is_at_terminal
from kie_async.cli._exits import StoppedError, UsageError
from kie_async.cli._link import linked, make_settings
from kie_async.cli._options import BatchWishes
from kie_async.cli._screen import Screen
from kie_async.cli._stop import stoppable
from kie_async.cli._store import Store, find_store
from kie_async.cli._verdict import after_unknown, judge
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
        store: where the jobs are kept.
        wishes: how it is to be done.
    """

    listed: Manifest
    plan: ManifestSummary
    out: Path
    store: Store
    wishes: BatchWishes

    @property
    def name(self) -> str:
        """The batch's name in the journal."""
        return self.store.batch or ""

    async def count_new(self) -> int:
        """How many of the jobs the journal does not know yet."""
        if not self.store.exists:
            return self.plan.total
        async with self.store.journal() as journal:
            return sum([await journal.get(job.key) is None async for job in self.listed])

    async def count_payable(self) -> int:
        """How many jobs will be submitted: those that the journal does not know yet, and those it has planned."""
        new = await self.count_new()
        if not self.store.exists:
            return new
        async with self.store.journal() as journal:
            return new + (await journal.counts(self.name))[State.PLANNED]


async def batch(screen: Screen, manifest: Path, out: Path, wishes: BatchWishes) -> None:
    """Run a batch, or show what it would do."""
    _check(screen, wishes)
    store = find_store(wishes.batch.journal, out, emulate=wishes.batch.emulate)
    if store.is_shared:
        _check_shared(wishes)
    listed = read_manifest(manifest, defaults=wishes.music.shared())
    order = Order(listed, await listed.check(), out, store, wishes)
    if wishes.batch.dry_run:
        await _rehearse(screen, order)
        return
    await _ask(screen, order)
    with stoppable(_stopped):
        await _run(screen, order)


async def _ask(screen: Screen, order: Order) -> None:
    """Have the user agree to what will be spent: to a few jobs, he does who types the command at a terminal."""
    run = order.wishes.batch
    jobs = 0 if run.yes else await order.count_payable()
    if not jobs or (jobs <= ASK_ABOVE and (run.emulate or is_at_terminal())):
        return
    if not run.emulate:
        make_settings({})  # without a key there is nothing to agree to
    cost = jobs * CREDITS_PER_TASK
    words = f"about {cost:.12g} credits"
    if run.max_credits is not None and run.max_credits < cost:
        words = f"at most {run.max_credits:.12g} credits (--max-credits)"
    agree(screen, f"{jobs} new job{'s' if jobs > 1 else ''} will cost {words}", yes=False)


def _stopped() -> None:
    raise StoppedError("stopped by SIGTERM")


def _check(screen: Screen, wishes: BatchWishes) -> None:
    if screen.as_json and wishes.batch.jsonl:
        raise UsageError("--json and --jsonl are both given: leave one out")
    wishes.calls.check()


def _check_shared(wishes: BatchWishes) -> None:
    if wishes.batch.emulate:
        raise UsageError("--emulate is for one process; for several, run 'kie-async emulate' and set what it prints")
    if wishes.batch.max_credits is not None:
        raise UsageError("--max-credits cannot bind the other workers of a shared journal: leave it out")


# ---------------------------------------------------------------- the plan


async def _rehearse(screen: Screen, order: Order) -> None:
    """Show what would be done, what it would cost, and what is there to pay it."""
    plan, new = order.plan, await order.count_new()
    counts = [
        {"operation": operation, "model": model, "jobs": jobs} for (operation, model), jobs in plan.counts.items()
    ]
    cost = new * CREDITS_PER_TASK
    value = {"jobs": plan.total, "new": new, "duplicates": plan.duplicates, "credits": cost, "counts": counts}
    screen.facts["plan"] = value
    for (operation, model), jobs in plan.counts.items():
        screen.out(f"{jobs:>7}  {operation}, {model}")
    screen.out(f"{new:>7}  of {plan.total} jobs are new")
    if plan.duplicates:
        screen.out(f"{plan.duplicates:>7}  ask for the same as another, and are made and paid all the same")
    screen.out(f"{cost:>7.12g}  credits is what the new ones will cost, about {CREDITS_PER_TASK:g} each")
    async with linked(screen, _link_plan(order)) as link:
        left = (await link.session.credits()).amount
    value["credits_left"] = left
    screen.out(f"{left:>7.12g}  credits are left on the account")


# ---------------------------------------------------------------- the run


def _link_plan(order: Order) -> _link.Plan:
    calls, run = order.wishes.calls, order.wishes.batch
    url = calls.callback_url
    if url is None and not (calls.callbacks or order.store.is_shared):
        url = ""  # that of the environment leads to another process, which cannot tell this one
    return _link.Plan(
        route=order.wishes.common.route,
        emulate=run.emulate,
        emulator=_EMULATOR,
        receive=calls.callbacks or run.emulate,  # those of the emulator always find their way
        callback_url=url,
        bind=calls.bind,
    )


async def _run(screen: Screen, order: Order) -> None:
    """Take every job to its end, and say how it went."""
    command = order.store.retyped(screen.words)
    screen.hints = _hints(command, order.store.options, emulated=order.wishes.batch.emulate)
    board = Board(screen, order.out, jsonl=order.wishes.batch.jsonl)
    journal = order.store.journal()
    async with order.store.quota() as limiter:
        plan = attrs.evolve(_link_plan(order), observer=board.tell, journal=journal, limiter=limiter)
        async with linked(screen, plan) as link, board.following(journal, order.name):
            await _work(order, link.session, journal, board)
    if (others := order.plan.total - board.standing.total) > 0:
        screen.say(f"{others} of the jobs belong to another batch of this journal, and are left to it")
    judge(screen, board.standing, order.store.with_out(order.out), command, lost=board.lost)


async def _work(order: Order, session: KieSession, journal: Journal, board: Board) -> None:
    if order.store.is_shared:
        await share_batch(
            session,
            order.listed,
            journal=journal,
            dsn=order.store.place,
            directory=order.out,
            observer=board.moved,
            batch=order.name,
        )
        return
    outcomes = run_batch(
        session,
        order.listed,
        journal=journal,
        directory=order.out,
        observer=board.moved,
        batch=order.name,
        max_credits=order.wishes.batch.max_credits,
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
