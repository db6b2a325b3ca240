"""Following tasks: every odd state of the service, callbacks as hints, and who waits."""

from __future__ import annotations

import asyncio
import random
from contextlib import AsyncExitStack
from itertools import pairwise
from pathlib import Path
from typing import Any

import aiohttp
import anyio
import attrs
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from service import REQUEST, TIMELINE, Service, serving
from virtual_time import VirtualTimeLoop

import kie_async as kie
from kie_async.emulator import Fault, Rules
from kie_async.errors import KieError
from kie_async.events import CallbackReceived, Finished, Notice, Polled, PollFailed, StageReached

pytestmark = pytest.mark.anyio

ROUTES = ("classic", "jobs")


async def end_of(service: Service) -> kie.TaskResult | KieError:
    """Submit one task and wait for what becomes of it."""
    task = await service.session.submit(REQUEST)
    try:
        return await task
    except KieError as error:
        assert error.task_id == task.id
        return error


@pytest.mark.parametrize("route", ROUTES)
async def test_a_task_ends_with_its_tracks(route: str) -> None:
    async with serving(settings={"route": route}) as service:
        result = await end_of(service)
        assert isinstance(result, kie.TaskResult)
        assert len(result.tracks) == 2
        assert all(track.audio_url and track.duration for track in result.tracks)
        (finished,) = service.of(Finished)
        assert 0 < finished.seconds - TIMELINE[2] < 12
        assert finished.polls == service.emulator.polls(result.task_id) == len(service.of(Polled))


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize(
    ("fault", "code"),
    [
        (Fault("refused"), 413),
        (Fault("failed"), 501),
        (Fault("failed", code=531), 531),
        (Fault("failed", word="FAILED"), 501),
    ],
)
async def test_a_failure_says_why(route: str, fault: Fault, code: int) -> None:
    async with serving(settings={"route": route}, faults=[fault]) as service:
        error = await end_of(service)
        assert isinstance(error, kie.TaskFailedError)
        assert (error.code, error.refunded) == (code, code == 531)
        assert error.charged == ("no" if code == 531 else error.charged)
        assert error.message


async def test_a_refusal_that_stays_pending_is_found_at_once() -> None:
    async with serving(faults=[Fault("refused")]) as service:
        error = await end_of(service)
        assert isinstance(error, kie.TaskFailedError)
        assert error.status == "PENDING"


async def test_a_new_task_may_be_invisible_for_a_while() -> None:
    async with serving(faults=[Fault("invisible", seconds=50)]) as service:
        assert isinstance(await end_of(service), kie.TaskResult)


async def test_a_task_that_never_appears_is_not_found() -> None:
    async with serving() as service:
        with pytest.raises(kie.TaskNotFoundError, match="60 s"):
            await service.session.track("no-such-task")


async def test_a_task_once_seen_does_not_vanish() -> None:
    async with serving() as service:
        task = await service.session.submit(REQUEST)
        await anyio.sleep(80)
        service.emulator.faults.add(Fault("invisible", on="record_info", times=3))
        assert len((await task).tracks) == 2


async def test_success_without_audio_is_waited_for() -> None:
    async with serving(faults=[Fault("no_audio", seconds=60)]) as service:
        assert isinstance(await end_of(service), kie.TaskResult)


async def test_success_that_never_gets_audio_is_a_failure() -> None:
    async with serving(faults=[Fault("no_audio")], settings={"missing_audio_timeout": 30}) as service:
        error = await end_of(service)
        assert isinstance(error, kie.TaskFailedError)
        assert error.charged == "yes"


async def test_a_lagging_replica_does_not_begin_the_wait_for_audio_anew() -> None:
    async with serving(faults=[Fault("no_audio")], settings={"missing_audio_timeout": 200}) as service:
        async with anyio.create_task_group() as group:
            group.start_soon(end_of, service)
            while not (polled := [event for event in service.of(Polled) if event.status == "SUCCESS"]):
                await anyio.sleep(5)
            await anyio.sleep(150)
            service.emulator.faults.add(Fault("invisible", on="record_info", times=1))
        assert "not visible" in [event.status for event in service.of(Polled)]
        assert service.of(Polled)[-1].age - polled[0].age < 300


async def test_an_undelivered_callback_is_no_failure() -> None:
    async with serving(rules=Rules(placeholder_fails=True)) as service:
        result = await end_of(service)
        assert isinstance(result, kie.TaskResult)
        assert result.record.status == "CALLBACK_EXCEPTION"


async def test_reports_that_go_backwards_change_nothing() -> None:
    async with serving() as service:
        task = await service.session.submit(REQUEST)
        seen = []
        async for event in task.events():
            seen.append(event.stage)
            service.emulator.faults.add(Fault("backwards", times=1))
        assert seen == ["text", "first", "complete"]
        assert [event.stage for event in service.of(StageReached)] == seen


async def test_an_unknown_word_is_told_once_and_waited_out() -> None:
    async with serving(faults=[Fault("unknown_word", times=3)]) as service:
        assert isinstance(await end_of(service), kie.TaskResult)
        (notice,) = service.of(Notice)
        assert "MIXING" in notice.note


async def test_a_stuck_task_times_out_and_may_still_end() -> None:
    async with serving(faults=[Fault("stuck")], settings={"task_timeout": 300}) as service:
        error = await end_of(service)
        assert isinstance(error, kie.WaitTimeoutError)
        assert (error.charged, error.retryable) == ("yes", True)
        assert "session.track(" in error.message
        (finished,) = service.of(Finished)
        assert finished.seconds == pytest.approx(300, abs=2)


@pytest.mark.parametrize("fault", [Fault("html", on="record_info", times=4), Fault("drop", on="record_info", times=2),
                                   Fault("garbage", on="record_info", times=4),
                                   Fault("code", on="record_info", code=429, times=4)])  # fmt: skip
async def test_looks_that_fail_are_repeated(fault: Fault) -> None:
    async with serving(faults=[fault]) as service:
        assert isinstance(await end_of(service), kie.TaskResult)
        assert service.of(PollFailed) or fault.kind == "drop"


@pytest.mark.parametrize("fault", [Fault("code", on="record_info", code=401, times=8),
                                   Fault("code", on="record_info", code=401, status=401, times=8),
                                   Fault("html", on="record_info", status=403, times=8)])  # fmt: skip
async def test_a_look_that_refuses_the_key_is_tried_again(fault: Fault) -> None:
    async with serving(faults=[fault]) as service:
        assert isinstance(await end_of(service), kie.TaskResult)
        assert len(service.of(PollFailed)) == 8


async def test_a_key_that_is_refused_until_the_time_is_over_is_told_at_its_end() -> None:
    async with serving(settings={"task_timeout": 300}) as service:
        task = await service.session.submit(REQUEST)
        service.emulator.faults.add(Fault("code", on="record_info", code=401))
        with pytest.raises(kie.WaitTimeoutError, match=r"300 s.*the last poll failed.*access permissions") as caught:
            await task
        assert caught.value.charged == "yes"


async def test_a_key_that_never_worked_is_not_tried_for_long(clock: VirtualTimeLoop) -> None:
    async with serving() as service:
        task_id = (await service.session.submit(REQUEST)).id
        async with kie.KieSession(attrs.evolve(service.session.settings, api_key="wrong")) as session:
            before = clock.time()
            with pytest.raises(kie.AuthError) as caught:
                await session.track(task_id)
            assert (caught.value.task_id, caught.value.charged) == (task_id, "maybe")
            assert clock.time() - before < 60


async def test_other_failures_of_a_poll_say_nothing_about_a_key_that_has_not_worked_yet() -> None:
    async with serving() as service:
        task_id = (await service.session.submit(REQUEST)).id
        service.emulator.faults.add(Fault("html", on="record_info", times=4))
        service.emulator.faults.add(Fault("code", on="record_info", code=401, times=4))
        async with kie.KieSession(service.session.settings) as session:
            assert (await session.track(task_id)).task_id == task_id


async def test_one_bad_id_blocks_nobody() -> None:
    async with serving(credits=1e6, settings={"max_concurrent_polls": 2, "task_timeout": 400}) as service:
        tasks = [await service.session.submit(REQUEST) for _ in range(10)]
        service.emulator.faults.add(Fault("html", on="record_info", task_id=tasks[0].id))
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert isinstance(results[0], kie.WaitTimeoutError)
        assert all(isinstance(result, kie.TaskResult) for result in results[1:])


async def test_the_jobs_route_is_looked_at_ten_times_a_second_at_most() -> None:
    async with serving(credits=1e6, settings={"route": "jobs"}) as service:
        submitted = [await service.session.submit(REQUEST) for _ in range(20)]
        emitted: list[kie.Event] = []
        async with kie.KieSession(attrs.evolve(service.session.settings, observer=emitted.append)) as session:
            tasks = [session.track(task.id) for task in submitted]  # each is due at once
            await anyio.sleep(1.0)
            assert 5 <= sum(isinstance(event, Polled) for event in emitted) <= 12
            await asyncio.gather(*tasks)


async def test_a_task_is_looked_at_thrice_a_second_at_most(clock: VirtualTimeLoop) -> None:
    async with serving(callbacks=True) as service:
        task = await service.session.submit(REQUEST)
        started = clock.time()
        while clock.time() - started < 10:
            await service.call_back(task.id, "complete", token=service.token(task.id))
            await anyio.sleep(0.02)
        assert service.emulator.polls(task.id) <= 30
        await task


# ---------------------------------------------------------------- callbacks are hints


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("webhook_key", [None, "w1"])
async def test_with_callbacks_one_look_confirms(route: str, webhook_key: str | None) -> None:
    settings = {"route": route, "webhook_key": webhook_key or ""}
    async with serving(callbacks=True, webhook_key=webhook_key, settings=settings) as service:
        for polls in (20, 4, 4, 4, 4, 4, 4, 1, 1, 1):  # until the first end is reported, as without
            result = await end_of(service)
            assert isinstance(result, kie.TaskResult)
            assert service.emulator.polls(result.task_id) <= polls
        assert max(lags(service)) < 0.5
        assert [event.stage for event in service.of(CallbackReceived)] == ["text", "first", "complete"] * 10


async def test_listeners_learn_each_stage_when_its_callback_comes(clock: VirtualTimeLoop) -> None:
    async with serving(callbacks=True) as service:
        await end_of(service)
        started = clock.time()
        task = await service.session.submit(REQUEST)
        found = [(event.stage, round(clock.time() - started), len(event.tracks)) async for event in task.events()]
        assert found == [("text", 10, 2), ("first", 45, 2), ("complete", 90, 2)]
        assert (
            service.emulator.polls(task.id) <= 5
        )  # one for each, and until the first callback for it comes, as without


@pytest.mark.parametrize("fault", ["doubled", "reordered", "late"])
async def test_callbacks_out_of_order_change_nothing(fault: str) -> None:
    async with serving(callbacks=True, faults=[Fault(fault, on="callback", seconds=20)]) as service:
        assert isinstance(await end_of(service), kie.TaskResult)
        await service.emulator.wait_finished()
        assert len(service.of(Finished)) == 1


@pytest.mark.parametrize("code", [200, 501])
async def test_a_forged_callback_changes_nothing(code: int) -> None:
    """A true signature over a false body: a false end, or an evil address."""
    evil = "https://evil.example/x.mp3"
    stage = "complete" if code == 200 else "error"
    forged = Fault("forged", seconds=20, stage=stage, code=code, url=evil)
    async with serving(callbacks=True, webhook_key="w1", faults=[forged], settings={"webhook_key": "w1"}) as service:
        task = await service.session.submit(REQUEST)
        stages = [event async for event in task.events()]
        result = await task
        assert len(result.tracks) == 2
        assert "evil" not in f"{result}{result.record}{stages}{service.emitted}"


def lags(service: Service) -> list[float]:
    """How late the end of each task was seen."""
    return [finished.seconds - TIMELINE[2] for finished in service.of(Finished)]


async def test_callbacks_that_never_come_are_noticed_and_cost_seconds() -> None:
    async with serving(callbacks=True, faults=[Fault("lost", on="callback")]) as service:
        first = await end_of(service)
        assert isinstance(first, kie.TaskResult)
        (notice,) = [event for event in service.of(Notice) if "no callback came" in event.note]
        assert notice.task_id == first.task_id
        for _ in range(3):
            await end_of(service)
        assert max(lags(service)) < 15
        assert sum("no callback came" in event.note for event in service.of(Notice)) == 1


async def test_callbacks_that_lead_to_another_worker_cost_seconds() -> None:
    async with serving() as service:
        async with kie.KieSession(service.session.settings) as elsewhere, kie.callbacks.serve(elsewhere) as there:
            settings = attrs.evolve(service.session.settings, callback_url=there.url)
            async with kie.KieSession(settings) as session:
                for _ in range(3):
                    assert len((await (await session.submit(REQUEST))).tracks) == 2
        assert max(lags(service)) < 15
        assert len(service.of(CallbackReceived)) == 9


@pytest.mark.parametrize("workers", [2, 4])
async def test_callbacks_that_reach_one_of_several_workers_cost_seconds(workers: int) -> None:
    """Each goes to any of them, and only that which follows its task knows it."""
    async with AsyncExitStack() as stack:
        service = await stack.enter_async_context(serving(timeline=(5.0, 15.0, 25.0), credits=1e6))
        sessions: list[kie.KieSession] = []
        chance = random.Random(workers)

        async def receive(request: web.Request) -> web.Response:
            receiver = chance.choice(sessions).receiver
            return web.Response(status=await receiver.handle({}, await request.read(), request.match_info["token"]))

        app = web.Application()
        app.router.add_post("/kie/{token}", receive)
        there = await stack.enter_async_context(TestServer(app))
        settings = attrs.evolve(service.session.settings, callback_url=str(there.make_url("/kie")))
        while len(sessions) < workers:
            sessions.append(await stack.enter_async_context(kie.KieSession(settings)))
        for _ in range(2):
            tasks = [await session.submit(REQUEST) for _ in range(5) for session in sessions]
            await asyncio.gather(*tasks)
    assert max(finished.seconds for finished in service.of(Finished)) < 40


async def test_what_strangers_post_makes_no_poll_later() -> None:
    """A stranger knows the task's id, but not its token."""
    async with serving(callbacks=True, faults=[Fault("lost", on="callback")]) as service:
        for stage in ("text", "first", "complete"):
            task = await service.session.submit(REQUEST)
            for _ in range(5):
                await service.call_back(task.id, stage)
                await anyio.sleep(1)
            await task
        assert max(lags(service)) < 15


async def test_callbacks_that_stop_coming_cost_seconds() -> None:
    async with serving(callbacks=True, credits=1e6) as service:
        for _ in range(8):
            await end_of(service)
        assert max(lags(service)) < 1
        assert max(finished.polls for finished in service.of(Finished)[1:]) <= 4
        lost = Fault("lost", on="callback", stage="complete")
        service.emulator.faults.add(lost)
        for _ in range(4):
            await end_of(service)
            await anyio.sleep(20)
        assert max(lags(service)[8:]) < 15
        service.emulator.faults.clear()
        for _ in range(31):  # until those that were lost count no more
            await end_of(service)
        assert service.of(Finished)[-1].polls == 1


async def test_a_callback_just_after_the_end_was_seen_is_none_that_stayed_away() -> None:
    async with serving(callbacks=True, credits=1e6) as service:
        for _ in range(3):
            await end_of(service)
        service.emulator.faults.add(Fault("late", on="callback", stage="complete", seconds=3, times=1))
        task = await service.session.submit(REQUEST)
        await anyio.sleep(91)
        await service.call_back(task.id, "complete")  # a stranger's makes it polled, and does not count
        await task
        await service.emulator.wait_finished()
        for _ in range(8):
            await end_of(service)
        assert service.of(Finished)[-1].polls == 1


@pytest.mark.parametrize("before", [0, 2])
@pytest.mark.parametrize("begin", [20, 50])
async def test_who_begins_to_listen_is_told_at_once_what_callbacks_told(
    before: int, begin: int, clock: VirtualTimeLoop
) -> None:
    async with serving(callbacks=True) as service:
        for _ in range(before):
            await end_of(service)
        task = await service.session.submit(REQUEST)
        await anyio.sleep(begin)
        started = clock.time()
        found = [(event.stage, clock.time() - started) async for event in task.events()]
        emitted = ["text", "first"] if begin > TIMELINE[1] else ["text"]
        assert [stage for stage, _ in found] == ["text", "first", "complete"]
        assert max(wait for stage, wait in found if stage in emitted) < 1
        assert service.emulator.polls(task.id) <= 4 or not before


async def test_who_begins_to_listen_without_callbacks_gets_a_poll_and_then_dense_ones(clock: VirtualTimeLoop) -> None:
    async with serving() as service:
        task = await service.session.submit(REQUEST)
        await anyio.sleep(25)
        started = clock.time()
        found = {event.stage: clock.time() - started async for event in task.events()}
        assert found["text"] < 1
        assert 20 <= found["first"] < 29
        assert 65 <= found["complete"] < 74


async def test_waiters_that_come_and_go_are_no_reason_for_more_polls() -> None:
    async with serving() as service:
        task = await service.session.submit(REQUEST)
        for _ in range(20):
            with anyio.move_on_after(0.1):
                async for _ in task.events():
                    pass
            with pytest.raises(kie.WaitTimeoutError):
                await task.result(timeout=0.1)
        assert service.emulator.polls(task.id) <= 4
        assert len((await task).tracks) == 2


async def test_a_complete_callback_may_be_ahead_of_the_record() -> None:
    async with serving(callbacks=True) as service:
        task = await service.session.submit(REQUEST)
        service.emulator.faults.add(Fault("backwards", times=3))
        result = await task
        assert len(result.tracks) == 2
        (finished,) = service.of(Finished)
        assert finished.seconds < TIMELINE[2] + 20


async def test_callbacks_for_strangers_are_taken() -> None:
    async with serving(callbacks=True) as service, aiohttp.ClientSession() as client:
        url = f"{service.session.settings.callback_url}/{'x' * 43}"
        async with client.post(
            url, json={"code": 200, "data": {"task_id": "stranger", "callbackType": "first"}}
        ) as answer:
            assert answer.status == 200
        (emitted,) = service.of(CallbackReceived)
        assert "not followed here" in emitted.note


async def test_a_callback_during_a_look_is_not_lost() -> None:
    async with serving(callbacks=True, faults=[Fault("slow", on="record_info", seconds=2, times=1)]) as service:
        task = await service.session.submit(REQUEST)
        token = service.token(task.id)
        await service.call_back(task.id, "complete", token=token)
        await anyio.sleep(1)
        await service.call_back(task.id, "complete", token=token)
        await anyio.sleep(1.5)
        assert service.emulator.polls(task.id) == 2
        await task


# ---------------------------------------------------------------- who waits


async def test_many_wait_and_each_gets_an_error_of_its_own() -> None:
    async with serving(faults=[Fault("failed")]) as service:
        task = await service.session.submit(REQUEST)
        errors = await asyncio.gather(*(task.result() for _ in range(3)), return_exceptions=True)
        assert len({id(error) for error in errors}) == 3
        assert all(isinstance(error, kie.TaskFailedError) for error in errors)
        with pytest.raises(kie.TaskFailedError):
            await task


async def test_when_the_last_waiter_goes_the_looks_stop_until_one_comes() -> None:
    async with serving() as service:
        task = await service.session.submit(REQUEST)
        waiting = [asyncio.create_task(task.result()) for _ in range(2)]
        await anyio.sleep(20)
        waiting[0].cancel()
        await anyio.sleep(20)
        polls = service.emulator.polls(task.id)
        assert polls
        waiting[1].cancel()
        await anyio.sleep(300)
        assert service.emulator.polls(task.id) == polls
        await service.call_back(task.id, "complete")
        assert service.emulator.polls(task.id) == polls
        assert len((await task).tracks) == 2
        assert "SUCCESS" in repr(task)


async def test_a_waiter_cancelled_as_the_task_ends_does_not_hinder_another() -> None:
    waiting: list[asyncio.Task[kie.TaskResult]] = []

    def cancel_the_first(event: kie.Event) -> None:
        if isinstance(event, StageReached):
            waiting[0].cancel()

    async with serving(settings={"observer": cancel_the_first}) as service:
        task = await service.session.submit(REQUEST)
        waiting += [asyncio.create_task(task.result()) for _ in range(2)]
        cancelled, result = await asyncio.gather(*waiting, return_exceptions=True)
        assert isinstance(cancelled, asyncio.CancelledError)
        assert isinstance(result, kie.TaskResult)


async def test_a_look_under_way_when_the_last_waiter_goes_is_the_last() -> None:
    async with serving(faults=[Fault("slow", on="record_info", seconds=5)]) as service:
        task = service.session.track((await service.session.submit(REQUEST)).id)
        with anyio.move_on_after(20):
            await task
        polls = service.emulator.polls(task.id)
        await anyio.sleep(200)
        assert service.emulator.polls(task.id) == polls


async def test_a_waiter_that_comes_during_the_last_poll_goes_on_with_it() -> None:
    async with serving(faults=[Fault("slow", on="record_info", seconds=5)]) as service:
        task = service.session.track((await service.session.submit(REQUEST)).id)
        with anyio.move_on_after(2):
            await task
        await anyio.sleep(1)
        assert len((await task).tracks) == 2


async def test_who_begins_to_listen_during_a_poll_gets_each_stage() -> None:
    async with serving(faults=[Fault("slow", on="record_info", seconds=5)]) as service:
        task = service.session.track((await service.session.submit(REQUEST)).id)
        await anyio.sleep(1)
        assert [event.stage async for event in task.events()] == ["text", "first", "complete"]


async def test_closing_with_many_tasks_lets_others_run() -> None:
    async with serving() as service:
        session = await kie.KieSession.open(service.session.settings)
        waiting = [asyncio.create_task(session.track(f"t{number}").result()) for number in range(1000)]
        await anyio.sleep(0.1)
        closing = asyncio.create_task(session.aclose())
        ended = []
        while not closing.done():
            await anyio.lowlevel.checkpoint()
            ended.append(sum(each.done() for each in waiting))
        errors = await asyncio.gather(*waiting, return_exceptions=True)
        assert {type(error) for error in errors} == {kie.SessionError}
        assert max(later - earlier for earlier, later in pairwise(ended)) <= 200


async def test_a_task_nobody_waits_for_is_followed_all_the_same() -> None:
    async with serving() as service:
        task = await service.session.submit(REQUEST)
        assert task.status == ""
        assert "not polled" in repr(task)
        await anyio.sleep(130)
        assert task.status == "SUCCESS"
        assert (await task).task_id == task.id


async def test_patience_ends_and_the_task_goes_on() -> None:
    async with serving() as service:
        task = await service.session.submit(REQUEST)
        with pytest.raises(kie.WaitTimeoutError, match=task.id) as caught:
            await task.result(timeout=5)
        assert isinstance(caught.value, TimeoutError)
        assert len((await task.result(timeout=500)).tracks) == 2


async def test_the_session_s_own_timeout_comes_out_of_result_too() -> None:
    async with serving(faults=[Fault("stuck")], settings={"task_timeout": 60}) as service:
        with pytest.raises(kie.WaitTimeoutError, match="after 60 s"):
            await (await service.session.submit(REQUEST)).result(timeout=100)


async def test_events_come_to_late_listeners_and_end_with_a_failure() -> None:
    async with serving(faults=[Fault("failed", nth=2)]) as service:
        good = await service.session.submit(REQUEST)
        await good
        assert [event.stage async for event in good.events()] == ["text", "first", "complete"]
        bad = await service.session.submit(REQUEST)
        stages = [event.stage async for event in bad.events()]
        assert "complete" not in stages
        with pytest.raises(kie.TaskFailedError):
            await bad


async def test_a_listener_that_breaks_off_leaves_the_task() -> None:
    async with serving() as service:
        task = await service.session.submit(REQUEST)
        async for event in task.events():
            assert event.stream_urls
            break
        assert len((await task).tracks) == 2


async def test_a_task_from_before_a_restart_is_followed() -> None:
    async with serving() as service:
        task_id = (await service.session.submit(REQUEST)).id
        emitted: list[kie.Event] = []
        async with kie.KieSession(attrs.evolve(service.session.settings, observer=emitted.append)) as session:
            task, same = session.track(task_id), session.track(task_id)
            assert len((await task).tracks) == 2
            assert await same is await task
        assert sum(isinstance(event, Finished) for event in emitted) == 1


async def test_what_comes_after_the_end_changes_nothing() -> None:
    async with serving(callbacks=True) as service:
        task = await service.session.submit(REQUEST)
        token = service.token(task.id)
        result = await task
        await service.call_back(task.id, "error", token=token)
        await anyio.sleep(30)
        assert await task is result
        assert len(service.of(Finished)) == 1


async def test_a_record_without_its_moment_is_taken_as_new() -> None:
    async with serving() as service:
        record = b'{"code":200,"msg":"","data":{"taskId":"t2","status":"PENDING"}}'
        service.emulator.faults.add(Fault("answer", on="record_info", task_id="t2", body=record, times=1))
        task = service.session.track("t2")
        await anyio.sleep(0.1)
        assert task.status == "PENDING"
        with pytest.raises(kie.WaitTimeoutError):  # the service does not know it; it was there before
            await task
        (finished,) = service.of(Finished)
        assert finished.operation == "unknown"
        assert finished.seconds == pytest.approx(service.session.settings.task_timeout, abs=1)


@pytest.mark.scale
async def test_hundreds_of_tasks_in_flight() -> None:
    settings: dict[str, Any] = {"max_in_flight": 1000, "quota": 1000}
    timeline = (3.0, 6.0, 12.0)
    async with serving(credits=1e6, timeline=timeline, rules=Rules(quota=1000), settings=settings) as service:
        ids = [task.id for task in [await service.session.submit(REQUEST) for _ in range(300)]]
        tasks = [service.session.track(task_id) for task_id in ids]
        most, connections = 0, 0

        async def watch() -> None:
            nonlocal most, connections
            while True:
                most = max(most, len(asyncio.all_tasks()))
                connections = max(connections, len(list(Path("/proc/self/fd").iterdir())))
                await anyio.sleep(1)

        before, connections_before = len(asyncio.all_tasks()), len(list(Path("/proc/self/fd").iterdir()))
        async with anyio.create_task_group() as group:
            group.start_soon(watch)
            while len(service.of(Finished)) < 300:
                await anyio.sleep(1)
            group.cancel_scope.cancel()
        assert most < before + 100  # one tracker, its looks, and the emulator's side of each
        assert connections - connections_before < 2 * 36  # both ends are in this process
        assert all([(await task).tracks for task in tasks])
        polls = [service.emulator.polls(task_id) for task_id in ids[::10]]
        for task_id in ids[::10]:  # a task that has ended has left the table: it is asked for anew
            assert (await service.session.track(task_id)).tracks
        assert [service.emulator.polls(task_id) for task_id in ids[::10]] == [each + 1 for each in polls]


async def test_tasks_that_are_due_at_once_are_polled_in_the_order_in_which_they_came() -> None:
    async with serving(settings={"max_concurrent_polls": 1, "not_found_timeout": 0.5}) as service:
        tasks = [service.session.track(f"t{number}") for number in range(20)]
        await asyncio.gather(*tasks, return_exceptions=True)
        assert [event.task_id for event in service.of(Polled)][:20] == [task.id for task in tasks]
