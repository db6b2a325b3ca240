"""The commands say what the tracks hold."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
from command_line import Terminal, served

from kie_async.emulator import demo_song

MUSIC = ("--instrumental", "--style", "folk", "--title", "Longer")
SHORT: dict[str, Any] = {"goes_on": (7.0, 8.0)}


@pytest.fixture
def song(tmp_path: Path) -> Path:
    path = tmp_path / "song.wav"
    path.write_bytes(demo_song())
    return path


def sidecars(folder: Path) -> list[Any]:
    return [json.loads(path.read_text()) for path in sorted(folder.glob("*.kie.json"))]


WORDS = {
    "whole": "the whole song, new from 0:07.50 on (100% sure)",
    "continuation": "it holds nothing of the song: taken as its continuation",
}


@pytest.mark.parametrize("answers", WORDS)
def test_upload_extend_says_what_each_track_holds(
    terminal: Terminal, song: Path, tmp_path: Path, answers: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, words = tmp_path / "new", WORDS[answers]
    monkeypatch.chdir(song.parent)
    with served(monkeypatch, answers=answers, **SHORT):
        answer = terminal("upload-extend", song.name, "--at", "7.5", *MUSIC, "--out", str(out))
        assert answer.code == 0
        by_length = "track 1 is not longer than what was kept of the song: it holds the continuation alone"
        assert (f"track 1: {words}" in answer.err) == (by_length not in answer.err) == (answers == "whole")  # told once
        assert f"track 2: {words}" in answer.err
        found = sidecars(out)
        assert [each["verdict"]["kind"] for each in found] == [answers, answers]
        assert sorted(each["track"]["number"] for each in found) == [1, 2]
        assert {each["source"]["path"] for each in found} == {str(song)}
        assert {each["file"]["name"] for each in found} == {path.name for path in out.glob("*.mp3")}
        if answers == "whole":  # a track that is extended is found by its id
            track_id = found[0]["track"]["id"]
            again = terminal("extend", track_id, "--model", "V5", "--at", "9", *MUSIC, "--out", str(out), "--json")
            assert [each["kind"] for each in again.value["verdicts"]] == ["whole", "whole"]
            assert [each["seam"] for each in again.value["verdicts"]] == pytest.approx([9.0, 9.0], abs=0.005)


def test_what_was_made_of_something_that_is_not_here_has_no_verdict(
    terminal: Terminal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with served(monkeypatch):
        answer = terminal("extend", "a1", "--model", "V5", "--at", "2", *MUSIC, "--out", str(tmp_path), "--json")
    assert (answer.code, "verdicts" in answer.value) == (0, False)
    assert not sidecars(tmp_path)


def test_a_comparison_that_fails_is_only_told(
    terminal: Terminal, song: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lie = ("--duration", "60", "--at", "40")  # the song lasts 25 s
    with served(monkeypatch, check_sources=False):
        answer = terminal("upload-extend", str(song), *lie, *MUSIC, "--out", str(tmp_path / "new"))
    assert answer.code == 0
    assert "track 2: cannot tell what it holds: continue_at: is 0:40, but the source lasts 0:25.40" in answer.err
    assert len(list((tmp_path / "new").iterdir())) == 2


def test_without_the_extra_nothing_is_said(
    terminal: Terminal, song: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "numpy" else find(name))
    out = tmp_path / "new"
    with served(monkeypatch):
        answer = terminal("upload-extend", str(song), "--at", "2", *MUSIC, "--out", str(out), "--json")
    assert answer.code == 0
    assert "verdicts" not in answer.value
    assert not sidecars(out)


def test_a_batch_counts_them(terminal: Terminal, song: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with served(monkeypatch, **SHORT):
        words = ("--at", "6", *MUSIC, "--yes", "--out", str(tmp_path / "new"))
        answer = terminal("batch", str(song.parent), *words)
    assert answer.code == 0
    assert "by their sound, of 2 tracks of this run: 2 hold the whole song" in answer.err
