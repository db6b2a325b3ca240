"""The benchmarks of rates in small: each runs, and what it prints is true."""

from __future__ import annotations

import asyncio
import re

import pytest

from benchmarks import callbacks, decode, limiter
from benchmarks._limiters import SUBJECTS
from benchmarks._virtual_loop import VirtualLoop
from kie_async.limiter import Limiter

pytestmark = pytest.mark.scale


def printed(capsys: pytest.CaptureFixture[str], first: str) -> list[list[str]]:
    """The lines of a table, cut into cells, whose headers begin with this word."""
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("Python 3.")
    begin = next(place for place, line in enumerate(lines) if line.startswith(first)) + 1
    return [re.split(r"  +", line) for line in lines[begin:] if line]


def test_the_limiter_lets_no_more_than_the_limit_through(capsys: pytest.CaptureFixture[str]) -> None:
    assert limiter.main(["--virtual", "100", "--requests", "20", "--acquisitions", "100", "--only"]) == 0
    [ours, *_] = printed(capsys, "used")
    assert ours[0] == "kie_async, virtual clock"
    for cell in ours[1:]:
        used, most, *against = cell.split()
        assert float(used.rstrip("%")) > 90
        assert int(most) == 20
        assert against in ([], ["+0"])


def test_a_limiter_that_is_not_installed_has_a_row_that_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(_limit: int, _window: float) -> Limiter:
        raise ModuleNotFoundError

    monkeypatch.setitem(SUBJECTS, "limits, moving window", missing)
    [row] = limiter.really(20, 1, ["limits, moving window"])
    assert set(row[1:]) == {"not installed"}


def test_the_virtual_clock_never_waits_for_nothing() -> None:
    async def forever() -> None:
        await asyncio.get_running_loop().create_future()

    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        with pytest.raises(RuntimeError, match="no timer"):
            runner.run(forever())
        started = runner.get_loop().time()
        runner.run(asyncio.sleep(3600))
        assert runner.get_loop().time() - started == pytest.approx(3600)


def test_callbacks_complete_their_futures(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(callbacks, "COMPARED", (("aiohttp", "confirmed", "asking", "session"),))
    monkeypatch.setattr(callbacks, "WAYS", ["aiohttp"])
    assert callbacks.main(["--events", "40", "--burst", "20"]) == 0
    [[what, *figures]] = printed(capsys, "through")
    assert what == "aiohttp, confirmed"
    assert all(float(figure) > 0 for figure in figures)


def test_callbacks_into_an_asgi_application(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(callbacks, "COMPARED", (("driven", "answered", "bare", "receiver"),))
    costs = asyncio.run(callbacks.measure("driven", 40, 20))
    assert {side: len(found) for side, found in costs.items()} == {"bare": 1, "receiver": 1}


def test_bodies_are_read_by_all_who_are_here(capsys: pytest.CaptureFixture[str]) -> None:
    assert decode.main(["--runs", "20"]) == 0
    taken = {what: float(figure) for what, figure, _ in (row for row in printed(capsys, "body") if len(row) == 3)}
    assert taken["record-info: json alone"] < taken["record-info: kie_async, without orjson"]
    assert 0 < taken["callback: kie_async, with orjson"] < taken["callback: kie_async, with the tracks"]


def test_a_package_that_is_not_installed_has_a_row_that_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> decode.Readers:
        raise ModuleNotFoundError

    monkeypatch.setitem(decode.SUBJECTS, "pydantic", missing)
    assert ("pydantic", "not installed", "") in list(decode.rows(1))
