"""Make the steps of a chain; each is a job of the journal, if there is one.

The key of a step is made of the key of its chain and its number, and what the journal has on record decides: which
take was chosen, where it was cut, and what is paid. So the same call after a crash goes on where that has left it.
"""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from os import PathLike
from pathlib import Path
from typing import Protocol, TypeAlias

import attrs

from kie_async import audio, files
from kie_async._client.task import Task
from kie_async._protocol.json_values import as_duration
from kie_async._protocol.request_rules import CREDITS_PER_TASK
from kie_async._protocol.spending import credits_of
from kie_async._text import clock
from kie_async.chain._plan import ChainPlan
from kie_async.chain._rules import (
    Chain,
    ChainPart,
    ChainStep,
    SongLength,
    length_after,
    part_by_length,
    take_by_rule,
    take_on_record,
)
from kie_async.errors import (
    BudgetError,
    ConflictError,
    KieError,
    LostRecordError,
    Problem,
    SubmitUnknownError,
    invalid_request,
)
from kie_async.events import Notice, Observer, clean
from kie_async.journal import PAID, Job, Journal, Recorder, State
from kie_async.models import Request, Track

DetectPart: TypeAlias = Callable[[Path, Path, float], Awaitable[ChainPart | None]]
StepObserver: TypeAlias = Callable[[ChainStep], None]

_REMEDIES = {
    State.FAILED: "to have it made after all, and paid again: kie-async jobs retry {key}",
    State.REJECTED: "when that is mended: kie-async jobs retry {key}",
    State.UNKNOWN: "it may be paid: look at https://kie.ai/logs, then decide: kie-async jobs resolve {key}",
    State.ABANDONED: "it was given up; another key begins anew",
}
_NO_JOURNAL = (
    "a chain without a journal: a crash loses what it has reached, and the same call pays for all of it again; give "
    "KieSession(journal=...)"
)


class ChainSession(Protocol):
    """What a chain needs of a session."""

    async def submit(self, request: Request, *, key: str | None = None) -> Task:
        """Submit a request."""
        ...

    async def download(
        self, track: Track, directory: str | PathLike[str], *, name: str | None = None, keep_existing: bool = False
    ) -> Path:
        """Fetch the audio of a track."""
        ...


class ChainFiles(Protocol):
    """What is done with the takes of a step."""

    async def check(self, key: str, request: Request) -> None:
        """Refuse a step that was paid before, though the journal does not know of it."""
        ...

    async def save(self, key: str, tracks: tuple[Track, ...]) -> tuple[Path, ...]:
        """Download them and return their files, in their order."""
        ...

    async def record_failure(self, key: str, task_id: str | None) -> None:
        """Write down that a step, or its task, failed, if the journal says so."""
        ...


@attrs.frozen
class TakesInDirectory:
    """Downloads takes into the directory of a plan, if it has one, under names made of the song's and their ids."""

    plan: ChainPlan
    session: ChainSession
    recorder: Recorder | None

    async def check(self, key: str, request: Request) -> None:
        """Refuse nothing: what is in the directory says nothing about steps."""

    async def record_failure(self, key: str, task_id: str | None) -> None:
        """Write nothing: the journal says it."""

    async def save(self, key: str, tracks: tuple[Track, ...]) -> tuple[Path, ...]:
        """Download them; all are tried, also when one fails."""
        directory = self.plan.directory
        if directory is None:
            return ()
        paths: list[Path] = []
        errors: list[KieError] = []
        for track in tracks:
            name = files.track_name(self.plan.song, track.id)
            try:
                paths.append(await self.session.download(track, directory, name=name, keep_existing=True))
            except KieError as error:
                errors.append(error)
        if errors:
            raise errors[0]
        if self.recorder is not None:
            with suppress(ConflictError):  # it was delivered before
                names = tuple(path.name for path in paths)
                await self.recorder.journal.move(key, State.DELIVERED, files=names)
        return tuple(paths)


@attrs.frozen
class _MadeStep:
    """What a paid step has made; ``cut`` is None where the service has chosen it."""

    task_id: str
    tracks: tuple[Track, ...]
    cut: float | None
    credits: float


@attrs.define(kw_only=True)
class ChainRun:
    """Makes the steps of a chain.

    Attributes:
        session: submits and follows.
        recorder: of the session's journal, if it has one.
        takes: what is done with the takes.
        detect: tells what the file of a take holds, given that of its source and the cut in seconds; None if that is
            unclear. Asked where both are at hand.
        observer: called with each step.
    """

    plan: ChainPlan
    session: ChainSession
    recorder: Recorder | None
    takes: ChainFiles
    detect: DetectPart | None = None
    observer: StepObserver = lambda _step: None
    _steps: list[ChainStep] = attrs.field(factory=list, init=False)
    _paid: _MadeStep | None = attrs.field(default=None, init=False)  # the step that is at work, once it is made
    _price: float = attrs.field(default=0.0, init=False)  # the highest of a task, as far as known
    _song: SongLength | None = attrs.field(init=False)
    _source: Path | None = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self._song = self.plan.start
        self._source = self.plan.source_file

    async def run(self) -> Chain:
        """Make steps until the song is long enough, or more of them are of no use.

        Raises:
            KieError: a step failed; what was paid before stays.
        """
        goal, request = self.plan.goal, self.plan.first
        before: SongLength | None = None
        fades_from = self.plan.fades_from
        while (end := goal.end_after(before, self._song, len(self._steps))) is None:
            before, self._paid = self._song, None
            with self._explained():
                if self._steps:
                    fades_from = await self._fades_from(self._steps[-1])
                    request = self.plan.next_request(self._steps[-1].track, fades_from)
                step = await self._step(request, fades_from)
            self._steps.append(step)
            self._source = step.file
            self.observer(step)
        return Chain(
            key=self.plan.key,
            seconds=goal.seconds,
            source_duration=self.plan.first.source_duration,
            steps=tuple(self._steps),
            end=end,
        )

    async def _fades_from(self, step: ChainStep) -> float | None:
        """Where the chosen take of a step begins to fade out, if that decides where it is cut."""
        if self.plan.goal.before_end is not None or step.file is None:
            return None
        return await audio.quiet_from(step.file, step.track.duration or 0.0)

    async def _step(self, request: Request, fades_from: float | None) -> ChainStep:
        number = len(self._steps) + 1
        key = self.plan.step_key(number)
        try:
            self._paid = made = await self._make(key, request)
        except KieError as error:
            await self.takes.record_failure(key, error.task_id)
            raise
        paths = await self.takes.save(key, made.tracks)
        track = await self._choose(number, made.tracks)
        file = paths[made.tracks.index(track)] if paths else None
        holds = await self._part(file, made.cut, track.duration)
        self._song = length_after(self._song, made.cut, track.duration, holds)
        return ChainStep(
            number=number,
            task_id=made.task_id,
            tracks=made.tracks,
            track=track,
            cut=made.cut,
            fades_from=fades_from if made.cut == request.continue_at else None,  # a step on record has its own cut
            holds=holds,
            length=None if self._song is None else self._song.total,
            files=paths,
            credits=made.credits,
        )

    # ------------------------------------------------------------ what is paid

    async def _make(self, key: str, request: Request) -> _MadeStep:
        """Submit a step and wait for its end, unless the journal has it already."""
        job = None if self.recorder is None else await self._on_record(self.recorder, key)
        if job is not None and not self.plan.is_step(job, request):
            raise ConflictError(f"job {key!r} of the journal extends something else: give another key")
        earlier = 0.0 if job is None else job.earlier_credits
        if job is not None and job.state in {State.SUCCEEDED, State.DELIVERED}:
            cost = CREDITS_PER_TASK if job.credits is None else job.credits
            self._price = max(self._price, cost)
            return _MadeStep(job.task_id or "", job.tracks, as_duration(job.request.continue_at), earlier + cost)
        if job is None or job.state not in PAID:
            self._check_cap(earlier)
            await self.takes.check(key, request)
        submitted_as = None if self.recorder is None else key  # a key is refused without a journal
        task = await self.session.submit(request if job is None else job.request, key=submitted_as)
        result = await task
        if self.recorder is not None:
            await self.recorder.wait_recorded(task.id)
            await _check_recorded(self.recorder.journal, key, task.id)
        cost = credits_of(result) or 0.0
        self._price = max(self._price, cost)
        return _MadeStep(task.id, result.tracks, result.continue_at, earlier + cost)

    async def _on_record(self, recorder: Recorder, key: str) -> Job | None:
        """The job of a step, resolved if a crash has left it without an answer."""
        job = await recorder.journal.get(key)
        if job is not None and job.state in {State.INTENT, State.UNKNOWN}:
            job = await recorder.takeover.resolve(job)
        if job is None or job.state not in _REMEDIES:
            return job
        reason = f" ({clean(job.error.message)})" if job.error else ""
        kind = SubmitUnknownError if job.state is State.UNKNOWN else ConflictError
        raise kind(f"job {key!r} is {job.state}{reason}: {_REMEDIES[job.state].format(key=key)}", job.task_id)

    def _check_cap(self, earlier: float) -> None:
        cap, spent = self.plan.max_credits, sum(step.credits for step in self._steps) + earlier
        price = max(CREDITS_PER_TASK, self._price)
        if cap is not None and spent + price > cap:
            left = f"{spent:.12g} of max_credits {cap:.12g} are spent, the next step costs {price:.12g}: not sent"
            raise BudgetError(f"{left}; raise max_credits", retryable=False)

    # ------------------------------------------------------------ what is made of it

    async def _choose(self, number: int, tracks: tuple[Track, ...]) -> Track:
        """The take that the next step extends: what is on record decides."""
        if self.recorder is not None:
            following = await self.recorder.journal.get(self.plan.step_key(number + 1))
            if track := take_on_record(tracks, None if following is None else following.request):
                return track
        choose = self.plan.choose
        if not callable(choose):
            return take_by_rule(tracks, choose)
        chosen = choose(tracks)
        if inspect.isawaitable(chosen):
            chosen = await chosen
        if chosen not in tracks:
            raise invalid_request(Problem("choose", "returned none of the tracks", "return one of those it was given"))
        return chosen

    async def _part(self, file: Path | None, cut: float | None, duration: float | None) -> ChainPart:
        """What a take holds: by its length alone if that proves it, or else as its sound tells."""
        holds = part_by_length(cut, duration)
        if self.detect is None or self._source is None or file is None or cut is None:
            return holds
        detected = await self.detect(self._source, file, cut)
        return "continuation" if holds == "continuation" else detected or "whole"

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """Let an error say which step it is about, what is paid, and what there is."""
        try:
            yield
        except KieError as error:
            so_far = "" if isinstance(error, LostRecordError) else f"; {self._so_far()}"  # what it was is lost
            error.message = f"step {len(self._steps) + 1}: {error.message}{so_far}"
            if self._paid is not None:
                error.task_id, error.charged = error.task_id or self._paid.task_id, "yes"
            raise
        except Exception as error:  # of the function that chooses
            error.add_note(f"step {len(self._steps) + 1} of a chain: {self._so_far()}")
            raise

    def _so_far(self) -> str:
        if self._paid is not None:
            there = f"the step is made and paid (tracks {', '.join(track.id for track in self._paid.tracks)})"
        elif not self._steps:
            return "no step is made yet"
        else:
            last = self._steps[-1]
            lasts = f"{clock(last.length or 0.0)} of {clock(self.plan.goal.seconds)}"  # else it would have ended before
            there = f"so far the song lasts {lasts} (track {last.track.id})"
        if self.recorder is None:
            return f"{there}; to go on from there, extend {'one of them' if self._paid else 'that track'}"
        return f"{there}; the same call pays for none of it again"


async def _check_recorded(journal: Journal, key: str, task_id: str) -> None:
    """Refuse a task that is another job's, as an emulator gives it that was started anew with the same seed."""
    job = await journal.get(key)
    if job is None or job.task_id != task_id:
        message = "the service gave the id of a task that the journal has already: use another journal and directory"
        raise ConflictError(f"{message} (task {task_id})", task_id)


async def _detect(emit: Observer, source: Path, take: Path, cut: float) -> ChainPart | None:
    try:
        verdict = await audio.compare(source, take, continue_at=cut)
    except KieError as error:
        emit(Notice("", f"what {take.name} holds is told by its length alone: {clean(error.message)}"))
        return None
    return None if verdict.kind == "unclear" else verdict.kind


async def run_chain(plan: ChainPlan, session: ChainSession, recorder: Recorder | None, emit: Observer) -> Chain:
    """Run a chain that is planned.

    Args:
        plan: of the chain.
        session: submits, follows and downloads.
        recorder: of the session's journal, if it has one.
        emit: called with a notice if it has none.

    Raises:
        KieError: a step failed; what was paid before stays.
    """
    if recorder is None:
        emit(Notice("", _NO_JOURNAL))
    if plan.directory is not None:
        await files.check_writable(plan.directory)
    takes = TakesInDirectory(plan, session, recorder)
    detect = partial(_detect, emit) if audio.can_compare() else None
    run = ChainRun(plan=plan, session=session, recorder=recorder, takes=takes, detect=detect)
    return await run.run()
