"""Uploads, downloads, links and sources of the emulator, over real sockets."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np
import pytest
from aiohttp import web
from audio_files import RATE, decoded
from emulator_client import Client, emulated, receiving
from virtual_time import VirtualTimeLoop

from kie_async.audio import compare
from kie_async.emulator import Answers, Emulator, Fault, Rules, demo_song

pytestmark = pytest.mark.anyio

QUICK = (1.0, 2.0, 3.0)
SHORT = {"timeline": QUICK, "goes_on": (2.0, 4.0)}


@pytest.fixture(scope="session")
def song() -> bytes:
    return demo_song()


async def upload_extended(client: Client, song: bytes, clock: VirtualTimeLoop, **fields: object) -> list[str]:
    """Extend an upload; the addresses of the finished tracks."""
    url = await client.upload(song)
    answer = await client.upload_extend(uploadUrl=url, **{"continueAt": 3, **fields})
    await client.emulator.wait_finished()
    clock.advance(3)
    tracks = (await client.record(answer["data"]["taskId"]))["data"]["response"]["sunoData"]
    return [track["audioUrl"] for track in tracks]


@pytest.mark.parametrize(("answers", "seconds"), [("whole", 14.0), ("continuation", 2.0)])
async def test_a_track_is_the_whole_song_or_the_continuation_alone(
    answers: Answers, seconds: float, song: bytes, clock: VirtualTimeLoop, tmp_path: Path
) -> None:
    async with emulated(answers=answers, **SHORT) as client:
        addresses = await upload_extended(client, song, clock, continueAt=12)
        made = (await client.read(addresses[0]))[1]
    assert len(decoded(made)) / RATE == pytest.approx(seconds, abs=0.1)
    (tmp_path / "song.wav").write_bytes(song)
    (tmp_path / "new.mp3").write_bytes(made)
    verdict = await compare(tmp_path / "song.wav", tmp_path / "new.mp3", continue_at=12.0)
    assert (verdict.kind, verdict.confidence > 0.9) == (answers, True)
    assert verdict.seam == pytest.approx(12.0 if answers == "whole" else 0.0, abs=0.002)


# ---------------------------------------------------------------- uploads


async def test_a_file_is_uploaded_as_a_form_and_read_back() -> None:
    async with emulated() as client:
        content = bytes(range(256)) * 1000
        url = await client.upload(content, "a b.mp3")
        status, body, headers = await client.read(url)
        assert (status, body, headers["Content-Type"]) == (200, content, "audio/mpeg")
        again = await client.upload(b"other", "a b.mp3")
        assert again == url
        assert (await client.read(url))[1] == b"other"


@pytest.mark.parametrize("name", ["私の歌 é.mp3", "100% #1?.mp3"])
async def test_a_name_of_any_letters_is_kept_and_its_address_is_ascii(name: str) -> None:
    async with emulated() as client:
        url = await client.upload(b"content", name)
        assert url.isascii()
        assert not set(url) & set(" #?")
        assert (await client.read(url))[:2] == (200, b"content")
        answer = await client.post("/api/file-base64-upload", {"base64Data": "aGk=", "fileName": name})
        assert answer["data"]["fileName"] == name
        assert answer["data"]["filePath"].endswith(f"/{name}")
        again = await client.post("/api/file-url-upload", {"fileUrl": answer["data"]["downloadUrl"]})
        assert again["data"]["fileSize"] == 2


FILE = b'Content-Disposition: form-data; name="file"\r\n\r\n12345'
TEXT = b'Content-Disposition: form-data; name="uploadPath"\r\n\r\nfolder'
NAMELESS = b"Content-Disposition: form-data\r\n\r\nlost"
NESTED = b"Content-Type: multipart/mixed; boundary=in\r\n\r\n--in\r\n\r\ninner\r\n--in--"


@pytest.mark.parametrize(
    ("parts", "path"),
    [([TEXT], None), ([FILE], "uploads/file"), ([TEXT, NAMELESS, FILE], "folder/file"), ([NESTED, FILE], None)],
)
async def test_a_form_needs_a_file_but_no_names(parts: list[bytes], path: str | None) -> None:
    body = b"".join(b"--edge\r\n" + part + b"\r\n" for part in parts) + b"--edge--\r\n"
    headers = {"Content-Type": "multipart/form-data; boundary=edge"}
    async with (
        emulated() as client,
        client.http.post(client.url("/api/file-stream-upload"), data=body, headers=headers) as answer,
    ):
        taken = await answer.json()
    assert taken["success"] is (path is not None), taken["msg"]
    if path is not None:
        assert (taken["data"]["filePath"], taken["data"]["fileSize"]) == (f"kieai/100001/{path}", 5)


async def test_an_upload_that_breaks_off_leaves_nothing_and_is_no_error(caplog: pytest.LogCaptureFixture) -> None:
    async with emulated() as client:
        host, port = client.emulator.base_url.removeprefix("http://").split(":")
        _, writer = await asyncio.open_connection(host, int(port))
        writer.write(
            b"POST /api/file-stream-upload HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer x\r\nContent-Length: 1000\r\n"
            b"Content-Type: multipart/form-data; boundary=edge\r\n\r\n--edge\r\n" + FILE
        )
        await writer.drain()
        await asyncio.sleep(1)
        writer.close()
        await writer.wait_closed()
        await asyncio.sleep(1)
        assert (await client.get("/api/v1/chat/credit"))["code"] == 200
    assert [record for record in caplog.records if record.levelname == "ERROR"] == []


async def test_what_is_no_form_is_refused() -> None:
    async with emulated() as client:
        answer = await client.post("/api/file-stream-upload", {"file": "x"})
        assert (answer["success"], answer["code"], answer["data"]) == (False, 400, None)


async def test_paths_stay_inside_the_account() -> None:
    async with emulated() as client:
        body = {"base64Data": "aGk=", "uploadPath": "../../etc", "fileName": "../../passwd"}
        answer = await client.post("/api/file-base64-upload", body)
        assert answer["data"]["filePath"] == "kieai/100001/etc/passwd"


@pytest.mark.parametrize(("text", "size"), [("aGVsbG8=", 5), ("data:audio/mpeg;base64,aGVsbG8=", 5), ("?", 0), (5, 0)])
async def test_base64_comes_bare_or_as_a_data_url(text: object, size: int) -> None:
    async with emulated() as client:
        answer = await client.post("/api/file-base64-upload", {"base64Data": text})
        assert answer["success"] is bool(size)
        assert (answer["data"] or {"fileSize": 0})["fileSize"] == size


async def test_an_address_on_loopback_is_fetched_and_no_other() -> None:
    async def serve_file(_request: web.Request) -> web.Response:
        return web.Response(body=b"content")

    async with receiving(serve_file) as host, emulated() as client:
        answer = await client.post("/api/file-url-upload", {"fileUrl": host.url, "fileName": "x.mp3"})
        assert (await client.read(answer["data"]["downloadUrl"]))[1] == b"content"
        again = await client.post("/api/file-url-upload", {"fileUrl": answer["data"]["downloadUrl"]})
        assert again["data"]["fileSize"] == 7
        for url in ("https://kie.invalid/x.mp3", None):
            assert (await client.post("/api/file-url-upload", {"fileUrl": url}))["success"] is False


async def test_uploads_can_fail() -> None:
    async with emulated(faults=[Fault("code", "upload", code=413)]) as client:
        assert (await client.post("/api/file-base64-upload", {"base64Data": "aGk="}))["code"] == 413


# ---------------------------------------------------------------- downloads


async def test_a_finished_track_is_served_whole_and_in_parts(song: bytes, clock: VirtualTimeLoop) -> None:
    async with emulated(**SHORT) as client:
        url = (await upload_extended(client, song, clock))[0]
        status, whole, headers = await client.read(url)
        assert (status, headers["Content-Type"], headers["Accept-Ranges"]) == (200, "audio/mpeg", "bytes")
        assert int(headers["Content-Length"]) == len(whole)
        size, etag = len(whole), headers["ETag"]
        for span, first, last in (("0-99", 0, 99), ("500-", 500, size - 1), ("-10", size - 10, size - 1),
                                  (f"9-{size + 5}", 9, size - 1)):  # fmt: skip
            for condition in ({}, {"If_Range": etag}):
                status, part, headers = await client.read(url, Range=f"bytes={span}", **condition)
                assert (status, part) == (206, whole[first : last + 1])
                assert headers["Content-Range"] == f"bytes {first}-{last}/{size}"
                assert headers["ETag"] == etag
        status, part, headers = await client.read(url, Range=f"bytes={size}-")
        assert (status, part, headers["Content-Range"]) == (416, b"", f"bytes */{size}")
        for asked in ("bytes=-", "bytes=5-3", "lines=1-2"):
            assert (await client.read(url, Range=asked))[:2] == (200, whole)
        assert (await client.read(url, Range="bytes=5-", If_Range='"other"'))[:2] == (200, whole)


async def test_only_what_is_finished_is_served_and_only_for_two_weeks(clock: VirtualTimeLoop) -> None:
    async with emulated(**SHORT) as client:
        task_id = (await client.extend(continueAt=5))["data"]["taskId"]
        first, second = client.emulator.task(task_id).track_ids
        for path in (f"{first}.mp3", f"stream/{first}", "nothing.mp3", f"{first}.wav"):
            assert (await client.read(f"/files/{path}"))[0] == 404
        clock.advance(2)
        assert (await client.read(f"/files/{first}.mp3"))[0] == 200
        assert (await client.read(f"/files/{second}.mp3"))[0] == 404
        clock.advance(1)
        assert (await client.read(f"/files/{second}.mp3"))[0] == 200
        assert (await client.read(f"/files/{first}.jpeg"))[1].startswith(b"\xff\xd8")
        clock.advance(14 * 86400 + 1)
        assert (await client.read(f"/files/{second}.mp3"))[0] == 404


async def test_a_track_that_is_not_visible_or_has_no_audio_is_not_served(clock: VirtualTimeLoop) -> None:
    faults = [Fault("invisible", seconds=5.0, nth=1), Fault("no_audio", nth=2)]
    async with emulated(**SHORT, faults=faults) as client:
        for wait in (0, 3):
            task_id = (await client.extend(continueAt=5))["data"]["taskId"]
            first = client.emulator.task(task_id).track_ids[0]
            clock.advance(wait)
            for path in (f"{first}.mp3", f"stream/{first}"):
                expected = 200 if wait and "stream" in path else 404
                assert (await client.read(f"/files/{path}"))[0] == expected


async def test_a_stream_decays_to_nothing(clock: VirtualTimeLoop) -> None:
    async with emulated(**SHORT) as client:
        task_id = (await client.extend(continueAt=5))["data"]["taskId"]
        clock.advance(1)
        path = f"/files/stream/{client.emulator.task(task_id).track_ids[0]}"
        status, body, _ = await client.read(path)
        assert (status, len(body) > 10_000) == (200, True)
        clock.advance(63)
        assert (await client.read(path))[:2] == (200, b"")


async def test_a_direct_link_is_good_for_twenty_minutes(clock: VirtualTimeLoop) -> None:
    async with emulated(**SHORT) as client:
        task_id = (await client.extend(continueAt=5))["data"]["taskId"]
        clock.advance(3)
        url = (await client.record(task_id))["data"]["response"]["sunoData"][0]["audioUrl"]
        link = (await client.post("/api/v1/common/download-url", {"url": url}))["data"]
        assert link.startswith(f"{url}?")
        assert (await client.read(link))[0] == 200
        clock.advance(1201)
        assert (await client.read(link))[0] == 403
        assert (await client.read(f"{url}?until=soon"))[0] == 403
        assert (await client.read(url))[0] == 200
        for wrong in ({"url": client.url("/files/nothing.mp3")}, {}, {"url": "https://x.invalid/files/a.mp3"}):
            assert (await client.post("/api/v1/common/download-url", wrong))["code"] == 422


async def downloaded(client: Client, **headers: str) -> tuple[int, bytes, Any]:
    return await client.read(await client.upload(bytes(range(100)), "x.mp3"), **headers)


async def test_downloads_can_fail_in_many_ways() -> None:
    async with emulated() as client:
        faults = client.emulator.faults
        for kind, expected in (("empty", (200, b"")), ("expired", (404, b"<Error><Code>NoSuchKey</Code></Error>"))):
            faults.add(Fault(kind))
            assert (await downloaded(client))[:2] == expected
            faults.clear()
        faults.add(Fault("page"))
        status, body, headers = await client.read(await client.upload(b"x", "x.mp3"))
        assert (status, body[:6], headers["Content-Type"][:9]) == (200, b"<html>", "text/html")


async def test_a_download_ignores_or_mistakes_the_range() -> None:
    async with emulated() as client:
        client.emulator.faults.add(Fault("ignores_range"))
        for asked in ({"Range": "bytes=5-"}, {"Range": "bytes=100-"}, {}):
            status, body, headers = await downloaded(client, **asked)
            assert (status, body, "Content-Range" in headers) == (200, bytes(range(100)), False)
        client.emulator.faults.clear()
        client.emulator.faults.add(Fault("wrong_range"))
        url = await client.upload(bytes(range(100)), "x.mp3")
        status, _, headers = await client.read(url, Range="bytes=5-")
        assert (status, headers["Content-Range"]) == (206, "bytes 6-100/100")
        assert (await client.read(url))[0] == 200


async def test_a_file_changes_under_the_reader() -> None:
    async with emulated(faults=[Fault("new_etag")]) as client:
        url = await client.upload(b"x", "x.mp3")
        etags = {(await client.read(url))[2]["ETag"] for _ in range(3)}
        assert len(etags) == 3


async def test_a_download_is_cut_off_with_and_without_a_length() -> None:
    async with emulated(faults=[Fault("truncated", "download", nth=1), Fault("no_length", nth=2)]) as client:
        with pytest.raises(aiohttp.ClientPayloadError):
            await downloaded(client)
        assert (await downloaded(client))[:2] == (200, bytes(range(50)))
        assert (await downloaded(client))[:2] == (200, bytes(range(100)))


# ---------------------------------------------------------------- audio on demand


async def test_a_track_is_made_once_however_often_it_is_asked_for(song: bytes, clock: VirtualTimeLoop) -> None:
    async with emulated(**SHORT) as client:
        urls = await upload_extended(client, song, clock)
        answers = await asyncio.gather(*(client.read(urls[0]) for _ in range(5)))
        assert len({body for _, body, _ in answers}) == 1
        assert (await client.read(urls[1]))[1] != answers[0][1]
        track_id = urls[0].rpartition("/")[2].removesuffix(".mp3")
        made = await asyncio.gather(*(client.emulator.audio(track_id) for _ in range(2)))
        assert made[0] is made[1]
        assert made[0] == answers[0][1]
        with pytest.raises(KeyError):
            await client.emulator.audio("nothing")


async def test_many_who_ask_at_once_get_one_and_the_same(song: bytes) -> None:
    async with emulated(**SHORT) as client:
        url = await client.upload(song)
        task_id = (await client.upload_extend(uploadUrl=url, continueAt=3))["data"]["taskId"]
        track_id = client.emulator.task(task_id).track_ids[0]
        made = await asyncio.gather(*(client.emulator.audio(track_id) for _ in range(4)))
        assert all(each is made[0] for each in made)


async def test_what_is_not_kept_is_made_again_and_is_the_same() -> None:
    async with emulated(goes_on=(0.5, 0.5), credits=1e6, rules=Rules(quota=1000)) as client:

        async def made() -> bytes:
            task_id = (await client.extend(continueAt=0.5))["data"]["taskId"]
            return await client.emulator.audio(client.emulator.task(task_id).track_ids[0])

        first = await made()
        track_id = client.emulator.task(client.emulator.ledger[0].task_id).track_ids[0]
        assert await client.emulator.audio(track_id) is first
        for _ in range(100):
            await made()
        again = await client.emulator.audio(track_id)
        assert again is not first
        assert again == first


async def test_the_record_tells_the_length_of_the_file(song: bytes, clock: VirtualTimeLoop) -> None:
    async with emulated(timeline=QUICK) as client:
        url = await client.upload(song)
        task_id = (await client.upload_extend(uploadUrl=url, continueAt=10.5))["data"]["taskId"]
        clock.advance(3)
        tracks = (await client.record(task_id))["data"]["response"]["sunoData"]
        lengths = [track["duration"] for track in tracks]
        assert 25.5 <= lengths[0] <= 35.5
        assert 40.5 <= lengths[1] <= 50.5
        for track in tracks:
            assert len(decoded((await client.read(track["audioUrl"]))[1])) / RATE == pytest.approx(
                track["duration"], abs=0.1
            )


async def grown(emulator: Emulator, track_id: str) -> float:
    return len(decoded(await emulator.audio(track_id))) / RATE


async def test_a_track_of_its_own_can_be_extended_and_so_can_an_unknown_one(
    song: bytes, clock: VirtualTimeLoop
) -> None:  # fmt: skip
    async with emulated(**SHORT) as client:
        url = (await upload_extended(client, song, clock))[0]
        parent = url.rpartition("/")[2].removesuffix(".mp3")
        task_id = (await client.extend(audioId=parent, continueAt=4))["data"]["taskId"]
        child = client.emulator.task(task_id).track_ids[1]
        assert await grown(client.emulator, child) == pytest.approx(8.0, abs=0.1)
        ours, theirs = [decoded(await client.emulator.audio(each), 3.9) for each in (child, parent)]
        assert np.corrcoef(ours, theirs)[0, 1] > 0.95
        inherited = (await client.extend(audioId=parent, continueAt=None, defaultParamFlag=False))["data"]["taskId"]
        assert client.emulator.task(inherited).start == 5.0
        again = await client.upload_extend(uploadUrl=url, continueAt=4.5)
        made = client.emulator.task(again["data"]["taskId"]).track_ids[0]
        assert await grown(client.emulator, made) == pytest.approx(6.5, abs=0.1)
        unknown = [client.emulator.task((await client.extend(continueAt=6))["data"]["taskId"]) for _ in range(2)]
        for task in unknown:
            assert await grown(client.emulator, task.track_ids[0]) == pytest.approx(8.0, abs=0.1)


async def test_without_the_extra_all_but_audio_works(
    song: bytes, clock: VirtualTimeLoop, monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    monkeypatch.delitem(sys.modules, "kie_async.emulator._audio")
    monkeypatch.setitem(sys.modules, "av", None)  # how Python marks what cannot be imported
    async with emulated(**SHORT) as client:
        url = (await upload_extended(client, song, clock))[0]
        status, body, _ = await client.read(url)
        assert status == 501
        assert b"kie_async[audio]" in body
    with pytest.raises(RuntimeError, match=r"pip install 'kie_async\[audio\]'"):
        demo_song()
