"""The version, from its only source: the metadata of the installed package."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("kie_async")
except PackageNotFoundError:  # run from a bare checkout
    __version__ = "0"
