"""``select``: what was kept in a report is copied, and nothing else."""

from __future__ import annotations

import json
import resource
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
from command_line import Terminal
from result_folder import sidecar


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder of three takes."""
    path = tmp_path / "takes"
    path.mkdir()
    for name in ("a.mp3", "b.mp3", "é #%.mp3", "report.html"):
        (path / name).write_text(name)
    (tmp_path / "secret.mp3").write_text("secret")
    return path


def exported(path: Path, kept: list[str], *, directory: object = None) -> Path:
    notes: list[object] = ["lovely\n <bridge> \ud800", "", 7]
    takes: list[dict[str, object]] = [
        {"file": name, "verdict": "keep", "note": notes[at % 3]} for at, name in enumerate(kept)
    ]
    takes += [
        {"file": "b.mp3", "verdict": None, "note": "perhaps"},
        {"file": "../c\r.mp3", "verdict": "drop", "note": "no"},
    ]
    takes += [{"file": "d.mp3", "verdict": None}, {"file": "e.mp3", "verdict": ["keep"], "note": "odd"}]
    path.write_text(json.dumps({"format": 1, "directory": directory, "takes": takes}))
    return path


def test_what_was_kept_is_copied(terminal: Terminal, folder: Path, tmp_path: Path) -> None:
    verdicts = exported(tmp_path / "verdicts.json", ["a.mp3", "é #%.mp3", "b.mp3", "é #%.mp3"], directory=str(folder))
    out = tmp_path / "new" / "best"
    answer = terminal("select", "--from", str(verdicts), "--out", str(out))
    names = ["a.mp3", "é #%.mp3", "b.mp3"]
    assert (answer.code, answer.out.splitlines()) == (0, [str(out / name) for name in names])
    notes = "a.mp3: lovely <bridge> ?\né #%.mp3: lovely <bridge> ?\nc .mp3 (dropped): no\n"
    notes += "b.mp3 (undecided): perhaps\ne.mp3 (undecided): odd\n"
    assert f"the notes are in {out / 'notes.txt'}" in answer.err
    assert {path.name: path.read_text() for path in out.iterdir()} == {name: name for name in names} | {
        "notes.txt": notes
    }
    (out / "notes.txt").write_text("mine")
    again = terminal("select", "--from", str(verdicts), "--out", str(out), "--json")
    assert again.code == 0
    assert (again.value["copied"], len(again.value["present"])) == ([], 3)
    assert again.value["notes"] == str(out / "notes.txt")
    for _ in range(2):
        assert (out / "notes.txt").read_text() == f"mine\n{notes}"
        assert terminal("select", "--from", str(verdicts), "--out", str(out)).code == 0


ALONE = "the continuation alone: kie-async join SONG TAKE --out FILE puts"


def test_a_take_comes_with_its_sidecar(terminal: Terminal, folder: Path, tmp_path: Path) -> None:
    """What tells ``join`` where the song was cut, and what the take holds; it is not overwritten, and no link out."""
    verdicts, out = exported(folder / "verdicts.json", ["a.mp3", "b.mp3", "é #%.mp3"]), tmp_path / "best"
    words = ("select", "--from", str(verdicts), "--out", str(out))
    assert "continuation" not in terminal(*words).err
    measured: dict[str, Any] = {"verdict": {"kind": "continuation"}}
    wanted = sidecar(folder, "a", name="a.mp3", **measured)
    (folder / "b.kie.json").symlink_to(sidecar(tmp_path, "b", name="b.mp3", **measured))
    (folder / "é #%.kie.json").write_text("{")
    for _ in range(2):  # the takes are there
        answer = terminal(*words, "--json")
        assert (answer.code, len(answer.value["present"])) == (0, 3)
        assert answer.value["sidecars"] == [str(out / "a.kie.json")]
        assert answer.value["continuations"] == [str(out / "a.mp3")]
        assert f"1 of them holds {ALONE} it behind what it continues (its song, or the" in answer.err
        assert (out / "a.kie.json").read_bytes() == wanted.read_bytes()
        assert [path.name for path in out.glob("*.kie.json")] == ["a.kie.json"]

    (folder / "b.kie.json").unlink()
    for name, track in (("a", {"duration": 0.9}), ("b", {"duration": 1.0}), ("é #%", {"duration": 1.1})):
        sidecar(folder, name, name=f"{name}.mp3", track=track)  # its length tells; it was cut at 1.0
    answer = terminal(*words, "--json")
    assert (answer.code, answer.value["taken"]) == (8, [str(out / "a.kie.json")])
    assert answer.value["sidecars"] == [str(out / "b.kie.json"), str(out / "é #%.kie.json")]
    assert f"2 of them hold {ALONE} each behind what it continues (its song, or the" in answer.err
    assert "a.kie.json: another file has that name; give another --out" in answer.err
    assert json.loads((out / "a.kie.json").read_text())["verdict"] == measured["verdict"]

    sidecar(folder, "a", name="a.wav", **measured)  # is of another file
    sidecar(folder, "b", name="b.mp3", track={"duration": 1.0}, verdict={"kind": "unclear"})
    answer = terminal(*words[:-1], str(tmp_path / "new"), "--json")
    assert (answer.code, len(answer.value["sidecars"]), answer.value["continuations"]) == (0, 3, [])
    assert "continuation" not in answer.err


def test_the_folder_may_have_moved(terminal: Terminal, folder: Path, tmp_path: Path) -> None:
    """It is the one that is given, or that the verdicts name, or in which they lie."""
    other = tmp_path / "other"  # a folder without a report
    other.mkdir()
    (other / "a.mp3").write_text("private")
    for directory, words, place in (
        ("/nowhere", (), folder),
        (str(other), (), folder),
        (7, (), folder),
        ("a\0b", (), folder),
        ("takes", (str(folder),), tmp_path),
    ):
        verdicts = exported(place / "verdicts.json", ["a.mp3"], directory=directory)
        answer = terminal("select", *words, "--from", str(verdicts), "--out", str(tmp_path / "best"))
        assert (answer.code, (tmp_path / "best" / "a.mp3").read_text()) == (0, "a.mp3")
        (tmp_path / "best" / "a.mp3").unlink()


def test_takes_that_were_never_judged_are_not_copied(terminal: Terminal, folder: Path, tmp_path: Path) -> None:
    """Two batches of the same songs give their files the same names; the ids of their tracks tell them apart."""
    for name in ("a", "b"):
        sidecar(folder, name, name=f"{name}.mp3")
    verdicts, out = tmp_path / "verdicts.json", tmp_path / "best"
    words = ("select", str(folder), "--from", str(verdicts), "--out", str(out))

    def judge(*tracks: object) -> None:
        files = ("a.mp3", "b.mp3", "é #%.mp3")  # the last has no sidecar
        takes = [{"file": file, "verdict": "keep", "track": track} for file, track in zip(files, tracks, strict=True)]
        verdicts.write_text(json.dumps({"format": 1, "takes": [*takes, {"file": "b.mp3", "track": "other"}]}))

    for tracks, said in (
        (("other", "id-b", "x"), f"{folder} holds other takes than those that were judged: a.mp3; nothing was copied"),
        (("other", "more", "x"), "that were judged: a.mp3 and 1 more; nothing was copied"),
    ):
        judge(*tracks)
        answer = terminal(*words)
        assert (answer.code, out.exists()) == (2, False)
        assert said in answer.err
        assert "give the folder in whose report the verdicts were given" in answer.err
    judge("id-a", None, "x")
    assert (terminal(*words).code, len(list(out.glob("*.mp3")))) == (0, 3)
    judge("id-a", "other", "x")
    sidecar(folder, "b", name="b.wav")  # is of another file
    assert terminal(*words[:-1], str(tmp_path / "new")).code == 0


def test_what_is_missing_or_taken_is_named_and_the_rest_copied(
    terminal: Terminal, folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "best"
    out.mkdir()
    (out / "a.mp3").write_text("mine")
    (out / "b.mp3").mkdir()
    gone = [f"gone-{number}.mp3" for number in range(11)]
    verdicts = exported(folder / "verdicts.json", ["a.mp3", "b.mp3", *gone, ".", "é #%.mp3"])
    answer = terminal("select", "--from", str(verdicts), "--out", str(out), "--json")
    assert answer.code == 8
    assert f"gone-9.mp3 and 2 more: not in {folder}; give the folder of the report" in answer.err
    assert "a.mp3, b.mp3: another file has that name" in answer.err
    assert {name: len(answer.value[name]) for name in ("copied", "present", "missing", "taken")} == {
        "copied": 1,
        "present": 0,
        "missing": 12,
        "taken": 2,
    }
    assert ((out / "a.mp3").read_text(), (out / "é #%.mp3").exists()) == ("mine", True)
    assert "a.mp3 (kept, not copied): lovely <bridge> ?\n" in (out / "notes.txt").read_text()

    (folder / "é #%.mp3").unlink()
    again = terminal("select", "--from", str(verdicts), "--out", str(tmp_path / "new"), "--json")
    assert (again.code, again.value["notes"], len(again.value["copied"])) == (8, str(tmp_path / "new" / "notes.txt"), 2)
    for name in ("a.mp3", "b.mp3"):
        (folder / name).unlink()
    none = terminal("select", "--from", str(verdicts), "--out", str(tmp_path / "none"), "--json")
    assert (none.code, none.value["notes"], (tmp_path / "none").exists()) == (8, None, False)


def test_a_full_disk_leaves_nothing(
    terminal: Terminal, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "dont_write_bytecode", True)  # or what is imported meanwhile is cut off for good
    (folder / "a.mp3").write_bytes(bytes(2000))
    verdicts = exported(folder / "verdicts.json", ["a.mp3"])
    limits, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        answer = terminal("select", "--from", str(verdicts), "--out", str(tmp_path / "best"))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert (answer.code, answer.err) == (8, "error: the disk refused: File too large; make room or give access\n")
    assert not list((tmp_path / "best").iterdir())


@pytest.mark.parametrize("name", ["../secret.mp3", "{tmp_path}/secret.mp3", "link.mp3", "up/secret.mp3"])
def test_no_path_leads_out_of_the_folder(terminal: Terminal, folder: Path, tmp_path: Path, name: str) -> None:
    (folder / "link.mp3").symlink_to(tmp_path / "secret.mp3")
    (folder / "up").symlink_to(tmp_path)
    verdicts = exported(folder / "verdicts.json", ["a.mp3", name.format(tmp_path=tmp_path)])
    answer = terminal("select", "--from", str(verdicts), "--out", str(tmp_path / "best"))
    assert answer.code == 2
    assert "leads out of" in answer.err
    assert not (tmp_path / "best").exists()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "is not there: give the file that the report has exported"),
        (b"\xff", "holds no verdicts"),
        (b"[]", "holds no verdicts"),
        (b"[" * 100_000, "holds no verdicts"),
        ({"takes": 3}, "holds no verdicts"),
        ({"takes": [], "format": 2}, "is of another version: write the report anew"),
        ({"takes": [3]}, "take 1 names no file"),
        ({"takes": [{"file": "a.mp3"}, {"file": "a\0.mp3"}]}, "take 2 names no file"),
        ({"takes": [{"file": "\ud800.mp3", "verdict": "keep"}]}, "take 1 names no file"),
        ({"takes": [{"file": "a.mp3"}]}, "keeps nothing: mark takes in the report"),
    ],
)
def test_no_verdicts(terminal: Terminal, folder: Path, content: Any, said: str) -> None:
    verdicts = folder / "verdicts.json"
    if content is not None:
        verdicts.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    answer = terminal("select", "--from", str(verdicts), "--out", str(folder / "best"))
    assert answer.code == 2
    assert said in answer.err
    assert not (folder / "best").exists()


def test_no_folder(terminal: Terminal, folder: Path) -> None:
    verdicts = exported(folder / "verdicts.json", ["a.mp3"])
    answer = terminal("select", str(folder / "a.mp3"), "--from", str(verdicts), "--out", str(folder / "best"))
    assert answer.code == 2
    assert "is no folder: give the folder of the report" in answer.err
    out = folder / "a.mp3" / "best"
    answer = terminal("select", "--from", str(verdicts), "--out", str(out))
    assert answer.code == 8
    assert f"error: {out} cannot be written: " in answer.err
    assert "nothing was copied" in answer.err
