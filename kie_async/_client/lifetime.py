"""What is open for a while lives in a task of its own, so that any task of the event loop may open and close it.

A cancel scope must be left in the task that entered it. Notebook cells, fixtures and frameworks' hooks for start and
stop are different tasks, so nothing that holds a task group over a ``yield`` is entered in the caller's.
"""

from __future__ import annotations

import asyncio
import os
import warnings
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from enum import Enum, auto
from types import TracebackType
from typing import Any, Generic, Self, TypeVar

import anyio
from anyio.abc import TaskGroup

from kie_async.errors import SessionError

T = TypeVar("T")

_tasks: set[asyncio.Task[None]] = set()  # the loop holds its tasks weakly; one that is forgotten works to its end


class Phase(Enum):
    """How far it is."""

    NEW = auto()
    OPENING = auto()
    OPEN = auto()
    FAILED = auto()  # by itself; nobody has closed it yet
    CLOSED = auto()


class Lifetime(Generic[T]):
    """Holds a resource open, from ``open`` to ``aclose``, which may be called in different tasks of one loop.

    Used with ``async with``, it cancels the task that entered the block when the resource fails, and the failure comes
    out of the block. A failure is raised as itself by whoever closes.

    Args:
        name: what messages call it.
        make: makes the context manager that is held open.

    Attributes:
        value: what that gives; from the opening on.
    """

    def __init__(self, name: str, make: Callable[[], AbstractAsyncContextManager[T]]) -> None:
        self.phase = Phase.NEW
        self.value: T
        self._name = name
        self._make = make
        self._home: tuple[asyncio.AbstractEventLoop | None, int] = None, 0
        self._stop = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._host: asyncio.Task[Any] | None = None  # who is inside the block
        self._has_cancelled_host = False
        self._is_raised = False  # how it failed was raised

    async def open(self) -> T:
        """Open it, in a task of its own, and return what it gives.

        Raises:
            SessionError: it was opened before, or this is no loop of asyncio.
            BaseException: whatever kept it from opening.

        Cancelling closes it.
        """
        loop = running_loop()
        if self.phase is not Phase.NEW:
            raise SessionError(f"this {self._name} was entered before: make a new one")
        self.phase, self._home = Phase.OPENING, (loop, os.getpid())
        opened: asyncio.Future[T] = loop.create_future()
        self._task = task = loop.create_task(self._run(opened), name=f"kie_async {self._name}")
        _tasks.add(task)
        task.add_done_callback(_forget)
        try:
            await asyncio.wait((task, opened), return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError:
            if not opened.done():
                task.cancel()
            await self.aclose()
            raise
        if not opened.done():
            await self.aclose()
            raise SessionError(f"the {self._name} was closed while it opened")
        if self.phase is Phase.OPENING:
            self.phase = Phase.OPEN
        return opened.result()

    async def aclose(self) -> None:
        """Close it and wait for its end, also if cancelled meanwhile; the cancellation is raised then.

        Nothing happens to one that was closed before, or never opened.

        Raises:
            SessionError: it belongs to another event loop or process.
            BaseException: how it failed, once.
        """
        if self._task is None:
            return
        self._check_home()
        self._host = None
        self.phase = Phase.CLOSED
        self._stop.set()
        try:
            await until_done(self._task)
        finally:
            error = _error_of(self._task)
            if error is not None and not self._is_raised:
                self._is_raised = True
                raise error

    @property
    def is_left_open(self) -> bool:
        """Whether nobody has closed it; the copy in a forked process is not meant."""
        return self.phase in {Phase.OPEN, Phase.FAILED} and self._home[1] == os.getpid()

    def check(self) -> T:
        """Return what it gives; raise SessionError if it is not open, or not in this loop and process."""
        if self.phase in {Phase.NEW, Phase.OPENING}:
            raise SessionError(f"the {self._name} is not open: use it inside 'async with'")
        if self.phase is Phase.CLOSED:
            raise SessionError(f"the {self._name} was closed: make a new one")
        self._check_home()
        if self.phase is Phase.FAILED:
            message = f"the {self._name} has failed: close it, and make a new one"
            raise SessionError(message) from _error_of(self._task)
        return self.value

    def _check_home(self) -> None:
        if self._home != (running_loop(), os.getpid()):
            raise SessionError(f"the {self._name} belongs to another event loop or process: make one there")

    async def __aenter__(self) -> T:
        value = await self.open()
        self._host = asyncio.current_task()
        if self.phase is Phase.FAILED:
            await self.aclose()
        return value

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> None:
        host = self._host
        try:
            await self.aclose()
        except BaseException as failure:
            failure.__suppress_context__ = self._has_cancelled_host  # what it came in the way of was that cancellation
            raise
        finally:
            if self._has_cancelled_host and host is not None and host is asyncio.current_task():
                host.uncancel()

    # ------------------------------------------------------------ its own task

    async def _run(self, opened: asyncio.Future[T]) -> None:
        async with self._make() as value:
            self.value = value
            opened.set_result(value)
            try:
                await self._stop.wait()
            finally:
                if not self._stop.is_set():
                    self._fail()

    def _fail(self) -> None:
        """What is held open has failed, or the loop ends: cancel the task that is inside the block."""
        self.phase = Phase.FAILED
        if self._host is not None:
            self._has_cancelled_host = self._host.cancel(f"the {self._name} has failed")


def _forget(task: asyncio.Task[None]) -> None:
    _tasks.discard(task)
    _error_of(task)  # read, so that it is not logged: whoever closes gets it


def _error_of(task: asyncio.Task[None] | None) -> BaseException | None:
    return task.exception() if task is not None and task.done() and not task.cancelled() else None


class Opened(Generic[T]):
    """What is opened and closed by its lifetime: with ``async with``, or by hand; one that is forgotten warns.

    A subclass makes ``_lifetime``, which must not lead back to it.
    """

    _lifetime: Lifetime[T]

    async def aclose(self) -> None:
        """Close it, from any task of its event loop; a second call does nothing.

        Waits for the answers of submissions that are under way (some 90 s at most), also if cancelled meanwhile, and
        stops following tasks. They go on at the service.

        Raises:
            SessionError: it belongs to another event loop or process.
            BaseException: what it failed of, if it has failed.
        """
        await self._lifetime.aclose()

    async def __aenter__(self) -> Self:
        await self._lifetime.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> None:
        await self._lifetime.__aexit__(kind, error, trace)

    def __del__(self) -> None:
        lifetime = getattr(self, "_lifetime", None)  # none if its making failed
        if lifetime is not None and lifetime.is_left_open:
            message = f"a {type(self).__name__} was left open: use 'async with', or await its 'aclose()'"
            warnings.warn(message, ResourceWarning, source=self, stacklevel=1)


def check_running(group: TaskGroup) -> None:
    """Raise SessionError if a session's group takes no more work; it would refuse with a RuntimeError of its own."""
    if group.cancel_scope.cancel_called:
        raise SessionError("the session was closed, or has failed: nothing was sent")


def running_loop() -> asyncio.AbstractEventLoop:
    """The running event loop.

    Raises:
        SessionError: none of asyncio's is running.
    """
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        raise SessionError(
            "no event loop of asyncio is running: kie_async works under asyncio alone, not trio"
        ) from None


async def until_done(future: asyncio.Future[Any]) -> None:
    """Wait until a future is done, also if cancelled meanwhile; the cancellation is raised then."""
    cancelled: asyncio.CancelledError | None = None
    with anyio.CancelScope(shield=True):
        while not future.done():
            try:
                await asyncio.wait([future])
            except asyncio.CancelledError as error:
                cancelled = error
    if cancelled is not None:
        raise cancelled
