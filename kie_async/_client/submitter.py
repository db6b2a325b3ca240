"""Submit a request: wait for a place in flight and for a permit of the quota, then send the paid POST once.

The POST is shielded: if the caller is cancelled, the answer is still awaited and the task followed. The POST is sent
again only if the service refused it for now (429, 430, 455) or if nothing was sent. If its answer is lost
(``SubmitUnknownError``: ``http_client`` got none, or ``_protocol.response_codes`` could not read it), a callback with
its token names the task; without one it stays unknown. ``journal._transitions`` says what a journal records then, and
``journal._takeover`` what happens after a crash.
"""

from __future__ import annotations

import asyncio
import random
import secrets
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Protocol

import anyio
import attrs
from anyio.abc import TaskGroup

from kie_async._client.concurrency import InternalErrors
from kie_async._client.http_client import Transport
from kie_async._client.lifetime import check_running
from kie_async._client.submission_gate import InFlightLimit, Place, SubmissionGate
from kie_async._client.task import Origin, TrackedTask
from kie_async._client.tracker import Tracker
from kie_async._protocol.admission import RecentSet
from kie_async._protocol.backoff import backoff
from kie_async._protocol.endpoints import ROUTES
from kie_async._protocol.response_codes import TRANSIENT
from kie_async._protocol.spending import SpendingCap
from kie_async.errors import AuthError, ConnectError, KieError, StorageError, SubmitUnknownError
from kie_async.events import (
    Context,
    Notice,
    Retrying,
    SubmissionUnknown,
    Submitted,
    Submitting,
    clean,
    submission_error,
)
from kie_async.limiter import Limiter, Permit
from kie_async.models import Request
from kie_async.settings import PLACEHOLDER_CALLBACK_URL


class SubmissionLog(Protocol):
    """Records one submission, so that a crash does not lose it; a session without a journal has none.

    If ``before_send`` raises, the POST is not sent: nothing is sent without a durable record.
    """

    async def before_send(self, token: str, context: Context) -> None:
        """Record durably that a POST with this token is about to be sent, and the ``context`` of its task."""
        ...

    async def accepted(self, token: str, task_id: str) -> None:
        """Record its task durably; called before ``Submitted`` is emitted."""
        ...

    async def failed(self, token: str, error: KieError) -> None:
        """Record that it did not become a task, or that this is unknown."""
        ...


Prepare = Callable[[Request], Awaitable[Request]]  # called once there is a place: uploads the source
Check = Callable[[], None]  # called right before the POST; if it raises, nothing is sent, and the error is raised

_MAX_GIVEN_UP = 10_000  # tokens of submissions given up as unknown, in case their callback still comes
_MAX_LEFT = 1000  # tasks no longer followed whose late callbacks are still recognized
_ANOTHER_TASK = "its token belongs to another task"


@attrs.define(eq=False, repr=False)
class _PendingSubmission:
    """A submission that has no task yet.

    Attributes:
        place: its place in flight.
        waited: how many seconds it waited for the quota.
        context: filled by the observer, and passed on with the task.
        token: the token in its callback URL.
        named: completed with the task id of the first callback that has the token.
        stages: the stages of the callbacks that came before the answer.
    """

    request: Request
    log: SubmissionLog | None
    started_at: float
    place: Place
    waited: float
    context: dict[str, str] = attrs.field(factory=dict)
    token: str = attrs.field(factory=lambda: secrets.token_urlsafe(32))
    named: asyncio.Future[str] = attrs.field(factory=lambda: asyncio.get_running_loop().create_future())
    stages: list[str] = attrs.field(factory=list)

    def note_callback(self, task_id: str, stage: str) -> str:
        """Note the task that a callback names; return why the callback is ignored, or ""."""
        if not self.named.done():
            self.named.set_result(task_id)
        if self.named.result() != task_id:
            return _ANOTHER_TASK
        self.stages.append(stage)
        return ""


class _Tokens:
    """The submissions and tasks that the tokens of callbacks belong to.

    Attributes:
        pending: by token, the submissions that were or are about to be sent and have no task yet.
        followed: by token, the ids of the tasks that are followed.
        left: tokens with the ids of tasks that are no longer followed; their last callbacks may still come.
        given_up: tokens of submissions whose answer was lost and whose callback did not come in time.
    """

    def __init__(self) -> None:
        self.pending: dict[str, _PendingSubmission] = {}
        self.followed: dict[str, str] = {}
        self.left = RecentSet(_MAX_LEFT)
        self.given_up = RecentSet(_MAX_GIVEN_UP)


class Submitter:
    """Turns requests into followed tasks; sends nothing more once the session's task group ends."""

    def __init__(self, transport: Transport, limiter: Limiter, tracker: Tracker, group: TaskGroup) -> None:
        self._settings = transport.settings
        self._emit = transport.emit
        self._transport = transport
        self._tracker = tracker
        self._group = group
        self._gate = SubmissionGate(limiter)
        self._in_flight = InFlightLimit(self._settings.max_in_flight, self._emit)
        self._cap = SpendingCap(self._settings.max_credits)  # unused with a journal, which has its own caps
        self._tokens = _Tokens()
        self._posts: set[asyncio.Task[TrackedTask]] = set()  # with the wait for a callback, if the answer is lost
        self._unrecorded: set[asyncio.Future[None]] = set()  # one for each POST; done when its answer is recorded
        self._closing: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def submit(
        self, request: Request, prepare: Prepare, log: SubmissionLog | None = None, check: Check = lambda: None
    ) -> TrackedTask:
        """Submit a request and follow its task.

        Raises:
            BudgetError: ``Settings.max_credits`` leaves no room for it.
            KieError: it did not become a task.

        Cancelling before the POST spends nothing. Cancelling during the POST does not stop it: if it becomes a task,
        that is followed, and its events are emitted.
        """
        now = asyncio.get_running_loop().time
        started_at = now()
        self._gate.check_key()
        place = await self._in_flight.enter()
        post: asyncio.Task[TrackedTask] | None = None
        attempt = 1
        try:
            self._gate.check_key()
            if log is None:
                place.settle = self._cap.begin()
            ready = await prepare(request)
            while True:
                asked_at = now()
                permit = await self._acquire_permit(check, is_retry=attempt > 1)
                post = self._start(_PendingSubmission(ready, log, started_at, place, now() - asked_at), permit)
                try:
                    return await asyncio.shield(post)
                except KieError as error:
                    await self._wait_for_retry(error, attempt, started_at)
                    attempt += 1
        except BaseException:
            if post is None:
                place.submission_failed(None)
            elif post.done():
                _free_if_failed(post, place)
            else:  # the caller was cancelled during the POST: if that becomes a task, it is followed
                post.add_done_callback(lambda left: _free_if_failed(left, place))
            raise

    def callback_received(self, token: str, task_id: str, stage: str) -> str:
        """Act on a callback: it names the task of a submission, or hastens a poll. Return why it is ignored, or ""."""
        tokens = self._tokens
        if (submission := tokens.pending.get(token)) is not None:
            return submission.note_callback(task_id, stage)
        if tokens.followed.get(token, task_id) != task_id:
            return _ANOTHER_TASK
        if token in tokens.given_up:
            tokens.given_up.discard(token)
            self._emit(Notice(task_id, "a submission given up as unknown is this task: session.track() follows it"))
        is_authentic = token in tokens.followed or f"{token}/{task_id}" in tokens.left
        is_followed = self._tracker.note_callback(task_id, stage, is_authentic=is_authentic)
        return "" if is_followed else "a task that is not followed here (yet)"

    def knows(self, token: str) -> bool:
        """Whether a submission with this token is under way or followed here."""
        return token in self._tokens.pending or token in self._tokens.followed

    @property
    def under_way(self) -> int:
        """The number of submissions that were or are about to be sent and are not answered yet."""
        return len(self._unrecorded)

    async def drain(self) -> None:
        """Wait until each POST under way is answered and its answer recorded; about 90 s at most."""
        if self._unrecorded:
            await asyncio.wait(tuple(self._unrecorded))

    async def close(self) -> None:
        """Wait for the answers of all POSTs, and stop waiting for callbacks."""
        self._closing.set_result(None)
        if self._posts:
            await asyncio.wait(tuple(self._posts))

    # ------------------------------------------------------------ before and after the POST

    async def _acquire_permit(self, check: Check, *, is_retry: bool) -> Permit:
        permit = await self._gate.acquire(is_retry=is_retry)
        try:
            check_running(self._group)  # another task may have closed the session while this waited
            check()
        except BaseException:
            permit.give_back()
            raise
        return permit

    async def _wait_for_retry(self, error: KieError, attempt: int, started_at: float) -> None:
        """Wait until a submission that did not become a task may be sent again, or raise its error."""
        is_transient = error.code in TRANSIENT and error.charged == "no"
        may_be_sent_again = error.retryable and (is_transient or isinstance(error, ConnectError))
        if not may_be_sent_again:
            raise error
        delay = self._gate.slow_down_delay(error.retry_after) if is_transient else backoff(attempt, random.random)
        if asyncio.get_running_loop().time() + delay > started_at + self._settings.submit_retry_timeout:
            raise error
        self._emit(Retrying("submit", str(error), attempt, delay))
        if is_transient:
            self._gate.close(delay)
        else:
            await anyio.sleep(delay)

    # ------------------------------------------------------------ the POST, in a task of its own

    def _start(self, submission: _PendingSubmission, permit: Permit) -> asyncio.Task[TrackedTask]:
        self._tokens.pending[submission.token] = submission
        post = asyncio.get_running_loop().create_task(self._run(submission, permit))
        self._posts.add(post)
        post.add_done_callback(self._post_ended)
        return post

    def _post_ended(self, post: asyncio.Task[TrackedTask]) -> None:
        self._posts.discard(post)
        if not post.cancelled():
            post.exception()  # retrieved, so that asyncio does not log it if the caller went away: it was emitted

    async def _run(self, submission: _PendingSubmission, permit: Permit) -> TrackedTask:
        request, context = submission.request, submission.context
        self._emit(Submitting(request.operation, request.model, submission.waited, context))
        try:
            with InternalErrors(request.operation):
                task_id = await self._send_or_recover(submission, permit)
                self._gate.accepted()
                return self._follow(submission, task_id)
        except asyncio.CancelledError:
            reason = "the event loop ended before its answer came"
            self._emit(SubmissionUnknown(request.operation, reason, None, context))
            raise
        except KieError as error:
            if isinstance(error, AuthError):
                self._gate.key_refused(error)
            self._emit(submission_error(request.operation, error, context))
            if error.charged == "yes":  # its caller may have gone away
                self._emit(Notice(error.task_id or "", clean(error.message)))
            raise
        finally:
            del self._tokens.pending[submission.token]

    async def _send_or_recover(self, submission: _PendingSubmission, permit: Permit) -> str:
        """Return the id of a submission's task, from its answer or, if that is lost, from a callback."""
        recorded: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._unrecorded.add(recorded)
        try:
            return await self._send(submission, permit)
        except SubmitUnknownError as error:
            lost = error
        finally:
            self._unrecorded.discard(recorded)
            recorded.set_result(None)
        return await self._recover(submission, lost)

    async def _send(self, submission: _PendingSubmission, permit: Permit) -> str:
        """Record the intent, send the POST, and record its answer."""
        token, log, callback_url = submission.token, submission.log, self._settings.callback_url
        address = f"{callback_url}/{token}" if callback_url else PLACEHOLDER_CALLBACK_URL
        try:
            call = ROUTES[self._settings.route].submit(submission.request, address)
            if log is not None:
                await log.before_send(token, submission.context)
        except BaseException:
            permit.give_back()
            raise
        try:
            task_id = await self._transport.send(call, permit=permit)
        except KieError as error:
            if not isinstance(error, SubmitUnknownError):
                await self._record_failed(submission, error)
            raise
        await self._record_accepted(submission, task_id)
        return task_id

    async def _record_accepted(self, submission: _PendingSubmission, task_id: str) -> None:
        if submission.log is None:
            return
        try:
            await submission.log.accepted(submission.token, task_id)
        except StorageError as error:  # the task is paid, and not on record
            error.retryable = False
            error.message += f"; the task is paid, so do not submit it again: session.track({task_id!r}) follows it"
            raise

    async def _record_failed(self, submission: _PendingSubmission, error: KieError) -> None:
        """Record an error. If the journal fails, that is added to its message: the error says what was charged."""
        if submission.log is None:
            return
        try:
            await submission.log.failed(submission.token, error)
        except StorageError as failure:
            error.message += f"; the journal could not record that: {failure.message}"

    async def _recover(self, submission: _PendingSubmission, error: SubmitUnknownError) -> str:
        """Wait for the callback that names the task of a submission whose answer was lost."""
        token, named = submission.token, submission.named
        error.token = token
        if self._settings.callback_url:
            self._emit(Notice("", f"an answer was lost; waiting for its callback: {error.message}"))
            timeout = self._settings.recovery_timeout
            await asyncio.wait((named, self._closing), timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
            if not named.done() and self._closing.done():  # the next session with the journal takes over
                error.message += "; the session was closed before its callback came"
                raise error
            error.message += f"; no callback named it within {timeout:.0f} s"
        if not named.done():
            self._tokens.given_up.add(token)
            await self._record_failed(submission, error)
        if not named.done():  # a callback may have come while that was recorded
            raise error
        await self._record_accepted(submission, named.result())
        return named.result()

    def _follow(self, submission: _PendingSubmission, task_id: str) -> TrackedTask:
        request, token = submission.request, submission.token
        waited = asyncio.get_running_loop().time() - submission.started_at
        recovered = submission.named.done()
        self._emit(Submitted(task_id, request.operation, request.model, waited, recovered, submission.context))
        self._tokens.followed[token] = task_id
        origin = Origin.of(request, submission.context, is_own=True)
        task = self._tracker.follow(task_id, origin, on_release=partial(self._task_released, token, submission.place))
        task.settle_cost = submission.place.settle
        if recovered and submission.named.result() == task_id:
            for stage in submission.stages:
                self._tracker.note_callback(task_id, stage, is_authentic=True)
        return task

    def _task_released(self, token: str, place: Place) -> None:
        task_id = self._tokens.followed.pop(token)
        self._tokens.left.add(f"{token}/{task_id}")
        place.release()


def _free_if_failed(post: asyncio.Future[TrackedTask], place: Place) -> None:
    """Free the place of a POST that has failed. If it became a task, the task holds the place until its release."""
    if not post.cancelled() and isinstance(error := post.exception(), KieError):  # cancelled only as the loop ends
        place.submission_failed(error)
