"""What the status and the code of an answer mean: a value, an error, or for a submission an unknown outcome. Pure.

``wire`` turns the bytes of an answer into values; ``_client.http_client`` handles answers that never came.

Nearly always the service refuses with HTTP 200 and a code in the body; real HTTP errors and a CDN's HTML pages occur
too. Both count: only 2xx *and* code 200 is a success, and a code that is not known never is.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from types import MappingProxyType
from typing import NamedTuple, TypeVar

from kie_async._protocol import wire
from kie_async._protocol.endpoints import ApiCall
from kie_async.errors import (
    AuthError,
    BadResponseError,
    Charged,
    InsufficientCreditsError,
    InvalidRequestError,
    KeyQuotaError,
    KieError,
    RateLimitedError,
    RefusedError,
    ServerError,
    SubmitUnknownError,
    UnavailableError,
    UnexpectedRedirectError,
)
from kie_async.events import clean

T = TypeVar("T")

OK = 200
_REDIRECTS, _CLIENT_ERRORS, _UNAUTHORIZED, _FORBIDDEN, _SERVER_ERRORS = 300, 400, 401, 403, 500


class Refusal(NamedTuple):
    """What a definite refusal means."""

    kind: type[RefusedError] = RefusedError
    charged: Charged = "no"
    retryable: bool = False


_INVALID = Refusal(InvalidRequestError)
_AUTH = Refusal(AuthError)
_NO_CREDITS = Refusal(InsufficientCreditsError)
_TOO_FAST = Refusal(RateLimitedError, retryable=True)

# A body code in this table is a definite answer: the service refused.
BODY_CODES: Mapping[int, Refusal] = MappingProxyType(
    {
        400: _INVALID,
        401: _AUTH,
        402: _NO_CREDITS,
        403: _AUTH,
        404: _INVALID,
        405: _TOO_FAST,  # sibling services
        409: Refusal(),
        413: _INVALID,
        422: _INVALID,
        429: _TOO_FAST,
        430: _TOO_FAST,
        433: Refusal(KeyQuotaError),
        451: _INVALID,
        455: Refusal(UnavailableError, retryable=True),
        500: Refusal(charged="maybe"),  # can be permanent: "The original Suno task does not exist."
        501: Refusal(charged="maybe"),
        505: Refusal(UnavailableError),
        531: Refusal(),
    }
)
# HTTP statuses that a server, a proxy or a CDN gives without acting. Any other leaves a submission unknown.
HTTP_STATUSES: Mapping[int, Refusal] = MappingProxyType(
    dict.fromkeys((404, 405, 406, 407, 410, 411, 414, 415, 417, 421, 426, 428, 431), Refusal())
    | dict.fromkeys((400, 413, 422, 451), _INVALID)
    | {401: _AUTH, 402: _NO_CREDITS, 403: _AUTH, 429: _TOO_FAST}
)
# Refusals under another code whose words are about the credits: trying again cannot help. Of the codes that are a
# server's failure (500 and above) none is believed to have cost nothing, whatever its words.
_ABOUT_CREDITS = re.compile(
    r"\b(?:credits?|balance)\b[^.]{0,40}\b(?:insufficient|not enough|too low|used up|exhausted)\b"
    r"|(?:\b(?:insufficient|not(?: have)? enough|out of)|n't have enough)\b[^.]{0,20}\b(?:credits?|balance)\b",
    re.IGNORECASE,
)
# What to mind before the same is sent again, whatever the service's words ("please try again later") ask for.
_REMEDY: Mapping[Charged, str] = {
    "no": "",
    "maybe": "; it may be charged all the same: look at the service's own log of tasks before it is sent again",
}
TRANSIENT = frozenset({429, 430, 455})  # refused only for now: the same submission may be sent again


class Response(NamedTuple):
    """An HTTP answer, whole.

    Attributes:
        retry_after: how many seconds its header says to wait, if it says so.
    """

    status: int
    body: bytes
    retry_after: float | None = None


def parse_response(call: ApiCall[T], response: Response) -> T:
    """Return what the answer says.

    Raises:
        KieError: what it says, if that is no success. For a call that spends, anything but a clear refusal is
            ``SubmitUnknownError``.
    """
    if _REDIRECTS <= response.status < _CLIENT_ERRORS:
        message = f"{call.name}: the API answered with a redirect, which is not followed: check base_url"
        charged: Charged = "maybe" if call.spends else "no"
        raise UnexpectedRedirectError(message + _REMEDY[charged], code=response.status, charged=charged)
    try:
        envelope = wire.read_envelope(response.body)
    except BadResponseError as error:
        raise _unread(call, response, error.message) from None
    if envelope.code == OK and response.status < _REDIRECTS:
        return _read(call, envelope)
    if call.terminal_codes and wire.is_record(envelope.data):  # the code speaks of the task, and so does its record
        data = envelope.data if envelope.code not in call.terminal_codes else wire.with_reason(envelope)
        return _read(call, envelope._replace(data=data))
    code = _code(response, envelope)
    if code in call.not_found_codes:
        return call.read(None)
    if envelope.code in call.terminal_codes and response.status < _REDIRECTS:
        return call.read({"state": "fail", "failCode": code, "failMsg": envelope.msg})
    raise _refused(call, response, envelope)


def _code(response: Response, envelope: wire.Envelope) -> int:
    """The code that decides: the body's, unless only the HTTP status says something that is known."""
    code = envelope.code
    if code is None or code == OK or (code not in BODY_CODES and response.status in HTTP_STATUSES):
        return response.status
    return code


def _read(call: ApiCall[T], envelope: wire.Envelope) -> T:
    try:
        return call.read(envelope.data)
    except BadResponseError as error:
        if not call.spends:
            raise
        raise SubmitUnknownError(f"{call.name}: accepted, but {error.message}", code=OK) from None


def _unread(call: ApiCall[T], response: Response, reason: str) -> KieError:
    """What a body that cannot be read means: the HTTP status alone speaks."""
    if response.status < _REDIRECTS and not call.spends:
        return BadResponseError(f"{call.name}: {reason}", code=response.status)
    is_html = response.body.lstrip().startswith(b"<")
    # A CDN or a proxy forbids it before the service has seen it, which answers in JSON. With 403 it may be plain text.
    if response.status == _FORBIDDEN or (response.status == _UNAUTHORIZED and is_html):
        message = f"{call.name}: a page with HTTP status {response.status}, not the service's word on the key: {reason}"
        return (UnavailableError if call.spends else ServerError)(message, code=response.status, retryable=True)
    named = wire.task_id_in(response.body)
    return _refused(call, response, wire.Envelope(msg=reason, data={"taskId": named} if named else None))


def _refused(call: ApiCall[T], response: Response, envelope: wire.Envelope) -> KieError:
    code = _code(response, envelope)
    message = f"{call.name}: {_words(response, envelope)}"
    task_id = _named_task(envelope) if call.spends else None
    refusal = _refusal(call, response.status, envelope)
    if task_id and refusal and (refusal.retryable or refusal.charged != "no"):
        refusal = None  # never sent again beside a task that may be its own
    if refusal is None and call.spends:
        message += "; it may be running and charged, so it is not sent again"
        message += f": session.track({task_id!r}) follows it" if task_id else ""
        return SubmitUnknownError(message, task_id, code)
    if refusal is None:
        return ServerError(message, code=code)
    error = refusal.kind(
        message + _REMEDY[refusal.charged], code=code, charged=refusal.charged, retryable=refusal.retryable
    )
    if isinstance(error, RateLimitedError):
        error.retry_after = response.retry_after
    return error


def _words(response: Response, envelope: wire.Envelope) -> str:
    """Why it is no success, in the service's words if they say why."""
    words = clean(envelope.msg)
    if envelope.code == OK or words.lower() in {"success", "ok"}:
        inner = "no code" if envelope.code is None else f"code {envelope.code}"
        return f"HTTP status {response.status}, but the body says {inner}" + (f" and {words!r}" if words else "")
    return words or "refused without a word"


def _named_task(envelope: wire.Envelope) -> str | None:
    """The task that an answer names although it is no success: it may be running and charged."""
    try:
        return wire.read_task_id(envelope.data)
    except BadResponseError:
        return None


def _refusal(call: ApiCall[T], status: int, envelope: wire.Envelope) -> Refusal | None:
    """The definite refusal that a status, a body code and its words make together; None if they make none."""
    code = envelope.code
    if code is None or code not in BODY_CODES:
        refusal = HTTP_STATUSES.get(status)
    elif code < _SERVER_ERRORS:
        refusal = BODY_CODES[code]
    elif status >= _SERVER_ERRORS or not call.spends:
        return None  # a server's failure, not its decision
    else:
        return BODY_CODES[code]
    return _NO_CREDITS if refusal and _ABOUT_CREDITS.search(envelope.msg) else refusal


def seconds_to_wait(header: str | None, now: datetime) -> float | None:
    """Read a Retry-After header: seconds or a date; None if it says nothing that can be used."""
    if header is None:
        return None
    try:
        seconds = float(header)
    except ValueError:
        try:
            seconds = (parsedate_to_datetime(header).astimezone(UTC) - now).total_seconds()
        except (ValueError, OverflowError):
            return None
    return seconds if math.isfinite(seconds) and seconds >= 0 else None
