"""The README is true: its commands and programs run, and what it lists is what there is."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from datetime import datetime, timedelta
from pathlib import Path
from typing import Final

import pytest
from judge import read_log
from pages import ROOT, Step, blocks, first_cells, pattern, play, shell
from stage import DESLAUNCH, POS_USAGE, TOKEN, workplace

from deslaunch.errors import DeslaunchError
from deslaunch.model import RowState

README: Final = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_commands_do_what_the_page_shows(tmp_path: Path) -> None:
    assert play(README, tmp_path) > 10


@pytest.mark.parametrize(
    ("expected", "said", "matches"),
    [
        pytest.param(["a"], "a\n", True, id="same"),
        pytest.param(["a"], "a\nb\n", False, id="more-lines"),
        pytest.param(["a.c"], "abc\n", False, id="no-pattern"),
        pytest.param(["a … c"], "a b b c\n", True, id="any-text"),
        pytest.param(["a … c"], "a b\n c\n", False, id="any-text-of-one-line"),
        pytest.param(["…", "b", "…"], "b\n", True, id="no-lines"),
        pytest.param(["…", "b", "…"], "a\na\nb\nc\n", True, id="any-lines"),
    ],
)
def test_an_ellipsis_stands_for_anything(expected: list[str], said: str, *, matches: bool) -> None:
    assert bool(pattern(expected).fullmatch(said)) is matches


def test_the_shell_sees_a_wrong_output(tmp_path: Path) -> None:
    with shell(tmp_path) as terminal:
        terminal.do(Step("export A=1; false", []))
        terminal.do(Step('echo "$? $A"', ["1 1"]))

        with pytest.raises(AssertionError, match=r"\$ echo 2\n2"):
            terminal.do(Step("echo 2", ["3"]))


@pytest.mark.parametrize("program", blocks(README, "python"))
def test_the_programs_run(program: str, tmp_path: Path) -> None:
    shutil.copyfile(ROOT / "samples/night.csv", tmp_path / "night.csv")

    with workplace(tmp_path) as place:
        ended = subprocess.run(
            [sys.executable, "-c", program],
            cwd=tmp_path,
            env=place.environment | {"DES_TOKEN": TOKEN},
            capture_output=True,
            text=True,
            timeout=100,
            check=False,
        )

        lines = ended.stdout.splitlines()
        assert (ended.returncode, ended.stderr) == (0, "")
        assert lines[0] == "2000 of 2000"
        assert [line.split()[1] for line in lines[1:-1]] == [RowState.STARTED] * 10
        logged = {run["jobRunId"] for run in read_log(place.log)}
        assert {line.split()[-1] for line in lines[1:]} < logged
        assert len(logged) == 2011


def test_the_crontab_does_what_it_says_as_cron_runs_it(tmp_path: Path) -> None:
    """Cron takes what stands behind a bare % as the command's stdin, and has no environment."""
    [line] = "".join(blocks(README, "crontab")).splitlines()
    command = re.split(r"(?<!\\)%", line.split(maxsplit=5)[5])[0].replace(r"\%", "%")

    with workplace(tmp_path) as place:
        known = place.environment | {"DES_TOKEN": TOKEN}
        names = [name for name in known if name.startswith(("DES", "XDG"))]
        (tmp_path / "des.env").write_text("".join(f"export {n}={known[n]}\n" for n in names))
        (tmp_path / ".venv").mkdir()
        (tmp_path / ".venv/bin").symlink_to(Path(DESLAUNCH).parent)
        rows = "".join(f"{POS_USAGE},{number}\n" for number in range(3))

        today = datetime.now().astimezone()

        for when in (today, today + timedelta(days=1)):  # at midnight, too
            (tmp_path / f"{when:%F}.csv").write_text(f"jobId,DBGenFrom\n{rows}")

        nights = [
            subprocess.run(
                ["/bin/sh", "-c", command.replace("/srv/exports", str(tmp_path))],
                env={"PATH": os.defpath, "PYTHONPATH": os.environ.get("PYTHONPATH", "")},
                check=False,
                capture_output=True,
                text=True,
            )
            for _ in range(2)
        ]

        assert [night.returncode for night in nights] == [0, 0], nights
        assert (nights[0].stderr, len(place.simulator.runs)) == ("", 3)
        assert nights[1].stderr.startswith("nothing to start: ")


def test_the_manifests_are_valid_and_say_the_same(tmp_path: Path) -> None:
    for name in ("csv", "jsonl"):
        (block,) = blocks(README, name)
        (tmp_path / f"shown.{name}").write_text(block, encoding="utf-8")

    with workplace(tmp_path) as place:
        begun = place.run("run", "shown.jsonl", "--limit", "1")
        same = place.run("resume", "shown.ledger.db", "--corrections", "shown.csv", "--json")

    assert begun.returncode == 5, begun.stderr
    assert same.returncode == 0, same.stderr
    assert json.loads(same.stdout)["rows"] == 3


def test_the_targets_file_is_one_whose_targets_work(tmp_path: Path) -> None:
    (block,) = blocks(README, "toml")

    with workplace(tmp_path) as place:
        url = place.environment["DES_BASE_URL"]
        text = block.replace("https://des.example", url) + f'auth_url = "{url}"\n'
        command = re.search(r"token_command = (\[.*?\])", text)
        assert command is not None
        (tmp_path / "targets.toml").write_text(
            text.replace(command[1], json.dumps(["echo", TOKEN])), encoding="utf-8"
        )
        place.environment.update(BISTRO_SECRET="s", BISTRO_USER="u", BISTRO_PASSWORD="p")
        del place.environment["DES_BASE_URL"]
        said = place.json("targets", "--config", "targets.toml")

    assert [(one["target"], one["orgId"], one["jobs"]) for one in said["targets"]] == [
        ("acme", None, 2),
        ("bistro", "BISTRO", 2),
    ]


# What the page lists.


def section(title: str) -> str:
    return README.split(f"\n## {title}\n")[1].split("\n## ")[0]


def help_of(*command: str) -> str:
    return subprocess.run(
        [DESLAUNCH, *command, "--help"], capture_output=True, text=True, timeout=30, check=True
    ).stdout


COMMANDS: Final = (
    *("check", "run", "resume", "watch", "status", "results", "log", "report", "resolve", "jobs"),
    *("template", "targets", "simulate", "start", "withdraw", "control", "history", "find"),
    "export",
)


def test_every_option_that_the_page_names_is_one() -> None:
    shown = "".join(map(help_of, COMMANDS))
    known = set(re.findall(r"(?<![\w-])--[a-z][\w-]+", shown))
    named = set(re.findall(r"(?<![\w-])--[a-z][\w-]+", README))

    assert named - known - {"--help"} == set()


def test_the_page_names_every_state() -> None:
    shown = {str(state) for state in RowState if state is not RowState.SENDING}

    assert set(first_cells(section("States"))) == shown


def test_the_page_and_the_help_name_the_same_exit_codes() -> None:
    of_help = re.findall(r"^ +(\d[\d, ]*?)  \w", help_of(), re.MULTILINE)

    assert first_cells(section("Exit codes")) == of_help


def test_the_page_names_the_exit_code_of_every_error() -> None:
    def codes(cls: type[DeslaunchError]) -> set[int]:
        return {cls.exit_code}.union(*map(codes, cls.__subclasses__()))

    named = {int(code) for cell in first_cells(section("Exit codes")) for code in cell.split(",")}
    assert codes(DeslaunchError) <= named
