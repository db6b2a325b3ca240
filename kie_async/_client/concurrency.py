"""Run a bounded number of things at once, with their outcomes in the order of completion, and handle their errors."""

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
from kie_async.events import Notice, Observer, clean


@contextmanager
def unwrap_single_exception() -> Iterator[None]:
    """Raise the only error of an exception group, nested or not, as itself, so that ``except KieError`` works."""
    try:
        yield
    except BaseExceptionGroup as group:
        error: BaseException = group
        while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
            error = error.exceptions[0]
        raise error from error.__cause__


class InternalErrors:
    """Turns any other exception than a ``KieError`` into an ``InternalError``, with its cause.

    So code that runs many things, and survives a ``KieError`` of one, survives any error. It is a class because that
    costs a third of a ``contextmanager``, and each submission passes through four.
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
            raise InternalError(f"{self._what}: {_describe_fault(error, trace)}") from error


@contextmanager
def emit_failures(emit: Observer, note: str, task_id: str = "") -> Iterator[None]:
    """Emit any error of the block as a notice, and go on after the block.

    Args:
        emit: called with the notice.
        note: what could not be done; the reason is appended.
        task_id: the task that it concerns.
    """
    try:
        yield
    except KieError as error:
        emit(Notice(task_id, f"{note}: {clean(error.message)}"))
    except Exception as error:  # noqa: BLE001  # a fault: see InternalErrors
        emit(Notice(task_id, f"{note}: {_describe_fault(error, error.__traceback__)}"))


def _describe_fault(error: Exception, trace: TracebackType | None) -> str:
    reason = f"{type(error).__name__}{_where(trace)}: {clean(str(error))}"
    return f"a fault of this library, or of one that it uses: {reason}"


def _where(trace: TracebackType | None) -> str:
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return "" if trace is None else f" in {Path(trace.tb_frame.f_code.co_filename).name}:{trace.tb_lineno}"


A = TypeVar("A")
B = TypeVar("B")


async def map_unordered(
    source: Iterable[A] | AsyncIterable[A], work: Callable[[A], Awaitable[B]], group: TaskGroup, *, concurrency: int
) -> AsyncGenerator[B, None]:
    """Call ``work`` on each item of a source, and yield the outcomes in the order of completion.

    At most ``concurrency`` items are under way or wait to be read, so a slow reader slows the work down; items are
    taken one by one as there is room for them. An error of the source or of the work is raised here and ends it; the
    end of the group raises ``SessionError``.

    The work runs in ``group``, so that any task may cancel it. Closing the generator takes no more items and cancels
    the work under way.
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
    """Yield the items of any iterable."""
    if isinstance(source, AsyncIterable):
        async for item in source:
            yield item
    else:
        for item in source:
            yield item


async def until(source: Iterable[A] | AsyncIterable[A], is_over: Callable[[], bool]) -> AsyncIterator[A]:
    """Yield the items of a source until ``is_over()``."""
    async for item in each_of(source):
        yield item
        if is_over():
            return
