"""Moments as people write them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kie_async._protocol.cut_point import CutPoint, read_cut_point


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("45.5", 45.5), ("45s", 45), ("1:05", 65), ("2:5.25", 125.25), ("75%", 90), ("-10s", 110), ("-1:00", 60)],
)
def test_a_moment_is_within_its_song(text: str, seconds: float) -> None:
    moment = read_cut_point(text)
    assert moment is not None
    assert moment.within(120) == seconds
    assert moment.within(None) == (None if moment.needs_length else seconds)


@given(st.text())
def test_any_text_is_a_moment_or_none(text: str) -> None:
    assert isinstance(read_cut_point(text), CutPoint | None)


@pytest.mark.parametrize("text", ["", "x", "1:75", "5 %", "--5", "1e3", "٣", "nan", "1:2:3"])
def test_what_is_no_moment(text: str) -> None:
    assert read_cut_point(text) is None
