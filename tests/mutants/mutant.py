"""One module with one fault."""

from __future__ import annotations

import re
from itertools import accumulate, takewhile
from operator import eq
from typing import TYPE_CHECKING, Final, NamedTuple

import libcst as cst
from libcst.metadata import MetadataWrapper, ParentNodeProvider, PositionProvider

from .operators import faults_of, is_spared

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from libcst.metadata import CodePosition

_LINE_BREAK: Final = re.compile(r"\n(?!\n|$)")
_STATEMENTS: Final = (cst.SimpleStatementLine, cst.BaseCompoundStatement, cst.Module)
_SCOPES: Final = (cst.FunctionDef, cst.ClassDef)


class Mutant(NamedTuple):
    """A module's source with one fault.

    Attributes:
        module: its name in the package.
        where: the function or class that the fault stands in, ``""`` for the module itself.
        line: physical line of the fault, from 1.
        lines: what must run for the fault to show.
        was: the changed lines as they were, as one.
        becomes: the same as they are now.
        source: the whole module.
    """

    module: str
    where: str
    line: int
    lines: range
    was: str
    becomes: str
    source: str

    @property
    def name(self) -> tuple[str, str, str, str]:
        """What the mutant is known by, wherever its lines move to."""
        return self.module, self.where, self.was, self.becomes

    def __str__(self) -> str:
        head = f"deslaunch/{self.module}.py:{self.line} {self.where}".rstrip()
        return f"{head}\n  - {self.was}\n  + {self.becomes}"


def mutants_of(module: str, source: str) -> list[Mutant]:
    """Return every mutant of a module, in the order of its lines."""
    found = {mutant.source: mutant for mutant in _Source(module, source).mutants()}
    found.pop(source, None)
    return sorted(found.values(), key=lambda mutant: mutant.line)


class _Source:
    """A parsed module, and where its nodes stand."""

    def __init__(self, module: str, source: str) -> None:
        wrapper = MetadataWrapper(cst.parse_module(source))
        self._module = module
        self._text = source
        self._tree = wrapper.module
        self._places = wrapper.resolve(PositionProvider)
        self._parents = wrapper.resolve(ParentNodeProvider)
        self._lines = source.splitlines(keepends=True)
        self._starts = [0, *accumulate(map(len, self._lines))]

    def mutants(self) -> Iterator[Mutant]:
        for node in _walk(self._tree):
            for part, fault in faults_of(node):
                text = self._with(part, fault)

                if _compiles(text):
                    yield self._mutant(part, text)

    def _mutant(self, node: cst.CSTNode, text: str) -> Mutant:
        first = self._statement(node)
        place = self._places[node]
        was, becomes = _changed(self._lines, text.splitlines(keepends=True))
        return Mutant(
            module=self._module,
            where=self._scope(node),
            line=place.start.line,
            lines=range(self._places[first].start.line, place.end.line + 1),
            was=was,
            becomes=becomes,
            source=text,
        )

    def _with(self, node: cst.CSTNode, fault: cst.CSTNode) -> str:
        """Return the source with a fault in a node's place."""
        place = self._places[node]
        start, end = self._offset(place.start), self._offset(place.end)
        there = self._text[start:end]
        indent = self._indent(node)
        old, new = self._code(node, indent), self._code(fault, indent)

        if there.strip() != old:  # the place of an expression is that within its parentheses
            old, new = self._code(_bare(node), indent), self._code(_bare(fault), indent)

        assert there.strip() == old, f"{there!r} is rendered as {old!r}"
        return self._text[:start] + there.replace(old, new) + self._text[end:]

    def _code(self, node: cst.CSTNode, indent: str) -> str:
        return _LINE_BREAK.sub(f"\n{indent}", self._tree.code_for_node(node).strip())

    def _offset(self, position: CodePosition) -> int:
        return self._starts[position.line - 1] + position.column

    def _indent(self, node: cst.CSTNode) -> str:
        return " " * self._places[self._statement(node)].start.column

    def _statement(self, node: cst.CSTNode) -> cst.CSTNode:
        return next(known for known in self._line_up(node) if isinstance(known, _STATEMENTS))

    def _scope(self, node: cst.CSTNode) -> str:
        names = [known.name.value for known in self._line_up(node) if isinstance(known, _SCOPES)]
        return ".".join(reversed(names))

    def _line_up(self, node: cst.CSTNode | None) -> Iterator[cst.CSTNode]:
        """Yield a node and all that it is in, from the inside out."""
        while node is not None:
            yield node
            node = self._parents.get(node)


def _walk(node: cst.CSTNode) -> Iterator[cst.CSTNode]:
    if is_spared(node):
        return

    yield node

    for child in node.children:
        yield from _walk(child)


def _bare(node: cst.CSTNode) -> cst.CSTNode:
    return node.with_changes(lpar=[], rpar=[]) if isinstance(node, cst.BaseExpression) else node


def _compiles(source: str) -> bool:
    try:
        compile(source, "mutant", "exec")
    except SyntaxError:
        return False

    return True


def _changed(old: Sequence[str], new: Sequence[str]) -> tuple[str, str]:
    """Return the lines that differ, each side as one line."""
    head = _alike(old, new)
    tail = _alike(old[head:][::-1], new[head:][::-1])
    return _joined(old[head : len(old) - tail]), _joined(new[head : len(new) - tail])


def _alike(old: Iterable[str], new: Iterable[str]) -> int:
    return sum(1 for _ in takewhile(bool, map(eq, old, new)))


def _joined(lines: Iterable[str]) -> str:
    return " ".join(line.strip() for line in lines)
