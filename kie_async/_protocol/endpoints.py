"""What the service can do: how to ask, and how to read what it answers.

Both routes stand here, and nothing above knows which of them is in use.

The addresses are those of kie.ai's pages "Extend Music", "Upload And Extend Audio", "Get Music Task Details" and
"Get Remaining Credits"; of the jobs route, "Create Task" and "Get Task Details".
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, Generic, Literal, NamedTuple, TypeVar

import attrs

from kie_async._protocol import wire
from kie_async._protocol.json_values import camel_case
from kie_async.errors import BadResponseError
from kie_async.models import Credits, ExtendRequest, Request, TaskRecord, UploadedFile, UploadExtendRequest
from kie_async.settings import RouteName

T = TypeVar("T")


class FilePart(NamedTuple):
    """A file to be sent.

    Attributes:
        size: bytes; what is sent is held to it.
        file_name: the name it gets there; the same name would overwrite.
        on_bytes: called with the number of bytes sent so far.
    """

    path: Path
    size: int
    file_name: str
    on_bytes: Callable[[int], None] | None = None


class ApiCall(NamedTuple, Generic[T]):
    """One thing the service can do: how to ask, and what it answers.

    Attributes:
        name: for errors and observers.
        read: the body's ``data`` to the answer.
        spends: whether it costs credits, so that it must never be sent twice.
        not_found_codes: body codes (or HTTP statuses) that only say "no such thing": ``read(None)`` is returned.
        terminal_codes: body codes that are no refusal, but say how the task that is asked for has ended; ``read`` is
            then given ``state``, ``failCode`` and ``failMsg``.
        host: the API, or the host that takes files.
    """

    name: str
    method: Literal["GET", "POST"]
    path: str
    read: Callable[[Any], T]
    query: Mapping[str, str] = MappingProxyType({})
    body: Mapping[str, Any] | None = None
    file: FilePart | None = None
    spends: bool = False
    not_found_codes: frozenset[int] = frozenset()
    terminal_codes: frozenset[int] = frozenset()
    host: Literal["api", "upload"] = "api"

    def __repr__(self) -> str:
        return f"<ApiCall {self.name}>"  # the body holds the callback's token


class Route(NamedTuple):
    """One of the two ways to the same tasks.

    Attributes:
        polls_per_second: how often record-info may be read in all; None where no such limit is known.
        submit: the call that submits a request; an uploaded source is an address by then.
        record_info: the call that reads a task.
    """

    polls_per_second: float | None
    submit: Callable[[Request, str], ApiCall[str]]
    record_info: Callable[[str], ApiCall[TaskRecord | None]]


_NOT_SENT = frozenset({"default_param_flag", "source_duration"})
_SENT = {
    kind.operation: tuple(field.name for field in attrs.fields(kind) if field.name not in _NOT_SENT)
    for kind in (ExtendRequest, UploadExtendRequest)
}
_AS_SENT: Mapping[str, Callable[[Any], Any]] = {
    "source": str,
    "variety": lambda number: int(number) if number == int(number) else number,  # a whole one without a point
    **dict.fromkeys(("style_weight", "weirdness_constraint", "audio_weight"), lambda weight: round(weight, 2)),
}


def parameters(request: Request) -> dict[str, Any]:
    """The fields of a request in snake_case, without those not given; what is left out is left to the service."""
    return {
        "upload_url" if name == "source" else name: _AS_SENT[name](value) if name in _AS_SENT else value
        for name in _SENT[request.operation]
        if (value := getattr(request, name)) is not None
    }


def _submit_classic(request: Request, callback_url: str) -> ApiCall[str]:
    fields = {camel_case(name): value for name, value in parameters(request).items()}
    if isinstance(request, ExtendRequest) and not request.instrumental:
        del fields["instrumental"]  # newer than the rest of extend: sent only when it says something
    body = {"defaultParamFlag": request.own_parameters, **fields, "callBackUrl": callback_url}
    path = "/api/v1/generate/" + request.operation.replace("_", "-")
    return ApiCall(request.operation, "POST", path, wire.read_task_id, body=body, spends=True)


JOBS_MODELS = {"extend": "ai-music-api/extend", "upload_extend": "ai-music-api/upload-and-extend-audio"}


def _submit_jobs(request: Request, callback_url: str) -> ApiCall[str]:
    body = {"model": JOBS_MODELS[request.operation], "callBackUrl": callback_url, "input": parameters(request)}
    return ApiCall(request.operation, "POST", "/api/v1/jobs/createTask", wire.read_task_id, body=body, spends=True)


# An unknown task is 200 with null data on the classic route, 422 "recordInfo is null" on the other.
_NOT_FOUND = frozenset({404, 422})
_ENDS = frozenset({413, 451, 501, 531})  # ends of tasks; they say nothing of a question


def _record_info(path: str, task_id: str) -> ApiCall[TaskRecord | None]:
    read = partial(_read_own_record, task_id)
    query = {"taskId": task_id}
    return ApiCall("record_info", "GET", path, read, query, not_found_codes=_NOT_FOUND, terminal_codes=_ENDS)


def _read_own_record(task_id: str, data: object) -> TaskRecord | None:
    record = wire.read_record(data)
    if record is not None and record.task_id not in {task_id, ""}:  # an answer that a proxy mixed up
        raise BadResponseError("record-info speaks of another task", retryable=True)
    return record


ROUTES: Mapping[RouteName, Route] = {
    "classic": Route(None, _submit_classic, partial(_record_info, "/api/v1/generate/record-info")),
    "jobs": Route(10.0, _submit_jobs, partial(_record_info, "/api/v1/jobs/recordInfo")),
}

credits_left: ApiCall[Credits] = ApiCall("credits", "GET", "/api/v1/chat/credit", wire.read_credits)


def download_url(url: str) -> ApiCall[str]:
    """A direct link to a generated file, good for 20 minutes; other addresses are refused (422)."""
    return ApiCall("download_url", "POST", "/api/v1/common/download-url", wire.read_link, body={"url": url})


def upload(part: FilePart) -> ApiCall[UploadedFile]:
    """Send a file to the upload host; it costs nothing, so it may be sent again."""
    return ApiCall("upload", "POST", "/api/file-stream-upload", wire.read_upload, file=part, host="upload")
