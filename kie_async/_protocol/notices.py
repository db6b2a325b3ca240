"""What is pointless or uncertain in a request that may be sent all the same: pure.

A notice names no value, so that a session that emits each notice once emits few.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from kie_async._protocol.limits import MODELS, MODELS_WITH_PERSONA_MODEL, OLDER, may_be_new
from kie_async._protocol.request_rules import Fields, is_blank
from kie_async.errors import Problem

_TASK_ID = re.compile(r"[0-9a-f]{32}")  # the service's ids of tasks; those of tracks have hyphens


def find_notices(given: Fields, *, own_parameters: bool, sends_flag: bool) -> Iterator[Problem]:
    """Find what has no effect, or is not documented.

    Args:
        given: all fields of a request without problems.
        own_parameters: as for ``find_problems``.
        sends_flag: whether the route sends ``default_param_flag``.
    """
    named = {name for name, value in given.items() if value is not None}
    if given["instrumental"]:
        for name in sorted(named & {"prompt", "lyrics", "vocal_gender"}):
            yield Problem(name, "has no effect with instrumental", "leave it out, or drop instrumental")
    if not own_parameters:
        yield from _ignored(named, sends_flag=sends_flag)
    if "persona_model" in named:
        yield from _persona_model(given)
    for name in ("negative_tags", "prompt", "style", "title"):
        if is_blank(given[name]):
            yield Problem(name, "is empty", "leave it out")
    model = str(given["model"])
    if may_be_new(model):
        yield Problem("model", f"{model} is none that is known", f"its limits are taken from {list(MODELS)[-1]}")
    if isinstance(audio_id := given.get("audio_id"), str) and _TASK_ID.fullmatch(audio_id):
        yield Problem("audio_id", "looks like the id of a task", "give the id of a track (Track.id)")


def _ignored(named: set[str], *, sends_flag: bool) -> Iterator[Problem]:
    """What the service leaves aside without own parameters."""
    is_upload = "source" in named
    ignored = {"style", "title", "lyrics"} if is_upload else {"prompt", "style", "title", "continue_at"}
    for name in sorted(named & ignored):
        if sends_flag:
            remedy = "leave it out, or drop default_param_flag=False"
            yield Problem(name, "has no effect with default_param_flag=False", remedy)
        else:
            remedy = "leave out what is not to count"
            yield Problem("default_param_flag", f"is not known to the jobs route, where {name} counts", remedy)


def _persona_model(given: Fields) -> Iterator[Problem]:
    if given["persona_id"] is None:
        yield Problem("persona_model", "has no effect without persona_id", "give persona_id too, or leave it out")
    elif given["model"] not in MODELS_WITH_PERSONA_MODEL:
        documented = " and ".join(MODELS_WITH_PERSONA_MODEL)
        yield Problem("persona_model", f"is documented for {documented} alone", "it may have no effect")


def find_older_limits(given: Fields, operation: str) -> Iterator[tuple[str, str, str]]:
    """Find what an older page does not allow.

    Yields:
        The field, how much it has, and what that page allows.
    """
    older = OLDER[operation]
    for name in ("prompt", "style", "title"):
        text, limit = given[name], getattr(older, name)
        if isinstance(text, str) and len(text) > limit:
            yield name, f"has {len(text)} characters", f'the page "{older.page}" allows {limit}'
    duration = given["source_duration"]
    if operation == "upload_extend" and isinstance(duration, (int, float)) and duration > older.upload_seconds:
        yield "source", f"lasts {duration:.2f} s", f'the page "{older.page}" allows {older.upload_seconds:.0f} s'
