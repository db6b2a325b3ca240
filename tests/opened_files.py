"""Act at the moment when a file is opened, by whatever code and in whatever thread: count, change or refuse."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_actions: dict[str, Callable[[], object]] = {}


def _act(event: str, arguments: tuple[Any, ...]) -> None:
    if event == "open" and (action := _actions.pop(str(arguments[0]), None)) is not None:
        try:
            action()
        finally:
            _actions[str(arguments[0])] = action


sys.addaudithook(_act)


@contextmanager
def when_opened(path: Path, action: Callable[[], object]) -> Iterator[None]:
    """Call something before each opening of a file; what it raises is raised in place of the opening."""
    _actions[str(path)] = action
    try:
        yield
    finally:
        del _actions[str(path)]
