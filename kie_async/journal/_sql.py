"""The statements of the journal in PostgreSQL. Each is a transaction of its own, and may be run again when in doubt."""

from __future__ import annotations

# Places are given in turn, so that whoever pages through jobs misses none. A job that this very write has added
# already, before its connection was lost, counts as new again.
ADD = """
WITH turn AS MATERIALIZED (SELECT pg_advisory_xact_lock(hashtext('kie_job')))
INSERT INTO kie_job (key, batch, state, cost, document, written)
SELECT key, batch, state, cost, document, %(written)s
FROM turn, unnest(%(keys)s::text[], %(batches)s::text[], %(states)s::text[], %(costs)s::float8[], %(documents)s::text[])
    WITH ORDINALITY AS new (key, batch, state, cost, document, nth)
ORDER BY nth
ON CONFLICT (key) DO UPDATE SET written = excluded.written WHERE kie_job.written = excluded.written
RETURNING 1
"""

GET = """
SELECT document, written, extract(epoch FROM clock_timestamp())::float8 FROM kie_job WHERE key = %(key)s
"""

FIND = """
SELECT document FROM kie_attempt JOIN kie_job USING (key)
WHERE token = %(token)s OR task_id = %(task_id)s
ORDER BY token = %(token)s DESC LIMIT 1
"""

# State by state, so that the index leads to a few open jobs past a million finished ones.
PAGE = """
SELECT place, document
FROM unnest(%(states)s::text[]) AS wanted, LATERAL (
    SELECT place, document FROM kie_job
    WHERE state = wanted AND place > %(after)s AND {of_batch} ORDER BY place LIMIT %(limit)s
) AS found
ORDER BY place LIMIT %(limit)s
"""

COUNTS = "SELECT state, count(*) FROM kie_job WHERE {of_batch} GROUP BY state"

SPENT = "SELECT coalesce(sum(cost), 0) FROM kie_job WHERE batch = %(batch)s"

OF_BATCH = {True: "batch = %(batch)s", False: "true"}

_WRITE = """
WITH job AS (
    UPDATE kie_job SET state = %(state)s, cost = %(cost)s, document = %(document)s, written = %(written)s
    WHERE key = %(key)s AND written = %(seen)s
    RETURNING key
), more AS ({more})
SELECT key FROM job
"""

MOVE = _WRITE.format(
    more="""
    UPDATE kie_attempt SET task_id = %(task_id)s FROM job WHERE token = %(token)s AND %(task_id)s::text IS NOT NULL
    """
)

INTEND = _WRITE.format(
    more="""
    INSERT INTO kie_attempt (token, key, number, owner, intended_at)
    SELECT %(token)s, key, %(number)s, %(owner)s, %(intended_at)s FROM job
    """
)

UPLOAD = _WRITE.format(
    more="""
    INSERT INTO kie_upload (sha256, uploaded_at, source)
    SELECT %(sha256)s, %(uploaded_at)s, %(source)s FROM job WHERE %(uploaded_at)s::float8 IS NOT NULL
    ON CONFLICT (sha256) DO UPDATE SET uploaded_at = excluded.uploaded_at, source = excluded.source
    WHERE kie_upload.uploaded_at <= excluded.uploaded_at
    """
)

UPLOADED = "SELECT source FROM kie_upload WHERE sha256 = %(sha256)s AND uploaded_at >= %(since)s"

ATTEMPTS = """
SELECT number, token, task_id, owner, intended_at FROM kie_attempt WHERE key = %(key)s ORDER BY number
"""

# Row and notification are one transaction: whoever is told finds the row.
HEAR = """
WITH expected AS (
    SELECT 1 FROM kie_attempt AS attempt JOIN kie_job USING (key)
    WHERE token = %(token)s AND (task_id IS NULL OR (task_id = %(task_id)s AND state = ANY(%(open)s::text[])))
), new AS (
    INSERT INTO kie_inbox (token, task_id, stage, at)
    SELECT %(token)s::text, %(task_id)s::text, %(stage)s::text, %(at)s::float8 FROM expected
    ON CONFLICT DO NOTHING RETURNING 1
)
SELECT (SELECT count(pg_notify('kie_inbox', '')) FROM new) FROM expected
"""

PRUNE = """
WITH spent AS (
    SELECT inbox.token, inbox.task_id, inbox.stage
    FROM kie_inbox AS inbox
    LEFT JOIN kie_attempt AS attempt ON attempt.token = inbox.token
    LEFT JOIN kie_job USING (key)
    WHERE inbox.at < %(before)s AND (
        attempt.token IS NULL
        OR (state <> ALL(%(open)s::text[]) AND (document::json -> 'moments' ->> state)::float8 < %(before)s)
    )
    LIMIT %(limit)s
)
DELETE FROM kie_inbox AS inbox USING spent
WHERE (inbox.token, inbox.task_id, inbox.stage) = (spent.token, spent.task_id, spent.stage)
RETURNING 1
"""

HEARD = """
SELECT token, task_id, stage, at FROM kie_inbox WHERE token = %(token)s OR task_id = %(task_id)s ORDER BY at
"""

HORIZON = "SELECT pg_snapshot_xmin(pg_current_snapshot())::text"

# Whatever was not yet seen: transactions may end in another order than they began, so all from the oldest one that
# was still open at the last look.
MISSED = """
SELECT horizon::text, transaction >= horizon, token, task_id, stage, at
FROM pg_snapshot_xmin(pg_current_snapshot()) AS horizon LEFT JOIN kie_inbox ON transaction >= %(horizon)s::xid8
ORDER BY transaction, at
"""

LEASE = """
INSERT INTO kie_lease AS held VALUES (%(name)s, %(owner)s, clock_timestamp() + make_interval(secs => %(seconds)s))
ON CONFLICT (name) DO UPDATE SET owner = excluded.owner, expires_at = excluded.expires_at
WHERE held.owner IN (excluded.owner, %(gone)s) OR held.expires_at <= clock_timestamp()
RETURNING 1
"""

HOLDER = "SELECT owner FROM kie_lease WHERE name = %(name)s AND expires_at > clock_timestamp()"

RELEASE = "DELETE FROM kie_lease WHERE name = %(name)s AND owner = %(owner)s"
