"""What every benchmark prints: the versions it measured, and a table."""

from __future__ import annotations

import platform
from collections.abc import Iterable, Sequence
from importlib import metadata


def versions(*packages: str) -> str:
    """One line: Python, the machine, kie_async and these packages, by the names they are installed under."""
    known = [f"{name} {_version(name)}" for name in ("kie_async", *packages)]
    return f"Python {platform.python_version()}, {platform.machine()}, " + ", ".join(known)


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "(not installed)"


def table(headers: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Print rows under headers: the first column to the left, the others, which hold figures, to the right."""
    cells = [[str(cell) for cell in row] for row in (headers, *rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    for row in cells:
        print(
            "  ".join(
                f"{cell:<{width}}" if place == 0 else f"{cell:>{width}}"
                for place, (cell, width) in enumerate(zip(row, widths, strict=True))
            ).rstrip()
        )
