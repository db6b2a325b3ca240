"""Journals of older versions: a dump of each stays in the samples, is upgraded, and reads as before."""

from __future__ import annotations

import json
import re
import shutil
import sqlite3
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any
from zlib import crc32

import anyio
import attrs
import psycopg
import pytest
from conftest import SAMPLES, sample_json
from journal_contract import SOURCE, bring, counted, counted_for, held, planned
from postgres import execute
from sqlite_hooks import hook

from kie_async.errors import StorageError
from kie_async.journal import ANY_BATCH, VERSION, Journal, Payer, State, open_journal

pytestmark = [pytest.mark.anyio, pytest.mark.real_time]

OLDEST = 2


@attrs.frozen
class Store:
    """A database that holds the dump of the oldest version.

    Attributes:
        name: of its kind.
        address: of the journal.
        execute: runs one statement on it.
    """

    name: str
    address: str
    execute: Callable[[Any], object]

    def journal(self) -> Journal:
        return open_journal(self.address)


@pytest.fixture(params=["sqlite", "postgresql"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    if request.param == "sqlite":
        path = tmp_path / "journal.sqlite"
        shutil.copy(SAMPLES / "journal_2.sqlite", path)

        def change(statement: str) -> None:
            with closing(sqlite3.connect(path, isolation_level=None)) as connection:
                connection.execute(statement)

        return Store("sqlite", str(path), change)
    url = request.getfixturevalue("database_url")
    execute(url, (SAMPLES / "journal_2.postgresql.sql").read_text("utf-8"))
    return Store("postgresql", url, lambda statement: execute(url, statement))


def known(value: Any) -> Any:
    """What is known of a job, as JSON: fields that are empty, as those that came later are, are left out."""
    if isinstance(value, dict):
        return {name: part for name, each in value.items() if (part := known(each)) not in (None, {}, [], "", 0)}
    return [known(each) for each in value] if isinstance(value, list) else value


async def content(journal: Journal) -> Any:
    """All that an open journal has on record, but for the keys of the jobs that were added since."""
    jobs = [job async for job in journal.jobs()]
    attempts = [each for job in jobs for each in await journal.attempts(job.key)]
    tokens = sorted({each.token for each in attempts})
    callbacks = [each for token in tokens for each in await journal.callbacks_for(token=token)]
    uploaded = await journal.uploaded(SOURCE.sha256, 0)
    assert uploaded is not None
    found = {
        "jobs": jobs,
        "attempts": attempts,
        "callbacks": callbacks,
        "upload": uploaded,
        "counts": {state.value: count for state, count in (await journal.counts("songs")).items()},
        "spent": await journal.spent("songs"),
    }
    return known(
        json.loads(json.dumps(found, default=lambda each: attrs.asdict(each) if attrs.has(type(each)) else str(each)))
    )


async def test_an_older_journal_is_refused_with_the_remedy(store: Store) -> None:
    with pytest.raises(
        StorageError, match=r"version 2.*database upgrade --journal (?:/|postgresql://\.\.\.)"
    ) as caught:
        async with store.journal():
            raise AssertionError
    assert not caught.value.retryable


async def test_all_reads_as_before_when_it_is_upgraded(store: Store) -> None:
    assert await store.journal().upgrade() == OLDEST
    async with store.journal() as journal:
        assert await content(journal) == sample_json("journal_2.json")[store.name]
        assert await counted_for(journal, "songs") == await journal.spent("songs") > 0
        [first, *_] = await journal.attempts("intent")
        for since in (0.0, first.intended_at - 1200, first.intended_at - 1):
            payer = Payer(account="any", since=since)  # whose they were is not on record: they count for all
            assert await counted(journal, payer) == await journal.spent("songs") + await journal.spent("")
        await bring(journal, "new", State.DELIVERED)
        await journal.intend("planned", "a token")
        await journal.move("unknown", State.SUBMITTED, token="token-unknown", task_id="task-unknown")
    assert await store.journal().upgrade() > OLDEST
    async with store.journal() as journal:
        assert len([job async for job in journal.jobs(State.DELIVERED)]) == 3


async def test_a_negative_cost_of_an_older_journal_makes_no_room(store: Store) -> None:
    job = "INSERT INTO kie_job (key, batch, state, cost, changed_at, document, checksum, written) VALUES ({}, '')"
    attempt = "INSERT INTO kie_attempt (token, key, number, task_id, process_id, intended_at, checksum) VALUES ({})"
    rows: dict[str, tuple[object, ...]] = {
        job: ("odd", "odd", "delivered", -5.0, 1.5, "{}"),
        attempt: ("odd", "odd", 1, "odd", "process", 1.5),
    }
    for statement, row in rows.items():
        checksum = crc32("\0".join(map(str, row)).encode())
        store.execute(statement.format(", ".join(map(repr, (*row, checksum)))))
    await store.journal().upgrade()
    async with store.journal() as journal:
        assert await counted_for(journal, "odd") == 12


@pytest.mark.parametrize(
    ("change", "wrong"),
    [
        ("UPDATE kie_total SET credits = 0 WHERE name = 'batch:songs'", 1),
        ("UPDATE kie_total SET extra = 0 WHERE name = 'account:ours'", 1),
        ("DELETE FROM kie_total WHERE name <> 'batch:songs'", 3),
        ("INSERT INTO kie_total VALUES ('account:nobody', 0, 12, 0)", 1),
    ],
)
async def test_totals_that_were_changed_are_found_and_counted_anew(store: Store, change: str, wrong: int) -> None:
    await store.journal().upgrade()
    since = Payer(account="ours", since=time.time() - 1200)
    async with store.journal() as journal:
        for key in ("one", "another"):
            await journal.add([planned(key, batch="songs")])
            await journal.intend(key, key, payer=Payer(account="ours"))
            await journal.move(key, State.SUBMITTED, task_id=key)
        await journal.move("one", State.SUCCEEDED, credits=20)
        await journal.move("another", State.FAILED)
        await journal.move("another", State.PLANNED)
        await journal.add([planned("enqueued later")])
        await journal.intend("enqueued later", "later", payer=Payer(account="ours"))
        await journal.move("enqueued later", State.SUBMITTED, task_id="later")
        await journal.move("enqueued later", State.FAILED, credits=30)
        await journal.move("enqueued later", State.PLANNED)
        await journal.add([planned("enqueued later", batch="later")])
        before = await counted_for(journal, "songs"), await counted(journal, since), await counted(journal, Payer())
    assert not [each for each in await store.journal().diagnose() if "totals" in each.what]
    store.execute(change)
    try:
        found = "\n".join(each.what for each in await store.journal().diagnose())
    except StorageError as error:  # of a file
        found = error.message
    assert re.search(rf"{wrong} totals of spending are not .* database upgrade --journal", found)
    await store.journal().upgrade()
    assert not [each for each in await store.journal().diagnose() if "totals" in each.what]
    async with store.journal() as journal:
        after = await counted_for(journal, "songs"), await counted(journal, since), await counted(journal, Payer())
    assert after == before


async def test_what_is_new_is_kept_in_an_upgraded_journal(store: Store) -> None:
    await store.journal().upgrade()
    async with store.journal() as journal:
        job = attrs.evolve(held("mine", "studio"), account="ours")
        await journal.add([job])
        assert await journal.get("mine") == job
        moved = await journal.intend("mine", "mine")
        assert (moved.machine, moved.account) == ("studio", "ours")


async def test_a_task_of_a_plain_session_is_one_in_an_upgraded_journal(store: Store) -> None:
    await store.journal().upgrade()
    async with store.journal() as journal:
        attempts = await journal.attempts("submitted")
        assert "submitted" not in [job.key async for job in journal.jobs(State.SUBMITTED, batch=ANY_BATCH)]
        assert await journal.add([planned("submitted", batch="songs")]) == 0
        assert [job.key async for job in journal.jobs(State.SUBMITTED, batch=ANY_BATCH)] == ["submitted"]
        assert await journal.attempts("submitted") == attempts
        await journal.move("submitted", State.SUCCEEDED, token="token-submitted")


@pytest.mark.parametrize("version", [1, 99])
async def test_what_cannot_be_upgraded_is_not_touched(store: Store, version: int) -> None:
    change = {"sqlite": "PRAGMA user_version = {}", "postgresql": "UPDATE kie_schema SET version = {}"}
    store.execute(change[store.name].format(version))
    with pytest.raises(StorageError, match=f"version {version}.*finish its jobs with the kie_async that made it"):
        await store.journal().upgrade()


async def test_it_is_not_upgraded_while_a_process_works_on_it(store: Store) -> None:
    store.execute("INSERT INTO kie_lease VALUES ('process:other:1:x', 'other:1:x', 4e9)")
    store.execute("INSERT INTO kie_lease VALUES ('process:gone:1:x', 'gone:1:x', 1)")
    with pytest.raises(StorageError, match="while other:1:x works on it: end that first, also if it is only stopped"):
        await store.journal().upgrade()
    store.execute("DELETE FROM kie_lease WHERE expires_at > 3e9")
    assert await store.journal().upgrade() == OLDEST


# What a process of version 2 says before it spends anything, and when it has: it reads a job, claims it by a write, and
# records the attempt, its task and its upload.
OLD_STATEMENTS = (
    "SELECT document, checksum, written FROM kie_job WHERE key = 'planned'",
    """INSERT INTO kie_job (key, batch, state, cost, changed_at, document, checksum, written)
    VALUES ('new', '', 'planned', 0, 0, '', 0, 'old')
    ON CONFLICT (key) DO UPDATE SET written = excluded.written WHERE kie_job.written = excluded.written""",
    "UPDATE kie_job SET state = 'intent', cost = 12, written = 'old' WHERE key = 'planned' AND written <> ''",
    """INSERT INTO kie_attempt (token, key, number, task_id, process_id, intended_at, checksum)
    SELECT 'old', key, 1, NULL, 'old', 0, 0 FROM kie_job WHERE key = 'planned' AND written <> ''""",
    """UPDATE kie_attempt SET task_id = 'old'
    WHERE token = 'token-intent' AND EXISTS (SELECT 1 FROM kie_job WHERE key = 'intent' AND written <> '')""",
    """INSERT INTO kie_upload (sha256, uploaded_at, document, checksum)
    SELECT 'old', 0, '', 0 FROM kie_job WHERE key = 'planned' AND written <> ''""",
)


async def test_a_process_of_the_older_version_that_goes_on_later_can_write_no_more(store: Store) -> None:
    """It was only stopped, and its lease ran out meanwhile."""
    connect: Any = sqlite3.connect if store.name == "sqlite" else psycopg.connect
    with closing(connect(store.address)) as old:
        for statement in OLD_STATEMENTS:
            old.execute(statement)
        old.rollback()
        await store.journal().upgrade()
        for statement in OLD_STATEMENTS:
            with pytest.raises((sqlite3.OperationalError, psycopg.errors.UndefinedColumn), match="written"):
                old.execute(statement)
            old.rollback()
    async with store.journal() as journal:
        assert await content(journal) == sample_json("journal_2.json")[store.name]


async def test_an_upgrade_that_fails_changes_nothing(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    if store.name == "postgresql":
        store.execute("CREATE INDEX kie_job_account ON kie_job (key)")
    else:
        hook(monkeypatch, lambda _, statement: "nonsense" if "INDEX kie_job_account" in statement else None)
    with pytest.raises(StorageError):
        await store.journal().upgrade()
    monkeypatch.undo()
    store.execute("DROP INDEX IF EXISTS kie_job_account")
    assert await store.journal().upgrade() == OLDEST


async def test_two_that_upgrade_it_at_once(store: Store) -> None:
    versions: list[int] = []

    async def upgrade() -> None:
        versions.append(await store.journal().upgrade())

    async with anyio.create_task_group() as group:
        for _ in range(4):
            group.start_soon(upgrade)
    assert [version == OLDEST for version in sorted(versions)] == [True, False, False, False]


@pytest.mark.parametrize("version", [OLDEST, VERSION])
async def test_an_upgrade_beside_a_job_that_is_being_added_is_no_deadlock(database_url: str, version: int) -> None:
    execute(database_url, (SAMPLES / "journal_2.postgresql.sql").read_text("utf-8"))
    if version == VERSION:  # then the totals are counted
        await open_journal(database_url).upgrade()
    waiting = "SELECT count(*) FROM pg_locks WHERE relation = 'kie_job'::regclass AND NOT granted"
    versions: list[int] = []

    async def upgrade() -> None:
        versions.append(await open_journal(database_url).upgrade())

    async with await psycopg.AsyncConnection.connect(database_url) as adding, anyio.create_task_group() as group:
        await adding.execute("LOCK TABLE kie_job IN ROW EXCLUSIVE MODE")  # as INSERT does, before it needs a position
        group.start_soon(upgrade)
        with anyio.fail_after(60):
            while await (await adding.execute(waiting)).fetchone() != (1,):
                await anyio.sleep(0.02)
        await adding.execute("SELECT kie_next_position()")
        assert not versions
        await adding.commit()
    assert versions == [version]
