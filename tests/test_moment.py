"""Moments as people write them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kie_async._protocol.request_rules import CutPoint, read_cut_point


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("45.5", 45.5),
        ("45.5s", 45.5),
        ("45s", 45.0),
        ("0", 0.0),
        ("1:05", 65.0),
        ("2:5.25", 125.25),
        ("61:5.25", 3665.25),
        ("75%", 75.08),
        ("12.5%", 12.51),
        ("-10", 90.11),
        ("-10s", 90.11),
        ("-1:05", 35.11),
        ("10 s", 10.0),
        ("4m", 240.0),
        ("4 min", 240.0),
        ("1m30s", 90.0),
        ("1 min 5.25 s", 65.25),
        ("1m05", 65.0),
        ("-1m05s", 35.11),
    ],
)
def test_a_moment_is_within_its_song(text: str, seconds: float) -> None:
    moment = read_cut_point(text)
    assert moment is not None
    assert moment.resolve(100.11) == seconds
    assert moment.needs_length == (text.startswith("-") or text.endswith("%"))
    assert moment.resolve(None) == (None if moment.needs_length else seconds)


@given(st.text())
def test_any_text_is_a_moment_or_none(text: str) -> None:
    assert isinstance(read_cut_point(text), CutPoint | None)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "-",
        "x",
        "75 %",
        "-75%",
        "1:60",
        "1:75",
        "1:2:3",
        "1e3",
        "nan",
        "+5",
        "--5",
        ":5",
        "5.",
        "٣",
        "m",
        "m30s",
        "1m60s",
        "1:05m",
        "10ms",
        "1h",
        "\x1b[2J",
    ],
)
def test_what_is_no_moment(text: str) -> None:
    assert read_cut_point(text) is None
