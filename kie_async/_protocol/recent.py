"""A set that forgets its oldest members, so that what a long-lived session remembers is bounded."""

from __future__ import annotations


class RecentSet:
    """Remembers the latest texts that were added.

    Args:
        limit: how many; the oldest is forgotten first.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._members: dict[str, None] = {}  # in the order in which they were added

    def __contains__(self, member: str) -> bool:
        return member in self._members

    def add(self, member: str) -> None:
        """Remember a text; one that is known keeps its age."""
        self._members[member] = None
        if len(self._members) > self._limit:
            del self._members[next(iter(self._members))]

    def discard(self, member: str) -> None:
        """Forget a text, if it is known."""
        self._members.pop(member, None)
