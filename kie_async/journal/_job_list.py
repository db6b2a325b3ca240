"""Jobs as a notebook shows them."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import PureWindowsPath

from kie_async._display import escape, length, player, seam, table, title
from kie_async._protocol.json_values import as_duration
from kie_async._protocol.request_rules import is_url
from kie_async._text import clock, count_of
from kie_async.journal._job import Job
from kie_async.models import ExtendRequest, Request, TaskRecord, TaskResult

_MAX_SHOWN = 100  # jobs of one table
_FOLDERS = re.compile(r"(?<![\w:/\\])(?:[A-Za-z]:)?[/\\](?:[^/\\:;\"']+[/\\])+")


class JobList(list[Job]):
    """A list of jobs that a notebook shows as a table: the state of each, players for its tracks, and the total cost.

    ::

        done = kie.JobList()
        async for job in kie.run_batch(session, jobs, directory="extended"):
            done.append(job)
        done

    The table has the names of files without their folders, and at most the first 100 jobs.
    """

    def _repr_html_(self) -> str:
        states = Counter(job.state.value for job in self)
        counts = ", ".join(f"{count} {state}" for state, count in states.items())
        spent = sum(job.earlier_credits + (job.credits or 0.0) for job in self)
        hidden = f"; the first {_MAX_SHOWN} of them" if len(self) > _MAX_SHOWN else ""
        caption = f"{count_of(len(self), 'job')}: {counts or 'none'}; {spent:g} credits{hidden}"
        rows = [
            (escape(job.key), job.state.value, _source(job.request), _cut(job.request), _takes(job))
            for job in self[:_MAX_SHOWN]
        ]
        return table(caption, ("job", "state", "source", "cut", "takes"), rows)


def _source(request: Request) -> str:
    """What is extended: the id of a track, the host of an address, or the name of a file, on whatever system it is."""
    if isinstance(request, ExtendRequest):
        return escape(request.audio_id)
    source = str(request.source)
    return f"<bdi>{escape(source if is_url(source) else PureWindowsPath(source).name)}</bdi>"


def _cut(request: Request) -> str:
    cut = request.continue_at
    return escape(str(cut or "")) if isinstance(cut, str | None) else clock(cut)


def _takes(job: Job) -> str:
    """Each track of a job, or what went wrong."""
    cut = as_duration(job.request.continue_at)
    result = TaskResult(job.task_id or "", job.tracks, TaskRecord(), continue_at=cut)
    takes = [
        f"<bdi>{title(track)}</bdi>, length {length(track)}<br>{player(track)}<br>new part: {seam(result, track)}"
        for track in job.tracks
    ]
    if job.error is not None:
        takes.append(f"{escape(job.error.type)}: {escape(_FOLDERS.sub('…/', job.error.message))}")
    return "<br><br>".join(takes)
