from __future__ import annotations

import re
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kie_async.files._names import MAX_NAME, safe_name, track_name

RESERVED = re.compile(r"(con|prn|aux|nul|conin|conout|(com|lpt)[0-9¹²³])(\..*)?", re.IGNORECASE)
MAX_OF_A_FILE = 120  # bytes


def is_safe(name: str) -> bool:
    """Whether a name can be given on every system, looks like what it is, and comes back as it was given."""
    kinds = {unicodedata.category(character) for character in name}
    is_plain = not kinds & {"Cc", "Cf", "Cs", "Co", "Cn", "Zs", "Zl", "Zp"} and not set(name) & set('/\\:*?"<>|\0 ')
    is_bounded = name[0] not in "-._" and name[-1] not in "-. " and not unicodedata.category(name[0]).startswith("M")
    is_composed = unicodedata.is_normalized("NFC", name)
    return is_plain and is_bounded and is_composed and ".." not in name and RESERVED.fullmatch(name) is None


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("Longer", "Longer"),
        ("My Song (live)", "My-Song-live"),
        ("song.mp3", "song"),
        ("song.MP3", "song"),
        ("v1.2 final", "v1.2-final"),
        ("Été à Zürich", "Été-à-Zürich"),
        ("e\N{COMBINING ACUTE ACCENT}", "é"),
        ("日本の歌", "日本の歌"),
        ("Привет, мир!", "Привет-мир"),
        ("नमस्ते", "नमस्ते"),
        ("한글\N{HANGUL FILLER}", "한글"),
        ("👨\N{ZERO WIDTH JOINER}👩 song", "👨👩-song"),
        ("a\N{LINE SEPARATOR}b\N{NO-BREAK SPACE}c", "a-b-c"),
        ("\N{COMBINING ACUTE ACCENT}x", "x"),
        ("-\N{COMBINING ACUTE ACCENT}-x", "x"),
        ("e\N{ZERO WIDTH JOINER}\N{COMBINING ACUTE ACCENT}", "é"),
        ("\N{GREEK VARIA}", "track"),
        ("\N{FULLWIDTH SOLIDUS}etc\N{FULLWIDTH SOLIDUS}passwd", "etc-passwd"),
        ("com\N{SUPERSCRIPT ONE}.mp3", "track-com¹"),
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
        ("CON", "track-CON"),
        ("con.txt", "track-con.txt"),
        ("Lpt9", "track-Lpt9"),
        ("a..b", "a-b"),
        ("a:..b", "a-b"),
        ("\ud800", "track"),
        ("é" * 130, "é" * (MAX_NAME // 2)),
        ("日" * 130, "日" * (MAX_NAME // 3)),
        ("a" + "é" * 130, "a" + "é" * (MAX_NAME // 2 - 1)),
        ("nul." + "a" * 200, "track-nul." + "a" * (MAX_NAME - 10)),
    ],
)
def test_any_text_becomes_a_safe_name(text: str, name: str) -> None:
    assert safe_name(text) == name


ODD = st.sampled_from("-._ /\\:\0\n\N{RIGHT-TO-LEFT OVERRIDE}\N{COMBINING ACUTE ACCENT}eE日\N{GREEK VARIA}\ud800👩¹")
TEXTS = st.text(max_size=400) | st.text(ODD, max_size=60) | st.from_regex(RESERVED, fullmatch=True)


@given(TEXTS, st.integers(10, MAX_NAME))
def test_a_name_is_safe_on_every_disk(text: str, limit: int) -> None:
    name = safe_name(text, limit=limit)
    assert is_safe(name)
    assert len(name.encode()) <= limit
    assert safe_name(name, limit=limit) == name
    assert len(f"{name}-999.part-2.json".encode()) <= MAX_OF_A_FILE


@given(st.text("LlLoMn日aé -", min_size=1, max_size=20))
def test_letters_stay(text: str) -> None:
    letters = [character for character in unicodedata.normalize("NFC", text) if character.isalpha()]
    assert [character for character in safe_name(text) if character.isalpha()] == (letters or list("track"))


@given(TEXTS, TEXTS, TEXTS)
def test_two_tracks_never_share_a_name(title: str, one: str, other: str) -> None:
    first, second = track_name(title, one), track_name(title, other)
    assert is_safe(first)
    assert len(first.encode()) <= MAX_NAME
    if one.lower() != other.lower():
        assert first.casefold() != second.casefold()


def test_a_track_is_named_by_its_title_and_id() -> None:
    assert track_name("Longer", "5c79-AB") == "Longer-5c79-ab"
    assert track_name(None, "5c79") == "track-5c79"
    assert track_name("a" * 300, "b" * 40) == "a" * (MAX_NAME - 41) + "-" + "b" * 40
    assert re.fullmatch(r"x-[0-9a-f]{32}", track_name("x", "../../etc"))
