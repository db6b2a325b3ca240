"""``--out`` that cannot be written: told before anything is sent, by every command that has it."""

from __future__ import annotations

from pathlib import Path

import pytest
from command_line import Terminal, short_song

from kie_async.testing import EmulatorHandle

TASK = "5c79be8e0a1b4c6d9e2f3a4b5c6d7e8f"


@pytest.fixture
def songs(tmp_path: Path) -> Path:
    folder = tmp_path / "songs"
    folder.mkdir()
    short_song(folder / "song.wav")
    return folder


@pytest.fixture(params=["file", "file/below", "file/far/below", "nowhere/below"])
def out(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A directory that cannot be."""
    (tmp_path / "file").write_bytes(b"in the way")
    (tmp_path / "nowhere").symlink_to("/nowhere")
    return tmp_path / str(request.param)


@pytest.fixture(params=["extend", "upload-extend", "batch", "wait", "download", "worker"])
def words(request: pytest.FixtureRequest, songs: Path) -> tuple[str, ...]:
    """A command that has ``--out``."""
    music = ("--at", "1", "--instrumental", "--style", "s", "--title", "t", "--model", "V5")
    if request.param == "worker":
        return ("worker", "--journal", str(request.getfixturevalue("database_url")), "--until-done")
    return {
        "extend": ("extend", "a1", *music),
        "upload-extend": ("upload-extend", str(songs / "song.wav"), *music),
        "batch": ("batch", str(songs), *music, "--yes"),  # whose journal would be there, too
        "wait": ("wait", TASK),
        "download": ("download", TASK),
    }[request.param]


def test_it_is_found_before_anything_is_sent(
    terminal: Terminal, service: EmulatorHandle, words: tuple[str, ...], out: Path
) -> None:
    answer = terminal(*words, "--out", str(out))
    assert answer.code == 8
    assert f"{out} cannot be written: " in answer.err
    assert "give another directory" in answer.err
    assert "go on with the same command" not in answer.err
    assert not service.arrivals


@pytest.mark.usefixtures("service")
def test_nothing_is_left_where_it_was_tried(terminal: Terminal, tmp_path: Path) -> None:
    assert terminal("wait", TASK, "--out", str(tmp_path / "new" / "songs"), "--timeout", "0").code == 6
    assert not list(tmp_path.iterdir())
