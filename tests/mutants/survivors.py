"""The mutants that may live, each with its reason: ``survivors.toml``."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

    from .mutant import Mutant

LIST: Final = Path(__file__).with_name("survivors.toml")

Name = tuple[str, str, str, str]
"""Module, scope, the line as it was, and as it becomes."""


def read(text: str) -> dict[Name, str]:
    """Return the reasons by mutant.

    Raises:
        KeyError: an entry lacks something.
        ValueError: it is no TOML, an entry stands there twice, or its reason says nothing.
    """
    reasons: dict[Name, str] = {}

    for entry in tomllib.loads(text).get("survivor", []):
        name = (entry["module"], entry["where"], entry["was"], entry["becomes"])

        if name in reasons or not entry["reason"].strip():
            raise ValueError(f"listed twice, or without a reason: {name}")

        reasons[name] = entry["reason"]

    return reasons


def unlisted(survivors: Iterable[Mutant], reasons: Collection[Name]) -> list[Mutant]:
    """Return the survivors that nobody gave a reason for."""
    return [mutant for mutant in survivors if mutant.name not in reasons]


def outlived(
    survivors: Iterable[Mutant], reasons: Collection[Name], modules: Collection[str]
) -> list[Name]:
    """Return the entries of modules whose mutant is killed now, or is none any more."""
    alive = {mutant.name for mutant in survivors}
    return [name for name in reasons if name[0] in modules and name not in alive]
