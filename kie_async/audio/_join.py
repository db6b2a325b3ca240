"""Join a song and its continuation into one file. The arguments are checked here; ``_write_joined`` does the work."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from os import PathLike
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import attrs

from kie_async._protocol.request_rules import FORMS, read_cut_point
from kie_async._text import clock
from kie_async.audio._verdict import Verdict, can_compare, compare
from kie_async.errors import AudioError, InvalidRequestError, Problem, StorageError, UnclearError, invalid_request
from kie_async.events import clean
from kie_async.files import check_writable, measure, on_disk

if TYPE_CHECKING:
    from kie_async.audio._seam import Seam
    from kie_async.audio._write_joined import Joining

Kind: TypeAlias = Literal["whole", "continuation"]

SUFFIXES = (".wav", ".flac", ".mp3")  # of the files that are written
_MIN_CONFIDENCE = 0.6  # a verdict that is less sure is a guess
_NEAR = 0.1  # seconds between two places that are the same


@attrs.frozen
class Joined:
    """A joined file.

    Attributes:
        path: the file.
        kind: what the result was taken to hold.
        confidence: how sure that is, from 0 to 1; None if the caller gave ``kind``.
        duration: the length of the file, in seconds.
        gain: by how many dB the result was made louder (negative: quieter) to match the source.
        turned_down: by how many dB the whole file was made quieter, so that nothing clips.
        at: the cut that was given, in seconds.
        seam: where the new part begins, and how the transition sounds. If ``seam.at`` is not near ``at``, a result that
            holds the whole song differs from the source from there on, and not from the cut on.
    """

    path: Path
    kind: Kind
    confidence: float | None
    duration: float
    gain: float
    turned_down: float
    at: float
    seam: Seam

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON types."""
        seam = attrs.asdict(self.seam) | {"flags": list(self.seam.flags)}
        return attrs.asdict(self) | {"path": str(self.path), "seam": seam}


async def join(
    source: str | PathLike[str],
    result: str | PathLike[str],
    *,
    at: float | str,
    out: str | PathLike[str],
    kind: Kind | None = None,
) -> Joined:
    """Join a song and its continuation into one file: the song up to the cut, then the new part.

    If the result holds the whole song, the file switches to it a little before the position where it leaves the source,
    where both sound the same, so that the service's own transition is kept. That position is the cut, unless the sound
    shows clearly that it is another. A continuation is faded in at the cut within 20 ms, and its level is matched to
    the song's, by at most 6 dB. If anything would clip, the whole file is made quieter by one gain.

    Args:
        source: the file that was extended.
        result: a track that the service made of it.
        at: the cut (``continue_at``): seconds, or text such as "2:06", "75%" and "-10s".
        out: the file to write, a .wav, .flac or .mp3. It has the higher sample rate of the two files, at most two
            channels, and 24 bits if one of them has; an mp3 has 128 kbit/s for each channel. The tags (title, artist
            and so on) are those of the source, or of the result if the source has none.
        kind: what the result holds, "whole" or "continuation"; by default its sound decides.

    Returns:
        The joined file; the texts of ``seam.flags`` name what sounds conspicuous at the seam.

    Raises:
        UnclearError: the sound does not show what the result holds; nothing was written. Listen, and give ``kind``. If
            it has ``leaves_at``, the result differs from the song more than half a second before the cut: give that
            position as ``at``, or ``kind="whole"`` to join there.
        InvalidRequestError: ``at``, ``out`` or ``kind`` cannot be used, or ``result`` has nothing new.
        AudioError: a file cannot be decoded as audio, or the extra ``audio`` is not installed.
        StorageError: the disk refused.

    The file is whole or absent, and never replaces another. Cancelling stops the work and leaves no file.
    """
    if kind not in {None, "whole", "continuation"}:
        raise refused("kind", f"is {kind!r}", "give whole or continuation, or leave it out")
    source, result, out = Path(source), Path(result), Path(out)
    if not can_compare():
        raise AudioError('audio cannot be joined: pip install "kie_async[audio]"')
    from kie_async.audio._write_joined import Joining  # an extra, and slow to import

    cut = await check_join(source, at=at, out=out)
    stop = Event()
    with new_file(out):
        begun = await on_disk(Joining.begin, source, result, cut, out, stop, on_cancel=stop.set)
        verdict = Verdict("continuation") if kind == "continuation" else await _verdict(begun, kind)
        joined = await on_disk(begun.finish, kind or verdict.kind, verdict, on_cancel=stop.set)
    return joined if kind is None else attrs.evolve(joined, confidence=None)


async def check_join(source: Path, *, at: float | str, out: Path) -> float:
    """Check where a song is cut and where the joined file goes, without reading the song; return the cut, in seconds.

    Raises:
        InvalidRequestError: ``at`` is no position in the song, ``out`` is no name of audio, or is there already.
        AudioError: the length of the song is needed and cannot be measured.
        StorageError: the disk refused.
    """
    if out.suffix.lower() not in SUFFIXES:
        known = f"{', '.join(SUFFIXES[:-1])} or {SUFFIXES[-1]}"
        raise refused("out", f"is {clean(str(out))}", f"give a file whose name ends in {known}")
    cut = await on_disk(_seconds, at, source)
    await check_writable(out.parent, otherwise="nothing was joined")
    with new_file(out):
        await on_disk(_check_absent, out)
    return cut


def _check_absent(path: Path) -> None:
    if os.path.lexists(path):
        raise FileExistsError(path)


def _seconds(at: float | str, source: Path) -> float:
    """The cut in seconds."""
    point = read_cut_point(at.strip()) if isinstance(at, str) else None
    if isinstance(at, str) and point is None:
        raise refused("at", f"is {clean(at)[:40]!r}", f"give a position in the song: {FORMS}")
    length = measure(source) if point is not None and point.needs_length else None
    seconds = at if point is None else point.resolve(length)
    if not isinstance(seconds, int | float) or not math.isfinite(seconds) or seconds <= 0:
        lasts = "" if length is None else f"{clean(str(source))} lasts {clock(length)}: "
        raise refused("at", f"is {at!r:.60}", f"{lasts}give a position in the song: {FORMS}")
    return float(seconds)


async def _verdict(begun: Joining, kind: Kind | None) -> Verdict:
    verdict = await compare(begun.source, begun.result, continue_at=begun.cut)
    if kind is not None:
        return verdict
    left, _ = begun.leaves(verdict)
    if left < begun.cut - _NEAR:
        raise UnclearError(
            f"{clean(str(begun.result))} leaves the song at {clock(left)}, before the cut that was given, "
            f"{clock(begun.cut)}, and nothing was joined",
            leaves_at=round(left, 2),
        )
    if verdict.kind != "unclear" and verdict.confidence >= _MIN_CONFIDENCE:
        return verdict
    cut, length = begun.cut, await on_disk(measure, begun.result)
    if length <= cut:
        return Verdict("continuation", 1.0, seam=0.0)  # the song up to the cut has no room in it
    raise UnclearError(
        f"it is unclear what {clean(str(begun.result))} holds, and nothing was joined. As the whole song, its new part "
        f"begins at {clock(cut)}, and the joined file lasts {clock(length)}; as the continuation alone, all is new in "
        f"it, and the joined file lasts {clock(cut + length)}",
        durations={"whole": length, "continuation": cut + length},
    )


@contextmanager
def new_file(out: Path) -> Iterator[None]:
    """Let the error of a file that is there already name ``out``."""
    try:
        yield
    except StorageError as error:
        if not isinstance(error.__cause__, FileExistsError):
            raise
        problem = f"is {clean(str(out))}, which is there already"
        raise refused("out", problem, "give another name, or remove it") from None


def refused(field: str, problem: str, remedy: str) -> InvalidRequestError:
    """Make the error of an argument that cannot be used."""
    return invalid_request(Problem(field, problem, remedy))
