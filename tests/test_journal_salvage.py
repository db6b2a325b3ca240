"""Task ids come back out of a damaged file, which is not changed."""

from __future__ import annotations

import random
import sqlite3
from contextlib import closing
from hashlib import sha256
from pathlib import Path

import pytest
from journal_contract import bring, inbound, planned

from kie_async.errors import StorageError
from kie_async.journal import Salvaged, SQLiteJournal, State, salvage
from kie_async.journal import _salvage as module

pytestmark = pytest.mark.anyio

KEYS = [f"schlüssel {number}" for number in range(60)]
ALL = {Salvaged(key=key, token=f"token-{key}", task_id=f"task-{key}") for key in KEYS}


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
async def path(tmp_path: Path) -> Path:
    path = tmp_path / "journal.db"
    async with SQLiteJournal(path) as journal:
        await journal.add(planned(f"other {number}") for number in range(300))
        for key in KEYS:
            await bring(journal, key, State.SUBMITTED)
    return path


def digests(directory: Path) -> dict[str, str]:
    return {each.name: sha256(each.read_bytes()).hexdigest() for each in directory.iterdir()}


def damage(path: Path, start: float, length: float) -> None:
    """Overwrite a part of a file, given as shares of its size."""
    content = bytearray(path.read_bytes())
    begin, size = int(start * len(content)), int(length * len(content))
    content[begin : begin + size] = random.Random(1).randbytes(size)
    path.write_bytes(content)


async def test_a_sound_file_is_read_whole_and_not_changed(path: Path) -> None:
    before = digests(path.parent)
    assert set(salvage(path)) == ALL
    assert len(list(salvage(str(path)))) == len(ALL)
    assert digests(path.parent) == before


@pytest.mark.parametrize("start", [0.0, 0.1, 0.3, 0.5, 0.7, 0.95])
async def test_what_is_not_overwritten_is_found(path: Path, start: float) -> None:
    damage(path, start, 0.05)
    before = digests(path.parent)
    found = set(salvage(path))
    assert found <= ALL
    assert len(found) > 0.6 * len(ALL)
    assert digests(path.parent) == before


async def test_a_lost_beginning_costs_nothing_more(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(bytes(4096) + content[4096:])
    assert set(salvage(path)) == ALL


async def test_a_truncated_file_gives_what_is_left(path: Path) -> None:
    content = path.read_bytes()
    for share in range(10):
        path.write_bytes(content[: len(content) * share // 10])
        assert set(salvage(path)) <= ALL
    assert set(salvage(path))


async def test_the_log_of_a_killed_process_is_read(path: Path, tmp_path: Path) -> None:
    async with SQLiteJournal(path) as journal:
        await bring(journal, "late", State.SUBMITTED)
        await bring(journal, "unanswered", State.UNKNOWN)
        await journal.save_callback(inbound("token-unanswered", "emitted"))
        copy = tmp_path / "copy"
        copy.mkdir()
        for suffix in ("", "-wal"):
            (copy / f"j{suffix}").write_bytes(path.with_name(f"journal.db{suffix}").read_bytes())
    expected = ALL | {
        Salvaged(key="late", token="token-late", task_id="task-late"),
        Salvaged(key="unanswered", token="token-unanswered", task_id="emitted"),
    }
    assert set(salvage(copy / "j")) == expected
    (copy / "j").write_bytes(b"")
    assert set(salvage(copy / "j")) >= expected - ALL


async def test_an_attempt_without_an_answer_is_shown(path: Path) -> None:
    async with SQLiteJournal(path) as journal:
        await bring(journal, "open", State.INTENT)
    assert Salvaged(key="open", token="token-open") in set(salvage(path))


async def test_records_longer_than_a_page_are_read_through_sqlite(path: Path) -> None:
    key = "k" * 6000
    async with SQLiteJournal(path) as journal:
        await bring(journal, key, State.SUBMITTED)
    assert Salvaged(key=key, token=f"token-{key}", task_id=f"task-{key}") in set(salvage(path))


async def test_rows_that_are_none_are_passed_over(path: Path) -> None:
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("INSERT INTO heard VALUES (1000, 't', 't', 't', 7, 0)")
        for number, odd in enumerate([b"\xff", "[]", "[1]", '{"key": 7, "token": "x"}', "[" * 100_000, "{"]):
            connection.execute("INSERT INTO attempt VALUES (?, 'k', ?, NULL, ?, 0)", (1000 + number, number, odd))
    assert set(salvage(path)) == ALL


def test_it_says_that_a_file_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"none\.db cannot be read"):
        list(salvage(tmp_path / "none.db"))


def test_anything_whatever_is_no_reason_to_fail(tmp_path: Path) -> None:
    path = tmp_path / "noise"
    for size in (1, 100, 5000, 100_000):
        path.write_bytes(b"SQLite format 3\0" + random.Random(size).randbytes(size))
        assert list(salvage(path)) == []
    path.write_bytes(b'{"key":"' * 100_000)
    assert list(salvage(path)) == []
    assert module._RECORD.search(b'{"token":"a\\"b","task_id":null,"at":1.5e3}')
