"""The commands that run until Ctrl-C: ``emulate`` and ``listen``."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from io import StringIO
from threading import Thread
from urllib.request import Request, urlopen

import pytest
from command_line import Terminal, ended, environment, lines, started

from kie_async.cli._connect import listen_address
from kie_async.emulator import Fault
from kie_async.testing import EmulatorHandle

TOKEN = "t" * 43


def post(url: str, task_id: str, stage: str) -> int:
    """Send a callback, as the service would."""
    body = json.dumps({"code": 200, "msg": "", "data": {"callbackType": stage, "task_id": task_id, "data": []}})
    assert url.startswith("http://127.0.0.1:")
    request = Request(f"{url}/{TOKEN}", body.encode(), {"Content-Type": "application/json"})  # noqa: S310  # loopback
    with urlopen(request, timeout=10) as answer:  # noqa: S310  # loopback
        return int(answer.status)


def first_line(process: subprocess.Popen[bytes]) -> str:
    """The first line on stdout."""
    assert process.stdout is not None
    return process.stdout.readline().decode().strip()


@contextmanager
def listening(
    service: EmulatorHandle, *words: str
) -> Iterator[tuple[subprocess.Popen[bytes], str]]:  # fmt: skip
    """``listen`` in a process, and the address at which it listens."""
    with started("listen", *words, env=environment(service)) as process:
        said = lines(process, until=b"callbacks are received for")
        yield process, said.strip().rpartition(" ")[2]


# ---------------------------------------------------------------- emulate


def test_emulate_serves_the_keys_it_names_until_ctrl_c(terminal: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ("emulate", "--credits", "5", "--webhook-key", "a key", "--key", "mine", "--key", "yours")
    with started(*words, env=environment()) as process:
        monkeypatch.setenv("KIE_BASE_URL", first_line(process).removeprefix("export KIE_BASE_URL="))
        assert first_line(process) == "export KIE_API_KEY=mine"
        assert first_line(process) == "export KIE_WEBHOOK_KEY='a key'"
        for key, code, out in (("mine", 0, "5\n"), ("yours", 0, "5\n"), ("emulated-account-1", 5, ""), ("Mine", 5, "")):
            monkeypatch.setenv("KIE_API_KEY", key)
            answer = terminal("credits")
            assert (key, answer.code, answer.out) == (key, code, out)
        process.send_signal(signal.SIGINT)
        answer = ended(process)
    assert answer.code == 130
    assert "Ctrl-C ends it" in answer.err
    assert "Traceback" not in answer.err


def test_emulate_refuses_a_key_that_no_client_could_send(terminal: Terminal) -> None:
    for key in ("", "two words"):
        answer = terminal("emulate", "--key", key)
        assert answer.code == 2
        assert "--key: a key is empty, or holds spaces" in answer.err


def test_emulate_gives_its_json_at_once(terminal: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    with started("emulate", "--json", "--fault", "lost:2", "--fault", "stuck", env=environment()) as process:
        value = json.loads(first_line(process))
        url = value["base_url"]
        assert value["env"] == {"KIE_BASE_URL": url, "KIE_API_KEY": value["env"]["KIE_API_KEY"]}
        for name, text in value["env"].items():
            monkeypatch.setenv(name, text)
        assert [terminal("extend", "a1", "--model", "V5", "--no-wait").code for _ in range(2)] == [0, 7]
        process.send_signal(signal.SIGINT)
        answer = ended(process)
    assert (answer.code, answer.out) == (130, "")


def test_emulate_in_this_process(terminal: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    with interrupted_when_said(monkeypatch):
        answer = terminal(
            "emulate", "--port", "0", "--seed", "3", "--speed", "5", "--answers", "continuation", "--json"
        )
    assert answer.code == 130
    assert answer.value["base_url"].startswith("http://127.0.0.1:")


def test_ctrl_c_ends_an_idle_command_whichever_thread_receives_it(
    terminal: Terminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As by chance when it comes just before the loop begins to wait: nothing interrupts the wait itself.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        with interrupted_when_said(monkeypatch, unblock=True):
            answer = terminal("emulate", "--port", "0")
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    assert answer.code == 130


class _Interrupting(StringIO):
    """A stderr whose reader presses Ctrl-C when the command says that it runs.

    Args:
        unblock: in a thread that receives the signal itself.
    """

    def __init__(self, *, unblock: bool) -> None:
        super().__init__()
        self.unblock = unblock

    def write(self, text: str, /) -> int:
        if "Ctrl-C ends it" in text:
            Thread(target=self.interrupt).start()
        return super().write(text)

    def interrupt(self) -> None:
        if self.unblock:
            time.sleep(0.2)  # until the command is idle, most likely
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
        os.kill(os.getpid(), signal.SIGINT)


@contextmanager
def interrupted_when_said(monkeypatch: pytest.MonkeyPatch, *, unblock: bool = False) -> Iterator[None]:
    """Press Ctrl-C when the command has said that it runs; ``unblock``: in a thread that receives it itself."""
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stderr", _Interrupting(unblock=unblock))
        yield


# ---------------------------------------------------------------- listen


def test_listen_shows_each_callback_as_it_comes(service: EmulatorHandle) -> None:
    with listening(service) as (process, url):
        assert post(url, "f" * 32, "text") == 200
        assert first_line(process).startswith(f"{'f' * 32} text, answered 200 (a task that is not followed here")
        assert post(url, "f" * 32, "od\x1b[2Jd") == 200
        assert "\x1b" not in first_line(process)
        process.send_signal(signal.SIGINT)
        answer = ended(process)
    assert answer.code == 130
    assert "Traceback" not in answer.err


def test_listen_gives_its_json_at_the_end(service: EmulatorHandle) -> None:
    with listening(service, "--json", "--bind", "127.0.0.1:0") as (process, url):
        assert post(url, "f" * 32, "first") == 200
        process.send_signal(signal.SIGINT)
        answer = ended(process)
    (callback,) = answer.value["callbacks"]
    assert (callback["task_id"], callback["stage"], callback["status"]) == ("f" * 32, "first", 200)
    assert answer.value["error"]["type"] == "KeyboardInterrupt"
    assert answer.code == 130


def test_listen_ends_when_its_reader_goes_away(service: EmulatorHandle) -> None:
    with listening(service) as (process, url):
        assert process.stdout is not None
        process.stdout.close()
        process.stdout = None
        assert post(url, "f" * 32, "text") == 200
        assert ended(process).code == 141


def test_listen_waits_for_tasks(terminal: Terminal, service: EmulatorHandle) -> None:
    good = terminal("extend", "a1", "--model", "V5", "--no-wait").out.strip()
    service.add_faults(Fault("failed"))
    bad = terminal("extend", "a2", "--model", "V5", "--no-wait").out.strip()
    service.wait_finished()
    answer = terminal("listen", good)
    assert answer.code == 0
    assert answer.out == f"{good} SUCCESS: 2 tracks\n"
    answer = terminal("listen", bad, good)
    assert answer.code == 3
    assert f"{good} SUCCESS: 2 tracks\n" in answer.out
    assert f"{bad} Audio generation failed" in answer.out
    value = terminal("listen", bad, good, "--json").value
    assert value["error"]["task_id"] == bad
    assert [each["task_id"] for each in value["tasks"]] == [good]
    assert value["callbacks"] == []


def test_listen_at_the_address_of_the_environment(
    terminal: Terminal, service: EmulatorHandle, monkeypatch: pytest.MonkeyPatch, free_port: int
) -> None:
    url = f"http://127.0.0.1:{free_port}/mine"
    monkeypatch.setenv("KIE_CALLBACK_URL", url)
    with listening(service) as (process, told):
        assert told == url
        words = ("extend", "a1", "--model", "V5", "--no-wait")
        task_id = terminal(*words).out.strip()
        service.wait_finished()
        seen = {first_line(process) for _ in range(3)}
        process.send_signal(signal.SIGINT)
        assert ended(process).code == 130
    assert {line.partition(",")[0] for line in seen} == {
        f"{task_id} {stage}" for stage in ("text", "first", "complete")
    }


def test_listen_behind_a_proxy(terminal: Terminal, service: EmulatorHandle, free_port: int) -> None:
    task_id = terminal("extend", "a1", "--model", "V5", "--no-wait").out.strip()
    service.wait_finished()
    words = ("--callback-url", "https://me.example/kie", "--bind", f"127.0.0.1:{free_port}")
    answer = terminal("listen", task_id, *words)
    assert answer.code == 0
    assert "callbacks are received for https://me.example/kie" in answer.err


@pytest.mark.parametrize(
    ("url", "bind", "address"),
    [
        ("", None, ("127.0.0.1", 0)),
        ("http://127.0.0.1:81/kie", None, ("127.0.0.1", 81)),
        ("http://localhost/kie", None, ("127.0.0.1", 8080)),
        ("https://me.example/kie", None, ("127.0.0.1", 8080)),
        ("https://me.example:82/kie", None, ("127.0.0.1", 8080)),
        ("http://127.0.0.1:81/kie", "me.example:83", ("me.example", 83)),
    ],
)
def test_where_callbacks_are_received(url: str, bind: str | None, address: tuple[str, int]) -> None:
    assert listen_address(url, bind) == address
