"""Tell whether two requests ask for the same, even if they are not written alike. Pure."""

from __future__ import annotations

import os
from pathlib import PurePath

from kie_async._protocol.request_rules import compute_cut_point, is_url
from kie_async.models import Request, UploadExtendRequest

_AUDIO = (".aac", ".flac", ".m4a", ".mp3", ".mp4", ".ogg", ".opus", ".wav", ".webm")
_MAX_DRIFT = 1.0  # seconds by which two measurements of one source may move a cut point
_ROUNDING = 0.011  # seconds; a computed cut point is rounded to the hundredth


def asks_the_same(a: Request, b: Request) -> bool:
    """Whether two requests ask for the same.

    The length of the source does not count: it is given or measured, which depends on what is installed. Cut points may
    differ by as much as the two lengths do, up to 1 s. A relative path equals a path that ends with it. A URL whose
    path names an audio file is compared without its query, which may be a signature.
    """
    return _plain_fields(a) == _plain_fields(b) and _same_cut_point(a, b) and _same_source(_source(a), _source(b))


def _plain_fields(request: Request) -> dict[str, object]:
    special = {"source", "source_duration", "continue_at"}
    return {name: value for name, value in request.fields().items() if name not in special}


def _same_cut_point(a: Request, b: Request) -> bool:
    first = compute_cut_point(a.continue_at, b.source_duration)  # one that is text yet waits for a length
    second = compute_cut_point(b.continue_at, a.source_duration)
    if not isinstance(first, (int, float)) or not isinstance(second, (int, float)):
        return first == second
    drift = 0.0
    if a.source_duration is not None and b.source_duration is not None:
        drift = min(abs(a.source_duration - b.source_duration), _MAX_DRIFT)
    return abs(first - second) <= drift + _ROUNDING


def _source(request: Request) -> str:
    return str(request.source) if isinstance(request, UploadExtendRequest) else ""


def _same_source(one: str, other: str) -> bool:
    if is_url(one) or is_url(other):
        return _unsigned(one) == _unsigned(other)
    shorter, longer = sorted((_parts(one), _parts(other)), key=len)
    return longer[-len(shorter) :] == shorter


def _unsigned(url: str) -> str:
    address = url.partition("?")[0]
    return address if address.lower().endswith(_AUDIO) else url


def _parts(path: str) -> tuple[str, ...]:
    return tuple(part for part in PurePath(os.path.normpath(path)).parts if part != os.pardir)
