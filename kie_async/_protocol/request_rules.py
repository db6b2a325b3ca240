"""The rules of a request, as kie.ai's pages "Extend Music" and "Upload And Extend Audio" give them: pure.

First what the service accepts, as data, each limit with the page that states it; where two pages disagree, the current
one decides, and ``OLDER`` holds what the other says. Then how a cut point is written: ``45.5``, ``1:05``, ``1m05s``,
``75%``, ``-10s``. Last the rules: each takes the fields as they were given, of any type whatever, and yields what is
wrong with them. A request is refused if the service is known to refuse it, or if it would be paid and cannot have the
effect that is asked for. What is only pointless is no fault: see ``_protocol.admission``.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping
from difflib import SequenceMatcher
from os import PathLike
from types import MappingProxyType
from typing import NamedTuple, TypeAlias, TypeGuard

from kie_async._text import clock
from kie_async.errors import Problem
from kie_async.settings import split_http

# ---------------------------------------------------------------- what the service accepts

_CURRENT = "Extend Music; Upload And Extend Audio (current)"
_OLDER_EXTEND, _OLDER_UPLOAD = "Extend Music (older)", "Upload And Extend Audio (older)"


class ModelLimits(NamedTuple):
    """What a model accepts.

    Attributes:
        prompt: characters.
        style: characters.
        title: characters.
        upload_seconds: how long an uploaded source may last.
        result_seconds: how long a result can become.
        page: the page that says so.
    """

    prompt: int
    style: int
    title: int
    upload_seconds: float = 8 * 60.0
    result_seconds: float = 8 * 60.0
    page: str = _CURRENT


CREDITS_PER_TASK = 12.0  # as observed
NEWEST = ModelLimits(5000, 1000, 100)
MODELS: Mapping[str, ModelLimits] = MappingProxyType(
    {
        "V3_5": ModelLimits(3000, 200, 80, result_seconds=4 * 60.0),
        "V4": ModelLimits(3000, 200, 80, result_seconds=4 * 60.0),
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


# ---------------------------------------------------------------- cut points

FORMS = "45.5, 10s, 1:05 or 1m05s, 75%, or -10s (before the end)"

_SHARE = re.compile(r"(?P<share>[0-9]+(?:\.[0-9]+)?)%")
_SECONDS = re.compile(r"(?P<end>-?)(?P<seconds>[0-9]+(?:\.[0-9]+)?)(?: ?s)?")
_CLOCK = re.compile(r"(?P<end>-?)(?P<minutes>[0-9]+):(?P<seconds>[0-5]?[0-9](?:\.[0-9]+)?)")
_UNITS = re.compile(r"(?P<end>-?)(?P<minutes>[0-9]+) ?m(?:in)?(?: ?(?P<seconds>[0-5]?[0-9](?:\.[0-9]+)?)(?: ?s)?)?")


class CutPoint(NamedTuple):
    """A position in a song: seconds from its beginning, seconds before its end, or a share of its length."""

    amount: float
    share: bool = False
    from_end: bool = False

    @property
    def needs_length(self) -> bool:
        """Whether the length of the song must be known."""
        return self.share or self.from_end

    def resolve(self, length: float | None) -> float | None:
        """The position in seconds from the beginning, rounded to 0.01 s; None if it needs an unknown length."""
        if not self.needs_length:
            return self.amount
        if length is None:
            return None
        return round(length * self.amount / 100 if self.share else length - self.amount, 2)


def read_cut_point(text: str) -> CutPoint | None:
    """Read a position as people write it; None if the text is not one of ``FORMS``."""
    if found := _SHARE.fullmatch(text):
        return CutPoint(float(found["share"]), share=True)
    if found := _SECONDS.fullmatch(text):
        return CutPoint(float(found["seconds"]), from_end=bool(found["end"]))
    if found := _CLOCK.fullmatch(text) or _UNITS.fullmatch(text):
        return CutPoint(float(found["minutes"]) * 60 + float(found["seconds"] or 0), from_end=bool(found["end"]))
    return None


# ---------------------------------------------------------------- the rules

Fields: TypeAlias = Mapping[str, object]

LONGEST = 1e6  # seconds; what is longer is no length of audio
_ADDRESS_OR_PATH = re.compile(r"[/\\]|\.[A-Za-z0-9]{2,4}\Z")  # no id of a track holds these


def find_problems(given: Fields, *, own_parameters: bool) -> Iterator[Problem]:
    """Find everything that is wrong with a request.

    Args:
        given: all its fields; ``source`` marks an upload, ``audio_id`` a track of the service.
        own_parameters: the ``default_param_flag`` that would be sent.
    """
    yield from _source(given["source"]) if "source" in given else _audio_id(given["audio_id"])
    yield from _texts(given, tuple(_needed_texts(given)) if own_parameters else ())
    yield from _moments(given)
    for name, (is_usable, remedy) in _PLAIN_FIELDS.items():
        if not is_usable(given.get(name)):
            yield Problem(name, f"is {_shown(given[name])}", remedy)
    yield from _model(given)
    yield from _missing(given) if own_parameters else _inherited(given)


def is_url(source: object) -> bool:
    """Tell whether a source is an address (http or https) rather than a path."""
    return isinstance(source, str) and source.lower().startswith(("http://", "https://"))


def is_blank(text: object) -> bool:
    """Tell whether a value is text, and empty or only white space."""
    return isinstance(text, str) and not text.strip()


def compute_cut_point(moment: object, duration: object) -> object:
    """``continue_at`` in seconds, where it is written as text and is in the source; or else as it was given."""
    found = read_cut_point(moment.strip()) if isinstance(moment, str) else None
    length = _seconds(duration)
    seconds = found.resolve(length) if found else None
    if found is None or seconds is None or seconds <= 0:
        return moment
    is_behind = found.needs_length and length is not None and _reaches(seconds, length)
    return moment if is_behind else seconds


def _reaches(moment: float, length: float) -> bool:
    """Tell whether a moment is not before the end of a song; hundredths of a second are sent."""
    return round(moment, 2) >= round(length, 2)


def _shown(value: object) -> str:
    """A value as shown in a problem: its type if it is of another kind, its beginning if it is long."""
    if value is None:
        return "missing"
    if isinstance(value, str):
        return "empty" if not value.strip() else repr(value[:40])
    if isinstance(value, (bool, float)):
        return repr(value)
    return f"{value:.6g}" if _is_number(value) else f"of type {type(value).__name__}"


def _is_number(value: object) -> TypeGuard[float]:
    """Tell whether a value is a number of a size that audio knows; True and False are none."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and -LONGEST < value < LONGEST


def _is_share(value: object) -> bool:
    if not _is_number(value):
        return value is None
    return 0 <= value <= 1 and math.isclose(value * 100, round(value * 100), abs_tol=1e-9)  # 0.29 * 100 is 28.999…


_SHARE_FIELD = _is_share, "give a number from 0 to 1 in steps of 0.01"
# Fields that stand for themselves: whether a value, given or not, can be used, and the remedy. A value that cannot be
# hashed may be given, so what is allowed stands in tuples.
_PLAIN_FIELDS: Mapping[str, tuple[Callable[[object], bool], str]] = {
    "instrumental": (lambda value: isinstance(value, bool), "give True or False"),
    "default_param_flag": (
        lambda value: value is None or isinstance(value, bool),
        "give True or False, or leave it out",
    ),
    "style_weight": _SHARE_FIELD,
    "weirdness_constraint": _SHARE_FIELD,
    "audio_weight": _SHARE_FIELD,
    "variety": (
        lambda value: value is None or (_is_number(value) and 0 <= value <= VARIETY),
        f"give a number from 0 to {VARIETY}, or leave it out",
    ),
    "vocal_gender": (lambda value: value in (None, "m", "f"), 'give "m" or "f", or leave it out'),
    "persona_model": (lambda value: value in (None, *PERSONA_MODELS), f"give one of {', '.join(PERSONA_MODELS)}"),
}


def _audio_id(audio_id: object) -> Iterator[Problem]:
    if not isinstance(audio_id, str) or not audio_id.strip():
        yield Problem("audio_id", f"is {_shown(audio_id)}", "give the id of a track (Track.id)")
    elif not audio_id.isprintable() or audio_id != audio_id.strip():
        problem = f"holds spaces at its ends or control characters: {_shown(audio_id)}"
        yield Problem("audio_id", problem, "give the id of a track (Track.id)")
    elif _ADDRESS_OR_PATH.search(audio_id):
        remedy = "give the id of a track (Track.id); audio of your own is for upload-extend"
        yield Problem("audio_id", "is an address or the name of a file", remedy)


def _source(source: object) -> Iterator[Problem]:
    remedy = "give a path or an http(s) URL"
    if is_url(source):
        if split_http(str(source)) is None:
            yield Problem("source", "is not a well-formed URL", "give the full address of the audio")
    elif not isinstance(source, (str, PathLike)) or str(source) in {"", "."}:
        yield Problem("source", f"is {_shown(source)}", remedy)
    elif "://" in str(source):
        yield Problem("source", "is a URL that is not http(s)", remedy)


def _model(given: Fields) -> Iterator[Problem]:
    model = given["model"]
    if limits_of(model) is None:
        which = "one of" if "source" in given else "the one that made the track:"
        is_what = "is missing" if model is None or is_blank(model) else f"is {_shown(model)}"
        yield Problem("model", is_what, f"give {which} {', '.join(MODELS)}")
    if given["persona_model"] in PERSONA_MODELS[1:] and model in MODELS_WITHOUT_PERSONA_MODEL:
        remedy = f"it takes style_persona alone: leave it out, or use {' or '.join(MODELS_WITH_PERSONA_MODEL)}"
        yield Problem("persona_model", f"is given with {_shown(model)}", remedy)


def _needed_texts(given: Fields) -> Iterator[str]:
    """The texts that must be there as soon as own parameters are given."""
    yield from ("style", "title")
    if given["instrumental"] is not True and given.get("lyrics") is None:
        yield "prompt"


def _texts(given: Fields, needed: tuple[str, ...]) -> Iterator[Problem]:
    limits = limits_of(given["model"])
    for name in ("prompt", "lyrics", "style", "title", "negative_tags", "persona_id"):
        text = given.get(name)
        if text is None or (is_blank(text) and name not in {*needed, "persona_id", "lyrics"}):
            continue
        if not isinstance(text, str) or is_blank(text):
            yield Problem(name, f"is {_shown(text)}", "give text, or leave it out")
            continue
        if bad := next((c for c in text if c == "\0" or "\ud800" <= c <= "\udfff"), None):
            yield Problem(name, f"holds the character U+{ord(bad):04X}", "take it out")
        limit = LYRICS if name == "lyrics" else getattr(limits, name, None)
        if limit is not None and len(text) > limit:
            yield Problem(name, f"has {len(text)} characters", f"{given['model']} takes at most {limit}")


def _seconds(value: object) -> float | None:
    """A number of seconds above 0; None for anything else."""
    return float(value) if _is_number(value) and value > 0 else None


def _moments(given: Fields) -> Iterator[Problem]:
    continue_at = given["continue_at"]
    moment, duration = (_seconds(given[name]) for name in ("continue_at", "source_duration"))
    lasts = "" if duration is None else f"the source lasts {clock(duration)}: "
    if isinstance(continue_at, str):  # otherwise it waits for the length of the source
        if (found := read_cut_point(continue_at.strip())) is None:
            yield Problem("continue_at", f"is {_shown(continue_at)}", f"give {FORMS}")
        elif found.resolve(duration) is not None:  # it is known, and not in the source
            remedy = f"{lasts}give a position in it" if lasts else "give a position above 0"
            yield Problem("continue_at", f"is {_shown(continue_at)}", remedy)
    elif continue_at is not None and moment is None:
        yield Problem("continue_at", f"is {_shown(continue_at)}", f"{lasts}give a number of seconds above 0")
    if given["source_duration"] is not None and duration is None:
        yield Problem("source_duration", f"is {_shown(given['source_duration'])}", "give a number of seconds above 0")
    if duration is None:
        return
    if moment is not None and _reaches(moment, duration):
        yield Problem("continue_at", f"is {clock(moment)}", f"{lasts}give a moment before its end")
    limits = limits_of(given["model"])
    if "source" in given and limits and duration > limits.upload_seconds:
        remedy = f"{given['model']} takes at most {clock(limits.upload_seconds)}: cut it first"
        yield Problem("source", f"lasts {clock(duration)}", remedy)


def _missing(given: Fields) -> Iterator[Problem]:
    """What must be there as soon as own parameters are given."""
    own = "prompt, style, title or lyrics" if "source" in given else "prompt, style, title or continue_at"
    remedy = f"needed as soon as {own} is given, or default_param_flag=True"
    for name in (*_needed_texts(given), "continue_at"):
        if given[name] is None:
            yield Problem(name, "is missing", f"{remedy}; or set instrumental=True" if name == "prompt" else remedy)


def _inherited(given: Fields) -> Iterator[Problem]:
    """What cannot be had without own parameters."""
    if "source" in given and given["continue_at"] is None:
        yield Problem("continue_at", "is missing", f"an upload needs it: give {FORMS}")
    if given["persona_id"] is not None:
        remedy = (
            "the service takes it with own parameters alone: give style and title (and prompt, unless instrumental)"
        )
        yield Problem("persona_id", "is given without own parameters", remedy)
