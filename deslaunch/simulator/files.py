"""What may stand in a JSON file: rules for values, shapes for objects.

Pure but for :func:`load`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import orjson

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Iterable, Mapping
    from collections.abc import Set as AbstractSet

    from deslaunch.simulator.errors import SimulatorError

_GUID: Final = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Rule:
    """What may stand in one place of a file, in words and as a test."""

    expected: str
    holds: Callable[[Any], bool]


def is_number(value: Any) -> bool:
    """Tell whether it is a number; a truth value is none."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def is_count(value: Any) -> bool:
    """Tell whether it is a whole number from 1."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def is_guid(value: Any) -> bool:
    """Tell whether it is a GUID's text, in either case."""
    return isinstance(value, str) and _GUID.fullmatch(value) is not None


def is_list_of(holds: Callable[[Any], bool]) -> Callable[[Any], bool]:
    """Return a test for lists of nothing but values for which ``holds`` is true."""
    return lambda value: isinstance(value, list) and all(map(holds, value))


def is_a(kind: type) -> Callable[[Any], bool]:
    """Return a test for values of one type."""
    return lambda value: isinstance(value, kind)


def one_of(words: Iterable[str]) -> Rule:
    """Return the rule that nothing but one of these words may stand here."""
    known = sorted(words)
    return Rule(f"one of {', '.join(known)}", known.__contains__)


TEXT: Final = Rule("a string", is_a(str))
TRUTH: Final = Rule("true or false", is_a(bool))
OBJECT: Final = Rule("an object", is_a(dict))
COUNT: Final = Rule("a whole number from 1", is_count)
SECONDS: Final = Rule("a number of seconds from 0", lambda v: is_number(v) and v >= 0)
WHOLE: Final = Rule("a whole number", lambda v: is_number(v) and isinstance(v, int))
GUID_TEXT: Final = Rule("a GUID", is_guid)


@dataclass(frozen=True, slots=True)
class Shape:
    """The keys that an object of a file may have, and those that it must have.

    Attributes:
        error: raised for an object of another shape.
        rules: what may stand at each key.
        required: keys that must be there, each with a rule.
        closed: whether keys without a rule are refused.
    """

    error: type[SimulatorError]
    rules: Mapping[str, Rule]
    required: AbstractSet[str] = frozenset()
    closed: bool = True

    def check(self, value: Any, where: str) -> dict[str, Any]:
        """Return ``value``, an object of this shape.

        Raises:
            SimulatorError: of the class ``error``, for the first key that breaks a rule.
        """
        if not isinstance(value, dict):
            raise self.error(where, expected="an object", got=value)

        for key in sorted(self.required - value.keys()):
            raise self.error(_at(where, key), expected=self.rules[key].expected, got=None)

        for key, item in value.items():
            self._check_item(_at(where, key), self.rules.get(key), key, item)

        return value

    def _check_item(self, where: str, rule: Rule | None, key: str, item: Any) -> None:
        if rule is None and self.closed:
            raise self.error(where, expected=one_of(self.rules).expected, got=key)

        if rule is not None and not rule.holds(item):
            raise self.error(where, expected=rule.expected, got=item)


def _at(where: str, key: str) -> str:
    return f"{where}.{key}" if where else key


def load(path: str | os.PathLike[str], error: type[SimulatorError]) -> Any:
    """Return a JSON file's value.

    Raises:
        SimulatorError: of the class ``error``, it is no JSON; says the line.
        OSError: it can't be read.
    """
    try:
        return orjson.loads(Path(path).read_bytes())
    except orjson.JSONDecodeError as exc:
        raise error(f"{path}, line {exc.lineno}", expected="JSON", got=exc.msg) from exc
