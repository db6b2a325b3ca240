"""TLS: whoever cannot prove who he is gets nothing, and nothing switches that off."""

from __future__ import annotations

import asyncio
import ssl
from datetime import UTC, datetime
from typing import Any

import pytest
import trustme
from fault_server import LOOK, RECORD, SUBMIT, FaultServer, Reply, fault_server, ok, settings, transport
from verdicts import CountedPermit

from kie_async import errors
from kie_async._protocol.endpoints import ApiCall

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("clock")]

AUTHORITY = trustme.CA()
STRANGER = trustme.CA()


def _proof(*names: str, authority: trustme.CA = AUTHORITY, **options: Any) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(*names, **options).configure_cert(context)
    return context


def _trust() -> ssl.SSLContext:
    context = ssl.create_default_context()
    AUTHORITY.configure_trust(context)
    return context


async def _untrusted(server: FaultServer, trust: ssl.SSLContext | None) -> errors.KieError:
    permit = CountedPermit()
    async with transport(server.url, ssl_context=trust) as opened:
        calls: tuple[ApiCall[Any], ...] = (SUBMIT, LOOK)
        for call in calls:
            with pytest.raises(errors.TLSError) as caught:
                await opened.send(call, permit=permit)
            assert (caught.value.charged, caught.value.retryable) == ("no", False)
    assert server.asked == []
    assert (permit.is_ended, permit.count) == (True, 0)
    assert server.connections <= 2  # one each: never tried again
    return caught.value


def _year(year: int) -> dict[str, Any]:
    return {"not_before": datetime(year, 1, 1, tzinfo=UTC), "not_after": datetime(year + 1, 1, 1, tzinfo=UTC)}


PROOFS: dict[str, tuple[dict[str, Any], str]] = {
    "expired": (_year(2019), "expired"),
    "not yet": (_year(2120), "not yet"),
    "unknown authority": ({"authority": STRANGER}, "local issuer"),
}


@pytest.mark.parametrize(("options", "words"), PROOFS.values(), ids=PROOFS.keys())
async def test_a_certificate_that_proves_nothing(options: dict[str, Any], words: str) -> None:
    async with fault_server(ok(), tls=_proof("127.0.0.1", **options)) as server:
        error = await _untrusted(server, _trust())
    assert words in error.message


async def test_a_certificate_for_another_host() -> None:
    async with fault_server(ok(), tls=_proof("api.kie.example", "127.0.0.2")) as server:
        error = await _untrusted(server, _trust())
    assert "not valid for" in error.message


async def test_a_private_authority_is_not_trusted_unasked() -> None:
    async with fault_server(ok(), tls=_proof("127.0.0.1")) as server:
        await _untrusted(server, None)


@pytest.mark.parametrize(
    "answer",
    [b"\x15\x03\x01\x00\x02\x02\x46", b"\x15\x03\x03\x00\x02\x02\x28", b"HTTP/1.1 400 Bad Request\r\n\r\n"],
    ids=["an old version only", "no common cipher", "no TLS"],
)
async def test_nothing_is_downgraded(answer: bytes) -> None:
    async with fault_server(Reply((answer,), read="nothing")) as server:
        server.scheme = "https"
        await _untrusted(server, _trust())


@pytest.mark.parametrize("end", ["reset", "close"])
async def test_a_handshake_that_breaks_off_sent_nothing(end: Any) -> None:
    async with fault_server(Reply(read="nothing", end=end)) as server:
        server.scheme = "https"
        async with transport(server.url, ssl_context=_trust()) as opened:
            with pytest.raises(errors.ConnectError, match="nothing was sent") as caught:
                await opened.send(SUBMIT)
    assert type(caught.value) is errors.ConnectError
    assert caught.value.retryable


async def test_a_handshake_that_hangs_ends_with_the_connect_timeout() -> None:
    async with fault_server(Reply(read="nothing", end="wait")) as server:
        server.scheme = "https"
        async with transport(server.url, ssl_context=_trust(), connect_timeout=5) as opened:
            begun = asyncio.get_running_loop().time()
            with pytest.raises(errors.ConnectError):
                await opened.send(SUBMIT)
            assert asyncio.get_running_loop().time() - begun < 10


async def test_a_private_authority_that_is_given_is_trusted() -> None:
    async with fault_server(ok(RECORD), tls=_proof("127.0.0.1")) as server:
        async with transport(server.url, ssl_context=_trust()) as opened:
            for _ in range(2):
                assert await opened.send(LOOK) is not None
            server.replies[:] = [ok()]
            assert await opened.send(SUBMIT) == "5c79" * 8
        assert server.connections == 2


async def test_trust_in_one_session_is_not_trust_in_the_next() -> None:
    async with (
        fault_server(ok(RECORD), tls=_proof("127.0.0.1")) as server,
        transport(server.url, ssl_context=_trust()) as opened,
        transport(server.url) as other,
    ):
        await opened.send(LOOK)
        with pytest.raises(errors.TLSError):
            await other.send(LOOK)


async def test_an_answer_cut_inside_tls_is_lost() -> None:
    async with fault_server(Reply(end="reset"), tls=_proof("127.0.0.1")) as server:
        async with transport(server.url, ssl_context=_trust()) as opened:
            with pytest.raises(errors.SubmitUnknownError):
                await opened.send(SUBMIT)
        assert len(server.asked) == 1


async def test_what_does_not_verify_is_refused_at_the_start() -> None:
    trust = ssl.create_default_context()
    trust.check_hostname = False
    trust.verify_mode = ssl.CERT_NONE
    with pytest.raises(errors.SettingsError):
        settings("https://api.kie.example", ssl_context=trust)
    with pytest.raises(errors.SettingsError):
        settings("http://api.kie.example")
