"""``report``: what it makes of a folder, however odd its files are."""

from __future__ import annotations

import base64
import importlib.util
import json
import math
import os
import re
import tempfile
from hashlib import sha256
from pathlib import Path
from random import Random
from typing import Any
from urllib.parse import unquote

import audio_files
import numpy as np
import pytest
from command_line import Terminal, short_song
from result_folder import data_of, line, sidecar, tone

import kie_async as kie
from benchmarks._audio_cases import RATE, made_up_song, write_wav
from kie_async.audio import join
from kie_async.emulator import Fault
from kie_async.report import ReportError, write_report
from kie_async.report._report import lane_start
from kie_async.report._rows import Take
from kie_async.testing import EmulatorHandle

HOSTILE = """</script><img src=x onerror=alert(1)>\u2028'"&{{data}}"""
ODD_NAME = "100% #1? 'a' \"b\" <c>&d;:é日本.wav"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "out"
    path.mkdir()
    return path


def reported(terminal: Terminal, folder: Path) -> Any:
    """The rows of a folder's report."""
    answer = terminal("report", str(folder))
    assert (answer.code, answer.out) == (0, f"{folder / 'report.html'}\n"), answer.err
    return data_of(folder / "report.html")["jobs"]


def levels(lane: dict[str, Any]) -> bytes:
    return base64.b64decode(lane["peaks"])


# ---------------------------------------------------------------- with a batch


def batch_words(tmp_path: Path) -> list[str]:
    songs = tmp_path / "songs"
    songs.mkdir()
    short_song(songs / ODD_NAME)
    return ["batch", str(songs), "--at", "1", "--report", "--out", str(tmp_path / "out")]


@pytest.mark.usefixtures("service")
def test_a_batch_writes_its_report(terminal: Terminal, tmp_path: Path) -> None:
    answer = terminal(*batch_words(tmp_path), "--yes")
    assert answer.code == 0
    assert "report.html: 3 files read\n" in answer.err  # also when the disk is quick
    assert f"compare the takes: {tmp_path / 'out' / 'report.html'}" in answer.err
    assert len(answer.out.splitlines()) == 2  # the files alone
    (job,) = data_of(tmp_path / "out" / "report.html")["jobs"]
    assert (job["state"], job["source"], job["cut"]) == ("delivered", ODD_NAME, 1.0)
    source, *takes = job["lanes"]
    assert source["address"].startswith("../songs/100%25%20%231%3F")
    assert [take["take"] for take in takes] == [1, 2]
    for lane in job["lanes"]:
        assert (tmp_path / "out" / unquote(lane["address"])).is_file()
        assert lane["seconds"] > 1
        assert levels(lane)


def test_a_batch_that_fails_has_a_report_too(terminal: Terminal, service: EmulatorHandle, tmp_path: Path) -> None:
    service.add_faults(Fault("failed"))
    answer = terminal(*batch_words(tmp_path), "--yes", "--json")
    assert answer.code == 3
    assert answer.value["report"] == str(tmp_path / "out" / "report.html")
    (job,) = data_of(tmp_path / "out" / "report.html")["jobs"]
    assert (job["state"], job["lanes"]) == ("failed", [])
    assert "TaskFailedError" in job["error"]


@pytest.mark.parametrize(("faults", "code"), [((), 8), ((Fault("failed"),), 3)])
def test_the_error_of_the_batch_goes_before_that_of_the_report(
    terminal: Terminal, service: EmulatorHandle, tmp_path: Path, faults: tuple[Fault, ...], code: int
) -> None:
    service.add_faults(*faults)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "report.html").write_text("mine")
    assert terminal(*batch_words(tmp_path), "--yes").code == code


@pytest.mark.parametrize("option", ["--dry-run", "--enqueue"])
def test_a_batch_without_files_has_no_report(terminal: Terminal, tmp_path: Path, option: str) -> None:
    answer = terminal(*batch_words(tmp_path), option)
    assert answer.code == 2
    assert "--report needs the files" in answer.err


# ---------------------------------------------------------------- the page


def test_nothing_can_become_markup_or_run(terminal: Terminal, folder: Path) -> None:
    odd = folder.rename(folder.with_name("<b>{{data}} é'\""))
    tone(odd / ODD_NAME)
    sidecar(odd, "a", name=ODD_NAME, key=HOSTILE, request={"title": HOSTILE}, track={"title": HOSTILE, "number": 1})
    line(odd, "b", state="failed", title=HOSTILE, error={"message": HOSTILE, "code": 413, "charged": "yes"})
    jobs = reported(terminal, odd)
    assert [job["title"] for job in jobs] == [HOSTILE, HOSTILE]
    assert jobs[0]["key"] == HOSTILE
    assert jobs[1]["error"] == f"{HOSTILE} (code 413, charged: yes)"
    assert unquote(jobs[0]["lanes"][0]["address"]) == ODD_NAME
    assert re.search("[#?:\"'<> ]", jobs[0]["lanes"][0]["address"]) is None

    page = (odd / "report.html").read_text("utf-8")
    assert "<img" not in page
    scripts = re.findall("<script>(.*?)</script>", page, re.DOTALL)
    assert page.count("</script>") == len(scripts) + 1
    assert "<title>&lt;b&gt;{{data}} &#233;&#x27;&quot; " in page
    (policy,) = re.findall('http-equiv="Content-Security-Policy" content="(.*)"', page)
    styles = re.findall("<style>(.*?)</style>", page, re.DOTALL)
    for contents, directive in ((scripts, "script-src"), (styles, "style-src")):
        digests = [base64.b64encode(sha256(content.encode()).digest()).decode() for content in contents]
        assert " ".join([directive, *(f"'sha256-{digest}'" for digest in digests)]) + ";" in policy
    assert policy.startswith("default-src 'none'")
    assert "unsafe" not in policy
    assert re.findall(r"https?://", page) == []


@pytest.mark.parametrize(
    ("take", "cut", "seconds", "expected"),
    [
        ({}, None, 5.0, (0.0, "")),
        ({"reading": "whole"}, None, 5.0, (0.0, "whole")),
        ({}, 4.0, 5.0, (0.0, "")),
        ({}, 4.0, 4.0, (4.0, "continuation")),  # too short to be the whole
        ({}, 4.0, 0.0, (0.0, "")),  # of unknown length
        ({"reading": "whole", "seam": 4.25}, 4.0, 9.0, (-0.25, "whole")),
        ({"reading": "continuation"}, 4.0, 9.0, (4.0, "continuation")),
        ({"reading": "continuation", "seam": 0.5}, 4.0, 9.0, (3.5, "continuation")),
        ({"reading": "unclear"}, 4.0, 9.0, (0.0, "unclear")),
    ],
)
def test_takes_stand_where_they_are_the_same_as_their_source(
    take: dict[str, Any], cut: float | None, seconds: float, expected: tuple[float, str]
) -> None:
    assert lane_start(Take(number=1, name="a", is_there=True, **take), cut, seconds) == expected


# ---------------------------------------------------------------- the folder


def test_what_is_odd_or_missing_is_shown_as_it_is(terminal: Terminal, folder: Path, tmp_path: Path) -> None:
    tone(tmp_path / "outside.wav")
    sidecar(folder, "out", key="1", name="../outside.wav")
    sidecar(folder, "gone", key="2", number=2)
    tone(folder / "moved.wav")
    sidecar(folder, "moved", key="3", file=None, request=7, track=[], verdict={"kind": "no", "confidence": "x"})
    tone(folder / "half.wav")
    sidecar(
        folder,
        "half",
        key=5,
        task_id=None,
        track={"number": True, "duration": float("nan")},
        request={"continue_at": "50%"},
    )
    sidecar(folder, "first", key="6", request={"continue_at": "0:01", "source_duration": 2.0})
    sidecar(folder, "second", key="6", request={"continue_at": "50%", "source_duration": 3.0})
    (folder / "folder.wav").mkdir()
    (folder / "link.wav").symlink_to(tmp_path / "outside.wav")
    (folder / "._half.wav").write_bytes(b"another system's notes")
    (folder / "torn.kie.json").write_text("{")
    (folder / "list.kie.json").write_text("[]")
    jobs = {job["key"]: job for job in reported(terminal, folder)}
    assert set(jobs) == {"1", "2", "3", "6", "half.kie.json"}
    assert (jobs["1"]["lanes"][0]["address"], jobs["1"]["lanes"][0]["name"]) == (None, "out")
    assert (jobs["2"]["lanes"][0]["address"], jobs["2"]["lanes"][0]["take"]) == (None, 2)
    assert (jobs["2"]["lanes"][0]["name"], jobs["2"]["lanes"][0]["seconds"]) == ("gone.wav", 2.0)
    assert (jobs["3"]["lanes"][0]["address"], jobs["3"]["cut"], jobs["3"]["title"]) == ("moved.wav", None, "3")
    assert (jobs["3"]["lanes"][0]["reading"], jobs["3"]["lanes"][0]["confidence"]) == ("", None)
    assert [(lane["take"], lane["name"]) for lane in jobs["6"]["lanes"]] == [(1, "first.wav"), (2, "second.wav")]
    assert jobs["6"]["cut"] == 1.0
    assert jobs["half.kie.json"]["cut"] is None
    assert jobs["half.kie.json"]["lanes"][0]["take"] == 1


def test_the_last_line_of_a_job_counts(terminal: Terminal, folder: Path) -> None:
    line(folder, state="failed", error={"type": "TaskFailedError", "message": "m"})
    results = folder / "results.jsonl"
    results.write_text(results.read_text() + '{"torn\n[1]\n{"key": 3}\n')
    line(folder, title="Song", model="V5", files=["a.wav", "../b.wav", 3, "c.wav"])
    line(folder, "lost", state="failed")
    tone(folder / "a.wav")
    tone(folder / "own.wav")
    jobs = reported(terminal, folder)
    assert [(job["title"], job["state"], job["error"]) for job in jobs] == [
        ("lost", "failed", "nothing is known of the reason"),
        ("Song", "delivered", ""),
        ("own", "", ""),
    ]
    assert [(lane["name"], lane["address"]) for lane in jobs[1]["lanes"]] == [("a.wav", "a.wav"), ("c.wav", None)]


def test_the_source_is_played_from_where_it_is(
    terminal: Terminal, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "songs").mkdir()
    size = tone(tmp_path / "songs" / "a.wav").stat().st_size
    tone(folder / "own.wav")
    (tmp_path / "loop").symlink_to("loop")
    sources: dict[str, Any] = {
        "absolute": {"source": {"path": str(tmp_path / "songs" / "a.wav"), "size": size}},
        "from here": {"source": {"path": "songs/a.wav", "size": size}},
        "from the folder": {"source": {"path": "own.wav"}},
        "changed": {"source": {"path": "songs/a.wav", "size": size - 1}},
        "gone": {"source": {"path": "songs/b.wav"}},
        "looping": {"source": {"path": str(tmp_path / "loop")}},
        "no path": {"source": {"path": "a\0b"}},
        "an address": {"request": {"source": "https://songs.example/a.wav"}},
        "no batch": {"request": {"source": "songs/a.wav"}},
        "a take": {"request": {"audio_id": "id-absolute"}},
        "a track elsewhere": {"request": {"audio_id": "id-elsewhere"}},
    }
    for key, more in sources.items():
        tone(folder / f"{key}.wav", 0.1)
        sidecar(folder, key, key=key, **{"request": {}, **more})
    found = {job["key"]: (job["source"], job["lanes"][0]["address"]) for job in reported(terminal, folder)}
    assert found == {
        "absolute": ("a.wav", "../songs/a.wav"),
        "from here": ("a.wav", "../songs/a.wav"),
        "from the folder": ("own.wav", "own.wav"),
        "changed": ("a.wav", "changed.wav"),
        "gone": ("b.wav", "gone.wav"),
        "looping": ("loop", "looping.wav"),
        "no path": ("a\0b", "no%20path.wav"),
        "an address": ("a.wav", "an%20address.wav"),
        "no batch": ("a.wav", "../songs/a.wav"),
        "a take": ("absolute.wav", "absolute.wav"),
        "a track elsewhere": ("id-elsewhere", "a%20track%20elsewhere.wav"),
    }


def test_the_steps_of_a_chain_stand_in_their_order(terminal: Terminal, folder: Path) -> None:
    for key, request in {
        "k-10": {"audio_id": "id-k-2"},
        "k-2": {"audio_id": "id-k-1"},
        "k-1": {"source": "Song 9.mp3"},
        "other": {"title": "song 10"},
        "round": {"audio_id": "id-round"},
    }.items():
        tone(folder / f"{key}.wav", 0.1)
        sidecar(folder, key, key=key, request=request)
    for name in ("Song 9-k-10-joined", "Song 9-k-10-12.5s", "song-k-3-joined"):  # two finished songs of the chain
        tone(folder / f"{name}.wav", 0.1)
    found = [(job["title"], job["step"], job["key"]) for job in reported(terminal, folder)]
    assert found == [
        ("round", 1, "round"),
        ("Song 9", 0, "Song 9-k-10-12.5s.wav"),
        ("Song 9", 0, "Song 9-k-10-joined.wav"),
        ("Song 9", 1, "k-1"),
        ("Song 9", 2, "k-2"),
        ("Song 9", 3, "k-10"),
        ("song 10", 1, "other"),
        ("song-k-3-joined", 1, "song-k-3-joined.wav"),
    ]


def chain(  # noqa: PLR0913  # what there is to choose
    folder: Path,
    key: str,
    steps: dict[int, dict[str, Any]],
    *,
    chosen: int = 2,
    end: str = "joined",
    audio_id: str = "",
) -> None:
    """Write the sidecars of a chain whose steps have two takes of 20 and 30 s, and its finished song, without sound."""
    for number, facts in steps.items():
        if number > 1:
            audio_id = f"id-{key}-{number - 1}-{chosen}"
        source = {"source": f"{key[0]}.mp3"} if not audio_id else {"audio_id": audio_id}
        for take, seconds in ((1, 20.0), (2, 30.0)):
            stem = f"{key}-{number}-{take}"
            (folder / f"{stem}.wav").touch()
            track = {"number": take, "id": f"id-{stem}", "title": "Extended", "duration": seconds}
            request = {"continue_at": facts.get("cut")} | source
            verdict = {"kind": facts.get("kind"), "seam": facts.get("seam")}
            sidecar(
                folder, stem, key=f"{key}-{number}", task_id=stem[:-2], request=request, track=track, verdict=verdict
            )
    if end:
        (folder / f"{key[0]}-{key}-{max(steps)}-{end}.wav").touch()


def test_the_seams_of_a_chain_are_marked_in_its_song(terminal: Terminal, folder: Path) -> None:
    whole, rest = {"kind": "whole"}, {"kind": "continuation"}
    chain(folder, "a" * 24, {1: {"cut": 10, **rest}, 2: {"cut": 6, **rest}, 3: {"cut": 4, **rest}})
    chain(folder, "b" * 24, {1: {"cut": 10, "seam": 10.25, **whole}, 2: {"cut": 15, **whole}}, end="20.5s")
    chain(folder, "c" * 24, {1: {"cut": 10, **whole}, 2: {"cut": 19, **rest}, 3: {"cut": 7, **whole}})
    chain(folder, "d" * 24, {1: {"cut": 40}, 2: {"cut": 12}, 3: {"cut": 21}}, chosen=1)  # told by their lengths
    chain(folder, "e" * 24, {1: {"cut": 10}, 3: {"cut": 21}})
    chain(folder, "f" * 24, {1: {"cut": 10}, 2: {}})
    tone(folder / f"b-{'b' * 24}-2-12s.wav", 12.0)
    chain(folder, "1" * 24, {1: {"cut": 28, **whole}, 2: {"cut": 25, **rest}}, audio_id=f"id-{'a' * 24}-1-2")
    jobs = reported(terminal, folder)
    steps = [(job["step"], job["steps"], job["key"][-3:]) for job in jobs if job["title"] == "a" and job["step"]]
    assert steps == [(1, 3, "a-1"), (2, 3, "1-1"), (2, 3, "a-2"), (3, 3, "1-2"), (3, 3, "a-3")]
    songs = [job for job in jobs if job["step"] == 0]
    assert [(song["title"], song["steps"], song["seams"], song["notice"]) for song in songs] == [
        ("a", 2, [25], ""),  # the second step has cut off the seam of the first; those of another chain are not its own
        ("a", 3, [10, 16, 20], ""),
        ("b", 2, [10.25], ""),  # what was trimmed off has no seam
        ("b", 2, [10.25, 15], ""),
        ("c", 3, [10, 19, 26], ""),
        ("d", 3, [40, 52, 61], ""),
        ("Extended", 3, [], "its seams are not known: the .kie.json of step 2 is not here"),
        ("f", 2, [], "its seams are not known: nothing says where step 2 begins"),
    ]


def test_the_take_that_is_the_song_of_a_chain_is_marked(terminal: Terminal, folder: Path) -> None:
    whole: dict[int, dict[str, Any]] = {1: {"cut": 10, "kind": "whole"}, 2: {"cut": 15}}
    chain(folder, "a" * 24, whole, end="")
    chain(folder, "b" * 24, whole, end="", chosen=1)
    chain(folder, "c" * 24, whole)  # its song is a file of its own
    chain(folder, "d" * 24, {1: {"cut": 10}, 2: {"cut": 10, "kind": "continuation"}}, end="")
    chain(folder, "e" * 24, {1: {"cut": 10}}, end="")
    chain(folder, "a8" * 12, whole, end="")  # of the same song
    line(folder, "a" * 24 + "-3", state="failed")
    line(folder, "9" * 24 + "-1", state="failed")
    jobs = reported(terminal, folder)
    assert [lane["name"] for job in jobs for lane in job["lanes"] if lane.get("song")] == [
        "a8" * 12 + "-2-2.wav",
        "a" * 24 + "-2-2.wav",
        "b" * 24 + "-2-1.wav",
    ]
    assert [(job["key"][-4:], job["step"]) for job in jobs if job["title"] == "a"] == [
        ("a8-1", 1),
        ("a8-2", 2),
        ("aa-1", 1),
        ("aa-2", 2),
        ("aa-3", 3),
    ]
    failed = [(job["title"], job["step"], job["steps"]) for job in jobs if job["state"] == "failed"]
    assert failed == [("9" * 24 + "-1", 1, 1), ("a", 3, 3)]  # a step that made nothing is known by its key


def test_a_song_has_the_name_that_says_most(terminal: Terminal, folder: Path) -> None:
    """That of the source's file, before the service's, before an id; a take's title is shown if another has another."""
    for key, request, titles in (
        ("a", {"source": "My Song.mp3"}, ("Extended", "Extended")),
        ("b", {"source": "My Song.mp3", "title": "Asked"}, ("Asked", "Other")),
        ("c", {"audio_id": "5c79"}, ("Called", "Called")),
        ("d", {"audio_id": "5c79"}, (None, None)),
        ("e", {}, ("Made", "Made")),
    ):
        for number, title in enumerate(titles, 1):
            sidecar(folder, f"{key}-{number}", key=key, request=request, track={"number": number, "title": title})
    line(folder, "f")
    jobs = {job["key"]: job for job in reported(terminal, folder)}
    assert {key: (job["title"], [lane["title"] for lane in job["lanes"]]) for key, job in jobs.items()} == {
        "a": ("My Song", ["", ""]),
        "b": ("Asked", ["Asked", "Other"]),
        "c": ("Called", ["", ""]),
        "d": ("5c79", ["", ""]),
        "e": ("Made", ["", ""]),
        "f": ("f", []),
    }


def test_the_takes_of_a_single_command_are_of_one_job(terminal: Terminal, folder: Path, tmp_path: Path) -> None:
    song = tone(tmp_path / "song.wav")
    more: dict[str, Any] = {"key": None, "request": None, "continue_at": 1.5, "source": {"path": str(song)}}
    for number in (1, 2):
        tone(folder / f"take-{number}.wav")
        sidecar(folder, f"take-{number}", number, verdict={"kind": "whole", "confidence": 0.9, "seam": 1.75}, **more)
    (job,) = reported(terminal, folder)
    assert (job["key"], job["title"], job["cut"]) == ("5c79", "song", 1.5)
    found = [(lane["take"], lane["start"], lane.get("reading"), lane.get("confidence")) for lane in job["lanes"]]
    assert found == [(0, 0.0, None, None), (1, -0.25, "whole", 0.9), (2, -0.25, "whole", 0.9)]


# ---------------------------------------------------------------- waveforms


@pytest.mark.parametrize(
    ("shape", "highest"),
    [
        ({"width": 2}, 255),
        ({"channels": 2, "loudness": 0.5}, 127),
        ({"width": 1}, 252),
        ({"channels": 8}, 0),
    ],
)
def test_a_waveform_shows_how_loud_it_is(terminal: Terminal, folder: Path, shape: dict[str, Any], highest: int) -> None:
    tone(folder / "a.wav", 6.0, **shape)
    (lane,) = reported(terminal, folder)[0]["lanes"]
    found = levels(lane)
    assert max(found, default=0) == pytest.approx(highest, abs=2)
    assert lane["seconds"] == (6.0 if highest else 0.0)
    if highest:
        assert len(found) == 480
        assert max(found[:239]) == 0
        assert min(found[241:]) > highest * 0.9


def test_what_can_be_decoded_has_a_waveform(terminal: Terminal, folder: Path) -> None:
    whole = audio_files.mp3(2.0)
    for name, data in {
        "mp3.mp3": whole,
        "flac.flac": audio_files.flac(),
        "damaged.mp3": whole[:4000] + bytes(3000) + whole[7000:],
        "page.mp3": audio_files.HTML,
        "empty.wav": b"",
        "header.wav": b"RIFF\xff\xff\xff\xffWAVE" + bytes(100),
        "film.m4a": audio_files.silent_film(),
    }.items():
        (folder / name).write_bytes(data)
    tone(folder / "moment.wav", 0.005)
    found = {job["key"]: bool(job["lanes"][0]["peaks"]) for job in reported(terminal, folder)}
    assert {name for name, has_levels in found.items() if has_levels} == {"mp3.mp3", "flac.flac", "damaged.mp3"}


def test_only_what_has_changed_is_decoded_again(terminal: Terminal, folder: Path) -> None:
    kept = folder / ".kie-async-peaks.json"
    for name in ("a.wav", "b.wav"):
        tone(folder / name)
    first = reported(terminal, folder)
    cache = json.loads(kept.read_text())
    for entry in cache["files"].values():
        entry[2:] = [1.5, base64.b64encode(b"\x07").decode(), ""]
    kept.write_text(json.dumps(cache))
    os.utime(folder / "b.wav", (1, 1))
    assert [levels(job["lanes"][0]) == b"\x07" for job in reported(terminal, folder)] == [True, False]
    (folder / "a.wav").unlink()
    reported(terminal, folder)
    written = kept.stat().st_mtime_ns
    assert list(json.loads(kept.read_text())["files"]) == ["b.wav"]
    reported(terminal, folder)
    assert kept.stat().st_mtime_ns == written  # there was nothing new

    good = json.loads(kept.read_text())
    (entry,) = good["files"].values()
    for bad in ("", "[]", "{}", '{"format": 1, "files": {}}', '{"format": 2, "files": 3}'):
        kept.write_text(bad)
        assert reported(terminal, folder)[0]["lanes"] == first[1]["lanes"]
    for bad_entry in (
        None,
        entry[:4],
        [*entry[:2], "x", "!", ""],
        [*entry[:2], math.nan, *entry[3:]],
        [*entry[:3], "é", ""],
    ):
        kept.write_text(json.dumps({"format": 2, "files": {"b.wav": bad_entry}}))
        assert reported(terminal, folder)[0]["lanes"] == first[1]["lanes"]


# ---------------------------------------------------------------- levels


@pytest.mark.anyio
async def test_takes_are_as_loud_beside_their_source_as_they_would_be_joined(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    song, new = (np.float32(0.3) * made_up_song(Random(seed), seconds) for seed, seconds in ((1, 10.0), (2, 4.0)))
    song[: 3 * RATE] *= 2
    write_wav(tmp_path / "song.wav", song)
    more: dict[str, Any] = {"request": {"continue_at": 7.0}, "source": {"path": str(tmp_path / "song.wav")}}
    held, late = song[: 7 * RATE], 2 * new[: RATE * 3 // 2]
    muted = held * (np.arange(len(held)) >= 3 * RATE)
    for number, kind, seam, sound in (
        (1, "whole", 8.5, np.concatenate([late, held, new]) * np.float32(0.4)),
        (2, "continuation", 0.0, new * np.float32(0.3)),
        (3, "continuation", 0.0, new * np.float32(3.0)),
        (4, "whole", 7.0, np.concatenate([muted, new]) * np.float32(0.5)),
        (5, "whole", 7.0, held * np.float32(0.0)),
    ):
        write_wav(folder / f"{number}.wav", sound)
        sidecar(folder, str(number), number, verdict={"kind": kind, "seam": seam}, **more)
    await write_report(folder)
    (job,) = data_of(folder / "report.html")["jobs"]
    source, *takes, silent = job["lanes"]
    assert (source["gain"], silent["gain"]) == (0.0, None)
    for lane in takes:
        options: dict[str, Any] = {"at": 7.0, "kind": lane["reading"]}
        joined = await join(tmp_path / "song.wav", folder / lane["name"], out=tmp_path / lane["name"], **options)
        assert abs(joined.gain) > 1
        assert lane["gain"] == pytest.approx(joined.gain, abs=0.5)

    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "numpy" else find(name))
    await write_report(folder)  # of what is cached
    (job,) = data_of(folder / "report.html")["jobs"]
    assert [(lane["gain"], bool(lane["peaks"])) for lane in job["lanes"]] == [(None, True)] * 6


def test_takes_without_a_source_or_a_cut_are_as_loud_as_the_quietest(
    terminal: Terminal, folder: Path, tmp_path: Path
) -> None:
    song = tone(tmp_path / "song.wav", loudness=0.4)
    for number, loudness in enumerate((1.0, 0.5, 0.0), 1):
        tone(folder / f"a-{number}.wav", loudness=loudness, channels=number)
        sidecar(folder, f"a-{number}", number, key="a", task_id="a")
        tone(folder / f"b-{number}.wav", loudness=loudness)
        sidecar(folder, f"b-{number}", number, key="b", request={}, source={"path": str(song)})
    gains = {job["key"]: [lane["gain"] for lane in job["lanes"]] for job in reported(terminal, folder)}
    near = 0.4
    assert gains["a"] == [pytest.approx(-6.0, abs=near), pytest.approx(0.0, abs=near), None]
    assert gains["b"] == [0.0, pytest.approx(-8.0, abs=near), pytest.approx(-1.9, abs=near), None]


# ---------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("name", "code", "said"),
    [
        ("nowhere", 2, "nowhere is no folder: give the folder that holds the results"),
        ("out", 2, "holds no results: give the folder to which a batch has downloaded"),
        ("foreign", 8, "was not written by this command: move it away"),
        ("refused", 8, "the disk refused results.jsonl"),
        ("cached", 8, "the disk refused .kie-async-peaks.json: "),  # and not a name that nobody knows
    ],
)
def test_what_cannot_be_reported(  # noqa: PLR0913, PLR0917  # fixtures
    terminal: Terminal, folder: Path, tmp_path: Path, name: str, code: int, said: str
) -> None:
    for each in ("foreign", "refused", "cached"):
        (tmp_path / each).mkdir()
        tone(tmp_path / each / "a.wav")
    (tmp_path / "foreign" / "report.html").write_text("mine")
    (tmp_path / "refused" / "results.jsonl").mkdir()
    (tmp_path / "cached" / ".kie-async-peaks.json").mkdir()
    answer = terminal("report", str(tmp_path / name), "--json")
    assert answer.code == code
    assert said in answer.err
    assert answer.value["error"]["charged"] == "no"
    assert not list(folder.iterdir())


def test_a_folder_that_cannot_be_written_is_told_before_its_files_are_read(
    terminal: Terminal, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(**_options: object) -> None:
        raise PermissionError(13, "Permission denied", str(folder / "tmp1234"))

    tone(folder / "a.wav")
    monkeypatch.setattr(tempfile, "TemporaryFile", refuse)
    answer = terminal("report", str(folder))
    assert answer.code == 8
    assert f"error: {folder} cannot be written: Permission denied; give another directory" in answer.err
    assert "no report was written" in answer.err
    assert "files read" not in answer.err


@pytest.mark.anyio
async def test_in_a_program(folder: Path) -> None:
    with pytest.raises(ReportError, match="holds no results"):
        await write_report(folder)
    tone(folder / "a.wav")
    assert await write_report(str(folder)) == folder / "report.html"
    assert issubclass(ReportError, kie.KieError)
