"""What a callback is answered: headers and bytes in, an HTTP status out. No framework lives here.

The body of a callback is not signed, so all it can do is make the session poll a task now. A callback that is repeated,
swapped or late does no harm. One for an unknown task is answered 200: another process may own the task, and the service
might stop sending after a 404.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping
from http import HTTPStatus
from typing import Any, Protocol, TypeAlias

import attrs

from kie_async._protocol import signing, wire
from kie_async._protocol.signing import Check
from kie_async.errors import BadResponseError, SettingsError
from kie_async.events import CallbackReceived, Observer, clean, guarded
from kie_async.models import CallbackEvent
from kie_async.settings import Secret, Settings

Deliver: TypeAlias = Callable[[str, CallbackEvent], Coroutine[Any, Any, str]]
Read: TypeAlias = Callable[[], Awaitable[bytes]]

MAX_BYTES = 256 * 1024  # a body is a few kB: two tracks with their lyrics
TIMEOUT = 10.0  # seconds for a body to come in, and for a callback to be taken in; the service waits 15 s in all

_TOKEN = re.compile(r"[A-Za-z0-9_-]{16,128}")
_LENGTH = re.compile(r"[0-9]{1,18}")
_OK, _GOOD = HTTPStatus.OK, Check.GOOD  # in Python 3.11 each access to an enum member costs a call
_SIGNATURE_STATUS = {
    Check.MISSING: HTTPStatus.UNAUTHORIZED,
    Check.MALFORMED: HTTPStatus.BAD_REQUEST,
    Check.STALE: HTTPStatus.UNAUTHORIZED,
    Check.WRONG: HTTPStatus.UNAUTHORIZED,
}


class Receiving(Protocol):
    """What the adapter for a web framework needs of a session."""

    @property
    def receiver(self) -> Receiver:
        """Verifies the callbacks."""
        ...

    @property
    def settings(self) -> Settings:
        """How the session behaves; ``callback_url`` is read."""
        ...


@attrs.define(slots=False)
class _RefusalError(Exception):
    """A callback is refused: the status to answer, and why."""

    status: HTTPStatus
    note: str


def _no_empty_key(_receiver: Receiver, _field: object, keys: tuple[Secret, ...]) -> None:
    if not all(keys):
        raise SettingsError("webhook_key is empty: anybody could sign with it; leave it out or give the real one")


@attrs.define(eq=False)
class Receiver:
    """Verifies callbacks, and delivers those that pass to the session.

    Args:
        keys: any of them may have signed; with none, signatures are not checked. May be replaced while it runs.
        deliver: is called with the token and the parsed body. It must be quick, and return only when a restart would
            not lose them. It returns "", or the reason why it ignored them. If it raises, the answer is 503, so that
            the service tries again.
        emit: called with a ``CallbackReceived`` for each callback.
        clock: unix seconds, with which the signatures' timestamps are compared.
    """

    keys: tuple[Secret, ...] = attrs.field(validator=_no_empty_key)
    _deliver: Deliver
    _emit: Observer = attrs.field(converter=guarded)
    _clock: Callable[[], float] = attrs.field(default=time.time, kw_only=True)

    async def handle(self, headers: Mapping[str, str], body: bytes, token: str) -> int:
        """Verify a callback that has been read completely, and deliver it.

        Args:
            headers: as they came; names in any case.
            body: as it came, not decoded.
            token: the last segment of the path.

        Returns:
            The HTTP status to answer, with an empty body: 200; 400, 401, 404, 413 or 415 if it is refused; 503 if it
            could not be delivered, so that the service tries again. Nothing is raised. If this is cancelled, send no
            answer: the service tries again.
        """
        names = fold(headers.items())
        try:
            _check_head(names, len(body), token)
        except _RefusalError as refusal:
            return self._report(refusal.status, refusal.note, token)
        return await self._verify(names, body, token)

    async def receive(self, method: str, headers: Iterable[tuple[str, str]], token: str, read: Read) -> int:
        """Read the body of a callback, verify and deliver it.

        Holds at most 256 KiB and one chunk in memory, and waits at most 10 s for the body.

        Args:
            method: of the request; anything but POST is refused.
            headers: pairs, as they came.
            token: the last segment of the path.
            read: returns the next chunk of the body; ``b""`` at its end. Raises OSError if the connection is lost.

        Returns:
            The statuses of ``handle``, and 405 and 408; 400 also for a body that broke off.
        """
        names = fold(headers)
        try:
            _check_method(method)
            _check_head(names, _declared(names), token)
            body = await _read_within(read)
        except _RefusalError as refusal:
            return self._report(refusal.status, refusal.note, token)
        return await self._verify(names, body, token)

    async def _verify(self, headers: Mapping[str, str], body: bytes, token: str) -> int:
        event = None
        try:
            claims = _parse(body)
            self._authenticate(headers, claims.task_id)
            event = claims
            note = await self._deliver_event(token, event)
        except _RefusalError as refusal:
            return self._report(refusal.status, refusal.note, token, event)
        return self._report(_OK, note, token, event)

    def _authenticate(self, headers: Mapping[str, str], task_id: str) -> None:
        if not self.keys:
            return
        now = self._clock()
        verdict = signing.check(self.keys, headers, task_id, now)
        if verdict is _GOOD:
            return
        raise _RefusalError(_SIGNATURE_STATUS[verdict], explain(verdict, headers, now))

    async def _deliver_event(self, token: str, event: CallbackEvent) -> str:
        try:
            async with asyncio.timeout(TIMEOUT):
                return await self._deliver(token, event)
        except Exception as error:  # whatever it is, the service must try again
            note = f"not delivered: {type(error).__name__}: {error}"
            raise _RefusalError(HTTPStatus.SERVICE_UNAVAILABLE, note) from error

    def _report(self, status: HTTPStatus, note: str, token: str, event: CallbackEvent | None = None) -> int:
        """Emit the event; it shows nothing of a body that was not authenticated."""
        task_id = stage = ""
        if event:
            task_id, stage, note = [clean(fact.replace(token, "…")) for fact in (event.task_id, event.stage, note)]
        answer = int(status)
        self._emit(CallbackReceived(task_id, stage, answer, note))
        return answer


def segments(path: str) -> list[str]:
    """Split a decoded path; the last part is the token.

    Empty parts are dropped: Litestar and some proxies add a slash at the end, or double one.
    """
    return [part for part in path.split("/") if part]


def fold(headers: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Index headers by their lower-case name; the values of a repeated one are joined, so that no sender can choose."""
    names: dict[str, str] = {}
    for name, value in headers:
        lower = name.lower()
        names[lower] = f"{names[lower]}, {value}" if lower in names else value
    return names


def explain(verdict: Check, headers: Mapping[str, str], now: float) -> str:
    """Say what is wrong with a signature; ``headers`` have lower-case names."""
    note: str = verdict.value
    if verdict is Check.STALE:
        skew = abs(now - int(headers[signing.TIMESTAMP_HEADER.lower()]))
        note = f"{note}: clock skew {skew:.0f} s"
    return note


def _declared(headers: Mapping[str, str]) -> int:
    """The declared length of the body; 0 if there is none, for the bytes are counted anyway."""
    length = headers.get("content-length", "")
    return int(length) if _LENGTH.fullmatch(length) else 0


def _check_method(method: str) -> None:
    if method != "POST":
        raise _RefusalError(HTTPStatus.METHOD_NOT_ALLOWED, "not a POST")


def _check_head(headers: Mapping[str, str], size: int, token: str) -> None:
    if size > MAX_BYTES:
        raise _RefusalError(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "the body is too large")
    if headers.get("content-encoding", "").strip().lower() not in {"", "identity"}:
        raise _RefusalError(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "the body is compressed")
    if _TOKEN.fullmatch(token) is None:
        raise _RefusalError(HTTPStatus.NOT_FOUND, "no token in the path")


async def _read_within(read: Read) -> bytes:
    try:
        async with asyncio.timeout(TIMEOUT):
            return await _read_capped(read)
    except TimeoutError:
        raise _RefusalError(HTTPStatus.REQUEST_TIMEOUT, "the body came too slowly") from None


async def _read_capped(read: Read) -> bytes:
    body = bytearray()
    try:
        while piece := await read():
            body += piece
            if len(body) > MAX_BYTES:
                raise _RefusalError(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "the body is too large")
    except OSError:
        raise _RefusalError(HTTPStatus.BAD_REQUEST, "the body broke off") from None
    return bytes(body)


def _parse(body: bytes) -> CallbackEvent:
    try:
        return wire.read_callback(body)
    except BadResponseError as error:
        raise _RefusalError(HTTPStatus.BAD_REQUEST, error.message) from None
