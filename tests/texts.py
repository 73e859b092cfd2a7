"""The errors of the package as one list, to be read side by side: ``tests/errors.txt``.

The list is made from the source, so that none is missing: every exception of
:mod:`deslaunch.errors` and of click's usage errors, every problem of a row, every reason to stop,
every note and warning. Where a text holds a value, the expression stands that gives it.

    python tests/texts.py        writes the list anew
"""

from __future__ import annotations

import ast
import itertools
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import click

import deslaunch
from deslaunch import errors

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

PACKAGE: Final = Path(deslaunch.__file__).parent
LIST: Final = Path(__file__).with_name("errors.txt")

_OURS: Final[Mapping[str, Any]] = {**vars(errors), **vars(click)}
_TEXTS: Final[Mapping[str, tuple[str, ...]]] = {
    # The parameters that are texts, by what is called, in their order.
    "Fault": ("column", "expected", "", "message"),
    "Unfit": ("expected", "message"),
    "Stop": ("", "message"),
    "Noted": ("message",),
    "insist": ("message",),
    "warn": ("message",),
}
_KEPT: Final = ("message", "expected", "hint")

Scope = dict[str, list[ast.expr]]


class Text(NamedTuple):
    """What one call may say.

    Attributes:
        line: of the source.
        name: what is called.
        kind: the same, with an exception's exit code.
        message: the sentence.
        more: what was expected, and the hint, where they are given.
    """

    line: int
    name: str
    kind: str
    message: str
    more: Mapping[str, str]

    def __str__(self) -> str:
        more = "".join(f"\n    {name}: {text}" for name, text in self.more.items() if text)
        return f"  {self.kind}: {self.message}{more}"


def _text(node: ast.expr, scope: Scope, depth: int = 3) -> str:
    match node:
        case ast.Constant(str(value)):
            return value
        case ast.JoinedStr(values):
            return "".join(_text(value, scope, depth) for value in values)
        case ast.FormattedValue(value):
            return f"{{{ast.unparse(value)}}}"
        case ast.BinOp(left, ast.Add(), right):
            return _text(left, scope, depth) + _text(right, scope, depth)
        case ast.IfExp(_, one, other):
            return f"({_text(one, scope, depth)} | {_text(other, scope, depth)})"
        case ast.Name(name) if depth and name in scope:
            return " | ".join(dict.fromkeys(_text(one, scope, depth - 1) for one in scope[name]))
        case _:
            return f"{{{ast.unparse(node)}}}"


def _scope(function: ast.AST) -> Scope:
    """Return what a function, or a module, assigns to each name."""
    found: Scope = {}

    for node in ast.walk(function):
        match node:
            case ast.Assign([ast.Name(name)], value) | ast.AugAssign(ast.Name(name), _, value):
                found.setdefault(name, []).append(value)
            case ast.AnnAssign(ast.Name(name), _, ast.expr() as value):
                found.setdefault(name, []).append(value)

    return found


def _read(call: ast.Call, scope: Scope) -> Text | None:
    name = ast.unparse(call.func).rpartition(".")[2]
    known = _OURS.get(name)
    kind, names = name, _TEXTS.get(name, ())

    if isinstance(known, type) and issubclass(known, errors.DeslaunchError | click.UsageError):
        kind, names = f"{name} ({getattr(known, 'exit_code', 2)})", ("message",)

    given = dict(zip(names, call.args, strict=False))
    given |= {word.arg: word.value for word in call.keywords if word.arg in _KEPT}
    told: dict[str, str] = {n: _text(given[n], scope) for n in _KEPT if n in given}
    message = told.pop("message", "")
    is_passed_on = message.startswith("{") and message.count("{") == 1 and message.endswith("}")
    return Text(call.lineno, name, kind, message, told) if message and not is_passed_on else None


def _texts_of(path: Path) -> Iterator[Text]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    functions = (ast.FunctionDef, ast.AsyncFunctionDef)
    inner_first = [tree, *(node for node in ast.walk(tree) if isinstance(node, functions))][::-1]
    seen: set[ast.Call] = set()

    for function in inner_first:
        scope = _scope(function)

        for node in ast.walk(function):
            if isinstance(node, ast.Call) and node not in seen:
                seen.add(node)

                if text := _read(node, scope):
                    yield text


def texts() -> dict[str, list[Text]]:
    """Return all texts, by their module's path, in the order of the source."""
    paths = (path for path in sorted(PACKAGE.rglob("*.py")) if "simulator" not in path.parts)
    found = {str(path.relative_to(PACKAGE)): sorted(_texts_of(path)) for path in paths}
    return {path: said for path, said in found.items() if said}


def listed() -> str:
    """Return the list."""
    blocks = ([path, *map(str, said), ""] for path, said in texts().items())
    return "\n".join(itertools.chain.from_iterable(blocks))


if __name__ == "__main__":
    LIST.write_text(listed(), encoding="utf-8")
    sys.stdout.write(f"{LIST}\n")
