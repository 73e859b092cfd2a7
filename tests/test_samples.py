"""The samples: made as they say, wrong where they say, and run as a reader would run them."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Final

import pytest
from commands import DESLAUNCH, TOKEN, Workplace, workplace

from deslaunch.keys import row_digest
from deslaunch.manifest import Manifest, ManifestOptions
from deslaunch.model import Row
from deslaunch.simulator import DEFAULT_JOBS

if TYPE_CHECKING:
    from collections.abc import Iterator

SAMPLES: Final = Path(__file__).parent.parent / "samples"
ROWS: Final = 2000


def load(name: str) -> ModuleType:
    """Import a sample as a module."""
    spec = importlib.util.spec_from_file_location(name, SAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def at_work(tmp_path: Path) -> Iterator[Workplace]:
    with workplace(tmp_path) as place:
        yield place


def rows_of(name: str) -> list[Row]:
    items = list(Manifest(SAMPLES / name, ManifestOptions()).first_pass())
    rows = [item for item in items if isinstance(item, Row)]
    assert len(rows) == len(items)
    return rows


# The night.


@pytest.mark.parametrize("name", ["night.csv", "night.jsonl"])
def test_the_night_is_what_its_script_makes(name: str, tmp_path: Path) -> None:
    load("make_night").main(tmp_path)

    assert (SAMPLES / name).read_bytes() == (tmp_path / name).read_bytes()


def test_both_forms_of_the_night_say_the_same() -> None:
    of_csv, of_jsonl = rows_of("night.csv"), rows_of("night.jsonl")

    assert [row.key for row in of_csv] == [row.key for row in of_jsonl]
    assert [row_digest(row) for row in of_csv] == [row_digest(row) for row in of_jsonl]


def test_every_row_of_the_night_differs_in_key_and_in_what_it_says() -> None:
    rows = rows_of("night.csv")

    assert len({row.key for row in rows}) == ROWS
    assert len({row_digest(row) for row in rows}) == ROWS  # the proof of the demo rests on it


@pytest.mark.parametrize("name", ["night.csv", "night.jsonl"])
def test_the_night_is_valid(name: str, at_work: Workplace) -> None:
    report = at_work.json("check", str(SAMPLES / name))

    assert (report["valid"], report["problems"], report["warnings"]) == (ROWS, [], [])


def test_the_jobs_of_the_samples_are_the_simulators_own() -> None:
    assert json.loads((SAMPLES / "jobs.json").read_text()) == DEFAULT_JOBS


# The bad manifests: line, column and how the sentence goes on.

BAD_CSV: Final = [
    (3, "jobId", "the row names no job"),
    (4, "jobId", "jobId is a GUID"),
    (5, "jobId", "did you mean 43f87799-62c6-4001-92f9-6b3df816a6d6?"),
    (6, "target", "there is no target 'acme'"),
    (7, "DBGenFrom", "DBGenFrom is required and missing"),
    (8, "DBGenFrm", "did you mean DBGenFrom?"),
    (9, "DBGenFrom", "DBGenFrom takes no null"),
    (10, "DBGenTo", "DBGenTo takes no auto value"),
    (11, "DBGenFrom", "DBGenFrom takes an integer, not '12OO'"),
    (12, "DBGenTo", "it must lie between"),
    (13, "TradingDate", "TradingDate takes a datetime, not '31/01/2026'"),
    (14, "TradingDate", "there is no such day in the calendar"),
    (15, "DBGenFrom", "DBGenFrom takes an integer, not ''"),
    (16, "DBGenFrom", "a leading backslash begins"),
    (17, "DBGenFrom", "DBGenFrom takes an integer, not 'x'"),
    (17, "DBGenTo", "DBGenTo takes an integer, not 'y'"),
    (18, "key", "~ is kept for repeated rows"),
    (19, "key", "key takes no escape"),
    (20, "key", "key 'good' is"),
    (22, "", "the row says the same as"),
    (24, "", "would race for the same data"),
    (25, "", "the row has 5 cells and the header 10"),
    (26, "", "a quote stands inside a cell that is not quoted"),
    (27, "", "is never closed"),
]

BAD_JSONL: Final = [
    (2, "jobId", "the row names no job"),
    (3, "jobId", "jobId is a GUID"),
    (4, "jobId", "did you mean 43f87799-62c6-4001-92f9-6b3df816a6d6?"),
    (5, "target", "there is no target 'acme'"),
    (6, "DBGenFrom", "DBGenFrom is required and missing"),
    (7, "DBGenT", "did you mean DBGenTo?"),
    (8, "DBGenFrom", "DBGenFrom takes no null"),
    (9, "DBGenTo", "DBGenTo takes no auto value"),
    (10, "DBGenFrom", "DBGenFrom takes an integer, not '12OO'"),
    (11, "DBGenFrom", "DBGenFrom takes an integer, not '1200.5'"),
    (12, "DBGenFrom", "it must lie between"),
    (13, "TradingDate", "TradingDate takes a datetime, not '31/01/2026'"),
    (14, "TradingDate", "there is no such day in the calendar"),
    (15, "DBGenFrom", "DBGenFrom says type 4 (datetime) and the job takes type 2 (integer)"),
    (16, "DBGenFrom", "with useAutoValue valueStringEncoded must be null"),
    (17, "DBGenFrom", "an object as a value is"),
    (18, "DBGenFrom", "this is no parameter value"),
    (19, "DBGenFrom", "NaN and Infinity are no values"),
    (20, "DBGenFrom", "the text holds a NUL or a lone surrogate"),
    (21, "DBGenFrom", "the text holds a NUL or a lone surrogate"),
    (22, "DBGenFrom", "the name is given twice in one object"),
    (23, "parameters", "parameters is an object"),
    (24, "DBGenFrom", "DBGenFrom takes an integer, not 'x'"),
    (24, "DBGenTo", "DBGenTo takes an integer, not 'y'"),
    (25, "key", "~ is kept for repeated rows"),
    (26, "key", "key 'good' is"),
    (28, "", "the row says the same as"),
    (30, "", "would race for the same data"),
    (31, "jobID", "did you mean jobId?"),
    (31, "jobId", "the row names no job"),
    (32, "", "a row is one object in one line"),
    (33, "", "this is no JSON"),
]

BAD: Final = [
    pytest.param("bad.csv", BAD_CSV, id="csv"),
    pytest.param("bad.jsonl", BAD_JSONL, id="jsonl"),
]


@pytest.mark.parametrize(("name", "expected"), BAD)
def test_check_names_every_problem_by_file_line_and_column(
    name: str, expected: list[tuple[int, str, str]], at_work: Workplace
) -> None:
    path = SAMPLES / name
    report = at_work.json("check", str(path))
    problems: list[dict[str, Any]] = report["problems"]

    assert report["exitCode"] == 2
    assert {problem["file"] for problem in problems} == {str(path)}
    assert [
        (problem["line"], problem["column"], words if words in problem["message"] else problem)
        for problem, (_, _, words) in zip(problems, expected, strict=True)
    ] == expected
    assert at_work.log == []


@pytest.mark.parametrize(("name", "expected"), BAD)
def test_check_tells_a_person_the_same(
    name: str, expected: list[tuple[int, str, str]], at_work: Workplace
) -> None:
    path = SAMPLES / name
    ended = at_work.run("check", str(path))
    places = [
        f"{path}:{line}{f', column {column}' * bool(column)}: " for line, column, _ in expected
    ]
    lines = ended.stderr.splitlines()

    assert (ended.returncode, ended.stdout) == (2, "")
    assert [line[: len(where)] for line, where in zip(lines, places, strict=False)] == places
    assert len(lines) == len(places) + 1
    assert at_work.log == []


@pytest.mark.parametrize("name", ["bad.csv", "bad.jsonl"])
def test_run_sends_nothing_of_a_bad_manifest(name: str, at_work: Workplace) -> None:
    ended = at_work.run("run", str(SAMPLES / name), "--ledger", "bad.ledger.jsonl")

    assert ended.returncode == 2
    assert not (at_work.folder / "bad.ledger.jsonl").exists()
    assert at_work.log == []


# The programs.


def test_the_library_sample_starts_every_row_once_however_often_it_runs(
    at_work: Workplace,
) -> None:
    said = [
        subprocess.run(
            [sys.executable, SAMPLES / "library.py"],
            cwd=at_work.folder,
            env=at_work.environment | {"DES_TOKEN": TOKEN},
            capture_output=True,
            text=True,
            timeout=100,
            check=True,
        )
        for _ in range(2)
    ]
    lines = said[0].stdout.splitlines()
    logged = {run["jobRunId"] for run in at_work.log}
    week = {line.split()[-1] for line in lines[1:]}

    assert said[0].stderr == said[1].stderr == ""
    assert lines[0] == f"night: {ROWS} of {ROWS} started"
    assert sorted(line.split()[0] for line in lines[1:]) == [f"day-{day}:" for day in range(1, 8)]
    assert len(at_work.log) == len(logged) == ROWS + 7
    assert len(week) == 7
    assert week < logged
    assert sorted(said[1].stdout.splitlines()) == sorted(lines)


@pytest.mark.slow
def test_the_demo_runs_anywhere_and_proves_what_it_says(tmp_path: Path) -> None:
    ended = subprocess.run(
        [sys.executable, SAMPLES / "demo.py"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    said = ended.stdout

    assert (ended.returncode, ended.stderr) == (0, "")
    assert "2,000 rows: 1,200 started, 800 pending" in said
    assert "    2,000 runs are in the log\n" in said
    assert "    0 rows started twice\n" in said
    assert "    0 rows missing\n" in said
    assert list(tmp_path.iterdir()) == []


# The demo's proof must be able to fail.


def start(number: int) -> tuple[str, tuple[tuple[str, str | None], ...]]:
    return "job", (("DBGenFrom", str(number)),)


ONCE: Final = [("run-1", start(1)), ("run-2", start(2))]


@pytest.mark.parametrize(
    ("runs", "results", "found"),
    [
        pytest.param(ONCE, {"a": "run-1", "b": "run-2"}, (2, 2, [], [], [], []), id="holds"),
        pytest.param(
            [*ONCE, ("run-3", start(2))],
            {"a": "run-1", "b": "run-3"},
            (3, 2, ["b"], [], [], []),
            id="twice",
        ),
        pytest.param(ONCE[:1], {"a": "run-1", "b": ""}, (1, 1, [], ["b"], [], ["b"]), id="missing"),
        pytest.param(
            [*ONCE, ("run-3", start(3))],
            {"a": "run-1", "b": "run-2"},
            (3, 2, [], [], ["run-3"], []),
            id="foreign",
        ),
        pytest.param(
            ONCE, {"a": "run-2", "b": "run-1"}, (2, 2, [], [], [], ["a", "b"]), id="swapped"
        ),
        pytest.param(ONCE, {"a": "run-1"}, (2, 2, [], [], [], ["b"]), id="no-result"),
    ],
)
def test_the_proof_sees_what_is_wrong(
    runs: list[tuple[str, Any]],
    results: dict[str, str],
    found: tuple[int, int, list[str], list[str], list[str], list[str]],
) -> None:
    demo = load("demo")
    rows = {"a": start(1), "b": start(2)}
    proof = demo.prove(rows, [demo.Run(*run) for run in runs], results)

    assert (proof, proof.holds) == (found, found[2:] == ([], [], [], []))


def test_the_demo_fails_where_a_step_ends_otherwise(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    demo = load("demo")

    with pytest.raises(demo.DemoFailed, match="exit code 7, and 0 was expected"):
        demo.Terminal(tmp_path).run("status", "none.ledger.jsonl", expect=0)

    assert "$ deslaunch status none.ledger.jsonl\n" in capsys.readouterr().out


def test_the_demo_finds_the_command_that_these_tests_run() -> None:
    assert str(load("demo").DESLAUNCH) == DESLAUNCH


# Shards, as a scheduler starts them.


@pytest.fixture
def shards(at_work: Workplace) -> Workplace:
    """Return a place with a manifest of 60 rows, a path that leads to deslaunch, and a token."""
    at_work.manifest(60, "night.jsonl")
    rows = rows_in(at_work.folder / "night.jsonl")
    lines = [f"{row.key},{row.job_id},{row.parameters['DBGenFrom']}" for row in rows]
    (at_work.folder / "night.csv").write_text("\n".join(["key,jobId,DBGenFrom", *lines]))
    folder = str(Path(DESLAUNCH).parent)
    at_work.environment["PATH"] = f"{folder}:{os.environ['PATH']}"
    at_work.environment["DES_TOKEN"] = TOKEN
    return at_work


def rows_in(path: Path) -> list[Row]:
    return [row for row in Manifest(path, ManifestOptions()).first_pass() if isinstance(row, Row)]


def shell(place: Workplace, command: str, **variables: str) -> str:
    """Run a command by the shell; it must succeed. Return what it printed."""
    done = subprocess.run(
        ["/bin/bash", "-c", command],
        cwd=place.folder,
        env=place.environment | variables,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.skipif(shutil.which("parallel") is None, reason="GNU parallel is not installed")
@pytest.mark.slow
def test_gnu_parallel_starts_each_row_once(shards: Workplace) -> None:
    readme = (SAMPLES.parent / "README.md").read_text()
    command = re.search(r"`(seq 4 \| parallel [^`]+)`", readme)
    assert command is not None

    for _ in range(2):
        shell(shards, command[1])

    assert sorted(shards.logged_rows) == list(range(1, 61))


@pytest.mark.slow
def test_the_pods_of_an_indexed_job_start_each_row_once(shards: Workplace) -> None:
    text = (SAMPLES / "shards.yaml").read_text()
    command = re.search(r'args: \["(.+)"\]', text)
    count = re.search(r"completions: (\d+)", text)
    assert command is not None
    assert count is not None

    for index in range(int(count[1])):
        shell(shards, command[1], JOB_COMPLETION_INDEX=str(index))

    assert sorted(shards.logged_rows) == list(range(1, 61))
    assert f"/{count[1]} --resume" in command[1]


class Operator:
    """Stands for Airflow's BashOperator, and keeps what each one was made of."""

    made: Final[list[Operator]] = []

    def __init__(self, **said: Any) -> None:
        self.said = said
        self.made.append(self)

    @classmethod
    def partial(cls, **said: Any) -> Operator:
        return cls(**said)

    def expand(self, **said: Any) -> Operator:
        self.said |= said
        return self

    def set_downstream(self, other: Operator) -> None:
        self.made.sort(key=lambda one: one is other)


@pytest.mark.slow
def test_the_mapped_tasks_of_a_dag_start_each_row_once(
    shards: Workplace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Airflow itself is too large for a test; its part is to run bash with each environment."""
    for name in ("airflow", "airflow.sdk", "airflow.providers.standard.operators.bash"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))

    sys.modules["airflow.sdk"].__dict__["DAG"] = lambda *_, **__: nullcontext()
    sys.modules["airflow.providers.standard.operators.bash"].__dict__["BashOperator"] = Operator
    monkeypatch.setenv("DESLAUNCH_SAMPLE_MANIFEST", str(shards.folder / "night.csv"))
    load("shards_dag")
    launch, results = Operator.made

    for env in launch.said["env"]:
        shell(shards, launch.said["bash_command"], **env)

    shell(shards, results.said["bash_command"], **results.said["env"])
    assert sorted(shards.logged_rows) == list(range(1, 61))
    assert len((shards.folder / "night.results.csv").read_text().splitlines()) == 61
