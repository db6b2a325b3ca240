"""How a session behaves: one frozen value."""

from __future__ import annotations

import re
import ssl
from collections.abc import Callable, Iterable
from functools import partial
from ipaddress import ip_address
from typing import Literal, NoReturn, TypeAlias, TypeVar
from urllib.parse import urlsplit

import attrs

from kie_async._environment import is_direct, read_direct_hosts, read_key, read_proxy, read_text
from kie_async.errors import SettingsError
from kie_async.events import Observer, guarded, log_event

T = TypeVar("T")

RouteName: TypeAlias = Literal["classic", "jobs"]

BASE_URL = "https://api.kie.ai"
UPLOAD_BASE_URL = "https://kieai.redpandaai.co"  # uploads go to a second domain, with the same key
PLACEHOLDER_CALLBACK_URL = "https://example.com/no-callback"  # one is required, but need not be reachable


class Secret:
    """A text that shows itself to nobody: not in a repr, a log, a pickle, a comparison or a format string."""

    __slots__ = ("__text",)

    def __init__(self, text: str) -> None:
        self.__text = text

    def reveal(self) -> str:
        """Return the text, for the one place that must send it."""
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


def _proxy(value: str | Secret | None) -> Secret | None:
    return None if value is None else _secret(value)


def _found_proxy() -> tuple[str, Secret]:
    name, proxy = read_proxy()
    return name, Secret(proxy)


def _default(read: Callable[[], T]) -> T:
    """A default that is read when settings are made; to type checkers, what is read."""
    return attrs.Factory(read)


def _env(name: str, default: str = "") -> str:
    return _default(lambda: read_text(name, default))


def _env_key(settings: Settings) -> Secret:
    return Secret(read_key("KIE_API_KEY", "api_key", guarded(settings.observer)))


def _env_webhook_keys(settings: Settings) -> tuple[Secret, ...]:
    return _secrets(read_key("KIE_WEBHOOK_KEY", "webhook_key", guarded(settings.observer)))


def _of_settings(read: Callable[[Settings], T]) -> T:
    """As ``_default``, for what needs the settings above it."""
    return attrs.Factory(read, takes_self=True)


def journal_location() -> str | None:
    """The path or address of the journal that ``KIE_JOURNAL`` names; None if it names none."""
    return read_text("KIE_JOURNAL") or None


def is_loopback(host: str | None) -> bool:
    """Tell whether a host can only be this machine, without asking DNS."""
    if host is None:
        return False
    if host.lower() == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


def _check_url(name: str, url: str) -> str:
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError:
        parts, host = urlsplit(""), None
    if not host or parts.scheme not in {"http", "https"} or not url.isprintable() or " " in url:
        raise SettingsError(f"{name} is not an http(s) address: give one like {BASE_URL}")
    if parts.username is not None or parts.query or parts.fragment:
        raise SettingsError(f"{name} holds a user name, a query or a fragment: leave them out")
    if parts.scheme == "http" and not is_loopback(host):
        raise SettingsError(f"{name} would send over plain http to another machine: use https")
    return url.rstrip("/")


def _check_key(secret: Secret) -> None:
    if not secret:
        raise SettingsError("api_key is empty: set KIE_API_KEY, or give Settings(api_key=...)")
    # The key itself gets no name here, for a traceback may show what names hold.
    if re.fullmatch(r"[!#-&(-~]+", secret.reveal()) is None:  # printable ASCII without spaces and quotes
        raise SettingsError("api_key holds spaces, quotes, line ends or other unusual characters: copy it once more")
    if re.search(r"^bearer|your.?(api.?)?key", secret.reveal(), re.IGNORECASE):
        raise SettingsError("api_key is a placeholder or begins with 'Bearer': give the bare key")


def _is_http_address(url: str) -> bool:
    try:
        parts = urlsplit(url)
        return bool(parts.hostname) and parts.scheme in {"http", "https"} and parts.port != 0 and _is_plain(url)
    except ValueError:
        return False


def _is_plain(url: str) -> bool:
    return url.isascii() and url.isprintable() and " " not in url


@attrs.frozen(kw_only=True)
class Settings:
    """How a session behaves. Every time is in seconds.

    Attributes:
        api_key: the key; by default from ``KIE_API_KEY``, or from the file that ``KIE_API_KEY_FILE`` names.
        base_url: the API; by default ``KIE_BASE_URL``, or else the real service. Plain http to loopback only.
        upload_base_url: where files are uploaded; the same host as the API if that is on loopback.
        callback_url: where the service can reach you; by default ``KIE_CALLBACK_URL``. Empty: polling does all.
        webhook_keys: keys that sign callbacks, any of which is accepted (rotation); by default ``KIE_WEBHOOK_KEY``, or
            what the file holds that ``KIE_WEBHOOK_KEY_FILE`` names. Given as ``webhook_key=``, one or several.
        route: "classic" (``/api/v1/generate/...``) or "jobs" (``/api/v1/jobs/...``).
        observer: called with each ``events.Event``; by default they are logged under ``kie_async``.
        strict_limits: where two pages of the service disagree on a limit, refuse by the older one too; by default the
            current one decides, and a notice names the other.
        measure_urls: measure a source that is given by URL, just before its submission, with one request of at most
            1 MiB and 3 s; ``continue_at`` is held to what that proves. Needs the extra ``audio``.
        max_consecutive_failures: after so many tasks that failed without a success between them, ``submit_all``, a
            batch and a worker submit nothing more; 0 or None for no limit.
        max_in_flight: tasks running at once; further submissions wait. The service allows 100 or more.
        quota: submissions in any ``quota_window``. The service allows 20 in 10 s per account.
        quota_margin: added to the window, for the difference of two clocks.
        submit_retry_timeout: how long a submission that was refused for its moment (429, 430, 455) or could not be
            sent is tried again, before its error is raised.
        recovery_timeout: with callbacks on, how long a submission whose answer was lost waits for the callback
            that names its task, before ``SubmitUnknownError`` is raised.
        connect_timeout: to make a connection, DNS and TLS included.
        read_timeout: silence allowed on a connection.
        total_timeout: one exchange with the API in all.
        upload_timeout: one upload in all.
        task_timeout: how long a task may take before its waiters get ``WaitTimeoutError``. Usually 1 to
            3 min; 408 means nothing for over 10 min.
        not_found_timeout: how long a new task may be unknown to record-info.
        missing_audio_timeout: how long a task may claim success before its audio appears.
        max_concurrent_polls: record-info requests under way at once.
        max_download_bytes: the largest file a download accepts.
        proxy: an http(s) proxy for all requests, and "" for none. By default that of ``HTTPS_PROXY`` or ``ALL_PROXY``,
            for hosts that are not on this machine and not in ``NO_PROXY``; ``.netrc`` is never read.
        ssl_context: for a private authority; it must verify.
    """

    observer: Observer = log_event  # first, for it is called with notices about the others
    api_key: Secret = attrs.field(default=_of_settings(_env_key), converter=_secret)
    base_url: str = attrs.field(default=_env("KIE_BASE_URL", BASE_URL))
    upload_base_url: str = ""
    callback_url: str = attrs.field(default=_env("KIE_CALLBACK_URL"))
    webhook_keys: tuple[Secret, ...] = attrs.field(
        default=_of_settings(_env_webhook_keys), converter=_secrets, alias="webhook_key"
    )
    route: RouteName = "classic"
    strict_limits: bool = False
    measure_urls: bool = True
    max_in_flight: int = 100
    max_consecutive_failures: int | None = 5
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
    proxy: Secret | None = attrs.field(default=None, converter=_proxy, repr=False)  # it may hold a password
    ssl_context: ssl.SSLContext | None = attrs.field(default=None, repr=False)
    _found_proxy: tuple[str, Secret] = attrs.field(init=False, repr=False, eq=False, factory=_found_proxy)
    _direct_hosts: tuple[str, ...] = attrs.field(init=False, repr=False, eq=False, factory=read_direct_hosts)

    def __attrs_post_init__(self) -> None:
        _check_key(self.api_key)
        self._check_urls()
        if self.route not in {"classic", "jobs"}:
            raise SettingsError(f"route is {self.route!r}: give 'classic' or 'jobs'")
        _check_switches(self)
        self._check_proxy()
        for name in _COUNTS:
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise SettingsError(f"{name} is {value!r}: give a whole number from 1 up")
        _check_failures(self.max_consecutive_failures)
        for name in _SECONDS:
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < _YEAR:
                raise SettingsError(f"{name} is {value!r}: give a number of seconds from 0 up")
            if value == 0 and name.endswith(("timeout", "window")) and name not in _MAY_BE_ZERO:  # aiohttp: no limit
                raise SettingsError(f"{name} is 0: give a number of seconds above 0")
        context = self.ssl_context
        if context is not None and (context.verify_mode != ssl.CERT_REQUIRED or not context.check_hostname):
            raise SettingsError("ssl_context does not verify the server: set CERT_REQUIRED and check_hostname")

    def _check_urls(self) -> None:
        put = partial(object.__setattr__, self)
        put("base_url", _check_url("base_url", self.base_url))
        own_host = self.base_url if self.on_loopback else UPLOAD_BASE_URL
        put("upload_base_url", _check_url("upload_base_url", self.upload_base_url or own_host))
        if self.callback_url:
            put("callback_url", _check_url("callback_url", self.callback_url))

    def _check_proxy(self) -> None:
        name, proxy = ("", self.proxy) if self.proxy is not None else self._found_proxy
        is_used = self.proxy is not None or not self.on_loopback
        if proxy and is_used and not _is_http_address(proxy.reveal()):
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


def _check_switches(settings: Settings) -> None:
    for name in ("strict_limits", "measure_urls"):
        value = getattr(settings, name)
        if not isinstance(value, bool):
            raise SettingsError(f"{name} is {value!r}: give True or False")


def _check_failures(limit: object) -> None:
    if limit is not None and (not isinstance(limit, int) or limit < 0):
        raise SettingsError(f"max_consecutive_failures is {limit!r}: give a whole number, or 0 for no limit")


_COUNTS = ("max_in_flight", "quota", "max_concurrent_polls", "max_download_bytes")
_IN_SECONDS = ("timeout", "_window", "_margin")
_MAY_BE_ZERO = ("submit_retry_timeout", "recovery_timeout", "not_found_timeout", "missing_audio_timeout")
_SECONDS = tuple(field.name for field in attrs.fields(Settings) if field.name.endswith(_IN_SECONDS))
_YEAR = 366 * 86400
