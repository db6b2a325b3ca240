"""The journal through a pooler that gives connections by the transaction, and through TLS."""

from __future__ import annotations

import asyncio
import logging
import shutil
import ssl
import tempfile
import traceback
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import anyio
import pytest
import trustme
from journal_contract import JournalContract, collect, expecting, inbound, planned
from poolers import Relay, pgbouncer, through
from postgres import Server, execute

import kie_async as kie
from kie_async.batch import _worker, run_shared_batch
from kie_async.emulator import Rules
from kie_async.errors import StorageError
from kie_async.journal import Job, Journal, JournalLimiter, PostgresJournal, State, _postgres
from kie_async.testing import serve_in_thread

pytestmark = [pytest.mark.anyio, pytest.mark.real_time]

MAIN_PARTS = {
    "what_was_added_is_read_again",
    "many_are_added_from_any_iterable",
    "facts_are_kept",
    "one_of_two_intents_wins",
    "attempts_keep_their_task_ids",
    "pages_by_state_and_batch",
    "spent_is_corrected_by_what_is_known",
    "the_latest_upload_counts",
    "a_slow_listener_misses_nothing",
    "a_lease_is_of_one",
    "nothing_is_intended_in_a_store_that_is_gone",
    "a_cancelled_write_has_happened_or_not",
}


@pytest.fixture(scope="module")
def _bouncer(_frail_server: Server) -> Iterator[int]:
    with pgbouncer(_frail_server) as port:
        yield port


@pytest.fixture
def pooled_url(_bouncer: int, frail_url: str) -> str:
    """A database of the test's own, through pgbouncer."""
    return through(_bouncer, frail_url)


# ---------------------------------------------------------------- pgbouncer


class TestContract(JournalContract):
    @pytest.fixture
    def make(self, pooled_url: str) -> Callable[[], Journal]:
        return lambda: PostgresJournal(pooled_url)

    @pytest.fixture
    def lose(self, frail_url: str) -> Callable[[], None]:
        def lose() -> None:
            execute(frail_url, "DROP SCHEMA public CASCADE; CREATE SCHEMA public")

        return lose


for _name in dir(JournalContract):
    if _name.startswith("test_") and _name.removeprefix("test_") not in MAIN_PARTS:
        setattr(TestContract, _name, None)


async def test_options_that_a_pooler_does_not_take(pooled_url: str) -> None:
    with pytest.raises(StorageError, match="a pooler takes none: ALTER ROLE"):
        async with PostgresJournal(f"{pooled_url}?options=-csearch_path%3Dkie"):
            raise AssertionError


async def test_a_quota_is_shared(pooled_url: str) -> None:
    async with (
        PostgresJournal(pooled_url) as one,
        PostgresJournal(pooled_url) as two,
        JournalLimiter(one, limit=4, window=60.0) as first,
        JournalLimiter(two, limit=4, window=60.0) as second,
    ):
        permits = [await limiter.acquire() for limiter in (first, second, first, second)]
        with anyio.move_on_after(0.3):
            await first.acquire()
            raise AssertionError
        permits[0].give_back()
        with anyio.fail_after(20):
            await second.acquire()


async def test_a_worker_finishes_its_jobs(pooled_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_worker, "POLL_INTERVAL", 0.1)
    monkeypatch.setattr(_worker, "CHECK_INTERVAL", 0.1)
    fields: dict[str, Any] = {"model": "V5", "style": "s", "title": "t", "prompt": "p", "continue_at": 1.0}
    jobs = [Job(key=f"{number}", request=kie.ExtendRequest("a1", **fields)) for number in range(5)]
    seen: list[Job] = []
    with serve_in_thread(speed=400.0, credits=1e6, rules=Rules(quota=1000)) as emulator:
        settings = kie.Settings(api_key=emulator.key, base_url=emulator.base_url, quota=1000)
        async with kie.KieSession(settings, journal=pooled_url) as session:
            assert session.journal is not None
            await run_shared_batch(
                session,
                jobs,
                journal=session.journal,
                dsn=pooled_url,
                directory=tmp_path,
                observer=seen.append,
                batch="b",
            )
        assert len(emulator.ledger) == len(jobs)
    assert sum(job.state is State.DELIVERED for job in seen) == len(jobs)


# ---------------------------------------------------------------- notifications


@pytest.mark.parametrize("swallows", [True, False])
async def test_what_a_pooler_does_not_tell_is_read(
    server: Server,
    frail_url: str,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    *,
    swallows: bool,
) -> None:
    monkeypatch.setattr(_postgres, "PROBE_TIMEOUT", 0.1 if swallows else 60.0)
    caplog.set_level(logging.INFO, "kie_async")
    relay = Relay(server.socket_path, swallows=swallows)
    async with relay.open() as port, PostgresJournal(through(port, frail_url)) as journal:
        for _ in range(2):
            async with aclosing(journal.driver.watch()) as signs:
                await anext(signs)  # it comes when it is known whether notifications do
        async with PostgresJournal(frail_url) as other, aclosing(journal.watch_callbacks()) as watcher:
            await expecting(other, "token")
            for number in range(3):
                waiting = asyncio.ensure_future(collect(watcher, [inbound("token", f"{number}")]))
                await asyncio.sleep(0)
                await other.save_callback(inbound("token", f"{number}"))
                await waiting
    assert caplog.text.count("no notifications through its pooler: it is read twice a second") == swallows


# ---------------------------------------------------------------- TLS


@pytest.fixture
def certificate(tmp_path: Path) -> Path:
    """A folder with a certificate for 127.0.0.1: ``server.pem`` with its key, ``ca.pem``, and that of another."""
    authority = trustme.CA()
    authority.issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(tmp_path / "server.pem")
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    trustme.CA().cert_pem.write_to_path(tmp_path / "another.pem")
    return tmp_path


@pytest.fixture(params=["relay", "pgbouncer"])
async def tls_port(request: pytest.FixtureRequest, server: Server, certificate: Path) -> AsyncGenerator[int]:
    """The port of a server that speaks TLS."""
    file = str(certificate / "server.pem")
    if request.param == "relay":
        tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        tls.load_cert_chain(file)
        async with Relay(server.socket_path, tls=tls).open() as port:
            yield port
        return
    with tempfile.TemporaryDirectory() as folder:  # pgbouncer is somebody else, who may not look into that of the test
        Path(folder).chmod(0o755)
        copy = shutil.copy(file, folder)
        Path(copy).chmod(0o644)
        settings = "client_tls_sslmode = require\nclient_tls_key_file = {0}\nclient_tls_cert_file = {0}\n"
        with pgbouncer(server, settings.format(copy)) as port:
            yield port


async def test_a_certificate_is_verified(tls_port: int, frail_url: str, certificate: Path) -> None:
    query = f"?sslmode=verify-full&sslrootcert={certificate}/ca.pem"
    async with PostgresJournal(through(tls_port, frail_url, query)) as journal:
        await journal.add([planned("a")])
        assert await journal.get("a")


async def test_a_certificate_of_another_authority_is_refused(tls_port: int, frail_url: str, certificate: Path) -> None:
    query = f"?sslmode=verify-full&sslrootcert={certificate}/another.pem"
    with pytest.raises(StorageError, match="certificate verify failed; sslrootcert must be") as caught:
        async with PostgresJournal(through(tls_port, frail_url, query)):
            raise AssertionError
    assert "SESAME" not in "".join(traceback.TracebackException.from_exception(caught.value).format())
