"""What the tracks of a batch hold stands in their sidecars; a comparison that fails costs nothing."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Self

import pytest
from service import Service, as_journal, serving

import kie_async as kie
from kie_async.emulator import demo_song
from kie_async.events import Notice
from kie_async.journal import Job, SQLiteJournal, State

pytestmark = pytest.mark.anyio

FIELDS: dict[str, Any] = {"model": "V5", "style": "s", "title": "t", "prompt": "p"}


@pytest.fixture
async def service() -> AsyncIterator[Service]:
    async with serving(goes_on=(1.0, 1.5), timeline=(1.0, 2.0, 3.0)) as found:
        yield found


@pytest.fixture
def song(tmp_path: Path) -> Path:
    path = tmp_path / "song.wav"
    path.write_bytes(demo_song())
    return path


class JournalThatCalls:
    """A journal that calls a function just before a job becomes delivered."""

    def __init__(self, path: Path, before: Any) -> None:
        self._journal = SQLiteJournal(path, poll=5.0)  # virtual time is not spent on looking
        self._before = before

    def __getattr__(self, name: str) -> Any:
        return getattr(self._journal, name)

    async def __aenter__(self) -> Self:
        await self._journal.__aenter__()
        return self

    async def __aexit__(self, *error: object) -> None:
        await self._journal.__aexit__(None, None, None)

    async def move(self, key: str, state: State, **changes: Any) -> Job:
        if state is State.DELIVERED:
            self._before()
        return await self._journal.move(key, state, **changes)


async def sidecars(service: Service, jobs: list[kie.Request], folder: Path, before: Any = lambda: None) -> list[Any]:
    """Run a batch, and read the sidecars of what came of it."""
    journal = JournalThatCalls(folder / "journal.sqlite", before)
    batch = [Job(key=f"job{number}", request=request) for number, request in enumerate(jobs)]
    async for job in kie.run_batch(service.session, batch, journal=as_journal(journal), directory=folder / "out"):
        assert job.state is State.DELIVERED
    return [json.loads(path.read_text()) for path in sorted((folder / "out").glob("*.kie.json"))]


@pytest.mark.parametrize(("answers", "seam"), [("whole", 6.0), ("continuation", 0.0)])
async def test_each_track_has_a_verdict(answers: Any, seam: float, song: Path, tmp_path: Path) -> None:
    async with serving(goes_on=(7.0, 8.0), timeline=(1.0, 2.0, 3.0), answers=answers) as service:
        found = await sidecars(service, [kie.UploadExtendRequest(song, continue_at=6.0, **FIELDS)], tmp_path)
    assert [each["verdict"]["kind"] for each in found] == [answers, answers]
    assert [each["verdict"]["seam"] for each in found] == pytest.approx([seam, seam], abs=0.005)
    assert all(each["file"]["sha256"] for each in found)


async def test_what_is_not_here_or_has_changed_is_not_compared(service: Service, song: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.wav"
    other.write_bytes(song.read_bytes() + b"\0\0")

    def change() -> None:
        song.unlink(missing_ok=True)
        other.write_bytes(b"another song")

    jobs: list[kie.Request] = [
        kie.ExtendRequest("a1", continue_at=1.0, **FIELDS),
        *(kie.UploadExtendRequest(path, continue_at=3.0, **FIELDS) for path in (song, other)),
    ]
    found = await sidecars(service, jobs, tmp_path, before=change)
    assert len(found) == 6
    assert not any("verdict" in each for each in found)
    assert not service.of(Notice)


async def test_a_comparison_that_fails_is_a_notice(service: Service, song: Path, tmp_path: Path) -> None:
    def damage() -> None:
        for path in (tmp_path / "out").glob("*.mp3"):
            path.write_bytes(b"<html>")

    jobs: list[kie.Request] = [kie.UploadExtendRequest(song, continue_at=3.0, **FIELDS)]
    found = await sidecars(service, jobs, tmp_path, before=damage)
    assert not any("verdict" in each for each in found)
    (notice,) = service.of(Notice)
    assert "what the tracks of job 'job0' hold cannot be told" in notice.note
    assert "is no audio of a known kind" in notice.note


async def test_without_the_extra_all_is_as_before(
    service: Service, song: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "numpy" else find(name))
    jobs: list[kie.Request] = [kie.UploadExtendRequest(song, continue_at=3.0, **FIELDS)]
    found = await sidecars(service, jobs, tmp_path)
    assert len(found) == 2
    assert not any("verdict" in each for each in found)
    assert not service.of(Notice)
