"""Where a download may go: which addresses may be connected to, which URLs may be fetched.

Addresses of results come from the network (record-info, callbacks, redirects), so each is treated as a stranger's:
it must not reach into the user's own network. Nothing here asks DNS or opens a socket.

The ranges stand in a table of their own, after IANA's special-purpose registries: ``ipaddress.is_global`` differs
between Python versions and calls NAT64, 6to4, ``::127.0.0.1``, site-local and multicast addresses global.
"""

from __future__ import annotations

import re
import unicodedata
from ipaddress import IPv6Address, IPv6Network, ip_address, ip_network
from urllib.parse import SplitResult, quote, unquote, urlsplit

from kie_async.errors import DownloadError
from kie_async.settings import is_loopback

MAX_URL = 2048  # characters; signed addresses stay below

_LOOPBACK = "loopback"
_RANGES = tuple(
    (ip_network(network), reason)
    for network, reason in (
        ("127.0.0.0/8", _LOOPBACK),
        ("0.0.0.0/8", "unspecified"),
        ("10.0.0.0/8", "private"),
        ("172.16.0.0/12", "private"),
        ("192.168.0.0/16", "private"),
        ("169.254.0.0/16", "link-local"),
        ("100.64.0.0/10", "carrier-grade NAT"),
        ("192.0.0.0/24", "reserved"),
        ("192.0.2.0/24", "documentation"),
        ("198.51.100.0/24", "documentation"),
        ("203.0.113.0/24", "documentation"),
        ("192.88.99.0/24", "6to4 relay"),
        ("198.18.0.0/15", "benchmarking"),
        ("224.0.0.0/4", "multicast"),
        ("240.0.0.0/4", "reserved"),
        ("::1/128", _LOOPBACK),
        ("::/128", "unspecified"),
        ("::/96", "IPv4-compatible"),
        ("64:ff9b::/96", "NAT64"),
        ("64:ff9b:1::/48", "NAT64"),
        ("fc00::/7", "private"),
        ("fe80::/10", "link-local"),
        ("fec0::/10", "site-local"),
        ("ff00::/8", "multicast"),
        ("2001::/23", "reserved"),  # Teredo, ORCHID and others that wrap or name, and do not route
        ("2001:db8::/32", "documentation"),
        ("3fff::/20", "documentation"),
        ("2002::/16", "6to4"),
    )
)
_V6_GLOBAL = IPv6Network("2000::/3")  # all that IANA has given out for the public network

_LABEL = r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?"
_HOST = re.compile(rf"(?=.{{1,253}}\.?\Z){_LABEL}(?:\.{_LABEL})*\.?", re.IGNORECASE)
_NUMBER = re.compile(r"[0-9]+|0x[0-9a-f]*", re.IGNORECASE)


def check_address(address: str, *, allow_loopback: bool) -> str | None:
    """Say why an address must not be connected to; None when it may be.

    Args:
        address: an IPv4 or IPv6 address as text, as it stands in a socket address.
        allow_loopback: whether this machine itself may be reached (only when the API is on it).
    """
    try:
        ip = ip_address(address)
    except ValueError:
        return "not an address"
    if isinstance(ip, IPv6Address) and ip.ipv4_mapped is not None:
        ip = ip.ipv4_mapped
    if isinstance(ip, IPv6Address):
        ip = IPv6Address(int(ip))  # one with a zone ("%eth0") is equal to no plain one
    reason = next((reason for network, reason in _RANGES if ip in network), None)
    if reason is None and isinstance(ip, IPv6Address) and ip not in _V6_GLOBAL:
        reason = "reserved"
    return None if reason == _LOOPBACK and allow_loopback else reason


# RFC 6761, 6762, 7686 and 8375; the last line is of names that are in wide use, and never given out (ICANN).
_LOCAL = frozenset(
    ("localhost", "local", "internal", "home.arpa", "invalid", "test", "onion",
     "lan", "home", "corp", "intranet", "localdomain")
)  # fmt: skip


def unreachable(url: str) -> str | None:
    """Say why another machine cannot reach the host of a URL, judged by its name alone; None where it may."""
    host = unicodedata.normalize("NFKC", unquote(urlsplit(url).hostname or "")).replace("。", ".").rstrip(".")
    labels = host.split(".")
    if ":" in host or _NUMBER.fullmatch(labels[-1]):
        return check_address(host, allow_loopback=False)
    if len(labels) == 1 or not _LOCAL.isdisjoint((labels[-1], ".".join(labels[-2:]))):
        return "a name of this machine or its network"
    return None


def check_url(url: str, *, allow_loopback_http: bool) -> str:
    """Return a URL in the form in which it may be fetched: ASCII, and nothing in it but what it needs.

    Only https is fetched; plain http only on loopback, and only when the API itself is there. A name is not looked
    up: where it leads is judged by ``check_address`` when the connection is made.

    Raises:
        DownloadError: the URL may not be fetched. Its message does not show it.
    """
    parts = _split(url)
    host = _check_host(parts, allow_loopback=allow_loopback_http)
    on_loopback = allow_loopback_http and is_loopback(host)
    if parts.scheme != "https" and not (parts.scheme == "http" and on_loopback):
        raise _refused(f"its scheme is {parts.scheme[:20]!r}, and only https is fetched")
    path = quote(parts.path or "/", safe="/%:@!$&'()*+,;=~-._")
    query = quote(parts.query, safe="/%:@!$&'()*+,;=~-._?")
    return f"{parts.scheme}://{parts.netloc}{path}{'?' if query else ''}{query}"


def check_name(url: str, *, allow_loopback: bool) -> None:
    """Refuse a URL whose host is of this machine or its network, by its name alone: a proxy connects by itself.

    Args:
        url: in the form that ``check_url`` gives.
        allow_loopback: whether this machine itself may be reached.

    Raises:
        DownloadError: the URL may not be fetched through a proxy.
    """
    reason = unreachable(url)
    if reason is not None and not (allow_loopback and is_loopback(urlsplit(url).hostname)):
        raise _refused(f"its host is refused ({reason})")


def _split(url: str) -> SplitResult:
    if len(url) > MAX_URL:
        raise _refused(f"it is longer than {MAX_URL} characters")
    if not url.isprintable() or "\\" in url:
        raise _refused("it holds control characters or backslashes")
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        raise _refused("it cannot be read") from None
    if port == 0 or parts.netloc.endswith(":"):
        raise _refused("its port is no port")
    if "@" in parts.netloc:
        raise _refused("it holds a user name")
    if parts.fragment:
        raise _refused("it holds a fragment")
    return parts


def _check_host(parts: SplitResult, *, allow_loopback: bool) -> str:
    host = parts.hostname
    if not host:
        raise _refused("it names no host")
    if "[" in parts.netloc or _NUMBER.fullmatch(host.rstrip(".").rpartition(".")[2]):
        # A last label that is a number makes the whole an address, however odd (0x7f.1, 2130706433).
        reason = check_address(host, allow_loopback=allow_loopback)
        if reason is not None:
            raise _refused(f"its address is refused ({reason})")
    elif not _HOST.fullmatch(host):
        raise _refused("its host is no name in ASCII letters, digits and hyphens")
    return host


def _refused(reason: str) -> DownloadError:
    return DownloadError(f"the address is not fetched: {reason}", retryable=False)
