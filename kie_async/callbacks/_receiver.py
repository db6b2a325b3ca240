"""Verify callbacks and decide how to answer them: headers and bytes in, an HTTP status out, for every framework.

The body of a callback is not signed, so it can only make the session poll a task now: a repeated, swapped or late
callback does no harm. A callback for an unknown task is answered 200, because another process may follow the task, and
the service might stop sending after a 404.
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
from kie_async.errors import BadResponseError, SettingsError, SignatureError
from kie_async.events import CallbackReceived, Observer, clean, guarded
from kie_async.models import CallbackEvent
from kie_async.settings import Secret, Settings

Deliver: TypeAlias = Callable[[str, CallbackEvent], Coroutine[Any, Any, str]]
Read: TypeAlias = Callable[[], Awaitable[bytes]]

MAX_BYTES = 256 * 1024  # a body is a few kB: two tracks with their lyrics
TIMEOUT = 10.0  # seconds for a body to come in, and for a callback to be taken in; the service waits 15 s in all

_TOKEN = re.compile(r"[A-Za-z0-9_-]{16,128}")
_LENGTH = re.compile(r"[0-9]{1,18}")


class Receiving(Protocol):
    """What the adapter for a web framework needs of a session."""

    @property
    def receiver(self) -> Receiver:
        """The receiver that verifies its callbacks."""
        ...

    @property
    def settings(self) -> Settings:
        """Its settings; the adapter reads ``callback_url``."""
        ...


def _no_empty_key(_receiver: Receiver, _field: object, keys: tuple[Secret, ...]) -> None:
    if not all(keys):
        raise SettingsError("webhook_key is empty: anybody could sign with it; leave it out or give the real one")


@attrs.define(eq=False)
class Receiver:
    """Verifies callbacks, and delivers the good ones to the session (``KieSession.receiver``).

    Args:
        keys: a signature by any of them is accepted; without keys, signatures are not checked. May be replaced at any
            time.
        deliver: called with the token and the parsed body. It must be quick, and return only when a crash could no
            longer lose the callback. It returns "", or the reason why the callback was ignored. If it raises, the
            answer is 503, so that the service sends the callback again.
        emit: called with a ``CallbackReceived`` for each callback.
        clock: returns Unix seconds; the timestamps of signatures are compared with it.
    """

    keys: tuple[Secret, ...] = attrs.field(validator=_no_empty_key)
    _deliver: Deliver
    _emit: Observer = attrs.field(converter=guarded)
    _clock: Callable[[], float] = attrs.field(default=time.time, kw_only=True)

    async def handle(self, headers: Mapping[str, str], body: bytes, token: str) -> int:
        """Verify a callback that was read completely, and deliver it.

        Args:
            headers: the headers of the request; names in any case.
            body: the bytes of its body.
            token: the last segment of its path.

        Returns:
            The HTTP status to answer, with an empty body: 200; 400, 401, 404, 413 or 415 if the callback is refused;
            503 if it could not be delivered, so that the service sends it again. Nothing is raised. If this is
            cancelled, send no answer: the service then sends the callback again.
        """
        pieces = iter([body])

        async def read() -> bytes:
            return next(pieces, b"")

        return await self._take("POST", fold(headers.items()), len(body), token, read)

    async def receive(self, method: str, headers: Iterable[tuple[str, str]], token: str, read: Read) -> int:
        """Read the body of a callback, verify it and deliver it.

        Holds at most 256 KiB and one chunk in memory, and waits at most 10 s for the body.

        Args:
            method: the method of the request; anything but POST is refused.
            headers: its headers, as pairs of name and value.
            token: the last segment of its path.
            read: returns the next chunk of the body, and ``b""`` at its end; raises OSError if the connection is lost.

        Returns:
            A status as of ``handle``; 400 also if the body was cut off, 405 for another method, 408 if it was too slow.
        """
        names = fold(headers)
        length = names.get("content-length", "")
        declared = int(length) if _LENGTH.fullmatch(length) else 0  # the bytes are counted anyway
        return await self._take(method, names, declared, token, read)

    async def _take(self, method: str, headers: Mapping[str, str], size: int, token: str, read: Read) -> int:
        try:
            _check_head(method, headers, size, token)
            event = wire.read_callback(await _read_body(read))
            if self.keys:
                signing.verify(self.keys, headers, event.task_id, self._clock())
        except (BadResponseError, SignatureError) as error:
            return self._report(error.code or HTTPStatus.BAD_REQUEST, error.message, token)
        status = HTTPStatus.OK
        try:
            async with asyncio.timeout(TIMEOUT):
                note = await self._deliver(token, event)
        except Exception as error:  # noqa: BLE001  # whatever it is, the service must try again
            status, note = HTTPStatus.SERVICE_UNAVAILABLE, f"not delivered: {type(error).__name__}: {error}"
        return self._report(status, note, token, event)

    def _report(self, status: int, note: str, token: str, event: CallbackEvent | None = None) -> int:
        """Emit the event; it shows nothing of a body that was not authenticated."""
        task_id = stage = ""
        if event:
            task_id, stage, note = [clean(fact.replace(token, "…")) for fact in (event.task_id, event.stage, note)]
        self._emit(CallbackReceived(task_id, stage, int(status), note))
        return int(status)


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


def _check_head(method: str, headers: Mapping[str, str], size: int, token: str) -> None:
    if method != "POST":
        raise BadResponseError("not a POST", code=HTTPStatus.METHOD_NOT_ALLOWED)
    _check_size(size)
    if headers.get("content-encoding", "").strip().lower() not in {"", "identity"}:
        raise BadResponseError("the body is compressed", code=HTTPStatus.UNSUPPORTED_MEDIA_TYPE)
    if _TOKEN.fullmatch(token) is None:
        raise BadResponseError("no token in the path", code=HTTPStatus.NOT_FOUND)


def _check_size(size: int) -> None:
    if size > MAX_BYTES:
        raise BadResponseError("the body is too large", code=HTTPStatus.REQUEST_ENTITY_TOO_LARGE)


async def _read_body(read: Read) -> bytes:
    body, timeout = bytearray(), asyncio.timeout(TIMEOUT)
    try:
        async with timeout:
            while len(body) <= MAX_BYTES and (piece := await read()):
                body += piece
    except OSError:  # among them TimeoutError, which a lost connection can raise as well
        if timeout.expired():
            raise BadResponseError("the body came too slowly", code=HTTPStatus.REQUEST_TIMEOUT) from None
        raise BadResponseError("the body broke off", code=HTTPStatus.BAD_REQUEST) from None
    _check_size(len(body))
    return bytes(body)


def unwrap(
    body: bytes | str, headers: Mapping[str, str], *, key: str | Secret | Iterable[str | Secret] | None
) -> CallbackEvent:
    """Verify and parse a callback that you have received in your own way.

    If a session should act on it, pass it to ``session.receiver.handle`` instead. The service signs the task id and a
    timestamp, but not the body: for 300 s, whoever has seen one callback can send another body for the same task. So
    treat the result as a hint: answer 200 within 15 s, and follow the task with ``session.track(task_id)``. ::

        def answer(body: bytes, headers: Mapping[str, str]) -> int:
            try:
                event = kie.callbacks.unwrap(body, headers, key=os.environ["KIE_WEBHOOK_KEY"])
            except kie.SignatureError:
                return 401
            except kie.BadResponseError:
                return 400
            print(event.task_id, event.stage)
            return 200

    Args:
        body: the body of the request, not parsed.
        headers: the headers of the request; names in any case.
        key: the account's webhook key, or several, any of which may have signed (for rotation). None to check no
            signature: then anybody may have sent the callback.

    Raises:
        SignatureError: the signature headers are missing or wrong, or their time is more than 300 s off this clock;
            its ``code`` is the status to answer.
        BadResponseError: the body is not a callback of the service, or is larger than 256 KiB.
        SettingsError: a key is empty, or there are none: anybody could sign.
        TypeError: the body is already parsed.
    """
    keys = None if key is None else _keys(key)
    event = wire.read_callback(_raw(body))
    if keys is not None:
        signing.verify(keys, fold(headers.items()), event.task_id, time.time())
    return event


def _keys(key: str | Secret | Iterable[str | Secret]) -> tuple[Secret, ...]:
    given = [key] if isinstance(key, (str, Secret)) else key
    keys = tuple(each if isinstance(each, Secret) else Secret(each) for each in given)
    if not keys or not all(keys):
        raise SettingsError("key is empty: give the account's webhook key, or None to take unsigned callbacks")
    return keys


def _raw(body: object) -> bytes:
    if isinstance(body, str):
        body = body.encode("utf-8", "surrogatepass")
    if not isinstance(body, (bytes, bytearray, memoryview)):
        raise TypeError(f"body is {type(body).__name__}: give the bytes or the text of the request, not parsed")
    if len(body) > MAX_BYTES:
        raise BadResponseError(f"the body of the callback is larger than {MAX_BYTES} bytes")
    return bytes(body)
