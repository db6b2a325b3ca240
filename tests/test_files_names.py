from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kie_async.files._names import NAME_MOST, safe_name, track_name

SAFE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*[A-Za-z0-9]|[A-Za-z0-9]")


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("Longer", "Longer"),
        ("My Song (live)", "My-Song-live"),
        ("song.mp3", "song"),
        ("song.MP3", "song"),
        ("v1.2 final", "v1.2-final"),
        ("Été à Zürich", "Ete-a-Zurich"),
        ("日本", "track"),
        ("", "track"),
        (".", "track"),
        ("..", "track"),
        (".mp3", "track"),
        ("../../.ssh/authorized_keys", "ssh-authorized_keys"),
        ("/etc/passwd", "etc-passwd"),
        (r"C:\Windows\x", "C-Windows-x"),
        ("-rf", "rf"),
        (".hidden", "hidden"),
        ("a\0b\nc", "a-b-c"),
        ("a\N{RIGHT-TO-LEFT OVERRIDE}3pm", "a3pm"),
        ("name. ", "name"),
        ("file:stream", "file-stream"),
        ("CON", "CON-track"),
        ("con.txt", "con.txt-track"),
        ("Lpt9", "Lpt9-track"),
        ("a..b", "a-b"),
        ("\ud800", "track"),
        ("é" * 130, "e" * NAME_MOST),
        ("nul." + "a" * 200, "nul." + "a" * (NAME_MOST - 10) + "-track"),
    ],
)
def test_any_text_becomes_a_safe_name(text: str, name: str) -> None:
    assert safe_name(text) == name


@given(st.text(max_size=400), st.integers(10, NAME_MOST))
def test_a_name_is_safe_on_every_disk(text: str, most: int) -> None:
    name = safe_name(text, most=most)
    assert SAFE.fullmatch(name)
    assert len(name) <= most
    assert ".." not in name


@given(st.text(max_size=200), st.text(max_size=200), st.text(max_size=200))
def test_two_tracks_never_share_a_name(title: str, one: str, other: str) -> None:
    first, second = track_name(title, one), track_name(title, other)
    assert SAFE.fullmatch(first)
    assert len(first) <= NAME_MOST
    if one.lower() != other.lower():
        assert first.lower() != second.lower()


def test_a_track_is_named_by_its_title_and_id() -> None:
    assert track_name("Longer", "5c79-AB") == "Longer-5c79-ab"
    assert track_name(None, "5c79") == "track-5c79"
    assert track_name("a" * 300, "b" * 40) == "a" * (NAME_MOST - 41) + "-" + "b" * 40
    assert re.fullmatch(r"x-[0-9a-f]{32}", track_name("x", "../../etc"))
