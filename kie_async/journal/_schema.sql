-- What kie_async keeps in PostgreSQL 13 or later. Everything lies in the first schema of the search path.

CREATE TABLE kie_schema (version integer NOT NULL);
INSERT INTO kie_schema VALUES (1);

-- "document" is the job, and the truth; the columns beside it are for finding and counting.
-- "written" names the last write: a write that was cut off finds out by it whether it happened.
CREATE TABLE kie_job (
    key      text PRIMARY KEY,
    place    bigint GENERATED ALWAYS AS IDENTITY,
    batch    text NOT NULL,
    state    text NOT NULL,
    cost     double precision NOT NULL,
    document text NOT NULL,
    written  uuid NOT NULL
);
CREATE INDEX kie_job_state ON kie_job (state, place);
CREATE INDEX kie_job_batch ON kie_job (batch, state, place) INCLUDE (cost);

CREATE TABLE kie_attempt (
    token       text PRIMARY KEY,
    key         text NOT NULL REFERENCES kie_job,
    number      integer NOT NULL,
    task_id     text UNIQUE,
    owner       text NOT NULL,
    intended_at double precision NOT NULL,
    UNIQUE (key, number)
);

-- "transaction" tells a listener what it may have missed: see the journal's listen().
CREATE TABLE kie_inbox (
    token       text NOT NULL,
    task_id     text NOT NULL,
    stage       text NOT NULL,
    at          double precision NOT NULL,
    transaction xid8 NOT NULL DEFAULT pg_current_xact_id(),
    PRIMARY KEY (token, task_id, stage)
);
CREATE INDEX kie_inbox_task ON kie_inbox (task_id);
CREATE INDEX kie_inbox_transaction ON kie_inbox (transaction);

CREATE TABLE kie_upload (
    sha256      text PRIMARY KEY,
    uploaded_at double precision NOT NULL,
    source      text NOT NULL
);

CREATE TABLE kie_lease (
    name       text PRIMARY KEY,
    owner      text NOT NULL,
    expires_at timestamptz NOT NULL
);

-- The quota: as many slots as an account may submit in one window. A slot is free once its moment has passed; while
-- it is held that moment lies one window after the end of the holder's lease, so a dead holder needs no clearing up.
CREATE TABLE kie_quota (
    account    text PRIMARY KEY,
    not_before timestamptz NOT NULL DEFAULT 'epoch'
);

CREATE TABLE kie_slot (
    account text NOT NULL REFERENCES kie_quota,
    number  integer NOT NULL,
    free_at timestamptz NOT NULL DEFAULT 'epoch',
    permit  uuid,
    PRIMARY KEY (account, number)
);
CREATE INDEX kie_slot_permit ON kie_slot (permit);

-- Processes that want slots, in turn. Whoever was served goes to the end; whoever is silent loses its turn.
CREATE TABLE kie_queue (
    account     text NOT NULL REFERENCES kie_quota,
    process     text NOT NULL,
    wanted      integer NOT NULL,
    since       timestamptz NOT NULL,
    alive_until timestamptz NOT NULL,
    PRIMARY KEY (account, process)
);

-- Takes slots for a process, or puts it in the queue. Each process gets its share, and what those before it in the
-- queue want, up to their shares, is left for them.
CREATE FUNCTION kie_take(
    whose text, who text, wants integer, slots integer, hold interval, life interval,
    OUT permits uuid[], OUT wait double precision
) LANGUAGE plpgsql AS $$
DECLARE
    moment timestamptz;
    gate   timestamptz;
    share  bigint;  -- of each process that is in the queue
    before bigint;  -- processes before this one
    theirs bigint;  -- slots that are left for them
    free   bigint;
BEGIN
    SELECT not_before INTO gate FROM kie_quota WHERE account = whose FOR UPDATE;  -- one process at a time
    moment := clock_timestamp();

    DELETE FROM kie_queue WHERE account = whose AND alive_until <= moment;
    INSERT INTO kie_queue VALUES (whose, who, wants, moment, moment + life)
    ON CONFLICT (account, process) DO UPDATE SET wanted = excluded.wanted, alive_until = excluded.alive_until;

    SELECT ceil(slots::numeric / count(*)) INTO share FROM kie_queue WHERE account = whose;
    SELECT count(*), coalesce(sum(least(other.wanted, share)), 0) INTO before, theirs
    FROM kie_queue AS mine JOIN kie_queue AS other USING (account)
    WHERE mine.account = whose AND mine.process = who AND (other.since, other.process) < (mine.since, mine.process);
    SELECT count(*) INTO free FROM kie_slot WHERE account = whose AND number < slots AND free_at <= moment;

    WITH taken AS (
        UPDATE kie_slot SET free_at = moment + hold, permit = gen_random_uuid()
        WHERE account = whose AND free_at <= moment AND number IN (
            SELECT number FROM kie_slot
            WHERE account = whose AND number < slots AND free_at <= moment AND gate <= moment
            ORDER BY free_at LIMIT greatest(least(wants, share, free - theirs), 0)
        )
        RETURNING permit
    )
    SELECT coalesce(array_agg(permit), '{}') INTO permits FROM taken;

    IF permits <> '{}' THEN
        UPDATE kie_queue SET wanted = wants - cardinality(permits), since = moment
        WHERE account = whose AND process = who;
        IF free > cardinality(permits) THEN  -- it is the next one's turn
            PERFORM pg_notify('kie_quota', whose);
        END IF;
    END IF;

    SELECT extract(epoch FROM greatest(gate, free_at) - moment) INTO wait
    FROM kie_slot WHERE account = whose AND number < slots ORDER BY free_at OFFSET before LIMIT 1;
END $$;
