"""The command line as a test types it: in this process, or in one of its own."""

from __future__ import annotations

import asyncio
import json
import os
import pty
import signal
import subprocess
import sys
import wave
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from threading import Timer
from typing import Any

import attrs
import pytest
from service import reserved_port
from virtual_time import VirtualTimeLoop

import kie_async as kie
from kie_async.cli import run
from kie_async.emulator import Fault, Rules
from kie_async.testing import EmulatorHandle, serve_in_thread

PATIENCE = 60.0  # seconds for a process
FAST = 20_000.0  # of an emulator: a task takes some milliseconds


@attrs.frozen
class Answer:
    """How a command ended, and what it wrote."""

    code: int
    out: str
    err: str

    @property
    def value(self) -> Any:  # JSON can be anything
        """The one JSON value on stdout; ValueError if there is more, or none."""
        return json.loads(self.out)


class Terminal:
    """Types commands in this process.

    Args:
        capsys: catches what they write.
    """

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys

    def __call__(
        self, *words: str, virtual: bool = False, loop_factory: Callable[[], VirtualTimeLoop] | None = None
    ) -> Answer:
        """Run a command; ``virtual``: on the virtual clock, for what needs no other process or thread."""
        self._capsys.readouterr()
        code = run(words, loop_factory=virtual_loop if virtual else loop_factory)
        return Answer(code, *self._capsys.readouterr())


def virtual_loop(serve: Callable[[Callable[[], None]], Coroutine[Any, Any, None]] | None = None) -> VirtualTimeLoop:
    """A loop on the virtual clock.

    Args:
        serve: a server that runs in it from the beginning; calls what it is given when it is ready.
    """
    loop = VirtualTimeLoop()
    loop.watch_threads_later()
    if serve is not None:
        ready = asyncio.Event()
        loop.serving = loop.create_task(serve(ready.set))  # kept, or it might be collected
        loop.run_until_complete(ready.wait())
    return loop


def environment(service: EmulatorHandle | None = None, **more: str) -> dict[str, str]:
    """The environment of a process that is to use an emulator."""
    own = {} if service is None else {"KIE_BASE_URL": service.base_url, "KIE_API_KEY": service.key}
    return {**os.environ, **own, **more}


@contextmanager
def started(*words: str, env: dict[str, str], **options: Any) -> Iterator[subprocess.Popen[bytes]]:  # of Popen
    """Run a command in a process of its own, which does not outlive the block."""
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options}
    with subprocess.Popen([sys.executable, "-m", "kie_async", *words], env=env, **pipes) as process:  # noqa: S603  # ourselves
        watchdog = Timer(PATIENCE, process.kill)  # a process that hangs must not hang the test that reads from it
        watchdog.start()
        try:
            yield process
        finally:
            watchdog.cancel()
            process.kill()


def interrupted(service: EmulatorHandle, *words: str, number: int = signal.SIGINT) -> Answer:
    """Start a batch, and send it a signal when the first tracks are there; one that is held back lets it not end."""
    held = Fault("slow", "download", nth=1, seconds=600.0)
    service.add_faults(held)
    with started(*words, env=environment(service)) as process:
        assert process.stdout is not None
        assert process.stdout.readline()
        process.send_signal(number)
        answer = ended(process)
    service.remove_faults(held)
    return answer


def lines(process: subprocess.Popen[bytes], *, until: bytes) -> str:
    """Read what a process says on stderr, up to a line that holds ``until``."""
    assert process.stderr is not None
    said = b""
    while until not in said:
        line = process.stderr.readline()
        assert line, said
        said += line
    return said.decode()


def ended(process: subprocess.Popen[bytes]) -> Answer:
    """Wait for a command's end."""
    out, err = process.communicate(timeout=PATIENCE)
    return Answer(process.returncode, (out or b"").decode(errors="replace"), (err or b"").decode(errors="replace"))


def ended_on_terminal(*words: str, env: dict[str, str]) -> tuple[Answer, bytes]:
    """Run a command with a terminal for stderr; return how it ended, and what the terminal showed."""
    ours, theirs = pty.openpty()
    with started(*words, env={"TERM": "xterm", **env}, stderr=theirs) as process:
        os.close(theirs)
        shown = b""
        with suppress(OSError):  # EIO: nobody has the terminal open any more
            while piece := os.read(ours, 4096):
                shown += piece
        answer = ended(process)
    os.close(ours)
    return answer, shown


def full_terminal() -> tuple[int, int]:
    """A terminal that has no room for what is written, until it is read: its side, and the program's."""
    ours, theirs = pty.openpty()
    fill(theirs)
    return ours, theirs


def fill(writable: int) -> None:
    """Write until there is no room."""
    os.set_blocking(writable, False)
    with suppress(BlockingIOError):
        while True:
            os.write(writable, b".")
    os.set_blocking(writable, True)


def short_song(path: Path, number: int = 0) -> Path:
    """Write a song of two seconds; no two numbers give the same."""
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(8000)
        file.writeframes(bytes((number, 0)) * 8000 * 2)
    return path


def short_songs(folder: Path, count: int) -> Path:
    """Write songs of two seconds, no two alike, into a folder."""
    folder.mkdir(exist_ok=True)
    for number in range(1, count + 1):
        short_song(folder / f"song {number - 1}.wav", number)
    return folder


@contextmanager
def served(monkeypatch: pytest.MonkeyPatch, **options: Any) -> Iterator[EmulatorHandle]:  # of ``serve``
    """An emulator in a thread, where the environment leads to; its music is short, for it takes time to make."""
    with serve_in_thread(**{"speed": FAST, "goes_on": (1.0, 2.0), **options}) as service:
        monkeypatch.setenv("KIE_BASE_URL", service.base_url)
        monkeypatch.setenv("KIE_API_KEY", service.key)
        yield service


# ---------------------------------------------------------------- fixtures of every test


@pytest.fixture
def terminal(capsys: pytest.CaptureFixture[str]) -> Terminal:
    """This process's terminal."""
    return Terminal(capsys)


@pytest.fixture
def service(monkeypatch: pytest.MonkeyPatch) -> Iterator[EmulatorHandle]:
    """An emulator that is fast, where commands find it."""
    with served(monkeypatch) as handle:
        yield handle


@pytest.fixture
def free_port() -> Iterator[int]:
    """A port that nobody listens on; a server of the test's own may."""
    with reserved_port() as port:
        yield port


@pytest.fixture
def wide_quota(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let this process's commands submit more than 20 at once: a journal's quota waits in real time."""
    monkeypatch.setattr("kie_async.cli._connect.Settings", partial(kie.Settings, quota=1000))
    emulated = {"speed": FAST, "credits": 1e6, "goes_on": (1.0, 2.0), "rules": Rules(quota=1000)}
    monkeypatch.setattr("kie_async.cli._batch_order._EMULATED", emulated)
