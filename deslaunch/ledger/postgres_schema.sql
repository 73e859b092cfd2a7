-- The tables of all batches of a database, in the schema "deslaunch". Users may rely on the view
-- "results"; all else may change with the schema's version. Times are ms since 1970 UTC, by the
-- server's clock. A table whose name is a plural holds what all batches have; the view with its
-- singular shows the batch that a connection is about (the setting deslaunch.batch), and what is
-- written there belongs to it. A row's lock in "rows" is the right to change what becomes of it.

DO $$ BEGIN
  IF to_regnamespace('deslaunch') IS NULL THEN  -- else an administrator made it for its owner
    CREATE SCHEMA deslaunch;
  END IF;
END $$;

SET LOCAL search_path = deslaunch;

CREATE TABLE version (number int NOT NULL);
INSERT INTO version VALUES (1);

CREATE FUNCTION this_batch() RETURNS int STABLE PARALLEL SAFE LANGUAGE sql AS
$$ SELECT current_setting('deslaunch.batch')::int $$;

CREATE TABLE batches (
  id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  uid text NOT NULL DEFAULT gen_random_uuid()::text,  -- of this batch, and no other
  name text NOT NULL UNIQUE,
  manifest bytea NOT NULL,              -- its name may be no UTF-8
  digest text NOT NULL,                 -- SHA-256 of the manifest's uncompressed bytes
  columns text,                         -- JSON: header of a CSV manifest
  rows int NOT NULL,                    -- that the import brought
  options text NOT NULL,                -- JSON: what later sessions go on with
  imported_ms bigint NOT NULL,
  control text NOT NULL DEFAULT '{}'     -- JSON: what the launchers at work were told by a person
);

CREATE TABLE targets (
  id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  batch int NOT NULL DEFAULT this_batch() REFERENCES batches ON DELETE CASCADE,
  name text NOT NULL,
  base_url text,                        -- of the last session
  org_id text,
  position int NOT NULL DEFAULT 0,      -- all its rows up to this one were claimed, or have a state
  UNIQUE (batch, name)
);

CREATE TABLE jobs (
  id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  batch int NOT NULL DEFAULT this_batch() REFERENCES batches ON DELETE CASCADE,
  target int NOT NULL,
  job_id text NOT NULL,
  name text NOT NULL DEFAULT '',
  parameters text,                      -- JSON: JobRunParameters; NULL: its rows are unchecked
  from_des boolean NOT NULL DEFAULT false,
  UNIQUE (target, job_id)
);

-- What changes for each row lies in narrow tables without foreign keys: their checks would cost
-- more than the rows.
CREATE TABLE rows (
  batch int NOT NULL DEFAULT this_batch(),
  number int NOT NULL,
  line int NOT NULL,
  key text,                             -- NULL: an invalid row without a key of its own
  target int NOT NULL,
  job int NOT NULL,
  auto boolean NOT NULL,
  problem text,                         -- why it is invalid
  PRIMARY KEY (batch, number),
  CONSTRAINT row_key UNIQUE (batch, key) DEFERRABLE
);

CREATE TABLE contents (
  batch int NOT NULL DEFAULT this_batch(),
  row int NOT NULL,
  digest bytea,                         -- SHA-256 of body, its first 16 bytes
  body bytea,                           -- what is sent; NULL: the row is invalid
  says text NOT NULL,                   -- JSON: what the manifest says
  PRIMARY KEY (batch, row)
);

-- Every POST that was ever made or meant.
CREATE TABLE attempts (
  batch int NOT NULL DEFAULT this_batch(),
  row int NOT NULL,
  number int NOT NULL,
  session int NOT NULL,
  sent_ms bigint NOT NULL,              -- when its intent was written
  result text,                          -- NULL: open; started, rejected, failed, unknown, retry, throttled, unsent
  status int,
  job_run_id text,
  error text,
  answered_ms bigint,
  again_ms bigint,                      -- the row may be sent again then
  finding text,                         -- a person found: started, notStarted
  found_run text,                       -- and its jobRunId
  repeated int,                         -- 1: its run failed, and another one is wanted
  PRIMARY KEY (batch, row, number)
) WITH (fillfactor = 50);

-- A run is one row's, whichever launcher started it. Apart from the attempts: what an outcome changes
-- there is in no index, so that it costs none.
CREATE TABLE job_runs (
  batch int NOT NULL DEFAULT this_batch(),
  job_run_id text NOT NULL,             -- in lower case
  row int NOT NULL,                     -- the first that it was told for
  PRIMARY KEY (batch, job_run_id)
);

-- As SQLite's ledger has it: see schema.sql.
CREATE TABLE states (
  batch int NOT NULL DEFAULT this_batch(),
  row int NOT NULL,
  target int NOT NULL,
  state text NOT NULL,
  due_ms bigint,
  retries int NOT NULL DEFAULT 0,
  attempts int NOT NULL DEFAULT 0,
  shown int,
  duplicate int NOT NULL DEFAULT 0,
  corrected int NOT NULL DEFAULT 0,
  withdrawn int NOT NULL DEFAULT 0,
  copied int NOT NULL DEFAULT 0,
  PRIMARY KEY (batch, row)
) WITH (fillfactor = 50);

CREATE INDEX state_due ON states (target, due_ms, row) WHERE due_ms IS NOT NULL;

CREATE TABLE runs (
  batch int NOT NULL DEFAULT this_batch(),
  row int NOT NULL,
  attempt int NOT NULL,
  asked_ms bigint NOT NULL,
  refused text,
  finished boolean,
  success boolean,
  status_text text,
  created_utc text,
  finished_utc text,
  output_files text,                    -- JSON
  PRIMARY KEY (batch, row, attempt)
);

-- A launcher holds an advisory lock on (1145372672 + batch, id) for as long as it lives. An id is
-- never used again.
CREATE SEQUENCE session_id AS int;

CREATE TABLE sessions (
  id int PRIMARY KEY,
  batch int NOT NULL DEFAULT this_batch() REFERENCES batches ON DELETE CASCADE,
  host text NOT NULL,
  pid int NOT NULL,
  began_ms bigint NOT NULL,
  ended_ms bigint,                      -- NULL: at work, or killed
  lost_ms bigint,                       -- it was found dead; it writes no intent any more
  first int NOT NULL,                   -- the first of those that were at work together
  turns bigint NOT NULL DEFAULT 0,
  open int NOT NULL DEFAULT 0,          -- rows in flight
  exit_code int,
  stops text NOT NULL DEFAULT '[]',     -- JSON: why it ended early
  options text NOT NULL,                -- JSON
  targets text NOT NULL,                -- JSON: base URL by target
  timeout_ms int NOT NULL,              -- of one attempt in all
  clocks text NOT NULL DEFAULT '{}'     -- JSON: seconds that DES's clock is ahead, by target
) WITH (fillfactor = 20);

CREATE INDEX session_batch ON sessions (batch, id);

CREATE TABLE events (
  id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  batch int NOT NULL DEFAULT this_batch() REFERENCES batches ON DELETE CASCADE,
  session int,
  at_ms bigint NOT NULL,
  kind text NOT NULL,
  target text,
  text text NOT NULL
);

CREATE INDEX event_batch ON events (batch, id);

CREATE TABLE resolutions (
  id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  batch int NOT NULL DEFAULT this_batch() REFERENCES batches ON DELETE CASCADE,
  row int NOT NULL,
  attempt int NOT NULL,
  at_ms bigint NOT NULL,
  finding text NOT NULL,
  job_run_id text,
  note text NOT NULL
);

CREATE INDEX resolution_row ON resolutions (batch, row);

CREATE TABLE corrections (
  id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  batch int NOT NULL DEFAULT this_batch() REFERENCES batches ON DELETE CASCADE,
  row int NOT NULL,
  attempt int NOT NULL,
  at_ms bigint NOT NULL,
  file text NOT NULL,
  said text
);

CREATE INDEX correction_batch ON corrections (batch, id);

-- The batch that a connection is about.

CREATE VIEW batch AS SELECT * FROM batches WHERE id = this_batch();
CREATE VIEW target AS SELECT id, name, base_url, org_id, position FROM targets WHERE batch = this_batch();
CREATE VIEW job AS SELECT id, target, job_id, name, parameters, from_des FROM jobs WHERE batch = this_batch();
CREATE VIEW row AS SELECT number, line, key, target, job, auto, problem FROM rows WHERE batch = this_batch();
CREATE VIEW content AS SELECT row, digest, body, says FROM contents WHERE batch = this_batch();
CREATE VIEW attempt AS
SELECT row, number, session, sent_ms, result, status, job_run_id, error, answered_ms, again_ms, finding, found_run, repeated
FROM attempts WHERE batch = this_batch();
CREATE VIEW state AS
SELECT row, target, state, due_ms, retries, attempts, shown, duplicate, corrected, withdrawn, copied FROM states WHERE batch = this_batch();
CREATE VIEW run AS
SELECT row, attempt, asked_ms, refused, finished, success, status_text, created_utc, finished_utc, output_files
FROM runs WHERE batch = this_batch();
CREATE VIEW session AS
SELECT id, host, pid, began_ms, ended_ms, lost_ms, first, turns, open, exit_code, stops, options, targets, timeout_ms, clocks
FROM sessions WHERE batch = this_batch();
CREATE VIEW event AS SELECT id, session, at_ms, kind, target, text FROM events WHERE batch = this_batch();
CREATE VIEW resolution AS SELECT id, row, attempt, at_ms, finding, job_run_id, note FROM resolutions WHERE batch = this_batch();
CREATE VIEW correction AS SELECT id, row, attempt, at_ms, file, said FROM corrections WHERE batch = this_batch();

-- The locks that launchers hold: whose session's, of which batch; -2: an import's.
CREATE VIEW locks AS
SELECT l.classid::bigint - 1145372672 AS batch, l.objid::bigint AS session, l.pid
FROM pg_locks l JOIN pg_database d ON d.oid = l.database AND d.datname = current_database()
WHERE l.locktype = 'advisory' AND l.objsubid = 2 AND l.granted;

CREATE FUNCTION utc(at timestamptz) RETURNS text STABLE LANGUAGE sql AS
$$ SELECT to_char(at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.MS"Z"') $$;

-- A time as DES spells it; NULL where it is none.
CREATE FUNCTION time_of(said text) RETURNS timestamptz STABLE LANGUAGE plpgsql SET TimeZone = 'UTC' AS $$
BEGIN
  RETURN said::timestamptz;
EXCEPTION WHEN data_exception THEN
  RETURN NULL;
END $$;

-- How every row stands. What is looked up for each row is a subquery that stays one (OFFSET 0): a new
-- batch's attempts are in no statistics yet, and a join might hold each of its rows against all of them.

CREATE VIEW standings AS
SELECT
  r.batch, r.number AS row, r.key, r.target, r.job, r.auto, r.problem,
  coalesce(s.state, CASE
    WHEN r.problem IS NOT NULL THEN 'invalid'
    WHEN a.row IS NULL THEN 'pending'
    ELSE coalesce(a.result, 'sending')
  END) AS state,
  coalesce(s.attempts, (a.row IS NOT NULL)::int) AS attempts,
  CASE WHEN s.row IS NULL THEN a.number ELSE s.shown END AS shown,
  coalesce(s.duplicate, 0) AS duplicate
FROM rows r
LEFT JOIN LATERAL (SELECT * FROM states s WHERE s.batch = r.batch AND s.row = r.number OFFSET 0) s ON true
LEFT JOIN LATERAL (SELECT * FROM attempts a WHERE a.batch = r.batch AND a.row = r.number AND a.number = 1 OFFSET 0) a ON true;

CREATE VIEW standing AS
SELECT row, key, target, job, auto, problem, state, attempts, shown, duplicate FROM standings WHERE batch = this_batch();

CREATE VIEW results AS
SELECT
  b.name AS batch,
  coalesce(s.key, '') AS key,
  s.row AS row,
  t.name AS target,
  j.job_id AS job_id,
  j.name AS job_name,
  s.state AS state,
  CASE WHEN s.state = 'started' THEN coalesce(a.found_run, a.job_run_id) END AS job_run_id,
  s.attempts AS attempts,
  a.status AS status,
  coalesce(s.problem, a.error, '') AS error,
  s.duplicate = 1 AS possible_duplicate,
  to_timestamp(a.sent_ms / 1000.0) AS sent_utc,
  to_timestamp(a.answered_ms / 1000.0) AS answered_utc,
  u.finished AS finished,
  u.success AS success,
  u.status_text AS status_text,
  time_of(u.finished_utc) AS finished_utc,
  u.output_files AS output_files
FROM batches b
JOIN standings s ON s.batch = b.id
JOIN targets t ON t.id = s.target
JOIN jobs j ON j.id = s.job
LEFT JOIN LATERAL (SELECT * FROM attempts a WHERE a.batch = s.batch AND a.row = s.row AND a.number = s.shown OFFSET 0) a ON true
LEFT JOIN LATERAL (SELECT * FROM runs u WHERE u.batch = s.batch AND u.row = s.row AND u.attempt = s.shown OFFSET 0) u
  ON s.state = 'started';

-- A turn. A plan that reads all of a table would be kept while it grows: so here, too, what is looked
-- up for each row is a subquery that stays one.

CREATE FUNCTION numbers(list text) RETURNS SETOF int IMMUTABLE LANGUAGE sql ROWS 64 AS
$$ SELECT value::int FROM json_array_elements_text(list::json) $$;

-- The rows of runs (in lower case, with the row that each is told for now) that were told before for
-- another row.
CREATE FUNCTION rows_of_runs(told text) RETURNS TABLE (run text, owner int, key text) LANGUAGE plpgsql AS $$
DECLARE
  b int := this_batch();
BEGIN
  INSERT INTO job_runs (batch, job_run_id, row)
  SELECT b, value->>0, (value->>1)::int FROM json_array_elements(told::json)
  ON CONFLICT DO NOTHING;

  RETURN QUERY
  SELECT o.run, o.owner, (SELECT r.key FROM rows r WHERE r.batch = b AND r.number = o.owner)
  FROM (
    SELECT value->>0 AS run, (value->>1)::int AS row,
      (SELECT k.row FROM job_runs k WHERE k.batch = b AND k.job_run_id = value->>0) AS owner
    FROM json_array_elements(told::json)
  ) o
  WHERE o.owner <> o.row;
END $$;

-- An outcome ends its own attempt, once, and lifts that attempt's doubt; it outranks a finding.
-- A refusal is taken back where it turned out to be its target's, not the row's. An attempt is its
-- session's: one that is handed back may not be on disk, or have become another's.
CREATE FUNCTION end_attempts(outcomes text, started text, own text, now_ms bigint) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
  b int := this_batch();
  sessions int[] := ARRAY(SELECT numbers(own));
BEGIN
  INSERT INTO attempts AS a (batch, row, number, session, sent_ms, answered_ms, result, status, job_run_id, error, again_ms)
  SELECT b, o.row, o.number, sessions[1], now_ms, now_ms, o.result, o.status, o.job_run_id, o.error, o.again_ms
  FROM (
    SELECT
      (value->>0)::int AS row, (value->>1)::int AS number, value->>2 AS result, (value->>3)::int AS status,
      value->>4 AS job_run_id, value->>5 AS error, (value->>6)::bigint AS again_ms
    FROM json_array_elements(outcomes::json)
    UNION ALL SELECT key::int, 1, 'started', 200, value, '', NULL FROM json_each_text(started::json)
    ORDER BY 1, 2
  ) o
  WHERE o.result <> 'unsent'
    OR EXISTS (SELECT 1 FROM attempts a WHERE a.batch = b AND a.row = o.row AND a.number = o.number OFFSET 0)
  ON CONFLICT (batch, row, number) DO UPDATE SET
    answered_ms = excluded.answered_ms, result = excluded.result, status = excluded.status, job_run_id = excluded.job_run_id,
    error = excluded.error, again_ms = excluded.again_ms, finding = NULL, found_run = NULL
  WHERE a.session = ANY (sessions) AND (a.result IS NULL
    OR a.result = 'unknown' AND excluded.result <> 'unknown'
    OR a.result = 'rejected' AND excluded.result = 'throttled');
END $$;

-- A row's state follows from its attempts: see "derive" in queries.sql, which is the same rule.
CREATE FUNCTION derive(list text, simple text) RETURNS int LANGUAGE plpgsql AS $$
DECLARE
  current int;
  touched int[] := ARRAY(
    SELECT numbers(list) UNION ALL
    SELECT v FROM numbers(simple) v WHERE EXISTS (SELECT 1 FROM state e WHERE e.row = v OFFSET 0)
  );
  written int;
BEGIN
  IF touched = '{}' THEN RETURN 0; END IF;

  -- What another transaction did to an attempt of these rows is seen once it is committed.
  PERFORM 1 FROM rows r WHERE r.batch = this_batch() AND r.number = ANY (touched) ORDER BY r.number FOR UPDATE;
  current := (SELECT max(first) FROM session);

  INSERT INTO states (row, target, state, due_ms, retries, attempts, shown, duplicate, corrected)
  SELECT
    d.row,
    d.target,
    d.state,
    CASE WHEN d.rank = 2 OR d.state NOT IN ('started', 'sending', 'invalid', 'withdrawn') THEN coalesce(
      (SELECT CASE WHEN a.session >= current THEN a.again_ms END FROM attempt a
       WHERE a.row = d.row AND a.number > d.corrected ORDER BY a.number DESC LIMIT 1),
      CASE d.state WHEN 'pending' THEN 0 END
    ) END,
    CASE WHEN d.rank <> 2 AND d.state IN ('started', 'sending') THEN 0 ELSE (
      SELECT count(*) FROM attempt a
      WHERE a.row = d.row AND a.number > d.corrected AND a.session >= current AND a.result = 'retry' AND a.finding IS NULL
    ) END,
    (SELECT count(*) FROM attempt a WHERE a.row = d.row AND a.result IS DISTINCT FROM 'unsent'),
    CASE WHEN d.rank > 1 THEN d.number ELSE (
      SELECT max(a.number) FROM attempt a WHERE a.row = d.row AND a.number > d.corrected AND a.result <> 'unsent'
    ) END,
    CASE WHEN d.rank = 2 THEN d.copied WHEN d.state = 'started' THEN (
      SELECT (d.copied = 1 OR count(*) > 1)::int FROM attempt a
      WHERE a.row = d.row AND a.result IN ('started', 'failed', 'retry', 'unknown') AND a.finding IS DISTINCT FROM 'notStarted'
        AND a.repeated IS NULL
    ) ELSE 0 END,
    d.corrected
  FROM (
    SELECT r.number AS row, r.target, b.number, b.rank, r.corrected, r.copied, CASE
      WHEN b.rank = 5 THEN 'started'
      WHEN b.rank = 4 THEN 'sending'
      WHEN b.rank = 3 THEN 'unknown'
      WHEN b.rank = 2 THEN 'started'
      WHEN r.withdrawn = 1 THEN 'withdrawn'
      WHEN r.problem IS NOT NULL THEN 'invalid'
      WHEN b.rank = 1 AND b.finding IS NULL THEN b.result
      ELSE 'pending'
    END AS state
    FROM (
      SELECT r.number, r.target, r.problem, coalesce(s.corrected, 0) AS corrected, coalesce(s.withdrawn, 0) AS withdrawn,
        coalesce(s.copied, 0) AS copied
      FROM row r
      LEFT JOIN LATERAL (SELECT s.corrected, s.withdrawn, s.copied FROM state s WHERE s.row = r.number OFFSET 0) s ON true
      WHERE r.number = ANY (touched)
    ) r
    LEFT JOIN LATERAL (
      SELECT a.number, a.result, a.finding, CASE
        WHEN a.result = 'started' OR a.finding = 'started' THEN CASE WHEN a.repeated = 1 THEN 2 ELSE 5 END
        WHEN a.result IS NULL THEN 4
        WHEN a.result = 'unknown' AND a.finding IS NULL THEN 3
        WHEN a.number > r.corrected AND (a.result IN ('rejected', 'failed') OR a.finding IS NOT NULL) THEN 1
        ELSE 0
      END AS rank
      FROM attempt a WHERE a.row = r.number ORDER BY rank DESC, a.number DESC LIMIT 1
    ) b ON true
  ) d
  ON CONFLICT (batch, row) DO UPDATE SET
    target = excluded.target, state = excluded.state, due_ms = excluded.due_ms, retries = excluded.retries,
    attempts = excluded.attempts, shown = excluded.shown, duplicate = excluded.duplicate;

  GET DIAGNOSTICS written = ROW_COUNT;
  RETURN written;
END $$;

-- Is a row of one job, or else of none of those that are claimed by themselves?
CREATE FUNCTION is_of(row_number int, only_job int, but_jobs text) RETURNS boolean STABLE LANGUAGE sql AS $$
SELECT CASE
  WHEN only_job IS NULL AND but_jobs = '[]' THEN true
  WHEN only_job IS NULL THEN (SELECT r.job FROM row r WHERE r.number = row_number) <> ALL (ARRAY(SELECT numbers(but_jobs)))
  ELSE (SELECT r.job FROM row r WHERE r.number = row_number) = only_job
END
$$;

-- When the next row of a target, or of a job of it, is due; NULL: none is.
CREATE FUNCTION first_due(target_id int, only_job int, but_jobs text) RETURNS bigint STABLE LANGUAGE sql AS $$
SELECT s.due_ms FROM states s
WHERE s.target = target_id AND s.due_ms IS NOT NULL AND is_of(s.row, only_job, but_jobs)
ORDER BY s.due_ms LIMIT 1
$$;

-- Rows of a target whose time has come, as starts. Those that another launcher is just taking, or a
-- person correcting, are passed over.
CREATE FUNCTION due_starts(target_id int, now_ms bigint, most int, only_job int, but_jobs text)
RETURNS text LANGUAGE plpgsql AS $$
DECLARE
  b int := this_batch();
  found int[] := ARRAY(
    SELECT s.row FROM states s WHERE s.target = target_id AND s.due_ms <= now_ms AND is_of(s.row, only_job, but_jobs)
    ORDER BY s.due_ms, s.row LIMIT most FOR UPDATE SKIP LOCKED
  );
BEGIN
  IF found = '{}' THEN RETURN '[]'; END IF;

  found := ARRAY(
    SELECT r.number FROM rows r WHERE r.batch = b AND r.number = ANY (found) ORDER BY r.number FOR UPDATE SKIP LOCKED
  );
  -- Whoever held a row's lock until a moment ago may have sent it: this looks anew.
  RETURN (
    SELECT coalesce(json_agg(json_build_array(
      r.number, coalesce((SELECT max(a.number) FROM attempts a WHERE a.batch = b AND a.row = r.number), 0) + 1, r.key,
      (SELECT j.job_id FROM jobs j WHERE j.id = r.job), encode(c.body, 'hex'), encode(c.digest, 'hex'), r.auto, s.retries
    ) ORDER BY s.due_ms, r.number), '[]')
    FROM rows r
    JOIN LATERAL (SELECT c.body, c.digest FROM contents c WHERE c.batch = b AND c.row = r.number OFFSET 0) c ON true
    JOIN LATERAL (SELECT s.due_ms, s.retries FROM states s WHERE s.batch = b AND s.row = r.number OFFSET 0) s ON s.due_ms <= now_ms
    WHERE r.batch = b AND r.number = ANY (found)
  );
END $$;

-- Rows of a target that were never sent, in manifest order, as starts: as many as are wanted, or all
-- that there are beyond a row. Those that another launcher is just taking are passed over.
CREATE FUNCTION fresh_starts(target_id int, after_row int, most int, only_job int, but_jobs text) RETURNS text LANGUAGE plpgsql
SET enable_sort = off SET enable_bitmapscan = off AS $$
DECLARE
  b int := this_batch();
  fresh int[] := '{}';
  found int[];
  room int;
  last int := after_row;
  others int[] := ARRAY(SELECT numbers(but_jobs));
BEGIN
  LOOP
    room := most - cardinality(fresh);
    found := ARRAY(
      SELECT r.number FROM rows r
      WHERE r.batch = b AND r.target = target_id AND r.number > last AND r.problem IS NULL
        AND CASE WHEN only_job IS NULL THEN r.job <> ALL (others) ELSE r.job = only_job END
        AND NOT EXISTS (SELECT 1 FROM attempts a WHERE a.batch = b AND a.row = r.number OFFSET 0)
      ORDER BY r.number LIMIT room FOR UPDATE SKIP LOCKED
    );
    -- Whoever held a row's lock until a moment ago may have taken it: this looks anew.
    fresh := fresh || ARRAY(
      SELECT n FROM unnest(found) n
      WHERE NOT EXISTS (SELECT 1 FROM attempts a WHERE a.batch = b AND a.row = n OFFSET 0)
        AND NOT EXISTS (SELECT 1 FROM states s WHERE s.batch = b AND s.row = n OFFSET 0)
    );
    EXIT WHEN cardinality(found) < room OR cardinality(fresh) = most;
    last := found[cardinality(found)];
  END LOOP;

  RETURN (
    SELECT coalesce(json_agg(json_build_array(
      r.number, 1, r.key, (SELECT j.job_id FROM jobs j WHERE j.id = r.job), encode(c.body, 'hex'), encode(c.digest, 'hex'), r.auto, 0
    ) ORDER BY r.number), '[]')
    FROM rows r
    JOIN LATERAL (SELECT c.body, c.digest FROM contents c WHERE c.batch = b AND c.row = r.number OFFSET 0) c ON true
    WHERE r.batch = b AND r.number = ANY (fresh)
  );
END $$;

-- The first row of a target that nobody is known to have taken, beyond one; NULL: there is none.
CREATE FUNCTION first_fresh(target_id int, after_row int, only_job int, but_jobs text) RETURNS int STABLE LANGUAGE sql
SET enable_sort = off SET enable_bitmapscan = off AS $$
SELECT r.number FROM row r
WHERE r.target = target_id AND r.number > after_row AND r.problem IS NULL
  AND CASE WHEN only_job IS NULL THEN r.job <> ALL (ARRAY(SELECT numbers(but_jobs))) ELSE r.job = only_job END
  AND NOT EXISTS (SELECT 1 FROM attempt a WHERE a.row = r.number OFFSET 0)
  AND NOT EXISTS (SELECT 1 FROM state s WHERE s.row = r.number OFFSET 0)
ORDER BY r.number LIMIT 1
$$;

CREATE FUNCTION add_intents(starts text, session_id int, now_ms bigint) RETURNS void LANGUAGE sql AS $$
INSERT INTO attempts (batch, row, number, session, sent_ms)
SELECT this.batch, key::int, value::int, session_id, now_ms
FROM (SELECT this_batch() AS batch OFFSET 0) this, json_each_text(starts::json)
$$;

-- For the owner: a batch with all that is known of it, for good.

CREATE FUNCTION remove_batch(batch_name text) RETURNS text LANGUAGE plpgsql SET search_path = deslaunch AS $$
DECLARE
  gone int := (SELECT id FROM batches WHERE name = batch_name FOR UPDATE);
  removed bigint;
BEGIN
  IF gone IS NULL THEN
    RAISE 'there is no batch %', batch_name;
  END IF;

  IF EXISTS (SELECT 1 FROM locks WHERE batch = gone) THEN
    RAISE 'launchers are at work on batch %', batch_name;
  END IF;

  DELETE FROM runs WHERE batch = gone;
  DELETE FROM states WHERE batch = gone;
  DELETE FROM attempts WHERE batch = gone;
  DELETE FROM job_runs WHERE batch = gone;
  DELETE FROM contents WHERE batch = gone;
  DELETE FROM rows WHERE batch = gone;
  GET DIAGNOSTICS removed = ROW_COUNT;
  DELETE FROM batches WHERE id = gone;  -- and all that refers to it
  RETURN format('removed batch %s: %s rows', batch_name, removed);
END $$;
