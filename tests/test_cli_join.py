"""The command that joins a song and what continues it, and ``upload-extend --join``."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
from hashlib import sha256
from pathlib import Path
from random import Random
from typing import Any

import anyio
import numpy as np
import pytest
from command_line import Terminal, served, short_song

from benchmarks._audio_cases import RATE, made_up_song, write_wav
from kie_async import audio, emulator, files
from kie_async.testing import EmulatorHandle


def noise(path: Path, seconds: float, seed: int = 1, level: float = 0.1, *, silent: float = 0.0) -> str:
    sound = level * np.random.default_rng(seed).standard_normal(round(seconds * RATE))
    sound[: round(silent * RATE)] = 0.0
    write_wav(path, sound.astype(np.float32))
    return str(path)


def test_a_continuation_is_joined(terminal: Terminal, tmp_path: Path) -> None:
    song, new = noise(tmp_path / "song.wav", 8, 1, 0.4), noise(tmp_path / "new.wav", 62, 2, 0.3, silent=0.2)
    out = tmp_path / "far" / "longer.flac"
    answer = terminal("join", song, new, "--at", "0:06", "--as", "continuation", "--out", str(out))
    assert (answer.code, answer.out) == (0, f"{out}\n")
    assert files.measure(out) == pytest.approx(68.0, abs=0.001)
    assert "joined as the continuation alone; it lasts 1:08, the new part begins at 0:06" in answer.err
    assert re.search(r"^from 0:06 on it was made \d\.\d dB louder, towards the level before$", answer.err, re.MULTILINE)
    assert " dB quieter, so that nothing clips" in answer.err
    assert "at 0:06 it is silent for 1" in answer.err


def test_a_join_as_json(terminal: Terminal, tmp_path: Path) -> None:
    song, new = noise(tmp_path / "song.wav", 8), noise(tmp_path / "new.wav", 12)
    value = terminal("join", song, new, "--at", "75%", "--out", str(tmp_path / "longer.wav"), "--json").value
    seam = value.pop("seam")
    assert value == {
        "path": str(tmp_path / "longer.wav"),
        "kind": "whole",
        "confidence": pytest.approx(1.0, abs=0.2),
        "duration": pytest.approx(12.0, abs=0.001),
        "gain": pytest.approx(0.0, abs=0.01),
        "turned_down": 0.0,
        "at": 6.0,
    }
    assert seam == {
        "at": pytest.approx(8.0, abs=0.01),  # until where it follows the song
        "gap": 0.0,
        "click": pytest.approx(0.6, abs=0.3),
        "step": pytest.approx(0.0, abs=1.0),
        "usual_step": pytest.approx(0.5, abs=0.4),
        "flags": [],
    }


def test_what_is_unclear_is_not_joined(terminal: Terminal, tmp_path: Path) -> None:
    song, new = str(short_song(tmp_path / "song.wav")), noise(tmp_path / "new.wav", 4)
    words = ("join", song, new, "--at", "1", "--out", str(tmp_path / "longer.wav"))
    answer = terminal(*words)
    assert (answer.code, answer.out) == (1, "")
    assert "As the whole song, its new part begins at 0:01, and the joined file lasts 0:04" in answer.err
    assert answer.err.splitlines()[-1] == "listen to it, and say --as whole or --as continuation"
    error = terminal(*words, "--json").value["error"]
    assert error["type"] == "UnclearError"
    assert error["durations"] == {"whole": pytest.approx(4.0), "continuation": pytest.approx(5.0)}
    assert not (tmp_path / "longer.wav").exists()
    assert terminal(*words, "--as", "whole").code == 0


def test_of_a_cut_that_is_not_where_the_track_leaves_the_song_the_right_one_is_said(
    terminal: Terminal, tmp_path: Path
) -> None:
    song, new, out = tmp_path / "song.wav", tmp_path / "new.wav", tmp_path / "longer.wav"
    sound, other = (made_up_song(Random(seed), 24.0) for seed in (1, 2))
    write_wav(song, sound)
    write_wav(new, np.concatenate([sound[: 18 * RATE], other]))
    answer = terminal("join", str(song), str(new), "--at", "0:20", "--out", str(out))
    assert (answer.code, answer.out, out.exists()) == (1, "", False)
    remedy = re.search(r"^give --at (\S+); or else listen to it, and say --as whole", answer.err, re.MULTILINE)
    assert remedy, answer.err
    assert re.fullmatch(r"0:1(8|8\.0\d|7\.9\d?)", remedy[1])
    assert terminal("join", str(song), str(new), "--at", remedy[1], "--out", str(out)).code == 0
    out.unlink()
    sidecar(new, {"continue_at": 20.0})
    answer = terminal("join", str(song), str(new), "--out", str(out))
    assert f"give --at {remedy[1]} --as whole; or else listen" in answer.err
    assert terminal("join", str(song), str(new), "--at", remedy[1], "--as", "whole", "--out", str(out)).code == 0
    out.unlink()
    new.with_name("new.kie.json").unlink()
    answer = terminal("join", str(song), str(new), "--at", "0:10", "--out", str(out))
    words = "and not until 0:10, the cut that was given: it was joined there"
    said = re.search(rf"^the track follows the song until (0:1[78]\S*), {words}$", answer.err, re.MULTILINE)
    assert said, answer.err
    assert f"the new part begins at {said[1]}\n" in answer.err


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (("--out", "longer.ogg"), "--out is longer.ogg; give a file whose name ends in .wav, .flac or .mp3"),
        (("--out", "new.wav/longer.wav"), "new.wav cannot be written: "),
        (("--at", "-70s"), "--at is '-70s'; {song} lasts 0:08: give a position in the song"),
        (("--at", "0"), "--at is '0'; give a position in the song"),
        (("--at", "soon"), "--at is 'soon'; give a position in the song"),
        (("--at", "9"), "--at is 0:09, and "),
        (("--as", "whole"), "--as is whole, but "),
    ],
)
def test_what_cannot_be_used_is_named_by_its_option(
    terminal: Terminal, tmp_path: Path, given: tuple[str, str], says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    song, new = noise(tmp_path / "song.wav", 8), noise(tmp_path / "new.wav", 2)
    taken = tmp_path / "longer.wav"
    taken.touch()
    options = {"--at": "6", "--out": str(taken if "soon" in given else tmp_path / "free.wav")} | dict([given])
    answer = terminal("join", song, new, *(word for option in options.items() for word in option))
    assert answer.code == (8 if "written" in says else 2)
    assert f"error: {says.format(song=song)}" in answer.err
    assert ("joining" in answer.err) == (not {"9", "whole"}.isdisjoint(given))  # what only the audio shows
    assert "nothing was sent" not in answer.err


# ---------------------------------------------------------------- what a sidecar says


def sidecar(take: Path, facts: dict[str, Any]) -> None:
    take.with_name(f"{take.stem}.kie.json").write_text(json.dumps(facts))


@pytest.mark.parametrize(
    ("facts", "given", "says"),
    [
        ({"continue_at": 6.0}, (), ""),
        ({"request": {"continue_at": 6.0}}, ("--at", "5.6"), ""),
        ({"continue_at": 6.0}, ("--at", "4"), "--at is 0:04, but new.kie.json says that the song was cut at 0:06: "),
        ({"continue_at": 6.0}, ("--at", "50%"), "--at is 0:04, but "),
        ({"continue_at": 6.0}, ("--at", "soon"), "--at is 'soon'; give a position in the song"),
        ({"continue_at": 6.0}, ("--at", "4", "--as", "continuation"), ""),
        ({"source": {"path": "/far/song.wav"}}, ("--at", "6"), ""),
        ({"source": {"path": "/far/other.wav"}}, ("--at", "6"), "new.wav was made of /far/other.wav: give that; or, "),
        ({"source": {"path": "/far/song.wav", "sha256": "00"}}, ("--at", "6"), "was made of /far/song.wav: give that"),
        ({"request": {"audio_id": "t1", "continue_at": 6}}, (), ""),
        ({"request": {"audio_id": "t2", "continue_at": 6}}, (), "new.wav was made of track t2: give that"),
        ({"request": {"audio_id": "t3", "continue_at": 6}}, (), "new.wav was made of third.wav: give that"),
        ({"source": {"path": "/far/other.wav"}, "continue_at": 6}, ("--as", "continuation"), ""),
        ({"continue_at": 4.0, "file": {"name": "new.mp3"}}, ("--at", "6"), ""),
        ({"continue_at": 6.0, "file": {"name": "new.mp3"}}, (), "--at is missing, and no new.kie.json says where "),
        ({"continue_at": "soon", "source": [], "request": None}, (), "--at is missing"),
    ],
)
def test_the_sidecar_of_a_take_says_its_cut_and_its_song(
    terminal: Terminal, tmp_path: Path, facts: dict[str, Any], given: tuple[str, ...], says: str
) -> None:
    song, new, out = tmp_path / "song.wav", tmp_path / "new.wav", tmp_path / "longer.wav"
    noise(song, 8, 1)
    noise(new, 3, 2)
    if not says:
        answer = terminal("join", str(song), str(new), "--at", "6", "--out", str(tmp_path / "first.wav"))
        assert answer.err.endswith("no new.kie.json tells whether the take is of this song: listen\n")
    sidecar(song, {"track": {"id": "t1"}})
    sidecar(new, facts)
    sidecar(tmp_path / "third.wav", {"track": {"id": "t3"}, "file": {"name": "third.wav"}})
    answer = terminal("join", str(song), str(new), *given, "--out", str(out))
    assert (answer.code, out.exists()) == ((2, False) if says else (0, True)), answer.err
    assert says in answer.err
    assert "Traceback" not in answer.err


def test_a_take_of_another_track_is_joined_only_to_that_or_to_what_it_holds(terminal: Terminal, tmp_path: Path) -> None:
    song, take, new, out = (tmp_path / name for name in ("song.wav", "take.wav", "new.wav", "longer.wav"))
    noise(song, 20, 1)
    noise(take, 10, 2)
    noise(new, 30, 3)
    sidecar(new, {"request": {"audio_id": "t1", "continue_at": 8.0}})

    def joined(source: Path, *options: str) -> tuple[int, str]:
        out.unlink(missing_ok=True)
        answer = terminal("join", str(source), str(new), *options, "--out", str(out))
        assert out.exists() == (not answer.code)
        return answer.code, answer.err

    code, said = joined(song)  # nothing of the song is in it
    assert code == 2
    assert f"error: SOURCE is {song}, but new.kie.json says that new.wav was made of track t1: give that; or, " in said
    assert joined(song, "--at", "0:08.2")[0] == 2
    assert joined(song, "--as", "continuation")[0] == 0
    noise(new, 30, 1)
    assert joined(song)[0] == 0  # all of the song is in it
    noise(new, 30, 3)
    sidecar(
        take, {"track": {"id": "t1"}, "file": {"name": "take.wav", "sha256": sha256(take.read_bytes()).hexdigest()}}
    )
    code, said = joined(song)
    assert code == 2
    assert "new.wav was made of take.wav: give that" in said
    moved = tmp_path / "moved.wav"
    shutil.copy(take, moved)
    assert [joined(take)[0], joined(moved)[0]] == [0, 0]
    take.with_name("take.kie.json").unlink()
    short = noise(tmp_path / "short.wav", 3)
    code, said = joined(Path(short))
    assert code == 2
    assert f"error: --at is 0:08, and {short} ends at 0:03; give a position before its end" in said
    assert "--at is what new.kie.json says: give the song that new.wav was made of, or --at" in said
    sidecar(new, {"request": {"audio_id": "t1"}})  # the service has chosen the cut
    assert "--at is 'soon'; give a position in the song" in joined(song, "--at", "soon")[1]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("song.wav", "nix.mp3"), "RESULT: there is no file 'nix.mp3'"),
        (("nix.mp3", "song.wav"), "SOURCE: there is no file 'nix.mp3'"),
        (("song.wav", "."), "RESULT: '.' is a directory; give one file"),
        (("song.wav", "song.wav"), "--at is missing, and no song.kie.json says where the song was cut: give --at"),
        (("song.wav", "song.wav", "--at", ""), "--at is ''; give a position in the song"),
    ],
)
def test_what_is_no_file_or_no_cut_is_named(
    terminal: Terminal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...], says: str
) -> None:
    monkeypatch.chdir(tmp_path)
    noise(tmp_path / "song.wav", 8)
    answer = terminal("join", *words, "--out", "longer.wav")
    assert (answer.code, answer.out) == (2, "")
    assert f"error: {says}" in answer.err


# ---------------------------------------------------------------- upload-extend --join


@pytest.mark.parametrize("answers", ["whole", "continuation"])
def test_each_track_is_joined_to_its_song(
    terminal: Terminal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answers: str
) -> None:
    song = tmp_path / "song.wav"
    song.write_bytes(emulator.demo_song())
    with served(monkeypatch, answers=answers, goes_on=(2.0, 2.0)):
        answer = terminal("upload-extend", str(song), "--at", "-10s", "--out", str(tmp_path / "new"), "--join")
    assert answer.code == 0, answer.err
    takes = [Path(line) for line in answer.out.splitlines()]
    assert [path.name for path in takes[2:]] == [f"{path.stem}-joined.wav" for path in takes[:2]]
    for joined in takes[2:]:
        assert files.measure(joined) == pytest.approx(17.4, abs=0.1)
    words = (
        "joined as the whole song (confidence "
        if answers == "whole"
        else "the take holds nothing of the song: taken as "
    )
    assert answer.err.count(words) == 2
    again, moved = tmp_path / "again.wav", tmp_path / "moved.wav"
    shutil.copy(song, moved)  # the same by its content
    assert terminal("join", str(moved), str(takes[0]), "--out", str(again)).code == 0
    assert again.read_bytes() == takes[2].read_bytes()
    again.unlink()
    answer = terminal("join", str(takes[0]), str(song), "--at", "0:05", "--out", str(again))
    assert (answer.code, again.exists()) == (2, False)
    assert f"{takes[0].stem}.kie.json says that SOURCE was made of RESULT: give song.wav first" in answer.err
    answer = terminal("join", str(takes[1]), str(takes[0]), "--at", "0:15.4", "--out", str(again))
    assert (answer.code, again.exists()) == (2, False)
    assert f"{takes[0].name} was made of {song}" in answer.err


@pytest.mark.usefixtures("service")
def test_what_is_unclear_stays_as_it_is_and_is_named(terminal: Terminal, tmp_path: Path) -> None:
    song = short_song(tmp_path / "song.aiff")  # a wav by its content
    words = ("upload-extend", str(song), "--at", "1", "--out", str(tmp_path / "new"), "--join")
    answer = terminal(*words)
    assert answer.code == 1
    assert len(list((tmp_path / "new").glob("*.mp3"))) == 2
    assert "listen, and join each; if it holds only what follows, --as continuation:\n  kie-async join " in answer.err
    commands = [shlex.split(line) for line in answer.err.splitlines() if line.startswith("  kie-async join ")]
    assert [terminal(*command[1:]).code for command in commands] == [0, 0]
    assert len(list((tmp_path / "new").glob("*-joined.mp3"))) == 2
    value = terminal(*words, "--json").value
    assert (value["error"]["charged"], value["joined"], len(value["files"])) == ("yes", [], 2)


@pytest.mark.usefixtures("service")
def test_what_cannot_be_joined_is_paid_and_kept(terminal: Terminal, tmp_path: Path) -> None:
    song = str(short_song(tmp_path / "song.wav"))
    answer = terminal("upload-extend", song, "--at", "0.05s", "--out", str(tmp_path / "new"), "--join", "--json")
    assert answer.code == 2
    error = answer.value["error"]
    assert (error["type"], error["charged"], len(answer.value["files"])) == ("AudioError", "yes", 2)
    assert "song.wav has only 0.090 s to join: give at least 0.1 s" in error["message"]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("http://127.0.0.1:9/song.mp3", "--out", "new"), "--join needs the song as a file"),
        (("song.wav",), "--join needs the tracks as files: give --out"),
        (("song.wav", "--out", "new", "--no-wait"), "--join needs the tracks as files: give --out"),
    ],
)
def test_a_join_that_cannot_be_is_refused_before_anything_is_sent(
    terminal: Terminal, service: EmulatorHandle, tmp_path: Path, words: tuple[str, ...], says: str
) -> None:
    song = str(short_song(tmp_path / "song.wav"))
    answer = terminal("upload-extend", *(song if word == "song.wav" else word for word in words), "--at", "1", "--join")
    assert answer.code == 2
    assert says in answer.err
    assert not service.arrivals


@pytest.mark.parametrize("until", [(), ("--until", "5", "--yes")])
@pytest.mark.usefixtures("service")
def test_sigterm_stops_a_join(
    until: tuple[str, ...], terminal: Terminal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def join(*_: object, **__: object) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        await anyio.sleep_forever()

    monkeypatch.setattr(audio, "join", join)
    song = str(short_song(tmp_path / "song.wav"))
    answer = terminal("upload-extend", song, "--at", "1.9", "--join", "--out", str(tmp_path / "new"), *until)
    assert answer.code == 130
    assert "stopped by SIGTERM" in answer.err
    says = "go on with the same command" if until else "it is made and paid: do not send it again; kie-async join"
    assert says in answer.err
