"""Sessions that behave towards a local server as towards the real service."""

from __future__ import annotations

import kie_async as kie


class Distant(kie.Settings):
    """Settings whose API counts as the real service, so that tasks are polled no more often than there."""

    @property
    def on_loopback(self) -> bool:
        """Deny it."""
        return False
