"""Moments of a song as people write them: ``45.5``, ``1:05``, ``75%``, ``-10s``."""

from __future__ import annotations

import re

import attrs

FORMS = "45.5 or 1:05 (seconds), 75% or -10s (before the end)"

_SHARE = re.compile(r"(?P<share>[0-9]+(?:\.[0-9]+)?)%")
_SECONDS = re.compile(r"(?P<end>-?)(?P<seconds>[0-9]+(?:\.[0-9]+)?)s?")
_CLOCK = re.compile(r"(?P<end>-?)(?P<minutes>[0-9]+):(?P<seconds>[0-5]?[0-9](?:\.[0-9]+)?)")


@attrs.frozen
class CutPoint:
    """A moment of a song: seconds from its beginning, seconds before its end, or a share of its length."""

    amount: float
    share: bool = False
    from_end: bool = False

    @property
    def needs_length(self) -> bool:
        """Whether the length of the song must be known."""
        return self.share or self.from_end

    def within(self, length: float | None) -> float | None:
        """The seconds from the beginning, to the hundredth where the length comes in; None if that is not known."""
        if not self.needs_length:
            return self.amount
        if length is None:
            return None
        return round(length * self.amount / 100 if self.share else length - self.amount, 2)


def read_cut_point(text: str) -> CutPoint | None:
    """Read a moment; None if it is none."""
    if found := _SHARE.fullmatch(text):
        return CutPoint(float(found["share"]), share=True)
    if found := _SECONDS.fullmatch(text):
        return CutPoint(float(found["seconds"]), from_end=bool(found["end"]))
    if found := _CLOCK.fullmatch(text):
        return CutPoint(float(found["minutes"]) * 60 + float(found["seconds"]), from_end=bool(found["end"]))
    return None
