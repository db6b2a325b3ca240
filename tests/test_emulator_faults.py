from __future__ import annotations

import pytest

from kie_async.emulator import KINDS, Fault, Faults
from kie_async.emulator._bodies import LOOKS
from kie_async.emulator._effects import EFFECTS
from kie_async.emulator._plan import LIVES
from kie_async.emulator._state import CALLBACKS


def test_an_unknown_kind_is_refused_with_the_list_of_all() -> None:
    with pytest.raises(ValueError, match="no fault is called 'losst': give one of lost, reset"):
        Fault("losst")


def test_a_kind_strikes_only_where_it_can() -> None:
    assert Fault("stuck").on == "submit"
    with pytest.raises(ValueError, match="'stuck' cannot strike at 'download', only at submit"):
        Fault("stuck", on="download")


def test_every_kind_is_acted_on_somewhere_and_nothing_acts_on_an_unknown_kind() -> None:
    acted_on = {*EFFECTS, *LIVES, *LOOKS, *CALLBACKS, "ignores_range"}
    assert acted_on == set(KINDS)


def test_whether_it_is_done_first_follows_from_the_kind_unless_said() -> None:
    assert Fault("lost").done is True
    assert Fault("drop").done is False
    assert Fault("html", done=True).done is True


@pytest.mark.parametrize(
    ("rule", "struck"),
    [
        ({}, [1, 2, 3, 4]),
        ({"nth": 2}, [2]),
        ({"times": 3}, [1, 2, 3]),
        ({"probability": 0.0}, []),
        ({"task_id": "other"}, []),
    ],
)
def test_a_rule_says_at_which_events_a_fault_strikes(rule: dict[str, object], struck: list[int]) -> None:
    fault = Fault("lost", **rule)  # type: ignore[arg-type]  # a table of keyword arguments
    faults = Faults([fault])
    assert [number for number in range(1, 5) if faults.pick("submit", "one")] == struck
    assert faults.struck(fault) == len(struck)


def test_another_point_does_not_count() -> None:
    faults = Faults([Fault("lost", nth=1)])
    assert faults.pick("credits") == ()
    assert len(faults.pick("submit")) == 1


def test_chance_is_seeded() -> None:
    def run(seed: int) -> list[bool]:
        faults = Faults([Fault("lost", probability=0.5)], seed)
        return [bool(faults.pick("submit")) for _ in range(50)]

    assert run(1) == run(1) != run(2)
    assert 10 < sum(run(1)) < 40


def test_faults_are_added_and_removed_while_running() -> None:
    faults = Faults()
    lost, slow = Fault("lost"), Fault("slow")
    faults.add(lost, slow)
    assert list(faults) == [lost, slow]
    faults.remove(Fault("lost"))
    assert list(faults) == [slow]
    faults.clear()
    assert len(faults) == 0
