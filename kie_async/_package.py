"""What the packages' own ``__init__`` are made with: names that are loaded when first asked for, and the version.

It lies beside the rooms because all of them use it, so it imports none, and little else.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any


def lazy_exports(package: str, homes: Mapping[str, str]) -> Callable[[str], Any]:
    """Make the ``__getattr__`` of a package.

    Args:
        package: its name.
        homes: where each name is found: a module of the package. A module's own name gives the module.
    """

    def find(name: str) -> Any:  # noqa: ANN401  # whatever it is
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        module = import_module(f"{package}.{homes[name]}")
        found = module if name == homes[name] else getattr(module, name)
        setattr(sys.modules[package], name, found)  # asked for once
        return found

    return find


def __getattr__(name: str) -> str:
    """Find ``__version__`` in its only source, the metadata of the installed package; "0" in a bare checkout."""
    if name != "__version__":
        raise AttributeError(name)
    from importlib import metadata  # it takes long to load

    try:
        return metadata.version("kie_async")
    except metadata.PackageNotFoundError:
        return "0"
