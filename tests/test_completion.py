"""Shell completion: each shell runs the script, and is offered what the command line takes."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import Final

import pytest
from commands import DESLAUNCH

from deslaunch.cli import command_line

pytestmark = pytest.mark.slow

FILES: Final = "<files>"
"""What the shells' own completion of files is made to say here."""

BASH: Final = """
eval "$(cat '@SCRIPT')"
compopt() { echo '<files>'; }
COMP_WORDS=(@WORDS); COMP_CWORD=$((${#COMP_WORDS[@]} - 1))
_deslaunch_completion deslaunch
printf '%s\\n' "${COMPREPLY[@]}"
"""
ZSH: Final = """
compdef() { }
eval "$(cat '@SCRIPT')"
compadd() { shift 4; print -l -- ${(P)1} }
_describe() { print -l -- ${${(P)3}%%:*} }
_path_files() { print '<files>' }
words=(@WORDS); CURRENT=$#words
_deslaunch_completion
"""
FISH: Final = """
cat '@SCRIPT' | source
function __fish_complete_path; echo '<files>'; end
complete --do-complete "@LINE" | string split --field 1 \\t
"""


SHELLS: Final = ("bash", "zsh", "fish")


@pytest.fixture(scope="module", params=SHELLS)
def completion(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the file of a script, called by its shell."""
    shell: str = request.param

    if shutil.which(shell) is None:
        pytest.skip(f"there is no {shell}")

    path = tmp_path_factory.mktemp("completion") / shell
    path.write_bytes(subprocess.check_output([DESLAUNCH, "completion", shell], timeout=60))
    return path


def offered(completion: Path, *words: str) -> set[str]:
    """Return what a script's shell offers for the last of the words.

    Raises:
        AssertionError: the script said anything on stderr.
    """
    shell = completion.name
    quoted = " ".join(f"'{word}'" for word in ("deslaunch", *words))
    line = " ".join(("deslaunch", *words))
    script = {"bash": BASH, "zsh": ZSH, "fish": FISH}[shell]
    ended = subprocess.run(
        [
            shell,
            *(["-f"] if shell == "zsh" else []),
            "-c",
            script.replace("@SCRIPT", str(completion))
            .replace("@WORDS", quoted)
            .replace("@LINE", line),
        ],
        env=os.environ | {"PATH": f"{Path(DESLAUNCH).parent}{os.pathsep}{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ended.stderr == ""
    return set(ended.stdout.split())


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        pytest.param([""], set(command_line.commands), id="commands"),
        pytest.param(["re"], {n for n in command_line.commands if n.startswith("re")}, id="begun"),
        pytest.param(["run", ""], {FILES}, id="manifest"),
        pytest.param(["resume", ""], {FILES}, id="ledger"),
        pytest.param(["run", "x.csv", "--ledger", ""], {FILES}, id="file-of-an-option"),
        pytest.param(["run", "--format", ""], {"jsonl", "csv"}, id="choices"),
        pytest.param(["run", "--retry-5"], {"--retry-5xx"}, id="options"),
        pytest.param(["completion", ""], {"bash", "zsh", "fish"}, id="shells"),
    ],
)
def test_a_shell_is_offered(completion: Path, words: list[str], expected: set[str]) -> None:
    assert offered(completion, *words) == expected
