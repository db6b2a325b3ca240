"""What ``upload-extend`` and ``extend`` are asked for with ``--until``, and what is on record of it."""

from __future__ import annotations

from itertools import zip_longest
from pathlib import Path
from typing import Annotated, Literal, TypeAlias

import attrs
from cyclopts import Group, Parameter

from kie_async import audio
from kie_async._protocol.json_values import as_duration
from kie_async._protocol.request_rules import read_cut_point
from kie_async.batch import read_kind
from kie_async.chain import ChainPlan
from kie_async.chain._rules import (
    MAX_STEPS,
    ChainPart,
    SongLength,
    length_after,
    part_by_length,
    take_by_rule,
    take_on_record,
)
from kie_async.cli._connect import JournalLocation
from kie_async.cli._exit_codes import UsageError
from kie_async.cli._options import JournalOption, NotNegative, Positive, Yes
from kie_async.cli._position import check_position
from kie_async.journal import Job, State
from kie_async.models import Track

_Reading: TypeAlias = tuple[SongLength | None, SongLength | None]  # the song before the last step, and after it

_LENGTH = Group("Length, with --until", sort_key=2)


@Parameter(name="*", group=_LENGTH)
@attrs.frozen(kw_only=True)
class UntilOptions:
    """How a song is extended again and again.

    Attributes:
        until: Extend the song to this length, or just 0.5 s less (4:00 or 240); if it stops, the same command goes on.
        choose: Which take of a step the next one extends (longest).
        before_end: Where song and takes are cut, in seconds before their ends (0.5 before it, or before a fade-out).
        max_steps: Extend it so often at most (10).
        max_credits: Never spend more than this on it.
        trim: Make a file that lasts no longer, fades out at its end, and has the tags of the song.
    """

    until: Annotated[str | None, Parameter(metavar="LENGTH", validator=check_position)] = None
    choose: Literal["longest", "first"] = "longest"
    before_end: float | None = None
    max_steps: Positive = MAX_STEPS
    max_credits: NotNegative | None = None
    trim: bool = False
    journal: Annotated[JournalOption, Parameter(group=_LENGTH)] = None
    yes: Annotated[Yes, Parameter(group=_LENGTH)] = False

    def seconds(self) -> float:
        """The length to be reached."""
        length = read_cut_point(self.until.strip()) if self.until is not None else None
        if length is None or length.needs_length:
            raise UsageError(f"--until: {str(self.until)[:60]!r} is no length; write 4:00, 4m or 240")
        return length.amount

    def check(self) -> None:
        """Refuse what has no meaning without ``--until``."""
        for field in attrs.fields(type(self)):
            if getattr(self, field.name) != field.default:
                raise UsageError(f"--{field.name.replace('_', '-')} is given without --until")


UNTIL = UntilOptions()  # without any option given


@attrs.frozen(kw_only=True)
class ChainOrder:
    """What the command was asked for.

    Attributes:
        plan: of the chain.
        location: where its steps are kept.
        until: the options of the chain.
        out: where the files go.
        emulated: on the built-in emulator.
        join: whether a joined file is asked for, whatever the takes hold.
        has_cut: whether the cut of the source is given.
        is_cut_uncertain: whether the service may extend a take from its end in place of the cut.
        delivered: how many steps were made and downloaded before.
    """

    plan: ChainPlan
    location: JournalLocation
    until: UntilOptions
    out: Path
    emulated: bool
    join: bool
    has_cut: bool
    is_cut_uncertain: bool
    delivered: int = 0

    @property
    def other_choice(self) -> Literal["longest", "first"]:
        """What else could have been given as ``--choose``."""
        return "first" if self.until.choose == "longest" else "longest"

    async def on_record(self) -> tuple[list[Job], list[Job]]:
        """The steps that the journal has, and its own ones of the other choice, if they go further."""
        if not self.location.exists:
            return [], []
        other = attrs.evolve(self.plan, choose=self.other_choice)
        async with self.location.journal() as journal:
            jobs = await self.plan.on_record(journal)
            others = await other.on_record(journal)
            return jobs, others[1:] if len(others) > len(jobs) else []

    def is_ended(self, jobs: list[Job]) -> tuple[bool, set[SongLength | None]]:
        """Tell whether the steps on record need no other after them, and how long the song may be; blocks.

        There are several lengths where a take is still to be compared with its source.
        """
        goal, source = self.plan.goal, self.plan.source_file
        readings: set[_Reading] = {(None, self.plan.start)}
        is_ended = goal.end_after(None, self.plan.start, 0) is not None
        for number, (job, following) in enumerate(zip_longest(jobs, jobs[1:]), start=1):
            if is_ended or job.state not in {State.SUCCEEDED, State.DELIVERED}:
                break
            extended = take_on_record(job.tracks, None if following is None else following.request)
            track = extended or take_by_rule(job.tracks, self.until.choose)
            cut = as_duration(job.request.continue_at)
            parts = self._parts(job, track, cut, can_compare=audio.can_compare() and (number > 1 or source is not None))
            readings = {(song, length_after(song, cut, track.duration, part)) for _, song in readings for part in parts}
            is_ended = all(goal.end_after(before, song, number) is not None for before, song in readings)
        return is_ended, {song for _, song in readings}

    def _parts(self, job: Job, track: Track, cut: float | None, *, can_compare: bool) -> set[ChainPart]:
        """What a take may hold, as its length or its sidecar tells; both if the sound will decide."""
        by_length = part_by_length(cut, track.duration)
        if by_length == "continuation" or cut is None:
            return {by_length}
        file = dict(zip((each.id for each in job.tracks), job.files, strict=False)).get(track.id)
        kind = None if file is None else read_kind(self.out / file)
        if kind is None and can_compare:
            return {"whole", "continuation"}
        return {by_length if kind is None or kind == "unclear" else kind}
