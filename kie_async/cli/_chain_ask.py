"""What is said of a chain before it is paid for, and the question whether to go on."""

from __future__ import annotations

from typing import cast

import attrs

from kie_async import files
from kie_async._protocol.request_rules import CREDITS_PER_TASK
from kie_async._text import clock, count_of
from kie_async.chain._rules import BEFORE_END, SongLength
from kie_async.cli._chain_order import ChainOrder
from kie_async.cli._output import Output, confirm
from kie_async.cli._source import describe_fade, say_cut_off
from kie_async.journal import PAID, Job, State

_UNCERTAIN_CUT = (
    "the service may extend a take from its end in place of the cut; with --style and --title (and --prompt or "
    "--instrumental) the cut is certain"
)


async def ask(output: Output, order: ChainOrder) -> ChainOrder:
    """Show the plan, and ask before credits are spent; return what was agreed."""
    plan, (jobs, unused) = order.plan, await order.on_record()
    is_ended, lengths = await files.on_disk(order.is_ended, jobs)
    paid = [job for job in jobs if job.state in PAID]
    new = 0 if is_ended else max(plan.goal.max_steps - len(paid), 0)
    if plan.max_credits is not None:
        new = min(new, int(max(plan.max_credits - _paid(jobs), 0) // CREDITS_PER_TASK))
    cost, length = new * CREDITS_PER_TASK, plan.first.source_duration
    output.value["plan"] = {"key": plan.key, "new_steps": new, "credits": cost, "source_duration": length}
    output.value["plan"] |= {"unused_steps": len(unused)}
    order = attrs.evolve(order, delivered=sum(job.state is State.DELIVERED for job in jobs))
    if is_ended:
        goal = attrs.evolve(plan.goal, max_steps=max(len(jobs), 1))  # whatever their sound is found to hold now
        return attrs.evolve(order, plan=attrs.evolve(plan, goal=goal))
    until = clock(plan.goal.seconds)
    output.say(f"{_subject(order, lengths)} is extended until {until}, by {count_of(new, 'new step')} at most")
    if order.is_cut_uncertain and new:
        output.say(f"note: {_UNCERTAIN_CUT}")
    if unused and new:
        output.say(
            f"{count_of(len(unused), 'step')} on record with --choose {order.other_choice} ({_paid(unused):.12g} "
            "credits) cannot be used: "
            f"the first step is shared, and --choose {order.until.choose} pays for its own after that"
        )
    if new and not jobs:
        await say_cut_off(output, plan.first)
        await _say_fade(output, order)
    each = f" ({CREDITS_PER_TASK:.12g} for each step that it takes)" if new > 1 else ""
    worst = f"it will cost {cost:.12g} credits at most{each}"
    if new and not (order.emulated or order.until.yes):
        confirm(output, worst)
    elif new:
        output.say(f"{worst}, which the emulator only counts" if order.emulated else worst)
    return order


def _subject(order: ChainOrder, lengths: set[SongLength | None]) -> str:
    """What is extended: the source, if no step is on record, or else the song that the steps have made."""
    source, is_source = order.plan.first, lengths == {order.plan.start}
    known = {source.source_duration} if is_source else {None if song is None else song.total for song in lengths}
    length, cut = (known.pop() if len(known) == 1 else None), source.continue_at
    subject = ("your song" if is_source else "the song so far") + ("" if length is None else f" ({clock(length)})")
    return subject + (
        f", kept to {clock(cut) if isinstance(cut, float) else cut}," if is_source and order.has_cut else ""
    )


async def _say_fade(output: Output, order: ChainOrder) -> None:
    """Say that a song fades out before its first cut, which a new part does not follow well, or where it is cut."""
    plan, cut = order.plan, order.plan.first.continue_at
    if plan.fades_from is not None:
        output.say(
            f"your song fades out from about {clock(plan.fades_from)}: it is cut before that, at "
            f"{clock(cast('float', cut))} (--before-end {BEFORE_END} keeps the fade)"
        )
    elif order.has_cut and (fade := await describe_fade(plan.first)):
        output.say(f"{fade}. Choose now: with another --at, a later run makes and pays all steps again")


def _paid(jobs: list[Job]) -> float:
    """What jobs have cost, with the attempts that failed."""
    costs = (CREDITS_PER_TASK if job.credits is None else job.credits for job in jobs if job.state in PAID)
    return sum(costs) + sum(job.earlier_credits for job in jobs)
