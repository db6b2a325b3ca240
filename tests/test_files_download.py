from __future__ import annotations

import asyncio
import errno
import fcntl
import gzip
import importlib.util
import json
import logging
import os
import re
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import anyio
import audio_files
import av
import pytest
from audio_files import HTML
from file_host import Asked, FileHost, Reply, file_host, head, raw, reset, serve, settings, status
from test_files_part import disk_of
from virtual_time import VirtualTimeLoop

from kie_async import files
from kie_async._client.downloads import Fetcher
from kie_async.errors import DownloadError, ResultExpiredError, StorageError
from kie_async.events import Event, Notice, Retrying
from kie_async.models import Track

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("clock")]

EXCHANGES = 8  # for one file in one call
SONG = audio_files.mp3()
LONG = SONG * 30  # over 3 MB: several trips to the disk


async def download(
    host: FileHost, directory: Path, **options: Any
) -> Path:  # those of download_track, and of the track
    song = Track("5c79", options.pop("url", host.url()), duration=options.pop("expected_duration", None))
    async with Fetcher(settings()) as fetcher:
        return await files.download_track(fetcher, song, directory, **{"name": "song", **options})


def found(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def names(directory: Path) -> set[str]:
    return set(found(directory))


def starts(host: FileHost) -> list[int]:
    return [asked.start for asked in host.asked]


# ------------------------------------------------------------ whole


async def test_a_file_comes_whole_and_leaves_nothing_else(tmp_path: Path) -> None:
    seen: list[tuple[int, int | None]] = []
    async with file_host(serve(LONG)) as host:
        path = await download(host, tmp_path / "new" / "out", progress=lambda *at: seen.append(at))
    assert path == tmp_path / "new" / "out" / "song.mp3"
    assert path.read_bytes() == LONG
    assert names(path.parent) == {"song.mp3"}
    assert seen[-1] == (len(LONG), len(LONG))
    assert [done for done, _ in seen] == sorted({done for done, _ in seen})


@pytest.mark.parametrize(
    ("make", "suffix"),
    [
        (audio_files.wav, ".wav"),
        (audio_files.flac, ".flac"),
        (audio_files.ogg, ".ogg"),
        (audio_files.m4a, ".m4a"),
        (audio_files.mp3_without_xing, ".mp3"),
    ],
)
async def test_the_suffix_is_that_of_the_content(make: Callable[[], bytes], suffix: str, tmp_path: Path) -> None:
    async with file_host(serve(make())) as host:
        path = await download(host, tmp_path, name="song.mp3", expected_duration=audio_files.SECONDS)
    assert path.name == f"song{suffix}"


async def test_a_name_is_made_when_none_is_given_and_never_taken_from_the_net(tmp_path: Path) -> None:
    named = raw(head(200, Content_Length=len(SONG), Content_Disposition='attachment; filename="../../evil"'), SONG)
    async with file_host(named) as host:
        path = await download(host, tmp_path, name=None, url=host.url("/%2e%2e/evil.sh?x=../../y"))
        again = await download(host, tmp_path, name=None, url=host.url("/%2e%2e/evil.sh?x=../../z"))
    assert path == tmp_path / "track-5c79.mp3"
    assert again == tmp_path / "track-5c79-2.mp3"


async def test_an_existing_file_stays(tmp_path: Path) -> None:
    (tmp_path / "song.mp3").write_bytes(b"mine")
    async with file_host(serve(SONG)) as host:
        path = await download(host, tmp_path)
    assert path.name == "song-2.mp3"
    assert (tmp_path / "song.mp3").read_bytes() == b"mine"


async def test_many_downloads_of_one_name_at_once_never_mix(tmp_path: Path) -> None:
    bodies = [audio_files.mp3(seconds) for seconds in (1.0, 2.0, 3.0)]
    async with file_host(*(serve(body) for body in bodies)) as host:
        paths = await asyncio.gather(*(download(host, tmp_path) for _ in bodies))
    assert sorted(path.read_bytes() for path in paths) == sorted(bodies)
    assert names(tmp_path) == {"song.mp3", "song-2.mp3", "song-3.mp3"}


async def test_a_file_named_by_a_process_that_died_is_not_fetched_again(tmp_path: Path) -> None:
    (tmp_path / "song.mp3").write_bytes(SONG)
    (tmp_path / "song.part").hardlink_to(tmp_path / "song.mp3")
    async with file_host(serve(SONG)) as host:
        assert await download(host, tmp_path) == tmp_path / "song.mp3"
    assert not host.asked
    assert names(tmp_path) == {"song.mp3"}


# ------------------------------------------------------------ broken off and taken up


@pytest.mark.parametrize("cut", [0, 1, 15, 16, 1000, len(LONG) - 1])
async def test_a_download_that_breaks_off_is_taken_up_where_it_ended(cut: int, tmp_path: Path) -> None:
    async with file_host(serve(LONG, cut=cut), serve(LONG)) as host:
        path = await download(host, tmp_path)
    assert path.read_bytes() == LONG
    assert starts(host) == [0, cut]
    assert host.asked[1].headers.get("if-range") == ('"v1"' if cut else None)


async def test_what_many_cuts_leave_is_put_together(tmp_path: Path) -> None:
    async with file_host(*[serve(LONG, cut=500_000)] * 3, reset(b""), status(503), serve(LONG)) as host:
        path = await download(host, tmp_path)
    assert path.read_bytes() == LONG
    assert starts(host) == [0, 500_000, 1_000_000, 1_500_000, 1_500_000, 1_500_000]


async def test_a_cut_connection_keeps_what_came(tmp_path: Path) -> None:
    async with file_host(reset(head(200, Content_Length=len(SONG), ETag='"v1"') + SONG[:5000]), serve(SONG)) as host:
        path = await download(host, tmp_path)
    assert path.read_bytes() == SONG
    assert starts(host) == [0, 5000]


async def test_tries_are_bounded_and_told_and_the_next_call_goes_on(tmp_path: Path) -> None:
    emitted: list[Event] = []
    async with file_host(serve(LONG, cut=1000)) as host:
        async with Fetcher(settings(), emit=emitted.append) as fetcher:
            with pytest.raises(DownloadError, match="broke off") as caught:
                await files.download_track(fetcher, Track("5c79", host.url()), tmp_path, name="song", task_id="t1")
        assert caught.value.retryable
        assert caught.value.task_id == "t1"
        assert len(host.asked) == EXCHANGES
        assert [type(event) for event in emitted] == [Retrying] * (EXCHANGES - 1)
        assert "secret" not in str(emitted)
        assert names(tmp_path) == {"song.part", "song.part.json"}
        assert "secret" not in (tmp_path / "song.part.json").read_text()
        host.replies[:] = [serve(LONG)]
        path = await download(host, tmp_path)
        assert host.asked[-1].start == 1000 * EXCHANGES
    assert path.read_bytes() == LONG
    assert names(tmp_path) == {"song.mp3"}


async def test_without_a_validator_nothing_is_resumed(tmp_path: Path) -> None:
    async with file_host(serve(SONG, etag=None, cut=5000), serve(SONG, etag=None)) as host:
        path = await download(host, tmp_path)
    assert path.read_bytes() == SONG
    assert starts(host) == [0, 0]


async def test_a_host_that_ignores_ranges_begins_anew(tmp_path: Path) -> None:
    whole = raw(head(200, Content_Length=len(SONG), ETag='"v1"'), SONG)
    async with file_host(serve(SONG, cut=5000), whole) as host:
        path = await download(host, tmp_path)
    assert path.read_bytes() == SONG
    assert starts(host) == [0, 5000]


async def test_a_file_that_changed_begins_anew(tmp_path: Path) -> None:
    other = audio_files.mp3(5.0)
    async with file_host(serve(SONG, cut=5000), serve(other, etag='"v2"')) as host:
        path = await download(host, tmp_path)
    assert path.read_bytes() == other


@pytest.mark.parametrize(
    "content_range",
    [
        f"bytes 4999-{len(SONG) - 1}/{len(SONG)}",
        f"bytes 5001-{len(SONG) - 1}/{len(SONG)}",
        f"bytes 5000-{len(SONG)}/{len(SONG) + 1}",  # another size, though the validator is the same
        "bytes */*",
        "",
    ],
)
async def test_an_answer_that_goes_on_elsewhere_begins_anew(content_range: str, tmp_path: Path) -> None:
    odd = raw(head(206, Content_Length=3, Content_Range=content_range), b"odd")
    async with file_host(serve(SONG, cut=5000), odd, serve(SONG)) as host:
        path = await download(host, tmp_path)
    assert path.read_bytes() == SONG
    assert starts(host) == [0, 5000, 0]


async def test_a_range_that_covers_all_is_taken_for_the_whole(tmp_path: Path) -> None:
    whole = head(206, Content_Length=len(SONG), Content_Range=f"bytes 0-{len(SONG) - 1}/{len(SONG)}")
    async with file_host(serve(SONG, cut=5000), raw(whole, SONG)) as host:
        path = await download(host, tmp_path)
    assert path.read_bytes() == SONG


@pytest.mark.parametrize("total", [str(len(SONG)), "*"])
async def test_a_host_that_gives_less_than_was_asked_for_is_asked_again(total: str, tmp_path: Path) -> None:
    piece = raw(head(206, Content_Length=1000, Content_Range=f"bytes 5000-5999/{total}"), SONG[5000:6000])
    async with file_host(serve(SONG, cut=5000), piece, serve(SONG)) as host:
        path = await download(host, tmp_path)
    assert path.read_bytes() == SONG
    assert starts(host) == [0, 5000, 6000]


async def test_a_host_that_gives_more_than_the_file_is_not_believed(tmp_path: Path) -> None:
    more = raw(head(206, Content_Range=f"bytes 5000-{len(SONG) - 1}/{len(SONG)}"), SONG[5000:] + b"more")
    async with file_host(serve(SONG, cut=5000), more, serve(SONG)) as host:
        path = await download(host, tmp_path)
    assert path.read_bytes() == SONG
    assert starts(host) == [0, 5000, 0]


async def test_a_part_that_is_all_there_is_only_checked(tmp_path: Path) -> None:
    async with file_host(serve(SONG, sized=False)) as host:
        with pytest.raises(DownloadError):
            await download(host, tmp_path, expected_duration=audio_files.SECONDS + 10)
    assert starts(host)[:2] == [0, len(SONG)]
    assert names(tmp_path) == {"song.part", "song.part.json"}  # whole, and shorter than it should be


@pytest.mark.parametrize("content_range", ["bytes */4000", "bytes */*", ""])
async def test_a_416_that_contradicts_begins_anew(content_range: str, tmp_path: Path) -> None:
    async with file_host(serve(SONG, cut=5000), status(416, Content_Range=content_range), serve(SONG)) as host:
        path = await download(host, tmp_path)
    assert path.read_bytes() == SONG
    assert starts(host) == [0, 5000, 0]


async def test_a_416_to_a_whole_request_is_an_error(tmp_path: Path) -> None:
    async with file_host(status(416, Content_Range="bytes */0")) as host:
        with pytest.raises(DownloadError):
            await download(host, tmp_path)
    assert names(tmp_path) == set()


async def test_a_part_of_another_address_is_not_gone_on_with(tmp_path: Path) -> None:
    async with file_host(serve(SONG, cut=5000)) as host:
        with pytest.raises(DownloadError):
            await download(host, tmp_path)
        host.replies[:], host.asked[:] = [serve(SONG)], []
        await download(host, tmp_path, url=host.url("/other.mp3"))
        assert starts(host) == [0]


async def test_a_new_signature_of_the_same_address_goes_on(tmp_path: Path) -> None:
    async with file_host(serve(LONG, cut=5000)) as host:
        with pytest.raises(DownloadError):
            await download(host, tmp_path)
        host.replies[:], host.asked[:] = [serve(LONG)], []
        await download(host, tmp_path, url=host.url("/a.mp3?Signature=another"))
        assert starts(host) == [5000 * EXCHANGES]


async def test_a_foreign_part_without_a_note_is_not_gone_on_with(tmp_path: Path) -> None:
    (tmp_path / "song.part").write_bytes(b"not ours")
    async with file_host(serve(SONG)) as host:
        path = await download(host, tmp_path)
    assert path.read_bytes() == SONG


async def test_a_part_that_somebody_changed_does_not_pass(tmp_path: Path) -> None:
    async with file_host(serve(SONG, cut=5000)) as host:
        with pytest.raises(DownloadError):
            await download(host, tmp_path)
        size = (tmp_path / "song.part").stat().st_size
        (tmp_path / "song.part").write_bytes(HTML[:100].ljust(size, b"x"))
        host.replies[:] = [serve(SONG)]
        with pytest.raises(DownloadError, match="no audio"):
            await download(host, tmp_path)
        assert (await download(host, tmp_path)).read_bytes() == SONG


# ------------------------------------------------------------ not what it should be


@pytest.mark.parametrize(
    ("reply", "words"),
    [
        (raw(head(200, Content_Length=len(HTML)), HTML), "no audio"),
        (raw(head(200, Content_Type="audio/mpeg"), HTML), "no audio"),
        (raw(head(200), json.dumps({"code": 404, "msg": "no such file"}).encode()), "no audio"),
        (raw(head(200), b"<"), "no audio"),
        (raw(head(200), audio_files.ID3), "no audio"),
        (raw(head(200, Content_Encoding="gzip"), gzip.compress(SONG)), "encoded"),
        (raw(head(200, Content_Length=10**15), SONG), "bytes, over the"),
    ],
)
async def test_what_is_not_the_song_is_refused_at_once_and_not_kept(reply: Reply, words: str, tmp_path: Path) -> None:
    async with file_host(reply) as host:
        with pytest.raises(DownloadError, match=words) as caught:
            await download(host, tmp_path)
    assert not caught.value.retryable
    assert len(host.asked) == 1
    assert names(tmp_path) == set()


@pytest.mark.parametrize("reply", [raw(head(200, Content_Length=0)), raw(head(200))])
async def test_zero_bytes_are_no_song(reply: Reply, tmp_path: Path) -> None:
    async with file_host(reply) as host:
        with pytest.raises(DownloadError, match="empty"):
            await download(host, tmp_path)
    assert names(tmp_path) == set()


async def test_an_endless_body_is_stopped_at_the_cap(tmp_path: Path) -> None:
    sent = 0

    async def endless(_asked: Asked, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        writer.write(head(200))
        while True:
            writer.write(SONG)
            await writer.drain()
            sent += len(SONG)

    async with file_host(endless) as host:
        with pytest.raises(DownloadError, match="beyond the 3000000 bytes"):
            async with Fetcher(settings(max_download_bytes=3_000_000)) as fetcher:
                await files.download_track(fetcher, Track("5c79", host.url()), tmp_path, name="song")
    assert sent < 20_000_000
    assert (tmp_path / "song.part").stat().st_size <= 3_000_000


async def test_a_large_file_needs_room_before_a_byte_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: SimpleNamespace(free=1_500_000))
    async with file_host(serve(LONG)) as host:
        with pytest.raises(StorageError, match="no room") as caught:
            await download(host, tmp_path, task_id="t1")
    assert caught.value.task_id == "t1"
    assert names(tmp_path) == set()
    async with file_host(serve(SONG)) as host:
        await download(host, tmp_path)


async def test_a_directory_that_is_none_is_a_matter_of_storage(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    async with file_host(serve(SONG)) as host:
        with pytest.raises(StorageError, match="file"):
            await download(host, tmp_path / "file")
        with pytest.raises(StorageError):
            await download(host, tmp_path / ("x" * 300))


@pytest.mark.parametrize("room", [0, 1000, 1_200_000])
async def test_a_disk_that_fills_up_keeps_the_part(room: int, tmp_path: Path) -> None:
    async with file_host(serve(LONG)) as host:
        with disk_of(max(room, 200)), pytest.raises(StorageError):
            await download(host, tmp_path)
        assert (tmp_path / "song.part").stat().st_size == max(room, 200)
        assert (await download(host, tmp_path)).read_bytes() == LONG
    assert host.asked[-1].start == max(room, 200)


async def test_a_disk_that_knows_no_locks_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_number: int, _operation: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    async with file_host(serve(SONG)) as host:
        with pytest.raises(StorageError, match="No locks"):
            await download(host, tmp_path)


# ------------------------------------------------------------ its length


async def test_a_short_file_of_unknown_size_is_taken_up_and_completed(tmp_path: Path) -> None:
    half = len(SONG) // 2
    async with file_host(serve(SONG, cut=half, sized=False), serve(SONG, sized=False)) as host:
        path = await download(host, tmp_path, expected_duration=audio_files.SECONDS)
    assert path.read_bytes() == SONG
    assert starts(host) == [0, half, half]  # the second asks whether there is more


async def test_a_short_file_of_unknown_size_and_validator_is_begun_anew(tmp_path: Path) -> None:
    short = raw(head(200), SONG[:50_000])
    async with file_host(short, serve(SONG, etag=None)) as host:
        path = await download(host, tmp_path, expected_duration=audio_files.SECONDS)
    assert path.read_bytes() == SONG


async def test_an_m4a_cut_before_its_index_is_short_too(tmp_path: Path) -> None:
    data = audio_files.m4a()
    async with file_host(raw(head(200), data[: len(data) // 2]), serve(data)) as host:
        path = await download(host, tmp_path, expected_duration=audio_files.SECONDS)
    assert path.read_bytes() == data


async def test_a_whole_file_that_is_shorter_than_its_record_is_refused_and_its_part_is_kept(tmp_path: Path) -> None:
    async with file_host(serve(SONG)) as host:
        for _ in range(2):
            with pytest.raises(DownloadError, match=r"should last .*; it is kept in .*\.part") as caught:
                await download(host, tmp_path, expected_duration=audio_files.SECONDS + 3)
    assert not caught.value.retryable
    assert starts(host) == [0, len(SONG)]  # the second asks whether there is more
    assert found(tmp_path)["song.part"] == SONG


async def test_a_whole_file_that_cannot_be_played_is_kept_and_refused(tmp_path: Path) -> None:
    data = audio_files.m4a()
    async with file_host(serve(data[: len(data) // 2])) as host:
        with pytest.raises(DownloadError, match=r"damaged, though all of it came; it is kept in song\.part"):
            await download(host, tmp_path, expected_duration=audio_files.SECONDS)
    assert names(tmp_path) == {"song.part", "song.part.json"}


async def test_a_whole_file_that_is_longer_than_its_record_is_taken_with_a_notice(tmp_path: Path) -> None:
    emitted: list[Event] = []
    async with file_host(serve(SONG)) as host, Fetcher(settings(), emit=emitted.append) as fetcher:
        path = await files.download_track(fetcher, track(host, duration=5.0), tmp_path, task_id="t1")
    assert path.read_bytes() == SONG
    (notice,) = emitted
    assert isinstance(notice, Notice)
    assert notice.task_id == "t1"
    assert re.fullmatch(r"Longer-5c79: what came lasts [0-9.]+ s, and should last 5\.0 s", notice.note)


@pytest.mark.parametrize("expected", [None, 0.0, audio_files.SECONDS - 1.9, audio_files.SECONDS + 1.9])
async def test_a_length_within_tolerance_or_unknown_passes(expected: float | None, tmp_path: Path) -> None:
    async with file_host(serve(SONG)) as host:
        await download(host, tmp_path, expected_duration=expected)
    assert names(tmp_path) == {"song.mp3"}


async def test_without_the_library_the_length_is_not_guessed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)
    caplog.set_level(logging.DEBUG, "kie_async.files")
    async with file_host(serve(SONG)) as host:
        await download(host, tmp_path, expected_duration=999.0)
    assert "not checked" in caplog.text


async def test_a_library_that_fails_costs_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(av, "open", None)  # TypeError: not callable
    async with file_host(serve(SONG)) as host:
        path = await download(host, tmp_path, expected_duration=audio_files.SECONDS)
    assert path.read_bytes() == SONG


# ------------------------------------------------------------ slow, cancelled, watched


async def test_a_host_that_crawls_is_left_and_asked_again(tmp_path: Path, clock: VirtualTimeLoop) -> None:
    crawl = raw(head(200, Content_Length=len(SONG), ETag='"v1"') + SONG[:16], *[SONG[16:17]] * 1000, pause=5.0)
    started = clock.time()
    async with file_host(crawl, serve(SONG)) as host:
        path = await download(host, tmp_path)
    assert path.stat().st_size == len(SONG)
    assert 30 <= clock.time() - started < 60
    assert 16 < starts(host)[1] < 30


async def test_a_host_that_is_slow_but_steady_is_borne(tmp_path: Path) -> None:
    song = audio_files.mp3(10.0)
    pieces = [song[at : at + 5000] for at in range(0, len(song), 5000)]
    assert len(pieces) > 10
    async with file_host(raw(head(200, Content_Length=len(song)), *pieces, pause=4.0)) as host:
        path = await download(host, tmp_path)
    assert path.read_bytes() == song
    assert len(host.asked) == 1


async def test_cancelling_keeps_the_part(tmp_path: Path) -> None:
    async def hang(asked: Asked, writer: asyncio.StreamWriter) -> None:
        await serve(LONG, cut=2_500_000)(asked, writer)
        await asyncio.sleep(10)

    came = asyncio.Event()

    def watch(done: int, _total: int | None) -> None:
        if done == 2_500_000:
            came.set()

    async with file_host(hang, serve(LONG)) as host:
        async with anyio.create_task_group() as group:
            group.start_soon(lambda: download(host, tmp_path, progress=watch))
            await came.wait()
            group.cancel_scope.cancel()
        assert (tmp_path / "song.part").stat().st_size == 2_500_000
        path = await download(host, tmp_path)
    assert starts(host) == [0, 2_500_000]
    assert path.read_bytes() == LONG


async def test_a_download_cancelled_at_any_moment_is_safe(tmp_path: Path) -> None:
    async with file_host(serve(LONG)) as host:
        for turn in range(0, 400, 7):
            task = asyncio.ensure_future(download(host, tmp_path, expected_duration=None))
            for _ in range(turn):
                await asyncio.sleep(0)
            task.cancel()
            (result,) = await asyncio.gather(task, return_exceptions=True)
            assert isinstance(result, Path | asyncio.CancelledError)
            assert found(tmp_path).get("song.mp3", LONG) == LONG
            assert names(tmp_path) <= {"song.mp3", "song.part", "song.part.json"}
            (tmp_path / "song.mp3").unlink(missing_ok=True)
        path = await download(host, tmp_path)
        assert found(tmp_path) == {"song.mp3": LONG}
        assert path.name == "song.mp3"


@pytest.mark.parametrize("failure", [None, OSError("the disk is away")])
async def test_cancelling_waits_for_what_the_disk_has_begun(failure: OSError | None) -> None:
    loop, begun, going, ended = asyncio.get_running_loop(), asyncio.Event(), threading.Event(), list[bool]()

    def write() -> None:
        loop.call_soon_threadsafe(begun.set)
        ended.append(going.wait(20))
        if failure is not None:
            raise failure

    writing = asyncio.ensure_future(files.on_disk(write))
    await begun.wait()
    for _ in range(3):
        writing.cancel()
        await asyncio.sleep(0)
        await asyncio.sleep(0)
    assert not writing.done()
    going.set()
    with pytest.raises(asyncio.CancelledError):
        await writing
    assert ended == [True]


async def test_a_failing_callback_does_not_fail_the_download(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    calls: list[int] = []
    emitted: list[Event] = []

    def failing(done: int, _total: int | None) -> None:
        calls.append(done)
        raise ZeroDivisionError

    async with file_host(serve(LONG)) as host, Fetcher(settings(), emit=emitted.append) as fetcher:
        path = await files.download_track(
            fetcher, Track("5c79", host.url()), tmp_path, name="song", progress=failing, task_id="t1"
        )
    assert path.read_bytes() == LONG
    assert len(calls) == 1
    assert emitted == [Notice("t1", "a progress callback failed: ZeroDivisionError")]
    assert "progress callback failed" in caplog.text


# ------------------------------------------------------------ expired, and tracks


def track(host: FileHost, **changes: Any) -> Track:  # fields of a track
    facts = {"id": "5c79", "title": "../Longer", "audio_url": host.url("/a.mp3"), "duration": audio_files.SECONDS}
    return Track(
        **{**facts, "source_audio_url": host.url("/source_a.mp3"), "stream_audio_url": host.url("/s"), **changes}
    )


async def download_track(directory: Path, song: Track, **options: Any) -> Path:
    async with Fetcher(settings()) as fetcher:
        return await files.download_track(fetcher, song, directory, **options)


def paths(host: FileHost) -> list[str]:
    return [asked.line.split()[1] for asked in host.asked]


async def test_a_track_is_named_by_its_title_and_id(tmp_path: Path) -> None:
    async with file_host(serve(SONG)) as host:
        path = await download_track(tmp_path, track(host))
        other = await download_track(tmp_path, track(host), name="Take: 1")
    assert path == tmp_path / "Longer-5c79.mp3"
    assert other == tmp_path / "Take-1.mp3"
    assert paths(host) == ["/a.mp3"] * 2


@pytest.mark.parametrize("first", [status(404), raw(head(200), HTML), status(302, Location="http://10.0.0.1/")])
async def test_the_source_comes_after_the_audio_and_the_stream_never(first: Reply, tmp_path: Path) -> None:
    async with file_host(first, serve(SONG)) as host:
        assert (await download_track(tmp_path, track(host))).read_bytes() == SONG
    assert paths(host) == ["/a.mp3", "/source_a.mp3"]


async def test_a_track_without_audio_is_not_its_stream(tmp_path: Path) -> None:
    async with file_host(serve(SONG)) as host:
        with pytest.raises(DownloadError, match="no audio yet") as caught:
            await download_track(tmp_path, track(host, audio_url=None, source_audio_url=""), task_id="t1")
    assert caught.value.task_id == "t1"
    assert not host.asked


async def test_a_file_that_is_to_be_kept_is_not_fetched_again(tmp_path: Path) -> None:
    (tmp_path / "Longer-5c79.mp3").write_bytes(b"mine")
    (tmp_path / "Longer-5c79.part").write_bytes(b"the rest of a process that was killed")
    async with file_host(serve(SONG)) as host:
        path = await download_track(tmp_path, track(host), keep_existing=True)
        assert not host.asked
    assert found(tmp_path) == {path.name: b"mine"}


async def test_a_file_that_was_named_meanwhile_is_kept_or_left_beside(tmp_path: Path) -> None:
    async def late(asked: Asked, writer: asyncio.StreamWriter) -> None:
        (tmp_path / "Longer-5c79.mp3").write_bytes(b"mine")
        await serve(SONG)(asked, writer)

    async with file_host(late) as host:
        path = await download_track(tmp_path, track(host), keep_existing=True)
        assert found(tmp_path) == {path.name: b"mine"}
        path = await download_track(tmp_path, track(host))
    assert found(tmp_path) == {"Longer-5c79.mp3": b"mine", path.name: SONG}


async def test_a_track_is_held_to_its_duration(tmp_path: Path) -> None:
    async with file_host(serve(SONG)) as host:
        with pytest.raises(DownloadError, match="should last"):
            await download_track(tmp_path, track(host, duration=999.0, source_audio_url=None))


async def test_an_expired_link_is_renewed_once(tmp_path: Path) -> None:
    asked = 0

    async with file_host(status(403), status(410), serve(SONG)) as host:

        async def refresh() -> str | None:
            nonlocal asked
            asked += 1
            return host.url("/new.mp3")

        assert (await download_track(tmp_path, track(host), refresh=refresh)).read_bytes() == SONG
        assert paths(host) == ["/a.mp3", "/source_a.mp3", "/new.mp3"]
        host.replies[:] = [status(404)]
        with pytest.raises(ResultExpiredError):
            await download(host, tmp_path, refresh=refresh)
    assert asked == 2


async def test_what_no_new_link_is_known_for_has_expired(tmp_path: Path) -> None:
    async def refresh() -> str | None:
        return None

    async with file_host(status(410)) as host:
        with pytest.raises(ResultExpiredError) as caught:
            await download(host, tmp_path, refresh=refresh)
        assert caught.value.code == 410
        with pytest.raises(ResultExpiredError):
            await download(host, tmp_path)
    assert names(tmp_path) == set()


async def test_the_error_that_may_pass_is_the_one_told(tmp_path: Path) -> None:
    async with file_host(status(404), status(503)) as host:
        with pytest.raises(DownloadError) as caught:
            await download_track(tmp_path, track(host))
    assert (caught.value.code, caught.value.retryable) == (503, True)


async def test_what_the_disk_says_without_a_name_is_told_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_number: int) -> None:
        raise OSError("no words for it")

    monkeypatch.setattr(os, "fsync", refuse)
    async with file_host(serve(SONG)) as host:
        with pytest.raises(StorageError, match="no words for it"):
            await download(host, tmp_path)
