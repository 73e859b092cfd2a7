"""The pages of `deslaunch help` are true: what they show runs, and what they name exists."""

from __future__ import annotations

import json
import re
import shutil
import sqlite3
import subprocess
import sys
from contextlib import closing
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click
import pytest
from commands import Terminal, call
from pages import FENCE, ROOT, Step, blocks, first_cells, play, steps
from stage import POS_USAGE, TOKEN, fault, row, workplace

import deslaunch
from deslaunch.cli import main, targets
from deslaunch.cli.main import HOMES, command_line
from deslaunch.cli.preparing import TOPICS
from deslaunch.des import wire
from deslaunch.errors import DeslaunchError
from deslaunch.events import StopReason
from deslaunch.ledger import changes
from deslaunch.manifest import readers, rows
from deslaunch.model import RowState
from deslaunch.settings import OPTIONS
from deslaunch.simulator.faults import _FAULT_KEYS, _SCRIPT_KEYS, KINDS

if TYPE_CHECKING:
    from blockbuster import BlockBuster
    from stage import Workplace

FOLDER: Final = Path(deslaunch.__file__).parent / "help"
PAGES: Final = {path.stem: path.read_text("utf-8") for path in sorted(FOLDER.iterdir())}
README: Final = (ROOT / "README.md").read_text("utf-8")
JOBS: Final = ROOT / "samples/jobs.json"
SOURCES: Final = (ROOT / "README.md", *FOLDER.parent.rglob("*.py"), *FOLDER.iterdir())

COMMAND: Final = re.compile(r"\bdeslaunch ([a-z]+)\b([^|;&#`\n]*)")
FLAG: Final = re.compile(r"(?<![\w-])--[a-z][\w-]*")

TABLES: Final[dict[tuple[str, str], set[str]]] = {
    ("exit-codes", "exit"): {*re.findall(r"^  (\d[\d, ]*?)  \w", main.__doc__ or "", re.MULTILINE)},
    ("manifest", "cell"): {"empty", *readers._ESCAPES, "\\\\text"},
    ("manifest", "column"): {*rows.RESERVED, "parameters.NAME", "deslaunch.NAME"},
    ("manifest", "type"): {*wire.TYPE_NAMES.values()},
    ("results", "column"): {*rows.RESULT_COLUMNS},
    ("resume", "reason"): {str(reason) for reason in StopReason},
    ("states", "state"): {str(state) for state in RowState if state is not RowState.SENDING},
    ("targets", "key of `[targets.NAME]`"): {*targets._TARGET},
    ("unknown", "column"): {*changes._COLUMNS},
    ("targets", "variable"): {
        f"DES_{name.upper()}" for name in ("base_url", *targets._TOKENS, *targets.LOGIN, "auth_url")
    },
}
"""What a page's tables list, by the topic and the head of their first column."""


def shown(language: str, *, but: str = "") -> pytest.MarkDecorator:
    """Run a test with each block of a language, on all pages but one."""
    found = [
        pytest.param(block, id=f"{topic}-{number}")
        for topic, page in PAGES.items()
        for number, block in enumerate(blocks(page, language), 1)
        if topic != but
    ]
    return pytest.mark.parametrize("block", found)


@cache
def options_of(command: str) -> set[str]:
    found = command_line.get_command(click.Context(command_line), command)
    assert found is not None
    return {"--help", *(flag for one in found.params for flag in one.opts)}


def all_options() -> set[str]:
    return {flag for command in HOMES for flag in options_of(command)}


@pytest.fixture(autouse=True)
def may_import(no_blocking_calls: BlockBuster) -> None:
    no_blocking_calls.deactivate()  # a command imports while it runs


# The command.


def test_all_topics_are_listed_by_their_titles() -> None:
    listed = [line.split(maxsplit=1) for line in call("help").out.splitlines()]
    titles = [[topic, PAGES[topic].partition("\n")[0][2:]] for topic in TOPICS if topic in PAGES]

    assert PAGES.keys() <= set(TOPICS)
    assert listed == titles


@pytest.mark.parametrize("topic", [topic for topic in PAGES if topic != "options"])
def test_a_page_is_shown_as_it_is_written(topic: str) -> None:
    assert call("help", topic) == (0, PAGES[topic], "")


def test_the_page_of_the_options_has_all_that_a_command_takes() -> None:
    said = call("help", "options").out
    entries = {
        match[1]: " ".join(match[0].split())
        for match in re.finditer(r"^- `(--[\w-]+)`: .*\n(?:  .*\n)*", said, re.MULTILINE)
    }

    assert said.startswith(PAGES["options"])
    assert [*entries] == [option.flag for option in OPTIONS.values()]
    assert entries.keys() <= all_options()

    for option in OPTIONS.values():
        entry = entries[option.flag]
        assert option.help in entry
        assert option.kind not in {int, float} or f"Takes {option.range}." in entry
        assert (f"`{option.variable}`" in entry) == (option.variable is not None)
        assert ("Kept in the ledger." in entry) == option.kept


def test_the_range_and_the_default_of_an_option_are_shown() -> None:
    assert (
        "- `--concurrency`: Maximum concurrent starts (slots). Takes a whole number of slots from "
        "1 to 1,024.\n  Default: `16`. Variable: `DESLAUNCH_CONCURRENCY`. Kept in the ledger.\n"
    ) in call("help", "options").out


def test_a_terminal_shows_a_page_laid_out(place: Workplace) -> None:
    with Terminal(place, "help", "postgres") as terminal:
        terminal.expect(PAGES["postgres"].partition("\n")[0][2:])
        code = terminal.code

    assert code == 0
    assert "```" not in terminal.text
    assert "# " not in terminal.text.partition("\n")[0]


@pytest.mark.parametrize("command", [name for name in HOMES if name not in TOPICS])
def test_a_command_is_a_topic_too(command: str) -> None:
    assert call("help", command) == call(command, "--help")


def test_an_unknown_topic_is_told_with_the_nearest() -> None:
    ended = call("help", "optoins")

    assert (ended.code, ended.out) == (2, "")
    assert ended.err == (
        "error: there is no topic 'optoins'; did you mean options?\n"
        "  see the topics: deslaunch help\n"
    )


@pytest.mark.parametrize("command", HOMES)
def test_the_help_lists_every_option_that_its_examples_use(command: str) -> None:
    usage, _, examples = call(command, "--help").out.partition("\n  Examples:\n")
    of_command = re.findall(rf"deslaunch {command}\b([^|;&]*)", examples)

    assert {flag for words in of_command for flag in FLAG.findall(words)} <= {*FLAG.findall(usage)}


# What the pages show.


@pytest.mark.parametrize("topic", [topic for topic in PAGES if blocks(PAGES[topic], "console")])
def test_the_commands_do_what_the_page_shows(topic: str, tmp_path: Path) -> None:
    assert play(PAGES[topic], tmp_path)


@shown("csv")
def test_a_csv_manifest_is_valid(block: str, tmp_path: Path) -> None:
    assert check(tmp_path / "shown.csv", block) == 0


@shown("jsonl")
def test_a_jsonl_manifest_is_valid(block: str, tmp_path: Path) -> None:
    assert check(tmp_path / "shown.jsonl", block) == 0


def check(manifest: Path, text: str) -> int:
    manifest.write_text(text, encoding="utf-8")
    return call("check", manifest, "--schema", JOBS, "--job-id", POS_USAGE).code


@shown("toml")
def test_a_configuration_file_holds_no_mistake(block: str, tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text(block, encoding="utf-8")

    assert targets.read_config(tmp_path / "config.toml")


def test_the_targets_that_are_shown_work(tmp_path: Path) -> None:
    [block] = blocks(PAGES["targets"], "toml")

    with workplace(tmp_path) as place:
        url = place.environment.pop("DES_BASE_URL")
        text = block.replace("https://des.example", url)
        text = text.replace("[targets.bistro.oauth]", f'[targets.bistro.oauth]\nauth_url = "{url}"')
        command = re.search(r"token_command = (\[.*?\])", text)
        assert command is not None
        (tmp_path / "targets.toml").write_text(
            text.replace(command[1], json.dumps(["echo", TOKEN])), encoding="utf-8"
        )
        (tmp_path / "bistro.password").write_text("p")
        place.environment.update(BISTRO_SECRET="s", BISTRO_USER="u")
        shown = place.json("targets", "--config", "targets.toml")

    found = [(one["target"], one["orgId"], one["jobs"]) for one in shown["targets"]]
    assert found == [("acme", None, 2), ("bistro", "BISTRO", 2)]


@pytest.fixture(scope="module")
def ended_ledger(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A ledger of a batch that has ended, with a row that failed."""
    with workplace(tmp_path_factory.mktemp("ended"), fault("status", 3, status=400)) as place:
        place.manifest(10)
        assert place.run("run", "night.jsonl", "--yes").returncode == 3
        return place.ledger


@shown("sql", but="postgres")  # whose SQL is that of another database
def test_sql_can_be_asked(block: str, ended_ledger: Path) -> None:
    with closing(sqlite3.connect(f"file:{ended_ledger}?mode=ro", uri=True)) as connection:
        for statement in filter(str.strip, block.split(";")):
            connection.execute(statement).fetchall()


@shown("python")
def test_a_program_runs(block: str, tmp_path: Path) -> None:
    shutil.copyfile(ROOT / "samples/night.csv", tmp_path / "night.csv")

    with workplace(tmp_path) as place:
        ended = subprocess.run(
            [sys.executable, "-c", block],
            cwd=tmp_path,
            env=place.environment | {"DES_TOKEN": TOKEN},
            capture_output=True,
            text=True,
            timeout=100,
            check=False,
        )

    assert (ended.returncode, ended.stderr) == (0, "")


# What the pages name.


@pytest.mark.parametrize("topic", PAGES)
def test_a_page_has_a_title_and_fits_a_terminal(topic: str) -> None:
    lines = PAGES[topic].splitlines()

    assert re.fullmatch(r"# \S.*", lines[0])
    assert lines[1] == ""
    assert [line for line in lines if len(line) > 100] == []


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.name)
def test_every_topic_that_is_named_exists(path: Path) -> None:
    named = set(re.findall(r"deslaunch help ([a-z][\w-]*)", path.read_text("utf-8")))

    assert named - {*TOPICS} - {*HOMES} == set()


@pytest.mark.parametrize("page", [*PAGES.values(), README], ids=[*PAGES, "README"])
def test_every_command_and_option_that_is_shown_exists(page: str) -> None:
    inline = re.findall(r"(?<!`)`([^`\n]+)`", page)
    commands = COMMAND.findall("\n".join([*inline, *(text for _, text in FENCE.findall(page))]))
    unknown = {command for command, _ in commands} - {*HOMES}
    wrong = {
        (command, flag)
        for command, rest in commands
        if command not in unknown
        for flag in FLAG.findall(rest)
        if flag not in options_of(command)
    }
    words = FLAG.findall(" ".join(text for text in inline if text.startswith("--")))

    assert (unknown, wrong) == (set(), set())
    assert set(words) - all_options() == set()


@pytest.mark.parametrize(("topic", "head"), TABLES)
def test_a_table_lists_what_there_is(topic: str, head: str) -> None:
    assert set(first_cells(PAGES[topic], head)) == TABLES[topic, head]


def test_a_command_of_several_lines_is_one_step() -> None:
    block = "$ cat > a <<'END'\n> b\n> END\n$ cat a\nb\n> c\n"

    assert steps(block) == [Step("cat > a <<'END'\nb\nEND", []), Step("cat a", ["b", "> c"])]


def test_each_status_makes_of_a_row_what_the_page_says(tmp_path: Path) -> None:
    table = [
        (re.findall(r"\b\d{3}\b", response), state.strip(" `"))
        for line in PAGES["states"].split("| response |")[1].splitlines()
        if line.count("|") == 4
        for _, response, state, *_ in [line.split("|")]
    ]
    wanted = {
        int(status): state
        for statuses, state in table
        if state in {"failed", "rejected", "unknown"}
        for status in statuses
        if status != "200"
    }
    # Each between two rows that start: a few in a row would stop the target.
    manifest = [row(0), *(row(n) for status in wanted for n in (status, status + 1000))]
    faults = [{"fault": "status", "status": n, "match": f'"{n}"'} for n in wanted]
    told = ("--max-attempts", "1", "--max-errors", "100%", "--concurrency", "1", "--yes")

    with workplace(tmp_path, {"faults": faults}) as place:
        place.write(manifest)
        place.run("run", "night.jsonl", *told)
        found = [
            json.loads(line)
            for line in place.run(
                "results", "night.ledger.db", "--format", "jsonl"
            ).stdout.splitlines()
        ]

    assert len(wanted) > 15
    assert {one["status"]: one["state"] for one in found} == {200: "started", **wanted}


def test_the_tables_of_a_page_are_told_apart_by_their_heads() -> None:
    page = "| a | b |\n|---|---|\n| `x` | 1 |\n\n| c |\n|---|\n| y |\n"

    assert first_cells(page, "a") == ["x"]
    assert first_cells(page) == ["x", "y"]


# What single pages list.


def words_of(topic: str, *heads: str) -> set[str]:
    """Return the names in the first column of a page's tables; a cell may hold several."""
    cells = [cell for head in heads for cell in first_cells(PAGES[topic], head)]
    return set(re.findall(r"[\w-]+", " ".join(cells)))


def test_the_page_of_the_ledger_has_the_columns_of_the_view(ended_ledger: Path) -> None:
    with closing(sqlite3.connect(f"file:{ended_ledger}?mode=ro", uri=True)) as connection:
        columns = [name for _, name, *_ in connection.execute("PRAGMA table_info(results)")]
        tables = connection.execute(
            "SELECT name FROM sqlite_schema WHERE type = 'table'"
        ).fetchall()

    assert words_of("ledger", "column") == {*columns}
    assert words_of("ledger", "table") == {name for (name,) in tables if name[:7] != "sqlite_"}


def test_the_page_of_the_simulator_has_all_options_and_faults() -> None:
    assert words_of("simulator", "option") == options_of("simulate") - {"-h", "--help"}
    assert words_of("simulator", "fault") == {*KINDS}
    assert words_of("simulator", "key of the file") == {*_SCRIPT_KEYS}
    named = words_of("simulator", "condition") | {"start", "seconds", "after", "then"}
    assert named == {*_FAULT_KEYS}


def test_the_page_of_the_library_names_what_there_is() -> None:
    functions = {cell.partition("(")[0] for cell in first_cells(PAGES["library"], "function")}
    raised = words_of("library", "it raises") - {"errors"}

    assert functions <= {*deslaunch.__all__}
    assert all(issubclass(getattr(deslaunch.errors, name), DeslaunchError) for name in raised)


def keys_in(value: object) -> set[str]:
    """Return the keys of objects in a JSON value, but those that are somebody's own names."""
    if isinstance(value, list):
        return set().union(*map(keys_in, value))

    if not isinstance(value, dict):
        return set()

    own = {"body", "options", "said"}
    inside = {
        name: list(part.values()) if name == "targets" and isinstance(part, dict) else part
        for name, part in value.items()
        if name not in own
    }
    return {*value}.union(*map(keys_in, inside.values()))


def test_the_page_of_json_has_every_key_that_is_printed(tmp_path: Path) -> None:
    script = {
        "faults": [
            {"fault": "status", "status": 400, "at": [2]},
            {"fault": "reset-after-start", "at": [3]},
        ]
    }

    with workplace(tmp_path, script) as place:
        place.manifest(4)
        place.write([{"key": "bad"}], "bad.jsonl")
        place.write([row(2), row(9)], "fix.jsonl")
        ledger = "night.ledger.db"
        said = [
            place.run("check", "bad.jsonl", "--json"),
            place.run("run", "night.jsonl", "--dry-run"),
            place.run("run", "night.jsonl", "--yes", "--json", "--limit", "3"),
            place.run("resolve", ledger, "row-3", "--not-started", "--early", "--json"),
            place.run("withdraw", ledger, "row-4", "--json"),
            place.run(
                "resume", ledger, "--corrections", "fix.jsonl", "--add-rows", "--watch", "--json"
            ),
            place.run("start", POS_USAGE, "DBGenFrom=1", "--json"),
            place.run("watch", ledger, "--json"),
            place.run("status", ledger, "--json"),
            place.run("results", ledger, "--format", "jsonl"),
            place.run("log", ledger),
            place.run("history", "--json"),
            place.run("find", "row-1", "--json"),
            place.run("jobs", "--json"),
            place.run("targets", "--json"),
        ]

    lines = [json.loads(line) for each in said for line in each.stdout.splitlines()]
    printed = set().union(*map(keys_in, lines))
    of_des = {"fileName", "name", "type", "required", "nullable", "description"}
    texts = re.findall(r"`[^`]+`", FENCE.sub("", PAGES["json"]))
    named = set(re.findall(r"\b[a-z]\w*", " ".join(texts)))

    assert [each.args for each in said if not each.stdout] == []
    assert printed - of_des - {"supportsAutoValue"} - named == set()
    assert words_of("json", "key") - printed - {"file", "problems"} == set()
