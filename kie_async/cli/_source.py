"""What is said of a song of one's own before its extension is paid for."""

from __future__ import annotations

from kie_async import files
from kie_async.batch import song_file
from kie_async.cli._output import Output
from kie_async.events import Notice
from kie_async.models import Request


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
