"""The faults: a table of all kinds with what each does, and the rule that says when a fault occurs.

To add a fault, write its effect below and a line in ``KINDS``. A kind has an effect for each point where it can occur:
an exchange over HTTP, the timeline of a task, the answer to one poll, or the callbacks of a task.
"""

from __future__ import annotations

import asyncio
import gzip
import socket
import struct
import uuid
from collections.abc import Awaitable, Callable, Iterable, Mapping
from itertools import chain, repeat
from types import MappingProxyType
from typing import Literal, TypeAlias, TypedDict, Unpack, cast, get_args

import attrs
from aiohttp import web

from kie_async.emulator._bodies import MESSAGES, SHAPES, refusal
from kie_async.emulator._tasks import NEVER, Failure, ForgedContent, PlannedCallback, TaskSnapshot, Timeline
from kie_async.models import STAGES

Point: TypeAlias = Literal["submit", "record_info", "callback", "credits", "upload", "download", "download_url"]


class FaultOptions(TypedDict, total=False):
    """The further arguments of ``Fault``; ``KINDS`` says which kind reads which, and the defaults."""

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
    """The effects of a kind of fault."""

    points: tuple[Point, ...]  # where it can occur; the first is the default
    answer: AnswerEffect | None = None  # on an exchange: takes the request and the answer, and returns another answer
    timeline: TimelineEffect | None = None  # on a task, when it is submitted
    poll: PollEffect | None = None  # on what a poll returns
    callbacks: CallbackEffect | None = None  # on the planned callbacks of a task, when it is submitted
    done: bool = False  # whether what was asked for is done (and charged) all the same, unless the fault says otherwise
    goes_on: bool = False  # whether the request is handled after an effect that comes first (`done` is false)


# ---------------------------------------------------------------- exchanges

_PAGE = b"<html><head><title>{status} Bad Gateway</title></head><body><h1>{status} Bad Gateway</h1></body></html>"
_GARBAGE = bytes(range(255, 127, -1)) * 4
_NO_KEY = b"<Error><Code>NoSuchKey</Code></Error>"
_SIGN_IN = b"<html><body>Sign in to the network</body></html>"
_BLOCK = 1 << 16
_BOMB = 64_000_000  # bytes
_ELSEWHERE = "http://127.0.0.1:9/elsewhere"
WHOLE_FILE = web.ResponseKey("whole_file", bytes)  # the file, in an answer to a request with a Range


def _instead(body: bytes, status: int = 200, content_type: str = "application/json") -> AnswerEffect:
    """Answer this, whatever was asked for."""

    async def effect(_request: web.Request, options: FaultOptions, _answer: web.Response) -> Answer:
        code = options.get("status", status)
        content = options.get("body", body).replace(b"{status}", b"%d" % code)
        return web.Response(body=content, status=code, content_type=content_type)

    return effect


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


async def _code(_request: web.Request, options: FaultOptions, _answer: web.Response) -> Answer:
    body = refusal(options.get("code") or 500, options.get("message"))
    return web.json_response(body, status=options.get("status", 200))


async def _redirect(_request: web.Request, options: FaultOptions, _answer: web.Response) -> Answer:
    return web.Response(status=options.get("status", 307), headers={"Location": options.get("url", _ELSEWHERE)})


async def _slow(_request: web.Request, options: FaultOptions, answer: web.Response) -> Answer:
    await asyncio.sleep(options.get("seconds", 5.0))
    return answer


def _content(answer: web.Response) -> bytes:
    return answer.body if isinstance(answer.body, bytes) else b""


async def _stream(
    request: web.Request, answer: web.Response, length: int, pieces: Iterable[bytes], wait: float = 0.0
) -> Answer:
    """Announce a body of some length, and send it in pieces, ``wait`` seconds apart."""
    headers = {name: value for name, value in answer.headers.items() if name != "Content-Length"}
    stream = web.StreamResponse(status=answer.status, headers=headers)
    stream.content_length = length
    stream.force_close()
    await stream.prepare(request)
    for piece in pieces:
        await stream.write(piece)
        await asyncio.sleep(wait)
    return stream


async def _drip(request: web.Request, options: FaultOptions, answer: web.Response) -> Answer:
    body = _content(answer)
    return await _stream(request, answer, len(body), (bytes([byte]) for byte in body), options.get("seconds", 0.4))


async def _huge(request: web.Request, options: FaultOptions, answer: web.Response) -> Answer:
    size = options.get("size", _BOMB)
    blocks = repeat(b" " * _BLOCK, size // _BLOCK)
    return await _stream(request, answer, size, chain(blocks, [b" " * (size % _BLOCK)]))


async def _truncated(request: web.Request, _options: FaultOptions, answer: web.Response) -> Answer:
    body = _content(answer)
    stream = await _stream(request, answer, len(body), [body[: len(body) // 2]])
    _hang_up(request)
    return stream


async def _no_length(request: web.Request, _options: FaultOptions, answer: web.Response) -> Answer:
    body = _content(answer)
    head = f"HTTP/1.1 200 OK\r\nContent-Type: {answer.content_type}\r\nConnection: close\r\n\r\n"
    if request.transport is not None:
        request.transport.write(head.encode() + body[: len(body) // 2])  # aiohttp would announce a length, or chunks
    _hang_up(request)
    return answer


async def _malformed(_request: web.Request, _options: FaultOptions, answer: web.Response) -> Answer:
    return web.Response(body=_content(answer)[:-1], status=answer.status, content_type="application/json")


async def _gzip_bomb(_request: web.Request, options: FaultOptions, answer: web.Response) -> Answer:
    bomb = gzip.compress(b" " * options.get("size", _BOMB), compresslevel=1)
    headers = {"Content-Encoding": "gzip"}
    return web.Response(body=bomb, status=answer.status, headers=headers, content_type="application/json")


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


def _fails(code: int, word: str, *, is_pending: bool = False) -> TimelineEffect:
    """Fail with these, unless the fault gives others; ``is_pending``: the status says PENDING for minutes before."""

    def effect(timeline: Timeline, options: FaultOptions) -> Timeline:
        failure = Failure(
            at=options.get("seconds", timeline.failing),
            code=options.get("code") or code,
            message=options.get("message", MESSAGES[code]),
            word=options.get("word", word),
            pending_for=timeline.pending_for if is_pending else 0.0,
        )
        return attrs.evolve(timeline, failure=timeline.failure or failure)

    return effect


def _reaches_at_once(timeline: Timeline, options: FaultOptions) -> Timeline:
    stage = options.get("stage")
    last = STAGES.index(stage) if stage in STAGES else 0
    times = enumerate((timeline.text, timeline.first, timeline.complete))
    text, first, complete = (0.0 if number <= last else at for number, at in times)
    return attrs.evolve(timeline, text=text, first=first, complete=complete)


# ---------------------------------------------------------------- callbacks

_Planned: TypeAlias = list[PlannedCallback]


def _of_each(change: Callable[[PlannedCallback, FaultOptions], _Planned]) -> CallbackEffect:
    """Change each callback of the stage that the fault is narrowed to, or of all."""

    def effect(planned: _Planned, options: FaultOptions) -> _Planned:
        changed = (
            change(each, options) if each.forged is None and options.get("stage") in {None, each.stage} else [each]
            for each in planned
        )
        return list(chain.from_iterable(changed))

    return effect


def _reordered(planned: _Planned, _options: FaultOptions) -> _Planned:
    """Send all at the last of their times, so that none reports a stage that is not reached yet."""
    last = max((each.at for each in planned), default=0.0)
    return [attrs.evolve(each, at=last) for each in reversed(planned)]


def _late(callback: PlannedCallback, options: FaultOptions) -> _Planned:
    return [attrs.evolve(callback, at=callback.at + options.get("seconds", 30.0))]


def _early(planned: _Planned, _options: FaultOptions) -> _Planned:
    return [attrs.evolve(each, early=each.forged is None) for each in planned]


def _forged(planned: _Planned, options: FaultOptions) -> _Planned:
    code = options.get("code")
    content = ForgedContent(
        code, options.get("message"), options.get("url", _ELSEWHERE), signed=options.get("signed", True)
    )
    stage = options.get("stage") or ("complete" if code is None else "error")
    return [PlannedCallback(options.get("seconds", 0.0), stage, forged=content), *planned]


# ---------------------------------------------------------------- the table

EXCHANGES: tuple[Point, ...] = tuple(point for point in get_args(Point) if point != "callback")

# Where an exchange is done (`done`), it is charged too. A callback fault can be narrowed to one `stage`.
KINDS: Mapping[str, FaultKind] = MappingProxyType(
    {
        # of an exchange
        "lost": FaultKind(  # no answer
            (*EXCHANGES, "callback"), answer=_close, callbacks=_of_each(lambda _one, _options: []), done=True
        ),
        "reset": FaultKind(EXCHANGES, answer=_reset, done=True),  # done, then the connection is reset
        "drop": FaultKind(EXCHANGES, answer=_close),  # closed before anything is done
        "html": FaultKind(
            EXCHANGES, answer=_instead(_PAGE, 502, "text/html")
        ),  # a proxy's HTML page with the HTTP status `status` (502)
        "code": FaultKind(EXCHANGES, answer=_code),  # the body code `code` (500), `message`, HTTP `status` (200)
        "answer": FaultKind(EXCHANGES, answer=_instead(b""), done=True),  # the bytes `body`, HTTP status `status` (200)
        "redirect": FaultKind(EXCHANGES, answer=_redirect),  # to `url`, HTTP status `status` (307)
        "slow": FaultKind(EXCHANGES, answer=_slow, done=True, goes_on=True),  # `seconds` (5) late
        "drip": FaultKind(EXCHANGES, answer=_drip, done=True),  # byte by byte, `seconds` (0.4) apart
        "truncated": FaultKind(EXCHANGES, answer=_truncated, done=True),  # half of the announced body, then closed
        "garbage": FaultKind(EXCHANGES, answer=_instead(_GARBAGE), done=True),  # bytes that mean nothing
        "malformed": FaultKind(EXCHANGES, answer=_malformed, done=True),  # JSON with its last brace missing
        "huge": FaultKind(EXCHANGES, answer=_huge, done=True),  # `size` bytes (64 MB), streamed
        "gzip_bomb": FaultKind(EXCHANGES, answer=_gzip_bomb, done=True),  # unpacks to `size` bytes (64 MB)
        # of a task
        "stuck": FaultKind(  # never leaves PENDING
            ("submit",), timeline=lambda plan, _options: attrs.evolve(plan, text=NEVER, first=NEVER, complete=NEVER)
        ),
        "refused": FaultKind(("submit",), timeline=_fails(413, "CREATE_TASK_FAILED", is_pending=True)),
        "failed": FaultKind(("submit",), timeline=_fails(501, "GENERATE_AUDIO_FAILED")),  # with `word` and `code`
        "no_audio": FaultKind(  # null until `seconds` after SUCCESS
            ("submit",),
            timeline=lambda plan, options: attrs.evolve(plan, audio=plan.complete + options.get("seconds", NEVER)),
        ),
        "callback_exception": FaultKind(  # its audio is complete
            ("submit",), timeline=lambda plan, _options: attrs.evolve(plan, callback_exception=True)
        ),
        "invisible": FaultKind(  # to polls, for `seconds` (5); or to this poll
            ("submit", "record_info"),
            timeline=lambda plan, options: attrs.evolve(plan, visible=options.get("seconds", 5.0)),
            poll=lambda _seen, _options: None,
        ),
        # of a poll
        "backwards": FaultKind(("record_info",), poll=lambda _seen, _options: TaskSnapshot()),  # PENDING again
        "unknown_word": FaultKind(  # the status `word` (MIXING)
            ("record_info",),
            poll=lambda seen, options: attrs.evolve(seen, word=options.get("word", "MIXING"), ended=None),
        ),
        "shape": FaultKind(  # the jobs route has its tracks elsewhere: `shape` (object); callbacks look like records
            ("record_info", "callback"),
            poll=lambda seen, options: attrs.evolve(seen, shape=options.get("shape", "object")),
            callbacks=_of_each(lambda one, _options: [attrs.evolve(one, as_record=True)]),
        ),
        # of the callbacks of a task
        "doubled": FaultKind(("callback",), callbacks=_of_each(lambda one, _options: [one, one])),  # sent twice
        "reordered": FaultKind(("callback",), callbacks=_reordered),  # sent in reverse order
        "late": FaultKind(("callback",), callbacks=_of_each(_late)),  # sent `seconds` (30) late
        "early": FaultKind(("callback",), timeline=_reaches_at_once, callbacks=_early),  # before the answer
        "forged": FaultKind(("callback",), callbacks=_forged),  # a false one: `seconds`, `code`, `url`
        # of a download
        "empty": FaultKind(("download",), answer=_instead(b"", 200, "audio/mpeg"), done=True),  # as old streams give
        "expired": FaultKind(("download",), answer=_instead(_NO_KEY, 404, "application/xml")),
        "page": FaultKind(("download",), answer=_instead(_SIGN_IN, 200, "text/html")),
        "new_etag": FaultKind(("download",), answer=_new_etag, done=True),  # another ETag each time
        "ignores_range": FaultKind(("download",), answer=_ignores_range, done=True),  # the whole file
        "wrong_range": FaultKind(("download",), answer=_wrong_range, done=True),  # another part than was asked for
        "no_length": FaultKind(("download",), answer=_no_length, done=True),  # half the file, no length, then closed
    }
)


# ---------------------------------------------------------------- the rule


@attrs.frozen(init=False, hash=False)
class Fault:
    """A fault, and the rule that says when it occurs.

    Attributes:
        kind: a name in ``KINDS``, which describes each.
        on: the point where it occurs: submit, record_info, callback, credits, upload, download or download_url; by
            default the first that ``KINDS`` has for the kind.
        nth: it occurs only at the nth event at that point, counted from 1 since the fault was added.
        times: it occurs at most that often.
        probability: how probably it occurs at each event, from 0 to 1.
        task_id: it occurs only for this task.
        done: whether the request is first carried out (and charged); the default depends on the kind.
        options: the further arguments, by name; see ``FaultOptions``.

    Raises:
        ValueError: there is no such kind or shape, or the kind cannot occur at that point.
    """

    kind: str
    on: Point
    nth: int | None
    times: int | None
    probability: float
    task_id: str | None
    done: bool
    options: FaultOptions

    def __init__(  # noqa: PLR0913  # each is one part of the rule, by name
        self,
        kind: str,
        on: Point | None = None,
        *,
        nth: int | None = None,
        times: int | None = None,
        probability: float = 1.0,
        task_id: str | None = None,
        done: bool | None = None,
        **options: Unpack[FaultOptions],
    ) -> None:
        if kind not in KINDS:
            raise ValueError(f"no fault is called {kind!r}: give one of {', '.join(KINDS)}")
        points = KINDS[kind].points
        if on is not None and on not in points:
            raise ValueError(f"{kind!r} cannot occur at {on!r}, only at {', '.join(points)}")
        if options.get("shape", "object") not in SHAPES:
            raise ValueError(f"no shape is called {options['shape']!r}: give one of {', '.join(SHAPES)}")
        given = cast("FaultOptions", {name: value for name, value in options.items() if value is not None})
        is_done = KINDS[kind].done if done is None else done
        self.__attrs_init__(kind, on or points[0], nth, times, probability, task_id, is_done, given)

    @property
    def effects(self) -> FaultKind:
        """The effects of its kind."""
        return KINDS[self.kind]
