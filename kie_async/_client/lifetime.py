"""Hold a resource open in a task of its own, so that any task of the event loop may open and close it.

A cancel scope must be left in the task that entered it. But notebook cells, fixtures and the startup and shutdown hooks
of frameworks run in different tasks. So nothing that holds a task group over a ``yield`` is entered in the caller's.
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

_tasks: set[asyncio.Task[None]] = set()  # the loop holds its tasks weakly, and they must run to their end


class Phase(Enum):
    """The phase of a lifetime."""

    NEW = auto()
    OPENING = auto()
    OPEN = auto()
    FAILED = auto()  # the resource has failed; ``aclose`` was not called yet
    CLOSED = auto()


class Lifetime(Generic[T]):
    """Holds a resource open from ``open`` to ``aclose``, which may be called in different tasks of one event loop.

    With ``async with``, a failure of the resource cancels the task inside the block, and the block raises it. Without a
    block, ``aclose`` raises it.

    Args:
        name: the name of the resource in messages.
        make: makes the context manager to hold open.

    Attributes:
        phase: its phase.
        value: the value of that context manager; set while it is open.
    """

    def __init__(self, name: str, make: Callable[[], AbstractAsyncContextManager[T]]) -> None:
        self.phase = Phase.NEW
        self.value: T
        self._name = name
        self._make = make
        self._home: tuple[asyncio.AbstractEventLoop | None, int] = None, 0
        self._stop = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._host: asyncio.Task[Any] | None = None  # the task inside the block
        self._has_cancelled_host = False
        self._is_raised = False  # whether its failure was raised

    async def open(self) -> T:
        """Open the resource, in a task of its own, and return its value.

        Raises:
            SessionError: it was opened before, or no event loop of asyncio is running.
            BaseException: the error that prevented the opening.

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
        """Close the resource and wait for its end. Does nothing if it is closed already, or was never opened.

        Cancelling does not end the wait; the cancellation is raised after it.

        Raises:
            SessionError: it belongs to another event loop or process.
            BaseException: its failure, if that was not raised before.
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
        """Whether it was opened and never closed, in this process; a forked copy does not count."""
        return self.phase in {Phase.OPEN, Phase.FAILED} and self._home[1] == os.getpid()

    def check(self) -> T:
        """Return its value; raise SessionError if it is not open, or was opened in another loop or process."""
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
            failure.__suppress_context__ = self._has_cancelled_host  # the context is only our own cancellation
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
        """Note that the resource has failed, or the loop ends: cancel the task inside the block."""
        self.phase = Phase.FAILED
        if self._host is not None:
            self._has_cancelled_host = self._host.cancel(f"the {self._name} has failed")


def _forget(task: asyncio.Task[None]) -> None:
    _tasks.discard(task)
    _error_of(task)  # read, so that asyncio does not log it: ``aclose`` raises it


def _error_of(task: asyncio.Task[None] | None) -> BaseException | None:
    return task.exception() if task is not None and task.done() and not task.cancelled() else None


class Opened(Generic[T]):
    """Base class of what is opened by ``async with`` or by hand; an object left open emits a ``ResourceWarning``.

    A subclass makes ``_lifetime``, which must not refer back to the object.
    """

    _lifetime: Lifetime[T]

    async def aclose(self) -> None:
        """Close it, from any task of its event loop; a second call does nothing.

        Waits for the answers of submissions under way (about 90 s at most), even if this is cancelled; the cancellation
        is raised after that. Then stops following tasks, which go on at the service.

        Raises:
            SessionError: it belongs to another event loop or process.
            BaseException: its failure, if it has failed and that was not raised before.
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
    """Raise SessionError if a session's task group has ended; the group itself would raise RuntimeError."""
    if group.cancel_scope.cancel_called:
        raise SessionError("the session was closed, or has failed: nothing was sent")


def running_loop() -> asyncio.AbstractEventLoop:
    """The running event loop.

    Raises:
        SessionError: no event loop of asyncio is running.
    """
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        raise SessionError(
            "no event loop of asyncio is running: kie_async works under asyncio alone, not trio"
        ) from None


async def until_done(future: asyncio.Future[Any]) -> None:
    """Wait until a future is done, even if this is cancelled; the cancellation is raised after that."""
    cancelled: asyncio.CancelledError | None = None
    with anyio.CancelScope(shield=True):
        while not future.done():
            try:
                await asyncio.wait([future])
            except asyncio.CancelledError as error:
                cancelled = error
    if cancelled is not None:
        raise cancelled
