"""``jobs fetch``, and what ``jobs`` says of what the service deletes."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TypeVar

import attrs
import pytest
from command_line import Answer, Terminal, ended, environment, lines, started

import kie_async as kie
from kie_async.batch import fetch_jobs, tracks_expiry, upload_expiry
from kie_async.emulator import Fault
from kie_async.journal import Job, JobResults, Source, SQLiteJournal, State
from kie_async.settings import machine_name
from kie_async.testing import EmulatorHandle

T = TypeVar("T")

KEYS = ("one", "two")
REQUEST = kie.ExtendRequest("a1", model="V5", continue_at=1.0, style="folk", title="Longer", instrumental=True)
NO_NEW_ADDRESS = Fault("code", on="download_url", code=422)


def with_journal(path: Path, work: Callable[[SQLiteJournal], Awaitable[T]]) -> T:
    async def run() -> T:
        async with SQLiteJournal(path) as journal:
            return await work(journal)

    return asyncio.run(run())


async def state_of(journal: SQLiteJournal, key: str) -> State:
    job = await journal.get(key)
    assert job is not None
    return job.state


@pytest.fixture
def route() -> kie.settings.RouteName:
    return "classic"


@pytest.fixture
def journal(service: EmulatorHandle, tmp_path: Path, route: kie.settings.RouteName) -> Path:
    """A program has made some tasks, and kept a journal."""
    assert not service.ledger
    path = tmp_path / "mine.sqlite"

    async def program() -> None:
        async with kie.KieSession(kie.Settings(route=route), journal=path) as session:
            for key in KEYS:
                await (await session.submit(REQUEST, key=key))

    asyncio.run(program())
    return path


def words(journal: Path, out: Path, *more: str) -> tuple[str, ...]:
    return ("jobs", "fetch", *more, "--journal", str(journal), "--out", str(out))


def test_what_programs_have_made_is_fetched_without_a_key(
    terminal: Terminal, service: EmulatorHandle, journal: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("KIE_API_KEY")
    out = tmp_path / "out"
    answer = terminal(*words(journal, out))
    assert answer.code == 0
    assert "2 fetched, 0 failed, 0 expired" in answer.err
    files = [Path(line) for line in answer.out.splitlines()]
    assert len(files) == 4
    assert all(file.stat().st_size for file in files)
    assert (out / "one-1.mp3") in files
    assert len((out / "results.jsonl").read_text().splitlines()) == 2
    again = terminal(*words(journal, out), "--json")
    assert (again.code, again.value["jobs"]) == (0, [])
    assert len(service.ledger) == 2  # nothing was spent


def test_one_of_them(terminal: Terminal, journal: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    answer = terminal(*words(journal, out, "two"), "--json")
    assert [(job["key"], job["state"], job["outcome"]) for job in answer.value["jobs"]] == [
        ("two", "delivered", "fetched")
    ]
    assert with_journal(journal, lambda opened: state_of(opened, "one")) is State.SUCCEEDED
    answer = terminal(*words(journal, out, "two", "one"))
    assert answer.code == 0
    assert f"two  delivered before, into {machine_name()}:{out}\n" in answer.err
    assert len(answer.out.splitlines()) == 2


@pytest.mark.parametrize("route", ["classic", "jobs"])
@pytest.mark.parametrize("fault", [None, Fault("invisible", on="record_info")])
def test_new_addresses_are_asked_for(
    terminal: Terminal, service: EmulatorHandle, journal: Path, tmp_path: Path, fault: Fault | None
) -> None:
    """Of the record of the task; and where that is gone, of the address on record."""
    polls = [service.polls(charge.task_id) for charge in service.ledger]
    service.add_faults(Fault("expired", times=2), *([fault] if fault else []))
    answer = terminal(*words(journal, tmp_path / "out", "one"))
    assert answer.code == 0
    assert len(answer.out.splitlines()) == 2
    assert [service.polls(charge.task_id) for charge in service.ledger] == [polls[0] + 1, polls[1]]


def test_without_a_key_nobody_can_be_asked(
    terminal: Terminal, service: EmulatorHandle, journal: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So the track whose address has expired is not fetched; the other one is."""
    key = os.environ["KIE_API_KEY"]
    monkeypatch.delenv("KIE_API_KEY")
    service.add_faults(Fault("expired", nth=1))
    out = tmp_path / "out"
    answer = terminal(*words(journal, out, "one"))
    assert answer.code == 5
    assert "expired; no new address could be asked for: api_key is empty: set KIE_API_KEY" in answer.err
    assert "fetch the rest with the same command" in answer.err
    assert [path.name for path in out.glob("*.mp3")] == ["one-2.mp3"]
    monkeypatch.setenv("KIE_API_KEY", key)
    assert terminal(*words(journal, out, "one")).code == 0
    assert len(list(out.glob("*.mp3"))) == 2


def test_what_is_gone_is_said_to_be(terminal: Terminal, service: EmulatorHandle, journal: Path, tmp_path: Path) -> None:
    service.add_faults(Fault("expired"), NO_NEW_ADDRESS)
    answer = terminal(*words(journal, tmp_path / "out", "one"), "--json")
    assert answer.code == 8
    assert (answer.value["error"]["type"], answer.value["jobs"][0]["outcome"]) == ("ResultExpiredError", "expired")
    assert "0 fetched, 0 failed, 1 expired" in answer.err
    assert "cannot give these any more" in answer.err
    assert with_journal(journal, lambda opened: state_of(opened, "one")) is State.SUCCEEDED


def test_one_track_that_is_gone_does_not_hold_up_the_other(
    terminal: Terminal, service: EmulatorHandle, journal: Path, tmp_path: Path
) -> None:
    service.add_faults(Fault("page", nth=1), Fault("page", nth=2), NO_NEW_ADDRESS)
    answer = terminal(*words(journal, tmp_path / "out", "one"))
    assert answer.code == 8
    assert "0 fetched, 1 failed, 0 expired" in answer.err
    assert "what came is no audio" in answer.err
    assert len(list((tmp_path / "out").glob("*.mp3"))) == 1
    assert answer.err.splitlines()[-1].strip().startswith("kie-async jobs fetch one")
    answer = terminal(*words(journal, tmp_path / "out", "one"))
    assert answer.code == 0
    assert len(list((tmp_path / "out").glob("*.mp3"))) == 2


def test_a_full_disk_is_not_tried_again_with_the_next_track(
    terminal: Terminal, journal: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: SimpleNamespace(free=0))
    answer = terminal(*words(journal, tmp_path / "out", "one"))
    assert answer.code == 8
    assert "0 fetched, 1 failed" in answer.err
    assert [path.name for path in (tmp_path / "out").glob("*.kie.json")] == ["one-1.kie.json"]


@pytest.mark.parametrize(
    ("more", "code", "said"),
    [
        (("--journal", "mine.sqlite"), 2, "--out is missing"),
        (("new", "--journal", "mine.sqlite", "--out", "out"), 8, "job 'new' is planned: it has no tracks to fetch"),
        (("none", "--journal", "mine.sqlite", "--out", "out"), 8, "no job 'none'"),
        (("--out", "none"), 2, "there are no jobs"),
    ],
)
def test_what_cannot_be_fetched(  # noqa: PLR0913, PLR0917  # fixtures
    terminal: Terminal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, more: tuple[str, ...], code: int, said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with_journal(tmp_path / "mine.sqlite", lambda journal: journal.add([Job(key="new", request=REQUEST)]))
    answer = terminal("jobs", "fetch", *more)
    assert answer.code == code
    assert said in answer.err


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_it_may_be_stopped(service: EmulatorHandle, journal: Path, tmp_path: Path, number: signal.Signals) -> None:
    service.add_faults(Fault("slow", on="download", seconds=600))
    with started(*words(journal, tmp_path / "out"), env=environment(service)) as process:
        lines(process, until=b"2 jobs to fetch")
        process.send_signal(number)
        answer = ended(process)
    assert answer.code == 130
    assert "Traceback" not in answer.err
    assert with_journal(journal, lambda opened: state_of(opened, "one")) is State.SUCCEEDED


def test_what_another_process_delivers_elsewhere_meanwhile_is_not_said_to_be_here(
    service: EmulatorHandle, journal: Path, tmp_path: Path
) -> None:
    async def deliver_elsewhere(opened: SQLiteJournal) -> tuple[str, Answer]:
        await opened.lease("deliver:one", 60.0)
        with started(*words(journal, tmp_path / "out", "one", "--json"), env=environment(service)) as process:
            said = await asyncio.to_thread(lines, process, until=b"1 job to fetch")  # it has chosen by now
            await opened.move("one", State.DELIVERED, files=("theirs.mp3",), directory="other:/srv")
            await opened.release("deliver:one")
            return said, await asyncio.to_thread(ended, process)

    said, answer = with_journal(journal, deliver_elsewhere)
    assert "delivered before" not in said
    assert answer.code == 0
    assert (
        f"one  delivered by another process: its files are not in {tmp_path / 'out'}, but in other:/srv\n" in answer.err
    )
    assert "0 fetched, 0 failed, 0 expired" in answer.err
    assert [(job["key"], job["outcome"]) for job in answer.value["jobs"]] == [("one", "elsewhere")]


@pytest.mark.anyio
async def test_a_host_that_is_down_is_no_reason_to_ask_for_new_addresses(
    tmp_path: Path, clock: object, free_port: int
) -> None:
    del clock
    track = kie.Track("t", f"http://127.0.0.1:{free_port}/t.mp3")
    found: list[kie.KieError | None] = []
    async with SQLiteJournal(tmp_path / "mine.sqlite") as journal:
        await journal.add([Job(key="one", request=REQUEST)])
        await journal.intend("one", "token")
        await journal.move("one", State.SUBMITTED, task_id="task")
        job = await journal.move("one", State.SUCCEEDED, tracks=(track,))
        settings = kie.Settings(api_key="k", base_url="http://127.0.0.1:1", observer=lambda _event: None)

        def open_session(_route: str | None) -> kie.KieSession:
            raise AssertionError

        options: Any = {
            "settings": settings,
            "open_session": open_session,
            "observer": lambda _job, error: found.append(error),
        }
        await fetch_jobs(journal, [job], directory=tmp_path / "out", **options)
    (error,) = found
    assert isinstance(error, kie.DownloadError)
    assert error.retryable


# ---------------------------------------------------------------- what the service deletes

MADE = datetime(2026, 3, 1, 12, tzinfo=UTC)
DAY = 86_400.0


def succeeded(*created_at: datetime | None, seen: datetime = MADE + timedelta(minutes=2)) -> Job:
    tracks = tuple(kie.Track(f"{number}", created_at=at) for number, at in enumerate(created_at))
    moments = {"succeeded": seen.timestamp()}
    return Job(key="k", request=REQUEST, state=State.SUCCEEDED, results=JobResults(tracks=tracks), moments=moments)


@pytest.mark.parametrize(
    ("job", "expires_at", "is_estimate"),
    [
        (succeeded(MADE + timedelta(minutes=1), MADE), MADE, False),
        (succeeded(MADE, None), MADE + timedelta(minutes=2), True),
        (succeeded(), MADE + timedelta(minutes=2), True),
        (succeeded(MADE, MADE.replace(year=2025)), MADE + timedelta(minutes=2), True),  # clocks that disagree
    ],
)
def test_tracks_last_for_14_days(job: Job, expires_at: datetime, is_estimate: bool) -> None:  # noqa: FBT001  # a parameter
    expiry = tracks_expiry(job)
    assert expiry is not None
    assert (expiry.at, expiry.is_estimate) == ((expires_at + timedelta(days=14)).timestamp(), is_estimate)


def test_what_is_fetched_or_not_made_does_not_expire() -> None:
    made = succeeded(MADE)
    assert {state for state in State if tracks_expiry(attrs.evolve(made, state=state))} == {State.SUCCEEDED}


def test_an_upload_lasts_for_a_day_and_matters_until_the_task_has_ended() -> None:
    source = Source(path="song.wav", size=1, sha256="ab", uploaded_at=1000.0)
    job = Job(key="k", request=REQUEST, source=source)
    needed = {state for state in State if upload_expiry(attrs.evolve(job, state=state))}
    assert needed == {State.PLANNED, State.INTENT, State.SUBMITTED}
    expiry = upload_expiry(job)
    assert expiry is not None
    assert expiry.at == 1000.0 + DAY
    assert upload_expiry(Job(key="k", request=REQUEST)) is None
    assert upload_expiry(attrs.evolve(job, source=attrs.evolve(source, uploaded_at=None))) is None


def test_the_list_says_when_tracks_and_uploads_are_deleted(terminal: Terminal, tmp_path: Path) -> None:
    now = datetime.now(UTC)

    async def fill(journal: SQLiteJournal) -> None:
        await journal.add(Job(key=key, request=REQUEST) for key in ("dated", "undated", "uploaded"))
        for key, created_at in (("dated", now), ("undated", None)):
            await journal.intend(key, key)
            await journal.move(key, State.SUBMITTED, task_id=f"task-{key}")
            await journal.move(key, State.SUCCEEDED, tracks=(kie.Track("t", created_at=created_at),))
        source = Source(path="s", size=1, sha256="ab", upload_url="https://x.example", uploaded_at=DAY)
        await journal.upload("uploaded", source)

    with_journal(tmp_path / "kie-async.sqlite", fill)
    place = ("--out", str(tmp_path))
    dated, undated, uploaded = terminal("jobs", "list", *place).out.splitlines()
    end = now + timedelta(days=14)
    assert f"tracks kept until {end:%Y-%m-%d %H:%M} UTC" in dated
    assert "tracks kept until about 2" in undated
    assert "upload deleted 1970-01-03 00:00 UTC" in uploaded
    values = {job["key"]: job for job in terminal("jobs", "list", *place, "--json").value["jobs"]}
    assert values["dated"]["tracks_expire_at"] == end.isoformat(timespec="seconds")
    assert [values[key]["tracks_expire_about"] for key in values] == [False, True, None]
    assert values["uploaded"]["upload_expires_at"] == "1970-01-03T00:00:00+00:00"
    assert "tracks_expire_at: " in terminal("jobs", "show", "dated", *place).out
