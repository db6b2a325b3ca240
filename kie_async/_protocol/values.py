"""Plain values, whatever they came as: what cannot be read is none, and nothing is raised."""

from __future__ import annotations

import math
from datetime import UTC, datetime


def as_text(value: object) -> str | None:
    if isinstance(value, str):
        if value.isascii():
            return value or None
        return value.encode("utf-8", "replace").decode()  # a lone surrogate breaks databases and terminals
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return str(value)
    return None


def as_word(value: object) -> str:
    return as_text(value) or ""


def as_address(value: object) -> str | None:
    """An http(s) address; "null" and what else may stand for one that is not there yet is none."""
    text = as_text(value)
    if text is None:
        return None
    text = text.strip()
    if text.startswith("https://"):  # nearly always
        return text
    return text if text[:8].lower().startswith(("https://", "http://")) else None


def as_number(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def as_duration(value: object) -> float | None:
    number = as_number(value)
    return number if number is not None and number > 0 else None


_MAX = 2**53  # beyond it a number is no code and no size


def as_integer(value: object) -> int | None:
    if type(value) is int:
        return value if abs(value) < _MAX else None
    number = as_number(value)
    return int(number) if number is not None and number.is_integer() and abs(number) < _MAX else None


_MILLISECONDS = 1e11  # as seconds, the year 5138: any number above it counts milliseconds


def as_moment(value: object) -> datetime | None:
    """Epoch milliseconds (what the service sends), epoch seconds, or text; text without a zone is taken as UTC."""
    number = as_number(value)
    try:
        if number is not None:
            return datetime.fromtimestamp(number / 1000 if abs(number) > _MILLISECONDS else number, UTC)
        if not isinstance(value, str):
            return None
        moment = datetime.fromisoformat(value)
        return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
    except (ValueError, OverflowError, OSError):
        return None
