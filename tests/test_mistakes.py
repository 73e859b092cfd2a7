"""Wrong usage: what is told, with what to do; nothing is sent, and the exit code is 2."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import click
import pytest
from commands import call

from deslaunch.cli.main import HOMES, command_line

if TYPE_CHECKING:
    from pathlib import Path

    from blockbuster import BlockBuster

ROWS = "key,jobId,DBGenFrom\na,43f87799-62c6-4001-92f9-6b3df816a6d6,1\n"


def command_of(name: str) -> click.Command:
    return command_line.get_command(click.Context(command_line), name)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_blocking_calls: BlockBuster) -> Path:
    no_blocking_calls.deactivate()  # a command does one thing, and imports what it needs for it
    (tmp_path / "night.csv").write_text(ROWS)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("line", "told"),
    [
        pytest.param(
            "rnu night.csv",
            "error: there is no command 'rnu'; did you mean run?\n  see: deslaunch --help",
            id="command",
        ),
        pytest.param(
            "xyzzy",
            "error: there is no command 'xyzzy'; there are check, run, resume, start, watch, "
            "status, results, log, resolve, withdraw, control, report, history, find, export, "
            "upgrade, jobs, targets, template, simulate, help\n"
            "  see: deslaunch --help",
            id="no-such-command",
        ),
        pytest.param(
            "run night.csv --concurency 3",
            "error: No such option '--concurency'. (Did you mean one of: '--concurrency', "
            "'--on-end'?)\n"
            "  see: deslaunch run --help",
            id="option",
        ),
        pytest.param(
            "status",
            "error: Missing argument 'LEDGER'.\n  see: deslaunch status --help",
            id="argument",
        ),
        pytest.param(
            "run night.csv --concurrency many",
            "error: Invalid value for '--concurrency' (env var: 'DESLAUNCH_CONCURRENCY'): 'many' "
            "is not a valid integer.\n  see: deslaunch run --help",
            id="no-number",
        ),
        pytest.param(
            "run night.csv --concurrency 0",
            "error: --concurrency takes a whole number of slots from 1 to 1,024, got 0\n"
            "  see the options with their ranges: deslaunch help options",
            id="out-of-range",
        ),
        pytest.param(
            "run night.csv --rate nan",
            "error: --rate takes a number of starts a second above 0, got nan\n"
            "  see the options with their ranges: deslaunch help options",
            id="nan",
        ),
        pytest.param(
            "run night.csv --max-errors half",
            "error: --max-errors takes N or a share up to 100%, got 'half'\n"
            "  write a number of rows, such as 50, or a share, such as 5%",
            id="max-errors",
        ),
        pytest.param(
            "run night.csv --job-id 43f8",
            "error: --job-id takes a GUID, got '43f8'\n"
            "  see the jobs with their GUIDs: deslaunch jobs",
            id="guid",
        ),
        pytest.param(
            "run -",
            "error: a manifest from a pipe needs --ledger LEDGER and --format\n"
            "  see: deslaunch run --help",
            id="stdin",
        ),
        pytest.param(
            "run /dev/fd/63 --format csv",
            "error: a manifest from a pipe needs --ledger LEDGER and --format\n"
            "  see: deslaunch run --help",
            id="process substitution",
        ),
        pytest.param(
            "resume l.db --add-rows",
            "error: --add-rows needs --corrections FILE\n  see: deslaunch resume --help",
            id="add-rows-of-nothing",
        ),
        pytest.param(
            "status l.db -o f.csv",
            "error: -o needs --unknown\n  see: deslaunch status --help",
            id="output-of-status",
        ),
        pytest.param(
            "results l.db --split d -o f.csv",
            "error: --split takes no --output and no --format: it writes CSV files\n"
            "  see: deslaunch results --help",
            id="split-and-output",
        ),
        pytest.param(
            "resolve l.db",
            "error: expected at least one KEY, and one of --started JOBRUNID, --not-started, "
            "--unknown\n  see: deslaunch resolve --help",
            id="resolve-nothing",
        ),
        pytest.param(
            "resolve l.db a --not-started --unknown",
            "error: expected at least one KEY, and one of --started JOBRUNID, --not-started, "
            "--unknown\n  see: deslaunch resolve --help",
            id="resolve-both",
        ),
        pytest.param(
            "resolve l.db a b --started x",
            "error: --started takes one KEY: a run belongs to one row\n"
            "  see: deslaunch resolve --help",
            id="resolve-two-with-one-run",
        ),
        pytest.param(
            "resolve l.db a --from f.csv",
            "error: --from takes no KEY, --started, --not-started or --unknown: the file has them\n"
            "  see: deslaunch resolve --help",
            id="resolve-from-and-key",
        ),
        pytest.param(
            "run night.csv",
            "error: the base URL of DES is not set\n"
            "  set DES_BASE_URL, pass --base-url URL, or name targets in a file for --config",
            id="no-base-url",
        ),
        pytest.param(
            "run night.csv --base-url https://des.example",
            "error: there is no token; nothing was sent\n"
            "  set DES_TOKEN, DES_TOKEN_FILE or DES_TOKEN_COMMAND, or a login (DES_ORG_ID "
            "…), or name targets in a file for --config; see: deslaunch help targets",
            id="no-token",
        ),
        pytest.param(
            "jobs --config gone.toml",
            "error: the configuration file gone.toml can't be read: No such file or directory\n"
            "  check its path and permissions, or name another with --config",
            id="no-config",
        ),
    ],
)
def test_what_is_wrong_is_told_with_what_to_do(line: str, told: str) -> None:
    ended = call(*line.split())

    assert (ended.code, ended.out, ended.err) == (2, "", f"{told}\n")


def test_a_value_of_the_environment_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DESLAUNCH_RATE", "fast")

    assert "env var: 'DESLAUNCH_RATE'" in call("run", "night.csv").err


def test_plain_http_is_for_loopback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DES_TOKEN", "s3cret")

    ended = call("run", "night.csv", "--base-url", "http://des.example")

    assert (ended.code, "s3cret" in ended.err) == (2, False)
    assert ended.err.splitlines()[0] == (
        "error: the base URL 'http://des.example' would send the token unencrypted"
    )
    assert "--allow-http" in ended.err


@pytest.mark.parametrize(
    "line",
    [
        pytest.param("resume nowhere.db", id="resume"),
        pytest.param("watch nowhere.db", id="watch"),
        pytest.param("status nowhere.db", id="status"),
        pytest.param("results nowhere.db -o r.csv", id="results"),
        pytest.param("log nowhere.db", id="log"),
        pytest.param("resolve nowhere.db a --not-started", id="resolve"),
        pytest.param("report nowhere.db -o r.html", id="report"),
    ],
)
def test_a_ledger_that_is_not_there(line: str, folder: Path) -> None:
    ended = call(*line.split())

    assert (ended.code, ended.out) == (7, "")
    assert "nowhere.db" in ended.err
    assert [path.name for path in folder.iterdir()] == ["night.csv"]


def test_a_manifest_for_a_ledger_is_told_as_what_it_is() -> None:
    ended = call("status", "night.csv")

    assert (ended.code, ended.out) == (7, "")
    assert "night.csv: is not a ledger of deslaunch" in ended.err
    assert "night.ledger.db" in ended.err


class TestHelp:
    @pytest.mark.parametrize("command", HOMES)
    def test_every_command_explains_itself(self, command: str) -> None:
        ended = call(command, "--help")

        assert ended.code == 0
        assert f"Usage: deslaunch {command}" in ended.out
        assert "Examples:" in ended.out
        assert "Exit codes: deslaunch help exit-codes" in ended.out

    @pytest.mark.parametrize("command", ["", *HOMES])
    def test_help_fits_on_one_screen(self, command: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("COLUMNS", "100")

        lines = call(*command.split(), "--help").out.splitlines()

        assert len(lines) <= 40
        assert max(map(len, lines)) <= 100
        assert sum("deslaunch " in line for line in lines[1:]) <= 4  # two examples, two pages

    @pytest.mark.parametrize("command", HOMES)
    def test_help_all_lists_every_option(self, command: str) -> None:
        options = [one for one in command_of(command).params if isinstance(one, click.Option)]
        asked = "--help-all" if "--help-all" in call(command, "--help").out else "--help"
        listed = re.findall(r"^  (?:-\w, )?(--[\w-]+)", call(command, asked).out, re.MULTILINE)

        assert sorted(listed) == sorted(["--help", *(one.opts[0] for one in options)])
        assert "--timeout" not in call(command, "--help").out

    def test_the_list_of_commands_cuts_no_sentence(self) -> None:
        listed = call("--help").out.split("\nCommands:\n")[1].split("\n\n")[0]

        assert len(listed.splitlines()) == len(HOMES)
        assert "..." not in listed

    def test_no_command_shows_the_page_and_is_no_success(self) -> None:
        ended = call()

        assert ended.code == 2
        assert ended.err.startswith("Usage: deslaunch ")

    def test_the_exit_codes_are_told_in_one_place(self) -> None:
        codes = re.findall(r"^\| ([0-9, ]+) \|", call("help", "exit-codes").out, re.MULTILINE)

        assert codes == [*"012345678", "129, 130, 143"]

    @pytest.mark.parametrize("command", HOMES)
    def test_every_example_is_a_command_line(self, command: str) -> None:
        page = command_of(command).epilog or ""
        examples = [line.split() for line in page.splitlines() if "deslaunch " in line]
        names = {name for one in command_of(command).params for name in one.opts} | {
            "-r",
            "-n",
            "-c",
            "--help",
            "-h",
        }

        assert examples
        assert {
            word for example in examples for word in example if word.startswith("-") and word != "-"
        } <= names

    def test_all_commands_are_listed(self) -> None:
        ended = call("--help")

        assert [name for name in HOMES if f"\n  {name} " not in ended.out] == []

    def test_no_option_takes_a_token(self) -> None:
        for command in map(command_of, HOMES):
            assert not [o for one in command.params for o in one.opts if o == "--token"]


class TestStartUp:
    @pytest.mark.parametrize("argv", [["--version"], ["run", "--help"]])
    def test_help_loads_nothing_heavy(self, argv: list[str]) -> None:
        code = (
            f"import sys; from deslaunch.cli.main import main; main({argv!r});"
            "print(*sys.modules, file=sys.stderr)"
        )

        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        )

        loaded = {name.partition(".")[0] for name in done.stderr.split()}
        assert "click" in loaded
        assert not loaded & {"aiohttp", "anyio", "asyncio", "jinja2", "orjson", "rich", "sqlite3"}

    def test_the_module_runs_too(self) -> None:
        done = subprocess.run(
            [sys.executable, "-m", "deslaunch", "--version"],
            capture_output=True,
            text=True,
            check=True,
        )

        assert done.stdout.startswith("deslaunch, version ")


def test_a_bug_is_exit_code_1(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(**_: Any) -> int:
        raise ZeroDivisionError

    monkeypatch.setattr(command_of("jobs"), "callback", broken)

    ended = call("jobs")

    assert ended.code == 1
    assert "ZeroDivisionError" in ended.err
    assert ended.err.endswith("please report it with the lines above\n")


def test_a_signal_before_anything_began_has_its_exit_code(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(**_: Any) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(command_of("jobs"), "callback", interrupted)

    assert call("jobs").code == 130


def test_windows_is_refused() -> None:
    code = (
        "import signal, sys; sys.platform = 'win32'; del signal.SIGHUP;"
        "from deslaunch.__main__ import run; run()"
    )

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)

    assert (done.returncode, done.stderr) == (2, "error: deslaunch runs on Linux and macOS only\n")


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_shell_gets_its_completion(shell: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "deslaunch"],
        env={**os.environ, "_DESLAUNCH_COMPLETE": f"{shell}_source"},
        capture_output=True,
        text=True,
        check=True,
    )

    assert "_DESLAUNCH_COMPLETE" in done.stdout
