"""This machine's history: what it remembers, and when it keeps rows from being sent twice."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import subprocess
import sys
from contextlib import closing
from typing import TYPE_CHECKING, Any, Final

import pytest
from judge import read_log, row_of
from ledgers import make
from postgres import PASSWORD
from stage import DESLAUNCH, TOKEN, row, unprivileged

from deslaunch.errors import ConfigurationError
from deslaunch.ledger.history import History, Noted
from deslaunch.ledger.ledger import open_ledger

if TYPE_CHECKING:
    from pathlib import Path

    from postgres import Server
    from stage import Workplace


def sent(place: Workplace) -> list[int]:
    """Return the numbers of the rows that the server started, sorted."""
    return sorted(row_of(run) for run in read_log(place.log))


def begun(place: Workplace, rows: int = 6, limit: int = 2) -> None:
    """Leave an unfinished batch."""
    place.manifest(rows)
    assert place.run("run", "night.jsonl", "--limit", str(limit), "--yes").returncode == 5


# An older copy.


def test_an_older_copy_that_was_put_back_is_refused(place: Workplace) -> None:
    begun(place)
    backup = place.folder / "backup.db"
    shutil.copy(place.ledger, backup)
    assert place.run("resume", "night.ledger.db", "--limit", "3", "--yes").returncode == 5
    shutil.copy(backup, place.ledger)

    refused = place.run("resume", "night.ledger.db", "--yes")
    assert refused.returncode == 7
    assert "is an older copy: it lacks 3 attempts" in refused.stderr
    assert sent(place) == [1, 2, 3, 4, 5]

    accepted = place.run("resume", "night.ledger.db", "--accept-copy", "--yes")
    assert accepted.returncode == 0
    marked = (
        "what it starts now may have been started already, and is marked as a possible duplicate"
    )
    assert marked in accepted.stderr
    judge = place.judge()
    assert [line["possibleDuplicate"] for line in judge.lines] == [False] * 2 + [True] * 4
    assert place.run("resume", "night.ledger.db", "--yes").returncode == 0, "it is the batch now"


def test_a_copy_beside_the_one_that_is_used_is_refused(place: Workplace) -> None:
    begun(place)
    copied = place.folder / "december"
    copied.mkdir()
    shutil.copy(place.ledger, copied / "night.ledger.db")

    refused = place.run("resume", "december/night.ledger.db", "--yes")
    assert refused.returncode == 7
    assert f"is a copy of {place.ledger}" in refused.stderr
    assert place.run("resume", "december/night.ledger.db", "--accept-copy", "--yes").returncode == 0
    assert place.run("resume", "night.ledger.db", "--yes").returncode == 7, "now this is the copy"
    assert sent(place) == [1, 2, 3, 4, 5, 6]


def test_a_ledger_that_was_moved_is_no_copy(place: Workplace) -> None:
    begun(place)
    place.ledger.rename(place.folder / "moved.ledger.db")

    assert place.run("resume", "moved.ledger.db", "--yes").returncode == 0
    (place.folder / "link.ledger.db").symlink_to("moved.ledger.db")
    assert place.run("resume", "link.ledger.db", "--yes").returncode == 0
    assert sent(place) == [1, 2, 3, 4, 5, 6]


def test_an_exported_copy_is_refused_on_another_machine(place: Workplace) -> None:
    begun(place)
    place.run("export", "night.ledger.db", "copy.ledger.db")
    assert place.run("resume", "night.ledger.db", "--limit", "3", "--yes").returncode == 5
    place.environment["DESLAUNCH_STATE_DIR"] += "-of-another"
    place.ledger.unlink()

    refused = place.run("resume", "copy.ledger.db", "--yes")
    assert refused.returncode == 7
    assert "copy.ledger.db: is a copy that was exported 2" in refused.stderr
    assert sent(place) == [1, 2, 3, 4, 5]
    assert "is a copy that was exported" in place.run("status", "copy.ledger.db").stderr

    assert place.run("resume", "copy.ledger.db", "--accept-copy", "--limit", "3").returncode == 5
    shutil.rmtree(place.environment["DESLAUNCH_STATE_DIR"])
    assert place.run("resume", "copy.ledger.db", "--yes").returncode == 0, "it was accepted"
    lines = place.judge(place.folder / "copy.ledger.db").lines
    assert [line["possibleDuplicate"] for line in lines] == [False] * 2 + [True] * 4


def test_a_copy_is_believed_to_be_one_where_history_knows_nothing(place: Workplace) -> None:
    begun(place)
    shutil.copy(place.ledger, place.folder / "copy.ledger.db")
    shutil.rmtree(place.environment["DESLAUNCH_STATE_DIR"])
    place.ledger.unlink()

    done = place.run("resume", "copy.ledger.db", "--accept-copy", "--yes")
    assert done.returncode == 0
    assert "copy.ledger.db: is resumed as a copy; what it starts now may" in done.stderr
    lines = place.judge(place.folder / "copy.ledger.db").lines
    assert [line["possibleDuplicate"] for line in lines] == [False] * 2 + [True] * 4


# A second batch.


def test_a_second_batch_of_an_unfinished_manifest_is_refused(place: Workplace) -> None:
    begun(place)
    refused = place.run("run", "night.jsonl", "--ledger", "other.ledger.db", "--yes")

    assert refused.returncode == 7
    assert "2 attempts made, 4 rows pending" in refused.stderr
    assert f"deslaunch resume {place.ledger}" in refused.stderr
    assert not (place.folder / "other.ledger.db").exists()

    again = place.run("run", "night.jsonl", "--ledger", "other.ledger.db", "--again", "--yes")
    assert again.returncode == 0
    left = f"warning: {place.ledger} is given up: its 4 pending rows will not be sent, unless you"
    assert f"{left} resume it: deslaunch resume {place.ledger} --accept-copy\n" in again.stderr
    third = place.run("run", "night.jsonl", "--ledger", "third.ledger.db", "--yes")
    assert third.returncode == 0, "the first was given up, and the second is finished"
    assert "given up" not in third.stderr
    assert sent(place) == sorted([1, 2, *range(1, 7), *range(1, 7)])


def test_a_batch_that_was_given_up_is_not_gone_on_with_silently(place: Workplace) -> None:
    begun(place)
    second = ("run", "night.jsonl", "--ledger", "other.ledger.db", "--again", "--yes")
    assert place.run(*second).returncode == 0
    why = f"was given up: a second batch of its rows, {place.folder / 'other.ledger.db'}, was begun"

    status = place.run("status", "night.ledger.db")
    assert (why in status.stderr, "resume night" in status.stdout + status.stderr) == (True, False)
    refused = place.run("resume", "night.ledger.db", "--yes")
    assert (refused.returncode, why in refused.stderr) == (7, True)
    assert place.run("run", "night.jsonl", "--resume", "--yes").returncode == 7
    assert len(sent(place)) == 2 + 6

    accepted = place.run("resume", "night.ledger.db", "--accept-copy", "--yes")
    assert (accepted.returncode, "4 possible duplicates" in accepted.stderr) == (0, True)
    assert "given up" not in place.run("history").stdout


def test_a_copy_that_is_changed_is_called_one(place: Workplace) -> None:
    begun(place)
    shutil.copy(place.ledger, place.folder / "copy.ledger.db")
    done = place.run("withdraw", "copy.ledger.db", "row-6")

    assert f"is a copy of {place.ledger}" in done.stderr
    assert "resume copy" not in done.stderr


def test_a_ledger_that_is_gone_is_asked_for(place: Workplace) -> None:
    begun(place)
    place.ledger.unlink()
    refused = place.run("run", "night.jsonl", "--yes")

    assert refused.returncode == 7
    assert "its ledger is gone: put it back" in refused.stderr
    assert place.run("run", "night.jsonl", "--again", "--yes").returncode == 0


def test_withdrawn_rows_finish_a_batch(place: Workplace) -> None:
    begun(place)
    place.run("withdraw", "night.ledger.db", "--all-pending")

    done = place.run("run", "night.jsonl", "--ledger", "other.ledger.db", "--yes")
    assert done.returncode == 0


def test_the_ledgers_beside_it_tell_where_history_is_lost(place: Workplace) -> None:
    begun(place)
    shutil.rmtree(place.environment["DESLAUNCH_STATE_DIR"])

    refused = place.run("run", "night.jsonl", "--ledger", "other.ledger.db", "--yes")
    assert (refused.returncode, "is unfinished" in refused.stderr) == (7, True)


def test_nights_of_the_same_rows_raise_no_alarm(place: Workplace) -> None:
    place.manifest(2)

    for night in ("monday", "tuesday", "wednesday"):
        done = place.run("run", "night.jsonl", "--ledger", f"{night}.ledger.db", "--yes")
        assert done.returncode == 0
        assert ("these rows were last started" in done.stderr) == (night != "monday")


def test_other_rows_at_another_place_raise_no_alarm(place: Workplace) -> None:
    begun(place)
    place.write([row(7)], "more.jsonl")

    assert place.run("run", "more.jsonl", "--yes").returncode == 0


def test_a_batch_of_which_nothing_was_sent_raises_no_alarm(place: Workplace) -> None:
    place.manifest(2)
    assert place.run("run", "night.jsonl", "--yes", token="wrong").returncode == 6

    assert place.run("run", "night.jsonl", "--ledger", "b.ledger.db", "--yes").returncode == 0


def test_a_batch_that_could_not_reach_des_raises_no_alarm(place: Workplace) -> None:
    place.manifest(3)
    (place.folder / "jobs.json").write_text(place.run("jobs", "--json").stdout)
    reached = place.environment["DES_BASE_URL"]
    place.environment["DES_BASE_URL"] = "http://127.0.0.1:9"
    done = place.run("run", "night.jsonl", "--schema", "jobs.json", "--yes", "--max-wait", "0.1")
    assert done.returncode == 5
    place.environment["DES_BASE_URL"] = reached
    place.ledger.unlink()

    assert place.run("run", "night.jsonl", "--yes").returncode == 0


# What is refused stays refused, and other ways to the same ledger are none.

SECOND: Final = """
import asyncio, os, sys, deslaunch

async def confirm(plan):
    first = await asyncio.create_subprocess_exec(*sys.argv[1:])
    await first.wait()
    return True

async def main():
    async with deslaunch.DesClient(os.environ["DES_BASE_URL"], token=deslaunch.EnvToken()) as des:
        await deslaunch.launch("night.jsonl", des, ledger="second.ledger.db", confirm=confirm)

asyncio.run(main())
"""


def test_what_began_while_a_person_thought_is_seen(place: Workplace) -> None:
    place.manifest(6)
    (place.folder / "second.py").write_text(SECOND)
    first = (DESLAUNCH, "run", "night.jsonl", "--limit", "3", "--yes")
    environment = place.environment | {"DES_TOKEN": TOKEN}
    done = subprocess.run(
        [sys.executable, "second.py", *first],
        cwd=place.folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert "UnfinishedBatch" in done.stderr

    cron = ("run", "night.jsonl", "--ledger", "second.ledger.db", "--resume", "--yes")
    assert place.run(*cron).returncode == 7
    assert place.run("resume", "second.ledger.db", "--yes").returncode == 7
    assert sent(place) == [1, 2, 3]
    assert place.run(*cron, "--again").returncode == 0


def test_a_second_name_of_the_same_file_is_no_copy(place: Workplace) -> None:
    begun(place)
    moved = place.ledger.rename(place.folder / "moved.ledger.db")
    place.ledger.symlink_to(moved)

    assert place.run("resume", "moved.ledger.db", "--yes").returncode == 0


def test_what_is_done_to_a_copy_says_nothing_of_the_batch(place: Workplace) -> None:
    begun(place)
    copied = place.folder / "copy.db"
    shutil.copy(place.ledger, copied)
    assert place.run("withdraw", "copy.db", "--all-pending").returncode == 0
    copied.unlink()
    place.ledger.unlink()

    assert place.run("run", "night.jsonl", "--yes").returncode == 7


def test_a_rescued_ledger_is_the_batch(place: Workplace) -> None:
    place.manifest(60)
    launch = place.start("run", "night.jsonl", "--rate", "20", "--yes")
    place.wait_for_runs(launch, 15)
    place.ledger.unlink()
    launch.communicate(timeout=30)

    assert place.run("run", "night.jsonl", "--yes").returncode == 7
    assert place.run("resume", "night.ledger.db.rescued", "--yes").returncode == 0
    assert sent(place) == list(range(1, 61))


# Batches in PostgreSQL.


@pytest.fixture
def shared(place: Workplace, database: str) -> str:
    place.environment["PGPASSWORD"] = PASSWORD
    return f"{database}#night"


def another_machine(place: Workplace) -> None:
    place.environment["DESLAUNCH_STATE_DIR"] += "-of-another"


def test_another_batch_of_the_database_is_seen_from_anywhere(place: Workplace, shared: str) -> None:
    place.manifest(6)
    place.run("run", "night.jsonl", "--ledger", shared, "--limit", "2", "--yes")
    another_machine(place)
    refused = place.run("run", "night.jsonl", "--ledger", f"{shared}-2", "--yes")

    assert (refused.returncode, "is unfinished" in refused.stderr) == (7, True)


def test_a_batch_that_another_machine_finished_is_finished(place: Workplace, shared: str) -> None:
    place.manifest(6)
    place.run("run", "night.jsonl", "--ledger", shared, "--limit", "2", "--yes")
    mine = place.environment["DESLAUNCH_STATE_DIR"]
    another_machine(place)
    assert place.run("resume", shared, "--yes").returncode == 0
    place.environment["DESLAUNCH_STATE_DIR"] = mine

    assert place.run("run", "night.jsonl", "--ledger", f"{shared}-2", "--yes").returncode == 0


def test_a_batch_is_known_by_its_database_too(place: Workplace, postgres: Server) -> None:
    place.environment["PGPASSWORD"] = PASSWORD
    place.environment["DESLAUNCH_LEDGER"] = postgres.new_database()
    place.manifest(6)
    place.run("run", "night.jsonl", "--ledger", "#night", "--limit", "2", "--yes")
    assert place.run("find", "row-2").stdout.startswith("row-2: started")

    place.environment["DESLAUNCH_LEDGER"] = postgres.new_database()
    place.write([row(70)], "other.jsonl")
    assert place.run("run", "other.jsonl", "--ledger", "#night", "--yes").returncode == 0


async def test_a_launcher_that_has_not_begun_is_told_nothing(batch_place: str) -> None:
    async with await make(batch_place), await open_ledger(batch_place) as other:
        with pytest.raises(ConfigurationError, match="no launcher is at work on it"):
            await other.tell_launchers({"is_stopped": True})


# It is never a failure of its own.


def damage(state: Path) -> None:
    state.mkdir()
    (state / "history.db").write_bytes(b"no database" * 1000)


def make_newer(state: Path) -> None:
    state.mkdir()

    with closing(sqlite3.connect(state / "history.db")) as made:
        made.execute("PRAGMA user_version = 99")


def block(state: Path) -> None:
    state.write_text("a file, where a folder should be")


def close(state: Path) -> None:
    state.mkdir(mode=0)


@pytest.mark.parametrize("spoil", [damage, make_newer, block, close])
def test_without_history_a_launch_goes_on_with_one_warning(place: Workplace, spoil: Any) -> None:
    from pathlib import Path  # noqa: PLC0415

    spoil(Path(place.environment["DESLAUNCH_STATE_DIR"]))
    place.manifest(2)
    done = place.run("run", "night.jsonl", "--yes", wrap=unprivileged())

    assert done.returncode == 0, done.stderr
    assert done.stderr.count("warning: there is no history") == 1
    assert place.run("history", wrap=unprivileged()).returncode == 0


def test_a_locked_history_is_waited_for_a_second(tmp_path: Path) -> None:
    History(tmp_path, pytest.fail).batches()
    told: list[str] = []

    with closing(sqlite3.connect(tmp_path / "history.db", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        kept_out = History(tmp_path, told.append)
        assert kept_out.batches() == []
        assert kept_out.find("a") is None

    assert len(told) == 1
    assert "there is no history (database is locked)" in told[0]


# The witness itself.


LEFT: Final = {"pending": 1, "attempts": 7}


def noted(uid: str, place: str = "/a", digest: str = "d", **more: Any) -> Noted:
    return Noted(uid, place, "night.csv", digest, 1, 0, 1000, **more)


def test_of_two_that_begin_at_once_one_is_told(tmp_path: Path) -> None:
    history = History(tmp_path, pytest.fail)

    assert history.begin(noted("a"), ()) == []
    [other] = history.begin(noted("b", "/b"), ())
    assert (other.uid, history.find("b")) == ("a", None)
    assert history.begin(noted("b", "/b"), {"a"}) == []
    assert [one.is_given_up for one in history.batches()] == [True, False]


def test_what_is_noted_never_shrinks(tmp_path: Path) -> None:
    history = History(tmp_path, pytest.fail)
    history.begin(noted("a"), ())
    history.note("a", "/a", attempts=7)
    history.note("a", "/a", attempts=5, counts=LEFT, ended_ms=9, exit_code=5)
    history.note("a", "/copy", attempts=99, counts={})

    found = history.find("a")
    assert found is not None
    assert (found.attempts, found.ended_ms, found.exit_code) == (7, 9, 5)
    assert found.is_unfinished


# What it remembers.


def test_history_lists_and_find_finds(place: Workplace) -> None:
    begun(place)
    place.write([row(17, parameters={"DBGenFrom": 4711})], "other.jsonl")
    place.run("run", "other.jsonl", "--yes")

    [first, second] = place.json("history")["batches"]
    assert (first["ledger"], first["exitCode"]) == (str(place.ledger), 5)
    assert (first["attempts"], first["counts"]["pending"]) == (2, 4)
    assert (second["exitCode"], second["counts"]["started"]) == (0, 1)
    assert str(place.ledger) in place.run("history").stdout

    run = read_log(place.log)[2]["jobRunId"]

    for text in ("row-17", "4711", run, run.upper()):
        [found] = place.run("find", text, "--json").stdout.splitlines()
        assert f'"jobRunId":"{run}"' in found

    assert place.run("find", "row-17").stdout.startswith(f"row-17: started, run {run}, sent ")
    assert place.run("find", "471").returncode == 3
    place.run("watch", "other.ledger.db")
    [line] = place.run("results", "other.ledger.db", "--format", "jsonl").stdout.splitlines()
    [found] = place.run("find", "row-17", "--json").stdout.splitlines()
    assert json.loads(found).items() > json.loads(line).items()
    assert json.loads(found)["outputFiles"] == [{"fileName": f"{run}.csv"}]
    nothing = place.run("find", "")
    assert (nothing.returncode, "TEXT is empty" in nothing.stderr) == (2, True)


def test_history_tells_which_batches_are_meant_and_how_they_stand(place: Workplace) -> None:
    begun(place)
    place.manifest(3, "other.jsonl", first=11)
    place.run("run", "other.jsonl", "--yes")

    def listed(*words: str) -> list[str]:
        return [
            line.split("/")[-1] for line in place.run("history", *words).stdout.splitlines()[1:]
        ]

    assert listed() == ["night.ledger.db", "other.ledger.db"]
    assert listed("other.json") == listed("other.ledger") == ["other.ledger.db"]
    assert listed("--unfinished") == ["night.ledger.db"]
    assert place.run("history", "none").stderr == "there are no such batches\n"
    titles, first = place.run("history", "night").stdout.splitlines()
    assert titles.split("  ")[-5:-1] == ["started", "not started", "unknown", "pending"]
    assert first.split()[1:-1] == ["5", "2", "0", "0", "4"]


def test_a_ledger_that_is_gone_is_called_so(place: Workplace) -> None:
    begun(place)
    gone = place.ledger.rename(place.folder / "away.db")
    assert place.run("history").stdout.endswith(f"{place.ledger} (gone)\n")
    assert place.run("find", "row-1").stderr.startswith(f"warning: {place.ledger} is gone\n")

    gone.rename(place.ledger)
    assert [one["gone"] for one in place.json("history")["batches"]] == [False]
    place.ledger.write_bytes(b"no ledger")
    assert place.run("find", "row-1").stderr.startswith(f"warning: {place.ledger} can't be read\n")

    place.ledger.unlink()
    assert place.run("run", "night.jsonl", "--again", "--yes").returncode == 0
    found = place.run("find", "row-1")
    assert (found.stdout.count("row-1: started"), found.stderr.count("is gone")) == (1, 1)


def test_a_copy_is_told_by_whoever_looks_at_it(place: Workplace) -> None:
    begun(place)
    backup = place.folder / "backup.db"
    shutil.copy(place.ledger, backup)
    place.run("resume", "night.ledger.db", "--limit", "3", "--yes")

    beside = place.run("status", "backup.db").stderr
    place.ledger.rename(place.folder / "newer.db")
    shutil.copy(backup, place.ledger)
    lacks = f"warning: {place.ledger}: is an older copy: it lacks 3 attempts that this machine's"
    assert lacks.replace("night.ledger", "backup") in beside
    assert lacks in place.run("find", "row-1").stderr
    status = place.run("status", "night.ledger.db")
    assert status.stderr.startswith(lacks)
    assert status.stderr.endswith("may have been sent since; put the newer one back\n"), (
        "and no resume"
    )
    assert (status.returncode, status.stdout.count("2 started, 4 pending")) == (0, 1)
    assert place.run("report", "night.ledger.db", "-o", "night.html").stderr.startswith(lacks)
    assert "deslaunch resume" not in (place.folder / "night.html").read_text()

    (place.folder / "newer.db").rename(place.ledger)
    assert place.run("status", "night.ledger.db").stderr.startswith("send the remaining rows: ")
    shutil.copy(place.ledger, backup)
    assert f"is a copy of {place.ledger}, which was last" in place.run("status", "backup.db").stderr


@pytest.mark.skipif(sys.platform == "darwin", reason="its file names are UTF-8")
def test_a_name_that_is_no_utf_8_is_known_by_its_bytes(place: Workplace) -> None:
    begun(place)
    odd = os.fsdecode(b"night\xff.ledger.db")
    place.ledger.rename(place.folder / odd)

    assert "no history" not in place.run("resume", odd, "--limit", "1", "--yes").stderr
    shutil.copy(place.folder / odd, place.folder / "copy.ledger.db")
    refused = place.run("resume", "copy.ledger.db", "--yes")
    assert (refused.returncode, "night\\xff.ledger.db, which was" in refused.stderr) == (7, True)
    assert "night\\xff.ledger.db" in place.run("history").stdout


def test_no_secret_is_in_the_history(place: Workplace) -> None:
    begun(place)
    state = place.folder / "state" / "history.db"

    assert TOKEN.encode() not in state.read_bytes()
    assert state.stat().st_mode & 0o777 == 0o600
