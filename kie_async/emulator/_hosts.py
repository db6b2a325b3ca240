"""Hosts in addresses and headers. Pure."""

from __future__ import annotations

import re
from urllib.parse import urlsplit

from kie_async.settings import is_loopback

_HOST = re.compile(r"(?:[^][:/?#@]+|\[[^][/?#@]+\])(?::[0-9]*)?")  # a name or an address, perhaps with a port


def host_of(url: str) -> str | None:
    """The host of a URL; None if it has none, or cannot be read."""
    try:
        return urlsplit(url).hostname
    except ValueError:
        return None


def names_loopback(header: str) -> bool:
    """Tell whether a Host header names this machine."""
    return _HOST.fullmatch(header) is not None and is_loopback(host_of(f"//{header}"))
