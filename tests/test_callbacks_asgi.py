"""Callbacks as an ASGI application, spoken to without a server: what servers do besides HTTP/1.1."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import anyio
import pytest
from callback_skins import BODY, MOST, TOKEN, Inbox
from hypothesis import given
from hypothesis import strategies as st
from virtual_time import VirtualTimeLoop

from kie_async.callbacks import asgi

pytestmark = pytest.mark.anyio

Message = dict[str, Any]


class Server:
    """The other side of an application: what it may receive, and what it sent."""

    def __init__(self, *messages: Message) -> None:
        self.messages = list(messages)
        self.sent: list[Message] = []

    async def receive(self) -> Message:
        if not self.messages:
            await anyio.sleep_forever()
        return self.messages.pop(0)

    async def send(self, message: Any) -> None:  # a message can be any mapping
        self.sent.append(message)

    @property
    def headers(self) -> dict[bytes, bytes]:
        return dict(self.sent[0]["headers"])


def scope(path: str = f"/kie/{TOKEN}", **more: Any) -> Message:  # likewise
    return {"type": "http", "http_version": "1.1", "method": "POST", "path": path, "headers": [], **more}


def body(*pieces: bytes) -> list[Message]:
    messages = [{"type": "http.request", "body": piece, "more_body": True} for piece in pieces]
    messages[-1]["more_body"] = False
    return messages


async def post(inbox: Inbox, messages: Iterable[Message], **more: Any) -> Server:  # likewise
    server = Server(*messages)
    await asgi(inbox)(scope(**more), server.receive, server.send)
    return server


async def test_an_answer_is_two_messages() -> None:
    inbox = Inbox()
    server = await post(inbox, body(BODY))
    assert server.sent == [
        {"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"0")]},
        {"type": "http.response.body", "body": b""},
    ]
    assert [token for token, _ in inbox.delivered] == [TOKEN]


@pytest.mark.parametrize("path", [f"/{TOKEN}", TOKEN, f"/a/b//c/{TOKEN}"])
async def test_the_last_segment_is_the_token_wherever_it_is_mounted(path: str) -> None:
    assert (await post(Inbox(), body(BODY), path=path, root_path="/a")).sent[0]["status"] == 200


async def test_pieces_may_be_empty_or_leave_out_what_has_a_default() -> None:
    inbox = Inbox()
    await post(inbox, [*body(b"", BODY[:9], b"")[:2], {"type": "http.request", "more_body": True}, *body(BODY[9:])])
    await post(inbox, body(b"", BODY))
    assert len(inbox.delivered) == 2
    server = await post(inbox, [{"type": "http.request"}])
    assert server.sent[0]["status"] == 400


async def test_the_connection_ends_with_an_answer_before_the_body() -> None:
    for method, allow in (("PUT", b"POST"), ("POST", None)):
        server = await post(Inbox(), [], method=method, path="/short")
        assert server.headers[b"connection"] == b"close"
        assert server.headers.get(b"allow") == allow


async def test_http_2_knows_no_such_header() -> None:
    server = await post(Inbox(), [], method="GET", http_version="2")
    assert server.sent[0]["status"] == 405
    assert b"connection" not in server.headers


async def test_it_reads_no_more_than_it_must() -> None:
    piece = {"type": "http.request", "body": bytes(1024), "more_body": True}
    server = await post(Inbox(), [piece] * 1000, headers=[(b"content-length", b"5")])
    assert server.sent[0]["status"] == 413
    assert len(server.messages) == 1000 - MOST // 1024 - 1


async def test_a_sender_that_goes_away(clock: VirtualTimeLoop) -> None:
    inbox = Inbox()
    start = clock.time()
    await post(inbox, [*body(BODY[:9], b"")[:1], {"type": "http.disconnect"}])
    assert clock.time() - start < 1
    assert inbox.delivered == []
    assert [(emitted.status, emitted.note) for emitted in inbox.emitted] == [(400, "the body broke off")]


async def test_a_sender_that_does_not_wait_for_the_answer() -> None:
    class Gone(Server):
        async def send(self, message: Any) -> None:  # likewise
            raise ConnectionResetError(message["type"])

    inbox = Inbox()
    server = Gone(*body(BODY))
    await asgi(inbox)(scope(), server.receive, server.send)
    assert len(inbox.delivered) == 1


async def test_a_body_that_never_comes(clock: VirtualTimeLoop) -> None:
    start = clock.time()
    server = await post(Inbox(), [])
    assert server.sent[0]["status"] == 408
    assert server.headers[b"connection"] == b"close"
    assert 10 <= clock.time() - start < 11


async def test_a_life_without_events_of_its_own() -> None:
    server = Server({"type": "lifespan.startup"}, {"type": "lifespan.shutdown"})
    await asgi(Inbox())({"type": "lifespan"}, server.receive, server.send)
    assert server.sent == [{"type": "lifespan.startup.complete"}, {"type": "lifespan.shutdown.complete"}]


async def test_no_web_socket() -> None:
    server = Server({"type": "websocket.connect"})
    await asgi(Inbox())({"type": "websocket"}, server.receive, server.send)
    assert server.sent == [{"type": "websocket.close"}]


async def test_other_protocols() -> None:
    server = Server()
    with pytest.raises(NotImplementedError, match="carrier pigeon"):
        await asgi(Inbox())({"type": "carrier pigeon"}, server.receive, server.send)


MESSAGES = st.lists(
    st.fixed_dictionaries(
        {"type": st.sampled_from(["http.request", "http.request", "http.disconnect"])},
        optional={"body": st.just(BODY) | st.binary(), "more_body": st.booleans()},
    )
).map(lambda messages: [*messages, {"type": "http.disconnect"}])
PAIRS = st.lists(st.tuples(st.sampled_from([b"content-length", b"content-encoding", b"x"]) | st.binary(), st.binary()))


@given(MESSAGES, PAIRS, st.text() | st.just(f"/{TOKEN}"), st.just("POST") | st.text())
async def test_any_messages_end_in_one_answer(
    messages: list[Message], headers: list[tuple[bytes, bytes]], path: str, method: str
) -> None:
    inbox = Inbox()
    server = await post(inbox, messages, headers=headers, path=path, method=method)
    assert [message["type"] for message in server.sent] == ["http.response.start", "http.response.body"]
    status = server.sent[0]["status"]
    assert status in {200, 400, 404, 405, 413, 415}
    assert [emitted.status for emitted in inbox.emitted] == [status]
    assert len(inbox.delivered) == (status == 200)
