"""What a batch leaves: names that are safe and never shared, sidecars, and a line per end of a job."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import resource
import subprocess
import sys
import threading
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kie_async.batch import Results, strip_secrets
from kie_async.batch._results import SIDECAR, format_line, format_sidecar, track_stem
from kie_async.errors import DownloadError, StorageError
from kie_async.files._names import MAX_NAME, safe_name
from kie_async.journal import Job, JobError, JobResults, LastAttempt, Source, State
from kie_async.models import ExtendRequest, Track, UploadExtendRequest

pytestmark = pytest.mark.anyio

SECRET = "s3cret"
SIGNED = f"https://user:{SECRET}@cdn.example/a.mp3?sig={SECRET}#{SECRET}"
TRACKS = tuple(
    Track(
        f"t{number}",
        SIGNED,
        stream_audio_url=SIGNED,
        duration=20.5,
        title="Longer",
        created_at=datetime(2026, 9, 1, tzinfo=UTC),
    )
    for number in (1, 2)
)
EXTEND = ExtendRequest("a1", model="V5", prompt="la", style="pop", title="Longer é", continue_at=10.0)
JOB = Job(
    key="song-7",
    request=EXTEND,
    state=State.SUCCEEDED,
    attempt=1,
    last_attempt=LastAttempt(token=SECRET, task_id="5c79", credits=12.0),
    results=JobResults(tracks=TRACKS),
    moments={"planned": 0.0, "succeeded": 60.5},
)


@attrs.define
class FakeSession:
    """A session that fetches what it is told to."""

    audio: bytes = b"ID3 music"
    fetched: list[str | None] = attrs.field(factory=list)

    async def download(self, track: Track, directory: Path, *, name: str | None = None, **_: bool) -> Path:
        assert track in TRACKS
        self.fetched.append(name)
        path = directory / f"{name}.mp3"
        assert not path.exists()
        path.write_bytes(self.audio)
        return path


def read(path: Path) -> dict[str, Any]:
    found = json.loads(path.read_text())
    assert isinstance(found, dict)
    return found


def lines(results: Results) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (results.directory / "results.jsonl").read_text().splitlines()]


# ---------------------------------------------------------------- names


@pytest.mark.parametrize(
    ("key", "stem"),
    [
        ("song-7", "song-7-1"),
        ("3f2a" * 6, f"Longer-é-{'3f2a' * 6}-1"),
        ("3f2a" * 6 + "-2", f"Longer-é-{'3f2a' * 6}-2-1"),
        ("../up", "up-[0-9a-f]{16}-1"),
        ("Song", "Song-[0-9a-f]{16}-1"),
        ("con", "con-1"),
        ("_x", "x-[0-9a-f]{16}-1"),
        ("音", "音-[0-9a-f]{16}-1"),
        ("", "track-[0-9a-f]{16}-1"),
    ],
)
def test_a_track_is_named_by_the_key_of_its_job(key: str, stem: str) -> None:
    assert re.fullmatch(stem, track_stem(attrs.evolve(JOB, key=key), 1))


@pytest.mark.parametrize(
    ("request_", "label"),
    [
        (UploadExtendRequest("in/My Song.wav", model="V5", continue_at=5), "My-Song"),
        (UploadExtendRequest("in/私の歌.wav", model="V5", continue_at=5, title="T", style="s", prompt="p"), "私の歌"),
        (UploadExtendRequest(SIGNED, model="V5", continue_at=5, title="T", style="s", prompt="p"), "T"),
        (UploadExtendRequest(SIGNED, model="V5", continue_at=5), "track"),
        (ExtendRequest("a1", model="V5"), "track"),
    ],
)
def test_a_job_without_an_id_or_a_title_is_named_by_its_source(request_: Any, label: str) -> None:
    job = Job(key="3f2a" * 6, request=request_)
    assert track_stem(job, 2) == f"{label}-{'3f2a' * 6}-2"


KEYS = st.text(max_size=80) | st.from_regex(r"[a-z0-9_-]{1,8}", fullmatch=True) | st.from_regex(r"[0-9a-f]{24}")


@given(st.lists(KEYS, min_size=2, max_size=6, unique=True), st.integers(1, 12), st.integers(1, 12))
def test_no_two_tracks_share_a_name_and_each_is_safe(keys: list[str], one: int, other: int) -> None:
    stems = [track_stem(attrs.evolve(JOB, key=key), number) for key in keys for number in {one, other}]
    assert len({stem.lower() for stem in stems}) == len(stems)
    assert all(safe_name(stem) == stem for stem in stems)
    assert all(len(stem.encode()) <= MAX_NAME for stem in stems)


# ---------------------------------------------------------------- tracks and their sidecars


async def test_a_track_gets_a_sidecar(tmp_path: Path) -> None:
    session, results = FakeSession(), Results(tmp_path / "out" / "deep")
    assert [await results.save(session.download, JOB, track) for track in TRACKS] == ["song-7-1.mp3", "song-7-2.mp3"]
    found = read(results.directory / f"song-7-2{SIDECAR}")
    assert found == {
        "format": 1,
        "key": "song-7",
        "task_id": "5c79",
        "operation": "extend",
        "request": {
            "audio_id": "a1",
            "model": "V5",
            "prompt": "la",
            "style": "pop",
            "title": "Longer é",
            "continue_at": 10.0,
        },
        "source": None,
        "track": {
            "number": 2,
            "of": 2,
            "id": "t2",
            "audio_url": "https://cdn.example/a.mp3",
            "stream_audio_url": "https://cdn.example/a.mp3",
            "title": "Longer",
            "duration": 20.5,
            "created_at": "2026-09-01T00:00:00+00:00",
        },
        "credits": 12.0,
        "moments": {"planned": "1970-01-01T00:00:00+00:00", "succeeded": "1970-01-01T00:01:00.500000+00:00"},
        "file": {
            "name": "song-7-2.mp3",
            "size": 9,
            "sha256": hashlib.sha256(b"ID3 music").hexdigest(),
        },
    }
    assert sorted(path.suffix for path in results.directory.iterdir()) == [".json", ".json", ".mp3", ".mp3"]


async def test_what_is_written_is_utf_8_and_a_line_stays_a_line(tmp_path: Path) -> None:
    title, path = "歌\u2028é\x85\u2029", "in/\udcff.wav"  # a name that is no UTF-8, as Python gives it
    source = Source(path=path, size=1, sha256="0" * 64)
    job = attrs.evolve(JOB, request=attrs.evolve(EXTEND, title=title), source=source)
    results = Results(tmp_path)
    await results.save(FakeSession().download, job, TRACKS[0])
    await results.record_end(attrs.evolve(job, key="\udcff"))
    sidecar = (tmp_path / f"song-7-1{SIDECAR}").read_text(encoding="utf-8")
    assert '"title": "歌' in sidecar
    assert json.loads(sidecar)["request"]["title"] == title
    assert json.loads(sidecar)["source"]["path"] == path
    (line,) = (tmp_path / "results.jsonl").read_text(encoding="utf-8").splitlines()
    assert "歌" in line
    assert [json.loads(line)[name] for name in ("title", "key")] == [title, "\udcff"]


async def test_nothing_secret_is_written(tmp_path: Path) -> None:
    source = Source(path="in/a.wav", size=1, sha256="0" * 64, duration=9.0, upload_url=SIGNED)
    request = UploadExtendRequest(SIGNED, model="V5", continue_at=5)
    error = JobError(type="RefusedError", message=f"could not fetch {SIGNED}")
    job = attrs.evolve(JOB, request=request, source=source, error=error)
    results = Results(tmp_path)
    await results.save(FakeSession().download, job, TRACKS[0])
    await results.record_end(job)
    written = b"".join(path.read_bytes() for path in tmp_path.iterdir())
    assert SECRET.encode() not in written
    assert read(tmp_path / f"song-7-1{SIDECAR}")["source"] == {
        "path": "in/a.wav",
        "size": 1,
        "sha256": "0" * 64,
        "duration": 9.0,
    }
    assert read(tmp_path / f"song-7-1{SIDECAR}")["request"]["source"] == "https://cdn.example/a.mp3"


@pytest.mark.parametrize(
    ("text", "left"),
    [("in/a?b.wav", "in/a?b.wav"), ("http://[::1/x?sig=1", "http://[::1/…"), ("HTTPS://h/p;x?q#f", "https://h/p;x")],
)
def test_an_address_is_cut_to_what_is_public(text: str, left: str) -> None:
    assert strip_secrets(text) == left


async def test_a_track_that_is_here_is_not_fetched_again(tmp_path: Path) -> None:
    session, results = FakeSession(), Results(tmp_path)
    await results.save(session.download, JOB, TRACKS[0])
    again = Results(tmp_path)
    assert await again.save(session.download, JOB, TRACKS[0]) == "song-7-1.mp3"
    assert session.fetched == ["song-7-1"]


async def test_a_crash_before_the_sidecar_is_complete_fetches_nothing_twice(tmp_path: Path) -> None:
    session, results = FakeSession(), Results(tmp_path)
    await results.save(session.download, JOB, TRACKS[0])
    (tmp_path / f"song-7-1{SIDECAR}").write_bytes(format_sidecar(JOB, 1))
    assert await results.save(session.download, JOB, TRACKS[0]) == "song-7-1.mp3"
    assert read(tmp_path / f"song-7-1{SIDECAR}")["file"]["size"] == 9
    assert len(session.fetched) == 1


async def test_a_download_that_failed_is_taken_up_under_its_name(tmp_path: Path) -> None:
    results = Results(tmp_path)

    class Broken(FakeSession):
        async def download(self, track: Track, directory: Path, *, name: str | None = None, **_: bool) -> Path:
            (directory / f"{name}.part").write_bytes(b"ID3")
            raise DownloadError(f"{track.id} broke off")

    with pytest.raises(DownloadError):
        await results.save(Broken().download, JOB, TRACKS[0])
    assert read(tmp_path / f"song-7-1{SIDECAR}")["file"] is None
    session = FakeSession()
    assert await results.save(session.download, JOB, TRACKS[0]) == "song-7-1.mp3"
    assert session.fetched == ["song-7-1"]


async def test_a_part_that_a_crash_has_left_is_seen_to_by_the_download(tmp_path: Path) -> None:
    session, results = FakeSession(), Results(tmp_path)
    await results.save(session.download, JOB, TRACKS[0])
    os.link(tmp_path / "song-7-1.mp3", tmp_path / "song-7-1.part")

    class Finishing(FakeSession):
        async def download(self, track: Track, directory: Path, *, name: str | None = None, **_: bool) -> Path:
            assert track == TRACKS[0]
            (directory / f"{name}.part").unlink()
            return directory / f"{name}.mp3"

    assert await results.save(Finishing().download, JOB, TRACKS[0]) == "song-7-1.mp3"
    assert not (tmp_path / "song-7-1.part").exists()


async def test_what_was_begun_of_a_job_is_removed_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "song-7-1.part").write_bytes(b"mine")  # so that ours is song-7-1.2
    results = Results(tmp_path)
    await results.save(FakeSession().download, JOB, TRACKS[0])
    (tmp_path / "song-7-1.2.mp3").unlink()
    (tmp_path / "song-7-1.2.part").write_bytes(b"ID3")
    await results.save(FakeSession().download, JOB, TRACKS[1])
    (tmp_path / "song-7-2.part").write_bytes(b"ID3")
    await results.remove_parts(JOB)
    await results.remove_parts(JOB)
    left = {"song-7-1.part", "song-7-2.mp3", f"song-7-2{SIDECAR}"}
    assert {path.name for path in tmp_path.iterdir()} == left


@pytest.mark.parametrize("taken", ["song-7-1.mp3", "song-7-1.wav", "song-7-1.part", f"song-7-1{SIDECAR}"])
async def test_a_file_of_somebody_else_is_left_alone(taken: str, tmp_path: Path) -> None:
    (tmp_path / taken).write_bytes(b"mine")
    results = Results(tmp_path)
    for _ in range(2):
        assert await results.save(FakeSession().download, JOB, TRACKS[0]) == "song-7-1.2.mp3"
    assert (tmp_path / taken).read_bytes() == b"mine"


@pytest.mark.parametrize("change", [{"key": "other"}, {"task_id": "other"}, {"track": {"number": 2}}, {"track": None}])
async def test_a_sidecar_of_something_else_is_left_alone(change: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / f"song-7-1{SIDECAR}"
    path.write_text(json.dumps(json.loads(format_sidecar(JOB, 1)) | change))
    before = path.read_bytes()
    assert await Results(tmp_path).save(FakeSession().download, JOB, TRACKS[0]) == "song-7-1.2.mp3"
    assert path.read_bytes() == before


async def test_a_sidecar_of_no_object_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / f"song-7-1{SIDECAR}").write_text("[]")
    assert await Results(tmp_path).save(FakeSession().download, JOB, TRACKS[0]) == "song-7-1.2.mp3"


async def test_a_sidecar_is_written_whole_or_stays_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    results, sidecar = Results(tmp_path), tmp_path / f"song-7-1{SIDECAR}"
    sidecar.write_bytes(format_sidecar(JOB, 1))
    before = sidecar.read_bytes()

    def full(_number: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageError, match="No space"):
        await results.save(FakeSession().download, JOB, TRACKS[0])
    assert sidecar.read_bytes() == before
    assert {path.name for path in tmp_path.iterdir()} == {"song-7-1.mp3", sidecar.name}


async def test_a_full_disk_is_our_own_error(tmp_path: Path) -> None:
    (tmp_path / "out").touch()
    with pytest.raises(StorageError, match="the disk refused out"):
        await Results(tmp_path / "out").save(FakeSession().download, JOB, TRACKS[0])


# ---------------------------------------------------------------- results.jsonl


async def test_an_end_is_one_line(tmp_path: Path) -> None:
    results = Results(tmp_path / "out")
    delivered = attrs.evolve(JOB, state=State.DELIVERED, results=JobResults(tracks=TRACKS, files=("song-7-1.mp3",)))
    assert await results.record_end(delivered)
    assert not await results.record_end(delivered)
    assert not await Results(tmp_path / "out").record_end(delivered)
    (line,) = lines(results)
    assert line == {
        "format": 1,
        "key": "song-7",
        "state": "delivered",
        "attempt": 1,
        "task_id": "5c79",
        "operation": "extend",
        "model": "V5",
        "title": "Longer é",
        "files": ["song-7-1.mp3"],
        "credits": 12.0,
        "partial": False,
        "error": None,
        "moments": {"planned": "1970-01-01T00:00:00+00:00", "succeeded": "1970-01-01T00:01:00.500000+00:00"},
    }


async def test_another_attempt_is_another_line(tmp_path: Path) -> None:
    results = Results(tmp_path)
    error = JobError(type="TaskFailedError", message="failed", code=501, charged="maybe")
    failed = attrs.evolve(JOB, state=State.FAILED, error=error)
    assert await results.record_end(failed)
    assert await results.record_end(attrs.evolve(failed, attempt=2))
    assert await results.record_end(attrs.evolve(JOB, state=State.DELIVERED, attempt=3))
    assert [line["state"] for line in lines(results)] == ["failed", "failed", "delivered"]
    assert lines(results)[0]["error"]["code"] == 501


OTHER = attrs.evolve(JOB, key="other", request=attrs.evolve(EXTEND, title="歌"))


async def test_a_line_torn_anywhere_is_written_anew(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    line = format_line(OTHER)
    for cut in range(len(line)):
        path.write_bytes(format_line(JOB) + line[:cut])
        lacks_its_end_only = cut == len(line) - 1
        assert await Results(tmp_path).record_end(OTHER) is not lacks_its_end_only
        assert path.read_bytes() == format_line(JOB) + line


async def test_foreign_lines_stay(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    path.write_bytes(b'not ours\n{"key": []}\n[]\n')
    results = Results(tmp_path)
    assert await results.record_end(JOB)
    assert path.read_bytes() == b'not ours\n{"key": []}\n[]\n' + format_line(JOB)


async def test_a_last_line_without_its_end_gets_one(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    path.write_bytes(format_line(JOB)[:-1])
    assert await Results(tmp_path).record_end(attrs.evolve(JOB, key="other"))
    assert len(lines(Results(tmp_path))) == 2


async def test_only_the_end_of_a_long_file_is_read(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    long = b"x" * 2_000_000  # where it begins is not seen: it is not taken for a torn line
    path.write_bytes(long)
    assert await Results(tmp_path).record_end(JOB)
    assert path.read_bytes() == long + b"\n" + format_line(JOB)


async def test_lines_of_others_are_seen_and_a_file_moved_away_is_begun_anew(tmp_path: Path) -> None:
    one, other = Results(tmp_path), Results(tmp_path)
    assert await one.record_end(JOB)
    assert not await other.record_end(JOB)
    assert await other.record_end(attrs.evolve(JOB, key="b"))
    assert not await one.record_end(attrs.evolve(JOB, key="b"))
    (tmp_path / "results.jsonl").rename(tmp_path / "old.jsonl")
    assert await one.record_end(JOB)
    assert len(lines(one)) == 1


async def test_a_line_is_searched_for_at_the_end_of_the_file_only(tmp_path: Path) -> None:
    path, results = tmp_path / "results.jsonl", Results(tmp_path)
    path.write_bytes(format_line(JOB) + b"x" * 500_000 + b"\n")
    assert not await results.record_end(JOB)
    path.write_bytes(format_line(JOB) + b"x" * 2_000_000 + b"\n")
    assert await results.record_end(JOB)


async def test_jobs_with_keys_alike_have_a_line_each(tmp_path: Path) -> None:
    results = Results(tmp_path)
    keys = ["a", "aa", 'a","state":"failed","attempt":1,"task_id":', "a\n", "a\\"]
    for state, attempt in ((State.FAILED, 1), (State.FAILED, 11), (State.DELIVERED, 1)):
        for key in keys:
            job = attrs.evolve(JOB, key=key, state=state, attempt=attempt)
            assert await results.record_end(job)
            assert not await results.record_end(job)
    assert [line["key"] for line in lines(results)] == keys * 3


async def test_a_write_that_fails_leaves_no_half_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    results = Results(tmp_path)
    await results.record_end(JOB)

    def full(_number: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(StorageError, match="No space"):
            await results.record_end(attrs.evolve(JOB, key="b"))
    assert len(lines(results)) == 1
    assert await results.record_end(attrs.evolve(JOB, key="b"))


async def test_a_short_write_is_a_full_disk(tmp_path: Path) -> None:
    results, path = Results(tmp_path), tmp_path / "results.jsonl"
    await results.record_end(JOB)
    size = path.stat().st_size
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size + 10, limits[1]))
    try:
        with pytest.raises(StorageError, match="No space"):
            await results.record_end(attrs.evolve(JOB, key="b"))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.stat().st_size == size


async def test_a_file_that_somebody_holds_is_waited_for(tmp_path: Path) -> None:
    results = Results(tmp_path, lock_timeout=0.05)
    await results.record_end(JOB)
    with (tmp_path / "results.jsonl").open() as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(StorageError, match="held by another"):
            await results.record_end(attrs.evolve(JOB, key="b"))
        threading.Timer(0.05, file.close).start()
        assert await Results(tmp_path).record_end(attrs.evolve(JOB, key="b"))


WRITER = """
import asyncio
import sys
from kie_async import ExtendRequest
from kie_async.batch import Results
from kie_async.journal import Job

async def main(directory, name):
    results = Results(directory)
    for number in range(100):
        await results.record_end(Job(key=f"{name}-{number}", request=ExtendRequest("a1", model="V5")))

asyncio.run(main(*sys.argv[1:]))
"""


def test_processes_write_side_by_side(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    writers = [
        subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path), name])  # noqa: S603  # our own code
        for name in "abc"
    ]
    assert [writer.wait(60) for writer in writers] == [0, 0, 0]
    keys = [json.loads(line)["key"] for line in path.read_text().splitlines()]
    assert len(keys) == len(set(keys)) == 300
