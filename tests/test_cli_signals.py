"""Ctrl-C, SIGTERM, SIGHUP, and a reader that goes away: in processes of their own."""

from __future__ import annotations

import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from command_line import PATIENCE, Answer, ended, environment, lines, started

from kie_async.cli import run
from kie_async.emulator import Fault
from kie_async.testing import EmulatorHandle


@pytest.mark.parametrize("flags", [[], ["--json"]])
def test_130_ctrl_c_while_it_waits(service: EmulatorHandle, tmp_path: Path, flags: list[str]) -> None:
    service.add_faults(Fault("stuck"))
    with started("extend", "a1", "--model", "V5", "--out", str(tmp_path), *flags, env=environment(service)) as process:
        said = lines(process, until=b"submitted: task")
        process.send_signal(signal.SIGINT)
        answer = ended(process)
    task_id = service.ledger[0].task_id
    assert task_id in said
    assert answer.code == 130
    assert f"kie-async wait {task_id} --out {tmp_path}" in answer.err
    assert "Traceback" not in answer.err
    if flags:
        error = answer.value["error"]
        assert (error["type"], error["task_id"], error["charged"]) == ("KeyboardInterrupt", task_id, "yes")
    else:
        assert not answer.out


def test_130_ctrl_c_leaves_no_hint_for_a_task_of_the_built_in_emulator() -> None:
    words = (
        "extend",
        "a1",
        "--model",
        "V5",
        "--emulate",
        "--style",
        "never-ends",
        "--title",
        "t",
        "--at",
        "60",
        "--instrumental",
    )
    with started(*words, env=environment()) as process:
        lines(process, until=b"submitted: task")
        process.send_signal(signal.SIGINT)
        answer = ended(process)
    assert answer.code == 130
    assert answer.err == "error: stopped by Ctrl-C\n"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_130_a_signal_during_the_post_tells_the_task(service: EmulatorHandle, number: signal.Signals) -> None:
    service.add_faults(Fault("slow", "submit", seconds=0.5), Fault("stuck"))  # it goes on if the signal is late
    with started("extend", "a1", "--model", "V5", env=environment(service)) as process:
        while not service.arrivals:
            assert process.poll() is None
            time.sleep(0.01)  # the process needs the time
        process.send_signal(number)
        answer = ended(process)
    assert answer.code == 130
    assert f"kie-async wait {service.ledger[0].task_id}" in answer.err
    assert "perhaps charged" not in answer.err


AWAITED = b"a submission was sent and may be charged: the answer is awaited for at most 90 s"


class Silent:
    """A service that takes one request and says nothing until it hangs up."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._peer: socket.socket | None = None
        self.environment = environment(
            None, KIE_BASE_URL=f"http://127.0.0.1:{self._listener.getsockname()[1]}", KIE_API_KEY="emulated-account-1"
        )

    def take(self) -> None:
        """Wait for a submission."""
        self._listener.settimeout(PATIENCE)
        self._peer, _ = self._listener.accept()
        assert self._peer.recv(65536).startswith(b"POST ")

    def interrupt(self, process: subprocess.Popen[bytes], *, again: bool) -> Answer:
        """Send Ctrl-C to a command that waits for the answer of a submission; then again, or hang up."""
        self.take()
        process.send_signal(signal.SIGINT)
        lines(process, until=AWAITED)
        if again:
            process.send_signal(signal.SIGINT)
        else:
            self.hang_up()
        return ended(process)

    def hang_up(self) -> None:
        """Close the connection, and take no other."""
        if self._peer is not None:
            self._peer.close()
        self._listener.close()


@pytest.fixture
def silent() -> Iterator[Silent]:
    service = Silent()
    yield service
    service.hang_up()


@pytest.mark.parametrize(("flags", "again"), [([], False), (["--json"], True)])
def test_7_ctrl_c_during_a_post_that_is_not_answered(silent: Silent, flags: list[str], *, again: bool) -> None:
    with started("extend", "a1", "--model", "V5", *flags, env=silent.environment) as process:
        answer = silent.interrupt(process, again=again)
    assert answer.code == 7
    assert "stopped by Ctrl-C; a submission was sent, perhaps charged, and no answer came" in answer.err
    assert "do not run it again blindly" in answer.err
    assert "Traceback" not in answer.err
    if flags:
        error = answer.value["error"]
        assert (error["type"], error["charged"], error["retryable"]) == ("SubmitUnknownError", "maybe", False)


@contextmanager
def inherited(number: signal.Signals, action: signal.Handlers) -> Iterator[None]:
    """Let processes begin with a signal ignored, or not, whatever these tests have inherited themselves."""
    before = signal.signal(number, action)
    try:
        yield
    finally:
        signal.signal(number, before)


def test_7_sigterm_during_a_post_that_is_not_answered(silent: Silent) -> None:
    with started("extend", "a1", "--model", "V5", env=silent.environment) as process:
        silent.take()
        process.send_signal(signal.SIGTERM)
        lines(process, until=AWAITED)
        silent.hang_up()
        answer = ended(process)
    assert answer.code == 7
    assert "stopped by SIGTERM; a submission was sent, perhaps charged, and no answer came" in answer.err


def test_7_a_terminal_that_is_closed_during_a_post_that_is_not_answered(silent: Silent) -> None:
    with (
        inherited(signal.SIGHUP, signal.SIG_DFL),
        started("extend", "a1", "--model", "V5", env=silent.environment) as process,
    ):
        silent.take()
        process.send_signal(signal.SIGHUP)
        lines(process, until=AWAITED)
        process.send_signal(signal.SIGHUP)  # of the shell, as it ends
        silent.hang_up()
        answer = ended(process)
    assert answer.code == 7
    assert "stopped by SIGHUP; a submission was sent, perhaps charged, and no answer came" in answer.err


def test_under_nohup_a_command_goes_on_when_its_terminal_is_closed(service: EmulatorHandle) -> None:
    service.add_faults(Fault("slow", "submit", seconds=0.5))
    with (
        inherited(signal.SIGHUP, signal.SIG_IGN),
        started("extend", "a1", "--model", "V5", env=environment(service)) as process,
    ):
        while not service.arrivals:
            assert process.poll() is None
            time.sleep(0.01)  # the process needs the time
        process.send_signal(signal.SIGHUP)
        assert ended(process).code == 0


@pytest.mark.parametrize("again", [False, True])
def test_7_ctrl_c_during_a_post_of_a_batch(silent: Silent, tmp_path: Path, *, again: bool) -> None:
    manifest, out = tmp_path / "jobs.csv", tmp_path / "out"
    manifest.write_text("id,audio_id,model,continue_at,style,title,instrumental\none,a1,V5,1,s,t,yes\n")
    words = ("batch", str(manifest), "--out", str(out), "--yes", "--report")
    out.mkdir()
    (out / "own.mp3").touch()
    with started(*words, env=silent.environment) as process:
        answer = silent.interrupt(process, again=again)
    assert answer.code == 7
    assert "a submission was sent, perhaps charged, and no answer came" in answer.err
    assert f"kie-async jobs resolve KEY --task-id ID --out {out}" in answer.err
    assert (out / "report.html").exists() is not again
    silent.hang_up()
    with started(*words, env=silent.environment) as process:
        answer = ended(process)
    assert answer.code == 7  # it is not sent again
    assert "what became of 1 job is not known" in answer.err


@pytest.mark.parametrize(
    "words", [["credits"], ["extend", "a1", "--model", "V5", "--callbacks"], ["--help"], ["credits", "--json"]]
)
def test_141_the_reader_went_away(service: EmulatorHandle, words: list[str]) -> None:
    with started(*words, env=environment(service)) as process:
        assert process.stdout is not None
        process.stdout.close()
        process.stdout = None
        answer = ended(process)
    assert answer.code == 141
    assert "Traceback" not in answer.err
    assert "Exception ignored" not in answer.err


def test_an_interrupt_that_is_ignored_stays_so(service: EmulatorHandle, capsys: pytest.CaptureFixture[str]) -> None:
    with inherited(signal.SIGINT, signal.SIG_IGN):  # as nohup and background jobs of a shell have it
        assert run(["credits"]) == 0
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    assert capsys.readouterr().out == f"{service.credits:g}\n"
