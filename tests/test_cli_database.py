"""``database``: each thing that hinders is named with the statement that mends it, and then it works."""

from __future__ import annotations

import asyncio
import shutil
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import anyio
import pytest
from anyio.from_thread import start_blocking_portal
from command_line import Terminal
from conftest import SAMPLES
from journal_contract import bring, inbound
from poolers import Relay, through
from postgres import Server, execute, new_database
from procrastinate.schema import SchemaManager

from kie_async.batch import create_worker_tables, worker_migrations
from kie_async.journal import VERSION, State, open_journal
from kie_async.journal._diagnosis import SchemaFacts, ServerFacts, findings

pytestmark = [pytest.mark.anyio, pytest.mark.real_time]


@pytest.fixture
def url(postgres_url: str) -> str:
    """A database to which a role of its own may connect, and no more."""
    return new_database(postgres_url)


@pytest.fixture
def role(url: str) -> Iterator[str]:
    name = f"role-{uuid.uuid4().hex[:8]}"  # it must be quoted
    execute(url, f'CREATE ROLE "{name}" LOGIN')
    yield name
    execute(url, f'DROP OWNED BY "{name}" CASCADE; DROP ROLE "{name}"')


def as_role(url: str, role: str, option: str = "") -> str:
    """The address of a database for a role, with an option of the connection."""
    parts = urlsplit(url)
    query = f"{parts.query}&options=-c{option.replace('=', '%3D')}" if option else parts.query
    return urlunsplit(("postgresql", f"{role}@{parts.netloc.rpartition('@')[2]}", parts.path, query, ""))


def checked(terminal: Terminal, journal: str, *, hinders: bool = True) -> list[dict[str, Any]]:
    """What ``check`` finds that hinders; or else what is merely worth knowing."""
    answer = terminal("database", "check", "--journal", journal, "--json")
    found = [each for each in answer.value["findings"] if each["hinders"]]
    assert answer.code == (8 if found else 0), answer
    return found if hinders else [each for each in answer.value["findings"] if not each["hinders"]]


def mended(terminal: Terminal, url: str, journal: str) -> list[str]:
    """Do what ``check`` says, as an administrator, until nothing hinders any more; give the statements."""
    done: list[str] = []
    while (found := checked(terminal, journal)) and not found[0]["remedy"].startswith("kie-async"):
        for each in found:
            assert each["remedy"] not in done
            execute(url, each["remedy"])
            done.append(each["remedy"])
    return done


async def used(journal: str) -> None:
    """Use every kind of table."""
    async with open_journal(journal) as opened:
        await bring(opened, "a", State.DELIVERED)
        await opened.lease("a lease", 1.0)
        await opened.save_callback(inbound("token-a"))


def test_a_missing_right_is_named_with_the_statement_that_gives_it(terminal: Terminal, url: str, role: str) -> None:
    journal = as_role(url, role)
    refused = terminal("database", "create", "--journal", journal)
    assert refused.code == 8
    assert "permission denied for schema public" in refused.err
    assert "kie-async database check" in refused.err
    assert mended(terminal, url, journal) == [f'GRANT CREATE ON SCHEMA public TO "{role}"']
    assert "kie-async database create" in checked(terminal, journal)[0]["remedy"]
    assert terminal("database", "create", "--journal", journal).code == 0
    assert not checked(terminal, journal)
    asyncio.run(used(journal))


def test_a_role_that_may_not_connect(terminal: Terminal, url: str, role: str) -> None:
    database = urlsplit(url).path[1:]
    execute(url, f"REVOKE CONNECT ON DATABASE {database} FROM PUBLIC")
    journal = as_role(url, role).replace("@", ":SESAME@")
    remedy = f'GRANT CONNECT ON DATABASE "{database}" TO "{role}"'
    for command in ("check", "create"):
        refused = terminal("database", command, "--journal", journal)
        assert refused.code == 8
        assert f'the role "{role}" may not connect: {remedy}' in refused.err
        assert "SESAME" not in refused.out + refused.err
    execute(url, remedy)
    assert mended(terminal, url, journal) == [f'GRANT CREATE ON SCHEMA public TO "{role}"']


def test_a_role_that_may_do_nothing_is_given_what_it_needs(terminal: Terminal, url: str, role: str) -> None:
    assert terminal("database", "create", "--journal", url).code == 0
    execute(url, "REVOKE ALL ON SCHEMA public FROM PUBLIC")
    journal = as_role(url, role)
    assert mended(terminal, url, journal) == [
        f'GRANT USAGE ON SCHEMA public TO "{role}"',
        f'GRANT USAGE ON ALL SEQUENCES IN SCHEMA public TO "{role}"',
        f'GRANT DELETE, INSERT, SELECT, UPDATE ON ALL TABLES IN SCHEMA public TO "{role}"',
    ]
    asyncio.run(used(journal))


def test_a_schema_of_its_own(terminal: Terminal, url: str, role: str) -> None:
    database = urlsplit(url).path[1:]
    execute(url, f'ALTER ROLE "{role}" SET search_path = nowhere')
    refused = terminal("database", "create", "--journal", as_role(url, role))
    assert "no schema has been selected to create in; what mends it is said by: kie-async database check" in refused.err
    setting = f'ALTER ROLE "{role}" IN DATABASE {database} SET search_path = kie'
    assert mended(terminal, url, as_role(url, role)) == [f'CREATE SCHEMA kie AUTHORIZATION "{role}"; {setting}']
    assert terminal("database", "create", "--journal", as_role(url, role)).code == 0
    assert not checked(terminal, as_role(url, role, "search_path=kie"))
    execute(url, f'ALTER ROLE "{role}" IN DATABASE {database} RESET ALL')
    assert mended(terminal, url, as_role(url, role)) == [setting]
    asyncio.run(used(as_role(url, role)))
    assert execute(url, "SELECT count(*) FROM kie.kie_job") == [(1,)]
    assert execute(url, "SELECT to_regclass('public.kie_job')") == [(None,)]


def test_a_schema_that_the_address_names(terminal: Terminal, url: str, role: str) -> None:
    assert terminal("database", "create", "--journal", url).code == 0
    make_schema = f'CREATE SCHEMA songs AUTHORIZATION "{role}"'
    journal = as_role(url, role, "search_path=songs")
    for first in (f"{make_schema}; then ", ""):
        [found] = checked(terminal, journal)
        assert found["what"] == (
            "the address says search_path=songs; the tables are in public: end it with ?options=-csearch_path%3Dpublic "
            f"to use them; for others, without their jobs: {first}kie-async database create --journal postgresql://..."
        )
        if first:
            execute(url, make_schema)
    assert terminal("database", "create", "--journal", journal).code == 0
    assert not checked(terminal, journal)
    another = as_role(url, role, "search_path=others")
    execute(url, "DROP SCHEMA public CASCADE; DROP SCHEMA songs CASCADE")
    assert mended(terminal, url, another) == [f'CREATE SCHEMA others AUTHORIZATION "{role}"']
    assert terminal("database", "create", "--journal", another).code == 0


def test_tables_in_two_schemas_are_refused(terminal: Terminal, url: str, role: str) -> None:
    both = f'search_path="{role}",public'  # as by default
    journal = as_role(url, role, both)
    assert terminal("database", "create", "--journal", url).code == 0
    execute(url, f'GRANT ALL ON ALL TABLES IN SCHEMA public TO "{role}"')
    execute(url, f'GRANT ALL ON ALL SEQUENCES IN SCHEMA public TO "{role}"')
    execute(url, f'CREATE SCHEMA AUTHORIZATION "{role}"')
    assert not checked(terminal, journal)
    assert terminal("database", "create", "--journal", as_role(url, role, f'search_path="{role}"')).code == 0
    for command in ("jobs", "list"), ("database", "create"), ("database", "upgrade"):
        refused = terminal(*command, "--journal", journal)
        assert refused.code == 8
        assert f'the tables are in "{role}" and in public; search_path "{role}",public takes "{role}"' in refused.err
        assert f"?options=-csearch_path%3D%22{role}%22 or ?options=-csearch_path%3Dpublic" in refused.err
    assert [each["what"].partition(" are in ")[0] for each in checked(terminal, journal)] == [
        "the tables",
        "the tables of the workers",
    ]
    for schema in ("public", f"%22{role}%22"):
        assert not checked(terminal, as_role(url, role, f"search_path={schema}"))


def test_what_is_merely_worth_knowing_hinders_nothing(
    terminal: Terminal, frail_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def make() -> None:
        async with open_journal(frail_url):
            pass

    asyncio.run(make())
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() - 100)
    found = "\n".join(each["what"] for each in checked(terminal, frail_url, hinders=False))
    assert "fsync is off" in found
    assert "the first worker makes them" in found
    assert "100 s apart" in found
    answer = terminal("database", "check", "--journal", frail_url)
    assert "ALTER SYSTEM SET fsync = on; SELECT pg_reload_conf()" in answer.out
    assert f"is ready, of version {VERSION}" in answer.err


def test_a_database_that_is_read_only_hinders(terminal: Terminal, database_url: str) -> None:
    assert terminal("database", "create", "--journal", database_url).code == 0
    [found] = checked(terminal, f"{database_url}&options=-cdefault_transaction_read_only%3Don")
    assert "read-only" in found["what"]


def test_a_pooler_that_sends_no_notifications_is_named(terminal: Terminal, server: Server, frail_url: str) -> None:
    assert terminal("database", "create", "--journal", frail_url).code == 0
    relay = Relay(server.socket_path, swallows=True)
    with start_blocking_portal() as portal, portal.wrap_async_context_manager(relay.open()) as port:
        found = checked(terminal, through(port, frail_url), hinders=False)
    assert "read twice a second" in found[-1]["what"]


def test_nothing_is_said_of_a_database_that_is_as_it_must_be() -> None:
    schema = SchemaFacts(
        role="kie", database="kie", schema="public", search_path="public", may_create=False, home="public",
        may_use=True, is_in_address=False, is_found=True,
    )  # fmt: skip
    assert [*findings(schema, ServerFacts(is_read_only=False, is_synced=True, clock=0.1, version=VERSION))] == []


def test_a_database_that_cannot_be_reached(terminal: Terminal) -> None:
    answer = terminal("database", "check", "--journal", "postgresql://kie:SESAME@127.0.0.1:1/kie")
    assert answer.code == 8
    assert "the database kie cannot be used" in answer.err
    assert "SESAME" not in answer.out + answer.err


async def test_two_that_make_the_tables_of_workers_at_once(database_url: str) -> None:
    async with anyio.create_task_group() as group:
        for _ in range(4):
            group.start_soon(create_worker_tables, database_url)
    assert await worker_migrations(database_url) == []


# ---------------------------------------------------------------- versions


@pytest.fixture(params=["sqlite", "postgresql"])
def old(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A journal of version 2."""
    if request.param == "sqlite":
        return str(shutil.copy(SAMPLES / "journal_2.sqlite", str(tmp_path / "an old journal.sqlite")))
    url = str(request.getfixturevalue("database_url"))
    execute(url, (SAMPLES / "journal_2.postgresql.sql").read_text("utf-8"))
    return url


def test_an_older_version_is_upgraded(terminal: Terminal, old: str) -> None:
    listed = terminal("jobs", "list", "--journal", old)
    assert listed.code == 8
    assert "kie-async database upgrade --journal" in listed.err
    before = terminal("database", "check", "--journal", old)
    assert before.code == 8
    assert "version 2" in before.out + before.err
    assert "it was of version 2" in terminal("database", "upgrade", "--journal", old).err
    assert "it was" not in terminal("database", "upgrade", "--journal", old).err
    assert terminal("database", "check", "--journal", old).code == 0
    assert terminal("jobs", "list", "--journal", old).code == 0


def engine_of(url: str) -> list[tuple[Any, ...]]:
    """The functions of the engine's tables, and which migration they have had."""
    named = "SELECT proname, pg_get_function_identity_arguments(oid) FROM pg_proc WHERE proname ~ '^procrastinate_'"
    return [
        *execute(url, f"{named} ORDER BY 1, 2"),
        *execute(url, "SELECT obj_description('procrastinate_jobs'::regclass, 'pg_class')"),
    ]


def test_the_tables_of_an_older_engine_are_upgraded(terminal: Terminal, url: str, database_url: str) -> None:
    for database in (url, database_url):
        asyncio.run(used(database))
    scripts = sorted(Path(SchemaManager.get_migrations_path()).glob("*.sql"))
    old = [script for script in scripts if script.stem < "03.04"]
    missing = [script.stem for script in scripts[len(old) :]]
    for script in old:
        execute(url, script.read_text("utf-8"))
    execute(url, f"COMMENT ON TABLE procrastinate_jobs IS '{old[-1].stem}'")
    refused = terminal("database", "create", "--journal", url)
    assert refused.code == 8
    assert "kie-async database upgrade" in refused.err
    lacking = [each["what"] for each in checked(terminal, url)]
    assert lacking == [f"the workers' tables lack the migration {name}" for name in missing] != []
    upgraded = terminal("database", "upgrade", "--journal", url)
    assert upgraded.code == 0
    assert all(f"{name} was run" in upgraded.err for name in missing)
    assert not checked(terminal, url)
    assert "was run" not in terminal("database", "upgrade", "--journal", url).err
    assert terminal("database", "create", "--journal", database_url).code == 0
    assert engine_of(url) == engine_of(database_url)


def test_tables_that_an_earlier_version_made_for_workers_are_the_newest(terminal: Terminal, database_url: str) -> None:
    assert terminal("database", "create", "--journal", database_url).code == 0
    execute(database_url, "COMMENT ON TABLE procrastinate_jobs IS NULL")
    assert not checked(terminal, database_url)
    assert terminal("database", "create", "--journal", database_url).code == 0


def test_tables_of_workers_that_cannot_be_made(terminal: Terminal, database_url: str) -> None:
    execute(database_url, "CREATE TYPE procrastinate_job_status AS ENUM ('x')")
    answer = terminal("database", "create", "--journal", database_url)
    assert answer.code == 8
    assert "already exists" in answer.err


def test_what_does_not_exist_is_not_made(terminal: Terminal, tmp_path: Path) -> None:
    path = tmp_path / "kie.sqlite"
    for command in ("check", "upgrade"):
        assert terminal("database", command, "--journal", str(path)).code == 2
    assert not path.exists()
    assert terminal("database", "create", "--journal", str(path)).code == 0
    assert terminal("database", "check", "--journal", str(path)).code == 0


def test_a_database_without_tables_is_not_upgraded(terminal: Terminal, database_url: str) -> None:
    answer = terminal("database", "upgrade", "--journal", database_url)
    assert answer.code == 8
    assert "kie-async database create" in answer.err
