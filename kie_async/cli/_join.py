"""Joining a song and what continues it: the command ``join``, and the option of ``upload-extend``."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias

from cyclopts import Parameter

from kie_async import audio
from kie_async._protocol.request_rules import is_url
from kie_async._text import clock
from kie_async.cli._exit_codes import UsageError
from kie_async.cli._options import OUTPUT, RUN, OutputArg, OutputOptions, RunOptions
from kie_async.cli._output import Output
from kie_async.errors import KieError, UnclearError

JoinOption: TypeAlias = Annotated[
    bool, Parameter(name="--join", group=RUN, help="Join each track to the song as well, in a file beside it.")
]
_NEAR = 0.1  # seconds between two places that are the same
_CHOICE = "--as whole or --as continuation"


async def join(  # noqa: PLR0913  # keyword-only but for the two files
    source: Annotated[Path, Parameter(help="The song that was extended.")],
    result: Annotated[Path, Parameter(help="A track that was made of it.")],
    /,
    *,
    output: OutputArg,
    at: Annotated[
        str,
        Parameter(
            allow_leading_hyphen=True, metavar="POSITION", help="Where the song was cut: 45.5, 1:05, 75% or -10s."
        ),
    ],
    out: Annotated[Path, Parameter(help="The file to write: a .wav, .flac or .mp3.")],
    kind: Annotated[
        Literal["whole", "continuation"] | None,
        Parameter(name="--as", help="What RESULT holds; by default its sound tells."),
    ] = None,
    _output: OutputOptions = OUTPUT,
) -> None:
    """Join a song and what continues it to one file; of a whole song, the service's own transition is kept.

    If the sound does not tell what RESULT holds, nothing is joined, and the exit code is 1.

    Example: kie-async join song.mp3 new/song-5c79be8e.mp3 --at 2:06 --out longer.mp3
    """
    output.display.doing(f"joining {source.name} and {result.name}")
    try:
        joined = await audio.join(source, result, at=at, out=out, kind=kind)
    except UnclearError as error:
        remedy = f"listen to it, and say {_CHOICE}"
        error.add_note(remedy if error.leaves_at is None else f"give --at {error.leaves_at}; or else {remedy}")
        raise
    output.value |= _show(output, joined)


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
                words = ["kie-async", "join", song, take, "--at", f"{cut:g}", "--as", "whole", "--out", out]
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
    if gain := round(joined.gain, 1):
        output.say(
            f"the track was made {abs(gain)} dB {'louder' if gain > 0 else 'quieter'}, to be as loud as the song"
        )
    if quieter := round(joined.turned_down, 1):
        output.say(f"all of it is {quieter} dB quieter, so that nothing clips")
    say_seam(output, joined)
    output.print(str(joined.path))
    return joined.to_dict() | {"path": joined.path}


def say_seam(output: Output, joined: audio.Joined) -> None:
    """Say what is remarkable where the new part begins."""
    if abs(joined.seam.at - joined.at) > _NEAR:
        output.say(
            f"the track follows the song until {clock(joined.seam.at)}, and not until {clock(joined.at)}, the cut that "
            "was given: it was joined there"
        )
    for flag in joined.seam.flags:
        output.say(f"at {clock(joined.seam.at)} {flag}: listen there")
