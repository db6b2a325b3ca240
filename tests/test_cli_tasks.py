"""The commands about tasks, on the built-in emulator and against one that is served."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from command_line import Answer, Terminal, served, short_song

from kie_async import emulator, files
from kie_async.emulator import Fault
from kie_async.testing import EmulatorHandle


@pytest.fixture(scope="module")
def song(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("songs") / "my song.wav"
    path.write_bytes(emulator.demo_song())
    return path


@pytest.fixture(scope="module")
def short(song: Path) -> Path:
    return short_song(song.with_name("short.wav"))


def paths(answer: Answer) -> list[Path]:
    """The paths on stdout."""
    return [Path(line) for line in answer.out.splitlines()]


# ---------------------------------------------------------------- demo


def test_demo_makes_two_tracks_that_go_on(terminal: Terminal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started = time.monotonic()
    monkeypatch.chdir(tmp_path)
    answer = terminal("demo", "--out", "new/demo", virtual=True)
    assert time.monotonic() - started < 60
    assert answer.code == 0
    assert "Signed callbacks reported it (3), and the record was read to make sure (" in answer.out
    assert "submitted: task" in answer.err
    song, *tracks = (Path(line.strip()) for line in answer.out.splitlines()[-3:])
    assert sorted(Path("new/demo").iterdir()) == sorted([song, *tracks])
    for path in tracks:
        assert path.suffix == ".mp3"
        assert files.measure(path) > 19.05
    assert files.measure(song) == pytest.approx(25.4)


def test_a_task_of_the_built_in_emulator_takes_less_than_ten_seconds(terminal: Terminal) -> None:
    words = ("extend", "a1", "--model", "V5", "--emulate", "--callbacks", "--timeout", "10")
    assert terminal(*words, virtual=True).code == 0


# ---------------------------------------------------------------- upload-extend, extend


def test_upload_extend_by_looks_alone(terminal: Terminal, song: Path) -> None:
    answer = terminal("upload-extend", str(song), "--at", "-10s", "--emulate", virtual=True)
    assert answer.code == 0
    assert len(answer.out.splitlines()) == 2
    assert "the song (0:25.40) is kept to 0:15.40 and continued" in answer.err
    stages = [line.partition(":")[0] for line in answer.err.splitlines() if line.startswith(("text", "first", "comp"))]
    assert stages == ["text", "first", "complete"]


@pytest.mark.parametrize("beyond", ["25.4", "-30s"])
def test_nothing_is_told_of_a_cut_that_is_refused(terminal: Terminal, song: Path, beyond: str) -> None:
    answer = terminal("upload-extend", str(song), "--at", beyond, "--emulate")
    assert answer.code == 2
    assert answer.err.startswith("error: --at is ")


@pytest.mark.parametrize("titled", [True, False])
def test_what_is_made_of_a_song_is_named_after_it(
    terminal: Terminal, short: Path, tmp_path: Path, *, titled: bool
) -> None:
    song = short.rename(tmp_path / "私の歌 (été).wav")
    title = ("--title", "Longer", "--style", "folk", "--instrumental") if titled else ()
    answer = terminal(
        "upload-extend", str(song), "--at", "1", "--emulate", *title, "--out", str(tmp_path / "new"), virtual=True
    )
    song.rename(short)
    assert answer.code == 0, answer.err
    found = paths(answer)
    assert len(found) == 2
    for path in found:
        assert path.exists()
        assert path.name.startswith("私の歌-été-")


def test_upload_extend_with_callbacks(terminal: Terminal, song: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KIE_CALLBACK_URL", "https://me.example/kie")  # of another program, not of the emulator
    monkeypatch.setenv("KIE_API_KEY", "a-real-key")
    words = ("upload-extend", str(song), "--at", "75%", "--emulate", "--callbacks", "--route", "jobs", "--json")
    value = terminal(*words, virtual=True).value
    assert value["callbacks_received"] == 3
    assert value["polls"] >= 1
    assert value["status"] == "SUCCESS"
    assert value["partial"] is False
    assert "files" not in value
    for track in value["tracks"]:
        assert track["audio_url"].startswith("http://127.0.0.1:")
        assert track["duration"] > 19
        assert track["created_at"].startswith("20")


def test_addresses_are_shown_where_nothing_is_downloaded(terminal: Terminal) -> None:
    answer = terminal("extend", "a1", "--model", "V5", "--emulate", virtual=True)
    assert answer.code == 0
    assert len(answer.out.splitlines()) == 2
    assert all(line.startswith("http://127.0.0.1:") for line in answer.out.splitlines())


def test_every_field_reaches_the_service(terminal: Terminal, service: EmulatorHandle, tmp_path: Path) -> None:
    lyrics = tmp_path / "lyrics.txt"
    lyrics.write_text("La la\nla é\n", "utf-8")
    words = (
        "extend", "a1", "--model", "V5_5", "--at", "1:05", "--duration", "90", "--prompt-file", str(lyrics),
        "--style", "folk", "--title", "Longer", "--negative-tags", "drums", "--vocal-gender", "f",
        "--style-weight", "0.29", "--weirdness-constraint", "1", "--audio-weight", "0", "--persona-id", "p1",
        "--persona-model", "voice_persona", "--no-wait",
    )  # fmt: skip
    assert terminal(*words).code == 0
    body = service.ledger[0].body
    assert body.pop("callBackUrl").startswith("https://example.com/")
    assert body == {
        "audioId": "a1",
        "model": "V5_5",
        "continueAt": 65.0,
        "defaultParamFlag": True,
        "prompt": "La la\nla é",
        "style": "folk",
        "title": "Longer",
        "negativeTags": "drums",
        "vocalGender": "f",
        "styleWeight": 0.29,
        "weirdnessConstraint": 1.0,
        "audioWeight": 0.0,
        "personaId": "p1",
        "personaModel": "voice_persona",
    }


def test_lyrics_reach_the_jobs_route_alone(terminal: Terminal, service: EmulatorHandle) -> None:
    words = (
        "upload-extend", "http://127.0.0.1:9/song.mp3", "--duration", "100", "--at", "60", "--style", "s",
        "--title", "t", "--lyrics", "la", "--variety", "2", "--no-wait",
    )  # fmt: skip
    refused = terminal(*words)
    assert refused.code == 2
    assert "--lyrics is not known to the classic route; use --route jobs" in refused.err
    assert not service.arrivals
    assert terminal(*words, "--route", "jobs").code == 0
    sent = service.ledger[0].body["input"]
    assert (sent["lyrics"], sent["variety"]) == ("la", 2)


def test_what_is_only_pointless_is_a_note(terminal: Terminal, service: EmulatorHandle) -> None:
    song = ("--instrumental", "--style", "s", "--title", "t" * 81, "--at", "60")
    words = ("extend", "a1", "--model", "V5", *song, "--prompt", "p", "--vocal-gender", "m", "--no-wait")
    answer, verbose = terminal(*words), terminal(*words, "-v")
    assert answer.code == 0
    assert "note: --vocal-gender: has no effect with instrumental" in answer.err
    beyond = "title: is beyond a limit that has been raised"  # a newer page decides: nothing is to be done
    assert (beyond in answer.err, beyond in verbose.err) == (False, True)
    assert service.ledger[0].body["vocalGender"] == "m"


def test_switches_reach_the_service(terminal: Terminal, service: EmulatorHandle) -> None:
    words = ("--instrumental", "--style", "s", "--title", "t", "--at", "60", "--no-wait", "--default-param-flag")
    assert terminal("extend", "a1", "--model", "V5", *words).code == 0
    assert terminal("extend", "a1", "--model", "V5", "--no-default-param-flag", "--no-wait").code == 0
    own, inherited = (charge.body for charge in service.ledger)
    assert (own["instrumental"], own["defaultParamFlag"], own["continueAt"]) == (True, True, 60.0)
    assert inherited["defaultParamFlag"] is False


def test_a_url_is_given_as_it_is(terminal: Terminal, service: EmulatorHandle) -> None:
    url = "http://127.0.0.1:9/song.mp3"
    words = ("--duration", "100", "--at", "75%", "--no-wait")
    assert terminal("upload-extend", url, *words).code == 0
    body = service.ledger[0].body
    assert (body["uploadUrl"], body["continueAt"]) == (url, 75.0)


def test_a_length_in_seconds_needs_no_measuring(terminal: Terminal, service: EmulatorHandle, song: Path) -> None:
    answer = terminal("upload-extend", str(song), "--at", "12.5", "--no-wait")
    assert answer.out.strip() == service.ledger[0].task_id
    assert service.ledger[0].body["continueAt"] == 12.5
    assert "lasts" not in answer.err


# ---------------------------------------------------------------- what came


def test_each_length_is_told_beside_where_the_song_was_cut(
    terminal: Terminal, song: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with served(monkeypatch, goes_on=(-5.4, 4.6)) as service:
        answer = terminal("upload-extend", str(song), "--at", "-10s")
        assert "2 tracks that last 0:10 and 0:20, made from the first 0:15.40 of 0:25.40" in answer.err
        assert "track 1 is not longer than what was kept of the song: it holds the continuation alone" in answer.err
        assert "track 2 is not longer" not in answer.err
        value = terminal("wait", service.ledger[0].task_id, "--json").value
        assert (value["continue_at"], value["source_duration"]) == (15.4, None)  # the service knows no more
        assert [track["holds"] for track in value["tracks"]] == ["continuation", "unknown"]
        words = ("--at", "10", "--duration", "90", "--prompt", "p", "--style", "s", "--title", "t")
        value = terminal("extend", "a1", "--model", "V5", *words, "--json").value
        assert (value["continue_at"], value["source_duration"]) == (10.0, 90.0)
        assert [(track["duration"], track["holds"]) for track in value["tracks"]] == [
            (4.6, "continuation"),
            (14.6, "unknown"),
        ]
        answer = terminal("extend", "a1", "--model", "V5")
        assert "made from" not in answer.err
        assert "not longer" not in answer.err


# ---------------------------------------------------------------- callbacks


def test_the_callback_url_of_the_environment_is_not_used_while_waiting_here(
    terminal: Terminal, service: EmulatorHandle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KIE_CALLBACK_URL", "http://127.0.0.1:9/elsewhere")
    assert terminal("extend", "a1", "--model", "V5", "--timeout", "0").code == 6
    assert terminal("extend", "a1", "--model", "V5", "--no-wait").code == 0
    assert (
        terminal("extend", "a1", "--model", "V5", "--no-wait", "--callback-url", "http://127.0.0.1:9/given").code == 0
    )
    urls = [charge.body["callBackUrl"].rpartition("/")[0] for charge in service.ledger]
    assert urls == ["https://example.com", "http://127.0.0.1:9/elsewhere", "http://127.0.0.1:9/given"]


def test_callbacks_of_a_served_emulator(terminal: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KIE_WEBHOOK_KEY", "a-webhook-key")
    with served(monkeypatch, webhook_key="a-webhook-key") as service:
        value = terminal("extend", "a1", "--model", "V5", "--callbacks", "--json").value
        assert value["task_id"] == service.ledger[0].task_id
        assert service.polls(value["task_id"]) >= 1
        assert service.ledger[0].callback_url.startswith("http://127.0.0.1:")


def test_callbacks_that_are_forged_change_nothing(terminal: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KIE_WEBHOOK_KEY", "a-webhook-key")
    forged = Fault("forged", stage="error", signed=False, seconds=0.0)
    with served(monkeypatch, webhook_key="a-webhook-key", faults=[forged], speed=200.0):
        answer = terminal("extend", "a1", "--model", "V5", "--callbacks")
    assert answer.code == 0
    assert "callback: refused" in answer.err


def test_a_lost_answer_is_found_by_its_callback(terminal: Terminal, service: EmulatorHandle) -> None:
    service.add_faults(Fault("lost", "submit"))
    answer = terminal("extend", "a1", "--model", "V5", "--callbacks")
    assert answer.code == 0
    assert "note: an answer was lost" in answer.err
    assert len(service.ledger) == 1


def test_a_lost_answer_is_waited_for_no_longer_than_told(terminal: Terminal, service: EmulatorHandle) -> None:
    service.add_faults(Fault("lost", "submit"), Fault("lost", "callback"))
    answer = terminal("extend", "a1", "--model", "V5", "--callbacks", "--timeout", "0.2")
    assert answer.code == 7
    assert len(service.ledger) == 1


# ---------------------------------------------------------------- status, wait, download


def submit(terminal: Terminal, service: EmulatorHandle, song: Path) -> str:
    """Submit a task, wait until it has ended, and return its id."""
    task_id = terminal("upload-extend", str(song), "--at", "1", "--no-wait").out.strip()
    service.wait_finished()
    return task_id


def test_status_of_a_finished_task(terminal: Terminal, service: EmulatorHandle, short: Path) -> None:
    task_id = submit(terminal, service, short)
    head, *tracks = terminal("status", task_id).out.splitlines()
    assert head == f"{task_id} SUCCESS"
    assert len(tracks) == 2
    value = terminal("status", task_id, "--json").value
    assert value["status"] == "SUCCESS"
    assert value["operation"] == "upload_extend"
    for line, track in zip(tracks, value["tracks"], strict=True):
        assert line.startswith(f"{track['id']}  {track['duration']:.1f} s  ")
        assert line.endswith(track["audio_url"])
    assert service.polls(task_id) == 2


def test_status_of_a_task_that_runs_or_failed_is_no_failure_of_ours(
    terminal: Terminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    with served(monkeypatch, timeline=(0.0, 0.0, 1e6), speed=1.0) as service:
        running = terminal("extend", "a1", "--model", "V5", "--no-wait").out.strip()
        service.add_faults(Fault("failed", seconds=0.0, code=501, message="no\x1b[2J https://a.example/?token=x"))
        failed = terminal("extend", "a1", "--model", "V5", "--no-wait").out.strip()
        assert terminal("status", running).out.splitlines()[0] == f"{running} FIRST_SUCCESS"
        assert "not ready" in terminal("status", running).out
        answer = terminal("status", failed)
        assert answer.code == 0
        assert answer.out == f"{failed} GENERATE_AUDIO_FAILED (code 501: no�[2J https://a.example/…)\n"
        value = terminal("status", failed, "--json").value
        assert (value["error_code"], value["error_message"]) == (501, "no�[2J https://a.example/…")


def test_wait_shows_or_fetches_the_tracks(
    terminal: Terminal, service: EmulatorHandle, short: Path, tmp_path: Path
) -> None:
    task_id = submit(terminal, service, short)
    assert len(terminal("wait", task_id).out.splitlines()) == 2
    answer = terminal("wait", task_id, "--out", str(tmp_path), "--timeout", "3600")
    assert sorted(paths(answer)) == sorted(tmp_path.iterdir())
    assert len(service.ledger) == 1


def test_download_fetches_all_tracks(
    terminal: Terminal, service: EmulatorHandle, short: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task_id = submit(terminal, service, short)
    monkeypatch.chdir(tmp_path)
    value = terminal("download", task_id, "--out", "new", "--json").value
    assert sorted(value["files"]) == sorted(str(path) for path in (tmp_path / "new").iterdir())
    assert len(value["files"]) == 2
    assert service.polls(task_id) == 1


def test_a_track_that_is_gone_does_not_keep_the_other_away(
    terminal: Terminal, service: EmulatorHandle, short: Path, tmp_path: Path
) -> None:
    task_id = submit(terminal, service, short)
    service.add_faults(Fault("expired", nth=1), Fault("code", "download_url", code=422))
    answer = terminal("download", task_id, "--out", str(tmp_path), "--json")
    assert answer.code == 8
    (path,) = tmp_path.glob("*.mp3")
    assert answer.value["files"] == [str(path)]
    assert answer.value["error"]["type"] == "ResultExpiredError"


def test_a_path_is_shown_though_another_track_is_gone(
    terminal: Terminal, service: EmulatorHandle, short: Path, tmp_path: Path
) -> None:
    task_id = submit(terminal, service, short)
    service.add_faults(Fault("expired", nth=1), Fault("code", "download_url", code=422))
    answer = terminal("download", task_id, "--out", str(tmp_path))
    assert answer.code == 8
    assert paths(answer) == list(tmp_path.glob("*.mp3"))


@pytest.mark.usefixtures("service")
def test_what_is_submitted_is_on_record_in_the_journal_of_the_environment(
    terminal: Terminal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = tmp_path / "kie.sqlite"
    monkeypatch.setenv("KIE_JOURNAL", str(journal))
    assert terminal("credits").code == 0
    assert not journal.exists()  # nothing to record
    assert terminal("extend", "a1", "--model", "V5").code == 0
    assert [job["state"] for job in terminal("jobs", "list", "--json").value["jobs"]] == ["succeeded"]


def test_what_is_emulated_is_no_job_of_the_journal(
    terminal: Terminal, song: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = tmp_path / "kie.sqlite"
    monkeypatch.setenv("KIE_JOURNAL", str(journal))
    assert terminal("upload-extend", str(song), "--at", "75%", "--emulate", virtual=True).code == 0
    assert not journal.exists()


def test_credits(terminal: Terminal, service: EmulatorHandle) -> None:
    service.top_up(14_916.25)
    assert terminal("credits", "--route", "jobs").out == "15916.25\n"
    assert terminal("credits", "--json").value == {"credits": 15916.25}
