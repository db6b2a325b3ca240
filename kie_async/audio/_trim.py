"""Cut an audio file to a length, with a fade-out."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING

import attrs

from kie_async._protocol.json_values import as_number
from kie_async.audio._join import SUFFIXES, new_file, refused
from kie_async.audio._verdict import can_compare
from kie_async.errors import AudioError, StorageError
from kie_async.events import clean
from kie_async.files import check_writable, on_disk

if TYPE_CHECKING:
    from kie_async.audio._decode import AudioReader, Samples

FADE = 2.0  # seconds
_SHORTEST = 0.1  # seconds


async def trim(
    source: str | PathLike[str],
    out: str | PathLike[str],
    *,
    seconds: float,
    fade: float = FADE,
    tags_of: str | PathLike[str] | None = None,
) -> Path:
    """Write the beginning of an audio file to a new file, with a fade-out, and return the path of that.

    Args:
        source: an audio file. If it is shorter than ``seconds``, all of it is written, faded out too.
        out: the file to write, a .wav, .flac or .mp3.
        seconds: the length of the new file, from 0.1 up.
        fade: the length of the fade-out (equal power) at its end, in seconds, from 0 (none) up.
        tags_of: an audio file whose tags (title, artist and so on) the new file gets; by default, or if that has none
            or cannot be decoded, those of the source.

    Raises:
        InvalidRequestError: ``out``, ``seconds`` or ``fade`` cannot be used, or ``out`` exists; see ``problems``.
        AudioError: the source cannot be decoded as audio, or the extra ``audio`` is not installed.
        StorageError: the disk refused.

    The file is whole or absent. Cancelling waits for the work, about 2 s for a song of 4 minutes.
    """
    source, out = Path(source), Path(out)
    if out.suffix.lower() not in SUFFIXES:
        raise refused("out", f"is {clean(str(out))}", f"give a name that ends in {', '.join(SUFFIXES)}")
    length, fade_out = as_number(seconds), as_number(fade)
    if length is None or length < _SHORTEST:
        raise refused("seconds", f"is {seconds!r}", f"give a number of seconds from {_SHORTEST} up")
    if fade_out is None or fade_out < 0:
        raise refused("fade", f"is {fade!r}", "give a number of seconds from 0 up")
    if not can_compare():
        raise AudioError('audio cannot be trimmed: pip install "kie_async[audio]"')
    await check_writable(out.parent, otherwise="nothing was trimmed")
    with new_file(out):
        await on_disk(_trim, source, out, length, fade_out, tags_of or source)
    return out


def _trim(source: Path, out: Path, seconds: float, fade: float, tags_of: str | PathLike[str]) -> None:
    from kie_async.audio._decode import open_reader  # an extra, and slow to import
    from kie_async.audio._encode import Form, write
    from kie_async.files import measure

    end = min(seconds, measure(source))
    with open_reader(source) as reader:
        form = Form.fitting(out.suffix.lower(), reader)
        with suppress(AudioError, StorageError), open_reader(tags_of) as tagged:
            form = attrs.evolve(form, tags=tagged.tags or form.tags)
        write(out, _faded(reader, form.rate, end, min(fade, end)), form)


def _faded(reader: AudioReader, rate: int, end: float, fade: float) -> Iterator[Samples]:
    import numpy as np

    at, last, length = 0, round(end * rate), max(1.0, fade * rate)
    for block in reader.blocks(0.0, end, rate=rate, layout="mono" if reader.channels == 1 else "stereo"):
        left = (last - at - np.arange(block.shape[1])) / length
        at += block.shape[1]
        yield block * np.sin(np.pi / 2 * np.clip(left, 0.0, 1.0)).astype(np.float32)
