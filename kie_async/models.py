"""Values: what is asked of the service and what it answers. No input or output happens here.

The service checks next to nothing when a task is submitted and refuses later, perhaps after the credits are gone; so
a request that breaks one of its rules cannot even be built here.
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
    """What both operations share; ``ExtendRequest`` describes the fields."""

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
        """All fields by name, those not given included."""
        return {field.name: getattr(self, field.name) for field in attrs.fields(type(self))}

    @property
    def own_parameters(self) -> bool:
        """``default_param_flag`` as it will be sent: as given, or else by what is given."""
        if self.default_param_flag is not None:
            return self.default_param_flag
        return any(getattr(self, name) is not None for name in self._own_names)


@attrs.frozen(kw_only=True)
class ExtendRequest(_Request):
    """Extend a track that the service made (``POST /api/v1/generate/extend``).

    With neither prompt, style, title nor continue_at the parameters of the source track are inherited; with any
    of them all are required (the prompt unless instrumental). Lengths count characters; moments and lengths of audio
    are seconds.

    Attributes:
        audio_id: the id of the *track* (``Track.id``), not of its task.
        model: required: the one that made the track. One of ``MODELS``, or a newer one, which is sent with a notice to
            the observer.
        prompt: exact lyrics; of no effect when instrumental.
        style: the style of music.
        title: the title of the new tracks.
        continue_at: where the source is cut and continued: seconds above 0 and below its length, or text: "45.5",
            "1:05", or, where the length of the source can be known, "75%" or "-10s" (before its end).
        instrumental: no voice.
        negative_tags: styles to keep out.
        vocal_gender: "m" or "f"; a tendency only.
        style_weight, weirdness_constraint, audio_weight: each 0 to 1 in steps of 0.01.
        persona_id: a persona made with the service; it needs own parameters.
        persona_model: "style_persona" (the service's default) or "voice_persona"; documented for V5 and V5_5 only,
            sent with a notice to newer models.
        default_param_flag: True: own parameters; False: those of the source. None: follows from what is given.
        source_duration: the length of the source in seconds, if known. Never sent; ``continue_at`` is held to it.

    Raises:
        InvalidRequestError: with every problem of the request at once.

    What is only pointless is sent as it is given, and reported to the session's observer.
    """

    operation: ClassVar[Operation] = "extend"
    _own_names = ("prompt", "style", "title", "continue_at")

    audio_id: str = attrs.field(kw_only=False)


@attrs.frozen(kw_only=True)
class UploadExtendRequest(_Request):
    """Extend audio of your own (``POST /api/v1/generate/upload-extend``).

    ``continue_at`` is always required. With any of prompt, lyrics, style and title, the style and the title are
    required, and the prompt (as exact lyrics) or ``lyrics`` unless instrumental. With ``default_param_flag=False``
    lyrics are made from the prompt, if there is one.

    Attributes:
        source: a path, which is uploaded first, or the URL of audio that the service can fetch. At most 8 minutes
            (1 minute for V4_5ALL).
        model: any will do; V5 by default.
        lyrics: exact lyrics, at most 5000 characters; they go before the prompt. The jobs route alone takes them.
        variety: 0 to 4. The jobs route alone takes it.

    The other fields are those of ``ExtendRequest``.

    Raises:
        InvalidRequestError: with every problem of the request at once.
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
    """A track of a task. A text the service did not give is None; tolerant of whatever else it gives.

    Attributes:
        id: the id of the track; what ``extend`` takes as ``audio_id``.
        audio_url: the finished audio (mp3), kept for days only: download at once. None until it is ready.
        stream_audio_url: audio to listen to while it is being made; decays to nothing later.
        duration: seconds.
        created_at: when the service made it (aware, UTC).
        prompt: the lyrics.
        tags: the style.
        model_name: the model's code name, such as "chirp-crow".
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
        """Return all fields as JSON types; a moment is ISO 8601 text."""
        return attrs.asdict(self, recurse=False, value_serializer=_serialized)

    def _repr_html_(self) -> str:
        from kie_async._display import track_html  # for notebooks alone

        return track_html(self)


@attrs.frozen
class TaskRecord:
    """What the service says of a task (record-info), the same for both routes.

    Attributes:
        task_id: the id asked for, as the service gave it back.
        status: the service's word, upper case; an open set.
        tracks: those known so far, placeholders without an id left out.
        error_code: a number other than 0 when the service refused or failed the task, whatever the status says.
        error_message: its words; can hold signed addresses, so redact it before showing it.
        operation_type: "extend", "upload_extend" and others.
        type: the model's code name, or other words; an open set.
        param: the request as the service echoes it (JSON text).
        credits_consumed: what the task cost, where the service says so (the jobs route).
        created_at: when it was submitted (aware, UTC).
        completed_at: when it ended, where the service says so (the jobs route).
        error_reason: the code in words ("SENSITIVE_WORD_ERROR"), where the service gives it so (the jobs route).
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
        """Return the fields as JSON types, without what is secret: ``param``, and the addresses in the message."""
        fields = attrs.asdict(self, recurse=False, value_serializer=_serialized)
        del fields["param"]
        message = self.error_message and clean(self.error_message)
        return fields | {"error_message": message, "tracks": [track.to_dict() for track in self.tracks]}


def _serialized(_instance: object, _field: object, value: object) -> object:
    return value.isoformat() if isinstance(value, datetime) else value


@attrs.frozen
class CallbackEvent:
    """The body of a callback: a hint that a task moved, never the truth about it.

    Attributes:
        task_id: the task it speaks of.
        stage: the service's ``callbackType``: text, first, complete, error, or a word not known yet, lower case. In a
            callback of the shape of record-info it follows from the status.
        code: 200, or why the task failed.
        message: the service's words; real texts differ from the documented ones.
        tracks: as the body claims; read from it when they are asked for, for the library never asks.
    """

    task_id: str
    stage: str = ""
    code: int | None = None
    message: str = ""
    _read_tracks: Callable[[], tuple[Track, ...]] = attrs.field(default=tuple, repr=False, eq=False)

    @property
    def tracks(self) -> tuple[Track, ...]:
        """The tracks as the body claims them."""
        return self._read_tracks()


@attrs.frozen
class Credits:
    """The credits left on the account; a fraction is possible."""

    amount: float

    def __float__(self) -> float:
        return self.amount


@attrs.frozen
class UploadedFile:
    """A file taken by the service's upload host; treat it as kept for 24 hours.

    Attributes:
        download_url: the address to give as the source of ``UploadExtendRequest``.
        size: bytes, as the host counted them.
        duration: seconds, as measured before sending; None where that was not asked for.
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
        """Where the tracks can be listened to already."""
        return tuple(track.stream_audio_url for track in self.tracks if track.stream_audio_url)


@attrs.frozen
class TaskResult:
    """What a task made: normally two tracks, of very different length.

    Attributes:
        task_id: the task.
        tracks: those with audio.
        record: the record of its end.
        partial: whether some tracks of the task never got their audio.
        continue_at: where the source was cut, seconds, by the request or the service's echo of it.
        source_duration: the length of the source in seconds, where the request had it.
    """

    task_id: str
    tracks: tuple[Track, ...]
    record: TaskRecord = attrs.field(repr=False)
    partial: bool = False
    continue_at: float | None = None
    source_duration: float | None = None

    def holds(self, track: Track) -> Literal["continuation", "unknown"]:
        """Say what a track is proven to hold; whether it is the whole song or what was added is not documented.

        Returns:
            "continuation": not longer than ``continue_at``, so what was added alone. "unknown": listen before joining.
        """
        is_short = self.continue_at is not None and track.duration is not None and track.duration <= self.continue_at
        return "continuation" if is_short else "unknown"

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON types, for a web handler; each track with what it ``holds``."""
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
    """The end of one request of ``submit_all``: a result or an error, never both.

    Attributes:
        request: the request, as given.
        task_id: the task it became; None when it was refused, or its answer was lost.
    """

    request: Request
    task_id: str | None = None
    result: TaskResult | None = None
    error: KieError | None = None
