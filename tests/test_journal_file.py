"""The journal's file: damage is said and never mended by force; what was acknowledged is there, whatever happens."""

from __future__ import annotations

import asyncio
import os
import random
import re
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
from contextlib import closing
from pathlib import Path
from typing import Any
from zlib import crc32

import attrs
import pytest
from child_process import child, read_line, read_rest
from journal_contract import REQUEST, SOURCE, UPLOAD, bring, counted, inbound, job_of, planned
from sqlite_hooks import ask, hook

from kie_async.errors import StorageError
from kie_async.journal import Job, Payer, SQLiteJournal, State, _leases

pytestmark = [pytest.mark.anyio, pytest.mark.real_time]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "journal.db"


@pytest.fixture
async def small(path: Path) -> Path:
    """A closed journal with something in every table."""
    async with SQLiteJournal(path) as journal:
        for state in (State.PLANNED, State.SUBMITTED, State.UNKNOWN):
            await bring(journal, f"{state}", state)
        await journal.upload("planned", attrs.evolve(SOURCE, upload_url="https://x.example/1", uploaded_at=1.5))
        await journal.save_callback(inbound("token-unknown"))
    return path


async def content(path: Path) -> list[object]:
    """All that can be read of a journal in a file."""
    async with SQLiteJournal(path) as journal:
        return await all_that_can_be_read(journal)


async def all_that_can_be_read(journal: SQLiteJournal) -> list[object]:
    jobs = [job for _, job in await journal.page()]
    attempts = [await journal.attempts(job.key) for job in jobs]
    found = [await journal.find(token=f"token-{job.key}", task_id=f"task-{job.key}") for job in jobs]
    rest = [await journal.counts(), await journal.spent(""), await journal.callbacks_for(token="token-unknown")]
    return [jobs, attempts, found, *rest, await journal.uploaded(SOURCE.sha256, 0)]


async def refused(path: Path, match: str) -> StorageError:
    before = path.read_bytes() if path.is_file() else None
    with pytest.raises(StorageError, match=match) as caught:
        async with SQLiteJournal(path):
            raise AssertionError
    assert (path.read_bytes() if path.is_file() else None) == before
    return caught.value


# ---------------------------------------------------------------- what is no journal


async def test_an_empty_file_is_damage(path: Path) -> None:
    path.touch()
    error = await refused(path, "is damaged")
    assert "Put back a copy" in error.message
    assert "https://kie.ai/logs" in error.message
    assert not error.retryable


@pytest.mark.parametrize("foreign", [b"x", b"id,title\n1,Song\n" * 100, b"SQLite format 3\0" + bytes(200)])
async def test_another_file_is_refused(path: Path, foreign: bytes) -> None:
    path.write_bytes(foreign)
    await refused(path, "damaged")


async def test_a_database_of_something_else_is_refused(path: Path) -> None:
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE job (key TEXT)")
    await refused(path, "something else")


@pytest.mark.parametrize("version", [0, 1, 99])
async def test_another_version_is_refused(small: Path, version: int) -> None:
    with closing(sqlite3.connect(small)) as connection:
        connection.execute(f"PRAGMA user_version = {version}")
    error = await refused(small, f"version {version}")
    assert "finish its jobs with the kie_async that made it" in error.message
    assert not error.retryable


async def test_a_directory_is_refused(path: Path) -> None:
    path.mkdir()
    await refused(path, "directory")


async def test_a_log_without_its_file_is_kept(path: Path) -> None:
    log = path.with_name("journal.db-wal")
    log.write_bytes(b"x")
    await refused(path, "its log journal.db-wal is there")
    assert log.read_bytes() == b"x"
    log.write_bytes(b"")
    assert await content(path)


async def test_a_file_that_may_not_be_written_is_refused() -> None:
    program = """
        async with SQLiteJournal(path):
            pass
        os.chmod(path, 0o444)
        os.chmod(path.parent, 0o555)
        if os.getuid() == 0:
            os.setuid(65534)
        try:
            async with SQLiteJournal(path) as journal:
                await journal.add([Job(key="a", request=ExtendRequest("x", model="V5"))])
        except StorageError as error:
            print(error, flush=True)
        os._exit(0)
    """
    with tempfile.TemporaryDirectory() as directory:
        Path(directory).chmod(0o755)  # for root is refused nothing: the child becomes somebody else
        with child(program, Path(directory) / "jobs" / "journal.db") as process:
            assert "give access" in read_line(process)


async def test_a_disk_without_a_log_is_refused(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hook(monkeypatch, lambda _connection, statement: "SELECT 'delete'" if "journal_mode = WAL" in statement else None)
    with pytest.raises(StorageError, match="processes share"):
        await content(path)
    assert not list(path.parent.iterdir())


async def test_what_is_rare_is_said_in_sqlites_words(path: Path) -> None:
    async with SQLiteJournal(path) as journal:
        await tamper(
            path, "CREATE TRIGGER odd BEFORE INSERT ON kie_job BEGIN UPDATE kie_job SET position = 'x'; END"
        )  # fmt: skip
        await journal.add([planned("a")])
        with pytest.raises(StorageError, match="cannot be used: datatype mismatch") as caught:
            await journal.add([planned("b")])
        assert not caught.value.retryable


# ---------------------------------------------------------------- damage


async def detected_or_harmless(path: Path, damaged: bytes, expected: object) -> bool:
    """Put a damaged file in the place of a sound one, and tell whether that was detected."""
    for each in path.parent.glob(f"{path.name}-*"):
        each.unlink()
    path.write_bytes(damaged)
    try:
        assert await content(path) == expected
    except StorageError as error:
        assert re.search("damaged|version|totals of spending", error.message)  # allowed, not expected
        assert not error.retryable
        return True
    return False


async def test_truncated_anywhere(small: Path) -> None:
    whole, expected = small.read_bytes(), await content(small)
    assert not await detected_or_harmless(small, whole, expected)
    for length in [*range(1, 200, 13), *range(200, len(whole), 997), *range(4096, len(whole), 4096), len(whole) - 1]:
        detected = await detected_or_harmless(small, whole[:length], expected)
        assert detected or len(whole) - length < 4096  # the end of the last page may be empty


async def test_any_byte_changed(small: Path) -> None:
    whole, expected = small.read_bytes(), await content(small)
    rng = random.Random(1)
    used = [place for place, byte in enumerate(whole) if byte]
    places = [*range(100), *rng.sample(used, 200), *rng.sample(range(len(whole)), 20)]
    detected = 0
    for place in places:
        changed = bytearray(whole)
        changed[place] ^= rng.choice((1, 0x10, 0x80, 0xFF))
        detected += await detected_or_harmless(small, bytes(changed), expected)
    assert detected > 0.6 * len(places)


async def tamper(path: Path, statement: str) -> None:
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute(statement)


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE kie_job SET state = 'planned' WHERE key = 'submitted'",
        "UPDATE kie_job SET document = replace(document, 'task-', 'tusk-') WHERE key = 'submitted'",
        "UPDATE kie_attempt SET task_id = 'other' WHERE key = 'submitted'",
        "UPDATE kie_callback SET stage = 'complete' WHERE token = 'token-unknown'",
        "UPDATE kie_upload SET uploaded_at = 5",
    ],
)
async def test_a_row_that_was_changed_is_damage(small: Path, statement: str) -> None:
    async with SQLiteJournal(small) as journal:  # it was checked when it was opened, and is when it is read
        await tamper(small, statement)
        with pytest.raises(StorageError, match="not what was written") as caught:
            await all_that_can_be_read(journal)
        assert not caught.value.retryable
    await refused(small, "not what was written")


async def test_a_huge_file_is_checked_when_it_is_read(path: Path) -> None:
    async with SQLiteJournal(path) as journal:
        huge = attrs.evolve(UPLOAD, prompt="x" * 4000)
        await journal.add(Job(key=f"{number}", request=huge) for number in range(2500))
    await tamper(path, "UPDATE kie_job SET state = 'intent' WHERE key = '1'")
    async with SQLiteJournal(path) as journal:
        assert await journal.get("0")
        with pytest.raises(StorageError, match="not what was written"):
            await journal.get("1")


async def test_totals_that_were_changed_are_refused_and_counted_anew(small: Path) -> None:
    await tamper(small, "UPDATE kie_total SET credits = 0 WHERE credits > 0")
    with pytest.raises(StorageError, match=r"1 totals .* database upgrade --journal /.*journal") as caught:
        async with SQLiteJournal(small):
            raise AssertionError
    assert not caught.value.retryable
    await SQLiteJournal(small).upgrade()
    async with SQLiteJournal(small) as journal:
        assert await counted(journal, Payer()) > 0


async def test_totals_of_a_huge_file_are_checked_on_demand(path: Path) -> None:
    async with SQLiteJournal(path) as journal:
        huge = attrs.evolve(UPLOAD, prompt="x" * 4000)
        await journal.add(Job(key=f"{number}", request=huge) for number in range(2500))
    await tamper(path, "INSERT INTO kie_total VALUES ('account:', 1, 5, 0)")
    async with SQLiteJournal(path) as journal:
        assert await journal.get("0")
    with pytest.raises(StorageError, match="1 totals"):
        await SQLiteJournal(path).diagnose()


async def test_tables_that_were_changed_are_damage(small: Path) -> None:
    await tamper(small, "DROP INDEX kie_job_batch")
    await refused(small, "tables are not as they were made")


async def test_a_record_that_cannot_be_understood_is_damage(small: Path) -> None:
    columns = ("strange", "", "planned", 0.0, 0.0, "{}")
    checksum = crc32("\0".join(map(str, columns)).encode())
    with closing(sqlite3.connect(small, isolation_level=None)) as connection:
        connection.execute(
            "INSERT INTO kie_job (key, batch, state, cost, changed_at, document, checksum, write_id) "
            "VALUES (?, ?, ?, ?, ?, ?, ?, '')",
            (*columns, checksum),
        )
    async with SQLiteJournal(small) as journal:
        with pytest.raises(StorageError, match="no Job can be read"):
            await journal.get("strange")


# ---------------------------------------------------------------- making it


async def test_two_that_make_it_at_once_share_it(path: Path) -> None:
    async def use(key: str) -> None:
        async with SQLiteJournal(path) as journal:
            await journal.add([planned(key)])

    await asyncio.gather(*(use(f"{number}") for number in range(5)))
    async with SQLiteJournal(path) as journal:
        assert (await journal.counts())[State.PLANNED] == 5
    assert [each.name for each in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize("is_there", [False, True])
async def test_a_disk_without_hard_links(path: Path, monkeypatch: pytest.MonkeyPatch, *, is_there: bool) -> None:
    def link(_draft: Path, target: Path, **_options: bool) -> None:
        if is_there:
            target.write_bytes(b"another's")
        raise PermissionError

    monkeypatch.setattr(os, "link", link)
    if is_there:
        with pytest.raises(StorageError, match="is not a database"):
            await content(path)
        assert path.read_bytes() == b"another's"
    else:
        assert await content(path)
    assert [each.name for each in path.parent.iterdir()] == [path.name]


async def test_made_by_another_meanwhile_it_is_no_damage(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with SQLiteJournal(path) as journal:
        await journal.add([planned("a")])
        assert path.with_name("journal.db-wal").stat().st_size
        exists, answers = os.path.lexists, [False]
        monkeypatch.setattr(os.path, "lexists", lambda each: answers.pop() if answers else exists(each))
        async with SQLiteJournal(path) as other:
            assert await other.get("a")
        assert not answers
        assert await journal.get("a")


async def test_it_cannot_be_made(path: Path) -> None:
    path.write_bytes(b"")
    with pytest.raises(StorageError, match=r"cannot be opened: .*give access"):
        async with SQLiteJournal(path / "below" / "journal.db"):
            raise AssertionError


async def test_a_draft_that_fails_is_taken_away(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hook(monkeypatch, lambda _connection, statement: "nonsense" if "CREATE TABLE" in statement else None)
    with pytest.raises(StorageError, match="syntax error"):
        await content(path)
    assert not list(path.parent.iterdir())


_ONE_STEP_FAILS = """
import asyncio, errno, os, resource, sqlite3, sys
from pathlib import Path

steps = failing = 0

def failing_once(real, *, says_so):
    def step(*arguments, **options):
        global steps
        steps += 1
        if steps != failing:
            return real(*arguments, **options)
        if says_so:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        limit = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, limit[1]))  # while it lasts, the disk takes not a byte
        try:
            return real(*arguments, **options)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    return step

class Connection(sqlite3.Connection):
    pass

connect = sqlite3.connect
sqlite3.connect = lambda *arguments, **options: connect(*arguments, **{"factory": Connection, **options})
for name in ("execute", "executescript", "executemany", "commit", "close"):
    setattr(Connection, name, failing_once(getattr(sqlite3.Connection, name), says_so=False))
for name in ("fsync", "link", "rename", "replace"):
    setattr(os, name, failing_once(getattr(os, name), says_so=True))

from kie_async.errors import StorageError
from kie_async.journal import Job, open_journal
from kie_async.models import ExtendRequest

async def use(path):
    async with open_journal(path) as journal:
        await journal.add([Job(key="a", request=ExtendRequest("x", model="V5"))])
        assert await journal.get("a")

async def main(directory):
    global steps, failing
    failed = 0
    for number in range(1, 1000):
        path = directory / str(number) / "journal.sqlite"
        steps, failing = 0, number
        try:
            await use(path)
        except StorageError:
            failed += 1
        if steps < number:
            break
        failing = 0
        await use(path)  # as if nothing had been
        assert [each.name for each in path.parent.iterdir()] == [path.name], number
    print(number, failed)

asyncio.run(main(Path(sys.argv[1])))
"""


def test_a_disk_that_fails_once_while_it_is_made_leaves_no_half_of_it(tmp_path: Path) -> None:
    command = [sys.executable, "-c", _ONE_STEP_FAILS, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:  # noqa: S603  # our own words
        said, words = process.communicate()
    assert process.returncode == 0, words
    steps, failed = map(int, said.split())
    assert steps > 10
    assert failed > 3


# ---------------------------------------------------------------- shared


async def test_closed_it_is_one_file(path: Path) -> None:
    for number in range(50):  # for what goes wrong here does so now and then
        async with SQLiteJournal(path) as journal:
            await journal.add([planned(f"{number}")])
        assert [each.name for each in path.parent.iterdir()] == [path.name]


async def test_the_last_to_close_it_is_the_last(path: Path) -> None:
    program = """
        async with SQLiteJournal(path) as journal:
            print(len(await journal.page()), flush=True)
    """
    async with SQLiteJournal(path) as journal:
        async with SQLiteJournal(path):  # once more in this process, whose locks all count as one
            pass
        for number in range(3):
            await journal.add([planned(f"{number}")])
            with child(program, path) as process:  # it must not take itself for the last, and the log away
                assert read_rest(process) == [f"{number + 1}"]


# ---------------------------------------------------------------- killed

_WORK = """
    async with SQLiteJournal(path, patience=60) as journal:
        async def work(name):
            for number in range(10_000):
                key = f"{name}.{number}"
                await journal.add([Job(key=key, request=ExtendRequest("x", model="V5"))])
                await journal.intend(key, f"token-{key}")
                print("intent", key, flush=True)
                await journal.move(key, State.SUBMITTED, token=f"token-{key}", task_id=f"task-{key}")
                print("submitted", key, flush=True)
                callback = InboundCallback(token=f"token-{key}", task_id=f"task-{key}", stage="text", at=1.0)
                await journal.save_callback(callback)
                print("heard", key, flush=True)
        print("ready", flush=True)
        await asyncio.gather(*(work(f"{path.stem}{os.getpid()}.{number}") for number in range(5)))
"""


async def check_acknowledged(path: Path, lines: list[str]) -> None:
    """What was acknowledged is there, and nothing is half there."""
    order = [State.PLANNED, State.INTENT, State.SUBMITTED]
    async with SQLiteJournal(path) as journal:
        for line in lines:
            what, key = line.split()
            job = await job_of(journal, key)
            if what == "heard":
                assert len(await journal.callbacks_for(token=job.token)) == 1
            else:
                assert order.index(job.state) >= order.index(State(what))
        for _, job in await journal.page(limit=100_000):
            attempts = await journal.attempts(job.key)
            assert [(each.token, each.task_id) for each in attempts] == [(job.token, job.task_id)][: job.attempt]
            assert (job.task_id is not None) is (job.state is State.SUBMITTED)


@pytest.mark.parametrize("seed", range(3))
async def test_killed_at_any_moment_nothing_acknowledged_is_lost(path: Path, seed: int) -> None:
    rng = random.Random(seed)
    lines: list[str] = []
    for _ in range(2):  # the second goes on with what the first left
        with child(_WORK, path) as process:
            assert read_line(process) == "ready"
            lines += [read_line(process) for _ in range(rng.randrange(1, 200))]
            await asyncio.sleep(rng.random() / 50)
            process.send_signal(signal.SIGKILL)
            lines += read_rest(process)
    await check_acknowledged(path, lines)
    assert path.with_name("journal.db").stat().st_mode & 0o777 == 0o600


async def test_one_of_two_killed_does_not_hinder_the_other(path: Path) -> None:
    with child(_WORK, path) as one, child(_WORK, path) as two:
        lines = [read_line(process) for process in (one, two) for _ in range(100)]
        one.kill()
        lines += read_rest(one)
        lines += [read_line(two) for _ in range(100)]
        two.kill()
        lines += read_rest(two)
    await check_acknowledged(path, [line for line in lines if line != "ready"])


async def test_killed_while_it_is_made(tmp_path: Path) -> None:
    program = "async with SQLiteJournal(path): print('open', flush=True); await asyncio.sleep(60)"
    for number in range(4):
        path = tmp_path / f"{number}" / "journal.db"
        with child("print('ready', flush=True)\n" + program, path) as process:
            assert read_line(process) == "ready"
            await asyncio.sleep(number / 100)
            process.kill()
            process.wait()
        assert await content(path)


# ---------------------------------------------------------------- the disk refuses

_UNTIL_FULL = """
    async with SQLiteJournal(path) as journal:
        limit = int(sys.stdin.readline())
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
        try:
            for number in range(10_000):
                await journal.add([Job(key=f"{number}", request=ExtendRequest("x", model="V5"))])
                await journal.intend(f"{number}", f"token-{number}")
                print("intent", number, flush=True)
        except StorageError as error:
            print("refused", error.retryable, flush=True)
        assert sum((await journal.counts()).values()) >= number
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        for job in [job for _, job in await journal.page(State.PLANNED)]:
            await journal.intend(job.key, f"token-{job.key}")
            print("intent", job.key, flush=True)
        await journal.add([Job(key="after", request=ExtendRequest("x", model="V5"))])
        await journal.intend("after", "after")
        print("intent", "after", flush=True)
"""


@pytest.mark.parametrize("limit", [10, 5_000, 40_000, 131_072, 400_000])
async def test_a_disk_that_is_full_at_any_write(path: Path, limit: int) -> None:
    with child(_UNTIL_FULL, path) as process:
        assert process.stdin is not None
        process.stdin.write(f"{limit}\n")
        process.stdin.flush()
        lines = read_rest(process)
        assert process.wait() == 0
    assert lines.count("refused True") == 1
    assert lines[-1] == "intent after"
    await check_acknowledged(path, [line for line in lines if line != "refused True"])


async def test_no_room_in_the_file(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pages = [60]

    def limit(connection: sqlite3.Connection, _statement: str) -> None:
        ask(connection, f"PRAGMA max_page_count = {pages[0]}")

    hook(monkeypatch, limit)
    async with SQLiteJournal(path) as journal:
        with pytest.raises(StorageError, match="no room") as caught:
            for number in range(1000):
                await journal.add([Job(key=f"{number}", request=REQUEST)])
        assert caught.value.retryable
        count = (await journal.counts())[State.PLANNED]
        ends = await asyncio.gather(
            journal.add([planned("x" * 50_000)]), journal.lease("l", 1), return_exceptions=True
        )  # one does not fit, and does not harm the other
        assert [type(end) for end in ends] == [StorageError, type(None)]
        pages[0] = 4000
        assert await journal.add([planned("more")]) == 1
        assert (await journal.counts())[State.PLANNED] == count + 1


# ---------------------------------------------------------------- processes


def test_the_id_of_a_process_names_it() -> None:
    process_id = _leases.new_process_id()
    assert process_id != _leases.new_process_id()
    assert process_id.startswith(socket.gethostname())
    assert f":{os.getpid()}:" in process_id
    assert not _leases.is_dead(process_id)


def test_only_a_dead_process_of_this_machine_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    machine, _, life = _leases.new_process_id().split(":")
    with subprocess.Popen([sys.executable, "-c", ""]) as process:  # our own words
        process.wait()
    assert _leases.is_dead(f"{machine}:{process.pid}:{life}")
    for other in (f"other:{process.pid}:x", "a name", "", f"{machine}:x:y", f"{machine}:{10**30}:x", f"{machine}:1:x"):
        assert not _leases.is_dead(other)

    def forbid(_pid: int, _signal: int) -> None:
        raise PermissionError

    monkeypatch.setattr(os, "kill", forbid)
    assert not _leases.is_dead(f"{machine}:{process.pid}:{life}")


@pytest.mark.parametrize("missing", ["stat", "read_text"])
def test_a_machine_that_tells_less_is_known_by_its_name(monkeypatch: pytest.MonkeyPatch, missing: str) -> None:
    def fail(*_arguments: Any, **_options: Any) -> None:
        raise FileNotFoundError

    monkeypatch.setattr(Path, missing, fail)
    assert _leases.new_process_id().startswith(f"{socket.gethostname()}:")
