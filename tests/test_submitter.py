"""Submitting: the quota at the server, what is sent again and what never is, and lost answers."""

from __future__ import annotations

import asyncio
from itertools import pairwise
from pathlib import Path
from typing import Any

import aiohttp
import anyio
import anyio.lowlevel
import attrs
import pytest
from service import REQUEST, serving
from virtual_time import VirtualTimeLoop

import kie_async as kie
from kie_async import emulator
from kie_async._client.submission_gate import SubmissionGate
from kie_async.emulator import Fault
from kie_async.errors import SubmitUnknownError
from kie_async.events import Finished, Notice, Queued, Retrying, Submitted
from kie_async.journal import Job, SQLiteJournal
from kie_async.limiter import Permit, SlidingLimiter

pytestmark = pytest.mark.anyio


def numbered(count: int) -> list[kie.ExtendRequest]:
    fields: dict[str, Any] = {"model": "V5", "style": "s", "prompt": "p", "continue_at": 5}
    return [kie.ExtendRequest("a1", title=f"{number}", **fields) for number in range(count)]


def titles(service: Any) -> list[int]:
    return [int(charge.body["title"]) for charge in service.emulator.ledger]


@pytest.mark.scale
async def test_a_hundred_at_once_stay_in_the_quota_and_use_it() -> None:
    async with serving(credits=1e6, settings={"max_in_flight": 1000}) as service:
        async with anyio.create_task_group() as group:
            for request in numbered(100):
                group.start_soon(service.session.submit, request)
        arrivals = [arrival.at for arrival in service.emulator.arrivals]
        assert titles(service) == list(range(100))  # first come, first served
        assert service.emulator.max_in_window(10.0) == 20
        assert (100 / 20 - 1) * 10 / (arrivals[-1] - arrivals[0]) >= 0.98


async def test_sixty_cancelled_waiters_consume_no_permit() -> None:
    async with serving(credits=1e6) as service:
        tasks = [asyncio.create_task(service.session.submit(request)) for request in numbered(100)]
        await anyio.sleep(1)
        for task in tasks[20:80]:
            task.cancel()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert sum(isinstance(result, asyncio.CancelledError) for result in results) == 60
        assert titles(service) == [*range(20), *range(80, 100)]
        stamps = [arrival.at for arrival in service.emulator.arrivals]
        assert stamps[-1] - stamps[0] < 30  # two windows; sixty permits more would be three windows more
        assert service.emulator.max_in_window(10.0) == 20


@pytest.mark.parametrize("code", [429, 430, 455, "429"])
async def test_a_refusal_for_the_moment_is_sent_again_in_order(code: int | str) -> None:
    faults = [Fault("code", code=code, times=3)]
    async with serving(faults=faults) as service:
        await asyncio.gather(*(service.session.submit(request) for request in numbered(6)))
        assert sorted(titles(service)) == list(range(6))
        assert len(service.emulator.arrivals) == 9
        assert len(service.of(Retrying)) == 3


async def test_a_throttle_that_means_the_credits_is_raised_at_once() -> None:
    words = "The current credits are insufficient. Please top up."
    async with serving(faults=[Fault("code", code=429, message=words, times=1)]) as service:
        with pytest.raises(kie.InsufficientCreditsError, match="top up") as caught:
            await service.session.submit(REQUEST)
        assert (caught.value.code, caught.value.charged, caught.value.retryable) == (429, "no", False)
        assert len(service.emulator.arrivals) == 1
        assert not service.of(Retrying)
        await service.session.submit(REQUEST)  # the gate is not closed by it


async def test_a_server_error_with_the_body_of_a_success_names_the_task() -> None:
    body = b'{"code":200,"msg":"success","data":{"taskId":"5c79"}}'
    async with serving(faults=[Fault("answer", body=body, status=500)]) as service:
        with pytest.raises(SubmitUnknownError, match="HTTP status 500, but the body says code 200") as caught:
            await service.session.submit(REQUEST)
        assert (caught.value.task_id, caught.value.charged) == ("5c79", "maybe")
        assert len(service.emulator.arrivals) == 1


async def test_too_fast_for_too_long_is_raised() -> None:
    async with serving(faults=[Fault("code", code=429)], settings={"submit_retry_timeout": 60}) as service:
        with pytest.raises(kie.RateLimitedError) as caught:
            await service.session.submit(REQUEST)
        assert caught.value.charged == "no"
        assert len(service.emulator.ledger) == 0
        assert 3 < len(service.emulator.arrivals) < 30


async def test_the_real_quota_of_a_busy_account_is_waited_for() -> None:
    """Another client spends the same account's quota: nobody is charged twice, all get through."""
    async with serving(credits=1e6) as service, aiohttp.ClientSession() as other:
        body = {"audioId": "b", "model": "V5", "defaultParamFlag": False, "callBackUrl": "https://example.com/x"}
        for _ in range(15):
            url = f"{service.emulator.base_url}/api/v1/generate/extend"
            await other.post(url, json=body, headers={"Authorization": f"Bearer {service.emulator.key}"})
        await asyncio.gather(*(service.session.submit(request) for request in numbered(30)))
        assert len(service.emulator.ledger) == 45


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (402, kie.InsufficientCreditsError), (422, kie.InvalidRequestError), (433, kie.KeyQuotaError),
        (500, kie.RefusedError), (505, kie.UnavailableError), (405, kie.RateLimitedError),
        (599, SubmitUnknownError), (408, SubmitUnknownError),
    ],
)  # fmt: skip
async def test_anything_else_is_sent_once(code: int, kind: type[kie.KieError]) -> None:
    async with serving(faults=[Fault("code", code=code)]) as service:
        with pytest.raises(kind):
            await service.session.submit(REQUEST)
        assert len(service.emulator.arrivals) == 1


async def test_one_refusal_of_the_key_concerns_its_caller_and_the_next_submission_tries_it_again() -> None:
    async with serving(faults=[Fault("code", code=401, nth=1)], settings={"quota": 1}) as service:
        results = await asyncio.gather(
            *(service.session.submit(request) for request in numbered(5)), return_exceptions=True
        )
        assert [type(result) for result in results] == [kie.AuthError] + 4 * [kie.Task]


async def test_after_one_refusal_of_the_key_the_next_submission_waits_for_a_moment(clock: VirtualTimeLoop) -> None:
    async with serving(faults=[Fault("code", code=401, times=1)]) as service:
        with pytest.raises(kie.AuthError):
            await service.session.submit(REQUEST)
        before = clock.time()
        await service.session.submit(REQUEST)
        assert 4.9 < clock.time() - before < 9


@pytest.mark.parametrize("status", [200, 401])
async def test_a_key_that_is_refused_causes_no_storm(status: int) -> None:
    faults = [Fault("code", code=401, status=status)]
    async with serving(faults=faults, settings={"quota": 20}) as service:
        outcomes = [outcome async for outcome in service.session.submit_all(numbered(1000))]
        assert {type(outcome.error) for outcome in outcomes} == {kie.AuthError}
        assert len(outcomes) == 1000
        assert len({id(outcome.error) for outcome in outcomes}) == 1000
        assert len(service.emulator.arrivals) == 20
        with pytest.raises(kie.AuthError):
            await service.session.submit(REQUEST)
        assert len(service.emulator.arrivals) == 20
        service.emulator.faults.clear()
        await anyio.sleep(6)
        await service.session.submit(REQUEST)
        assert len(service.emulator.arrivals) == 21


async def test_those_that_wait_for_a_place_when_the_key_is_refused_are_told() -> None:
    async with serving(settings={"max_in_flight": 2, "api_key": "wrong"}) as service:
        results = await asyncio.gather(
            *(service.session.submit(request) for request in numbered(5)), return_exceptions=True
        )
        assert [type(result) for result in results] == [kie.AuthError] * 5
        assert len(service.emulator.arrivals) == 2


async def test_a_refusal_is_counted_though_its_caller_went_away() -> None:
    async with serving(faults=[Fault("slow", seconds=5)], settings={"api_key": "wrong"}) as service:
        with anyio.move_on_after(1):
            await asyncio.gather(*(service.session.submit(request) for request in numbered(2)))
        await anyio.sleep(5)
        with pytest.raises(kie.AuthError):
            await service.session.submit(REQUEST)
        assert len(service.emulator.arrivals) == 2


@pytest.mark.parametrize("page", [b"<html>Just a moment...</html>", b"error code: 1010"])
async def test_a_page_of_a_cdn_is_not_the_end_of_a_session(page: bytes, clock: VirtualTimeLoop) -> None:
    async with serving(faults=[Fault("answer", body=page, status=403, done=False, nth=1)]) as service:
        before = clock.time()
        with pytest.raises(kie.UnavailableError) as caught:
            await service.session.submit(REQUEST)
        assert (caught.value.charged, caught.value.retryable, caught.value.code) == ("no", True, 403)
        await service.session.submit(REQUEST)
        assert clock.time() - before < 4
        assert len(service.emulator.ledger) == 1


async def test_what_was_never_sent_is_sent_when_the_server_is_there(clock: VirtualTimeLoop, free_port: int) -> None:
    async with kie.KieSession(kie.Settings(api_key="k", base_url=f"http://127.0.0.1:{free_port}")) as session:
        submitting = asyncio.create_task(session.submit(REQUEST))
        await anyio.sleep(30)
        async with emulator.serve(port=free_port, key="k") as service:
            task = await submitting
            assert [charge.task_id for charge in service.ledger] == [task.id]
    assert clock.time() > 0


async def test_a_refusal_of_the_key_that_a_success_has_outdated_lets_the_others_wait_on() -> None:
    gate = SubmissionGate(SlidingLimiter(limit=1, window=10.0))
    permit = await gate.acquire(is_retry=False)
    waiting = asyncio.ensure_future(gate.acquire(is_retry=False))
    await anyio.lowlevel.checkpoint()
    for _ in range(2):
        gate.key_refused(kie.AuthError("refused"))
    gate.accepted()  # in the same turn of the loop
    permit.give_back()
    (await waiting).give_back()


@attrs.frozen
class Lapsing:
    """A permit that can run out before it is used."""

    permit: Permit
    until: float

    @property
    def is_valid(self) -> bool:
        return asyncio.get_running_loop().time() < self.until

    def release(self) -> None:
        self.permit.release()

    def give_back(self) -> None:
        self.permit.give_back()


class Drowsy(SlidingLimiter):
    """A limiter whose first two permits do not last long."""

    granted = 0

    def __init__(self, seconds: float) -> None:
        super().__init__(limit=1)
        self.seconds = seconds

    async def acquire(self, *, is_retry: bool = False) -> Permit:
        self.granted += 1
        permit = await super().acquire(is_retry=is_retry)
        lasts = self.seconds if self.granted <= 2 else 60.0
        return Lapsing(permit, asyncio.get_running_loop().time() + lasts)


async def test_a_permit_that_ran_out_is_not_used() -> None:
    limiter = Drowsy(0.0)
    async with serving(limiter=limiter) as service:
        await service.session.submit(REQUEST)
        assert (limiter.granted, len(service.emulator.arrivals)) == (3, 1)
        assert ["nothing was sent" in retried.reason for retried in service.of(Retrying)] == [True, True]


async def test_a_permit_that_runs_out_while_the_connection_is_made_is_not_used(
    clock: VirtualTimeLoop, monkeypatch: pytest.MonkeyPatch
) -> None:
    resolve = clock.getaddrinfo

    async def slow(*args: Any, **options: Any) -> Any:
        await anyio.sleep(5)
        return await resolve(*args, **options)

    monkeypatch.setattr(clock, "getaddrinfo", slow)
    limiter = Drowsy(2.0)
    async with serving() as service:
        settings = attrs.evolve(
            service.session.settings, base_url=service.emulator.base_url.replace("127.0.0.1", "localhost")
        )
        async with kie.KieSession(settings, limiter=limiter) as session:
            await session.submit(REQUEST)
        assert (limiter.granted, len(service.emulator.arrivals)) == (2, 1)  # the name is known by then
        assert ["its permit ran out" in retried.reason for retried in service.of(Retrying)] == [True]


async def test_a_server_that_stays_away_is_a_connect_error(free_port: int) -> None:
    settings = kie.Settings(api_key="k", base_url=f"http://127.0.0.1:{free_port}", submit_retry_timeout=20)
    async with kie.KieSession(settings) as session:
        with pytest.raises(kie.ConnectError) as caught:
            await session.submit(REQUEST)
    assert (caught.value.charged, caught.value.retryable) == ("no", True)


@pytest.mark.parametrize("fault", ["lost", "reset", "truncated", "garbage"])
async def test_a_lost_answer_is_charged_once_and_unknown(fault: str) -> None:
    async with serving(faults=[Fault(fault)]) as service:
        with pytest.raises(SubmitUnknownError) as caught:
            await service.session.submit(REQUEST)
        assert caught.value.charged == "maybe"
        assert caught.value.token
        assert caught.value.token not in f"{caught.value}{caught.value!r}"
        assert len(service.emulator.ledger) == len(service.emulator.arrivals) == 1


@pytest.mark.parametrize("fault", ["lost", "reset"])
async def test_with_callbacks_a_lost_task_is_recovered_by_its_token(fault: str) -> None:
    async with serving(callbacks=True, faults=[Fault(fault)]) as service:
        task = await service.session.submit(REQUEST)
        result = await task
        assert len(result.tracks) == 2
        assert [charge.task_id for charge in service.emulator.ledger] == [task.id]
        assert [event.recovered for event in service.of(Submitted)] == [True]


async def test_without_its_callback_it_stays_unknown_and_a_late_one_is_told() -> None:
    faults = [Fault("lost"), Fault("late", stage="text", seconds=100), Fault("lost", on="callback", stage="first")]
    faults.append(Fault("lost", on="callback", stage="complete"))
    async with serving(callbacks=True, faults=faults, settings={"recovery_timeout": 60}) as service:
        with pytest.raises(SubmitUnknownError, match="no callback named it within 60 s"):
            await service.session.submit(REQUEST)
        await anyio.sleep(120)
        (charge,) = service.emulator.ledger
        notes = [event.note for event in service.of(Notice) if event.task_id == charge.task_id]
        assert any("session.track()" in note for note in notes)


async def test_a_callback_before_the_answer_counts_all_the_same() -> None:
    async with serving(callbacks=True, faults=[Fault("early", stage="complete")]) as service:
        task = await service.session.submit(REQUEST)
        assert len((await task).tracks) == 2
        assert len(service.emulator.ledger) == 1


async def test_a_token_cannot_name_another_task() -> None:
    async with serving(callbacks=True) as service:
        task = await service.session.submit(REQUEST)
        token = service.token(task.id)
        assert await service.call_back(task.id, "text", token=token) == ""
        assert "another task" in await service.call_back("other", "text", token=token)
        await task
        assert "not followed" in await service.call_back("other", "text", token=token)  # forgotten with the task


async def test_the_first_callback_of_a_submission_under_way_names_it() -> None:
    async with serving(callbacks=True, faults=[Fault("slow", seconds=5)]) as service:
        submitting = asyncio.create_task(service.session.submit(REQUEST))
        await anyio.sleep(1)
        token = service.token(service.emulator.ledger[0].task_id)
        assert await service.call_back("t1", "text", token=token) == ""
        assert await service.call_back("t1", "text", token=token) == ""
        assert "another task" in await service.call_back("t2", "text", token=token)
        assert (await submitting).id != "t1"  # the answer itself is the truth


async def test_a_caller_that_goes_away_does_not_stop_the_post() -> None:
    faults = [Fault("slow", seconds=30, nth=1)]
    async with serving(faults=faults, settings={"max_in_flight": 1}) as service:
        submitting = asyncio.create_task(service.session.submit(REQUEST))
        await anyio.sleep(5)
        submitting.cancel()
        assert await asyncio.gather(submitting, return_exceptions=True)
        task = await service.session.submit(REQUEST)  # waits for the place of the first
        first, second = service.of(Submitted)
        assert second.task_id == task.id
        assert {charge.task_id for charge in service.emulator.ledger} == {first.task_id, second.task_id}
        assert service.of(Queued)


async def test_a_caller_that_goes_away_from_a_failing_post_holds_no_place() -> None:
    faults = [Fault("slow", seconds=30, nth=1), Fault("code", code=422, nth=1)]
    async with serving(faults=faults, settings={"max_in_flight": 1}) as service:
        submitting = asyncio.create_task(service.session.submit(REQUEST))
        await anyio.sleep(5)
        submitting.cancel()
        await asyncio.gather(submitting, return_exceptions=True)
        await (await service.session.submit(REQUEST))


async def test_a_task_that_is_followed_before_its_answer_holds_no_place_twice() -> None:
    async with serving(faults=[Fault("slow", seconds=5, nth=1)], settings={"max_in_flight": 1}) as service:
        submitting = asyncio.create_task(service.session.submit(REQUEST))
        await anyio.sleep(1)
        followed = service.session.track(service.emulator.ledger[0].task_id)
        task = await submitting
        await service.session.submit(REQUEST)
        assert not any(event.task_id == task.id for event in service.of(Finished))
        assert await followed is await task


async def test_leaving_the_session_waits_for_the_answer_of_a_post() -> None:
    async with serving(faults=[Fault("slow", seconds=30)]) as service:
        async with kie.KieSession(service.session.settings) as session:
            submitting = asyncio.create_task(session.submit(REQUEST))
            await anyio.sleep(1)
        task = await submitting
        assert [charge.task_id for charge in service.emulator.ledger] == [task.id]
        with pytest.raises(kie.SessionError) as caught:
            await task
        assert caught.value.task_id == task.id


async def test_leaving_the_session_ends_the_wait_for_a_callback() -> None:
    async with serving(callbacks=True, faults=[Fault("lost"), Fault("lost", on="callback")]) as service:
        async with kie.KieSession(service.session.settings) as session:
            submitting = asyncio.create_task(session.submit(REQUEST))
            await anyio.sleep(1)
        with pytest.raises(SubmitUnknownError, match="session was closed") as caught:
            await submitting
        assert caught.value.charged == "maybe"


class BreaksOnce(SQLiteJournal):
    """A journal with a fault."""

    is_broken = True

    async def intend(self, key: str, token: str, *more: Any, **options: Any) -> Job:
        if self.is_broken:
            self.is_broken = False
            raise ZeroDivisionError
        return await super().intend(key, token, *more, **options)


async def test_a_fault_of_ours_reaches_the_caller_and_the_session_goes_on(tmp_path: Path) -> None:
    async with serving(journal=BreaksOnce(tmp_path / "jobs.sqlite", poll=5.0), settings={"quota": 1}) as service:
        with pytest.raises(kie.InternalError) as caught:
            await service.session.submit(REQUEST)
        assert isinstance(caught.value.__cause__, ZeroDivisionError)
        assert (await (await service.session.submit(REQUEST))).tracks


async def test_no_more_in_flight_than_allowed() -> None:
    async with serving(credits=1e6, settings={"max_in_flight": 5}) as service:
        async with anyio.create_task_group() as group:
            for request in numbered(20):
                group.start_soon(service.session.submit, request)
        stamps = [arrival.at for arrival in service.emulator.arrivals]
        assert all(later - earlier > 80 for earlier, later in pairwise(stamps[::5]))
