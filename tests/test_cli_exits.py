"""Every way to end, one by one: the code, the words, the one JSON value."""

from __future__ import annotations

import asyncio
import shlex
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from command_line import Answer, Terminal, ended, environment, served, short_song, started, virtual_loop
from fault_server import fault_server, ok, said

import kie_async as kie
from kie_async import errors
from kie_async.cli._exit_codes import EXITS, TerminatedError, exit_status, exit_table
from kie_async.emulator import Fault
from kie_async.testing import EmulatorHandle, serve_in_thread

UNKNOWN_TASK = "0" * 32


@pytest.fixture
def song(tmp_path: Path) -> Path:
    return short_song(tmp_path / "song.wav")


def submit(terminal: Terminal, service: EmulatorHandle) -> str:
    """Submit a task, wait until it has ended, and return its id."""
    answer = terminal("extend", "a1", "--model", "V5", "--no-wait")
    assert answer.code == 0
    service.wait_finished()
    return answer.out.strip()


def check(terminal: Terminal, code: int, *words: str, kind: str, says: str, virtual: bool = False) -> dict[str, Any]:
    """Run a command that must fail, for people and for programs; return the JSON error."""
    plain = terminal(*words, virtual=virtual)
    assert plain.code == code
    assert says in plain.err
    assert "Traceback" not in plain.err
    assert not plain.out
    answer = terminal(*words, "--json", virtual=virtual)
    assert answer.code == code
    error: dict[str, Any] = answer.value["error"]
    assert {"type", "message", "code", "task_id", "charged", "retryable"} <= set(error)
    assert error["type"] == kind
    assert says in error["message"] or "problems" in error
    return error


# ---------------------------------------------------------------- the table


def test_codes_are_those_promised() -> None:
    assert [each.code for each in EXITS] == [0, 1, 2, 3, 4, 5, 6, 7, 8, 130, 141]


def test_an_error_ends_in_one_way_only() -> None:
    listed = [error for each in EXITS for error in each.errors]
    assert len(listed) == len(set(listed))


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.ConnectError, 3),
        (errors.TLSError, 3),
        (errors.RefusedError, 3),
        (errors.InvalidRequestError, 2),
        (errors.AuthError, 5),
        (errors.InsufficientCreditsError, 4),
        (errors.RateLimitedError, 3),
        (errors.KeyQuotaError, 4),
        (errors.UnavailableError, 3),
        (errors.SubmitUnknownError, 7),
        (errors.BadResponseError, 3),
        (errors.ServerError, 3),
        (errors.TaskNotFoundError, 3),
        (errors.TaskFailedError, 3),
        (errors.WaitTimeoutError, 6),
        (errors.FileError, 8),
        (errors.AudioError, 2),
        (errors.DownloadError, 8),
        (errors.ResultExpiredError, 8),
        (errors.StorageError, 8),
        (errors.SettingsError, 2),
        (TerminatedError, 130),
    ],
)
def test_every_error_of_the_library_has_its_code(error: type[kie.KieError], code: int) -> None:
    assert exit_status(error("it")).code == code


def test_the_help_tells_the_table(terminal: Terminal) -> None:
    text = terminal("--help").out
    for each in EXITS:
        assert f"{each.code:>5}  {each.meaning}" in text
    assert exit_table() in text
    assert "Exit codes" not in terminal("extend", "--help").out


# ---------------------------------------------------------------- 0, 1


def test_0_done(terminal: Terminal, service: EmulatorHandle) -> None:
    assert terminal("credits") == Answer(0, "1000\n", "")
    assert terminal("credits", "--json").value == {"credits": 1000.0}
    assert service.credits == 1000


def test_1_a_fault_of_the_program(terminal: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    async def fail(*_: object, **__: object) -> None:
        raise RuntimeError("a bug\x1b[2J")

    monkeypatch.setenv("KIE_API_KEY", "a-key")
    monkeypatch.setattr(kie.KieSession, "credits", fail)
    error = check(terminal, 1, "credits", kind="RuntimeError", says="RuntimeError: a bug")
    assert error["charged"] == "no"
    assert "Traceback" in terminal("credits", "-v").err
    assert "\x1b" not in terminal("credits", "-v").err


# ---------------------------------------------------------------- 2


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["zap"], "zap"),
        (["credits", "--zap"], "--zap"),
        (["credits", "--output", "x"], "Unknown option: --output"),
        (["credits", "--api-key", "x"], "--api-key"),
        (["upload-extend"], "SONG"),
        (["upload-extend", "no.mp3", "--at", "5"], "there is no file 'no.mp3'"),
        (["upload-extend", "/", "--at", "5"], "'/' is a directory; give one file"),
        (["upload-extend", "/dev/null", "--at", "5"], "'/dev/null' is no plain file; copy it to one first"),
        (["upload-extend", "no\x1b[2J.mp3", "--at", "5"], "there is no file"),
        (["upload-extend", "http://127.0.0.1:9/a.mp3", "--at", "soon"], "--at is 'soon'"),
        (["extend", "a1", "--model", "V5", "--lyrics", "la"], "--lyrics is for upload-extend"),
        (["extend", "a1"], "--model is missing; give the one that made the track"),
        (["extend", "a1", "--model", "V5", "--at", "soon"], "--at is 'soon'; give 45.5, 10s, 1:05"),
        (
            ["extend", "a1", "--model", "V5", "--at", "75%", "--style", "s", "--title", "t", "--instrumental"],
            "the length of the source is not known: give seconds, or --duration",
        ),
        (["extend", "a1", "--model", "V5", "--prompt", "x", "--prompt-file", "y"], "leave one out"),
        (["extend", "a1", "--model", "V5", "--prompt-file", "no.txt"], "--prompt-file"),
        (["extend", "a1", "--model", "V5", "--style-weight", "much"], "--style-weight"),
        (["extend", "a1", "--model", "V5", "--timeout", "-1"], "--timeout"),
        (["extend", "a1", "--model", "V5", "--callbacks", "--no-wait"], "nobody would be there"),
        (["extend", "a1", "--model", "V5", "--bind", "8080"], "--callbacks"),
        (["extend", "a1", "--model", "V5", "--emulate", "--callbacks", "--bind", "here"], "--bind"),
        (["emulate", "--fault", "zap"], "--fault"),
        (["emulate", "--fault", "lost:0"], "--fault: 'lost:0' is no KIND:NTH; write lost, or lost:2"),
        (["emulate", "--port", "65536"], "--port"),
        (["status", "no id"], "TASK_ID"),
        (
            ["upload-extend", "a.mp3", "b c.mp3"],
            "more is given than the command takes: 'b c.mp3'; for many songs: kie-async",
        ),
        (
            ["upload-extend", "--", "a.mp3", "--at=50%"],
            "error: --at stands after --, where only arguments are: options",
        ),
        (["upload-extend", "a.mp3", "--at", "1.30"], '"1.30" for --at. Is it 1:30 or 1.3 seconds? Write 1:30 or 1.3s.'),
        (["batch", "songs", "--at", "-0.05", "--out", "o"], '"-0.05" for --at. Is it -0:05 or -0.05 seconds? Write'),
        (["extend", "a1", "--until", "4.00", "--out", "o"], "for --until. Is it 4:00 or 4 seconds?"),
        (["upload-extend", "a.mp3", "--at", "0:65"], "seconds go from 00 to 59. Is 1:05 meant?"),
        (["extend", "a1", "--until", "1:75", "--out", "o"], "seconds go from 00 to 59. Is 2:15 meant?"),
        (["join", "a.mp3", "b.mp3", "--at", "7.59", "--out", "c.mp3"], "for --at. Is it 7:59 or 7.59 seconds?"),
        (["join", "a.mp3", "b.mp3", "--at", "8.00", "--out", "c.mp3"], "there is no file"),
        (["join", "a.mp3", "b.mp3", "--at", "1.60", "--out", "c.mp3"], "there is no file"),
        (["join", "a.mp3", "b.mp3", "--at", "1.30s", "--out", "c.mp3"], "there is no file"),
        (["credits", "mine"], "more is given than the command takes: mine\n"),
    ],
)
def test_2_wrong_use(terminal: Terminal, service: EmulatorHandle, words: list[str], says: str) -> None:
    plain = terminal(*words)
    assert plain.code == 2
    assert plain.err.startswith("error: ")
    assert says in plain.err
    assert "\x1b" not in plain.err
    assert terminal(words[0], "--json", *words[1:]).value["error"]["charged"] == "no"
    assert not service.arrivals


def test_2_a_file_whose_name_begins_as_an_option(
    terminal: Terminal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, words in (
        ("-dash.ogg", ("upload-extend", "-dash.ogg", "--at", "1")),
        ("-v.ogg", ("join", "a.ogg", "-v.ogg", "--out", "c.ogg")),  # with options that exist
        ("-v 1.json", ("select", "--from", "-v 1.json", "--out", "best")),
    ):
        assert "./" not in terminal(*words).err
        (tmp_path / name).touch()
        answer = terminal(*words)
        assert answer.code == 2
        assert f"error: {name} begins as an option does; if the file of that name is meant, write " in answer.err
        assert f" write {shlex.quote(f'./{name}')}\n" in answer.err


def test_2_a_share_of_an_address_that_cannot_be_measured(terminal: Terminal, service: EmulatorHandle) -> None:
    words = ("upload-extend", "http://127.0.0.1:9/a.mp3", "--at", "5%")
    check(terminal, 2, *words, kind="InvalidRequestError", says="give seconds, or --duration")
    assert not service.arrivals


def test_2_a_request_that_breaks_rules_names_its_options(terminal: Terminal, service: EmulatorHandle) -> None:
    words = ("extend", "a1", "--style", "folk", "--audio-weight", "0.123", "--model", "V0")
    error = check(terminal, 2, *words, kind="InvalidRequestError", says="error: --model is 'V0'")
    assert {each["option"] for each in error["problems"]} == {
        "--model", "--audio-weight", "--prompt", "--title", "--at",
    }  # fmt: skip
    answer = terminal(*words)
    assert answer.err.count("error: --") == 5
    why = "needed as soon as prompt, style, title or --at is given, or --default-param-flag"
    assert f"error: --title is missing; {why}\n" in answer.err
    assert f"error: --prompt is missing; {why}; or set --instrumental\n" in answer.err
    assert not service.arrivals


def test_2_a_moment_beyond_the_song(terminal: Terminal, service: EmulatorHandle, song: Path) -> None:
    lasts = "; the source lasts 0:02: give a"
    for at, shown in (("2", "0:02"), ("100%", "'100%'"), ("-2", "'-2'")):
        says = f"--at is {shown}{lasts}"
        check(terminal, 2, "upload-extend", str(song), "--at", at, kind="InvalidRequestError", says=says)
    assert not service.arrivals


def test_2_a_file_that_is_no_audio(terminal: Terminal, service: EmulatorHandle, tmp_path: Path) -> None:
    page = tmp_path / "page.mp3"
    page.write_text("<html>")
    says = "SONG: page.mp3 is no audio by its content"
    check(terminal, 2, "upload-extend", str(page), "--at", "5", kind="AudioError", says=says)
    assert not service.arrivals


def test_2_a_prompt_file_that_is_no_text(terminal: Terminal, service: EmulatorHandle, song: Path) -> None:
    words = ("extend", "a1", "--model", "V5", "--prompt-file")
    broken = song.with_suffix(".txt")
    broken.write_bytes(b"\xff\xfe")
    check(terminal, 2, *words, str(broken), kind="UsageError", says="is not UTF-8: save it as UTF-8")
    assert not service.arrivals


def test_2_settings_that_cannot_be(terminal: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KIE_API_KEY", "a-key")
    monkeypatch.setenv("KIE_BASE_URL", "http://me.example")
    check(terminal, 2, "credits", kind="SettingsError", says="plain http to another machine")


def test_2_callbacks_that_the_service_could_not_send(terminal: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KIE_API_KEY", "a-key")
    check(terminal, 2, "extend", "a1", "--model", "V5", "--callbacks", kind="UsageError", says="--callback-url")
    check(terminal, 2, "listen", kind="UsageError", says="--callback-url")


def test_2_a_port_in_use(terminal: Terminal, service: EmulatorHandle) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        words = ("extend", "a1", "--model", "V5", "--callbacks", "--bind", str(taken.getsockname()[1]))
        check(terminal, 2, *words, kind="SettingsError", says="cannot listen for callbacks")
    assert not service.arrivals


def test_2_a_port_in_use_for_the_emulator(terminal: Terminal) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        error = check(terminal, 2, "emulate", "--port", port, kind="UsageError", says="give another one, or 0")
    says = f"--port: cannot listen for requests to the emulator on 127.0.0.1 port {port}"
    assert error["message"].startswith(says)


def test_2_the_service_calls_the_request_wrong(terminal: Terminal, service: EmulatorHandle) -> None:
    service.add_faults(Fault("code", code=422, message="the audioId is odd"))
    error = check(terminal, 2, "extend", "a1", "--model", "V5", kind="InvalidRequestError", says="the audioId is odd")
    assert error["code"] == 422


# ---------------------------------------------------------------- 3 to 8


def test_3_the_task_failed(terminal: Terminal, service: EmulatorHandle) -> None:
    service.add_faults(Fault("failed", code=531, message="failed\x1b[31m, refunded"))
    task_id = submit(terminal, service)
    error = check(terminal, 3, "wait", task_id, kind="TaskFailedError", says="failed�[31m, refunded")
    assert (error["task_id"], error["code"], error["charged"]) == (task_id, 531, "no")


def test_3_an_unknown_task(terminal: Terminal, service: EmulatorHandle) -> None:
    error = check(terminal, 3, "status", UNKNOWN_TASK, kind="TaskNotFoundError", says="does not know this task")
    assert error["task_id"] == UNKNOWN_TASK
    assert service.polls(UNKNOWN_TASK) == 2


def test_3_the_service_refused(terminal: Terminal, service: EmulatorHandle) -> None:
    service.add_faults(Fault("code", code=409, message="exists already"))
    assert (
        check(terminal, 3, "extend", "a1", "--model", "V5", kind="RefusedError", says="exists already")["code"] == 409
    )


def test_3_nobody_is_there(terminal: Terminal, monkeypatch: pytest.MonkeyPatch, free_port: int) -> None:
    monkeypatch.setenv("KIE_API_KEY", "a-key")
    monkeypatch.setenv("KIE_BASE_URL", f"http://127.0.0.1:{free_port}")
    assert check(terminal, 3, "credits", kind="ConnectError", says="", virtual=True)["retryable"] is True


def test_4_no_credits(terminal: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    with served(monkeypatch, credits=5.0) as service:
        error = check(
            terminal, 4, "extend", "a1", "--model", "V5", kind="InsufficientCreditsError", says="Credits insufficient"
        )
        assert (error["code"], error["charged"]) == (402, "no")
        assert "top up" in terminal("extend", "a1", "--model", "V5").err
        assert not service.ledger


def test_4_the_cap_of_a_key(terminal: Terminal, service: EmulatorHandle) -> None:
    service.add_faults(Fault("code", code=433))
    check(terminal, 4, "extend", "a1", "--model", "V5", kind="KeyQuotaError", says="limit")


@pytest.mark.parametrize("key", [None, "", "YOUR_API_KEY", "Bearer-abc", "two words"])
def test_5_no_usable_key(terminal: Terminal, monkeypatch: pytest.MonkeyPatch, key: str | None) -> None:
    if key is not None:
        monkeypatch.setenv("KIE_API_KEY", key)
    check(terminal, 5, "credits", kind="KeyUnusableError", says="api_key")
    answer = terminal("credits")
    assert "KIE_API_KEY" in answer.err
    assert not key or key not in answer.err


def test_5_a_file_without_a_key(terminal: Terminal, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("KIE_API_KEY_FILE", str(tmp_path / "absent"))
    check(terminal, 5, "credits", kind="KeyUnusableError", says="KIE_API_KEY_FILE")


def test_5_a_wrong_key(terminal: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    with serve_in_thread(key="the-right-one") as service:
        monkeypatch.setenv("KIE_BASE_URL", service.base_url)
        monkeypatch.setenv("KIE_API_KEY", "marker-of-a-wrong-one")
        assert check(terminal, 5, "credits", kind="AuthError", says="")["code"] == 401
        answer = terminal("credits", "-v")
        assert "marker" not in answer.err + answer.out
        assert "put the right key into" in answer.err


def test_6_still_running(terminal: Terminal, service: EmulatorHandle, tmp_path: Path) -> None:
    service.add_faults(Fault("stuck"))
    task_id = submit(terminal, service)
    words = ("wait", task_id, "--timeout", "0.2", "--out", str(tmp_path / "my songs"), "--route", "jobs")
    error = check(terminal, 6, *words, kind="WaitTimeoutError", says="the task goes on")
    assert (error["task_id"], error["charged"], error["retryable"]) == (task_id, "yes", True)
    hint = f"kie-async wait {task_id} --route jobs --out '{tmp_path / 'my songs'}'"
    assert hint in terminal(*words).err


def test_6_a_download_waits_for_half_a_minute(
    terminal: Terminal, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    waited: list[float] = []

    async def serve(ready: Callable[[], None]) -> None:
        clock = asyncio.get_running_loop()
        async with fault_server(ok(said(data={"taskId": UNKNOWN_TASK, "status": "PENDING"}))) as server:
            monkeypatch.setenv("KIE_BASE_URL", server.url)
            ready()
            began = clock.time()
            try:
                await asyncio.Event().wait()
            finally:
                waited.append(clock.time() - began)

    monkeypatch.setenv("KIE_API_KEY", "a-key")
    words = ("download", UNKNOWN_TASK, "--out", str(tmp_path / "new"))
    answer = terminal(*words, loop_factory=lambda: virtual_loop(serve))
    assert answer.code == 6
    assert f"kie-async wait {UNKNOWN_TASK} --out" in answer.err
    assert waited == [pytest.approx(30, abs=1)]
    assert not (tmp_path / "new").exists()


def test_7_outcome_unknown(terminal: Terminal, service: EmulatorHandle) -> None:
    service.add_faults(Fault("lost"))
    error = check(terminal, 7, "extend", "a1", "--model", "V5", kind="SubmitUnknownError", says="")
    assert (error["charged"], error["retryable"]) == ("maybe", False)
    assert len(service.ledger) == 2  # once for people, once for programs
    assert "do not run it again blindly" in terminal("extend", "a1", "--model", "V5").err


def test_8_a_download_that_is_gone(terminal: Terminal, service: EmulatorHandle, tmp_path: Path) -> None:
    task_id = submit(terminal, service)
    service.add_faults(Fault("expired"))
    words = ("download", task_id, "--out", str(tmp_path / "new"))
    error = check(terminal, 8, *words, kind="ResultExpiredError", says="")
    assert error["task_id"] == task_id
    assert f"kie-async download {task_id} --out" in terminal(*words).err
    assert not list((tmp_path / "new").glob("*.mp3"))


def test_8_a_directory_that_cannot_be(terminal: Terminal, service: EmulatorHandle, song: Path) -> None:
    task_id = submit(terminal, service)
    check(terminal, 8, "download", task_id, "--out", str(song / "new"), kind="StorageError", says="")
    check(terminal, 8, "demo", "--out", str(song / "new"), kind="NotADirectoryError", says="Not a directory")
    assert len(service.ledger) == 1


def test_8_a_paid_task_is_told_as_charged(terminal: Terminal, service: EmulatorHandle, song: Path) -> None:
    service.add_faults(Fault("page"))
    words = ("extend", "a1", "--model", "V5", "--callbacks", "--out", str(song.parent / "new"), "--json")
    value = terminal(*words).value
    assert value["error"]["type"] == "DownloadError"
    assert value["error"]["charged"] == "yes"
    assert value["error"]["task_id"] == value["task_id"] == service.ledger[0].task_id
    assert len(value["tracks"]) == 2
    assert value["files"] == []


def test_8_a_full_disk_behind_stdout(service: EmulatorHandle) -> None:
    with Path("/dev/full").open("wb") as full, started("credits", env=environment(service), stdout=full) as process:
        answer = ended(process)
    assert answer.code == 8
    assert "No space left" in answer.err
    assert "Traceback" not in answer.err
    assert "Exception ignored" not in answer.err
