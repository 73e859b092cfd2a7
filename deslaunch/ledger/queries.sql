-- The ledger's statements, one under each name. A list of rows or keys comes as a JSON array. What a
-- turn reads goes as one: each row that SQLite gives costs a thread the interpreter, and a wait for it.
-- PostgreSQL takes them as they stand here, but for those of postgres_queries.sql; it reads
-- "(SELECT value FROM json_each(?))" as a list of numbers, and with "atom" as one of texts.

-- name: derive
-- A row's state follows from its attempts. The first that applies: one started (rank 5), one open,
-- one in doubt and not resolved, one whose failed run is to be repeated (rank 2: it stays started,
-- with that run), else what its last attempt said that said anything.
-- Attempts that were unsent, throttled or are retried leave the row as it was before, with a time.
-- Beside max(), result and finding are those of the attempt that has the highest rank.
-- Of rows that were started by their first attempt (":simple") only those that have a state need it.
INSERT INTO state (row, target, state, due_ms, retries, attempts, shown, duplicate, corrected)
SELECT
  row,
  target,
  state,
  CASE WHEN rank = 2 OR state NOT IN ('started', 'sending', 'invalid', 'withdrawn') THEN coalesce(
    (SELECT CASE WHEN a.session = current THEN a.again_ms END FROM attempt a
     WHERE a.row = d.row AND a.number > corrected ORDER BY a.number DESC LIMIT 1),
    CASE state WHEN 'pending' THEN 0 END
  ) END,
  CASE WHEN rank <> 2 AND state IN ('started', 'sending') THEN 0 ELSE (
    SELECT count(*) FROM attempt a
    WHERE a.row = d.row AND a.number > corrected AND a.session = current AND a.result = 'retry' AND a.finding IS NULL
  ) END,
  attempts,
  CASE WHEN rank > 1 THEN number ELSE (
    SELECT max(a.number) FROM attempt a WHERE a.row = d.row AND a.number > corrected AND a.result <> 'unsent'
  ) END,
  CASE WHEN rank = 2 THEN copied WHEN state = 'started' AND (copied OR attempts > 1) THEN (
    SELECT copied OR count(*) > 1 FROM attempt a
    WHERE a.row = d.row AND a.result IN ('started', 'failed', 'retry', 'unknown') AND a.finding IS NOT 'notStarted'
      AND a.repeated IS NULL
  ) ELSE 0 END,
  corrected
FROM (
  SELECT *, (SELECT max(id) FROM session) AS current, CASE
    WHEN rank = 5 THEN 'started'
    WHEN rank = 4 THEN 'sending'
    WHEN rank = 3 THEN 'unknown'
    WHEN rank = 2 THEN 'started'
    WHEN withdrawn THEN 'withdrawn'
    WHEN problem IS NOT NULL THEN 'invalid'
    WHEN rank = 1 AND finding IS NULL THEN result
    ELSE 'pending'
  END AS state
  FROM (
    SELECT
      r.number AS row, r.target AS target, r.problem AS problem, coalesce(s.corrected, 0) AS corrected, coalesce(s.withdrawn, 0) AS withdrawn,
      coalesce(s.copied, 0) AS copied,
      a.number AS number, a.result AS result, a.finding AS finding,
      max(1000000 * CASE
        WHEN a.result = 'started' OR a.finding = 'started' THEN CASE WHEN a.repeated THEN 2 ELSE 5 END
        WHEN a.result IS NULL THEN 4
        WHEN a.result = 'unknown' AND a.finding IS NULL THEN 3
        WHEN a.number > coalesce(s.corrected, 0) AND (a.result IN ('rejected', 'failed') OR a.finding IS NOT NULL) THEN 1
        ELSE 0
      END + a.number) / 1000000 AS rank,
      count(CASE WHEN a.result IS NOT 'unsent' THEN a.number END) AS attempts
    FROM row r
    LEFT JOIN state s ON s.row = r.number
    LEFT JOIN attempt a ON a.row = r.number
    WHERE r.number IN (
      SELECT value FROM json_each(:rows) UNION ALL SELECT e.row FROM json_each(:simple) v JOIN state e ON e.row = v.value
    )
    GROUP BY r.number
  )
) d WHERE true
ON CONFLICT (row) DO UPDATE SET
  target = excluded.target, state = excluded.state, due_ms = excluded.due_ms, retries = excluded.retries, attempts = excluded.attempts,
  shown = excluded.shown, duplicate = excluded.duplicate;

-- A session

-- name: begin_session
INSERT INTO session (host, pid, began_ms, options, targets, timeout_ms) VALUES (?, ?, ?, ?, ?, ?);

-- name: last_session
SELECT max(id) FROM session;

-- name: session_at_work
-- A lock that is held in another container names no process: 0.
SELECT pid, host, began_ms FROM session WHERE id = (SELECT max(id) FROM session) AND ended_ms IS NULL AND ?1 IN (0, pid);

-- name: sending_rows
SELECT row FROM attempt WHERE result IS NULL;

-- name: lose_attempts
-- Their launcher is gone: it may have sent them.
UPDATE attempt SET result = 'unknown', error = 'its launcher ended before a response was recorded'
WHERE result IS NULL AND row IN (SELECT value FROM json_each(?));

-- name: make_due
-- What a session may send when it begins; a consent changes no state. A wait goes on, and lasts no
-- longer from now than it was to last in all: the clock may have been set back since.
UPDATE state SET retries = 0, due_ms = CASE
  WHEN state IN ('pending', 'failed')
    OR state = 'rejected' AND ?2
    OR state = 'unknown' AND ?3 AND NOT (SELECT auto FROM row WHERE number = state.row)
  THEN CASE WHEN due_ms > ?1 THEN coalesce((
    SELECT CASE WHEN due_ms < ?1 + again_ms - answered_ms THEN due_ms ELSE ?1 + again_ms - answered_ms END
    FROM attempt WHERE row = state.row ORDER BY number DESC LIMIT 1
  ), 0) ELSE 0 END
END
WHERE state NOT IN ('invalid', 'withdrawn');

-- name: failed_runs
-- Rows whose run failed, and which of them are never repeated without a person's look.
SELECT s.row, s.job, s.auto OR s.duplicate = 1, s.key
FROM standing s JOIN run u ON u.row = s.row AND u.attempt = s.shown
WHERE s.state = 'started' AND u.finished AND NOT u.success ORDER BY s.row;

-- name: repeat_attempts
UPDATE attempt SET repeated = 1
WHERE row IN (SELECT value FROM json_each(?)) AND number = (SELECT s.shown FROM standing s WHERE s.row = attempt.row);

-- name: make_repeats_due
INSERT INTO state (row, target, state, due_ms, attempts, shown)
SELECT row, target, 'started', ?2, attempts, shown FROM standing WHERE row IN (SELECT value FROM json_each(?1))
ON CONFLICT (row) DO UPDATE SET due_ms = excluded.due_ms;

-- name: left_to_repeat
SELECT count(*) FROM state WHERE state = 'started' AND due_ms IS NOT NULL;

-- name: set_target
UPDATE target SET base_url = ?2, org_id = ?3 WHERE name = ?1;

-- name: end_session
UPDATE session SET ended_ms = ?, exit_code = ?, stops = ? WHERE id = ?;

-- name: set_clocks
UPDATE session SET clocks = ? WHERE id = ?;

-- name: add_event
INSERT INTO event (session, at_ms, kind, target, text) VALUES (?, ?, ?, ?, ?);

-- A turn

-- name: end_attempts
-- An outcome ends its own attempt, once, and lifts that attempt's doubt; it outranks a finding.
-- A refusal is taken back where it turned out to be its target's, not the row's. Most are of rows
-- that were started by their first attempt: of these row and jobRunId say all.
INSERT INTO attempt (row, number, session, sent_ms, answered_ms, result, status, job_run_id, error, again_ms)
SELECT
  json_extract(value, '$[0]'), json_extract(value, '$[1]'), :session, :now, :now, json_extract(value, '$[2]'),
  json_extract(value, '$[3]'), json_extract(value, '$[4]'), json_extract(value, '$[5]'), json_extract(value, '$[6]')
FROM json_each(:outcomes)
UNION ALL
SELECT key, 1, :session, :now, :now, 'started', 200, value, '', NULL FROM json_each(:started) WHERE true
ON CONFLICT (row, number) DO UPDATE SET
  answered_ms = excluded.answered_ms, result = excluded.result, status = excluded.status, job_run_id = excluded.job_run_id,
  error = excluded.error, again_ms = excluded.again_ms, finding = NULL, found_run = NULL
WHERE result IS NULL
  OR result = 'unknown' AND excluded.result <> 'unknown'
  OR result = 'rejected' AND excluded.result = 'throttled';

-- name: states
SELECT json_group_array(json_array(s.row, s.state, s.attempts, s.duplicate))
FROM json_each(?) v JOIN state s ON s.row = v.value;

-- name: due_starts
-- Of one job (?4), or of all but those (?5) that are claimed by themselves.
SELECT
  s.row, coalesce((SELECT max(a.number) FROM attempt a WHERE a.row = s.row), 0) + 1, r.key, j.job_id, c.body, c.digest,
  r.auto, s.retries
FROM state s
JOIN row r ON r.number = s.row
JOIN job j ON j.id = r.job
JOIN content c ON c.row = s.row
WHERE s.target = ?1 AND s.due_ms <= ?2
  AND CASE WHEN ?4 IS NULL THEN r.job NOT IN (SELECT value FROM json_each(?5)) ELSE r.job = ?4 END
ORDER BY s.due_ms, s.row LIMIT ?3;

-- name: fresh_starts
SELECT r.number, 1, r.key, j.job_id, c.body, c.digest, r.auto, 0
FROM row r
JOIN job j ON j.id = r.job
JOIN content c ON c.row = r.number
WHERE r.target = ?1 AND r.number > ?2 AND r.problem IS NULL
  AND CASE WHEN ?4 IS NULL THEN r.job NOT IN (SELECT value FROM json_each(?5)) ELSE r.job = ?4 END
  AND NOT EXISTS (SELECT 1 FROM state s WHERE s.row = r.number)
  AND NOT EXISTS (SELECT 1 FROM attempt a WHERE a.row = r.number)
ORDER BY r.number LIMIT ?3;

-- name: add_intents
INSERT INTO attempt (row, number, session, sent_ms)
SELECT key, value, :session, :now FROM json_each(:starts);

-- name: set_position
UPDATE target SET position = ? WHERE id = ?;

-- name: next_due
SELECT (
  SELECT s.due_ms FROM state s JOIN row r ON r.number = s.row
  WHERE s.target = ?1 AND s.due_ms IS NOT NULL
    AND CASE WHEN ?2 IS NULL THEN r.job NOT IN (SELECT value FROM json_each(?3)) ELSE r.job = ?2 END
  ORDER BY s.due_ms LIMIT 1
);

-- name: known_runs
SELECT (SELECT count(*) FROM row) + (SELECT count(job_run_id) FROM attempt);

-- name: run_ids
SELECT row, number, job_run_id FROM attempt
WHERE job_run_id IS NOT NULL AND (row, number) > (?, ?) ORDER BY row, number LIMIT 5000;

-- name: rows_of_runs
-- Of runs in lower case, with the row that each is told for now: the other row that has it.
SELECT lower(a.job_run_id), a.row, r.key
FROM json_each(?) v
JOIN attempt a ON lower(a.job_run_id) = json_extract(v.value, '$[0]') AND a.row <> json_extract(v.value, '$[1]')
JOIN row r ON r.number = a.row;

-- Rows

-- name: lock_batch
-- Nobody else writes to a file.
SELECT 1;

-- name: add_target
INSERT INTO target (name, position) VALUES (?, ?) ON CONFLICT DO NOTHING;

-- name: targets
SELECT id, name, base_url, org_id, position FROM target ORDER BY id;

-- name: add_job
INSERT INTO job (target, job_id) SELECT id, ?2 FROM target WHERE name = ?1 ON CONFLICT DO NOTHING;

-- name: job_number
SELECT t.id, j.id FROM job j JOIN target t ON t.id = j.target WHERE t.name = ? AND j.job_id = ?;

-- name: describe_job
UPDATE job SET name = ?3, parameters = ?4, from_des = ?5
WHERE target = (SELECT id FROM target WHERE name = ?1) AND job_id = ?2;

-- name: forget_job
-- A row of it has no body yet: its rows are checked before the first is sent.
UPDATE job SET parameters = NULL WHERE id = ?;

-- name: jobs
SELECT j.id, t.name, j.job_id, j.name, j.parameters, j.from_des
FROM job j JOIN target t ON t.id = j.target ORDER BY j.id;

-- name: add_row
INSERT INTO row (number, line, key, target, job, auto, problem) VALUES (?, ?, ?, ?, ?, ?, ?);

-- name: add_content
INSERT INTO content (row, digest, body, says) VALUES (?, ?, ?, ?);

-- name: auto_rows
-- The first of each job comes last.
SELECT t.name, j.job_id, r.key
FROM row r JOIN job j ON j.id = r.job JOIN target t ON t.id = r.target
WHERE r.auto AND r.problem IS NULL ORDER BY r.number DESC;

-- name: last_row
SELECT coalesce(max(number), 0) FROM row;

-- name: invalidate_row
UPDATE row SET problem = ?2 WHERE number = ?1;

-- name: empty_content
UPDATE content SET digest = NULL, body = NULL WHERE row = ?;

-- name: drop_repeated_keys
-- An invalid row may name a key that another row has: it is known by its number alone.
UPDATE row SET key = NULL WHERE problem IS NOT NULL AND number NOT IN (
  SELECT coalesce(min(CASE WHEN problem IS NULL THEN number END), min(number))
  FROM row WHERE key IS NOT NULL GROUP BY key
);

-- name: index_keys
CREATE UNIQUE INDEX row_key ON row (key);

-- name: index_due
CREATE INDEX state_due ON state (target, due_ms) WHERE due_ms IS NOT NULL;

-- name: add_batch
INSERT INTO batch (id, uid, name, manifest, digest, rows, options, imported_ms) VALUES (1, ?, ?, ?, '', 0, ?, ?);

-- name: complete_batch
UPDATE batch SET digest = ?, columns = ?, rows = (SELECT count(*) FROM row);

-- name: batch
SELECT name, manifest, digest, columns, rows, options, imported_ms, uid FROM batch;

-- name: last_known
-- What a copy that was made earlier lacks.
SELECT (SELECT coalesce(max(id), 0) FROM session), (SELECT count(*) FROM attempt);

-- name: mark_copied
-- Of every row that may be sent again: also of one whose run failed, which is then left out of those.
INSERT INTO state (row, target, state, due_ms, attempts, shown, duplicate, copied)
SELECT s.row, s.target, s.state, CASE s.state WHEN 'pending' THEN 0 END, s.attempts, s.shown, s.state = 'started', 1
FROM standing s LEFT JOIN run u ON u.row = s.row AND u.attempt = s.shown
WHERE s.state NOT IN ('sending', 'unknown', 'started') OR s.state = 'started' AND u.finished AND NOT u.success
ON CONFLICT (row) DO UPDATE SET copied = 1, duplicate = max(duplicate, excluded.duplicate);

-- name: set_options
UPDATE batch SET options = ?;

-- name: control
SELECT control FROM batch;

-- name: set_control
UPDATE batch SET control = ?;

-- name: rows_by_key
-- Two forms of a row that has no body yet are told apart by what they say.
SELECT
  s.key, s.row, s.state, coalesce((SELECT max(a.number) FROM attempt a WHERE a.row = s.row), 0), s.duplicate,
  t.name, j.job_id, CASE WHEN length(c.body) = 0 THEN c.says END, CASE WHEN length(c.body) > 0 THEN c.digest END
FROM json_each(?) v
JOIN standing s ON s.key = v.value
JOIN target t ON t.id = s.target
JOIN job j ON j.id = s.job
JOIN content c ON c.row = s.row;

-- name: rows_by_number
SELECT r.number FROM json_each(?) v JOIN row r ON r.key = v.value ORDER BY r.number;

-- name: keep_correction
INSERT INTO correction (row, attempt, at_ms, file, said)
SELECT ?1, ?2, ?3, ?4, (SELECT says FROM content WHERE row = ?1);

-- name: keep_addition
INSERT INTO correction (row, attempt, at_ms, file) VALUES (?, 0, ?, ?);

-- name: replace_row
UPDATE row SET target = ?2, job = ?3, auto = ?4, problem = NULL WHERE number = ?1;

-- name: replace_content
UPDATE content SET digest = ?2, body = ?3, says = ?4 WHERE row = ?1;

-- name: forget_attempts
-- A corrected row begins anew: what its earlier form was told says nothing of it.
INSERT INTO state (row, target, state, corrected) SELECT number, target, 'pending', ?2 FROM row WHERE number = ?1
ON CONFLICT (row) DO UPDATE SET corrected = excluded.corrected, withdrawn = 0;

-- name: pending_rows
SELECT row FROM standing WHERE state = 'pending' ORDER BY row;

-- name: withdrawn_rows
SELECT row FROM state WHERE state = 'withdrawn' ORDER BY row;

-- name: withdraw_rows
INSERT INTO state (row, target, state, withdrawn)
SELECT row, target, 'withdrawn', 1 FROM standing WHERE row IN (SELECT value FROM json_each(?))
ON CONFLICT (row) DO UPDATE SET state = 'withdrawn', due_ms = NULL, withdrawn = 1;

-- name: restore_rows
UPDATE state SET withdrawn = 0 WHERE row IN (SELECT value FROM json_each(?));

-- name: unsent_rows
SELECT r.number, r.line, r.key, c.says
FROM row r
JOIN job j ON j.id = r.job
JOIN target t ON t.id = r.target
JOIN content c ON c.row = r.number
JOIN standing s ON s.row = r.number
WHERE r.number > ? AND t.name = ? AND j.job_id = ? AND r.problem IS NULL
  AND s.state IN ('pending', 'withdrawn') AND s.attempts = 0
ORDER BY r.number LIMIT ?;

-- name: still_unsent
SELECT v.value FROM json_each(?) v
JOIN standing s ON s.row = v.value
WHERE s.state IN ('pending', 'withdrawn') AND s.attempts = 0;

-- Findings

-- name: attempts_of_rows
SELECT
  a.row, a.number, a.result, a.finding, a.found_run, a.job_run_id, a.repeated, a.sent_ms + n.timeout_ms
FROM attempt a JOIN session n ON n.id = a.session
WHERE a.row IN (SELECT value FROM json_each(?)) ORDER BY a.row, a.number;

-- name: resolutions_of_rows
SELECT row, attempt, finding FROM resolution WHERE row IN (SELECT value FROM json_each(?));

-- name: owners_of_runs
-- Of runs in lower case: the rows that have them, by DES or by a finding. For "IS TRUE" PostgreSQL
-- hashes the list; it would hold each attempt against all of it.
SELECT lower(coalesce(a.found_run, a.job_run_id)), r.key
FROM attempt a JOIN row r ON r.number = a.row
WHERE (lower(coalesce(a.found_run, a.job_run_id)) IN (SELECT atom FROM json_each(?))) IS TRUE
  AND (a.result = 'started' OR a.finding = 'started');

-- name: find
UPDATE attempt SET finding = ?, found_run = ? WHERE row = ? AND number = ?;

-- name: withhold
-- A row that is in doubt again waits for a consent, though a launcher at work may have had it waiting.
UPDATE state SET due_ms = NULL WHERE state = 'unknown' AND row IN (SELECT value FROM json_each(?));

-- name: keep_resolution
INSERT INTO resolution (row, attempt, at_ms, finding, job_run_id, note) VALUES (?, ?, ?, ?, ?, ?);

-- Reading

-- name: counts
-- As events.Counts has them. What a row's state is is found out once a row, not for each column.
SELECT
  t.name,
  CAST(coalesce(sum(s.rows) FILTER (WHERE s.state = 'started'), 0) AS INTEGER),
  CAST(coalesce(sum(s.rows) FILTER (WHERE s.state = 'failed'), 0) AS INTEGER),
  CAST(coalesce(sum(s.rows) FILTER (WHERE s.state = 'rejected'), 0) AS INTEGER),
  CAST(coalesce(sum(s.rows) FILTER (WHERE s.state = 'unknown' OR s.state = 'sending' AND :open = 'unknown'), 0) AS INTEGER),
  CAST(coalesce(sum(s.rows) FILTER (WHERE s.state = 'invalid'), 0) AS INTEGER),
  CAST(coalesce(sum(s.rows) FILTER (WHERE s.state = 'withdrawn'), 0) AS INTEGER),
  CAST(coalesce(sum(s.rows) FILTER (WHERE s.state = 'pending'), 0) AS INTEGER),
  CAST(coalesce(sum(s.rows) FILTER (WHERE s.state = 'sending' AND :open = 'sending'), 0) AS INTEGER),
  CAST(sum(s.duplicates) AS INTEGER), CAST(sum(s.attempts) AS INTEGER)
FROM (
  SELECT target, state, count(*) AS rows, sum(duplicate) AS duplicates, sum(attempts) AS attempts
  FROM standing GROUP BY 1, 2
) s
JOIN target t ON t.id = s.target GROUP BY t.id, t.name;

-- name: rows_by_state
SELECT job, auto, CASE state WHEN 'sending' THEN :open ELSE state END, count(*) FROM standing GROUP BY 1, 2, 3;

-- name: sessions
SELECT id, host, pid, began_ms, ended_ms, exit_code, stops, options, targets FROM session ORDER BY id;

-- name: results
SELECT
  v.batch, v.key, v.row, v.target, v.job_id, v.job_name, CASE v.state WHEN 'sending' THEN :open ELSE v.state END AS now,
  v.job_run_id, v.attempts, v.status, v.error, v.possible_duplicate, v.sent_utc, v.answered_utc,
  v.finished, v.success, v.status_text, v.finished_utc, v.output_files,
  CASE WHEN :with_rows THEN (SELECT c.says FROM content c WHERE c.row = v.row) END
FROM json_each(:rows) n JOIN results v ON v.row = n.value
WHERE (:states IS NULL OR now IN (SELECT value FROM json_each(:states)))
  AND (:run IS NULL OR v.state = 'started' AND :run = CASE
        WHEN v.finished IS NOT 1 THEN 'unfinished' WHEN v.success = 1 THEN 'succeeded' ELSE 'failed' END)
ORDER BY v.row;

-- name: find_rows
-- By key, by the jobRunId of any attempt, or by a value: only where the row's text holds it at all.
SELECT number FROM row WHERE key = :text
UNION
SELECT row FROM attempt WHERE lower(:text) IN (lower(job_run_id), lower(found_run))
UNION
SELECT c.row FROM content c, json_each(c.says, '$.parameters') p
WHERE instr(c.says, :inner) AND :text = CASE p.type WHEN 'object' THEN json_extract(p.value, '$.valueStringEncoded') ELSE p.value END
ORDER BY 1 LIMIT 100;

-- name: sendable
SELECT s.row, s.attempts + 1, s.key, t.name, j.job_id, c.body, s.auto
FROM standing s
JOIN target t ON t.id = s.target
JOIN job j ON j.id = s.job
JOIN content c ON c.row = s.row
WHERE s.row > :after AND length(c.body) > 0 AND (
  s.state IN ('pending', 'failed')
  OR s.state = 'rejected' AND :rejected
  OR (s.state = 'unknown' OR s.state = 'sending' AND :open = 'unknown') AND :unknown AND NOT s.auto
  OR s.state = 'started' AND :failed_runs AND NOT s.auto AND s.duplicate = 0 AND EXISTS (
    SELECT 1 FROM run u WHERE u.row = s.row AND u.attempt = s.shown AND u.finished AND NOT u.success
  )
)
ORDER BY s.row LIMIT :limit;

-- name: unknown_rows
SELECT
  s.row, s.key, t.name, j.job_id, j.name, c.says, coalesce(a.error, ''), a.job_run_id,
  CAST(min(d.sent_ms + 1000 * coalesce(h.value, 0)) AS INTEGER),
  CAST(max(d.sent_ms + n.timeout_ms + 1000 * coalesce(h.value, 0)) AS INTEGER)
FROM (SELECT row, shown, key, target, job FROM standing
      WHERE row > :after AND (state = 'unknown' OR state = 'sending' AND :open = 'unknown') ORDER BY row LIMIT :limit) s
JOIN target t ON t.id = s.target
JOIN job j ON j.id = s.job
JOIN content c ON c.row = s.row
JOIN attempt a ON a.row = s.row AND a.number = s.shown
JOIN attempt d ON d.row = s.row AND coalesce(d.result, 'unknown') = 'unknown' AND d.finding IS NULL
JOIN session n ON n.id = d.session
LEFT JOIN json_each(n.clocks) h ON h.key = t.name
GROUP BY s.row ORDER BY s.row;

-- name: drop_log
DROP TABLE IF EXISTS temp.log;

-- name: make_log
CREATE TEMP TABLE log AS SELECT * FROM (
  SELECT coalesce(answered_ms, sent_ms) AS at_ms, 'attempt' AS kind, session, row, number FROM attempt
  UNION ALL SELECT began_ms, 'began', id, NULL, NULL FROM session
  UNION ALL SELECT ended_ms, 'ended', id, NULL, NULL FROM session WHERE ended_ms IS NOT NULL
  UNION ALL SELECT at_ms, 'event', session, NULL, id FROM event
  UNION ALL SELECT at_ms, 'resolution', NULL, row, id FROM resolution
  UNION ALL SELECT at_ms, 'correction', NULL, row, id FROM correction
)
WHERE at_ms > :after AND (:row IS NULL OR row = :row)
ORDER BY at_ms, kind <> 'began', kind = 'ended', coalesce(row, 0), number;

-- name: log
SELECT l.rowid, l.at_ms, l.kind, l.session, r.key, t.name, CASE l.kind
  WHEN 'attempt' THEN (
    SELECT json_object('attempt', number, 'sentMs', sent_ms, 'result', result, 'status', status, 'jobRunId', job_run_id,
                       'error', error, 'againMs', again_ms)
    FROM attempt a WHERE a.row = l.row AND a.number = l.number)
  WHEN 'began' THEN (SELECT json_object('host', host, 'pid', pid, 'options', json(options), 'targets', json(targets))
                     FROM session WHERE id = l.session)
  WHEN 'ended' THEN (SELECT json_object('exitCode', exit_code, 'stops', json(stops)) FROM session WHERE id = l.session)
  WHEN 'event' THEN (SELECT json_object('event', kind, 'target', target, 'text', text) FROM event WHERE id = l.number)
  WHEN 'resolution' THEN (SELECT json_object('as', finding, 'jobRunId', job_run_id, 'note', note)
                          FROM resolution WHERE id = l.number)
  WHEN 'correction' THEN (SELECT json_object('file', file, 'said', json(said)) FROM correction WHERE id = l.number)
END
FROM temp.log l LEFT JOIN row r ON r.number = l.row LEFT JOIN target t ON t.id = r.target
WHERE l.rowid > :after ORDER BY l.rowid LIMIT :limit;

-- Runs

-- name: runs_to_ask
SELECT s.row, s.shown, s.key, t.name, j.job_id, coalesce(a.found_run, a.job_run_id)
FROM standing s
JOIN target t ON t.id = s.target
JOIN job j ON j.id = s.job
JOIN attempt a ON a.row = s.row AND a.number = s.shown
LEFT JOIN run u ON u.row = s.row AND u.attempt = s.shown
WHERE s.row > ? AND s.state = 'started' AND u.finished IS NOT TRUE
ORDER BY s.row LIMIT ?;

-- name: record_run
INSERT INTO run (row, attempt, asked_ms, refused, finished, success, status_text, created_utc, finished_utc, output_files)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
ON CONFLICT (row, attempt) DO UPDATE SET
  asked_ms = excluded.asked_ms, refused = excluded.refused, finished = excluded.finished, success = excluded.success,
  status_text = excluded.status_text, created_utc = excluded.created_utc, finished_utc = excluded.finished_utc,
  output_files = excluded.output_files;

-- name: count_runs
SELECT
  count(CASE WHEN u.finished IS TRUE AND u.success IS TRUE THEN 1 END),
  count(CASE WHEN u.finished IS TRUE AND u.success IS NOT TRUE THEN 1 END),
  count(CASE WHEN u.finished IS NOT TRUE AND u.refused IS NOT NULL THEN 1 END),
  count(CASE WHEN u.finished IS NOT TRUE AND u.refused IS NULL THEN 1 END)
FROM standing s LEFT JOIN run u ON u.row = s.row AND u.attempt = s.shown WHERE s.state = 'started';

-- name: run_failures
SELECT f.text, f.runs, r.key
FROM (
  SELECT coalesce(u.status_text, '') AS text, count(*) AS runs, min(u.row) AS first
  FROM standing s JOIN run u ON u.row = s.row AND u.attempt = s.shown
  WHERE s.state = 'started' AND u.finished IS TRUE AND u.success IS NOT TRUE
  GROUP BY 1
) f JOIN row r ON r.number = f.first
ORDER BY f.runs DESC, f.first LIMIT 5;

-- What a report adds up. Durations are in ms; those from a second on are cut to 1 %, so that there
-- are few different ones.

-- name: report_span
SELECT min(sent_ms), max(coalesce(answered_ms, sent_ms)), count(DISTINCT coalesce(answered_ms, sent_ms) / 60000)
FROM attempt
WHERE result IS NOT NULL;

-- name: report_last_change
SELECT max(ms)
FROM (
  SELECT max(coalesce(answered_ms, sent_ms)) AS ms FROM attempt
  UNION ALL SELECT max(asked_ms) FROM run
  UNION ALL SELECT max(at_ms) FROM event
  UNION ALL SELECT max(at_ms) FROM resolution
  UNION ALL SELECT max(at_ms) FROM correction
) changes;

-- name: report_timeline
SELECT
  coalesce(answered_ms, sent_ms) / :width * :width AS begin,
  CASE WHEN result IN ('retry', 'throttled', 'unsent') THEN 'again' ELSE result END AS series, count(*)
FROM attempt
WHERE result IS NOT NULL
GROUP BY 1, 2;

-- name: report_responses
SELECT CASE WHEN ms < 1000 THEN ms WHEN ms < 10000 THEN ms / 10 * 10 ELSE ms / 100 * 100 END AS took, count(*)
FROM (
  SELECT max(0, answered_ms - sent_ms) AS ms
  FROM attempt
  WHERE answered_ms IS NOT NULL AND (status IS NOT NULL OR result = 'started')
)
GROUP BY 1;

-- name: report_run_times
SELECT CASE WHEN ms < 1000 THEN ms WHEN ms < 10000 THEN ms / 10 * 10 ELSE ms / 1000 * 1000 END AS took, count(*)
FROM (
  SELECT CAST(round(max(0.0, julianday(finished_utc) - julianday(created_utc)) * 86400000) AS INTEGER) AS ms
  FROM run
  WHERE finished = 1
)
WHERE ms IS NOT NULL
GROUP BY 1;

-- name: report_again
-- Why starts were left to be sent again; the rarest of very many different ones are left out.
SELECT CASE f.result WHEN 'unsent' THEN 'not sent' ELSE 'HTTP ' || f.status END, f.said, f.starts, r.key
FROM (
  SELECT result, status, substr(error, 1, 300) AS said, count(*) AS starts, min(row) AS first
  FROM attempt
  WHERE result IN ('retry', 'throttled', 'unsent')
  GROUP BY 1, 2, 3
  ORDER BY 4 DESC
  LIMIT 1000
) f JOIN row r ON r.number = f.first
ORDER BY f.starts DESC;

-- name: report_events
SELECT at_ms, kind, target, text FROM event ORDER BY id LIMIT :limit;

-- name: report_is_corrected
SELECT EXISTS (SELECT 1 FROM correction);
