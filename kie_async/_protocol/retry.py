"""When to try again, and when not: pure, randomness passed in.

Delays grow by two and are drawn from the whole range (full jitter), so that many clients that fail together do not
come back together. All retries of reads share one budget, as in the AWS SDKs: a retry costs tokens, a success gives
some back, and with none left the first error stands.
"""

from __future__ import annotations

from collections.abc import Callable

import attrs

Random = Callable[[], float]  # from 0 up to, not including, 1

READ_ATTEMPTS = 4  # the first and three retries
MAX_DELAY = 20.0  # seconds
MAX_RETRY_AFTER = 60.0  # seconds a server may ask for; more than that is not slept but raised


def backoff(attempt: int, random: Random, *, base: float = 0.5, limit: float = MAX_DELAY) -> float:
    """Seconds to wait before retry number ``attempt`` (from 1)."""
    return random() * min(limit, base * 2.0 ** min(attempt, 30))


@attrs.define
class Budget:
    """Tokens that the retries of reads share."""

    capacity: float = 500.0
    cost: float = 5.0
    tokens: float = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self.tokens = self.capacity

    def spend(self) -> bool:
        """Take the price of one retry; False if there is not enough."""
        if self.tokens < self.cost:
            return False
        self.tokens -= self.cost
        return True

    def succeed(self) -> None:
        """Give something back for a call that went well."""
        self.tokens = min(self.capacity, self.tokens + 1)
