"""A set that forgets its oldest members."""

from __future__ import annotations

from kie_async._protocol.admission import RecentSet


def test_the_oldest_are_forgotten() -> None:
    recent = RecentSet(10_000)
    for number in range(10_010):
        recent.add(f"t{number}")
        recent.add("t9")
    assert ["t8" in recent, "t10" in recent, "t11" in recent, "t10009" in recent] == [False, False, True, True]


def test_one_that_is_discarded_makes_room() -> None:
    recent = RecentSet(2)
    for member in ("a", "b"):
        recent.add(member)
    recent.discard("a")
    recent.discard("unknown")
    recent.add("c")
    assert ["a" in recent, "b" in recent, "c" in recent] == [False, True, True]
