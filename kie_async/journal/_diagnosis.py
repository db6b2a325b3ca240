"""Find what is wrong with a database for a journal, or worth knowing, and the statement that mends it. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from urllib.parse import quote

import attrs

from kie_async.journal._schema import VERSION, totals_error, version_error

_MAX_SKEW = 5.0  # seconds between the clocks of two machines

# The search path, and the schemas of it that hold a table. Without a name for it, statements take the first of them.
SEARCHED = """
SELECT current_setting('search_path'), ARRAY(
    SELECT quote_ident(nspname) FROM pg_class JOIN pg_namespace ON pg_namespace.oid = relnamespace
    WHERE relname = '{table}' AND nspname = ANY (current_schemas(false))
    ORDER BY array_position(current_schemas(false), nspname)
)
"""
TABLES = {"kie_schema": "the tables", "procrastinate_jobs": "the tables of the workers"}

# Who is connected, and to which schema. Names are quoted as statements need them.
SCHEMA = """
SELECT quote_ident(current_user) AS role, quote_ident(current_database()) AS database,
    quote_ident(current_schema()) AS schema, current_setting('search_path') AS search_path,
    (SELECT source = 'client' FROM pg_settings WHERE name = 'search_path') AS is_in_address,
    has_schema_privilege(current_schema(), 'CREATE') AS may_create, quote_ident(home) AS home,
    has_schema_privilege(home, 'USAGE') AS may_use, to_regclass('kie_schema') IS NOT NULL AS is_found
FROM (SELECT 1) AS one LEFT JOIN (
    SELECT nspname AS home FROM pg_class JOIN pg_namespace ON pg_namespace.oid = relnamespace
    WHERE relname = 'kie_schema' ORDER BY pg_table_is_visible(pg_class.oid) DESC LIMIT 1
) AS made ON true
"""
SERVER = """
SELECT pg_is_in_recovery() OR current_setting('default_transaction_read_only')::bool AS is_read_only,
    current_setting('fsync') = 'on' AS is_synced, extract(epoch FROM clock_timestamp())::float8 AS clock
"""
# The rights on tables and sequences that are missing, each as the beginning of a GRANT.
MISSING = """
SELECT format('GRANT %s ON ALL %s IN SCHEMA %I', string_agg(DISTINCT privilege, ', '), kinds, nspname)
FROM pg_class JOIN pg_namespace ON pg_namespace.oid = relnamespace JOIN (VALUES
    ('r', 'TABLES', 'SELECT'), ('r', 'TABLES', 'INSERT'), ('r', 'TABLES', 'UPDATE'), ('r', 'TABLES', 'DELETE'),
    ('S', 'SEQUENCES', 'USAGE')
) AS needed (kind, kinds, privilege) ON relkind::text = kind
WHERE relname ~ '^(kie|procrastinate)_' AND pg_table_is_visible(pg_class.oid) AND NOT CASE kind
    WHEN 'S' THEN has_sequence_privilege(pg_class.oid, privilege) ELSE has_table_privilege(pg_class.oid, privilege)
END
GROUP BY kinds, nspname ORDER BY kinds
"""


@attrs.frozen
class Finding:
    """Something that was found about a database.

    Attributes:
        what: what was found.
        remedy: an SQL statement or a command that mends it; empty if there is none.
        hinders: whether the journal cannot work because of it.
    """

    what: str
    remedy: str = ""
    hinders: bool = True


@attrs.frozen(kw_only=True)
class SchemaFacts:
    """Where the tables are, or would be made, for the role that is connected.

    Attributes:
        schema: the first of the search path that exists and may be used.
        is_in_address: whether ``search_path`` is that of the address, which no setting of the role's can change.
        may_create: whether the role may make tables in ``schema``.
        home: the schema of the journal's tables; None if there are none.
        may_use: whether the role may look into ``home``.
        is_found: whether the tables are in the search path.
    """

    role: str
    database: str
    schema: str | None
    search_path: str
    is_in_address: bool
    may_create: bool | None
    home: str | None
    may_use: bool | None
    is_found: bool


@attrs.frozen(kw_only=True)
class ServerFacts:
    """What a PostgreSQL is like for a journal.

    Attributes:
        clock: unix seconds, less those of this machine.
        missing: the beginnings of the GRANTs that are missing.
        version: of the tables, if they can be read.
        ambiguous: what is said of tables that are in several schemas.
        wrong: how many totals of spending are wrong.
        is_silent: whether notifications do not come through.
    """

    is_read_only: bool
    is_synced: bool
    clock: float
    missing: tuple[str, ...] = ()
    version: int | None = None
    ambiguous: Sequence[str] = ()
    wrong: int = 0
    is_silent: bool = False


def ambiguity(what: str, search_path: str, schemas: Sequence[str]) -> str:
    """Say that tables are in several schemas of the search path; "" if they are not.

    A schema with the name of the role comes first by default: made later, it hides the tables in ``public``, and all
    that was paid by them.
    """
    if not schemas[1:]:
        return ""
    options = " or ".join(map(_option, schemas))
    return (
        f"{what} are in {' and in '.join(schemas)}; search_path {search_path} takes {schemas[0]}: end the address with "
        f"{options} ('kie-async jobs list' shows what each holds), or drop those that hold nothing"
    )


def _option(schema: str) -> str:
    return f"?options=-csearch_path%3D{quote(schema)}"


def findings(schema: SchemaFacts, server: ServerFacts) -> Iterator[Finding]:
    """What hinders first; then what is worth knowing."""
    if server.is_read_only:
        yield Finding("it is read-only: a standby, or default_transaction_read_only is on; give the primary's address")
    if not schema.is_found:
        yield _why_not_found(schema)
    yield from map(Finding, server.ambiguous)
    for grant in server.missing:
        yield Finding(f"the role {schema.role} lacks rights", f"{grant} TO {schema.role}")
    if server.version is not None and server.version != VERSION:
        yield Finding(version_error("it", server.version, "postgresql://...").message)
    if server.wrong:
        yield Finding(totals_error("it", server.wrong, "postgresql://...").message)
    if not server.is_synced:
        remedy = "ALTER SYSTEM SET fsync = on; SELECT pg_reload_conf()"
        yield Finding("fsync is off: a crash loses what was paid", remedy, hinders=False)
    if server.is_silent:
        what = "a pooler lets no notifications through: callbacks of other processes are read twice a second"
        yield Finding(what, hinders=False)
    if abs(server.clock) > _MAX_SKEW:
        yield Finding(f"its clock and this machine's are {abs(server.clock):.0f} s apart", hinders=False)


def _why_not_found(facts: SchemaFacts) -> Finding:
    """Why the tables are not found, or cannot be made."""
    create = "kie-async database create --journal postgresql://..."
    setting = f"ALTER ROLE {facts.role} IN DATABASE {facts.database} SET search_path = {facts.home or 'kie'}"
    if facts.home is not None and not facts.may_use:
        return Finding(
            f"the role {facts.role} may not use the schema {facts.home}, where the tables are",
            f"GRANT USAGE ON SCHEMA {facts.home} TO {facts.role}",
        )
    make_schema = f"CREATE SCHEMA {facts.search_path.partition(',')[0]} AUTHORIZATION {facts.role}"
    if facts.home is not None and facts.is_in_address:
        first = "" if facts.schema else f"{make_schema}; then "
        return Finding(
            f"the address says search_path={facts.search_path}; the tables are in {facts.home}: end it with "
            f"{_option(facts.home)} to use them; for others, without their jobs: {first}{create}"
        )
    if facts.home is not None:
        return Finding(f"the tables are in the schema {facts.home}; search_path is {facts.search_path}", setting)
    if facts.schema is None:
        remedy = make_schema if facts.is_in_address else f"CREATE SCHEMA kie AUTHORIZATION {facts.role}; {setting}"
        return Finding(f"search_path is {facts.search_path}, and no schema of it exists", remedy)
    if not facts.may_create:
        grant = f"GRANT CREATE ON SCHEMA {facts.schema} TO {facts.role}"
        return Finding(f"there are no tables, and the role {facts.role} may make none in {facts.schema}", grant)
    return Finding("there are no tables", create)
