from __future__ import annotations

import asyncio
import contextlib
import gzip
import importlib.metadata
import socket
import traceback
from pathlib import Path
from typing import Any

import pytest
from file_host import (
    Asked,
    Reply,
    client_tls,
    file_host,
    head,
    raw,
    reset,
    serve,
    server_tls,
    settings,
    status,
)
from virtual_time import VirtualTimeLoop

import kie_async
from kie_async import _package
from kie_async._client.downloads import Fetcher
from kie_async.errors import DownloadError, ResultExpiredError

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("clock")]

DATA = bytes(range(256)) * 1000
AT_ONCE = 16  # downloads


async def fetched(fetcher: Fetcher, url: str, *, start: int = 0, validator: str | None = None) -> tuple[Any, bytes]:
    async with fetcher.open(url, start=start, validator=validator) as answer:
        return answer, b"".join([chunk async for chunk in answer])


async def failure(fetcher: Fetcher, url: str) -> DownloadError:
    with pytest.raises(DownloadError) as caught:
        await fetched(fetcher, url)
    error = caught.value
    emitted = "".join(traceback.format_exception(error)) + repr(error)
    assert "aiohttp.client_exceptions" not in emitted
    assert "secret" not in str(error) + repr(error)
    assert error.__cause__ is None
    assert error.__context__ is None or isinstance(error.__context__, DownloadError)
    return error


async def test_a_file_comes_with_what_is_needed_to_resume_it() -> None:
    async with file_host(serve(DATA)) as host, Fetcher(settings()) as fetcher:
        answer, data = await fetched(fetcher, host.url())
        assert (answer.status, answer.start, answer.total, answer.validator, answer.encoding) == (
            200,
            0,
            len(DATA),
            '"v1"',
            "",
        )
        assert data == DATA
        answer, data = await fetched(fetcher, host.url(), start=1000, validator='"v1"')
        assert (answer.status, answer.start, answer.total) == (206, 1000, len(DATA))
        assert data == DATA[1000:]
        answer, data = await fetched(fetcher, host.url(), start=1000, validator='"v0"')
        assert (answer.status, data) == (200, DATA)
        answer, _ = await fetched(fetcher, host.url(), start=len(DATA))
        assert (answer.status, answer.total) == (416, len(DATA))


async def test_what_goes_out_is_no_more_than_needed() -> None:
    async with file_host(serve(DATA)) as host, Fetcher(settings()) as fetcher:
        await fetched(fetcher, host.url())
        await fetched(fetcher, host.url(), start=7, validator='"v1"')
    assert host.asked[0] == Asked(
        "GET /a.mp3?Signature=secret HTTP/1.1",
        {
            "host": f"127.0.0.1:{host.port}",
            "user-agent": f"kie_async/{kie_async.__version__}",
            "accept-encoding": "identity",
            "accept": "*/*",
        },
    )
    assert host.asked[1].headers["range"] == "bytes=7-"
    assert host.asked[1].headers["if-range"] == '"v1"'


async def test_no_cookie_is_kept() -> None:
    cookie = raw(head(200, Content_Length=0, Set_Cookie="a=b; Path=/"))
    async with file_host(cookie) as host, Fetcher(settings()) as fetcher:
        for _ in range(2):
            await fetched(fetcher, f"http://localhost:{host.port}/")  # a jar would keep none of a bare address
    assert "cookie" not in host.asked[1].headers


@pytest.mark.parametrize(
    ("headers", "validator"),
    [
        ({"ETag": '"a"', "Last-Modified": "Sat, 21 Nov 2026 00:00:00 GMT"}, '"a"'),
        ({"ETag": 'W/"a"', "Last-Modified": "Sat, 21 Nov 2026 00:00:00 GMT"}, "Sat, 21 Nov 2026 00:00:00 GMT"),
        ({"ETag": 'W/"a"'}, None),
        ({"ETag": f'"{"a" * 300}"'}, None),
        ({"ETag": '"\xe9"'}, None),
        ({}, None),
    ],
)
async def test_only_a_validator_that_promises_the_same_bytes_is_taken(
    headers: dict[str, str], validator: str | None
) -> None:
    async with file_host(raw(head(200, Content_Length=0, **headers))) as host, Fetcher(settings()) as fetcher:
        answer, _ = await fetched(fetcher, host.url())
    assert answer.validator == validator


@pytest.mark.parametrize(
    ("content_range", "start", "total"),
    [
        ("bytes 5-9/10", 5, 10),
        ("Bytes 5-9/*", 5, None),
        ("bytes */10", None, 10),
        ("bytes 5", 5, None),
        ("lines 5-9/10", None, None),
        ("bytes -5-9/1e3", None, None),
        (f"bytes {'9' * 40}-/{'9' * 40}", None, None),
        ("bytes \N{ARABIC-INDIC DIGIT FIVE}-9/\N{ARABIC-INDIC DIGIT NINE}", None, None),
        ("", None, None),
    ],
)
async def test_a_content_range_is_read_or_left_alone(content_range: str, start: int | None, total: int | None) -> None:
    reply = raw(head(206, Content_Length=0, Content_Range=content_range))
    async with file_host(reply) as host, Fetcher(settings()) as fetcher:
        answer, _ = await fetched(fetcher, host.url())
    assert (answer.start, answer.total) == (start, total)


@pytest.mark.parametrize(("header", "encoding"), [("gzip", "gzip"), (" GZIP ", "gzip"), ("identity", ""), ("", "")])
async def test_an_encoding_is_told_and_never_undone(header: str, encoding: str) -> None:
    body = gzip.compress(DATA)
    reply = raw(head(200, Content_Length=len(body), Content_Encoding=header), body)
    async with file_host(reply) as host, Fetcher(settings()) as fetcher:
        answer, data = await fetched(fetcher, host.url())
    assert (answer.encoding, data) == (encoding, body)


@pytest.mark.parametrize("code", [403, 404, 410])
async def test_a_file_that_is_gone_is_expired(code: int) -> None:
    async with file_host(status(code)) as host, Fetcher(settings()) as fetcher:
        error = await failure(fetcher, host.url())
    assert isinstance(error, ResultExpiredError)
    assert (error.code, error.retryable) == (code, False)


@pytest.mark.parametrize(
    ("code", "retryable"),
    [(400, False), (401, False), (204, False), (300, False), (429, True), (408, True), (500, True), (503, True)],
)
async def test_other_refusals_say_whether_to_try_again(code: int, retryable: bool) -> None:  # noqa: FBT001
    async with file_host(status(code)) as host, Fetcher(settings()) as fetcher:
        error = await failure(fetcher, host.url())
    assert (error.code, error.retryable) == (code, retryable)


@pytest.mark.parametrize("code", [301, 302, 303, 307, 308])
async def test_redirects_are_followed_with_the_range(code: int) -> None:
    async with file_host(status(code, Location="b.mp3?x=1"), serve(DATA)) as host, Fetcher(settings()) as fetcher:
        answer, data = await fetched(fetcher, host.url("/dir/a.mp3"), start=10, validator='"v1"')
    assert (answer.start, data) == (10, DATA[10:])
    assert host.asked[1].line == "GET /dir/b.mp3?x=1 HTTP/1.1"


async def test_five_redirects_are_followed_and_no_sixth() -> None:
    hop = status(302, Location="/")
    async with file_host(*[hop] * 5, serve(DATA)) as host, Fetcher(settings()) as fetcher:
        assert (await fetched(fetcher, host.url()))[1] == DATA
    async with file_host(hop) as host, Fetcher(settings()) as fetcher:
        error = await failure(fetcher, host.url())
    assert not error.retryable
    assert len(host.asked) == 5 + 1


@pytest.mark.parametrize(
    "location",
    [
        "file:///etc/passwd",
        "ftp://127.0.0.1/a",
        "data:,a",
        "http://10.0.0.1/a",
        "https://169.254.169.254/latest",
        "https://[64:ff9b::7f00:1]/a",
        "https://user:secret@example.com/",
        "http://example.com/",
        "http://[::1/",
        "",
    ],
)
async def test_a_redirect_out_of_bounds_is_refused(location: str) -> None:
    async with file_host(status(302, Location=location)) as host, Fetcher(settings()) as fetcher:
        error = await failure(fetcher, host.url())
    assert not error.retryable


async def test_a_redirect_without_location_is_refused() -> None:
    async with file_host(status(302)) as host, Fetcher(settings()) as fetcher:
        assert "nowhere" in str(await failure(fetcher, host.url()))


@pytest.mark.parametrize("host_name", ["127.0.0.1", "localhost", "[::1]", "0x7f.1", "[::ffff:127.0.0.1]"])
async def test_this_machine_is_not_reached_when_the_api_is_elsewhere(host_name: str) -> None:
    async with file_host(serve(DATA)) as host, Fetcher(settings(base_url="https://api.kie.ai")) as fetcher:
        error = await failure(fetcher, f"https://{host_name}:{host.port}/")
    assert not error.retryable
    assert "refused (loopback)" in str(error) or "not an address" in str(error)
    assert host.connections == 0


async def test_a_name_is_judged_by_the_address_it_leads_to(monkeypatch: pytest.MonkeyPatch) -> None:
    where = [("8.8.8.8", 443), ("192.168.1.1", 443)]  # what a stranger's DNS says first, and then

    def resolve(*_arguments: object, **_options: object) -> list[object]:
        address = where.pop()
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", address)]

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    async with Fetcher(settings(base_url="https://api.kie.ai")) as fetcher:
        error = await failure(fetcher, "https://rebind.example/")
    assert "refused (private)" in str(error)
    assert where == [("8.8.8.8", 443)]  # nothing asked a second time between the look and the connection


async def test_a_name_that_leads_nowhere_can_be_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    def resolve(*_arguments: object, **_options: object) -> list[object]:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    async with Fetcher(settings()) as fetcher:
        assert (await failure(fetcher, "https://nowhere.example/")).retryable


async def test_a_closed_port_can_be_tried_again() -> None:
    async with file_host(serve(DATA)) as host:
        pass
    async with Fetcher(settings()) as fetcher:
        assert (await failure(fetcher, host.url())).retryable


@pytest.mark.parametrize(
    "reply",
    [
        raw(b""),
        raw(b"HTTP/1.1 200 OK\r\nX: secr"),
        raw(b"\x16\x03\x01 garbage\r\n\r\n"),
        raw(head(200, Content_Length=10), b"short"),
        raw(head(200, Transfer_Encoding="chunked"), b"5\r\nshort\r\n"),
        raw(head(200, Transfer_Encoding="chunked"), b"zz\r\n"),
        raw(head(200, Content_Length="a")),
        raw(head(200, X="a" * 20_000)),
        reset(b""),
        reset(head(200, Content_Length=10) + b"short"),
    ],
)
async def test_a_broken_exchange_is_ours_to_tell(reply: Reply) -> None:
    async with file_host(reply) as host, Fetcher(settings()) as fetcher:
        error = await failure(fetcher, host.url())
    assert error.retryable


@pytest.mark.parametrize("sent", [b"", head(200, Content_Length=10), head(200, Content_Length=10) + b"short"])
async def test_silence_ends(sent: bytes, clock: VirtualTimeLoop) -> None:
    started = clock.time()
    async with file_host(raw(sent, b".", pause=10_000)) as host, Fetcher(settings(read_timeout=60)) as fetcher:
        error = await failure(fetcher, host.url())
        assert 59 < clock.time() - started < 100
    assert error.retryable


async def test_headers_that_drip_end(clock: VirtualTimeLoop) -> None:
    started = clock.time()
    drip = raw(head(200)[:-2] + b"X: ", *[b"a"] * 1000, pause=5)
    async with file_host(drip) as host, Fetcher(settings(total_timeout=90)) as fetcher:
        await failure(fetcher, host.url())
        assert 85 < clock.time() - started < 100


async def test_the_callers_own_errors_pass_through() -> None:
    async with file_host(serve(DATA)) as host, Fetcher(settings()) as fetcher:
        with pytest.raises(ZeroDivisionError):
            async with fetcher.open(host.url()):
                raise ZeroDivisionError


async def test_leaving_early_closes_the_connection() -> None:
    gone = asyncio.Event()

    async def endless(_asked: Asked, writer: asyncio.StreamWriter) -> None:
        writer.write(head(200))
        with contextlib.suppress(OSError):
            while True:
                writer.write(DATA)
                await writer.drain()
        gone.set()

    async with file_host(endless) as host, Fetcher(settings()) as fetcher:
        async with fetcher.open(host.url()) as answer:
            assert await anext(answer)
        await asyncio.wait_for(gone.wait(), 10)


async def test_more_exchanges_than_allowed_wait_their_turn() -> None:
    together = most = 0

    async def reply(asked: Asked, writer: asyncio.StreamWriter) -> None:
        nonlocal together, most
        together += 1
        most = max(most, together)
        await asyncio.sleep(1)
        together -= 1
        await serve(DATA)(asked, writer)

    async with file_host(reply) as host, Fetcher(settings()) as fetcher:
        every = await asyncio.gather(*(fetched(fetcher, host.url()) for _ in range(3 * AT_ONCE)))
    assert [data for _, data in every] == [DATA] * 3 * AT_ONCE
    assert most == AT_ONCE


async def test_a_stranger_s_certificate_is_refused(tmp_path: Path) -> None:
    async with file_host(serve(DATA), tls=server_tls(tmp_path)) as host, Fetcher(settings()) as fetcher:
        error = await failure(fetcher, host.url())
    assert "certificate" in str(error)
    assert not error.retryable
    assert not host.asked


async def test_a_private_authority_is_taken_from_the_settings(tmp_path: Path) -> None:
    own = settings(ssl_context=client_tls())
    async with file_host(serve(DATA), tls=server_tls(tmp_path)) as host, Fetcher(own) as fetcher:
        assert (await fetched(fetcher, host.url()))[1] == DATA


async def test_https_is_never_left_for_http(tmp_path: Path) -> None:
    own = settings(ssl_context=client_tls())
    async with file_host(serve(DATA)) as plain:
        hop = status(302, Location=plain.url())
        async with file_host(hop, tls=server_tls(tmp_path)) as host, Fetcher(own) as fetcher:
            error = await failure(fetcher, host.url())
    assert "plain http" in str(error)
    assert not plain.asked


async def test_on_this_machine_the_proxy_is_that_of_the_settings_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    async with file_host(serve(DATA)) as host, file_host(serve(b"proxied")) as proxy:
        for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
            monkeypatch.setenv(name, proxy.url("/"))  # not for this machine
        async with Fetcher(settings()) as fetcher:
            assert (await fetched(fetcher, host.url()))[1] == DATA
        async with Fetcher(settings(proxy=proxy.url("/"))) as fetcher:
            assert (await fetched(fetcher, host.url()))[1] == b"proxied"
    assert proxy.asked[0].line.startswith(f"GET {host.url()}")


async def test_a_proxy_that_refuses_or_is_not_there_is_told() -> None:
    async with file_host(status(407)) as proxy, Fetcher(settings(proxy=proxy.url("/"))) as fetcher:
        assert not (await failure(fetcher, "https://example.com/")).retryable
    async with file_host(status(503)) as proxy, Fetcher(settings(proxy=proxy.url("/"))) as fetcher:
        assert (await failure(fetcher, "https://example.com/")).retryable
    async with Fetcher(settings(proxy=proxy.url("/"))) as fetcher:
        assert (await failure(fetcher, "https://example.com/")).retryable


async def test_the_library_names_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    version = importlib.metadata.version("kie_async")
    assert kie_async.__version__ == version

    def missing(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    with monkeypatch.context() as patch:
        patch.setattr(importlib.metadata, "version", missing)
        assert _package.__version__ == "0"  # a bare checkout
