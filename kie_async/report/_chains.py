"""The chains among the rows of a report: their steps, and where the steps meet in the song that they make. Pure."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from typing import TypeAlias

import attrs

from kie_async.report._rows import MAX_TEXT, Place, ReportedJob, Take

Chain: TypeAlias = Sequence[ReportedJob]  # from the first step on

_FINISHED = re.compile(r"(.+?)-(?:joined|(?:joined-)?[\d.]+s)\.[^.]+")  # the joined or trimmed song of a chain
_STEP = re.compile(r"([0-9a-f]{24}-)(\d+)")  # the key of a step


def tell_chains(
    jobs: Sequence[ReportedJob], others: Iterable[ReportedJob]
) -> tuple[list[ReportedJob], list[ReportedJob]]:
    """Number the steps of chains, and tell their finished songs from the files that belong to no job.

    Returns:
        The rows of jobs and of finished songs, and the other rows.
    """
    makers = {take.track_id: job for job in jobs for take in job.takes if take.track_id}
    by_key = {job.key: job for job in jobs}

    def before(job: ReportedJob) -> ReportedJob | None:
        step = (
            None if job.source.audio_id else _STEP.fullmatch(job.key)
        )  # one that failed has no sidecar to name its source
        return by_key.get(f"{step[1]}{int(step[2]) - 1}") if step else makers.get(job.source.audio_id)

    chains = {job.key: _chain_to(job, before) for job in jobs}
    steps: dict[str, int] = {}
    for chain in chains.values():
        steps |= {job.key: max(steps.get(job.key, 0), len(chain)) for job in chain}
    numbered = {key: _step(chain, steps[key]) for key, chain in chains.items()}
    extended = {job.source.audio_id for job in jobs}
    finished, rest = list[ReportedJob](), list[ReportedJob]()
    for row in others:
        key = _last_step(row.key, numbered)
        if key is None:
            rest.append(row)
        else:
            finished.append(_finished(row, chains[key], numbered[key].title))
            extended |= {take.track_id for take in numbered[key].takes}  # there is no need to search its takes for it
    for key, chain in chains.items():
        takes = chain[-1].takes
        if takes and len(chain) > 1 and extended.isdisjoint(take.track_id for take in takes):
            numbered[key] = _with_song(numbered[key], chain)
    return [*numbered.values(), *finished], rest


def _chain_to(job: ReportedJob, before: Callable[[ReportedJob], ReportedJob | None]) -> Chain:
    """The chain that ends with a job; if the jobs extend one another in a circle, each of them once."""
    chain = [job]
    while (source := before(chain[0])) and source not in chain:
        chain.insert(0, source)
    return chain


def _step(chain: Chain, steps: int) -> ReportedJob:
    """Number the last step of a chain; one that has no title takes that of a step before."""
    job = chain[-1]
    title = next((each.title for each in reversed(chain) if each.title), job.key[:MAX_TEXT])
    return attrs.evolve(job, title=title, place=Place(step=len(chain), steps=steps, chain=chain[0].key))


def _with_song(job: ReportedJob, chain: Chain) -> ReportedJob:
    """Mark the take of the last step that was chosen, if it holds the whole song."""
    song = _chosen(chain)
    takes = (attrs.evolve(take, is_song=take == song and _reading(take, job.cut) == "whole") for take in job.takes)
    return attrs.evolve(job, takes=tuple(takes))


def _chosen(chain: Chain) -> Take:
    """The take of the last step that was chosen, by the rule that the chain has followed before: longest, or first."""
    takes_longest = all(_longest(job.takes).track_id == after.source.audio_id for job, after in pairwise(chain))
    return _longest(chain[-1].takes) if takes_longest else chain[-1].takes[0]


def _longest(takes: Sequence[Take]) -> Take:
    return max(takes, key=lambda take: take.seconds or 0.0)


def _reading(take: Take, cut: float | None) -> str:
    """What a take holds; where that was not measured, one that is not longer than the cut is the continuation alone."""
    is_short = cut is not None and take.seconds is not None and take.seconds <= cut
    return take.reading or ("continuation" if is_short else "whole")


# ---------------------------------------------------------------- finished songs


def _last_step(name: str, steps: Iterable[str]) -> str | None:
    """The key of the last step of the chain that has made a file; None if none has."""
    found = _FINISHED.fullmatch(name)
    return next((key for key in steps if found[1].endswith(f"-{key}")), None) if found else None


def _finished(row: ReportedJob, chain: Chain, title: str) -> ReportedJob:
    """Make the row of a finished song of that of its file."""
    number = _STEP.fullmatch(chain[-1].key)
    steps = int(number[2]) if number else len(chain)
    seams, notice = _seams(chain[-steps:], steps)  # the chain may have begun with a take of another
    place = Place(step=0, steps=steps, chain=chain[0].key)
    return attrs.evolve(row, title=title, place=place, seams=seams, notice=notice)


def _seams(chain: Chain, steps: int) -> tuple[tuple[float, ...], str]:
    """Where the steps of a chain meet in its song, in seconds; if that is not known, why."""
    if len(chain) < steps:
        return (), f"its seams are not known: the .kie.json of step {steps - len(chain)} is not here"
    seams, begins_at = list[float](), 0.0
    for number, (step, after) in enumerate(zip(chain, (*chain[1:], None), strict=True), 1):
        if step.cut is None:
            return (), f"its seams are not known: nothing says where step {number} begins"
        take = next(
            (take for take in step.takes if after is None or take.track_id == after.source.audio_id), step.takes[0]
        )
        is_whole = _reading(take, step.cut) == "whole"
        seams = [seam for seam in seams if seam < begins_at + step.cut]  # the others were cut off
        seams.append(round(begins_at + (take.seam if is_whole and take.seam is not None else step.cut), 3))
        begins_at += 0.0 if is_whole else step.cut
    return tuple(seams), ""
