"""The driver of the mutation tests; ``make mutants`` runs it on the package."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from mutants import survivors
from mutants.bench import KILLED, SURVIVED, TIMEOUT
from mutants.mutant import Mutant, mutants_of
from mutants.tally import Tally, table
from mutants.trial import Copy, Coverage, Unfit, trial

if TYPE_CHECKING:
    from pathlib import Path

# How code is made wrong.


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        pytest.param("x = a < b\n", {"x = a <= b", "x = None"}, id="comparison"),
        pytest.param("x += 1\n", {"pass", "x += 2", "x -= 1", "x = 1"}, id="augmented"),
        pytest.param("f(a)\n", {"f(None)", "pass"}, id="call"),
        pytest.param("raise A\n", {"pass"}, id="raise"),
        pytest.param("if a:\n    x: int\n", {"if (not (a)):"}, id="condition"),
        pytest.param(
            "x = y and (not (a or b))\n",
            {
                "x = None",
                "x = y or (not (a or b))",
                "x = y and (a or b)",
                "x = y and (not (a and b))",
            },
            id="parentheses",
        ),
        pytest.param("assert len(x)\n", set(), id="len"),
        pytest.param("import a\nfrom b import c\n", set(), id="imports"),
        pytest.param('"""Say."""\n', set(), id="docstring"),
        pytest.param("class A(Protocol):\n    x = 1\n", set(), id="protocol"),
        pytest.param("if TYPE_CHECKING:\n    x = 1\n", set(), id="type-checking"),
        pytest.param("@a(1)\ndef f(x: A[1]) -> B[2]: ...\n", set(), id="annotations"),
    ],
)
def test_a_source_has_these_mutants(source: str, expected: set[str]) -> None:
    assert {mutant.becomes for mutant in mutants_of("m", source)} == expected


SOURCE = """\
class A:
    @property
    def b(self):
        return self.c(
            1,
            d,
        )
"""


def test_a_mutant_is_known_by_its_place_and_its_lines() -> None:
    first, *_, last = mutants_of("m", SOURCE)

    assert first.name == ("m", "A.b", "return self.c( 1, d, )", "return None")
    assert (first.line, first.lines) == (4, range(4, 8))
    assert (last.name, last.line) == (("m", "A.b", "1,", "2,"), 5)
    assert last.source == SOURCE.replace("1,", "2,")
    assert str(last) == "deslaunch/m.py:5 A.b\n  - 1,\n  + 2,"


# Which tests judge.


@pytest.mark.parametrize(
    ("lines", "tests"),
    [
        pytest.param([3], ["quick", "slow"], id="quickest-first"),
        pytest.param([3, 4], ["quick", "middling", "slow"], id="each-line-of-a-statement"),
        pytest.param([9], [], id="none"),
        pytest.param([1], ["quick", "middling", "slow", "other"], id="all-where-it-is-imported"),
    ],
)
def test_a_line_is_judged_by_the_tests_that_run_it(lines: list[int], tests: list[str]) -> None:
    seconds = {"slow": 2.0, "quick": 0.1, "other": 3.0, "middling": 0.5}
    coverage = Coverage(seconds, {1: [""], 3: ["slow", "quick"], 4: ["middling", "quick"]})

    limits = coverage.tests_of(lines)
    assert list(limits) == tests
    assert all(limits[test] >= 5.0 + seconds[test] for test in tests)


# Which survivors are known.


def mutant(was: str, becomes: str) -> Mutant:
    return Mutant("m", "f", 3, range(3, 4), was, becomes, "")


def entry(was: str, becomes: str, reason: str = "it is the same") -> str:
    return (
        f"[[survivor]]\nmodule = 'm'\nwhere = 'f'\nwas = '{was}'\nbecomes = '{becomes}'\n"
        f"reason = '{reason}'\n"
    )


def test_a_survivor_is_known_or_new_and_an_entry_alive_or_not() -> None:
    reasons = survivors.read(entry("a", "b") + entry("c", "d"))
    alive = [mutant("a", "b"), mutant("a", "z")]

    assert reasons == {
        ("m", "f", "a", "b"): "it is the same",
        ("m", "f", "c", "d"): "it is the same",
    }
    assert survivors.unlisted(alive, reasons) == [mutant("a", "z")]
    assert survivors.outlived(alive, reasons, ["m"]) == [("m", "f", "c", "d")]
    assert survivors.outlived(alive, reasons, ["n"]) == []


@pytest.mark.parametrize(
    "text",
    [
        pytest.param(entry("a", "b") * 2, id="twice"),
        pytest.param(entry("a", "b", " "), id="no-reason"),
        pytest.param("[[survivor]]\nmodule = 'm'\n", id="half"),
        pytest.param("survivor", id="no-toml"),
    ],
)
def test_a_bad_list_of_survivors_is_refused(text: str) -> None:
    with pytest.raises((KeyError, ValueError)):
        survivors.read(text)


def test_the_list_of_survivors_can_be_read() -> None:
    assert survivors.read(survivors.LIST.read_text())


def test_the_table_counts_what_became_of_them() -> None:
    tally = Tally("m", 4)

    for verdict in (KILLED, KILLED, TIMEOUT, SURVIVED):
        tally.add(mutant("a", "b"), verdict)

    assert (tally.tried, tally.dead, tally.survivors) == (4, 0.75, [mutant("a", "b")])
    assert table([tally]).splitlines()[2] == (
        "| m      | 4       | 2      | 1       | 1        | 75.0% |"
    )


# All of it, on a small project.

MODULE = """\
LIMIT = 3


def is_over(count):
    return count > LIMIT


def unseen():
    return 1
"""
TESTS = """\
from deslaunch.mini import is_over


def test_above():
    assert is_over(9)


def test_below():
    assert not is_over(0)
"""


def made_project(folder: Path, tests: str) -> Path:
    (folder / "deslaunch").mkdir(parents=True)
    (folder / "tests").mkdir()
    (folder / "deslaunch" / "__init__.py").touch()
    (folder / "deslaunch" / "mini.py").write_text(MODULE)
    (folder / "tests" / "test_mini.py").write_text(tests)
    (folder / "pyproject.toml").write_text("[tool.pytest.ini_options]\n")
    return folder


@pytest.mark.slow
async def test_what_no_test_minds_survives(tmp_path: Path) -> None:
    project = made_project(tmp_path / "project", TESTS)
    copies = tmp_path / "copies"
    copies.mkdir()
    tally = await trial("mini", copies, ["tests/test_mini.py"], processes=1, project=project)

    assert [mutant.becomes for mutant in tally.survivors] == [
        "LIMIT = 4",
        "return count >= LIMIT",
        "return None",
        "return 2",
    ]
    assert (tally.mutants, tally.killed, tally.timeouts) == (6, 2, 0)
    assert (project / "deslaunch" / "mini.py").read_text() == MODULE


@pytest.mark.slow
async def test_tests_that_fail_from_the_first_judge_nothing(tmp_path: Path) -> None:
    project = made_project(tmp_path / "project", TESTS.replace("is_over(9)", "is_over(1)"))
    copies = tmp_path / "copies"
    copies.mkdir()

    with pytest.raises(Unfit, match="before anything is broken"):
        await trial("mini", copies, ["tests/test_mini.py"], processes=1, project=project)


HANGS = "def test_hangs():\n    while True:\n        pass\n"


@pytest.mark.slow
async def test_a_test_that_hangs_is_ended_by_its_limit(tmp_path: Path) -> None:
    project = made_project(tmp_path / "project", HANGS)
    copy = Copy(project, tmp_path / "copy", "mini", ["tests/test_mini.py"])

    async with copy.bench() as bench:
        assert bench.stdin is not None
        assert bench.stdout is not None
        bench.stdin.write(b'{"tests/test_mini.py::test_hangs": 0.2}\n')

        assert await bench.stdout.readline() == b"timeout\n"
