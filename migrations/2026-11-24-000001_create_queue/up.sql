-- The queue. Jobs that aren't finished live in one narrow table, so that claiming never walks over history;
-- finished ones move to tables that are partitioned by the day of the job's id and expire by dropping a day.
-- Runs with search_path = slowlane.

-- The first id of a UTC day: a UUIDv7 starts with 48 bits of milliseconds since 1970.
CREATE FUNCTION first_id_of(day date) RETURNS uuid LANGUAGE sql IMMUTABLE AS $$
    SELECT rpad(lpad(to_hex((extract(epoch FROM day::timestamp) * 1000)::bigint), 12, '0'), 32, '0')::uuid
$$;

-- The day of an id decides where its history is kept: ids made by a clock that is far off are refused. Called once for
-- all rows of a statement: as a constraint of the table it would be planned anew for each statement, which takes longer
-- than an insert.
CREATE FUNCTION require_near_clock(lowest uuid, highest uuid) RETURNS boolean LANGUAGE plpgsql STABLE AS $$
DECLARE today date := now() AT TIME ZONE 'UTC';
BEGIN
    IF lowest < slowlane.first_id_of(today - 1) OR highest >= slowlane.first_id_of(today + 2) THEN
        RAISE 'an id is more than a day off the clock' USING ERRCODE = 'check_violation', CONSTRAINT = 'jobs_id_near_clock';
    END IF;
    RETURN true;
END $$;

CREATE TABLE jobs (
    id                  uuid PRIMARY KEY,
    kind                text NOT NULL,
    queue               text NOT NULL,
    target              text NOT NULL,
    priority            smallint NOT NULL,
    state               text NOT NULL,
    args                json NOT NULL,
    labels              jsonb NOT NULL,
    created_at          timestamptz NOT NULL,
    run_at              timestamptz NOT NULL,
    -- The transaction that made the row claimable last: a sweep finds rows that appeared behind a fetcher's position.
    queued_xid          xid8,
    timeout_ms          bigint NOT NULL,
    max_attempts        integer NOT NULL,
    attempt             integer NOT NULL DEFAULT 0,
    interruptions       integer NOT NULL DEFAULT 0,
    -- Of them, in a row: workers that died, and interruptions of every kind. Both begin anew when the work got further,
    -- or an attempt ended by itself.
    lost_in_a_row        integer NOT NULL DEFAULT 0,
    interrupted_in_a_row integer NOT NULL DEFAULT 0,
    -- Grows with every claim and never repeats for a job: the fence of every write that a worker makes.
    lease               bigint NOT NULL DEFAULT 0,
    version             bigint NOT NULL DEFAULT 1,
    worker_id           uuid,
    started_at          timestamptz,
    deadline_at         timestamptz,
    backend_pid         integer,
    backend_start       timestamptz,
    cancel_requested_at timestamptz,
    -- It is to be paused as soon as it can be: NULL again when it is.
    pause_requested_at  timestamptz,
    result_ttl_ms       bigint NOT NULL,
    error               json,
    retry_of            uuid,
    -- The upload that it reads: kept until the job has left this table.
    upload              uuid,
    -- The version of the saved statement that the latest attempt ran; NULL for other kinds.
    statement_version   text,
    -- What it asks of its sessions on the target; NULL is what the target says.
    time_zone           text,
    lock_timeout_ms     bigint,
    -- For how long its last attempt put it off; NULL where that isn't why it waits. With it each process can tell after a
    -- step of the clock whether it waits too long, however often that is asked.
    put_off_ms          bigint,
    -- One for the whole state machine: the server reads each constraint's tree again for every statement that writes
    -- here, and each costs more than a row.
    CONSTRAINT jobs_state CHECK (CASE state
        WHEN 'queued' THEN queued_xid IS NOT NULL AND worker_id IS NULL
        WHEN 'running' THEN worker_id IS NOT NULL AND started_at IS NOT NULL AND deadline_at IS NOT NULL AND lease > 0
        ELSE state IN ('scheduled', 'paused') AND worker_id IS NULL END)
) WITH (
    fillfactor = 70,
    autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 1000,
    autovacuum_vacuum_insert_scale_factor = 0.2, autovacuum_analyze_scale_factor = 0,
    autovacuum_analyze_threshold = 20000, autovacuum_vacuum_cost_delay = 0
);

-- The claim: one range scan per queue and priority, in the order of the claim itself.
CREATE INDEX jobs_claim ON jobs (queue, priority, run_at, id) WHERE state = 'queued';
-- The sweep for what appeared behind a position.
CREATE INDEX jobs_queued_xid ON jobs (queued_xid) WHERE state = 'queued';
-- The promoter sleeps until the first of these is due.
CREATE INDEX jobs_scheduled ON jobs (run_at) WHERE state = 'scheduled';
-- A job has one unfinished retry at a time.
CREATE UNIQUE INDEX jobs_retry_of ON jobs (retry_of) WHERE retry_of IS NOT NULL;
-- Who uses an upload.
CREATE INDEX jobs_upload ON jobs (upload) WHERE upload IS NOT NULL;
-- What a worker holds: cancel requests, rescue.
CREATE INDEX jobs_running ON jobs (worker_id) WHERE state = 'running';

-- Puts a job into the queue within its caller's transaction: there when that commits, gone when it is rolled back. Runs
-- with the rights of the schema's owner, so that a role needs none but to call it; hence the pinned search_path. Refuses
-- what POST /v1/jobs refuses, as far as a database can know it: which kinds, queues and targets there are is known to
-- processes alone. The numbers are those of src/queue/model/limits.rs; a test compares them.
CREATE FUNCTION enqueue(
    kind          text,
    args          json        DEFAULT '{}',
    queue         text        DEFAULT 'default',
    target        text        DEFAULT 'default',
    priority      integer     DEFAULT 5,
    run_at        timestamptz DEFAULT NULL,
    timeout_ms    bigint      DEFAULT 3600000,
    max_attempts  integer     DEFAULT 3,
    labels        jsonb       DEFAULT '{}',
    result_ttl_ms bigint      DEFAULT 86400000,
    -- The upload that the arguments name, where they name one: kept until the job has ended. An import's is known.
    upload        uuid        DEFAULT NULL,
    notify        boolean     DEFAULT true,
    -- What it asks of its sessions on the target; NULL is what the target says.
    time_zone     text        DEFAULT NULL,
    lock_timeout_ms bigint    DEFAULT NULL
) RETURNS uuid LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = slowlane, pg_temp AS $$
DECLARE
    -- Not now(): the transaction may have begun long ago.
    clock    CONSTANT timestamptz := clock_timestamp();
    micros   CONSTANT bigint := extract(epoch FROM clock) * 1000000;
    -- The part of a millisecond in 12 bits, so that ids grow within one too (RFC 9562, 6.2, method 3).
    fraction CONSTANT integer := micros % 1000 * 4096 / 1000;
    noise    CONSTANT bytea := uuid_send(gen_random_uuid());
    later    CONSTANT boolean := coalesce(run_at > clock, false);
    id       uuid;
    wrong    text;
BEGIN
    wrong := CASE
        WHEN (char_length(kind) BETWEEN 1 AND 128) IS NOT TRUE THEN 'kind: expected a name of 1 to 128 characters'
        WHEN (char_length(queue) BETWEEN 1 AND 128) IS NOT TRUE THEN 'queue: expected a name of 1 to 128 characters'
        WHEN (char_length(target) BETWEEN 1 AND 128) IS NOT TRUE THEN 'target: expected a name of 1 to 128 characters'
        WHEN json_typeof(args) IS DISTINCT FROM 'object' THEN 'args: expected an object'
        WHEN octet_length(args::text) > 1048576 THEN 'args: expected at most 1048576 bytes'
        -- No text of Postgres can hold it. Behind an even number of backslashes it is six plain characters.
        WHEN args::text ~ '(^|[^\\])(\\\\)*\\u0000' THEN 'args: expected no \u0000'
        -- Looked at closely only when there are brackets enough: readers of a list of jobs must not stumble over one.
        WHEN octet_length(args::text) - octet_length(translate(args::text, '{[', '')) > 63
            AND jsonb_path_exists(args::jsonb, 'strict $.**{63 to last} ? (@.type() == "object" || @.type() == "array")')
            THEN 'args: expected at most 63 levels'
        WHEN (priority BETWEEN 0 AND 9) IS NOT TRUE THEN 'priority: expected an integer from 0 to 9'
        WHEN NOT (run_at >= '0001-01-01 00:00:00+00' AND run_at < '10000-01-01 00:00:00+00')
            THEN 'run_at: expected a time of the years 1 to 9999'
        WHEN (timeout_ms BETWEEN 1 AND 86400000) IS NOT TRUE THEN 'timeout_ms: expected an integer from 1 to 86400000'
        WHEN (max_attempts BETWEEN 1 AND 25) IS NOT TRUE THEN 'max_attempts: expected an integer from 1 to 25'
        WHEN (result_ttl_ms BETWEEN 1 AND 2592000000) IS NOT TRUE
            THEN 'result_ttl_ms: expected an integer from 1 to 2592000000'
        -- As src/db/time_zone.rs has it: only names, for a server takes `UTC+2` for two hours west of Greenwich.
        WHEN char_length(time_zone) > 64 OR time_zone ~* '^((posix|right)/|(localtime|posixrules|factory)$)'
            OR time_zone !~*
            '^([a-z][a-z_]*(-[a-z_]+)*(/[a-z][a-z_]*(-[a-z_]+)*)*|(etc/)?gmt[+-]?0|etc/gmt(\+([1-9]|1[0-2])|-([1-9]|1[0-4]))|(est5e|cst6c|mst7m|pst8p)dt)$'
            THEN 'time_zone: expected the name of a time zone, such as Europe/Berlin or UTC'
        WHEN NOT (lock_timeout_ms BETWEEN 1 AND 3600000)
            THEN 'lock_timeout_ms: expected an integer from 1 to 3600000'
        WHEN jsonb_typeof(labels) IS DISTINCT FROM 'object' THEN 'labels: expected an object whose values are strings'
    END;
    IF wrong IS NULL AND labels <> '{}' THEN
        SELECT CASE
            WHEN count(*) > 32 THEN 'labels: expected at most 32 labels'
            WHEN bool_or(jsonb_typeof(l.value) <> 'string') THEN 'labels: expected an object whose values are strings'
            WHEN bool_or(char_length(l.name) NOT BETWEEN 1 AND 128 OR char_length(l.value #>> '{}') > 128)
                THEN 'labels: expected names of 1 to 128 characters and values of at most as many'
            END INTO wrong FROM jsonb_each(labels) AS l(name, value);
    END IF;
    IF wrong IS NULL AND kind = 'import' THEN
        IF upload IS NULL AND args->>'upload' ~ '^[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}$' THEN
            upload := (args->>'upload')::uuid;
        END IF;
        IF upload IS NULL OR upload::text IS DISTINCT FROM lower(args->>'upload') THEN
            wrong := 'upload: expected the id that args names as its upload';
        END IF;
    END IF;
    IF wrong IS NULL AND upload IS NOT NULL THEN
        -- Locked until this transaction ends, so that nobody deletes it in between.
        PERFORM FROM uploads u WHERE u.id = upload AND u.state = 'ready' FOR SHARE;
        IF NOT FOUND THEN
            wrong := 'upload: expected the id of an upload that is ready';
        END IF;
    END IF;
    IF wrong IS NOT NULL THEN
        RAISE EXCEPTION 'slowlane.enqueue: %', wrong USING ERRCODE = 'invalid_parameter_value';
    END IF;
    -- A UUIDv7: 48 bits of milliseconds, the version, the fraction, the variant, 62 random bits.
    id := encode(substring(int8send(micros / 1000) FROM 3)
        || set_byte(set_byte(substring(noise FROM 7), 0, 112 | (fraction >> 8)), 1, fraction & 255), 'hex')::uuid;
    INSERT INTO jobs (id, kind, queue, target, priority, state, args, labels, created_at, run_at, queued_xid,
                      timeout_ms, max_attempts, result_ttl_ms, upload, time_zone, lock_timeout_ms)
    VALUES (id, kind, queue, target, priority, CASE WHEN later THEN 'scheduled' ELSE 'queued' END, args, labels, clock,
            greatest(run_at, clock), CASE WHEN later THEN NULL ELSE pg_current_xact_id() END,
            timeout_ms, max_attempts, result_ttl_ms, upload, time_zone, lock_timeout_ms);
    IF notify THEN
        -- Workers wake at the commit. A hint names a place before the job, in steps of 10 ms: Postgres sends what is said
        -- twice in a transaction once, so that a thousand jobs of one are a few hints.
        PERFORM pg_notify('slowlane', json_build_object(
            'origin', '00000000-0000-0000-0000-000000000000',
            'message', CASE WHEN later THEN to_json('scheduled'::text) ELSE json_build_object('ready',
                json_build_array(json_build_object(
                    'queue', queue, 'priority', priority, 'id', '00000000-0000-0000-0000-000000000000',
                    'run_at', to_char(date_bin('10 milliseconds', clock, 'epoch') AT TIME ZONE 'UTC',
                                      'YYYY-MM-DD"T"HH24:MI:SS.US"Z"')))) END)::text);
    END IF;
    RETURN id;
END $$;
-- Who may enqueue may have the targets' roles do whatever a kind does: nobody may who wasn't granted it.
REVOKE ALL ON FUNCTION first_id_of(date), require_near_clock(uuid, uuid),
    enqueue(text, json, text, text, integer, timestamptz, bigint, integer, jsonb, bigint, uuid, boolean, text, bigint)
    FROM PUBLIC;

CREATE TABLE finished_jobs (
    id                  uuid NOT NULL,
    kind                text NOT NULL,
    queue               text NOT NULL,
    target              text NOT NULL,
    priority            smallint NOT NULL,
    state               text NOT NULL,
    args                json NOT NULL,
    labels              jsonb NOT NULL,
    created_at          timestamptz NOT NULL,
    run_at              timestamptz NOT NULL,
    timeout_ms          bigint NOT NULL,
    max_attempts        integer NOT NULL,
    attempt             integer NOT NULL,
    interruptions       integer NOT NULL,
    lease               bigint NOT NULL,
    version             bigint NOT NULL,
    -- Who ran the attempt that ended the job; NULL when it ended without one.
    worker_id           uuid,
    started_at          timestamptz,
    deadline_at         timestamptz,
    finished_at         timestamptz NOT NULL,
    backend_pid         integer,
    backend_start       timestamptz,
    cancel_requested_at timestamptz,
    result_ttl_ms       bigint NOT NULL,
    rows_returned       bigint,
    rows_affected       bigint,
    result_bytes        bigint,
    progress            json,
    output              json,
    error               json,
    retry_of            uuid,
    statement_version   text,
    time_zone           text,
    lock_timeout_ms     bigint,
    upload              uuid,
    CONSTRAINT finished_jobs_state CHECK (
        CASE state WHEN 'failed' THEN error IS NOT NULL ELSE state IN ('succeeded', 'cancelled') END),
    PRIMARY KEY (id)
) PARTITION BY RANGE (id);

-- One row for each attempt that ended and did not end its job: the running one is the row of the job itself, and so is
-- the last one. Most jobs have no row here.
CREATE TABLE attempts (
    job_id      uuid NOT NULL,
    lease       bigint NOT NULL,
    attempt     integer NOT NULL,
    worker_id   uuid NOT NULL,
    started_at  timestamptz NOT NULL,
    finished_at timestamptz NOT NULL,
    outcome     text NOT NULL CHECK (outcome IN ('retried', 'snoozed', 'interrupted', 'paused')),
    backend_pid integer,
    error       json,
    statement_version text,
    PRIMARY KEY (job_id, lease)
) PARTITION BY RANGE (job_id);

-- Every attempt of every job, the running one without an outcome.
CREATE VIEW all_attempts AS
    SELECT job_id, lease, attempt, worker_id, started_at, finished_at, outcome, backend_pid, error, statement_version
      FROM attempts
    UNION ALL
    SELECT id, lease, attempt, worker_id, started_at, finished_at, state, backend_pid, error, statement_version
      FROM finished_jobs WHERE worker_id IS NOT NULL
    UNION ALL
    SELECT id, lease, attempt, worker_id, started_at, NULL, NULL, backend_pid, NULL, statement_version
      FROM jobs WHERE state = 'running';

-- What attempts said while they ran.
CREATE TABLE job_log (
    job_id   uuid NOT NULL,
    lease    bigint NOT NULL,
    n        integer NOT NULL CHECK (n >= 0),
    at       timestamptz NOT NULL,
    level    text NOT NULL CHECK (level IN ('debug', 'info', 'notice', 'warning', 'error')),
    source   text NOT NULL CHECK (source IN ('server', 'work')),
    sqlstate text,
    message  text NOT NULL,
    PRIMARY KEY (job_id, lease, n)
) PARTITION BY RANGE (job_id);

-- What a job produced: zstd over length-prefixed text values. Nothing here can be seen before `results` names it.
CREATE TABLE result_parts (
    job_id uuid NOT NULL,
    lease  bigint NOT NULL,
    n      integer NOT NULL CHECK (n >= 0),
    data   bytea NOT NULL,
    PRIMARY KEY (job_id, lease, n)
) PARTITION BY RANGE (job_id);
-- The parts are compressed already.
ALTER TABLE result_parts ALTER COLUMN data SET STORAGE EXTERNAL;

CREATE TABLE results (
    job_id     uuid PRIMARY KEY,
    lease      bigint NOT NULL,
    state      text NOT NULL CHECK (state IN ('available', 'expired', 'deleted')),
    rows       bigint NOT NULL,
    bytes      bigint NOT NULL,
    truncated  boolean NOT NULL,
    expires_at timestamptz NOT NULL,
    manifest   json NOT NULL
);
CREATE INDEX results_expiry ON results (expires_at) WHERE state = 'available';

-- Lost in a crash, by design: nothing here must survive one.
CREATE UNLOGGED TABLE job_progress (
    job_id     uuid PRIMARY KEY,
    lease      bigint NOT NULL,
    phase      text NOT NULL,
    done       bigint NOT NULL,
    total      bigint,
    unit       text NOT NULL,
    basis      text NOT NULL CHECK (basis IN ('exact', 'estimated', 'none')),
    eta_ms     bigint,
    wait_event text,
    blocked_by json,
    temp_bytes bigint,
    sampled_at timestamptz NOT NULL
) WITH (fillfactor = 50);

-- What work took before: how long a job of the same work may still take. The digest names kind, target and arguments.
CREATE TABLE run_history (
    fingerprint bytea NOT NULL,
    ended_at    timestamptz NOT NULL,
    kind        text NOT NULL,
    target      text NOT NULL,
    duration_ms bigint NOT NULL CHECK (duration_ms >= 0),
    PRIMARY KEY (fingerprint, ended_at)
);

-- What must survive a crash: where the work goes on, and the transaction on the target that was about to be committed. A
-- job with such a transaction ends only when its fate is known. Gone with its job.
CREATE TABLE job_checkpoints (
    job_id      uuid PRIMARY KEY,
    -- Of whoever wrote last, and how many transactions that attempt has recorded.
    lease       bigint NOT NULL,
    seq         integer NOT NULL DEFAULT 0,
    -- Where the work goes on, and what was counted up to there.
    cursor      json,
    xid         xid8,
    system      text,
    timeline    text,
    -- What that transaction comes to when it took effect: either the end of the job, or where the work goes on then.
    outcome     json,
    next_cursor json,
    updated_at  timestamptz NOT NULL,
    -- A batch was committed since an attempt of the job ended.
    moved       boolean NOT NULL DEFAULT false,
    -- A hash of the cursor that was saved last, and of those from which interruptions were last counted anew: a cursor
    -- that goes to and fro between two places gets no further.
    place        bigint,
    counted_from bigint[] NOT NULL DEFAULT '{}',
    -- The work may have left something on its target that the cursor tells: kept after its job's end until that is seen to.
    leaves      boolean NOT NULL DEFAULT false,
    looked_at   timestamptz,
    CONSTRAINT job_checkpoints_transaction CHECK (CASE
        WHEN xid IS NULL THEN num_nonnulls(system, timeline, outcome, next_cursor) = 0
        ELSE num_nonnulls(system, timeline) = 2 AND num_nonnulls(outcome, next_cursor) = 1 END)
) WITH (
    fillfactor = 50, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 1000,
    autovacuum_analyze_scale_factor = 0, autovacuum_analyze_threshold = 20000, autovacuum_vacuum_cost_delay = 0
);

CREATE INDEX job_checkpoints_leaves ON job_checkpoints (job_id) WHERE leaves;

CREATE TABLE workers (
    id         uuid PRIMARY KEY,
    hostname   text NOT NULL,
    pid        integer NOT NULL,
    version    text NOT NULL,
    threads    integer NOT NULL,
    kinds      text[] NOT NULL,
    queues     text[] NOT NULL,
    started_at timestamptz NOT NULL,
    beat_at    timestamptz NOT NULL,
    -- Grows with each beat. Whoever looks for the dead compares it, and no clock: a step of the clock kills nobody.
    beat       bigint NOT NULL DEFAULT 0,
    -- Since when it shuts down: jobs that it leaves are handed back, and its death isn't their fault.
    stopping_at timestamptz,
    -- Its targets, and why it can't reach one: a list of objects with name, available, trouble and since.
    targets    json NOT NULL DEFAULT '[]'
) WITH (fillfactor = 50);

-- Workers that are off the list and had said that they shut down: what they left is handed back, however late it is found.
-- A row of its own, because a job's row may be locked when its worker goes.
CREATE TABLE stopped_workers (
    id         uuid PRIMARY KEY,
    stopped_at timestamptz NOT NULL
);

-- What an operator said of a queue. One that nobody said anything of has no row, and is served.
CREATE TABLE queues (
    name          text PRIMARY KEY CHECK (char_length(name) BETWEEN 1 AND 128),
    -- Since when nothing of it is claimed.
    paused_at     timestamptz,
    paused_reason text CHECK (char_length(paused_reason) <= 512),
    updated_at    timestamptz NOT NULL
);

CREATE TABLE idempotency_keys (
    principal   text NOT NULL,
    route       text NOT NULL,
    key         text NOT NULL CHECK (char_length(key) BETWEEN 1 AND 255),
    fingerprint bytea NOT NULL,
    job_id      uuid NOT NULL,
    created_at  timestamptz NOT NULL,
    PRIMARY KEY (principal, route, key)
);
CREATE INDEX idempotency_keys_expiry ON idempotency_keys (created_at);

-- Bodies that jobs read. One that is being received can't be seen; one statement makes it ready.
CREATE TABLE uploads (
    id               uuid PRIMARY KEY,
    state            text NOT NULL CHECK (state IN ('receiving', 'ready', 'deleted')),
    content_type     text NOT NULL,
    content_encoding text NOT NULL,
    bytes            bigint NOT NULL,
    parts            integer NOT NULL,
    sha256           text,
    created_at       timestamptz NOT NULL,
    expires_at       timestamptz NOT NULL
) WITH (fillfactor = 50);
CREATE INDEX uploads_expiry ON uploads (expires_at) WHERE state IN ('receiving', 'ready');
CREATE INDEX uploads_deleted ON uploads (id) WHERE state = 'deleted';

-- The bytes as they came in. Deleted in small steps once their upload is.
CREATE TABLE upload_parts (
    upload_id uuid NOT NULL,
    n         integer NOT NULL CHECK (n >= 0),
    data      bytea NOT NULL,
    PRIMARY KEY (upload_id, n)
);
-- Many bodies are compressed, and each part is read once or twice.
ALTER TABLE upload_parts ALTER COLUMN data SET STORAGE EXTERNAL;
