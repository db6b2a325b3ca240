"""The comparison with other clients, in short: the full one is ``python -m benchmarks peers``."""

from __future__ import annotations

import pytest

from benchmarks import _peer_clients, peers
from benchmarks._distant import Distant

pytestmark = pytest.mark.scale

QUICK = ["--tasks", "2", "--shortest", "0.2", "--longest", "0.3", "--interval", "0.1", "--emulator"]


def rows(text: str) -> dict[str, list[str]]:
    """The cells of each client's row, without its name."""
    return {
        name: line.removeprefix(name).split()
        for line in text.splitlines()
        for name in sorted(_peer_clients.CLIENTS, key=len)
        if line.startswith(f"{name}  ")
    }


def test_every_task_is_completed_and_measured(capsys: pytest.CaptureFixture[str]) -> None:
    assert peers.main([*QUICK, "--only", "ours", "ours called back", "aiohttp loop"]) == 0
    printed = capsys.readouterr().out
    found = rows(printed)
    assert {name: cells[0] for name, cells in found.items()} == dict.fromkeys(
        ["ours", "ours called back", "aiohttp loop"], "2"
    )
    polls, connections = ([float(cells[place]) for cells in found.values()] for place in (3, 4))
    assert min(polls) >= 1
    assert polls[1] == 1  # the callback brings the news, and one look the result
    assert all(1 <= count <= 4 for count in connections)
    assert f"ours: {polls[0]:.1f}" in printed


def test_a_loop_of_five_seconds_is_late_by_half_of_it() -> None:
    durations = [20 + number / 100 for number in range(1, 1001)]
    assert "an interval of 5.0 s and needs 6.50: ours needs 0.50 of them" in peers.at_equal_lag(3.25, 2.5, durations)


def test_ours_is_as_patient_as_with_the_real_service() -> None:
    settings = Distant(api_key="k", base_url="http://127.0.0.1:1", upload_base_url="http://127.0.0.1:1")
    assert not settings.on_loopback


def test_a_client_that_is_not_installed_has_a_row_that_says_so(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    absent = _peer_clients.Client(_peer_clients.fal, "no-such-client", ("no_such_client",))
    monkeypatch.setattr(peers, "CLIENTS", {"fal-client": absent})
    assert peers.main([*QUICK, "--only", "fal-client"]) == 0
    assert "not installed" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("event", "arguments", "free"),
    [
        ("socket.connect", (None, ("127.0.0.1", 80)), True),
        ("socket.connect", (None, ("192.0.2.1", 80)), False),
        ("socket.connect", (None, "/run/socket"), True),
        ("socket.getaddrinfo", ("localhost", 80), True),
        ("socket.getaddrinfo", (b"example.com", 80), False),
        ("open", ("example.com",), True),
    ],
)
def test_no_client_reaches_another_machine(event: str, arguments: tuple[object, ...], free: bool) -> None:  # noqa: FBT001  # a parameter
    if free:
        _peer_clients.stay_here(event, arguments)
        return
    with pytest.raises(RuntimeError, match="wanted to reach"):
        _peer_clients.stay_here(event, arguments)
