"""A file without an announced size: it is proven to be whole, or it is not published."""

from __future__ import annotations

import asyncio
import importlib.util
import io
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import audio_files
import pytest
from audio_files import SECONDS
from file_host import Asked, FileHost, Reply, file_host, head, raw, serve, settings, status

import kie_async as kie
from kie_async import files
from kie_async._client.downloads import Fetcher
from kie_async.errors import DownloadError
from kie_async.files import _audio_kinds
from kie_async.files._audio_kinds import ends_as_declared

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("clock")]

SONG = audio_files.mp3()
HALF = len(SONG) // 2


@pytest.fixture(params=["with PyAV", "without PyAV"], autouse=True)
def _library(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "without PyAV":
        find = importlib.util.find_spec
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "av" else find(name))


async def download(host: FileHost, directory: Path, **options: Any) -> Path:
    song = kie.Track("5c79", host.url(), duration=options.pop("expected_duration", None))
    async with Fetcher(settings()) as fetcher:
        return await files.download_track(fetcher, song, directory, name="song", **options)


def names(directory: Path) -> set[str]:
    return {path.name for path in directory.iterdir()}


def closing(data: bytes, version: str = "1.1") -> Reply:
    """A host that says nothing of the size, knows no ranges, and ends the body by ending the connection."""
    return raw(f"HTTP/{version} 200 OK\r\nConnection: close\r\n\r\n".encode(), data)


def chunked(*pieces: bytes, end: bytes = b"0\r\n\r\n") -> Reply:
    body = b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in pieces)
    return raw(head(200, Transfer_Encoding="chunked") + body, end)


def past_the_end(first: Reply, reply: Reply) -> Reply:
    """A host that answers a request for a range in its own way."""

    async def both(asked: Asked, writer: asyncio.StreamWriter) -> None:
        await (reply if "range" in asked.headers else first)(asked, writer)

    return both


# ------------------------------------------------------------ HTTP says where it ends


@pytest.mark.parametrize("expected", [None, SECONDS])
async def test_chunks_that_end_well_are_the_whole(expected: float | None, tmp_path: Path) -> None:
    flac = audio_files.flac()  # which declares no size of its own
    async with file_host(chunked(flac[:5000], flac[5000:])) as host:
        path = await download(host, tmp_path, expected_duration=expected)
    assert path.read_bytes() == flac
    assert len(host.asked) == 1


@pytest.mark.parametrize(
    "reply",
    [
        chunked(SONG[:HALF], end=b""),
        chunked(SONG[:HALF], end=b"%x\r\nhalf a piece" % HALF),
        raw(head(200, Content_Length=len(SONG)), SONG[:HALF]),
    ],
)
async def test_what_http_does_not_end_is_taken_up_or_refused(reply: Reply, tmp_path: Path) -> None:
    async with file_host(reply) as host:
        with pytest.raises(DownloadError) as caught:
            await download(host, tmp_path)
        assert caught.value.retryable
        assert len(host.asked) == 8
        assert not names(tmp_path) - {"song.part", "song.part.json"}
        host.replies[:] = [reply, serve(SONG)]
        assert (await download(host, tmp_path)).read_bytes() == SONG


# ------------------------------------------------------------ the host says it when asked


@pytest.mark.parametrize("version", ["1.0", "1.1"])
@pytest.mark.parametrize("expected", [None, SECONDS])
async def test_a_body_cut_with_its_connection_is_completed(
    version: str, expected: float | None, tmp_path: Path
) -> None:
    async with file_host(closing(SONG[:HALF], version), serve(SONG, sized=False)) as host:
        path = await download(host, tmp_path, expected_duration=expected)
    assert path.read_bytes() == SONG
    assert [asked.headers.get("range") for asked in host.asked[:2]] == [None, f"bytes={HALF}-"]


async def test_a_cut_that_costs_less_than_the_tolerance_of_the_duration_is_one_too(tmp_path: Path) -> None:
    data = audio_files.mp3_without_xing()
    async with file_host(closing(data[: -len(data) // 20]), serve(data, sized=False)) as host:
        path = await download(host, tmp_path, expected_duration=SECONDS)
    assert path.read_bytes() == data


@pytest.mark.parametrize(
    "reply",
    [
        status(416, Content_Range=f"bytes */{len(audio_files.flac())}"),
        raw(head(200, Content_Length=len(audio_files.flac()))),  # no ranges here, but a size
        raw(head(206, Content_Range=f"bytes 0-9/{len(audio_files.flac())}")),
    ],
)
async def test_a_host_that_names_the_size_when_asked_for_more_proves_it(reply: Reply, tmp_path: Path) -> None:
    data = audio_files.flac()
    async with file_host(past_the_end(closing(data), reply)) as host:
        path = await download(host, tmp_path)
    assert path.read_bytes() == data
    assert len(host.asked) == 2


@pytest.mark.parametrize("more", [-1, 1])
async def test_a_host_that_names_another_size_is_asked_anew(more: int, tmp_path: Path) -> None:
    other = status(416, Content_Range=f"bytes */{len(SONG) + more}")
    async with file_host(closing(SONG), other, serve(SONG)) as host:
        path = await download(host, tmp_path)
    assert path.read_bytes() == SONG
    assert [asked.start for asked in host.asked] == [0, len(SONG), 0]


async def test_a_piece_of_a_file_of_unknown_size_is_not_the_rest_of_it(tmp_path: Path) -> None:
    piece = raw(head(206, Content_Length=1000, Content_Range="bytes 5000-5999/*"), SONG[5000:6000])
    cut = raw(head(200, ETag='"v1"') + SONG[:5000])
    async with file_host(cut, status(416), piece, serve(SONG)) as host:
        path = await download(host, tmp_path)
    assert path.read_bytes() == SONG


# ------------------------------------------------------------ the file says it

DECLARING: list[Callable[[], bytes]] = [
    audio_files.mp3,
    lambda: audio_files.with_cover(SONG),
    lambda: SONG + b"TAG".ljust(128, b"\0"),
    audio_files.wav,
    audio_files.aiff,
    audio_files.ogg,
    audio_files.m4a,
    lambda: audio_files.m4a(index_first=True),
]
SILENT = [audio_files.mp3_without_xing, audio_files.flac, audio_files.aac]

# What a host may do that tells no size: refuse, break off, send all again, or say nothing of use.
MUTE = [status(404), status(503), raw(b""), status(416), status(416, Content_Range="bytes */*"), closing(SONG)]


@pytest.mark.parametrize("mute", MUTE)
@pytest.mark.parametrize("make", DECLARING)
async def test_a_file_that_ends_where_it_declares_is_whole(
    make: Callable[[], bytes], mute: Reply, tmp_path: Path
) -> None:
    async with file_host(past_the_end(closing(make()), mute)) as host:
        path = await download(host, tmp_path)
    assert path.read_bytes() == make()


@pytest.mark.parametrize("kept", [0.5, 0.99, -1])
@pytest.mark.parametrize("make", DECLARING)
async def test_a_file_that_declares_more_is_asked_for_anew(
    make: Callable[[], bytes], kept: float, tmp_path: Path
) -> None:
    data = make()
    cut = data[: int(len(data) * kept) if kept > 0 else -1]
    async with file_host(past_the_end(closing(cut), status(416))) as host:
        with pytest.raises(DownloadError, match="broke off") as caught:
            await download(host, tmp_path)
        assert caught.value.retryable
        assert names(tmp_path) == {"song.part", "song.part.json"}
        assert (tmp_path / "song.part").read_bytes() == cut
        host.replies[:] = [past_the_end(closing(data), status(416))]
        assert (await download(host, tmp_path)).read_bytes() == data


async def test_a_cut_between_two_frames_is_seen(tmp_path: Path) -> None:
    last = SONG.rindex(SONG[-417:][:2])  # the header of the last frame
    async with file_host(closing(SONG[:last])) as host:
        with pytest.raises(DownloadError):
            await download(host, tmp_path, expected_duration=SECONDS)
    assert "song.mp3" not in names(tmp_path)


@pytest.mark.parametrize("expected", [None, SECONDS])
@pytest.mark.parametrize("kept", [0.5, 1.0])
@pytest.mark.parametrize("make", SILENT)
async def test_what_nothing_proves_is_kept_and_not_published(
    make: Callable[[], bytes], kept: float, expected: float | None, tmp_path: Path
) -> None:
    cut = make()[: int(len(make()) * kept)]
    async with file_host(closing(cut)) as host:
        with pytest.raises(DownloadError, match=r"nothing proves .* kept in song\.part") as caught:
            await download(host, tmp_path, expected_duration=expected)
    assert not caught.value.retryable
    assert len(host.asked) == 2
    assert (tmp_path / "song.part").read_bytes() == cut
    assert names(tmp_path) == {"song.part", "song.part.json"}


async def test_what_was_kept_is_published_as_soon_as_it_is_proven(tmp_path: Path) -> None:
    data = audio_files.flac()
    async with file_host(past_the_end(raw(head(200, ETag='"v1"'), data), status(503))) as host:
        with pytest.raises(DownloadError):
            await download(host, tmp_path)
        host.replies[:], host.asked[:] = [serve(data)], []
        assert (await download(host, tmp_path)).read_bytes() == data
        assert [asked.start for asked in host.asked] == [len(data)]


async def test_the_other_address_of_a_track_is_tried_when_one_proves_nothing(tmp_path: Path) -> None:
    data = audio_files.flac()
    async with file_host(closing(data), status(404), serve(data)) as host, Fetcher(settings()) as fetcher:
        track = kie.Track("5c79", host.url("/a"), source_audio_url=host.url("/b"), title="Song")
        path = await files.download_track(fetcher, track, tmp_path)
    assert path.read_bytes() == data


# ------------------------------------------------------------ the rule


def ends(data: bytes) -> bool | None:
    file = io.BytesIO(data)
    kind = _audio_kinds.kind_of(file)
    assert kind is not None
    return ends_as_declared(file, kind)


def xing(flags: int, *numbers: int, offset: int = 36) -> bytes:
    frame = b"\xff\xfb\x90\x00".ljust(offset, b"\0") + b"Info" + struct.pack(">I", flags)
    return (frame + b"".join(struct.pack(">I", number) for number in numbers)).ljust(417, b"\0")


@pytest.mark.parametrize(
    ("data", "answer"),
    [
        (xing(3, 1, 417), True),
        (xing(2, 417), True),
        (xing(2, 417, offset=21), True),
        (xing(2, 417, offset=13), True),
        (xing(2, 417) + b"TAG".ljust(128), True),
        (xing(2, 417) + b"TAG".ljust(127), False),
        (xing(2, 417) + bytes(128), False),
        (xing(2, 400), False),
        (xing(1, 417), None),
        (b"\xff\xfb\x90\x00" + bytes(413), None),
        (b"RIFF" + struct.pack("<I", 8) + b"WAVEdata", True),
        (b"RIFF" + struct.pack("<I", 9) + b"WAVEdata12", True),
        (b"RIFF" + struct.pack("<I", 9) + b"WAVEdata123", False),
        (b"RIFF" + struct.pack("<I", 0) + b"WAVEdata", None),
        (b"RIFF" + b"\xff" * 4 + b"WAVEdata", None),
        (b"FORM" + struct.pack(">I", 8) + b"AIFFdata", True),
        (b"OggS" + bytes(20), False),
        (b"OggS\0\4" + bytes(20) + b"\1\2ab", True),
        (b"OggS\0\4" + bytes(20) + b"\1\2abc", False),
        (b"OggS\0\0" + bytes(20) + b"\1\2ab", False),
        (struct.pack(">I", 8) + b"ftyp" + struct.pack(">I", 8) + b"moov", True),
        (struct.pack(">I", 8) + b"ftyp" + struct.pack(">I", 8) + b"mdat", False),
        (struct.pack(">I", 8) + b"ftyp" + struct.pack(">I", 9) + b"moov", False),
        (struct.pack(">I", 8) + b"ftyp" + struct.pack(">I", 0) + b"moov", None),
        (struct.pack(">I", 8) + b"ftyp" + struct.pack(">I4sQ", 1, b"moov", 16), True),
    ],
)
async def test_an_end_counts_at_the_very_byte(data: bytes, *, answer: bool | None) -> None:
    assert ends(data) is answer
