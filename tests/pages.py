"""Pages whose commands are run: the README, and those of `deslaunch help`.

A ``console`` block is a terminal's text: each line that begins with ``$`` is run by a shell, in
one folder and with one environment for the whole page, and the lines below it are compared with
what it prints. There, ``…`` stands for any text, and on a line of its own for any lines. Lines
that begin with ``>``, right below a command, belong to it. A ``$ deslaunch simulate`` goes on
beside what follows, and the URL of its port stands for that of a free one. ``sh`` blocks are not
run.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

from stage import DESLAUNCH, clean_environment

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT: Final = Path(__file__).parent.parent
FENCE: Final = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
SIMULATE: Final = re.compile(r"(?:\w+=\S+ )*(?=deslaunch simulate\b)")
SHOWN_PORT: Final = re.compile(r"--port (\d+) ?")
ELLIPSIS: Final = "…"
TOOLS: Final = ("sqlite3",)
"""What a machine may lack: steps that begin with one are left out there."""


def blocks(page: str, language: str) -> list[str]:
    """Return a page's fenced blocks of one language."""
    return [text for name, text in FENCE.findall(page) if name == language]


def first_cells(text: str, head: str = "") -> list[str]:
    """Return the first cell of each row of the tables in a text, without their headers.

    Args:
        text: a page, or a part of it.
        head: only of tables whose first column is headed so.
    """
    found: list[str] = []
    within = False

    for above, line in pairwise(["", *text.splitlines()]):
        if not line.startswith("|"):
            within = False
        elif line.startswith("|---"):
            within = head in {"", above.split("|")[1].strip()}
        elif within:
            found.append(line.split("|")[1].strip().strip("`"))

    return found


class Step(NamedTuple):
    """One command of a console block.

    Attributes:
        command: what stands behind the ``$``.
        expected: the lines that are shown below it.
    """

    command: str
    expected: list[str]


def steps(block: str) -> list[Step]:
    found: list[Step] = []

    for line in block.splitlines():
        if line.startswith("$ "):
            found.append(Step(line[2:], []))
        elif line.startswith("> ") and not found[-1].expected:
            found[-1] = Step(f"{found[-1].command}\n{line[2:]}", [])
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
    # A column is as wide as its widest cell: a port's number may be.
    return re.compile(re.sub(r"(?:\\ ){2,}", r"\\ {2,}", "".join(lines)))


class Shell:
    """Runs commands one after the other, as one terminal would."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._exported = folder / ".exported"
        self._exported.touch()
        self._code = 0
        self._urls: dict[str, str] = {}
        self._simulators: list[subprocess.Popen[str]] = []
        self._environment = clean_environment(folder) | {
            "PATH": f"{Path(DESLAUNCH).parent}{os.pathsep}{os.environ['PATH']}",
        }

    def do(self, step: Step) -> None:
        """Run a step, and hold what it prints against what the page shows."""
        if SIMULATE.match(step.command):
            said = self._simulate(step.command.removesuffix(" &"))
        else:
            said = self._run(_replace(step.command, self._urls))

        said = _replace(said, {url: shown for shown, url in self._urls.items()})

        if step.expected and not pattern(step.expected).fullmatch(said):
            raise AssertionError(f"$ {step.command}\n{said}")

    def end(self) -> None:
        """End the simulators."""
        for process in self._simulators:
            process.terminate()
            process.communicate(timeout=10)

    def _simulate(self, command: str) -> str:
        port = SHOWN_PORT.search(command)
        started = SHOWN_PORT.sub("", command).replace("deslaunch", "exec deslaunch", 1)
        process = subprocess.Popen(
            ["/bin/sh", "-c", started],
            cwd=self._folder,
            env=self._environment,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._simulators.append(process)
        assert process.stdout is not None
        line = process.stdout.readline()

        if port:
            self._urls[f"http://127.0.0.1:{port[1]}"] = line.strip()

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


def _replace(text: str, words: dict[str, str]) -> str:
    for old, new in words.items():
        text = text.replace(old, new)

    return text


@contextmanager
def shell(folder: Path) -> Iterator[Shell]:
    made = Shell(folder)

    try:
        yield made
    finally:
        made.end()


def play(page: str, folder: Path) -> int:
    """Run the commands of a page's console blocks in a folder that has the samples.

    Returns:
        How many there are.
    """
    shutil.copytree(ROOT / "samples", folder / "samples")
    found = [step for block in blocks(page, "console") for step in steps(block)]

    with shell(folder) as terminal:
        for step in found:
            if not needs_absent_tool(step):
                terminal.do(step)

    return len(found)


def needs_absent_tool(step: Step) -> bool:
    tool = step.command.split()[0]
    return tool in TOOLS and shutil.which(tool) is None
