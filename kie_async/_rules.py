"""The rules of a request, as kie.ai's pages "Extend Music" and "Upload And Extend Audio" give them: pure.

A rule takes the fields as they were given, of any type whatever, and yields what is wrong with them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from os import PathLike
from types import MappingProxyType
from typing import TypeAlias
from urllib.parse import urlsplit

import attrs

from kie_async.errors import Problem

Fields: TypeAlias = Mapping[str, object]


@attrs.frozen
class ModelLimits:
    """What a model accepts: characters of prompt, style and title; seconds of an uploaded source."""

    prompt: int
    style: int
    title: int
    upload_seconds: float = 8 * 60.0


# FACTS: characters by model; an upload may last 8 min, 1 min for V4_5ALL.
MODELS: Mapping[str, ModelLimits] = MappingProxyType(
    {
        "V3_5": ModelLimits(3000, 200, 80),
        "V4": ModelLimits(3000, 200, 80),
        "V4_5": ModelLimits(5000, 1000, 100),
        "V4_5PLUS": ModelLimits(5000, 1000, 100),
        "V4_5ALL": ModelLimits(5000, 1000, 80, upload_seconds=60.0),
        "V5": ModelLimits(5000, 1000, 100),
        "V5_5": ModelLimits(5000, 1000, 100),
        "V6": ModelLimits(5000, 1000, 100),
        "V6_MINI": ModelLimits(5000, 1000, 100),
        "V6_WILD": ModelLimits(5000, 1000, 100),
    }
)
PERSONA_MODELS = ("style_persona", "voice_persona")
MODELS_WITH_PERSONA_MODEL = ("V5", "V5_5")
LONGEST = 1e6  # seconds; what is longer is no length of audio


def find_problems(given: Fields, *, own_parameters: bool) -> Iterator[Problem]:
    """Find everything that is wrong with a request.

    Args:
        given: all its fields; ``source`` marks an upload, ``audio_id`` a track of the service.
        own_parameters: the ``default_param_flag`` that would be sent.
    """
    yield from _source(given["source"]) if "source" in given else _audio_id(given["audio_id"])
    yield from _texts(given)
    yield from _flags(given)
    yield from _moments(given)
    for name in ("style_weight", "weirdness_constraint", "audio_weight"):
        yield from _weight(name, given[name])
    yield from _choices(given)
    if given["instrumental"] is True:
        yield from _instrumental(given)
    yield from _missing(given) if own_parameters else _ignored(given)


def is_url(source: object) -> bool:
    """Tell whether a source is an address (http or https) rather than a path."""
    return isinstance(source, str) and source.lower().startswith(("http://", "https://"))


def _shown(value: object) -> str:
    """A value as shown in a problem: its type if it is odd, its beginning if it is long."""
    if value is None:
        return "missing"
    if isinstance(value, str):
        return "empty" if not value.strip() else repr(value[:40])
    if isinstance(value, (bool, float)):
        return repr(value)
    return f"{value:.6g}" if _is_number(value) else f"of type {type(value).__name__}"


def _is_number(value: object) -> bool:
    """Tell whether a value is a number of a size that audio knows; True and False are none."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and -LONGEST < value < LONGEST


def _limits(given: Fields) -> ModelLimits | None:
    model = given["model"]
    return MODELS.get(model) if isinstance(model, str) else None


def _audio_id(audio_id: object) -> Iterator[Problem]:
    if not isinstance(audio_id, str) or not audio_id.strip():
        yield Problem("audio_id", f"is {_shown(audio_id)}", "give the id of a track (Track.id)")
    elif not audio_id.isprintable() or audio_id != audio_id.strip():
        problem = f"holds spaces at its ends or control characters: {_shown(audio_id)}"
        yield Problem("audio_id", problem, "give the id of a track (Track.id)")


def _source(source: object) -> Iterator[Problem]:
    remedy = "give a path or an http(s) URL"
    if is_url(source):
        if not _is_whole_url(str(source)):
            yield Problem("source", "is not a well-formed URL", "give the full address of the audio")
    elif not isinstance(source, (str, PathLike)) or str(source) in {"", "."}:
        yield Problem("source", f"is {_shown(source)}", remedy)
    elif "://" in str(source):
        yield Problem("source", "is a URL that is not http(s)", remedy)


def _is_whole_url(url: str) -> bool:
    try:
        host = urlsplit(url).hostname
    except ValueError:
        return False
    return bool(host) and url.isprintable() and " " not in url


def _texts(given: Fields) -> Iterator[Problem]:
    limits = _limits(given)
    for name in ("prompt", "style", "title", "negative_tags", "persona_id"):
        text = given[name]
        if text is None:
            continue
        if not isinstance(text, str) or not text.strip():
            yield Problem(name, f"is {_shown(text)}", "give text, or leave it out")
            continue
        if bad := next((c for c in text if c == "\0" or "\ud800" <= c <= "\udfff"), None):
            yield Problem(name, f"holds the character U+{ord(bad):04X}", "take it out")
        most = getattr(limits, name, None)
        if most is not None and len(text) > most:
            yield Problem(name, f"has {len(text)} characters", f"{given['model']} takes at most {most}")


def _flags(given: Fields) -> Iterator[Problem]:
    instrumental, flag = given["instrumental"], given["default_param_flag"]
    if not isinstance(instrumental, bool):
        yield Problem("instrumental", f"is {_shown(instrumental)}", "give True or False")
    if flag is not None and not isinstance(flag, bool):
        yield Problem("default_param_flag", f"is {_shown(flag)}", "give True or False, or leave it out")


def _seconds(value: object) -> float | None:
    """A number of seconds above 0; None for anything else."""
    return float(value) if _is_number(value) and value > 0 else None  # type: ignore[arg-type, operator]  # a number


def _moments(given: Fields) -> Iterator[Problem]:
    moment, duration = (_seconds(given[name]) for name in ("continue_at", "source_duration"))
    for name, seconds in (("continue_at", moment), ("source_duration", duration)):
        if given[name] is not None and seconds is None:
            yield Problem(name, f"is {_shown(given[name])}", "give a number of seconds above 0")
    if duration is None:
        return
    if moment is not None and moment >= duration:
        remedy = f"the source lasts {duration:.2f} s: give a moment before its end"
        yield Problem("continue_at", f"is {moment:g} s", remedy)
    limits = _limits(given)
    if "source" in given and limits and duration > limits.upload_seconds:
        remedy = f"{given['model']} takes at most {limits.upload_seconds:.0f} s: cut it first"
        yield Problem("source", f"lasts {duration:.2f} s", remedy)


def _weight(name: str, weight: object) -> Iterator[Problem]:
    if weight is None:
        return
    hundredths = weight * 100 if _is_number(weight) else math.nan  # type: ignore[operator]  # a number
    is_step = 0 <= hundredths <= 100 and math.isclose(hundredths, round(hundredths), abs_tol=1e-9)  # noqa: PLR2004
    if not is_step:  # 0.29 * 100 is 28.999999999999996
        yield Problem(name, f"is {_shown(weight)}", "give a number from 0 to 1 in steps of 0.01")


def _choices(given: Fields) -> Iterator[Problem]:
    if _limits(given) is None:
        yield Problem("model", f"is {_shown(given['model'])}", f"give one of {', '.join(MODELS)}")
    if given["vocal_gender"] not in (None, "m", "f"):  # a value that cannot be hashed may be given
        yield Problem("vocal_gender", f"is {_shown(given['vocal_gender'])}", 'give "m" or "f", or leave it out')
    persona_model = given["persona_model"]
    if persona_model is None:
        return
    if persona_model not in PERSONA_MODELS:
        yield Problem("persona_model", f"is {_shown(persona_model)}", f"give one of {', '.join(PERSONA_MODELS)}")
    if given["model"] not in MODELS_WITH_PERSONA_MODEL:
        remedy = f"only {' and '.join(MODELS_WITH_PERSONA_MODEL)} take it: leave it out"
        yield Problem("persona_model", f"is given with {_shown(given['model'])}", remedy)
    if given["persona_id"] is None:
        yield Problem("persona_model", "is given without persona_id", "give persona_id too, or leave it out")


def _instrumental(given: Fields) -> Iterator[Problem]:
    for name in ("prompt", "vocal_gender"):
        if given[name] is not None:
            yield Problem(name, "is given with instrumental", "leave it out, or drop instrumental")


def _missing(given: Fields) -> Iterator[Problem]:
    """What must be there as soon as own parameters are given."""
    needed = ["style", "title", "continue_at"] + ["prompt"] * (given["instrumental"] is not True)
    for name in needed:
        if given[name] is None:
            remedy = "needed as soon as own parameters are given (default_param_flag true)"
            yield Problem(name, "is missing", f"{remedy}; or set instrumental=True" if name == "prompt" else remedy)


def _ignored(given: Fields) -> Iterator[Problem]:
    """What the service would leave aside without own parameters; an upload needs its moment all the same."""
    ignored: tuple[str, ...] = ("prompt", "style", "title", "continue_at")
    if "source" in given:
        ignored = ("style", "title")
        if given["continue_at"] is None:
            yield Problem("continue_at", "is missing", "an upload needs it: give a number of seconds")
    for name in ignored:
        if given[name] is not None:
            remedy = "the service would ignore it: leave it out, or drop default_param_flag=False"
            yield Problem(name, "is given with default_param_flag=False", remedy)
