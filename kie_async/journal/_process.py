"""The id of a process, and whether the process is dead."""

from __future__ import annotations

import os
import secrets
import socket
import sys
from pathlib import Path


def new_process_id() -> str:
    """Return an id for this process: ``machine:pid:`` and a random part, for pids are used again."""
    return f"{_machine()}:{os.getpid()}:{secrets.token_hex(4)}"


def is_dead(process_id: str) -> bool:
    """Tell whether a process is certainly dead: it ran on this machine, and its pid is free."""
    machine, _, rest = process_id.partition(":")
    number = rest.partition(":")[0]
    if machine != _machine() or not number.isdecimal() or sys.platform == "win32":
        return False  # on Windows, asking whether a process lives would end it
    try:
        os.kill(int(number), 0)
    except ProcessLookupError:
        return True
    except (PermissionError, OverflowError):
        return False
    return False


def boot_id() -> str:
    """Return the id of this start of the machine; empty where it has none."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return ""


def _machine() -> str:
    """The host, its start, and the space its pids are counted in: names and spaces alone may be those of another."""
    try:
        space = Path("/proc/self/ns/pid").stat().st_ino
    except OSError:
        space = 0
    boot = boot_id()
    return f"{socket.gethostname()}.{boot[:8]}.{space}" if boot and space else socket.gethostname()
