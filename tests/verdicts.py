"""What must hold whenever a call fails, and whenever the answer to a submission is lost."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from fault_server import SUBMIT, FaultServer, transport

from kie_async._client.http_client import Transport
from kie_async.errors import KieError, SubmitUnknownError


class CountedPermit:
    """A permit that counts how often it ended as "sent"; only the first end counts."""

    is_valid = True

    def __init__(self) -> None:
        self.count = 0
        self.is_ended = False
        self.ended_at = 0.0

    def release(self) -> None:
        self.count += not self.is_ended
        self.is_ended, self.ended_at = True, self.ended_at or asyncio.get_running_loop().time()

    def give_back(self) -> None:
        self.is_ended = True


async def failing(opened: Transport, call: object = SUBMIT, headers: int | None = 1) -> KieError:
    """Send what must fail, and check what holds for every failure."""
    permit = CountedPermit()
    with pytest.raises(KieError) as caught:
        await opened.send(call, permit=permit)  # type: ignore[arg-type]  # any call
    error = caught.value
    assert permit.is_ended
    assert headers is None or permit.count == headers
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
