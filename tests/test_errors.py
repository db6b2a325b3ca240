"""The tree of errors: facts in fields, text without surprises, copies and pickles."""

from __future__ import annotations

import copy
import inspect
import pickle

import pytest

from kie_async import errors
from kie_async.errors import KieError, Problem, WaitTimeoutError

ALL = [kind for _, kind in inspect.getmembers(errors, inspect.isclass) if issubclass(kind, KieError)]


@pytest.mark.parametrize("kind", ALL)
def test_an_error_can_be_copied_and_pickled(kind: type[KieError]) -> None:
    error = kind("what happened", "task1", 429)
    for twin in (copy.copy(error), pickle.loads(pickle.dumps(error))):  # noqa: S301  # our own bytes
        assert type(twin) is kind
        assert (twin.message, twin.task_id, twin.code) == ("what happened", "task1", 429)
        assert (twin.charged, twin.retryable) == (error.charged, error.retryable)
    assert str(error) == "what happened (task task1, code 429)"


@pytest.mark.parametrize("kind", ALL)
def test_the_tree_is_drawn_whole(kind: type[KieError]) -> None:
    assert errors.__doc__ is not None
    assert kind.__name__ in errors.__doc__


def test_a_short_error_is_its_message() -> None:
    assert str(KieError("no")) == "no"
    assert str(Problem("style", "is empty", "give text")) == "style: is empty; give text"


def test_a_timeout_is_a_timeout() -> None:
    error = WaitTimeoutError("later", "task1")
    assert isinstance(error, TimeoutError)
    assert error.charged == "yes"


USUAL = {
    "ConnectError": ("no", True),
    "TLSError": ("no", False),
    "RateLimitedError": ("no", True),
    "UnavailableError": ("no", True),
    "SubmitUnknownError": ("maybe", False),
    "ServerError": ("no", True),
    "TaskFailedError": ("maybe", False),
    "WaitTimeoutError": ("yes", True),
    "InternalError": ("maybe", False),
    "DownloadError": ("no", True),
    "ResultExpiredError": ("no", False),
    "StorageError": ("no", True),
}


@pytest.mark.parametrize("kind", ALL)
def test_a_class_says_what_is_usual_and_an_error_what_is_so(kind: type[KieError]) -> None:
    error = kind("what happened")
    assert (error.charged, error.retryable) == USUAL.get(kind.__name__, ("no", False))
    told = kind("what happened", charged="yes", retryable=not error.retryable)
    assert (told.charged, told.retryable) == ("yes", not error.retryable)
    assert told.retry_after is None
    assert repr(told).startswith(f"{kind.__name__}(message='what happened', task_id=None, code=None, ")
