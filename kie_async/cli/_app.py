"""The command line: the commands by name, and running one of them."""

from __future__ import annotations

import asyncio
import os
import shlex
import signal
from collections.abc import Callable, Coroutine, Sequence
from contextlib import suppress
from io import StringIO
from itertools import takewhile
from typing import Annotated, Any, Literal

from cyclopts import App, CycloptsError, MissingArgumentError, Parameter, UnknownOptionError, UnusedCliTokensError
from rich.console import Console

from kie_async import __version__
from kie_async.cli import _database, _jobs
from kie_async.cli._batch import batch
from kie_async.cli._demo import demo
from kie_async.cli._exit_codes import UsageError, exit_table
from kie_async.cli._join import join
from kie_async.cli._options import OUTPUT, OutputArg, OutputOptions
from kie_async.cli._output import Output, repair_streams, shown_log
from kie_async.cli._report import report, select
from kie_async.cli._servers import emulate, listen
from kie_async.cli._tasks import credits_left, download, extend, status, upload_extend, wait
from kie_async.cli._worker import worker, workers
from kie_async.events import clean

_ABOUT = "Extend songs with kie.ai's Suno API, without paying twice or losing what was paid."
_EPILOGUE = f"""\
Try it without a key:  kie-async demo --out DIR

Environment: KIE_API_KEY, KIE_BASE_URL, KIE_CALLBACK_URL, KIE_WEBHOOK_KEY.
For several workers: KIE_JOURNAL, KIE_ACCOUNT, KIE_MACHINE. For a proxy: HTTPS_PROXY, NO_PROXY.
A key may be in a file: KIE_API_KEY_FILE, KIE_WEBHOOK_KEY_FILE. A cap on what is spent: KIE_MAX_CREDITS, and
KIE_MAX_CREDITS_SINCE, from when what a journal has on record counts.

Exit codes:
{exit_table()}
"""

_SHOWN = 100  # characters of what is too much

app = App(
    name="kie-async",
    help=_ABOUT,
    help_epilogue=_EPILOGUE,
    help_format="plaintext",
    version=__version__,
    default_parameter=Parameter(negative=(), show_default=False),
)
# In the order in which a newcomer meets them.
_COMMANDS: dict[str, Callable[..., Coroutine[Any, Any, None]]] = {
    "demo": demo,
    "upload-extend": upload_extend,
    "extend": extend,
    "wait": wait,
    "download": download,
    "status": status,
    "credits": credits_left,
    "join": join,
    "batch": batch,
    "report": report,
    "select": select,
    "worker": worker,
    "workers": workers,
    "listen": listen,
    "emulate": emulate,
}
for position, name in enumerate(_COMMANDS):
    app.command(_COMMANDS[name], name=name, sort_key=position, help_epilogue="")  # or each would repeat the app's
app.command(_jobs.app)
app.command(_database.app)


@app.command(help_epilogue="")
async def completion(
    shell: Annotated[Literal["bash", "zsh", "fish"], Parameter(help="Whose completion.")],
    /,
    *,
    output: OutputArg,
    _output: OutputOptions = OUTPUT,
) -> None:
    """Print the script with which a shell completes the words of this command.

    Example: kie-async completion bash > ~/.local/share/bash-completion/completions/kie-async
    """
    script = app.generate_completion(shell=shell)
    output.value["text"] = script
    if not output.as_json:
        output.page().out(script, highlight=False, end="")


def run(words: Sequence[str], *, loop_factory: Callable[[], asyncio.AbstractEventLoop] | None = None) -> int:
    """Run a command and return its exit code.

    Args:
        words: the command line without the program's name.
        loop_factory: makes the event loop; by default as asyncio does.
    """
    repair_streams()
    options = set(takewhile("--".__ne__, words))
    verbose = not options.isdisjoint({"-v", "--verbose"})
    output = Output(as_json="--json" in options, words=words)
    with shown_log(output.display, verbose=verbose):
        error: BaseException | None = None
        try:
            command = _parse(words, output)
            if command is not None:
                with asyncio.Runner(loop_factory=loop_factory) as runner:
                    _wake_at_signals(runner.get_loop())
                    runner.run(command)
        except BaseException as caught:  # noqa: BLE001  # every error is shown, and has its exit code
            error = caught
        return output.finish(error)


def _parse(words: Sequence[str], output: Output) -> Coroutine[Any, Any, None] | None:
    """Find the command to run; help and version are shown at once."""
    text = StringIO()
    console = Console(file=text) if output.as_json else output.page()
    try:
        command, bound, injected = app.parse_args(words, console=console, print_error=False, exit_on_error=False)
    except CycloptsError as error:
        raise UsageError(f"{_problem(error, words)}\nhelp: {_help_for(error)}") from None
    if "output" in injected:
        coroutine: Coroutine[Any, Any, None] = command(*bound.args, **bound.kwargs, output=output)
        return coroutine
    bound.arguments["console"] = console
    command(*bound.args, **bound.kwargs)
    output.value["text"] = text.getvalue()
    return None


def _problem(error: CycloptsError, words: Sequence[str]) -> str:
    names = (clean(word) for word in words if word.startswith("-") and os.path.lexists(word))
    if isinstance(error, (UnknownOptionError, MissingArgumentError)) and (name := next(names, None)):
        return f"{name} begins as an option does; if the file of that name is meant, write {shlex.quote(f'./{name}')}"
    if isinstance(error, UnknownOptionError):
        option = (error.token.keyword or error.token.value).partition("=")[0]
        if any(option in argument.names and argument.parse for argument in error.argument_collection):  # known
            return f"{option} stands after --, where only arguments are: options stand before it"
    if not isinstance(error, UnusedCliTokensError):
        return str(error)
    remedy = "; for many songs: kie-async batch" if error.command_chain == ("upload-extend",) else ""
    return f"more is given than the command takes: {shlex.join(error.unused_tokens or ())[:_SHOWN]}{remedy}"


def _help_for(error: CycloptsError) -> str:
    return " ".join([*app.name, *(error.command_chain or ()), "--help"])


def _wake_at_signals(loop: asyncio.AbstractEventLoop) -> None:
    """Let every signal wake an idle loop, so that a Ctrl-C always ends what waits.

    A signal that another thread receives, or that comes just before the loop begins to wait, does not interrupt the
    wait; asyncio has the wait end (``signal.set_wakeup_fd``) only if the loop handles any signal, so it handles one
    that means nothing here.
    """
    with suppress(AttributeError, NotImplementedError, RuntimeError):  # Windows does it by itself; not the main thread
        loop.add_signal_handler(signal.SIGWINCH, lambda: None)
