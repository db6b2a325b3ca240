"""``worker``, and ``batch`` on a database that is shared."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import wave
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from command_line import Answer, Terminal, ended, environment, served, started

from kie_async.emulator import Fault
from kie_async.testing import EmulatorHandle

MUSIC = ("--at", "50%", "--instrumental", "--style", "folk", "--title", "Longer", "--callbacks")
STEADY = 150.0  # of an emulator: a task takes about a second


@pytest.fixture(autouse=True)
def _no_journal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KIE_JOURNAL", raising=False)


@pytest.fixture
def terminal(capsys: pytest.CaptureFixture[str]) -> Terminal:
    return Terminal(capsys)


@pytest.fixture
def service(monkeypatch: pytest.MonkeyPatch) -> Iterator[EmulatorHandle]:
    with served(monkeypatch, speed=STEADY) as handle:
        yield handle


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "new songs"


@pytest.fixture
def songs(tmp_path: Path) -> Path:
    """A folder of ten songs, no two alike."""
    folder = tmp_path / "my songs"
    folder.mkdir()
    for number in range(10):
        with wave.open(str(folder / f"song {number}.wav"), "wb") as file:
            file.setnchannels(1)
            file.setsampwidth(2)
            file.setframerate(8000)
            file.writeframes(bytes((number + 1, 0)) * 8000 * 2)
    return folder


def first_line(process: subprocess.Popen[bytes]) -> str:
    """The first line on stdout."""
    assert process.stdout is not None
    return process.stdout.readline().decode()


def interrupted(service: EmulatorHandle, *words: str) -> Answer:
    """Start a batch, and type Ctrl-C when the first track is there."""
    with started(*words, env=environment(service)) as process:
        assert first_line(process)
        process.send_signal(signal.SIGINT)
        return ended(process)


def test_ctrl_c_in_the_middle_and_the_line_that_goes_on(
    service: EmulatorHandle, database_url: str, songs: Path, out: Path
) -> None:
    answer = interrupted(service, "batch", "--yes", str(songs), "--out", str(out), *MUSIC, "--journal", database_url)
    assert answer.code == 130
    assert database_url not in answer.err
    line = answer.err.splitlines()[-1].strip()
    assert line.endswith('--journal "$KIE_JOURNAL"')
    words = [os.path.expandvars(word) for word in shlex.split(line.replace("$KIE_JOURNAL", database_url))]
    with started(*words[1:], env=environment(service)) as process:
        again = ended(process)
    assert again.code == 0
    assert "10 done, 0 failed of 10 jobs" in again.err
    assert len(list(out.glob("*.mp3"))) == 20
    assert len(service.ledger) == 10


def test_two_workers_finish_what_was_begun(
    service: EmulatorHandle, database_url: str, songs: Path, out: Path
) -> None:  # fmt: skip
    answer = interrupted(service, "batch", "--yes", str(songs), "--out", str(out), *MUSIC, "--journal", database_url)
    assert answer.code == 130
    words = ("worker", "--out", str(out), "--until-done", "--at-once", "3")
    env = environment(service, KIE_JOURNAL=database_url)
    with ExitStack() as stack:
        workers = [stack.enter_context(started(*words, env=env)) for _ in range(2)]
        answers = [ended(worker) for worker in workers]
    assert [each.code for each in answers] == [0, 0]
    assert all("10 done, 0 failed of 10 jobs" in each.err for each in answers)
    assert len(list(out.glob("*.mp3"))) == 20
    assert len(service.ledger) == 10


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_worker_ends_in_good_order(
    service: EmulatorHandle, database_url: str, songs: Path, out: Path, number: signal.Signals
) -> None:
    env = environment(service, KIE_JOURNAL=database_url)
    assert (
        interrupted(service, "batch", "--yes", str(songs), "--out", str(out), *MUSIC, "--journal", database_url).code
        == 130
    )
    with started("worker", "--out", str(out), "--at-once", "1", env=env) as worker:
        assert first_line(worker)
        worker.send_signal(number)
        answer = ended(worker)
    assert answer.code == (130 if number == signal.SIGINT else 0)
    assert "every job stays as the journal has it" in answer.err
    assert "Traceback" not in answer.err
    assert "unknown" not in answer.err
    sources = [charge.body["uploadUrl"] for charge in service.ledger]  # as many as were begun; none twice
    assert len(set(sources)) == len(sources) <= 10


def test_in_one_process(terminal: Terminal, service: EmulatorHandle, database_url: str, songs: Path, out: Path) -> None:
    service.add_faults(Fault("failed", nth=1))
    for song in sorted(songs.iterdir())[2:]:
        song.unlink()
    place = ("--out", str(out), "--journal", database_url)
    answer = terminal("batch", "--yes", str(songs), *place, *MUSIC, "--json")
    assert answer.code == 3
    assert (answer.value["counts"]["done"], answer.value["counts"]["failed"]) == (1, 1)
    (failed,) = (each["key"] for each in answer.value["troubles"])
    assert terminal("jobs", "retry", failed, *place, "--yes").code == 0
    answer = terminal("worker", *place, "--until-done", "--callbacks")
    assert answer.code == 0
    assert len(answer.out.splitlines()) == 2
    elsewhere = terminal("batch", "--yes", str(songs), "--out", str(out / "b"), "--journal", database_url, *MUSIC)
    assert elsewhere.code == 0
    assert "left to another batch of this journal: 2 jobs" in elsewhere.err
    assert terminal("jobs", "list", *place, "--state", "delivered").out.count("delivered") == 2
    assert not terminal("jobs", "list", "--out", str(out / "b"), "--journal", database_url).out


def test_a_wrong_key_stops_a_worker(
    terminal: Terminal, service: EmulatorHandle, database_url: str, songs: Path, out: Path
) -> None:
    service.add_faults(Fault("code", code=401))
    place = ("--out", str(out), "--journal", database_url)
    assert terminal("batch", "--yes", str(songs), *place, *MUSIC).code == 5
    answer = terminal("worker", *place)
    assert answer.code == 5
    assert "work on with the same command" in answer.err
    assert not service.ledger


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ((), "--journal must be postgresql://"),
        (("--journal", "jobs.sqlite"), "--journal must be postgresql://"),
        (("--journal", "postgresql:///kie", "--bind", ":80"), "--bind"),
        (("--journal", "postgresql:///kie", "--at-once", "0"), "--at-once"),
    ],
)
def test_what_makes_no_sense_is_refused(terminal: Terminal, out: Path, words: tuple[str, ...], says: str) -> None:
    answer = terminal("worker", "--out", str(out), *words)
    assert answer.code == 2
    assert says in answer.err


def test_a_database_that_is_away(terminal: Terminal, service: EmulatorHandle, out: Path) -> None:
    place = "postgresql://kie:hush-7f3a@127.0.0.1:1/kie"
    for words in (("worker",), ("jobs", "list")):
        answer = terminal(*words, "--out", str(out), "--journal", place)
        assert answer.code == 8
        assert "hush" not in answer.err
    assert not service.ledger


def test_help(terminal: Terminal) -> None:
    answer = terminal("worker", "--help")
    assert answer.code == 0
    assert "Example: kie-async worker" in answer.out
