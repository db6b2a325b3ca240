"""What the service accepts, as data: each limit with the page of kie.ai that states it. Pure.

Where two pages disagree, the current one decides; ``OLDER`` holds what the other says.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from difflib import SequenceMatcher
from types import MappingProxyType

import attrs

_CURRENT = "Extend Music; Upload And Extend Audio (current)"
_OLDER_EXTEND, _OLDER_UPLOAD = "Extend Music (older)", "Upload And Extend Audio (older)"


@attrs.frozen
class ModelLimits:
    """What a model accepts.

    Attributes:
        prompt: characters.
        style: characters.
        title: characters.
        upload_seconds: how long an uploaded source may last.
        page: the page that says so.
    """

    prompt: int
    style: int
    title: int
    upload_seconds: float = 8 * 60.0
    page: str = _CURRENT


CREDITS_PER_TASK = 12.0  # as observed
NEWEST = ModelLimits(5000, 1000, 100)
MODELS: Mapping[str, ModelLimits] = MappingProxyType(
    {
        "V3_5": ModelLimits(3000, 200, 80),
        "V4": ModelLimits(3000, 200, 80),
        "V4_5": ModelLimits(5000, 1000, 100),
        "V4_5PLUS": ModelLimits(5000, 1000, 100),
        "V4_5ALL": ModelLimits(5000, 1000, 80, upload_seconds=60.0),
        "V5": ModelLimits(5000, 1000, 100),
        "V5_5": ModelLimits(5000, 1000, 100),
        "V6": NEWEST,
        "V6_MINI": NEWEST,
        "V6_WILD": NEWEST,
    }
)
# By operation, for every model.
OLDER: Mapping[str, ModelLimits] = MappingProxyType(
    {
        "extend": ModelLimits(3000, 200, 80, page=_OLDER_EXTEND),
        "upload_extend": ModelLimits(3000, 200, 80, upload_seconds=120.0, page=_OLDER_UPLOAD),
    }
)
LYRICS, VARIETY = 5000, 4  # the most; "Upload And Extend Audio (current)"

PERSONA_MODELS = ("style_persona", "voice_persona")
# "Extend Music (older)"; the pages of 2026 and other clients list the V6 family too.
MODELS_WITH_PERSONA_MODEL = ("V5", "V5_5")
MODELS_WITHOUT_PERSONA_MODEL = ("V3_5", "V4", "V4_5", "V4_5PLUS", "V4_5ALL")

# The models that a track's code name (``Track.model_name``) can stand for, where that is certain.
MODELS_BY_CODE_NAME: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "chirp-v3-5": ("V3_5",),
        "chirp-v4": ("V4",),
        "chirp-auk": ("V4_5", "V4_5ALL"),
        "chirp-bluejay": ("V4_5PLUS",),
        "chirp-crow": ("V5",),
    }
)

# Newer than what is known, or a known one with another ending; what is older gets no new members.
_NAME = re.compile(r"V(?:[6-9](?:_[0-9])?|5_[5-9]|5(?=_?[A-Z]))(?:_?[A-Z]+)?")
_ALIKE = 0.85  # two names that are more alike are one, misspelt


def limits_of(model: object) -> ModelLimits | None:
    """The limits of a model; those of the newest for a name that may be a new one, None for one that cannot be."""
    if not isinstance(model, str):
        return None
    return MODELS.get(model) or (NEWEST if may_be_new(model) else None)


def may_be_new(model: str) -> bool:
    """Tell whether a name that is not in ``MODELS`` may be that of a new model, and no known one misspelt."""
    if model in MODELS or _NAME.fullmatch(model) is None:
        return False
    return not any(_is_misspelt(model, known) for known in MODELS)


def _is_misspelt(model: str, known: str) -> bool:
    if model.replace("_", "") == known.replace("_", ""):
        return True
    return model[:2] == known[:2] and SequenceMatcher(None, model, known).ratio() >= _ALIKE
