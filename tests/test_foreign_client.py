"""A client of this family of APIs that others wrote, pointed at the emulator. It comes with the extra ``bench``."""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from kie_async import files
from kie_async.emulator import demo_song
from kie_async.testing import EmulatorHandle, serve_in_thread

suno_easy = pytest.importorskip("suno_easy", reason="the extra bench is not installed")

AT_ONCE = (0.05, 0.1, 0.15)
STREAM_ONLY = (0.05, 3600.0, 7200.0)
FIELDS: dict[str, Any] = {"prompt": "words", "style": "folk", "title": "Longer", "model": "V5", "wait": False}

Submit = Callable[[Any], Any]  # a client to its handle of a task; the package has types of its own, and may be absent


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "*")


@contextmanager
def client_of(service: EmulatorHandle, key: str = "") -> Iterator[Any]:
    client = suno_easy.SunoClient(key or service.key, upload_base_url=service.base_url)
    client.BASE_URL = service.base_url
    with client.session:
        yield client


def extend(client: Any) -> Any:
    return client.music.extend("e231", 60, **FIELDS)


def upload_extend(client: Any) -> Any:
    song = client.upload.upload_base64(base64.b64encode(demo_song()).decode(), "in", "song.wav")
    return client.audio.extend(song.download_url, 12, **FIELDS)


@pytest.mark.parametrize(("submit", "start"), [(extend, 60), (upload_extend, 12)])
def test_a_task_is_waited_for_to_its_end(submit: Submit, start: float, tmp_path: Path) -> None:
    with serve_in_thread(speed=1.0, timeline=AT_ONCE, goes_on=(1.0, 2.0)) as service, client_of(service) as client:
        task = submit(client)
        songs = task.wait(poll_interval=0.05)
        assert [charge.task_id for charge in service.ledger] == [task.task_id]
        assert [song.title for song in songs] == ["Longer", "Longer"]
        for song, more in zip(songs, (1.0, 2.0), strict=True):
            path = tmp_path / f"{song.id}.mp3"
            song.download(str(path))
            assert song.duration == pytest.approx(start + more, abs=0.1)
            assert files.measure(path) == pytest.approx(start + more, abs=0.1)


@pytest.mark.parametrize("submit", [extend, upload_extend])
def test_a_task_is_waited_for_until_it_can_be_heard(submit: Submit) -> None:
    with serve_in_thread(speed=1.0, timeline=STREAM_ONLY) as service, client_of(service) as client:
        songs = submit(client).wait(poll_interval=0.05, wait_until="stream")
        assert len(songs) == 2
        assert all(song.stream_url.startswith(f"{service.base_url}/files/stream/") for song in songs)
        assert all(song.audio_url is None for song in songs)


def test_a_wrong_key_is_refused() -> None:
    with serve_in_thread() as service, client_of(service, "mistyped") as client:
        for submit in (extend, upload_extend):
            with pytest.raises(suno_easy.SunoAPIError) as caught:
                submit(client)
            assert caught.value.status_code == 401
        assert service.ledger == []
