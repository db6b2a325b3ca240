"""Values: the requests to the service and its answers. No input or output happens here.

The service checks little when a task is submitted and lets it fail later, perhaps after charging for it. So a request
that breaks one of its rules cannot even be constructed here.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from os import PathLike
from typing import Any, ClassVar, Literal, TypeAlias

import attrs

from kie_async._protocol.request_rules import compute_cut_point, find_problems
from kie_async.errors import KieError, invalid_request
from kie_async.events import clean

Stage: TypeAlias = Literal["text", "first", "complete"]
Operation: TypeAlias = Literal["extend", "upload_extend"]
KnownModel: TypeAlias = Literal[
    "V3_5", "V4", "V4_5", "V4_5PLUS", "V4_5ALL", "V5", "V5_5", "V6", "V6_MINI", "V6_WILD"
]  # fmt: skip
Model: TypeAlias = KnownModel | str  # open for new names; editors offer those that are known

STAGES: tuple[Stage, ...] = ("text", "first", "complete")


@attrs.frozen(kw_only=True)
class _Request:
    """The fields of both operations; ``ExtendRequest`` describes them."""

    operation: ClassVar[Operation]
    _own_names: ClassVar[tuple[str, ...]]  # any of them given means own parameters

    model: Model = ""
    prompt: str | None = None
    style: str | None = None
    title: str | None = None
    continue_at: float | str | None = None
    instrumental: bool = False
    negative_tags: str | None = None
    vocal_gender: Literal["m", "f"] | None = None
    style_weight: float | None = None
    weirdness_constraint: float | None = None
    audio_weight: float | None = None
    persona_id: str | None = None
    persona_model: Literal["style_persona", "voice_persona"] | None = None
    default_param_flag: bool | None = None
    source_duration: float | None = None

    def __attrs_post_init__(self) -> None:
        object.__setattr__(self, "continue_at", compute_cut_point(self.continue_at, self.source_duration))
        fields = self.fields()
        if problems := list(find_problems(fields, own_parameters=self.own_parameters)):
            raise invalid_request(*problems)

    def fields(self) -> dict[str, object]:
        """All fields by name, including those that were not given."""
        return {field.name: getattr(self, field.name) for field in attrs.fields(type(self))}

    @property
    def own_parameters(self) -> bool:
        """``default_param_flag`` as it is sent: as given, or else True if any field that requires it is given."""
        if self.default_param_flag is not None:
            return self.default_param_flag
        return any(getattr(self, name) is not None for name in self._own_names)


@attrs.frozen(kw_only=True)
class ExtendRequest(_Request):
    """Extend a track that the service made (``POST /api/v1/generate/extend``).

    Without prompt, style, title and continue_at, the new part has the parameters of the source track. If any of them
    is given, all are required (the prompt unless instrumental). Texts are limited in characters, by model; positions
    and lengths of audio are in seconds.

    Attributes:
        audio_id: the id of the *track* (``Track.id``), not of its task.
        model: required: the model that made the track. One of ``MODELS``; another name is sent too, with a notice to
            the observer.
        prompt: the exact lyrics; has no effect if instrumental.
        style: the style of the music.
        title: the title of the new tracks.
        continue_at: where the source is cut and continued: seconds, above 0 and below its length, or text: "45.5",
            "1:05", "1m05s", or, if the length of the source is known or can be measured, "75%" or "-10s" (before its
            end).
        instrumental: without voice.
        negative_tags: styles to avoid.
        vocal_gender: "m" or "f"; only a tendency.
        style_weight, weirdness_constraint, audio_weight: each from 0 to 1, in steps of 0.01.
        persona_id: a persona made with the service; requires own parameters (``default_param_flag``).
        persona_model: "style_persona" (the service's default) or "voice_persona"; documented for V5 and V5_5 only, and
            sent with a notice to newer models.
        default_param_flag: True for own parameters, False for those of the source; None: follows from the fields given.
        source_duration: the length of the source in seconds, if known. It is not sent; ``continue_at`` is checked
            against it.

    Raises:
        InvalidRequestError: the request breaks rules; ``problems`` has all of them.

    A field that has no effect is sent as given, and reported to the session's observer.
    """

    operation: ClassVar[Operation] = "extend"
    _own_names = ("prompt", "style", "title", "continue_at")

    audio_id: str = attrs.field(kw_only=False)


@attrs.frozen(kw_only=True)
class UploadExtendRequest(_Request):
    """Extend audio of your own (``POST /api/v1/generate/upload-extend``).

    ``continue_at`` is always required. If any of prompt, lyrics, style and title is given, style and title are
    required, and unless instrumental also the prompt (as exact lyrics) or ``lyrics``. With
    ``default_param_flag=False`` the service writes lyrics from the prompt, if there is one.

    Attributes:
        source: the path of a file, which is uploaded first, or the URL of audio that the service can fetch. At most 8
            minutes (1 minute for V4_5ALL).
        model: any model; V5 by default.
        lyrics: the exact lyrics, at most 5000 characters; used instead of the prompt. Only on the jobs route.
        variety: from 0 to 4. Only on the jobs route.

    The other fields are those of ``ExtendRequest``.

    Raises:
        InvalidRequestError: the request breaks rules; ``problems`` has all of them.
    """

    operation: ClassVar[Operation] = "upload_extend"
    _own_names = ("prompt", "style", "title", "lyrics")

    source: str | PathLike[str] = attrs.field(kw_only=False)
    model: Model = "V5"
    lyrics: str | None = None
    variety: float | None = None


Request: TypeAlias = ExtendRequest | UploadExtendRequest


@attrs.frozen
class Track:
    """A track of a task. A field that the service did not give, or gave in an unknown form, is None.

    Attributes:
        id: the id of the track; ``extend`` takes it as ``audio_id``.
        audio_url: the finished audio (mp3); None until it is ready. The service keeps it for 14 days (by another of
            its pages, for 24 hours): download it soon.
        stream_audio_url: audio to listen to while the track is being made; later it gives nothing.
        image_url: the cover picture.
        prompt: the lyrics.
        model_name: the code name of the model, such as "chirp-crow".
        title: the title.
        tags: the style.
        duration: the length in seconds.
        created_at: when the service made it (aware, UTC).
        source_audio_url, source_stream_audio_url, source_image_url: other addresses of the same files, if given.
    """

    id: str = ""
    audio_url: str | None = None
    stream_audio_url: str | None = None
    image_url: str | None = None
    prompt: str | None = None
    model_name: str | None = None
    title: str | None = None
    tags: str | None = None
    duration: float | None = None
    created_at: datetime | None = None
    source_audio_url: str | None = None
    source_stream_audio_url: str | None = None
    source_image_url: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return all fields as JSON types; times are ISO 8601 text."""
        return attrs.asdict(self, recurse=False, value_serializer=_serialized)

    def _repr_html_(self) -> str:
        from kie_async._display import track_html  # for notebooks alone

        return track_html(self)


@attrs.frozen
class TaskRecord:
    """The service's record of a task (record-info); the same for both routes.

    Attributes:
        task_id: the id of the task, as the service returned it.
        status: the service's status word, in upper case, such as "PENDING" or "SUCCESS"; new words may appear.
        tracks: the tracks known so far; placeholders without an id are left out.
        error_code: a number other than 0 if the service refused or failed the task, whatever the status is.
        error_message: the service's message; it may hold signed addresses, so redact it before showing it.
        operation_type: "extend", "upload_extend" and others.
        type: the code name of the model, or another word.
        parent_music_id: the id of the track that was extended.
        param: the request as the service echoes it (JSON text).
        credits_consumed: what the task cost in credits; only on the jobs route.
        created_at: when it was submitted (aware, UTC).
        completed_at: when it ended (aware, UTC); only on the jobs route.
        error_reason: the code in words ("SENSITIVE_WORD_ERROR"); only on the jobs route.
    """

    task_id: str = ""
    status: str = ""
    tracks: tuple[Track, ...] = ()
    error_code: int | None = None
    error_message: str | None = None
    operation_type: str | None = None
    type: str | None = None
    parent_music_id: str | None = None
    param: str | None = None
    credits_consumed: float | None = None
    created_at: datetime | None = None
    completed_at: datetime | None = None
    error_reason: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON types, without secrets: no ``param``, and addresses in the message redacted."""
        fields = attrs.asdict(self, recurse=False, value_serializer=_serialized)
        del fields["param"]
        message = self.error_message and clean(self.error_message)
        return fields | {"error_message": message, "tracks": [track.to_dict() for track in self.tracks]}


def _serialized(_instance: object, _field: object, value: object) -> object:
    return value.isoformat() if isinstance(value, datetime) else value


@attrs.frozen
class CallbackEvent:
    """The body of a callback. It is only a hint that a task has changed: ``record_info`` says what is true.

    Attributes:
        task_id: the task that it names.
        stage: the service's ``callbackType`` in lower case: text, first, complete, error, or an unknown word. If the
            body has the form of record-info, it follows from the status.
        code: 200, or the code of the failure.
        message: the service's message; real texts differ from the documented ones.
        tracks: the tracks in the body; parsed when first read, because the library itself does not use them.
    """

    task_id: str
    stage: str = ""
    code: int | None = None
    message: str = ""
    _read_tracks: Callable[[], tuple[Track, ...]] = attrs.field(default=tuple, repr=False, eq=False)

    @property
    def tracks(self) -> tuple[Track, ...]:
        """The tracks in the body; unverified."""
        return self._read_tracks()


@attrs.frozen
class Credits:
    """The credits left on the account; can be a fraction. ``float(credits)`` gives the number."""

    amount: float

    def __float__(self) -> float:
        return self.amount


@attrs.frozen
class UploadedFile:
    """A file on the service's upload host. Its pages say 24 hours or 3 days: count on 24 hours.

    Attributes:
        download_url: the address to give as the source of ``UploadExtendRequest``.
        file_name: its name at the host.
        file_path: its path at the host.
        size: its size in bytes, as the host counted them.
        mime_type: its type, as the host says.
        uploaded_at: when the host received it (aware, UTC).
        duration: its length in seconds, measured before it was sent; None if it was not measured.
    """

    download_url: str
    file_name: str = ""
    file_path: str | None = None
    size: int | None = None
    mime_type: str | None = None
    uploaded_at: datetime | None = None
    duration: float | None = None


@attrs.frozen
class TaskEvent:
    """A stage that a task has reached: "text", "first" or "complete", with the tracks known by then."""

    task_id: str
    stage: Stage
    tracks: tuple[Track, ...] = ()

    @property
    def stream_urls(self) -> tuple[str, ...]:
        """The addresses where the tracks can be listened to while they are being made."""
        return tuple(track.stream_audio_url for track in self.tracks if track.stream_audio_url)


@attrs.frozen
class TaskResult:
    """What a task has made: usually two tracks, of very different length.

    Attributes:
        task_id: the id of the task.
        tracks: the tracks that have audio.
        record: the service's record of the finished task.
        partial: whether some tracks of the task never got their audio.
        continue_at: where the source was cut, in seconds, by the request or by the service's echo of it.
        source_duration: the length of the source in seconds, if the request had it.
    """

    task_id: str
    tracks: tuple[Track, ...]
    record: TaskRecord = attrs.field(repr=False)
    partial: bool = False
    continue_at: float | None = None
    source_duration: float | None = None

    def holds(self, track: Track) -> Literal["continuation", "unknown"]:
        """Say what a track holds, as far as its length proves it. The service does not document which it gives.

        Returns:
            "continuation" if the track is not longer than ``continue_at``, so it holds only the new part; otherwise
            "unknown": it may be the whole song.
        """
        is_short = self.continue_at is not None and track.duration is not None and track.duration <= self.continue_at
        return "continuation" if is_short else "unknown"

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON types, as for a web handler; each track also has what it ``holds``."""
        record = self.record.to_dict()
        del record["tracks"]
        return {
            "task_id": self.task_id,
            "tracks": [track.to_dict() | {"holds": self.holds(track)} for track in self.tracks],
            "record": record,
            "partial": self.partial,
            "continue_at": self.continue_at,
            "source_duration": self.source_duration,
        }

    def _repr_html_(self) -> str:
        from kie_async._display import result_html  # for notebooks alone

        return result_html(self)


@attrs.frozen
class Outcome:
    """The outcome of one request of ``submit_all``: either a result or an error.

    Attributes:
        request: the request, as given.
        task_id: the id of its task; None if it was refused, or if its answer was lost.
        result: what the task has made; None if there is an error.
        error: why there is no result; None if there is one.
    """

    request: Request
    task_id: str | None = None
    result: TaskResult | None = None
    error: KieError | None = None
