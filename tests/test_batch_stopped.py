"""A process that is stopped (SIGSTOP) in mid-download until its leases run out, while another delivers its jobs."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import attrs
import audio_files
import pytest
from anyio import to_thread
from command_line import Answer, ended, environment, short_songs, started
from file_host import Asked, FileHost, file_host, head
from postgres import execute

from kie_async.emulator import Fault
from kie_async.errors import StorageError
from kie_async.journal import PostgresJournal, SQLiteJournal, State
from kie_async.testing import EmulatorHandle, serve_in_thread

pytestmark = [pytest.mark.anyio, pytest.mark.real_time, pytest.mark.scale]

JOBS = 2
TRACKS = 2 * JOBS
SONG = audio_files.mp3(2.5)
MUSIC = ("--at", "1s", "--instrumental", "--style", "folk", "--title", "Longer")


@pytest.fixture
def service() -> Iterator[EmulatorHandle]:
    with serve_in_thread(speed=150.0, goes_on=(1.0, 2.0), credits=1e6) as handle:
        yield handle


@pytest.fixture
def songs(tmp_path: Path) -> Path:
    """A folder of songs of two seconds, no two alike."""
    return short_songs(tmp_path / "songs", JOBS)


@attrs.define
class Held:
    """A host that holds back the rest of a track until it is told to go on, or breaks off then."""

    whole: bool
    waiting: int = 0
    gone: int = 0
    opened: asyncio.Event = attrs.field(factory=asyncio.Event)

    async def __call__(self, asked: Asked, writer: asyncio.StreamWriter) -> None:
        if "/gone" in asked.line:
            self.gone += 1
            writer.write(head(404, Content_Length=0))
            return
        writer.write(head(200, Content_Length=len(SONG), ETag='"v1"') + SONG[:5000])
        self.waiting += 1
        await self.opened.wait()
        if self.whole:
            writer.write(SONG[5000:])


@attrs.frozen
class Run:
    """A command that makes the jobs, and a journal as its first process has it."""

    words: tuple[str, ...]
    where: str
    out: Path

    def journal(self, process_id: str | None = None) -> SQLiteJournal | PostgresJournal:
        return (
            PostgresJournal(self.where, process_id=process_id)
            if "://" in self.where
            else SQLiteJournal(self.where, process_id=process_id)
        )

    async def stop(self, process: subprocess.Popen[bytes]) -> None:
        """Stop the first process, and let its leases run out."""
        async with self.journal() as journal:
            jobs = [job for _, job in await journal.page()]
        assert {job.state for job in jobs} == {State.SUCCEEDED}
        (process_id,) = {job.process_id for job in jobs}
        names = [f"batch:{self.out.resolve()}", "engine", *(f"deliver:{job.key}" for job in jobs)]
        while True:
            process.send_signal(signal.SIGSTOP)
            try:
                async with self.journal(process_id) as journal:
                    for name in names:
                        await journal.release(name)
            except StorageError:  # it was stopped in the middle of a write, for which others wait: not here
                process.send_signal(signal.SIGCONT)
            else:
                break
        if "://" in self.where:
            execute(self.where, "UPDATE procrastinate_workers SET last_heartbeat = NOW() - INTERVAL '1 hour'")

    def check(self) -> None:
        """Hold that every file is named by a line, and every line's file is there and whole."""
        lines = [json.loads(line) for line in (self.out / "results.jsonl").read_bytes().splitlines()]
        assert [line["state"] for line in lines] == ["delivered"] * JOBS
        tracks = {name for line in lines for name in line["files"]}
        sidecars = {f"{Path(name).stem}.kie.json" for name in tracks}
        assert len(tracks) == TRACKS
        assert {path.name for path in self.out.iterdir()} == tracks | sidecars | {"results.jsonl"}
        for name in sidecars:
            about = json.loads((self.out / name).read_bytes())["file"]
            assert (self.out / about["name"]).stat().st_size == about["size"]


async def until(reached: Callable[[], bool]) -> None:
    with anyio.fail_after(60):
        while not reached():
            await anyio.sleep(0.02)


@asynccontextmanager
async def stopped(
    service: EmulatorHandle, run: Run, held: Held
) -> AsyncGenerator[tuple[FileHost, subprocess.Popen[bytes]]]:
    """Start a process, and stop it in mid-download for longer than its leases last."""
    async with file_host(held) as host:
        service.add_faults(away(host, "/held"))
        with started(*run.words, env=environment(service)) as process:
            await until(lambda: held.waiting == JOBS)
            await run.stop(process)
            yield host, process


def away(host: FileHost, path: str) -> Fault:
    """Of each job one track is fetched at a time."""
    return Fault("redirect", "download", url=host.url(path), times=JOBS)


async def wait(process: subprocess.Popen[bytes]) -> Answer:
    return await to_thread.run_sync(ended, process)


async def check_delivered(service: EmulatorHandle, run: Run, answer: Answer) -> None:
    assert answer.code == 0, answer.err
    assert f"{JOBS} done, 0 failed of {JOBS} jobs" in answer.err
    assert "fetched" not in answer.err
    assert len(service.ledger) == JOBS
    run.check()


@pytest.fixture
def run(songs: Path, tmp_path: Path) -> Run:
    return run_of(songs, tmp_path / "out", str(tmp_path / "jobs.sqlite"))


def run_of(songs: Path, out: Path, where: str) -> Run:
    return Run(("batch", str(songs), "--out", str(out), *MUSIC, "--yes", "--journal", where), where, out)


EXPIRED = Fault("code", on="download_url", code=422)  # no new address for one that has expired


@pytest.mark.parametrize("whole", [True, False])
async def test_a_batch_that_was_overtaken_reports_what_was_delivered(
    service: EmulatorHandle, run: Run, *, whole: bool
) -> None:
    held = Held(whole)
    async with stopped(service, run, held) as (_, process):
        with started(*run.words, env=environment(service)) as other:
            assert (await wait(other)).code == 0
        service.add_faults(Fault("expired"), EXPIRED)
        held.opened.set()
        process.send_signal(signal.SIGCONT)
        answer = await wait(process)
    await check_delivered(service, run, answer)
    assert set(answer.out.split()) == {str(path) for path in run.out.glob("*.mp3")}


async def test_a_batch_that_is_being_overtaken_waits_for_the_other(service: EmulatorHandle, run: Run) -> None:
    held, held_too = Held(whole=False), Held(whole=True)
    async with stopped(service, run, held) as (host, process), file_host(held_too) as other_host:
        service.add_faults(away(other_host, "/held"))
        with started(*run.words, env=environment(service)) as other:
            await until(lambda: held_too.waiting == JOBS)
            gone = Fault("redirect", "download", url=host.url("/gone"))
            service.add_faults(gone, EXPIRED)
            held.opened.set()
            process.send_signal(signal.SIGCONT)
            await until(lambda: held.gone >= JOBS)
            service.remove_faults(gone, EXPIRED)
            held_too.opened.set()
            assert (await wait(other)).code == 0
            answer = await wait(process)
    await check_delivered(service, run, answer)


async def test_a_batch_on_a_shared_database_that_was_overtaken(
    service: EmulatorHandle, songs: Path, tmp_path: Path, database_url: str
) -> None:
    run, held = run_of(songs, tmp_path / "out", database_url), Held(whole=True)
    async with stopped(service, run, held) as (_, process):
        with started(*run.words, env=environment(service)) as other:
            assert (await wait(other)).code == 0
        held.opened.set()
        process.send_signal(signal.SIGCONT)
        answer = await wait(process)
    await check_delivered(service, run, answer)


async def test_what_was_delivered_to_another_directory_leaves_nothing_here(
    service: EmulatorHandle, songs: Path, tmp_path: Path, database_url: str
) -> None:
    run, held = run_of(songs, tmp_path / "out", database_url), Held(whole=False)
    elsewhere = tmp_path / "elsewhere"
    async with stopped(service, run, held) as (_, process):
        words = ("worker", "--out", str(elsewhere), "--until-done", "--journal", database_url)
        with started(*words, env=environment(service)) as other:
            assert (await wait(other)).code == 0
        service.add_faults(Fault("expired"), EXPIRED)
        held.opened.set()
        process.send_signal(signal.SIGCONT)
        answer = await wait(process)
    await check_delivered(service, attrs.evolve(run, out=elsewhere), answer)
    assert list(run.out.iterdir()) == []
    assert not answer.out
