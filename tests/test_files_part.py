from __future__ import annotations

import errno
import fcntl
import json
import os
import resource
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import pytest

from kie_async.errors import StorageError
from kie_async.files._partial_file import PartialFile, ResumeInfo, remove_parts

INFO = ResumeInfo("here", '"v1"', 5)


def written(directory: Path, data: bytes = b"hello", stem: str = "a") -> PartialFile:
    part = PartialFile.open(directory, stem)
    part.restart(INFO)
    part.append(data)
    return part


def names(directory: Path) -> set[str]:
    return {path.name for path in directory.iterdir()}


def test_a_part_becomes_the_file(tmp_path: Path) -> None:
    part = written(tmp_path / "new" / "er")
    assert names(part.path.parent) == {"a.part", "a.part.json"}
    path = part.finish(".mp3")
    assert path == tmp_path / "new" / "er" / "a.mp3"
    assert path.read_bytes() == b"hello"
    assert names(path.parent) == {"a.mp3"}


def test_the_bytes_are_on_the_disk_before_the_name_and_the_name_before_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[str] = []
    sync, link = os.fsync, os.link

    def fsync(number: int) -> None:
        steps.append("directory" if stat.S_ISDIR(os.fstat(number).st_mode) else "bytes")
        sync(number)

    def watched(source: Path, target: Path, *, follow_symlinks: bool) -> None:
        steps.append("name")
        link(source, target, follow_symlinks=follow_symlinks)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "link", watched)
    written(tmp_path).finish(".mp3")
    assert steps == ["bytes", "name", "directory"]


def test_a_part_goes_on_where_it_ended(tmp_path: Path) -> None:
    written(tmp_path).release()
    part = PartialFile.open(tmp_path, "a")
    assert (part.size, part.resume_info) == (5, INFO)
    part.append(b" there")
    assert part.finish(".mp3").read_bytes() == b"hello there"


def test_a_part_that_begins_anew_forgets_what_was_there(tmp_path: Path) -> None:
    part = written(tmp_path)
    part.restart(ResumeInfo("there", None, None))
    part.append(b"x")
    part.release()
    part = PartialFile.open(tmp_path, "a")
    assert (part.size, part.resume_info) == (1, ResumeInfo("there", None, None))
    part.release()


def test_an_empty_part_leaves_nothing_behind(tmp_path: Path) -> None:
    PartialFile.open(tmp_path, "a").release()
    part = written(tmp_path, b"")
    part.release()
    part.release()
    assert names(tmp_path) == set()


def test_an_existing_file_is_never_overwritten(tmp_path: Path) -> None:
    (tmp_path / "a.mp3").write_bytes(b"mine")
    (tmp_path / "a-2.mp3").symlink_to("nowhere")
    path = written(tmp_path).finish(".mp3")
    assert path.name == "a-3.mp3"
    assert (tmp_path / "a.mp3").read_bytes() == b"mine"


def test_a_disk_without_hard_links_serves_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_arguments: object, **_options: object) -> None:
        raise OSError(errno.EPERM, "no links here")

    monkeypatch.setattr(os, "link", refuse)
    (tmp_path / "a.mp3").write_bytes(b"mine")
    path = written(tmp_path).finish(".mp3")
    assert path.name == "a-2.mp3"
    assert (tmp_path / "a.mp3").read_bytes() == b"mine"
    assert names(tmp_path) == {"a.mp3", "a-2.mp3"}


def test_a_disk_without_hard_links_gives_a_name_to_one_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_arguments: object, **_options: object) -> None:
        raise OSError(errno.EPERM, "no links here")

    one, other = written(tmp_path, b"one"), written(tmp_path, b"other")
    publishing = threading.Thread(target=other.finish, args=(".mp3",))
    rename = Path.rename

    def late(path: Path, target: Path) -> None:
        if path == one.path:  # found the name free; meanwhile the other looks for one
            publishing.start()
            publishing.join(0.2)
        rename(path, target)

    monkeypatch.setattr(os, "link", refuse)
    monkeypatch.setattr(Path, "rename", late)
    assert one.finish(".mp3").name == "a.mp3"
    publishing.join()
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"a.mp3": b"one", "a-2.mp3": b"other"}


def test_two_downloads_of_one_name_never_mix(tmp_path: Path) -> None:
    one, other = written(tmp_path, b"one"), written(tmp_path, b"other")
    assert other.path.name == "a.part-2"
    paths = [other.finish(".mp3"), one.finish(".mp3")]
    assert [path.name for path in paths] == ["a.mp3", "a-2.mp3"]
    assert [path.read_bytes() for path in paths] == [b"other", b"one"]


def test_parts_that_nobody_writes_are_removed(tmp_path: Path) -> None:
    held = written(tmp_path)
    for _ in range(2):
        left = written(tmp_path)
        kept = written(tmp_path)
        assert [left.path.name, kept.path.name] == ["a.part-2", "a.part-3"]
        left.release()
        kept.release()
        remove_parts(tmp_path, "a")
        assert names(tmp_path) == {"a.part", "a.part.json"}
    held.finish(".mp3")
    written(tmp_path, stem="a.part").release()
    remove_parts(tmp_path, "a")
    assert names(tmp_path) == {"a.mp3", "a.part.part", "a.part.part.json"}


def test_a_part_that_was_finished_while_we_waited_for_its_lock_is_not_touched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    holder = written(tmp_path)
    flock = fcntl.flock

    def late(number: int, operation: int) -> None:
        if not (tmp_path / "a.mp3").exists():
            holder.finish(".mp3")  # between our opening of the part and our lock on it
        flock(number, operation)

    monkeypatch.setattr(fcntl, "flock", late)
    part = PartialFile.open(tmp_path, "a")
    assert (part.path.name, part.size) == ("a.part", 0)
    part.restart(INFO)
    part.append(b"x")
    assert (tmp_path / "a.mp3").read_bytes() == b"hello"
    part.release()


def test_a_part_taken_away_and_made_anew_is_not_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = (tmp_path / "a.part").open("wb")
    replaced: list[Path] = []
    flock = fcntl.flock

    def late(number: int, operation: int) -> None:
        if not replaced:
            (tmp_path / "a.part").unlink()
            (tmp_path / "a.part").write_bytes(b"new")
            replaced.append(tmp_path)
        flock(number, operation)

    monkeypatch.setattr(fcntl, "flock", late)
    part = PartialFile.open(tmp_path, "a")
    assert part.size == 3
    part.release()
    old.close()


def test_a_part_whose_holder_died_after_naming_the_file_is_that_file(tmp_path: Path) -> None:
    part = written(tmp_path)
    os.link(part.path, tmp_path / "a.mp3")
    part.release()
    found = PartialFile.open(tmp_path, "a")
    assert found.finished_path == tmp_path / "a.mp3"
    found.release()
    assert names(tmp_path) == {"a.mp3"}


def test_a_part_that_is_somebody_elses_file_is_not_written_to(tmp_path: Path) -> None:
    mine = tmp_path / "elsewhere"
    mine.write_bytes(b"mine")
    (tmp_path / "a.mp3").write_bytes(b"other")
    os.link(mine, tmp_path / "a.part")
    part = PartialFile.open(tmp_path, "a")
    assert (part.finished_path, part.size) == (None, 0)
    part.restart(INFO)
    part.release()
    assert mine.read_bytes() == b"mine"


@pytest.mark.parametrize("name", ["a.part", "a.part.json", "a.mp3"])
def test_a_symbolic_link_is_not_followed_out(name: str, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.write_bytes(b"mine")
    inside = tmp_path / "inside"
    inside.mkdir()
    (inside / name).symlink_to(outside)
    refused = name != "a.mp3"
    with pytest.raises((OSError, StorageError), match="symbolic") if refused else nullcontext():
        part = PartialFile.open(inside, "a")
        try:
            part.restart(INFO)
            part.append(b"hello")
            assert part.finish(".mp3").name == "a-2.mp3"
        finally:
            part.release()
    assert outside.read_bytes() == b"mine"


def test_a_symbolic_link_within_the_directory_is_not_followed_either(tmp_path: Path) -> None:
    (tmp_path / "mine").write_bytes(b"mine")
    (tmp_path / "a.part").symlink_to("mine")
    with pytest.raises(StorageError, match="symbolic"):
        PartialFile.open(tmp_path, "a")
    assert (tmp_path / "mine").read_bytes() == b"mine"


def test_the_directory_itself_may_be_a_link(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    assert written(tmp_path / "link").finish(".mp3") == tmp_path / "real" / "a.mp3"


def test_a_name_that_leads_out_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="leads out"):
        PartialFile.open(tmp_path, "../a")


def test_a_fifo_in_the_way_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.part")
    with pytest.raises(OSError, match="seek"):
        PartialFile.open(tmp_path, "a")


@pytest.mark.parametrize(
    "resume_info",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"{}",
        b"\xff",
        b"[" * 100_000,
        b'{"source": 1, "validator": null, "total": null}',
        b'{"source": "a", "validator": 1, "total": null}',
        b'{"source": "a", "validator": null, "total": "1"}',
        json.dumps({"source": "a" * 5000, "validator": None, "total": None}).encode(),
    ],
)
def test_resume_info_that_is_odd_is_as_good_as_none(resume_info: bytes, tmp_path: Path) -> None:
    written(tmp_path).release()
    (tmp_path / "a.part.json").write_bytes(resume_info)
    part = PartialFile.open(tmp_path, "a")
    assert (part.size, part.resume_info) == (5, None)
    part.release()


@contextmanager
def disk_of(size: int) -> Iterator[None]:
    """No file can be larger: what a full disk is, short of filling one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("room", [1000, 1001, 4096, 9999])
def test_a_disk_that_is_full_at_any_byte_keeps_what_it_took(room: int, tmp_path: Path) -> None:
    data = bytes(range(250)) * 40
    part = written(tmp_path, b"")
    with disk_of(room), pytest.raises(OSError, match="large"):
        part.append(data)
    part.release()
    part = PartialFile.open(tmp_path, "a")
    assert part.size == room
    part.append(data[room:])
    assert part.finish(".mp3").read_bytes() == data


# ------------------------------------------------------------ killed at any moment

KILLED_AT_EVERY_STEP = """
import os, signal, sys
from pathlib import Path
from kie_async.files._partial_file import PartialFile, ResumeInfo

WHOLE = b"x" * 3000

def watch(when):
    steps = 0
    def watched(real):
        def step(*arguments, **options):
            nonlocal steps
            steps += 1
            if steps == when:
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*arguments, **options)
        return step
    for name in ("open", "fstat", "fsync", "link", "unlink", "lstat", "mkdir", "close"):
        setattr(os, name, watched(getattr(os, name)))

def download(directory):
    part = PartialFile.open(directory, "a")
    if part.finished_path is None:
        part.resume_info or part.restart(ResumeInfo("here", None, len(WHOLE)))
        while part.size < len(WHOLE):
            part.append(WHOLE[: min(1000, len(WHOLE) - part.size)])
            os.lstat(directory)  # a moment between two writes
        part.finish(".mp3")
    part.release()

def run(when, directory):
    child = os.fork()
    if not child:
        watch(when)
        download(directory)
        os._exit(0)
    return os.waitpid(child, 0)[1]

for step in range(1, 1000):
    directory = Path(sys.argv[1], str(step))
    directory.mkdir()
    ended = run(step, directory)
    assert all(path.read_bytes() == WHOLE for path in directory.glob("*.mp3")), step
    if ended == 0:
        break
    assert ended == signal.SIGKILL, (step, ended)
    done = {"a.mp3"} == {path.name for path in directory.iterdir()}
    assert run(0, directory) == 0, step
    files = {path.name: path.read_bytes() for path in directory.iterdir()}
    # Only if nothing was left to do but to say so does a second call fetch a second copy.
    assert files == ({"a.mp3": WHOLE, "a-2.mp3": WHOLE} if done else {"a.mp3": WHOLE}), (step, files.keys())
print(step)
"""


def test_killed_at_any_moment_the_file_is_whole_or_absent(tmp_path: Path) -> None:
    with running(KILLED_AT_EVERY_STEP, str(tmp_path)) as child:
        steps, words = child.communicate(timeout=120)
    assert child.returncode == 0, words
    assert int(steps) > 15


def running(script: str, *arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", script, *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)  # noqa: S603  # our own script


WORKER = """
import sys
from pathlib import Path
from kie_async.files._partial_file import PartialFile, ResumeInfo

mark = sys.argv[1].encode()
for _ in range(20):
    part = PartialFile.open(Path(sys.argv[2]), "a")
    part.restart(ResumeInfo("here", None, None))
    for _ in range(5):
        part.append(mark * 1000)
    assert part.finished_path is None
    part.finish(".mp3")
"""


def test_many_processes_on_one_name_leave_whole_files_only(tmp_path: Path) -> None:
    children = [running(WORKER, mark, str(tmp_path)) for mark in "abcd"]
    for child in children:
        with child:
            assert child.communicate(timeout=120) == ("", "")
    files = [path.read_bytes() for path in tmp_path.iterdir()]
    assert len(files) == 80
    assert all(data == data[:1] * 5000 for data in files)
    assert {data[:1] for data in files} == {b"a", b"b", b"c", b"d"}
