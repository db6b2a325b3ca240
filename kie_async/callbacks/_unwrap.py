"""Callbacks that were received without this library: verified and parsed."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping

from kie_async._protocol import signing, wire
from kie_async._protocol.signing import Check
from kie_async.callbacks._receiver import MAX_BYTES, explain, fold
from kie_async.errors import BadResponseError, SettingsError, SignatureError
from kie_async.models import CallbackEvent
from kie_async.settings import Secret

_REMEDIES = {
    Check.MISSING: "pass on all headers of the request, and switch the webhook key on in the account's settings",
    Check.MALFORMED: "the service did not send this",
    Check.STALE: "set this machine's clock; if it is right, the callback is a replay",
    Check.WRONG: "check that the key is the account's webhook key; if it is, the service did not send this",
}


def unwrap(
    body: bytes | str, headers: Mapping[str, str], *, key: str | Secret | Iterable[str | Secret] | None
) -> CallbackEvent:
    """Verify a callback and return what it says, for those who receive callbacks in their own way.

    Pass ``session.receiver.handle`` the callback instead where a session is to hear of it. The service signs the task
    id and a timestamp, but not the body: whoever has seen one callback can send another body for the same task for
    300 s. So treat the result as a hint, answer 200 within 15 s, and ask for the task: ``session.track(task_id)``. ::

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
        body: as received, not parsed.
        headers: of the request; names in any case.
        key: the account's webhook key, or several of which any may have signed (rotation). None: the signature is not
            checked, so anybody may have sent it.

    Raises:
        SignatureError: the signature headers are missing or wrong, or their time is more than 300 s from this clock.
        BadResponseError: the body is no callback of the service, or larger than 256 KiB.
        SettingsError: a key is empty, or the sequence of keys is: anybody could sign.
        TypeError: the body was parsed already.
    """
    keys = _keys(key)
    event = wire.read_callback(_raw(body))
    if keys is not None:
        _authenticate(keys, fold(headers.items()), event.task_id)
    return event


def _keys(key: str | Secret | Iterable[str | Secret] | None) -> tuple[Secret, ...] | None:
    if key is None:
        return None
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


def _authenticate(keys: tuple[Secret, ...], headers: Mapping[str, str], task_id: str) -> None:
    now = time.time()
    verdict = signing.check(keys, headers, task_id, now)
    if verdict is not Check.GOOD:
        raise SignatureError(f"the callback has {explain(verdict, headers, now)}: {_REMEDIES[verdict]}")
