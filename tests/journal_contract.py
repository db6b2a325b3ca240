"""What every journal must do, whatever it keeps its jobs in.

A store's test module derives from ``JournalContract`` and gives the fixture ``make``; and from ``JournalMachine`` and
gives ``make`` as a method.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterable, Mapping
from contextlib import AsyncExitStack, aclosing, suppress
from datetime import UTC, datetime
from itertools import product
from typing import Any, TypeVar

import anyio
import attrs
import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from kie_async.errors import BudgetError, ConflictError, SettingsError, StorageError
from kie_async.journal import (
    ANY_BATCH,
    OPEN,
    PAID,
    TRANSITIONS,
    Attempt,
    BatchFilter,
    InboundCallback,
    Job,
    JobError,
    Journal,
    Payer,
    Source,
    State,
)
from kie_async.models import ExtendRequest, Track, UploadExtendRequest

T = TypeVar("T")
Make = Callable[[], Journal]
Lose = Callable[[], None]

REQUEST = ExtendRequest("track-1", model="V5")
UPLOAD = UploadExtendRequest("a song.mp3", model="V5", continue_at=45.5, style="Jazz, ä 🎵", title="T", prompt="x\ny")
SOURCE = Source(path="a song.mp3", size=7, sha256="ab" * 32, duration=61.5)
TRACK = Track("id", "https://x.example/a.mp3", duration=60.5, title="Ü", created_at=datetime(2026, 1, 2, tzinfo=UTC))
ROUTES: Mapping[State, tuple[State, ...]] = {  # how a job gets into each state
    State.PLANNED: (),
    State.INTENT: (State.INTENT,),
    State.SUBMITTED: (State.INTENT, State.SUBMITTED),
    State.SUCCEEDED: (State.INTENT, State.SUBMITTED, State.SUCCEEDED),
    State.DELIVERED: (State.INTENT, State.SUBMITTED, State.SUCCEEDED, State.DELIVERED),
    State.FAILED: (State.INTENT, State.SUBMITTED, State.FAILED),
    State.REJECTED: (State.INTENT, State.REJECTED),
    State.UNKNOWN: (State.INTENT, State.UNKNOWN),
    State.ABANDONED: (State.INTENT, State.UNKNOWN, State.ABANDONED),
}


def planned(key: str, *, batch: str = "") -> Job:
    return Job(key=key, batch=batch, request=REQUEST)


def held(key: str, machine: str, *, batch: str = "songs") -> Job:
    """A planned job whose source is a file of a machine, or, for "", of none."""
    return attrs.evolve(planned(key, batch=batch), source=Source(path="song", machine=machine))


def inbound(token: str, task_id: str = "task", stage: str = "text", at: float = 1.5) -> InboundCallback:
    return InboundCallback(token=token, task_id=task_id, stage=stage, at=at)


async def step(journal: Journal, key: str, to: State) -> Job:
    """One move; tokens and task ids follow from the key."""
    if to is State.INTENT:
        return await journal.intend(key, f"token-{key}")
    facts = {"task_id": f"task-{key}"} if to is State.SUBMITTED else {}
    return await journal.move(key, to, **facts)


async def bring(journal: Journal, key: str, state: State, *, batch: str = "") -> None:
    """Add a job and bring it into a state."""
    await journal.add([planned(key, batch=batch)])
    for to in ROUTES[state]:
        await step(journal, key, to)


async def job_of(journal: Journal, key: str) -> Job:
    job = await journal.get(key)
    assert job is not None
    return job


async def counted(journal: Journal, payer: Payer) -> float:
    """What counts for the cap of an account."""
    return await _counted(journal, "", attrs.evolve(payer, max_credits=0))


async def counted_for(journal: Journal, batch: str) -> float:
    """What counts for the cap of a batch, which has none to speak of then."""
    await journal.caps.set(batch, 0)
    spent = await _counted(journal, batch, Payer())
    await journal.caps.set(batch, 1e9)
    return spent


async def _counted(journal: Journal, batch: str, payer: Payer) -> float:
    with pytest.raises(BudgetError, match="are spent or reserved") as caught:
        await journal.caps.check(batch, payer)
    return float(caught.value.message.partition(", and ")[2].partition(" ")[0])


async def keys(journal: Journal, *states: State, batch: str | None = None) -> list[str]:
    return [job.key for _, job in await journal.page(*states, batch=batch)]


async def expecting(journal: Journal, *tokens: str) -> None:
    """Intend a job for each token, so that its callbacks are awaited."""
    await journal.add(planned(f"job of {token}") for token in tokens)
    for token in tokens:
        await journal.intend(f"job of {token}", token)


async def collect(listener: AsyncGenerator[InboundCallback, None], wanted: Iterable[InboundCallback]) -> None:
    """Listen until all that is wanted came; others, and doubles, are allowed."""
    missing = set(wanted)
    with anyio.fail_after(60):
        while missing:
            missing.discard(await anext(listener))


async def all_of(*calls: Coroutine[Any, Any, T]) -> list[T | BaseException]:
    return await asyncio.gather(*calls, return_exceptions=True)


class JournalContract:
    """The tests, each with an empty store."""

    @pytest.fixture
    def make(self) -> Make:
        """Make a journal of another process life, each time, on one store."""
        raise NotImplementedError

    @pytest.fixture
    def lose(self) -> Lose:
        """Take the store away, as somebody does who does not know that it is in use."""
        raise NotImplementedError

    @pytest.fixture
    async def journal(self, make: Make) -> AsyncGenerator[Journal, None]:
        async with make() as journal:
            yield journal

    @pytest.fixture
    async def other(self, make: Make) -> AsyncGenerator[Journal, None]:
        async with make() as journal:
            yield journal

    # ------------------------------------------------------------ adding and reading

    async def test_what_was_added_is_read_again(self, journal: Journal) -> None:
        job = Job(key="schlüssel 🎵", batch="b", request=UPLOAD, source=SOURCE)
        assert await journal.add([job]) == 1
        assert await journal.get(job.key) == job
        assert await journal.get("other") is None

    async def test_adding_again_changes_nothing(self, journal: Journal) -> None:
        assert await journal.add([planned("a"), planned("b"), planned("a")]) == 2
        await step(journal, "a", State.INTENT)
        before = await journal.get("a")
        assert await journal.add([planned("a"), planned("c", batch="x")]) == 1
        assert await journal.get("a") == before
        assert await journal.add([]) == 0

    async def test_many_are_added_from_any_iterable(self, journal: Journal) -> None:
        assert await journal.add(planned(f"{number:04}") for number in range(1234)) == 1234
        assert (await journal.counts())[State.PLANNED] == 1234
        assert [job.key async for job in journal.jobs()] == [f"{number:04}" for number in range(1234)]

    async def test_many_are_read_at_once(self, journal: Journal) -> None:
        await journal.add(planned(f"job{number}") for number in range(3))
        assert await journal.get_all(["job2", "other", "job0"]) == {
            key: await job_of(journal, key) for key in ("job2", "job0")
        }
        assert await journal.get_all([]) == {}

    async def test_only_planned_jobs_are_added(self, journal: Journal) -> None:
        with pytest.raises(ValueError, match="planned"):
            await journal.add([planned("a"), attrs.evolve(planned("b"), state=State.SUBMITTED)])

    async def test_what_was_written_outlives_the_process(self, make: Make) -> None:
        async with make() as journal:
            await bring(journal, "a", State.SUBMITTED)
            job = await journal.get("a")
        async with make() as journal:
            assert await journal.get("a") == job

    async def test_it_says_when_it_is_not_open(self, make: Make) -> None:
        journal = make()
        async with journal:
            await journal.add([planned("a")])
        with pytest.raises(StorageError):
            await journal.get("a")

    # ------------------------------------------------------------ moves

    async def test_every_pair_of_states(self, journal: Journal) -> None:
        for now, to in product(State, State):
            key = f"{now}-{to}"
            await bring(journal, key, now)
            before = await job_of(journal, key)
            if to in TRANSITIONS[now]:
                after = await step(journal, key, to)
                assert (after.state, await journal.get(key)) == (to, after)
                assert after.moments[to] > 0
                continue
            for move in (step(journal, key, to), journal.move(key, to, task_id="other", error=None)):
                with pytest.raises(ConflictError):
                    await move
            assert await journal.get(key) == before

    async def test_every_state_has_a_route(self) -> None:
        for state, route in ROUTES.items():
            assert (State.PLANNED, *route)[-1] is state

    async def test_facts_are_kept(self, journal: Journal) -> None:
        await bring(journal, "a", State.INTENT)
        await journal.move("a", State.SUBMITTED, token="token-a", task_id="t", route="generate")
        error = JobError(type="X", message="ä", code=531, charged="yes", retryable=True, refunded=True)
        await journal.move("a", State.SUCCEEDED, tracks=(TRACK, Track()), partial=True, credits=11.5)
        await journal.move("a", State.DELIVERED, files=("x/y.mp3", "z.mp3"), error=error)
        job = await job_of(journal, "a")
        assert (job.task_id, job.token, job.last_attempt.route) == ("t", "token-a", "generate")
        assert (job.tracks, job.partial, job.credits) == ((TRACK, Track()), True, 11.5)
        assert (job.files, job.error, job.process_id) == (("x/y.mp3", "z.mp3"), error, journal.process_id)
        assert list(job.moments) == ["planned", "intent", "submitted", "succeeded", "delivered"]

    async def test_a_context_is_kept_with_its_attempt(self, journal: Journal) -> None:
        await journal.add([planned("a")])
        await journal.intend("a", "token", {"traceparent": "00-1"})
        await journal.move("a", State.SUBMITTED, task_id="task")
        assert (await job_of(journal, "a")).last_attempt.context == {"traceparent": "00-1"}

    async def test_only_facts_can_be_set(self, journal: Journal) -> None:
        await bring(journal, "a", State.INTENT)
        before = await journal.get("a")
        odd: tuple[dict[str, Any], ...] = ({"state": State.PLANNED}, {"attempt": 7}, {"nonsense": 1})
        for facts in odd:
            with pytest.raises(TypeError, match="facts"):
                await journal.move("a", State.SUBMITTED, task_id="t", **facts)
        with pytest.raises(TypeError, match="task_id"):
            await journal.move("a", State.SUBMITTED)
        assert await journal.get("a") == before

    async def test_what_is_not_there_cannot_be_moved(self, journal: Journal) -> None:
        for move in (
            journal.intend("a", "t"),
            journal.move("a", State.REJECTED),
            journal.upload("a", SOURCE),
        ):
            with pytest.raises(ConflictError, match="'a'"):
                await move
        assert await journal.attempts("a") == []

    async def test_one_of_two_intents_wins(self, journal: Journal, other: Journal) -> None:
        await journal.add([planned(f"{number}") for number in range(20)])
        for key in await keys(journal):
            calls = [each.intend(key, f"{each.process_id}{key}{n}") for n in range(3) for each in (journal, other)]
            ends = await all_of(*calls)
            winners = [end for end in ends if isinstance(end, Job)]
            assert len(winners) == 1
            assert all(isinstance(end, (Job, ConflictError)) for end in ends)
            assert await other.get(key) == winners[0]
            assert len(await journal.attempts(key)) == 1

    async def test_a_token_is_used_once(self, journal: Journal) -> None:
        await journal.add([planned("a"), planned("b")])
        await journal.intend("a", "token")
        with pytest.raises(ConflictError):
            await journal.intend("b", "token")
        assert (await job_of(journal, "b")).state is State.PLANNED
        assert await journal.attempts("b") == []

    async def test_the_move_of_an_older_attempt_is_refused(self, journal: Journal) -> None:
        await bring(journal, "a", State.UNKNOWN)
        await journal.move("a", State.PLANNED, token="token-a")
        await journal.intend("a", "second")
        before = await journal.get("a")
        for to, facts in ((State.SUBMITTED, {"task_id": "late"}), (State.UNKNOWN, {}), (State.PLANNED, {})):
            with pytest.raises(ConflictError):
                await journal.move("a", to, token="token-a", **facts)
        assert await journal.get("a") == before
        assert (await journal.move("a", State.SUBMITTED, token="second", task_id="t")).task_id == "t"

    async def test_a_job_planned_again_forgets_its_attempt(self, journal: Journal) -> None:
        await bring(journal, "a", State.SUBMITTED)
        error = JobError(type="X", message="m")
        await journal.move("a", State.FAILED, error=error, route="r", tracks=(TRACK,))
        job = await journal.move("a", State.PLANNED)
        begun = planned("a")
        assert attrs.evolve(job, moments=begun.moments) == attrs.evolve(begun, attempt=1)
        assert (await journal.intend("a", "second")).attempt == 2

    # ------------------------------------------------------------ attempts

    async def test_attempts_keep_their_task_ids(self, journal: Journal, other: Journal) -> None:
        await bring(journal, "a", State.FAILED)
        await journal.move("a", State.PLANNED)
        await other.intend("a", "second")
        await other.move("a", State.UNKNOWN)
        await journal.move("a", State.PLANNED)
        await journal.intend("a", "third")
        await journal.move("a", State.SUBMITTED, task_id="t3")
        attempts = await journal.attempts("a")
        assert [(each.number, each.token, each.task_id, each.process_id) for each in attempts] == [
            (1, "token-a", "task-a", journal.process_id),
            (2, "second", None, other.process_id),
            (3, "third", "t3", journal.process_id),
        ]
        assert attempts[-1].intended_at == (await job_of(journal, "a")).moments["intent"]
        assert isinstance(attempts[0], Attempt)

    async def test_a_job_is_found_by_all_its_attempts(self, journal: Journal) -> None:
        await bring(journal, "a", State.FAILED)
        await journal.move("a", State.PLANNED)
        await journal.intend("a", "second")
        job = await journal.get("a")
        assert await journal.find(token="token-a") == await journal.find(token="second") == job
        assert await journal.find(task_id="task-a") == job
        assert await journal.find(token="none", task_id="task-a") == job
        assert await journal.find(token="none") is await journal.find(task_id="none") is await journal.find() is None

    async def test_a_task_is_of_one_attempt_only(self, journal: Journal) -> None:
        await bring(journal, "a", State.SUBMITTED)
        await bring(journal, "b", State.INTENT)
        before = await journal.get("b")
        with pytest.raises(ConflictError, match="task-a"):
            await journal.move("b", State.SUBMITTED, task_id="task-a")
        assert await journal.get("b") == before
        with pytest.raises(ConflictError, match="other"):
            await journal.move("a", State.SUCCEEDED, task_id="other")
        assert (await journal.move("a", State.SUCCEEDED, task_id="task-a")).task_id == "task-a"

    # ------------------------------------------------------------ pages and numbers

    async def test_pages_come_in_the_order_of_adding(self, journal: Journal) -> None:
        names = [f"{number * 7 % 100:02}" for number in range(100)]
        await journal.add(planned(key) for key in names)
        await step(journal, names[50], State.INTENT)
        seen: list[str] = []
        after = 0
        while page := await journal.page(after=after, limit=33):
            seen += [job.key for _, job in page]
            after = page[-1][0]
        assert seen == names
        planned_now = await keys(journal, State.PLANNED)
        assert planned_now == [key for key in names if key != names[50]]

    async def test_pages_by_state_and_batch(self, journal: Journal) -> None:
        for number, state in enumerate(State):
            await bring(journal, f"{state}", state, batch="even" if number % 2 == 0 else "odd")
        every = [str(state) for state in State]
        assert await keys(journal) == every
        assert await keys(journal, batch="even") == every[::2]
        assert await keys(journal, State.INTENT, State.DELIVERED, State.INTENT) == ["intent", "delivered"]
        assert await keys(journal, State.INTENT, batch="odd") == ["intent"]
        assert [job.key async for job in journal.jobs(State.INTENT, batch="odd")] == ["intent"]
        assert await keys(journal, State.INTENT, batch="even") == await keys(journal, batch="none") == []

    async def test_the_tasks_of_plain_sessions_are_of_no_batch(self, journal: Journal) -> None:
        await journal.add([held("session", "a", batch=""), planned("song", batch="x"), held("held", "a", batch="y")])
        assert (await job_of(journal, "session")).waits_for == ""
        assert [job.key async for job in journal.jobs(batch=ANY_BATCH)] == ["song", "held"]
        assert [job.key async for job in journal.jobs(State.PLANNED, batch=ANY_BATCH, waiting_for=[""])] == ["song"]
        assert (await journal.counts(ANY_BATCH))[State.PLANNED] == 2
        assert await journal.machines.waiting() == await journal.machines.waiting(ANY_BATCH) == {"a": 1}
        assert [job.key async for job in journal.machines.next_uploads("a", ahead=1)] == ["held"]
        await bring(journal, "done", State.SUCCEEDED)
        assert (await journal.counts())[State.SUCCEEDED] == 1
        assert (await journal.counts(ANY_BATCH))[State.SUCCEEDED] == 0

    @pytest.mark.parametrize("state", State)
    async def test_a_task_of_a_plain_session_is_enqueued(self, journal: Journal, state: State) -> None:
        await bring(journal, "known", state)
        before, attempts = await job_of(journal, "known"), await journal.attempts("known")
        assert await journal.add([planned("known")]) == 0
        assert await journal.add([planned("new", batch="x"), planned("known", batch="x")]) == 1
        assert await job_of(journal, "known") == attrs.evolve(before, batch="x")
        assert await journal.attempts("known") == attempts
        assert await journal.add([planned("known", batch="another")]) == 0
        assert await keys(journal, batch="x") == ["known", "new"]
        assert await counted_for(journal, "x") == await counted(journal, Payer()) == await journal.spent("x")

    async def test_what_it_has_cost_counts_for_the_cap_of_its_batch(self, journal: Journal) -> None:
        await bring(journal, "known", State.SUBMITTED)
        await journal.add([planned("known", batch="x"), planned("next", batch="x")])
        await journal.caps.set("x", 23)
        assert await journal.caps.full() == ["x"]
        with pytest.raises(BudgetError, match="'x' is 23, and 12 are spent or reserved"):
            await journal.intend("next", "token", payer=Payer())
        await journal.caps.set("x", 24)
        await journal.intend("next", "token", payer=Payer())

    async def test_what_is_enqueued_is_read_where_it_was_enqueued(self, journal: Journal) -> None:
        await journal.add(held(key, "a", batch="") for key in ("planned", "sent", "changed"))
        await step(journal, "sent", State.INTENT)
        changed = attrs.evolve(held("changed", "b"), request=UPLOAD)
        await journal.add([held("planned", "b"), held("sent", "b"), changed])
        assert await journal.machines.waiting() == {"a": 1, "b": 1}
        assert (await job_of(journal, "changed")).request == REQUEST
        await journal.move("sent", State.PLANNED)
        assert await journal.machines.waiting() == {"a": 2, "b": 1}

    async def test_what_is_enqueued_while_it_is_submitted(self, journal: Journal, other: Journal) -> None:
        names = [f"{number}" for number in range(20)]
        await journal.add(map(planned, names))
        intents = [journal.intend(name, f"token-{name}") for name in names]
        await all_of(*intents, other.add(planned(name, batch="x") for name in names))
        jobs = [job async for job in journal.jobs()]
        assert {(job.batch, job.state, job.attempt, job.token) for job in jobs} == {
            ("x", State.INTENT, 1, f"token-{name}") for name in names
        }

    async def test_what_waits_for_a_machine_until_its_source_is_uploaded(self, journal: Journal) -> None:
        here = attrs.evolve(SOURCE, machine="a")
        uploaded = attrs.evolve(here, upload_url="https://x.example/a.mp3", uploaded_at=1.0)
        await journal.add([attrs.evolve(planned(f"a{n}", batch="x"), source=here) for n in range(12)])
        await journal.add([held("b", "b"), planned("free", batch="x")])
        assert await journal.machines.waiting() == {"a": 12, "b": 1}
        assert await journal.machines.waiting("x") == {"a": 12}
        assert (await journal.upload("a1", uploaded)).waits_for == ""
        await step(journal, "a2", State.INTENT)
        assert await journal.machines.waiting() == {"a": 10, "b": 1}
        found = await journal.page(State.PLANNED, waiting_for=["", "b"])
        assert [job.key for _, job in found] == ["a1", "b", "free"]
        assert [job.key async for job in journal.jobs(batch="x", waiting_for=[""])] == ["a1", "a2", "free"]
        await journal.upload("a1", here)
        await journal.move("a2", State.PLANNED)
        await journal.upload("a3", SOURCE)
        assert await journal.machines.waiting() == {"a": 11, "b": 1}

    async def test_what_is_to_be_uploaded_next(self, journal: Journal) -> None:
        jobs = [held(f"job{n}", "" if n in {2, 5, 13} else "a") for n in range(16)]
        await journal.add([*jobs, held("b", "b")])
        numbers = [int(job.key[3:]) async for job in journal.machines.next_uploads("a", ahead=2)]
        assert numbers == [0, 1, 3, 4, 6, 7, 8, 9, 10, 11, 12]
        assert len([job async for job in journal.machines.next_uploads("a", ahead=3)]) == 13
        assert [job.key async for job in journal.machines.next_uploads("c", ahead=2)] == []

    async def test_batches_that_cannot_go_on_hold_up_no_upload(self, journal: Journal) -> None:
        await journal.add([held("full0", "", batch="full"), held("full1", "a", batch="full"), held("mine", "a")])
        found = [job.key async for job in journal.machines.next_uploads("a", ahead=0, full=["full", "other"])]
        assert found == ["mine"]
        assert [job async for job in journal.machines.next_uploads("a", ahead=0)] == []

    async def test_counts(self, journal: Journal) -> None:
        assert dict(await journal.counts()) == dict.fromkeys(State, 0)
        await journal.add([planned("a", batch="x"), planned("b", batch="x"), planned("c")])
        await step(journal, "a", State.INTENT)
        assert dict(await journal.counts()) == {**dict.fromkeys(State, 0), State.PLANNED: 2, State.INTENT: 1}
        assert dict(await journal.counts("x")) == {**dict.fromkeys(State, 0), State.PLANNED: 1, State.INTENT: 1}
        assert sum((await journal.counts("none")).values()) == 0

    async def test_spent(self, journal: Journal) -> None:
        for state in State:
            await bring(journal, f"{state}", state, batch=f"{state}")
        free = {State.PLANNED, State.REJECTED}
        for state in State:
            assert await journal.spent(state) == (0 if state in free else 12), state
        assert await journal.spent("none") == 0

    # ------------------------------------------------------------ caps

    async def test_a_batch_keeps_its_cap_for_all_who_work_on_it(self, journal: Journal, other: Journal) -> None:
        await journal.add(planned(f"{number}", batch="x") for number in range(40))
        await journal.caps.set("x", 240)
        await journal.caps.set("x", 60)
        ends = await all_of(
            *(
                (journal, other)[number % 2].intend(f"{number}", f"token {number}", payer=Payer())
                for number in range(40)
            )
        )
        refused = [end for end in ends if isinstance(end, BudgetError)]
        assert (len(refused), await journal.spent("x")) == (35, 60)
        assert "max_credits of the batch 'x' is 60, and 60 are spent or reserved" in refused[0].message
        assert (refused[0].batch, refused[0].charged, refused[0].retryable) == ("x", "no", True)
        assert (await journal.counts("x"))[State.PLANNED] == 35
        assert len(await other.attempts("39")) == (0 if isinstance(ends[39], BudgetError) else 1)
        assert await journal.caps.full() == ["x"]

    async def test_the_cap_of_an_account_holds_for_all_who_pay_with_it(self, journal: Journal, other: Journal) -> None:
        payer = Payer(account="ours", max_credits=30)
        await journal.add(planned(f"{number}") for number in range(12))
        calls = ((journal, other)[number % 2].intend(f"{number}", f"t{number}", payer=payer) for number in range(10))
        ends = await all_of(*calls)
        assert sum(isinstance(end, Job) for end in ends) == 2
        assert {end.batch for end in ends if isinstance(end, BudgetError)} == {""}
        with pytest.raises(BudgetError, match="KIE_MAX_CREDITS"):
            await other.caps.check("", payer)
        assert (await journal.intend("10", "theirs", payer=Payer(account="theirs", max_credits=12))).account == "theirs"
        assert (await journal.intend("11", "no cap", payer=Payer(account="ours"))).account == "ours"

    async def test_what_is_settled_makes_room_again(self, journal: Journal) -> None:
        payer = Payer(account="ours", max_credits=12)
        await journal.caps.set("x", 12)
        await journal.add(planned(key, batch="x") for key in "abcd")
        for key, to in (("a", State.REJECTED), ("b", State.PLANNED)):
            await journal.intend(key, key, payer=payer)
            assert await journal.caps.full() == ["x"]
            await journal.move(key, to)
        assert not await journal.caps.full()
        await journal.intend("c", "c", payer=payer)
        await journal.move("c", State.SUBMITTED, task_id="c", credits=12.0)
        with pytest.raises(BudgetError) as caught:
            await journal.intend("d", "d", payer=payer)
        assert caught.value.retryable
        await journal.move("c", State.FAILED, credits=0.0)
        assert (await journal.intend("d", "d", payer=payer)).state is State.INTENT
        await journal.move("d", State.UNKNOWN)
        with pytest.raises(BudgetError) as caught:
            await journal.intend("b", "b2", payer=payer)
        assert not caught.value.retryable

    async def test_what_was_submitted_before_a_moment_does_not_count(self, journal: Journal) -> None:
        await journal.add(planned(key) for key in "abcd")
        await journal.intend("a", "a", payer=Payer(account="ours"))
        since = (await job_of(journal, "a")).moments["intent"] + 0.001
        payer = Payer(account="ours", max_credits=12, since=since)
        await asyncio.sleep(0.002)
        await journal.move("a", State.SUBMITTED, task_id="a")  # counts where it was submitted, not where it ended
        await journal.intend("b", "b", payer=payer)
        with pytest.raises(BudgetError):
            await journal.intend("c", "c", payer=payer)
        with pytest.raises(BudgetError, match="24 are spent"):
            await journal.intend("c", "c", payer=attrs.evolve(payer, max_credits=24, since=0.0))

    async def test_tasks_that_are_dearer_than_expected_make_the_open_ones_so(self, journal: Journal) -> None:
        ours = Payer(account="ours")
        await journal.caps.set("x", 84)
        await journal.add(planned(key, batch="x") for key in "abcde")
        for key in "ab":
            await journal.intend(key, key, payer=ours)
            await journal.move(key, State.SUBMITTED, task_id=key)
        await journal.move("a", State.SUCCEEDED, credits=20.0)
        await journal.caps.check("x", attrs.evolve(ours, max_credits=60))
        for payer in (ours, attrs.evolve(ours, since=(await job_of(journal, "b")).moments["intent"] - 1)):
            assert await counted(journal, payer) == 40
            with pytest.raises(BudgetError):
                await journal.intend("c", "c", payer=attrs.evolve(payer, max_credits=59))
        assert (await journal.intend("c", "c", payer=attrs.evolve(ours, max_credits=60))).state is State.INTENT
        await journal.move("c", State.UNKNOWN)
        assert not await journal.caps.full()
        await journal.intend("d", "d", payer=ours)
        assert await journal.caps.full() == ["x"]
        with pytest.raises(BudgetError, match="is 84, and 80 are spent or reserved"):
            await journal.intend("e", "e", payer=ours)
        await journal.caps.check_left("another")
        for batch in ("x", None):
            with pytest.raises(BudgetError):
                await journal.caps.check_left(batch)
        assert await counted_for(journal, "x") == 80
        assert await journal.spent("x") == 20 + 3 * 12  # what is known

    async def test_what_counts_follows_every_change(self, journal: Journal) -> None:
        account = Payer(account="ours")
        for key, state in product("ab", State):
            name = f"{key}{state}"
            await journal.add([planned(name, batch=key)])
            for to in ROUTES[state]:
                await (journal.intend(name, name, payer=account) if to is State.INTENT else step(journal, name, to))
                assert await counted_for(journal, key) == await journal.spent(key)
        await journal.move("afailed", State.PLANNED)
        await journal.intend("afailed", "again", payer=Payer(account="another"))  # who pays again pays for all of it
        assert await counted_for(journal, "a") == await journal.spent("a")
        assert await counted(journal, Payer(account="another")) == 24
        both = await journal.spent("a") + await journal.spent("b")
        begun = (await job_of(journal, "aintent")).moments["intent"]
        for since in (0.0, begun - 1, begun - 1200):
            assert await counted(journal, attrs.evolve(account, since=since)) == both - 24

    async def test_a_negative_number_of_credits_makes_no_room(self, journal: Journal) -> None:
        await bring(journal, "a", State.SUBMITTED, batch="x")
        await journal.move("a", State.SUCCEEDED, credits=-5.0)
        assert await counted_for(journal, "x") == await journal.spent("x") == 12

    async def test_what_nobody_pays_for_passes_every_cap(self, journal: Journal) -> None:
        await journal.caps.set("x", 0)
        await bring(journal, "a", State.DELIVERED, batch="x")
        with pytest.raises(BudgetError, match="is 0, and 12 are spent"):
            await journal.caps.check("x")
        await journal.caps.check_left("x")  # no job of it is left to make
        for cap in (-1, float("nan"), float("inf")):
            with pytest.raises(SettingsError, match="max_credits"):
                await journal.caps.set("x", cap)
        await journal.caps.check("another", Payer(account="another", max_credits=24))

    async def test_spent_is_corrected_by_what_is_known(self, journal: Journal) -> None:
        for key in ("a", "b", "c", "d"):
            await bring(journal, key, State.SUBMITTED, batch="x")
        await journal.move("a", State.SUCCEEDED, credits=10.5)
        await journal.move("b", State.FAILED, error=JobError(type="X", message="", charged="maybe", refunded=True))
        await journal.move("c", State.FAILED, error=JobError(type="X", message="", charged="no"))
        await journal.move("d", State.FAILED, error=JobError(type="X", message="", charged="yes"))
        assert await journal.spent("x") == 10.5 + 12
        await journal.move("d", State.PLANNED)
        assert await journal.spent("x") == 10.5 + 12
        await journal.intend("d", "again")
        assert await journal.spent("x") == 10.5 + 24

    # ------------------------------------------------------------ uploads

    async def test_an_upload_is_noted_and_found_by_its_content(self, journal: Journal, other: Journal) -> None:
        await journal.add([attrs.evolve(planned("a"), source=SOURCE), planned("b")])
        assert await journal.uploaded(SOURCE.sha256, 0) is None
        there = attrs.evolve(SOURCE, upload_url="https://x.example/1?sig=ü", uploaded_at=100.5)
        await journal.upload("a", there)
        assert (await job_of(journal, "a")).source == there
        assert await other.uploaded(SOURCE.sha256, 100.5) == there
        assert await other.uploaded(SOURCE.sha256, 100.6) is None
        assert await other.uploaded("cd", 0) is None

    async def test_the_latest_upload_counts(self, journal: Journal) -> None:
        await journal.add([planned("a"), planned("b"), planned("c")])
        late = attrs.evolve(SOURCE, upload_url="https://x.example/2", uploaded_at=200.0)
        await journal.upload("a", attrs.evolve(late, upload_url="https://x.example/1", uploaded_at=100.0))
        await journal.upload("b", late)
        await journal.upload("a", attrs.evolve(late, upload_url="https://x.example/0", uploaded_at=50.0))
        await journal.upload("c", SOURCE)
        assert await journal.uploaded(SOURCE.sha256, 0) == late
        assert (await job_of(journal, "c")).source == SOURCE

    # ------------------------------------------------------------ callbacks

    async def test_callbacks_are_kept(self, journal: Journal, make: Make) -> None:
        await expecting(journal, "t1", "t2")
        first, second = inbound("t1"), inbound("t1", stage="complete", at=2.5)
        third = inbound("t2", "other")
        for callback in (first, second, third, attrs.evolve(first, at=9.0)):
            assert await journal.save_callback(callback)
        async with make() as other:
            assert await other.callbacks_for(token="t1") == await other.callbacks_for(task_id="task") == [first, second]
            assert set(await other.callbacks_for(token="t1", task_id="other")) == {first, second, third}
            assert await other.callbacks_for(token="t3") == await other.callbacks_for() == []

    async def test_what_no_submission_awaits_is_not_kept(self, journal: Journal, other: Journal) -> None:
        await bring(journal, "a", State.UNKNOWN)
        await bring(journal, "b", State.SUBMITTED)
        strange = [inbound("stranger"), inbound("token-b", "another"), inbound("task-b", "token-b")]
        assert not any([await each.save_callback(callback) for callback in strange for each in (journal, other)])
        kept = [inbound("token-a", "any"), inbound("token-b", "task-b")]
        assert all([await other.save_callback(callback) for callback in kept])
        for callback in strange:
            assert await journal.callbacks_for(token=callback.token) == [
                each for each in kept if each.token == callback.token
            ]
        for state in (State.SUCCEEDED, State.DELIVERED):
            await step(journal, "b", state)
            assert not await other.save_callback(inbound("token-b", "task-b", "complete"))
        async with aclosing(journal.watch_callbacks()) as listener:
            await collect(listener, kept)
        await journal.move("a", State.SUBMITTED, token="token-a", task_id="any")
        assert not await other.save_callback(inbound("token-a", "another"))

    async def test_callbacks_go_when_their_job_is_long_at_its_end(self, journal: Journal, other: Journal) -> None:
        for state in ROUTES:
            await bring(journal, f"{state}", State.INTENT if State.INTENT in ROUTES[state] else state)
            await journal.save_callback(inbound(f"token-{state}", f"task-{state}"))
            for to in ROUTES[state][1:]:
                await step(journal, f"{state}", to)
        at_end = {State.SUCCEEDED, State.DELIVERED, State.FAILED, State.REJECTED, State.ABANDONED}
        assert await journal.prune(0.0) == 0
        assert await journal.prune(time.time() - 3600) == 0
        after = time.time() + 3600
        await expecting(other, "late")
        await other.save_callback(inbound("late"))
        assert await journal.prune(after) == len(at_end)
        assert await journal.prune(after) == 0
        for state in ROUTES:
            kept = await other.callbacks_for(token=f"token-{state}")
            assert bool(kept) == (state not in at_end and state is not State.PLANNED), state
        async with aclosing(journal.watch_callbacks()) as listener:
            await other.save_callback(inbound("late", "another"))
            await collect(listener, [inbound("late", "another")])

    async def test_many_old_callbacks_go(self, journal: Journal) -> None:
        await expecting(journal, "t")
        for number in range(250):
            await journal.save_callback(inbound("t", "task", f"{number}"))
        await journal.move("job of t", State.REJECTED)
        await expecting(journal, "u")
        await journal.save_callback(inbound("u"))
        assert await journal.prune(time.time() + 1) == 250

    async def test_a_listener_hears_other_processes(self, journal: Journal, other: Journal) -> None:
        await expecting(journal, "t")
        async with aclosing(journal.watch_callbacks()) as listener:
            for number in range(3):
                await other.save_callback(inbound("t", f"other-{number}"))
                await journal.save_callback(inbound("t", f"own-{number}"))
            await collect(listener, [inbound("t", f"{who}-{n}") for who in ("own", "other") for n in range(3)])

    async def test_a_listener_that_waits_is_woken(self, journal: Journal, other: Journal) -> None:
        await expecting(journal, "t")
        async with aclosing(journal.watch_callbacks()) as listener:
            for number, source in enumerate((journal, other)):
                callback = inbound("t", f"{number}")
                waiting = asyncio.ensure_future(collect(listener, [callback]))
                await asyncio.sleep(0.1)
                await source.save_callback(callback)
                async with asyncio.timeout(4):  # without a notification it reads after five seconds
                    await waiting

    async def test_a_slow_listener_misses_nothing(self, journal: Journal, other: Journal) -> None:
        await expecting(journal, "t")
        async with aclosing(journal.watch_callbacks()) as listener:
            await other.save_callback(inbound("t", "first"))
            await collect(listener, [inbound("t", "first")])
            many = [inbound("t", f"{number}") for number in range(600)]
            await all_of(*map(other.save_callback, many))
            await collect(listener, many)

    async def test_many_listen(self, journal: Journal, other: Journal) -> None:
        await expecting(journal, "t")
        async with AsyncExitStack() as stack:
            listeners = [
                await stack.enter_async_context(aclosing(j.watch_callbacks())) for j in (journal, journal, other)
            ]
            await journal.save_callback(inbound("t"))
            for listener in listeners:
                await collect(listener, [inbound("t")])

    # ------------------------------------------------------------ leases

    async def test_a_lease_is_of_one(self, journal: Journal, other: Journal) -> None:
        await journal.lease("batch", 60)
        await journal.lease("batch", 60)
        with pytest.raises(ConflictError) as caught:
            await other.lease("batch", 60)
        assert "batch" in str(caught.value)
        assert journal.process_id in str(caught.value)
        await other.release("batch")
        with pytest.raises(ConflictError):
            await other.lease("batch", 60)
        await other.lease("another", 60)
        await journal.release("batch")
        await other.lease("batch", 60)

    async def test_a_lease_runs_out(self, journal: Journal, other: Journal) -> None:
        await journal.lease("batch", 0)
        await other.lease("batch", 60)
        with pytest.raises(ConflictError):
            await journal.lease("batch", 60)
        await other.lease("batch", 0)
        await journal.lease("batch", 60)

    async def test_the_machines_of_which_a_process_is_at_work(self, journal: Journal, other: Journal) -> None:
        await journal.lease("machine:a", 60.0)
        await journal.lease("machine:gone", 0.0)
        await other.lease("process:x", 60.0)
        assert await other.machines.present() == ["a"]

    async def test_one_of_many_gets_the_lease(self, journal: Journal, other: Journal) -> None:
        ends = await all_of(*(each.lease("batch", 60) for each in (journal, other)))
        assert sorted(type(end).__name__ for end in ends) == ["ConflictError", "NoneType"]

    # ------------------------------------------------------------ a store that is taken away

    async def test_nothing_is_intended_in_a_store_that_is_gone(self, make: Make, lose: Lose) -> None:
        journal = make()
        await journal.__aenter__()
        try:
            await bring(journal, "a", State.SUBMITTED)
            await journal.add([planned("b"), planned("c")])
            lose()
            for key in ("b", "c"):
                with pytest.raises(StorageError) as caught:
                    await journal.intend(key, f"token-{key}")
                assert not caught.value.retryable
        finally:
            with suppress(StorageError):
                await journal.__aexit__(None, None, None)

    # ------------------------------------------------------------ cancelling

    async def test_a_cancelled_write_has_happened_or_not(self, journal: Journal) -> None:
        await journal.add(planned(f"{number}") for number in range(50))
        for number in range(50):
            call = asyncio.ensure_future(journal.intend(f"{number}", f"{number}"))
            for _ in range(number % 7):
                await asyncio.sleep(0)
            await asyncio.sleep(number % 5 / 2000)
            call.cancel()
            await asyncio.wait([call])
        await journal.add([planned("last")])
        for number in range(50):
            job = await job_of(journal, f"{number}")
            attempts = await journal.attempts(job.key)
            assert (job.state, len(attempts)) in {(State.PLANNED, 0), (State.INTENT, 1)}


# ---------------------------------------------------------------- any sequence of calls

_KEYS = st.sampled_from(["a", "b", "c"])
_TASKS = st.sampled_from(["t1", "t2", "t3", "t4"])
_TOKENS = st.sampled_from(["x", "y", "z", "u", "v", "w"])


@attrs.define
class Known:
    """What the model knows of a job."""

    batch: str
    state: State = State.PLANNED
    token: str | None = None
    task_id: str | None = None
    attempts: list[list[str | None]] = attrs.field(factory=list)


class JournalMachine(RuleBasedStateMachine):
    """A store and a plain dict are told the same, and must say the same."""

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.stack = AsyncExitStack()
        self.known: dict[str, Known] = {}
        self.inbox: set[tuple[str, str]] = set()

    def make(self) -> Journal:
        raise NotImplementedError

    def run(self, call: Coroutine[Any, Any, T]) -> T:
        return self.runner.run(call)

    async def _open(self) -> None:
        self.journal = await self.stack.enter_async_context(self.make())
        await self.journal.caps.set("other", 0)  # nobody pays here

    @initialize()
    def open(self) -> None:
        self.run(self._open())

    @rule()
    def reopen(self) -> None:
        self.run(self.stack.aclose())
        self.run(self._open())

    @rule(key=_KEYS, batch=st.sampled_from(["", "other"]))
    def add(self, key: str, batch: str) -> None:
        new = self.run(self.journal.add([planned(key, batch=batch)]))
        assert new == (key not in self.known)
        known = self.known.setdefault(key, Known(batch))
        known.batch = known.batch or batch

    def _taken(self, place: int, name: str) -> bool:
        return any(attempt[place] == name for job in self.known.values() for attempt in job.attempts)

    def _try(self, call: Coroutine[Any, Any, Job], *, allowed: bool) -> None:
        try:
            self.run(call)
        except ConflictError:
            assert not allowed
        else:
            assert allowed

    @rule(key=_KEYS, token=_TOKENS)
    def intend(self, key: str, token: str) -> None:
        job = self.known.get(key)
        allowed = job is not None and job.state is State.PLANNED and not self._taken(0, token)
        self._try(self.journal.intend(key, token), allowed=allowed)
        if job is not None and allowed:
            job.state, job.token = State.INTENT, token
            job.attempts.append([token, None])

    @rule(key=_KEYS, token=st.none() | _TOKENS, to=st.sampled_from(State), task_id=_TASKS)
    def move(self, key: str, token: str | None, to: State, task_id: str) -> None:
        job = self.known.get(key)
        allowed = (
            job is not None
            and token in {None, job.token}
            and to in TRANSITIONS[job.state] - {State.INTENT}
            and not (to is State.SUBMITTED and self._taken(1, task_id))
        )
        facts = {"task_id": task_id} if to is State.SUBMITTED else {}
        self._try(self.journal.move(key, to, token=token, **facts), allowed=allowed)
        if job is not None and allowed:
            job.state = to
            if to is State.SUBMITTED:
                job.task_id = job.attempts[-1][1] = task_id
            if to is State.PLANNED:
                job.token = job.task_id = None

    @rule(token=_TOKENS, task_id=_TASKS)
    def save_callback(self, token: str, task_id: str) -> None:
        awaited = any(
            attempt[0] == token and (attempt[1] is None or (attempt[1] == task_id and job.state in OPEN))
            for job in self.known.values()
            for attempt in job.attempts
        )
        assert self.run(self.journal.save_callback(inbound(token, task_id))) == awaited
        if awaited:
            self.inbox.add((token, task_id))

    @invariant()
    def jobs_are_as_known(self) -> None:
        page = [job for _, job in self.run(self.journal.page())]
        assert [job.key for job in page] == list(self.known)
        for job in page:
            known = self.known[job.key]
            assert (job.batch, job.state, job.token) == (known.batch, known.state, known.token)
            assert (job.task_id, job.attempt) == (known.task_id, len(known.attempts))
            assert job.state not in PAID or job.task_id is not None
            attempts = self.run(self.journal.attempts(job.key))
            assert [[each.token, each.task_id] for each in attempts] == known.attempts
        spent = [self.run(self.journal.spent(batch)) for batch in ("other", "")]
        assert self.run(_counted(self.journal, "other", Payer())) == spent[0]
        assert self.run(counted(self.journal, Payer())) == sum(spent)

    @rule(token=_TOKENS, task_id=_TASKS)
    def look(self, token: str, task_id: str) -> None:
        for place, found in enumerate((self.journal.find(token=token), self.journal.find(task_id=task_id))):
            job = self.run(found)
            name = (token, task_id)[place]
            owners = [key for key, known in self.known.items() if any(a[place] == name for a in known.attempts)]
            assert [job.key] == owners if job is not None else not owners
        callback = self.run(self.journal.callbacks_for(token=token))
        assert {(each.token, each.task_id) for each in callback} == {each for each in self.inbox if each[0] == token}

    @rule(batch=st.sampled_from([None, ANY_BATCH, "", "other"]))
    def count(self, batch: BatchFilter) -> None:
        batches = {"", "other"} if batch is None else {"other"} if batch is ANY_BATCH else {batch}
        states = [known.state for known in self.known.values() if known.batch in batches]
        assert dict(self.run(self.journal.counts(batch))) == {state: states.count(state) for state in State}

    def teardown(self) -> None:
        self.run(self.stack.aclose())
        self.runner.close()
