"""The commands that run until Ctrl-C: the receiver of callbacks, and the emulator. Their docstrings are the help."""

from __future__ import annotations

import asyncio
import re
import shlex
from collections.abc import Sequence
from typing import Annotated, Any

import anyio
import attrs
from cyclopts import Parameter

from kie_async import emulator
from kie_async._client.task import Task
from kie_async._text import count_of
from kie_async.cli._connect import connect
from kie_async.cli._exit_codes import UsageError
from kie_async.cli._options import (
    ADDRESS,
    COMMON,
    EMULATOR,
    CallbackAddress,
    CallbackOptions,
    CommonOptions,
    EmulatorOptions,
    OutputArg,
)
from kie_async.cli._output import Output
from kie_async.cli._tasks import result_value, resume_options
from kie_async.emulator import KINDS, Fault
from kie_async.errors import KieError, SettingsError
from kie_async.events import CallbackReceived, Event
from kie_async.session import KieSession

_NTH = re.compile(r"[1-9][0-9]{0,8}")


async def listen(
    *task_ids: Annotated[str, Parameter(help="Tasks to wait for; without any it listens until Ctrl-C.")],
    output: OutputArg,
    receiver: CallbackAddress = ADDRESS,
    common: CommonOptions = COMMON,
) -> None:
    """Receive callbacks and show each as it comes in.

    Example: kie-async listen --bind 127.0.0.1:8080 --callback-url https://me.example/kie
    """
    output.resume = resume_options(common.route, None)
    output.value["callbacks"] = received = []
    options = CallbackOptions(callbacks=True, callback_url=receiver.callback_url, bind=receiver.bind)
    with anyio.CancelScope() as scope:

        def show(event: Event) -> None:
            if not isinstance(event, CallbackReceived):
                output.emit(event)
                return
            output.count(event)
            received.append(attrs.asdict(event))
            output.print(callback_line(event))
            if output.stdout_error:
                scope.cancel()

        async with connect(output, options, route=common.route, observer=show) as session:
            output.say(f"callbacks are received for {session.settings.callback_url}")
            await (_wait_for_all(output, session, task_ids) if task_ids else anyio.sleep_forever())


def callback_line(event: CallbackReceived) -> str:
    """A callback in a line, with its task."""
    note = f" ({event.note})" if event.note else ""
    return f"{event.task_id or 'unknown task'} {event.stage or 'unreadable'}, answered {event.status}{note}"


async def _wait_for_all(output: Output, session: KieSession, task_ids: Sequence[str]) -> None:
    """Wait for tasks, and show the end of each.

    Raises:
        KieError: the first reason why a task has no result, after all have ended.
    """
    results: list[dict[str, Any]] = []
    errors: list[KieError] = []
    output.value["tasks"] = results
    tasks = [session.track(task_id) for task_id in task_ids]

    async def one(task: Task) -> None:
        try:
            result = await task
        except KieError as error:
            errors.append(error)
            output.print(f"{task.id} {error}")
        else:
            results.append(result_value(result))
            output.print(f"{task.id} {result.record.status}: {count_of(len(result.tracks), 'track')}")

    await asyncio.gather(*map(one, tasks))
    if errors:
        raise errors[0]


async def emulate(*, output: OutputArg, options: EmulatorOptions = EMULATOR) -> None:
    """Run the service in miniature on this machine, until Ctrl-C.

    Example: kie-async emulate --port 8765 --fault lost
    """
    faults = [_fault(text) for text in options.fault]
    given = attrs.asdict(options, filter=lambda field, _: field.name not in {"fault", "output"})
    try:
        async with emulator.serve(**given, faults=faults) as service:
            _announce(output, {"KIE_BASE_URL": service.base_url, "KIE_API_KEY": service.key}, options.webhook_key)
            await anyio.sleep_forever()
    except SettingsError as error:
        raise UsageError(f"--port: {error}; give another one, or 0 for a free one") from None
    except ValueError as error:  # the only other one that the options leave possible
        raise UsageError(f"--key: {error}") from None


def _fault(text: str) -> Fault:
    """Read ``KIND``, or ``KIND:NTH`` for the nth event alone."""
    kind, has_number, nth = text.partition(":")
    if kind not in KINDS:
        raise UsageError(f"--fault: {kind[:40]!r} is not known; give one of {', '.join(KINDS)}")
    if has_number and _NTH.fullmatch(nth) is None:
        raise UsageError(f"--fault: {text[:60]!r} is no KIND:NTH; write {kind}, or {kind}:2 for the second time alone")
    return Fault(kind, nth=int(nth) if has_number else None)


def _announce(output: Output, environment: dict[str, str], webhook_key: str | None) -> None:
    if webhook_key:
        environment["KIE_WEBHOOK_KEY"] = webhook_key
    output.value |= {"base_url": environment["KIE_BASE_URL"], "env": environment}
    for name, value in environment.items():
        output.print(f"export {name}={shlex.quote(value)}")
    output.publish()
    output.say("the emulator runs; set these where you try things; Ctrl-C ends it")
