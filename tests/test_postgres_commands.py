"""Promise: a command that is printed works as it is printed, however the batch was named."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING
from urllib.parse import quote

import pytest
from postgres import PASSWORD
from stage import POS_USAGE, fault, rejected_row, row

if TYPE_CHECKING:
    from subprocess import CompletedProcess

    from stage import Workplace

pytestmark = pytest.mark.slow

PRINTED = re.compile(r"(?:: |^  )(deslaunch [^;\n]*)", re.MULTILINE)


def secret(database: str) -> str:
    return database.replace("launcher@", f"launcher:{quote(PASSWORD, safe='')}@")


def commands_in(*told: CompletedProcess[str]) -> list[str]:
    return [line for one in told for line in PRINTED.findall(one.stdout + one.stderr)]


@pytest.fixture(
    params=[
        pytest.param(("{url}#night", None), id="a URL"),
        pytest.param(("{url}?connect_timeout=3&keepalives=1#night", None), id="with parameters"),
        pytest.param(("#night", "{url}"), id="a name, of the variable's database"),
        pytest.param(("#night", "{secret}#other"), id="a name, where the variable has another"),
        pytest.param((None, "{url}#night"), id="the variable"),
        pytest.param((None, "{secret}#night"), id="the variable, with a password"),
    ]
)
def ledger(request: pytest.FixtureRequest, database: str, place: Workplace) -> list[str]:
    """How the batch is named on a command line; the variable may say the rest."""
    word, variable = request.param
    more = {"url": database, "secret": secret(database)}

    if variable is not None:
        place.environment["DESLAUNCH_LEDGER"] = variable.format(**more)

    if "secret" in (variable or ""):
        del place.environment["PGPASSWORD"]

    return [word.format(**more)] if word else []


def test_what_is_printed_after_a_launch_works(ledger: list[str], place: Workplace) -> None:
    named = ["--ledger", *ledger] if ledger else []
    place.write([row(1), rejected_row(2), row(3), row(4)])
    place.simulator.use(fault("reset", 3))

    first = place.run("run", "night.jsonl", *named, "--limit", "3", "--concurrency", "1")
    again = place.run("run", "night.jsonl", *named)
    other = place.run("run", "night.jsonl", *named, "--resume", "--job-id", POS_USAGE)
    status = place.run("status", *ledger)

    assert [one.returncode for one in (first, again, other, status)] == [5, 7, 2, 0]
    commands = commands_in(first, again, other, status)
    assert len(commands) == 13
    kinds = {line.split()[1] for line in commands}
    assert kinds == {"resume", "status", "results", "resolve"}

    for command in dict.fromkeys(commands):
        done = place.shell(command)
        untold = 'the column "as" is empty in every row' in done.stderr  # of the file of findings
        assert done.returncode in {0, 4} or untold, (command, done)

    assert place.json("status", *ledger)["started"] == 2


def test_its_database_is_listed(ledger: list[str], place: Workplace) -> None:
    place.manifest(1)
    place.run("run", "night.jsonl", *(["--ledger", *ledger] if ledger else []))
    url = place.environment.get("DESLAUNCH_LEDGER", "")
    line = ["status", "#"] if url else ["status", ledger[0].partition("#")[0]]

    missing = place.run("status", f"{line[1].removesuffix('#')}#nigth")
    told = [place.run(*line, "--json")]

    if url and "#" not in url:
        told.append(place.run("status", "--json"))  # the variable names no batch

    told += [place.shell(f"{command} --json") for command in commands_in(missing)]
    lists = [[one["batch"] for one in json.loads(done.stdout)["batches"]] for done in told]
    assert lists == [["night"]] * len(told)
    assert len(told) > 1


def test_its_copy_is_made_by_postgresql(ledger: list[str], place: Workplace) -> None:
    place.manifest(1)
    named = ledger or ["#night"]
    place.run("run", "night.jsonl", "--ledger", *named)
    done = place.run("export", *named, "copy.db")

    assert (done.returncode, "pg_dump --schema=deslaunch " in done.stderr) == (2, True)
    assert not (place.folder / "copy.db").exists()
