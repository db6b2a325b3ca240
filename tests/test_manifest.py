"""Manifests: jobs from CSV, JSONL and folders, and every fault with its line before anything is spent."""

from __future__ import annotations

import asyncio
import csv
import io
import json
import os
import tracemalloc
import wave
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from opened_files import when_opened

from kie_async.batch import Manifest, ManifestSummary, read_manifest
from kie_async.errors import InvalidRequestError, KieError, ManifestError, RowProblem, StorageError
from kie_async.journal import Job
from kie_async.models import ExtendRequest, UploadExtendRequest

pytestmark = pytest.mark.anyio

OWN = {"model": "V5", "prompt": "la la", "style": "pop", "title": "Longer", "continue_at": "10"}


def song(path: Path, seconds: float = 20.0, sound: bytes = b"\x80") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(1)
        file.setframerate(8000)
        file.writeframes(sound * int(8000 * seconds))
    return path


def as_csv(rows: Sequence[Mapping[str, str]], delimiter: str = ",") -> str:
    text = io.StringIO()
    names = list(dict.fromkeys(name for row in rows for name in row))
    writer = csv.DictWriter(text, names, delimiter=delimiter, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def manifest(folder: Path, text: str | bytes, name: str = "songs.csv", **options: Any) -> Manifest:
    path = folder / name
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return read_manifest(path, **options)


async def jobs_of(made: Manifest) -> list[Job]:
    return [job async for job in made]


async def faults_of(made: Manifest) -> list[RowProblem]:
    with pytest.raises(ManifestError) as caught:
        await made.check()
    error = caught.value
    assert error.charged == "no"
    assert error.count >= len(error.faults) > 0
    assert str(error.faults[0]) in str(error)
    return list(error.faults)


# ---------------------------------------------------------------- what is right


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
async def test_a_table_becomes_jobs(delimiter: str, mark: str, tmp_path: Path) -> None:
    song(tmp_path / "in" / "a.wav")
    rows = [
        {"id": "one", "audio_id": "e231", **OWN},
        {"id": "two", "source": "in/a.wav", **OWN, "prompt": "", "instrumental": "Yes", "style_weight": "0.65"},
        {"id": "3", "source": "https://x.example/a.mp3", "model": "V5", "continue_at": "1:05"},
    ]
    made = manifest(tmp_path, mark + as_csv(rows, delimiter) + "\n , \n".replace(",", delimiter))
    plan = await made.check()
    assert plan == ManifestSummary(
        total=3, counts={("extend", "V5"): 1, ("upload_extend", "V5"): 2}, duplicates=0, credits=36.0
    )
    one, two, three = await jobs_of(made)
    own: dict[str, Any] = {**OWN, "continue_at": 10.0}
    assert one == attrs.evolve(one, key="one", request=ExtendRequest("e231", **own), source=None)
    path = str(tmp_path / "in" / "a.wav")
    assert two.request == UploadExtendRequest(
        path, **{**own, "prompt": None}, instrumental=True, style_weight=0.65, source_duration=20.0
    )
    assert two.source is not None
    assert (two.source.path, two.source.size, two.source.duration) == (path, Path(path).stat().st_size, 20.0)
    assert three.key == "3"
    assert three.request == UploadExtendRequest("https://x.example/a.mp3", model="V5", continue_at=65.0)


async def test_lines_of_json_become_jobs(tmp_path: Path) -> None:
    rows = [
        {"id": 7, "audio_id": "e231", **OWN, "continue_at": 10, "instrumental": False, "persona_id": None},
        {"audio_id": "e231", "model": "V5", "style_weight": ""},
    ]
    text = "\n\n".join(map(json.dumps, rows))
    for name in ("songs.jsonl", "songs.txt"):
        seven, other = await jobs_of(manifest(tmp_path, text, name))
        assert seven.key == "7"
        assert seven.request == ExtendRequest("e231", **{**OWN, "continue_at": 10.0})  # type: ignore[arg-type]  # a mixed table
        assert other.request == ExtendRequest("e231", model="V5")


async def test_a_folder_becomes_jobs(tmp_path: Path) -> None:
    for name in ("b.wav", "a.WAV", ".hidden.wav", "notes.txt", "deep/c.wav"):
        song(tmp_path / name)
    (tmp_path / "d.mp3").mkdir()
    common = {"model": "V5", "continue_at": "50%"}
    made = read_manifest(tmp_path, defaults=common)
    jobs = await jobs_of(made)
    assert [Path(job.request.source).name for job in jobs if isinstance(job.request, UploadExtendRequest)] == [
        "a.WAV",
        "b.wav",
    ]
    assert {job.request.continue_at for job in jobs} == {10.0}
    deep = read_manifest(str(tmp_path), defaults=common, pattern="**/*.wav")
    assert len(await jobs_of(deep)) == 2
    assert repr(deep) == f"Manifest({str(tmp_path)!r})"


async def test_results_in_a_folder_are_no_sources(tmp_path: Path) -> None:
    for name in ("a.wav", "a-1.wav", "a-1.2.wav"):
        song(tmp_path / name)
    for name in ("a-1", "a-1.2"):
        (tmp_path / f"{name}.kie.json").touch()
    made = read_manifest(tmp_path, defaults={"model": "V5", "continue_at": 5}, pattern="*.wav")
    (job,) = await jobs_of(made)
    assert job.source is not None
    assert Path(job.source.path).name == "a.wav"


async def test_defaults_are_for_rows_that_lack_a_field(tmp_path: Path) -> None:
    path = song(tmp_path / "a.wav")
    text = "audio_id,title,source\ne231,Mine,\ne232,,\n,,a.wav\n"
    made = manifest(tmp_path, text, defaults={**OWN, "audio_id": "e9", "persona_id": None})
    jobs = await jobs_of(made)
    assert [job.request.title for job in jobs] == ["Mine", "Longer", "Longer"]
    assert [job.request.operation for job in jobs] == ["extend", "extend", "upload_extend"]
    made = manifest(tmp_path, "style\nrock\n", defaults={**OWN, "source": path})
    (job,) = await jobs_of(made)
    assert job.request.style == "rock"


@pytest.mark.parametrize(("moment", "seconds"), [("75%", 15.0), ("-5s", 15.0), ("0:12", 12.0), (-5, 15.0), (5, 5.0)])
async def test_a_moment_may_count_from_the_end_or_be_a_share(moment: object, seconds: float, tmp_path: Path) -> None:
    song(tmp_path / "a.wav")
    row = {"source": "a.wav", "model": "V5", "continue_at": moment}
    (job,) = await jobs_of(manifest(tmp_path, json.dumps(row), "songs.jsonl"))
    assert job.request.continue_at == seconds


async def test_a_length_that_is_given_is_not_measured(tmp_path: Path) -> None:
    (tmp_path / "a.flac").write_bytes(b"fLaC and nothing that could be measured")
    rows = [{"source": "a.flac", "model": "V5", "continue_at": "50%", "source_duration": "30"}]
    (job,) = await jobs_of(manifest(tmp_path, as_csv(rows)))
    assert job.request.continue_at == 15.0
    (fault,) = await faults_of(manifest(tmp_path, as_csv([rows[0] | {"source_duration": ""}])))
    assert fault.field == "source"


async def test_old_line_ends_and_line_ends_in_lyrics(tmp_path: Path) -> None:
    text = 'audio_id,model,prompt,style,title,continue_at\ra1,V5,"one\r\ntwo\nthree",s,t,5\ra2,v9,,,,\r'
    assert [fault.line for fault in await faults_of(manifest(tmp_path, text))] == [5]


async def test_a_file_is_read_once_however_many_rows_extend_it(tmp_path: Path) -> None:
    path = song(tmp_path / "a.wav")
    rows = [{"source": "a.wav", "model": "V5", "continue_at": str(1 + number / 100)} for number in range(600)]
    opened: list[int] = []
    made = manifest(tmp_path, as_csv(rows))
    with when_opened(path, lambda: opened.append(1)):
        await made.check()
        assert len(await jobs_of(made)) == 600
        assert len(await jobs_of(made)) == 600
    assert len(opened) < 20  # to be read once, and then to see whether it is the same, once for many rows


async def test_a_file_that_looks_the_same_is_not_read_again(tmp_path: Path) -> None:
    path = song(tmp_path / "a.wav")
    made = manifest(tmp_path, "source,model,continue_at\na.wav,V5,5\n")
    (before,) = await jobs_of(made)
    times = path.stat()
    with path.open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"\x90")
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    (after,) = await jobs_of(made)
    assert after.key == before.key


# ---------------------------------------------------------------- keys


async def test_the_same_row_is_the_same_job_in_any_format(tmp_path: Path) -> None:
    song(tmp_path / "a.wav")
    row = {"source": "a.wav", **OWN, "style_weight": "0.50", "instrumental": ""}
    back = dict(reversed(row.items()))
    typed = {**row, "style_weight": 0.5, "continue_at": 10, "instrumental": False, "operation": "upload_extend"}
    made = [
        manifest(tmp_path, as_csv([row])),
        manifest(tmp_path, as_csv([back], ";"), "b.csv"),
        manifest(tmp_path, json.dumps(typed), "c.jsonl"),
        read_manifest(tmp_path, defaults={**OWN, "style_weight": 0.5}),
    ]
    keys = {job.key for each in made for job in await jobs_of(each)}
    assert len(keys) == 1
    assert len(keys.pop()) == 24


async def test_a_file_that_lies_elsewhere_is_the_same_and_one_that_changed_is_not(tmp_path: Path) -> None:
    rows = [{"source": "a.wav", "model": "V5", "continue_at": "75%"}]
    song(tmp_path / "a.wav")
    (first,) = await jobs_of(manifest(tmp_path, as_csv(rows)))
    song(tmp_path / "moved" / "a.wav")
    (moved,) = await jobs_of(manifest(tmp_path / "moved", as_csv(rows)))
    song(tmp_path / "a.wav", sound=b"\x90")
    (changed,) = await jobs_of(manifest(tmp_path, as_csv(rows)))
    assert first.key == moved.key != changed.key


async def test_rows_that_ask_for_the_same_are_numbered(tmp_path: Path) -> None:
    rows = [{"audio_id": "a1", "model": "V5"}] * 3 + [{"audio_id": "a2", "model": "V5"}]
    made = manifest(tmp_path, as_csv(rows))
    assert (await made.check()).duplicates == 2
    keys = [job.key for job in await jobs_of(made)]
    assert keys[:3] == [keys[0], f"{keys[0]}-2", f"{keys[0]}-3"]
    assert keys == [job.key for job in await jobs_of(made)]
    assert len(set(keys)) == 4


async def test_the_keys_of_jobs_stay_what_they_are(tmp_path: Path) -> None:
    """A journal knows its jobs by these: another key would be paid once more."""
    rows = [
        {"audio_id": "a1", "model": "V5"},
        {"audio_id": "a1", "model": "V4"},
        {"source": "https://x.example/a.mp3", "model": "V5", "continue_at": "60", "style_weight": "0.5"},
        {"source": "https://x.example/a.mp3", "continue_at": "60", "style_weight": "0.5", "id": ""},
    ]
    keys = [job.key for job in await jobs_of(manifest(tmp_path, as_csv(rows)))]
    assert keys[:3] == ["21a19bfed98df1387e6351ad", "a7fa0a39860d996e5e159365", "5df34b73bfc167d077d7fa33"]
    assert keys[3] == f"{keys[2]}-2"  # V5 is what it takes if nothing is said


EDITS = st.fixed_dictionaries(
    {"audio_id": st.sampled_from(["a1", "a2"]), "model": st.sampled_from(["V5", "V4"])},
    optional={
        "style_weight": st.sampled_from(["0", "0.5", "0.65"]),
        "negative_tags": st.sampled_from(["rock", "pop"]),
        "weirdness_constraint": st.sampled_from(["0.1", "0.2"]),
        "source_duration": st.sampled_from(["100", "200"]),
        "default_param_flag": st.just("no"),
        "vocal_gender": st.sampled_from(["m", "f"]),
    },
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow], max_examples=60)
@given(rows=st.lists(EDITS, min_size=2, max_size=12, unique_by=lambda row: tuple(sorted(row.items()))), data=st.data())
def test_an_edited_row_is_a_new_job_and_a_moved_column_is_not(
    rows: list[dict[str, str]], data: st.DataObject, tmp_path: Path
) -> None:
    made = asyncio.run(jobs_of(manifest(tmp_path, as_csv(rows))))
    assert len({job.key for job in made}) == len(rows)
    names = data.draw(st.permutations(sorted({name for row in rows for name in row})))
    moved = [{name: row.get(name, "") for name in names} for row in rows]
    again = asyncio.run(jobs_of(manifest(tmp_path, as_csv(moved, ";"))))
    assert [job.key for job in again] == [job.key for job in made]


# ---------------------------------------------------------------- what is wrong

HEAD = "audio_id,source,model,prompt,style,title,continue_at,instrumental,style_weight,id,operation\n"
GOOD = "a1,,V5,,,,,,,,\n"

FAULTS = {
    "unknown column": ("audio_id,model,Style \na1,V5,\n", [(1, "Style", "call it style")]),
    "columns in another spelling": (
        "audioId;Model;Style Weight\na1;V5;0.5\n",
        [(1, "audioId", "call it audio_id"), (1, "Model", "call it model"), (1, "Style Weight", "style_weight")],
    ),
    "column never heard of": ("audio_id,model,tempo\na1,V5,\n", [(1, "tempo", "columns are audio_id, ")]),
    "column given twice": ("audio_id,model,model\na1,V5,V5\n", [(1, "model", "twice")]),
    "header that is no csv": ('"audio_id"x,model\na1,V5\n', [(1, '"audio_id"x,model', ""), (2, "", "2 cells under 1")]),
    "no number": (HEAD + GOOD + "a1,,V5,p,s,t,5,,lots,,\n", [(3, "style_weight", "'lots'")]),
    "comma in a number": (HEAD + 'a1,,V5,p,s,t,5,,"0,5",,\n', [(2, "style_weight", "with a point")]),
    "no flag": (HEAD + "a1,,V5,p,s,t,5,maybe,,,\n", [(2, "instrumental", "true or false")]),
    "no moment": (HEAD + "a1,,V5,p,s,t,soon,,,,\n", [(2, "continue_at", "75%, or -10s")]),
    "no operation": (HEAD + "a1,,V5,,,,,,,,cover\n", [(2, "operation", "extend or upload_extend")]),
    "operation against its subject": (HEAD + "a1,,V5,,,,,,,,upload_extend\n", [(2, "operation", "with audio_id")]),
    "both subjects": (HEAD + "a1,https://x.example/a,V5,,,,5,,,,\n", [(2, "source", "with audio_id")]),
    "a field of the other operation": ("audio_id,model,lyrics\na1,V5,la\n", [(2, "lyrics", "with audio_id")]),
    "no subject": (HEAD + ",,V5,,,,5,,,,\n", [(2, "source", "is missing")]),
    "no subject for its operation": (HEAD + ",,V5,,,,,,,,extend\n", [(2, "audio_id", "is missing")]),
    "no model": (HEAD + "a1,,,,,,,,,,\n", [(2, "model", "is missing")]),
    "rules of the request": (
        HEAD + "a1,,v9,p,s,t,0,,0.655,,\n",
        [(2, "continue_at", "above 0"), (2, "style_weight", "0.01"), (2, "model", "v9")],
    ),
    "too many cells": (HEAD + "a1,,V5,la, la, la,s,t,5,,,x,\n", [(2, "", "quotes")]),
    "a cell under no name": ("audio_id,model,\na1,V5,x\n", [(2, "", "3 cells")]),
    "odd id": (HEAD + f"a1,,V5,,,,,,,{'x' * 201},\n" + 'a1,,V5,,,,,,,"a\nb",\n', [(2, "id", "200"), (3, "id", "")]),
    "doubled ids": (
        HEAD + "a1,,V5,,,,,,,x,\n" + "a2,,v9,,,,,,,y,\n" + "a3,,V5,,,,,,,x,\n" + "a4,,V5,,,,,,,x,\n",
        [(3, "model", ""), (4, "id", "line 2"), (5, "id", "line 2")],
    ),
    "a share of the unknown": (HEAD + ",https://x.example/a,V5,,,,75%,,,,\n", [(2, "continue_at", "source_duration")]),
    "missing file": (
        HEAD + ",gone.wav,V5,,,,75%,,,,\n" + ",gone.wav,V5,,,,9,,,,\n",
        [(2, "source", "does not exist"), (3, "source", "")],
    ),
    "other scheme": (HEAD + ",ftp://x/a.mp3,V5,,,,5,,,,\n", [(2, "source", "not http")]),
    "moment beyond the end": (
        HEAD + ",a.wav,V5,,,,-25s,,,,\n,a.wav,V5,,,,20,,,,\n",
        [(2, "continue_at", "lasts 0:20: give a number of seconds above 0"), (3, "continue_at", "lasts 0:20: give")],
    ),
    "too long for its model": (HEAD + ",long.wav,V4_5ALL,,,,5,,,,\n", [(2, "source", "lasts 1:01; V4_5ALL")]),
    "a line too long": (HEAD + GOOD + "a" * ((1 << 20) + 1), [(3, "", "close the quotes")]),
    "quotes left open": (HEAD + GOOD + 'a1,,V5,"la\n' + GOOD * 2, [(3, "", "mind the quotes")]),
    "a field too long": (HEAD + f"a1,,V5,{'x' * 140_000}\n", [(2, "", "field larger than")]),
    "no jobs": (HEAD, [(0, "", "holds no jobs")]),
    "nothing": ("", [(0, "", "holds no jobs")]),
    "blank": ("\n  \n", [(0, "", "holds no jobs")]),
}  # fmt: skip


@pytest.mark.parametrize("name", FAULTS)
async def test_every_fault_of_a_table_has_its_line(name: str, tmp_path: Path) -> None:
    song(tmp_path / "a.wav")
    song(tmp_path / "long.wav", 61.0)
    text, expected = FAULTS[name]
    faults = await faults_of(manifest(tmp_path, text))
    assert [(fault.line, fault.field) for fault in faults] == [(line, field) for line, field, _ in expected]
    for fault, (_, _, words) in zip(faults, expected, strict=True):
        assert fault.problem
        assert fault.remedy
        assert words in str(fault)


LINES = {
    "no json": ("{nonsense}\n", "", "is no JSON"),
    "an array": ("[1]\n", "", "no JSON object"),
    "not a number": ('{"audio_id": "a1", "model": "V5", "style_weight": NaN}\n', "", "is no JSON"),
    "a field twice": ('{"audio_id": "a1", "audio_id": "a2", "model": "V5"}', "", "written twice"),
    "unknown": ('{"audio_id": "a1", "model": "V5", "callBackUrl": "x"}', "callBackUrl", "no known column"),
    "a camel's": ('{"audioId": "a1", "model": "V5"}', "audioId", "call it audio_id"),
    "a huge number": (f'{{"audio_id": "a1", "model": "V5", "style_weight": {10**400}}}', "style_weight", "0 to 1"),
    "a flag that is a number": ('{"audio_id": "a1", "model": "V5", "instrumental": 1}', "instrumental", "type int"),
    "a number that is a flag": ('{"audio_id": "a1", "model": "V5", "style_weight": true}', "style_weight", "type bool"),
    "a moment that is a flag": ('{"audio_id": "a1", "model": "V5", "continue_at": true}', "continue_at", "type bool"),
    "an id that is a list": ('{"audio_id": "a1", "model": "V5", "id": []}', "id", "type list"),
    "a title that is a number": ('{"audio_id": "a1", "model": "V5", "title": 1984}', "title", "1984"),
    "a source that is a number": ('{"source": 5, "model": "V5", "continue_at": 5}', "source", "is 5"),
    "a source that is no text": ('{"source": "\\ud800.wav", "model": "V5", "continue_at": 5}', "source", "no text"),
    "a model that is a list": ('{"audio_id": "a1", "model": []}', "model", "type list"),
}


@pytest.mark.parametrize("name", LINES)
async def test_every_fault_of_a_line_has_its_line(name: str, tmp_path: Path) -> None:
    text, field, words = LINES[name]
    good = '{"audio_id": "a0", "model": "V5"}\n\n'
    faults = await faults_of(manifest(tmp_path, good + text, "songs.jsonl"))
    assert (faults[0].line, faults[0].field) == (3, field)
    assert words in str(faults[0])
    assert {fault.field for fault in faults}.isdisjoint({"audio_id", "source"} - {field})  # for it is there


@pytest.mark.parametrize("name", ["songs.csv", "songs.jsonl"])
async def test_what_is_not_utf8_is_said_so(name: str, tmp_path: Path) -> None:
    head = b"audio_id,model,title\n" if name.endswith("csv") else b"\n"
    faults = await faults_of(manifest(tmp_path, head + b"a1,V5,caf\xe9\n", name))
    assert [(fault.line, fault.problem) for fault in faults] == [(2, "is not UTF-8")]
    for coding in ("utf-16", "utf-16-le", "utf-16-be", "utf-32"):
        text = "audio_id,model\na1,V5\na2,V5\n"
        faults = await faults_of(manifest(tmp_path, text.encode(coding), name))
        assert [(fault.line, fault.problem) for fault in faults] == [(1, "is not UTF-8")]


async def test_a_header_that_is_not_utf8_is_one_fault(tmp_path: Path) -> None:
    faults = await faults_of(manifest(tmp_path, b"audio_id,titr\xe9\na1,x\na2,x\n"))
    assert [(fault.line, fault.problem) for fault in faults] == [(1, "is not UTF-8")]


async def test_what_every_row_lacks_is_told_once(tmp_path: Path) -> None:
    missing = "every row: continue_at: is missing"
    rows = "source\nhttps://x.example/a\nhttps://x.example/b\nhttps://x.example/c\n"
    faults = await faults_of(manifest(tmp_path, rows, defaults={"model": "V5"}))
    assert [str(fault).partition(";")[0] for fault in faults] == [missing]
    faults = await faults_of(manifest(tmp_path, rows + "ftp://x.example/d\n", defaults={"model": "V5"}))
    odd = "line 5: source: is a URL that is not http(s)"
    assert [str(fault).partition(";")[0] for fault in faults] == [missing, odd]
    faults = await faults_of(manifest(tmp_path, rows.replace("/b\n", "/b\n\x00\n"), defaults={"model": "V5"}))
    assert len(faults) == 1  # a file with a NUL is no text


async def test_what_some_rows_lack_is_told_of_each(tmp_path: Path) -> None:
    rows = "source,continue_at\nhttps://x.example/a,\nhttps://x.example/b,5\nhttps://x.example/c,\n"
    faults = await faults_of(manifest(tmp_path, rows, defaults={"model": "V5"}))
    assert [(fault.line, fault.field) for fault in faults] == [(2, "continue_at"), (4, "continue_at")]


async def test_faults_of_defaults_are_told_once(tmp_path: Path) -> None:
    defaults = {"style_weight": "much", "tempo": 3, "id": "x", "model": "V5", "title": None}
    faults = await faults_of(manifest(tmp_path, "audio_id\na1\na2\n", defaults=defaults))
    assert [str(fault).partition(";")[0] for fault in faults] == [
        "defaults: style_weight: is 'much'",
        "defaults: tempo: cannot be shared by all rows",
        "defaults: id: cannot be shared by all rows",
    ]


async def test_many_faults_are_counted_and_the_first_are_shown(tmp_path: Path) -> None:
    made = manifest(tmp_path, "audio_id,model\n" + "a1,v9\n" * 1000)
    with pytest.raises(ManifestError, match=r"has 1000 faults.*line 2: model.*and 997 more") as caught:
        await made.check()
    assert (caught.value.count, len(caught.value.faults)) == (1000, 100)
    assert isinstance(caught.value, InvalidRequestError)


@pytest.mark.parametrize("kind", ["missing", "under a file", "odd", "fifo"])
async def test_a_manifest_that_is_none(kind: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    os.mkfifo(tmp_path / "fifo")
    paths = {"under a file": tmp_path / "file" / "x", "odd": Path("a\0b"), "fifo": tmp_path / "fifo"}
    made = read_manifest(paths.get(kind, Path("gone.csv")))
    (fault,) = await faults_of(made)
    assert fault.line == 0
    with pytest.raises(ManifestError):
        await jobs_of(made)


def refuse() -> None:
    raise PermissionError(13, "Permission denied", "the file")


async def test_a_manifest_that_cannot_be_read(tmp_path: Path) -> None:
    made = manifest(tmp_path, HEAD + GOOD)
    with when_opened(made.path, refuse), pytest.raises(StorageError, match="the disk refused the file: Permission"):
        await made.check()


@pytest.mark.parametrize("pattern", ["", "/etc/*", "**x"])
async def test_a_pattern_that_is_none(pattern: str, tmp_path: Path) -> None:
    faults = await faults_of(read_manifest(tmp_path, pattern=pattern, defaults={"model": "V5"}))
    assert faults[0].location in {"pattern", tmp_path.name}


async def test_a_pattern_that_fits_no_file_is_named(tmp_path: Path) -> None:
    song(tmp_path / "a.wav")
    (fault,) = await faults_of(read_manifest(tmp_path, pattern="*.mp3", defaults={"model": "V5", "continue_at": 5}))
    assert str(fault).endswith("holds no file that '*.mp3' fits; give a pattern like '*.mp3' or '**/*.wav'")


async def test_a_folder_without_songs_is_a_fault(tmp_path: Path) -> None:
    (fault,) = await faults_of(read_manifest(tmp_path))
    assert fault.problem == "holds no songs"
    assert fault.remedy.startswith("put some into it (mp3, ")
    song(tmp_path / "a-1.wav")
    (tmp_path / "a-1.kie.json").touch()
    (fault,) = await faults_of(read_manifest(tmp_path))
    assert fault.problem == "holds tracks of the service (each with its NAME.kie.json), and no songs"
    assert "extend each by its id (track.id there): kie-async extend ID --model MODEL, or a CSV with" in fault.remedy


async def test_faults_in_a_folder_name_the_file(tmp_path: Path) -> None:
    (tmp_path / "a.mp3").write_bytes(b"")
    (tmp_path / "b.mp3").write_text("<html>" * 10)
    song(tmp_path / "c.wav")
    faults = await faults_of(read_manifest(tmp_path, defaults={"model": "V5", "continue_at": 5}))
    assert str(faults[0]) == "a.mp3: source: a.mp3 is empty; give a file of audio, or move it out of the folder"
    assert str(faults[1]).startswith(
        "b.mp3: source: b.mp3 is no audio by its content, whatever its name says; give one of "
    )
    assert len(faults) == 2


async def test_a_source_that_cannot_be_read(tmp_path: Path) -> None:
    path = song(tmp_path / "a.wav")
    with when_opened(path, refuse):
        (fault,) = await faults_of(manifest(tmp_path, "source,model,continue_at\na.wav,V5,5\n"))
    assert str(fault) == "line 2: source: a.wav cannot be read; give access to it"


async def test_a_source_that_is_being_written(tmp_path: Path) -> None:
    path = song(tmp_path / "a.wav")
    made = manifest(tmp_path, "source,model,continue_at\na.wav,V5,5\n")
    with when_opened(path, lambda: song(path, 21.0)):
        (fault,) = await faults_of(made)
    assert "changed while it was read" in fault.problem
    assert (await made.check()).total == 1


# ---------------------------------------------------------------- changes between the two readings


async def test_a_source_that_changes_after_the_check_is_a_fault(tmp_path: Path) -> None:
    path = song(tmp_path / "a.wav")
    made = manifest(tmp_path, "source,model,continue_at\na.wav,V5,5\n")
    (before,) = await jobs_of(made)
    song(path, 30.0)
    with pytest.raises(ManifestError, match="changed since the manifest was checked"):
        await jobs_of(made)
    await made.check()
    (after,) = await jobs_of(made)
    assert before.key != after.key


async def test_an_edited_manifest_is_checked_again(tmp_path: Path) -> None:
    made = manifest(tmp_path, HEAD + GOOD)
    assert (await made.check()).total == 1
    made.path.write_text(HEAD + GOOD + "a2,,V5,,,,,,,,\n")
    assert len(await jobs_of(made)) == 2


async def test_a_manifest_edited_while_it_is_read_is_a_fault(tmp_path: Path) -> None:
    made = manifest(tmp_path, HEAD + GOOD * 1000)  # more than is read at once
    with pytest.raises(ManifestError, match="changed while it was read"):
        async for _ in made:
            made.path.write_text(HEAD)


# ---------------------------------------------------------------- anything whatever


async def _read(made: Manifest) -> None:
    try:
        await jobs_of(made)
    except KieError as error:
        assert isinstance(error, ManifestError)
        assert error.faults


WORDS = st.sampled_from([
    "audio_id", "source", "model", "continue_at", "id", "operation", "style_weight", "instrumental", "tempo", "true",
    "a1", "V5", "75%", "-10s", "nan", "1e999", "a.wav", "null", "{", "}", ":", "[", '"', ",", ";", "\t", "\n", "\r\n",
    "\0", "\ufeff", "é", "\u2028",
])  # fmt: skip
TEXTS = st.lists(WORDS, max_size=40).map("".join).map(str.encode)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow], max_examples=150)
@given(data=st.binary(max_size=200) | TEXTS, name=st.sampled_from(["m.csv", "m.jsonl"]))
def test_any_bytes_end_in_jobs_or_in_our_error(data: bytes, name: str, tmp_path: Path) -> None:
    asyncio.run(_read(manifest(tmp_path, data, name)))


ODD = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | WORDS,
    lambda values: st.lists(values, max_size=2) | st.dictionaries(st.text(max_size=2), values, max_size=2),
    max_leaves=3,
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow], max_examples=150)
@given(rows=st.lists(st.dictionaries(WORDS, ODD, max_size=6), max_size=4))
def test_any_values_end_in_jobs_or_in_our_error(rows: list[dict[str, object]], tmp_path: Path) -> None:
    asyncio.run(_read(manifest(tmp_path, "\n".join(map(json.dumps, rows)), "m.jsonl")))


# ---------------------------------------------------------------- size


@pytest.mark.scale
async def test_memory_does_not_grow_with_the_rows(tmp_path: Path) -> None:
    async def peak(count: int) -> int:
        text = HEAD + "".join(f'a{number},,V5,"la, la",s,song {number},5,,,,\n' for number in range(count))
        made = manifest(tmp_path, text)
        tracemalloc.start()
        try:
            assert (await made.check()).total == count
            async for _ in made:
                pass
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    await peak(100)
    assert await peak(3000) - await peak(1000) < 2000 * 100  # bytes: 16 of each row, and some while they are sorted
