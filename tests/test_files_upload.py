from __future__ import annotations

import asyncio
import json
import os
import re
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import attrs
import audio_files
import pytest
from aiohttp import web
from audio_files import HTML, PNG
from file_host import settings

from kie_async import files
from kie_async._client.http_client import Transport
from kie_async.errors import AudioError, BadResponseError, KieError, ServerError, StorageError
from kie_async.events import Event, Notice

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("clock")]

SONG = audio_files.mp3()


@attrs.frozen
class Got:
    name: str
    folder: str
    part_name: str
    data: bytes


@attrs.define
class Host:
    """The upload host in miniature: keeps what it got, and answers with changes to what is usual."""

    changes: dict[str, Any] = attrs.field(factory=dict)
    cuts: int = 0
    got: list[Got] = attrs.field(factory=list)
    meanwhile: Callable[[], None] = lambda: None
    url: str = ""

    async def take(self, request: web.Request) -> web.Response:
        if self.cuts:
            self.cuts -= 1
            await request.content.readexactly(1000)
            assert request.transport is not None
            request.transport.abort()
        form = await request.post()
        file = form["file"]
        assert isinstance(file, web.FileField)
        got = Got(str(form["fileName"]), str(form["uploadPath"]), file.filename, file.file.read())
        self.got.append(got)
        self.meanwhile()
        data = {
            "success": True,
            "fileName": got.name,
            "filePath": f"kieai/1/{got.folder}/{got.name}",
            "downloadUrl": f"{self.url}/{got.name}",
            "fileSize": len(got.data),
            "mimeType": "audio/mpeg",
            "uploadedAt": "2026-04-16T07:19:12.862Z",
        }
        answer = {"success": True, "code": 200, "msg": "File uploaded successfully", "data": {**data, **self.changes}}
        return web.Response(text=json.dumps(answer), content_type="application/json")


@asynccontextmanager
async def upload_host(*, api: str = "", **options: Any) -> AsyncIterator[tuple[Host, Transport]]:  # fields of Host
    host = Host(**options)
    app = web.Application(client_max_size=1 << 30)
    app.router.add_post("/api/file-stream-upload", host.take)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    host.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    try:
        async with Transport(
            settings(base_url=api or host.url, upload_base_url=host.url), lambda _event: None
        ) as transport:
            yield host, transport
    finally:
        await runner.cleanup()


@pytest.fixture
def song(tmp_path: Path) -> Path:
    path = tmp_path / "My song.mp3"
    path.write_bytes(SONG)
    return path


async def refused(path: Path | str, error: type[KieError] = AudioError) -> str:
    """Upload what must not be uploaded: the words of the refusal."""
    async with upload_host() as (host, transport):
        with pytest.raises(error) as caught:
            await files.upload(transport, path)
    assert not host.got
    return caught.value.message


async def test_a_file_goes_up_whole_under_a_random_name(song: Path) -> None:
    seen: list[tuple[int, int | None]] = []
    async with upload_host() as (host, transport):
        answer = await files.upload(transport, song, progress=lambda *at: seen.append(at))
        await asyncio.sleep(0.1)
        again = await files.upload(transport, str(song), measure=False)
    first, second = host.got
    assert first.data == SONG
    assert re.fullmatch(r"[0-9a-f]{32}\.mp3", first.name)
    assert first.part_name == first.name != second.name
    assert first.folder == second.folder == "kie-async"
    assert answer.download_url == f"{host.url}/{first.name}"
    assert answer.size == len(SONG)
    assert answer.duration == pytest.approx(audio_files.SECONDS, abs=0.15)
    assert again.duration is None
    assert seen[-1] == (len(SONG), len(SONG))


@pytest.mark.parametrize(
    ("make", "suffix"),
    [(audio_files.wav, ".wav"), (audio_files.flac, ".flac"), (audio_files.m4a, ".m4a"), (audio_files.ogg, ".ogg")],
)
async def test_the_suffix_is_that_of_the_content(make: Callable[[], bytes], suffix: str, song: Path) -> None:
    song.write_bytes(make())
    async with upload_host() as (host, transport):
        await files.upload(transport, song)
    assert host.got[0].name.endswith(suffix)


async def test_an_upload_that_breaks_off_goes_up_again_whole(song: Path) -> None:
    async with upload_host(cuts=2) as (host, transport):
        answer = await files.upload(transport, song)
    assert [got.data for got in host.got] == [SONG]
    assert answer.size == len(SONG)


async def test_an_upload_that_always_breaks_off_is_told(song: Path) -> None:
    async with upload_host(cuts=100) as (host, transport):
        with pytest.raises(ServerError):
            await files.upload(transport, song)
    assert not host.got


@pytest.mark.parametrize(
    ("data", "words"),
    [(b"", "is empty"), (HTML, "no audio by its content"), (PNG, "no audio by its content"), (b"\0" * 99, "no audio")],
)
async def test_what_is_no_audio_stays_here(data: bytes, words: str, song: Path) -> None:
    song.write_bytes(data)
    message = await refused(song)
    assert words in message
    assert "My song.mp3" in message


async def test_what_is_no_plain_file_stays_here(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo.mp3")
    for path in (tmp_path, tmp_path / "fifo.mp3", "/dev/zero", "/dev/null"):
        assert "no plain file" in await refused(path)


async def test_what_is_not_there_is_told(tmp_path: Path) -> None:
    (tmp_path / "dangling.mp3").symlink_to("nowhere")
    (tmp_path / "file").touch()
    for name in ("missing.mp3", "a\0b.mp3", "dangling.mp3", "file/below.mp3"):
        assert "does not exist" in await refused(tmp_path / name)


async def test_a_link_in_circles_is_the_disks_matter(tmp_path: Path) -> None:
    (tmp_path / "loop.mp3").symlink_to("loop.mp3")
    assert "loop.mp3" in await refused(tmp_path / "loop.mp3", StorageError)


async def test_a_file_that_may_not_be_read_is_the_disks_matter(song: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def deny(path: Path, *_arguments: object, **_options: object) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "open", deny)  # permissions do not stop root, who may run this
    assert "Permission denied" in await refused(song, StorageError)


HALF = audio_files.SECONDS / 2


@pytest.mark.parametrize(
    ("make", "is_measured", "end"),
    [
        (audio_files.wav, False, HALF),
        (audio_files.mp3, False, HALF),
        (lambda: audio_files.m4a(index_first=True), False, HALF),
        (audio_files.flac, False, None),  # its header does not say where the file ends
        (audio_files.flac, True, HALF),
        (audio_files.aac, True, None),
    ],
)
async def test_a_file_that_ends_before_its_header_says_so_goes_up_with_a_notice(
    make: Callable[[], bytes], end: float | None, song: Path, *, is_measured: bool
) -> None:
    data = make()
    notes = []
    for part in (data, data[: len(data) // 2]):
        song.write_bytes(part)
        emitted: list[Event] = []
        async with upload_host() as (_, transport):
            transport.emit = emitted.append
            await files.upload(transport, song, measure=is_measured)
        notes += [event.note for event in emitted if isinstance(event, Notice)]
    assert len(notes) == (end is not None)
    for note in notes:
        found = re.fullmatch(r"My song\.mp3 is cut off: its header says 0:20.*, its audio ends at about 0:(\d\d)", note)
        assert found
        assert int(found[1]) == pytest.approx(end, abs=4)  # half of the bytes is not always half of the time


async def test_an_ogg_without_its_last_page_goes_up_with_a_notice(song: Path) -> None:
    data = audio_files.ogg()
    notes: list[Event] = []
    for part in (data, data[: len(data) // 2]):
        song.write_bytes(part)
        async with upload_host() as (_, transport):
            transport.emit = notes.append
            await files.upload(transport, song, measure=False)
    assert notes == [Notice("", "My song.mp3 seems to be cut off: the page that ends it is missing", "cut_off")]


@pytest.mark.parametrize("make", [audio_files.wav, audio_files.mp3, audio_files.flac, audio_files.ogg])
async def test_of_a_file_that_is_cut_off_some_seconds_must_be_left(make: Callable[[], bytes], song: Path) -> None:
    data = make()
    song.write_bytes(data[: len(data) // 14])
    message = await refused(song)
    assert "cut off: " in message
    assert message.endswith("; less than 2 s of it are left: get the whole file")


@pytest.mark.parametrize("size", [0, 0x7FFFFFFF, 0x7FFFFFD0, 0xFFFFFFFF])
async def test_a_wav_from_a_pipe_is_not_cut_off(size: int, song: Path) -> None:
    data = audio_files.wav_that_claims(size and size - 36)
    song.write_bytes(data[:4] + size.to_bytes(4, "little") + data[8:])
    emitted: list[Event] = []
    async with upload_host() as (_, transport):
        transport.emit = emitted.append
        await files.upload(transport, song)
    assert not emitted


async def test_a_file_over_the_limit_stays_here(song: Path) -> None:
    os.truncate(song, 200_000_001)
    assert "200000001 bytes" in await refused(song)


async def test_audio_that_cannot_be_measured_stays_here(song: Path) -> None:
    data = audio_files.m4a()
    song.write_bytes(data[: len(data) // 2])
    assert "damaged" in await refused(song)


@pytest.mark.parametrize("change", ["longer", "touched", "replaced", "gone"])
async def test_a_file_that_changes_meanwhile_is_told_before_anything_is_spent(change: str, song: Path) -> None:
    def meanwhile() -> None:
        if change == "longer":
            with song.open("ab") as file:
                file.write(b"more")
        elif change == "touched":
            os.utime(song, ns=(1, 1))
        elif change == "replaced":
            about = song.stat()
            song.rename(song.with_name("old"))
            song.write_bytes(SONG)
            os.utime(song, ns=(about.st_atime_ns, about.st_mtime_ns))
        else:
            song.unlink()

    async with upload_host(meanwhile=meanwhile) as (_, transport):
        with pytest.raises(AudioError, match=r"changed while|does not exist"):
            await files.upload(transport, song)


@pytest.mark.parametrize(
    "changes",
    [
        {"downloadUrl": "http://example.com/a.mp3"},
        {"downloadUrl": "ftp://example.com/a.mp3"},
        {"downloadUrl": "https://user:pass@example.com/a.mp3"},
        {"downloadUrl": "https://10.0.0.1/a.mp3"},
        {"downloadUrl": None},
        {"downloadUrl": ""},
        {"success": False},
        {"fileSize": len(SONG) - 1},
        {"fileSize": 0},
    ],
)
async def test_an_answer_that_is_not_about_this_file_is_refused(changes: dict[str, Any], song: Path) -> None:
    async with upload_host(changes=changes) as (_, transport):
        with pytest.raises(BadResponseError):
            await files.upload(transport, song)


@pytest.mark.parametrize("changes", [{"fileSize": None}, {"downloadUrl": "https://media.example.net/a.mp3"}])
async def test_an_answer_may_leave_out_the_size(changes: dict[str, Any], song: Path) -> None:
    async with upload_host(changes=changes) as (_, transport):
        await files.upload(transport, song)


async def test_plain_http_to_this_machine_is_no_answer_when_the_api_is_elsewhere(song: Path) -> None:
    async with upload_host(api="https://api.kie.ai") as (_, transport):
        with pytest.raises(BadResponseError, match="odd address"):
            await files.upload(transport, song)
    async with upload_host() as (host, transport):
        assert (await files.upload(transport, song)).download_url.startswith(f"{host.url}/")


async def test_a_failing_callback_does_not_fail_the_upload(song: Path) -> None:
    emitted: list[Event] = []

    def failing(_done: int, _total: int | None) -> None:
        raise ZeroDivisionError

    async with upload_host() as (host, transport):
        transport.emit = emitted.append
        await files.upload(transport, song, progress=failing)
        await asyncio.sleep(0.1)
    assert host.got[0].data == SONG
    assert emitted == [Notice("", "a progress callback failed: ZeroDivisionError")]
