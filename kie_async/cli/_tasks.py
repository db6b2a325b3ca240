"""The commands about one task: submit, wait, download, status, credits. Their docstrings are the help."""

from __future__ import annotations

import asyncio
import shlex
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, nullcontext
from pathlib import Path
from typing import Annotated, Any

import attrs
from anyio import to_thread
from cyclopts import Parameter

from kie_async import files
from kie_async._client.task import Task
from kie_async._protocol.request_rules import is_url
from kie_async._text import clock, count_of
from kie_async.batch import song_of
from kie_async.chain import ChainSource
from kie_async.cli._chain import extend_until
from kie_async.cli._chain_order import UNTIL, UntilOptions
from kie_async.cli._connect import SessionOptions, connect, stopped_by_sigterm
from kie_async.cli._exit_codes import UsageError, option_of
from kie_async.cli._join import JoinOption, check_join, join_takes
from kie_async.cli._options import (
    COMMON,
    SUBMIT,
    CallbackOptions,
    CommonOptions,
    Directory,
    Out,
    OutputArg,
    SubmitOptions,
    Timeout,
)
from kie_async.cli._output import Output
from kie_async.cli._source import check_file, describe_fade, say_cut_off
from kie_async.cli._verdicts import say_verdicts
from kie_async.errors import KieError, TaskNotFoundError
from kie_async.events import CallbackReceived, Polled, clean
from kie_async.models import ExtendRequest, Request, TaskResult, Track, UploadExtendRequest
from kie_async.session import KieSession
from kie_async.settings import RouteName, Settings

_PARTIAL = " (the others never got their audio)"
_SPEED = 15.0  # of the built-in emulator: a task takes 4 to 10 s
_TASK_TIMEOUT, _RECOVERY_TIMEOUT = (
    float(attrs.fields_dict(Settings)[name].default or 0) for name in ("task_timeout", "recovery_timeout")
)
_DOWNLOAD_TIMEOUT = 30.0  # seconds that a download gives a task to show that it is finished

TaskArg = Annotated[str, Parameter(help="The id of a task.")]


# ---------------------------------------------------------------- submit


async def upload_extend(
    song: Annotated[str, Parameter(help="A file of audio, or the address of one.")],
    /,
    *,
    output: OutputArg,
    join: JoinOption = False,
    until: UntilOptions = UNTIL,
    options: SubmitOptions = SUBMIT,
) -> None:
    """Extend audio of your own: cut it at a position and let the service continue it; with --until, again and again.

    Each run is charged; only with --until the same command goes on.

    Example: kie-async upload-extend song.mp3 --at 75% --instrumental --style folk --title Longer --out new
    """
    if not is_url(song):
        remedy = "give one file, or extend all songs in it with kie-async batch"
        await to_thread.run_sync(check_file, option_of("source"), Path(song), remedy)
    if await _extend_until(output, song, options, until, join=join):
        return
    if join:
        check_join(song, options.run)
    request = await files.measure_request(UploadExtendRequest(song, **options.music.of_upload()))
    await say_cut_off(output, request)
    result = await _submit(output, request, options)
    if join and result is not None:
        output.hints = {130: "it is made and paid: do not send it again; kie-async join SONG TAKE --out FILE joins it"}
        with stopped_by_sigterm():
            await join_takes(output, Path(song), result.continue_at or 0.0, output.value["files"])


async def extend(
    audio_id: Annotated[str, Parameter(help="The id of the track, not of its task.")],
    /,
    *,
    output: OutputArg,
    join: JoinOption = False,
    until: UntilOptions = UNTIL,
    options: SubmitOptions = SUBMIT,
) -> None:
    """Extend a track that the service made; with no further options as it was made; with --until, again and again.

    Example: kie-async extend e231c5c0-7a52 --model V5 --out new
    """
    if await _extend_until(output, Track(audio_id, duration=options.music.duration), options, until, join=join):
        return
    if join:
        raise UsageError("--join needs the song as a file: it is for upload-extend, or goes with --until")
    await _submit(output, ExtendRequest(audio_id, **options.music.of_track()), options)


async def _extend_until(
    output: Output, source: ChainSource, options: SubmitOptions, until: UntilOptions, *, join: bool
) -> bool:
    """Extend a song until it is long enough, if that is asked for."""
    if until.until is None:
        until.check()
        return False
    receiver, session_options = _receiver(options), _settings(options.common.route, options.run.timeout)
    await extend_until(output, source, options, until, receiver=receiver, session_options=session_options, join=join)
    return True


async def _say_cut(output: Output, request: Request) -> None:
    """Say where the song is cut, and whether it fades out before that."""
    if isinstance(request.continue_at, (int, float)):
        lasts = "" if request.source_duration is None else f" ({clock(request.source_duration)})"
        output.say(f"the song{lasts} is kept to {clock(request.continue_at)} and continued")
    if fade := await describe_fade(request):
        output.say(fade)


def _receiver(options: SubmitOptions) -> CallbackOptions:
    """How callbacks are received; those of another process are of use only if this one does not wait."""
    run, receiver = options.run, options.receiver
    if receiver.callbacks and run.no_wait:
        raise UsageError("--callbacks and --no-wait are both given: nobody would be there to receive them")
    receiver.check()
    is_awaited_elsewhere = not run.emulate and (receiver.callbacks or run.no_wait)
    return receiver if is_awaited_elsewhere else receiver.here()


def _settings(route: RouteName, max_wait: float | None) -> SessionOptions:
    """The settings of a command that waits for a task, or for the callback that names it if its answer is lost."""
    if max_wait is None:
        return {"route": route}
    task_timeout, recovery_timeout = max(max_wait, _TASK_TIMEOUT), min(max_wait, _RECOVERY_TIMEOUT)
    return {"route": route, "task_timeout": task_timeout, "recovery_timeout": recovery_timeout}


def resume_options(route: str, out: Path | None) -> str:
    """The options that another command needs to continue with a task."""
    words = [*(["--route", route] if route != "classic" else []), *(["--out", str(out)] if out else [])]
    return "".join(f" {shlex.quote(word)}" for word in words)


async def _submit(output: Output, request: Request, options: SubmitOptions) -> TaskResult | None:
    """Submit a request and hand over what it makes; return that, or None if it is not waited for."""
    receiver, run, route = _receiver(options), options.run, options.common.route
    output.resume = resume_options(route, run.out)
    if run.out is not None:
        await files.check_writable(run.out)
    emulated = {"speed": _SPEED} if run.emulate else None
    async with connect(output, receiver, emulated=emulated, sigterm=True, **_settings(route, run.timeout)) as session:
        session.check_request(request)
        await _say_cut(output, request)
        output.display.doing("uploading and submitting" if isinstance(request, UploadExtendRequest) else "submitting")
        task = await session.submit(request)
        if run.no_wait:
            output.print(task.id)
            return None
        result = await follow(output, session, task, max_wait=run.timeout)
        await _hand_over(output, session, result, run.out, song_of(request))
        if run.out is not None:
            await say_verdicts(output, request, result, run.out)
        return result


# ---------------------------------------------------------------- wait


async def follow(output: Output, session: KieSession, task: Task, *, max_wait: float | None) -> TaskResult:
    """Wait for a task, at most so many seconds, and show its progress."""
    output.value["task_id"] = task.id
    output.display.doing("waiting for the music")
    # Callbacks report the stages: listening to them as well would cost a poll for each.
    async with nullcontext() if session.settings.callback_url else _listening(task):
        result = await task.result(timeout=max_wait)
    for line in _lengths(result):
        output.say(line)
    output.value |= {"status": result.record.status, "partial": result.partial}
    seen = {"callbacks_received": output.events[CallbackReceived], "polls": output.events[Polled]}
    output.value |= seen | result_value(result)
    return result


def result_value(result: TaskResult) -> dict[str, Any]:
    """What a task made, as JSON."""
    value = result.to_dict()
    return {name: value[name] for name in ("task_id", "continue_at", "source_duration", "tracks")}


def _lengths(result: TaskResult) -> Iterator[str]:
    """How long the tracks are, beside where the song was cut, and what that proves."""
    lengths = " and ".join(clock(track.duration) if track.duration else "an unknown time" for track in result.tracks)
    number = len(result.tracks)
    line = f"{count_of(number, 'track')} that {'lasts' if number == 1 else 'last'} {lengths}"
    if result.continue_at is not None:
        lasts = f" of {clock(result.source_duration)}" if result.source_duration else ""
        line += f", made from the first {clock(result.continue_at)}{lasts}"
    yield line + (_PARTIAL if result.partial else "")
    for number, track in enumerate(result.tracks, start=1):
        if result.holds(track) == "continuation":
            yield f"track {number} is not longer than what was kept of the song: it holds the continuation alone"


@asynccontextmanager
async def _listening(task: Task) -> AsyncIterator[None]:
    """Listen to the stages, so that the session polls often enough to see them and emits them to the output."""

    async def listen() -> None:
        async for _ in task.events():
            pass

    listener = asyncio.create_task(listen())
    try:
        yield
    finally:
        listener.cancel()
        await asyncio.gather(listener, return_exceptions=True)


# ---------------------------------------------------------------- download


async def _hand_over(
    output: Output, session: KieSession, result: TaskResult, out: Path | None, song: str | None = None
) -> None:
    """Download the tracks and show the files, or else show the addresses."""
    if out is None:
        for track in result.tracks:
            output.print(track.audio_url or "")
        return
    try:
        await download_tracks(output, session, result, out, song)
    finally:
        for path in output.value["files"]:
            output.print(str(path))


async def download_tracks(output: Output, session: KieSession, result: TaskResult, out: Path, song: str | None) -> None:
    """Download the tracks of a task, named after the song; all are tried, also when one fails.

    Raises:
        KieError: the first reason why a track is missing.
    """
    paths: list[Path] = []
    errors: list[KieError] = []
    output.value["files"] = paths
    output.display.doing("downloading the tracks")
    for number, track in enumerate(result.tracks, start=1):
        name = files.track_name(song, track.id) if song else None
        progress = output.display.transfer(f"downloading track {number}")
        try:
            paths.append(out / (await session.download(track, out, name=name, progress=progress)).name)
        except KieError as error:
            errors.append(error)
    if errors:
        raise errors[0]


# ---------------------------------------------------------------- tasks that were submitted before


async def wait(
    task_id: TaskArg,
    /,
    *,
    output: OutputArg,
    out: Out = None,
    max_wait: Timeout = None,
    common: CommonOptions = COMMON,
) -> None:
    """Wait for a task that was submitted before, and show or download its tracks.

    Example: kie-async wait 5c79be8e0a1b4c6d9e2f3a4b5c6d7e8f --timeout 600 --out new
    """
    output.resume = resume_options(common.route, out)
    if out is not None:
        await files.check_writable(out)
    async with connect(output, sigterm=True, **_settings(common.route, max_wait)) as session:
        result = await follow(output, session, session.track(task_id), max_wait=max_wait)
        await _hand_over(output, session, result, out)


async def download(
    task_id: TaskArg,
    /,
    *,
    output: OutputArg,
    out: Directory,
    common: CommonOptions = COMMON,
) -> None:
    """Download all tracks of a finished task; a file is whole or absent.

    Example: kie-async download 5c79be8e0a1b4c6d9e2f3a4b5c6d7e8f --out new
    """
    await wait(task_id, output=output, out=out, max_wait=_DOWNLOAD_TIMEOUT, common=common)


async def status(task_id: TaskArg, /, *, output: OutputArg, common: CommonOptions = COMMON) -> None:
    """Show what the service says of a task, whatever its state.

    Example: kie-async status 5c79be8e0a1b4c6d9e2f3a4b5c6d7e8f
    """
    output.resume = resume_options(common.route, None)
    async with connect(output, journal="", route=common.route) as session:
        record = await session.record_info(task_id)
    if record is None:
        raise TaskNotFoundError("the service does not know this task", task_id)
    output.value |= {
        "task_id": task_id,
        "status": record.status,
        "operation": record.operation_type,
        "error_code": record.error_code,
        "error_message": clean(record.error_message or "") or None,
        "created_at": record.to_dict()["created_at"],
        "tracks": [track.to_dict() for track in record.tracks],
    }
    code = record.error_code
    reason = "" if code is None else f" (code {code}: {clean(record.error_message or 'no words')})"
    output.print(f"{task_id} {record.status}{reason}")
    for track in record.tracks:
        output.print(_track_line(track))


def _track_line(track: Track) -> str:
    length = f"{track.duration:.1f} s" if track.duration else "not ready"
    url = track.audio_url or track.stream_audio_url or ""
    return "  ".join(part for part in (track.id, length, clean(track.title or ""), url) if part)


async def credits_left(*, output: OutputArg, common: CommonOptions = COMMON) -> None:
    """Show the credits left on the account.

    Example: kie-async credits
    """
    async with connect(output, journal="", route=common.route) as session:
        amount = (await session.credits()).amount
    output.value["credits"] = amount
    output.print(f"{amount:.12g}")
