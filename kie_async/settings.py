"""How a session behaves: one frozen value. The only place that reads the environment."""

from __future__ import annotations

import os
import re
import ssl
from collections.abc import Callable, Iterable
from ipaddress import ip_address
from typing import Any, Literal, NoReturn, TypeAlias
from urllib.parse import urlsplit

import attrs

from kie_async.errors import SettingsError
from kie_async.events import Observer, log_event

RouteName: TypeAlias = Literal["classic", "jobs"]

BASE_URL = "https://api.kie.ai"
UPLOAD_BASE_URL = "https://kieai.redpandaai.co"  # FACTS: uploads go to a second domain, with the same key
PLACEHOLDER_CALLBACK_URL = "https://example.com/no-callback"  # FACTS: enforced, but need not be reachable


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


def _env(name: str, default: str = "") -> Any:  # noqa: ANN401  # attrs types a field by its converter
    return attrs.Factory(lambda: os.environ.get(name, "") or default)


def named_database() -> str | None:
    """The place of jobs that ``KIE_DATABASE_URL`` names, for the command line; None if it names none."""
    return os.environ.get("KIE_DATABASE_URL") or None


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
        raise SettingsError("api_key holds spaces, quotes, line ends or other odd characters: copy it once more")
    if re.search(r"^bearer|your.?(api.?)?key", secret.reveal(), re.IGNORECASE):
        raise SettingsError("api_key is a placeholder or begins with 'Bearer': give the bare key")


@attrs.frozen(kw_only=True)
class Settings:
    """How a session behaves. Every time is in seconds.

    Attributes:
        api_key: the key; by default from ``KIE_API_KEY``.
        base_url: the API; by default ``KIE_BASE_URL``, or else the real service. Plain http to loopback only.
        upload_base_url: where files are uploaded; the same host as the API if that is on loopback.
        callback_url: where the service can reach you; by default ``KIE_CALLBACK_URL``. Empty: polling does all.
        webhook_keys: keys that sign callbacks, any of which is accepted (rotation); by default ``KIE_WEBHOOK_KEY``.
            Written ``webhook_key=`` as well.
        route: "classic" (``/api/v1/generate/...``) or "jobs" (``/api/v1/jobs/...``).
        observer: called with each ``events.Event``; by default they are logged under ``kie_async``.
        strict_limits: where two pages of the service disagree on a limit, refuse by the older one too; by default the
            current one decides, and the observer is told of the other.
        measure_urls: measure a source that is given by URL, just before its submission, with one request of at most
            1 MiB and 3 s; ``continue_at`` is held to what that proves. Needs the extra ``audio``.
        max_in_flight: tasks running at once; further submissions wait. FACTS: the service allows 100 or more.
        quota: submissions in any ``quota_window``. FACTS: 20 in 10 s per account.
        quota_margin: added to the window, for the difference of two clocks.
        submit_patience: how long a submission that was refused for its moment (429, 430, 455) or could not be
            sent is tried again, before its error is raised.
        recover_patience: with callbacks on, how long a submission whose answer was lost waits for the callback
            that names its task, before ``SubmitUnknownError`` is raised.
        connect_timeout: to make a connection, DNS and TLS included.
        read_timeout: silence allowed on a connection.
        total_timeout: one exchange with the API in all.
        upload_timeout: one upload in all.
        task_timeout: how long a task may take before its waiters get ``WaitTimeoutError``. FACTS: usually 1 to
            3 min; 408 means nothing for over 10 min.
        visible_grace: how long a new task may be unknown to record-info.
        audio_grace: how long a task may claim success before its audio appears.
        looks_at_once: record-info requests under way at once.
        max_download_bytes: the largest file a download accepts.
        proxy: an http proxy; none is taken from the environment.
        ssl_context: for a private authority; it must verify.
    """

    api_key: Secret = attrs.field(default=_env("KIE_API_KEY"), converter=_secret)
    base_url: str = attrs.field(default=_env("KIE_BASE_URL", BASE_URL))
    upload_base_url: str = ""
    callback_url: str = attrs.field(default=_env("KIE_CALLBACK_URL"))
    webhook_keys: tuple[Secret, ...] = attrs.field(
        default=_env("KIE_WEBHOOK_KEY"), converter=_secrets, alias="webhook_key"
    )
    route: RouteName = "classic"
    observer: Observer = log_event
    strict_limits: bool = False
    measure_urls: bool = True
    max_in_flight: int = 100
    quota: int = 20
    quota_window: float = 10.0
    quota_margin: float = 0.02
    submit_patience: float = 600.0
    recover_patience: float = 600.0
    connect_timeout: float = 20.0
    read_timeout: float = 60.0
    total_timeout: float = 90.0
    upload_timeout: float = 900.0
    task_timeout: float = 1800.0
    visible_grace: float = 60.0
    audio_grace: float = 120.0
    looks_at_once: int = 16
    max_download_bytes: int = 500_000_000
    proxy: str | None = attrs.field(default=None, repr=False)  # it may hold a password
    ssl_context: ssl.SSLContext | None = attrs.field(default=None, repr=False)

    def __attrs_post_init__(self) -> None:
        _check_key(self.api_key)
        put: Callable[[str, object], None] = lambda name, value: object.__setattr__(self, name, value)  # noqa: E731
        put("base_url", _check_url("base_url", self.base_url))
        own_host = self.base_url if self.on_loopback else UPLOAD_BASE_URL
        put("upload_base_url", _check_url("upload_base_url", self.upload_base_url or own_host))
        if self.callback_url:
            put("callback_url", _check_url("callback_url", self.callback_url))
        if self.route not in {"classic", "jobs"}:
            raise SettingsError(f"route is {self.route!r}: give 'classic' or 'jobs'")
        _check_switches(self)
        for name in _COUNTS:
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise SettingsError(f"{name} is {value!r}: give a whole number from 1 up")
        for name in _SECONDS:
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < _YEAR:
                raise SettingsError(f"{name} is {value!r}: give a number of seconds from 0 up")
            if value == 0 and name.endswith(("timeout", "window")):  # aiohttp takes 0 for "no limit"
                raise SettingsError(f"{name} is 0: give a number of seconds above 0")
        context = self.ssl_context
        if context is not None and (context.verify_mode != ssl.CERT_REQUIRED or not context.check_hostname):
            raise SettingsError("ssl_context does not verify the server: set CERT_REQUIRED and check_hostname")

    @property
    def on_loopback(self) -> bool:
        """Whether the API is on this machine: the emulator, not the real service."""
        return is_loopback(urlsplit(self.base_url).hostname)


def _check_switches(settings: Settings) -> None:
    for name in ("strict_limits", "measure_urls"):
        value = getattr(settings, name)
        if not isinstance(value, bool):
            raise SettingsError(f"{name} is {value!r}: give True or False")


_COUNTS = ("max_in_flight", "quota", "looks_at_once", "max_download_bytes")
_IN_SECONDS = ("timeout", "patience", "grace", "_window", "_margin")
_SECONDS = tuple(field.name for field in attrs.fields(Settings) if field.name.endswith(_IN_SECONDS))
_YEAR = 366 * 86400
