"""The command line as processes: exit codes, streams, crashes, signals, secrets."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

import pytest
from commands import DESLAUNCH, OTHER_TOKEN, POS_USAGE, TOKEN, Workplace, workplace

from deslaunch import cli
from deslaunch.cli.clients import proxy_of
from deslaunch.cli.group import HOMES
from deslaunch.ledger import snapshot

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.slow


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Workplace]:
    with workplace(tmp_path) as found:
        yield found


def wait_for_runs(place: Workplace, count: int) -> None:
    """Watch another process's log grow, for ten seconds at most."""
    deadline = time.monotonic() + 10

    while len(place.log) < count:
        assert time.monotonic() < deadline, f"only {len(place.log)} runs"
        os.sched_yield()


class TestRun:
    def test_every_row_is_started_once(self, place: Workplace) -> None:
        place.manifest(50)

        done = place.run("run", "night.jsonl", "--json")

        assert done.returncode == 0, done.stderr
        assert sorted(place.logged_rows) == list(range(1, 51))
        summary = json.loads(done.stdout)
        assert summary == {
            "rows": 50,
            "started": 50,
            "failed": 0,
            "rejected": 0,
            "unknown": 0,
            "invalid": 0,
            "pending": 0,
            "inFlight": 0,
            "possibleDuplicates": 0,
            "attempts": 50,
            "seconds": summary["seconds"],
            "ledger": "night.ledger.jsonl",
            "exitCode": 0,
        }
        assert place.json("status", "night.ledger.jsonl") | {"seconds": 0} == summary | {
            "seconds": 0
        }

    def test_results_come_in_manifest_order(self, place: Workplace) -> None:
        place.manifest(20)
        place.run("run", "night.jsonl")

        done = place.run("results", "night.ledger.jsonl", "--format", "jsonl", token=None)

        results = [json.loads(line) for line in done.stdout.splitlines()]
        assert [result["key"] for result in results] == [f"row-{n}" for n in range(1, 21)]
        assert {result["jobRunId"] for result in results} == {run["jobRunId"] for run in place.log}
        assert list(results[0]) == [
            "key",
            "row",
            "target",
            "jobId",
            "state",
            "jobRunId",
            "attempts",
            "status",
            "error",
            "possibleDuplicate",
            "sentUtc",
            "answeredUtc",
            "finished",
            "success",
            "statusText",
            "finishedUtc",
            "outputFiles",
        ]

    def test_results_are_written_to_a_file(self, place: Workplace) -> None:
        place.manifest(3)
        place.run("run", "night.jsonl")

        done = place.run("results", "night.ledger.jsonl", "-o", "out.csv", token=None)

        assert (done.returncode, done.stdout) == (0, "")
        assert (place.folder / "out.csv").read_text().splitlines()[1].startswith("row-1,1,default")

    def test_results_replace_those_of_before(self, place: Workplace) -> None:
        place.manifest(1)
        place.run("run", "night.jsonl")
        (place.folder / "out.csv").write_text("of yesterday")

        done = place.run("results", "night.ledger.jsonl", "-o", "out.csv", token=None)

        assert done.returncode == 0
        assert (place.folder / "out.csv").read_text().startswith("key,row,")

    @pytest.mark.parametrize("name", ["night.ledger.jsonl", "night.jsonl", "moved.jsonl"])
    def test_results_never_replace_what_they_come_from(self, place: Workplace, name: str) -> None:
        moved = place.manifest(1, "moved.jsonl")
        place.manifest(1)
        place.run("run", "night.jsonl")
        before = (place.folder / name).read_bytes()
        command = ("results", "night.ledger.jsonl", "--manifest", str(moved))

        done = place.run(*command, "-o", name, token=None)

        assert (done.returncode, (place.folder / name).read_bytes()) == (2, before)
        assert f"{name}: the results would replace what they are made from" in done.stderr

    def test_a_second_run_sends_nothing(self, place: Workplace) -> None:
        place.manifest(5)
        place.run("run", "night.jsonl")

        again = place.run("run", "night.jsonl")
        resumed = place.run("run", "night.jsonl", "--resume")

        assert again.returncode == 7
        assert "deslaunch resume night.ledger.jsonl" in again.stderr
        assert resumed.returncode == 0
        assert len(place.log) == 5

    def test_another_manifest_is_told_to_take_another_ledger(self, place: Workplace) -> None:
        place.manifest(5)
        place.run("run", "night.jsonl")
        place.manifest(6)

        done = place.run("run", "night.jsonl")

        assert done.returncode == 7
        assert "belongs to another manifest" in done.stderr
        assert "a new batch needs a new --ledger" in done.stderr
        assert len(place.log) == 5

    def test_stdin_is_kept_for_a_resume(self, place: Workplace) -> None:
        rows = place.manifest(5).read_text()
        options = ("-", "--format", "jsonl", "--ledger", "piped.ledger.jsonl")

        done = place.run("run", *options, stdin=rows)
        again = place.run("run", *options, "--resume", stdin=rows)
        other = place.run("run", *options, "--resume", stdin=rows + rows)
        resumed = place.run("resume", "piped.ledger.jsonl")

        assert (done.returncode, again.returncode, other.returncode, resumed.returncode) == (
            0,
            0,
            7,
            0,
        )
        kept = place.folder / "piped.ledger.jsonl.manifest"
        assert (kept.read_text(), kept.stat().st_mode & 0o777) == (rows, 0o600)
        assert len(place.log) == 5

    def test_stdin_needs_a_ledger_and_a_format(self, place: Workplace) -> None:
        assert place.run("run", "-", stdin="").returncode == 2

    def test_an_empty_batch_is_done(self, place: Workplace) -> None:
        (place.folder / "none.csv").write_text("key,jobId\n")

        done = place.run("run", "none.csv")

        assert done.returncode == 0
        assert "0 rows" in done.stderr

    def test_invalid_rows_send_nothing(self, place: Workplace) -> None:
        path = place.manifest(3)
        path.write_text(path.read_text() + '{"jobId": "x"}\n{"jobId": "' + POS_USAGE + '"}\n')

        done = place.run("run", "night.jsonl")

        assert done.returncode == 2
        assert "night.jsonl:4, column jobId:" in done.stderr
        assert "night.jsonl:5, column DBGenFrom:" in done.stderr
        assert place.log == []
        assert not (place.folder / "night.ledger.jsonl").exists()

    def test_invalid_rows_are_skipped_on_demand(self, place: Workplace) -> None:
        path = place.manifest(3)
        path.write_text(path.read_text() + '{"jobId": "x"}\n')

        done = place.run("run", "night.jsonl", "--skip-invalid")
        resumed = place.run("resume", "night.ledger.jsonl")

        assert (done.returncode, resumed.returncode) == (3, 3)
        assert sorted(place.logged_rows) == [1, 2, 3]
        assert place.json("status", "night.ledger.jsonl")["invalid"] == 1


class TestCheck:
    def test_a_valid_manifest_exits_0_and_sends_nothing(self, place: Workplace) -> None:
        place.manifest(3)

        done = place.run("check", "night.jsonl")

        assert (done.returncode, place.log) == (0, [])
        assert "3 rows: 3 valid, 0 invalid" in done.stderr

    def test_the_json_names_every_problem(self, place: Workplace) -> None:
        (place.folder / "bad.csv").write_text(f"jobId,DBGenFrom,Nonsense\n{POS_USAGE},abc,1\n")

        done = place.run("check", "bad.csv", "--json")

        report = json.loads(done.stdout)
        assert done.returncode == 2
        assert list(report) == ["rows", "valid", "invalid", "problems", "warnings", "exitCode"]
        assert [problem["column"] for problem in report["problems"]] == ["DBGenFrom", "Nonsense"]
        assert set(report["problems"][0]) == {
            "file",
            "line",
            "row",
            "column",
            "expected",
            "got",
            "message",
        }

    def test_a_column_of_notes_is_one_problem(self, place: Workplace) -> None:
        path = place.folder / "noted.csv"
        rows = "".join(f"{POS_USAGE},{number},a note\n" for number in range(1, 501))
        path.write_text(f"jobId,DBGenFrom,comment\n{rows}")

        checked, run = place.run("check", "noted.csv"), place.run("run", "noted.csv")
        path.write_text(f"jobId,DBGenFrom,deslaunch.comment\n{rows}")
        renamed = place.run("check", "noted.csv")

        told = checked.stderr.splitlines()
        assert (checked.returncode, run.returncode, renamed.returncode) == (2, 2, 0)
        assert told[0].startswith("noted.csv:2, column comment (500 rows): job 'POS usage' has no")
        assert told[0].endswith("a CSV's column of notes is named 'deslaunch.comment', or left out")
        assert told[1:] == [
            "all 500 problems one by one: deslaunch check with --json",
            "500 rows: 0 valid, 500 invalid",
        ]
        assert run.stderr.splitlines()[:2] == told[:2]
        assert place.log == []

    def test_stdin_is_checked(self, place: Workplace) -> None:
        rows = place.manifest(3).read_text() + "[]\n"

        done = place.run("check", "-", "--format", "jsonl", stdin=rows)

        assert done.returncode == 2
        assert "<stdin>:4: " in done.stderr

    def test_a_schema_file_needs_no_des(self, place: Workplace) -> None:
        place.manifest(3)
        (place.folder / "jobs.json").write_text(place.run("jobs", "--json").stdout)
        offline = Workplace(
            place.folder,
            {k: v for k, v in place.environment.items() if k != "DES_BASE_URL"},
        )

        done = offline.run("check", "night.jsonl", "--schema", "jobs.json", token=None)

        assert done.returncode == 0, done.stderr

    def test_unreachable_exits_5(self, place: Workplace) -> None:
        place.manifest(3)

        done = place.run("check", "night.jsonl", "--base-url", "http://127.0.0.1:9")

        assert done.returncode == 5, done.stderr

    def test_a_refused_token_exits_6(self, place: Workplace) -> None:
        place.manifest(3)

        assert place.run("check", "night.jsonl", token="wrong").returncode == 6


class TestConfiguration:
    def test_no_token(self, place: Workplace) -> None:
        place.manifest(1)

        done = place.run("run", "night.jsonl", token=None)

        assert (done.returncode, place.log) == (2, [])
        assert "set DES_TOKEN, DES_TOKEN_FILE or DES_TOKEN_COMMAND" in done.stderr

    def test_token_from_a_file_and_from_a_command(self, place: Workplace) -> None:
        place.manifest(1)
        (place.folder / "token").write_text(f"{TOKEN}\n")
        environment = place.environment

        by_file = Workplace(place.folder, environment | {"DES_TOKEN_FILE": "token"})
        by_command = Workplace(place.folder, environment | {"DES_TOKEN_COMMAND": "cat token"})
        by_both = Workplace(place.folder, by_file.environment | by_command.environment)

        assert by_file.run("jobs", token=None).returncode == 0
        assert by_command.run("jobs", token=None).returncode == 0
        assert by_both.run("jobs", token=None).returncode == 2

    def test_options_out_of_range(self, place: Workplace) -> None:
        place.manifest(1)

        done = place.run("run", "night.jsonl", "--concurrency", "0")

        assert (done.returncode, place.log) == (2, [])
        assert "--concurrency takes a number from 1" in done.stderr

    def test_environment_variables_tune(self, place: Workplace) -> None:
        place.manifest(1)
        tuned = Workplace(place.folder, place.environment | {"DESLAUNCH_CONCURRENCY": "3"})

        tuned.run("run", "night.jsonl")

        session = snapshot(place.folder / "night.ledger.jsonl").replay.session
        assert session is not None
        assert session["options"]["concurrency"] == 3

    @pytest.mark.parametrize(
        ("url", "proxy"),
        [
            pytest.param("https://des.invalid", "http://proxy:3128", id="https"),
            pytest.param("http://des.invalid", None, id="http has no proxy here"),
            pytest.param("https://inside.invalid", None, id="NO_PROXY"),
            pytest.param("https://127.0.0.1:8080", None, id="loopback"),
            pytest.param("https://localhost", None, id="localhost"),
            pytest.param("https://[::1]:8080", None, id="loopback of IPv6"),
        ],
    )
    def test_the_environments_proxy_is_used_but_for_this_machine(
        self, url: str, proxy: str | None, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("HTTPS_PROXY", "http://proxy:3128")
        monkeypatch.setenv("NO_PROXY", "inside.invalid")
        monkeypatch.delenv("HTTP_PROXY", raising=False)
        monkeypatch.delenv("http_proxy", raising=False)

        assert proxy_of(url) == proxy

    def test_plain_http_is_for_loopback(self, place: Workplace) -> None:
        place.manifest(1)

        done = place.run("run", "night.jsonl", "--base-url", "http://des.invalid")

        assert done.returncode == 2
        assert "--allow-http" in done.stderr


class TestCrash:
    def test_kill_9_leaves_at_most_the_slots_in_doubt(self, tmp_path: Path) -> None:
        with workplace(tmp_path, {"latency": 0.02}) as place:
            place.manifest(2000)
            victim = place.start("run", "night.jsonl", "--concurrency", "16")
            wait_for_runs(place, 300)
            victim.send_signal(signal.SIGKILL)
            victim.communicate(timeout=10)
            before = snapshot(tmp_path / "night.ledger.jsonl").replay
            doubtful = {key for key, state in before.states.items() if state.state == "unknown"}

            done = place.run("resume", "night.ledger.jsonl", "--concurrency", "64")

            assert done.returncode == (4 if doubtful else 0), done.stderr
            rows = place.logged_rows
            assert len(rows) == len(set(rows)), "a row was started twice"
            assert len(doubtful) <= 16
            after = snapshot(tmp_path / "night.ledger.jsonl").replay
            assert {k for k, s in after.states.items() if s.state == "unknown"} == doubtful
            assert {k for k, s in after.states.items() if s.state == "started"} == {
                f"row-{n}" for n in range(1, 2001)
            } - doubtful
            assert {run["jobRunId"] for run in place.log} >= {
                state.job_run_id for state in after.states.values() if state.job_run_id
            }
            assert {f"row-{row}" for row in rows} | doubtful == set(after.states)

    def test_unknown_rows_are_listed_resolved_and_resumed(self, tmp_path: Path) -> None:
        script = {
            "faults": [{"fault": "close-after-start", "at": [2]}, {"fault": "close", "at": [3]}]
        }

        with workplace(tmp_path, script) as place:
            place.manifest(4)
            done = place.run("run", "night.jsonl", "--concurrency", "1")
            listed = place.run("status", "night.ledger.jsonl", token=None)

            assert (done.returncode, listed.returncode) == (4, 0)
            assert "unknown: key row-2 row 2" in listed.stdout
            assert f"job {POS_USAGE}" in listed.stdout
            assert "parameters DBGenFrom=2" in listed.stdout
            assert re.search(r"created from \d{4}-\d\d-\d\dT\S+Z to \d{4}\S+Z", listed.stdout)

            run = place.log[1]["jobRunId"]
            started = place.run("resolve", "night.ledger.jsonl", "row-2", "--started", run)
            (tmp_path / "found.csv").write_text("key,as,jobRunId,note\nrow-3,notStarted,,looked\n")
            freed = place.run("resolve", "night.ledger.jsonl", "--from", "found.csv")
            resumed = place.run("resume", "night.ledger.jsonl")

            assert (started.returncode, freed.returncode, resumed.returncode) == (0, 0, 0)
            assert started.stderr.startswith(f"recorded: key row-2 started {run}\n")
            assert "too early to say that nothing was started for row-3: " in freed.stderr
            assert "recorded: key row-3 started nothing\n" in freed.stderr
            assert sorted(place.logged_rows) == [1, 2, 3, 4]

    def test_resolve_refuses_what_is_not_in_doubt(self, place: Workplace) -> None:
        place.manifest(1)
        place.run("run", "night.jsonl")

        assert place.run("resolve", "night.ledger.jsonl", "row-1", "--not-started").returncode == 2
        assert place.run("resolve", "night.ledger.jsonl", "row-9", "--not-started").returncode == 2
        assert place.run("resolve", "night.ledger.jsonl", "row-1").returncode == 2

    def test_a_second_launcher_is_told_who_holds_the_ledger(self, tmp_path: Path) -> None:
        with workplace(tmp_path, {"latency": 0.2}) as place:
            place.manifest(400)
            first = place.start("run", "night.jsonl")
            wait_for_runs(place, 20)

            second = place.run("resume", "night.ledger.jsonl")
            same = place.run("run", "night.jsonl")
            live = place.json("status", "night.ledger.jsonl")

            assert (second.returncode, same.returncode) == (7, 7)
            assert f"process {first.pid} on {os.uname().nodename}" in second.stderr
            assert f"process {first.pid} on {os.uname().nodename}" in same.stderr
            assert 0 < live["inFlight"] <= 16
            assert live["unknown"] == 0
            assert first.communicate(timeout=60)[0] == ""
            assert first.returncode == 0
            assert sorted(place.logged_rows) == list(range(1, 401))


class TestSignals:
    @pytest.mark.parametrize(
        ("number", "code"),
        [
            pytest.param(signal.SIGINT, 130, id="SIGINT"),
            pytest.param(signal.SIGTERM, 143, id="SIGTERM"),
            pytest.param(signal.SIGHUP, 129, id="SIGHUP"),
        ],
    )
    def test_the_first_signal_drains(self, tmp_path: Path, number: int, code: int) -> None:
        with workplace(tmp_path, {"latency": 0.05}) as place:
            place.manifest(1000)
            victim = place.start("run", "night.jsonl")
            wait_for_runs(place, 50)
            victim.send_signal(number)
            _, err = victim.communicate(timeout=20)

            assert victim.returncode == code, err
            assert "deslaunch resume night.ledger.jsonl" in err
            summary = place.json("status", "night.ledger.jsonl")
            assert (summary["unknown"], summary["started"]) == (0, len(place.log))

            resumed = place.run("resume", "night.ledger.jsonl", "--concurrency", "64")

            assert resumed.returncode == 0
            assert sorted(place.logged_rows) == list(range(1, 1001))

    def test_a_hang_up_that_nohup_has_ignored_is_ignored(self, tmp_path: Path) -> None:
        with workplace(tmp_path, {"latency": 0.05}) as place:
            place.manifest(200)
            launch = subprocess.Popen(
                ["nohup", DESLAUNCH, "run", "night.jsonl"],
                cwd=place.folder,
                env=place.environment | {"DES_TOKEN": TOKEN},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
            )
            wait_for_runs(place, 50)
            launch.send_signal(signal.SIGHUP)
            launch.communicate(timeout=20)

            assert launch.returncode == 0
            assert sorted(place.logged_rows) == list(range(1, 201))

    def test_the_second_signal_gives_up_what_is_in_flight(self, tmp_path: Path) -> None:
        script = {"faults": [{"fault": "hang-after-start", "from": 2, "to": 1000}]}

        with workplace(tmp_path, script) as place:
            place.manifest(50)
            victim = place.start("run", "night.jsonl", "--concurrency", "4")
            wait_for_runs(place, 5)
            victim.send_signal(signal.SIGINT)
            assert victim.stderr is not None

            while victim.stderr.readline() != "stopped: interrupted\n":  # the plan comes first
                assert victim.poll() is None

            assert "waiting for the answers of 4 rows" in victim.stderr.readline()
            victim.send_signal(signal.SIGINT)
            victim.communicate(timeout=20)

            assert victim.returncode == 130
            summary = place.json("status", "night.ledger.jsonl")
            assert (summary["started"], summary["unknown"], summary["pending"]) == (1, 4, 45)
            assert len(place.log) == 5


class TestCredentials:
    def test_an_expired_token_leaves_the_rest_pending(self, tmp_path: Path) -> None:
        script = {"tokens": {"expireAfter": 120}}

        with workplace(tmp_path, script, f"{TOKEN} {OTHER_TOKEN}") as place:
            place.manifest(200)
            done = place.run("run", "night.jsonl")

            assert done.returncode == 6
            assert "go on with a new token: deslaunch resume night.ledger.jsonl" in done.stderr
            assert len(place.log) == 120

            resumed = place.run("resume", "night.ledger.jsonl", token=OTHER_TOKEN)

            assert resumed.returncode == 0
            assert sorted(place.logged_rows) == list(range(1, 201))

    def test_the_token_appears_nowhere(self, tmp_path: Path) -> None:
        echo = json.dumps({"message": f"bad token {TOKEN}"})
        script = {
            "tokens": {"expireAfter": 6},
            "faults": [
                {"fault": "status", "status": 500, "body": echo, "at": [2]},
                {"fault": "not-json", "body": f"<p>{TOKEN}</p>", "at": [3]},
                {"fault": "status", "status": 403, "body": echo, "at": [4]},
                {"fault": "garbage", "at": [5]},
                {"fault": "reset-after-start", "at": [6]},
            ],
        }

        with workplace(tmp_path, script) as place:
            place.manifest(20)
            said = [
                place.run("run", "night.jsonl", "--verbose", "--max-wait", "0.1"),
                place.run("resume", "night.ledger.jsonl", "--verbose"),
                place.run("status", "night.ledger.jsonl", "--verbose"),
                place.run("results", "night.ledger.jsonl", "--verbose"),
                place.run("jobs", "--verbose", "--base-url", "https://127.0.0.1:9"),
            ]

            assert said[0].returncode == 6
            written = [
                path.read_bytes()
                for path in tmp_path.rglob("*")
                if path.is_file() and path.name != "faults.json"
            ]
            texts = [one.stdout + one.stderr for one in said]
            assert not any(TOKEN.encode() in content for content in written)
            assert not any(TOKEN in text for text in texts)
            assert any("token" in text for text in texts)


class TestDisk:
    def test_a_full_disk_leaves_counts_runs_and_a_command(self, place: Workplace) -> None:
        place.manifest(300)
        command = f"ulimit -f 40; exec {DESLAUNCH} run night.jsonl --json"

        done = subprocess.run(
            ["bash", "-c", command],
            cwd=place.folder,
            env=place.environment | {"DES_TOKEN": TOKEN},
            capture_output=True,
            text=True,
            check=False,
        )

        summary = json.loads(done.stdout)
        assert (done.returncode, summary["exitCode"]) == (7, 7)
        assert "deslaunch resume night.ledger.jsonl" in done.stderr
        assert "deslaunch resolve night.ledger.jsonl KEY --started JOBRUNID" in done.stderr
        told = set(re.findall(r"^row-\d+\t(\S+)$", done.stderr, re.MULTILINE))
        known = snapshot(place.folder / "night.ledger.jsonl").replay.states.values()
        recorded = {state.job_run_id for state in known}
        assert {run["jobRunId"] for run in place.log} <= told | recorded

    def test_nobody_listens_to_stderr_any_more(self, place: Workplace) -> None:
        place.manifest(100)
        read, write = os.pipe()
        os.close(read)

        done = subprocess.run(
            [DESLAUNCH, "run", "night.jsonl", "--verbose"],
            cwd=place.folder,
            env=place.environment | {"DES_TOKEN": TOKEN},
            stderr=write,
            check=False,
        )

        os.close(write)
        assert (done.returncode, len(place.log)) == (0, 100)

    def test_nobody_reads_the_results_to_their_end(self, place: Workplace) -> None:
        place.manifest(100)
        place.run("run", "night.jsonl")
        command = f"{DESLAUNCH} results night.ledger.jsonl | true; echo ${{PIPESTATUS[0]}}"

        done = subprocess.run(
            ["bash", "-c", command], cwd=place.folder, capture_output=True, text=True, check=True
        )

        assert (done.stdout.strip(), done.stderr) in {("141", ""), ("0", "")}

    def test_stdin_that_stays_open_does_not_hold_up_a_signal(self, place: Workplace) -> None:
        read, write = os.pipe()
        victim = subprocess.Popen(
            [DESLAUNCH, "check", "-", "--format", "jsonl"],
            cwd=place.folder,
            env=place.environment | {"DES_TOKEN": TOKEN},
            stdin=read,
            stderr=subprocess.PIPE,
            text=True,
        )
        place.processes.append(victim)
        os.write(write, b"{}\n")

        while victim.poll() is None:  # it may not have come to its reading yet
            victim.send_signal(signal.SIGINT)
            os.sched_yield()

        os.close(read)
        os.close(write)
        victim.communicate()
        assert victim.returncode in {130, -signal.SIGINT}


class TestStartUp:
    def test_the_package_imports_neither_click_nor_rich(self) -> None:
        done = subprocess.run(
            [sys.executable, "-X", "importtime", "-c", "import deslaunch"],
            capture_output=True,
            text=True,
            check=True,
        )

        imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
        assert "deslaunch" in imported
        assert not {name for name in imported if name.split(".")[0] in {"click", "rich"}}

    def test_the_library_needs_neither_click_nor_rich(self) -> None:
        code = (
            "import sys, deslaunch; deslaunch.launch, deslaunch.DesClient, deslaunch.Results;"
            "sys.exit(bool({'click', 'rich'} & set(sys.modules)))"
        )

        assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0

    def test_help_loads_no_http_client(self) -> None:
        code = (
            "import sys; from deslaunch.cli import main; main(['--help']);"
            "sys.exit(bool({'aiohttp', 'rich'} & set(sys.modules)))"
        )
        done = subprocess.run([sys.executable, "-c", code], stdout=subprocess.DEVNULL, check=False)

        assert done.returncode == 0

    @pytest.mark.parametrize(
        ("arguments", "expected"),
        [
            pytest.param(["--version"], set(), id="version"),
            pytest.param(["status", "--help"], {"ledgers"}, id="status"),
            pytest.param(["run", "--help"], {"launching", "watching"}, id="run may watch"),
            pytest.param(["--help"], set(HOMES.values()), id="help of all"),
        ],
    )
    def test_a_command_imports_no_other_module_of_commands(
        self, arguments: list[str], expected: set[str]
    ) -> None:
        code = (
            f"import sys; from deslaunch.cli import main; main({arguments});"
            "print(*sys.modules, file=sys.stderr)"
        )
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        )

        imported = {name.removeprefix("deslaunch.cli.") for name in done.stderr.split()}
        assert imported & set(HOMES.values()) == expected

    @pytest.mark.parametrize("command", sorted(cli.command_line.commands))
    def test_every_command_explains_itself(self, command: str) -> None:
        done = subprocess.run(
            [DESLAUNCH, command, "--help"], capture_output=True, text=True, check=True
        )

        assert "Examples:" in done.stdout
        assert "Exit codes:" in done.stdout

    def test_the_module_runs_too(self) -> None:
        done = subprocess.run(
            [sys.executable, "-m", "deslaunch", "--version"],
            capture_output=True,
            text=True,
            check=True,
        )

        assert done.stdout.startswith("deslaunch, version ")


class TestExitCodes:
    def test_a_bug_is_exit_code_1(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def broken(**_: Any) -> int:
            raise ZeroDivisionError

        monkeypatch.setattr(cli.command_line.commands["jobs"], "callback", broken)

        assert cli.main(["jobs"]) == 1

    @pytest.mark.parametrize(
        ("arguments", "code"),
        [
            pytest.param(["--version"], 0, id="version"),
            pytest.param(["nonsense"], 2, id="no such command"),
            pytest.param(["status"], 2, id="argument missing"),
            pytest.param(["status", "nowhere.jsonl"], 7, id="no such ledger"),
            pytest.param(["run", "nowhere.csv"], 2, id="no base URL"),
        ],
    )
    def test_usage(self, arguments: list[str], code: int, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("DES_BASE_URL", raising=False)

        assert cli.main(arguments) == code
