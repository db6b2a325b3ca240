"""The commands ``report`` and ``select``: compare the takes of a folder, and copy those that were kept."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from kie_async._text import count_of
from kie_async.cli._options import OUTPUT, Directory, OutputArg, OutputOptions
from kie_async.cli._output import Output
from kie_async.errors import StorageError
from kie_async.events import clean
from kie_async.report import REPORT_NAME, Selection, select_takes, write_report

_MAX_NAMES = 10  # of files, in a message


async def report(
    directory: Annotated[Path, Parameter(help="The folder of the results: what --out was given.")],
    /,
    *,
    output: OutputArg,
    _output: OutputOptions = OUTPUT,
) -> None:
    """Write report.html into a folder of results: a page to hear and compare the takes, and to mark those to keep.

    It opens in a browser from the disk, without a server or a network, and stays where the audio is.

    Example: kie-async report new
    """
    output.print(str(await report_on(output, directory)))


async def report_on(output: Output, directory: Path) -> Path:
    """Write the report of a folder, show its progress, and return its path."""
    read = 0

    def progress(done: int, total: int | None) -> None:
        nonlocal read
        read = done
        output.display.doing(f"{REPORT_NAME}: {done} of {total} files read")

    path = await write_report(directory, progress=progress)
    output.say(f"{REPORT_NAME}: {count_of(read, 'file')} read")
    output.value["report"] = path
    return path


async def select(
    directory: Annotated[
        Path | None,
        Parameter(help="The folder of the report; by default the one in which the verdicts were given."),
    ] = None,
    /,
    *,
    verdicts: Annotated[Path, Parameter(name="--from", help="The verdicts.json that the report has exported.")],
    output: OutputArg,
    out: Directory,
    _output: OutputOptions = OUTPUT,
) -> None:
    """Copy the takes that were kept in a report, and write the notes on all takes (notes.txt); no file is overwritten.

    Each comes with its .kie.json, by which join knows where the song was cut.

    Example: kie-async select --from verdicts.json --out best
    """
    selection = await select_takes(verdicts, out, directory=directory)
    output.value["out"] = out
    for name in ("copied", "present", "missing", "taken", "sidecars", "continuations"):
        output.value[name] = list(getattr(selection, name))
    output.value["notes"] = selection.notes
    for path in selection.copied:
        output.print(str(path))
    output.say(f"{count_of(len(selection.copied), 'take')} copied, {len(selection.present)} there before")
    if number := len(selection.continuations):
        verb, them = ("holds", "it") if number == 1 else ("hold", "each")
        where = f"{them} behind what it continues (its song, or the take before in a chain)"
        remedy = f"kie-async join SONG TAKE --out FILE puts {where}"
        output.say(f"{number} of them {verb} the continuation alone: {remedy}")
    if selection.notes:
        output.say(f"the notes are in {selection.notes}")
    _check(selection)


def _check(selection: Selection) -> None:
    """Raise if takes that were kept were not copied."""
    problems = []
    if selection.missing:
        where = clean(str(selection.directory))
        remedy = "give the folder of the report, or fetch them again: kie-async jobs fetch"
        problems.append(f"{_names(selection.missing)}: not in {where}; {remedy}")
    if selection.taken:
        problems.append(f"{_names(selection.taken)}: another file has that name; give another --out, or move it away")
    if problems:
        raise StorageError("\n".join(problems))


def _names(paths: tuple[Path, ...]) -> str:
    more = len(paths) - _MAX_NAMES
    return ", ".join(clean(path.name) for path in paths[:_MAX_NAMES]) + (f" and {more} more" if more > 0 else "")
