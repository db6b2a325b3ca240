"""The bodies of the service, key for key as recorded in ``tests/samples``: submissions, answers, callbacks. Pure.

Answers and callbacks are written from a task and a ``TaskSnapshot``: what is seen of it at one time.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping
from types import MappingProxyType
from typing import Any

import attrs

from kie_async._protocol.request_rules import CREDITS_PER_TASK
from kie_async.emulator._tasks import (
    TEXTS,
    EmulatedSubmission,
    EmulatedTask,
    ForgedContent,
    PlannedCallback,
    TaskSnapshot,
)
from kie_async.models import Operation

JOBS_MODELS: Mapping[str, Operation] = MappingProxyType(
    {"ai-music-api/extend": "extend", "ai-music-api/upload-and-extend-audio": "upload_extend"}
)

# Where a finished task of the jobs route has its tracks: all of these are reported or documented.
SHAPES: tuple[str, ...] = (
    "data",  # resultJson {"data": [...]}, and the same in response: extend
    "envelope",  # resultJson {"code": 200, "data": [...]}
    "object",  # resultJson {"resultUrls": [...], "resultObject": {"data": [...]}}: upload-and-extend-audio
    "urls",  # bare addresses alone, in resultJson and in response
)

# `type`: the code names of the models.
CODE_NAMES: Mapping[str, str] = MappingProxyType(
    {
        "V3_5": "chirp-v3-5",
        "V4": "chirp-v4",
        "V4_5": "chirp-auk",
        "V4_5PLUS": "chirp-bluejay",
        "V4_5ALL": "chirp-auk-turbo",
        "V5": "chirp-crow",
        "V5_5": "chirp-fenix",
        "V6": "chirp-hawk",
        "V6_MINI": "chirp-hawk-mini",
        "V6_WILD": "chirp-hawk-wild",
    }
)


def code_name(model: str) -> str:
    """Return the code name of a model; an unknown model gets a made-up one."""
    return CODE_NAMES.get(model) or f"chirp-{model.lower()}"


# ---------------------------------------------------------------- submissions

# What the classic route reads. The jobs route has the same and more, in snake_case.
_CLASSIC = (
    "model", "audioId", "uploadUrl", "continueAt", "prompt", "style", "title", "negativeTags", "instrumental"
)  # fmt: skip


def _snake(name: str) -> str:
    return re.sub(r"(?=[A-Z])", "_", name).lower()


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""


def _number(value: object) -> float | None:
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else None


def read_classic(operation: Operation, body: Mapping[str, Any]) -> EmulatedSubmission:
    """Read the body of the classic route (camelCase)."""
    fields = {_snake(name): body.get(name) for name in _CLASSIC}
    submission = _read(operation, fields, body)
    return attrs.evolve(submission, own_parameters=body.get("defaultParamFlag") is True)


def read_jobs(body: Mapping[str, Any]) -> EmulatedSubmission:
    """Read the body of the jobs route (snake_case under ``input``), where only an upload has required texts."""
    operation, given = JOBS_MODELS.get(str(body.get("model"))), body.get("input")
    if operation is None:
        return EmulatedSubmission("extend")  # its model is none, and is refused
    submission = _read(operation, given if isinstance(given, dict) else {}, body)
    is_own = bool(submission.texts["style"] or submission.texts["title"])
    return attrs.evolve(submission, own_parameters=operation == "upload_extend" and is_own)


def _read(operation: Operation, fields: Mapping[str, Any], body: Mapping[str, Any]) -> EmulatedSubmission:
    return EmulatedSubmission(
        operation,
        model=_text(fields.get("model")),
        callback_url=_text(body.get("callBackUrl")),
        source=_text(fields.get("audio_id" if operation == "extend" else "upload_url")),
        continue_at=_number(fields.get("continue_at")),
        texts={name: _text(fields.get(name)) for name in TEXTS},
        instrumental=fields.get("instrumental") is True,
        variety=_number(fields.get("variety")),
    )


# ---------------------------------------------------------------- answers

# From the recorded samples where there are any, or else from the documentation.
MESSAGES: Mapping[int, str] = MappingProxyType(
    {
        401: "You do not have access permissions",
        402: "Credits insufficient",
        404: "Not found",
        405: "Your call frequency is too high. Please try again later.",
        409: "The record already exists",
        413: "Uploaded audio matches existing work of art.",
        422: "Validation error",
        429: "Your call frequency is too high. Please try again later.",
        430: "Your call frequency is too high. Please try again later.",
        433: "The spending limit of this key is reached",
        451: "Failed to fetch the file. Kindly verify any access limits set by you or your service provider.",
        455: "System maintenance",
        500: "Server exception, please try again later or contact customer service",
        501: "Audio generation failed",
        505: "The feature is currently disabled",
        531: "Server error: generation failed, the credits have been refunded",
    }
)


def ok(data: object) -> dict[str, Any]:
    """Write a successful answer."""
    return {"code": 200, "msg": "success", "data": data}


def refusal(code: int | str, message: str | None = None) -> dict[str, Any]:
    """Write a refusal; a code given as text is sent as text."""
    words = message or (MESSAGES.get(int(code)) if str(code).isdecimal() else None)
    return {"code": code, "msg": words or "error", "data": None}


# ---------------------------------------------------------------- tracks

# Keys that an unfinished track lacks: in record-info (a reported sample), in a callback.
_UNFINISHED = ("sourceAudioUrl", "sourceStreamAudioUrl", "sourceImageUrl")
_UNFINISHED_IN_CALLBACK = ("sourceAudioUrl", "duration")


def _track(task: EmulatedTask, index: int, seen: TaskSnapshot, base_url: str) -> dict[str, Any]:
    """Write a track with all keys that record-info has, in its spelling."""
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
        "prompt": task.submission.texts["prompt"] or "[Instrumental]",
        "modelName": code_name(task.submission.model),
        "title": task.submission.texts["title"] or "Extended",
        "tags": task.submission.texts["style"] or "extended",
        "createTime": task.created,
        "duration": task.timeline.durations[index] if finished and seen.audio else None,
    }


def _tracks(
    task: EmulatedTask, seen: TaskSnapshot, base_url: str, lacking: Collection[str] = _UNFINISHED
) -> list[dict[str, Any]]:
    tracks = [_track(task, index, seen, base_url) for index in (0, 1)] if seen.listed else []
    for track in tracks[seen.ready :]:
        for key in lacking:
            del track[key]
    return tracks


def _in_snake_case(tracks: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{key if key == "createTime" else _snake(key): value for key, value in each.items()} for each in tracks]


def _callback_tracks(task: EmulatedTask, seen: TaskSnapshot, base_url: str) -> list[dict[str, Any]]:
    return _in_snake_case(_tracks(task, seen, base_url, _UNFINISHED_IN_CALLBACK))


# ---------------------------------------------------------------- record-info


def _compact(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def submitted(task: EmulatedTask) -> dict[str, Any]:
    """Write the answer to a submission; the jobs route adds a second id, which cannot be polled."""
    other = {"recordId": task.id[::-1]} if task.charge.route == "jobs" else {}
    return ok({"taskId": task.id, **other})


def record(task: EmulatedTask, seen: TaskSnapshot, base_url: str) -> dict[str, Any]:
    """Write the answer of record-info (the classic route)."""
    response = {"taskId": task.id, "sunoData": _tracks(task, seen, base_url)} if seen.listed else None
    return ok(
        {
            "taskId": task.id,
            "parentMusicId": "",
            "param": _compact(task.charge.body),
            "response": response,
            "status": seen.word,
            "type": code_name(task.submission.model),
            "operationType": task.submission.operation,
            "errorCode": seen.code,
            "errorMessage": seen.message,
            "createTime": task.created,
        }
    )


def _job_state(seen: TaskSnapshot) -> str:
    if seen.word in {"SUCCESS", "CALLBACK_EXCEPTION"}:
        return "success"
    if seen.ended is not None:
        return "fail"
    if seen.word not in {"PENDING", "TEXT_SUCCESS", "FIRST_SUCCESS"}:
        return seen.word.lower()
    if seen.word == "PENDING" and seen.code is None:
        return "waiting" if seen.progress < 1 / 3 else "queuing" if seen.progress < 2 / 3 else "generating"
    return "generating"


def _job_result(task: EmulatedTask, seen: TaskSnapshot, tracks: list[dict[str, Any]]) -> tuple[object, object]:
    """Write ``resultJson`` and ``response`` of a finished task, in one of their shapes."""
    addresses = {"resultUrls": [track["audio_url"] for track in tracks]}
    listed = {"data": tracks}
    shapes: Mapping[str, tuple[object, object]] = {
        "data": (listed, {"taskId": task.id, **listed}),
        "envelope": ({"code": 200, **listed}, None),
        "object": ({**addresses, "resultObject": listed}, None),
        "urls": (addresses, addresses),
    }
    return shapes[seen.shape or ("data" if task.submission.operation == "extend" else "object")]


def job_record(task: EmulatedTask, seen: TaskSnapshot, base_url: str) -> dict[str, Any]:
    """Write the answer of recordInfo (the jobs route)."""
    body = task.charge.body
    state = _job_state(seen)
    tracks = _in_snake_case(_tracks(task, seen, base_url))
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
            "failCode": None if seen.code is None else str(seen.code),  # at the service: elsewhere codes come as text
            "failMsg": seen.message,
            "costTime": round(seen.ended) if seen.ended is not None else None,
            "completeTime": task.created + round(1000 * seen.ended) if seen.ended is not None else None,
            "createTime": task.created,
            "creditsConsumed": CREDITS_PER_TASK if done and not task.charge.refunded else 0.0,
            "status": seen.word,
            "successFlag": {"success": 1, "fail": 3}.get(state, 0),
            "type": code_name(task.submission.model),
            "operationType": task.submission.operation,
            "paramJson": param,
            "response": response,
        }
    )


def malformed(body: dict[str, Any]) -> bytes:
    """Encode recordInfo as a real one was: one backslash is missing before the innermost quotes."""
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


def callback(task: EmulatedTask, planned: PlannedCallback, base_url: str) -> dict[str, Any]:
    """Write the body of a callback."""
    if planned.forged is not None:
        return _forged(task, planned.stage, planned.forged, base_url)
    if planned.as_record:
        return _record_callback(task, planned.stage, base_url)
    seen = task.timeline.snapshot_of_stage(planned.stage)
    data = {"callbackType": planned.stage, "data": _callback_tracks(task, seen, base_url), "task_id": task.id}
    if seen.code is not None:
        return {"code": seen.code, "data": {**data, "data": None}, "msg": seen.message}
    return {"code": 200, "data": data, "msg": _MESSAGES[planned.stage]}


_JOB_KEYS = (
    "taskId", "model", "state", "resultJson", "failCode", "failMsg", "createTime", "completeTime", "costTime",
    "creditsConsumed",
)  # fmt: skip


def _record_callback(task: EmulatedTask, stage: str, base_url: str) -> dict[str, Any]:
    """Write a callback in the shape of recordInfo, as the page of the jobs route shows it."""
    words = {"text": "TEXT_SUCCESS", "first": "FIRST_SUCCESS", "complete": "SUCCESS", "error": "FAILED"}
    ended = dict(task.timeline.stages()).get(stage) if stage in {"complete", "error"} else None
    seen = attrs.evolve(task.timeline.snapshot_of_stage(stage), word=words[stage], ended=ended)
    data = job_record(task, seen, base_url)["data"]
    model = next(name for name, operation in JOBS_MODELS.items() if operation == task.submission.operation)
    message = seen.message or "Playground task completed successfully."
    return {"code": seen.code or 200, "msg": message, "data": {**{key: data[key] for key in _JOB_KEYS}, "model": model}}


def _forged(task: EmulatedTask, stage: str, content: ForgedContent, base_url: str) -> dict[str, Any]:
    """Write a forged callback: an error if it has a code, or else foreign audio."""
    if content.code is not None:
        false = {"callbackType": stage, "data": None, "task_id": task.id}
        return {"code": content.code, "data": false, "msg": content.message or "forged"}
    tracks = _callback_tracks(task, TaskSnapshot(ready=2, listed=True), base_url)
    for track in tracks:
        track.update(audio_url=content.url, stream_audio_url=content.url, title="forged")
    data = {"callbackType": stage, "data": tracks, "task_id": task.id}
    return {"code": 200, "data": data, "msg": content.message or "All generated successfully."}
