"""A session and its journal: what is recorded when, what a dead process leaves, and a store that is away."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from pathlib import Path
from typing import Any, Self

import anyio
import attrs
import pytest
from audio_files import encoded
from service import REQUEST, Service, as_journal, serving

import kie_async as kie
from kie_async.emulator import Fault
from kie_async.errors import ConflictError, InsufficientCreditsError, KieError, StorageError, SubmitUnknownError
from kie_async.events import Notice
from kie_async.journal import (
    InboundCallback,
    Job,
    Journal,
    Leases,
    PostgresJournal,
    SQLiteJournal,
    State,
    is_shared,
    open_journal,
)
from kie_async.journal._transitions import state_after

pytestmark = pytest.mark.anyio


def store(folder: Path, process_id: str | None = None, poll: float = 5.0) -> SQLiteJournal:
    return SQLiteJournal(folder / "journal.sqlite", process_id=process_id, poll=poll)


class Away:
    """A journal whose methods fail as often as they are told to, or beside whose next use something is done.

    ``lost`` are calls that are done, and whose answer is lost.
    """

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self.failures: dict[str, int] = {}
        self.lost: set[str] = set()
        self.beside: dict[str, Callable[[], Awaitable[object]]] = {}

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._journal, name)

        async def away(*args: Any, **fields: Any) -> Any:
            if self.failures.get(name, 0) > 0:
                self.failures[name] -= 1
                raise StorageError(f"{name}: the store is away")
            if beside := self.beside.pop(name, None):
                await beside()
            answer = await method(*args, **fields)
            if name in self.lost:
                self.lost.discard(name)
                raise StorageError(f"{name}: the answer of the store was lost")
            return answer

        return away if self.failures.get(name) or name in {*self.beside, *self.lost} else method

    async def __aenter__(self) -> Self:
        await self._journal.__aenter__()
        return self

    async def __aexit__(self, *error: object) -> None:
        await self._journal.__aexit__(None, None, None)


@attrs.define
class Kept:
    """A session with a journal that can be away."""

    service: Service
    session: kie.KieSession
    journal: Away

    async def job(self, key: str) -> Job:
        """The job as the journal has it."""
        job = await self.journal.get(key)
        assert isinstance(job, Job)
        return job

    def notes(self) -> str:
        """All that was odd."""
        return "\n".join(event.note for event in self.service.of(Notice))


@asynccontextmanager
async def recording(
    folder: Path, process_id: str | None = None, *, poll: float = 5.0, **options: Any
) -> AsyncIterator[Kept]:
    async with AsyncExitStack() as stack:
        service = await stack.enter_async_context(serving(credits=1e6, **options))
        journal = Away(store(folder, process_id, poll))
        session = kie.KieSession(service.session.settings, journal=as_journal(journal))
        yield Kept(service, await stack.enter_async_context(session), journal)


async def test_a_task_is_recorded_from_intent_to_end(tmp_path: Path) -> None:
    async with recording(tmp_path) as kept:
        task = await kept.session.submit(REQUEST, key="k")
        job = await kept.job("k")
        assert (job.state, job.task_id, job.last_attempt.route, job.attempt) == (State.SUBMITTED, task.id, "classic", 1)
        result = await task
        await anyio.sleep(1)
        job = await kept.job("k")
        assert (job.state, job.tracks, job.credits) == (State.SUCCEEDED, result.tracks, 12)
        assert task.key == "k"


@pytest.mark.parametrize(("code", "charged", "spent"), [(501, "maybe", 12.0), (531, "no", 0.0)])
async def test_a_failure_is_recorded(tmp_path: Path, code: int, charged: str, spent: float) -> None:
    async with recording(tmp_path, faults=[Fault("failed", code=code)]) as kept:
        task = await kept.session.submit(REQUEST, key="k")
        with pytest.raises(kie.TaskFailedError):
            await task
        await anyio.sleep(1)
        job = await kept.job("k")
        assert job.error is not None
        assert (job.state, job.error.code, job.error.charged, job.credits) == (State.FAILED, code, charged, spent)


@pytest.mark.parametrize(
    ("code", "status", "state"),
    [
        (422, 200, "rejected"),
        (500, 200, "rejected"),
        (402, 200, "planned"),
        (401, 200, "planned"),
        (433, 200, "planned"),
        (599, 200, "unknown"),
        (500, 500, "unknown"),  # the server failed: it has decided nothing
    ],
)
async def test_a_submission_that_is_no_task_is_recorded(tmp_path: Path, code: int, status: int, state: str) -> None:
    async with recording(tmp_path, faults=[Fault("code", code=code, status=status)]) as kept:
        with pytest.raises(KieError):
            await kept.session.submit(REQUEST, key="k")
        job = await kept.job("k")
        assert job.state == state
        assert (job.error is None) == (state == "planned")


@pytest.mark.parametrize(
    ("error", "state"),
    [
        (kie.ConnectError("x"), State.PLANNED),
        (kie.RateLimitedError("x", code=429), State.PLANNED),
        (kie.UnexpectedRedirectError("x", code=307, charged="maybe"), State.UNKNOWN),
        (SubmitUnknownError("x"), State.UNKNOWN),
        (kie.InvalidRequestError("x", code=422), State.REJECTED),
    ],
)
def test_where_a_job_goes_after_an_error(error: KieError, state: State) -> None:
    assert state_after(error) is state


async def test_no_intent_no_spending(tmp_path: Path) -> None:
    async with recording(tmp_path, settings={"quota": 1, "quota_window": 1000.0}) as kept:
        kept.journal.failures["intend"] = 1
        with pytest.raises(StorageError):
            await kept.session.submit(REQUEST, key="k")
        assert len(kept.service.emulator.arrivals) == 0
        await kept.session.submit(REQUEST, key="k")  # the only permit was given back
        assert len(kept.service.emulator.ledger) == 1


async def test_an_intent_whose_record_is_uncertain_is_planned_again(tmp_path: Path) -> None:
    async with recording(tmp_path) as kept:
        kept.journal.lost.add("intend")
        with pytest.raises(StorageError):
            await kept.session.submit(REQUEST, key="k")
        assert ((await kept.job("k")).state, len(kept.service.emulator.arrivals)) == (State.PLANNED, 0)
        await kept.session.submit(REQUEST, key="k")
        assert len(kept.service.emulator.ledger) == 1


async def test_an_intent_that_cannot_be_taken_back_now_is_planned_again_when_the_store_is_back(tmp_path: Path) -> None:
    async with recording(tmp_path) as kept:
        kept.journal.lost.add("intend")
        kept.journal.failures["move"] = 1
        with pytest.raises(StorageError):
            await kept.session.submit(REQUEST, key="k")
        assert (await kept.job("k")).state is State.INTENT
        assert [task async for task in kept.session.resume()] == []
        assert (await kept.job("k")).state is State.PLANNED


async def test_an_intent_that_cannot_be_taken_back_before_is_when_the_journal_is_closed(tmp_path: Path) -> None:
    journal = Away(store(tmp_path))
    journal.lost.add("intend")
    journal.failures["move"] = 1
    async with serving(credits=1e6) as service:
        jobs = [Job(key="k", request=REQUEST)]
        outcomes = kie.run_batch(service.session, jobs, journal=as_journal(journal), directory=tmp_path / "out")
        with pytest.raises(StorageError):
            async for job in outcomes:
                assert job.error is not None
        assert len(service.emulator.ledger) == 0
    assert (await read(tmp_path, "k")).state is State.PLANNED


async def test_a_task_id_is_kept_until_the_store_is_back(tmp_path: Path) -> None:
    async with recording(tmp_path) as kept:
        kept.journal.failures["move"] = 4
        task = await kept.session.submit(REQUEST, key="k")
        assert (await kept.job("k")).task_id == task.id
        assert "trying again" in kept.notes()


async def test_a_store_that_stays_away_is_said(tmp_path: Path) -> None:
    async with recording(tmp_path) as kept:
        kept.journal.failures["move"] = 100
        with pytest.raises(StorageError) as caught:
            await kept.session.submit(REQUEST, key="k")
        task_id = kept.service.emulator.ledger[0].task_id
        assert caught.value.task_id == task_id
        assert caught.value.charged == "yes"
        assert f"do not submit it again: session.track('{task_id}') follows it" in caught.value.message
        assert not caught.value.retryable


async def test_a_lost_answer_stays_a_lost_answer_where_the_journal_cannot_record_it(tmp_path: Path) -> None:
    async with recording(tmp_path, faults=[Fault("lost")]) as kept:
        kept.journal.failures["move"] = 1_000_000
        with pytest.raises(SubmitUnknownError, match="the journal could not record that") as caught:
            await kept.session.submit(REQUEST, key="k")
        assert caught.value.charged == "maybe"
        kept.journal.failures.clear()


async def test_an_end_that_cannot_be_recorded_now_is_recorded_later(tmp_path: Path) -> None:
    async with recording(tmp_path) as kept:
        task = await kept.session.submit(REQUEST, key="k")
        kept.journal.failures["move"] = 1
        await task
        await anyio.sleep(1)
        assert "could not be recorded" in kept.notes()
        assert (await kept.job("k")).state is State.SUCCEEDED


@pytest.mark.parametrize("state", [State.FAILED, State.SUCCEEDED])
async def test_an_end_that_another_process_has_just_recorded_is_told_only_if_it_is_another(
    tmp_path: Path, state: State
) -> None:
    async with recording(tmp_path) as kept, store(tmp_path, "other:1:aa") as other:
        task = await kept.session.submit(REQUEST, key="k")
        kept.journal.beside["move"] = lambda: other.move("k", state)
        await task
        await anyio.sleep(1)
        assert (await kept.job("k")).state is state
        assert ("recorded before" in kept.notes()) == (state is State.FAILED)


async def test_the_end_of_a_closing_session_is_recorded(tmp_path: Path) -> None:
    async with recording(tmp_path) as kept:
        task = await kept.session.submit(REQUEST, key="k")
        await task
    async with store(tmp_path) as journal:
        job = await journal.get("k")
        assert job is not None
        assert job.state is State.SUCCEEDED


@pytest.mark.parametrize("is_back", [False, True])
async def test_ends_that_are_not_recorded_when_the_session_is_closed_are_tried_once_more(
    tmp_path: Path, *, is_back: bool
) -> None:
    async with recording(tmp_path) as kept:
        tasks = [await kept.session.submit(REQUEST, key=key) for key in ("a", "b", "c")]
        kept.journal.failures["move"] = 1_000_000
        await asyncio.gather(*tasks)
        if is_back:
            kept.journal.failures.clear()
    states = {(await read(tmp_path, key)).state for key in ("a", "b", "c")}
    assert states == {State.SUCCEEDED if is_back else State.SUBMITTED}


@pytest.mark.parametrize("state", [State.SUCCEEDED, State.DELIVERED])
async def test_a_key_whose_task_has_ended_is_followed_and_its_end_is_not_recorded_again(
    tmp_path: Path, state: State
) -> None:
    async with recording(tmp_path) as kept:
        result = await (await kept.session.submit(REQUEST, key="k"))
        await anyio.sleep(1)
        if state is State.DELIVERED:
            await kept.journal.move("k", state)
        again = [await kept.session.submit(REQUEST, key="k") for _ in range(2)]
        assert [(await task).tracks for task in again] == [result.tracks, result.tracks]
        await anyio.sleep(1)
        assert (await kept.job("k")).state is state
        assert len(kept.service.emulator.ledger) == 1
        assert "recorded before" not in kept.notes()
        await kept.session.submit(REQUEST, key="k")  # its end is not known when the session is closed


async def test_old_callbacks_that_cannot_be_deleted_now_are_told(tmp_path: Path) -> None:
    async with recording(tmp_path, poll=600.0) as kept:
        await anyio.sleep(1)
        kept.journal.failures["prune"] = 1
        await anyio.sleep(3700)
        assert "old callbacks could not be deleted now" in kept.notes()


async def test_a_lease_that_cannot_be_renewed_is_told(tmp_path: Path) -> None:
    async with recording(tmp_path) as kept:
        kept.journal.failures["lease"] = 1
        await anyio.sleep(6)  # a lease is renewed every 5 s
        assert "renewed" in kept.notes()
        kept.journal.failures["release"] = 1
    assert "given back" in kept.notes()


# ---------------------------------------------------------------- what a dead process leaves


async def intent_of(folder: Path, key: str, process_id: str, token: str) -> None:
    """An intent whose process died before it could record an answer."""
    async with store(folder, process_id) as journal:
        await journal.add([Job(key=key, request=REQUEST)])
        await journal.intend(key, token)


async def test_an_intent_of_a_dead_process_is_unknown(tmp_path: Path) -> None:
    await intent_of(tmp_path, "k", "elsewhere:1:aa", "t" * 43)
    async with recording(tmp_path) as kept:
        assert [task async for task in kept.session.resume()] == []
        job = await kept.job("k")
        assert job.error is not None
        assert (job.state, job.error.charged) == (State.UNKNOWN, "maybe")
        assert [task async for task in kept.session.resume()] == []


async def test_an_intent_whose_callback_was_kept_is_followed(tmp_path: Path) -> None:
    await intent_of(tmp_path, "k", "elsewhere:1:aa", "t" * 43)
    async with recording(tmp_path) as kept:
        task_id = (await kept.service.session.submit(REQUEST)).id
        await kept.journal.save_callback(InboundCallback(token="t" * 43, task_id=task_id, stage="text", at=time.time()))
        (task,) = [task async for task in kept.session.resume()]
        assert (task.id, task.key) == (task_id, "k")
        assert len((await task).tracks) == 2


@asynccontextmanager
async def alive(folder: Path, process_id: str) -> AsyncGenerator[SQLiteJournal]:
    """Another process that lives."""
    async with store(folder, process_id) as journal:
        await journal.lease(f"process:{process_id}", 600)
        yield journal


async def test_an_intent_of_a_living_process_is_left_alone(tmp_path: Path) -> None:
    await intent_of(tmp_path, "k", "elsewhere:1:aa", "t" * 43)
    async with alive(tmp_path, "elsewhere:1:aa"), recording(tmp_path) as kept:
        assert [task async for task in kept.session.resume()] == []
        assert (await kept.job("k")).state is State.INTENT
        assert "left as it is" in kept.notes()


async def test_an_intent_is_resolved_when_the_lease_of_its_process_has_run_out(tmp_path: Path) -> None:
    async def break_down() -> None:
        raise ZeroDivisionError("of the journal")

    await intent_of(tmp_path, "k", "elsewhere:1:aa", "t" * 43)
    async with alive(tmp_path, "elsewhere:1:aa") as other, recording(tmp_path) as kept:
        assert [task async for task in kept.session.resume()] == []
        kept.journal.beside["open_processes"] = break_down
        await anyio.sleep(61)
        assert (await kept.job("k")).state is State.INTENT
        await other.release("process:elsewhere:1:aa")
        kept.journal.failures["open_processes"] = 1  # once more it cannot be done
        await anyio.sleep(61)
        assert (await kept.job("k")).state is State.UNKNOWN
        broken, away = [note for note in kept.notes().splitlines() if "could not be read now: " in note]
        assert away.endswith("could not be read now: open_processes: the store is away")
        assert re.search(r"a fault of .*: ZeroDivisionError in test_recorder.py:\d+: of the journal$", broken)


async def test_the_callback_of_a_process_that_died_a_moment_ago_names_its_task(tmp_path: Path) -> None:
    await intent_of(tmp_path, "k", "elsewhere:1:aa", "t" * 43)
    async with alive(tmp_path, "elsewhere:1:aa") as other, recording(tmp_path) as kept:
        task_id = (await kept.service.session.submit(REQUEST)).id
        await kept.journal.save_callback(InboundCallback(token="t" * 43, task_id=task_id, stage="text", at=time.time()))
        await anyio.sleep(20)
        assert (await kept.job("k")).state is State.INTENT
        await other.release("process:elsewhere:1:aa")
        await anyio.sleep(300)
        job = await kept.job("k")
        assert (job.state, job.task_id, len(job.tracks)) == (State.SUCCEEDED, task_id, 2)


async def test_a_callback_of_an_intent_whose_process_is_dead_names_its_task(tmp_path: Path) -> None:
    async with recording(tmp_path) as kept:
        await intent_of(tmp_path, "k", "elsewhere:1:aa", "t" * 43)
        task_id = (await kept.service.session.submit(REQUEST)).id
        await kept.journal.save_callback(InboundCallback(token="t" * 43, task_id=task_id, stage="text", at=time.time()))
        await anyio.sleep(20)
        assert (await kept.job("k")).task_id == task_id


async def test_a_callback_of_an_earlier_attempt_names_no_task(tmp_path: Path) -> None:
    async with recording(tmp_path) as kept, alive(tmp_path, "elsewhere:1:aa") as other:
        await other.add([Job(key="k", request=REQUEST)])
        await other.intend("k", "t" * 43)
        await other.move("k", State.PLANNED, token="t" * 43)  # it was refused, and is sent again
        await other.intend("k", "u" * 43)
        await kept.journal.save_callback(InboundCallback(token="t" * 43, task_id="it", stage="text", at=time.time()))
        await anyio.sleep(20)
        job = await kept.job("k")
        assert (job.state, job.token, job.task_id) == (State.INTENT, "u" * 43, None)


async def test_a_callback_of_a_task_that_a_living_process_follows_is_left_to_it(tmp_path: Path) -> None:
    async with recording(tmp_path) as kept, alive(tmp_path, "elsewhere:1:aa") as other:
        task_id = (await kept.service.session.submit(REQUEST)).id
        await other.add([Job(key="k", request=REQUEST)])
        await other.intend("k", "t" * 43)
        await other.move("k", State.SUBMITTED, token="t" * 43, task_id=task_id)
        await kept.journal.save_callback(InboundCallback(token="t" * 43, task_id=task_id, stage="text", at=time.time()))
        await anyio.sleep(300)
        assert (await kept.job("k")).state is State.SUBMITTED


async def test_a_batch_resolves_the_intent_of_a_process_that_dies_while_it_runs(tmp_path: Path) -> None:
    async with store(tmp_path, "elsewhere:1:aa") as other, serving(credits=1e6) as service:
        await other.add([Job(key="k", request=REQUEST, batch="b")])
        await other.intend("k", "t" * 43)
        await other.lease("process:elsewhere:1:aa", 600)

        async def die() -> None:
            await anyio.sleep(10)
            await other.release("process:elsewhere:1:aa")

        dying = asyncio.create_task(die())
        jobs = kie.run_batch(service.session, [], journal=store(tmp_path), directory=tmp_path / "out", batch="b")
        assert [(job.key, job.state) async for job in jobs] == [("k", State.UNKNOWN)]
        await dying
    assert '"state":"unknown"' in (tmp_path / "out" / "results.jsonl").read_text()


async def test_whoever_takes_over_from_a_dead_process_holds_a_lease_until_its_tasks_have_ended(tmp_path: Path) -> None:
    lease = "takeover:elsewhere:1:aa"
    async with recording(tmp_path) as kept, store(tmp_path, "another:1:x") as other:
        task_id = (await kept.service.session.submit(REQUEST)).id
        async with store(tmp_path, "elsewhere:1:aa") as dead:
            await dead.add([Job(key=key, request=REQUEST) for key in ("submitted", "sent")])
            await dead.intend("submitted", "s" * 43)
            await dead.move("submitted", State.SUBMITTED, token="s" * 43, task_id=task_id)
            await dead.intend("sent", "t" * 43)
        while (await kept.job("sent")).state is State.INTENT:
            await anyio.sleep(0.1)
        with pytest.raises(ConflictError):
            await other.lease(lease, 1)
        await other.lease("process:elsewhere:1:aa", 600)  # its own is free, should it have been stopped merely
        await anyio.sleep(300)
        assert (await kept.job("submitted")).state is State.SUCCEEDED
        await other.lease(lease, 1)


async def test_one_s_own_submission_under_way_is_left_alone(tmp_path: Path) -> None:
    async with recording(tmp_path, faults=[Fault("slow", seconds=20)]) as kept:
        submitting = asyncio.create_task(kept.session.submit(REQUEST, key="k"))
        await anyio.sleep(5)
        assert [task async for task in kept.session.resume()] == []
        with pytest.raises(ConflictError):
            await kept.session.submit(REQUEST, key="k")
        task = await submitting
        assert (await kept.job("k")).task_id == task.id
        assert len(kept.service.emulator.ledger) == 1


async def test_a_callback_names_an_unknown_while_the_session_runs(tmp_path: Path) -> None:
    await intent_of(tmp_path, "k", "elsewhere:1:aa", "t" * 43)
    async with recording(tmp_path) as kept:
        assert [task async for task in kept.session.resume()] == []
        await kept.journal.save_callback(
            InboundCallback(token="t" * 43, task_id="task1", stage="complete", at=time.time())
        )
        await anyio.sleep(20)
        job = await kept.job("k")
        assert (job.state, job.task_id) == (State.SUBMITTED, "task1")


async def test_a_callback_that_cannot_be_recorded_now_is_told(tmp_path: Path) -> None:
    await intent_of(tmp_path, "k", "elsewhere:1:aa", "t" * 43)
    async with recording(tmp_path) as kept:
        kept.journal.failures["find"] = 1
        await anyio.sleep(1)  # by now it listens
        await kept.journal.save_callback(
            InboundCallback(token="t" * 43, task_id="task1", stage="complete", at=time.time())
        )
        await anyio.sleep(20)
        assert "could not be found or resolved now" in kept.notes()


async def test_a_token_that_names_two_tasks_is_told(tmp_path: Path) -> None:
    async with recording(tmp_path, faults=[Fault("slow", seconds=20)]) as kept:
        submitting = asyncio.create_task(kept.session.submit(REQUEST, key="k"))
        await anyio.sleep(5)
        token = (await kept.job("k")).token
        assert token is not None
        for task_id in ("one", "other"):
            assert await kept.journal.save_callback(
                InboundCallback(token=token, task_id=task_id, stage="text", at=time.time())
            )
        await anyio.sleep(10)
        assert "belongs to another task" in kept.notes()
        assert (await submitting).id == kept.service.emulator.ledger[0].task_id


async def test_a_late_answer_after_its_callback_changes_nothing(tmp_path: Path) -> None:
    """The process slept, another process took it for dead, and a callback named the task before it woke."""
    async with recording(tmp_path, faults=[Fault("slow", seconds=20)]) as kept, store(tmp_path, "other:1:aa") as other:
        submitting = asyncio.create_task(kept.session.submit(REQUEST, key="k"))
        await anyio.sleep(5)
        token = (await kept.job("k")).token
        await other.move("k", State.UNKNOWN, token=token)
        await other.move("k", State.SUBMITTED, token=token, task_id=kept.service.emulator.ledger[0].task_id)
        task = await submitting
        job = await kept.job("k")
        assert (job.state, job.task_id) == (State.SUBMITTED, task.id)
        assert "recorded before" in kept.notes()


async def test_with_callbacks_the_journal_comes_first(tmp_path: Path) -> None:
    async with serving(callbacks=True, credits=1e6, journal=store(tmp_path)) as service:
        for polls in (20, 4, 4):  # until the first end is reported, as without
            task = await service.session.submit(REQUEST)
            assert len((await task).tracks) == 2
            assert service.emulator.polls(task.id) <= polls


async def test_a_task_whose_time_was_over_is_followed_again_when_its_callback_comes(tmp_path: Path) -> None:
    timeline, settings = (10.0, 45.0, 300.0), {"task_timeout": 100}
    async with serving(callbacks=True, timeline=timeline, settings=settings, journal=store(tmp_path)) as service:
        with pytest.raises(kie.WaitTimeoutError):
            await (await service.session.submit(REQUEST, key="k"))
        await anyio.sleep(250)
    assert (await read(tmp_path, "k")).state is State.SUCCEEDED


async def test_a_task_that_a_callback_names_is_followed_to_its_end(tmp_path: Path) -> None:
    await intent_of(tmp_path, "k", "elsewhere:1:aa", "t" * 43)
    async with recording(tmp_path) as kept:
        assert [task async for task in kept.session.resume()] == []
        task_id = (await kept.service.session.submit(REQUEST)).id
        await kept.journal.save_callback(InboundCallback(token="t" * 43, task_id=task_id, stage="text", at=time.time()))
        await anyio.sleep(300)
        job = await kept.job("k")
        assert (job.state, job.task_id) == (State.SUCCEEDED, task_id)


# ---------------------------------------------------------------- journals and sessions


async def test_a_session_has_one_journal(tmp_path: Path) -> None:
    async with recording(tmp_path) as kept:
        for journal in (kept.journal, None):
            batch = kie.run_batch(kept.session, [], journal=as_journal(journal), directory=tmp_path, batch="b")
            assert [job async for job in batch] == []
        with pytest.raises(kie.SessionError, match="with a journal: for another"):
            await anext(kie.run_batch(kept.session, [], journal=store(tmp_path), directory=tmp_path, batch="b"))


async def test_a_key_that_came_to_nothing_is_not_sent_again(tmp_path: Path) -> None:
    async with recording(tmp_path, faults=[Fault("lost")]) as kept:
        with pytest.raises(SubmitUnknownError):
            await kept.session.submit(REQUEST, key="k")
        with pytest.raises(ConflictError, match="is unknown, not planned") as caught:
            await kept.session.submit(REQUEST, key="k")
        assert caught.value.charged == "maybe"
        assert len(kept.service.emulator.ledger) == 1


_OWN_KEY = "give this one a key of its own"
_RESOLVE = r"may be paid, .*kie-async jobs resolve 'k 1'$"
_AFTER: dict[str, tuple[list[State], dict[str, Any], str, str]] = {
    # the way to a state, what is learnt there, what the error says, and charged
    "planned": ([], {}, _OWN_KEY, "no"),
    "intent": ([State.INTENT], {}, _RESOLVE, "maybe"),
    "unknown": ([State.INTENT, State.UNKNOWN], {}, _RESOLVE, "maybe"),
    "abandoned": ([State.INTENT, State.UNKNOWN, State.ABANDONED], {}, "abandoned and may be paid", "maybe"),
    "submitted": ([State.INTENT, State.SUBMITTED], {"task_id": "7" * 32}, "is paid: session.track", "yes"),
    "rejected": ([State.INTENT, State.REJECTED], {}, _OWN_KEY, "no"),
    "failed": (
        [State.INTENT, State.UNKNOWN, State.SUBMITTED, State.FAILED],
        {"task_id": "7" * 32},
        "failed and may be paid: a key of its own",
        "maybe",
    ),
}


@pytest.mark.parametrize("state", _AFTER)
async def test_a_key_of_another_request_is_refused_by_what_became_of_that(tmp_path: Path, state: str) -> None:
    way, facts, says, charged = _AFTER[state]
    async with recording(tmp_path) as kept:
        await kept.journal.add([Job(key="k 1", request=REQUEST)])
        for to in way:
            known = facts if to is State.SUBMITTED else {}
            await (
                kept.journal.intend("k 1", "t" * 43) if to is State.INTENT else kept.journal.move("k 1", to, **known)
            )
        before = await kept.job("k 1")
        with pytest.raises(ConflictError, match=f"the key 'k 1' is on record with another request.*{says}") as caught:
            await kept.session.submit(attrs.evolve(REQUEST, model="V4"), key="k 1")
        assert (caught.value.charged, caught.value.task_id) == (charged, facts.get("task_id"))
        assert await kept.job("k 1") == before
        assert len(kept.service.emulator.ledger) == 0


async def test_a_key_is_not_used_for_another_request(tmp_path: Path) -> None:
    async with recording(tmp_path, faults=[Fault("code", code=402, times=1)]) as kept:
        with pytest.raises(InsufficientCreditsError):
            await kept.session.submit(REQUEST, key="k")
        with pytest.raises(ConflictError, match="another request"):  # planned, and not sent
            await kept.session.submit(attrs.evolve(REQUEST, model="V4"), key="k")
        task = await kept.session.submit(REQUEST, key="k")
        with pytest.raises(ConflictError, match="another request") as caught:
            await kept.session.submit(attrs.evolve(REQUEST, model="V4"), key="k")
        assert (caught.value.charged, caught.value.task_id) == ("yes", task.id)
        assert len(kept.service.emulator.ledger) == 1


async def test_the_task_of_a_key_is_followed_however_its_source_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "song.wav").write_bytes(encoded("pcm_s16le", "wav"))
    monkeypatch.chdir(tmp_path)
    signed = "https://x.example/song.wav?Signature="
    alike: dict[str, list[tuple[str | Path, float | None]]] = {
        "file": [(tmp_path / "song.wav", None), ("song.wav", None), (str(tmp_path / "song.wav"), 20.05)],
        "url": [(f"{signed}a", 20.0), (f"{signed}b", 20.0), (f"{signed}c", 20.05)],
    }
    async with recording(tmp_path) as kept:
        for key, sources in alike.items():
            requests = [
                kie.UploadExtendRequest(source, continue_at="75%", default_param_flag=False, source_duration=seconds)
                for source, seconds in sources
            ]
            assert len({(await kept.session.submit(request, key=key)).id for request in requests}) == 1
            with pytest.raises(ConflictError, match="another request"):
                await kept.session.submit(attrs.evolve(requests[0], continue_at=16), key=key)
        assert len(kept.service.emulator.ledger) == 2


async def test_of_two_requests_under_one_key_one_is_sent(tmp_path: Path) -> None:
    async with recording(tmp_path) as kept, store(tmp_path, "another") as another:
        job = Job(key="k", request=attrs.evolve(REQUEST, model="V4"))
        kept.journal.beside["add"] = lambda: another.add([job])
        with pytest.raises(ConflictError, match="another request"):
            await kept.session.submit(REQUEST, key="k")
        assert (await kept.job("k")).request == job.request
        assert len(kept.service.emulator.ledger) == 0


@pytest.mark.parametrize(
    ("where", "kind", "shared"),
    [("postgresql://u@h/d", PostgresJournal, True), ("jobs.sqlite", SQLiteJournal, False)],
)
def test_a_journal_by_its_address(where: str, kind: Callable[..., object], shared: bool) -> None:  # noqa: FBT001  # a table's column
    assert isinstance(open_journal(where), kind)  # type: ignore[arg-type]  # classes
    assert is_shared(where) is shared


# ---------------------------------------------------------------- leaving, and sleeping


async def read(folder: Path, key: str) -> Job:
    async with store(folder) as journal:
        job = await journal.get(key)
    assert job is not None
    return job


async def test_leaving_waits_until_an_answer_under_way_is_recorded(tmp_path: Path) -> None:
    async with serving(credits=1e6, faults=[Fault("slow", seconds=5)]) as service:
        with pytest.raises(TimeoutError):
            async with kie.KieSession(service.session.settings, journal=store(tmp_path)) as session, asyncio.timeout(2):
                await session.submit(REQUEST, key="k")
        (charge,) = service.emulator.ledger
    job = await read(tmp_path, "k")
    assert (job.state, job.task_id) == (State.SUBMITTED, charge.task_id)


async def test_a_batch_broken_off_waits_until_an_answer_under_way_is_recorded(tmp_path: Path) -> None:
    async with serving(credits=1e6, faults=[Fault("slow", seconds=5)]) as service:
        jobs = [Job(key="k", request=REQUEST)]
        outcomes = kie.run_batch(service.session, jobs, journal=store(tmp_path), directory=tmp_path / "out")
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(2), aclosing(outcomes):
                await anext(outcomes)
        (charge,) = service.emulator.ledger
    job = await read(tmp_path, "k")
    assert (job.state, job.task_id) == (State.SUBMITTED, charge.task_id)


async def test_leaving_does_not_wait_for_a_callback(tmp_path: Path) -> None:
    async with serving(callbacks=True, credits=1e6, faults=[Fault("lost")]) as service:
        settings = attrs.evolve(service.session.settings, recovery_timeout=3600.0)
        started = asyncio.get_running_loop().time()
        with pytest.raises(TimeoutError):
            async with kie.KieSession(settings, journal=store(tmp_path)) as session, asyncio.timeout(5):
                await session.submit(REQUEST, key="k")
        assert asyncio.get_running_loop().time() - started < 60
    assert (await read(tmp_path, "k")).state is State.INTENT


async def test_the_end_of_a_task_whose_caller_went_is_recorded(tmp_path: Path) -> None:
    async with recording(tmp_path, faults=[Fault("slow", seconds=5)]) as kept:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(2):
                await kept.session.submit(REQUEST, key="k")
        await anyio.sleep(300)
        assert (await kept.job("k")).state is State.SUCCEEDED


class Doorway(Away):
    """A journal beside whose opening and closing something is done."""

    def __init__(self, journal: Journal, beside: Callable[[], Awaitable[None]]) -> None:
        super().__init__(journal)
        self._beside = beside

    async def __aenter__(self) -> Self:
        await self._beside()
        return await super().__aenter__()

    async def __aexit__(self, *error: object) -> None:
        await self._beside()
        await super().__aexit__(*error)


async def test_a_callback_beside_the_opening_of_the_journal_is_asked_for_again(tmp_path: Path) -> None:
    body = b'{"code":200,"msg":"","data":{"callbackType":"complete","task_id":"t1","data":[]}}'
    statuses = []

    async def call() -> None:
        statuses.append(await session.receiver.handle({}, body, "t" * 43))

    async with serving() as service:
        session = kie.KieSession(service.session.settings, journal=as_journal(Doorway(store(tmp_path), call)))
        async with session:
            await call()
    assert statuses == [503, 200, 503]


async def test_nothing_is_sent_beside_the_closing_of_the_journal(tmp_path: Path) -> None:
    async def submit() -> None:
        with pytest.raises(kie.SessionError, match=r"not open|was closed"):
            await session.submit(REQUEST)

    async with serving() as service:
        session = kie.KieSession(service.session.settings, journal=as_journal(Doorway(store(tmp_path), submit)))
        async with session:
            pass
        assert service.emulator.ledger == []


async def test_what_waits_for_the_quota_while_the_journal_is_being_closed_is_not_sent(tmp_path: Path) -> None:
    async with serving(faults=[Fault("slow", seconds=30, nth=2)], settings={"quota": 2}) as service:
        async with kie.KieSession(service.session.settings, journal=store(tmp_path)) as session:
            submitting = [asyncio.create_task(session.submit(REQUEST, key=key)) for key in "abc"]
            await anyio.sleep(1)
        with pytest.raises(kie.SessionError, match="closed"):  # it gets its permit before the second's answer
            await submitting[2]
        assert len(service.emulator.ledger) == 2
        assert await asyncio.gather(*submitting[:2])
    assert [(await read(tmp_path, key)).state for key in "bc"] == [State.SUBMITTED, State.PLANNED]


async def test_what_waits_for_the_quota_while_only_its_journal_is_being_closed_is_not_sent(tmp_path: Path) -> None:
    async with serving(faults=[Fault("slow", seconds=30, nth=2)], settings={"quota": 2}) as service:
        async with service.session.open_journal(store(tmp_path)):
            submitting = [asyncio.create_task(service.session.submit(REQUEST, key=key)) for key in "abc"]
            await anyio.sleep(1)
        with pytest.raises(kie.SessionError, match="the journal is being closed"):
            await submitting[2]
        assert len(service.emulator.ledger) == 2
        assert await asyncio.gather(*submitting[:2])
    assert [(await read(tmp_path, key)).state for key in "bc"] == [State.SUBMITTED, State.PLANNED]


async def test_the_end_of_an_old_attempt_is_not_written_over_a_new_one(tmp_path: Path) -> None:
    async with recording(tmp_path) as kept:
        old = await kept.session.submit(REQUEST, key="k")
        await anyio.sleep(30)
        await kept.journal.move("k", State.FAILED)  # a person decides so, and has it sent again
        await kept.journal.move("k", State.PLANNED)
        new = await kept.session.submit(REQUEST, key="k")
        await old
        await anyio.sleep(1)
        job = await kept.job("k")
        assert (job.state, job.task_id) == (State.SUBMITTED, new.id)
        assert "another attempt" in kept.notes()
        await new
        await anyio.sleep(1)
        assert (await kept.job("k")).state is State.SUCCEEDED


async def test_a_process_that_slept_through_its_lease_asks_before_it_spends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with (
        recording(tmp_path) as kept,
        store(tmp_path, "another:1:x") as other,
        kept.session.open_journal(as_journal(kept.journal)) as recorder,
        recorder.leases.holding("batch:b"),
    ):
        await kept.journal.release("batch:b")
        await other.lease("batch:b", 600)
        now = time.time()
        monkeypatch.setattr(time, "time", lambda: now + 31)
        with pytest.raises(ConflictError):
            await kept.session.submit(REQUEST, key="k")
        assert kept.service.emulator.ledger == []
        assert (await kept.job("k")).state is State.PLANNED
        await other.release("batch:b")
        await kept.session.submit(REQUEST, key="k")
        assert len(kept.service.emulator.ledger) == 1


async def test_a_lease_is_held_once(tmp_path: Path) -> None:
    async with (
        recording(tmp_path) as kept,
        store(tmp_path, "another:1:x") as other,
        kept.session.open_journal(as_journal(kept.journal)) as recorder,
    ):
        async with recorder.leases.holding("batch:b"):
            with pytest.raises(ConflictError, match="this process"):
                async with recorder.leases.holding("batch:b"):
                    raise AssertionError
            with pytest.raises(ConflictError):
                await other.lease("batch:b", 30)
        await recorder.leases.renew("batch:b")  # it was about to be renewed when it was given back
        await other.lease("batch:b", 30)


async def test_a_lease_that_is_given_back_while_another_is_renewed_is_not_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ("batch:a", "batch:b")
    async with store(tmp_path) as opened, store(tmp_path, "another:1:x") as other, AsyncExitStack() as guards:
        journal = Away(opened)
        leases = Leases(as_journal(journal), lambda _event: None)
        for name in names:
            await guards.enter_async_context(leases.holding(name))
        now = time.time()
        monkeypatch.setattr(time, "time", lambda: now + 31)
        journal.beside["lease"] = guards.aclose
        await leases.check()
        assert not journal.beside
        for name in names:
            await other.lease(name, 30)


async def test_a_lease_whose_taker_is_cancelled_is_given_back(tmp_path: Path) -> None:
    async with recording(tmp_path) as kept, store(tmp_path, "another:1:x") as other:
        is_written = asyncio.Event()

        async def write_and_hang() -> None:
            await kept.journal.lease("batch:b", 600)
            is_written.set()
            await anyio.sleep_forever()

        async def take() -> None:
            async with (
                kept.session.open_journal(as_journal(kept.journal)) as recorder,
                recorder.leases.holding("batch:b"),
            ):
                raise AssertionError

        kept.journal.beside["lease"] = write_and_hang
        taking = asyncio.create_task(take())
        await is_written.wait()
        taking.cancel()
        await asyncio.wait([taking])
        assert taking.cancelled()
        await other.lease("batch:b", 30)


async def test_a_callback_beside_the_record_of_an_unknown_is_not_lost(tmp_path: Path) -> None:
    await intent_of(tmp_path, "k", "dead:1:aa", "t" * 43)
    async with recording(tmp_path) as kept:

        async def save_callback() -> None:
            await kept.journal.save_callback(
                InboundCallback(token="t" * 43, task_id="task1", stage="complete", at=time.time())
            )

        kept.journal.beside["move"] = save_callback
        assert [task.id async for task in kept.session.resume()] == ["task1"]
        job = await kept.job("k")
        assert (job.state, job.task_id) == (State.SUBMITTED, "task1")


async def test_a_callback_while_a_lost_submission_is_given_up_is_not_lost(tmp_path: Path) -> None:
    faults = [Fault("lost"), Fault("lost", on="callback")]
    journal = Away(store(tmp_path))
    async with serving(
        callbacks=True, faults=faults, settings={"recovery_timeout": 3.0}, journal=as_journal(journal)
    ) as service:

        async def name_it() -> None:
            (charge,) = service.emulator.ledger
            assert await service.call_back(charge.task_id, "text", token=service.token(charge.task_id)) == ""
            await anyio.sleep(20)

        journal.beside["move"] = name_it
        task = await service.session.submit(REQUEST, key="k")
        assert task.id == service.emulator.ledger[0].task_id
        job = await journal.get("k")
        assert (job.state, job.task_id) == (State.SUBMITTED, task.id)
