"""How long to wait before trying again, and how many retries of reads are allowed: pure, randomness passed in.

Whether a submission may be sent again is decided in ``_client.submitter``.

Delays of retries grow by two and are drawn from the whole range (full jitter), so that many clients that fail together
do not come back together. All retries of reads share one budget, as in the AWS SDKs: a retry costs tokens, a success
gives some back, and with none left the first error stands.
"""

from __future__ import annotations

from kie_async._protocol.durations import Random

READ_ATTEMPTS = 4  # the first and three retries
MAX_DELAY = 20.0  # seconds
MAX_RETRY_AFTER = 60.0  # seconds a server may ask for; more than that is not slept but raised


def backoff(attempt: int, random: Random, *, base: float = 0.5, limit: float = MAX_DELAY) -> float:
    """Seconds to wait before retry number ``attempt`` (from 1)."""
    return random() * min(limit, base * 2.0 ** min(attempt, 30))


class RetryBudget:
    """Tokens that the retries of reads share."""

    def __init__(self, capacity: float = 500.0, cost: float = 5.0) -> None:
        self.capacity, self.cost, self.tokens = capacity, cost, capacity

    def spend(self) -> bool:
        """Take the cost of one retry; return False if too few tokens are left."""
        if self.tokens < self.cost:
            return False
        self.tokens -= self.cost
        return True

    def succeed(self) -> None:
        """Give one token back after a call that succeeded."""
        self.tokens = min(self.capacity, self.tokens + 1)
