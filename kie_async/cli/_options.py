"""The options that commands share, each group a frozen value whose docstring is the help."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, TypeAlias, cast

import attrs
from cyclopts import Group, Parameter
from cyclopts.validators import Number

from kie_async._protocol.options import UPLOAD_ONLY, RequestFields, UploadFields
from kie_async._protocol.request_rules import MODELS
from kie_async.cli._exit_codes import UsageError
from kie_async.cli._output import Output
from kie_async.cli._position import check_position
from kie_async.emulator import KINDS
from kie_async.settings import RouteName

MAX_PORT = 65_535

_MUSIC = Group("Music", sort_key=1)
RUN = Group("Run", sort_key=2)
_CALLBACKS = Group("Callbacks", sort_key=3)
_COMMON = Group("Common", sort_key=4)

OutputArg: TypeAlias = Annotated[Output, Parameter(parse=False)]
NotNegative: TypeAlias = Annotated[float, Parameter(validator=Number(gte=0))]
Positive: TypeAlias = Annotated[int, Parameter(validator=Number(gte=1))]
Directory: TypeAlias = Annotated[Path, Parameter(name="--out", group=RUN, help="Where the files go.")]
Out: TypeAlias = Annotated[
    Path | None, Parameter(name="--out", group=RUN, help="Download the tracks into this directory.")
]
Timeout: TypeAlias = Annotated[
    NotNegative | None,
    Parameter(name="--timeout", group=RUN, help="Seconds to wait; what was submitted goes on beyond them."),
]
JournalOption: TypeAlias = Annotated[
    str | None,
    Parameter(
        name="--journal",
        group=RUN,
        metavar="PATH-or-URL",
        help="Where the jobs are kept: a file, or postgresql://... for many machines; by default $KIE_JOURNAL, or "
        "else a file in --out.",
    ),
]
SharedJournalOption: TypeAlias = Annotated[
    str | None,
    Parameter(
        name="--journal",
        group=RUN,
        metavar="URL",
        help="The journal that the workers share: postgresql://...; by default $KIE_JOURNAL.",
    ),
]
_BATCH_HELP = "The path that 'batch --out' was given: it names the batch, and holds its files (and its journal)."
Yes: TypeAlias = Annotated[bool, Parameter(name="--yes", group=RUN, help="Do not ask, but do it.")]
_BATCH_YES_HELP = "Do not ask before credits are spent; without a terminal to ask at, none are spent but with this."
Jsonl: TypeAlias = Annotated[bool, Parameter(help="Write a line of JSON to stdout for each transition of a job.")]


@Parameter(name="*", group=_COMMON)
@attrs.frozen(kw_only=True)
class OutputOptions:
    """What is written; read before the others, because errors in those are written that way too.

    Attributes:
        json: Write one JSON value to stdout, errors included.
        verbose: Show the log.
    """

    json: bool = False
    verbose: Annotated[bool, Parameter(name=("--verbose", "-v"))] = False


@Parameter(name="*", group=_COMMON)
@attrs.frozen(kw_only=True)
class CommonOptions(OutputOptions):
    """What every command takes that asks the service.

    Attributes:
        route: Which of the service's two routes to take (classic).
    """

    route: RouteName = "classic"


@Parameter(name="*", group=_MUSIC)
@attrs.frozen(kw_only=True)
class Music:
    """The fields of a request. A field that breaks a rule is refused before anything is spent.

    Attributes:
        at: Where to cut the song and go on: 45.5, 1:05, 75%, or -10s (before its end).
        duration: The length of the song in seconds, where it cannot be measured.
        prompt: The lyrics.
        prompt_file: A text file with the lyrics.
        style: The style of music.
        title: The title of the new tracks.
        instrumental: No voice.
        negative_tags: Styles to keep out.
        vocal_gender: A tendency only.
        style_weight: How closely to follow the style, from 0 to 1 in steps of 0.01.
        weirdness_constraint: How far to depart from what is usual, from 0 to 1.
        audio_weight: How much the source counts, from 0 to 1.
        persona_id: A persona made with the service.
        persona_model: What kind of persona it is.
        lyrics: Exact lyrics, which go before the prompt (--route jobs, SONG).
        variety: From 0 to 4 (--route jobs, SONG).
        default_param_flag: Use the style, title and lyrics that are given here, or, with --no-, what the source was
            made with; by default it follows from what is given.
    """

    at: Annotated[str | None, Parameter(allow_leading_hyphen=True, metavar="POSITION", validator=check_position)] = None
    duration: float | None = None
    model: Annotated[
        str | None,
        Parameter(help=f"One of {', '.join(MODELS)}; V5 for audio of your own, for a track the one that made it."),
    ] = None
    prompt: str | None = None
    prompt_file: Path | None = None
    style: str | None = None
    title: str | None = None
    instrumental: bool = False
    negative_tags: str | None = None
    vocal_gender: Literal["m", "f"] | None = None
    style_weight: float | None = None
    weirdness_constraint: float | None = None
    audio_weight: float | None = None
    persona_id: str | None = None
    persona_model: Literal["style_persona", "voice_persona"] | None = None
    lyrics: str | None = None
    variety: float | None = None
    default_param_flag: Annotated[bool | None, Parameter(negative="--no-default-param-flag")] = None

    def of_upload(self) -> UploadFields:
        """The fields of a request that extends audio of one's own."""
        given = attrs.asdict(self)
        del given["prompt_file"]
        given |= {"prompt": self._prompt(), "continue_at": given.pop("at"), "source_duration": given.pop("duration")}
        if self.model is None:
            del given["model"]
        return cast("UploadFields", given)

    def of_track(self) -> RequestFields:
        """The fields of a request that extends a track of the service."""
        given = dict(self.of_upload())
        for name in UPLOAD_ONLY:
            if given.pop(name) is not None:
                raise UsageError(f"--{name} is for upload-extend alone: leave it out")
        return cast("RequestFields", given)

    def shared(self) -> dict[str, object]:
        """The fields that all jobs of a manifest share, as ``read_manifest`` takes them."""
        given = {**self.of_upload(), "instrumental": self.instrumental or None}
        return {name: value for name, value in given.items() if value is not None}

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


@Parameter(name="*", group=_CALLBACKS)
@attrs.frozen(kw_only=True)
class CallbackAddress:
    """Where callbacks of the service are received.

    Attributes:
        callback_url: Where the service reaches the receiver; by default KIE_CALLBACK_URL.
        bind: Where the receiver listens (127.0.0.1:8080).
    """

    callback_url: str | None = None
    bind: Annotated[str | None, Parameter(name=("--bind", "--listen"), metavar="HOST:PORT")] = None


@Parameter(name="*", group=_CALLBACKS)
@attrs.frozen(kw_only=True)
class CallbackOptions(CallbackAddress):
    """Whether and where callbacks of the service are received.

    Attributes:
        callbacks: Receive callbacks in this process, instead of asking again and again.
    """

    callbacks: bool = False

    def check(self) -> None:
        """Refuse what has no meaning without another option."""
        if self.bind and not self.callbacks:
            raise UsageError("--bind is given without --callbacks")

    def here(self) -> CallbackOptions:
        """Without the address in the environment, which leads to another process."""
        return attrs.evolve(self, callback_url=self.callback_url or "")


@Parameter(name="*")
@attrs.frozen(kw_only=True)
class ServiceOptions:
    """What every command takes that follows tasks."""

    receiver: CallbackOptions = CallbackOptions()
    common: CommonOptions = CommonOptions()


@Parameter(name="*", group=RUN)
@attrs.frozen(kw_only=True)
class RunOptions:
    """What happens around a submission.

    Attributes:
        emulate: Use the built-in emulator: no key, no cost, invented music.
        no_wait: Print the id of the task and leave.
    """

    out: Out = None
    emulate: bool = False
    no_wait: bool = False
    timeout: Timeout = None


@Parameter(name="*")
@attrs.frozen(kw_only=True)
class SubmitOptions(ServiceOptions):
    """All the options of a command that submits."""

    music: Music = Music()
    run: RunOptions = RunOptions()


@Parameter(name="*", group=RUN)
@attrs.frozen(kw_only=True)
class BatchRunOptions:
    """How a batch runs.

    Attributes:
        dry_run: Show what would be done and what it would cost; send nothing.
        max_credits: Never spend more than this on the batch; a shared journal keeps it for all workers.
        enqueue: Put the jobs on record and leave; workers make them ('kie-async worker').
        report: At the end, however it ends, write report.html beside the files, to compare them ('kie-async report').
        shared_files: Every machine finds the songs at the same paths; otherwise a worker on this one uploads them.
        emulate: Use a built-in emulator: no key, no cost. It ends with the command; 'kie-async emulate' lasts.
    """

    journal: JournalOption = None
    yes: Annotated[bool, Parameter(help=_BATCH_YES_HELP)] = False
    dry_run: bool = False
    enqueue: bool = False
    report: bool = False
    shared_files: bool = False
    max_credits: NotNegative | None = None
    emulate: bool = False
    jsonl: Jsonl = False


@Parameter(name="*")
@attrs.frozen(kw_only=True)
class BatchOptions(ServiceOptions):
    """All the options of a batch, besides its directory."""

    music: Music = Music()
    run: BatchRunOptions = BatchRunOptions()


@Parameter(name="*", group=RUN)
@attrs.frozen(kw_only=True)
class WorkerRunOptions:
    """How a worker works.

    Attributes:
        at_once: Jobs under way here at once (100).
        until_done: Leave when every job has come to its end.
        health: Where /livez, /readyz and /metrics are served, over plain HTTP (127.0.0.1:8081).
        drain: At SIGTERM, first finish what is submitted; a second one gives it back, as the first does without this.
    """

    journal: SharedJournalOption = None
    at_once: Positive = 100
    until_done: bool = False
    health: Annotated[str | None, Parameter(metavar="HOST:PORT")] = None
    drain: bool = False
    jsonl: Jsonl = False


@Parameter(name="*")
@attrs.frozen(kw_only=True)
class WorkerOptions(ServiceOptions):
    """All the options of a worker, besides its directory."""

    run: WorkerRunOptions = WorkerRunOptions()


@Parameter(name="*")
@attrs.frozen(kw_only=True)
class WorkersOptions:
    """Whose workers are listed."""

    journal: SharedJournalOption = None
    output: OutputOptions = OutputOptions()


@Parameter(name="*")
@attrs.frozen(kw_only=True)
class JobsOptions:
    """Which jobs a command is about."""

    out: Annotated[Path | None, Parameter(group=RUN, help=_BATCH_HELP)] = None
    journal: JournalOption = None
    output: OutputOptions = OutputOptions()


@Parameter(name="*", group=RUN)
@attrs.frozen(kw_only=True)
class ResolveOptions:
    """What became of a job whose outcome is unknown.

    Attributes:
        task_id: It became this task: look at https://kie.ai/logs.
        retry: It was never accepted: send it again.
        give_up: Leave it, whatever became of it.
    """

    task_id: str | None = None
    retry: bool = False
    give_up: bool = False
    yes: Yes = False


@Parameter(name="*", group=RUN)
@attrs.frozen(kw_only=True)
class EmulatorOptions:
    """How the emulator is served.

    Attributes:
        port: Where it listens, on 127.0.0.1; 0 takes a free one.
        seed: Make the same ids and music each time; without it, ids are new each time.
        speed: How many times faster tasks are than at the service (10).
        credits: What the account holds (1000).
        key: An invented key to accept in the place of emulated-account-1; may be repeated.
        webhook_key: Sign the callbacks with this invented key.
        answers: What the tracks hold: the whole song, or only its continuation.
    """

    port: Annotated[int, Parameter(validator=Number(gte=0, lte=MAX_PORT))] = 0
    seed: int | None = None
    speed: Annotated[float, Parameter(validator=Number(gt=0))] = 10.0
    credits: float = 1000.0
    key: tuple[str, ...] = ()
    webhook_key: str | None = None
    answers: Literal["whole", "continuation"] = "whole"
    fault: Annotated[
        tuple[str, ...],
        Parameter(
            metavar="KIND[:NTH]",
            help="What shall go wrong, always or the NTH time alone (lost:2); may be repeated. KIND is one of "
            f"{', '.join(KINDS)}.",
        ),
    ] = ()
    output: OutputOptions = OutputOptions()


# Without any option given.
OUTPUT, COMMON, ADDRESS, SUBMIT = OutputOptions(), CommonOptions(), CallbackAddress(), SubmitOptions()
BATCH, WORKER, WORKERS, JOBS = BatchOptions(), WorkerOptions(), WorkersOptions(), JobsOptions()
RESOLVE, EMULATOR = ResolveOptions(), EmulatorOptions()


def parse_address(text: str, option: str = "--bind") -> tuple[str, int]:
    """Read ``HOST:PORT``, ``:PORT`` or ``PORT``.

    Raises:
        UsageError: it is none.
    """
    host, _, port = text.rpartition(":")
    if not port.isascii() or not port.isdigit() or int(port) > MAX_PORT:
        raise UsageError(f"{option}: {text[:60]!r} is no address; write HOST:PORT, as in 127.0.0.1:8080")
    return host.strip("[]") or "127.0.0.1", int(port)
