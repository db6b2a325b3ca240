"""Tell of a file whether it is cut off, as a download that broke off is: it plays, and nothing else shows it."""

from __future__ import annotations

from os import SEEK_END
from pathlib import Path

from kie_async._text import clock
from kie_async.errors import AudioError
from kie_async.events import clean
from kie_async.files._audio_kinds import OGG, audio_start, declared_end, ends_as_declared, kind_of
from kie_async.files._measure import MAX_DURATION
from kie_async.files._proven_length import stated_length

_HEAD = 1 << 18  # bytes that hold the header of a file, or the index of an mp4
_MISSING = 1.0  # seconds; what lacks no more is not worth a notice
_LEAST = 2.0  # seconds; of what is cut off and has no more, nothing is worth to be extended


def describe_cut_off(path: Path, seconds: float | None) -> str:
    """Say of a file that it ends before its header says so, or without an end; "" of any other. It blocks.

    Args:
        path: a file of audio.
        seconds: how long the audio in it is; None if it was not measured.

    Raises:
        AudioError: it is cut off, and less than 2 s of it are left.
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        kind = kind_of(file)
        if kind is OGG and not ends_as_declared(file, kind):
            return _described(f"{clean(path.name)} seems to be cut off: the page that ends it is missing", seconds)
        if kind is None or kind is OGG:
            return ""
        size, start, end = file.seek(0, SEEK_END), audio_start(file) or 0, declared_end(file, kind)
        file.seek(0)
        head = file.read(_HEAD)
    claimed = stated_length(kind, head, start, max(size, end or 0))
    if end is not None:
        seconds = (claimed or 0.0) * (size - start) / max(end - start, 1)
    if seconds is None or claimed is None or not seconds + _MISSING < claimed <= MAX_DURATION:
        return ""
    said = f"its header says {clock(claimed)}, its audio ends at about {clock(round(seconds))}"
    return _described(f"{clean(path.name)} is cut off: {said}", seconds)


def _described(notice: str, seconds: float | None) -> str:
    if seconds is not None and seconds < _LEAST:
        raise AudioError(f"{notice}; less than {_LEAST:g} s of it are left: get the whole file")
    return notice
