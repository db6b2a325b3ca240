"""Positions in audio and numbers of things, as people read them."""

from __future__ import annotations


def clock(seconds: float) -> str:
    """A position in audio, or its length, in minutes and seconds: 2:06, or with hundredths if it has any, 0:15.40."""
    minutes, rest = divmod(round(seconds, 2), 60)
    return f"{minutes:.0f}:{rest:05.2f}" if rest % 1 else f"{minutes:.0f}:{rest:02.0f}"


def count_of(number: int, noun: str) -> str:
    """A number of things: 1 job, 2 jobs."""
    return f"{number} {noun}{'' if number == 1 else 's'}"
