"""A source given by its address: measured just before its submission, by one request that proves it or says nothing."""

from __future__ import annotations

import asyncio
import importlib.util
import struct
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from io import BytesIO
from pathlib import Path
from typing import Any

import attrs
import audio_files
import pytest
from file_host import FileHost, Reply, file_host, head, raw, status
from hypothesis import given
from hypothesis import strategies as st
from service import Service, serving

import kie_async as kie
from kie_async._text import clock
from kie_async.events import Notice
from kie_async.files._audio_kinds import AAC, AIFF, AUDIO_KINDS, FLAC, M4A, MP3, OGG, WAV, AudioKind, audio_start
from kie_async.files._proven_length import stated_length
from kie_async.journal import Job, State

pytestmark = pytest.mark.anyio

MIB = 1 << 20


def ranged(data: bytes, *, knows_range: bool = True, sized: bool = True, **headers: object) -> Reply:
    """Serve a file to a client that may ask for its beginning."""

    async def reply(asked: Any, writer: asyncio.StreamWriter) -> None:
        wanted = asked.headers.get("range")
        if wanted and knows_range:
            body = data[: int(wanted.rpartition("-")[2]) + 1]
            total = len(data) if sized else "*"
            headers["Content_Range"] = f"bytes 0-{len(body) - 1}/{total}"
            writer.write(head(206, Content_Length=len(body), **headers) + body)
        else:
            length = {"Content_Length": len(data)} if sized else {}
            writer.write(head(200, **length, **headers) + data)

    return reply


async def silent(_asked: Any, writer: asyncio.StreamWriter) -> None:
    await asyncio.sleep(600)
    writer.close()


@attrs.frozen
class There:
    """An emulated service, and a host of files beside it."""

    service: Service
    host: FileHost

    @property
    def measurements(self) -> list[dict[str, str]]:
        """The headers of the requests that asked for a beginning; the service itself asks for the whole."""
        return [asked.headers for asked in self.host.asked if "range" in asked.headers]

    @property
    def notes(self) -> list[str]:
        return [event.note for event in self.service.of(Notice) if "source" in event.note]


@asynccontextmanager
async def there(*replies: Reply, **changes: Any) -> AsyncIterator[There]:
    async with serving(settings=changes) as service, file_host(*replies) as host:
        yield There(service, host)


def m4a(*boxes: tuple[bytes, bytes]) -> bytes:
    return b"".join(struct.pack(">I", 8 + len(body)) + name + body for name, body in boxes)


FTYP, AUDIO = (b"ftyp", b"M4A \0\0\0\0"), (b"mdat", bytes(50))
MVHD = bytes(12) + struct.pack(">II", 1000, 20_000)
WIDE = b"\1" + bytes(19) + struct.pack(">IQ", 1000, 20_000)


# ---------------------------------------------------------------- what it proves

WHOLE = {"mp3": audio_files.mp3, "flac": audio_files.flac, "ogg": audio_files.ogg, "aac": audio_files.aac}


def long_m4a() -> bytes:
    return audio_files.encoded("aac", "ipod", seconds=140.0, muxing=(("movflags", "+faststart"),))


LONG: dict[str, Callable[[], bytes]] = {
    "wav": audio_files.wav,
    "mp3": lambda: audio_files.mp3(140.0),
    "m4a": long_m4a,
}


def claiming(data: bytes, name: bytes, at: int, value: bytes) -> bytes:
    """A file whose header says something else, so many bytes behind a name in it."""
    at += data.index(name)
    return data[:at] + value + data[at + len(value) :]


@pytest.mark.parametrize("kind", WHOLE)
async def test_a_moment_beyond_the_end_of_a_small_file_costs_nothing(kind: str) -> None:
    async with there(ranged(WHOLE[kind]()[:MIB])) as world:
        with pytest.raises(kie.InvalidRequestError, match=r"is 1:00; the source lasts 0:(20|1\d)\b") as caught:
            await world.service.session.upload_extend(world.host.url(), continue_at=60)
        assert "secret" not in str(caught.value)
        assert not world.service.emulator.arrivals
        assert world.notes == []


@pytest.mark.parametrize("knows_range", [True, False])
@pytest.mark.parametrize("kind", LONG)
async def test_the_beginning_of_a_large_file_is_enough(kind: str, knows_range: bool) -> None:  # noqa: FBT001  # a parameter
    data = LONG[kind]()
    seconds = 20 if kind == "wav" else 140
    assert len(data) > MIB
    async with there(ranged(data, knows_range=knows_range)) as world:
        with pytest.raises(kie.InvalidRequestError, match=f"the source lasts {clock(seconds)}"):
            await world.service.session.upload_extend(world.host.url(), continue_at=seconds + 1)
        task = await world.service.session.upload_extend(world.host.url(), continue_at="50%")
        cut = world.service.emulator.ledger[0].body["continueAt"]
        assert cut == pytest.approx(seconds / 2, abs=0.1)
        assert (await task).tracks


async def test_one_request_without_the_key() -> None:
    async with there(ranged(audio_files.wav())) as world:
        await world.service.session.upload_extend(world.host.url(), continue_at=5)
        (headers,) = world.measurements
        assert headers["range"] == f"bytes=0-{MIB - 1}"
        assert "authorization" not in headers
        assert "cookie" not in headers
        assert world.notes == []


async def test_a_source_too_long_for_its_model() -> None:
    async with there(ranged(audio_files.mp3(70.0))) as world:
        with pytest.raises(kie.InvalidRequestError, match=r"source: lasts 1:10.* V4_5ALL takes at most 1:00"):
            await world.service.session.upload_extend(world.host.url(), model="V4_5ALL", continue_at=5)
        assert not world.service.emulator.arrivals


async def test_a_redirect_is_followed() -> None:
    async with file_host(ranged(audio_files.wav())) as target, there(status(302, Location=target.url())) as world:
        with pytest.raises(kie.InvalidRequestError, match=r"lasts 0:20: "):
            await world.service.session.upload_extend(world.host.url(), continue_at=60)


async def test_a_job_of_a_batch_is_held_to_it(tmp_path: Path) -> None:
    journal = kie.SQLiteJournal(tmp_path / "j.sqlite", poll=5.0)
    async with there(ranged(audio_files.wav())) as world:
        job = Job(key="a", request=kie.UploadExtendRequest(world.host.url(), continue_at=60))
        run = kie.run_batch(world.service.session, [job], journal=journal, directory=tmp_path)
        (done,) = [job async for job in run]
        assert (done.state, done.error.type if done.error else "") == (State.REJECTED, "InvalidRequestError")
        assert not world.service.emulator.arrivals


# ---------------------------------------------------------------- what proves nothing is a notice


def long_flac() -> bytes:
    return audio_files.encoded("flac", "flac", seconds=60.0)


UNPROVEN: dict[str, tuple[Callable[[], Reply], str]] = {
    "not there": (lambda: status(404), "not there any more"),
    "refused": (lambda: status(500), "answered with an error"),
    "silent": (lambda: silent, "within 3 s"),
    "broken off": (lambda: raw(head(206, Content_Length=100, Content_Range="bytes 0-99/100") + b"RIFF"), "broke off"),
    "a page": (lambda: ranged(audio_files.HTML), "no audio of a known kind"),
    "a large page": (lambda: ranged(audio_files.HTML * 300), "does not prove it"),
    "nothing": (lambda: ranged(b""), "no audio"),
    "no size": (lambda: ranged(audio_files.wav(), sized=False), "does not say how large"),
    "a wrong size": (lambda: raw(head(206, Content_Length=20, Content_Range="bytes 0-19/10") + bytes(20)), "how large"),
    "another part": (lambda: raw(head(206, Content_Length=2, Content_Range="bytes 5-6/10") + b"ab"), "how large"),
    "packed": (lambda: ranged(audio_files.wav(), Content_Encoding="gzip"), "how large"),
    "a private address": (
        lambda: status(302, Location="http://10.0.0.1/a.mp3?Signature=secret"),
        "address is refused",
    ),
    "a private name": (lambda: status(302, Location="https://10.0.0.1/a.mp3?Signature=secret"), "address is refused"),
    "in circles": (lambda: status(302, Location="/a.mp3?Signature=secret"), "redirected more than"),
    "mp3 without a header": (lambda: ranged(audio_files.mp3_without_xing() * 8), "does not prove it"),
    "flac cut off": (
        lambda: ranged(audio_files.encoded("flac", "flac", seconds=60.0)[: MIB + 1000]),
        "does not prove it",
    ),
    "flac cut off later": (lambda: ranged(long_flac()[: len(long_flac()) * 7 // 10]), "does not prove it"),
    "mp3 whose header lies": (
        lambda: ranged(claiming(audio_files.mp3(140.0), b"Info", 8, struct.pack(">I", 1000))),
        "does not prove it",
    ),
    "m4a whose header lies": (
        lambda: ranged(claiming(long_m4a(), b"mvhd", 20, struct.pack(">I", 30_000))),
        "does not prove it",
    ),
    "m4a without sound": (
        lambda: ranged(m4a(FTYP, (b"moov", m4a((b"mvhd", MVHD))), (b"mdat", bytes(2 * MIB)))),
        "does not prove it",
    ),
    "wav that goes on": (lambda: ranged(audio_files.wav_that_claims(441_000)), "does not prove it"),
    "wav of another width": (
        lambda: ranged(claiming(audio_files.wav(), b"fmt ", 16, struct.pack("<IH", 44_100, 1))),
        "does not prove it",
    ),
    "flac of a million seconds": (lambda: ranged(audio_files.flac_that_claims((1 << 36) - 1)), "does not prove it"),
    "tags without an end": (lambda: ranged(audio_files.ID3 * 1000), "does not prove it"),
}


@pytest.mark.parametrize("name", UNPROVEN)
async def test_what_proves_no_length_is_told_and_sent(name: str) -> None:
    reply, reason = UNPROVEN[name]
    async with there(reply()) as world:
        for _ in range(2):
            await world.service.session.upload_extend(world.host.url(), continue_at=60)
        (note,) = world.notes
        assert note.startswith(f"source: the length of http://127.0.0.1:{world.host.port}/… is not known (")
        assert reason in note
        assert note.endswith("continue_at is not held to it: give source_duration=")
        assert "secret" not in note
        assert len(world.service.emulator.arrivals) == 2


async def test_nothing_is_asked_where_the_length_is_given_or_not_wanted() -> None:
    async with there(ranged(audio_files.wav())) as world:
        await world.service.session.upload_extend(world.host.url(), continue_at=5, source_duration=19)
        async with kie.KieSession(attrs.evolve(world.service.session.settings, measure_urls=False)) as session:
            await session.upload_extend(world.host.url(), continue_at=60)
        await world.service.session.upload_extend("https://h.example/a.mp3", continue_at=60)  # the emulator is here
        assert (world.measurements, world.notes) == ([], [])


async def test_without_pyav_it_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    async with there(ranged(audio_files.wav())) as world:
        monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)
        await world.service.session.upload_extend(world.host.url(), continue_at=60)
        assert world.measurements == []
        assert "kie_async[audio]" in world.notes[0]


def test_the_switches_are_switches() -> None:
    for name in ("measure_urls", "strict_limits"):
        given: dict[str, Any] = {name: "no"}
        with pytest.raises(kie.SettingsError, match=f"{name} is 'no': give True or False"):
            kie.Settings(api_key="k-0123456789", **given)


# ---------------------------------------------------------------- headers

BEGINNING = 20_000


def stated(kind: AudioKind, data: bytes, total: int | None = None) -> float | None:
    """What the beginning of a file says, if it is as large as it is said to be."""
    begun = data[:BEGINNING]
    return stated_length(kind, begun, audio_start(BytesIO(begun)) or 0, len(data) if total is None else total)


AGREEING: dict[str, tuple[AudioKind, Callable[[], bytes]]] = {
    "wav": (WAV, audio_files.wav),
    "wav of length 0": (WAV, lambda: audio_files.wav_that_claims(0)),
    "wav from a pipe": (WAV, lambda: audio_files.wav_that_claims(0xFFFFFFFF)),
    "wav with an odd chunk": (WAV, lambda: audio_files.wav()[:12] + b"LIST\3\0\0\0abc\0" + audio_files.wav()[12:]),
    "flac": (FLAC, audio_files.flac),
    "mp3": (MP3, audio_files.mp3),
    "mp3 with tags at its end": (MP3, lambda: audio_files.mp3() + b"TAG" + bytes(125)),
    "m4a": (M4A, lambda: audio_files.m4a(index_first=True)),
}


@pytest.mark.parametrize("name", AGREEING)
def test_a_header_that_agrees_with_the_size(name: str) -> None:
    kind, make = AGREEING[name]
    assert stated(kind, make()) == pytest.approx(audio_files.SECONDS, abs=0.1)


def test_the_header_of_a_cut_wav_is_held_to_its_size() -> None:
    data = audio_files.wav()
    assert stated(WAV, data, len(data) // 2) == pytest.approx(10, abs=0.1)


def test_the_kinds_of_mp3_frames() -> None:
    def frame(version: int, mode: int, side: int) -> bytes:
        begin = bytes((0xFF, 0xE3 | version << 3, 0x90, mode << 6)) + bytes(side)
        return begin + b"Info" + struct.pack(">III", 3, 1000, 5000)

    lengths = [
        stated_length(MP3, frame(version, mode, side), 0, 5000)
        for version, mode, side in ((3, 0, 32), (3, 3, 17), (2, 0, 17), (2, 3, 9), (0, 3, 9))
    ]
    assert lengths == [
        pytest.approx(1000 * samples / rate)
        for samples, rate in ((1152, 44100), (1152, 44100), (576, 22050), (576, 22050), (576, 11025))
    ]


@pytest.mark.parametrize(
    ("data", "seconds"),
    [
        (m4a(FTYP, (b"moov", m4a((b"free", b""), (b"mvhd", MVHD))), AUDIO), 20),
        (m4a(FTYP, (b"moov", m4a((b"mvhd", WIDE))), AUDIO), 20),
        (m4a(FTYP, (b"moov", m4a((b"mvhd", MVHD)))) + struct.pack(">I4sQ", 1, b"mdat", 60) + bytes(44), 20),
        (m4a(FTYP, (b"moov", m4a((b"mvhd", MVHD)))) + struct.pack(">I4s", 0, b"mdat") + bytes(44), 20),
        (m4a(FTYP, (b"moov", m4a((b"mvhd", MVHD)))) + struct.pack(">I4s", 99, b"mdat") + bytes(44), None),
        (m4a(FTYP, (b"moov", m4a((b"mvhd", MVHD)))), None),
        (m4a(FTYP, (b"moov", m4a((b"trak", b""))), AUDIO), None),
        (m4a(FTYP, (b"moov", m4a((b"mvhd", MVHD), (b"hdlr", b"vide"))), AUDIO), None),
        (m4a(FTYP, (b"moov", m4a((b"mvhd", bytes(20)))), AUDIO), None),
        (m4a(FTYP, (b"moov", m4a((b"mvhd", bytes(12) + struct.pack(">II", 1, 0xFFFFFFFF)))), AUDIO), None),
    ],
)
def test_the_index_of_an_mp4(data: bytes, seconds: float | None) -> None:
    assert stated_length(M4A, data, 0, len(data)) == seconds


UNSTATED: dict[str, tuple[AudioKind, Callable[[], bytes], float]] = {  # a file, and its size over what it should be
    "mp3 cut off": (MP3, audio_files.mp3, 0.5),
    "two mp3 in one": (MP3, audio_files.mp3, 2.0),
    "mp3 without a header": (MP3, audio_files.mp3_without_xing, 1.0),
    "m4a with its index at the end": (M4A, audio_files.m4a, 1.0),
    "m4a cut off": (M4A, lambda: audio_files.m4a(index_first=True), 0.5),
    "flac that does not say": (FLAC, lambda: audio_files.flac_that_claims(0), 1.0),
    "flac that says too little": (FLAC, lambda: audio_files.flac_that_claims(1000), 1.0),
    "flac without its first block": (FLAC, lambda: b"fLaC\x04" + audio_files.flac()[5:], 1.0),
    "wav without a format": (WAV, lambda: audio_files.wav().replace(b"fmt ", b"junk", 1), 1.0),
    "wav that is packed": (WAV, lambda: audio_files.wav()[:20] + b"\x11\0" + audio_files.wav()[22:], 1.0),
    "wav without data": (WAV, lambda: audio_files.wav()[:40], 1.0),
    "ogg": (OGG, audio_files.ogg, 1.0),
    "aac": (AAC, audio_files.aac, 1.0),
    "aiff": (AIFF, audio_files.aiff, 1.0),
}


@pytest.mark.parametrize("name", UNSTATED)
def test_what_states_no_length_that_can_be_believed(name: str) -> None:
    kind, make, share = UNSTATED[name]
    data = make()
    assert stated(kind, data, int(share * len(data))) is None


HEADS = {
    WAV: b"RIFF\0\0\0\0WAVEfmt \x10\0\0\0", FLAC: b"fLaC\0\0\0\x22", M4A: b"\0\0\0\x10ftypM4A \0\0\0\0",
    MP3: b"\xff\xfb\x90\0" + bytes(32) + b"Xing\0\0\0\3",
}  # fmt: skip


@given(st.sampled_from(AUDIO_KINDS), st.binary(max_size=200), st.integers(0, 1 << 40))
def test_any_bytes_are_a_length_or_none(kind: AudioKind, data: bytes, more: int) -> None:
    begun = HEADS.get(kind, bytes(16)) + data
    found = stated_length(kind, begun, 0, len(begun) + more)
    assert found is None or found >= 0
