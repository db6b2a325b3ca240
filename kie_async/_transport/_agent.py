"""How this library names itself to servers. FACTS: a default Python User-Agent has been refused by the CDN."""

from __future__ import annotations

from functools import cache


@cache
def user_agent() -> str:
    """Return ``kie_async/<version>``; the version is that of the installed package."""
    from importlib.metadata import PackageNotFoundError, version  # noqa: PLC0415  # it takes long to load

    try:
        return f"kie_async/{version('kie_async')}"
    except PackageNotFoundError:  # run from a bare checkout
        return "kie_async/0"
