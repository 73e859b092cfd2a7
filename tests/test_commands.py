"""Each command from outside: exit codes, what is printed where, and that it works as printed."""

from __future__ import annotations

import csv
import json
import os
import re
import shlex
import signal
import sqlite3
import subprocess
import sys
from contextlib import closing
from typing import TYPE_CHECKING, NamedTuple

import pytest
from commands import Ended, Terminal, call
from stage import (
    DESLAUNCH,
    OTHER_TOKEN,
    POS_USAGE,
    QUICK,
    TOKEN,
    Workplace,
    ended,
    fault,
    invalid_row,
    rejected_row,
    row,
    workplace,
)

from deslaunch.simulator import DEFAULT_JOBS

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from blockbuster import BlockBuster

SUMMARY = {
    "rows": 3,
    "started": 3,
    "failed": 0,
    "rejected": 0,
    "unknown": 0,
    "invalid": 0,
    "withdrawn": 0,
    "pending": 0,
    "inFlight": 0,
    "possibleDuplicates": 0,
    "attempts": 3,
    "startedNow": 3,
    "unrecorded": [],
    "ledger": "night.ledger.db",
    "exitCode": 0,
}
RESULT_KEYS = [
    *("key", "row", "target", "jobId", "jobName", "state", "jobRunId", "attempts", "status"),
    *("error", "possibleDuplicate", "sentUtc", "answeredUtc", "finished", "success"),
    *("statusText", "finishedUtc", "outputFiles"),
]


@pytest.fixture(autouse=True)
def blocking_calls(no_blocking_calls: BlockBuster) -> None:
    """Leave it to the library's tests whether its loop waits: a command does one thing."""
    no_blocking_calls.deactivate()


class Here(NamedTuple):
    """A workplace whose commands run in this process."""

    place: Workplace

    def call(self, *argv: object, token: str = TOKEN, **variables: str) -> Ended:
        environment = {**self.place.environment, "DES_TOKEN": token, **variables}

        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(self.place.folder)

            for name, value in environment.items():
                patch.setenv(name, value)

            return call(*argv)

    def printed(self, line: str) -> Ended:
        """Run a command that was printed, as it was printed."""
        words = shlex.split(line)
        assert words[0] == "deslaunch"
        return self.call(*words[1:])

    @property
    def started(self) -> list[int]:
        """The rows that the simulator started, in order of their numbers."""
        runs = self.place.simulator.runs
        return sorted(int(run.parameters["DBGenFrom"]["valueStringEncoded"]) for run in runs)


@pytest.fixture
def here(place: Workplace) -> Here:
    return Here(place)


def command_after(text: str, why: str) -> str:
    """Return the command that is printed behind a reason."""
    (line,) = [line for line in text.splitlines() if line.startswith(f"{why}: ")]
    return line.removeprefix(f"{why}: ")


def test_damage_that_only_shows_in_use_is_no_bug(here: Here) -> None:
    here.place.manifest(3)
    here.call("run", "night.jsonl")

    with closing(sqlite3.connect(here.place.ledger)) as connection:
        roots = dict(connection.execute("SELECT name, rootpage FROM sqlite_master"))

    data = here.place.ledger.read_bytes()
    pages = [data[at : at + 4096] for at in range(0, len(data), 4096)]
    one, other = roots["session"] - 1, roots["row"] - 1
    pages[one], pages[other] = pages[other], pages[one]
    here.place.ledger.write_bytes(b"".join(pages))

    ended = here.call("status", here.place.ledger)

    assert (ended.code, ended.out) == (7, "")
    assert ended.err.startswith(f"error: {here.place.ledger}: the database is damaged: ")
    assert "integrity_check" in ended.err


class TestRun:
    def test_every_row_is_started_once_and_the_summary_is_as_documented(self, here: Here) -> None:
        here.place.manifest(3)

        done = here.call("run", "night.jsonl", "--json")

        summary = done.json
        assert (done.code, here.started) == (0, [1, 2, 3])
        assert list(summary)[-5:] == ["unrecorded", "seconds", "ledger", "targets", "exitCode"]
        assert {name: summary[name] for name in SUMMARY} == SUMMARY
        assert summary["targets"]["default"]["started"] == 3
        assert summary["targets"]["default"]["stop"] is None
        assert done.err.splitlines()[0] == "night.jsonl: 3 rows to start"
        assert done.err.splitlines()[-2:] == [
            "3 rows: 3 started; 3 attempts",
            "follow the runs: deslaunch watch night.ledger.db",
        ]

        status = here.call("status", "night.ledger.db", "--json").json

        assert list(status) == list(summary)
        assert {name: status[name] for name in SUMMARY} == SUMMARY | {"startedNow": 0}

    def test_an_empty_second_night_says_so_even_to_the_quiet(self, here: Here) -> None:
        here.place.manifest(3)
        options = ("run", "night.jsonl", "--resume", "--yes", "--quiet", "--json")

        first, second = here.call(*options), here.call(*options)

        assert (first.code, first.err, second.code) == (0, "", 0)
        assert second.err == ("nothing to start: no row of night.ledger.db is pending or failed\n")
        assert (first.json["startedNow"], second.json["startedNow"]) == (3, 0)
        assert here.started == [1, 2, 3]

    def test_a_ledger_that_exists_sends_nothing_and_names_the_resume(self, here: Here) -> None:
        here.place.manifest(3)
        here.call("run", "night.jsonl", "--limit", "1")

        again = here.call("run", "night.jsonl")
        command = re.findall(r"resume that batch: (.*?);", again.err)

        assert (again.code, again.out, len(here.started)) == (7, "", 1)
        assert command == ["deslaunch resume night.ledger.db"]
        assert (here.printed(command[0]).code, here.started) == (0, [1, 2, 3])

    def test_the_environment_may_name_the_ledger(self, here: Here) -> None:
        here.place.manifest(1)

        done = here.call("run", "night.jsonl", DESLAUNCH_LEDGER="here.db")
        status = here.call("status", DESLAUNCH_LEDGER="here.db")

        assert (done.code, status.code) == (0, 0)
        assert status.out == "1 row: 1 started; 1 attempt\n"
        assert not here.place.ledger.exists()

    def test_a_limit_leaves_the_rest_pending(self, here: Here) -> None:
        here.place.manifest(3)

        limited = here.call("run", "night.jsonl", "--limit", "2", "--json")
        status = here.call("status", "night.ledger.db", "--json")
        resumed = here.printed(command_after(limited.err, "send the remaining rows"))

        assert (limited.code, status.code, resumed.code) == (5, 0, 0)
        assert [one.json["exitCode"] for one in (limited, status)] == [5, 5]
        assert limited.json["targets"]["default"]["pending"] == 1
        assert here.started == [1, 2, 3]

    @pytest.mark.parametrize("name", ["none.csv", "none.jsonl"])
    def test_nothing_to_start_makes_no_ledger(self, name: str, here: Here) -> None:
        (here.place.folder / name).write_text("key,jobId\n" if name.endswith("csv") else "\n")

        done = here.call("run", name, "--quiet", "--json")

        assert (done.code, done.json["rows"]) == (0, 0)
        assert done.err == f"nothing to start: {name} holds no rows; no ledger was made\n"
        assert not [*here.place.folder.glob("*.ledger.db")]

    def test_invalid_rows_stop_the_batch_before_it_begins(self, here: Here) -> None:
        here.place.write([row(1), invalid_row(2), row(3)])

        refused = here.call("run", "night.jsonl")
        left = [*here.place.folder.glob("night.ledger.db")]
        skipped = here.call("run", "night.jsonl", "--skip-invalid")

        assert (refused.code, left, skipped.code) == (2, [], 3)
        assert "night.jsonl:2, column DBGenFrom: " in refused.err
        assert here.started == [1, 3]
        assert "see the invalid rows" in skipped.err

    def test_quiet_keeps_what_must_not_be_missed(self, tmp_path: Path) -> None:
        script = {
            "faults": [
                *fault("close-after-start", 2)["faults"],
                *fault("status", 3, status=500, start=True)["faults"],
            ]
        }

        with workplace(tmp_path, script) as made:
            made.manifest(4)
            done = Here(made).call("run", "night.jsonl", "--quiet", "--concurrency", "1", *QUICK)

        assert done.code == 4
        assert "1 unknown: each may have started a run, and none is sent again" in done.err
        assert "1 possible duplicate: " in done.err
        assert "rows to start" not in done.err

    def test_watch_follows_the_runs_to_their_end(self, tmp_path: Path) -> None:
        with workplace(tmp_path, fault("fail-run", 1, error="no sales")) as made:
            made.manifest(3)
            here = Here(made)
            done = here.call("run", "night.jsonl", "--watch", "--interval", "0.05", "--json")
            again = here.call("watch", "night.ledger.db", "--json")
            failed = here.printed(command_after(done.err, "see the failed runs"))

        assert (done.code, again.code) == (3, 3)
        assert {
            name: done.json[name] for name in ("runs", "succeeded", "failed", "unfinished")
        } == {
            "runs": 3,
            "succeeded": 2,
            "failed": 1,
            "unfinished": 0,
        }
        assert done.json["batch"]["started"] == 3
        assert [each.json["batch"]["startedNow"] for each in (done, again)] == [3, 0]
        assert "  1 run failed: no sales (key row-1)" in done.err.splitlines()
        assert [line["key"] for line in csv.DictReader(failed.out.splitlines())] == ["row-1"]

    def test_a_refused_token_leaves_the_rest_pending(self, tmp_path: Path) -> None:
        script = {"tokens": {"expireAfter": 5}}

        with workplace(tmp_path, script, [TOKEN, OTHER_TOKEN]) as made:
            made.manifest(20)
            here = Here(made)
            done = here.call("run", "night.jsonl", "--json")
            command = command_after(done.err, "send the remaining rows with a new token")
            resumed = here.call(*shlex.split(command)[1:], token=OTHER_TOKEN)

            assert (done.code, done.json["exitCode"], resumed.code) == (6, 6, 0)
            assert done.json["targets"]["default"]["stop"]["reason"] == "credentials"
            assert here.started == list(range(1, 21))

    def test_a_service_that_is_away_sends_nothing_and_names_the_command(self, here: Here) -> None:
        here.place.manifest(1)

        done = here.call("run", "night.jsonl", "--base-url", "http://127.0.0.1:9", "--quiet")

        assert (done.code, done.out) == (5, "")
        assert done.err.splitlines()[-1] == (
            "nothing was sent; run it again: deslaunch run night.jsonl --base-url "
            "http://127.0.0.1:9 --quiet"
        )


class TestDryRun:
    def test_it_prints_what_would_be_sent_and_needs_no_service(self, here: Here) -> None:
        here.place.manifest(3)
        (here.place.folder / "jobs.json").write_text(json.dumps(DEFAULT_JOBS))
        before = sorted(here.place.folder.iterdir())

        done = here.call(
            *("run", "night.jsonl", "--dry-run", "--schema", "jobs.json", "--limit", "2"),
            DES_BASE_URL="",
            token="",
        )

        assert (done.code, len(done.lines), here.started) == (0, 2, [])
        assert done.lines[0] == {
            "key": "row-1",
            "row": 1,
            "target": "default",
            "jobId": POS_USAGE,
            "body": {
                "jobId": POS_USAGE,
                "parameters": {"DBGenFrom": {"type": 2, "valueStringEncoded": "1"}},
            },
        }
        assert done.err == "nothing was sent: this is a dry run\n"
        assert sorted(here.place.folder.iterdir()) == before

    @pytest.mark.parametrize(
        "argv",
        [
            pytest.param(["resume", "night.ledger.db"], id="resume"),
            pytest.param(["run", "night.jsonl", "--resume"], id="run-resume"),
        ],
    )
    def test_of_a_batch_that_was_begun(self, argv: list[str], here: Here) -> None:
        here.place.manifest(3)
        here.call("run", "night.jsonl", "--limit", "1")
        before = here.place.ledger.read_bytes()

        done = here.call(*argv, "--dry-run")

        assert [line["key"] for line in done.lines] == ["row-2", "row-3"]
        assert (here.place.ledger.read_bytes(), here.started) == (before, [1])


class TestResume:
    def test_it_needs_no_options_that_were_given_before(
        self, here: Here, tmp_path_factory: pytest.TempPathFactory
    ) -> None:
        here.place.manifest(3)
        url = here.place.simulator.base_url
        config = f'[targets.default]\nbase_url = "{url}"\ntoken_env = "MINE"\n'
        (here.place.folder / "targets.toml").write_text(config)
        known = {"MINE": TOKEN, "DES_BASE_URL": "", "token": ""}
        options = ("--config", "targets.toml", "--concurrency", "3", "--limit", "1")

        begun = here.call("run", "night.jsonl", *options, **known)
        status = here.call("status", here.place.ledger, **known)
        elsewhere = command_after(status.err, "send the remaining rows")

        with pytest.MonkeyPatch.context() as patch:  # another folder, and no variable but the token
            patch.chdir(tmp_path_factory.mktemp("elsewhere"))
            patch.setenv("MINE", TOKEN)
            limited = call(*shlex.split(elsewhere)[1:], "--limit", "1")
            resumed = call("resume", here.place.ledger)

        assert (begun.code, limited.code, resumed.code) == (5, 5, 0)
        config_file = here.place.folder / "targets.toml"
        assert command_after(begun.err, "send the remaining rows") == (
            f"deslaunch resume night.ledger.db --config {config_file}"
        )
        assert elsewhere == f"deslaunch resume {here.place.ledger} --config {config_file}"
        log = [line for line in here.call("log", "night.ledger.db").lines if "options" in line]
        assert [entry["options"]["concurrency"] for entry in log] == [3, 3, 3]
        assert here.started == [1, 2, 3]

    def test_rejected_rows_are_fixed_and_sent_as_the_printed_commands_say(self, here: Here) -> None:
        here.place.write([row(1), rejected_row(2), row(3)])
        done = here.call("run", "night.jsonl")

        here.printed(command_after(done.err, "see the rejected rows, and fix them there"))
        path = here.place.folder / "night.rejected.csv"
        text = path.read_text()
        path.write_text(text.replace("2026-01-31T00:00:00Z", ""))
        resumed = here.printed(command_after(done.err, "then send them"))
        refused = here.call("run", "night.rejected.csv")

        assert (done.code, resumed.code, here.started) == (3, 0, [1, 2, 3])
        assert "corrections: 1 row replaced, 0 added" in resumed.err
        assert "1 row rejected: " in done.err
        assert (refused.code, "--corrections" in refused.err) == (2, True)

    def test_corrections_may_add_rows_where_that_is_said(self, here: Here) -> None:
        here.place.manifest(2)
        here.place.manifest(1, "more.jsonl", first=3)
        here.call("run", "night.jsonl")
        resume = ("resume", "night.ledger.db", "--corrections", "more.jsonl")

        refused, added = here.call(*resume), here.call(*resume, "--add-rows")

        assert (refused.code, added.code, here.started) == (2, 0, [1, 2, 3])

    def test_a_look_ahead_does_not_show_corrections(self, here: Here) -> None:
        here.place.manifest(2)
        here.call("run", "night.jsonl", "--limit", "1")

        done = here.call(*("resume", "night.ledger.db", "--corrections", "x.csv", "--dry-run"))

        assert (done.code, here.started) == (2, [1])
        assert "--dry-run can't show corrections" in done.err

    def test_a_target_that_was_named_by_an_option_is_remembered(self, here: Here) -> None:
        here.place.manifest(2)

        limited = here.call("run", "night.jsonl", "--target", "acme", "--limit", "1")
        resumed = here.call("resume", "night.ledger.db")

        assert (limited.code, resumed.code, here.started) == (5, 0, [1, 2])


@pytest.fixture(scope="class")
def night(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Here]:
    """A batch of five rows: row-2 is unknown, row-4 rejected, and row-5 invalid."""
    folder = tmp_path_factory.mktemp("night")

    with workplace(folder, fault("close-after-start", 2)) as made:
        made.write([row(1), row(2), row(3), rejected_row(4), invalid_row(5)])
        here = Here(made)
        done = here.call("run", "night.jsonl", "--skip-invalid", "--concurrency", "1")
        assert done.code == 4, done.err
        yield here


class TestAnEndedBatch:
    def test_status_says_what_to_look_up(self, night: Here) -> None:
        done = night.call("status", "night.ledger.db")

        lines = done.out.splitlines()
        assert done.code == 0
        assert lines[0] == "5 rows: 2 started, 1 rejected, 1 unknown, 1 invalid; 4 attempts"
        assert "unknown: key row-2 row 2" in lines
        assert f"  job POS usage ({POS_USAGE})" in lines
        assert "  parameters DBGenFrom=2" in lines
        assert re.search(r"look for a run created from \d{4}-\S+Z to \d{4}-\S+Z\n", done.out)
        assert command_after(done.err, "then record it") == (
            "deslaunch resolve night.ledger.db --from night.findings.csv"
        )

    def test_status_json_is_one_object(self, night: Here) -> None:
        done = night.call("status", "night.ledger.db", "--json")

        assert (done.code, done.err) == (0, "")
        assert (done.json["unknown"], done.json["exitCode"]) == (1, 4)

    def test_status_loads_nothing_that_speaks_to_des(self, night: Here) -> None:
        code = (
            "import sys; from deslaunch.cli.main import main; main(['status', 'night.ledger.db']);"
            "sys.exit('aiohttp' in sys.modules)"
        )

        argv = [sys.executable, "-c", code]
        subprocess.run(argv, cwd=night.place.folder, check=True, stdout=subprocess.DEVNULL)

    def test_results_are_every_row_once_in_order(self, night: Here) -> None:
        lines = night.call("results", "night.ledger.db", "--format", "jsonl").lines

        assert [line["key"] for line in lines] == [f"row-{n}" for n in range(1, 6)]
        assert [line["state"] for line in lines] == [
            *("started", "unknown", "started", "rejected", "invalid")
        ]
        assert list(lines[0]) == RESULT_KEYS

    @pytest.mark.parametrize(
        ("options", "keys"),
        [
            pytest.param(["--state", "rejected"], ["row-4"], id="state"),
            pytest.param(["--key", "row-3", "--key", "row-1"], ["row-1", "row-3"], id="keys"),
            pytest.param(["--run", "failed"], [], id="run"),
            pytest.param(["--state", "unknown", "--with-manifest"], ["row-2"], id="manifest"),
        ],
    )
    def test_results_may_be_some_rows(
        self, options: list[str], keys: list[str], night: Here
    ) -> None:
        done = night.call("results", "night.ledger.db", *options)

        assert [line["key"] for line in csv.DictReader(done.out.splitlines())] == keys
        assert done.err == ("" if keys else "no row of the batch matches\n")

    def test_results_follow_the_umask_and_replace_results_only(self, night: Here) -> None:
        folder = night.place.folder
        (folder / "notes.csv").write_text("mine\n")
        before = (folder / "night.ledger.db").read_bytes()

        written = [night.call("results", "night.ledger.db", "-o", "r.csv").code for _ in range(2)]
        refused = [
            night.call("results", "night.ledger.db", "-o", name).code
            for name in ("notes.csv", "night.ledger.db", "night.jsonl")
        ]
        forced = night.call("results", "night.ledger.db", "-o", "notes.csv", "--force")
        never = night.call("report", "night.ledger.db", "-o", "night.ledger.db", "--force")

        assert (written, refused, forced.code, never.code) == ([0, 0], [2, 2, 2], 0, 2)
        assert (folder / "r.csv").stat().st_mode & 0o777 == 0o666 & ~_umask()
        assert (folder / "night.ledger.db").read_bytes() == before

    @pytest.mark.parametrize(
        "argv", [["status", "night.ledger.db", "--unknown"], ["template", POS_USAGE]]
    )
    def test_no_other_command_replaces_results(self, argv: list[str], night: Here) -> None:
        night.call("results", "night.ledger.db", "-o", "kept.csv", "--force")
        refused, forced = (night.call(*argv, "-o", "kept.csv", *more) for more in ([], ["--force"]))

        assert (refused.code, forced.code) == (2, 0)
        assert "kept.csv: this file exists\n" in refused.err

    @pytest.mark.parametrize(
        "argv", [["results", "night.ledger.db"], ["template", POS_USAGE, "--format", "jsonl"]]
    )
    def test_a_name_for_compressed_output_is_refused(self, argv: list[str], night: Here) -> None:
        done = night.call(*argv, "-o", "made.jsonl.gz", "--force")

        assert done.code == 2
        assert done.err.endswith("output is not compressed\n  name a file without .gz\n")
        assert not (night.place.folder / "made.jsonl.gz").exists()

    def test_findings_that_a_person_filled_in_are_kept(self, night: Here) -> None:
        listing = ("status", "night.ledger.db", "--unknown", "-o", "findings.csv")
        done = [night.call(*listing).code for _ in range(2)]

        assert done == [0, 2]

    def test_a_split_writes_a_file_for_each_state(self, night: Here) -> None:
        done = night.call("results", "night.ledger.db", "--split", "parts")

        assert done.code == 0
        assert "parts/rejected.csv: 1 row" in done.err.splitlines()
        rejected = (night.place.folder / "parts" / "rejected.csv").read_text()
        assert len(rejected.splitlines()) == 2

    def test_the_log_is_a_json_line_for_each_attempt_and_event(self, night: Here) -> None:
        every, one = (
            night.call("log", "night.ledger.db", *more).lines for more in ([], ["--key", "row-2"])
        )

        attempts = [entry for entry in every if entry["kind"] == "attempt"]
        assert [entry["key"] for entry in attempts] == ["row-1", "row-2", "row-3", "row-4"]
        assert [entry["utc"] for entry in every] == sorted(entry["utc"] for entry in every)
        assert all(
            list(entry)[:5] == ["utc", "kind", "session", "key", "target"] for entry in every
        )
        assert [(entry["key"], entry["result"]) for entry in one] == [("row-2", "unknown")]
        assert not [name for entry in every for name in entry if name.endswith("Ms")]

    def test_a_key_that_no_entry_has_is_told(self, night: Here) -> None:
        done = night.call("log", "night.ledger.db", "--key", "nope")

        assert (done.code, done.out, done.err) == (0, "", "no entry of the log matches\n")

    def test_a_report_is_one_page(self, night: Here) -> None:
        done = night.call("report", "night.ledger.db", "-o", "night.html")

        page = (night.place.folder / "night.html").read_text()
        assert (done.code, done.err) == (0, "the report is in night.html\n")
        assert "deslaunch resolve night.ledger.db --from night.findings.csv" in page

    def test_a_finding_before_its_time_is_refused_where_nobody_can_be_asked(
        self, night: Here
    ) -> None:
        done = night.call("resolve", "night.ledger.db", "row-2", "--not-started", "--yes")

        assert (done.code, done.out) == (2, "")
        assert "too early to record that no run was started for row-2: " in done.err
        assert "--early" in done.err

    @pytest.mark.parametrize(
        "argv",
        [
            pytest.param(["row-1", "--not-started"], id="started"),
            pytest.param(["row-99", "--not-started"], id="no-such-key"),
        ],
    )
    def test_what_is_in_no_doubt_is_not_resolved(self, argv: list[str], night: Here) -> None:
        done = night.call("resolve", "night.ledger.db", *argv)

        assert (done.code, done.out) == (2, "")
        assert argv[0] in done.err


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_unknown_rows_are_listed_filled_in_and_resumed(tmp_path: Path) -> None:
    faults = [*fault("close-after-start", 2)["faults"], *fault("close", 3)["faults"]]

    with workplace(tmp_path, {"faults": faults}) as made:
        made.manifest(4)
        here = Here(made)
        done = here.call("run", "night.jsonl", "--concurrency", "1")
        listed = here.printed(
            command_after(done.err, "list them, look each one up in DES and fill in")
        )
        path = tmp_path / "night.findings.csv"
        rows = [*csv.DictReader(path.read_text().splitlines())]
        empty = here.printed(command_after(done.err, "then record it"))
        assert empty.code == 2
        assert 'the column "as" is empty in every row' in empty.err

        run = made.simulator.runs[1].job_run_id
        rows[0] |= {"as": "started", "jobRunId": run}
        rows[1] |= {"as": "not-started", "note": "looked"}

        with path.open("w", newline="") as stream:
            writer = csv.DictWriter(stream, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)

        command = command_after(done.err, "then record it")
        resolved = here.printed(f"{command} --early")
        again = here.printed(f"{command} --early --json")
        resumed = here.printed(command_after(resolved.err, "send the remaining rows"))

        assert [done.code, listed.code, resolved.code, again.code, resumed.code] == [4, 0, 0, 0, 0]
        assert [one["key"] for one in rows] == ["row-2", "row-3"]
        assert {*rows[0]} >= {"key", "as", "jobRunId", "note", "jobName", "createdAfterUtc"}
        assert resolved.err.startswith("recorded: 2 findings\n")
        assert (again.json["unknown"], again.json["pending"]) == (0, 1)
        assert here.started == [1, 2, 3, 4]


def test_a_finding_can_be_taken_back(tmp_path: Path) -> None:
    with workplace(tmp_path, fault("close-after-start", 2)) as made:
        made.manifest(2)
        here = Here(made)
        here.call("run", "night.jsonl", "--concurrency", "1")
        resolve = ("resolve", "night.ledger.db", "row-2")

        freed = here.call(*resolve, "--not-started", "--early", "--json")
        doubted = here.call(*resolve, "--unknown", "--note", "wrong row", "--json")

    assert (freed.json["pending"], doubted.json["pending"]) == (1, 0)
    assert doubted.json["unknown"] == 1


class TestCheck:
    def test_a_valid_manifest(self, here: Here) -> None:
        here.place.manifest(3)

        done = here.call("check", "night.jsonl")

        assert (done.code, done.out, here.started) == (0, "", [])
        assert done.err.splitlines()[-1] == "3 rows: 3 valid, 0 invalid"

    def test_it_says_that_it_waits_for_a_busy_des(self, here: Here) -> None:
        here.place.manifest(1)
        here.place.simulator.use(fault("status", 1, status=503, on="queryjobs"))

        done = here.call("check", "night.jsonl")

        assert done.code == 0
        assert "scripted 503: asked for the jobs again in" in done.err.splitlines()[0]

    def test_the_json_names_every_problem(self, here: Here) -> None:
        (here.place.folder / "bad.csv").write_text(f"jobId,DBGenFrom,Nonsense\n{POS_USAGE},a,1\n")

        done = here.call("check", "bad.csv", "--json")

        assert (done.code, done.json["exitCode"]) == (2, 2)
        assert list(done.json) == ["rows", "valid", "invalid", "problems", "warnings", "exitCode"]
        assert [problem["column"] for problem in done.json["problems"]] == ["DBGenFrom", "Nonsense"]
        assert list(done.json["problems"][0]) == [
            *("file", "line", "row", "column", "expected", "got", "message")
        ]

    @pytest.mark.parametrize(
        ("options", "code"),
        [
            pytest.param({"DES_BASE_URL": "http://127.0.0.1:9"}, 5, id="away"),
            pytest.param({"token": "wrong"}, 6, id="token"),
        ],
    )
    def test_jobs_that_can_not_be_had(self, options: dict[str, str], code: int, here: Here) -> None:
        here.place.manifest(1)

        assert here.call("check", "night.jsonl", **options).code == code


class TestPreparing:
    def test_jobs_print_what_a_schema_is_read_from(self, here: Here) -> None:
        here.place.manifest(1)
        told, text = here.call("jobs", "--json"), here.call("jobs")
        (here.place.folder / "jobs.json").write_text(told.out)

        checked = here.call("check", "night.jsonl", "--schema", "jobs.json", DES_BASE_URL="")

        assert checked.code == 0
        assert text.out.splitlines()[0] == f"{POS_USAGE}  POS usage"
        assert "  DBGenFrom    integer   required null auto  " in text.out

    @pytest.mark.parametrize("name", ["made.csv", "made.jsonl"])
    def test_a_template_passes_the_check(self, name: str, here: Here) -> None:
        made = here.call("template", POS_USAGE.upper(), "-o", name)
        again = here.call("template", POS_USAGE, "-o", name)
        form = name.rpartition(".")[2]
        shown = here.call("template", POS_USAGE, "--format", form)

        assert here.printed(made.err.splitlines()[-1].partition("check it with: ")[2]).code == 0
        assert (made.code, again.code) == (0, 2)
        assert shown.out.encode() == (here.place.folder / name).read_bytes()

    def test_an_unknown_job_names_its_neighbour(self, here: Here) -> None:
        done = here.call("template", f"{POS_USAGE[:-1]}0")

        assert (done.code, done.out) == (2, "")
        assert f"did you mean {POS_USAGE}?" in done.err

    def test_targets_say_which_of_them_work(self, here: Here) -> None:
        config = here.place.folder / "t.toml"
        config.write_text(
            f'[targets.acme]\nbase_url = "{here.place.simulator.base_url}"\ntoken_env = "ACME"\n'
            '[targets.gone]\nbase_url = "http://127.0.0.1:9"\ntoken_env = "ACME"\n'
        )

        def targets(token: str, *more: str) -> Ended:
            with pytest.MonkeyPatch.context() as patch:
                patch.setenv("ACME", token)
                return here.call("targets", "--config", "t.toml", *more, DES_BASE_URL="", token="")

        good, refused = targets(TOKEN, "--json"), targets("wrong")

        assert (good.code, refused.code) == (5, 6)
        assert [(one["target"], one["token"], one["jobs"]) for one in good.json["targets"]] == [
            ("acme", True, 2),
            ("gone", None, None),
        ]
        assert refused.out.splitlines()[1].split() == [
            *("acme", here.place.simulator.base_url, "-", "no", "-")
        ]
        assert "error: target gone: " in refused.err

    def test_two_organisations_share_a_manifest(self, here: Here) -> None:
        url = here.place.simulator.base_url
        tables = (f'[targets.{name}]\nbase_url = "{url}"\ntoken_env = "MINE"\n' for name in "ab")
        (here.place.folder / "t.toml").write_text("".join(tables))
        here.place.write([row(1, target="a"), row(2, target="b"), row(3, target="b")])

        done = here.call(
            *("run", "night.jsonl", "--config", "t.toml", "--json"),
            MINE=TOKEN,
            DES_BASE_URL="",
            token="",
        )

        assert done.code == 0
        assert {name: one["started"] for name, one in done.json["targets"].items()} == {
            "a": 1,
            "b": 2,
        }
        assert "  2 rows: target b, POS usage" in done.err


# What only a process shows: signals, streams, names of the file system.


def test_stdin_is_a_manifest(place: Workplace) -> None:
    rows = place.manifest(3).read_text()
    options = ("-", "--format", "jsonl", "--ledger", "piped.ledger.db")

    done = place.run("run", *options, stdin=rows)
    again = place.run("run", *options, "--resume", stdin=rows)
    checked = place.run("check", "-", "--format", "jsonl", stdin=f"{rows}[]\n")

    assert (done.returncode, again.returncode, checked.returncode) == (0, 0, 2), done.stderr
    assert "nothing to start" in again.stderr
    assert len(place.simulator.runs) == 3


@pytest.fixture
def slow(tmp_path: Path) -> Iterator[Workplace]:
    """A service that answers all starts but the first when it is told to."""
    with workplace(tmp_path, fault("hold", **{"from": 2})) as made:
        made.manifest(50)
        yield made


def release(place: Workplace) -> None:
    place.portal.call(place.simulator.use, None)
    place.portal.call(place.simulator.release)


@pytest.mark.parametrize(
    ("number", "code"),
    [
        pytest.param(signal.SIGINT, 130, id="SIGINT"),
        pytest.param(signal.SIGTERM, 143, id="SIGTERM"),
        pytest.param(signal.SIGHUP, 129, id="SIGHUP"),
    ],
)
def test_the_first_signal_drains(number: int, code: int, slow: Workplace) -> None:
    victim = slow.start("run", "night.jsonl", "--concurrency", "4", "--json")
    assert slow.wait_for_runs(victim, 5)
    victim.send_signal(number)
    assert victim.stderr is not None

    while "waiting up to" not in (line := victim.stderr.readline()):
        assert line

    release(slow)
    done = ended(victim)
    summary = json.loads(done.stdout)

    assert (done.returncode, summary["exitCode"]) == (code, code)
    assert (summary["started"], summary["unknown"]) == (5, 0)
    assert "send the remaining rows: deslaunch resume night.ledger.db" in done.stderr
    assert slow.run("resume", "night.ledger.db").returncode == 0
    assert len(slow.simulator.runs) == 50


def test_the_second_signal_gives_up_what_is_in_flight(slow: Workplace) -> None:
    victim = slow.start("run", "night.jsonl", "--concurrency", "4", "--json")
    assert slow.wait_for_runs(victim, 5)
    victim.send_signal(signal.SIGINT)
    assert victim.stderr is not None

    while "waiting up to" not in (line := victim.stderr.readline()):
        assert line

    victim.send_signal(signal.SIGTERM)
    done = ended(victim)
    summary = json.loads(done.stdout)

    assert (done.returncode, summary["started"], summary["unknown"]) == (130, 1, 4)


@pytest.mark.parametrize("name", ["INT", "HUP"])
def test_an_ignored_signal_stays_ignored(name: str, slow: Workplace) -> None:
    ignoring = ("sh", "-c", f'trap "" {name}; exec "$@"', "sh")
    launch = slow.start("run", "night.jsonl", "--concurrency", "4", wrap=ignoring)
    assert slow.wait_for_runs(launch, 5)

    launch.send_signal(getattr(signal, f"SIG{name}"))
    release(slow)

    assert ended(launch).returncode == 0
    assert len(slow.simulator.runs) == 50


def test_a_signal_before_anything_was_sent(place: Workplace) -> None:
    read, write = os.pipe()
    victim = place.start("check", "-", "--format", "jsonl", stdin=read)
    os.close(read)
    os.write(write, b"\n" * 100_000)  # more than a pipe holds: it returns once it is read from
    victim.send_signal(signal.SIGTERM)
    done = ended(victim)
    os.close(write)

    assert done.returncode == 143


@pytest.mark.parametrize(
    "argv",
    [
        pytest.param(("jobs", "--config", "pipe"), id="targets"),
        pytest.param(("template", POS_USAGE, "--schema", "pipe"), id="schema"),
        pytest.param(("resolve", "night.ledger.db", "--from", "pipe"), id="findings"),
    ],
)
def test_a_signal_ends_the_wait_for_a_pipe(argv: tuple[str, ...], place: Workplace) -> None:
    os.mkfifo(place.folder / "pipe")
    victim = place.start(*argv)
    write = os.open(place.folder / "pipe", os.O_WRONLY)  # once the other end is open

    victim.send_signal(signal.SIGTERM)

    assert ended(victim).returncode == 143
    os.close(write)


# Looks every name up for ever, as where a name server's responses are dropped on the way, and runs
# the program that stands behind it.
SILENT_NAME_SERVER = """
import runpy, socket, sys, threading

def look_up(*_, **__):
    print("looking up a name", file=sys.stderr, flush=True)
    threading.Event().wait()

socket.getaddrinfo = look_up
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""
LAUNCHES_BY_THE_LIBRARY = """
import asyncio, sys
import deslaunch

async def night():
    settings = deslaunch.Settings(max_wait=0.05)

    async with deslaunch.DesClient("https://des.example", token="t", connect_timeout=0.2) as des:
        try:
            await deslaunch.launch("night.jsonl", des, schema="jobs.json", settings=settings)
        except deslaunch.Stopped as exc:
            sys.exit(exc.exit_code)

if sys.argv[1:] == ["uvloop"]:
    import uvloop as asyncio

asyncio.run(night())
"""
LOGIN = {
    "DES_AUTH_URL": "https://auth.example",
    **{f"DES_{name}": "x" for name in ("ORG_ID", "CLIENT_ID", "CLIENT_SECRET")},
    **{f"DES_{name}": "x" for name in ("USERNAME", "PASSWORD")},
}


@pytest.fixture
def nameless(place: Workplace) -> Workplace:
    """A place from which no name can be looked up, and nothing says so."""
    (place.folder / "names.py").write_text(SILENT_NAME_SERVER)
    (place.folder / "library.py").write_text(LAUNCHES_BY_THE_LIBRARY)
    (place.folder / "jobs.json").write_text(json.dumps(DEFAULT_JOBS))
    place.environment["DES_BASE_URL"] = "https://des.example"
    place.manifest(3)
    return place


def wait_for_lookup(process: subprocess.Popen[str]) -> None:
    assert process.stderr is not None

    while "looking up" not in (line := process.stderr.readline()):
        assert line


def test_a_launch_that_gives_a_name_up_ends_then(nameless: Workplace) -> None:
    options = ("--schema", "jobs.json", "--connect-timeout", "0.2", *QUICK)
    done = nameless.run("run", "night.jsonl", *options, wrap=[sys.executable, "names.py"])

    assert done.returncode == 5
    assert "could not be reached in 3 tries" in done.stderr
    assert "looking up a name" in done.stderr


@pytest.mark.parametrize("environment", [{}, LOGIN], ids=["DES", "auth server"])
@pytest.mark.parametrize("command", ["run", "check"])
def test_a_signal_ends_the_wait_for_a_name(
    command: str, environment: dict[str, str], nameless: Workplace
) -> None:
    nameless.environment.update(environment)
    token = None if environment else TOKEN
    wrap = [sys.executable, "names.py"]
    victim = nameless.start(command, "night.jsonl", token=token, wrap=wrap)
    wait_for_lookup(victim)
    victim.send_signal(signal.SIGTERM)

    assert ended(victim).returncode == 143


@pytest.mark.parametrize("environment", [{}, LOGIN], ids=["DES", "auth server"])
def test_a_signal_in_a_launch_does_not_wait_for_a_name(
    environment: dict[str, str], nameless: Workplace
) -> None:
    nameless.environment.update(environment)
    token = None if environment else TOKEN
    wrap = [sys.executable, "names.py"]
    options = ("--schema", "jobs.json", "--connect-timeout", "300", "--drain-timeout", "300")
    victim = nameless.start("run", "night.jsonl", "--json", *options, token=token, wrap=wrap)
    wait_for_lookup(victim)
    victim.send_signal(signal.SIGTERM)
    done = ended(victim)
    summary = json.loads(done.stdout)

    assert (done.returncode, summary["pending"], summary["attempts"]) == (143, 3, 0)
    assert "waiting up to" not in done.stderr  # there is no response that may come


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_a_program_that_gives_a_name_up_ends_then(loop: str, nameless: Workplace) -> None:
    done = subprocess.run(
        [sys.executable, "names.py", "library.py", loop],
        cwd=nameless.folder,
        env=nameless.environment,
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
    )

    assert (done.returncode, "looking up a name" in done.stderr) == (5, True), done.stderr


def test_a_second_launcher_is_told_who_is_at_work(slow: Workplace) -> None:
    first = slow.start("run", "night.jsonl", "--concurrency", "4")
    assert slow.wait_for_runs(first, 5)

    second = slow.run("resume", "night.ledger.db")
    live, text = slow.json("status", "night.ledger.db"), slow.run("status", "night.ledger.db")
    release(slow)

    assert second.returncode == 8
    assert f"{first.pid} on {os.uname().nodename}" in second.stderr
    assert (live["inFlight"], live["unknown"], live["exitCode"]) == (4, 0, 5)
    assert f"at work: process {first.pid} on {os.uname().nodename} since 20" in text.stdout
    assert ended(first).returncode == 0


def test_no_command_is_told_that_is_refused_beside_a_launcher(slow: Workplace) -> None:
    first = slow.start("run", "night.jsonl", "--concurrency", "4")
    assert slow.wait_for_runs(first, 5)

    withdrawn = slow.run("withdraw", "night.ledger.db", "row-50")
    reported = slow.run("report", "night.ledger.db", "-o", "night.html")
    release(slow)

    assert (withdrawn.returncode, reported.returncode) == (0, 0)
    assert "deslaunch resume" not in withdrawn.stderr
    assert "deslaunch resume" not in (slow.folder / "night.html").read_text()


def test_status_tells_that_the_last_launcher_was_killed(slow: Workplace) -> None:
    first = slow.start("run", "night.jsonl", "--concurrency", "4")
    assert slow.wait_for_runs(first, 5)

    first.kill()
    ended(first)
    killed = slow.run("status", "night.ledger.db")
    release(slow)
    resumed = slow.run("resume", "night.ledger.db", "--limit", "1")
    later = slow.run("status", "night.ledger.db")

    why = f"stopped: process {first.pid} on {os.uname().nodename} since 20"
    assert why in killed.stdout
    assert "recorded no end: it was killed, or its machine or disk failed" in killed.stdout
    assert (resumed.returncode, "recorded no end" in later.stdout) == (5, False)


@pytest.mark.parametrize(
    "redirections",
    [
        pytest.param("2> /dev/full", id="stderr-full"),
        pytest.param("> /dev/full", id="stdout-full"),
        pytest.param(">&- 2>&- <&-", id="all-closed"),
        pytest.param("2>&1 | true", id="nobody-reads"),
    ],
)
def test_streams_that_fail_end_no_launch(redirections: str, place: Workplace) -> None:
    place.manifest(20)
    line = f"deslaunch run night.jsonl --verbose --json {redirections}; exit ${{PIPESTATUS[0]}}"

    done = place.shell(f"bash -c {shlex.quote(line)}")

    assert (done.returncode, len(place.simulator.runs)) == (0, 20), done.stderr
    assert place.json("status", "night.ledger.db")["started"] == 20


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_streams_that_are_not_utf_8_end_nothing(encoding: str, place: Workplace) -> None:
    place.write([row(1, key="row → 1")])
    place.environment["PYTHONIOENCODING"] = encoding

    done = place.run("run", "night.jsonl", "--json", "--verbose")
    results = place.run("log", "night.ledger.db")

    assert (done.returncode, json.loads(done.stdout)["started"]) == (0, 1)
    assert r"\u2192 1: started" in done.stderr
    assert r"\u2192" in results.stdout


def test_names_that_are_not_utf_8_are_shown_and_work(place: Workplace) -> None:
    place.manifest(2).rename(os.fsdecode(os.fsencode(place.folder) + b"/ni\xff\x1bght.jsonl"))
    name = r"$'ni\xff\x1bght.jsonl'"

    def bash(line: str) -> subprocess.CompletedProcess[str]:
        return place.shell(f"bash -c {shlex.quote(line)}")

    done = bash(f"deslaunch run {name} --limit 1 --json")
    again = command_after(done.stderr, "send the remaining rows")

    assert (done.returncode, json.loads(done.stdout)["ledger"]) == (5, "ni\\xff\x1bght.ledger.db")
    assert again == r"deslaunch resume $'ni\xff\x1bght.ledger.db'"
    assert bash(f"{again} --json").returncode == 0
    assert json.loads(bash(f"deslaunch check {name} --json").stdout)["rows"] == 2
    assert "\x1b" not in done.stdout + done.stderr
    assert len(place.simulator.runs) == 2


def test_the_first_lines_of_results_are_enough(place: Workplace) -> None:
    place.manifest(2_000)
    place.run("run", "night.jsonl", "--limit", "1")
    line = "deslaunch results night.ledger.db | head -n 1; exit ${PIPESTATUS[0]}"

    done = place.shell(f"bash -c {shlex.quote(line)}")

    assert (done.returncode, done.stderr) in {(141, ""), (0, "")}
    assert done.stdout.startswith("key,row,target,")


def test_results_that_do_not_fit_are_a_failure(place: Workplace) -> None:
    place.manifest(1)
    place.run("run", "night.jsonl")

    done = place.shell("deslaunch results night.ledger.db > /dev/full")

    assert done.returncode == 2
    assert done.stderr.startswith("error: stdout can't be written: No space left on device\n")


def test_a_log_is_followed_while_the_ledger_grows(slow: Workplace) -> None:
    launch = slow.start("run", "night.jsonl", "--concurrency", "4")
    assert slow.wait_for_runs(launch, 5)
    follower = slow.start("log", "night.ledger.db", "--follow")
    assert follower.stdout is not None
    first = json.loads(follower.stdout.readline())
    release(slow)
    kinds, keys = [first["kind"]], set()

    while kinds[-1] != "ended":
        entry = json.loads(follower.stdout.readline())
        kinds.append(entry["kind"])
        keys.add(entry["key"] if entry["kind"] == "attempt" and entry["result"] else None)

    assert ended(launch).returncode == 0
    assert not list(slow.folder.glob("night.ledger.db-*")), "the follower kept a WAL"
    follower.send_signal(signal.SIGINT)
    done = ended(follower)
    assert (done.returncode, done.stderr) == (130, "")
    assert {f"row-{n}" for n in range(1, 51)} <= keys


# At a terminal of the kernel's.

QUESTION = "Start 3 runs? [y/N] "


@pytest.mark.parametrize(
    ("typed", "code", "said"),
    [
        pytest.param("y\n", 0, "3 rows: 3 started; 3 attempts", id="yes"),
        pytest.param("n\n", 2, "nothing was sent", id="no"),
        pytest.param("\x04", 2, "nothing was sent", id="end-of-input"),
        pytest.param("\x03", 130, "nothing was sent", id="ctrl-c"),
    ],
)
def test_a_person_is_asked_before_anything_is_sent(
    typed: str, code: int, said: str, place: Workplace
) -> None:
    place.manifest(3)

    with Terminal(place, "run", "night.jsonl", "--quiet") as terminal:
        terminal.expect(QUESTION)
        assert not place.simulator.runs
        terminal.type(typed)

        assert terminal.code == code
        assert said in terminal.text or (code == 0 and "3 started" not in terminal.text)

    assert place.ledger.exists() is (code == 0)
    assert len(place.simulator.runs) == (0 if code else 3)


@pytest.mark.parametrize(
    "argv",
    [
        pytest.param(["run", "night.jsonl", "--yes"], id="yes"),
        pytest.param(["run", "night.jsonl", "--dry-run"], id="dry-run"),
    ],
)
def test_some_are_not_asked(argv: list[str], place: Workplace) -> None:
    place.manifest(3)

    with Terminal(place, *argv) as terminal:
        assert (terminal.code, "[y/N]" in terminal.text) == (0, False)


@pytest.mark.parametrize(
    ("typed", "code", "runs"),
    [pytest.param("y\n", 0, 3, id="yes"), pytest.param("n\n", 2, 0, id="no")],
)
def test_a_person_is_asked_although_stdin_is_the_manifest(
    typed: str, code: int, runs: int, place: Workplace
) -> None:
    place.manifest(3)
    wrap = ("bash", "-c", 'cat night.jsonl | "$@"; exit $?', "bash")
    words = ("run", "-", "--format", "jsonl", "--ledger", "night.ledger.db")

    with Terminal(place, *words, wrap=wrap) as terminal:
        terminal.expect(QUESTION)
        assert not place.simulator.runs
        terminal.type(typed)
        assert terminal.code == code

    assert len(place.simulator.runs) == runs


def test_corrections_of_stdin_are_asked_about_too(place: Workplace) -> None:
    place.manifest(3)
    assert place.run("run", "night.jsonl", "--limit", "1", "--yes").returncode == 5
    wrap = ("bash", "-c", 'tail -n 1 night.jsonl | "$@"; exit $?', "bash")
    words = ("resume", "night.ledger.db", "--corrections", "-", "--format", "jsonl")

    with Terminal(place, *words, wrap=wrap) as terminal:
        terminal.expect("Start 2 runs? [y/N] ")
        terminal.type("y\n")
        assert terminal.code == 0


def test_nobody_is_asked_from_the_background(place: Workplace) -> None:
    place.manifest(3)

    wrap = ("bash", "-c", 'timeout 30 "$@"; exit $?', "bash")  # timeout makes a group of its own

    with Terminal(place, "run", "night.jsonl", wrap=wrap) as terminal:
        assert terminal.code == 2
        assert "error: deslaunch can't ask in the background; nothing was sent" in terminal.text
        assert "pass --yes" in terminal.text

    assert not place.simulator.runs


def test_a_finding_before_its_time_takes_a_yes(tmp_path: Path) -> None:
    with workplace(tmp_path, fault("close-after-start", 2)) as place:
        place.manifest(2)
        place.run("run", "night.jsonl", "--concurrency", "1")

        with Terminal(place, "resolve", "night.ledger.db", "row-2", "--not-started") as terminal:
            terminal.expect("Record it anyway? [y/N] ")
            terminal.type("y\n")

            assert terminal.code == 0

        assert place.json("status", "night.ledger.db")["pending"] == 1


def test_a_terminal_that_is_closed_ends_a_launch_in_good_order(place: Workplace) -> None:
    place.manifest(1_000)

    with Terminal(place, "run", "night.jsonl", "--yes", "--rate", "100") as terminal:
        terminal.expect("slots now")

        assert terminal.hang_up() == 129

    summary = place.json("status", "night.ledger.db")
    assert (summary["unknown"], summary["started"]) == (0, len(place.simulator.runs))
    assert summary["pending"] > 0


def test_a_launch_is_a_block_and_its_causes_stand_above_it(tmp_path: Path) -> None:
    with workplace(tmp_path, fault("status", status=400, **{"from": 2, "to": 40})) as place:
        place.manifest(100)
        options = ("--yes", "--rate", "60", "--max-errors", "1000")

        with Terminal(place, "run", "night.jsonl", *options) as terminal:
            assert terminal.code == 3

    assert terminal.text.count("(first: row ") == 2  # while it goes on, and at its end
    assert " of 100 rows ended, " in terminal.text
    assert " in flight, 16 slots now" in terminal.text
    assert "39 rows rejected: HTTP 400" in terminal.text


def test_a_simulator_prints_where_it_is(tmp_path: Path, place: Workplace) -> None:
    simulator = place.start("simulate", "--log", "other.jsonl")
    assert simulator.stdout is not None
    url = simulator.stdout.readline().strip()

    told = place.run("jobs", "--base-url", url, token="simulated")
    simulator.send_signal(signal.SIGTERM)

    assert (told.returncode, ended(simulator).returncode) == (0, 0)
    assert url.startswith("http://127.0.0.1:")
    assert DESLAUNCH.endswith("deslaunch")
