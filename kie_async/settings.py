"""The settings of a session: one frozen value, whose defaults are read from the environment."""

from __future__ import annotations

import hmac
import inspect
import math
import os
import re
import socket
import ssl
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from functools import partial
from ipaddress import ip_address
from typing import Any, Literal, NoReturn, TypeAlias, TypeGuard, TypeVar, cast, get_args
from urllib.parse import SplitResult, urlsplit

import attrs

from kie_async._environment import is_direct, read_direct_hosts, read_key, read_text
from kie_async.errors import SettingsError
from kie_async.events import Observer, clean, guarded, log_event

T = TypeVar("T")
RouteName: TypeAlias = Literal["classic", "jobs"]

BASE_URL = "https://api.kie.ai"
UPLOAD_BASE_URL = "https://kieai.redpandaai.co"  # uploads go to a second domain, with the same key
PLACEHOLDER_CALLBACK_URL = "https://example.com/no-callback"  # one is required, but need not be reachable

_MAX_MACHINE = 100  # characters: it is a part of the name of a queue
_PROXY_ADDRESS = re.compile(r"(?:[^/@]*@)?[A-Za-z0-9.-]+:\d{1,5}/?")  # a proxy without its scheme, as curl takes it


class Secret:
    """A text that is never shown: not in a repr, a log, a pickle, a comparison or a format string.

    Two other places keep the key from being shown: ``_client.http_client`` (headers, echoes) and ``events.clean``.
    """

    __slots__ = ("__text",)

    def __init__(self, text: str) -> None:
        self.__text = text

    def reveal(self) -> str:
        """Return the text itself, to send it."""
        return self.__text

    def __repr__(self) -> str:
        return "Secret('**********')" if self.__text else "Secret('')"

    __str__ = __repr__

    def __bool__(self) -> bool:
        return bool(self.__text)

    def __reduce__(self) -> NoReturn:
        raise TypeError("a Secret cannot be pickled or copied out of its process")

    def __copy__(self) -> Secret:
        return self

    def __deepcopy__(self, memo: object) -> Secret:
        return self


def _secret(value: str | Secret) -> Secret:
    return value if isinstance(value, Secret) else Secret(value)


def _secrets(value: str | Secret | Iterable[str | Secret]) -> tuple[Secret, ...]:
    values = [value] if isinstance(value, (str, Secret)) else value
    return tuple(secret for each in values if (secret := _secret(each)))


def _location(value: str | os.PathLike[str] | Secret | None) -> Secret | None:
    return _secret(value if isinstance(value, Secret) else os.fspath(value)) if value else None


# ---------------------------------------------------------------- the environment


def journal_location() -> str | None:
    """The path or address of the journal that ``KIE_JOURNAL`` names; None if it names none."""
    return read_text("KIE_JOURNAL") or None


def machine_name() -> str:
    """The name of this machine: ``KIE_MACHINE``, or else its host name.

    Raises:
        SettingsError: it is longer than 100 characters, or has spaces or unprintable characters.
    """
    return _checked_machine(read_text("KIE_MACHINE") or socket.gethostname())


def _read_proxy() -> tuple[str, Secret]:
    """The variable that names the proxy for https, and the proxy; empty if there is none.

    The first of the variables that is set decides, also one that is set to nothing.
    """
    for name in ("https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        if (text := os.environ.get(name)) is not None:
            return name, Secret(f"http://{text}" if _PROXY_ADDRESS.fullmatch(text) else text)
    return "", Secret("")


# ---------------------------------------------------------------- what can be used


def is_loopback(host: str | None) -> bool:
    """Tell whether a host is certainly this machine, without asking DNS."""
    try:
        return host is not None and (host.lower() == "localhost" or ip_address(host).is_loopback)
    except ValueError:
        return False


def split_http(url: str) -> SplitResult | None:
    """The parts of an http(s) address; None if it is not a well-formed address with a host."""
    try:
        parts = urlsplit(url)
        is_whole = parts.scheme in {"http", "https"} and parts.hostname and parts.port != 0
    except ValueError:
        return None
    return parts if is_whole and url.isprintable() and " " not in url else None


def _checked_url(name: str, url: str) -> str:
    parts = split_http(url)
    if parts is None:
        raise SettingsError(f"{name} is not an http(s) address: give one like https://host.example/path")
    if parts.username is not None or parts.query or parts.fragment:
        raise SettingsError(f"{name} holds a user name, a query or a fragment: leave them out")
    if parts.scheme == "http" and not is_loopback(parts.hostname):
        raise SettingsError(f"{name} would send over plain http to another machine: use https")
    return url.rstrip("/")


def _checked_machine(name: str) -> str:
    if len(name) > _MAX_MACHINE or not name.isprintable() or " " in name:
        problem = f"is longer than {_MAX_MACHINE} characters, or holds spaces or unusual characters"
        raise SettingsError(f"machine is {clean(name)!r}, which {problem}: set KIE_MACHINE to a short name")
    return name


def _check_key(secret: Secret) -> None:
    if not secret:
        raise SettingsError("api_key is empty: set KIE_API_KEY, or give Settings(api_key=...)")
    # The key itself gets no name here, for a traceback may show what names hold.
    if re.fullmatch(r"[!#-&(-~]+", secret.reveal()) is None:  # printable ASCII without spaces and quotes
        raise SettingsError("api_key holds spaces, quotes, line ends or other unusual characters: copy it once more")
    if re.search(r"^bearer|your.?(api.?)?key", secret.reveal(), re.IGNORECASE):
        raise SettingsError("api_key is a placeholder or begins with 'Bearer': give the bare key")


def _is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


_YEAR = 366 * 86400
_MAY_BE_ZERO = (
    "quota_margin",
    "submit_retry_timeout",
    "recovery_timeout",
    "not_found_timeout",
    "missing_audio_timeout",
)
# By the type of a setting: what its value must be, and the remedy.
_CHECKS: Mapping[str, tuple[Callable[[Any], bool], str]] = {
    "bool": (lambda value: isinstance(value, bool), "give True or False"),
    "int": (lambda value: isinstance(value, int) and value >= 1, "give a whole number from 1 up"),
    "int | None": (
        lambda value: value is None or (isinstance(value, int) and value >= 0),
        "give a whole number, or 0 for no limit",
    ),
    "float": (lambda value: _is_number(value) and 0 <= value < _YEAR, "give a number of seconds from 0 up"),
    "float | None": (
        lambda value: value is None or (_is_number(value) and 0 <= value < math.inf),
        "give a number of credits from 0 up, or None for no cap",
    ),
    "datetime | None": (
        lambda value: value is None or (isinstance(value, datetime) and value.tzinfo is not None),
        "give ISO 8601 text like 2026-12-01, or a datetime with a time zone",
    ),
    "Observer": (
        lambda value: callable(value) and not inspect.iscoroutinefunction(value),
        "give a plain function, which is called with each event",
    ),
    "RouteName": (lambda value: value in get_args(RouteName), "give 'classic' or 'jobs'"),
}


def _credits(value: float | str | None) -> float | None:
    return _read(value, float)


def _moment(value: datetime | str | None) -> datetime | None:
    moment = _read(value, datetime.fromisoformat)
    is_local = isinstance(value, str) and isinstance(moment, datetime) and moment.tzinfo is None
    return moment.replace(tzinfo=UTC) if is_local and moment else moment


def _read(value: T | str | None, read: Callable[[str], T]) -> T | None:
    """Read a text; what cannot be read stays a text, and is refused with what else is out of range."""
    with suppress(ValueError):
        return (read(value) if value else None) if isinstance(value, str) else value
    return cast("T", value)


def _account_of(api_key: Secret) -> str:
    return hmac.new(api_key.reveal().encode(), b"kie_async account", "sha256").hexdigest()[:16]


@attrs.frozen(kw_only=True)
class Settings:
    """The settings of a session. All times are in seconds.

    Attributes:
        api_key: the key; by default from ``KIE_API_KEY``, or from the file that ``KIE_API_KEY_FILE`` names.
        base_url: the address of the API; by default ``KIE_BASE_URL``, or else the real service. Plain http is accepted
            for loopback only.
        upload_base_url: the address for uploads; by default the service's upload host, or ``base_url`` on loopback.
        callback_url: the public address where the service sends callbacks; by default ``KIE_CALLBACK_URL``. If empty,
            there are no callbacks, and tasks are polled.
        webhook_keys: keys that sign callbacks; a signature by any of them is accepted (for rotation). By default from
            ``KIE_WEBHOOK_KEY``, or from the file that ``KIE_WEBHOOK_KEY_FILE`` names. The argument is
            ``webhook_key=``: one key or several.
        journal: where sessions keep their jobs, callbacks and quota: the path of a file, shared by processes of one
            machine, or ``postgresql://...``; by default ``KIE_JOURNAL``. "" for none, even if ``KIE_JOURNAL`` is set.
        account: the name of the account. Sessions of one account share its quota, in one event loop or by a journal. By
            default ``KIE_ACCOUNT``, or else a name computed from the key, which does not reveal it. Give two keys of
            one account the same name.
        machine: the name of this machine. A journal records it with a job whose source is a file, so that a worker on
            that machine uploads it. By default ``KIE_MACHINE``, or else the host name; set it in containers, whose
            host names change.
        route: "classic" (``/api/v1/generate/...``) or "jobs" (``/api/v1/jobs/...``).
        observer: called with each ``events.Event``; by default events are logged under ``kie_async``.
            ``otel.OpenTelemetryObserver`` makes spans and metrics of them.
        strict_limits: where two pages of the service disagree on a limit, refuse what breaks either. By default the
            current page decides, and a notice names the older limit.
        measure_urls: measure a source that is given by URL just before its submission, with one request of at most
            1 MiB and 3 s, and check ``continue_at`` against its length if that is proven. Needs the extra ``audio``.
        max_consecutive_failures: after that many failed tasks in a row, ``submit_all``, a batch and a worker submit
            nothing more; 0 or None for no limit. A submission that came to no task, and may have been charged, counts.
        max_credits: the most that may be spent; by default ``KIE_MAX_CREDITS``, or else no cap. It applies to this
            session; with a journal, to all that is on record there for this account. The cost of a submission is
            reserved before it is sent (12 credits, as observed, or the cost of the dearest task so far), counts while
            its outcome is unknown, and is freed if it was refused.
        max_credits_since: with a journal, count only jobs submitted since then (an aware datetime, or ISO 8601 text,
            in UTC unless it has an offset); by default ``KIE_MAX_CREDITS_SINCE``, or else all jobs.
        max_in_flight: how many tasks may run at once; further submissions wait. The service allows 100 or more.
        quota: how many submissions may be sent in any ``quota_window``. The service allows 20 in 10 s per account.
        quota_window: the length of that window.
        quota_margin: added to the window, because the server's clock runs differently.
        submit_retry_timeout: how long a submission that was refused for now (429, 430, 455) or could not be sent is
            retried before its error is raised.
        recovery_timeout: with callbacks, how long a submission whose answer was lost waits for a callback that names
            its task, before ``SubmitUnknownError`` is raised.
        connect_timeout: limit for making a connection, including DNS and TLS.
        read_timeout: limit for a connection on which nothing arrives.
        total_timeout: limit for one exchange with the API.
        upload_timeout: limit for one upload.
        task_timeout: how long a task may take before its waiters get ``WaitTimeoutError``. Tasks usually take 1 to
            3 minutes; the service itself gives up (408) only after more than 10.
        not_found_timeout: how long a new task may be unknown to record-info before ``TaskNotFoundError``.
        missing_audio_timeout: how long a task may report success before all its audio is there; then it ends with the
            tracks that have audio, or fails if none has.
        max_concurrent_polls: how many record-info requests may be under way at once.
        max_download_bytes: the largest file that a download accepts.
        proxy: an http(s) proxy for all requests; "" for none. By default that of ``HTTPS_PROXY`` or ``ALL_PROXY``, for
            hosts that are neither on this machine nor in ``NO_PROXY``. ``.netrc`` is never read.
        ssl_context: for servers with a private certificate authority; it must verify certificates and host names.

    Raises:
        SettingsError: a setting cannot be used; the message names it.
    """

    observer: Observer = log_event  # first, for it is called with notices about the others
    api_key: Secret = attrs.field(converter=_secret)
    base_url: str = attrs.field(factory=lambda: read_text("KIE_BASE_URL", BASE_URL))
    upload_base_url: str = ""
    callback_url: str = attrs.field(factory=lambda: read_text("KIE_CALLBACK_URL"))
    webhook_keys: tuple[Secret, ...] = attrs.field(converter=_secrets, alias="webhook_key")
    journal: Secret | None = attrs.field(factory=lambda: _location(journal_location()), converter=_location, repr=False)
    account: str = attrs.field(factory=lambda: read_text("KIE_ACCOUNT"))
    machine: str = attrs.field(factory=machine_name)
    route: RouteName = "classic"
    strict_limits: bool = False
    measure_urls: bool = True
    max_in_flight: int = 100
    max_consecutive_failures: int | None = 5
    max_credits: float | None = attrs.field(factory=lambda: _credits(read_text("KIE_MAX_CREDITS")), converter=_credits)
    max_credits_since: datetime | None = attrs.field(
        factory=lambda: _moment(read_text("KIE_MAX_CREDITS_SINCE")), converter=_moment
    )
    quota: int = 20
    quota_window: float = 10.0
    quota_margin: float = 0.02
    submit_retry_timeout: float = 600.0
    recovery_timeout: float = 600.0
    connect_timeout: float = 20.0
    read_timeout: float = 60.0
    total_timeout: float = 90.0
    upload_timeout: float = 900.0
    task_timeout: float = 1800.0
    not_found_timeout: float = 60.0
    missing_audio_timeout: float = 120.0
    max_concurrent_polls: int = 16
    max_download_bytes: int = 500_000_000
    proxy: Secret | None = attrs.field(
        default=None, converter=attrs.converters.optional(_secret), repr=False
    )  # it may hold a password
    ssl_context: ssl.SSLContext | None = attrs.field(default=None, repr=False)
    _found_proxy: tuple[str, Secret] = attrs.field(init=False, repr=False, eq=False, factory=_read_proxy)
    _direct_hosts: tuple[str, ...] = attrs.field(init=False, repr=False, eq=False, factory=read_direct_hosts)

    @api_key.default
    def _api_key_of_environment(self) -> Secret:
        return Secret(read_key("KIE_API_KEY", "api_key", guarded(self.observer)))

    @webhook_keys.default
    def _webhook_keys_of_environment(self) -> tuple[Secret, ...]:
        return _secrets(read_key("KIE_WEBHOOK_KEY", "webhook_key", guarded(self.observer)))

    def __attrs_post_init__(self) -> None:
        _check_key(self.api_key)
        put = partial(object.__setattr__, self)
        put("account", self.account or _account_of(self.api_key))
        put("machine", _checked_machine(self.machine) if self.machine else machine_name())
        put("base_url", _checked_url("base_url", self.base_url))
        own_host = self.base_url if self.on_loopback else UPLOAD_BASE_URL
        put("upload_base_url", _checked_url("upload_base_url", self.upload_base_url or own_host))
        if self.callback_url:
            put("callback_url", _checked_url("callback_url", self.callback_url))
        self._check_proxy()
        for name, kind in Settings.__annotations__.items():
            value = getattr(self, name)
            is_usable, remedy = _CHECKS.get(kind, (lambda _: True, ""))
            if not is_usable(value):
                raise SettingsError(f"{name} is {value!r}: {remedy}")
            if value == 0 and kind == "float" and name not in _MAY_BE_ZERO:  # to aiohttp, 0 is no limit
                raise SettingsError(f"{name} is 0: give a number of seconds above 0")
        context = self.ssl_context
        if context is not None and (context.verify_mode != ssl.CERT_REQUIRED or not context.check_hostname):
            raise SettingsError("ssl_context does not verify the server: set CERT_REQUIRED and check_hostname")

    def _check_proxy(self) -> None:
        name, proxy = ("", self.proxy) if self.proxy is not None else self._found_proxy
        is_used = self.proxy is not None or not self.on_loopback
        if proxy and is_used and not (proxy.reveal().isascii() and split_http(proxy.reveal())):
            given = f"proxy ({name})" if name else "proxy"
            remedy = 'give one like http://proxy.example:3128, or Settings(proxy="") for none'
            raise SettingsError(f"{given} is not an http(s) address: {remedy}")

    @property
    def on_loopback(self) -> bool:
        """Whether the API is on this machine: the emulator, not the real service."""
        return is_loopback(urlsplit(self.base_url).hostname)

    def proxy_for(self, url: str) -> Secret | None:
        """The proxy that leads to an address, if one does."""
        if self.proxy is not None:
            return self.proxy or None
        _, found = self._found_proxy
        if not found:
            return None
        parts = urlsplit(url)
        host = parts.hostname or ""
        return None if is_loopback(host) or is_direct(host, parts.port, self._direct_hosts) else found
