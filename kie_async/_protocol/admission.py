"""What a session refuses before it spends, and what it only notices: pure, but for what a session remembers.

A request obeys ``_protocol.request_rules`` since it was built. The checks here need the session's settings, the tasks
that it knows, or how its last tasks have ended.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from urllib.parse import urlsplit

from kie_async._protocol.address_rules import unreachable
from kie_async._protocol.request_rules import MODELS, MODELS_WITH_PERSONA_MODEL, OLDER, is_blank, is_url, may_be_new
from kie_async._protocol.wire import BARE_ID, TASK_ID
from kie_async._text import clock, count_of
from kie_async.errors import (
    InvalidRequestError,
    KieError,
    Problem,
    RefusedError,
    SubmitUnknownError,
    TaskFailedError,
    TaskNotFoundError,
    TooManyFailuresError,
    invalid_request,
)
from kie_async.events import Notice, Observer, Topic, clean
from kie_async.models import ExtendRequest, Request, Track, UploadExtendRequest
from kie_async.settings import Settings

# ---------------------------------------------------------------- what a session remembers


class RecentSet:
    """Remembers the latest texts that were added, up to a limit."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._members: dict[str, None] = {}  # in the order in which they were added

    def __contains__(self, member: str) -> bool:
        return member in self._members

    def add(self, member: str) -> None:
        """Remember a text; one that is known keeps its age."""
        self._members[member] = None
        if len(self._members) > self._limit:
            del self._members[next(iter(self._members))]

    def discard(self, member: str) -> None:
        """Forget a text, if it is known."""
        self._members.pop(member, None)


class FailureStreak:
    """Counts the tasks that failed since the last success, and forbids submissions when there are too many.

    A submission that came to no task, and may have been charged all the same, counts as one that failed.

    Tasks that are under way when the limit is reached go on; if one of them succeeds, submissions are allowed again.
    A limit of 0 or None is none.

    Attributes:
        refused: the error of the first submission that was forbidden.
    """

    def __init__(self, limit: int | None) -> None:
        self._limit = limit
        self._count = 0
        self._last: KieError | None = None
        self.refused: TooManyFailuresError | None = None

    def failed(self, error: KieError | None) -> None:
        """Count the end of a task, or of a submission that may have been charged, if this is one."""
        is_lost = isinstance(error, (RefusedError, SubmitUnknownError)) and error.charged == "maybe"
        if is_lost or isinstance(error, (TaskFailedError, TaskNotFoundError)):
            self._count += 1
            self._last = error

    def succeeded(self) -> None:
        """Begin to count anew."""
        self._count = 0

    def check(self) -> None:
        """Raise TooManyFailuresError if nothing more may be submitted."""
        if self.refused is None and self._last is not None and self._limit and self._count >= self._limit:
            last = clean(str(self._last))
            self.refused = TooManyFailuresError(
                f"{count_of(self._count, 'task')} failed in a row, the last with: {last}. Nothing more is submitted: "
                "see what is wrong with them or with the service (Settings.max_consecutive_failures sets the limit)"
            )
        if self.refused is not None:
            raise copy.copy(self.refused)


# ---------------------------------------------------------------- what it refuses

_MAX_TASKS = 10_000  # ids of tasks that are remembered
_MAX_NOTICES = 1_000


class Admission:
    """Checks requests for a session, and emits each notice of what is pointless or uncertain once."""

    def __init__(self, settings: Settings, emit: Observer) -> None:
        self._settings = settings
        self._emit = emit
        self._emitted = RecentSet(_MAX_NOTICES)
        self._tasks = RecentSet(_MAX_TASKS)

    def check(self, request: Request, *, ready: bool = False) -> None:
        """Refuse a request that this session must not pay for, and emit notices about it.

        It is ``ready`` if it goes out now: what is not known of its source will not be known any more.

        Raises:
            InvalidRequestError: with every problem; nothing was spent.
        """
        if problems := list(_find_problems(request, self._settings, ready=ready)):
            raise invalid_request(*problems)
        for notice in _find_notices(request, self._settings):
            self._emit_once(notice)

    def notify(self, note: str) -> None:
        """Emit a notice, unless it was emitted before."""
        self._emit_once(Notice("", note))

    def _emit_once(self, notice: Notice) -> None:
        if notice.note not in self._emitted:
            self._emitted.add(notice.note)
            self._emit(notice)

    def remember(self, task_id: str) -> None:
        """Take note of a task of this session, so that its id is not taken for that of a track."""
        self._tasks.add(task_id)

    def knows(self, task_id: str) -> bool:
        """Whether this is the id of a task of this session, one of the last 10,000."""
        return task_id in self._tasks


def task_id_error(tracks: tuple[str, ...]) -> InvalidRequestError:
    """The error where the id of a task was given for that of a track; ``tracks`` are the task's, if they are known."""
    remedy = f"give that of one of its tracks: {' or '.join(tracks)}" if tracks else "give that of a track (Track.id)"
    return invalid_request(Problem("audio_id", "is the id of a task", remedy))


def check_task_id(task_id: object) -> str:
    """Return what can be the id of a task; raise InvalidRequestError if it cannot be one."""
    if not isinstance(task_id, str) or TASK_ID.fullmatch(task_id) is None:
        raise invalid_request(Problem("task_id", "is no id of a task", "give Task.id as it was given to you"))
    return task_id


def check_track(track: object) -> Track:
    """Return what is a track; raise InvalidRequestError if it is something else, such as the result that holds it."""
    if not isinstance(track, Track):
        raise invalid_request(Problem("track", f"is of type {type(track).__name__}", "give one of TaskResult.tracks"))
    return track


# ---------------------------------------------------------------- the checks: pure


def _find_problems(request: object, settings: Settings, *, ready: bool) -> Iterator[Problem]:
    if not isinstance(request, (ExtendRequest, UploadExtendRequest)):
        remedy = "give an ExtendRequest or an UploadExtendRequest"
        yield Problem("request", f"is of type {type(request).__name__}", remedy)
        return
    if settings.strict_limits:
        for name, has, allowed in _find_older_limits(request):
            yield Problem(name, has, f"{allowed}, and strict_limits holds to it")
    if isinstance(request.continue_at, str) and (ready or not isinstance(request, UploadExtendRequest)):
        remedy = "the length of the source is not known: give seconds, or source_duration="
        yield Problem("continue_at", f"is {request.continue_at!r}", remedy)
    if not isinstance(request, UploadExtendRequest):
        return
    for name in ("lyrics", "variety") if settings.route == "classic" else ():
        if getattr(request, name) is not None:
            yield Problem(name, "is not known to the classic route", 'use Settings(route="jobs"), or leave it out')
    url = str(request.source)
    if is_url(url) and not settings.on_loopback and (reason := unreachable(url)):
        remedy = "the service cannot fetch it: give the path of the file, or a public address"
        yield Problem("source", f"is at an address that leads nowhere from outside ({reason})", remedy)


def _find_older_limits(request: Request) -> Iterator[tuple[str, str, str]]:
    """What an older page does not allow: the field, how much it has, and what that page allows."""
    older = OLDER[request.operation]
    for name in ("prompt", "style", "title"):
        length, limit = len(getattr(request, name) or ""), getattr(older, name)
        if length > limit:
            yield name, f"has {length} characters", f'the page "{older.page}" allows {limit}'
    duration = request.source_duration
    if request.operation == "upload_extend" and duration is not None and duration > older.upload_seconds:
        yield "source", f"lasts {clock(duration)}", f'the page "{older.page}" allows {clock(older.upload_seconds)}'


def _find_notices(request: Request, settings: Settings) -> Iterator[Notice]:
    """What has no effect, or is not documented. None names a value, so that a session emits few of them."""
    yield from _find_pointless(request, sends_flag=settings.route == "classic")
    if may_be_new(request.model):
        yield _notice(
            "model", f"{request.model} is none that is known", f"its limits are taken from {list(MODELS)[-1]}"
        )
    if isinstance(request, ExtendRequest) and BARE_ID.fullmatch(request.audio_id):
        yield _notice("audio_id", "looks like the id of a task", "give the id of a track (Track.id)")
    for name, _, allowed in _find_older_limits(request):
        remedy = f"{allowed}; a newer page allows it, and decides"
        yield _notice(name, "is beyond a limit that has been raised", remedy, "raised_limit")
    url = str(request.source) if isinstance(request, UploadExtendRequest) else ""
    if is_url(url) and "@" in urlsplit(url).netloc:
        remedy = "the service may not use it, and may repeat it: give a signed address"
        yield _notice("source", "holds a user name or a password", remedy)
    if settings.callback_url and not settings.on_loopback and (reason := unreachable(settings.callback_url)):
        remedy = "no callback will come, and polling does all"
        yield _notice("callback_url", f"leads to where the service cannot reach ({reason})", remedy)


def _find_pointless(request: Request, *, sends_flag: bool) -> Iterator[Notice]:
    """What has no effect; ``sends_flag`` tells whether the route sends ``default_param_flag``."""
    if request.instrumental:
        for name in _given(request, "lyrics", "prompt", "vocal_gender"):
            yield _notice(name, "has no effect with instrumental", "leave it out, or drop instrumental")
    if not request.own_parameters:
        yield from _find_not_inherited(request, sends_flag=sends_flag)
    if request.persona_model and request.persona_id is None:
        yield _notice("persona_model", "has no effect without persona_id", "give persona_id too, or leave it out")
    elif request.persona_model and request.model not in MODELS_WITH_PERSONA_MODEL:
        documented = " and ".join(MODELS_WITH_PERSONA_MODEL)
        yield _notice("persona_model", f"is documented for {documented} alone", "it may have no effect")
    for name in ("negative_tags", "prompt", "style", "title"):
        if is_blank(getattr(request, name)):
            yield _notice(name, "is empty", "leave it out")


def _find_not_inherited(request: Request, *, sends_flag: bool) -> Iterator[Notice]:
    """What has no effect, or none that is documented, because the parameters are those of the source."""
    is_upload = isinstance(request, UploadExtendRequest)
    if not is_upload and sends_flag and request.continue_at is not None:
        remedy = "the service may go on from the end instead: give style and title, and prompt or instrumental"
        yield _notice("continue_at", "is documented for requests with own parameters alone", remedy, "uncertain_cut")
    for name in _given(request, *(("lyrics", "style", "title") if is_upload else ("prompt", "style", "title"))):
        if sends_flag:
            remedy = "leave it out, or drop default_param_flag=False"
            yield _notice(name, "has no effect with default_param_flag=False", remedy)
        else:
            remedy = "leave out what is not to count"
            yield _notice("default_param_flag", f"is not known to the jobs route, where {name} counts", remedy)


def _notice(field: str, problem: str, remedy: str, topic: Topic = "") -> Notice:
    return Notice("", str(Problem(field, problem, remedy)), topic)


def _given(request: Request, *names: str) -> list[str]:
    return [name for name in names if getattr(request, name, None) is not None]
