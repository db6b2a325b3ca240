"""What should not happen: a fault of this library, or of one that it uses, must end no more than what it struck."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType

from kie_async.errors import InternalError, KieError
from kie_async.events import clean


@contextmanager
def internal_errors(what: str) -> Iterator[None]:
    """Let whatever is no error of this library come out as ``InternalError``, with its cause.

    So whoever runs many things, and goes on after a ``KieError`` of one of them, goes on after anything.

    Args:
        what: is being done.
    """
    try:
        yield
    except KieError:
        raise
    except Exception as error:
        reason = f"{type(error).__name__}{_where(error.__traceback__)}: {clean(str(error))}"
        raise InternalError(f"{what}: a fault of this library, or of one that it uses: {reason}") from error


def _where(trace: TracebackType | None) -> str:
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return "" if trace is None else f" in {Path(trace.tb_frame.f_code.co_filename).name}:{trace.tb_lineno}"
