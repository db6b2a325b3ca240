"""Workers as their operator meets them: how they end, and who lives. In processes of their own."""

from __future__ import annotations

import signal
import socket
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import urlopen

import anyio
import pytest
from command_line import PATIENCE, Terminal, ended, environment, lines, served, started
from postgres import execute

from kie_async.batch import WorkerControl, serve_health
from kie_async.emulator import Fault
from kie_async.testing import EmulatorHandle

JOBS = 6
STEADY = 300.0  # of an emulator: a task takes less than a second


@pytest.fixture
def service(monkeypatch: pytest.MonkeyPatch) -> Iterator[EmulatorHandle]:
    with served(monkeypatch, speed=STEADY) as handle:
        yield handle


@pytest.fixture
def place(terminal: Terminal, service: EmulatorHandle, database_url: str, tmp_path: Path) -> tuple[str, ...]:
    """The options that lead to some jobs, which are on record."""
    del service
    manifest = tmp_path / "jobs.csv"
    rows = [f"job{number},a1,V5,s,job{number},p,60\n" for number in range(JOBS)]
    manifest.write_text("".join(["id,audio_id,model,style,title,prompt,continue_at\n", *rows]))
    options = ("--out", str(tmp_path / "out"), "--journal", database_url)
    assert terminal("batch", str(manifest), "--enqueue", "--yes", *options).code == 0
    return options


UNREADABLE = Fault("code", on="record_info", code=500)  # no task comes to its end as long as this lasts


def becomes(condition: Callable[[], bool], worker: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert worker.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)


def states(terminal: Terminal, place: tuple[str, ...]) -> dict[str, int]:
    counts = terminal("jobs", "list", *place, "--json").value["counts"]
    return {state: count for state, count in counts.items() if count}


def queue(database_url: str) -> dict[str, int]:
    """How many rows of the engine are in each state."""
    rows = "SELECT status::text, count(*) FROM procrastinate_jobs WHERE args ? 'key' GROUP BY status"
    return dict(execute(database_url, rows))


def finish(terminal: Terminal, place: tuple[str, ...], service: EmulatorHandle) -> None:
    """Let another worker do what is left, and hold that nothing was lost or paid twice."""
    assert terminal("worker", *place, "--until-done").code == 0
    assert states(terminal, place) == {"delivered": JOBS}
    charges = Counter(charge.body["title"] for charge in service.ledger)
    assert charges == {f"job{number}": 1 for number in range(JOBS)}


def test_sigterm_awaits_the_posts_and_gives_the_rest_back(
    terminal: Terminal, service: EmulatorHandle, database_url: str, place: tuple[str, ...]
) -> None:
    slow = Fault("slow", on="submit", seconds=2.0)
    service.add_faults(slow, UNREADABLE)
    with started("worker", *place, "--at-once", "3", env=environment(service)) as worker:
        becomes(lambda: len(service.arrivals) == 3, worker)
        assert queue(database_url)["doing"] == 3
        worker.send_signal(signal.SIGTERM)
        answer = ended(worker)
    service.remove_faults(slow, UNREADABLE)
    assert answer.code == 0
    assert "stopped by SIGTERM; every job stays as the journal has it" in answer.err
    assert "unknown" not in answer.err
    assert "Traceback" not in answer.err
    assert len(service.ledger) == 3
    assert states(terminal, place) == {"submitted": 3, "planned": 3}
    assert queue(database_url) == {"todo": JOBS}  # at once, for any worker
    assert execute(database_url, "SELECT count(*) FROM procrastinate_workers") == [(0,)]
    assert execute(database_url, "SELECT count(*) FROM kie_lease") == [(0,)]
    finish(terminal, place, service)


@contextmanager
def draining(service: EmulatorHandle, place: tuple[str, ...]) -> Iterator[subprocess.Popen[bytes]]:
    """A worker that is drained while three jobs of it are submitted and cannot come to their end."""
    service.add_faults(UNREADABLE)
    with started("worker", *place, "--at-once", "3", "--drain", env=environment(service)) as worker:
        becomes(lambda: len(service.ledger) == 3, worker)
        worker.send_signal(signal.SIGTERM)
        lines(worker, until=b"what is submitted comes to its end first; SIGTERM again leaves it to other workers")
        yield worker


def test_drain_finishes_what_is_submitted(
    terminal: Terminal, service: EmulatorHandle, database_url: str, place: tuple[str, ...]
) -> None:
    with draining(service, place) as worker:
        service.remove_faults(UNREADABLE)
        answer = ended(worker)
    assert answer.code == 0
    assert "3 done" in answer.err
    assert states(terminal, place) == {"delivered": 3, "planned": 3}
    assert queue(database_url) == {"succeeded": 3, "todo": 3}
    finish(terminal, place, service)


def test_a_second_sigterm_ends_a_drain(
    terminal: Terminal, service: EmulatorHandle, database_url: str, place: tuple[str, ...]
) -> None:
    with draining(service, place) as worker:
        worker.send_signal(signal.SIGTERM)
        answer = ended(worker)
    service.remove_faults(UNREADABLE)
    assert answer.code == 0
    assert "every job stays as the journal has it" in answer.err
    assert states(terminal, place) == {"submitted": 3, "planned": 3}
    assert queue(database_url) == {"todo": JOBS}
    finish(terminal, place, service)


# ---------------------------------------------------------------- health


def ask(url: str, path: str) -> tuple[int, str]:
    try:
        with urlopen(f"{url}{path}", timeout=PATIENCE) as answer:  # noqa: S310  # on loopback
            return answer.status, answer.read().decode()
    except HTTPError as error:
        with error:
            return error.code, error.read().decode()


def health_url(worker: subprocess.Popen[bytes]) -> str:
    return lines(worker, until=b"health: ").split("health: ")[1].split("/livez")[0]


def test_a_worker_tells_its_health(terminal: Terminal, service: EmulatorHandle, place: tuple[str, ...]) -> None:
    service.add_faults(UNREADABLE)
    options = ("--at-once", "1", "--drain", "--health", "127.0.0.1:0")
    with started("worker", *place, *options, env=environment(service)) as worker:
        url = health_url(worker)
        assert ask(url, "/livez") == (200, "ok\n")
        assert "kie_async_client_unknown_submissions_total" in ask(url, "/metrics")[1]
        becomes(lambda: ask(url, "/readyz") == (200, "ok\n"), worker)
        assert ask(url, "/elsewhere")[0] == 404
        becomes(lambda: "kie_async_client_quota_wait_time_seconds_count" in ask(url, "/metrics")[1], worker)
        worker.send_signal(signal.SIGTERM)
        becomes(lambda: ask(url, "/readyz") == (503, "it is stopping\n"), worker)  # its task is under way
        service.remove_faults(UNREADABLE)
        assert ended(worker).code == 0
    finish(terminal, place, service)


def test_without_the_extra_there_are_no_metrics(
    service: EmulatorHandle, place: tuple[str, ...], tmp_path: Path
) -> None:
    (tmp_path / "absent").mkdir()
    (tmp_path / "absent" / "prometheus_client.py").write_text("raise ImportError('it is absent')")
    env = environment(service, PYTHONPATH=str(tmp_path / "absent"))
    with started("worker", *place, "--health", ":0", env=env) as worker:
        code, text = ask(health_url(worker), "/metrics")
        worker.send_signal(signal.SIGTERM)
        ended(worker)
    assert code == 501
    assert 'pip install "kie_async[metrics]"' in text


def test_a_port_that_is_in_use_is_refused_before_anything_is_begun(
    terminal: Terminal, service: EmulatorHandle, place: tuple[str, ...]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        answer = terminal("worker", *place, "--until-done", "--health", address)
    assert answer.code == 2
    assert f"cannot listen for questions about health on 127.0.0.1 port {address[10:]}" in answer.err
    assert states(terminal, place) == {"planned": JOBS}
    assert not service.arrivals
    answer = terminal("worker", *place, "--health", "8081x")
    assert answer.code == 2
    assert "--health: '8081x' is no address" in answer.err


@pytest.mark.anyio
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_health_on_ipv6_has_an_address_to_open() -> None:
    async with serve_health(WorkerControl().why_not_ready, "none here", host="::1") as url:
        assert url.startswith("http://[::1]:")
        assert await anyio.to_thread.run_sync(ask, url, "/readyz") == (503, "it has not begun\n")


@pytest.mark.anyio
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_an_error_of_the_block_is_no_error_of_listening() -> None:
    with pytest.raises(OSError, match="of the block"):
        async with serve_health(WorkerControl().why_not_ready, "none here"):
            raise OSError("of the block")


# ---------------------------------------------------------------- who lives


def test_living_workers_are_listed(
    terminal: Terminal, service: EmulatorHandle, database_url: str, place: tuple[str, ...]
) -> None:
    asked = ("workers", "--journal", database_url)
    answer = terminal(*asked)
    assert (answer.code, answer.out, answer.err) == (0, "", "0 workers at work\n")
    service.add_faults(UNREADABLE)  # it holds on to its first two jobs
    env = environment(service, KIE_MACHINE="studio:2")
    found: dict[str, Any] = {}

    def is_listed() -> bool:
        for each in terminal(*asked, "--json").value["workers"]:
            found.update(each)
        return found.get("jobs") == 2

    with started("worker", *place, "--at-once", "2", env=env) as worker:
        becomes(is_listed, worker)
        answer = terminal(*asked)
        assert answer.err == "1 worker at work\n"
        assert answer.out.startswith(f"studio:2  process {worker.pid}  2 jobs  since {found['started_at']}  heartbeat ")
        ids = execute(database_url, "SELECT id FROM procrastinate_workers")
        for strange in (":7", ":7:8", ":seven:8:studio"):  # names that another version might give
            lease = "INSERT INTO kie_lease SELECT 'worker:' || id || '{}', 'p', 4e9 FROM procrastinate_workers"
            execute(database_url, lease.format(strange))
        assert len(terminal(*asked, "--json").value["workers"]) == 1
        assert (found["machine"], found["pid"], [(found["engine_id"],)]) == ("studio:2", worker.pid, ids)
        worker.kill()
        worker.wait()
    execute(database_url, "UPDATE procrastinate_workers SET last_heartbeat = now() - interval '19 s'")
    assert terminal(*asked).err.startswith("0 workers at work, 1 silent for ")
    past = "UPDATE kie_lease SET expires_at = expires_at - 30 WHERE name LIKE 'worker:%'"
    execute(database_url, past)
    assert not terminal(*asked).out


@pytest.mark.parametrize("words", [(), ("--journal", "jobs.sqlite")])
def test_a_file_has_no_workers(terminal: Terminal, words: tuple[str, ...]) -> None:
    answer = terminal("workers", *words)
    assert answer.code == 2
    assert "--journal must be postgresql://" in answer.err


@pytest.mark.parametrize("words", [("jobs", "list"), ("database", "check")])
def test_help_says_where_the_journal_is_by_default(terminal: Terminal, words: tuple[str, ...]) -> None:
    text = " ".join(terminal(*words, "--help").out.replace("│", " ").split())
    assert "by default $KIE_JOURNAL, or else a file in --out" in text
    assert "The path that 'batch --out' was given: it names the batch" in text
