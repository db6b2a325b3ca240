"""Names of a package that are loaded when they are first asked for, so that importing it costs little."""

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
