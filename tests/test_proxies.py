"""The environment's proxy: who is reached through it, who is not, and what of it is shown."""

from __future__ import annotations

import asyncio
from base64 import b64encode
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest
from fault_server import FaultServer, Reply, fault_server, ok, said
from file_host import FileHost, file_host, serve, status
from leaks import shown
from proxy import Proxy, serve_proxy, tls_of, trust
from service import REQUEST, serving

import kie_async as kie
from kie_async import emulator

pytestmark = pytest.mark.anyio

KEY = "k-marker-0123456789abcdef"
API, UPLOADS, FILES = "https://api.kie.example", "https://uploads.kie.example", "https://cdn.kie.example"
NAMES = ("api.kie.example", "uploads.kie.example", "cdn.kie.example")


def settings(**given: Any) -> kie.Settings:
    own = {"api_key": KEY, "base_url": API, "upload_base_url": UPLOADS, "ssl_context": trust()}
    return kie.Settings(**{**own, **given})


class Far:
    """Hosts that are reached through a proxy alone."""

    def __init__(self, api: FaultServer, files: FileHost, proxy: Proxy) -> None:
        self.api = api
        self.files = files
        self.proxy = proxy


@asynccontextmanager
async def far(*replies: Reply, files: Any = None) -> AsyncIterator[Far]:
    tls = tls_of(*NAMES)
    async with (
        fault_server(*(replies or (ok(said(data=100)),)), tls=tls) as api,
        file_host(files or serve(emulator.demo_song()), tls=tls) as host,
        serve_proxy(api_kie_example=api.port, uploads_kie_example=api.port, cdn_kie_example=host.port) as proxy,
    ):
        yield Far(api, host, proxy)


@pytest.fixture(autouse=True)
def _own_time(clock: object) -> None:
    assert clock


@pytest.mark.parametrize("name", ["HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"])
async def test_everything_goes_through_the_proxy_of_the_environment(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str
) -> None:
    (tmp_path / "netrc").write_text("default login eve password hunter2\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    song = tmp_path / "song.wav"
    song.write_bytes(emulator.demo_song())
    uploaded = said(data={"downloadUrl": f"{FILES}/song.wav", "fileName": "song.wav"})
    async with far(ok(uploaded), ok(said(data={"taskId": "5c79" * 8}))) as hosts:
        monkeypatch.setenv(name, hosts.proxy.url())
        async with kie.KieSession(settings()) as session:
            await session.upload(song)
            assert (await session.submit(REQUEST)).id == "5c79" * 8
            await session.download(kie.Track("a1", audio_url=f"{FILES}/a.mp3"), tmp_path)
        assert hosts.proxy.hosts == set(NAMES)
        assert not any("authorization" in head.lower() or KEY in head for head in hosts.proxy.asked)
        assert {asked.headers["authorization"] for asked in hosts.api.asked} == {f"Bearer {KEY}"}
        assert "authorization" not in hosts.files.asked[0].headers


async def test_this_machine_is_reached_without(monkeypatch: pytest.MonkeyPatch) -> None:
    for proxy in ("http://127.0.0.1:1", "socks5://127.0.0.1:1"):  # not even looked at
        monkeypatch.setenv("HTTPS_PROXY", proxy)
        monkeypatch.setenv("HTTP_PROXY", proxy)
        async with serving(goes_on=(3.0, 5.0)) as service:
            assert (await service.session.credits()).amount


@pytest.mark.parametrize(
    ("direct", "url"),
    [
        ("api.kie.example", API),
        ("a.example, kie.example", API),
        (".kie.example", API),
        ("*.kie.example", API),
        ("*", API),
        ("api.kie.example:443", API),
        ("API.KIE.EXAMPLE", f"{API}."),
        ("api.kie.example:8443", f"{API}:8443"),
        ("203.0.113.7", "https://203.0.113.7/"),
        ("[2001:db8::1]", "https://[2001:db8::1]/"),
        ("2001:db8::1", "https://[2001:db8::1]/"),
    ],
)
async def test_the_hosts_of_no_proxy_are_reached_without(
    monkeypatch: pytest.MonkeyPatch, direct: str, url: str
) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy.example:3128")
    monkeypatch.setenv("NO_PROXY", direct)
    assert settings().proxy_for(url) is None
    monkeypatch.setenv("NO_PROXY", "other.example,example.com, ,kie.example:8000,i.kie.example")
    proxy = settings().proxy_for(url)
    assert proxy is not None
    assert proxy.reveal() == "http://proxy.example:3128"
    assert settings(proxy="").proxy_for(url) is None


async def test_a_variable_that_is_set_to_nothing_switches_it_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy.example:3128")
    monkeypatch.setenv("https_proxy", "")
    assert settings().proxy_for(API) is None


@pytest.mark.parametrize(
    "url",
    [
        "https://localhost/a.mp3", "https://169.254.169.254/a.mp3", "https://[::1]/a.mp3", "https://10.0.0.1/a.mp3",
        "https://printer.local/a.mp3", "https://intranet/a.mp3", "https://db.internal/a.mp3", "https://0x7f.1/a.mp3",
    ],
)  # fmt: skip
@pytest.mark.parametrize("hop", [False, True])
async def test_the_proxy_is_not_asked_for_the_network_of_the_user(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, url: str, hop: bool  # noqa: FBT001  # a parameter
) -> None:  # fmt: skip
    async with far(files=status(302, Location=url)) as hosts:
        monkeypatch.setenv("HTTPS_PROXY", hosts.proxy.url())
        async with kie.KieSession(settings()) as session:
            with pytest.raises(kie.DownloadError, match="refused") as caught:
                await session.download(kie.Track("a1", audio_url=f"{FILES}/a.mp3" if hop else url), tmp_path)
        assert not caught.value.retryable
        assert hosts.proxy.hosts == ({"cdn.kie.example"} if hop else set())


@pytest.mark.parametrize(
    "proxy",
    ["socks5://u:hunter2@127.0.0.1:1", "ftp://hunter2", "hunter2", "http://", "http://a:hunter2", "http://[::1",
     "http://a b/hunter2", "http://hunter2:0", "http://hünter2.example:1"],
)  # fmt: skip
async def test_what_is_no_proxy_is_refused_at_once(monkeypatch: pytest.MonkeyPatch, proxy: str) -> None:
    with pytest.raises(kie.SettingsError, match="proxy is not an http") as caught:
        settings(proxy=proxy)
    monkeypatch.setenv("ALL_PROXY", proxy)
    with pytest.raises(kie.SettingsError, match=r"proxy \(ALL_PROXY\) is not an http") as found:
        settings()
    for error in (caught.value, found.value):
        assert "hunter2" not in "".join(text for text in shown(error) if not text.startswith("<"))
    settings(proxy="")


async def test_a_proxy_without_its_scheme_is_taken_as_curl_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "u:p@proxy.example:3128")
    proxy = settings().proxy_for(API)
    assert proxy is not None
    assert proxy.reveal() == "http://u:p@proxy.example:3128"


async def test_the_password_of_a_proxy_is_sent_and_never_shown(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    token = b64encode(b"eve:hunter2/").decode()
    async with far() as hosts:
        monkeypatch.setenv("HTTPS_PROXY", hosts.proxy.url("eve:hunter2%2F@"))
        async with kie.KieSession(settings()) as session:
            assert (await session.credits()).amount == 100
            await session.download(kie.Track("a1", audio_url=f"{FILES}/a.mp3"), tmp_path)
            assert all(f"Proxy-Authorization: Basic {token}" in head for head in hosts.proxy.asked)
            hosts.proxy.silent = True
        async with kie.KieSession(settings()) as session:  # it has no connection yet
            track = kie.Track("a1", audio_url=f"{FILES}/b.mp3")
            for use in (session.credits, lambda: session.download(track, tmp_path)):
                task = asyncio.create_task(use())
                await anyio.sleep(1)
                task.cancel()
                with pytest.raises(asyncio.CancelledError) as caught:
                    await task
                everything = "".join(shown(caught.value)) + repr(session.settings)
                assert "hunter2" not in everything
                assert token not in everything


async def test_a_proxy_that_refuses_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    async with serve_proxy() as proxy:
        monkeypatch.setenv("HTTPS_PROXY", proxy.url())
        async with kie.KieSession(settings()) as session:
            with pytest.raises(kie.ConnectError, match="HTTPS_PROXY") as caught:
                await session.submit(REQUEST)
            assert (caught.value.charged, caught.value.retryable, caught.value.code) == ("no", False, 407)
            with pytest.raises(kie.DownloadError, match="HTTPS_PROXY") as failed:
                await session.download(kie.Track("a1", audio_url=f"{FILES}/a.mp3"), tmp_path)
            assert failed.value.code == 407
