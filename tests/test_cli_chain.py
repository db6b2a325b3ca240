"""``--until``: what is shown, asked and paid, what stays when the process dies, and the one file at the end."""

from __future__ import annotations

import importlib.util
import json
import re
import wave
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

import av
import pytest
from command_line import Answer, Terminal, served, short_song

from kie_async import emulator, files
from kie_async.emulator import Fault
from kie_async.testing import EmulatorHandle

TITLED = ("--style", "folk", "--title", "Longer", "--instrumental")


@pytest.fixture
def service(monkeypatch: pytest.MonkeyPatch) -> Iterator[EmulatorHandle]:
    with served(monkeypatch, goes_on=(2.0, 4.0)) as handle:
        yield handle


@pytest.fixture
def continuing(monkeypatch: pytest.MonkeyPatch) -> Iterator[EmulatorHandle]:
    with served(monkeypatch, goes_on=(3.0, 6.0), answers="continuation") as handle:
        yield handle


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("songs") / "my song.wav"
    path.write_bytes(emulator.demo_song())
    return path


@pytest.fixture
def song(tmp_path: Path) -> Path:
    return short_song(tmp_path / "song.wav")


def made(answer: Answer) -> list[str]:
    """The files that make the song, on stdout."""
    return [Path(line).name for line in answer.out.splitlines()]


def takes(answer: Answer) -> list[str]:
    """The takes that are new."""
    return [Path(path).name for path in re.findall(r"^take [12](?: \(\S+\))?: (.+)$", answer.err, re.MULTILINE)]


# ---------------------------------------------------------------- how it goes


def test_a_song_is_extended_on_the_built_in_emulator(terminal: Terminal, demo: Path, tmp_path: Path) -> None:
    words = ("upload-extend", str(demo), "--until", "1:00", "--emulate", "--out", str(tmp_path / "new"), "--trim")
    answer = terminal(*words, *TITLED, virtual=True)
    assert answer.code == 0, answer.err
    assert "your song (0:25.40) is extended until 1:00, by 10 new steps at most" in answer.err
    assert re.search(
        r"take 2 of 2 holds the whole song; the song lasts 1:0.*; your song is cut at 0:2\S+$", answer.err, re.MULTILINE
    )
    assert re.search(r"^take 2 \(1:0\S+\): ", answer.err, re.MULTILINE)
    assert len(takes(answer)) == 2
    [trimmed] = made(answer)
    assert trimmed.endswith("-1-60s.mp3")
    file = re.escape(str(tmp_path / "new" / trimmed))
    assert re.search(
        rf"^done: the song lasts 1:0\S+, 1 step, 12 credits; your song, cut to 1:00: {file}$", answer.err, re.MULTILINE
    )
    assert files.measure(tmp_path / "new" / trimmed) == pytest.approx(60, abs=0.1)
    assert len(list((tmp_path / "new").glob("*.kie.json"))) == 2
    again = terminal(*words[:-1], *TITLED, virtual=True)  # the emulator is gone, and its tasks too
    assert again.code == 0, again.err
    assert len(list((tmp_path / "new").glob("*.kie.json"))) == 4
    assert not list((tmp_path / "new").glob("*.sqlite*"))


def test_a_journal_that_is_given_keeps_what_was_emulated(terminal: Terminal, song: Path, tmp_path: Path) -> None:
    words = ("upload-extend", str(song), "--until", "4", "--emulate", "--out", str(tmp_path), "--json", *TITLED)
    values = [terminal(*words, "--journal", str(tmp_path / "a.sqlite"), virtual=True).value for _ in range(2)]
    assert {value["end"] for value in values} == {"reached"}
    assert len({step["task_id"] for value in values for step in value["steps"]}) == 2


def test_the_same_command_pays_for_nothing_twice(
    terminal: Terminal, service: EmulatorHandle, song: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ("upload-extend", str(song), "--before-end", "0.5", "--out", "new", "--json", *TITLED)
    first = terminal(*words, "--until", "8", "--yes")
    assert first.code == 0, first.err
    value = first.value
    assert value["plan"] == {
        "key": value["key"], "new_steps": 10, "credits": 120, "source_duration": 2.0, "unused_steps": 0
    }  # fmt: skip
    assert [step["cut"] for step in value["steps"]] == [1.5, 5.0]
    assert (value["length"], value["end"], value["credits"]) == (9.0, "reached", 24)
    assert "joined" not in value
    assert value["files"] == [path for step in value["steps"] for path in step["files"]]
    assert set(value["files"]) == {str(path) for path in (tmp_path / "new").glob("*.mp3")}
    assert [charge.body["continueAt"] for charge in service.ledger] == [1.5, 5.0]
    again = terminal(*words, "--until", "8", "--yes").value
    assert again["steps"] == value["steps"]
    assert (again["plan"]["new_steps"], again["plan"]["credits"]) == (0, 0)
    finished = terminal(*words, "--until", "8")
    assert finished.code == 0, finished.err
    assert finished.value["steps"] == value["steps"]
    take = Path(value["files"][3]).relative_to(tmp_path)
    assert value["song"] == again["song"] == finished.value["song"] == str(tmp_path / take)
    said = f"nothing to do: the song lasts 0:09 already, 2 steps, 24 credits; your song: {take}"
    assert [line for line in finished.err.splitlines() if line] == [said]
    longer = terminal(*words, "--until", "11", "--yes", "--max-credits", "40")
    assert (longer.code, longer.value["plan"]["credits"], longer.value["length"]) == (0, 12, 12.5)
    capped = terminal(*words, "--until", "20", "--max-credits", "40")
    assert (capped.code, capped.value["plan"]["new_steps"]) == (4, 0)
    left = "36 of --max-credits 40 are spent, the next step costs 12: not sent; raise --max-credits; so far the song"
    assert left in capped.value["error"]["message"]
    assert len(service.ledger) == 3
    listed = terminal("jobs", "list", "--out", "new", "--json").value
    assert [(job["state"], job["song"]) for job in listed["jobs"]] == [("delivered", "song")] * 3
    for command in (("list",), ("results",), ("show", f"{value['key']}-2")):
        shown = terminal("jobs", *command, "--out", "new").out
        assert re.search(rf"{value['key']}-2(  \S+)?  song  |^song: song$", shown, re.MULTILINE), shown
    take = tmp_path / "new" / value["steps"][0]["files"][0].rpartition("/")[2]
    take.unlink()
    assert terminal(*words, "--until", "8", "--yes").code == 0
    assert take.exists()


def test_a_track_is_extended_and_another_choice_shares_the_first_step(
    terminal: Terminal, service: EmulatorHandle, tmp_path: Path
) -> None:
    words = ("extend", "a1", "--model", "V5", "--out", str(tmp_path), "--duration", "20", "--before-end", "1", *TITLED)
    answer = terminal(*words, "--until", "22", "--choose", "first", "--yes")
    assert answer.code == 0, answer.err
    assert "on record" not in answer.err
    assert [charge.body["continueAt"] for charge in service.ledger] == [19.0, 20.0]
    nothing = terminal(*words, "--until", "0:20", "--trim")
    assert (nothing.code, nothing.out) == (0, "")
    assert "nothing to do: the song lasts 0:20 already\n" in nothing.err
    shared = terminal(*words, "--until", "22")  # of which the longest take is long enough
    assert (shared.code, made(shared), len(service.ledger)) == (0, [takes(answer)[1]], 2)
    longer = terminal(*words, "--until", "25", "--yes")
    assert "the song so far (0:23) is extended until 0:25, by 9 new steps at most" in longer.err
    assert (
        "1 step on record with --choose first (12 credits) cannot be used: the first step is shared, and" in longer.err
    )
    assert (longer.code, len(service.ledger)) == (0, 3)
    plan = terminal(*words, "--until", "25", "--json").value["plan"]
    assert (plan["unused_steps"], plan["new_steps"]) == (0, 0)


def test_what_is_known_of_a_track_is_found_beside_it(
    terminal: Terminal, service: EmulatorHandle, demo: Path, tmp_path: Path
) -> None:
    out = ("--out", str(tmp_path), "--json")
    made_before = terminal("upload-extend", str(demo), "--at", "5", *TITLED, *out).value["tracks"][1]
    answer = terminal("extend", made_before["id"], "--until", "8", *TITLED, *out)  # it lasts 5 + 4 s
    assert (answer.code, answer.value["steps"], answer.value["length"]) == (0, [], 9.0)
    longer = terminal("extend", made_before["id"], "--until", "9.8", "--yes", *TITLED, *out)
    assert (longer.value["steps"][0]["cut"], longer.value["length"]) == (5.5, 9.5)
    assert "your song fades out from about 0:06: it is cut before that" in longer.err
    assert [charge.body["model"] for charge in service.ledger] == ["V5", "V5"]
    unknown = terminal("extend", "a1", "--until", "12", "--yes", *TITLED, *out)
    assert (unknown.code, unknown.value["error"]["problems"][0]["option"]) == (2, "--model")
    says = f"no sidecar (NAME.kie.json) in {tmp_path} tells the model and the length of track a1: give the --out DIR"
    assert f"{says} that holds it, or --model and --duration\n" in unknown.err
    elsewhere = ("--model", "V5", "--yes", "--json", "--out", str(tmp_path / "elsewhere"))
    model = terminal("extend", made_before["id"], "--until", "9.2", *elsewhere)
    assert "holds it, or --duration\n" in model.err
    assert model.value["steps"][0]["cut"] is None
    assert "; the service has chosen where your song is cut\n" in model.err
    assert "NAME.kie.json" not in longer.err
    known = terminal("extend", made_before["id"], "--until", "8", "--duration", "9", *TITLED, *out)
    assert (known.code, "NAME.kie.json" in known.err) == (0, False)


# ---------------------------------------------------------------- one file


def test_continuations_are_joined_to_their_song(
    terminal: Terminal, continuing: EmulatorHandle, demo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    tags = {"title": "Mine", "album_artist": "Me", "composer": "I", "disc": "1/2"}
    with av.open(str(demo)) as read, av.open("my song.flac", "w") as write:
        write.metadata.update(tags)
        stream = write.add_stream("flac", rate=read.streams.audio[0].rate)
        for frame in chain(read.decode(audio=0), (None,)):
            write.mux(stream.encode(frame))
    new = str(tmp_path / "new")
    words = ("upload-extend", "my song.flac", "--at", "25.3", "--until", "33", "--out", new, "--yes", *TITLED)
    continuing.add_faults(lost_take := Fault("code", on="download", code=403, nth=4))
    assert terminal(*words).code == 8
    continuing.remove_faults(lost_take)
    capped = terminal(*words[:4], "--until", "40", *words[6:], "--max-credits", "24")
    # The step on record is longer than its cut: whether it is the whole song, and added nothing, only its sound tells.
    assert "the song so far is extended until 0:40, by 0 new steps at most\n" in capped.err
    assert "24 of --max-credits 24 are spent, the next step costs 12" in capped.err
    answer = terminal(*words, "--trim")
    assert answer.code == 0, answer.err
    says = "holds the continuation alone; the song lasts 0:33.80; the take before is cut at 0:02.50, for it fades out"
    assert f"step 2: take 2 of 2 {says} from about 0:03\n" in capped.err
    assert re.search(r"at 0:25.30 it gets [0-9.]+ LU louder .*: listen there", answer.err)  # after the song's own end
    [trimmed], [joined] = made(answer), [path.name for path in Path(new).glob("*-joined.*")]
    assert (joined[-14:], trimmed[-11:]) == ("-2-joined.flac", "-2-33s.flac")
    assert files.measure(tmp_path / "new" / joined) == pytest.approx(33.8, abs=0.2)
    assert files.measure(tmp_path / "new" / trimmed) == pytest.approx(33, abs=0.001)
    assert sorted(path.name for path in (tmp_path / "new").glob(".*")) == []
    for name in (joined, trimmed):
        with av.open(str(tmp_path / "new" / name)) as file:
            assert tags.items() <= {key.lower(): value for key, value in file.metadata.items()}.items()
    sidecars = [json.loads(path.read_bytes()) for path in (tmp_path / "new").glob("*-1-*.kie.json")]
    assert [facts["verdict"]["kind"] for facts in sidecars] == ["continuation"] * 2
    assert [facts["source"]["path"] for facts in sidecars] == [
        f"{tmp_path}/my song.flac"
    ] * 2  # wherever a report is made
    finished = [word for word in words if word != "--yes"]
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "numpy" else find(name))
    again = terminal(*finished, "--trim")  # without the extra, what was found holds
    assert (again.out, "told by its length" in again.err) == (answer.out, False)
    assert len(continuing.ledger) == 2


def test_the_file_of_a_track_tells_what_continues_it(
    terminal: Terminal, continuing: EmulatorHandle, demo: Path, tmp_path: Path
) -> None:
    out = ("--out", str(tmp_path), "--json")
    track = terminal("upload-extend", str(demo), "--at", "20", *TITLED, *out).value["tracks"][1]
    answer = terminal("extend", track["id"], "--until", "8", "--yes", *TITLED, *out)
    value = answer.value
    assert f"{track['id']}.mp3 holds the continuation alone: lengths are counted from its beginning" in answer.err
    assert ([step["holds"] for step in value["steps"]], value["length"]) == (["continuation"], 8.5)
    assert files.measure(Path(value["joined"])) == pytest.approx(8.5, abs=0.3)
    assert len(continuing.ledger) == 2  # by their lengths alone, its takes would be whole, and another step needed


@pytest.mark.usefixtures("continuing")
def test_without_the_song_there_is_nothing_to_join_to(terminal: Terminal, tmp_path: Path) -> None:
    words = ("extend", "a1", "--model", "V5", "--duration", "20", "--until", "22", "--out", str(tmp_path), "--yes")
    answer = terminal(*words, *TITLED)
    assert answer.code == 0
    assert "the song is not here: join it with 'kie-async join'" in answer.err
    assert made(answer) == takes(answer)[1:]  # what continues it


def test_a_whole_song_is_joined_only_if_that_is_asked_for(
    terminal: Terminal, service: EmulatorHandle, demo: Path, tmp_path: Path
) -> None:
    words = ("upload-extend", str(demo), "--out", str(tmp_path / "new"), "--yes", *TITLED, "--until")
    first = terminal(*words, "27")
    assert made(first) == takes(first)[1:]
    assert re.search(r"done: the song lasts 0:\S+ \(0:27 was asked; --trim cuts it to that\), 1 step, 12 c", first.err)
    joined = terminal(*words, "27", "--join", "--json")
    value = joined.value
    assert "nothing to extend: the song lasts" in joined.err
    assert files.measure(Path(value["joined"])) == pytest.approx(value["length"], abs=0.3)
    nearly = terminal(*words, str(value["length"] + 0.4), "--trim")
    assert re.search(
        r"nothing to extend: .* already \(\S+ was asked; for less than 0.5 s no step is paid\), 1 step, 12 credits; "
        r"your song, faded out at its end: \S+s.mp3$", nearly.err, re.MULTILINE
    )  # fmt: skip
    assert files.measure(Path(nearly.out.splitlines()[-1])) == pytest.approx(value["length"], abs=0.1)
    assert "nothing to do: " in terminal(*words, str(value["length"] + 0.4), "--trim").err  # its file is there
    of_joined = terminal(*words, str(value["length"] + 0.4), "--trim", "--join")
    assert ("nothing to extend: " in of_joined.err, of_joined.out == nearly.out) == (True, False)
    assert len(service.ledger) == 1


@pytest.fixture
def fading(demo: Path, tmp_path: Path) -> Path:
    """The song, silent after 20 of 23 s."""
    path = tmp_path / "song.wav"
    with wave.open(str(demo), "rb") as read, wave.open(str(path), "wb") as write:
        write.setparams(read.getparams())
        write.writeframes(read.readframes(20 * read.getframerate()) + bytes(3 * read.getframerate() * 2))
    return path


def test_a_song_is_cut_before_it_fades_out_and_its_steps_are_found_without_the_extra(
    terminal: Terminal, service: EmulatorHandle, fading: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ("upload-extend", str(fading), "--out", str(tmp_path / "new"), "--until", "24", *TITLED)
    told = "your song fades out from about 0:20: it is cut before that, at 0:19.50 (--before-end 0.5 keeps the fade)"
    asked = terminal(*words)
    assert (asked.code, told in asked.err, service.ledger) == (2, True, [])
    service.add_faults(Fault("failed", nth=2))
    failed = terminal(*words, "--yes")
    assert (failed.code, told in failed.err, len(service.ledger)) == (3, True, 2)
    [retry] = [line for line in failed.err.splitlines() if "kie-async jobs retry" in line]
    assert terminal(*retry.rpartition("kie-async ")[2].split(), "--yes").code == 0
    find = importlib.util.find_spec
    with monkeypatch.context() as without:  # the extra
        without.setattr(importlib.util, "find_spec", lambda name: None if name == "numpy" else find(name))
        value = terminal(*words, "--yes", "--json").value
    assert [step["cut"] for step in value["steps"]] == [charge.body["continueAt"] for charge in service.ledger[:2]]
    capped = terminal(*words[:4], "--until", "40", *TITLED, "--max-credits", "36", "--yes")
    assert "until 0:40, by 0 new steps at most" in capped.err
    assert "36 of --max-credits 36 are spent, the next step costs 12: not sent" in capped.err
    again = terminal(*words, "--yes", "--json")
    assert (again.value["steps"][0]["cut"], again.value["steps"][0]["fades_from"]) == (19.5, 20.0)
    assert ["uploadUrl" in charge.body for charge in service.ledger] == [True, False, False]
    once = terminal("upload-extend", str(fading), "--at", "22", "--no-wait").err
    told = "your song fades out from about 0:20, and --at cuts it later, at 0:22: --at 0:19.50 is before the fade\n"
    assert once.index("is kept to 0:22") < once.index(told) < once.index("submitted")


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (
            ("--at", "0:22"),
            "your song fades out from about 0:20, and --at cuts it later, at 0:22: --at 0:19.50 is before the fade.",
        ),
        (("--at", "0:20.80"), "your song fades out from about 0:20, and --at cuts it later, at 0:20.80: --at 0:19.50"),
        (("--at", "0:19"), ""),
        (("--before-end", "0.5"), ""),
        (("--at", "0:22", "--duration", "23"), ""),
        (("--duration", "23"), ""),
    ],
)
def test_a_cut_that_is_given_stays_and_so_does_that_of_what_cannot_be_decoded(
    options: tuple[str, ...], says: str, terminal: Terminal, service: EmulatorHandle, fading: Path
) -> None:
    if "--duration" in options:
        fading.write_bytes(b"no audio")
    out = ("--out", str(fading.parent / "new"))
    answer = terminal("upload-extend", str(fading), "--until", "40", *out, *options)
    assert (answer.code, service.ledger) == (2, [])
    assert says in answer.err
    kept = f", kept to {options[1]}, is extended" if "--at" in options else " is extended"
    assert (
        f"your song (0:23){kept} until 0:40, by 10 new steps at most\nnote: the service may extend a take" in answer.err
    )
    assert "it will cost 120 credits at most" in answer.err
    assert ("fades out" in answer.err) == bool(says)


def test_where_the_sound_tells_nothing_the_length_decides(
    terminal: Terminal, song: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with served(monkeypatch, goes_on=(2.0, 4.0), check_sources=False):
        words = ("upload-extend", "--out", str(tmp_path / "new"), "--yes", *TITLED)
        assert terminal(*words, str(song), "--until", "5").code == 0
        answer = terminal(*words, str(song), "--until", "32", "--duration", "30", "--at", "29")
        assert answer.code == 0
        assert "holds is told by its length alone: --at: is 0:29, but the source lasts 0:02" in answer.err
        assert "holds the whole song; the song lasts 0:33" in answer.err


# ---------------------------------------------------------------- what is asked, and what goes wrong


def test_that_a_song_is_cut_off_is_said_once_before_it_is_paid(
    terminal: Terminal, service: EmulatorHandle, demo: Path, tmp_path: Path
) -> None:
    song, data = tmp_path / "song.wav", demo.read_bytes()
    song.write_bytes(data[: len(data) // 2])
    words = ("upload-extend", str(song), "--out", str(tmp_path / "new"), *TITLED)
    until, once = ("--until", "14", "--yes"), ("--at", "40%")
    for more, after in ((until[:2], "it will cost 120 credits"), (until, "submitted"), (once, "is kept to 0:05")):
        answer = terminal(*words, *more)
        says = "note: song.wav is cut off: its header says 0:25.40, its audio ends at about 0:13\n"
        assert answer.err.count("cut off") == answer.err.partition(after)[0].count(says) == 1
    assert "cut off" not in terminal(*words, *until).err  # it is made already
    song.write_bytes(data[:60_000])
    for more in (until, once):
        answer = terminal(*words, *more)
        assert (answer.code, len(service.ledger)) == (2, 2)
        assert "less than 2 s of it are left: get the whole file" in answer.err


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--until", "x"), "--until: 'x' is no length; write 4:00, 4m or 240"),
        (("--until", "75%"), "--until: '75%' is no length"),
        (("--until", "9m"), "--until is 9:00; V5 makes songs of at most 8:00"),
        (("--until", "9", "--no-wait"), "--until waits for the takes of each step: leave --no-wait out"),
        (("--until", "9"), "it will cost 120 credits at most (12 for each step that it takes): nothing was done; "),
        (("--until", "9", "--max-steps", "1"), "it will cost 12 credits at most: nothing was done; if that is meant, "),
        (("--trim",), "--trim is given without --until"),
        (("--max-steps", "3"), "--max-steps is given without --until"),
    ],
)
def test_wrong_use_spends_nothing(
    terminal: Terminal, service: EmulatorHandle, song: Path, words: tuple[str, ...], says: str
) -> None:
    answer = terminal("upload-extend", str(song), *words, "--out", str(song.with_name("new")))
    assert (answer.code, len(service.ledger)) == (2, 0)
    assert says in answer.err


def test_until_needs_a_folder(terminal: Terminal, song: Path) -> None:
    answer = terminal("upload-extend", str(song), "--until", "9")
    assert answer.code == 2
    assert "--until needs a folder for the takes: give --out DIR" in answer.err


def test_join_needs_the_song(terminal: Terminal) -> None:
    answer = terminal("extend", "a1", "--model", "V5", "--join")
    assert answer.code == 2
    assert "--join needs the song as a file" in answer.err


def test_a_song_that_stays_too_short_says_why(
    terminal: Terminal, song: Path, tmp_path: Path, service: EmulatorHandle
) -> None:
    words = ("--until=12", "--before-end", "0.5", "--out", str(tmp_path), "--yes")
    answer = terminal("upload-extend", "--max-steps=1", str(song), *words)
    assert answer.code == 3
    assert "error: --max-steps 1 is reached at 0:05.50 of 0:12" in answer.err
    assert f"your song so far: {tmp_path / takes(answer)[1]}" in answer.err
    assert made(answer) == takes(answer)[1:]
    says = "to go on, and pay for new steps alone, with more steps:\n  kie-async "
    typed = answer.err.partition(says)[2].split()
    assert typed == ["upload-extend", str(song), "--max-steps", "2", *words]
    second = terminal(*typed)
    assert second.code == 3
    more = terminal(*second.err.partition(says)[2].split())
    assert more.code == 0
    assert all(name.startswith("song-") for name in takes(more))
    assert "with --style and --title (and --prompt or --instrumental) the cut is certain" in more.err
    assert "own parameters" not in more.err
    assert "jobs retry" not in answer.err
    assert len(service.ledger) == 3


@pytest.mark.parametrize(("before_end", "lost"), [((), "fade-out"), (("--before-end", "0.5"), "end")])
def test_a_step_that_added_nothing_is_not_followed_by_another(
    before_end: tuple[str, ...], lost: str, terminal: Terminal, fading: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with served(monkeypatch, goes_on=(0.2, 0.4)) as service:
        words = ("upload-extend", str(fading), "--until", "50", "--out", str(fading.parent / "new"), *before_end)
        for more in (("--yes",), ()):  # the second has nothing to ask
            answer = terminal(*words, *more)
            assert answer.code == 3
            says = f"its last step added no more than the {lost} that it cut off (before it, the song lasted 0:23)"
            assert f"{says}; another would be paid in vain" in answer.err
        assert "nothing to do" not in answer.err
        assert len(service.ledger) == 1


def test_a_take_whose_length_is_not_told_is_not_extended(
    terminal: Terminal, song: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with served(monkeypatch, malformed_jobs=False) as service:
        service.add_faults(Fault("shape", shape="urls"))
        words = ("--until", "9", "--route", "jobs", "--out", str(tmp_path / "new"), "--yes")
        answer = terminal("upload-extend", str(song), *words)
        assert (answer.code, len(service.ledger)) == (3, 1)
        assert "error: the song lasts an unknown time, and not 0:09" in answer.err
        assert "the service does not say how long the last take is: listen to it, and go on with 'extend'" in answer.err


def test_a_step_that_fails_can_be_had_after_all(
    terminal: Terminal, service: EmulatorHandle, song: Path, tmp_path: Path
) -> None:
    words = ("upload-extend", str(song), "--until", "8", "--out", str(tmp_path / "new"), "--yes")
    service.add_faults(Fault("failed", nth=2))
    failed = terminal(*words)
    assert failed.code == 3
    assert (len(takes(failed)), failed.out) == (2, "")
    assert [failed.err.count(note) for note in ("the cut is certain", "is documented for")] == [1, 0]
    assert failed.err.index("the cut is certain") < failed.err.index("it will cost")
    assert "step 2: " in failed.err
    [retry] = [line for line in failed.err.splitlines() if "kie-async jobs retry" in line]
    assert f"  kie-async {' '.join(words)}" in failed.err
    conflict = terminal(*words, "--json")
    assert (conflict.code, len(conflict.value["steps"]), len(conflict.value["files"])) == (8, 1, 2)
    assert (conflict.err.count("kie-async jobs"), retry in conflict.err) == (1, True)
    ends = [json.loads(line) for line in (tmp_path / "new" / "results.jsonl").read_bytes().splitlines()]
    assert [(end["state"], end["task_id"]) for end in ends] == [
        (state, charge.task_id) for state, charge in zip(["delivered", "failed"], service.ledger, strict=True)
    ]
    assert terminal(*retry.rpartition("kie-async ")[2].split(), "--yes").code == 0
    assert terminal(*words).code == 0
    assert len(service.ledger) == 3


def test_a_step_that_was_given_up_is_not_made(
    terminal: Terminal, service: EmulatorHandle, song: Path, tmp_path: Path
) -> None:
    out = ("--out", str(tmp_path / "new"))
    words = ("upload-extend", str(song), "--until", "5", "--yes", "--timeout", "0.2", *out)
    service.add_faults(Fault("lost", nth=1))
    unknown = terminal(*words, "--json")
    assert unknown.code == 7
    key = unknown.value["plan"]["key"] + "-1"
    again = terminal(*words)
    assert (again.code, again.err.count("jobs resolve"), again.err.count("https://kie.ai/logs")) == (7, 1, 1)
    assert "so it is not sent again); no step is made yet\n" in again.err
    assert terminal("jobs", "resolve", key, "--give-up", *out).code == 0
    answer = terminal(*words)
    assert (answer.code, len(service.ledger)) == (8, 1)
    assert "if it was given up: another --out DIR, and --journal if one is given, begins anew" in answer.err
    assert "0 done, 0 failed, 1 abandoned of 1 job" in terminal("jobs", "list", *out).err


def test_a_journal_that_is_gone_is_noticed(
    terminal: Terminal, service: EmulatorHandle, song: Path, tmp_path: Path
) -> None:
    words = ("upload-extend", str(song), "--until", "5", "--out", str(tmp_path / "new"), "--yes")
    assert terminal(*words).code == 0
    for path in (tmp_path / "new").glob("kie-async.sqlite*"):
        path.unlink()
    answer = terminal(*words)
    assert answer.code == 8
    says = "would be paid again. Put the journal back; or go on from a take that is there, by its track.id in its"
    assert f"{says} .kie.json: kie-async extend ID --until LENGTH --out {tmp_path}/new (task " in answer.err
    assert "kie-async jobs" not in answer.err
    assert len(service.ledger) == 1
