"""A paid task is never forgotten: with a journal it is followed to its end, whoever waits, and its end is recorded."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import Any, Self

import anyio
import pytest
from service import REQUEST, Service, as_journal, serving

import kie_async as kie
from kie_async.emulator import Fault, Rules
from kie_async.errors import StorageError
from kie_async.events import Notice
from kie_async.journal import Journal, SQLiteJournal, State

pytestmark = pytest.mark.anyio

MANY = 20


def store(path: Path) -> SQLiteJournal:
    return SQLiteJournal(path, poll=5.0)  # each look is a timer, and the virtual clock stops at each


class Failing:
    """A journal some of whose calls fail, as often as they are told to."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self.fails: Callable[[str, tuple[Any, ...]], StorageError | None] = lambda _name, _args: None

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._journal, name)

        def call(*args: Any, **fields: Any) -> Any:
            if (error := self.fails(name, args)) is not None:
                raise error
            return method(*args, **fields)

        return call if callable(method) else method

    async def __aenter__(self) -> Self:
        await self._journal.__aenter__()
        return self

    async def __aexit__(self, *error: object) -> None:
        await self._journal.__aexit__(None, None, None)


def away(name: str, args: tuple[Any, ...]) -> StorageError | None:
    """The journal cannot write an end."""
    return StorageError("the store is away") if name == "move" and State.SUCCEEDED in args else None


@asynccontextmanager
async def journaled(folder: Path, **options: Any) -> AsyncGenerator[tuple[Service, kie.KieSession, Failing]]:
    """A session with a journal, beside one without."""
    fast = {"max_in_flight": 1000, "quota": 1000, **options.pop("settings", {})}
    async with serving(credits=1e6, settings=fast, rules=Rules(quota=1000), **options) as service:
        journal = Failing(store(folder / "journal.sqlite"))
        async with kie.KieSession(service.session.settings, journal=as_journal(journal)) as session:
            yield service, session, journal


def living() -> int:
    """How many objects of the library there are, and futures; what the emulator and the observer keep is theirs."""
    gc.collect()
    kinds = [type(each) for each in gc.get_objects()]
    ours = [name for name in (str(kind.__module__) for kind in kinds) if name.startswith("kie_async.")]
    kept = sum(name.startswith(("kie_async.emulator", "kie_async.events")) for name in ours)
    return len(ours) - kept + sum(issubclass(kind, asyncio.Future) for kind in kinds)


async def give_up(session: kie.KieSession, number: int) -> None:
    """One of the ways to go away from a task."""
    match number % 4:
        case 0:
            with pytest.raises(kie.WaitTimeoutError):
                await (await session.submit(REQUEST)).result(timeout=0.2)
        case 1:
            await session.submit(REQUEST)
        case 2:
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(1 + number / 4):
                    await (await session.submit(REQUEST))
        case _:
            async with aclosing((await session.submit(REQUEST)).events()) as events:
                await anext(events)


@pytest.mark.scale
async def test_tasks_whose_waiters_go_away_are_followed_to_their_ends(tmp_path: Path) -> None:
    quick = {"timeline": (3.0, 6.0, 30.0), "faults": [Fault("failed", nth=7)]}
    async with journaled(tmp_path, **quick) as (service, session, journal):
        living_after = []
        for _ in range(4):
            await asyncio.gather(*(give_up(session, number) for number in range(MANY)))
            await anyio.sleep(100)
            living_after.append(living())
        counts = await journal.counts()
        assert (counts[State.SUCCEEDED], counts[State.FAILED]) == (4 * MANY - 1, 1)
        assert living_after[3] <= living_after[0] + 2 * MANY  # connections come and go; 3 * MANY tasks leave nothing
        polls = [service.emulator.polls(charge.task_id) for charge in service.emulator.ledger]
        await anyio.sleep(100)
        assert polls == [service.emulator.polls(charge.task_id) for charge in service.emulator.ledger]


async def test_many_submissions_broken_off_are_followed_to_their_ends(tmp_path: Path) -> None:
    async with journaled(tmp_path, timeline=(3.0, 6.0, 12.0)) as (service, session, journal):
        async with aclosing(session.submit_all([REQUEST] * MANY)) as outcomes:
            await anext(outcomes)
        await anyio.sleep(100)
        counts = await journal.counts()
        assert counts[State.SUCCEEDED] == len(service.emulator.ledger)
        assert counts[State.SUBMITTED] == 0


async def test_without_a_journal_nobody_waits_and_nobody_polls(tmp_path: Path) -> None:
    async with journaled(tmp_path) as (service, _, _):
        task = await service.session.submit(REQUEST)
        with pytest.raises(kie.WaitTimeoutError):
            await task.result(timeout=0.2)
        await anyio.sleep(300)
        assert service.emulator.polls(task.id) == 0


async def test_an_end_is_recorded_when_the_store_is_back(tmp_path: Path) -> None:
    async with journaled(tmp_path) as (service, session, journal):
        journal.fails = away
        task = await session.submit(REQUEST, key="k")
        await task
        await anyio.sleep(60)
        assert (await journal.counts())[State.SUBMITTED] == 1
        polls = service.emulator.polls(task.id)
        journal.fails = lambda _name, _args: None
        await anyio.sleep(10)
        assert (await journal.counts())[State.SUCCEEDED] == 1
        assert service.emulator.polls(task.id) == polls


async def test_an_end_that_can_never_be_written_does_not_hold_up_the_others(tmp_path: Path) -> None:
    async with journaled(tmp_path) as (service, session, journal):

        def damaged(_name: str, args: tuple[Any, ...]) -> StorageError | None:
            return StorageError("damaged", retryable=False) if args[:2] == ("bad", State.SUCCEEDED) else None

        journal.fails = damaged
        await asyncio.gather(*[await session.submit(REQUEST, key=key) for key in ("bad", "good")])
        await anyio.sleep(60)
        assert [job.key for _, job in await journal.page(State.SUCCEEDED)] == ["good"]
        assert [event.note for event in service.of(Notice)].count("its end could not be recorded: damaged") == 1


async def test_a_batch_stops_when_an_end_cannot_be_written(tmp_path: Path) -> None:
    """It neither waits for the store for ever nor asks the service again and again."""
    async with serving(credits=1e6) as service:
        journal = Failing(store(tmp_path / "journal.sqlite"))
        journal.fails = away
        jobs = [kie.Job(key="k", request=REQUEST)]
        with pytest.raises(StorageError):
            async for _ in kie.run_batch(
                service.session, jobs, journal=as_journal(journal), directory=tmp_path / "out"
            ):
                pass
        (charge,) = service.emulator.ledger
        assert service.emulator.polls(charge.task_id) < 20


class Slow(Failing):
    """A journal whose writes take their time."""

    async def move(self, *args: Any, **fields: Any) -> kie.Job:
        await anyio.sleep(0.5)
        moved: kie.Job = await self._journal.move(*args, **fields)
        return moved


async def test_the_ends_that_are_known_are_recorded_when_the_session_is_left(tmp_path: Path) -> None:
    async with serving() as service:
        settings, journal = service.session.settings, Slow(store(tmp_path / "journal.sqlite"))
        async with kie.KieSession(settings, journal=as_journal(journal)) as session:
            await asyncio.gather(*[await session.submit(REQUEST) for _ in range(5)])
    async with store(tmp_path / "journal.sqlite") as after:
        assert (await after.counts())[State.SUCCEEDED] == 5


async def test_a_session_is_left_though_the_store_is_away(tmp_path: Path) -> None:
    async with journaled(tmp_path) as (_, session, journal):
        journal.fails = away
        await asyncio.gather(*[await session.submit(REQUEST) for _ in range(3)])
        await anyio.sleep(1)
    async with store(tmp_path / "journal.sqlite") as journal:
        assert (await journal.counts())[State.SUBMITTED] == 3


async def test_a_task_whose_time_is_over_stays_submitted_and_is_resumed(tmp_path: Path) -> None:
    late = {"timeline": (10.0, 45.0, 400.0), "settings": {"task_timeout": 250}}
    async with journaled(tmp_path, **late) as (_, session, journal):
        with pytest.raises(kie.WaitTimeoutError, match=r"session\.resume\(\)"):
            await (await session.submit(REQUEST))
        assert (await journal.counts())[State.SUBMITTED] == 1
        (task,) = [task async for task in session.resume()]
        assert len((await task).tracks) == 2
        await anyio.sleep(1)
        assert (await journal.counts())[State.SUCCEEDED] == 1


@pytest.mark.parametrize("waits", [False, True])
async def test_the_end_of_a_journal_s_task_that_is_only_tracked_is_recorded(tmp_path: Path, waits: bool) -> None:  # noqa: FBT001  # a parameter
    async with serving(credits=1e6) as service:
        path, settings = tmp_path / "journal.sqlite", service.session.settings
        foreign = (await service.session.submit(REQUEST)).id
        async with kie.KieSession(settings, journal=store(path)) as session:
            task_id = (await session.submit(REQUEST, key="k")).id
        async with kie.KieSession(settings, journal=store(path)) as session:
            tasks = [session.track(each) for each in (task_id, task_id, foreign)]
            if waits:
                with pytest.raises(kie.WaitTimeoutError):
                    await tasks[0].result(timeout=1)
            await anyio.sleep(300)
        async with store(path) as journal:
            assert [job.task_id for _, job in await journal.page(State.SUCCEEDED)] == [task_id]


async def test_a_task_awaited_again_and_tracked_besides_is_one_task() -> None:
    """Both waiters hear of its end, and of that of the session."""
    async with serving(faults=[Fault("stuck")]) as service:
        async with kie.KieSession(service.session.settings) as session:
            task = await session.submit(REQUEST)
            with pytest.raises(kie.WaitTimeoutError):
                await task.result(timeout=1)
            waiting = [asyncio.ensure_future(each.result()) for each in (session.track(task.id), task)]
            await anyio.sleep(10)
        for each in waiting:
            with pytest.raises(kie.SessionError):
                await each


async def test_the_errors_of_a_closed_session_hold_no_task() -> None:
    async with serving(faults=[Fault("stuck")]) as service:
        before = living()
        async with kie.KieSession(service.session.settings) as session:
            waiting = [asyncio.ensure_future(session.track(f"t{number}").result()) for number in range(MANY)]
            await anyio.sleep(1)
        ends = [result.exception() for result in waiting]
        assert {type(end) for end in ends} == {kie.SessionError}
        del session, waiting
        assert living() - before <= MANY + 10  # the errors, and what is left of connections


async def test_a_task_that_was_accepted_and_is_not_found_may_have_been_charged() -> None:
    async with serving(faults=[Fault("invisible", seconds=1000)]) as service:
        with pytest.raises(kie.TaskNotFoundError) as caught:
            await (await service.session.submit(REQUEST))
        assert caught.value.charged == "maybe"
        with pytest.raises(kie.TaskNotFoundError) as caught:
            await service.session.track("t1")
        assert caught.value.charged == "no"
