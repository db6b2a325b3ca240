"""Many pieces of work at once: a bounded number of them, in the order of completion, each with its own error."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Awaitable, Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import TypeVar

import anyio
from anyio.abc import TaskGroup

from kie_async._client.lifetime import check_running
from kie_async.errors import InternalError, KieError, SessionError
from kie_async.events import clean


@contextmanager
def unwrap_single_exception() -> Iterator[None]:
    """Let an error that is alone in its group come out as itself, so that ``except KieError`` works.

    So does one that is alone in the only group of a group.
    """
    try:
        yield
    except BaseExceptionGroup as group:
        error: BaseException = group
        while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
            error = error.exceptions[0]
        raise error from error.__cause__


class InternalErrors:
    """Lets whatever is no error of this library come out of the block as ``InternalError``, with its cause.

    So whoever runs many things, and goes on after a ``KieError`` of one of them, goes on after anything. A class costs
    a third of a ``contextmanager``, and each submission passes through four.
    """

    __slots__ = ("_what",)

    def __init__(self, what: str) -> None:
        self._what = what

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> None:
        if isinstance(error, Exception) and not isinstance(error, KieError):
            reason = f"{type(error).__name__}{_where(trace)}: {clean(str(error))}"
            raise InternalError(f"{self._what}: a fault of this library, or of one that it uses: {reason}") from error


def _where(trace: TracebackType | None) -> str:
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return "" if trace is None else f" in {Path(trace.tb_frame.f_code.co_filename).name}:{trace.tb_lineno}"


A = TypeVar("A")
B = TypeVar("B")


async def map_unordered(
    source: Iterable[A] | AsyncIterable[A], work: Callable[[A], Awaitable[B]], group: TaskGroup, *, concurrency: int
) -> AsyncGenerator[B, None]:
    """Do work on each item of a source and give the outcomes in the order of completion.

    At most ``concurrency`` items are under way or wait to be fetched, so a slow reader slows the work down; items
    are taken one by one as there is room for them. What the source or the work raises is raised here, and ends
    it; the end of the group is a ``SessionError``.

    The work lives in ``group``, so that it may be cancelled from any task. Closing it takes no more items and cancels
    what is under way.
    """
    room = asyncio.Semaphore(concurrency)
    done: asyncio.Queue[tuple[B] | Exception | None] = asyncio.Queue()
    scope = anyio.CancelScope()

    async def run(item: A) -> None:
        done.put_nowait((await work(item),))

    async def feed() -> None:
        end: Exception | None = SessionError("the session was closed: what was submitted goes on at the service")
        try:
            with scope, unwrap_single_exception():
                async with anyio.create_task_group() as running:
                    async for item in each_of(source):
                        await room.acquire()
                        running.start_soon(run, item)
            end = None
        except Exception as error:  # noqa: BLE001  # whatever it is, it is raised where the outcomes are read
            end = error
        finally:
            done.put_nowait(end)

    check_running(group)
    group.start_soon(feed)
    try:
        while (outcome := await done.get()) is not None:
            if isinstance(outcome, Exception):
                raise outcome
            yield outcome[0]
            room.release()
    finally:
        scope.cancel()


async def each_of(source: Iterable[A] | AsyncIterable[A]) -> AsyncIterator[A]:
    """Give the items of any iterable."""
    if isinstance(source, AsyncIterable):
        async for item in source:
            yield item
    else:
        for item in source:
            yield item


async def until(source: Iterable[A] | AsyncIterable[A], is_over: Callable[[], bool]) -> AsyncIterator[A]:
    """Give the items of a source, and no more of them once it is over."""
    async for item in each_of(source):
        yield item
        if is_over():
            return
