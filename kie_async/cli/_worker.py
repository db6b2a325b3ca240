"""A worker: one of many processes that take the jobs of a shared journal to their end."""

from __future__ import annotations

from pathlib import Path

from kie_async.batch._sharing import work
from kie_async.cli._board import Board
from kie_async.cli._exits import UsageError
from kie_async.cli._link import Plan, linked
from kie_async.cli._options import WorkerWishes
from kie_async.cli._screen import Screen
from kie_async.cli._stop import stoppable
from kie_async.cli._store import find_store
from kie_async.cli._verdict import after_unknown


async def worker(screen: Screen, out: Path, wishes: WorkerWishes) -> None:
    """Work until Ctrl-C, SIGTERM, or the last job has come to its end."""
    store, calls = find_store(wishes.worker.journal, out), wishes.calls
    if not store.is_shared:
        raise UsageError(
            "--journal must be postgresql://..., which many processes share; with a file, 'kie-async batch' does all"
        )
    calls.check()
    again = f"work on with the same command:\n  {store.retyped(screen.words)}"
    screen.hints = dict.fromkeys((3, 4, 5, 8, 130), f"every job stays as the journal has it; {again}")
    screen.hints[7] = f"{after_unknown(store.options)}\n{again}"
    board, journal = Board(screen, out, jsonl=wishes.worker.jsonl), store.journal()
    with stoppable(lambda: screen.say("stopped by SIGTERM; every job stays as the journal has it")):
        async with store.quota() as limiter:
            plan = Plan(
                route=wishes.common.route,
                receive=calls.callbacks,
                callback_url=calls.callback_url,
                bind=calls.bind,
                at_once=wishes.worker.at_once,
                observer=board.tell,
                journal=journal,
                limiter=limiter,
            )
            async with linked(screen, plan) as link, board.following(journal):
                await work(
                    link.session,
                    journal=journal,
                    dsn=store.place,
                    directory=out,
                    observer=board.moved,
                    at_once=wishes.worker.at_once,
                    until_done=wishes.worker.until_done,
                )
