"""How this library names itself to servers. A default Python User-Agent has been refused by the CDN."""

from __future__ import annotations

from functools import cache


@cache
def user_agent() -> str:
    """Return ``kie_async/<version>``; the version is that of the installed package."""
    from kie_async._version import __version__  # noqa: PLC0415  # it takes long to load

    return f"kie_async/{__version__}"
