"""The bytes of answers to values, and values back: the only place that knows cattrs. ``json_values`` reads the text.

Read tolerantly: keys in camelCase or snake_case, nulls, absent keys, numbers as text, dates as epoch milliseconds
or text; unknown keys fall away. Any input becomes a value, or raises ``BadResponseError``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import datetime
from functools import cache, partial
from os import PathLike
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from kie_async._protocol.json_values import (
    UNCLEAR,
    DoubledObject,
    Json,
    as_duration,
    as_integer,
    as_number,
    as_text,
    as_word,
    beginning,
    dump,
    load,
    load_marked,
    load_tolerantly,
    record_fields,
    upload_fields,
)
from kie_async._protocol.statuses import NO_ERROR, STAGE_WORDS, WORDS, Word
from kie_async._protocol.tracks import read_tracks, unpacked
from kie_async.errors import BadResponseError
from kie_async.models import CallbackEvent, Credits, ExtendRequest, TaskRecord, UploadedFile, UploadExtendRequest

if TYPE_CHECKING:
    import cattrs

T = TypeVar("T")

TASK_ID = re.compile(r"[A-Za-z0-9_-]{1,128}")  # no dot: "id.timestamp" is what a callback's signature covers
BARE_ID = re.compile(r"[0-9a-f]{32}")  # as the ids of tasks are; those of tracks have hyphens
_ID_IN_TEXT = re.compile(rb'"(?:taskId|task_id)"\s*:\s*"([0-9a-f]{32})"')


class Envelope(NamedTuple):
    """What every answer is wrapped in. ``code`` is None if there is none that can be read."""

    code: int | None = None
    msg: str = ""
    data: Any = None


def _get(data: object, *names: str) -> Json:
    """The first of these members that is there and not null; None for anything else."""
    if not isinstance(data, dict):
        return None
    for name in names:
        if (value := data.get(name)) is not None:
            return value
    return None


_ID = ("taskId", "task_id")
_ID_KEYS = frozenset(_ID)
_OF_A_TASK = _ID_KEYS | {"status", "state", "successFlag", "success_flag"}


def _first(data: object, *names: str) -> str | None:
    """The first of these members that is a text and not empty."""
    return next((text for name in names if (text := as_text(_get(data, name)))), None)


# ---------------------------------------------------------------- answers


def read_envelope(body: bytes) -> Envelope:
    """Read an answer's wrapping; its body code may be a number or text, or missing."""
    value = _single(load_tolerantly(body))
    if not isinstance(value, dict):
        raise BadResponseError(f"the answer is no JSON object; it begins {beginning(body)}")
    data = value.get("data")
    if data is None and not value.keys().isdisjoint(_ID):
        data = value  # members of the family put the id at the root
    return Envelope(as_integer(value.get("code")), _message(value), data)


def _message(value: Mapping[str, Any]) -> str:
    return as_text(value.get("msg")) or _first(value, "message", "error", "errorMessage", "detail") or ""


def read_task_id(data: object) -> str:
    """Read the id of a new task."""
    if isinstance(data, str):
        data = {"taskId": data} if BARE_ID.fullmatch(data) else data
    data = _bare(data)
    ids = (_get(data, name) for name in _ID)
    task_id = next((each.strip() for each in ids if isinstance(each, str) and each), "")
    if TASK_ID.fullmatch(task_id) is None:
        raise BadResponseError("the answer names no task id that can be one")
    return task_id


def task_id_in(body: bytes) -> str | None:
    """The task id in an answer that is no JSON, such as one cut off after it; None if there is not exactly one."""
    ids = set(_ID_IN_TEXT.findall(body))
    return ids.pop().decode() if len(ids) == 1 else None


def is_record(data: object) -> bool:
    """Whether this is the record of a task, and not an error about the question."""
    return bool(_first(_bare(data), "status", "state", "successFlag", "success_flag"))


def with_reason(envelope: Envelope) -> Json:
    """The record in an envelope; if it failed and does not say why, with the code and the message of the envelope."""
    data = _bare(envelope.data)
    code, reason = _why(data)
    if code or WORDS.get(_status(data, reason)) is not Word.FAILED:
        return data
    message = _first(data, "errorMessage", "error_message", "failMsg", "fail_msg") or envelope.msg
    return {**data, "failCode": envelope.code, "failMsg": message}


def read_record(data: object) -> TaskRecord | None:
    """Read record-info of either route; None if the service does not know the task (yet)."""
    if data is None or data in ({}, [], ""):
        return None
    data = _bare(data)
    if not isinstance(data, dict):
        raise BadResponseError("record-info is no object")
    fields = record_fields(data)
    code, reason = _why(data)
    fields["status"] = _status(data, reason)
    fields["tracks"] = read_tracks(data)
    fields["error_code"], fields["error_reason"] = code, reason
    if "error_message" not in fields:
        fields["error_message"] = as_text(_get(data, "failMsg", "fail_msg"))
    return TaskRecord(**fields)


def _bare(data: object, depth: int = 3) -> Json:
    """An object that came as JSON text, as the only item of a list, in another envelope, or as an only member."""
    data = _single(data)
    if depth and isinstance(data, dict) and ("data" in data or len(data) == 1) and _OF_A_TASK.isdisjoint(data):
        inner = _bare(data["data"] if "data" in data else next(iter(data.values())), depth - 1)
        return inner if isinstance(inner, dict) and not _OF_A_TASK.isdisjoint(inner) else data
    return data


def _single(data: object) -> Json:
    """An object that came as JSON text, or as the only item of a list."""
    if isinstance(data, str):
        data = unpacked(data)
    return data[0] if isinstance(data, list) and len(data) == 1 else data


def read_continue_at(param: str | None) -> float | None:
    """Read where the source was cut, in seconds, from the service's echo of a request; None if it does not say so."""
    held = unpacked(param) if param else None
    if isinstance(held, dict) and "input" in held:  # the jobs route
        held = _bare(held["input"])
    return as_duration(_get(held, "continueAt", "continue_at"))


_CODES = ("errorCode", "failCode", "error_code", "fail_code")
_NO_REASON = frozenset({"", "NULL", "NONE", "OK", "SUCCESS"})


def _why(data: Mapping[str, Any]) -> tuple[int | None, str | None]:
    """Why a task failed: its code, other than 0, and the words that stand in the place of a code."""
    code = reason = None
    for name in _CODES:
        if value := data.get(name):
            number = as_integer(value)
            if number is None and (text := as_text(value)) and _word(text) not in _NO_REASON:
                reason = reason or text.strip()
            code = code or number
    return code or None, reason


_RANK: Mapping[Word | None, int] = {Word.ENDED: 1, Word.SUCCEEDED: 2, Word.UNDELIVERED: 3, Word.FAILED: 4}
_FLAGS: Mapping[int | None, str] = {0: "GENERATING", 1: "SUCCESS", 2: "CREATE_TASK_FAILED", 3: "GENERATE_AUDIO_FAILED"}


def _word(value: object) -> str:
    return as_word(value).strip().upper().replace(" ", "_").replace("-", "_")


def _status(data: Mapping[str, Any], reason: str | None) -> str:
    """One word for both routes: that of ``status``, unless another member says more of how the task has ended.

    Others are ``state`` (the jobs route), a code in words that is itself the status of a failure, and, where there is
    no word at all, ``successFlag``.
    """
    failure = reason if reason and WORDS.get(_word(reason)) is Word.FAILED else None
    claims = data.get("status"), failure, data.get("state")
    words = [word for each in claims if each and (word := _word(each))]
    if len(words) == 1:  # nearly always
        return words[0]
    if words:
        return max(words, key=lambda word: _RANK.get(WORDS.get(word), 0))
    flag = _get(data, "successFlag", "success_flag")
    number = int(flag) if isinstance(flag, bool) else as_integer(flag)
    return _FLAGS.get(number, _word(flag))


def read_credits(data: object) -> Credits:
    """Read the credits left."""
    amount = as_number(data)
    if amount is None:
        amount = as_number(_get(data, "credit", "credits"))
    if amount is None:
        raise BadResponseError("the credits are no number")
    return Credits(amount)


def read_link(data: object) -> str:
    """Read the direct link to a generated file."""
    link = as_text(data) or _first(data, "url", "downloadUrl", "download_url")
    if link is None:
        raise BadResponseError("the answer holds no link")
    return link


def read_upload(data: object) -> UploadedFile:
    """Read what the upload host says of a file."""
    if not isinstance(data, dict) or data.get("success") is False:
        raise BadResponseError("the upload host did not take the file")
    url = _first(data, "downloadUrl", "download_url", "fileUrl", "file_url", "url")
    if url is None:
        raise BadResponseError("the upload host gave no address of the file")
    return UploadedFile(**{**upload_fields(data), "download_url": url})


# ---------------------------------------------------------------- callbacks


def read_callback(body: bytes) -> CallbackEvent:
    """Read the body of a callback: the classic one, or the shape of record-info, as the jobs route has it.

    Raises:
        BadResponseError: no JSON object, a key of what is claimed written twice, or no task id that could be one, or
            two that differ.
    """
    value, data = _claim(load_marked(body))
    places = data.get("task_id"), data.get("taskId"), value.get("task_id"), value.get("taskId")
    ids = {place for place in places if isinstance(place, str) and place}
    task_id = ids.pop() if len(ids) == 1 else ""
    if TASK_ID.fullmatch(task_id) is None:
        raise BadResponseError("the callback names no task id that can be one, or two that differ")
    claims = data or value
    code, message = as_integer(value.get("code")), _message(value)
    stage = as_word(_get(claims, "callbackType", "callback_type") or _get(value, "callbackType", "callback_type"))
    if not stage:
        own_code, reason = _why(claims)
        stage = _stage(_status(claims, reason)) or ("" if code in NO_ERROR else "error")
        if stage != "complete" and own_code not in NO_ERROR:  # refused already, whatever its status says
            stage = "error"
        if stage == "error":
            code = own_code or (None if code in NO_ERROR else code)
            message = as_text(_get(claims, "failMsg", "fail_msg", "errorMessage", "error_message")) or message
    return CallbackEvent(task_id, stage.strip().lower(), code, message, partial(read_tracks, claims))


def _claim(body: object, depth: int = 3) -> tuple[dict[str, Any], dict[str, Any]]:
    """The envelope of a callback, and its data; both may stand in another envelope."""
    value = _members(body)
    data = _members(value.get("data"))
    is_named = not _ID_KEYS.isdisjoint(value.keys() | data.keys())
    return (value, data) if is_named or not data or not depth else _claim({**value, "data": None, **data}, depth - 1)


_STAGES = {Word.FAILED: "error", Word.SUCCEEDED: "complete", Word.UNDELIVERED: "complete", Word.ENDED: "complete"}


def _stage(status: str) -> str:
    """The stage that a status word stands for; a running task without one keeps its word."""
    word = WORDS.get(status)
    return (word and _STAGES.get(word)) or STAGE_WORDS.get(status) or status


def _members(value: object) -> dict[str, Any]:
    """The members of an object, which may have come as JSON text, or alone in a list; none for anything else."""
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    if isinstance(value, str) and value.startswith("{"):
        value = load_marked(value.encode("utf-8", "replace"))
    if isinstance(value, DoubledObject):
        raise BadResponseError(UNCLEAR)
    return value if isinstance(value, dict) else {}


# ---------------------------------------------------------------- our own values, for the journal


@cache
def _converter() -> cattrs.Converter:
    """The converter, made when a journal first needs it: cattrs takes long to load."""
    import cattrs

    converter = cattrs.Converter(detailed_validation=False, omit_if_default=True)
    converter.register_unstructure_hook(datetime, datetime.isoformat)
    converter.register_structure_hook(datetime, lambda text, _type: datetime.fromisoformat(text))
    converter.register_structure_hook(
        ExtendRequest | UploadExtendRequest,
        lambda data, _type: (ExtendRequest if "audio_id" in data else UploadExtendRequest)(**data),
    )
    converter.register_unstructure_hook_func(lambda kind: kind == str | PathLike[str], str)
    return converter


def pack(value: object) -> str:
    """Write one of our own values as JSON text; defaults are left out."""
    return dump(_converter().unstructure(value)).decode()


def unpack(text: str | bytes, kind: type[T]) -> T:
    """Read what ``pack`` has written.

    Raises:
        BadResponseError: it is something else.
    """
    try:
        return _converter().structure(load(text.encode() if isinstance(text, str) else text), kind)
    except Exception as error:  # noqa: BLE001  # cattrs raises whatever the value's own types raise
        raise BadResponseError(f"no {kind.__name__} can be read from it: {type(error).__name__}") from None
