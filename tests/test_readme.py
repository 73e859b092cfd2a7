"""The README is true: its commands and programs run, and what it lists is what there is."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest
from judge import read_log
from pages import ROOT, Step, blocks, first_cells, pattern, play, shell
from stage import DESLAUNCH, OTHER_TOKEN, POS_USAGE, TOKEN, workplace

from deslaunch.errors import DeslaunchError

if TYPE_CHECKING:
    from stage import Workplace

README: Final = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_commands_do_what_the_page_shows(tmp_path: Path) -> None:
    assert play(README, tmp_path) == 5


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


def test_the_program_runs(tmp_path: Path) -> None:
    with workplace(tmp_path) as place:
        assert run_program(place, TOKEN).splitlines() == ["2000 of 2000"]
        assert len(read_log(place.log)) == 2000


def test_the_program_goes_on_after_a_refused_token(tmp_path: Path) -> None:
    script = {"tokens": {"expireAfter": 500}}

    with workplace(tmp_path, script, [TOKEN, OTHER_TOKEN]) as place:
        first, second = run_program(place, TOKEN), run_program(place, OTHER_TOKEN)
        started = {run["jobRunId"] for run in read_log(place.log)}

    assert 0 < int(first.split()[0]) < 2000
    assert (second, len(started)) == ("2000 of 2000\n", 2000)


def run_program(place: Workplace, token: str) -> str:
    """Run the page's program with a manifest of 2,000 rows; return what it prints."""
    (program,) = blocks(README, "python")
    shutil.copyfile(ROOT / "samples/night.csv", place.folder / "night.csv")
    ended = subprocess.run(
        [sys.executable, "-c", program],
        cwd=place.folder,
        env=place.environment | {"DES_TOKEN": token},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert (ended.returncode, ended.stderr) == (0, "")
    return ended.stdout


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


def test_the_manifest_is_valid(tmp_path: Path) -> None:
    (block,) = blocks(README, "csv")
    (tmp_path / "shown.csv").write_text(block, encoding="utf-8")

    with workplace(tmp_path) as place:
        assert place.run("check", "shown.csv").returncode == 0


# What the page lists.


def section(title: str) -> str:
    return README.split(f"\n## {title}\n")[1].split("\n## ")[0]


def test_it_is_read_in_five_minutes() -> None:
    assert len(README.splitlines()) <= 200


def test_every_link_leads_to_a_file_and_every_help_page_has_one() -> None:
    links = re.findall(r"\]\(([\w./-]+)\)", README)
    pages = {f"deslaunch/help/{path.name}" for path in (ROOT / "deslaunch/help").iterdir()}

    assert [link for link in links if not (ROOT / link).exists()] == []
    assert pages - {*links} == set()


def test_the_page_and_the_help_name_the_same_exit_codes() -> None:
    of_help = first_cells((ROOT / "deslaunch/help/exit-codes.md").read_text("utf-8"), "exit")

    assert first_cells(section("Exit codes")) == of_help


def test_the_page_names_the_exit_code_of_every_error() -> None:
    def codes(cls: type[DeslaunchError]) -> set[int]:
        return {cls.exit_code}.union(*map(codes, cls.__subclasses__()))

    named = {int(code) for cell in first_cells(section("Exit codes")) for code in cell.split(",")}
    assert codes(DeslaunchError) <= named
