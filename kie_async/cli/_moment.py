"""Where to cut: ``--at 45.5``, ``--at 1:05``, ``--at 75%`` or ``--at -10s``, with words for the command line."""

from __future__ import annotations

import attrs

from kie_async._protocol import cut_point
from kie_async.cli._exit_status import UsageError


@attrs.frozen
class Moment(cut_point.CutPoint):
    """A moment of a song, whose length must be known where it is needed."""

    def within(self, length: float | None) -> float:
        """The seconds from the beginning, to the hundredth where the length comes in.

        Raises:
            UsageError: the length is needed and not known.
        """
        seconds = super().within(length)
        if seconds is None:
            raise UsageError("--at: the length of the song is not known; give seconds, or its length with --duration")
        return seconds


def parse_moment(text: str) -> Moment:
    """Read a moment.

    Raises:
        UsageError: it is none.
    """
    moment = cut_point.read_cut_point(text)
    if moment is None:
        raise UsageError(f"--at: {text[:40]!r} is no moment; write {cut_point.FORMS}")
    return Moment(**attrs.asdict(moment))
