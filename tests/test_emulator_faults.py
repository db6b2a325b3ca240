from __future__ import annotations

import pytest

from kie_async.emulator import KINDS, Fault, Faults


def test_an_unknown_kind_is_refused_with_the_list_of_all() -> None:
    with pytest.raises(ValueError, match="no fault is called 'losst': give one of lost, reset"):
        Fault("losst")


def test_a_kind_occurs_only_where_it_can() -> None:
    assert Fault("stuck").on == "submit"
    with pytest.raises(ValueError, match="'stuck' cannot occur at 'download', only at submit"):
        Fault("stuck", on="download")


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_has_an_effect_at_each_of_its_points(kind: str) -> None:
    effects = KINDS[kind]
    of_point = {"submit": (effects.answer, effects.timeline), "record_info": (effects.answer, effects.poll)}
    for point in effects.points:
        usual = (effects.callbacks,) if point == "callback" else (effects.answer,)
        assert any(of_point.get(point, usual)), point


def test_an_unknown_shape_is_refused() -> None:
    with pytest.raises(ValueError, match="no shape is called 'round': give one of data, envelope, object, urls"):
        Fault("shape", shape="round")


def test_whether_it_is_done_first_follows_from_the_kind_unless_said() -> None:
    assert Fault("lost").done is True
    assert Fault("drop").done is False
    assert Fault("html", done=True).done is True


@pytest.mark.parametrize(
    ("rule", "occurs"),
    [
        ({}, [1, 2, 3, 4]),
        ({"nth": 2}, [2]),
        ({"times": 3}, [1, 2, 3]),
        ({"probability": 0.0}, []),
        ({"task_id": "other"}, []),
    ],
)
def test_a_rule_says_at_which_events_a_fault_occurs(rule: dict[str, object], occurs: list[int]) -> None:
    fault = Fault("lost", **rule)  # type: ignore[arg-type]  # a table of keyword arguments
    faults = Faults([fault])
    assert [number for number in range(1, 5) if faults.pick("submit", "one")] == occurs
    assert faults.occurred(fault) == len(occurs)


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
