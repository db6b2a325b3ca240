"""Which requests ask for the same, also if they are not written alike."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from kie_async.journal._same_request import asks_the_same
from kie_async.models import ExtendRequest, Request, UploadExtendRequest


def upload(source: str | Path = "song.wav", continue_at: float | str = 45, length: float | None = None) -> Request:
    return UploadExtendRequest(source, continue_at=continue_at, default_param_flag=False, source_duration=length)


def extend(**fields: Any) -> Request:
    own: dict[str, Any] = {"style": "s", "title": "t", "instrumental": True, "continue_at": 45}
    return ExtendRequest("a", model="V5", **{**own, **fields})


ALIKE = {
    "numbers": (extend(continue_at=45), extend(continue_at="0:45.0")),
    "a length": (extend(), extend(source_duration=60)),
    "measured otherwise": (upload(continue_at="75%", length=60), upload(continue_at="75%", length=60.05)),
    "before the end": (upload(continue_at="-10s", length=60), upload(continue_at="-10s", length=60.05)),
    "rounded": (upload(continue_at="75%", length=60.006), upload(continue_at="75%", length=60.007)),
    "not measured yet": (upload(continue_at="75%"), upload(continue_at="75%", length=60)),
    "computed by the user": (upload(continue_at="75%"), upload(continue_at=45, length=60)),
    "of no known length": (upload(continue_at="75%"), upload(continue_at="75%")),
    "a path": (upload("/songs/a.wav"), upload(Path("/songs/a.wav"))),
    "relative": (upload("/songs/a.wav"), upload("a.wav")),
    "relative to a parent": (upload("/songs/a.wav"), upload("../x/../songs/./a.wav")),
    "signed anew": (upload("https://x.example/a.mp3?s=1&e=2"), upload("https://x.example/a.mp3?s=3&e=4")),
    "of no audio name": (upload("https://x.example/a?id=1"), upload("https://x.example/a?id=1")),
}
DIFFERENT = {
    "operations": (extend(), upload()),
    "a title": (extend(), extend(title="u")),
    "a cut": (extend(), extend(continue_at=45.5)),
    "a cut of the same length": (upload(continue_at=45, length=60), upload(continue_at=45.5, length=60)),
    "a cut of about the same length": (upload(continue_at=45, length=60), upload(continue_at=45.5, length=60.05)),
    "a cut far off": (upload(continue_at="75%", length=60), upload(continue_at="75%", length=70)),
    "a cut without a length": (upload(continue_at=45), upload(continue_at=45.5, length=60)),
    "shares": (upload(continue_at="75%"), upload(continue_at="50%")),
    "a share": (upload(continue_at="75%"), upload(continue_at=45)),
    "names": (upload("/songs/a.wav"), upload("/songs/b.wav")),
    "directories": (upload("/one/a.wav"), upload("/two/a.wav")),
    "relative directories": (upload("/one/a.wav"), upload("two/a.wav")),
    "ends of names": (upload("/songs/a.wav"), upload("songs/aa.wav")),
    "hosts": (upload("https://x.example/a.mp3?s=1"), upload("https://y.example/a.mp3?s=1")),
    "ids": (upload("https://x.example/a?id=1"), upload("https://x.example/a?id=2")),
    "a file and an address": (upload("a.mp3"), upload("https://x.example/a.mp3")),
}
# A cut moves by what the lengths differ, and at most by a second, be they measured or told.
EDGES = [(60.9, True), (61.2, True), (61.4, False)]


@pytest.mark.parametrize("pair", ALIKE.values(), ids=ALIKE)
def test_alike(pair: tuple[Request, Request]) -> None:
    assert asks_the_same(*pair)
    assert asks_the_same(*reversed(pair))


@pytest.mark.parametrize("pair", DIFFERENT.values(), ids=DIFFERENT)
def test_different(pair: tuple[Request, Request]) -> None:
    assert not asks_the_same(*pair)
    assert not asks_the_same(*reversed(pair))


@pytest.mark.parametrize(("length", "alike"), EDGES)
def test_how_far_a_length_moves_a_cut(length: float, *, alike: bool) -> None:
    assert asks_the_same(upload(continue_at="75%", length=60), upload(continue_at="75%", length=length)) is alike
