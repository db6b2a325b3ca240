"""The states of a job and its legal transitions: one table, read by stores, batch and documentation alike.

::

    planned → intent → submitted → succeeded → delivered
                 │          └→ failed ─(a person: retry)→ planned
                 ├→ planned    nothing was sent, or it was refused for its moment
                 ├→ rejected   the service said no ─(a person: retry)→ planned
                 └→ unknown    no answer came
                       ├→ submitted   its callback came, or its process got a late answer
                       ├→ planned     a person decided: send it again
                       └→ abandoned   a person decided: leave it

A transition that is not listed is a stale or a doubled report: it is refused, and changes nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from types import MappingProxyType


class State(StrEnum):
    """Where a job stands."""

    PLANNED = "planned"
    INTENT = "intent"
    SUBMITTED = "submitted"
    SUCCEEDED = "succeeded"
    DELIVERED = "delivered"
    REJECTED = "rejected"
    FAILED = "failed"
    UNKNOWN = "unknown"
    ABANDONED = "abandoned"


TRANSITIONS: Mapping[State, frozenset[State]] = MappingProxyType(
    {
        State.PLANNED: frozenset({State.INTENT, State.REJECTED}),  # rejected: by our own check of its source
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


def is_legal(now: State, to: State) -> bool:
    """Tell whether a job may go from one state to another."""
    return to in TRANSITIONS[now]
