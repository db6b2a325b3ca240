"""Smoke runs of the benchmarks of cost: they run, and their tables hold what they say."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

from benchmarks import audio, batch, files, overhead, quota, report, scale

pytestmark = pytest.mark.scale


@pytest.fixture(autouse=True)
def _from_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(overhead.__file__).parents[1]))  # their processes import them by name


def rows(text: str) -> list[list[str]]:
    """The cells of each line; two blanks or more are between two cells."""
    return [[cell for cell in line.split("  ") if cell] for line in text.splitlines()]


def test_overhead(capsys: pytest.CaptureFixture[str]) -> None:
    assert overhead.main(["--in-flight", "4", "--cycles", "4", "--rounds", "1", "--profile"]) == 0
    found = rows(capsys.readouterr().out)
    assert [row[0] for row in found[2:5]] == ["ours", "floor", "floor, connections kept"]
    assert found[3][-1].strip() == "1.00"
    assert any(row[0].startswith("tracker.py") or row[0] == "aiohttp" for row in found[5:])


def test_scale(capsys: pytest.CaptureFixture[str]) -> None:
    assert scale.main(["--tasks", "20", "--seconds", "0.1"]) == 0
    assert rows(capsys.readouterr().out)[2][0] == "20"


def test_audio(capsys: pytest.CaptureFixture[str]) -> None:
    assert audio.main(["--seconds", "35", "--rounds", "1", "--pair", "40", "--cases", "2"]) == 0
    found = [row[0] for row in rows(capsys.readouterr().out)]
    assert found[2:7] == ["an unknown song", "an mp3", "the encoder alone", "a verdict on", "two mp3 of 40 s"]
    assert found[7:11] == ["joining them as", ".wav", ".flac", ".mp3"]
    assert found[-3:-1] == ["whole", "continuation"]


def test_report(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")  # there is no browser to wait for
    assert report.main(["--jobs", "1", "--seconds", "2"]) == 0
    found = rows(capsys.readouterr().out)
    assert [row[0] for row in found[2:4]] == ["first", "again"]
    assert found[4][0].endswith("MB, first row after: no browser")


def test_files(capsys: pytest.CaptureFixture[str]) -> None:
    assert files.main(["--songs", "2", "--size", "40000", "--at-once", "2", "--rounds", "1", "--mbit", "1000"]) == 0
    found = rows(capsys.readouterr().out)
    assert [row[0] for row in found[2:]] == ["session", "batch", "bare loop"]
    assert [cell.strip() for cell in found[4][3::2]] == ["1.00", "1.00"]


def test_import(capsys: pytest.CaptureFixture[str]) -> None:
    assert importlib.import_module("benchmarks.import").main(["--rounds", "1"]) == 0
    names = [row[0] for row in rows(capsys.readouterr().out)[2:]]
    assert names[0] == "import aiohttp"
    assert "kie-async --help" in names


def test_batch(capsys: pytest.CaptureFixture[str], database_url: str) -> None:
    words = ["--moved", "5", "--at-once", "2", "--finished", "10", "--store", database_url]
    assert batch.main(words) == 0
    found = rows(capsys.readouterr().out)
    assert [row[0] for row in found[2:4]] == ["SQLite", "PostgreSQL"]
    assert found[-1][0].strip() == "10"


def test_quota(capsys: pytest.CaptureFixture[str], database_url: str) -> None:
    words = ["--limit", "3", "--window", "0.5", "--bursts", "2", "--processes", "1", "2", "--store", database_url]
    assert quota.main(words) == 0
    found = rows(capsys.readouterr().out)
    assert [int(row[2]) for row in found[2:]] == [3, 3]
