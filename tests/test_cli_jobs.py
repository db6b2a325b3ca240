"""``jobs``: what became of them, and what a person decides."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar

import attrs
import pytest
from command_line import Terminal, ended, environment, lines, started

import kie_async as kie
from kie_async.emulator import Fault
from kie_async.journal import InboundCallback, Job, JobError, SQLiteJournal, State
from kie_async.testing import EmulatorHandle

T = TypeVar("T")

FILE = "kie-async.sqlite"  # beside the results
TASK = "5c79be8e0a1b4c6d9e2f3a4b5c6d7e8f"
TOKEN = "hush-token"
REASON = JobError(
    type="TaskFailedError", message="it\x1b failed, see https://x.example/a?sig=hush", code=501, charged="maybe"
)
UNKNOWN = JobError(type="SubmitUnknownError", message="no answer came", charged="maybe")


@pytest.fixture(autouse=True)
def _no_journal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KIE_JOURNAL", raising=False)


def with_journal(path: Path, work: Callable[[SQLiteJournal], Awaitable[T]]) -> T:
    """Do something with a journal."""

    async def run() -> T:
        async with SQLiteJournal(path) as journal:
            return await work(journal)

    return asyncio.run(run())


def job(key: str, **fields: Any) -> Job:
    request = kie.ExtendRequest("a1", model="V5", **fields)
    return Job(key=key, request=request, batch="elsewhere" if key == "other" else "")


async def _fill(journal: SQLiteJournal, batch: str) -> None:
    source = kie.UploadExtendRequest("https://x.example/song.mp3?sig=hush", model="V5", continue_at=5.0)
    jobs = [job("new"), job("failed"), job("rejected"), job("unknown"), job("done"), job("other")]
    jobs[3] = attrs.evolve(jobs[3], request=source)
    await journal.add(each if each.batch else attrs.evolve(each, batch=batch) for each in jobs)
    for each in jobs[1:5]:
        await journal.intend(each.key, f"{TOKEN}-{each.key}")
    await journal.move("failed", State.SUBMITTED, task_id=f"{TASK[:-1]}0")
    await journal.move("failed", State.FAILED, error=REASON, credits=12.0)
    await journal.move("rejected", State.REJECTED, error=REASON)
    await journal.move("unknown", State.UNKNOWN, error=UNKNOWN)
    await journal.move("done", State.SUBMITTED, task_id=f"{TASK[:-1]}1")
    await journal.move("done", State.SUCCEEDED)
    await journal.move("done", State.DELIVERED, files=("one.mp3", "two.mp3"))


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """The directory of a batch with a job in most states."""
    path = tmp_path / "out"
    with_journal(path / FILE, lambda journal: _fill(journal, str(path.resolve())))
    return path


def state(out: Path, key: str) -> Job:
    """A job as it stands."""

    async def read(journal: SQLiteJournal) -> Job:
        found = await journal.get(key)
        assert found is not None
        return found

    return with_journal(out / FILE, read)


# ---------------------------------------------------------------- list, show


def test_the_list(terminal: Terminal, out: Path) -> None:
    answer = terminal("jobs", "list", "--out", str(out))
    assert answer.code == 0
    rows = [line.split("  ") for line in answer.out.splitlines()]
    assert [row[:2] for row in rows] == [
        ["new", "planned"],
        ["failed", "failed"],
        ["rejected", "rejected"],
        ["unknown", "unknown"],
        ["done", "delivered"],
        ["other", "planned"],
    ]
    assert rows[1][2:] == [f"{TASK[:-1]}0", "it\ufffd failed, see https://x.example/…"]
    assert "2 waiting, 1 done, 2 failed, 1 unknown of 6 jobs" in answer.err
    assert "hush" not in answer.out


def test_the_list_of_some(terminal: Terminal, out: Path) -> None:
    answer = terminal("jobs", "list", "--state", "failed", "--state", "unknown", "--out", str(out), "--json")
    assert {each["key"] for each in answer.value["jobs"]} == {"failed", "unknown"}
    assert answer.value["counts"] | {"planned": 2, "failed": 1} == answer.value["counts"]
    assert answer.value["jobs"][0]["error"]["code"] == 501
    assert "hush" not in answer.out
    answer = terminal("jobs", "list", "--journal", str(out / FILE), "--out", str(out), "--json")
    assert "other" not in {each["key"] for each in answer.value["jobs"]}
    assert terminal("jobs", "list", "--state", "lost", "--out", str(out)).code == 2


def test_a_list_longer_than_a_page_whose_reader_goes_away(tmp_path: Path) -> None:
    with_journal(tmp_path / FILE, lambda journal: journal.add(job(f"job{number}") for number in range(1200)))
    words = ("jobs", "list", "--out", str(tmp_path))
    with started(*words, env=environment()) as process:
        assert len(ended(process).out.splitlines()) == 1200
    with started(*words, env=environment()) as process:
        assert process.stdout is not None
        process.stdout.close()
        process.stdout = None
        assert ended(process).code == 141


@pytest.mark.parametrize("words", [("list",), ("show", "k"), ("retry", "k", "--yes"), ("resolve", "k", "--give-up")])
def test_no_jobs_to_be_found(terminal: Terminal, tmp_path: Path, words: tuple[str, ...]) -> None:
    answer = terminal("jobs", *words)
    assert answer.code == 2
    assert "--out or --journal" in answer.err
    answer = terminal("jobs", *words, "--out", str(tmp_path / "none"))
    assert answer.code == 2
    assert answer.err.rstrip().endswith("does not exist")
    assert not (tmp_path / "none").exists()
    (tmp_path / "kie-async-emulated.sqlite").touch()  # of a batch that was tried out
    answer = terminal("jobs", *words, "--out", str(tmp_path))
    assert f"; those of --emulate: --journal {tmp_path}/kie-async-emulated.sqlite" in answer.err


@pytest.mark.parametrize("word", ["list", "wait", "results"])
def test_a_batch_that_is_not_on_record(terminal: Terminal, out: Path, tmp_path: Path, word: str) -> None:
    missing = tmp_path / "mistyped"
    answer = terminal("jobs", word, "--journal", str(out / FILE), "--out", str(missing))
    assert (answer.code, answer.out) == (2, "")
    assert f"no jobs of the batch {missing}; batches on record: {out}, elsewhere; without --out" in answer.err
    with_journal(tmp_path / "empty.sqlite", lambda journal: journal.add([]))
    answer = terminal("jobs", word, "--journal", str(tmp_path / "empty.sqlite"), "--out", str(missing))
    assert "batches on record: none" in answer.err


def test_all_of_a_job(terminal: Terminal, out: Path) -> None:
    answer = terminal("jobs", "show", "done", "--out", str(out))
    assert answer.code == 0
    lines = answer.out.splitlines()
    assert "state: delivered" in lines
    assert "  two.mp3" in lines
    assert any(line.startswith(f"  number 1  task_id {TASK[:-1]}1  intended_at 20") for line in lines)
    assert any(line.startswith("  delivered: 20") for line in lines)
    failed = terminal("jobs", "show", "failed", "--out", str(out))
    assert "  code: 501" in failed.out.splitlines()
    unknown = terminal("jobs", "show", "unknown", "--out", str(out), "--json")
    assert unknown.value["source"] == "https://x.example/song.mp3"
    assert unknown.value["title"] is None
    assert [each["task_id"] for each in unknown.value["attempts"]] == [None]
    assert set(unknown.value["timestamps"]) == {"planned", "intent", "unknown"}
    for shown in (answer, failed, unknown):
        assert "hush" not in shown.out + shown.err


def test_a_title_is_shown(terminal: Terminal, tmp_path: Path) -> None:
    fields = {"title": "Größe", "style": "s", "instrumental": True, "continue_at": 5.0}
    with_journal(tmp_path / FILE, lambda journal: journal.add([job("one", **fields)]))
    assert "title: Größe" in terminal("jobs", "show", "one", "--out", str(tmp_path)).out


def song_job(key: str, source: str) -> Job:
    return Job(key=key, request=kie.UploadExtendRequest(source, model="V5", continue_at=1.0, source_duration=9.0))


@pytest.fixture
def songs(tmp_path: Path) -> Path:
    """The directory of a batch of songs."""
    jobs = [
        song_job("k1", "in/私の歌.wav"),
        song_job("k2", "in/e\N{COMBINING ACUTE ACCENT}te.mp3"),
        song_job("same", "in/same.wav"),
        *(song_job(f"twin{number}", f"in/{number}/twin.wav") for number in range(12)),
        job("track"),
    ]
    with_journal(tmp_path / FILE, lambda journal: journal.add(jobs))
    return tmp_path


def test_the_list_shows_the_songs(terminal: Terminal, songs: Path) -> None:
    rows = [line.split("  ") for line in terminal("jobs", "list", "--out", str(songs)).out.splitlines()]
    assert rows[0] == ["k1", "planned", "私の歌"]
    assert rows[2] == ["same", "planned"]  # the key says it
    assert rows[-1] == ["track", "planned"]
    value = terminal("jobs", "list", "--out", str(songs), "--json").value
    assert [each["song"] for each in value["jobs"]][:3] == ["私の歌", "e\u0301te", "same"]
    assert value["jobs"][-1]["song"] is None


@pytest.mark.parametrize(
    ("name", "key"), [("私の歌", "k1"), ("私の歌.wav", "k1"), ("éte", "k2"), ("same", "same"), ("twin3", "twin3")]
)
def test_a_job_is_found_by_its_song(terminal: Terminal, songs: Path, name: str, key: str) -> None:
    answer = terminal("jobs", "show", name, "--out", str(songs))
    assert answer.code == 0
    assert f"key: {key}" in answer.out.splitlines()


def test_a_job_is_found_by_its_file(terminal: Terminal, out: Path) -> None:
    assert "key: done" in terminal("jobs", "show", "two.mp3", "--out", str(out)).out.splitlines()


def test_several_jobs_of_a_song_are_told_by_their_keys(terminal: Terminal, songs: Path) -> None:
    answer = terminal("jobs", "show", "twin", "--out", str(songs))
    assert answer.code == 8
    assert "12 jobs are of the song 'twin'" in answer.err
    assert "twin0, twin1," in " ".join(answer.err.split())
    assert "and 2 more" in " ".join(answer.err.split())
    pair = [song_job("a", "x/pair.wav"), song_job("b", "y/pair.wav")]
    with_journal(songs / FILE, lambda journal: journal.add(pair))
    assert "a, b" in terminal("jobs", "show", "pair", "--out", str(songs)).err


def test_no_such_job(terminal: Terminal, out: Path) -> None:
    answer = terminal("jobs", "show", "none", "--out", str(out))
    assert answer.code == 8
    assert "no job 'none'" in answer.err


# ---------------------------------------------------------------- wait, results


async def _end(journal: SQLiteJournal, key: str, *states: State, batch: str = "songs", **facts: Any) -> None:
    """Take a new job through some states; the facts are those of the last."""
    await journal.add([attrs.evolve(job(key), batch=batch)])
    await journal.intend(key, f"{TOKEN}-{key}")
    for each in states[:-1]:
        await journal.move(key, each, **({"task_id": f"{key}-task"} if each is State.SUBMITTED else {}))
    await journal.move(key, states[-1], **facts)


MADE = (State.SUBMITTED, State.SUCCEEDED, State.DELIVERED)


def test_waiting_ends_after_its_time_and_says_how_to_wait_on(terminal: Terminal, out: Path) -> None:
    words = ("jobs", "wait", "--timeout", "0", "--out", str(out))
    answer = terminal(*words)
    assert answer.code == 6
    assert "2 jobs did not come to an end in time" in answer.err
    assert answer.err.splitlines()[-1].strip() == f"kie-async {' '.join(words)}"
    value = terminal(*words, "--json").value
    assert (value["error"]["charged"], value["counts"]["waiting"]) == ("maybe", 2)


def test_waiting_ends_as_the_jobs_did(terminal: Terminal, tmp_path: Path) -> None:
    words = ("jobs", "wait", "--out", str(tmp_path))
    with_journal(tmp_path / FILE, lambda journal: _end(journal, "done", *MADE))
    answer = terminal(*words)
    assert (answer.code, answer.out, answer.err) == (0, "", "1 done, 0 failed of 1 job\n")
    with_journal(tmp_path / FILE, lambda journal: _end(journal, "bad", State.SUBMITTED, State.FAILED, error=REASON))
    answer = terminal(*words)
    assert answer.code == 3
    assert "1 job failed or were refused" in answer.err
    assert f"kie-async jobs retry KEY --out {tmp_path}" in answer.err
    with_journal(tmp_path / FILE, lambda journal: _end(journal, "lost", State.UNKNOWN, error=UNKNOWN))
    answer = terminal(*words, "--json")
    assert answer.code == 7
    assert answer.value["counts"] == {
        "waiting": 0, "submitted": 0, "made": 0, "done": 1, "failed": 1, "unknown": 1, "abandoned": 0,
    }  # fmt: skip


def test_waiting_ends_when_a_cap_leaves_no_room_and_nothing_is_under_way(terminal: Terminal, tmp_path: Path) -> None:
    words = ("jobs", "wait", "--out", str(tmp_path), "--timeout", "5")

    async def fill(journal: SQLiteJournal) -> None:
        await journal.caps.set("x", 12)
        await journal.add(attrs.evolve(job(key), batch="x") for key in ("paid", "left"))
        await journal.intend("paid", TOKEN)
        await journal.move("paid", State.SUBMITTED, task_id=TASK)

    with_journal(tmp_path / FILE, fill)
    assert terminal(*words, virtual=True).code == 6  # what is under way may be refunded
    with_journal(tmp_path / FILE, lambda journal: journal.move("paid", State.FAILED, error=REASON))
    answer = terminal(*words, virtual=True)
    assert answer.code == 4
    assert "max_credits of the batch 'x' is 12, and 12 are spent or reserved" in answer.err


def test_ctrl_c_while_jobs_are_awaited(out: Path) -> None:
    words = ("jobs", "wait", "--out", str(out))
    with started(*words, env=environment()) as process:
        lines(process, until=b"2 waiting")
        process.send_signal(signal.SIGINT)
        answer = ended(process)
    assert answer.code == 130
    assert answer.err.splitlines()[-1].strip() == f"kie-async {' '.join(words)}"


def test_results_are_tracks_and_reasons(terminal: Terminal, tmp_path: Path) -> None:
    tracks = tuple(kie.Track(id=name, audio_url=f"https://a.example/{name}.mp3", duration=90.04) for name in "ab")

    async def fill(journal: SQLiteJournal) -> None:
        await _end(journal, "done", *MADE, files=("one.mp3", "two.mp3"))
        await _end(journal, "made", State.SUBMITTED, State.SUCCEEDED, tracks=tracks)
        await _end(journal, "open", State.SUBMITTED, task_id=TASK)
        await _end(journal, "bad", State.SUBMITTED, State.FAILED, error=REASON)

    with_journal(tmp_path / FILE, fill)
    with_journal(tmp_path / FILE, lambda journal: journal.move("made", State.DELIVERED, files=("a.mp3", "b.mp3")))
    answer = terminal("jobs", "results", "--out", str(tmp_path))
    assert answer.code == 0
    assert answer.out.splitlines() == [
        "made  90.0 s  https://a.example/a.mp3  a.mp3",
        "made  90.0 s  https://a.example/b.mp3  b.mp3",
    ]
    assert answer.err == "bad  failed  bad-task  it\ufffd failed, see https://x.example/…\n"
    value = terminal("jobs", "results", "--out", str(tmp_path), "--json").value
    assert {each["key"]: len(each["tracks"]) for each in value["jobs"]} == {"done": 0, "made": 2, "bad": 0}
    assert value["jobs"][1]["tracks"][0]["audio_url"] == "https://a.example/a.mp3"


# ---------------------------------------------------------------- tasks of programs, which are of no batch


def test_they_are_not_waited_for(terminal: Terminal, tmp_path: Path) -> None:
    async def fill(journal: SQLiteJournal) -> None:
        await _end(journal, "done", *MADE)
        await _end(journal, "awaited by a program", State.SUBMITTED, batch="", task_id=TASK)
        await _end(journal, "not followed any more", State.SUBMITTED, State.SUCCEEDED, batch="")
        await journal.add([job("waiting for the quota")])

    with_journal(tmp_path / FILE, fill)
    answer = terminal("jobs", "wait", "--timeout", "0", "--out", str(tmp_path))
    assert answer.code == 0
    assert answer.err.splitlines() == [
        "1 done, 0 failed of 1 job",
        "not waited for: 2 tasks that programs follow",
    ]
    assert (
        "1 waiting, 1 submitted, 1 made, 1 done, 0 failed of 4 jobs"
        in terminal("jobs", "list", "--out", str(tmp_path)).err
    )


def test_who_goes_on_with_them(terminal: Terminal, tmp_path: Path) -> None:
    async def fill(journal: SQLiteJournal) -> None:
        for key, batch in {"mine": "", "also mine": "", "of a batch": "songs"}.items():
            await _end(journal, key, State.UNKNOWN, batch=batch, error=UNKNOWN)
        await _end(journal, "refused", State.REJECTED, batch="", error=REASON)

    with_journal(tmp_path / FILE, fill)
    place = ("--yes", "--out", str(tmp_path))
    submit = "{} was submitted by a program: let that submit it again with this key; no worker does"
    follow = "{} was submitted by a program: its session.resume() follows it"
    batch = "the next run of the batch, or a worker, goes on"
    assert terminal("jobs", "retry", "refused", *place).err.splitlines() == [submit.format("refused")]
    assert terminal("jobs", "resolve", "mine", "--retry", *place).err.splitlines() == [submit.format("mine")]
    answer = terminal("jobs", "resolve", "also mine", "--task-id", TASK, *place)
    assert answer.err.splitlines() == [follow.format("also mine")]
    assert terminal("jobs", "resolve", "of a batch", "--retry", *place).err.splitlines() == [batch]


# ---------------------------------------------------------------- retry


def test_retry_pays_again_and_asks(terminal: Terminal, out: Path) -> None:
    words = ("jobs", "retry", "failed", "rejected", "--out", str(out))
    answer = terminal(*words)
    assert answer.code == 2
    assert "2 jobs will be made once more and paid again, about 24 credits" in answer.err
    assert "--yes" in answer.err
    assert state(out, "failed").state is State.FAILED
    answer = terminal(*words, "--yes", "--json")
    assert [each["state"] for each in answer.value["jobs"]] == ["planned", "planned"]
    retried = state(out, "failed")
    assert (retried.state, retried.earlier_credits) == (State.PLANNED, 12.0)


def test_retry_of_nothing(terminal: Terminal, out: Path) -> None:
    assert terminal("jobs", "retry", "--out", str(out), "--yes").code == 2


@pytest.mark.parametrize("key", ["new", "unknown", "done", "none"])
def test_only_failures_are_retried(terminal: Terminal, out: Path, key: str) -> None:
    answer = terminal("jobs", "retry", "failed", key, "--out", str(out), "--yes", "--json")
    assert answer.code == 8
    assert [each["key"] for each in answer.value["jobs"]] == ["failed"]
    assert key in answer.value["error"]["message"]


@pytest.mark.parametrize("key", ["none", "done", "unknown"])
def test_a_key_that_cannot_be_retried_is_told_before_money_is(terminal: Terminal, out: Path, key: str) -> None:
    answer = terminal("jobs", "retry", "failed", key, "--out", str(out))
    assert answer.code == 8
    assert key in answer.err
    assert "credits" not in answer.err
    assert state(out, "failed").state is State.FAILED


@pytest.mark.parametrize("key", ["none", "failed", "done"])
def test_a_key_that_is_not_unknown_is_told_before_money_is(terminal: Terminal, out: Path, key: str) -> None:
    answer = terminal("jobs", "resolve", key, "--retry", "--out", str(out))
    assert answer.code == 8
    assert key in answer.err
    assert "paid" not in answer.err


# ---------------------------------------------------------------- resolve


def test_an_unknown_job_is_given_its_task(terminal: Terminal, out: Path) -> None:
    answer = terminal("jobs", "resolve", "unknown", "--task-id", TASK, "--out", str(out))
    assert answer.code == 0
    assert answer.out.split()[:3] == ["unknown", "submitted", TASK]
    resolved = state(out, "unknown")
    assert (resolved.state, resolved.task_id) == (State.SUBMITTED, TASK)


def test_an_unknown_job_is_sent_again(terminal: Terminal, out: Path) -> None:
    words = ("jobs", "resolve", "unknown", "--retry", "--out", str(out))
    answer = terminal(*words)
    assert answer.code == 2
    assert "it is paid twice" in answer.err
    assert terminal(*words, "--yes").code == 0
    assert state(out, "unknown").state is State.PLANNED


def test_what_a_callback_has_named_is_not_sent_again(terminal: Terminal, out: Path) -> None:
    callback = InboundCallback(token=f"{TOKEN}-unknown", task_id=TASK, stage="text", at=1.0)
    with_journal(out / FILE, lambda journal: journal.save_callback(callback))
    answer = terminal("jobs", "resolve", "unknown", "--retry", "--yes", "--out", str(out))
    assert answer.code == 8
    assert TASK in answer.err
    assert state(out, "unknown").state is State.UNKNOWN


def test_an_unknown_job_is_left(terminal: Terminal, out: Path) -> None:
    answer = terminal("jobs", "resolve", "unknown", "--give-up", "--out", str(out))
    assert answer.code == 0
    assert not answer.err
    assert state(out, "unknown").state is State.ABANDONED
    assert terminal("jobs", "resolve", "unknown", "--give-up", "--out", str(out)).code == 8


@pytest.mark.parametrize("track", ["5c79be8e-0a1b-4c6d-9e2f-3a4b5c6d7e8f", TASK[:-1]])
def test_what_does_not_look_like_the_id_of_a_task_is_asked_about(terminal: Terminal, out: Path, track: str) -> None:
    words = ("jobs", "resolve", "unknown", "--task-id", track, "--out", str(out))
    answer = terminal(*words)
    assert answer.code == 2
    assert "ids of tasks have 32 characters" in answer.err
    assert state(out, "unknown").state is State.UNKNOWN
    assert terminal(*words, "--yes").code == 0
    assert state(out, "unknown").task_id == track


@pytest.mark.parametrize(
    "words", [(), ("--give-up", "--retry"), ("--give-up", "--task-id", TASK), ("--task-id", "../x")]
)
def test_decisions_that_are_none(terminal: Terminal, out: Path, words: tuple[str, ...]) -> None:
    answer = terminal("jobs", "resolve", "unknown", *words, "--yes", "--out", str(out))
    assert answer.code == 2
    assert "--task-id" in answer.err
    assert state(out, "unknown").state is State.UNKNOWN


# ---------------------------------------------------------------- with a batch


def test_decisions_take_effect_with_the_next_run(terminal: Terminal, service: EmulatorHandle, tmp_path: Path) -> None:
    manifest, out = tmp_path / "jobs.jsonl", tmp_path / "new"
    fields = '"model": "V5", "continue_at": 1, "style": "s", "title": "t", "instrumental": true'
    manifest.write_text("".join(f'{{"id": "{key}", "audio_id": "a", {fields}}}\n' for key in ("one", "two")))
    words = ("batch", "--yes", str(manifest), "--out", str(out))
    faults = (Fault("lost", nth=1), Fault("failed", nth=2))
    service.add_faults(*faults)
    assert terminal(*words).code == 7
    service.remove_faults(*faults)
    jobs = terminal("jobs", "list", "--out", str(out), "--json").value["jobs"]
    keys = {each["state"]: each["key"] for each in jobs}
    (lost,) = {charge.task_id for charge in service.ledger} - {each["task_id"] for each in jobs}
    assert terminal("jobs", "resolve", keys["unknown"], "--task-id", lost, "--out", str(out)).code == 0
    assert terminal("jobs", "retry", keys["failed"], "--yes", "--out", str(out)).code == 0
    assert terminal(*words, "--callbacks").code == 0
    assert len(service.ledger) == 3
    shown = terminal("jobs", "show", keys["failed"], "--out", str(out), "--json").value
    assert [each["number"] for each in shown["attempts"]] == [1, 2]
    assert len({each["task_id"] for each in shown["attempts"]}) == 2


def test_help(terminal: Terminal) -> None:
    for name in ("list", "wait", "results", "show", "retry", "resolve", "adopt"):
        answer = terminal("jobs", name, "--help")
        assert answer.code == 0
        assert f"Example: kie-async jobs {name}" in answer.out
    assert "adopt" in terminal("jobs").out
    assert "help: kie-async jobs show --help" in terminal("jobs", "show").err
