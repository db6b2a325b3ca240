"""Write the report of a folder."""

from __future__ import annotations

import os
from os import PathLike
from pathlib import Path

import anyio

from kie_async._client.concurrency import map_unordered, unwrap_single_exception
from kie_async._fsync import replace_file
from kie_async.errors import ConflictError
from kie_async.events import clean
from kie_async.files import Progress, on_disk
from kie_async.report._folder import ReportedJob, read_folder
from kie_async.report._page import GENERATOR, page_data, render
from kie_async.report._peaks import Outline, OutlineCache

REPORT_NAME = "report.html"
_HEAD = 4096  # bytes of a page that name its generator


async def write_report(directory: str | PathLike[str], *, progress: Progress | None = None) -> Path:
    """Write a page to compare the takes of a folder of results, and return its path: ``report.html`` in the folder.

    The page needs nothing but the audio beside it: no server and no network. The outlines of the files are kept in the
    folder, so that the next report decodes only what is new. Needs the extra ``kie_async[audio]``; without it, and for
    files that cannot be decoded, the page has no waveforms.

    Args:
        directory: to which a batch has downloaded.
        progress: is called with how many files are read, and how many there are.

    Raises:
        ReportError: the folder does not exist, or holds no results.
        ConflictError: it has a ``report.html`` that was written by something else.
        StorageError: the disk refused.

    Cancelling leaves a report that was there as it was.
    """
    directory = Path(directory)
    jobs = await on_disk(read_folder, directory)
    await on_disk(_check_ours, directory / REPORT_NAME)
    outlines = await _read_outlines(directory.resolve(), jobs, progress)
    await on_disk(_write, directory, jobs, outlines)
    return directory / REPORT_NAME


async def _read_outlines(directory: Path, jobs: list[ReportedJob], progress: Progress | None) -> dict[Path, Outline]:
    cache = await on_disk(OutlineCache, directory)
    paths = {job.source for job in jobs if job.source}
    paths |= {directory / take.name for job in jobs for take in job.takes if take.is_there}
    outlines: dict[Path, Outline] = {}

    async def read(path: Path) -> tuple[Path, Outline]:
        return path, await on_disk(cache.find, path)

    with unwrap_single_exception():
        async with anyio.create_task_group() as group:
            async for path, outline in map_unordered(sorted(paths), read, group, concurrency=os.cpu_count() or 1):
                outlines[path] = outline
                if progress is not None:
                    progress(len(outlines), len(paths))
    await on_disk(cache.save)
    return outlines


def _check_ours(path: Path) -> None:
    """Refuse to overwrite a page that something else has written."""
    try:
        with path.open("rb") as file:
            head = file.read(_HEAD)
    except FileNotFoundError:
        return
    if GENERATOR.encode() not in head:
        raise ConflictError(f"{clean(str(path))} was not written by this command: move it away, and run it again")


def _write(directory: Path, jobs: list[ReportedJob], outlines: dict[Path, Outline]) -> None:
    replace_file(directory / REPORT_NAME, render(page_data(directory, jobs, outlines)))
