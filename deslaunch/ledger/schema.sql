-- The tables of a batch. Users may rely on the view "results"; the tables may change with the
-- schema version (user_version). Times are ms since 1970 UTC unless a name ends in _utc.
-- What a row says is written once; what changes lies in narrow tables.

CREATE TABLE batch (
  id INTEGER PRIMARY KEY CHECK (id = 1),
  uid TEXT NOT NULL,                    -- the same in each copy of this file, and in no other batch
  name TEXT NOT NULL,
  manifest TEXT NOT NULL,               -- a blob where the name is no UTF-8
  digest TEXT NOT NULL,                 -- SHA-256 of the manifest's uncompressed bytes
  columns TEXT,                         -- JSON: header of a CSV manifest
  rows INTEGER NOT NULL,                -- that the import brought
  options TEXT NOT NULL,                -- JSON: what later sessions go on with
  control TEXT NOT NULL DEFAULT '{}',   -- JSON: what the launchers at work were told by a person
  imported_ms INTEGER NOT NULL
);

CREATE TABLE target (
  id INTEGER PRIMARY KEY,
  name TEXT NOT NULL UNIQUE,
  base_url TEXT,                        -- of the last session
  org_id TEXT,
  position INTEGER NOT NULL DEFAULT 0   -- all its rows up to this one were claimed, or have a state
);

CREATE TABLE job (
  id INTEGER PRIMARY KEY,
  target INTEGER NOT NULL REFERENCES target(id),
  job_id TEXT NOT NULL,
  name TEXT NOT NULL DEFAULT '',
  parameters TEXT,                      -- JSON: JobRunParameters; NULL: its rows are unchecked
  from_des INTEGER NOT NULL DEFAULT 0,
  UNIQUE (target, job_id)
);

CREATE TABLE row (
  number INTEGER PRIMARY KEY,
  line INTEGER NOT NULL,
  key TEXT,                             -- NULL: an invalid row without a key of its own
  target INTEGER NOT NULL REFERENCES target(id),
  job INTEGER NOT NULL REFERENCES job(id),
  auto INTEGER NOT NULL,
  problem TEXT                          -- why it is invalid
);

CREATE TABLE content (
  row INTEGER PRIMARY KEY REFERENCES row(number),
  digest BLOB,                          -- SHA-256 of body, its first 16 bytes
  body BLOB,                            -- what is sent; NULL: the row is invalid
  says TEXT NOT NULL                    -- JSON: what the manifest says
);

-- Every POST that was ever made or meant.
CREATE TABLE attempt (
  row INTEGER NOT NULL REFERENCES row(number),
  number INTEGER NOT NULL,
  session INTEGER NOT NULL REFERENCES session(id),
  sent_ms INTEGER NOT NULL,             -- when its intent was written
  result TEXT,                          -- NULL: open; started, rejected, failed, unknown, retry, throttled, unsent
  status INTEGER,
  job_run_id TEXT,
  error TEXT,
  answered_ms INTEGER,
  again_ms INTEGER,                     -- the row may be sent again then
  finding TEXT,                         -- a person found: started, notStarted
  found_run TEXT,                       -- and its jobRunId
  repeated INTEGER,                     -- 1: its run failed, and another one is wanted
  PRIMARY KEY (row, number)
) WITHOUT ROWID;

-- What follows from a row's attempts, where more is to be said of it than that it is pending or
-- invalid, or was sent once and is in flight or started: such a row needs none ("standing").
CREATE TABLE state (
  row INTEGER PRIMARY KEY REFERENCES row(number),
  target INTEGER NOT NULL,
  state TEXT NOT NULL,                  -- model.RowState
  due_ms INTEGER,                       -- NULL: this session may not send it by itself
  retries INTEGER NOT NULL DEFAULT 0,   -- 5XX since it last became sendable
  attempts INTEGER NOT NULL DEFAULT 0,  -- POSTs that left
  shown INTEGER,                        -- the attempt that results tell of
  duplicate INTEGER NOT NULL DEFAULT 0, -- started, and another attempt may have started a run too
  corrected INTEGER NOT NULL DEFAULT 0, -- attempts up to this one sent an earlier form of the row
  withdrawn INTEGER NOT NULL DEFAULT 0, -- a person took the row back
  copied INTEGER NOT NULL DEFAULT 0     -- pending in an older copy: what was sent since is not known
);

CREATE TABLE run (
  row INTEGER NOT NULL,
  attempt INTEGER NOT NULL,
  asked_ms INTEGER NOT NULL,
  refused TEXT,                         -- why DES did not tell of it, when last asked
  finished INTEGER,
  success INTEGER,
  status_text TEXT,
  created_utc TEXT,
  finished_utc TEXT,
  output_files TEXT,                    -- JSON
  PRIMARY KEY (row, attempt)
) WITHOUT ROWID;

CREATE TABLE session (
  id INTEGER PRIMARY KEY AUTOINCREMENT,
  host TEXT NOT NULL,
  pid INTEGER NOT NULL,
  began_ms INTEGER NOT NULL,
  ended_ms INTEGER,                     -- NULL: at work, or killed
  exit_code INTEGER,
  stops TEXT NOT NULL DEFAULT '[]',     -- JSON: why it ended early
  options TEXT NOT NULL,                -- JSON
  targets TEXT NOT NULL,                -- JSON: base URL by target
  timeout_ms INTEGER NOT NULL,          -- of one attempt in all
  clocks TEXT NOT NULL DEFAULT '{}'     -- JSON: seconds that DES's clock is ahead, by target
);

CREATE TABLE event (
  id INTEGER PRIMARY KEY,
  session INTEGER,
  at_ms INTEGER NOT NULL,
  kind TEXT NOT NULL,
  target TEXT,
  text TEXT NOT NULL
);

CREATE TABLE resolution (
  id INTEGER PRIMARY KEY,
  row INTEGER NOT NULL REFERENCES row(number),
  attempt INTEGER NOT NULL,             -- the row's last one then
  at_ms INTEGER NOT NULL,
  finding TEXT NOT NULL,                -- started, notStarted, unknown
  job_run_id TEXT,
  note TEXT NOT NULL
);

CREATE TABLE correction (
  id INTEGER PRIMARY KEY,
  row INTEGER NOT NULL REFERENCES row(number),
  attempt INTEGER NOT NULL,             -- the row's last one then; 0 for a row that was added
  at_ms INTEGER NOT NULL,
  file TEXT NOT NULL,
  said TEXT                             -- JSON: what the row said before; NULL: it was added
);

-- How every row stands.
CREATE VIEW standing AS
SELECT
  r.number AS row, r.key AS key, r.target AS target, r.job AS job, r.auto AS auto, r.problem AS problem,
  coalesce(s.state, CASE
    WHEN r.problem IS NOT NULL THEN 'invalid'
    WHEN a.row IS NULL THEN 'pending'
    ELSE coalesce(a.result, 'sending')
  END) AS state,
  coalesce(s.attempts, a.row IS NOT NULL) AS attempts,
  CASE WHEN s.row IS NULL THEN a.number ELSE s.shown END AS shown,
  coalesce(s.duplicate, 0) AS duplicate
FROM row r
LEFT JOIN state s ON s.row = r.number
LEFT JOIN attempt a ON a.row = r.number AND a.number = 1;

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
  s.duplicate AS possible_duplicate,
  strftime('%Y-%m-%dT%H:%M:%fZ', a.sent_ms / 1000.0, 'unixepoch') AS sent_utc,
  strftime('%Y-%m-%dT%H:%M:%fZ', a.answered_ms / 1000.0, 'unixepoch') AS answered_utc,
  u.finished AS finished,
  u.success AS success,
  u.status_text AS status_text,
  u.finished_utc AS finished_utc,
  u.output_files AS output_files
FROM standing s
JOIN batch b ON b.id = 1
JOIN target t ON t.id = s.target
JOIN job j ON j.id = s.job
LEFT JOIN attempt a ON a.row = s.row AND a.number = s.shown
LEFT JOIN run u ON u.row = s.row AND u.attempt = s.shown AND s.state = 'started';
