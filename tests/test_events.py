"""What a session tells its observer: each submission has one end, and its context comes back, also from a journal."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

import anyio
import attrs
import pytest
from service import REQUEST, TIMELINE, Service, serving

import kie_async as kie
from kie_async import events
from kie_async.emulator import Fault
from kie_async.events import Finished, Followed, Paused, SubmissionFailed, SubmissionUnknown, Submitted, Submitting
from kie_async.journal import SQLiteJournal

pytestmark = pytest.mark.anyio

SUBMISSION = (Submitting, Submitted, SubmissionFailed, SubmissionUnknown)


def of_submissions(service: Service) -> list[tuple[str, int | None]]:
    """The events of submissions, in order, and the code of each."""
    return [
        (type(event).__name__, getattr(event, "code", None))
        for event in service.emitted
        if isinstance(event, SUBMISSION)
    ]


async def test_a_submission_that_is_tried_again_has_an_end_each_time() -> None:
    async with serving(faults=[Fault("code", code=429, nth=1)]) as service:
        await service.session.submit(REQUEST)
        assert of_submissions(service) == [
            ("Submitting", None),
            ("SubmissionFailed", 429),
            ("Submitting", None),
            ("Submitted", None),
        ]
        (refused,) = service.of(SubmissionFailed)
        assert (refused.operation, refused.error, refused.charged) == ("extend", "RateLimitedError", "no")
        first, second = service.of(Submitting)
        assert refused.context is first.context
        assert service.of(Submitted)[0].context is second.context is not first.context


@pytest.mark.parametrize(("code", "name"), [(422, "SubmissionFailed"), (599, "SubmissionUnknown")])
async def test_a_submission_that_is_no_task_has_the_code_of_the_service(code: int, name: str) -> None:
    async with serving(faults=[Fault("code", code=code)]) as service:
        with pytest.raises(kie.KieError):
            await service.session.submit(REQUEST)
        assert of_submissions(service) == [("Submitting", None), (name, code)]
        assert service.of(SubmissionFailed) + service.of(SubmissionUnknown) == [
            event for event in service.emitted if getattr(event, "code", None) == code
        ]


async def test_the_wait_for_the_quota_is_told() -> None:
    async with serving(settings={"quota": 1, "quota_window": 10.0, "quota_margin": 0.0}) as service:
        for _ in range(2):
            await service.session.submit(REQUEST)
        assert [round(event.waited) for event in service.of(Submitting)] == [0, 10]


async def test_who_is_paused_and_followed_again_has_the_context_of_the_submission() -> None:
    def observe(event: events.Event) -> None:
        emitted.append(event)
        if isinstance(event, Submitting):
            event.context["traceparent"] = "00-1"

    emitted: list[events.Event] = []
    async with serving(settings={"observer": observe}) as service:
        task = await service.session.submit(REQUEST)
        with pytest.raises(kie.WaitTimeoutError):
            await task.result(timeout=5)
        await task
    told = [event for event in emitted if isinstance(event, (Submitted, Paused, Followed, Finished))]
    assert [type(event) for event in told] == [Submitted, Paused, Followed, Finished]
    assert [dict(event.context) for event in told if isinstance(event, (Submitted, Followed))] == 2 * [
        {"traceparent": "00-1"}
    ]


async def test_the_context_goes_by_the_journal_to_the_session_that_takes_over(tmp_path: Path) -> None:
    def observe(event: events.Event) -> None:
        if isinstance(event, Submitting):
            event.context["traceparent"] = "00-1"

    path = tmp_path / "journal.sqlite"
    async with serving() as service:
        settings = attrs.evolve(service.session.settings, observer=observe)
        async with kie.KieSession(settings, journal=SQLiteJournal(path, poll=5.0)) as session:
            task = await session.submit(REQUEST)
        async with kie.KieSession(service.session.settings, journal=SQLiteJournal(path, poll=5.0)) as session:
            (again,) = [each async for each in session.resume()]
            await again
        assert service.of(Followed) == [Followed(task.id)]
        assert [dict(event.context) for event in service.of(Followed)] == [{"traceparent": "00-1"}]
        assert [(event.operation, event.error) for event in service.of(Finished)] == [("extend", "")]


async def test_a_journal_keeps_no_context_that_nobody_has_filled(tmp_path: Path) -> None:
    async with serving() as service, kie.KieSession(service.session.settings, journal=tmp_path / "j") as session:
        await session.submit(REQUEST, key="k")
        assert session.journal is not None
        job = await session.journal.get("k")
        assert job is not None
        assert job.last_attempt.context is None


# ---------------------------------------------------------------- how a task ends


async def finished(service: Service, task_id: str | None = None) -> Finished:
    """Wait for the end of a task, of a new one by default, and return what is told of it."""
    task = service.session.track(task_id) if task_id else await service.session.submit(REQUEST)
    with suppress(kie.KieError):
        await task
    return service.of(Finished)[-1]


async def test_the_jobs_route_tells_how_late_an_end_was_seen() -> None:
    async with serving(settings={"route": "jobs"}) as service:
        end = await finished(service)
        assert end.lag == pytest.approx(end.seconds - TIMELINE[2], abs=0.1)
        assert end.lag


async def test_a_callback_tells_how_late_an_end_was_seen() -> None:
    async with serving(callbacks=True) as service:
        await finished(service)
        end = await finished(service)
        assert end.lag == pytest.approx(end.seconds - TIMELINE[2], abs=0.1)


async def test_nobody_knows_how_late_an_end_was_seen_that_only_polls_tell() -> None:
    async with serving() as service:
        assert (await finished(service)).lag is None


async def test_an_end_before_it_was_followed_was_not_seen_late() -> None:
    async with serving(settings={"route": "jobs"}) as service:
        task = await service.session.submit(REQUEST)
        await anyio.sleep(600)
        async with kie.KieSession(service.session.settings) as other:
            await other.track(task.id)
        assert service.of(Finished)[-1].lag is None


@pytest.mark.parametrize(
    ("fault", "options", "expected"),
    [
        (None, {}, ("", None, 12.0)),
        (Fault("failed", code=501), {}, ("TaskFailedError", 501, 12.0)),
        (Fault("failed", code=531), {}, ("TaskFailedError", 531, 0.0)),
        (Fault("stuck"), {"task_timeout": 100.0}, ("WaitTimeoutError", None, None)),
    ],
    ids=["success", "failed", "refunded", "endless"],
)
async def test_an_end_says_its_error_and_what_it_cost(
    fault: Fault | None, options: dict[str, Any], expected: tuple[str, int | None, float | None]
) -> None:
    async with serving(faults=[fault] if fault else [], settings=options) as service:
        end = await finished(service)
        assert (end.error, end.code, end.credits) == expected
        assert bool(end.reason) == bool(end.error)


async def test_a_task_that_goes_on_when_the_session_closes_has_not_ended() -> None:
    async with serving() as service:
        await service.session.submit(REQUEST)
    (end,) = service.of(Finished)
    assert (end.error, end.credits, end.lag) == ("SessionError", None, None)
