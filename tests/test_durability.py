"""The ledger is the batch: one file, at any time, whatever becomes of the manifest."""

from __future__ import annotations

import os
import shutil
import sqlite3
import stat
import threading
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pytest
from stage import DESLAUNCH, QUICK, TOKEN, ended, fault, rejected_row, row, unprivileged, workplace

if TYPE_CHECKING:
    import subprocess

    from stage import Workplace

ROWS: Final = 20
HELD: Final = fault("hold", **{"from": 5})
"""The first four starts get a response; the others when the test says so."""

BY_STATE: Final = "SELECT state, count(*) FROM results GROUP BY 1 ORDER BY 1"
COLUMNS: Final = (
    *("batch", "key", "row", "target", "job_id", "job_name", "state", "job_run_id", "attempts"),
    *("status", "error", "possible_duplicate", "sent_utc", "answered_utc", "finished", "success"),
    *("status_text", "finished_utc", "output_files"),
)


def select(ledger: Path, sql: str) -> list[tuple[Any, ...]]:
    """Return what a user's own SQL finds, as any SQLite tool would."""
    with closing(sqlite3.connect(f"file:{ledger}?mode=ro", uri=True)) as connection:
        return connection.execute(sql).fetchall()


def test_after_a_clean_end_one_file_is_the_batch(place: Workplace) -> None:
    place.manifest(ROWS)
    done = place.run("run", "night.jsonl")

    assert done.returncode == 0, done.stderr
    left = {path.name for path in place.folder.iterdir() if path.name.startswith("night.")}
    assert left - {"night.ledger.db.lock"} == {"night.jsonl", "night.ledger.db"}
    assert stat.S_IMODE(place.ledger.stat().st_mode) == 0o600
    assert select(place.ledger, "PRAGMA journal_mode") == [("delete",)]
    assert select(place.ledger, BY_STATE) == [("started", ROWS)]
    assert select(place.ledger, "PRAGMA integrity_check") == [("ok",)]
    place.judge().assert_promises(most_unknown=0)


def test_the_view_for_users_has_its_columns(place: Workplace) -> None:
    place.manifest(2)
    place.run("run", "night.jsonl")

    with closing(sqlite3.connect(place.ledger)) as connection:
        cursor = connection.execute("SELECT * FROM results WHERE key = 'row-2'")
        names = tuple(column[0] for column in cursor.description)
        (found,) = (dict(zip(names, values, strict=True)) for values in cursor)

    runs = place.simulator.runs
    assert names == COLUMNS
    assert (found["row"], found["state"], found["target"]) == (2, "started", "default")
    assert found["job_run_id"] in {run.job_run_id for run in runs}
    assert (found["possible_duplicate"], found["finished"], found["attempts"]) == (0, None, 1)
    assert str(found["sent_utc"]) <= str(found["answered_utc"])
    assert str(found["sent_utc"]).endswith("Z")


def test_a_ledger_is_read_while_a_launch_goes_on(tmp_path: Path) -> None:
    with workplace(tmp_path, HELD) as place:
        place.manifest(ROWS)
        process = place.start("run", "night.jsonl", "--concurrency", "6")
        assert place.wait_for_runs(process, 10)
        before = dict(select(place.ledger, BY_STATE))
        told = place.json("status", "night.ledger.db")
        place.portal.call(place.simulator.release)
        place.simulator.use(None)
        done = ended(process)

    assert done.returncode == 0, done.stderr
    assert before == {"pending": 10, "sending": 6, "started": 4}
    assert (told["started"], told["inFlight"], told["unknown"], told["pending"]) == (4, 6, 0, 10)
    assert select(place.ledger, BY_STATE) == [("started", ROWS)]


def test_a_second_launcher_is_refused_and_a_kill_frees_the_ledger(tmp_path: Path) -> None:
    with workplace(tmp_path, HELD) as place:
        place.manifest(ROWS)
        process = place.start("run", "night.jsonl", "--concurrency", "6")
        assert place.wait_for_runs(process, 10)
        refused = place.run("resume", "night.ledger.db")
        requests = place.simulator.requests
        process.kill()
        ended(process)
        place.portal.call(place.simulator.release)
        place.simulator.use(None)
        place.at_rest()
        killed = place.json("status", "night.ledger.db")
        resumed = place.run("resume", "night.ledger.db")

        assert (refused.returncode, requests) == (8, 10), refused.stderr
        assert str(process.pid) in refused.stderr
        assert (killed["started"], killed["inFlight"], killed["unknown"]) == (4, 0, 6)
        assert resumed.returncode == 4, resumed.stderr
        place.judge().assert_promises(most_unknown=6)
        assert place.judge().counts == {"started": 14, "unknown": 6}


def test_a_killed_ledger_is_whole_where_all_its_files_are_copied(tmp_path: Path) -> None:
    with workplace(tmp_path, HELD) as place:
        place.manifest(ROWS)
        process = place.start("run", "night.jsonl", "--concurrency", "6")
        assert place.wait_for_runs(process, 10)
        process.kill()
        ended(process)
        copy = place.folder / "copy"
        copy.mkdir()

        for path in place.folder.glob("night.ledger.db*"):
            shutil.copy(path, copy)

        place.portal.call(place.simulator.release)
        place.at_rest()
        assert place.judge(copy / "night.ledger.db").counts == place.judge().counts
        assert place.judge().counts == {"pending": 10, "started": 4, "unknown": 6}


def test_nothing_needs_the_manifest_after_the_import(tmp_path: Path) -> None:
    script = {
        "faults": [
            {"fault": "reset-after-start", "at": [3]},
        ]
    }

    with workplace(tmp_path, script) as place:
        place.write([row(1), row(2), row(3), rejected_row(4), *map(row, range(5, ROWS + 1))])
        limited = place.run("run", "night.jsonl", "--limit", "6", "--concurrency", "1")
        (place.folder / "night.jsonl").unlink()
        resumed = place.run("resume", "night.ledger.db")
        fix = place.run(
            *("results", "night.ledger.db", "--state", "rejected", "--with-manifest"),
            *("--format", "jsonl"),
        )
        unknown = place.run("status", "night.ledger.db", "--unknown", "-o", "findings.csv")
        place.judge().assert_promises(most_unknown=1)

    assert limited.returncode == 5, limited.stderr
    assert resumed.returncode == 4, resumed.stderr
    assert '"DBGenFrom"' in fix.stdout
    assert '"TradingDate"' in fix.stdout
    assert unknown.returncode == 0, unknown.stderr
    assert "row-3" in (tmp_path / "findings.csv").read_text()


@pytest.mark.parametrize("way", ["stdin", "fifo"])
def test_a_manifest_may_be_a_stream(way: str, place: Workplace) -> None:
    text = place.manifest(ROWS).read_text()
    (place.folder / "night.jsonl").unlink()

    fifo = place.folder / "night.jsonl"
    options: tuple[str, ...] = ("-", "--format", "jsonl", "--ledger", "night.ledger.db")

    if way == "fifo":
        os.mkfifo(fifo)
        options = ("night.jsonl",)

    def launch(*more: str) -> subprocess.CompletedProcess[str]:
        if way == "stdin":
            return place.run("run", *options, *more, stdin=text)

        writer = threading.Thread(target=fifo.write_text, args=(text,))
        writer.start()
        done = place.run("run", *options, *more)
        writer.join(10)
        return done

    assert launch("--limit", "1").returncode == 5
    done = launch("--resume")  # reads it again, to tell it from another manifest
    assert done.returncode == 0, done.stderr
    place.judge().assert_promises(most_unknown=0)
    assert place.judge().counts == {"started": ROWS}


@pytest.mark.parametrize("ending", ["-wal", "-journal"])
def test_the_end_of_an_earlier_batch_is_never_taken_for_ours(ending: str, place: Workplace) -> None:
    left = Path(f"{place.ledger}{ending}")
    left.write_bytes(b"the end of an earlier batch")
    place.manifest(ROWS)
    done = place.run("run", "night.jsonl")

    assert (done.returncode, place.simulator.requests) == (7, 0), done.stderr
    assert left.read_bytes() == b"the end of an earlier batch"
    assert left.name in done.stderr
    assert "move it to where its ledger is now" in done.stderr
    assert not place.ledger.exists()


def test_a_half_made_import_is_made_anew(place: Workplace) -> None:
    Path(f"{place.ledger}.new").write_bytes(b"half")
    place.manifest(ROWS)

    assert place.run("run", "night.jsonl").returncode == 0
    assert not Path(f"{place.ledger}.new").exists()
    place.judge().assert_promises(most_unknown=0)


def test_a_ledger_that_exists_is_left_alone(place: Workplace) -> None:
    place.manifest(ROWS)
    place.run("run", "night.jsonl", "--limit", "3")
    before = place.ledger.read_bytes()
    again = place.run("run", "night.jsonl")

    assert (again.returncode, place.simulator.requests) == (7, 3)
    assert "deslaunch resume night.ledger.db" in again.stderr
    assert place.ledger.read_bytes() == before


def test_a_ledger_is_readable_in_a_folder_that_is_not_writable(place: Workplace) -> None:
    place.manifest(ROWS)
    place.run("run", "night.jsonl", "--limit", "3", *QUICK)
    archive = place.folder / "archive"
    archive.mkdir()
    shutil.copy(place.ledger, archive)
    (archive / "night.ledger.db").chmod(0o400)
    archive.chmod(0o500)

    try:
        done = place.run("status", "archive/night.ledger.db", "--json", wrap=unprivileged())
        results = place.run("results", "archive/night.ledger.db", wrap=unprivileged())
    finally:
        archive.chmod(0o700)

    assert (done.returncode, results.returncode) == (0, 0), done.stderr + results.stderr
    assert len(results.stdout.splitlines()) == ROWS + 1
    assert [path.name for path in archive.iterdir()] == ["night.ledger.db"]


def test_no_secret_is_in_a_ledger(place: Workplace) -> None:
    place.manifest(ROWS)
    place.run("run", "night.jsonl")

    for path in place.folder.glob("night.ledger.db*"):
        assert TOKEN.encode() not in path.read_bytes()


def test_an_ignored_interrupt_stays_ignored(tmp_path: Path) -> None:
    with workplace(tmp_path, HELD) as place:
        place.manifest(ROWS)
        ignoring = ("sh", "-c", 'trap "" INT; exec "$@"', "sh")
        process = place.start("run", "night.jsonl", "--concurrency", "6", wrap=ignoring)
        assert place.wait_for_runs(process, 10)
        process.send_signal(2)
        place.portal.call(place.simulator.release)
        place.simulator.use(None)
        done = ended(process)

    assert done.returncode == 0, done.stderr
    assert DESLAUNCH in str(done.args)


def test_a_launch_whose_ledger_is_replaced_goes_on_with_the_rescued(tmp_path: Path) -> None:
    with workplace(tmp_path, {"latency": 0.25}) as place:
        place.manifest(ROWS)
        launch = place.start("run", "night.jsonl", "--concurrency", "2")
        assert place.wait_for_runs(launch, 3)
        shutil.copy(place.ledger, tmp_path / "copy")
        (tmp_path / "copy").replace(place.ledger)
        done = ended(launch)
        rescued = f"{place.ledger}.rescued"
        assert f"send the remaining rows: deslaunch resume {rescued}\n" in done.stderr
        assert (done.returncode, place.run("resume", rescued).returncode) == (7, 0)
        assert len(place.simulator.runs) == ROWS


def test_a_ledger_at_work_is_exported_whole(tmp_path: Path) -> None:
    with workplace(tmp_path, HELD) as place:
        place.manifest(ROWS)
        launch = place.start("run", "night.jsonl", "--concurrency", "4")
        assert place.wait_for_runs(launch, 8)
        done = place.run(
            "export", "night.ledger.db", "copy.db", wrap=("sh", "-c", 'umask 0; "$@"', "sh")
        )
        told = (
            f"copy.db: a copy of {place.ledger}; if that is lost, resume this with --accept-copy\n"
        )
        assert (done.returncode, done.stderr) == (0, told)
        place.portal.call(place.simulator.release)
        place.simulator.use(None)
        assert ended(launch).returncode == 0

        copy = tmp_path / "copy.db"
        assert stat.S_IMODE(copy.stat().st_mode) == 0o600
        assert select(copy, "PRAGMA integrity_check") + select(copy, "PRAGMA journal_mode") == [
            ("ok",),
            ("delete",),
        ]
        stands = place.json("status", "copy.db")
        assert (stands["rows"], stands["started"], stands["unknown"]) == (ROWS, 4, 4)
        assert len(place.run("results", "copy.db").stdout.splitlines()) == ROWS + 1
        assert place.run("resume", "copy.db").returncode == 7
        place.judge().assert_promises(most_unknown=0)
        assert not list(tmp_path.glob("*.new"))


@pytest.mark.parametrize("taken", ["night.jsonl", "night.ledger.db", "new.db-wal", "gone/new.db"])
def test_an_export_replaces_nothing(place: Workplace, taken: str) -> None:
    place.manifest(2)
    place.run("run", "night.jsonl")
    (place.folder / "new.db-wal").write_text("the end of an earlier batch")
    before = {path.name: path.read_bytes() for path in place.folder.glob("n*.*")}
    done = place.run("export", "night.ledger.db", taken.removesuffix("-wal"))

    assert done.returncode == (7 if "gone" in taken else 2)
    assert ("No such file" if "gone" in taken else f"{taken}: exists already") in done.stderr
    assert {path.name: path.read_bytes() for path in place.folder.glob("n*.*")} == before


def test_an_export_that_does_not_fit_leaves_nothing(place: Workplace) -> None:
    place.manifest(200)
    place.run("run", "night.jsonl")
    done = place.run("export", "night.ledger.db", "copy.db", wrap=("prlimit", "--fsize=20000"))

    assert done.returncode == 7
    assert not list(place.folder.glob("copy.db*"))
