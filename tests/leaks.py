"""Where a secret could show itself: everything a program may write down about an error, a value or an event."""

from __future__ import annotations

import contextlib
import pickle
import traceback
from collections.abc import Iterator
from pathlib import Path

import attrs

from kie_async.errors import KieError

TESTS = Path(__file__).parent


def chain(error: BaseException) -> Iterator[BaseException]:
    """The error and all that hangs on it: causes and contexts, shown or not, and the members of groups."""
    waiting, seen = [error], set()
    while waiting:
        each = waiting.pop()
        if id(each) in seen:
            continue
        seen.add(id(each))
        yield each
        waiting += [other for other in (each.__cause__, each.__context__) if other is not None]
        waiting += each.exceptions if isinstance(each, BaseExceptionGroup) else ()


def shown(error: BaseException) -> Iterator[str]:
    """All that loggers, crash reporters and pickles make of an error; the frames of the tests left out."""
    for each in chain(error):
        yield from (str(each), repr(each), repr(each.args), repr(vars(each)))
        yield "".join(traceback.format_exception_only(each))
        if isinstance(each, KieError):
            yield repr(attrs.asdict(each))
        with contextlib.suppress(TypeError, AttributeError):  # not every foreign error can be pickled
            yield repr(pickle.dumps(each))
        for file, text in frames(each):
            yield f"{file}: {text}"


def frames(error: BaseException) -> Iterator[tuple[str, str]]:
    """What ``traceback`` shows with ``capture_locals=True``, frame by frame: the file, and the variables."""
    for frame, _ in traceback.walk_tb(error.__traceback__):
        file = frame.f_code.co_filename
        if Path(file).parent != TESTS:
            yield file, "; ".join(f"{name}={_repr(value)}" for name, value in frame.f_locals.items())


def _repr(value: object) -> str:
    try:
        return repr(value)
    except Exception:  # noqa: BLE001  # what is half made has none, and loggers bear it
        return "?"
