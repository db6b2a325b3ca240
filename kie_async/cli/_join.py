"""Joining a song and what continues it: the command ``join``, and the option of ``upload-extend``."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias

from anyio import to_thread
from cyclopts import Parameter

from kie_async import audio, files
from kie_async._protocol.json_values import as_duration, as_text
from kie_async._protocol.request_rules import is_url
from kie_async._text import clock
from kie_async.batch import SIDECAR, read_sidecar
from kie_async.cli._exit_codes import UsageError
from kie_async.cli._options import OUTPUT, RUN, OutputArg, OutputOptions, RunOptions
from kie_async.cli._output import Output
from kie_async.cli._position import check_position
from kie_async.cli._source import check_file
from kie_async.errors import AudioError, InvalidRequestError, KieError, UnclearError
from kie_async.events import clean

JoinOption: TypeAlias = Annotated[
    bool, Parameter(name="--join", group=RUN, help="Also join song and track to a file with the song's tags.")
]
Facts: TypeAlias = Mapping[str, Any]

_NEAR = 0.1  # seconds between two places that are the same
_CHOICE = "--as whole or --as continuation"
_SAME_CUT = 0.5  # seconds by which --at may differ from the cut that a sidecar says


async def join(  # noqa: PLR0913  # keyword-only but for the two files
    source: Annotated[Path, Parameter(help="The song that was extended.")],
    result: Annotated[Path, Parameter(help="A track that was made of it.")],
    /,
    *,
    output: OutputArg,
    out: Annotated[Path, Parameter(help="The file to write: a .wav, .flac or .mp3.")],
    at: Annotated[
        str | None,
        Parameter(
            allow_leading_hyphen=True,
            metavar="POSITION",
            validator=check_position,
            help="Where the song was cut: 45.5, 1:05, 75% or -10s; by default what the .kie.json beside RESULT says.",
        ),
    ] = None,
    kind: Annotated[
        Literal["whole", "continuation"] | None,
        Parameter(name="--as", help="What RESULT holds; by default its sound tells."),
    ] = None,
    _output: OutputOptions = OUTPUT,
) -> None:
    """Join a song and what continues it to one file; of a whole song, the service's own transition is kept.

    If the sound does not tell what RESULT holds, nothing is joined, and the exit code is 1. If the .kie.json beside it
    says another cut or another song, nothing is joined, and the exit code is 2. In both cases --as decides.

    Example: kie-async join song.mp3 new/song-5c79be8e.mp3 --out longer.mp3
    """
    await to_thread.run_sync(_check_files, source, result)
    facts, sidecar = await files.on_disk(_facts_of, result), clean(f"{result.stem}{SIDECAR}")
    cut = _cut_in(facts) if at is None else at
    if cut is None:
        raise UsageError(f"--at is missing, and no {sidecar} says where the song was cut: give --at")
    try:
        cut = await audio.check_join(source, at=cut, out=out)
        output.display.doing(f"joining {source.name} and {result.name}")
        if kind is None:
            await _check_facts(facts, source, result, cut)
        joined = await audio.join(source, result, at=cut, out=out, kind=kind)
    except UnclearError as error:
        remedy = f"listen to it, and say {_CHOICE}"
        if error.leaves_at is not None:
            decided = " --as whole" if facts else ""  # what a sidecar says of the cut is another
            remedy = f"give --at {clock(error.leaves_at)}{decided}; or else {remedy}"
        error.add_note(remedy)
        raise
    except InvalidRequestError as error:
        if at is None and any(problem.field == "at" for problem in error.problems):
            error.add_note(f"--at is what {sidecar} says: give the song that {clean(result.name)} was made of, or --at")
        raise
    output.value |= _show(output, joined)
    if joined.kind == "continuation" and kind is None and not facts:
        output.say(f"no {sidecar} tells whether the take is of this song: listen")


def _check_files(source: Path, result: Path) -> None:
    check_file("SOURCE", source)
    check_file("RESULT", result)


def _facts_of(take: Path) -> Facts:
    """Read the sidecar of a take; empty if it has none, or one that is of another file; blocks."""
    facts = read_sidecar(take.with_name(f"{take.stem}{SIDECAR}")) or {}
    return facts if _part(facts, "file").get("name") in (None, take.name) else {}


def _part(facts: Facts, name: str) -> Facts:
    value = facts.get(name)
    return value if isinstance(value, dict) else {}


def _cut_in(facts: Facts) -> float | None:
    """The second at which the song was cut, as a sidecar says it."""
    cut = as_duration(_part(facts, "request").get("continue_at"))  # of a batch or a chain
    return as_duration(facts.get("continue_at")) if cut is None else cut


async def _check_facts(facts: Facts, source: Path, result: Path, given: float) -> None:
    """Compare the song and the cut that are given with those of a sidecar.

    Raises:
        UsageError: they are others.
        AudioError, StorageError: the song cannot be read.
    """
    says = f"{clean(result.stem)}{SIDECAR} says that"
    own_facts = await files.on_disk(_facts_of, source)
    if (await files.on_disk(_compare_source, own_facts, result, source.parent))[1]:
        raise UsageError(
            f"{clean(source.stem)}{SIDECAR} says that SOURCE was made of RESULT: give {clean(result.name)} first; or, "
            f"if you know better, say {_CHOICE}"
        )
    cut = _cut_in(facts)
    made_of, is_source = await files.on_disk(_compare_source, facts, source, result.parent)
    if made_of is not None and is_source is None:
        is_source = await _is_in(source, result, given)
    if made_of is not None and not is_source:
        raise UsageError(
            f"SOURCE is {clean(str(source))}, but {says} {clean(result.name)} was made of {clean(made_of)}: give that; "
            f"or, if they are the same song, say {_CHOICE}"
        )
    if cut is not None and abs(given - cut) > _SAME_CUT:
        raise UsageError(
            f"--at is {clock(given)}, but {says} the song was cut at {clock(cut)}: leave --at out; or, if you know "
            f"better, say {_CHOICE}"
        )


def _compare_source(facts: Facts, source: Path, directory: Path) -> tuple[str | None, bool | None]:
    """Return what a take was made of, and whether it is this file: by content, by name, or by the id of a track.

    Either is None if nothing tells it. It blocks.
    """
    made_of = _part(facts, "source")
    if path := as_text(made_of.get("path")):
        digest = made_of.get("sha256")
        return path, _digest(source) == digest if digest else Path(path).name == source.name
    audio_id = as_text(_part(facts, "request").get("audio_id"))
    if audio_id is None:
        return None, None
    file = _file_of_track(directory, audio_id)
    name = as_text(file.get("name")) or f"track {audio_id}"
    if own_id := _track_id(_facts_of(source)):
        return name, own_id == audio_id
    return name, _digest(source) == file.get("sha256") if file else None


def _digest(path: Path) -> str:
    return files.hash_source(path, measured=False)[0]


def _track_id(facts: Facts) -> str | None:
    return as_text(_part(facts, "track").get("id"))


def _file_of_track(directory: Path, audio_id: str) -> Facts:
    """What the sidecars in a directory say of the file of a track: its name and content; empty if they do not."""
    sidecars = (read_sidecar(path) or {} for path in sorted(directory.glob(f"*{SIDECAR}")))
    return next((_part(facts, "file") for facts in sidecars if _track_id(facts) == audio_id), {})


async def _is_in(source: Path, result: Path, cut: float) -> bool:
    """Whether a take holds a song up to its cut.

    If it does not, it may be the continuation of this song or, in a chain, of a later take: nothing tells them apart.
    """
    try:
        verdict = await audio.compare(source, result, continue_at=cut)
    except AudioError:
        return True  # the join will be refused for this
    return verdict.kind == "whole"


def check_join(song: str, run: RunOptions) -> None:
    """Refuse ``--join`` where there will be no files to join.

    Raises:
        UsageError: see there.
    """
    if is_url(song):
        raise UsageError("--join needs the song as a file: download it first, and give that")
    if run.out is None or run.no_wait:
        raise UsageError("--join needs the tracks as files: give --out, and leave --no-wait out")


async def join_takes(output: Output, song: Path, at: float, takes: Sequence[Path]) -> None:
    """Join each track to its song, in a file beside it.

    Raises:
        KieError: the first reason why one was not joined, such as that it is unclear what it holds; all are tried.
    """
    output.value["joined"] = []
    errors, commands = list[KieError](), list[str]()
    for take in takes:
        suffix = song.suffix.lower()  # of the song's kind, so that a lossless one stays so
        out = take.with_name(f"{take.stem}-joined{suffix if suffix in audio.SUFFIXES else '.mp3'}")
        output.display.doing(f"joining {take.name}")
        try:
            joined = await audio.join(song, take, at=at, out=out)
        except KieError as error:
            if isinstance(error, UnclearError):
                cut = at if error.leaves_at is None else error.leaves_at
                words = ["kie-async", "join", song, take, "--at", clock(cut), "--as", "whole", "--out", out]
                commands.append(f"\n  {shlex.join(map(str, words))}")
            errors.append(error)
        else:
            output.value["joined"].append(_show(output, joined))
    if commands:
        errors[0].add_note(
            f"listen, and join each; if it holds only what follows, --as continuation:{''.join(commands)}"
        )
    if errors:
        raise errors[0]


def _show(output: Output, joined: audio.Joined) -> dict[str, Any]:
    """Say what was joined, and return it as JSON."""
    sure = "" if joined.confidence is None else f" (confidence {joined.confidence:.2f})"
    holds = f"joined as the whole song{sure}" if joined.kind == "whole" else "joined as the continuation alone"
    if joined.kind == "continuation" and joined.confidence is not None:
        holds = "the take holds nothing of the song: taken as its continuation"
    output.say(f"{holds}; it lasts {clock(joined.duration)}, the new part begins at {clock(joined.seam.at)}")
    say_seam(output, joined)
    output.print(str(joined.path))
    return joined.to_dict() | {"path": joined.path}


def say_seam(output: Output, joined: audio.Joined) -> None:
    """Say by how much the new part was made louder, and what is remarkable where it begins."""
    if quieter := round(joined.turned_down, 1):
        output.say(f"all of it is {quieter} dB quieter, so that nothing clips")
    if gain := round(joined.gain, 1):
        louder = "louder" if gain > 0 else "quieter"
        output.say(f"from {clock(joined.seam.at)} on it was made {abs(gain)} dB {louder}, towards the level before")
    if abs(joined.seam.at - joined.at) > _NEAR:
        output.say(
            f"the track follows the song until {clock(joined.seam.at)}, and not until {clock(joined.at)}, the cut that "
            "was given: it was joined there"
        )
    for flag in joined.seam.flags:
        output.say(f"at {clock(joined.seam.at)} {flag}: listen there")
