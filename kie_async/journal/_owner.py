"""The name of a process life, and whether it is over."""

from __future__ import annotations

import os
import secrets
import socket
import sys
from pathlib import Path


def new_owner() -> str:
    """Name this process life: ``machine:pid:`` and something that no other has."""
    return f"{_machine()}:{os.getpid()}:{secrets.token_hex(4)}"


def is_gone(owner: str) -> bool:
    """Tell whether an owner is certainly gone: of this machine, and its process is no more."""
    machine, _, rest = owner.partition(":")
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


def _machine() -> str:
    """The host, its start, and the space its pids are counted in: names and spaces alone may be those of another."""
    try:
        space = os.stat("/proc/self/ns/pid").st_ino  # noqa: PTH116  # no path, but a question to the kernel
        start = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii")[:8]
    except OSError:
        return socket.gethostname()
    return f"{socket.gethostname()}.{start}.{space}"
