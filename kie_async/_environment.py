"""The environment, and the files of keys that it names: nobody but ``settings`` and this module reads them."""

from __future__ import annotations

import os
import stat

from kie_async.errors import SettingsError
from kie_async.events import Notice, Observer

_MAX_KEY_FILE = 4096  # bytes

_reported: set[str] = set()  # files of keys that others can read


def read_text(name: str, default: str = "") -> str:
    """A variable's text; an empty one counts as not set."""
    return os.environ.get(name, "") or default


def read_key(name: str, field: str, emit: Observer) -> str:
    """The key in a variable, or in the file that ``NAME_FILE`` names, as containers give secrets.

    Raises:
        SettingsError: both are set, or the file cannot be used. Nothing of what it holds is shown.
    """
    path = read_text(f"{name}_FILE")
    if not path:
        return read_text(name)
    if os.environ.get(name):
        raise SettingsError(f"{field}: {name} and {name}_FILE are both set: unset one of them")
    key, problem, is_public = _read_file(path)
    if problem:
        raise SettingsError(f"{field}: the file that {name}_FILE names, {path!r}, {problem}: let it hold the bare key")
    if is_public and path not in _reported:
        _reported.add(path)
        emit(Notice("", f"{name}_FILE: every user of this machine can read {path!r}: chmod 600 it"))
    return key


def _read_file(path: str) -> tuple[str, str, bool]:
    """What a file holds, or what is the matter with it; and whether every user can read it."""
    try:
        # So that a pipe without a writer does not hang.
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
        try:
            mode = os.fstat(descriptor).st_mode
            content = os.read(descriptor, _MAX_KEY_FILE + 1) if stat.S_ISREG(mode) else None
        finally:
            os.close(descriptor)
    except (OSError, ValueError) as error:
        return "", f"cannot be read ({getattr(error, 'strerror', None) or error})", False
    key, problem = ("", "is no regular file") if content is None else _read_content(content)
    return key, problem, os.name == "posix" and bool(mode & stat.S_IROTH)


def _read_content(content: bytes) -> tuple[str, str]:
    if len(content) > _MAX_KEY_FILE:
        return "", f"is larger than {_MAX_KEY_FILE} bytes"
    try:
        text = content.decode("utf-8-sig").strip()
    except UnicodeDecodeError:
        return "", "is no text"
    return (text, "") if text.isprintable() else ("", "is not one line of text")


def read_direct_hosts() -> tuple[str, ...]:
    """The hosts to which no proxy leads: names, which stand for what is below them too; ``*`` stands for all."""
    text = os.environ.get("no_proxy", os.environ.get("NO_PROXY", ""))
    return tuple(host for each in text.split(",") if (host := each.strip().lower().removeprefix("*.").lstrip(".")))


def is_direct(host: str, port: int | None, direct_hosts: tuple[str, ...]) -> bool:
    """Whether no proxy leads to a host."""
    host = host.lower().rstrip(".")
    return any(
        each in {"*", host, f"{host}:{port or 443}", f"[{host}]"} or host.endswith(f".{each}") for each in direct_hosts
    )
