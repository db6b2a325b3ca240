"""What must hold whenever a call fails, and whenever the answer to a submission is lost."""

from __future__ import annotations

from typing import Any

import pytest
from fault_server import SUBMIT, FaultServer, transport

from kie_async._client.http_client import Transport
from kie_async.errors import KieError, SubmitUnknownError


class Calls:
    """What ``on_headers`` was called with: it counts."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self) -> None:
        self.count += 1


async def failing(opened: Transport, call: object = SUBMIT, headers: int | None = 1) -> KieError:
    """Send what must fail, and check what holds for every failure."""
    calls = Calls()
    with pytest.raises(KieError) as caught:
        await opened.send(call, on_headers=calls)  # type: ignore[arg-type]  # any call
    error = caught.value
    assert headers is None or calls.count == headers
    assert error.__cause__ is None
    assert error.__context__ is None or isinstance(error.__context__, KieError)
    return error


async def lost(server: FaultServer, **changes: Any) -> KieError:
    """Submit where the answer is lost: unknown, and never sent again."""
    async with transport(server.url, **changes) as opened:
        error = await failing(opened)
    assert isinstance(error, SubmitUnknownError)
    assert (error.charged, error.retryable) == ("maybe", False)
    assert server.connections == 1
    assert len(server.asked) <= 1
    return error
