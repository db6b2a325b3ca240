from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address, ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kie_async._protocol.address_rules import MAX_URL, check_address, check_url
from kie_async.errors import DownloadError


@pytest.mark.parametrize(
    ("address", "reason"),
    [
        ("0.0.0.0", "unspecified"),  # noqa: S104  # nothing is bound
        ("0.1.2.3", "unspecified"),
        ("10.1.2.3", "private"),
        ("172.16.0.1", "private"),
        ("172.31.255.255", "private"),
        ("192.168.1.1", "private"),
        ("169.254.169.254", "link-local"),
        ("100.64.0.1", "carrier-grade NAT"),
        ("127.0.0.1", "loopback"),
        ("127.255.255.255", "loopback"),
        ("192.0.0.8", "reserved"),
        ("192.0.2.1", "documentation"),
        ("198.51.100.1", "documentation"),
        ("203.0.113.1", "documentation"),
        ("192.88.99.1", "6to4 relay"),
        ("198.19.0.1", "benchmarking"),
        ("224.0.0.1", "multicast"),
        ("240.0.0.1", "reserved"),
        ("255.255.255.255", "reserved"),
        ("::", "unspecified"),
        ("::1", "loopback"),
        ("::127.0.0.1", "IPv4-compatible"),
        ("::ffff:127.0.0.1", "loopback"),
        ("::ffff:10.0.0.1", "private"),
        ("64:ff9b::7f00:1", "NAT64"),
        ("64:ff9b::8.8.8.8", "NAT64"),
        ("64:ff9b:1::1", "NAT64"),
        ("fc00::1", "private"),
        ("fd12:3456::1", "private"),
        ("fe80::1", "link-local"),
        ("fe80::1%eth0", "link-local"),
        ("fec0::1", "site-local"),
        ("ff02::1", "multicast"),
        ("2001::1", "reserved"),
        ("2001:db8::1", "documentation"),
        ("3fff::1", "documentation"),
        ("2002:7f00:1::", "6to4"),
        ("100::1", "reserved"),
        ("5f00::1", "reserved"),
        ("4000::1", "reserved"),
        ("localhost", "not an address"),
        ("0x7f.1", "not an address"),
        ("", "not an address"),
    ],
)
def test_an_address_that_must_not_be_connected_to_is_refused_with_its_reason(address: str, reason: str) -> None:
    assert check_address(address, allow_loopback=False) == reason


@pytest.mark.parametrize(
    "address", ["8.8.8.8", "172.15.0.1", "172.32.0.1", "100.128.0.1", "::ffff:8.8.8.8", "2606:4700::1", "2a00::1"]
)
def test_a_public_address_may_be_connected_to(address: str) -> None:
    assert check_address(address, allow_loopback=False) is None


@pytest.mark.parametrize("address", ["127.0.0.1", "127.9.9.9", "::1", "::ffff:127.0.0.1"])
def test_loopback_may_be_connected_to_when_the_api_is_there(address: str) -> None:
    assert check_address(address, allow_loopback=True) is None


@given(st.ip_addresses())
def test_nothing_that_the_standard_library_calls_not_public_is_let_through(
    address: IPv4Address | IPv6Address,
) -> None:
    if isinstance(address, IPv6Address) and address.ipv4_mapped:
        address = address.ipv4_mapped
    if not address.is_global or address.is_multicast or address.is_reserved or address.is_link_local:
        assert check_address(str(address), allow_loopback=False) is not None


@given(st.ip_addresses(v=4), st.booleans())
def test_a_mapped_address_is_judged_as_the_one_inside(address: IPv4Address, allow: bool) -> None:  # noqa: FBT001
    mapped = str(ip_address(f"::ffff:{address}"))
    assert check_address(mapped, allow_loopback=allow) == check_address(str(address), allow_loopback=allow)


@given(st.ip_addresses(v=4))
def test_an_address_wrapped_in_another_is_refused(address: IPv4Address) -> None:
    number = int(address)
    wrapped = (IPv6Address(number), IPv6Address(0x64FF9B << 96 | number), IPv6Address(0x2002 << 112 | number << 80))
    assert all(check_address(str(each), allow_loopback=False) for each in wrapped)


@given(st.ip_addresses(), st.booleans())
def test_only_loopback_depends_on_where_the_api_is(address: IPv4Address | IPv6Address, allow: bool) -> None:  # noqa: FBT001
    strict = check_address(str(address), allow_loopback=False)
    lax = check_address(str(address), allow_loopback=allow)
    assert strict == lax or (strict, lax) == ("loopback", None)


@pytest.mark.parametrize(
    "url",
    [
        "file:///etc/passwd",
        "ftp://example.com/a",
        "data:audio/mpeg;base64,AAAA",
        "//example.com/a",
        "example.com/a",
        "",
        "https://",
        "https:///a",
        "http://example.com/a",
        "http://localhost/a",
        "http://127.0.0.1/a",
        "https://user:pass@example.com/a",
        "https://user@example.com/a",
        "https://@example.com/a",
        "https://example.com/a#b",
        "https://example.com:0/a",
        "https://example.com:/a",
        "https://example.com:99999/a",
        "https://example.com:x/a",
        "https://exam ple.com/a",
        "https://exa mple.com /a b",
        "https://example.com/a\r\nX: y",
        "https://example.com/a\0",
        "https://example.com\\@evil.example/a",
        "https://exämple.com/a",
        "https://\N{CYRILLIC SMALL LETTER IE}xample.com/a",
        "https://-example.com/a",
        "https://exa..mple.com/a",
        "https://[::1/a",
        "https://[::1]/a",
        "https://[::ffff:10.0.0.1]/a",
        "https://[v1.a]/a",
        "https://10.0.0.1/a",
        "https://169.254.169.254/latest/meta-data",
        "https://2130706433/a",
        "https://0x7f.1/a",
        "https://127.1/a",
        "https://0x7f000001/a",
        "https://127.0.0.1./a",
        f"https://example.com/{'a' * MAX_URL}",
        f"https://{'a' * 64}.example.com/",
        f"https://{'a.' * 200}com/",
    ],
)
def test_a_url_that_must_not_be_fetched_is_refused_without_being_shown(url: str) -> None:
    with pytest.raises(DownloadError) as caught:
        check_url(url, allow_loopback_http=False)
    assert not caught.value.retryable
    assert "example.com" not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "clean"),
    [
        ("https://example.com/a.mp3", "https://example.com/a.mp3"),
        ("HTTPS://Example.com:8443/a?b=c%2F&d=e+f", "https://Example.com:8443/a?b=c%2F&d=e+f"),
        ("https://example.com", "https://example.com/"),
        ("https://example.com./é?ü=ö", "https://example.com./%C3%A9?%C3%BC=%C3%B6"),
        ("https://8.8.8.8/a", "https://8.8.8.8/a"),
        ("https://[2606:4700::1]/a", "https://[2606:4700::1]/a"),
        ("https://xn--exmple-cua.com/", "https://xn--exmple-cua.com/"),
        ("https://my_bucket.example.com/<a b>?c d", "https://my_bucket.example.com/%3Ca%20b%3E?c%20d"),
        ("https://localhost/a", "https://localhost/a"),  # where it leads is judged when it is connected to
    ],
)
def test_a_url_that_may_be_fetched_comes_back_in_ascii(url: str, clean: str) -> None:
    assert check_url(url, allow_loopback_http=False) == clean


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1:8080", "[::1]:8080"])
def test_plain_http_goes_to_loopback_when_the_api_is_there(host: str) -> None:
    assert check_url(f"http://{host}/a", allow_loopback_http=True) == f"http://{host}/a"


@pytest.mark.parametrize("url", ["http://example.com/", "http://8.8.8.8/", "http://10.0.0.1/", "ftp://localhost/"])
def test_plain_http_goes_nowhere_else(url: str) -> None:
    with pytest.raises(DownloadError):
        check_url(url, allow_loopback_http=True)


@given(st.text(max_size=300) | st.from_regex(r"https?://[a-z0-9.\[\]:@%#?/\\-]{0,60}"), st.booleans())
def test_any_text_is_a_clean_url_or_refused(url: str, allow: bool) -> None:  # noqa: FBT001
    try:
        clean = check_url(url, allow_loopback_http=allow)
    except DownloadError:
        return
    assert clean.isascii()
    assert clean.isprintable()
    assert clean.startswith("https://") or allow
    assert check_url(clean, allow_loopback_http=allow) == clean
