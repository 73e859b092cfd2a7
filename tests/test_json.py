"""What --json prints, held against what the page says of it."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any, Final

import pytest
from commands import POS_USAGE, Workplace, workplace
from test_readme import COMMANDS, options_of, section

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.slow

SCALARS: Final[dict[str, tuple[type, ...]]] = {
    "whole": (int,),
    "number": (int, float),
    "text": (str,),
    "true": (bool,),
    "false": (bool,),
    "null": (type(None),),
    "object": (dict,),
}
SILENT: Final = {"completion", "report", "results", "simulate", "template"}
"""Commands that print a script, a page, lines of data or a URL."""


def shapes() -> dict[str, dict[str, str]]:
    """Return what the page says: by command or by kind of object, each key with its type."""
    found = {}

    for what, keys in re.findall(r"^\| ([^|]+) \| (`[^|]+) \|$", section("JSON"), re.MULTILINE):
        for name in what.split(", "):
            found[name.strip("`")] = dict(re.findall(r"`(\w+)` ([^,]+)", keys))

    return found


SHAPES: Final = shapes()


def misfits(value: Any, told: str, where: str) -> Iterator[str]:
    """Yield where a value is not what the page tells: a type, a list of it, or an object."""
    if value is None and told.endswith(" or null"):
        return

    if told.startswith("list of "):
        kind = told.removeprefix("list of ").removesuffix(" or null")

        if not isinstance(value, list):
            yield f"{where} is no list: {value!r}"
            return

        for element in value:
            yield from misfits(element, kind, f"{where}[]")
    elif told in SHAPES:
        yield from misfits_of_object(value, SHAPES[told], where)
    elif not any(type(value) in SCALARS[word] for word in told.split(" or ")):
        yield f"{where} is not {told}: {value!r}"


def misfits_of_object(value: Any, keys: dict[str, str], where: str) -> Iterator[str]:
    if list(value) != list(keys):
        yield f"{where} has the keys {list(value)}"
        return

    for key, told in keys.items():
        yield from misfits(value[key], told, f"{where}.{key}")


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Workplace]:
    faults = [
        {"fault": "fail-run", "at": [1], "error": "no sales"},
        {"fault": "not-json", "at": [2]},
        {"fault": "status", "status": 400, "at": [3]},
    ]

    with workplace(tmp_path, {"faults": faults}) as found:
        found.manifest(3)
        (tmp_path / "bad.csv").write_text(f"jobId,DBGenFrom,Nonsense\n{POS_USAGE},abc,1\n")
        yield found


def said(place: Workplace) -> Iterator[tuple[str, Any]]:
    """Yield what each command prints, with its name."""
    ledger = "night.ledger.jsonl"
    yield "run", place.json("run", "night.jsonl")
    yield "resume", place.json("resume", ledger, "--retry-rejected")
    yield "resolve", place.json("resolve", ledger, "row-2", "--not-started")
    yield "status", place.json("status", ledger)
    place.run("run", "night.jsonl", "--ledger", "again.jsonl")
    several = place.json("status", ledger, "again.jsonl")
    assert several["sharedKeys"]
    yield "status of several ledgers", several
    yield "watch", place.json("watch", ledger, "--interval", "0.1")
    yield "check", place.json("check", "bad.csv")
    yield "check", place.json("check", "night.jsonl")
    yield "jobs", place.json("jobs")
    yield "targets", place.json("targets")
    yield "targets", place.json("targets", "--base-url", "http://127.0.0.1:9")

    for line in place.run("results", ledger, "--format", "jsonl").stdout.splitlines():
        yield "results", json.loads(line)


def test_the_json_is_what_the_page_says(place: Workplace) -> None:
    tried = set()

    for name, value in said(place):
        assert list(misfits(value, name, name)) == []
        tried.add(name)

    tried.remove("status of several ledgers")
    assert tried == {name for name in SHAPES if name in COMMANDS}


def test_every_command_that_prints_data_prints_json() -> None:
    assert {one for one in COMMANDS if "--json" not in options_of(one)} <= SILENT
    assert {one for one in COMMANDS if "--json" in options_of(one)} <= SHAPES.keys()


@pytest.mark.parametrize(
    ("value", "told", "misfit"),
    [
        pytest.param(True, "whole", True, id="true-is-no-number"),
        pytest.param(None, "text", True, id="null"),
        pytest.param(None, "text or null", False, id="null-allowed"),
        pytest.param(["a", 1], "list of text", True, id="element"),
        pytest.param({"jobs": []}, "jobs", False, id="object"),
        pytest.param({"jobs": [], "more": 1}, "jobs", True, id="key-that-the-page-lacks"),
    ],
)
def test_a_misfit_is_seen(value: Any, told: str, misfit: bool) -> None:
    assert bool(list(misfits(value, told, "x"))) is misfit
