"""A journal file that is moved, deleted, replaced or copied while it is in use: nothing more is spent, nothing lost."""

from __future__ import annotations

import os
import shutil
import signal
import sqlite3
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from child_process import child, read_line, read_rest
from journal_contract import bring, job_of, planned
from sqlite_hooks import hook

from kie_async.errors import StorageError
from kie_async.journal import SQLiteJournal, State

pytestmark = [pytest.mark.anyio, pytest.mark.real_time]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "out" / "journal.sqlite"


@asynccontextmanager
async def in_use(path: Path) -> AsyncGenerator[SQLiteJournal]:
    """A journal at work, with a paid job and others to come; it says in the end that its file was taken away."""
    with pytest.raises(StorageError, match="moved or deleted while it was in use"):
        async with SQLiteJournal(path) as journal:
            await bring(journal, "paid", State.SUBMITTED)
            await bring(journal, "sent", State.INTENT)
            await journal.add([planned("next")])
            yield journal


async def states(path: Path) -> dict[str, State]:
    async with SQLiteJournal(path) as journal:
        return {job.key: job.state for _, job in await journal.page()}


def delete(path: Path) -> None:
    shutil.rmtree(path.parent)


def delete_the_file(path: Path) -> None:
    path.unlink()


def move(path: Path) -> None:
    path.parent.rename(path.parent.with_name("moved"))


@pytest.mark.parametrize("take", [delete, delete_the_file, move])
async def test_a_whole_copy_is_put_back(path: Path, take: Callable[[Path], None]) -> None:
    async with in_use(path) as journal:
        take(path)
        with pytest.raises(
            StorageError, match=r"a whole copy was put back, so that the same command goes on"
        ) as caught:
            await journal.intend("next", "token")
        assert not caught.value.retryable
        copied = shutil.copyfile(path, path.with_name("as-it-was.sqlite"))  # what a kill would leave now
        assert await states(copied) == {"paid": "submitted", "sent": "intent", "next": "planned"}
        await journal.move("sent", State.SUBMITTED, task_id="late")  # what is paid goes on
        with pytest.raises(StorageError, match="put back"):
            await journal.intend("next", "token")
    assert await states(path) == {"paid": "submitted", "sent": "submitted", "next": "planned"}
    assert path.stat().st_mode & 0o777 == 0o600
    assert {each.name for each in path.parent.iterdir()} == {path.name, "as-it-was.sqlite"}


async def test_it_is_found_after_any_write(path: Path) -> None:
    async with in_use(path) as journal:
        delete(path)
        await journal.move("sent", State.SUBMITTED, task_id="late")
        assert path.exists()
    assert (await states(path))["sent"] is State.SUBMITTED


async def test_it_is_found_when_the_journal_is_closed(path: Path) -> None:
    async with in_use(path):
        delete(path)
    assert await states(path) == {"paid": "submitted", "sent": "intent", "next": "planned"}


async def test_an_intent_that_the_loss_overtook_is_taken_back(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def overtaken(_connection: sqlite3.Connection, statement: str) -> None:
        if "INSERT INTO kie_attempt" in statement and "next" in taken:
            taken.remove("next")
            delete(path)

    taken: list[str] = []
    hook(monkeypatch, overtaken)
    async with in_use(path) as journal:
        taken.append("next")
        with pytest.raises(StorageError, match="put back"):
            await journal.intend("next", "token")
        assert (await job_of(journal, "next")).state is State.PLANNED
    assert (await states(path))["next"] is State.PLANNED


async def test_another_journal_in_its_place_is_not_touched(path: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.sqlite"
    async with SQLiteJournal(other) as journal:
        await journal.add([planned("foreign")])
    async with in_use(path) as journal:
        other.replace(path)
        copy = path.with_name("journal.recovered1.sqlite")
        with pytest.raises(StorageError, match=f"another file stands there .* copy is at {copy}: give it the .* name"):
            await journal.intend("next", "token")
        await journal.move("sent", State.SUBMITTED, task_id="late")
    assert await states(path) == {"foreign": "planned"}
    assert await states(copy) == {"paid": "submitted", "sent": "submitted", "next": "planned"}
    assert {each.name for each in path.parent.iterdir()} == {path.name, copy.name}


async def test_a_copy_that_was_taken_away_too_is_put_back_again(path: Path) -> None:
    async with in_use(path) as journal:
        delete(path)
        await journal.move("sent", State.SUBMITTED, task_id="late")
        path.write_bytes(b"somebody else's")  # into the copy itself
    assert path.read_bytes() == b"somebody else's"
    assert (await states(path.with_name("journal.recovered1.sqlite")))["sent"] is State.SUBMITTED


async def test_where_no_copy_can_be_put_back_nobody_is_told_to_go_on(path: Path) -> None:
    async with in_use(path) as journal:
        delete(path)
        path.parent.write_bytes(b"in the way")
        with pytest.raises(StorageError, match=r"no copy could be put back .* do not run it again") as caught:
            await journal.intend("next", "token")
        assert "goes on" not in caught.value.message
        path.parent.unlink()
    assert (await states(path))["sent"] is State.INTENT  # it could be when it was closed


async def test_a_disk_without_hard_links(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def link(*_names: Path, **_options: bool) -> None:
        raise PermissionError

    async with in_use(path) as journal:
        delete(path)
        monkeypatch.setattr(os, "link", link)
        await journal.move("sent", State.SUBMITTED, task_id="late")
    assert (await states(path))["sent"] is State.SUBMITTED


_WORK = """
    async with SQLiteJournal(path) as journal:
        for number in range(100):
            key = f"{number}"
            await journal.add([Job(key=key, request=ExtendRequest("x", model="V5"))])
            await journal.intend(key, f"token-{key}")
            await journal.move(key, State.SUBMITTED, token=f"token-{key}", task_id=f"task-{key}")
            print(key, flush=True)
        await asyncio.sleep(60)
"""


async def test_after_a_kill_the_file_alone_knows_what_was_paid(path: Path, tmp_path: Path) -> None:
    with child(_WORK, path) as process:
        done = [read_line(process) for _ in range(20)]
        process.send_signal(signal.SIGKILL)
        done += read_rest(process)
    alone = shutil.copyfile(path, tmp_path / "alone.sqlite")
    async with SQLiteJournal(alone) as journal:
        for key in done:
            job = await job_of(journal, key)
            assert (job.state, job.task_id) == (State.SUBMITTED, f"task-{key}")
