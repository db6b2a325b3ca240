"""The commands, as they are typed. The docstrings here are the help."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from functools import partial
from io import StringIO
from itertools import takewhile
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import App, CycloptsError, Parameter
from cyclopts.validators import Number
from rich.console import Console

from kie_async._version import __version__
from kie_async.cli import _batch, _demo, _servers, _tasks, _worker
from kie_async.cli._app_jobs import jobs
from kie_async.cli._exit_status import UsageError, exit_table
from kie_async.cli._options import (
    BATCH,
    CALLBACKS,
    COMMON,
    OUTPUT,
    SUBMIT,
    WORKER,
    BatchOptions,
    CallbackOptions,
    CommonOptions,
    Directory,
    Out,
    OutputArg,
    OutputOptions,
    SubmitOptions,
    Timeout,
    WorkerOptions,
)  # fmt: skip
from kie_async.cli._output import Output, repair_streams
from kie_async.cli._signals import wake_at_signals
from kie_async.emulator import KINDS

_ABOUT = "Extend songs with kie.ai's Suno API, without paying twice or losing what was paid."
_EPILOGUE = f"""\
Try it without a key:  kie-async demo --out DIR

Environment: KIE_API_KEY, KIE_BASE_URL, KIE_CALLBACK_URL, KIE_WEBHOOK_KEY, KIE_JOURNAL; HTTPS_PROXY, NO_PROXY.
A key may be in a file: KIE_API_KEY_FILE, KIE_WEBHOOK_KEY_FILE.

Exit codes:
{exit_table()}
"""

TaskArg = Annotated[str, Parameter(help="The id of a task.")]

app = App(
    name="kie-async",
    help=_ABOUT,
    help_epilogue=_EPILOGUE,
    help_format="plaintext",
    version=__version__,
    default_parameter=Parameter(negative=(), show_default=False),
)

_command = partial(app.command, help_epilogue="")  # or each would repeat the app's


@_command
async def demo(*, output: OutputArg, out: Directory, _output_options: OutputOptions = OUTPUT) -> None:
    """Make a song, have the built-in emulator extend it, and download the result: no key, no cost.

    Example: kie-async demo --out demo
    """
    await _demo.demo(output, out)


@_command
async def upload_extend(
    song: Annotated[str, Parameter(help="A file of audio, or the address of one.")],
    /,
    *,
    output: OutputArg,
    options: SubmitOptions = SUBMIT,
) -> None:
    """Extend audio of your own: cut it at a moment and let the service go on.

    Example: kie-async upload-extend song.mp3 --at 75% --instrumental --style folk --title Longer --out new
    """
    await _tasks.upload_extend(output, song, options)


@_command
async def extend(
    audio_id: Annotated[str, Parameter(help="The id of the track, not of its task.")],
    /,
    *,
    output: OutputArg,
    options: SubmitOptions = SUBMIT,
) -> None:
    """Extend a track that the service made; with no further options as it was made.

    Example: kie-async extend e231c5c0-7a52 --model V5 --out new
    """
    await _tasks.extend(output, audio_id, options)


@_command
async def batch(
    manifest: Annotated[Path, Parameter(help="A CSV or JSONL file with a row for each job, or a folder of songs.")],
    /,
    *,
    output: OutputArg,
    out: Directory,
    options: BatchOptions = BATCH,
) -> None:
    """Extend many songs, and download what comes of them; the same command again goes on where it was stopped.

    The options of music hold for all jobs whose row does not say otherwise.

    Example: kie-async batch songs --at 75% --instrumental --style folk --title Longer --out new
    """
    await _batch.batch(output, manifest, out, options)


@_command
async def worker(*, output: OutputArg, out: Directory, options: WorkerOptions = WORKER) -> None:
    """Work on the jobs of a shared journal among other workers, on any number of machines.

    Example: kie-async worker --journal postgresql://kie@db.example/kie --out new
    """
    await _worker.worker(output, out, options)


app.command(jobs)


@_command
async def status(task_id: TaskArg, /, *, output: OutputArg, common: CommonOptions = COMMON) -> None:
    """Show what the service says of a task, whatever it is.

    Example: kie-async status 5c79be8e0a1b4c6d9e2f3a4b5c6d7e8f
    """
    await _tasks.status(output, task_id, route=common.route)


@_command
async def wait(
    task_id: TaskArg,
    /,
    *,
    output: OutputArg,
    out: Out = None,
    timeout: Timeout = None,  # noqa: ASYNC109  # an option
    common: CommonOptions = COMMON,
) -> None:
    """Wait for a task that was submitted before, and show or download its tracks.

    Example: kie-async wait 5c79be8e0a1b4c6d9e2f3a4b5c6d7e8f --timeout 600 --out new
    """
    await _tasks.wait(output, task_id, route=common.route, timeout=timeout, out=out)


@_command
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
    await _tasks.download(output, task_id, route=common.route, out=out)


@_command
async def credits(  # noqa: A001  # the word of the service
    *, output: OutputArg, common: CommonOptions = COMMON
) -> None:
    """Show the credits left on the account.

    Example: kie-async credits
    """
    await _tasks.credits_left(output, route=common.route)


@_command
async def listen(
    *task_ids: Annotated[str, Parameter(help="Tasks to wait for; without any it listens until Ctrl-C.")],
    output: OutputArg,
    calls: CallbackOptions = CALLBACKS,
    common: CommonOptions = COMMON,
) -> None:
    """Receive callbacks and show each as it comes in.

    Example: kie-async listen --bind 127.0.0.1:8080 --callback-url https://me.example/kie
    """
    await _servers.listen(output, task_ids, calls, route=common.route)


@_command
async def emulate(  # noqa: PLR0913  # each is an option
    *,
    output: OutputArg,
    port: Annotated[int, Parameter(help="0 takes a free one.", validator=Number(gte=0, lte=65_535))] = 0,
    seed: Annotated[int, Parameter(help="Of all that is random.")] = 0,
    speed: Annotated[float, Parameter(help="Tasks live that many times faster (10).", validator=Number(gt=0))] = 10.0,
    credits_left: Annotated[float, Parameter(name="--credits", help="What the account holds (1000).")] = 1000.0,
    key: Annotated[
        tuple[str, ...],
        Parameter(help="The only invented key that is taken (emulated-account-1); may be repeated."),
    ] = (),
    webhook_key: Annotated[str | None, Parameter(help="Sign the callbacks with this invented key.")] = None,
    fault: Annotated[
        tuple[str, ...], Parameter(help=f"What shall go wrong; may be repeated. One of {', '.join(KINDS)}.")
    ] = (),
    _output_options: OutputOptions = OUTPUT,
) -> None:
    """Run the service in miniature on this machine, until Ctrl-C.

    Example: kie-async emulate --port 8765 --fault lost
    """
    await _servers.emulate(
        output,
        port=port,
        seed=seed,
        speed=speed,
        credits_left=credits_left,
        keys=key,
        webhook_key=webhook_key,
        faults=fault,
    )


@_command
async def completion(
    shell: Annotated[Literal["bash", "zsh", "fish"], Parameter(help="Whose completion.")],
    /,
    *,
    output: OutputArg,
    _output_options: OutputOptions = OUTPUT,
) -> None:
    """Print the script with which a shell completes the words of this command.

    Example: kie-async completion bash > ~/.local/share/bash-completion/completions/kie-async
    """
    script = app.generate_completion(shell=shell)
    output.facts["text"] = script
    if not output.as_json:
        output.page().out(script, highlight=False, end="")


# ---------------------------------------------------------------- running


def run(words: Sequence[str], *, loop_factory: Callable[[], asyncio.AbstractEventLoop] | None = None) -> int:
    """Run a command and return its exit code.

    Args:
        words: the command line without the program's name.
        loop_factory: makes the event loop; by default as asyncio does.
    """
    repair_streams()
    options = set(takewhile("--".__ne__, words))
    with Output(
        as_json="--json" in options, verbose=not options.isdisjoint({"-v", "--verbose"}), words=words
    ) as output:
        error: BaseException | None = None
        try:
            work = _parse(words, output)
            if work is not None:
                with asyncio.Runner(loop_factory=loop_factory) as runner:
                    wake_at_signals(runner.get_loop())
                    runner.run(work)
        except BaseException as caught:  # noqa: BLE001  # whatever it is, it is told, and has its code
            error = caught
        return output.finish(error).code


def _parse(words: Sequence[str], output: Output) -> Coroutine[Any, Any, None] | None:
    """Find what is to be done; help and version are shown at once."""
    text = StringIO()
    console = Console(file=text) if output.as_json else output.page()
    try:
        command, bound, injected = app.parse_args(words, console=console, print_error=False, exit_on_error=False)
    except CycloptsError as error:
        raise UsageError(f"{error}\nhelp: {_help_for(error)}") from None
    if "output" in injected:
        work: Coroutine[Any, Any, None] = command(*bound.args, **bound.kwargs, output=output)
        return work
    bound.arguments["console"] = console
    command(*bound.args, **bound.kwargs)
    output.facts["text"] = text.getvalue()
    return None


def _help_for(error: CycloptsError) -> str:
    return " ".join([*app.name, *(error.command_chain or ()), "--help"])
