"""Songs that one machine alone has: uploaded there, made anywhere, and never rejected for being out of reach."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import attrs
import pytest
from command_line import Terminal, ended, environment, lines, short_song, started
from workers import calls_of

import kie_async as kie
from kie_async.batch import _worker, enqueue, run_batch, work
from kie_async.emulator import Fault
from kie_async.errors import AuthError
from kie_async.events import Event
from kie_async.journal import Job, Journal, State, open_journal
from kie_async.testing import EmulatorHandle

pytestmark = [pytest.mark.anyio, pytest.mark.real_time, pytest.mark.usefixtures("quick_workers")]

BATCH = "songs"
MUSIC: dict[str, Any] = {"continue_at": "50%", "style": "folk", "title": "Longer", "instrumental": True}
OPTIONS = ("--at", "50%", "--instrumental", "--style", "folk", "--title", "Longer")
ONE_TOO_MANY: dict[str, Any] = {"on": "upload", "code": 401}  # an upload that may not be: the worker would raise


@attrs.frozen
class Studio:
    """A database that machines share, and a folder of songs that one of them is to read."""

    emulator: EmulatorHandle
    dsn: str
    folder: Path

    @property
    def songs(self) -> Path:
        return self.folder / "songs"

    @property
    def out(self) -> Path:
        return self.folder / "out"

    def record(self, *levels: int) -> None:
        """Write songs; those of one level are the same."""
        self.songs.mkdir()
        for number, level in enumerate(levels):
            short_song(self.songs / f"song {number}.wav", level)

    def hide(self) -> None:
        """Put the songs where no machine finds them."""
        self.songs.rename(self.folder / "hidden")

    async def plan(self, machine: str) -> list[Job]:
        """Enqueue the songs on a machine."""
        manifest = kie.read_manifest(self.songs, defaults=MUSIC)
        async with open_journal(self.dsn) as journal:
            await enqueue(journal, manifest, BATCH, machine=machine)
            return await jobs_in(journal)

    async def jobs(self) -> list[Job]:
        async with open_journal(self.dsn) as journal:
            return await jobs_in(journal)

    @asynccontextmanager
    async def machine(self, name: str) -> AsyncGenerator[Machine]:
        """A machine with a session on the shared journal."""
        emitted: list[Event] = []
        settings = kie.Settings(
            api_key=self.emulator.key,
            base_url=self.emulator.base_url,
            observer=emitted.append,
            quota=1000,
            machine=name,
        )
        async with kie.KieSession(settings, journal=self.dsn) as session:
            yield Machine(session, self)


@attrs.frozen
class Machine:
    """A machine, and the jobs that its worker has reported."""

    session: kie.KieSession
    studio: Studio
    seen: list[Job] = attrs.field(factory=list)

    @property
    def journal(self) -> Journal:
        assert self.session.journal is not None
        return self.session.journal

    async def work(self, *, until_done: bool = True, at_once: int = 5) -> None:
        await work(
            self.session,
            journal=self.journal,
            dsn=self.studio.dsn,
            directory=self.studio.out,
            observer=self.seen.append,
            until_done=until_done,
            at_once=at_once,
        )


async def jobs_in(journal: Journal) -> list[Job]:
    return [job async for job in journal.jobs()]


async def becomes(condition: Callable[[], Any]) -> None:  # a value, or what gives one
    with anyio.fail_after(60):
        while not (await found if asyncio.iscoroutine(found := condition()) else found):
            await anyio.sleep(0.02)


@pytest.fixture
def studio(emulator: EmulatorHandle, database_url: str, tmp_path: Path) -> Studio:
    return Studio(emulator, database_url, tmp_path)


async def test_another_machine_leaves_them_and_their_own_makes_them(studio: Studio) -> None:
    studio.record(1, 2)
    planned = await studio.plan("a")
    assert [job.waits_for for job in planned] == ["a", "a"]
    async with studio.machine("b") as other:
        await other.work()
        assert not other.seen
        assert await other.journal.machines.waiting(BATCH) == {"a": 2}
    assert await studio.jobs() == planned
    studio.emulator.add_faults(Fault("code", nth=3, **ONE_TOO_MANY))
    async with studio.machine("a") as own:
        await own.work()
        assert await own.journal.machines.waiting() == {}
    assert [job.state for job in await studio.jobs()] == [State.DELIVERED] * 2
    assert len({charge.body["uploadUrl"] for charge in studio.emulator.ledger}) == 2


async def test_what_was_uploaded_is_anybodys(studio: Studio) -> None:
    studio.record(1, 2)
    await studio.plan("a")
    studio.emulator.add_faults(Fault("stuck", nth=1))
    async with studio.machine("a") as own, studio.machine("b") as other, anyio.create_task_group() as group:
        group.start_soon(lambda: own.work(until_done=False, at_once=1))
        await becomes(lambda: studio.emulator.ledger)
        await becomes(lambda: all_uploaded(own.journal))
        studio.hide()
        group.start_soon(lambda: other.work(until_done=False))
        await becomes(lambda: [job.state for job in other.seen][-1:] == [State.DELIVERED])
        group.cancel_scope.cancel()
    assert sorted(job.state for job in await studio.jobs()) == [State.DELIVERED, State.SUBMITTED]
    assert len(studio.emulator.ledger) == 2


async def all_uploaded(journal: Journal) -> bool:
    return not await journal.machines.waiting()


async def test_one_content_is_uploaded_once(studio: Studio) -> None:
    studio.record(1, 1)
    await studio.plan("a")
    studio.emulator.add_faults(Fault("code", nth=2, **ONE_TOO_MANY))
    async with studio.machine("a") as own:
        await own.work()
    assert [job.state for job in await studio.jobs()] == [State.DELIVERED] * 2
    assert len({charge.body["uploadUrl"] for charge in studio.emulator.ledger}) == 1


async def test_an_upload_that_is_too_old_is_renewed_by_its_machine(studio: Studio) -> None:
    studio.record(1)
    [job] = await studio.plan("a")
    assert job.source is not None
    old = attrs.evolve(job.source, upload_url="https://gone.example/a.wav", uploaded_at=time.time() - 20 * 3600 - 1)
    async with studio.machine("b") as other:
        assert not (await other.journal.upload(job.key, old)).waits_for
        await other.work()
        assert [job.error and job.error.message for job in other.seen] == [
            "its source is a file of the machine 'a', where a worker has to upload it"
        ]
    assert [(job.state, job.waits_for) for job in await studio.jobs()] == [(State.PLANNED, "a")]
    async with studio.machine("a") as own:
        await own.journal.upload(job.key, old)  # its own worker meets it as it is about to submit it
        await own.work()
    [job] = await studio.jobs()
    assert job.state is State.DELIVERED
    assert [charge.body["uploadUrl"] for charge in studio.emulator.ledger] == [job.upload_url]


async def test_a_file_that_its_machine_lost_is_a_rejection(studio: Studio) -> None:
    studio.record(1)
    await studio.plan("a")
    studio.hide()
    async with studio.machine("a") as own:
        await own.work()
        [job] = own.seen
    assert job.state is State.REJECTED
    assert job.error is not None
    assert job.error.message == "song 0.wav cannot be read: No such file or directory"
    assert "song 0.wav cannot be read" in (studio.out / "results.jsonl").read_text()
    assert not studio.emulator.ledger


async def works_in_vain(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Hold that a worker finds nothing to do and does not end, though it tries again and again."""
    lease = f"machine:{machine.session.settings.machine}"
    tries = calls_of(machine.journal, "lease", monkeypatch)
    checks = calls_of(machine.journal.machines, "present", monkeypatch)
    working = asyncio.create_task(machine.work())
    await becomes(lambda: working.done() or (len(checks) > 3 and [name for name, _ in tries].count(lease) > 3))
    assert not working.done()
    assert not machine.seen
    working.cancel()
    await asyncio.wait([working])


async def test_one_worker_of_a_machine_uploads_and_others_wait_for_what_it_may_yield(
    studio: Studio, monkeypatch: pytest.MonkeyPatch
) -> None:
    studio.record(1)
    await studio.plan("a")
    async with open_journal(studio.dsn) as holder, studio.machine("a") as own, studio.machine("b") as other:
        await holder.lease("machine:a", 600.0)
        assert await holder.machines.present() == ["a"]
        for machine in (own, other):
            await works_in_vain(machine, monkeypatch)
        await holder.release("machine:a")
        await other.work()
        assert not other.seen
        await own.work()
    assert [job.state for job in await studio.jobs()] == [State.DELIVERED]


async def test_an_upload_that_fails_for_the_moment_is_tried_again(studio: Studio) -> None:
    studio.record(1)
    await studio.plan("a")
    studio.emulator.add_faults(Fault("garbage", on="upload", times=1))
    async with studio.machine("a") as own:
        await own.work()
        assert own.seen[0].error is not None
        assert own.seen[0].waits_for == "a"
    assert [job.state for job in await studio.jobs()] == [State.DELIVERED]


async def test_a_key_that_the_upload_host_refuses_stops_the_worker(studio: Studio) -> None:
    studio.record(1)
    await studio.plan("a")
    studio.emulator.add_faults(Fault("code", on="upload", code=401))
    async with studio.machine("a") as own:
        with pytest.raises(AuthError):
            await own.work()
    assert [(job.state, job.waits_for) for job in await studio.jobs()] == [(State.PLANNED, "a")]


async def test_what_is_put_off_holds_up_no_upload(studio: Studio, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_worker, "UPLOADS_AHEAD", 0)
    studio.record(1)
    [job] = await studio.plan("a")
    studio.out.mkdir()
    lost = {"key": job.key, "state": "delivered", "task_id": "0" * 32, "attempt": 1, "emulated": True}
    (studio.out / "results.jsonl").write_text(f"{json.dumps(lost)}\n")
    async with studio.machine("a") as own:
        await own.work()
        assert own.seen[-1].error is not None
        assert own.seen[-1].error.type == "LostRecordError"
        studio.hide()
        studio.record(2)
        await studio.plan("a")
        await own.work()
    assert [(job.state, job.waits_for) for job in await studio.jobs()] == [
        (State.PLANNED, ""),
        (State.DELIVERED, ""),
    ]


async def test_a_batch_of_the_library_on_another_machine(studio: Studio) -> None:
    studio.record(1)
    await studio.plan("a")
    async with studio.machine("b") as other:
        [job] = [job async for job in run_batch(other.session, [], directory=studio.out, batch=BATCH)]
        assert job.state is State.PLANNED
        assert job.error is not None
        assert "machine 'a'" in job.error.message
    async with studio.machine("a") as own:
        manifest = kie.read_manifest(studio.songs, defaults=MUSIC)
        [job] = [job async for job in run_batch(own.session, manifest, directory=studio.out, batch=BATCH)]
        assert job.state is State.DELIVERED


@pytest.mark.parametrize("machine", ["b", ""])
async def test_known_jobs_wait_for_the_machine_that_has_their_songs_now(studio: Studio, machine: str) -> None:
    studio.record(1, 2)
    first, second = await studio.plan("a")
    await studio.plan("a")
    async with open_journal(studio.dsn) as journal:
        assert second.source is not None
        await journal.upload(second.key, attrs.evolve(second.source, sha256="0" * 64))  # it asks for another song
        await enqueue(journal, [attrs.evolve(first, source=None)], BATCH, machine=machine)  # nobody knows which
    assert [job.machine for job in await studio.jobs()] == ["a", "a"]
    studio.songs.rename(studio.folder / "moved")
    moved = kie.read_manifest(studio.folder / "moved", defaults=MUSIC)
    async with open_journal(studio.dsn) as journal:
        await enqueue(journal, moved, BATCH, machine=machine)
    assert [(job.machine, job.waits_for) for job in await studio.jobs()] == [(machine, machine), ("a", "a")]
    async with studio.machine("b") as other:
        await other.work()
    assert [job.state for job in await studio.jobs()] == [State.DELIVERED, State.PLANNED]


async def test_a_file_of_one_machine_matters_only_where_machines_share_a_journal(
    studio: Studio, tmp_path: Path
) -> None:
    studio.record(1)
    song = kie.UploadExtendRequest(studio.songs / "song 0.wav", model="V5", **MUSIC)
    for where, machine in ((studio.dsn, "a"), (tmp_path / "jobs.sqlite", "")):
        async with studio.machine("a") as own, kie.KieSession(own.session.settings, journal=where) as session:
            task = await session.submit(song, key="song")
            assert session.journal is not None
            job = await session.journal.find(task_id=task.id)
            assert job is not None
            assert (job.machine, job.waits_for) == (machine, "")


# ---------------------------------------------------------------- the commands


@pytest.fixture
def terminal(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, studio: Studio) -> Terminal:
    """The terminal of the machine a."""
    monkeypatch.setenv("KIE_BASE_URL", studio.emulator.base_url)
    monkeypatch.setenv("KIE_API_KEY", studio.emulator.key)
    monkeypatch.setenv("KIE_JOURNAL", studio.dsn)
    monkeypatch.setenv("KIE_MACHINE", "a")
    return Terminal(capsys)


def test_real_workers_of_two_machines(studio: Studio, terminal: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    studio.record(1, 2)
    answer = terminal("batch", str(studio.songs), *OPTIONS, "--enqueue", "--yes")
    assert answer.code == 0
    assert "the songs are files of this machine (a): they need a worker here, which uploads them" in answer.err
    assert "make them: KIE_MACHINE=a kie-async worker --journal" in answer.err
    waits = "2 jobs wait for a worker on the machine a, which has the songs"
    answer = terminal("jobs", "list")
    assert answer.out.count("waits for a") == 2
    assert waits in answer.err
    answer = terminal("jobs", "wait", "--timeout", "0")
    assert answer.code == 6
    assert waits in answer.err
    assert terminal("jobs", "list", "--json").value["waiting_for"] == {"a": 2}
    monkeypatch.setenv("KIE_MACHINE", "b")
    answer = terminal("worker", "--out", str(studio.out), "--until-done")
    assert answer.code == 0
    assert waits in answer.err
    for words in (("worker", "--out", str(studio.out)), ("jobs", "wait")):
        with started(*words, env=environment(KIE_MACHINE="b")) as idle:
            assert "ends in" not in lines(idle, until=b"; 2 wait for a worker on the machine a")
            idle.terminate()
            ended(idle)
    assert not studio.emulator.ledger
    studio.emulator.add_faults(Fault("stuck", nth=1))
    with started("worker", "--out", str(studio.out), "--at-once", "1", env=environment(KIE_MACHINE="a")) as own:
        asyncio.run(uploaded(studio))
        studio.hide()
        with started("worker", "--out", str(studio.out), env=environment(KIE_MACHINE="b")) as other:
            assert other.stdout is not None
            assert all(other.stdout.readline().startswith(str(studio.out).encode()) for _ in range(2))
            other.terminate()
            assert ended(other).code == 0
        own.terminate()
        assert ended(own).code == 0
    assert len(studio.emulator.ledger) == 2
    assert terminal("jobs", "list").err.splitlines() == ["1 submitted, 1 done, 0 failed of 2 jobs"]


async def uploaded(studio: Studio) -> None:
    """Wait until the first job was submitted, and the second was uploaded."""
    await becomes(lambda: studio.emulator.ledger)
    async with open_journal(studio.dsn) as journal:
        await becomes(lambda: all_uploaded(journal))


def test_a_batch_is_a_worker_of_its_machine(studio: Studio, terminal: Terminal) -> None:
    studio.record(1)
    assert terminal("batch", str(studio.songs), *OPTIONS, "--enqueue", "--yes", "--out", str(studio.out)).code == 0
    answer = terminal("batch", str(studio.songs), *OPTIONS, "--yes", "--out", str(studio.out))
    assert answer.code == 0
    assert "1 done, 0 failed of 1 job" in answer.err
    [shown] = [line for line in terminal("jobs", "show", "song 0").out.splitlines() if "machine" in line]
    assert shown == "machine: a"


def test_paths_that_mean_the_same_everywhere(
    studio: Studio, terminal: Terminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    studio.record(1)
    answer = terminal("batch", str(studio.songs), *OPTIONS, "--enqueue", "--yes", "--shared-files")
    assert answer.code == 0
    assert "this machine" not in answer.err
    monkeypatch.setenv("KIE_MACHINE", "b")
    assert terminal("worker", "--out", str(studio.out), "--until-done").code == 0
    assert "1 done" in terminal("jobs", "list").err
    monkeypatch.delenv("KIE_JOURNAL")
    answer = terminal("batch", str(studio.songs), *OPTIONS, "--yes", "--shared-files", "--out", str(studio.out))
    assert answer.code == 2
    assert "--shared-files needs --journal postgresql://" in answer.err
