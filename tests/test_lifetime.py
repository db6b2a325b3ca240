"""Sessions that live in more than one task: opened in one, used in others, closed in yet another, or forgotten."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any, Self, TypeVar

import anyio
import attrs
import pytest
import trio
from aiohttp import web
from service import REQUEST, as_journal, serving
from virtual_time import VirtualTimeLoop

import kie_async as kie
from kie_async import emulator
from kie_async._client.concurrency import unwrap_single_exception
from kie_async._client.lifetime import Lifetime
from kie_async.emulator import Fault
from kie_async.errors import StorageError
from kie_async.events import Event, SubmissionUnknown
from kie_async.journal import InboundCallback, Job, Journal, SQLiteJournal, State
from kie_async.testing import EmulatorHandle

pytestmark = pytest.mark.anyio

T = TypeVar("T")


async def elsewhere(work: Awaitable[T]) -> T:
    """Await in a task of its own, as a notebook's cell or a framework's hook does."""

    async def run() -> T:
        return await work

    return await asyncio.create_task(run())


def store(folder: Path) -> SQLiteJournal:
    return SQLiteJournal(folder / "journal.sqlite", poll=5.0)


async def read(folder: Path, key: str) -> Job:
    async with store(folder) as journal:
        job = await journal.get(key)
    assert job is not None
    return job


class Failing:
    """A journal whose listening fails when it is told to; the other methods are those of a real one."""

    def __init__(self, journal: Journal, *errors: Exception) -> None:
        self.fail = asyncio.Event()
        self._journal = journal
        self._errors = errors

    def __getattr__(self, name: str) -> Any:
        return getattr(self._journal, name)

    async def watch_callbacks(self) -> AsyncIterator[InboundCallback]:
        try:
            await self.fail.wait()
        finally:
            if self._errors:
                raise self._errors[0]
        yield InboundCallback(token="", task_id="", stage="", at=0.0)

    async def __aenter__(self) -> Self:
        await self._journal.__aenter__()
        return self

    async def __aexit__(self, *error: object) -> None:
        await self._journal.__aexit__(None, None, None)


# ---------------------------------------------------------------- in different tasks


async def test_it_is_opened_used_and_closed_in_different_tasks(tmp_path: Path) -> None:
    async with serving() as service:
        session = await elsewhere(kie.KieSession.open(service.session.settings, journal=store(tmp_path)))
        task = await elsewhere(session.submit(REQUEST, key="k"))
        assert len((await elsewhere(task.result())).tracks) == 2
        await elsewhere(session.aclose())
        await elsewhere(session.aclose())  # nothing happens
        with pytest.raises(kie.SessionError, match="was closed"):
            await session.credits()
    assert (await read(tmp_path, "k")).state is State.SUCCEEDED


@pytest.mark.parametrize("order", [1, -1])
async def test_a_block_is_entered_and_left_in_different_tasks(tmp_path: Path, order: int) -> None:
    async with serving() as service:
        sessions = [kie.KieSession(service.session.settings, journal=store(tmp_path / str(n))) for n in range(3)]
        for session in sessions:
            await elsewhere(session.__aenter__())
        for session in sessions[::order]:
            await session.credits()
            await elsewhere(session.__aexit__(None, None, None))


async def test_an_emulator_and_a_receiver_are_left_in_another_task(free_port: int) -> None:
    stack = AsyncExitStack()
    service = await elsewhere(stack.enter_async_context(emulator.serve(timeline=(1.0, 2.0, 3.0))))
    url = f"http://127.0.0.1:{free_port}/kie"
    settings = kie.Settings(api_key=service.key, base_url=service.base_url, callback_url=url)
    session = await elsewhere(stack.enter_async_context(kie.KieSession(settings)))
    await elsewhere(stack.enter_async_context(kie.callbacks.serve(session, port=free_port)))
    assert (await (await session.submit(REQUEST))).tracks
    await elsewhere(service.wait_finished())
    await elsewhere(stack.aclose())
    assert [sent.status for sent in service.callbacks] == [200] * 3


async def fixture(settings: kie.Settings) -> AsyncGenerator[kie.KieSession]:
    async with kie.KieSession(settings) as session:
        yield session


async def test_a_fixture_is_set_up_and_torn_down_in_different_tasks() -> None:
    async with serving() as service:
        generator = fixture(service.session.settings)
        session = await elsewhere(anext(generator))
        await elsewhere(session.credits())
        with pytest.raises(StopAsyncIteration):
            await elsewhere(anext(generator))
        with pytest.raises(kie.SessionError, match="was closed"):
            await session.credits()


async def test_outcomes_are_read_and_left_in_different_tasks(tmp_path: Path) -> None:
    async with serving(credits=1e6, settings={"max_in_flight": 2}) as service:
        outcomes = service.session.submit_all([REQUEST] * 10)
        jobs = kie.run_batch(
            service.session,
            [Job(key=str(number), request=REQUEST) for number in range(10)],
            journal=store(tmp_path),
            directory=tmp_path / "out",
        )
        assert (await elsewhere(anext(outcomes))).result
        assert (await elsewhere(anext(jobs))).state is State.DELIVERED
        await elsewhere(outcomes.aclose())
        await elsewhere(jobs.aclose())
        sent = len(service.emulator.ledger)
        await anyio.sleep(300)
        assert len(service.emulator.ledger) == sent < 20


def test_cells_of_a_notebook(kie_emulator: EmulatorHandle) -> None:
    loop = asyncio.new_event_loop()

    def cell(work: Coroutine[Any, Any, T]) -> T:
        return loop.run_until_complete(work)

    session = cell(kie.KieSession.open())
    task = cell(session.submit(REQUEST))
    assert len(cell(task.result()).tracks) == 2
    cell(session.aclose())
    loop.close()
    assert len(kie_emulator.ledger) == 1


@pytest.mark.usefixtures("clock")
async def test_the_hooks_of_aiohttp_may_run_in_different_tasks() -> None:
    async with serving() as service:
        opened: list[kie.KieSession] = []

        async def run_session(_app: web.Application) -> AsyncIterator[None]:
            async with kie.KieSession(service.session.settings) as session:
                opened.append(session)
                yield

        app = web.Application()
        app.cleanup_ctx.append(run_session)
        runner = web.AppRunner(app)
        await elsewhere(runner.setup())
        assert (await opened[0].credits()).amount
        await elsewhere(runner.cleanup())
        with pytest.raises(kie.SessionError, match="was closed"):
            await opened[0].credits()


# ---------------------------------------------------------------- others use it while it is closed


async def ends(task: asyncio.Task[Any]) -> BaseException | None:
    with anyio.fail_after(200):
        await asyncio.wait([task])
    return task.exception()


async def test_who_waits_for_outcomes_is_told_of_the_closing() -> None:
    async with serving(credits=1e6) as service:
        session = await kie.KieSession.open(service.session.settings)
        outcomes = session.submit_all([REQUEST] * 10)
        late = session.submit_all([REQUEST])
        reading = asyncio.create_task(anext(outcomes))
        await anyio.sleep(1)
        await session.aclose()
        assert isinstance(await ends(reading), kie.SessionError)
        with pytest.raises(kie.SessionError, match="was closed"):
            await anext(late)


async def test_a_submission_that_waits_is_not_sent_after_the_closing() -> None:
    async with serving(credits=1e6, settings={"quota": 1}) as service:
        session = await kie.KieSession.open(service.session.settings)
        await session.submit(REQUEST)
        waiting = asyncio.create_task(session.submit(REQUEST))
        await anyio.sleep(1)
        await session.aclose()
        assert isinstance(await ends(waiting), kie.SessionError)
        assert len(service.emulator.ledger) == 1


async def fetch(session: kie.KieSession, folder: Path) -> None:
    result = await (await session.submit(REQUEST))
    await session.download(result.tracks[0], folder)


@pytest.mark.parametrize(
    ("use", "seconds"),
    [(lambda session, _: session.credits(), 1.0), (fetch, 100.0)],
)
async def test_a_read_under_way_ends_with_the_session(
    tmp_path: Path, use: Callable[[kie.KieSession, Path], Coroutine[Any, Any, object]], seconds: float
) -> None:
    slow = [Fault("slow", on=on, seconds=60) for on in ("credits", "download")]
    async with serving(faults=slow) as service:
        session = await kie.KieSession.open(service.session.settings)
        using = asyncio.create_task(use(session, tmp_path))
        await anyio.sleep(seconds)
        assert not using.done()
        await session.aclose()
        assert isinstance(await ends(using), kie.KieError)


# ---------------------------------------------------------------- cancelled


@pytest.mark.parametrize("after", range(12))
@pytest.mark.parametrize("kept", [False, True])
async def test_cancelled_while_it_opens_it_leaves_nothing_open(tmp_path: Path, after: int, kept: bool) -> None:  # noqa: FBT001  # a parameter
    async with serving() as service:
        tasks = len(asyncio.all_tasks())
        journal = store(tmp_path) if kept else None
        opening = asyncio.create_task(kie.KieSession.open(service.session.settings, journal=journal))
        for _ in range(after):
            await anyio.lowlevel.checkpoint()
        opening.cancel()
        await asyncio.wait([opening])
        if not opening.cancelled():
            await opening.result().aclose()
        assert len(asyncio.all_tasks()) == tasks
    async with store(tmp_path):  # nobody holds it
        pass


async def test_cancelled_while_it_closes_it_still_records_the_answer_under_way(tmp_path: Path) -> None:
    async with serving(faults=[Fault("slow", seconds=5)]) as service:
        session = await kie.KieSession.open(service.session.settings, journal=store(tmp_path))
        submitting = asyncio.create_task(session.submit(REQUEST, key="k"))
        await anyio.sleep(2)
        closing = asyncio.create_task(session.aclose())
        with anyio.move_on_after(1) as scope:
            await session.aclose()
        assert scope.cancel_called
        closing.cancel()
        closing.cancel()
        await asyncio.wait([closing])
        submitting.cancel()
        (charge,) = service.emulator.ledger
    job = await read(tmp_path, "k")
    assert (job.state, job.task_id) == (State.SUBMITTED, charge.task_id)


async def test_a_block_that_is_cancelled_records_the_answer_under_way(tmp_path: Path) -> None:
    async with serving(faults=[Fault("slow", seconds=5)]) as service:

        async def program() -> None:
            async with kie.KieSession(service.session.settings, journal=store(tmp_path)) as session:
                await session.submit(REQUEST, key="k")

        running = asyncio.create_task(program())
        await anyio.sleep(1)
        for _ in range(3):
            running.cancel()
            await anyio.sleep(1)
        await asyncio.wait([running])
        assert running.cancelled()
    assert (await read(tmp_path, "k")).state is State.SUBMITTED


class Beside(Failing):
    """A journal beside whose opening something is done."""

    def __init__(self, journal: Journal, beside: Callable[[], object]) -> None:
        super().__init__(journal)
        self._beside = beside

    async def __aenter__(self) -> Self:
        await super().__aenter__()
        self._beside()
        await anyio.sleep(1)
        return self


async def test_closed_by_another_while_it_opens_it_is_closed(tmp_path: Path) -> None:
    async with serving() as service:
        closing: list[asyncio.Task[None]] = []
        journal = Beside(store(tmp_path), lambda: closing.append(asyncio.create_task(session.aclose())))
        session = kie.KieSession(service.session.settings, journal=as_journal(journal))
        async with session:
            with pytest.raises(kie.SessionError, match="was closed"):
                await session.credits()
        await closing[0]


async def test_ended_with_the_loop_while_it_opens_it_is_closed(tmp_path: Path) -> None:
    def cancel() -> None:
        task = asyncio.current_task()
        assert task is not None
        task.cancel()

    async with serving() as service:
        with pytest.raises(kie.SessionError, match="closed while it opened"):
            await kie.KieSession.open(service.session.settings, journal=as_journal(Beside(store(tmp_path), cancel)))


async def test_a_session_that_does_not_open_says_why(tmp_path: Path) -> None:
    (tmp_path / "journal.sqlite").write_bytes(b"no journal")
    async with serving() as service:
        with pytest.raises(StorageError, match="is damaged"):
            await kie.KieSession.open(service.session.settings, journal=store(tmp_path))
        with pytest.raises(StorageError, match="is damaged"):
            async with kie.KieSession(service.session.settings, journal=store(tmp_path)):
                pass


# ---------------------------------------------------------------- it fails by itself


async def test_a_failure_leaves_the_block_as_itself(tmp_path: Path) -> None:
    async with serving() as service:
        journal = Failing(store(tmp_path), StorageError("gone"))
        with pytest.raises(StorageError, match="gone"):
            async with kie.KieSession(service.session.settings, journal=as_journal(journal)):
                journal.fail.set()
                await anyio.sleep_forever()
        task = asyncio.current_task()
        assert task is not None
        assert task.cancelling() == 0
        await anyio.sleep(1)  # the cancellation was the session's, and is over


async def refusal(session: kie.KieSession) -> BaseException | None:
    with pytest.raises(kie.SessionError, match="has failed") as caught:
        await session.credits()
    return caught.value.__cause__


async def test_where_there_is_no_block_calls_and_the_closer_are_told_of_a_failure(tmp_path: Path) -> None:
    async with serving() as service:
        journal = Failing(store(tmp_path), StorageError("gone"))
        session = await kie.KieSession.open(service.session.settings, journal=as_journal(journal))
        task = await session.submit(REQUEST)
        waiting = asyncio.create_task(task.result())
        await anyio.sleep(1)
        journal.fail.set()
        assert isinstance(await ends(waiting), kie.SessionError)
        with pytest.raises(kie.SessionError, match="has failed"):
            await session.submit(REQUEST)
        while not isinstance(await refusal(session), StorageError):  # until the journal is closed
            await anyio.sleep(1)
        with pytest.raises(StorageError, match="gone"):
            await elsewhere(session.aclose())
        await session.aclose()  # told once
        assert len(service.emulator.ledger) == 1


async def test_a_failure_does_not_hide_the_error_it_came_upon(tmp_path: Path) -> None:
    async with serving() as service:
        journal = Failing(store(tmp_path), StorageError("gone"))
        with pytest.raises(StorageError, match="gone") as caught:
            async with kie.KieSession(service.session.settings, journal=as_journal(journal)):
                raise KeyError("mine")
        assert isinstance(caught.value.__context__, KeyError)
        assert not caught.value.__suppress_context__


async def test_a_failure_where_the_block_was_left_by_another_task(tmp_path: Path) -> None:
    async with serving() as service:
        journal = Failing(store(tmp_path), StorageError("gone"))
        session = kie.KieSession(service.session.settings, journal=as_journal(journal))
        await elsewhere(session.__aenter__())
        journal.fail.set()
        await anyio.sleep(1)
        with pytest.raises(StorageError, match="gone"):
            await session.__aexit__(None, None, None)


async def test_two_failures_stay_together(tmp_path: Path) -> None:
    async with serving() as service:
        journal = Failing(store(tmp_path), ExceptionGroup("two", [KeyError("a"), ValueError("b")]))
        with pytest.raises(ExceptionGroup) as caught:
            async with kie.KieSession(service.session.settings, journal=as_journal(journal)):
                journal.fail.set()
                await anyio.sleep_forever()
        assert len(caught.value.exceptions) == 2


@pytest.mark.parametrize("after", range(8))
async def test_a_failure_at_once(after: int) -> None:
    async def fail() -> None:
        for _ in range(after):
            await anyio.lowlevel.checkpoint()
        raise StorageError("gone")

    @asynccontextmanager
    async def resource() -> AsyncGenerator[None]:
        with unwrap_single_exception():
            async with anyio.create_task_group() as group:
                group.start_soon(fail)
                await anyio.lowlevel.checkpoint()
                yield

    with pytest.raises(StorageError, match="gone"):
        async with Lifetime("resource", resource):
            await anyio.sleep_forever()
    await anyio.sleep(1)


# ---------------------------------------------------------------- not under asyncio


@pytest.mark.parametrize("enter", [kie.KieSession(api_key="k" * 32), emulator.serve()])
def test_trio_is_refused_in_words(enter: AbstractAsyncContextManager[object]) -> None:
    async def main() -> None:
        async with enter:
            pass

    with pytest.raises(kie.SessionError, match="asyncio alone, not trio"):
        trio.run(main)


# ---------------------------------------------------------------- forgotten


@pytest.fixture
def in_a_loop_of_its_own(kie_emulator: EmulatorHandle) -> Iterator[asyncio.Runner]:
    assert kie_emulator.key
    with asyncio.Runner() as runner:
        yield runner


@contextmanager
def collecting() -> Iterator[None]:
    yield
    gc.collect()


def test_a_session_that_is_forgotten_warns(in_a_loop_of_its_own: asyncio.Runner) -> None:
    async def forget() -> kie.Task:
        session = await kie.KieSession.open()
        return await session.submit(REQUEST)

    with pytest.warns(ResourceWarning, match=r"await its 'aclose\(\)'"), collecting():
        task = in_a_loop_of_its_own.run(forget())

    async def wait() -> kie.TaskResult:
        return await task

    assert in_a_loop_of_its_own.run(wait()).tracks  # what was paid is followed all the same


def test_a_session_left_open_at_the_end_of_the_program_warns(kie_emulator: EmulatorHandle) -> None:
    kept = []

    async def forget() -> None:
        kept.append(await kie.KieSession.open())
        await kept[0].submit(REQUEST)

    asyncio.run(forget())
    with pytest.warns(ResourceWarning, match="was left open"), collecting():
        kept.clear()
    assert len(kie_emulator.ledger) == 1


def test_a_submission_under_way_at_the_end_of_the_program_is_emitted(kie_emulator: EmulatorHandle) -> None:
    kie_emulator.add_faults(Fault("slow", seconds=60))
    emitted: list[Event] = []
    kept: list[object] = []

    async def forget() -> None:
        session = await kie.KieSession.open(kie.Settings(observer=emitted.append))
        kept.extend((session, asyncio.ensure_future(session.submit(REQUEST))))
        while not kie_emulator.ledger:
            await asyncio.sleep(0.01)

    asyncio.run(forget())
    assert [event.reason for event in emitted if isinstance(event, SubmissionUnknown)]
    with pytest.warns(ResourceWarning, match="was left open"), collecting():
        kept.clear()


@pytest.mark.filterwarnings("error::ResourceWarning")
def test_a_session_that_was_never_opened_or_was_refused_does_not_warn() -> None:
    kie.KieSession(api_key="k" * 32)
    with pytest.raises(kie.SettingsError):
        kie.KieSession(api_key="")
    gc.collect()


async def test_a_session_of_another_loop_is_not_closed_here() -> None:
    async with serving() as service:
        with pytest.raises(kie.SessionError, match="another event loop"):
            await anyio.to_thread.run_sync(asyncio.run, service.session.aclose())
        assert (await service.session.credits()).amount


async def test_a_session_that_was_not_opened_is_closed_without_harm(clock: VirtualTimeLoop) -> None:
    assert clock.time()
    await kie.KieSession(api_key="k" * 32).aclose()


async def test_the_key_that_is_given_is_used() -> None:
    async with emulator.serve(key="mine") as service:
        settings = kie.Settings(api_key="another", base_url=service.base_url, observer=lambda _: None)
        async with kie.KieSession(settings, api_key="mine") as session:
            assert (await session.credits()).amount
        session = await kie.KieSession.open(settings, api_key=kie.Secret("mine"))
        assert (await session.credits()).amount
        assert attrs.asdict(session.settings)["observer"] is settings.observer
        await session.aclose()
