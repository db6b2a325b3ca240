"""Plan a chain: its key, its first request, and how the later ones are made."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Awaitable, Callable
from os import PathLike
from pathlib import Path
from typing import Any, Literal, TypeAlias, cast

import attrs

from kie_async import audio, files
from kie_async._protocol.json_values import as_duration
from kie_async._protocol.options import UPLOAD_ONLY, RequestFields, UploadFields, extend_track
from kie_async._protocol.spending import check_cap
from kie_async.chain._rules import BEFORE_END, MAX_STEPS, ChainGoal, SongLength
from kie_async.errors import Problem, invalid_request
from kie_async.journal import Job, Journal, is_local
from kie_async.models import Request, Track, UploadExtendRequest

ChainSource: TypeAlias = str | PathLike[str] | Track
ChooseTake: TypeAlias = Literal["longest", "first"] | Callable[[tuple[Track, ...]], Track | Awaitable[Track]]

_KEY_VERSION = "chain 1"
_KEY_LENGTH = 24  # hex digits, as of the key of a job that is made from its content
_TRACK_ID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_TEXTS = ("prompt", "lyrics", "style", "title")


class ChainOptions(UploadFields, total=False):
    """The options of ``KieSession.extend_until``: the fields of its requests (see ``UploadExtendRequest``), and these.

    ``continue_at`` is the cut of the source only. Without prompt, lyrics, style and title, a step follows its source.

    Attributes:
        choose: which take of a step the next one extends: "longest" (the default), "first", or a function that takes
            the tracks and returns one of them, or an awaitable of one.
        key: the name of the chain in the session's journal; by default it is made from the content of the source, the
            fields and ``choose``. Chains that differ only in ``choose`` share their first step, and pay for it once.
        directory: the folder to which all takes are downloaded; with the extra ``audio``, their sound then shows what
            they hold.
        max_steps: the largest number of steps; 10 by default.
        max_credits: the most that all steps together may cost, including those of earlier calls.
        before_end: how many seconds before its end each take, or a source without ``continue_at``, is cut; 0.5 by
            default. With the extra ``audio``, a take in ``directory`` or a file that fades out or is silent at its end
            is by default cut 0.5 s before that begins.
    """

    choose: ChooseTake
    key: str | None
    directory: str | PathLike[str] | None
    max_steps: int
    max_credits: float | None
    before_end: float | None


@attrs.frozen(kw_only=True)
class ChainPlan:
    """The plan of a chain; nothing is spent yet.

    Attributes:
        name: the name of the chain, the same for every ``choose``.
        goal: the length to reach.
        first: the request of its first step.
        fields: the fields of the later requests.
        source_file: the file of what the first step extends; None if it is not known.
        choose: which take of a step the next one extends.
        max_credits: the most that all steps may cost; None for no cap.
        directory: the folder to which takes are downloaded; None if they are not.
        start: how much of the source is kept: up to the cut, if one was given, or else all; None if unknown.
        fades_from: the position in the source, in seconds, from which it fades out or is silent, if its first cut was
            put before that; else None.
        has_own_key: whether the caller gave the key; otherwise it is made from the content of the source.
    """

    name: str
    goal: ChainGoal
    first: Request
    fields: RequestFields
    source_file: Path | None = None
    choose: ChooseTake = "longest"
    max_credits: float | None = None
    directory: Path | None = None
    start: SongLength | None = None
    fades_from: float | None = None
    has_own_key: bool = False

    @property
    def song(self) -> str:
        """The name for the files."""
        own = _file_of(self.first)
        return own.stem if own else self.first.title or "track"

    @property
    def key(self) -> str:
        """The key of the chain; if the caller gave none, it differs for every ``choose``."""
        if self.has_own_key or self.choose == "longest":
            return self.name
        rule = self.choose if isinstance(self.choose, str) else "a function"
        return _as_key([self.name, rule])

    def step_key(self, number: int) -> str:
        """The key of a step in the journal; that of the first step is the same for every ``choose``."""
        return f"{self.name if number == 1 else self.key}-{number}"

    def next_request(self, track: Track, fades_from: float | None = None) -> Request:
        """The request that extends a take; ``fades_from``: the position from which that fades out, if it does."""
        cut = self.goal.next_cut(track.duration or 0.0, fades_from)
        return extend_track(track, {**self.fields, "continue_at": cut})

    def is_step(self, job: Job, request: Request) -> bool:
        """Whether a job is the step that a request would make, and not another that has its key."""
        if isinstance(request, UploadExtendRequest):
            is_same_file = not self.has_own_key or str(job.request.fields().get("source")) == str(request.source)
            return isinstance(job.request, UploadExtendRequest) and is_same_file
        return job.request.fields().get("audio_id") == request.audio_id

    async def on_record(self, journal: Journal) -> list[Job]:
        """The steps that a journal has, in their order."""
        jobs: list[Job] = []
        while (job := await journal.get(self.step_key(len(jobs) + 1))) is not None:
            jobs.append(job)
        return jobs


async def plan_chain(
    source: ChainSource,
    seconds: float,
    options: ChainOptions,
    check: Callable[[Request], None],
    *,
    file: Path | None = None,
) -> ChainPlan:
    """Plan a chain: check and measure all that can be known before anything is spent.

    Args:
        source: what is extended.
        seconds: the length to be reached.
        options: those of ``KieSession.extend_until``.
        check: raises for a request that would not be paid for.
        file: of the source, where that is a track and its file is known.

    Raises:
        InvalidRequestError, SettingsError: a value breaks a rule.
        AudioError, FileError: the source cannot be used.
    """
    given: dict[str, Any] = dict(options)
    key, choose, cap = given.pop("key", None), given.pop("choose", "longest"), given.pop("max_credits", None)
    directory = given.pop("directory", None)
    goal = ChainGoal(
        seconds=seconds,
        max_steps=given.pop("max_steps", MAX_STEPS),
        before_end=given.pop("before_end", None),
    )
    if not (callable(choose) or choose in ("longest", "first")):
        remedy = 'give "longest", "first", or a function that takes the tracks and returns one'
        raise invalid_request(Problem("choose", f"is {choose!r}", remedy))
    check_cap(cap)
    _check_goal(goal, given.get("model") or "")
    track = _as_track(source, given.get("source_duration"))
    if track is None:
        first: Request = await _first_upload(cast("str | PathLike[str]", source), given, goal)
    else:
        first = _first_extend(track, given, goal)
    _check_goal(goal, first.model, first.source_duration if given.get("continue_at") is None else None)
    file = _file_of(first) or file
    fades_from = await _fades_from(file, first.source_duration, given, goal)
    if fades_from is not None:
        first = attrs.evolve(first, continue_at=goal.next_cut(first.source_duration or 0.0, fades_from))
    check(first)
    plan = ChainPlan(
        name=key or await _content_key(first, given),
        goal=goal,
        first=first,
        fields=_later_fields(given, first.model),
        source_file=file,
        choose=choose,
        max_credits=cap,
        directory=None if directory is None else Path(directory),
        start=_start(first, given),
        fades_from=fades_from,
        has_own_key=bool(key),
    )
    check(plan.next_request(Track("the-next", duration=seconds)))  # what it would refuse is known before the first
    return plan


def _check_goal(goal: ChainGoal, model: str, length: float | None = None) -> None:
    if problems := list(goal.problems(model, length)):
        raise invalid_request(*problems)


def _as_track(source: ChainSource, duration: object) -> Track | None:
    """The track that a source is, or of which it is the id; None if it is audio of one's own."""
    if isinstance(source, str) and _TRACK_ID.fullmatch(source):
        source = Track(source)
    if not isinstance(source, Track):
        return None
    return attrs.evolve(source, duration=as_duration(duration) or as_duration(source.duration))


def _file_of(request: Request) -> Path | None:
    return Path(request.source) if is_local(request) else None


async def _first_upload(source: str | PathLike[str], given: dict[str, Any], goal: ChainGoal) -> Request:
    if given.get("continue_at") is not None:
        return await files.measure_request(UploadExtendRequest(source, **given))
    request = await files.measure_request(UploadExtendRequest(source, **{**given, "continue_at": "50%"}))
    length = request.source_duration
    cut = f"-{goal.before_end or BEFORE_END:.2f}s" if length is None else goal.next_cut(length)
    return attrs.evolve(request, continue_at=cut)


async def _fades_from(path: Path | None, length: float | None, given: dict[str, Any], goal: ChainGoal) -> float | None:
    """Where the source fades out, if its file is known and that decides where it is cut."""
    if path is None or length is None or given.get("continue_at") is not None or goal.before_end is not None:
        return None
    return await audio.quiet_from(path, length)


def _first_extend(track: Track, given: dict[str, Any], goal: ChainGoal) -> Request:
    if problems := [
        Problem(name, "is given with a track", "leave it out") for name in UPLOAD_ONLY if given.get(name) is not None
    ]:
        raise invalid_request(*problems)
    fields = {name: value for name, value in given.items() if name not in UPLOAD_ONLY}
    if fields.get("continue_at") is None:
        cut = goal.next_cut(track.duration) if track.duration else None
        fields |= {"continue_at": cut, "default_param_flag": _flag(given)}
    return extend_track(track, cast("RequestFields", {**fields, "source_duration": track.duration}))


def _start(first: Request, given: dict[str, Any]) -> SongLength | None:
    length = first.source_duration if given.get("continue_at") is None else as_duration(first.continue_at)
    return None if length is None else SongLength(length)


def _flag(given: dict[str, Any]) -> bool | None:
    """``default_param_flag`` of a track whose cut nobody has given: without own texts, it goes on as it was made."""
    flag = given.get("default_param_flag")
    has_texts = any(given.get(name) is not None for name in _TEXTS)
    return False if flag is None and not has_texts else cast("bool | None", flag)


def _later_fields(given: dict[str, Any], model: str) -> RequestFields:
    """The fields of all requests but the first: lyrics, which only an upload takes, are their prompt."""
    left_out = {*UPLOAD_ONLY, "continue_at", "source_duration"}
    fields = {name: value for name, value in given.items() if name not in left_out}
    prompt = given.get("prompt") if given.get("lyrics") is None else given["lyrics"]
    return cast("RequestFields", fields | {"model": model, "prompt": prompt, "default_param_flag": _flag(given)})


async def _content_key(first: Request, given: dict[str, Any]) -> str:
    """Make the key of a chain from what it asks for.

    Not from its length, so that it can be made longer later, and not from a measured cut: that depends on the extra
    ``audio``.
    """
    if isinstance(first, UploadExtendRequest):
        path = _file_of(first)
        subject = str(first.source) if path is None else await files.on_disk(_digest, path)
    else:
        subject = first.audio_id
    fields = {name: value for name, value in given.items() if value is not None and name != "source_duration"}
    return _as_key([_KEY_VERSION, first.operation, subject, "longest", fields | {"model": first.model}])


def _as_key(content: list[Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:_KEY_LENGTH]


def _digest(path: Path) -> str:
    return files.hash_source(path, measured=False)[0]
