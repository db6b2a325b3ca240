"""The command line's own words: options, addresses, and what may reach a terminal."""

from __future__ import annotations

from pathlib import Path

import attrs
import pytest

from kie_async import ExtendRequest
from kie_async.cli._exit_codes import UsageError, option_of, with_options
from kie_async.cli._options import parse_address
from kie_async.cli._progress import printable
from kie_async.cli._tasks import resume_options


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
    assert parse_address(text) == place


@pytest.mark.parametrize("text", ["", "me.example", "127.0.0.1:", "1:65536", "1:-1", "1:²"])
def test_no_addresses(text: str) -> None:
    with pytest.raises(UsageError, match="--bind"):
        parse_address(text)


def test_every_field_of_a_request_has_its_option() -> None:
    options = {option_of(field.name) for field in attrs.fields(ExtendRequest)}
    assert {"AUDIO_ID", "--at", "--duration", "--style-weight", "--default-param-flag"} <= options


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
    assert with_options(python) == typed


def test_no_control_characters_are_printable() -> None:
    assert printable("a\x1b[2Jb\r\nc\u202ed\x00é\ud800") == "a�[2Jb��c�d�é�"


def test_a_task_is_resumed_with_the_same_options() -> None:
    assert not resume_options("classic", None)
    assert resume_options("jobs", Path("my songs")) == " --route jobs --out 'my songs'"
