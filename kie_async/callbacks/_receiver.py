"""What a callback is answered: headers and bytes in, an HTTP status out. No framework lives here.

A callback is a hint, for its body is not signed: all it can do is to let the session look at a task now. So a
callback that is repeated, swapped or late does no harm, and one whose task nobody here knows is answered 200: another
process may own it, and the service might stop sending after a 404.
"""

from __future__ import annotations

import re
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping
from http import HTTPStatus
from typing import Any, Protocol, TypeAlias

import attrs

from kie_async._protocol import signing, wire
from kie_async._protocol.signing import Check
from kie_async.callbacks._within import within
from kie_async.errors import BadResponseError, SettingsError
from kie_async.events import CallbackReceived, Observer, clean, guarded
from kie_async.models import CallbackEvent
from kie_async.settings import Secret, Settings

Deliver: TypeAlias = Callable[[str, CallbackEvent], Coroutine[Any, Any, str]]
Read: TypeAlias = Callable[[], Awaitable[bytes]]

MAX_BYTES = 256 * 1024  # a body is a few kB: two tracks with their lyrics
PATIENCE = 10.0  # seconds for a body to come in, and for a callback to be taken in; the service waits 15 s in all

_TOKEN = re.compile(r"[A-Za-z0-9_-]{16,128}")
_LENGTH = re.compile(r"[0-9]{1,18}")
_OK, _GOOD = HTTPStatus.OK, Check.GOOD  # in Python 3.11 each look at an enum's member costs a call
_SIGNATURE_STATUS = {
    Check.MISSING: HTTPStatus.UNAUTHORIZED,
    Check.MALFORMED: HTTPStatus.BAD_REQUEST,
    Check.STALE: HTTPStatus.UNAUTHORIZED,
    Check.WRONG: HTTPStatus.UNAUTHORIZED,
}


class Receiving(Protocol):
    """What a web framework's skin needs of a session."""

    @property
    def receiver(self) -> Receiver:
        """Who judges the callbacks."""
        ...

    @property
    def settings(self) -> Settings:
        """How the session behaves; ``callback_url`` is read."""
        ...


@attrs.define(slots=False)
class _RefusalError(Exception):
    """A callback is not taken in: the status to answer, and why."""

    status: HTTPStatus
    note: str


def _no_empty_key(_receiver: Receiver, _field: object, keys: tuple[Secret, ...]) -> None:
    if not all(keys):
        raise SettingsError("webhook_key is empty: anybody could sign with it; leave it out or give the real one")


@attrs.define(eq=False)
class Receiver:
    """Judges callbacks, and hands those that pass to the session.

    Args:
        keys: any of them may have signed; none: signatures are not looked at. May be replaced while it runs.
        deliver: takes the token and the body's claims in. It must be quick, and return only when a restart would
            not lose them; it returns "", or why it set them aside. If it fails, the service is told to try again.
        tell: told of each callback once, as a ``CallbackReceived``.
        clock: unix seconds, against which the signatures' timestamps are held.
    """

    keys: tuple[Secret, ...] = attrs.field(validator=_no_empty_key)
    _deliver: Deliver
    _emit: Observer = attrs.field(converter=guarded)
    _clock: Callable[[], float] = attrs.field(default=time.time, kw_only=True)

    async def handle(self, headers: Mapping[str, str], body: bytes, token: str) -> int:
        """Judge a callback that is here as a whole, and take it in.

        Args:
            headers: as they came; names in any case.
            body: as it came, not decoded.
            token: the last segment of the path.

        Returns:
            The HTTP status to answer, with an empty body: 200; 400, 401, 404, 413 or 415 if it is refused; 503 if it
            could not be taken in, so that the service tries again. Nothing is raised. If this is cancelled, send no
            answer: the service tries again.
        """
        names = fold(headers.items())
        try:
            _check_head(names, len(body), token)
        except _RefusalError as refusal:
            return self._report(refusal.status, refusal.note, token)
        return await self._judge(names, body, token)

    async def receive(self, method: str, headers: Iterable[tuple[str, str]], token: str, read: Read) -> int:
        """Do as ``handle``, for a body that is still to be read.

        Never holds more than 256 KiB and one piece, and waits no longer than 10 s for the body.

        Args:
            method: of the request; anything but POST is refused.
            headers: pairs, as they came.
            token: the last segment of the path.
            read: the next piece of the body; ``b""`` at its end. Raises OSError if the connection is lost.

        Returns:
            As ``handle``; besides 405 and 408, and 400 for a body that broke off.
        """
        names = fold(headers)
        try:
            _check_method(method)
            _check_head(names, _declared(names), token)
            body = await _read_within(read)
        except _RefusalError as refusal:
            return self._report(refusal.status, refusal.note, token)
        return await self._judge(names, body, token)

    async def _judge(self, headers: Mapping[str, str], body: bytes, token: str) -> int:
        event = None
        try:
            claims = _read_claims(body)
            self._authenticate(headers, claims.task_id)
            event = claims
            note = await self._hand_over(token, event)
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

    async def _hand_over(self, token: str, event: CallbackEvent) -> str:
        try:
            return await within(PATIENCE, self._deliver(token, event))
        except Exception as error:  # whatever it is, the service must try again
            note = f"not taken in: {type(error).__name__}: {error}"
            raise _RefusalError(HTTPStatus.SERVICE_UNAVAILABLE, note) from error

    def _report(self, status: HTTPStatus, note: str, token: str, event: CallbackEvent | None = None) -> int:
        """Tell the observer; of a body that could not be authenticated nothing is passed on."""
        task_id = stage = ""
        if event:
            task_id, stage, note = [clean(fact.replace(token, "…")) for fact in (event.task_id, event.stage, note)]
        answer = int(status)
        self._emit(CallbackReceived(task_id, stage, answer, note))
        return answer


def segments(path: str) -> list[str]:
    """The parts of a decoded path, of which the last is the token.

    Empty ones are left out: Litestar and some proxies add a slash at the end, or double one.
    """
    return [part for part in path.split("/") if part]


def fold(headers: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Headers by their name in lower case; of a doubled one both, so that nobody can choose which is read."""
    names: dict[str, str] = {}
    for name, value in headers:
        lower = name.lower()
        names[lower] = f"{names[lower]}, {value}" if lower in names else value
    return names


def explain(verdict: Check, headers: Mapping[str, str], now: float) -> str:
    """What is the matter with a signature, in words; ``headers`` with names in lower case."""
    note: str = verdict.value
    if verdict is Check.STALE:
        skew = abs(now - int(headers[signing.TIMESTAMP_HEADER.lower()]))
        note = f"{note}: clock skew {skew:.0f} s"
    return note


def _declared(headers: Mapping[str, str]) -> int:
    """The length that the sender claims; 0 for none that can be read, for the bytes are counted anyway."""
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
        return await within(PATIENCE, _read_capped(read))
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


def _read_claims(body: bytes) -> CallbackEvent:
    try:
        return wire.read_callback(body)
    except BadResponseError as error:
        raise _RefusalError(HTTPStatus.BAD_REQUEST, error.message) from None
