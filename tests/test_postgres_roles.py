"""Promise: a database that is set up as `deslaunch help postgres` says lets each do what it says.

The page's SQL is run as it stands there.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Final

import psycopg
import pytest
from commands import call
from postgres import PASSWORD
from stage import ended, fault, invalid_row, row, workplace

import deslaunch

if TYPE_CHECKING:
    from collections.abc import Iterator

    from blockbuster import BlockBuster
    from postgres import Server

PAGE: Final = (Path(deslaunch.__file__).parent / "help/postgres.md").read_text("utf-8")
ROLES: Final = ("launchers", "readers", "nightly", "auditor")
SETUP, SELECT, REMOVE = re.findall(r"(?ms)^```sql\n(.*?)^```$", PAGE)
ROWS: Final = 40


class Database:
    """A database of somebody who is no launcher."""

    def __init__(self, server: Server, url: str) -> None:
        self._server = server
        self._name = url.rpartition("/")[2]
        self.sql(f"ALTER DATABASE {self._name} OWNER TO postgres")

    def sql(self, statements: str) -> list[tuple[object, ...]]:
        """Run statements as superuser; return the rows of the last one."""
        return self._server.sql(statements, database=self._name)

    def set_up(self) -> None:
        """Do what the page says."""
        self.sql(call("upgrade", "--sql").out)
        self.sql(SETUP)

        for role in ("nightly", "auditor"):
            self.sql(f"ALTER ROLE {role} PASSWORD '{PASSWORD}'")

    def place(self, role: str, batch: str = "night") -> str:
        return f"{self._server.url_of(self._name, role)}#{batch}"


@pytest.fixture
def exports(postgres: Server, database: str, no_blocking_calls: BlockBuster) -> Iterator[Database]:
    no_blocking_calls.deactivate()  # a command imports while it runs
    made = Database(postgres, database)
    yield made

    for role in ROLES:
        if made.sql(f"SELECT 1 FROM pg_roles WHERE rolname = '{role}'"):
            made.sql(f"DROP OWNED BY {role}")
            made.sql(f"DROP ROLE {role}")


@pytest.mark.slow
def test_a_launcher_may_do_all_that_a_batch_needs_and_cannot_remove_it(
    exports: Database, tmp_path: Path
) -> None:
    exports.set_up()
    ledger = exports.place("nightly")

    with workplace(tmp_path, fault("cut-body", 3)) as place:
        rows = [invalid_row(n) if n == 2 else row(n) for n in range(1, ROWS + 1)]
        place.write(rows, "night.jsonl")
        place.write([row(2)], "fix.jsonl")
        begun = place.run(
            *("run", "night.jsonl", "--ledger", ledger, "--resume", "--join"),
            *("--skip-invalid", "--limit", "10", "--yes"),
        )
        unknown = place.judge(ledger).unknown
        judged = [
            place.run(
                "resolve", ledger, *(f"row-{n}" for n in unknown), "--not-started", "--early"
            ),
            place.run("resume", ledger, "--corrections", "fix.jsonl", "--yes"),
            place.run("watch", ledger),
            place.run("log", ledger),
            place.run("report", ledger, "-o", "night.html"),
        ]
        said = [(ended.returncode, ended.stderr) for ended in judged]

        assert (begun.returncode, len(unknown)) == (5, 1), begun.stderr
        assert [code for code, _ in said] == [0] * 5, said
        assert place.judge(ledger).counts == {"started": ROWS}

    with psycopg.connect(ledger.partition("#")[0]) as connection:
        for statement in (
            REMOVE,
            "DELETE FROM deslaunch.attempts",
            "DROP SCHEMA deslaunch CASCADE",
        ):
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                connection.execute(statement.encode())

            connection.rollback()


@pytest.mark.slow
def test_a_reader_may_read_also_who_is_at_work_and_write_nothing(
    exports: Database, tmp_path: Path
) -> None:
    exports.set_up()
    ledger, read = exports.place("nightly"), exports.place("auditor")

    with workplace(tmp_path, fault("hold", 5)) as place:
        place.manifest(ROWS)
        launcher = place.start("run", "night.jsonl", "--ledger", ledger, "--yes")
        assert place.wait_for_runs(launcher, ROWS)
        listed = call("status", read)
        database = call("status", read.partition("#")[0], "--json").json
        refused = [
            place.run("resolve", read, "row-1", "--not-started", "--early"),
            place.run("resume", read, "--join", "--yes"),
            place.run("run", "night.jsonl", "--ledger", exports.place("auditor", "other"), "--yes"),
        ]
        launcher.kill()
        launcher.communicate()
        reading = [
            place.run("results", read),
            place.run("log", read),
            place.run("status", read, "--unknown"),
            place.run("report", read, "-o", "night.html"),
        ]

    assert f"at work: process {launcher.pid} on " in listed.out
    assert database["batches"][0]["launchers"] == 1
    assert [one.returncode for one in refused] == [7] * 3
    assert all("deslaunch help postgres" in one.stderr for one in refused)
    assert [one.returncode for one in reading] == [0] * 4


def test_the_view_may_be_read_without_the_tables(exports: Database) -> None:
    exports.set_up()
    exports.sql("REVOKE SELECT ON ALL TABLES IN SCHEMA deslaunch FROM readers")
    exports.sql("GRANT SELECT ON deslaunch.results TO readers")

    with psycopg.connect(exports.place("auditor").partition("#")[0]) as connection:
        assert connection.execute(SELECT.encode()).fetchall() == []

        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            connection.execute("SELECT * FROM deslaunch.rows")


def test_without_a_grant_it_is_told_where_grants_are(exports: Database) -> None:
    exports.set_up()
    exports.sql("REVOKE USAGE ON SCHEMA deslaunch FROM readers")
    ended = call("status", exports.place("auditor"))

    assert (ended.code, ended.out) == (7, "")
    assert (
        "permission denied for schema deslaunch\n  grants: see: deslaunch help postgres"
        in ended.err
    )


FILL: Final = """
SET search_path = deslaunch;
INSERT INTO batches (name, manifest, digest, rows, options, imported_ms)
VALUES ('{name}', '', '', 0, '{{}}', 0);
SELECT set_config('deslaunch.batch', (SELECT max(id) FROM batches)::text, false);
INSERT INTO targets (name) VALUES ('default');
INSERT INTO jobs (target, job_id) SELECT id, 'j' FROM target;
INSERT INTO rows (number, line, key, target, job, auto)
SELECT n, n, 'row-' || n, target, id, false FROM job, generate_series(1, {rows}) n;
INSERT INTO contents (row, says) SELECT number, '{{}}' FROM row;
INSERT INTO attempts (row, number, session, sent_ms, result, job_run_id)
SELECT number, 1, 1, 0, 'started', gen_random_uuid()::text FROM row;
INSERT INTO job_runs (job_run_id, row) SELECT job_run_id, row FROM attempt;
INSERT INTO states (row, target, state) SELECT number, target, 'unknown' FROM row WHERE number <= 5;
INSERT INTO runs (row, attempt, asked_ms) SELECT number, 1, 0 FROM row;
INSERT INTO sessions (id, host, pid, began_ms, first, options, targets, timeout_ms)
SELECT coalesce(max(id), 0) + 1, 'host', 1, 0, 1, '{{}}', '{{}}', 0 FROM sessions;
INSERT INTO events (at_ms, kind, text) VALUES (0, 'pause', '');
INSERT INTO resolutions (row, attempt, at_ms, finding, note) VALUES (1, 1, 0, 'unknown', '');
INSERT INTO corrections (row, attempt, at_ms, file) VALUES (1, 1, 0, 'fix.csv');
"""


def rows_by_table(exports: Database, batch: int) -> dict[object, object]:
    """Return how many rows each table has of a batch."""
    tables = exports.sql("SELECT tablename FROM pg_tables WHERE schemaname = 'deslaunch'")
    columns = {name: "id" if name == "batches" else "batch" for (name,) in tables}
    del columns["version"]
    count = "SELECT count(*) FROM deslaunch.{} WHERE {} = {}"
    return {name: exports.sql(count.format(name, columns[name], batch))[0][0] for name in columns}


def test_a_batch_is_removed_whole_and_no_other(exports: Database) -> None:
    exports.set_up()

    for name in ("night", "day"):
        exports.sql(FILL.format(name=name, rows=20))

    before = rows_by_table(exports, 1)
    said = exports.sql(REMOVE)

    assert said == [("removed batch night: 20 rows",)]
    assert len(before) == 13
    assert 0 not in before.values()
    assert set(rows_by_table(exports, 1).values()) == {0}
    assert rows_by_table(exports, 2) == before

    with pytest.raises(psycopg.errors.RaiseException, match="there is no batch night"):
        exports.sql(REMOVE)


@pytest.mark.slow
def test_a_batch_at_work_is_not_removed(exports: Database, tmp_path: Path) -> None:
    exports.set_up()
    ledger = exports.place("nightly")

    with workplace(tmp_path, fault("hold", 5)) as place:
        place.manifest(ROWS)
        launcher = place.start("run", "night.jsonl", "--ledger", ledger, "--yes")
        assert place.wait_for_runs(launcher, ROWS)

        with pytest.raises(psycopg.errors.RaiseException, match="at work on batch night"):
            exports.sql(REMOVE)

        place.portal.call(place.simulator.release)
        done = ended(launcher)
        assert done.returncode == 0, done

    exports.sql(REMOVE)
    assert call("status", ledger).code == 7


def test_a_batch_that_the_server_knows_no_statistics_of_is_counted_row_by_row(
    exports: Database,
) -> None:
    exports.set_up()

    for table in ("rows", "attempts", "states", "runs"):
        exports.sql(f"ALTER TABLE deslaunch.{table} SET (autovacuum_enabled = off)")

    exports.sql(FILL.format(name="night", rows=30_000))
    # Each row held against all attempts takes half a minute.
    exports.sql("ALTER ROLE auditor SET statement_timeout = '5s'")
    ended = call("status", exports.place("auditor"), "--json")

    assert ended.code == 0, ended.err
    assert (ended.json["started"], ended.json["unknown"]) == (29_995, 5)
