"""Names in a directory: given to whole files only, never taken from another, durable once the directory is synced.

It lies beside the rooms because ``journal`` and ``files`` both use it, and neither knows the other.
"""

from __future__ import annotations

import os
import secrets
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

_DRAFT_FLAGS = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)


def replace_file(path: Path, data: bytes) -> None:
    """Write a file durably; whatever happens, it is as before or complete."""
    with written_draft(path, lambda file: file.write(data)) as draft:
        draft.replace(path)
    sync_directory(path.parent)


@contextmanager
def written_draft(path: Path, write: Callable[[BinaryIO], object]) -> Iterator[Path]:
    """Write a draft durably beside a file, to be given its name in the block; at the end no draft is left.

    Errors name the file, and not the draft.
    """
    draft = path.with_name(f".{secrets.token_hex(8)}.tmp")
    try:
        with os.fdopen(os.open(draft, _DRAFT_FLAGS, 0o666), "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        yield draft
    except OSError as error:
        if error.filename == str(draft):  # which nobody knows
            error.filename = str(path)
        raise
    finally:
        draft.unlink(missing_ok=True)


def sync_directory(directory: Path) -> None:
    """Bring the names in a directory to the disk."""
    if sys.platform == "win32":  # pragma: no cover  # directories cannot be opened there
        return
    with _opened(directory) as number:
        os.fsync(number)


def give_name(draft: Path, target: Path) -> None:
    """Give a whole file its name, at once and on every disk; the draft may keep its own besides.

    Raises:
        FileExistsError: the name is taken; what has it is untouched.
    """
    try:
        os.link(draft, target, follow_symlinks=False)
    except FileExistsError:
        raise
    except OSError:  # a disk without hard links (FAT, some shares)
        _rename(draft, target)


def _rename(draft: Path, target: Path) -> None:
    """Rename without overwriting, which only Windows does by itself: elsewhere, one process at a time looks first."""
    if sys.platform == "win32":  # pragma: no cover  # see above
        draft.rename(target)
        return
    import fcntl  # exists elsewhere only

    with _opened(target.parent) as number:
        fcntl.flock(number, fcntl.LOCK_EX)
        if os.path.lexists(target):
            raise FileExistsError(target)
        draft.rename(target)


@contextmanager
def _opened(directory: Path) -> Iterator[int]:
    number = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield number
    finally:
        os.close(number)
