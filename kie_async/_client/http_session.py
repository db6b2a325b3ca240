"""What both clients share."""

from __future__ import annotations

from base64 import b64encode
from typing import Any

import aiohttp
from yarl import URL

from kie_async.errors import SessionError
from kie_async.settings import Settings


class Hidden(str):
    """A header that bears a secret: sent as it is, but shown by no repr.

    A cancelled call brings aiohttp's frames, and the headers in them, into tracebacks.
    """

    __slots__ = ()

    def __repr__(self) -> str:
        return f"'{self.partition(' ')[0]} …'"


def check_client(client: aiohttp.ClientSession) -> None:
    """Raise SessionError if it was closed, in another task, while this one waited; aiohttp raises a RuntimeError."""
    if client.closed:
        raise SessionError("the session was closed: nothing was sent")


def by_proxy(settings: Settings, url: str) -> dict[str, Any]:
    """The arguments of a request that lead it through the proxy to this address, if there is one."""
    proxy = settings.proxy_for(url)
    if proxy is None:
        return {}
    address = URL(proxy.reveal())
    bare = address.with_user(None)
    if address.user is None:
        return {"proxy": bare}
    token = b64encode(f"{address.user}:{address.password or ''}".encode()).decode()
    return {"proxy": bare, "proxy_headers": {"Proxy-Authorization": Hidden(f"Basic {token}")}}
