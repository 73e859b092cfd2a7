"""What import-linter can't see: how much there is, and who may print, exit, or read a clock."""

from __future__ import annotations

import ast
import io
import tokenize
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest

import deslaunch

if TYPE_CHECKING:
    from collections.abc import Iterator

PACKAGE: Final = Path(deslaunch.__file__).parent
# About what the whole design may take.
MOST_MODULES: Final = 53
MOST_LINES: Final = 11_930
MOST_LINES_OF_A_MODULE: Final = 450
_NO_CODE: Final = {
    tokenize.COMMENT,
    tokenize.DEDENT,
    tokenize.ENDMARKER,
    tokenize.INDENT,
    tokenize.NEWLINE,
    tokenize.NL,
}

PURE: Final = {
    "errors",
    "events",
    "launch.retry",
    "launch.target",
    "manifest.rows",
    "manifest.schema",
    "model",
    "report.charts",
    "settings",
}
"""Modules that decide and touch nothing: no file, no socket, no clock, no luck of their own."""

IMPURE: Final = {"aiohttp", "anyio", "asyncio", "os", "pathlib", "socket", "subprocess", "time"}

GONE: Final = {"Doubts", "Sifter", "given", "kept_rows", "patience", "sifter", "terms", "together"}
"""Names that say less than the words of the field: row, claim, attempt, outcome, session."""


def name_of(path: Path) -> str:
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts)


MODULES: Final = {name_of(path): path for path in sorted(PACKAGE.rglob("*.py"))}


@cache
def tree_of(name: str) -> ast.Module:
    return ast.parse(MODULES[name].read_text(encoding="utf-8"))


def calls(name: str) -> set[str]:
    return {
        ast.unparse(node.func) for node in ast.walk(tree_of(name)) if isinstance(node, ast.Call)
    }


def imports(name: str) -> set[str]:
    """Return the top names of what a module imports, anywhere in it."""
    found = set()

    for node in ast.walk(tree_of(name)):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module.partition(".")[0])

    return found


def docstring_lines(tree: ast.AST) -> Iterator[int]:
    """Yield the lines of docstrings, an attribute's too: of all texts that stand alone."""
    for node in ast.walk(tree):
        if (
            isinstance(node, ast.Expr)
            and isinstance(node.value, ast.Constant)
            and isinstance(node.value.value, str)
        ):
            yield from range(node.lineno, (node.end_lineno or node.lineno) + 1)


@cache
def code_lines(name: str) -> int:
    """Return a module's lines without docstrings, comments and blanks."""
    source = MODULES[name].read_text(encoding="utf-8")
    lines: set[int] = set()

    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in _NO_CODE:
            lines.update(range(token.start[0], token.end[0] + 1))

    return len(lines - set(docstring_lines(tree_of(name))))


def test_it_is_small() -> None:
    lines = {name: code_lines(name) for name in MODULES if code_lines(name)}
    longest = max(lines, key=lines.__getitem__)

    assert len(lines) <= MOST_MODULES, sorted(lines)
    assert sum(lines.values()) <= MOST_LINES
    assert lines[longest] <= MOST_LINES_OF_A_MODULE, longest


def test_packages_hold_a_docstring_only() -> None:
    holding = {name for name in MODULES if name.endswith(".__init__") and code_lines(name)}

    # The judge of all tests is used by its package's name, as a user's test would.
    assert holding <= {"simulator.__init__"}


def test_no_name_of_a_concept_that_is_none() -> None:
    kinds = ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
    named = {
        node.name.lstrip("_")
        for name in MODULES
        for node in ast.walk(tree_of(name))
        if isinstance(node, kinds)
    }
    files = {word for name in MODULES for word in name.split(".")}

    assert (named | files) & GONE == set()


def test_only_the_command_line_prints_and_exits() -> None:
    leaving = {"print", "sys.exit", "exit", "os._exit", "click.echo"}

    assert {name for name in MODULES if calls(name) & leaving and not name.startswith("cli.")} == {
        "__main__"
    }


@pytest.mark.parametrize("name", sorted(PURE))
def test_what_decides_has_no_input_no_output_and_no_clock(name: str) -> None:
    assert not imports(name) & IMPURE
    assert not {call for call in calls(name) if call.endswith((".now", ".today", ".utcnow"))}
    assert "open" not in calls(name)


def test_only_the_command_line_takes_a_faster_loop() -> None:
    assert {name for name in MODULES if "uvloop" in imports(name)} <= {
        name for name in MODULES if name.startswith("cli.")
    }


def test_every_public_name_can_be_imported() -> None:
    assert deslaunch.__all__ == sorted(deslaunch.__all__)
    assert [name for name in deslaunch.__all__ if not hasattr(deslaunch, name)] == []
    assert set(dir(deslaunch)) >= set(deslaunch.__all__)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = deslaunch.nonsense
