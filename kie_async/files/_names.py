"""Names of downloaded files: made here, from a safe alphabet, never taken from the network."""

from __future__ import annotations

import hashlib
import re
import unicodedata

from kie_async.files._kinds import KINDS

NAME_MOST = 100  # bytes; with a number, a suffix and ".part.json" it stays within 120
_ID_MOST = 40
_WINDOWS = frozenset(
    {"con", "prn", "aux", "nul", "conin", "conout"}
    | {f"{port}{number}" for port in ("com", "lpt") for number in range(10)}
)
_SUFFIXES = tuple(kind.suffix for kind in KINDS)


def safe_name(text: str, *, most: int = NAME_MOST) -> str:
    """Make a file's name out of any text: ASCII letters, digits, "-", "_" and "."; at most ``most`` bytes.

    A suffix of audio is taken off: the file gets the one that its content deserves. What has nothing left is "track".
    """
    plain = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode()
    if plain.lower().endswith(_SUFFIXES):
        plain = plain.rpartition(".")[0]
    name = re.sub(r"[^A-Za-z0-9._]+|\.{2,}", "-", plain)[:most].strip("-._")
    if not name:
        return "track"
    return f"{name[: most - 6]}-track" if name.partition(".")[0].lower() in _WINDOWS else name


def track_name(title: str | None, track_id: str) -> str:
    """Name a track by its title and its id; two tracks never share a name, however odd their ids are."""
    plain = re.fullmatch(rf"[A-Za-z0-9_-]{{1,{_ID_MOST}}}", track_id)
    mark = track_id.lower() if plain else hashlib.sha256(track_id.encode("utf-8", "replace")).hexdigest()[:32]
    return safe_name(f"{safe_name(title or 'track', most=NAME_MOST - len(mark) - 1)}-{mark}")
