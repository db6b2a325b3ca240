"""The session as a user has it: the whole path, many at once, and every way to use it wrongly."""

from __future__ import annotations

import asyncio
import gc
import os
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import anyio
import pytest
from service import REQUEST, TIMELINE, serving
from virtual_time import VirtualTimeLoop

import kie_async as kie
from kie_async import emulator
from kie_async.emulator import Fault
from kie_async.events import Submitted

pytestmark = pytest.mark.anyio


@pytest.fixture(scope="session")
def song(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("song") / "song.wav"
    path.write_bytes(emulator.demo_song())
    return path


@pytest.mark.parametrize("route", ["classic", "jobs"])
@pytest.mark.parametrize("callbacks", [False, True])
async def test_a_song_on_disk_is_extended(song: Path, tmp_path: Path, route: str, callbacks: bool) -> None:  # noqa: FBT001  # a parameter
    async with serving(callbacks=callbacks, settings={"route": route}, goes_on=(3.0, 5.0)) as service:
        session = service.session
        task = await session.upload_extend(song, model="V5", continue_at=6)
        result = await task
        progress: list[int] = []
        paths = [
            await session.download(track, tmp_path, progress=lambda sent, _all: progress.append(sent))
            for track in result.tracks
        ]
        assert [path.read_bytes() for path in paths] == [
            await service.emulator.audio(track.id) for track in result.tracks
        ]
        assert [track.duration for track in result.tracks] == [pytest.approx(9, abs=0.1), pytest.approx(11, abs=0.1)]
        assert progress[-1] == paths[1].stat().st_size
        assert len(service.emulator.ledger) == 1
        longer = await session.extend(result.tracks[0], model="V5")
        assert len((await longer).tracks) == 2


@pytest.mark.parametrize("route", ["classic", "jobs"])
async def test_a_result_says_where_its_source_was_cut(song: Path, route: str) -> None:
    async with serving(settings={"route": route}, goes_on=(-2.0, 5.0), malformed_jobs=False) as service:
        session = service.session
        result = await (await session.upload_extend(song, model="V5", continue_at=6))
        assert result.continue_at == 6
        assert result.source_duration == pytest.approx(25.4)
        assert [result.holds(track) for track in result.tracks] == ["continuation", "unknown"]
        elsewhere = await session.track(result.task_id)  # known from the service's echo of the request alone
        assert (elsewhere.continue_at, elsewhere.source_duration) == (6.0, None)
        longer = await session.extend(result.tracks[1], model="V5", prompt="p", style="s", title="t", continue_at=10)
        assert ((await longer).continue_at, (await longer).source_duration) == (10, result.tracks[1].duration)
        inherited = await (await session.extend("a1", model="V5"))
        assert (inherited.continue_at, inherited.source_duration) == (None, None)
        assert {inherited.holds(track) for track in inherited.tracks} == {"unknown"}


async def test_a_result_after_a_restart_says_it_too(song: Path, tmp_path: Path) -> None:
    async with serving(goes_on=(-2.0, 5.0)) as service:
        journal = kie.SQLiteJournal(tmp_path / "jobs.sqlite", poll=5.0)
        async with kie.KieSession(settings(service.emulator), journal=journal) as session:
            await session.upload_extend(song, model="V5", continue_at=6)
        journal = kie.SQLiteJournal(tmp_path / "jobs.sqlite", poll=5.0)
        async with kie.KieSession(settings(service.emulator), journal=journal) as session:
            (result,) = [await task async for task in session.resume()]
        assert result.continue_at == 6
        assert result.source_duration == pytest.approx(25.4)


async def test_a_moment_beyond_the_song_is_refused_before_anything_is_sent(song: Path) -> None:
    async with serving() as service:
        with pytest.raises(kie.InvalidRequestError, match="continue_at"):
            await service.session.upload_extend(song, model="V5", continue_at=3600)
        with pytest.raises(kie.InvalidRequestError, match="continue_at"):
            track = kie.Track("a1", duration=30.0)
            await service.session.extend(track, model="V5", prompt="p", style="s", title="t", continue_at=30)
        for length in (None, 9.0):  # which is not measured if it is given
            with pytest.raises(kie.AudioError, match=r"^source: absent\.mp3 does not exist: give the path of a file"):
                await service.session.upload_extend(song.parent / "absent.mp3", continue_at=3, source_duration=length)
        assert len(service.emulator.arrivals) == 0


async def test_a_known_length_is_not_measured_and_a_url_is_used_as_it_is(song: Path) -> None:
    async with serving(check_sources=False) as service:
        await service.session.upload_extend(song, model="V5", continue_at=6, source_duration=470.0)
        url = "https://files.example/song.mp3"
        await service.session.upload_extend(url, model="V5", continue_at=6)
        assert [charge.body["uploadUrl"] == url for charge in service.emulator.ledger] == [False, True]


async def test_other_calls(song: Path) -> None:
    async with serving(credits=24.5) as service:
        session = service.session
        assert (await session.credits()).amount == 24.5
        assert await session.record_info("not-there") is None
        with pytest.raises(kie.WaitTimeoutError, match=r"within 30 s; the service does not know this task") as waited:
            await session.track("not-there").result(timeout=30)
        assert waited.value.charged == "maybe"
        task = await session.submit(REQUEST)
        record = await session.record_info(task.id)
        assert record is not None
        assert (record.task_id, record.status) == (task.id, "PENDING")
        assert float(await session.credits()) == 12.5
        uploaded = await session.upload(song)
        assert uploaded.size == song.stat().st_size
        assert uploaded.duration
        with pytest.raises(kie.InvalidRequestError) as caught:
            await session.download_url("https://foreign.example/x.mp3")
        assert caught.value.code == 422


@pytest.mark.parametrize("task_id", ["", "a.b", "a/b", None, "a" * 200])
async def test_what_is_no_task_id_is_refused(task_id: str) -> None:
    async with serving() as service:
        with pytest.raises(kie.InvalidRequestError, match="task_id"):
            service.session.track(task_id)
        with pytest.raises(kie.InvalidRequestError, match="task_id"):
            await service.session.record_info(task_id)


async def test_an_expired_link_is_renewed(tmp_path: Path) -> None:
    async with serving(goes_on=(3.0, 5.0)) as service:
        result = await (await service.session.submit(REQUEST))
        service.emulator.faults.add(Fault("expired", times=1))
        path = await service.session.download(result.tracks[0], tmp_path)
        assert path.stat().st_size
        with pytest.raises(
            kie.InvalidRequestError, match=r"track: is of type TaskResult; give one of TaskResult.tracks"
        ):
            await service.session.download(result, tmp_path)  # type: ignore[arg-type]  # wrong on purpose
        service.emulator.faults.add(Fault("expired"))
        service.emulator.faults.add(Fault("code", on="download_url", code=422))
        with pytest.raises(kie.ResultExpiredError):
            await service.session.download(result.tracks[1], tmp_path)


# ---------------------------------------------------------------- many


async def test_outcomes_come_in_the_order_of_completion() -> None:
    faults = [Fault("failed", nth=2), Fault("code", code=422, nth=3), Fault("lost", nth=4)]
    async with serving(credits=1e6, faults=faults) as service:
        outcomes = [outcome async for outcome in service.session.submit_all([REQUEST] * 8)]
        assert len(outcomes) == 8
        kinds = sorted(type(outcome.error).__name__ for outcome in outcomes if outcome.error)
        assert kinds == ["InvalidRequestError", "SubmitUnknownError", "TaskFailedError"]
        assert all((outcome.result is None) != (outcome.error is None) for outcome in outcomes)
        assert sum(outcome.task_id is None for outcome in outcomes) == 2
        assert outcomes[0].error is not None  # refused at once, while the others take their time


async def test_requests_are_taken_as_there_is_room() -> None:
    taken = 0

    def source() -> Iterator[kie.Request]:
        nonlocal taken
        for _ in range(30):
            taken += 1
            yield REQUEST

    async with serving(credits=1e6, settings={"max_in_flight": 4}) as service:
        done = 0
        async for outcome in service.session.submit_all(source()):
            assert outcome.result
            done += 1
            await anyio.sleep(3)
            assert taken <= done + 5
        assert done == 30


async def test_an_asynchronous_source_may_be_slow() -> None:
    async def source() -> AsyncIterator[kie.Request]:
        for _ in range(3):
            await anyio.sleep(200)
            yield REQUEST

    async with serving() as service:
        loop = asyncio.get_running_loop()
        started = loop.time()
        moments = [loop.time() - started async for _ in service.session.submit_all(source())]
        assert moments[0] < 400  # the first is given while the source still waits
        assert len(moments) == 3


async def test_a_source_that_fails_is_raised_where_it_is_read() -> None:
    def source() -> Iterator[kie.Request]:
        yield REQUEST
        raise LookupError("line 2")

    async with serving() as service:
        with pytest.raises(LookupError, match="line 2"):
            async for _ in service.session.submit_all(source()):
                pass
        assert (await service.session.credits()).amount > 0  # the session goes on


async def test_breaking_off_submits_nothing_more() -> None:
    async with serving(credits=1e6, settings={"max_in_flight": 3}) as service:
        outcomes = service.session.submit_all([REQUEST] * 50)
        async for outcome in outcomes:
            assert outcome.result
            break
        await outcomes.aclose()
        before = len(service.emulator.ledger)
        await anyio.sleep(500)
        assert len(service.emulator.ledger) == before
        assert {event.task_id for event in service.of(Submitted)} == {c.task_id for c in service.emulator.ledger}


# ---------------------------------------------------------------- using it wrongly


def settings(service: emulator.Emulator) -> kie.Settings:
    return kie.Settings(api_key=service.key, base_url=service.base_url)


async def test_a_session_is_used_inside_its_block() -> None:
    async with emulator.serve() as service:
        session = kie.KieSession(settings(service))
        with pytest.raises(kie.SessionError, match="not open"):
            await session.credits()
        async with session:
            with pytest.raises(RuntimeError, match="entered"):
                async with session:
                    pass
        with pytest.raises(kie.SessionError, match="was closed"):
            session.track("t1")
        with pytest.raises(kie.SessionError, match="entered before"):
            async with session:
                pass


async def test_another_event_loop_is_refused_before_anything_is_sent() -> None:
    async with serving() as service:
        task = await service.session.submit(REQUEST)
        found: list[BaseException] = []

        def elsewhere() -> None:
            async def misuse() -> None:
                for use in (service.session.submit(REQUEST), task.result(), anext(task.events())):
                    try:
                        await use
                    except kie.SessionError as error:
                        found.append(error)

            asyncio.run(misuse())

        thread = threading.Thread(target=elsewhere)
        thread.start()
        await anyio.to_thread.run_sync(thread.join)
        assert len(found) == 3
        assert len(service.emulator.arrivals) == 1


async def test_another_process_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    async with serving() as service:
        with monkeypatch.context() as patch, pytest.raises(kie.SessionError, match="process"):
            patch.setattr(os, "getpid", lambda: -1)
            await service.session.credits()


async def test_settings_are_checked_before_anything_opens() -> None:
    with pytest.raises(kie.SettingsError, match="api_key"):
        kie.KieSession()


async def test_an_error_in_the_block_comes_out_as_itself() -> None:
    async with serving() as service:
        with pytest.raises(kie.KieError, match="mine"):
            async with kie.KieSession(service.session.settings):
                raise kie.KieError("mine")
        with pytest.raises(ExceptionGroup) as caught:
            async with kie.KieSession(service.session.settings):
                raise ExceptionGroup("mine", [ValueError("a"), KeyError("b")])
        assert len(caught.value.exceptions) == 2


async def test_who_waits_when_the_session_closes_is_told() -> None:
    async with serving() as service:
        async with kie.KieSession(service.session.settings) as session:
            task = await session.submit(REQUEST)
            idle = await session.submit(REQUEST)
            waiting = asyncio.create_task(task.result())
            parked = asyncio.create_task(idle.result())
            await anyio.sleep(1)
            parked.cancel()
        with pytest.raises(kie.SessionError, match=r"session\.track"):
            await waiting
        with pytest.raises(kie.SessionError):
            await idle
        assert idle.id


async def test_a_session_leaves_nothing_behind(clock: VirtualTimeLoop) -> None:
    async with serving() as service:
        for _ in range(3):
            async with kie.KieSession(service.session.settings) as session:
                await (await session.submit(REQUEST))
        await anyio.sleep(1)
        gc.collect()
        before = len(list(Path("/proc/self/fd").iterdir())), len(asyncio.all_tasks())
        for _ in range(20):
            async with kie.KieSession(service.session.settings) as session:
                await session.credits()
                await session.submit(REQUEST)
        await anyio.sleep(1)
        gc.collect()
        assert len(list(Path("/proc/self/fd").iterdir())) <= before[0] + 2
        assert len(asyncio.all_tasks()) <= before[1] + 2
    assert clock.time() > TIMELINE[0]


async def test_a_shared_limiter_keeps_two_sessions_in_one_quota() -> None:
    limiter = kie.SlidingLimiter(20, 10.0)
    async with serving(credits=1e6) as service:
        async with (
            kie.KieSession(service.session.settings, limiter=limiter) as one,
            kie.KieSession(service.session.settings, limiter=limiter) as two,
            anyio.create_task_group() as group,
        ):
            for number in range(60):
                group.start_soon((one if number % 2 else two).submit, REQUEST)
        assert service.emulator.max_in_window(10.0) == 20
        assert not [arrival for arrival in service.emulator.arrivals if not arrival.admitted]


async def test_without_a_journal_there_is_nothing_to_resume() -> None:
    async with serving() as service:
        with pytest.raises(kie.SessionError, match="no journal"):
            await anext(service.session.resume())
        with pytest.raises(kie.SessionError, match="a key needs a journal"):  # it would not be known the next time
            await service.session.submit(REQUEST, key="k")
        assert not service.emulator.arrivals
