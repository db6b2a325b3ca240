"""Run blocking file operations in a worker thread; an ``OSError`` becomes a ``StorageError``."""

from __future__ import annotations

import asyncio
import logging
import os
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TypeAlias, TypeVar

import attrs
from anyio import to_thread

from kie_async._client.lifetime import until_done
from kie_async.errors import StorageError
from kie_async.events import Notice, Observer, clean

T = TypeVar("T")

Progress: TypeAlias = Callable[[int, int | None], None]  # bytes so far, bytes in all if known

logger = logging.getLogger("kie_async.files")


async def on_disk(function: Callable[..., T], *arguments: object, on_cancel: Callable[[], object] = lambda: None) -> T:
    """Run a function in a thread.

    Args:
        function: blocks.
        arguments: of the function.
        on_cancel: called when the caller is cancelled, so that the function may end early.

    Raises:
        StorageError: the disk refused.

    Cancelling waits for the thread, so that nothing goes on behind the caller's back: a scope's shield alone would
    not hold off ``Task.cancel()``.
    """
    work = asyncio.get_running_loop().run_in_executor(None, function, *arguments)
    try:
        await asyncio.wait([work])
    except asyncio.CancelledError:
        on_cancel()
        with suppress(asyncio.CancelledError):
            await until_done(work)
        work.exception()  # nobody else asks for it
        raise
    failure = work.exception()
    if isinstance(failure, OSError):
        raise StorageError(_words(failure)) from failure
    return work.result()


async def check_writable(directory: Path, *, otherwise: str = "nothing was sent") -> None:
    """Check that files can be written to a directory, or to the one in which it would be made; leave nothing there.

    Args:
        directory: need not exist.
        otherwise: what the error says of the work that was to come.

    Raises:
        StorageError: they cannot.
    """
    try:
        await to_thread.run_sync(_write_something, directory)
    except OSError as error:
        where = clean(str(directory))
        raise StorageError(
            f"{where} cannot be written: {error.strerror or error}; give another directory, or access and room; "
            f"{otherwise}"
        ) from None


def _write_something(directory: Path) -> None:
    there = next(each for each in (directory, *directory.absolute().parents) if os.path.lexists(each))
    with tempfile.TemporaryFile(dir=there) as file:
        file.write(b"\0")
        file.flush()


def _words(error: OSError) -> str:
    where = f" {clean(Path(error.filename).name)}" if isinstance(error.filename, str) else ""
    return f"the disk refused{where}: {error.strerror or error}; make room or give access"


@attrs.define
class Reporter:
    """Tells a caller's callback how far a transfer is. If the callback fails, the transfer does not."""

    _progress: Progress | None
    _emit: Observer
    _task_id: str = ""

    def report(self, done: int, total: int | None) -> None:
        """Call the callback, unless it has failed before."""
        if self._progress is None:
            return
        try:
            self._progress(done, total)
        except Exception as error:
            self._progress = None
            logger.warning("a progress callback failed and is not called any more", exc_info=True)
            self.notify(f"a progress callback failed: {type(error).__name__}")

    def notify(self, note: str) -> None:
        """Emit a notice about the transfer."""
        self._emit(Notice(self._task_id, note))
