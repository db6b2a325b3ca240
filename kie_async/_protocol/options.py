"""The keyword arguments of ``KieSession.extend`` and ``upload_extend``, and the request for a track made of them."""

from __future__ import annotations

from typing import Any, Literal, TypedDict

from kie_async._protocol.request_rules import MODELS_BY_CODE_NAME
from kie_async.errors import Problem, invalid_request
from kie_async.models import ExtendRequest, Model, Track


class RequestFields(TypedDict, total=False):
    """The fields that both requests share, for ``session.extend`` and ``session.upload_extend``."""

    model: Model
    prompt: str | None
    style: str | None
    title: str | None
    continue_at: float | str | None
    instrumental: bool
    negative_tags: str | None
    vocal_gender: Literal["m", "f"] | None
    style_weight: float | None
    weirdness_constraint: float | None
    audio_weight: float | None
    persona_id: str | None
    persona_model: Literal["style_persona", "voice_persona"] | None
    default_param_flag: bool | None
    source_duration: float | None


class UploadFields(RequestFields, total=False):
    """The fields of ``session.upload_extend``."""

    lyrics: str | None
    variety: float | None


UPLOAD_ONLY = tuple(sorted(UploadFields.__annotations__.keys() - RequestFields.__annotations__.keys()))


def extend_track(track: Track, fields: RequestFields) -> ExtendRequest:
    """Build the request that extends a track, with its length and, if that is certain, its model.

    Raises:
        InvalidRequestError: the request breaks rules, or its model is not the one that made the track.
    """
    made_by = MODELS_BY_CODE_NAME.get(track.model_name or "", ())
    given: dict[str, Any] = {"source_duration": track.duration, **fields}
    if len(made_by) == 1:
        given.setdefault("model", made_by[0])
    if made_by and given.get("model") not in made_by:
        is_what = f"is {given['model']!r}" if given.get("model") else "is missing"
        remedy = f"give the one that made the track ({track.model_name}): {' or '.join(made_by)}"
        raise invalid_request(Problem("model", is_what, remedy))
    return ExtendRequest(track.id, **given)
