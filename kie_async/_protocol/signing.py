"""Signatures of callbacks: base64 of HMAC-SHA256 over ``<task_id>.<timestamp>``. ``callbacks`` refuses by it.

The recipe is that of kie.ai's page "Webhook Security"; a vector stands in ``tests/samples``. The body is not
signed, nor the stage: a valid signature proves only that the service sent *something* about this task at this
second. So a callback is a hint, and record-info decides.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
import time
from collections.abc import Iterable, Mapping
from functools import lru_cache

from kie_async.errors import SettingsError, SignatureError
from kie_async.settings import Secret

TIMESTAMP_HEADER = "X-Webhook-Timestamp"
SIGNATURE_HEADER = "X-Webhook-Signature"
TOLERANCE = 300.0  # seconds, both ways: the service states none

_TIMESTAMP, _SIGNATURE = TIMESTAMP_HEADER.lower(), SIGNATURE_HEADER.lower()
_SECONDS = re.compile(r"[0-9]{1,12}")  # int() would take "1_7", " 17 " and other scripts' digits


def sign(key: Secret, task_id: str, timestamp: str) -> bytes:
    """Return the signature, as it stands in the header; an empty key is a ``SettingsError``."""
    if not key:
        raise SettingsError("the webhook key is empty: anybody could sign with it")
    signing = _keyed(key).copy()
    signing.update(f"{task_id}.{timestamp}".encode())
    return base64.b64encode(signing.digest())


@lru_cache(maxsize=8)
def _keyed(key: Secret) -> hmac.HMAC:
    """The part of every signature that only depends on the key, and takes the most of its time."""
    bare = key.reveal().encode("utf-8", "surrogateescape")  # as it stood in the environment
    return hmac.new(bare, digestmod=hashlib.sha256)


def sign_callback(key: str, task_id: str, *, timestamp: int | None = None) -> dict[str, str]:
    """Make the two headers that the service would send, for tests of your own callback handler.

    Args:
        key: the webhook key.
        task_id: the task the callback is about.
        timestamp: unix seconds; now by default.

    Raises:
        SettingsError: the key is empty.
    """
    moment = str(int(time.time()) if timestamp is None else timestamp)
    signature = sign(Secret(key), task_id, moment).decode()
    return {TIMESTAMP_HEADER: moment, SIGNATURE_HEADER: signature}


def verify(keys: Iterable[Secret], headers: Mapping[str, str], task_id: str, now: float) -> None:
    """Refuse a callback that the service has not signed, or not now.

    Args:
        keys: any of them may have signed (rotation).
        headers: names in lower case.
        task_id: as read from the body.
        now: unix seconds on this clock.

    Raises:
        SignatureError: its ``code`` is the HTTP status to answer.
    """
    timestamp = headers.get(_TIMESTAMP)
    signature = headers.get(_SIGNATURE)
    if not timestamp or not signature:
        remedy = "pass on all headers of the request, and switch the webhook key on in the account's settings"
        raise SignatureError(f"the callback has no signature headers: {remedy}", code=401)
    if _SECONDS.fullmatch(timestamp) is None:
        raise SignatureError("the callback has a malformed timestamp: the service did not send this", code=400)
    skew = abs(now - int(timestamp))
    if skew > TOLERANCE:
        remedy = "set this machine's clock; if it is right, the callback is a replay"
        raise SignatureError(f"the callback is signed for another time, clock skew {skew:.0f} s: {remedy}", code=401)
    given = signature.encode("utf-8", "replace")  # compare_digest takes no text beyond ASCII
    # A list, so that the time taken does not tell which key matched.
    matches = [hmac.compare_digest(sign(key, task_id, timestamp), given) for key in keys if key]
    if not any(matches):
        remedy = "check that the key is the account's webhook key; if it is, the service did not send this"
        raise SignatureError(f"the callback has a wrong signature: {remedy}", code=401)
