"""What can go wrong: one table of all kinds of faults, and what each does.

To add a fault, write its effect below and a line in ``KINDS``. An effect is one of four functions:

- on an exchange over HTTP: takes the request and the answer, and returns another answer;
- on the timeline of a task, when it is submitted;
- on what one poll returns of a task;
- on the planned callbacks of a task, when it is submitted.

A kind has one for each of the points where it can occur. How often it occurs is decided by ``_faults``.
"""

from __future__ import annotations

import asyncio
import gzip
import socket
import struct
import uuid
from collections.abc import Awaitable, Callable, Mapping
from types import MappingProxyType
from typing import Literal, TypeAlias, TypedDict, get_args

import attrs
from aiohttp import web

from kie_async.emulator._refusals import refusal
from kie_async.emulator._timeline import NEVER, Failure, ForgedContent, PlannedCallback, TaskSnapshot, Timeline
from kie_async.models import STAGES

Point: TypeAlias = Literal["submit", "record_info", "callback", "credits", "upload", "download", "download_url"]

# Where a finished task of the jobs route has its tracks: all of these are reported or documented.
SHAPES: tuple[str, ...] = (
    "data",  # resultJson {"data": [...]}, and the same in response: extend
    "envelope",  # resultJson {"code": 200, "data": [...]}
    "object",  # resultJson {"resultUrls": [...], "resultObject": {"data": [...]}}: upload-and-extend-audio
    "urls",  # bare addresses alone, in resultJson and in response
)


class FaultOptions(TypedDict, total=False):
    """What a fault can be given besides its kind; ``KINDS`` says which kind reads which, and its default."""

    stage: str | None  # only this stage of the callbacks: text, first, complete, error
    code: int | str | None  # the body code; text is sent as text
    message: str  # the words beside the code
    status: int  # the HTTP status
    word: str  # the status word of record-info
    shape: str  # where the tracks are, one of SHAPES
    seconds: float  # how late or how long
    size: int  # how many bytes
    url: str  # where to
    body: bytes  # the answer itself
    signed: bool  # whether a forged callback bears a good signature


Answer: TypeAlias = web.StreamResponse
AnswerEffect: TypeAlias = Callable[[web.Request, FaultOptions, web.Response], Awaitable[Answer]]
TimelineEffect: TypeAlias = Callable[[Timeline, FaultOptions], Timeline]
PollEffect: TypeAlias = Callable[[TaskSnapshot, FaultOptions], TaskSnapshot | None]
CallbackEffect: TypeAlias = Callable[[list[PlannedCallback], FaultOptions], list[PlannedCallback]]


@attrs.frozen
class FaultKind:
    """What a kind of fault does.

    Attributes:
        points: where it can occur; the first is the default.
        answer: its effect on an exchange.
        timeline: its effect on the timeline of a task.
        poll: its effect on what a poll returns.
        callbacks: its effect on the callbacks of a task.
        done: whether what was asked for is done (and charged) all the same, unless the fault says otherwise.
        goes_on: whether the request is handled after an effect that comes first (``done`` is false).
    """

    points: tuple[Point, ...]
    answer: AnswerEffect | None = None
    timeline: TimelineEffect | None = None
    poll: PollEffect | None = None
    callbacks: CallbackEffect | None = None
    done: bool = False
    goes_on: bool = False


# ---------------------------------------------------------------- exchanges

_PAGE = (
    "<html><head><title>{status} Bad Gateway</title></head><body><center><h1>{status} Bad Gateway</h1></center>"
    "<hr><center>cloudflare</center></body></html>"
)
_BLOCK = 1 << 16
_BOMB = 64_000_000  # bytes
_ELSEWHERE = "http://127.0.0.1:9/elsewhere"
WHOLE_FILE = web.ResponseKey("whole_file", bytes)  # the file, in an answer to a request with a Range


def _hang_up(request: web.Request) -> None:
    if request.transport is not None:
        request.transport.close()


async def _close(request: web.Request, _options: FaultOptions, answer: web.Response) -> Answer:
    await request.read()  # unread bytes would turn the close into a reset
    _hang_up(request)
    return answer


async def _reset(request: web.Request, _options: FaultOptions, answer: web.Response) -> Answer:
    transport = request.transport
    if transport is not None:
        linger_not = struct.pack("ii", 1, 0)
        transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger_not)
        transport.abort()
    return answer


async def _html(_request: web.Request, options: FaultOptions, _answer: web.Response) -> Answer:
    status = options.get("status", 502)
    return web.Response(status=status, text=_PAGE.format(status=status), content_type="text/html")


async def _code(_request: web.Request, options: FaultOptions, _answer: web.Response) -> Answer:
    body = refusal(options.get("code") or 500, options.get("message"))
    return web.json_response(body, status=options.get("status", 200))


async def _bytes(_request: web.Request, options: FaultOptions, _answer: web.Response) -> Answer:
    return web.Response(
        body=options.get("body", b""), status=options.get("status", 200), content_type="application/json"
    )


async def _redirect(_request: web.Request, options: FaultOptions, _answer: web.Response) -> Answer:
    return web.Response(status=options.get("status", 307), headers={"Location": options.get("url", _ELSEWHERE)})


async def _slow(_request: web.Request, options: FaultOptions, answer: web.Response) -> Answer:
    await asyncio.sleep(options.get("seconds", 5.0))
    return answer


def _content(answer: web.Response) -> bytes:
    return answer.body if isinstance(answer.body, bytes) else b""


async def _begin(request: web.Request, answer: web.Response, length: int) -> web.StreamResponse:
    """Send the head of an answer whose body follows in pieces."""
    headers = {name: value for name, value in answer.headers.items() if name != "Content-Length"}
    stream = web.StreamResponse(status=answer.status, headers=headers)
    stream.content_length = length
    stream.force_close()
    await stream.prepare(request)
    return stream


async def _drip(request: web.Request, options: FaultOptions, answer: web.Response) -> Answer:
    body = _content(answer)
    stream = await _begin(request, answer, len(body))
    for position in range(len(body)):
        await stream.write(body[position : position + 1])
        await asyncio.sleep(options.get("seconds", 0.4))
    return stream


async def _truncated(request: web.Request, _options: FaultOptions, answer: web.Response) -> Answer:
    body = _content(answer)
    stream = await _begin(request, answer, len(body))
    await stream.write(body[: len(body) // 2])
    _hang_up(request)
    return stream


async def _no_length(request: web.Request, _options: FaultOptions, answer: web.Response) -> Answer:
    body = _content(answer)
    head = f"HTTP/1.1 200 OK\r\nContent-Type: {answer.content_type}\r\nConnection: close\r\n\r\n"
    if request.transport is not None:
        request.transport.write(head.encode() + body[: len(body) // 2])  # aiohttp would announce a length, or chunks
    _hang_up(request)
    return answer


async def _garbage(_request: web.Request, _options: FaultOptions, answer: web.Response) -> Answer:
    return web.Response(body=bytes(range(255, 127, -1)) * 4, status=answer.status, content_type="application/json")


async def _malformed(_request: web.Request, _options: FaultOptions, answer: web.Response) -> Answer:
    return web.Response(body=_content(answer)[:-1], status=answer.status, content_type="application/json")


async def _huge(request: web.Request, options: FaultOptions, answer: web.Response) -> Answer:
    size = options.get("size", _BOMB)
    stream = await _begin(request, answer, size)
    for position in range(0, size, _BLOCK):
        await stream.write(b" " * min(_BLOCK, size - position))
    return stream


async def _gzip_bomb(_request: web.Request, options: FaultOptions, answer: web.Response) -> Answer:
    bomb = gzip.compress(b" " * options.get("size", _BOMB), compresslevel=1)
    headers = {"Content-Encoding": "gzip"}
    return web.Response(body=bomb, status=answer.status, headers=headers, content_type="application/json")


async def _empty(_request: web.Request, _options: FaultOptions, answer: web.Response) -> Answer:
    return web.Response(body=b"", content_type=answer.content_type)


async def _expired(_request: web.Request, _options: FaultOptions, _answer: web.Response) -> Answer:
    return web.Response(status=404, text="<Error><Code>NoSuchKey</Code></Error>", content_type="application/xml")


async def _page(_request: web.Request, _options: FaultOptions, _answer: web.Response) -> Answer:
    return web.Response(text="<html><body>Sign in to the network</body></html>", content_type="text/html")


async def _new_etag(_request: web.Request, _options: FaultOptions, answer: web.Response) -> Answer:
    answer.headers["ETag"] = f'"{uuid.uuid4().hex}"'
    return answer


async def _ignores_range(_request: web.Request, _options: FaultOptions, answer: web.Response) -> Answer:
    if WHOLE_FILE not in answer:
        return answer
    headers = {name: value for name, value in answer.headers.items() if name not in {"Content-Range", "Content-Length"}}
    return web.Response(body=answer[WHOLE_FILE], headers=headers)


async def _wrong_range(_request: web.Request, _options: FaultOptions, answer: web.Response) -> Answer:
    if "Content-Range" in answer.headers:
        span, _, size = answer.headers["Content-Range"].removeprefix("bytes ").partition("/")
        start, end = map(int, span.split("-"))
        answer.headers["Content-Range"] = f"bytes {start + 1}-{end + 1}/{size}"
    return answer


# ---------------------------------------------------------------- timelines

REFUSED = "Uploaded audio matches existing work of art."
FAILED = "Audio generation failed"


def _fails(timeline: Timeline, options: FaultOptions, usual: Failure) -> Timeline:
    failure = Failure(
        at=options.get("seconds", timeline.failing),
        code=options.get("code") or usual.code,
        message=options.get("message", usual.message),
        word=options.get("word", usual.word),
        pending_for=usual.pending_for,
    )
    return attrs.evolve(timeline, failure=timeline.failure or failure)


def _failed(timeline: Timeline, options: FaultOptions) -> Timeline:
    return _fails(timeline, options, Failure(0, 501, FAILED))


def _refused(timeline: Timeline, options: FaultOptions) -> Timeline:
    return _fails(timeline, options, Failure(0, 413, REFUSED, "CREATE_TASK_FAILED", timeline.pending_for))


def _stuck(timeline: Timeline, _options: FaultOptions) -> Timeline:
    return attrs.evolve(timeline, text=NEVER, first=NEVER, complete=NEVER)


def _no_audio(timeline: Timeline, options: FaultOptions) -> Timeline:
    return attrs.evolve(timeline, audio=timeline.complete + options.get("seconds", NEVER))


def _invisible(timeline: Timeline, options: FaultOptions) -> Timeline:
    return attrs.evolve(timeline, visible=options.get("seconds", 5.0))


def _callback_exception(timeline: Timeline, _options: FaultOptions) -> Timeline:
    return attrs.evolve(timeline, callback_exception=True)


def _reaches_at_once(timeline: Timeline, options: FaultOptions) -> Timeline:
    stage = options.get("stage")
    last = STAGES.index(stage) if stage in STAGES else 0
    times = enumerate((timeline.text, timeline.first, timeline.complete))
    text, first, complete = (0.0 if number <= last else at for number, at in times)
    return attrs.evolve(timeline, text=text, first=first, complete=complete)


# ---------------------------------------------------------------- polls


def _unknown(_seen: TaskSnapshot, _options: FaultOptions) -> None:
    return None


def _unknown_word(seen: TaskSnapshot, options: FaultOptions) -> TaskSnapshot:
    return attrs.evolve(seen, word=options.get("word", "MIXING"), ended=None)


def _shape(seen: TaskSnapshot, options: FaultOptions) -> TaskSnapshot:
    return attrs.evolve(seen, shape=options.get("shape", "object"))


# ---------------------------------------------------------------- callbacks

_Planned: TypeAlias = list[PlannedCallback]


def _concerns(options: FaultOptions, callback: PlannedCallback) -> bool:
    return callback.forged is None and options.get("stage") in {None, callback.stage}


def _never_sent(planned: _Planned, options: FaultOptions) -> _Planned:
    return [each for each in planned if not _concerns(options, each)]


def _doubled(planned: _Planned, options: FaultOptions) -> _Planned:
    return [each for each in planned for _ in range(2 if _concerns(options, each) else 1)]


def _reordered(planned: _Planned, _options: FaultOptions) -> _Planned:
    """Send all at the last of their times, so that none reports a stage that is not reached yet."""
    last = max((each.at for each in planned), default=0.0)
    return [attrs.evolve(each, at=last) for each in reversed(planned)]


def _late(planned: _Planned, options: FaultOptions) -> _Planned:
    wait = options.get("seconds", 30.0)
    return [attrs.evolve(each, at=each.at + wait) if _concerns(options, each) else each for each in planned]


def _early(planned: _Planned, _options: FaultOptions) -> _Planned:
    return [attrs.evolve(each, early=each.forged is None) for each in planned]


def _as_record(planned: _Planned, options: FaultOptions) -> _Planned:
    return [attrs.evolve(each, as_record=each.as_record or _concerns(options, each)) for each in planned]


def _forged(planned: _Planned, options: FaultOptions) -> _Planned:
    code = options.get("code")
    content = ForgedContent(
        code, options.get("message"), options.get("url", _ELSEWHERE), signed=options.get("signed", True)
    )
    stage = options.get("stage") or ("complete" if code is None else "error")
    return [PlannedCallback(options.get("seconds", 0.0), stage, forged=content), *planned]


# ---------------------------------------------------------------- the table

EXCHANGES: tuple[Point, ...] = tuple(point for point in get_args(Point) if point != "callback")

KINDS: Mapping[str, FaultKind] = MappingProxyType(
    {
        # of an exchange; where it is done, it is charged too
        "lost": FaultKind((*EXCHANGES, "callback"), answer=_close, callbacks=_never_sent, done=True),  # no answer
        "reset": FaultKind(EXCHANGES, answer=_reset, done=True),  # done, then the connection is reset
        "drop": FaultKind(EXCHANGES, answer=_close),  # closed before anything is done
        "html": FaultKind(EXCHANGES, answer=_html),  # a proxy's HTML page with the HTTP status `status` (502)
        "code": FaultKind(EXCHANGES, answer=_code),  # the body code `code` (500), `message`, HTTP `status` (200)
        "answer": FaultKind(EXCHANGES, answer=_bytes, done=True),  # the bytes `body`, HTTP status `status` (200)
        "redirect": FaultKind(EXCHANGES, answer=_redirect),  # to `url`, HTTP status `status` (307)
        "slow": FaultKind(EXCHANGES, answer=_slow, done=True, goes_on=True),  # `seconds` (5) late
        "drip": FaultKind(EXCHANGES, answer=_drip, done=True),  # byte by byte, `seconds` (0.4) apart
        "truncated": FaultKind(EXCHANGES, answer=_truncated, done=True),  # half of the announced body, then closed
        "garbage": FaultKind(EXCHANGES, answer=_garbage, done=True),  # bytes that mean nothing
        "malformed": FaultKind(EXCHANGES, answer=_malformed, done=True),  # JSON with its last brace missing
        "huge": FaultKind(EXCHANGES, answer=_huge, done=True),  # `size` bytes (64 MB), streamed
        "gzip_bomb": FaultKind(EXCHANGES, answer=_gzip_bomb, done=True),  # unpacks to `size` bytes (64 MB)
        # of a task
        "stuck": FaultKind(("submit",), timeline=_stuck),  # never leaves PENDING
        "refused": FaultKind(("submit",), timeline=_refused),  # PENDING with `code` (413) for minutes
        "failed": FaultKind(("submit",), timeline=_failed),  # with `word` (GENERATE_AUDIO_FAILED) and `code` (501)
        "no_audio": FaultKind(("submit",), timeline=_no_audio),  # null until `seconds` after SUCCESS
        "callback_exception": FaultKind(("submit",), timeline=_callback_exception),  # its audio is complete
        "invisible": FaultKind(("submit", "record_info"), timeline=_invisible, poll=_unknown),  # for `seconds` (5)
        # of a poll
        "backwards": FaultKind(("record_info",), poll=lambda _seen, _options: TaskSnapshot()),  # PENDING again
        "unknown_word": FaultKind(("record_info",), poll=_unknown_word),  # the status `word` (MIXING)
        "shape": FaultKind(("record_info", "callback"), poll=_shape, callbacks=_as_record),  # `shape` (object)
        # of the callbacks of a task; `stage` narrows it to one
        "doubled": FaultKind(("callback",), callbacks=_doubled),  # sent twice
        "reordered": FaultKind(("callback",), callbacks=_reordered),  # sent in reverse order
        "late": FaultKind(("callback",), callbacks=_late),  # sent `seconds` (30) late
        "early": FaultKind(("callback",), timeline=_reaches_at_once, callbacks=_early),  # before the answer
        "forged": FaultKind(("callback",), callbacks=_forged),  # a false one: `seconds`, `code`, `url`
        # of a download
        "empty": FaultKind(("download",), answer=_empty, done=True),  # no bytes, as old stream addresses give
        "expired": FaultKind(("download",), answer=_expired),  # HTTP 404
        "page": FaultKind(("download",), answer=_page),  # HTTP 200 with an HTML page
        "new_etag": FaultKind(("download",), answer=_new_etag, done=True),  # another ETag each time
        "ignores_range": FaultKind(("download",), answer=_ignores_range, done=True),  # the whole file
        "wrong_range": FaultKind(("download",), answer=_wrong_range, done=True),  # another part than was asked for
        "no_length": FaultKind(("download",), answer=_no_length, done=True),  # half the file, no length, then closed
    }
)
