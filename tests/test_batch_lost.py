"""A batch whose journal was deleted, cut off, moved or replaced: told, never paid again, and there is a way on."""

from __future__ import annotations

import asyncio
import json
import shlex
import shutil
import signal
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from command_line import Answer, Terminal, ended, environment, served, short_song, started
from postgres import execute
from service import serving

import kie_async as kie
from kie_async.emulator import Fault, Rules
from kie_async.journal import Job
from kie_async.testing import EmulatorHandle

STEADY = 60.0  # of an emulator: a task takes one or two seconds
FILE = "kie-async.sqlite"


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "new songs"


def tracks(path: Path, count: int) -> Path:
    """Write a manifest that extends tracks of the service."""
    rows = [f"track{number},a{number},V5,1,s,t,yes\n" for number in range(count)]
    path.write_text("id,audio_id,model,continue_at,style,title,instrumental\n" + "".join(rows))
    return path


def charges(service: EmulatorHandle) -> Counter[str]:
    """How often each track was paid for."""
    return Counter(charge.body["audioId"] for charge in service.ledger)


def command(answer: Answer, word: str) -> list[str]:
    """The words of a command that was proposed."""
    (line,) = [line for line in answer.err.splitlines() if line.strip().startswith(f"kie-async {word}")]
    return shlex.split(line)[1:]


# ---------------------------------------------------------------- the contract of all stores

Lose = Callable[[], None]


@pytest.fixture(params=["embedded", "shared"])
def store(request: pytest.FixtureRequest, out: Path) -> tuple[list[str], Lose]:
    """Options that lead to a store, and how its jobs are lost."""
    if request.param == "embedded":
        return [], (out / FILE).unlink
    url = str(request.getfixturevalue("database_url"))

    def drop() -> None:
        execute(url, "DROP SCHEMA public CASCADE; CREATE SCHEMA public")

    return ["--journal", url], drop


def test_a_journal_that_was_lost_is_not_taken_for_new(
    terminal: Terminal, service: EmulatorHandle, tmp_path: Path, out: Path, store: tuple[list[str], Lose]
) -> None:
    options, lose = store
    manifest = tracks(tmp_path / "jobs.csv", 3)
    words = ["batch", str(manifest), "--out", str(out), *options, "--callbacks", "--yes"]
    service.add_faults(Fault("failed", nth=1))
    assert terminal(*words).code == 3
    before = charges(service)
    lose()
    tracks(manifest, 4)  # what the results do not name is made
    answer = terminal(*words)
    assert answer.code == 8
    assert "3 jobs were not submitted: the results name tasks that the journal has lost" in answer.err
    for charge in service.ledger[:3]:
        assert f"results.jsonl names task {charge.task_id}" in answer.err
    assert charges(service) == before + Counter(["a3"])
    assert terminal(*words).code == 8  # as often as it is called
    adopt = [each.replace("$KIE_JOURNAL", options[-1] if options else "") for each in command(answer, "jobs adopt")]
    adopted = terminal(*adopt, "--json")
    assert adopted.code == 0
    states = {each["key"]: (each["state"], each["task_id"]) for each in adopted.value["jobs"]}
    tasks = {charge.body["audioId"].replace("a", "track"): charge.task_id for charge in service.ledger[:3]}
    assert {key: task for key, (_, task) in states.items()} == tasks
    assert sorted(state for state, _ in states.values()) == ["delivered", "delivered", "failed"]
    again = terminal(*words)
    assert again.code == 3
    assert "3 done, 1 failed of 4 jobs" in again.err
    assert charges(service) == before + Counter(["a3"])
    assert "0 jobs taken in" in terminal(*adopt).err


def test_a_worker_names_the_way_to_adopt_what_the_journal_lost(
    terminal: Terminal, service: EmulatorHandle, database_url: str, tmp_path: Path, out: Path
) -> None:
    place = ("--journal", database_url)
    enqueue = ("batch", str(tracks(tmp_path / "jobs.csv", 2)), "--enqueue", "--yes", "--out", "named", *place)
    worker = ("worker", "--out", str(out), "--until-done", "--callbacks", *place)
    assert terminal(*enqueue).code == 0
    assert terminal(*worker).code == 0
    execute(database_url, "DROP SCHEMA public CASCADE; CREATE SCHEMA public")
    assert terminal(*enqueue).code == 0
    refused = terminal(*worker)
    assert refused.code == 8
    assert f"kie-async jobs adopt --out '{out}', with the same --journal" in refused.err
    assert "2 jobs were not submitted" in refused.err
    adopt = [each.replace("$KIE_JOURNAL", database_url) for each in command(refused, "jobs adopt")]
    assert "2 jobs taken in" in terminal(*adopt).err
    assert terminal(*adopt).err == f"0 jobs taken in: no planned job has a task in {out}\n"
    assert terminal(*worker).code == 0
    assert len(service.ledger) == 2


# ---------------------------------------------------------------- what the results say


@pytest.fixture
def finished(terminal: Terminal, service: EmulatorHandle, tmp_path: Path, out: Path) -> list[str]:
    """The words of a batch of two that is done, and whose journal is gone."""
    words = ["batch", str(tracks(tmp_path / "jobs.csv", 2)), "--out", str(out), "--callbacks", "--yes"]
    assert terminal(*words).code == 0
    assert len(service.ledger) == 2
    (out / FILE).unlink()
    return words


def test_sidecars_alone_are_enough(
    terminal: Terminal, service: EmulatorHandle, out: Path, finished: list[str]
) -> None:  # fmt: skip
    (out / "results.jsonl").unlink()
    answer = terminal(*finished, "--json")
    assert answer.code == 8
    for trouble in answer.value["troubles"]:
        assert trouble["error"]["type"] == "LostRecordError"
        assert ".kie.json names task" in trouble["error"]["message"]
        assert trouble["error"]["charged"] == "yes"
    assert terminal(*command(terminal(*finished), "jobs adopt")).out.count("submitted") == 2
    assert terminal(*finished).code == 0
    assert len(list(out.glob("*.mp3"))) == 4  # none was fetched anew, or twice
    assert len(service.ledger) == 2


def test_what_was_delivered_and_is_gone_is_fetched_again(
    terminal: Terminal, service: EmulatorHandle, out: Path, finished: list[str]
) -> None:
    for path in out.glob("*.mp3"):
        path.unlink()
    assert terminal(*command(terminal(*finished), "jobs adopt")).out.count("submitted") == 2
    assert terminal(*finished).code == 0
    assert len(list(out.glob("*.mp3"))) == 4
    assert len(service.ledger) == 2


def test_an_outcome_that_is_unknown_stays_so(
    terminal: Terminal, service: EmulatorHandle, tmp_path: Path, out: Path
) -> None:  # fmt: skip
    words = ["batch", str(tracks(tmp_path / "jobs.csv", 1)), "--out", str(out), "--yes"]
    service.add_faults(Fault("lost", nth=1))
    assert terminal(*words).code == 7
    (out / FILE).unlink()
    answer = terminal(*words)
    assert answer.code == 8
    assert "results.jsonl names a submission whose outcome is unknown" in answer.err
    assert "track0  unknown" in terminal(*command(answer, "jobs adopt")).out
    assert terminal(*words).code == 7
    assert len(service.ledger) == 1


def test_what_was_refused_was_not_paid(
    terminal: Terminal, service: EmulatorHandle, tmp_path: Path, out: Path
) -> None:  # fmt: skip
    words = ["batch", str(tracks(tmp_path / "jobs.csv", 1)), "--out", str(out), "--callbacks", "--yes"]
    service.add_faults(Fault("code", code=422, nth=1))
    assert terminal(*words).code == 3
    (out / FILE).unlink()
    assert terminal(*words).code == 0


@pytest.mark.parametrize(
    "line",
    [
        b"nothing",
        b"[]",
        b"{",
        b'{"emulated": true, "key": 1, "task_id": "t", "state": "failed"}',
        b'{"emulated": true, "key": "track0", "state": []}',
        b'{"emulated": true, "key": "track0", "state": "failed"}',
        b'{"key": "track0", "task_id": "t", "state": "failed"}',
    ],
)
def test_lines_that_say_nothing_refuse_nothing(
    terminal: Terminal, service: EmulatorHandle, tmp_path: Path, out: Path, line: bytes
) -> None:
    out.mkdir()
    (out / "results.jsonl").write_bytes(line + b"\n")
    (out / "odd.kie.json").write_bytes(line)
    words = ["batch", str(tracks(tmp_path / "jobs.csv", 1)), "--out", str(out), "--callbacks", "--yes"]
    assert terminal(*words).code == 0
    assert len(service.ledger) == 1


def test_a_line_of_which_not_all_is_understood_is_followed(
    terminal: Terminal, service: EmulatorHandle, out: Path, finished: list[str]
) -> None:
    lines = [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]
    odd: tuple[dict[str, Any], ...] = ({"attempt": "?", "files": [1], "credits": -1}, {"files": 7, "credits": "x"})
    text = "".join(json.dumps(line | change) + "\n" for line, change in zip(lines, odd, strict=True))
    (out / "results.jsonl").write_text(text)
    assert terminal(*command(terminal(*finished), "jobs adopt")).out.count("submitted") == 2
    assert terminal(*finished).code == 0
    assert len(service.ledger) == 2


@pytest.mark.usefixtures("service")
def test_what_was_tried_out_on_the_emulator_is_no_record_of_the_real_service(
    terminal: Terminal, tmp_path: Path, out: Path, finished: list[str]
) -> None:
    for path in (out / "results.jsonl", *out.glob("*.kie.json")):
        path.write_text(path.read_text().replace('"emulated":true', '"emulated":false').replace(": true", ": false"))
    assert terminal(*finished).code == 0
    emulated = ("batch", str(tmp_path / "jobs.csv"), "--out", str(tmp_path / "tried"), "--emulate")
    assert terminal(*emulated).code == 0
    (tmp_path / "tried" / "kie-async-emulated.sqlite").unlink()
    answer = terminal(*emulated)
    assert answer.code == 8


def test_adopt_leaves_alone_what_the_results_do_not_name(
    terminal: Terminal, service: EmulatorHandle, tmp_path: Path, out: Path
) -> None:
    words = ["batch", str(tracks(tmp_path / "jobs.csv", 2)), "--out", str(out), "--callbacks", "--yes"]
    assert terminal(*words, "--max-credits", "12").code == 4
    assert "0 jobs taken in" in terminal("jobs", "adopt", "--out", str(out)).err
    assert terminal(*words).code == 0
    assert len(service.ledger) == 2


def test_adopt_needs_the_directory_of_the_results(terminal: Terminal, tmp_path: Path) -> None:
    answer = terminal("jobs", "adopt", "--journal", str(tmp_path / "jobs.sqlite"))
    assert answer.code == 2
    assert "--out is missing" in answer.err
    (tmp_path / "results.jsonl").write_text("")
    answer = terminal("jobs", "adopt", "--out", str(tmp_path))
    assert answer.code == 2
    assert "kie-async.sqlite does not exist: run the batch again: it puts its jobs on record" in answer.err


def test_a_job_that_failed_and_is_tried_again_is_paid_again(
    terminal: Terminal, service: EmulatorHandle, tmp_path: Path, out: Path
) -> None:
    words = ["batch", str(tracks(tmp_path / "jobs.csv", 1)), "--out", str(out), "--callbacks", "--yes"]
    service.add_faults(Fault("failed", nth=1))
    assert terminal(*words).code == 3
    assert terminal("jobs", "retry", "track0", "--out", str(out), "--yes").code == 0
    assert terminal(*words).code == 0
    assert len(service.ledger) == 2


# ---------------------------------------------------------------- processes that are killed, folders that are moved


def test_killed_and_copied_without_its_log(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, out: Path) -> None:
    with served(monkeypatch, speed=STEADY) as service:
        words = ["batch", str(tracks(tmp_path / "jobs.csv", 6)), "--out", str(out), "--callbacks", "--yes"]
        with started(*words, "--jsonl", env=environment(service)) as process:
            assert process.stdout is not None
            assert json.loads(process.stdout.readline())["state"] == "submitted"
            process.send_signal(signal.SIGKILL)
            ended(process)
        for end in ("-wal", "-shm"):
            (out / f"{FILE}{end}").unlink()
        with started(*words, env=environment(service)) as process:
            assert ended(process).code in {0, 7}  # 7: killed between a submission and its answer
        assert max(charges(service).values()) == 1


def move(path: Path) -> Path:
    return path.rename(path.with_name("moved"))


def delete(path: Path) -> None:
    shutil.rmtree(move(path))  # at once: a process that works there makes new files meanwhile


@pytest.mark.parametrize("take", [move, delete])
def test_taken_away_in_the_middle_the_same_command_goes_on(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, out: Path, take: Callable[[Path], object]
) -> None:
    with served(monkeypatch, speed=STEADY) as service:
        words = ["batch", str(tracks(tmp_path / "jobs.csv", 6)), "--out", str(out), "--callbacks", "--yes"]
        with started(*words, "--jsonl", env=environment(service)) as process:
            assert process.stdout is not None
            while json.loads(process.stdout.readline())["state"] != "delivered":
                pass
            take(out)
            answer = ended(process)
        assert answer.code == 8
        assert "was moved or deleted while it was in use, and nothing more is submitted" in answer.err
        assert "a whole copy was put back" in answer.err
        with started(*command(answer, "batch"), env=environment(service)) as process:
            again = ended(process)
        assert again.code == 0, again.err
        assert charges(service) == Counter(f"a{number}" for number in range(6))


@pytest.mark.anyio
async def test_taken_away_between_two_submissions_nothing_more_is_sent(tmp_path: Path) -> None:
    out = tmp_path / "out"
    fields: dict[str, Any] = {"model": "V5", "style": "s", "prompt": "p", "continue_at": 5.0}
    jobs = [Job(key=f"job{n}", request=kie.ExtendRequest("a1", title=f"{n}", **fields)) for n in range(5)]
    settings = {"max_in_flight": 1, "quota": 1000}
    async with serving(credits=1e6, goes_on=(1.0, 2.0), rules=Rules(quota=1000), settings=settings) as service:

        async def run(*, taken_away: bool) -> list[str]:
            journal = kie.SQLiteJournal(out / FILE, poll=5.0)
            found = []
            async for job in kie.run_batch(service.session, jobs, journal=journal, directory=out):
                found.append(job.key)
                if taken_away and len(found) == 2:
                    delete(out)
            return found

        with pytest.raises(kie.StorageError, match="put back, so that the same command goes on"):
            await run(taken_away=True)
        assert len(service.emulator.ledger) in {2, 3}
        assert len(await run(taken_away=False)) in {2, 3}
        assert Counter(charge.body["title"] for charge in service.emulator.ledger) == Counter("01234")


async def make_journal(path: Path) -> None:
    async with kie.SQLiteJournal(path):
        pass


def test_replaced_by_another_journal(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, out: Path) -> None:
    with served(monkeypatch, speed=STEADY) as service:
        words = ["batch", str(tracks(tmp_path / "jobs.csv", 3)), "--out", str(out), "--callbacks", "--yes"]
        other = tmp_path / "other.sqlite"
        asyncio.run(make_journal(other))
        with started(*words, "--jsonl", env=environment(service)) as process:
            assert process.stdout is not None
            assert json.loads(process.stdout.readline())["state"] == "submitted"
            other.replace(out / FILE)
            answer = ended(process)
        assert answer.code == 8
        copy = out / "kie-async.recovered1.sqlite"
        assert f"a whole copy is at {copy}" in answer.err
        copy.replace(out / FILE)  # as it says
        with started(*words, env=environment(service)) as process:
            assert ended(process).code == 0
        assert charges(service) == Counter(f"a{number}" for number in range(3))


# ---------------------------------------------------------------- two ways to run one batch


@pytest.fixture(params=["by default", "as it is", "elsewhere"])
def place(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    """How a program says where its journal is."""
    if request.param == "elsewhere":  # for both
        monkeypatch.setenv("KIE_JOURNAL", str(tmp_path / "elsewhere.sqlite"))
    return str(request.param)


@pytest.mark.parametrize("first", ["program", "command"])
def test_the_command_and_a_program_share_the_journal(
    terminal: Terminal, service: EmulatorHandle, out: Path, place: str, first: str
) -> None:
    songs = out.parent / "songs"
    songs.mkdir()
    short_song(songs / "a.wav")

    async def program() -> None:
        journal = kie.open_journal(out / FILE) if place == "as it is" else None
        jobs = kie.read_manifest(songs, defaults={"model": "V5", "continue_at": "50%"})
        async with kie.KieSession() as session:
            async for job in kie.run_batch(session, jobs, journal=journal, directory=out):
                assert job.state == "delivered"

    def run_command() -> None:
        assert terminal("batch", str(songs), "--at", "50%", "--out", str(out), "--yes").code == 0

    if first == "command":
        run_command()
    asyncio.run(program())
    run_command()
    assert len(service.ledger) == 1
    assert len(list(out.glob("*.mp3"))) == 2
    short = songs / "b.wav"
    short.write_bytes(short_song(songs / "a.wav").read_bytes()[:-2])  # one more, for either to find
    asyncio.run(program())
    run_command()
    assert len(service.ledger) == 2


def test_a_session_with_a_journal_runs_batches_on_it(service: EmulatorHandle, tmp_path: Path, out: Path) -> None:
    async def program() -> int:
        jobs = [Job(key="job", request=kie.ExtendRequest("a1", model="V5"))]
        async with kie.KieSession(journal=kie.open_journal(tmp_path / "own.sqlite")) as session:
            return len([job async for job in kie.run_batch(session, jobs, directory=out)])

    assert asyncio.run(program()) == 1
    assert asyncio.run(program()) == 0
    assert not (out / FILE).exists()
    assert len(service.ledger) == 1
