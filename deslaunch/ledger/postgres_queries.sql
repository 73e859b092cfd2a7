-- The statements that PostgreSQL needs in another form than SQLite; all others are those of
-- queries.sql. Where one has several parts, the last one gives the rows. What a turn does for each
-- row are functions of the schema.

-- name: derive
SELECT derive(:rows, :simple);

-- A session

-- name: begin_session
-- Once more where it was committed, and the reply was lost.
INSERT INTO session (host, pid, began_ms, options, targets, timeout_ms, id, first)
VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, coalesce((SELECT max(first) FROM session WHERE ended_ms IS NULL AND lost_ms IS NULL), ?7))
ON CONFLICT DO NOTHING;

-- name: renew_session
INSERT INTO session (id, host, pid, began_ms, options, targets, timeout_ms, first, clocks)
SELECT ?1, host, pid, ?2, options, targets, timeout_ms,
  coalesce((SELECT max(first) FROM session WHERE ended_ms IS NULL AND lost_ms IS NULL), ?1), clocks
FROM session WHERE id = ?3;

-- name: end_turn
-- A session that was found dead changes nothing here: its turn is not committed.
UPDATE session SET turns = turns + 1, open = ?2 WHERE id = ?1 AND lost_ms IS NULL RETURNING turns;

-- name: session_turns
SELECT turns, lost_ms IS NOT NULL FROM session WHERE id = ?;

-- name: living_sessions
SELECT session FROM locks WHERE batch = this_batch();

-- name: silent_sessions
-- Those that neither ended nor hold their lock.
SELECT id FROM session WHERE ended_ms IS NULL AND lost_ms IS NULL AND NOT id = ANY (ARRAY(SELECT numbers(?)));

-- name: lose_sessions
UPDATE session SET lost_ms = ?2 WHERE id = ANY (ARRAY(SELECT numbers(?1))) AND lost_ms IS NULL AND ended_ms IS NULL RETURNING id;

-- name: next_due_beside_others
SELECT
  (SELECT first_due(?1, ?2, ?3)),
  (SELECT coalesce(sum(open), 0)::int FROM session WHERE id <> ?4 AND ended_ms IS NULL AND lost_ms IS NULL);

-- name: launchers
-- One that has not begun is known by its connection alone.
SELECT
  coalesce(s.pid, substring(c.application_name FROM 'deslaunch (\d+)@')::int, 0),
  coalesce(s.host, substring(c.application_name FROM '@(.*)'), host(c.client_addr), ''),
  coalesce(s.began_ms, extract(epoch FROM c.backend_start) * 1000)::bigint,
  coalesce(s.open, 0),
  s.id IS NOT NULL
FROM locks l
LEFT JOIN session s ON s.id = l.session
LEFT JOIN pg_stat_activity c ON c.pid = l.pid
WHERE l.batch = this_batch() AND l.session <> ?
ORDER BY l.session;

-- name: sending_rows
SELECT row FROM attempt WHERE result IS NULL AND session = ANY (ARRAY(SELECT numbers(:dead)));

-- name: make_repeats_due
INSERT INTO states (row, target, state, due_ms, attempts, shown)
SELECT row, target, 'started', ?2, attempts, shown FROM standing WHERE row = ANY (ARRAY(SELECT numbers(?1)))
ON CONFLICT (batch, row) DO UPDATE SET due_ms = excluded.due_ms;

-- A turn

-- name: next_due
SELECT first_due(?, ?, ?);

-- name: end_attempts
SELECT end_attempts(:outcomes, :started, :own, :now);

-- name: known_attempts
SELECT a.row, a.number
FROM json_array_elements(?::json) v JOIN attempt a ON a.row = (v->>0)::int AND a.number = (v->>1)::int;

-- name: states
SELECT coalesce(json_agg(json_build_array(row, state, attempts, duplicate)), '[]')::text
FROM state WHERE row = ANY (ARRAY(SELECT numbers(?)));

-- name: due_starts
SELECT due_starts(?, ?, ?, ?, ?);

-- name: fresh_starts
SELECT fresh_starts(?, ?, ?, ?, ?);

-- name: first_fresh
-- Of a transaction that failed rows may be left that other launchers have passed over.
SELECT first_fresh(id, position, ?2, ?3) FROM target WHERE id = ?1;

-- name: add_intents
SELECT add_intents(:starts, :session, :now);

-- name: set_position
-- Up to the first row that nobody is known to have taken, whatever this launcher has passed over.
UPDATE target SET position = greatest(position, least(?1, first_fresh(id, position, NULL, '[]') - 1)) WHERE id = ?2;

-- name: rows_of_runs
SELECT run, owner, key FROM rows_of_runs(?);

-- Rows

-- name: lock_batch
-- Launchers at work write events meanwhile, which refer to it.
SELECT 1 FROM batches WHERE id = this_batch() FOR NO KEY UPDATE;

-- name: add_row
COPY rows (number, line, key, target, job, auto, problem) FROM STDIN;

-- name: add_content
COPY contents (row, digest, body, says) FROM STDIN;

-- name: index_keys
SET CONSTRAINTS row_key IMMEDIATE;

-- name: index_due
ANALYZE rows, contents;

-- name: add_batch
WITH new AS (
  INSERT INTO batches (uid, name, manifest, digest, rows, options, imported_ms) VALUES (?, ?, ?, '', 0, ?, ?) RETURNING id
)
SELECT set_config('deslaunch.batch', id::text, false)::int FROM new;

-- name: rows_by_key
SELECT 1 FROM rows WHERE batch = this_batch() AND key = ANY (ARRAY(SELECT json_array_elements_text(?::json)))
ORDER BY number FOR UPDATE;
SELECT
  s.key, s.row, s.state, coalesce((SELECT max(a.number) FROM attempt a WHERE a.row = s.row), 0), s.duplicate,
  t.name, j.job_id, CASE WHEN length(c.body) = 0 THEN c.says END, CASE WHEN length(c.body) > 0 THEN c.digest END
FROM standing s
JOIN target t ON t.id = s.target
JOIN job j ON j.id = s.job
JOIN content c ON c.row = s.row
WHERE s.key = ANY (ARRAY(SELECT json_array_elements_text(?1::json)));

-- name: rows_by_number
SELECT r.number FROM row r WHERE r.key = ANY (ARRAY(SELECT json_array_elements_text(?::json))) ORDER BY r.number;

-- name: forget_attempts
INSERT INTO states (row, target, state, corrected) SELECT number, target, 'pending', ?2 FROM row WHERE number = ?1
ON CONFLICT (batch, row) DO UPDATE SET corrected = excluded.corrected, withdrawn = 0;

-- name: mark_copied
INSERT INTO states (row, target, state, due_ms, attempts, shown, duplicate, copied)
SELECT s.row, s.target, s.state, CASE s.state WHEN 'pending' THEN 0 END, s.attempts, s.shown, (s.state = 'started')::int, 1
FROM standing s LEFT JOIN run u ON u.row = s.row AND u.attempt = s.shown
WHERE s.state NOT IN ('sending', 'unknown', 'started') OR s.state = 'started' AND u.finished AND NOT u.success
ON CONFLICT (batch, row) DO UPDATE SET copied = 1, duplicate = greatest(states.duplicate, excluded.duplicate);

-- name: same_rows
-- Other batches of the same bytes in this database.
SELECT name FROM batches WHERE digest = ? AND id <> this_batch() ORDER BY id;

-- name: pending_rows
SELECT 1 FROM rows WHERE batch = this_batch() ORDER BY number FOR UPDATE;
SELECT row FROM standing WHERE state = 'pending' ORDER BY row;

-- name: withdraw_rows
INSERT INTO states (row, target, state, withdrawn)
SELECT row, target, 'withdrawn', 1 FROM standing WHERE row = ANY (ARRAY(SELECT numbers(?)))
ON CONFLICT (batch, row) DO UPDATE SET state = 'withdrawn', due_ms = NULL, withdrawn = 1;

-- name: still_unsent
SELECT 1 FROM rows WHERE batch = this_batch() AND number = ANY (ARRAY(SELECT numbers(?))) ORDER BY number FOR UPDATE;
SELECT s.row FROM standing s
WHERE s.row = ANY (ARRAY(SELECT numbers(?1))) AND s.state IN ('pending', 'withdrawn') AND s.attempts = 0;

-- Reading

-- name: at_work
SELECT DISTINCT coalesce(c.application_name, '')
FROM locks l
LEFT JOIN pg_stat_activity c ON c.pid = l.pid
WHERE l.batch IN (SELECT id FROM batches UNION SELECT -2)
ORDER BY 1;

-- name: batches
SELECT
  name,
  (SELECT count(*) FROM rows r WHERE r.batch = b.id),
  imported_ms,
  (SELECT count(*) FROM locks l WHERE l.batch = b.id),
  (SELECT exit_code FROM sessions s WHERE s.batch = b.id AND ended_ms IS NOT NULL ORDER BY ended_ms DESC LIMIT 1)
FROM batches b ORDER BY id DESC;

-- name: results
SELECT
  v.batch, v.key, v.row, v.target, v.job_id, v.job_name, v.now, v.job_run_id, v.attempts, v.status, v.error,
  v.possible_duplicate::int, utc(v.sent_utc), utc(v.answered_utc),
  v.finished::int, v.success::int, v.status_text,
  -- As DES spells it.
  CASE WHEN v.finished IS NOT NULL THEN (SELECT u.finished_utc FROM run u WHERE u.row = v.row ORDER BY u.attempt DESC LIMIT 1) END,
  v.output_files,
  CASE WHEN :with_rows THEN (SELECT c.says FROM content c WHERE c.row = v.row) END
FROM (
  SELECT *, CASE r.state WHEN 'sending' THEN :open ELSE r.state END AS now
  FROM results r
  WHERE r.batch = (SELECT name FROM batch) AND r.row = ANY (ARRAY(SELECT numbers(:rows)))
) v
WHERE (:states::json IS NULL OR v.now = ANY (ARRAY(SELECT json_array_elements_text(:states::json))))
  AND (:run::text IS NULL OR v.state = 'started' AND :run = CASE
        WHEN v.finished IS NOT TRUE THEN 'unfinished' WHEN v.success THEN 'succeeded' ELSE 'failed' END)
ORDER BY v.row;

-- name: find_rows
SELECT number FROM row WHERE key = :text
UNION
SELECT row FROM attempt WHERE lower(:text) IN (lower(job_run_id), lower(found_run))
UNION
SELECT c.row FROM content c
WHERE position(:inner IN c.says) > 0 AND json_typeof(c.says::json->'parameters') = 'object' AND EXISTS (
  SELECT 1 FROM json_each(c.says::json->'parameters') p
  WHERE :text = CASE json_typeof(p.value) WHEN 'object' THEN p.value->>'valueStringEncoded' ELSE p.value#>>'{}' END
)
ORDER BY 1 LIMIT 100;

-- name: unknown_rows
SELECT
  s.row, s.key, t.name, j.job_id, j.name, c.says, coalesce(a.error, ''), a.job_run_id,
  min(d.sent_ms + d.ahead_ms), max(d.sent_ms + d.timeout_ms + d.ahead_ms)
FROM (SELECT row, shown, key, target, job FROM standing
      WHERE row > :after AND (state = 'unknown' OR state = 'sending' AND :open = 'unknown') ORDER BY row LIMIT :limit) s
JOIN target t ON t.id = s.target
JOIN job j ON j.id = s.job
JOIN content c ON c.row = s.row
JOIN attempt a ON a.row = s.row AND a.number = s.shown
JOIN LATERAL (
  SELECT d.sent_ms, n.timeout_ms, coalesce((n.clocks::json->>t.name)::float8 * 1000, 0)::bigint AS ahead_ms
  FROM attempt d JOIN session n ON n.id = d.session
  WHERE d.row = s.row AND coalesce(d.result, 'unknown') = 'unknown' AND d.finding IS NULL
) d ON true
GROUP BY 1, 2, 3, 4, 5, 6, 7, 8 ORDER BY s.row;

-- name: drop_log
DROP TABLE IF EXISTS pg_temp.log;

-- name: make_log
CREATE TEMP TABLE log (id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, at_ms bigint, kind text, session int, row int, number int);
INSERT INTO log (at_ms, kind, session, row, number)
SELECT * FROM (
  SELECT coalesce(answered_ms, sent_ms) AS at_ms, 'attempt' AS kind, session, row, number FROM attempt
  UNION ALL SELECT began_ms, 'began', id, NULL, NULL FROM session
  UNION ALL SELECT ended_ms, 'ended', id, NULL, NULL FROM session WHERE ended_ms IS NOT NULL
  UNION ALL SELECT at_ms, 'event', session, NULL, id FROM event
  UNION ALL SELECT at_ms, 'resolution', NULL, row, id FROM resolution
  UNION ALL SELECT at_ms, 'correction', NULL, row, id FROM correction
) e
WHERE e.at_ms > :after AND (:row::int IS NULL OR e.row = :row)
ORDER BY e.at_ms, e.kind <> 'began', e.kind = 'ended', coalesce(e.row, 0), e.number;

-- name: log
SELECT l.id, l.at_ms, l.kind, l.session, r.key, t.name, (CASE l.kind
  WHEN 'attempt' THEN (
    SELECT json_build_object('attempt', number, 'sentMs', sent_ms, 'result', result, 'status', status, 'jobRunId', job_run_id,
                             'error', error, 'againMs', again_ms)
    FROM attempt a WHERE a.row = l.row AND a.number = l.number)
  WHEN 'began' THEN (SELECT json_build_object('host', host, 'pid', pid, 'options', options::json, 'targets', targets::json)
                     FROM session WHERE id = l.session)
  WHEN 'ended' THEN (SELECT json_build_object('exitCode', exit_code, 'stops', stops::json) FROM session WHERE id = l.session)
  WHEN 'event' THEN (SELECT json_build_object('event', kind, 'target', target, 'text', text) FROM event WHERE id = l.number)
  WHEN 'resolution' THEN (SELECT json_build_object('as', finding, 'jobRunId', job_run_id, 'note', note)
                          FROM resolution WHERE id = l.number)
  WHEN 'correction' THEN (SELECT json_build_object('file', file, 'said', said::json) FROM correction WHERE id = l.number)
END)::text
FROM pg_temp.log l LEFT JOIN row r ON r.number = l.row LEFT JOIN target t ON t.id = r.target
WHERE l.id > :after ORDER BY l.id LIMIT :limit;

-- Runs

-- name: record_run
INSERT INTO runs (row, attempt, asked_ms, refused, finished, success, status_text, created_utc, finished_utc, output_files)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
ON CONFLICT (batch, row, attempt) DO UPDATE SET
  asked_ms = excluded.asked_ms, refused = excluded.refused, finished = excluded.finished, success = excluded.success,
  status_text = excluded.status_text, created_utc = excluded.created_utc, finished_utc = excluded.finished_utc,
  output_files = excluded.output_files;

-- name: report_responses
SELECT CASE WHEN ms < 1000 THEN ms WHEN ms < 10000 THEN ms / 10 * 10 ELSE ms / 100 * 100 END AS took, count(*)
FROM (
  SELECT greatest(0, answered_ms - sent_ms) AS ms
  FROM attempt
  WHERE answered_ms IS NOT NULL AND (status IS NOT NULL OR result = 'started')
) a
GROUP BY 1;

-- name: report_run_times
SELECT CASE WHEN ms < 1000 THEN ms WHEN ms < 10000 THEN ms / 10 * 10 ELSE ms / 1000 * 1000 END AS took, count(*)
FROM (
  SELECT greatest(0, round(extract(epoch FROM time_of(finished_utc) - time_of(created_utc)) * 1000))::bigint AS ms
  FROM run
  WHERE finished
) r
WHERE ms IS NOT NULL
GROUP BY 1;
