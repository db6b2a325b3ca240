"""What a session refuses before it spends: checks that need its settings, or the tasks that it knows."""

from __future__ import annotations

from collections.abc import Iterator
from urllib.parse import urlsplit

from kie_async._protocol.address_rules import unreachable
from kie_async._protocol.notices import find_notices, find_older_limits
from kie_async._protocol.recent import RecentSet
from kie_async._protocol.request_rules import is_url
from kie_async._protocol.wire import TASK_ID
from kie_async.errors import InvalidRequestError, Problem
from kie_async.events import Notice, Observer
from kie_async.models import Request, UploadExtendRequest
from kie_async.settings import Settings

_MAX_TASKS = 10_000  # ids of tasks that are remembered
_MAX_NOTICES = 1_000


class Admission:
    """Checks requests for a session, and emits each notice once.

    Args:
        settings: those of the session.
        emit: called with a notice of what is pointless or uncertain.
    """

    def __init__(self, settings: Settings, emit: Observer) -> None:
        self._settings = settings
        self._emit = emit
        self._emitted = RecentSet(_MAX_NOTICES)
        self._tasks = RecentSet(_MAX_TASKS)

    def check(self, request: Request, *, ready: bool = False) -> None:
        """Refuse a request that this session must not pay for, and emit notices about it.

        Args:
            request: which broke no rule when it was built.
            ready: whether it goes out now: what is not known of its source will not be known any more.

        Raises:
            InvalidRequestError: with every problem; nothing was spent.
        """
        if problems := tuple(_find_problems(request, self._settings, ready=ready)):
            raise InvalidRequestError("; ".join(map(str, problems)), problems=problems)
        for notice in _find_notices(request, self._settings):
            self.notify(str(notice))

    def notify(self, notice: str) -> None:
        """Emit a notice, unless it was emitted before."""
        if notice not in self._emitted:
            self._emitted.add(notice)
            self._emit(Notice("", notice))

    def remember(self, task_id: str) -> None:
        """Take note of a task of this session, so that its id is not taken for that of a track."""
        self._tasks.add(task_id)

    def knows(self, task_id: str) -> bool:
        """Whether this is the id of a task of this session, one of the last 10,000."""
        return task_id in self._tasks


def task_problem(tracks: tuple[str, ...]) -> InvalidRequestError:
    """The error that an id of a task was given as that of a track; ``tracks`` are its own, if they are known."""
    remedy = f"give that of one of its tracks: {' or '.join(tracks)}" if tracks else "give that of a track (Track.id)"
    problem = Problem("audio_id", "is the id of a task", remedy)
    return InvalidRequestError(str(problem), problems=(problem,))


def check_task_id(task_id: object) -> str:
    """Return what can be the id of a task.

    Raises:
        InvalidRequestError: it cannot be one.
    """
    if not isinstance(task_id, str) or TASK_ID.fullmatch(task_id) is None:
        problem = Problem("task_id", "is no id of a task", "give Task.id as it was given to you")
        raise InvalidRequestError(str(problem), problems=(problem,))
    return task_id


# ---------------------------------------------------------------- pure


def _find_problems(request: Request, settings: Settings, *, ready: bool) -> Iterator[Problem]:
    if settings.strict_limits:
        for name, has, allowed in find_older_limits(request.fields(), request.operation):
            yield Problem(name, has, f"{allowed}, and strict_limits holds to it")
    if isinstance(request.continue_at, str) and (ready or not isinstance(request, UploadExtendRequest)):
        remedy = "the length of the source is not known: give seconds, or source_duration="
        yield Problem("continue_at", f"is {request.continue_at!r}", remedy)
    if isinstance(request, UploadExtendRequest):
        yield from _find_upload_problems(request, settings)


def _find_upload_problems(request: UploadExtendRequest, settings: Settings) -> Iterator[Problem]:
    for name in ("lyrics", "variety") if settings.route == "classic" else ():
        if getattr(request, name) is not None:
            yield Problem(name, "is not known to the classic route", 'use Settings(route="jobs"), or leave it out')
    url = str(request.source)
    if is_url(url) and not settings.on_loopback and (reason := unreachable(url)):
        remedy = "the service cannot fetch it: give the path of the file, or a public address"
        yield Problem("source", f"is at an address that leads nowhere from outside ({reason})", remedy)


def _find_notices(request: Request, settings: Settings) -> Iterator[Problem]:
    fields = request.fields()
    yield from find_notices(fields, own_parameters=request.own_parameters, sends_flag=settings.route == "classic")
    for name, _, allowed in find_older_limits(fields, request.operation):
        yield Problem(name, "has more than an older page allows", f"{allowed}; the current page decides")
    url = str(fields.get("source", ""))
    if is_url(url) and "@" in urlsplit(url).netloc:
        remedy = "the service may not use it, and may repeat it: give a signed address"
        yield Problem("source", "holds a user name or a password", remedy)
    if settings.callback_url and not settings.on_loopback and (reason := unreachable(settings.callback_url)):
        remedy = "no callback will come, and polling does all"
        yield Problem("callback_url", f"leads to where the service cannot reach ({reason})", remedy)
