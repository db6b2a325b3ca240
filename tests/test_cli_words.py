"""The command line's own words: moments, options, addresses, and what may reach a terminal."""

from __future__ import annotations

from pathlib import Path

import attrs
import pytest

from kie_async import ExtendRequest
from kie_async.cli._exit_status import UsageError
from kie_async.cli._messages import flag_of, in_flags, shown
from kie_async.cli._moment import Moment, parse_moment
from kie_async.cli._options import address
from kie_async.cli._output import take_up


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("45.5", 45.5),
        ("45.5s", 45.5),
        ("0", 0.0),
        ("1:05", 65.0),
        ("61:5.25", 3665.25),
        ("75%", 75.08),
        ("12.5%", 12.51),
        ("-10", 90.11),
        ("-10s", 90.11),
        ("-1:05", 35.11),
    ],
)
def test_moments(text: str, seconds: float) -> None:
    assert parse_moment(text).within(100.11) == seconds


@pytest.mark.parametrize(
    "text", ["", "-", "x", "75 %", "-75%", "1:60", "1:2:3", "1e3", "nan", "+5", ":5", "5.", "٣", "10m", "\x1b[2J"]
)
def test_no_moments(text: str) -> None:
    with pytest.raises(UsageError, match="--at"):
        parse_moment(text)


def test_only_shares_and_ends_need_the_length() -> None:
    assert parse_moment("45.5").within(None) == 45.5
    assert not parse_moment("1:05").needs_length
    for text in ("75%", "-10s"):
        with pytest.raises(UsageError, match="--duration"):
            parse_moment(text).within(None)
    assert parse_moment("-10s") == Moment(10.0, from_end=True)


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("0.0.0.0:80", ("0.0.0.0", 80)),  # noqa: S104  # read, not bound
        (":8080", ("127.0.0.1", 8080)),
        ("8080", ("127.0.0.1", 8080)),
        ("[::1]:0", ("::1", 0)),
        ("me.example:65535", ("me.example", 65535)),
    ],
)
def test_addresses(text: str, place: tuple[str, int]) -> None:
    assert address(text) == place


@pytest.mark.parametrize("text", ["", "me.example", "127.0.0.1:", "1:65536", "1:-1", "1:²"])
def test_no_addresses(text: str) -> None:
    with pytest.raises(UsageError, match="--bind"):
        address(text)


def test_every_field_of_a_request_has_its_option() -> None:
    flags = {flag_of(field.name) for field in attrs.fields(ExtendRequest)}
    assert {"AUDIO_ID", "--at", "--duration", "--style-weight", "--default-param-flag"} <= flags


@pytest.mark.parametrize(
    ("python", "typed"),
    [
        ("or set instrumental=True", "or set --instrumental"),
        ("or drop default_param_flag=False", "or drop --no-default-param-flag"),
        ("give persona_id too", "give --persona-id too"),
        ("or give source_duration=", "or give --duration"),
        ("later session.track('5c79') later", "later kie-async wait 5c79 later"),
        ("set KIE_API_KEY, or give Settings(api_key=...)", "set KIE_API_KEY"),
        ('use Settings(route="jobs"), or leave it out', "use --route jobs, or leave it out"),
        ("style_weight: is 2", "--style-weight: is 2"),
        ("nothing of Python", "nothing of Python"),
    ],
)
def test_messages_speak_of_options(python: str, typed: str) -> None:
    assert in_flags(python) == typed


def test_no_control_characters_are_shown() -> None:
    assert shown("a\x1b[2Jb\r\nc\u202ed\x00é\ud800") == "a�[2Jb��c�d�é�"


def test_a_task_is_taken_up_with_the_same_options() -> None:
    assert not take_up("classic", None)
    assert take_up("jobs", Path("my songs")) == " --route jobs --out 'my songs'"
