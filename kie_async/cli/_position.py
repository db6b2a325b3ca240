"""Positions in a song, and lengths of one, as they are typed."""

from __future__ import annotations

import re

_EITHER = re.compile(r"(?P<end>-?)(?P<minutes>[0-7])\.(?P<seconds>[0-5][0-9])")  # no song lasts 8 minutes or more


def check_position(_type: object, text: str | None) -> None:
    """Refuse what may be minutes and seconds as well as seconds: it decides what is paid.

    The library and manifests take it as seconds: programs and spreadsheets write them with two decimals.

    Raises:
        ValueError: it may be either.
    """
    if found := _EITHER.fullmatch((text or "").strip()):
        minutes, seconds = f"{found['end']}{found['minutes']}:{found['seconds']}", f"{float(found[0]):g}"
        raise ValueError(f"Is it {minutes} or {seconds} seconds? Write {minutes} or {seconds}s.")
