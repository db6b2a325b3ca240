"""How a tracked task ends: its result, or the error that says why it has none."""

from __future__ import annotations

from kie_async._client.tracked_task import TrackedTask
from kie_async._protocol.statuses import Failed, NotFound, Succeeded
from kie_async._protocol.wire import read_continue_at
from kie_async.errors import KieError, SessionError, TaskFailedError, TaskNotFoundError, WaitTimeoutError
from kie_async.events import clean
from kie_async.models import TaskRecord, TaskResult
from kie_async.settings import Settings


def outcome_of(
    task: TrackedTask, verdict: Succeeded | Failed | NotFound, record: TaskRecord | None, settings: Settings
) -> TaskResult | KieError:
    """The outcome of a task that record-info has settled."""
    if isinstance(verdict, Succeeded):
        return _result(task, verdict, record or TaskRecord(task.task_id))
    if isinstance(verdict, Failed):
        return _failure(task, verdict)
    message = f"the service does not know this task, {settings.not_found_timeout:.0f} s after the first poll"
    is_paid = task.origin.is_own or task.on_finished is not None  # the service gave this id
    return TaskNotFoundError(message, task.task_id, charged="maybe" if is_paid else "no")


def _result(task: TrackedTask, verdict: Succeeded, record: TaskRecord) -> TaskResult:
    continue_at = task.origin.continue_at
    return TaskResult(
        task.task_id,
        verdict.tracks,
        record,
        partial=verdict.partial,
        continue_at=read_continue_at(record.param) if continue_at is None else continue_at,
        source_duration=task.origin.source_duration,
    )


def _failure(task: TrackedTask, verdict: Failed) -> TaskFailedError:
    reason = clean(verdict.reason)
    is_in_message = not reason or reason in verdict.message
    return TaskFailedError(
        clean(verdict.message if is_in_message else f"{verdict.message} ({reason})"),
        task.task_id,
        verdict.code,
        charged=verdict.charged,
        status=task.progress.status,
        refunded=verdict.refunded,
        reason=reason,
    )


def timed_out(task_id: str, settings: Settings, last: KieError | None) -> WaitTimeoutError:
    """The error of a task that takes too long; ``last`` says why its last poll failed, if it did."""
    message = (
        f"no end after {settings.task_timeout:.0f} s; the task may still end: "
        f"session.track({task_id!r}) follows it again, as session.resume() does what a journal holds"
    )
    message += f"; the last poll failed: {last.message}" if last else ""
    return WaitTimeoutError(message, task_id)


def session_closed(task_id: str) -> SessionError:
    """The error of a task whose session was closed."""
    message = f"the session was closed; the task goes on: session.track({task_id!r}) follows it in another session"
    return SessionError(message, task_id, charged="yes", retryable=True)
