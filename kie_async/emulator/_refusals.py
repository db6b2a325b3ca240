"""The answers of the service when it refuses at once: HTTP 200, a code in the body, no data. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import attrs

# From the recorded samples where there are any, or else from the documentation.
MESSAGES: Mapping[int, str] = MappingProxyType(
    {
        401: "You do not have access permissions",
        402: "Credits insufficient",
        404: "Not found",
        405: "Your call frequency is too high. Please try again later.",
        409: "The record already exists",
        413: "Uploaded audio matches existing work of art.",
        422: "Validation error",
        429: "Your call frequency is too high. Please try again later.",
        430: "Your call frequency is too high. Please try again later.",
        433: "The spending limit of this key is reached",
        451: "Failed to fetch the file. Kindly verify any access limits set by you or your service provider.",
        455: "System maintenance",
        500: "Server exception, please try again later or contact customer service",
        501: "Audio generation failed",
        505: "The feature is currently disabled",
        531: "Server error: generation failed, the credits have been refunded",
    }
)


@attrs.frozen
class RefusedSubmission:
    """A refused submission; without a message it takes that of its code."""

    code: int
    message: str = ""

    def body(self) -> dict[str, Any]:
        """Write the answer."""
        return refusal(self.code, self.message)


def refusal(code: int | str, message: str | None = None) -> dict[str, Any]:
    """Write a refusal; a code given as text is sent as text."""
    words = message or (MESSAGES.get(int(code)) if str(code).isdecimal() else None)
    return {"code": code, "msg": words or "error", "data": None}
