"""Names of downloaded files: made here, safe on every system, never taken from the network.

A name keeps the letters, digits and signs of any script (in Unicode's composed form, NFC). What separates, controls,
hides or reorders text is left out: separators of paths, what shells and Windows reserve, spaces, invisible and
bidirectional characters. Names are capped in bytes, for that is what a disk counts.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata

from kie_async.files._audio_kinds import AUDIO_KINDS

MAX_NAME = 100  # bytes; with a number, a suffix and ".part.json" it stays within 120
_MAX_ID = 40
_KEPT = ("L", "M", "N", "So")  # letters, marks, digits, and signs such as emoji
_DROPPED = ("Cf", "Cs")  # invisible, and halves of characters
_FILLERS = frozenset("\u115f\u1160\u3164\uffa0")  # letters by their category, and invisible
_EDGE = "-._"  # a name begins and ends with something else
_WINDOWS = frozenset(
    {"con", "prn", "aux", "nul", "conin", "conout"}
    | {f"{port}{number}" for port in ("com", "lpt") for number in (*range(10), "¹", "²", "³")}
)
_SUFFIXES = tuple(kind.suffix for kind in AUDIO_KINDS)


def safe_name(text: str, *, limit: int = MAX_NAME) -> str:
    """Make a file's name out of any text, of at most ``limit`` bytes in UTF-8.

    A suffix of audio is removed, because the file gets that of its content. If nothing is left, the name is "track".
    """
    plain = unicodedata.normalize("NFC", text)
    if plain.lower().endswith(_SUFFIXES):
        plain = plain.rpartition(".")[0]
    name = unicodedata.normalize("NFC", "".join(map(_safe, plain)))
    name = re.sub(r"-{2,}", "-", re.sub(r"\.{2,}", "-", name))
    name = _stripped(_cut(name, limit))
    if not name:
        return "track"
    if name.partition(".")[0].lower() in _WINDOWS:  # whatever follows the first dot
        return _stripped(_cut(f"track-{name}", limit))
    return name


def _safe(character: str) -> str:
    """The character, a hyphen in its place, or nothing."""
    category = unicodedata.category(character)
    if category in _DROPPED or character in _FILLERS:
        return ""
    return character if category.startswith(_KEPT) or character in "._" else "-"


def _cut(name: str, limit: int) -> str:
    """Cut a name to so many bytes, between two characters."""
    return name.encode()[:limit].decode(errors="ignore")


def _stripped(name: str) -> str:
    """Remove what a name must not begin or end with, such as a combining mark, which needs a letter before it."""
    name = name.strip(_EDGE)
    while name and (name[0] in _EDGE or unicodedata.category(name[0]).startswith("M")):
        name = name[1:]
    return name


def track_name(title: str | None, track_id: str) -> str:
    """Name a track by its title and its id; two tracks never share a name, however odd their ids are."""
    plain = re.fullmatch(rf"[A-Za-z0-9_-]{{1,{_MAX_ID}}}", track_id)
    mark = track_id.lower() if plain else hashlib.sha256(track_id.encode("utf-8", "replace")).hexdigest()[:32]
    return safe_name(f"{safe_name(title or 'track', limit=MAX_NAME - len(mark) - 1)}-{mark}")
