"""One run by the same rules as a batch; and a command that is told how a launch ended."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from typing import TYPE_CHECKING, Any

import pytest
import uvloop
from judge import read_log
from stage import POS_USAGE, QUICK, fault, workplace

from deslaunch.cli import ending

if TYPE_CHECKING:
    from asyncio.subprocess import Process
    from collections.abc import Callable
    from pathlib import Path

    from stage import Workplace


def parameters(place: Workplace) -> dict[str, object]:
    """Return the parameters of the only run."""
    [run] = read_log(place.log)
    return {name: one["valueStringEncoded"] for name, one in run["parameters"].items()}


# start


def test_a_run_is_started_and_its_id_alone_is_printed(place: Workplace) -> None:
    done = place.run("start", POS_USAGE, "DBGenFrom=1200", "DBGenTo:=1299")

    assert done.returncode == 0
    assert done.stdout == f"{read_log(place.log)[0]['jobRunId']}\n"
    assert parameters(place) == {"DBGenFrom": "1200", "DBGenTo": "1299"}
    [batch] = place.json("history")["batches"]
    assert "/state/starts/" in batch["ledger"]
    assert batch["counts"]["started"] == 1


def test_values_come_from_files_and_json(place: Workplace) -> None:
    (place.folder / "generation").write_text("7\n")
    place.run("start", POS_USAGE, "DBGenFrom=@generation", "TradingDate:=null")

    assert parameters(place) == {"DBGenFrom": "7", "TradingDate": None}


def test_the_auto_value_may_be_asked_for(place: Workplace) -> None:
    place.run("start", POS_USAGE, "DBGenFrom:=auto")
    [run] = read_log(place.log)

    assert run["parameters"]["DBGenFrom"]["useAutoValue"] is True


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["DBGenFrom=many"], "DBGenFrom must be an integer, not 'many'"),
        (["DBGenFrom"], "expected NAME=TEXT, NAME=@FILE or NAME:=JSON, got 'DBGenFrom'"),
        (["DBGenFrom:=1,"], "expected JSON or auto after :="),
        (["DBGenFrom=@none"], "none can't be read: No such file or directory"),
        (["DBGenFrom=1", "DBGenFrom=2"], "DBGenFrom is given twice"),
        ([], "DBGenFrom is required and missing"),
    ],
)
def test_what_can_not_be_started_is_told_and_leaves_nothing(
    place: Workplace, words: list[str], why: str
) -> None:
    done = place.run("start", POS_USAGE, *words)

    assert (done.returncode, done.stdout) == (2, "")
    assert why in done.stderr
    assert not set(done.stderr.split()) & {"--skip-invalid", "row", "rows", "column"}
    assert not read_log(place.log)
    assert not list(place.folder.glob("state/starts/*"))


def test_what_was_not_sent_is_withdrawn(place: Workplace) -> None:
    place.run("start", POS_USAGE, "DBGenFrom=1")  # the jobs are known from now on
    done = place.run("start", POS_USAGE, "DBGenFrom=2", "--ledger", "one.ledger.db", token="wrong")

    assert (done.returncode, done.stdout) == (6, "")
    assert "no run was started" in done.stderr
    assert done.stderr.endswith("the row was withdrawn: fix the cause, then start the run again\n")
    status, [noted] = place.json("status", "one.ledger.db"), place.json("history", "one")["batches"]
    assert (status["withdrawn"], status["exitCode"], noted["exitCode"]) == (1, 0, 0)
    assert place.run("history", "one", "--unfinished").stdout == ""

    taken = place.run("start", POS_USAGE, "DBGenFrom=2", "--ledger", "one.ledger.db")
    assert taken.returncode == 7
    assert taken.stderr.endswith("omit --ledger, or name a new file\n")


def test_the_target_of_a_run_is_named(place: Workplace) -> None:
    target = f'base_url = "{place.environment.pop("DES_BASE_URL")}"\ntoken_env = "DES_TOKEN"\n'
    (place.folder / "t.toml").write_text(f"[targets.acme]\n{target}[targets.bistro]\n{target}")
    words = (POS_USAGE, "DBGenFrom=1", "--config", "t.toml", "--target", "acme")

    assert place.run("start", *words).returncode == 0
    assert place.run("find", "start", "--json").stdout.count('"target":"acme"') == 1


def test_a_later_command_needs_no_option_that_was_given(place: Workplace) -> None:
    place.simulator.use({"finishAfter": 0.05})
    url = place.environment.pop("DES_BASE_URL")
    table = f'[targets.acme]\nbase_url = "{url}"\ntoken_env = "DES_TOKEN"\n'
    (place.folder / "t.toml").write_text(table)
    words = ("--config", "t.toml", "--target", "acme", "--ledger", "one.ledger.db")

    assert place.run("start", POS_USAGE, "DBGenFrom=1", *words).returncode == 0
    assert place.run("watch", "one.ledger.db", "--interval", "0.05").returncode == 0


def test_a_lost_response_is_unknown_and_not_sent_again(tmp_path: Path) -> None:
    with workplace(tmp_path, fault("close-after-start", 1)) as place:
        done = place.run("start", POS_USAGE, "DBGenFrom=1", "--ledger", "one.ledger.db", *QUICK)

        assert (done.returncode, done.stdout) == (4, "")
        assert "a run may have been started: unknown: " in done.stderr
        assert "no run" not in done.stderr
        assert "resolve" in done.stderr
        assert len(read_log(place.log)) == 1


def test_a_second_signal_leaves_a_run_that_may_have_been_started(tmp_path: Path) -> None:
    with workplace(tmp_path, fault("hold", 1)) as place:
        process = place.start("start", POS_USAGE, "DBGenFrom=1")
        place.portal.call(place.simulator.until, lambda: place.simulator.in_flight == 1)
        process.send_signal(signal.SIGINT)
        assert process.stderr is not None

        while "waiting up to" not in (line := process.stderr.readline()):
            assert line

        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=30)

        assert process.returncode == 4
        assert "a run may have been started: unknown: interrupted" in err
        assert "withdrawn" not in err


def test_a_run_is_followed_to_its_end(tmp_path: Path) -> None:
    script = {"finishAfter": 0.05, **fault("fail-run", 1, error="no sales")}

    with workplace(tmp_path, script) as place:
        words = ("start", POS_USAGE, "DBGenFrom=1", "--watch", "--interval", "0.05")
        done = place.run(*words)
        assert done.returncode == 3
        assert "no sales" in done.stderr
        assert place.json(*words)["failed"] == 0


def test_the_same_run_may_be_asked_for_while_one_is_in_flight(tmp_path: Path) -> None:
    with workplace(tmp_path, fault("hold", 1)) as place:
        first = place.start("start", POS_USAGE, "DBGenFrom=1")
        place.portal.call(place.simulator.until, lambda: place.simulator.in_flight == 1)
        assert place.run("start", POS_USAGE, "DBGenFrom=1").returncode == 0
        place.portal.call(place.simulator.release)
        first.communicate(timeout=30)
        assert first.returncode == 0


# --on-end

TELLS = """
import json, os, sys
told = json.load(sys.stdin)
told["variables"] = {n: v for n, v in os.environ.items() if n.startswith("DESLAUNCH_")}
json.dump(told, open("told.json", "w"))
print("on stdout")
sys.exit(int(os.environ.get("END", "0")))
"""


@pytest.fixture
def teller(place: Workplace) -> str:
    """A command that writes down what it is told."""
    (place.folder / "tell.py").write_text(TELLS)
    return f"{sys.executable} tell.py"


def told(place: Workplace) -> dict[str, object]:
    found: dict[str, object] = json.loads((place.folder / "told.json").read_text())
    return found


def test_the_end_is_told(place: Workplace, teller: str) -> None:
    place.manifest(3)
    done = place.run("run", "night.jsonl", "--limit", "2", "--yes", "--json", "--on-end", teller)
    found = told(place)

    assert json.loads(done.stdout)["exitCode"] == found["exitCode"] == 5
    assert (found["started"], found["pending"]) == (2, 1)
    variables = found["variables"]
    assert isinstance(variables, dict)
    assert variables["DESLAUNCH_STARTED"] == "2"
    assert variables["DESLAUNCH_EXIT_CODE"] == "5"
    assert variables["DESLAUNCH_POSSIBLE_DUPLICATES"] == "0"
    assert variables["DESLAUNCH_LEDGER"] == "night.ledger.db"
    assert "on stdout" in done.stderr


def test_a_night_that_does_not_begin_is_told_too(place: Workplace, teller: str) -> None:
    place.write([{"key": "a"}])
    done = place.run("run", "night.jsonl", "--yes", "--on-end", teller)

    assert done.returncode == 2
    assert told(place)["exitCode"] == 2
    assert "1 of 1 row can't be started" in str(told(place)["error"])


@pytest.mark.slow
def test_it_can_ask_about_a_batch_in_a_database(database: str, place: Workplace) -> None:
    place.environment["DESLAUNCH_LEDGER"] = database
    place.manifest(2)
    (place.folder / "ask.sh").write_text('deslaunch status; deslaunch status "$DESLAUNCH_LEDGER"\n')
    command = "deslaunch run night.jsonl --ledger '#night' --yes --quiet --on-end 'sh ask.sh'"

    assert place.shell(command).stderr.splitlines() == ["2 rows: 2 started; 2 attempts"] * 2


def test_a_command_that_fails_is_a_warning(place: Workplace, teller: str) -> None:
    place.manifest(1)
    place.environment["END"] = "3"
    done = place.run("run", "night.jsonl", "--yes", "--on-end", teller)
    assert (done.returncode, "ended with exit code 3" in done.stderr) == (0, True)

    (place.folder / "broken").write_text("#!/no/such/interpreter\n")
    (place.folder / "broken").chmod(0o700)
    done = place.run("resume", "night.ledger.db", "--yes", "--on-end", "./broken")
    assert (done.returncode, "can't be run: No such file" in done.stderr) == (0, True)

    done = place.run("resume", "night.ledger.db", "--yes", "--on-end", "'open")
    assert (done.returncode, "--on-end takes a program" in done.stderr) == (2, True)


@pytest.mark.parametrize("loop", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_a_command_may_end_before_it_is_told(
    loop: Callable[[], asyncio.AbstractEventLoop], monkeypatch: pytest.MonkeyPatch
) -> None:
    begin = asyncio.create_subprocess_exec

    async def begin_and_end(*words: str, **more: Any) -> Process:
        process = await begin(*words, **more)
        await process.wait()
        return process

    monkeypatch.setattr(asyncio, "create_subprocess_exec", begin_and_end)

    with asyncio.Runner(loop_factory=loop) as runner:
        assert runner.run(ending.run_command(["true"], {"exitCode": 0})) == ""
        assert runner.run(ending.run_command(["false"], {})) == "ended with exit code 1"


@pytest.mark.parametrize("program", ["no-such-command", "./unready", "./none"])
def test_a_command_that_can_not_be_run_is_noticed_before_the_night(
    place: Workplace, program: str
) -> None:
    place.manifest(1)
    (place.folder / "unready").write_text("#!/bin/sh\n")
    (place.folder / "deslaunch.toml").write_text(f'on_end = ["{program}", "x"]\n')

    for words in (("--on-end", f"{program} x"), ("--config", "deslaunch.toml")):
        done = place.run("run", "night.jsonl", "--yes", *words)
        assert (done.returncode, place.ledger.exists()) == (2, False)
        shown = str(place.folder / program) if "/" in program and "--config" in words else program
        assert f": {shown} is not found or not executable; nothing was sent" in done.stderr

    assert place.run("start", POS_USAGE, "DBGenFrom=1", *words).returncode == 2
    assert not read_log(place.log)
    place.run("run", "night.jsonl", "--yes")
    assert place.run("watch", "night.ledger.db", *words).returncode == 2


def test_a_program_of_a_file_is_found_from_the_files_folder(place: Workplace) -> None:
    script = place.folder / "own" / "tell"
    script.parent.mkdir()
    script.write_text("#!/bin/sh\ncat > told.json\n")
    script.chmod(0o700)
    (script.parent / "deslaunch.toml").write_text('on_end = ["./tell"]\n')
    place.manifest(1)

    assert place.run("run", "night.jsonl", "--config", "own/deslaunch.toml").returncode == 0
    assert told(place)["exitCode"] == 0


def test_it_is_told_where_nobody_reads_stderr(place: Workplace, teller: str) -> None:
    place.manifest(1)
    done = place.shell(f"deslaunch run night.jsonl --yes --on-end '{teller}' 2>&-")

    assert (done.returncode, told(place)["exitCode"]) == (0, 0)


def test_a_configuration_file_may_name_it(place: Workplace, teller: str) -> None:
    words = ", ".join(f'"{word}"' for word in teller.split())
    (place.folder / "deslaunch.toml").write_text(f"on_end = [{words}]\n")
    place.manifest(1)
    place.run("run", "night.jsonl", "--yes", "--config", "deslaunch.toml")
    assert told(place)["exitCode"] == 0

    (place.folder / "told.json").unlink()
    place.run("resume", "night.ledger.db", "--yes")
    assert told(place)["exitCode"] == 0, "the ledger keeps --config"

    (place.folder / "deslaunch.toml").write_text('on_end = "notify-send"\n')
    done = place.run("resume", "night.ledger.db", "--yes")
    wants = (
        'on_end: expected a program and its arguments, as in ["program", "argument"]; there is no'
    )
    assert (done.returncode, wants in done.stderr) == (2, True)


# Files that a process may open.


def test_the_slots_fit_the_files_that_may_be_opened(place: Workplace) -> None:
    place.manifest(30)
    slots = ("--concurrency", "512", "--yes")
    raised = place.run("run", "night.jsonl", *slots, wrap=("prlimit", "--nofile=100:900"))
    assert (raised.returncode, "slots:" in raised.stderr) == (0, False)

    place.manifest(30, "more.jsonl", first=31)
    few = place.run("run", "more.jsonl", *slots, wrap=("prlimit", "--nofile=100:100"))
    assert few.returncode == 0
    assert "warning: 27 slots: this process may open 100 files (ulimit -n)" in few.stderr


def test_slots_that_control_tells_fit_them_too(tmp_path: Path) -> None:
    with workplace(tmp_path, {"latency": 0.2}) as place:
        place.manifest(400)
        words = ("run", "night.jsonl", "--concurrency", "4", "--yes")
        launch = place.start(*words, wrap=("prlimit", "--nofile=100:100"))
        place.wait_for_runs(launch, 8)
        assert place.run("control", "night.ledger.db", "concurrency=1024").returncode == 0
        _, err = launch.communicate(timeout=30)

        assert launch.returncode == 0
        assert "warning: 27 slots: this process may open 100 files (ulimit -n)" in err
        assert (len(place.simulator.runs), "all rows wait" in err) == (400, False)


@pytest.mark.parametrize(
    ("files", "told"),
    [
        pytest.param("256:4096", "", id="may be raised"),
        pytest.param(
            "256:256", "warning: 144 slots: this process may open 256 files", id="may not"
        ),
    ],
)
def test_as_many_slots_as_files_leave_room_for_all_else(
    files: str, told: str, place: Workplace
) -> None:
    """Connections that rest take files too, and the history is opened while all are in use."""
    place.simulator.use({"latency": 0.05})
    place.manifest(1500)
    slots = ("--concurrency", "256", "--watch")
    done = place.run("run", "night.jsonl", *slots, wrap=("prlimit", f"--nofile={files}"))
    warnings = [line for line in done.stderr.splitlines() if "warning" in line]

    assert (done.returncode, len(place.simulator.runs)) == (0, 1500), done.stderr
    assert [warning.partition(" (")[0] for warning in warnings] == [told] * bool(told)
