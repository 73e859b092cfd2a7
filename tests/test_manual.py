"""What --help says: each command's page is whole, and its examples are command lines."""

from __future__ import annotations

import re
import shlex
from typing import TYPE_CHECKING, Any, Final

import click
import pytest
from test_readme import first_cells, section

from deslaunch.cli import command_line
from deslaunch.manual import PAGES
from deslaunch.simulator.faults import KINDS
from deslaunch.simulator.script import read_script

if TYPE_CHECKING:
    from collections.abc import Iterator

COMMANDS: Final = command_line.commands


def help_of(name: str) -> str:
    command = COMMANDS[name]
    return command.get_help(click.Context(command, info_name=f"deslaunch {name}"))


def lines_of(name: str, title: str) -> list[str]:
    """Return the lines of a section of a command's help, or none."""
    found = re.search(rf"^  {title}:\n((?:    .*\n?)*)", help_of(name), re.MULTILINE)
    return [line.strip() for line in found[1].splitlines()] if found else []


def examples() -> Iterator[Any]:
    """Yield each command line of the examples, without what stands before and behind it."""
    for name in COMMANDS:
        for line in lines_of(name, "Examples"):
            words = shlex.split(line.partition("deslaunch ")[2], comments=True)
            end = next((n for n, word in enumerate(words) if re.match(r"\d?[|>]", word)), None)
            yield pytest.param(words[:end], id=line)


@pytest.mark.parametrize("name", COMMANDS)
def test_a_page_says_what_a_command_does_not_do(name: str) -> None:
    told = lines_of(name, "What it does not do")

    assert told == list(PAGES[name].limits)
    assert all(limit.endswith(".") for limit in told)
    assert told


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_is_explained(name: str) -> None:
    options = [one for one in COMMANDS[name].params if isinstance(one, click.Option)]

    assert [one.opts for one in options if not one.help] == []


@pytest.mark.parametrize("words", list(examples()))
def test_an_example_is_a_command_line(words: list[str]) -> None:
    name, *arguments = words

    assert COMMANDS[name].make_context(name, arguments).params


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_has_examples(name: str) -> None:
    assert lines_of(name, "Examples")


@pytest.mark.parametrize("name", COMMANDS)
def test_the_exit_codes_are_those_of_the_page(name: str) -> None:
    told = {line.partition("  ")[0] for line in lines_of(name, "Exit codes")}

    assert {"0", "1", "2"} <= told
    assert told <= {*first_cells(section("Exit codes")), "141"}


@pytest.mark.parametrize("name", ["run", "resume"])
def test_a_launch_that_watches_has_the_exit_codes_of_a_watch(name: str) -> None:
    told = lines_of(name, "Exit codes with --watch")

    assert [line.partition("  ")[0] for line in told] == ["0", "3", "4", "5"]
    assert set(told) <= set(lines_of("watch", "Exit codes"))


def test_the_simulator_names_every_kind_of_fault() -> None:
    lines = lines_of("simulate", "Faults of a script")
    told = [kind for line in lines for kind in line.partition("  ")[0].split(", ")]

    assert sorted(told) == sorted(KINDS)


def test_the_simulator_names_every_selector() -> None:
    lines = lines_of("simulate", "Requests that a fault is for")
    keys = [key for line in lines for key in line.partition("  ")[0].split(", ")]
    values = {"at": [1], "match": {"text": "x"}, "on": "queryjobs", "share": 0.5}
    script = {"faults": [{"fault": "hang", key: values.get(key, 2)} for key in keys]}

    assert len(read_script(script).faults) == len(keys)


@pytest.mark.parametrize("name", COMMANDS)
def test_the_page_names_the_variables_of_the_help(name: str) -> None:
    told = set(re.findall(r"\b[A-Z]+_[A-Z_]+\b", "\n".join(lines_of(name, "Environment"))))

    assert told <= set(
        re.findall(r"\b[A-Z]+_[A-Z_]+\b", section("Options and environment variables"))
    )


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_that_asks_des_says_where_it_is(name: str) -> None:
    asks = any("--base-url" in one.opts for one in COMMANDS[name].params)

    assert ("DES_BASE_URL" in PAGES[name].environment) is asks
