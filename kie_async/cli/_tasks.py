"""The commands about tasks: submit, follow, fetch."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from anyio import to_thread

from kie_async import files
from kie_async._client.task import Task
from kie_async._protocol.request_rules import is_url
from kie_async.batch import song_of
from kie_async.cli._connect import Connection, ConnectOptions, connect
from kie_async.cli._exit_status import UsageError
from kie_async.cli._messages import clock, flag_of
from kie_async.cli._moment import parse_moment
from kie_async.cli._options import Music, SubmitOptions
from kie_async.cli._output import Output, take_up
from kie_async.errors import KieError, TaskNotFoundError
from kie_async.events import clean
from kie_async.files._disk import check_writable
from kie_async.models import ExtendRequest, Request, TaskResult, Track, UploadExtendRequest
from kie_async.session import KieSession

_PARTIAL = " (the others never got their audio)"
_FETCH_PATIENCE = 30.0  # seconds that a download gives a task to show that it is finished


async def upload_extend(output: Output, song: str, options: SubmitOptions) -> None:
    """Extend audio of one's own."""
    music = options.music
    if not is_url(song):
        await to_thread.run_sync(_check_file, song)
    length = music.duration
    if length is None and not is_url(song):
        length = await to_thread.run_sync(files.measure, Path(song))
    learnt_later = is_url(song) and length is None  # the session measures what it can
    fields = music.of_upload(music.at if learnt_later else _cut(music, length), length)
    await _submit(output, UploadExtendRequest(song, **fields), options)


async def extend(output: Output, audio_id: str, options: SubmitOptions) -> None:
    """Extend a track that the service made."""
    music = options.music
    fields = music.of_track(_cut(music, music.duration))
    await _submit(output, ExtendRequest(audio_id, **fields), options)


def _check_file(song: str) -> None:
    path = Path(song)
    if path.is_dir():
        remedy = "give one file, or extend all songs in it with kie-async batch"
        raise UsageError(f"{flag_of('source')}: {song!r} is a directory; {remedy}")
    if not path.is_file():
        raise UsageError(f"{flag_of('source')}: there is no file {song!r}")


def _cut(music: Music, length: float | None) -> float | None:
    return None if music.at is None else parse_moment(music.at).within(length)


def _tell_cut(output: Output, request: Request) -> None:
    if isinstance(request.continue_at, (int, float)):
        lasts = "" if request.source_duration is None else f" ({clock(request.source_duration)})"
        output.say(f"the song{lasts} is kept to {clock(request.continue_at)} and continued")


def _plan(options: SubmitOptions) -> ConnectOptions:
    run, calls = options.run, options.calls
    if calls.callbacks and run.no_wait:
        raise UsageError("--callbacks and --no-wait are both given: nobody would be there to receive them")
    calls.check()
    url = calls.callback_url
    if url is None and (run.emulate or not (calls.callbacks or run.no_wait)):
        url = ""  # that of the environment leads elsewhere, and this process would wait for it in vain
    return ConnectOptions(
        route=options.common.route,
        emulate=run.emulate,
        receive=calls.callbacks,
        callback_url=url,
        bind=calls.bind,
        timeout=run.timeout,
    )


async def _submit(output: Output, request: Request, options: SubmitOptions) -> None:
    plan, run = _plan(options), options.run
    output.again = take_up(plan.route, run.out)
    if run.out is not None:
        await check_writable(run.out)
    _tell_cut(output, request)
    async with connect(output, plan) as connection:
        output.doing("uploading and submitting" if isinstance(request, UploadExtendRequest) else "submitting")
        task = await connection.session.submit(request)
        if run.no_wait:
            output.out(task.id)
            return
        await _settle(output, connection, task, run.timeout, run.out, song_of(request))


# ------------------------------------------------------------ following


async def _settle(  # noqa: PLR0913, PLR0917  # what there is to know of a task
    output: Output,
    connection: Connection,
    task: Task,
    timeout: float | None,  # noqa: ASYNC109  # handed on
    out: Path | None,
    song: str | None = None,
) -> None:
    """Wait for a task and show what came of it: the files, or else the addresses."""
    result = await follow(output, connection, task, timeout=timeout)
    if out is None:
        for track in result.tracks:
            output.out(track.audio_url or "")
        return
    try:
        await fetch(output, connection.session, result, out, song)
    finally:
        for path in output.facts["files"]:
            output.out(path)


async def follow(output: Output, connection: Connection, task: Task, *, timeout: float | None) -> TaskResult:  # noqa: ASYNC109  # handed on
    """Wait for a task and tell how it goes."""
    output.facts["task_id"] = task.id
    output.doing("waiting for the music")
    if connection.callback_url:  # callbacks tell the stages: to listen to them as well would cost a look for each
        result = await task.result(timeout=timeout)
    else:
        async with _listening(task):
            result = await task.result(timeout=timeout)
    for line in _lengths(result):
        output.say(line)
    output.facts |= {"status": result.record.status, "partial": result.partial}
    output.facts |= {"callbacks_received": output.callbacks, "polls": output.polls}
    output.facts |= result_facts(result)
    return result


def result_facts(result: TaskResult) -> dict[str, Any]:
    """What a task made, as JSON."""
    value = result.to_dict()
    return {name: value[name] for name in ("task_id", "continue_at", "source_duration", "tracks")}


def _lengths(result: TaskResult) -> Iterator[str]:
    """How long the tracks are, beside where the song was cut, and what that proves."""
    lengths = " and ".join(clock(track.duration) if track.duration else "an unknown time" for track in result.tracks)
    line = f"{len(result.tracks)} tracks that last {lengths}"
    if result.continue_at is not None:
        lasts = f" of {clock(result.source_duration)}" if result.source_duration else ""
        line += f", made from the first {clock(result.continue_at)}{lasts}"
    yield line + (_PARTIAL if result.partial else "")
    for number, track in enumerate(result.tracks, start=1):
        if result.holds(track) == "continuation":
            yield f"track {number} is not longer than what was kept of the song: it holds the continuation alone"


@asynccontextmanager
async def _listening(task: Task) -> AsyncIterator[None]:
    """Listen to the stages, so that the session looks often enough for them to be seen; it tells the observer."""

    async def listen() -> None:
        async for _ in task.events():
            pass

    listener = asyncio.create_task(listen())
    try:
        yield
    finally:
        listener.cancel()
        await asyncio.gather(listener, return_exceptions=True)


async def fetch(output: Output, session: KieSession, result: TaskResult, out: Path, song: str | None) -> None:
    """Download the tracks of a task, named after the song; one that cannot be fetched does not keep the others away.

    Raises:
        KieError: the first one why a track is missing, after the others were fetched.
    """
    paths: list[str] = []
    errors: list[KieError] = []
    output.facts["files"] = paths
    for number, track in enumerate(result.tracks, start=1):
        name = files.track_name(song, track.id) if song else None
        progress = output.transfer(f"downloading track {number}")
        try:
            paths.append(str(await session.download(track, out, name=name, progress=progress)))
        except KieError as error:
            errors.append(error)
    if errors:
        raise errors[0]


# ------------------------------------------------------------ tasks submitted before


async def wait(output: Output, task_id: str, *, route: str, timeout: float | None, out: Path | None) -> None:  # noqa: ASYNC109  # handed on
    """Follow a task to its end."""
    output.again = take_up(route, out)
    if out is not None:
        await check_writable(out)
    async with connect(output, ConnectOptions(route=route, timeout=timeout)) as connection:
        await _settle(output, connection, connection.session.track(task_id), timeout, out)


async def download(output: Output, task_id: str, *, route: str, out: Path) -> None:
    """Fetch the tracks of a finished task."""
    await wait(output, task_id, route=route, timeout=_FETCH_PATIENCE, out=out)


async def status(output: Output, task_id: str, *, route: str) -> None:
    """Show what the service says of a task."""
    output.again = take_up(route, None)
    async with connect(output, ConnectOptions(route=route)) as connection:
        record = await connection.session.record_info(task_id)
    if record is None:
        raise TaskNotFoundError("the service does not know this task", task_id)
    output.facts |= {
        "task_id": task_id,
        "status": record.status,
        "operation": record.operation_type,
        "error_code": record.error_code,
        "error_message": clean(record.error_message or "") or None,
        "created_at": record.to_dict()["created_at"],
        "tracks": [track.to_dict() for track in record.tracks],
    }
    output.out(f"{task_id} {record.status}" + _said(record.error_code, record.error_message))
    for track in record.tracks:
        output.out(_track_line(track))


def _said(code: int | None, message: str | None) -> str:
    return "" if code is None else f" (code {code}: {clean(message or 'no words')})"


def _track_line(track: Track) -> str:
    length = f"{track.duration:.1f} s" if track.duration else "not ready"
    url = track.audio_url or track.stream_audio_url or ""
    return "  ".join(part for part in (track.id, length, clean(track.title or ""), url) if part)


async def credits_left(output: Output, *, route: str) -> None:
    """Show the credits of the account."""
    async with connect(output, ConnectOptions(route=route)) as connection:
        amount = (await connection.session.credits()).amount
    output.facts["credits"] = amount
    output.out(f"{amount:.12g}")
