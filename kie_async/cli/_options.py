"""The options that commands share, each group a frozen value."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, TypeAlias, cast

import attrs
from cyclopts import Group, Parameter
from cyclopts.validators import Number

from kie_async._protocol import cut_point
from kie_async.cli._exit_codes import UsageError
from kie_async.cli._output import Output
from kie_async.emulator import KINDS
from kie_async.models import MODELS, RequestFields, UploadFields
from kie_async.settings import RouteName

MAX_PORT = 65_535

_MUSIC = Group("Music", sort_key=1)
_RUN = Group("Run", sort_key=2)
_CALLBACKS = Group("Callbacks", sort_key=3)
_COMMON = Group("Common", sort_key=4)

OutputArg: TypeAlias = Annotated[Output, Parameter(parse=False)]
Seconds: TypeAlias = Annotated[float, Parameter(validator=Number(gte=0))]
Directory: TypeAlias = Annotated[Path, Parameter(name="--out", group=_RUN, help="Where the files go.")]
Out: TypeAlias = Annotated[
    Path | None, Parameter(name="--out", group=_RUN, help="Download the tracks into this directory.")
]
Timeout: TypeAlias = Annotated[
    Seconds | None,
    Parameter(name="--timeout", group=_RUN, help="Seconds to wait for the result; the task goes on beyond them."),
]


@Parameter(name="*", group=_COMMON)
@attrs.frozen(kw_only=True)
class OutputOptions:
    """What is written; these are read before the others, because errors in those are written that way too."""

    json: Annotated[bool, Parameter(help="Write one JSON value to stdout, errors included.")] = False
    verbose: Annotated[bool, Parameter(name=("--verbose", "-v"), help="Show the log.")] = False


@Parameter(name="*", group=_COMMON)
@attrs.frozen(kw_only=True)
class CommonOptions(OutputOptions):
    """What every command takes that asks the service."""

    route: Annotated[RouteName, Parameter(help="Which of the service's two routes to take.")] = "classic"


JournalOption: TypeAlias = Annotated[
    str | None,
    Parameter(
        name="--journal",
        group=_RUN,
        metavar="PATH-or-URL",
        help="Where the jobs are kept: a file, or postgresql://... for many machines; by default $KIE_JOURNAL, or "
        "else a file in --out.",
    ),
]
Yes: TypeAlias = Annotated[bool, Parameter(name="--yes", group=_RUN, help="Do not ask, but do it.")]

Jsonl: TypeAlias = Annotated[
    bool, Parameter(group=_RUN, help="Write a line of JSON to stdout for each transition of a job.")
]

_NO_FIELDS = frozenset({"at", "duration", "prompt_file"})  # options of Music that are no fields of a request
_NOT_GIVEN = ("instrumental", False)  # the switch without the option
_UPLOAD_ONLY = UploadFields.__annotations__.keys() - RequestFields.__annotations__.keys()


@Parameter(name="*", group=_MUSIC)
@attrs.frozen(kw_only=True)
class Music:
    """The fields of a request. A field that breaks a rule is refused before anything is spent."""

    at: Annotated[
        str | None,
        Parameter(
            allow_leading_hyphen=True,
            metavar="POSITION",
            help="Where to cut the song and go on: 45.5 or 1:05 (seconds), 75%, or -10s (before its end).",
        ),
    ] = None
    duration: Annotated[
        float | None, Parameter(help="The length of the song in seconds, where it cannot be measured.")
    ] = None
    model: Annotated[
        str | None,
        Parameter(help=f"One of {', '.join(MODELS)}; V5 for audio of your own, for a track the one that made it."),
    ] = None
    prompt: Annotated[str | None, Parameter(help="The lyrics.")] = None
    prompt_file: Annotated[Path | None, Parameter(help="A text file with the lyrics.")] = None
    style: Annotated[str | None, Parameter(help="The style of music.")] = None
    title: Annotated[str | None, Parameter(help="The title of the new tracks.")] = None
    instrumental: Annotated[bool, Parameter(help="No voice.")] = False
    negative_tags: Annotated[str | None, Parameter(help="Styles to keep out.")] = None
    vocal_gender: Annotated[Literal["m", "f"] | None, Parameter(help="A tendency only.")] = None
    style_weight: Annotated[float | None, Parameter(help="From 0 to 1 in steps of 0.01, as the next two.")] = None
    weirdness_constraint: float | None = None
    audio_weight: float | None = None
    persona_id: Annotated[str | None, Parameter(help="A persona made with the service.")] = None
    persona_model: Literal["style_persona", "voice_persona"] | None = None
    lyrics: Annotated[str | None, Parameter(help="Exact lyrics, which go before the prompt (--route jobs, SONG).")] = (
        None
    )
    variety: Annotated[float | None, Parameter(help="From 0 to 4 (--route jobs, SONG).")] = None
    default_param_flag: Annotated[
        bool | None,
        Parameter(
            negative="--no-default-param-flag",
            help="Own parameters, or those of the source; by default it follows from what is given.",
        ),
    ] = None

    def of_upload(self, continue_at: float | str | None, length: float | None) -> UploadFields:
        """The fields of a request that extends audio of one's own."""
        given = attrs.asdict(self, filter=lambda field, _: field.name not in _NO_FIELDS)
        given |= {"prompt": self._prompt(), "continue_at": continue_at, "source_duration": length}
        if self.model is None:
            del given["model"]
        return cast("UploadFields", given)

    def of_track(self, continue_at: float | str | None) -> RequestFields:
        """The fields of a request that extends a track of the service."""
        for name in _UPLOAD_ONLY:
            if getattr(self, name) is not None:
                raise UsageError(f"--{name} is for upload-extend alone: leave it out")
        given = self.of_upload(continue_at, self.duration)
        return cast("RequestFields", {name: value for name, value in given.items() if name not in _UPLOAD_ONLY})

    def shared(self) -> dict[str, object]:
        """The fields that all jobs of a manifest share, as ``read_manifest`` takes them."""
        given: dict[str, object] = {**self.of_upload(None, self.duration), "continue_at": self.at}
        return {name: value for name, value in given.items() if value is not None and (name, value) != _NOT_GIVEN}

    def _prompt(self) -> str | None:
        if self.prompt_file is None:
            return self.prompt
        if self.prompt is not None:
            raise UsageError("--prompt and --prompt-file are both given: leave one out")
        try:
            return self.prompt_file.read_text("utf-8").strip()
        except OSError as error:
            raise UsageError(f"--prompt-file: {self.prompt_file} cannot be read: {error.strerror}") from None
        except UnicodeDecodeError:
            raise UsageError(f"--prompt-file: {self.prompt_file} is not UTF-8: save it as UTF-8") from None


@Parameter(name="*", group=_RUN)
@attrs.frozen(kw_only=True)
class RunOptions:
    """What happens around a submission."""

    out: Out = None
    emulate: Annotated[bool, Parameter(help="Use the built-in emulator: no key, no cost, invented music.")] = False
    no_wait: Annotated[bool, Parameter(help="Print the id of the task and leave.")] = False
    timeout: Timeout = None


@Parameter(name="*", group=_CALLBACKS)
@attrs.frozen(kw_only=True)
class CallbackOptions:
    """How callbacks of the service are received."""

    callbacks: Annotated[
        bool, Parameter(help="Receive callbacks in this process, instead of asking again and again.")
    ] = False
    callback_url: Annotated[
        str | None, Parameter(help="Where the service reaches the receiver; by default KIE_CALLBACK_URL.")
    ] = None
    bind: Annotated[
        str | None,
        Parameter(
            name=("--bind", "--listen"), metavar="HOST:PORT", help="Where the receiver listens (127.0.0.1:8080)."
        ),
    ] = None

    def check(self) -> None:
        """Refuse what has no meaning without another option."""
        if self.bind and not self.callbacks:
            raise UsageError("--bind is given without --callbacks")


@Parameter(name="*")
@attrs.frozen(kw_only=True)
class SubmitOptions:
    """All the options of a command that submits."""

    music: Music = Music()
    run: RunOptions = RunOptions()
    receiver: CallbackOptions = CallbackOptions()
    common: CommonOptions = CommonOptions()


@Parameter(name="*", group=_RUN)
@attrs.frozen(kw_only=True)
class BatchRunOptions:
    """How a batch runs."""

    journal: JournalOption = None
    yes: Yes = False
    dry_run: Annotated[bool, Parameter(help="Show what would be done and what it would cost; send nothing.")] = False
    max_credits: Annotated[
        float | None, Parameter(validator=Number(gte=0), help="Never spend more than this on the batch.")
    ] = None
    emulate: Annotated[
        bool,
        Parameter(
            help="Use a built-in emulator: no key, no cost. It ends with the command; 'kie-async emulate' lasts."
        ),
    ] = False
    jsonl: Jsonl = False


@Parameter(name="*")
@attrs.frozen(kw_only=True)
class BatchOptions:
    """All the options of a batch, besides its directory."""

    music: Music = Music()
    batch: BatchRunOptions = BatchRunOptions()
    receiver: CallbackOptions = CallbackOptions()
    common: CommonOptions = CommonOptions()


@Parameter(name="*", group=_RUN)
@attrs.frozen(kw_only=True)
class WorkerRunOptions:
    """How a worker works."""

    journal: JournalOption = None
    at_once: Annotated[int, Parameter(help="Jobs under way here at once (100).", validator=Number(gte=1))] = 100
    until_done: Annotated[bool, Parameter(help="Leave when every job has come to its end.")] = False
    jsonl: Jsonl = False


@Parameter(name="*")
@attrs.frozen(kw_only=True)
class WorkerOptions:
    """All the options of a worker, besides its directory."""

    worker: WorkerRunOptions = WorkerRunOptions()
    receiver: CallbackOptions = CallbackOptions()
    common: CommonOptions = CommonOptions()


@Parameter(name="*")
@attrs.frozen(kw_only=True)
class JobsOptions:
    """Which jobs a command is about."""

    out: Annotated[Path | None, Parameter(group=_RUN, help="The directory of the batch.")] = None
    journal: Annotated[JournalOption, Parameter(help="Where its jobs are kept, if not in --out.")] = None
    output: OutputOptions = OutputOptions()


@Parameter(name="*", group=_RUN)
@attrs.frozen(kw_only=True)
class ResolveOptions:
    """What became of a job whose outcome is unknown."""

    task_id: Annotated[str | None, Parameter(help="It became this task: look at https://kie.ai/logs.")] = None
    retry: Annotated[bool, Parameter(help="It was never accepted: send it again.")] = False
    give_up: Annotated[bool, Parameter(help="Leave it, whatever became of it.")] = False
    yes: Yes = False


@Parameter(name="*", group=_RUN)
@attrs.frozen(kw_only=True)
class EmulatorOptions:
    """How the emulator is served."""

    port: Annotated[int, Parameter(help="0 takes a free one.", validator=Number(gte=0, lte=MAX_PORT))] = 0
    seed: Annotated[int, Parameter(help="Of all that is random.")] = 0
    speed: Annotated[float, Parameter(help="Tasks live that many times faster (10).", validator=Number(gt=0))] = 10.0
    credits_left: Annotated[float, Parameter(name="--credits", help="What the account holds (1000).")] = 1000.0
    key: Annotated[
        tuple[str, ...],
        Parameter(help="The only invented key that is taken (emulated-account-1); may be repeated."),
    ] = ()
    webhook_key: Annotated[str | None, Parameter(help="Sign the callbacks with this invented key.")] = None
    fault: Annotated[
        tuple[str, ...], Parameter(help=f"What shall go wrong; may be repeated. One of {', '.join(KINDS)}.")
    ] = ()
    output: OutputOptions = OutputOptions()


# Without any option given.
OUTPUT, COMMON, CALLBACKS, SUBMIT = OutputOptions(), CommonOptions(), CallbackOptions(), SubmitOptions()
BATCH, WORKER, JOBS = BatchOptions(), WorkerOptions(), JobsOptions()
RESOLVE, EMULATOR = ResolveOptions(), EmulatorOptions()


def parse_cut(text: str, length: float | None) -> float:
    """Read ``--at``: the seconds from the beginning, to the hundredth where the length of the song comes in.

    Raises:
        UsageError: it is no position in a song, or the length is needed and not known.
    """
    position = cut_point.read_cut_point(text)
    if position is None:
        raise UsageError(f"--at: {text[:40]!r} is no position in a song; write {cut_point.FORMS}")
    seconds = position.within(length)
    if seconds is None:
        raise UsageError("--at: the length of the song is not known; give seconds, or its length with --duration")
    return seconds


def parse_address(text: str) -> tuple[str, int]:
    """Read ``HOST:PORT``, ``:PORT`` or ``PORT``.

    Raises:
        UsageError: it is none.
    """
    host, _, port = text.rpartition(":")
    if not port.isascii() or not port.isdigit() or int(port) > MAX_PORT:
        raise UsageError(f"--bind: {text[:60]!r} is no address; write HOST:PORT, as in 127.0.0.1:8080")
    return host.strip("[]") or "127.0.0.1", int(port)
