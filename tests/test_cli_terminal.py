"""What stands around a command: terminals of all kinds, missing streams and libraries, logs, help."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import types
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

import pytest
from command_line import PATIENCE, Terminal, ended, ended_on_terminal, environment, fill, served, short_song, started

import kie_async as kie
from kie_async import __main__ as program
from kie_async import events
from kie_async.cli import run
from kie_async.cli._progress import QUIET, ProgressDisplay, event_line
from kie_async.emulator import KINDS, Fault
from kie_async.testing import EmulatorHandle

VERSION = kie.__version__
COMMANDS = (
    "demo",
    "upload-extend",
    "extend",
    "status",
    "wait",
    "download",
    "credits",
    "listen",
    "emulate",
    "completion",
)


# ---------------------------------------------------------------- help, version, the program


def test_the_help_names_every_command(terminal: Terminal) -> None:
    answer = terminal("--help")
    assert answer.code == 0
    assert not answer.err
    for name in COMMANDS:
        assert f" {name} " in answer.out
    assert terminal() == answer


@pytest.mark.parametrize("name", COMMANDS)
def test_each_command_has_help_with_an_example(terminal: Terminal, name: str) -> None:
    answer = terminal(name, "--help")
    assert answer.code == 0
    assert f"Example: kie-async {name}" in answer.out
    assert "--json" in answer.out
    assert "--api-key" not in answer.out
    assert len(answer.out.splitlines()) <= 80  # in 80 columns, in groups


def test_help_and_version_are_json_too(terminal: Terminal) -> None:
    assert "kie-async wait" in terminal("wait", "--help", "--json").value["text"]
    assert terminal("--version", "--json").value == {"text": f"{VERSION}\n"}
    assert terminal("--version").out == f"{VERSION}\n"


def test_words_after_the_end_of_options_are_no_options(terminal: Terminal) -> None:
    answer = terminal("upload-extend", "--", "--json")
    assert answer.err == "error: SONG: there is no file '--json'\n"
    assert not answer.out


def test_the_program_runs_what_it_is_told(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    assert program.main(["--version"]) == 0
    monkeypatch.setattr(sys, "argv", ["kie-async", "zap"])
    assert program.main() == 2
    assert "zap" in capsys.readouterr().err


@pytest.mark.parametrize("missing", ["cyclopts", "rich"])
def test_a_missing_library_is_named(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, missing: str
) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == missing or name.startswith("kie_async.cli")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, missing, None)
    assert program.main(["credits", "--json"]) == 2
    answer = capsys.readouterr()
    assert answer.err == f'error: {missing} is missing: pip install "kie_async[cli]"\n'
    assert json.loads(answer.out)["error"]["message"] == answer.err.removeprefix("error: ").strip()
    assert program.main(["credits"]) == 2
    assert not capsys.readouterr().out


def test_ctrl_c_while_the_command_is_loaded(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    class Interrupted(types.ModuleType):
        def __getattr__(self, name: str) -> object:
            raise KeyboardInterrupt

    monkeypatch.setitem(sys.modules, "kie_async.cli", Interrupted("kie_async.cli"))
    assert program.main(["credits", "--json"]) == 130
    answer = capsys.readouterr()
    assert answer.err == "error: stopped by Ctrl-C\n"
    assert json.loads(answer.out)["error"]["type"] == "KeyboardInterrupt"


def test_the_version_needs_no_extra(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith("kie_async.cli")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "cyclopts", None)
    assert program.main(["--version"]) == 0
    assert capsys.readouterr() == (f"{VERSION}\n", "")


@pytest.mark.parametrize(
    ("words", "completed"),
    [(["upl"], "upload-extend"), (["jobs", "ret"], "retry"), (["upload-extend", "--inst"], "--instrumental")],
)
def test_bash_completes_the_words(terminal: Terminal, tmp_path: Path, words: list[str], completed: str) -> None:
    script = tmp_path / "kie-async"
    script.write_text(terminal("completion", "bash").out)
    probe = f"""
        . {script}
        COMP_WORDS=(kie-async {" ".join(words)}) COMP_CWORD={len(words)}
        _kie_async
        echo "${{COMPREPLY[@]}}"
    """
    answer = subprocess.run(["bash", "-uc", probe], capture_output=True, text=True, check=True)  # noqa: S603, S607  # ours
    assert answer.stdout.split() == [completed]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_each_shell_has_its_completion(terminal: Terminal, shell: str) -> None:
    answer = terminal("completion", shell)
    assert (answer.code, answer.err) == (0, "")
    assert all(name in answer.out for name in COMMANDS)
    assert terminal("completion", shell, "--json").value["text"] == answer.out


def test_the_faults_of_the_emulator_are_in_its_help(terminal: Terminal) -> None:
    words = terminal("emulate", "--help").out.replace(",", " ").replace(".", " ").split()
    assert KINDS.keys() <= set(words)


def test_a_wrong_word_is_one_line_even_with_the_log(terminal: Terminal) -> None:
    answer = terminal("upload-extend", "no.mp3", "--at", "75%", "-v")
    assert answer.err == "error: SONG: there is no file 'no.mp3'\n"


def test_another_missing_module_is_no_missing_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith("kie_async.cli")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "kie_async.cli", None)
    with pytest.raises(ModuleNotFoundError):
        program.main(["credits"])


# ---------------------------------------------------------------- streams


@pytest.mark.parametrize("closed", ["0<&-", "1>&-", "2>&-"])
def test_a_closed_stream(service: EmulatorHandle, closed: str) -> None:
    words = ["/bin/sh", "-c", f'exec "$@" {closed}', "sh", sys.executable, "-m", "kie_async", "credits"]
    process = subprocess.run(words, env=environment(service), capture_output=True, timeout=PATIENCE, check=False)  # noqa: S603  # ourselves
    assert process.returncode == 0
    assert process.stderr == b""
    assert process.stdout == (b"" if closed.startswith("1") else b"1000\n")


def test_a_stderr_that_nobody_reads_stops_nothing(service: EmulatorHandle) -> None:
    with started("extend", "a1", "--model", "V5", "--callbacks", "-v", env=environment(service)) as process:
        assert process.stderr is not None
        process.stderr.close()
        process.stderr = None
        answer = ended(process)
    assert answer.code == 0
    assert len(answer.out.splitlines()) == 2


def test_a_locale_without_unicode(service: EmulatorHandle, tmp_path: Path) -> None:
    plain = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONIOENCODING": "ascii:strict"}
    with started("--help", env=environment(service, **plain)) as process:
        answer = ended(process)
    assert (answer.code, answer.err) == (0, "")
    assert answer.out.isascii()
    song = short_song(tmp_path / "song.wav")
    words = ("--at", "1", "--instrumental", "--style", "s", "--title", "Longer", "--out", str(tmp_path / "neü"))
    with started("upload-extend", str(song), *words, "--callbacks", env=environment(service, **plain)) as process:
        answer = ended(process)
    assert (answer.code, len(answer.out.splitlines())) == (0, 2)
    assert "Traceback" not in answer.err


def test_a_stream_that_is_no_file(service: EmulatorHandle) -> None:
    with redirect_stdout(StringIO()) as out:
        assert run(["credits"]) == 0
    assert out.getvalue() == f"{service.credits:g}\n"


# ---------------------------------------------------------------- terminals


def test_a_real_terminal_shows_a_bar(service: EmulatorHandle) -> None:
    service.add_faults(Fault("slow", "submit", seconds=0.5))
    words = ("extend", "a1", "--model", "V5", "--callbacks")
    answer, shown = ended_on_terminal(*words, env=environment(service, COLUMNS="20"))
    assert answer.code == 0
    assert b"\x1b[" in shown
    assert b"submitted: task " in shown
    assert b"Traceback" not in shown
    assert "\x1b" not in answer.out


def test_nothing_is_drawn_while_nobody_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"FORCE_COLOR": "1", "TERM": "xterm"}.items():
        monkeypatch.setenv(name, value)
    ours, theirs = os.pipe()
    fill(theirs)
    with os.fdopen(theirs, "w", encoding="utf-8") as stderr, os.fdopen(ours, "rb") as pipe:
        monkeypatch.setattr(sys, "stderr", stderr)
        display = ProgressDisplay()
        display.show("a picture", "a line")
        display.stop()
        display.say("the end")
        shown = b""
        while b"the end\n" not in shown:
            shown += pipe.read1()
        display.writer.close()
    assert b"picture" not in shown


def test_a_full_stderr_that_does_not_block_stops_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = os.pipe()
    fill(theirs)
    os.set_blocking(theirs, False)
    with os.fdopen(theirs, "w", encoding="utf-8") as stderr, os.fdopen(ours, "rb") as pipe:
        monkeypatch.setattr(sys, "stderr", stderr)
        display = ProgressDisplay()
        display.say("lost")
        assert set(pipe.read1(1 << 20)) == set(b".")
        display.say("the end")
        display.writer.close()
        assert pipe.read1() == b"the end\n"


@pytest.mark.parametrize("more", [{}, {"NO_COLOR": "1"}, {"COLUMNS": "20"}])
@pytest.mark.usefixtures("service")
def test_bars_of_a_terminal(
    terminal: Terminal, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, more: dict[str, str]
) -> None:
    for name, value in {"FORCE_COLOR": "1", "TERM": "xterm", **more}.items():
        monkeypatch.setenv(name, value)
    song = short_song(tmp_path / "song.wav")
    answer = terminal("upload-extend", str(song), "--at", "1", "--callbacks", "--out", str(tmp_path))
    assert answer.code == 0
    assert "\x1b[?25l" in answer.err  # the cursor is hidden for a bar
    assert "\x1b[?25h" in answer.err  # and shown again
    assert "\x1b" not in answer.out
    assert len(answer.out.splitlines()) == 2


def test_a_dumb_terminal_gets_lines(
    terminal: Terminal, service: EmulatorHandle, monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "dumb")
    answer = terminal("extend", "a1", "--model", "V5", "--callbacks")
    assert answer.code == 0
    assert "\x1b" not in answer.err
    assert "submitted: task" in answer.err
    assert len(service.ledger) == 1


def test_mere_progress_is_a_line_now_and_then(capsys: pytest.CaptureFixture[str]) -> None:
    now = 100.0
    display = ProgressDisplay(lambda: now)
    progress = display.transfer("downloading")
    progress(100, 200)
    progress(150, 200)
    now += QUIET
    progress(2_000_000, None)
    assert capsys.readouterr().err.splitlines() == ["downloading: 50%", "downloading: 2.0 MB"]


@pytest.mark.parametrize(
    ("event", "line"),
    [
        (events.Submitted("t1", "extend", "V5", 0.1), "submitted: task t1"),
        (events.Polled("t1", "MIXING", 10.0), "the service says MIXING after 10 s"),
        (events.PollFailed("t1", "no answer"), "a poll failed and is tried again: no answer"),
        (events.Retrying("submit", "too fast", 1, 2.5), "submit is tried again in 2.5 s: too fast"),
        (events.Queued(3), "waiting for a place in flight"),
        (events.Notice("t1", "odd: give style_weight="), "note: odd: give --style-weight"),
        (events.Notice("", "odd", "uncertain_cut"), "note: odd"),
        (events.Notice("", "odd", "raised_limit"), None),
        (events.StageReached("t1", "text"), "text: the text is there"),
        (events.CallbackReceived("t1", "text", 200), "callback: text"),
        (events.CallbackReceived("", "", 401, "wrong signature"), "callback: refused, wrong signature"),
        (events.Finished("t1", "extend", 90.0, 3), None),
    ],
)
def test_every_event_has_its_line(event: events.Event, line: str | None) -> None:
    assert event_line(event) == line


def test_events_are_shown_without_control_characters(capsys: pytest.CaptureFixture[str]) -> None:
    now = 0.0
    display = ProgressDisplay(lambda: now)
    for show in (display.say, display.doing, lambda what: display.transfer(what)(1, 2)):
        now += QUIET
        show("te\x1b[2Jxt")
    lines = capsys.readouterr().err.splitlines()
    assert lines == ["te�[2Jxt", "te�[2Jxt", "te�[2Jxt: 50%"]


# ---------------------------------------------------------------- logs and secrets


def test_the_log_is_shown_on_demand(terminal: Terminal, service: EmulatorHandle) -> None:
    assert "kie_async." not in terminal("extend", "a1", "--model", "V5", "--callbacks").err
    answer = terminal("extend", "a1", "--model", "V5", "--callbacks", "-v")
    assert "kie_async.tracker: Finished" in answer.err
    assert service.key not in answer.err
    assert "kie_async." not in terminal("extend", "a1", "--model", "V5", "--callbacks").err


def test_the_key_is_nowhere(terminal: Terminal, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    marker = "marker-7f3a9c"
    monkeypatch.setenv("KIE_WEBHOOK_KEY", f"{marker}-webhook")
    with served(monkeypatch, webhook_key=f"{marker}-webhook") as service:
        monkeypatch.setenv("KIE_API_KEY", f"{marker}-api")
        song = short_song(tmp_path / "song.wav")
        extend = ["upload-extend", str(song), "--at", "1", "--callbacks", "--out", str(tmp_path), "--timeout", "1"]
        commands = (extend, ["extend", "a1", "--model", "V5", "--no-wait"], ["credits"], ["status", "f" * 32])
        for fault in (None, Fault("code", code=500), Fault("lost"), Fault("html"), Fault("redirect"), Fault("failed")):
            if fault is not None:
                service.add_faults(fault)
            for words in commands:
                answer = terminal(*words, "-v", "--json")
                assert marker not in answer.out + answer.err
            if fault is not None:
                service.remove_faults(fault)
    for path in tmp_path.iterdir():
        assert marker.encode() not in path.read_bytes()
