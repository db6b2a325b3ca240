"""Callbacks over real sockets, in every way they can come in: hygiene, slowness, floods (RELIABILITY D)."""

from __future__ import annotations

import gzip
import logging
import resource
import tracemalloc
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack
from urllib.parse import urlsplit

import aiohttp
import anyio
import pytest
from aiohttp import web
from callback_skins import BODY, MOST, NOW, SKINS, TASK, TOKEN, Inbox, Raw, connect, in_aiohttp, own_server
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from virtual_time import VirtualTimeLoop
from yarl import URL

from kie_async.callbacks import add_routes, serve, sign_callback
from kie_async.errors import SettingsError

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("clock")]

SIGNED = sign_callback("old", TASK, timestamp=NOW)


@pytest.fixture
def inbox() -> Inbox:
    return Inbox()


@pytest.fixture(params=SKINS)
async def url(request: pytest.FixtureRequest, inbox: Inbox, clock: VirtualTimeLoop) -> AsyncIterator[str]:
    """Where the callbacks of ``inbox`` come in."""
    assert clock.is_running()
    async with SKINS[request.param](inbox) as url:
        yield url


@pytest.fixture
async def http(clock: VirtualTimeLoop) -> AsyncIterator[aiohttp.ClientSession]:
    assert clock.is_running()
    async with aiohttp.ClientSession(auto_decompress=False) as session:
        yield session


@pytest.fixture
def many_files() -> Iterator[None]:
    """Allow this process both ends of a thousand connections."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def head(length: object, *more: str, token: str = TOKEN, method: str = "POST") -> bytes:
    lines = [f"{method} /kie/{token} HTTP/1.1", "Host: me", f"Content-Length: {length}", *more, "", ""]
    return "\r\n".join(lines).encode()


CHUNKED = f"POST /kie/{TOKEN} HTTP/1.1\r\nHost: me\r\nTransfer-Encoding: chunked\r\n\r\n".encode()


async def test_a_callback_comes_in(url: str, http: aiohttp.ClientSession, inbox: Inbox) -> None:
    inbox.receiver.keys = Inbox("old").receiver.keys
    for headers, status in ((SIGNED, 200), ({}, 401), (SIGNED | {"X-Webhook-Signature": "é\udcff"}, 401)):
        async with http.post(f"{url}/{TOKEN}", data=BODY, headers=headers) as answer:
            assert answer.status == status
            assert await answer.read() == b""
    [(token, event)] = inbox.delivered
    assert (token, event.task_id) == (TOKEN, TASK)


@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "OPTIONS", "DELETE", "PATCH", "PROPFIND"])
async def test_only_post(url: str, http: aiohttp.ClientSession, inbox: Inbox, method: str) -> None:
    async with http.request(method, f"{url}/{TOKEN}", data=BODY) as answer:
        assert (answer.status, answer.headers["Allow"]) == (405, "POST")
        assert await answer.read() == b""
    assert inbox.delivered == []


async def test_slashes_after_the_token_and_escapes_within(url: str, http: aiohttp.ClientSession, inbox: Inbox) -> None:
    for path in (f"/{TOKEN}/", f"/{TOKEN}//", "/" + TOKEN.replace("_", "%5F").replace("-", "%2d"), f"/{TOKEN}?x=1"):
        async with http.post(URL(url + path, encoded=True), data=BODY) as answer:
            assert (path, answer.status) == (path, 200)
    assert [token for token, _ in inbox.delivered] == [TOKEN] * 4


async def test_unknown_paths(url: str, http: aiohttp.ClientSession, inbox: Inbox) -> None:
    for path in (url, f"{url}/", f"{url}/short", f"{url}/{TOKEN}.", f"{url}/{TOKEN}%2F..%2Fx"):
        async with http.post(path, data=BODY) as answer:
            assert answer.status == 404
    assert inbox.delivered == []


async def test_no_version_and_no_traceback_in_any_answer(url: str, http: aiohttp.ClientSession, inbox: Inbox) -> None:
    async def fail() -> str:
        raise RuntimeError("secret detail")

    inbox.answer = fail
    for method, body, status in (("POST", BODY, 503), ("POST", b"null", 400), ("GET", b"", 405)):
        async with http.request(method, f"{url}/{TOKEN}", data=body) as answer:
            assert answer.status == status
            assert await answer.read() == b""
            assert not any(sign.isdigit() for sign in answer.headers.get("Server", ""))


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        ("application/x-www-form-urlencoded", b"a=b"), ("multipart/form-data; boundary=x", b"--x\r\n\r\n--x--"),
        ("application/json", b""), ("application/json", b"null"), ("application/json", b"[]"),
        ("text/html", b'"x"'), ("application/json", b"\xff\xfe\x00"), ("nonsense", b"\0"),
    ],
)  # fmt: skip
async def test_bodies_that_are_none(url: str, http: aiohttp.ClientSession, kind: str, body: bytes) -> None:
    async with http.post(f"{url}/{TOKEN}", data=body, headers={"Content-Type": kind}) as answer:
        assert answer.status == 400
        assert await answer.read() == b""


async def test_the_type_of_a_good_body_does_not_matter(url: str, http: aiohttp.ClientSession) -> None:
    for kind in ("text/plain", "multipart/form-data; boundary=x", "application/x-www-form-urlencoded"):
        async with http.post(f"{url}/{TOKEN}", data=BODY, headers={"Content-Type": kind}) as answer:
            assert answer.status == 200


async def test_a_compressed_body_is_not_unpacked(url: str, http: aiohttp.ClientSession, inbox: Inbox) -> None:
    bomb = gzip.compress(bytes(50_000_000))
    tracemalloc.start()
    async with http.post(f"{url}/{TOKEN}", data=bomb, headers={"Content-Encoding": "gzip"}) as answer:
        assert answer.status == 415
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 5_000_000
    async with http.post(f"{url}/{TOKEN}", data=BODY, headers={"Content-Encoding": "identity"}) as answer:
        assert answer.status == 200
    assert len(inbox.delivered) == 1


@pytest.mark.parametrize("length", [10**9, MOST + 1, 10**17])
async def test_a_length_that_is_too_great_is_refused_at_once(url: str, length: int, clock: VirtualTimeLoop) -> None:
    start = clock.time()
    async with connect(url) as raw:
        await raw.send(head(length))
        assert await raw.status() == 413
    assert clock.time() - start < 1


async def test_a_body_without_end_is_cut_off(url: str, inbox: Inbox) -> None:
    async with connect(url) as raw:
        await raw.send(CHUNKED)
        piece = b"8000\r\n" + bytes(0x8000) + b"\r\n"
        for _ in range(MOST // 0x8000 + 1):
            await raw.send(piece)
        assert await raw.status() == 413
        with pytest.raises(anyio.BrokenResourceError), anyio.fail_after(5):
            await flood(raw, piece)
    assert inbox.delivered == []


async def flood(raw: Raw, piece: bytes) -> None:
    """Send on and on."""
    while True:
        await anyio.sleep(0.1)
        await raw.send(piece)


async def test_a_length_that_lies(url: str, inbox: Inbox) -> None:
    async with connect(url) as raw:  # too short: what is left over is no request
        await raw.send(head(10) + BODY)
        assert await raw.status() == 400
    async with connect(url) as raw:  # too long: the rest never comes
        await raw.send(head(len(BODY) + 1) + BODY)
        assert await raw.status() == 408
    for length in ("-1", "abc", "1e3", "", "10, 11"):
        async with connect(url) as raw:
            await raw.send(head(length) + BODY)
            assert await raw.status() == 400
    assert inbox.delivered == []


@pytest.mark.parametrize("start", [head(len(BODY)) + BODY[:20], CHUNKED + b'5\r\n{"cod', CHUNKED])
async def test_a_sender_that_goes_away_in_the_middle(url: str, inbox: Inbox, start: bytes) -> None:
    async with connect(url) as raw:
        await raw.send(start)
        await anyio.sleep(0.5)
    await anyio.sleep(0.5)
    assert inbox.delivered == []
    assert [(emitted.status, emitted.note) for emitted in inbox.emitted] == [(400, "the body broke off")]


async def test_broken_chunks(url: str, inbox: Inbox) -> None:
    async with connect(url) as raw:
        await raw.send(CHUNKED + b'5\r\n{"cod\r\n')
        await anyio.sleep(0.5)
        await raw.send(b"nonsense\r\n\r\n")
        await anyio.sleep(0.5)
        assert await raw.status() in {
            400,
            408,
            0,
        }  # aiohttp ends the body not before the time is up, uvicorn answers nothing
    await anyio.sleep(0.5)
    assert inbox.delivered == []


async def test_a_sender_that_waits_to_be_asked_for_the_body(url: str, inbox: Inbox) -> None:
    for expect in ("100-continue", "100-Continue"):
        async with connect(url) as raw:
            await raw.send(head(len(BODY), f"Expect: {expect}"))
            assert await raw.status() == 100
            await raw.send(BODY)
            assert await raw.status() == 200
    async with connect(url) as raw:
        await raw.send(head(MOST + 1, "Expect: 100-continue"))
        assert await raw.status() == 413
    async with connect(url) as raw:
        old = head(len(BODY), "Expect: 100-continue", "Connection: close").replace(b"HTTP/1.1", b"HTTP/1.0")
        await raw.send(old + BODY)
        assert await raw.status() == 200
    assert len(inbox.delivered) == 3


async def test_an_application_may_still_fail_after_the_body_was_asked_for(inbox: Inbox) -> None:
    @web.middleware
    async def fail(request: web.Request, handler: Callable[..., Awaitable[web.StreamResponse]]) -> web.StreamResponse:
        await handler(request)
        raise RuntimeError("not ours")

    app = web.Application(middlewares=[fail])
    async with in_aiohttp(inbox, app) as url, connect(url) as raw:
        await raw.send(head(len(BODY), "Expect: 100-continue"))
        assert await raw.status() == 100
        await raw.send(BODY)
        assert await raw.status() == 500


async def test_a_body_that_the_parser_finds_broken(inbox: Inbox, http: aiohttp.ClientSession) -> None:
    @web.middleware
    async def spoil(request: web.Request, handler: Callable[..., Awaitable[web.StreamResponse]]) -> web.StreamResponse:
        request.content.set_exception(web.RequestPayloadError("bad chunk"))
        return await handler(request)

    app = web.Application(middlewares=[spoil])
    async with in_aiohttp(inbox, app) as url, http.post(f"{url}/{TOKEN}", data=BODY) as answer:
        assert answer.status == 400
    assert [emitted.note for emitted in inbox.emitted] == ["the body broke off"]


async def test_a_slow_body_is_given_up(url: str, clock: VirtualTimeLoop) -> None:
    start = clock.time()
    async with connect(url) as raw, anyio.create_task_group() as group:
        await raw.send(head(len(BODY)))
        group.start_soon(drip, raw, BODY)
        assert await raw.status() == 408
        assert 10 <= clock.time() - start < 11.5
        assert await raw.answer() == b""
        assert clock.time() - start < 22
        group.cancel_scope.cancel()


async def drip(raw: Raw, data: bytes) -> None:
    """One byte in a second, as long as the other side listens."""
    for i in range(len(data)):
        await anyio.sleep(1)
        try:
            await raw.send(data[i : i + 1])
        except anyio.BrokenResourceError:
            return


@pytest.mark.usefixtures("many_files")
async def test_slow_bodies_do_not_hold_up_others(
    url: str, http: aiohttp.ClientSession, inbox: Inbox, clock: VirtualTimeLoop
) -> None:
    async with anyio.create_task_group() as group:
        for _ in range(200):
            group.start_soon(dawdle, url, head(len(BODY)) + BODY[:20])
        await anyio.sleep(5)
        start = clock.time()
        async with http.post(f"{url}/{TOKEN}", data=BODY) as answer:
            assert answer.status == 200
        assert clock.time() - start < 1
    assert [emitted.status for emitted in inbox.emitted] == [200] + [408] * 200


async def dawdle(url: str, start: bytes) -> None:
    """Send the beginning of a request, a byte in each second after it, and stay till the end."""
    async with connect(url) as raw, anyio.create_task_group() as group:
        try:
            await raw.send(start)
        except anyio.BrokenResourceError:
            return
        group.start_soon(drip, raw, b"x" * 60)
        await raw.answer()
        group.cancel_scope.cancel()


async def test_many_at_once(url: str, http: aiohttp.ClientSession, inbox: Inbox, clock: VirtualTimeLoop) -> None:
    async def post() -> None:
        async with http.post(f"{url}/{TOKEN}", data=BODY) as answer:
            assert answer.status == 200

    start = clock.time()
    async with anyio.create_task_group() as group:
        for _ in range(1000):
            group.start_soon(post)
    assert clock.time() - start < 15
    assert len(inbox.delivered) == 1000


HEADERS = st.lists(
    st.tuples(
        st.sampled_from(["X-Webhook-Timestamp", "X-Webhook-Signature", "Content-Type", "Content-Encoding", "Expect"]),
        st.from_regex(r"[\x21-\x7e\x80-\xff]{0,20}", fullmatch=True) | st.sampled_from(["identity", "gzip", str(NOW)]),
    )
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(
    headers=HEADERS,
    body=st.binary(max_size=200) | st.just(BODY),
    token=st.just(TOKEN) | st.text("aZ0-_.%", max_size=40),
)
async def test_any_request_ends_in_a_status(
    url: str, inbox: Inbox, headers: list[tuple[str, str]], body: bytes, token: str
) -> None:
    inbox.receiver.keys = Inbox("old").receiver.keys
    if token != TOKEN:  # a path that is not ours is the framework's, and aiohttp stumbles over odd expectations there
        headers = [header for header in headers if header[0] != "Expect"]
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers).encode("latin-1")
    async with connect(url) as raw:
        await raw.send(head(len(body), "Connection: close", token=token)[:-2] + lines + b"\r\n" + body)
        assert await raw.status() in {400, 401, 404, 415}


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(st.binary(min_size=1, max_size=300))
async def test_any_bytes_end_the_connection(url: str, inbox: Inbox, garbage: bytes) -> None:
    async with connect(url) as raw:
        await raw.send(garbage + b"\r\n\r\n")
        assert (await raw.answer())[:12] in {b"", b"HTTP/1.0 400", b"HTTP/1.1 400"}
    assert inbox.delivered == []


# ---------------------------------------------------------------- add_routes


@pytest.mark.parametrize(
    ("callback_url", "path", "at"),
    [
        ("https://me.example/kie/", None, "/kie"), ("https://me.example", None, ""), ("", None, ""),
        ("https://me.example/kie", "hooks/in/", "/hooks/in"), ("https://me.example/kie", "", ""),
        ("https://me.example/kie", "/", ""), ("", "/x", "/x"),
    ],
)  # fmt: skip
async def test_where_the_tokens_stand(callback_url: str, path: str | None, at: str) -> None:
    inbox = Inbox(callback_url=callback_url)
    app = web.Application()
    add_routes(app, inbox, path=path)
    assert [route.resource and route.resource.canonical for route in app.router.routes()] == [f"{at}/{{token}}"]
    async with serve(inbox, path=path) as server, aiohttp.ClientSession() as http:
        assert server.url == f"http://127.0.0.1:{server.port}{at}"
        async with http.post(f"{server.url}/{TOKEN}", data=BODY) as answer:
            assert answer.status == 200
        async with http.post(f"http://127.0.0.1:{server.port}/else{at}/{TOKEN}", data=BODY) as answer:
            assert answer.status == 404


@pytest.mark.parametrize("path", ["/a%20b", "/a%20b/c+d", "/kié", "/ki%C3%A9", "//kie", "/a//b"])
async def test_callbacks_come_in_where_the_service_is_told(path: str, http: aiohttp.ClientSession) -> None:
    inbox = Inbox(callback_url=f"https://me.example{path}")
    async with own_server(inbox) as own, in_aiohttp(inbox) as aiohttps:
        for url in (own, aiohttps):
            base = url.partition("://")[2].partition("/")[0]
            sent = URL(f"http://{base}{urlsplit(inbox.settings.callback_url).path}/{TOKEN}", encoded=path.isascii())
            async with http.post(sent, data=BODY) as answer:
                assert answer.status == 200
    assert len(inbox.delivered) == 2


# ---------------------------------------------------------------- serve


async def test_doubled_slashes_before_the_token(inbox: Inbox, http: aiohttp.ClientSession) -> None:
    async with own_server(inbox) as url:
        for path in (f"/kie//{TOKEN}", f"//kie/{TOKEN}"):
            async with http.post(URL(url.removesuffix("/kie") + path, encoded=True), data=BODY) as answer:
                assert answer.status == 200
    assert len(inbox.delivered) == 2


async def test_every_connection_carries_one_request(inbox: Inbox) -> None:
    async with own_server(inbox) as url, connect(url) as raw:
        await raw.send((head(len(BODY)) + BODY) * 2)
        answer = await raw.answer()
    assert answer.count(b"HTTP/1.1") == 1
    assert b"\r\nConnection: close\r\n" in answer
    assert len(inbox.delivered) == 1


async def test_a_slow_head_is_given_up(inbox: Inbox, clock: VirtualTimeLoop) -> None:
    async with own_server(inbox) as url:
        start = clock.time()
        await dawdle(url, head(5)[:20])
        assert 10 <= clock.time() - start < 12
        await dawdle(url, b"")
        assert clock.time() - start < 24


@pytest.mark.usefixtures("many_files")
async def test_a_thousand_slow_heads_do_not_hold_up_others(
    inbox: Inbox, http: aiohttp.ClientSession, clock: VirtualTimeLoop
) -> None:
    async with own_server(inbox) as url, anyio.create_task_group() as group:
        for _ in range(1000):
            group.start_soon(dawdle, url, head(5)[:20])
        await anyio.sleep(5)
        start = clock.time()
        async with http.post(f"{url}/{TOKEN}", data=BODY) as answer:
            assert answer.status == 200
        assert clock.time() - start < 1
        await anyio.sleep(7)
        assert len(inbox.delivered) == 1


async def test_in_a_crowd_the_oldest_connections_go(inbox: Inbox, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kie_async.callbacks._aiohttp.MAX_CONNECTIONS", 4)
    async with own_server(inbox) as url, AsyncExitStack() as stack:
        crowd = []
        for _ in range(6):
            crowd.append(await stack.enter_async_context(connect(url)))
            await anyio.sleep(0.1)
        for raw in crowd[:2]:
            with anyio.fail_after(1):
                assert await raw.answer() == b""
        for raw in crowd[2:]:
            await raw.send(head(len(BODY)) + BODY)
            assert await raw.status() == 200


async def test_a_body_that_cannot_be_unpacked_is_not_even_tried(
    inbox: Inbox, http: aiohttp.ClientSession, caplog: pytest.LogCaptureFixture
) -> None:
    async with own_server(inbox) as url:
        for encoding in ("deflate", "gzip", "br", "zstd", "x"):
            async with http.post(f"{url}/{TOKEN}", data=BODY, headers={"Content-Encoding": encoding}) as answer:
                assert answer.status == 415
    assert caplog.text == ""


async def test_what_is_no_http_is_answered_without_an_echo(inbox: Inbox, caplog: pytest.LogCaptureFixture) -> None:
    async with own_server(inbox) as url:
        for garbage in (b"\x16\x03\x01\x02\x00", b"GET\r\n\r\n", b"POST / HTTP/9\r\n\r\n", head(5, "<b>: x")):
            async with connect(url) as raw:
                await raw.send(garbage + b"\r\n\r\n")
                answer = await raw.answer()
            assert answer.startswith(b"HTTP/1.")
            assert answer.split()[1] == b"400"
            assert answer.endswith(b"\r\n\r\n")
            assert b"\r\nServer: kie_async\r\n" in answer
    assert caplog.text == ""


async def test_a_fault_of_our_own_is_logged_and_not_shown(
    inbox: Inbox, http: aiohttp.ClientSession, caplog: pytest.LogCaptureFixture
) -> None:
    async with own_server(inbox) as url:
        del inbox.receiver
        async with http.post(f"{url}/{TOKEN}", data=BODY) as answer:
            assert answer.status == 500
            assert "receiver" not in await answer.text()
            assert answer.headers["Server"] == "kie_async"
    assert "AttributeError" in caplog.text


@pytest.mark.parametrize(
    ("host", "name"),
    [("127.0.0.1", "127.0.0.1"), ("::1", "[::1]"), ("0.0.0.0", "127.0.0.1"), ("::", "[::1]"), ("localhost", None)],  # noqa: S104
)
async def test_hosts(inbox: Inbox, http: aiohttp.ClientSession, host: str, name: str | None) -> None:
    async with serve(inbox, host=host) as server:
        assert name is None or server.url == f"http://{name}:{server.port}/kie"
        assert name is None or server.host == host
        async with http.post(f"{server.url}/{TOKEN}", data=BODY) as answer:
            assert answer.status == 200


async def test_where_it_cannot_listen(inbox: Inbox) -> None:
    async with serve(inbox) as server:
        with pytest.raises(SettingsError, match=f"on 127.0.0.1 port {server.port}: .*in use"):
            async with serve(inbox, port=server.port):
                pytest.fail("two servers on one port")
    async with serve(inbox, port=server.port) as again:
        assert again.port == server.port
    for host, port in (("192.0.2.1", 0), ("no.such.host.invalid", 0), ("127.0.0.1", 70_000)):
        with pytest.raises(SettingsError, match=f"on {host} port {port}: "):
            async with serve(inbox, host=host, port=port):
                pytest.fail("it listens")


async def test_ended_it_leaves_nothing_open(inbox: Inbox, clock: VirtualTimeLoop) -> None:
    async with anyio.create_task_group() as group, serve(inbox) as server:
        for start in (b"", head(5)[:20], head(len(BODY)) + BODY[:20]):
            group.start_soon(dawdle, server.url, start)
        await anyio.sleep(1)
        start_of_end = clock.time()
    assert clock.time() - start_of_end < 5
    with pytest.raises(OSError, match="connect"):
        await anyio.connect_tcp("127.0.0.1", server.port)


async def test_a_callback_under_way_is_answered_before_it_ends(inbox: Inbox) -> None:
    async def slow() -> str:
        await anyio.sleep(0.5)
        return ""

    inbox.answer = slow
    statuses: list[int] = []

    async def post(url: str) -> None:
        async with connect(url) as raw:
            await raw.send(head(len(BODY)) + BODY)
            statuses.append(await raw.status())

    async with anyio.create_task_group() as group, serve(inbox) as server:
        group.start_soon(post, server.url)
        await anyio.sleep(0.2)
    assert statuses == [200]


async def test_cancelled_it_closes_its_connections_all_the_same(inbox: Inbox, clock: VirtualTimeLoop) -> None:
    async with AsyncExitStack() as stack:
        with anyio.CancelScope() as scope:
            async with serve(inbox) as server:
                raw = await stack.enter_async_context(connect(server.url))
                await raw.send(head(5)[:20])
                scope.cancel()
                await anyio.sleep(1)
        assert scope.cancelled_caught
        start = clock.time()
        assert await raw.answer() == b""
        assert clock.time() - start < 5
    with pytest.raises(OSError, match="connect"):
        await anyio.connect_tcp("127.0.0.1", server.port)


async def test_no_log_holds_a_token(
    inbox: Inbox, http: aiohttp.ClientSession, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    async with own_server(inbox) as url, http.post(f"{url}/{TOKEN}", data=BODY) as answer:
        assert answer.status == 200
    assert TOKEN not in caplog.text
