"""``worker``, and ``batch`` on a database that is shared."""

from __future__ import annotations

import asyncio
import os
import shlex
import signal
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from command_line import Terminal, ended, environment, interrupted, lines, served, short_songs, started

import kie_async as kie
from kie_async.emulator import Fault
from kie_async.journal import Job
from kie_async.settings import machine_name
from kie_async.testing import EmulatorHandle

MUSIC = ("--at", "50%", "--instrumental", "--style", "folk", "--title", "Longer", "--callbacks")
STEADY = 150.0  # of an emulator: a task takes about a second


@pytest.fixture(autouse=True)
def _no_journal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KIE_JOURNAL", raising=False)


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
    return short_songs(tmp_path / "my songs", 10)


def first_line(process: subprocess.Popen[bytes]) -> str:
    """The first line on stdout."""
    assert process.stdout is not None
    return process.stdout.readline().decode()


def test_ctrl_c_in_the_middle_and_the_line_that_goes_on(
    service: EmulatorHandle, database_url: str, songs: Path, out: Path
) -> None:
    database_url += "&sslpassword=hush-7f3a"
    answer = interrupted(service, "batch", "--yes", str(songs), "--out", str(out), *MUSIC, "--journal", database_url)
    assert answer.code == 130
    assert "hush" not in answer.err
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
    terminal: Terminal, service: EmulatorHandle, database_url: str, songs: Path, number: signal.Signals
) -> None:
    env = environment(service, KIE_JOURNAL=database_url)
    assert terminal("batch", "--enqueue", "--yes", str(songs), *MUSIC[:-1], "--journal", database_url).code == 0
    with started("worker", "--out", str(songs.parent / "new songs"), "--at-once", "1", env=env) as worker:
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
    words = ("batch", "--yes", str(songs), "--out", str(out / "b"), "--journal", database_url, *MUSIC[:-1])
    journal = f"--journal {shlex.quote(database_url)}"
    elsewhere, enqueued = terminal(*words), terminal(*words, "--enqueue")
    assert elsewhere.code == enqueued.code == 0
    left = f"left to another batch of this journal: 2 jobs; all are listed by: kie-async jobs list {journal}\n"
    assert left in elsewhere.err
    assert left in enqueued.err
    assert enqueued.err.endswith(f"wait for them: kie-async jobs wait {journal}\n")  # those of no batch in particular
    assert terminal("jobs", "list", *place, "--state", "delivered").out.count("delivered") == 2
    assert not terminal("jobs", "list", "--out", str(out / "b"), "--journal", database_url).out


# ---------------------------------------------------------------- a queue that is only filled


def test_what_was_enqueued_is_made_by_a_worker(
    terminal: Terminal, service: EmulatorHandle, database_url: str, songs: Path, out: Path
) -> None:
    machine = machine_name()
    for song in sorted(songs.iterdir())[2:]:
        song.unlink()
    place = ("--out", str(out), "--journal", database_url)
    answer = terminal("batch", str(songs), *MUSIC[:-1], "--enqueue", "--yes", *place)
    assert answer.code == 0
    assert not answer.out
    assert answer.err.splitlines() == [
        "on record: 2 jobs, of which 2 are new",
        f"the songs are files of this machine ({machine}): they need a worker here, which uploads them",
        "if every machine finds them at the same paths, give --shared-files",
        f"make them: kie-async worker --journal {shlex.quote(database_url)} --out DIR",
        f"wait for them: kie-async jobs wait --journal {shlex.quote(database_url)} --out '{out}'",
    ]
    assert not service.arrivals
    assert not out.exists()
    with started("jobs", "wait", *place, env=environment(service)) as waiting:
        lines(waiting, until=b"2 waiting")
        assert terminal("worker", *place, "--until-done", "--callbacks").code == 0
        answer = ended(waiting)
    assert answer.code == 0
    assert answer.err.splitlines()[-1] == "2 done, 0 failed of 2 jobs"
    rows = [line.split("  ") for line in terminal("jobs", "results", *place).out.splitlines()]
    assert {row[1] for row in rows} == {"song 0", "song 1"}
    assert {row[-1] for row in rows} == set(map(str, out.glob("*.mp3")))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KIE_MACHINE", "another")
        rows = [line.split("  ") for line in terminal("jobs", "results", *place).out.splitlines()]
    assert {row[-1] for row in rows} == {f"{machine}:{path}" for path in out.glob("*.mp3")}
    assert all(line.endswith(f"  in {machine}:{out}") for line in terminal("jobs", "list", *place).out.splitlines())
    assert len(service.ledger) == 2


def test_enqueuing_needs_no_key_and_is_done_once(
    terminal: Terminal, monkeypatch: pytest.MonkeyPatch, database_url: str, tmp_path: Path
) -> None:
    secret = f"{database_url}&sslpassword=hush-7f3a"
    monkeypatch.setenv("KIE_JOURNAL", secret)
    monkeypatch.delenv("KIE_API_KEY", raising=False)
    manifest = tmp_path / "jobs.csv"
    manifest.write_text("id,audio_id,model\none,a1,V5\n")
    words = ("batch", str(manifest), "--enqueue")
    answer = terminal(*words)
    assert answer.code == 2
    assert "1 new job will cost about 12 credits: nothing was done; if that is meant, give --yes" in answer.err
    assert not terminal("jobs", "list").out
    answer = terminal(*words, "--yes")
    assert answer.code == 0
    assert answer.err.splitlines() == [
        "on record: 1 job, of which 1 is new",
        'make them: kie-async worker --journal "$KIE_JOURNAL" --out DIR',
        'wait for them: kie-async jobs wait --journal "$KIE_JOURNAL"',
    ]
    assert terminal(*words, "--yes", "--json").value == {"jobs": 1, "new": 0}
    given = terminal(*words, "--yes", "--journal", f"{secret}&application_name=other")  # not what the variable says
    assert "hush" not in given.err
    assert given.err.splitlines()[1] == "set KIE_JOURNAL to the address you gave, which may hold a password; then"
    assert terminal("jobs", "list").out == "one  planned\n"
    assert terminal("jobs", "wait", "--timeout", "0").code == 6


def test_workers_leave_the_tasks_of_programs_until_they_are_enqueued(
    terminal: Terminal, service: EmulatorHandle, database_url: str, tmp_path: Path, out: Path
) -> None:
    async def submit() -> None:
        async with kie.KieSession(journal=database_url) as session:
            await (await session.extend("a1", model="V5"))
            assert session.journal is not None
            await session.journal.add([Job(key="jobs-1", request=kie.ExtendRequest("a2", model="V5"))])

    asyncio.run(submit())
    place = ("--journal", database_url)
    enqueue = ("batch", tracks(tmp_path / "jobs.csv", 1), "--enqueue", *place)
    assert terminal(*enqueue, "--yes").code == 0
    answer = terminal("jobs", "wait", *place, "--timeout", "0")
    assert "1 waiting, 0 done, 0 failed of 1 job" in answer.err
    answer = terminal("worker", *place, "--out", str(out), "--until-done")
    assert (answer.code, answer.err.splitlines()[-1]) == (0, "1 done, 0 failed of 1 job")
    followed = "not waited for: 1 task that programs follow\n"
    assert terminal("jobs", "wait", *place, "--timeout", "0").err == f"1 done, 0 failed of 1 job\n{followed}"
    assert len(service.ledger) == 2

    enqueue = ("batch", tracks(tmp_path / "jobs.csv", 2), "--enqueue", *place)
    assert "1 new job will cost about 12 credits" in terminal(*enqueue).err
    noted, added, *_ = terminal(*enqueue, "--yes").err.splitlines()
    assert "1 row differs from what is on record under the same id" in noted  # the program asked for another track
    assert added == "on record: 2 jobs, of which 0 are new"
    assert terminal("worker", *place, "--out", str(out), "--until-done").code == 0
    assert terminal("jobs", "wait", *place, "--timeout", "0").err == "2 done, 0 failed of 2 jobs\n"
    assert len(service.ledger) == 3


def test_what_is_enqueued_without_a_directory_is_a_batch_with_a_cap(
    terminal: Terminal, database_url: str, tmp_path: Path
) -> None:
    place = ("--journal", database_url)
    enqueue = ("batch", tracks(tmp_path / "jobs.csv", 1), "--enqueue", "--yes", *place, "--max-credits", "0")
    assert terminal(*enqueue).code == 0
    answer = terminal("jobs", "wait", *place)
    assert answer.code == 4
    assert "max_credits of the batch 'batch' is 0, and 0 are spent or reserved" in answer.err


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--enqueue", "--journal", "jobs.sqlite"), "--enqueue needs --journal postgresql://"),
        (("--enqueue", "--journal", "postgresql:///kie", "--jsonl"), "give --jsonl and --callbacks to them"),
        (("--enqueue", "--journal", "postgresql:///kie", "--callbacks"), "give --jsonl and --callbacks to them"),
        (("--journal", "jobs.sqlite"), "--out is missing"),
        (("--journal", " "), "--journal is empty: give a path or postgresql://..., or leave it out"),
    ],
)
def test_what_cannot_be_enqueued_is_refused(
    terminal: Terminal, tmp_path: Path, words: tuple[str, ...], says: str
) -> None:
    (tmp_path / "jobs.csv").write_text("id,audio_id,model\none,a1,V5\n")
    answer = terminal("batch", str(tmp_path / "jobs.csv"), "--yes", *words)
    assert answer.code == 2
    assert says in answer.err


def test_a_request_that_the_route_refuses_is_not_enqueued(
    terminal: Terminal, database_url: str, songs: Path, tmp_path: Path
) -> None:
    manifest = tmp_path / "jobs.csv"
    manifest.write_text(f"source,style,title,lyrics\n{songs}/song 0.wav,s,t,la\n")
    words = ("batch", str(manifest), "--at", "1", "--enqueue", "--yes", "--journal", database_url)
    answer = terminal(*words)
    assert answer.code == 2
    assert "use --route jobs" in answer.err
    assert not terminal("jobs", "list", "--journal", database_url).out
    assert terminal(*words, "--route", "jobs").code == 0


# ---------------------------------------------------------------- a cap that all workers keep


def tracks(path: Path, number: int) -> str:
    """A manifest of tracks of the service, whose extensions are short."""
    fields = "V5,1,folk,Longer,true"
    rows = [f"{path.stem}-{each},a{each},{fields}" for each in range(number)]
    path.write_text("\n".join(("id,audio_id,model,continue_at,style,title,instrumental", *rows)))
    return str(path)


def test_workers_keep_the_cap_of_a_batch_together(
    terminal: Terminal, service: EmulatorHandle, database_url: str, tmp_path: Path, out: Path
) -> None:
    place = ("--out", str(out), "--journal", database_url)
    enqueue = ("batch", tracks(tmp_path / "jobs.csv", 6), "--yes", "--enqueue", *place, "--max-credits")
    assert terminal(*enqueue, "36").code == 0
    with ExitStack() as stack:
        env = environment(service)
        workers = [stack.enter_context(started("worker", *place, "--until-done", env=env)) for _ in range(2)]
        answers = [ended(worker) for worker in workers]
    assert [answer.code for answer in answers] == [4, 4]
    assert all("is 36, and 36 are spent or reserved: nothing was sent; raise the cap" in each.err for each in answers)
    assert len(service.ledger) == 3
    with started("worker", *place, env=environment(service)) as idle:
        assert "ends in" not in lines(idle, until=b"; a cap on credits leaves no room")
        idle.terminate()
        ended(idle)
    waiting = terminal("jobs", "wait", *place)
    assert waiting.code == 4
    assert "with another --max-credits" in waiting.err
    assert terminal(*enqueue, "60").err.splitlines()[0] == "the cap is now 60 credits (36 before)"
    assert "the cap" not in terminal(*enqueue, "60").err
    answer = terminal("worker", *place, "--until-done", "--callbacks")
    assert answer.code == 4
    assert len(service.ledger) == 5
    refused = [line for line in answer.err.splitlines() if line.startswith("jobs-") and "planned" in line]
    assert len(refused) <= 1  # one job says it for all


def test_a_batch_over_its_cap_stops_no_other(
    terminal: Terminal, service: EmulatorHandle, database_url: str, tmp_path: Path, out: Path
) -> None:
    journal = ("--journal", database_url, "--yes")
    capped = ("batch", tracks(tmp_path / "capped.csv", 4), "--out", str(out / "capped"), *journal, "--callbacks")
    answer = terminal(*capped, "--max-credits", "12")
    assert answer.code == 4
    assert "raise --max-credits, then go on with the same command" in answer.err
    assert (
        sum("are spent or reserved" in line for line in answer.err.splitlines()) == 2
    )  # of the first job, and the end
    free = ("batch", tracks(tmp_path / "free.csv", 2), "--out", str(out / "free"), *journal, "--callbacks")
    assert terminal(*free).code == 0
    assert len(service.ledger) == 3
    assert terminal(*capped).code == 4  # it stays on record
    assert terminal(*capped, "--max-credits", "48").code == 0
    assert len(service.ledger) == 6


# ---------------------------------------------------------------- what goes wrong


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
