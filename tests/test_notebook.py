"""What a notebook shows: tracks, results and jobs as tables, with players, in which any text stays text."""

from __future__ import annotations

import html.parser
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from IPython.core.formatters import HTMLFormatter

import kie_async as kie
from kie_async.events import clean
from kie_async.journal import JobError, JobResults, LastAttempt, State
from kie_async.testing import EmulatorHandle

Tag = tuple[str, dict[str, str | None]]

SHORT = kie.Track(
    "a", audio_url="https://x.example/a.mp3?sign=1&x=2", duration=60.0, title="One", model_name="chirp-crow"
)
LONG = kie.Track("b", audio_url="https://x.example/b.mp3#top", duration=125.5, title="Two")
RECORD = kie.TaskRecord("t1", "SUCCESS", (SHORT, LONG), param='{"callBackUrl":"https://me.example/kie/SECRET"}')
HOSTILE = """</bdi></td><script>alert(1)</script><img src=x onerror=alert(1)>" onplay="alert(1) '&lt;&#60;"""


class Page(html.parser.HTMLParser):
    """What a browser makes of HTML: its tags, and the text of each cell, caption and heading."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[Tag] = []
        self.cells: list[str] = []
        self.caption = ""
        self._open: list[str] = []
        self.feed(text)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag == "br":
            self.handle_data("|")
        else:
            self._open.append(tag)
        if tag == "td":
            self.cells.append("")

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "td" in self._open:
            self.cells[-1] += data
        elif "caption" in self._open:
            self.caption += data

    def of(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def html_of(value: object) -> str:
    """What a notebook shows of a value."""
    return str(HTMLFormatter()(value))


def shown(value: Any) -> Page:
    return Page(html_of(value))


def result_of(*tracks: kie.Track, **fields: Any) -> kie.TaskResult:
    return kie.TaskResult("t1", tracks, RECORD, **fields)


# ---------------------------------------------------------------- tracks and results


def test_a_track_has_a_player() -> None:
    page = shown(SHORT)
    (audio,) = page.of("audio")
    assert audio == {
        "controls": None, "preload": "none", "src": "https://x.example/a.mp3?sign=1&x=2", "aria-label": "One",
    }  # fmt: skip
    assert page.cells == ["One", "1:00", "chirp-crow", ""]


def test_a_track_that_is_being_made_is_played_as_it_streams() -> None:
    assert shown(kie.Track("a", stream_audio_url="http://s.example/a")).of("audio")[0]["src"] == "http://s.example/a"
    page = shown(kie.Track("a"))
    assert page.cells == ["untitled", "not known", "", "none yet"]
    assert page.of("audio") == []


def test_a_result_shows_where_its_tracks_are_new() -> None:
    page = shown(result_of(SHORT, LONG, continue_at=60.0, source_duration=126.0))
    assert page.caption == "Task t1, made from the first 1:00 of 2:06"
    assert page.cells == [
        "1", "One", "1:00", "from the start: this is the continuation alone", "",
        "2", "Two", "2:05.50", "from 1:00, if this is the whole song|listen from 0:57", "",
    ]  # fmt: skip
    assert [audio["aria-label"] for audio in page.of("audio")] == ["One", "Two"]
    (link,) = page.of("a")
    assert link == {"href": "https://x.example/b.mp3#t=57.00", "target": "_blank", "rel": "noopener noreferrer"}


def test_a_result_says_what_it_does_not_know() -> None:
    page = shown(result_of(LONG, partial=True))
    assert page.caption == "Task t1; other tracks of it never got their audio"
    assert page.cells == ["1", "Two", "2:05.50", "not known", ""]
    page = shown(result_of(kie.Track("a"), continue_at=2.0))
    assert page.caption == "Task t1, made from the first 0:02"
    assert page.cells == ["1", "untitled", "not known", "from 0:02, if this is the whole song", "none yet"]
    assert shown(result_of(LONG, continue_at=2.0)).of("a")[0]["href"] == "https://x.example/b.mp3#t=0.00"
    assert shown(result_of()).cells == []


def test_nothing_secret_is_shown() -> None:
    assert "SECRET" not in html_of(result_of(SHORT, LONG, continue_at=60.0))


# ---------------------------------------------------------------- any text stays text


@example(HOSTILE)
@example("\ud800 \x00 \u202e")
@given(st.text())
def test_a_title_stays_text(title: str) -> None:
    track = kie.Track("a", audio_url="https://x.example/a.mp3", title=title, model_name=title)
    job = kie.Job(key=title, request=kie.ExtendRequest("a1", model="V5"), results=JobResults(tracks=(track,)))
    for value in (track, kie.TaskResult(title, (track, track), RECORD, continue_at=1.0), job):
        page = shown(value)
        assert {name for name, _ in page.tags} <= {
            "table", "caption", "thead", "tbody", "tr", "th", "td", "bdi", "br", "a", "audio",
        }  # fmt: skip
        allowed = {"scope", "style", "controls", "preload", "src", "aria-label", "href", "target", "rel"}
        assert {name for _, attributes in page.tags for name in attributes} <= allowed
        text = clean(title).strip() or "untitled"
        assert {audio["aria-label"] for audio in page.of("audio")} == {text}
        assert any(cell.startswith(text) for cell in page.cells)
        html_of(value).encode()  # as a notebook is saved


@pytest.mark.parametrize(
    "url",
    [
        "javascript:alert(1)", "data:text/html,<script>alert(1)</script>", "file:///etc/passwd", "//x.example/a.mp3",
        "a.mp3", " https://x.example/a.mp3", "java\nscript:alert(1)", "https:a.mp3", "https://", "http://[::1",
        "https:\\\\x.example\\a.mp3", "https://x.example/a b.mp3", "https://x.example/\x00.mp3", "https://x\udc80/a.mp3",
        "https://user:password@x.example/a.mp3",
    ],
)  # fmt: skip
def test_only_addresses_of_http_and_https_are_played(url: str) -> None:
    page = shown(result_of(kie.Track("a", audio_url=url), continue_at=1.0))
    assert page.of("audio") == page.of("a") == []
    assert page.cells[-1] == clean(url)
    assert "password" not in page.cells[-1]


@example('"onplay="alert(1)"><script>&lt;\'', "https://x.example/?")
@given(st.text(), st.sampled_from(["", "https://", "http://x.example/", "https://x.example/?"]))
def test_an_address_stays_within_its_attribute(text: str, before: str) -> None:
    page = shown(result_of(kie.Track("a", audio_url=before + text), continue_at=5.0))
    assert [name for name, _ in page.tags if name not in {"a", "br", "audio"}].count("td") == 5
    for audio in page.of("audio"):
        assert audio == {"controls": None, "preload": "none", "src": before + text, "aria-label": "untitled"}
        (link,) = page.of("a")
        assert set(link) == {"href", "target", "rel"}
        assert str(link["href"]).endswith("#t=2.00")


# ---------------------------------------------------------------- jobs


def job_of(request: kie.Request, **fields: Any) -> kie.Job:
    return kie.Job(key="k1", request=request, **fields)


UPLOAD = kie.UploadExtendRequest("/home/ann/Music/song.wav", model="V5", continue_at=60.0)


def test_a_job_shows_its_tracks() -> None:
    attempt = LastAttempt(token="SECRET", task_id="t1", credits=12.0)
    results = JobResults(tracks=(SHORT, LONG), files=("k1-1.mp3", "k1-2.mp3"))
    page = shown(job_of(UPLOAD, state=State.DELIVERED, last_attempt=attempt, results=results))
    assert page.caption == "1 job: 1 delivered; 12 credits"
    assert page.cells == [
        "k1",
        "delivered",
        "song.wav",
        "1:00",
        (
            "One, length 1:00||new part: from the start: this is the continuation alone||"
            "Two, length 2:05.50||new part: from 1:00, if this is the whole song|listen from 0:57"
        ),
    ]
    assert [audio["aria-label"] for audio in page.of("audio")] == ["One", "Two"]
    assert "SECRET" not in html_of(job_of(UPLOAD, last_attempt=attempt))


@pytest.mark.parametrize(
    ("request_", "source", "cut"),
    [
        (kie.ExtendRequest("a1", model="V5"), "a1", ""),
        (kie.UploadExtendRequest("a.wav", continue_at="75%"), "a.wav", "75%"),
        (kie.UploadExtendRequest("https://x.example/s.mp3?sign=1", continue_at=1), "https://x.example/…", "0:01"),
        (kie.UploadExtendRequest("C:\\Users\\ann\\song.wav", continue_at=65.5), "song.wav", "1:05.50"),
        (kie.UploadExtendRequest(Path("/home/ann/a.wav"), continue_at=1), "a.wav", "0:01"),
    ],
)
def test_a_source_is_shown_without_its_folder(request_: kie.Request, source: str, cut: str) -> None:
    assert shown(job_of(request_)).cells == ["k1", "planned", source, cut, ""]


@pytest.mark.parametrize(
    ("message", "shows"),
    [
        ("/home/ann/out: no room", "…/out: no room"),
        ("it leads to /home/ann/my music/a.wav, a link", "it leads to …/a.wav, a link"),
        ("'C:\\Users\\ann\\a.wav' is gone", "'…/a.wav' is gone"),
        ("see https://x.example/a/b, and/or wait", "see https://x.example/… and/or wait"),
    ],
)
def test_an_error_is_shown_without_folders(message: str, shows: str) -> None:
    error = JobError(type="StorageError", message=message)
    assert shown(job_of(UPLOAD, state=State.FAILED, error=error)).cells[-1] == f"StorageError: {shows}"


def test_a_batch_is_a_list_that_sums_up() -> None:
    done = kie.JobList()
    assert shown(done).caption == "0 jobs: none; 0 credits"
    for number in range(101):
        paid = LastAttempt(credits=12.0) if number else LastAttempt()
        done.append(job_of(UPLOAD, state=State.FAILED if number else State.PLANNED, last_attempt=paid))
    page = shown(done)
    assert page.caption == "101 jobs: 1 planned, 100 failed; 1200 credits; the first 100 of them"
    assert len(page.of("tr")) == 1 + 100


# ---------------------------------------------------------------- in a notebook

CELLS = (
    "import kie_async as kie\nsession = await kie.KieSession.open()",
    "own = {'continue_at': 60, 'style': 'Classical', 'title': '<b>Longer</b>', 'instrumental': True}",
    "task = await session.extend('track-id', model='V5', **own)",
    "await task",
    "(await task).tracks[0]",
    """jobs = kie.JobList()
async for job in kie.run_batch(session, kie.read_manifest("songs.jsonl", defaults={"model": "V5"}), directory="out"):
    jobs.append(job)
jobs""",
    "await session.aclose()",
)


@pytest.fixture
def kie_emulator_options() -> dict[str, Any]:
    return {"speed": 5000.0}


# In a process of its own: the client leaves sockets open. Sockets of files need no ports, which others could take.
EXECUTE = """
import sys
import nbformat
from jupyter_client import AsyncKernelManager
from nbclient import NotebookClient

notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(code) for code in sys.argv[2:]])
kernel = AsyncKernelManager(transport="ipc", connection_file=sys.argv[1] + "/kernel.json")
NotebookClient(notebook, km=kernel, timeout=100).execute()
print(nbformat.writes(notebook))
"""
FOLDERS = ("IPYTHONDIR", "JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR")


def test_a_session_lives_across_the_cells_of_a_notebook(kie_emulator: EmulatorHandle) -> None:
    with tempfile.TemporaryDirectory(prefix="kie-") as folder:  # a short path, as sockets need
        environment = {name: text for name, text in os.environ.items() if not name.startswith("COVERAGE")}
        Path(folder, "songs.jsonl").write_text('{"id": "<i>one</i>", "audio_id": "a1"}')
        done = subprocess.run(  # noqa: S603  # our own code
            [sys.executable, "-c", EXECUTE, folder, *CELLS],
            cwd=folder,
            env=environment | dict.fromkeys(FOLDERS, folder),
            capture_output=True,
            text=True,
            timeout=200,
            check=False,
        )
    assert done.returncode == 0, done.stderr
    cells = json.loads(done.stdout)["cells"]
    silent, (result,), (track,), (batch,), closed = (cells[:3], *(cell["outputs"] for cell in cells[3:6]), cells[6:])
    assert [cell["outputs"] for cell in (*silent, *closed)] == [[], [], [], []]
    pages = [Page("".join(output["data"]["text/html"])) for output in (result, track, batch)]
    assert pages[0].caption.endswith("made from the first 1:00")
    assert [pages[0].cells[1], pages[0].cells[6], pages[1].cells[0]] == ["<b>Longer</b>"] * 3
    assert pages[2].caption == "1 job: 1 delivered; 12 credits"
    assert pages[2].cells[:2] == ["<i>one</i>", "delivered"]
    assert [len(page.of("audio")) for page in pages] == [2, 1, 2]
    assert all(str(audio["src"]).startswith(kie_emulator.base_url) for page in pages for audio in page.of("audio"))
    assert kie_emulator.key not in done.stdout
