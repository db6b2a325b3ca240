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
from kie_async.cli._exits import UsageError
from kie_async.cli._link import Link, Plan, linked
from kie_async.cli._options import Calls
from kie_async.cli._screen import Screen, callback_line, take_up
from kie_async.cli._tasks import result_facts
from kie_async.emulator import KINDS, Fault
from kie_async.errors import KieError
from kie_async.events import CallbackReceived


async def listen(screen: Screen, task_ids: Sequence[str], calls: Calls, *, route: str) -> None:
    """Show the callbacks that come in, until Ctrl-C or until the given tasks have ended."""
    screen.again = take_up(route, None)
    screen.facts["callbacks"] = heard = []
    plan = Plan(route=route, receive=True, callback_url=calls.callback_url, bind=calls.bind)
    with anyio.CancelScope() as scope:

        def hear(event: CallbackReceived) -> None:
            heard.append(attrs.asdict(event))
            screen.out(callback_line(event))
            if screen.lost:
                scope.cancel()

        screen.hear = hear
        async with linked(screen, plan) as link:
            screen.say(f"callbacks are received for {link.callback_url}")
            await (_all(screen, link, task_ids) if task_ids else anyio.sleep_forever())


async def _all(screen: Screen, link: Link, task_ids: Sequence[str]) -> None:
    """Wait for tasks, and tell the end of each.

    Raises:
        KieError: the first one why a task has no result, after the others have ended.
    """
    ends: list[dict[str, Any]] = []
    errors: list[KieError] = []
    screen.facts["tasks"] = ends
    tasks = [link.session.track(task_id) for task_id in task_ids]

    async def one(task: Task) -> None:
        try:
            result = await task
        except KieError as error:
            errors.append(error)
            screen.out(f"{task.id} {error}")
        else:
            ends.append(result_facts(result))
            screen.out(f"{task.id} {result.record.status}: {len(result.tracks)} tracks")

    await asyncio.gather(*map(one, tasks))
    if errors:
        raise errors[0]


async def emulate(  # noqa: PLR0913  # each is an option of the command
    screen: Screen,
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
            _announce(screen, {"KIE_BASE_URL": service.base_url, "KIE_API_KEY": service.key}, webhook_key)
            await anyio.sleep_forever()
    except ValueError as error:  # the only one that the options leave possible
        raise UsageError(f"--key: {error}") from None
    except OSError as error:
        raise UsageError(f"--port: the emulator cannot listen on {port}: {error.strerror or error}") from None


def _announce(screen: Screen, environment: dict[str, str], webhook_key: str | None) -> None:
    if webhook_key:
        environment["KIE_WEBHOOK_KEY"] = webhook_key
    screen.facts |= {"base_url": environment["KIE_BASE_URL"], "env": environment}
    for name, value in environment.items():
        screen.out(f"export {name}={shlex.quote(value)}")
    screen.publish()
    screen.say("the emulator runs; set these where you try things; Ctrl-C ends it")
