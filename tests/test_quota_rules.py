"""The rules of the shared quota, without a store: slots, turns, and a clock that began anew."""

from __future__ import annotations

import random
from itertools import count
from typing import Any

import attrs
import pytest

from kie_async._protocol.wire import pack, unpack
from kie_async.journal._quota_rules import TURN, Quota, QuotaReply, QuotaRequest, Slot, Terms, Turn, exchange, on_clock

LIMIT, WINDOW, LEASE = 4, 10.0, 30.0
HOLD = LEASE + WINDOW
_names = count()


def terms(process_id: str) -> Terms:
    return Terms(process_id=process_id, limit=LIMIT, window=WINDOW, lease=LEASE)


def want(quota: Quota, process_id: str, wanted: int, now: float = 100.0, **told: Any) -> QuotaReply:
    names = tuple(f"permit{next(_names)}" for _ in range(min(wanted, LIMIT)))
    request = attrs.evolve(QuotaRequest(wanted=wanted, names=names), **told)
    return exchange(quota, terms(process_id), request, now)


def test_one_process_gets_what_it_wants() -> None:
    reply = want(Quota(), "a", 3)
    assert len(reply.granted) == 3
    assert reply.quota.queue == ()
    assert sorted(slot.free_at for slot in reply.quota.slots) == [0.0, *[100.0 + HOLD] * 3]


def test_nothing_to_take_and_nothing_new_changes_nothing() -> None:
    full = want(want(Quota(), "a", 4).quota, "b", 1)
    assert full.granted == ()
    assert full.delay == HOLD
    again = want(full.quota, "b", 1, now=101.0)
    assert again.quota is full.quota
    assert want(full.quota, "b", 1, now=100.0 + TURN * 0.6).quota.queue == (Turn("b", 1, 100.0 + TURN * 1.6),)


def test_a_permit_comes_back_a_window_after_its_end_or_at_once() -> None:
    first = want(Quota(), "a", 4)
    one, two, *_ = first.granted
    reply = want(first.quota, "a", 0, now=105.0, returned={one: WINDOW, two: 0.0, "another's": 0.0})
    assert Slot(115.0) in reply.quota.slots
    assert Slot(105.0) in reply.quota.slots
    assert sum(slot.permit is not None for slot in reply.quota.slots) == 2


def test_a_lease_is_renewed_for_what_is_held_still() -> None:
    first = want(Quota(), "a", 1)
    reply = want(first.quota, "a", 0, now=120.0, renewed=(*first.granted, "taken over"))
    assert set(reply.renewed) == set(first.granted)
    assert Slot(120.0 + HOLD, first.granted[0]) in reply.quota.slots


def test_the_slots_of_a_silent_holder_are_taken_over() -> None:
    first = want(Quota(), "a", 4)
    assert want(first.quota, "b", 1, now=100.0 + HOLD - 0.1).granted == ()
    assert len(want(first.quota, "b", 4, now=100.0 + HOLD).granted) == 4


def test_a_closed_gate_opens_for_all_at_its_latest_moment() -> None:
    closed = want(Quota(), "a", 1, closed_for=5.0)
    assert closed.granted == ()
    assert closed.delay == 5.0
    still = want(closed.quota, "b", 1, now=101.0, closed_for=1.0)
    assert still.quota.opens_at == 105.0
    assert len(want(still.quota, "a", 1, now=105.0).granted) == 1


def test_each_gets_its_share_in_turn() -> None:
    full = want(Quota(), "old", 4)
    waiting = want(want(full.quota, "a", 9).quota, "b", 9).quota
    free = want(waiting, "old", 0, returned=dict.fromkeys(full.granted, 0.0)).quota
    early = want(free, "b", 9)  # half of them are left to the one before it
    assert len(early.granted) == 2
    late = want(early.quota, "a", 9)
    assert len(late.granted) == 2
    assert [turn.process_id for turn in late.quota.queue] == ["b", "a"]
    assert want(free, "c", 9).granted == ()


def test_slots_left_to_others_are_looked_at_again_soon() -> None:
    queue = (Turn("a", 4, 100.0 + TURN), Turn("b", 4, 100.0 + TURN))
    assert want(Quota(queue=queue), "c", 1).delay == 0.0


def test_who_is_silent_loses_its_turn() -> None:
    queue = (Turn("a", 4, 99.0), Turn("b", 4, 101.0))
    reply = want(Quota(queue=queue), "c", 4)
    assert [turn.process_id for turn in reply.quota.queue] == ["b", "c"]
    assert len(reply.granted) == 2


def test_a_larger_limit_finds_more_slots_and_a_smaller_one_fewer() -> None:
    four = want(Quota(), "a", 4).quota
    more = exchange(
        four, Terms(process_id="b", limit=5, window=1.0, lease=1.0), QuotaRequest(wanted=1, names=("x",)), 100
    )
    assert more.granted == ("x",)
    assert len(more.quota.slots) == 5
    assert want(more.quota, "c", 1).granted == ()


@pytest.mark.parametrize(("boot", "now"), [("other", 7.0), ("other", 5000.0), ("this", 90.0)])
def test_on_another_clock_what_was_to_come_is_as_far_off_as_it_was(boot: str, now: float) -> None:
    slots = (Slot(95.0), Slot(108.0, "x"))
    quota = Quota(boot="this", tick=100.0, opens_at=103.0, slots=slots, queue=(Turn("a", 1, 101.0),))
    moved = on_clock(quota, boot, now)
    assert (moved.boot, moved.tick, moved.opens_at) == (boot, now, now + 3.0)
    assert moved.slots == (Slot(now - 5.0), Slot(now + 8.0, "x"))
    assert moved.queue == (Turn("a", 1, now + 1.0),)
    assert on_clock(quota, "this", 100.5) is quota
    assert unpack(pack(moved), Quota) == moved


def test_no_window_ever_sees_more_than_the_limit() -> None:
    rng = random.Random(1)
    quota, now, held = Quota(), 0.0, dict[str, set[str]](a=set(), b=set(), c=set())
    seen: list[float] = []
    for _ in range(3000):
        now += rng.random()
        who = rng.choice("abc")
        returned = {name: WINDOW for name in sorted(held[who]) if rng.random() < 0.5}
        reply = want(quota, who, rng.randrange(4), now=now, returned=returned, renewed=tuple(held[who] - set(returned)))
        held[who] = (held[who] - set(returned)) | set(reply.granted)
        seen += [now] * len(reply.granted)
        quota = reply.quota
    assert len(seen) > 300
    assert all(later - first >= WINDOW for first, later in zip(seen, seen[LIMIT:], strict=False))
