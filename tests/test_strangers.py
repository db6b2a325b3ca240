"""Callbacks that a session with a journal did not ask for: answered like others, and kept nowhere."""

from __future__ import annotations

import json
import time
from pathlib import Path

import anyio
import pytest
from service import REQUEST, serving

import kie_async as kie
from kie_async.events import CallbackReceived
from kie_async.journal import InboundCallback, Job, SQLiteJournal, State

pytestmark = pytest.mark.anyio

DAY = 86_400.0


def store(folder: Path) -> SQLiteJournal:
    return SQLiteJournal(folder / "journal.sqlite", poll=5.0)  # each look is a timer, and the virtual clock stops there


def body(task_id: str, stage: str = "complete") -> bytes:
    return json.dumps(
        {"code": 200, "msg": "", "data": {"callbackType": stage, "task_id": task_id, "data": []}}
    ).encode()


async def test_strangers_learn_nothing_and_leave_nothing(tmp_path: Path) -> None:
    async with serving(callbacks=True) as service:
        async with kie.KieSession(service.session.settings, journal=store(tmp_path)) as session:
            task = await session.submit(REQUEST)
            token = service.emulator.ledger[0].callback_url.rpartition("/")[2]
            polls = service.emulator.polls(task.id)
            for number in range(300):
                assert await session.receiver.handle({}, body(f"task{number}"), f"{number:032}") == 200
            assert await session.receiver.handle({}, body("another"), token) == 200
            assert await session.receiver.handle({}, body(task.id, "text"), token) == 200
            emitted = service.of(CallbackReceived)
            assert [event.note for event in emitted[-2:]] == ["its token belongs to another task", ""]
            assert all("not followed here" in event.note for event in emitted[:300])
            assert service.emulator.polls(task.id) == polls
            assert len((await task).tracks) == 2
            await anyio.sleep(1)
            assert await session.receiver.handle({}, body(task.id), token) == 200
        async with store(tmp_path) as journal:
            strange = [await journal.callbacks_for(task_id=task_id) for task_id in ("task0", "task299", "another")]
            assert strange == [[], [], []]
            assert [callback.stage for callback in await journal.callbacks_for(task_id=task.id)] == ["text"]


async def test_a_callback_before_the_answer_and_at_another_process_is_kept(tmp_path: Path) -> None:
    """The intent was durable before the POST, so whoever shares the journal knows the token."""
    async with serving(callbacks=True, faults=[kie.emulator.Fault("early", stage="first")]) as service:
        settings = service.session.settings
        async with (
            kie.KieSession(settings, journal=store(tmp_path)) as session,
            kie.KieSession(settings, journal=store(tmp_path)) as other,
        ):
            task = await session.submit(REQUEST)
            token = service.emulator.ledger[0].callback_url.rpartition("/")[2]
            assert await other.receiver.handle({}, body(task.id, "first"), token) == 200
            await anyio.sleep(7)
            assert len((await task).tracks) == 2
        async with store(tmp_path) as journal:
            assert "first" in [callback.stage for callback in await journal.callbacks_for(token=token)]


async def test_a_session_lets_the_callbacks_go_of_what_ended_a_day_ago(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with store(tmp_path) as journal:
        for key, age in (("old", 1.1 * DAY), ("new", 0.9 * DAY), ("last", 0.5 * DAY)):
            moment = time.time() - age
            with monkeypatch.context() as past:
                past.setattr(time, "time", lambda moment=moment: moment)
                await journal.add([Job(key=key, request=REQUEST)])
                await journal.intend(key, key)
                await journal.save_callback(InboundCallback(token=key, task_id=key, stage="text", at=moment))
                await journal.move(key, State.SUBMITTED, task_id=key)
                await journal.move(key, State.FAILED)
    async with serving() as service, kie.KieSession(service.session.settings, journal=store(tmp_path)) as session:
        await anyio.sleep(10)
        assert session is not None
    async with store(tmp_path) as journal:
        kept = [key for key in ("old", "new", "last") if await journal.callbacks_for(token=key)]
    assert kept == ["new", "last"]
