"""Asking before something is paid."""

from __future__ import annotations

import signal
import sys

from kie_async.cli._exit_status import UsageError
from kie_async.cli._output import Output


def confirm(output: Output, what: str, *, yes: bool) -> None:
    """Go on only if the user agrees: with ``--yes``, or when asked at a terminal.

    Raises:
        UsageError: there is no agreement.
    """
    if yes:
        return
    if not is_at_terminal():
        raise UsageError(f"{what}: nothing was done; if that is meant, give --yes")
    output.say(f"{what}: go on? [y/N]")
    if _answer().strip().lower() not in {"y", "yes"}:
        raise UsageError("not agreed: nothing was done")


def is_at_terminal() -> bool:
    """Whether somebody can be asked."""
    return _is_terminal(sys.stdin) and _is_terminal(sys.stderr)


def _is_terminal(stream: object) -> bool:
    is_terminal = getattr(stream, "isatty", None)
    return is_terminal is not None and bool(is_terminal())


def _answer() -> str:
    # asyncio's handler of Ctrl-C would wait for the loop, which waits for the answer.
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        return sys.stdin.readline()
    finally:
        signal.signal(signal.SIGINT, handler)
