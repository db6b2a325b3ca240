"""The legal transitions between the states of a job, and what each does to it: one table and pure rules.

A store reads a job, lets these rules make the next one, and writes it. ::

    planned → intent → submitted → succeeded → delivered
                 │          └→ failed ─(a person: retry)→ planned
                 ├→ planned    nothing was sent, or it was refused only for now
                 ├→ rejected   the service said no ─(a person: retry)→ planned
                 └→ unknown    no answer came
                       ├→ submitted   its callback came, or its process got a late answer
                       ├→ planned     a person decided: send it again
                       └→ abandoned   a person decided: leave it

A transition that is not listed is a stale or a doubled report: it is refused, and changes nothing.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, TypeVar

import attrs

from kie_async._protocol.request_rules import CREDITS_PER_TASK
from kie_async.errors import (
    AuthError,
    Charged,
    ConflictError,
    ConnectError,
    InsufficientCreditsError,
    KeyQuotaError,
    KieError,
    RefusedError,
)
from kie_async.events import Context
from kie_async.journal._job import InboundCallback, Job, JobResults, LastAttempt, State
from kie_async.journal._same_request import asks_the_same

T = TypeVar("T", LastAttempt, JobResults)

TRANSITIONS: Mapping[State, frozenset[State]] = MappingProxyType(
    {
        State.PLANNED: frozenset({State.INTENT, State.REJECTED}),  # rejected: by us, for it cannot be sent
        State.INTENT: frozenset({State.SUBMITTED, State.PLANNED, State.REJECTED, State.UNKNOWN}),
        State.UNKNOWN: frozenset({State.SUBMITTED, State.PLANNED, State.ABANDONED}),
        State.SUBMITTED: frozenset({State.SUCCEEDED, State.FAILED}),
        State.SUCCEEDED: frozenset({State.DELIVERED}),
        State.REJECTED: frozenset({State.PLANNED}),
        State.FAILED: frozenset({State.PLANNED}),
        State.DELIVERED: frozenset(),
        State.ABANDONED: frozenset(),
    }
)
FINAL = frozenset({State.DELIVERED, State.REJECTED, State.FAILED, State.UNKNOWN, State.ABANDONED})  # nothing to do
OPEN = frozenset({State.PLANNED, State.INTENT, State.SUBMITTED, State.UNKNOWN})  # a callback may say something new
PAID = frozenset({State.SUBMITTED, State.SUCCEEDED, State.DELIVERED})  # certainly accepted by the service

_OF_ATTEMPT = frozenset({"task_id", "route", "credits"})
_OF_RESULTS = frozenset({"tracks", "partial", "files", "directory"})
FACTS = _OF_ATTEMPT | _OF_RESULTS | {"error"}  # what can be learnt with a transition
_PENDING = (AuthError, InsufficientCreditsError, KeyQuotaError, ConnectError)  # nothing is wrong with the job


def intended(job: Job, token: str, process_id: str, at: float, context: Context | None = None) -> Job:
    """Return a planned job with a new attempt, which is about to be sent.

    Raises:
        ConflictError: it is not planned.
    """
    if job.state is not State.PLANNED:
        raise ConflictError(f"job {job.key!r} is {job.state}, not planned (any more)", job.task_id)
    return attrs.evolve(
        job,
        state=State.INTENT,
        attempt=job.attempt + 1,
        last_attempt=LastAttempt(token=token, process_id=process_id, context=context or None),
        error=None,
        moments={**job.moments, State.INTENT.value: at},
    )


def enqueued(job: Job, known: Job) -> Job:
    """Return the job of a plain session as one of the batch that it is enqueued into; what is on record of it stays.

    Args:
        job: as it is enqueued: if it asks for the same and nothing was sent yet, its file is used, or its newer
            address, wherever that of the session was.
        known: as it stands in the journal.
    """
    batch = known.batch or job.batch
    if known.state is State.PLANNED and asks_the_same(known.request, job.request):
        return attrs.evolve(known, batch=batch, request=job.request, source=job.source)
    return attrs.evolve(known, batch=batch)


def transition(job: Job, to: State, facts: Mapping[str, Any], *, token: str | None, at: float) -> Job:
    """Return the job in another state, with new facts.

    Raises:
        ConflictError: the transition is not allowed from its state, of another attempt, or names another task.
        TypeError: a fact is no field that can be set, or the task id of a submission is missing.
    """
    if odd := facts.keys() - FACTS:
        raise TypeError(f"no facts of a job: {', '.join(sorted(odd))}")
    if job.state is to is State.PLANNED and facts.keys() == {"error"}:  # why it was not sent
        return attrs.evolve(job, error=facts["error"])
    _guard(job, to, token)
    _guard_task(job, to, facts.get("task_id"))
    if to is State.PLANNED:  # it begins anew; the attempts in the journal keep what they were
        earlier = job.earlier_credits if job.state is State.INTENT else cost(job)  # an intent was not sent, or refused
        job = attrs.evolve(job, last_attempt=LastAttempt(), results=JobResults(), error=None, earlier_credits=earlier)
    return attrs.evolve(
        job,
        state=to,
        last_attempt=_learnt(job.last_attempt, facts, _OF_ATTEMPT),
        results=_learnt(job.results, facts, _OF_RESULTS),
        error=facts.get("error", job.error),
        moments={**job.moments, to.value: at},
    )


def _guard(job: Job, to: State, token: str | None) -> None:
    if token is not None and token != job.token:
        raise ConflictError(
            f"job {job.key!r} is at another attempt by now: the transition to {to} is refused", job.task_id
        )
    if to not in TRANSITIONS[job.state] or to is State.INTENT:  # an intent is a new attempt: only ``intend`` makes one
        raise ConflictError(f"job {job.key!r} is {job.state}: it cannot become {to}", job.task_id)


def _guard_task(job: Job, to: State, task_id: str | None) -> None:
    if to is State.SUBMITTED and task_id is None:
        raise TypeError("what was submitted has a task_id")
    if task_id is not None and (job.token is None or job.task_id not in {None, task_id}):
        raise ConflictError(f"job {job.key!r} cannot be given task {task_id}", job.task_id)


def _learnt(part: T, facts: Mapping[str, Any], names: frozenset[str]) -> T:
    return attrs.evolve(part, **{name: facts[name] for name in names & facts.keys()})


def cost(job: Job) -> float:
    """Credits that all attempts of a job have cost, or may have: what is not known counts as ``CREDITS_PER_TASK``."""
    given_back = job.error is not None and (job.error.refunded or job.error.charged == "no")
    is_free = job.state is State.PLANNED or (job.state is State.REJECTED and job.error is None)
    if is_free or (given_back and job.state in {State.REJECTED, State.FAILED}):
        return job.earlier_credits
    if job.credits is None or job.credits < 0:
        return job.earlier_credits + CREDITS_PER_TASK
    return job.earlier_credits + job.credits


def charged(job: Job) -> Charged:
    """Whether any attempt of a job was paid."""
    if job.state in PAID:
        return "yes"
    return "maybe" if cost(job) else "no"


def another_request_error(job: Job) -> ConflictError:
    """The error of a request under the key of a job that has another one: what became of that, and what to do."""
    on_record = f"the key {job.key!r} is on record with another request"
    remedy = "a key of its own pays for a new one"
    match charged(job):
        case "yes":
            says = f", which became task {job.task_id} and is paid: session.track({job.task_id!r}) follows it; {remedy}"
        case "maybe" if job.state in {State.INTENT, State.UNKNOWN}:
            says = (
                ", which may be paid, for its answer is not known: session.resume() resolves what an ended process "
                "left; if it is unknown then, look at https://kie.ai/logs, and decide: kie-async jobs resolve "
            ) + shlex.quote(job.key)
        case "maybe":
            says = f", which is {job.state} and may be paid: {remedy}"
        case _:
            says = ": give this one a key of its own"
    return ConflictError(on_record + says, job.task_id, charged=charged(job))


def is_awaited(callback: InboundCallback, task_id: str | None, state: State) -> bool:
    """Whether a callback says anything new.

    Args:
        callback: with the token of an attempt.
        task_id: of that attempt, if it is known.
        state: of its job.
    """
    return task_id is None or (task_id == callback.task_id and state in OPEN)


def state_after(error: KieError) -> State:
    """Where a job goes whose submission ended with this error."""
    if isinstance(error, _PENDING) or (error.retryable and error.charged == "no"):
        return State.PLANNED
    if error.charged == "maybe" and not isinstance(error, RefusedError):  # not the service's own no: it may be a task
        return State.UNKNOWN
    return State.REJECTED
