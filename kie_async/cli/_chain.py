"""Extending a song until it is long enough: what ``upload-extend`` and ``extend`` do with ``--until``."""

from __future__ import annotations

import os
import re
import secrets
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, cast

import attrs

from kie_async import audio, files
from kie_async._protocol.options import UploadFields
from kie_async._text import clock, count_of
from kie_async.batch import RecordedTakes, Results, find_track, read_kind
from kie_async.chain import ChainOptions, ChainRun, ChainSource, plan_chain
from kie_async.chain._rules import NEARLY, Chain, ChainPart, ChainStep
from kie_async.cli._chain_ask import ask
from kie_async.cli._chain_order import ChainOrder, UntilOptions
from kie_async.cli._connect import (
    EMULATED_FILE,
    EMULATOR_GONE,
    EMULATOR_REMEDY,
    JournalLocation,
    SessionOptions,
    connect,
    find_journal,
    make_settings,
    stopped_by_sigterm,
)
from kie_async.cli._exit_codes import TOP_UP, UsageError
from kie_async.cli._join import say_seam
from kie_async.cli._options import CallbackOptions, SubmitOptions
from kie_async.cli._output import Output
from kie_async.errors import BudgetError, ConflictError, KieError, LostRecordError, SubmitUnknownError
from kie_async.events import Event, Notice
from kie_async.models import Track
from kie_async.session import KieSession

_SPEED = 60.0  # of the built-in emulator: a step takes 1 to 3 s
_REMEDY = re.compile(  # of the library; the hints have it whole, with the journal
    r": (it may be paid|to have it made|when that is mended)\b.*?: kie-async jobs (retry|resolve) [\w-]+"
)
_NO_KEY = "none-is-needed"  # to check requests


async def extend_until(  # noqa: PLR0913  # keyword-only but for what every command has
    output: Output,
    source: ChainSource,
    options: SubmitOptions,
    until: UntilOptions,
    *,
    receiver: CallbackOptions,
    session_options: SessionOptions,
    join: bool,
) -> None:
    """Extend a song step by step; an interrupted run continues with the same command."""
    run = options.run
    if run.out is None:
        raise UsageError("--until needs a folder for the takes: give --out DIR")
    if run.no_wait:
        raise UsageError("--until waits for the takes of each step: leave --no-wait out")
    await files.check_writable(run.out)
    file: Path | None = None
    if isinstance(source, Track):
        source, file = await _find_track(output, source, run.out, options.music.model)
    fields = options.music.of_track() if isinstance(source, Track) else options.music.of_upload()
    checks: dict[str, Any] = {"api_key": _NO_KEY, "base_url": "http://127.0.0.1"} if run.emulate else {}
    events: list[Event] = []
    checks |= {"route": options.common.route, "observer": events.append}
    checker = KieSession(make_settings(checks), journal="")
    chosen = _chain_options(fields, until, run.emulate)
    plan = await plan_chain(source, until.seconds(), chosen, checker.check_request, file=file)
    with _location(until, run.out, emulate=run.emulate) as location:
        order = ChainOrder(
            plan=plan,
            location=location,
            until=until,
            out=run.out,
            emulated=run.emulate,
            join=join,
            has_cut=options.music.at is not None,
            is_cut_uncertain=any(map(_is_on_cut, events)),
        )
        order = await ask(output, order)
        output.hints = _hints(output, order, 1)
        emulated = {"speed": _SPEED} if run.emulate else None
        opening: SessionOptions = {
            **session_options,
            "journal": location.journal(),
            "observer": partial(_emit, output),
        }
        try:
            async with connect(output, receiver, emulated=emulated, sigterm=True, **opening) as session:
                chain = await _run(output, order, session)
        except LostRecordError:
            output.hints = {}  # the error says all: the journal has no such job
            raise
        except BudgetError as error:
            error.message = re.sub(r"(of|raise) max_credits\b", r"\1 --max-credits", error.message)
            raise
        except (ConflictError, SubmitUnknownError) as error:
            error.message, is_step = _REMEDY.subn("", error.message)
            if is_step and isinstance(error, ConflictError):  # it failed in an earlier run, and is as it was then
                error.add_note(output.hints[3])
            raise
    output.value |= chain.to_dict() | {"steps": [_step_value(step) for step in chain.steps]}
    with stopped_by_sigterm():
        song, is_written = await _finish(output, order, chain)
    _say_end(output, order, chain, song, is_written=is_written)


async def _find_track(output: Output, track: Track, out: Path, model: str | None) -> tuple[Track, Path | None]:
    """Add to a track what its sidecar says, and find its file; say how to tell what is not known of it."""
    found, file = await files.on_disk(find_track, out, track.id)
    found = attrs.evolve(found, duration=track.duration or found.duration)
    known = {"--model": model or found.model_name, "--duration": found.duration}
    if missing := " and ".join(option for option, value in known.items() if value is None):
        output.say(
            f"no sidecar (NAME.kie.json) in {out} tells the model and the length of track {track.id}: give the --out "
            f"DIR that holds it, or {missing}"
        )
    if file is not None and await files.on_disk(read_kind, file) == "continuation":
        output.say(
            f"{file.name} holds the continuation alone: lengths are counted from its beginning, and the song before it "
            "will not be in the result"
        )
    return found, file


def _say_end(output: Output, order: ChainOrder, chain: Chain, song: Path | None, *, is_written: bool) -> None:
    """Say what was made; ``is_written``: a file of it is of this run.

    Raises:
        KieError: the song is not as long as it was to be.
    """
    if chain.end == "reached":
        output.say(_reached(order, chain, song, is_written=is_written))
        return
    length, wanted = _length(chain), clock(chain.seconds)
    message = f"the song lasts {length}, and not {wanted}"
    if chain.end == "max_steps":
        message = f"--max-steps {order.until.max_steps} is reached at {length} of {wanted}"
    error, remedy = KieError(message, charged="yes"), _remedy(output, order, chain)
    error.add_note(remedy if song is None else f"your song so far: {song}\n{remedy}")
    raise error


def _remedy(output: Output, order: ChainOrder, chain: Chain) -> str:
    """Say why the song is not longer, where that is not said yet, and what can be done about it."""
    if chain.end == "length_unknown":
        return "the service does not say how long the last take is: listen to it, and go on with 'extend'"
    if chain.end == "nothing_added":
        lengths = [order.plan.start and order.plan.start.total, *(step.length for step in chain.steps)]
        lost = "end" if chain.steps[-1].fades_from is None else "fade-out"
        return (
            f"its last step added no more than the {lost} that it cut off (before it, the song lasted "
            f"{clock(lengths[-2] or 0.0)}); another would be paid in vain"
        )
    again = order.location.as_typed(_with_more_steps(output.words, order.until.max_steps))
    how = f"{EMULATOR_GONE}; to begin anew" if order.emulated else "to go on, and pay for new steps alone"
    return f"{how}, with more steps:\n  {again}"


def _length(chain: Chain) -> str:
    return "an unknown time" if chain.length is None else clock(chain.length)


def _reached(order: ChainOrder, chain: Chain, song: Path | None, *, is_written: bool) -> str:
    """How long the song is, beside what was asked for, what it has cost, and where it is."""
    length, wanted = _length(chain), clock(chain.seconds)
    is_short, is_trimmed = (chain.length or 0.0) < chain.seconds, order.until.trim
    is_new = len(chain.steps) > order.delivered
    nothing = "nothing to extend" if is_written else "nothing to do"
    line = f"done: the song lasts {length}" if is_new else f"{nothing}: the song lasts {length} already"
    if length != wanted and is_short:
        line += f" ({wanted} was asked; for less than {NEARLY} s no step is paid)"
    elif length != wanted and is_new and song is not None and not is_trimmed:
        line += f" ({wanted} was asked; --trim cuts it to that)"
    if chain.steps:
        line += f", {count_of(len(chain.steps), 'step')}, {chain.credits:.12g} credits"
    if song is None:
        return line
    how = (", faded out at its end" if is_short else f", cut to {wanted}") if is_trimmed else ""
    return f"{line}; your song{how}: {song}"


def _with_more_steps(words: Sequence[str], steps: int) -> list[str]:
    """The command line with twice the steps that it allows."""
    more, rest = list[str](), iter(words)
    for word in rest:
        name, has_value, _ = word.replace("_", "-").partition("=")
        if name == "--max-steps":
            if not has_value:
                next(rest)
            continue
        if name == "--until":
            more += ["--max-steps", str(2 * steps)]
        more.append(word)
    return more


@contextmanager
def _location(until: UntilOptions, out: Path, *, emulate: bool) -> Iterator[JournalLocation]:
    """Where the steps are kept: for the built-in emulator as long as its tasks, unless a journal is given."""
    if not emulate or until.journal is not None:
        yield find_journal(until.journal, out)
        return
    with TemporaryDirectory(prefix="kie-async-") as folder:
        yield JournalLocation(str(Path(folder) / EMULATED_FILE), "")


def _emit(output: Output, event: Event) -> None:
    """Show an event, but not the notice on the cut, which was said with the plan."""
    (output.count if _is_on_cut(event) else output.emit)(event)


def _is_on_cut(event: Event) -> bool:
    return isinstance(event, Notice) and event.topic == "uncertain_cut"


def _chain_options(fields: object, until: UntilOptions, emulate: bool) -> ChainOptions:  # noqa: FBT001  # one of three
    given = {name: value for name, value in cast("UploadFields", fields).items() if value is not None}
    own = {
        "choose": until.choose,
        "max_steps": until.max_steps,
        "max_credits": until.max_credits,
        "before_end": until.before_end,
        "key": secrets.token_hex(12) if emulate else None,  # the emulator of an earlier run is gone, and its tasks too
    }
    return cast("ChainOptions", given | own)


async def _run(output: Output, order: ChainOrder, session: KieSession) -> Chain:
    plan, journal = order.plan, session.journal
    assert journal is not None  # noqa: S101  # it was opened with the session

    output.value |= {"steps": [], "files": []}

    def made(step: ChainStep) -> None:
        if step.number > order.delivered:  # the run that made the others has said it
            for line in _step_lines(step):
                output.say(line)
        output.value["steps"].append(_step_value(step))
        output.value["files"] += step.files
        output.hints = _hints(output, order, step.number + 1)

    async with session.open_journal(journal) as recorder:
        results = Results(order.out, emulated=session.settings.on_loopback, song=plan.song)
        takes = RecordedTakes(session, recorder, results)
        run = ChainRun(plan=plan, session=session, recorder=recorder, takes=takes, detect=takes.detect, observer=made)
        return await run.run()


def _step_lines(step: ChainStep) -> Iterator[str]:
    """What a step has made, from where on, and where its takes are."""
    length = "an unknown length" if step.length is None else clock(step.length)
    holds = "the whole song" if step.holds == "whole" else "the continuation alone"
    take, before = step.tracks.index(step.track) + 1, "your song" if step.number == 1 else "the take before"
    line = f"step {step.number}: take {take} of {len(step.tracks)} holds {holds}; the song lasts {length}"
    line += (
        f"; the service has chosen where {before} is cut"
        if step.cut is None
        else f"; {before} is cut at {clock(step.cut)}"
    )
    if step.fades_from is not None:
        line += f", for it fades out from about {clock(step.fades_from)}"
    yield line
    for number, (track, path) in enumerate(zip(step.tracks, step.files, strict=True), start=1):
        lasts = "" if track.duration is None else f" ({clock(track.duration)})"
        yield f"take {number}{lasts}: {path}"


def _step_value(step: ChainStep) -> dict[str, Any]:
    return step.to_dict() | {"files": list(step.files)}


def _hints(output: Output, order: ChainOrder, number: int) -> dict[int, str]:
    """What to do after a step failed, by exit code."""
    if order.emulated:
        return dict.fromkeys((3, 4, 6, 7, 8, 130), f"{EMULATOR_GONE}; {EMULATOR_REMEDY}")
    key, where = order.plan.step_key(number), order.location.with_out(order.out)
    again = f"go on with the same command:\n  {order.location.as_typed(output.words)}"
    retry = f"to have it made after all, and paid again: kie-async jobs retry {key} {where}"
    decide = f"look at https://kie.ai/logs, and decide: kie-async jobs resolve {key} --task-id ID {where}"
    return {
        3: f"if the step failed: {retry}\nthen {again}",
        4: f"{TOP_UP}, then {again}",
        6: f"the task continues; {again}",
        7: f"it is not sent again by itself, for it may be paid; {decide}\nthen {again}",
        8: f"if the step failed or is unknown: kie-async jobs show {key} {where}\n"
        f"if it was given up: another --out DIR, and --journal if one is given, begins anew\nelse {again}",
        130: f"what was submitted goes on at the service, and is kept; {again}",
    }


# ---------------------------------------------------------------- one file


def parts_of(chain: Chain, source: Path | None) -> list[tuple[Path, float]]:
    """The files that make the song, each with the second of the song at which it begins.

    Args:
        chain: whose takes were downloaded.
        source: what its first step extends, if that is a file here.
    """
    parts = [] if source is None else [(source, 0.0)]
    begins_at = 0.0
    for step in chain.steps:
        path = cast("Path", step.file)
        if step.holds == "continuation":
            begins_at += step.cut or 0.0
            parts.append((path, begins_at))
        else:
            parts[-1:] = [(path, begins_at)]
    return parts


async def _finish(output: Output, order: ChainOrder, chain: Chain) -> tuple[Path | None, bool]:
    """Join the parts of the song, if it has several or that is asked for, and trim it, if that is asked for.

    Writes the file of the song to stdout; or, if its source is not here, the files that continue that, in their order.

    Returns:
        The file of the song, None if it is not here; and whether anything was written now.
    """
    plan = order.plan
    parts = parts_of(chain, plan.source_file)
    if not parts:
        return None, False
    song, begins_at = parts[0]
    if begins_at:
        output.say("the takes hold the continuation alone, and the song is not here: join it with 'kie-async join'")
        for path, _ in parts:
            output.print(str(path))
        return None, False
    joins: list[tuple[Path, float, ChainPart]] = [(path, at, "continuation") for path, at in parts[1:]]
    name = f"{plan.song}-{plan.key}-{len(chain.steps)}"
    trimmed = f"{name}-{plan.goal.seconds:g}s"
    if order.join and plan.source_file is not None and plan.source_file != song:
        joins.insert(0, (song, chain.steps[0].cut or 0.0, "whole"))
        song, trimmed = plan.source_file, f"{name}-joined-{plan.goal.seconds:g}s"  # without --join it is another
    is_written = False
    if joins:
        target = _target(order.out, f"{name}-joined", song)
        if is_written := not await files.on_disk(os.path.lexists, target):
            await _join(output, song, joins, target)
        output.value["joined"] = song = target
    if order.until.trim and chain.end == "reached":
        target = _target(order.out, trimmed, song)
        if not await files.on_disk(os.path.lexists, target):
            is_written = True
            output.display.doing(f"trimming {song.name}")
            await audio.trim(song, target, seconds=plan.goal.seconds, tags_of=plan.source_file)
        output.value["trimmed"] = song = target
    output.value["song"] = song
    output.print(str(song))
    return song, is_written


async def _join(output: Output, song: Path, joins: list[tuple[Path, float, ChainPart]], target: Path) -> None:
    """Join the parts one after the other; only the last file stays."""
    with TemporaryDirectory(prefix="kie-async-") as folder:
        for number, (path, at, kind) in enumerate(joins, start=1):
            output.display.doing(f"joining {path.name}")
            out = target if number == len(joins) else Path(folder) / f"{number}.flac"  # which keeps all tags
            joined = await audio.join(song, path, at=at, out=out, kind=kind)
            say_seam(output, joined)
            song = joined.path


def _target(out: Path, name: str, song: Path) -> Path:
    """The file of a song in the directory: of its own kind if that can be written."""
    suffix = song.suffix.lower()
    return out / f"{files.safe_name(name)}{suffix if suffix in audio.SUFFIXES else '.mp3'}"
