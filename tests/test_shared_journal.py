"""Sessions that share a journal: its quota is theirs together, and what a dead one leaves goes on with the living."""

from __future__ import annotations

import sqlite3
from collections.abc import Awaitable, Callable
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import attrs
import pytest
from service import REQUEST, serving

import kie_async as kie
from kie_async.emulator import Fault
from kie_async.errors import StorageError
from kie_async.events import Notice
from kie_async.journal import Job, Journal, PostgresJournal, SQLiteJournal, State
from kie_async.settings import Secret

pytestmark = pytest.mark.anyio

KEYS = "abc"


async def states(session: kie.KieSession) -> list[State]:
    assert session.journal is not None
    return [job.state for _, job in await session.journal.page()]


async def until(reached: Callable[[], Awaitable[bool]]) -> None:
    with anyio.fail_after(600):
        while not await reached():
            await anyio.sleep(1)


@pytest.fixture(params=["sqlite", "postgresql"])
def journal(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[], Journal]:
    """Makes a journal for each session, of one store."""
    if request.param == "sqlite":
        return lambda: file(tmp_path)
    return partial(PostgresJournal, request.getfixturevalue("database_url"))


def file(folder: Path) -> Journal:
    return SQLiteJournal(folder / "kie.sqlite", poll=5.0)  # each look is a timer, and the virtual clock stops at each


async def test_a_journal_is_given_by_its_path(tmp_path: Path) -> None:
    journal = tmp_path / "kie.sqlite"
    async with serving() as service:
        settings = service.session.settings
        async with kie.KieSession(settings, journal=journal) as session:
            task = await session.submit(REQUEST, key="one")
        async with kie.KieSession(attrs.evolve(settings, journal=journal)) as again:
            assert (await again.submit(REQUEST, key="one")).id == task.id
        assert len(service.emulator.ledger) == 1


async def test_the_environment_names_the_journal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KIE_JOURNAL", str(tmp_path / "kie.sqlite"))
    async with serving() as service:
        await service.session.submit(REQUEST)
        assert await states(service.session) == [State.SUBMITTED]
        without = kie.KieSession(attrs.evolve(service.session.settings, journal=""))
        assert without.journal is None


def test_the_address_of_a_journal_is_never_shown() -> None:
    settings = kie.Settings(api_key="k", journal="postgresql://kie:secret@db.example/kie")
    assert "secret" not in repr(settings)
    assert isinstance(settings.journal, Secret)


@pytest.mark.parametrize(
    "address",
    [
        "mysql://kie:secret@db.example/kie",
        "sqlite:///kie.sqlite",
        "host=db.example dbname=kie password=secret",
        "postgresql:/kie:secret@db.example/kie",
    ],
)
def test_an_address_of_another_kind_is_refused_and_not_shown(address: str) -> None:
    with pytest.raises(kie.SettingsError, match="neither a path nor postgresql://") as caught:
        kie.KieSession(kie.Settings(api_key="k", journal=address))
    assert address not in str(caught.value)


def test_the_account_is_named_after_the_key_and_does_not_show_it(monkeypatch: pytest.MonkeyPatch) -> None:
    key = "a-key-of-some-length"
    account = kie.Settings(api_key=key).account
    assert account == kie.Settings(api_key=key).account
    assert account != kie.Settings(api_key=f"{key}2").account
    assert key not in account
    monkeypatch.setenv("KIE_ACCOUNT", "ours")
    assert kie.Settings(api_key=key).account == "ours"
    assert kie.Settings(api_key=key, account="theirs").account == "theirs"


async def test_what_a_session_leaves_goes_on_with_another(journal: Callable[[], Journal]) -> None:
    async with serving() as service:
        settings = service.session.settings
        async with kie.KieSession(settings, journal=journal()) as first:
            for key in KEYS:
                await first.submit(REQUEST, key=key)
        async with kie.KieSession(settings, journal=journal()) as second:

            async def all_ended() -> bool:
                return await states(second) == [State.SUCCEEDED] * len(KEYS)

            await until(all_ended)
        assert len(service.emulator.ledger) == len(KEYS)


async def test_what_a_session_leaves_goes_on_with_one_that_was_open_before(journal: Callable[[], Journal]) -> None:
    async with serving() as service:
        settings = service.session.settings
        async with kie.KieSession(settings, journal=journal()) as living:
            async with kie.KieSession(settings, journal=journal()) as left:
                await left.submit(REQUEST, key="one")

            async def ended() -> bool:
                return await states(living) == [State.SUCCEEDED]

            await until(ended)


async def test_one_session_alone_takes_over_what_a_dead_one_left(tmp_path: Path) -> None:
    async with serving() as service:
        settings = service.session.settings
        async with kie.KieSession(settings, journal=file(tmp_path)) as dead:
            task_id = (await dead.submit(REQUEST)).id
        async with (
            kie.KieSession(settings, journal=file(tmp_path)) as one,
            kie.KieSession(settings, journal=file(tmp_path)) as other,
        ):
            await anyio.sleep(30)
            followed = [session.track(task_id).status != "" for session in (one, other)]
    assert sorted(followed) == [False, True]


async def test_the_intent_of_a_dead_process_is_resolved_when_another_session_opens(tmp_path: Path) -> None:
    path = tmp_path / "kie.sqlite"
    async with SQLiteJournal(path, process_id="elsewhere:1:dead") as dead:
        await dead.add([Job(key="one", request=REQUEST)])
        await dead.intend("one", "t" * 43)
    async with serving() as service, kie.KieSession(service.session.settings, journal=file(tmp_path)) as session:

        async def is_resolved() -> bool:
            return await states(session) == [State.UNKNOWN]

        await until(is_resolved)
    assert service.emulator.ledger == []  # never sent again by itself


async def test_what_a_living_process_works_on_is_left_to_it(tmp_path: Path) -> None:
    path = tmp_path / "kie.sqlite"
    async with SQLiteJournal(path, process_id="elsewhere:1:alive") as alive:
        await alive.add([Job(key="one", request=REQUEST)])
        await alive.intend("one", "t" * 43)
        await alive.lease("process:elsewhere:1:alive", 3600)
        async with serving() as service, kie.KieSession(service.session.settings, journal=file(tmp_path)) as session:
            await anyio.sleep(60)
            assert await states(session) == [State.INTENT]


async def test_sessions_with_one_journal_share_the_quota(tmp_path: Path) -> None:
    path = tmp_path / "kie.sqlite"
    async with serving(settings={"quota": 3, "quota_window": 0.4}) as service:
        settings = service.session.settings
        async with (
            kie.KieSession(settings, journal=file(tmp_path)) as one,
            kie.KieSession(settings, journal=file(tmp_path)) as other,
            anyio.create_task_group() as group,
        ):
            for session in (one, other) * 5:
                group.start_soon(session.submit, REQUEST)
        with closing(sqlite3.connect(path)) as database:
            accounts = database.execute("SELECT account FROM kie_quota").fetchall()
    assert accounts == [(settings.account,)]
    assert len(service.emulator.ledger) == 10


class Unsteady(SQLiteJournal):
    """A journal that is away for one call of each of these methods."""

    def __init__(self, folder: Path, *methods: str) -> None:
        super().__init__(folder / "kie.sqlite", poll=5.0)
        self._away = {*methods}

    async def _stumble(self, method: str) -> None:
        if method in self._away:
            self._away.remove(method)
            raise StorageError("the store is away")

    async def open_processes(self) -> list[str]:
        await self._stumble("open_processes")
        return await super().open_processes()

    async def page(self, *states: State, **options: Any) -> list[tuple[int, Job]]:
        await self._stumble("page")
        return await super().page(*states, **options)


@pytest.mark.parametrize("method", ["open_processes", "page"])
async def test_a_store_that_is_away_for_a_moment_delays_the_taking_over(method: str, tmp_path: Path) -> None:
    async with serving() as service:
        settings = service.session.settings
        async with kie.KieSession(settings, journal=file(tmp_path)) as left:
            await left.submit(REQUEST)
        async with kie.KieSession(settings, journal=Unsteady(tmp_path, method)) as session:

            async def ended() -> bool:
                assert session.journal is not None
                return (await session.journal.counts())[State.SUCCEEDED] == 1

            await until(ended)
        assert any("the store is away" in event.note for event in service.of(Notice))


async def test_a_process_that_was_taken_for_dead_goes_on_while_another_follows_its_tasks(tmp_path: Path) -> None:
    def stopped() -> Journal:
        return SQLiteJournal(tmp_path / "kie.sqlite", process_id="elsewhere:1:stopped", poll=5.0)

    async with serving() as service:
        settings = service.session.settings
        async with kie.KieSession(settings, journal=stopped()) as before:
            task_id = (await before.submit(REQUEST)).id
        async with kie.KieSession(settings, journal=file(tmp_path)) as other:
            await anyio.sleep(25)  # between two of its checks: each holds the lease for a moment
            assert other.track(task_id).status != ""  # it has taken over
            async with kie.KieSession(settings, journal=stopped()) as awake:
                await awake.submit(REQUEST)
            assert len(service.emulator.ledger) == 2


@pytest.mark.parametrize("gives_up", [False, True])
async def test_what_a_process_leaves_is_taken_over_again_unless_its_time_was_over(
    gives_up: bool,  # noqa: FBT001  # a parameter
    tmp_path: Path,
) -> None:
    faults = [Fault("stuck")] if gives_up else [Fault("failed", nth=1)]
    async with serving(faults=faults, settings={"task_timeout": 120.0}) as service:
        settings = service.session.settings

        def submissions() -> Journal:
            return SQLiteJournal(tmp_path / "kie.sqlite", process_id="elsewhere:1:dead", poll=5.0)

        async with kie.KieSession(settings, journal=file(tmp_path)) as living:
            for _ in range(2):
                async with kie.KieSession(settings, journal=submissions()) as left:
                    task_id = (await left.submit(REQUEST)).id
                await anyio.sleep(400)
            assert (service.emulator.polls(task_id) == 0) is gives_up
            assert sorted(await states(living)) == (
                [State.SUBMITTED, State.SUBMITTED] if gives_up else [State.FAILED, State.SUCCEEDED]
            )
