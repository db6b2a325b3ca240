"""A name in a directory is durable only once the directory itself is on the disk."""

from __future__ import annotations

import os
import sys
from pathlib import Path


def sync_directory(directory: Path) -> None:
    """Bring the names in a directory to the disk."""
    if sys.platform == "win32":  # pragma: no cover  # directories cannot be opened there
        return
    number = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(number)
    finally:
        os.close(number)
