"""The tree of exceptions that is drawn in errors.py is the tree that there is."""

from __future__ import annotations

import re
import traceback
from typing import Final

import pytest

from deslaunch import errors
from deslaunch.errors import DeslaunchError, LedgerError, LedgerWriteFailed, Stopped
from deslaunch.events import Counts, Summary

DRAWN: Final = re.compile(r"^    ([│├└─ ]*)(\w+) +(\d+)$", re.MULTILINE)
ROOT: Final = "DeslaunchError"
INDENT: Final = 4


def drawn() -> set[tuple[str, str, int]]:
    """Return (class, its parent, exit code) of each line of the drawing."""
    found = set()
    parents = [ROOT]

    for lead, name, code in DRAWN.findall(errors.__doc__ or ""):
        depth = len(lead) // INDENT
        parents[depth:] = [name]
        found.add((name, parents[depth - 1], int(code)))

    return found


def defined() -> set[tuple[str, str, int]]:
    return {
        (cls.__name__, base.__name__, cls.exit_code)
        for cls in vars(errors).values()
        if isinstance(cls, type) and issubclass(cls, DeslaunchError)
        for base in cls.__bases__
        if issubclass(base, DeslaunchError)
    }


def test_the_drawing_is_true() -> None:
    assert len(drawn()) > 20
    assert drawn() == defined()


def test_a_hint_is_told_once_and_stands_in_a_traceback() -> None:
    error = DeslaunchError("it broke", hint="fix it")
    error.advise("or leave it")

    assert (error.hint, str(error)) == ("fix it", "it broke")
    assert traceback.format_exception_only(error)[-1] == "fix it\n"


def test_a_place_stands_in_front() -> None:
    error = DeslaunchError("it broke")
    error.locate("night.csv:3")

    assert str(error) == "night.csv:3: it broke"


@pytest.mark.parametrize("cause", [Stopped, LedgerError])
def test_a_ledger_that_fails_is_caught_by_either_name(cause: type[DeslaunchError]) -> None:
    summary = Summary(Counts(), "night.ledger.db", unrecorded=(("a", "b"),))

    with pytest.raises(cause) as caught:
        raise LedgerWriteFailed("the disk is full", summary=summary)

    assert isinstance(caught.value, LedgerWriteFailed)
    assert caught.value.unrecorded == (("a", "b"),)


def test_runs_that_no_ledger_has_are_exit_code_7() -> None:
    """Whatever else is said: all rows may have ended well by then."""
    counts = Counts(started=2)

    assert Summary(counts, "night.ledger.db").exit_code == 0
    assert Summary(counts, "night.ledger.db", unrecorded=(("a", "b"),)).exit_code == 7
