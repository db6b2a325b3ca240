"""Ctrl-C, and a reader that goes away: in processes of their own."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from command_line import ended, environment, lines, served, started

from kie_async.emulator import Fault
from kie_async.testing import EmulatorHandle


@pytest.fixture
def service(monkeypatch: pytest.MonkeyPatch) -> Iterator[EmulatorHandle]:
    with served(monkeypatch) as handle:
        yield handle


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


def test_130_ctrl_c_during_the_post_tells_the_task(service: EmulatorHandle) -> None:
    service.add_faults(Fault("slow", "submit", seconds=0.5))
    with started("extend", "a1", "--model", "V5", env=environment(service)) as process:
        while not service.arrivals:
            assert process.poll() is None
        process.send_signal(signal.SIGINT)
        answer = ended(process)
    assert answer.code == 130
    assert f"kie-async wait {service.ledger[0].task_id}" in answer.err


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
