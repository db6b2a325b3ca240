"""What is checked and said of a song of one's own before anything is done with it."""

from __future__ import annotations

from pathlib import Path

from kie_async import audio, files
from kie_async._text import clock
from kie_async.batch import song_file
from kie_async.chain._rules import ChainGoal
from kie_async.cli._exit_codes import UsageError
from kie_async.cli._output import Output
from kie_async.events import Notice, clean
from kie_async.models import Request


def check_file(argument: str, path: Path, remedy: str = "give one file") -> None:
    """Refuse what is no file before anything is done with it; it blocks.

    Raises:
        UsageError: it is a directory, or no plain file, or not there.
    """
    name = clean(str(path))
    if path.is_dir():
        raise UsageError(f"{argument}: {name!r} is a directory; {remedy}")
    if not path.is_file():
        fault = f"{name!r} is no plain file; copy it to one first" if path.exists() else f"there is no file {name!r}"
        raise UsageError(f"{argument}: {fault}")


async def say_cut_off(output: Output, request: Request) -> None:
    """Say that the file that a request extends seems to have lost its end.

    Raises:
        AudioError: hardly anything of it is left.
    """
    path = song_file(request)
    if path is None:
        return
    if notice := await files.on_disk(files.describe_cut_off, path, request.source_duration):
        output.emit(Notice("", notice, "cut_off"))


async def describe_fade(request: Request) -> str | None:
    """Say that a file fades out before a request cuts it, which a new part does not follow well; None if not."""
    path, cut = song_file(request), request.continue_at
    if path is None or not isinstance(cut, float):
        return None
    fades_from = await audio.quiet_from(path, request.source_duration or cut, cut=cut)
    if fades_from is None or fades_from >= cut:
        return None
    before = ChainGoal(seconds=cut).next_cut(cut, fades_from)
    return (
        f"your song fades out from about {clock(fades_from)}, and --at cuts it later, at {clock(cut)}: --at "
        f"{clock(before)} is before the fade"
    )
