"""What a person at a terminal sees, and is asked: on a terminal that the kernel provides."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING

import pytest
from commands import POS_USAGE, TOKEN, Workplace, workplace
from terminals import CTRL_C, CTRL_D, Terminal

from deslaunch.simulator import DEFAULT_JOBS

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

QUESTION = "Start 3 runs? [y/N] "
COLOUR = re.compile(r"\x1b\[(?:\d+;)*[349]\d[\d;]*m")


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Workplace]:
    with workplace(tmp_path) as made:
        made.manifest(3)
        yield made


def at_terminal(
    place: Workplace, *arguments: str, stdin: str = "terminal", **more: str
) -> Terminal:
    environment = {**place.environment, "DES_TOKEN": TOKEN, "TERM": "xterm-256color", **more}
    return Terminal(arguments, place.folder, environment, stdin=stdin)


@pytest.mark.parametrize("answer", ["y", "yes", " Y "])
def test_a_yes_begins(place: Workplace, answer: str) -> None:
    with at_terminal(place, "run", "night.jsonl") as terminal:
        terminal.expect(QUESTION)
        assert place.log == []
        terminal.type(f"{answer}\n")

        assert terminal.code == 0

    assert place.logged_rows == [1, 2, 3]


@pytest.mark.parametrize(
    ("typed", "code"),
    [
        pytest.param("n\n", 2, id="no"),
        pytest.param("\n", 2, id="nothing"),
        pytest.param("yess\n", 2, id="a slip"),
        pytest.param(CTRL_D, 2, id="end of input"),
        pytest.param(CTRL_C, 130, id="Ctrl-C"),
    ],
)
def test_anything_else_sends_nothing_and_leaves_no_ledger(
    place: Workplace, typed: str, code: int
) -> None:
    with at_terminal(place, "run", "night.jsonl") as terminal:
        terminal.expect(QUESTION)
        terminal.type(typed)

        assert (terminal.code, "nothing was sent" in terminal.said) == (code, True)

    assert place.log == []
    assert not (place.folder / "night.ledger.jsonl").exists()


def test_a_resume_asks_too(place: Workplace) -> None:
    place.run("run", "night.jsonl", "--limit", "1")
    before = (place.folder / "night.ledger.jsonl").read_bytes()

    with at_terminal(place, "resume", "night.ledger.jsonl") as terminal:
        terminal.expect("so far: 1 started, 2 pending")
        terminal.expect("Start 2 runs? [y/N] ")
        terminal.type("n\n")

        assert terminal.code == 2

    assert (place.folder / "night.ledger.jsonl").read_bytes() == before


@pytest.fixture
def doubt(tmp_path: Path) -> Iterator[Workplace]:
    """A batch with a row that is unknown since a moment ago, row-2."""
    with workplace(tmp_path, {"faults": [{"fault": "close", "at": [2]}]}) as made:
        made.manifest(3)
        made.run("run", "night.jsonl", "--concurrency", "1")
        yield made


@pytest.mark.parametrize(
    ("typed", "code", "pending"), [("y\n", 0, 1), ("n\n", 2, 0), (CTRL_C, 130, 0)]
)
def test_resolve_asks_where_it_is_too_early(
    doubt: Workplace, typed: str, code: int, pending: int
) -> None:
    with at_terminal(doubt, "resolve", "night.ledger.jsonl", "row-2", "--not-started") as terminal:
        terminal.expect("too early to say that nothing was started for row-2: ")
        terminal.expect("Record all the same that nothing was started? [y/N] ")
        terminal.type(typed)

        assert (terminal.code, "nothing was recorded" in terminal.said) == (code, code == 2)

    assert doubt.json("status", "night.ledger.jsonl")["pending"] == pending


@pytest.mark.parametrize(
    "finding",
    [["--not-started", "--yes"], ["--started", "3283fa96-5ec2-4aa9-928b-d1cd07aa0763"]],
    ids=["yes", "started"],
)
def test_resolve_does_not_always_ask(doubt: Workplace, finding: list[str]) -> None:
    with at_terminal(doubt, "resolve", "night.ledger.jsonl", "row-2", *finding) as terminal:
        assert (terminal.code, "[y/N]" in terminal.said) == (0, False)


@pytest.mark.parametrize("option", ["--yes", "--dry-run"])
def test_some_are_not_asked(place: Workplace, option: str) -> None:
    with at_terminal(place, "run", "night.jsonl", option) as terminal:
        assert (terminal.code, "[y/N]" in terminal.said) == (0, False)

    assert len(place.log) == (3 if option == "--yes" else 0)


def test_nobody_is_asked_where_the_input_is_no_terminal(place: Workplace) -> None:
    with at_terminal(place, "run", "night.jsonl", stdin="none") as terminal:
        assert (terminal.code, "[y/N]" in terminal.said) == (0, False)

    assert len(place.log) == 3


def test_the_quiet_are_asked_all_the_same(place: Workplace) -> None:
    with at_terminal(place, "run", "night.jsonl", "--quiet") as terminal:
        terminal.expect(QUESTION)

        assert "to start" not in terminal.said


@pytest.mark.parametrize("is_plain", [False, True])
def test_colours_are_for_those_who_want_them(place: Workplace, is_plain: bool) -> None:
    colours = {"NO_COLOR": "1"} if is_plain else {"NO_COLOR": ""}

    with at_terminal(place, "jobs", **colours) as terminal:
        assert terminal.code == 0
        assert "DBGenFrom" in terminal.said
        assert bool(COLOUR.search(terminal.said)) is not is_plain


@pytest.mark.parametrize("is_plain", [False, True])
def test_the_block_has_no_colours_where_none_are_wanted(place: Workplace, is_plain: bool) -> None:
    colours = {"NO_COLOR": "1"} if is_plain else {"NO_COLOR": ""}
    place.manifest(60)

    with at_terminal(place, "run", "night.jsonl", "--yes", "--rate", "100", **colours) as terminal:
        assert terminal.code == 0
        assert "60 of 60 rows 100%" in terminal.text
        assert bool(COLOUR.search(terminal.said)) is not is_plain


def test_a_launch_is_a_block_and_its_causes_stand_above_it(tmp_path: Path) -> None:
    script = {"faults": [{"fault": "status", "status": 400, "from": 2, "to": 40}]}

    with workplace(tmp_path, script) as place:
        place.manifest(250)

        with at_terminal(
            place, "run", "night.jsonl", "--yes", "--rate", "100", "--max-errors", "1000"
        ) as terminal:
            assert terminal.code == 3
            said = terminal.text

    assert said.count("(first: row ") == 2  # while it goes on, and at its end
    assert "250 of 250 rows 100%" in said
    assert "211 started   39 rejected" in said
    assert " in flight, 16 slots now" in said
    assert "39 rows rejected: HTTP 400" in said


def test_a_terminal_that_is_closed_ends_a_launch_in_good_order(tmp_path: Path) -> None:
    with workplace(tmp_path) as place:
        place.manifest(1_000)

        with at_terminal(place, "run", "night.jsonl", "--yes", "--rate", "100") as terminal:
            terminal.expect("slots now")

            assert terminal.hang_up() == 129

        summary = place.json("status", "night.ledger.jsonl")
        assert (summary["unknown"], summary["started"]) == (0, len(place.log))
        assert summary["pending"] > 0


def test_a_table_of_jobs_fits_a_narrow_terminal(place: Workplace) -> None:
    with at_terminal(place, "jobs") as terminal:
        assert terminal.code == 0
        lines = terminal.text.splitlines()

    assert lines[0].startswith(f"{POS_USAGE}  POS usage")
    assert max(map(len, lines)) <= 100


class TestWithoutATerminal:
    def test_a_plan_is_told_and_nobody_is_asked(self, place: Workplace) -> None:
        done = place.run("run", "night.jsonl")

        assert done.returncode == 0
        assert "night.jsonl: 3 rows to start" in done.stderr

    def test_a_dry_run_needs_no_service_and_no_token(self, place: Workplace) -> None:
        (place.folder / "jobs.json").write_text(json.dumps(DEFAULT_JOBS))
        before = sorted(place.folder.iterdir())
        del place.environment["DES_BASE_URL"]

        done = place.run(
            "run", "night.jsonl", "--dry-run", "--schema", "jobs.json", "--limit", "2", token=None
        )

        lines = [json.loads(line) for line in done.stdout.splitlines()]
        assert done.returncode == 0, done.stderr
        assert lines[0] == {
            "key": "row-1",
            "row": 1,
            "line": 1,
            "target": "default",
            "jobId": POS_USAGE,
            "body": {
                "jobId": POS_USAGE,
                "parameters": {"DBGenFrom": {"type": 2, "valueStringEncoded": "1"}},
            },
        }
        assert len(lines) == 2
        assert sorted(place.folder.iterdir()) == before
        assert place.log == []

    def test_a_dry_run_of_a_resume_leaves_the_ledger_alone(self, place: Workplace) -> None:
        place.run("run", "night.jsonl", "--limit", "1")
        before = (place.folder / "night.ledger.jsonl").read_bytes()

        done = place.run("resume", "night.ledger.jsonl", "--dry-run")

        assert [json.loads(line)["key"] for line in done.stdout.splitlines()] == ["row-2", "row-3"]
        assert (place.folder / "night.ledger.jsonl").read_bytes() == before
        assert len(place.log) == 1

    def test_a_dry_run_from_stdin_keeps_nothing(self, place: Workplace) -> None:
        text = (place.folder / "night.jsonl").read_text()

        done = place.run(
            *("run", "-", "--format", "jsonl", "--ledger", "l.jsonl", "--dry-run"), stdin=text
        )

        assert len(done.stdout.splitlines()) == 3
        assert not [*place.folder.glob("l.jsonl*")]

    def test_a_log_holds_objects_alone_and_no_token(self, tmp_path: Path) -> None:
        body = json.dumps({"message": f"bad token {TOKEN}"})
        script = {"faults": [{"fault": "status", "status": 400, "body": body, "at": [2]}]}

        with workplace(tmp_path, script) as place:
            place.manifest(3)
            done = place.run("run", "night.jsonl", "--log-format", "json", "--verbose")
            again = place.run("run", "night.jsonl", "--log-format", "json")

        entries = [json.loads(line) for line in done.stderr.splitlines()]
        assert [entry["event"] for entry in entries][-1] == "summary"
        assert [entry["state"] for entry in entries if entry["event"] == "row"] == [
            "started",
            "rejected",
            "started",
        ]
        assert all(list(entry)[:2] == ["utc", "event"] for entry in entries)
        assert TOKEN not in done.stderr + done.stdout
        (error,) = map(json.loads, again.stderr.splitlines())
        assert (error["event"], error["kind"], error["exitCode"]) == ("error", "LedgerExists", 7)


class TestTemplate:
    @pytest.mark.parametrize("name", ["made.csv", "made.jsonl"])
    def test_what_is_written_passes_the_check(self, place: Workplace, name: str) -> None:
        made = place.run("template", POS_USAGE.upper(), "-o", name)
        checked = place.run("check", name)

        assert made.returncode == checked.returncode == 0
        assert "1 row: 1 valid, 0 invalid" in checked.stderr
        assert "DBGenFrom: a whole number" in made.stderr

    def test_a_file_that_is_there_is_not_written_over(self, place: Workplace) -> None:
        before = (place.folder / "night.jsonl").read_text()

        done = place.run("template", POS_USAGE, "-o", "night.jsonl")

        assert (done.returncode, "night.jsonl exists" in done.stderr) == (2, True)
        assert (place.folder / "night.jsonl").read_text() == before

    def test_an_unknown_job_names_its_neighbour(self, place: Workplace) -> None:
        done = place.run("template", POS_USAGE[:-1] + "0")

        assert (done.returncode, done.stdout) == (2, "")
        assert f"did you mean {POS_USAGE}?" in done.stderr

    def test_a_schema_file_stands_for_the_service(self, place: Workplace) -> None:
        (place.folder / "jobs.json").write_text(json.dumps(DEFAULT_JOBS))

        done = place.run(
            "template", POS_USAGE, "--schema", "jobs.json", "--format", "jsonl", token=None
        )

        assert done.returncode == 0
        assert json.loads(done.stdout)["jobId"] == POS_USAGE
