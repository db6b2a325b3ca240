"""What both clients share."""

from __future__ import annotations

import aiohttp

from kie_async.errors import SessionError


def check_client(client: aiohttp.ClientSession) -> None:
    """Raise SessionError if it was closed, in another task, while this one waited; aiohttp raises a RuntimeError."""
    if client.closed:
        raise SessionError("the session was closed: nothing was sent")
