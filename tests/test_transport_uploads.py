"""Files on their way out: what the upload host gets, and what happens when the file or the host fails."""

from __future__ import annotations

import asyncio
import email
import email.policy
import json
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import sample_json
from fault_server import KEY, FaultServer, Reply, fault_server, http, ok, said, transport
from leaks import frames
from virtual_time import VirtualTimeLoop

from kie_async import errors
from kie_async._protocol.backoff import READ_ATTEMPTS
from kie_async._protocol.endpoints import FilePart, upload
from kie_async.models import UploadedFile

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("clock")]

ANSWER = sample_json("exchange_file_base64_upload.captured.json")["response"]["json"]
DONE = ok(json.dumps(ANSWER).encode(), end="close")
AT_ONCE = 4  # uploads
CONTENT = bytes(range(256)) * 4000  # four pieces


@pytest.fixture
def part(tmp_path: Path) -> FilePart:
    path = tmp_path / "song.wav"
    path.write_bytes(CONTENT)
    return announced(path)


def announced(path: Path, size: int = len(CONTENT), on_bytes: Callable[[int], None] | None = None) -> FilePart:
    return FilePart(path, size, "0123abcd.wav", on_bytes)


def fields(server: FaultServer, number: int = 0) -> dict[str, Any]:
    """The fields of a form, by their names: the parsed parts."""
    asked = server.asked[number]
    head = f"Content-Type: {asked.headers['content-type']}\r\n\r\n".encode()
    message = email.message_from_bytes(head + asked.body, policy=email.policy.HTTP)
    return {str(each.get_param("name", header="content-disposition")): each for each in message.iter_parts()}


async def sent(server: FaultServer, part: FilePart, **changes: Any) -> UploadedFile:
    async with transport(server.url, **changes) as opened:
        return await opened.send(upload(part))


async def test_the_fields(part: FilePart) -> None:
    async with fault_server(DONE) as server:
        answer = await sent(server, part)
    asked = server.asked[0]
    assert asked.line == "POST /api/file-stream-upload HTTP/1.1"
    assert asked.headers["authorization"] == f"Bearer {KEY}"
    assert int(asked.headers["content-length"]) == len(asked.body)
    assert "transfer-encoding" not in asked.headers
    found = fields(server)
    assert list(found) == ["uploadPath", "fileName", "file"]
    assert found["uploadPath"].get_payload().strip() == "kie-async"
    assert found["fileName"].get_payload().strip() == "0123abcd.wav"
    assert found["file"].get_payload(decode=True) == CONTENT
    assert found["file"].get_filename() == "0123abcd.wav"
    assert found["file"].get_content_type() == "application/octet-stream"
    assert answer.download_url == ANSWER["data"]["downloadUrl"]


async def test_uploads_go_to_their_own_host(part: FilePart) -> None:
    async with fault_server(DONE) as api, fault_server(DONE) as host:
        await sent(api, part, upload_base_url=host.url)
        assert (api.connections, host.connections) == (0, 1)


async def test_an_empty_file_has_a_length_too(part: FilePart) -> None:
    part.path.write_bytes(b"")
    async with fault_server(DONE) as server:
        await sent(server, announced(part.path, size=0))
    assert fields(server)["file"].get_payload(decode=True) == b""


async def test_progress_is_told_on_the_loop(part: FilePart) -> None:
    emitted: list[tuple[int, threading.Thread]] = []
    watched = announced(part.path, on_bytes=lambda done: emitted.append((done, threading.current_thread())))
    async with fault_server(DONE) as server:
        await sent(server, watched)
    sizes = [done for done, _ in emitted]
    assert sizes == [*range(sizes[0], len(CONTENT), sizes[0]), len(CONTENT)]
    assert len(sizes) == 4
    assert {thread for _, thread in emitted} == {threading.current_thread()}


async def test_the_file_is_read_off_the_loop(part: FilePart, monkeypatch: pytest.MonkeyPatch) -> None:
    readers: set[threading.Thread] = set()
    plain = Path.open

    def watched(self: Path, *args: Any, **options: Any) -> Any:
        readers.add(threading.current_thread())
        return plain(self, *args, **options)

    monkeypatch.setattr(Path, "open", watched)
    async with fault_server(DONE) as server:
        await sent(server, part)
    assert readers
    assert threading.current_thread() not in readers


@pytest.mark.parametrize("real", [len(CONTENT) - 1, len(CONTENT) + 1, 0])
async def test_a_file_of_another_size_than_announced(part: FilePart, real: int) -> None:
    part.path.write_bytes((CONTENT + b"x")[:real])
    async with fault_server(Reply(read="head", end="wait")) as server:
        with pytest.raises(errors.FileError, match=r"song\.wav changed") as caught:
            await sent(server, part)
        assert (caught.value.charged, caught.value.retryable) == ("no", False)
        assert server.connections == 1
        assert caught.value.__cause__ is None


async def test_a_file_that_shrinks_while_it_is_sent(part: FilePart) -> None:
    sizes: list[int] = []

    def shrink(done: int) -> None:
        sizes.append(done)
        if len(sizes) == 2:
            part.path.write_bytes(CONTENT[:done])

    async with fault_server(Reply(read="head", end="wait")) as server:
        with pytest.raises(errors.FileError, match="changed"):
            await sent(server, announced(part.path, on_bytes=shrink))
    assert len(sizes) == 2


async def test_a_file_that_shrinks_between_two_calls(part: FilePart, monkeypatch: pytest.MonkeyPatch) -> None:
    class About:
        st_size = len(CONTENT)

    monkeypatch.setattr(os, "fstat", lambda _number: About)
    part.path.write_bytes(CONTENT[:9])
    async with fault_server(Reply(read="head", end="wait")) as server:
        with pytest.raises(errors.FileError, match="changed"):
            await sent(server, part)


async def test_a_file_that_is_gone(part: FilePart) -> None:
    part.path.unlink()
    async with fault_server(Reply(read="head", end="wait")) as server:
        with pytest.raises(errors.StorageError, match="No such file") as caught:
            await sent(server, part)
        assert server.connections == 1
        assert not caught.value.retryable
        assert caught.value.__cause__ is None
        assert caught.value.__suppress_context__
        assert not any("aiohttp" in file for file, _ in frames(caught.value))


async def test_a_failed_upload_is_sent_again_as_a_whole(part: FilePart) -> None:
    replies = Reply(read="half", end="reset"), Reply((http(502, b"<html>"),)), DONE
    async with fault_server(*replies) as server:
        await sent(server, part)
        assert server.connections == 3
        assert fields(server, -1)["file"].get_payload(decode=True) == CONTENT


@pytest.mark.parametrize(
    ("reply", "kind", "times"),
    [
        (Reply((http(413, b"<html>"),), read="head"), errors.InvalidRequestError, 1),
        (ok(said(401), end="close"), errors.AuthError, 1),
        (Reply((http(500, b"<html>"),)), errors.ServerError, READ_ATTEMPTS),
        (ok(said(data={"success": True}), end="close"), errors.BadResponseError, 1),
        (ok(said(data={"success": False, "downloadUrl": "https://h.ex"}), end="close"), errors.BadResponseError, 1),
        (Reply((http(307, Location="https://h.example"),)), errors.UnexpectedRedirectError, 1),
    ],
)  # fmt: skip
async def test_a_host_that_refuses(part: FilePart, reply: Reply, kind: type[Exception], times: int) -> None:
    async with fault_server(reply) as server:
        with pytest.raises(kind):
            await sent(server, part)
        assert server.connections == times


async def test_few_uploads_at_once(part: FilePart) -> None:
    slow = Reply((b"", DONE.pieces[0]), pause=5)
    async with fault_server(slow) as server, transport(server.url) as opened:
        await asyncio.gather(*(opened.send(upload(part)) for _ in range(12)))
        assert server.most_open == AT_ONCE
        assert len(server.asked) == 12


async def test_uploads_have_a_time_of_their_own(part: FilePart, clock: VirtualTimeLoop) -> None:
    slow = Reply([b"", *(b"HTTP/1.1 100 Continue\r\n\r\n",) * 5, DONE.pieces[0]], pause=50)
    begun = clock.time()
    async with fault_server(slow) as server:
        await sent(server, part, total_timeout=90, read_timeout=60)
    assert clock.time() - begun > 250
    async with fault_server(slow) as server:
        with pytest.raises(errors.ServerError):
            await sent(server, part, upload_timeout=100)


async def test_cancelled_uploads_leave_nothing_open(part: FilePart) -> None:
    taken: list[int] = []
    watched = announced(part.path, on_bytes=taken.append)
    async with fault_server(Reply(read="head", end="wait")) as server, transport(server.url) as opened:
        for _ in range(2 * AT_ONCE):
            taken.clear()
            sending = asyncio.ensure_future(opened.send(upload(watched)))
            while not taken:
                await asyncio.sleep(0.01)
            sending.cancel()
            await asyncio.gather(sending, return_exceptions=True)
        server.replies[:] = [DONE]
        await opened.send(upload(part))
