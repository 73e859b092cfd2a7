"""The README is true: its commands and programs run, and what it lists is what there is.

A ``console`` block is a terminal's text: each line that begins with ``$`` is run by a shell, in
one folder and with one environment for the whole page, and the lines below it are compared with
what it prints. There, ``…`` stands for any text, and on a line of its own for any lines. A ``$
deslaunch simulate`` goes on beside what follows. ``sh`` blocks are not run.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

import pytest
from bench import report
from bench.chart import svg
from bench.figures import Figures
from click.testing import CliRunner
from commands import DESLAUNCH, TOKEN, workplace

from deslaunch.cli import command_line
from deslaunch.config_file import OAUTH_KEYS, TARGET_KEYS
from deslaunch.keys import row_digest
from deslaunch.manifest import Manifest, ManifestOptions
from deslaunch.model import Row, RowState
from deslaunch.simulator import FaultScriptError, read_script

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT: Final = Path(__file__).parent.parent
README: Final = (ROOT / "README.md").read_text(encoding="utf-8")
FENCE: Final = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
SHOWN_URL: Final = "http://127.0.0.1:8080"
SHOWN_PORT: Final = "--port 8080 "
ELLIPSIS: Final = "…"
TOOLS: Final = ("jq",)


class Step(NamedTuple):
    """One command of a console block.

    Attributes:
        command: what stands behind the ``$``.
        expected: the lines that are shown below it.
    """

    command: str
    expected: list[str]


def blocks(language: str) -> list[str]:
    """Return the README's fenced blocks of one language."""
    return [text for name, text in FENCE.findall(README) if name == language]


def steps(block: str) -> list[Step]:
    found: list[Step] = []

    for line in block.splitlines():
        if line.startswith("$ "):
            found.append(Step(line[2:], []))
        else:
            found[-1].expected.append(line)

    return found


def pattern(expected: list[str]) -> re.Pattern[str]:
    """Return what an output must match as a whole."""
    lines = (
        r"(?:[^\n]*\n)*?"
        if line == ELLIPSIS
        else re.escape(line).replace(re.escape(ELLIPSIS), r"[^\n]*") + r"\n"
        for line in expected
    )
    return re.compile("".join(lines))


class Shell:
    """Runs commands one after the other, as one terminal would."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._exported = folder / ".exported"
        self._exported.touch()
        self._code = 0
        self._url = SHOWN_URL
        self._simulators: list[subprocess.Popen[str]] = []
        clean = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("DES_", "DESLAUNCH_"))
        }
        self._environment = clean | {
            "DESLAUNCH_CACHE_DIR": str(folder / "cache"),
            "NO_COLOR": "1",
            "XDG_CONFIG_HOME": str(folder / "config"),
            "PATH": f"{Path(DESLAUNCH).parent}{os.pathsep}{os.environ['PATH']}",
        }

    def do(self, step: Step) -> None:
        """Run a step, and hold what it prints against what the page shows."""
        if step.command.startswith("deslaunch simulate"):
            said = self._simulate(step.command.replace(SHOWN_PORT, "")).replace(
                self._url, SHOWN_URL
            )
        else:
            said = self._run(step.command.replace(SHOWN_URL, self._url))

        if step.expected and not pattern(step.expected).fullmatch(said):
            raise AssertionError(f"$ {step.command}\n{said}")

    def end(self) -> None:
        """End the simulators."""
        for process in self._simulators:
            process.terminate()
            process.communicate(timeout=10)

    def _simulate(self, command: str) -> str:
        process = subprocess.Popen(
            ["/bin/sh", "-c", f"exec {command}"],
            cwd=self._folder,
            env=self._environment,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._simulators.append(process)
        assert process.stdout is not None
        line = process.stdout.readline()
        self._url = line.strip()
        return line

    def _run(self, command: str) -> str:
        script = (
            f". ./{self._exported.name}; (exit {self._code})\n{command}\n"
            f"code=$?; export -p > {self._exported.name}; exit $code"
        )
        ended = subprocess.run(
            ["/bin/bash", "-c", script],
            cwd=self._folder,
            env=self._environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=100,
            check=False,
        )
        self._code = ended.returncode
        return ended.stdout


@contextmanager
def shell(folder: Path) -> Iterator[Shell]:
    made = Shell(folder)

    try:
        yield made
    finally:
        made.end()


def needs_absent_tool(step: Step) -> bool:
    tool = step.command.split()[0]
    return tool in TOOLS and shutil.which(tool) is None


def test_the_commands_do_what_the_page_shows(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "samples", tmp_path / "samples")
    found = [step for block in blocks("console") for step in steps(block)]

    with shell(tmp_path) as terminal:
        for step in found:
            if not needs_absent_tool(step):
                terminal.do(step)

    assert len(found) > 10


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


@pytest.mark.parametrize("program", blocks("python"))
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
        assert [line.split()[1] for line in lines[1:11]] == [RowState.STARTED] * 10
        assert [line.split()[1:3] for line in lines[11:-1]] == [["True", "None"]] * 10
        assert {line.split()[-1] for line in lines[1:]} < {run["jobRunId"] for run in place.log}
        assert len(place.log) == 2011


def test_the_manifests_are_valid_and_say_the_same(tmp_path: Path) -> None:
    names = ["shown.csv", "shown.jsonl"]

    with workplace(tmp_path) as place:
        for name in names:
            (block,) = blocks(name.partition(".")[2])
            (tmp_path / name).write_text(block, encoding="utf-8")
            assert place.json("check", name)["problems"] == []

    of_csv, of_jsonl = (
        [
            (item.key, row_digest(item))
            for item in Manifest(tmp_path / name, ManifestOptions()).first_pass()
            if isinstance(item, Row)
        ]
        for name in names
    )
    assert of_csv == of_jsonl
    assert len(of_csv) == 3


def test_the_targets_file_is_one_whose_targets_work(tmp_path: Path) -> None:
    (block,) = blocks("toml")

    with workplace(tmp_path) as place:
        url = place.environment["DES_BASE_URL"]
        text = block.replace("https://des.example", url) + f'auth_url = "{url}"\n'
        command = re.search(r"token_command = (\[.*?\])", text)
        assert command is not None
        (tmp_path / "targets.toml").write_text(
            text.replace(command[1], json.dumps(["echo", TOKEN])), encoding="utf-8"
        )
        (tmp_path / "bistro.password").write_text("p")
        place.environment.update(BISTRO_SECRET="s", BISTRO_USER="u")
        del place.environment["DES_BASE_URL"]
        said = place.json("targets", "--config", "targets.toml")

    assert [(one["target"], one["orgId"], one["jobs"]) for one in said["targets"]] == [
        ("acme", None, 2),
        ("bistro", "BISTRO", 2),
    ]


def test_the_page_names_every_key_of_a_target() -> None:
    named = set(re.findall(r"`(?:oauth\.)?([a-z_]+)`", section("Targets")))
    stems = {key.removesuffix("_file") for key in OAUTH_KEYS if key.endswith("_file")}

    assert set(TARGET_KEYS) - {"oauth"} - named == set()
    assert set(OAUTH_KEYS) - {f"{stem}_file" for stem in stems} - named == set()


def test_the_fault_script_is_one() -> None:
    (block,) = blocks("json")
    script = read_script(json.loads(block))

    assert (len(script.faults), script.expire_after) == (2, 1200)


# What the page lists.


def section(title: str) -> str:
    return README.split(f"\n## {title}\n")[1].split("\n## ")[0]


def first_cells(text: str) -> list[str]:
    """Return the first cell of each row of the tables in a text, without their headers."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    heads = {index - 1 for index, line in enumerate(lines) if line.startswith("|---")}
    return [
        line.split("|")[1].strip()
        for index, line in enumerate(lines)
        if index not in heads and not line.startswith("|---")
    ]


def options_of(*command: str) -> set[str]:
    shown = CliRunner().invoke(command_line, [*command, "--help"], catch_exceptions=False)
    assert shown.exit_code == 0
    return set(re.findall(r"^  (?:-\w, )?(--[\w-]+)", shown.stdout, re.MULTILINE))


COMMANDS: Final = (
    *("check", "run", "resume", "watch", "status", "results", "report", "resolve", "jobs"),
    *("template", "targets", "simulate", "completion"),
)
UNTOLD: Final = {"--help"}
OF_OTHERS: Final = {"--array", "--parallel", "--publish", "--quick", "--wrap"}
"""Options of curl and of the bench."""


def test_every_option_that_the_page_names_is_one() -> None:
    known = set[str]().union(*(options_of(command) for command in COMMANDS), {"--version"})
    named = set(re.findall(r"(?<![\w-])--[a-z][\w-]+", README))

    assert named - known - OF_OTHERS == set()


def test_the_page_names_every_option_of_a_launch() -> None:
    named = set(re.findall(r"--[\w-]+", section("Options and environment variables")))

    assert options_of("run") - named - UNTOLD - {"--resume"} == set()
    assert options_of("resume") - named - UNTOLD == set()


def test_the_page_names_every_state() -> None:
    shown = {state for state in RowState if state is not RowState.IN_FLIGHT}

    assert {cell.strip("`") for cell in first_cells(section("States"))} == shown


def test_the_page_names_every_kind_of_fault() -> None:
    named = [
        kind
        for cell in first_cells(section("Fault scripts of the simulator"))
        for kind in re.findall(r"`([\w-]+)`", cell)
    ]

    with pytest.raises(FaultScriptError) as caught:
        read_script({"faults": [{"fault": "?"}]})

    known = set(re.findall(r"[a-z]+(?:-[a-z]+)*", caught.value.expected)) - {"one", "of", "or"}
    assert set(named) == known


def test_the_page_and_the_help_name_the_same_exit_codes() -> None:
    text = subprocess.run(
        [DESLAUNCH, "--help"], capture_output=True, text=True, timeout=30, check=True
    ).stdout
    of_help = re.findall(r"^ +(\d[\d, ]*?)  \w", text, re.MULTILINE)

    assert first_cells(section("Exit codes")) == of_help


def test_the_page_and_its_chart_show_what_was_measured() -> None:
    bench = ROOT / "tests/bench"
    told = json.loads((bench / "bench.json").read_text(encoding="utf-8"))
    figures = Figures.read(told["figures"], told["missing"])

    assert report.with_section(README, told) == README
    assert (bench / "bench.svg").read_text(encoding="utf-8") == svg(figures)
