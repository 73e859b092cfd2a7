"""``watch`` and ``run --watch`` as processes: exit codes, streams, kills, signals, tokens."""

from __future__ import annotations

import json
import os
import signal
import time
from typing import TYPE_CHECKING, Any

import pytest
from commands import OTHER_TOKEN, TOKEN, Workplace, workplace

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.slow

SLOW = {"latency": 0.02}
LEDGER = "night.ledger.jsonl"


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Workplace]:
    with workplace(tmp_path) as found:
        yield found


def ends(place: Workplace) -> list[dict[str, Any]]:
    """Return the runStatus records that are on disk."""
    text = (place.folder / LEDGER).read_text().rpartition("\n")[0]
    said = [json.loads(line) for line in text.splitlines()]
    return [record for record in said if record["record"] == "runStatus"]


def wait_for_ends(place: Workplace, count: int) -> None:
    deadline = time.monotonic() + 10

    while len(ends(place)) < count:
        assert time.monotonic() < deadline, f"only {len(ends(place))} ends"
        os.sched_yield()


def finish(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=60)
    return process.returncode, out, err


def test_run_with_watch_does_both(place: Workplace) -> None:
    place.manifest(30)

    done = place.run("run", "night.jsonl", "--watch", "--json")

    said = json.loads(done.stdout)
    assert (done.returncode, len(place.log)) == (0, 30)
    assert said | {"seconds": 0, "batch": said["batch"]["rows"]} == {
        "runs": 30,
        "succeeded": 30,
        "failed": 0,
        "untold": 0,
        "unfinished": 0,
        "failures": [],
        "seconds": 0,
        "ledger": LEDGER,
        "batch": 30,
        "exitCode": 0,
    }
    assert "30 rows: 30 started" in done.stderr
    assert "30 runs: 30 succeeded" in done.stderr
    assert {end["jobRunId"] for end in ends(place)} == {run["jobRunId"] for run in place.log}


def test_a_run_that_fails_is_seen_in_the_exit_code(tmp_path: Path) -> None:
    script = {"faults": [{"fault": "fail-run", "at": [2], "error": "no sales\nfound"}]}

    with workplace(tmp_path, script) as place:
        place.manifest(5)
        started = place.run("run", "night.jsonl")
        watched = place.run("watch", LEDGER)
        resumed = place.run("resume", LEDGER)
        status = place.run("status", LEDGER)
        listed = place.run("results", LEDGER, "--run", "failed", "--format", "jsonl")

    next_command = f"see which runs failed, and why: deslaunch results {LEDGER} --run failed\n"
    assert (started.returncode, watched.returncode, resumed.returncode) == (0, 3, 0)
    assert "5 runs: 4 succeeded, 1 failed\n  1 run failed: no sales found (key" in watched.stderr
    assert next_command in watched.stderr
    assert "5 runs: 4 succeeded, 1 failed" in status.stdout
    assert next_command in status.stderr
    assert json.loads(listed.stdout)["statusText"] == "no sales\nfound"


def test_a_killed_watch_goes_on_where_it_was(tmp_path: Path) -> None:
    with workplace(tmp_path, SLOW) as place:
        place.manifest(200)
        place.run("run", "night.jsonl", "--concurrency", "64")
        process = place.start("watch", LEDGER, "--concurrency", "4")
        wait_for_ends(place, 20)
        process.kill()
        finish(process)
        before = len(ends(place))
        done = place.run("watch", LEDGER, "--concurrency", "64")

    assert 20 <= before < 200
    assert (done.returncode, len(ends(place))) == (0, 200)
    assert {end["jobRunId"] for end in ends(place)} == {run["jobRunId"] for run in place.log}


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_the_watch(number: int, code: int, tmp_path: Path) -> None:
    with workplace(tmp_path, {"finishAfter": 1000}) as place:
        place.manifest(5)
        place.run("run", "night.jsonl")
        process = place.start("watch", LEDGER)
        wait_for_watch(place)
        process.send_signal(number)
        ended = finish(process)
        again = place.run("watch", LEDGER, "--watch-timeout", "0.1", "--interval", "0.01")

    assert ended[0] == code, ended
    assert "5 runs: 5 not finished" in ended[2]
    assert f"go on watching: deslaunch watch {LEDGER}\n" in ended[2]
    assert again.returncode == 5
    assert "watched for 0.1 s" in again.stderr


def wait_for_watch(place: Workplace) -> None:
    """Wait until a watch holds the ledger."""
    deadline = time.monotonic() + 10

    while '{"record":"watch",' not in (place.folder / LEDGER).read_text():
        assert time.monotonic() < deadline
        os.sched_yield()


def test_a_signal_while_the_rows_are_started_leaves_the_watch_out(tmp_path: Path) -> None:
    with workplace(tmp_path, SLOW) as place:
        place.manifest(500)
        process = place.start("run", "night.jsonl", "--watch", "--concurrency", "2")
        deadline = time.monotonic() + 10

        while len(place.log) < 10:
            assert time.monotonic() < deadline
            os.sched_yield()

        process.send_signal(signal.SIGINT)
        code, _, err = finish(process)

    assert (code, ends(place)) == (130, [])
    assert f"go on: deslaunch resume {LEDGER} --watch" in err
    assert "runs:" not in err


def test_only_one_works_on_a_ledger(tmp_path: Path) -> None:
    with workplace(tmp_path, {"finishAfter": 1000}) as place:
        place.manifest(3)
        place.run("run", "night.jsonl")
        process = place.start("watch", LEDGER)
        wait_for_watch(place)
        second = place.run("watch", LEDGER)
        resumed = place.run("resume", LEDGER)
        status = place.run("status", LEDGER)
        process.send_signal(signal.SIGTERM)
        finish(process)

    assert (second.returncode, resumed.returncode, status.returncode) == (7, 7, 0)
    assert f"the ledger is held by process {process.pid} on" in second.stderr
    assert f"the ledger is held by process {process.pid} on" in resumed.stderr


def test_an_expired_token_is_asked_for_anew(tmp_path: Path) -> None:
    script = {"tokens": {"expireAfter": 5}}

    with workplace(tmp_path, script, tokens=f"{TOKEN} {OTHER_TOKEN}") as place:
        place.manifest(5)
        place.run("run", "night.jsonl")
        (place.folder / "count").write_text("")
        script_path = place.folder / "fetch"
        script_path.write_text(
            f"#!/bin/sh\nif [ -s count ]; then echo '{OTHER_TOKEN}'; else echo '{TOKEN}'; fi\n"
            "echo x >> count\n"
        )
        script_path.chmod(0o700)
        place.environment["DES_TOKEN_COMMAND"] = str(script_path)
        done = place.run("watch", LEDGER, token=None)
        refused = place.run("watch", LEDGER, token=None)
        count = (place.folder / "count").read_text()
        text = (place.folder / LEDGER).read_text()

    assert (done.returncode, refused.returncode, count) == (0, 0, "x\nx\n")
    assert TOKEN not in text
    assert OTHER_TOKEN not in text


def test_a_refused_token_ends_the_watch(place: Workplace) -> None:
    place.manifest(5)
    place.run("run", "night.jsonl")

    done = place.run("watch", LEDGER, token=OTHER_TOKEN)

    assert done.returncode == 6
    assert "go on watching" in done.stderr


def test_without_a_terminal_a_quiet_watch_says_nothing(place: Workplace) -> None:
    place.manifest(3)
    place.run("run", "night.jsonl")

    done = place.run("watch", LEDGER, "--quiet")

    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_a_watch_of_several_ledgers_is_refused_with_the_loop_that_does_it(place: Workplace) -> None:
    for name in ("a.jsonl", "b c.jsonl"):
        place.manifest(2, name)
        place.run("run", name)

    ledgers = ("a.ledger.jsonl", "b c.ledger.jsonl")
    refused = place.run("watch", *ledgers, "--base-url", place.environment["DES_BASE_URL"])
    loop = refused.stderr.splitlines()[-1].partition(": ")[2]
    looped = place.shell(loop)

    assert refused.returncode == 2
    assert "watch follows one ledger, got 2; DES was not asked" in refused.stderr
    assert (looped.returncode, looped.stderr.count("2 runs: 2 succeeded")) == (0, 2)


def test_a_watch_of_no_ledger_is_a_mistake(place: Workplace) -> None:
    done = place.run("watch")

    assert (done.returncode, "Missing argument 'LEDGER'" in done.stderr) == (2, True)
