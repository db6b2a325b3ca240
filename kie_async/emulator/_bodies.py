"""The bodies of the service, key for key as recorded in ``tests/samples``. Pure.

A task is seen through a ``View``: what record-info says of it at a moment, before any spelling.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping
from types import MappingProxyType
from typing import Any

import attrs

from kie_async._protocol.limits import CREDITS_PER_TASK
from kie_async.emulator._faults import Fault
from kie_async.emulator._plan import code_name
from kie_async.emulator._state import Task
from kie_async.models import Operation

JOBS_MODELS: Mapping[str, Operation] = MappingProxyType(
    {"ai-music-api/extend": "extend", "ai-music-api/upload-and-extend-audio": "upload_extend"}
)


@attrs.frozen
class View:
    """What is to be seen of a task.

    Attributes:
        word: the status.
        ready: how many tracks are finished.
        listed: whether the tracks are listed.
        audio: whether the finished tracks have their audio.
        code: errorCode.
        progress: how far the wait for the text is, from 0 to 1.
        ended: seconds from the submission to the end; None while it runs.
        shape: where the jobs route puts the tracks of a finished task, one of ``SHAPES``; by default, as was reported
            of the operation.
    """

    word: str = "PENDING"
    ready: int = 0
    listed: bool = False
    audio: bool = True
    code: int | str | None = None
    message: str | None = None
    progress: float = 0.0
    ended: float | None = None
    shape: str = ""


def view(task: Task, now: float) -> View | None:
    """Look at a task; None if it is not visible yet."""
    plan, age = task.plan, now - task.at
    if age < plan.visible:
        return None
    failure = plan.failure
    if failure is not None and age >= failure.at:
        if age < failure.at + failure.pending_for:
            return View(code=failure.code, message=failure.message)
        return View(failure.word, code=failure.code, message=failure.message, ended=failure.at + failure.pending_for)
    return _alive(task, age)


def _alive(task: Task, age: float) -> View:
    plan = task.plan
    if age < plan.text:
        return View(progress=age / plan.text)
    if age < plan.first:
        return View("TEXT_SUCCESS", listed=True)
    if age < plan.complete:
        return View("FIRST_SUCCESS", ready=1, listed=True)
    word = "CALLBACK_EXCEPTION" if plan.callback_exception or task.given_up else "SUCCESS"
    return View(word, ready=2, listed=True, audio=age >= plan.audio, ended=plan.complete)


def at_stage(task: Task, stage: str) -> View:
    """What a callback of a stage says, whenever it is sent."""
    if stage == "error" and task.plan.failure is not None:
        return View("FAILED", code=task.plan.failure.code, message=task.plan.failure.message)
    ready = {"first": 1, "complete": 2}.get(stage, 0)
    return View(ready=ready, listed=ready > 0, audio=task.plan.audio <= task.plan.complete)


# Faults of a look: what is seen, as the fault leaves it.
LOOKS: Mapping[str, Callable[[View, Fault], View | None]] = MappingProxyType(
    {
        "invisible": lambda _seen, _fault: None,
        "backwards": lambda _seen, _fault: View(),
        "unknown_word": lambda seen, fault: attrs.evolve(seen, word=fault.word or "MIXING", ended=None),
        "shape": lambda seen, fault: attrs.evolve(seen, shape=fault.shape),
    }
)


# ---------------------------------------------------------------- tracks

_SNAKE: Mapping[str, str] = MappingProxyType(
    {
        "audioUrl": "audio_url",
        "sourceAudioUrl": "source_audio_url",
        "streamAudioUrl": "stream_audio_url",
        "sourceStreamAudioUrl": "source_stream_audio_url",
        "imageUrl": "image_url",
        "sourceImageUrl": "source_image_url",
        "modelName": "model_name",
    }
)
# Keys that an unfinished track lacks: in record-info (a reported sample), in a callback (FACTS §4).
_UNFINISHED = ("sourceAudioUrl", "sourceStreamAudioUrl", "sourceImageUrl")
_UNFINISHED_IN_CALLBACK = ("sourceAudioUrl", "duration")


def _track(task: Task, index: int, seen: View, base_url: str) -> dict[str, Any]:
    """A track in the spelling of record-info, with all its keys."""
    track_id = task.track_ids[index]
    finished = index < seen.ready
    audio = (f"{base_url}/files/{track_id}.mp3" if seen.audio else None) if finished else ""
    stream, image = f"{base_url}/files/stream/{track_id}", f"{base_url}/files/{track_id}.jpeg"
    return {
        "id": track_id,
        "audioUrl": audio,
        "sourceAudioUrl": audio,
        "streamAudioUrl": stream,
        "sourceStreamAudioUrl": stream,
        "imageUrl": image,
        "sourceImageUrl": image,
        "prompt": task.ask.prompt or "[Instrumental]",
        "modelName": code_name(task.ask.model),
        "title": task.ask.title or "Extended",
        "tags": task.ask.style or "extended",
        "createTime": task.created,
        "duration": task.plan.durations[index] if finished and seen.audio else None,
    }


def _tracks(task: Task, seen: View, base_url: str, lacking: Collection[str] = _UNFINISHED) -> list[dict[str, Any]]:
    tracks = [_track(task, index, seen, base_url) for index in (0, 1)] if seen.listed else []
    for track in tracks[seen.ready :]:
        for key in lacking:
            del track[key]
    return tracks


def _snake(tracks: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{_SNAKE.get(key, key): value for key, value in track.items()} for track in tracks]


def _callback_tracks(task: Task, seen: View, base_url: str) -> list[dict[str, Any]]:
    return _snake(_tracks(task, seen, base_url, _UNFINISHED_IN_CALLBACK))


# ---------------------------------------------------------------- record-info


def _compact(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def ok(data: object) -> dict[str, Any]:
    """An answer that is a success."""
    return {"code": 200, "msg": "success", "data": data}


def submitted(task: Task) -> dict[str, Any]:
    """The answer to a submission; that of the jobs route has another id too, which is not for polling."""
    other = {"recordId": task.id[::-1]} if task.charge.route == "jobs" else {}
    return ok({"taskId": task.id, **other})


def record(task: Task, seen: View, base_url: str) -> dict[str, Any]:
    """The answer of record-info (the classic route)."""
    response = {"taskId": task.id, "sunoData": _tracks(task, seen, base_url)} if seen.listed else None
    return ok(
        {
            "taskId": task.id,
            "parentMusicId": "",
            "param": _compact(task.charge.body),
            "response": response,
            "status": seen.word,
            "type": code_name(task.ask.model),
            "operationType": task.ask.operation,
            "errorCode": seen.code,
            "errorMessage": seen.message,
            "createTime": task.created,
        }
    )


def _job_state(seen: View) -> str:
    if seen.word in {"SUCCESS", "CALLBACK_EXCEPTION"}:
        return "success"
    if seen.ended is not None:
        return "fail"
    if seen.word not in {"PENDING", "TEXT_SUCCESS", "FIRST_SUCCESS"}:
        return seen.word.lower()
    if seen.word == "PENDING" and seen.code is None:
        return "waiting" if seen.progress < 1 / 3 else "queuing" if seen.progress < 2 / 3 else "generating"
    return "generating"


def _job_result(task: Task, seen: View, tracks: list[dict[str, Any]]) -> tuple[object, object]:
    """``resultJson`` and ``response`` of a finished task, in one of the shapes they come in."""
    addresses = {"resultUrls": [track["audio_url"] for track in tracks]}
    listed = {"data": tracks}
    shapes: Mapping[str, tuple[object, object]] = {
        "data": (listed, {"taskId": task.id, **listed}),
        "envelope": ({"code": 200, **listed}, None),
        "object": ({**addresses, "resultObject": listed}, None),
        "urls": (addresses, addresses),
    }
    return shapes[seen.shape or ("data" if task.ask.operation == "extend" else "object")]


def job_record(task: Task, seen: View, base_url: str) -> dict[str, Any]:
    """The answer of recordInfo (the jobs route), before it is spoilt as the real one is."""
    body = task.charge.body
    state = _job_state(seen)
    tracks = _snake(_tracks(task, seen, base_url))
    param = _compact({"input": _compact(body.get("input")), **{k: v for k, v in body.items() if k != "input"}})
    done = seen.ended is not None
    result: object = None
    response: object = {"taskId": task.id, "data": tracks} if seen.listed else None
    if state == "success":
        result, response = _job_result(task, seen, tracks)
    return ok(
        {
            "taskId": task.id,
            "model": body.get("model"),
            "state": state,
            "param": param,
            "resultJson": _compact(result) if result else "",
            "failCode": None if seen.code is None else str(seen.code),  # FACTS §4: elsewhere codes come as text
            "failMsg": seen.message,
            "costTime": round(seen.ended) if seen.ended is not None else None,
            "completeTime": task.created + round(1000 * seen.ended) if seen.ended is not None else None,
            "createTime": task.created,
            "creditsConsumed": CREDITS_PER_TASK if done and not task.charge.refunded else 0.0,
            "status": seen.word,
            "successFlag": {"success": 1, "fail": 3}.get(state, 0),
            "type": code_name(task.ask.model),
            "operationType": task.ask.operation,
            "paramJson": param,
            "response": response,
        }
    )


def spoilt(body: dict[str, Any]) -> bytes:
    """Write recordInfo as a real one came (FACTS §9): one backslash too few before the innermost quotes."""
    texts = {key: json.dumps(body["data"][key], ensure_ascii=False) for key in ("param", "paramJson")}
    holes = {key: f"\0{key}\0" for key in texts}
    whole = json.dumps({**body, "data": {**body["data"], **holes}}, ensure_ascii=False)
    for key, text in texts.items():
        whole = whole.replace(json.dumps(holes[key]), text.replace('\\\\\\"', '\\\\"'))
    return whole.encode("utf-8", "replace")


# ---------------------------------------------------------------- callbacks

_MESSAGES = {
    "text": "Text generated successfully.",
    "first": "First track generated successfully.",
    "complete": "All generated successfully.",
}


def callback(task: Task, stage: str, base_url: str) -> dict[str, Any]:
    """The body of a callback."""
    seen = at_stage(task, stage)
    data = {"callbackType": stage, "data": _callback_tracks(task, seen, base_url), "task_id": task.id}
    if seen.code is not None:
        return {"code": seen.code, "data": {**data, "data": None}, "msg": seen.message}
    return {"code": 200, "data": data, "msg": _MESSAGES[stage]}


_JOB_KEYS = (
    "taskId", "model", "state", "resultJson", "failCode", "failMsg", "createTime", "completeTime", "costTime",
    "creditsConsumed",
)  # fmt: skip


def job_callback(task: Task, stage: str, base_url: str) -> dict[str, Any]:
    """The body of a callback in the shape of recordInfo, as the page of the jobs route shows it."""
    words = {"text": "TEXT_SUCCESS", "first": "FIRST_SUCCESS", "complete": "SUCCESS", "error": "FAILED"}
    ended = dict(task.plan.stages()).get(stage) if stage in {"complete", "error"} else None
    seen = attrs.evolve(at_stage(task, stage), word=words[stage], ended=ended)
    data = job_record(task, seen, base_url)["data"]
    model = next(name for name, operation in JOBS_MODELS.items() if operation == task.ask.operation)
    message = seen.message or "Playground task completed successfully."
    return {"code": seen.code or 200, "msg": message, "data": {**{key: data[key] for key in _JOB_KEYS}, "model": model}}


def forged(task: Task, fault: Fault, base_url: str) -> dict[str, Any]:
    """The body of a false callback: false audio, or a false error if the fault has a code."""
    if fault.code is not None:
        false = {"callbackType": fault.stage or "error", "data": None, "task_id": task.id}
        return {"code": fault.code, "data": false, "msg": fault.message or "forged"}
    stage = fault.stage or "complete"
    tracks = _callback_tracks(task, View(ready=2, listed=True), base_url)
    for track in tracks:
        track.update(audio_url=fault.url, stream_audio_url=fault.url, title="forged")
    data = {"callbackType": stage, "data": tracks, "task_id": task.id}
    return {"code": 200, "data": data, "msg": fault.message or "All generated successfully."}
