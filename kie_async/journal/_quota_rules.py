"""The shared quota as a value, and what an exchange with a process does to it: pure rules, for every store.

The quota has as many slots as an account may submit in one window. A slot is free from its time ``free_at`` on. While
it is held, that time is one window after the end of its holder's lease, so nobody needs to clear up after a dead one.
Processes that want slots wait in a queue. Each gets at most its share, and leaves free what those before it still want
of theirs. One that was served goes to the end of the queue; one that is silent loses its turn.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from itertools import takewhile
from math import ceil

import attrs

TURN = 3.0  # seconds after which a silent process loses its turn


@attrs.frozen
class Slot:
    """One submission in a window.

    Attributes:
        free_at: on the clock of the store.
        permit: the name of the permit that holds it.
    """

    free_at: float = 0.0
    permit: str | None = None


@attrs.frozen
class Turn:
    """A process that waits for slots, until it is taken for silent."""

    process_id: str
    wanted: int
    until: float


@attrs.frozen
class Quota:
    """The quota of an account, as the store holds it; all times are on the store's clock.

    Attributes:
        boot: the name of the clock.
        tick: when it was written last.
        opens_at: until then nobody gets a slot.
        queue: who waits, first come first.
    """

    boot: str = ""
    tick: float = 0.0
    opens_at: float = 0.0
    slots: tuple[Slot, ...] = ()
    queue: tuple[Turn, ...] = ()


@attrs.frozen(kw_only=True)
class Terms:
    """What is agreed between the processes of an account: ``limit`` slots in ``window`` seconds, held for ``lease``."""

    process_id: str
    limit: int
    window: float
    lease: float

    @property
    def hold(self) -> float:
        """Seconds until a slot is free whose holder is silent from now on."""
        return self.lease + self.window


@attrs.frozen(kw_only=True)
class QuotaRequest:
    """What a process reports and asks for.

    Attributes:
        wanted: how many slots; 0 leaves the queue.
        names: for new permits; as many are given at most.
        returned: permits that ended, and seconds from now until their slots are free.
        renewed: permits whose lease is to begin anew.
        closed_for: seconds for which nobody gets a slot.
    """

    wanted: int = 0
    names: tuple[str, ...] = ()
    returned: Mapping[str, float] = attrs.field(factory=dict)
    renewed: Collection[str] = ()
    closed_for: float = 0.0


@attrs.frozen(kw_only=True)
class QuotaReply:
    """What a process gets.

    Attributes:
        quota: to be written if it is another than before.
        granted: names of new permits.
        renewed: permits that are held still; others were taken over.
        delay: seconds until there may be more slots for this process; 0 if they are left to those before it.
    """

    quota: Quota
    granted: tuple[str, ...]
    renewed: Collection[str | None]
    delay: float


def on_clock(quota: Quota, boot: str, now: float) -> Quota:
    """Return the quota on a clock that was restarted or set back: its times stay as far in the future as they were."""
    if quota.boot == boot and quota.tick <= now:
        return quota
    shift = now - quota.tick
    return Quota(
        boot=boot,
        tick=now,
        opens_at=quota.opens_at + shift,
        slots=tuple(attrs.evolve(slot, free_at=slot.free_at + shift) for slot in quota.slots),
        queue=tuple(attrs.evolve(turn, until=turn.until + shift) for turn in quota.queue),
    )


def exchange(quota: Quota, terms: Terms, request: QuotaRequest, now: float) -> QuotaReply:
    """Take in what a process reports, and give it the slots that are its turn."""
    missing = max(terms.limit - len(quota.slots), 0)
    slots = [_updated(slot, terms, request, now) for slot in (*quota.slots, *[Slot()] * missing)]
    opens_at = max(quota.opens_at, now + request.closed_for) if request.closed_for else quota.opens_at
    turns = _turns(quota, terms, request.wanted, now)
    ahead = [turns[each] for each in takewhile(lambda each: each != terms.process_id, turns)]

    share = ceil(terms.limit / max(len(turns), 1))
    free = sorted((slot.free_at, number) for number, slot in enumerate(slots[: terms.limit]) if slot.free_at <= now)
    left = len(free) - sum(min(turn.wanted, share) for turn in ahead)
    granted = request.names[: max(min(share, left), 0)] if opens_at <= now else ()
    for name, (_, number) in zip(granted, free, strict=False):
        slots[number] = Slot(now + terms.hold, name)
    if granted and (wanted := turns.pop(terms.process_id).wanted - len(granted)):
        turns[terms.process_id] = Turn(terms.process_id, wanted, now + TURN)  # at the end

    moments = sorted(slot.free_at for slot in slots[: terms.limit])
    next_at = max(opens_at, moments[min(len(ahead), terms.limit - 1)])
    after = attrs.evolve(quota, opens_at=opens_at, slots=tuple(slots), queue=tuple(turns.values()))
    return QuotaReply(
        quota=quota if after == quota else attrs.evolve(after, tick=now),
        granted=granted,
        renewed={slot.permit for slot in slots if slot.permit in request.renewed},
        delay=max(next_at - now, 0.0),
    )


def _updated(slot: Slot, terms: Terms, request: QuotaRequest, now: float) -> Slot:
    if slot.permit is None:
        return slot
    if slot.permit in request.returned:
        return Slot(now + request.returned[slot.permit])
    return attrs.evolve(slot, free_at=now + terms.hold) if slot.permit in request.renewed else slot


def _turns(quota: Quota, terms: Terms, wanted: int, now: float) -> dict[str, Turn]:
    """Who waits, this process among them if it wants anything: where it was, or at the end."""
    turns = {turn.process_id: turn for turn in quota.queue if turn.until > now}
    mine = turns.get(terms.process_id)
    if not wanted:
        turns.pop(terms.process_id, None)
    elif mine is None or mine.wanted != wanted or mine.until < now + TURN / 2:
        turns[terms.process_id] = Turn(terms.process_id, wanted, now + TURN)
    return turns
