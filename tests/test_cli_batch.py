"""``batch``: folders and manifests to files on disk, stopped and resumed, in this process and in others."""

from __future__ import annotations

import asyncio
import json
import os
import shlex
import signal
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from io import StringIO
from pathlib import Path

import audio_files
import pytest
from command_line import (
    Answer,
    Terminal,
    ended,
    ended_on_terminal,
    environment,
    full_terminal,
    interrupted,
    served,
    short_songs,
    started,
    virtual_loop,
)
from result_folder import data_of

import kie_async as kie
from kie_async import emulator
from kie_async.cli._batch import batch_error
from kie_async.cli._batch_progress import Counts, Estimate, progress_line, progress_table
from kie_async.cli._exit_codes import exit_status
from kie_async.cli._progress import ProgressDisplay
from kie_async.emulator import Fault, Rules
from kie_async.journal import OWN_BATCH, Job, SQLiteJournal, State
from kie_async.testing import EmulatorHandle

MUSIC = ("--at", "50%", "--instrumental", "--style", "folk", "--title", "Longer")
STEADY = 60.0  # of an emulator: a task takes one or two seconds


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "new songs"


def tracks(path: Path, count: int) -> Path:
    """Write a manifest that extends tracks of the service; briefly, for music takes time to make."""
    rows = [f"track{number},a{number},V5,1,s,t,yes\n" for number in range(count)]
    path.write_text("id,audio_id,model,continue_at,style,title,instrumental\n" + "".join(rows))
    return path


def paths(answer: Answer) -> list[Path]:
    """The paths on stdout."""
    return [Path(line) for line in answer.out.splitlines()]


@pytest.fixture(autouse=True)
def _no_journal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KIE_JOURNAL", raising=False)


# ---------------------------------------------------------------- all goes well


def test_a_folder_is_delivered_and_the_same_again_pays_nothing(
    terminal: Terminal, service: EmulatorHandle, tmp_path: Path, out: Path
) -> None:
    words = ("batch", "--yes", str(short_songs(tmp_path / "in", 3)), "--out", str(out), *MUSIC, "--callbacks")
    first = terminal(*words)
    assert first.code == 0
    assert len(paths(first)) == 6
    assert all(path.stat().st_size and path.parent == out for path in paths(first))
    assert "3 done, 0 failed of 3 jobs" in first.err
    assert sorted(charge.body["continueAt"] for charge in service.ledger) == [1.0, 1.0, 1.0]
    again = terminal(*words, "--json")
    assert again.code == 0
    assert again.value["counts"]["done"] == 3
    assert again.value["credits"] == 36.0
    short_songs(tmp_path / "in", 4)
    assert len(paths(terminal(*words))) == 2
    assert len(service.ledger) == 4


def test_a_built_in_emulator_has_jobs_of_its_own(terminal: Terminal, tmp_path: Path, out: Path) -> None:
    manifest = tracks(tmp_path / "jobs.csv", 2)
    answer = terminal("batch", str(manifest), "--out", str(out), "--emulate")
    assert answer.code == 0
    assert len(paths(answer)) == 4
    assert (out / "kie-async-emulated.sqlite").exists()
    assert not (out / "kie-async.sqlite").exists()


def test_each_move_is_an_event(terminal: Terminal, tmp_path: Path, out: Path) -> None:
    manifest = tracks(tmp_path / "jobs.csv", 2)
    answer = terminal("batch", str(manifest), "--out", str(out), "--emulate", "--jsonl")
    told = [json.loads(line) for line in answer.out.splitlines()]
    for key in ("track0", "track1"):
        moves = [event for event in told if event["key"] == key]
        assert [event["state"] for event in moves] == ["submitted", "succeeded", "delivered"]
        assert {event["task_id"] for event in moves} == {moves[0]["task_id"]}
        assert len(moves[-1]["files"]) == 2


def test_a_journal_elsewhere(terminal: Terminal, tmp_path: Path, out: Path) -> None:
    place = tmp_path / "deep" / "jobs.db"
    words = ("batch", str(tracks(tmp_path / "jobs.csv", 1)), "--out", str(out), "--emulate", "--journal", str(place))
    assert terminal(*words).code == 0
    assert place.exists()
    assert not list(out.glob("*.sqlite"))


@pytest.mark.usefixtures("service")
def test_the_environment_may_name_the_journal(
    terminal: Terminal, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, out: Path
) -> None:
    monkeypatch.setenv("KIE_JOURNAL", str(tmp_path / "jobs.db"))
    words = ("batch", str(tracks(tmp_path / "jobs.csv", 1)), "--out")
    assert terminal(*words, str(tmp_path / "tried"), "--emulate").code == 0
    assert not (tmp_path / "jobs.db").exists()  # what is merely tried out is not done
    assert terminal(*words, str(out), "--yes", "--max-credits", "0").code == 4
    assert (tmp_path / "jobs.db").exists()


# ---------------------------------------------------------------- before anything is spent


def test_a_rehearsal_sends_nothing(
    terminal: Terminal, service: EmulatorHandle, tmp_path: Path, out: Path
) -> None:  # fmt: skip
    manifest = tracks(tmp_path / "jobs.csv", 2)
    with manifest.open("a") as file:
        file.write(",b,V4,1,s,t,yes\n" * 2)
    words = ("batch", str(manifest), "--out", str(out), "--dry-run")
    answer = terminal(*words)
    assert answer.code == 0
    told = [" ".join(line.split()) for line in answer.out.splitlines()]
    assert told == [
        "2 extend, V5",
        "2 extend, V4",
        "4 of 4 jobs are new",
        "1 asks for the same as another; each of them is made and paid for",
        "48 credits is what the new ones will cost, about 12 each",
        "1000 credits are left on the account",
    ]
    answer = terminal(*words[:-1])  # nobody is there to agree
    assert answer.code == 2
    assert "note: 1 job asks for the same as another; each of them is made and paid for\n" in answer.err
    assert not out.exists()
    assert not service.ledger
    assert terminal("batch", "--yes", str(tracks(tmp_path / "few.csv", 1)), "--out", str(out), "--callbacks").code == 0
    plan = terminal(*words, "--json").value["plan"]
    assert plan.pop("counts") == [
        {"operation": "extend", "model": "V5", "jobs": 2},
        {"operation": "extend", "model": "V4", "jobs": 2},
    ]
    assert plan == {"jobs": 4, "new": 3, "duplicates": 1, "credits": 36.0, "credits_left": 988.0}
    manifest.write_text(manifest.read_text().replace("track0,a0", "track0,other"))
    edited = "1 row differs from what is on record under the same id, which stays: an edited row needs a new id"
    assert f"note: {edited}\n" in terminal(*words[:-1]).err
    assert terminal(*words, "--json").value["plan"]["edited"] == 1
    tracks(manifest, 300)  # more than are looked up at once
    plan = terminal(*words, "--json").value["plan"]
    assert (plan["jobs"], plan["new"]) == (300, 299)


def test_songs_that_are_cut_off_are_named_before_they_are_paid(
    terminal: Terminal, service: EmulatorHandle, tmp_path: Path, out: Path
) -> None:
    folder, data = tmp_path / "in", audio_files.flac()
    folder.mkdir()
    songs = [folder / f"{number}.flac" for number in range(6)]
    for song in songs:
        song.write_bytes(data[: len(data) // 2])
    words = ("batch", str(folder), "--out", str(out), *MUSIC)
    for more, after in (((), "new jobs will cost"), (("--dry-run",), "left on the account")):
        answer = terminal(*words, *more)
        said = (answer.err + answer.out).partition(after)[0]
        assert said.count(".flac is cut off: its header says 0:20") == 5
        assert "note: 1 more song is cut off" in said
    assert not service.ledger
    for song in songs[1:]:
        song.unlink()
    counts = [terminal(*words, "--yes", "--callbacks").err.count("cut off") for _ in range(2)]
    assert (counts, len(service.ledger)) == ([1, 0], 1)
    songs[0].write_bytes(data[: len(data) // 14])
    answer = terminal(*words, "--yes")
    assert (answer.code, "less than 2 s of it are left; get the whole file" in answer.err) == (2, True)


def test_a_journal_without_jobs_knows_none(
    terminal: Terminal, service: EmulatorHandle, tmp_path: Path, out: Path
) -> None:  # fmt: skip
    empty = tmp_path / "none"
    empty.mkdir()
    words = ("--out", str(out), "--callbacks")
    assert terminal("batch", "--yes", str(tracks(tmp_path / "jobs.csv", 0)), *words).code in {0, 2}
    service.top_up(1)
    answer = terminal("batch", str(tracks(tmp_path / "jobs.csv", 2)), *words, "--dry-run", "--json")
    assert answer.value["plan"]["new"] == 2


def test_a_rehearsal_without_a_key_shows_the_plan_first(terminal: Terminal, tmp_path: Path, out: Path) -> None:
    answer = terminal("batch", str(tracks(tmp_path / "jobs.csv", 2)), "--out", str(out), "--dry-run")
    assert answer.code == 5
    assert "2  of 2 jobs are new" in answer.out
    assert "KIE_API_KEY" in answer.err


def test_all_faults_are_shown_with_their_lines(terminal: Terminal, tmp_path: Path, out: Path) -> None:
    manifest = tmp_path / "jobs.csv"
    manifest.write_text("audio_id,model,style_weight\na,V5,2\nb,v9,\nc,V5,\n")
    words = ("batch", "--yes", str(manifest), "--out", str(out))
    answer = terminal(*words)
    assert answer.code == 2
    assert [line.split(":")[:3] for line in answer.err.splitlines()] == [
        ["error", " line 2", " style_weight"],
        ["error", " line 3", " model"],
    ]
    error = terminal(*words, "--json").value["error"]
    assert error["type"] == "ManifestError"
    assert error["count"] == 2
    assert [(fault["line"], fault["field"]) for fault in error["faults"]] == [(2, "style_weight"), (3, "model")]
    assert not out.exists()


def test_faults_of_the_options_are_worded_as_options(terminal: Terminal, tmp_path: Path, out: Path) -> None:
    words = ("batch", "--yes", str(tracks(tmp_path / "jobs.csv", 1)), "--out", str(out), "--at", "soon")
    answer = terminal(*words)
    assert answer.code == 2
    assert answer.err.startswith("error: --at is 'soon'; write 45.5")


def test_more_faults_than_can_be_shown(terminal: Terminal, tmp_path: Path, out: Path) -> None:
    manifest = tmp_path / "jobs.csv"
    manifest.write_text("audio_id,model\n" + "a,v9\n" * 105)
    answer = terminal("batch", "--yes", str(manifest), "--out", str(out))
    assert answer.code == 2
    told = answer.err.splitlines()
    assert len(told) == 101
    assert told[-1] == "error: and 5 more"


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--json", "--jsonl"), "--jsonl"),
        (("--bind", ":80"), "--bind is given without --callbacks"),
        (("--journal", "postgresql:///kie", "--emulate"), "--emulate is for one process"),
        (("--journal", "dbname=kie password=hush"), "--journal is neither a path nor postgresql://"),
        (("--max-credits", "-5"), "--max-credits"),
    ],
)
def test_what_makes_no_sense_is_refused(
    terminal: Terminal, tmp_path: Path, out: Path, words: tuple[str, ...], says: str
) -> None:
    answer = terminal("batch", "--yes", str(tracks(tmp_path / "jobs.csv", 1)), "--out", str(out), *words)
    assert answer.code == 2
    assert says in answer.err
    assert "hush" not in answer.err


def test_no_manifest(terminal: Terminal, tmp_path: Path, out: Path) -> None:
    answer = terminal("batch", "--yes", str(tmp_path / "none.csv"), "--out", str(out))
    assert answer.code == 2
    assert "does not exist" in answer.err


# ---------------------------------------------------------------- asking


class Keyboard(StringIO):
    """A terminal at which somebody types."""

    def isatty(self) -> bool:
        return True


class Silence(Keyboard):
    """One at which Ctrl-C is typed."""

    def readline(self, size: int = -1, /) -> str:  # type: ignore[override]  # noqa: ARG002  # as the one it replaces
        signal.raise_signal(signal.SIGINT)
        return ""


def test_nothing_is_spent_unasked_where_there_is_no_terminal(
    terminal: Terminal, service: EmulatorHandle, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, out: Path
) -> None:
    words = ("batch", str(tracks(tmp_path / "jobs.csv", 2)), "--out", str(out), "--callbacks")
    for stdin in (None, StringIO("y\n"), StringIO("")):
        monkeypatch.setattr(sys, "stdin", stdin)
        answer = terminal(*words)
        assert answer.code == 2
        assert "2 new jobs will cost about 24 credits: nothing was done; if that is meant, give --yes" in answer.err
    assert not service.arrivals
    assert not out.exists()
    assert terminal(*words, "--yes", "--max-credits", "12").code == 4
    answer = terminal(*words)  # what is planned already is not paid yet
    assert answer.code == 2
    assert "1 new job will cost about 12 credits" in answer.err
    assert len(service.ledger) == 1
    assert terminal(*words, "--yes").code == 0
    assert terminal(*words).code == 0  # there is nothing to pay
    assert len(service.ledger) == 2


def test_the_question_speaks_of_the_cap(
    terminal: Terminal, service: EmulatorHandle, tmp_path: Path, out: Path
) -> None:  # fmt: skip
    words = ("batch", str(tracks(tmp_path / "jobs.csv", 30)), "--out", str(out), "--max-credits")
    assert "30 new jobs will cost at most 60 credits (--max-credits): nothing was done" in terminal(*words, "60").err
    assert "30 new jobs will cost about 360 credits: nothing was done" in terminal(*words, "360").err
    assert not service.arrivals


def test_a_terminal_is_asked_for_any_number_of_jobs(
    terminal: Terminal, service: EmulatorHandle, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, out: Path
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setenv("TERM", "dumb")
    words = ("batch", str(tracks(tmp_path / "jobs.csv", 1)), "--out", str(out), "--callbacks")
    for typed in ("n\n", "", "yep\n"):
        monkeypatch.setattr(sys, "stdin", Keyboard(typed))
        answer = terminal(*words)
        assert answer.code == 2
        assert "1 new job will cost about 12 credits: go on? [y/N]" in answer.err
        assert "not agreed: nothing was done" in answer.err
    monkeypatch.setattr(sys, "stdin", Silence())
    before = signal.getsignal(signal.SIGINT)
    assert terminal(*words).code == 130
    assert signal.getsignal(signal.SIGINT) is before
    assert not out.exists()
    assert not service.arrivals
    monkeypatch.setattr(sys, "stdin", Keyboard("Y\n"))
    assert terminal(*words).code == 0
    assert len(service.ledger) == 1


# ---------------------------------------------------------------- what goes wrong


def test_failures_are_told_and_end_with_3(
    terminal: Terminal, service: EmulatorHandle, tmp_path: Path, out: Path
) -> None:
    faults = (Fault("failed", nth=1), Fault("code", code=422, nth=2))
    service.add_faults(*faults)
    journal = tmp_path / "jobs.sqlite"
    words = ("batch", str(tracks(tmp_path / "jobs.csv", 3)), "--out", str(out), "--callbacks", "--yes")
    answer = terminal(*words, "--journal", str(journal))
    assert answer.code == 3
    assert len(paths(answer)) == 2
    assert "2 jobs failed or were refused" in answer.err
    assert f"kie-async jobs list --state failed --state rejected --journal {journal} --out '{out}'" in answer.err
    service.remove_faults(*faults)
    value = terminal(*words, "--journal", str(journal), "--json").value
    assert value["error"]["type"] == "KieError"
    assert value["counts"]["failed"] == 2
    assert value["troubles"] == []


def test_an_unknown_outcome_ends_with_7(
    terminal: Terminal, service: EmulatorHandle, tmp_path: Path, out: Path
) -> None:  # fmt: skip
    service.add_faults(Fault("lost"))
    words = ("batch", "--yes", str(tracks(tmp_path / "jobs.csv", 1)), "--out", str(out))
    answer = terminal(*words, "--json")
    assert answer.code == 7
    (trouble,) = answer.value["troubles"]
    assert (trouble["state"], trouble["error"]["charged"]) == ("unknown", "maybe")
    service.remove_faults(Fault("lost"))
    again = terminal(*words)
    assert again.code == 7
    assert "what became of 1 job is not known" in again.err
    assert f"kie-async jobs resolve KEY --task-id ID --out '{out}'" in again.err
    assert len(service.ledger) == 1


def test_no_credits_end_with_4_and_the_line_that_goes_on(
    terminal: Terminal, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, out: Path
) -> None:
    with served(monkeypatch, credits=24.0) as service:
        words = ("batch", "--yes", str(tracks(tmp_path / "jobs.csv", 3)), "--out", str(out), "--callbacks")
        answer = terminal(*words)
        assert answer.code == 4
        assert "top up at https://kie.ai, then go on" in answer.err
        line = answer.err.splitlines()[-1].strip()
        assert line == shlex.join(["kie-async", *words])
        assert "1 waiting, 2 done" in answer.err
        service.top_up(100)
        assert terminal(*shlex.split(line)[1:]).code == 0
        assert len(service.ledger) == 3


def test_the_cap_ends_with_4(terminal: Terminal, service: EmulatorHandle, tmp_path: Path, out: Path) -> None:
    words = ("batch", "--yes", str(tracks(tmp_path / "jobs.csv", 3)), "--out", str(out), "--callbacks")
    assert terminal(*words, "--max-credits", "25").code == 4
    assert len(service.ledger) == 2
    assert terminal(*words, "--max-credits", "36").code == 0
    assert len(service.ledger) == 3


def test_a_wrong_key_ends_with_5(terminal: Terminal, service: EmulatorHandle, tmp_path: Path, out: Path) -> None:
    service.add_faults(Fault("code", code=401))
    answer = terminal("batch", "--yes", str(tracks(tmp_path / "jobs.csv", 3)), "--out", str(out))
    assert answer.code == 5
    assert "3 waiting" in answer.err
    assert not service.ledger


@pytest.mark.parametrize("yes", [(), ("--yes",)])
def test_no_key_ends_with_5(terminal: Terminal, tmp_path: Path, out: Path, yes: tuple[str, ...]) -> None:
    answer = terminal("batch", *yes, str(tracks(tmp_path / "jobs.csv", 3)), "--out", str(out))
    assert answer.code == 5
    assert "KIE_API_KEY" in answer.err


def test_a_damaged_journal_ends_with_8(
    terminal: Terminal, service: EmulatorHandle, tmp_path: Path, out: Path
) -> None:  # fmt: skip
    out.mkdir()
    (out / "kie-async.sqlite").write_bytes(b"not a journal" * 100)
    answer = terminal("batch", str(tracks(tmp_path / "jobs.csv", 3)), "--out", str(out), "--yes")
    assert answer.code == 8
    assert "Put back a copy" in answer.err
    assert not service.ledger


def test_a_track_that_cannot_be_fetched_ends_with_8(
    terminal: Terminal, service: EmulatorHandle, tmp_path: Path, out: Path
) -> None:
    service.add_faults(Fault("page"))
    words = ("batch", "--yes", str(tracks(tmp_path / "jobs.csv", 2)), "--out", str(out), "--callbacks")
    answer = terminal(*words)
    assert answer.code == 8
    assert "the tracks of 2 jobs could not be fetched" in answer.err
    service.remove_faults(Fault("page"))
    assert terminal(*words).code == 0
    assert len(service.ledger) == 2


def test_two_at_once_do_not_run_the_same_batch(
    terminal: Terminal, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, out: Path
) -> None:
    words = ("batch", "--yes", str(tracks(tmp_path / "jobs.csv", 2)), "--out", str(out), "--callbacks")
    with served(monkeypatch, speed=1.0) as service, started(*words, "--jsonl", env=environment(service)) as other:
        assert other.stdout is not None
        assert json.loads(other.stdout.readline())["state"] == "submitted"
        answer = terminal(*words)
        assert answer.code == 8
        assert "in the hands of" in answer.err


def test_the_password_of_a_database_is_never_shown(
    terminal: Terminal, tmp_path: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KIE_API_KEY", "a-key-of-some-length")
    for place in ("postgresql://kie:hush-7f3a@127.0.0.1:1/kie", "postgresql://127.0.0.1:1/kie?password=hush-7f3a"):
        words = ("batch", str(tracks(tmp_path / "jobs.csv", 2)), "--out", str(out), "--yes", "-v")
        for given in (("--journal", place), (f"--journal={place}",)):
            answer = terminal(*words, *given)
            assert answer.code == 8
            assert '--journal="$KIE_JOURNAL"' in answer.err.replace("--journal ", "--journal=")
            assert "hush" not in answer.err + answer.out
    answer = terminal(
        "batch", "--yes", str(tmp_path / "jobs.csv"), "--out", str(out), "--journal", "postgresql://[x/y", "-v"
    )
    assert answer.code in {2, 8}
    assert "[x" not in answer.err.splitlines()[-1]


def test_what_another_batch_has_is_left_to_it(
    terminal: Terminal, service: EmulatorHandle, tmp_path: Path, out: Path
) -> None:  # fmt: skip
    words = (
        "batch",
        "--yes",
        str(tracks(tmp_path / "jobs.csv", 2)),
        "--callbacks",
        "--journal",
        str(tmp_path / "jobs.sqlite"),
    )
    out = out.with_name(os.fsdecode(b"no text: \x80"))
    assert terminal(*words, "--out", str(out)).code == 0
    listed = terminal("jobs", "list", *words[-2:], "--out", str(out)).out.splitlines()
    assert [line.endswith(r"/no text: \udc80") for line in listed] == [True, True]
    answer = terminal(*words, "--out", str(tmp_path / "elsewhere"))
    assert answer.code == 0
    assert "left to another batch of this journal: 2 jobs" in answer.err
    assert len(service.ledger) == 2


@pytest.mark.parametrize(
    ("counts", "code"),
    [
        (Counts(done=3, abandoned=1), 0),
        (Counts(failed=1, unknown=1, made=1), 7),
        (Counts(failed=1, submitted=1, made=1), 8),
        (Counts(failed=1, submitted=1), 6),
        (Counts(failed=1, waiting=1), 6),
        (Counts(failed=1, done=1), 3),
    ],
)
def test_what_matters_most_decides_how_it_ends(counts: Counts, code: int) -> None:
    error = batch_error(counts, "--out new", "kie-async batch songs --out new")
    assert exit_status(error).code == code
    assert error is None or "kie-async" in error.__notes__[0]


# ---------------------------------------------------------------- stopped and taken up, as a user does


def test_ctrl_c_in_the_middle_and_the_line_that_goes_on(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, out: Path
) -> None:
    with served(monkeypatch, speed=STEADY) as service:
        batch = ("batch", "--yes", str(short_songs(tmp_path / "my songs", 10)), "--out", str(out))
        answer = interrupted(service, *batch, *MUSIC, "--callbacks", "--report")
        assert answer.code == 130
        assert f"compare the takes: {out / 'report.html'}" in answer.err
        assert data_of(out / "report.html")["jobs"]
        assert "Traceback" not in answer.err
        assert "stopped by Ctrl-C" in answer.err
        line = answer.err.splitlines()[-1].strip()
        with started(*shlex.split(line)[1:], env=environment(service)) as process:
            again = ended(process)
        assert again.code == 0
        assert "10 done, 0 failed of 10 jobs" in again.err
        assert len(list(out.glob("*.mp3"))) == 20
        assert len(service.ledger) == 10


def test_sigterm_does_the_same(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, out: Path) -> None:
    with served(monkeypatch, speed=STEADY) as service:
        words = ("batch", "--yes", str(tracks(tmp_path / "jobs.csv", 4)), "--out", str(out), "--callbacks", "--report")
        answer = interrupted(service, *words, number=signal.SIGTERM)
        assert answer.code == 130
        assert data_of(out / "report.html")["jobs"]
        assert "stopped by SIGTERM" in answer.err
        assert answer.err.splitlines()[-1].strip() == shlex.join(["kie-async", *words])


def test_an_emulator_that_ended_cannot_be_gone_on_with(tmp_path: Path, out: Path) -> None:
    words = ("batch", str(tracks(tmp_path / "jobs.csv", 20)), "--out", str(out), "--emulate", "--jsonl")
    with started(*words, env=environment()) as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.send_signal(signal.SIGINT)
        answer = ended(process)
    assert answer.code == 130
    assert "run 'kie-async emulate' in another terminal" in answer.err


@pytest.mark.parametrize("is_submitted", [True, False])
def test_tasks_of_an_emulator_that_ended_are_not_followed(
    terminal: Terminal, tmp_path: Path, out: Path, *, is_submitted: bool
) -> None:
    async def fill() -> None:
        out.mkdir()
        async with SQLiteJournal(out / "kie-async-emulated.sqlite") as journal:
            await journal.add([Job(key="track0", request=kie.ExtendRequest("a0", model="V5"), batch=OWN_BATCH)])
            if is_submitted:
                await journal.intend("track0", "t" * 32)
                await journal.move("track0", State.SUBMITTED, task_id="gone")

    asyncio.run(fill())
    answer = terminal("batch", str(tracks(tmp_path / "jobs.csv", 1)), "--out", str(out), "--emulate")
    assert answer.code == (2 if is_submitted else 0)
    told = "1 job on record was submitted before, and the emulator and its tasks are gone"
    assert (told in answer.err) == ("give another --out" in answer.err) == is_submitted


def test_a_reader_who_goes_away_stops_nothing(service: EmulatorHandle, tmp_path: Path, out: Path) -> None:
    words = ("batch", "--yes", str(tracks(tmp_path / "jobs.csv", 3)), "--out", str(out), "--callbacks")
    with started(*words, env=environment(service)) as process:
        assert process.stdout is not None
        process.stdout.close()
        process.stdout = None
        assert ended(process).code == 141
    assert len(list(out.glob("*.mp3"))) == 6


# ---------------------------------------------------------------- the table


def test_a_real_terminal_shows_a_table(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, out: Path) -> None:
    words = ("batch", "--yes", str(tracks(tmp_path / "jobs.csv", 3)), "--out", str(out), "--callbacks")
    with served(monkeypatch, speed=STEADY) as service:
        answer, shown = ended_on_terminal(*words, env=environment(service, COLUMNS="100"))
    assert answer.code == 0
    assert b"waiting" in shown
    assert b" of 20" in shown
    assert b"Traceback" not in shown
    assert "\x1b" not in answer.out


def test_a_terminal_that_is_not_read_does_not_stop_the_work(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, out: Path
) -> None:  # fmt: skip
    words = ("batch", "--yes", str(tracks(tmp_path / "jobs.csv", 1)), "--out", str(out), "--callbacks")
    ours, theirs = full_terminal()
    with (
        served(monkeypatch) as service,
        started(*words, env=environment(service, TERM="xterm"), stdout=theirs, stderr=theirs) as process,
    ):
        os.close(theirs)
        while len(list(out.glob("*.mp3"))) < 2:
            assert process.poll() is None
            time.sleep(0.01)  # the process needs the time
        shown = b""
        with suppress(OSError):  # EIO: nobody has the terminal open any more
            while piece := os.read(ours, 4096):
                shown += piece
        assert ended(process).code == 0
    os.close(ours)
    assert shown.count(b"track0-") == 2
    assert b"1 done" in shown


def test_sigterm_ends_a_batch_whose_terminal_is_not_read(
    terminal: Terminal, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, out: Path
) -> None:
    words = ("batch", "--yes", str(tracks(tmp_path / "jobs.csv", 1)), "--out", str(out), "--callbacks")
    ours, theirs = full_terminal()
    with (
        served(monkeypatch, speed=1.0) as service,
        started(*words, env=environment(service, TERM="xterm"), stdout=theirs, stderr=theirs) as process,
    ):
        while not service.ledger:
            assert process.poll() is None
            time.sleep(0.01)  # the process needs the time
        process.send_signal(signal.SIGTERM)
        assert ended(process).code == 130
    os.close(ours)
    os.close(theirs)
    assert " submitted " in terminal("jobs", "list", "--out", str(out)).out


@pytest.mark.parametrize("more", [{}, {"NO_COLOR": "1"}, {"COLUMNS": "20"}])
def test_tables_of_all_kinds(
    terminal: Terminal, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, out: Path, more: dict[str, str]
) -> None:
    for name, value in {"FORCE_COLOR": "1", "TERM": "xterm", **more}.items():
        monkeypatch.setenv(name, value)
    manifest = tracks(tmp_path / "jobs.csv", 2)
    with served(monkeypatch, speed=STEADY):
        answer = terminal("batch", str(manifest), "--out", str(out), "--callbacks", "--yes")
    assert answer.code == 0, answer.err
    assert "\x1b[?25l" in answer.err
    assert "\x1b[?25h" in answer.err
    assert len(paths(answer)) == 4


@pytest.mark.parametrize("columns", [40, 60, 100])
def test_a_narrow_terminal_shows_whole_words(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, columns: int
) -> None:
    for name, value in {"FORCE_COLOR": "1", "TERM": "xterm", "COLUMNS": str(columns)}.items():
        monkeypatch.setenv(name, value)
    display, counts = ProgressDisplay(), Counts(submitted=2)
    display.show(progress_table(counts, "2 of 20", 90.0), progress_line(counts, "2 of 20", 90.0))
    display.stop()
    shown = " ".join(capsys.readouterr().err.split())
    assert "submitted" in shown
    assert "1 min" in shown  # nothing is cut off
    for name in ("quota", "waiting"):
        assert (name in shown) == (columns == 100)  # only the table names what is 0


def test_what_no_song_has_is_said_once(terminal: Terminal, tmp_path: Path, out: Path) -> None:
    answer = terminal("batch", str(short_songs(tmp_path / "in", 3)), "--out", str(out), "--emulate")
    assert answer.code == 2
    words = "give 45.5, 10s, 1:05 or 1m05s, 75%, or -10s (before the end)"
    assert answer.err == f"error: --at is missing; an upload needs it: {words}\n"
    rows = "source\n" + "".join(f"in/song {number}.wav\n" for number in range(3))
    (tmp_path / "jobs.csv").write_text(rows)
    answer = terminal("batch", str(tmp_path / "jobs.csv"), "--out", str(out), "--emulate", "--json")
    (fault,) = answer.value["error"]["faults"]
    assert (fault["location"], fault["field"], answer.value["error"]["count"]) == ("every row", "continue_at", 1)


def test_a_field_of_the_other_route_has_the_option_as_its_remedy(terminal: Terminal, tmp_path: Path, out: Path) -> None:
    folder = short_songs(tmp_path / "in", 1)
    (tmp_path / "jobs.csv").write_text(f"source,style,title,lyrics\n{folder}/song 0.wav,s,t,la\n")
    answer = terminal("batch", str(tmp_path / "jobs.csv"), "--out", str(out), "--at", "1", "--emulate")
    assert answer.code == 2
    assert "lyrics: is not known to the classic route; use --route jobs, or leave it out" in answer.err


def test_a_folder_without_songs_speaks_of_songs(terminal: Terminal, tmp_path: Path, out: Path) -> None:
    answer = terminal("batch", str(short_songs(tmp_path / "in", 0)), "--out", str(out), *MUSIC, "--emulate")
    assert answer.code == 2
    assert answer.err.startswith("error: in: holds no songs; put some into it (mp3, wav,")
    assert "pattern" not in answer.err


def test_the_end_is_expected_by_the_quota_or_by_what_was_seen() -> None:
    def seconds_left(counts: Counts, *, waiting: int, elapsed: float, ended: float, age: float) -> float:
        estimate = Estimate()
        estimate.begin(Counts(waiting=waiting), 1000.0)
        estimate.submitted(1000.0 + elapsed - age)
        estimate.ended(ended)
        return estimate.seconds_left(counts, 1000.0 + elapsed)

    assert seconds_left(Counts(done=5, failed=2), waiting=7, elapsed=60.0, ended=120.0, age=60.0) == 0.0
    assert seconds_left(Counts(submitted=5), waiting=0, elapsed=1.0, ended=120.0, age=20.0) == 100.0
    assert seconds_left(Counts(submitted=5), waiting=0, elapsed=1.0, ended=120.0, age=200.0) == 0.0
    assert seconds_left(Counts(made=5), waiting=0, elapsed=1.0, ended=120.0, age=0.0) == 0.0
    assert seconds_left(Counts(waiting=40), waiting=40, elapsed=0.0, ended=100.0, age=0.0) == 120.0
    assert seconds_left(Counts(waiting=40), waiting=60, elapsed=40.0, ended=100.0, age=0.0) == 180.0


def test_the_estimate_follows_the_tasks() -> None:
    estimate, counts = Estimate(), Counts(submitted=100)
    assert estimate.seconds_left(counts, 1000.0) == 120.0
    assert estimate.quota_used(1000.0) == 0
    for _ in range(3):
        estimate.submitted(1000.0)
    for seconds in (10.0, 30.0):
        estimate.ended(seconds)
    assert (estimate.quota_used(1000.0), estimate.seconds_left(counts, 1000.0)) == (3, 20.0)
    assert (estimate.quota_used(1011.0), estimate.seconds_left(counts, 1011.0)) == (0, 9.0)


def test_progress_in_a_line() -> None:
    counts = Counts(waiting=600, submitted=100, done=3, unknown=1)
    line = "600 waiting, 100 submitted, 3 done, 0 failed, 1 unknown; 0 of 20 submissions allowed in 10 s are used"
    assert progress_line(counts, "0 of 20", 420.0) == f"{line}; ends in 7 min"
    assert progress_line(counts, "0 of 20", 0.4) == f"{line}; ends in 1 s"
    assert progress_line(counts, "0 of 20", 7199.0) == f"{line}; ends in 119 min"
    assert progress_line(counts, "0 of 20", 50_120.0) == f"{line}; ends in 13 h"
    assert progress_line(counts, "0 of 20", 0.0) == line
    assert progress_line(Counts(made=100), "0 of 20", 0.0) == "100 made, 0 done, 0 failed"
    assert Counts(waiting=100_000).total == 100_000
    assert Counts(done=1).summary == "1 done, 0 failed of 1 job"
    assert Counts(done=1, failed=1).summary == "1 done, 1 failed of 2 jobs"


@pytest.mark.usefixtures("wide_quota")
def test_only_the_first_troubles_are_kept(
    terminal: Terminal, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, out: Path
) -> None:
    async def serve(ready: Callable[[], None]) -> None:
        async with emulator.serve(faults=[Fault("code", code=422)], rules=Rules(quota=1000)) as service:
            monkeypatch.setenv("KIE_BASE_URL", service.base_url)
            monkeypatch.setenv("KIE_API_KEY", service.key)
            ready()
            await asyncio.Event().wait()

    words = ("batch", str(tracks(tmp_path / "jobs.csv", 101)), "--out", str(out), "--yes", "--json")
    answer = terminal(*words, loop_factory=lambda: virtual_loop(serve))
    assert answer.code == 3
    assert len(answer.value["troubles"]) == 100
    assert answer.value["counts"]["failed"] == 101
