"""Submitting: a place among the tasks in flight, a permit of the quota, then the paid POST, once.

The POST is shielded: a caller may go away, the answer is still awaited and its task followed. It is sent again only
when the service refused it for its moment (429, 430, 455) or when nothing was sent at all. When its answer is lost,
a callback that bears its token names the task; without one it stays unknown.
"""

from __future__ import annotations

import asyncio
import random
import secrets
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from itertools import count

import anyio
import attrs
from anyio.abc import TaskGroup

from kie_async._client import Transport
from kie_async._client.internal_errors import internal_errors
from kie_async._client.key_gate import KeyGate
from kie_async._client.lifetime import check_running
from kie_async._client.submission_log import NoSubmissionLog, SubmissionLog
from kie_async._client.tracked_task import TrackedTask
from kie_async._client.tracker import Tracker
from kie_async._protocol.endpoints import Route
from kie_async._protocol.recent import RecentSet
from kie_async._protocol.responses import MOMENTARY
from kie_async._protocol.retry import backoff
from kie_async._protocol.schedule import Key
from kie_async.errors import (
    AuthError,
    ConnectError,
    KieError,
    RateLimitedError,
    SessionError,
    StorageError,
    SubmitUnknownError,
)
from kie_async.events import Notice, Observer, Queued, Retrying, SubmissionUnknown, Submitted, clean
from kie_async.limiter import Limiter, Permit
from kie_async.models import Request
from kie_async.settings import PLACEHOLDER_CALLBACK_URL, Settings

Prepare = Callable[[Request], Awaitable[Request]]

_MAX_LOST = 10_000  # tokens of submissions given up as unknown, in case their callback comes after all
_ANOTHER = "its token belongs to another task"
_SLOW_DOWN = 2.0  # seconds the gate stays closed at the least after "too fast"


@attrs.define(eq=False)
class _Submission:
    """One request on its way.

    Attributes:
        token: in its callback URL; it names the task when the answer is lost.
        named: the task id that a callback with the token brought.
        stages: what the callbacks said that came before the answer.
    """

    request: Request
    token: str = attrs.field(repr=False)
    named: asyncio.Future[str]
    started: float
    release: Callable[[], None]
    log: SubmissionLog
    stages: list[str] = attrs.field(factory=list)


class Submitter:
    """Turns requests into followed tasks.

    Args:
        group: where the shielded POSTs live: the session's.
    """

    def __init__(  # noqa: PLR0913, PLR0917  # it is the meeting point of all that a submission needs
        self,
        settings: Settings,
        transport: Transport,
        limiter: Limiter,
        tracker: Tracker,
        route: Route,
        emit: Observer,
        group: TaskGroup,
    ) -> None:
        self._settings = settings
        self._transport = transport
        self._limiter = limiter
        self._tracker = tracker
        self._route = route
        self._emit = emit
        self._group = group
        self._places = asyncio.Semaphore(settings.max_in_flight)
        self._entering = 0
        self._open: dict[str, _Submission] = {}
        self._sending: set[asyncio.Future[None]] = set()  # done when the answer is recorded
        self._tasks: dict[str, str] = {}  # token to task id, while the task is followed
        self._lost = RecentSet(_MAX_LOST)
        self._slowed = 0
        self._key = KeyGate(limiter)

    async def submit(self, request: Request, prepare: Prepare, log: SubmissionLog | None = None) -> TrackedTask:
        """Submit a request and follow its task.

        Args:
            request: what is asked.
            prepare: makes it ready once there is a place for it: uploads its source.
            log: records it.

        Raises:
            KieError: it did not become a task.

        Cancelling before the POST spends nothing. Cancelling during the POST does not stop it: its task, if there
        is one, is followed, and events are emitted.
        """
        started = asyncio.get_running_loop().time()
        self._key.check()
        release = await self._enter()
        post: asyncio.Future[TrackedTask] | None = None
        try:
            self._key.check()
            ready = await prepare(request)
            for attempt in count(1):
                permit = await self._permit(again=attempt > 1)
                submission = self._new(ready, release, started, log or NoSubmissionLog())
                post = self._start(submission, permit)
                try:
                    return await asyncio.shield(post)
                except KieError as error:
                    await self._pause(error, attempt, started)
        except BaseException:
            if post is None or post.done():
                release()
            else:
                post.add_done_callback(lambda left: _forsaken(left, release))
            raise
        raise AssertionError  # pragma: no cover (the loop has no end of its own)

    def callback_received(self, token: str, task_id: str, stage: str) -> str:
        """A callback came: it names a submission under way, or wakes a task; return why it is set aside, or nothing."""
        if (submission := self._open.get(token)) is not None:
            if not submission.named.done():
                submission.named.set_result(task_id)
            if submission.named.result() != task_id:
                return _ANOTHER
            submission.stages.append(stage)
            return ""
        if self._tasks.get(token, task_id) != task_id:
            return _ANOTHER
        if token in self._lost:
            self._lost.discard(token)
            self._emit(Notice(task_id, "a submission given up as unknown is this task: session.track() follows it"))
        is_followed = self._tracker.wake(task_id, stage, is_own=token in self._tasks)
        return "" if is_followed else "a task that is not followed here (yet)"

    def knows(self, token: str) -> bool:
        """Whether a submission with this token is under way or followed here."""
        return token in self._open or token in self._tasks

    @property
    def under_way(self) -> int:
        """How many submissions were sent, or are about to be, and are not answered yet."""
        return len(self._sending)

    async def drained(self) -> None:
        """Wait until each POST that is under way now is answered, and its answer recorded; some 90 s at most."""
        if self._sending:
            await asyncio.wait(tuple(self._sending))

    @contextmanager
    def _under_way(self) -> Iterator[None]:
        sent: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._sending.add(sent)
        try:
            yield
        finally:
            self._sending.discard(sent)
            sent.set_result(None)

    # ------------------------------------------------------------ before the POST

    async def _enter(self) -> Callable[[], None]:
        """Wait for a place among the tasks in flight; the place is given back by calling what is returned."""
        if self._places.locked():
            self._emit(Queued("in flight", self._entering))
        self._entering += 1
        try:
            await self._places.acquire()
        finally:
            self._entering -= 1
        held = [self._places]

        def release() -> None:
            if held:
                held.pop().release()

        return release

    async def _permit(self, *, again: bool) -> Permit:
        permit = await self._key.acquire(again=again)
        try:
            check_running(self._group)  # while this waited, the session may have been closed in another task
        except SessionError:
            permit.give_back()
            raise
        return permit

    async def _pause(self, error: KieError, attempt: int, started: float) -> None:
        """After a submission that did not become a task: wait if it may be sent again, or raise."""
        momentary = error.code in MOMENTARY and error.charged == "no"
        if not (momentary or isinstance(error, ConnectError)) or not error.retryable:
            raise error
        delay = backoff(attempt, random.random)
        if momentary:
            asked = error.retry_after if isinstance(error, RateLimitedError) else None
            self._slowed += 1
            delay = max(asked or 0.0, _SLOW_DOWN + backoff(self._slowed, random.random))
        if asyncio.get_running_loop().time() + delay > started + self._settings.submit_retry_timeout:
            raise error
        self._emit(Retrying("submit", str(error), attempt, delay))
        if momentary:
            self._limiter.penalize(delay)
        else:
            await anyio.sleep(delay)

    # ------------------------------------------------------------ the POST

    def _new(self, request: Request, release: Callable[[], None], started: float, log: SubmissionLog) -> _Submission:
        named: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        return _Submission(request, secrets.token_urlsafe(32), named, started, release, log)

    def _start(self, submission: _Submission, permit: Permit) -> asyncio.Future[TrackedTask]:
        post: asyncio.Future[TrackedTask] = asyncio.get_running_loop().create_future()
        self._open[submission.token] = submission
        self._group.start_soon(self._run, submission, permit, post)
        return post

    async def _run(self, submission: _Submission, permit: Permit, post: asyncio.Future[TrackedTask]) -> None:
        try:
            with internal_errors(submission.request.operation):
                entry = await self._post(submission, permit)
        except KieError as error:
            if isinstance(error, AuthError):
                self._key.refuse(error)
            self._fail(submission, post, error)
        except asyncio.CancelledError:
            message = f"{submission.request.operation}: the session was closed before its answer or its callback came"
            self._fail(submission, post, SubmitUnknownError(message, token=submission.token))
            raise
        else:
            post.set_result(entry)
        finally:
            self._open.pop(submission.token, None)

    def _fail(self, submission: _Submission, post: asyncio.Future[TrackedTask], error: KieError) -> None:
        if error.charged == "maybe":  # told, for the caller may have gone away
            self._emit(SubmissionUnknown(submission.request.operation, clean(error.message)))
        post.set_exception(error)

    async def _post(self, submission: _Submission, permit: Permit) -> TrackedTask:
        try:
            with anyio.CancelScope(shield=True), self._under_way():
                task_id = await self._send(submission, permit)
        except SubmitUnknownError as error:
            task_id = await self._recover(submission, error)
        self._slowed = 0
        self._key.accept()
        return self._accepted(submission, task_id)

    async def _send(self, submission: _Submission, permit: Permit) -> str:
        """Send the POST, between the record of its intent and the record of its answer."""
        log, token = submission.log, submission.token
        try:
            await log.before_send(token)
        except BaseException:
            permit.give_back()
            raise
        call = self._route.submit(submission.request, self._callback_url(token))
        try:
            if not permit.is_valid:  # the record of the intent took long, or the process was stopped
                raise ConnectError(
                    f"{submission.request.operation}: its permit ran out before it began: nothing was sent"
                )
            task_id = await self._transport.send(call, on_headers=permit.release)
        except SubmitUnknownError:
            raise
        except KieError as error:
            if isinstance(error, ConnectError):
                permit.give_back()
            await log.failed(token, error)
            raise
        await self._record(submission, task_id)
        return task_id

    async def _record(self, submission: _Submission, task_id: str) -> None:
        try:
            await submission.log.accepted(submission.token, task_id)
        except StorageError as error:  # it is paid, and on record nowhere
            error.retryable = False
            error.message += f"; the task is paid, so do not submit it again: session.track({task_id!r}) follows it"
            raise

    def _accepted(self, submission: _Submission, task_id: str) -> TrackedTask:
        request, token = submission.request, submission.token
        waited = asyncio.get_running_loop().time() - submission.started
        recovered = submission.named.done()
        self._emit(Submitted(task_id, request.operation, request.model, waited, recovered=recovered))
        self._tasks[token] = task_id

        def release() -> None:
            self._tasks.pop(token, None)
            submission.release()

        key = Key(request.operation, request.model)
        entry = self._tracker.follow(task_id, key, release=release)
        entry.note_source(request)
        submission.log.follow(token, entry)
        if recovered and submission.named.result() == task_id:
            for stage in submission.stages:
                self._tracker.wake(task_id, stage, is_own=True)
        return entry

    async def _recover(self, submission: _Submission, error: SubmitUnknownError) -> str:
        """Wait for the callback that names the task of a submission whose answer was lost."""
        error.token = submission.token
        if self._settings.callback_url:
            self._emit(Notice("", f"an answer was lost; waiting for its callback: {error.message}"))
            patience = self._settings.recovery_timeout
            with anyio.move_on_after(patience):
                task_id = await asyncio.shield(submission.named)  # it may still come while that is recorded
                with anyio.CancelScope(shield=True):
                    await self._record(submission, task_id)
                return task_id
            error.message += f"; no callback named it within {patience:.0f} s"
        self._lost.add(submission.token)
        await submission.log.failed(submission.token, error)
        if submission.named.done():  # it was named while that was recorded
            await self._record(submission, submission.named.result())
            return submission.named.result()
        raise error

    def _callback_url(self, token: str) -> str:
        if not self._settings.callback_url:
            return PLACEHOLDER_CALLBACK_URL
        return f"{self._settings.callback_url}/{token}"


def _forsaken(post: asyncio.Future[TrackedTask], release: Callable[[], None]) -> None:
    """The caller went away during its POST: a task that came of it is followed, a place held for nothing goes back."""
    if post.cancelled() or post.exception() is not None:
        release()
