"""How code is made wrong.

All of mutmut's operators, which leave whole statements alone, and four of our own, which do not.
mutmut itself can't be used: it passes over decorated functions, class bodies and constants.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import libcst as cst
from mutmut.mutation.mutators import mutation_operators

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    _Operator = tuple[type, Callable[[Any], Iterable[cst.CSTNode]]]

_NONE: Final = cst.Name("None")


def returns_nothing(node: cst.Return) -> Iterator[cst.Return]:
    """``return x`` becomes ``return None``."""
    if node.value is not None and not node.value.deep_equals(_NONE):
        space = cst.SimpleWhitespace(" ")
        yield node.with_changes(value=_NONE, whitespace_after_return=space)


def drops_statement(node: cst.Expr | cst.AugAssign | cst.Raise) -> Iterator[cst.Pass]:
    """A call for its effect, an ``x += 1`` or a ``raise`` becomes ``pass``."""
    yield cst.Pass()


def negated(node: cst.BaseExpression) -> cst.BaseExpression:
    """``x`` becomes ``(not (x))``."""
    left, right = cst.LeftParen(), cst.RightParen()
    inner = node.with_changes(lpar=[left, *node.lpar], rpar=[*node.rpar, right])
    return cst.UnaryOperation(cst.Not(), inner, lpar=[left], rpar=[right])


_OWN: Final = (
    (cst.Return, returns_nothing),
    (cst.Expr, drops_statement),
    (cst.AugAssign, drops_statement),
    (cst.Raise, drops_statement),
)
_OPERATORS: Final[Sequence[_Operator]] = (*mutation_operators, *_OWN)


def faults_of(node: cst.CSTNode) -> Iterator[tuple[cst.CSTNode, cst.CSTNode]]:
    """Yield parts of a node, most often all of it, with what may stand in their place."""
    for kind, operator in _OPERATORS:
        if isinstance(node, kind):
            yield from ((node, fault) for fault in operator(node))

    if isinstance(node, cst.If):
        yield node.test, negated(node.test)


def is_spared(node: cst.CSTNode) -> bool:
    """Tell whether a fault in a node, or below it, would change nothing, or say nothing."""
    match node:
        case cst.Annotation() | cst.Decorator() | cst.Import() | cst.ImportFrom():
            return True
        case cst.Expr(value=cst.SimpleString() | cst.ConcatenatedString() | cst.Ellipsis()):
            return True
        case cst.If(test=cst.Name("TYPE_CHECKING")):
            return True
        case cst.Call(func=cst.Name("len" | "isinstance")):
            return True  # as mutmut has it: each such fault is a TypeError
        case cst.ClassDef(bases=bases):
            return any(base.value.deep_equals(cst.Name("Protocol")) for base in bases)

    return False
