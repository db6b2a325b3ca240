"""Failures in a row: a service that fails every task must not empty the account. Pure."""

from __future__ import annotations

import copy

import attrs

from kie_async.errors import KieError, TaskFailedError, TaskNotFoundError, TooManyFailuresError
from kie_async.events import clean


@attrs.define
class FailureStreak:
    """Counts the tasks that failed since the last success, and forbids submissions when there are too many.

    Tasks that are under way when the limit is reached go on; if one of them succeeds, submissions are allowed again.

    Args:
        limit: how many in a row; 0 or None for no limit.

    Attributes:
        refused: the error of the first submission that was forbidden.
    """

    _limit: int | None
    _count: int = attrs.field(default=0, init=False)
    _last: KieError | None = attrs.field(default=None, init=False)
    refused: TooManyFailuresError | None = attrs.field(default=None, init=False)

    def failed(self, error: KieError | None) -> None:
        """Count the end of a task, if this is one."""
        if isinstance(error, (TaskFailedError, TaskNotFoundError)):
            self._count += 1
            self._last = error

    def succeeded(self) -> None:
        """Begin to count anew."""
        self._count = 0

    def check(self) -> None:
        """See, before a submission, whether it may be sent.

        Raises:
            TooManyFailuresError: it may not.
        """
        if self.refused is None and self._last is not None and self._limit and self._count >= self._limit:
            last = clean(str(self._last))
            self.refused = TooManyFailuresError(
                f"{self._count} tasks failed in a row, the last with: {last}. Nothing more is submitted; see what is "
                "wrong with them or with the service (Settings.max_consecutive_failures sets the limit)"
            )
        if self.refused is not None:
            raise copy.copy(self.refused)
