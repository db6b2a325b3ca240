"""The commands that run until Ctrl-C: the receiver of callbacks, and the emulator."""

from __future__ import annotations

import asyncio
import shlex
from collections.abc import Sequence
from typing import Any

import anyio
import attrs

from kie_async import emulator
from kie_async._client.task import Task
from kie_async.cli._connect import Connection, ConnectOptions, connect
from kie_async.cli._exit_status import UsageError
from kie_async.cli._options import CallbackOptions
from kie_async.cli._output import Output, callback_line, take_up
from kie_async.cli._tasks import result_facts
from kie_async.emulator import KINDS, Fault
from kie_async.errors import KieError
from kie_async.events import CallbackReceived


async def listen(output: Output, task_ids: Sequence[str], calls: CallbackOptions, *, route: str) -> None:
    """Show the callbacks that come in, until Ctrl-C or until the given tasks have ended."""
    output.again = take_up(route, None)
    output.facts["callbacks"] = heard = []
    plan = ConnectOptions(route=route, receive=True, callback_url=calls.callback_url, bind=calls.bind)
    with anyio.CancelScope() as scope:

        def hear(event: CallbackReceived) -> None:
            heard.append(attrs.asdict(event))
            output.out(callback_line(event))
            if output.lost:
                scope.cancel()

        output.hear = hear
        async with connect(output, plan) as connection:
            output.say(f"callbacks are received for {connection.callback_url}")
            await (_all(output, connection, task_ids) if task_ids else anyio.sleep_forever())


async def _all(output: Output, connection: Connection, task_ids: Sequence[str]) -> None:
    """Wait for tasks, and tell the end of each.

    Raises:
        KieError: the first one why a task has no result, after the others have ended.
    """
    ends: list[dict[str, Any]] = []
    errors: list[KieError] = []
    output.facts["tasks"] = ends
    tasks = [connection.session.track(task_id) for task_id in task_ids]

    async def one(task: Task) -> None:
        try:
            result = await task
        except KieError as error:
            errors.append(error)
            output.out(f"{task.id} {error}")
        else:
            ends.append(result_facts(result))
            output.out(f"{task.id} {result.record.status}: {len(result.tracks)} tracks")

    await asyncio.gather(*map(one, tasks))
    if errors:
        raise errors[0]


async def emulate(  # noqa: PLR0913  # each is an option of the command
    output: Output,
    *,
    port: int,
    seed: int,
    speed: float,
    credits_left: float,
    keys: Sequence[str],
    webhook_key: str | None,
    faults: Sequence[str],
) -> None:
    """Run the emulator on loopback until Ctrl-C."""
    if unknown := [kind for kind in faults if kind not in KINDS]:
        raise UsageError(f"--fault: {unknown[0][:40]!r} is not known; give one of {', '.join(KINDS)}")
    try:
        async with emulator.serve(
            port=port,
            seed=seed,
            speed=speed,
            credits=credits_left,
            key=keys,
            webhook_key=webhook_key,
            faults=[Fault(kind) for kind in faults],
        ) as service:
            _announce(output, {"KIE_BASE_URL": service.base_url, "KIE_API_KEY": service.key}, webhook_key)
            await anyio.sleep_forever()
    except ValueError as error:  # the only one that the options leave possible
        raise UsageError(f"--key: {error}") from None
    except OSError as error:
        raise UsageError(f"--port: the emulator cannot listen on {port}: {error.strerror or error}") from None


def _announce(output: Output, environment: dict[str, str], webhook_key: str | None) -> None:
    if webhook_key:
        environment["KIE_WEBHOOK_KEY"] = webhook_key
    output.facts |= {"base_url": environment["KIE_BASE_URL"], "env": environment}
    for name, value in environment.items():
        output.out(f"export {name}={shlex.quote(value)}")
    output.publish()
    output.say("the emulator runs; set these where you try things; Ctrl-C ends it")
