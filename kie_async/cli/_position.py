"""Positions in a song, and lengths of one, as they are typed."""

from __future__ import annotations

import re

from kie_async._text import clock

_BEYOND = re.compile(r"-?(?P<minutes>[0-9]{1,4}):(?P<seconds>[6-9][0-9])(?:\.[0-9]+)?")
_EITHER = re.compile(r"(?P<end>-?)(?P<minutes>[0-7])\.(?P<seconds>[0-5][0-9])")  # no song lasts 8 minutes or more


def check_position(_type: object, text: str | None) -> None:
    """Refuse what may be minutes and seconds as well as seconds: it decides what is paid; and seconds beyond 59.

    The library and manifests take the first as seconds: programs and spreadsheets write them with two decimals.

    Raises:
        ValueError: it may be either, or has seconds beyond 59.
    """
    if found := _BEYOND.fullmatch((text or "").strip()):
        meant = clock(60.0 * int(found["minutes"]) + int(found["seconds"]))
        raise ValueError(f"Behind the colon, seconds go from 00 to 59. Is {meant} meant?")
    if found := _EITHER.fullmatch((text or "").strip()):
        minutes, seconds = f"{found['end']}{found['minutes']}:{found['seconds']}", f"{float(found[0]):g}"
        raise ValueError(f"Is it {minutes} or {seconds} seconds? Write {minutes} or {seconds}s.")
