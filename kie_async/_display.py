"""Tracks and results as tables for notebooks.

The values load this module when a notebook first asks for it. All text is escaped, nothing runs, and nothing is
fetched before a person presses play; only addresses of http and https are played or linked.
"""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence
from urllib.parse import urldefrag

from kie_async._text import clock
from kie_async.events import clean
from kie_async.models import TaskResult, Track
from kie_async.settings import split_http

_LEAD = 3.0  # seconds before the seam at which a link begins
_CELL = 'style="text-align: left; vertical-align: top"'  # JupyterLab aligns to the right


def track_html(track: Track) -> str:
    """The table of one track, with its player."""
    return table("", ("title", "length", "model", "audio"), [(*_facts(track), escape(track.model_name), player(track))])


def result_html(result: TaskResult) -> str:
    """The table of a result: each track with its player, and where its new part begins."""
    rows = [
        (str(number), *_facts(track), seam(result, track), player(track))
        for number, track in enumerate(result.tracks, 1)
    ]
    caption = f"Task {escape(result.task_id)}"
    if result.continue_at is not None:
        source = f" of {clock(result.source_duration)}" if result.source_duration is not None else ""
        caption += f", made from the first {clock(result.continue_at)}{source}"
    if result.partial:
        caption += "; other tracks of it never got their audio"
    return table(caption, ("take", "title", "length", "new part", "audio"), rows)


def _facts(track: Track) -> tuple[str, str]:
    return f"<bdi>{title(track)}</bdi>", length(track)


def length(track: Track) -> str:
    """How long a track is."""
    return "not known" if track.duration is None else clock(track.duration)


def title(track: Track) -> str:
    """The title of a track, or what says that it has none."""
    return escape(track.title).strip() or "untitled"


def seam(result: TaskResult, track: Track) -> str:
    """Say where the new part of a track begins, with a link to it where it is in the midst of playable audio."""
    cut = result.continue_at
    if cut is None:
        return "not known"
    if result.holds(track) == "continuation":
        return "from the start: this is the continuation alone"
    words = f"from {clock(cut)}, if this is the whole song"
    url, start = audio_url(track), max(0.0, cut - _LEAD)
    if not is_playable(url):
        return words
    address = html.escape(f"{urldefrag(url).url}#t={start:.2f}")
    link = f'<a href="{address}" target="_blank" rel="noopener noreferrer">listen from {clock(start)}</a>'
    return f"{words}<br>{link}"


def audio_url(track: Track) -> str:
    """Where a track can be listened to, or else nothing."""
    return track.audio_url or track.stream_audio_url or ""


def player(track: Track) -> str:
    """The player of a track; an address that is not of http or https becomes text, without what may be secret."""
    url = audio_url(track)
    if not is_playable(url):
        return escape(url) or "none yet"
    return f'<audio controls preload="none" src="{html.escape(url)}" aria-label="{title(track)}"></audio>'


def is_playable(url: str) -> bool:
    """Tell whether an address names a host by http or https, as every browser reads it, and no user."""
    parts = split_http(url)
    return parts is not None and "@" not in parts.netloc and "\\" not in url


def escape(text: str | None) -> str:
    """Foreign text for HTML, attributes included: addresses cut to their host, no control characters, not long."""
    return html.escape(clean(text or ""))


def table(caption: str, headings: Iterable[str], rows: Iterable[Sequence[str]]) -> str:
    """Make a table of cells and a caption that are HTML already."""
    head = "".join(f'<th scope="col" {_CELL}>{heading}</th>' for heading in headings)
    body = "".join(f"<tr>{''.join(f'<td {_CELL}>{cell}</td>' for cell in row)}</tr>" for row in rows)
    top = caption and f'<caption style="text-align: left">{caption}</caption>'
    return f"<table>{top}<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
