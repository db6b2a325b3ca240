"""One life of a batch, in a process of its own: it may die at a named point. Run by ``benchmarks.crash``."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import Callable
from typing import Any, Self

import kie_async as kie
from kie_async import events
from kie_async.batch import run_shared_batch
from kie_async.journal import Job, _leases, _recorder, is_shared, open_journal

DIED, STOPPED = 9, 4


class Mortal:
    """A journal whose process may die right before or after one of its writes."""

    def __init__(self, journal: Any, die: Callable[[str], None]) -> None:  # noqa: ANN401  # any store
        self._journal = journal
        self._die = die

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401  # any method of it
        method = getattr(self._journal, name)
        if name not in {"add", "intend", "move", "upload", "save_callback"}:
            return method

        async def mortal(*args: Any, **fields: Any) -> Any:  # noqa: ANN401  # as the method
            point = f"{name}-{args[1]}" if name == "move" else name
            self._die(f"{point}:before")
            result = await method(*args, **fields)
            self._die(f"{point}:after")
            return result

        return mortal

    async def __aenter__(self) -> Self:
        await self._journal.__aenter__()
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self._journal.__aexit__(*exception)


def death(point: str, nth: int) -> Callable[[str], None]:
    """What kills this process when ``point`` is reached for the nth time."""
    left = nth

    def die(reached: str) -> None:
        nonlocal left
        if reached == point:
            left -= 1
            if left == 0:
                os._exit(DIED)

    return die


async def live(plan: dict[str, Any]) -> int:
    """Run the batch to its end, or to the point where it dies."""
    die = death(plan["point"], plan["nth"])

    def observe(event: events.Event) -> None:
        die(f"emitted:{type(event).__name__}")

    settings = kie.Settings(
        api_key="emulated-account-1",
        base_url=plan["base_url"],
        callback_url=plan["callback_url"],
        observer=observe,
        quota=1000,
        recovery_timeout=plan["patience"],
    )
    fields: dict[str, Any] = {
        "model": "V5",
        "style": "s",
        "prompt": "p",
        "continue_at": 0.5,
    }  # short tracks: what takes long in them is the encoding
    jobs = [
        Job(key=f"job{number}", request=kie.ExtendRequest("a1", title=f"job{number}", **fields))
        for number in range(plan["jobs"])
    ]
    async with kie.KieSession(settings) as session:
        download = session.download

        async def mortal_download(*args: Any, **options: Any) -> Any:  # noqa: ANN401  # as the method
            die("download:before")
            path = await download(*args, **options)
            die("download:after")
            return path

        session.download = mortal_download  # type: ignore[method-assign]  # the point of this process
        journal = Mortal(open_journal(plan["store"]), die)
        print("begins", flush=True)
        try:
            await run(session, jobs, journal, plan)
        except kie.KieError as error:
            print(repr(error), file=sys.stderr)
            return STOPPED
    return 0


async def run(session: kie.KieSession, jobs: list[Job], journal: Any, plan: dict[str, Any]) -> None:  # noqa: ANN401  # delegates
    """Run the batch as the command line does: alone on a file, as a worker on a shared database."""
    store, directory = plan["store"], plan["directory"]
    if is_shared(store):
        hasten()
        await run_shared_batch(
            session, jobs, journal=journal, dsn=store, directory=directory, observer=lambda _job: None, batch="crash"
        )
        return
    async for _ in kie.run_batch(session, jobs, journal=journal, directory=directory, batch="crash"):
        pass


def hasten() -> None:
    """Take a silent process for dead after two seconds: with the real thirty, the matrix would last for hours."""
    vars(_leases).update(LEASE=2.0, HEARTBEAT=0.5)
    vars(_recorder).update(LEASE=2.0)
    from kie_async.batch import _worker  # an extra

    vars(_worker).update(STALLED_AFTER=2.0, HEARTBEAT=0.5, POLL_INTERVAL=0.2, FEED_INTERVAL=0.3, CHECK_INTERVAL=0.2)


if __name__ == "__main__":
    sys.exit(asyncio.run(live(json.loads(sys.argv[1]))))
